//! What Python is told without having asked, and to whom.

use std::sync::Arc;
use std::time::Duration;

use crate::error::Error;
use crate::wire::gap::{Gap, Overflow};
use crate::wire::protocol::Message;

/// One raw notification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notification {
    /// Channel it was sent on.
    pub channel: String,
    /// Its payload, at most 7999 bytes.
    pub payload: String,
    /// Backend process id of the sending session.
    pub pid: i32,
}

/// What an item without user data takes in memory.
pub const SMALL_BYTES: usize = 300;

/// What happens without being asked for.
#[derive(Debug, Clone)]
pub enum Item {
    /// A message of the cluster.
    Message(Message),
    /// A raw notification.
    Notification(Notification),
    /// The listening session is active; true when it had been lost before.
    Listening {
        /// Whether messages may have been missed.
        after_gap: bool,
    },
    /// Something failed in the background; it is counted, and the work goes on.
    Failure(Error),
    /// Messages that will not come.
    Gap(Gap),
    /// Messages dropped for lack of room, at this place in the order.
    Overflow(Overflow),
    /// Members of the cluster whose listening session is alive, by the ids of their advisory locks; `None` once our own
    /// session is lost, and nobody can be asked.
    Members(Option<Vec<u32>>),
    /// A server sent something that concerns nobody here, and so is alive.
    Seen {
        /// In this namespace.
        nsp: String,
        /// Its id.
        uid: String,
    },
}

impl Item {
    /// What it counts for where room is limited.
    pub(super) fn size_bytes(&self) -> usize {
        match self {
            Self::Message(message) => message.size_bytes(),
            Self::Notification(n) => n.payload.len() + n.channel.len() + 100,
            Self::Gap(gap) if gap.missing.is_some() => SMALL_BYTES,
            Self::Seen { .. } => SMALL_BYTES,
            // Few, bounded otherwise, or too important to be dropped.
            _ => 0,
        }
    }
}

/// The side of an inbox that things are put into, whatever answers it takes.
pub trait Receiver: Send + Sync {
    /// Add an item for the receiver known as `token`. False when it was dropped. A gap is never: without room it becomes
    /// part of the overflow.
    fn push(&self, token: u64, item: Item) -> bool;
    /// Say that messages were dropped here. What is dropped one after the other is one item, however many it is; true
    /// for the first.
    fn push_overflow(&self, token: u64, overflow: Overflow) -> bool;
    /// Bytes of messages waiting.
    fn bytes(&self) -> usize;
    /// Time since Python looked here last.
    fn idle(&self) -> Duration;
}

/// Where background events of one object go.
#[derive(Clone)]
pub struct Recipient {
    /// The inbox.
    pub inbox: Arc<dyn Receiver>,
    /// The receiver's token in it.
    pub token: u64,
}

impl Recipient {
    /// Add an item. False when it was dropped.
    pub fn push(&self, item: Item) -> bool {
        self.inbox.push(self.token, item)
    }

    /// Say that messages were dropped here; true for the first of a run.
    pub fn push_overflow(&self, overflow: Overflow) -> bool {
        self.inbox.push_overflow(self.token, overflow)
    }
}
