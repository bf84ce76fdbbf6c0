//! [`Redis`]: what replicas share, behind a deadline that holds for everything and a circuit breaker.
//!
//! The only module that names the `redis` crate. No request waits longer than the deadline, and none waits for a connection
//! that was lost: while Redis is out of reach everything fails at once, and a task of its own tries until it is back.
//!
//! All of it happens on one thread with a runtime of its own: names are resolved on a runtime's blocking threads, and those of
//! the others may all be busy scoring. That thread decides what is late, too, so that a worker which is held up does not take
//! its own delay for one of Redis.

mod address;
mod link;
mod notices;

use std::convert::Infallible;
use std::fmt;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use ::redis::{Cmd, ErrorKind, FromRedisValue, RedisError, RedisResult, ServerErrorKind, cmd};
use secrecy::SecretString;
use tokio::runtime::{Builder, Handle};
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

pub use self::address::{Address, Kind};
use self::link::{Link, Target};
pub use self::notices::{Notices, publish_once};
use crate::config::RedisSettings;
use crate::telemetry::metrics::RedisCounts;

/// What a late answer adds to the score of a connection; one in time takes one off. After a hundred late ones it is given up, if
/// fewer than nine out of ten come in time in between.
const LATE: u32 = 10;
const GIVEN_UP: u32 = 100 * LATE;

/// A connection is given up when nothing has come in time for so many deadlines, and for this long at least: a machine that is
/// busy for a moment has not lost Redis. Meanwhile nobody waits who need not, see [`Redis::is_silent`].
const SILENCE: (u32, Duration) = (3, Duration::from_millis(250));

/// How long an answer is waited for that is late already, by those whom nobody waits for.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often a connection is tried that nobody may be using, and whose loss nobody would notice otherwise.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// What a connection has to be good for: scripts that read the clock and write. All keys begin alike.
const PROBE: &str = "redis.call('TIME') return redis.call('SET', KEYS[1], 1, 'PX', 1000)";
const PROBED: &str = "scoregate:probe";

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
    /// The password is none that can be sent.
    #[error("{}: found bytes that are no UTF-8, expected the password of Redis", .path.display())]
    Password {
        /// The file.
        path: std::path::PathBuf,
    },
    /// No connection could ever be made.
    #[error("the settings of Redis cannot be used")]
    Settings(#[source] RedisFailure),
    /// It is there, and does not take what it is told.
    #[error("Redis refuses it")]
    Refused(#[source] RedisFailure),
    /// The system has no more threads.
    #[error("cannot start a thread for Redis")]
    Thread(#[source] std::io::Error),
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

    async fn run<T: FromRedisValue>(
        &self,
        link: &mut Link,
        keys: &[String],
        arguments: &[String],
    ) -> RedisResult<T> {
        match link.query(&self.command(true, keys, arguments)).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                link.query(&self.command(false, keys, arguments)).await
            }
            answer => answer,
        }
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
    /// Through this connection.
    Up(Arc<Up>),
    /// Not at all.
    Down,
}

/// A connection and what it is worth.
struct Up {
    link: Link,
    score: AtomicU32,
    /// Since when nothing has come in time, in milliseconds since the beginning; zero if the last answer did.
    silent_since: AtomicU64,
}

/// Redis, which may be out of reach.
pub struct Redis {
    shared: Arc<Shared>,
    /// Of the thread that does everything.
    runtime: Handle,
    /// That thread ends when this is dropped.
    _open: oneshot::Sender<Infallible>,
}

struct Shared {
    target: Target,
    timeout: Duration,
    probe: Script,
    state: watch::Sender<State>,
    /// What times are counted from.
    start: Instant,
    /// Has the present link tried at once.
    doubt: Notify,
    counts: RedisCounts,
}

impl Redis {
    /// Redis as the settings have it. Nothing has to be there yet: it is looked for until this is dropped. What becomes of
    /// requests is counted in `counts`.
    ///
    /// # Errors
    /// [`OpenError`] if no connection could be made in any case.
    pub fn open(settings: &RedisSettings, counts: RedisCounts) -> Result<Self, OpenError> {
        let target = target_of(settings)?;
        let shared = Arc::new(Shared {
            target,
            timeout: settings.timeout,
            probe: Script::new(PROBE),
            state: watch::Sender::new(State::Unknown),
            start: Instant::now(),
            doubt: Notify::new(),
            counts,
        });
        let mut runtime = Builder::new_current_thread();
        let runtime =
            runtime.thread_name("scoregate-redis-names").max_blocking_threads(2).enable_all().build();
        let runtime = runtime.map_err(OpenError::Thread)?;
        let (handle, keeper) = (runtime.handle().clone(), keep(Arc::clone(&shared)));
        let (open, dropped) = oneshot::channel::<Infallible>();
        let work = move || {
            runtime.block_on(async {
                tokio::select! {
                    () = keeper => {}
                    _ = dropped => {}
                }
            });
            // A name that is being resolved is not waited for.
            runtime.shutdown_background();
        };
        std::thread::Builder::new().name("scoregate-redis".into()).spawn(work).map_err(OpenError::Thread)?;
        Ok(Self { shared, runtime: handle, _open: open })
    }

    /// Waits until it is known whether Redis is there.
    pub async fn tried(&self) {
        let mut state = self.shared.state.subscribe();
        let _ = state.wait_for(|state| !matches!(state, State::Unknown)).await;
    }

    /// Whether Redis is known to be out of reach.
    pub fn is_out_of_reach(&self) -> bool {
        matches!(*self.shared.state.borrow(), State::Down)
    }

    /// In a word, whether it is in reach.
    pub fn state(&self) -> &'static str {
        match &*self.shared.state.borrow() {
            State::Unknown => "unknown",
            State::Up(up) if up.silent_since.load(Ordering::Relaxed) > 0 => "silent",
            State::Up(_) => "reachable",
            State::Down => "out_of_reach",
        }
    }

    /// Whether an answer is late and none has come since: who can do without one had better not ask.
    pub fn is_silent(&self) -> bool {
        let state = self.shared.state.borrow();
        matches!(&*state, State::Up(up) if up.silent_since.load(Ordering::Relaxed) > 0)
    }

    /// What becomes of requests.
    pub fn counts(&self) -> &RedisCounts {
        &self.shared.counts
    }

    /// How long anything may take.
    pub fn timeout(&self) -> Duration {
        self.shared.timeout
    }

    /// How long Redis may be silent until it is out of reach.
    pub fn patience(&self) -> Duration {
        self.shared.patience()
    }

    /// Sends notices by `channel` to all replicas, and has `hear` called for those that come, until this is dropped.
    pub fn notices(&self, channel: &'static str, hear: impl Fn() + Send + Sync + 'static) -> Notices {
        let (notices, keeper) = Notices::start(self.shared.target.clone(), channel, hear);
        self.runtime.spawn(keeper);
        notices
    }

    /// Has `work` done by Redis's own thread, whether it is waited for or not.
    pub fn spawn<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        self.runtime.spawn(work)
    }

    /// Runs a script and returns the texts that it answers. The `keys` have to lie in one slot of a cluster. An answer that
    /// comes later than [`Redis::timeout`] is still worth having: this is for [`Redis::spawn`], and no request may wait for it.
    ///
    /// # Errors
    /// [`Error`], after a second or so.
    pub async fn run(
        &self,
        script: &Script,
        keys: &[String],
        arguments: &[String],
    ) -> Result<Vec<String>, Error> {
        let question = async |mut link: Link| script.run(&mut link, keys, arguments).await;
        self.shared.ask(question, PATIENCE).await
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
        let shared = Arc::clone(&self.shared);
        let question = async move |mut link: Link| link.query(&command).await;
        self.in_time(async move { shared.ask(question, Duration::ZERO).await }).await
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
        let shared = Arc::clone(&self.shared);
        let question = async move |mut link: Link| link.perform(commands).await;
        self.in_time(async move { shared.ask(question, Duration::ZERO).await }).await
    }

    /// Has `work` done that can be done without, and waits for it until the deadline.
    async fn in_time<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        if self.is_silent() || self.is_out_of_reach() {
            self.shared.counts.out_of_reach.inc();
            return Err(Error::OutOfReach);
        }
        match timeout(self.shared.timeout, self.spawn(work)).await {
            Ok(Ok(done)) => done,
            Ok(Err(_)) | Err(_) => Err(Error::Late),
        }
    }
}

