//! L2-regularised logistic regression with class weights, converged tightly, behind linfa's traits.
//!
//! [`fit`] is what the trainer calls. Without class weights it asks linfa-logistic; with them, which linfa-logistic does not
//! have, [`WeightedLogisticRegressionParams`] minimises the weighted loss with the same L-BFGS of argmin. Both end in the same
//! Newton steps: the line search of L-BFGS compares sums over all rows, whose rounding hides the last digits of the optimum
//! (gradients stall near 1e-4 at 20,000 rows), while a Newton step needs the gradient alone. That is what makes
//! coefficients comparable with scikit-learn's, and a fit repeatable.

use argmin::core::{CostFunction, Executor, Gradient};
use argmin::solver::linesearch::MoreThuenteLineSearch;
use argmin::solver::quasinewton::LBFGS;
use linfa::ParamGuard;
use linfa::dataset::DatasetBase;
use linfa::traits::{Fit, PredictInplace};
use linfa_logistic::LogisticRegression;
use ndarray::{Array1, Array2};

/// The gradient, per unit of weight, at which L-BFGS hands over to Newton steps.
const NEAR: f64 = 1e-4;

/// Newton steps at most; a handful is usual.
const MOST_NEWTON_STEPS: u64 = 50;

/// How classes are weighted in the loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum ClassWeight {
    /// Every row weighs 1.
    None,
    /// A row weighs `n / (2 nₖ)`, `nₖ` being the rows of its class (scikit-learn's `"balanced"`). Probabilities come out as if
    /// both classes were equally frequent and need calibration.
    #[default]
    Balanced,
}

impl ClassWeight {
    /// The weight of each row.
    fn weights(self, positives: &[bool]) -> Vec<f64> {
        let rows = positives.len() as f64;
        let count = positives.iter().filter(|positive| **positive).count() as f64;
        let (negative, positive) = match self {
            Self::None => (1.0, 1.0),
            Self::Balanced => (rows / (2.0 * (rows - count)), rows / (2.0 * count)),
        };
        positives.iter().map(|&is_positive| if is_positive { positive } else { negative }).collect()
    }
}

