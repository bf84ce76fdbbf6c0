//! [`Redis`]: what replicas share, behind a deadline that holds for everything and a circuit breaker.
//!
//! The only module that names the `redis` crate. No request waits longer than the deadline, and none waits for a connection
//! that was lost: while Redis is out of reach everything fails at once, and a task of its own tries until it is back.

mod address;
mod link;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use ::redis::{Cmd, ErrorKind, RedisError, RedisResult, ServerErrorKind, cmd};
use secrecy::SecretString;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout, timeout_at};

pub use self::address::{Address, Kind};
use self::link::{Link, Target};
use crate::config::RedisSettings;
use crate::telemetry::metrics::RedisCounts;

/// What a failure adds to the score of a connection; a success takes one off. Three in a row, and no success for as many
/// deadlines, and the connection is given up: many requests that are late at once are one failure, of a machine that is busy
/// perhaps. So it is after a hundred of them, if fewer than nine out of ten succeed in between.
const FAILURE: u32 = 10;
const DOUBTFUL: u32 = 3;
const GIVEN_UP: u32 = 100 * FAILURE;

/// How long an answer is waited for that is late already, by those whom nobody waits for.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often a connection is tried that nobody may be using, and whose loss nobody would notice otherwise.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// How long one attempt to connect may take: to ask sentinels and to follow one of them, too.
const ATTEMPT: Duration = Duration::from_secs(2);

/// The time between two attempts grows from the first to the last: Redis is back within five seconds.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// A connection that has lasted this long was a good one: the next attempt need not wait.
const LASTED: Duration = Duration::from_secs(10);

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Redis is out of reach; it was not asked.
    #[error("Redis is out of reach")]
    OutOfReach,
    /// There was no answer in time. Whether it was done is not known.
    #[error("Redis did not answer in time")]
    Late,
    /// Redis, or the way to it, failed.
    #[error("Redis failed")]
    Failed(#[source] RedisFailure),
    /// The answer is none that was expected: somebody else writes under our keys.
    #[error("Redis answered something unexpected")]
    Garbled,
}

/// What the `redis` crate says of a failure.
pub type RedisFailure = RedisError;

/// Why a gateway cannot use what it was told of Redis.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file cannot be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// No connection could ever be made.
    #[error("the settings of Redis cannot be used")]
    Settings(#[source] RedisFailure),
}

/// A script that Redis runs, and knows by its digest from the second time on.
#[derive(Debug)]
pub struct Script {
    text: &'static str,
    digest: String,
}

impl Script {
    /// The Lua script `text`.
    pub fn new(text: &'static str) -> Self {
        Self { text, digest: ::redis::Script::new(text).get_hash().to_owned() }
    }

    fn command(&self, is_known: bool, keys: &[String], arguments: &[String]) -> Cmd {
        let mut command = if is_known { cmd("EVALSHA") } else { cmd("EVAL") };
        command.arg(if is_known { self.digest.as_str() } else { self.text });
        command.arg(keys.len()).arg(keys).arg(arguments);
        command
    }
}

/// How Redis can be reached at the moment.
enum State {
    /// Nobody knows yet: whoever comes waits, as long as the deadline lets it.
    Unknown,
    /// Through this link, the number of which tells it from those before.
    Up(u64, Link),
    /// Not at all.
    Down,
}

/// Redis, which may be out of reach.
pub struct Redis {
    shared: Arc<Shared>,
    keeper: AbortHandle,
}

struct Shared {
    target: Target,
    timeout: Duration,
    state: watch::Sender<State>,
    /// Of the present link.
    score: AtomicU32,
    /// When it last succeeded, in milliseconds since `start`.
    succeeded: AtomicU64,
    start: Instant,
    /// Has the present link tried at once.
    doubt: Notify,
    counts: RedisCounts,
}

impl Redis {
    /// Redis as the settings have it. Nothing has to be there yet: it is looked for by a task on `runtime`. What becomes of
    /// requests is counted in `counts`.
    ///
    /// # Errors
    /// [`OpenError`] if no connection could be made in any case.
    pub fn open(settings: &RedisSettings, counts: RedisCounts, runtime: &Handle) -> Result<Self, OpenError> {
        let read = |path: &std::path::PathBuf| {
            std::fs::read(path).map_err(|source| OpenError::Read { path: path.clone(), source })
        };
        let mut address = settings.address.clone();
        if let Some(path) = &settings.password_file {
            let text = read(path)?;
            let text = String::from_utf8_lossy(&text);
            address.password = Some(SecretString::from(text.trim_end_matches(['\r', '\n'])));
        }
        let ca = settings.ca.as_ref().map(read).transpose()?;
        let target = Target::new(address, ca).map_err(OpenError::Settings)?;
        let shared = Arc::new(Shared {
            target,
            timeout: settings.timeout,
            state: watch::Sender::new(State::Unknown),
            score: AtomicU32::new(0),
            succeeded: AtomicU64::new(0),
            start: Instant::now(),
            doubt: Notify::new(),
            counts,
        });
        let keeper = runtime.spawn(keep(Arc::clone(&shared))).abort_handle();
        Ok(Self { shared, keeper })
    }

