//! The API document: it says what there is, what it says holds, and others can make something of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use scoregate_schemas::manifest::Output as GraphOutput;

use crate::support::graph::{FLOAT, Handmade};
use crate::support::{
    Answer, Client, Gateway, REFERENCE, Request, Settings, is_full, node_packages, node_program,
    publish_ratio_model, python, repository, scratch, shared, wait_for,
};

const DOCUMENT: &str = "/openapi.json";
const METHODS: [&str; 6] = ["get", "put", "post", "delete", "patch", "options"];

/// A gateway with its issuer, a key that may do everything, and a client of the issuer.
struct World {
    gateway: Gateway,
    key: String,
    client: [String; 2],
}

fn world() -> World {
    let settings = Settings::new()
        .set("SCOREGATE_OAUTH_ISSUER", "https://scores.example")
        .set("SCOREGATE_OAUTH_KEYS_FILE", "issuer_keys.json");
    let made = settings.run(&["clients", "create", "--name", "shop", "--scopes", "score:predict"]);
    let made: Value = serde_json::from_str(&succeeded(&made)).unwrap();
    let client = ["client_id", "client_secret"].map(|name| made[name].as_str().unwrap().to_owned());
    let scopes = "score:predict,models:read,models:write,monitoring:read";
    let key = settings.key_with(&["--name", "all", "--scopes", scopes]);
    World { gateway: settings.start(), key, client }
}

impl World {
    fn admin(&self, request: &Request) -> Answer {
        Client::connect(self.gateway.admin_addr).ask(request)
    }

    fn with_key(&self, request: Request) -> Request {
        request.header("X-Api-Key", &self.key)
    }

    /// The documents of both listeners, and of a model.
    fn documents(&self) -> [(&'static str, Value); 4] {
        let of_model = self.with_key(Request::get("/v1/models/churn/openapi.json"));
        [
            ("public", self.gateway.ask(&Request::get(DOCUMENT)).json()),
            ("admin", self.admin(&Request::get(DOCUMENT)).json()),
            ("churn", self.gateway.ask(&of_model).json()),
            ("admin-churn", self.admin(&of_model).json()),
        ]
    }
}

/// What a program printed; it has to have ended well.
fn succeeded(output: &Output) -> String {
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}\n{}", String::from_utf8_lossy(&output.stderr));
    printed.into_owned()
}

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name)
}

/// A script of tests/node, beside the packages: Node looks for them there.
fn node_script(name: &str) -> PathBuf {
    let script = node_packages().join(name);
    fs::copy(source("node").join(name), &script).unwrap();
    script
}

fn directory() -> TempDir {
    tempfile::tempdir_in(scratch()).unwrap()
}

/// Every operation of a document: method, path, and what is said of it.
fn operations(document: &Value) -> Vec<(String, String, Value)> {
    let paths = document["paths"].as_object().unwrap();
    let all = paths.iter().flat_map(|(path, item)| {
        let item = item.as_object().unwrap();
        assert!(item.keys().all(|method| METHODS.contains(&method.as_str())), "{path}");
        item.iter().map(|(method, operation)| (method.to_uppercase(), path.clone(), operation.clone()))
    });
    all.collect()
}

/// A path that is there, for one with parameters.
fn filled(path: &str) -> String {
    path.replace("{model}", "churn")
        .replace("{version}", "2026-05-17_01")
        .replace("{file}", "page.css")
        .replace("{path}", "elsewhere")
}

/// `$ref`s followed.
fn resolved<'d>(document: &'d Value, value: &'d Value) -> &'d Value {
    match value["$ref"].as_str() {
        Some(target) => document.pointer(target.trim_start_matches('#')).unwrap(),
        None => value,
    }
}

