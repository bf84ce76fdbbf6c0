//! What the process takes of the machine, by the names that all Prometheus clients use.

use std::fmt;
use std::fs;
use std::str::FromStr;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Ticks of a second in `/proc`, which are these on every architecture of Linux that there is a library for.
const TICKS: f64 = 100.0;

/// Reads `/proc` when it is asked.
#[derive(Debug)]
pub(super) struct Process;

/// What is read; nothing of what cannot be.
struct Figures {
    resident: Option<i64>,
    virtual_memory: Option<i64>,
    threads: Option<i64>,
    cpu: Option<f64>,
    start: Option<f64>,
    open_files: Option<i64>,
    max_files: Option<i64>,
}

/// The number behind `name` in a file of names and values.
fn number<T: FromStr>(text: &str, name: &str) -> Option<T> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

impl Figures {
    fn read() -> Self {
        let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
        let (status, stat, machine) =
            (read("/proc/self/status"), read("/proc/self/stat"), read("/proc/stat"));
        let limits = read("/proc/self/limits");
        let kibibytes = |name| number::<i64>(&status, name).map(|size| size * 1024);
        // The name of the program, in brackets, may hold anything.
        let fields: Vec<&str> =
            stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
        let ticks = |field: usize| fields.get(field - 3)?.parse::<f64>().ok().map(|ticks| ticks / TICKS);
        Self {
            resident: kibibytes("VmRSS:"),
            virtual_memory: kibibytes("VmSize:"),
            threads: number(&status, "Threads:"),
            cpu: ticks(14).zip(ticks(15)).map(|(user, system)| user + system),
            start: ticks(22).zip(number::<f64>(&machine, "btime ")).map(|(since, boot)| boot + since),
            open_files: fs::read_dir("/proc/self/fd")
                .ok()
                .and_then(|files| i64::try_from(files.count()).ok()),
            max_files: number(&limits, "Max open files"),
        }
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let figures = Figures::read();
        if let Some(seconds) = figures.cpu {
            let help = "Processor time, of users and the system together";
            let metric = encoder.encode_descriptor("process_cpu_seconds", help, None, MetricType::Counter)?;
            ConstCounter::new(seconds).encode(metric)?;
        }
        if let Some(seconds) = figures.start {
            let help = "When the process was started, in seconds since 1970";
            let metric =
                encoder.encode_descriptor("process_start_time_seconds", help, None, MetricType::Gauge)?;
            ConstGauge::new(seconds).encode(metric)?;
        }
        for (name, help, value) in [
            ("process_resident_memory_bytes", "Memory that is resident", figures.resident),
            ("process_virtual_memory_bytes", "Memory that is mapped", figures.virtual_memory),
            ("process_threads", "Threads", figures.threads),
            ("process_open_fds", "Open file descriptors", figures.open_files),
            ("process_max_fds", "File descriptors that may be open", figures.max_files),
        ] {
            if let Some(value) = value {
                let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
                ConstGauge::new(value).encode(metric)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_of_this_process_are_read() {
        let figures = Figures::read();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        let age = now - figures.start.unwrap();
        assert!((-2.0..86_400.0).contains(&age), "started {age} s ago");
        assert!(figures.cpu.unwrap() < 3_600.0);
        assert!(figures.resident.unwrap() > 1 << 20 && figures.virtual_memory > figures.resident);
        assert!(figures.threads.unwrap() >= 1 && figures.open_files.unwrap() >= 3);
        assert!(figures.max_files >= figures.open_files);
    }
}
