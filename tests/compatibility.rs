//! What one version's clients lose with another, held against the reader of rows itself: where nothing is found, whatever passes the
//! one passes the other, and what is found is nearly always met by some row.

use std::collections::{BTreeMap, BTreeSet};

use scoregate_model::features::{Place, RowReader};
use scoregate_model::random::Random;
use scoregate_schemas::compatibility::{Change, Difference, breaking};
use scoregate_schemas::feature_schema::{FeatureSchema, Kind};
use scoregate_schemas::manifest::{
    self, Bindings, ColumnBinding, Element, Link, Manifest, Output, Source, SourceKind,
};
use serde_json::{Map, Value, json};

use crate::support::is_full;

/// A version, as far as its clients can tell.
struct Version {
    manifest: Manifest,
    schema: FeatureSchema,
    reader: RowReader,
}

fn binary() -> Output {
    Output::Probabilities { name: "probability".into(), classes: 1, positive: 0 }
}

/// A version of these properties; features of numbers reach the graph as `elements` says, float32 unless it does.
fn version(
    properties: &Value,
    required: &[&str],
    elements: &BTreeMap<&str, Element>,
    output: Output,
    more: Value,
) -> Option<Version> {
    let mut extension = Map::from_iter([("target".into(), "outcome".into())]);
    extension.extend(more.as_object().unwrap().clone());
    let document = json!({
        "type": "object", "properties": properties, "required": required, "x-scoregate": extension,
    });
    let schema = FeatureSchema::from_document(document.clone()).ok()?;
    let columns = schema.features().map(|field| ColumnBinding {
        feature: field.name.clone(),
        input: field.name.clone(),
        element: match field.kind {
            Kind::Category { .. } => Element::String,
            _ => elements.get(field.name.as_str()).copied().unwrap_or(Element::Float32),
        },
    });
    let bindings = Bindings::Columns { columns: columns.collect() };
    let reader = RowReader::new(&schema, &bindings);
    let manifest = Manifest {
        format: manifest::FORMAT,
        name: "model".into(),
        version: "1".into(),
        created_at: "2026-01-01T00:00:00Z".into(),
        files: BTreeMap::new(),
        schema: document,
        bindings,
        output,
        changes: Vec::new(),
        threshold: 0.5,
        labels: schema.labels.clone().unwrap_or_else(|| vec!["no".into(), "yes".into()]),
        tolerance: 1e-5,
        metrics: None,
        training: None,
        source: Source { kind: SourceKind::Import, producer: "a test".into() },
    };
    Some(Version { manifest, schema, reader })
}

fn differences(live: &Version, other: &Version) -> Vec<Difference> {
    breaking(&live.manifest, &live.schema, &other.manifest, &other.schema)
}

impl Version {
    /// Whether a row passes as JSON, and as CSV.
    fn takes(&self, row: &Map<String, Value>) -> (bool, bool) {
        let mut rows = self.reader.empty(1);
        let body = serde_json::to_vec(row).unwrap();
        self.reader.json_row(&body, &mut rows).unwrap();
        let as_json = rows.len() == 1;
        let cell = |value: &Value| match value {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let mut csv = csv::Writer::from_writer(Vec::new());
        csv.write_record(row.keys()).unwrap();
        csv.write_record(row.values().map(cell)).unwrap();
        let csv = csv.into_inner().unwrap();
        let as_csv = !row.is_empty() && self.reader.csv_rows(&csv, 10).is_ok_and(|rows| rows.len() == 1);
        (as_json, as_csv)
    }
}

/// One of `choices`.
fn pick<T: Clone>(random: &mut Random, choices: &[T]) -> T {
    choices[random.below(choices.len())].clone()
}

const BOUNDS: [f64; 10] =
    [-1e40, -20_000_000.0, -1.0, 0.0, 1.5, 2.0, 7.0, 16_777_216.0, 3_000_000_000.0, 1e40];

/// A property by chance.
fn property(random: &mut Random) -> Value {
    let mut extension = Map::new();
    let role = pick(random, &["feature", "feature", "feature", "feature", "ignore", "entity"]);
    extension.insert("role".into(), role.into());
    let kind = match role {
        "entity" => "string",
        _ => pick(random, &["number", "number", "integer", "string", "string", "boolean"]),
    };
    let mut property = Map::from_iter([("type".into(), kind.into())]);
    let chance = |random: &mut Random| random.below(3) == 0;
    match kind {
        "string" => {
            if role != "entity" && random.below(2) == 0 {
                let all = ["a", "b", "long category", "c", "\u{7}"];
                let count = 1 + random.below(all.len());
                property.insert("enum".into(), all[..count].into());
                extension.insert("unknown".into(), pick(random, &["pass", "reject"]).into());
            }
            for name in ["minLength", "maxLength"] {
                if chance(random) {
                    property.insert(name.into(), pick(random, &[0, 1, 2, 5, 1_024, 2_000]).into());
                }
            }
        }
        "number" | "integer" => {
            for name in ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"] {
                if random.below(4) == 0 {
                    property.insert(name.into(), pick(random, &BOUNDS).into());
                }
            }
        }
        _ => {}
    }
    if role == "feature" && chance(random) {
        extension.insert("missing".into(), "pass".into());
    }
    property.insert("x-scoregate".into(), extension.into());
    property.into()
}

