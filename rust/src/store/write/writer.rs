//! Storing: concurrent calls merged into one commit, expected versions, idempotence, and commits in doubt.
//!
//! When nothing is in flight, a call is sent at once. Calls that arrive while a group is in flight form the next group.
//! There is no timer. Each call stays atomic and has a result of its own. A group leaves out calls whose event id is in
//! use, whose lock is held or whose expected version does not match; these calls are then tried alone.
//!
//! Every writer of this package takes an advisory lock per aggregate before it draws versions: shared for unconditional
//! events, exclusive for events with an expected version. Therefore, between the check of an expected version and the
//! commit, no other writer of this package can add an event to the aggregate, or hold a lower version that commits
//! later.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use crate::connect::backoff::Backoff;
use crate::connect::runtime;
use crate::error::{Error, Result};
use crate::handover::completion::Completion;
use crate::lock::Mutex;
use crate::store::event::NewEvent;
use crate::store::pool::{BEGIN, Bind, Pool, Pooled};
use crate::store::row::{get, micros};
use crate::store::table::Table;
use crate::store::write::copy::copy;
use crate::store::write::statements::{Checks, Columns, Sql};

/// Maximum size of the events in one statement.
const GROUP_BYTES: usize = 8 * 1024 * 1024;
/// How long the writer tries to find out whether a commit in doubt took place.
const DOUBT_LIMIT: Duration = Duration::from_secs(30);
/// Maximum number of attempts after conflicts with other writers.
const ATTEMPTS: u32 = 10;

/// Where an event was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Its version.
    pub version: i64,
    /// Time of storing, in microseconds since 1970.
    pub created_at: Option<i64>,
    /// Whether an earlier call has stored the event already, with the same id and content.
    pub is_duplicate: bool,
}

/// One call, whose events are stored atomically.
pub struct Request {
    /// At least one.
    pub events: Vec<NewEvent>,
    /// The expected versions of aggregates before these events: that of the last event, 0 for no events, -1 for any
    /// version. Aggregates that are not listed may have any version.
    pub expected: BTreeMap<String, i64>,
    /// Receives the positions, in the order of the events.
    pub completion: Completion<Vec<Position>>,
}

/// Counters since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WriterStats {
    /// Events stored.
    pub stored: u64,
    /// Calls that failed.
    pub failed: u64,
    /// Statements that stored a group of calls.
    pub groups: u64,
    /// Calls that had to be tried alone.
    pub alone: u64,
    /// Calls waiting now.
    pub waiting: usize,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Request>,
    /// Number of calls that are tried alone, in tasks of their own.
    alone: usize,
    stats: WriterStats,
    is_running: bool,
    is_closed: bool,
}

/// See the module documentation.
pub struct Writer {
    pool: Arc<Pool>,
    table: Arc<Table>,
    batch_size: usize,
    sql: Sql,
    state: Mutex<State>,
}

impl Writer {
    /// A writer, which connects on first use. `batch_size` is the maximum number of events in one statement.
    pub fn new(pool: Arc<Pool>, table: Arc<Table>, batch_size: usize) -> Arc<Self> {
        let sql = Sql::new(&table);
        Arc::new(Self { pool, table, batch_size, sql, state: Mutex::default() })
    }

    /// Store the events of a call. Its completion is finished after the commit.
    pub fn store(self: &Arc<Self>, request: Request) -> Result<()> {
        let mut state = self.state.lock();
        if state.is_closed {
            return Err(Error::StoreClosed);
        }
        state.queue.push_back(request);
        if !std::mem::replace(&mut state.is_running, true) {
            runtime::handle()?.spawn(run(Arc::clone(self)));
        }
        Ok(())
    }

