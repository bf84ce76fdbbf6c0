//! Minimises a weighted logistic loss: L-BFGS from afar, Newton steps at the end.
//!
//! The line search of L-BFGS compares sums over all rows, whose rounding hides the last digits of the optimum (gradients
//! stall near 1e-4 at 20,000 rows), while a Newton step needs the gradient alone. That is what makes coefficients comparable
//! with scikit-learn's, and a fit repeatable.

use argmin::core::{CostFunction, Executor, Gradient};
use argmin::solver::linesearch::MoreThuenteLineSearch;
use argmin::solver::quasinewton::LBFGS;
use ndarray::{Array1, Array2};

/// The gradient, per unit of weight, at which L-BFGS hands over to Newton steps.
pub(crate) const NEAR: f64 = 1e-4;

/// Newton steps at most; a handful is usual.
const MOST_NEWTON_STEPS: u64 = 50;

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
    /// If L-BFGS cannot start. Not to converge is no error; [`Optimum::convergence`] says so.
    pub(crate) fn minimise(
        &self,
        start: Array1<f64>,
        tolerance: f64,
        iterations: u64,
    ) -> Result<Optimum, argmin::core::Error> {
        // From here on Newton steps converge quadratically, and cost less than what L-BFGS would still need.
        let near = tolerance.max(NEAR * self.weights.iter().sum::<f64>());
        let solver = LBFGS::new(MoreThuenteLineSearch::new(), 10).with_tolerance_grad(near)?;
        let run = Executor::new(Objective(self), solver)
            .configure(|state| state.param(start.clone()).max_iters(iterations))
            .run()?;
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
                let candidate: Vec<f64> =
                    parameters.iter().zip(&direction).map(|(at, step)| at - share * step).collect();
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
        let convergence =
            Convergence { converged: size <= tolerance, gradient: size, lbfgs_iterations, newton_steps };
        Optimum { parameters, convergence }
    }
}

/// The largest magnitude; NaN if there is one.
fn largest(gradient: &[f64]) -> f64 {
    gradient
        .iter()
        .fold(0.0, |largest, component| if component.abs() <= largest { largest } else { component.abs() })
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

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn solves_a_positive_definite_system() {
        // [[4, 2], [2, 3]] · [1, 2] = [8, 8], by hand.
        let solution = solve(array![[4.0, 0.0], [2.0, 3.0]], &[8.0, 8.0]).unwrap();
        assert!((solution[0] - 1.0).abs() < 1e-15 && (solution[1] - 2.0).abs() < 1e-15);
        assert!(solve(array![[1.0, 0.0], [2.0, 1.0]], &[1.0, 1.0]).is_none());
    }

    #[test]
    fn the_gradient_is_that_of_the_loss() {
        let problem = Problem {
            x: &[0.5, -1.0, 2.0, 0.3, -0.7, 1.1],
            columns: 2,
            targets: vec![1.0, 0.2, 0.0],
            weights: vec![0.5, 2.0, 1.0],
            alpha: 0.3,
        };
        let at = [0.4, -0.2, 0.1];
        let gradient = problem.slope(&at);
        let hessian = problem.curvature(&at);
        for i in 0..3 {
            let step = 1e-6;
            let [mut above, mut below] = [at, at];
            above[i] += step;
            below[i] -= step;
            let slope = (problem.loss(&above) - problem.loss(&below)) / (2.0 * step);
            assert!((gradient[i] - slope).abs() < 1e-8, "{} against {slope}", gradient[i]);
            for j in 0..=i {
                let bend = (problem.slope(&above)[j] - problem.slope(&below)[j]) / (2.0 * step);
                assert!((hessian[(i, j)] - bend).abs() < 1e-8, "{} against {bend}", hessian[(i, j)]);
            }
        }
    }
}
