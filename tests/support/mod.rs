//! What every test needs: a running gateway, a raw HTTP client, a repository of freshly fitted models.

pub(crate) mod authority;
pub(crate) mod badfile;
pub(crate) mod bucket;
pub(crate) mod cached;
pub(crate) mod collector;
pub(crate) mod constant;
pub(crate) mod crash;
mod files;
pub(crate) mod forged;
mod gateway;
pub(crate) mod graph;
mod http;
pub(crate) mod page;
pub(crate) mod redis;
mod table;
pub(crate) mod tls;
pub(crate) mod tokens;
pub(crate) mod world;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

pub(crate) use self::files::{
    node_packages, node_program, python, repository, scratch, target, trainer_binary,
};
pub(crate) use self::gateway::{Gateway, Settings, shared};
pub(crate) use self::graph::publish_ratio_model;
pub(crate) use self::http::{Answer, Client, Request};
pub(crate) use self::table::{CANARY, Case, case, check, complaints, problem_faults};

/// The reference customer, as the README's client sends it.
pub(crate) const REFERENCE: &str = r#"{"tenure_days":214,"monthly_spend":49.0,"support_tickets_30d":1,"plan_tier":"pro","country":"US","last_login_hours":5}"#;

/// Where one row is scored.
pub(crate) const PREDICT: &str = "/v1/predict";

/// How long anything may take before a test gives up on it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Asks `look` until it finds something.
///
/// # Panics
/// After [`PATIENCE`], naming `what` was waited for.
pub(crate) fn wait_for<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    wait_within(PATIENCE, look).unwrap_or_else(|| panic!("waited {PATIENCE:?} in vain for {what}"))
}

/// Asks `look` until it finds something or `patience` is over.
pub(crate) fn wait_within<T>(patience: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() >= deadline {
            return None;
        }
        pause(Duration::from_millis(5));
    }
}

/// Lets time pass between two looks at another process, which has no other way of saying that something happened.
pub(crate) fn pause(duration: Duration) {
    let (_sender, receiver) = mpsc::channel::<()>();
    let _ = receiver.recv_timeout(duration);
}

/// Whether the campaigns run with their full counts (`cargo xtask test --full`).
pub(crate) fn is_full() -> bool {
    #[expect(clippy::disallowed_methods, reason = "the gateway knows nothing of this variable")]
    std::env::var_os("SCOREGATE_TEST_FULL").is_some_and(|value| value == "1")
}

/// The reference customer with `members` replaced or added; JSON text by name.
pub(crate) fn customer(members: &[(&str, &str)]) -> String {
    let mut row: Vec<(&str, &str)> = vec![
        ("tenure_days", "214"),
        ("monthly_spend", "49.0"),
        ("support_tickets_30d", "1"),
        ("plan_tier", "\"pro\""),
        ("country", "\"US\""),
        ("last_login_hours", "5"),
    ];
    for (name, value) in members {
        match row.iter_mut().find(|(known, _)| known == name) {
            Some(member) => member.1 = value,
            None => row.push((name, value)),
        }
    }
    let members: Vec<String> = row.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
    format!("{{{}}}", members.join(","))
}

/// The reference customer without the member `name`.
pub(crate) fn customer_without(name: &str) -> String {
    let mut row: serde_json::Map<String, serde_json::Value> = serde_json::from_str(REFERENCE).unwrap();
    row.shift_remove(name).unwrap();
    serde_json::Value::Object(row).to_string()
}

/// Sets its flag when it is dropped, so that threads which go on until then end when an assertion fails, too.
#[derive(Debug)]
pub(crate) struct Stop<'f>(pub(crate) &'f AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Gzip of `bytes`.
pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}
