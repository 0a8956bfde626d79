//! The event table: finding the one that go-sync-kit created, or creating one that go-sync-kit can use, too.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Row;
use tokio_postgres::types::Type;

use crate::error::{Error, Result};
use crate::store::indexes::Indexes;
use crate::store::pool::{Pool, Pooled};
use crate::store::row::get;
use crate::store::server::{self, SERVER_SINCE};
use crate::table_name::TableName;
use crate::wire::protocol::quote_literal;

/// Advisory lock for all schema changes. Spells "sio.es".
const MIGRATION_LOCK: i64 = 0x7369_6f2e_6573;
/// Number of advisory locks that all aggregates share, so that a large batch cannot exhaust the server's lock table.
pub const LOCK_BUCKETS: i32 = 1024;
/// Key of the advisory lock that serializes writers, where the serial trigger is installed. No aggregate has this key.
pub const TURN_KEY: i32 = -1;
/// go-sync-kit's channel for all events.
pub const GO_CHANNEL: &str = "events_global";
/// How long a migration waits for transactions that have written to the table, beyond the limit of other statements.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longest suffix that a side table's name adds to the table's name.
const SUFFIX_BYTES: usize = 20;

/// Part, name and SQL.
type Migration = (Part, &'static str, &'static str);

/// All migrations, in order. Those of one [`Part`] are applied together.
const MIGRATIONS: &[Migration] = &[
    (Part::Events, "events", include_str!("sql/events.sql")),
    (Part::Subscriptions, "subscriptions", include_str!("sql/subscriptions.sql")),
    (Part::Subscriptions, "consumers", include_str!("sql/consumers.sql")),
    (Part::Subscriptions, "leases", include_str!("sql/leases.sql")),
    (Part::Guard, "guard", include_str!("sql/guard.sql")),
    (Part::Serial, "serial", include_str!("sql/serial.sql")),
    (Part::GoNotify, "go_notify", include_str!("sql/go_notify.sql")),
    (Part::Settled, "settled", include_str!("sql/settled.sql")),
    (Part::Guard, "guard_always", include_str!("sql/guard_always.sql")),
    (Part::Serial, "serial_always", include_str!("sql/serial_always.sql")),
    (Part::Partition, "partition", include_str!("sql/partition.sql")),
    (Part::Subscriptions, "replaced", include_str!("sql/replaced.sql")),
    (Part::Subscriptions, "changed", include_str!("sql/changed.sql")),
    (Part::Guard, "guard_plans", include_str!("sql/guard_plans.sql")),
];

/// Parts of the schema that can be created independently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The event table itself.
    Events,
    /// Side tables of durable subscriptions.
    Subscriptions,
    /// Side table of the settled mark.
    Settled,
    /// The trigger that makes expected versions exact for writers of other languages.
    Guard,
    /// The trigger that serializes writers.
    Serial,
    /// go-sync-kit's trigger, for the case that go-sync-kit cannot create it itself.
    GoNotify,
    /// The function that an index by partition is made of.
    Partition,
}

/// The properties of an event table.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // independent facts
pub struct Table {
    /// The name as it was given.
    pub table_name: TableName,
    /// The quoted name, ready for SQL.
    pub name: String,
    /// Its object id.
    pub oid: u32,
    /// Its sequence, quoted.
    pub sequence: String,
    /// The sequence's object id.
    pub sequence_oid: u32,
    /// go-sync-kit's row trigger exists and is enabled. It notifies `stream_<id>` and `events_global`.
    pub notifies_go: bool,
    /// This package's statement trigger exists and is enabled.
    pub notifies_us: bool,
    /// An index on `(aggregate_id, version)`.
    pub has_aggregate_index: bool,
    /// The guard trigger exists.
    pub is_guarded: bool,
    /// Created by this package, not by go-sync-kit, as far as this role can tell.
    pub is_native: bool,
    /// Writers are serialized, so events are committed in the order of their versions.
    pub is_serial: bool,
    /// A crash of the server leaves the table as it is.
    pub is_logged: bool,
    /// The indexes that were asked for.
    pub indexes: Indexes,
}

impl Table {
    /// The channel for this package's wake-ups, and for the self-test of a listening session.
    pub fn wake_channel(&self) -> String {
        format!("sio_events_{}", self.oid)
    }

    /// The advisory locks of this table's aggregates: `pg_advisory_xact_lock(class, key)`.
    pub fn lock_class(&self) -> i32 {
        i32::from_be_bytes(self.oid.to_be_bytes())
    }

