//! What is published is read back, once, whole, or not at all.

use super::*;
use scoregate_schemas::manifest::{Bindings, Output, Source, SourceKind};
use serde_json::json;

fn manifest(version: &str) -> Manifest {
    let schema = json!({"type": "object", "properties": {"x": {"type": "number"}}});
    let parsed = FeatureSchema::from_document(schema.clone()).unwrap();
    Manifest {
        format: manifest::FORMAT,
        name: "churn".into(),
        version: version.into(),
        created_at: "2026-05-17T00:00:00Z".into(),
        files: BTreeMap::new(),
        schema,
        bindings: Bindings::columns_of(&parsed, str::to_owned),
        output: Output::Probabilities { name: "probabilities".into(), classes: 2, positive: 1 },
        changes: Vec::new(),
        threshold: 0.5,
        labels: vec!["retain".into(), "churn".into()],
        tolerance: 1e-6,
        metrics: None,
        training: None,
        source: Source { kind: SourceKind::Trainer, producer: "test".into() },
    }
}

const GOLDEN_ROW: &[u8] = b"{\"features\":{\"x\":1},\"expected\":0.5}\n";

fn published() -> (tempfile::TempDir, Repository, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let repository = Repository::new(directory.path());
    let published = repository.publish(manifest("v1"), &[(MODEL, b"graph"), (GOLDEN, GOLDEN_ROW)]).unwrap();
    assert!(published.unfinished.is_none());
    (directory, repository, published.directory)
}

#[test]
fn what_is_published_is_read_back() {
    let (_directory, repository, path) = published();
    let package = Package::read(&path).unwrap();
    assert_eq!((package.graph.as_slice(), package.golden.len()), (&b"graph"[..], 1));
    // SHA-256 of "graph", from sha256sum.
    assert_eq!(package.digest(), "sha256:eef93e1d14482804277fca0172464032d1a4fdbcc338524059fa1e861454ad4d");
    assert_eq!(repository.list().unwrap(), BTreeMap::from([("churn".into(), vec!["v1".to_string()])]));
}

#[test]
fn what_the_reference_says_for_explanations_is_handed_on() {
    let directory = tempfile::tempdir().unwrap();
    let repository = Repository::new(directory.path());
    let read = |version: &str, reference: Value| {
        let reference = reference.to_string();
        let files = [(MODEL, &b"graph"[..]), (GOLDEN, GOLDEN_ROW), (REFERENCE, reference.as_bytes())];
        Package::read(&repository.publish(manifest(version), &files).unwrap().directory)
    };
    let older = read("v1", json!({"rows": 2, "background": [{"x": 1}]})).unwrap();
    assert_eq!((older.background.len(), older.importance, older.covers), (1, None, None));

    let importance = |name: &str| json!({"space": "log_odds", "method": "linear", "rows": 2, "features": [{"name": name, "mean_absolute": 0.5}]});
    let whole = json!({"rows": 2, "background": [], "importance": importance("x"), "covers": [2, 0]});
    let package = read("v2", whole).unwrap();
    assert_eq!(package.covers, Some(Covers { rows: 2, yes: vec![2, 0] }));
    let found = package.importance.unwrap();
    assert_eq!((found.features[0].name.as_str(), found.features[0].mean_absolute), ("x", 0.5));

    let refused = read("v3", json!({"importance": importance("y")})).unwrap_err();
    assert_eq!(refused.code(), "package_altered");
    assert_eq!(
        refused.reason(),
        "reference.json: its importance is not of the schema's features, one by one in their order"
    );
    let refused = read("v4", json!({"covers": [-1]})).unwrap_err();
    assert!(refused.reason().contains("it is no reference"), "{refused}");
}

#[test]
fn a_version_is_published_once() {
    let (_directory, repository, path) = published();
    let again = repository.publish(manifest("v1"), &[(MODEL, b"other")]);
    assert!(matches!(again, Err(Error::Exists { .. })), "{again:?}");
    assert_eq!(fs::read(path.join(MODEL)).unwrap(), b"graph");
    let left = fs::read_dir(repository.root().join("churn")).unwrap().count();
    assert_eq!(left, 3, "the version, the rollout and its lock: nothing of the second attempt stays behind");
    assert_eq!(repository.read_rollout("churn").unwrap(), Some(Rollout::of("v1")));
}

#[test]
fn of_many_publishers_one_wins() {
    let directory = tempfile::tempdir().unwrap();
    let repository = Repository::new(directory.path());
    let won: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8_u8)
            .map(|publisher| {
                let repository = &repository;
                scope.spawn(move || {
                    let files: [(&str, &[u8]); 2] = [(MODEL, &[publisher]), (GOLDEN, GOLDEN_ROW)];
                    repository.publish(manifest("v1"), &files).is_ok()
                })
            })
            .collect();
        threads.into_iter().map(|thread| usize::from(thread.join().unwrap())).sum()
    });
    assert_eq!(won, 1);
    assert!(Package::read(&repository.directory("churn", "v1")).is_ok());
}

