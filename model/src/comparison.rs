//! How the scores of two versions differ on the same rows: counted, never kept.

use rustc_hash::FxHashMap;
use scoregate_schemas::feature_schema::{Field, Kind};
use scoregate_schemas::manifest::Task;
use serde::Serialize;

use crate::features::{Column, FeatureRows, RowReader};
use crate::reference::{Distribution, FeatureReference, Histogram};

/// How many numbers are seen before bins are frozen on them, where the reference of the model has none; of scores there are two a
/// row.
const FIRST: usize = 2_000;

/// How many features are told of.
const TOLD: usize = 5;

/// What turns the numbers of an answer into its label.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Decision {
    /// What is answered about a row.
    pub task: Task,
    /// Whether numbers are answered with the digits of a float32.
    pub float32: bool,
    /// The probability of the positive class from which on a row is labelled positive.
    pub threshold: f64,
}

impl Decision {
    /// Which label a row's numbers stand for, as they are written: by the threshold, or the most likely one and of equals the
    /// first. A float32 that is written 0.7 reaches a threshold of 0.7, which is a little more than that float32. Regression has
    /// none.
    pub fn of(self, numbers: &[f64]) -> usize {
        let written = |number: f64| if self.float32 { f64::from(number as f32) } else { number };
        match self.task {
            Task::Binary if self.float32 => usize::from(numbers[0] as f32 >= self.threshold as f32),
            Task::Binary => usize::from(numbers[0] >= self.threshold),
            Task::Multiclass { .. } => {
                let number = |at: usize| written(numbers[at]);
                (1..numbers.len()).fold(0, |best, at| if number(at) > number(best) { at } else { best })
            }
            Task::Regression => 0,
        }
    }
}

/// One of two versions that are compared.
#[derive(Debug, Clone, Copy)]
pub struct Side<'s> {
    /// How it decides.
    pub decision: Decision,
    /// Its labels.
    pub labels: &'s [String],
}

/// What the scores of two versions have been on the same rows. The first of the two is the reference, by whose package the bins
/// are.
#[derive(Debug)]
pub struct Comparison {
    decisions: [Decision; 2],
    /// Which class of the other is which of the reference, by label; of a model of classes alone, be they two.
    classes: Vec<usize>,
    is_comparable: bool,
    scores: Bins,
    moments: Moments,
    /// Rows by what the one decides and then the other, of a model of two classes: `[negative, positive]` each. Of one with several
    /// `[[same, 0], [other, 0]]`.
    decided: [[u64; 2]; 2],
    features: Vec<Feature>,
}

impl Comparison {
    /// Nothing yet. Scores are counted between the `edges` of the reference's package; without any, probabilities in ten equal bins
    /// and values between the deciles of the first thousand. Features as `reader`, the reference's, has them, between the bins
    /// of its `distributions`.
    pub fn new(
        reference: Side<'_>,
        other: Side<'_>,
        edges: &[f64],
        reader: &RowReader,
        distributions: &[FeatureReference],
    ) -> Self {
        let scores = match reference.decision.task {
            // Which class is the likeliest differs by row, and the reference says nothing of that.
            Task::Multiclass { .. } => Bins::tenths(),
            Task::Binary if edges.is_empty() => Bins::tenths(),
            Task::Regression if edges.is_empty() => Bins::Gathering(Vec::new()),
            Task::Binary | Task::Regression => Bins::between(edges),
        };
        let classes = |task| match task {
            Task::Binary => 2,
            Task::Multiclass { classes } => classes,
            Task::Regression => 0,
        };
        let (task, count) = (reference.decision.task, classes(reference.decision.task));
        let place = |label: &String| other.labels.iter().position(|found| found == label);
        let are_labelled = [&reference, &other].iter().all(|side| side.labels.len() == count && count > 0);
        let classes: Option<Vec<usize>> = match task == other.decision.task {
            false => None,
            // Other labels mean something else, whatever stands in their place.
            true if are_labelled => reference.labels.iter().map(place).collect(),
            true => Some((0..count).collect()),
        };
        let is_comparable = classes.is_some();
        let features = reader.features().map(|field| {
            let distribution = distributions.iter().find(|found| found.name == field.name);
            Feature::new(field, distribution.map(|found| &found.distribution))
        });
        Self {
            decisions: [reference.decision, other.decision],
            classes: classes.unwrap_or_default(),
            is_comparable,
            scores,
            moments: Moments::default(),
            decided: [[0; 2]; 2],
            features: features.collect(),
        }
    }

