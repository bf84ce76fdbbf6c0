//! Typed settings: flags over environment over `scoregate.toml` over defaults. The sole reader of the environment.
//!
//! Every mistake is reported at once, and keys that nobody knows are mistakes.

mod auth;
mod bucket;
mod cache;
mod explain;
mod guard;
mod quota;
mod reader;
mod redis;
mod telemetry;
mod values;
mod webhook;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use scoregate_model::runtime::ExecutionProvider;
use scoregate_schemas::manifest::{Manifest, Task};

pub use self::auth::{
    AuthSettings, CertificateSettings, IntrospectionSettings, IssuerSettings, KeyLocation, OauthSettings,
    TlsSettings, is_safe,
};
pub use self::bucket::{BucketCredentials, BucketSettings};
pub use self::cache::{CacheMode, CacheSettings};
pub use self::explain::{Comparison, Condition, ExplainMode, ExplainSettings, OwnExplainSettings};
pub use self::guard::{GuardMode, GuardSettings, ShadowSettings};
pub use self::quota::{PlanSettings, QuotaSettings, plans};
use self::reader::{Reader, TableReader};
pub use self::redis::RedisSettings;
pub use self::telemetry::{AccessLog, LogFormat, LogSettings, OtlpProtocol, TraceSettings, log_filter_of};
pub use self::values::duration;
use self::values::{
    COUNT, address, base_url, count, interval, labels, optional_path, origins, path, providers, switch, text,
    whole,
};
pub use self::webhook::WebhookSettings;

/// Where models are if nobody says.
pub const DEFAULT_MODELS_DIR: &str = "onnx_models";

/// Everything that `serve` can be told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Listeners and their limits.
    pub server: ServerSettings,
    /// The model repository.
    pub models: ModelSettings,
    /// What single models are told differently, by name: the tables `[model.NAME]` of the settings file.
    pub model: BTreeMap<String, OwnSettings>,
    /// What the gateway remembers.
    pub state: StateSettings,
    /// Who may score.
    pub auth: AuthSettings,
    /// The issuer that is built in, where it is switched on.
    pub oauth: Option<OauthSettings>,
    /// TLS, where it is switched on.
    pub tls: Option<TlsSettings>,
    /// Redis, where it is named.
    pub redis: Option<RedisSettings>,
    /// The cache of scores.
    pub cache: CacheSettings,
    /// Explanations of scores.
    pub explain: ExplainSettings,
    /// What is scored beside the answers.
    pub shadow: ShadowSettings,
    /// By what canaries are judged.
    pub guard: GuardSettings,
    /// Who is told when a rollout changes, if anybody is.
    pub webhook: Option<WebhookSettings>,
    /// ONNX Runtime.
    pub runtime: RuntimeSettings,
    /// Work in flight.
    pub scoring: ScoringSettings,
    /// Quotas.
    pub quota: QuotaSettings,
    /// Who has another quota, by name: the tables `[plan.NAME]` of the settings file.
    pub plan: BTreeMap<String, PlanSettings>,
    /// Logs.
    pub log: LogSettings,
    /// `SCOREGATE_METRICS` (`on|off`): whether requests, rows and versions are counted.
    pub metrics: bool,
    /// Traces, where there is a collector.
    pub trace: Option<TraceSettings>,
    /// The settings file, whether it is there or not; none for a process that has none.
    pub file: Option<PathBuf>,
}

