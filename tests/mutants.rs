//! Thousands of damaged model files, packaged as if they were good and promoted in a running gateway: it ends for none of them,
//! leaves nothing behind, and whatever answers is a version that reproduces its golden rows.
//!
//! The reduced campaign takes fewer; `cargo xtask test --full` takes them all.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use prost::Message;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use scoregate_model::package::{GOLDEN, MODEL, Repository};
use scoregate_schemas::Rollout;
use scoregate_schemas::manifest::{
    self, Bindings, Element, Manifest, MatrixBinding, Output, Source, SourceKind,
};
use scoregate_schemas::onnx::{
    AttributeProto, ModelProto, NodeProto, StringStringEntryProto, TensorProto, TypeValue,
};
use serde_json::Value;

use crate::support::{
    Gateway, Request, Settings, Stop, is_full, pause, python, repository, scratch, wait_for,
};

const SEED: u64 = 20_261_122;
/// Mutants of which the gateway remembers nothing once they are gone are cleared away in batches of this size.
const BATCH: usize = 25;
const MIB: u64 = 1 << 20;

/// A good package: what mutants are made of.
struct Base {
    /// Its version, under which it is published itself.
    version: String,
    manifest: Manifest,
    graph: Vec<u8>,
    /// Every file but the graph.
    files: Vec<(String, Vec<u8>)>,
    /// Golden rows as they are posted, and what they are answered.
    rows: Vec<(String, f64)>,
}

impl Base {
    fn new(manifest: Manifest, graph: Vec<u8>, files: Vec<(String, Vec<u8>)>) -> Self {
        let golden = files.iter().find(|(name, _)| name == GOLDEN).unwrap();
        let rows = std::str::from_utf8(&golden.1).unwrap().lines().map(|line| {
            let row: Value = serde_json::from_str(line).unwrap();
            (row["features"].to_string(), row["expected"].as_f64().unwrap())
        });
        let rows = rows.collect();
        Self { version: manifest.version.clone(), manifest, graph, files, rows }
    }

    /// Publishes `graph` in the place of its own, with digests that hold.
    fn publish(&self, models: &Path, version: &str, graph: &[u8]) {
        let mut files: Vec<(&str, &[u8])> = vec![(MODEL, graph)];
        files.extend(self.files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())));
        let manifest = Manifest { version: version.into(), ..self.manifest.clone() };
        Repository::new(models).publish(manifest, &files).unwrap();
    }
}

/// The graph that the trainer made, as it was published.
fn churn() -> Vec<Base> {
    let directory = repository().version("churn");
    let manifest: Manifest =
        serde_json::from_slice(&fs::read(directory.join("manifest.json")).unwrap()).unwrap();
    let read = |name: &String| (name.clone(), fs::read(directory.join(name)).unwrap());
    let files = manifest.files.keys().filter(|name| *name != MODEL).map(read).collect();
    let graph = fs::read(directory.join(MODEL)).unwrap();
    vec![Base::new(manifest, graph, files)]
}

/// Three ensembles by XGBoost, which answer the same rows differently.
fn ensembles() -> Vec<Base> {
    let directory = tempfile::tempdir_in(scratch()).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/ensemble.py");
    let made = Command::new(python()).arg(script).arg(directory.path()).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let read = |name: &str| fs::read(directory.path().join(name)).unwrap();
    let schema: Value = serde_json::from_slice(&read("schema.json")).unwrap();
    let features = schema["properties"].as_object().unwrap().keys().cloned().collect();
    let binding = MatrixBinding { input: "x".into(), element: Element::Float32, features };
    let manifest = Manifest {
        format: manifest::FORMAT,
        name: "ensemble".into(),
        version: String::new(),
        created_at: "2026-01-01T00:00:00Z".into(),
        files: BTreeMap::new(),
        schema,
        bindings: Bindings::Matrix { inputs: vec![binding] },
        output: Output::Probabilities { name: "probabilities".into(), classes: 2, positive: 1 },
        changes: Vec::new(),
        threshold: 0.5,
        labels: vec!["no".into(), "yes".into()],
        tolerance: 1e-5,
        metrics: None,
        training: None,
        source: Source { kind: SourceKind::Import, producer: "XGBoost".into() },
    };
    let base = |number: usize| {
        let manifest = Manifest { version: format!("base-{number}"), ..manifest.clone() };
        let golden = (GOLDEN.to_owned(), read(&format!("{number}.jsonl")));
        Base::new(manifest, read(&format!("{number}.onnx")), vec![golden])
    };
    let bases: Vec<Base> = (0..3).map(base).collect();
    // Which of them answered can be told from the answer.
    for [one, other] in [[0, 1], [1, 2], [0, 2]] {
        let differ =
            bases[one].rows.iter().zip(&bases[other].rows).all(|(one, other)| (one.1 - other.1).abs() > 1e-4);
        assert!(differ, "{one} and {other} answer alike");
    }
    bases
}

