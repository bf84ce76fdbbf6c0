//! [`Explainer`]: which method explains a version, and one row by it.

use std::time::{Duration, Instant};

use prost::Message;
use scoregate_schemas::feature_schema::{Field, Kind};
use scoregate_schemas::manifest::{Bindings, Link, Output, Task};
use scoregate_schemas::onnx::ModelProto;
use serde_json::{Map, Value};

use super::encode::Encoder;
use super::explanation::{Explanation, Method, Space};
use super::general::{self, General, Sampling, Subject};
use super::importance::{self, Importance};
use super::linear::Linear;
use super::split::{Checked, Form, split};
use super::trees::{self, Ensemble, Matrix};
use crate::features::{Column, FeatureRows, RowReader};
use crate::package::Covers;
use crate::reference::BACKGROUND_ROWS;
use crate::runtime::{self, Runtime, Session};

/// Answers rows with the model's own numbers: as many for each as [`Task::width`] says.
pub type Run<'r> = dyn FnMut(&FeatureRows) -> Result<Vec<f64>, runtime::Error> + 'r;

/// Probabilities nearer to 0 or 1 than this count as this near where log-odds are taken of them: float32 has no more digits.
const NEAREST: f64 = 1e-7;

/// How often sampling takes each background row at most.
const MOST_ROUNDS: usize = 10;

/// How far the number that a closed form explains may be from the model's answer for it to be believed of a row: absolute for
/// probabilities, relative for values. Rounding in float32 is a tenth of that.
const CONFIRMED: f64 = 1e-4;

/// Background rows that closed forms are measured on.
const MEASURED: usize = 16;

/// Rows whose way through trees is counted at once.
const COUNTED: usize = 4_096;

/// What a client asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Question {
    /// What values are to add up on; the model's own margin if absent, else the answer itself.
    pub space: Option<Space>,
    /// How they are to be computed; as costs least if absent.
    pub method: Option<Method>,
    /// The label of the class that is to be explained: the positive one if absent, of several the most likely.
    pub class: Option<String>,
}

/// Why a question cannot be answered for a model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The space is not one of the model's.
    #[error("this model is not explained in the space {found}, expected {expected}")]
    Space {
        /// What was asked for.
        found: &'static str,
        /// What there is.
        expected: String,
    },
    /// The method does not take the model.
    #[error("the method {found} does not take this model, or not in this space, expected {expected}")]
    Method {
        /// What was asked for.
        found: &'static str,
        /// What there is.
        expected: String,
    },
    /// The model has no such class.
    #[error("the model has no such class, expected {expected}")]
    Class {
        /// Those that it has.
        expected: String,
    },
}

/// A question with everything that it left open decided, but for what depends on the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    space: Space,
    /// With all the time there is.
    method: Method,
    class: Option<usize>,
}

impl Ask {
    /// What values add up on.
    pub fn space(&self) -> Space {
        self.space
    }

    /// How, with all the time there is.
    pub fn method(&self) -> Method {
        self.method
    }

    /// What is asked for, in bytes: two questions of one version have the same ones only if they are the same.
    pub fn bytes(&self) -> [u8; 6] {
        let [a, b, c, d] = self.class.map_or(u32::MAX, |class| class as u32).to_le_bytes();
        [self.space as u8, self.method as u8, a, b, c, d]
    }
}

/// What an explainer is made of.
#[derive(Debug, Clone, Copy)]
pub struct Source<'s> {
    /// The graph as it was published, the bytes of an ONNX file.
    pub graph: &'s [u8],
    /// How features reach it.
    pub bindings: &'s Bindings,
    /// Where its answer is.
    pub output: &'s Output,
    /// Reads rows, whether they say whom they are about or not.
    pub reader: &'s RowReader,
    /// Background rows, as clients send them.
    pub background: &'s [Map<String, Value>],
    /// How many reference rows took which branch of trees, and how many rows there were.
    pub covers: Option<&'s Covers>,
    /// For sessions over parts of the graph.
    pub runtime: &'s Runtime,
    /// Memory that tables of trees may take, in bytes.
    pub table_bytes: usize,
}

