//! Rows held against what the model was trained on: which values are missing, unseen, rare or out of range. Values are counted,
//! never kept.

use std::ops::Range;

use rustc_hash::FxHashMap;
use scoregate_schemas::feature_schema::Kind;

use crate::features::{Column, FeatureRows, RowReader};
use crate::reference::{Distribution, FeatureReference};

/// What is known of each feature of a model, for counting what is unusual.
#[derive(Debug, Clone)]
pub struct Watch {
    features: Vec<Known>,
}

/// What is known of one feature.
#[derive(Debug, Clone)]
enum Known {
    /// The least and the greatest value of the reference; everything where it does not say.
    Number { least: f64, greatest: f64 },
    /// A category of which every value may be.
    Any,
    Category {
        /// By code, whether the values that the schema lists are rare.
        listed: Vec<bool>,
        /// Whether the others of the reference are rare, by name.
        others: FxHashMap<Box<str>, bool>,
    },
}

/// What is unusual about the values of one feature, or of all of them, in numbers of values.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Findings {
    /// Values that were not there, whatever took their place.
    pub missing: u64,
    /// Categories that neither the schema nor the reference knows.
    pub unseen: u64,
    /// Categories below [`RARE_SHARE`](crate::reference::RARE_SHARE) of the reference.
    pub rare: u64,
    /// Numbers below the least or above the greatest of the reference.
    pub out_of_range: u64,
}

impl Findings {
    /// What they are called, in the order of [`Findings::counts`].
    pub const NAMES: [&'static str; 4] = ["missing", "unseen", "rare", "out_of_range"];

    /// Each of them.
    pub fn counts(self) -> [u64; 4] {
        [self.missing, self.unseen, self.rare, self.out_of_range]
    }
}

impl std::ops::AddAssign for Findings {
    fn add_assign(&mut self, other: Self) {
        self.missing += other.missing;
        self.unseen += other.unseen;
        self.rare += other.rare;
        self.out_of_range += other.out_of_range;
    }
}

impl Watch {
    /// For rows that `reader` reads; `reference` may leave features out, or all of them.
    pub fn new(reader: &RowReader, reference: &[FeatureReference]) -> Self {
        let features = reader.features().map(|field| {
            let found = reference.iter().find(|feature| feature.name == field.name);
            let distribution = found.map(|feature| &feature.distribution);
            match &field.kind {
                Kind::Category { values: None } if distribution.is_none() => Known::Any,
                Kind::Category { values } => {
                    let (mut others, mut listed) = (FxHashMap::default(), Vec::new());
                    if let Some(Distribution::Categorical(categories)) = distribution {
                        others.extend(categories.counts.keys().map(|name| (name.as_str().into(), false)));
                        others.extend(categories.rare.iter().map(|name| (name.as_str().into(), true)));
                    }
                    for value in values.iter().flatten() {
                        listed.push(others.remove(value.as_str()).unwrap_or(false));
                    }
                    Known::Category { listed, others }
                }
                _ => {
                    let range = match distribution {
                        Some(Distribution::Numeric(histogram)) => histogram.range,
                        _ => None,
                    };
                    let [least, greatest] = range.unwrap_or([f64::NEG_INFINITY, f64::INFINITY]);
                    Known::Number { least, greatest }
                }
            }
        });
        Self { features: features.collect() }
    }

