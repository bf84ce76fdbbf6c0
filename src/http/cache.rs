//! What a request wants of the cache of scores, by `Cache-Control` ([RFC 9111](https://www.rfc-editor.org/rfc/rfc9111#section-5.2.1)),
//! and what the answer says of it: `Cache-Status` ([RFC 9211](https://www.rfc-editor.org/rfc/rfc9211)).

use std::fmt::Write as _;
use std::num::IntErrorKind;
use std::time::Duration;

use hyper::HeaderMap;
use hyper::header::{CACHE_CONTROL, HeaderName, HeaderValue};

use crate::cache::{Level, Outcome, Status, Wish};

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// What `Cache-Control` asks for. Directives that mean nothing here are passed over, as the standard has it.
pub(super) fn wish(headers: &HeaderMap) -> Wish {
    let mut wish = Wish::default();
    let values = headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    for directive in values.flat_map(|value| value.split(',')) {
        let (name, value) = directive.split_once('=').unwrap_or((directive, ""));
        match name.trim().to_ascii_lowercase().as_str() {
            "no-cache" => wish.fresh = true,
            "no-store" => wish.unkept = true,
            // An age that cannot be read is none that anything could have.
            "max-age" => match value.trim().trim_matches('"').parse::<u64>() {
                Ok(0) => wish.fresh = true,
                Ok(seconds) => wish.max_age = Some(Duration::from_secs(seconds)),
                // More than anything could be old.
                Err(error) if *error.kind() == IntErrorKind::PosOverflow => {}
                Err(_) => wish.fresh = true,
            },
            _ => {}
        }
    }
    wish
}

/// Says what became of a request at the cache, the level closest to the model first; nothing if it was not consulted.
pub(super) fn tell(status: Status, headers: &mut HeaderMap) {
    let Status { memory, redis, stored, collapsed } = status;
    let mut text = String::new();
    for (level, outcome) in [(Level::Redis, redis), (Level::Memory, memory)] {
        let Some(outcome) = outcome else { continue };
        let comma = if text.is_empty() { "" } else { ", " };
        write!(text, "{comma}scoregate-{}", level.as_str()).expect("a text can always be appended to");
        match outcome {
            Outcome::Hit(left) => write!(text, "; hit; ttl={}", left.as_secs()),
            Outcome::Partial { found, rows } => {
                write!(text, "; fwd=partial; detail=\"{found} of {rows} rows\"")
            }
            Outcome::Miss => write!(text, "; fwd=miss"),
            Outcome::Unwanted => write!(text, "; fwd=request"),
            Outcome::OutOfReach => write!(text, "; fwd=bypass; detail=out-of-reach"),
        }
        .expect("a text can always be appended to");
        if stored && level == Level::Memory && !matches!(outcome, Outcome::Hit(_)) {
            text.push_str("; stored");
        }
        if collapsed {
            text.push_str("; collapsed");
        }
    }
    if !text.is_empty() {
        headers.insert(CACHE_STATUS, HeaderValue::try_from(text).expect("it is plain ASCII"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_control_is_read_as_the_standard_has_it() {
        for (values, expected) in [
            (vec![], Wish::default()),
            (vec!["no-cache"], Wish { fresh: true, ..Wish::default() }),
            (vec!["No-Store , private"], Wish { unkept: true, ..Wish::default() }),
            (vec!["no-store", "NO-CACHE"], Wish { fresh: true, unkept: true, max_age: None }),
            (vec!["max-age=30"], Wish { max_age: Some(Duration::from_secs(30)), ..Wish::default() }),
            (vec!["max-age=\"30\""], Wish { max_age: Some(Duration::from_secs(30)), ..Wish::default() }),
            (vec!["max-age=0"], Wish { fresh: true, ..Wish::default() }),
            (vec!["max-age=soon"], Wish { fresh: true, ..Wish::default() }),
            (vec!["max-age=99999999999999999999"], Wish::default()),
            (vec!["no-cachet, x=no-store, ,=,"], Wish::default()),
        ] {
            let mut headers = HeaderMap::new();
            for value in &values {
                headers.append(CACHE_CONTROL, HeaderValue::from_static(value));
            }
            assert_eq!(wish(&headers), expected, "{values:?}");
        }
    }

    #[test]
    fn the_level_closest_to_the_model_is_named_first() {
        let hit = Outcome::Hit(Duration::from_millis(43_900));
        let status = |memory, redis, stored, collapsed| Status { memory, redis, stored, collapsed };
        for (status, expected) in [
            (Status::default(), None),
            (status(Some(hit), None, false, false), Some("scoregate-memory; hit; ttl=43")),
            (status(Some(Outcome::Miss), None, true, false), Some("scoregate-memory; fwd=miss; stored")),
            (status(Some(Outcome::Miss), None, false, true), Some("scoregate-memory; fwd=miss; collapsed")),
            (
                status(Some(Outcome::Miss), Some(Outcome::OutOfReach), true, false),
                Some("scoregate-redis; fwd=bypass; detail=out-of-reach, scoregate-memory; fwd=miss; stored"),
            ),
            (
                status(Some(Outcome::Miss), Some(hit), true, false),
                Some("scoregate-redis; hit; ttl=43, scoregate-memory; fwd=miss; stored"),
            ),
            (
                status(Some(Outcome::Partial { found: 90, rows: 100 }), None, true, false),
                Some("scoregate-memory; fwd=partial; detail=\"90 of 100 rows\"; stored"),
            ),
            (status(Some(Outcome::Unwanted), None, false, false), Some("scoregate-memory; fwd=request")),
        ] {
            let mut headers = HeaderMap::new();
            tell(status, &mut headers);
            assert_eq!(headers.get(CACHE_STATUS).map(|value| value.to_str().unwrap()), expected);
        }
    }
}
