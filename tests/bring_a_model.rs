//! The page docs/bring-a-model.md: its blocks are run as they stand, in their order, and the scored answers compared.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::support::page::{Block, blocks};
use crate::support::{Gateway, PATIENCE, Settings, python, scratch, wait_within};

/// The address that the page's client asks.
const DOCUMENTED: &str = "http://127.0.0.1:8080";
/// How far the served answer may be from the one that the library gave.
const TOLERANCE: f64 = 1e-5;
/// The libraries that the page has a snippet for.
const LIBRARIES: usize = 5;

#[test]
fn every_library_gets_from_fit_to_a_scored_request() {
    let mut reader = Reader::new();
    let mut shared = None;
    let mut scored = Vec::new();
    for Block { language, text } in blocks(include_str!("../docs/bring-a-model.md")) {
        match (language.as_str(), &shared) {
            // The first block of Python is the beginning of all others.
            ("python", None) => shared = Some(text),
            ("python", Some(shared)) => reader.fit(&format!("{shared}\n{text}")),
            ("sh", _) if text.trim() == "scoregate serve" => reader.serve(),
            ("sh", _) if text.starts_with("curl") => scored.push(reader.score(&text)),
            ("sh", _) => reader.said.push_str(&reader.shell(&text)),
            // What a program printed, whose figures differ from machine to machine.
            ("text", _) => {
                let said = without_figures(&reader.said);
                for line in without_figures(&text).lines() {
                    assert!(said.lines().any(|said| said == line), "no import said: {line}\n{said}");
                }
            }
            _ => {}
        }
    }
    scored.sort();
    scored.dedup();
    assert_eq!(scored.len(), LIBRARIES, "{scored:?}");
}

/// Somebody who follows the page, in a directory of their own.
struct Reader {
    directory: tempfile::TempDir,
    gateway: Option<Gateway>,
    /// What the commands printed.
    said: String,
    /// The probability that the library gave for the row that is sent next.
    expected: f64,
}

impl Reader {
    fn new() -> Self {
        let directory = tempfile::tempdir_in(scratch()).unwrap();
        Self { directory, gateway: None, said: String::new(), expected: f64::NAN }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Runs a script, which prints the library's own answer at the end.
    fn fit(&mut self, script: &str) {
        std::fs::write(self.file("fit.py"), script).unwrap();
        let mut command = Command::new(python());
        let output = command
            .arg("fit.py")
            .env("ORT_DISABLE_TELEMETRY", "1")
            .current_dir(self.directory.path())
            .output();
        let said = succeeded(script, &output.unwrap());
        self.expected = said.split_whitespace().last().unwrap().parse().unwrap();
    }

    fn shell(&self, block: &str) -> String {
        let programs = Path::new(env!("CARGO_BIN_EXE_scoregate")).parent().unwrap();
        let path = format!("{}:/usr/local/bin:/usr/bin:/bin", programs.display());
        let mut command = Command::new("sh");
        command.args(["-e", "-c", block]).env_clear().env("PATH", path).current_dir(self.directory.path());
        succeeded(block, &command.output().unwrap())
    }

    /// Starts the gateway over what is in the directory by then.
    fn serve(&mut self) {
        let keys = self.file("api_keys.json");
        let settings = Settings::new()
            .models(&self.file("onnx_models"))
            .set("SCOREGATE_API_KEYS_FILE", keys.to_str().unwrap());
        self.gateway = Some(settings.start());
    }

    /// Sends the page's request until the model is there, and compares; returns the model's name.
    fn score(&self, block: &str) -> String {
        assert!(block.contains(DOCUMENTED), "{block}");
        let gateway = self.gateway.as_ref().expect("the page starts the gateway before it asks it");
        let request = block.replace(DOCUMENTED, &format!("http://{}", gateway.addr));
        let answer: Value = wait_within(PATIENCE, || {
            let answer: Value = serde_json::from_str(&self.shell(&request)).unwrap();
            (answer["code"] != "unknown_model").then_some(answer)
        })
        .unwrap();
        let mut members = answer.as_object().unwrap().iter();
        let (name, probability) =
            members.find(|(name, _)| name.ends_with("_probability")).unwrap_or_else(|| panic!("{answer}"));
        let difference = (probability.as_f64().unwrap() - self.expected).abs();
        assert!(difference <= TOLERANCE, "{difference}: {answer}");
        name.trim_end_matches("_probability").into()
    }
}

/// What a program printed; it has to have ended well.
fn succeeded(block: &str, output: &Output) -> String {
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{block}\n{printed}\n{}", String::from_utf8_lossy(&output.stderr));
    printed.into_owned()
}

/// The same text with one sign for every run of digits.
fn without_figures(text: &str) -> String {
    let mut plain = String::new();
    for letter in text.chars() {
        match letter {
            '0'..='9' if plain.ends_with('#') => {}
            '0'..='9' => plain.push('#'),
            letter => plain.push(letter),
        }
    }
    plain
}
