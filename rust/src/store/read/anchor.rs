//! The newest event that was delivered, by version and id. As long as the table holds it, the table has not gone back in
//! time.
//!
//! A restore, a failover that loses commits, a crash without `synchronous_commit`, `TRUNCATE … RESTART IDENTITY` and
//! `setval` make the sequence assign versions again. The last version alone does not show that, because it may be higher
//! than before. An id never returns.

use std::sync::Arc;

use tokio_postgres::Row;

use crate::error::{Error, Result};
use crate::store::event::StoredEvent;
use crate::store::row::get;
use crate::store::server::{self, SERVER_SINCE};
use crate::store::table::Table;

/// See the module documentation. The default has version 0 and stands for no event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Anchor {
    /// The event's version.
    pub version: i64,
    /// The event's id.
    pub id: Arc<str>,
}

impl Anchor {
    /// The anchor that an event is.
    pub fn of(event: &StoredEvent) -> Self {
        Self { version: event.version, id: event.id.as_str().into() }
    }

    /// The anchor from a row with version and id; the default without a row.
    pub fn from_rows(rows: &[Row]) -> Result<Self> {
        let read = |row: &Row| Ok(Self { version: get(row, 0)?, id: get::<&str>(row, 1)?.into() });
        rows.first().map_or_else(|| Ok(Self::default()), read)
    }

    /// The statement that reads the id at a version, and when the server was started. It must not run before the statement
    /// that reads events: then those events follow the anchor.
    pub fn sql(table: &Table) -> String {
        format!("SELECT (SELECT id FROM {} WHERE version = $1), {SERVER_SINCE}", table.name)
    }

    /// Whether the event is still there, where `rows` are those of [`Anchor::sql`].
    pub fn is_in(&self, rows: &[Row]) -> Result<bool> {
        Ok(self.version == 0 || found(rows)?.as_deref() == Some(&*self.id))
    }

    /// When the server was started that returned `rows`, the rows of [`Anchor::sql`].
    pub fn server_of(rows: &[Row]) -> Result<i64> {
        server::since(rows.first().ok_or(Error::Closed("connection"))?, 1)
    }

    /// The error of an event that is not there any more.
    pub fn rewound(&self, table: &Table, rows: &[Row], last_version: i64) -> Error {
        let (position, event_id) = (self.version, Some((*self.id).to_owned()));
        match found(rows) {
            Ok(found_id) => Error::Rewound { table: table.name.clone(), position, last_version, event_id, found_id },
            Err(error) => error,
        }
    }
}

/// The id that is there now. A standby that lags behind may lack the event.
fn found(rows: &[Row]) -> Result<Option<String>> {
    Anchor::server_of(rows)?;
    rows.first().map_or(Ok(None), |row| get(row, 0))
}
