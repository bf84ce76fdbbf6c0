//! Which slots are whose, and which slot an entity is in.

use scoregate_schemas::rollout::{Canary, SLOTS};

/// Why shares cannot be given.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// A share is no number from 0 to 100 with at most two decimals.
    #[error(
        "found {percent} percent for version {version}, expected a number from 0 to 100 with at most two decimals"
    )]
    Share {
        /// The version.
        version: String,
        /// What was asked for.
        percent: f64,
    },
    /// The shares come to more than everything.
    #[error("the canaries' shares come to {percent} percent, expected at most 100 together")]
    Total {
        /// What they come to.
        percent: f64,
    },
}

/// The slot of `key`, which is an entity or a caller: the same for every version of `model`, and in each gateway.
pub fn slot(model: &str, key: &str) -> u16 {
    let mut hasher = blake3::Hasher::new_derive_key("scoregate 2026-11 slots of rollouts");
    hasher.update(&(model.len() as u64).to_le_bytes()).update(model.as_bytes()).update(key.as_bytes());
    let [a, b, c, d, e, f, g, h, ..] = *hasher.finalize().as_bytes();
    // Of 64 bits the remainder favours no slot by more than 1 in 10^15.
    (u64::from_le_bytes([a, b, c, d, e, f, g, h]) % u64::from(SLOTS)) as u16
}

/// How many slots `percent` are; nothing if that is no number from 0 to 100 with at most two decimals.
pub fn count(percent: f64) -> Option<usize> {
    let exact = percent * f64::from(SLOTS) / 100.0;
    let count = exact.round();
    let is_share = (0.0..=f64::from(SLOTS)).contains(&count) && (exact - count).abs() <= 1e-6;
    is_share.then_some(count as usize)
}

/// How many slots are in these ranges.
pub fn len(ranges: &[(u16, u16)]) -> u16 {
    ranges.iter().map(|(first, end)| end - first).sum()
}

/// How much of everything so many slots are, in percent.
pub fn percent(slots: u16) -> f64 {
    f64::from(slots) * 100.0 / f64::from(SLOTS)
}

/// Gives each of `wanted`, versions with their percentages, its slots: those that it had `before`, more out of what nobody has if its
/// share has grown, and fewer, the last ones, if it has shrunk.
///
/// # Errors
/// [`Error`] of shares that are none or too much.
pub fn assign(before: &[Canary], wanted: &[(String, f64)]) -> Result<Vec<Canary>, Error> {
    let mut counts = Vec::with_capacity(wanted.len());
    for (version, percent) in wanted {
        let share = || Error::Share { version: version.clone(), percent: *percent };
        counts.push(count(*percent).ok_or_else(share)?);
    }
    let total: usize = counts.iter().sum();
    if total > usize::from(SLOTS) {
        return Err(Error::Total { percent: total as f64 * 100.0 / f64::from(SLOTS) });
    }
    // Who has which slot; first everybody keeps what they may.
    let mut owners: Vec<Option<usize>> = vec![None; usize::from(SLOTS)];
    let mut held = vec![0; wanted.len()];
    for (at, (version, _)) in wanted.iter().enumerate() {
        let ranges = before.iter().find(|canary| canary.version == *version).map(|canary| &canary.slots);
        for slot in ranges.into_iter().flatten().flat_map(|(first, end)| *first..*end) {
            if let Some(owner @ None) = owners.get_mut(usize::from(slot))
                && held[at] < counts[at]
            {
                *owner = Some(at);
                held[at] += 1;
            }
        }
    }
    let mut free = (0..owners.len()).filter(|slot| owners[*slot].is_none()).collect::<Vec<_>>().into_iter();
    for (at, count) in counts.iter().enumerate() {
        for slot in free.by_ref().take(count - held[at]) {
            owners[slot] = Some(at);
        }
    }
    let canary = |(at, (version, percent)): (usize, &(String, f64))| Canary {
        slots: ranges(&owners, at),
        ..Canary::of(version, *percent)
    };
    Ok(wanted.iter().enumerate().map(canary).collect())
}

