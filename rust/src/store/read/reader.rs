//! Reading pages, and up to where a page is final.

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

/// Events, and from where it is safe to go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// In the order asked for.
    pub events: Vec<Arc<StoredEvent>>,
    /// The highest version that nothing can come before any more: read on after this one, and no event is missed.
    /// Always the version of an event, or the position asked for.
    pub safe_since: i64,
}

/// What to read.
#[derive(Debug, Clone)]
pub struct Query {
    /// Only later versions.
    pub since: i64,
    /// Only versions up to this one.
    pub until: i64,
    /// At most as many.
    pub limit: i64,
    /// Highest version first.
    pub is_backwards: bool,
    /// Which.
    pub filter: Filter,
}

/// The steps of the watermark for one table. One at a time, and on a connection of its own: a fence means nothing
/// after a crash of the server, and a crash ends the connection.
pub struct Settler {
    pool: Arc<Pool>,
    state: Mutex<(Option<Pooled>, Watermark)>,
    sql_last: String,
    sql_holders: &'static str,
}

/// What a reader of the table may rely on at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// All versions up to this one are final.
    pub settled: i64,
    /// The last version given out.
    pub last: i64,
    /// The transactions that writers have open.
    pub holders: Holders,
}

/// Transactions that may still commit a version they have drawn; see [`Watermark`].
const HOLDERS: &str = "SELECT virtualtransaction FROM pg_catalog.pg_locks \
     WHERE locktype = 'relation' AND relation = $1 AND database = \
     (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()) \
     AND mode = 'RowExclusiveLock' AND granted";
/// The same where writers take turns: whoever has drawn a version comes after all that is visible.
const NOBODY: &str = "SELECT ''::pg_catalog.text WHERE $1::pg_catalog.oid IS NULL";

/// Whether [`HOLDERS`] shows who has a version: PostgreSQL's documentation does not promise that, and a server of another
/// make need not do it. Readers would then pass open transactions and miss their events.
///
/// One round trip and one transaction, because both statements are in one message. The first takes the lock by the
/// function that `nextval` takes it by (`init_sequence` in sequence.c), but draws nothing.
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
        // Without a right to the sequence nothing can be told here, and nothing can be read on from.
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
    /// For one table; connects on use.
    pub fn new(pool: Arc<Pool>, table: &Table) -> Self {
        let sql_holders = if table.is_serial { NOBODY } else { HOLDERS };
        Self { pool, state: Mutex::default(), sql_last: sql_last(table), sql_holders }
    }

    /// One step. Rows read after it are complete up to [`Settled::settled`].
    pub async fn step(&self, table: &Table) -> Result<Settled> {
        let (settled, _) = self.step_and_read(table, None).await?;
        Ok(settled)
    }

    /// Wait until all that is drawn by now is final. Short where transactions are; `waiting` hears who is waited for.
    pub async fn settle_now(&self, table: &Table, mut waiting: impl FnMut(&Holders)) -> Result<i64> {
        let mut delay = Duration::from_millis(1);
        let mut now = self.step(table).await?;
        let mut wanted = now.last;
        while now.settled < wanted {
            waiting(&now.holders);
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(Duration::from_millis(50));
            now = self.step(table).await?;
            wanted = wanted.min(now.last); // less after a crash: what was drawn and not committed is drawn again
        }
        Ok(now.settled)
    }

    /// One step, and rows read after it, in one round trip.
    pub async fn step_and_read(&self, table: &Table, read: Option<(&str, &[Bind<'_>])>) -> Result<(Settled, Vec<Row>)> {
        let mut state = self.state.lock().await;
        let (connection, watermark) = &mut *state;
        // A broken one is given back first: the pool has no other.
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

    /// Give the connection back.
    pub async fn close(&self) {
        *self.state.lock().await = (None, Watermark::default());
    }
}

/// The last version given out.
///
/// `SELECT last_value` alone can be up to 31 too high: every 32nd `nextval` writes to the log ahead, and while it does
/// the row shows what it logs. A plain read does not wait for it; the function takes the lock that `nextval` holds then.
/// Source: `nextval_internal` and `read_seq_tuple` in src/backend/commands/sequence.c. With a value too high, versions
/// not yet drawn would count as settled, and their events would be skipped.
fn sql_last(table: &Table) -> String {
    let (sequence, oid) = (&table.sequence, table.sequence_oid);
    // before the first draw a sequence says 1
    format!("SELECT CASE WHEN is_called THEN pg_catalog.pg_sequence_last_value({oid}) ELSE 0 END FROM {sequence}")
}

fn last_of(rows: &[Row]) -> Result<i64> {
    rows.first().map_or(Ok(0), |row| get(row, 0))
}

fn holders_of(rows: &[Row]) -> Result<Holders> {
    rows.iter().map(|row| get(row, 0)).collect()
}

/// Statement and parameters of a query. It has the bounds that bound something and no others: for two of them, on a table
/// without statistics, PostgreSQL assumes so few rows that it sorts the rest of the table for every page; and for a limit
/// that it does not know yet, so few that it walks all versions to find those of an aggregate.
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

/// Everything visible that a query asks for, and up to where that is final.
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
        // Read from the end: there is no "going on" from here.
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
    // Writers are at work behind a gap: take a step of the watermark, and read again after it.
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

/// How far versions follow one another without a gap: nothing can come in between.
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

/// The last event that is not beyond a version.
pub fn highest_up_to(settled: i64, since: i64, events: &[Arc<StoredEvent>]) -> i64 {
    let is_settled = |event: &&Arc<StoredEvent>| event.version <= settled;
    events.iter().rev().find(is_settled).map_or(since, |event| event.version)
}

/// The version of the last event; if `is_settled`, as soon as nothing can come before it any more.
pub async fn latest_version(pool: &Arc<Pool>, settler: &Settler, table: &Table, is_settled: bool) -> Result<i64> {
    let until = if is_settled { settler.settle_now(table, |_| {}).await? } else { i64::MAX };
    latest_up_to(pool, table, until).await
}

/// The version of the last event that is not beyond a version; 0 when there is none.
pub async fn latest_up_to(pool: &Arc<Pool>, table: &Table, until: i64) -> Result<i64> {
    let sql = format!("SELECT coalesce(pg_catalog.max(version), 0) FROM {} WHERE version <= $1", table.name);
    let mut connection = pool.get().await?;
    last_of(&connection.query("read the latest version", &sql, &[(&until, Type::INT8)], false).await?)
}
