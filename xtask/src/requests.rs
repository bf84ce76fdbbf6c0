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

fn to(path: &str, address: SocketAddr, key: Option<&str>, rows: usize) -> Vec<Vec<u8>> {
    let mut customers = Customers::new();
    if rows == 1 {
        return (0..VARIETY).map(|_| http1::post(address, path, key, &customers.row())).collect();
    }
    let path = format!("{path}/batch");
    (0..BATCH_VARIETY).map(|_| http1::post(address, &path, key, &customers.array(rows))).collect()
}

/// A small seeded generator (SplitMix64), which is all the randomness that this needs.
struct Customers {
    state: u64,
}

impl Customers {
    fn new() -> Self {
        Self { state: 42 }
    }

    fn array(&mut self, rows: usize) -> String {
        let rows: Vec<String> = (0..rows).map(|_| self.row()).collect();
        format!("[{}]", rows.join(","))
    }

    fn row(&mut self) -> String {
        let mut row = String::with_capacity(160);
        let plan = ["basic", "pro", "business"][self.below(3)];
        let country = ["US", "DE", "GB", "FR", "BR", "IN", "JP", "CA"][self.below(8)];
        let (tenure, tickets, hours) = (self.below(2000), self.below(8), self.below(720));
        let (spend, cents) = (5 + self.below(300), self.below(100));
        let written = write!(
            row,
            r#"{{"tenure_days":{tenure},"monthly_spend":{spend}.{cents:02},"support_tickets_30d":{tickets},"plan_tier":"{plan}","country":"{country}","last_login_hours":{hours}}}"#
        );
        debug_assert!(written.is_ok(), "writing to a string cannot fail");
        row
    }

    fn below(&mut self, bound: u64) -> usize {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound) as usize
    }
}

#[cfg(test)]
mod tests {
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
}
