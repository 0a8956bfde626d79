//! Reading pages, and determining up to which version a page is final.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Mutex as AsyncMutex;
use tokio_postgres::types::Type;
use tokio_postgres::{Row, SimpleQueryMessage};

use crate::error::{Error, Result};
use crate::lock::Mutex;
use crate::store::event::{COLUMNS, StoredEvent};
use crate::store::filter::{Filter, Parameter};
use crate::store::pool::{Bind, Identity, PLANNED_BY_VALUES, Pool, Pooled};
use crate::store::read::anchor::Anchor;
use crate::store::read::mark;
use crate::store::read::pace::Pace;
use crate::store::read::watermark::{Holders, Watermark};
use crate::store::row::get;
use crate::store::server::{self, SERVER_SINCE};
use crate::store::table::{self, Table};
use crate::wire::protocol::quote_literal;

/// Events, and the position from which it is safe to continue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// The events, in the requested order.
    pub events: Vec<Arc<StoredEvent>>,
    /// The highest version before which no event can be added any more. A reader that continues after this version
    /// misses no event. It is always the version of an event, or the requested position.
    pub safe_since: i64,
}

/// A query for events.
#[derive(Debug, Clone)]
pub struct Query {
    /// Only later versions.
    pub since: i64,
    /// Only versions up to this one.
    pub until: i64,
    /// Maximum number of events.
    pub limit: i64,
    /// Highest version first.
    pub is_backwards: bool,
    /// The filter that events must match.
    pub filter: Filter,
}

/// Runs the steps of the watermark for one table, one at a time. It uses one connection throughout: what is known of
/// holders is invalid after a crash of the server, and a crash ends the connection. Behind a pooler it does not, so every
/// step also compares when the server was started.
pub struct Settler {
    pool: Arc<Pool>,
    state: AsyncMutex<State>,
    /// How many have asked for a step.
    asked: AtomicU64,
    known: Mutex<Known>,
    pace: Mutex<Pace>,
    /// Held by the one call of [`Settler::settle_now`] that looks while others wait.
    turn: AsyncMutex<()>,
    sql_last: String,
    sql_holders: String,
    /// Reads the id at a version.
    pub sql_anchor: String,
}

#[derive(Default)]
struct State {
    connection: Option<Pooled>,
    /// The connection of the last step.
    identity: Option<Identity>,
    watermark: Watermark,
    /// When the server was started that the watermark is about; `None` before the first step.
    server: Option<i64>,
    /// What the last step has found, and how many had asked before it began.
    found: Option<(u64, Settled)>,
}

/// All versions up to `settled` are final, as long as the server does not crash.
#[derive(Debug, Clone, Copy, Default)]
pub struct Known {
    /// The version.
    pub settled: i64,
    /// When the server was started; `None` before the first look.
    pub server: Option<i64>,
}

/// The state of the table that a reader may rely on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// All versions up to this one are final.
    pub settled: i64,
    /// The last version that the sequence has assigned.
    pub last: i64,
    /// The open transactions of writers.
    pub holders: Holders,
    /// When the server was started.
    pub server: i64,
}

/// A statement and its parameters.
pub type Statement<'a> = (&'a str, &'a [Bind<'a>]);

/// A statement without rows.
pub const NOTHING: Statement<'static> = ("SELECT 1 WHERE false", &[]);

/// Half of the shortest time after which the settler's connection is replaced although there are holders. Much is found out
/// about them meanwhile.
const LIFETIME_MIN: Duration = Duration::from_secs(1);

/// The locks of this database.
const LOCKS: &str = "pg_catalog.pg_locks WHERE database = \
     (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()) AND granted";
/// Of these, those of transactions that may still commit a version that they have drawn; see [`Watermark`].
const DRAWING: &str = "locktype = 'relation' AND relation = $1 AND mode = 'RowExclusiveLock'";

