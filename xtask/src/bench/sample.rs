//! A contender's turns: requests a second, CPU per request of its processes, and latency.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::load::{Limit, Load, Outcome, Pace};
use crate::server::Server;
use crate::usage;

/// What one turn showed.
pub(super) struct Sample {
    pub(super) per_second: f64,
    /// Microseconds of CPU time per request, of all the server's processes.
    pub(super) cpu_us: f64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
}

/// Somebody who answers requests, and where their samples go.
pub(super) struct Contender<'a> {
    samples: &'a mut Vec<Sample>,
    server: &'a Server,
    requests: Vec<Vec<u8>>,
    connections: usize,
}

impl<'a> Contender<'a> {
    pub(super) fn new(
        samples: &'a mut Vec<Sample>,
        server: &'a Server,
        requests: Vec<Vec<u8>>,
        connections: usize,
    ) -> Self {
        Self { samples, server, requests, connections }
    }

    /// Lets caches fill and lazy parts load, which nobody is measured for.
    pub(super) fn warm_up(&self) -> Result<()> {
        all_answered(&self.load(Duration::from_secs(1))?)
    }

    /// Measures for a while at full load.
    pub(super) fn take_turn(&mut self, turn: Duration) -> Result<()> {
        let sample = measure(self.server, || self.load(turn))?;
        self.samples.push(sample);
        Ok(())
    }

    fn load(&self, duration: Duration) -> Result<Outcome> {
        Load {
            address: self.server.address,
            requests: &self.requests,
            connections: self.connections,
            pace: Pace::AsAnswered,
            limit: Limit::For(duration),
        }
        .run()
    }
}

/// What a load on `server` showed.
pub(super) fn measure(server: &Server, load: impl FnOnce() -> Result<Outcome>) -> Result<Sample> {
    let before = usage::cpu(server.pid())?;
    let outcome = load()?;
    let cpu = usage::cpu(server.pid())?.checked_sub(before).context(
        "a process of the server ended while it was measured, and its CPU time is not known any more",
    )?;
    all_answered(&outcome)?;
    Ok(Sample {
        per_second: outcome.rate(),
        cpu_us: cpu.as_secs_f64() * 1e6 / outcome.answers() as f64,
        p50_ms: outcome.latency(0.5).as_secs_f64() * 1e3,
        p99_ms: outcome.latency(0.99).as_secs_f64() * 1e3,
    })
}

/// A comparison is only one where everybody did the work.
pub(super) fn all_answered(outcome: &Outcome) -> Result<()> {
    if outcome.errors() > 0 || outcome.answers() == 0 {
        bail!("every answer was to be 200; found {}", outcome.tally());
    }
    Ok(())
}

/// The middle value; not a number if there is none.
pub(super) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    quantile(values, 0.5)
}

/// The value that the share `at` of all values do not exceed, between the two nearest where it is none of them; not a number if
/// there are none.
pub(super) fn quantile(values: impl IntoIterator<Item = f64>, at: f64) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let Some(last) = values.len().checked_sub(1) else { return f64::NAN };
    let place = at * last as f64;
    let (below, above) = (values[place.floor() as usize], values[place.ceil() as usize]);
    below + (above - below) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert!(median([]).is_nan());
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 3.0, 2.0]), 2.5);
        assert_eq!([0.0, 0.25, 0.9, 1.0].map(|at| quantile([5.0, 1.0, 3.0], at)), [1.0, 2.0, 4.6, 5.0]);
    }
}
