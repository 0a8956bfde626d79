//! Ids for events without one: UUIDs of version 7.
//!
//! The ids begin with the time, and each is greater than the previous one, so the index of ids grows at its end.
//! PostgreSQL inserts without searching and splits no full pages, and after a checkpoint it writes a full-page image of
//! one page. For random ids it would write one for almost every event. Source: RFC 9562, 5.7 and, for the fraction of a
//! millisecond, 6.2, method 3.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};

/// Time of the last id, in 4096ths of a millisecond.
static LAST: AtomicU64 = AtomicU64::new(0);

/// A unique id, greater than all previous ones of this process, even when the clock is set back.
pub fn new() -> Result<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut random = [0; 8];
    // From the operating system: a generator inside the process would repeat itself in a forked child.
    getrandom::fill(&mut random).map_err(|error| Error::Encode {
        path: "id".to_owned(),
        reason: format!("the system gave no random bytes: {error}"),
    })?;
    let next = |last: u64| ticks(now).max(last + 1);
    let last = LAST.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(next(last))).unwrap_or_default();
    Ok(uuid(next(last), u64::from_be_bytes(random)))
}

fn ticks(since_epoch: Duration) -> u64 {
    let millis = u64::try_from(since_epoch.as_millis()).unwrap_or_default();
    (millis << 12) | (u64::from(since_epoch.subsec_nanos() % 1_000_000) * 4096 / 1_000_000)
}

fn uuid(ticks: u64, random: u64) -> String {
    let (millis, fraction) = (ticks >> 12, ticks & 0xfff);
    let (first, last) = (0b10 << 14 | random >> 50, random & 0xffff_ffff_ffff);
    format!("{:08x}-{:04x}-7{fraction:03x}-{first:04x}-{last:012x}", millis >> 16, millis & 0xffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_rfc() {
        // RFC 9562, appendix A.6: 2022-02-22 19:22:22 UTC
        let (ticks, random) = (0x017f_22e2_79b0 << 12 | 0xcc3, 0x18c4 << 50 | 0xdc0c_0c07_398f);
        assert_eq!(uuid(ticks, random), "017f22e2-79b0-7cc3-98c4-dc0c0c07398f");
    }

    #[test]
    fn each_is_later() {
        let ids: Vec<String> = (0..10_000).map(|_| new().unwrap()).collect();
        assert!(ids.is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn fractions_of_a_millisecond() {
        assert_eq!(ticks(Duration::from_nanos(5_999_999)), 5 << 12 | 4095);
        assert_eq!(ticks(Duration::from_millis(6)), 6 << 12);
    }
}
