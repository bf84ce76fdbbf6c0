//! [`Address`]: where Redis is, as one URL says it.

use std::fmt;

use ::redis::{ConnectionAddr, IntoConnectionInfo};
use secrecy::SecretString;

/// What kind of Redis it is, and so how its servers are found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// One server.
    Single,
    /// Sentinels, which know the server that is master of this name.
    Sentinel(String),
    /// A cluster, of which some servers are known.
    Cluster,
}

/// Where Redis is, and who the gateway is there.
#[derive(Clone)]
pub struct Address {
    /// What kind of Redis it is.
    pub kind: Kind,
    /// Hosts and ports of the server, of sentinels, or of servers of the cluster.
    pub nodes: Vec<(String, u16)>,
    /// Whether every connection is encrypted.
    pub is_tls: bool,
    /// The ACL user; Redis's `default` if none is named.
    pub user: Option<String>,
    /// Its password.
    pub password: Option<SecretString>,
    /// The number of the database; a cluster has the first alone.
    pub database: i64,
}

/// What an address has to look like. What was found is not repeated: there may be a password in it.
const EXPECTED: &str = "redis://[user:password@]host:port[/database], redis+sentinel://[user:password@]host:port,…/master[/database] \
                        or redis+cluster://[user:password@]host:port,…; rediss in front instead of redis is TLS";

impl std::str::FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse(text).ok_or_else(|| EXPECTED.into())
    }
}

fn parse(text: &str) -> Option<Address> {
    let (scheme, rest) = text.split_once("://")?;
    let (tls, kind) = scheme.split_once('+').unwrap_or((scheme, ""));
    let is_tls = match tls {
        "redis" => false,
        "rediss" => true,
        _ => return None,
    };
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (credentials, hosts) = match authority.rsplit_once('@') {
        Some((credentials, hosts)) => (format!("{credentials}@"), hosts),
        None => (String::new(), authority),
    };
    let (kind, database) = match kind {
        "" => (Kind::Single, path),
        "cluster" if path.is_empty() => (Kind::Cluster, path),
        "sentinel" => {
            let (master, database) = path.split_once('/').unwrap_or((path, ""));
            if master.is_empty() {
                return None;
            }
            (Kind::Sentinel(master.to_owned()), database)
        }
        _ => return None,
    };
    if hosts.contains(',') && kind == Kind::Single {
        return None;
    }
    // The crate reads URLs of one host each.
    let read = |host: &str| format!("redis://{credentials}{host}/{database}").into_connection_info().ok();
    let nodes = hosts.split(',').map(|host| match read(host)?.addr() {
        ConnectionAddr::Tcp(host, port) => Some((host.clone(), *port)),
        _ => None,
    });
    let nodes: Vec<(String, u16)> = nodes.collect::<Option<_>>()?;
    let first = read(hosts.split(',').next()?)?;
    let first = first.redis_settings();
    Some(Address {
        kind,
        nodes,
        is_tls,
        user: first.username().map(str::to_owned),
        password: first.password().map(SecretString::from),
        database: first.db(),
    })
}

impl fmt::Debug for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Address")
            .field("kind", &self.kind)
            .field("nodes", &self.nodes)
            .finish_non_exhaustive()
    }
}

/// The address as it may be shown.
impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tls = if self.is_tls { "rediss" } else { "redis" };
        let kind = match self.kind {
            Kind::Single => "",
            Kind::Sentinel(_) => "+sentinel",
            Kind::Cluster => "+cluster",
        };
        write!(formatter, "{tls}{kind}://")?;
        for (at, (host, port)) in self.nodes.iter().enumerate() {
            let comma = if at > 0 { "," } else { "" };
            match host.contains(':') {
                true => write!(formatter, "{comma}[{host}]:{port}")?,
                false => write!(formatter, "{comma}{host}:{port}")?,
            }
        }
        match &self.kind {
            Kind::Sentinel(master) => write!(formatter, "/{master}"),
            Kind::Single | Kind::Cluster => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn one_url_names_a_server_sentinels_or_a_cluster() {
        for (text, shown, database) in [
            ("redis://cache", "redis://cache:6379", 0),
            ("redis://cache:1/2", "redis://cache:1", 2),
            ("rediss://[::1]:7", "rediss://[::1]:7", 0),
            ("redis+sentinel://a:1,b:2/main", "redis+sentinel://a:1,b:2/main", 0),
            ("rediss+sentinel://a:1,b:2/main/3", "rediss+sentinel://a:1,b:2/main", 3),
            ("redis+cluster://a:1,b,c:3", "redis+cluster://a:1,b:6379,c:3", 0),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!((address.to_string(), address.database), (shown.into(), database), "{text}");
        }
    }

    #[test]
    fn passwords_are_read_and_never_shown() {
        for text in [
            "redis://gate:p%40ss@a:1/2",
            "rediss+sentinel://gate:p%40ss@a:1,b:2/main/2",
            "redis+cluster://gate:p%40ss@a:1,b:2",
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.user.as_deref(), Some("gate"), "{text}");
            assert_eq!(address.password.as_ref().unwrap().expose_secret(), "p@ss", "{text}");
            assert!(!format!("{address:?} {address}").contains("p@ss"), "{text}");
        }
        let alone: Address = "redis://:secret@a".parse().unwrap();
        assert_eq!((alone.user, alone.password.unwrap().expose_secret()), (None, "secret"));
        let wrong = "redis://gate:secret@a:port".parse::<Address>().unwrap_err();
        assert!(!wrong.contains("secret"), "{wrong}");
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "cache:6379",
            "http://cache",
            "redis://",
            "redis://a,b",
            "redis://a:b",
            "redis://a/b",
            "redis+sentinel://a:1",
            "redis+sentinel://a:1/",
            "redis+cluster://a:1/1",
            "redis+cluster://a:1,",
            "redis+unix:///a",
            "unix:///a",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