const NAMES: [&str; 4] = ["one", "two", "three", "four"];
const ELEMENTS: [Element; 4] = [Element::Float32, Element::Float64, Element::Int64, Element::Int32];

/// What a version is made of.
#[derive(Clone)]
struct Recipe {
    properties: Map<String, Value>,
    required: BTreeSet<&'static str>,
    elements: BTreeMap<&'static str, Element>,
}

impl Recipe {
    fn new(random: &mut Random) -> Self {
        let mut recipe =
            Self { properties: Map::new(), required: BTreeSet::new(), elements: BTreeMap::new() };
        for name in &NAMES[..1 + random.below(3)] {
            recipe.change(random, name);
        }
        recipe
    }

    /// Makes a field anew.
    fn change(&mut self, random: &mut Random, name: &'static str) {
        self.properties.insert(name.into(), property(random));
        self.elements.insert(name, pick(random, &ELEMENTS));
        if random.below(3) == 0 {
            self.required.insert(name);
        } else {
            self.required.remove(name);
        }
    }

    /// The same with a few things changed.
    fn changed(&self, random: &mut Random) -> Self {
        let mut changed = self.clone();
        for _ in 0..random.below(5) {
            let name = pick(random, &NAMES);
            match random.below(6) {
                0 => changed.change(random, name),
                1 => {
                    changed.properties.shift_remove(name);
                    changed.required.remove(name);
                }
                2 => drop(changed.elements.insert(name, pick(random, &ELEMENTS))),
                3 if changed.properties.contains_key(name) => drop(changed.required.insert(name)),
                // One member as another schema has it.
                _ => {
                    let other = property(random);
                    let Some(Value::Object(known)) = changed.properties.get_mut(name) else { continue };
                    let member = pick(
                        random,
                        &["minimum", "maximum", "exclusiveMinimum", "enum", "minLength", "maxLength", "type"],
                    );
                    match other.get(member) {
                        Some(value) => drop(known.insert(member.into(), value.clone())),
                        None if member != "type" => drop(known.shift_remove(member)),
                        None => {}
                    }
                }
            }
        }
        changed
    }

    fn build(&self) -> Option<Version> {
        let required: Vec<&str> = self.required.iter().copied().collect();
        version(&self.properties.clone().into(), &required, &self.elements, binary(), json!({}))
    }
}

/// Values at which schemas and inputs differ.
fn values() -> Vec<Value> {
    let numbers = [
        json!(0),
        json!(1),
        json!(2),
        json!(3),
        json!(-1),
        json!(-2),
        json!(1.5),
        json!(1.75),
        json!(-0.5),
        json!(0.5),
        json!(7),
        json!(7.5),
        json!(6.5),
        json!(16_777_216),
        json!(16_777_217),
        json!(16_777_216.5),
        json!(-20_000_000),
        json!(-20_000_001),
        json!(-20_000_000.5),
        json!(3_000_000_000_u64),
        json!(3_000_000_001_u64),
        json!(3_000_000_256_u64),
        json!(-2_147_483_648_i64),
        json!(-3_000_000_000_i64),
        json!(9_007_199_254_740_993_i64),
        json!(i64::MAX),
        json!(u64::MAX),
        json!(1e38),
        json!(-1e38),
        json!(1e39),
        json!(-1e39),
        json!(1e40),
        json!(-1e40),
        json!(1e41),
        json!(-1e41),
        json!(20_000_001.0),
    ];
    let texts = ["a", "b", "c", "long category", "other", "", "\u{7}", "x", "xx", "7", "-1", "1e999", "true"];
    let long =
        [("é", 2), ("é", 5), ("é", 6), ("é", 512), ("é", 513), ("x", 1_000), ("x", 1_024), ("x", 1_025)];
    let mut all = numbers.to_vec();
    all.extend(texts.map(Value::from));
    all.extend(long.map(|(text, count)| text.repeat(count).into()));
    all.extend([json!(true), json!(false), json!(null), json!([1]), json!({})]);
    all
}