/// The statement that reads the holders, when the server was started, whether the holders mean anything, and how many
/// readers there are.
fn sql_holders(table: &Table) -> String {
    if table.is_serial {
        // A version drawn by an open transaction follows all visible versions, so there are no holders, as long as the
        // trigger that serializes writers is there.
        let trigger = quote_literal(&table.table_name.bare_text("_serial"));
        return format!(
            "SELECT '{{}}'::pg_catalog.text[], {SERVER_SINCE}, \
             EXISTS (SELECT FROM pg_catalog.pg_trigger WHERE tgrelid = {} AND tgname = {trigger} \
                AND tgenabled IN ('O', 'A')), 0::pg_catalog.int8 WHERE $1::pg_catalog.oid IS NOT NULL",
            table.oid
        );
    }
    // A session that caches versions has drawn more of them than its locks show. This is looked at after the last
    // version was read, so at that moment nobody had cached any.
    let readers = Pace::sql_readers();
    format!(
        "SELECT coalesce(pg_catalog.array_agg(virtualtransaction) FILTER (WHERE {DRAWING}), '{{}}'), \
         {SERVER_SINCE}, \
         coalesce((SELECT seqcache = 1 AND seqincrement = 1 AND NOT seqcycle FROM pg_catalog.pg_sequence \
            WHERE seqrelid = $1), false), \
         pg_catalog.count(*) FILTER (WHERE {readers}) \
         FROM {LOCKS} AND ({DRAWING} OR {readers})"
    )
}

/// Check that [`DRAWING`] finds the transactions that have drawn a version. PostgreSQL's documentation does not
/// guarantee that, and a compatible server may behave differently. Readers would then skip open transactions and miss
/// their events.
///
/// Both statements are sent in one message, and therefore need one round trip and run in one transaction. The first
/// statement takes the lock with the same function as `nextval` (`init_sequence` in sequence.c), but draws no version.
pub async fn check_locks(pool: &Arc<Pool>, table: &Table) -> Result<()> {
    if table.is_serial {
        return Ok(());
    }
    let oid = table.sequence_oid;
    let own = DRAWING.replace("$1", &oid.to_string());
    let sql = format!(
        "SELECT pg_catalog.pg_sequence_last_value({oid}); SELECT EXISTS (SELECT FROM {LOCKS} AND {own} AND pid = pg_catalog.pg_backend_pid())"
    );
    let mut connection = pool.get().await?;
    let context = "look at the sequence's lock";
    let sql = &*sql;
    let looked = connection.ask(context, sql.len(), |client| async move {
        client.simple_query(sql).await.map_err(|error| Error::from_postgres(context, &error, false))
    });
    let messages = match looked.await {
        // Without privileges on the sequence this check is impossible, and so is reading from a position.
        Err(Error::Database { report, .. }) if report.sqlstate == "42501" => return Ok(()),
        result => result?,
    };
    let answers = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0)),
        _ => None,
    });
    match answers.last() {
        Some(Some("t")) => Ok(()),
        _ => Err(Error::LocksNotVisible { table: table.name.clone(), sequence: table.sequence.clone() }),
    }
}

impl Settler {
    /// A settler for one table, which connects on first use.
    pub fn new(pool: Arc<Pool>, table: &Table) -> Self {
        Self {
            pool,
            state: AsyncMutex::default(),
            asked: AtomicU64::new(0),
            known: Mutex::default(),
            pace: Mutex::default(),
            turn: AsyncMutex::default(),
            sql_last: table.sql_last(),
            sql_holders: sql_holders(table),
            sql_anchor: Anchor::sql(table),
        }
    }

    /// Run one step. Rows that are read after it are complete up to [`Settled::settled`]. Those who ask while a step is
    /// running share the next one.
    pub async fn step(&self, table: &Table) -> Result<Settled> {
        let number = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        let mut state = self.state.lock().await;
        if let Some((asked, settled)) = &state.found
            && *asked >= number
        {
            return Ok(settled.clone());
        }
        let (settled, _) = self.step_in(&mut state, table, [NOTHING, NOTHING], usize::MAX).await?;
        Ok(settled)
    }

    /// Wait until all versions drawn by now are final. The wait is short if transactions are short. Of those who wait in
    /// this process, one looks for all.
    pub async fn settle_now(&self, table: &Table) -> Result<i64> {
        let mut now = self.step(table).await?;
        let mut wanted = now.last;
        if now.settled >= wanted {
            return Ok(now.settled);
        }
        let _turn = self.turn.lock().await;
        let mut delay = Duration::from_millis(1);
        loop {
            let known = self.known();
            if known.server == Some(now.server) {
                if known.settled >= wanted {
                    return Ok(known.settled);
                }
                // The keeper looks after one pause, if it is at work, and then nobody else has to.
                let next = self.pace.lock().next(delay, 2);
                if Instant::now() < next {
                    tokio::time::sleep_until(next.into()).await;
                    continue;
                }
            }
            delay = (delay * 2).min(Duration::from_millis(50));
            now = self.step(table).await?;
            wanted = wanted.min(now.last); // lower after a crash: uncommitted versions are drawn again
        }
    }