/// Listeners and their limits.
#[derive(Debug, Clone)]
pub struct ServerSettings {
    /// `SCOREGATE_ADDR` (`127.0.0.1:8080`): the public listener.
    pub addr: SocketAddr,
    /// `SCOREGATE_ADMIN_ADDR` (`127.0.0.1:9090`): the admin listener.
    pub admin_addr: SocketAddr,
    /// `SCOREGATE_PUBLIC_URL`: what clients put before the paths, see [`Settings::public_url`].
    pub public_url: Option<String>,
    /// `SCOREGATE_CORS_ORIGINS` (none): the origins, such as `https://app.example.com`, whose pages may call with `fetch`; `*`
    /// is any.
    pub cors_origins: Vec<String>,
    /// `SCOREGATE_OPENAPI_MODELS` (true): whether `/openapi.json`, which asks for no credentials, says what the rows of each
    /// model are.
    pub openapi_models: bool,
    /// `SCOREGATE_MAX_BODY_BYTES` (16 MiB): the largest body, decoded.
    pub max_body_bytes: usize,
    /// `SCOREGATE_MAX_UPLOAD_BYTES` (1 GiB): the largest body of a model that is sent to be published.
    pub max_upload_bytes: usize,
    /// `SCOREGATE_MAX_BATCH_ROWS` (100,000): the most rows of one batch.
    pub max_batch_rows: usize,
    /// `SCOREGATE_MAX_CONNECTIONS` (8,192): per listener; connections beyond wait to be accepted.
    pub max_connections: usize,
    /// `SCOREGATE_BODY_TIMEOUT` (15s): the time to receive a request's head, and again its body.
    pub body_timeout: Duration,
    /// `SCOREGATE_IDLE_TIMEOUT` (75s): how long a connection may stay open between requests; longer than load balancers
    /// keep theirs.
    pub idle_timeout: Duration,
    /// `SCOREGATE_ANSWER_TIMEOUT` (10s): the time to answer once the body is there.
    pub answer_timeout: Duration,
    /// `SCOREGATE_DRAIN_DELAY` (5s): how long to serve on after SIGTERM, not ready, until load balancers have noticed.
    pub drain_delay: Duration,
    /// `SCOREGATE_DRAIN_TIMEOUT` (20s): how long requests in flight may take to finish after that; with the delay less than
    /// the 30 s after which Kubernetes kills.
    pub drain_timeout: Duration,
}

/// The model repository.
#[derive(Debug, Clone)]
pub struct ModelSettings {
    /// `SCOREGATE_MODELS_DIR` (`onnx_models`): a directory, or a bucket (`s3://BUCKET/PREFIX`), of which there is a mirror in the
    /// state directory then: this is where versions are read.
    pub dir: PathBuf,
    /// The bucket, where it names one.
    pub bucket: Option<BucketSettings>,
    /// `SCOREGATE_DEFAULT_MODEL` (`churn`): the model of `/v1/predict`.
    pub default: String,
    /// `SCOREGATE_POLL_INTERVAL` (500ms): how often the repository is looked at for what was published or promoted.
    pub poll_interval: Duration,
    /// `SCOREGATE_MODEL_MEMORY` (2 GiB): the memory of the process in which an unknown model is tried.
    pub memory: usize,
    /// `SCOREGATE_MODEL_TIMEOUT` (60s): how long that may take.
    pub timeout: Duration,
}

impl ModelSettings {
    /// What the repository is called, as the operator wrote it.
    pub fn name(&self) -> String {
        self.bucket.as_ref().map_or_else(|| self.dir.display().to_string(), BucketSettings::name)
    }
}

/// What the gateway remembers.
#[derive(Debug, Clone)]
pub struct StateSettings {
    /// `SCOREGATE_STATE_DIR` (`state`): which packages were accepted, so that a start need not try them again; the audit log;
    /// the built-in issuer's keys.
    pub dir: PathBuf,
}

/// What one model is told differently from all others.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct OwnSettings {
    /// The probability of the positive class from which on a row is labelled positive, in place of the manifest's.
    pub threshold: Option<f64>,
    /// Labels in place of the manifest's, as many of them.
    pub labels: Option<Vec<String>>,
    /// See [`ServerSettings::max_batch_rows`].
    pub max_batch_rows: Option<usize>,
    /// See [`RuntimeSettings::execution_providers`].
    pub execution_providers: Option<Vec<ExecutionProvider>>,
    /// See [`RuntimeSettings::gpu_min_rows`].
    pub gpu_min_rows: Option<usize>,
    /// See [`RuntimeSettings::intra_op_threads`].
    pub intra_op_threads: Option<usize>,
    /// How its scores are explained.
    pub explain: OwnExplainSettings,
    /// By what its canaries are judged, where that differs.
    pub guard: Option<GuardSettings>,
}