/// What connections are made of, by the settings.
fn target_of(settings: &RedisSettings) -> Result<Target, OpenError> {
    let read = |path: &std::path::PathBuf| {
        std::fs::read(path).map_err(|source| OpenError::Read { path: path.clone(), source })
    };
    let mut address = settings.address.clone();
    if let Some(path) = &settings.password_file {
        let text = String::from_utf8(read(path)?);
        let text = text.map_err(|_| OpenError::Password { path: path.clone() })?;
        address.password = Some(SecretString::from(text.trim_end_matches(['\r', '\n'])));
    }
    let ca = settings.ca.as_ref().map(read).transpose()?;
    let identity = settings.identity.as_ref();
    let identity = identity.map(|(certificate, key)| Ok((read(certificate)?, read(key)?))).transpose()?;
    Target::new(address, ca, identity).map_err(OpenError::Settings)
}

impl fmt::Debug for Redis {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Redis").field("address", self.shared.target.address()).finish_non_exhaustive()
    }
}

impl Shared {
    /// Asks, and waits for `patience` once the deadline is over.
    async fn ask<T>(
        &self,
        question: impl AsyncFnOnce(Link) -> RedisResult<T>,
        patience: Duration,
    ) -> Result<T, Error> {
        let (asked, deadline) = (self.milliseconds(), Instant::now() + self.timeout);
        let link = self.link(deadline).await;
        let up = link.inspect_err(|_| {
            self.counts.out_of_reach.inc();
        })?;
        let mut answer = pin!(question(up.link.clone()));
        let in_time = in_time(deadline, answer.as_mut()).await;
        match &in_time {
            Some(Ok(_)) => self.counts.answered.inc(),
            Some(Err(_)) => self.counts.failed.inc(),
            None => self.counts.late.inc(),
        };
        let is_late = in_time.is_none();
        let judged = self.judge(&up, asked, in_time);
        if is_late && !patience.is_zero() {
            return match timeout(patience, answer).await {
                Ok(answer) => answer.map_err(Error::Failed),
                Err(_) => Err(Error::Late),
            };
        }
        judged
    }

