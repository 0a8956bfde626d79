//! Outages of a connection. Each reason is reported once, and the outage is shown for as long as it lasts.

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime};

use crate::error::Error;
use crate::lock::Mutex;

/// Maximum number of reasons that one outage reports before a reminder is due. Several reasons are normal when several
/// servers are tried in turn.
const REASONS: usize = 8;
/// Interval after which a lasting outage is reported again.
const REMIND_AFTER: Duration = Duration::from_secs(60);

/// A current outage.
#[derive(Debug, Clone)]
pub struct Present {
    /// When the first attempt failed.
    pub since: SystemTime,
    /// The error of the last attempt.
    pub error: Error,
}

struct Lasting {
    present: Present,
    told: Vec<String>,
    told_at: Instant,
}

#[derive(Default)]
struct State {
    lasting: Option<Lasting>,
    /// Errors to report, the newest last. Older ones are dropped.
    news: VecDeque<Error>,
    /// Number of errors that were to be reported, including dropped ones.
    count: u64,
}

/// The outages of one connection. See the module documentation.
#[derive(Default)]
pub struct Outage {
    state: Mutex<State>,
}

impl Outage {
    /// Record that an attempt failed or the connection broke. Returns true when the error is to be reported: its reason
    /// is new in this outage, or `REMIND_AFTER` has passed.
    pub fn failed(&self, error: &Error) -> bool {
        let mut state = self.state.lock();
        let (now, text) = (Instant::now(), error.to_string());
        let lasting = state.lasting.get_or_insert_with(|| Lasting {
            present: Present { since: SystemTime::now(), error: error.clone() },
            told: Vec::new(),
            told_at: now,
        });
        lasting.present.error = error.clone();
        let is_new = lasting.told.len() < REASONS && !lasting.told.contains(&text);
        if !is_new && now.duration_since(lasting.told_at) < REMIND_AFTER {
            return false;
        }
        if is_new {
            lasting.told.push(text);
        }
        lasting.told_at = now;
        state.news.push_back(error.clone());
        if state.news.len() > REASONS {
            state.news.pop_front();
        }
        state.count += 1;
        true
    }

    /// Record that the connection works.
    pub fn ended(&self) {
        self.state.lock().lasting = None;
    }

    /// The current outage, if there is one.
    pub fn present(&self) -> Option<Present> {
        self.state.lock().lasting.as_ref().map(|lasting| lasting.present.clone())
    }

    /// The errors to report after the first `seen` ones, as far as they are kept, and the total number so far. For
    /// callers that poll.
    pub fn news(&self, seen: u64) -> (Vec<Error>, u64) {
        let state = self.state.lock();
        let unseen = usize::try_from(state.count.saturating_sub(seen)).unwrap_or(usize::MAX).min(state.news.len());
        (state.news.iter().skip(state.news.len() - unseen).cloned().collect(), state.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost(reason: &str) -> Error {
        Error::lost("connect", reason)
    }

    #[test]
    fn each_reason_is_told_once() {
        let outage = Outage::default();
        assert!(outage.present().is_none());
        let told = ["a", "a", "b", "a", "b", "c"].map(|reason| outage.failed(&lost(reason)));
        assert_eq!(told, [true, false, true, false, false, true]);
        let present = outage.present().unwrap();
        assert_eq!(present.error, lost("c"));
        outage.failed(&lost("a"));
        assert_eq!(outage.present().unwrap().since, present.since, "it is the same outage");
        outage.ended();
        assert!(outage.present().is_none());
        assert!(outage.failed(&lost("a")), "the next one");
    }

    #[test]
    fn reasons_that_are_never_the_same_are_not_told_for_ever() {
        let outage = Outage::default();
        let told = (0..1000).filter(|number| outage.failed(&lost(&number.to_string()))).count();
        assert_eq!(told, REASONS);
    }

    #[test]
    fn who_looks_now_and_then_misses_nothing_and_sees_nothing_twice() {
        let outage = Outage::default();
        assert_eq!(outage.news(0), (Vec::new(), 0));
        outage.failed(&lost("a"));
        outage.failed(&lost("b"));
        outage.ended();
        assert_eq!(outage.news(0), (vec![lost("a"), lost("b")], 2));
        outage.failed(&lost("b"));
        assert_eq!(outage.news(2), (vec![lost("b")], 3));
        assert_eq!(outage.news(3).0, Vec::new());
    }
}
