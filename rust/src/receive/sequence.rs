//! Gap detection by the sequence numbers that each sender assigns to its messages, per channel.
//!
//! A sender numbers its messages on a channel 1, 2, 3, … and commits them in that order. PostgreSQL delivers
//! notifications in the order of the commits. Therefore a skipped number belongs to a message that will never arrive.

use std::time::{Duration, SystemTime};

use foldhash::HashMap;

/// Maximum number of senders of each kind remembered per channel. Beyond that, the sender heard from least recently is
/// forgotten, and a loss of its messages would go unnoticed.
const SENDERS: usize = 4096;
/// When room is needed, a sender that has been silent for this long is forgotten.
const MEMORY: Duration = Duration::from_secs(15 * 60);
/// A number that is lower by more than this counts as a new beginning: no connection is lost with so many messages in
/// flight.
const REPEATED: u64 = 100_000;

/// A sender that numbers its messages.
#[derive(Debug, Clone, Copy)]
pub enum Sender<'a> {
    /// A server, by its id. It may be silent for long although it is alive.
    Server(&'a str),
    /// An emitter's process. Emitters are short-lived, and there may be many.
    Emitter(&'a str),
}

/// What a sequence number shows about the messages before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// Nothing is known to be missing.
    InOrder,
    /// The message was received before, or counted as missing before. A replaced session may deliver a message twice,
    /// and a commit in doubt may happen late.
    Repeated,
    /// Messages between the previous message and this one are missing.
    Hole {
        /// Number of missing messages.
        missing: u64,
        /// Time when the previous message arrived.
        since: SystemTime,
    },
}

#[derive(Debug)]
struct Seen {
    number: u64,
    at: SystemTime,
}

/// The senders on one channel. Each kind has a separate limit, so that emitters never displace a server, however many
/// there are.
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
    /// Record that a message of `sender` arrived on `channel` with this number.
    ///
    /// The first message of a sender sets its starting number, because messages sent before LISTEN were not expected.
    pub fn observe(&mut self, channel: &str, sender: Sender<'_>, number: u64, now: SystemTime) -> Arrival {
        match self.channels.get_mut(channel) {
            Some(senders) => senders.observe(sender, number, now),
            None => self.channels.entry(channel.to_owned()).or_default().observe(sender, number, now),
        }
    }

    /// Forget a channel that is no longer listened on, because its messages will be missed.
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

/// Make room: forget all senders that have been silent for [`MEMORY`], or else the one that has been silent longest.
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
