//! The statements that store events, and the events as columns for the parameters of these statements.
//!
//! Here and everywhere, PostgreSQL's own functions and types are schema-qualified, because a schema that precedes
//! `pg_catalog` in the role's `search_path` may have functions and types of the same names. Parameters get their types
//! from the binds. Only `unnest` of several arrays cannot be qualified; the grammar itself resolves it to PostgreSQL's
//! own function.

use std::collections::BTreeMap;

use tokio_postgres::types::Type;

use crate::store::event::NewEvent;
use crate::store::pool::Bind;
use crate::store::table::{LOCK_BUCKETS, TURN_KEY, Table};

/// Longest wait for another transaction that is storing an event with the same id. The call then goes to the waiting
/// room, where it hinders nobody.
pub const ID_LIMIT: &str = "100ms";

/// Sets that limit back to the role's own before the transaction commits, which gives a condition that is never null. At
/// the commit, all that notify wait for one lock of the whole server, for as long as others need to write theirs to disk;
/// nobody else holds anything that this call needs. It holds for `AFTER` triggers and foreign keys, too.
const OWN_LIMIT: &str = "pg_catalog.set_config('lock_timeout', NULL, true)";

/// A transaction's setting that passes the calls that did not get their locks on to the statement that stores.
const BUSY: &str = "socketio_postgres.busy";
/// Longest wait for the turn of a serialized writer, in one statement. Nobody else can store meanwhile.
const TURN_LIMIT: &str = "1s";

/// The statements, built once per table.
pub struct Sql {
    /// Waits for the locks of aggregates.
    pub lock: String,
    /// Waits for the locks of the aggregates of unconditional events.
    pub lock_all: String,
    /// Takes the locks that are free, and returns the numbers of those that are not. Never waits for them.
    pub try_lock: String,
    /// Forgets which locks were not free.
    pub forget_busy: String,
    /// One event of an unconditional call.
    pub insert_one: String,
    /// Several events of one unconditional call.
    pub insert_batch: String,
    /// Several unconditional calls.
    pub insert_any: String,
    /// Calls of any kind, whose locks the transaction has tried to take. Returns why a call was left out.
    pub store: String,
    /// The sessions that hold the locks of aggregates.
    pub holder: String,
    /// An event of [`STAGE`] whose id another event has.
    pub stage_conflict: String,
    /// Stores the events of [`STAGE`] that are not known.
    pub insert_staged: String,
}

/// A temporary table for the events of one chunk of an import, which is gone after the transaction.
pub const STAGE: &str = "pg_temp.socketio_postgres_import";
/// Creates it.
pub const CREATE_STAGE: &str = "CREATE TEMPORARY TABLE socketio_postgres_import (id pg_catalog.text, \
    aggregate_id pg_catalog.text, event_type pg_catalog.text, data pg_catalog.jsonb, metadata pg_catalog.jsonb) \
    ON COMMIT DROP";

