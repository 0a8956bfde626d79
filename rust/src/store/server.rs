//! Which server a connection leads to. Behind a pooler it outlives a restart and a failover.
//!
//! New connections to a standby are refused, but an old connection comes to lead to a standby that is not promoted yet.
//! Such a server is an outage like any other: it refuses what writes, what it shows is the past, and it does not show who
//! writes, so a reader would take for final what is not.

use tokio_postgres::Row;

use crate::error::{Error, Result};
use crate::store::row::{get, micros};

/// When the server was started, or crashed and recovered by itself: the start is then that of before, and the statistics
/// begin anew. Before PostgreSQL 15 it would take too long to ask for the latter. NULL on a standby.
pub const SERVER_SINCE: &str = "CASE WHEN NOT pg_catalog.pg_is_in_recovery() THEN \
    GREATEST(pg_catalog.pg_postmaster_start_time(), CASE WHEN \
    pg_catalog.current_setting('server_version_num')::pg_catalog.int4 >= 150000 \
    THEN pg_catalog.pg_stat_get_bgwriter_stat_reset_time() END) END";
/// Whether the server is a standby.
pub const IS_STANDBY: &str = "SELECT pg_catalog.pg_is_in_recovery()";
/// `read_only_sql_transaction`: a standby reports it of what writes.
const READ_ONLY: &str = "25006";

/// Read a column with [`SERVER_SINCE`]. A standby is an error.
pub fn since(row: &Row, column: usize) -> Result<i64> {
    micros(row, column)?.ok_or_else(standby)
}

/// Fail if a standby has returned `rows`, those of [`IS_STANDBY`].
pub fn check_primary(rows: &[Row]) -> Result<()> {
    let is_standby = rows.first().map_or(Ok(false), |row| get(row, 0))?;
    if is_standby { Err(standby()) } else { Ok(()) }
}

fn standby() -> Error {
    let reason = "the server is a hot standby, which is not promoted yet";
    as_outage(Error::refused(READ_ONLY, "look at the server", reason))
}

/// What a standby refuses is refused because of an outage.
pub fn as_outage(error: Error) -> Error {
    match error {
        Error::Database { ref report, .. } if report.sqlstate == READ_ONLY => Error::Refused(Box::new(error)),
        other => other,
    }
}