impl Version {
    /// Whether `value` may be that of field `at`, in whatever row.
    fn takes_value(&self, at: usize, value: &Value) -> bool {
        let mut rows = self.reader.empty(1);
        let name = self.schema.fields[at].name.clone();
        let row = serde_json::to_vec(&Map::from_iter([(name, value.clone())])).unwrap();
        self.reader.json_row(&row, &mut rows).unwrap();
        let faults = rows.faults.iter().flat_map(|row| &row.faults);
        faults.filter(|fault| fault.place == Place::Field(at)).count() == 0
    }

    /// What each field takes; nothing is its absence.
    fn taken(&self) -> Vec<Vec<Option<Value>>> {
        let all = values();
        let of = |at: usize| {
            let taken = all.iter().filter(|value| self.takes_value(at, value)).cloned();
            let absent = self.takes_value(at, &Value::Null).then_some(None);
            taken.map(Some).chain(absent).collect()
        };
        (0..self.schema.fields.len()).map(of).collect()
    }
}

#[test]
fn where_nothing_is_found_whatever_passes_the_one_passes_the_other() {
    let pairs = if is_full() { 20_000 } else { 800 };
    let mut random = Random::new(7, "compatibility");
    let (mut compatible, mut met, mut unmet, mut passed) = (0, 0, Vec::new(), 0);
    let (mut kinds, anything) = (BTreeSet::new(), values());
    while compatible + met + unmet.len() < pairs {
        let recipe = Recipe::new(&mut random);
        let (Some(live), Some(other)) = (recipe.build(), recipe.changed(&mut random).build()) else {
            continue;
        };
        let found = differences(&live, &other);
        kinds.extend(found.iter().map(|difference| difference.change.as_str()));
        let taken = live.taken();
        let mut is_met = false;
        for _ in 0..100 {
            let mut row = Map::new();
            for (field, taken) in live.schema.fields.iter().zip(&taken) {
                // Mostly what passes, and now and then anything.
                let value = match taken.is_empty() || random.below(20) == 0 {
                    true => Some(pick(&mut random, &anything)),
                    false => pick(&mut random, taken),
                };
                row.extend(value.map(|value| (field.name.clone(), value)));
            }
            let (took, takes) = (live.takes(&row), other.takes(&row));
            passed += usize::from(took.0);
            let is_lost = (took.0 && !takes.0) || (took.1 && !takes.1);
            is_met |= is_lost;
            assert!(
                !is_lost || !found.is_empty(),
                "{row:?} passes {} and not {}",
                live.manifest.schema,
                other.manifest.schema
            );
        }
        match (found.is_empty(), is_met) {
            (true, _) => compatible += 1,
            (false, true) => met += 1,
            // What takes no row at all loses none.
            (false, false) if taken.iter().any(Vec::is_empty) => {}
            (false, false) => unmet.push((live.manifest.schema, other.manifest.schema, found)),
        }
    }
    // That two rows of a body may not be about the same is met by no single row.
    unmet.retain(|(_, _, found)| found.iter().any(|difference| difference.change != Change::Role));
    assert!(compatible > pairs / 4 && met > pairs / 4 && passed > pairs * 20, "{compatible} {met} {passed}");
    assert!(unmet.len() * 8 < met, "{} of {met}: {:?}", unmet.len(), &unmet[..unmet.len().min(5)]);
    for kind in [
        Change::Removed,
        Change::Added,
        Change::Missing,
        Change::Type,
        Change::Role,
        Change::Range,
        Change::Length,
        Change::Category,
        Change::Precision,
    ] {
        assert!(kinds.contains(kind.as_str()), "{kind:?} was never found");
    }
}

/// A version of one number, `a`.
fn answering(output: Output, extension: Value) -> Version {
    version(&json!({"a": {"type": "number"}}), &["a"], &BTreeMap::new(), output, extension).unwrap()
}

