//! The integration tests, one binary: trainer, model package, gateway and client together, one file per behaviour.

#![expect(clippy::unwrap_used, reason = "these are tests")]

mod support;

mod admin;
mod amplification;
mod answers;
mod audit;
mod authorization_servers;
mod bad_input;
mod batch;
mod bring_a_model;
mod cache;
mod cache_isolation;
mod console;
mod contract;
mod cors;
mod credentials;
mod deploy;
mod explain;
mod files;
mod forgery;
mod framing;
mod gather;
mod get_a_token;
mod hostile;
mod introspection;
mod issuer;
mod key_sets;
mod lifecycle;
mod limits;
mod logs;
mod metrics;
mod million;
mod models;
mod mutants;
mod openapi;
mod own_data;
mod packages;
mod providers;
mod publishing;
mod quotas;
mod redis_limiter;
mod redis_loss;
mod redis_values;
mod shapley;
mod sklearn_parity;
mod telemetry;
mod tls;
mod tokens;
mod traces;
mod zoo;