#[test]
fn every_route_is_documented_and_every_documented_route_is_there() {
    let world = world();
    let [(_, public), (_, admin), ..] = world.documents();
    let templates = |document: &Value| -> BTreeSet<String> {
        let of_models = ["/v1/models/churn/", "/v1/models/saas_churn/"];
        let all = operations(document).into_iter();
        let templates = all.filter(|(_, path, _)| !of_models.iter().any(|prefix| path.starts_with(prefix)));
        templates.map(|(method, path, _)| format!("{method} {path}")).collect()
    };
    let mut expected: BTreeSet<String> = [
        "GET /health",
        "GET /health/live",
        "GET /health/ready",
        "POST /v1/predict",
        "POST /v1/predict/batch",
        "POST /v1/models/{model}/predict",
        "POST /v1/models/{model}/predict/batch",
        "GET /v1/models",
        "GET /v1/models/{model}",
        "GET /v1/models/{model}/importance.svg",
        "GET /v1/models/{model}/versions",
        "GET /v1/models/{model}/versions/{version}",
        "GET /v1/models/{model}/rollout",
        "GET /v1/models/{model}/diff",
        "GET /v1/models/{model}/openapi.json",
        "GET /v1/metadata",
        "GET /openapi.json",
        "GET /docs",
        "GET /docs/{file}",
        "GET /.well-known/oauth-protected-resource",
        "GET /.well-known/oauth-protected-resource/{path}",
        "POST /oauth/token",
        "GET /.well-known/jwks.json",
        "GET /.well-known/oauth-authorization-server",
        "GET /.well-known/oauth-authorization-server/{path}",
    ]
    .map(String::from)
    .into();
    assert_eq!(templates(&public), expected);
    let of_operators = [
        "PUT /v1/models/{model}/rollout",
        "POST /v1/models/{model}/versions",
        "POST /v1/models/{model}/rollback",
        "GET /metrics",
        "GET /v1/monitoring/live",
        "GET /v1/monitoring/comparisons",
        "GET /console",
        "GET /console/{file}",
    ];
    expected.extend(of_operators.map(String::from));
    assert_eq!(templates(&admin), expected);
    let only_admin: BTreeSet<String> = templates(&admin).difference(&templates(&public)).cloned().collect();

    let mut methods: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (method, path, _) in operations(&admin) {
        methods.entry(path).or_default().insert(method);
    }
    for (path, methods) in methods {
        let target = filled(&path);
        for method in METHODS.map(str::to_uppercase) {
            let request = world.with_key(Request::new(&method, &target));
            let request = if method == "GET" { request } else { request.header("Content-Length", "0") };
            let answer = world.admin(&request);
            if methods.contains(&method) {
                // Not of its own path, which is nowhere.
                let is_elsewhere = path.ends_with("{path}");
                assert_ne!((answer.status, is_elsewhere), (404, false), "{method} {path}: {}", answer.text());
                assert_ne!(answer.status, 405, "{method} {path}: {}", answer.text());
            } else {
                assert_eq!(answer.status, 405, "{method} {path}: {}", answer.text());
                let allowed: BTreeSet<String> =
                    answer.header("allow").unwrap().split(',').map(String::from).collect();
                let mut expected = methods.clone();
                if methods.contains("GET") {
                    expected.insert("HEAD".into());
                }
                assert_eq!(allowed, expected, "{path}");
            }
            if only_admin.contains(&format!("{method} {path}")) {
                let answer = world.gateway.ask(&request);
                // Where there is something else at the same path, that is there.
                let refused = match operations(&public).iter().any(|(_, known, _)| *known == path) {
                    true => (405, "method_not_allowed"),
                    false => (404, "not_found"),
                };
                assert_eq!((answer.status, answer.code().as_str()), refused, "{method} {path}");
            }
        }
    }
}

/// Types of generated clients are called as components are: whatever else is in a document, a name means the same.
#[test]
fn a_name_means_the_same_in_every_document() {
    let world = world();
    let mut known: BTreeMap<String, Value> = BTreeMap::new();
    let mut shared = 0;
    for (document, content) in world.documents() {
        for kind in ["schemas", "responses"] {
            for (name, component) in content["components"][kind].as_object().unwrap() {
                let found = known.entry(format!("{kind}/{name}")).or_insert_with(|| component.clone());
                assert_eq!(found, component, "{kind}/{name} of {document}");
                shared += 1;
            }
        }
    }
    let problems = known.keys().filter(|name| name.contains("Problem.")).count();
    assert!(problems > 20 && shared > 2 * known.len(), "{problems} {shared} {}", known.len());
}