    /// Counts a row: number `row` of `rows`, which the reader of the reference has read, and the numbers that the two versions have
    /// answered. Two versions of different tasks or labels cannot be compared, and then nothing is counted.
    pub fn add(&mut self, rows: &FeatureRows, row: usize, reference: &[f64], other: &[f64]) {
        if !self.is_comparable {
            return;
        }
        let [first, second] = self.decisions;
        let (one, two) = match first.task {
            Task::Multiclass { .. } => {
                let likeliest = first.of(reference);
                let agrees = self.classes[likeliest] == second.of(other);
                self.decided[usize::from(!agrees)][0] += 1;
                (reference[likeliest], other[self.classes[likeliest]])
            }
            Task::Binary => {
                let is_swapped = self.classes[0] == 1;
                self.decided[first.of(reference)][self.classes[second.of(other)]] += 1;
                (reference[0], if is_swapped { 1.0 - other[0] } else { other[0] })
            }
            Task::Regression => (reference[0], other[0]),
        };
        self.scores.add(one, 0, 0.0);
        self.scores.add(two, 1, 0.0);
        self.moments.add(one, two);
        let from = rows.missing.partition_point(|(found, _)| (*found as usize) < row);
        let missing = rows.missing[from..].iter().take_while(|(found, _)| *found as usize == row);
        for (at, (feature, column)) in self.features.iter_mut().zip(&rows.columns).enumerate() {
            // Whatever has taken its place says nothing.
            let is_missing = missing.clone().any(|(_, feature)| *feature as usize == at);
            feature.add((!is_missing).then_some(column), row, two - one);
        }
    }

    /// Whether the two have the same task, and the same labels in whatever order.
    pub fn is_comparable(&self) -> bool {
        self.is_comparable
    }

    /// How many rows were counted.
    pub fn rows(&self) -> u64 {
        self.moments.rows
    }

    /// The population stability index of the other's scores against the reference's: `Σ (q - p) ln(q / p)` over the bins, where
    /// half a row is added to each bin, so that an empty one is no infinite difference. Nothing before there are rows.
    pub fn psi(&self) -> Option<f64> {
        let frozen = self.scores.frozen();
        let total = |side: usize| frozen.iter().map(|bin| bin.rows[side]).sum::<u64>() as f64;
        let (totals, bins) = ([total(0), total(1)], frozen.len() as f64);
        (self.moments.rows > 0).then(|| {
            let share = |bin: &Bin, side: usize| (bin.rows[side] as f64 + 0.5) / (totals[side] + 0.5 * bins);
            let part = |bin: &Bin| (share(bin, 1) - share(bin, 0)) * (share(bin, 1) / share(bin, 0)).ln();
            frozen.iter().map(part).sum()
        })
    }

    /// Rows of which the two decide otherwise; none of a regression.
    pub fn flips(&self) -> Option<u64> {
        match self.decisions[0].task {
            Task::Binary => Some(self.decided[0][1] + self.decided[1][0]),
            Task::Multiclass { .. } => Some(self.decided[1][0]),
            Task::Regression => None,
        }
        .filter(|_| self.is_comparable)
    }

