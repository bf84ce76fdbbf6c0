//! Answers as bytes: the reference contract, field for field.
//!
//! Answers are written straight into one buffer: what is the same for every row of a version is prepared once.

use std::time::{SystemTime, UNIX_EPOCH};

use rand::RngCore;
use scoregate_model::features::{FeatureRows, RowFault, RowReader};
use serde::Serialize;
use serde_json::{Map, Value};
use ulid::{ULID_LEN, Ulid};

use crate::registry::Version;

/// New identifiers: sortable by time, 80 bits of chance, one random draw per answer and counted up from there.
#[derive(Debug)]
pub(super) struct Ids(Ulid);

impl Ids {
    /// A fresh start.
    pub(super) fn new() -> Self {
        let mut random = [0; 16];
        rand::rng().fill_bytes(&mut random[..10]);
        // The top bit stays clear, so that counting up never overflows into the time.
        let random = u128::from_le_bytes(random) & ((1 << 79) - 1);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(Ulid::from_parts(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), random))
    }

    /// The next identifier.
    pub(super) fn write<'b>(&mut self, buffer: &'b mut [u8; ULID_LEN]) -> &'b str {
        self.0 = self.0.increment().unwrap_or(self.0);
        self.0.array_to_str(buffer)
    }
}

/// Writes the answers of one request.
pub(super) struct Answers<'v> {
    version: &'v Version,
    /// `"churn_probability":`, and what follows the number for either label: the same for every row.
    probability: Vec<u8>,
    decisions: [Vec<u8>; 2],
    ids: Ids,
}

/// `"churn_probability":`
fn write_name(out: &mut Vec<u8>, version: &Version) {
    // A model's name is plain ASCII without quotes.
    out.push(b'"');
    out.extend_from_slice(version.manifest.name.as_bytes());
    out.extend_from_slice(b"_probability\":");
}

/// `,"prediction":"retain","explanations":{"top_features":[]},"prediction_id":"`
fn write_decision(out: &mut Vec<u8>, version: &Version, label: usize) {
    out.extend_from_slice(b",\"prediction\":");
    json(out, &version.manifest.labels[label]);
    out.extend_from_slice(b",\"explanations\":{\"top_features\":[]},\"prediction_id\":\"");
}

/// `"model_version":"2026-05-17_01",`
fn write_version(out: &mut Vec<u8>, version: &Version) {
    out.extend_from_slice(b"\"model_version\":\"");
    out.extend_from_slice(version.manifest.version.as_bytes());
    out.extend_from_slice(b"\",");
}

/// Which of the two labels a probability stands for.
fn decide(version: &Version, probability: f32) -> usize {
    usize::from(f64::from(probability) >= version.manifest.threshold)
}

/// The answer to one row.
pub(super) fn one(version: &Version, probability: f32) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    out.push(b'{');
    write_version(&mut out, version);
    write_name(&mut out, version);
    json(&mut out, &probability);
    write_decision(&mut out, version, decide(version, probability));
    out.extend_from_slice(Ids::new().write(&mut [0; ULID_LEN]).as_bytes());
    out.extend_from_slice(b"\"}");
    out
}

impl<'v> Answers<'v> {
    pub(super) fn new(version: &'v Version) -> Self {
        let mut probability = Vec::new();
        write_name(&mut probability, version);
        let decisions = [0, 1].map(|label| {
            let mut decision = Vec::new();
            write_decision(&mut decision, version, label);
            decision
        });
        Self { version, probability, decisions, ids: Ids::new() }
    }

    /// Probability, label, explanations and identifier, without braces.
    fn score(&mut self, out: &mut Vec<u8>, probability: f32) {
        out.extend_from_slice(&self.probability);
        json(out, &probability);
        out.extend_from_slice(&self.decisions[decide(self.version, probability)]);
        out.extend_from_slice(self.ids.write(&mut [0; ULID_LEN]).as_bytes());
        out.push(b'"');
    }

