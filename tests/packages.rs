//! Which versions are served: the first published one, and none that was altered.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use scoregate_model::package::digest_of;
use serde_json::Value;

use crate::support::{REFERENCE, Settings, repository, scratch, shared, wait_within};

fn manifest(version: &Path) -> Value {
    serde_json::from_slice(&fs::read(version.join("manifest.json")).unwrap()).unwrap()
}

fn edit_manifest(version: &Path, edit: impl FnOnce(&mut Value)) {
    let mut manifest = manifest(version);
    edit(&mut manifest);
    fs::write(version.join("manifest.json"), manifest.to_string()).unwrap();
}

fn edit_file(version: &Path, name: &str, edit: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(version.join(name)).unwrap();
    edit(&mut bytes);
    fs::write(version.join(name), bytes).unwrap();
}

/// Writes the digest that a file has now into the manifest.
fn sign(version: &Path, name: &str) {
    let digest = digest_of(&fs::read(version.join(name)).unwrap());
    edit_manifest(version, |manifest| manifest["files"][name] = digest.into());
}

/// The first golden row expects another probability.
fn falsify(golden: &mut Vec<u8>) {
    let text = String::from_utf8(std::mem::take(golden)).unwrap();
    let (first, rest) = text.split_once('\n').unwrap();
    let mut row: Value = serde_json::from_str(first).unwrap();
    let expected = row["expected"].as_f64().unwrap();
    row["expected"] = (expected * 0.5).into();
    *golden = format!("{row}\n{rest}").into_bytes();
}

type Edit = fn(&Path);

#[test]
fn a_version_that_was_altered_is_refused_with_the_reason() {
    let cases: [(&str, Edit, &[&str]); 15] = [
        (
            "a byte of the graph",
            |version| edit_file(version, "model.onnx", |bytes| bytes[100] ^= 1),
            &["model.onnx", "found digest sha256:", "expected sha256:"],
        ),
        (
            "a truncated graph",
            |version| edit_file(version, "model.onnx", |bytes| bytes.truncate(100)),
            &["model.onnx", "digest"],
        ),
        (
            "a byte of the golden rows",
            |version| edit_file(version, "golden.jsonl", |bytes| bytes[20] ^= 1),
            &["golden.jsonl", "digest"],
        ),
        (
            "the reference",
            |version| edit_file(version, "reference.json", |bytes| bytes.push(b'\n')),
            &["reference.json", "digest"],
        ),
        (
            "a golden expectation, signed again",
            |version| {
                edit_file(version, "golden.jsonl", falsify);
                sign(version, "golden.jsonl");
            },
            &["golden row 1 differs most", "1 of 250 rows beyond the tolerance of 0.000001"],
        ),
        (
            "a golden row that its schema refuses, signed again",
            |version| {
                edit_file(version, "golden.jsonl", |bytes| {
                    let text =
                        String::from_utf8(bytes.clone()).unwrap().replacen("\"country\"", "\"land\"", 1);
                    *bytes = text.into_bytes();
                });
                sign(version, "golden.jsonl");
            },
            &["golden row 1", "land"],
        ),
        (
            "a graph that is none, signed again",
            |version| {
                edit_file(version, "model.onnx", |bytes| *bytes = b"PK\x03\x04 not a graph".to_vec());
                sign(version, "model.onnx");
            },
            &["zip archive", "expected an ONNX model"],
        ),
        (
            "another version's name",
            |version| edit_manifest(version, |manifest| manifest["version"] = "2".into()),
            &["version", "\"2\""],
        ),
        (
            "another model's name",
            |version| edit_manifest(version, |manifest| manifest["name"] = "other".into()),
            &["name", "\"other\""],
        ),
        (
            "a later format",
            |version| edit_manifest(version, |manifest| manifest["format"] = 2.into()),
            &["format 2", "expected 1"],
        ),
        (
            "an unknown member",
            |version| edit_manifest(version, |manifest| manifest["extra"] = 1.into()),
            &["manifest.json", "extra"],
        ),
        (
            "a manifest that is no JSON",
            |version| edit_file(version, "manifest.json", |bytes| bytes.truncate(50)),
            &["manifest.json"],
        ),
        (
            "a file outside",
            |version| {
                edit_manifest(version, |manifest| {
                    manifest["files"]["../../../etc/passwd"] = "sha256:0".into()
                })
            },
            &["expected a plain name"],
        ),
        (
            "a missing file",
            |version| fs::remove_file(version.join("golden.jsonl")).unwrap(),
            &["golden.jsonl"],
        ),
        (
            "a graph that the manifest does not list",
            |version| {
                edit_manifest(version, |manifest| {
                    drop(manifest["files"].as_object_mut().unwrap().remove("model.onnx"))
                });
            },
            &["model.onnx"],
        ),
    ];
    for (name, edit, expected) in cases {
        let (models, version) = repository().copy_of("churn");
        edit(&version);
        let settings = Settings::new().models(models.path());
        settings.key();
        let exit = settings.spawn().exit();
        assert_eq!(exit.code, Some(1), "{name}: {}", exit.log);
        for part in expected {
            assert!(exit.log.contains(part), "{name}: no {part:?} in\n{}", exit.log);
        }
    }
}