#[test]
fn operations_that_ask_for_credentials_are_refused_without() {
    let world = world();
    let (_, admin) = &world.documents()[1];
    for (method, path, operation) in operations(admin) {
        let request = Request::new(&method, &filled(&path));
        let request = if method == "GET" { request } else { request.header("Content-Length", "0") };
        let answer = world.admin(&request);
        let security = operation["security"].as_array().unwrap();
        let is_refused = answer.status == 401 && answer.code() == "missing_credentials";
        assert_eq!(is_refused, !security.is_empty(), "{method} {path}: {}", answer.text());
        for way in security {
            let (scheme, scopes) = way.as_object().unwrap().iter().next().unwrap();
            assert!(!admin["components"]["securitySchemes"][scheme].is_null(), "{scheme}");
            assert_eq!(scopes.as_array().unwrap().len(), 1, "{method} {path}");
        }
        if is_refused {
            let codes = resolved(admin, &operation["responses"]["401"]);
            assert!(codes["description"].as_str().unwrap().contains("missing_credentials"), "{codes}");
        }
    }
}

#[test]
fn the_schema_of_a_row_is_the_models_own() {
    let document = shared().ask(&Request::get(DOCUMENT)).json();
    let row = &document["components"]["schemas"]["churn.Row"];
    assert_eq!(row["additionalProperties"], false);
    let properties = row["properties"].as_object().unwrap();
    let names: Vec<&str> = properties.keys().map(String::as_str).collect();
    let features =
        ["tenure_days", "monthly_spend", "support_tickets_30d", "plan_tier", "country", "last_login_hours"];
    assert_eq!(names[0], "customer_id");
    assert_eq!((&names[1..], &row["required"]), (&features[..], &json!(features)));
    assert_eq!(properties["tenure_days"]["minimum"], 0);
    assert_eq!(properties["support_tickets_30d"]["type"], "integer");
    assert_eq!(properties["plan_tier"]["examples"], json!(["pro"]));
    // Others pass: they are known, and not all.
    assert_eq!(properties["plan_tier"]["anyOf"][0]["enum"], json!(["basic", "pro", "business"]));
    assert_eq!(row["examples"][0], serde_json::from_str::<Value>(REFERENCE).unwrap());
    let score = &document["components"]["schemas"]["churn.Score"];
    assert_eq!(score["properties"]["prediction"]["enum"], json!(["retain", "churn"]));
    assert_eq!(score["properties"]["churn_probability"]["maximum"], 1);
    assert!(!document.to_string().contains("x-scoregate"));
}

#[test]
fn examples_score() {
    let gateway = shared();
    let document = gateway.ask(&Request::get(DOCUMENT)).json();
    let mut sent = 0;
    for (method, path, operation) in operations(&document) {
        let content = operation["requestBody"]["content"].as_object().cloned().unwrap_or_default();
        for (media_type, body) in content.iter().filter(|(_, body)| !body["example"].is_null()) {
            let example = &body["example"];
            let body = example.as_str().map_or_else(|| example.to_string(), String::from);
            let answer = gateway.ask(&gateway.with_key(Request::post(&path, &body).content_type(media_type)));
            assert_eq!(
                (method.as_str(), answer.status),
                ("POST", 200),
                "{path} {media_type}: {}",
                answer.text()
            );
            assert!(!answer.text().contains("\"error\""), "{path} {media_type}: {}", answer.text());
            sent += 1;
        }
    }
    // One row in one way and many in three, of two models, and of the default one under its short paths.
    assert_eq!(sent, 12);
}

#[test]
fn a_models_own_document_is_for_those_who_may_use_it() {
    let settings = Settings::new();
    let few = settings.key_with(&["--name", "few", "--scopes", "models:read", "--models", "saas_churn"]);
    let gateway = settings.start();
    let target = "/v1/models/churn/openapi.json";
    let document = gateway.get(target);
    assert_eq!(document.status, 200, "{}", document.text());
    let paths: Vec<String> = operations(&document.json()).into_iter().map(|(_, path, _)| path).collect();
    assert!(paths.contains(&"/v1/models/churn/predict".into()), "{paths:?}");
    assert!(paths.iter().all(|path| path.starts_with("/v1/models/churn")), "{paths:?}");
    assert!(!document.text().contains("saas_churn"));
    assert_eq!(gateway.ask(&Request::get(target)).code(), "missing_credentials");
    let as_few = |target: &str| gateway.ask(&Request::get(target).header("X-Api-Key", &few));
    assert_eq!(as_few(target).code(), "model_not_allowed");
    assert_eq!(as_few("/v1/models/saas_churn/openapi.json").status, 200);
    assert_eq!(gateway.get("/v1/models/nobody/openapi.json").code(), "unknown_model");
    assert_eq!(gateway.get(&format!("{target}?v=1")).code(), "invalid_parameter");
}

