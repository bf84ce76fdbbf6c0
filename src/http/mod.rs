//! The only module that knows HTTP.
//!
//! Reading order: [`serve`] accepts connections and wraps every request, [`router`] lists every route, [`admission`] turns
//! headers into a caller within its quota, the handlers call scoring once, [`wire`] writes answers, [`description`] says what is known of the
//! models, [`openapi`] of the routes, [`docs`] and [`console`] are the pages ([`assets`]), and [`problem`] writes refusals.

pub mod admission;
mod assets;
mod batch;
mod body;
mod cache;
mod console;
mod cors;
mod description;
mod diff;
mod docs;
pub(crate) mod explain;
mod framing;
pub mod health;
mod metrics;
mod models;
mod monitoring;
mod multipart;
mod oauth;
pub(crate) mod openapi;
mod patience;
mod predict;
pub mod problem;
mod publish;
mod quota;
mod rollout;
mod route;
pub mod router;
pub mod serve;
pub mod tls;
mod unread;
pub(crate) mod wire;
pub mod workers;
