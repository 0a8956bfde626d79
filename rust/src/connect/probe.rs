//! What a listening session is asked: who it talks to, what it holds, who else is there. Reading only, so an idle
//! database writes nothing; no transaction and no cursor, so notifications are never held back.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use crate::error::{Error, LikelyCause, Result};

/// After so many intervals without a probe the server ends the session: then this process does not run.
const IDLE_INTERVALS: u32 = 3;

/// The server behind a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// When the server was started, in seconds (as a timestamp it would look different in another time zone), and which
    /// database this is.
    pub database: (String, u32),
    /// Process id of the session. That of another one later means that a pooler is in between.
    pub pid: i32,
}

/// Ask a session who it is.
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

/// Why a listening session hears nothing of what `writer` publishes, if that can be told from who the two are.
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

/// What is concluded when a message of ours does not come back, and [`diagnose`] finds nothing.
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

/// Make the server notice, too, when the other end is gone, or is there and does nothing: a process that was stopped
/// still acknowledges TCP, and would hold back the notification queue, and every lock it has, for ever. A session that
/// is well is probed once in an `interval`.
///
/// Parameters that this server does not know are left alone (`idle_session_timeout` is new in 14).
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
    /// Channels that the session holds.
    pub channels: BTreeSet<String>,
    /// Ids of the advisory locks of a class that anybody holds.
    pub locks: Vec<u32>,
    /// Part of the server's notification queue in use, 0 to 1, if it was asked for.
    pub queue_usage: Option<f64>,
    /// Process id of the session.
    pub pid: i32,
}

/// Ask a session what it holds, and which advisory locks of a `class` of two numbers are held.
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

/// Tell the server that we are there, while the answer to a question is still on its way: it may have given it long ago,
/// and counts the time since then as idle. Nobody waits for the answer to this.
pub fn remind(client: &Client) {
    // Sent by being polled once; the driver drops an answer that nobody wants.
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
