//! Tokens of two authorisation servers that others have written, and changes of their keys.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::support::tokens::decode;
use crate::support::world::bearer;
use crate::support::{Client, Gateway, Request, Settings, node_packages, node_program, python, wait_for};

/// What the servers' tokens are for.
const RESOURCE: &str = "https://scores.example";
/// What all of their clients know.
const SECRET: &str = "sesame";

/// A running authorisation server; its clients are called by the signatures of their tokens.
struct Server {
    child: Child,
    commands: ChildStdin,
    said: BufReader<ChildStdout>,
    issuer: String,
}

impl Server {
    fn start(mut command: Command) -> Self {
        let command = command.args([RESOURCE, SECRET]).env_remove("NODE_OPTIONS");
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let (commands, said) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut server = Self { child, commands, said: BufReader::new(said), issuer: String::new() };
        server.issuer = server.line();
        assert!(server.issuer.starts_with("http://127.0.0.1:"), "{}", server.issuer);
        server
    }

    /// `oidc-provider` on Node.
    fn oidc_provider() -> Self {
        // Node looks for packages beside the script.
        let script = node_packages().join("authorization_server.mjs");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/node/authorization_server.mjs");
        fs::copy(source, &script).unwrap();
        let mut command = Command::new(node_program());
        command.arg(script);
        Self::start(command)
    }

    /// Authlib on Flask.
    fn authlib() -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/authorization_server.py");
        let mut command = Command::new(python());
        command.arg("-B").arg(script);
        Self::start(command)
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.said.read_line(&mut line).unwrap() > 0, "the server has ended: {:?}", self.child.wait());
        line.trim_end().into()
    }

    /// Changes its keys.
    fn tell(&mut self, command: &str) {
        writeln!(self.commands, "{command}").unwrap();
        assert_eq!(self.line(), "done");
    }

    /// A token of this client, which has asked for `scope`.
    fn token(&self, client: &str, scope: &str) -> String {
        let addr: SocketAddr = self.issuer.strip_prefix("http://").unwrap().parse().unwrap();
        let credentials = STANDARD.encode(format!("{client}:{SECRET}"));
        let form = format!("grant_type=client_credentials&scope={}", scope.replace(' ', "+"));
        let request = Request::post("/token", form)
            .content_type("application/x-www-form-urlencoded")
            // Plain HTTP is taken to be safe on this machine only.
            .without("host")
            .header("Host", addr.to_string())
            .header("Authorization", format!("Basic {credentials}"));
        let answer = Client::connect(addr).ask(&request);
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.json()["token_type"], "Bearer");
        answer.json()["access_token"].as_str().unwrap().into()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A gateway that trusts the server, whose settings are completed by `more`.
fn gateway(server: &Server, more: &str) -> Gateway {
    let settings = Settings::new();
    fs::write(settings.directory().join("client-secret.txt"), SECRET).unwrap();
    let issuer = &server.issuer;
    let file = format!(
        "[[auth.issuer]]\nissuer = \"{issuer}\"\naudience = \"{RESOURCE}\"\nrefresh = \"1s\"\ncooldown = \"1s\"\n{more}"
    );
    fs::write(settings.directory().join("scoregate.toml"), file).unwrap();
    settings.start()
}

fn header(token: &str) -> serde_json::Value {
    serde_json::from_slice(&decode(token.split('.').next().unwrap())).unwrap()
}

fn status(gateway: &Gateway, token: &str) -> u16 {
    gateway.ask(&bearer(token)).status
}

/// Tokens of every kind of signature hold, and the keys change under them.
fn check(mut server: Server, signatures: &[&str], key_set: &str, introspection: &str) {
    const ALL: &str = "score:predict models:read";
    // All that the gateway is told is the issuer: where its keys are it finds out.
    let discovers = gateway(&server, "");
    let tokens =
        |server: &Server| signatures.iter().map(|client| server.token(client, ALL)).collect::<Vec<_>>();
    let first = tokens(&server);
    for (client, token) in signatures.iter().zip(&first) {
        assert_eq!(header(token)["alg"], *client);
        wait_for("the keys", || (status(&discovers, token) == 200).then_some(()));
    }
    let answer = discovers.ask(&bearer(&server.token("ES256", "models:read")));
    assert_eq!((answer.status, answer.code().as_str()), (403, "insufficient_scope"), "{}", answer.text());
    let of_a_model = server.token("ES256", "score:predict model:churn");
    assert_eq!(status(&discovers, &of_a_model), 200);
    let elsewhere = Request::post("/v1/models/saas_churn/predict", "{}")
        .header("Authorization", format!("Bearer {of_a_model}"));
    assert_eq!(discovers.ask(&elsewhere).code(), "model_not_allowed");

    // Opaque tokens are asked about, while others are checked with the keys.
    let more = format!(
        "jwks = \"{0}{key_set}\"\nintrospection = \"{0}{introspection}\"\nintrospection_client_id = \"gateway\"\n\
         introspection_client_secret_file = \"client-secret.txt\"\n",
        server.issuer
    );
    let asks = gateway(&server, &more);
    let opaque = server.token("opaque", ALL);
    assert!(!opaque.contains('.'), "{opaque}");
    assert_eq!(status(&asks, &opaque), 200, "{}", asks.ask(&bearer(&opaque)).text());
    assert_eq!(asks.ask(&bearer(&server.token("opaque", "models:read"))).code(), "insufficient_scope");
    let unknown = asks.ask(&bearer(&format!("{opaque}x")));
    assert_eq!((unknown.status, unknown.code().as_str()), (401, "invalid_token"), "{}", unknown.text());
    wait_for("the keys", || (status(&asks, &first[0]) == 200).then_some(()));
    assert_eq!(status(&discovers, &opaque), 401, "nobody is asked where nobody was named");

    // New keys: their tokens hold at once, and the old ones as long as their keys are published.
    server.tell("rotate");
    let second = tokens(&server);
    for ((client, token), old) in signatures.iter().zip(&second).zip(&first) {
        wait_for("the new keys", || (status(&discovers, token) == 200).then_some(()));
        let [new, old] = [token, old].map(|token| header(token)["kid"].as_str().unwrap().to_owned());
        assert_ne!(new, old, "{client}");
    }
    for token in &first {
        assert_eq!(status(&discovers, token), 200, "a token by an old key that is still published");
    }
    server.tell("withdraw");
    for token in &first {
        wait_for("the end of the old keys", || (status(&discovers, token) == 401).then_some(()));
    }
    for token in &second {
        assert_eq!(status(&discovers, token), 200);
    }
    // The server gone: what it has signed holds.
    let unseen = server.token("ES256", ALL);
    drop(server);
    assert_eq!((status(&discovers, &second[0]), status(&discovers, &unseen)), (200, 200));
}

#[test]
fn tokens_of_oidc_provider_hold_through_a_change_of_keys() {
    let signatures = ["RS256", "PS256", "ES256", "ES384", "EdDSA"];
    check(Server::oidc_provider(), &signatures, "/jwks", "/token/introspection");
}

#[test]
fn tokens_of_authlib_hold_through_a_change_of_keys() {
    check(Server::authlib(), &["RS256", "ES256"], "/keys", "/introspect");
}
