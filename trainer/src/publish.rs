//! A trained model → a published model package.

use anyhow::Context;
use scoregate_model::explain::importance::Importance;
use scoregate_model::package::{Expected, GOLDEN, GoldenRow, MODEL, Published, REFERENCE, Repository};
use scoregate_model::reference::{self, FeatureReference, Histogram, Observed, Reference};
use scoregate_schemas::FeatureSchema;
use scoregate_schemas::manifest::{self, Evaluation, Manifest, Metrics, Source, SourceKind};
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::data::{Feature, Table, Values};
use crate::report;
use crate::train::Trained;
use crate::verify::TOLERANCE;

/// The report's file name.
pub const REPORT: &str = "report.html";

/// Golden rows of a package, taken from the test fold; all of it if it has fewer.
pub const GOLDEN_ROWS: usize = 250;

/// What a package is called.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The model's name.
    pub name: String,
    /// The version's name; else `YYYY-MM-DD_NN` of the day of `now`.
    pub version: Option<String>,
    /// The time of publication.
    pub now: OffsetDateTime,
}

/// Publishes `trained` into `repository`.
///
/// `evaluation` and `served` are the metrics and probabilities of the test fold as ONNX Runtime answered them; `importance` says
/// which features move them most.
///
/// # Errors
/// If the version exists, the name is not fit for a directory, or writing fails; then nothing is published.
pub fn publish(
    repository: &Repository,
    identity: &Identity,
    table: &Table,
    trained: &Trained,
    evaluation: &Evaluation,
    served: &[f64],
    importance: Option<Importance>,
) -> anyhow::Result<Published> {
    let version = match &identity.version {
        Some(version) => version.clone(),
        None => repository.next_version(&identity.name, &identity.now.date().to_string())?,
    };
    let manifest = Manifest {
        format: manifest::FORMAT,
        name: identity.name.clone(),
        version,
        created_at: identity.now.format(&Rfc3339).context("the time of publication cannot be written")?,
        files: std::collections::BTreeMap::new(),
        schema: Value::Object(trained.schema.document().clone()),
        bindings: trained.bindings.clone(),
        output: trained.output.clone(),
        threshold: trained.schema.threshold,
        labels: trained.schema.labels.clone().unwrap_or_else(FeatureSchema::default_labels),
        changes: Vec::new(),
        tolerance: TOLERANCE,
        metrics: Some(Metrics::Binary(Box::new(evaluation.clone()))),
        training: Some(trained.training.clone()),
        source: Source { kind: SourceKind::Trainer, producer: trained.training.trainer.clone() },
    };
    let golden = golden(table, trained)?;
    let outcomes: Vec<bool> = trained.folds.test.iter().map(|&row| table.positives[row]).collect();
    let report = report::html(&manifest, evaluation, served, &outcomes, importance.as_ref(), Some(trained))?;
    let reference = Reference { importance, ..reference(table, trained) };
    let reference = serde_json::to_vec(&reference).context("the reference cannot be written")?;
    let files: [(&str, &[u8]); 4] = [
        (MODEL, &trained.graph),
        (GOLDEN, golden.as_bytes()),
        (REFERENCE, &reference),
        (REPORT, report.as_bytes()),
    ];
    Ok(repository.publish(manifest, &files)?)
}

/// Golden rows: the first rows of the test fold, with the trainer's own probability on inputs rounded to float32.
fn golden(table: &Table, trained: &Trained) -> anyhow::Result<String> {
    let rows: Vec<usize> = trained.folds.test.iter().copied().take(GOLDEN_ROWS).collect();
    let expected = trained.pipeline.served_probabilities(table, &rows);
    let mut text = String::new();
    for (row, expected) in rows.into_iter().zip(expected) {
        let row = GoldenRow { features: table.raw_row(row), expected: Expected::One(expected) };
        text.push_str(&serde_json::to_string(&row).context("a golden row cannot be written")?);
        text.push('\n');
    }
    Ok(text)
}

/// The reference: how features and scores were distributed over the training fold.
fn reference(table: &Table, trained: &Trained) -> Reference {
    let rows = &trained.folds.train;
    Reference {
        format: reference::FORMAT,
        rows: rows.len() as u64,
        features: table.features.iter().map(|feature| feature_reference(feature, rows)).collect(),
        score: Histogram::freeze(trained.pipeline.served_probabilities(table, rows)),
        background: background(table, trained),
        importance: None,
        covers: None,
    }
}

/// The rows that explanations are against, as clients would send them.
pub fn background(table: &Table, trained: &Trained) -> Vec<Map<String, Value>> {
    let rows = &trained.folds.train;
    let drawn = reference::background_rows(rows.len(), trained.training.seed);
    drawn.into_iter().map(|at| table.raw_row(rows[at])).collect()
}

