//! `GET /docs`: a page that shows `/openapi.json` and tries it out, from inside the binary.
//!
//! The page is [Swagger UI](https://github.com/swagger-api/swagger-ui) (Apache-2.0), whose two files lie beside this one, compressed
//! and otherwise as they were released: a test holds them against the package. Nothing is fetched from elsewhere, and no script but
//! these may run.

use axum::extract::{RawPathParams, Request};
use axum::response::Response;

use super::assets::{File, Kind, unpacked};
use super::openapi::Tagged;
use super::problem::Error;

/// What the page may do: load from here, ask here, and nothing else; nobody may put it into a frame. The library's own style sheet
/// holds pictures as `data:`.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

static PAGE: File = File::plain("docs", Kind::Html, POLICY, || Tagged::new(include_str!("docs/page.html")));

/// What the page loads.
pub(super) static FILES: [File; 5] = [
    File::gzip("swagger-ui-bundle.js", Kind::Script, POLICY, || {
        unpacked(include_bytes!("docs/swagger-ui/swagger-ui-bundle.js.gz"))
    }),
    File::gzip("swagger-ui.css", Kind::Style, POLICY, || {
        unpacked(include_bytes!("docs/swagger-ui/swagger-ui.css.gz"))
    }),
    File::plain("page.js", Kind::Script, POLICY, || Tagged::new(include_str!("docs/page.js"))),
    File::plain("page.css", Kind::Style, POLICY, || Tagged::new(include_str!("docs/page.css"))),
    File::plain("icon.svg", Kind::Svg, POLICY, || Tagged::new(include_str!("docs/icon.svg"))),
];

/// The page itself.
pub(super) async fn page(request: Request) -> Response {
    PAGE.answer(request.headers())
}

/// What it loads.
pub(super) async fn file_of_page(path: RawPathParams, request: Request) -> Result<Response, Error> {
    Ok(File::of_path(&FILES, &path)?.answer(request.headers()))
}
