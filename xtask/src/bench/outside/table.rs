//! The table of models from outside.

use super::{LEAVES, MODELS, TREE_COUNT};
use crate::bench::BATCH_ROWS;
use crate::bench::report::{Figures, at_most, cpu, heading, middle, more_than, other, served, stated};

/// The most CPU of a batch of trees, as a multiple of `session.run` and the cost of JSON.
const BATCH_TIMES: f64 = 1.15;
/// What cutting the ZipMap has to gain.
const ZIPMAP_TIMES: f64 = 1.0;
const LATER_START_MS: f64 = 3_000.0;

impl Figures {
    /// One Markdown table and a line about the models.
    pub(in crate::bench) fn outside_table(&self) -> String {
        let outside = &self.outside;
        let mut rows = vec![heading(), served("**scoregate**, one row", &outside.single, None)];
        let mut gain = |rows_of: &str, exported: &[f64], cut: &[f64]| {
            let (exported, cut) = (middle(exported), middle(cut));
            let times = exported / cut;
            let bar =
                more_than(format!("{ZIPMAP_TIMES:.1}× gain"), times, ZIPMAP_TIMES, format!("{times:.2}×"));
            rows.push(other(
                &format!("`session.run` of the file as exported, maps read, {rows_of}"),
                Some(exported),
                None,
            ));
            rows.push(other(
                &format!("`session.run` as it is served, ZipMap cut, {rows_of}"),
                Some(cut),
                Some(bar),
            ));
        };
        gain("one row", &outside.published.single_us, &outside.served.single_us);
        gain("1,000 rows", &outside.published.batch_us, &outside.served.batch_us);

        let json = cpu(&self.batch) - middle(&self.run.with_tensors_batch_us);
        rows.push(other(
            "JSON of 1,000 rows: churn's batch less its `session.run` and tensors",
            Some(json),
            None,
        ));
        let (raw, found) = (middle(&outside.served.batch_us) + json, cpu(&outside.batch));
        let times = found / raw;
        let bar = at_most(
            format!("{BATCH_TIMES}× (`session.run` + JSON = {raw:.0} µs)"),
            times,
            BATCH_TIMES,
            format!("{found:.0} µs, {times:.2}×"),
        );
        rows.push(served("**scoregate**, batch of 1,000 rows as JSON", &outside.batch, Some(bar)));

        let seconds = |ms: f64| format!("{:.2} s", ms / 1e3);
        let first = seconds(outside.first_start_ms);
        rows.push(stated(
            &format!("{MODELS} models, first start until every one answers: each is tried"),
            &first,
        ));
        let later = middle(&outside.later_start_ms);
        let bar = at_most(seconds(LATER_START_MS), later, LATER_START_MS, seconds(later));
        let starts = outside.later_start_ms.len();
        rows.push(other(
            &format!("{MODELS} models, later start until every one answers, median of {starts}"),
            None,
            Some(bar),
        ));
        let mib = |bytes: f64| format!("{:.2} MiB", bytes / f64::from(1 << 20));
        let more = outside.resident_all as f64 - outside.resident_one as f64;
        rows.push(stated("resident memory per model", &mib(more / (MODELS - 1) as f64)));
        // The first one is churn, which is there in either gateway.
        let reported: u64 = outside.reported.iter().skip(1).sum();
        rows.push(stated(
            "memory per model as the gateway says",
            &mib(reported as f64 / (MODELS - 1) as f64),
        ));
        format!(
            "Models from outside, in the same rounds:\n\n{}\n\nA LightGBM classifier of {TREE_COUNT} trees with {LEAVES} \
             leaves on the features of churn, imported and served beside it. `session.run` reads the first batch's \
             {BATCH_ROWS} rows. Half of {MODELS} models are churn, half the trees; memory is of the {} beyond one churn.\n",
            rows.join("\n"),
            MODELS - 1,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::outside::Outside;
    use crate::bench::raw::Runs;
    use crate::bench::report::tests::samples;

    #[test]
    fn models_from_outside_are_held_against_their_bars() {
        let runs = |single_us: f64, batch_us: f64, with_tensors_batch_us: f64| Runs {
            single_us: vec![single_us],
            batch_us: vec![batch_us],
            with_tensors_batch_us: vec![with_tensors_batch_us],
            ..Runs::default()
        };
        let figures = Figures {
            batch: samples(900.0, 800.0),
            run: runs(12.0, 150.0, 200.0),
            outside: Outside {
                single: samples(20_000.0, 50.0),
                batch: samples(300.0, 3_680.0),
                published: runs(30.0, 2_500.0, 2_600.0),
                served: runs(20.0, 2_600.0, 2_700.0),
                first_start_ms: 20_500.0,
                later_start_ms: vec![2_000.0, 3_100.0, 2_400.0],
                resident_one: 30 << 20,
                resident_all: (30 + 99) << 20,
                reported: vec![1 << 30, 99 << 19],
            },
            ..Figures::default()
        };
        let table = figures.outside_table();
        for expected in [
            "| **scoregate**, one row | 20,000 | 10 % | 50.0 | 0.50 | 1.00 | | | |",
            "| `session.run` of the file as exported, maps read, one row | | | 30.0 | | | | | |",
            "| `session.run` as it is served, ZipMap cut, one row | | | 20.0 | | | > 1.0× gain | 1.50× | yes |",
            "| `session.run` as it is served, ZipMap cut, 1,000 rows | | | 2600.0 | | | > 1.0× gain | 0.96× | **no** |",
            "churn's batch less its `session.run` and tensors | | | 600.0 | | | | | |",
            "| 3680.0 | 0.50 | 1.00 | ≤ 1.15× (`session.run` + JSON = 3200 µs) | 3680 µs, 1.15× | yes |",
            "| 100 models, first start until every one answers: each is tried | | | | | | | 20.50 s | |",
            "| 100 models, later start until every one answers, median of 3 | | | | | | ≤ 3.00 s | 2.40 s | yes |",
            "| resident memory per model | | | | | | | 1.00 MiB | |",
            "| memory per model as the gateway says | | | | | | | 0.50 MiB | |",
        ] {
            assert!(table.contains(expected), "{expected}\nis not in\n{table}");
        }
        let columns =
            table.lines().filter(|line| line.starts_with('|')).map(|line| line.matches('|').count());
        assert_eq!(columns.collect::<Vec<_>>(), [10; 13], "{table}");
    }
}