/// How one model is served: by its own settings, else by those of all.
#[derive(Debug, Clone, PartialEq)]
pub struct Serving {
    /// See [`OwnSettings::threshold`].
    pub threshold: Option<f64>,
    /// See [`OwnSettings::labels`].
    pub labels: Option<Vec<String>>,
    /// See [`ServerSettings::max_batch_rows`].
    pub max_batch_rows: usize,
    /// See [`RuntimeSettings::execution_providers`].
    pub execution_providers: Vec<ExecutionProvider>,
    /// See [`RuntimeSettings::gpu_min_rows`].
    pub gpu_min_rows: usize,
    /// See [`RuntimeSettings::intra_op_threads`].
    pub intra_op_threads: usize,
    /// How its scores are explained.
    pub explain: ExplainSettings,
}

impl Serving {
    /// Checks that the model which `manifest` describes can be served so.
    ///
    /// # Errors
    /// What was found and what was expected.
    pub fn check(&self, manifest: &Manifest) -> Result<(), String> {
        let task = manifest.output.task();
        if let Some(labels) = &self.labels
            && labels.len() != manifest.labels.len()
        {
            let (found, expected) = (labels.len(), manifest.labels.len());
            return Err(format!("labels: found {found}, expected {expected} as in its manifest"));
        }
        if self.threshold.is_some() && task != Task::Binary {
            return Err("threshold: only a model of two classes has one".into());
        }
        if let Some(when) = &self.explain.when {
            when.check(task, self.labels.as_ref().unwrap_or(&manifest.labels))?;
        }
        Ok(())
    }
}

/// ONNX Runtime.
#[derive(Debug, Clone)]
pub struct RuntimeSettings {
    /// `ORT_DYLIB_PATH`: the library; looked for beside the executable if absent.
    pub library: Option<PathBuf>,
    /// `SCOREGATE_EXECUTION_PROVIDERS` (`cpu`): what runs the graphs, the preferred first, such as `cuda,cpu`. The processor
    /// runs what none of them can, whether it is named or not.
    pub execution_providers: Vec<ExecutionProvider>,
    /// `SCOREGATE_GPU_MIN_ROWS` (256): runs of fewer rows stay on the processor where there is an accelerator.
    pub gpu_min_rows: usize,
    /// `SCOREGATE_INTRA_OP_THREADS` (1): threads within one operator.
    pub intra_op_threads: usize,
}

/// Work in flight.
#[derive(Debug, Clone)]
pub struct ScoringSettings {
    /// `SCOREGATE_WORKERS` (the number of processors): threads that parse, run and answer.
    pub workers: usize,
    /// `SCOREGATE_MAX_QUEUED_ROWS` (200,000): rows of work that has left the connections' threads, running or waiting;
    /// beyond, requests get 503.
    pub max_queued_rows: usize,
    /// `SCOREGATE_MAX_QUEUED_BYTES` (256 MiB): request bodies held in memory; beyond, requests get 503.
    pub max_queued_bytes: usize,
    /// `SCOREGATE_INLINE_BUDGET` (200us): work estimated to take longer than this leaves the thread that serves the
    /// connection.
    pub inline_budget: Duration,
}

/// Every mistake in the settings.
#[derive(Debug, thiserror::Error)]
#[error("{} setting(s) cannot be used:{}", .0.len(), .0.iter().fold(String::new(), |mut text, mistake| { let _ = write!(text, "\n  {mistake}"); text }))]
pub struct Mistakes(pub Vec<String>);

/// Where settings come from, highest first.
#[derive(Debug, Default, Clone)]
pub struct Sources {
    /// Flags by the name of the variable that they stand for.
    pub flags: BTreeMap<String, String>,
    /// The environment.
    pub environment: BTreeMap<String, String>,
    /// The text of `scoregate.toml`, where there is one.
    pub file: Option<String>,
    /// Where that is, or would be.
    pub path: Option<PathBuf>,
}

