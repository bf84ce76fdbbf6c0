//! Who is answered by which version: a share of the entities by the canary, each of them by the same version wherever and however it
//! is asked about, and every row by the version that says so.

use std::collections::BTreeSet;
use std::time::Instant;

use scoregate::rollout::slots::slot;
use scoregate_model::package::Repository;
use scoregate_schemas::manifest::Output;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::cached::{Callers, metric, post, told};
use crate::support::graph::{FLOAT, Handmade, share_model};
use crate::support::{Answer, Client, Gateway, Request, Settings, gzip, is_full, scratch, wait_for};

const PREDICT: &str = "/v1/models/share/predict";
const BATCH: &str = "/v1/models/share/predict/batch";

/// How many customers there are.
const CUSTOMERS: u32 = 10_000;

/// Of so many customers one is looked at to see whether a rollout is followed.
const LOOKED_AT: u32 = 97;

/// Above which fractions stand: nothing is rounded.
const BOTTOM: u32 = 1 << 20;

/// A repository, and callers whom all of its gateways know.
struct World {
    models: TempDir,
    callers: Callers,
    key: String,
}

impl World {
    /// Versions 1 and 2 of the model `share`, whose rows are about customers: the second answers what is left of the first to 1.
    fn new() -> Self {
        Self::with_layers(0)
    }

    /// The same, where version 2 is as slow as so many layers make it.
    fn with_layers(layers: usize) -> Self {
        let world = Self::empty();
        for (version, layers) in [("1", 0), ("2", layers)] {
            let (model, output) = share_model(version, version == "2", layers);
            let background: Vec<Value> =
                [100, 1_000, 9_000].iter().map(|top| json!({"top": top, "bottom": BOTTOM})).collect();
            let model = model.entity("customer").reference("background", background.into());
            model.publish(world.models.path(), output);
        }
        world
    }

    fn empty() -> Self {
        let (models, callers) = (tempfile::tempdir_in(scratch()).unwrap(), Callers::new());
        let key = callers.alone("test");
        Self { models, callers, key }
    }

    fn settings(&self) -> Settings {
        let settings = self.callers.gateway("off").models(self.models.path());
        // Versions that differ as much as these are not to be taken back.
        let settings = settings.set("SCOREGATE_GUARD", "off");
        settings.set("SCOREGATE_STATE_DIR", "state").set("SCOREGATE_DEFAULT_MODEL", "share")
    }

    fn start(&self) -> Gateway {
        self.settings().start_with(&self.key)
    }

