//! A contender's turns: requests a second, CPU per request of its processes, and latency.

use std::time::Duration;

use anyhow::{Result, bail};

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
        let before = usage::cpu(self.server.pid())?;
        let outcome = self.load(turn)?;
        let cpu = usage::cpu(self.server.pid())? - before;
        all_answered(&outcome)?;
        self.samples.push(Sample {
            per_second: outcome.rate(),
            cpu_us: cpu.as_secs_f64() * 1e6 / outcome.answers() as f64,
            p50_ms: outcome.latency(0.5).as_secs_f64() * 1e3,
            p99_ms: outcome.latency(0.99).as_secs_f64() * 1e3,
        });
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

/// A comparison is only one where everybody did the work.
pub(super) fn all_answered(outcome: &Outcome) -> Result<()> {
    if outcome.errors() > 0 || outcome.answers() == 0 {
        bail!("every answer was to be 200; found {}", outcome.tally());
    }
    Ok(())
}

/// The middle value; not a number if there is none.
pub(super) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => values[count / 2],
        count => f64::midpoint(values[count / 2 - 1], values[count / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert!(median([]).is_nan());
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 3.0, 2.0]), 2.5);
    }
}