impl Sources {
    /// Reads the process environment, and `file` or else `SCOREGATE_CONFIG` or else `scoregate.toml` where it exists.
    ///
    /// # Errors
    /// [`Mistakes`] if a file that was named cannot be read.
    pub fn from_process(file: Option<&Path>, flags: BTreeMap<String, String>) -> Result<Self, Mistakes> {
        #[expect(clippy::disallowed_methods, reason = "this is the sole reader of the environment")]
        let ours = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
            .filter(|(name, _)| {
                name.starts_with("SCOREGATE_")
                    || name == "ORT_DYLIB_PATH"
                    || bucket::CUSTOMARY.contains(&name.as_str())
            });
        let (mut environment, mut mistakes) = (BTreeMap::new(), Vec::new());
        for (name, value) in ours {
            match value.into_string() {
                Ok(value) => drop(environment.insert(name, value)),
                // Left out, it might switch something off that somebody relies on.
                Err(_) => mistakes.push(format!("{name}: found bytes that are no UTF-8, expected text")),
            }
        }
        if !mistakes.is_empty() {
            return Err(Mistakes(mistakes));
        }
        let named =
            file.map(Path::to_path_buf).or_else(|| environment.get("SCOREGATE_CONFIG").map(PathBuf::from));
        let path = named.clone().unwrap_or_else(|| "scoregate.toml".into());
        let file = match std::fs::read_to_string(&path) {
            Ok(text) => Some(text),
            Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(Mistakes(vec![format!("cannot read {}: {error}", path.display())])),
        };
        Ok(Self { flags, environment, file, path: Some(path) })
    }
}

