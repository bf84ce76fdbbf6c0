//! Builds each component once and holds them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use scoregate_model::runtime::{self, Runtime};

use crate::aside::Aside;
use crate::audit;
use crate::auth::Auth;
use crate::auth::issuer::{self, Issuer};
use crate::cache::{self, Cache};
use crate::config::{RuntimeSettings, Settings};
use crate::diff::golden::Diffs;
use crate::follow;
use crate::limiter::Limiter;
use crate::redis::{self, Redis};
use crate::registry::watch::Watcher;
use crate::registry::{self, Registry};
use crate::repository::{self, Store};
use crate::rollout::guard::{self, Guard};
use crate::rollout::shadow::Shadows;
use crate::scoring::Engine;
use crate::telemetry::Log;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::requests::Requests;
use crate::telemetry::trace::Tracer;
use crate::uploads::Uploads;
use crate::webhook::{self, Webhooks};

/// The components of a gateway.
#[derive(Debug)]
pub struct App {
    /// What the operator set.
    pub settings: Settings,
    /// Who may score.
    pub auth: Auth,
    /// The issuer that is built in, where it is switched on.
    pub issuer: Option<Issuer>,
    /// Where refused clients learn where tokens come from.
    pub resource_metadata: Arc<str>,
    /// Who did what.
    pub audit: audit::Log,
    /// Where models are published.
    pub store: Store,
    /// What is counted.
    pub metrics: Metrics,
    /// Watches each request.
    pub requests: Requests,
    /// How many rows callers may send.
    pub limiter: Limiter,
    /// Scores that were computed before.
    pub cache: Cache,
    /// Where work runs.
    pub engine: Engine,
    /// Compares versions with each other, beside the answers.
    pub shadows: Shadows,
    /// Tells somebody else what becomes of rollouts.
    pub webhooks: Webhooks,
    /// Where models go that are sent to be published.
    pub uploads: Uploads,
    /// Writes what is told of everything at once: neither those that serve wait for it, nor does it wait behind batches.
    pub telling: Aside,
    /// Where it is found out how versions differ.
    pub diffs: Diffs,
    /// Carries out what operators change in rollouts, one change after the other: however busy the gateway is, they are not held up.
    pub changing: Aside,
    registry: OnceLock<Arc<Registry>>,
    opened: AtomicBool,
    draining: AtomicBool,
}