/// Explains the rows of one model version.
#[derive(Debug)]
pub struct Explainer {
    task: Task,
    features: Vec<Field>,
    general: General,
    /// What values add up on where nothing is said and there is no closed form.
    fallback: Space,
    closed: Option<Closed>,
    /// Why there is no closed form.
    reason: Option<String>,
    /// What a run of one row takes, and each row of a large one.
    run: Duration,
    row: Duration,
}

impl Explainer {
    /// Makes what explains a model; nothing if none of its background rows passes the schema. `session` answers as the model.
    ///
    /// # Errors
    /// [`runtime::Error`] if the background rows cannot be scored.
    pub fn new(source: &Source<'_>, session: &mut Session) -> Result<Option<Self>, runtime::Error> {
        let reader = source.reader;
        let mut background = reader.empty(source.background.len());
        for row in source.background.iter().take(BACKGROUND_ROWS) {
            reader.read_map(row, &mut background);
        }
        if background.is_empty() {
            return Ok(None);
        }
        let answers = session.run(&background)?.values().to_vec();
        let (_, many) = timed(|| session.run(&background))?;
        let first = background.single(0);
        session.run(&first)?;
        let (_, run) = timed(|| session.run(&first))?;
        let more = u32::try_from(background.len() - 1).unwrap_or(u32::MAX);
        // Of a single row nothing can be told about more of them.
        let row = if more == 0 { run } else { many.saturating_sub(run) / more };
        let Ok(general) = General::new(&background, reader, answers) else { return Ok(None) };
        let task = source.output.task();
        let fallback = match task {
            Task::Regression => Space::Target,
            Task::Binary if is_logistic(source) => Space::LogOdds,
            Task::Binary | Task::Multiclass { .. } => Space::Probability,
        };
        let (closed, reason) = match closed(source, &background, general.answers()) {
            Ok(closed) => (Some(closed), None),
            Err(reason) => (None, Some(reason)),
        };
        Ok(Some(Self {
            task,
            features: reader.features().cloned().collect(),
            general,
            fallback,
            closed,
            reason,
            run,
            row: row.max(Duration::from_nanos(50)),
        }))
    }

    /// Decides what a question left open; `labels` are those of the classes.
    ///
    /// # Errors
    /// [`Refusal`] of what the model has not, or no method does.
    pub fn ask(&self, question: &Question, labels: &[String]) -> Result<Ask, Refusal> {
        let space = question.space.unwrap_or(self.spaces()[0]);
        if !self.spaces().contains(&space) {
            let expected = self.spaces().iter().map(|space| space.as_str()).collect::<Vec<_>>().join(" or ");
            return Err(Refusal::Space { found: space.as_str(), expected });
        }
        let methods = self.methods(space);
        if let Some(found) = question.method
            && !methods.contains(&found)
        {
            let expected = methods.iter().map(|method| method.as_str()).collect::<Vec<_>>().join(" or ");
            return Err(Refusal::Method { found: found.as_str(), expected });
        }
        let class = match &question.class {
            None => None,
            Some(label) => match labels.iter().position(|found| found == label) {
                Some(class) => Some(class),
                None if labels.is_empty() => {
                    return Err(Refusal::Class { expected: "no class: the model answers values".into() });
                }
                None => return Err(Refusal::Class { expected: labels.join(", ") }),
            },
        };
        Ok(Ask { space, method: question.method.unwrap_or(methods[0]), class })
    }

    /// What values can add up on, the default first.
    pub fn spaces(&self) -> Vec<Space> {
        let mut spaces = vec![self.closed.as_ref().map_or(self.fallback, |closed| closed.space)];
        let more: &[Space] = match self.task {
            Task::Binary => &[Space::Probability, Space::LogOdds],
            Task::Multiclass { .. } => &[Space::Probability],
            Task::Regression => &[Space::Target],
        };
        spaces.extend(more.iter().filter(|space| **space != spaces[0]).copied().collect::<Vec<_>>());
        spaces
    }

    /// How values can be computed in a space, the default first.
    pub fn methods(&self, space: Space) -> Vec<Method> {
        let closed = self.closed.as_ref().filter(|closed| closed.space == space);
        let mut methods = closed.map_or_else(Vec::new, Closed::methods);
        // What comes before a calibration cannot be told from answers.
        if closed.is_none_or(|closed| closed.is_answer) {
            methods.extend(self.general.exact_rows_at_most().map(|_| Method::Exact));
            methods.push(Method::PermutationSampling);
        }
        methods
    }

