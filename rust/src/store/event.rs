//! Event records: as a writer passes them, and as a reader receives them.

use tokio_postgres::Row;

use crate::error::{Error, Result};
use crate::store::json;
use crate::store::row::{get, json_text, micros};
use crate::store::table::Table;
use crate::wire::protocol::NOTIFY_LIMIT_BYTES;

/// Longest aggregate id under go-sync-kit's trigger, which notifies the channel `stream_<id>`; a channel name has at
/// most 63 bytes.
pub const AGGREGATE_ID_LIMIT_BYTES: usize = 56;

/// The columns of a [`StoredEvent`], in its order.
pub const COLUMNS: &str = "version, id, aggregate_id, event_type, data, metadata, created_at";

/// An event to store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEvent {
    /// Unique in the table.
    pub id: String,
    /// The stream it belongs to.
    pub aggregate_id: String,
    /// Its type.
    pub event_type: String,
    /// JSON, or `NULL`.
    pub data: Option<String>,
    /// JSON, or `NULL`.
    pub metadata: Option<String>,
}

/// An event as stored in the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEvent {
    /// Its position among all events of the table.
    pub version: i64,
    /// Unique in the table.
    pub id: String,
    /// The stream it belongs to.
    pub aggregate_id: String,
    /// Its type.
    pub event_type: String,
    /// JSON, or `NULL`.
    pub data: Option<String>,
    /// JSON, or `NULL`.
    pub metadata: Option<String>,
    /// Time when its transaction began, by the clock of the PostgreSQL server, in microseconds since 1970. Not
    /// monotonic.
    pub created_at: Option<i64>,
}

impl NewEvent {
    /// Reject an event that the server would refuse, or would accept and then be unable to notify.
    pub fn check(&self, table: &Table) -> Result<()> {
        for (field, text) in [("id", &self.id), ("aggregate_id", &self.aggregate_id), ("event_type", &self.event_type)]
        {
            if text.is_empty() {
                return Err(Error::Encode { path: field.to_owned(), reason: "it is empty".to_owned() });
            }
            if text.contains('\0') {
                let reason = "it holds a NUL character, which PostgreSQL cannot store".to_owned();
                return Err(Error::Encode { path: field.to_owned(), reason });
            }
        }
        for (field, document) in [("data", &self.data), ("metadata", &self.metadata)] {
            if let Some(reason) = document.as_deref().and_then(json::unstorable) {
                return Err(Error::Encode { path: field.to_owned(), reason: reason.to_owned() });
            }
        }
        if !table.notifies_go {
            return Ok(());
        }
        if self.aggregate_id.len() > AGGREGATE_ID_LIMIT_BYTES {
            return Err(Error::AggregateIdTooLong {
                aggregate_id: self.aggregate_id.clone(),
                table: table.name.clone(),
                size_bytes: self.aggregate_id.len(),
                limit_bytes: AGGREGATE_ID_LIMIT_BYTES,
            });
        }
        let size_bytes = self.notification_bytes();
        if size_bytes > NOTIFY_LIMIT_BYTES {
            let what = format!("the notification that go-sync-kit's trigger makes of event {:?}", shortened(&self.id));
            return Err(Error::TooLarge { what, size_bytes, limit_bytes: NOTIFY_LIMIT_BYTES });
        }
        Ok(())
    }

    /// Size of the larger of the two notifications, with the longest possible version and time.
    fn notification_bytes(&self) -> usize {
        const FRAME: &str = r#"{"version" : 9223372036854775807, "id" : "", "aggregate_id" : "", "event_type" : "", "stream_name" : "stream_", "created_at" : "294276-12-31T23:59:59.999999+00:00:00"}"#;
        FRAME.len() + escaped_len(&self.id) + 2 * escaped_len(&self.aggregate_id) + escaped_len(&self.event_type)
    }

    /// Rough size in memory and on the wire.
    pub fn size_bytes(&self) -> usize {
        let json = |document: &Option<String>| document.as_ref().map_or(0, String::len);
        self.id.len() + self.aggregate_id.len() + self.event_type.len() + json(&self.data) + json(&self.metadata) + 100
    }
}

fn shortened(text: &str) -> String {
    let end = text.char_indices().nth(40).map_or(text.len(), |(at, _)| at);
    text.get(..end).unwrap_or(text).to_owned()
}

/// Length of a text inside PostgreSQL's JSON. Source: `escape_json` in src/backend/utils/adt/json.c.
fn escaped_len(text: &str) -> usize {
    let escaped = |byte: u8| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 8 | 12 => 2,
        0..0x20 => 6,
        _ => 1,
    };
    text.bytes().map(escaped).sum()
}

impl StoredEvent {
    /// From a row of [`COLUMNS`].
    pub fn from_row(row: &Row) -> Result<Self> {
        Ok(Self {
            version: get(row, 0)?,
            id: get(row, 1)?,
            aggregate_id: get(row, 2)?,
            event_type: get(row, 3)?,
            data: json_text(row, 4)?,
            metadata: json_text(row, 5)?,
            created_at: micros(row, 6)?,
        })
    }

    /// Rough size in memory.
    pub fn size_bytes(&self) -> usize {
        let json = |document: &Option<String>| document.as_ref().map_or(0, String::len);
        self.id.len() + self.aggregate_id.len() + self.event_type.len() + json(&self.data) + json(&self.metadata) + 200
    }
}
