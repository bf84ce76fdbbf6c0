//! Columns → the design matrix: standard scaling of numbers, one-hot encoding of categories.
//!
//! Both follow scikit-learn's `StandardScaler` and `OneHotEncoder(handle_unknown="ignore")`, so that coefficients compare.

use std::collections::{BTreeSet, HashMap};

use ndarray::Array2;
use scoregate_schemas::feature_schema::Kind;

use crate::data::{Feature, Table, Values};

/// Columns of a design matrix at most. A dense matrix of more is no longer a small model's.
pub const MOST_COLUMNS: usize = 2_000;

/// What the encoding learned from the training fold, one entry per feature in the schema's order.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoding {
    /// How each feature is encoded.
    pub encoders: Vec<Encoder>,
}

/// How one feature is encoded.
#[derive(Debug, Clone, PartialEq)]
pub enum Encoder {
    /// `(x − mean) / scale`: one column.
    Standard {
        /// The training fold's mean.
        mean: f64,
        /// Its standard deviation, dividing by the number of rows; 1 for a constant column.
        scale: f64,
    },
    /// One column per category, 1 where the value is that category. An unknown category is 0 in all of them.
    OneHot {
        /// The schema's categories in its order, or those of the training fold, sorted by their bytes.
        categories: Vec<String>,
    },
}

/// Why the training fold cannot be encoded.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// Too many categories.
    #[error(
        "the features make {columns} columns, expected at most {MOST_COLUMNS}; {feature} alone has {categories} categories: \
         is it an identifier? (\"role\": \"ignore\" or \"entity\" leaves it out)"
    )]
    TooWide {
        /// Columns in all.
        columns: usize,
        /// The feature with the most categories.
        feature: String,
        /// How many it has.
        categories: usize,
    },
    /// A category column of the training fold has no value at all.
    #[error("{feature} has no value in any training row")]
    NoCategories {
        /// The feature.
        feature: String,
    },
}

impl Encoding {
    /// Learns scaling and categories from `rows` of `table`.
    ///
    /// # Errors
    /// [`Error`] if the matrix would be too wide, or a category column is empty throughout.
    pub fn learn(table: &Table, rows: &[usize]) -> Result<Self, Error> {
        let encoders: Vec<Encoder> =
            table.features.iter().map(|feature| Encoder::learn(feature, rows)).collect::<Result<_, _>>()?;
        let encoding = Self { encoders };
        let columns = encoding.columns();
        if columns > MOST_COLUMNS {
            let widest = encoding.encoders.iter().enumerate().max_by_key(|(_, encoder)| encoder.columns());
            let (at, categories) = widest.map_or((0, 0), |(at, encoder)| (at, encoder.columns()));
            return Err(Error::TooWide {
                columns,
                feature: table.features[at].field.name.clone(),
                categories,
            });
        }
        Ok(encoding)
    }

    /// Columns of the design matrix.
    pub fn columns(&self) -> usize {
        self.encoders.iter().map(Encoder::columns).sum()
    }

    /// A name for each column of the design matrix: the feature's, or `feature=category`.
    pub fn column_names(&self, table: &Table) -> Vec<String> {
        let names = std::iter::zip(&table.features, &self.encoders).map(|(feature, encoder)| match encoder {
            Encoder::Standard { .. } => vec![feature.field.name.clone()],
            Encoder::OneHot { categories } => {
                categories.iter().map(|category| format!("{}={category}", feature.field.name)).collect()
            }
        });
        names.flatten().collect()
    }

    /// The design matrix of `rows`: shape (rows, [`Self::columns`]).
    pub fn transform(&self, table: &Table, rows: &[usize]) -> Array2<f64> {
        let mut matrix = Array2::zeros((rows.len(), self.columns()));
        let mut at = 0;
        for (feature, encoder) in std::iter::zip(&table.features, &self.encoders) {
            match (encoder, &feature.values) {
                (Encoder::Standard { mean, scale }, Values::Numbers(numbers)) => {
                    for (to, &row) in rows.iter().enumerate() {
                        matrix[(to, at)] = (numbers[row] - mean) / scale;
                    }
                }
                (Encoder::OneHot { categories }, Values::Categories { names, codes }) => {
                    let places = places(categories, names);
                    for (to, &row) in rows.iter().enumerate() {
                        if let Some(place) = places[codes[row] as usize] {
                            matrix[(to, at + place)] = 1.0;
                        }
                    }
                }
                // A feature keeps its kind, so that its encoder always fits it.
                (Encoder::Standard { .. }, Values::Categories { .. })
                | (Encoder::OneHot { .. }, Values::Numbers(_)) => {}
            }
            at += encoder.columns();
        }
        matrix
    }
}

/// For each of a column's `names` its place among `categories`.
pub fn places(categories: &[String], names: &[String]) -> Vec<Option<usize>> {
    let known: HashMap<&str, usize> =
        categories.iter().enumerate().map(|(at, name)| (name.as_str(), at)).collect();
    names.iter().map(|name| known.get(name.as_str()).copied()).collect()
}

