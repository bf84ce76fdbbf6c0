//! The command line: what each command does, and the one place that prints.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use scoregate_model::acceptance::child;
use scoregate_model::package::{Package, Repository};
use scoregate_schemas::feature_schema::Kind;
use scoregate_schemas::manifest::Task;

use crate::app::{self, App};
use crate::auth::Scope;
use crate::auth::keys::KeysFile;
use crate::config::{self, Settings, Sources};
use crate::http::workers::Workers;
use crate::import::{self, ImportArgs};
use crate::sandbox::{self, Finding, ImportJob, Job, Reasons, Sandbox};
use crate::{http, rollout, telemetry};

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
    /// Make, list and revoke API keys.
    Keys {
        #[command(subcommand)]
        command: KeysCommand,
    },
    /// List and show the published versions, and choose which one is live.
    Models {
        #[command(subcommand)]
        command: ModelsCommand,
    },
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

#[derive(Debug, Subcommand)]
enum KeysCommand {
    /// Make a key and print it, once and alone, on standard output; only its digest is stored.
    Create {
        #[command(flatten)]
        common: Common,
        /// What the key is for.
        #[arg(long)]
        name: String,
        /// What it may do, separated by commas, such as `score:predict,models:read`.
        #[arg(long, value_delimiter = ',', required = true)]
        scopes: Vec<Scope>,
        /// The models that it may use, separated by commas.
        #[arg(long, value_delimiter = ',', default_value = "*")]
        models: Vec<String>,
        /// How long it is valid, such as `90d` [default: until revoked].
        #[arg(long, value_parser = config::duration)]
        expires: Option<Duration>,
    },
    /// List the keys: id, name, scopes, models, end of validity.
    List {
        #[command(flatten)]
        common: Common,
    },
    /// Remove every key of a name, or the one with an id.
    Revoke {
        #[command(flatten)]
        common: Common,
        /// The name or id.
        key: String,
    },
}

#[derive(Debug, Subcommand)]
enum ModelsCommand {
    /// List models and versions; the live one is marked.
    List {
        #[command(flatten)]
        repository: RepositoryArgs,
    },
    /// Say what a version is: its features, its answer, how good it is and where it comes from.
    Show {
        #[command(flatten)]
        repository: RepositoryArgs,
        /// The version, as MODEL@VERSION, or as MODEL for the live one.
        version: String,
    },
    /// Make a version the live one; a running gateway that accepts it answers with it within two seconds.
    Promote {
        #[command(flatten)]
        repository: RepositoryArgs,
        /// The version, as MODEL@VERSION.
        version: String,
    },
}

#[derive(Debug, Args)]
struct RepositoryArgs {
    #[command(flatten)]
    common: Common,
    /// The model repository (`SCOREGATE_MODELS_DIR`) [default: onnx_models].
    #[arg(long, value_name = "DIR")]
    models_dir: Option<String>,
}

impl RepositoryArgs {
    fn open(&self) -> anyhow::Result<Repository> {
        let flags = self.models_dir.iter().map(|dir| ("SCOREGATE_MODELS_DIR".into(), dir.clone())).collect();
        Ok(Repository::new(self.common.settings(flags)?.models.dir))
    }
}

impl Cli {
    /// Does what the command line says.
    ///
    /// # Errors
    /// What went wrong and what to do about it.
    pub fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Serve(args) => serve(&args),
            Command::Import { repository, import } => import_model(&repository, &import),
            Command::Keys { command } => keys(&command),
            Command::Models { command } => models(&command),
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
    let settings = args.common.settings(flags)?;
    telemetry::start(&settings.log).map_err(anyhow::Error::msg)?;
    // ONNX Runtime is loaded while this is the only thread: loading sets variables of the environment.
    let runtime = app::load_runtime(&settings.runtime)?;
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
        let app = Arc::new(App::new(settings)?);
        let signal = signal()?;
        let workers = Workers::start(workers).context("cannot start threads")?;
        let mut serving = tokio::spawn(http::serve::run(Arc::clone(&app), workers, public, admin, signal));
        let loading = tokio::task::spawn_blocking({
            let app = Arc::clone(&app);
            move || app.load_models(runtime)
        });
        tokio::select! {
            loaded = loading => loaded.context("loading the models panicked")??,
            // Told to stop before it was ready.
            stopped = &mut serving => return stopped.context("the listeners panicked"),
        }
        tracing::info!(addr = %public_addr, admin_addr = %admin_addr, "ready");
        tokio::spawn(async move { app.keys.follow().await });
        serving.await.context("the listeners panicked")
    })?;
    // Blocking work whose caller has left is not waited for.
    threads.shutdown_timeout(Duration::from_secs(1));
    Ok(())
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

