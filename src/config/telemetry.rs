//! Settings of logs, metrics and traces.

use std::path::PathBuf;

use url::Url;

use super::reader::Reader;
use super::values::{log_filter, log_format, optional_path, text};

/// Logs.
#[derive(Debug, Clone)]
pub struct LogSettings {
    /// `SCOREGATE_LOG` (`info`): a level, or a filter such as `info,scoregate=debug`.
    pub filter: String,
    /// Whether the filter is that of the settings file, or its default, and follows the file when it changes.
    pub is_followed: bool,
    /// `SCOREGATE_LOG_FORMAT` (`auto|json|text`): JSON lines unless standard error is a terminal.
    pub format: LogFormat,
    /// `SCOREGATE_LOG_ACCESS` (`on|errors|off`): which requests have a line.
    pub access: AccessLog,
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON lines elsewhere.
    Auto,
    /// JSON lines.
    Json,
    /// Text.
    Text,
}

/// Which requests have a line in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessLog {
    /// All.
    On,
    /// Those that were refused or failed.
    Errors,
    /// None.
    Off,
}

/// Traces.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceSettings {
    /// `SCOREGATE_OTLP_ENDPOINT` (none): the collector, such as `http://localhost:4318`.
    pub endpoint: Url,
    /// `SCOREGATE_OTLP_PROTOCOL` (`http`, at port 4317 `grpc`).
    pub protocol: OtlpProtocol,
    /// `SCOREGATE_TRACE_SAMPLE` (`0.01`): the share of requests that are traced, of those whose clients do not say.
    pub sample: f64,
    /// `SCOREGATE_SERVICE_NAME` (`scoregate`): what the gateway is called there.
    pub service_name: String,
    /// `SCOREGATE_OTLP_HEADERS_FILE` (none): headers that the collector asks for, lines of `name: value`.
    pub headers_file: Option<PathBuf>,
}

/// How a collector is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtlpProtocol {
    /// Protocol buffers over HTTP.
    Http,
    /// gRPC.
    Grpc,
}

/// The port that collectors take gRPC at.
const GRPC_PORT: u16 = 4317;

impl Reader {
    pub(super) fn log(&mut self, is_followed: bool) -> LogSettings {
        LogSettings {
            filter: self.take("SCOREGATE_LOG", "log.filter", DEFAULT_FILTER, log_filter),
            is_followed,
            format: self.take("SCOREGATE_LOG_FORMAT", "log.format", "auto", log_format),
            access: self.take("SCOREGATE_LOG_ACCESS", "log.access", "on", |text| match text {
                "on" => Ok(AccessLog::On),
                "errors" => Ok(AccessLog::Errors),
                "off" => Ok(AccessLog::Off),
                _ => Err("on, errors or off".into()),
            }),
        }
    }

    /// Whether requests, rows and versions are counted: `SCOREGATE_METRICS` (`on|off`).
    pub(super) fn metrics(&mut self) -> bool {
        self.take("SCOREGATE_METRICS", "metrics.requests", "on", |text| match text {
            "on" => Ok(true),
            "off" => Ok(false),
            _ => Err("on or off".to_owned()),
        })
    }

