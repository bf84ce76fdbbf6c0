//! The table of routes and the models' schemas → an OpenAPI 3.1 document.

use std::collections::{BTreeMap, BTreeSet};

use hyper::StatusCode;
use scoregate_model::explain::{Method, Space};
use serde_json::{Map, Value, json};
use url::Url;

use super::super::body::{Format, SVG};
use super::super::problem::Code;
use super::super::router::{Route, routes};
use super::super::serve::Side;
use super::operation::{Operation, TAGS};
use super::row::Described;
use crate::auth::Scope;
use crate::config::Settings;

/// What stays the same: parameters, headers and most schemas.
const COMPONENTS: &str = include_str!("components.json");

const DESCRIPTION: &str = "A scoring gateway for tabular models: rows of named features in, scores out.\n\n\
    An API key, an access token or a client certificate says who calls. Every answer carries `x-request-id`, and every refusal is a \
    problem document (RFC 9457) whose `code` is stable. Quotas count rows.";

/// What a document is made of.
pub(crate) struct Writer<'w> {
    side: Side,
    settings: &'w Settings,
    /// Answers that several operations share, by what they are called.
    responses: BTreeMap<String, Value>,
    schemas: Map<String, Value>,
}

/// What an operation is about.
#[derive(Clone, Copy)]
enum Subject<'m> {
    /// No model, or any.
    Any,
    /// This one.
    Model(&'m Described<'m>),
}

