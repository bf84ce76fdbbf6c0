//! Several models in one gateway: each under its own path, for the keys that may use it, and described as it is.

use std::path::Path;
use std::sync::OnceLock;

use scoregate_schemas::manifest::{ClassKeys, Output};
use serde_json::{Value, json};

use crate::support::graph::{FLOAT, Handmade};
use crate::support::{
    Answer, Gateway, REFERENCE, Request, Settings, case, check, complaints, repository, scratch, wait_for,
};

/// A gateway over `churn`, and over models of the other tasks.
struct Models {
    gateway: Gateway,
    /// May use `iris` and `price` alone.
    restricted: String,
    /// May score, and read nothing.
    scorer: String,
    /// Where the models are.
    _repository: tempfile::TempDir,
}

fn models() -> &'static Models {
    static MODELS: OnceLock<Models> = OnceLock::new();
    MODELS.get_or_init(|| {
        let (models, _) = repository().copy_of("churn");
        publish(models.path());
        let settings = Settings::new().models(models.path());
        let file = "[model.iris]\nmax_batch_rows = 2\nlabels = [\"I. setosa\", \"I. versicolor\", \"I. virginica\"]\n\
                    [model.churn]\nthreshold = 0.01\n";
        std::fs::write(settings.directory().join("scoregate.toml"), file).unwrap();
        let key = |name, models: &[&str], scopes: &str| {
            settings.key_with(&["--name", name, "--scopes", scopes, "--models", &models.join(",")])
        };
        let restricted = key("restricted", &["iris", "price"], "score:predict,models:read");
        let scorer = key("scorer", &["*"], "score:predict");
        let gateway = settings.start();
        // Versions that wait to be promoted are tried after the gateway is ready.
        wait_for("every version to be tried", || {
            (!gateway.get("/v1/models").text().contains("\"checking\"")).then_some(())
        });
        Models { gateway, restricted, scorer, _repository: models }
    })
}

fn iris(version: &str) -> (Handmade, Output) {
    let keys = ClassKeys::Strings(["setosa", "versicolor", "virginica"].map(Into::into).into());
    let model = Handmade::numbers("iris", 3)
        .version(version)
        .labels(&["setosa", "versicolor", "virginica"])
        .zipmap("numbers", "maps", &keys);
    (model, Output::Zipmap { name: "maps".into(), keys, positive: 0, link: None })
}

fn publish(models: &Path) {
    let row = json!({"a": 0.25, "b": 0.5, "c": 0.25, "scale": 1});
    for version in ["1", "2"] {
        let (model, output) = iris(version);
        model.golden(row.clone(), json!([0.25, 0.5, 0.25])).publish(models, output);
    }
    // Whoever made this one promises something else than it answers.
    let (model, output) = iris("3");
    model.golden(row, json!([0.5, 0.25, 0.25])).publish(models, output);
    // One answer could not be told from the other.
    let (model, output) = iris("4");
    model.labels(&["setosa", "setosa", "virginica"]).publish(models, output);
    Handmade::numbers("price", 1)
        .golden(json!({"a": 1000, "scale": 8}), json!(125))
        .output("numbers", FLOAT)
        .publish(models, Output::Value { name: "numbers".into() });
}

const IRIS: &str = r#"{"a":0.25,"b":0.5,"c":0.25,"scale":1}"#;

fn get(target: &str, key: &str) -> Answer {
    models().gateway.ask(&Request::get(target).header("X-Api-Key", key))
}

/// The body of an answer that is whole and leaks nothing.
fn read(target: &str) -> Value {
    let answer = get(target, &models().gateway.key);
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")), "{target}");
    assert_eq!(complaints(&answer), Vec::<String>::new(), "{target}: {}", answer.text());
    answer.json()
}

