//! Queries on a listening session: the identity of its server, its channels, and the advisory locks of other servers.
//! The queries only read, so an idle database writes nothing. They use no transaction block and no cursor, so
//! notifications are never held back.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use crate::error::{Error, LikelyCause, Result};

/// Number of intervals without a probe after which the server ends the session. A process that sends no probe for so
/// long does not run.
const IDLE_INTERVALS: u32 = 3;

/// The server behind a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The server's start time in seconds (the text of a timestamp depends on the time zone), and the database's OID.
    pub database: (String, u32),
    /// Process id of the session. A different process id later on means that the connection leads through a pooler.
    pub pid: i32,
}

/// Ask a session for its identity.
pub async fn identify(client: &Client) -> Result<Identity> {
    const SQL: &str = "SELECT pg_catalog.date_part('epoch', pg_catalog.pg_postmaster_start_time())::pg_catalog.text, \
            (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()), \
            pg_catalog.pg_backend_pid()";
    let failed = |error: &tokio_postgres::Error| Error::from_postgres("identify the server", error, false);
    let rows = client.query_typed(SQL, &[]).await.map_err(|error| failed(&error))?;
    let row = rows.first().ok_or_else(no_row)?;
    let read = || Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?));
    let (started, database, pid) = read().map_err(|error| failed(&error))?;
    Ok(Identity { database: (started, database), pid })
}

fn no_row() -> Error {
    Error::lost("probe the listening session", "the answer has no row")
}

/// Why a listening session receives nothing of what `writer` publishes, if the two identities show it.
pub fn diagnose(listener: &Identity, writer: &Identity) -> Option<Error> {
    let failed = |likely_cause, reason: &str| Some(Error::SelfTest { likely_cause, reason: reason.to_owned() });
    if listener.database != writer.database {
        return failed(
            LikelyCause::OtherDatabase,
            "dsn and listen_dsn lead to different databases or servers; notifications stay within one database",
        );
    }
    if listener.pid == writer.pid {
        return failed(
            LikelyCause::TransactionPooling,
            "the listening and the publishing connection are lent the same server session: a pooler in transaction or \
             statement mode is in between, and LISTEN does not survive it; give a direct connection, or one in session \
             mode, as listen_dsn",
        );
    }
    None
}

/// The error for a message of this server that does not come back, when [`diagnose`] finds no cause.
pub fn deaf(channel: &str) -> Error {
    Error::SelfTest {
        likely_cause: LikelyCause::TransactionPooling,
        reason: format!(
            "what was published on channel {channel:?} did not come back: most likely a pooler in transaction or \
             statement mode lends the listening session to others; give a direct connection, or one in session mode, \
             as listen_dsn"
        ),
    }
}

/// Make the server end the session when this process is gone or stopped. The kernel acknowledges TCP for a stopped
/// process, so without this its session would hold back the notification queue, and keep its locks, for ever. A healthy
/// session is probed once per `interval`.
///
/// Parameters that the server does not have are not set (`idle_session_timeout` is new in PostgreSQL 14).
pub async fn configure(client: &Client, interval: Duration) -> Result<()> {
    const SQL: &str = "SELECT pg_catalog.set_config(name, wanted.value, false) \
         FROM (VALUES ('idle_session_timeout', $1), ('tcp_user_timeout', $1), ('tcp_keepalives_idle', $2), \
                      ('tcp_keepalives_interval', $2), ('tcp_keepalives_count', '3')) AS wanted(name, value) \
         JOIN pg_catalog.pg_settings USING (name) WHERE context = 'user'";
    let limit = IDLE_INTERVALS * interval;
    let milliseconds = limit.as_millis().to_string();
    let seconds = limit.as_secs().div_ceil(4).max(1).to_string();
    let done = client.query_typed(SQL, &[(&milliseconds, Type::TEXT), (&seconds, Type::TEXT)]).await;
    done.map(drop).map_err(|error| Error::from_postgres("configure the listening session", &error, false))
}

/// The answer to a probe.
#[derive(Debug, Clone, PartialEq)]
pub struct Probe {
    /// Channels that the session listens on.
    pub channels: BTreeSet<String>,
    /// Ids of the advisory locks of the requested class, held by any session.
    pub locks: Vec<u32>,
    /// Used fraction of the server's notification queue, 0 to 1, if requested.
    pub queue_usage: Option<f64>,
    /// Process id of the session.
    pub pid: i32,
}

/// Ask a session for its channels, and for the two-key advisory locks with the first key `class` that any session
/// holds.
pub async fn probe(client: &Client, class: Option<u32>, asks_queue_usage: bool) -> Result<Probe> {
    const SQL: &str = "SELECT pg_catalog.pg_backend_pid(), ARRAY(SELECT pg_catalog.pg_listening_channels()), \
            ARRAY(SELECT DISTINCT objid FROM pg_catalog.pg_locks \
                  WHERE locktype = 'advisory' AND classid = $1 AND objsubid = 2 AND granted AND database = \
                      (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())), \
            CASE WHEN $2 THEN pg_catalog.pg_notification_queue_usage() END";
    let failed = |error: &tokio_postgres::Error| Error::from_postgres("probe the listening session", error, false);
    let rows = client.query_typed(SQL, &[(&class, Type::OID), (&asks_queue_usage, Type::BOOL)]).await;
    let rows = rows.map_err(|error| failed(&error))?;
    let row = rows.first().ok_or_else(no_row)?;
    let read = || {
        let channels: Vec<String> = row.try_get(1)?;
        Ok(Probe {
            pid: row.try_get(0)?,
            channels: channels.into_iter().collect(),
            locks: row.try_get(2)?,
            queue_usage: row.try_get(3)?,
        })
    };
    read().map_err(|error: tokio_postgres::Error| failed(&error))
}

/// Reset the server's idle timer while the answer to a query is still on its way. The server may have sent that answer
/// long ago, and counts the time since then as idle. The answer to this statement is not awaited.
pub fn remind(client: &Client) {
    // Polling once sends the statement; the driver drops an answer that is not awaited.
    let _ = client.batch_execute("/* still there, reading what LISTEN brings */").now_or_never();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likely_cause_is_told_from_who_the_sessions_are() {
        let identity = |started: &str, oid, pid| Identity { database: (started.to_owned(), oid), pid };
        let cause = |listener: &Identity, writer: &Identity| match diagnose(listener, writer) {
            Some(Error::SelfTest { likely_cause, .. }) => Some(likely_cause),
            _ => None,
        };
        let one = identity("2026", 5, 10);
        assert_eq!(cause(&one, &identity("2026", 5, 11)), None);
        assert_eq!(cause(&one, &identity("2026", 5, 10)), Some(LikelyCause::TransactionPooling));
        assert_eq!(cause(&one, &identity("2026", 6, 11)), Some(LikelyCause::OtherDatabase));
        assert_eq!(cause(&one, &identity("2025", 5, 10)), Some(LikelyCause::OtherDatabase));
    }
}
