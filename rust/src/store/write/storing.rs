//! Transactions that store calls, and what came of each call.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use crate::error::{Error, Result};
use crate::store::event::NewEvent;
use crate::store::pool::{BEGIN, Bind, Pool, Pooled};
use crate::store::row::{get, micros};
use crate::store::table::Table;
use crate::store::write::calls::{Call, Position, size_bytes, split_off};
use crate::store::write::copy::copy;
use crate::store::write::statements::{CREATE_STAGE, Checks, Columns, ID_LIMIT, Locks, STAGE, Sql};

/// Longest wait in the waiting room for another transaction that is storing an event with the same id.
const ID_LIMIT_IN_ROOM: &str = "20ms";
/// Longest wait of a call that queues up for its locks, all of them together. The others of the room wait meanwhile.
const QUEUE_LIMIT: &str = "200ms";
/// Sets how long the following statements of the transaction wait for a lock.
const SET_LIMIT: &str = "SELECT pg_catalog.set_config('lock_timeout', $1, true)";
/// Lets the transaction wait for locks as long as the role may.
const RESET_LIMIT: &str = "SET LOCAL lock_timeout TO DEFAULT";
/// Sets how long the next statement of the transaction may take, however many locks it waits for.
const SET_TIME_LIMIT: &str = "SELECT pg_catalog.set_config('statement_timeout', $1, true)";
const RESET_TIME_LIMIT: &str = "SET LOCAL statement_timeout TO DEFAULT";

/// Ends the session when the transaction is idle for so long: behind a link that swallows packets, the server does not
/// notice that its client is gone, and would hold the locks for hours.
const SET_IDLE_LIMIT: &str = "SELECT pg_catalog.set_config('idle_in_transaction_session_timeout', $1, true)";

/// A table and the statements for it.
pub struct Layout {
    /// The table.
    pub table: Arc<Table>,
    /// The statements.
    pub sql: Sql,
}

impl Layout {
    /// The statements for a table.
    pub fn new(table: Arc<Table>) -> Arc<Self> {
        Arc::new(Self { sql: Sql::new(&table), table })
    }
}

/// What came of a call.
pub enum Outcome {
    /// It was stored, now or before.
    Stored(Vec<Position>),
    /// It cannot be stored.
    Refused(Error),
    /// It was left out, for a reason that is not known.
    LeftOut,
}

/// Read a position from two columns of a row, beginning at `column`.
fn position(row: &Row, column: usize) -> Result<Position> {
    Ok(Position { version: get(row, column)?, created_at: micros(row, column + 1)?, is_duplicate: false })
}

fn outcome(positions: Option<Vec<Position>>) -> Outcome {
    positions.map_or(Outcome::LeftOut, Outcome::Stored)
}

/// Store unconditional calls: one statement, one round trip, one commit. Calls whose lock is not free, or of whose ids
/// one is known, are left out.
pub async fn store_free(pool: &Arc<Pool>, layout: &Layout, group: &[Call]) -> Result<Vec<Outcome>> {
    let sql = &layout.sql;
    let mut connection = pool.get().await?;
    connection.set_sent_bytes(size_bytes(group));
    if let [Call { request, .. }] = group {
        let rows = match &*request.events {
            [event] => {
                let binds: [Bind<'_>; 5] = [
                    (&event.id, Type::TEXT),
                    (&event.aggregate_id, Type::TEXT),
                    (&event.event_type, Type::TEXT),
                    (&event.data, Type::TEXT),
                    (&event.metadata, Type::TEXT),
                ];
                connection.query("store events", &sql.insert_one, &binds, true).await?
            }
            events => {
                let columns = Columns::of([events]);
                connection.query("store events", &sql.insert_batch, &columns.binds(), true).await?
            }
        };
        let positions = rows.iter().map(|row| position(row, 0)).collect::<Result<Vec<_>>>()?;
        return Ok(vec![outcome((positions.len() == request.events.len()).then_some(positions))]);
    }
    let columns = Columns::of(group.iter().map(|call| &*call.request.events));
    let rows = connection.query("store events", &sql.insert_any, &columns.binds(), true).await?;
    let stored = stored(&rows, 0, 1)?;
    let of_call =
        |call: &Call| call.request.events.iter().map(|event| stored.get(event.id.as_str()).copied()).collect();
    Ok(group.iter().map(|call| outcome(of_call(call))).collect())
}

/// Positions by id.
fn stored(rows: &[Row], id: usize, at: usize) -> Result<HashMap<&str, Position>> {
    rows.iter().map(|row| Ok((get(row, id)?, position(row, at)?))).collect()
}

