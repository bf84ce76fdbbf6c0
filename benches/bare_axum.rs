//! The bare handler that the gateway is measured against: axum parses a known struct and answers JSON, no more.
//!
//! Its one argument is the address to listen on.

use anyhow::Context;
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};

/// A request of the reference contract.
#[derive(Deserialize)]
struct Customer {
    tenure_days: f32,
    monthly_spend: f32,
    support_tickets_30d: f32,
    plan_tier: String,
    country: String,
    last_login_hours: f32,
}

/// An answer of the same size as the gateway's.
#[derive(Serialize)]
struct Answer {
    model_version: &'static str,
    churn_probability: f64,
    prediction: &'static str,
    explanations: Explanations,
    prediction_id: &'static str,
}

#[derive(Serialize)]
struct Explanations {
    top_features: [&'static str; 0],
}

/// Uses every field, so that the compiler cannot leave out parsing one.
async fn answer(Json(customer): Json<Customer>) -> Json<Answer> {
    let strings = customer.plan_tier.len() + customer.country.len();
    let numbers = customer.tenure_days
        + customer.monthly_spend
        + customer.support_tickets_30d
        + customer.last_login_hours;
    let churn_probability = 1.0 / (1.0 + f64::from(numbers) + strings as f64);
    Json(Answer {
        model_version: "2026-05-17_01",
        churn_probability,
        prediction: if churn_probability > 0.5 { "churn" } else { "retain" },
        explanations: Explanations { top_features: [] },
        prediction_id: "01JVD0YB6M3Z8K5Q2W4T7X9C1E",
    })
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let address = std::env::args().nth(1).context("the one argument is the address to listen on")?;
    let listener =
        tokio::net::TcpListener::bind(&address).await.with_context(|| format!("could not bind {address}"))?;
    let listener = listener.tap_io(|stream| {
        // Measured without it, small answers would wait for nothing.
        let _ = stream.set_nodelay(true);
    });
    let app = Router::new()
        .route("/health/ready", get(|| async { r#"{"status":"ok"}"# }))
        .route("/v1/predict", post(answer));
    axum::serve(listener, app).await.context("the server ended")
}
