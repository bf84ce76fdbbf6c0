//! Requests of the reference contract: the one customer of the documentation, and as many others as a load needs.

use std::fmt::Write;
use std::net::SocketAddr;

use crate::http1;

/// Where one row goes.
pub(crate) const PREDICT: &str = "/v1/predict";

/// The reference customer.
pub(crate) const REFERENCE: &str = r#"{"tenure_days":214,"monthly_spend":49.0,"support_tickets_30d":1,"plan_tier":"pro","country":"US","last_login_hours":5}"#;

/// So many different requests that a server sees a stream of customers rather than the same one.
const VARIETY: usize = 8192;
/// Enough different batches for the same purpose without a hundred megabytes of them.
const BATCH_VARIETY: usize = 32;

/// Days of tenure, hours since the last login and whole dollars that customers are drawn from.
const TENURES: usize = 2_000;
const HOURS: usize = 720;
const SPENDS: usize = 300;

/// Customers who come again and again.
pub(crate) const KNOWN: usize = 1_000;

/// Whole requests for `rows` customers each, the same ones every time.
pub(crate) fn build(address: SocketAddr, key: Option<&str>, rows: usize) -> Vec<Vec<u8>> {
    to(PREDICT, address, key, rows)
}

/// The same requests, for a model that is not the default one.
pub(crate) fn build_for(model: &str, address: SocketAddr, key: Option<&str>, rows: usize) -> Vec<Vec<u8>> {
    to(&format!("/v1/models/{model}/predict"), address, key, rows)
}

/// The first `rows` customers as a JSON array: the body of the first batch of as many.
pub(crate) fn customers(rows: usize) -> String {
    Customers::new().array(rows)
}

/// The same requests, to where `path` says; those of more than one row to the batch route beside it.
pub(crate) fn to(path: &str, address: SocketAddr, key: Option<&str>, rows: usize) -> Vec<Vec<u8>> {
    let mut customers = Customers::new();
    if rows == 1 {
        return (0..VARIETY).map(|_| http1::post(address, path, key, &customers.row())).collect();
    }
    let path = format!("{path}/batch");
    (0..BATCH_VARIETY).map(|_| http1::post(address, &path, key, &customers.array(rows))).collect()
}

/// What requests are for, and where they go.
#[derive(Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) address: SocketAddr,
    pub(crate) key: &'a str,
    pub(crate) model: &'a str,
    /// Rows a request; more than one go to the batch route.
    pub(crate) rows: usize,
}

impl Target<'_> {
    fn request(&self, body: &str) -> Vec<u8> {
        let batch = if self.rows == 1 { "" } else { "/batch" };
        let path = format!("/v1/models/{}/predict{batch}", self.model);
        http1::post(self.address, &path, Some(self.key), body)
    }
}

/// Customers who come again and again, and others who never came before: no two rows of the latter are the same.
pub(crate) struct Visitors {
    known: Vec<String>,
    customers: Customers,
}

impl Visitors {
    pub(crate) fn new() -> Self {
        let mut customers = Customers::new();
        Self { known: (0..KNOWN).map(|_| customers.new_row()).collect(), customers }
    }

    /// Requests of so many rows each in which every known customer comes once.
    pub(crate) fn known(&self, target: Target<'_>) -> Vec<Vec<u8>> {
        self.known.chunks(target.rows).map(|rows| target.request(&body(rows))).collect()
    }

    /// The next `count` requests, in which `known` of ten customers are, drawn by lot.
    pub(crate) fn next(&mut self, target: Target<'_>, count: usize, known: usize) -> Vec<Vec<u8>> {
        let request = |_| {
            let rows: Vec<String> = (0..target.rows).map(|_| self.customer(known)).collect();
            target.request(&body(&rows))
        };
        (0..count).map(request).collect()
    }

    fn customer(&mut self, known: usize) -> String {
        if self.customers.below(10) < known {
            return self.known[self.customers.below(KNOWN as u64)].clone();
        }
        self.customers.new_row()
    }
}

fn body(rows: &[String]) -> String {
    match rows {
        [row] => row.clone(),
        rows => format!("[{}]", rows.join(",")),
    }
}

/// A small seeded generator (SplitMix64), which is all the randomness that this needs.
struct Customers {
    state: u64,
    /// How many were made that are like no other.
    new: u64,
}

/// A customer, by the numbers that make one.
struct Customer {
    plan: usize,
    country: usize,
    tenure: usize,
    tickets: usize,
    hours: usize,
    spend: usize,
    cents: usize,
}

impl Customers {
    fn new() -> Self {
        Self { state: 42, new: 0 }
    }