    /// Does what `scoregate models` does with these arguments.
    fn change(&self, arguments: &[&str]) {
        let done = self.settings().run(&[&["models"], arguments].concat());
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    /// Gives version 2 of `share` so much, and waits until the `gateways` do.
    fn give(&self, percent: &str, gateways: &[&Gateway]) {
        self.change(&["canary", "share@2", "--percent", percent]);
        for gateway in gateways {
            self.wait_for_slots(gateway);
        }
    }

    /// Waits until a gateway answers some of the customers as the rollout has it: a new one appears in one step.
    fn wait_for_slots(&self, gateway: &Gateway) {
        let expected = self.members();
        let some: Vec<u32> = (0..CUSTOMERS).filter(|customer| customer.is_multiple_of(LOOKED_AT)).collect();
        let expected: BTreeSet<u32> = some.iter().copied().filter(|one| expected.contains(one)).collect();
        wait_for("the slots of a canary", || {
            (of_version_2(&ask_ndjson(gateway, &some), &some) == expected).then_some(())
        });
    }

    /// The customers in the slots that the rollout gives to version 2.
    fn members(&self) -> BTreeSet<u32> {
        let rollout = Repository::new(self.models.path()).read_rollout("share").unwrap().unwrap();
        let slots = rollout.canaries.iter().flat_map(|canary| canary.slots.clone()).collect::<Vec<_>>();
        let is_in = |customer: &u32| {
            let slot = slot("share", &name(*customer));
            slots.iter().any(|(first, end)| (*first..*end).contains(&slot))
        };
        (0..CUSTOMERS).filter(is_in).collect()
    }
}

/// Whom a row is about.
fn name(customer: u32) -> String {
    format!("account-{customer}")
}

fn row(customer: u32) -> String {
    format!("{{\"customer\":\"account-{customer}\",\"top\":{},\"bottom\":{BOTTOM}}}", 1 + customer)
}

fn csv(customers: &[u32]) -> String {
    let records = customers.iter().map(|customer| format!("account-{customer},{},{BOTTOM}\n", 1 + customer));
    format!("customer,top,bottom\n{}", records.collect::<String>())
}

/// What a version answers about a customer.
fn expected(version: &str, customer: u32) -> f64 {
    let share = f64::from(1 + customer) / f64::from(BOTTOM);
    match version {
        "1" => share,
        "2" => 1.0 - share,
        other => panic!("there is no version {other}"),
    }
}

/// Checks that score and version belong together.
fn check(customer: u32, version: &str, score: f64) {
    assert!((score - expected(version, customer)).abs() < 1e-6, "{customer} by {version}: {score}");
}

/// The version that answered each row, of which every score is its own.
fn of_lines(lines: &[Value], customers: &[u32]) -> Vec<String> {
    assert_eq!(lines.len(), customers.len());
    let versions = lines.iter().zip(customers).enumerate().map(|(at, (line, customer))| {
        assert_eq!(line["index"], at);
        let version = line["model_version"].as_str().unwrap().to_owned();
        check(*customer, &version, line["share_probability"].as_f64().unwrap());
        version
    });
    versions.collect()
}

fn ok(answer: Answer) -> Answer {
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer
}

fn keyed(gateway: &Gateway, request: Request) -> Answer {
    ok(gateway.ask(&gateway.with_key(request)))
}

fn ask_ndjson(gateway: &Gateway, customers: &[u32]) -> Vec<String> {
    let body: String = customers.iter().map(|customer| row(*customer) + "\n").collect();
    let answer = keyed(gateway, Request::post(BATCH, body).content_type("application/x-ndjson"));
    let lines: Vec<Value> = answer.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    of_lines(&lines, customers)
}

fn ask_json(gateway: &Gateway, customers: &[u32], is_compressed: bool) -> Vec<String> {
    let rows: Vec<String> = customers.iter().map(|customer| row(*customer)).collect();
    let body = format!("[{}]", rows.join(","));
    let request = match is_compressed {
        true => Request::post(BATCH, gzip(body.as_bytes())).header("Content-Encoding", "gzip"),
        false => Request::post(BATCH, body),
    };
    let answer = keyed(gateway, request).json();
    let lines = answer["predictions"].as_array().unwrap().iter().cloned().map(|mut line| {
        // What a row does not say of itself the document says of all.
        let own = line["model_version"].take();
        assert_ne!(own, answer["model_version"], "nothing is said twice: {line}");
        line["model_version"] = if own.is_null() { answer["model_version"].clone() } else { own };
        line
    });
    of_lines(&lines.collect::<Vec<_>>(), customers)
}

fn ask_csv(gateway: &Gateway, customers: &[u32]) -> Vec<String> {
    let request = Request::post(BATCH, csv(customers)).content_type("text/csv").header("Accept", "text/csv");
    let answer = keyed(gateway, request).text();
    let mut reader = csv::Reader::from_reader(answer.as_bytes());
    let header = reader.headers().unwrap().clone();
    let column = |name: &str| header.iter().position(|found| found == name).unwrap();
    let versions = reader.records().map(Result::unwrap).zip(customers).map(|(record, customer)| {
        assert_eq!(record[0], name(*customer));
        let version = record[column("model_version")].to_owned();
        check(*customer, &version, record[column("share_probability")].parse().unwrap());
        version
    });
    let versions: Vec<String> = versions.collect();
    assert_eq!(versions.len(), customers.len());
    versions
}

fn of_version_2(versions: &[String], customers: &[u32]) -> BTreeSet<u32> {
    let pairs = customers.iter().zip(versions);
    pairs.filter(|(_, version)| *version == "2").map(|(customer, _)| *customer).collect()
}

/// Asks about every customer by itself, on a connection that is kept.
fn ask_singles(gateway: &Gateway) -> BTreeSet<u32> {
    let mut client = Client::connect(gateway.addr);
    let ask = |customer: &u32| {
        let answer = client.ask(&post(PREDICT, &gateway.key, row(*customer))).json();
        let version = answer["model_version"].as_str().unwrap();
        check(*customer, version, answer["share_probability"].as_f64().unwrap());
        version == "2"
    };
    (0..CUSTOMERS).filter(ask).collect()
}

fn share_of(members: &BTreeSet<u32>) -> f64 {
    100.0 * members.len() as f64 / f64::from(CUSTOMERS)
}

#[test]
fn shares_are_exact_but_for_what_a_sample_is_off() {
    // The share of the first 500 slots among each of 40 populations.
    let shares = (0..40).map(|population| {
        let name = |at| format!("population-{population}-{at}");
        let members = (0..CUSTOMERS).filter(|at| slot("share", &name(*at)) < 500).count();
        100.0 * members as f64 / f64::from(CUSTOMERS)
    });
    let shares: Vec<f64> = shares.collect();
    let mean = shares.iter().sum::<f64>() / shares.len() as f64;
    // What chance leaves of 5 %, in points: of one population, and of their mean.
    let deviation = 100.0 * (0.05 * 0.95 / f64::from(CUSTOMERS)).sqrt();
    assert!((mean - 5.0).abs() < 3.0 * deviation / (shares.len() as f64).sqrt(), "{mean}");
    assert!(shares.iter().all(|share| (share - 5.0).abs() < 4.0 * deviation), "{shares:?}");
    let spread = (shares.iter().map(|share| (share - mean).powi(2)).sum::<f64>() / 39.0).sqrt();
    assert!((0.7..1.3).contains(&(spread / deviation)), "{spread} where chance makes {deviation}");
}

#[test]
fn a_share_of_the_entities_is_answered_by_the_canary_and_nobody_flips() {
    let world = World::new();
    let (first, second) = (world.start(), world.start());
    world.give("5", &[&first, &second]);
    let everybody: Vec<u32> = (0..CUSTOMERS).collect();
    // Each round asks every customer at both gateways: 20,000 requests.
    let mut five = None;
    for _ in 0..if is_full() { 5 } else { 1 } {
        let [here, there] = std::thread::scope(|scope| {
            let asking = [&first, &second].map(|gateway| scope.spawn(move || ask_singles(gateway)));
            asking.map(|asking| asking.join().unwrap())
        });
        assert_eq!(here, there, "it is the same at both");
        assert_eq!(*five.get_or_insert_with(|| here.clone()), here, "nobody flips");
    }
    let five = five.unwrap();
    assert!((share_of(&five) - 5.0).abs() <= 0.5, "{} %", share_of(&five));
    assert_eq!(five, world.members());
    let mut before = five.clone();
    for percent in ["5", "25", "100"] {
        world.give(percent, &[&first, &second]);
        let mut members = BTreeSet::new();
        for (at, customers) in everybody.chunks(1_000).enumerate() {
            let gateway = if at % 2 == 0 { &first } else { &second };
            let found = ask_ndjson(gateway, customers);
            assert_eq!(ask_json(gateway, customers, at % 3 == 0), found);
            assert_eq!(ask_csv(gateway, customers), found);
            members.extend(of_version_2(&found, customers));
        }
        assert!(
            (share_of(&members) - percent.parse::<f64>().unwrap()).abs() <= 0.5,
            "{}",
            share_of(&members)
        );
        assert!(members.is_superset(&before), "earlier members stay at {percent} %");
        assert_eq!(members, world.members());
        before = members;
    }
    // Whoever came last goes first.
    world.give("5", &[&first]);
    assert_eq!(of_version_2(&ask_ndjson(&first, &everybody), &everybody), five);
    world.change(&["rollback", "share"]);
    wait_for("the end of the canary", || {
        of_version_2(&ask_ndjson(&first, &everybody[..1_000]), &everybody[..1_000]).is_empty().then_some(())
    });
}

#[test]
fn whoever_names_nobody_is_answered_by_the_version_of_the_caller() {
    let world = World::new();
    let names: Vec<String> = (0..24).map(|at| format!("caller-{at}")).collect();
    let keys: Vec<String> = names.iter().map(|name| world.callers.alone(name)).collect();
    let gateways = [world.start(), world.start()];
    world.give("50", &[&gateways[0], &gateways[1]]);
    let nobody = format!("{{\"top\":1,\"bottom\":{BOTTOM}}}");
    let null = format!("{{\"customer\":null,\"top\":1,\"bottom\":{BOTTOM}}}");
    let rollout = Repository::new(world.models.path()).read_rollout("share").unwrap().unwrap();
    let mut found = BTreeSet::new();
    for (key, name) in keys.iter().zip(&names) {
        let slot = slot("share", &world.callers.id(name));
        let is_in = rollout.canaries[0].slots.iter().any(|(first, end)| (*first..*end).contains(&slot));
        let own = if is_in { "2" } else { "1" };
        for gateway in &gateways {
            for row in [&nobody, &null] {
                let answer = ok(gateway.ask(&post(PREDICT, key, row))).json();
                assert_eq!(answer["model_version"], own, "{name}");
            }
            let csv = post(BATCH, key, format!("top,bottom\n1,{BOTTOM}\n")).content_type("text/csv");
            assert_eq!(ok(gateway.ask(&csv)).json()["model_version"], own);
            // Rows that do name somebody go their own way, whoever asks.
            let lines = format!("{nobody}\n{}\n{}\n", row(3), row(4));
            let lines = post(BATCH, key, lines).content_type("application/x-ndjson");
            let lines = ok(gateway.ask(&lines)).text();
            let versions: Vec<Value> = lines
                .lines()
                .map(|line| serde_json::from_str::<Value>(line).unwrap()["model_version"].take())
                .collect();
            let of = |customer| if world.members().contains(&customer) { "2" } else { "1" };
            assert_eq!(versions, [own, of(3), of(4)]);
        }
        found.insert(own);
    }
    assert_eq!(found.len(), 2, "there are callers of both");
}

/// Customers of both versions, by turns, about whom nobody has asked yet.
fn by_turns(world: &World, count: usize) -> Vec<u32> {
    let (members, asked) = (world.members(), |customer: &u32| customer.is_multiple_of(LOOKED_AT));
    let others = (0..CUSTOMERS).filter(|customer| !asked(customer));
    let (of_2, of_1): (Vec<u32>, Vec<u32>) = others.partition(|customer| members.contains(customer));
    of_1.into_iter().zip(of_2).take(count).flat_map(<[u32; 2]>::from).collect()
}

#[test]
fn each_row_of_a_batch_is_its_own_versions_and_says_so() {
    let world = World::new();
    let gateway = world.settings().set("SCOREGATE_CACHE", "memory").start_with(&world.key);
    world.give("20", &[&gateway]);
    let customers = by_turns(&world, 2);
    let [one, two] = [customers[0], customers[1]];
    // Of both versions a row that is scored, and one that is refused; a line that is about nobody.
    let bad = |customer: u32| row(customer).replace("\"top\":", "\"top\":-0.5,\"topp\":");
    let rows = [row(one), row(two), bad(customers[2]), bad(customers[3])];
    let json = gateway.post(BATCH, format!("[{}]", rows.join(","))).json();
    assert_eq!(json["model_version"], "1");
    let predictions = json["predictions"].as_array().unwrap();
    let said: Vec<&Value> = predictions.iter().map(|row| &row["model_version"]).collect();
    assert_eq!(said, [&Value::Null, &json!("2"), &Value::Null, &json!("2")], "{json}");
    for (at, row) in predictions.iter().enumerate() {
        let error = &row["error"]["errors"][0];
        match at {
            0 => check(one, "1", row["share_probability"].as_f64().unwrap()),
            1 => check(two, "2", row["share_probability"].as_f64().unwrap()),
            at => assert_eq!(
                (&error["pointer"], &error["code"]),
                (&json!(format!("#/{at}/topp")), &json!("unknown_field"))
            ),
        }
    }
    let prefixed = gateway.post(BATCH, format!("{{\"rows\":[{}]}}", rows.join(","))).json();
    assert_eq!(prefixed["predictions"][3]["error"]["errors"][0]["pointer"], "#/rows/3/topp");
    let ids: BTreeSet<&str> = predictions.iter().filter_map(|row| row["prediction_id"].as_str()).collect();
    assert_eq!(ids.len(), 2);

    // One version answers all rows: nothing is said of each.
    let all = gateway.post(BATCH, format!("[{},{}]", row(two), row(customers[3]))).json();
    assert_eq!(all["model_version"], "2");
    assert!(all["predictions"].as_array().unwrap().iter().all(|row| row.get("model_version").is_none()));
    check(two, "2", all["predictions"][0]["share_probability"].as_f64().unwrap());

    // None of the rows passes: the faults stand in the order of the rows.
    let none = gateway.post(BATCH, format!("[{},{},{}]", bad(two), bad(one), bad(customers[3])));
    assert_eq!((none.status, none.code().as_str()), (422, "invalid_rows"));
    let pointers: Vec<Value> =
        none.json()["errors"].as_array().unwrap().iter().map(|fault| fault["pointer"].clone()).collect();
    assert_eq!(pointers, ["#/0/topp", "#/1/topp", "#/2/topp"]);

    // Rows about one entity are of one version, and refused by it.
    let twice = gateway.post(BATCH, format!("[{},{},{}]", row(two), row(one), row(two))).json();
    let codes: Vec<&Value> = twice["predictions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| &row["error"]["errors"][0]["code"])
        .collect();
    assert_eq!(codes, [&json!("duplicate_entity"), &Value::Null, &json!("duplicate_entity")]);

    let mixed = format!("{}{}", csv(&[one, two]), "account-5,1\n");
    let request = Request::post(BATCH, mixed).content_type("text/csv").header("Accept", "text/csv");
    let text = keyed(&gateway, request).text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines[0],
        "customer,top,bottom,share_probability,prediction,prediction_id,model_version,error"
    );
    assert!(lines[1].ends_with(",1,") && lines[2].ends_with(",2,"), "{text}");
    assert!(lines[3].contains("as many cells"), "{text}");
}

#[test]
fn a_remembered_score_is_that_of_the_version_that_answers() {
    let world = World::new();
    let gateway = world.settings().set("SCOREGATE_CACHE", "memory").start_with(&world.key);
    world.give("20", &[&gateway]);
    let customer = by_turns(&world, 1)[1];
    // Nobody is in version 2 for a moment: the live one's score is remembered.
    world.give("0", &[&gateway]);
    let ask = |expected: &str| {
        let answer = gateway.post(PREDICT, row(customer));
        let json = ok(answer.clone()).json();
        let version = json["model_version"].as_str().unwrap().to_owned();
        check(customer, &version, json["share_probability"].as_f64().unwrap());
        (version == expected).then(|| told(&answer))
    };
    assert_eq!(ask("1").unwrap(), "scoregate-memory; fwd=miss; stored");
    assert_eq!(ask("1").unwrap(), "scoregate-memory; hit; ttl=T");
    world.give("20", &[&gateway]);
    assert_eq!(ask("2").unwrap(), "scoregate-memory; fwd=miss; stored", "the other version's is not its own");
    assert_eq!(ask("2").unwrap(), "scoregate-memory; hit; ttl=T");
    // Of a batch all rows are counted together, whosever they are.
    let others = by_turns(&world, 3);
    let rows: Vec<String> = others.iter().map(|customer| row(*customer)).collect();
    let batch = gateway.post(BATCH, format!("[{}]", rows.join(",")));
    assert_eq!(
        told(&batch),
        "scoregate-memory; fwd=partial; detail=\"1 of 6 rows\"; stored",
        "{}",
        batch.text()
    );
    let again = gateway.post(BATCH, format!("[{}]", rows.join(",")));
    assert_eq!(told(&again), "scoregate-memory; hit; ttl=T");
    assert_eq!(
        ask_json(&gateway, &others, false),
        ["1", "2", "1", "2", "1", "2"],
        "what is remembered is each version's own"
    );
}

#[test]
fn explanations_are_those_of_the_version_that_answers() {
    let world = World::new();
    let gateway = world.start();
    world.give("20", &[&gateway]);
    let customers = by_turns(&world, 2);
    let full = |answer: &Value| {
        let explained = &answer["explanations"];
        let sum: f64 =
            explained["values"].as_object().unwrap().values().map(|value| value.as_f64().unwrap()).sum();
        explained["base_value"].as_f64().unwrap() + sum
    };
    let rows: Vec<String> = customers.iter().map(|customer| row(*customer)).collect();
    let target = format!("{BATCH}?explain=full&space=probability");
    let batch = ok(gateway.post(&target, format!("[{}]", rows.join(",")))).json();
    for (at, customer) in customers.iter().enumerate() {
        let version = if at % 2 == 0 { "1" } else { "2" };
        let single =
            ok(gateway.post(&format!("{PREDICT}?explain=full&space=probability"), row(*customer))).json();
        assert_eq!(single["model_version"], version);
        for answer in [&single, &batch["predictions"][at]] {
            // What the features do leads from the background's answers to this version's.
            check(*customer, version, full(answer));
        }
        assert_eq!(single["explanations"]["values"], batch["predictions"][at]["explanations"]["values"]);
    }
    let request = Request::post(format!("{BATCH}?explain=true").as_str(), csv(&customers));
    let text = keyed(&gateway, request.content_type("text/csv").header("Accept", "text/csv")).text();
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let column = reader.headers().unwrap().iter().position(|name| name == "top_features").unwrap();
    assert!(reader.records().all(|record| !record.unwrap()[column].is_empty()), "{text}");
    // What is wrong with the query is told where the versions are not known yet, too.
    let wrong = gateway.post(&format!("{PREDICT}?explain=perhaps"), row(customers[0]));
    assert_eq!((wrong.status, wrong.code().as_str()), (400, "invalid_parameter"));
    let wrong = gateway.post(&format!("{BATCH}?explain=perhaps"), format!("[{},{}]", rows[0], rows[1]));
    assert_eq!((wrong.status, wrong.code().as_str()), (400, "invalid_parameter"));
}

#[test]
fn a_single_row_of_any_size_and_encoding_is_answered_alike() {
    let world = World::new();
    let gateway = world.start();
    world.give("20", &[&gateway]);
    for (at, customer) in by_turns(&world, 3).into_iter().enumerate() {
        let version = if at % 2 == 0 { "1" } else { "2" };
        let plain = row(customer);
        let long = plain.replace('{', &format!("{{{}", " ".repeat(5_000)));
        let escaped = plain.replace("account-", "\\u0061ccount-");
        let last = plain.replace(&format!("\"customer\":\"{}\",", name(customer)), "");
        let last = last.replace('}', &format!(",\"customer\":\"{}\"}}", name(customer)));
        for (body, is_compressed) in [
            (&plain, false),
            (&plain, true),
            (&long, false),
            (&long, true),
            (&escaped, false),
            (&last, false),
        ] {
            let request = match is_compressed {
                true => Request::post(PREDICT, gzip(body.as_bytes())).header("Content-Encoding", "gzip"),
                false => Request::post(PREDICT, body),
            };
            let answer = keyed(&gateway, request).json();
            assert_eq!(answer["model_version"], version, "{} bytes", body.len());
            check(customer, version, answer["share_probability"].as_f64().unwrap());
        }
        let wrong = gateway.post(PREDICT, plain.replace("\"bottom\"", "\"botom\""));
        assert_eq!((wrong.status, wrong.code().as_str()), (422, "invalid_row"));
    }
    for malformed in
        ["", "{", "[]", "7", "{\"customer\":\"account-1\"", "{\"customer\":\"a\",\"customer\":\"b\"}"]
    {
        let answer = gateway.post(PREDICT, malformed);
        assert!(matches!(answer.status, 400 | 422), "{malformed}: {}", answer.text());
    }
}

/// Lines of requests in the log, by their identifier.
fn line(gateway: &Gateway, id: &str) -> Value {
    wait_for("the line of a request", || {
        let log = gateway.log();
        let mut lines = log.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.find(|line| line["target"] == "scoregate::access" && line["request_id"] == id)
    })
}

fn rows_of(gateway: &Gateway, version: &str, outcome: &str) -> u64 {
    let labels = format!(
        "route=\"/v1/models/{{model}}/predict/batch\",model=\"share\",version=\"{version}\",outcome=\"{outcome}\""
    );
    metric(gateway, &format!("scoregate_rows_total{{{labels}}}"))
}

fn answers_of(gateway: &Gateway, model: &str, version: &str, status: &str) -> u64 {
    let labels = format!(
        "route=\"/v1/models/{{model}}/predict/batch\",model=\"{model}\",version=\"{version}\",cache=\"none\",explained=\"no\",\
         status=\"{status}\""
    );
    metric(gateway, &format!("scoregate_request_duration_seconds_count{{{labels}}}"))
}

#[test]
fn what_is_counted_goes_to_the_version_that_answers() {
    let world = World::new();
    let gateway = world.start();
    world.give("20", &[&gateway]);
    let customers = by_turns(&world, 2);
    // Each of the versions has been asked, so that it has counts.
    let before = || [rows_of(&gateway, "1", "scored"), rows_of(&gateway, "2", "scored")];
    let [ones, twos] = before();
    let requests = ["1", "2"].map(|version| answers_of(&gateway, "share", version, "2xx"));
    let refused = rows_of(&gateway, "2", "rejected");
    let bad = row(customers[3]).replace("\"top\":", "\"topp\":");
    let rows = format!("[{},{},{},{bad}]", row(customers[0]), row(customers[1]), row(customers[2]));
    keyed(&gateway, Request::post(BATCH, rows).header("X-Request-Id", "mixed"));
    let line_of_it = line(&gateway, "mixed");
    assert_eq!(
        ["version", "versions", "rows", "rows_rejected"].map(|name| line_of_it[name].clone()),
        [json!("1"), json!(2), json!(4), json!(1)]
    );
    assert_eq!(before(), [ones + 2, twos + 1]);
    assert_eq!(rows_of(&gateway, "2", "rejected"), refused + 1);
    let after = ["1", "2"].map(|version| answers_of(&gateway, "share", version, "2xx"));
    assert_eq!(after, requests.map(|count| count + 1), "it is an answer of both");
    keyed(&gateway, Request::post(PREDICT, row(customers[1])).header("X-Request-Id", "single"));
    let single = line(&gateway, "single");
    assert_eq!((&single["version"], single.get("versions")), (&json!("2"), None));
}

/// Model `shaky`, which answers `a / b`: version 2 answers `b / b` less, which is no number where `b` is 0.
fn shaky(version: &str) -> Handmade {
    let model =
        Handmade::new("shaky", &["a", "b"]).version(version).labels(&["no", "yes"]).entity("customer");
    let model = match version {
        "1" => {
            model.node("Sub", &["b", "b"], "zero", Vec::new()).node("Add", &["a", "zero"], "p", Vec::new())
        }
        _ => model.node("Div", &["b", "b"], "one", Vec::new()).node("Mul", &["a", "one"], "p", Vec::new()),
    };
    model.output("p", FLOAT).golden(json!({"a": 0.5, "b": 1}), json!(0.5))
}

#[test]
fn a_canary_that_fails_costs_its_own_rows() {
    let world = World::empty();
    for version in ["1", "2"] {
        let output = Output::Probabilities { name: "p".into(), classes: 1, positive: 0 };
        shaky(version).publish(world.models.path(), output);
    }
    let gateway = world.settings().set("SCOREGATE_DEFAULT_MODEL", "shaky").start_with(&world.key);
    world.change(&["canary", "shaky@2", "--percent", "50"]);
    wait_for("the canary", || {
        let state = gateway.get("/v1/models/shaky/versions/2").json();
        (state["state"] == "canary").then_some(())
    });
    let target = "/v1/models/shaky/predict/batch";
    let row = |customer: u32, b: u32| format!("{{\"customer\":\"account-{customer}\",\"a\":0.25,\"b\":{b}}}");
    let of_2: Vec<u32> = (0..50)
        .filter(|customer| {
            ok(gateway.post("/v1/models/shaky/predict", row(*customer, 1))).json()["model_version"] == "2"
        })
        .collect();
    let (one, two) = ((0..50).find(|customer| !of_2.contains(customer)).unwrap(), of_2[0]);
    let good = keyed(&gateway, Request::post(target, format!("[{},{}]", row(one, 1), row(two, 1))));
    assert!(!good.text().contains("error"));
    let counts = || {
        let count = |version, status| answers_of(&gateway, "shaky", version, status);
        (count("1", "2xx"), count("2", "2xx"))
    };
    assert_eq!(counts(), (1, 1));
    let broken = keyed(&gateway, Request::post(target, format!("[{},{}]", row(two, 0), row(one, 0)))).json();
    assert_eq!(broken["model_version"], "1");
    let failed = &broken["predictions"][0];
    assert_eq!(
        (&failed["index"], &failed["model_version"], &failed["error"]),
        (&json!(0), &json!("2"), &json!({"code": "model_output_invalid", "errors": []}))
    );
    assert_eq!(broken["predictions"][1]["shaky_probability"], 0.25);
    assert_eq!(counts(), (2, 1), "the live version has answered");
    assert_eq!(answers_of(&gateway, "shaky", "2", "5xx"), 1, "the canary has failed");
    let csv = format!("customer,a,b\naccount-{two},0.25,0\naccount-{one},0.25,0\n");
    let csv = Request::post(target, csv).content_type("text/csv").header("Accept", "text/csv");
    let text = keyed(&gateway, csv).text();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[1].ends_with(",,,,2,model_output_invalid"), "{text}");
    assert!(lines[2].contains(",0.25,no,"), "{text}");
    // Nobody else has an answer: the whole request fails.
    let alone = gateway.post(target, format!("[{}]", row(two, 0)));
    assert_eq!((alone.status, alone.code().as_str()), (500, "model_output_invalid"));
    let single = gateway.post("/v1/models/shaky/predict", row(two, 0));
    assert_eq!((single.status, single.code().as_str()), (500, "model_output_invalid"));
    let said =
        gateway.log_so_far().iter().filter(|line| line.contains("failed with its rows of a batch")).count();
    assert_eq!(said, 2, "it is said of each batch that others have answered");
    // Nor is it a failure of the live version, of which no row has passed.
    let failed = answers_of(&gateway, "shaky", "2", "5xx");
    let refused = row(one, 1).replace("0.25", "\"x\"");
    let both = gateway.post(target, format!("[{refused},{}]", row(two, 0)));
    assert_eq!((both.status, both.code().as_str()), (500, "model_output_invalid"));
    assert_eq!(answers_of(&gateway, "shaky", "2", "5xx"), failed + 1);
    let all = Client::connect(gateway.admin_addr).ask(&Request::get("/metrics")).text();
    let is_blamed =
        |line: &&str| line.contains("model=\"shaky\",version=\"1\"") && line.contains("status=\"5xx\"");
    assert_eq!(all.lines().find(is_blamed), None);
}