    /// The statement that reads the last version that the sequence has assigned, and when the server was started.
    ///
    /// `SELECT last_value` alone can be up to 31 too high: every 32nd `nextval` logs later values in advance, and while it
    /// does so, the row shows the logged value. A plain read does not wait for `nextval`; the function takes the lock that
    /// `nextval` holds meanwhile. Source: `nextval_internal` and `read_seq_tuple` in src/backend/commands/sequence.c. With
    /// a value too high, versions not yet drawn would count as settled, and their events would be skipped.
    pub fn sql_last(&self) -> String {
        let (sequence, oid) = (&self.sequence, self.sequence_oid);
        // before the first `nextval` the sequence shows 1
        format!(
            "SELECT CASE WHEN is_called THEN pg_catalog.pg_sequence_last_value({oid}) ELSE 0 END, \
             {SERVER_SINCE} FROM {sequence}"
        )
    }

    fn mismatch(&self, reason: impl Into<String>) -> Error {
        Error::SchemaMismatch { table: self.name.clone(), reason: reason.into() }
    }

    /// The error of a sequence that would assign versions which are in use.
    pub fn is_behind(&self, last: i64, version: i64) -> Error {
        let Self { sequence, name, .. } = self;
        self.mismatch(format!(
            "its sequence {sequence} is at {last}, behind version {version}, so new events would get versions that readers \
             have passed; before anything is stored, run SELECT pg_catalog.setval({}, (SELECT pg_catalog.max(version) FROM {name}))",
            quote_literal(sequence)
        ))
    }
}

/// Check that the sequence is not behind the table, as after a restore of the rows alone.
pub async fn check_sequence(connection: &mut Pooled, table: &Table) -> Result<()> {
    let highest = format!("SELECT coalesce(pg_catalog.max(version), 0) FROM {}", table.name);
    // In this order: whatever is visible has been drawn before.
    let requests = [(&*highest, &[][..]), (&*table.sql_last(), &[])];
    let [highest, last] = match connection.pipeline("look at the sequence", requests, false).await {
        // Without privileges on the sequence this check is impossible, and so is reading from a position.
        Err(Error::Database { report, .. }) if report.sqlstate == "42501" => return Ok(()),
        result => result?,
    };
    let [highest, last] = [highest, last].map(|rows| rows.first().map_or(Ok(0), |row| get::<i64>(row, 0)));
    let (highest, last) = (highest?, last?);
    if last < highest { Err(table.is_behind(last, highest)) } else { Ok(()) }
}

/// Check again what was found when the table was opened. An error says why reading is not safe any more. Returns what
/// has changed without affecting readers.
pub async fn check_again(connection: &mut Pooled, table: &Table) -> Result<Vec<Error>> {
    server::check_primary(&connection.query("look at the server", server::IS_STANDBY, &[], false).await?)?;
    let Some(now) = find(connection, &table.table_name).await? else { return Err(table.mismatch("it was dropped")) };
    if now.oid != table.oid {
        return Err(table.mismatch("it was replaced by another table of this name; open a new store"));
    }
    if now.sequence_oid != table.sequence_oid {
        return Err(table.mismatch(format!("its versions come from another sequence now, {}", now.sequence)));
    }
    if table.is_serial && !now.is_serial {
        let trigger = table.table_name.bare("_serial");
        return Err(table.mismatch(format!(
            "its trigger {trigger}, under which writers take turns, is gone or disabled; enable it, or open a new store"
        )));
    }
    check_sequence(connection, table).await?;
    table.indexes.become_like(&now.indexes);
    let mut doubts = Vec::new();
    if table.is_guarded && !now.is_guarded {
        let trigger = table.table_name.bare("_guard");
        doubts.push(table.mismatch(format!(
            "its trigger {trigger} is gone or disabled, so expected versions are exact for writers of this package only"
        )));
    }
    if table.is_logged && !now.is_logged {
        doubts.push(table.mismatch("it is UNLOGGED now: a crash of the server removes all events"));
    }
    Ok(doubts)
}

/// Why a look at the table said that the locks of writers mean nothing.
pub async fn what_is_wrong(connection: &mut Pooled, table: &Table) -> Error {
    let changed = || table.mismatch("its sequence or its triggers were changed while it was read");
    check_again(connection, table).await.err().unwrap_or_else(changed)
}

