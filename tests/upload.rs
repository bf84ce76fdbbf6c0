//! Models that are sent to a running gateway to be published: what is good becomes a version, of everything else nothing is left.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use prost::Message;
use serde_json::{Value, json};

use crate::support::graph::picking;
use crate::support::{
    Answer, Client, Gateway, Request, Settings, badfile, is_full, pause, repository, scratch, wait_for,
    wait_within,
};

pub(crate) const BOUNDARY: &str = "----a-form-7MA4YWxk";
const TREE: &str = "/v1/models/tree/versions";

/// What is wrong, the body, the answer's status and code, and the code of its first fault where that matters.
type Refused<'c> = (&'c str, Vec<u8>, u16, &'c str, Option<&'c str>);

/// A form of these parts.
pub(crate) fn form(parts: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, bytes) in parts {
        let head = format!(
            "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"../../etc/{name}\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n"
        );
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(bytes);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
    body
}

/// Who sends models, and a gateway that takes them.
struct Publisher {
    gateway: Gateway,
    key: String,
    models: tempfile::TempDir,
}

impl Publisher {
    /// With an empty repository but for a model `first`, and what `set` changes.
    fn new(set: impl FnOnce(Settings) -> Settings) -> Self {
        let models = tempfile::tempdir_in(scratch()).unwrap();
        let settings = set(Settings::new()
            .models(models.path())
            .set("SCOREGATE_STATE_DIR", "state")
            .set("SCOREGATE_DEFAULT_MODEL", "tree"));
        let place = tempfile::tempdir_in(scratch()).unwrap();
        let write = |name: &str, text: &[u8]| {
            fs::write(place.path().join(name), text).unwrap();
            place.path().join(name).to_str().unwrap().to_owned()
        };
        let import = [
            "import",
            &write("model.onnx", &badfile::good().encode_to_vec()),
            "--name",
            "first",
            "--schema",
            &write("schema.json", badfile::schema("first").to_string().as_bytes()),
            "--golden",
            &write("golden.jsonl", badfile::golden().as_bytes()),
        ];
        let imported = settings.run(&import);
        assert!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));
        let key = settings.key_with(&["--name", "publisher", "--scopes", "models:write,models:read"]);
        Self { gateway: settings.start(), key, models }
    }

    fn request(&self, target: &str, body: &[u8]) -> Request {
        Request::new("POST", target)
            .header("X-Api-Key", &self.key)
            .header("Content-Type", format!("multipart/form-data; boundary=\"{BOUNDARY}\""))
            .body(body)
    }

    fn admin(&self, request: &Request) -> Answer {
        Client::connect(self.gateway.admin_addr).ask(request)
    }

    /// Sends a form to be published as a version of model `tree`.
    fn send(&self, parts: &[(&str, &[u8])]) -> Answer {
        self.admin(&self.request(TREE, &form(parts)))
    }

    /// What is in hand, or was left.
    fn uploads(&self) -> Vec<PathBuf> {
        let directory = self.gateway.settings.directory().join("state/uploads");
        let Ok(entries) = fs::read_dir(self.gateway.see(&directory)) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect()
    }

    fn versions(&self) -> Vec<String> {
        let directory = self.gateway.see(&self.models.path().join("tree"));
        let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| !name.contains("rollout")).collect();
        names.sort();
        names
    }

    fn audited(&self, action: &str) -> Vec<Value> {
        let log = self.gateway.settings.directory().join("state/audit.jsonl");
        let events = fs::read_to_string(log).unwrap();
        let events = events.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        events.filter(|event| event["action"] == action).collect()
    }
}

/// The parts of a good model.
fn good() -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let schema = badfile::schema("tree").to_string().into_bytes();
    (badfile::good().encode_to_vec(), schema, badfile::golden().into_bytes())
}

