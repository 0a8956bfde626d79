//! Noticing that messages are missing: the numbers that each sender gives its messages, channel by channel.
//!
//! A sender numbers what it publishes on a channel 1, 2, 3, … and commits in that order, and PostgreSQL delivers in the
//! order of the commits. So a number that was skipped belongs to a message that will never come.

use std::time::{Duration, SystemTime};

use foldhash::HashMap;

/// Most senders of each kind remembered for each channel; of the one heard least recently a loss would go unnoticed.
const SENDERS: usize = 4096;
/// A sender is forgotten after so much silence, when room is needed.
const MEMORY: Duration = Duration::from_secs(15 * 60);
/// Numbers that go back further than this begin anew: no connection was ever lost with so much under way.
const REPEATED: u64 = 100_000;

/// Who numbers its messages.
#[derive(Debug, Clone, Copy)]
pub enum Sender<'a> {
    /// A server, by its id. May be silent for long, and is there all the time.
    Server(&'a str),
    /// The process of an emitter. They come and go, and may be many.
    Emitter(&'a str),
}

/// What a number says about the messages before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// Nothing is missing, as far as can be known.
    InOrder,
    /// It came before, or was given up before: a session that was replaced may deliver it twice, and a commit in
    /// doubt may happen late.
    Repeated,
    /// Messages between the previous one and this one are missing.
    Hole {
        /// How many.
        missing: u64,
        /// When the previous one came.
        since: SystemTime,
    },
}

#[derive(Debug)]
struct Seen {
    number: u64,
    at: SystemTime,
}

/// The senders on one channel. Each kind has room of its own, so that no number of emitters displaces a server.
#[derive(Debug, Default)]
struct Senders {
    servers: HashMap<String, Seen>,
    emitters: HashMap<String, Seen>,
}

/// See the module documentation.
#[derive(Debug, Default)]
pub struct Sequences {
    channels: HashMap<String, Senders>,
}

impl Sequences {
    /// A message of `sender` arrived on `channel` with this number.
    ///
    /// The first one of a sender is its beginning: what it sent before we listened was not meant for us.
    pub fn observe(&mut self, channel: &str, sender: Sender<'_>, number: u64, now: SystemTime) -> Arrival {
        match self.channels.get_mut(channel) {
            Some(senders) => senders.observe(sender, number, now),
            None => self.channels.entry(channel.to_owned()).or_default().observe(sender, number, now),
        }
    }

    /// The channel is no longer listened to, so what comes on it will be missed.
    pub fn forget(&mut self, channel: &str) {
        self.channels.remove(channel);
    }
}

impl Senders {
    fn observe(&mut self, sender: Sender<'_>, number: u64, now: SystemTime) -> Arrival {
        let (senders, sender) = match sender {
            Sender::Server(uid) => (&mut self.servers, uid),
            Sender::Emitter(process) => (&mut self.emitters, process),
        };
        let Some(seen) = senders.get_mut(sender) else {
            if senders.len() >= SENDERS {
                forget_some(senders, now);
            }
            senders.insert(sender.to_owned(), Seen { number, at: now });
            return Arrival::InOrder;
        };
        if number <= seen.number && seen.number - number < REPEATED {
            return Arrival::Repeated;
        }
        let arrival = match number.checked_sub(seen.number) {
            Some(2..) => Arrival::Hole { missing: number - seen.number - 1, since: seen.at },
            _ => Arrival::InOrder,
        };
        *seen = Seen { number, at: now };
        arrival
    }
}

/// Make room: everyone who was silent for long, or else the one who was silent longest.
fn forget_some(senders: &mut HashMap<String, Seen>, now: SystemTime) {
    let oldest = senders.iter().min_by_key(|(_, seen)| seen.at).map(|(sender, _)| sender.clone());
    senders.retain(|sender, seen| {
        let is_old = now.duration_since(seen.at).is_ok_and(|silence| silence > MEMORY);
        !is_old && Some(sender) != oldest.as_ref()
    });
}

#[cfg(test)]
mod tests {
    use super::Sender::{Emitter, Server};
    use super::*;

    fn at(second: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(second)
    }

    #[test]
    fn a_hole_is_counted_and_dated() {
        let mut sequences = Sequences::default();
        assert_eq!(sequences.observe("c", Server("a"), 57, at(1)), Arrival::InOrder, "we came late");
        assert_eq!(sequences.observe("c", Server("a"), 58, at(2)), Arrival::InOrder);
        assert_eq!(sequences.observe("c", Server("a"), 62, at(9)), Arrival::Hole { missing: 3, since: at(2) });
        assert_eq!(sequences.observe("c", Server("a"), 63, at(9)), Arrival::InOrder);
    }

    #[test]
    fn senders_and_channels_are_kept_apart() {
        let mut sequences = Sequences::default();
        assert_eq!(sequences.observe("c", Server("a"), 1, at(1)), Arrival::InOrder);
        assert_eq!(sequences.observe("c", Server("b"), 1, at(1)), Arrival::InOrder);
        assert_eq!(sequences.observe("d", Server("a"), 1, at(1)), Arrival::InOrder);
        assert_eq!(sequences.observe("c", Server("a"), 2, at(1)), Arrival::InOrder);
    }

    #[test]
    fn what_comes_again_or_late_is_known() {
        let mut sequences = Sequences::default();
        sequences.observe("c", Server("a"), 5, at(1));
        assert!(matches!(sequences.observe("c", Server("a"), 8, at(1)), Arrival::Hole { missing: 2, .. }));
        for number in [5, 6, 7, 8] {
            assert_eq!(sequences.observe("c", Server("a"), number, at(2)), Arrival::Repeated);
        }
        assert_eq!(sequences.observe("c", Server("a"), 9, at(2)), Arrival::InOrder);
    }

    #[test]
    fn a_sequence_may_begin_anew() {
        let mut sequences = Sequences::default();
        sequences.observe("c", Server("a"), 10_000_000, at(1));
        assert_eq!(sequences.observe("c", Server("a"), 1, at(2)), Arrival::InOrder);
        assert_eq!(sequences.observe("c", Server("a"), 2, at(2)), Arrival::InOrder);
        sequences.forget("c");
        assert_eq!(sequences.observe("c", Server("a"), 700, at(3)), Arrival::InOrder);
    }

    #[test]
    fn memory_is_bounded() {
        let mut sequences = Sequences::default();
        for number in 0..3 * SENDERS {
            sequences.observe("c", Emitter(&number.to_string()), 1, at(number as u64));
        }
        assert!(sequences.channels["c"].emitters.len() <= SENDERS);
        let last = (3 * SENDERS - 1).to_string();
        assert!(matches!(sequences.observe("c", Emitter(&last), 3, at(99_999)), Arrival::Hole { missing: 1, .. }));
    }

    #[test]
    fn emitters_displace_no_server() {
        let mut sequences = Sequences::default();
        sequences.observe("c", Server("quiet"), 1, at(0));
        for number in 0..2 * SENDERS {
            sequences.observe("c", Emitter(&number.to_string()), 1, at(1 + number as u64));
        }
        let arrival = sequences.observe("c", Server("quiet"), 3, at(99_999));
        assert_eq!(arrival, Arrival::Hole { missing: 1, since: at(0) });
    }
}