    /// Store events by `COPY`, in one transaction, under the same locks as other calls. Returns the number of events.
    pub async fn import(&self, events: &[NewEvent]) -> Result<i64> {
        let Self { pool, table, sql, .. } = self;
        check(events, table)?;
        let aggregates: Vec<&str> = events.iter().map(|event| event.aggregate_id.as_str()).collect();
        let class = table.lock_class();
        let locks: [Bind<'_>; 2] = [(&aggregates, Type::TEXT_ARRAY), (&class, Type::INT4)];
        let mut connection = pool.get().await?;
        connection.set_dirty(true);
        connection.pipeline("lock aggregates", [(BEGIN, &[][..]), (&sql.lock_shared, &locks)], false).await?;
        let count = copy(&mut connection, table, events).await?;
        connection.commit().await?;
        Ok(count)
    }

    /// Accept no more calls. Running calls are finished.
    pub fn close(&self) {
        self.state.lock().is_closed = true;
    }

    /// Whether no call is waiting or running.
    pub fn is_idle(&self) -> bool {
        let state = self.state.lock();
        !state.is_running && state.alone == 0 && state.queue.is_empty()
    }

    /// Counters.
    pub fn stats(&self) -> WriterStats {
        let state = self.state.lock();
        WriterStats { waiting: state.queue.len(), ..state.stats }
    }
}

impl Request {
    fn is_conditional(&self) -> bool {
        !self.expected.is_empty()
    }

    fn size_bytes(&self) -> usize {
        self.events.iter().map(NewEvent::size_bytes).sum()
    }
}

impl Writer {
    /// The next calls that fit into one statement; `None` ends the task.
    ///
    /// The calls of a group are either all conditional or all unconditional. An id occurs only once in a group, and an
    /// aggregate with an expected version only in one call, because the statement sees the table as it was before the
    /// whole group.
    fn take_group(&self) -> Option<Vec<Request>> {
        let mut state = self.state.lock();
        let mut group: Vec<Request> = Vec::new();
        let (mut count, mut bytes) = (0, 0);
        let (mut ids, mut aggregates) = (HashSet::new(), HashSet::new());
        while let Some(next) = state.queue.front() {
            if let Some(before) = group.last() {
                for event in &before.events {
                    ids.insert(event.id.clone());
                    aggregates.insert(event.aggregate_id.clone());
                }
                aggregates.extend(before.expected.keys().cloned());
            }
            count += next.events.len();
            bytes += next.size_bytes();
            let is_over = count > self.batch_size || bytes > GROUP_BYTES;
            let is_other = group.first().is_some_and(|first| first.is_conditional() != next.is_conditional());
            let shares_id = next.events.iter().any(|event| ids.contains(&event.id));
            let shares_aggregate = next.is_conditional()
                && (next.events.iter().any(|event| aggregates.contains(&event.aggregate_id))
                    || next.expected.keys().any(|aggregate_id| aggregates.contains(aggregate_id)));
            if !group.is_empty() && (is_over || is_other || shares_id || shares_aggregate) {
                break;
            }
            group.extend(state.queue.pop_front());
        }
        state.is_running = !group.is_empty();
        state.is_running.then_some(group)
    }