#[test]
fn what_is_sent_becomes_a_version_and_answers_once_it_is_promoted() {
    let publisher = Publisher::new(|settings| settings);
    let (model, schema, golden) = good();
    // Of a model that nobody knows, nobody knows the schema.
    let without = publisher.send(&[("model", &model)]);
    assert_eq!((without.status, without.code().as_str()), (400, "invalid_upload"), "{}", without.text());
    let first = publisher.send(&[
        ("golden", &golden),
        ("schema", &schema),
        ("version", b"one"),
        ("tolerance", b"1e-4"),
        ("model", &model),
    ]);
    assert_eq!(first.status, 201, "{}", first.text());
    assert_eq!(first.header("location"), Some("/v1/models/tree/versions/one"));
    let told = first.json();
    assert_eq!(
        (&told["model"], &told["model_version"], &told["live"]),
        (&json!("tree"), &json!("one"), &json!(true))
    );
    assert_eq!((&told["golden"]["rows"], &told["breaking"]), (&json!(3), &json!([])));
    for place in [publisher.models.path(), publisher.gateway.settings.directory()] {
        assert!(!first.text().contains(place.to_str().unwrap()), "{}", first.text());
    }
    let ask = || publisher.gateway.post("/v1/models/tree/predict", r#"{"a":0.25,"b":0.875}"#);
    let answer = wait_for("the first version", || Some(ask()).filter(|answer| answer.status == 200)).json();
    assert_eq!((&answer["model_version"], &answer["tree_probability"]), (&json!("one"), &json!(0.75)));

    // The next one has the same schema, waits, and is called by the day.
    let second = publisher.send(&[("model", &model), ("golden", &golden)]);
    assert_eq!(second.status, 201, "{}", second.text());
    let told = second.json();
    assert_eq!(told["live"], json!(false));
    let name = told["model_version"].as_str().unwrap().to_owned();
    assert!(name.ends_with("_01"), "{name}");
    let version = format!("{TREE}/{name}");
    let read = || publisher.admin(&Request::get(&version).header("X-Api-Key", &publisher.key));
    let accepted = wait_for("the second version to be tried", || {
        Some(read()).filter(|answer| answer.status == 200 && answer.json()["state"] == "accepted")
    });
    assert_eq!(accepted.json()["schema"], serde_json::from_slice::<Value>(&schema).unwrap());
    assert_eq!(ask().json()["model_version"], "one", "nobody has promoted it");
    // A narrower one is told to be.
    let mut narrow = badfile::schema("tree");
    narrow["properties"]["a"]["maximum"] = json!(0.9);
    let narrow = narrow.to_string();
    let third =
        publisher.send(&[("model", &model), ("golden", &golden), ("schema", narrow.as_bytes())]).json();
    assert_eq!(
        third["breaking"],
        json!(["\"a\" was at least 0 and at most 1, and is at least 0 and at most 0.9"])
    );

    let published = publisher.audited("version.published");
    let targets: Vec<&Value> = published.iter().map(|event| &event["target"]).collect();
    assert_eq!(targets[1..3], [&json!("tree@one"), &json!(format!("tree@{name}"))]);
    assert_eq!(published[1]["actor"]["kind"], "caller");
    assert_eq!(published[1]["digest"], told["digest"]);
    assert_eq!(publisher.uploads(), Vec::<PathBuf>::new());
}

#[test]
fn whatever_else_is_sent_is_refused_and_leaves_nothing() {
    let publisher = Publisher::new(|settings| settings.set("SCOREGATE_MAX_UPLOAD_BYTES", "100000"));
    let (model, schema, golden) = good();
    let published = publisher.send(&[("model", &model), ("schema", &schema), ("version", b"taken")]);
    assert_eq!(published.status, 201, "{}", published.text());

    let secret = "canary-7f3a";
    let wrong = format!("{{\"features\":{{\"a\":\"{secret}\",\"b\":0.5}},\"expected\":0.25}}\n");
    let no_golden = format!("{{\"features\":\"{secret}\"}}\n");
    let off = golden.iter().map(|byte| if *byte == b'7' { b'6' } else { *byte }).collect::<Vec<u8>>();
    let mut other = badfile::schema("tree");
    other["properties"]["c"] = json!({"type": "number"});
    let other = other.to_string();
    let large = vec![b'x'; 90_000];
    let parts = |parts: &[(&str, &[u8])]| form(parts);
    let cases: Vec<Refused<'_>> = vec![
        ("nothing", Vec::new(), 400, "invalid_upload", None),
        ("no form", b"{}".to_vec(), 400, "invalid_upload", None),
        ("broken off", parts(&[("model", &model)])[..200].to_vec(), 400, "invalid_upload", None),
        ("no model", parts(&[("schema", &schema)]), 400, "invalid_upload", None),
        ("a part twice", parts(&[("model", &model), ("model", &model)]), 400, "invalid_upload", None),
        ("a text twice", parts(&[("version", b"a"), ("version", b"b")]), 400, "invalid_upload", None),
        ("an unknown part", parts(&[("model", &model), ("modle", &model)]), 400, "invalid_upload", None),
        (
            "a long name",
            parts(&[("model", &model), ("version", &large[..20_000])]),
            400,
            "invalid_upload",
            None,
        ),
        ("no link", parts(&[("model", &model), ("link", b"logit")]), 400, "invalid_upload", None),
        ("no input", parts(&[("model", &model), ("input", b"floats")]), 400, "invalid_upload", None),
        (
            "the same in two ways",
            parts(&[("model", &model), ("task", b"binary"), ("bindings", b"{}")]),
            400,
            "invalid_upload",
            None,
        ),
        ("no number", parts(&[("model", &model), ("tolerance", b"much")]), 400, "invalid_upload", None),
        ("a large number", parts(&[("model", &model), ("tolerance", b"2")]), 400, "invalid_upload", None),
        ("up and away", parts(&[("model", &model), ("version", b"../x")]), 400, "invalid_name", None),
        ("hidden", parts(&[("model", &model), ("version", b".x")]), 400, "invalid_name", None),
        ("NUL", parts(&[("model", &model), ("version", b"a\0b")]), 400, "invalid_name", None),
        ("no bytes", parts(&[("model", b"")]), 400, "invalid_model", Some("empty_file")),
        ("a pickle", parts(&[("model", b"\x80\x04\x95")]), 400, "invalid_model", None),
        ("an archive", parts(&[("model", b"PK\x03\x04 and more")]), 400, "invalid_model", None),
        ("a program", parts(&[("model", b"\x7fELF\x02\x01\x01")]), 400, "invalid_model", None),
        ("JSON", parts(&[("model", b"{\"a\":1}")]), 400, "invalid_model", None),
        ("half a model", parts(&[("model", &model[..model.len() / 2])]), 400, "invalid_model", None),
        (
            "no schema",
            parts(&[("model", &model), ("schema", b"[]")]),
            422,
            "model_refused",
            Some("invalid_schema"),
        ),
        (
            "another schema",
            parts(&[("model", &model), ("schema", other.as_bytes())]),
            422,
            "model_refused",
            None,
        ),
        (
            "other answers",
            parts(&[("model", &model), ("golden", &off)]),
            422,
            "model_refused",
            Some("golden_mismatch"),
        ),
        (
            "a golden row that does not pass",
            parts(&[("model", &model), ("golden", wrong.as_bytes())]),
            422,
            "model_refused",
            Some("invalid_golden"),
        ),
        (
            "no golden row",
            parts(&[("model", &model), ("golden", no_golden.as_bytes())]),
            422,
            "model_refused",
            Some("invalid_golden"),
        ),
        (
            "no reference",
            parts(&[("model", &model), ("reference", b"a\n1\n")]),
            422,
            "model_refused",
            Some("invalid_reference"),
        ),
        (
            "no bindings",
            parts(&[("model", &model), ("bindings", b"{\"bindings\":\"canary-7f3a\"}")]),
            422,
            "model_refused",
            Some("invalid_bindings"),
        ),
        (
            "a name that is taken",
            parts(&[("model", &model), ("version", b"taken")]),
            409,
            "version_exists",
            None,
        ),
        ("too much", parts(&[("model", &large), ("golden", &large)]), 413, "body_too_large", None),
    ];
    for (what, body, status, code, fault) in cases {
        let answer = publisher.admin(&publisher.request(TREE, &body));
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{what}: {}", answer.text());
        if let Some(fault) = fault {
            assert_eq!(answer.json()["errors"][0]["code"], fault, "{what}: {}", answer.text());
        }
        let text = answer.text();
        for secret in [secret, "/etc/", publisher.models.path().to_str().unwrap(), "state/uploads", "upload-"]
        {
            assert!(!text.contains(secret), "{what}: {text}");
        }
    }
    // The same, announced piece by piece.
    let chunked = publisher.request(TREE, &[]).header("Transfer-Encoding", "chunked");
    let mut client = Client::connect(publisher.gateway.admin_addr);
    client.send(chunked.head());
    let whole = form(&[("model", &large), ("golden", &large)]);
    for piece in whole.chunks(10_000) {
        client.send(format!("{:x}\r\n", piece.len()));
        client.send(piece);
        client.send("\r\n");
    }
    assert_eq!(client.answer().unwrap().code(), "body_too_large");

    let body = form(&[("model", &model)]);
    let request = publisher.request(TREE, &body);
    let check = |request: Request, status: u16, code: &str| {
        let answer = publisher.admin(&request);
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{}", answer.text());
    };
    check(request.clone().content_type("application/json"), 415, "unsupported_media_type");
    check(request.clone().content_type("multipart/form-data"), 415, "unsupported_media_type");
    check(request.clone().header("Content-Encoding", "gzip"), 415, "unsupported_encoding");
    check(request.clone().header("Accept", "image/png"), 406, "not_acceptable");
    check(request.clone().without("x-api-key"), 401, "missing_credentials");
    check(
        request.clone().without("x-api-key").header("X-Api-Key", &publisher.gateway.key),
        403,
        "insufficient_scope",
    );
    check(publisher.request(&format!("{TREE}?promote=true"), &body), 400, "invalid_parameter");
    check(publisher.request("/v1/models/%2e%2e/versions", &body), 400, "invalid_name");
    check(publisher.request("/v1/models/%252e/versions", &body), 400, "invalid_name");
    check(publisher.request(&format!("/v1/models/{}/versions", "x".repeat(129)), &body), 400, "invalid_name");
    let few = publisher.gateway.settings.key_with(&[
        "--name",
        "few",
        "--scopes",
        "models:write",
        "--models",
        "first",
    ]);
    let of_few = request.clone().without("x-api-key").header("X-Api-Key", &few);
    wait_for("the key", || (publisher.admin(&of_few).code() == "model_not_allowed").then_some(()));
    // What changes something is on the admin listener alone.
    assert_eq!(publisher.gateway.ask(&request).status, 405);

    assert_eq!(publisher.versions(), ["taken"]);
    assert_eq!(publisher.audited("version.published").len(), 2);
    assert_eq!(publisher.uploads(), Vec::<PathBuf>::new());
}

