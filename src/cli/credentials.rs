//! `scoregate keys`, `clients` and `token`: who may score.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use clap::builder::NonEmptyStringValueParser;
use clap::{Args, Subcommand};
use secrecy::ExposeSecret;
use serde_json::json;

use super::{Common, print};
use crate::audit;
use crate::auth::Scope;
use crate::auth::file::NewEntry;
use crate::auth::issuer;
use crate::auth::issuer::clients::ClientsFile;
use crate::auth::keys::KeysFile;
use crate::config::{self, OauthSettings};

/// What `keys create` and `clients create` ask for alike.
#[derive(Debug, Args)]
pub(super) struct NewArgs {
    #[command(flatten)]
    common: Common,
    /// What it is for.
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
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
    /// Those whose data may be mixed with its own [default: nobody].
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    tenant: Option<String>,
    /// The plan that says how many rows it may have scored, a table `[plan.NAME]` of the settings file [default: the default
    /// quota].
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    plan: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum KeysCommand {
    /// Make a key and print it, once and alone, on standard output; only its digest is stored.
    Create(NewArgs),
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
pub(super) enum ClientsCommand {
    /// Make a client of the built-in issuer and print its id and secret, once and alone, on standard output; only the
    /// secret's hash is stored.
    Create(NewArgs),
    /// List the clients: id, name, scopes, models, end of validity.
    List {
        #[command(flatten)]
        common: Common,
    },
    /// Remove every client of a name, or the one with an id; tokens that it has hold until they expire.
    Revoke {
        #[command(flatten)]
        common: Common,
        /// The name or id.
        client: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct TokenArgs {
    #[command(flatten)]
    common: Common,
    /// The client's name or id.
    #[arg(long)]
    client: String,
    /// What it may be used for, separated by commas [default: all that the client may do].
    #[arg(long, value_delimiter = ',')]
    scopes: Vec<String>,
    /// How long it is valid, such as `5m` (`SCOREGATE_OAUTH_TOKEN_TTL` at most) [default: that].
    #[arg(long, value_parser = config::duration)]
    expires: Option<Duration>,
}

impl NewArgs {
    fn entry(&self) -> NewEntry {
        NewEntry {
            name: self.name.clone(),
            scopes: self.scopes.clone(),
            models: self.models.clone(),
            expires: self.expires,
            tenant: self.tenant.clone(),
            plan: self.plan.clone(),
        }
    }
}

pub(super) fn keys(command: &KeysCommand) -> anyhow::Result<()> {
    let file = |common: &Common| -> anyhow::Result<KeysFile> {
        let settings = common.settings(BTreeMap::new())?;
        Ok(KeysFile::new(settings.auth.api_keys_file, audit::Log::new(&settings.state.dir)))
    };
    match command {
        KeysCommand::Create(new) => {
            let (_, key) = file(&new.common)?.create(new.entry(), SystemTime::now())?;
            print(&key)
        }
        KeysCommand::List { common } => {
            let keys = file(common)?.read()?;
            let rows = keys
                .iter()
                .map(|key| row(&key.id, &key.name, &key.scopes, &key.models, key.expires_at.as_deref()));
            print(&table(rows))
        }
        KeysCommand::Revoke { common, key } => {
            let revoked = file(common)?.revoke(key)?;
            print(&format!("{} key(s) revoked", revoked.len()))
        }
    }
}

pub(super) fn clients(command: &ClientsCommand) -> anyhow::Result<()> {
    let file = |common: &Common| -> anyhow::Result<ClientsFile> {
        let settings = common.settings(BTreeMap::new())?;
        Ok(ClientsFile::new(settings.auth.clients_file, audit::Log::new(&settings.state.dir)))
    };
    match command {
        ClientsCommand::Create(new) => {
            let (id, secret) = file(&new.common)?.create(new.entry(), SystemTime::now())?;
            print(&json!({"client_id": id, "client_secret": secret.expose_secret()}).to_string())
        }
        ClientsCommand::List { common } => {
            let clients = file(common)?.read()?;
            let rows = clients.iter().map(|client| {
                row(&client.id, &client.name, &client.scopes, &client.models, client.expires_at.as_deref())
            });
            print(&table(rows))
        }
        ClientsCommand::Revoke { common, client } => {
            let revoked = file(common)?.revoke(client)?;
            print(&format!("{} client(s) revoked", revoked.len()))
        }
    }
}

pub(super) fn token(args: &TokenArgs) -> anyhow::Result<()> {
    let settings = args.common.settings(BTreeMap::new())?;
    let oauth: &OauthSettings = settings.oauth.as_ref().context(
        "the built-in issuer is off; set SCOREGATE_OAUTH_ISSUER to the URL that clients reach the gateway by, such as \
         http://127.0.0.1:8080, for the gateway and for this command",
    )?;
    let log = audit::Log::new(&settings.state.dir);
    let scopes = args.scopes.join(" ");
    let requested = (!scopes.is_empty()).then_some(scopes.as_str());
    let token = issuer::make(oauth, log, &args.client, requested, args.expires, SystemTime::now())?;
    print(token.token.expose_secret())
}

fn row(id: &str, name: &str, scopes: &[Scope], models: &[String], expires_at: Option<&str>) -> String {
    let scopes: Vec<_> = scopes.iter().map(|scope| scope.as_str()).collect();
    let expires = expires_at.unwrap_or("never");
    format!("{id}\t{name}\t{}\t{}\t{expires}", scopes.join(","), models.join(","))
}

fn table(rows: impl Iterator<Item = String>) -> String {
    let head = "ID\tNAME\tSCOPES\tMODELS\tEXPIRES".to_string();
    std::iter::once(head).chain(rows).collect::<Vec<_>>().join("\n")
}
