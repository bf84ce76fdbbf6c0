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
/// The most of them about strangers: tokens that the issuer has not called active. Anybody can make those up, and must not take
/// the places of the others.
const MAX_STRANGERS: usize = 32;
/// How many strangers the issuer is asked about within a second, so that nobody can flood it through the gateway.
const STRANGERS_PER_SECOND: u32 = 100;
/// After which share of the time that an answer is believed it is asked for anew. Whoever shows the token meanwhile does not wait.
const RENEWAL: f64 = 0.75;
/// The longest time that a token is taken to be invalid after its issuer said so.
const DENIAL: Duration = Duration::from_secs(10);
/// How long a request waits for an answer; asking has a deadline of its own, which is shorter.
const PATIENCE: Duration = Duration::from_secs(3);
/// When it is worth coming back after a question that nobody answered. An active token is not asked about more often.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What a question came to. `None` if it has no answer.
type Outcome = Option<Arc<Answer>>;

/// What the issuer said about one token.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) claims: Result<Claims, Reason>,
    until: Instant,
    /// When it may be asked for anew.
    again: Mutex<Instant>,
}

impl Answer {
    fn new(claims: Result<Claims, Reason>, cache: Duration) -> Self {
        let believed = cache.min(if claims.is_ok() { Duration::MAX } else { DENIAL });
        let now = Instant::now();
        Self { claims, until: now + believed, again: Mutex::new(now + believed.mul_f64(RENEWAL)) }
    }

    fn is_believed(&self) -> bool {
        Instant::now() < self.until
    }

    /// Whether it is about an active token, which has not ended at the time `now`.
    fn is_active(&self, now: f64) -> bool {
        self.claims.as_ref().is_ok_and(|claims| !claims.have_ended(now))
    }

    fn is_due(&self) -> bool {
        Instant::now() >= *self.again()
    }

    fn postpone(&self) {
        *self.again() = Instant::now() + RETRY_AFTER;
    }

    fn again(&self) -> MutexGuard<'_, Instant> {
        self.again.lock().unwrap_or_else(PoisonError::into_inner)
    }
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

/// Questions without an answer yet: nobody asks the same twice.
#[derive(Debug)]
struct Waiting {
    questions: HashMap<Digest, Asked>,
    /// When the second began in which strangers are counted, and how many were asked about in it.
    second: Instant,
    strangers: u32,
}

#[derive(Debug)]
struct Asked {
    about_a_stranger: bool,
    outcome: watch::Receiver<Option<Outcome>>,
}

impl Waiting {
    fn has_room(&self) -> bool {
        self.questions.len() < MAX_QUESTIONS
    }

