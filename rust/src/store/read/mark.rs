//! The settled mark: the newest event before which nothing can be added any more, kept in a side table of one row.
//!
//! A reader that starts while a transaction is open does not know which versions that transaction has drawn, except that
//! they are above everything that was final before. The mark says what was. Without it, the reader could deliver nothing
//! beyond the first gap until all transactions have ended that were open when it started.
//!
//! The mark is an [`Anchor`], so a mark of another history counts for nothing. It was final when it was written, and stays
//! so: a crash may take the last marks along, but no event that is still there.

use std::time::{Duration, Instant};

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use crate::error::{Error, Result};
use crate::store::pool::{BEGIN, Bind, PLANNED_BY_VALUES, Pooled};
use crate::store::read::anchor::Anchor;
use crate::store::row::{get, micros};
use crate::store::server::SERVER_SINCE;
use crate::store::table::Table;

/// Shortest time between two writes.
const INTERVAL: Duration = Duration::from_secs(1);
/// Readers wait hardly at all while somebody has locked the mark, and its next write need not wait for the disk: to lose
/// one in a crash does no harm.
const QUICK: &str = "SELECT pg_catalog.set_config('lock_timeout', '20ms', true), \
    pg_catalog.set_config('synchronous_commit', 'off', true)";

/// Read the mark's version, and when the server was started that it is about; `None` if there is no mark, or if its event
/// is gone.
pub async fn read(connection: &mut Pooled, table: &Table) -> Result<Option<(i64, i64)>> {
    let Some(side) = side_table(connection, table, "SELECT").await? else { return Ok(None) };
    let sql = format!("SELECT m.version, {SERVER_SINCE} FROM {side} m WHERE {} = m.id", id_at_mark(table));
    let rows = match quickly(connection, "read the settled mark", &sql, &[]).await {
        Err(error) if is_locked(&error) => return Ok(None),
        rows => rows?,
    };
    rows.first().map(|row| Ok((get(row, 0)?, micros(row, 1)?.unwrap_or_default()))).transpose()
}

/// Run a statement that does not wait for locks. Nothing is prepared: that would wait, and a pooler that forgets prepared
/// statements would break the transaction.
async fn quickly(connection: &mut Pooled, context: &str, sql: &str, binds: &[Bind<'_>]) -> Result<Vec<Row>> {
    let statements = [BEGIN, QUICK, sql, "COMMIT"].map(|sql| format!("{PLANNED_BY_VALUES}{sql}"));
    let [begin, quick, sql, commit] = &statements;
    connection.set_dirty(true);
    // After a failure COMMIT rolls back, so no transaction stays open.
    let requests: [(&str, &[Bind<'_>]); 4] = [(begin, &[]), (quick, &[]), (sql, binds), (commit, &[])];
    let result = connection.pipeline(context, requests, false).await;
    connection.set_dirty(result.as_ref().is_err_and(Error::is_connection_lost));
    let [_, _, rows, _] = result?;
    Ok(rows)
}

/// Reads the id of the event at the mark. For a join PostgreSQL might walk the whole table, because without statistics it
/// assumes many marks.
fn id_at_mark(table: &Table) -> String {
    format!("(SELECT e.id FROM {} e WHERE e.version = m.version)", table.name)
}

/// The side table, if it exists and this role may do this to it.
async fn side_table(connection: &mut Pooled, table: &Table, privileges: &str) -> Result<Option<String>> {
    let side = table.table_name.beside("_settled");
    let sql = "SELECT 1 WHERE pg_catalog.has_table_privilege(pg_catalog.to_regclass($1), $2)";
    let binds = [(&side as _, Type::TEXT), (&privileges as _, Type::TEXT)];
    let rows = connection.query("look for the settled mark", sql, &binds, false).await?;
    Ok((!rows.is_empty()).then_some(side))
}

/// Writes the mark now and then.
#[derive(Default)]
pub struct Marker {
    /// The statement; `None` if this role may not write the mark.
    sql: Option<String>,
    written: i64,
    at: Option<Instant>,
}

impl Marker {
    /// A marker for a new reader.
    pub async fn new(connection: &mut Pooled, table: &Table) -> Result<Self> {
        // The mark of another history is replaced.
        let sql = side_table(connection, table, "INSERT, UPDATE, SELECT").await?.map(|side| {
            format!(
                "INSERT INTO {side} AS m (version, id) VALUES ($1, $2) \
                 ON CONFLICT (is_only) DO UPDATE SET version = excluded.version, id = excluded.id \
                 WHERE m.version < excluded.version OR {} IS DISTINCT FROM m.id",
                id_at_mark(table)
            )
        });
        Ok(Self { sql, ..Self::default() })
    }

    /// Whether a write is due.
    pub fn is_due(&self, anchor: &Anchor) -> bool {
        self.sql.is_some() && !self.has_written(anchor) && self.at.is_none_or(|at| at.elapsed() >= INTERVAL)
    }

    /// Whether a write would change nothing.
    pub fn has_written(&self, anchor: &Anchor) -> bool {
        anchor.version <= self.written
    }

    /// Write the mark. While it is locked, it is left as it is. What the server refuses for another reason, for example on
    /// a standby, is not tried again.
    pub async fn write(&mut self, connection: &mut Pooled, anchor: &Anchor) -> Result<()> {
        let Some(sql) = &self.sql else { return Ok(()) };
        let id = &*anchor.id;
        let binds = [(&anchor.version as _, Type::INT8), (&id as _, Type::TEXT)];
        match quickly(connection, "write the settled mark", sql, &binds).await {
            Err(error) if is_locked(&error) => {}
            Err(Error::Database { .. }) => self.sql = None,
            result => {
                result?;
                self.written = anchor.version;
            }
        }
        self.at = Some(Instant::now());
        Ok(())
    }
}

/// Whether others hold what the statement needs, or took it away: 55P03 lock not available, 57014 cancelled, 40001 and
/// 40P01 conflicts.
fn is_locked(error: &Error) -> bool {
    matches!(error, Error::Database { report, .. }
        if matches!(report.sqlstate.as_str(), "55P03" | "57014" | "40001" | "40P01"))
}
