//! [`Notices`]: a word to all replicas that something has changed, by publish and subscribe.
//!
//! A notice may be lost, and whoever waits for one has to look from time to time all the same. It goes over a connection of its own,
//! so that nothing that happens to it is held against the one that requests use.

use std::time::Duration;

use ::redis::{ErrorKind, PushInfo, PushKind, RedisError, RedisResult, cmd};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::timeout;

use super::link::Target;
use super::{OpenError, PAUSES, chain, target_of};
use crate::config::RedisSettings;

/// How long connecting, or an answer, may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often a connection is tried on which nothing comes.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// Sends notices, and hears those of other replicas, until Redis is closed.
#[derive(Debug, Clone)]
pub struct Notices {
    ask: UnboundedSender<()>,
}

impl Notices {
    pub(super) fn start(
        target: Target,
        channel: &'static str,
        hear: impl Fn() + Send + Sync + 'static,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (ask, asked) = unbounded_channel();
        (Self { ask }, keep(target, channel, hear, asked))
    }

    /// Tells all replicas, this one too. Nobody waits for it.
    pub fn send(&self) {
        // Redis may be closed, as the gateway is about to be.
        let _ = self.ask.send(());
    }
}

/// Tells all replicas once, and waits for it for `patience` at most.
///
/// # Errors
/// [`OpenError`] if the settings cannot be used, or Redis refuses it; that Redis is not there is none.
pub fn publish_once(
    settings: &RedisSettings,
    channel: &'static str,
    patience: Duration,
) -> Result<(), OpenError> {
    let target = target_of(settings)?;
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().map_err(OpenError::Thread)?;
    let publish = async {
        let (pushes, _pushed) = unbounded_channel();
        let mut connection = target.connect_to_any(pushes).await?;
        let mut command = cmd("PUBLISH");
        command.arg(channel).arg(1).query_async::<()>(&mut connection).await
    };
    // The timer is the runtime's.
    let told = runtime.block_on(async { timeout(patience, publish).await });
    // A name that is being resolved is not waited for.
    runtime.shutdown_background();
    match told {
        Ok(Err(error)) if !error.is_io_error() => Err(OpenError::Refused(error)),
        _ => Ok(()),
    }
}

/// Connects, and again whenever the connection is lost.
async fn keep(
    target: Target,
    channel: &'static str,
    hear: impl Fn() + Send + Sync,
    mut asked: UnboundedReceiver<()>,
) {
    let (mut pause, mut told) = (PAUSES.0, String::new());
    loop {
        let mut is_up = false;
        let Err(error) = stay(&target, channel, &hear, &mut asked, &mut is_up).await else { return };
        if is_up {
            pause = PAUSES.0;
            told.clear();
        }
        // That Redis is not there is told by the connection that requests use; that it refuses this one, by nobody else.
        let error_text = chain(&error);
        if !error.is_io_error() && error_text != told {
            tracing::warn!(
                redis = %target.address(),
                error = error_text,
                "Redis passes on no notices: changes of models reach replicas when they look for them"
            );
            told = error_text;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// Hears and sends notices until the connection is lost; nothing if nobody will send any more.
async fn stay(
    target: &Target,
    channel: &'static str,
    hear: &(impl Fn() + Send + Sync),
    asked: &mut UnboundedReceiver<()>,
    is_up: &mut bool,
) -> RedisResult<()> {
    let (pushes, mut pushed) = unbounded_channel::<PushInfo>();
    let connecting = async {
        let mut connection = target.connect_to_any(pushes).await?;
        connection.subscribe(channel).await?;
        Ok::<_, RedisError>(connection)
    };
    let late = || RedisError::from((ErrorKind::Io, "it answers too late"));
    let mut connection = timeout(PATIENCE, connecting).await.map_err(|_| late())??;
    *is_up = true;
    // Whatever was said while nobody listened.
    hear();
    loop {
        let command = tokio::select! {
            push = pushed.recv() => match push.map(|push| push.kind) {
                Some(PushKind::Message) => {
                    // Several at once are one.
                    while let Ok(more) = pushed.try_recv() {
                        if more.kind == PushKind::Disconnection {
                            return Err((ErrorKind::Io, "the connection is lost").into());
                        }
                    }
                    hear();
                    continue;
                }
                Some(PushKind::Disconnection) | None => {
                    return Err((ErrorKind::Io, "the connection is lost").into());
                }
                Some(_) => continue,
            },
            asked_for = asked.recv() => {
                if asked_for.is_none() {
                    return Ok(());
                }
                while asked.try_recv().is_ok() {}
                let mut command = cmd("PUBLISH");
                command.arg(channel).arg(1);
                command
            }
            // What a user of the other connection is allowed anyway.
            () = tokio::time::sleep(HEARTBEAT) => cmd("TIME"),
        };
        let answer = command.query_async::<::redis::Value>(&mut connection);
        timeout(PATIENCE, answer).await.map_err(|_| late())??;
    }
}