    /// All of it in numbers.
    pub fn summary(&self) -> Summary {
        let rows = self.moments.rows;
        let per_row = |sum: f64| (rows > 0).then(|| sum / rows as f64);
        let is_binary = self.decisions[0].task == Task::Binary;
        let flips = self.flips().map(|flipped| Flips {
            rows: flipped,
            share: per_row(flipped as f64),
            to_positive: is_binary.then_some(self.decided[0][1]),
            to_negative: is_binary.then_some(self.decided[1][0]),
        });
        let told = self.features.iter().filter_map(|feature| feature.divergence(&self.moments.differences));
        let mut features: Vec<Divergence> = told.collect();
        features.sort_by(|one, two| two.share.total_cmp(&one.share).then_with(|| one.name.cmp(&two.name)));
        features.truncate(TOLD);
        Summary {
            comparable: self.is_comparable,
            rows,
            psi: self.psi(),
            correlation: self.moments.correlation(),
            mean_difference: (rows > 0).then_some(self.moments.differences.mean),
            mean_absolute_difference: per_row(self.moments.absolute),
            largest_difference: (rows > 0).then_some(self.moments.largest),
            flips,
            features,
        }
    }
}

/// The numbers of a [`Comparison`]; those that do not exist yet are none.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Whether the two have the same task, and the same labels in whatever order: otherwise nothing is counted.
    pub comparable: bool,
    /// Rows that both have scored.
    pub rows: u64,
    /// See [`Comparison::psi`].
    pub psi: Option<f64>,
    /// Pearson's correlation of the two scores; none as long as one of them is constant.
    pub correlation: Option<f64>,
    /// By how much the other's scores are larger, on average.
    pub mean_difference: Option<f64>,
    /// How far the scores of a row are apart, on average.
    pub mean_absolute_difference: Option<f64>,
    /// How far they are apart at the most.
    pub largest_difference: Option<f64>,
    /// Rows of which the two decide otherwise, each at its own threshold; none of a regression.
    pub flips: Option<Flips>,
    /// The features that tell best where the scores differ, the first of them first.
    pub features: Vec<Divergence>,
}

/// Rows of which two versions decide otherwise.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Flips {
    /// How many.
    pub rows: u64,
    /// Of all rows.
    pub share: Option<f64>,
    /// Those that the other labels positive; of two classes alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to_positive: Option<u64>,
    /// Those that the other labels negative; of two classes alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to_negative: Option<u64>,
}

/// How much a feature tells of where scores differ.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Divergence {
    /// The feature's name.
    pub name: String,
    /// The share of the variance of the difference that lies between the feature's bins (the correlation ratio η²).
    pub share: f64,
    /// The bin in which the scores are furthest apart on average.
    pub worst: Worst,
}

/// A bin of a feature.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Worst {
    /// What is in it.
    pub values: Which,
    /// Rows in it.
    pub rows: u64,
    /// By how much the other's scores are larger there, on average.
    pub mean_difference: f64,
}

/// Which values a bin of a feature holds. A value is told only where the schema lists it and it is no personal data.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Which {
    /// Numbers between two deciles of the reference.
    Bin {
        /// Which of them, from 1, the lowest.
        number: usize,
        /// How many there are.
        of: usize,
    },
    /// A category that the schema lists.
    Category(String),
    /// Categories of which no name may be told.
    Other,
    /// There is no value.
    Missing,
}

/// Welford's way to means, variances and the covariance, which loses no digits to large numbers.
#[derive(Debug, Default, Clone, Copy)]
struct Moments {
    rows: u64,
    means: [f64; 2],
    squares: [f64; 2],
    products: f64,
    absolute: f64,
    largest: f64,
    differences: Differences,
}

/// How the second of two scores differs from the first.
#[derive(Debug, Default, Clone, Copy)]
struct Differences {
    mean: f64,
    /// The sum of the squares of what the differences are from their mean.
    squares: f64,
}

