//! Making an index while others write.
//!
//! `CREATE INDEX CONCURRENTLY` runs in no transaction, so it cannot be a migration like the others. What stands for their
//! lock and their record is the state of the index itself: it is there and valid, it is being built, or it was left
//! invalid by a session that ended, and is then made again.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tokio_postgres::types::Type;

use crate::error::{Error, Result};
use crate::store::indexes::Index;
use crate::store::pool::{Pool, Pooled};
use crate::store::row::get;
use crate::store::table::{self, Part, Table};

/// How long the server may be silent while it builds an index.
const PATIENCE: Duration = Duration::from_secs(7 * 24 * 3600);
/// How often it is looked whether another session has built the index.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Whether the index `$1` of the table `$2` is valid, and whether a session is building it. Of other roles' sessions it is
/// not shown what they build.
const STATE: &str = "SELECT i.indisvalid, i.indrelid = $2, EXISTS (\
        SELECT FROM pg_catalog.pg_stat_progress_create_index p \
        WHERE p.datid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()) \
        AND coalesce(p.index_relid, i.indexrelid) IN (i.indexrelid, 0)) \
     FROM pg_catalog.pg_index i WHERE i.indexrelid = pg_catalog.to_regclass($1)";

/// Make an index on a table of our own, if it is not there, and wait until it is valid.
pub async fn add_index(pool: &Arc<Pool>, table: &Table, index: Index) -> Result<()> {
    let name = &table.table_name;
    if !table.is_native {
        let reason = "its layout is go-sync-kit's and stays as it is; CREATE INDEX yourself".to_owned();
        return Err(Error::SchemaMismatch { table: table.name.clone(), reason });
    }
    if matches!(index, Index::Partition(_)) {
        table::migrate(&mut pool.get().await?, name, Part::Partition).await?;
    }
    let (bare, beside) = (name.bare(&index.suffix()), name.beside(&index.suffix()));
    let create = format!(
        "CREATE INDEX CONCURRENTLY IF NOT EXISTS {bare} ON {} (({}), version)",
        table.name,
        index.expression(name)
    );
    let context = format!("create index {beside}");
    let mut was_left = false;
    loop {
        let mut connection = pool.get().await?;
        connection.set_patience(PATIENCE);
        let binds = [(&beside as _, Type::TEXT), (&table.oid as _, Type::OID)];
        let found = connection.query(&context, STATE, &binds, false).await?;
        let Some(row) = found.first() else {
            if has_lost(run(&mut connection, &context, &create).await)? {
                drop(connection);
                sleep(LOOK_EVERY).await;
            }
            continue;
        };
        let (is_valid, is_ours, is_being_built) = (get::<bool>(row, 0)?, get::<bool>(row, 1)?, get::<bool>(row, 2)?);
        if !is_ours {
            let reason = format!("{beside} is an index of another table");
            return Err(Error::SchemaMismatch { table: table.name.clone(), reason });
        }
        if is_valid {
            return Ok(());
        }
        // A single look may see the index as it was before another session completed it, and that session no more.
        let is_left = !is_being_built;
        let is_to_go = is_left && was_left;
        was_left = is_left;
        let drop_it = format!("DROP INDEX CONCURRENTLY IF EXISTS {beside}");
        if !is_to_go || has_lost(run(&mut connection, &context, &drop_it).await)? {
            drop(connection);
            sleep(LOOK_EVERY).await;
        }
    }
}

/// Whether another session does the same and was quicker. Two that build indexes of one table wait for each other, so
/// the server ends one of them.
fn has_lost(result: Result<()>) -> Result<bool> {
    match result {
        Err(Error::Database { report, .. }) if matches!(&*report.sqlstate, "40P01" | "42P07" | "23505") => Ok(true),
        result => result.map(|()| false),
    }
}

async fn run(connection: &mut Pooled, context: &str, sql: &str) -> Result<()> {
    let failed = |error| Error::from_postgres(context, &error, false);
    let failed = &failed;
    connection.ask(context, sql.len(), |client| async move { client.batch_execute(sql).await.map_err(failed) }).await
}