    /// Whether Redis is known to be out of reach.
    pub fn is_out_of_reach(&self) -> bool {
        matches!(*self.shared.state.borrow(), State::Down)
    }

    /// How long anything may take.
    pub fn timeout(&self) -> Duration {
        self.shared.timeout
    }

    /// Runs a script and returns the texts that it answers. The `keys` have to lie in one slot of a cluster. An answer that
    /// comes later than [`Redis::timeout`] is still worth having: no request may wait for this itself.
    ///
    /// # Errors
    /// [`Error`], after a second or so.
    pub async fn run(
        &self,
        script: &Script,
        keys: &[String],
        arguments: &[String],
    ) -> Result<Vec<String>, Error> {
        let command = script.command(true, keys, arguments);
        let question = async |mut link: Link| match link.query(&command).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                link.query(&script.command(false, keys, arguments)).await
            }
            answer => answer,
        };
        self.ask(question, PATIENCE).await
    }

    /// The values of `keys`, in their order.
    ///
    /// # Errors
    /// [`Error`], after [`Redis::timeout`] at the latest.
    pub async fn get_many(&self, keys: &[impl AsRef<[u8]>]) -> Result<Vec<Option<Vec<u8>>>, Error> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let mut command = cmd("MGET");
        for key in keys {
            command.arg(key.as_ref());
        }
        self.ask(async |mut link: Link| link.query(&command).await, Duration::ZERO).await
    }

    /// Stores values under their keys, for `ttl`.
    ///
    /// # Errors
    /// [`Error`], after [`Redis::timeout`] at the latest.
    pub async fn set_many(
        &self,
        entries: &[(impl AsRef<[u8]>, impl AsRef<[u8]>)],
        ttl: Duration,
    ) -> Result<(), Error> {
        if entries.is_empty() {
            return Ok(());
        }
        let ttl = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1);
        let commands = entries.iter().map(|(key, value)| {
            let mut command = cmd("SET");
            command.arg(key.as_ref()).arg(value.as_ref()).arg("PX").arg(ttl);
            command
        });
        let commands: Vec<Cmd> = commands.collect();
        self.ask(async |mut link: Link| link.perform(commands).await, Duration::ZERO).await
    }

    /// Asks, and waits for `patience` once the deadline is over.
    async fn ask<T>(
        &self,
        question: impl AsyncFnOnce(Link) -> RedisResult<T>,
        patience: Duration,
    ) -> Result<T, Error> {
        let deadline = Instant::now() + self.shared.timeout;
        let counts = &self.shared.counts;
        let link = self.shared.link(deadline).await;
        let (number, link) = link.inspect_err(|_| {
            counts.out_of_reach.inc();
        })?;
        let mut answer = std::pin::pin!(question(link));
        let in_time = timeout_at(deadline, &mut answer).await;
        match &in_time {
            Ok(Ok(_)) => counts.answered.inc(),
            Ok(Err(_)) => counts.failed.inc(),
            Err(_) => counts.late.inc(),
        };
        let is_late = in_time.is_err();
        let judged = self.shared.judge(number, in_time.ok());
        if is_late && !patience.is_zero() {
            return match timeout(patience, answer).await {
                Ok(answer) => answer.map_err(Error::Failed),
                Err(_) => Err(Error::Late),
            };
        }
        judged
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Redis").field("address", self.shared.target.address()).finish_non_exhaustive()
    }
}

impl Shared {
    async fn link(&self, deadline: Instant) -> Result<(u64, Link), Error> {
        let present = |state: &State| match state {
            State::Unknown => None,
            State::Up(number, link) => Some(Ok((*number, link.clone()))),
            State::Down => Some(Err(Error::OutOfReach)),
        };
        if let Some(found) = present(&self.state.borrow()) {
            return found;
        }
        let mut state = self.state.subscribe();
        let known = timeout_at(deadline, state.wait_for(|state| !matches!(state, State::Unknown))).await;
        if let Ok(Ok(state)) = known {
            return present(&state).unwrap_or(Err(Error::OutOfReach));
        }
        // One deadline is enough: whoever comes next does not wait.
        self.state.send_if_modified(|state| {
            let is_unknown = matches!(state, State::Unknown);
            if is_unknown {
                *state = State::Down;
            }
            is_unknown
        });
        Err(Error::OutOfReach)
    }

