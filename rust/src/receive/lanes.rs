//! Messages that wait behind an attachment that is being fetched, in order, per channel.

use std::collections::VecDeque;

use foldhash::HashMap;

use crate::handover::item::SMALL_BYTES;
use crate::wire::gap::{Gap, Overflow};
use crate::wire::protocol::Message;

/// One place in a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Slot {
    /// A message and its sender.
    Ready(Message, String),
    /// An attachment that is being fetched, by its id.
    Fetching(i64),
    /// Missing messages.
    Gap(Gap),
    /// Messages dropped for lack of room.
    Overflow(Overflow),
}

impl Slot {
    /// The size that counts towards the buffer's limit.
    pub fn size_bytes(&self) -> usize {
        match self {
            Self::Ready(message, _) => message.size_bytes(),
            Self::Fetching(_) => 2 * SMALL_BYTES,
            Self::Gap(_) => SMALL_BYTES,
            Self::Overflow(_) => 0, // there are at most as many as there are other slots
        }
    }
}

/// See the module documentation. A lane exists only while its first slot is an attachment that is being fetched.
#[derive(Debug, Default)]
pub struct Lanes {
    channels: HashMap<String, VecDeque<Slot>>,
    bytes: usize,
}

impl Lanes {
    /// Whether messages on a channel have to wait.
    pub fn is_held_up(&self, channel: &str) -> bool {
        self.channels.contains_key(channel)
    }

    /// Size of all waiting slots.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Append a slot to a channel's lane.
    pub fn keep(&mut self, channel: &str, slot: Slot) {
        self.bytes += slot.size_bytes();
        self.channels.entry(channel.to_owned()).or_default().push_back(slot);
    }

    /// As [`Lanes::keep`], for dropped messages. Consecutive drops share one slot.
    pub fn keep_overflow(&mut self, channel: &str, overflow: Overflow) {
        match self.channels.get_mut(channel).and_then(VecDeque::back_mut) {
            Some(Slot::Overflow(before)) => before.merge(overflow),
            _ => self.keep(channel, Slot::Overflow(overflow)),
        }
    }

    /// Replace the slot of an attachment by the result of fetching it. Returns the slots that may now be passed on, in
    /// order.
    pub fn fill(&mut self, channel: &str, id: i64, slot: Slot) -> VecDeque<Slot> {
        let Some(lane) = self.channels.get_mut(channel) else { return VecDeque::new() };
        if let Some(place) = lane.iter_mut().find(|slot| **slot == Slot::Fetching(id)) {
            self.bytes += slot.size_bytes();
            self.bytes -= place.size_bytes();
            *place = slot;
        }
        let count = lane.iter().take_while(|slot| !matches!(slot, Slot::Fetching(_))).count();
        // Not `split_off`, which copies the remaining slots: for every attachment in a long lane, nearly the whole
        // lane.
        let released: VecDeque<Slot> = lane.drain(..count).collect();
        if lane.is_empty() {
            self.channels.remove(channel);
        }
        self.bytes -= released.iter().map(Slot::size_bytes).sum::<usize>();
        released
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::protocol::MessageType;

    fn ready(nsp: &str) -> Slot {
        Slot::Ready(Message::new(MessageType::Heartbeat, nsp), "a".to_owned())
    }

    #[test]
    fn what_comes_behind_an_attachment_waits_for_it() {
        let mut lanes = Lanes::default();
        for slot in [Slot::Fetching(1), ready("/1"), Slot::Fetching(2), ready("/2")] {
            lanes.keep("c", slot);
        }
        lanes.keep("d", Slot::Fetching(3));
        assert!(lanes.is_held_up("c") && !lanes.is_held_up("e"));
        assert!(lanes.fill("c", 2, ready("/body 2")).is_empty(), "the first is still missing");
        let released = lanes.fill("c", 1, ready("/body 1"));
        assert_eq!(released, [ready("/body 1"), ready("/1"), ready("/body 2"), ready("/2")]);
        assert!(!lanes.is_held_up("c"));
        assert_eq!(lanes.bytes(), Slot::Fetching(3).size_bytes());
        assert_eq!(lanes.fill("d", 3, ready("/")), [ready("/")]);
        assert_eq!(lanes.bytes(), 0);
        assert!(lanes.fill("d", 3, ready("/")).is_empty(), "nobody waits for it any more");
        assert_eq!(lanes.bytes(), 0);
    }

    #[test]
    fn what_is_released_ends_at_the_next_attachment() {
        let mut lanes = Lanes::default();
        for slot in [Slot::Fetching(1), ready("/1"), Slot::Fetching(2), ready("/2")] {
            lanes.keep("c", slot);
        }
        assert_eq!(lanes.fill("c", 1, ready("/body")), [ready("/body"), ready("/1")]);
        assert_eq!(lanes.bytes(), Slot::Fetching(2).size_bytes() + ready("/2").size_bytes());
        assert!(lanes.is_held_up("c"));
    }

    #[test]
    fn a_run_of_what_was_dropped_takes_one_place() {
        let mut lanes = Lanes::default();
        lanes.keep("c", Slot::Fetching(1));
        for _ in 0..5 {
            lanes.keep_overflow("c", Overflow::of(None, None));
        }
        let released = Vec::from(lanes.fill("c", 1, ready("/")));
        let [_, Slot::Overflow(overflow)] = &released[..] else { panic!("{released:?}") };
        assert_eq!(overflow.missing(), 5);
    }
}