/// The document of a listener: every route, and a path of its own for each of the `models`, whose rows are known.
pub(crate) fn whole(side: Side, settings: &Settings, models: &[Described<'_>]) -> Value {
    let mut writer = Writer::new(side, settings);
    let shown = if settings.server.openapi_models { models } else { &[] };
    let default = shown.iter().find(|model| model.name == settings.models.default);
    let mut paths = Map::new();
    for route in routes(side, settings) {
        let names_model = route.path.contains("{model}");
        let subject = default.filter(|_| !names_model).map_or(Subject::Any, Subject::Model);
        let id = route.operation.words().id;
        let id =
            if names_model && route.operation.is_scoring() { format!("{id}_with_model") } else { id.into() };
        writer.add(&mut paths, &documented(route.path), &route, &id, subject);
        if names_model && route.operation.is_scoring() {
            for model in shown {
                let id = format!("{}-{}", route.operation.words().id, model.name);
                writer.add(&mut paths, &path_of(&route, model), &route, &id, Subject::Model(model));
            }
        }
    }
    writer.finish("Scoregate", DESCRIPTION.into(), paths)
}

/// The document of one model: the routes that are about it.
pub(crate) fn of_model(side: Side, settings: &Settings, model: &Described<'_>) -> Value {
    let mut writer = Writer::new(side, settings);
    let mut paths = Map::new();
    for route in routes(side, settings) {
        if route.path.contains("{model}") || route.operation == Operation::Token {
            let id = route.operation.words().id;
            writer.add(&mut paths, &path_of(&route, model), &route, id, Subject::Model(model));
        }
    }
    let own = model.schema.document().get("description").and_then(Value::as_str).unwrap_or_default();
    let description = format!("{own}\n\n{DESCRIPTION}");
    writer.finish(&format!("Scoregate: {}", model.name), description.trim_start().into(), paths)
}

/// A path as OpenAPI writes it.
pub(super) fn documented(path: &str) -> String {
    path.replace("{*", "{")
}

fn path_of(route: &Route, model: &Described<'_>) -> String {
    documented(route.path).replace("{model}", model.name)
}

fn reference(kind: &str, name: &str) -> Value {
    json!({ "$ref": format!("#/components/{kind}/{name}") })
}

fn schema(name: &str) -> Value {
    reference("schemas", name)
}

/// A text in a format of its own.
fn text() -> Value {
    json!({ "type": "string" })
}

fn typed(media_type: &str, schema: &Value) -> Value {
    json!({ media_type: { "schema": schema } })
}

impl<'w> Writer<'w> {
    fn new(side: Side, settings: &'w Settings) -> Self {
        Self { side, settings, responses: BTreeMap::new(), schemas: Map::new() }
    }

    fn add(
        &mut self,
        paths: &mut Map<String, Value>,
        path: &str,
        route: &Route,
        id: &str,
        subject: Subject<'_>,
    ) {
        let operation = self.operation(path, route, id, subject);
        let item = paths.entry(path).or_insert_with(|| json!({}));
        item[route.method.as_str().to_ascii_lowercase()] = operation;
    }

    fn operation(&mut self, path: &str, route: &Route, id: &str, subject: Subject<'_>) -> Value {
        let words = route.operation.words();
        let summary = match subject {
            _ if !route.operation.is_scoring() => words.summary.to_owned(),
            Subject::Any if path.contains("{model}") => format!("{} with any model", words.summary),
            Subject::Any => format!("{} with the default model", words.summary),
            Subject::Model(model) => format!("{} with {}", words.summary, model.name),
        };
        let mut operation = json!({ "operationId": id, "tags": [words.tag], "summary": summary });
        if !words.description.is_empty() {
            operation["description"] = words.description.into();
        }
        operation["parameters"] = self.parameters(path, route.operation, subject).into();
        if let Some(body) = self.body(route.operation, subject) {
            operation["requestBody"] = body;
        }
        operation["responses"] = self.answers(route.operation, subject);
        operation["security"] = self.security(route.operation.scope());
        operation
    }

    fn parameters(&self, path: &str, operation: Operation, subject: Subject<'_>) -> Vec<Value> {
        use Operation as Op;
        let mut names = Vec::new();
        for (place, name) in [("{model}", "Model"), ("{version}", "Version"), ("{path}", "IssuerPath")] {
            if path.contains(place) {
                names.push(name);
            }
        }
        if operation.is_scoring() {
            names.extend(["Explain", "TopK", "Space", "Method"]);
            if !matches!(subject, Subject::Model(model) if model.classes().is_empty()) {
                names.push("Class");
            }
            names.extend(["ModelVersion", "CacheControl"]);
        }
        if operation.is_scoring() || matches!(operation, Op::PutRollout | Op::Rollback | Op::Token) {
            names.push("ContentEncoding");
        }
        if operation.is_tagged() {
            names.push("IfNoneMatch");
        }
        if operation == Op::Comparisons {
            names.push("OfModel");
        }
        if operation == Op::Diff {
            names.extend(["FromVersion", "ToVersion"]);
        }
        if operation == Op::PutRollout {
            names.push("Breaking");
        }
        if matches!(operation, Op::PutRollout | Op::Rollback) {
            names.push("IfMatch");
        }
        names.extend(["RequestId", "Traceparent", "Tracestate"]);
        let mut parameters: Vec<Value> =
            names.into_iter().map(|name| reference("parameters", name)).collect();
        if !operation.files().is_empty() {
            let files: Vec<&str> = operation.files().iter().map(|file| file.name).collect();
            let file = json!({ "type": "string", "enum": files });
            parameters.insert(0, json!({ "name": "file", "in": "path", "required": true, "schema": file }));
        }
        if let (true, Subject::Model(model)) = (operation.is_scoring(), subject) {
            // The class of a model whose labels are known.
            let at = parameters.iter().position(|found| *found == reference("parameters", "Class"));
            if let Some(at) = at {
                let labels = json!({ "type": "string", "enum": model.classes() });
                let description = "The label that is explained; the most likely one, of two the positive one, unless said. \
                                   Only with an explanation.";
                parameters[at] =
                    json!({ "name": "class", "in": "query", "description": description, "schema": labels });
            }
        }
        parameters
    }

    /// What a client sends.
    fn body(&mut self, operation: Operation, subject: Subject<'_>) -> Option<Value> {
        let json = Format::Json.media_type();
        let content = match operation {
            Operation::Predict => {
                let mut content = typed(json, &self.row(subject));
                if let Subject::Model(model) = subject {
                    content[json]["example"] = model.example();
                }
                content
            }
            Operation::PredictBatch => {
                let most = match subject {
                    Subject::Any => self.settings.server.max_batch_rows,
                    Subject::Model(model) => model.max_batch_rows,
                };
                let rows =
                    json!({ "type": "array", "items": self.row(subject), "minItems": 1, "maxItems": most });
                let wrapped = json!({
                    "type": "object", "properties": { "rows": rows }, "required": ["rows"],
                    "additionalProperties": false
                });
                let mut content = typed(json, &json!({ "anyOf": [rows, wrapped] }));
                let (mut ndjson, mut csv) = (text(), text());
                ndjson["description"] = "A row as JSON on each line.".into();
                csv["description"] =
                    "A header with the names of the features, and a record for each row.".into();
                content[Format::Ndjson.media_type()]["schema"] = ndjson;
                content[Format::Csv.media_type()]["schema"] = csv;
                if let Subject::Model(model) = subject {
                    let example = model.example();
                    content[json]["example"] = model.example_rows();
                    content[Format::Ndjson.media_type()]["example"] = format!("{example}\n").into();
                    content[Format::Csv.media_type()]["example"] = csv_of(&example).into();
                }
                content
            }
            Operation::PutRollout => typed(json, &schema("Rollout")),
            Operation::Rollback => typed(json, &schema("TakenBack")),
            Operation::Publish => typed("multipart/form-data", &schema("Upload")),
            Operation::Token => typed("application/x-www-form-urlencoded", &schema("TokenRequest")),
            _ => return None,
        };
        Some(json!({ "required": operation != Operation::Rollback, "content": content }))
    }

    /// The schema of a row, which is kept under the model's name.
    fn row(&mut self, subject: Subject<'_>) -> Value {
        match subject {
            Subject::Any => schema("Row"),
            Subject::Model(model) => self.keep(&format!("{}.Row", model.name), || model.row()),
        }
    }

    fn keep(&mut self, name: &str, make: impl FnOnce() -> Value) -> Value {
        if !self.schemas.contains_key(name) {
            self.schemas.insert(name.into(), make());
        }
        schema(name)
    }

    fn answers(&mut self, operation: Operation, subject: Subject<'_>) -> Value {
        let good = if operation == Operation::Publish { "201" } else { "200" };
        let mut answers = Map::from_iter([(good.to_owned(), self.answer(operation, subject))]);
        if operation.is_tagged() {
            let mut unchanged = json!({ "description": "What the client has is what there is." });
            unchanged["headers"] = self.headers(&["ETag", "Cache-Control"], operation.scope().is_some());
            answers.insert("304".into(), unchanged);
        }
        let mut by_status: BTreeMap<StatusCode, Vec<Code>> = BTreeMap::new();
        for code in operation.codes() {
            by_status.entry(code.status()).or_default().push(code);
        }
        for (status, codes) in by_status {
            let refusal = self.refusal(operation, status, &codes);
            answers.insert(status.as_str().into(), refusal);
        }
        answers.into()
    }

    /// What a client gets that is not refused.
    fn answer(&mut self, operation: Operation, subject: Subject<'_>) -> Value {
        use Operation as Op;
        let json = Format::Json.media_type();
        let plain = |name: &str| typed(json, &schema(name));
        let content = match operation {
            Op::Health | Op::Live | Op::Ready => plain("Health"),
            Op::Predict => {
                let score = match subject {
                    Subject::Any => schema("Score"),
                    Subject::Model(model) => self.keep(&format!("{}.Score", model.name), || model.score()),
                };
                let mut content = typed(json, &score);
                content[SVG]["schema"] = text();
                content
            }
            Op::PredictBatch => {
                let scored = match subject {
                    Subject::Any => schema("ScoredRow"),
                    Subject::Model(model) => {
                        self.keep(&format!("{}.ScoredRow", model.name), || model.scored_row())
                    }
                };
                let batch = json!({
                    "type": "object",
                    "properties": {
                        "model_version": { "type": "string" },
                        "predictions": { "type": "array", "items": { "anyOf": [scored, schema("RefusedRow")] } },
                    },
                    "required": ["model_version", "predictions"],
                });
                let name = match subject {
                    Subject::Any => "Batch".to_owned(),
                    Subject::Model(model) => format!("{}.Batch", model.name),
                };
                let mut content = typed(json, &self.keep(&name, || batch));
                content[Format::Ndjson.media_type()]["schema"] = text();
                content[Format::Csv.media_type()]["schema"] = text();
                content
            }
            Op::Models => plain("Models"),
            Op::Model => plain("ModelDescription"),
            Op::Versions => plain("Versions"),
            Op::Version | Op::Metadata => plain("VersionDescription"),
            Op::Importance => typed(SVG, &text()),
            Op::Document | Op::ModelDocument => plain("OpenApi"),
            Op::Docs | Op::Console => typed("text/html", &text()),
            Op::DocsFile | Op::ConsoleFile => {
                let files = operation.files().iter();
                files.map(|file| (file.media_type().to_owned(), json!({ "schema": text() }))).collect()
            }
            Op::LiveCounts => plain("LiveCounts"),
            Op::Comparisons => plain("Comparisons"),
            Op::Resource | Op::ResourceAt => plain("ProtectedResource"),
            Op::Token => plain("Token"),
            Op::KeySet => plain("KeySet"),
            Op::Server | Op::ServerAt => plain("AuthorizationServer"),
            Op::GetRollout | Op::PutRollout | Op::Rollback => plain("RolloutDescription"),
            Op::Diff => plain("Diff"),
            Op::Publish => plain("Publication"),
            Op::Metrics => {
                let mut content = typed("text/plain", &text());
                content["application/openmetrics-text"]["schema"] = text();
                content
            }
        };
        let more: &[&str] = match operation {
            Op::Predict | Op::PredictBatch => &["Cache-Status"],
            _ if operation.is_tagged() => &["ETag", "Cache-Control"],
            Op::GetRollout | Op::PutRollout | Op::Rollback => &["ETag", "Cache-Control"],
            Op::Publish => &["Location", "Cache-Control"],
            Op::Token
            | Op::KeySet
            | Op::Server
            | Op::ServerAt
            | Op::Resource
            | Op::ResourceAt
            | Op::LiveCounts
            | Op::Comparisons
            | Op::Diff => &["Cache-Control"],
            _ => &[],
        };
        let description = operation.words().summary;
        let headers = self.headers(more, operation.scope().is_some());
        json!({ "description": description, "headers": headers, "content": content })
    }

    /// A problem document with one of these codes; kept once for all operations that have it in common.
    fn refusal(&mut self, operation: Operation, status: StatusCode, codes: &[Code]) -> Value {
        let is_oauth = operation == Operation::Token;
        let names: Vec<&str> = codes.iter().map(|code| code.as_str()).collect();
        let lines = codes.iter().map(|code| format!("- `{}`: {}", code.as_str(), code.title()));
        let description = lines.collect::<Vec<_>>().join("\n");
        let base = if is_oauth { "TokenProblem" } else { "Problem" };
        let problem = json!({
            "allOf": [
                schema(base),
                { "type": "object", "properties": { "code": { "type": "string", "enum": names } } },
            ]
        });
        let told: &[&str] = match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => &["Cache-Control", "WWW-Authenticate"],
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                &["Cache-Control", "Retry-After"]
            }
            _ => &["Cache-Control"],
        };
        // Who was let in is told of its quota, whatever becomes of the request.
        let is_counted = operation.scope().is_some() && status != StatusCode::UNAUTHORIZED;
        // The name is made of what it says, or of whose it is: it stays as it is whatever else is in a document, and so do the types of
        // clients that are generated from it.
        let name = match codes {
            [code] => format!("{base}.{}", code.as_str()),
            _ => format!("{base}.{}_{}", operation.words().id, status.as_str()),
        };
        let problem = self.keep(&name, || problem);
        let name = if is_counted { format!("{name}.of_callers") } else { name };
        let mut content = typed("application/problem+json", &problem);
        if is_oauth {
            content["application/json"]["schema"] = problem;
        }
        let headers = self.headers(told, is_counted);
        let refusal = json!({ "description": description, "headers": headers, "content": content });
        self.responses.insert(name.clone(), refusal);
        reference("responses", &name)
    }

    /// The headers of every answer, those of these names, and those of a quota where the caller has one.
    fn headers(&self, names: &[&str], is_counted: bool) -> Value {
        let quota: &[&str] = match (is_counted, self.settings.quota.legacy_headers) {
            (false, _) => &[],
            (true, false) => &["RateLimit", "RateLimit-Policy"],
            (true, true) => &[
                "RateLimit",
                "RateLimit-Policy",
                "X-RateLimit-Limit",
                "X-RateLimit-Remaining",
                "X-RateLimit-Reset",
            ],
        };
        let one = |name: &&str| {
            let component = match *name {
                "x-request-id" => "RequestId".to_owned(),
                "traceparent" => "Traceparent".to_owned(),
                "WWW-Authenticate" => "WwwAuthenticate".to_owned(),
                other => other.replace('-', ""),
            };
            ((*name).to_owned(), reference("headers", &component))
        };
        Value::Object(["x-request-id", "traceparent"].iter().chain(names).chain(quota).map(one).collect())
    }

    /// Any one of these says who calls.
    fn security(&self, scope: Option<Scope>) -> Value {
        let Some(scope) = scope else { return json!([]) };
        self.schemes().keys().map(|name| json!({ name: [scope.as_str()] })).collect()
    }

    fn schemes(&self) -> Map<String, Value> {
        let settings = self.settings;
        let mut schemes = Map::new();
        schemes.insert(
            "key".into(),
            json!({
                "type": "apiKey", "in": "header", "name": "x-api-key",
                "description": "An API key, as `scoregate keys create` prints it. `Authorization: Bearer` takes it as well."
            }),
        );
        schemes.insert(
            "token".into(),
            json!({
                "type": "http", "scheme": "bearer", "bearerFormat": "JWT",
                "description": "An access token; where they come from stands in `/.well-known/oauth-protected-resource`."
            }),
        );
        if settings.oauth.is_some() {
            let scopes: Map<String, Value> =
                Scope::ALL.iter().map(|scope| (scope.as_str().to_owned(), purpose(*scope).into())).collect();
            // Beside this document, whatever stands before the path.
            let flow = json!({ "tokenUrl": format!("{}/oauth/token", self.base()), "scopes": scopes });
            schemes.insert(
                "client".into(),
                json!({
                    "type": "oauth2", "description": "A client of the built-in issuer.",
                    "flows": { "clientCredentials": flow }
                }),
            );
        }
        let takes_certificates = settings.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
        if takes_certificates && !settings.auth.certificates.is_empty() {
            let description = "A client certificate that the operator has mapped to an identity.";
            schemes.insert("certificate".into(), json!({ "type": "mutualTLS", "description": description }));
        }
        schemes
    }

    /// The path that a proxy puts before all others, without a slash at its end. None is before the admin listener.
    fn base(&self) -> String {
        if self.side == Side::Admin {
            return String::new();
        }
        let url = Url::parse(&self.settings.public_url()).ok();
        url.map(|url| url.path().trim_end_matches('/').to_owned()).unwrap_or_default()
    }

    fn servers(&self) -> Value {
        let base = self.base();
        let here = if base.is_empty() { "/".to_owned() } else { base };
        let mut servers = vec![json!({ "url": here, "description": "Where this document comes from" })];
        if let (Some(url), Side::Public) = (&self.settings.server.public_url, self.side) {
            servers.push(json!({ "url": url, "description": "The public listener" }));
        }
        servers.into()
    }

    fn finish(mut self, title: &str, description: String, paths: Map<String, Value>) -> Value {
        let components: Value = serde_json::from_str(COMPONENTS).expect("a test reads it");
        let mut components: Map<String, Value> = match components {
            Value::Object(components) => components,
            _ => Map::new(),
        };
        if let Some(Value::Object(schemas)) = components.get_mut("schemas") {
            schemas.insert("Space".into(), words(Space::ALL.map(Space::as_str)));
            schemas.insert("Method".into(), words(Method::ALL.map(Method::as_str)));
            schemas.append(&mut self.schemas);
        }
        components.insert("responses".into(), self.responses.iter().map(clone).collect());
        let schemes = self.schemes();
        let paths = Value::Object(paths);
        prune(&mut components, &paths);
        components.insert("securitySchemes".into(), schemes.into());
        let tags: Vec<Value> = used_tags(&paths);
        json!({
            "openapi": "3.1.0",
            "info": {
                "title": title,
                "version": env!("CARGO_PKG_VERSION"),
                "description": description,
                // No `identifier`: pages make an address of it, and a choice of two has none.
                "license": { "name": env!("CARGO_PKG_LICENSE"), "url": "https://spdx.org/licenses/" },
            },
            "servers": self.servers(),
            "tags": tags,
            "paths": paths,
            "components": components,
        })
    }
}

