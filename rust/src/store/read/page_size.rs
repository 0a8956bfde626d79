//! How many events one statement asks for, so that a page stays within bounded memory however large the events are.
//!
//! PostgreSQL counts rows and not bytes. A page therefore asks for as many rows as fit into the aim by the average of the
//! last page, and a statement whose rows turn out to be much larger is given up and asks for fewer. So does one for which
//! the server has no time.

use std::sync::atomic::{AtomicI64, Ordering};

use crate::error::Error;

/// Size that a page aims at.
pub const PAGE_BYTES: usize = 4 * 1024 * 1024;
/// A statement is given up when its rows exceed the aim by this factor.
const TOLERANCE: usize = 4;

/// See the module documentation.
#[derive(Debug)]
pub struct PageSize {
    aim_bytes: usize,
    rows: AtomicI64,
}

impl Default for PageSize {
    fn default() -> Self {
        Self::new(PAGE_BYTES)
    }
}

impl PageSize {
    /// Pages of about this size; `usize::MAX` for no limit.
    pub fn new(aim_bytes: usize) -> Self {
        Self { aim_bytes, rows: AtomicI64::new(i64::MAX) }
    }

    /// The same, where events are expected to have this size.
    pub fn expecting(aim_bytes: usize, average_bytes: usize) -> Self {
        let size = Self::new(aim_bytes);
        size.rows.store(size.fitting(average_bytes), Ordering::Relaxed);
        size
    }

    /// Number of rows to ask for, where `limit` are wanted; at least one.
    pub fn rows(&self, limit: i64) -> i64 {
        limit.min(self.rows.load(Ordering::Relaxed))
    }

    /// Size at which a statement is to be given up.
    pub fn limit_bytes(&self) -> usize {
        self.aim_bytes.saturating_mul(TOLERANCE)
    }

    /// Record a page for which so many rows were asked. The next one asks for at most twice as many.
    pub fn took(&self, asked: i64, count: usize, bytes: usize) {
        if count > 0 && self.aim_bytes < usize::MAX {
            self.rows.store(self.fitting(bytes / count).min(asked.saturating_mul(2)), Ordering::Relaxed);
        }
    }

    /// Ask for fewer rows after a statement was given up. Returns false for any other error.
    pub fn shrink(&self, error: &Error) -> bool {
        let Error::TooLarge { size_bytes, .. } = error else { return false };
        self.rows.store(self.fitting(*size_bytes), Ordering::Relaxed);
        true
    }

    /// Ask for half as many rows after a statement that asked for so many took too long. Returns false if it was one.
    pub fn halve(&self, asked: i64) -> bool {
        self.rows.store((asked / 2).max(1), Ordering::Relaxed);
        asked > 1
    }

    fn fitting(&self, average_bytes: usize) -> i64 {
        i64::try_from(self.aim_bytes / average_bytes.max(1)).unwrap_or(i64::MAX).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_size_of_the_events() {
        let pages = PageSize::new(10_000);
        assert_eq!(pages.rows(1000), 1000);
        let error = Error::TooLarge { what: String::new(), size_bytes: 2500, limit_bytes: 40 };
        assert!(pages.shrink(&error));
        assert_eq!((pages.rows(1000), pages.rows(2)), (4, 2));
        pages.took(4, 4, 1200);
        assert_eq!(pages.rows(1000), 8, "twice as many");
        pages.took(8, 8, 40000);
        assert_eq!(pages.rows(1000), 2);
        pages.took(2, 1, 50000);
        assert_eq!(pages.rows(1000), 1, "an event of any size can be read");
        assert!(!pages.shrink(&Error::StoreClosed));
    }

    #[test]
    fn follows_the_time_that_statements_have() {
        let pages = PageSize::new(10_000);
        assert!(pages.halve(pages.rows(1000)));
        assert_eq!(pages.rows(1000), 500);
        pages.took(500, 500, 500);
        assert_eq!(pages.rows(10_000), 1000, "twice as many");
        while pages.halve(pages.rows(1000)) {}
        assert_eq!(pages.rows(1000), 1);
    }

    #[test]
    fn without_an_aim_there_is_no_limit() {
        let pages = PageSize::new(usize::MAX);
        pages.took(10, 10, 50000);
        assert_eq!((pages.rows(i64::MAX), pages.limit_bytes()), (i64::MAX, usize::MAX));
    }
}