/// Why a model cannot be fitted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A parameter is out of range.
    #[error("{name} is {value}, expected {expected}")]
    Parameter {
        /// Which one.
        name: &'static str,
        /// Its value.
        value: f64,
        /// What was expected.
        expected: &'static str,
    },
    /// Rows of both classes are needed.
    #[error("found {positives} positive rows of {rows}, expected rows of both classes")]
    OneClass {
        /// Rows of the positive class.
        positives: usize,
        /// All rows.
        rows: usize,
    },
    /// A feature is not a finite number.
    #[error("row {row}, column {column} of the design matrix is not finite")]
    NotFinite {
        /// Row of the design matrix.
        row: usize,
        /// Column of the design matrix.
        column: usize,
    },
    /// Starting values of the wrong number.
    #[error("found {found} starting values, expected {expected}: one per column and the intercept")]
    Start {
        /// How many there are.
        found: usize,
        /// How many are needed.
        expected: usize,
    },
    /// linfa-logistic failed.
    #[error("linfa-logistic failed")]
    Linfa(#[from] linfa_logistic::error::Error),
    /// linfa failed.
    #[error("linfa failed")]
    Dataset(#[from] linfa::Error),
    /// The optimiser failed.
    #[error("L-BFGS failed: {0}")]
    Optimiser(String),
}

/// Parameters of a weighted logistic regression, not checked yet.
///
/// The loss is `Σ wᵢ ln(1 + exp(−sᵢ (xᵢ·β + b))) + α/2 ‖β‖²` with `sᵢ` = ±1; `α` is 1/C of scikit-learn, and the intercept `b`
/// is not penalised.
#[derive(Debug, Clone)]
pub struct WeightedLogisticRegressionParams(WeightedLogisticRegressionValidParams);

/// Checked parameters of a weighted logistic regression.
#[derive(Debug, Clone)]
pub struct WeightedLogisticRegressionValidParams {
    alpha: f64,
    class_weight: ClassWeight,
    gradient_tolerance: f64,
    max_iterations: u64,
    start: Option<Array1<f64>>,
}

impl Default for WeightedLogisticRegressionParams {
    fn default() -> Self {
        Self(WeightedLogisticRegressionValidParams {
            alpha: 1.0,
            class_weight: ClassWeight::Balanced,
            gradient_tolerance: 1e-8,
            max_iterations: 1_000,
            start: None,
        })
    }
}

impl WeightedLogisticRegressionParams {
    /// Strength of the L2 penalty; 1 unless set.
    pub fn alpha(mut self, alpha: f64) -> Self {
        self.0.alpha = alpha;
        self
    }

    /// Weights of the classes; balanced unless set.
    pub fn class_weight(mut self, class_weight: ClassWeight) -> Self {
        self.0.class_weight = class_weight;
        self
    }

    /// The largest component of the loss's gradient at which the fit counts as converged; 1e-8 unless set.
    pub fn gradient_tolerance(mut self, tolerance: f64) -> Self {
        self.0.gradient_tolerance = tolerance;
        self
    }

    /// Iterations of L-BFGS at most; 1,000 unless set.
    pub fn max_iterations(mut self, iterations: u64) -> Self {
        self.0.max_iterations = iterations;
        self
    }

    /// Where to start: one value per column, then the intercept. Zeros unless set.
    pub fn start(mut self, start: Array1<f64>) -> Self {
        self.0.start = Some(start);
        self
    }
}

impl ParamGuard for WeightedLogisticRegressionParams {
    type Checked = WeightedLogisticRegressionValidParams;
    type Error = Error;

    fn check_ref(&self) -> Result<&Self::Checked, Error> {
        let wrong = |name, value, expected| Err(Error::Parameter { name, value, expected });
        if !self.0.alpha.is_finite() || self.0.alpha < 0.0 {
            return wrong("alpha", self.0.alpha, "a finite number of at least 0");
        }
        if !self.0.gradient_tolerance.is_finite() || self.0.gradient_tolerance <= 0.0 {
            return wrong("gradient tolerance", self.0.gradient_tolerance, "a finite number above 0");
        }
        Ok(&self.0)
    }

    fn check(self) -> Result<Self::Checked, Error> {
        self.check_ref()?;
        Ok(self.0)
    }
}

impl Fit<Array2<f64>, Array1<bool>, Error> for WeightedLogisticRegressionValidParams {
    type Object = FittedLogisticRegression;

    /// Fits on records of shape (rows, columns) and one outcome per row.
    fn fit(&self, dataset: &DatasetBase<Array2<f64>, Array1<bool>>) -> Result<Self::Object, Error> {
        let (x, y) = (dataset.records(), dataset.targets());
        let positives: Vec<bool> = y.iter().copied().collect();
        check_classes(&positives)?;
        if let Some(((row, column), _)) = x.indexed_iter().find(|(_, value)| !value.is_finite()) {
            return Err(Error::NotFinite { row, column });
        }
        let start = self.start.clone().unwrap_or_else(|| Array1::zeros(x.ncols() + 1));
        if start.len() != x.ncols() + 1 {
            return Err(Error::Start { found: start.len(), expected: x.ncols() + 1 });
        }
        let standard = x.as_standard_layout();
        let problem = Problem {
            x: standard.as_slice().unwrap_or_default(),
            columns: x.ncols(),
            targets: positives.iter().map(|&positive| f64::from(u8::from(positive))).collect(),
            weights: self.class_weight.weights(&positives),
            alpha: self.alpha,
        };
        let optimum = problem.minimise(start, self.gradient_tolerance, self.max_iterations)?;
        let columns = x.ncols();
        Ok(FittedLogisticRegression {
            coefficients: optimum.parameters.iter().copied().take(columns).collect(),
            intercept: optimum.parameters[columns],
            convergence: optimum.convergence,
        })
    }
}

fn check_classes(positives: &[bool]) -> Result<(), Error> {
    let count = positives.iter().filter(|positive| **positive).count();
    if count == 0 || count == positives.len() {
        return Err(Error::OneClass { positives: count, rows: positives.len() });
    }
    Ok(())
}

/// A fitted logistic regression.
#[derive(Debug, Clone, PartialEq)]
pub struct FittedLogisticRegression {
    /// One per column of the design matrix, in log-odds per unit.
    pub coefficients: Array1<f64>,
    /// Log-odds of a row of zeros.
    pub intercept: f64,
    /// How close to the optimum the fit came.
    pub convergence: Convergence,
}

impl PredictInplace<Array2<f64>, Array1<f64>> for FittedLogisticRegression {
    /// The log-odds of each row of `x`; `y` holds one number per row.
    fn predict_inplace<'a>(&'a self, x: &'a Array2<f64>, y: &mut Array1<f64>) {
        for (row, log_odds) in std::iter::zip(x.rows(), y) {
            *log_odds = self.intercept + row.iter().zip(&self.coefficients).map(|(x, beta)| x * beta).sum::<f64>();
        }
    }

    fn default_target(&self, x: &Array2<f64>) -> Array1<f64> {
        Array1::zeros(x.nrows())
    }
}