#[test]
fn a_canary_that_takes_too_long_is_to_blame_alone() {
    let world = World::with_layers(24);
    let patient = world.settings().set("SCOREGATE_ANSWER_TIMEOUT", "60s").start_with(&world.key);
    world.give("50", &[&patient]);
    let customers = by_turns(&world, 4_000);
    let (few, many): (Vec<u32>, Vec<u32>) = customers.chunks(2).map(|pair| (pair[0], pair[1])).collect();
    let rows: Vec<String> = few[..1].iter().chain(&many).map(|customer| row(*customer)).collect();
    let body = format!("[{}]", rows.join(","));
    // A quarter of what it takes on this machine is too little.
    let took = (0..3).map(|_| {
        let begin = Instant::now();
        assert_eq!(patient.post(BATCH, body.clone()).status, 200);
        begin.elapsed()
    });
    let timeout = format!("{}ms", took.min().unwrap().as_millis() / 4);
    drop(patient);
    let gateway = world.settings().set("SCOREGATE_ANSWER_TIMEOUT", &timeout).start_with(&world.key);
    wait_for("both versions to answer", || {
        let both = gateway.post(BATCH, format!("[{},{}]", row(few[0]), row(many[0])));
        (both.status == 200 && both.text().contains("\"model_version\":\"2\"")).then_some(())
    });
    let counts = |status| ["1", "2"].map(|version| answers_of(&gateway, "share", version, status));
    let before = counts("2xx");
    let late = gateway.post(BATCH, body);
    assert_eq!((late.status, late.code().as_str()), (504, "deadline"));
    assert_eq!(counts("2xx"), before);
    assert_eq!(answers_of(&gateway, "share", "2", "5xx"), 1);
    let all = Client::connect(gateway.admin_addr).ask(&Request::get("/metrics")).text();
    let is_blamed = |line: &&str| line.contains("version=\"1\"") && line.contains("status=\"5xx\"");
    assert_eq!(all.lines().find(is_blamed), None, "the live version had answered by then");
}