/// Why a gateway cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of credentials or plans cannot be used.
    #[error(transparent)]
    File(#[from] follow::Error),
    /// The bucket of the models could never be used.
    #[error(transparent)]
    Store(#[from] repository::OpenError),
    /// Redis could never be reached.
    #[error(transparent)]
    Redis(#[from] redis::OpenError),
    /// The key of the cache cannot be used.
    #[error(transparent)]
    Cache(#[from] cache::Error),
    /// The built-in issuer cannot work.
    #[error(transparent)]
    Issuer(#[from] issuer::Error),
    /// Nobody could call it.
    #[error(
        "no API key is configured in {file}, and no issuer of access tokens either, so that nobody could call the gateway; \
         make a key with `scoregate keys create --name web --scopes score:predict,models:read`, or set SCOREGATE_JWT_ISSUER \
         or SCOREGATE_OAUTH_ISSUER"
    )]
    NoKeys {
        /// The keys file.
        file: String,
    },
    /// ONNX Runtime cannot be loaded.
    #[error(transparent)]
    Runtime(#[from] runtime::Error),
    /// No model can be served.
    #[error(transparent)]
    Registry(#[from] registry::Error),
    /// Nobody can be told of rollouts.
    #[error(transparent)]
    Webhook(#[from] webhook::Error),
    /// Traces cannot be sent.
    #[error("cannot start what sends traces")]
    Tracer(#[source] std::io::Error),
    /// The system has no more threads.
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
}

impl App {
    /// An app that knows its callers but has no models yet: see [`App::load_models`]. Long work goes to the
    /// blocking threads of the runtime that this is called from.
    ///
    /// # Errors
    /// [`Error::NoKeys`] if nobody could call it, [`Error::File`] if a file of credentials or plans cannot be used.
    pub fn new(settings: Settings) -> Result<Self, Error> {
        let audit = audit::Log::new(&settings.state.dir);
        let open = |oauth| Issuer::open(oauth, audit.clone(), SystemTime::now());
        let issuer = settings.oauth.as_ref().map(open).transpose()?;
        let auth = Auth::open(&settings, issuer.as_ref())?;
        let has_issuer = settings.oauth.is_some() || !settings.auth.issuers.is_empty();
        let has_certificate = settings.tls.is_some() && !settings.auth.certificates.is_empty();
        if auth.keys.get().is_empty() && !has_issuer && !has_certificate {
            return Err(Error::NoKeys { file: settings.auth.api_keys_file.display().to_string() });
        }
        let scoring = &settings.scoring;
        let metrics = Metrics::default();
        let engine = Engine::new(
            scoring.max_queued_rows,
            scoring.max_queued_bytes,
            scoring.inline_budget,
            settings.server.answer_timeout,
            tokio::runtime::Handle::current(),
            metrics.queue(),
        );
        let resource_metadata =
            format!("{}/.well-known/oauth-protected-resource", settings.public_url()).into();
        let tracer = settings.trace.as_ref().map(|trace| Tracer::start(trace, metrics.traces()));
        let counts = settings.metrics.then(|| metrics.requests());
        let requests = Requests::new(counts, tracer.transpose().map_err(Error::Tracer)?);
        let redis = settings.redis.as_ref();
        let redis = redis.map(|redis| Redis::open(redis, metrics.redis()));
        let redis = redis.transpose()?.map(Arc::new);
        let store = Store::open(&settings)?;
        if let Some(redis) = &redis {
            store.share(redis);
        }
        let cache = Cache::open(&settings.cache, redis.clone(), metrics.cache())?;
        let limiter = Limiter::open(&settings, redis, metrics.quota_rows())?;
        let webhooks = Webhooks::start(settings.webhook.as_ref(), metrics.webhooks())?;
        Ok(Self {
            auth,
            issuer,
            resource_metadata,
            audit,
            store,
            metrics,
            requests,
            limiter,
            cache,
            engine,
            shadows: Shadows::start(&settings.shadow).map_err(Error::Thread)?,
            webhooks,
            uploads: Uploads::new(&settings.state.dir),
            telling: Aside::start("scoregate-tell").map_err(Error::Thread)?,
            diffs: Diffs::start().map_err(Error::Thread)?,
            changing: Aside::start("scoregate-change").map_err(Error::Thread)?,
            registry: OnceLock::new(),
            opened: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            settings,
        })
    }

    /// Has each request leave a line in `log`, and counts the lines that are lost there.
    pub fn log_to(&mut self, log: &Log) {
        let access = log.access();
        self.metrics.watch(&access);
        self.requests.log(access);
    }

    /// Loads and warms the models of the repository, after unknown ones were tried; the gateway scores from then on, and
    /// follows what is published and promoted until it is about to stop.
    ///
    /// # Errors
    /// [`Error::Runtime`] if an execution provider that was asked for is missing, [`Error::Registry`] if no model can be
    /// served.
    pub fn load_models(self: &Arc<Self>, runtime: Runtime) -> Result<(), Error> {
        for provider in self.settings.execution_providers() {
            runtime.check_provider(provider)?;
        }
        self.store.follow(self.settings.models.poll_interval);
        let mut watcher = Watcher::new(self.settings.clone(), runtime);
        let registry = watcher.settle()?;
        let told = Arc::clone(&registry);
        self.store.on_change(move || told.wake());
        let default = &self.settings.models.default;
        if registry.live(default).is_none() {
            tracing::warn!(
                model.name = default,
                "the default model is not served: /v1/predict will answer 404"
            );
        }
        self.shadows.follow(Arc::clone(&registry));
        self.registry.set(registry).expect("models are loaded once");
        let app = Arc::clone(self);
        let thread = std::thread::Builder::new().name("scoregate-watch".into());
        thread
            .spawn(move || watcher.follow(|| app.draining.load(Ordering::Relaxed)))
            .map_err(Error::Thread)?;
        let app = Arc::clone(self);
        let thread = std::thread::Builder::new().name("scoregate-guard".into());
        thread.spawn(move || app.guard()).map_err(Error::Thread)?;
        Ok(())
    }

    /// Judges canaries until the gateway is about to stop.
    fn guard(&self) {
        let mut guard = Guard::default();
        while !self.draining.load(Ordering::Relaxed) {
            let look = AssertUnwindSafe(|| guard.look(self, SystemTime::now()));
            if catch_unwind(look).is_err() {
                tracing::error!("judging canaries panicked; this is a mistake in the gateway");
                guard = Guard::default();
            }
            std::thread::park_timeout(guard::INTERVAL);
        }
    }

    /// The models, once they are loaded.
    pub fn registry(&self) -> Option<&Registry> {
        self.registry.get().map(AsRef::as_ref)
    }

    /// Does without models: the gateway issues tokens only.
    pub fn without_models(&self) {
        self.registry.set(Arc::default()).expect("models are loaded once");
    }

    /// Begins readiness: models are loaded, and callers can be told from others.
    pub fn open(&self) {
        self.opened.store(true, Ordering::Relaxed);
    }

    /// Whether requests should be sent here: the gateway has opened and is not about to stop.
    pub fn is_ready(&self) -> bool {
        self.opened.load(Ordering::Relaxed) && !self.draining.load(Ordering::Relaxed)
    }

    /// Ends readiness for good.
    pub fn start_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }
}

/// Loads ONNX Runtime from where the settings or the executable's place say.
///
/// # Errors
/// [`runtime::Error`] if the library is missing or cannot be used.
pub fn load_runtime(settings: &RuntimeSettings) -> Result<Runtime, runtime::Error> {
    Runtime::load(&library(settings)?)
}

/// Where the library of ONNX Runtime is: where the settings say, else where the executable finds it.
///
/// # Errors
/// [`runtime::Error::LibraryMissing`] if it is nowhere.
pub fn library(settings: &RuntimeSettings) -> Result<PathBuf, runtime::Error> {
    match &settings.library {
        Some(library) => Ok(library.clone()),
        None => runtime::locate_library(&std::env::current_exe().unwrap_or_default()),
    }
}