    /// The answer to a batch as one JSON document, in the order of the rows sent.
    pub(super) fn json_batch(&mut self, rows: &FeatureRows, probabilities: &[f32], prefix: &str) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + rows.submitted * 192);
        out.push(b'{');
        write_version(&mut out, self.version);
        out.extend_from_slice(b"\"predictions\":[");
        self.each(
            rows,
            probabilities,
            |answers, out, index, row| {
                if index > 0 {
                    out.push(b',');
                }
                answers.batch_row(out, index, row, prefix, false);
            },
            &mut out,
        );
        out.extend_from_slice(b"]}");
        out
    }

    /// The answer to a batch as one JSON object per line.
    pub(super) fn ndjson_batch(&mut self, rows: &FeatureRows, probabilities: &[f32]) -> Vec<u8> {
        let mut out = Vec::with_capacity(rows.submitted * 224);
        self.each(
            rows,
            probabilities,
            |answers, out, index, row| {
                answers.batch_row(out, index, row, "#", true);
                out.push(b'\n');
            },
            &mut out,
        );
        out
    }

    /// The records of a CSV body with columns added: probability, prediction, prediction_id, model_version, error.
    pub(super) fn csv_batch(&mut self, body: &[u8], rows: &FeatureRows, probabilities: &[f32]) -> Vec<u8> {
        let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(body);
        let mut writer =
            csv::WriterBuilder::new().flexible(true).from_writer(Vec::with_capacity(body.len() * 2));
        let mut record = csv::ByteRecord::new();
        let mut next = |record: &mut csv::ByteRecord| reader.read_byte_record(record).unwrap_or(false);
        next(&mut record);
        let width = record.len();
        for name in [&probability_name(self.version), "prediction", "prediction_id", "model_version", "error"]
        {
            record.push_field(name.as_bytes());
        }
        let mut write =
            |record: &csv::ByteRecord| writer.write_byte_record(record).expect("a vector takes every byte");
        write(&record);
        self.each(
            rows,
            probabilities,
            |answers, _, _, row| {
                next(&mut record);
                // A ragged record is squared, so that the added columns stand where the header says.
                record.truncate(width);
                while record.len() < width {
                    record.push_field(b"");
                }
                match row {
                    Row::Scored(probability) => {
                        record.push_field(serde_json::to_string(&probability).unwrap_or_default().as_bytes());
                        record.push_field(
                            answers.version.manifest.labels[decide(answers.version, probability)].as_bytes(),
                        );
                        record.push_field(answers.ids.write(&mut [0; ULID_LEN]).as_bytes());
                        record.push_field(answers.version.manifest.version.as_bytes());
                        record.push_field(b"");
                    }
                    Row::Refused(fault, reader) => {
                        for name in ["", "", ""] {
                            record.push_field(name.as_bytes());
                        }
                        record.push_field(answers.version.manifest.version.as_bytes());
                        let described = fault.faults.iter().map(|fault| {
                            let place = reader.pointer(&fault.place);
                            format!("{} {}", place.trim_start_matches('/'), reader.detail(fault))
                                .trim_start()
                                .to_string()
                        });
                        let mut text = described.collect::<Vec<_>>().join("; ");
                        if text.is_empty() {
                            text.push_str("invalid_row");
                        }
                        record.push_field(text.as_bytes());
                    }
                }
                write(&record);
            },
            &mut Vec::new(),
        );
        writer.into_inner().unwrap_or_default()
    }

    /// Calls `write` for every row that was sent, in order.
    fn each(
        &mut self,
        rows: &FeatureRows,
        probabilities: &[f32],
        mut write: impl FnMut(&mut Self, &mut Vec<u8>, usize, Row<'_>),
        out: &mut Vec<u8>,
    ) {
        let version = self.version;
        let mut faults = rows.faults.iter().peekable();
        let mut scored = probabilities.iter();
        for index in 0..rows.submitted {
            let row = match faults.next_if(|fault| fault.index == index) {
                Some(fault) => Row::Refused(fault, &version.reader),
                None => Row::Scored(*scored.next().expect("a row is either refused or scored")),
            };
            write(self, out, index, row);
        }
    }

    fn batch_row(&mut self, out: &mut Vec<u8>, index: usize, row: Row<'_>, prefix: &str, with_version: bool) {
        out.extend_from_slice(b"{\"index\":");
        out.extend_from_slice(itoa::Buffer::new().format(index).as_bytes());
        out.push(b',');
        if with_version {
            write_version(out, self.version);
        }
        match row {
            Row::Scored(probability) => self.score(out, probability),
            Row::Refused(fault, reader) => row_error(out, fault, reader, prefix),
        }
        out.push(b'}');
    }
}

enum Row<'r> {
    Scored(f32),
    Refused(&'r RowFault, &'r RowReader),
}

/// `"error":{…}` in the place of a refused row's score.
fn row_error(out: &mut Vec<u8>, fault: &RowFault, reader: &RowReader, prefix: &str) {
    out.extend_from_slice(b"\"error\":{\"code\":\"invalid_row\",\"errors\":[");
    for (at, one) in fault.faults.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        out.extend_from_slice(b"{\"pointer\":");
        json(out, &format!("{prefix}/{}{}", fault.index, reader.pointer(&one.place)));
        out.extend_from_slice(b",\"code\":");
        json(out, one.code.as_str());
        out.extend_from_slice(b",\"detail\":");
        json(out, &reader.detail(one));
        out.push(b'}');
    }
    out.extend_from_slice(b"]}");
}

fn probability_name(version: &Version) -> String {
    format!("{}_probability", version.manifest.name)
}

fn json<T: Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    serde_json::to_writer(out, value).expect("a vector takes every byte");
}

/// The body of `/v1/metadata`.
#[derive(Serialize)]
pub(super) struct Metadata<'v> {
    model: &'v str,
    model_version: &'v str,
    features: Vec<&'v str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<&'v str>,
    labels: &'v [String],
    threshold: f64,
    training: Map<String, Value>,
    schema: &'v Value,
    digest: &'v str,
    execution_providers: &'v std::collections::BTreeMap<String, usize>,
    created_at: &'v str,
    source: &'v scoregate_schemas::manifest::Source,
}

impl<'v> Metadata<'v> {
    pub(super) fn of(version: &'v Version) -> Self {
        let manifest = &version.manifest;
        let mut training = Map::new();
        if let Some(metrics) = &manifest.metrics {
            for (name, estimate) in [
                ("roc_auc", metrics.roc_auc),
                ("pr_auc", metrics.pr_auc),
                ("brier", metrics.brier),
                ("log_loss", metrics.log_loss),
                ("expected_calibration_error", metrics.expected_calibration_error),
            ] {
                training.insert(name.into(), estimate.value.into());
            }
            training.insert("holdout_rows".into(), metrics.rows.into());
        }
        if let Some(facts) = &manifest.training {
            training.insert("rows".into(), facts.rows.into());
            training.insert("seed".into(), facts.seed.into());
            training.insert("trainer".into(), facts.trainer.as_str().into());
            training.insert("data_digest".into(), facts.data_digest.as_str().into());
        }
        Self {
            model: &manifest.name,
            model_version: &manifest.version,
            features: version.schema.features().map(|field| field.name.as_str()).collect(),
            target: version.schema.target.as_deref(),
            labels: &manifest.labels,
            threshold: manifest.threshold,
            training,
            schema: &manifest.schema,
            digest: &version.digest,
            execution_providers: &version.execution_providers,
            created_at: &manifest.created_at,
            source: &manifest.source,
        }
    }
}
