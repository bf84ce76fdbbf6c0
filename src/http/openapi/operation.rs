//! What the document says of each operation: its name, its scope, and every way in which it may be refused.

use super::super::assets::File;
use super::super::problem::Code;
use super::super::{console, docs};
use crate::auth::Scope;

/// What is done by a route. Several routes may do the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::http) enum Operation {
    Health,
    Live,
    Ready,
    Predict,
    PredictBatch,
    Models,
    Model,
    Importance,
    Versions,
    Version,
    ModelDocument,
    Metadata,
    Document,
    Docs,
    DocsFile,
    Resource,
    ResourceAt,
    Token,
    KeySet,
    Server,
    ServerAt,
    Diff,
    Publish,
    GetRollout,
    PutRollout,
    Rollback,
    Metrics,
    LiveCounts,
    Comparisons,
    Console,
    ConsoleFile,
}

/// What an operation is called, and what is said of it.
pub(super) struct Words {
    pub(super) id: &'static str,
    pub(super) tag: &'static str,
    pub(super) summary: &'static str,
    pub(super) description: &'static str,
}

/// The tags, in the order in which they are shown.
pub(super) const TAGS: [(&str, &str); 6] = [
    ("Scoring", "Rows of named features in, scores out."),
    ("Models", "Which models and versions there are, and what is known of them."),
    ("Tokens", "Where access tokens come from, and the keys to check them with."),
    ("Health", "Whether this process answers, and whether it is ready."),
    ("Operation", "What operators do; on the admin listener alone."),
    ("Documents", "This document, and the page that shows it."),
];

impl Operation {
    pub(super) fn words(self) -> Words {
        let (id, tag, summary, description) = match self {
            Self::Health => ("health", "Health", "The process answers", ""),
            Self::Live => ("health_live", "Health", "The process answers", ""),
            Self::Ready => (
                "health_ready",
                "Health",
                "Requests should be sent here",
                "Models are loaded and warm, and the gateway is not about to stop.",
            ),
            Self::Predict => (
                "predict",
                "Scoring",
                "Score one row",
                "A probability, a label and an identifier that is new for every answer. `Accept: image/svg+xml` draws how the \
                 answer came about.",
            ),
            Self::PredictBatch => (
                "predict_batch",
                "Scoring",
                "Score many rows",
                "Each row succeeds or fails on its own, in the order sent: 200 if any scored, 422 if none did. NDJSON is \
                 answered with NDJSON; CSV with JSON, or with columns added for `Accept: text/csv`. Rows that name the same \
                 entity are all refused. Where there are canaries each row goes to the version of whoever it is about, and says so.",
            ),
            Self::Models => ("list_models", "Models", "The models that the caller may use", ""),
            Self::Model => ("get_model", "Models", "A model, with all that is known of each version", ""),
            Self::Importance => (
                "get_importance",
                "Models",
                "A picture of the features that move the live version's answers most",
                "",
            ),
            Self::Versions => ("list_versions", "Models", "All that is known of each version of a model", ""),
            Self::Version => ("get_version", "Models", "All that is known of a version", ""),
            Self::ModelDocument => {
                ("get_model_document", "Documents", "The document of one model", "As OpenAPI 3.1.")
            }
            Self::Metadata => {
                ("get_metadata", "Models", "All that is known of the default model's live version", "")
            }
            Self::Document => ("get_document", "Documents", "This document", "As OpenAPI 3.1."),
            Self::Docs => ("get_docs", "Documents", "A page that shows this document and tries it out", ""),
            Self::DocsFile => ("get_docs_file", "Documents", "What that page is made of", ""),
            Self::Resource => (
                "get_protected_resource",
                "Tokens",
                "What the gateway takes access tokens from",
                "OAuth 2.0 Protected Resource Metadata (RFC 9728).",
            ),
            Self::ResourceAt => (
                "get_protected_resource_at",
                "Tokens",
                "The same, where clients look that have been given a URL with a path",
                "RFC 9728, section 3.1.",
            ),
            Self::Token => (
                "get_token",
                "Tokens",
                "An access token for a client",
                "OAuth 2.0 client credentials (RFC 6749, section 4.4); id and secret by HTTP Basic or in the body.",
            ),
            Self::KeySet => (
                "get_key_set",
                "Tokens",
                "The keys with which the built-in issuer's tokens are checked",
                "JSON Web Key Set (RFC 7517).",
            ),
            Self::Server => (
                "get_authorization_server",
                "Tokens",
                "What the built-in issuer is",
                "OAuth 2.0 Authorization Server Metadata (RFC 8414).",
            ),
            Self::ServerAt => (
                "get_authorization_server_at",
                "Tokens",
                "The same, where clients look whose issuer has a path",
                "RFC 8414, section 3.1.",
            ),
            Self::Diff => (
                "diff_versions",
                "Models",
                "How two versions of a model differ",
                "What they take and answer, how good they are, and, where both are loaded, how far apart they answer golden rows.",
            ),
            Self::Publish => (
                "publish_version",
                "Operation",
                "Publish a model as a version",
                "It is examined in a process of its own first. It answers nobody before it is rolled out, unless it is the \
                 model's first. Without a schema it has the live version's.",
            ),
            Self::GetRollout => (
                "get_rollout",
                "Models",
                "Which versions of a model answer whom",
                "And what has become of each of them in this gateway.",
            ),
            Self::PutRollout => (
                "put_rollout",
                "Operation",
                "Say which versions of a model answer whom",
                "Every gateway on the repository follows within two seconds. A canary whose share grows keeps the entities that it \
                 has. The version that was live before stays loaded.",
            ),
            Self::Rollback => (
                "roll_back",
                "Operation",
                "Take back what was rolled out last",
                "Canaries, where there are any: the live version answers everybody again. Else the version that was live before is \
                 it again, which takes no loading. The shadow goes in both cases. A body may name the version that is to be taken \
                 back, so that nothing else is.",
            ),
            Self::Metrics => (
                "get_metrics",
                "Operation",
                "What was counted, for Prometheus",
                "OpenMetrics for whoever asks for it.",
            ),
            Self::LiveCounts => (
                "get_live_counts",
                "Operation",
                "What was counted, for pages and scripts",
                "Every metric of `/metrics` under the same name, of the models that the caller may use. Counts only grow until the \
                 gateway starts anew or another version takes a model over: rates are for whoever asks twice.",
            ),
            Self::Comparisons => (
                "get_comparisons",
                "Operation",
                "How shadows and canaries compare with the live version",
                "What both versions have scored, in numbers: rows that the live version has answered and the shadow scores too, and \
                 rows that a canary has answered and the live version scores too. This gateway's own, since the canary has its \
                 share.",
            ),
            Self::Console => (
                "get_console",
                "Operation",
                "The operator's page",
                "It holds nothing by itself: it asks for a credential, and asks with it.",
            ),
            Self::ConsoleFile => ("get_console_file", "Operation", "What that page is made of", ""),
        };
        Words { id, tag, summary, description }
    }

