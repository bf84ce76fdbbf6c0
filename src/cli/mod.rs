//! The command line: what each command does, and the one place that prints.

mod credentials;
mod diff;
mod import;
mod models;
mod openapi;
mod score;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};

use self::credentials::{ClientsCommand, KeysCommand, TokenArgs};
use self::models::{ModelsCommand, RepositoryArgs};
use self::openapi::OpenapiArgs;
use self::score::{ExplainArgs, ScoreArgs};
use crate::app::{self, App};
use crate::config::{Settings, Sources};
use crate::http::tls::Tls;
use crate::http::workers::Workers;
use crate::import::{Error as ImportError, ImportArgs};
use crate::telemetry::{Filter, Log};
use crate::{http, sandbox};

/// How long the first fetch of issuers' keys may put readiness off: in an outage of theirs there are other callers.
const FIRST_KEYS: Duration = Duration::from_secs(3);

/// How long the first connection to Redis may: what comes before it is counted by this gateway alone.
const FIRST_REDIS: Duration = Duration::from_secs(1);

/// How long traces that are left may take at the end.
const LAST_TRACES: Duration = Duration::from_secs(1);

/// How long events are sent at the end.
const LAST_EVENTS: Duration = Duration::from_secs(2);

/// How long a run beside the answers is waited for at the end.
const LAST_RUN: Duration = Duration::from_secs(2);

/// An ONNX Runtime scoring gateway for tabular models.
#[derive(Debug, Parser)]
#[command(name = "scoregate", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the models of the repository.
    Serve(ServeArgs),
    /// Publish an ONNX model from outside as a new version.
    Import {
        #[command(flatten)]
        repository: RepositoryArgs,
        #[command(flatten)]
        import: Box<ImportArgs>,
    },
    /// Score a file, offline.
    Score(ScoreArgs),
    /// Score a file, offline, and say of every row how its score came about.
    Explain(ExplainArgs),
    /// Make, list and revoke API keys.
    Keys {
        #[command(subcommand)]
        command: KeysCommand,
    },
    /// Make, list and revoke clients of the built-in issuer.
    Clients {
        #[command(subcommand)]
        command: ClientsCommand,
    },
    /// Make an access token of the built-in issuer for one of its clients, for trying things out, and print it alone on
    /// standard output.
    Token(TokenArgs),
    /// List and show the published versions, and choose which one is live.
    Models {
        #[command(subcommand)]
        command: ModelsCommand,
    },
    /// Print the OpenAPI document of the API, for readers and for generators of clients; no gateway need run.
    Openapi(OpenapiArgs),
    /// Ask a running gateway whether it is ready; for containers.
    Healthcheck(Common),
    /// Try a model, as the gateway and `import` have it done in a process of its own.
    #[command(hide = true)]
    Sandbox,
}

#[derive(Debug, Args)]
struct Common {
    /// The settings file [default: scoregate.toml, where it exists].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct ServeArgs {
    #[command(flatten)]
    common: Common,
    /// The public listener (`SCOREGATE_ADDR`) [default: 127.0.0.1:8080].
    #[arg(long, value_name = "ADDR")]
    addr: Option<String>,
    /// The admin listener (`SCOREGATE_ADMIN_ADDR`) [default: 127.0.0.1:9090].
    #[arg(long, value_name = "ADDR")]
    admin_addr: Option<String>,
    /// The model repository (`SCOREGATE_MODELS_DIR`) [default: onnx_models].
    #[arg(long, value_name = "DIR")]
    models_dir: Option<String>,
    /// The keys file (`SCOREGATE_API_KEYS_FILE`) [default: api_keys.json].
    #[arg(long, value_name = "FILE")]
    api_keys_file: Option<String>,
    /// The model of `/v1/predict` (`SCOREGATE_DEFAULT_MODEL`) [default: churn].
    #[arg(long, value_name = "NAME")]
    default_model: Option<String>,
}

impl Cli {
    /// Does what the command line says.
    ///
    /// # Errors
    /// What went wrong and what to do about it.
    pub fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Serve(args) => serve(&args),
            Command::Import { repository, import } => import::import_model(&repository, &import),
            Command::Score(args) => score::score(&args),
            Command::Explain(args) => score::explain(&args),
            Command::Keys { command } => credentials::keys(&command),
            Command::Clients { command } => credentials::clients(&command),
            Command::Token(args) => credentials::token(&args),
            Command::Models { command } => models::models(&command),
            Command::Openapi(args) => openapi::openapi(&args),
            Command::Healthcheck(common) => healthcheck(&common.settings(BTreeMap::new())?),
            Command::Sandbox => sandbox::work(),
        }
    }
}

impl Common {
    fn settings(&self, flags: BTreeMap<String, String>) -> anyhow::Result<Settings> {
        Ok(Settings::load(Sources::from_process(self.config.as_deref(), flags)?)?)
    }
}