    /// Whether another stranger may be asked about; it counts from then on.
    fn admit_stranger(&mut self) -> bool {
        if self.second.elapsed() >= Duration::from_secs(1) {
            (self.second, self.strangers) = (Instant::now(), 0);
        }
        let strangers = || self.questions.values().filter(|asked| asked.about_a_stranger).count();
        let admitted =
            self.strangers < STRANGERS_PER_SECOND && self.has_room() && strangers() < MAX_STRANGERS;
        self.strangers += u32::from(admitted);
        admitted
    }
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
///
/// A token that it called active last time is asked about again before that answer ends, and places are kept for such questions:
/// texts that others make up, however many, do not get in their way. Questions about those are 100 a second at most and 32 at a
/// time; what is beyond is answered 503, as is then a new token that holds.
#[derive(Debug)]
pub(super) struct Introspection {
    pub(super) issuer: Arc<IssuerSettings>,
    settings: IntrospectionSettings,
    secret: Followed<SecretString>,
    answers: Memory<Answer>,
    waiting: Mutex<Waiting>,
    questions: mpsc::Sender<Question>,
    asked: tokio::sync::Mutex<mpsc::Receiver<Question>>,
    /// The last failure, which is told once.
    told: Mutex<String>,
}

impl Introspection {
    /// The endpoint of the `issuer` that its `settings` name.
    ///
    /// # Errors
    /// [`follow::Error`] if the file with its secret cannot be used.
    pub(super) fn open(
        issuer: &Arc<IssuerSettings>,
        settings: &IntrospectionSettings,
    ) -> Result<Self, follow::Error> {
        let parse = |texts: &[Vec<u8>]| match String::from_utf8(texts.concat()) {
            Ok(text) if !text.trim().is_empty() => {
                Ok(SecretString::from(text.trim_end_matches(['\r', '\n'])))
            }
            _ => Err("found no text, expected the secret of a client".to_owned()),
        };
        let file = settings.client_secret_file.clone();
        let (questions, asked) = mpsc::channel(MAX_QUESTIONS);
        let waiting = Waiting { questions: HashMap::new(), second: Instant::now(), strangers: 0 };
        Ok(Self {
            issuer: Arc::clone(issuer),
            settings: settings.clone(),
            secret: Followed::open("a secret for introspection", vec![file], parse)?,
            answers: Memory::default(),
            waiting: Mutex::new(waiting),
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
        if let Some(answer) = self.answers.get(&digest).filter(|answer| answer.is_believed()) {
            if answer.is_active(now) && answer.is_due() {
                // Nobody waits for what this comes to.
                let _ = self.question(digest, unverified_token, now);
            }
            return Ok(answer);
        }
        let unavailable = Error::Unavailable { retry_after: RETRY_AFTER };
        let mut outcome = self.question(digest, unverified_token, now).ok_or(unavailable)?;
        let outcome = timeout(PATIENCE, outcome.wait_for(Option::is_some)).await;
        outcome.ok().and_then(|outcome| outcome.ok()?.clone().flatten()).ok_or(unavailable)
    }

    /// What the question about a token comes to, which is asked unless it is already; `None` if it may not be asked now.
    fn question(
        &self,
        digest: Digest,
        unverified_token: &str,
        now: f64,
    ) -> Option<watch::Receiver<Option<Outcome>>> {
        let mut waiting = self.waiting();
        if let Some(asked) = waiting.questions.get(&digest) {
            return Some(asked.outcome.clone());
        }
        // The answer may have come since the caller looked.
        let last = self.answers.get(&digest);
        let active = last.as_ref().filter(|answer| answer.is_active(now));
        let is_wanted = match active {
            Some(active) => active.is_due(),
            None => !last.as_ref().is_some_and(|answer| answer.is_believed()),
        };
        if !is_wanted {
            let believed = last.filter(|answer| answer.is_believed())?;
            return Some(watch::channel(Some(Some(believed))).1);
        }
        let may_ask = if active.is_some() { waiting.has_room() } else { waiting.admit_stranger() };
        if !may_ask {
            return None;
        }
        if let Some(active) = active {
            active.postpone();
        }
        let (sender, outcome) = watch::channel(None);
        let question = Question { digest, unverified_token: unverified_token.into(), now, outcome: sender };
        self.questions.try_send(question).ok()?;
        let asked = Asked { about_a_stranger: active.is_none(), outcome: outcome.clone() };
        waiting.questions.insert(digest, asked);
        Some(outcome)
    }

    /// Asks what there is to ask for as long as the gateway runs.
    pub(super) async fn follow(self: &Arc<Self>, client: &fetch::Client) {
        let mut asked = self.asked.lock().await;
        let mut asking = JoinSet::new();
        let ask = async {
            loop {
                tokio::select! {
                    question = asked.recv() => {
                        // There is always one: the sender is here too.
                        let Some(question) = question else { return };
                        let (this, client) = (Arc::clone(self), client.clone());
                        asking.spawn(async move { this.settle(question, &client).await });
                    }
                    Some(_) = asking.join_next() => {}
                }
            }
        };
        tokio::join!(ask, self.secret.follow(|_| ()));
    }

    /// Finds the answer to one question and tells everybody who waits for it.
    async fn settle(&self, question: Question, client: &fetch::Client) {
        let _closing = Closing { waiting: &self.waiting, digest: question.digest };
        let outcome = match self.ask(&question, client).await {
            Ok(claims) => {
                self.told().clear();
                let answer = Arc::new(Answer::new(claims, self.settings.cache));
                self.answers.insert(question.digest, Arc::clone(&answer));
                Some(answer)
            }
            Err(failure) => {
                let error = format!("{:#}", anyhow::Error::from(failure));
                let mut told = self.told();
                if *told != error {
                    let issuer = &self.issuer.issuer;
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
        client: &fetch::Client,
    ) -> Result<Result<Claims, Reason>, Failure> {
        let secret = self.secret.get_full();
        let token = question.unverified_token.expose_secret();
        let form = [("token", token), ("token_type_hint", "access_token")];
        let credentials = (self.settings.client_id.as_str(), secret.expose_secret());
        let answer = client.ask(&self.settings.endpoint, self.issuer.allow_http, &form, credentials).await?;
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
        Ok(Claims::check(&answer, Voucher::Answer, &self.issuer, question.now))
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn told(&self) -> MutexGuard<'_, String> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a question from the open ones when it is settled, however that ends.
struct Closing<'i> {
    waiting: &'i Mutex<Waiting>,
    digest: Digest,
}

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).questions.remove(&self.digest);
    }
}