    fn array(&mut self, rows: usize) -> String {
        let rows: Vec<String> = (0..rows).map(|_| self.row()).collect();
        format!("[{}]", rows.join(","))
    }

    fn row(&mut self) -> String {
        self.draw().row()
    }

    /// A row like no other that this made, as long as fewer than 432 million were made.
    fn new_row(&mut self) -> String {
        let number = self.new as usize;
        self.new += 1;
        let (number, tenure) = (number / TENURES, number % TENURES);
        let (number, hours) = (number / HOURS, number % HOURS);
        Customer { tenure, hours, spend: number % SPENDS, ..self.draw() }.row()
    }

    fn draw(&mut self) -> Customer {
        // In this order, on which it depends who comes.
        let (plan, country) = (self.below(3), self.below(8));
        let (tenure, tickets, hours) = (self.below(TENURES as u64), self.below(8), self.below(HOURS as u64));
        let (spend, cents) = (self.below(SPENDS as u64), self.below(100));
        Customer { plan, country, tenure, tickets, hours, spend, cents }
    }

    fn below(&mut self, bound: u64) -> usize {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound) as usize
    }
}

impl Customer {
    fn row(&self) -> String {
        let Self { tenure, tickets, hours, cents, .. } = self;
        let spend = 5 + self.spend;
        let plan = ["basic", "pro", "business"][self.plan];
        let country = ["US", "DE", "GB", "FR", "BR", "IN", "JP", "CA"][self.country];
        let mut row = String::with_capacity(160);
        let written = write!(
            row,
            r#"{{"tenure_days":{tenure},"monthly_spend":{spend}.{cents:02},"support_tickets_30d":{tickets},"plan_tier":"{plan}","country":"{country}","last_login_hours":{hours}}}"#
        );
        debug_assert!(written.is_ok(), "writing to a string cannot fail");
        row
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_request_carries_rows_of_the_reference_contract() {
        let reference: serde_json::Value = serde_json::from_str(REFERENCE).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], 8080));
        let key = Some("sg_key");
        for (rows, path, requests) in [
            (1, PREDICT, build(address, key, 1)),
            (3, "/v1/predict/batch", build(address, key, 3)),
            (3, "/v1/models/other/predict/batch", build_for("other", address, key, 3)),
        ] {
            for request in requests {
                let request = String::from_utf8(request).unwrap();
                let (head, body) = request.split_once("\r\n\r\n").unwrap();
                assert!(head.starts_with(&format!("POST {path} HTTP/1.1\r\n")), "{head}");
                assert!(head.ends_with(&format!("content-length: {}", body.len())), "{head}");
                let body: serde_json::Value = serde_json::from_str(body).unwrap();
                let found = body.as_array().cloned().unwrap_or_else(|| vec![body]);
                assert_eq!(found.len(), rows);
                for row in found {
                    assert!(
                        row.as_object().unwrap().keys().eq(reference.as_object().unwrap().keys()),
                        "{row}"
                    );
                }
            }
        }
    }

    #[test]
    fn visitors_are_new_but_for_those_who_are_known() {
        let address = SocketAddr::from(([127, 0, 0, 1], 8080));
        let target = |rows| Target { address, key: "sg_key", model: "churn", rows };
        let mut visitors = Visitors::new();
        let body = |request: Vec<u8>| {
            let request = String::from_utf8(request).unwrap();
            let (head, body) = request.split_once("\r\n\r\n").unwrap();
            (
                head.lines().next().unwrap().to_owned(),
                serde_json::from_str::<serde_json::Value>(body).unwrap(),
            )
        };
        let known: HashSet<String> =
            visitors.known(target(1)).into_iter().map(|request| body(request).1.to_string()).collect();
        assert_eq!((known.len(), visitors.known(target(100)).len()), (KNOWN, KNOWN / 100));
        let mut seen = known.clone();
        for request in visitors.next(target(1), 5_000, 0) {
            let (head, row) = body(request);
            assert_eq!(head, "POST /v1/models/churn/predict HTTP/1.1");
            assert!(seen.insert(row.to_string()), "{row} came before");
        }
        let (mut again, mut new) = (0, 0);
        for request in visitors.next(target(100), 50, 9) {
            let (head, rows) = body(request);
            assert_eq!(head, "POST /v1/models/churn/predict/batch HTTP/1.1");
            assert_eq!(rows.as_array().unwrap().len(), 100);
            for row in rows.as_array().unwrap() {
                let row = row.to_string();
                if known.contains(&row) {
                    again += 1;
                } else {
                    assert!(seen.insert(row.clone()), "{row} came before");
                    new += 1;
                }
            }
        }
        assert!(
            (400..600).contains(&new) && again + new == 5_000,
            "{again} of known customers, {new} new ones"
        );
    }
}