#[test]
fn an_altered_schema_is_refused() {
    let (models, version) = repository().copy_of("churn");
    edit_manifest(&version, |manifest| {
        manifest["schema"]["properties"]["tenure_days"]["multipleOf"] = 2.into()
    });
    let settings = Settings::new().models(models.path());
    settings.key();
    let exit = settings.spawn().exit();
    assert_eq!(exit.code, Some(1), "a schema must not promise what is not checked: {}", exit.log);
}

#[test]
fn symbolic_links_are_refused() {
    let (real, version) = repository().copy_of("churn");
    let refused = |models: &Path| {
        let settings = Settings::new().models(models);
        settings.key();
        let exit = settings.spawn().exit();
        assert_eq!(exit.code, Some(1), "{}", exit.log);
        exit.log
    };
    // A linked version or model is no version.
    let linked = tempfile::tempdir_in(scratch()).unwrap();
    fs::create_dir(linked.path().join("churn")).unwrap();
    let link = linked.path().join("churn").join(version.file_name().unwrap());
    std::os::unix::fs::symlink(&version, &link).unwrap();
    assert!(refused(linked.path()).contains("no model is published"));
    fs::remove_file(link).unwrap();
    fs::remove_dir(linked.path().join("churn")).unwrap();
    std::os::unix::fs::symlink(real.path().join("churn"), linked.path().join("churn")).unwrap();
    assert!(refused(linked.path()).contains("no model is published"));
    // A linked file makes its version none.
    for name in ["model.onnx", "golden.jsonl", "manifest.json"] {
        let (models, version) = repository().copy_of("churn");
        let aside = models.path().join("aside");
        fs::rename(version.join(name), &aside).unwrap();
        std::os::unix::fs::symlink(&aside, version.join(name)).unwrap();
        let log = refused(models.path());
        assert!(log.contains("symbolic link") && log.contains(name), "{name}: {log}");
    }
}

#[test]
fn one_bad_model_does_not_take_the_others_down() {
    let (models, bad) = repository().copy_of("churn");
    let (other, _) = repository().copy_of("saas_churn");
    fs::rename(other.path().join("saas_churn"), models.path().join("saas_churn")).unwrap();
    edit_file(&bad, "model.onnx", |bytes| bytes[100] ^= 1);
    let gateway = Settings::new().models(models.path()).start();
    assert_eq!(gateway.post("/v1/predict", REFERENCE).code(), "unknown_model");
    assert_eq!(gateway.post("/v1/models/saas_churn/predict", "{}").code(), "invalid_row");
    let log = gateway.log().join("\n");
    assert!(log.contains("model not served") && log.contains("found digest"), "{log}");
}

