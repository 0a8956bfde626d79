//! Whether the messages that this server publishes come back: the only proof that its listening session is not deaf.
//!
//! A session can be alive, listen on its channels and still receive nothing: a pooler may have assigned the server
//! connection to another client, or `listen_dsn` may lead to another database. Looking for the server's own messages
//! costs nothing extra.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::timeout;

use crate::lock::Mutex;

struct Channel {
    /// The time when LISTEN became active in the current session.
    active_since: Instant,
    /// Highest sequence number that came back.
    arrived: u64,
    /// Highest sequence number that was committed.
    committed: u64,
    /// The time since when a number is awaited: that of the commit, or of the latest echo if that was later.
    waiting_since: Instant,
}

#[derive(Default)]
struct State {
    channels: HashMap<String, Channel>,
    last_at: Option<Instant>,
}

/// See the module documentation.
#[derive(Default)]
pub struct Echo {
    state: Mutex<State>,
    changed: Notify,
}

impl Echo {
    /// Record that LISTEN is active on exactly these channels. For a new session all of them are new.
    pub fn listening<'a>(&self, channels: impl Iterator<Item = &'a String>, is_new_session: bool, now: Instant) {
        let mut state = self.state.lock();
        let mut before = std::mem::take(&mut state.channels);
        state.channels = channels
            .map(|name| {
                let kept = if is_new_session { None } else { before.remove(name) };
                let fresh = Channel { active_since: now, arrived: 0, committed: 0, waiting_since: now };
                (name.clone(), kept.unwrap_or(fresh))
            })
            .collect();
    }

    /// Record that there is no session, so that nothing can come back.
    pub fn lost(&self) {
        self.state.lock().channels.clear();
        self.changed.notify_one();
    }

    /// Record that this server's message with this number was committed, in a transaction that began at `began`.
    pub fn committed(&self, channel: &str, number: u64, began: Instant, now: Instant) {
        let mut state = self.state.lock();
        let Some(channel) = state.channels.get_mut(channel) else { return };
        if began < channel.active_since {
            return; // it may have been committed before LISTEN was active
        }
        if channel.committed <= channel.arrived {
            channel.waiting_since = now;
        }
        channel.committed = channel.committed.max(number);
    }

    /// Record that this server's message with this number came back.
    pub fn arrived(&self, channel: &str, number: u64, now: Instant) {
        let mut state = self.state.lock();
        state.last_at = Some(now);
        if let Some(channel) = state.channels.get_mut(channel) {
            channel.arrived = channel.arrived.max(number);
            channel.waiting_since = now;
        }
        drop(state);
        self.changed.notify_one();
    }

    /// A channel on which an echo has been awaited for longer than `limit`.
    pub fn overdue(&self, limit: Duration, now: Instant) -> Option<String> {
        let state = self.state.lock();
        let is_overdue = |channel: &Channel| {
            channel.committed > channel.arrived && now.saturating_duration_since(channel.waiting_since) > limit
        };
        state.channels.iter().find(|(_, channel)| is_overdue(channel)).map(|(name, _)| name.clone())
    }

    /// The last committed number of each channel on which it has not come back.
    pub fn awaited(&self) -> Vec<(String, u64)> {
        let state = self.state.lock();
        let awaited = state.channels.iter().filter(|(_, channel)| channel.committed > channel.arrived);
        awaited.map(|(name, channel)| (name.clone(), channel.committed)).collect()
    }

    /// Whether any of the `awaited` numbers may still come back.
    pub fn is_waiting_for(&self, awaited: &[(String, u64)]) -> bool {
        let state = self.state.lock();
        awaited.iter().any(|(name, number)| state.channels.get(name).is_some_and(|channel| channel.arrived < *number))
    }

    /// Wait, for at most `limit`, until a message of this server comes back or can no longer come back.
    pub async fn changed(&self, limit: Duration) {
        let _ = timeout(limit, self.changed.notified()).await;
    }

    /// Time since a message of this server last came back.
    pub fn age(&self) -> Option<Duration> {
        self.state.lock().last_at.map(|at| at.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    fn echo(start: Instant) -> Echo {
        let echo = Echo::default();
        echo.listening([&"c".to_owned()].into_iter(), true, start);
        echo
    }

    fn second(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn what_does_not_come_back_is_overdue() {
        let start = Instant::now();
        let echo = echo(start);
        echo.committed("c", 1, second(start, 1), second(start, 2));
        let awaited = echo.awaited();
        assert_eq!(awaited, [("c".to_owned(), 1)]);
        assert!(echo.is_waiting_for(&awaited));
        assert_eq!(echo.overdue(LIMIT, second(start, 6)), None);
        assert_eq!(echo.overdue(LIMIT, second(start, 8)).as_deref(), Some("c"));
        echo.arrived("c", 1, second(start, 8));
        assert_eq!(echo.overdue(LIMIT, second(start, 99)), None);
        assert!(!echo.is_waiting_for(&awaited));
        echo.committed("c", 2, second(start, 100), second(start, 100));
        assert!(!echo.is_waiting_for(&awaited), "what was published later does not count");
    }

    #[test]
    fn an_echo_may_overtake_the_answer_to_its_commit() {
        let start = Instant::now();
        let echo = echo(start);
        echo.arrived("c", 3, second(start, 1));
        echo.committed("c", 3, start, second(start, 2));
        assert_eq!(echo.overdue(LIMIT, second(start, 99)), None);
    }

    #[test]
    fn a_backlog_that_moves_is_not_deaf() {
        let start = Instant::now();
        let echo = echo(start);
        echo.committed("c", 1000, start, second(start, 1));
        for number in 1..=20 {
            echo.arrived("c", number, second(start, number));
            assert_eq!(echo.overdue(LIMIT, second(start, number + 4)), None);
        }
        assert!(echo.overdue(LIMIT, second(start, 30)).is_some());
    }

    #[test]
    fn nothing_is_awaited_from_before_listen_or_on_other_channels() {
        let start = Instant::now();
        let echo = echo(second(start, 10));
        echo.committed("c", 1, second(start, 9), second(start, 11));
        echo.committed("other", 1, second(start, 12), second(start, 12));
        assert!(echo.awaited().is_empty());
        echo.committed("c", 2, second(start, 12), second(start, 13));
        let awaited = echo.awaited();
        assert_eq!(awaited, [("c".to_owned(), 2)]);
        echo.lost();
        assert!(!echo.is_waiting_for(&awaited));
    }

    #[test]
    fn a_new_channel_leaves_the_others_alone() {
        let start = Instant::now();
        let echo = echo(start);
        echo.committed("c", 1, start, start);
        echo.listening(["c".to_owned(), "d".to_owned()].iter(), false, second(start, 4));
        assert!(echo.overdue(LIMIT, second(start, 6)).is_some());
    }
}
