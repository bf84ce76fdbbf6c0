//! A data set of one's own beside the reference model: fitted by its own schema and scored over HTTP.

use serde_json::{Value, json};

use crate::support::{Request, case, check, repository, shared};

const PREDICT: &str = "/v1/models/saas_churn/predict";

fn company() -> Value {
    json!({
        "product_data_storage": "2048", "product_travel_expense": "Free-Trial", "product_payroll": "Active",
        "product_accounting": "No", "csat_score": 9, "articles_viewed": 4, "smartphone_notifications_viewed": 0,
        "marketing_emails_clicked": 14, "social_media_ads_viewed": 1, "minutes_customer_support": 8.3,
        "company_size": "10-50", "us_region": "West North Central",
    })
}

#[test]
fn a_company_is_scored_beside_the_customers() {
    let gateway = shared();
    let answer = gateway.post(PREDICT, company().to_string());
    assert_eq!(answer.status, 200, "{}", answer.text());
    let body = answer.json();
    let names: Vec<&String> = body.as_object().unwrap().keys().collect();
    assert_eq!(
        names,
        ["model_version", "saas_churn_probability", "prediction", "explanations", "prediction_id"]
    );
    let probability = body["saas_churn_probability"].as_f64().unwrap();
    assert!(probability > 0.0 && probability < 1.0);
    assert!(["retain", "churn"].contains(&body["prediction"].as_str().unwrap()));
    let reference = gateway.post("/v1/models/churn/predict", crate::support::REFERENCE);
    assert_eq!(reference.status, 200);
}

#[test]
fn its_own_csv_scores_as_a_batch_without_the_columns_that_are_no_features() {
    let gateway = shared();
    let csv =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/saas_churn.csv")).unwrap();
    let features: String =
        csv.lines().map(|line| line.rsplitn(3, ',').last().unwrap().to_owned() + "\n").collect();
    let request = Request::post("/v1/models/saas_churn/predict/batch", features).content_type("text/csv");
    let answer = gateway.ask(&gateway.with_key(request));
    let rows = answer.json()["predictions"].as_array().unwrap().clone();
    assert_eq!(rows.len(), 2_000);
    let outcomes = csv.lines().skip(1).map(|line| line.ends_with(",1.0"));
    let scored: Vec<(f64, bool)> =
        rows.iter().map(|row| row["saas_churn_probability"].as_f64().unwrap()).zip(outcomes).collect();
    let mean = |churned: bool| {
        let of: Vec<f64> =
            scored.iter().filter(|(_, outcome)| *outcome == churned).map(|(score, _)| *score).collect();
        of.iter().sum::<f64>() / of.len() as f64
    };
    assert!(mean(true) > mean(false), "churned {}, stayed {}", mean(true), mean(false));
    // The whole file has columns that are no features: a request with them is refused, never trimmed silently.
    let whole = Request::post("/v1/models/saas_churn/predict/batch", csv.clone()).content_type("text/csv");
    let unknown = &["#/months_active unknown_field", "#/churned unknown_field"];
    check(
        &gateway,
        &[case("the training file itself", gateway.with_key(whole), 422, "invalid_rows", unknown)],
    );
}

#[test]
fn golden_rows_are_served_as_the_trainer_computed_them() {
    let gateway = shared();
    let text = std::fs::read_to_string(repository().version("saas_churn").join("golden.jsonl")).unwrap();
    let golden: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(golden.len() >= 200, "{}", golden.len());
    let rows: Vec<&Value> = golden.iter().map(|row| &row["features"]).collect();
    let answer = gateway.post("/v1/models/saas_churn/predict/batch", json!(rows).to_string()).json();
    for (row, expected) in answer["predictions"].as_array().unwrap().iter().zip(&golden) {
        let (found, expected) =
            (row["saas_churn_probability"].as_f64().unwrap(), expected["expected"].as_f64().unwrap());
        // The tolerance that the package states.
        assert!((found - expected).abs() <= 1e-6, "{found} {expected}");
    }
}

#[test]
fn its_schema_is_its_own() {
    let gateway = shared();
    let with = |name: &str, value: Value| {
        let mut row = company();
        row[name] = value;
        gateway.with_key(Request::post(PREDICT, row.to_string()))
    };
    check(
        &gateway,
        &[
            case(
                "50 unseen category",
                with("company_size", json!("9")),
                422,
                "invalid_row",
                &["#/company_size unknown_category"],
            ),
            case(
                "above the maximum",
                with("csat_score", json!(11)),
                422,
                "invalid_row",
                &["#/csat_score range"],
            ),
            case(
                "the leaking column",
                with("months_active", json!(3)),
                422,
                "invalid_row",
                &["#/months_active unknown_field"],
            ),
            case(
                "another model's field",
                with("tenure_days", json!(3)),
                422,
                "invalid_row",
                &["#/tenure_days unknown_field"],
            ),
        ],
    );
}
