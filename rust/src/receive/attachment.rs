//! The attachment table: its layout, and inserting, fetching and expiring rows.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::Mutex;
use tokio_postgres::Client;
use tokio_postgres::types::{ToSql, Type};

use crate::error::{Error, Result};
use crate::table_name::TableName;

/// Advisory lock key of everything that must happen once per database: creating and expiring. Spells "sio.pg".
const LOCK_KEY: i64 = 0x7369_6f2e_7067;

/// `undefined_table`, said of a missing sequence, too.
const UNDEFINED_TABLE: &str = "42P01";
/// `unique_violation`: ids were drawn from a sequence that is the table's no more.
const UNIQUE_VIOLATION: &str = "23505";

/// What a fetch found under one id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// The body.
    Bytes(Vec<u8>),
    /// It is larger than the limit, and was not read.
    TooLarge(usize),
    /// The budget was used up before it; ask again.
    Later,
}

/// The table that carries messages of 8000 bytes or more, and binary ones.
pub struct AttachmentTable {
    quoted: String,
    may_create: bool,
    sequence: Mutex<Option<Arc<str>>>,
}

impl AttachmentTable {
    /// A table by the name a user gave: `table` or `schema.table`, read as PostgreSQL (and so Node) reads it,
    /// that is folded to lower case unless quoted.
    pub fn new(name: &str, may_create: bool) -> Result<Self> {
        Ok(Self { quoted: TableName::parse(name)?.quoted(), may_create, sequence: Mutex::default() })
    }

    /// Quoted, ready for SQL.
    pub fn quoted(&self) -> &str {
        &self.quoted
    }

    /// The statements that create it. Node and Go servers use the same table.
    ///
    /// `UNLOGGED`: rows live for seconds and are as volatile as the notifications that announce them; without
    /// WAL, storing a row and notifying cost no flush. `EXTERNAL`: bodies are packed already.
    pub fn ddl(&self) -> String {
        format!(
            "CREATE UNLOGGED TABLE IF NOT EXISTS {table} (\n    id         bigserial UNIQUE,\n    created_at \
             pg_catalog.timestamptz DEFAULT pg_catalog.now(),\n    payload    pg_catalog.bytea\n);\nALTER TABLE {table} ALTER COLUMN payload SET \
             STORAGE EXTERNAL;\n",
            table = self.quoted
        )
    }

    /// Make sure that the table is there, creating it when allowed; returns its sequence, quoted.
    pub async fn ensure(&self, client: &Client) -> Result<Arc<str>> {
        let mut known = self.sequence.lock().await;
        if let Some(sequence) = known.as_ref() {
            return Ok(Arc::clone(sequence));
        }
        let sequence: Arc<str> = self.find_or_create(client).await?.into();
        *known = Some(Arc::clone(&sequence));
        Ok(sequence)
    }

    /// Look again at the next use, if an error says that the table, or its sequence, is gone; true when it may. A
    /// migration may have dropped it, or another server be in its place. A trigger of the table may mean something else by
    /// the same code, so the second answer is to be believed.
    pub async fn forget_if_gone(&self, error: &Error) -> bool {
        let is_gone = matches!(error, Error::Database { report, .. }
            if matches!(report.sqlstate.as_str(), UNDEFINED_TABLE | UNIQUE_VIOLATION));
        is_gone && self.sequence.lock().await.take().is_some()
    }

    async fn find_or_create(&self, client: &Client) -> Result<String> {
        // A table that somebody creates at this moment is seen by some parts of the query and not by others, which makes
        // it look like a wrong one. The second look is after its commit.
        let found = match self.find(client).await {
            Err(error) if !error.is_transient() => self.find(client).await?,
            found => found?,
        };
        if let Some(sequence) = found {
            return Ok(sequence);
        }
        if !self.may_create {
            return Err(self.refused(UNDEFINED_TABLE, "it does not exist and create_table is off"));
        }
        // Several servers start at once: without the lock, CREATE IF NOT EXISTS can still fail with a unique violation.
        let script = format!("SELECT pg_catalog.pg_advisory_xact_lock({LOCK_KEY});\n{}", self.ddl());
        if let Err(error) = client.batch_execute(&script).await {
            let error = Error::from_postgres(&format!("create table {}", self.quoted), &error, false);
            return Err(match error {
                Error::Database { report, .. } if report.sqlstate == "42501" => self.refused(
                    "42501",
                    &format!("it does not exist and this role may not create it ({})", report.message),
                ),
                other => other,
            });
        }
        let sequence = self.find(client).await?;
        let sequence = sequence.ok_or_else(|| self.refused(UNDEFINED_TABLE, "it was dropped while being created"))?;
        self.protect(client, &sequence).await?;
        Ok(sequence)
    }

    /// From 15 on the sequence of an unlogged table is unlogged, too, and on 15 and 16 a standby that is promoted finds
    /// it corrupt ("bad magic number"): no attachment could be stored any more.
    async fn protect(&self, client: &Client, sequence: &str) -> Result<()> {
        const SQL: &str = "SELECT pg_catalog.current_setting('server_version_num')::pg_catalog.int4";
        let context = format!("create table {}", self.quoted);
        let failed = |error: &tokio_postgres::Error| Error::from_postgres(&context, error, false);
        let rows = client.query_typed(SQL, &[]).await.map_err(|error| failed(&error))?;
        let version: i32 = rows.first().and_then(|row| row.try_get(0).ok()).unwrap_or_default();
        if !(150_000..180_000).contains(&version) {
            return Ok(());
        }
        let script = format!("ALTER SEQUENCE {sequence} SET LOGGED");
        client.batch_execute(&script).await.map_err(|error| failed(&error))
    }

