//! Reading pages, and determining up to which version a page is final.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio_postgres::types::Type;
use tokio_postgres::{Row, SimpleQueryMessage};

use crate::error::{Error, Result};
use crate::store::event::{COLUMNS, StoredEvent};
use crate::store::filter::{Filter, Parameter};
use crate::store::pool::{Bind, Pool, Pooled};
use crate::store::read::watermark::{Holders, Watermark};
use crate::store::row::get;
use crate::store::table::Table;

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

/// Runs the steps of the watermark for one table, one at a time. It uses one connection throughout: a fence is invalid
/// after a crash of the server, and a crash ends the connection.
pub struct Settler {
    pool: Arc<Pool>,
    state: Mutex<(Option<Pooled>, Watermark)>,
    sql_last: String,
    sql_holders: &'static str,
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
}

/// Transactions that may still commit a version that they have drawn; see [`Watermark`].
const HOLDERS: &str = "SELECT virtualtransaction FROM pg_catalog.pg_locks \
     WHERE locktype = 'relation' AND relation = $1 AND database = \
     (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()) \
     AND mode = 'RowExclusiveLock' AND granted";
/// As [`HOLDERS`], for serialized writers: a version drawn by an open transaction follows all visible versions, so
/// there are no holders.
const NOBODY: &str = "SELECT ''::pg_catalog.text WHERE $1::pg_catalog.oid IS NULL";

