//! What it costs to let a request in, and how exact quotas are that replicas share, held against their bars; measured by a
//! program of its own.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result};

use super::report::{at_most, heading, middle, other, thousands};
use crate::workspace::{self, Workspace};

/// The most that a token which is remembered may cost, in microseconds of CPU.
const REMEMBERED_US: f64 = 2.0;
/// The most that a new token may cost, as a multiple of checking its signature alone.
const NEW_SHARE: f64 = 1.15;
/// The most that counting a request's row of two quotas may cost, in microseconds of CPU.
const QUOTA_US: f64 = 0.5;
/// The most that it may cost with leases from Redis, in microseconds that pass.
const LEASED_US: f64 = 1.5;
/// The most rows of 1,000 that two replicas may let through together: with leases of 2 %, and without.
const LEASED_ROWS: f64 = 1_040.0;
const UNLEASED_ROWS: f64 = 1_010.0;

/// Microseconds of CPU time, or rows, by what was measured, one entry a round.
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

    /// The most in any round.
    fn most(&self, name: &str) -> f64 {
        self.costs.get(name).map_or(f64::NAN, |costs| costs.iter().copied().fold(f64::MIN, f64::max))
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
        for (name, with, most) in [
            ("rows_with_leases", "each of which holds a lease of 2 %", LEASED_ROWS),
            ("rows_without_leases", "without leases", UNLEASED_ROWS),
        ] {
            let found = self.most(name);
            let bar = at_most(
                format!("{} of 1,000", thousands(most)),
                found,
                most,
                format!("{} rows", thousands(found)),
            );
            let name = format!("what two replicas at once let through, {with}; most in any round");
            rows.push(other(&name, None, Some(bar)));
        }
        format!("Letting a request in, timed on one thread:\n\n{}\n", rows.join("\n"))
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
        let mut costs: BTreeMap<String, Vec<f64>> =
            costs.into_iter().map(|(name, cost)| (name.to_owned(), vec![cost])).collect();
        costs.insert("rows_with_leases".into(), vec![1_000.0, 1_038.0, 1_020.0]);
        costs.insert("rows_without_leases".into(), vec![1_000.0, 1_011.0]);
        let table = Admission { costs }.table();
        for expected in [
            "signed with ES256 that is remembered | | | 1.0 | | | ≤ 2 µs | 1.00 µs | yes |",
            "new token signed with ES256 | | | 110.0 | | | ≤ 1.15× this | 1.10× | yes |",
            "signed with RS256 that is remembered | | | 3.0 | | | ≤ 2 µs | 3.00 µs | **no** |",
            "new token signed with RS256 | | | 24.0 | | | ≤ 1.15× this | 1.20× | **no** |",
            "row of two quotas, in process | | | 0.3 | | | ≤ 0.5 µs | 0.30 µs | yes |",
            "waits for it included | | | 1.6 | | | ≤ 1.5 µs | 1.60 µs | **no** |",
            "lease of 2 %; most in any round | | | | | | ≤ 1,040 of 1,000 | 1,038 rows | yes |",
            "without leases; most in any round | | | | | | ≤ 1,010 of 1,000 | 1,011 rows | **no** |",
        ] {
            assert!(table.contains(expected), "{expected}\nis not in\n{table}");
        }
    }
}
