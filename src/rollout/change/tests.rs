//! What becomes of rollouts, change by change, over a repository on the disk.

use std::path::Path;
use std::sync::Barrier;

use scoregate_model::package::ROLLOUT;
use scoregate_schemas::manifest::{self, Bindings, Output, Source, SourceKind};
use serde_json::json;

use super::*;

const MODEL_NAME: &str = "churn";

/// A repository with versions a, b, c and d, of which d needs a field that the others do not know.
struct World {
    directory: tempfile::TempDir,
    store: Store,
    log: audit::Log,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let repository = Repository::new(directory.path().join("models"));
        for version in ["a", "b", "c", "d"] {
            publish(&repository, version);
        }
        let log = audit::Log::new(&directory.path().join("state"));
        Self { store: repository.into(), log, directory }
    }

    fn ask(&self) -> Asked<'_> {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_000_000);
        Asked::new(&self.store, &self.log, MODEL_NAME, Actor::operator(), now)
    }

    /// Makes a change, and says in words what the rollout is then and what was done.
    fn change(&self, change: &Change) -> Result<(String, Vec<String>), &'static str> {
        self.change_as(change, self.ask())
    }

    fn change_as(&self, change: &Change, asked: Asked<'_>) -> Result<(String, Vec<String>), &'static str> {
        let recorded = self.events().len();
        let changed = change.carry_out(&asked).map_err(|error| error.code());
        let events = self.events().split_off(recorded);
        match &changed {
            Ok(changed) => {
                let read = self.store.local().read_rollout(MODEL_NAME).unwrap().unwrap();
                assert_eq!(read, changed.after, "what is written is what was told");
                assert_eq!(events.len(), changed.deeds.len());
            }
            Err(_) => assert!(events.is_empty(), "nothing is done, and nothing recorded: {events:?}"),
        }
        let done = events.iter().map(|event| {
            let digest = event["digest"].as_str().unwrap();
            assert!(digest.starts_with("sha256:"), "{event}");
            format!("{} {}", event["action"].as_str().unwrap(), event["target"].as_str().unwrap())
        });
        changed.map(|changed| (in_words(&changed.after), done.collect()))
    }

    fn events(&self) -> Vec<Value> {
        let path = self.directory.path().join("state/audit.jsonl");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn path(&self) -> std::path::PathBuf {
        self.store.local().root().join(MODEL_NAME)
    }
}

fn publish(repository: &Repository, version: &str) {
    let mut properties = json!({"x": {"type": "number"}});
    if version == "d" {
        properties["y"] = json!({"type": "number"});
    }
    publish_with(repository, version, properties);
}

fn publish_with(repository: &Repository, version: &str, properties: Value) {
    let schema = json!({"type": "object", "properties": properties});
    let parsed = FeatureSchema::from_document(schema.clone()).unwrap();
    let manifest = Manifest {
        format: manifest::FORMAT,
        name: MODEL_NAME.into(),
        version: version.into(),
        created_at: "2026-05-17T00:00:00Z".into(),
        files: BTreeMap::new(),
        bindings: Bindings::columns_of(&parsed, str::to_owned),
        schema,
        output: Output::Probabilities { name: "p".into(), classes: 2, positive: 1 },
        changes: Vec::new(),
        threshold: 0.5,
        labels: vec!["no".into(), "yes".into()],
        tolerance: 1e-6,
        metrics: None,
        training: None,
        source: Source { kind: SourceKind::Import, producer: "test".into() },
    };
    repository.publish(manifest, &[(MODEL, version.as_bytes())]).unwrap();
}

/// `live a, canary b 5, shadow c, previous d, revision 7`
fn in_words(rollout: &Rollout) -> String {
    let canaries = rollout.canaries.iter().map(|canary| {
        assert_eq!(canary.since.as_deref(), Some("2026-11-18T11:06:40Z"));
        format!("canary {} {}", canary.version, canary.percent)
    });
    let named = |what: &str, version: &Option<String>| {
        version.iter().map(|version| format!("{what} {version}")).collect::<Vec<_>>()
    };
    let words = std::iter::once(format!("live {}", rollout.live))
        .chain(canaries)
        .chain(named("shadow", &rollout.shadow))
        .chain(named("previous", &rollout.previous))
        .chain(named("taken back", &rollout.taken_back));
    format!("{}, revision {}", words.collect::<Vec<_>>().join(", "), rollout.revision)
}

fn canary(version: &str, percent: f64) -> Change {
    Change::Canary { version: version.into(), percent, guard: None }
}

fn guarded(version: &str, percent: f64, guard: GuardMode) -> Change {
    Change::Canary { version: version.into(), percent, guard: Some(guard) }
}

/// A rollback of `version`, or of whatever was rolled out last.
fn rollback(version: impl Into<Option<&'static str>>) -> Change {
    Change::Rollback(version.into().map(ToOwned::to_owned))
}

fn shadow(version: &str) -> Change {
    Change::Shadow(Some(version.into()))
}

fn replace(live: &str, canaries: &[(&str, f64)], shadow: Option<&str>) -> Change {
    let canaries = canaries.iter().map(|(version, percent)| Canary::of(*version, *percent)).collect();
    Change::Replace { live: live.into(), canaries, shadow: shadow.map(Into::into) }
}

#[test]
fn changes_lead_from_one_rollout_to_the_next() {
    let world = World::new();
    let promote = |version: &str| Change::Promote(version.into());
    // What is asked for, what the rollout is then, and what was done.
    let steps: [(Change, &str, &[&str]); 20] = [
        (canary("b", 5.0), "live a, canary b 5, revision 1", &["canary.set b"]),
        (canary("b", 25.0), "live a, canary b 25, revision 2", &["canary.set b"]),
        (canary("b", 25.0), "live a, canary b 25, revision 2", &[]),
        (shadow("c"), "live a, canary b 25, shadow c, revision 3", &["shadow.set c"]),
        (promote("b"), "live b, shadow c, previous a, revision 4", &["version.promoted b"]),
        (canary("c", 0.0), "live b, canary c 0, previous a, revision 5", &["canary.set c"]),
        (shadow("a"), "live b, canary c 0, shadow a, previous a, revision 6", &["shadow.set a"]),
        // The canaries go first, and the version before comes back after that.
        (
            rollback(None),
            "live b, previous a, revision 7",
            &["rollout.rolled_back b", "canary.dropped c", "shadow.dropped a"],
        ),
        (rollback(None), "live a, taken back b, revision 8", &["rollout.rolled_back a"]),
        (shadow("c"), "live a, shadow c, taken back b, revision 9", &["shadow.set c"]),
        (canary("b", 5.0), "live a, canary b 5, shadow c, revision 10", &["canary.set b"]),
        (promote("b"), "live b, shadow c, previous a, revision 11", &["version.promoted b"]),
        (promote("b"), "live b, shadow c, previous a, revision 11", &[]),
        (
            replace("a", &[("b", 1.5), ("c", 98.5)], None),
            "live a, canary b 1.5, canary c 98.5, previous b, revision 12",
            &["version.promoted a", "canary.set b", "canary.set c"],
        ),
        (
            replace("a", &[("c", 98.5)], Some("b")),
            "live a, canary c 98.5, shadow b, previous b, revision 13",
            &["shadow.set b"],
        ),
        (
            replace("a", &[("c", 98.5)], Some("b")),
            "live a, canary c 98.5, shadow b, previous b, revision 13",
            &[],
        ),
        (shadow("d"), "live a, canary c 98.5, shadow d, previous b, revision 14", &["shadow.set d"]),
        (Change::Shadow(None), "live a, canary c 98.5, previous b, revision 15", &["shadow.dropped d"]),
        // Other canaries stay when one is promoted.
        (promote("b"), "live b, canary c 98.5, previous a, revision 16", &["version.promoted b"]),
        (promote("c"), "live c, previous b, revision 17", &["version.promoted c"]),
    ];
    for (change, rollout, done) in steps {
        let done = done.iter().map(|done| done.replace(' ', " churn@")).collect();
        assert_eq!(world.change(&change), Ok((rollout.into(), done)), "{change:?}");
    }
}

#[test]
fn what_was_taken_back_stays_so_until_somebody_promotes_it() {
    let world = World::new();
    let promote = |version: &str| Change::Promote(version.into());
    let again = |change: &Change, version: &str| {
        let error = change.carry_out(&world.ask()).unwrap_err();
        assert_eq!(error.code(), "no_previous_version");
        let expected = format!("version {version} was taken back already; to have it back, promote it");
        assert!(error.reason().ends_with(&expected), "{error}");
    };
    let drop = |version: &str| Change::Drop(version.into());
    world.change(&promote("b")).unwrap();
    assert_eq!(world.change(&rollback(None)).unwrap().0, "live a, taken back b, revision 2");
    again(&rollback(None), "b");
    // Nor is a canary brought back that was taken back, though it was live before.
    world.change(&promote("b")).unwrap();
    world.change(&promote("a")).unwrap();
    for take_back in [drop("b"), rollback(None), rollback("b"), replace("a", &[], None)] {
        let (before, _) = world.change(&canary("b", 50.0)).unwrap();
        assert!(before.starts_with("live a, canary b 50, previous b, "), "{before}");
        let (after, _) = world.change(&take_back).unwrap();
        assert!(after.starts_with("live a, taken back b, "), "{take_back:?}: {after}");
        again(&rollback(None), "b");
        world.change(&promote("b")).unwrap();
        world.change(&promote("a")).unwrap();
    }
    // Where it was another one, there is still a version to return to.
    assert!(world.change(&canary("c", 5.0)).unwrap().0.starts_with("live a, canary c 5, previous b,"));
    assert!(world.change(&drop("c")).unwrap().0.starts_with("live a, previous b,"));
}

#[test]
fn a_rollback_takes_back_the_version_that_it_names_or_nothing() {
    let world = World::new();
    world.change(&Change::Promote("b".into())).unwrap();
    for version in ["a", "c", "e"] {
        assert_eq!(world.change(&rollback(version)), Err("rollout_changed"), "{version}");
    }
    world.change(&canary("c", 5.0)).unwrap();
    // It is live, but the canary would be taken back.
    assert_eq!(world.change(&rollback("b")), Err("rollout_changed"));
    let error = rollback("b").carry_out(&world.ask()).unwrap_err();
    assert!(error.reason().contains("b is live, and a rollback would take back the canaries: c;"), "{error}");
    assert_eq!(world.change(&rollback("c")).unwrap().0, "live b, previous a, revision 3");
    // However often it is said.
    assert_eq!(world.change(&rollback("c")), Err("rollout_changed"));
    assert_eq!(world.change(&rollback("b")).unwrap().0, "live a, taken back b, revision 4");
    assert_eq!(world.change(&rollback("b")), Err("rollout_changed"));
    assert_eq!(world.change(&rollback("a")), Err("no_previous_version"));
    // What could never be done is refused for that, whatever the revision.
    let stale = Asked { expected: Some(vec![0]), ..world.ask() };
    assert_eq!(world.change_as(&rollback("a"), stale), Err("no_previous_version"));
}

#[test]
fn a_canary_is_guarded_as_was_said_until_it_is_none_any_more() {
    let world = World::new();
    let mode = |change: &Change| {
        let changed = change.carry_out(&world.ask()).unwrap();
        let canary = changed.after.canaries.iter().find(|canary| canary.version == "b").cloned();
        (canary.and_then(|canary| canary.guard), changed.deeds.len())
    };
    assert_eq!(mode(&canary("b", 5.0)), (None, 1));
    let since =
        |world: &World| world.store.local().read_rollout(MODEL_NAME).unwrap().unwrap().canaries[0].clone();
    let before = since(&world);
    assert_eq!(mode(&guarded("b", 5.0, GuardMode::Off)), (Some(GuardMode::Off), 1));
    let event = world.events().pop().unwrap();
    assert_eq!((&event["action"], &event["guard"]), (&json!("canary.set"), &json!("off")));
    // Its share is the one that it had, since when it had it.
    assert_eq!(Canary { guard: None, ..since(&world) }, before);
    assert_eq!(mode(&guarded("b", 5.0, GuardMode::Off)), (Some(GuardMode::Off), 0), "the same again");
    assert_eq!(mode(&canary("b", 25.0)), (Some(GuardMode::Off), 1), "the next step");
    assert_eq!(mode(&guarded("b", 25.0, GuardMode::Promote)), (Some(GuardMode::Promote), 1));
    assert_eq!(mode(&replace("a", &[("b", 25.0)], None)), (None, 1), "everything was said");
    mode(&guarded("b", 25.0, GuardMode::Rollback));
    mode(&Change::Drop("b".into()));
    assert_eq!(mode(&canary("b", 25.0)), (None, 1));
}

#[test]
fn a_rollout_says_who_has_changed_it_and_when() {
    let world = World::new();
    let actor = Actor::caller("key_1");
    let asked = Asked { actor: actor.clone(), ..world.ask() };
    let after = canary("b", 5.0).carry_out(&asked).unwrap().after;
    assert_eq!(
        (after.changed_at.as_deref(), after.changed_by.clone()),
        (Some("2026-11-18T11:06:40Z"), Some(actor.author()))
    );
    // Who finds it as it should be has changed nothing.
    let later = Asked { now: world.ask().now + Duration::from_secs(1), ..world.ask() };
    assert_eq!(canary("b", 5.0).carry_out(&later).unwrap().after, after);
    let later = Asked { now: world.ask().now + Duration::from_secs(1), ..world.ask() };
    let after = Change::Drop("b".into()).carry_out(&later).unwrap().after;
    assert_eq!(
        (after.changed_at.as_deref(), after.changed_by),
        (Some("2026-11-18T11:06:41Z"), Some(Actor::operator().author()))
    );
}

#[test]
fn whoever_shares_out_rows_that_are_about_nobody_is_warned() {
    let world = World::new();
    // One version takes fields that others do not.
    let asked = || Asked { breaking: true, ..world.ask() };
    let warnings = |change: &Change| change.carry_out(&asked()).unwrap().warnings;
    for (change, expected) in [
        (canary("b", 0.0), 0),
        (canary("b", 5.0), 1),
        (canary("b", 5.0), 1),
        (canary("b", 100.0), 0),
        (replace("a", &[("b", 99.0), ("c", 0.0)], None), 1),
        (Change::Promote("c".into()), 1),
        (rollback(None), 0),
    ] {
        let found = warnings(&change);
        assert_eq!(found.len(), expected, "{change:?}: {found:?}");
        assert!(
            found.iter().all(|text| text.contains("of role entity") && text.contains("callers")),
            "{found:?}"
        );
    }
    // Where rows say whom they are about, there is nothing to warn of.
    publish_with(
        world.store.local(),
        "e",
        json!({"x": {"type": "number"}, "who": {"type": "string", "x-scoregate": {"role": "entity"}}}),
    );
    Change::Promote("e".into()).carry_out(&world.ask()).unwrap();
    assert_eq!(warnings(&canary("b", 5.0)), Vec::<String>::new());
}

#[test]
fn a_change_that_cannot_be_carried_out_changes_nothing() {
    let world = World::new();
    world.change(&canary("b", 60.0)).unwrap();
    let rollout = std::fs::read_to_string(world.path().join(ROLLOUT)).unwrap();
    let many: Vec<String> = (0..=super::super::MAX_CANARIES).map(|at| format!("v{at}")).collect();
    let many: Vec<(&str, f64)> = many.iter().map(|version| (version.as_str(), 1.0)).collect();
    let cases = [
        (canary("c", 40.01), "invalid_rollout"),
        (canary("c", -1.0), "invalid_rollout"),
        (canary("c", 0.001), "invalid_rollout"),
        (canary("c", f64::NAN), "invalid_rollout"),
        (canary("a", 1.0), "invalid_rollout"),
        (shadow("a"), "invalid_rollout"),
        (shadow("b"), "invalid_rollout"),
        (replace("a", &[("b", 1.0), ("b", 1.0)], None), "invalid_rollout"),
        (replace("a", &many, None), "invalid_rollout"),
        (Change::Drop("c".into()), "invalid_rollout"),
        (canary("e", 1.0), "unknown_version"),
        (shadow("e"), "unknown_version"),
        (Change::Promote("../churn/a".into()), "unknown_version"),
        (replace("e", &[], None), "unknown_version"),
    ];
    for (change, code) in cases {
        assert_eq!(world.change(&change), Err(code), "{change:?}");
    }
    let broken = world.path().join("c").join(MODEL);
    std::fs::write(&broken, "another").unwrap();
    for change in [canary("c", 1.0), shadow("c"), Change::Promote("c".into())] {
        assert_eq!(world.change(&change), Err("package_altered"), "{change:?}");
    }
    // What one gateway refuses is not made to answer through it.
    let refused = BTreeMap::from([("b".to_owned(), "it has no labels".to_owned())]);
    let serving = Serving { refused, ..Serving::default() };
    let asked = Asked { serving, ..world.ask() };
    assert_eq!(world.change_as(&Change::Promote("b".into()), asked), Err("version_refused"));
    assert_eq!(std::fs::read_to_string(world.path().join(ROLLOUT)).unwrap(), rollout);
    // Taking back needs no version to be whole.
    std::fs::write(world.path().join("b").join(MODEL), "another").unwrap();
    assert_eq!(world.change(&rollback(None)).unwrap().0, "live a, revision 2");
    assert_eq!(world.change(&rollback(None)), Err("no_previous_version"));
}

#[test]
fn there_is_no_way_back_to_a_version_that_is_gone() {
    let world = World::new();
    world.change(&Change::Promote("b".into())).unwrap();
    std::fs::write(world.path().join("a").join(MODEL), "another").unwrap();
    assert_eq!(world.change(&rollback(None)), Err("no_previous_version"));
    std::fs::remove_dir_all(world.path().join("a")).unwrap();
    assert_eq!(world.change(&rollback(None)), Err("no_previous_version"));
    assert_eq!(world.change(&Change::Promote("c".into())).unwrap().0, "live c, previous b, revision 2");
}

#[test]
fn nobody_overwrites_what_was_not_read() {
    let world = World::new();
    world.change(&canary("b", 5.0)).unwrap();
    let expect = |revisions: &[u64]| Asked { expected: Some(revisions.to_vec()), ..world.ask() };
    assert_eq!(world.change_as(&canary("b", 6.0), expect(&[0])), Err("rollout_changed"));
    assert_eq!(world.change_as(&canary("b", 6.0), expect(&[])), Err("rollout_changed"));
    assert!(world.change_as(&canary("b", 6.0), expect(&[0, 1])).is_ok());
}

#[test]
fn what_breaks_clients_has_to_be_wanted() {
    let world = World::new();
    for change in [canary("d", 5.0), Change::Promote("d".into()), replace("b", &[("d", 5.0)], None)] {
        assert_eq!(world.change(&change), Err("breaking_change"), "{change:?}");
        let error = change.carry_out(&world.ask()).unwrap_err().to_string();
        assert!(error.contains("\"y\" is new") && error.contains("--breaking"), "{error}");
    }
    // Its answers are nobody's.
    world.change(&shadow("d")).unwrap();
    let breaking = || Asked { breaking: true, ..world.ask() };
    world.change_as(&canary("d", 5.0), breaking()).unwrap();
    // A smaller share breaks nothing that is whole.
    world.change(&canary("d", 4.0)).unwrap();
    assert_eq!(world.change(&canary("d", 6.0)), Err("breaking_change"));
    world.change_as(&Change::Promote("d".into()), breaking()).unwrap();
    // Whoever lets clients send more breaks nothing; and there is a way back in any case.
    assert_eq!(world.change(&rollback(None)).unwrap().0, "live a, taken back d, revision 5");
    assert_eq!(world.change(&Change::Promote("d".into())), Err("breaking_change"));
    world.change_as(&Change::Promote("d".into()), breaking()).unwrap();
    world.change_as(&Change::Promote("a".into()), breaking()).unwrap();
    assert_eq!(world.change(&rollback(None)).unwrap().0, "live d, taken back a, revision 8");
}

#[test]
fn a_rollout_that_was_never_written_begins_with_what_answers() {
    let world = World::new();
    std::fs::remove_file(world.path().join(ROLLOUT)).unwrap();
    // All were published at once: the first name it is, unless a gateway serves another one.
    let serving = Serving { live: Some("c".into()), ..Serving::default() };
    let asked = Asked { serving, ..world.ask() };
    assert_eq!(world.change_as(&canary("b", 5.0), asked).unwrap().0, "live c, canary b 5, revision 1");
    std::fs::remove_file(world.path().join(ROLLOUT)).unwrap();
    assert_eq!(world.change(&Change::Promote("a".into())).unwrap().0, "live a, revision 1");
    // One whose time nobody knows might be the first.
    std::fs::remove_file(world.path().join(ROLLOUT)).unwrap();
    std::fs::write(world.path().join("a").join(package::MANIFEST), "{").unwrap();
    assert_eq!(world.change(&canary("c", 5.0)), Err("no_rollout"));
    assert_eq!(world.change(&Change::Promote("b".into())).unwrap().0, "live b, revision 1");
}

#[test]
fn what_cannot_be_recorded_is_not_done() {
    let world = World::new();
    std::fs::create_dir(world.directory.path().join("state")).unwrap();
    let full = world.directory.path().join("state/audit.jsonl");
    std::os::unix::fs::symlink("/dev/full", full).unwrap();
    let refused = canary("b", 5.0).carry_out(&world.ask()).unwrap_err();
    assert_eq!((refused.code(), refused.is_refusal()), ("audit_unavailable", false));
    assert_eq!(world.store.local().read_rollout(MODEL_NAME).unwrap(), Some(Rollout::of("a")));
}

#[test]
fn what_was_recorded_and_not_written_is_taken_back() {
    let world = World::new();
    // One more member, and nobody would read it.
    let long = "x".repeat(package::MAX_ROLLOUT_BYTES - 100);
    let text = json!({"live": "a", "previous": long}).to_string();
    std::fs::write(world.path().join(ROLLOUT), &text).unwrap();
    let error = canary("b", 5.0).carry_out(&world.ask()).unwrap_err();
    assert!(matches!(error, Error::Package(package::Error::TooLarge { .. })), "{error}");
    assert_eq!(std::fs::read_to_string(world.path().join(ROLLOUT)).unwrap(), text);
    let [set, failed] = world.events().try_into().unwrap();
    assert_eq!((&set["action"], &set["revision"]), (&json!("canary.set"), &json!(1)));
    assert_eq!((&failed["action"], &failed["revision"]), (&json!(NOT_CARRIED_OUT), &json!(1)));
    assert_eq!((&failed["code"], &failed["target"]), (&json!(error.code()), &json!(MODEL_NAME)));
}

#[test]
fn who_is_answered_stays_so_when_a_rollout_written_by_hand_is_changed() {
    let world = World::new();
    let by_hand = r#"{"live":"a","canaries":[{"version":"b","percent":5},{"version":"c","percent":0.5}]}"#;
    std::fs::write(world.path().join(ROLLOUT), by_hand).unwrap();
    let slots = |version: &str, changed: &Changed| {
        let canary = changed.after.canaries.iter().find(|canary| canary.version == version);
        canary.map(|canary| canary.slots.clone())
    };
    // As every gateway completes it; the same again changes nothing.
    let same = canary("b", 5.0).carry_out(&world.ask()).unwrap();
    assert_eq!((same.deeds.len(), slots("c", &same)), (0, Some(vec![(500, 550)])));
    let more = canary("b", 25.0).carry_out(&world.ask()).unwrap();
    assert_eq!(slots("b", &more), Some(vec![(0, 500), (550, 2_550)]));
    assert_eq!(slots("c", &more), Some(vec![(500, 550)]));
    let fewer = Change::Drop("b".into()).carry_out(&world.ask()).unwrap();
    assert_eq!(slots("c", &fewer), Some(vec![(500, 550)]));
}

#[test]
fn thousands_of_canaries_are_refused_before_any_slot_is_given() {
    let world = World::new();
    let many: Vec<(&str, f64)> = vec![("", 0.0); 40_000];
    let begun = std::time::Instant::now();
    assert_eq!(world.change(&replace("a", &many, None)), Err("invalid_rollout"));
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[test]
fn canaries_that_stay_take_what_the_next_live_version_takes() {
    let world = World::new();
    world.change(&canary("b", 5.0)).unwrap();
    // Clients of d may send what b does not know.
    let breaking = || Asked { breaking: true, ..world.ask() };
    world.change_as(&canary("d", 1.0), breaking()).unwrap();
    assert_eq!(world.change(&replace("d", &[("b", 5.0)], None)), Err("breaking_change"));
    world.change_as(&Change::Promote("d".into()), breaking()).unwrap();
    let error = Change::Promote("c".into()).carry_out(&world.ask()).unwrap_err();
    assert_eq!(error.code(), "breaking_change");
    // Back to the version before, nobody is held up.
    assert!(world.change(&Change::Promote("a".into())).is_ok());
}

#[test]
fn a_version_that_was_never_served_is_none_to_return_to() {
    let world = World::new();
    world.change(&Change::Promote("b".into())).unwrap();
    let refused = BTreeMap::from([("b".to_owned(), "it has no labels".to_owned())]);
    let asked = Asked { serving: Serving { refused, ..Serving::default() }, ..world.ask() };
    let after = world.change_as(&Change::Promote("c".into()), asked).unwrap().0;
    assert_eq!(after, "live c, previous a, revision 2");
}

#[test]
fn why_it_was_done_is_recorded_too() {
    let world = World::new();
    let facts = json!({"rule": "error_rate", "found": 0.5, "rows": 1_000});
    let asked = Asked { facts: facts.as_object().unwrap().clone(), ..world.ask() };
    canary("b", 5.0).carry_out(&asked).unwrap();
    Change::Promote("b".into()).carry_out(&world.ask()).unwrap();
    let [set, promoted] = world.events().try_into().unwrap();
    assert_eq!((&set["rule"], &set["rows"]), (&json!("error_rate"), &json!(1_000)));
    assert_eq!((&set["percent"], &set["revision"]), (&json!(5.0), &json!(1)));
    assert_eq!((&promoted["from"], &promoted["revision"]), (&json!("a"), &json!(2)));
}

#[test]
fn two_who_change_a_rollout_at_once_lose_no_change() {
    const CHANGES: u64 = 100;
    let world = World::new();
    let start = Barrier::new(2);
    std::thread::scope(|scope| {
        for version in ["b", "c"] {
            let (world, start) = (&world, &start);
            scope.spawn(move || {
                start.wait();
                for at in 1..=CHANGES {
                    canary(version, at as f64 / 100.0).carry_out(&world.ask()).unwrap();
                }
            });
        }
    });
    let rollout = world.store.local().read_rollout(MODEL_NAME).unwrap().unwrap();
    assert_eq!(rollout.revision, 2 * CHANGES);
    let mut shares: Vec<_> =
        rollout.canaries.iter().map(|canary| (canary.version.as_str(), canary.percent)).collect();
    shares.sort_by_key(|(version, _)| *version);
    assert_eq!(shares, [("b", 1.0), ("c", 1.0)]);
    let revisions: Vec<u64> =
        world.events().iter().map(|event| event["revision"].as_u64().unwrap()).collect();
    assert_eq!(
        revisions,
        (1..=2 * CHANGES).collect::<Vec<_>>(),
        "recorded in the order in which it was done"
    );
    assert!(!left_behind(&world.path()), "nothing but the rollout, its lock and the versions is left");
}

/// Whether there are files that a change should have taken away.
fn left_behind(model: &Path) -> bool {
    let names = std::fs::read_dir(model).unwrap().map(|entry| entry.unwrap().file_name());
    let known = ["a", "b", "c", "d", ROLLOUT, ".rollout.lock"];
    names.into_iter().any(|name| !known.contains(&name.to_str().unwrap()))
}

#[test]
fn a_rollout_written_by_hand_gets_the_same_slots_everywhere() {
    let world = World::new();
    let read = |text: &str| {
        std::fs::write(world.path().join(ROLLOUT), text).unwrap();
        crate::rollout::current(world.store.local(), MODEL_NAME, &["a".into(), "b".into(), "c".into()])
    };
    let by_hand = r#"{"live":"a","canaries":[{"version":"b","percent":5},{"version":"c","percent":0.5}]}"#;
    let rollout = read(by_hand).unwrap();
    assert_eq!(rollout.canaries[0].slots, [(0, 500)]);
    assert_eq!(rollout.canaries[1].slots, [(500, 550)]);
    assert_eq!(read(by_hand).unwrap(), rollout);
    // Slots that do not come to the share, or are another's, or are none at all, are mended alike.
    let wrong = r#"{"live":"a","canaries":[{"version":"b","percent":0.02,"slots":[[9,4],[5,6],[20000,30000]]},
        {"version":"c","percent":0.02,"slots":[[5,9]]}]}"#;
    let rollout = read(wrong).unwrap();
    assert_eq!(rollout.canaries[0].slots, [(0, 1), (5, 6)]);
    assert_eq!(rollout.canaries[1].slots, [(6, 8)]);
    // As gateways wrote it that knew no canaries.
    assert_eq!(read(r#"{"live":"b"}"#).unwrap(), Rollout::of("b"));
    for broken in [
        r#"{"live":"a","canaries":[{"version":"b","percent":101}]}"#,
        r#"{"live":"a","canaries":[{"version":"a","percent":1}]}"#,
        r#"{"live":"a","shadow":"a"}"#,
        r#"{"live":"a","canary":"b"}"#,
    ] {
        assert_eq!(read(broken).unwrap_err().code(), "invalid_rollout", "{broken}");
    }
}
