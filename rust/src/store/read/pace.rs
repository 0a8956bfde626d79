//! How often those who wait for a transaction to end look at the locks of writers.
//!
//! A look reads `pg_locks`, for which the server stops all that take or release locks for a moment. One process looks up to
//! 200 times a second. A hundred processes that do so would slow down the very transactions they wait for, so they share
//! this number: each is counted by a lock that its listening session holds, a look returns the count, and the pause that
//! follows is as many times as long. Without a listening session nobody is counted, and nothing but the pace depends on it.

use std::time::{Duration, Instant};

/// Shortest pause between the looks of one reader, which is alone.
pub const PAUSE: Duration = Duration::from_millis(5);
/// Advisory lock that every listening session of a database shares. Spells "sio.look".
const READERS_LOCK: u64 = 0x7369_6f2e_6c6f_6f6b;

/// See the module documentation.
#[derive(Debug)]
pub struct Pace {
    looked_at: Instant,
    /// Pause that is due to other readers.
    pause: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { looked_at: Instant::now(), pause: Duration::ZERO }
    }
}

impl Pace {
    /// The statement by which a session counts as a reader until it ends. It never waits.
    pub fn sql_count_in() -> String {
        format!("SELECT pg_catalog.pg_try_advisory_lock_shared({READERS_LOCK})")
    }

    /// The condition of the locks, in `pg_locks`, by which the readers of this database are counted.
    pub fn sql_readers() -> String {
        let (high, low) = (READERS_LOCK >> 32, READERS_LOCK & 0xffff_ffff);
        format!("locktype = 'advisory' AND classid = {high} AND objid = {low} AND objsubid = 1")
    }

    /// Record that a look begins.
    pub fn looks(&mut self) {
        self.looked_at = Instant::now();
    }

    /// Record the number of readers that a look has found.
    pub fn found(&mut self, readers: i64) {
        let readers = u32::try_from(readers).unwrap_or_default();
        // The jitter keeps readers from looking all at once.
        self.pause =
            if readers > 1 { (PAUSE * readers).mul_f64(1.0 + rand::random::<f64>() / 2.0) } else { Duration::ZERO };
    }

    /// When somebody who waits, and wants to look after this delay, may look again: after so many pauses.
    pub fn next(&self, delay: Duration, pauses: u32) -> Instant {
        self.looked_at + delay.max(self.pause * pauses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_readers_the_longer_the_pause() {
        let mut pace = Pace::default();
        let pause = |pace: &Pace| pace.next(PAUSE, 1) - pace.looked_at;
        for readers in [-1, 0, 1] {
            pace.found(readers);
            assert_eq!(pause(&pace), PAUSE);
        }
        pace.found(100);
        assert!((100 * PAUSE..=150 * PAUSE).contains(&pause(&pace)));
        pace.found(i64::MAX);
        pace.looks();
        assert_eq!(pause(&pace), PAUSE, "there are not so many");
        assert_eq!(pace.next(Duration::from_secs(1), 2) - pace.looked_at, Duration::from_secs(1));
    }
}
