//! The error type of the core. Every error says what happened, names the offending value and says what to do.

use std::fmt::Write as _;
use std::time::Duration;

/// Result of every fallible function of the crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What PostgreSQL reported, field by field, so that callers branch on `sqlstate` and never on text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerReport {
    /// Five-character SQLSTATE, for example `42501`; empty when the server did not report the failure.
    pub sqlstate: String,
    /// `ERROR`, `FATAL` or `PANIC`.
    pub severity: String,
    /// Primary message.
    pub message: String,
    /// `DETAIL`, when there is one.
    pub detail: Option<String>,
    /// `HINT`, when there is one.
    pub hint: Option<String>,
    /// Name of the violated constraint, when there is one.
    pub constraint: Option<String>,
}

/// Why a self-test may have failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LikelyCause {
    /// A pooler assigns the server connection to another client after each transaction, so LISTEN is lost.
    TransactionPooling,
    /// `dsn` and `listen_dsn` lead to different databases.
    OtherDatabase,
    /// None of these.
    Unknown,
}

impl LikelyCause {
    /// The cause's name in the Python API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TransactionPooling => "transaction_pooling",
            Self::OtherDatabase => "other_database",
            Self::Unknown => "unknown",
        }
    }
}

/// Everything that can go wrong. `Clone`, because one lost connection fails every message of its group.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A setting or a connection string is wrong; nothing was attempted.
    #[error("invalid {option}: {reason}{}", shown(value))]
    Options {
        /// Name of the option or connection parameter.
        option: String,
        /// The offending value, empty when it may hold a secret.
        value: String,
        /// What is wrong and what is allowed.
        reason: String,
    },
    /// The object was closed before or during the call.
    #[error("{0} is closed")]
    Closed(&'static str),
    /// The object was made by another process and its threads did not survive the fork.
    #[error("{0} was started before a fork; create it in the child process")]
    Forked(&'static str),
    /// A value cannot travel to the cluster; nothing was sent.
    #[error("cannot encode {path}: {reason}")]
    Encode {
        /// Where in the arguments, for example `args[0].user.born`.
        path: String,
        /// Why, and what to send instead.
        reason: String,
    },
    /// Bytes from the network are not a cluster message; they were skipped.
    #[error("undecodable message on channel {channel:?} ({size_bytes} bytes): {reason}")]
    Decode {
        /// Channel it came from; empty when it did not come from one.
        channel: String,
        /// Size of the received bytes.
        size_bytes: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A message on a cluster with a signing key was not signed, or not with this key; it was skipped.
    #[error("message on channel {channel:?} skipped: {reason}")]
    Signature {
        /// Channel it came from.
        channel: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The buffer of messages to be committed is full.
    #[error("the buffer is full: {count} messages of together {bytes} bytes wait to be committed")]
    BufferFull {
        /// Messages waiting.
        count: usize,
        /// Their bytes.
        bytes: usize,
    },
    /// The connections are open, but this server does not receive what it publishes.
    #[error("self-test failed: {reason}")]
    SelfTest {
        /// The most likely cause.
        likely_cause: LikelyCause,
        /// What was observed and what to do.
        reason: String,
    },
    /// A message exceeds a limit; nothing was sent.
    #[error("{what} is {size_bytes} bytes, the limit is {limit_bytes}")]
    TooLarge {
        /// The value that is too large, for example `channel name "socket.io#/…"`.
        what: String,
        /// Its size.
        size_bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// A notification named an attachment row that is not there (deleted or rolled back); its message is lost.
    #[error("attachment {attachment_id} announced on channel {channel:?} does not exist; its message is lost")]
    AttachmentMissing {
        /// Id from the notification's header.
        attachment_id: String,
        /// Channel it was announced on.
        channel: String,
    },
    /// PostgreSQL refused a statement or a connection attempt; an open connection remains usable.
    #[error("{}", describe(.report, .context))]
    Database {
        /// The operation, for example `create table "socket_io_attachments"`; may be empty.
        context: String,
        /// The server's report.
        report: Box<ServerReport>,
    },
    /// A connection was refused although an earlier one had been accepted. It counts as an outage, whatever the
    /// SQLSTATE: rights, limits and certificates may be changed, and changed back, while the process runs.
    #[error("{0}")]
    Refused(Box<Self>),
    /// No connection could be made, or it broke.
    #[error("{context}: {reason}")]
    ConnectionLost {
        /// The operation, for example `connect to db1:5432`.
        context: String,
        /// The reason, as the operating system or the driver reports it.
        reason: String,
        /// True when a commit was in flight: it may or may not have happened.
        may_be_sent: bool,
    },
    /// The call did not finish within its time limit.
    #[error("{context} did not finish within {} s", limit.as_secs_f64())]
    Timeout {
        /// The operation.
        context: String,
        /// The time limit that was exceeded.
        limit: Duration,
    },
    /// The aggregate's version is not the one that the writer expected; nothing was stored.
    #[error("aggregate {aggregate_id:?}: expected {}, found {}; load it again and decide anew", last(*expected), last(*actual))]
    WrongExpectedVersion {
        /// The aggregate.
        aggregate_id: String,
        /// The version that the writer expected: that of the aggregate's last event, 0 for no events, -1 for any
        /// version.
        expected: i64,
        /// Version of the aggregate's last event, 0 when it has none.
        actual: i64,
    },
    /// An event id is in use by another event; nothing was stored.
    #[error("event id {id:?} is taken by {}; give the new event an id of its own", holder(*version))]
    DuplicateEvent {
        /// The id.
        id: String,
        /// Version of the event that has this id; 0 when that event is part of the same call.
        version: i64,
    },
    /// An aggregate id is too long for the channel name that go-sync-kit's trigger makes of it; nothing was stored.
    #[error(
        "aggregate id {aggregate_id:?} is {size_bytes} bytes, but go-sync-kit's trigger on {table} allows {limit_bytes}"
    )]
    AggregateIdTooLong {
        /// The id.
        aggregate_id: String,
        /// The table.
        table: String,
        /// Its size.
        size_bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// Another transaction held the lock of an aggregate, or an id of the call, for too long; nothing was stored.
    #[error("aggregate {aggregate_id:?} is locked: {}", locker(*waited, *pid, application_name.as_deref(), state.as_deref(), *open_for))]
    AggregateLocked {
        /// The aggregate.
        aggregate_id: String,
        /// How long the call has waited.
        waited: Duration,
        /// The server process of the session that holds the lock, as far as it was found.
        pid: Option<i32>,
        /// The application name of that session.
        application_name: Option<String>,
        /// The state of that session, for example `idle in transaction`.
        state: Option<String>,
        /// For how long its transaction has been open.
        open_for: Option<Duration>,
    },
    /// The table cannot be used as an event table.
    #[error("table {table} is not fit for events: {reason}")]
    SchemaMismatch {
        /// The table.
        table: String,
        /// What is missing or different.
        reason: String,
    },
    /// The server does not show the locks from which the order of events is determined.
    #[error(
        "table {table}: the server does not show who holds a lock on {sequence}, so readers could pass events that are \
         being stored; call enable_serial_order() once, then writers take turns and no locks need be seen"
    )]
    LocksNotVisible {
        /// The table.
        table: String,
        /// Its sequence.
        sequence: String,
    },
    /// The table went back in time: a restore, a failover or crash that lost commits, or a sequence set back.
    #[error("{}; decide where each reader continues", rewound(table, *position, *last_version, event_id.as_ref(), found_id.as_ref()))]
    Rewound {
        /// The table.
        table: String,
        /// The reader's position.
        position: i64,
        /// The last version that the sequence has assigned.
        last_version: i64,
        /// Id of the event that was delivered at the position; `None` when it is not known.
        event_id: Option<String>,
        /// Id of the event that is there now; `None` when there is none.
        found_id: Option<String>,
    },
    /// `LISTEN` does not work over this connection.
    #[error("{0}")]
    InvalidConnection(String),
    /// The store was closed.
    #[error("the event store is closed")]
    StoreClosed,
}

fn rewound(table: &str, position: i64, last: i64, event_id: Option<&String>, found_id: Option<&String>) -> String {
    let cause = "it was restored or truncated, or a failover or a crash lost commits";
    if last < position {
        return format!("table {table} ends at version {last}, before position {position}: {cause}");
    }
    let found = found_id.map_or_else(|| "no event".to_owned(), |id| format!("event {id:?}"));
    let wanted = event_id.map_or_else(String::new, |id| format!(" instead of {id:?}"));
    format!("table {table} has {found}{wanted} at position {position}: {cause}")
}

fn locker(
    waited: Duration,
    pid: Option<i32>,
    application_name: Option<&str>,
    state: Option<&str>,
    open_for: Option<Duration>,
) -> String {
    let mut text = format!("waited for {:.1} s", waited.as_secs_f64());
    if pid.is_none() && state.is_none() {
        text.push_str("; who holds it, or stores an event with the same id, was not found");
        return text;
    }
    // writing to a String cannot fail
    match pid {
        Some(pid) => drop(write!(text, "; it is held by session {pid}")),
        None => text.push_str("; it is held by a prepared transaction"),
    }
    if let Some(name) = application_name.filter(|name| !name.is_empty()) {
        let _ = write!(text, " ({name})");
    }
    if let Some(state) = state {
        let _ = write!(text, ", {state}");
    }
    if let Some(open_for) = open_for {
        let _ = write!(text, ", whose transaction has been open for {:.1} s", open_for.as_secs_f64());
    }
    text
}

fn last(version: i64) -> String {
    match version {
        -1 => "at least one event".to_owned(),
        0 => "no events".to_owned(),
        version => format!("version {version}"),
    }
}

fn holder(version: i64) -> String {
    if version == 0 { "another event of the same call".to_owned() } else { format!("the event of version {version}") }
}

/// What to do about an error, where the server gives no hint.
fn advice(sqlstate: &str) -> Option<&'static str> {
    let lacks =
        "the encoding of this database lacks a character of the text; a database with ENCODING 'UTF8' has them all";
    (sqlstate == "22P05").then_some(lacks)
}