/// Store calls of any kind: the statements of one transaction, sent together. The locks are taken by a separate
/// statement, because within one statement the check would see the table as it was before the locks were taken. Calls
/// whose locks are not free are left out.
pub async fn store_trying(pool: &Arc<Pool>, layout: &Layout, group: &[Call]) -> Result<Vec<Outcome>> {
    let mut locks = Locks::default();
    for (number, call) in (0..).zip(group) {
        for aggregate_id in call.request.aggregates() {
            locks.add(aggregate_id, call.request.is_conditional(), number);
        }
    }
    let columns = Columns::of(group.iter().map(|call| &*call.request.events));
    let checks = Checks::of(group.iter().map(|call| &call.request.expected));
    let binds = store_binds(&columns, &checks, &ID_LIMIT);
    let sql = &layout.sql;
    let mut connection = pool.get().await?;
    connection.set_sent_bytes(size_bytes(group));
    connection.set_dirty(true);
    // After a failure COMMIT rolls back, so no transaction stays open.
    let requests = [(BEGIN, &[][..]), (&sql.try_lock, &locks.binds()), (&sql.store, &binds), ("COMMIT", &[])];
    let result = connection.pipeline("store events", requests, true).await;
    connection.set_dirty(result.as_ref().is_err_and(Error::is_connection_lost));
    let [_, busy, rows, _] = result?;
    outcomes(&rows, group, &numbers(&busy)?)
}

fn store_binds<'a>(columns: &'a Columns<'_>, checks: &'a Checks<'_>, limit: &'a &str) -> Vec<Bind<'a>> {
    let mut binds = columns.binds();
    binds.extend(checks.binds());
    binds.push((limit, Type::TEXT));
    binds
}

/// The numbers that the statement which tries locks returned.
fn numbers(rows: &[Row]) -> Result<HashSet<usize>> {
    let text = rows.first().map_or(Ok(String::new()), |row| get::<String>(row, 0))?;
    Ok(text.split(',').filter_map(|number| number.parse().ok()).collect())
}

/// What came of each call, from the rows of the statement that stores calls of any kind.
fn outcomes(rows: &[Row], group: &[Call], busy: &HashSet<usize>) -> Result<Vec<Outcome>> {
    let (mut known, mut last, mut new) = (HashMap::new(), HashMap::new(), HashMap::new());
    for row in rows {
        match get::<i64>(row, 1)? {
            0 => drop(new.insert(get::<&str>(row, 0)?, position(row, 2)?)),
            number if number < 0 => drop(last.insert(-number, get::<i64>(row, 2)?)),
            number => {
                let position = Position { is_duplicate: true, ..position(row, 2)? };
                known.insert(number, (position, get::<bool>(row, 4)?));
            }
        }
    }
    let (mut events, mut checks) = (1.., 1..);
    let mut of_call = |number: usize, call: &Call| {
        let known: Vec<_> = call.request.events.iter().zip(&mut events).map(|(_, n)| known.get(&n)).collect();
        let last: Vec<_> = call.request.expected.iter().zip(&mut checks).map(|(_, n)| last.get(&n).copied()).collect();
        for (event, known) in call.request.events.iter().zip(&known) {
            if let Some((Position { version, .. }, false)) = known {
                return Outcome::Refused(Error::DuplicateEvent { id: event.id.clone(), version: *version });
            }
        }
        if let Some(positions) = known.iter().map(|known| known.map(|(position, _)| *position)).collect() {
            return Outcome::Stored(positions);
        }
        if busy.contains(&number) {
            return Outcome::LeftOut;
        }
        for ((aggregate_id, &expected), actual) in call.request.expected.iter().zip(last) {
            let actual = actual.unwrap_or_default();
            if if expected == -1 { actual == 0 } else { actual != expected } {
                let aggregate_id = aggregate_id.clone();
                return Outcome::Refused(Error::WrongExpectedVersion { aggregate_id, expected, actual });
            }
        }
        let position = |(event, known): (&NewEvent, Option<&(Position, bool)>)| {
            known.map(|(position, _)| *position).or_else(|| new.get(event.id.as_str()).copied())
        };
        outcome(call.request.events.iter().zip(known).map(position).collect())
    };
    Ok(group.iter().enumerate().map(|(number, call)| of_call(number, call)).collect())
}

/// What came of an attempt to store calls of the waiting room.
pub struct Attempt {
    /// Calls that were not tried, because a lock of theirs is not free, or because there were too many.
    pub untried: Vec<Call>,
    /// The other calls.
    pub tried: Vec<Call>,
    /// Whether the server answered the request for locks.
    pub has_looked: bool,
    /// What came of these.
    pub result: Result<Vec<Outcome>>,
}

