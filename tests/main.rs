//! The integration tests, one binary: trainer, model package, gateway and client together, one file per behaviour.

#![expect(clippy::unwrap_used, reason = "these are tests")]

mod support;

mod amplification;
mod bad_input;
mod batch;
mod contract;
mod credentials;
mod framing;
mod gather;
mod lifecycle;
mod limits;
mod million;
mod own_data;
mod packages;
mod sklearn_parity;
mod telemetry;
