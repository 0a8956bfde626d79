//! The wanted channels, the channels that the current session listens on, and the completions of callers that wait
//! until the two agree. No I/O.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;

use crate::handover::completion::Completion;
use crate::wire::protocol::quote_identifier;

/// See the module documentation.
#[derive(Default)]
pub struct Channels {
    wanted: BTreeSet<String>,
    /// The channels that the current session listens on; `None` while there is no session.
    applied: Option<BTreeSet<String>>,
    waiting: HashMap<String, Vec<Completion>>,
    /// Names that the server rejected. Only names that a caller has requested are kept.
    refused: BTreeSet<String>,
}

/// The statements that bring a session to the wanted channels.
pub struct Change {
    wanted: BTreeSet<String>,
    applied: BTreeSet<String>,
}

impl Channels {
    /// Add a wanted channel. `completion` is kept until the session listens on it, or returned if it already does.
    pub fn want(&mut self, channel: &str, completion: Completion) -> Option<Completion> {
        self.wanted.insert(channel.to_owned());
        self.wait(channel, self.is_held(channel), completion)
    }

    /// Remove a wanted channel. `completion` is kept until the session no longer listens on it, or returned if that is
    /// already so.
    pub fn unwant(&mut self, channel: &str, completion: Completion) -> Option<Completion> {
        self.wanted.remove(channel);
        self.wait(channel, !self.is_held(channel), completion)
    }

    fn is_held(&self, channel: &str) -> bool {
        self.applied.as_ref().is_some_and(|applied| applied.contains(channel))
    }

    fn wait(&mut self, channel: &str, is_done: bool, completion: Completion) -> Option<Completion> {
        if is_done {
            return Some(completion);
        }
        self.waiting.entry(channel.to_owned()).or_default().push(completion);
        None
    }

    /// Number of wanted channels.
    pub fn count(&self) -> usize {
        self.wanted.len()
    }

    /// Whether there is a session that listens, or is being set up.
    pub fn is_open(&self) -> bool {
        self.applied.is_some()
    }

    /// Whether a session listens on exactly the wanted channels.
    pub fn is_complete(&self) -> bool {
        self.applied.as_ref().is_some_and(|applied| *applied == self.wanted)
    }

    /// Whether `found` are the channels that the session should listen on.
    pub fn are_held(&self, found: &BTreeSet<String>) -> bool {
        self.applied.as_ref().is_none_or(|applied| applied == found)
    }

    /// The change to make on the session. A new session begins without channels.
    pub fn change(&mut self) -> Change {
        let applied = self.applied.get_or_insert_with(BTreeSet::new).clone();
        Change { wanted: self.wanted.clone(), applied }
    }

    /// Record that `change` was made. Returns the completions that are due, and whether nothing more is to be changed.
    pub fn changed(&mut self, change: Change) -> (Vec<Completion>, bool) {
        let is_ready = |channel: &&String| self.wanted.contains(*channel) == change.wanted.contains(*channel);
        let ready: Vec<String> = self.waiting.keys().filter(is_ready).cloned().collect();
        let done = ready.iter().filter_map(|channel| self.waiting.remove(channel)).flatten().collect();
        let is_over = self.wanted == change.wanted && self.waiting.is_empty();
        self.applied = Some(change.wanted);
        (done, is_over)
    }

    /// Record that the server rejects the name of this channel, which is then no longer wanted. Returns the completions
    /// of callers that waited for it, and whether it was rejected for the first time.
    pub fn refuse(&mut self, channel: &str) -> (Vec<Completion>, bool) {
        self.wanted.remove(channel);
        (self.waiting.remove(channel).unwrap_or_default(), self.refused.insert(channel.to_owned()))
    }

    /// Record that the session was lost.
    pub fn lost(&mut self) {
        self.applied = None;
    }

    /// Take the completions of all waiting callers.
    pub fn take_waiting(&mut self) -> Vec<Completion> {
        self.waiting.drain().flat_map(|(_, waiting)| waiting).collect()
    }
}

