//! Tokens that only their issuer can read: it is asked (RFC 7662), and its answers are remembered for a while.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::Digest;
use super::claims::{Claims, Voucher};
use super::json::{Object, Value};
use super::memory::Memory;
use super::reason::Reason;
use crate::auth::{Error, fetch};
use crate::config::{IntrospectionSettings, IssuerSettings};
use crate::follow::{self, Followed};

/// The most questions that wait for an answer.
const MAX_QUESTIONS: usize = 64;
/// The longest time that a token is taken to be invalid after its issuer said so.
const DENIAL: Duration = Duration::from_secs(10);
/// How long a request waits for an answer; asking has a deadline of its own, which is shorter.
const PATIENCE: Duration = Duration::from_secs(3);
/// When it is worth coming back after a question that nobody answered.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What a question came to. `None` if it has no answer.
type Outcome = Option<Arc<Answer>>;

/// What the issuer said about one token.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) claims: Result<Claims, Reason>,
    until: Instant,
}

/// One token to ask about.
#[derive(Debug)]
struct Question {
    digest: Digest,
    unverified_token: SecretString,
    /// Seconds since 1970.
    now: f64,
    outcome: watch::Sender<Option<Outcome>>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Fetch(#[from] fetch::Error),
    #[error("found something else, expected a JSON object with \"active\"")]
    Answer,
}

/// Where one issuer is asked about its tokens.
#[derive(Debug)]
pub(super) struct Introspection {
    settings: IntrospectionSettings,
    secret: Followed<SecretString>,
    answers: Memory<Answer>,
    /// Questions without an answer yet: nobody asks the same twice.
    waiting: Mutex<HashMap<Digest, watch::Receiver<Option<Outcome>>>>,
    questions: mpsc::Sender<Question>,
    asked: tokio::sync::Mutex<mpsc::Receiver<Question>>,
    /// The last failure, which is told once.
    told: Mutex<String>,
}

impl Introspection {
    /// The endpoint that the settings name.
    ///
    /// # Errors
    /// [`follow::Error`] if the file with its secret cannot be used.
    pub(super) fn open(settings: &IntrospectionSettings) -> Result<Self, follow::Error> {
        let parse = |texts: &[Vec<u8>]| match String::from_utf8(texts.concat()) {
            Ok(text) if !text.trim().is_empty() => {
                Ok(SecretString::from(text.trim_end_matches(['\r', '\n'])))
            }
            _ => Err("found no text, expected the secret of a client".to_owned()),
        };
        let file = settings.client_secret_file.clone();
        let (questions, asked) = mpsc::channel(MAX_QUESTIONS);
        Ok(Self {
            settings: settings.clone(),
            secret: Followed::open("a secret for introspection", vec![file], parse)?,
            answers: Memory::default(),
            waiting: Mutex::default(),
            questions,
            asked: tokio::sync::Mutex::new(asked),
            told: Mutex::default(),
        })
    }

    /// What the issuer says about `unverified_token`, whose digest is `digest`. `now` is in seconds since 1970.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if it does not say anything in time.
    pub(super) async fn answer(
        &self,
        digest: Digest,
        unverified_token: &str,
        now: f64,
    ) -> Result<Arc<Answer>, Error> {
        let known = || self.answers.get(&digest).filter(|answer| Instant::now() < answer.until);
        if let Some(answer) = known() {
            return Ok(answer);
        }
        let unavailable = Error::Unavailable { retry_after: RETRY_AFTER };
        let mut outcome = {
            let mut waiting = self.waiting();
            match waiting.get(&digest) {
                Some(outcome) => outcome.clone(),
                None => {
                    // It may have come since.
                    if let Some(answer) = known() {
                        return Ok(answer);
                    }
                    let (sender, outcome) = watch::channel(None);
                    let unverified_token = unverified_token.into();
                    let question = Question { digest, unverified_token, now, outcome: sender };
                    if waiting.len() >= MAX_QUESTIONS || self.questions.try_send(question).is_err() {
                        return Err(unavailable);
                    }
                    waiting.insert(digest, outcome.clone());
                    outcome
                }
            }
        };
        let outcome = timeout(PATIENCE, outcome.wait_for(Option::is_some)).await;
        outcome.ok().and_then(|outcome| outcome.ok()?.clone().flatten()).ok_or(unavailable)
    }

    /// Asks what there is to ask for as long as the gateway runs.
    pub(super) async fn follow(self: &Arc<Self>, issuer: &Arc<IssuerSettings>, client: &fetch::Client) {
        let mut asked = self.asked.lock().await;
        let mut asking = JoinSet::new();
        let ask = async {
            loop {
                tokio::select! {
                    question = asked.recv() => {
                        // There is always one: the sender is here too.
                        let Some(question) = question else { return };
                        let (this, issuer, client) = (Arc::clone(self), Arc::clone(issuer), client.clone());
                        asking.spawn(async move { this.settle(question, &issuer, &client).await });
                    }
                    Some(_) = asking.join_next() => {}
                }
            }
        };
        tokio::join!(ask, self.secret.follow(|_| ()));
    }

    /// Finds the answer to one question and tells everybody who waits for it.
    async fn settle(&self, question: Question, issuer: &IssuerSettings, client: &fetch::Client) {
        let _closing = Closing { waiting: &self.waiting, digest: question.digest };
        let outcome = match self.ask(&question, issuer, client).await {
            Ok(claims) => {
                self.told().clear();
                let believed = self.settings.cache.min(if claims.is_ok() { Duration::MAX } else { DENIAL });
                let answer = Arc::new(Answer { claims, until: Instant::now() + believed });
                self.answers.insert(question.digest, Arc::clone(&answer));
                Some(answer)
            }
            Err(failure) => {
                let error = format!("{:#}", anyhow::Error::from(failure));
                let mut told = self.told();
                if *told != error {
                    let issuer = &issuer.issuer;
                    tracing::error!(issuer, error, "an issuer does not answer about its tokens");
                    *told = error;
                }
                None
            }
        };
        question.outcome.send_replace(Some(outcome));
    }

    async fn ask(
        &self,
        question: &Question,
        issuer: &IssuerSettings,
        client: &fetch::Client,
    ) -> Result<Result<Claims, Reason>, Failure> {
        let secret = self.secret.get_full();
        let token = question.unverified_token.expose_secret();
        let form = [("token", token), ("token_type_hint", "access_token")];
        let credentials = (self.settings.client_id.as_str(), secret.expose_secret());
        let answer = client.ask(&self.settings.endpoint, issuer.allow_http, &form, credentials).await?;
        let answer = Object::parse(&answer).ok_or(Failure::Answer)?;
        match answer.get("active") {
            Some(Value::Bool(true)) => {}
            Some(Value::Bool(false)) => return Ok(Err(Reason::Inactive)),
            _ => return Err(Failure::Answer),
        }
        let is_bearer = match answer.get("token_type") {
            None => true,
            Some(kind) => kind.text().is_some_and(|kind| kind.eq_ignore_ascii_case("bearer")),
        };
        if !is_bearer {
            return Ok(Err(Reason::Type));
        }
        Ok(Claims::check(&answer, Voucher::Answer, issuer, question.now))
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<Digest, watch::Receiver<Option<Outcome>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn told(&self) -> MutexGuard<'_, String> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a question from the open ones when it is settled, however that ends.
struct Closing<'i> {
    waiting: &'i Mutex<HashMap<Digest, watch::Receiver<Option<Outcome>>>>,
    digest: Digest,
}

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.digest);
    }
}
