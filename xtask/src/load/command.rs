//! `cargo xtask load`: latency percentiles and error rate at a steady rate, on this machine only.

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use super::{Limit, Load, Pace};
use crate::requests;

/// What to send, where, and for how long.
#[derive(Args)]
pub(crate) struct Options {
    /// Requests a second, sent on schedule whether or not earlier ones were answered.
    #[arg(long)]
    qps: f64,
    /// For how long.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// The gateway, which must be on this machine.
    #[arg(long, default_value = "http://127.0.0.1:8080")]
    url: String,
    /// An API key with the scope `score:predict`.
    #[arg(long, env = "LOAD_API_KEY", hide_env_values = true)]
    key: Option<String>,
    /// Connections, the most that can wait for an answer at once.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1024))]
    connections: u16,
    /// Rows a request; more than one go to the batch route.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rows: u32,
}

/// Runs the load and prints what callers would have seen; fails if nothing was answered.
pub(crate) fn run(options: &Options) -> Result<()> {
    if !(options.qps > 0.0 && options.qps <= 1e6) {
        bail!("--qps is {}, expected more than 0 and at most 1000000", options.qps);
    }
    let address = loopback(&options.url)?;
    let requests = requests::build(address, options.key.as_deref(), options.rows as usize);
    let outcome = Load {
        address,
        requests: &requests,
        connections: options.connections.into(),
        pace: Pace::Steady(options.qps),
        limit: Limit::For(Duration::from_secs(options.seconds)),
    }
    .run()?;

    let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
    println!(
        "target      {} requests/s of {} row(s) for {} s on {} connections",
        options.qps, options.rows, options.seconds, options.connections
    );
    println!("achieved    {:.1} requests/s, {} answers", outcome.rate(), outcome.answers());
    for (name, quantile) in [("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)] {
        println!("{name:<11} {:.3} ms", ms(outcome.latency(quantile)));
    }
    println!("error rate  {:.4} % ({})", outcome.error_rate() * 100.0, outcome.tally());
    println!(
        "the generator itself was at most {:.3} ms late in 99 % of its sends",
        ms(outcome.lateness(0.99))
    );
    if outcome.statuses.contains_key(&401) && options.key.is_none() {
        println!("401 means that a key is needed: --key KEY or LOAD_API_KEY");
    }
    if outcome.statuses.contains_key(&429) {
        println!("429 means that the key's quota is used up: start the gateway with SCOREGATE_QUOTA=off");
    }
    if outcome.answers() == 0 {
        bail!("nothing was answered");
    }
    Ok(())
}

/// The address behind a URL of a server on this machine.
fn loopback(url: &str) -> Result<SocketAddr> {
    let authority = url
        .strip_prefix("http://")
        .with_context(|| format!("--url is `{url}`, expected http://127.0.0.1:PORT (no TLS here)"))?
        .trim_end_matches('/');
    let addresses = authority
        .to_socket_addrs()
        .with_context(|| format!("--url is `{url}`, expected http://127.0.0.1:PORT with no path"))?
        .collect::<Vec<_>>();
    if let Some(foreign) = addresses.iter().find(|address| !address.ip().is_loopback()) {
        bail!(
            "`{url}` leads to {foreign}, which is not on this machine: load is only ever put on loopback addresses"
        );
    }
    // A server listens on IPv4 by default, and `localhost` often names IPv6 first.
    addresses
        .iter()
        .find(|address| address.is_ipv4())
        .or(addresses.first())
        .copied()
        .with_context(|| format!("`{url}` leads nowhere"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_a_target() {
        for (url, expected) in [
            ("http://127.0.0.1:8080", Ok("127.0.0.1:8080")),
            ("http://127.9.9.9:1/", Ok("127.9.9.9:1")),
            ("http://[::1]:8080", Ok("[::1]:8080")),
            ("http://10.0.0.1:8080", Err("not on this machine")),
            ("http://0.0.0.0:8080", Err("not on this machine")),
            ("http://[::ffff:10.0.0.1]:8080", Err("not on this machine")),
            ("https://127.0.0.1:8080", Err("no TLS here")),
            ("http://127.0.0.1:8080/v1", Err("no path")),
            ("http://127.0.0.1", Err("no path")),
        ] {
            match (loopback(url), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found.to_string(), expected, "{url}"),
                (Err(found), Err(expected)) => {
                    assert!(found.to_string().contains(expected), "{url}: {found}")
                }
                (found, expected) => panic!("{url}: found {found:?}, expected {expected:?}"),
            }
        }
    }
}
