//! The closed form of a margin, with what depends on the background computed beforehand.

use std::time::{Duration, Instant};

use super::encode::Encoder;
use super::explainer::Source;
use super::explanation::{Method, Space};
use super::linear::Linear;
use super::split::{Checked, Follows, Form, split};
use super::trees::{self, Ensemble, Matrix};
use crate::features::FeatureRows;
use crate::package::Covers;

/// Background rows that closed forms are measured on, and how often.
const MEASURED: (usize, usize) = (8, 3);

/// Rows whose way through trees is counted at once.
const COUNTED: usize = 4_096;

/// A margin that there is a closed form for.
#[derive(Debug)]
pub(super) struct Closed {
    pub(super) space: Space,
    /// What the model's answer is to it.
    follows: Follows,
    form: ClosedForm,
    /// What one row takes by each method, the default first.
    costs: Vec<(Method, Duration)>,
}

#[derive(Debug)]
enum ClosedForm {
    Linear(Linear),
    Trees {
        encoder: Encoder,
        ensemble: Ensemble,
        interventional: trees::Explainer,
        /// Where covers were counted.
        path_dependent: Option<trees::Explainer>,
    },
}

/// What a closed form says of a row.
pub(super) struct Found {
    pub(super) base: f64,
    pub(super) margin: f64,
    /// One per feature.
    pub(super) values: Vec<f64>,
}

impl Closed {
    /// Finds the closed form of a model that gave `answers` to `background`, and prepares it; or why there is none.
    pub(super) fn find(
        source: &Source<'_>,
        background: &FeatureRows,
        answers: &[f64],
    ) -> Result<Self, String> {
        let Source { graph, reader, bindings, output, runtime, .. } = *source;
        let checked = split(graph, reader, bindings, output)
            .and_then(|found| found.check(runtime, reader, bindings, output, background, answers))
            .map_err(|reason| reason.to_string())?;
        let features = reader.features().count();
        Self::new(checked, source, features, background).map_err(|error| error.to_string())
    }

    fn new(
        checked: Checked,
        source: &Source<'_>,
        features: usize,
        background: &FeatureRows,
    ) -> Result<Self, trees::Error> {
        let Checked { form, space, follows } = checked;
        let form = match form {
            Form::Linear(form) => ClosedForm::Linear(Linear::new(form, features, background)),
            Form::Trees { ensemble, encoder } => {
                let encoded = encoder.encode_all(background);
                let matrix = Matrix::new(&encoded, encoder.width())?;
                let share = source.table_bytes / if source.covers.is_some() { 2 } else { 1 };
                let players = encoder.players();
                let interventional = trees::Explainer::interventional(&ensemble, players, &matrix, share)?;
                let constants = &encoded[..encoder.width()];
                // Covers that are not of these trees leave the other method as it is.
                let path_dependent = source.covers.and_then(|Covers { rows, yes }| {
                    trees::Explainer::with_covers(&ensemble, players, constants, yes, *rows, share).ok()
                });
                ClosedForm::Trees { encoder, ensemble, interventional, path_dependent }
            }
        };
        let methods: &[Method] = match &form {
            ClosedForm::Linear(_) => &[Method::Linear],
            ClosedForm::Trees { path_dependent: None, .. } => &[Method::TreeInterventional],
            ClosedForm::Trees { .. } => &[Method::TreeInterventional, Method::TreePathDependent],
        };
        let mut closed = Self { space, follows, form, costs: Vec::new() };
        let (rows, times) = (background.len().min(MEASURED.0), MEASURED.1);
        for method in methods {
            let measure = || {
                let begin = Instant::now();
                for row in 0..rows {
                    closed.explain(*method, 0, background, row, features);
                }
                begin.elapsed() / u32::try_from(rows).unwrap_or(1)
            };
            // The quickest: other work on the machine only adds.
            let cost = (0..times).map(|_| measure()).min().unwrap_or_default();
            closed.costs.push((*method, cost));
        }
        Ok(closed)
    }

    /// How its values can be computed, the default first.
    pub(super) fn methods(&self) -> impl Iterator<Item = Method> {
        self.costs.iter().map(|(method, _)| *method)
    }

