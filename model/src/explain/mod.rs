//! Why a score: exact Shapley values, feature by feature.

pub mod trees;