/// A damaged copy of one of `bases`, and what was done to it.
fn mutate(random: &mut StdRng, base: &Base, bases: &[Base]) -> (&'static str, Vec<u8>) {
    let mut bytes = base.graph.clone();
    let at = random.random_range(0..bytes.len());
    let end = (at + random.random_range(1..64)).min(bytes.len());
    let kind = match random.random_range(0..10) {
        0 => {
            for _ in 0..random.random_range(1..5) {
                let at = random.random_range(0..bytes.len());
                bytes[at] ^= 1 << random.random_range(0..8);
            }
            "bits flipped"
        }
        1 => {
            for byte in &mut bytes[at..end] {
                *byte = random.random();
            }
            "bytes overwritten"
        }
        2 => {
            let from = &bases.choose(random).unwrap().graph;
            let start = random.random_range(0..from.len());
            let piece = from[start..(start + random.random_range(1..200)).min(from.len())].to_vec();
            // In place of as many, or between them.
            let end = if random.random() { (at + piece.len()).min(bytes.len()) } else { at };
            bytes.splice(at..end, piece);
            "bytes spliced"
        }
        3 => {
            bytes.truncate(at);
            "truncated"
        }
        4 => {
            bytes.drain(at..end);
            "bytes removed"
        }
        _ => {
            let mut model = ModelProto::decode(base.graph.as_slice()).unwrap();
            for _ in 0..random.random_range(1..4) {
                mutate_model(random, &mut model);
            }
            bytes = model.encode_to_vec();
            "fields changed"
        }
    };
    (kind, bytes)
}

