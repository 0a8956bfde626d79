//! Items that Python receives without a request, and their receivers.

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

/// Size in memory of an item without user data.
pub const SMALL_BYTES: usize = 300;

/// An item that is not the result of an operation.
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
    /// A failure in the background. It is counted, and the work continues.
    Failure(Error),
    /// Missing messages.
    Gap(Gap),
    /// Messages dropped for lack of room, at this place in the order.
    Overflow(Overflow),
    /// Cluster members whose listening session is alive, by the ids of their advisory locks. `None` once this server's
    /// own session is lost, so that the members are unknown.
    Members(Option<Vec<u32>>),
    /// A server is alive: it sent a message that has no receiver on this server.
    Seen {
        /// The namespace of the message.
        nsp: String,
        /// Its id.
        uid: String,
    },
}

impl Item {
    /// The size that counts towards the inbox's limit.
    pub(super) fn size_bytes(&self) -> usize {
        match self {
            Self::Message(message) => message.size_bytes(),
            Self::Notification(n) => n.payload.len() + n.channel.len() + 100,
            Self::Gap(gap) if gap.missing.is_some() => SMALL_BYTES,
            Self::Seen { .. } => SMALL_BYTES,
            // Rare, bounded elsewhere, or too important to be dropped.
            _ => 0,
        }
    }
}

/// The sending side of an inbox, independent of its result type.
pub trait Receiver: Send + Sync {
    /// Add an item for the receiver `token`. Returns false when the item was dropped. A gap is never dropped: without
    /// room it becomes part of the overflow.
    fn push(&self, token: u64, item: Item) -> bool;
    /// Report that messages were dropped at this place in the order. Consecutive drops form one item. Returns true for
    /// the first drop of such a run.
    fn push_overflow(&self, token: u64, overflow: Overflow) -> bool;
    /// Size of the waiting messages.
    fn bytes(&self) -> usize;
    /// Time since Python last read the inbox.
    fn idle(&self) -> Duration;
}

/// The receiver of one object's background events.
#[derive(Clone)]
pub struct Recipient {
    /// The inbox.
    pub inbox: Arc<dyn Receiver>,
    /// The receiver's token in it.
    pub token: u64,
}

impl Recipient {
    /// Add an item. Returns false when it was dropped.
    pub fn push(&self, item: Item) -> bool {
        self.inbox.push(self.token, item)
    }

    /// Report that messages were dropped. Returns true for the first drop of a run.
    pub fn push_overflow(&self, overflow: Overflow) -> bool {
        self.inbox.push_overflow(self.token, overflow)
    }
}