fn clone((name, value): (&String, &Value)) -> (String, Value) {
    (name.clone(), value.clone())
}

fn words<const N: usize>(words: [&str; N]) -> Value {
    json!({ "type": "string", "enum": words.to_vec() })
}

/// Leaves out components that nothing refers to.
fn prune(components: &mut Map<String, Value>, paths: &Value) {
    let mut used = BTreeSet::new();
    let mut waiting = Vec::new();
    references(paths, &mut waiting);
    while let Some(found) = waiting.pop() {
        let Some((kind, name)) = found.strip_prefix("#/components/").and_then(|rest| rest.split_once('/'))
        else {
            continue;
        };
        if let Some(component) = components.get(kind).and_then(|kind| kind.get(name))
            && used.insert(format!("{kind}/{name}"))
        {
            references(component, &mut waiting);
        }
    }
    for (kind, all) in components.iter_mut() {
        if let Value::Object(all) = all {
            all.retain(|name, _| used.contains(&format!("{kind}/{name}")));
        }
    }
}

fn references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                match value {
                    Value::String(target) if name == "$ref" => found.push(target.clone()),
                    value => references(value, found),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

fn used_tags(paths: &Value) -> Vec<Value> {
    let operations = || paths.as_object().into_iter().flatten().filter_map(|(_, item)| item.as_object());
    let is_used = |tag: &str| operations().flatten().any(|(_, operation)| operation["tags"][0] == tag);
    let used = TAGS.iter().filter(|(tag, _)| is_used(tag));
    used.map(|(name, description)| json!({ "name": name, "description": description })).collect()
}

/// What a scope lets its holder do.
fn purpose(scope: Scope) -> &'static str {
    match scope {
        Scope::ScorePredict => "Score rows",
        Scope::ScoreJobs => "Run jobs",
        Scope::FeedbackWrite => "Report outcomes",
        Scope::ModelsRead => "Read what is known of models",
        Scope::ModelsWrite => "Publish versions and choose the live one",
        Scope::MonitoringRead => "Read monitoring",
    }
}

