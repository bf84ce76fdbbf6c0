//! What gateways say of themselves: what a model costs, how many rows were looked for in the cache, and how many were found.

use anyhow::{Context, Result, bail};

use serde_json::Value;

use super::{Cost, Gateway};
use crate::http1;

/// The levels of the cache, the nearer first.
pub(super) const LEVELS: [&str; 2] = ["memory", "redis"];

/// Rows, or shares of rows, by level.
#[derive(Clone, Copy, Default)]
pub(super) struct Looked {
    /// That were looked for.
    pub(super) up: [f64; 2],
    /// That were found.
    pub(super) found: [f64; 2],
}

impl Looked {
    pub(super) fn since(self, before: Self) -> Self {
        let less = |now: [f64; 2], before: [f64; 2]| [now[0] - before[0], now[1] - before[1]];
        Self { up: less(self.up, before.up), found: less(self.found, before.found) }
    }

    /// As shares of all rows.
    pub(super) fn of(self, rows: f64) -> Self {
        let share = |counts: [f64; 2]| counts.map(|count| count / rows);
        Self { up: share(self.up), found: share(self.found) }
    }

    /// Reads the text of Prometheus; a gateway that never looked says nothing of it.
    fn read(metrics: &str) -> Result<Self> {
        let mut looked = Self::default();
        for line in metrics.lines() {
            let Some(rest) = line.strip_prefix("scoregate_cache_rows_total{") else { continue };
            let (labels, count) = rest.split_once("} ").context("a metric without a value")?;
            let count: f64 = count.parse().with_context(|| format!("`{count}` is no count"))?;
            let label = |name: &str| {
                let value = labels.split(',').find_map(|label| label.strip_prefix(name)?.strip_prefix("=\""));
                value.and_then(|value| value.strip_suffix('"'))
            };
            let level = LEVELS.iter().position(|level| label("level") == Some(level));
            let level = level.with_context(|| format!("`{labels}` names no level that is known"))?;
            let (found, missed) = (label("outcome") == Some("hit"), label("outcome") == Some("miss"));
            // The other outcomes are those of writing, or say why a row is among the missed.
            if found || missed {
                looked.up[level] += count;
            }
            if found {
                looked.found[level] += count;
            }
        }
        Ok(looked)
    }
}

impl Gateway {
    /// What it has counted until now.
    pub(super) fn looked(&self) -> Result<Looked> {
        let answer = http1::exchange(self.admin, &http1::get(self.admin, "/metrics", None))?;
        if answer.status != 200 {
            bail!("/metrics answers {}, expected 200", answer.status);
        }
        Looked::read(&answer.body)
    }

    /// What `model` costs; an error until it is loaded.
    pub(super) fn cost(&self, model: &str, key: &str) -> Result<Cost> {
        let path = format!("/v1/models/{model}");
        let answer = self.server.ask(&http1::get(self.server.address, &path, Some(key)))?;
        let document: Value = serde_json::from_str(&answer)
            .with_context(|| format!("{path} answered something other than JSON"))?;
        let cost = &document["versions"][0]["cost"];
        let (Some(run_us), Some(row_ns)) = (cost["run_us"].as_f64(), cost["row_ns"].as_f64()) else {
            bail!("{path} says no cost of its one version, which is to be live: {answer}");
        };
        Ok(Cost { run_us, row_us: row_ns / 1e3 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_by_level_and_outcome() {
        let metrics = "# TYPE scoregate_cache_rows counter\n\
            scoregate_cache_rows_total{level=\"memory\",outcome=\"hit\"} 30\n\
            scoregate_cache_rows_total{outcome=\"miss\",level=\"memory\"} 10\n\
            scoregate_cache_rows_total{level=\"redis\",outcome=\"hit\"} 1\n\
            scoregate_cache_rows_total{level=\"redis\",outcome=\"miss\"} 5\n\
            scoregate_cache_rows_total{level=\"redis\",outcome=\"stored\"} 3\n\
            scoregate_rows_total{route=\"/v1/predict\"} 100\n";
        let looked = Looked::read(metrics).unwrap();
        assert_eq!((looked.up, looked.found), ([40.0, 6.0], [30.0, 1.0]));
        let before = Looked { up: [20.0, 6.0], found: [25.0, 1.0] };
        let share = looked.since(before).of(40.0);
        assert_eq!((share.up, share.found), ([0.5, 0.0], [0.125, 0.0]));
        let never = Looked::read("scoregate_rows_total 1\n").unwrap();
        assert_eq!(never.up, [0.0, 0.0]);
        assert!(Looked::read("scoregate_cache_rows_total{level=\"disk\"} 1\n").is_err());
    }
}