#[test]
fn files_that_nobody_should_serve_are_refused_as_imports_are() {
    let publisher = Publisher::new(|settings| settings);
    let (_, schema, golden) = good();
    let every = if is_full() { 1 } else { 6 };
    let mut tried = 0;
    for bad in badfile::table().into_iter().step_by(every) {
        let file = bad.bytes();
        if file.len() > 1 << 20 {
            continue;
        }
        let answer = publisher.send(&[("model", &file), ("schema", &schema), ("golden", &golden)]);
        let found = answer.json()["errors"][0]["code"].as_str().unwrap_or_default().to_owned();
        assert_eq!(found, bad.import.unwrap_or(bad.code), "{}: {}", bad.name, answer.text());
        assert!(matches!(answer.status, 400 | 422), "{}: {}", bad.name, answer.status);
        tried += 1;
    }
    assert!(tried > 5, "{tried}");
    assert_eq!(publisher.versions(), Vec::<String>::new());
    assert_eq!(publisher.gateway.get("/v1/models").status, 200);
}

#[test]
fn of_two_that_take_one_name_one_wins() {
    let publisher = Publisher::new(|settings| settings);
    let (model, schema, golden) = good();
    let body = form(&[("model", &model), ("schema", &schema), ("golden", &golden), ("version", b"same")]);
    let request = publisher.request(TREE, &body);
    let mut statuses: Vec<u16> = std::thread::scope(|scope| {
        let sending: Vec<_> = (0..2).map(|_| scope.spawn(|| publisher.admin(&request).status)).collect();
        sending.into_iter().map(|sent| sent.join().unwrap()).collect()
    });
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 409]);
    assert_eq!(publisher.versions(), ["same"]);
}

