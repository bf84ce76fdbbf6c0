//! [`Quota`]: so many rows a time, all at once or evenly, counted by a [`Bucket`].

use std::fmt;
use std::time::Duration;

/// Time is counted in parts of a nanosecond, so that what one row costs is a whole number to within a part in 65,536.
const PARTS: u64 = 1 << 16;

/// The units that quotas are given in.
const UNITS: [(&str, u64); 4] = [("s", 1), ("min", 60), ("hour", 3_600), ("day", 86_400)];

/// `rows` rows per `per`: a burst of as many, which comes back evenly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Quota {
    /// How many rows.
    pub rows: u64,
    /// In which time; a second, a minute, an hour or a day.
    pub per: Duration,
    /// How long one row takes to come back, in parts of a nanosecond.
    row: u64,
}

impl Quota {
    /// `rows` rows per `per`; none if it is no row, more than one a nanosecond, or over more than a day.
    pub fn new(rows: u64, per: Duration) -> Option<Self> {
        let nanoseconds =
            u64::try_from(per.as_nanos()).ok().filter(|_| per <= Duration::from_secs(86_400))?;
        // A day in parts is less than a third of what fits, so that nothing below overflows.
        (1..=nanoseconds).contains(&rows).then(|| Self { rows, per, row: nanoseconds * PARTS / rows })
    }

    /// What `rows` rows cost. More than all of them cost the same as one more, which is never there.
    fn cost(&self, rows: u64) -> u64 {
        self.row * rows.min(self.rows + 1)
    }
}

impl fmt::Display for Quota {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = UNITS.iter().find(|(_, seconds)| Duration::from_secs(*seconds) == self.per);
        match unit {
            Some((unit, _)) => write!(formatter, "{}/{unit}", self.rows),
            None => write!(formatter, "{}/{:?}", self.rows, self.per),
        }
    }
}

impl std::str::FromStr for Quota {
    type Err = String;

    /// Reads `1000/min`.
    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || {
            "rows and a time such as 1000/min (s, min, hour or day), of at most a thousand million rows a second".to_string()
        };
        let (rows, unit) = text.split_once('/').ok_or_else(expected)?;
        let (_, seconds) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(expected)?;
        // `parse` alone would take a sign.
        let is_number = rows.bytes().all(|byte| byte.is_ascii_digit());
        let rows = rows.parse().ok().filter(|_| is_number).ok_or_else(expected)?;
        Self::new(rows, Duration::from_secs(*seconds)).ok_or_else(expected)
    }
}

/// What one policy says to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Verdict {
    /// Whether this policy lets the rows through; all of them have to.
    pub admitted: bool,
    /// The rows that may follow at once.
    pub remaining: u64,
    /// In which time the whole quota is there again if nothing else comes.
    pub reset_after: Duration,
    /// When as many rows would be let through; zero if they are.
    pub retry_after: Duration,
}

/// What was taken of a quota and has not come back. GCRA, kept as the distance of the theoretical arrival time from the
/// present: a quota that changes while the gateway runs keeps the share that was taken.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Bucket {
    /// When `taken` was right, in nanoseconds.
    at: u64,
    /// How long it takes from then on until nothing is taken, in parts of a nanosecond.
    taken: u64,
}

impl Bucket {
    /// A bucket of which at `now`, in nanoseconds, as much was taken as comes back in the time `taken`.
    pub(super) fn of(taken: Duration, now: u64) -> Self {
        let nanoseconds = u64::try_from(taken.as_nanos()).unwrap_or(u64::MAX);
        Self { at: now, taken: nanoseconds.saturating_mul(PARTS) }
    }

    /// What is still taken at `now`, in nanoseconds. Times that other threads have overtaken count as the latest one seen.
    fn taken(&self, now: u64) -> u64 {
        self.taken.saturating_sub(now.saturating_sub(self.at).saturating_mul(PARTS))
    }

    /// How many rows are still taken, in part at least.
    pub(super) fn rows(&self, quota: &Quota, now: u64) -> u64 {
        self.taken(now).div_ceil(quota.row)
    }

    /// Whether nothing is.
    pub(super) fn is_full(&self, now: u64) -> bool {
        self.taken(now) == 0
    }

    /// Whether `rows` may be taken at `now`. If they may not, the answer says when `rows` and `before`, which the same request
    /// has taken already, would be there together: it will be sent again as a whole.
    pub(super) fn ask(&self, quota: &Quota, rows: u64, before: u64, now: u64) -> Verdict {
        let all = quota.cost(quota.rows);
        // More than all can be taken only by a quota that was longer: nobody waits for longer than the present one lasts.
        let taken = self.taken(now).min(all);
        let free = all - taken;
        let again = quota.cost(rows.saturating_add(before)).min(all);
        let admitted = quota.cost(rows) <= free;
        Verdict {
            admitted,
            remaining: free / quota.row,
            reset_after: duration(taken),
            retry_after: if admitted { Duration::ZERO } else { duration(again.saturating_sub(free)) },
        }
    }

    /// Takes `rows`, which [`Bucket::ask`] has let through.
    pub(super) fn take(&mut self, quota: &Quota, rows: u64, now: u64) -> Verdict {
        let all = quota.cost(quota.rows);
        self.taken = self.taken(now).saturating_add(quota.cost(rows)).min(all);
        self.at = self.at.max(now);
        Verdict {
            admitted: true,
            remaining: (all - self.taken) / quota.row,
            reset_after: duration(self.taken),
            retry_after: Duration::ZERO,
        }
    }
}

