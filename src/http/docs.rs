//! `GET /docs`: a page that shows `/openapi.json` and tries it out, from inside the binary.
//!
//! The page is [Swagger UI](https://github.com/swagger-api/swagger-ui) (Apache-2.0), whose two files lie beside this one, compressed
//! and otherwise as they were released: a test holds them against the package. Nothing is fetched from elsewhere, and no script but
//! these may run.

use std::io::Read;
use std::sync::LazyLock;

use axum::extract::{RawPathParams, Request};
use axum::response::Response;
use hyper::HeaderMap;
use hyper::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, HeaderName, HeaderValue, REFERRER_POLICY,
    VARY, X_CONTENT_TYPE_OPTIONS,
};

use super::openapi::Tagged;
use super::problem::Error;

/// What the page may do: load from here, ask here, and nothing else; nobody may put it into a frame. The library's own style sheet
/// holds pictures as `data:`.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; \
     form-action 'none'; frame-ancestors 'none'",
);

/// Asked for again each time, and answered with 304.
const KEPT: &str = "no-cache";

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";

/// A file of the page.
pub(super) struct File {
    pub(super) name: &'static str,
    /// Without parameters.
    pub(super) media_type: &'static str,
    content_type: &'static str,
    content: Content,
}

enum Content {
    Plain(LazyLock<Tagged>),
    /// As it is served to whoever takes gzip, and as it is to others.
    Gzip(LazyLock<[Tagged; 2]>),
}

macro_rules! plain {
    ($name:literal) => {
        Content::Plain(LazyLock::new(|| Tagged::new(include_str!(concat!("docs/", $name)))))
    };
}

macro_rules! gzip {
    ($name:literal) => {
        Content::Gzip(LazyLock::new(|| {
            let compressed: &[u8] = include_bytes!(concat!("docs/swagger-ui/", $name, ".gz"));
            let mut plain = Vec::new();
            let mut decoder = flate2::read::GzDecoder::new(compressed);
            decoder.read_to_end(&mut plain).expect("it was compressed when it was put here");
            [Tagged::new(compressed), Tagged::new(plain)]
        }))
    };
}

/// What the page loads.
pub(super) static FILES: [File; 5] = [
    file("swagger-ui-bundle.js", "text/javascript", SCRIPT, gzip!("swagger-ui-bundle.js")),
    file("swagger-ui.css", "text/css", STYLE, gzip!("swagger-ui.css")),
    file("page.js", "text/javascript", SCRIPT, plain!("page.js")),
    file("page.css", "text/css", STYLE, plain!("page.css")),
    file("icon.svg", "image/svg+xml", "image/svg+xml", plain!("icon.svg")),
];

static PAGE: File = file("docs", "text/html", HTML, plain!("page.html"));

const fn file(
    name: &'static str,
    media_type: &'static str,
    content_type: &'static str,
    content: Content,
) -> File {
    File { name, media_type, content_type, content }
}

/// The page itself.
pub(super) async fn page(request: Request) -> Response {
    PAGE.answer(request.headers())
}

/// What it loads.
pub(super) async fn file_of_page(path: RawPathParams, request: Request) -> Result<Response, Error> {
    let name = path.iter().next().map(|(_, name)| name).unwrap_or_default();
    let file = FILES.iter().find(|file| file.name == name).ok_or(Error::NoRoute)?;
    Ok(file.answer(request.headers()))
}

impl File {
    fn answer(&self, asked: &HeaderMap) -> Response {
        let (tagged, is_gzip) = match &self.content {
            Content::Plain(tagged) => (&**tagged, false),
            Content::Gzip(both) => match takes_gzip(asked) {
                true => (&both[0], true),
                false => (&both[1], false),
            },
        };
        let mut response = tagged.answer(asked, self.content_type, KEPT);
        let headers = response.headers_mut();
        headers.insert(CONTENT_SECURITY_POLICY, POLICY);
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        headers.insert(
            HeaderName::from_static("cross-origin-opener-policy"),
            HeaderValue::from_static("same-origin"),
        );
        if let Content::Gzip(_) = self.content {
            headers.insert(VARY, HeaderValue::from_static("accept-encoding"));
        }
        if is_gzip {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        response
    }
}

/// Whether the client takes gzip. Weights other than nought make no difference.
fn takes_gzip(headers: &HeaderMap) -> bool {
    let values = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    let mut codings = values.flat_map(|value| value.split(','));
    codings.any(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, "q=1"));
        let weight = weight.trim().strip_prefix("q=").and_then(|weight| weight.parse::<f32>().ok());
        name.trim().eq_ignore_ascii_case("gzip") && weight != Some(0.0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_is_for_those_who_take_it() {
        for (value, expected) in [
            ("gzip, deflate, br", true),
            ("br;q=1.0, GZIP;q=0.5", true),
            ("gzip;q=0", false),
            ("gzip;q=0.000, br", false),
            ("identity", false),
            ("", false),
        ] {
            let headers = HeaderMap::from_iter([(ACCEPT_ENCODING, value.parse().unwrap())]);
            assert_eq!(takes_gzip(&headers), expected, "{value}");
        }
        assert!(!takes_gzip(&HeaderMap::new()));
    }
}
