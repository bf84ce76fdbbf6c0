//! The contracts that gateway, model runtime and trainer share: feature schema, manifest, and ONNX protobuf types.
//!
//! Reading order: [`feature_schema`] says what a client may send, [`manifest`] says what a published version is, [`rollout`] which of
//! them answers whom, [`compatibility`] what clients of one version would lose with another, and [`onnx`] holds the messages of a
//! model file.

pub mod compatibility;
pub mod feature_schema;
pub mod manifest;
pub mod onnx;
pub mod rollout;

pub use feature_schema::{FeatureSchema, Field};
pub use manifest::Manifest;
pub use rollout::Rollout;
