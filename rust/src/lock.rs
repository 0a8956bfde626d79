//! Locks that a panic does not poison.
//!
//! They wrap the standard library's locks, not those of `parking_lot`. `parking_lot` keeps the waiters of all locks in
//! one table of the process, and a fork copies that table in whatever state it is in, including waiting threads that
//! exist in the parent only.

use std::sync::{Condvar, MutexGuard, PoisonError};
use std::time::Duration;

/// A mutex without poisoning: after a panic the value is used as the panicking thread left it.
#[derive(Debug, Default)]
pub struct Mutex<T>(std::sync::Mutex<T>);

impl<T> Mutex<T> {
    /// A new, unlocked mutex.
    pub const fn new(value: T) -> Self {
        Self(std::sync::Mutex::new(value))
    }

    /// Wait until the mutex is free, and lock it.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guarded value, without locking: `&mut self` proves that nobody else has access.
    pub fn get_mut(&mut self) -> &mut T {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wait on `changed` while `must_wait` returns true, for at most `limit`.
pub fn wait_while<'a, T>(
    changed: &Condvar,
    guard: MutexGuard<'a, T>,
    limit: Duration,
    must_wait: impl FnMut(&mut T) -> bool,
) -> MutexGuard<'a, T> {
    changed.wait_timeout_while(guard, limit, must_wait).unwrap_or_else(PoisonError::into_inner).0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_leaves_it_usable() {
        let lock = Mutex::new(1);
        let panicking = std::panic::AssertUnwindSafe(|| {
            let mut guard = lock.lock();
            *guard = 2;
            panic!("as expected");
        });
        assert!(std::panic::catch_unwind(panicking).is_err());
        assert_eq!(*lock.lock(), 2);
        assert_eq!(*wait_while(&Condvar::new(), lock.lock(), Duration::ZERO, |_| true), 2);
    }
}