#[test]
fn a_name_of_the_day_that_is_taken_meanwhile_costs_nobody_an_upload() {
    let publisher = Publisher::new(|settings| settings);
    let (model, schema, golden) = good();
    // Another replica has taken the first name, which this one does not see yet: what is no directory is listed nowhere.
    let tree = publisher.models.path().join("tree");
    fs::create_dir(&tree).unwrap();
    let today = time::OffsetDateTime::now_utc().date();
    for day in [today, today.next_day().unwrap()] {
        fs::write(tree.join(format!("{day}_01")), "").unwrap();
    }
    let parts: [(&str, &[u8]); 3] = [("model", &model), ("schema", &schema), ("golden", &golden)];
    let published = publisher.send(&parts);
    assert_eq!(published.status, 201, "{}", published.text());
    let version = published.json()["model_version"].as_str().unwrap().to_owned();
    assert!(version.ends_with("_02"), "{version}");
    let targets: Vec<Value> =
        publisher.audited("version.published").into_iter().map(|event| event["target"].clone()).collect();
    let tried = version.replace("_02", "_01");
    assert_eq!(
        targets[1..],
        [format!("tree@{tried}"), format!("tree@{version}")],
        "what was tried is recorded"
    );
    let failed = publisher.audited("version.publish_failed");
    assert_eq!(failed.len(), 1, "and that it was another's: {failed:?}");
    assert_eq!(
        (&failed[0]["target"], &failed[0]["code"], failed[0]["digest"].is_string()),
        (&json!(format!("tree@{tried}")), &json!("version_exists"), true)
    );
}

