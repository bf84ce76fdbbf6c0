//! L2-regularised logistic regression with class weights, converged tightly, behind linfa's traits.
//!
//! [`fit`] is what the trainer calls. Without class weights it asks linfa-logistic; with them, which linfa-logistic does not
//! have, [`WeightedLogisticRegressionParams`] minimises the weighted loss with the same L-BFGS of argmin. Both end in the same
//! Newton steps (see [`minimise`](crate::minimise)), which linfa-logistic's answer needs as well to agree with
//! scikit-learn's converged coefficients.

use linfa::ParamGuard;
use linfa::dataset::DatasetBase;
use linfa::traits::{Fit, PredictInplace};
use linfa_logistic::LogisticRegression;
use ndarray::{Array1, Array2};

use crate::minimise::{Convergence, NEAR, Problem};

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
    #[error("L-BFGS failed")]
    Optimiser(#[from] argmin::core::Error),
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
            *log_odds =
                self.intercept + row.iter().zip(&self.coefficients).map(|(x, beta)| x * beta).sum::<f64>();
        }
    }

    fn default_target(&self, x: &Array2<f64>) -> Array1<f64> {
        Array1::zeros(x.nrows())
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
fn linfa_solution(
    dataset: &DatasetBase<Array2<f64>, Array1<bool>>,
    alpha: f64,
) -> Result<Array1<f64>, Error> {
    let near = NEAR * dataset.targets().len() as f64;
    let parameters =
        LogisticRegression::default().alpha(alpha).max_iterations(1_000).gradient_tolerance(near);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::minimise::sigmoid;
    use ndarray::array;
    use scoregate_model::random::Random;

    const OUTCOMES: [bool; 10] = [false, true, false, true, false, false, true, false, false, true];

    fn matrix() -> Array2<f64> {
        array![
            [0.5, 1.0],
            [1.5, -0.3],
            [-0.7, 0.2],
            [2.1, 0.9],
            [-1.2, -1.1],
            [0.3, 0.8],
            [1.1, -1.9],
            [-0.4, 1.3],
            [0.9, 0.1],
            [-1.6, 0.4]
        ]
    }

    /// Expected numbers: scikit-learn 1.9.1, `LogisticRegression(solver="newton-cholesky", tol=1e-12)`.
    #[test]
    fn agrees_with_scikit_learn() {
        for (class_weight, c, coefficients, intercept) in [
            (ClassWeight::None, 1.0, [0.5319343286894663, -0.4742616185480079], -0.5170507164057111),
            (ClassWeight::None, 0.1, [0.15981692947914336, -0.11928062573307921], -0.43319238970625124),
            (ClassWeight::Balanced, 1.0, [0.480576970268069, -0.46017497045365335], -0.11971922286400777),
            (ClassWeight::Balanced, 0.1, [0.15914329465036486, -0.12085323136505557], -0.044082918665296206),
        ] {
            let fitted = fit(matrix(), &OUTCOMES, class_weight, c).unwrap();
            assert!(fitted.convergence.converged, "{:?}", fitted.convergence);
            let found = fitted.coefficients.iter().chain([&fitted.intercept]);
            for (found, expected) in found.zip(coefficients.iter().chain([&intercept])) {
                assert!(
                    (found - expected).abs() < 1e-8,
                    "{class_weight:?}, C {c}: found {found}, expected {expected}"
                );
            }
        }
    }

    fn random_data(rows: usize) -> (Array2<f64>, Vec<bool>) {
        let mut random = Random::new(11, "test");
        let x = Array2::from_shape_fn((rows, 6), |(_, column)| {
            if column < 4 { random.normal() } else { f64::from(u8::from(random.uniform() < 0.02)) }
        });
        let outcomes =
            x.rows().into_iter().map(|row| random.uniform() < sigmoid(row[0] - 0.5 * row[1] + row[4] - 1.5));
        let outcomes = outcomes.collect();
        (x, outcomes)
    }

    /// The weighted loss at weight 1, from zeros, against linfa-logistic's own optimum.
    #[test]
    fn at_weight_one_it_is_linfa_logistic() {
        let (x, outcomes) = random_data(3_000);
        for first in [true, false] {
            // linfa-logistic's choice of the positive class depends on the first row.
            let mut order: Vec<usize> = (0..outcomes.len()).collect();
            let start = outcomes.iter().position(|outcome| *outcome == first).unwrap();
            order.swap(0, start);
            let x = x.select(ndarray::Axis(0), &order);
            let y: Array1<bool> = order.iter().map(|row| outcomes[*row]).collect();
            let dataset = DatasetBase::new(x, y);
            let linfa = linfa_solution(&dataset, 0.5).unwrap();
            let parameters =
                WeightedLogisticRegressionParams::default().alpha(0.5).class_weight(ClassWeight::None);
            let own = parameters.fit(&dataset).unwrap();
            assert!(own.convergence.converged);
            // linfa-logistic is stopped early, so it is within the gradient it was asked for over the least curvature.
            for (own, linfa) in own.coefficients.iter().chain([&own.intercept]).zip(&linfa) {
                assert!((own - linfa).abs() < 5e-3, "{own} against {linfa}");
            }
            let tight =
                LogisticRegression::default().alpha(0.5).gradient_tolerance(1e-6).max_iterations(1_000);
            let tight = tight.fit(&dataset).unwrap();
            let sign = if tight.labels().pos.class { 1.0 } else { -1.0 };
            for (own, linfa) in own.coefficients.iter().zip(tight.params()) {
                assert!((own - sign * linfa).abs() < 1e-6, "{own} against {linfa}");
            }
        }
    }

    #[test]
    fn predicts_log_odds() {
        let fitted = fit(matrix(), &OUTCOMES, ClassWeight::None, 1.0).unwrap();
        let dataset = DatasetBase::from(matrix());
        let mut log_odds = fitted.default_target(dataset.records());
        fitted.predict_inplace(dataset.records(), &mut log_odds);
        let expected = fitted.intercept + 0.5 * fitted.coefficients[0] + fitted.coefficients[1];
        assert!((log_odds[0] - expected).abs() < 1e-15);
    }

    #[test]
    fn a_separable_problem_converges_through_its_penalty() {
        let x = Array2::from_shape_fn((100, 1), |(row, _)| row as f64 - 49.5);
        let outcomes: Vec<bool> = (0..100).map(|row| row >= 50).collect();
        let fitted = fit(x, &outcomes, ClassWeight::Balanced, 1e4).unwrap();
        assert!(fitted.convergence.converged && fitted.coefficients[0] > 5.0, "{fitted:?}");
    }

    #[test]
    fn an_optimum_out_of_reach_is_said_to_be() {
        let x = Array2::from_shape_fn((100, 1), |(row, _)| row as f64 - 49.5);
        let outcomes: Vec<bool> = (0..100).map(|row| row >= 50).collect();
        let dataset = DatasetBase::new(x, Array1::from_vec(outcomes));
        // Without a penalty the coefficient of separable classes grows without bound.
        let parameters = WeightedLogisticRegressionParams::default().alpha(0.0).gradient_tolerance(1e-300);
        let fitted = parameters.fit(&dataset).unwrap();
        assert!(!fitted.convergence.converged, "{:?}", fitted.convergence);
    }

    #[test]
    fn bad_parameters_and_data_are_errors() {
        let refused = fit(matrix(), &OUTCOMES, ClassWeight::None, 0.0).unwrap_err();
        assert_eq!(refused.to_string(), "C is 0, expected a finite number above 0");
        let refused = fit(matrix(), &[true; 10], ClassWeight::None, 1.0).unwrap_err();
        assert_eq!(refused.to_string(), "found 10 positive rows of 10, expected rows of both classes");
        let mut x = matrix();
        x[(3, 1)] = f64::NAN;
        let refused = fit(x, &OUTCOMES, ClassWeight::Balanced, 1.0).unwrap_err();
        assert_eq!(refused.to_string(), "row 3, column 1 of the design matrix is not finite");
        let start = WeightedLogisticRegressionParams::default().start(Array1::zeros(1));
        let refused =
            start.fit(&DatasetBase::new(matrix(), Array1::from_vec(OUTCOMES.to_vec()))).unwrap_err();
        assert!(matches!(refused, Error::Start { found: 1, expected: 3 }));
    }

    #[test]
    fn nine_digits_are_kept() {
        assert_eq!(nine_digits(1.234_567_891_234), 1.234_567_89);
        assert_eq!(nine_digits(-1.234_567_891_234e-7), -1.234_567_89e-7);
        assert_eq!(nine_digits(0.0), 0.0);
    }
}