/// A row as CSV with its header.
fn csv_of(row: &Value) -> String {
    let Some(row) = row.as_object() else { return String::new() };
    let cell = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    };
    let mut writer = csv::Writer::from_writer(Vec::new());
    let written = writer.write_record(row.keys()).and_then(|()| writer.write_record(row.values().map(cell)));
    written.ok().and_then(|()| String::from_utf8(writer.into_inner().ok()?).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::config::Sources;

    /// Settings of this environment and file.
    fn settings(environment: &[(&str, &str)], file: &str) -> Settings {
        let environment =
            environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Settings::load(Sources { environment, file: Some(file.into()), ..Sources::default() }).unwrap()
    }

    fn schemes(settings: &Settings) -> Vec<String> {
        let document = whole(Side::Public, settings, &[]);
        document["components"]["securitySchemes"].as_object().unwrap().keys().cloned().collect()
    }

    #[test]
    fn the_ways_to_show_who_one_is_are_those_that_are_switched_on() {
        assert_eq!(schemes(&settings(&[], "")), ["key", "token"]);
        let issuer = ("SCOREGATE_OAUTH_ISSUER", "https://scores.example");
        assert_eq!(schemes(&settings(&[issuer], "")), ["key", "token", "client"]);
        let tls = [
            ("SCOREGATE_TLS_CERT", "cert.pem"),
            ("SCOREGATE_TLS_KEY", "key.pem"),
            ("SCOREGATE_TLS_CLIENT_CA", "ca.pem"),
        ];
        assert_eq!(schemes(&settings(&tls, "")), ["key", "token"], "no certificate is anybody");
        let mapped =
            "[[auth.certificate]]\ndns = \"a.example\"\nname = \"a\"\nscopes = [\"score:predict\"]\n";
        assert_eq!(schemes(&settings(&tls, mapped)), ["key", "token", "certificate"]);
    }

    #[test]
    fn older_headers_are_told_of_where_they_are_sent() {
        let shown = |environment: &[(&str, &str)]| {
            let document = whole(Side::Public, &settings(environment, ""), &[]);
            !document["components"]["headers"]["XRateLimitReset"].is_null()
        };
        assert!(!shown(&[]) && shown(&[("SCOREGATE_QUOTA_LEGACY_HEADERS", "true")]));
    }

    #[test]
    fn a_path_that_a_proxy_puts_before_all_others_is_known() {
        let url = ("SCOREGATE_PUBLIC_URL", "https://example.com/scores");
        let issuer = ("SCOREGATE_OAUTH_ISSUER", "https://example.com/scores");
        let settings = settings(&[url, issuer], "");
        let document = whole(Side::Public, &settings, &[]);
        assert_eq!(document["servers"][0]["url"], "/scores");
        assert_eq!(document["servers"][1]["url"], "https://example.com/scores");
        let flow = &document["components"]["securitySchemes"]["client"]["flows"]["clientCredentials"];
        assert_eq!(flow["tokenUrl"], "/scores/oauth/token");
        // Operators ask their listener directly.
        let document = whole(Side::Admin, &settings, &[]);
        assert_eq!((&document["servers"][0]["url"], &document["servers"][1]), (&json!("/"), &Value::Null));
    }

    #[test]
    fn every_reference_leads_somewhere_and_nothing_is_left_over() {
        let issuer = ("SCOREGATE_OAUTH_ISSUER", "https://scores.example");
        let document = whole(Side::Admin, &settings(&[issuer], ""), &[]);
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(found.len() > 100);
        for target in &found {
            assert!(document.pointer(target.trim_start_matches('#')).is_some(), "{target}");
        }
        let components = document["components"].as_object().unwrap();
        for (kind, all) in components.iter().filter(|(kind, _)| *kind != "securitySchemes") {
            for name in all.as_object().unwrap().keys() {
                assert!(found.contains(&format!("#/components/{kind}/{name}")), "{kind}/{name}");
            }
        }
    }

    #[test]
    fn operations_have_names_of_their_own() {
        let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("schemas/churn.json");
        let schema = scoregate_schemas::FeatureSchema::parse(&std::fs::read(manifest).unwrap()).unwrap();
        let models = ["churn", "batch-churn", "batch_churn"].map(|name| Described::of_schema(name, &schema));
        let document = whole(Side::Admin, &settings(&[], ""), &models);
        let mut names = BTreeSet::new();
        for item in document["paths"].as_object().unwrap().values() {
            for operation in item.as_object().unwrap().values() {
                let name = operation["operationId"].as_str().unwrap();
                assert!(names.insert(name.to_owned()), "{name}");
            }
        }
        assert!(names.contains("predict-churn") && names.contains("predict_batch-batch-churn"), "{names:?}");
    }
}