    /// Why there is no closed form for the model, where there is none.
    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// How many background rows there are.
    pub fn background_rows(&self) -> usize {
        self.general.background_rows()
    }

    /// Memory that it takes, in bytes.
    pub fn bytes(&self) -> usize {
        self.closed.as_ref().map_or(0, Closed::bytes)
    }

    /// What explaining one row is expected to take within `budget`.
    pub fn cost(&self, ask: &Ask, budget: Duration) -> Duration {
        let rows = self.general.exact_rows_expected();
        self.cost_of(self.plan(ask, budget, rows).0, budget, rows)
    }

    /// Whether explaining runs rows through the model; closed forms do not.
    pub fn runs_model(&self, ask: &Ask) -> bool {
        matches!(ask.method, Method::Exact | Method::PermutationSampling)
    }

    /// The method that answers `ask` within `budget`, and the one that would with more time. All coalitions take `exact_rows` rows.
    fn plan(&self, ask: &Ask, budget: Duration, exact_rows: Option<usize>) -> (Method, Option<Method>) {
        let wanted = ask.method;
        let cost = self.cost_of(wanted, budget, exact_rows);
        if cost <= budget {
            return (wanted, None);
        }
        let cheaper = match wanted {
            Method::Exact => Method::PermutationSampling,
            Method::TreeInterventional => Method::TreePathDependent,
            other => other,
        };
        if cheaper != wanted
            && self.methods(ask.space).contains(&cheaper)
            && self.cost_of(cheaper, budget, exact_rows) < cost
        {
            (cheaper, Some(wanted))
        } else {
            (wanted, None)
        }
    }

    /// What a method is expected to take for one row; sampling takes what it gets.
    fn cost_of(&self, method: Method, budget: Duration, exact_rows: Option<usize>) -> Duration {
        let rows = |count: usize| {
            let runs = count.div_ceil(runtime::MAX_ROWS_PER_RUN).max(1);
            let times =
                |one: Duration, count: usize| one.saturating_mul(u32::try_from(count).unwrap_or(u32::MAX));
            times(self.run, runs) + times(self.row, count)
        };
        match method {
            Method::Exact => rows(exact_rows.unwrap_or(usize::MAX)),
            Method::PermutationSampling => rows(self.sampled_rows(budget)),
            closed => self.closed.as_ref().map_or(Duration::MAX, |found| found.cost(closed)),
        }
    }

    /// How many rows sampling may run within `budget`.
    fn sampled_rows(&self, budget: Duration) -> usize {
        let fit = budget.saturating_sub(self.run).as_nanos() / self.row.as_nanos().max(1);
        let most = MOST_ROUNDS * self.general.rows_per_round_at_most();
        let pair = 2 * self.features.len().max(1);
        usize::try_from(fit).unwrap_or(usize::MAX).clamp(pair, most.max(pair))
    }

