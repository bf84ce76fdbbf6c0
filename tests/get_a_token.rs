//! The page docs/get-a-token.md: its blocks are run as they stand, in their order, by a shell, by Python and by a browser.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::support::authority::{Authority, Reply};
use crate::support::page::{Block, blocks};
use crate::support::tokens::{Key, Mint, key_set};
use crate::support::world::bearer;
use crate::support::{Gateway, REFERENCE, Settings, python, scratch, wait_for};

/// The address of the gateway, of pages and of the company's provider, as the page has them.
const GATEWAY: &str = "http://127.0.0.1:8080";
const PAGES: &str = "http://127.0.0.1:8000";
const PROVIDER: &str = "https://login.example.com/realms/main";

#[test]
fn every_block_of_the_page_does_what_it_says() {
    let mut reader = Reader::new();
    let (mut shells, mut scripts, mut pages, mut files) = (0, 0, 0, 0);
    for Block { language, text } in blocks(include_str!("../docs/get-a-token.md")) {
        match language.as_str() {
            "sh" if text.trim_end().ends_with("scoregate serve") => reader.serve(&text),
            "sh" => {
                shells += 1;
                reader.shell(&text);
            }
            "python" => {
                scripts += 1;
                reader.script(&text);
            }
            "js" => {
                pages += 1;
                reader.browse(&text);
            }
            "toml" => {
                files += 1;
                reader.settings(&text);
            }
            other => panic!("nobody runs {other}"),
        }
    }
    assert_eq!((shells, scripts, pages, files), (4, 2, 1, 3), "blocks that were run");
    assert_eq!(
        reader.scores.len(),
        5,
        "what was scored: twice by a shell, twice by Python, once by a browser"
    );
    assert!(reader.scores.windows(2).all(|pair| pair[0] == pair[1]), "{:?}", reader.scores);
}

/// Somebody who follows the page, in a directory of their own.
struct Reader {
    directory: tempfile::TempDir,
    /// Where pages come from, and the company's provider.
    elsewhere: Authority,
    key: Key,
    /// The gateway that was started last, and the one before that.
    gateway: Option<Gateway>,
    before: Option<Gateway>,
    scores: Vec<f64>,
}

