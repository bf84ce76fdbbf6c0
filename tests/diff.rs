//! How two versions of a model differ, as the command line and the gateway tell it.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::graph::share_model;
use crate::support::{Answer, Client, Gateway, Request, Settings, scratch, wait_for};

const DIFF: &str = "/v1/models/share/diff";

/// Publishes versions `one`, which answers `top / bottom`, and `two`, which answers what is left of it to 1 and takes no negative
/// `top`; both with golden rows.
fn publish(models: &Path) {
    for (version, turned) in [("one", false), ("two", true)] {
        let (mut model, output) = share_model(version, turned, 0);
        let answer = |top: f64, bottom: f64| if turned { (bottom - top) / bottom } else { top / bottom };
        for (top, bottom) in [(1.0, 2.0), (3.0, 8.0), (0.0, 1.0)] {
            model = model.golden(json!({"top": top, "bottom": bottom}), json!(answer(top, bottom)));
        }
        if !turned {
            // A row that the other one refuses.
            model = model.golden(json!({"top": -0.0, "bottom": 4, "note": "x"}), json!(0.0));
        }
        model.publish(models, output);
        edit(models, version, |manifest| {
            let schema = &mut manifest["schema"];
            schema["properties"]["bottom"]["minimum"] = json!(0);
            if turned {
                schema["properties"]["top"]["maximum"] = json!(1e6);
                manifest["threshold"] = json!(0.25);
            } else {
                schema["properties"]["note"] = json!({"type": "string", "x-scoregate": {"role": "ignore"}});
            }
            let (auc, rows) = if turned { (0.75, 200) } else { (0.5, 100) };
            manifest["metrics"] = json!({"rows": rows, "accuracy": auc, "log_loss": 0.5, "brier": auc});
        });
    }
}

/// Changes what the manifest of a version says.
fn edit(models: &Path, version: &str, change: impl FnOnce(&mut Value)) {
    let path = models.join("share").join(version).join("manifest.json");
    let mut manifest = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut manifest);
    fs::write(path, manifest.to_string()).unwrap();
}

/// What is expected of the golden rows, of which one has four and the other three, besides the one that the model comes with.
fn golden() -> Value {
    // |1/4 − 3/4|, |1/2 − 1/2|, |3/8 − 5/8|, |0 − 1|
    let (mean, largest) = ((0.5 + 0.0 + 0.25 + 1.0) / 4.0, 1.0);
    // One half is a yes to both, the others are a yes to the second alone, which says so from a quarter on.
    let of = |version: &str, rows: usize, refused: usize| {
        json!({
            "rows_of": version, "rows": rows, "compared": 4, "refused_by_from": 0, "refused_by_to": refused,
            "mean_difference": mean, "largest_difference": largest, "worst_row": 4, "flips": 3,
        })
    };
    json!([of("one", 5, 1), of("two", 4, 0)])
}

fn check(found: &Value) {
    assert_eq!((&found["model"], &found["from"]["threshold"]), (&json!("share"), &json!(0.5)));
    assert_eq!((&found["to"]["model_version"], &found["to"]["threshold"]), (&json!("two"), &json!(0.25)));
    assert!(found["to"]["bytes"].as_u64() > Some(100), "{found}");
    let codes: Vec<&Value> =
        found["breaking"].as_array().unwrap().iter().map(|broken| &broken["code"]).collect();
    assert_eq!(codes, [&json!("range"), &json!("field_removed")]);
    let member = |name: &str, from: Value| json!({"name": name, "from": from});
    assert_eq!(
        found["fields"],
        json!([
            {
                "name": "top", "change": "changed", "breaking": true,
                "members": [{"name": "maximum", "to": 1e6}],
            },
            {
                "name": "note", "change": "removed", "breaking": true,
                "members": [member("type", json!("string")), member("role", json!("ignore"))],
            },
        ])
    );
    let metric = |name: &str, from: f64, to: f64, more: bool| json!({"name": name, "from": from, "to": to, "difference": to - from, "more_is_better": more});
    assert_eq!(
        found["metrics"],
        json!([
            metric("accuracy", 0.5, 0.75, true),
            metric("log_loss", 0.5, 0.5, false),
            metric("brier", 0.5, 0.75, false),
            {"name": "rows", "from": 100.0, "to": 200.0, "difference": 100.0},
        ])
    );
}

