//! `reference.json`: how features and scores were distributed where the model was trained, and a background for explanations.
//!
//! Bins are frozen here, on the reference alone, so that a later comparison cannot move them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::explain::importance::Importance;
use crate::random::Random;

/// The version of the file's own format; a reader refuses others.
pub const FORMAT: u32 = 1;

/// Rows of a background at most; a reference of no more rows is kept whole.
pub const BACKGROUND_ROWS: usize = 100;

/// Categories below this share of the rows that have a value are counted together as rare.
pub const RARE_SHARE: f64 = 0.01;

/// Frozen distributions of a model's reference rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reference {
    /// [`FORMAT`].
    pub format: u32,
    /// Number of reference rows.
    pub rows: u64,
    /// One entry per feature, in the schema's order.
    pub features: Vec<FeatureReference>,
    /// The model's probabilities of the positive class on the reference rows.
    pub score: Histogram,
    /// Raw feature rows as a client would send them, missing values as null: all reference rows where there are at most
    /// [`BACKGROUND_ROWS`], else that many drawn by seed without replacement, in the order of the data.
    pub background: Vec<Map<String, Value>>,
    /// Which features move the model's answers most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub importance: Option<Importance>,
    /// Of a model that is an ensemble of trees, how many reference rows take the true branch of each node, in the order of
    /// [`Ensemble::covers`](crate::explain::trees::Ensemble::covers). What is left of those that get to a node takes its false
    /// branch; all [`Reference::rows`] get to each root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub covers: Option<Vec<u64>>,
}

/// How one feature was distributed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FeatureReference {
    /// The feature's name.
    pub name: String,
    /// Rows without a value; they are in no bin, and no category counts them.
    pub missing: u64,
    /// The rows that have one.
    #[serde(flatten)]
    pub distribution: Distribution,
}

/// The distribution of the rows that have a value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Distribution {
    /// A number, a boolean (as 0 and 1) or an integer.
    Numeric(Histogram),
    /// A category.
    Categorical(Categories),
}

/// Counts between frozen decile edges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Histogram {
    /// At most nine different values, ascending: the deciles of the reference (nearest rank). Bin `i` holds
    /// `edges[i-1] < x <= edges[i]`; the first bin is open below, the last one above.
    pub edges: Vec<f64>,
    /// One count per bin, so one more than there are edges.
    pub counts: Vec<u64>,
    /// The least and the greatest value of the reference; none if it has no value, or in packages of before they were kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<[f64; 2]>,
}

/// Counts of categories.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Categories {
    /// Rows of each category of at least [`RARE_SHARE`], by name.
    pub counts: BTreeMap<String, u64>,
    /// The categories below that share, by name.
    pub rare: Vec<String>,
    /// Rows of all rare categories together.
    pub rare_count: u64,
}

/// One feature's values on the reference rows; `None` is missing.
#[derive(Debug, Clone)]
pub enum Observed<'a> {
    /// Numbers; booleans as 0 and 1.
    Numbers(Vec<Option<f64>>),
    /// Categories.
    Categories(Vec<Option<&'a str>>),
}

impl Histogram {
    /// Freezes the deciles of `values` and counts between them. NaN values are left out.
    ///
    /// Equal deciles are kept once. The greatest value is no edge, unless all values are equal: above it there is nothing
    /// to count in the reference.
    pub fn freeze(values: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.into_iter().filter(|value| !value.is_nan()).collect();
        sorted.sort_by(f64::total_cmp);
        let mut edges: Vec<f64> = Vec::new();
        if let (Some(least), Some(greatest)) = (sorted.first(), sorted.last()) {
            let deciles = (1..10_usize).map(|tenth| sorted[(sorted.len() * tenth).div_ceil(10).max(1) - 1]);
            edges.extend(deciles.filter(|edge| edge < greatest || least == greatest));
            edges.dedup();
        }
        let range =
            sorted.first().copied().zip(sorted.last().copied()).map(|(least, greatest)| [least, greatest]);
        let mut counts = vec![0; edges.len() + 1];
        for value in sorted {
            counts[edges.partition_point(|edge| *edge < value)] += 1;
        }
        Self { edges, counts, range }
    }