impl Reader {
    fn new() -> Self {
        let (elsewhere, key) = (Authority::start(), Key::p256("key"));
        let issuer = format!("{}/realms/main", elsewhere.url());
        let metadata = json!({"issuer": issuer, "jwks_uri": format!("{issuer}/keys")});
        elsewhere.set("/.well-known/oauth-authorization-server/realms/main", Reply::Json(metadata));
        elsewhere.set("/realms/main/keys", Reply::Json(key_set([key.jwk()])));
        let directory = tempfile::tempdir_in(scratch()).unwrap();
        Self { directory, elsewhere, key, gateway: None, before: None, scores: Vec::new() }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn gateway(&self) -> &Gateway {
        self.gateway.as_ref().expect("the page starts the gateway before it asks it")
    }

    /// Starts a gateway with the variables that stand before the command.
    fn serve(&mut self, block: &str) {
        let mut settings = Settings::new();
        for (variable, name) in [
            ("SCOREGATE_API_KEYS_FILE", "api_keys.json"),
            ("SCOREGATE_OAUTH_CLIENTS_FILE", "oauth_clients.json"),
            ("SCOREGATE_OAUTH_KEYS_FILE", "state/issuer_keys.json"),
        ] {
            settings = settings.set(variable, self.file(name).to_str().unwrap());
        }
        fs::create_dir_all(self.file("state")).unwrap();
        let is_company = block.contains(PROVIDER);
        let block = block.replace(PAGES, &self.elsewhere.url());
        let block = block.replace(PROVIDER, &format!("{}/realms/main", self.elsewhere.url()));
        for word in block.split_whitespace() {
            if let Some((variable, value)) = word.split_once('=') {
                settings = settings.set(variable, value);
            }
        }
        let gateway = settings.start();
        if is_company {
            let issuer = format!("{}/realms/main", self.elsewhere.url());
            let token = Mint::new(&self.key, &issuer).claim("aud", json!("scoregate")).token();
            wait_for("the keys", || (gateway.ask(&bearer(&token)).status == 200).then_some(()));
        }
        self.before = self.gateway.replace(gateway);
    }

    /// Runs a block by the shell; what it prints is a scored customer, or a token to score one with.
    fn shell(&mut self, block: &str) {
        let address =
            self.gateway.as_ref().map_or_else(String::new, |gateway| format!("http://{}", gateway.addr));
        let asks = block.contains("curl");
        // The issuer's name is not where it is asked.
        let run = if asks { block.replace(GATEWAY, &address) } else { block.to_owned() };
        let programs = Path::new(env!("CARGO_BIN_EXE_scoregate")).parent().unwrap();
        let path = format!("{}:/usr/local/bin:/usr/bin:/bin", programs.display());
        let mut command = Command::new("sh");
        command.args(["-e", "-c", &run]).env_clear().env("PATH", path).current_dir(self.directory.path());
        let printed = succeeded(block, &command.output().unwrap());
        if asks {
            self.scores.push(probability(&serde_json::from_str(&printed).unwrap()));
        } else if block.contains("scoregate token") {
            let answer = self.gateway().ask(&bearer(printed.trim()));
            self.scores.push(answer.probability());
        }
    }

    /// Runs a script, which prints the probability.
    fn script(&mut self, block: &str) {
        assert!(block.contains(GATEWAY), "{block}");
        let block = block.replace(GATEWAY, &format!("http://{}", self.gateway().addr));
        fs::write(self.file("client.py"), &block).unwrap();
        let output =
            Command::new(python()).args(["-B", "client.py"]).current_dir(self.directory.path()).output();
        self.scores.push(succeeded(&block, &output.unwrap()).trim().parse().unwrap());
    }

    /// Has a browser run it in a page of another origin, once where that may call the gateway, and once where it may not.
    fn browse(&mut self, block: &str) {
        let shop: Value = serde_json::from_slice(&fs::read(self.file("shop.json")).unwrap()).unwrap();
        let call = format!("score({}, {}, {REFERENCE})", shop["client_id"], shop["client_secret"]);
        let page = |gateway: &Gateway| {
            let block = block.replace(GATEWAY, &format!("http://{}", gateway.addr));
            format!(
                "<!doctype html><title>customer</title><p id=answer>waiting</p><script>{block}\n\
                 const show = (text) => {{ document.getElementById('answer').textContent = text; }};\n\
                 {call}.then((answer) => show('scored ' + JSON.stringify(answer)), (error) => show('refused ' + error));\n\
                 </script>"
            )
        };
        let (open, closed) =
            (self.gateway(), self.before.as_ref().expect("a gateway without CORS was started first"));
        for (path, gateway) in [("/open", open), ("/closed", closed)] {
            self.elsewhere.set(path, Reply::body("text/html", page(gateway)));
        }
        let scored = self.shown("/open");
        let answer = scored.strip_prefix("scored ").unwrap_or_else(|| panic!("{scored}"));
        self.scores.push(probability(&serde_json::from_str(answer).unwrap()));
        let refused = self.shown("/closed");
        assert!(refused.starts_with("refused TypeError"), "{refused}");
    }

    /// What a page shows when it is done.
    fn shown(&self, path: &str) -> String {
        let profile = self.file("profile");
        let mut command = Command::new("chromium");
        // Without a sandbox, as it has to be for root; without time, which passes as fast as the page lets it.
        command.args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
        ]);
        command.arg(format!("--user-data-dir={}", profile.display()));
        command.args([
            "--virtual-time-budget=20000",
            "--dump-dom",
            &format!("{}{path}", self.elsewhere.url()),
        ]);
        let dom = succeeded(path, &command.output().unwrap());
        let answer = dom.split("<p id=\"answer\">").nth(1).unwrap_or_else(|| panic!("{dom}"));
        answer.split("</p>").next().unwrap().replace("&quot;", "\"").replace("&amp;", "&")
    }

    /// Reads a settings file with what is there by then; nobody is asked for keys.
    fn settings(&mut self, block: &str) {
        fs::write(self.file("scoregate.toml"), block).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_scoregate"));
        command.args(["keys", "list"]).env_clear().current_dir(self.directory.path());
        if block.contains("[[auth.certificate]]") {
            // What the page has said just before.
            let variables = ["SCOREGATE_TLS_CERT", "SCOREGATE_TLS_KEY", "SCOREGATE_TLS_CLIENT_CA"];
            command.envs(variables.map(|variable| (variable, "file.pem")));
        }
        succeeded(block, &command.output().unwrap());
        fs::write(self.file("scoregate.toml"), format!("{block}\nunknown = 1\n")).unwrap();
        assert!(!command.output().unwrap().status.success(), "the settings file was not read");
        fs::remove_file(self.file("scoregate.toml")).unwrap();
    }
}

fn probability(answer: &Value) -> f64 {
    answer["churn_probability"].as_f64().unwrap_or_else(|| panic!("{answer}"))
}

/// What a program printed; it has to have ended well.
fn succeeded(block: &str, output: &Output) -> String {
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{block}\n{printed}\n{}", String::from_utf8_lossy(&output.stderr));
    printed.into_owned()
}