fn serve(args: &ServeArgs) -> anyhow::Result<()> {
    let flags = [
        ("SCOREGATE_ADDR", &args.addr),
        ("SCOREGATE_ADMIN_ADDR", &args.admin_addr),
        ("SCOREGATE_MODELS_DIR", &args.models_dir),
        ("SCOREGATE_API_KEYS_FILE", &args.api_keys_file),
        ("SCOREGATE_DEFAULT_MODEL", &args.default_model),
    ];
    let flags = flags.into_iter().filter_map(|(name, value)| Some((name.into(), value.clone()?))).collect();
    let mut settings = args.common.settings(flags)?;
    // Held to the end, whichever that is: what waits to be written is written then.
    let log = Log::start(&settings.log).map_err(anyhow::Error::msg)?;
    // ONNX Runtime is loaded while this is the only thread: loading sets variables of the environment.
    let runtime = if settings.only_issues() { None } else { Some(app::load_runtime(&settings.runtime)?) };
    let workers = settings.scoring.workers;
    // This thread accepts; the workers serve; the blocking threads take what is long.
    let threads = tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(workers)
        .thread_name("scoregate-blocking")
        .enable_all()
        .build()
        .context("cannot start threads")?;
    threads.block_on(async {
        let public =
            http::serve::bind(settings.server.addr, "SCOREGATE_ADDR").await.map_err(anyhow::Error::msg)?;
        let admin = http::serve::bind(settings.server.admin_addr, "SCOREGATE_ADMIN_ADDR")
            .await
            .map_err(anyhow::Error::msg)?;
        let (public_addr, admin_addr) = (public.local_addr()?, admin.local_addr()?);
        // Where the system chose the port, it is known only now.
        settings.server.addr = public_addr;
        let tls = settings.tls.as_ref().map(Tls::open).transpose()?;
        let mut app = App::new(settings)?;
        app.log_to(&log);
        let app = Arc::new(app);
        let signal = signal()?;
        let workers = Workers::start(workers).context("cannot start threads")?;
        let mut serving =
            tokio::spawn(http::serve::run(Arc::clone(&app), workers, tls, public, admin, signal));
        // Whatever is fetched and followed is, while the models are loaded.
        follow(Arc::clone(&app), log.filter()).context("cannot start threads")?;
        // The time runs from here.
        let keys = tokio::time::timeout(FIRST_KEYS, app.auth.tokens.tried());
        let redis = tokio::time::timeout(FIRST_REDIS, app.limiter.tried());
        let loading = tokio::task::spawn_blocking({
            let app = Arc::clone(&app);
            move || match runtime {
                Some(runtime) => app.load_models(runtime),
                None => {
                    app.without_models();
                    Ok(())
                }
            }
        });
        let started = async {
            loading.await.context("loading the models panicked")??;
            if keys.await.is_err() {
                tracing::warn!("keys of an issuer were not fetched yet: its tokens have to wait");
            }
            // If it is not there, that is told by those who try.
            let _ = redis.await;
            anyhow::Ok(())
        };
        tokio::select! {
            started = started => started?,
            // Told to stop before it was ready.
            stopped = &mut serving => return stopped.context("the listeners panicked"),
        }
        app.open();
        tracing::info!(addr = %public_addr, admin_addr = %admin_addr, "ready");
        serving.await.context("the listeners panicked")?;
        app.requests.flush(LAST_TRACES);
        app.webhooks.flush(LAST_EVENTS);
        // No model may be run while ONNX Runtime is taken down.
        app.shadows.stop(LAST_RUN);
        Ok(())
    })?;
    // Blocking work whose caller has left is not waited for.
    threads.shutdown_timeout(Duration::from_secs(1));
    Ok(())
}

/// Keeps keys, issuers, clients and plans up to date for as long as the process runs, on a thread with a runtime of its own: names
/// are resolved on a runtime's blocking threads, and those of the others may all be busy scoring.
fn follow(app: Arc<App>, filter: Filter) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .thread_name("scoregate-resolve")
        .enable_all()
        .build()?;
    let follow = async move {
        let issuer = async {
            if let Some(issuer) = &app.issuer {
                issuer.follow().await;
            }
        };
        let filter = async {
            if let Err(error) = filter.follow(app.settings.file.as_deref()).await {
                tracing::warn!(error = %error, "the log's filter is not followed");
            }
        };
        tokio::join!(app.auth.follow(), app.limiter.follow(), issuer, filter);
    };
    let thread = std::thread::Builder::new().name("scoregate-follow".into());
    thread.spawn(move || runtime.block_on(follow)).map(drop)
}

/// Waits for SIGTERM or SIGINT; true if load balancers should be given time to notice.
fn signal() -> anyhow::Result<impl Future<Output = bool>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => true,
            _ = interrupt.recv() => false,
        }
    })
}

/// Does `last` when the process is told to stop, and ends it.
fn on_signal(last: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    let threads = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let wait = move || {
        threads.block_on(async {
            if let Ok(signal) = signal() {
                signal.await;
                last();
                // As shells say it of SIGINT.
                std::process::exit(130);
            }
        });
    };
    std::thread::Builder::new()
        .name("scoregate-signal".into())
        .spawn(wait)
        .context("cannot start a thread")?;
    Ok(())
}

/// Asks the admin listener's readiness.
fn healthcheck(settings: &Settings) -> anyhow::Result<()> {
    http::health::probe(settings)?;
    print("ready")
}

/// Prints a command's result. A reader that has gone away is no failure of the command.
fn print(text: &str) -> anyhow::Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write to standard output"),
    }
}

/// Says on standard error what whoever uses a command's result should know.
fn warn(text: &str) {
    // Where it is closed there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "warning: {text}");
}

/// 3 where a model was refused, 1 for everything else that fails; wrong usage is 2 before it comes to this.
pub fn exit_code(error: &anyhow::Error) -> std::process::ExitCode {
    match error.downcast_ref::<ImportError>() {
        Some(ImportError::Refused { .. }) => 3.into(),
        _ => std::process::ExitCode::FAILURE,
    }
}

/// Prints why a command failed, causes included, on standard error.
pub fn print_error(error: &anyhow::Error) {
    // Where standard error is closed there is nobody left to tell.
    let _ = match error.downcast_ref::<ImportError>() {
        Some(ImportError::Refused { code, message, .. }) => {
            writeln!(std::io::stderr(), "error[{code}]: {message}")
        }
        _ => writeln!(std::io::stderr(), "error: {error:#}"),
    };
}
