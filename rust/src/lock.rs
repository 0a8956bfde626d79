//! Locks that a panic does not close for the others.
//!
//! Those of the standard library, not of `parking_lot`: that keeps who waits for any lock in one table of the process,
//! which a fork copies as it happens to be, with waiting threads that stayed in the parent.

use std::sync::{Condvar, MutexGuard, PoisonError};
use std::time::Duration;

/// A lock. What it guards is taken as it was left; a panic does not make it useless.
#[derive(Debug, Default)]
pub struct Mutex<T>(std::sync::Mutex<T>);

impl<T> Mutex<T> {
    /// A lock that is free.
    pub const fn new(value: T) -> Self {
        Self(std::sync::Mutex::new(value))
    }

    /// Wait until it is free, and take it.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it guards, for whoever has it alone.
    pub fn get_mut(&mut self) -> &mut T {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wait on `changed` for as long as `must_wait` says so, for `limit` at most.
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
