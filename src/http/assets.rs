//! Files of pages that are served from inside the binary: their headers, `ETag`s, and what they may do.

use std::io::Read;
use std::sync::LazyLock;

use axum::extract::RawPathParams;
use axum::response::Response;
use hyper::HeaderMap;
use hyper::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, HeaderName, HeaderValue, REFERRER_POLICY,
    VARY, X_CONTENT_TYPE_OPTIONS,
};

use super::openapi::Tagged;
use super::problem::Error;

/// Asked for again each time, and answered with 304.
const KEPT: &str = "no-cache";

/// A file of a page.
pub(super) struct File {
    pub(super) name: &'static str,
    kind: Kind,
    /// What the page may do.
    policy: &'static str,
    content: Content,
}

/// What is in a file.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Html,
    Script,
    Style,
    Svg,
}

impl Kind {
    /// Without parameters.
    pub(super) fn media_type(self) -> &'static str {
        let content_type = self.content_type();
        content_type.split_once(';').map_or(content_type, |(media_type, _)| media_type)
    }

    fn content_type(self) -> &'static str {
        match self {
            Self::Html => "text/html; charset=utf-8",
            Self::Script => "text/javascript; charset=utf-8",
            Self::Style => "text/css; charset=utf-8",
            Self::Svg => "image/svg+xml",
        }
    }
}

/// The bytes of a file.
enum Content {
    Plain(LazyLock<Tagged>),
    /// As it is served to whoever takes gzip, and as it is to others.
    Gzip(LazyLock<[Tagged; 2]>),
}

impl File {
    /// A file whose content is made by `make`.
    pub(super) const fn plain(
        name: &'static str,
        kind: Kind,
        policy: &'static str,
        make: fn() -> Tagged,
    ) -> Self {
        Self { name, kind, policy, content: Content::Plain(LazyLock::new(make)) }
    }

    /// A file whose content is made by `make`, see [`unpacked`].
    pub(super) const fn gzip(
        name: &'static str,
        kind: Kind,
        policy: &'static str,
        make: fn() -> [Tagged; 2],
    ) -> Self {
        Self { name, kind, policy, content: Content::Gzip(LazyLock::new(make)) }
    }

    /// The one of `files` that the path's parameter names.
    ///
    /// # Errors
    /// [`Error::NoRoute`] if there is none.
    pub(super) fn of_path<'f>(files: &'f [Self], path: &RawPathParams) -> Result<&'f Self, Error> {
        let name = path.iter().next().map(|(_, name)| name).unwrap_or_default();
        files.iter().find(|file| file.name == name).ok_or(Error::NoRoute)
    }

    /// What it is, as an API document says it.
    pub(super) fn media_type(&self) -> &'static str {
        self.kind.media_type()
    }

    /// The answer to a request with these headers.
    pub(super) fn answer(&self, asked: &HeaderMap) -> Response {
        let (tagged, is_gzip) = match &self.content {
            Content::Plain(tagged) => (&**tagged, false),
            Content::Gzip(both) => match takes_gzip(asked) {
                true => (&both[0], true),
                false => (&both[1], false),
            },
        };
        let mut response = tagged.answer(asked, self.kind.content_type(), KEPT);
        let headers = response.headers_mut();
        headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(self.policy));
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

/// A file that is kept compressed, as it is and unpacked.
pub(super) fn unpacked(compressed: &'static [u8]) -> [Tagged; 2] {
    let mut plain = Vec::new();
    let mut decoder = flate2::read::GzDecoder::new(compressed);
    decoder.read_to_end(&mut plain).expect("it was compressed when it was put here");
    [Tagged::new(compressed), Tagged::new(plain)]
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