/// How close to an optimum a fit came.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Convergence {
    /// Whether the gradient is within tolerance.
    pub converged: bool,
    /// The largest component of the gradient.
    pub gradient: f64,
    /// Iterations of L-BFGS here (linfa-logistic does not tell its own).
    pub lbfgs_iterations: u64,
    /// Newton steps after it.
    pub newton_steps: u64,
}

/// A (possibly soft) logistic regression as a minimisation problem over the coefficients and, last, the intercept.
///
/// The loss of row `i` is `wᵢ (ln(1 + exp zᵢ) − tᵢ zᵢ)` with target `tᵢ` in [0, 1]; Platt scaling has targets between.
/// Sums run over the rows in order, in plain loops, so that they come out the same on every run.
pub(crate) struct Problem<'a> {
    /// The rows of the design matrix one after another.
    pub(crate) x: &'a [f64],
    /// Columns of the design matrix, at least one.
    pub(crate) columns: usize,
    pub(crate) targets: Vec<f64>,
    pub(crate) weights: Vec<f64>,
    pub(crate) alpha: f64,
}

/// Where a minimisation ended.
pub(crate) struct Optimum {
    /// The coefficients, then the intercept.
    pub(crate) parameters: Vec<f64>,
    pub(crate) convergence: Convergence,
}

/// `1 / (1 + exp(−x))` without overflow.
pub fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 {
        1.0 / (1.0 + (-x).exp())
    } else {
        let e = x.exp();
        e / (1.0 + e)
    }
}

/// `ln(1 + exp x)` without overflow.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sum = 0.0;
    for (a, b) in a.iter().zip(b) {
        sum += a * b;
    }
    sum
}