#[test]
fn what_is_said_of_a_graph_is_heeded_as_flags_are() {
    let publisher = Publisher::new(|settings| settings);
    let (model, schema, golden) = good();
    let send = |said: &[(&str, &[u8])]| {
        let parts: [(&str, &[u8]); 3] = [("model", &model), ("schema", &schema), ("golden", &golden)];
        let answer = publisher.send(&[&parts, said].concat());
        (answer.status, answer.json()["errors"][0]["code"].as_str().unwrap_or_default().to_owned())
    };
    // The wrong way round, the golden rows do not come out.
    assert_eq!(send(&[("input", b"x=b,a")]), (422, "golden_mismatch".into()));
    assert_eq!(send(&[("input", b"x=a,b\n"), ("output", b"probabilities"), ("task", b"binary")]).0, 201);
    assert_eq!(send(&[("output", b"nowhere")]).0, 422);
    assert_eq!(send(&[("positive", b"0")]), (422, "golden_mismatch".into()));
    assert_eq!(send(&[("link", b"softmax")]), (422, "golden_mismatch".into()));
    // The operator reads why, and nothing of a row.
    let told: Vec<Value> = publisher
        .gateway
        .log_so_far()
        .iter()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|line| line["message"] == "upload refused")
        .collect();
    assert_eq!(told.len(), 4, "{told:?}");
    assert!(told.iter().all(|line| line["model.name"] == "tree" && line["level"] == "WARN"), "{told:?}");
    assert!(told[1]["error"].as_str().unwrap().contains("nowhere"), "{told:?}");
}

