//! The integration tests, one binary: trainer, model package, gateway and client together, one file per behaviour.

mod support;

mod bad_input;
mod batch;
mod contract;
mod framing;