/// Find the table, creating it if it is missing and `may_create`.
pub async fn open(pool: &Arc<Pool>, name: &TableName, may_create: bool) -> Result<Table> {
    let mut connection = pool.get().await?;
    if let Some(table) = find(&mut connection, name).await? {
        check_sequence(&mut connection, &table).await?;
        return Ok(table);
    }
    if !may_create {
        let reason = "it does not exist and create_table is off".to_owned();
        return Err(Error::SchemaMismatch { table: name.quoted(), reason });
    }
    migrate(&mut connection, name, Part::Events).await?;
    migrate(&mut connection, name, Part::Settled).await?;
    let dropped = || {
        let reason = "it was dropped while being created".to_owned();
        Error::SchemaMismatch { table: name.quoted(), reason }
    };
    find(&mut connection, name).await?.ok_or_else(dropped)
}

/// Apply the missing migrations of one part. Only one process does so at a time. When all are applied, this reads one
/// row.
pub async fn migrate(connection: &mut Pooled, name: &TableName, part: Part) -> Result<()> {
    let context = format!("migrate {}", name.quoted());
    let applied = applied(connection, name, &context).await?;
    let is_wanted = |&&(kind, label, _): &&Migration| kind == part && !applied.iter().any(|done| done == label);
    let wanted: Vec<_> = MIGRATIONS.iter().filter(is_wanted).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let script = script(name, &wanted)?;
    connection.set_dirty(true);
    connection.set_patience(PATIENCE);
    let failed = |error| Error::from_postgres(&context, &error, false);
    let (sql, failed) = (&script, &failed);
    let ran =
        connection.ask(&context, sql.len(), |client| async move { client.batch_execute(sql).await.map_err(failed) });
    if let Err(error) = ran.await {
        connection.roll_back().await;
        // go-sync-kit does not take this lock when it creates the table. If it has just done so, its table exists now.
        let is_there =
            matches!(&error, Error::Database { report, .. } if matches!(report.sqlstate.as_str(), "42P07" | "23505"));
        return if is_there && part == Part::Events { Ok(()) } else { Err(error) };
    }
    connection.set_dirty(false);
    Ok(())
}

/// The script that applies all migrations of some parts, each unless it is applied.
pub fn ddl(name: &TableName, parts: &[Part]) -> Result<String> {
    script(name, &MIGRATIONS.iter().filter(|(part, ..)| parts.contains(part)).collect::<Vec<_>>())
}

/// The script that applies migrations, in one transaction.
fn script(name: &TableName, wanted: &[&Migration]) -> Result<String> {
    if name.table.len() + SUFFIX_BYTES > 63 {
        let reason = format!("must be at most {} bytes, so that side tables can be named after it", 63 - SUFFIX_BYTES);
        return Err(Error::options("table_name", name.table.clone(), reason));
    }
    let done = name.beside("_migrations");
    let mut script = format!(
        "CREATE TABLE IF NOT EXISTS {done} (name pg_catalog.text PRIMARY KEY, \
            applied_at pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.now());\n"
    );
    for (_, label, text) in wanted {
        let text = text
            .replace("{table}", &name.quoted())
            .replace("{table_text}", &quote_literal(&name.quoted()))
            .replace("{index}", &name.bare("_aggregate_version"))
            .replace("{wake}", &name.beside("_wake"))
            .replace("{wake_trigger}", &name.bare("_wake"))
            .replace("{subscriptions_wake}", &name.beside("_durable_wake"))
            .replace("{subscriptions_wake_trigger}", &name.bare("_durable_wake"))
            .replace("{subscriptions_gone_trigger}", &name.bare("_durable_gone"))
            .replace("{guard}", &name.beside("_guard"))
            .replace("{guard_trigger}", &name.bare("_guard"))
            .replace("{serial}", &name.beside("_serial"))
            .replace("{serial_trigger}", &name.bare("_serial"))
            .replace("{go_notify}", &name.in_schema("notify_event_inserted"))
            .replace("{go_notify_text}", &quote_literal(&(name.in_schema("notify_event_inserted") + "()")))
            .replace("{turn}", &TURN_KEY.to_string())
            .replace("{buckets}", &(LOCK_BUCKETS - 1).to_string())
            .replace("{subscriptions}", &name.beside("_subscriptions"))
            .replace("{consumers}", &name.beside("_consumers"))
            .replace("{parked}", &name.beside("_parked"))
            .replace("{settled}", &name.beside("_settled"))
            .replace("{partition}", &name.beside("_partition"));
        // Another process may have applied the migration before this one got the lock, so the block checks again.
        let mut is_there = format!("EXISTS (SELECT FROM {done} WHERE name = '{label}')");
        if *label == "events" {
            let _ = write!(is_there, " OR pg_catalog.to_regclass({}) IS NOT NULL", quote_literal(&name.quoted()));
        }
        let _ = write!(
            script,
            "DO $socketio_postgres$ BEGIN\nIF {is_there} THEN RETURN; END IF;\n{text}\n\
             INSERT INTO {done} (name) VALUES ('{label}');\nEND $socketio_postgres$;\n"
        );
    }
    Ok(format!("BEGIN;\nSELECT pg_catalog.pg_advisory_xact_lock({MIGRATION_LOCK});\n{script}COMMIT;\n"))
}