impl Settings {
    /// Reads every setting.
    ///
    /// # Errors
    /// [`Mistakes`] with every value that cannot be used and every key that is not known.
    pub fn load(sources: Sources) -> Result<Self, Mistakes> {
        let file = sources.path.clone();
        let follows_filter = !sources.environment.contains_key("SCOREGATE_LOG");
        let mut reader = Reader::new(sources);
        let clients_file =
            reader.take("SCOREGATE_OAUTH_CLIENTS_FILE", "oauth.clients_file", "oauth_clients.json", path);
        let (oauth, tls) = (reader.oauth(clients_file.clone()), reader.tls());
        let (quota, redis, explain) = (reader.quota(), reader.redis(), reader.explain());
        let (shadow, guard, webhook) = (reader.shadow(), reader.guard(), reader.webhook());
        let repository = reader.take("SCOREGATE_MODELS_DIR", "models.dir", DEFAULT_MODELS_DIR, path);
        let bucket = reader.bucket(&repository.to_string_lossy());
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let settings = Self {
            server: ServerSettings {
                addr: reader.take("SCOREGATE_ADDR", "server.addr", "127.0.0.1:8080", address),
                admin_addr: reader.take(
                    "SCOREGATE_ADMIN_ADDR",
                    "server.admin_addr",
                    "127.0.0.1:9090",
                    address,
                ),
                public_url: reader.take("SCOREGATE_PUBLIC_URL", "server.public_url", "", |text| match text {
                    "" => Ok(None),
                    text => base_url(text).map(Some),
                }),
                cors_origins: reader.take("SCOREGATE_CORS_ORIGINS", "server.cors_origins", "", origins),
                openapi_models: reader.take(
                    "SCOREGATE_OPENAPI_MODELS",
                    "server.openapi_models",
                    "true",
                    switch,
                ),
                max_body_bytes: reader.take(
                    "SCOREGATE_MAX_BODY_BYTES",
                    "server.max_body_bytes",
                    "16777216",
                    count,
                ),
                max_upload_bytes: reader.take(
                    "SCOREGATE_MAX_UPLOAD_BYTES",
                    "server.max_upload_bytes",
                    "1073741824",
                    count,
                ),
                max_batch_rows: reader.take(
                    "SCOREGATE_MAX_BATCH_ROWS",
                    "server.max_batch_rows",
                    "100000",
                    count,
                ),
                max_connections: reader.take(
                    "SCOREGATE_MAX_CONNECTIONS",
                    "server.max_connections",
                    "8192",
                    count,
                ),
                body_timeout: reader.take("SCOREGATE_BODY_TIMEOUT", "server.body_timeout", "15s", duration),
                idle_timeout: reader.take("SCOREGATE_IDLE_TIMEOUT", "server.idle_timeout", "75s", duration),
                answer_timeout: reader.take(
                    "SCOREGATE_ANSWER_TIMEOUT",
                    "server.answer_timeout",
                    "10s",
                    duration,
                ),
                drain_delay: reader.take("SCOREGATE_DRAIN_DELAY", "server.drain_delay", "5s", duration),
                drain_timeout: reader.take(
                    "SCOREGATE_DRAIN_TIMEOUT",
                    "server.drain_timeout",
                    "20s",
                    duration,
                ),
            },
            models: ModelSettings {
                dir: repository,
                bucket,
                default: reader.take("SCOREGATE_DEFAULT_MODEL", "models.default", "churn", text),
                poll_interval: reader.take(
                    "SCOREGATE_POLL_INTERVAL",
                    "models.poll_interval",
                    "500ms",
                    interval,
                ),
                memory: reader.take("SCOREGATE_MODEL_MEMORY", "models.memory", "2147483648", count),
                timeout: reader.take("SCOREGATE_MODEL_TIMEOUT", "models.timeout", "60s", interval),
            },
            model: reader.own(&explain, &guard),
            state: StateSettings { dir: reader.take("SCOREGATE_STATE_DIR", "state.dir", "state", path) },
            auth: AuthSettings {
                api_keys_file: reader.take(
                    "SCOREGATE_API_KEYS_FILE",
                    "auth.api_keys_file",
                    "api_keys.json",
                    path,
                ),
                clients_file,
                deny_list: reader.take("SCOREGATE_JWT_DENY_LIST", "auth.deny_list", "", optional_path),
                issuers: reader.issuers(oauth.as_ref().map(|oauth| oauth.issuer.as_str())),
                certificates: reader.certificates(),
            },
            oauth,
            tls,
            cache: reader.cache(redis.is_some()),
            explain,
            shadow,
            guard,
            webhook,
            redis,
            runtime: RuntimeSettings {
                library: reader.take("ORT_DYLIB_PATH", "runtime.library", "", optional_path),
                execution_providers: reader.take(
                    "SCOREGATE_EXECUTION_PROVIDERS",
                    "runtime.execution_providers",
                    "cpu",
                    providers,
                ),
                gpu_min_rows: reader.take("SCOREGATE_GPU_MIN_ROWS", "runtime.gpu_min_rows", "256", count),
                intra_op_threads: reader.take(
                    "SCOREGATE_INTRA_OP_THREADS",
                    "runtime.intra_op_threads",
                    "1",
                    count,
                ),
            },
            scoring: ScoringSettings {
                workers: reader.take("SCOREGATE_WORKERS", "scoring.workers", &cpus.to_string(), count),
                max_queued_rows: reader.take(
                    "SCOREGATE_MAX_QUEUED_ROWS",
                    "scoring.max_queued_rows",
                    "200000",
                    count,
                ),
                max_queued_bytes: reader.take(
                    "SCOREGATE_MAX_QUEUED_BYTES",
                    "scoring.max_queued_bytes",
                    "268435456",
                    count,
                ),
                inline_budget: reader.take(
                    "SCOREGATE_INLINE_BUDGET",
                    "scoring.inline_budget",
                    "200us",
                    duration,
                ),
            },
            plan: reader.plans(quota.default),
            quota,
            log: reader.log(follows_filter),
            metrics: reader.metrics(),
            trace: reader.trace(),
            file,
        };
        let is_promoting = |guard: &GuardSettings| guard.mode == GuardMode::Promote;
        let mut own = settings.model.values().filter_map(|own| own.guard.as_ref());
        if !settings.metrics && (own.any(is_promoting) || is_promoting(&settings.guard)) {
            let expected = "expected on where a guard promotes: it judges by what is counted";
            reader.mistakes.push(format!("SCOREGATE_METRICS (metrics.requests): found off, {expected}"));
        }
        reader.finish()?;
        Ok(settings.completed())
    }

    /// With the defaults that depend on other settings.
    fn completed(mut self) -> Self {
        if let Some(oauth) = &mut self.oauth
            && oauth.keys_file == Path::new("")
        {
            oauth.keys_file = self.state.dir.join("issuer_keys.json");
        }
        if let Some(bucket) = &self.models.bucket {
            self.models.dir = self.state.dir.join("buckets").join(bucket.directory());
        }
        self
    }

    /// Whether all there is to do is to issue tokens.
    pub fn only_issues(&self) -> bool {
        self.oauth.as_ref().is_some_and(|oauth| oauth.only)
    }

    /// What clients put before the paths, without a slash at its end: as set, else the built-in issuer's URL, else the public
    /// listener's address.
    pub fn public_url(&self) -> String {
        let issuer = self.oauth.as_ref().map(|oauth| &oauth.issuer);
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let named = self.server.public_url.as_ref().or(issuer).cloned();
        let addr = self.server.addr;
        named.unwrap_or_else(|| match addr.ip().is_unspecified() {
            // Nobody can go to 0.0.0.0.
            true => format!("{scheme}://localhost:{}", addr.port()),
            false => format!("{scheme}://{addr}"),
        })
    }

