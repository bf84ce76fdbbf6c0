//! Settings of the cache of scores.

use std::path::PathBuf;
use std::time::Duration;

use super::reader::Reader;
use super::values::{count, interval, optional_path};

/// The longest that a score may be kept.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// The cache of scores.
#[derive(Debug, Clone)]
pub struct CacheSettings {
    /// `SCOREGATE_CACHE` (`auto`): whether and where scores are kept.
    pub mode: CacheMode,
    /// `SCOREGATE_CACHE_TTL` (60s): how long a score is kept.
    pub ttl: Duration,
    /// `SCOREGATE_CACHE_BYTES` (64 MiB): the memory for scores in this process, about.
    pub bytes: usize,
    /// `SCOREGATE_CACHE_KEY_FILE` (none): at least 32 random bytes that all replicas have and nobody else. Without it nothing is
    /// kept in Redis.
    pub key_file: Option<PathBuf>,
}

/// Whether and where scores are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheMode {
    /// Nowhere.
    Off,
    /// In this process and, where it can be, in Redis: each only where it saves time.
    Auto,
    /// Always in this process.
    Memory,
    /// Always in this process and in Redis.
    Redis,
}

impl CacheMode {
    /// As it is written in settings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Auto => "auto",
            Self::Memory => "memory",
            Self::Redis => "redis",
        }
    }
}

fn mode(text: &str) -> Result<CacheMode, String> {
    let modes = [CacheMode::Auto, CacheMode::Off, CacheMode::Memory, CacheMode::Redis];
    modes.into_iter().find(|mode| mode.as_str() == text).ok_or("auto, off, memory or redis".into())
}

impl Reader {
    pub(super) fn cache(&mut self, has_redis: bool) -> CacheSettings {
        let cache = CacheSettings {
            mode: self.take("SCOREGATE_CACHE", "cache.mode", "auto", mode),
            ttl: self.take("SCOREGATE_CACHE_TTL", "cache.ttl", "60s", |text| {
                let found = interval(text)?;
                if found <= LONGEST { Ok(found) } else { Err("a duration of at most 30d".into()) }
            }),
            bytes: self.take("SCOREGATE_CACHE_BYTES", "cache.bytes", "67108864", count),
            key_file: self.take("SCOREGATE_CACHE_KEY_FILE", "cache.key_file", "", optional_path),
        };
        for (is_there, missing) in [
            (has_redis, "SCOREGATE_REDIS_URL (redis.url)"),
            (
                cache.key_file.is_some(),
                "SCOREGATE_CACHE_KEY_FILE (cache.key_file), which all replicas share,",
            ),
        ] {
            if cache.mode == CacheMode::Redis && !is_there {
                self.mistakes.push(format!("SCOREGATE_CACHE=redis (cache.mode): {missing} is missing"));
            }
        }
        cache
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::load;
    use super::*;

    #[test]
    fn scores_are_kept_in_redis_only_with_a_key_of_its_own() {
        let cache = load(&[], None).unwrap().cache;
        assert_eq!((cache.mode, cache.ttl, cache.bytes), (CacheMode::Auto, Duration::from_secs(60), 1 << 26));
        let file = "[cache]\nmode = \"redis\"\nttl = \"5s\"\nbytes = 1000\nkey_file = \"k\"\n[redis]\nurl = \"redis://a\"\n";
        let cache = load(&[], Some(file)).unwrap().cache;
        assert_eq!((cache.mode, cache.ttl, cache.bytes), (CacheMode::Redis, Duration::from_secs(5), 1_000));
        assert_eq!(cache.key_file, Some("k".into()));
        let redis = ("SCOREGATE_CACHE", "redis");
        for (environment, expected) in [
            (vec![redis, ("SCOREGATE_REDIS_URL", "redis://a")], "SCOREGATE_CACHE_KEY_FILE"),
            (vec![redis, ("SCOREGATE_CACHE_KEY_FILE", "k")], "SCOREGATE_REDIS_URL"),
            (vec![("SCOREGATE_CACHE", "on")], "auto, off, memory or redis"),
            (vec![("SCOREGATE_CACHE_TTL", "0s")], "SCOREGATE_CACHE_TTL"),
            (vec![("SCOREGATE_CACHE_TTL", "31d")], "at most 30d"),
        ] {
            let mistakes = load(&environment, None).unwrap_err();
            assert!(mistakes.len() == 1 && mistakes[0].contains(expected), "{mistakes:?}");
        }
    }
}
