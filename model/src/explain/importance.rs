//! Which features move a model's answers most: the mean size of their values over many rows.

use serde::{Deserialize, Serialize};

use super::explanation::{Explanation, Method, Space};

/// How much each feature moves a model's answers, over the rows that were explained.
///
/// A feature's importance is the mean absolute value over rows of the same weight; where there are several classes, the mean over
/// the classes of each one's mean absolute value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Importance {
    /// What the values add up on.
    pub space: Space,
    /// How they were computed.
    pub method: Method,
    /// How many rows were explained.
    pub rows: u64,
    /// What the values are relative to; none where several classes were explained, each of which has its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_value: Option<f64>,
    /// One entry per feature, in the schema's order.
    pub features: Vec<FeatureImportance>,
}

/// How much one feature moves a model's answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FeatureImportance {
    /// The feature's name.
    pub name: String,
    /// The mean absolute value, in the unit of [`Importance::space`].
    pub mean_absolute: f64,
}

/// Why explanations have no importance in common.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No row was explained.
    #[error("found no explanation, expected one row's at least")]
    NoRows,
    /// An explanation of other features.
    #[error("found an explanation with {found} values, expected {expected}: one per feature")]
    Values {
        /// How many it has.
        found: usize,
        /// How many features there are.
        expected: usize,
    },
    /// Explanations that do not compare.
    #[error("found explanations by {} in {}, expected all by {} in {}", .found.0, .found.1, .expected.0, .expected.1)]
    Mixed {
        /// Method and space of one of them.
        found: (&'static str, &'static str),
        /// Those of the ones before.
        expected: (&'static str, &'static str),
    },
    /// A mean that is no finite number.
    #[error("the values of the feature \"{0}\" have no finite mean")]
    NotFinite(String),
}

impl Importance {
    /// The features, those that move the answers most first; of equals the one that the schema has first.
    pub fn ranked(&self) -> Vec<&FeatureImportance> {
        let mut ranked: Vec<_> = self.features.iter().collect();
        ranked.sort_by(|a, b| b.mean_absolute.total_cmp(&a.mean_absolute));
        ranked
    }

    /// Whether it is one of a model with these features: nothing else vouches for what a file says.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn check<'f>(&self, features: impl IntoIterator<Item = &'f str>) -> Result<(), String> {
        if !self.features.iter().map(|feature| feature.name.as_str()).eq(features) {
            return Err("its importance is not of the schema's features, one by one in their order".into());
        }
        let is_mean = |mean: f64| mean.is_finite() && mean >= 0.0;
        if let Some(odd) = self.features.iter().find(|feature| !is_mean(feature.mean_absolute)) {
            let FeatureImportance { name, mean_absolute } = odd;
            return Err(format!(
                "its importance of the feature \"{name}\" is {mean_absolute:e}, expected a number from 0"
            ));
        }
        if self.base_value.is_some_and(|base| !base.is_finite()) {
            return Err("the base value of its importance is not finite".into());
        }
        if self.rows == 0 { Err("its importance is of no rows".into()) } else { Ok(()) }
    }
}

/// Adds up explanations, row by row.
#[derive(Debug, Clone)]
pub struct Tally {
    names: Vec<String>,
    absolute: Vec<f64>,
    rows: u64,
    /// What all explanations have in common.
    kind: (Method, Space),
    /// The sum of base values, and the class that they are of; none once there were several.
    base: Option<(f64, Option<usize>)>,
}