fn shown(value: &str) -> String {
    if value.is_empty() { String::new() } else { format!(" (got {value:?})") }
}

fn describe(report: &ServerReport, context: &str) -> String {
    // writing to a String cannot fail
    let mut text = String::new();
    if !context.is_empty() {
        text.push_str(context);
        text.push_str(": ");
    }
    text.push_str(&report.message);
    if !report.sqlstate.is_empty() {
        let _ = write!(text, " (SQLSTATE {})", report.sqlstate);
    }
    if let Some(detail) = &report.detail {
        let _ = write!(text, "; detail: {detail}");
    }
    if let Some(hint) = &report.hint {
        let _ = write!(text, "; hint: {hint}");
    }
    text
}

impl Error {
    /// An [`Error::Options`] from its parts; leave `value` empty when it may hold a secret.
    pub fn options(option: impl Into<String>, value: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Options { option: option.into(), value: value.into(), reason: reason.into() }
    }

    /// An [`Error::ConnectionLost`] with no commit in flight.
    #[allow(clippy::needless_pass_by_value, reason = "an error, or a text")]
    pub fn lost(context: impl Into<String>, reason: impl ToString) -> Self {
        Self::ConnectionLost { context: context.into(), reason: reason.to_string(), may_be_sent: false }
    }

    /// An [`Error::Database`] with a message of this crate instead of the server's.
    pub fn refused(sqlstate: &str, context: impl Into<String>, message: impl Into<String>) -> Self {
        let (sqlstate, severity, message) = (sqlstate.to_owned(), "ERROR".to_owned(), message.into());
        let report = ServerReport { sqlstate, severity, message, ..ServerReport::default() };
        Self::Database { context: context.into(), report: Box::new(report) }
    }

