//! A bounded pool of connections for writing and for reading pages.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::{Duration, Instant};

use futures_util::TryStreamExt as _;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row, RowStream, Statement};

use crate::connect::backoff::Backoff;
use crate::connect::connection::Connector;
use crate::connect::session::OpenConnection;
use crate::error::{Error, Result};
use crate::lock::Mutex;
use crate::store::server;

/// Opens a transaction in which each statement sees everything committed before the statement. Expected versions rely
/// on that, because they are read after waiting for a lock. The default isolation level of the role or the database may
/// be another.
pub const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED";
/// How long an abandoned query may still run before it is cancelled, and its connection closed instead of returned to
/// the pool.
const SETTLE_LIMIT: Duration = Duration::from_secs(1);
/// Maximum number of prepared statements per connection. The store itself has about a dozen; filters add others.
const STATEMENTS: usize = 100;

/// Among so many rows it hardly matters how a row is found.
const FEW_ROWS: u64 = 100;

/// How much more a table has to grow each time before statements are prepared anew. That costs a round trip, and plans for the
/// first five executions.
const GROWTH: u64 = 8;

/// A statement that begins so is planned each time, for the values of its parameters. A prepared one is planned for all
/// values at once after its fifth use.
pub const PLANNED_BY_VALUES: &str = "/* planned by values */ ";

/// Limits of a pool.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Maximum number of open connections. Further callers wait.
    pub max_open: usize,
    /// Maximum number of idle connections.
    pub max_idle: usize,
    /// Age at which a connection is closed after use.
    pub max_lifetime: Duration,
    /// Idle time after which a connection is closed.
    pub max_idle_time: Duration,
    /// Whether statements are prepared on the server.
    pub is_preparing: bool,
    /// Longest silence before the answer to a statement. Afterwards the statement is cancelled, and its connection given
    /// up.
    pub answer_limit: Duration,
}

/// Counters with the meaning of Go's `sql.DBStats`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Open connections.
    pub open: usize,
    /// Of these, those in use.
    pub in_use: usize,
    /// How often a caller waited for a connection.
    pub wait_count: u64,
    /// Total time that callers waited.
    pub wait_duration: Duration,
    /// Connections closed because of `max_idle`.
    pub max_idle_closed: u64,
    /// Connections closed because of `max_idle_time`.
    pub max_idle_time_closed: u64,
    /// Connections closed because of `max_lifetime`.
    pub max_lifetime_closed: u64,
}

struct Idle {
    connection: Connection,
    since: Instant,
}

struct Connection {
    open: Arc<OpenConnection>,
    statements: HashMap<String, Prepared>,
    born: Instant,
}

/// A prepared statement. PostgreSQL keeps its plan, which it has made for the table as large as it was: for a table of a
/// few rows it reads all of them, and goes on doing so until autovacuum looks at the table, up to a minute later.
struct Prepared {
    statement: Statement,
    /// The last version known when it was prepared.
    version: i64,
    /// It is prepared anew after so many versions, each time after [`GROWTH`] times as many. How large the table is, versions
    /// do not say: old events may have been deleted.
    rows: u64,
}

impl Prepared {
    /// Whether the table may be much larger than it was, or another one.
    fn is_outgrown(&self, version: i64) -> bool {
        version.abs_diff(self.version) > self.rows
    }
}

#[derive(Default)]
struct State {
    idle: Vec<Idle>,
    stats: PoolStats,
    is_watched: bool,
}

/// See the module documentation.
pub struct Pool {
    connector: Arc<Connector>,
    limits: Limits,
    permits: Arc<Semaphore>,
    state: Mutex<State>,
    is_closed: AtomicBool,
    /// The last version known, which says by how much the table has grown.
    version: AtomicI64,
    /// A pooler has put another session behind a connection, where nothing was prepared, or others prepare under the same
    /// names. So nothing is prepared any more.
    is_forgetful: AtomicBool,
}

/// A connection taken from the pool. It is returned when dropped, unless it was lost or a transaction is open on it.
pub struct Pooled {
    pool: Arc<Pool>,
    connection: Option<Connection>,
    /// A transaction is open. Dropping the connection now closes it, which also rolls back the transaction on the
    /// server.
    is_dirty: bool,
    /// A query is running. The next user of the connection would have to wait for its end.
    is_busy: bool,
    /// Additional time for answers: statements may wait for locks.
    patience: Duration,
    /// Size of what the statements send, which takes time to travel.
    sent_bytes: usize,
    /// Maximum size of the rows that one statement returns.
    answer_limit_bytes: usize,
    permit: Option<OwnedSemaphorePermit>,
}