/// How an attempt takes locks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taking {
    /// What is free. At most so many calls are stored.
    Free(usize),
    /// It waits a little, in PostgreSQL's queue. A call with many locks might never find all of them free.
    Queued,
}

/// Store calls of the waiting room whose locks are free. The events are sent only once their locks are taken.
pub async fn attempt(
    pool: &Arc<Pool>,
    layout: &Layout,
    mut calls: Vec<Call>,
    batch_size: usize,
    taking: Taking,
) -> Attempt {
    let failed = |tried, error| Attempt { untried: Vec::new(), tried, has_looked: false, result: Err(error) };
    let mut connection = match pool.get().await {
        Ok(connection) => connection,
        Err(error) => return failed(calls, error),
    };
    let busy = match take_locks(&mut connection, &layout.sql, &calls, taking).await {
        Ok(busy) => busy,
        Err(error) => {
            connection.roll_back().await;
            return failed(calls, error);
        }
    };
    let (mut untried, mut number) = (Vec::new(), 0..);
    let is_busy = |_: &mut Call| number.next().is_some_and(|number| busy.contains(&number));
    untried.extend(calls.extract_if(.., is_busy));
    let most = if let Taking::Free(most) = taking { most } else { 1 };
    let mut too_many = split_off(&mut calls, batch_size, most);
    for call in &mut too_many {
        call.is_tried = false;
    }
    untried.extend(too_many);
    let (tried, result) = if calls.is_empty() {
        connection.roll_back().await;
        (calls, Ok(Vec::new()))
    } else {
        let result = store_locked(&mut connection, &layout.sql, &calls).await;
        (calls, result)
    };
    Attempt { untried, tried, has_looked: true, result }
}

