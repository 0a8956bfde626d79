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

/// The statements, built once per table.
pub struct Sql {
    /// Waits for the locks of aggregates.
    pub lock_shared: String,
    /// As `lock_shared`, for aggregates with an expected version.
    pub lock_exclusive: String,
    /// Takes the locks of calls whose locks are free, and passes the other calls to `insert_expected`, which leaves
    /// them out.
    pub try_exclusive: String,
    /// One event of an unconditional call.
    pub insert_one: String,
    /// Several events of one unconditional call.
    pub insert_batch: String,
    /// Several unconditional calls.
    pub insert_any: String,
    /// One call whose locks the transaction holds already.
    pub insert_locked: String,
    /// Several conditional calls.
    pub insert_expected: String,
    /// The last versions of aggregates.
    pub actual: String,
    /// Which ids are in use, and whether by an event with the same content.
    pub known: String,
}

impl Sql {
    /// The statements for one table.
    pub fn new(table: &Table) -> Self {
        let (name, mask) = (&table.name, LOCK_BUCKETS - 1);
        // Without the composite index, PostgreSQL might scan the whole primary key backwards to find an aggregate's
        // maximum. Adding 0 prevents that plan.
        let last = if table.has_aggregate_index { "t.version" } else { "t.version + 0" };
        let last =
            format!("coalesce((SELECT pg_catalog.max({last}) FROM {name} t WHERE t.aggregate_id = x.aggregate_id), 0)");
        // Each key is locked once, in the order of the keys, so that two writers never deadlock.
        let keys = format!(
            "SELECT DISTINCT pg_catalog.hashtext(a) & {mask} AS key FROM pg_catalog.unnest($1) AS a ORDER BY key"
        );
        // Serialized writers take the turn's lock before the locks of aggregates; otherwise two writers could deadlock.
        // A separate subquery runs once, before the function that uses its value.
        let turn = if table.is_serial {
            format!(
                " + (SELECT CASE WHEN pg_catalog.pg_advisory_xact_lock($2, {TURN_KEY})::pg_catalog.text = '' \
                     THEN 0 END)"
            )
        } else {
            String::new()
        };
        let lock = |function: &str| format!("SELECT pg_catalog.{function}($2, key{turn}) FROM ({keys}) AS k");
        let columns = "id, aggregate_id, event_type, data, metadata";
        let given = "unnest($1, $2, $3, $4, $5, $6) WITH ORDINALITY AS \
                     e(id, aggregate_id, event_type, data, metadata, call, n)";
        let busy = format!(
            "busy AS MATERIALIZED (SELECT DISTINCT call FROM (SELECT DISTINCT call, \
             pg_catalog.hashtext(aggregate_id) & {mask} AS key FROM unnest($2, $6) AS l(aggregate_id, call)) AS k \
             WHERE NOT pg_catalog.pg_try_advisory_xact_lock_shared($7, key))"
        );
        let known = format!(
            "known AS MATERIALIZED (SELECT DISTINCT call FROM unnest($1, $6) AS e(id, call) \
             WHERE EXISTS (SELECT FROM {name} t WHERE t.id = e.id))"
        );
        let insert = |left_out: &str| {
            format!(
                "INSERT INTO {name} ({columns}) SELECT id, aggregate_id, event_type, data::pg_catalog.jsonb, \
                 metadata::pg_catalog.jsonb FROM {given} \
                 WHERE call NOT IN (SELECT call FROM known) AND call NOT IN ({left_out}) ORDER BY n RETURNING id, version, created_at"
            )
        };
        Self {
            lock_shared: lock("pg_advisory_xact_lock_shared"),
            lock_exclusive: lock("pg_advisory_xact_lock"),
            // A transaction-local setting passes the calls that did not get their locks to the next statement.
            try_exclusive: format!(
                "SELECT pg_catalog.set_config('socketio_postgres.busy', \
                    coalesce(pg_catalog.string_agg(call::pg_catalog.text, ','), ''), true) \
                 FROM (SELECT DISTINCT call, pg_catalog.hashtext(a) & {mask} AS key \
                       FROM unnest($1, $3) AS l(a, call)) AS k \
                 WHERE NOT pg_catalog.pg_try_advisory_xact_lock($2, key{turn})"
            ),
            // The most common kind of call. The lock is taken in a condition, and a version is drawn only for rows that
            // meet the conditions.
            insert_one: format!(
                "INSERT INTO {name} ({columns}) SELECT $1, $2, $3, $4::pg_catalog.jsonb, $5::pg_catalog.jsonb \
                 WHERE NOT EXISTS (SELECT FROM {name} t WHERE t.id = $1) \
                 AND pg_catalog.pg_try_advisory_xact_lock_shared($6, pg_catalog.hashtext($2) & {mask}) \
                 RETURNING version, created_at"
            ),
            // The locks are taken first, in a materialized query on which the rows depend; versions are drawn for the
            // rows.
            insert_any: format!("WITH {busy}, {known} {}", insert("SELECT call FROM busy")),
            insert_locked: format!("WITH {known} {}", insert("SELECT call FROM known")),
            // A single call need not check which ids are known: if one is, the statement fails, and the call is tried
            // alone. Rows are returned in the order of insertion.
            insert_batch: format!(
                "WITH {busy} INSERT INTO {name} ({columns}) \
                 SELECT id, aggregate_id, event_type, data::pg_catalog.jsonb, metadata::pg_catalog.jsonb FROM {given} \
                 WHERE NOT EXISTS (SELECT FROM busy) ORDER BY n RETURNING version, created_at"
            ),
            insert_expected: format!(
                "WITH failed AS MATERIALIZED (SELECT DISTINCT x.call \
                 FROM (SELECT x.call, x.expected, {last} AS last \
                       FROM unnest($7, $8, $9) AS x(call, aggregate_id, expected)) AS x \
                 WHERE CASE WHEN x.expected = -1 THEN x.last = 0 ELSE x.last <> x.expected END), {known} {}",
                insert(
                    "SELECT call FROM failed UNION ALL SELECT busy::pg_catalog.int4 FROM \
                     pg_catalog.regexp_split_to_table(pg_catalog.current_setting('socketio_postgres.busy'), ',') \
                     AS busy WHERE busy <> ''"
                )
            ),
            actual: format!("SELECT x.aggregate_id, {last} FROM pg_catalog.unnest($1) AS x(aggregate_id)"),
            known: format!(
                "SELECT e.n, t.version, t.created_at, t.aggregate_id = e.aggregate_id AND t.event_type = e.event_type \
                    AND coalesce(t.data, 'null') = coalesce(e.data::pg_catalog.jsonb, 'null') \
                    AND coalesce(t.metadata, 'null') = coalesce(e.metadata::pg_catalog.jsonb, 'null') \
                 FROM unnest($1, $2, $3, $4, $5) WITH ORDINALITY \
                    AS e(id, aggregate_id, event_type, data, metadata, n) JOIN {name} t ON t.id = e.id"
            ),
        }
    }
}

/// The events of several calls, as columns for the statements' parameters.
#[derive(Default)]
pub struct Columns<'a> {
    ids: Vec<&'a str>,
    /// The aggregate of each event.
    pub aggregates: Vec<&'a str>,
    types: Vec<&'a str>,
    data: Vec<Option<&'a str>>,
    metadata: Vec<Option<&'a str>>,
    /// The call that each event belongs to.
    pub calls: Vec<i32>,
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