    /// Whether rows are scored.
    pub(super) fn is_scoring(self) -> bool {
        matches!(self, Self::Predict | Self::PredictBatch)
    }

    /// Whether it is asked for again only when it has changed.
    pub(super) fn is_tagged(self) -> bool {
        matches!(
            self,
            Self::Document
                | Self::ModelDocument
                | Self::Docs
                | Self::DocsFile
                | Self::Console
                | Self::ConsoleFile
        )
    }

    /// The files of a page, where one of them is asked for.
    pub(super) fn files(self) -> &'static [File] {
        match self {
            Self::DocsFile => &docs::FILES,
            Self::ConsoleFile => &console::FILES,
            _ => &[],
        }
    }

    /// What a caller needs; nothing where none is asked who it is.
    pub(super) fn scope(self) -> Option<Scope> {
        match self {
            Self::Predict | Self::PredictBatch => Some(Scope::ScorePredict),
            Self::Models
            | Self::Model
            | Self::Importance
            | Self::Versions
            | Self::Version
            | Self::GetRollout
            | Self::Diff
            | Self::ModelDocument
            | Self::Metadata => Some(Scope::ModelsRead),
            Self::PutRollout | Self::Rollback | Self::Publish => Some(Scope::ModelsWrite),
            Self::LiveCounts | Self::Comparisons => Some(Scope::MonitoringRead),
            Self::Health
            | Self::Live
            | Self::Ready
            | Self::Document
            | Self::Docs
            | Self::DocsFile
            | Self::Resource
            | Self::ResourceAt
            | Self::Token
            | Self::KeySet
            | Self::Server
            | Self::ServerAt
            | Self::Metrics
            | Self::Console
            | Self::ConsoleFile => None,
        }
    }

    /// Every code that an answer may have.
    pub(in crate::http) fn codes(self) -> Vec<Code> {
        use Code as C;
        // A handler that panics, and a connection that breaks.
        let mut codes = vec![C::Internal];
        if self.scope().is_some() {
            codes.extend([
                C::InvalidRequest,
                C::MissingCredentials,
                C::InvalidKey,
                C::InvalidToken,
                C::InsufficientScope,
                C::QuotaExceeded,
                C::CredentialTooLarge,
                C::CredentialsUnavailable,
            ]);
        }
        let about_a_model = [C::ModelNotAllowed, C::UnknownModel, C::NotReady];
        let with_a_body = [
            C::MalformedBody,
            C::MalformedGzip,
            C::NotAcceptable,
            C::BodyTimeout,
            C::BodyTooLarge,
            C::UnsupportedMediaType,
            C::UnsupportedEncoding,
            C::Overloaded,
        ];
        let scoring = [
            C::InvalidParameter,
            C::MalformedJson,
            C::ExplanationsOff,
            C::NoBackground,
            C::BackgroundUnusable,
            C::ExplanationsPreparing,
            C::UnknownVersion,
            C::VersionNotLoaded,
            C::ModelOutputInvalid,
            C::Deadline,
        ];
        let plain = [C::InvalidParameter, C::NotAcceptable];
        let of_a_rollout = [C::VersionUnusable, C::RepositoryUnavailable];
        let changing = [C::RolloutChanged, C::AuditUnavailable, C::QuotaUnavailable, C::Deadline];
        match self {
            Self::Health | Self::Live | Self::Docs | Self::Console => {}
            Self::Ready => codes.push(C::NotReady),
            Self::Predict => {
                codes.extend(about_a_model.into_iter().chain(with_a_body).chain(scoring));
                codes.push(C::InvalidRow);
            }
            Self::PredictBatch => {
                codes.extend(about_a_model.into_iter().chain(with_a_body).chain(scoring));
                codes.extend([C::InvalidRows, C::TooManyRows]);
            }
            Self::Models => codes.extend(plain.into_iter().chain([C::NotReady])),
            Self::Model | Self::Versions | Self::Metadata => {
                codes.extend(about_a_model.into_iter().chain(plain));
            }
            Self::ModelDocument => {
                codes.extend(about_a_model.into_iter().chain(plain));
                codes.push(C::Overloaded);
            }
            Self::Importance => {
                codes.extend(about_a_model.into_iter().chain(plain));
                codes.push(C::NoImportance);
            }
            Self::Version => {
                codes.extend(about_a_model.into_iter().chain(plain));
                codes.push(C::UnknownVersion);
            }
            Self::Document | Self::LiveCounts => {
                codes.extend(plain.into_iter().chain([C::NotReady, C::Overloaded]));
            }
            Self::Comparisons => {
                codes.extend(about_a_model.into_iter().chain(plain));
                codes.push(C::Overloaded);
            }
            Self::DocsFile | Self::ConsoleFile => codes.push(C::NotFound),
            Self::Resource | Self::KeySet | Self::Server => codes.extend(plain),
            Self::ResourceAt | Self::ServerAt => codes.extend(plain.into_iter().chain([C::NotFound])),
            Self::Token => {
                codes.extend(with_a_body);
                codes.extend([
                    C::InvalidParameter,
                    C::InvalidRequest,
                    C::UnsupportedGrantType,
                    C::InvalidScope,
                    C::InvalidClient,
                    C::ServerError,
                    C::TemporarilyUnavailable,
                ]);
            }
            Self::Diff => {
                codes.extend(about_a_model.into_iter().chain(plain));
                codes.extend([C::UnknownVersion, C::VersionUnusable, C::Overloaded, C::Deadline]);
            }
            Self::Publish => {
                let with_a_body = with_a_body.into_iter().filter(|code| *code != C::MalformedGzip);
                codes.extend(about_a_model.into_iter().chain(with_a_body));
                codes.extend([
                    C::InvalidParameter,
                    C::InvalidUpload,
                    C::InvalidName,
                    C::InvalidModel,
                    C::ModelRefused,
                    C::VersionExists,
                    C::StorageFull,
                    C::RepositoryUnavailable,
                    C::AuditUnavailable,
                    C::QuotaUnavailable,
                ]);
            }
            Self::GetRollout => {
                codes.extend(about_a_model.into_iter().chain(plain).chain(of_a_rollout));
                codes.push(C::Overloaded);
            }
            Self::PutRollout => {
                codes
                    .extend(about_a_model.into_iter().chain(with_a_body).chain(of_a_rollout).chain(changing));
                codes.extend([C::InvalidParameter, C::InvalidRollout, C::UnknownVersion, C::BreakingChange]);
            }
            Self::Rollback => {
                codes
                    .extend(about_a_model.into_iter().chain(with_a_body).chain(of_a_rollout).chain(changing));
                codes.extend([C::InvalidParameter, C::InvalidRollout, C::NoPreviousVersion]);
            }
            Self::Metrics => codes.extend([C::InvalidParameter, C::Overloaded]),
        }
        codes.sort_unstable_by_key(|code| (code.status(), *code));
        codes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Settings, Sources};
    use crate::http::router::routes;
    use crate::http::serve::Side;

    /// Everything that is ever served.
    fn operations() -> Vec<Operation> {
        let issuer = ("SCOREGATE_OAUTH_ISSUER".to_owned(), "https://scores.example".to_owned());
        let sources = Sources { environment: [issuer].into(), ..Sources::default() };
        let settings = Settings::load(sources).unwrap();
        routes(Side::Admin, &settings).iter().map(|route| route.operation).collect()
    }

    #[test]
    fn every_code_may_be_met_somewhere() {
        let met: Vec<Code> = operations().into_iter().flat_map(Operation::codes).collect();
        for code in Code::ALL {
            // What no operation has, since there is none.
            let is_of_no_operation = *code == Code::MethodNotAllowed;
            assert_ne!(met.contains(code), is_of_no_operation, "{}", code.as_str());
        }
    }

    #[test]
    fn no_operation_says_a_thing_twice() {
        for operation in operations() {
            let mut codes = operation.codes();
            let count = codes.len();
            codes.dedup();
            assert_eq!(codes.len(), count, "{operation:?}");
            assert!(TAGS.iter().any(|(tag, _)| *tag == operation.words().tag), "{operation:?}");
        }
    }
}