    /// Explains row `row`, for which the model answered `answer`. With less than what the method takes as `budget`, another one is
    /// used, which the explanation says.
    ///
    /// # Errors
    /// [`runtime::Error`] if rows cannot be scored.
    pub fn explain(
        &self,
        ask: &Ask,
        rows: &FeatureRows,
        row: usize,
        answer: &[f64],
        budget: Duration,
        run: &mut Run<'_>,
    ) -> Result<Explanation, runtime::Error> {
        let begin = Instant::now();
        let subject = Subject { rows, row, answer };
        let exact_rows = if self.runs_model(ask) { self.general.exact_rows(subject) } else { None };
        let (method, stepped_down_from) = self.plan(ask, budget, exact_rows);
        let class = match self.task {
            Task::Regression => None,
            Task::Binary => Some(ask.class.unwrap_or(1)),
            Task::Multiclass { .. } => Some(ask.class.unwrap_or_else(|| most_likely(answer))),
        };
        let mut explanation = match method {
            Method::Exact | Method::PermutationSampling => {
                let column = if self.task == Task::Binary { 0 } else { class.unwrap_or(0) };
                let is_log_odds = ask.space == Space::LogOdds;
                let pick = |line: &[f64]| if is_log_odds { log_odds(line[column]) } else { line[column] };
                let exact = match method {
                    Method::Exact => self.general.exact(subject, run, &pick)?,
                    _ => None,
                };
                let found = match exact {
                    Some(found) => found,
                    None => {
                        let sampling = Sampling {
                            rows: self.sampled_rows(budget),
                            // Of all the time there is, a day: what is later than clocks can tell would panic.
                            deadline: begin + budget.min(Duration::from_secs(86_400)),
                            seed: general::SEED,
                        };
                        self.general.sampled(subject, sampling, run, &pick)?
                    }
                };
                Explanation {
                    method,
                    stepped_down_from,
                    space: ask.space,
                    class,
                    base_value: found.base,
                    value: found.value,
                    values: found.values,
                    standard_errors: found.standard_errors,
                    background_rows: found.background_rows,
                }
            }
            closed_method => {
                self.explain_closed(closed_method, stepped_down_from, ask.space, class, rows, row)
            }
        };
        if !self.is_confirmed(&explanation, answer) {
            // What the graph does with this row is not what was followed: it is asked itself.
            let general = Ask { method: self.general_method(), ..*ask };
            return self.explain(&general, rows, row, answer, budget, run);
        }
        // Labels are [negative, positive], and what is computed is of the positive class.
        if self.task == Task::Binary && class == Some(0) {
            turn(&mut explanation);
        }
        Ok(explanation)
    }

    /// Which features move the model's answers most, over `rows`, for which it answered `answers`: over all of them where there is
    /// time, else over as many, evenly spread, as can be explained `within` that.
    ///
    /// # Errors
    /// [`runtime::Error`] if rows cannot be scored.
    pub fn importance(
        &self,
        rows: &FeatureRows,
        answers: &[f64],
        within: Duration,
        run: &mut Run<'_>,
    ) -> Result<Option<Importance>, runtime::Error> {
        let classes: Vec<Option<usize>> = match self.task {
            Task::Multiclass { classes } => (0..classes).map(Some).collect(),
            Task::Binary | Task::Regression => vec![None],
        };
        let space = self.spaces()[0];
        let method = self.methods(space)[0];
        let asks: Vec<Ask> = classes.iter().map(|class| Ask { space, method, class: *class }).collect();
        let cost = self.cost_of(method, within, self.general.exact_rows_expected()).as_secs_f64()
            * asks.len() as f64;
        let fit = (within.as_secs_f64() / cost.max(1e-9)).clamp(1.0, rows.len() as f64) as usize;
        let width = self.task.width();
        let mut tally = importance::Tally::new(self.features.iter().map(|field| field.name.as_str()));
        for part in 0..fit {
            let row = part * rows.len() / fit;
            let answer = &answers[row * width..(row + 1) * width];
            // With all the time there is the method stays the same.
            let explained = asks.iter().map(|ask| self.explain(ask, rows, row, answer, Duration::MAX, run));
            let explained = explained.collect::<Result<Vec<_>, _>>()?;
            // A row that had to be explained in another way does not compare.
            let _ = tally.add(&explained);
        }
        Ok(tally.finish().ok())
    }

    fn explain_closed(
        &self,
        method: Method,
        stepped_down_from: Option<Method>,
        space: Space,
        class: Option<usize>,
        rows: &FeatureRows,
        row: usize,
    ) -> Explanation {
        let closed = self.closed.as_ref().expect("only a closed form has such methods");
        // Of two classes and of values there is one margin.
        let output = if closed.outputs() == 1 { 0 } else { class.unwrap_or(0) };
        let mut values = vec![0.0; self.features.len()];
        let (base_value, value) = closed.explain(method, output, rows, row, &mut values);
        let is_by_covers = method == Method::TreePathDependent;
        Explanation {
            method,
            stepped_down_from,
            space,
            class,
            base_value,
            value,
            values,
            standard_errors: None,
            background_rows: if is_by_covers { 0 } else { self.background_rows() },
        }
    }