/// Integers on which programs trip.
const INTEGERS: [i64; 12] = [0, 1, -1, 2, 7, 1_000, 65_536, 1 << 31, -(1 << 31), 1 << 62, i64::MAX, i64::MIN];
const FLOATS: [f32; 8] = [0.0, -0.0, 1.0, -1.0, 1e38, f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
const OPERATORS: [&str; 16] = [
    "Identity",
    "Loop",
    "If",
    "Add",
    "Tile",
    "Expand",
    "ConstantOfShape",
    "Reshape",
    "Gather",
    "Concat",
    "MatMul",
    "ReduceSum",
    "LabelEncoder",
    "TreeEnsembleRegressor",
    "ZipMap",
    "Mystery",
];
const NAMES: [&str; 8] =
    ["", "x", "label", "probabilities", "\0", "../../etc/passwd", "nothing", "BRANCH_EQ"];

/// Changes one field of a model, whatever its meaning.
fn mutate_model(random: &mut StdRng, model: &mut ModelProto) {
    let graph = model.graph.as_mut().unwrap();
    match random.random_range(0..16) {
        0 => model.ir_version = Some(*INTEGERS.choose(random).unwrap()),
        1 => {
            if let Some(import) = model.opset_import.first_mut() {
                import.version = Some(random.random_range(-1..30));
            }
        }
        2 => {
            // The least of changes: such a version is as good as the one before.
            model.doc_string = Some(random.random::<u64>().to_string());
        }
        3 if !graph.node.is_empty() => {
            let (one, other) =
                (random.random_range(0..graph.node.len()), random.random_range(0..graph.node.len()));
            graph.node.swap(one, other);
        }
        4 if !graph.node.is_empty() => {
            let copy = graph.node.choose(random).unwrap().clone();
            graph.node.push(copy);
        }
        5 if !graph.node.is_empty() => {
            graph.node.remove(random.random_range(0..graph.node.len()));
        }
        6 | 7 if !graph.initializer.is_empty() => {
            let at = random.random_range(0..graph.initializer.len());
            mutate_tensor(random, &mut graph.initializer[at]);
        }
        8 => {
            let values = if random.random() { &mut graph.input } else { &mut graph.output };
            if values.is_empty() {
                return;
            }
            let at = random.random_range(0..values.len());
            match random.random_range(0..3) {
                0 => drop(values.remove(at)),
                1 => values[at].name = Some((*NAMES.choose(random).unwrap()).into()),
                _ => {
                    let kind = values[at].r#type.as_mut().and_then(|kind| kind.value.as_mut());
                    if let Some(TypeValue::TensorType(tensor)) = kind {
                        tensor.elem_type = Some(random.random_range(0..18));
                    }
                }
            }
        }
        _ => {
            if let Some(at) = (!graph.node.is_empty()).then(|| random.random_range(0..graph.node.len())) {
                mutate_node(random, &mut graph.node[at]);
            }
        }
    }
}

fn mutate_node(random: &mut StdRng, node: &mut NodeProto) {
    let names = if random.random() { &mut node.input } else { &mut node.output };
    match random.random_range(0..14) {
        0 => node.op_type = Some((*OPERATORS.choose(random).unwrap()).into()),
        1 => {
            node.domain = Some((*["", "ai.onnx.ml", "com.microsoft", "other"].choose(random).unwrap()).into())
        }
        2 => names.push((*NAMES.choose(random).unwrap()).into()),
        3 => drop(names.pop()),
        4 if !names.is_empty() => {
            let at = random.random_range(0..names.len());
            names[at] = (*NAMES.choose(random).unwrap()).into();
        }
        _ if !node.attribute.is_empty() => {
            let at = random.random_range(0..node.attribute.len());
            mutate_attribute(random, &mut node.attribute[at]);
        }
        _ => {}
    }
}

fn mutate_attribute(random: &mut StdRng, attribute: &mut AttributeProto) {
    if random.random_ratio(1, 12) {
        attribute.r#type = Some(random.random_range(0..15));
        return;
    }
    if let Some(value) = &mut attribute.i {
        *value = *INTEGERS.choose(random).unwrap();
    }
    if let Some(value) = &mut attribute.f {
        *value = *FLOATS.choose(random).unwrap();
    }
    if let Some(text) = &mut attribute.s {
        text.push(random.random());
    }
    if let Some(tensor) = &mut attribute.t {
        mutate_tensor(random, tensor);
    }
    mutate_list(random, &mut attribute.ints, |random, value| {
        *value = if random.random() {
            *INTEGERS.choose(random).unwrap()
        } else {
            value.wrapping_add(random.random_range(-2..3))
        };
    });
    mutate_list(random, &mut attribute.floats, |random, value| {
        *value = if random.random() { *FLOATS.choose(random).unwrap() } else { *value * 1.5 };
    });
    mutate_list(random, &mut attribute.strings, |random, text| {
        *text = (*["LEAF", "BRANCH_LEQ", "BRANCH_LT", "BRANCH_EQ", "other"].choose(random).unwrap()).into();
    });
}

/// Changes, removes, repeats or swaps one of a list.
fn mutate_list<T: Clone>(random: &mut StdRng, list: &mut Vec<T>, change: impl Fn(&mut StdRng, &mut T)) {
    if list.is_empty() {
        return;
    }
    let (at, other) = (random.random_range(0..list.len()), random.random_range(0..list.len()));
    match random.random_range(0..8) {
        0 => drop(list.remove(at)),
        1 => list.insert(at, list[other].clone()),
        2 => list.swap(at, other),
        _ => change(random, &mut list[at]),
    }
}

fn mutate_tensor(random: &mut StdRng, tensor: &mut TensorProto) {
    match random.random_range(0..7) {
        0 => tensor.data_type = Some(random.random_range(0..24)),
        1 => tensor.dims.push(*INTEGERS.choose(random).unwrap()),
        2 => mutate_list(random, &mut tensor.dims, |random, dim| *dim = *INTEGERS.choose(random).unwrap()),
        3 => {
            let entry =
                StringStringEntryProto { key: Some("location".into()), value: Some("/etc/passwd".into()) };
            tensor.external_data.push(entry);
        }
        _ => {
            mutate_list(random, &mut tensor.float_data, |random, value| {
                *value = *FLOATS.choose(random).unwrap()
            });
            mutate_list(random, &mut tensor.double_data, |random, value| {
                *value = (*FLOATS.choose(random).unwrap()).into()
            });
            mutate_list(random, &mut tensor.int64_data, |random, value| {
                *value = *INTEGERS.choose(random).unwrap()
            });
            mutate_list(random, &mut tensor.string_data, |random, text| text.push(random.random()));
            if let Some(raw) = &mut tensor.raw_data {
                mutate_list(random, raw, |random, byte| *byte = random.random());
            }
        }
    }
}

/// Which base every version was made of.
type Origins = RwLock<HashMap<String, usize>>;

/// Posts golden rows until it is `over`, and checks that each answer is that of the version which gave it.
fn keep_scoring(gateway: &Gateway, bases: &[Base], origins: &Origins, over: &AtomicBool) -> usize {
    let model = &bases[0].manifest.name;
    let target = format!("/v1/models/{model}/predict");
    let mut client = gateway.connect();
    let (mut random, mut scored) = (StdRng::seed_from_u64(SEED), 0);
    while !over.load(Ordering::Relaxed) {
        let at = random.random_range(0..bases[0].rows.len());
        let answer = client.ask(&gateway.with_key(Request::post(&target, &bases[0].rows[at].0)));
        check(&answer, bases, origins, at);
        scored += 1;
        pause(Duration::from_millis(1));
    }
    scored
}

/// Checks that `answer`, to golden row `at`, is a score and that of its version; returns the version.
fn check(answer: &crate::support::Answer, bases: &[Base], origins: &Origins, at: usize) -> String {
    assert_eq!(answer.status, 200, "{}", answer.text());
    let answer = answer.json();
    let version = answer["model_version"].as_str().unwrap().to_owned();
    let origin = *origins.read().unwrap_or_else(PoisonError::into_inner).get(&version).unwrap();
    let base = &bases[origin];
    let name = &base.manifest.name;
    let score = answer[format!("{name}_probability")].as_f64().unwrap();
    let expected = base.rows[at].1;
    assert!((score - expected).abs() <= base.manifest.tolerance, "{version}: expected {expected}: {answer}");
    version
}

/// How mutants fared: by what was done to them, and by what became of them.
type Tally = BTreeMap<(&'static str, String), usize>;

/// Publishes and promotes `count` mutants of `bases`, one after the other, and waits for what becomes of each.
fn campaign(
    gateway: &Gateway,
    models: &Path,
    bases: &[Base],
    origins: &Origins,
    count: usize,
    at_each_quarter: &mut dyn FnMut(),
) -> Tally {
    let name = bases[0].manifest.name.clone();
    let repository = Repository::new(models);
    let promote = |version: &str| repository.write_rollout(&name, &Rollout::of(version)).unwrap();
    let ask = |at: usize| gateway.post(&format!("/v1/models/{name}/predict"), &bases[0].rows[at].0);
    let mut random = StdRng::seed_from_u64(SEED ^ bases.len() as u64);
    let (mut tally, mut there) = (Tally::new(), Vec::new());
    for at in 0..count {
        let origin = random.random_range(0..bases.len());
        let (kind, graph) = mutate(&mut random, &bases[origin], bases);
        let version = format!("mutant-{at:05}");
        origins.write().unwrap_or_else(PoisonError::into_inner).insert(version.clone(), origin);
        bases[origin].publish(models, &version, &graph);
        promote(&version);
        there.push(version.clone());
        let target = format!("/v1/models/{name}/versions/{version}");
        let outcome = wait_for("a verdict", || {
            let answer = gateway.get(&target);
            let document = if answer.status == 200 { answer.json() } else { return None };
            match document["state"].as_str().unwrap() {
                "refused" => Some(document["refusal"]["code"].as_str().unwrap().to_owned()),
                "live" => Some("live".into()),
                _ => None,
            }
        });
        if outcome == "live" {
            for row in 0..bases[origin].rows.len().min(5) {
                assert_eq!(check(&ask(row), bases, origins, row), version, "it was promoted and accepted");
            }
        }
        *tally.entry((kind, outcome)).or_default() += 1;
        if there.len() == BATCH || at + 1 == count {
            let base = &bases[at % bases.len()].version;
            promote(base);
            wait_for("the base to answer", || (check(&ask(0), bases, origins, 0) == *base).then_some(()));
            for version in there.drain(..) {
                fs::remove_dir_all(models.join(&name).join(version)).unwrap();
            }
        }
        if (at + 1) * 4 / count > at * 4 / count {
            at_each_quarter();
        }
    }
    tally
}

/// The processes that the gateway has started and that are still there, be they dead.
fn children(gateway: &Gateway) -> Vec<String> {
    let parent = gateway.pid().to_string();
    let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let stats = processes.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    // `pid (name) state parent …`, where the name may hold anything.
    stats
        .filter(|stat| stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)) == Some(&parent))
        .collect()
}