    /// Translate a driver error met while doing `context`. `in_flight` says whether a commit was under way.
    ///
    /// A report whose SQLSTATE says that the server is ending the session (class 57P, 08) counts as a lost
    /// connection, everything else that carries a report as a refusal.
    pub fn from_postgres(context: &str, error: &tokio_postgres::Error, in_flight: bool) -> Self {
        let Some(db) = error.as_db_error() else {
            let reason = match std::error::Error::source(error) {
                Some(source) => format!("{error}: {source}"),
                None => error.to_string(),
            };
            return Self::ConnectionLost { context: context.to_owned(), reason, may_be_sent: in_flight };
        };
        let report = ServerReport {
            sqlstate: db.code().code().to_owned(),
            // The unparsed severity is in the server's language.
            severity: db.parsed_severity().map_or_else(|| db.severity().to_owned(), |known| known.to_string()),
            message: db.message().to_owned(),
            detail: db.detail().map(str::to_owned),
            hint: db.hint().or_else(|| advice(db.code().code())).map(str::to_owned),
            constraint: db.constraint().map(str::to_owned),
        };
        Self::Database { context: context.to_owned(), report: Box::new(report) }
    }

    /// Whether waiting and connecting again can help (network, restart, failover), as opposed to a mistake in
    /// the configuration (password, database, rights) that must be reported at once.
    pub fn is_transient(&self) -> bool {
        match self {
            // While the process runs, a pooler may be replaced by a direct connection and a standby may be promoted.
            Self::ConnectionLost { .. } | Self::Timeout { .. } | Self::SelfTest { .. } | Self::Refused(_) => true,
            Self::Database { report, .. } => {
                // 08 connection exception, 53 insufficient resources, 57 operator intervention, 25006 standby.
                matches!(report.sqlstate.get(..2), Some("08" | "53" | "57")) || report.sqlstate == "25006"
            }
            _ => false,
        }
    }

    /// Whether a commit was under way that may have happened.
    pub fn is_in_doubt(&self) -> bool {
        matches!(self, Self::ConnectionLost { may_be_sent: true, .. })
    }

    /// Whether the server refused a value, for example a character that its encoding lacks. Class 22, data exception.
    pub fn is_about_a_value(&self) -> bool {
        matches!(self, Self::Database { report, .. } if report.sqlstate.starts_with("22"))
    }

    /// Whether the session is lost, or there was none.
    pub fn is_connection_lost(&self) -> bool {
        match self {
            Self::ConnectionLost { .. } | Self::Timeout { .. } | Self::SelfTest { .. } | Self::Refused(_) => true,
            Self::Database { report, .. } => {
                report.severity == "FATAL" || report.severity == "PANIC" || report.sqlstate.starts_with("08")
            }
            _ => false,
        }
    }
}