#[test]
fn differences_are_told_in_sentences_without_what_is_private() {
    let labels = json!({"labels": ["no", "yes"]});
    let built =
        |properties: Value| version(&properties, &[], &BTreeMap::new(), binary(), labels.clone()).unwrap();
    let live = built(json!({
        "age": {"type": "number", "minimum": 0},
        "plan": {"type": "string", "enum": ["basic", "pro"]},
        "town": {"type": "string", "enum": ["Bern", "Genf"], "x-scoregate": {"pii": true}},
        "old": {"type": "boolean", "x-scoregate": {"missing": "pass"}},
        "note": {"type": "string"},
    }));
    let other = built(json!({
        "age": {"type": "integer", "minimum": 0},
        "plan": {"type": "string", "enum": ["pro", "gold"]},
        "town": {"type": "string", "enum": ["Bern"], "x-scoregate": {"pii": true}},
        "note": {"type": "string", "maxLength": 20},
        "new/er": {"type": "number", "exclusiveMinimum": 1},
    }));
    let told: Vec<(String, &str, String)> = differences(&live, &other)
        .iter()
        .map(|found| (found.pointer(), found.change.as_str(), found.to_string()))
        .collect();
    let expected = [
        ("/age", "type", "\"age\" was a number, and is an integer"),
        ("/plan", "category", "\"plan\" does not take \"basic\" any more"),
        ("/town", "category", "\"town\" does not take 1 categories any more"),
        ("/old", "field_removed", "\"old\" is gone: rows that name it are refused"),
        ("/note", "length", "\"note\" was of any length, and is of at most 20 characters"),
        ("/new~1er", "field_required", "\"new/er\" is new and may not be missing"),
    ];
    let expected: Vec<_> =
        expected.into_iter().map(|(at, code, text)| (at.to_owned(), code, text.to_owned())).collect();
    assert_eq!(told, expected);
    assert_eq!(differences(&live, &live), []);
}

#[test]
fn answers_of_another_shape_are_found() {
    let labels = |labels: Value| json!({"labels": labels});
    let codes = |live: &Version, other: &Version| -> Vec<&str> {
        differences(live, other).iter().map(|found| found.change.as_str()).collect()
    };
    let two = answering(binary(), labels(json!(["no", "yes"])));
    let margin = Output::Margin { name: "margin".into(), classes: 2, positive: 1, link: Link::Softmax };
    assert_eq!(codes(&two, &answering(margin, labels(json!(["no", "yes"])))), [""; 0], "how it is computed");
    assert_eq!(codes(&two, &answering(binary(), labels(json!(["yes", "no"])))), ["labels"]);
    let value = answering(Output::Value { name: "value".into() }, labels(json!([])));
    assert_eq!(codes(&two, &value), ["task"]);
    let three = |names: [&str; 3]| {
        let output = Output::Probabilities { name: "p".into(), classes: 3, positive: 0 };
        answering(output, labels(json!(names)))
    };
    assert_eq!(
        codes(&three(["a", "b", "c"]), &three(["c", "a", "b"])),
        [""; 0],
        "each has its label with it"
    );
    assert_eq!(codes(&three(["a", "b", "c"]), &three(["a", "b", "d"])), ["labels"]);
    let of = |target: &str, positive: i32| {
        answering(binary(), json!({"labels": ["no", "yes"], "target": target, "positive": positive}))
    };
    assert_eq!(codes(&two, &of("outcome", 0)), ["positive"]);
    assert_eq!(codes(&two, &of("outcome", 1)), [""; 0]);
    assert_eq!(codes(&two, &of("gone", 0)), [""; 0], "another column says it in another way");
}

#[test]
fn what_is_ignored_may_be_of_another_type_unless_a_cell_of_csv_could_be_refused_for_it() {
    let built = |property: Value| {
        let properties = json!({"a": {"type": "number"}, "x": property});
        version(&properties, &["a"], &BTreeMap::new(), binary(), json!({})).unwrap()
    };
    let ignored = json!({"role": "ignore"});
    for (was, is, expected) in [
        (json!({"type": "number"}), json!({"type": "string"}), None),
        (json!({"type": "boolean"}), json!({"type": "string"}), None),
        (json!({"type": "string"}), json!({"type": "boolean"}), None),
        (json!({"type": "number"}), json!({"type": "string", "maxLength": 3}), Some("type")),
        (json!({"type": "number"}), json!({"type": "string", "enum": ["1"]}), Some("type")),
        // "1e999" is a text, and too large a number.
        (json!({"type": "string"}), json!({"type": "number"}), Some("type")),
        // A text that was ignored may have been longer than any text may be.
        (json!({"type": "number", "x-scoregate": ignored}), json!({"type": "string"}), Some("type")),
    ] {
        let mut other = is.clone();
        other["x-scoregate"] = ignored.clone();
        if is.get("enum").is_some() {
            other["x-scoregate"]["unknown"] = json!("reject");
        }
        let mut live = was.clone();
        if live.get("x-scoregate").is_none() {
            live["x-scoregate"] = json!({"missing": "pass"});
        }
        let found: Vec<&str> =
            differences(&built(live), &built(other)).iter().map(|found| found.change.as_str()).collect();
        assert_eq!(found, expected.into_iter().collect::<Vec<_>>(), "{was} and {is}");
    }
}
