//! How many versions one statement of a filtered subscription covers.
//!
//! A rare filter may match nothing in millions of rows. A statement without a bound would run for as long as it takes to
//! read them, report no progress meanwhile, and fail for ever on a server with a `statement_timeout`.

use std::time::Duration;

/// First size.
const FIRST: i64 = 16_384;
/// Smallest size. A statement that covers so few versions and still is too slow will not succeed.
const SMALLEST: i64 = 64;
/// Largest size.
const LARGEST: i64 = 1 << 40;
/// Statements that the server runs in less time than this lead to a larger size, and those that are slower to a smaller one.
const QUICK: Duration = Duration::from_millis(50);
const SLOW: Duration = Duration::from_millis(250);

/// See the module documentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    size: i64,
}

impl Default for Window {
    fn default() -> Self {
        Self { size: FIRST }
    }
}

impl Window {
    /// The last version that the next statement covers.
    pub fn end(self, since: i64, settled: i64) -> i64 {
        since.saturating_add(self.size).min(settled)
    }

    /// Record for how long the server ran a statement. How long an answer travels, or waits for a connection, does not
    /// count: a smaller window would make it no quicker, and only need more of them.
    pub fn took(&mut self, time: Duration) {
        if time < QUICK {
            self.size = (self.size * 2).min(LARGEST);
        } else if time > SLOW {
            self.shrink();
        }
    }

    /// Record that a page was full after so many versions. By an index PostgreSQL may read and sort all that match in the
    /// window, so a window that is larger than its page costs the same rows again for the next page.
    pub fn filled(&mut self, versions: i64) {
        self.size = self.size.min(versions.max(SMALLEST));
    }

    /// Make the window smaller. Returns false if it was the smallest.
    pub fn shrink(&mut self) -> bool {
        let before = self.size;
        self.size = (before / 2).max(SMALLEST);
        before > SMALLEST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_time_that_statements_take() {
        let mut window = Window::default();
        assert_eq!(window.end(10, i64::MAX), 10 + FIRST);
        assert_eq!(window.end(10, 20), 20);
        window.took(Duration::from_millis(1));
        assert_eq!(window.end(0, i64::MAX), 2 * FIRST);
        window.took(Duration::from_millis(100));
        assert_eq!(window.end(0, i64::MAX), 2 * FIRST);
        window.took(Duration::from_secs(1));
        assert_eq!(window.end(0, i64::MAX), FIRST);
        window.filled(1000);
        window.filled(2000);
        assert_eq!(window.end(0, i64::MAX), 1000);
    }

    #[test]
    fn has_a_smallest_and_a_largest_size() {
        let mut window = Window::default();
        while window.shrink() {}
        assert_eq!(window.end(0, i64::MAX), SMALLEST);
        for _ in 0..100 {
            window.took(Duration::ZERO);
        }
        assert_eq!(window.end(0, i64::MAX), LARGEST);
        assert_eq!(window.end(i64::MAX - 1, i64::MAX), i64::MAX);
    }
}