impl Sql {
    /// The statements for one table.
    pub fn new(table: &Table) -> Self {
        let (name, mask, class) = (&table.name, LOCK_BUCKETS - 1, table.lock_class());
        // Without the composite index, PostgreSQL might scan the whole primary key backwards to find an aggregate's
        // maximum. Adding 0 prevents that plan.
        let last = if table.has_aggregate_index { "t.version" } else { "t.version + 0" };
        let turn = turn(table);
        // The trigger of a guarded table asks for the exclusive lock. Two writers that hold the shared one would
        // deadlock there.
        let is_exclusive = if table.is_guarded { "true" } else { "pg_catalog.bool_or(x)" };
        let shared = if table.is_guarded { "" } else { "_shared" };
        // Each key is locked once, in the order of the keys, so that two writers never deadlock. It must not be locked
        // twice: a shared lock that this transaction holds exclusively would be refused while others wait for it.
        let locked = |function: &str| {
            format!(
                "locked AS MATERIALIZED (SELECT calls, CASE WHEN is_exclusive \
                    THEN pg_catalog.{function}({class}, key{turn})::pg_catalog.text \
                    ELSE pg_catalog.{function}_shared({class}, key{turn})::pg_catalog.text END AS answer \
                 FROM (SELECT pg_catalog.hashtext(a) & {mask} AS key, {is_exclusive} AS is_exclusive, \
                        pg_catalog.array_agg(call) AS calls \
                       FROM unnest($1, $2, $3) AS l(a, x, call) GROUP BY 1 ORDER BY 1) AS keys)"
            )
        };
        let columns = "id, aggregate_id, event_type, data, metadata";
        let values = "id, aggregate_id, event_type, data::pg_catalog.jsonb, metadata::pg_catalog.jsonb";
        let given = "unnest($1, $2, $3, $4, $5, $6) WITH ORDINALITY AS \
                     e(id, aggregate_id, event_type, data, metadata, call, n)";
        let busy = format!(
            "busy AS MATERIALIZED (SELECT DISTINCT call FROM (SELECT DISTINCT call, \
             pg_catalog.hashtext(aggregate_id) & {mask} AS key FROM unnest($2, $6) AS l(aggregate_id, call)) AS k \
             WHERE NOT pg_catalog.pg_try_advisory_xact_lock{shared}({class}, key))"
        );
        // An id that another transaction holds makes the insert wait for that transaction. The limit is set before the
        // first row is inserted, and after the statement has locked the table, so it does not apply to that.
        let patience =
            |limit: &str| format!("(SELECT pg_catalog.set_config('lock_timeout', {limit}, true)) IS NOT NULL");
        let once = format!("pg_catalog.set_config('lock_timeout', '{ID_LIMIT}', true) IS NOT NULL");
        let is_patient = patience(&format!("'{ID_LIMIT}'"));
        // A row that nobody gets: its condition is looked at after the rows before it were stored.
        let own_limit = |columns: &str| format!("UNION ALL SELECT {columns} WHERE {OWN_LIMIT} IS NULL");
        Self {
            lock: format!("WITH {} SELECT pg_catalog.count(answer) FROM locked", locked("pg_advisory_xact_lock")),
            lock_all: format!(
                "SELECT pg_catalog.count(pg_catalog.pg_advisory_xact_lock{shared}({class}, key{turn})::pg_catalog.text) \
                 FROM ({} ORDER BY 1) AS keys",
                keys("$1")
            ),
            try_lock: format!(
                "WITH {} SELECT pg_catalog.set_config('{BUSY}', coalesce((SELECT pg_catalog.string_agg(DISTINCT \
                    call::pg_catalog.text, ',') FROM locked, pg_catalog.unnest(calls) AS call WHERE answer = 'false'), ''), true)",
                locked("pg_try_advisory_xact_lock")
            ),
            forget_busy: format!("SELECT pg_catalog.set_config('{BUSY}', '', true)"),
            // The most common kind of call. The lock is taken in a condition, and a version is drawn only for rows that
            // meet the conditions.
            insert_one: format!(
                "INSERT INTO {name} ({columns}) SELECT $1, $2, $3, $4::pg_catalog.jsonb, $5::pg_catalog.jsonb \
                 WHERE NOT EXISTS (SELECT FROM {name} t WHERE t.id = $1) \
                 AND pg_catalog.pg_try_advisory_xact_lock{shared}({class}, pg_catalog.hashtext($2) & {mask}) \
                 AND {once} RETURNING version, created_at, {OWN_LIMIT}"
            ),
            // A single call need not check which ids are known: if one is, the statement fails, and the call is tried
            // in the waiting room. Rows are returned in the order of insertion.
            insert_batch: format!(
                "WITH stored AS (INSERT INTO {name} ({columns}) SELECT {values} FROM {given} \
                    WHERE NOT EXISTS (SELECT FROM ({}) AS keys \
                        WHERE NOT pg_catalog.pg_try_advisory_xact_lock{shared}({class}, key)) AND {is_patient} \
                    ORDER BY n RETURNING version, created_at) \
                 SELECT version, created_at FROM stored {}",
                keys("$2"),
                own_limit("NULL, NULL")
            ),
            // The locks are taken first, in a materialized query on which the rows depend; versions are drawn for the
            // rows.
            insert_any: format!(
                "WITH {busy}, known AS MATERIALIZED (SELECT DISTINCT call FROM unnest($1, $6) AS e(id, call), {}), \
                 stored AS (INSERT INTO {name} ({columns}) SELECT {values} FROM {given} \
                    WHERE call NOT IN (SELECT call FROM known) AND call NOT IN (SELECT call FROM busy) \
                    AND {is_patient} ORDER BY n RETURNING id, version, created_at) \
                 SELECT id, version, created_at FROM stored {}",
                by_id(table, ""),
                own_limit("NULL, NULL, NULL")
            ),
            // One statement, so that everything is seen at one and the same moment.
            store: format!(
                "WITH known AS MATERIALIZED (SELECT e.n, e.call, t.version, t.created_at, {} AS is_same \
                    FROM {given}, {}), \
                 found AS MATERIALIZED (SELECT x.n, x.call, x.expected, \
                    coalesce((SELECT pg_catalog.max({last}) FROM {name} t WHERE t.aggregate_id = x.aggregate_id), 0) \
                        AS last \
                    FROM unnest($7, $8, $9) WITH ORDINALITY AS x(call, aggregate_id, expected, n)), \
                 refused AS MATERIALIZED (SELECT call FROM known WHERE NOT is_same \
                    UNION ALL SELECT call FROM found \
                    WHERE CASE WHEN expected = -1 THEN last = 0 ELSE last <> expected END \
                    UNION ALL SELECT busy::pg_catalog.int4 FROM pg_catalog.regexp_split_to_table(\
                        pg_catalog.current_setting('{BUSY}'), ',') AS busy WHERE busy <> ''), \
                 stored AS (INSERT INTO {name} ({columns}) SELECT {values} FROM {given} \
                    WHERE call NOT IN (SELECT call FROM refused) AND n NOT IN (SELECT n FROM known) AND {} \
                    ORDER BY n RETURNING id, version, created_at) \
                 SELECT NULL AS id, n, version, created_at, is_same FROM known \
                 UNION ALL SELECT NULL, -n, last, NULL, NULL FROM found \
                 UNION ALL SELECT id, 0, version, created_at, NULL FROM stored {}",
                same("e.data::pg_catalog.jsonb", "e.metadata::pg_catalog.jsonb"),
                by_id(table, &format!("version, created_at, {columns}")),
                patience("$10"),
                own_limit("NULL, NULL, NULL, NULL, NULL")
            ),
            holder: holder(table),
            stage_conflict: format!(
                "SELECT t.id, t.version FROM {STAGE} e JOIN {name} t ON t.id = e.id WHERE NOT ({}) LIMIT 1",
                same("e.data", "e.metadata")
            ),
            // In the order in which they came.
            insert_staged: format!(
                "WITH stored AS (INSERT INTO {name} ({columns}) SELECT {columns} FROM {STAGE} e \
                    WHERE NOT EXISTS (SELECT FROM {name} t WHERE t.id = e.id) ORDER BY e.ctid RETURNING 1) \
                 SELECT pg_catalog.count(*) FROM stored"
            ),
        }
    }
}

