//! `GET /console` on the admin listener: the operator's page, from inside the binary.
//!
//! A browser loads it before anybody has said who they are, so it holds nothing of this installation: whatever it shows, it asks for
//! with the credential that was typed into it, and is told as much as that credential's scopes allow. The page is written by hand, one
//! job to a file, and served as it is written.

use axum::extract::{RawPathParams, Request};
use axum::response::Response;

use super::assets::{File, Kind};
use super::openapi::Tagged;
use super::problem::Error;

/// What the page may do: load from here, ask here, and nothing else. No script may turn text into elements, whatever it is: what
/// models and features are called is never markup.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

static PAGE: File =
    File::plain("console", Kind::Html, POLICY, || Tagged::new(include_str!("console/page.html")));

macro_rules! file {
    ($name:literal, $kind:ident) => {
        File::plain($name, Kind::$kind, POLICY, || Tagged::new(include_str!(concat!("console/", $name))))
    };
}

/// What the page loads.
pub(super) static FILES: [File; 16] = [
    file!("page.css", Style),
    file!("icon.svg", Svg),
    file!("main.js", Script),
    file!("gateway.js", Script),
    file!("history.js", Script),
    file!("dom.js", Script),
    file!("numbers.js", Script),
    file!("charts.js", Script),
    file!("traffic.js", Script),
    file!("models.js", Script),
    file!("rollout.js", Script),
    file!("diff.js", Script),
    file!("features.js", Script),
    file!("fields.js", Script),
    file!("score.js", Script),
    file!("answer.js", Script),
];

/// The page itself.
pub(super) async fn page(request: Request) -> Response {
    PAGE.answer(request.headers())
}

/// What it loads.
pub(super) async fn file_of_page(path: RawPathParams, request: Request) -> Result<Response, Error> {
    Ok(File::of_path(&FILES, &path)?.answer(request.headers()))
}
