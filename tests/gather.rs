//! Rows that share a run: everyone gets the answer to their own row, whoever else was there.

use serde_json::Value;

use crate::support::{Client, Gateway, Request, Settings, customer, publish_ratio_model, shared};

const PREDICT: &str = "/v1/predict";
const THREADS: usize = 4;
const CLIENTS: usize = 12;
const TURNS: usize = 40;

/// Sends one request on every client before it reads any answer, so that they are there at the same moment.
fn at_once(clients: &mut [Client], requests: &[Request]) -> Vec<crate::support::Answer> {
    for (client, request) in clients.iter_mut().zip(requests) {
        client.send(request.bytes());
    }
    clients.iter_mut().map(|client| client.answer().unwrap()).collect()
}

fn clients(gateway: &Gateway) -> Vec<Client> {
    (0..CLIENTS).map(|_| gateway.connect()).collect()
}

#[test]
fn everyone_gets_the_score_of_their_own_row() {
    let gateway = shared();
    let row = |number: usize| {
        let tenure = (number * 7 % 3_000).to_string();
        let plan = ["\"basic\"", "\"pro\"", "\"business\"", "\"never seen\""][number % 4];
        let country = ["\"US\"", "\"DE\"", "\"XX\""][number % 3];
        customer(&[("tenure_days", &tenure), ("plan_tier", plan), ("country", country)])
    };
    let rows: Vec<String> = (0..THREADS * CLIENTS * TURNS).map(row).collect();
    let batch = gateway.post("/v1/predict/batch", format!("[{}]", rows.join(",")));
    let batch = batch.json();
    let expected: Vec<f64> = batch["predictions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["churn_probability"].as_f64().unwrap())
        .collect();
    std::thread::scope(|scope| {
        for (rows, expected) in rows.chunks(CLIENTS * TURNS).zip(expected.chunks(CLIENTS * TURNS)) {
            let gateway = &gateway;
            scope.spawn(move || {
                let mut clients = clients(gateway);
                for (rows, expected) in rows.chunks(CLIENTS).zip(expected.chunks(CLIENTS)) {
                    let mut requests: Vec<Request> =
                        rows.iter().map(|row| gateway.with_key(Request::post(PREDICT, row))).collect();
                    // One of them is refused, and takes nobody's place.
                    requests[3] = gateway.with_key(Request::post(PREDICT, "{\"tenure_days\":-1}"));
                    requests[7] = gateway.with_key(Request::post(PREDICT, "{\"tenure_days\":1,\"tenure"));
                    for (at, answer) in at_once(&mut clients, &requests).iter().enumerate() {
                        match at {
                            3 => assert_eq!(answer.code(), "invalid_row"),
                            7 => assert_eq!(answer.code(), "malformed_json"),
                            _ => {
                                let difference = (answer.probability() - expected[at]).abs();
                                assert!(difference < 1e-6, "{}: {}", rows[at], answer.text());
                            }
                        }
                    }
                }
            });
        }
    });
}

#[test]
fn a_row_without_an_answer_spoils_no_other() {
    let models = tempfile::tempdir_in(crate::support::scratch()).unwrap();
    publish_ratio_model(models.path());
    let gateway = Settings::new()
        .models(models.path())
        .set("SCOREGATE_DEFAULT_MODEL", "ratio")
        // A version without golden rows counts as slow; it is gathered all the same.
        .set("SCOREGATE_INLINE_BUDGET", "1s")
        .start();
    let mut clients = clients(&gateway);
    for turn in 0..TURNS {
        let bad = turn % CLIENTS;
        let bottom = |at: usize| if at == bad { 0 } else { at + 1 };
        let requests: Vec<Request> = (0..CLIENTS)
            .map(|at| {
                let body = format!("{{\"top\":{},\"bottom\":{}}}", i32::from(at != bad), bottom(at));
                gateway.with_key(Request::post(PREDICT, body))
            })
            .collect();
        for (at, answer) in at_once(&mut clients, &requests).iter().enumerate() {
            if at == bad {
                assert_eq!((answer.status, answer.code().as_str()), (500, "model_output_invalid"));
            } else {
                let body: Value = answer.json();
                let expected = 1.0 / (at + 1) as f64;
                let found = body["ratio_probability"].as_f64().unwrap();
                assert!((found - expected).abs() < 1e-6, "{at}: {}", answer.text());
            }
        }
    }
}