    /// Looks at some of the `rows`, and tells of each feature about which there is something to tell.
    ///
    /// # Panics
    /// If there are no such rows, or they were read by another reader.
    pub fn look(&self, rows: &FeatureRows, some: Range<usize>, mut tell: impl FnMut(usize, Findings)) {
        // By row, ascending. Most rows miss nothing, and then this takes no memory.
        let from = rows.missing.partition_point(|(row, _)| (*row as usize) < some.start);
        let mut missing: Vec<Vec<usize>> = Vec::new();
        for (row, feature) in rows.missing[from..].iter().take_while(|(row, _)| (*row as usize) < some.end) {
            missing.resize(self.features.len(), Vec::new());
            missing[*feature as usize].push(*row as usize);
        }
        for (at, (known, column)) in self.features.iter().zip(&rows.columns).enumerate() {
            let missing = missing.get(at).map_or(&[][..], Vec::as_slice);
            let mut found = Findings { missing: missing.len() as u64, ..Findings::default() };
            // What takes the place of a value that is missing is counted with the others, and then taken off.
            match (known, column) {
                (Known::Number { least, greatest }, Column::Number(values)) => {
                    // Nothing may take its place, which is NaN and neither less nor greater.
                    let is_out = |value: &&f64| **value < *least || **value > *greatest;
                    let all = values[some.clone()].iter().filter(is_out).count();
                    let instead = missing.iter().map(|row| &values[*row]).filter(is_out).count();
                    found.out_of_range = (all - instead) as u64;
                }
                (Known::Category { listed, others }, Column::Category(column)) => {
                    let is_rare = |row: usize| match column.other(row, listed.len()) {
                        None => Some(listed[column.codes[row] as usize]),
                        Some(other) => others.get(other).copied(),
                    };
                    for row in some.clone() {
                        match is_rare(row) {
                            Some(is_rare) => found.rare += u64::from(is_rare),
                            None => found.unseen += 1,
                        }
                    }
                    for row in missing {
                        match is_rare(*row) {
                            Some(is_rare) => found.rare -= u64::from(is_rare),
                            None => found.unseen -= 1,
                        }
                    }
                }
                _ => {}
            }
            if found != Findings::default() {
                tell(at, found);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use scoregate_schemas::FeatureSchema;
    use scoregate_schemas::manifest::Bindings;
    use serde_json::json;

    use super::*;
    use crate::reference::Observed;

    fn schema() -> FeatureSchema {
        let document = json!({"type": "object", "properties": {
            "age": {"type": "number", "x-scoregate": {"missing": {"impute": 40}}},
            "plan": {"type": "string", "enum": ["basic", "pro"], "x-scoregate": {"unknown": "pass"}},
            "country": {"type": "string", "x-scoregate": {"missing": "pass"}}},
            "required": ["plan"]});
        FeatureSchema::from_document(document).unwrap()
    }

    fn reader() -> RowReader {
        RowReader::new(&schema(), &Bindings::Columns { columns: Vec::new() })
    }

    fn told(watch: &Watch, rows: &FeatureRows, some: Range<usize>) -> Vec<(usize, [u64; 4])> {
        let mut told = Vec::new();
        watch.look(rows, some, |feature, findings| told.push((feature, findings.counts())));
        told
    }

    #[test]
    fn what_is_unusual_is_counted_by_feature() {
        let reader = reader();
        let countries: Vec<Option<&str>> = std::iter::repeat_n(Some("US"), 199).chain([Some("LI")]).collect();
        let reference = [
            FeatureReference::freeze("age", &Observed::Numbers(vec![Some(18.0), Some(90.0), None])),
            FeatureReference::freeze("plan", &Observed::Categories(vec![Some("pro"); 3])),
            FeatureReference::freeze("country", &Observed::Categories(countries)),
        ];
        let watch = Watch::new(&reader, &reference);
        let body = br#"[{"age":18,"plan":"pro","country":"US"},{"age":17.9,"plan":"basic","country":"LI"},
            {"plan":"gold","country":"XX"},{"age":null,"plan":"pro"},{"age":91,"plan":"silver","country":null}]"#;
        let rows = reader.json_rows(body, 100).unwrap().rows;
        assert_eq!(rows.missing, [(2, 0), (3, 0), (3, 2), (4, 2)]);
        assert_eq!(told(&watch, &rows, 0..1), []);
        assert_eq!(told(&watch, &rows, 1..2), [(0, [0, 0, 0, 1]), (2, [0, 0, 1, 0])]);
        assert_eq!(told(&watch, &rows, 3..4), [(0, [1, 0, 0, 0]), (2, [1, 0, 0, 0])]);
        let all = [(0, [2, 0, 0, 2]), (1, [0, 2, 0, 0]), (2, [2, 1, 1, 0])];
        assert_eq!(told(&watch, &rows, 0..5), all);
        // Without a reference the schema alone says what is known.
        let watch = Watch::new(&reader, &[]);
        assert_eq!(told(&watch, &rows, 0..3), [(0, [1, 0, 0, 0]), (1, [0, 1, 0, 0])]);
    }

    #[test]
    fn what_takes_the_place_of_a_missing_value_is_not_unusual() {
        let document = json!({"type": "object", "properties": {
            "visits": {"type": "number", "x-scoregate": {"missing": {"impute": -1}}},
            "plan": {"type": "string", "enum": ["basic", "none"], "x-scoregate": {"missing": {"impute": "none"}}},
            "country": {"type": "string", "x-scoregate": {"missing": {"impute": "nowhere"}}}}});
        let schema = FeatureSchema::from_document(document).unwrap();
        let reader = RowReader::new(&schema, &Bindings::Columns { columns: Vec::new() });
        let plans = std::iter::repeat_n(Some("basic"), 199).chain([Some("none")]).collect();
        let reference = [
            FeatureReference::freeze("visits", &Observed::Numbers(vec![Some(0.0), Some(1.0)])),
            FeatureReference::freeze("plan", &Observed::Categories(plans)),
            FeatureReference::freeze("country", &Observed::Categories(vec![Some("US"); 3])),
        ];
        let watch = Watch::new(&reader, &reference);
        let rows = reader
            .json_rows(
                br#"[{},{"visits":-1,"plan":"none","country":"nowhere"},{"visits":null,"plan":"none"}]"#,
                9,
            )
            .unwrap()
            .rows;
        let all = [(0, [2, 0, 0, 1]), (1, [1, 0, 2, 0]), (2, [2, 1, 0, 0])];
        assert_eq!(told(&watch, &rows, 0..3), all);
        assert_eq!(told(&watch, &rows, 0..1), [0, 1, 2].map(|feature| (feature, [1, 0, 0, 0])));
        assert_eq!(told(&watch, &rows, 1..2), [(0, [0, 0, 0, 1]), (1, [0, 0, 1, 0]), (2, [0, 1, 0, 0])]);
    }

    #[test]
    fn rows_that_are_refused_leave_nothing_missing() {
        let reader = reader();
        let body = b"age,plan,country\n,pro,US\n,7777,\nx,pro,\n1,pro,\n";
        let rows = reader.csv_rows(body, 100).unwrap();
        assert_eq!((rows.len(), rows.missing.as_slice()), (3, &[(0, 0), (1, 0), (1, 2), (2, 2)][..]));
        let mut one = reader.empty(1);
        assert!(reader.json_row(br#"{"plan":"pro"} x"#, &mut one).is_err());
        assert_eq!(one.missing, []);
    }
}