impl Moments {
    fn add(&mut self, one: f64, two: f64) {
        self.rows += 1;
        let rows = self.rows as f64;
        let before = [one - self.means[0], two - self.means[1]];
        self.means[0] += before[0] / rows;
        self.means[1] += before[1] / rows;
        let after = [one - self.means[0], two - self.means[1]];
        self.squares[0] += before[0] * after[0];
        self.squares[1] += before[1] * after[1];
        self.products += before[0] * after[1];
        let apart = (two - one).abs();
        self.absolute += apart;
        self.largest = self.largest.max(apart);
        let difference = two - one;
        let before = difference - self.differences.mean;
        self.differences.mean += before / rows;
        self.differences.squares += before * (difference - self.differences.mean);
    }

    fn correlation(&self) -> Option<f64> {
        let deviations = (self.squares[0] * self.squares[1]).sqrt();
        (deviations > 0.0).then(|| (self.products / deviations).clamp(-1.0, 1.0))
    }
}

/// What fell between two edges.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
struct Bin {
    /// Rows, of scores by whose they are.
    rows: [u64; 2],
    /// The sum of what was weighed.
    sum: f64,
}

impl Bin {
    fn add(&mut self, side: usize, weight: f64) {
        self.rows[side] += 1;
        self.sum += weight;
    }
}

/// Numbers between edges that are frozen, or will be on those that come first.
#[derive(Debug)]
enum Bins {
    Frozen { edges: Vec<f64>, bins: Vec<Bin> },
    Gathering(Vec<(f64, usize, f64)>),
}

impl Bins {
    fn between(edges: &[f64]) -> Self {
        Self::Frozen { edges: edges.into(), bins: vec![Bin::default(); edges.len() + 1] }
    }