/// Open a transaction and take the locks of calls. Returns the numbers of the calls that did not get theirs.
async fn take_locks(connection: &mut Pooled, sql: &Sql, calls: &[Call], taking: Taking) -> Result<HashSet<usize>> {
    let mut locks = Locks::default();
    let mut indexes: HashMap<&str, usize> = HashMap::new();
    let mut of_calls = Vec::with_capacity(calls.len());
    for call in calls {
        let mut of_call = Vec::new();
        for aggregate_id in call.request.aggregates() {
            let next = indexes.len();
            let index = *indexes.entry(aggregate_id).or_insert(next);
            if index == next && locks.aggregates.len() == next {
                locks.add(aggregate_id, false, i32::try_from(index).unwrap_or_default());
            }
            locks.raise(index, call.request.is_conditional());
            of_call.push(index);
        }
        of_calls.push(of_call);
    }
    let binds = locks.binds();
    let idle_limit = connection.limit_text(size_bytes(calls));
    let idle_limit: [Bind<'_>; 1] = [(&idle_limit, Type::TEXT)];
    connection.set_dirty(true);
    if taking == Taking::Queued {
        let limit: [Bind<'_>; 1] = [(&QUEUE_LIMIT, Type::TEXT)];
        let requests = [
            (BEGIN, &[][..]),
            (SET_IDLE_LIMIT, &idle_limit),
            (SET_TIME_LIMIT, &limit),
            (&sql.lock, &binds),
            (RESET_TIME_LIMIT, &[]),
        ];
        connection.pipeline("lock aggregates", requests, false).await.map_err(|error| match error {
            Error::Database { report, .. } if report.sqlstate == "57014" => {
                Error::refused("55P03", "lock aggregates", "not all locks were free in time")
            }
            other => other,
        })?;
        return Ok(HashSet::new());
    }
    let requests = [(BEGIN, &[][..]), (SET_IDLE_LIMIT, &idle_limit), (&sql.try_lock, &binds)];
    let [_, _, busy] = connection.pipeline("lock aggregates", requests, false).await?;
    let busy = numbers(&busy)?;
    let is_busy = |(_, of_call): &(usize, Vec<usize>)| of_call.iter().any(|index| busy.contains(index));
    Ok(of_calls.into_iter().enumerate().filter(is_busy).map(|(number, _)| number).collect())
}

/// Store calls whose locks the open transaction holds, and commit.
async fn store_locked(connection: &mut Pooled, sql: &Sql, calls: &[Call]) -> Result<Vec<Outcome>> {
    let columns = Columns::of(calls.iter().map(|call| &*call.request.events));
    let checks = Checks::of(calls.iter().map(|call| &call.request.expected));
    let binds = store_binds(&columns, &checks, &ID_LIMIT_IN_ROOM);
    connection.set_sent_bytes(size_bytes(calls));
    let requests = [(&*sql.forget_busy, &[][..]), (&sql.store, &binds), ("COMMIT", &[])];
    let result = connection.pipeline("store events", requests, true).await;
    connection.set_dirty(result.as_ref().is_err_and(Error::is_connection_lost));
    let [_, rows, _] = result?;
    outcomes(&rows, calls, &HashSet::new())
}

/// Open a transaction and wait for the locks of aggregates, for at most `limit` each.
pub async fn wait_for_locks(connection: &mut Pooled, sql: &Sql, events: &[NewEvent], limit: Duration) -> Result<()> {
    let aggregates: HashSet<&str> = events.iter().map(|event| event.aggregate_id.as_str()).collect();
    let aggregates: Vec<&str> = aggregates.into_iter().collect();
    let limit = format!("{}ms", limit.as_millis().clamp(1, i32::MAX as u128));
    let limit: [Bind<'_>; 1] = [(&limit, Type::TEXT)];
    connection.set_dirty(true);
    let locks: [Bind<'_>; 1] = [(&aggregates, Type::TEXT_ARRAY)];
    let idle_limit = connection.limit_text(events.iter().map(NewEvent::size_bytes).sum());
    let idle_limit: [Bind<'_>; 1] = [(&idle_limit, Type::TEXT)];
    let requests = [(BEGIN, &[][..]), (SET_IDLE_LIMIT, &idle_limit), (SET_LIMIT, &limit), (&sql.lock_all, &locks)];
    connection.pipeline("lock aggregates", requests, false).await?;
    Ok(())
}

/// Store those of the events that are not there, in the open transaction. They travel through a temporary table. Returns
/// the number of events stored.
pub async fn import_missing(connection: &mut Pooled, sql: &Sql, events: &[NewEvent]) -> Result<i64> {
    connection.query("import events", CREATE_STAGE, &[], false).await?;
    copy(connection, STAGE, events).await?;
    let requests = [(&*sql.stage_conflict, &[][..]), (&sql.insert_staged, &[])];
    let [taken, stored] = connection.pipeline("import events", requests, false).await?;
    if let Some(row) = taken.first() {
        return Err(Error::DuplicateEvent { id: get(row, 0)?, version: get(row, 1)? });
    }
    stored.first().map_or(Ok(0), |row| get(row, 0))
}

/// Commit the open transaction, and wait for others that notify, however short the wait for locks was to be.
pub async fn commit_imported(connection: &mut Pooled) -> Result<()> {
    // After a failure COMMIT rolls back, so no transaction stays open.
    connection.pipeline("commit", [(RESET_LIMIT, &[][..]), ("COMMIT", &[])], true).await?;
    connection.set_dirty(false);
    Ok(())
}

/// The sessions that hold the locks of aggregates.
#[derive(Default)]
pub struct Holders {
    rows: Vec<Row>,
    /// Which row is about an aggregate, or about the turn.
    indexes: HashMap<Option<String>, usize>,
}

/// Look for the sessions that hold the locks of aggregates now. If the server cannot be asked, none is known.
pub async fn holders(pool: &Arc<Pool>, sql: &Sql, aggregates: &[&str]) -> Holders {
    let look = async {
        let mut connection = pool.get().await?;
        let rows = connection.query("look for locks", &sql.holder, &[(&aggregates, Type::TEXT_ARRAY)], false).await?;
        let indexes = rows.iter().enumerate().map(|(index, row)| Ok((get(row, 0)?, index))).collect::<Result<_>>()?;
        Ok::<_, Error>(Holders { rows, indexes })
    };
    look.await.unwrap_or_default()
}

impl Holders {
    /// The error of a call for these aggregates, which waited too long for a lock: with the session that holds it, if one
    /// was found.
    pub fn locked(&self, aggregates: &[&str], waited: Duration) -> Error {
        let first = aggregates.first().map(|&text| text.to_owned());
        let turn = self.indexes.get(&None);
        let held = aggregates.iter().filter_map(|&text| self.indexes.get(&Some(text.to_owned()))).chain(turn).min();
        let describe = |row: &Row| {
            let seconds: Option<f64> = get(row, 4)?;
            Ok::<_, Error>(Error::AggregateLocked {
                aggregate_id: get::<Option<String>>(row, 0)?.or_else(|| first.clone()).unwrap_or_default(),
                waited,
                pid: get(row, 1)?,
                application_name: get(row, 2)?,
                state: get(row, 3)?,
                open_for: seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
            })
        };
        if let Some(Ok(error)) = held.and_then(|&index| self.rows.get(index)).map(describe) {
            return error;
        }
        let aggregate_id = first.unwrap_or_default();
        Error::AggregateLocked { aggregate_id, waited, pid: None, application_name: None, state: None, open_for: None }
    }
}
