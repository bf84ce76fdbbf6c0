//! A gateway with a freshly trained model and a key of its own, as `demo` and `bench` need it; `demo` adds a client.

use std::ffi::OsStr;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::server::{Server, free_address};
use crate::workspace::{Workspace, capture, run};

/// The customers that the model is trained on.
const ROWS: &str = "20000";
const SEED: &str = "42";

/// A directory with data, a published model and a key.
pub(crate) struct Site {
    pub(crate) directory: PathBuf,
    pub(crate) data: PathBuf,
    pub(crate) models: PathBuf,
    pub(crate) key: String,
    keys_file: PathBuf,
    library: PathBuf,
    program: PathBuf,
}

/// A client of the built-in issuer.
pub(crate) struct Client {
    pub(crate) id: String,
    pub(crate) secret: String,
}

impl Site {
    /// Builds the release binaries, then simulates, fits and makes a key in `directory`, which is made anew.
    pub(crate) fn prepare(workspace: &Workspace, library: &Path, directory: &Path) -> Result<Self> {
        eprintln!("building the gateway and the trainer");
        run(workspace.cargo().args(["build", "--locked", "--release", "--bins"]).args([
            "-p",
            "scoregate",
            "-p",
            "scoregate-trainer",
        ]))?;
        if directory.exists() {
            fs::remove_dir_all(directory)
                .with_context(|| format!("could not clear {}", directory.display()))?;
        }
        fs::create_dir_all(directory).with_context(|| format!("could not create {}", directory.display()))?;
        let trainer = workspace.binary("release", "scoregate-trainer");
        let trainer = || {
            let mut command = workspace.clean_command(&trainer);
            command.current_dir(directory).env("ORT_DYLIB_PATH", library);
            command
        };

        let data = directory.join("churn.csv");
        eprintln!("simulating {ROWS} customers");
        run(trainer().args(["simulate", "--rows", ROWS, "--seed", SEED, "--out"]).arg(&data))?;

        let models = directory.join("onnx_models");
        eprintln!("fitting the churn model");
        run(trainer()
            .arg("fit")
            .arg("--data")
            .arg(&data)
            .arg("--schema")
            .arg(workspace.root.join("schemas/churn.json"))
            .arg("--models-dir")
            .arg(&models))?;

        let mut site = Self {
            directory: directory.to_owned(),
            data,
            models,
            key: String::new(),
            keys_file: directory.join("api_keys.json"),
            library: library.to_owned(),
            program: workspace.binary("release", "scoregate"),
        };
        eprintln!("making an API key");
        site.key = capture(
            workspace
                .clean_command(&site.program)
                .current_dir(directory)
                .args(["keys", "create", "--name", "demo", "--scopes", "score:predict,models:read"])
                .env("SCOREGATE_API_KEYS_FILE", &site.keys_file),
        )?;
        if !site.key.starts_with("sg_") || site.key.contains(char::is_whitespace) {
            bail!(
                "`scoregate keys create` is to print a key and nothing else on standard output, and did not"
            );
        }
        Ok(site)
    }

    /// Makes a client of the built-in issuer.
    pub(crate) fn make_client(&self, workspace: &Workspace) -> Result<Client> {
        let printed = capture(
            workspace
                .clean_command(&self.program)
                .current_dir(&self.directory)
                .args(["clients", "create", "--name", "shop", "--scopes", "score:predict,models:read"])
                .env("SCOREGATE_OAUTH_CLIENTS_FILE", self.clients_file()),
        )?;
        let client: Option<Client> = serde_json::from_str(&printed).ok().and_then(|client: Value| {
            let member = |name: &str| Some(client.get(name)?.as_str()?.to_owned());
            Some(Client { id: member("client_id")?, secret: member("client_secret")? })
        });
        client.context("`scoregate clients create` is to print a client's id and secret as JSON and nothing else, and did not")
    }

    fn clients_file(&self) -> PathBuf {
        self.directory.join("oauth_clients.json")
    }

