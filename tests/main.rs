//! The integration tests, one binary: trainer, model package, gateway and client together, one file per behaviour.

#![expect(clippy::unwrap_used, reason = "these are tests")]

mod support;

mod amplification;
mod answers;
mod bad_input;
mod batch;
mod bring_a_model;
mod contract;
mod credentials;
mod framing;
mod gather;
mod hostile;
mod lifecycle;
mod limits;
mod million;
mod models;
mod mutants;
mod own_data;
mod packages;
mod providers;
mod publishing;
mod sklearn_parity;
mod telemetry;
mod zoo;