#[test]
fn an_upload_is_not_held_in_memory() {
    const MODEL: usize = 160 << 20;
    let publisher = Publisher::new(|settings| settings);
    let (_, schema, _) = good();
    let mut body = form(&[("schema", &schema), ("model", b"")]);
    let head = body.len() - format!("\r\n--{BOUNDARY}--\r\n").len();
    let tail = body.split_off(head);
    publisher.gateway.forget_peak();
    let before = publisher.gateway.resident();
    let mut client = Client::connect(publisher.gateway.admin_addr);
    let length = (head + MODEL + tail.len()).to_string();
    client
        .send(publisher.request(TREE, &[]).without("content-length").header("Content-Length", length).head());
    client.send(&body);
    let piece = vec![b'x'; 1 << 20];
    for _ in 0..MODEL / piece.len() {
        client.send(&piece);
    }
    let written =
        || fs::metadata(publisher.uploads().first()?.join("model.onnx")).ok().map(|file| file.len());
    wait_for("what was sent", || written().filter(|written| *written > (MODEL as u64) - (1 << 20)));
    let grown = publisher.gateway.peak().saturating_sub(before);
    println!("{} MiB more for an upload of {} MiB", grown >> 20, MODEL >> 20);
    assert!(grown < 48 << 20, "{} MiB more for an upload of {} MiB", grown >> 20, MODEL >> 20);
    client.send(&tail);
    assert_eq!(client.answer().unwrap().code(), "invalid_model");
}