    /// How `model` is served.
    pub fn serving(&self, model: &str) -> Serving {
        let own = self.model.get(model).cloned().unwrap_or_default();
        Serving {
            threshold: own.threshold,
            labels: own.labels,
            max_batch_rows: own.max_batch_rows.unwrap_or(self.server.max_batch_rows),
            execution_providers: own
                .execution_providers
                .unwrap_or_else(|| self.runtime.execution_providers.clone()),
            gpu_min_rows: own.gpu_min_rows.unwrap_or(self.runtime.gpu_min_rows),
            intra_op_threads: own.intra_op_threads.unwrap_or(self.runtime.intra_op_threads),
            explain: self.explain.of(own.explain),
        }
    }

    /// By what the canaries of `model` are judged.
    pub fn guard_of(&self, model: &str) -> &GuardSettings {
        self.model.get(model).and_then(|own| own.guard.as_ref()).unwrap_or(&self.guard)
    }

    /// Every execution provider that any model is to be served with.
    pub fn execution_providers(&self) -> BTreeSet<ExecutionProvider> {
        let own = self.model.values().filter_map(|own| own.execution_providers.as_ref());
        own.chain([&self.runtime.execution_providers]).flatten().copied().collect()
    }
}

/// Where the dynamic linker looks for what ONNX Runtime needs, if anybody said; for processes without an environment.
pub fn library_path() -> Option<OsString> {
    #[expect(clippy::disallowed_methods, reason = "this is the sole reader of the environment")]
    std::env::var_os("LD_LIBRARY_PATH")
}