    /// Publishes a model from outside: `arguments` are those of `scoregate import`, but for the repository.
    pub(crate) fn import<I>(&self, workspace: &Workspace, arguments: I) -> Result<()>
    where
        I: IntoIterator<Item: AsRef<OsStr>>,
    {
        run(workspace
            .clean_command(&self.program)
            .current_dir(&self.directory)
            .arg("import")
            .args(arguments)
            .env("ORT_DYLIB_PATH", &self.library)
            .env("SCOREGATE_MODELS_DIR", &self.models))
    }

    /// Starts the gateway, without waiting for it. Its log and its state are called `name`; a start of the same name finds
    /// the state of the one before.
    pub(crate) fn serve(&self, workspace: &Workspace, address: SocketAddr, name: &str) -> Result<Server> {
        self.serve_from(&self.models, workspace, address, name)
    }

    /// Starts the gateway with the issuer that is built in, for the clients of [`Site::make_client`].
    pub(crate) fn serve_and_issue(
        &self,
        workspace: &Workspace,
        address: SocketAddr,
        name: &str,
    ) -> Result<Server> {
        let mut command = self.command(&self.models, workspace, address, name)?;
        command
            .env("SCOREGATE_OAUTH_ISSUER", format!("http://{address}"))
            .env("SCOREGATE_OAUTH_CLIENTS_FILE", self.clients_file());
        self.start(&mut command, address, name)
    }

    /// Starts the gateway with further settings, or others than it has here.
    pub(crate) fn serve_with(
        &self,
        workspace: &Workspace,
        address: SocketAddr,
        name: &str,
        settings: &[(&str, String)],
    ) -> Result<Server> {
        let mut command = self.command(&self.models, workspace, address, name)?;
        command.envs(settings.iter().map(|(variable, value)| (variable, value)));
        self.start(&mut command, address, name)
    }

    /// Starts the gateway over another repository.
    pub(crate) fn serve_from(
        &self,
        models: &Path,
        workspace: &Workspace,
        address: SocketAddr,
        name: &str,
    ) -> Result<Server> {
        let mut command = self.command(models, workspace, address, name)?;
        // What is measured is scoring: the same rows again and again would not be run.
        command.env("SCOREGATE_CACHE", "off");
        self.start(&mut command, address, name)
    }

    fn start(&self, command: &mut Command, address: SocketAddr, name: &str) -> Result<Server> {
        Server::start("the gateway", command, address, &self.directory.join(format!("{name}.log")))
    }

    fn command(
        &self,
        models: &Path,
        workspace: &Workspace,
        address: SocketAddr,
        name: &str,
    ) -> Result<Command> {
        // A free port is only free as long as nobody takes it, so the admin one is looked for as late as possible.
        let admin = free_address(9090)?;
        let mut command = workspace.clean_command(&self.program);
        command
            .arg("serve")
            .current_dir(&self.directory)
            .env("ORT_DYLIB_PATH", &self.library)
            .env("SCOREGATE_ADDR", address.to_string())
            .env("SCOREGATE_ADMIN_ADDR", admin.to_string())
            .env("SCOREGATE_MODELS_DIR", models)
            .env("SCOREGATE_STATE_DIR", self.directory.join(format!("{name}.state")))
            .env("SCOREGATE_API_KEYS_FILE", &self.keys_file)
            // More than this machine can send: what counting rows costs is measured, and nothing is refused.
            .env("SCOREGATE_QUOTA", "1000000000/s")
            // No load balancer has to notice first that this one is about to go.
            .env("SCOREGATE_DRAIN_DELAY", "0s");
        Ok(command)
    }

    /// The one version of `model` that was published.
    pub(crate) fn package(&self, model: &str) -> Result<PathBuf> {
        let versions = self.models.join(model);
        let entries =
            fs::read_dir(&versions).with_context(|| format!("no model in {}", versions.display()))?;
        for entry in entries {
            let package = entry?.path();
            if package.join("model.onnx").exists() {
                return Ok(package);
            }
        }
        bail!("no version with a model.onnx in {}", versions.display())
    }
}

/// Where the gateway says that it is ready.
pub(crate) const READY: &str = "/health/ready";
/// How long it may take before a task gives up.
pub(crate) const READY_LIMIT: Duration = Duration::from_secs(30);
/// How long it may take to drain.
pub(crate) const DRAIN_LIMIT: Duration = Duration::from_secs(30);
