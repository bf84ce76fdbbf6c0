//! What processes cost: CPU time to the nanosecond and resident memory, children included.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::time::ClockId;
use nix::unistd::Pid;

/// CPU time of a process and of its living descendants, all their threads, ended threads included.
pub(crate) fn cpu(pid: u32) -> Result<Duration> {
    let mut total = Duration::ZERO;
    for pid in family(pid)? {
        let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(pid.cast_signed()));
        let now = clock
            .and_then(ClockId::now)
            .with_context(|| format!("process {pid} has no CPU clock; did it end?"))?;
        total += Duration::from(now);
    }
    Ok(total)
}

/// Bytes of memory that a process and its descendants hold.
pub(crate) fn resident(pid: u32) -> Result<u64> {
    let mut total = 0;
    for pid in family(pid)? {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))
            .with_context(|| format!("process {pid} cannot be looked at; did it end?"))?;
        let kibibytes: u64 = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|value| value.trim().strip_suffix(" kB")?.parse().ok())
            .with_context(|| format!("/proc/{pid}/status has no VmRSS in kB"))?;
        total += kibibytes * 1024;
    }
    Ok(total)
}

fn family(pid: u32) -> Result<Vec<u32>> {
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        next += 1;
        let threads = fs::read_dir(format!("/proc/{parent}/task"))
            .with_context(|| format!("process {parent} cannot be looked at; did it end?"))?;
        for thread in threads {
            // A thread may end while one looks; its children then belong to another one.
            let children = fs::read_to_string(thread?.path().join("children")).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_shows_in_the_cpu_time_of_the_process_that_does_it() {
        let mut child =
            std::process::Command::new("sh").args(["-c", "(while :; do :; done) & wait"]).spawn().unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while cpu(child.id()).unwrap() < Duration::from_millis(200) {
            assert!(
                std::time::Instant::now() < deadline,
                "the child's child burns CPU, and none was counted"
            );
            crate::workspace::pause(Duration::from_millis(10));
        }
        for pid in family(child.id()).unwrap() {
            nix::sys::signal::kill(Pid::from_raw(pid.cast_signed()), nix::sys::signal::Signal::SIGKILL)
                .unwrap();
        }
        child.wait().unwrap();
        assert!(resident(std::process::id()).unwrap() > 1 << 20);
    }
}
