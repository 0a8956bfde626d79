//! What can go wrong with an event store beyond what can with any connection.

use std::fmt;

use crate::error::Error;

/// What a writer expects of an aggregate before its events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// Nothing.
    Any,
    /// That it has no events.
    NoStream,
    /// That it has at least one.
    Exists,
    /// That its last event has this version.
    Version(i64),
}

impl Expected {
    /// Whether an aggregate whose last event has version `last` (0: none) is as expected.
    pub fn holds(self, last: i64) -> bool {
        match self {
            Self::Any => true,
            Self::NoStream => last == 0,
            Self::Exists => last > 0,
            Self::Version(version) => last == version,
        }
    }

    /// As SQL compares it: the version, 0 for none, -1 for any of them.
    pub fn number(self) -> Option<i64> {
        match self {
            Self::Any => None,
            Self::NoStream => Some(0),
            Self::Exists => Some(-1),
            Self::Version(version) => Some(version),
        }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("anything"),
            Self::NoStream => f.write_str("no events"),
            Self::Exists => f.write_str("at least one event"),
            Self::Version(version) => write!(f, "version {version}"),
        }
    }
}

/// See the module documentation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The aggregate is not as the writer expected; nothing was stored.
    #[error("aggregate {aggregate_id:?}: expected {expected}, found {}; load it again and decide anew", found(*actual))]
    WrongExpectedVersion {
        /// The aggregate.
        aggregate_id: String,
        /// What the writer said.
        expected: Expected,
        /// Version of its last event, 0 when it has none.
        actual: i64,
    },
    /// An event id is in use by another event; nothing was stored.
    #[error("event id {id:?} is taken by {}; give the new event an id of its own", holder(*version))]
    DuplicateEvent {
        /// The id.
        id: String,
        /// Version of the event that has it, 0 when it is another of the same call.
        version: i64,
    },
    /// An aggregate id is too long for the channel name that go-sync-kit's trigger makes of it; nothing was stored.
    #[error(
        "aggregate id {aggregate_id:?} is {size_bytes} bytes, but go-sync-kit's trigger on {table} allows {limit_bytes}"
    )]
    AggregateIdTooLong {
        /// The id.
        aggregate_id: String,
        /// The table.
        table: String,
        /// Its size.
        size_bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// The table is not one that events can be kept in.
    #[error("table {table} is no event table: {reason}")]
    SchemaMismatch {
        /// The table.
        table: String,
        /// What is missing or different.
        reason: String,
    },
    /// The server does not show the locks that the order of events is told from.
    #[error(
        "table {table}: the server does not show who holds a lock on {sequence}, so readers could pass events that are \
         being stored; call enable_serial_order() once, then writers take turns and no locks need be seen"
    )]
    LocksNotVisible {
        /// The table.
        table: String,
        /// Its sequence.
        sequence: String,
    },
    /// The table went back in time: a restore, a failover that lost commits, or a sequence set back.
    #[error(
        "table {table} ends at version {last_version}, before position {position}: it was restored or its sequence set \
         back; decide where each reader continues"
    )]
    Rewound {
        /// The table.
        table: String,
        /// Where the reader was.
        position: i64,
        /// The last version the sequence has given out.
        last_version: i64,
    },
    /// `LISTEN` does not work over this connection.
    #[error("{0}")]
    InvalidConnection(String),
    /// The store was closed.
    #[error("the event store is closed")]
    Closed,
}

fn found(actual: i64) -> String {
    if actual == 0 { "no events".to_owned() } else { format!("version {actual}") }
}

fn holder(version: i64) -> String {
    if version == 0 { "another event of the same call".to_owned() } else { format!("the event of version {version}") }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        Self::Store(Box::new(error))
    }
}