/// Publishes a copy of the churn version under another name, made at `created_at`.
fn version(models: &Path, name: &str, created_at: &str) -> PathBuf {
    let (copy, version) = repository().copy_of("churn");
    edit_manifest(&version, |manifest| {
        manifest["version"] = name.into();
        manifest["created_at"] = created_at.into();
    });
    fs::create_dir_all(models.join("churn")).unwrap();
    let target = models.join("churn").join(name);
    fs::rename(version, &target).unwrap();
    drop(copy);
    target
}

/// The version that is live of `b`, published at `first`, and `a`, published at `second`.
fn live(first: &str, second: &str) -> String {
    let models = tempfile::tempdir_in(scratch()).unwrap();
    version(models.path(), "b", first);
    version(models.path(), "a", second);
    let gateway = Settings::new().models(models.path()).start();
    gateway.get("/v1/metadata").json()["model_version"].as_str().unwrap().to_owned()
}

#[test]
fn the_first_published_version_stays_live() {
    assert_eq!(live("2026-05-17T08:00:00Z", "2026-05-18T08:00:00Z"), "b");
    assert_eq!(live("2026-05-18T08:00:00Z", "2026-05-17T08:00:00Z"), "a");
}

#[test]
fn times_of_publication_are_compared_as_times_not_as_text() {
    assert_eq!(live("2026-05-17T08:00:00Z", "2026-05-17T08:00:00.5Z"), "b", "half a second later");
    assert_eq!(live("2026-05-17T08:00:00.12Z", "2026-05-17T08:00:00.125Z"), "b", "five milliseconds later");
    assert_eq!(
        live("2026-05-17T10:00:00+02:00", "2026-05-17T09:00:00Z"),
        "b",
        "an hour later, in another zone"
    );
}