    /// The bin of `value`; NaN has none.
    pub fn bin(&self, value: f64) -> Option<usize> {
        (!value.is_nan()).then(|| self.edges.partition_point(|edge| *edge < value))
    }

    /// Rows in all bins.
    pub fn rows(&self) -> u64 {
        self.counts.iter().sum()
    }
}

impl Categories {
    /// Counts `values`, rare ones together.
    pub fn freeze<'a>(values: impl IntoIterator<Item = &'a str>) -> Self {
        let mut all: BTreeMap<String, u64> = BTreeMap::new();
        for value in values {
            match all.get_mut(value) {
                Some(count) => *count += 1,
                None => drop(all.insert(value.into(), 1)),
            }
        }
        let rows: u64 = all.values().sum();
        let (counts, rare): (BTreeMap<_, _>, BTreeMap<_, _>) =
            all.into_iter().partition(|(_, count)| *count as f64 >= RARE_SHARE * rows as f64);
        Self { counts, rare_count: rare.values().sum(), rare: rare.into_keys().collect() }
    }

    /// Rows of all categories.
    pub fn rows(&self) -> u64 {
        self.counts.values().sum::<u64>() + self.rare_count
    }
}

impl FeatureReference {
    /// Freezes the distribution of one feature.
    pub fn freeze(name: &str, observed: &Observed<'_>) -> Self {
        let (missing, distribution) = match observed {
            Observed::Numbers(values) => (
                values.iter().filter(|value| value.is_none()).count(),
                Distribution::Numeric(Histogram::freeze(values.iter().copied().flatten())),
            ),
            Observed::Categories(values) => (
                values.iter().filter(|value| value.is_none()).count(),
                Distribution::Categorical(Categories::freeze(values.iter().copied().flatten())),
            ),
        };
        Self { name: name.into(), missing: missing as u64, distribution }
    }

    /// Missing rows as a share of all rows; 0 if there are none.
    pub fn missing_share(&self) -> f64 {
        let present = match &self.distribution {
            Distribution::Numeric(histogram) => histogram.rows(),
            Distribution::Categorical(categories) => categories.rows(),
        };
        let rows = self.missing + present;
        if rows == 0 { 0.0 } else { self.missing as f64 / rows as f64 }
    }
}

