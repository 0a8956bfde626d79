//! Which database a connection leads to, so that messages published on another connection are published there, too.

use std::sync::Arc;

use tokio_postgres::Client;

use crate::error::{Error, Result};
use crate::receive::attachment::AttachmentTable;

/// An expression for the server and the database. Two servers start at different times, and two databases of one server
/// have different names. The name is hashed, because it may have characters that the encoding of another connection
/// lacks.
pub const PLACE_SQL: &str = "pg_catalog.concat(pg_catalog.hashtext(CAST(pg_catalog.current_database() AS pg_catalog.text)), \
    ' ', CAST(extract(epoch FROM pg_catalog.pg_postmaster_start_time()) * 1000000 AS bigint))";

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The value of [`PLACE_SQL`].
    pub database: String,
    /// The attachment table, quoted and with its schema, so that it does not depend on another connection's
    /// `search_path`.
    pub table: Option<String>,
}

/// Ask a connection where it leads, and for the table with which it stores attachments. The table is created if it does
/// not exist and may be created.
pub async fn ask(client: &Client, table: Option<Arc<AttachmentTable>>) -> Result<Place> {
    let sql = format!("SELECT {PLACE_SQL}");
    let context = "find out which database this is";
    let rows = client.query_typed(&sql, &[]).await;
    let rows = rows.map_err(|error| Error::from_postgres(context, &error, false))?;
    let database = rows.first().and_then(|row| row.try_get(0).ok());
    let database = database.ok_or_else(|| Error::refused("XX000", context, "there was no answer"))?;
    let table = match table {
        Some(table) => Some(table.full_name(client).await?),
        None => None,
    };
    Ok(Place { database, table })
}
