//! Completions: each reports the result of one operation to Python.

use std::sync::{Arc, Weak};

use crate::connect::runtime::Leftover;
use crate::error::{Error, Result};

/// An inbox for the results of operations that return a `T`.
pub trait Answers<T>: Send + Sync {
    /// Report the results of operations, with their tokens.
    fn finished(&self, results: &mut dyn Iterator<Item = (u64, Result<T>)>);
}

/// Reports the result of an operation, a `T` or an error, to one inbox exactly once.
///
/// A completion does not keep its inbox alive. Otherwise the inbox of a closed event loop would keep its descriptors
/// open for as long as a message waits for PostgreSQL to come back.
pub struct Completion<T = ()> {
    target: Option<(Weak<dyn Answers<T>>, u64)>,
    _leftover: Option<Arc<Leftover>>,
}

impl<T> Completion<T> {
    /// A completion that reports to `inbox` under `token`.
    pub fn new<I: Answers<T> + 'static>(inbox: &Arc<I>, token: u64) -> Self {
        let inbox: Weak<I> = Arc::downgrade(inbox);
        Self { target: Some((inbox, token)), _leftover: None }
    }

    /// A completion without a receiver, which only keeps the background thread running until it is finished.
    pub fn of_nobody(leftover: Arc<Leftover>) -> Self {
        Self { target: None, _leftover: Some(leftover) }
    }

    /// Report the result.
    pub fn finish(mut self, result: Result<T>) {
        self.tell(result);
    }

    fn tell(&mut self, result: Result<T>) {
        if let Some((inbox, token)) = self.target.take()
            && let Some(inbox) = inbox.upgrade()
        {
            inbox.finished(&mut std::iter::once((token, result)));
        }
    }
}

impl Completion {
    /// Report the same result to several completions. Completions of one inbox share one lock acquisition and one
    /// wake-up.
    pub fn finish_all(completions: impl IntoIterator<Item = Self>, result: &Result<()>) {
        let targets: Vec<_> = completions.into_iter().filter_map(|mut each| each.target.take()).collect();
        for run in targets.chunk_by(|(one, _), (next, _)| Weak::ptr_eq(one, next)) {
            if let Some(inbox) = run.first().and_then(|(inbox, _)| inbox.upgrade()) {
                inbox.finished(&mut run.iter().map(|(_, token)| (*token, result.clone())));
            }
        }
    }
}

impl<T> Drop for Completion<T> {
    /// A completion that is dropped without a result (task cancelled, runtime shut down) reports "closed", so that no
    /// caller waits for ever.
    fn drop(&mut self) {
        self.tell(Err(Error::Closed("connection")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handover::inbox::{Entry, Inbox};

    #[test]
    fn a_promise_does_not_keep_the_inbox() {
        let inbox = Inbox::<()>::new(1000).unwrap();
        let (first, second) = (Completion::new(&inbox, 1), Completion::new(&inbox, 2));
        let watched = Arc::downgrade(&inbox);
        drop(inbox);
        assert!(watched.upgrade().is_none(), "its descriptors are closed");
        first.finish(Ok(()));
        Completion::finish_all(vec![second], &Ok(()));
    }

    #[test]
    fn promises_that_end_alike_are_all_kept() {
        let (one, other) = (Inbox::<()>::new(1000).unwrap(), Inbox::<()>::new(1000).unwrap());
        let of = |inbox: &Arc<Inbox>, token| Completion::new(inbox, token);
        Completion::finish_all(vec![of(&one, 1), of(&one, 2), of(&other, 3), of(&one, 4)], &Ok(()));
        let tokens = |inbox: &Inbox| inbox.drain(9).into_iter().map(|(token, _)| token).collect::<Vec<_>>();
        assert_eq!((tokens(&one), tokens(&other)), (vec![1, 2, 4], vec![3]));
    }

    #[test]
    fn a_forgotten_promise_is_reported_closed() {
        let inbox = Inbox::<()>::new(1000).unwrap();
        drop(Completion::<()>::new(&inbox, 5));
        assert!(matches!(inbox.drain(9)[..], [(5, Entry::Finished(Err(Error::Closed(_))))]));
    }
}