/// The slots of one owner, as ranges.
fn ranges(owners: &[Option<usize>], of: usize) -> Vec<(u16, u16)> {
    let mut found: Vec<(u16, u16)> = Vec::new();
    for (slot, _) in owners.iter().enumerate().filter(|(_, owner)| **owner == Some(of)) {
        let slot = slot as u16;
        match found.last_mut() {
            Some((_, end)) if *end == slot => *end += 1,
            _ => found.push((slot, slot + 1)),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn wanted(shares: &[(&str, f64)]) -> Vec<(String, f64)> {
        shares.iter().map(|(version, percent)| ((*version).into(), *percent)).collect()
    }

    fn members(canary: &Canary) -> BTreeSet<u16> {
        canary.slots.iter().flat_map(|(first, end)| *first..*end).collect()
    }

    #[test]
    fn a_share_that_grows_keeps_whom_it_has() {
        let mut before = Vec::new();
        let mut former = BTreeSet::new();
        for percent in [0.0, 0.01, 5.0, 25.0, 99.99, 100.0] {
            before = assign(&before, &wanted(&[("b", percent)])).unwrap();
            let now = members(&before[0]);
            assert_eq!(now.len() as f64, percent * 100.0);
            assert!(now.is_superset(&former), "at {percent} percent");
            former = now;
        }
    }

    #[test]
    fn several_canaries_take_nothing_from_each_other() {
        let steps: [&[(&str, f64)]; 6] = [
            &[("b", 5.0)],
            &[("b", 5.0), ("c", 10.0)],
            &[("b", 25.0), ("c", 10.0)],
            &[("c", 30.0), ("b", 25.0), ("d", 1.5)],
            &[("d", 20.0), ("c", 30.0)],
            &[("d", 70.0), ("c", 30.0)],
        ];
        let mut before: Vec<Canary> = Vec::new();
        for step in steps {
            let now = assign(&before, &wanted(step)).unwrap();
            let total: usize = now.iter().map(|canary| members(canary).len()).sum();
            let union: BTreeSet<u16> = now.iter().flat_map(members).collect();
            assert_eq!(total, union.len(), "no slot is given twice");
            for canary in &now {
                assert_eq!(members(canary).len() as f64, canary.percent * 100.0);
                let former = before.iter().find(|found| found.version == canary.version);
                if let Some(former) = former {
                    let (small, large) = (members(former), members(canary));
                    assert!(large.is_superset(&small), "{} at {step:?}", canary.version);
                }
            }
            before = now;
        }
    }

    #[test]
    fn a_share_that_shrinks_gives_back_what_came_last() {
        let five = assign(&[], &wanted(&[("b", 5.0)])).unwrap();
        let more = assign(&five, &wanted(&[("b", 40.0)])).unwrap();
        assert_eq!(assign(&more, &wanted(&[("b", 5.0)])).unwrap(), five);
    }

    #[test]
    fn what_is_no_share_is_refused() {
        for percent in [-1.0, 100.01, 0.001, f64::NAN, f64::INFINITY, 1e300] {
            let found = assign(&[], &wanted(&[("b", percent)]));
            assert!(matches!(found, Err(Error::Share { .. })), "{percent}: {found:?}");
        }
        let found = assign(&[], &wanted(&[("b", 60.0), ("c", 40.01)]));
        assert_eq!(found, Err(Error::Total { percent: 100.01 }));
    }

    #[test]
    fn slots_that_a_file_made_up_are_given_once() {
        let made_up =
            |version: &str| Canary { slots: vec![(0, 60), (50, 65_535), (9, 3)], ..Canary::of(version, 1.0) };
        let now = assign(&[made_up("b"), made_up("c")], &wanted(&[("b", 1.0), ("c", 1.0)])).unwrap();
        assert_eq!((members(&now[0]).len(), members(&now[1]).len()), (100, 100));
        assert!(members(&now[0]).is_disjoint(&members(&now[1])));
    }

    #[test]
    fn entities_spread_evenly_and_differently_for_each_model() {
        let mut counts = [0_u32; 100];
        let mut same = 0;
        for at in 0..100_000 {
            let key = format!("customer-{at}");
            let found = slot("churn", &key);
            counts[usize::from(found / 100)] += 1;
            same += u32::from(found / 100 == slot("fraud", &key) / 100);
        }
        // A thousand each, give or take four standard deviations.
        assert!(counts.iter().all(|count| (874..=1_126).contains(count)), "{counts:?}");
        assert!((874..=1_126).contains(&same), "{same} of 100,000 have the same percent in two models");
    }
}
