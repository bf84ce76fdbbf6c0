//! Rollouts: they are changed over HTTP and by commands, followed by every gateway on the repository, recorded, taken back without loading
//! anything, and whole whenever the power fails.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;
use std::time::{Duration, Instant};

use scoregate_model::package::{MODEL, Repository};
use scoregate_schemas::Rollout;
use serde_json::{Value, json};

use crate::publishing::{LATE, check_soon, empty, gateway, lines, refusal, state};
use crate::support::constant::{ask, constant, number, probability, publish};
use crate::support::crash::{Step, after_a_crash, traced};
use crate::support::graph::{FLOAT, Handmade};
use crate::support::{Answer, Client, Gateway, Request, Settings, pause, wait_for, wait_within};

const ROLLOUT: &str = "/v1/models/steady/rollout";
const ROLLBACK: &str = "/v1/models/steady/rollback";

/// A gateway, and who may change its rollouts.
struct World {
    gateway: Gateway,
    operator: String,
}

impl World {
    fn start(settings: Settings) -> Self {
        let scopes = "models:read,models:write";
        let operator = settings.key_with(&["--name", "operator", "--scopes", scopes]);
        Self { gateway: settings.start(), operator }
    }

    fn admin(&self, request: Request) -> Answer {
        Client::connect(self.gateway.admin_addr).ask(&request.header("X-Api-Key", &self.operator))
    }

    fn put(&self, body: &str) -> Answer {
        self.admin(put(ROLLOUT, body))
    }

    fn roll_back(&self) -> Answer {
        self.admin(Request::new("POST", ROLLBACK))
    }

    /// Takes back what `body` names.
    fn take_back(&self, body: &str) -> Answer {
        self.admin(with_body("POST", ROLLBACK, body))
    }

    /// Runs `scoregate models` beside the gateway.
    fn models(&self, arguments: &[&str]) -> Output {
        self.gateway.settings.run(&[&["models"], arguments].concat())
    }

    fn listed(&self) -> String {
        String::from_utf8(self.models(&["list"]).stdout).unwrap()
    }

    fn wait_for_state(&self, version: &str, expected: &str) {
        let last = wait_within(LATE, || {
            (state(&self.gateway, "steady", version)["state"] == expected).then_some(())
        });
        assert!(last.is_some(), "{version} is {}, not {expected}", state(&self.gateway, "steady", version));
    }

    /// What the audit log says was done, in order.
    fn deeds(&self) -> Vec<Value> {
        let path = self.gateway.settings.directory().join("state/audit.jsonl");
        let text = fs::read_to_string(path).unwrap_or_default();
        let events = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        // What the gateway does of its own accord.
        events.filter(|event| event["actor"]["kind"] != "gateway" && event["revision"].is_u64()).collect()
    }
}

fn put(target: &str, body: &str) -> Request {
    with_body("PUT", target, body)
}

