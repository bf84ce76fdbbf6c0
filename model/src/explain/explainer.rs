//! [`Explainer`]: which method explains a version, and one row by it.

use std::time::{Duration, Instant};

use prost::Message;
use scoregate_schemas::feature_schema::{Field, Kind};
use scoregate_schemas::manifest::{Bindings, Link, Output, Task};
use scoregate_schemas::onnx::ModelProto;
use serde_json::{Map, Value};

use super::closed::Closed;
use super::explanation::{Explanation, Method, Space};
use super::general::{self, General, Sampling, Subject};
use super::importance::{self, Importance};
use super::question::{Ask, Question, Refusal};
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

/// Rows that are run to see what the work around running them takes, and how long that may be.
const TRIED: (usize, Duration) = (2_000, Duration::from_millis(20));

/// Rows that take longer than this take no notable time around that.
const SLOW: Duration = Duration::from_micros(100);

/// How often what a run takes is measured: the quickest counts, since other work on the machine only adds.
const TIMES: usize = 3;

/// Rows that an importance is of at least.
const LEAST_ROWS: u64 = 30;

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
        let many = quickest(|| session.run(&background))?;
        let first = background.single(0);
        let run = quickest(|| session.run(&first))?;
        let more = u32::try_from(background.len() - 1).unwrap_or(u32::MAX);
        // Of a single row nothing can be told about more of them.
        let row = if more == 0 { run } else { many.saturating_sub(run) / more };
        let row = row.max(Duration::from_nanos(50));
        let Ok(general) = General::new(&background, reader, answers) else { return Ok(None) };
        let row = row.max(tried(&general, &background, row, session));
        let task = source.output.task();
        let fallback = match task {
            Task::Regression => Space::Target,
            Task::Binary if is_logistic(source) => Space::LogOdds,
            Task::Binary | Task::Multiclass { .. } => Space::Probability,
        };
        let (closed, reason) = match Closed::find(source, &background, general.answers()) {
            Ok(closed) => (Some(closed), None),
            Err(reason) => (None, Some(reason)),
        };
        let features = reader.features().cloned().collect();
        Ok(Some(Self { task, features, general, fallback, closed, reason, run, row }))
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
                None => return Err(Refusal::of_class(labels)),
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
        let mut methods: Vec<Method> = closed.iter().flat_map(|closed| closed.methods()).collect();
        // What comes before a calibration or a softmax cannot be told from answers.
        if closed.is_none_or(Closed::is_answer) {
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
        self.closed.as_ref().map_or(0, Closed::bytes) + self.general.bytes()
    }

    /// What explaining one row is expected to take within `budget`.
    pub fn cost(&self, ask: &Ask, budget: Duration) -> Duration {
        let rows = self.general.exact_rows_expected();
        self.cost_of(self.plan(ask, budget, rows).0, budget, rows)
    }

    /// Whether explaining runs rows through the model; closed forms do not.
    pub fn runs_model(&self, ask: &Ask) -> bool {
        runs_model(ask.method)
    }

    /// The method that answers `ask` within `budget`, and the one that would with more time. All coalitions take `exact_rows` rows.
    fn plan(&self, ask: &Ask, budget: Duration, exact_rows: Option<usize>) -> (Method, Option<Method>) {
        let wanted = ask.method;
        let cost = self.cost_of(wanted, budget, exact_rows);
        if cost <= budget {
            return (wanted, None);
        }
        // Values by covers are relative to another base: nobody gets them who did not ask.
        let others = [Method::Exact, Method::PermutationSampling];
        let methods = self.methods(ask.space);
        let others = others.into_iter().filter(|other| *other != wanted && methods.contains(other));
        let costs = others.map(|other| (other, self.cost_of(other, budget, exact_rows)));
        let costs: Vec<(Method, Duration)> = costs.filter(|(_, other)| *other < cost).collect();
        let fits = costs.iter().find(|(_, cost)| *cost <= budget);
        match fits.or_else(|| costs.iter().min_by_key(|(_, cost)| *cost)) {
            Some((cheaper, _)) => (*cheaper, Some(wanted)),
            None => (wanted, None),
        }
    }

    /// What a method is expected to take for one row; sampling takes what it gets.
    fn cost_of(&self, method: Method, budget: Duration, exact_rows: Option<usize>) -> Duration {
        let rows = |count: usize| {
            let runs = count.div_ceil(runtime::MAX_ROWS_PER_RUN).max(1);
            let times = |one: Duration, count: usize| one.saturating_mul(as_count(count));
            times(self.run, runs).saturating_add(times(self.row, count))
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

    /// Explains row `row`, for which the model answered `answer`, by its closed form; nothing if the ask is for another method, or the
    /// answer shows that the graph does something else with this row than what was found for the background.
    pub fn explain_closed(
        &self,
        ask: &Ask,
        rows: &FeatureRows,
        row: usize,
        answer: &[f64],
    ) -> Option<Explanation> {
        let closed = self.closed.as_ref().filter(|_| !self.runs_model(ask))?;
        let class = self.class(ask, answer);
        let of_class = class.unwrap_or(0);
        let features = self.features.len();
        let found = closed.explain_confirmed(ask.method, of_class, rows, row, features, answer)?;
        let is_by_covers = ask.method == Method::TreePathDependent;
        Some(self.turned(Explanation {
            method: ask.method,
            stepped_down_from: None,
            space: ask.space,
            class,
            base_value: found.base,
            value: found.margin,
            values: found.values,
            standard_errors: None,
            background_rows: if is_by_covers { 0 } else { self.background_rows() },
        }))
    }

    /// Explains row `row`, for which the model answered `answer`. With less than what the method takes as `budget`, another one is
    /// used, which the explanation says; and so if the closed form does not hold for the row, which is explained in probabilities then
    /// where what is asked for cannot be told from answers.
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
        let subject = Subject { rows, row, answer };
        let (mut method, mut stepped_down_from) = if self.runs_model(ask) {
            self.plan(ask, budget, self.general.exact_rows(subject))
        } else {
            self.plan(ask, budget, self.general.exact_rows_expected())
        };
        let mut space = ask.space;
        if !runs_model(method) {
            if let Some(explanation) = self.explain_closed(ask, rows, row, answer) {
                return Ok(explanation);
            }
            let is_told = self.methods(space).contains(&Method::PermutationSampling);
            space = if is_told { space } else { Space::Probability };
            let general = self.methods(space).into_iter().find(|method| runs_model(*method));
            let general = Ask { space, method: general.unwrap_or(Method::PermutationSampling), ..*ask };
            method = self.plan(&general, budget, self.general.exact_rows(subject)).0;
            stepped_down_from = Some(ask.method);
        }
        let class = self.class(ask, answer);
        let column = if self.task == Task::Binary { 0 } else { class.unwrap_or(0) };
        let pick = |line: &[f64]| match space {
            Space::LogOdds => log_odds(line[column]),
            Space::Probability | Space::Target | Space::Margin => line[column],
        };
        let exact = match method {
            Method::Exact => self.general.exact(subject, run, &pick)?,
            _ => None,
        };
        let found = match exact {
            Some(found) => found,
            None => {
                // Of all the time there is, a day: what is later than clocks can tell would panic.
                let deadline = Instant::now() + budget.min(Duration::from_secs(86_400));
                let sampling = Sampling { rows: self.sampled_rows(budget), deadline, seed: general::SEED };
                self.general.sampled(subject, sampling, run, &pick)?
            }
        };
        Ok(self.turned(Explanation {
            method,
            stepped_down_from,
            space,
            class,
            base_value: found.base,
            value: found.value,
            values: found.values,
            standard_errors: found.standard_errors,
            background_rows: found.background_rows,
        }))
    }

    /// The class that is explained; none for regression.
    fn class(&self, ask: &Ask, answer: &[f64]) -> Option<usize> {
        match self.task {
            Task::Regression => None,
            Task::Binary => Some(ask.class.unwrap_or(1)),
            Task::Multiclass { .. } => Some(ask.class.unwrap_or_else(|| most_likely(answer))),
        }
    }

    /// Labels are `[negative, positive]`, and what is computed is of the positive class.
    fn turned(&self, mut explanation: Explanation) -> Explanation {
        if self.task == Task::Binary && explanation.class == Some(0) {
            let whole = if explanation.space == Space::Probability { 1.0 } else { 0.0 };
            explanation.base_value = whole - explanation.base_value;
            explanation.value = whole - explanation.value;
            explanation.values.iter_mut().for_each(|value| *value = -*value);
        }
        explanation
    }

    /// Which features move the model's answers most, over `rows`, for which it answered `answers`: over all of them where there is
    /// time, else over as many, evenly spread, as can be explained `within` that. Nothing if those are too few to tell.
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
        let begin = Instant::now();
        let classes: Vec<Option<usize>> = match self.task {
            Task::Multiclass { classes } => (0..classes).map(Some).collect(),
            Task::Binary | Task::Regression => vec![None],
        };
        let space = self.spaces()[0];
        // A round of samples is enough for a mean.
        let round = self.run + self.row.saturating_mul(as_count(self.general.rows_per_round_at_most()));
        let method = self.methods(space)[0];
        let budget = if method == Method::PermutationSampling { round } else { Duration::MAX };
        let asks: Vec<Ask> = classes.iter().map(|class| Ask { space, method, class: *class }).collect();
        let cost = self.cost_of(method, round, self.general.exact_rows_expected()).as_secs_f64();
        let cost = (cost * asks.len() as f64).max(1e-9);
        let fit = (within.as_secs_f64() / cost).clamp(1.0, rows.len() as f64) as usize;
        let width = self.task.width();
        let names = self.features.iter().map(|field| field.name.as_str());
        let mut tally = importance::Tally::new(names, method, space);
        // Rows far apart first, so that those that there was time for are spread over all.
        let stride = coprime(fit);
        for part in 0..fit {
            if begin.elapsed() > within {
                break;
            }
            let row = (part * stride % fit) * rows.len() / fit;
            let answer = &answers[row * width..(row + 1) * width];
            let explained = asks.iter().map(|ask| self.explain(ask, rows, row, answer, budget, run));
            let explained = explained.collect::<Result<Vec<_>, _>>()?;
            // A row that had to be explained in another way does not compare.
            let _ = tally.add(&explained);
        }
        Ok(tally.finish().ok().filter(|found| found.rows >= LEAST_ROWS.min(rows.len() as u64)))
    }

    /// How many of `rows` take the true branch of each node of the trees that the model is; nothing if it is none.
    pub fn covers(&self, rows: &FeatureRows) -> Option<Vec<u64>> {
        self.closed.as_ref()?.covers(rows)
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
        8 + 2 * self.features.len()
    }

    /// An explanation as numbers, to be kept.
    pub fn to_numbers(&self, explanation: &Explanation) -> Vec<f64> {
        let place =
            |method: Method| Method::ALL.iter().position(|found| *found == method).unwrap_or(0) as f64;
        let mut numbers = vec![
            place(explanation.method),
            explanation.stepped_down_from.map_or(-1.0, place),
            Space::ALL.iter().position(|found| *found == explanation.space).unwrap_or(0) as f64,
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

    /// The explanation that [`Explainer::to_numbers`] made numbers of; nothing if they are none.
    pub fn from_numbers(&self, numbers: &[f64]) -> Option<Explanation> {
        let [by, stepped, space, class, background_rows, has_errors, base_value, value, rest @ ..] = numbers
        else {
            return None;
        };
        let features = self.features.len();
        let method = |number: f64| Method::ALL.get(number as usize).copied();
        let [values, errors] = [rest.get(..features)?, rest.get(features..2 * features)?];
        Some(Explanation {
            method: method(*by)?,
            stepped_down_from: if *stepped < 0.0 { None } else { Some(method(*stepped)?) },
            space: *Space::ALL.get(*space as usize)?,
            class: (*class >= 0.0).then_some(*class as usize),
            base_value: *base_value,
            value: *value,
            values: values.to_vec(),
            standard_errors: (*has_errors > 0.0).then(|| errors.to_vec()),
            background_rows: *background_rows as usize,
        })
    }
}

/// Whether a method runs rows through the model.
fn runs_model(method: Method) -> bool {
    matches!(method, Method::Exact | Method::PermutationSampling)
}

/// What `work` takes at least.
fn quickest<T, E>(mut work: impl FnMut() -> Result<T, E>) -> Result<Duration, E> {
    let mut least = Duration::MAX;
    for _ in 0..TIMES {
        let begin = Instant::now();
        work()?;
        least = least.min(begin.elapsed());
    }
    Ok(least)
}

/// What a row takes that is put together and run for an explanation, as measured on one; nothing if the model has no answer to that.
/// A row by itself takes `row`.
fn tried(general: &General, background: &FeatureRows, row: Duration, session: &mut Session) -> Duration {
    let (most, within) = TRIED;
    if row > SLOW {
        return Duration::ZERO;
    }
    let rows = (within.as_nanos() / row.as_nanos().max(1)).min(most as u128) as usize;
    let mut run = |rows: &FeatureRows| Ok(session.run(rows)?.values().to_vec());
    let width = general.answers().len() / background.len();
    let subject = Subject { rows: background, row: 0, answer: &general.answers()[..width] };
    let begin = Instant::now();
    let sampling = Sampling { rows, deadline: begin + within, seed: general::SEED };
    match general.sampled(subject, sampling, &mut run, &|line| line[0]) {
        Ok(found) if found.rows > 0 => begin.elapsed() / as_count(found.rows),
        _ => Duration::ZERO,
    }
}

fn as_count(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// A step that goes through all of `count` places, far from one to the next.
fn coprime(count: usize) -> usize {
    let is_coprime = |step: &usize| {
        let (mut a, mut b) = (count, *step);
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a == 1
    };
    // The golden section leaves the largest gaps smallest.
    let begin = ((count as f64 * 0.618) as usize).max(1);
    (begin..).find(is_coprime).unwrap_or(1)
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