    async fn find(&self, client: &Client) -> Result<Option<String>> {
        const SQL: &str = "SELECT pg_catalog.to_regclass($1) IS NOT NULL, \
             CASE WHEN pg_catalog.to_regclass($1) IS NOT NULL \
                THEN pg_catalog.pg_get_serial_sequence($1, 'id') END, \
             (SELECT pg_catalog.count(*) FROM pg_catalog.pg_attribute \
              WHERE attrelid = pg_catalog.to_regclass($1) AND NOT attisdropped AND (attname, atttypid) IN \
                (('id', 'pg_catalog.int8'::pg_catalog.regtype), \
                 ('payload', 'pg_catalog.bytea'::pg_catalog.regtype), \
                 ('created_at', 'pg_catalog.timestamptz'::pg_catalog.regtype)))";
        let name: &(dyn ToSql + Sync) = &self.quoted;
        let context = format!("look up table {}", self.quoted);
        let rows = client.query_typed(SQL, &[(name, Type::TEXT)]).await;
        let rows = match rows {
            Err(error) if error.code().is_some_and(|code| code.code() == "42703") => {
                return Err(self.refused("42703", "it has no column id"));
            }
            rows => rows.map_err(|error| Error::from_postgres(&context, &error, false))?,
        };
        let Some(row) = rows.first() else { return Ok(None) };
        if !row.try_get::<_, bool>(0).unwrap_or(false) {
            return Ok(None);
        }
        if row.try_get::<_, i64>(2).unwrap_or(0) != 3 {
            return Err(self.refused("42703", "it lacks the columns id bigint, created_at timestamptz, payload bytea"));
        }
        match row.try_get::<_, Option<String>>(1) {
            Ok(Some(sequence)) => Ok(Some(sequence)),
            _ => Err(self.refused("42703", "its column id has no sequence of its own (bigserial or identity)")),
        }
    }

    fn refused(&self, sqlstate: &str, reason: &str) -> Error {
        let mut error = Error::refused(sqlstate, format!("attachment table {}", self.quoted), reason);
        if let Error::Database { report, .. } = &mut error {
            report.hint = Some(format!("run this once as a role that may:\n{}", self.ddl()));
        }
        error
    }

    /// Store one body in a table that is there; returns its id.
    pub async fn insert(&self, client: &Client, body: &[u8]) -> Result<i64> {
        let sql = format!("INSERT INTO {} (payload) VALUES ($1) RETURNING id", self.quoted);
        let rows = client.query_typed(&sql, &[(&body, Type::BYTEA)]).await;
        let rows = rows.map_err(|error| Error::from_postgres("insert an attachment", &error, true))?;
        rows.first().and_then(|row| row.try_get(0).ok()).ok_or_else(|| self.refused("XX000", "no id was returned"))
    }

    /// Fetch several bodies at once, in the order of `ids` as far as `budget_bytes` reaches; at least the first one.
    /// A body larger than `limit_bytes` is never read. Ids without a row are missing in the result.
    pub async fn fetch(
        &self,
        client: &Client,
        ids: &[i64],
        limit_bytes: usize,
        budget_bytes: usize,
    ) -> Result<HashMap<i64, Body>> {
        // The size of a stored body is known without reading it.
        let sql = format!(
            "SELECT id, size, CASE WHEN size <= $2 AND (total <= $3 OR total = size) THEN payload END FROM (\
                SELECT t.id, t.payload, pg_catalog.octet_length(t.payload)::pg_catalog.int8 AS size, \
                    pg_catalog.sum(CASE WHEN pg_catalog.octet_length(t.payload) <= $2 \
                        THEN pg_catalog.octet_length(t.payload) ELSE 0 END) OVER (ORDER BY w.n) AS total \
                FROM pg_catalog.unnest($1) WITH ORDINALITY AS w(id, n) JOIN {} AS t ON t.id = w.id) AS sized",
            self.quoted
        );
        let as_int8 = |bytes: usize| i64::try_from(bytes).unwrap_or(i64::MAX);
        let (limit, budget) = (as_int8(limit_bytes), as_int8(budget_bytes));
        let rows = client
            .query_typed(&sql, &[(&ids, Type::INT8_ARRAY), (&limit, Type::INT8), (&budget, Type::INT8)])
            .await
            .map_err(|error| Error::from_postgres("fetch attachments", &error, false))?;
        Ok(rows
            .iter()
            .filter_map(|row| {
                let size = usize::try_from(row.try_get::<_, Option<i64>>(1).ok()??).ok()?;
                let body = match row.try_get::<_, Option<Vec<u8>>>(2).ok()? {
                    Some(bytes) => Body::Bytes(bytes),
                    None if size > limit_bytes => Body::TooLarge(size),
                    None => Body::Later,
                };
                Some((row.try_get(0).ok()?, body))
            })
            .collect())
    }

    /// Delete bodies older than `age_seconds`; returns how many. Does nothing while another session does the same.
    pub async fn expire(&self, client: &Client, age_seconds: f64) -> Result<i64> {
        let sql = format!(
            "WITH turn AS MATERIALIZED (SELECT pg_catalog.pg_try_advisory_xact_lock({LOCK_KEY}) AS mine) \
             DELETE FROM {} USING turn \
             WHERE mine AND created_at < pg_catalog.now() - pg_catalog.make_interval(secs => $1)",
            self.quoted
        );
        let deleted = client.execute_typed(&sql, &[(&age_seconds, Type::FLOAT8)]).await;
        let deleted = deleted.map_err(|error| Error::from_postgres("expire attachments", &error, false))?;
        Ok(i64::try_from(deleted).unwrap_or(i64::MAX))
    }
}
