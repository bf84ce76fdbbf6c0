//! The model package and how to run it, for gateway, trainer and command line.
//!
//! Reading order: [`features`] turns bodies into checked columns, [`runtime`] turns columns into scores through ONNX Runtime
//! ([`inspect`] rewrites graphs for it), [`package`] reads, verifies and publishes versions, [`acceptance`] decides whether one
//! may be served, [`import`] makes one of a model from outside, [`explain`] says why a row got its score. [`metrics`] and
//! [`reference`](mod@reference) say how good a model is and what its data looked like; [`watch`] holds rows against the latter,
//! [`comparison`] the scores of two versions against each other.

pub mod acceptance;
pub mod comparison;
mod encoding;
pub mod explain;
pub mod features;
pub mod import;
pub mod inspect;
pub mod lock;
pub mod metrics;
pub mod owner;
pub mod package;
pub mod random;
pub mod reference;
pub mod runtime;
pub mod watch;