impl Tally {
    /// For a model with these features, in the schema's order, explained by `method` in `space`.
    pub fn new<'f>(features: impl IntoIterator<Item = &'f str>, method: Method, space: Space) -> Self {
        let names: Vec<String> = features.into_iter().map(Into::into).collect();
        Self { absolute: vec![0.0; names.len()], names, rows: 0, kind: (method, space), base: None }
    }

    /// Adds a row: its explanation, or one for each class.
    ///
    /// # Errors
    /// [`Error`] if there is none, it has not one value per feature, or its method or space is not that of the ones before. Nothing
    /// is added then.
    pub fn add(&mut self, of_row: &[Explanation]) -> Result<(), Error> {
        if of_row.is_empty() {
            return Err(Error::NoRows);
        }
        for explanation in of_row {
            let (found, expected) = (explanation.values.len(), self.names.len());
            if found != expected {
                return Err(Error::Values { found, expected });
            }
            let found = (explanation.method, explanation.space);
            if found != self.kind {
                let words = |(method, space): (Method, Space)| (method.as_str(), space.as_str());
                return Err(Error::Mixed { found: words(found), expected: words(self.kind) });
            }
        }
        self.base = match (of_row, self.base) {
            ([only], None) if self.rows == 0 => Some((only.base_value, only.class)),
            ([only], Some((sum, class))) if only.class == class => Some((sum + only.base_value, class)),
            _ => None,
        };
        for explanation in of_row {
            for (sum, value) in self.absolute.iter_mut().zip(&explanation.values) {
                *sum += value.abs() / of_row.len() as f64;
            }
        }
        self.rows += 1;
        Ok(())
    }

    /// The means of what was added.
    ///
    /// # Errors
    /// [`Error::NoRows`] if nothing was, [`Error::NotFinite`] if something was that is no number.
    pub fn finish(self) -> Result<Importance, Error> {
        if self.rows == 0 {
            return Err(Error::NoRows);
        }
        let (method, space) = self.kind;
        let rows = self.rows as f64;
        let features = self.names.into_iter().zip(self.absolute).map(|(name, sum)| {
            let mean_absolute = sum / rows;
            if mean_absolute.is_finite() {
                Ok(FeatureImportance { name, mean_absolute })
            } else {
                Err(Error::NotFinite(name))
            }
        });
        let features = features.collect::<Result<_, _>>()?;
        let base_value = self.base.map(|(sum, _)| sum / rows).filter(|base| base.is_finite());
        Ok(Importance { space, method, rows: self.rows, base_value, features })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const METHOD: Method = Method::Exact;
    const SPACE: Space = Space::Probability;

    fn explanation(class: Option<usize>, base_value: f64, values: &[f64]) -> Explanation {
        Explanation {
            method: METHOD,
            stepped_down_from: None,
            space: SPACE,
            class,
            base_value,
            value: base_value + values.iter().sum::<f64>(),
            values: values.to_vec(),
            standard_errors: None,
            background_rows: 100,
        }
    }

    fn means(importance: &Importance) -> Vec<f64> {
        importance.features.iter().map(|feature| feature.mean_absolute).collect()
    }

    #[test]
    fn it_is_the_mean_of_absolute_values() {
        let mut tally = Tally::new(["a", "b"], METHOD, SPACE);
        tally.add(&[explanation(Some(1), 0.25, &[0.5, -0.125])]).unwrap();
        tally.add(&[explanation(Some(1), 0.75, &[-0.25, 0.0])]).unwrap();
        let importance = tally.finish().unwrap();
        assert_eq!(means(&importance), [0.375, 0.0625]);
        assert_eq!((importance.rows, importance.base_value), (2, Some(0.5)));
        assert_eq!((importance.method, importance.space), (Method::Exact, Space::Probability));
    }

    #[test]
    fn classes_of_a_row_share_its_weight() {
        let mut tally = Tally::new(["a", "b"], METHOD, SPACE);
        tally
            .add(&[explanation(Some(0), 0.5, &[1.0, 0.0]), explanation(Some(1), 0.5, &[-2.0, 0.5])])
            .unwrap();
        tally.add(&[explanation(Some(0), 0.5, &[0.5, 0.0]), explanation(Some(1), 0.5, &[0.5, 0.5])]).unwrap();
        let importance = tally.finish().unwrap();
        // Class by class: 0.75 and 0; 1.25 and 0.5.
        assert_eq!(means(&importance), [1.0, 0.25]);
        assert_eq!((importance.rows, importance.base_value), (2, None));
    }

    #[test]
    fn several_classes_have_no_base_value_whenever_they_come() {
        let of_one = [explanation(Some(1), 0.5, &[1.0])];
        let of_other = [explanation(Some(0), 0.5, &[1.0])];
        for rows in [[&of_one, &of_other, &of_one], [&of_other, &of_one, &of_one]] {
            let mut tally = Tally::new(["a"], METHOD, SPACE);
            rows.into_iter().for_each(|row| tally.add(row).unwrap());
            assert_eq!(tally.finish().unwrap().base_value, None);
        }
    }

    #[test]
    fn what_does_not_compare_is_refused_and_not_added() {
        let mut tally = Tally::new(["a"], METHOD, SPACE);
        assert_eq!(tally.clone().finish(), Err(Error::NoRows));
        assert_eq!(tally.add(&[]), Err(Error::NoRows));
        tally.add(&[explanation(None, 0.0, &[1.0])]).unwrap();
        let wide = [explanation(None, 0.0, &[1.0]), explanation(None, 0.0, &[1.0, 2.0])];
        assert_eq!(tally.add(&wide), Err(Error::Values { found: 2, expected: 1 }));
        let mut other = explanation(None, 0.0, &[3.0]);
        other.method = Method::Linear;
        let refused = tally.add(&[other]).unwrap_err().to_string();
        assert_eq!(
            refused,
            "found explanations by linear in probability, expected all by exact in probability"
        );
        assert_eq!(means(&tally.clone().finish().unwrap()), [1.0]);
        tally.add(&[explanation(None, 0.0, &[f64::NAN])]).unwrap();
        assert_eq!(tally.finish(), Err(Error::NotFinite("a".into())));
    }

    #[test]
    fn the_file_format_is_pinned() {
        let importance = Importance {
            space: Space::LogOdds,
            method: Method::TreePathDependent,
            rows: 3,
            base_value: Some(-1.5),
            features: vec![FeatureImportance { name: "a".into(), mean_absolute: 0.25 }],
        };
        let text = r#"{"space":"log_odds","method":"tree_path_dependent","rows":3,"base_value":-1.5,"features":[{"name":"a","mean_absolute":0.25}]}"#;
        assert_eq!(serde_json::to_string(&importance).unwrap(), text);
        assert_eq!(serde_json::from_str::<Importance>(text).unwrap(), importance);
        let without = text.replace(r#""base_value":-1.5,"#, "");
        assert_eq!(serde_json::from_str::<Importance>(&without).unwrap().base_value, None);
        assert!(serde_json::from_str::<Importance>(&text.replace("rows", "row")).is_err());
        for space in Space::ALL {
            assert_eq!(serde_json::to_value(space).unwrap(), space.as_str());
        }
        for method in Method::ALL {
            assert_eq!(serde_json::to_value(method).unwrap(), method.as_str());
        }
    }

    #[test]
    fn what_a_file_says_is_checked() {
        let good = Importance {
            space: Space::Target,
            method: Method::Linear,
            rows: 1,
            base_value: None,
            features: ["a", "b"]
                .map(|name| FeatureImportance { name: name.into(), mean_absolute: 0.5 })
                .into(),
        };
        assert_eq!(good.check(["a", "b"]), Ok(()));
        assert!(good.check(["b", "a"]).unwrap_err().contains("in their order"));
        assert!(good.check(["a"]).is_err());
        let mut odd = good.clone();
        odd.features[1].mean_absolute = -0.5;
        assert_eq!(
            odd.check(["a", "b"]).unwrap_err(),
            "its importance of the feature \"b\" is -5e-1, expected a number from 0"
        );
        assert!(Importance { rows: 0, ..good.clone() }.check(["a", "b"]).unwrap_err().contains("no rows"));
        let endless = Importance { base_value: Some(f64::INFINITY), ..good };
        assert!(endless.check(["a", "b"]).unwrap_err().contains("not finite"));
    }
}