async fn applied(connection: &mut Pooled, name: &TableName, context: &str) -> Result<Vec<String>> {
    let done = name.beside("_migrations");
    let sql = "SELECT pg_catalog.to_regclass($1) IS NOT NULL";
    let rows = connection.query(context, sql, &[(&done, Type::TEXT)], false).await?;
    let Some(true) = rows.first().map(|row| get::<bool>(row, 0)).transpose()? else { return Ok(Vec::new()) };
    let rows = connection.query(context, &format!("SELECT name FROM {done}"), &[], false).await?;
    rows.iter().map(|row| get(row, 0)).collect()
}

/// The columns of an event table: name, type, and the type's name for messages.
const COLUMNS: &[(&str, Type, &str)] = &[
    ("version", Type::INT8, "bigint"),
    ("id", Type::TEXT, "text"),
    ("aggregate_id", Type::TEXT, "text"),
    ("event_type", Type::TEXT, "text"),
    ("data", Type::JSONB, "jsonb"),
    ("metadata", Type::JSONB, "jsonb"),
    ("created_at", Type::TIMESTAMPTZ, "timestamp with time zone"),
];

/// What is wrong with the columns of a table. Each row has the table's oid and kind, and a column's name, type and type
/// name.
fn wrong_columns(columns: &[Row]) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    for (column, wanted, wanted_name) in COLUMNS {
        let mut found = None;
        for row in columns {
            if get::<Option<String>>(row, 2)?.as_deref() == Some(column) {
                found = Some((get::<u32>(row, 3)?, get::<String>(row, 4)?));
            }
        }
        match found {
            Some((oid, _)) if oid == wanted.oid() => {}
            Some((_, kind)) => wrong.push(format!("{column} is {kind} instead of {wanted_name}")),
            None => wrong.push(format!("column {column} ({wanted_name}) is missing")),
        }
    }
    Ok(wrong)
}

/// The properties of a table `$1` with the oid `$2`.
const PROPERTIES: &str = "SELECT s.seqrelid, s.seqrelid::pg_catalog.regclass::pg_catalog.text, s.seqcache, \
        s.seqincrement, s.seqcycle, \
        EXISTS (SELECT FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid \
            WHERE t.tgrelid = $2 AND p.proname = 'notify_event_inserted' AND t.tgenabled IN ('O', 'A')), \
        EXISTS (SELECT FROM pg_catalog.pg_trigger t WHERE t.tgrelid = $2 AND t.tgname = $3 \
            AND t.tgenabled IN ('O', 'A')), \
        EXISTS (SELECT FROM pg_catalog.pg_index i JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid \
                JOIN pg_catalog.pg_attribute b ON b.attrelid = i.indrelid \
            WHERE i.indrelid = $2 AND i.indisvalid AND i.indpred IS NULL AND i.indnatts >= 2 \
            AND a.attname = 'aggregate_id' AND b.attname = 'version' \
            AND i.indkey[0] = a.attnum AND i.indkey[1] = b.attnum), \
        EXISTS (SELECT FROM pg_catalog.pg_trigger t WHERE t.tgrelid = $2 AND t.tgname = $4 \
            AND t.tgenabled IN ('O', 'A')), \
        coalesce(pg_catalog.has_table_privilege(pg_catalog.to_regclass($5), 'SELECT'), false), \
        EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = $2 AND i.indisunique \
            AND i.indpred IS NULL \
            AND i.indnkeyatts = 1 AND i.indkey[0] = (SELECT attnum FROM pg_catalog.pg_attribute \
                WHERE attrelid = $2 AND attname = 'id')), \
        EXISTS (SELECT FROM pg_catalog.pg_trigger t WHERE t.tgrelid = $2 AND t.tgname = $6 \
            AND t.tgenabled IN ('O', 'A')), \
        EXISTS (SELECT FROM pg_catalog.pg_attribute a \
            LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum \
            WHERE a.attrelid = $2 AND a.attname = 'version' AND (a.attidentity <> '' OR EXISTS (\
                SELECT FROM pg_catalog.pg_depend WHERE classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass \
                AND objid = d.oid AND refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass \
                AND refobjid = s.seqrelid))), \
        (SELECT relpersistence = 'p' FROM pg_catalog.pg_class WHERE oid = $2), \
        ARRAY(SELECT pg_catalog.substr(c.relname, pg_catalog.length($7) + 1) FROM pg_catalog.pg_index i \
            JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid \
            WHERE i.indrelid = $2 AND i.indisvalid AND pg_catalog.starts_with(c.relname, $7) ORDER BY 1) \
     FROM pg_catalog.pg_sequence s \
     WHERE s.seqrelid = pg_catalog.pg_get_serial_sequence($1, 'version')::pg_catalog.regclass";

