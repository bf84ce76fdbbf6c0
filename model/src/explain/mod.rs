//! Why a score: Shapley values, feature by feature, against the package's background rows.
//!
//! Players are the features that a client sends, whatever columns they become. [`Explainer`] chooses the method by what the
//! graph is: [`split`] finds a margin that is a sum over features or an ensemble of [`trees`], for which there are closed forms;
//! [`general`] runs any model on coalitions of features.

mod closed;
mod encode;
mod explainer;
mod explanation;
mod follow;
pub mod general;
pub mod importance;
mod linear;
pub mod plot;
mod question;
mod split;
pub mod trees;

pub use explainer::{Explainer, Run, Source};
pub use explanation::{Explanation, Method, Space, UnknownWord};
pub use question::{Ask, Question, Refusal};
