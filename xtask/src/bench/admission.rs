//! What it costs to let a request in, held against its bars; measured by a program of its own on one thread.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result};

use super::report::{at_most, heading, middle, other};
use crate::workspace::{self, Workspace};

/// The most that a token which is remembered may cost, in microseconds of CPU.
const REMEMBERED_US: f64 = 2.0;
/// The most that a new token may cost, as a multiple of checking its signature alone.
const NEW_SHARE: f64 = 1.15;
/// The most that counting a request's row of two quotas may cost, in microseconds of CPU.
const QUOTA_US: f64 = 0.5;

/// The most that it may cost with leases from Redis, in microseconds that pass.
const LEASED_US: f64 = 1.5;

/// Microseconds of CPU time by what was measured, one entry a round.
#[derive(Default)]
pub(super) struct Admission {
    costs: BTreeMap<String, Vec<f64>>,
}

impl Admission {
    /// Adds one round.
    pub(super) fn measure(&mut self, workspace: &Workspace) -> Result<()> {
        let program = workspace.target.join("release/examples/admission");
        let printed = workspace::capture(&mut Command::new(program))?;
        let costs: BTreeMap<String, f64> =
            serde_json::from_str(&printed).context("admission printed something other than figures")?;
        for (name, cost) in costs {
            self.costs.entry(name).or_default().push(cost);
        }
        Ok(())
    }

    fn cost(&self, name: &str) -> f64 {
        self.costs.get(name).map_or(f64::NAN, |costs| middle(costs))
    }

    /// A Markdown table in the form of the others.
    pub(super) fn table(&self) -> String {
        let mut rows = vec![heading(), other("admission of an API key", Some(self.cost("key_us")), None)];
        for algorithm in ["ES256", "RS256"] {
            let cost = |name: &str| self.cost(&format!("{name}_{}_us", algorithm.to_lowercase()));
            let remembered = cost("remembered");
            let reached = format!("{remembered:.2} µs");
            let bar = at_most(format!("{REMEMBERED_US} µs"), remembered, REMEMBERED_US, reached);
            let name = format!("admission of a token signed with {algorithm} that is remembered");
            rows.push(other(&name, Some(remembered), Some(bar)));
            let signature = cost("signature");
            rows.push(other(&format!("checking an {algorithm} signature alone"), Some(signature), None));
            let share = cost("new") / signature;
            let bar = at_most(format!("{NEW_SHARE}× this"), share, NEW_SHARE, format!("{share:.2}×"));
            let name = format!("admission of a new token signed with {algorithm}");
            rows.push(other(&name, Some(cost("new")), Some(bar)));
        }
        let quota = self.cost("quota_us");
        let bar = at_most(format!("{QUOTA_US} µs"), quota, QUOTA_US, format!("{quota:.2} µs"));
        let name = "counting a row of two quotas, in process";
        rows.push(other(name, Some(quota), Some(bar)));
        let leased = self.cost("leased_us");
        let bar = at_most(format!("{LEASED_US} µs"), leased, LEASED_US, format!("{leased:.2} µs"));
        let name = "the same with leases of 2 % from Redis, waits for it included";
        rows.push(other(name, Some(leased), Some(bar)));
        format!("{}\n", rows.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cost_is_held_against_its_bar() {
        let costs = [
            ("key_us", 0.5),
            ("remembered_es256_us", 1.0),
            ("signature_es256_us", 100.0),
            ("new_es256_us", 110.0),
            ("remembered_rs256_us", 3.0),
            ("signature_rs256_us", 20.0),
            ("new_rs256_us", 24.0),
            ("quota_us", 0.3),
            ("leased_us", 1.6),
        ];
        let costs = costs.into_iter().map(|(name, cost)| (name.to_owned(), vec![cost])).collect();
        let table = Admission { costs }.table();
        for expected in [
            "signed with ES256 that is remembered | | | 1.0 | | | ≤ 2 µs | 1.00 µs | yes |",
            "new token signed with ES256 | | | 110.0 | | | ≤ 1.15× this | 1.10× | yes |",
            "signed with RS256 that is remembered | | | 3.0 | | | ≤ 2 µs | 3.00 µs | **no** |",
            "new token signed with RS256 | | | 24.0 | | | ≤ 1.15× this | 1.20× | **no** |",
            "row of two quotas, in process | | | 0.3 | | | ≤ 0.5 µs | 0.30 µs | yes |",
            "waits for it included | | | 1.6 | | | ≤ 1.5 µs | 1.60 µs | **no** |",
        ] {
            assert!(table.contains(expected), "{expected}\nis not in\n{table}");
        }
    }
}