    /// What is known from earlier looks.
    pub fn known(&self) -> Known {
        *self.known.lock()
    }

    /// When the keeper, which wants to look after this delay, may look again; see [`Pace`].
    pub fn next_look(&self, delay: Duration) -> Instant {
        self.pace.lock().next(delay, 1)
    }

    /// Run one step, and two other statements after it, in one round trip. For `limit_bytes` see
    /// [`Pooled::set_answer_limit_bytes`].
    pub async fn step_and_read(
        &self,
        table: &Table,
        reads: [Statement<'_>; 2],
        limit_bytes: usize,
    ) -> Result<(Settled, [Vec<Row>; 2])> {
        let mut state = self.state.lock().await;
        self.step_in(&mut state, table, reads, limit_bytes).await
    }

    async fn step_in(
        &self,
        state: &mut State,
        table: &Table,
        reads: [Statement<'_>; 2],
        limit_bytes: usize,
    ) -> Result<(Settled, [Vec<Row>; 2])> {
        let asked = self.asked.load(Ordering::Relaxed);
        // With a connection goes what is known of holders. One that is too old is kept while there are some, but not for
        // ever: others may write all the time.
        let is_waiting = state.found.as_ref().is_some_and(|(_, settled)| !settled.holders.is_empty());
        let lifetime = self.pool.limits().max_lifetime;
        let limit = if is_waiting { lifetime.max(LIFETIME_MIN).saturating_mul(2) } else { lifetime };
        // A connection that is lost or too old is returned first, because the pool has only one.
        let is_usable = |pooled: &Pooled| !pooled.is_closed() && pooled.age() < limit;
        let usable = state.connection.take().filter(is_usable);
        let mut pooled = if let Some(pooled) = usable { pooled } else { self.pool.get().await? };
        // If the last step was given up, its connection has come back by way of the pool.
        if state.identity.is_none() || state.identity != pooled.identity() {
            (state.server, state.identity) = (None, pooled.identity());
        }
        pooled.set_answer_limit_bytes(limit_bytes);
        let (seen, rows) = loop {
            if state.server.is_none() {
                // The mark is read before the rows, which are then complete up to it.
                let (mark, server) = mark::read(&mut pooled, table).await?.unzip();
                state.watermark.restart(mark.unwrap_or(0));
                state.server = server;
            }
            let (seen, rows) = self.look(&mut pooled, table, reads).await?;
            if state.server.is_none_or(|server| server == seen.server) {
                break (seen, rows);
            }
            state.server = None;
        };
        state.server = Some(seen.server);
        state.connection = Some(pooled);
        let Seen { last, holders, server } = seen;
        let settled = self.know(state.watermark.observe(last, &holders), server);
        let settled = Settled { settled, last, holders, server };
        state.found = Some((asked, settled.clone()));
        Ok((settled, rows))
    }

    /// Read the last version and then the holders, from one and the same server, and after them two other statements.
    async fn look(
        &self,
        connection: &mut Pooled,
        table: &Table,
        reads: [Statement<'_>; 2],
    ) -> Result<(Seen, [Vec<Row>; 2])> {
        let oid: [Bind<'_>; 1] = [(&table.sequence_oid, Type::OID)];
        let [first, second] = reads;
        loop {
            self.pace.lock().looks();
            let requests = [(&*self.sql_last, &[][..]), (&self.sql_holders, &oid), first, second];
            let [last, holders, first, second] = connection.pipeline("settle", requests, false).await?;
            let (last, before) = last_of(&last)?;
            self.pool.has_seen(last);
            let row = holders.first().ok_or(Error::Closed("connection"))?;
            if !get::<bool>(row, 2)? {
                return Err(table::what_is_wrong(connection, table).await);
            }
            let server = server::since(row, 1)?;
            self.pace.lock().found(get(row, 3)?);
            // If they differ, the server was started between the two statements, behind a pooler.
            if server == before {
                let holders = get::<Vec<String>>(row, 0)?.into_iter().collect();
                return Ok((Seen { last, holders, server }, [first, second]));
            }
        }
    }

    /// Record what a look has found. Returns the version up to which all are final.
    fn know(&self, settled: i64, server: i64) -> i64 {
        let mut known = self.known.lock();
        let before = if known.server == Some(server) { known.settled } else { 0 };
        *known = Known { settled: settled.max(before), server: Some(server) };
        known.settled
    }

    /// Return the connection to the pool.
    pub async fn close(&self) {
        *self.state.lock().await = State::default();
    }
}

/// What one look has seen.
struct Seen {
    last: i64,
    holders: Holders,
    server: i64,
}

/// The last version, and when the server was started.
fn last_of(rows: &[Row]) -> Result<(i64, i64)> {
    let row = rows.first().ok_or(Error::Closed("connection"))?;
    Ok((get(row, 0)?, server::since(row, 1)?))
}

/// Statement and parameters of a query. The statement contains only bounds that have an effect. With two bounds, on a
/// table without statistics, PostgreSQL assumes so few rows that it sorts the rest of the table for every page. With a
/// limit that is unknown at planning time it assumes so few rows that it scans all versions to find those of an
/// aggregate.
pub fn sql(table: &Table, query: &Query) -> (String, Vec<Parameter>) {
    let mut parameters: Vec<Parameter> = Vec::new();
    let mut conditions = Vec::new();
    for (operator, bound, is_wanted) in
        [(">", query.since, query.since > 0 || !query.is_backwards), ("<=", query.until, query.until < i64::MAX)]
    {
        if is_wanted {
            parameters.push((Box::new(bound), Type::INT8));
            conditions.push(format!("version {operator} ${}", parameters.len()));
        }
    }
    let filter = query.filter.sql(table, &mut parameters);
    let mut limit = String::new();
    if query.limit < i64::MAX {
        parameters.push((Box::new(query.limit), Type::INT8));
        limit = format!(" LIMIT ${}", parameters.len());
    }
    let sql = format!(
        "{plan}SELECT {COLUMNS} FROM {table} WHERE {conditions}{filter} ORDER BY version{order}{limit}",
        plan = if query.filter.is_planned_by_values() { PLANNED_BY_VALUES } else { "" },
        table = table.name,
        conditions = if conditions.is_empty() { "true".to_owned() } else { conditions.join(" AND ") },
        order = if query.is_backwards { " DESC" } else { "" },
    );
    (sql, parameters)
}

/// Borrow parameters for the driver.
pub fn binds(parameters: &[Parameter]) -> Vec<Bind<'_>> {
    parameters.iter().map(|(value, kind)| (&**value as _, kind.clone())).collect()
}

/// Rows as events. Each row is dropped once it was decoded, so that the events are not twice in memory.
pub fn events(rows: Vec<Row>) -> Result<Vec<Arc<StoredEvent>>> {
    rows.into_iter().map(|row| StoredEvent::from_row(&row).map(Arc::new)).collect()
}

/// Size of events in memory.
pub fn size_bytes(events: &[Arc<StoredEvent>]) -> usize {
    events.iter().map(|event| event.size_bytes()).sum()
}

/// All visible events that match a query, and the version up to which they are final. The locks of writers are read only
/// if `may_look`, and only if events follow a gap that may be filled yet. Without a look, only what is known from earlier
/// ones counts as final. For `limit_bytes` see [`Pooled::set_answer_limit_bytes`].
pub async fn load(
    pool: &Arc<Pool>,
    settler: &Settler,
    table: &Table,
    query: &Query,
    may_look: bool,
    limit_bytes: usize,
) -> Result<Page> {
    let since = query.since;
    let may_look = may_look && !query.is_backwards;
    let known = settler.known();
    let mut events = Vec::new();
    // Nothing can be added up to this version, so events up to here need not be read again.
    let mut floor = since;
    let is_blind = known.server.is_none() && !query.filter.is_empty();
    if !(may_look && is_blind) {
        let (sql, parameters) = sql(table, query);
        let binds = binds(&parameters);
        // What is known from earlier looks counts only if the server is still the same.
        let asks_for_last = since > 0 || (known.server.is_some() && !query.is_backwards);
        let mut connection = pool.get().await?;
        connection.set_answer_limit_bytes(limit_bytes);
        let (rows, last) = if asks_for_last {
            let requests = [(&*sql, &*binds), (&settler.sql_last, &[])];
            let [rows, last] = connection.pipeline("load events", requests, false).await?;
            (rows, Some(last_of(&last)?))
        } else {
            (connection.query("load events", &sql, &binds, false).await?, None)
        };
        drop(connection);
        if let Some((last, _)) = last
            && since > last
        {
            return Err(rewound(table, since, last));
        }
        events = self::events(rows)?;
        let found = events.last().map(|event| event.version);
        pool.has_seen(last.map(|(last, _)| last).max(found).unwrap_or_default());
        if query.is_backwards {
            // A backward query cannot be continued from this position.
            return Ok(Page { events, safe_since: since });
        }
        let is_same_server = last.is_some_and(|(_, server)| known.server == Some(server));
        let settled = if is_same_server { known.settled } else { 0 };
        let safe_since = safe_since(query, settled, &events);
        if !may_look || safe_since == events.last().map_or(since, |event| event.version) {
            return Ok(Page { events, safe_since });
        }
        floor = since.max(settled);
        events.retain(|event| event.version <= floor);
    }
    let count = i64::try_from(events.len()).unwrap_or(i64::MAX);
    let rest = Query { since: floor, limit: query.limit.saturating_sub(count), ..query.clone() };
    let (sql, parameters) = sql(table, &rest);
    let binds = binds(&parameters);
    let mut connection = pool.get().await?;
    connection.set_answer_limit_bytes(limit_bytes);
    let (seen, [rows, _]) = settler.look(&mut connection, table, [(&sql, &binds), NOTHING]).await?;
    drop(connection);
    if since > seen.last {
        return Err(rewound(table, since, seen.last));
    }
    let (settled, rows) = if seen.holders.is_empty() {
        settler.know(seen.last, seen.server);
        (seen.last, rows)
    } else {
        // There may be a gap that active writers can fill: run a step of the watermark, and read again after it.
        drop(rows);
        let (settled, [rows, _]) = settler.step_and_read(table, [(&sql, &binds), NOTHING], limit_bytes).await?;
        (settled.settled, rows)
    };
    events.extend(self::events(rows)?);
    Ok(Page { safe_since: safe_since(query, settled.max(floor), &events), events })
}

/// The version from which it is safe to continue after these events of a query.
fn safe_since(query: &Query, settled: i64, events: &[Arc<StoredEvent>]) -> i64 {
    if query.filter.is_empty() {
        final_up_to(settled, query.since, events)
    } else {
        highest_up_to(settled, query.since, events)
    }
}

/// The error of a position beyond the table's end.
pub fn rewound(table: &Table, position: i64, last_version: i64) -> Error {
    Error::Rewound { table: table.name.clone(), position, last_version, event_id: None, found_id: None }
}

/// The version of the last of these events, which are all that follow `since`, before which no event can be added, where
/// all versions up to `settled` are final.
pub fn final_up_to(settled: i64, since: i64, events: &[Arc<StoredEvent>]) -> i64 {
    let known = settled.max(since);
    let later = events.partition_point(|event| event.version <= known);
    let end = run_from(known, events.get(later..).unwrap_or_default());
    if end > known { end } else { highest_up_to(settled, since, events) }
}

/// The version up to which versions follow one another without a gap, so that no event can be added in between.
fn run_from(since: i64, events: &[Arc<StoredEvent>]) -> i64 {
    let mut end = since;
    for event in events {
        if event.version != end + 1 {
            break;
        }
        end = event.version;
    }
    end
}

/// The version of the last event up to `settled`.
fn highest_up_to(settled: i64, since: i64, events: &[Arc<StoredEvent>]) -> i64 {
    let is_settled = |event: &&Arc<StoredEvent>| event.version <= settled;
    events.iter().rev().find(is_settled).map_or(since, |event| event.version)
}

/// The version of the last event. With `is_settled`, waits until no event can be added before it any more.
pub async fn latest_version(pool: &Arc<Pool>, settler: &Settler, table: &Table, is_settled: bool) -> Result<i64> {
    let until = if is_settled { settler.settle_now(table).await? } else { i64::MAX };
    Ok(latest_up_to(pool, table, until).await?.version)
}

/// The last version that the sequence has assigned.
pub async fn last_version(pool: &Arc<Pool>, table: &Table) -> Result<i64> {
    let rows = pool.get().await?.query("look at the sequence", &table.sql_last(), &[], false).await?;
    Ok(last_of(&rows)?.0)
}

/// The last event up to `until`.
pub async fn latest_up_to(pool: &Arc<Pool>, table: &Table, until: i64) -> Result<Anchor> {
    let (sql, mut connection) = (sql_latest(table), pool.get().await?);
    Anchor::from_rows(&connection.query("read the latest version", &sql, &[(&until, Type::INT8)], false).await?)
}

/// The statement that reads version and id of the last event up to a version.
pub fn sql_latest(table: &Table) -> String {
    format!("SELECT version, id FROM {} WHERE version <= $1 ORDER BY version DESC LIMIT 1", table.name)
}