fn duration(parts: u64) -> Duration {
    Duration::from_nanos(parts.div_ceil(PARTS))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn quota(text: &str) -> Quota {
        text.parse().unwrap()
    }

    /// Takes `rows` if they are there.
    fn take(bucket: &mut Bucket, quota: &Quota, rows: u64, now: u64) -> Verdict {
        let verdict = bucket.ask(quota, rows, 0, now);
        if verdict.admitted { bucket.take(quota, rows, now) } else { verdict }
    }

    #[test]
    fn quotas_are_rows_and_a_unit() {
        for (text, rows, seconds) in [
            ("1/s", 1, 1),
            ("60000/min", 60_000, 60),
            ("7/hour", 7, 3_600),
            ("1000000000000/day", 1_000_000_000_000, 86_400),
            ("1000000000/s", 1_000_000_000, 1),
        ] {
            let found = quota(text);
            assert_eq!((found.rows, found.per), (rows, Duration::from_secs(seconds)));
            assert_eq!(found.to_string(), text);
        }
        for wrong in [
            "",
            "off",
            "1000",
            "1000/",
            "/min",
            "0/min",
            "-1/min",
            "+1/min",
            "1.5/min",
            "1000/m",
            "1000/minute",
            "1000/60s",
            "1000 / min",
            "1000000001/s",
            "18446744073709551616/day",
        ] {
            assert!(wrong.parse::<Quota>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_burst_is_the_whole_quota_and_comes_back_evenly() {
        // Numbers that divide the time evenly, and such that do not.
        for text in ["1000/hour", "7/min", "60000/min", "3/s", "999999999/s", "86399/day"] {
            let quota = quota(text);
            let (mut bucket, start) = (Bucket::default(), 5 * SECOND);
            let singles = quota.rows.min(10_000);
            let rest = take(&mut bucket, &quota, quota.rows - singles, start);
            assert!(rest.admitted, "{text}");
            for taken in 1..=singles {
                let verdict = take(&mut bucket, &quota, 1, start);
                assert_eq!((verdict.admitted, verdict.remaining), (true, singles - taken), "{text}");
            }
            let refused = take(&mut bucket, &quota, 1, start);
            assert_eq!((refused.admitted, refused.remaining), (false, 0), "{text}");
            let one = u64::try_from(refused.retry_after.as_nanos()).unwrap();
            assert!(one.abs_diff(quota.per.as_nanos() as u64 / quota.rows) <= 1, "{text}: {one}");
            assert!(!take(&mut bucket, &quota, 1, start + one - 1).admitted || one == 1, "{text}");
            assert!(take(&mut bucket, &quota, 1, start + one).admitted, "{text}");
            assert_eq!(bucket.rows(&quota, start + one), quota.rows, "{text}");
            // Half the time later, half of it.
            let half = bucket.ask(&quota, 1, 0, start + one + quota.per.as_nanos() as u64 / 2);
            assert!(half.remaining.abs_diff(quota.rows / 2) <= 1 + quota.rows / 50_000, "{text}: {half:?}");
            assert!(bucket.is_full(start + one + quota.per.as_nanos() as u64), "{text}");
        }
    }

    #[test]
    fn the_wait_is_for_the_whole_request_and_never_longer_than_the_quota() {
        let quota = quota("10/min");
        let mut bucket = Bucket::default();
        take(&mut bucket, &quota, 6, 0);
        // One row of this batch of six is among those taken.
        let verdict = bucket.ask(&quota, 5, 1, 0);
        assert!(!verdict.admitted);
        assert_eq!((verdict.remaining, verdict.retry_after), (4, Duration::from_secs(12)));
        assert_eq!(verdict.reset_after, Duration::from_secs(36));
        assert!(take(&mut bucket, &quota, 6, 12 * SECOND).admitted);
        // What can never be let through is not waited for longer than the whole quota takes.
        for rows in [11, u64::MAX] {
            let never = bucket.ask(&quota, rows, 1, 12 * SECOND);
            assert_eq!((never.admitted, never.retry_after), (false, Duration::from_secs(60)), "{rows}");
        }
    }

    #[test]
    fn a_quota_that_changes_keeps_the_share_that_was_taken() {
        let mut bucket = Bucket::default();
        take(&mut bucket, &quota("1000/hour"), 500, 0);
        assert_eq!(bucket.ask(&quota("10/hour"), 1, 0, 0).remaining, 5);
        assert_eq!(bucket.ask(&quota("100000/hour"), 1, 0, 0).remaining, 50_000);
        let shorter = bucket.ask(&quota("10/s"), 1, 0, 0);
        assert_eq!((shorter.remaining, shorter.retry_after), (0, Duration::from_millis(100)));
    }

    #[test]
    fn time_that_stands_still_or_is_overtaken_gives_nothing_back() {
        let quota = quota("2/s");
        let mut bucket = Bucket::default();
        assert!(take(&mut bucket, &quota, 2, 10 * SECOND).admitted);
        for now in [10 * SECOND, 9 * SECOND, 0] {
            let verdict = take(&mut bucket, &quota, 1, now);
            assert_eq!((verdict.admitted, verdict.retry_after), (false, Duration::from_millis(500)), "{now}");
        }
        assert!(take(&mut bucket, &quota, 2, u64::MAX).admitted);
        assert!(!take(&mut bucket, &quota, 1, u64::MAX).admitted);
    }
}