#[test]
fn a_document_is_sent_again_only_when_the_models_have_changed() {
    let models = directory();
    copy(&repository().models.join("churn"), &models.path().join("churn"));
    let gateway = Settings::new().models(models.path()).start();
    let first = gateway.ask(&Request::get(DOCUMENT));
    let tag = first.header("etag").unwrap().to_owned();
    let again = |tag: &str| gateway.ask(&Request::get(DOCUMENT).header("If-None-Match", tag));
    for known in [tag.clone(), format!("\"other\", W/{tag}")] {
        let unchanged = again(&known);
        assert_eq!((unchanged.status, unchanged.body.len()), (304, 0), "{known}");
        assert_eq!(unchanged.header("etag"), Some(tag.as_str()));
    }
    assert_eq!(again("\"other\"").status, 200);
    let own = "/v1/models/churn/openapi.json";
    let of_model = gateway.get(own).header("etag").unwrap().to_owned();
    let asked = gateway.with_key(Request::get(own)).header("If-None-Match", &of_model);
    assert_eq!(gateway.ask(&asked).status, 304);

    publish_ratio_model(models.path());
    let changed = wait_for("the model", || Some(again(&tag)).filter(|answer| answer.status == 200));
    let paths: Vec<String> = operations(&changed.json()).into_iter().map(|(_, path, _)| path).collect();
    assert!(paths.contains(&"/v1/models/ratio/predict".into()), "{paths:?}");
    assert_eq!(gateway.ask(&asked).status, 304, "another model's document is as it was");
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[test]
fn an_operator_may_keep_the_models_to_callers() {
    let gateway = Settings::new().set("SCOREGATE_OPENAPI_MODELS", "false").start();
    let answer = gateway.ask(&Request::get(DOCUMENT));
    assert_eq!(answer.status, 200);
    for secret in ["tenure_days", "saas_churn", "plan_tier", "\"retain\""] {
        assert!(!answer.text().contains(secret), "{secret}");
    }
    assert!(!answer.json()["paths"]["/v1/models/{model}/predict"].is_null());
    assert!(gateway.get("/v1/models/churn/openapi.json").text().contains("tenure_days"));
}

#[test]
fn the_command_prints_what_is_served() {
    let world = world();
    let printed = |arguments: &[&str]| -> Value {
        let output = world.gateway.settings.run(&[&["openapi"], arguments].concat());
        serde_json::from_str(&succeeded(&output)).unwrap()
    };
    let [(_, public), (_, admin), (_, churn), _] = world.documents();
    assert_eq!(printed(&[]), public);
    assert_eq!(printed(&["--admin"]), admin);
    assert_eq!(printed(&["--model", "churn"]), churn);
    let failed = |arguments: &[&str]| {
        let output = world.gateway.settings.run(&[&["openapi"], arguments].concat());
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(failed(&["--model", "nobody"]).contains("nobody"));
    // A model that would be missing is told of, since clients are made of what is printed.
    let models = directory();
    let none = models.path().join("none");
    assert!(failed(&["--models-dir", none.to_str().unwrap()]).contains("none"));
    let version = models.path().join("churn/1");
    copy(&repository().version("churn"), &version);
    fs::write(version.join("manifest.json"), "{").unwrap();
    assert!(failed(&["--models-dir", models.path().to_str().unwrap()]).contains("churn"));
}

#[test]
fn validators_and_linters_find_nothing() {
    let (world, directory) = (world(), directory());
    let files = world.documents().map(|(name, document)| {
        let file = directory.path().join(format!("{name}.json"));
        fs::write(&file, document.to_string()).unwrap();
        file
    });
    let valid = Command::new(python()).arg("-B").arg(source("python/openapi_valid.py")).args(&files).output();
    succeeded(&valid.unwrap());
    let lint = Command::new(node_program()).arg(node_script("lint.mjs")).args(&files).output().unwrap();
    assert_eq!(succeeded(&lint), "");

    // Both find what is wrong.
    let (_, mut wrong) = world.documents().into_iter().next().unwrap();
    wrong["paths"]["/v1/predict"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]["$ref"] =
        "#/components/schemas/Nothing".into();
    fs::write(&files[0], wrong.to_string()).unwrap();
    let valid =
        Command::new(python()).arg("-B").arg(source("python/openapi_valid.py")).arg(&files[0]).output();
    assert!(!valid.unwrap().status.success());
    let lint = Command::new(node_program()).arg(node_script("lint.mjs")).arg(&files[0]).output().unwrap();
    assert!(!lint.status.success());
}

/// Runs a script of tests/python on a document and one more file.
fn check_in_python(script: &str, directory: &Path, document: &Value, arguments: &[&str], more: &Value) {
    let files = ["openapi.json", "more.json"].map(|name| directory.join(name));
    fs::write(&files[0], document.to_string()).unwrap();
    fs::write(&files[1], more.to_string()).unwrap();
    let mut command = Command::new(python());
    command.arg("-B").arg(source("python").join(script)).arg(&files[0]).args(arguments).arg(&files[1]);
    succeeded(&command.output().unwrap());
}

#[test]
fn answers_say_nothing_that_the_document_does_not() {
    let models = directory();
    for model in ["churn", "saas_churn"] {
        copy(&repository().models.join(model), &models.path().join(model));
    }
    let classes = GraphOutput::Probabilities { name: "numbers".into(), classes: 3, positive: 0 };
    let row = json!({"a": 0.5, "b": 0.25, "c": 0.25, "scale": 1.0});
    Handmade::numbers("classes", 3)
        .labels(&["no", "perhaps", "not \"so\""])
        .output("numbers", FLOAT)
        .reference("background", json!([row]))
        .publish(models.path(), classes);
    let value = json!({"a": 12.5, "scale": 1.0});
    Handmade::numbers("value", 1)
        .output("numbers", FLOAT)
        .reference("background", json!([value]))
        .publish(models.path(), GraphOutput::Value { name: "numbers".into() });
    let models = models.path();
    let settings = Settings::new().models(models).set("SCOREGATE_CACHE", "memory");
    let settings = settings.set("SCOREGATE_QUOTA", "100000/min");
    let watcher = settings.key_with(&["--name", "watcher", "--scopes", "monitoring:read"]);
    let gateway = settings.start();
    let answers = std::cell::RefCell::new(Vec::new());
    let keep = |method: &str, path: &str, answer: &Answer| {
        let media_type = answer.header("content-type").unwrap().to_owned();
        let headers: Vec<&String> = answer.headers.iter().map(|(name, _)| name).collect();
        let body = if media_type.contains("json") { answer.json() } else { Value::Null };
        answers.borrow_mut().push(json!([method, path, answer.status, media_type, body, headers]));
        answer.status
    };
    let customer: Value = serde_json::from_str(REFERENCE).unwrap();
    // The admin listener's, which has every route.
    let admin = |request: &Request| Client::connect(gateway.admin_addr).ask(request);
    let all = admin(&Request::get(DOCUMENT)).json();
    let saas = all["components"]["schemas"]["saas_churn.Row"]["examples"][0].clone();
    for (model, row) in [("churn", &customer), ("saas_churn", &saas), ("classes", &row), ("value", &value)] {
        let [one, many] = ["", "/batch"].map(|end| format!("/v1/models/{model}/predict{end}"));
        for query in ["", "?explain=true", "?explain=full", "?explain=full&method=permutation_sampling"] {
            let mut expected = vec![200];
            if query.contains("sampling") {
                // Few features are explained by all coalitions alone.
                expected.push(400);
            }
            let status = keep("POST", &one, &gateway.post(&format!("{one}{query}"), row.to_string()));
            assert!(expected.contains(&status), "{one}{query}: {status}");
            let rows = json!([row, {"other": 1}]);
            keep("POST", &many, &gateway.post(&format!("{many}{query}"), rows.to_string()));
        }
        assert_eq!(keep("POST", &one, &gateway.post(&one, "{\"other\":1}")), 422);
        assert_eq!(keep("POST", &many, &gateway.post(&many, "[]")), 422);
        for path in ["/v1/models/{model}", "/v1/models/{model}/versions"] {
            assert_eq!(keep("GET", path, &gateway.get(&path.replace("{model}", model))), 200);
        }
    }
    for path in ["/v1/models", "/v1/metadata", "/.well-known/oauth-protected-resource", "/health/ready"] {
        assert_eq!(keep("GET", path, &gateway.get(path)), 200);
    }
    assert_eq!(keep("GET", "/v1/models/{model}", &gateway.get("/v1/models/nobody")), 404);
    assert_eq!(keep("GET", "/v1/models", &gateway.get("/v1/models?x=1")), 400);
    assert_eq!(keep("POST", "/v1/predict", &gateway.ask(&Request::post("/v1/predict", REFERENCE))), 401);
    let denied = Request::post("/v1/predict", REFERENCE).header("X-Api-Key", &watcher);
    assert_eq!(keep("POST", "/v1/predict", &gateway.ask(&denied)), 403);
    let live = "/v1/monitoring/live";
    assert_eq!(keep("GET", live, &admin(&Request::get(live).header("X-Api-Key", &watcher))), 200);
    for (documented, target) in [
        (DOCUMENT, DOCUMENT),
        ("/docs", "/docs"),
        ("/docs/{file}", "/docs/page.css"),
        ("/console", "/console"),
        ("/console/{file}", "/console/page.css"),
        ("/metrics", "/metrics"),
        ("/console/{file}", "/console/none"),
    ] {
        keep("GET", documented, &admin(&Request::get(target)));
    }
    check_in_python("openapi_answers.py", models, &all, &[], &answers.into_inner().into());
}

#[test]
fn rows_pass_as_the_document_says() {
    let (copy, version) = repository().copy_of("churn");
    let manifest = version.join("manifest.json");
    let mut told: Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
    let schema = &mut told["schema"]["properties"];
    schema["customer_id"] =
        json!({"type": "string", "minLength": 2, "maxLength": 5, "x-scoregate": {"role": "entity"}});
    schema["tenure_days"] = json!({"type": "number", "minimum": 0, "exclusiveMaximum": 100000});
    schema["monthly_spend"] = json!({"type": ["number", "null"], "x-scoregate": {"missing": {"impute": 10}}});
    schema["support_tickets_30d"] =
        json!({"type": "integer", "minimum": 0, "maximum": 1000, "x-scoregate": {"missing": {"impute": 2}}});
    schema["plan_tier"]["x-scoregate"] = json!({"unknown": "reject"});
    schema["country"]["maxLength"] = json!(3);
    schema["country"]["x-scoregate"] = json!({"unknown": "pass", "pii": true, "missing": "pass"});
    schema["note"] = json!({"type": "string", "maxLength": 3, "x-scoregate": {"role": "ignore"}});
    schema["rank"] = json!({"type": "integer", "maximum": 3, "x-scoregate": {"role": "ignore"}});
    let required = ["tenure_days", "support_tickets_30d", "plan_tier", "last_login_hours", "customer_id"];
    told["schema"]["required"] = json!(required);
    // Golden rows and background have what they need; null is a value, too.
    fs::write(&manifest, told.to_string()).unwrap();
    let gateway = Settings::new().models(copy.path()).start();
    let document = gateway.ask(&Request::get(DOCUMENT)).json();
    let row = &document["components"]["schemas"]["churn.Row"];
    assert!(!row["properties"]["country"].to_string().contains("US"), "personal data: {row}");
    let example = row["examples"][0].clone();
    assert_eq!(gateway.post("/v1/predict", example.to_string()).status, 200, "{example}");

    let values = [
        json!(null),
        json!(true),
        json!(0),
        json!(-0.5),
        json!(-1),
        json!(1.0),
        json!(1.5),
        json!(2),
        json!(3),
        json!(4),
        json!(1000),
        json!(1001),
        json!(99999.5),
        json!(100_000),
        json!(3.5e38),
        json!(f64::from(f32::MAX)),
        json!(f64::from(f32::MIN)),
        json!(""),
        json!("a"),
        json!("ab"),
        json!("pro"),
        json!("other"),
        json!("US"),
        json!("abcdef"),
        json!("a\u{0}"),
        json!("a\u{7f}b"),
        json!("é€𝄞"),
        json!("a\nb"),
        json!([]),
        json!({}),
        json!([1]),
        json!({"a": 1}),
    ];
    let mut rows = vec![json!([example, true])];
    let mut names: Vec<String> = row["properties"].as_object().unwrap().keys().cloned().collect();
    names.push("stranger".into());
    let mut refused = 0;
    for name in &names {
        let without: serde_json::Map<String, Value> =
            example.as_object().unwrap().clone().into_iter().filter(|(member, _)| member != name).collect();
        let mut tried: Vec<Value> = vec![without.clone().into()];
        tried.extend(values.iter().map(|value| {
            let mut row = without.clone();
            row.insert(name.clone(), value.clone());
            row.into()
        }));
        for row in tried {
            let answer = gateway.post("/v1/predict", row.to_string());
            assert!([200, 422].contains(&answer.status), "{row}: {}", answer.text());
            refused += usize::from(answer.status == 422);
            rows.push(json!([row, answer.status == 200]));
        }
    }
    assert!(refused > 100 && rows.len() - refused > 50, "{refused} of {}", rows.len());
    let scratch = directory();
    check_in_python("openapi_rows.py", scratch.path(), &document, &["churn.Row"], &rows.into());
}

/// Sends requests that schemathesis makes up from the document, and holds the answers against it: some for each operation, and a thousand
/// where there is time for it (`cargo xtask test --full`).
#[test]
fn the_gateway_does_what_the_document_says() {
    let (world, directory) = (world(), directory());
    let (cases, least) = if is_full() { ("1000", 1_000) } else { ("25", 25) };
    for file in ["schemathesis.toml", "hooks.py"] {
        fs::copy(source("python/schemathesis").join(file), directory.path().join(file)).unwrap();
    }
    let counts = directory.path().join("counts.json");
    let document = format!("http://{}{DOCUMENT}", world.gateway.admin_addr);
    let mut command = Command::new(python().with_file_name("schemathesis"));
    command.args([
        "--config-file",
        "schemathesis.toml",
        "run",
        &document,
        "--max-examples",
        cases,
        "--seed",
        "1",
    ]);
    command.current_dir(directory.path()).env("SCOREGATE_KEY", &world.key).env("SCOREGATE_COUNTS", &counts);
    let printed = succeeded(&command.env("PYTHONDONTWRITEBYTECODE", "1").output().unwrap());
    let counts: BTreeMap<String, u64> = serde_json::from_slice(&fs::read(counts).unwrap()).unwrap();
    let (_, admin) = &world.documents()[1];
    for (method, path, _) in operations(admin) {
        let name = format!("{method} {path}");
        // What is asked with is this operation.
        if path != DOCUMENT {
            assert!(counts.get(&name).is_some_and(|count| *count >= least), "{name}: {counts:?}\n{printed}");
        }
    }
    println!("{counts:?}");
    let log = world.gateway.log_so_far();
    assert!(!log.iter().any(|line| line.contains("request failed")), "{log:?}");
}

#[test]
fn clients_that_are_generated_score() {
    let (world, directory) = (world(), directory());
    let url = format!("http://{}", world.gateway.addr);
    let expected = world.gateway.post("/v1/predict", REFERENCE).probability();
    let [(_, public), ..] = world.documents();
    let file = directory.path().join("openapi.json");
    fs::write(&file, public.to_string()).unwrap();

    let mut python = Command::new(python());
    python.arg("-B").arg(source("python/openapi_client.py")).arg(&file).arg(directory.path());
    let printed = succeeded(&python.args([&url, &world.key]).output().unwrap());
    let scored: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(scored["probability"], expected);
    assert_eq!(scored["prediction"], "retain");
    assert_eq!(scored["refused"], json!([422, "invalid_row", "#/tenure_days"]));
    assert_eq!(scored["rows"], json!([expected, expected]));
    assert_eq!(scored["models"], json!(["churn", "saas_churn"]));

    let (packages, script) = (node_packages(), node_script("client.ts"));
    let run = |arguments: &[&str]| {
        let mut node = Command::new(node_program());
        succeeded(&node.current_dir(&packages).args(arguments).output().unwrap())
    };
    let generator = "node_modules/openapi-typescript/bin/cli.js";
    run(&[generator, file.to_str().unwrap(), "--output", "openapi.ts"]);
    node_script("tsconfig.json");
    run(&["node_modules/typescript/bin/tsc", "--project", "tsconfig.json"]);
    let scored: Value = serde_json::from_str(&run(&[script.to_str().unwrap(), &url, &world.key])).unwrap();
    let expected = json!({"probability": expected, "prediction": "retain", "code": "invalid_row", "rows": 2});
    assert_eq!(scored, expected);
}

/// The page in a browser, as a developer uses it. Screenshots lie in `target/tmp/docs`.
#[test]
fn the_page_shows_the_document_and_tries_it_out() {
    let world = world();
    let url = format!("http://{}", world.gateway.addr);
    let screenshots = Path::new(env!("CARGO_TARGET_TMPDIR")).join("docs");
    fs::create_dir_all(&screenshots).unwrap();
    let mut node = Command::new(node_program());
    node.arg(node_script("docs.mjs")).args([&url, &world.key]).args(&world.client).arg(&screenshots);
    let seen: Value = serde_json::from_str(&succeeded(&node.output().unwrap())).unwrap();
    let [(_, public), ..] = world.documents();
    let documented = operations(&public).len();
    let expected = world.gateway.post("/v1/predict", REFERENCE).probability();
    for visit in seen.as_array().unwrap() {
        assert_eq!(visit["operations"].as_array().unwrap().len(), documented);
        for asked in visit["requests"].as_array().unwrap() {
            let asked = asked.as_str().unwrap();
            assert!(asked.starts_with(&format!("{url}/")) || asked.starts_with("data:"), "{asked}");
        }
        let answer: Value = serde_json::from_str(visit["scored"]["answer"].as_str().unwrap()).unwrap();
        let is_known = visit["way"] != "none";
        if is_known {
            assert_eq!(
                (&visit["scored"]["status"], &answer["churn_probability"]),
                (&json!(200), &json!(expected))
            );
            assert_eq!(visit["complaints"], json!([]));
        } else {
            assert_eq!(
                (&visit["scored"]["status"], &answer["code"]),
                (&json!(401), &json!("missing_credentials"))
            );
        }
    }
    let [light, dark] = [0, 1].map(|visit| seen[visit]["background"].as_str().unwrap());
    assert_ne!(light, dark);
    for theme in ["light", "dark"] {
        let screenshot = fs::metadata(screenshots.join(format!("docs-{theme}.png"))).unwrap();
        assert!(screenshot.len() > 10_000);
    }
}

#[test]
fn the_page_may_load_nothing_from_elsewhere() {
    let gateway = shared();
    let page = gateway.ask(&Request::get("/docs"));
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let policy = page.header("content-security-policy").unwrap();
    for part in ["default-src 'none'", "script-src 'self'", "connect-src 'self'", "frame-ancestors 'none'"] {
        assert!(policy.contains(part), "{policy}");
    }
    assert!(!policy.contains("unsafe") && !policy.contains("http"), "{policy}");
    assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
    let tag = page.header("etag").unwrap();
    assert_eq!(gateway.ask(&Request::get("/docs").header("If-None-Match", tag)).status, 304);
    for part in page.text().split('"').filter(|part| part.starts_with("docs/")) {
        let file = gateway.ask(&Request::get(&format!("/{part}")));
        assert_eq!(file.status, 200, "{part}");
        assert_eq!(file.header("content-security-policy"), Some(policy), "{part}");
    }
    for nothing in ["/docs/", "/docs/..%2fpage.js", "/docs/other.js"] {
        assert_eq!(gateway.ask(&Request::get(nothing)).code(), "not_found", "{nothing}");
    }
}

#[test]
fn the_library_of_the_page_is_as_it_was_released() {
    let gateway = shared();
    for name in ["swagger-ui-bundle.js", "swagger-ui.css"] {
        let released = fs::read(node_packages().join("node_modules/swagger-ui-dist").join(name)).unwrap();
        let target = format!("/docs/{name}");
        let plain = gateway.ask(&Request::get(&target));
        assert_eq!(plain.header("content-encoding"), None);
        assert_eq!(Sha256::digest(&plain.body), Sha256::digest(&released), "{name}");
        let packed = gateway.ask(&Request::get(&target).header("Accept-Encoding", "gzip, br"));
        assert_eq!(packed.header("content-encoding"), Some("gzip"));
        assert_eq!(
            (packed.header("vary"), plain.header("vary")),
            (Some("accept-encoding"), Some("accept-encoding"))
        );
        assert_ne!(packed.header("etag"), plain.header("etag"));
        let mut unpacked = Vec::new();
        let mut decoder = flate2::read::GzDecoder::new(&packed.body[..]);
        std::io::Read::read_to_end(&mut decoder, &mut unpacked).unwrap();
        assert!(unpacked == released, "{name}");
    }
}