#[test]
fn the_command_line_tells_how_versions_differ() {
    let models = tempfile::tempdir_in(scratch()).unwrap();
    publish(models.path());
    let settings = Settings::new().models(models.path()).set("SCOREGATE_STATE_DIR", "state");
    let run = |arguments: &[&str]| {
        let output = settings.run(&[&["models", "diff"], arguments].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let found: Value = serde_json::from_str(&run(&["share@one", "two", "--json"])).unwrap();
    check(&found);
    assert_eq!(found["golden"], golden());
    let text = run(&["share@one", "share@two"]);
    for line in [
        "share: one → two",
        "threshold  0.5 → 0.25",
        "breaking   \"note\" is gone: rows that name it are refused",
        "field      top changed (breaking)",
        "             maximum: 1000000.0",
        "metric     brier: 0.5 → 0.75 (+0.25, worse)",
        "metric     accuracy: 0.5 → 0.75 (+0.25, better)",
        "golden     5 rows of one; 1 refused by two",
        "             apart by 0.4375 on average, by 1 at most (row 4), 3 other labels",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    // A version differs in nothing from itself.
    let same: Value = serde_json::from_str(&run(&["share@two", "two", "--json"])).unwrap();
    assert_eq!((&same["breaking"], &same["fields"]), (&json!([]), &json!([])));
    assert_eq!(same["golden"][0]["largest_difference"], json!(0.0));
    assert_eq!(same["golden"].as_array().unwrap().len(), 1);
    // What the operator has set is what answers are given by.
    let file = "[model.share]\nthreshold = 0.375\nlabels = [\"stay\", \"go\"]\n";
    fs::write(settings.directory().join("scoregate.toml"), file).unwrap();
    let served: Value = serde_json::from_str(&run(&["share@one", "two", "--json"])).unwrap();
    for side in ["from", "to"] {
        assert_eq!((&served[side]["threshold"], &served[side]["labels"][1]), (&json!(0.375), &json!("go")));
    }
    // A half and three eighths are a yes to both, the others to the second alone.
    assert_eq!(served["golden"][0]["flips"], json!(2));
    for wrong in [&["share@one", "three"], &["share@three", "one"], &["other@one", "two"]] {
        assert!(!settings.run(&[&["models", "diff"], &wrong[..]].concat()).status.success(), "{wrong:?}");
    }
}

#[test]
fn the_gateway_tells_the_same_and_golden_scores_of_what_is_loaded() {
    let models = tempfile::tempdir_in(scratch()).unwrap();
    publish(models.path());
    let settings = Settings::new()
        .models(models.path())
        .set("SCOREGATE_STATE_DIR", "state")
        .set("SCOREGATE_DEFAULT_MODEL", "share");
    let operator = settings.key_with(&["--name", "operator", "--scopes", "models:write"]);
    let gateway = settings.start();
    let diff = |query: &str| gateway.get(&format!("{DIFF}?{query}"));
    let accepted = |answer: &Answer| answer.status == 200;
    let found = wait_for("both versions", || Some(diff("from=one&to=two")).filter(accepted)).json();
    check(&found);
    assert_eq!(found["golden"], json!([]));
    assert!(found["golden_unknown"].as_str().unwrap().contains("two is not loaded"), "{found}");

    roll_out(&gateway, &operator, &json!({"live": "one", "shadow": "two"}));
    let found = wait_for("the shadow", || {
        Some(diff("from=one&to=two").json()).filter(|found| found.get("golden_unknown").is_none())
    });
    check(&found);
    assert_eq!(found["golden"], golden());
    for (query, status, code) in [
        ("", 400, "invalid_parameter"),
        ("from=one", 400, "invalid_parameter"),
        ("from=one&to=two&to=two", 400, "invalid_parameter"),
        ("from=one&to=two&rows=1", 400, "invalid_parameter"),
        ("from=one&to=three", 404, "unknown_version"),
    ] {
        let answer = diff(query);
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{query}");
    }
    assert_eq!(gateway.get("/v1/models/nobody/diff?from=a&to=b").code(), "unknown_model");
    let request = Request::get(&format!("{DIFF}?from=one&to=two")).header("X-Api-Key", &operator);
    assert_eq!(gateway.ask(&request).code(), "insufficient_scope");
    // Golden rows that were changed since are no golden rows.
    fs::write(models.path().join("share/two/golden.jsonl"), "{}\n").unwrap();
    let found = diff("from=two&to=one").json();
    assert!(found["golden_unknown"].as_str().is_some(), "{found}");
    // What was found out before is not found out again: versions do not change.
    assert_eq!(diff("from=one&to=two").json()["golden"], golden());
}

fn roll_out(gateway: &Gateway, key: &str, rollout: &Value) {
    let body = rollout.to_string();
    let request = Request::new("PUT", "/v1/models/share/rollout")
        .header("X-Api-Key", key)
        .header("Content-Type", "application/json")
        .header("Content-Length", body.len().to_string())
        .body(body);
    let answer = Client::connect(gateway.admin_addr).ask(&request);
    assert_eq!(answer.status, 200, "{}", answer.text());
}
