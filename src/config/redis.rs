//! Settings of Redis, where replicas share quotas and scores.

use std::path::PathBuf;
use std::time::Duration;

use super::reader::Reader;
use super::values::{duration, optional_path, text};
use crate::redis::Address;

/// Redis, where replicas share quotas and scores.
#[derive(Debug, Clone)]
pub struct RedisSettings {
    /// `SCOREGATE_REDIS_URL` (none): one server, sentinels or a cluster, and who the gateway is there.
    pub address: Address,
    /// `SCOREGATE_REDIS_PASSWORD_FILE` (none): the password, in place of one in the URL.
    pub password_file: Option<PathBuf>,
    /// `SCOREGATE_REDIS_CA` (the system's): whose certificates are trusted where the URL says TLS, PEM.
    pub ca: Option<PathBuf>,
    /// `SCOREGATE_REDIS_CERT` and `SCOREGATE_REDIS_KEY` (none): the certificate that the gateway shows, PEM, and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// `SCOREGATE_REDIS_TIMEOUT` (20ms): how long a request waits for Redis at most.
    pub timeout: Duration,
}

impl Reader {
    /// Redis, where it is named.
    pub(super) fn redis(&mut self) -> Option<RedisSettings> {
        let url = self.take("SCOREGATE_REDIS_URL", "redis.url", "", text);
        let password_file =
            self.take("SCOREGATE_REDIS_PASSWORD_FILE", "redis.password_file", "", optional_path);
        let ca = self.take("SCOREGATE_REDIS_CA", "redis.ca", "", optional_path);
        let cert = self.take("SCOREGATE_REDIS_CERT", "redis.cert", "", optional_path);
        let key = self.take("SCOREGATE_REDIS_KEY", "redis.key", "", optional_path);
        let timeout = self.take("SCOREGATE_REDIS_TIMEOUT", "redis.timeout", "20ms", |text| {
            let found = duration(text)?;
            let is_sensible = (Duration::from_millis(1)..=Duration::from_secs(10)).contains(&found);
            if is_sensible { Ok(found) } else { Err("a duration from 1ms to 10s".into()) }
        });
        if url.is_empty() {
            if password_file.is_some() || ca.is_some() || cert.is_some() || key.is_some() {
                self.mistakes.push(
                    "SCOREGATE_REDIS_URL (redis.url) is missing: a password file and certificates are for it"
                        .into(),
                );
            }
            return None;
        }
        // Not read by `take`, which shows what it cannot read: there may be a password in it.
        let address: Address = match url.parse() {
            Ok(address) => address,
            Err(expected) => {
                self.mistakes.push(format!("SCOREGATE_REDIS_URL (redis.url): expected {expected}"));
                return None;
            }
        };
        if (ca.is_some() || cert.is_some()) && !address.is_tls {
            self.mistakes.push(
                "SCOREGATE_REDIS_CA and SCOREGATE_REDIS_CERT (redis.ca, redis.cert) are for TLS: expected \
                 SCOREGATE_REDIS_URL with rediss in front"
                    .into(),
            );
        }
        if cert.is_some() != key.is_some() {
            self.mistakes.push(
                "SCOREGATE_REDIS_CERT and SCOREGATE_REDIS_KEY (redis.cert, redis.key): expected both or neither"
                    .into(),
            );
        }
        if password_file.is_some() && address.password.is_some() {
            self.mistakes.push(
                "SCOREGATE_REDIS_PASSWORD_FILE and the password in SCOREGATE_REDIS_URL: expected one of them"
                    .into(),
            );
        }
        Some(RedisSettings { address, password_file, ca, identity: cert.zip(key), timeout })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::tests::load;
    use crate::redis::Kind;

    #[test]
    fn redis_is_there_only_where_it_is_named() {
        assert!(load(&[], None).unwrap().redis.is_none());
        let file = "[redis]\nurl = \"rediss+sentinel://gate@a:1,b:2/main\"\npassword_file = \"p\"\nca = \"c\"\ncert = \"o\"\nkey = \"k\"\ntimeout = \"5ms\"\n";
        let redis = load(&[], Some(file)).unwrap().redis.unwrap();
        assert_eq!(redis.address.kind, Kind::Sentinel("main".into()));
        assert_eq!((redis.timeout, redis.address.nodes.len()), (Duration::from_millis(5), 2));
        assert_eq!((redis.password_file, redis.ca), (Some("p".into()), Some("c".into())));
        assert_eq!(redis.identity, Some(("o".into(), "k".into())));
    }

    #[test]
    fn mistakes_name_the_setting_and_no_password() {
        let url = ("SCOREGATE_REDIS_URL", "redis://:secret@a:1");
        for (environment, expected) in [
            (vec![("SCOREGATE_REDIS_URL", "http://:secret@a")], "expected redis://"),
            (vec![("SCOREGATE_REDIS_CA", "c")], "is missing"),
            (vec![url, ("SCOREGATE_REDIS_KEY", "k")], "both or neither"),
            (vec![url, ("SCOREGATE_REDIS_CA", "c")], "rediss in front"),
            (vec![url, ("SCOREGATE_REDIS_PASSWORD_FILE", "p")], "one of them"),
            (vec![url, ("SCOREGATE_REDIS_TIMEOUT", "0s")], "1ms to 10s"),
        ] {
            let mistakes = load(&environment, None).unwrap_err();
            assert_eq!(mistakes.len(), 1, "{mistakes:#?}");
            assert!(mistakes[0].contains(expected) && !mistakes[0].contains("secret"), "{mistakes:#?}");
        }
        let settings = load(&[url], None).unwrap();
        assert!(!format!("{settings:?}").contains("secret"));
    }
}