/// Which connection of a pool it is.
#[derive(Debug, Clone)]
pub struct Identity(Weak<OpenConnection>);

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        self.0.ptr_eq(&other.0)
    }
}

/// A parameter and its type.
pub type Bind<'a> = (&'a (dyn ToSql + Sync), Type);

impl Pool {
    /// A pool, which connects on first use.
    pub fn new(connector: Arc<Connector>, limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            connector,
            limits,
            permits: Arc::new(Semaphore::new(limits.max_open)),
            state: Mutex::default(),
            is_closed: AtomicBool::new(false),
            version: AtomicI64::new(0),
            is_forgetful: AtomicBool::new(false),
        })
    }

    /// The table has this version. When the table has grown, statements are prepared anew.
    pub fn has_seen(&self, version: i64) {
        self.version.fetch_max(version, Ordering::Relaxed);
    }

    /// This is the last version. It is much lower than before when the table was emptied, and begins anew.
    pub fn has_seen_last(&self, version: i64) {
        if version < self.version.fetch_max(version, Ordering::Relaxed) / 2 {
            self.version.store(version, Ordering::Relaxed);
        }
    }

    /// Get an idle connection or open a new one. Waits while all connections are in use.
    pub async fn get(self: &Arc<Self>) -> Result<Pooled> {
        let permit = if let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
            permit
        } else {
            let asked = Instant::now();
            let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(|_| Error::StoreClosed)?;
            let mut state = self.state.lock();
            state.stats.wait_count += 1;
            state.stats.wait_duration += asked.elapsed();
            permit
        };
        if self.is_closed.load(Ordering::Acquire) {
            return Err(Error::StoreClosed);
        }
        self.close_expired();
        let idle = {
            let mut state = self.state.lock();
            state.stats.in_use += 1;
            loop {
                match state.idle.pop() {
                    Some(idle) if !idle.connection.open.is_usable() => state.stats.open -= 1,
                    other => break other,
                }
            }
        };
        let mut pooled = Pooled::new(Arc::clone(self), None, Some(permit));
        if let Some(idle) = idle {
            pooled.connection = Some(idle.connection);
            return Ok(pooled);
        }
        let open = OpenConnection::new(self.connector.connect().await?, self.limits.answer_limit);
        let connection = Connection { open, statements: HashMap::new(), born: Instant::now() };
        pooled.connection = Some(connection);
        let mut state = self.state.lock();
        state.stats.open += 1;
        if !std::mem::replace(&mut state.is_watched, true) {
            tokio::spawn(watch(Arc::downgrade(self), self.limits));
        }
        Ok(pooled)
    }

    /// Close connections that have been idle or open for too long.
    fn close_expired(&self) {
        let mut state = self.state.lock();
        let State { idle, stats, .. } = &mut *state;
        idle.retain(|idle| {
            if idle.connection.born.elapsed() >= self.limits.max_lifetime {
                stats.max_lifetime_closed += 1;
            } else if idle.since.elapsed() >= self.limits.max_idle_time {
                stats.max_idle_time_closed += 1;
            } else {
                return true;
            }
            stats.open -= 1;
            false
        });
    }

    /// Close all idle connections now, and the others after their use. Further requests for a connection fail.
    pub fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
        self.permits.close();
        let mut state = self.state.lock();
        state.stats.open -= state.idle.len();
        state.idle.clear();
    }

    /// Counters.
    pub fn stats(&self) -> PoolStats {
        self.state.lock().stats
    }

    /// The limits.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Run `work`, which changes nothing, again for as long as the connection is lost and the server may come back: for
    /// as long as the answer to a statement is waited for.
    pub async fn retrying<T, F: Future<Output = Result<T>>>(&self, mut work: impl FnMut() -> F) -> Result<T> {
        let (began, mut backoff) = (Instant::now(), Backoff::up_to(Duration::from_secs(1)));
        loop {
            let result = work().await;
            let is_lost = result.as_ref().is_err_and(Error::is_connection_lost);
            if !is_lost || began.elapsed() >= self.limits.answer_limit || self.is_closed.load(Ordering::Acquire) {
                return result;
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }
}

/// Close expired idle connections even when the pool is not used.
async fn watch(pool: Weak<Pool>, limits: Limits) {
    let interval = limits.max_idle_time.min(limits.max_lifetime) / 2;
    let interval = interval.clamp(Duration::from_millis(50), Duration::from_secs(60));
    loop {
        tokio::time::sleep(interval).await;
        match pool.upgrade() {
            Some(pool) if !pool.is_closed.load(Ordering::Acquire) => pool.close_expired(),
            _ => return,
        }
    }
}

/// Keep a connection whose query was abandoned out of the pool until that query has ended.
async fn settle(mut pooled: Pooled) {
    let Some(open) = pooled.connection.as_ref().map(|connection| Arc::clone(&connection.open)) else { return };
    // Answers arrive in order, so the answer to an empty query follows that of the abandoned one.
    let limit = SETTLE_LIMIT;
    let answered = open.ask_aside("wait for a query", limit, async |client| {
        client.batch_execute("").await.map_err(|error| Error::from_postgres("wait for a query", &error, false))
    });
    let is_answered = answered.await.is_ok();
    if !is_answered {
        // A query that waits for a lock would go on waiting while the lock is held: the server does not check whether
        // its client is still connected.
        open.give_up();
    }
    pooled.set_dirty(!is_answered);
}

impl Drop for Pooled {
    fn drop(&mut self) {
        if self.is_busy
            && !self.is_dirty
            && let Ok(runtime) = Handle::try_current()
            && let Some(connection) = self.connection.take()
        {
            runtime.spawn(settle(Self::new(Arc::clone(&self.pool), Some(connection), self.permit.take())));
            return; // it is still in use
        }
        let mut state = self.pool.state.lock();
        state.stats.in_use -= 1;
        let Some(connection) = self.connection.take() else { return };
        let limits = self.pool.limits;
        let is_usable = !self.is_dirty
            && !self.is_busy
            && connection.open.is_usable()
            && !self.pool.is_closed.load(Ordering::Acquire);
        if !is_usable {
            state.stats.open -= 1;
        } else if connection.born.elapsed() >= limits.max_lifetime {
            state.stats.open -= 1;
            state.stats.max_lifetime_closed += 1;
        } else if state.idle.len() >= limits.max_idle {
            state.stats.open -= 1;
            state.stats.max_idle_closed += 1;
        } else {
            state.idle.push(Idle { connection, since: Instant::now() });
        }
    }
}

impl Pooled {
    fn new(pool: Arc<Pool>, connection: Option<Connection>, permit: Option<OwnedSemaphorePermit>) -> Self {
        let (is_dirty, is_busy, patience, sent_bytes) = (false, false, Duration::ZERO, 0);
        Self { pool, connection, is_dirty, is_busy, patience, sent_bytes, answer_limit_bytes: usize::MAX, permit }
    }

    fn connection(&mut self) -> Result<&mut Connection> {
        self.connection.as_mut().ok_or(Error::Closed("connection"))
    }

    /// Set whether a transaction is open.
    pub fn set_dirty(&mut self, is_dirty: bool) {
        self.is_dirty = is_dirty;
    }

    /// Which connection this is; `None` only before it is open.
    pub fn identity(&self) -> Option<Identity> {
        self.connection.as_ref().map(|connection| Identity(Arc::downgrade(&connection.open)))
    }

    /// Whether the connection was lost.
    pub fn is_closed(&self) -> bool {
        self.connection.as_ref().is_none_or(|connection| !connection.open.is_usable())
    }

    /// How long the connection has been open.
    pub fn age(&self) -> Duration {
        self.connection.as_ref().map_or(Duration::ZERO, |connection| connection.born.elapsed())
    }

    /// Give statements so much more time to answer, because they wait for locks.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// How long a statement of so many bytes may remain unanswered, for a setting of PostgreSQL.
    pub fn limit_text(&self, sent_bytes: usize) -> String {
        let limit = self.connection.as_ref().map_or(Duration::ZERO, |connection| connection.open.limit_of(sent_bytes));
        format!("{}ms", limit.as_millis().min(i32::MAX as u128))
    }

    /// Give statements time to send so many bytes.
    pub fn set_sent_bytes(&mut self, sent_bytes: usize) {
        self.sent_bytes = sent_bytes;
    }

    /// Give up a statement whose rows are larger than this together, unless it returns a single row. The error is
    /// [`Error::TooLarge`], with the average size of a row; the connection is not used again.
    pub fn set_answer_limit_bytes(&mut self, bytes: usize) {
        self.answer_limit_bytes = bytes;
    }

    /// Run `work`, which sends about `sent_bytes`, and wait for its answer for as long as bytes move on the connection.
    /// After silence for the limit, or when the returned future is dropped, it is cancelled.
    pub async fn ask<'a, T, F>(
        &'a mut self,
        context: &str,
        sent_bytes: usize,
        work: impl FnOnce(&'a Client) -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let Self { connection, is_busy, patience, .. } = self;
        let open = &connection.as_ref().ok_or(Error::Closed("connection"))?.open;
        *is_busy = true;
        let result = open.answer(context, open.limit_of(sent_bytes) + *patience, work).await;
        *is_busy = false;
        result.map_err(server::as_outage)
    }

    /// Roll back the open transaction. If that fails, the connection is not used again.
    pub async fn roll_back(&mut self) {
        self.is_dirty = self.is_closed() || self.query("roll back", "ROLLBACK", &[], false).await.is_err();
    }

    /// Run one statement, which is prepared if the pool prepares statements. With `in_flight`, a lost connection means
    /// that the commit is in doubt.
    pub async fn query(&mut self, context: &str, sql: &str, binds: &[Bind<'_>], in_flight: bool) -> Result<Vec<Row>> {
        let [rows] = self.pipeline(context, [(sql, binds)], in_flight).await?;
        Ok(rows)
    }

    /// Run statements one after the other, each in a transaction of its own unless one is open, in one round trip.
    /// Returns the first error. The statements after it have run nevertheless, unless a transaction was open.
    ///
    /// When a prepared statement has become stale, all statements run again in order, unless a transaction was open.
    /// Several statements that write therefore need a transaction.
    pub async fn pipeline<const N: usize>(
        &mut self,
        context: &str,
        requests: [(&str, &[Bind<'_>]); N],
        in_flight: bool,
    ) -> Result<[Vec<Row>; N]> {
        self.is_busy = true;
        let result = self.run(context, requests, in_flight).await;
        self.is_busy = false;
        result
    }

    async fn run<const N: usize>(
        &mut self,
        context: &str,
        requests: [(&str, &[Bind<'_>]); N],
        in_flight: bool,
    ) -> Result<[Vec<Row>; N]> {
        let pool = Arc::clone(&self.pool);
        let is_preparing = pool.limits.is_preparing && !pool.is_forgetful.load(Ordering::Relaxed);
        let version = self.pool.version.load(Ordering::Relaxed);
        let (is_open, patience, sent_bytes) = (self.is_dirty, self.patience, self.sent_bytes);
        let limit_bytes = self.answer_limit_bytes;
        let Connection { open, statements: known, .. } = self.connection()?;
        let is_sent = AtomicBool::new(false);
        let is_sent = &is_sent;
        let limit = open.limit_of(sent_bytes) + patience;
        let work = open.answer(context, limit, |client| async move {
            let mut statements = Vec::with_capacity(N);
            for (sql, binds) in requests {
                let is_prepared = is_preparing && !sql.starts_with(PLANNED_BY_VALUES);
                let statement =
                    if is_prepared { prepared(client, known, version, sql, binds).await.map(Some) } else { Ok(None) };
                statements.push(match statement {
                    Err(error) if !is_open && is_taken(&error) => {
                        pool.is_forgetful.store(true, Ordering::Relaxed);
                        None
                    }
                    statement => statement.map_err(|error| Error::from_postgres(context, &error, false))?,
                });
            }
            is_sent.store(true, Ordering::Relaxed);
            let mut results = send(client, &requests, &statements, limit_bytes).await;
            let is_one = |is_so: fn(&tokio_postgres::Error) -> bool| {
                results.iter().any(|result| matches!(result, Err(Failure::Refused(error)) if is_so(error)))
            };
            if is_one(is_forgotten) {
                pool.is_forgetful.store(true, Ordering::Relaxed);
            }
            if !is_open && is_preparing && is_one(is_stale) {
                // Everything runs again, because a statement relies on what the ones before it have read.
                known.clear();
                results = send(client, &requests, &[], limit_bytes).await;
            }
            let mut rows = Vec::with_capacity(N);
            for result in results {
                rows.push(result.map_err(|failure| match failure {
                    Failure::Refused(error) => {
                        known.clear();
                        Error::from_postgres(context, &error, in_flight)
                    }
                    Failure::TooLarge { rows, bytes } => {
                        let what = format!("{context}: a row, on average,");
                        Error::TooLarge { what, size_bytes: bytes / rows, limit_bytes: limit_bytes / rows }
                    }
                })?);
            }
            rows.try_into().map_err(|_| Error::Closed("connection"))
        });
        let result = work.await;
        if matches!(result, Err(Error::TooLarge { .. })) {
            open.give_up();
        }
        result.map_err(|error| match error {
            Error::ConnectionLost { context, reason, .. } => {
                let may_be_sent = in_flight && is_sent.load(Ordering::Relaxed);
                Error::ConnectionLost { context, reason, may_be_sent }
            }
            other => server::as_outage(other),
        })
    }
}

/// Why a statement returned no rows.
enum Failure {
    Refused(tokio_postgres::Error),
    /// So many rows exceeded the limit. More of them may follow.
    TooLarge {
        rows: usize,
        bytes: usize,
    },
}

type Answer = std::result::Result<Vec<Row>, Failure>;
type Running<'a> = Pin<Box<dyn Future<Output = Answer> + Send + 'a>>;

/// Send statements one after the other, prepared ones where there are any, and wait for all answers, or for the first one
/// that is too large, which is then the only result. What is not read yet remains with the server and in the buffers of
/// the network: the driver reads no row before its predecessor was taken.
async fn send(
    client: &Client,
    requests: &[(&str, &[Bind<'_>])],
    statements: &[Option<Statement>],
    limit_bytes: usize,
) -> Vec<Answer> {
    let mut running: Vec<Running<'_>> = Vec::with_capacity(requests.len());
    for (index, &(sql, binds)) in requests.iter().enumerate() {
        running.push(match statements.get(index).and_then(Option::as_ref) {
            Some(statement) => Box::pin(async move {
                let values = binds.iter().map(|(value, _)| *value);
                collect(client.query_raw(statement, values).await, limit_bytes).await
            }),
            None => Box::pin(async move {
                let values = binds.iter().map(|(value, kind)| (*value, kind.clone()));
                collect(client.query_typed_raw(sql, values).await, limit_bytes).await
            }),
        });
    }
    all(running).await
}

async fn collect(stream: std::result::Result<RowStream, tokio_postgres::Error>, limit_bytes: usize) -> Answer {
    let mut stream = pin!(stream.map_err(Failure::Refused)?);
    let (mut rows, mut bytes) = (Vec::new(), 0);
    while let Some(row) = stream.try_next().await.map_err(Failure::Refused)? {
        bytes += row.raw_size_bytes();
        rows.push(row);
        if bytes > limit_bytes && rows.len() > 1 {
            return Err(Failure::TooLarge { rows: rows.len(), bytes });
        }
    }
    Ok(rows)
}

/// Poll all queries in order, so that they are sent in order, until all have ended.
async fn all(mut running: Vec<Running<'_>>) -> Vec<Answer> {
    let mut results: Vec<Option<Answer>> = running.iter().map(|_| None).collect();
    let is_too_large = poll_fn(|context| {
        for (future, slot) in running.iter_mut().zip(&mut results) {
            if slot.is_none()
                && let Poll::Ready(result) = future.as_mut().poll(context)
            {
                *slot = Some(result);
            }
        }
        let is_too_large = results.iter().any(|result| matches!(result, Some(Err(Failure::TooLarge { .. }))));
        if is_too_large || results.iter().all(Option::is_some) { Poll::Ready(is_too_large) } else { Poll::Pending }
    })
    .await;
    let answers = results.into_iter().flatten();
    if is_too_large { answers.filter(Result::is_err).collect() } else { answers.collect() }
}

async fn prepared(
    client: &Client,
    known: &mut HashMap<String, Prepared>,
    version: i64,
    sql: &str,
    binds: &[Bind<'_>],
) -> std::result::Result<Statement, tokio_postgres::Error> {
    let mut rows = FEW_ROWS;
    if let Some(prepared) = known.get(sql) {
        if !prepared.is_outgrown(version) {
            return Ok(prepared.statement.clone());
        }
        rows = prepared.rows.saturating_mul(GROWTH);
    }
    let types: Vec<Type> = binds.iter().map(|(_, kind)| kind.clone()).collect();
    let statement = client.prepare_typed(sql, &types).await?;
    if known.len() >= STATEMENTS {
        known.clear();
    }
    known.insert(sql.to_owned(), Prepared { statement: statement.clone(), version, rows });
    Ok(statement)
}

/// Whether the prepared statement no longer exists (a pooler switched to another session) or no longer fits its table.
/// The statement had no effect.
fn is_stale(error: &tokio_postgres::Error) -> bool {
    is_forgotten(error)
        || error.code().is_some_and(|code| code.code() == "0A000")
            && error.as_db_error().is_some_and(|report| report.routine() == Some("RevalidateCachedQuery"))
}

/// Whether the prepared statement no longer exists. Only a pooler makes that happen.
fn is_forgotten(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|code| code.code() == "26000")
}

/// Whether somebody else has prepared a statement under this name in the session that a pooler has chosen.
fn is_taken(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|code| code.code() == "42P05")
}