    fn tenths() -> Self {
        Self::between(&[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
    }

    fn add(&mut self, number: f64, side: usize, weight: f64) {
        match self {
            Self::Frozen { edges, bins } => {
                bins[edges.partition_point(|edge| *edge < number)].add(side, weight);
            }
            Self::Gathering(gathered) => {
                gathered.push((number, side, weight));
                // Those of the other side are not what bins are frozen on.
                if gathered.len() >= FIRST {
                    *self = Self::freeze(gathered);
                }
            }
        }
    }

    fn freeze(gathered: &[(f64, usize, f64)]) -> Self {
        let own = gathered.iter().filter(|(_, side, _)| *side == 0).map(|(number, ..)| *number);
        let mut frozen = Self::between(&Histogram::freeze(own).edges);
        for (number, side, weight) in gathered {
            frozen.add(*number, *side, *weight);
        }
        frozen
    }

    /// The bins, as they would be if they were frozen now.
    fn frozen(&self) -> Vec<Bin> {
        match self {
            Self::Frozen { bins, .. } => bins.clone(),
            Self::Gathering(gathered) => Self::freeze(gathered).frozen(),
        }
    }
}

/// Where a feature is looked at.
#[derive(Debug)]
struct Feature {
    name: String,
    values: Values,
    missing: Bin,
}

#[derive(Debug)]
enum Values {
    Number(Bins),
    Category {
        /// Those that the schema lists, and whether their names may be told.
        listed: Vec<String>,
        is_told: bool,
        /// Those that only the reference knows, by name.
        others: FxHashMap<Box<str>, usize>,
        /// By place in the lists above; the last one is whatever else there is.
        bins: Vec<Bin>,
    },
}

impl Feature {
    fn new(field: &Field, distribution: Option<&Distribution>) -> Self {
        let values = match (&field.kind, distribution) {
            (Kind::Category { values }, distribution) => {
                let listed = values.clone().unwrap_or_default();
                let mut others = FxHashMap::default();
                if let Some(Distribution::Categorical(categories)) = distribution {
                    for name in categories.counts.keys().filter(|name| !listed.contains(name)) {
                        others.insert(name.as_str().into(), listed.len() + others.len());
                    }
                }
                let bins = vec![Bin::default(); listed.len() + others.len() + 1];
                Values::Category { listed, is_told: !field.pii, others, bins }
            }
            (Kind::Boolean, _) => Values::Number(Bins::between(&[0.5])),
            (_, Some(Distribution::Numeric(histogram))) => Values::Number(Bins::between(&histogram.edges)),
            _ => Values::Number(Bins::Gathering(Vec::new())),
        };
        Self { name: field.name.clone(), values, missing: Bin::default() }
    }

    /// Counts row `row` of `column`; none is a value that is missing.
    fn add(&mut self, column: Option<&Column>, row: usize, difference: f64) {
        match (&mut self.values, column) {
            (Values::Number(bins), Some(Column::Number(values))) => bins.add(values[row], 0, difference),
            (Values::Category { listed, others, bins, .. }, Some(Column::Category(column))) => {
                let last = bins.len() - 1;
                let at = match column.other(row, listed.len()) {
                    None => column.codes[row] as usize,
                    Some(other) => others.get(other).copied().unwrap_or(last),
                };
                bins[at].add(0, difference);
            }
            _ => self.missing.add(0, difference),
        }
    }

    /// How much it tells, and where most; nothing as long as there is no difference, or one bin alone.
    fn divergence(&self, moments: &Differences) -> Option<Divergence> {
        let bins = match &self.values {
            Values::Number(bins) => bins.frozen(),
            Values::Category { bins, .. } => bins.clone(),
        };
        let numbers = bins.len();
        let which = |at: usize| match &self.values {
            _ if at == numbers => Which::Missing,
            Values::Number(_) => Which::Bin { number: at + 1, of: numbers },
            Values::Category { listed, is_told: true, .. } if at < listed.len() => {
                Which::Category(listed[at].clone())
            }
            Values::Category { .. } => Which::Other,
        };
        let filled = || bins.iter().chain([&self.missing]).enumerate().filter(|(_, bin)| bin.rows[0] > 0);
        let mean = |bin: &Bin| bin.sum / bin.rows[0] as f64;
        let between: f64 =
            filled().map(|(_, bin)| bin.rows[0] as f64 * (mean(bin) - moments.mean).powi(2)).sum();
        let (at, worst) =
            filled().max_by(|(_, one), (_, two)| mean(one).abs().total_cmp(&mean(two).abs()))?;
        (moments.squares > 0.0 && filled().count() > 1).then(|| Divergence {
            name: self.name.clone(),
            share: (between / moments.squares).clamp(0.0, 1.0),
            worst: Worst { values: which(at), rows: worst.rows[0], mean_difference: mean(worst) },
        })
    }
}

#[cfg(test)]
mod tests {
    use scoregate_schemas::FeatureSchema;
    use scoregate_schemas::manifest::Bindings;
    use serde_json::json;

    use super::*;
    use crate::reference::Observed;

    const TOLERANCE: f64 = 1e-12;

    fn reader() -> RowReader {
        let document = json!({"type": "object", "properties": {
            "age": {"type": "number", "x-scoregate": {"missing": {"impute": 40}}},
            "plan": {"type": "string", "enum": ["basic", "pro"], "x-scoregate": {"unknown": "pass"}},
            "name": {"type": "string", "enum": ["ann", "bob"], "x-scoregate": {"pii": true}}},
            "required": ["plan", "name"]});
        let schema = FeatureSchema::from_document(document).unwrap();
        RowReader::new(&schema, &Bindings::Columns { columns: Vec::new() })
    }

    fn decision(task: Task, threshold: f64) -> Decision {
        Decision { task, float32: false, threshold }
    }

    fn labels(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).into()).collect()
    }

    fn close(found: Option<f64>, expected: f64) {
        let found = found.unwrap();
        assert!((found - expected).abs() < TOLERANCE, "found {found}, expected {expected}");
    }