/// Which of `rows` reference rows make the background: all, or [`BACKGROUND_ROWS`] drawn by `seed`; ascending.
pub fn background_rows(rows: usize, seed: u64) -> Vec<usize> {
    let mut drawn: Vec<usize> = (0..rows).collect();
    if rows > BACKGROUND_ROWS {
        Random::new(seed, "background").shuffle(&mut drawn);
        drawn.truncate(BACKGROUND_ROWS);
        drawn.sort_unstable();
    }
    drawn
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::{Method, Space};
    use proptest::prelude::*;

    #[test]
    fn deciles_of_one_to_hundred() {
        let histogram = Histogram::freeze((1..=100).map(f64::from));
        assert_eq!(histogram.edges, [10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0]);
        assert_eq!(histogram.counts, [10; 10]);
        assert_eq!(
            (histogram.bin(10.0), histogram.bin(10.5), histogram.bin(-5.0)),
            (Some(0), Some(1), Some(0))
        );
        assert_eq!((histogram.bin(1e9), histogram.bin(f64::NAN)), (Some(9), None));
    }

    #[test]
    fn equal_deciles_are_kept_once() {
        // 60 zeros, 30 ones, 10 twos: the deciles are 0 (six times) and 1 (three times).
        let values = [0.0; 60].into_iter().chain([1.0; 30]).chain([2.0; 10]);
        let histogram = Histogram::freeze(values);
        assert_eq!(
            (histogram.edges.as_slice(), histogram.counts.as_slice()),
            (&[0.0, 1.0][..], &[60, 30, 10][..])
        );
    }

    #[test]
    fn a_constant_and_an_empty_column_have_bins() {
        let constant = Histogram::freeze([5.0; 7]);
        assert_eq!((constant.edges.as_slice(), constant.counts.as_slice()), (&[5.0][..], &[7, 0][..]));
        let empty = Histogram::freeze([]);
        assert_eq!((empty.edges.len(), empty.counts.as_slice()), (0, &[0][..]));
    }

    #[test]
    fn rare_categories_are_counted_together() {
        let values = std::iter::repeat_n("US", 150).chain(std::iter::repeat_n("DE", 2)).chain(["FR", "GB"]);
        let categories = Categories::freeze(values);
        assert_eq!(categories.counts, BTreeMap::from([("DE".into(), 2), ("US".into(), 150)]));
        assert_eq!((categories.rare.as_slice(), categories.rare_count), (&["FR".into(), "GB".into()][..], 2));
    }

    #[test]
    fn the_file_format_is_pinned() {
        let feature = FeatureReference::freeze("x", &Observed::Numbers(vec![Some(1.0), None, Some(2.0)]));
        assert_eq!(
            serde_json::to_string(&feature).unwrap(),
            r#"{"name":"x","missing":1,"kind":"numeric","edges":[1.0],"counts":[1,1],"range":[1.0,2.0]}"#
        );
        let feature = FeatureReference::freeze("c", &Observed::Categories(vec![Some("a"), None]));
        let text =
            r#"{"name":"c","missing":1,"kind":"categorical","counts":{"a":1},"rare":[],"rare_count":0}"#;
        assert_eq!(serde_json::to_string(&feature).unwrap(), text);
        assert_eq!(serde_json::from_str::<FeatureReference>(text).unwrap(), feature);
        assert_eq!(feature.missing_share(), 0.5);
    }

    #[test]
    fn importance_and_covers_may_be_absent() {
        let older =
            r#"{"format":1,"rows":2,"features":[],"score":{"edges":[],"counts":[0]},"background":[]}"#;
        let mut reference: Reference = serde_json::from_str(older).unwrap();
        assert_eq!((&reference.importance, &reference.covers), (&None, &None));
        assert_eq!(serde_json::to_string(&reference).unwrap(), older, "what is absent is not written");
        reference.importance = Some(Importance {
            space: Space::Probability,
            method: Method::Exact,
            rows: 2,
            base_value: None,
            features: Vec::new(),
        });
        reference.covers = Some(vec![2, 0, 1]);
        let text = serde_json::to_string(&reference).unwrap();
        assert!(text.ends_with(r#","covers":[2,0,1]}"#), "{text}");
        assert_eq!(serde_json::from_str::<Reference>(&text).unwrap(), reference);
    }

    #[test]
    fn a_background_is_drawn_by_seed() {
        assert_eq!(background_rows(100, 1), (0..100).collect::<Vec<_>>());
        let drawn = background_rows(1000, 1);
        assert_eq!((drawn.len(), drawn.is_sorted()), (100, true));
        assert_eq!(drawn, background_rows(1000, 1));
        assert_ne!(drawn, background_rows(1000, 2));
    }

    proptest! {
        #[test]
        fn every_value_is_counted_in_its_bin(values in prop::collection::vec(-1e6_f64..1e6, 0..200)) {
            let histogram = Histogram::freeze(values.iter().copied());
            let mut counts = vec![0_u64; histogram.edges.len() + 1];
            for value in &values {
                counts[histogram.bin(*value).unwrap()] += 1;
            }
            prop_assert_eq!(&histogram.counts, &counts);
            prop_assert!(histogram.edges.windows(2).all(|pair| pair[0] < pair[1]));
            prop_assert_eq!(histogram.rows(), values.len() as u64);
        }
    }
}