#[test]
fn every_alteration_is_noticed() {
    type Alter = fn(&Path);
    let alterations: [(&str, Alter); 10] = [
        ("bindings are not", |path| edit(path, "\"feature\": \"x\"", "\"feature\": \"y\"")),
        ("1 labels", |path| edit(path, "\"retain\",", "")),
        ("as threshold", |path| edit(path, "\"threshold\": 0.5", "\"threshold\": 1.5")),
        ("found digest", |path| fs::write(path.join(MODEL), b"grapH").unwrap()),
        ("cannot read", |path| fs::remove_file(path.join(GOLDEN)).unwrap()),
        ("is not a manifest", |path| fs::write(path.join(MANIFEST), b"{}").unwrap()),
        ("not the name of its directory", |path| edit(path, "\"v1\"", "\"v2\"")),
        ("not the name of its directory", |path| {
            edit(path, "\"churn\",\n  \"version\"", "\"other\",\n  \"version\"")
        }),
        ("expected a plain name", |path| edit(path, "\"model.onnx\"", "\"../model.onnx\"")),
        ("symbolic link", |path| {
            fs::rename(path.join(MODEL), path.join("elsewhere")).unwrap();
            std::os::unix::fs::symlink("elsewhere", path.join(MODEL)).unwrap();
        }),
    ];
    for (expected, alter) in alterations {
        let (_directory, _repository, path) = published();
        alter(&path);
        let error = Package::read(&path).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn what_is_no_regular_file_is_refused_without_waiting_for_it() {
    type Replace = fn(&Path);
    let pipe: Replace = |path| {
        let made = std::process::Command::new("mkfifo").arg(path).status().unwrap();
        assert!(made.success());
    };
    let directory: Replace = |path| fs::create_dir(path).unwrap();
    for name in [MANIFEST, MODEL, GOLDEN] {
        for replace in [pipe, directory] {
            let (_directory, repository, path) = published();
            fs::remove_file(path.join(name)).unwrap();
            replace(&path.join(name));
            let error = Package::read(&path).unwrap_err();
            assert_eq!(error.code(), "package_altered", "{name}: {error}");
            assert_eq!(repository.versions("churn").unwrap(), ["v1"], "it is there, and refused");
        }
    }
    let (_directory, repository, path) = published();
    let rollout = path.with_file_name(ROLLOUT);
    fs::remove_file(&rollout).unwrap();
    pipe(&rollout);
    assert_eq!(repository.read_rollout("churn").unwrap_err().code(), "package_altered");
}

#[test]
fn no_more_is_read_than_a_file_of_its_kind_may_have() {
    for (name, limit) in [
        (MANIFEST, MAX_MANIFEST_BYTES),
        (MODEL, lint::Limits::default().file_bytes),
        (GOLDEN, MAX_ROWS_BYTES),
    ] {
        let (_directory, _repository, path) = published();
        // A file with a hole takes no room on the disk.
        File::options().write(true).open(path.join(name)).unwrap().set_len(limit as u64 + 1).unwrap();
        let error = Package::read(&path).unwrap_err();
        assert!(matches!(error, Error::TooLarge { limit: found, .. } if found == limit), "{name}: {error}");
    }
    let (_directory, repository, path) = published();
    fs::write(path.with_file_name(ROLLOUT), vec![b' '; MAX_ROLLOUT_BYTES + 1]).unwrap();
    assert!(matches!(repository.read_rollout("churn"), Err(Error::TooLarge { .. })));
}

#[test]
fn labels_are_short_plain_and_different() {
    let labels =
        |labels: &[&str]| check_labels(&labels.iter().map(|&label| label.into()).collect::<Vec<_>>());
    let (long, too_long) = ("x".repeat(MAX_LABEL_BYTES), "x".repeat(MAX_LABEL_BYTES + 1));
    assert_eq!(labels(&[&long, "größer als 5", "\"quoted\""]), Ok(()));
    for (wrong, expected) in [
        ([too_long.as_str(), "b"], "257 bytes"),
        (["a\nb", "b"], "control character"),
        (["a\u{7f}", "b"], "control character"),
        (["b", "b"], "twice"),
    ] {
        let problem = labels(&wrong).unwrap_err();
        assert!(problem.contains(expected), "{problem}");
    }
}

fn edit(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path.join(MANIFEST)).unwrap();
    assert!(text.contains(from), "{from} in {text}");
    fs::write(path.join(MANIFEST), text.replacen(from, to, 1)).unwrap();
}

#[test]
fn the_first_version_goes_live_and_later_ones_wait() {
    let (_directory, repository, _) = published();
    repository.publish(manifest("v0"), &[(MODEL, b"graph"), (GOLDEN, GOLDEN_ROW)]).unwrap();
    assert_eq!(repository.read_rollout("churn").unwrap(), Some(Rollout::of("v1")));
    repository.write_rollout("churn", &Rollout::of("v0")).unwrap();
    assert_eq!(repository.read_rollout("churn").unwrap(), Some(Rollout::of("v0")));
    fs::write(repository.root().join("churn").join(ROLLOUT), b"{}").unwrap();
    assert!(matches!(repository.read_rollout("churn"), Err(Error::Rollout { .. })));
    assert_eq!(repository.read_rollout("other").unwrap(), None);
}

#[test]
fn what_cannot_be_done_after_that_does_not_undo_what_is_published() {
    let directory = tempfile::tempdir().unwrap();
    let repository = Repository::new(directory.path());
    // No lock, so that nobody can say what is live.
    fs::create_dir_all(directory.path().join("churn/.rollout.lock")).unwrap();
    let published = repository.publish(manifest("v1"), &[(MODEL, b"graph")]).unwrap();
    let unfinished = published.unfinished.unwrap();
    assert!(matches!(&unfinished, Error::Io { action: "lock", .. }), "{unfinished:?}");
    assert!(published.directory.join(MANIFEST).is_file());
    assert!(repository.read_rollout("churn").unwrap().is_none());
}

#[test]
fn what_the_superuser_publishes_is_its_repository_s() {
    use std::os::unix::fs::MetadataExt;
    let directory = tempfile::tempdir().unwrap();
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(directory.path(), Some(12_345), Some(12_345)).unwrap();
    }
    let repository = Repository::new(directory.path().join("models"));
    repository.publish(manifest("v1"), &[(MODEL, b"graph")]).unwrap();
    let owner = |path: &Path| fs::metadata(path).unwrap().uid();
    let model = repository.root().join("churn");
    for made in [repository.root(), &model, &model.join(".rollout.lock")] {
        assert_eq!(owner(made), owner(directory.path()), "{}", made.display());
    }
}

