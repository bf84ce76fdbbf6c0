//! The figures of a comparison, the bars that they are held against, and the table of both.

use std::fs;
use std::thread::available_parallelism;
use std::time::Duration;

use super::outside::Outside;
use super::raw::Runs;
use super::sample::{Sample, median};

/// Everything that was measured; the table shows medians over the rounds.
#[derive(Default)]
pub(super) struct Figures {
    pub(super) rounds: usize,
    pub(super) turn: Duration,
    pub(super) bare: Vec<Sample>,
    pub(super) single: Vec<Sample>,
    pub(super) fastapi_onnx: Vec<Sample>,
    pub(super) fastapi_onnx_async: Vec<Sample>,
    pub(super) fastapi_sklearn: Vec<Sample>,
    pub(super) batch: Vec<Sample>,
    pub(super) run: Runs,
    pub(super) ready_ms: Vec<f64>,
    pub(super) memory_requests: u64,
    pub(super) resident_mib: f64,
    pub(super) growth_mib: f64,
    pub(super) outside: Outside,
}

/// The least share of the bare handler's requests per second.
const BARE_SHARE: f64 = 0.55;
/// The most CPU per request on top of the bare handler's and of `session.run`, in microseconds.
const OWN_CPU_US: f64 = 6.0;
const FASTAPI_ONNX_TIMES: f64 = 12.0;
const FASTAPI_SKLEARN_TIMES: f64 = 65.0;
/// The most CPU per row of a batch, in microseconds.
const BATCH_ROW_CPU_US: f64 = 1.0;
const READY_MS: f64 = 200.0;
const RESIDENT_MIB: f64 = 64.0;
const GROWTH_MIB: f64 = 16.0;

/// What a row of a table says about a bar; a figure that no bar is set for is neither met nor missed.
pub(super) struct Bar {
    bar: String,
    reached: String,
    met: Option<bool>,
}

impl Figures {
    /// One Markdown table and a line about the machine.
    pub(super) fn table(&self) -> String {
        let rate = |samples: &[Sample]| median(samples.iter().map(|sample| sample.per_second));
        let single = rate(&self.single);

        let mut rows = vec![heading(), served("bare axum handler, one row", &self.bare, None)];
        let share = single / rate(&self.bare);
        rows.push(served(
            "**scoregate**, one row",
            &self.single,
            Some(at_least(format!("{BARE_SHARE}× bare axum"), share, BARE_SHARE, format!("{share:.2}×"))),
        ));
        let run = middle(&self.run.single_us);
        let most = cpu(&self.bare) + run + OWN_CPU_US;
        let found = cpu(&self.single);
        rows.push(other(
            "its CPU per request",
            Some(found),
            Some(at_most(
                format!("bare + `session.run` + {OWN_CPU_US} = {most:.1} µs"),
                found,
                most,
                format!("{found:.1} µs"),
            )),
        ));
        let peer = |name: &str, samples: &[Sample], least: f64| {
            let times = single / rate(samples);
            let bar = at_least(format!("{least}× this"), times, least, format!("{times:.1}×"));
            served(name, samples, Some(bar))
        };
        rows.push(peer("FastAPI + ONNX Runtime, 2 workers, one row", &self.fastapi_onnx, FASTAPI_ONNX_TIMES));
        let times = single / rate(&self.fastapi_onnx_async);
        rows.push(served(
            &format!(
                "FastAPI + ONNX Runtime with `async def`, against FastAPI's advice (scoregate is {times:.1}× this)"
            ),
            &self.fastapi_onnx_async,
            None,
        ));
        rows.push(peer(
            "FastAPI + scikit-learn, 2 workers, one row",
            &self.fastapi_sklearn,
            FASTAPI_SKLEARN_TIMES,
        ));
        rows.push(other("`session.run` alone, one row", Some(run), None));
        let with_tensors = middle(&self.run.with_tensors_single_us);
        rows.push(other("`session.run` and making its tensors, one row", Some(with_tensors), None));
        rows.push(other("`session.run` alone, 1,000 rows", Some(middle(&self.run.batch_us)), None));
        let with_tensors = middle(&self.run.with_tensors_batch_us);
        rows.push(other("`session.run` and making its tensors, 1,000 rows", Some(with_tensors), None));
        let row = cpu(&self.batch) / super::BATCH_ROWS as f64;
        rows.push(served(
            "**scoregate**, batch of 1,000 rows as JSON",
            &self.batch,
            Some(at_most(
                format!("{BATCH_ROW_CPU_US:.1} µs CPU a row"),
                row,
                BATCH_ROW_CPU_US,
                format!("{row:.2} µs"),
            )),
        ));
        let ready = middle(&self.ready_ms);
        rows.push(other(
            &format!("start to ready, median of {}", self.ready_ms.len()),
            None,
            Some(at_most(format!("{READY_MS} ms"), ready, READY_MS, format!("{ready:.0} ms"))),
        ));
        let count = thousands(self.memory_requests as f64);
        rows.push(other(
            &format!("resident after {count} requests"),
            None,
            Some(at_most(
                format!("{RESIDENT_MIB} MiB"),
                self.resident_mib,
                RESIDENT_MIB,
                format!("{:.1} MiB", self.resident_mib),
            )),
        ));
        rows.push(other(
            &format!("growth over another {count}"),
            None,
            Some(at_most(
                format!("{GROWTH_MIB} MiB"),
                self.growth_mib,
                GROWTH_MIB,
                format!("{:.1} MiB", self.growth_mib),
            )),
        ));
        format!(
            "{}\n\nMedians of {} rounds of {} s each in turn, {}\n",
            rows.join("\n"),
            self.rounds,
            self.turn.as_secs(),
            conditions()
        )
    }
}

