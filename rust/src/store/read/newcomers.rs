//! Subscriptions that begin while the keeper is at work.
//!
//! The keeper hears of events by notifications, which come after the commit. Who begins meanwhile must not take for the end
//! what the keeper has read by chance: one read that begins after the subscription has to end first. All that have come
//! until a read begins share it.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{Notify, watch};

/// See the module documentation.
#[derive(Default)]
pub struct Newcomers {
    /// How many have come.
    come: AtomicU64,
    changed: Notify,
    /// Up to which of them there was a read.
    served: watch::Sender<u64>,
}

impl Newcomers {
    /// One more has come. Returns its number, counted from 1.
    pub fn enter(&self) -> u64 {
        let number = self.come.fetch_add(1, Ordering::SeqCst) + 1;
        self.changed.notify_one();
        number
    }

    /// How many have come by now; to be asked for before a read.
    pub fn come(&self) -> u64 {
        self.come.load(Ordering::SeqCst)
    }

    /// Whether one has come for whom there was no read.
    pub fn are_unserved(&self) -> bool {
        !self.is_served(self.come())
    }

    /// Wait until one has come for whom there was no read. For the keeper only.
    pub async fn unserved(&self) {
        while !self.are_unserved() {
            self.changed.notified().await;
        }
    }

    /// There was a read for all up to this one.
    pub fn serve(&self, number: u64) {
        self.served.send_if_modified(|served| {
            let is_new = number > *served;
            *served = number.max(*served);
            is_new
        });
    }

    /// Whether there was a read for this one.
    pub fn is_served(&self, number: u64) -> bool {
        *self.served.borrow() >= number
    }

    /// Wait until there was a read for this one.
    pub async fn served(&self, number: u64) {
        // The sender is part of `self`.
        let _ = self.served.subscribe().wait_for(|served| *served >= number).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[test]
    fn one_read_serves_all_that_came_before_it() {
        let newcomers = Newcomers::default();
        assert!(newcomers.unserved().now_or_never().is_none());
        assert_eq!((newcomers.enter(), newcomers.enter()), (1, 2));
        assert!(newcomers.unserved().now_or_never().is_some());
        let come = newcomers.come();
        assert_eq!(newcomers.enter(), 3);
        assert!(newcomers.served(1).now_or_never().is_none());
        newcomers.serve(come);
        assert!(newcomers.served(2).now_or_never().is_some());
        assert!(newcomers.served(3).now_or_never().is_none());
        assert!(newcomers.unserved().now_or_never().is_some(), "the third came during the read");
        newcomers.serve(3);
        newcomers.serve(come);
        assert!(newcomers.is_served(3), "a read that ends later takes nothing back");
        assert!(newcomers.unserved().now_or_never().is_none());
    }
}