    /// Traces, where a collector is named.
    pub(super) fn trace(&mut self) -> Option<TraceSettings> {
        let endpoint = self.take("SCOREGATE_OTLP_ENDPOINT", "trace.endpoint", "", |text| match text {
            "" => Ok(None),
            text => {
                let found = Url::parse(text).ok();
                let is_plain = |url: &Url| {
                    let has_user = !url.username().is_empty() || url.password().is_some();
                    let has_more = url.query().is_some() || url.fragment().is_some();
                    matches!(url.scheme(), "http" | "https") && url.has_host() && !has_user && !has_more
                };
                let expected = "a URL such as http://localhost:4318, without user, query and fragment";
                found.filter(is_plain).map(Some).ok_or_else(|| expected.to_string())
            }
        });
        let protocol = self.take("SCOREGATE_OTLP_PROTOCOL", "trace.protocol", "", |text| match text {
            "" => Ok(None),
            "http" => Ok(Some(OtlpProtocol::Http)),
            "grpc" => Ok(Some(OtlpProtocol::Grpc)),
            _ => Err("http or grpc".into()),
        });
        let sample = self.take("SCOREGATE_TRACE_SAMPLE", "trace.sample", "0.01", |text| {
            let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
            share.ok_or_else(|| "a number from 0 to 1".to_string())
        });
        let service_name = self.take("SCOREGATE_SERVICE_NAME", "trace.service_name", "scoregate", text);
        let headers_file = self.take("SCOREGATE_OTLP_HEADERS_FILE", "trace.headers_file", "", optional_path);
        let endpoint = endpoint?;
        let by_port = match endpoint.port() {
            Some(GRPC_PORT) => OtlpProtocol::Grpc,
            _ => OtlpProtocol::Http,
        };
        let protocol = protocol.unwrap_or(by_port);
        Some(TraceSettings { endpoint, protocol, sample, service_name, headers_file })
    }
}

/// What is logged unless somebody says.
const DEFAULT_FILTER: &str = "info";

/// The filter of a settings file, for which the rest of it need not be right.
///
/// # Errors
/// What is wrong with it.
pub fn log_filter_of(text: &[u8]) -> Result<String, String> {
    let text = str::from_utf8(text).map_err(|_| "found bytes that are no UTF-8, expected TOML")?;
    let table: toml::Table = text.parse().map_err(|error| format!("expected TOML: {error}"))?;
    match table.get("log").and_then(|log| log.get("filter")) {
        None => Ok(DEFAULT_FILTER.into()),
        Some(filter) => log_filter(filter.as_str().unwrap_or(""))
            .map_err(|expected| format!("log.filter: expected {expected}")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::load;
    use super::*;

    #[test]
    fn traces_are_there_only_where_a_collector_is_named() {
        assert_eq!(load(&[], None).unwrap().trace, None);
        for (endpoint, protocol, expected) in [
            ("http://localhost:4318", "", OtlpProtocol::Http),
            ("http://localhost:4317", "", OtlpProtocol::Grpc),
            ("http://localhost:4317", "http", OtlpProtocol::Http),
            ("https://traces.example.com/otlp", "grpc", OtlpProtocol::Grpc),
        ] {
            let environment = [("SCOREGATE_OTLP_ENDPOINT", endpoint), ("SCOREGATE_OTLP_PROTOCOL", protocol)];
            let trace = load(&environment, None).unwrap().trace.unwrap();
            assert_eq!((trace.protocol, trace.sample), (expected, 0.01), "{endpoint} {protocol}");
        }
        let wrong = [
            ("SCOREGATE_OTLP_ENDPOINT", "localhost:4318"),
            ("SCOREGATE_OTLP_PROTOCOL", "udp"),
            ("SCOREGATE_TRACE_SAMPLE", "1.5"),
            ("SCOREGATE_LOG_ACCESS", "yes"),
            ("SCOREGATE_METRICS", "true"),
        ];
        assert_eq!(load(&wrong, None).unwrap_err().len(), 5);
    }

    #[test]
    fn the_filter_follows_the_file_unless_the_environment_says_it() {
        let file = Some("[log]\nfilter = \"debug\"\naccess = \"errors\"");
        let log = load(&[], file).unwrap().log;
        assert_eq!((log.filter.as_str(), log.is_followed, log.access), ("debug", true, AccessLog::Errors));
        let log = load(&[("SCOREGATE_LOG", "warn")], file).unwrap().log;
        assert_eq!((log.filter.as_str(), log.is_followed), ("warn", false));
        assert_eq!(log_filter_of(b"[log]\nfilter = \"warn\"").unwrap(), "warn");
        assert_eq!(log_filter_of(b"").unwrap(), "info");
        assert!(log_filter_of(b"[log]\nfilter = \"a=b=c\"").is_err() && log_filter_of(b"[").is_err());
    }
}
