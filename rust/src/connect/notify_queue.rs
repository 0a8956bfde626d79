//! The server's notification queue: freeing space in it, and LISTEN when its oldest entries can no longer be read.

use tokio_postgres::Client;

use crate::error::{Error, Result};

/// `undefined_file`: "could not access status of transaction".
const UNDEFINED_FILE: &str = "58P01";

/// Free the part of the queue that all listeners have read. PostgreSQL itself does so with every fourth page that is
/// written, and therefore no longer once the queue is full. Calling `pg_notification_queue_usage` has the same effect.
pub async fn tidy(client: &Client) -> Result<()> {
    let done = client.query_typed("SELECT pg_catalog.pg_notification_queue_usage()", &[]).await;
    done.map(drop).map_err(|error| Error::from_postgres("tidy the notification queue", &error, false))
}

/// Run a script of LISTEN and UNLISTEN statements.
///
/// The first LISTEN of a session reads the remaining queue entries, and looks up for each whether its transaction was
/// committed. The server may no longer have the commit status of an old entry: before the releases of November 2025,
/// VACUUM removed it although the entry was still in the queue. In that case every LISTEN in the database fails until
/// the queue is tidied.
pub async fn listen(client: &Client, context: &str, script: &str) -> Result<()> {
    match client.batch_execute(script).await {
        Err(error) if error.code().is_some_and(|code| code.code() == UNDEFINED_FILE) => {
            tidy(client).await?;
            client.batch_execute(script).await
        }
        done => done,
    }
    .map_err(|error| Error::from_postgres(context, &error, false))
}