    /// Whether an explanation's number is the one that the model answered, as far as the one tells the other.
    fn is_confirmed(&self, explanation: &Explanation, answer: &[f64]) -> bool {
        let is_general = matches!(explanation.method, Method::Exact | Method::PermutationSampling);
        let is_answer = self.closed.as_ref().is_some_and(|closed| closed.is_answer);
        if is_general || !is_answer {
            return true;
        }
        let value = explanation.value;
        let found = match (explanation.space, self.task) {
            (Space::LogOdds, _) => 1.0 / (1.0 + (-value).exp()),
            (Space::Margin, _) => return true,
            (Space::Probability | Space::Target, _) => value,
        };
        let expected = match self.task {
            Task::Binary | Task::Regression => answer[0],
            Task::Multiclass { .. } => answer[explanation.class.unwrap_or(0)],
        };
        (found - expected).abs() <= CONFIRMED * expected.abs().max(1.0)
    }

    fn general_method(&self) -> Method {
        if self.general.exact_rows_at_most().is_some() { Method::Exact } else { Method::PermutationSampling }
    }

    /// What row `row` says of feature `feature`: its name, with the category where it has one.
    pub fn label(&self, feature: usize, rows: &FeatureRows, row: usize) -> String {
        let field = &self.features[feature];
        match self.category(feature, rows, row) {
            Some(category) if !category.is_empty() => format!("{}={category}", field.name),
            _ => field.name.clone(),
        }
    }

    /// The same for people: with the number, too.
    pub fn described(&self, feature: usize, rows: &FeatureRows, row: usize) -> String {
        let name = &self.features[feature].name;
        let value = match &rows.columns[feature] {
            Column::Number(values) if values[row].is_nan() => String::new(),
            Column::Number(values) if self.features[feature].kind == Kind::Boolean => {
                (values[row] != 0.0).to_string()
            }
            Column::Number(values) => values[row].to_string(),
            Column::Category(_) => self.category(feature, rows, row).unwrap_or_default().into(),
        };
        if value.is_empty() { format!("{name} missing") } else { format!("{name} = {value}") }
    }

    fn category<'r>(&'r self, feature: usize, rows: &'r FeatureRows, row: usize) -> Option<&'r str> {
        let (Column::Category(column), Kind::Category { values }) =
            (&rows.columns[feature], &self.features[feature].kind)
        else {
            return None;
        };
        let listed = values.as_deref().unwrap_or_default();
        let code = column.codes[row] as usize;
        let other = || column.others.get(code - listed.len()).map(AsRef::as_ref);
        listed.get(code).map(String::as_str).or_else(other)
    }

    /// How many numbers an explanation is: see [`Explainer::to_numbers`].
    pub fn numbers(&self) -> usize {
        7 + 2 * self.features.len()
    }

    /// An explanation as numbers, to be kept.
    pub fn to_numbers(&self, explanation: &Explanation) -> Vec<f64> {
        let place =
            |method: Method| Method::ALL.iter().position(|found| *found == method).unwrap_or(0) as f64;
        let mut numbers = vec![
            place(explanation.method),
            explanation.stepped_down_from.map_or(-1.0, place),
            explanation.class.map_or(-1.0, |class| class as f64),
            explanation.background_rows as f64,
            f64::from(u8::from(explanation.standard_errors.is_some())),
            explanation.base_value,
            explanation.value,
        ];
        numbers.extend_from_slice(&explanation.values);
        numbers.extend(explanation.standard_errors.iter().flatten());
        numbers.resize(self.numbers(), 0.0);
        numbers
    }

    /// The explanation that [`Explainer::to_numbers`] made numbers of, for the same question; nothing if they are none.
    pub fn from_numbers(&self, ask: &Ask, numbers: &[f64]) -> Option<Explanation> {
        let [by, stepped, class, background_rows, has_errors, base_value, value, rest @ ..] = numbers else {
            return None;
        };
        let features = self.features.len();
        let method = |number: f64| Method::ALL.get(number as usize).copied();
        let [values, errors] = [rest.get(..features)?, rest.get(features..2 * features)?];
        Some(Explanation {
            method: method(*by)?,
            stepped_down_from: if *stepped < 0.0 { None } else { Some(method(*stepped)?) },
            space: ask.space,
            class: (*class >= 0.0).then_some(*class as usize),
            base_value: *base_value,
            value: *value,
            values: values.to_vec(),
            standard_errors: (*has_errors > 0.0).then(|| errors.to_vec()),
            background_rows: *background_rows as usize,
        })
    }
}

