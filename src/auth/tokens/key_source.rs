//! Where one issuer's keys come from, and how they are kept up to date: [`Keys`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jsonwebtoken::Algorithm;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};
use url::Url;

use super::json::Object;
use super::jwk::{self, Held, Key, KeySet};
use super::reason::Reason;
use crate::auth::{Error, fetch};
use crate::config::{IssuerSettings, KeyLocation, is_safe};
use crate::follow::{self, Followed};

/// How long a request waits for keys that are being fetched.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long after a failure it is tried again: at first, and at last.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(30);
/// By which share the time between two fetches varies, so that replicas do not all come at once.
const JITTER: f64 = 0.1;

/// Why keys were not fetched.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Fetch(#[from] fetch::Error),
    #[error("what is at {url} is no usable key set")]
    Keys { url: Url, source: jwk::Error },
    #[error("the issuer is no URL, so that it cannot be asked where its keys are: set jwks")]
    NoUrl,
    #[error("what is at {url} is no metadata: {message}")]
    Metadata { url: Url, message: &'static str },
}

/// Where keys come from.
#[derive(Debug)]
enum Source {
    Nowhere,
    File(Followed<KeySet>),
    /// The issuer that is built in.
    Memory(watch::Receiver<Arc<KeySet>>),
    /// At this URL, or where the issuer's metadata says.
    Remote(Option<Url>),
}

/// What is known of the fetches of keys. Everybody who waits for one watches it.
#[derive(Debug, Clone, Copy)]
struct Progress {
    /// Whether one is in flight, or asked for.
    running: bool,
    /// How many have ended.
    ended: u64,
    /// When a token was last a reason for one.
    demanded: Option<Instant>,
    /// When the next one begins by itself.
    next: Instant,
}

/// One issuer's keys.
#[derive(Debug)]
pub(super) struct Keys {
    issuer: String,
    allow_http: bool,
    cooldown: Duration,
    refresh: Duration,
    source: Source,
    held: Held,
    progress: watch::Sender<Progress>,
    fetched: AtomicU64,
    failed: AtomicU64,
}

impl Keys {
    /// The keys of the issuer that the settings name.
    ///
    /// # Errors
    /// [`follow::Error`] if they are in a file that cannot be used.
    pub(super) fn open(settings: &IssuerSettings) -> Result<Self, follow::Error> {
        let source = match &settings.keys {
            KeyLocation::Nowhere => Source::Nowhere,
            KeyLocation::Discovered => Source::Remote(None),
            KeyLocation::Url(url) => Source::Remote(Some(url.clone())),
            KeyLocation::File(path) => {
                let parse =
                    |texts: &[Vec<u8>]| KeySet::parse(&texts.concat()).map_err(|error| error.to_string());
                Source::File(Followed::open("an issuer's keys", vec![path.clone()], parse)?)
            }
        };
        Ok(Self::new(settings, source))
    }

    /// The keys of the issuer that is built in.
    pub(super) fn own(settings: &IssuerSettings, keys: watch::Receiver<Arc<KeySet>>) -> Self {
        Self::new(settings, Source::Memory(keys))
    }

    fn new(settings: &IssuerSettings, source: Source) -> Self {
        // The first fetch begins as soon as the gateway runs; whoever comes before it waits.
        let progress = Progress { running: true, ended: 0, demanded: None, next: Instant::now() };
        let held = Held::default();
        match &source {
            Source::File(file) => _ = held.replace(&file.get()),
            Source::Memory(keys) => _ = held.replace(&keys.borrow()),
            Source::Nowhere | Source::Remote(_) => {}
        }
        Self {
            issuer: settings.issuer.clone(),
            allow_http: settings.allow_http,
            cooldown: settings.cooldown,
            refresh: settings.refresh,
            source,
            held,
            progress: watch::Sender::new(progress),
            fetched: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        }
    }

    /// Whether there is a place for keys to come from.
    pub(super) fn are_somewhere(&self) -> bool {
        !matches!(self.source, Source::Nowhere)
    }

    /// Whether keys are fetched over the network.
    pub(super) fn are_remote(&self) -> bool {
        matches!(self.source, Source::Remote(_))
    }

