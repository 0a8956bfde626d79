//! Waiting times between attempts: doubling, capped, jittered.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const LAST: Duration = Duration::from_secs(5);

/// Delays of one series of attempts.
#[derive(Debug)]
pub struct Backoff {
    attempts: u32,
    last: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::up_to(LAST)
    }
}

impl Backoff {
    /// Delays of at most `last`.
    pub fn up_to(last: Duration) -> Self {
        Self { attempts: 0, last }
    }

    /// The next delay: 50 to 100 % of 0.1 s, 0.2 s, … up to the configured maximum (5 s by default). The jitter keeps
    /// many processes from returning to a restarted server in the same instant.
    pub fn next_delay(&mut self) -> Duration {
        let ceiling = FIRST.saturating_mul(1 << self.attempts.min(10)).min(self.last);
        self.attempts += 1;
        ceiling.mul_f64(0.5 + rand::random::<f64>() / 2.0)
    }

    /// Start over after a success.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }

    /// Attempts since the last success.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_a_cap_and_starts_over() {
        let mut backoff = Backoff::default();
        for ceiling_ms in [100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000] {
            let delay = backoff.next_delay();
            let ceiling = Duration::from_millis(ceiling_ms);
            assert!(delay >= ceiling / 2 && delay <= ceiling, "{delay:?} of {ceiling:?}");
        }
        backoff.reset();
        assert!(backoff.next_delay() <= FIRST);
    }
}
