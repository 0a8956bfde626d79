//! Events in the binary format of `COPY`. Source: PostgreSQL's documentation of `COPY`, "Binary Format".

use std::pin::pin;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::SinkExt as _;

use crate::error::{Error, Result};
use crate::store::event::NewEvent;
use crate::store::pool::Pooled;

/// Size of one piece. The driver's own writer sends 4 KiB at a time, and the server then wakes up for every few events.
const PIECE_BYTES: usize = 64 * 1024;
/// Signature, no flags, no extension.
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// Written in place of another row's number of fields.
const TRAILER: i16 = -1;
/// Written in place of a field's size.
const NULL: i32 = -1;
/// The version byte with which a binary `jsonb` begins; the text follows.
const JSONB: &[u8] = &[1];

/// Send events to a table with the columns of an event table, in the open transaction. Returns the number of events.
pub async fn copy(connection: &mut Pooled, table: &str, events: &[NewEvent]) -> Result<i64> {
    let failed = |error: tokio_postgres::Error| Error::from_postgres("import events", &error, true);
    let sql = &format!("COPY {table} (id, aggregate_id, event_type, data, metadata) FROM STDIN BINARY");
    let size = events.iter().map(NewEvent::size_bytes).sum();
    let work = connection.ask("import events", size, |client| async move {
        let mut sink = pin!(client.copy_in::<_, Bytes>(sql).await.map_err(failed)?);
        let mut out = BytesMut::with_capacity(PIECE_BYTES);
        out.put_slice(HEADER);
        for event in events {
            out.put_i16(5);
            for text in [&event.id, &event.aggregate_id, &event.event_type] {
                field(&mut out, &[], text)?;
            }
            for document in [&event.data, &event.metadata] {
                match document {
                    Some(text) => field(&mut out, JSONB, text)?,
                    None => out.put_i32(NULL),
                }
            }
            if out.len() >= PIECE_BYTES {
                sink.send(out.split().freeze()).await.map_err(failed)?;
                out.reserve(PIECE_BYTES);
            }
        }
        out.put_i16(TRAILER);
        sink.send(out.freeze()).await.map_err(failed)?;
        let count = sink.finish().await.map_err(failed)?;
        Ok(i64::try_from(count).unwrap_or(i64::MAX))
    });
    work.await
}

fn field(out: &mut BytesMut, prefix: &[u8], text: &str) -> Result<()> {
    let too_large = |_| {
        let (what, limit_bytes) = ("a field of an event".to_owned(), i32::MAX as usize);
        Error::TooLarge { what, size_bytes: text.len(), limit_bytes }
    };
    out.put_i32(i32::try_from(prefix.len() + text.len()).map_err(too_large)?);
    out.put_slice(prefix);
    out.put_slice(text.as_bytes());
    Ok(())
}
