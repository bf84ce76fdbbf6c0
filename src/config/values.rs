//! What one value of a setting may be.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use scoregate_model::package::check_labels;
use scoregate_model::runtime::ExecutionProvider;
use url::Url;

use super::LogFormat;

pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "an address and port such as 127.0.0.1:8080".into())
}

pub(super) fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() { Err("a path".into()) } else { Ok(text.into()) }
}

#[expect(clippy::unnecessary_wraps, reason = "every setting is read through one signature")]
pub(super) fn optional_path(text: &str) -> Result<Option<PathBuf>, String> {
    Ok((!text.is_empty()).then(|| text.into()))
}

/// A URL that paths are put after.
pub(super) fn base_url(text: &str) -> Result<String, String> {
    let expected = || "a URL such as https://scores.example.com, without query and fragment".to_string();
    let url = Url::parse(text).map_err(|_| expected())?;
    let is_plain = url.query().is_none()
        && url.fragment().is_none()
        && url.username().is_empty()
        && url.password().is_none();
    let is_http = matches!(url.scheme(), "http" | "https") && url.has_host();
    if is_plain && is_http { Ok(text.trim_end_matches('/').into()) } else { Err(expected()) }
}

/// A list of origins, or `*`.
pub(super) fn origins(text: &str) -> Result<Vec<String>, String> {
    let origin = |text: &str| {
        let is_origin = Url::parse(text).is_ok_and(|url| url.origin().ascii_serialization() == text);
        if text == "*" || is_origin {
            Ok(text.to_owned())
        } else {
            Err("origins such as https://app.example.com, separated by commas, or *".to_string())
        }
    };
    text.split(',').map(str::trim).filter(|text| !text.is_empty()).map(origin).collect()
}

#[expect(clippy::unnecessary_wraps, reason = "every setting is read through one signature")]
pub(super) fn text(text: &str) -> Result<String, String> {
    Ok(text.into())
}

/// A switch.
pub(super) fn switch(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| "true or false".into())
}

/// What whole numbers have to be.
pub(super) const COUNT: &str = "a whole number of at least 1";

pub(super) fn count(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|number| *number > 0).ok_or_else(|| COUNT.into())
}

/// Reads a list such as `cuda,cpu`. The processor is always there, and always the last.
pub(super) fn providers(text: &str) -> Result<Vec<ExecutionProvider>, String> {
    let names: Vec<&str> = text.split(',').map(str::trim).collect();
    let others = names.strip_suffix(&["cpu"]).unwrap_or(&names);
    let mut providers = Vec::new();
    for name in others {
        let provider = match *name {
            "cpu" => return Err("cpu as the last one: it runs whatever is left".into()),
            name => name.parse::<ExecutionProvider>(),
        };
        let provider = provider.map_err(|expected| format!("a list of {expected}"))?;
        if providers.contains(&provider) {
            return Err(format!("{} once", provider.as_str()));
        }
        providers.push(provider);
    }
    Ok(providers)
}

pub(super) fn log_filter(text: &str) -> Result<String, String> {
    let expected =
        |error| format!("a level such as info, or a filter such as info,scoregate=debug ({error})");
    tracing_subscriber::EnvFilter::try_new(text).map(|_| text.into()).map_err(expected)
}

pub(super) fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "auto" => Ok(LogFormat::Auto),
        "json" => Ok(LogFormat::Json),
        "text" => Ok(LogFormat::Text),
        _ => Err("auto, json or text".into()),
    }
}

/// How long something is valid.
pub(super) fn lifetime(text: &str) -> Result<Duration, String> {
    let found = duration(text)?;
    let is_sensible = (Duration::from_secs(1)..=Duration::from_secs(3_650 * 86_400)).contains(&found);
    if is_sensible { Ok(found) } else { Err("a duration from 1s to 3650d".into()) }
}

/// A duration in which something can happen.
pub(super) fn interval(text: &str) -> Result<Duration, String> {
    let found = duration(text)?;
    if found < Duration::from_millis(10) { Err("a duration of at least 10ms".into()) } else { Ok(found) }
}

/// Reads `250ms`, `15s`, `2m`, `1h`, `90d`; a unit is needed.
///
/// # Errors
/// What was expected.
pub fn duration(text: &str) -> Result<Duration, String> {
    let expected = || "a duration such as 250ms, 15s, 2m, 1h or 90d".to_string();
    let digits = text.find(|character: char| !character.is_ascii_digit()).ok_or_else(expected)?;
    let number: u64 = text[..digits].parse().map_err(|_| expected())?;
    let seconds = |unit: u64| number.checked_mul(unit).map(Duration::from_secs).ok_or_else(expected);
    match &text[digits..] {
        "us" => Ok(Duration::from_micros(number)),
        "ms" => Ok(Duration::from_millis(number)),
        "s" => seconds(1),
        "m" => seconds(60),
        "h" => seconds(3_600),
        "d" => seconds(86_400),
        _ => Err(expected()),
    }
}

pub(super) fn whole(value: &toml::Value) -> Option<usize> {
    usize::try_from(value.as_integer()?).ok().filter(|number| *number > 0)
}

pub(super) fn labels(value: &toml::Value) -> Option<Vec<String>> {
    let labels: Vec<String> =
        value.as_array()?.iter().map(|label| label.as_str().map(str::to_owned)).collect::<Option<_>>()?;
    (!labels.is_empty() && check_labels(&labels).is_ok()).then_some(labels)
}

pub(super) fn one_or_many(value: &toml::Value) -> Option<Vec<String>> {
    match value {
        toml::Value::String(text) => Some(vec![text.clone()]),
        toml::Value::Array(list) if !list.is_empty() => {
            list.iter().map(|item| item.as_str().map(str::to_owned)).collect()
        }
        _ => None,
    }
}
