//! Fits a model on a CSV file and publishes it as a model package that the gateway serves.
//!
//! In the order of a training run: [`data`] reads the file by the feature schema, [`split`] makes folds, [`encode`] the design
//! matrix, [`mod@fit`] the coefficients (by
//! [`minimise`]), [`calibrate`] the probabilities; [`pipeline`] is all of these in double precision.
//! [`export`] writes it as an ONNX graph, [`verify`] holds ONNX Runtime to it, [`report`] draws how good it is, and
//! [`publish`] puts the package together. [`train`] is the run itself, [`commands`] the command line over it, and
//! [`simulate`] makes data whose truth is known.

pub mod calibrate;
pub mod commands;
pub mod console;
pub mod data;
pub mod encode;
pub mod export;
pub mod fit;
pub mod minimise;
pub mod pipeline;
pub mod publish;
pub mod report;
pub mod simulate;
pub mod split;
pub mod train;
pub mod verify;
