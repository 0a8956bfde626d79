//! Why a connection is not there: told once for each reason, and shown for as long as it lasts.

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime};

use crate::error::Error;
use crate::lock::Mutex;

/// Most reasons that one outage is told of before its time comes; servers that are tried in turn give several.
const REASONS: usize = 8;
/// A long outage is told again so often.
const REMIND_AFTER: Duration = Duration::from_secs(60);

/// An outage that lasts.
#[derive(Debug, Clone)]
pub struct Present {
    /// When the first attempt failed.
    pub since: SystemTime,
    /// Why the last one did.
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
    /// What was to be told, the newest last; those before are forgotten.
    news: VecDeque<Error>,
    /// How many there were.
    count: u64,
}

/// The outages of one connection. See the module documentation.
#[derive(Default)]
pub struct Outage {
    state: Mutex<State>,
}

impl Outage {
    /// An attempt failed, or the connection broke. True when that is to be told: a reason that this outage did not have
    /// before, or a minute has passed.
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

    /// The connection is there, and works.
    pub fn ended(&self) {
        self.state.lock().lasting = None;
    }

    /// The outage that lasts, if there is one.
    pub fn present(&self) -> Option<Present> {
        self.state.lock().lasting.as_ref().map(|lasting| lasting.present.clone())
    }

    /// What was to be told after the first `seen`, as far as it is remembered, and how much there is by now: for whoever
    /// looks now and then.
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
