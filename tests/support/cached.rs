//! What tests of the cache of scores share: gateways that keep scores, callers of several tenants, and what is told and counted.

use std::path::PathBuf;

use super::{Answer, Client, Gateway, Request, Settings};

/// The file with the key of the cache that replicas share.
pub(crate) const KEY: &[u8; 48] = b"the key of the cache, which is long enough to do";

/// Callers whom several gateways know.
#[derive(Debug)]
pub(crate) struct Callers(Settings);

impl Callers {
    pub(crate) fn new() -> Self {
        Self(Settings::bare())
    }

    /// A key of a caller of this tenant.
    pub(crate) fn of(&self, name: &str, tenant: &str) -> String {
        self.0.key_with(&["--name", name, "--scopes", "score:predict", "--tenant", tenant])
    }

    /// A key of a caller without a tenant.
    pub(crate) fn alone(&self, name: &str) -> String {
        self.with_scopes(name, "score:predict,models:read")
    }

    /// A key of a caller without a tenant that may do this.
    pub(crate) fn with_scopes(&self, name: &str, scopes: &str) -> String {
        self.0.key_with(&["--name", name, "--scopes", scopes])
    }

    /// What identifies a caller.
    pub(crate) fn id(&self, name: &str) -> String {
        let file = std::fs::read(self.file()).unwrap();
        let keys: serde_json::Value = serde_json::from_slice(&file).unwrap();
        let key = keys.as_array().unwrap().iter().find(|key| key["name"] == name).unwrap();
        key["id"].as_str().unwrap().into()
    }

    fn file(&self) -> PathBuf {
        self.0.directory().join("api_keys.json")
    }

    /// A gateway that knows them, and keeps scores in this way.
    pub(crate) fn gateway(&self, mode: &str) -> Settings {
        Settings::new()
            .set("SCOREGATE_API_KEYS_FILE", self.file().to_str().unwrap())
            .set("SCOREGATE_CACHE", mode)
    }

    /// A gateway that knows them, and keeps scores in Redis under this key.
    pub(crate) fn replica(&self, redis: &str, key: &[u8]) -> Settings {
        let settings = self.gateway("redis").set("SCOREGATE_REDIS_URL", redis);
        std::fs::write(settings.directory().join("cache.key"), key).unwrap();
        settings
            .set("SCOREGATE_CACHE_KEY_FILE", "cache.key")
            // A machine that is busy with all tests at once must not look like a lost Redis.
            .set("SCOREGATE_REDIS_TIMEOUT", "5s")
    }
}

/// Posts JSON.
pub(crate) fn post(target: &str, key: &str, body: impl AsRef<[u8]>) -> Request {
    Request::post(target, body).header("X-Api-Key", key)
}

/// What an answer says of the cache; its times, which are checked to be less than a minute, as `T`.
pub(crate) fn told(answer: &Answer) -> String {
    let told = answer.header("cache-status").unwrap_or("nothing");
    let mut parts = told.split("; ttl=");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(|character: char| !character.is_ascii_digit()).unwrap_or(part.len());
        let ttl: u64 = part[..end].parse().unwrap();
        assert!(ttl < 60, "{told}");
        text.push_str("; ttl=T");
        text.push_str(&part[end..]);
    }
    text
}

/// An answer without the identifiers of predictions, which are new in each.
pub(crate) fn without_ids(text: &str) -> String {
    let is_part = |character: char| character.is_ascii_digit() || character.is_ascii_uppercase();
    let mut out = String::new();
    let mut ids = 0;
    for word in text.split_inclusive(|character: char| !is_part(character)) {
        let id = word.trim_end_matches(|character: char| !is_part(character));
        if id.len() == 26 {
            ids += 1;
            out.push_str("ID");
            out.push_str(&word[id.len()..]);
        } else {
            out.push_str(word);
        }
    }
    assert!(ids > 0, "{text}");
    out
}

/// A number among a gateway's metrics, by its name and labels.
pub(crate) fn metric(gateway: &Gateway, name: &str) -> u64 {
    let metrics = Client::connect(gateway.admin_addr).ask(&Request::get("/metrics")).text();
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{name}: {metrics}")).parse().unwrap()
}

/// How many rows had this outcome at a level of a gateway's cache.
pub(crate) fn rows(gateway: &Gateway, level: &str, outcome: &str) -> u64 {
    metric(gateway, &format!("scoregate_cache_rows_total{{level=\"{level}\",outcome=\"{outcome}\"}}"))
}

/// The names of the scores in a Redis.
pub(crate) fn scores(redis: &super::redis::Redis) -> Vec<String> {
    let mut keys = redis.keys();
    keys.retain(|key| key.starts_with("scoregate:score:"));
    keys
}