fn keys(command: &KeysCommand) -> anyhow::Result<()> {
    let file = |common: &Common| -> anyhow::Result<KeysFile> {
        Ok(KeysFile::new(common.settings(BTreeMap::new())?.auth.api_keys_file))
    };
    match command {
        KeysCommand::Create { common, name, scopes, models, expires } => {
            print(&file(common)?.create(name, scopes.clone(), models.clone(), *expires)?)
        }
        KeysCommand::List { common } => {
            let mut lines = vec!["ID\tNAME\tSCOPES\tMODELS\tEXPIRES".to_string()];
            for key in file(common)?.read()? {
                let scopes: Vec<_> = key.scopes.iter().map(|scope| scope.as_str()).collect();
                let expires = key.expires_at.as_deref().unwrap_or("never");
                lines.push(format!(
                    "{}\t{}\t{}\t{}\t{expires}",
                    key.id,
                    key.name,
                    scopes.join(","),
                    key.models.join(",")
                ));
            }
            print(&lines.join("\n"))
        }
        KeysCommand::Revoke { common, key } => {
            let revoked = file(common)?.revoke(key)?;
            print(&format!("{revoked} key(s) revoked"))
        }
    }
}

fn import_model(repository: &RepositoryArgs, args: &ImportArgs) -> anyhow::Result<()> {
    let settings = repository.common.settings(BTreeMap::new())?;
    let job = ImportJob { request: args.request()?, library: app::library(&settings.runtime)? };
    let sandbox = Sandbox::new(&settings.models, settings.scoring.workers);
    let finding =
        sandbox.run(&Job::Import(Box::new(job))).unwrap_or_else(|death| Finding::Refused(death.into()));
    let examined = match finding {
        Finding::Examined(examined) => *examined,
        Finding::Refused(Reasons { code, detail, .. }) => {
            let advice = match code.as_str() {
                child::MEMORY => {
                    "; if the model or its reference is meant to be so large, raise SCOREGATE_MODEL_MEMORY"
                }
                child::TIMEOUT => {
                    "; if the model or its reference is meant to take so long, raise SCOREGATE_MODEL_TIMEOUT"
                }
                _ => "",
            };
            let message = format!("{}{advice}", without_sources(&detail));
            return Err(import::Error::Refused { code, message }.into());
        }
    };
    let report = args.publish(&repository.open()?, examined)?;
    print(&if args.json { serde_json::to_string_pretty(&report)? } else { report.text() })
}

/// ONNX Runtime names the places in its own sources, which are no use to whoever imports a model.
fn without_sources(text: &str) -> String {
    let is_place = |word: &str| [".cc:", ".h:"].iter().any(|end| word.contains(end));
    let words = text.split_inclusive(char::is_whitespace).filter(|word| !is_place(word));
    words.collect::<String>().trim_end().into()
}

fn models(command: &ModelsCommand) -> anyhow::Result<()> {
    match command {
        ModelsCommand::List { repository } => {
            let repository = repository.open()?;
            let mut lines = vec!["MODEL\tVERSION\tLIVE".to_string()];
            for model in repository.models()? {
                let versions = match repository.versions(&model) {
                    Ok(versions) => versions,
                    Err(error) => {
                        lines.push(format!("{model}\t-\tunknown: {:#}", anyhow::Error::from(error)));
                        continue;
                    }
                };
                let live = rollout::live(&repository, &model, &versions);
                let state = |version: &String| match &live {
                    Ok(live) if live == version => "live".to_string(),
                    Ok(_) => String::new(),
                    Err(error) => format!("unknown: {}", error.reason()),
                };
                lines
                    .extend(versions.iter().map(|version| format!("{model}\t{version}\t{}", state(version))));
            }
            print(&lines.join("\n"))
        }
        ModelsCommand::Show { repository, version } => print(&show(&repository.open()?, version)?),
        ModelsCommand::Promote { repository, version } => {
            let (model, name) = version.split_once('@').with_context(|| {
                format!("found \"{version}\", expected MODEL@VERSION such as churn@2026-05-17_01")
            })?;
            rollout::promote(&repository.open()?, model, name)?;
            print(&format!(
                "{model} {name} is the live version: a running gateway that accepts it answers with it within 2 seconds"
            ))
        }
    }
}