/// Whether the event `t` is the event `e`, whose JSON is given.
fn same(data: &str, metadata: &str) -> String {
    format!(
        "t.aggregate_id = e.aggregate_id AND t.event_type = e.event_type \
         AND coalesce(t.data, 'null') = coalesce({data}, 'null') \
         AND coalesce(t.metadata, 'null') = coalesce({metadata}, 'null')"
    )
}

/// The event `t` with the id of each row `e`. OFFSET forbids PostgreSQL to compare the rows with the whole table, which
/// seems to be best while the table is small.
fn by_id(table: &Table, columns: &str) -> String {
    format!("LATERAL (SELECT {columns} FROM {} t WHERE t.id = e.id OFFSET 0) AS t", table.name)
}

/// The statement that returns the keys of the locks of aggregates, each once.
fn keys(aggregates: &str) -> String {
    let mask = LOCK_BUCKETS - 1;
    format!("SELECT DISTINCT pg_catalog.hashtext(a) & {mask} AS key FROM pg_catalog.unnest({aggregates}) AS a")
}

/// What is added to the key of a lock to take the turn first. Serialized writers take the turn's lock before the locks of
/// aggregates; otherwise two writers could deadlock. A separate subquery runs once, before the function that uses its
/// value.
fn turn(table: &Table) -> String {
    if !table.is_serial {
        return String::new();
    }
    format!(
        " + (SELECT CASE WHEN pg_catalog.set_config('lock_timeout', '{TURN_LIMIT}', true) IS NOT NULL \
             AND pg_catalog.pg_advisory_xact_lock({}, {TURN_KEY})::pg_catalog.text = '' THEN 0 END)",
        table.lock_class()
    )
}

/// The statement that finds the session which holds the lock of each aggregate, the one to blame most likely first. The
/// turn of a serialized writer has no aggregate.
fn holder(table: &Table) -> String {
    let mask = LOCK_BUCKETS - 1;
    format!(
        "SELECT a, pid, application_name, state, seconds FROM (SELECT DISTINCT ON (k.a) k.a, l.pid, s.application_name, \
            coalesce(s.state, CASE WHEN l.pid IS NULL THEN 'prepared' END) AS state, \
            pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() - s.xact_start) AS seconds, \
            l.mode = 'ExclusiveLock' AS is_exclusive, s.xact_start \
         FROM (SELECT DISTINCT a, pg_catalog.hashtext(a) & {mask} AS key FROM pg_catalog.unnest($1) AS a{}) AS k \
         JOIN pg_catalog.pg_locks l ON l.locktype = 'advisory' AND l.granted AND l.objsubid = 2 \
            AND l.classid = {}::pg_catalog.oid \
            AND l.objid = (key::pg_catalog.int8 & 4294967295)::pg_catalog.oid \
            AND l.database = (SELECT oid FROM pg_catalog.pg_database \
                WHERE datname = pg_catalog.current_database()) \
         LEFT JOIN pg_catalog.pg_stat_activity s ON s.pid = l.pid \
         WHERE l.pid IS DISTINCT FROM pg_catalog.pg_backend_pid() \
         ORDER BY k.a, is_exclusive DESC, s.xact_start) AS held \
         ORDER BY is_exclusive DESC, xact_start",
        if table.is_serial { format!(" UNION ALL SELECT NULL, {TURN_KEY}") } else { String::new() },
        table.oid
    )
}