    /// Passes an answer of the link `number` on, none if there was none in time, and gives the link up if it is no good.
    fn judge<T>(&self, number: u64, answer: Option<RedisResult<T>>) -> Result<T, Error> {
        let (error, is_lost) = match answer {
            Some(Ok(answer)) => {
                self.succeeded.store(self.milliseconds(), Ordering::Relaxed);
                if self.score.load(Ordering::Relaxed) > 0 {
                    let less = |score: u32| score.checked_sub(1);
                    let _ = self.score.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
                }
                return Ok(answer);
            }
            Some(Err(error)) => {
                let is_lost = is_lost(&error);
                (Error::Failed(error), is_lost)
            }
            None => (Error::Late, false),
        };
        let score = self.score.fetch_add(FAILURE, Ordering::Relaxed) + FAILURE;
        let silent = self.milliseconds().saturating_sub(self.succeeded.load(Ordering::Relaxed));
        let is_silent = u128::from(silent) >= self.timeout.as_millis() * u128::from(DOUBTFUL);
        if is_lost || (score >= DOUBTFUL * FAILURE && is_silent) || score >= GIVEN_UP {
            self.give_up(number, &error);
        } else {
            self.doubt.notify_one();
        }
        Err(error)
    }

    fn milliseconds(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn give_up(&self, number: u64, error: &Error) {
        let is_given_up = self.state.send_if_modified(|state| match state {
            // A link that was replaced meanwhile is nobody's business any more.
            State::Up(present, _) if *present == number => {
                *state = State::Down;
                true
            }
            _ => false,
        });
        if is_given_up {
            tracing::warn!(
                redis = %self.target.address(),
                error = %chain(error),
                "Redis is lost: quotas are counted here, and nothing is shared, until it is back"
            );
        }
    }
}

/// Whether an error is about the connection or the whole server, and not about one command.
fn is_lost(error: &RedisError) -> bool {
    match error.kind() {
        ErrorKind::Server(
            ServerErrorKind::ResponseError
            | ServerErrorKind::CrossSlot
            // Of a cluster that is being rearranged: other keys are where they were.
            | ServerErrorKind::Moved
            | ServerErrorKind::Ask
            | ServerErrorKind::TryAgain,
        ) => false,
        ErrorKind::Server(_) => true,
        // Codes that the crate does not know, such as `OOM` and `MISCONF`.
        ErrorKind::Extension => error.code() != Some("WRONGTYPE"),
        _ => error.is_unrecoverable_error() || error.is_io_error(),
    }
}

/// An error with all its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Connects, and again whenever the connection is lost.
async fn keep(shared: Arc<Shared>) {
    let (mut pause, mut told) = (PAUSES.0, String::new());
    for number in 0.. {
        let connecting = async {
            let mut link = shared.target.connect().await?;
            // A server that answers late would be given up at once.
            let answer = timeout(shared.timeout, link.probe()).await;
            match answer {
                Ok(answer) => answer.map(|()| link),
                Err(_) => Err((ErrorKind::Io, "it answers later than SCOREGATE_REDIS_TIMEOUT allows").into()),
            }
        };
        let connected = timeout(ATTEMPT, connecting).await;
        let connected =
            connected.unwrap_or_else(|_| Err((ErrorKind::Io, "it cannot be connected to in time").into()));
        match connected {
            Ok(link) => {
                tracing::info!(redis = %shared.target.address(), "Redis is there");
                told.clear();
                let since = Instant::now();
                stay(&shared, number, link).await;
                if since.elapsed() >= LASTED {
                    pause = PAUSES.0;
                    continue;
                }
            }
            Err(error) => {
                // Told once, tried again every time.
                let error = chain(&error);
                if error != told {
                    tracing::warn!(redis = %shared.target.address(), error, "Redis is out of reach; tried again until it is there");
                    told = error;
                }
                shared.state.send_replace(State::Down);
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// Offers `link` until it is lost.
async fn stay(shared: &Shared, number: u64, mut link: Link) {
    shared.score.store(0, Ordering::Relaxed);
    shared.succeeded.store(shared.milliseconds(), Ordering::Relaxed);
    shared.state.send_replace(State::Up(number, link.clone()));
    let mut state = shared.state.subscribe();
    loop {
        tokio::select! {
            _ = state.wait_for(|state| matches!(state, State::Down)) => return,
            // Requests need not be those that find out: of a server that hangs, the fewest wait for the deadline.
            () = shared.doubt.notified() => {}
            () = tokio::time::sleep(HEARTBEAT) => {}
        }
        let answer = timeout(shared.timeout, link.probe()).await;
        let _ = shared.judge(number, answer.ok());
    }
}