    /// Whether what it explains can be told from the model's answers.
    pub(super) fn is_answer(&self) -> bool {
        self.follows.is_known() && self.space != Space::Margin
    }

    /// Bytes that it takes.
    pub(super) fn bytes(&self) -> usize {
        match &self.form {
            ClosedForm::Linear(linear) => linear.bytes(),
            ClosedForm::Trees { encoder, ensemble, interventional, path_dependent } => {
                let by_covers = path_dependent.as_ref().map_or(0, trees::Explainer::bytes);
                encoder.bytes() + ensemble.bytes() + interventional.bytes() + by_covers
            }
        }
    }

    /// What one row takes by a method; for ever if it is none of its.
    pub(super) fn cost(&self, method: Method) -> Duration {
        let found = self.costs.iter().find(|(found, _)| *found == method);
        found.map_or(Duration::MAX, |(_, cost)| *cost)
    }

    fn outputs(&self) -> usize {
        match &self.form {
            ClosedForm::Linear(linear) => linear.outputs(),
            ClosedForm::Trees { ensemble, .. } => ensemble.outputs(),
        }
    }

    /// The values of a row of `features` features, to which the model answered `answer`, for the margin of a class; nothing if the
    /// answer does not follow from what was found for the background: then the graph does something else with this row.
    pub(super) fn explain_confirmed(
        &self,
        method: Method,
        class: usize,
        rows: &FeatureRows,
        row: usize,
        features: usize,
        answer: &[f64],
    ) -> Option<Found> {
        // Of two classes, and of values, there is one margin.
        let output = if self.outputs() == 1 { 0 } else { class };
        let (found, margins) = self.explain(method, output, rows, row, features);
        self.follows.confirms(&margins, answer).then_some(found)
    }

    /// The values of a row for margin `output`, and all its margins.
    fn explain(
        &self,
        method: Method,
        output: usize,
        rows: &FeatureRows,
        row: usize,
        features: usize,
    ) -> (Found, Vec<f64>) {
        let mut values = vec![0.0; features];
        match &self.form {
            ClosedForm::Linear(linear) => {
                // Values come last, so that they are those of the output that is asked for.
                let others = (0..linear.outputs()).filter(|other| *other != output);
                let mut margins = vec![0.0; linear.outputs()];
                for other in others {
                    margins[other] = linear.explain(rows, row, other, &mut values).1;
                }
                let (base, margin) = linear.explain(rows, row, output, &mut values);
                margins[output] = margin;
                (Found { base, margin, values }, margins)
            }
            ClosedForm::Trees { encoder, ensemble, interventional, path_dependent } => {
                let explainer = match (method, path_dependent) {
                    (Method::TreePathDependent, Some(path_dependent)) => path_dependent,
                    _ => interventional,
                };
                let mut encoded = vec![0.0; encoder.width()];
                encoder.encode(rows, row, &mut encoded);
                let mut margins = vec![0.0; ensemble.outputs()];
                ensemble.margin(&encoded, &mut margins);
                // Features behind the last one that any column depends on are no players.
                let players = &mut values[..explainer.players()];
                let explained = explainer.explain_output(&encoded, output, &mut explainer.scratch(), players);
                explained.expect("columns and values are as many as the explainer was made for");
                (Found { base: explainer.base(output), margin: margins[output], values }, margins)
            }
        }
    }

    /// How many of `rows` take the true branch of each node; nothing where there are no trees.
    pub(super) fn covers(&self, rows: &FeatureRows) -> Option<Vec<u64>> {
        let ClosedForm::Trees { encoder, ensemble, .. } = &self.form else { return None };
        let mut covers: Vec<u64> = Vec::new();
        let mut encoded = Vec::new();
        let width = encoder.width();
        for from in (0..rows.len()).step_by(COUNTED) {
            let part = from..rows.len().min(from + COUNTED);
            encoded.resize(part.len() * width, 0.0);
            for (row, line) in part.zip(encoded.chunks_exact_mut(width)) {
                encoder.encode(rows, row, line);
            }
            let counted = ensemble.covers(&Matrix::new(&encoded, width).ok()?).ok()?;
            covers.resize(counted.len(), 0);
            covers.iter_mut().zip(counted).for_each(|(sum, [yes, _])| *sum += yes);
        }
        Some(covers)
    }
}
