//! The table of the cache.

use super::scraped::{LEVELS, Looked};
use super::{BATCH_ROWS, Block, Cache, Caching, Cost, QUICK, REPEATED, SLOW, SLOW_US, Traffic};
use crate::bench::report::{Bar, at_least, conditions, figure, heading, served, thousands};
use crate::bench::sample::{Sample, quantile};
use crate::requests::KNOWN;

/// The least that is left of the rate without a cache, whatever comes.
const NEW_SHARE: f64 = 0.97;
/// The least multiple of that rate where most rows came before and the model is slow.
const REPEATED_TIMES: f64 = 3.0;

impl Traffic {
    pub(super) fn describe(&self) -> String {
        let Self { model, rows, known } = self;
        let requests = if *rows == 1 { "single rows".to_owned() } else { format!("batches of {rows}") };
        match known {
            0 => format!("{model}, {requests}, all rows new"),
            known => format!("{model}, {requests}, {known}0 % of rows repeated"),
        }
    }

    /// The bar for a cache that decides for itself, if there is one.
    fn bar(&self) -> Option<f64> {
        match (self.known, self.model) {
            (0, _) => Some(NEW_SHARE),
            (_, SLOW) => Some(REPEATED_TIMES),
            _ => None,
        }
    }
}

impl Caching {
    fn describe(self) -> &'static str {
        match self {
            Self::Off => "cache `off`",
            Self::Auto => "**`auto`, in process**",
            Self::AutoWithRedis => "**`auto`, in process and Redis**",
            Self::OffAgain => "cache `off`, a second process",
            Self::Memory => "`memory`, forced",
            Self::Redis => "`redis`, forced",
        }
    }
}

impl Cache {
    /// One Markdown table and a line about how it came about.
    pub(in crate::bench) fn table(&self) -> String {
        let mut rows = vec![heading()];
        rows.extend(self.blocks.iter().flat_map(Block::rows));
        let cost = |at: usize| {
            let Cost { run_us, row_us } = self.costs[at];
            format!("{run_us:.1} µs for one row and {row_us:.1} µs for each of many")
        };
        format!(
            "The cache of scores, beside the same gateway without it:\n\n{}\n\nA run of {QUICK} takes {}, one of {SLOW} \
             {}, as the gateway measured them when it loaded them; the latter was made to take {SLOW_US} µs, and took \
             {:.0} µs then. Medians of {} rounds in which all answer the same requests one after the other, as many as \
             `off` answers in {} ms; what is reached is the median of the ratios to the mean of both that are `off` within the rounds, and in \
             brackets the middle half of them. In brackets after a name: the share of rows that was looked for at a \
             level, and that was found there. Repeated rows are drawn from {} that were sent before; batches have \
             {BATCH_ROWS} rows, of which {REPEATED} of ten are repeated; {}\n",
            rows.join("\n"),
            cost(0),
            cost(1),
            self.slow_us,
            self.plan.rounds,
            self.plan.turn.as_millis(),
            thousands(KNOWN as f64),
            conditions(),
        )
    }
}

impl Block {
    fn rows(&self) -> Vec<String> {
        let mut rows = vec![format!("| *{}* | | | | | | | | |", self.traffic.describe())];
        // Two processes, since no two are equally lucky.
        let of = |caching| Caching::ALL.into_iter().zip(&self.samples).find(|(found, _)| *found == caching);
        let offs = [Caching::Off, Caching::OffAgain].map(|caching| of(caching).expect("all are there").1);
        let off = offs[0].iter().zip(offs[1]).map(|(one, other)| (one.per_second + other.per_second) / 2.0);
        let off: Vec<f64> = off.collect();
        for ((caching, samples), looked) in Caching::ALL.into_iter().zip(&self.samples).zip(&self.looked) {
            let bar = (caching != Caching::Off).then(|| self.bar(caching, samples, &off));
            rows.push(served(&format!("{}{}", caching.describe(), looked.describe()), samples, bar));
        }
        rows
    }

