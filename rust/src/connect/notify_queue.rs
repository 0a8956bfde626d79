//! The server's notification queue: making room in it, and LISTEN where its oldest entries can no longer be read.

use tokio_postgres::Client;

use crate::error::{Error, Result};

/// `undefined_file`: "could not access status of transaction".
const UNDEFINED_FILE: &str = "58P01";

/// Free what all listeners have read. PostgreSQL does that with every fourth page that is written, and so no more once
/// the queue is full; asking for its usage does it, too.
pub async fn tidy(client: &Client) -> Result<()> {
    let done = client.query_typed("SELECT pg_catalog.pg_notification_queue_usage()", &[]).await;
    done.map(drop).map_err(|error| Error::from_postgres("tidy the notification queue", &error, false))
}

/// Run a script of LISTEN and the like.
///
/// The first LISTEN of a session reads what is left in the queue, and asks for each entry whether its transaction was
/// committed. An entry may be older than what the server still knows of that (before the releases of November 2025
/// VACUUM removed it regardless): then every LISTEN of the database is refused, until somebody tidies the queue.
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
