//! The attachment table: its layout, and inserting, fetching and expiring rows.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::Mutex;
use tokio_postgres::Client;
use tokio_postgres::types::{ToSql, Type};

use crate::error::{Error, Result};
use crate::table_name::TableName;

/// Advisory lock key for operations that only one session of the database may run at a time: creating the table,
/// migrations, and expiring rows. Spells "sio.pg".
const LOCK_KEY: i64 = 0x7369_6f2e_7067;

/// `undefined_table`, also reported for a missing sequence.
const UNDEFINED_TABLE: &str = "42P01";
/// `unique_violation`: the ids came from a sequence that no longer belongs to the table.
const UNIQUE_VIOLATION: &str = "23505";

/// The result of fetching one id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// The body.
    Bytes(Vec<u8>),
    /// The body is larger than the limit, and was not read.
    TooLarge(usize),
    /// The budget was used up by earlier bodies; fetch this one again.
    Later,
}

/// The table that carries messages of 8000 bytes or more, and binary ones.
pub struct AttachmentTable {
    quoted: String,
    may_create: bool,
    sequence: Mutex<Option<Arc<str>>>,
}

impl AttachmentTable {
    /// The table with the name that the user gave: `table` or `schema.table`. As in PostgreSQL (and therefore in Node),
    /// the name is folded to lower case unless quoted.
    pub fn new(name: &str, may_create: bool) -> Result<Self> {
        Ok(Self { quoted: TableName::parse(name)?.quoted(), may_create, sequence: Mutex::default() })
    }

    /// The quoted name, ready for SQL.
    pub fn quoted(&self) -> &str {
        &self.quoted
    }

    /// The statements that create the table. Node and Go servers use the same table.
    ///
    /// `UNLOGGED`, because rows live for seconds and are as volatile as the notifications that announce them. Without
    /// WAL, storing a row and notifying need no flush. `EXTERNAL`, because the bodies are compact MessagePack already
    /// and need no compression.
    pub fn ddl(&self) -> String {
        format!(
            "CREATE UNLOGGED TABLE IF NOT EXISTS {table} (\n    id         bigserial UNIQUE,\n    created_at \
             pg_catalog.timestamptz DEFAULT pg_catalog.now(),\n    payload    pg_catalog.bytea\n);\nALTER TABLE {table} ALTER COLUMN payload SET \
             STORAGE EXTERNAL;\n",
            table = self.quoted
        )
    }

    /// Make sure that the table exists, and create it if allowed. Returns the quoted name of its sequence.
    pub async fn ensure(&self, client: &Client) -> Result<Arc<str>> {
        let mut known = self.sequence.lock().await;
        if let Some(sequence) = known.as_ref() {
            return Ok(Arc::clone(sequence));
        }
        let sequence: Arc<str> = self.find_or_create(client).await?.into();
        *known = Some(Arc::clone(&sequence));
        Ok(sequence)
    }

    /// If an error suggests that the table or its sequence no longer exists, forget the table, so that the next use
    /// looks for it again. Returns whether that may be so. A migration may have dropped the table, or another server
    /// may have taken the place of this one. A trigger of the table may cause the same SQLSTATE for another reason, so
    /// the caller must accept the error when it occurs a second time.
    pub async fn forget_if_gone(&self, error: &Error) -> bool {
        let is_gone = matches!(error, Error::Database { report, .. }
            if matches!(report.sqlstate.as_str(), UNDEFINED_TABLE | UNIQUE_VIOLATION));
        is_gone && self.sequence.lock().await.take().is_some()
    }

    async fn find_or_create(&self, client: &Client) -> Result<String> {
        // While another session creates the table, some parts of the query see it and others do not, so the table looks
        // malformed. The second query runs after that session's commit.
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
        // Several servers may start at once. Without the lock, CREATE IF NOT EXISTS could fail with a unique violation.
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

    /// Make the sequence logged. Since PostgreSQL 15 the sequence of an unlogged table is unlogged, too. After a crash it
    /// begins again at 1, so that who still looks for an attachment of before may find another one with its id. On 15 and 16
    /// it is even corrupt after a standby was promoted ("bad magic number"): no attachment could be stored any more.
    async fn protect(&self, client: &Client, sequence: &str) -> Result<()> {
        const SQL: &str = "SELECT pg_catalog.current_setting('server_version_num')::pg_catalog.int4";
        let context = format!("create table {}", self.quoted);
        let failed = |error: &tokio_postgres::Error| Error::from_postgres(&context, error, false);
        let rows = client.query_typed(SQL, &[]).await.map_err(|error| failed(&error))?;
        let version: i32 = rows.first().and_then(|row| row.try_get(0).ok()).unwrap_or_default();
        if version < 150_000 {
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

    /// The quoted name with its schema. Makes sure that the table exists.
    pub async fn full_name(&self, client: &Client) -> Result<String> {
        const SQL: &str = "SELECT pg_catalog.concat(pg_catalog.quote_ident(n.nspname), '.', \
                pg_catalog.quote_ident(c.relname)) \
             FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             WHERE c.oid = pg_catalog.to_regclass($1)";
        let name: &(dyn ToSql + Sync) = &self.quoted;
        for _ in 0..2 {
            self.ensure(client).await?;
            let rows = client.query_typed(SQL, &[(name, Type::TEXT)]).await;
            let rows = rows.map_err(|error| Error::from_postgres("look up the attachment table", &error, false))?;
            if let Some(full_name) = rows.first().and_then(|row| row.try_get(0).ok()) {
                return Ok(full_name);
            }
            *self.sequence.lock().await = None; // it was dropped since
        }
        Err(self.refused(UNDEFINED_TABLE, "it was dropped while being looked up"))
    }

    fn refused(&self, sqlstate: &str, reason: &str) -> Error {
        let mut error = Error::refused(sqlstate, format!("attachment table {}", self.quoted), reason);
        if let Error::Database { report, .. } = &mut error {
            report.hint = Some(format!("run this once as a role that may:\n{}", self.ddl()));
        }
        error
    }

    /// Run statements in one transaction, while no other session creates the table or runs such statements.
    pub async fn migrate(&self, client: &Client, sql: &str) -> Result<()> {
        let script = format!("SELECT pg_catalog.pg_advisory_xact_lock({LOCK_KEY});\n{sql}");
        let done = client.batch_execute(&script).await;
        done.map_err(|error| Error::from_postgres("run a migration", &error, false))
    }

    /// Store one body in the table, which must exist. Returns the row's id.
    pub async fn insert(&self, client: &Client, body: &[u8]) -> Result<i64> {
        let sql = format!("INSERT INTO {} (payload) VALUES ($1) RETURNING id", self.quoted);
        let rows = client.query_typed(&sql, &[(&body, Type::BYTEA)]).await;
        let rows = rows.map_err(|error| Error::from_postgres("insert an attachment", &error, true))?;
        rows.first().and_then(|row| row.try_get(0).ok()).ok_or_else(|| self.refused("XX000", "no id was returned"))
    }

    /// Fetch several bodies at once, in the order of `ids`, until `budget_bytes` is used up; the first body is fetched
    /// in any case. A body larger than `limit_bytes` is never read. Ids without a row are absent from the result.
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

    /// Delete bodies older than `age_seconds`; returns how many. Does nothing while another session expires rows.
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