impl Change {
    /// Channels to start listening on.
    pub fn added(&self) -> impl Iterator<Item = &String> {
        self.wanted.difference(&self.applied)
    }

    /// The SQL script; empty when there is nothing to do.
    pub fn script(&self) -> String {
        let mut script = String::new();
        for channel in self.added() {
            let _ = write!(script, "LISTEN {};", quote_identifier(channel)); // a String: cannot fail
        }
        for channel in self.dropped() {
            let _ = write!(script, "UNLISTEN {};", quote_identifier(channel));
        }
        script
    }

    /// Channels that the session listens on after the change.
    pub fn wanted(&self) -> impl Iterator<Item = &String> {
        self.wanted.iter()
    }

    /// Channels that the session stops listening on.
    pub fn dropped(&self) -> impl Iterator<Item = &String> {
        self.applied.difference(&self.wanted)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::handover::inbox::Inbox;

    fn completion(inbox: &Arc<Inbox>) -> Completion {
        Completion::new(inbox, 1)
    }

    #[test]
    fn a_session_is_brought_to_what_is_wanted() {
        let inbox = Inbox::new(1000).unwrap();
        let mut channels = Channels::default();
        assert!(channels.want("a\"b", completion(&inbox)).is_none());
        assert!(!channels.is_complete());
        let change = channels.change();
        assert_eq!(change.script(), "LISTEN \"a\"\"b\";");
        let (done, is_over) = channels.changed(change);
        assert_eq!((done.len(), is_over, channels.is_complete()), (1, true, true));
        assert!(channels.want("a\"b", completion(&inbox)).is_some(), "it is held");
        assert!(channels.unwant("a\"b", completion(&inbox)).is_none());
        let change = channels.change();
        assert_eq!(change.script(), "UNLISTEN \"a\"\"b\";");
        assert_eq!(change.dropped().count(), 1);
        let (done, is_over) = channels.changed(change);
        assert_eq!((done.len(), is_over, channels.count()), (1, true, 0));
    }

    #[test]
    fn a_wish_that_changes_meanwhile_is_not_fulfilled_yet() {
        let inbox = Inbox::new(1000).unwrap();
        let mut channels = Channels::default();
        channels.want("a", completion(&inbox));
        let change = channels.change();
        channels.want("b", completion(&inbox));
        assert!(channels.unwant("a", completion(&inbox)).is_some(), "it is not held");
        let (done, is_over) = channels.changed(change);
        assert_eq!((done.len(), is_over), (0, false));
        let change = channels.change();
        assert_eq!(change.script(), "LISTEN \"b\";UNLISTEN \"a\";");
        let (done, is_over) = channels.changed(change);
        assert_eq!((done.len(), is_over), (2, true));
    }

    #[test]
    fn a_channel_that_is_refused_is_not_wanted_any_more() {
        let inbox = Inbox::new(1000).unwrap();
        let mut channels = Channels::default();
        channels.want("a", completion(&inbox));
        channels.want("b", completion(&inbox));
        assert!(channels.change().added().eq(["a", "b"]));
        let (waiting, is_first) = channels.refuse("a");
        assert_eq!((waiting.len(), is_first), (1, true));
        let change = channels.change();
        assert_eq!(change.script(), "LISTEN \"b\";");
        let (done, is_over) = channels.changed(change);
        assert_eq!((done.len(), is_over, channels.is_complete()), (1, true, true));
        channels.want("a", completion(&inbox));
        assert!(!channels.refuse("a").1, "it is known");
    }

    #[test]
    fn a_new_session_begins_with_nothing() {
        let inbox = Inbox::new(1000).unwrap();
        let mut channels = Channels::default();
        channels.want("a", completion(&inbox));
        let change = channels.change();
        channels.changed(change);
        channels.lost();
        assert!(!channels.is_open());
        assert_eq!(channels.change().script(), "LISTEN \"a\";");
        assert!(!channels.are_held(&BTreeSet::from(["a".to_owned()])), "not yet");
    }
}