/// Model `other`, whose rows are about customers: version 2 is a regression that takes another field, and version 3 has three classes.
fn publish_others(world: &World) {
    let models = world.models.path();
    let binary = Output::Probabilities { name: "p".into(), classes: 1, positive: 0 };
    let same = |model: Handmade, from: &str, to: &str| {
        model.node("Sub", &["a", "a"], "zero", Vec::new()).node("Add", &[from, "zero"], to, Vec::new())
    };
    let first = Handmade::new("other", &["a"]).labels(&["no", "yes"]).entity("customer");
    same(first, "a", "p").output("p", FLOAT).golden(json!({"a": 0.5}), json!(0.5)).publish(models, binary);
    let value = Handmade::new("other", &["a", "b"]).version("2").optional("b").entity("customer");
    let value = value.node("Add", &["a", "a"], "v", Vec::new()).node("IsNaN", &["b"], "unused", Vec::new());
    value
        .output("v", FLOAT)
        .golden(json!({"a": 0.5, "b": 1}), json!(1.0))
        .publish(models, Output::Value { name: "v".into() });
}

#[test]
fn a_canary_of_another_form_answers_in_its_own() {
    let world = World::empty();
    publish_others(&world);
    let gateway = world.settings().set("SCOREGATE_DEFAULT_MODEL", "other").start_with(&world.key);
    world.change(&["canary", "other@2", "--percent", "50", "--breaking"]);
    wait_for("the canary", || {
        let state = gateway.get("/v1/models/other/versions/2").json();
        (state["state"] == "canary").then_some(())
    });
    let target = "/v1/models/other/predict/batch";
    let row = |customer: u32| format!("{{\"customer\":\"account-{customer}\",\"a\":0.25}}");
    let rows: Vec<String> = (0..20).map(row).collect();
    let answer = ok(gateway.post(target, format!("[{}]", rows.join(",")))).json();
    let predictions = answer["predictions"].as_array().unwrap();
    let (values, probabilities): (Vec<&Value>, Vec<&Value>) =
        predictions.iter().partition(|row| row["model_version"] == "2");
    assert!(
        !values.is_empty() && values.iter().all(|row| row["value"] == 0.5 && row.get("prediction").is_none())
    );
    let is_binary = |row: &&Value| row["other_probability"] == 0.25 && row["prediction"] == "no";
    assert!(!probabilities.is_empty() && probabilities.iter().all(is_binary), "{answer}");
    let records: String = (0..20).map(|customer| format!("account-{customer},0.25\n")).collect();
    let request = Request::post(target, format!("customer,a\n{records}"));
    let text = keyed(&gateway, request.content_type("text/csv").header("Accept", "text/csv")).text();
    let mut lines = text.lines();
    assert_eq!(
        lines.next().unwrap(),
        "customer,a,other_probability,prediction,value,prediction_id,model_version,error"
    );
    for line in lines {
        let cells: Vec<&str> = line.split(',').collect();
        match cells[6] {
            "1" => assert_eq!(cells[2..5], ["0.25", "no", ""]),
            "2" => assert_eq!(cells[2..5], ["", "", "0.5"]),
            other => panic!("{other}: {line}"),
        }
    }
    // A field that the canary alone knows is one that its rows alone may have; the live version reads the header of a table.
    let more: Vec<String> = rows.iter().map(|row| row.replace('}', ",\"b\":1}")).collect();
    let answer = ok(gateway.post(target, format!("[{}]", more.join(",")))).json();
    for (row, before) in answer["predictions"].as_array().unwrap().iter().zip(predictions) {
        assert_eq!(
            row["model_version"], before["model_version"],
            "a row that is refused is its entity's all the same"
        );
        assert_eq!(row["error"].is_null(), row["model_version"] == "2", "{row}");
    }
    let records: String = (0..20).map(|customer| format!("account-{customer},0.25,1\n")).collect();
    let table = Request::post(target, format!("customer,a,b\n{records}")).content_type("text/csv");
    let refused = gateway.ask(&gateway.with_key(table));
    assert_eq!((refused.status, refused.code().as_str()), (422, "invalid_rows"));
}
