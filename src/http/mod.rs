//! The only module that knows HTTP.
//!
//! Reading order: [`serve`] accepts connections and wraps every request, [`router`] lists every route, [`admission`] turns
//! headers into a caller, the handlers call scoring once, [`wire`] writes answers, [`description`] says what is known of the
//! models, and [`problem`] writes refusals.

pub mod admission;
mod batch;
mod body;
mod description;
mod framing;
mod health;
mod models;
mod patience;
mod predict;
pub mod problem;
pub mod router;
pub mod serve;
mod wire;
pub mod workers;