fn feature_reference(feature: &Feature, rows: &[usize]) -> FeatureReference {
    let present = |row: usize| !feature.missing[row];
    let observed = match &feature.values {
        Values::Numbers(numbers) => {
            Observed::Numbers(rows.iter().map(|&row| present(row).then(|| numbers[row])).collect())
        }
        Values::Categories { names, codes } => Observed::Categories(
            rows.iter().map(|&row| present(row).then(|| names[codes[row] as usize].as_str())).collect(),
        ),
    };
    FeatureReference::freeze(&feature.field.name, &observed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::Progress;
    use crate::simulate::{self, Simulation};
    use crate::train::{Options, train};
    use scoregate_model::explain::importance::FeatureImportance;
    use scoregate_model::explain::{Method, Space};
    use scoregate_model::metrics::{self, Bootstrap};
    use scoregate_model::package::Package;
    use scoregate_model::reference::Distribution;
    use time::macros::datetime;

    #[test]
    fn a_published_package_reads_back_whole_and_stays_as_it_is() {
        let schema = FeatureSchema::parse(include_bytes!("../../schemas/churn.json")).unwrap();
        let mut text = Vec::new();
        simulate::write(Simulation { rows: 2_000, seed: 1, missing_rate: 0.0 }, &mut text, None).unwrap();
        let table = Table::parse(&text, &schema).unwrap();
        let trained = train(&table, &schema, Options::default(), &mut Progress::quiet()).unwrap();
        let served = trained.pipeline.served_probabilities(&table, &trained.folds.test);
        let outcomes: Vec<bool> = trained.folds.test.iter().map(|&row| table.positives[row]).collect();
        let evaluation =
            metrics::evaluate(&served, &outcomes, 0.5, Bootstrap { resamples: 10, seed: 1 }).unwrap();

        let features = table.features.iter().enumerate();
        let importance = Some(Importance {
            space: Space::LogOdds,
            method: Method::Linear,
            rows: 100,
            base_value: Some(-1.25),
            features: features
                .map(|(at, feature)| FeatureImportance {
                    name: feature.field.name.clone(),
                    mean_absolute: at as f64 / 8.0,
                })
                .collect(),
        });

        let directory = tempfile::tempdir().unwrap();
        let repository = Repository::new(directory.path());
        let now = datetime!(2026-05-17 08:30 UTC);
        let mut identity = Identity { name: "churn".into(), version: None, now };
        let path =
            publish(&repository, &identity, &table, &trained, &evaluation, &served, importance.clone())
                .unwrap()
                .directory;
        assert!(path.ends_with("churn/2026-05-17_01"));
        let package = Package::read(&path).unwrap();
        assert_eq!(package.manifest.created_at, "2026-05-17T08:30:00Z");
        assert_eq!((package.golden.len(), &package.graph), (GOLDEN_ROWS, &trained.graph));
        assert_eq!(package.golden[0].features, table.raw_row(trained.folds.test[0]));

        let reference: Reference =
            serde_json::from_slice(&std::fs::read(path.join(REFERENCE)).unwrap()).unwrap();
        assert_eq!(reference.rows, trained.folds.train.len() as u64);
        assert_eq!(reference.background.len(), 100);
        assert_eq!((&reference.importance, &package.importance), (&importance, &importance));
        assert_eq!(reference.score.rows(), reference.rows);
        for feature in &reference.features {
            let rows = match &feature.distribution {
                Distribution::Numeric(histogram) => histogram.rows(),
                Distribution::Categorical(categories) => categories.rows(),
            };
            assert_eq!(rows + feature.missing, reference.rows, "{}", feature.name);
        }

        let report = std::fs::read_to_string(path.join(REPORT)).unwrap();
        assert!(report.contains("ROC curve") && report.contains("churn 2026-05-17_01"));
        assert!(
            report.contains("<title>last_login_hours: 0.625</title>"),
            "the features' importance is drawn"
        );
        // The name of what SVG is, which nothing is loaded from.
        let report = report.replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
        for outside in ["http:", "https:", "<script", "<link", "@import", "url("] {
            assert!(!report.contains(outside), "the report loads nothing: {outside}");
        }

        let next =
            publish(&repository, &identity, &table, &trained, &evaluation, &served, importance.clone())
                .unwrap()
                .directory;
        assert!(next.ends_with("2026-05-17_02"));
        identity.version = Some("2026-05-17_01".into());
        let refused =
            publish(&repository, &identity, &table, &trained, &evaluation, &served, importance.clone())
                .unwrap_err();
        assert!(refused.to_string().contains("published already"), "{refused}");
        assert_eq!(Package::read(&path).unwrap().manifest, package.manifest);
    }
}