    async fn link(&self, deadline: Instant) -> Result<Arc<Up>, Error> {
        let present = |state: &State| match state {
            State::Unknown => None,
            State::Up(up) => Some(Ok(Arc::clone(up))),
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

    /// Passes on what came through `up` of what was `asked` at a time, if anything did in time, and gives `up` up if it is no
    /// good.
    fn judge<T>(&self, up: &Arc<Up>, asked: u64, answer: Option<RedisResult<T>>) -> Result<T, Error> {
        let (error, is_lost) = match answer {
            Some(Ok(answer)) => {
                up.silent_since.store(0, Ordering::Relaxed);
                if up.score.load(Ordering::Relaxed) > 0 {
                    let less = |score: u32| score.checked_sub(1);
                    let _ = up.score.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
                }
                return Ok(answer);
            }
            Some(Err(error)) => {
                let is_lost = is_lost(&error);
                if !is_lost {
                    // It is an answer all the same.
                    up.silent_since.store(0, Ordering::Relaxed);
                }
                (Error::Failed(error), is_lost)
            }
            None => {
                let first =
                    up.silent_since.compare_exchange(0, asked.max(1), Ordering::Relaxed, Ordering::Relaxed);
                let silent = self.milliseconds().saturating_sub(first.err().unwrap_or(asked));
                let score = up.score.fetch_add(LATE, Ordering::Relaxed) + LATE;
                let is_lost = score >= GIVEN_UP || u128::from(silent) >= self.patience().as_millis();
                (Error::Late, is_lost)
            }
        };
        if is_lost {
            self.give_up(up, &error);
        } else {
            self.doubt.notify_one();
        }
        Err(error)
    }

    fn patience(&self) -> Duration {
        let (deadlines, least) = SILENCE;
        (self.timeout * deadlines).max(least)
    }

    fn milliseconds(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn give_up(&self, up: &Arc<Up>, error: &Error) {
        let is_given_up = self.state.send_if_modified(|state| match state {
            // A connection that was replaced meanwhile is nobody's business any more.
            State::Up(present) if Arc::ptr_eq(present, up) => {
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

/// Makes sure that Redis answers and does what will be asked of it; of a cluster, that every master answers.
async fn probe(link: &mut Link, script: &Script) -> RedisResult<()> {
    link.ping().await?;
    script.run(link, &[PROBED.into()], &[]).await
}

/// What `answer` is at the deadline, if anything. A thread that was held up finds both at once: what has come by then is in time.
async fn in_time<F: Future>(deadline: Instant, mut answer: Pin<&mut F>) -> Option<F::Output> {
    if let Ok(answer) = timeout_at(deadline, answer.as_mut()).await {
        return Some(answer);
    }
    // Those that read from the connection and sort answers have their turn first.
    for _ in 0..3 {
        tokio::task::yield_now().await;
    }
    timeout(Duration::ZERO, answer).await.ok()
}

/// Connects, and again whenever the connection is lost.
async fn keep(shared: Arc<Shared>) {
    let (mut pause, mut told) = (PAUSES.0, String::new());
    loop {
        let connecting = async {
            let mut link = shared.target.connect().await?;
            // A server that answers late would be given up at once.
            let answer =
                in_time(Instant::now() + shared.timeout, pin!(probe(&mut link, &shared.probe))).await;
            match answer {
                Some(answer) => answer.map(|()| link),
                None => Err((ErrorKind::Io, "it answers later than SCOREGATE_REDIS_TIMEOUT allows").into()),
            }
        };
        let connected = timeout(ATTEMPT + shared.timeout, connecting).await;
        let connected =
            connected.unwrap_or_else(|_| Err((ErrorKind::Io, "it cannot be connected to in time").into()));
        match connected {
            Ok(link) => {
                tracing::info!(redis = %shared.target.address(), "Redis is there");
                told.clear();
                let since = Instant::now();
                stay(&shared, link).await;
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
async fn stay(shared: &Shared, link: Link) {
    let (mut own, score, silent_since) = (link.clone(), AtomicU32::new(0), AtomicU64::new(0));
    let up = Arc::new(Up { link, score, silent_since });
    shared.state.send_replace(State::Up(Arc::clone(&up)));
    let mut state = shared.state.subscribe();
    loop {
        tokio::select! {
            _ = state.wait_for(|state| matches!(state, State::Down)) => return,
            // Requests need not be those that find out: of a server that hangs, the fewest wait for the deadline.
            () = shared.doubt.notified() => {}
            () = tokio::time::sleep(HEARTBEAT) => {}
        }
        let asked = shared.milliseconds();
        let answer = in_time(Instant::now() + shared.timeout, pin!(probe(&mut own, &shared.probe))).await;
        let _ = shared.judge(&up, asked, answer);
    }
}