/// The aggregates that calls lock, as columns.
#[derive(Default)]
pub struct Locks<'a> {
    /// The aggregates.
    pub aggregates: Vec<&'a str>,
    /// Whether each lock must be exclusive.
    is_exclusive: Vec<bool>,
    /// The number under which each lock is reported as taken by others.
    numbers: Vec<i32>,
}

impl<'a> Locks<'a> {
    /// Add a lock.
    pub fn add(&mut self, aggregate_id: &'a str, is_exclusive: bool, number: i32) {
        self.aggregates.push(aggregate_id);
        self.is_exclusive.push(is_exclusive);
        self.numbers.push(number);
    }

    /// Whether the lock at `index` must be exclusive from now on.
    pub fn raise(&mut self, index: usize, is_exclusive: bool) {
        if let Some(slot) = self.is_exclusive.get_mut(index) {
            *slot |= is_exclusive;
        }
    }

    /// The parameters of the statements that take locks.
    pub fn binds(&self) -> [Bind<'_>; 3] {
        [
            (&self.aggregates, Type::TEXT_ARRAY),
            (&self.is_exclusive, Type::BOOL_ARRAY),
            (&self.numbers, Type::INT4_ARRAY),
        ]
    }
}

/// The events of several calls, as columns for the statements' parameters.
#[derive(Default)]
pub struct Columns<'a> {
    ids: Vec<&'a str>,
    aggregates: Vec<&'a str>,
    types: Vec<&'a str>,
    data: Vec<Option<&'a str>>,
    metadata: Vec<Option<&'a str>>,
    /// The call that each event belongs to.
    calls: Vec<i32>,
}

impl<'a> Columns<'a> {
    /// The columns for the events of each call.
    pub fn of(calls: impl IntoIterator<Item = &'a [NewEvent]>) -> Self {
        let mut columns = Self::default();
        for (call, events) in (0..).zip(calls) {
            for event in events {
                columns.ids.push(&event.id);
                columns.aggregates.push(&event.aggregate_id);
                columns.types.push(&event.event_type);
                columns.data.push(event.data.as_deref());
                columns.metadata.push(event.metadata.as_deref());
                columns.calls.push(call);
            }
        }
        columns
    }

    /// The first parameters of these statements.
    pub fn binds(&self) -> Vec<Bind<'_>> {
        vec![
            (&self.ids, Type::TEXT_ARRAY),
            (&self.aggregates, Type::TEXT_ARRAY),
            (&self.types, Type::TEXT_ARRAY),
            (&self.data, Type::TEXT_ARRAY),
            (&self.metadata, Type::TEXT_ARRAY),
            (&self.calls, Type::INT4_ARRAY),
        ]
    }
}

/// The expected versions of conditional calls, as columns.
#[derive(Default)]
pub struct Checks<'a> {
    /// The call that expects each version.
    pub calls: Vec<i32>,
    /// The aggregate of each expected version.
    pub aggregates: Vec<&'a str>,
    /// The expected last version: 0 for no events, -1 for any version.
    pub expected: Vec<i64>,
}

impl Checks<'_> {
    /// The next parameters after those of [`Columns::binds`].
    pub fn binds(&self) -> [Bind<'_>; 3] {
        [(&self.calls, Type::INT4_ARRAY), (&self.aggregates, Type::TEXT_ARRAY), (&self.expected, Type::INT8_ARRAY)]
    }
}

impl<'a> Checks<'a> {
    /// The columns for the expectations of each call.
    pub fn of(calls: impl IntoIterator<Item = &'a BTreeMap<String, i64>>) -> Self {
        let mut checks = Self::default();
        for (call, expected) in (0..).zip(calls) {
            for (aggregate, &expected) in expected {
                checks.calls.push(call);
                checks.aggregates.push(aggregate);
                checks.expected.push(expected);
            }
        }
        checks
    }
}