/// The closed form of a model, or why there is none.
fn closed(source: &Source<'_>, background: &FeatureRows, answers: &[f64]) -> Result<Closed, String> {
    let Source { graph, reader, bindings, output, runtime, .. } = *source;
    let checked = split(graph, reader, bindings, output)
        .and_then(|found| found.check(runtime, reader, bindings, output, background, answers))
        .map_err(|reason| reason.to_string())?;
    Closed::new(checked, source, background).map_err(|error| error.to_string())
}

fn timed<T, E>(work: impl FnOnce() -> Result<T, E>) -> Result<(T, Duration), E> {
    let begin = Instant::now();
    let done = work()?;
    Ok((done, begin.elapsed()))
}

/// A margin that there is a closed form for.
#[derive(Debug)]
struct Closed {
    space: Space,
    /// Whether the model's answer is a known function of the margin and of nothing else.
    is_answer: bool,
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

impl Closed {
    /// Prepares the closed form of a margin that was checked, and measures it on the background.
    fn new(checked: Checked, source: &Source<'_>, background: &FeatureRows) -> Result<Self, trees::Error> {
        let features = source.reader.features().count();
        let form = match checked.form {
            Form::Linear(form) => ClosedForm::Linear(Linear::new(form, features, background)),
            Form::Trees { ensemble, encoder } => {
                let encoded = encoder.encode_all(background);
                let matrix = Matrix::new(&encoded, encoder.width())?;
                let share = source.table_bytes / if source.covers.is_some() { 2 } else { 1 };
                let players = encoder.players();
                let interventional = trees::Explainer::interventional(&ensemble, players, &matrix, share)?;
                let constants = &encoded[..encoder.width()];
                let path_dependent = source.covers.map(|covers| {
                    let Covers { rows, yes } = covers;
                    trees::Explainer::with_covers(&ensemble, players, constants, yes, *rows, share)
                });
                ClosedForm::Trees {
                    path_dependent: path_dependent.transpose()?,
                    encoder,
                    ensemble,
                    interventional,
                }
            }
        };
        let mut closed = Self { space: checked.space, is_answer: checked.is_answer, form, costs: Vec::new() };
        let methods: &[Method] = match &closed.form {
            ClosedForm::Linear(_) => &[Method::Linear],
            ClosedForm::Trees { path_dependent: None, .. } => &[Method::TreeInterventional],
            ClosedForm::Trees { .. } => &[Method::TreeInterventional, Method::TreePathDependent],
        };
        let rows = background.len().min(MEASURED);
        let mut values = vec![0.0; features];
        for method in methods {
            let begin = Instant::now();
            for row in 0..rows {
                closed.explain(*method, 0, background, row, &mut values);
            }
            closed.costs.push((*method, begin.elapsed() / u32::try_from(rows).unwrap_or(1)));
        }
        Ok(closed)
    }

    fn methods(&self) -> Vec<Method> {
        self.costs.iter().map(|(method, _)| *method).collect()
    }

    fn bytes(&self) -> usize {
        match &self.form {
            ClosedForm::Linear(linear) => linear.bytes(),
            ClosedForm::Trees { interventional, path_dependent, .. } => {
                interventional.bytes() + path_dependent.as_ref().map_or(0, trees::Explainer::bytes)
            }
        }
    }

    fn cost(&self, method: Method) -> Duration {
        let found = self.costs.iter().find(|(found, _)| *found == method);
        found.map_or(Duration::MAX, |(_, cost)| *cost)
    }

    /// Number of margins.
    fn outputs(&self) -> usize {
        match &self.form {
            ClosedForm::Linear(linear) => linear.outputs(),
            ClosedForm::Trees { ensemble, .. } => ensemble.outputs(),
        }
    }