#[test]
fn thousands_of_mutants_change_no_answer() {
    let mutants = if is_full() { 5_000 } else { 150 };
    println!("{mutants} mutants, seed {SEED}");
    let models = tempfile::tempdir_in(scratch()).unwrap();
    let kinds = [ensembles(), churn()];
    for base in kinds.iter().flatten() {
        base.publish(models.path(), &base.version, &base.graph);
    }
    let mut gateway = Settings::new()
        .models(models.path())
        .set("SCOREGATE_POLL_INTERVAL", "20ms")
        .set("SCOREGATE_MODEL_TIMEOUT", "10s")
        .start();
    let origins = kinds.each_ref().map(|bases| {
        let known = bases.iter().enumerate().map(|(at, base)| (base.version.clone(), at));
        RwLock::new(known.collect::<HashMap<_, _>>())
    });
    let over = AtomicBool::new(false);
    // Three of four mutants are of the ensembles.
    let counts = [mutants * 3 / 4, mutants - mutants * 3 / 4];
    let mut resident = Vec::new();
    let (tallies, scored) = std::thread::scope(|scope| {
        let (gateway, over, models) = (&gateway, &over, models.path());
        let stop = Stop(over);
        let clients: Vec<_> = kinds
            .iter()
            .zip(&origins)
            .map(|(bases, origins)| scope.spawn(move || keep_scoring(gateway, bases, origins, over)))
            .collect();
        let second = scope.spawn(|| campaign(gateway, models, &kinds[1], &origins[1], counts[1], &mut || {}));
        let mut note = || resident.push(gateway.resident());
        let first = campaign(gateway, models, &kinds[0], &origins[0], counts[0], &mut note);
        let tallies = [first, second.join().unwrap()];
        drop(stop);
        (tallies, clients.into_iter().map(|client| client.join().unwrap()).sum::<usize>())
    });
    for ((bases, tally), count) in kinds.iter().zip(&tallies).zip(counts) {
        println!("{count} mutants of {}:", bases[0].manifest.name);
        for ((kind, outcome), count) in tally {
            println!("{count:>6} {kind}: {outcome}");
        }
        assert_eq!(tally.values().sum::<usize>(), count);
        // A campaign of mutants that are all refused, or all served, would show little.
        let live: usize =
            tally.iter().filter(|((_, outcome), _)| outcome == "live").map(|(_, count)| count).sum();
        assert!(live > 0 && live < count, "{live} of {count} went live");
    }
    println!(
        "{scored} answers; resident after each quarter, in KiB: {:?}",
        resident.iter().map(|bytes| bytes / 1024).collect::<Vec<_>>()
    );
    assert!(scored > mutants, "{scored} answers");
    assert!(gateway.is_running());
    wait_for("the sandbox to be empty", || children(&gateway).is_empty().then_some(()));
    let log = gateway.log_so_far().join("\n");
    assert!(!log.contains("panicked") && !log.contains("request failed"), "{log}");
    // Versions come and go; what the allocator keeps of them levels off.
    let grown = resident[3].saturating_sub(resident[0]);
    assert!(grown <= 32 * MIB, "resident memory grew by {grown} bytes");
}