impl Encoder {
    fn learn(feature: &Feature, rows: &[usize]) -> Result<Self, Error> {
        match (&feature.values, &feature.field.kind) {
            (Values::Numbers(numbers), _) => Ok(Self::standard(rows.iter().map(|&row| numbers[row]))),
            (Values::Categories { .. }, Kind::Category { values: Some(values) }) => {
                Ok(Self::OneHot { categories: values.clone() })
            }
            (Values::Categories { names, codes }, _) => {
                // A missing value that the schema passes on is the empty text: unknown, and no category of its own.
                let met: BTreeSet<&str> = rows
                    .iter()
                    .map(|&row| names[codes[row] as usize].as_str())
                    .filter(|name| !name.is_empty())
                    .collect();
                if met.is_empty() {
                    return Err(Error::NoCategories { feature: feature.field.name.clone() });
                }
                Ok(Self::OneHot { categories: met.into_iter().map(str::to_owned).collect() })
            }
        }
    }

    /// Mean and standard deviation in two passes. Whether a column is constant is decided as scikit-learn does: a variance
    /// that rounding alone explains counts as none.
    fn standard(values: impl Iterator<Item = f64> + Clone) -> Self {
        let count = values.clone().count() as f64;
        let mean = values.clone().sum::<f64>() / count;
        let variance = values.map(|value| (value - mean).powi(2)).sum::<f64>() / count;
        let rounding = count * f64::EPSILON * variance + (count * mean * f64::EPSILON).powi(2);
        Self::Standard { mean, scale: if variance <= rounding { 1.0 } else { variance.sqrt() } }
    }

    /// Columns that this feature takes in the design matrix.
    pub fn columns(&self) -> usize {
        match self {
            Self::Standard { .. } => 1,
            Self::OneHot { categories } => categories.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use scoregate_schemas::FeatureSchema;
    use serde_json::json;

    fn table(text: &str) -> Table {
        let schema = FeatureSchema::from_document(json!({
            "properties": {
                "x": {"type": "number"},
                "plan": {"type": "string", "enum": ["basic", "pro"], "x-scoregate": {"unknown": "pass"}},
                "country": {"type": "string"},
                "active": {"type": "boolean"}
            },
            "x-scoregate": {"target": "y"}
        }));
        Table::parse(text.as_bytes(), &schema.unwrap()).unwrap()
    }

    const TEXT: &str =
        "x,plan,country,active,y\n3,pro,US,true,0\n5,basic,DE,false,1\n10,gold,US,true,0\n99,pro,FR,true,1\n";

    /// Mean and deviation of 3, 5, 10: scikit-learn 1.9.1's `StandardScaler` gives 6 and 2.94392029.
    #[test]
    fn learns_from_the_training_rows_alone() {
        let table = table(TEXT);
        let encoding = Encoding::learn(&table, &[0, 1, 2]).unwrap();
        let Encoder::Standard { mean, scale } = encoding.encoders[0] else { panic!() };
        assert!(
            (mean - 6.0).abs() < 1e-15 && (scale - 2.943_920_288_775_949).abs() < 1e-12,
            "{mean} {scale}"
        );
        assert_eq!(
            encoding.column_names(&table),
            ["x", "plan=basic", "plan=pro", "country=DE", "country=US", "active"]
        );
        let matrix = encoding.transform(&table, &[2, 3]);
        // "gold" is not listed and "FR" is not in the training rows: unknown, so zero in every column.
        assert_eq!(matrix.row(0).to_vec()[1..5], [0.0, 0.0, 0.0, 1.0]);
        assert_eq!(matrix.row(1).to_vec()[1..5], [0.0, 1.0, 0.0, 0.0]);
    }

    /// scikit-learn 1.9.1's `StandardScaler` gives a constant column of 1e9 + 0.1 the scale 1.
    #[test]
    fn a_constant_column_scales_by_one() {
        let standard = Encoder::standard([1e9 + 0.1; 3].into_iter());
        assert_eq!(standard, Encoder::Standard { mean: 1e9 + 0.1, scale: 1.0 });
        let tenths = Encoder::standard([0.1; 7].into_iter());
        assert!(matches!(tenths, Encoder::Standard { scale: 1.0, .. }), "{tenths:?}");
    }

    #[test]
    fn an_identifier_is_not_a_category() {
        let rows: String = (0..MOST_COLUMNS).map(|row| format!("1,pro,c{row},true,{}\n", row % 2)).collect();
        let table = table(&format!("x,plan,country,active,y\n{rows}"));
        let all: Vec<usize> = (0..table.rows()).collect();
        let refused = Encoding::learn(&table, &all).unwrap_err();
        assert_eq!(
            refused,
            Error::TooWide { columns: MOST_COLUMNS + 4, feature: "country".into(), categories: MOST_COLUMNS }
        );
    }
}