    /// Waits until they were fetched once, well or badly, if that is where they come from.
    pub(super) async fn tried(&self) {
        if self.are_remote() {
            // The sender lives in `self`, so that waiting cannot fail.
            let _ = self.progress.subscribe().wait_for(|progress| progress.ended > 0).await;
        }
    }

    /// How many fetches went well, and how many did not.
    pub(super) fn fetches(&self) -> (u64, u64) {
        (self.fetched.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed))
    }

    /// The issuer's key that signed `message`. A key that is not known is looked for anew, as seldom as the cool-down says; so is
    /// one for a token that names none and was signed by none. A bad signature under a name that is known is only that.
    ///
    /// # Errors
    /// [`Error::InvalidToken`], or [`Error::Unavailable`] if there has never been a key.
    pub(super) async fn verify(
        &self,
        algorithm: Algorithm,
        kid: Option<&str>,
        message: &[u8],
        signature: &str,
    ) -> Result<Arc<Key>, Error> {
        let verify = |set: Arc<KeySet>| set.verify(algorithm, kid, message, signature).cloned();
        match self.held.get().map(verify) {
            None => _ = self.look_again().await,
            Some(Err(reason))
                if reason == Reason::UnknownKey || kid.is_none() && reason == Reason::Signature =>
            {
                if !self.look_again().await {
                    return Err(Error::InvalidToken(reason));
                }
            }
            Some(known) => return known.map_err(Error::InvalidToken),
        }
        match self.held.get() {
            Some(set) => verify(set).map_err(Error::InvalidToken),
            None => Err(Error::Unavailable { retry_after: self.until_next() }),
        }
    }

    /// Waits for keys that may be newer than those held. Says whether there may be any.
    async fn look_again(&self) -> bool {
        match &self.source {
            Source::Nowhere | Source::File(_) => false,
            Source::Memory(keys) => self.held.replace(&keys.borrow()),
            Source::Remote(_) => {
                let mut progress = self.progress.subscribe();
                let ended = progress.borrow_and_update().ended;
                let is_running = self.demand();
                if is_running {
                    // Too late is as good as never: the request is judged by the keys that there are.
                    let _ = timeout(PATIENCE, progress.wait_for(|progress| progress.ended > ended)).await;
                }
                is_running
            }
        }
    }

    /// Asks for a fetch, unless one is in flight or the last one asked for was not long ago. Says whether there is one to wait
    /// for.
    fn demand(&self) -> bool {
        let mut is_running = false;
        self.progress.send_if_modified(|progress| {
            let has_cooled = progress.demanded.is_none_or(|demanded| demanded.elapsed() >= self.cooldown);
            // Without any key the next fetch is never far, and known to everybody; nobody's token brings it forward.
            let is_new = !progress.running && has_cooled && self.held.get().is_some();
            if is_new {
                progress.demanded = Some(Instant::now());
                progress.running = true;
            }
            is_running = progress.running;
            is_new
        });
        is_running
    }

    /// When it is worth asking again.
    fn until_next(&self) -> Duration {
        let next = self.progress.borrow().next;
        next.saturating_duration_since(Instant::now()).max(FIRST_RETRY)
    }

    /// Keeps the keys up to date for as long as the gateway runs.
    pub(super) async fn follow(&self, client: Option<&fetch::Client>) {
        match (&self.source, client) {
            (Source::File(file), _) => {
                let replace = |set: &Arc<KeySet>| {
                    self.held.replace(set);
                };
                file.follow(replace).await;
            }
            (Source::Memory(keys), _) => {
                let mut keys = keys.clone();
                // It ends with the issuer, whose last keys stay.
                while keys.changed().await.is_ok() {
                    self.held.replace(&keys.borrow_and_update());
                }
            }
            (Source::Remote(url), Some(client)) => self.follow_remote(url.as_ref(), client).await,
            (Source::Nowhere, _) | (Source::Remote(_), None) => {}
        }
    }

    async fn follow_remote(&self, url: Option<&Url>, client: &fetch::Client) {
        let mut demands = self.progress.subscribe();
        let mut discovered: Option<Url> = None;
        let mut retry = FIRST_RETRY;
        let mut told = String::new();
        loop {
            self.progress.send_modify(|progress| progress.running = true);
            let pause = match self.fetch(url, &mut discovered, client).await {
                Ok(set) => {
                    self.fetched.fetch_add(1, Ordering::Relaxed);
                    let issuer = &self.issuer;
                    let has_changed = self.held.replace(&set);
                    if has_changed && set.is_empty() {
                        tracing::warn!(
                            issuer,
                            "an issuer has withdrawn all its keys: none of its tokens holds"
                        );
                    } else if has_changed || !told.is_empty() {
                        tracing::info!(issuer, keys = set.len(), "an issuer's keys were fetched");
                    }
                    told.clear();
                    retry = FIRST_RETRY;
                    self.refresh.mul_f64(1.0 + JITTER * (2.0 * rand::random::<f64>() - 1.0))
                }
                Err(failure) => {
                    self.failed.fetch_add(1, Ordering::Relaxed);
                    // Told once, tried again every time. The metadata may name another place by now.
                    discovered = None;
                    let error = format!("{:#}", anyhow::Error::from(failure));
                    if error != told {
                        let issuer = &self.issuer;
                        tracing::error!(
                            issuer,
                            error,
                            "an issuer's keys stay as they are: they cannot be fetched"
                        );
                        told = error;
                    }
                    let pause = retry;
                    retry = (retry * 2).min(LAST_RETRY);
                    pause
                }
            };
            let next = Instant::now() + pause;
            self.progress.send_modify(|progress| {
                *progress = Progress { running: false, ended: progress.ended + 1, next, ..*progress };
            });
            let _ = timeout_at(next, demands.wait_for(|progress| progress.running)).await;
        }
    }

    async fn fetch(
        &self,
        url: Option<&Url>,
        discovered: &mut Option<Url>,
        client: &fetch::Client,
    ) -> Result<KeySet, Failure> {
        let url = match url.or(discovered.as_ref()) {
            Some(url) => url.clone(),
            None => discovered.insert(self.discover(client).await?).clone(),
        };
        let document = client.get(&url, self.allow_http).await?;
        KeySet::parse(&document).map_err(|source| Failure::Keys { url, source })
    }

    /// Where the issuer's metadata says that its keys are: as RFC 8414 has it, else as OpenID Connect does.
    async fn discover(&self, client: &fetch::Client) -> Result<Url, Failure> {
        let issuer = Url::parse(&self.issuer).map_err(|_| Failure::NoUrl)?;
        let [first, second] = metadata_urls(&issuer);
        match self.metadata(&first, client).await {
            // Where nobody answers, the other document is not either.
            Err(failure) if matches!(&failure, Failure::Fetch(error) if !error.is_answer()) => Err(failure),
            Err(_) => self.metadata(&second, client).await,
            found => found,
        }
    }

    async fn metadata(&self, url: &Url, client: &fetch::Client) -> Result<Url, Failure> {
        let wrong = |message| Failure::Metadata { url: url.clone(), message };
        let document = client.get(url, self.allow_http).await?;
        let document = Object::parse(&document).ok_or_else(|| wrong("expected a JSON object"))?;
        let text = |name| document.get(name).and_then(|value| value.text());
        if text("issuer") != Some(&self.issuer) {
            return Err(wrong("expected the issuer to be, letter for letter, the one of the settings"));
        }
        let keys = text("jwks_uri").and_then(|text| Url::parse(text).ok());
        keys.filter(|keys| self.allow_http || is_safe(keys))
            .ok_or_else(|| wrong("expected an https URL \"jwks_uri\""))
    }
}

/// Where an issuer's metadata may be: first as RFC 8414 (3.1) has it, then as OpenID Connect Discovery (4).
fn metadata_urls(issuer: &Url) -> [Url; 2] {
    const OAUTH: &str = "/.well-known/oauth-authorization-server";
    const OPENID: &str = "/.well-known/openid-configuration";
    let path = issuer.path().trim_end_matches('/');
    let at = |path: &str| {
        let mut url = issuer.clone();
        url.set_path(path);
        url.set_query(None);
        url.set_fragment(None);
        url
    };
    [at(&format!("{OAUTH}{path}")), at(&format!("{path}{OPENID}"))]
}