impl Problem<'_> {
    /// Each row of the design matrix with its target and weight.
    fn rows(&self) -> impl Iterator<Item = (&[f64], f64, f64)> {
        let rows = self.x.chunks_exact(self.columns).zip(&self.targets).zip(&self.weights);
        rows.map(|((row, target), weight)| (row, *target, *weight))
    }

    fn loss(&self, parameters: &[f64]) -> f64 {
        let (coefficients, intercept) = (&parameters[..self.columns], parameters[self.columns]);
        let mut sum = 0.0;
        for (row, target, weight) in self.rows() {
            let z = intercept + dot(row, coefficients);
            sum += weight * (softplus(z) - target * z);
        }
        sum + 0.5 * self.alpha * dot(coefficients, coefficients)
    }

    fn slope(&self, parameters: &[f64]) -> Vec<f64> {
        let (coefficients, intercept) = (&parameters[..self.columns], parameters[self.columns]);
        let mut gradient: Vec<f64> = coefficients.iter().map(|beta| self.alpha * beta).collect();
        let mut intercept_gradient = 0.0;
        for (row, target, weight) in self.rows() {
            let residual = weight * (sigmoid(intercept + dot(row, coefficients)) - target);
            for (sum, x) in gradient.iter_mut().zip(row) {
                *sum += residual * x;
            }
            intercept_gradient += residual;
        }
        gradient.push(intercept_gradient);
        gradient
    }

    /// Second derivatives, the lower triangle alone.
    fn curvature(&self, parameters: &[f64]) -> Array2<f64> {
        let (coefficients, intercept) = (&parameters[..self.columns], parameters[self.columns]);
        let mut hessian = Array2::zeros((self.columns + 1, self.columns + 1));
        let mut filled: Vec<(usize, f64)> = Vec::with_capacity(self.columns + 1);
        for (row, _, weight) in self.rows() {
            let p = sigmoid(intercept + dot(row, coefficients));
            let curvature = weight * p * (1.0 - p);
            // Most columns of a one-hot encoding are zero in any row.
            filled.clear();
            filled.extend(row.iter().copied().enumerate().filter(|(_, x)| *x != 0.0));
            filled.push((self.columns, 1.0));
            for (at, &(i, x)) in filled.iter().enumerate() {
                for &(j, other) in &filled[..=at] {
                    hessian[(i, j)] += curvature * x * other;
                }
            }
        }
        for i in 0..self.columns {
            hessian[(i, i)] += self.alpha;
        }
        hessian
    }

    /// Minimises by L-BFGS from `start`, then by Newton steps for as long as they lessen the gradient.
    ///
    /// # Errors
    /// [`Error::Optimiser`] if L-BFGS cannot start. Not to converge is no error; [`Optimum::convergence`] says so.
    pub(crate) fn minimise(&self, start: Array1<f64>, tolerance: f64, iterations: u64) -> Result<Optimum, Error> {
        let failed = |error: argmin::core::Error| Error::Optimiser(error.to_string());
        // From here on Newton steps converge quadratically, and cost less than what L-BFGS would still need.
        let near = tolerance.max(NEAR * self.weights.iter().sum::<f64>());
        let solver = LBFGS::new(MoreThuenteLineSearch::new(), 10).with_tolerance_grad(near).map_err(failed)?;
        let run = Executor::new(Objective(self), solver)
            .configure(|state| state.param(start.clone()).max_iters(iterations))
            .run()
            .map_err(failed)?;
        let lbfgs_iterations = run.state.iter;
        let parameters = run.state.best_param.unwrap_or(start);
        Ok(self.refine(parameters.to_vec(), tolerance, lbfgs_iterations))
    }

    fn refine(&self, mut parameters: Vec<f64>, tolerance: f64, lbfgs_iterations: u64) -> Optimum {
        let mut gradient = self.slope(&parameters);
        let mut size = largest(&gradient);
        let mut newton_steps = 0;
        while size > 0.0 && newton_steps < MOST_NEWTON_STEPS {
            let Some(direction) = solve(self.curvature(&parameters), &gradient) else { break };
            // Half of a step that overshoots, half of that, and so on; near the optimum only rounding makes a step fail.
            let shares = std::iter::successors(Some(1.0), |share| Some(share * 0.5));
            let taken = shares.take(if size > tolerance { 20 } else { 1 }).find_map(|share| {
                let candidate: Vec<f64> = parameters.iter().zip(&direction).map(|(at, step)| at - share * step).collect();
                let gradient = self.slope(&candidate);
                let next = largest(&gradient);
                (next < size).then_some((candidate, gradient, next))
            });
            let Some((candidate, next_gradient, next)) = taken else { break };
            let exhausted = size <= tolerance && next > 0.5 * size;
            (parameters, gradient, size) = (candidate, next_gradient, next);
            newton_steps += 1;
            if exhausted {
                break;
            }
        }
        let convergence = Convergence { converged: size <= tolerance, gradient: size, lbfgs_iterations, newton_steps };
        Optimum { parameters, convergence }
    }
}

/// The largest magnitude; NaN if there is one.
fn largest(gradient: &[f64]) -> f64 {
    gradient.iter().fold(0.0, |largest, component| if component.abs() <= largest { largest } else { component.abs() })
}