    /// Writes the values of a row for margin `output`, one per feature; returns the base and the margin.
    fn explain(
        &self,
        method: Method,
        output: usize,
        rows: &FeatureRows,
        row: usize,
        values: &mut [f64],
    ) -> (f64, f64) {
        let ClosedForm::Trees { encoder, ensemble, interventional, path_dependent } = &self.form else {
            let ClosedForm::Linear(linear) = &self.form else { unreachable!("there are two forms") };
            return linear.explain(rows, row, output, values);
        };
        let explainer = match (method, path_dependent) {
            (Method::TreePathDependent, Some(path_dependent)) => path_dependent,
            _ => interventional,
        };
        let mut encoded = vec![0.0; encoder.width()];
        encoder.encode(rows, row, &mut encoded);
        let mut margins = vec![0.0; ensemble.outputs()];
        ensemble.margin(&encoded, &mut margins);
        // Features that no tree asks for come last or not at all among the players.
        let (asked, others) = values.split_at_mut(explainer.players());
        others.fill(0.0);
        let explained = explainer.explain_output(&encoded, output, &mut explainer.scratch(), asked);
        explained.expect("columns and values are as many as the explainer was made for");
        (explainer.base(output), margins[output])
    }
}

/// How often the rows of a reference take the true branch of each node of the trees that a graph is; nothing if it is none.
pub fn count_covers(source: &Source<'_>, rows: &FeatureRows) -> Option<Vec<u64>> {
    let found = split(source.graph, source.reader, source.bindings, source.output).ok()?;
    let Form::Trees { ensemble, encoder } = found.form() else { return None };
    let mut covers: Vec<u64> = Vec::new();
    let mut encoded = Vec::new();
    let places: Vec<usize> = (0..rows.len()).collect();
    for part in places.chunks(COUNTED) {
        encoded.resize(part.len() * encoder.width(), 0.0);
        for (row, line) in part.iter().zip(encoded.chunks_exact_mut(encoder.width())) {
            encoder.encode(rows, *row, line);
        }
        let counted = ensemble.covers(&Matrix::new(&encoded, encoder.width()).ok()?).ok()?;
        covers.resize(counted.len(), 0);
        covers.iter_mut().zip(counted).for_each(|(sum, [yes, _])| *sum += yes);
    }
    Some(covers)
}

/// Turns an explanation of the positive class of two into one of the other.
fn turn(explanation: &mut Explanation) {
    let whole = if explanation.space == Space::Probability { 1.0 } else { 0.0 };
    explanation.base_value = whole - explanation.base_value;
    explanation.value = whole - explanation.value;
    explanation.values.iter_mut().for_each(|value| *value = -*value);
}

/// The place of the greatest number; of equals the first.
fn most_likely(numbers: &[f64]) -> usize {
    (1..numbers.len()).fold(0, |best, at| if numbers[at] > numbers[best] { at } else { best })
}

/// Log-odds of a probability, which counts as at least [`NEAREST`] away from 0 and 1.
fn log_odds(probability: f64) -> f64 {
    let probability = probability.clamp(NEAREST, 1.0 - NEAREST);
    (probability / (1.0 - probability)).ln()
}

/// Whether the answer is a logistic function of something, and nothing comes after that.
fn is_logistic(source: &Source<'_>) -> bool {
    if source.output.link().is_some() {
        return source.output.link() == Some(Link::Sigmoid);
    }
    let Some(graph) = ModelProto::decode(source.graph).ok().and_then(|model| model.graph) else {
        return false;
    };
    let mut wanted: Vec<&str> = source.output.names();
    let mut is_found = false;
    // Nodes stand in topological order, so that one walk from the end meets every consumer before its producer.
    for node in graph.node.iter().rev() {
        if !node.output.iter().any(|name| wanted.contains(&name.as_str())) {
            continue;
        }
        let transform = node.attribute.iter().find(|attribute| attribute.name() == "post_transform");
        let is_logistic = node.op_type() == "Sigmoid"
            || transform.is_some_and(|found| {
                found.s() == b"LOGISTIC" || (node.op_type() == "TreeEnsemble" && found.i() == 2)
            });
        match node.op_type() {
            _ if is_logistic => is_found = true,
            "ZipMap"
            | "Identity"
            | "Cast"
            | "Concat"
            | "Reshape"
            | "Squeeze"
            | "Unsqueeze"
            | "Sub"
            | "Split"
            | "Slice"
            | "ArrayFeatureExtractor" => wanted.extend(node.input.iter().map(String::as_str)),
            _ => return false,
        }
    }
    is_found
}