/// The end of a sentence about where and how everything was measured.
pub(super) fn conditions() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("an unnamed processor", |(_, model)| model);
    let cores = available_parallelism().map_or(0, usize::from);
    format!(
        "load generator included on the same {cores} cores of {model}, Linux {}; {} kept-alive connections for one row, \
         {} for batches; ± is half the range over the rounds.",
        read("/proc/sys/kernel/osrelease").trim(),
        super::CONNECTIONS,
        super::BATCH_CONNECTIONS,
    )
}

/// The median of what was measured once a round.
pub(super) fn middle(values: &[f64]) -> f64 {
    median(values.iter().copied())
}

/// The median of the CPU time per request, in microseconds.
pub(super) fn cpu(samples: &[Sample]) -> f64 {
    median(samples.iter().map(|sample| sample.cpu_us))
}

pub(super) fn heading() -> String {
    "| | requests/s | ± | CPU µs/request | p50 ms | p99 ms | bar | reached | met |\n\
     |---|--:|--:|--:|--:|--:|---|--:|---|"
        .to_owned()
}

pub(super) fn served(name: &str, samples: &[Sample], bar: Option<Bar>) -> String {
    let middle = |pick: fn(&Sample) -> f64| median(samples.iter().map(pick));
    let rates = || samples.iter().map(|sample| sample.per_second);
    let spread = (rates().fold(f64::MIN, f64::max) - rates().fold(f64::MAX, f64::min)) / 2.0;
    format!(
        "| {name} | {} | {:.0} % | {:.1} | {:.2} | {:.2} | {}",
        thousands(middle(|sample| sample.per_second)),
        spread / middle(|sample| sample.per_second) * 100.0,
        middle(|sample| sample.cpu_us),
        middle(|sample| sample.p50_ms),
        middle(|sample| sample.p99_ms),
        verdict(bar)
    )
}

/// A row about something that answers no requests.
pub(super) fn other(name: &str, cpu_us: Option<f64>, bar: Option<Bar>) -> String {
    let cpu_us = cpu_us.map(|cpu_us| format!(" {cpu_us:.1}")).unwrap_or_default();
    format!("| {name} | | |{cpu_us} | | | {}", verdict(bar))
}

/// A row with a figure that no bar is set for.
pub(super) fn stated(name: &str, reached: &str) -> String {
    other(name, None, Some(figure(reached.to_owned())))
}

fn verdict(bar: Option<Bar>) -> String {
    let Some(Bar { bar, reached, met }) = bar else { return "| | |".to_owned() };
    let met = met.map_or("", |met| if met { "yes" } else { "**no**" });
    let cell = |text: &str| if text.is_empty() { "|".to_owned() } else { format!("{text} |") };
    [bar.as_str(), &reached, met].map(cell).join(" ")
}

/// What was reached where no bar is set.
pub(super) fn figure(reached: String) -> Bar {
    Bar { bar: String::new(), reached, met: None }
}

pub(super) fn at_least(bar: String, found: f64, least: f64, reached: String) -> Bar {
    Bar { bar: format!("≥ {bar}"), reached, met: Some(found >= least) }
}

pub(super) fn at_most(bar: String, found: f64, most: f64, reached: String) -> Bar {
    Bar { bar: format!("≤ {bar}"), reached, met: Some(found <= most) }
}

pub(super) fn more_than(bar: String, found: f64, least: f64, reached: String) -> Bar {
    Bar { bar: format!("> {bar}"), reached, met: Some(found > least) }
}

/// A whole number with its thousands set apart.
pub(super) fn thousands(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut grouped = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::bench) fn samples(per_second: f64, cpu_us: f64) -> Vec<Sample> {
        [0.9, 1.0, 1.1]
            .map(|factor| Sample { per_second: per_second * factor, cpu_us, p50_ms: 0.5, p99_ms: 1.0 })
            .into()
    }

    #[test]
    fn the_table_holds_each_figure_against_its_bar() {
        let figures = Figures {
            bare: samples(50_000.0, 20.0),
            single: samples(30_000.0, 38.0),
            fastapi_onnx: samples(2_000.0, 900.0),
            fastapi_sklearn: samples(500.0, 3_900.0),
            batch: samples(900.0, 1_100.0),
            run: Runs { single_us: vec![12.0], ..Runs::default() },
            ready_ms: vec![80.0, 90.0, 300.0],
            memory_requests: 1_000_000,
            resident_mib: 40.0,
            growth_mib: 0.5,
            ..Figures::default()
        };
        let table = figures.table();
        for expected in [
            "| **scoregate**, one row | 30,000 | 10 % | 38.0 | 0.50 | 1.00 | ≥ 0.55× bare axum | 0.60× | yes |",
            "| its CPU per request | | | 38.0 | | | ≤ bare + `session.run` + 6 = 38.0 µs | 38.0 µs | yes |",
            "| ≥ 12× this | 15.0× | yes |",
            "| ≥ 65× this | 60.0× | **no** |",
            "| ≤ 1.0 µs CPU a row | 1.10 µs | **no** |",
            "| start to ready, median of 3 | | | | | | ≤ 200 ms | 90 ms | yes |",
            "| resident after 1,000,000 requests | | | | | | ≤ 64 MiB | 40.0 MiB | yes |",
        ] {
            assert!(table.contains(expected), "{expected}\nis not in\n{table}");
        }
        let columns: Vec<usize> = table.lines().take(15).map(|line| line.matches('|').count()).collect();
        assert!(columns.iter().all(|&count| count == 10), "{columns:?}\n{table}");
    }
}