fn with_body(method: &str, target: &str, body: &str) -> Request {
    Request::new(method, target)
        .header("Content-Type", "application/json")
        .header("Content-Length", body.len().to_string())
        .body(body)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A version that needs what clients of the others do not send.
fn wider(version: &str) -> Handmade {
    let made = Handmade::new("steady", &["a", "b"]).version(version).labels(&["no", "yes"]);
    made.node("Constant", &[], "score", vec![number(0.5)])
        .node("Sub", &["a", "a"], "nothing", Vec::new())
        .node("Mul", &["nothing", "b"], "naught", Vec::new())
        .node("Add", &["naught", "score"], "probability", Vec::new())
        .output("probability", FLOAT)
}

/// Versions 1, 2 and 3, which answer an eighth, two and three of them.
fn published() -> tempfile::TempDir {
    let models = empty();
    for version in 1..=3_u8 {
        publish(models.path(), "steady", &version.to_string(), f32::from(version) / 8.0);
    }
    models
}

#[test]
fn what_is_rolled_out_is_told_followed_and_recorded() {
    let models = published();
    let world = World::start(gateway(models.path()));
    for version in ["2", "3"] {
        world.wait_for_state(version, "accepted");
    }
    let told = world.gateway.get(ROLLOUT);
    assert_eq!((told.status, told.header("etag")), (200, Some("\"0\"")));
    let live = json!({"model_version": "1", "role": "live", "percent": 100.0, "state": "live"});
    let expected = json!({"model": "steady", "live": "1", "canaries": [], "revision": 0, "versions": [live]});
    assert_eq!(told.json(), expected);

    let changed = world.put(r#"{"live":"1","canaries":[{"version":"2","percent":5}],"shadow":"3"}"#);
    assert_eq!((changed.status, changed.header("etag")), (200, Some("\"1\"")), "{}", changed.text());
    world.wait_for_state("2", "canary");
    world.wait_for_state("3", "shadow");
    let told = world.gateway.get(ROLLOUT).json();
    let since = told["canaries"][0]["since"].as_str().unwrap();
    assert!(since.ends_with('Z'), "{since}");
    let expected = json!([
        {"model_version": "1", "role": "live", "percent": 95.0, "state": "live"},
        {"model_version": "2", "role": "canary", "percent": 5.0, "state": "canary"},
        {"model_version": "3", "role": "shadow", "percent": 0.0, "state": "shadow"},
    ]);
    assert_eq!(told["versions"], expected);
    assert_eq!(
        (&told["canaries"][0]["version"], &told["canaries"][0]["percent"]),
        (&json!("2"), &json!(5.0))
    );
    assert_eq!((&told["shadow"], &told["revision"]), (&json!("3"), &json!(1)));
    // The same again is no change.
    let again = world.put(r#"{"live":"1","canaries":[{"version":"2","percent":5}],"shadow":"3"}"#);
    assert_eq!(again.json()["canaries"], told["canaries"]);
    let by_whom = |told: &Value| (told["changed_by"]["kind"].clone(), told["changed_by"]["id"].clone());
    let (kind, id) = by_whom(&told);
    assert_eq!((kind, told["changed_at"].as_str()), (json!("caller"), Some(since)));
    assert_eq!(world.deeds()[0]["actor"]["id"], id);
    assert_eq!(again.json()["changed_at"], told["changed_at"]);
    // Rows of this model are about nobody, which whoever shares them out is told.
    let warned = again.json()["warnings"].clone();
    assert!(warned[0].as_str().unwrap().contains("no field of role entity"), "{warned}");
    assert_eq!(told.get("warnings"), None);

    // Commands change the same thing.
    let output = world.models(&["canary", "steady@2", "--percent", "12.5"]);
    for expected in ["canary with 12.5 %", "no field of role entity"] {
        assert!(output.status.success() && said(&output).contains(expected), "{}", said(&output));
    }
    let listed = world.listed();
    let changed = wait_for("the command to be followed", || {
        let found = world.gateway.get(ROLLOUT).json();
        (found["revision"] == 2).then_some(found)
    });
    let (kind, id) = by_whom(&changed);
    assert_eq!(kind, "operator");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let at = text(&changed["changed_at"]);
    for line in [
        format!("steady\t1\tlive 87.5 %\trevision 2, {at} by operator {}", text(&id)),
        format!("steady\t2\tcanary 12.5 % since {at}"),
        "steady\t3\tshadow".into(),
    ] {
        assert!(listed.lines().any(|found| found == line), "{line} is not in\n{listed}");
    }
    assert!(said(&world.models(&["show", "steady@2"])).contains(&format!("2 (canary 12.5 % since {at})")));
    assert!(world.models(&["canary", "steady@2", "--percent", "12.5", "--guard", "off"]).status.success());
    assert!(world.listed().contains(&format!("canary 12.5 % since {at}, guard off")), "{}", world.listed());
    wait_for("the word to be followed", || {
        (world.gateway.get(ROLLOUT).json()["canaries"][0]["guard"] == "off").then_some(())
    });
    assert!(world.models(&["shadow", "steady", "--off"]).status.success());
    assert!(world.models(&["promote", "steady@2"]).status.success());
    world.wait_for_state("2", "live");
    world.wait_for_state("1", "previous");
    world.wait_for_state("3", "accepted");
    assert_eq!(ask(&world.gateway, "steady"), Ok(("2".into(), 0.25)));
    assert!(world.models(&["canary", "steady@3", "--percent", "0"]).status.success());
    world.wait_for_state("3", "canary");
    assert!(world.models(&["canary", "steady@3", "--off"]).status.success());
    world.wait_for_state("3", "accepted");

    // Back in one call, and nothing is loaded for it.
    let loads = || {
        let loaded = |version| lines(&world.gateway, "model loaded", "steady", version).len();
        (loaded("1"), loaded("2"))
    };
    wait_for("the log", || (loads() == (1, 1)).then_some(()));
    // Metrics tell of all that are loaded.
    let metrics = Client::connect(world.gateway.admin_addr).ask(&Request::get("/metrics")).text();
    for version in ["1", "2"] {
        let series =
            format!("scoregate_model_loaded_timestamp_seconds{{model=\"steady\",version=\"{version}\"}}");
        assert!(metrics.contains(&series), "{series} is not in\n{metrics}");
    }
    let back = world.roll_back();
    assert_eq!((back.status, back.json()["live"].as_str()), (200, Some("1")), "{}", back.text());
    assert_eq!((back.json()["taken_back"].as_str(), back.json().get("previous")), (Some("2"), None));
    world.wait_for_state("1", "live");
    assert_eq!(ask(&world.gateway, "steady"), Ok(("1".into(), 0.125)));
    assert_eq!(loads(), (1, 1), "it was loaded already");
    // Twice is once: what was taken back has to be promoted to be had back.
    let again = world.roll_back();
    assert_eq!((again.status, again.code().as_str()), (409, "no_previous_version"));
    assert!(again.text().contains("version 2 was taken back already"), "{}", again.text());
    let output = world.models(&["rollback", "steady"]);
    assert!(!output.status.success() && said(&output).contains("promote it"), "{}", said(&output));
    // And nothing is taken back in the place of what was named.
    assert!(world.models(&["promote", "steady@2"]).status.success());
    world.wait_for_state("2", "live");
    let other = world.take_back(r#"{"version":"1"}"#);
    assert_eq!((other.status, other.code().as_str()), (412, "rollout_changed"));
    let output = world.models(&["rollback", "steady@1"]);
    assert!(
        !output.status.success() && said(&output).contains("2 is live, and there are no canaries"),
        "{}",
        said(&output)
    );
    let output = world.models(&["rollback", "steady@2"]);
    assert!(said(&output).contains("1 is the live version again, in the place of 2"), "{}", said(&output));
    world.wait_for_state("1", "live");

    let deeds = world.deeds();
    let done: Vec<String> = deeds
        .iter()
        .map(|deed| {
            let text = |name: &str| deed[name].as_str().unwrap_or_default().to_owned();
            let who = deed["actor"]["kind"].as_str().unwrap();
            format!(
                "{who} {} {} {}",
                text("action"),
                text("target").trim_start_matches("steady@"),
                deed["revision"]
            )
        })
        .collect();
    let expected = [
        "caller canary.set 2 1",
        "caller shadow.set 3 1",
        "operator canary.set 2 2",
        "operator canary.set 2 3",
        "operator shadow.dropped 3 4",
        "operator version.promoted 2 5",
        "operator canary.set 3 6",
        "operator canary.dropped 3 7",
        "caller rollout.rolled_back 1 8",
        "operator version.promoted 2 9",
        "operator rollout.rolled_back 1 10",
    ];
    assert_eq!(done, expected);
    assert_eq!((&deeds[2]["percent"], &deeds[3]["guard"]), (&json!(12.5), &json!("off")));
    assert_eq!((&deeds[5]["from"], &deeds[8]["from"]), (&json!("1"), &json!("2")));
    assert!(
        deeds.iter().all(|deed| deed["digest"].as_str().is_some_and(|digest| digest.starts_with("sha256:")))
    );
}

#[test]
fn a_change_that_is_refused_says_why_and_changes_nothing() {
    let models = published();
    // One that needs what clients of the others do not send, and one that nobody may serve.
    wider("wider").publish(models.path(), probability());
    let broken = publish(models.path(), "steady", "broken", 0.5);
    fs::write(broken.join("golden.jsonl"), "{").unwrap();
    let world = World::start(gateway(models.path()).set("SCOREGATE_POLL_INTERVAL", "50ms"));
    refusal(&world.gateway, "steady", "broken");
    let before = fs::read_to_string(models.path().join("steady/rollout.json")).unwrap();

    let cases = [
        (r#"{"live":"4"}"#, 404, "unknown_version"),
        (r#"{"live":"broken"}"#, 409, "version_unusable"),
        (r#"{"live":"1","shadow":"broken"}"#, 409, "version_unusable"),
        (r#"{"live":"wider"}"#, 409, "breaking_change"),
        (r#"{"live":"1","canaries":[{"version":"wider","percent":1}]}"#, 409, "breaking_change"),
        (r#"{"live":"1","canaries":[{"version":"2","percent":101}]}"#, 422, "invalid_rollout"),
        (r#"{"live":"1","canaries":[{"version":"2","percent":1.001}]}"#, 422, "invalid_rollout"),
        (r#"{"live":"1","canaries":[{"version":"2","percent":"1"}]}"#, 422, "invalid_rollout"),
        (r#"{"live":"1","canaries":[{"version":"1","percent":1}]}"#, 422, "invalid_rollout"),
        (r#"{"live":"1","canaries":[{"version":"2","percent":1,"guard":"on"}]}"#, 422, "invalid_rollout"),
        (r#"{"live":"1","shadow":"1"}"#, 422, "invalid_rollout"),
        (r#"{"live":"no name"}"#, 422, "invalid_rollout"),
        (r#"{"live":"1","revision":7}"#, 422, "invalid_rollout"),
        (r#"{"canaries":[]}"#, 422, "invalid_rollout"),
        ("{", 422, "invalid_rollout"),
    ];
    for (body, status, code) in cases {
        let answer = world.put(body);
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{body}: {}", answer.text());
    }
    let answer = world.put(r#"{"live":"wider"}"#).json();
    let expected =
        json!({"pointer": "#/b", "code": "field_required", "detail": "\"b\" is new and may not be missing"});
    assert_eq!(answer["errors"], json!([expected]), "{answer}");
    let answer = world.roll_back();
    assert_eq!((answer.status, answer.code().as_str()), (409, "no_previous_version"));
    for (body, status, code) in [
        (r#"{"version":"2"}"#, 412, "rollout_changed"),
        (r#"{"version":"1"}"#, 409, "no_previous_version"),
        (r#"{"version":"no name"}"#, 422, "invalid_rollout"),
        (r#"{"version":"1","live":"1"}"#, 422, "invalid_rollout"),
        ("{}", 422, "invalid_rollout"),
        ("{", 422, "invalid_rollout"),
        ("", 409, "no_previous_version"),
    ] {
        let answer = world.take_back(body);
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{body}: {}", answer.text());
    }
    for query in ["breaking", "breaking=yes", "breaking=true&breaking=true", "force=true"] {
        let answer = world.admin(put(&format!("{ROLLOUT}?{query}"), r#"{"live":"2"}"#));
        assert_eq!((answer.status, answer.code().as_str()), (400, "invalid_parameter"), "{query}");
    }
    let answer = world.admin(put("/v1/models/nobody/rollout", r#"{"live":"2"}"#));
    assert_eq!((answer.status, answer.code().as_str()), (404, "unknown_model"));
    // Who may only read may not write; and nobody writes from outside.
    let stranger = world.gateway.with_key(put(ROLLOUT, r#"{"live":"2"}"#));
    let answer = Client::connect(world.gateway.admin_addr).ask(&stranger);
    assert_eq!((answer.status, answer.code().as_str()), (403, "insufficient_scope"));
    assert_eq!(world.gateway.ask(&stranger).status, 405);
    for (arguments, expected) in [
        (&["promote", "steady@wider"][..], "--breaking"),
        (&["canary", "steady@wider", "--percent", "5"], "\"b\" is new"),
        (&["canary", "steady@2", "--percent", "5000"], "found 5000 percent"),
        (&["canary", "steady@2"], "--percent"),
        (&["canary", "steady@2", "--percent", "5", "--guard", "on"], "off, rollback or promote"),
        (&["canary", "steady@2", "--off"], "is no canary"),
        (&["shadow", "steady@9"], "has no version 9"),
        (&["shadow", "steady"], "MODEL@VERSION"),
        (&["rollback", "steady"], "none was live before"),
        (&["rollback", "nobody"], "nobody"),
    ] {
        let output = world.models(arguments);
        assert!(
            !output.status.success() && said(&output).contains(expected),
            "{arguments:?}: {}",
            said(&output)
        );
    }
    assert_eq!(fs::read_to_string(models.path().join("steady/rollout.json")).unwrap(), before);
    assert_eq!(world.deeds(), Vec::<Value>::new());

    // Whoever changed it after it was read is not overwritten.
    let tag = world.gateway.get(ROLLOUT).header("etag").unwrap().to_owned();
    assert_eq!(world.admin(put(ROLLOUT, r#"{"live":"2"}"#).header("If-Match", &tag)).status, 200);
    let answer = world.admin(put(ROLLOUT, r#"{"live":"3"}"#).header("If-Match", &tag));
    assert_eq!((answer.status, answer.code().as_str()), (412, "rollout_changed"));
    let answer = world.admin(Request::new("POST", ROLLBACK).header("If-Match", &tag));
    assert_eq!((answer.status, answer.code().as_str()), (412, "rollout_changed"));
    // And what breaks clients is done for whoever wants it.
    assert_eq!(world.admin(put(&format!("{ROLLOUT}?breaking=true"), r#"{"live":"wider"}"#)).status, 200);
    assert!(world.models(&["rollback", "steady"]).status.success());
    assert!(world.models(&["promote", "steady@wider", "--breaking"]).status.success());
    world.wait_for_state("wider", "live");
}

#[test]
fn gateways_on_one_directory_follow_within_two_seconds() {
    let models = published();
    let worlds = [(); 2].map(|()| World::start(gateway(models.path())));
    for world in &worlds {
        for version in ["2", "3"] {
            world.wait_for_state(version, "accepted");
        }
    }
    let [one, other] = &worlds;
    let converged = |what: &str, change: &dyn Fn(), states: [&str; 3]| {
        let started = Instant::now();
        change();
        for world in &worlds {
            for (version, expected) in ["1", "2", "3"].into_iter().zip(states) {
                world.wait_for_state(version, expected);
            }
        }
        println!("{what} after {:?}", started.elapsed());
        check_soon(what, started.elapsed());
        let revisions = [one, other].map(|world| world.gateway.get(ROLLOUT).json()["revision"].clone());
        assert_eq!(revisions[0], revisions[1]);
    };
    let put = |world: &World, body: &str| assert_eq!(world.put(body).status, 200);
    converged(
        "a canary",
        &|| put(one, r#"{"live":"1","canaries":[{"version":"2","percent":5}]}"#),
        ["live", "canary", "accepted"],
    );
    converged("a promotion", &|| put(other, r#"{"live":"2","shadow":"3"}"#), ["previous", "live", "shadow"]);
    converged("a rollback", &|| assert_eq!(one.roll_back().status, 200), ["live", "accepted", "accepted"]);
    let command = || assert!(other.models(&["promote", "steady@3"]).status.success());
    converged("a command", &command, ["previous", "accepted", "live"]);
}

#[test]
fn a_command_locks_no_gateway_out_and_a_restart_can_be_rolled_back() {
    let models = published();
    let lock = models.path().join("steady/.rollout.lock");
    let _ = fs::remove_file(&lock);
    let shy = Settings::bare().models(models.path()).under(&["sh", "-c", "umask 077; exec \"$@\"", "sh"]);
    let shy = shy.set("PATH", "/usr/bin:/bin");
    let output = shy.run(&["models", "promote", "steady@2"]);
    assert!(output.status.success(), "{}", said(&output));
    for path in [&lock, &models.path().join("steady/rollout.json")] {
        let mode = fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o644, "{}", path.display());
    }
    // A gateway that starts in it loads the version before as well, and the answer to a rollback is the last of what was rolled back.
    let world = World::start(gateway(models.path()).set("SCOREGATE_POLL_INTERVAL", "60s"));
    world.wait_for_state("1", "previous");
    assert_eq!(ask(&world.gateway, "steady"), Ok(("2".into(), 0.25)));
    assert_eq!(world.roll_back().status, 200);
    assert_eq!(ask(&world.gateway, "steady"), Ok(("1".into(), 0.125)));
}

#[test]
fn a_canary_that_is_not_loaded_gets_nobody() {
    const ENTITIES: usize = 60;
    let models = empty();
    let about = |version: &str, score: f32| {
        let made = constant("steady", version, score).entity("customer");
        made.publish(models.path(), probability());
        models.path().join("steady").join(version)
    };
    about("1", 0.25);
    let second = about("2", 0.5);
    let graph = fs::read(second.join(MODEL)).unwrap();
    fs::write(second.join(MODEL), &graph[1..]).unwrap();
    // Written by hand, without slots: half of everybody each, of whom one is broken and one not there.
    let by_hand = r#"{"live":"1","canaries":[{"version":"2","percent":50},{"version":"gone","percent":50}]}"#;
    fs::write(models.path().join("steady/rollout.json"), by_hand).unwrap();
    let world = World::start(gateway(models.path()).set("SCOREGATE_POLL_INTERVAL", "50ms"));
    refusal(&world.gateway, "steady", "2");
    let answered = || {
        let mut client = world.gateway.connect();
        let mut counts = BTreeMap::<String, usize>::new();
        for entity in 0..ENTITIES {
            let body = format!(r#"{{"a":0.5,"customer":"customer-{entity}"}}"#);
            let request = Request::post("/v1/models/steady/predict", body);
            let answer = client.ask(&world.gateway.with_key(request));
            assert_eq!(answer.status, 200, "{}", answer.text());
            *counts.entry(answer.json()["model_version"].as_str().unwrap().into()).or_default() += 1;
        }
        counts
    };
    assert_eq!(answered(), BTreeMap::from([("1".into(), ENTITIES)]));
    let told = world.gateway.get(ROLLOUT).json();
    let states: Vec<&str> =
        told["versions"].as_array().unwrap().iter().map(|told| told["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["live", "refused", "missing"], "{told}");
    assert_eq!(told["versions"][1]["refusal"]["code"], "package_altered");
    assert!(world.listed().contains("steady\t2\tcanary 50 %\n"), "{}", world.listed());

    // Mended, it gets its half; the other one is still the live version's.
    fs::write(second.join(MODEL), graph).unwrap();
    world.wait_for_state("2", "canary");
    let counts = answered();
    assert!(counts["2"] > ENTITIES / 4 && counts["1"] > ENTITIES / 4 && counts.len() == 2, "{counts:?}");
    // The live version may not be lost with it.
    fs::remove_dir_all(&second).unwrap();
    pause(Duration::from_millis(300));
    assert_eq!(answered(), counts, "what is loaded serves on");
}

#[test]
fn a_gateway_that_starts_in_the_middle_of_a_rollout_is_ready_with_its_canaries() {
    let models = published();
    let by_hand = r#"{"live":"1","canaries":[{"version":"2","percent":50}],"shadow":"3","previous":"3"}"#;
    fs::write(models.path().join("steady/rollout.json"), by_hand).unwrap();
    let world = World::start(gateway(models.path()));
    assert_eq!(state(&world.gateway, "steady", "1")["state"], "live");
    assert_eq!(
        state(&world.gateway, "steady", "2")["state"],
        "canary",
        "no entity meets the live version first"
    );
    world.wait_for_state("3", "shadow");
}

/// What the real reader makes of each of those.
fn read_each(contents: Vec<Vec<u8>>) -> BTreeMap<String, usize> {
    let directory = empty();
    let model = directory.path().join("steady");
    fs::create_dir(&model).unwrap();
    let repository = Repository::new(directory.path());
    let mut found = BTreeMap::<String, usize>::new();
    for content in contents {
        fs::write(model.join("rollout.json"), content).unwrap();
        let read = match repository.read_rollout("steady") {
            Ok(Some(Rollout { revision, .. })) => format!("revision {revision}"),
            Ok(None) => "nothing".into(),
            Err(_) => "neither".into(),
        };
        *found.entry(read).or_default() += 1;
    }
    found
}

#[test]
fn a_power_cut_leaves_the_old_rollout_or_the_new_one() {
    let models = published();
    let before = fs::read(models.path().join("steady/rollout.json")).unwrap();
    let settings = Settings::bare().models(models.path());
    let directory = models.path().join("steady");
    let steps = traced(settings, &["models", "canary", "steady@2", "--percent", "5"], &directory);
    let after = fs::read(models.path().join("steady/rollout.json")).unwrap();
    assert_ne!(before, after);
    let read = read_each(after_a_crash(&steps, "rollout.json", &before));
    println!("{} steps, {read:?}", steps.len());
    assert!(read["revision 0"] > 0 && read["revision 1"] > 0 && read.len() == 2, "{read:?}: {steps:#?}");
    // Once the command has said that it is done, it is.
    let last = after_a_crash(&steps, "rollout.json", &before).pop().unwrap();
    assert_eq!(last, after);
    let done: Vec<&Step> = steps.iter().collect();
    assert!(matches!(done.last(), Some(Step::SyncDirectory)), "{steps:#?}");

    // That this would be seen if it were otherwise: without the file's sync, and without a second name.
    let careless: Vec<Step> =
        steps.iter().filter(|step| !matches!(step, Step::SyncFile { .. })).cloned().collect();
    let read = read_each(after_a_crash(&careless, "rollout.json", &before));
    assert!(read.contains_key("neither"), "{read:?}");
    let in_place: Vec<Step> = steps
        .iter()
        .filter_map(|step| match step {
            Step::Create { file, .. } => Some(Step::Create { path: "rollout.json".into(), file: *file }),
            Step::Rename { .. } => None,
            other => Some(other.clone()),
        })
        .collect();
    let read = read_each(after_a_crash(&in_place, "rollout.json", &before));
    assert!(read.contains_key("neither"), "{read:?}");
}