    #[test]
    fn scores_are_compared_as_scipy_does() {
        let reader = reader();
        let rows = reader
            .json_rows(
                br#"[{"age":1,"plan":"basic","name":"ann"},{"age":2,"plan":"pro","name":"bob"},
                     {"age":3,"plan":"basic","name":"ann"},{"plan":"gold","name":"bob"}]"#,
                9,
            )
            .unwrap()
            .rows;
        let labels = labels(&["stay", "go"]);
        let side = |threshold| Side { decision: decision(Task::Binary, threshold), labels: &labels };
        let ages = Observed::Numbers((1..=10).map(|age| Some(f64::from(age))).collect());
        let reference = [FeatureReference::freeze("age", &ages)];
        let mut found = Comparison::new(side(0.5), side(0.6), &[0.25, 0.5, 0.75], &reader, &reference);
        assert_eq!((found.psi(), found.summary().correlation), (None, None));
        let (one, two) = ([0.1, 0.4, 0.6, 0.9], [0.2, 0.7, 0.55, 0.95]);
        for (row, (one, two)) in one.iter().zip(&two).enumerate() {
            found.add(&rows, row, &[*one], &[*two]);
        }
        let summary = found.summary();
        // scipy.stats.pearsonr(one, two); numpy for the others.
        close(summary.correlation, 0.899_900_293_579_708_5);
        close(summary.mean_difference, 0.1);
        close(summary.mean_absolute_difference, 0.125);
        close(summary.largest_difference, 0.3);
        // Bins of one: 1 1 1 1, of two: 1 0 2 1, half a row added to each.
        let [p, q] = [[1.5; 4], [1.5, 0.5, 2.5, 1.5]].map(|counts| counts.map(|count: f64| count / 6.0));
        close(summary.psi, p.iter().zip(&q).map(|(p, q)| (q - p) * (q / p).ln()).sum());
        let flips = summary.flips.unwrap();
        assert_eq!((flips.rows, flips.to_positive, flips.to_negative), (2, Some(1), Some(1)));
        close(flips.share, 0.5);
        // Differences 0.1, 0.3, -0.05, 0.05: the age says all of them, the last by being missing.
        let told: Vec<&str> = summary.features.iter().map(|feature| feature.name.as_str()).collect();
        assert_eq!(told, ["age", "plan", "name"]);
        close(Some(summary.features[0].share), 1.0);
        let worst = &summary.features[0].worst;
        assert_eq!((&worst.values, worst.rows), (&Which::Bin { number: 2, of: 10 }, 1));
        assert_eq!(summary.features[1].worst.values, Which::Category("pro".into()));
        assert_eq!(summary.features[2].worst.values, Which::Other, "a person's name is not told");
    }

    #[test]
    fn equal_scores_do_not_differ() {
        let reader = reader();
        let rows = reader.json_rows(br#"[{"plan":"pro","name":"ann"}]"#, 9).unwrap().rows;
        let labels = labels(&["stay", "go"]);
        let side = Side { decision: decision(Task::Binary, 0.5), labels: &labels };
        let mut found = Comparison::new(side, side, &[], &reader, &[]);
        for at in 0..100 {
            found.add(&rows, 0, &[f64::from(at) / 100.0], &[f64::from(at) / 100.0]);
        }
        let summary = found.summary();
        close(summary.psi, 0.0);
        close(summary.correlation, 1.0);
        assert_eq!((summary.flips.unwrap().rows, summary.features.len()), (0, 0));
    }

    #[test]
    fn classes_are_compared_by_label() {
        let reader = reader();
        let rows = reader.json_rows(br#"[{"plan":"pro","name":"ann"}]"#, 9).unwrap().rows;
        let (one, two) = (labels(&["a", "b", "c"]), labels(&["c", "a", "b"]));
        let decision = decision(Task::Multiclass { classes: 3 }, 0.5);
        let side = |labels| Side { decision, labels };
        let mut found = Comparison::new(side(&one), side(&two), &[], &reader, &[]);
        found.add(&rows, 0, &[0.5, 0.3, 0.2], &[0.2, 0.5, 0.3]);
        found.add(&rows, 0, &[0.5, 0.3, 0.2], &[0.5, 0.2, 0.3]);
        let summary = found.summary();
        close(summary.largest_difference, 0.3);
        assert_eq!(summary.flips.unwrap().rows, 1);
        // Another class in the place of one is another class.
        let other = labels(&["a", "b", "d"]);
        let mut found = Comparison::new(side(&one), side(&other), &[], &reader, &[]);
        found.add(&rows, 0, &[0.5, 0.3, 0.2], &[0.5, 0.3, 0.2]);
        assert_eq!((found.rows(), found.is_comparable(), found.flips()), (0, false, None));
    }

    #[test]
    fn two_classes_are_compared_by_label_too() {
        let reader = reader();
        let rows = reader.json_rows(br#"[{"plan":"pro","name":"ann"}]"#, 9).unwrap().rows;
        let one = labels(&["stay", "go"]);
        let compare = |other: &[String], two: f64| {
            let side = |labels| Side { decision: decision(Task::Binary, 0.5), labels };
            let mut found = Comparison::new(side(&one), side(other), &[], &reader, &[]);
            found.add(&rows, 0, &[0.875], &[two]);
            let summary = found.summary();
            (summary.comparable, summary.largest_difference, summary.flips.map(|flips| flips.rows))
        };
        // The probability of staying, of a model that decides the same.
        assert_eq!(compare(&labels(&["go", "stay"]), 0.125), (true, Some(0.0), Some(0)));
        assert_eq!(compare(&labels(&["go", "stay"]), 0.875), (true, Some(0.75), Some(1)));
        assert_eq!(compare(&labels(&["stay", "leave"]), 0.875), (false, None, None));
        assert_eq!(compare(&[], 0.875), (true, Some(0.0), Some(0)));
    }

    #[test]
    fn values_are_counted_between_their_own_deciles() {
        let reader = reader();
        let rows = reader.json_rows(br#"[{"plan":"pro","name":"ann"}]"#, 9).unwrap().rows;
        let side = Side { decision: decision(Task::Regression, 0.5), labels: &[] };
        let mut found = Comparison::new(side, side, &[], &reader, &[]);
        let mut before = 0.0;
        for at in 0..3 * FIRST {
            let number = (at * 7919 % 1_000) as f64;
            found.add(&rows, 0, &[number], &[number * 1.5]);
            let psi = found.psi().unwrap();
            if at == FIRST / 2 || at == FIRST / 2 + 1 {
                assert!(
                    (psi - before).abs() < 0.01,
                    "nothing jumps when bins are frozen: {before} and {psi}"
                );
            }
            before = psi;
        }
        assert!(before > 0.2 && found.flips().is_none(), "{before}");
    }

    #[test]
    fn models_of_different_tasks_are_not_compared() {
        let reader = reader();
        let rows = reader.json_rows(br#"[{"plan":"pro","name":"ann"}]"#, 9).unwrap().rows;
        let labels = labels(&["a", "b"]);
        let side = |task| Side { decision: decision(task, 0.5), labels: &labels };
        let mut found = Comparison::new(side(Task::Binary), side(Task::Regression), &[], &reader, &[]);
        found.add(&rows, 0, &[0.5], &[100.0]);
        assert_eq!((found.rows(), found.flips(), found.psi()), (0, None, None));
    }

    #[test]
    fn a_label_agrees_with_the_number_that_is_written() {
        for (number, threshold, expected) in
            [(0.7_f32, 0.7, 1), (0.7_f32.next_down(), 0.7, 0), (0.3, 0.3, 1), (0.3_f32.next_down(), 0.3, 0)]
        {
            let decision = Decision { task: Task::Binary, float32: true, threshold };
            assert_eq!(decision.of(&[number.into()]), expected, "{number} and {threshold}");
        }
        let double = decision(Task::Binary, 0.7);
        assert_eq!((double.of(&[0.7]), double.of(&[f64::from(0.7_f32)])), (1, 0), "of double it is less");
    }
}