#[test]
fn a_full_disk_is_told_and_what_was_refused_for_it_leaves_its_room_to_others() {
    let (model, schema, golden) = good();
    let large = golden.repeat((256 << 10) / golden.len());
    for place in ["state/uploads", "$SCOREGATE_MODELS_DIR/tree"] {
        let publisher = Publisher::new(|settings| settings.on_disk("128k", place));
        let send = |golden: &[u8], version: &str| {
            let version = version.as_bytes();
            publisher.send(&[
                ("model", &model),
                ("schema", &schema),
                ("golden", golden),
                ("version", version),
            ])
        };
        for _ in 0..2 {
            let answer = send(&large, "large");
            assert_eq!((answer.status, answer.code().as_str()), (507, "storage_full"), "{}", answer.text());
            assert_eq!(publisher.versions(), Vec::<String>::new(), "{place}");
            wait_for("nothing to be left", || publisher.uploads().is_empty().then_some(()));
        }
        let answer = send(&golden, "small");
        assert_eq!(answer.status, 201, "{place}: {}", answer.text());
        assert_eq!(publisher.versions(), ["small"]);
        let score = || publisher.gateway.post("/v1/models/tree/predict", r#"{"a":0.25,"b":0.875}"#);
        wait_for("the version", || (score().status == 200).then_some(()));
    }
}

#[test]
fn who_leaves_before_the_answer_publishes_nothing() {
    let publisher = Publisher::new(|settings| settings);
    let (model, schema, golden) = good();
    // As many rows as take a while to examine.
    let rows = reference(6 << 20);
    let body = form(&[("schema", &schema), ("golden", &golden), ("reference", &rows), ("model", &model)]);
    let mut client = Client::connect(publisher.gateway.admin_addr);
    client.send(publisher.request(TREE, &body).head());
    client.send(&body);
    let has_come = || {
        let upload = publisher.uploads().pop()?;
        let length = fs::metadata(upload.join("model.onnx")).ok()?.len();
        (length == model.len() as u64).then_some(())
    };
    wait_for("all of it", has_come);
    drop(client);
    wait_for("nothing to be left", || publisher.uploads().is_empty().then_some(()));
    assert_eq!(publisher.versions(), Vec::<String>::new());
    assert_eq!(publisher.audited("version.published").len(), 1, "that is the first model's");
}

#[test]
fn few_are_taken_in_at_once_and_who_stalls_or_leaves_makes_room() {
    let publisher = Publisher::new(|settings| settings.set("SCOREGATE_BODY_TIMEOUT", "2s"));
    let (model, schema, golden) = good();
    let body = form(&[("schema", &schema), ("golden", &golden), ("model", &model)]);
    let begin = || {
        let mut client = Client::connect(publisher.gateway.admin_addr);
        client.send(publisher.request(TREE, &body).head());
        client.send(&body[..body.len() / 2]);
        client
    };
    let (stalling, leaving) = (begin(), begin());
    wait_for("two uploads in hand", || (publisher.uploads().len() == 2).then_some(()));
    let third = publisher.admin(&publisher.request(TREE, &body));
    assert_eq!((third.status, third.code().as_str()), (503, "overloaded"));
    assert_eq!(third.header("retry-after"), Some("1"));
    drop(leaving);
    wait_for("the one that left to be gone", || (publisher.uploads().len() == 1).then_some(()));
    wait_for("its line", || {
        let lines = publisher.gateway.log();
        let mut lines = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.find(|line| line["status"] == 499)
    });
    assert_eq!(publisher.admin(&publisher.request(TREE, &body)).status, 201);
    let mut stalling = stalling;
    assert_eq!(stalling.answer().unwrap().code(), "body_timeout");
    wait_for("the one that stalled to be gone", || publisher.uploads().is_empty().then_some(()));

    // Whoever is slow but goes on is waited for.
    let mut slow = Client::connect(publisher.gateway.admin_addr);
    let padded = form(&[("model", &model), ("golden", &golden), ("reference", &reference(3 << 20))]);
    slow.send(publisher.request(TREE, &padded).head());
    let begun = Instant::now();
    for piece in padded.chunks(padded.len() / 3 + 1) {
        slow.send(piece);
        pause(Duration::from_millis(900));
    }
    assert!(begun.elapsed() > Duration::from_secs(2));
    assert_eq!(slow.answer().unwrap().status, 201);
}

/// Rows of the model's training, some `bytes` of them.
fn reference(bytes: usize) -> Vec<u8> {
    let mut text = String::from("a,b,outcome\n");
    let mut at = 0;
    while text.len() < bytes {
        at += 1;
        let (a, b) = (f64::from(at % 100) / 100.0, f64::from(at % 7) / 7.0);
        text.push_str(&format!("{a},{b:.6},{}\n", at % 2));
    }
    text.into_bytes()
}

#[test]
fn what_a_gateway_that_was_killed_has_left_is_removed() {
    let publisher = Publisher::new(|settings| settings);
    let (model, schema, golden) = good();
    let body = form(&[("schema", &schema), ("golden", &golden), ("model", &model), ("version", b"one")]);
    let mut client = Client::connect(publisher.gateway.admin_addr);
    client.send(publisher.request(TREE, &body).head());
    client.send(&body[..body.len() - 100]);
    let left = wait_for("an upload in hand", || publisher.uploads().pop());
    publisher.gateway.signal(Signal::SIGKILL);
    let Publisher { gateway, key, models } = publisher;
    // Not as the gateway sees it, of which nothing is left.
    let left = gateway.settings.directory().join("state/uploads").join(left.file_name().unwrap());
    wait_within(Duration::from_secs(5), || client.answer().is_none().then_some(()));
    assert!(left.is_dir(), "nobody was there to remove it");
    // The same directories, and another process.
    let state = gateway.settings.directory().join("state");
    let settings = Settings::new()
        .models(models.path())
        .set("SCOREGATE_STATE_DIR", state.to_str().unwrap())
        .set("SCOREGATE_API_KEYS_FILE", gateway.keys_file().to_str().unwrap())
        .set("SCOREGATE_DEFAULT_MODEL", "first");
    let gateway_key = gateway.key.clone();
    let again = settings.start_with(&gateway_key);
    assert!(!left.exists());
    assert!(!models.path().join("tree/one").exists());
    let request = Request::new("POST", TREE)
        .header("X-Api-Key", &key)
        .header("Content-Type", format!("multipart/form-data; boundary={BOUNDARY}"))
        .body(&body);
    let answer = Client::connect(again.admin_addr).ask(&request);
    assert_eq!(answer.status, 201, "{}", answer.text());
}

#[test]
fn what_is_published_is_answered_so_whatever_stands_in_the_rollout() {
    let publisher = Publisher::new(|settings| settings);
    let (model, schema, golden) = good();
    let parts: [(&str, &[u8]); 3] = [("model", &model), ("schema", &schema), ("golden", &golden)];
    assert_eq!(publisher.send(&parts).status, 201);
    fs::write(publisher.models.path().join("tree/rollout.json"), "{\"live\": \"a slip of the").unwrap();
    let second = publisher.send(&parts);
    assert_eq!((second.status, &second.json()["live"]), (201, &json!(false)), "{}", second.text());
    assert_eq!(publisher.versions().len(), 2);
    assert!(publisher.audited("version.publish_failed").is_empty());
}

#[test]
fn a_model_alone_is_enough_after_one_of_the_same_trainer() {
    let (models, version) = repository().copy_of("churn");
    let settings = Settings::new().models(models.path()).set("SCOREGATE_STATE_DIR", "state");
    let key = settings.key_with(&["--name", "publisher", "--scopes", "models:write,models:read"]);
    let gateway = settings.start();
    let model = fs::read(version.join("model.onnx")).unwrap();
    let csv = fs::read(&repository().churn_csv).unwrap();
    let manifest = |version: &Path| -> Value {
        serde_json::from_slice(&fs::read(version.join("manifest.json")).unwrap()).unwrap()
    };
    let before = manifest(&version);
    for parts in [&[("model", &model[..])][..], &[("model", &model), ("reference", &csv)]] {
        let request = Request::new("POST", "/v1/models/churn/versions")
            .header("X-Api-Key", &key)
            .header("Content-Type", format!("multipart/form-data; boundary=\"{BOUNDARY}\""))
            .body(form(parts));
        let answer = Client::connect(gateway.admin_addr).ask(&request);
        assert_eq!(answer.status, 201, "{}", answer.text());
        let told = answer.json();
        let reasons = told["reasons"].to_string();
        assert!(reasons.contains("as it is the live version's"), "{reasons}");
        assert_eq!(told["breaking"], json!([]));
        let after = manifest(&models.path().join("churn").join(told["model_version"].as_str().unwrap()));
        for same in ["bindings", "output", "labels", "schema"] {
            assert_eq!(after[same], before[same], "{same}");
        }
    }
}

#[test]
fn what_fails_on_a_row_is_told_without_the_row() {
    /// A place beyond the end of a table, which ONNX Runtime names when it is asked for it.
    const PLACE: &str = "4815162";
    let publisher = Publisher::new(|settings| settings);
    let made = tempfile::tempdir_in(scratch()).unwrap();
    let (picking, output) = picking();
    picking.publish(made.path(), output);
    let read = |file: &str| fs::read(made.path().join("pick/1").join(file)).unwrap();
    let manifest: Value = serde_json::from_slice(&read("manifest.json")).unwrap();
    let (model, schema) = (read("model.onnx"), manifest["schema"].to_string());
    let golden = format!("{{\"features\":{{\"a\":1,\"b\":{PLACE}}},\"expected\":1}}\n");
    let answer = publisher.send(&[
        ("model", &model),
        ("schema", schema.as_bytes()),
        ("golden", golden.as_bytes()),
        ("task", b"regression"),
    ]);
    let told = answer.json();
    assert_eq!((answer.status, &told["errors"][0]["code"]), (422, &json!("run_failed")), "{told}");
    let log = publisher.gateway.log_so_far();
    let refused = log.iter().find(|line| line.contains("upload refused")).unwrap();
    assert!(refused.contains("GatherElements"), "which node it was is told: {refused}");
    assert!(!answer.text().contains(PLACE) && !log.iter().any(|line| line.contains(PLACE)), "{refused}");
}