impl Reader {
    /// The tables `[model.NAME]`.
    fn own(&mut self, explain: &ExplainSettings, guard: &GuardSettings) -> BTreeMap<String, OwnSettings> {
        let mut own = BTreeMap::new();
        for (name, table) in std::mem::take(&mut self.model) {
            let toml::Value::Table(mut table) = table else {
                self.mistakes.push(format!("model.{name} of the settings file: expected a table"));
                continue;
            };
            let mut reader = TableReader {
                name: format!("model.{name}"),
                table: &mut table,
                known: Vec::new(),
                mistakes: &mut self.mistakes,
            };
            let settings = OwnSettings {
                threshold: reader.take("threshold", "a number from 0 to 1", |value| {
                    let number = match value {
                        toml::Value::Integer(number) => *number as f64,
                        other => other.as_float()?,
                    };
                    (0.0..=1.0).contains(&number).then_some(number)
                }),
                labels: reader.take(
                    "labels",
                    "a list of different labels, each of at most 256 bytes without control characters",
                    labels,
                ),
                max_batch_rows: reader.take("max_batch_rows", COUNT, whole),
                execution_providers: reader.take("execution_providers", "such as \"cuda,cpu\"", |value| {
                    providers(value.as_str()?).ok()
                }),
                gpu_min_rows: reader.take("gpu_min_rows", COUNT, whole),
                intra_op_threads: reader.take("intra_op_threads", COUNT, whole),
                explain: reader.explain(explain),
                guard: reader.guard(guard),
            };
            reader.finish();
            own.insert(name, settings);
        }
        own
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn load(environment: &[(&str, &str)], file: Option<&str>) -> Result<Settings, Vec<String>> {
        let environment = environment.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let sources = Sources { environment, file: file.map(Into::into), ..Sources::default() };
        Settings::load(sources).map_err(|mistakes| mistakes.0)
    }

    #[test]
    fn flags_win_over_environment_over_file_over_defaults() {
        let file =
            Some("[server]\naddr = \"127.0.0.1:1\"\nmax_batch_rows = 7\n[models]\ndefault = \"from_file\"");
        let mut sources = Sources { file: file.map(Into::into), ..Sources::default() };
        sources.environment.insert("SCOREGATE_ADDR".into(), "127.0.0.1:2".into());
        sources.environment.insert("SCOREGATE_MODELS_DIR".into(), "from_environment".into());
        sources.flags.insert("SCOREGATE_ADDR".into(), "127.0.0.1:3".into());
        let settings = Settings::load(sources).unwrap();
        assert_eq!(settings.server.addr.port(), 3);
        assert_eq!(settings.models.dir, Path::new("from_environment"));
        assert_eq!(settings.models.default, "from_file");
        assert_eq!(settings.server.max_batch_rows, 7);
        assert_eq!(settings.server.body_timeout, Duration::from_secs(15));
    }

    #[test]
    fn every_mistake_is_reported_at_once() {
        let environment =
            [("SCOREGATE_ADDR", "nowhere"), ("SCOREGATE_ADR", "x"), ("SCOREGATE_BODY_TIMEOUT", "15")];
        let mistakes = load(&environment, Some("[server]\nadr = \"x\"\nmax_body_bytes = 0")).unwrap_err();
        assert_eq!(mistakes.len(), 5, "{mistakes:#?}");
        assert!(
            mistakes
                .iter()
                .any(|mistake| mistake == "SCOREGATE_ADR is no setting; did you mean SCOREGATE_ADDR?")
        );
        assert!(
            mistakes.iter().any(|mistake| mistake.contains("server.adr") && mistake.contains("server.addr"))
        );
    }

    #[test]
    fn a_model_may_be_told_otherwise() {
        let file = "[server]\nmax_batch_rows = 9\n[model.churn]\nthreshold = 0.4\nlabels = [\"stay\", \"go\"]\n\
                    [model.\"a.b\"]\nthreshold = 1\nmax_batch_rows = 7\nexecution_providers = \"cuda,cpu\"\n\
                    gpu_min_rows = 3\nintra_op_threads = 2\n";
        let settings = load(&[], Some(file)).unwrap();
        let churn = settings.serving("churn");
        assert_eq!((churn.threshold, churn.max_batch_rows, churn.gpu_min_rows), (Some(0.4), 9, 256));
        assert_eq!(churn.labels, Some(vec!["stay".into(), "go".into()]));
        let dotted = settings.serving("a.b");
        assert_eq!((dotted.threshold, dotted.max_batch_rows, dotted.intra_op_threads), (Some(1.0), 7, 2));
        assert_eq!(dotted.execution_providers, [ExecutionProvider::Cuda]);
        assert_eq!(settings.execution_providers().len(), 1);
        assert_eq!(settings.serving("other").execution_providers, []);
    }

    #[test]
    fn mistakes_in_a_models_table_name_it() {
        let file = "[model.churn]\ntreshold = 0.4\nthreshold = 1.5\nlabels = [\"a\", \"a\"]\nmax_batch_rows = 0\n\
                    execution_providers = \"gpu\"\ngpu_min_rows = \"1\"\n";
        let mistakes = load(&[], Some(file)).unwrap_err();
        assert_eq!(mistakes.len(), 6, "{mistakes:#?}");
        assert!(mistakes.iter().all(|mistake| mistake.starts_with("model.churn.")), "{mistakes:#?}");
        assert!(mistakes.iter().any(|mistake| mistake.ends_with("did you mean threshold?")), "{mistakes:#?}");
        assert_eq!(load(&[], Some("model = 1")).unwrap_err().len(), 1);
        assert_eq!(load(&[], Some("[model]\nother = 1")).unwrap_err().len(), 1);
    }

    #[test]
    fn the_processor_is_always_the_last_provider() {
        for (text, expected) in [
            ("cpu", &[][..]),
            ("cuda", &[ExecutionProvider::Cuda]),
            ("tensorrt, cuda,cpu", &[ExecutionProvider::TensorRt, ExecutionProvider::Cuda]),
        ] {
            assert_eq!(providers(text).unwrap(), expected, "{text}");
        }
        for wrong in ["", "gpu", "cpu,cuda", "cuda,cuda", "cuda,,cpu", "cpu,cpu"] {
            assert!(providers(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(duration("90d"), Ok(Duration::from_secs(90 * 86_400)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        for bad in ["", "5", "s", "-1s", "1.5s", "99999999999999999999s", "18446744073709551615d", "1w"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert_eq!(interval("10ms"), Ok(Duration::from_millis(10)));
        assert!(interval("0s").is_err() && interval("9ms").is_err() && interval("x").is_err());
    }
}
