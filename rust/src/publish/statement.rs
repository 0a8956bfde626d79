//! The statement that commits a group of messages, and the classification of its errors.

use tokio_postgres::Client;
use tokio_postgres::types::Type;

use crate::error::{Error, Result};
use crate::publish::buffer::Outgoing;
use crate::receive::attachment::AttachmentTable;
use crate::wire::codec::Encoded;
use crate::wire::protocol::quote_literal;

/// Commit a group in one transaction and one round trip. Stores attachments in `table`, which must exist if there are
/// any.
pub async fn commit(client: &Client, table: &AttachmentTable, group: &[Outgoing]) -> Result<()> {
    let failed = |error: tokio_postgres::Error| Error::from_postgres("commit messages", &error, true);
    // Statements are unnamed, here and below, so that they work through transaction poolers.
    if let [Outgoing { channel, wire: Encoded::Inline(text), .. }] = group {
        // Planned faster than the statement below, which unpacks arrays.
        const SQL: &str = "SELECT pg_catalog.pg_notify($1, $2)";
        let sent = client.query_typed(SQL, &[(channel, Type::TEXT), (text, Type::TEXT)]).await;
        return sent.map(drop).map_err(failed);
    }
    let mut channels: Vec<&str> = Vec::with_capacity(group.len());
    let mut texts: Vec<&str> = Vec::with_capacity(group.len());
    let mut bodies: Vec<Option<&[u8]>> = Vec::new();
    for outgoing in group {
        channels.push(&outgoing.channel);
        match &outgoing.wire {
            Encoded::Inline(text) => {
                texts.push(text);
                bodies.push(None);
            }
            Encoded::Attachment { header, body } => {
                texts.push(header);
                bodies.push(Some(body));
            }
        }
    }
    let result = if bodies.iter().any(Option::is_some) {
        let sequence = table.ensure(client).await?;
        let sql = attachment_sql(table.quoted(), &sequence);
        client
            .query_typed(
                &sql,
                &[(&channels, Type::TEXT_ARRAY), (&texts, Type::TEXT_ARRAY), (&bodies, Type::BYTEA_ARRAY)],
            )
            .await
    } else {
        // Planned and executed faster than `SELECT count(pg_notify(...)) FROM unnest(...)`, because there is no
        // function scan and no aggregate. Rows that OFFSET skips are computed, but not sent.
        const SQL: &str = "SELECT pg_catalog.pg_notify(pg_catalog.unnest($1), pg_catalog.unnest($2)) OFFSET 2147483647";
        client.query_typed(SQL, &[(&channels, Type::TEXT_ARRAY), (&texts, Type::TEXT_ARRAY)]).await
    };
    result.map(drop).map_err(failed)
}

/// One statement that stores the bodies and notifies, in the order of the arrays. Ids are taken from the table's own
/// sequence, so that each header can name its row.
///
/// Turning `synchronous_commit` off matters for a table that was created logged. The row is as volatile as its
/// notification, and waiting for its WAL would hold the server-wide notify lock during an fsync.
fn attachment_sql(table: &str, sequence: &str) -> String {
    let sequence = quote_literal(sequence);
    format!(
        "WITH m AS MATERIALIZED (\
            SELECT n, channel, head, body, \
                CASE WHEN body IS NOT NULL THEN pg_catalog.nextval({sequence}::pg_catalog.regclass) END AS id \
            FROM unnest($1, $2, $3) WITH ORDINALITY AS t(channel, head, body, n)), \
         stored AS (\
            INSERT INTO {table} (id, payload) OVERRIDING SYSTEM VALUE SELECT id, body FROM m WHERE body IS NOT NULL) \
         SELECT pg_catalog.count(pg_catalog.pg_notify(channel, \
            CASE WHEN id IS NULL THEN head ELSE pg_catalog.concat(head, id, '\"}}') END)) \
         FROM (SELECT channel, head, id FROM m ORDER BY n) AS ordered \
         WHERE (SELECT pg_catalog.set_config('synchronous_commit', 'off', true)) IS NOT NULL"
    )
}

/// `program_limit_exceeded`: NOTIFY reports it when the server's queue is full.
pub fn is_queue_full(error: &Error) -> bool {
    matches!(error, Error::Database { report, .. } if report.sqlstate == "54000")
}

/// Whether an error may concern a single message, which cannot be stored or represented, while the others could be
/// sent. That is always so for class 22 (data exception). When rows are stored, it is also so for the table's
/// constraints (class 23) and for triggers, which raise P0001 or fail with an error of their own, mostly of class 42. A
/// missing privilege (42501) concerns all messages.
pub fn is_about_one_message(error: &Error, group: &[Outgoing]) -> bool {
    let Error::Database { report, .. } = error else { return false };
    let is_of_a_row = || group.iter().any(Outgoing::is_attachment) && report.sqlstate != "42501";
    match report.sqlstate.get(..2) {
        Some("22") => true,
        Some("23" | "42" | "P0") => is_of_a_row(),
        _ => false,
    }
}