    fn settle(&self, request: Request, result: Result<Vec<Position>>) {
        let mut state = self.state.lock();
        match &result {
            Ok(positions) => state.stats.stored += positions.iter().filter(|p| !p.is_duplicate).count() as u64,
            Err(_) => state.stats.failed += 1,
        }
        drop(state);
        request.completion.finish(result);
    }
}

/// The writer's task: group after group until nothing waits.
async fn run(writer: Arc<Writer>) {
    while let Some(group) = writer.take_group() {
        commit(&writer, group).await;
    }
}

/// Store a group. Calls that the group leaves out are tried in tasks of their own, so that a call that waits for a
/// lock, or for the outcome of a commit in doubt, does not delay the others.
async fn commit(writer: &Arc<Writer>, group: Vec<Request>) {
    let stored = match &*group {
        group if group.iter().any(Request::is_conditional) => insert_expected(writer, group).await,
        [Request { events, .. }] if events.len() == 1 => insert_one(writer, events).await,
        group => insert_any(writer, group).await,
    };
    let found = match stored {
        Ok(found) => found,
        Err(error) => {
            let is_final = group.len() == 1 && !is_conflict(&error) && !error.is_connection_lost();
            let doubt = is_in_doubt(&error).then(Instant::now);
            for request in group {
                if is_final {
                    writer.settle(request, Err(error.clone()));
                } else {
                    spawn_alone(writer, request, doubt);
                }
            }
            return;
        }
    };
    writer.state.lock().stats.groups += 1;
    for (request, found) in group.into_iter().zip(found) {
        match found {
            Some(found) => writer.settle(request, Ok(found)),
            None => spawn_alone(writer, request, None),
        }
    }
}

fn spawn_alone(writer: &Arc<Writer>, request: Request, doubt: Option<Instant>) {
    {
        let mut state = writer.state.lock();
        state.stats.alone += 1;
        state.alone += 1;
    }
    let writer = Arc::clone(writer);
    tokio::spawn(async move {
        let result = store_alone(&writer, &request, doubt).await;
        writer.settle(request, result);
        writer.state.lock().alone -= 1;
    });
}

/// Whether the connection was lost while a commit may have been in flight. A timeout can only come from connecting.
fn is_in_doubt(error: &Error) -> bool {
    let is_before_sending =
        matches!(error, Error::ConnectionLost { may_be_sent: false, .. } | Error::Refused(_) | Error::Timeout { .. });
    error.is_connection_lost() && !is_before_sending
}

/// Whether another writer caused a conflict, so that the call is to be tried again. 23505 unique violation, 40001
/// serialization failure, 40P01 deadlock, 55P03 lock not available; 0A000 and 26000: a prepared statement that no
/// longer fits, or no longer exists.
fn is_conflict(error: &Error) -> bool {
    matches!(error, Error::Database { report, .. }
        if matches!(report.sqlstate.as_str(), "23505" | "40001" | "40P01" | "55P03" | "0A000" | "26000"))
}

/// The positions of the events of each call in a group; `None` for a call that was left out.
type Found = Vec<Option<Vec<Position>>>;

/// Read a position from two columns of a row, beginning at `column`.
fn position(row: &Row, column: usize) -> Result<Position> {
    Ok(Position { version: get(row, column)?, created_at: micros(row, column + 1)?, is_duplicate: false })
}

/// Positions by id.
fn stored(rows: &[Row]) -> Result<HashMap<&str, Position>> {
    rows.iter().map(|row| Ok((get(row, 0)?, position(row, 1)?))).collect()
}

fn found(rows: &[Row], group: &[Request]) -> Result<Found> {
    let stored = stored(rows)?;
    let of_call =
        |request: &Request| request.events.iter().map(|event| stored.get(event.id.as_str()).copied()).collect();
    Ok(group.iter().map(of_call).collect())
}

/// The result of a group with a single call, whose rows are in the order of its events.
fn found_alone(rows: &[Row], events: &[NewEvent]) -> Result<Found> {
    let positions = rows.iter().map(|row| position(row, 0)).collect::<Result<Vec<_>>>()?;
    Ok(vec![(positions.len() == events.len()).then_some(positions)])
}

/// Store the one event of an unconditional call.
async fn insert_one(writer: &Writer, events: &[NewEvent]) -> Result<Found> {
    let Some(event) = events.first() else { return Ok(vec![Some(Vec::new())]) };
    let class = writer.table.lock_class();
    let binds: [Bind<'_>; 6] = [
        (&event.id, Type::TEXT),
        (&event.aggregate_id, Type::TEXT),
        (&event.event_type, Type::TEXT),
        (&event.data, Type::TEXT),
        (&event.metadata, Type::TEXT),
        (&class, Type::INT4),
    ];
    let mut connection = writer.pool.get().await?;
    found_alone(&connection.query("store events", &writer.sql.insert_one, &binds, true).await?, events)
}

/// Store a group of unconditional calls: one statement, one round trip, one commit.
async fn insert_any(writer: &Writer, group: &[Request]) -> Result<Found> {
    let columns = Columns::of(group.iter().map(|request| &*request.events));
    let class = writer.table.lock_class();
    let mut binds = columns.binds();
    binds.push((&columns.calls, Type::INT4_ARRAY));
    binds.push((&class, Type::INT4));
    let sql = if group.len() == 1 { &writer.sql.insert_batch } else { &writer.sql.insert_any };
    let mut connection = writer.pool.get().await?;
    let rows = connection.query("store events", sql, &binds, true).await?;
    match group {
        [Request { events, .. }] => found_alone(&rows, events),
        group => found(&rows, group),
    }
}

/// Store a group of conditional calls: the statements of one transaction, sent together. The locks are taken by a
/// separate statement, because within one statement the check would see the table as it was before the wait for the
/// locks.
async fn insert_expected(writer: &Writer, group: &[Request]) -> Result<Found> {
    let columns = Columns::of(group.iter().map(|request| &*request.events));
    let checks = Checks::of(group.iter().map(|request| &request.expected));
    let class = writer.table.lock_class();
    // Every call locks all aggregates that it writes or checks.
    let mut locked = columns.aggregates.clone();
    let mut lockers = columns.calls.clone();
    locked.extend(&checks.aggregates);
    lockers.extend(&checks.calls);
    let locks: [Bind<'_>; 3] = [(&locked, Type::TEXT_ARRAY), (&class, Type::INT4), (&lockers, Type::INT4_ARRAY)];
    let mut binds = columns.binds();
    binds.push((&columns.calls, Type::INT4_ARRAY));
    binds.push((&checks.calls, Type::INT4_ARRAY));
    binds.push((&checks.aggregates, Type::TEXT_ARRAY));
    binds.push((&checks.expected, Type::INT8_ARRAY));
    let mut connection = writer.pool.get().await?;
    connection.set_dirty(true);
    let sql = &writer.sql;
    // After a failure COMMIT rolls back, so no transaction stays open.
    let requests = [(BEGIN, &[][..]), (&sql.try_exclusive, &locks), (&sql.insert_expected, &binds), ("COMMIT", &[])];
    let result = connection.pipeline("store events", requests, true).await;
    connection.set_dirty(result.as_ref().is_err_and(Error::is_connection_lost));
    let [_, _, rows, _] = result?;
    found(&rows, group)
}

/// Store one call. Waits as needed: for locks, for other writers of the same ids, for a server that restarts.
async fn store_alone(writer: &Writer, request: &Request, mut doubt: Option<Instant>) -> Result<Vec<Position>> {
    let mut backoff = Backoff::default();
    let mut conflicts = 0;
    loop {
        match attempt(writer, request).await {
            Err(error) if error.is_connection_lost() || error == Error::StoreClosed => {
                if is_in_doubt(&error) {
                    doubt.get_or_insert_with(Instant::now);
                }
                // Once the server answers again, the ids show whether an earlier attempt was committed.
                let Some(since) = doubt else { return Err(error) };
                if since.elapsed() >= DOUBT_LIMIT || writer.state.lock().is_closed {
                    return Err(in_doubt(error));
                }
                tokio::time::sleep(backoff.next_delay()).await;
            }
            Err(error) if is_conflict(&error) && conflicts < ATTEMPTS => {
                conflicts += 1;
                tokio::time::sleep(Duration::from_millis(u64::from(conflicts)).mul_f64(rand::random::<f64>())).await;
            }
            result => return result,
        }
    }
}

/// Mark an error as in doubt: whatever the last query failed with, it does not show whether the commit took place.
fn in_doubt(error: Error) -> Error {
    let (context, reason) = match error {
        Error::ConnectionLost { context, reason, .. } => (context, reason),
        other => ("store events".to_owned(), other.to_string()),
    };
    Error::ConnectionLost { context, reason, may_be_sent: true }
}

async fn attempt(writer: &Writer, request: &Request) -> Result<Vec<Position>> {
    let mut connection = writer.pool.get().await?;
    connection.begin().await?;
    let result = attempt_in(writer, request, &mut connection).await;
    match result {
        Ok(positions) => {
            connection.commit().await?;
            Ok(positions)
        }
        Err(error) => {
            connection.roll_back().await;
            Err(error)
        }
    }
}

async fn attempt_in(writer: &Writer, request: &Request, connection: &mut Pooled) -> Result<Vec<Position>> {
    let sql = &writer.sql;
    let class = writer.table.lock_class();
    let lock = if request.is_conditional() { &sql.lock_exclusive } else { &sql.lock_shared };
    let mut aggregates: Vec<&str> = request.events.iter().map(|event| event.aggregate_id.as_str()).collect();
    aggregates.extend(request.expected.keys().map(String::as_str));
    let columns = Columns::of([&*request.events]);
    let checked: Vec<&str> = request.expected.keys().map(String::as_str).collect();
    connection.query("lock aggregates", lock, &[(&aggregates, Type::TEXT_ARRAY), (&class, Type::INT4)], false).await?;
    let [known, actual] = connection
        .pipeline(
            "check events",
            [(&sql.known, &columns.binds()), (&sql.actual, &[(&checked, Type::TEXT_ARRAY)])],
            false,
        )
        .await?;
    let mut positions: Vec<Option<Position>> = vec![None; request.events.len()];
    for row in &known {
        let index = usize::try_from(get::<i64>(row, 0)? - 1).unwrap_or_default();
        let version = get(row, 1)?;
        if !get::<bool>(row, 3)? {
            let id = request.events.get(index).map(|event| event.id.clone()).unwrap_or_default();
            return Err(Error::DuplicateEvent { id, version });
        }
        if let Some(slot) = positions.get_mut(index) {
            *slot = Some(Position { version, created_at: micros(row, 2)?, is_duplicate: true });
        }
    }
    if let Some(positions) = positions.iter().copied().collect::<Option<Vec<_>>>() {
        return Ok(positions);
    }
    for row in &actual {
        let (aggregate_id, actual): (String, i64) = (get(row, 0)?, get(row, 1)?);
        let is_met = |&expected: &i64| if expected == -1 { actual > 0 } else { actual == expected };
        if let Some(&expected) = request.expected.get(&aggregate_id).filter(|expected| !is_met(expected)) {
            return Err(Error::WrongExpectedVersion { aggregate_id, expected, actual });
        }
    }
    let missing: Vec<NewEvent> = request
        .events
        .iter()
        .zip(&positions)
        .filter(|(_, position)| position.is_none())
        .map(|(event, _)| event.clone())
        .collect();
    let columns = Columns::of([&*missing]);
    let mut binds = columns.binds();
    binds.push((&columns.calls, Type::INT4_ARRAY));
    // The locks are not requested again: a shared lock that this transaction holds exclusively would be refused while
    // others wait for it.
    let rows = connection.query("store events", &sql.insert_locked, &binds, false).await?;
    let inserted = stored(&rows)?;
    for (event, slot) in request.events.iter().zip(&mut positions) {
        if slot.is_none() {
            *slot = inserted.get(event.id.as_str()).copied();
        }
    }
    // Another writer used an id between the check and the insert: check again.
    let taken = || Error::refused("23505", "store events", "another writer is storing an event with the same id");
    positions.into_iter().collect::<Option<Vec<_>>>().ok_or_else(taken)
}

/// Check a call before anything is sent.
pub fn check(events: &[NewEvent], table: &Table) -> Result<()> {
    let mut ids = HashSet::with_capacity(events.len());
    for event in events {
        event.check(table)?;
        if !ids.insert(event.id.as_str()) {
            return Err(Error::DuplicateEvent { id: event.id.clone(), version: 0 });
        }
    }
    Ok(())
}