/// A version in words, one fact per line.
fn show(repository: &Repository, version: &str) -> anyhow::Result<String> {
    let (model, named) = match version.split_once('@') {
        Some((model, version)) => (model, Some(version.to_string())),
        None => (version, None),
    };
    let versions = repository.versions(model)?;
    if versions.is_empty() {
        bail!("no version of model \"{model}\" is published in {}", repository.root().display());
    }
    let live = rollout::live(repository, model, &versions);
    let named = match named {
        Some(named) if versions.contains(&named) => named,
        Some(named) => bail!("model {model} has no version {named}; it has {}", versions.join(", ")),
        None => live.as_ref().map_err(|error| anyhow::anyhow!("{error}"))?.clone(),
    };
    let package = Package::read(&repository.directory(model, &named))?;
    let manifest = &package.manifest;
    let state = if live.is_ok_and(|live| live == named) { " (live)" } else { "" };
    let mut facts = vec![
        ("model", manifest.name.clone()),
        ("version", format!("{named}{state}")),
        ("published", manifest.created_at.clone()),
        ("digest", package.digest().to_string()),
        ("made by", manifest.source.producer.clone()),
        ("answers", import::output_in_words(&manifest.output, &manifest.labels)),
    ];
    if manifest.output.task() == Task::Binary {
        facts.push(("threshold", manifest.threshold.to_string()));
    }
    let features = package.schema.features().map(|field| {
        let kind = match &field.kind {
            Kind::Number => "number".into(),
            Kind::Integer => "integer".into(),
            Kind::Boolean => "boolean".into(),
            Kind::Category { values: None } => "text".into(),
            Kind::Category { values: Some(values) } => format!("one of {}", values.join(", ")),
        };
        ("feature", format!("{}: {kind}", field.name))
    });
    facts.extend(features);
    facts.push(("inputs", import::bindings_in_words(&manifest.bindings)));
    facts.extend(manifest.changes.iter().map(|change| ("changed", change.clone())));
    facts.extend(manifest.metrics.as_ref().map(|metrics| ("metrics", import::metrics_in_words(metrics))));
    facts.push(("golden", format!("{} rows, tolerance {}", package.golden.len(), manifest.tolerance)));
    let lines = facts.iter().map(|(name, fact)| format!("{name:<10}{fact}"));
    Ok(lines.collect::<Vec<_>>().join("\n"))
}

/// Asks the admin listener's readiness.
fn healthcheck(settings: &Settings) -> anyhow::Result<()> {
    use std::io::Read;
    let mut addr = settings.server.admin_addr;
    if addr.ip().is_unspecified() {
        addr.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    let timeout = Duration::from_secs(2);
    let mut stream = std::net::TcpStream::connect_timeout(&addr, timeout)
        .with_context(|| format!("no gateway listens on {addr} (SCOREGATE_ADMIN_ADDR)"))?;
    stream.set_read_timeout(Some(timeout))?;
    write!(stream, "GET /health/ready HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(64 * 1024).read_to_string(&mut answer)?;
    let status = answer.split_whitespace().nth(1).unwrap_or("no status");
    if status != "200" {
        bail!("the gateway on {addr} is not ready: it answered {status}");
    }
    print("ready")
}

/// Prints a command's result. A reader that has gone away is no failure of the command.
fn print(text: &str) -> anyhow::Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write to standard output"),
    }
}

/// 3 where a model was refused, 1 for everything else that fails; wrong usage is 2 before it comes to this.
pub fn exit_code(error: &anyhow::Error) -> std::process::ExitCode {
    match error.downcast_ref::<import::Error>() {
        Some(import::Error::Refused { .. }) => 3.into(),
        _ => std::process::ExitCode::FAILURE,
    }
}

/// Prints why a command failed, causes included, on standard error.
pub fn print_error(error: &anyhow::Error) {
    // Where standard error is closed there is nobody left to tell.
    let _ = match error.downcast_ref::<import::Error>() {
        Some(import::Error::Refused { code, message }) => {
            writeln!(std::io::stderr(), "error[{code}]: {message}")
        }
        _ => writeln!(std::io::stderr(), "error: {error:#}"),
    };
}