/// Check that [`HOLDERS`] shows the transactions that have drawn a version. PostgreSQL's documentation does not
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
    let own = HOLDERS.replace("$1", &oid.to_string());
    let sql = format!(
        "SELECT pg_catalog.pg_sequence_last_value({oid}); SELECT EXISTS ({own} AND pid = pg_catalog.pg_backend_pid())"
    );
    let mut connection = pool.get().await?;
    let messages = match connection.client()?.simple_query(&sql).await {
        Ok(messages) => messages,
        // Without privileges on the sequence this check is impossible, and so is reading from a position.
        Err(error) if error.code().is_some_and(|code| code.code() == "42501") => return Ok(()),
        Err(error) => return Err(Error::from_postgres("look at the sequence's lock", &error, false)),
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
        let sql_holders = if table.is_serial { NOBODY } else { HOLDERS };
        Self { pool, state: Mutex::default(), sql_last: sql_last(table), sql_holders }
    }

    /// Run one step. Rows that are read after it are complete up to [`Settled::settled`].
    pub async fn step(&self, table: &Table) -> Result<Settled> {
        let (settled, _) = self.step_and_read(table, None).await?;
        Ok(settled)
    }

    /// Wait until all versions drawn by now are final. The wait is short if transactions are short. `waiting` is called
    /// with the transactions that are waited for.
    pub async fn settle_now(&self, table: &Table, mut waiting: impl FnMut(&Holders)) -> Result<i64> {
        let mut delay = Duration::from_millis(1);
        let mut now = self.step(table).await?;
        let mut wanted = now.last;
        while now.settled < wanted {
            waiting(&now.holders);
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(Duration::from_millis(50));
            now = self.step(table).await?;
            wanted = wanted.min(now.last); // lower after a crash: uncommitted versions are drawn again
        }
        Ok(now.settled)
    }

    /// Run one step, and read rows after it, in one round trip.
    pub async fn step_and_read(&self, table: &Table, read: Option<(&str, &[Bind<'_>])>) -> Result<(Settled, Vec<Row>)> {
        let mut state = self.state.lock().await;
        let (connection, watermark) = &mut *state;
        // A lost connection is returned first, because the pool has only one.
        let usable = connection.take().filter(|pooled| !pooled.is_closed());
        let mut pooled = if let Some(pooled) = usable {
            pooled
        } else {
            watermark.restart(0);
            self.pool.get().await?
        };
        let oid: Bind<'_> = (&table.sequence_oid, Type::OID);
        let [last, holders, rows] = pooled
            .pipeline(
                "settle",
                [(&self.sql_last, &[]), (self.sql_holders, &[oid]), read.unwrap_or(("SELECT 1 WHERE false", &[]))],
                false,
            )
            .await?;
        *connection = Some(pooled);
        let (last, holders) = (last_of(&last)?, holders_of(&holders)?);
        let settled = watermark.observe(last, holders.clone());
        Ok((Settled { settled, last, holders }, rows))
    }

    /// Return the connection to the pool.
    pub async fn close(&self) {
        *self.state.lock().await = (None, Watermark::default());
    }
}

/// The last version that the sequence has assigned.
///
/// `SELECT last_value` alone can be up to 31 too high: every 32nd `nextval` logs later values in advance, and while it
/// does so, the row shows the logged value. A plain read does not wait for `nextval`; the function takes the lock that
/// `nextval` holds meanwhile. Source: `nextval_internal` and `read_seq_tuple` in src/backend/commands/sequence.c. With
/// a value too high, versions not yet drawn would count as settled, and their events would be skipped.
fn sql_last(table: &Table) -> String {
    let (sequence, oid) = (&table.sequence, table.sequence_oid);
    // before the first `nextval` the sequence shows 1
    format!("SELECT CASE WHEN is_called THEN pg_catalog.pg_sequence_last_value({oid}) ELSE 0 END FROM {sequence}")
}

fn last_of(rows: &[Row]) -> Result<i64> {
    rows.first().map_or(Ok(0), |row| get(row, 0))
}

fn holders_of(rows: &[Row]) -> Result<Holders> {
    rows.iter().map(|row| get(row, 0)).collect()
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
    let filter = query.filter.sql(&mut parameters);
    let mut limit = String::new();
    if query.limit < i64::MAX {
        parameters.push((Box::new(query.limit), Type::INT8));
        limit = format!(" LIMIT ${}", parameters.len());
    }
    let sql = format!(
        "SELECT {COLUMNS} FROM {table} WHERE {conditions}{filter} ORDER BY version{order}{limit}",
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

/// Rows as events.
pub fn events(rows: &[Row]) -> Result<Vec<Arc<StoredEvent>>> {
    rows.iter().map(|row| StoredEvent::from_row(row).map(Arc::new)).collect()
}

/// All visible events that match a query, and the version up to which they are final.
pub async fn load(pool: &Arc<Pool>, settler: &Settler, table: &Table, query: &Query) -> Result<Page> {
    let (sql, parameters) = sql(table, query);
    let binds = binds(&parameters);
    let (events, last, holders) = {
        let mut connection = pool.get().await?;
        let oid: Bind<'_> = (&table.sequence_oid, Type::OID);
        let [last, holders, rows] = connection
            .pipeline("load events", [(&settler.sql_last, &[]), (settler.sql_holders, &[oid]), (&sql, &binds)], false)
            .await?;
        (events(&rows)?, last_of(&last)?, holders_of(&holders)?)
    };
    if query.since > last {
        return Err(rewound(table, query.since, last));
    }
    if query.is_backwards {
        // A backward query cannot be continued from this position.
        return Ok(Page { events, safe_since: query.since });
    }
    let contiguous = if query.filter.is_empty() { run_from(query.since, &events) } else { query.since };
    let visible = events.last().map_or(query.since, |event| event.version);
    if contiguous == visible && query.filter.is_empty() {
        return Ok(Page { events, safe_since: visible });
    }
    if holders.is_empty() {
        return Ok(Page { safe_since: highest_up_to(last, query.since, &events), events });
    }
    // There is a gap that active writers may fill: run a step of the watermark, and read again after it.
    let (settled, rows) = settler.step_and_read(table, Some((&sql, &binds))).await?;
    let events = self::events(&rows)?;
    let contiguous = if query.filter.is_empty() { run_from(query.since, &events) } else { query.since };
    let safe_since = contiguous.max(highest_up_to(settled.settled, query.since, &events));
    Ok(Page { events, safe_since })
}

/// The error of a position beyond the table's end.
pub fn rewound(table: &Table, position: i64, last: i64) -> crate::error::Error {
    Error::Rewound { table: table.name.clone(), position, last_version: last }
}

/// The version up to which versions follow one another without a gap, so that no event can be added in between.
pub fn run_from(since: i64, events: &[Arc<StoredEvent>]) -> i64 {
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
pub fn highest_up_to(settled: i64, since: i64, events: &[Arc<StoredEvent>]) -> i64 {
    let is_settled = |event: &&Arc<StoredEvent>| event.version <= settled;
    events.iter().rev().find(is_settled).map_or(since, |event| event.version)
}

/// The version of the last event. With `is_settled`, waits until no event can be added before it any more.
pub async fn latest_version(pool: &Arc<Pool>, settler: &Settler, table: &Table, is_settled: bool) -> Result<i64> {
    let until = if is_settled { settler.settle_now(table, |_| {}).await? } else { i64::MAX };
    latest_up_to(pool, table, until).await
}

/// The version of the last event up to `until`; 0 when there is none.
pub async fn latest_up_to(pool: &Arc<Pool>, table: &Table, until: i64) -> Result<i64> {
    let sql = format!("SELECT coalesce(pg_catalog.max(version), 0) FROM {} WHERE version <= $1", table.name);
    let mut connection = pool.get().await?;
    last_of(&connection.query("read the latest version", &sql, &[(&until, Type::INT8)], false).await?)
}