/// Solves `matrix · x = right` for a symmetric positive definite matrix given by its lower triangle (Cholesky). None if the
/// matrix is not positive definite.
fn solve(mut matrix: Array2<f64>, right: &[f64]) -> Option<Vec<f64>> {
    let n = right.len();
    for i in 0..n {
        for j in 0..=i {
            let dot: f64 = (0..j).map(|k| matrix[(i, k)] * matrix[(j, k)]).sum();
            let rest = matrix[(i, j)] - dot;
            if i == j {
                if rest.is_nan() || rest <= 0.0 {
                    return None;
                }
                matrix[(i, i)] = rest.sqrt();
            } else {
                matrix[(i, j)] = rest / matrix[(j, j)];
            }
        }
    }
    let mut x = right.to_vec();
    for i in 0..n {
        let dot: f64 = (0..i).map(|k| matrix[(i, k)] * x[k]).sum();
        x[i] = (x[i] - dot) / matrix[(i, i)];
    }
    for i in (0..n).rev() {
        let dot: f64 = (i + 1..n).map(|k| matrix[(k, i)] * x[k]).sum();
        x[i] = (x[i] - dot) / matrix[(i, i)];
    }
    Some(x)
}

/// argmin takes the problem by value; this lends it.
struct Objective<'p, 'x>(&'p Problem<'x>);

impl CostFunction for Objective<'_, '_> {
    type Param = Array1<f64>;
    type Output = f64;

    fn cost(&self, parameters: &Array1<f64>) -> Result<f64, argmin::core::Error> {
        Ok(self.0.loss(&parameters.to_vec()))
    }
}

impl Gradient for Objective<'_, '_> {
    type Param = Array1<f64>;
    type Gradient = Array1<f64>;

    fn gradient(&self, parameters: &Array1<f64>) -> Result<Array1<f64>, argmin::core::Error> {
        Ok(Array1::from_vec(self.0.slope(&parameters.to_vec())))
    }
}

/// Fits a logistic regression on a design matrix of shape (rows, columns) with one outcome per row.
///
/// `c` is scikit-learn's inverse strength of the penalty. Coefficients are given to nine significant digits: far more than
/// the data decide, and few enough that another machine's `exp` does not change the exported bytes.
///
/// # Errors
/// [`Error`]; not to converge is none, see [`Convergence::converged`].
pub fn fit(
    matrix: Array2<f64>,
    positives: &[bool],
    class_weight: ClassWeight,
    c: f64,
) -> Result<FittedLogisticRegression, Error> {
    if !c.is_finite() || c <= 0.0 {
        return Err(Error::Parameter { name: "C", value: c, expected: "a finite number above 0" });
    }
    check_classes(positives)?;
    let alpha = 1.0 / c;
    let dataset = DatasetBase::new(matrix, Array1::from_vec(positives.to_vec()));
    let mut parameters = WeightedLogisticRegressionParams::default().alpha(alpha).class_weight(class_weight);
    if class_weight == ClassWeight::None {
        parameters = parameters.start(linfa_solution(&dataset, alpha)?);
    }
    let mut fitted = parameters.fit(&dataset)?;
    fitted.coefficients.mapv_inplace(nine_digits);
    fitted.intercept = nine_digits(fitted.intercept);
    Ok(fitted)
}

/// linfa-logistic's coefficients and intercept, for the positive class.
fn linfa_solution(dataset: &DatasetBase<Array2<f64>, Array1<bool>>, alpha: f64) -> Result<Array1<f64>, Error> {
    let near = NEAR * dataset.targets().len() as f64;
    let parameters = LogisticRegression::default().alpha(alpha).max_iterations(1_000).gradient_tolerance(near);
    let fitted = parameters.fit(dataset)?;
    // linfa-logistic decides itself which class it calls positive; without a look, the signs may be the other way round.
    let sign = if fitted.labels().pos.class { 1.0 } else { -1.0 };
    let mut start = fitted.params().to_vec();
    start.push(fitted.intercept());
    start.iter_mut().for_each(|value| *value *= sign);
    Ok(Array1::from_vec(start))
}

/// `value` to nine significant decimal digits.
pub(crate) fn nine_digits(value: f64) -> f64 {
    format!("{value:.8e}").parse().unwrap_or(value)
}