#[test]
fn a_later_version_waits_to_be_promoted_and_stays_promoted() {
    let models = tempfile::tempdir_in(scratch()).unwrap();
    version(models.path(), "one", "2026-05-17T08:00:00Z");
    let damaged = version(models.path(), "three", "2026-05-19T08:00:00Z");
    edit_file(&damaged, "model.onnx", |bytes| bytes[100] ^= 1);
    version(models.path(), "two", "2026-05-18T08:00:00Z");
    let run = |arguments: &[&str]| {
        let output = Settings::bare().models(models.path()).run(&[&["models"], arguments].concat());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let served = || {
        let gateway = Settings::new().models(models.path()).start();
        gateway.get("/v1/metadata").json()["model_version"].as_str().unwrap().to_owned()
    };
    assert_eq!(served(), "one");
    let (code, listed, _) = run(&["list"]);
    assert_eq!(code, Some(0));
    let live: Vec<&str> = listed.lines().filter(|line| line.ends_with("\tlive")).collect();
    assert_eq!(live, ["churn\tone\tlive"], "{listed}");
    assert!(listed.contains("churn\ttwo\t") && listed.contains("churn\tthree\t"), "{listed}");

    assert_eq!(run(&["promote", "churn@two"]).0, Some(0));
    assert_eq!(served(), "two");
    version(models.path(), "four", "2026-05-16T08:00:00Z");
    assert_eq!(served(), "two", "what was promoted stays live");

    for (wrong, expected) in [
        ("churn@five", "it has four, one, three, two"),
        ("nobody@one", "nobody"),
        ("churn", "MODEL@VERSION"),
        ("churn@../churn/one", "has no version"),
        ("churn@three", "model.onnx"),
    ] {
        let (code, _, said) = run(&["promote", wrong]);
        assert!(code == Some(1) && said.contains(expected), "{wrong}: {said}");
    }
    assert_eq!(served(), "two", "a promotion that is refused changes nothing");

    // A model whose rollout is broken hides no other.
    let other = models.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::rename(models.path().join("churn/four"), other.join("four")).unwrap();
    fs::write(models.path().join("churn/rollout.json"), "{").unwrap();
    let (code, listed, _) = run(&["list"]);
    assert_eq!(code, Some(0), "{listed}");
    assert!(listed.contains("churn\ttwo\tunknown: rollout.json is no rollout"), "{listed}");
    assert!(listed.contains("other\tfour\tlive"), "{listed}");
}

#[test]
fn a_rollout_that_cannot_be_followed_serves_nothing_rather_than_something_else() {
    for (rollout, expected) in
        [("{", "rollout.json"), (r#"{"live":"five"}"#, "has no version five"), (r#"{"lve":"b"}"#, "lve")]
    {
        let models = tempfile::tempdir_in(scratch()).unwrap();
        version(models.path(), "b", "2026-05-17T08:00:00Z");
        fs::write(models.path().join("churn/rollout.json"), rollout).unwrap();
        let settings = Settings::new().models(models.path());
        settings.key();
        let exit = settings.spawn().exit();
        assert_eq!(exit.code, Some(1), "{rollout}: {}", exit.log);
        assert!(exit.log.contains(expected), "{rollout}: {}", exit.log);
    }
}

#[test]
fn damage_to_the_live_version_promotes_no_other() {
    for file in ["model.onnx", "manifest.json"] {
        let models = tempfile::tempdir_in(scratch()).unwrap();
        let first = version(models.path(), "b", "2026-05-17T08:00:00Z");
        version(models.path(), "a", "2026-05-18T08:00:00Z");
        edit_file(&first, file, |bytes| bytes.truncate(50));
        let settings = Settings::new().models(models.path());
        settings.key();
        let mut gateway = settings.spawn();
        let ended = wait_within(Duration::from_secs(10), || (!gateway.is_running()).then_some(()));
        assert!(
            ended.is_some(),
            "{file}: a version goes live that nobody promoted: {}",
            gateway.log().join("\n")
        );
        assert_eq!(gateway.exit().code, Some(1));
    }
}

#[test]
fn what_is_not_published_yet_is_passed_over() {
    let models = tempfile::tempdir_in(scratch()).unwrap();
    let version = version(models.path(), "good", "2026-05-17T08:00:00Z");
    // An upload in progress has no manifest; staging directories begin with a dot.
    let partial = models.path().join("churn/partial");
    fs::create_dir(&partial).unwrap();
    fs::copy(version.join("model.onnx"), partial.join("model.onnx")).unwrap();
    let hidden = models.path().join("churn/.publishing-1");
    fs::create_dir(&hidden).unwrap();
    fs::write(hidden.join("manifest.json"), "{}").unwrap();
    fs::create_dir(models.path().join(".git")).unwrap();
    fs::create_dir(models.path().join("empty")).unwrap();
    fs::write(models.path().join("README.md"), "notes").unwrap();
    let gateway = Settings::new().models(models.path()).start();
    assert_eq!(gateway.get("/v1/metadata").json()["model_version"], "good");
    assert!(!gateway.log().join("\n").contains("not served"));
}

#[test]
fn fitting_again_never_overwrites_a_version() {
    let before = digest_of(&fs::read(repository().version("churn").join("manifest.json")).unwrap());
    let again = scoregate_trainer_fit(&repository().models);
    assert!(again.contains("already") && again.contains("--version"), "{again}");
    let after = digest_of(&fs::read(repository().version("churn").join("manifest.json")).unwrap());
    assert_eq!(before, after);
    assert_eq!(shared().post("/v1/predict", REFERENCE).status, 200);
}

/// Fits churn once more under the version's own name and returns what the trainer said.
fn scoregate_trainer_fit(models: &Path) -> String {
    let repository = repository();
    let output = std::process::Command::new(crate::support::trainer_binary())
        .args(["fit", "--data"])
        .arg(&repository.churn_csv)
        .arg("--schema")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/schemas/churn.json"))
        .arg("--models-dir")
        .arg(models)
        .args(["--version", "2026-05-17_01"])
        .env_clear()
        .output()
        .unwrap();
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}