fn members(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn each_model_answers_under_its_own_path() {
    let gateway = &models().gateway;
    let answers = |path: &str, body: &str| {
        let answer = gateway.post(path, body);
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        answer.json()
    };
    let churn = answers("/v1/models/churn/predict", REFERENCE);
    assert_eq!(churn["churn_probability"], answers("/v1/predict", REFERENCE)["churn_probability"]);
    // The operator's threshold and labels, in place of the manifests'.
    assert_eq!(churn["prediction"], "churn");
    let iris = answers("/v1/models/iris/predict", IRIS);
    assert_eq!((&iris["model_version"], &iris["prediction"]), (&json!("1"), &json!("I. versicolor")));
    assert_eq!(members(&iris["probabilities"]), ["I. setosa", "I. versicolor", "I. virginica"]);
    assert_eq!(answers("/v1/models/price/predict", r#"{"a":3,"scale":4}"#)["value"], 0.75);
    // A row of one model is none of another.
    assert_eq!(gateway.post("/v1/models/price/predict", IRIS).code(), "invalid_row");
    assert_eq!(gateway.post("/v1/models/iris/predict", REFERENCE).code(), "invalid_row");
}

#[test]
fn a_batch_is_limited_by_its_models_own_rows() {
    let gateway = &models().gateway;
    let batch = |media_type: &str, body: &str| {
        let request = Request::post("/v1/models/iris/predict/batch", body).content_type(media_type);
        gateway.ask(&gateway.with_key(request))
    };
    let csv = |rows: usize| format!("a,b,c,scale\n{}", "1,0,0,1\n".repeat(rows));
    for rows in [1, 2, 3] {
        let json = batch("application/json", &format!("[{}]", vec![IRIS; rows].join(",")));
        let ndjson = batch("application/x-ndjson", &format!("{IRIS}\n").repeat(rows));
        for answer in [json, ndjson, batch("text/csv", &csv(rows))] {
            if rows > 2 {
                assert_eq!(
                    (answer.status, answer.code().as_str()),
                    (413, "too_many_rows"),
                    "{}",
                    answer.text()
                );
                assert!(answer.text().contains("2 rows"), "{}", answer.text());
            } else {
                assert_eq!(answer.status, 200, "{}", answer.text());
            }
        }
    }
    let price = format!("[{}]", [r#"{"a":3,"scale":4}"#; 3].join(","));
    assert_eq!(gateway.post("/v1/models/price/predict/batch", price).status, 200);
}

#[test]
fn a_batch_whose_answer_never_fits_is_told_how_many_rows_do() {
    let directory = tempfile::tempdir_in(scratch()).unwrap();
    publish(directory.path());
    let settings = Settings::new().models(directory.path()).set("SCOREGATE_DEFAULT_MODEL", "price");
    let gateway = settings.set("SCOREGATE_MAX_QUEUED_BYTES", "1000000").start();
    let ask = |media_type: &str, body: String| {
        let request = gateway.with_key(Request::post("/v1/predict/batch", body).content_type(media_type));
        // The memory of the answer before is given back a moment after it has arrived.
        wait_for("room", || Some(gateway.ask(&request)).filter(|answer| answer.status != 503))
    };
    let row = r#"{"a":3,"scale":4}"#;
    let csv = |rows: usize| format!("a,scale\n{}", "3,4\n".repeat(rows));
    type Body<'b> = &'b dyn Fn(usize) -> String;
    let formats: [(&str, Body<'_>); 3] = [
        ("application/json", &|rows| format!("[{}]", vec![row; rows].join(","))),
        ("application/x-ndjson", &|rows| format!("{row}\n").repeat(rows)),
        ("text/csv", &csv),
    ];
    for (media_type, body) in formats {
        let refused = ask(media_type, body(20_000));
        assert_eq!((refused.status, refused.code().as_str()), (413, "too_many_rows"), "{}", refused.text());
        let detail = refused.json()["detail"].as_str().unwrap().to_owned();
        let fit: usize = detail.split_whitespace().filter_map(|word| word.parse().ok()).next_back().unwrap();
        assert!((5_000..20_000).contains(&fit), "{detail}");
        assert_eq!(ask(media_type, body(fit)).status, 200, "{media_type}: {detail}");
    }
}

#[test]
fn the_list_of_models_holds_what_the_key_may_use() {
    let names = |answer: Answer| -> Vec<String> {
        assert_eq!(answer.status, 200, "{}", answer.text());
        let list = answer.json();
        assert_eq!(members(&list), ["models"]);
        list["models"]
            .as_array()
            .unwrap()
            .iter()
            .map(|model| model["model"].as_str().unwrap().into())
            .collect()
    };
    assert_eq!(names(get("/v1/models", &models().gateway.key)), ["churn", "iris", "price"]);
    assert_eq!(names(get("/v1/models", &models().restricted)), ["iris", "price"]);

    let list = read("/v1/models");
    let versions = |model: &Value| -> Vec<(String, String)> {
        let versions = model["versions"].as_array().unwrap().iter();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        versions.map(|version| (text(&version["model_version"]), text(&version["state"]))).collect()
    };
    let pairs = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
        pairs.iter().map(|(version, state)| ((*version).into(), (*state).into())).collect()
    };
    let [churn, iris, price] = list["models"].as_array().unwrap().as_slice() else { panic!("{list}") };
    assert_eq!(
        (&churn["default"], &iris["default"], &price["default"]),
        (&json!(true), &json!(false), &json!(false))
    );
    assert_eq!((&churn["live"], &iris["live"]), (&json!("2026-05-17_01"), &json!("1")));
    assert_eq!(versions(churn), pairs(&[("2026-05-17_01", "live")]));
    assert_eq!(
        versions(iris),
        pairs(&[("1", "live"), ("2", "accepted"), ("3", "refused"), ("4", "refused")])
    );
    assert_eq!(
        (&churn["versions"][0]["task"], &iris["versions"][1]["task"], &price["versions"][0]["task"]),
        (&json!("binary"), &json!("multiclass"), &json!("regression"))
    );
    // In few words what the model's own page says at length.
    for model in [churn, iris, price] {
        let whole = read(&format!("/v1/models/{}", model["model"].as_str().unwrap()));
        for member in ["model", "default", "live"] {
            assert_eq!(whole[member], model[member]);
        }
        let (short, long) = (model["versions"].as_array().unwrap(), whole["versions"].as_array().unwrap());
        assert_eq!(short.len(), long.len());
        for (short, long) in short.iter().zip(long) {
            for (name, value) in short.as_object().unwrap() {
                assert_eq!(&long[name], value, "{name}");
            }
        }
    }
}

#[test]
fn a_key_reads_and_uses_its_models_alone_and_hears_nothing_of_others() {
    let Models { gateway, restricted, scorer, .. } = models();
    let get = |target: &str, key: &str| Request::get(target).header("X-Api-Key", key);
    let mut cases = Vec::new();
    for model in ["churn", "nobody"] {
        for rest in ["", "/versions", "/versions/1"] {
            let target = format!("/v1/models/{model}{rest}");
            cases.push(case(
                format!("403 {target}"),
                get(&target, restricted),
                403,
                "model_not_allowed",
                &[],
            ));
        }
    }
    cases.push(case("the default model", get("/v1/metadata", restricted), 403, "model_not_allowed", &[]));
    let post = Request::post("/v1/models/churn/predict", REFERENCE).header("X-Api-Key", restricted);
    cases.push(case("scoring", post, 403, "model_not_allowed", &[]));
    for target in ["/v1/models", "/v1/models/iris", "/v1/models/iris/versions", "/v1/models/iris/versions/1"]
    {
        cases.push(case(format!("scope {target}"), get(target, scorer), 403, "insufficient_scope", &[]));
        cases.push(case(format!("no key {target}"), Request::get(target), 401, "missing_credentials", &[]));
        let query = format!("{target}?verbose=1");
        cases.push(case(query.clone(), get(&query, restricted), 400, "invalid_parameter", &[]));
        let post = Request::post(target, "{}").header("X-Api-Key", restricted);
        cases.push(case(format!("POST {target}"), post, 405, "method_not_allowed", &[]));
        let html = get(target, restricted).header("Accept", "text/html");
        cases.push(case(format!("as HTML {target}"), html, 406, "not_acceptable", &[]));
    }
    for (target, code) in [
        ("/v1/models/nobody", "unknown_model"),
        ("/v1/models/nobody/versions", "unknown_model"),
        ("/v1/models/nobody/versions/1", "unknown_model"),
        ("/v1/models/%ff/versions/1", "unknown_model"),
        ("/v1/models/..%2firis", "unknown_model"),
        ("/v1/models/iris/versions/5", "unknown_version"),
        ("/v1/models/iris/versions/..%2f1", "unknown_version"),
        ("/v1/models/price/versions/2026-05-17_01", "unknown_version"),
        ("/v1/models/iris/", "not_found"),
        ("/v1/models/iris/versions/1/graph", "not_found"),
    ] {
        cases.push(case(target, get(target, &gateway.key), 404, code, &[]));
    }
    check(gateway, &cases);
    for target in ["/v1/models/iris", "/v1/models/price/versions", "/v1/models/iris/versions/3"] {
        assert_eq!(models().gateway.ask(&get(target, restricted)).status, 200, "{target}");
    }
}

#[test]
fn a_version_is_described_with_all_that_is_known_of_it() {
    let churn = read("/v1/metadata");
    assert_eq!(churn, read("/v1/models/churn/versions/2026-05-17_01"), "metadata is the live version's page");
    assert_eq!(
        members(&churn),
        [
            "model",
            "model_version",
            "state",
            "task",
            "features",
            "target",
            "labels",
            "threshold",
            "training",
            "metrics",
            "schema",
            "bindings",
            "output",
            "changes",
            "tolerance",
            "golden",
            "digest",
            "created_at",
            "source",
            "execution_providers",
            "sessions",
            "memory_bytes",
            "cost",
            "cache",
            "explanations",
            "importance",
            "max_batch_rows",
        ]
    );
    let manifest = std::fs::read(repository().version("churn").join("manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    for member in ["labels", "metrics", "schema", "changes", "tolerance", "created_at", "source"] {
        let expected = if member == "changes" {
            manifest.get(member).cloned().unwrap_or(json!([]))
        } else {
            manifest[member].clone()
        };
        assert_eq!(churn[member], expected, "{member}");
    }
    assert_eq!(churn["digest"], manifest["files"]["model.onnx"]);
    assert_eq!(
        (&churn["task"], &churn["threshold"]),
        (&json!("binary"), &json!(0.01)),
        "as the operator set it"
    );
    assert_eq!(churn["training"]["seed"], manifest["training"]["seed"]);
    assert!(churn["source"]["producer"].as_str().is_some_and(|producer| !producer.is_empty()));
    let golden = &churn["golden"];
    assert!(golden["rows"].as_u64().unwrap() >= 200, "{golden}");
    assert!(golden["worst"].as_f64().unwrap() <= manifest["tolerance"].as_f64().unwrap(), "{golden}");
    assert!(churn["execution_providers"]["CPUExecutionProvider"].as_u64().unwrap() > 0);
    assert!(churn["memory_bytes"].as_u64().is_some() && churn["sessions"].as_u64().unwrap() > 0);
    assert_eq!((&churn["cache"]["mode"], &churn["cache"]["ttl_s"]), (&json!("auto"), &json!(60.0)));
    assert!(
        churn["cache"]["levels"]["memory"]["used"].is_boolean()
            && churn["cache"]["levels"]["redis"].is_null()
    );
    assert!(churn["cost"]["run_us"].as_f64().unwrap() > 0.0 && churn["cost"]["row_ns"].as_u64().unwrap() > 0);
    for feature in churn["features"].as_array().unwrap() {
        assert!(
            churn["bindings"].as_str().unwrap().contains(feature.as_str().unwrap()),
            "{}",
            churn["bindings"]
        );
    }

    let versions = read("/v1/models/iris/versions");
    assert_eq!(members(&versions), ["versions"]);
    let versions = versions["versions"].as_array().unwrap();
    assert_eq!(versions.len(), 4);
    for version in versions {
        let target = format!("/v1/models/iris/versions/{}", version["model_version"].as_str().unwrap());
        assert_eq!(version, &read(&target));
    }
    let [live, accepted, refused, ambiguous] = versions.as_slice() else { panic!("{versions:?}") };
    // One that answers, with what the operator set; one that could, as its manifest says.
    assert_eq!(live["labels"], json!(["I. setosa", "I. versicolor", "I. virginica"]));
    assert_eq!(accepted["labels"], json!(["setosa", "versicolor", "virginica"]));
    assert_eq!((&live["task"], live.get("threshold")), (&json!("multiclass"), None));
    assert_eq!((&live["max_batch_rows"], accepted.get("max_batch_rows")), (&json!(2), None));
    assert_eq!(accepted["golden"], json!({"rows": 1, "worst": 0.0}));
    assert!(live["output"].as_str().unwrap().contains("maps"), "{live}");
    // One that is never served, and why.
    assert_eq!(refused["state"], "refused");
    assert_eq!(members(&refused["refusal"]), ["code", "reason"]);
    assert!(refused["refusal"]["reason"].as_str().unwrap().contains("golden row 1"), "{refused}");
    let reason = ambiguous["refusal"]["reason"].as_str().unwrap();
    assert!(reason.contains("label") && !reason.contains('/'), "{reason}");
    assert_eq!(
        members(refused),
        ["model", "model_version", "state", "refusal", "digest", "created_at"],
        "nothing that whoever made it put there at length"
    );
    assert!(refused["digest"].as_str().unwrap().starts_with("sha256:"));

    let price = read("/v1/models/price/versions/1");
    assert_eq!(
        (&price["task"], &price["labels"], price.get("threshold")),
        (&json!("regression"), &json!([]), None)
    );
}