/// The table's properties; `None` when there is no table of this name.
pub async fn find(connection: &mut Pooled, name: &TableName) -> Result<Option<Table>> {
    let quoted = name.quoted();
    let context = format!("look up table {quoted}");
    let mismatch = |reason: String| Error::SchemaMismatch { table: quoted.clone(), reason };
    let columns = connection
        .query(
            &context,
            "SELECT c.oid, c.relkind::pg_catalog.text, a.attname::pg_catalog.text, \
                a.atttypid, pg_catalog.format_type(a.atttypid, NULL) \
             FROM pg_catalog.pg_class c LEFT JOIN pg_catalog.pg_attribute a \
                ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
             WHERE c.oid = pg_catalog.to_regclass($1)",
            &[(&quoted, Type::TEXT)],
            false,
        )
        .await?;
    let Some(first) = columns.first() else { return Ok(None) };
    let oid: u32 = get(first, 0)?;
    let kind: String = get(first, 1)?;
    if kind != "r" {
        return Err(mismatch("it is not an ordinary table".to_owned()));
    }
    let wrong = wrong_columns(&columns)?;
    if !wrong.is_empty() {
        return Err(mismatch(wrong.join(", ")));
    }
    let rows = connection
        .query(
            &context,
            PROPERTIES,
            &[
                (&quoted, Type::TEXT),
                (&oid, Type::OID),
                (&format!("{}_wake", name.table), Type::TEXT),
                (&format!("{}_guard", name.table), Type::TEXT),
                (&name.beside("_migrations"), Type::TEXT),
                (&format!("{}_serial", name.table), Type::TEXT),
                (&name.table, Type::TEXT),
            ],
            false,
        )
        .await?;
    let Some(row) = rows.first() else {
        return Err(mismatch("its column version has no sequence of its own (bigserial)".to_owned()));
    };
    if get::<i64>(row, 2)? != 1 || get::<i64>(row, 3)? != 1 || get::<bool>(row, 4)? {
        let sequence: String = get(row, 1)?;
        return Err(mismatch(format!(
            "its sequence {sequence} must have CACHE 1, INCREMENT 1 and NO CYCLE, or the order of versions means nothing"
        )));
    }
    if !get::<bool>(row, 12)? {
        let sequence: String = get(row, 1)?;
        return Err(mismatch(format!("the default of its column version does not come from its sequence {sequence}")));
    }
    if !get::<bool>(row, 10)? {
        return Err(mismatch("its column id is not unique".to_owned()));
    }
    let is_native =
        get::<bool>(row, 9)? && applied(connection, name, &context).await?.iter().any(|name| name == "events");
    Ok(Some(Table {
        table_name: name.clone(),
        name: quoted,
        oid,
        sequence_oid: get(row, 0)?,
        sequence: get(row, 1)?,
        notifies_go: get(row, 5)?,
        notifies_us: get(row, 6)?,
        has_aggregate_index: get(row, 7)?,
        is_guarded: get(row, 8)?,
        is_native,
        is_serial: get(row, 11)?,
        is_logged: get(row, 13)?,
        indexes: Indexes::new(get(row, 14)?),
    }))
}