#[test]
fn names_cannot_leave_the_repository() {
    let directory = tempfile::tempdir().unwrap();
    let repository = Repository::new(directory.path().join("inner"));
    let long = "x".repeat(129);
    for name in ["", ".", "..", ".hidden", "a/b", "../x", "a\0", "%2e%2e", "ü", &long] {
        assert!(matches!(repository.publish(manifest(name), &[]), Err(Error::Name { .. })), "{name}");
    }
    assert!(!directory.path().join("inner").exists());
}

#[test]
fn hidden_linked_and_unfinished_directories_are_passed_over() {
    let (_directory, repository, path) = published();
    let model = repository.root().join("churn");
    fs::create_dir(model.join("no-manifest-yet")).unwrap();
    fs::create_dir(model.join(".publishing-x")).unwrap();
    std::os::unix::fs::symlink(&path, model.join("linked")).unwrap();
    fs::write(repository.root().join("file"), b"").unwrap();
    assert_eq!(repository.list().unwrap()["churn"], ["v1"]);
}

#[test]
fn what_dead_publishers_left_is_removed_by_the_next() {
    let (_directory, repository, _) = published();
    let model = repository.root().join("churn");
    let [old, young] = ["old", "young"].map(|name| model.join(format!("{STAGING}{name}")));
    for left in [&old, &young] {
        fs::create_dir(left).unwrap();
        fs::write(left.join(MODEL), b"half of a gr").unwrap();
    }
    let rollout = model.join(format!("{STAGED_ROLLOUT}old"));
    fs::write(&rollout, b"{").unwrap();
    for left in [&old, &rollout] {
        File::open(left).unwrap().set_modified(std::time::SystemTime::now() - 2 * DEAD).unwrap();
    }
    repository.publish(manifest("v2"), &[(MODEL, b"graph")]).unwrap();
    assert!(!old.exists() && !rollout.exists());
    assert!(young.exists(), "somebody may be writing it");
    assert_eq!(repository.versions("churn").unwrap(), ["v1", "v2"]);
}

#[test]
fn versions_of_a_day_are_counted_up() {
    let (_directory, repository, _) = published();
    assert_eq!(repository.next_version("churn", "2026-05-17").unwrap(), "2026-05-17_01");
    for taken in ["2026-05-17_01", "2026-05-17_09", "2026-05-16_40"] {
        repository.publish(manifest(taken), &[(MODEL, b"graph")]).unwrap();
    }
    assert_eq!(repository.next_version("churn", "2026-05-17").unwrap(), "2026-05-17_10");
    assert_eq!(repository.next_version("other", "2026-05-17").unwrap(), "2026-05-17_01");
}
