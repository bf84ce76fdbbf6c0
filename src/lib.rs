//! Scoregate: an ONNX Runtime scoring gateway for tabular models.
//!
//! Modules in reading order: [`config`] holds what the operator sets, [`app`] builds each component once, [`http`] takes
//! requests, [`auth`] says who calls, [`limiter`] how many rows it may send (shared through [`redis`]), [`scoring`] is the use case,
//! [`cache`] remembers scores, [`registry`] holds the loaded models ([`rollout`] says which version is live), and [`cli`] is the
//! command line around it all.

pub mod aside;
pub mod cli;
pub mod config;
pub mod files;
pub mod follow;

pub mod app;
pub mod audit;
pub mod auth;
pub mod cache;
pub mod diff;
pub mod http;
pub mod import;
pub mod limiter;
pub mod redis;
pub mod registry;
pub mod repository;
pub mod rollout;
pub mod sandbox;
pub mod scoring;
pub mod telemetry;
pub mod uploads;
pub mod webhook;