    fn bar(&self, caching: Caching, samples: &[Sample], off: &[f64]) -> Bar {
        let ratios = samples.iter().zip(off).map(|(sample, off)| sample.per_second / off);
        let ratios: Vec<f64> = ratios.collect();
        let [low, middle, high] = [0.25, 0.5, 0.75].map(|at| quantile(ratios.iter().copied(), at));
        let reached = format!("{middle:.3}× ({low:.3}–{high:.3})");
        match self.traffic.bar().filter(|_| caching.mode() == "auto") {
            Some(least) => at_least(format!("{least}× `off`"), middle, least, reached),
            None => figure(reached),
        }
    }
}

impl Looked {
    /// For the end of a name; nothing if nothing was looked for.
    fn describe(&self) -> String {
        let of = |level: usize| {
            let [up, found] = [self.up, self.found].map(|shares| shares[level] * 100.0);
            (up > 0.0).then(|| format!("{}: {up:.0} %, {found:.0} %", LEVELS[level]))
        };
        let levels: Vec<String> = (0..LEVELS.len()).filter_map(of).collect();
        if levels.is_empty() { String::new() } else { format!(" ({})", levels.join("; ")) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::bench::cache::Plan;

    fn samples(rates: [f64; 3]) -> Vec<Sample> {
        rates.map(|per_second| Sample { per_second, cpu_us: 20.0, p50_ms: 0.5, p99_ms: 1.0 }).into()
    }

    #[test]
    fn each_round_is_compared_with_itself() {
        const OFF: [f64; 3] = [100.0, 200.0, 400.0];
        let none = Looked::default();
        let some = Looked { up: [0.03125, 0.031], found: [0.0, 0.001] };
        let block = |model, known, auto: [f64; 3], shared: [f64; 3]| Block {
            traffic: Traffic { model, rows: 1, known },
            samples: [OFF, auto, shared, [101.0, 200.0, 396.0], [50.0, 100.0, 200.0], [10.0, 20.0, 40.0]]
                .map(samples)
                .into(),
            looked: vec![none, some, some, none, none, none],
        };
        let blocks = vec![
            block(QUICK, 0, [98.0, 200.0, 380.0], [96.0, 210.0, 380.0]),
            block(SLOW, 9, [600.0, 590.0, 1_240.0], [300.0, 580.0, 1_140.0]),
            block(QUICK, 9, [600.0, 590.0, 1_240.0], [300.0, 580.0, 1_140.0]),
        ];
        let plan = Plan { rounds: 3, turn: Duration::from_millis(500) };
        let costs = [Cost { run_us: 9.94, row_us: 0.09 }, Cost { run_us: 498.3, row_us: 480.0 }];
        let table = Cache { plan, slow_us: 506.7, costs, blocks }.table();
        for expected in [
            "| *churn, single rows, all rows new* | | | | | | | | |",
            "| cache `off` | 200 | 75 % | 20.0 | 0.50 | 1.00 | | | |",
            "| **`auto`, in process** (memory: 3 %, 0 %; redis: 3 %, 0 %) | 200 | 70 % | 20.0 | 0.50 | 1.00 | ≥ 0.97× `off` | \
             0.975× (0.965–0.988) | yes |",
            "| ≥ 0.97× `off` | 0.955× (0.955–1.003) | **no** |",
            "| cache `off`, a second process | 200 | 74 % | 20.0 | 0.50 | 1.00 | | 1.000× (0.997–1.002) | |",
            "| `memory`, forced | 100 | 75 % | 20.0 | 0.50 | 1.00 | | 0.500× (0.499–0.501) | |",
            "| *churn_slow, single rows, 90 % of rows repeated* | | | | | | | | |",
            "| ≥ 3× `off` | 3.116× (3.033–4.543) | yes |",
            "| ≥ 3× `off` | 2.900× (2.882–2.943) | **no** |",
            "1.00 | | 3.116× (3.033–4.543) | |",
            "A run of churn takes 9.9 µs for one row and 0.1 µs for each of many, one of churn_slow 498.3 µs for one row",
            "made to take 500 µs, and took 507 µs",
        ] {
            assert!(table.contains(expected), "{expected}\nis not in\n{table}");
        }
        let columns =
            table.lines().filter(|line| line.starts_with('|')).map(|line| line.matches('|').count());
        assert_eq!(columns.collect::<Vec<_>>(), [10; 23], "{table}");
    }
}
