//! Establish one connection to a server that accepts writes, trying every host and address.

use crate::connect::cancel::Canceller;
use crate::connect::conninfo::{Conninfo, Host, SslMode};
use crate::connect::mended::{self, Mended, Plain};
use crate::connect::socket;
use crate::connect::tls;
use crate::error::{Error, Result, ServerReport};
use rand::seq::SliceRandom;
use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use tokio::net::lookup_host;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_postgres::config::{SslMode as DriverSslMode, SslNegotiation};
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{AsyncMessage, Client, Config, SimpleQueryMessage, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

/// Returns the password for one connection, for example a token that expires. Called on a blocking thread at every
/// connect; takes precedence over every other source.
pub type PasswordSource = Arc<dyn Fn() -> Result<String, Error> + Send + Sync>;

type Tls<S> = <MakeRustlsConnect as MakeTlsConnect<S>>::Stream;

/// The driver's connection, which must be polled; one type for TCP, TLS and Unix sockets.
pub enum Connection {
    /// The driver reads from the server directly.
    Direct(Box<tokio_postgres::Connection<Socket, Tls<Socket>>>),
    /// Notifications that the driver cannot read are replaced; see [`mended::unreadable_bytes`].
    Mended(Box<tokio_postgres::Connection<Plain, Mended<Tls<Plain>>>>),
}

impl Connection {
    /// As the driver's `poll_message`.
    pub fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<AsyncMessage, tokio_postgres::Error>>> {
        match self {
            Self::Direct(connection) => connection.poll_message(cx),
            Self::Mended(connection) => connection.poll_message(cx),
        }
    }

    fn parameter(&self, name: &str) -> Option<&str> {
        match self {
            Self::Direct(connection) => connection.parameter(name),
            Self::Mended(connection) => connection.parameter(name),
        }
    }
}

impl Future for Connection {
    type Output = Result<(), tokio_postgres::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::Direct(connection) => Pin::new(connection.as_mut()).poll(cx),
            Self::Mended(connection) => Pin::new(connection.as_mut()).poll(cx),
        }
    }
}

/// The database's encoding, as far as this crate distinguishes encodings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Encoding {
    /// `UTF8`: every character, and nothing else.
    #[default]
    Utf8,
    /// `SQL_ASCII`: any bytes, which the server does not check. This crate writes UTF-8.
    Bytes,
    /// Any other encoding: the server converts text, and some characters have no equivalent.
    Narrow,
}

impl Encoding {
    /// Read the parameter `server_encoding`. When a pooler does not pass it on, assume UTF-8, which nearly all
    /// databases use.
    fn of(connection: &Connection) -> Self {
        match connection.parameter("server_encoding") {
            Some("UTF8") | None => Self::Utf8,
            Some("SQL_ASCII") => Self::Bytes,
            Some(_) => Self::Narrow,
        }
    }
}

/// The purpose of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Requests,
    Listening,
}

/// `invalid_authorization_specification`: reported when `pg_hba.conf` rejects a connection, for example because it is
/// not encrypted.
const NOT_AUTHORIZED: &str = "28000";
/// Limit on concurrent threads that call the password callable, per configuration. A callable that never returns
/// occupies its thread for ever, and a new attempt follows every few seconds.
const PREPARING: usize = 4;
const WRONG_PASSWORD: &str = "28P01";
/// The driver's text for a failed TLS handshake.
const HANDSHAKE_FAILED: &str = "error performing TLS handshake";
/// `read_only_sql_transaction`: reported by a write on a standby.
const READ_ONLY: &str = "25006";

/// An open session.
pub struct Link {
    /// Sends statements; they progress only while `connection` is polled.
    pub client: Client,
    /// Must be driven by the owner: with `poll_message` to receive notifications, or awaited in a task of its own.
    pub connection: Connection,
    /// Cancels the session's current statement.
    pub canceller: Canceller,
    /// The host that was connected to, for example `db1:5432`.
    pub host: String,
    /// Encoding of the session's database.
    pub encoding: Encoding,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("host", &self.host).finish_non_exhaustive()
    }
}

/// Opens any number of connections with the settings of one [`Conninfo`].
#[derive(Clone)]
pub struct Connector {
    conninfo: Arc<Conninfo>,
    password: Option<PasswordSource>,
    preparing: Arc<Semaphore>,
    /// Whether any attempt has succeeded.
    has_connected: Arc<AtomicBool>,
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").field("conninfo", &self.conninfo).finish_non_exhaustive()
    }
}

/// Data that is read again for every connect, because passwords and certificates may be renewed while the process runs.
struct Prepared {
    tls: MakeRustlsConnect,
    credentials: Vec<Credential>,
}

/// The password for one host. The note says, for error messages, where the password came from or why there is none.
#[derive(Default)]
struct Credential {
    password: Option<String>,
    note: Option<String>,
}

impl Connector {
    /// Whether both connectors have equal settings. Password callables are equal when they are the same object.
    pub fn is_same(&self, other: &Self) -> bool {
        let is_same_password = match (&self.password, &other.password) {
            (None, None) => true,
            (Some(one), Some(two)) => Arc::ptr_eq(one, two),
            _ => false,
        };
        is_same_password && self.conninfo == other.conninfo
    }

    /// A connector that has not connected yet.
    pub fn new(conninfo: Conninfo, password: Option<PasswordSource>) -> Self {
        let preparing = Arc::new(Semaphore::new(PREPARING));
        Self { conninfo: Arc::new(conninfo), password, preparing, has_connected: Arc::default() }
    }

    /// The settings that are used to connect.
    pub fn conninfo(&self) -> &Conninfo {
        &self.conninfo
    }

    /// Open a session on the first server that accepts writes.
    ///
    /// Host names are resolved again at every call. As in libpq, an error that another host would most likely report,
    /// too (password, database, certificate), ends the attempt; unreachable hosts and standbys are skipped.
    /// `connect_timeout` limits each look-up and, per address, everything from the TCP handshake to the first answer.
    ///
    /// Until the first connection succeeds, a refusal that waiting cannot cure is reported as permanent, because the
    /// settings are most likely wrong. After the first success the settings are known to be right, and every refusal
    /// counts as an outage, which is [transient](Error::is_transient) whatever its reason.
    pub async fn connect(&self) -> Result<Link> {
        self.connect_for(Purpose::Requests).await
    }

    /// As [`Connector::connect`], for a session that listens. Such a session survives notifications that are not valid
    /// UTF-8.
    pub async fn connect_to_listen(&self) -> Result<Link> {
        self.connect_for(Purpose::Listening).await
    }

    async fn connect_for(&self, purpose: Purpose) -> Result<Link> {
        let connected = self.try_hosts(purpose).await;
        match connected {
            Ok(_) => self.has_connected.store(true, Ordering::Relaxed),
            Err(error) if self.has_connected.load(Ordering::Relaxed) => return Err(as_outage(error)),
            Err(_) => {}
        }
        connected
    }

    async fn try_hosts(&self, purpose: Purpose) -> Result<Link> {
        let prepared = self.bounded("read password and certificates".to_owned(), self.prepare()).await?;
        let hosts = self.conninfo.hosts();
        let mut order: Vec<_> = hosts.iter().zip(&prepared.credentials).collect();
        if self.conninfo.shuffles_hosts {
            order.shuffle(&mut rand::rng());
        }
        let mut failures = Vec::new();
        for (host, credential) in order {
            let addresses = match self.bounded(format!("look {host} up"), self.resolve(host)).await {
                Ok(addresses) => addresses,
                Err(error) => {
                    failures.push(error);
                    continue;
                }
            };
            for address in addresses {
                let target = match address {
                    Some(ip) if ip.to_string() != host.server_name() => format!("{host} ({ip})"),
                    _ => host.to_string(),
                };
                let context = format!("connect to {target}");
                // Boxed, because the future is large.
                let attempt = Box::pin(self.attempt(host, address, credential, &prepared.tls, &context, purpose));
                match self.bounded(context.clone(), attempt).await {
                    Ok(link) => return Ok(link),
                    Err(error) if error.is_transient() => failures.push(error),
                    Err(error) => return Err(error),
                }
            }
        }
        Err(combine(failures))
    }

    async fn bounded<T>(&self, context: String, work: impl Future<Output = Result<T>>) -> Result<T> {
        let limit = self.conninfo.connect_timeout;
        match timeout(limit, work).await {
            Ok(result) => result,
            Err(_) => Err(Error::Timeout { context, limit }),
        }
    }

    /// Read the password and the files on a blocking thread, because the user's password callable may take long.
    async fn prepare(&self) -> Result<Prepared> {
        let (conninfo, source) = (self.conninfo.clone(), self.password.clone());
        let permit = Arc::clone(&self.preparing).acquire_owned().await;
        let work = move || {
            let _permit = permit;
            let fixed = match source {
                Some(source) => {
                    let password = source()?;
                    if password.is_empty() {
                        return Err(Error::options("password", "", "the password callable returned an empty string"));
                    }
                    Some(password)
                }
                None => conninfo.password.as_ref().map(|secret| secret.0.clone()),
            };
            let credential = |host| {
                if fixed.is_some() {
                    return Credential { password: fixed.clone(), note: None };
                }
                let found = conninfo.read_passfile(host);
                let note = found.ignored.or_else(|| {
                    found.password.is_some().then(|| "the password was taken from the password file".to_owned())
                });
                Credential { password: found.password, note }
            };
            Ok(Prepared {
                tls: tls::make_connector(&conninfo.tls)?,
                credentials: conninfo.hosts().iter().map(credential).collect(),
            })
        };
        match spawn_blocking(work).await {
            Ok(prepared) => prepared,
            Err(error) if error.is_panic() => Err(Error::options("password", "", "the password callable panicked")),
            Err(_) => Err(Error::Closed("the runtime")),
        }
    }

    /// The addresses of a host to try; `None` stands for a Unix socket.
    async fn resolve(&self, host: &Host) -> Result<Vec<Option<IpAddr>>> {
        if host.socket_dir().is_some() {
            return Ok(vec![None]);
        }
        if let Some(addr) = host.addr {
            return Ok(vec![Some(addr)]);
        }
        let context = format!("look {host} up");
        let found = lookup_host((host.name.as_str(), host.port)).await.map_err(|error| Error::lost(&context, error))?;
        let mut addresses: Vec<_> = found.map(|address| Some(address.ip())).collect();
        if addresses.is_empty() {
            return Err(Error::lost(context, "the name has no address"));
        }
        if self.conninfo.shuffles_hosts {
            addresses.shuffle(&mut rand::rng());
        }
        Ok(addresses)
    }

    /// Connect to one address, with libpq's second attempt for `allow` and `prefer`.
    async fn attempt(
        &self,
        host: &Host,
        address: Option<IpAddr>,
        credential: &Credential,
        tls: &MakeRustlsConnect,
        context: &str,
        purpose: Purpose,
    ) -> Result<Link> {
        use DriverSslMode::{Disable, Prefer, Require};
        let (first, second) = match self.conninfo.tls.mode {
            _ if address.is_none() => (Disable, None), // sslmode does not apply to Unix sockets
            SslMode::Disable => (Disable, None),
            SslMode::Allow => (Disable, Some(Require)),
            SslMode::Prefer => (Prefer, Some(Disable)),
            SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => (Require, None),
        };
        let open = async |mode| {
            let config = self.driver_config(host, address, credential, mode);
            config.connect(tls.clone()).await
        };
        let mut mode = first;
        let mut opened = open(first).await;
        if let (Err(error), Some(second)) = (&opened, second)
            && may_be_about_encryption(error)
        {
            let again = open(second).await;
            // When both attempts are refused, the first answer is reported, because it is about the preferred mode.
            if !again.as_ref().is_err_and(is_not_authorized) {
                (mode, opened) = (second, again);
            }
        }
        let (mut client, connection) = opened.map_err(|error| self.translate(&error, context, credential))?;
        let mut connection = Connection::Direct(Box::new(connection));
        let encoding = Encoding::of(&connection);
        if (encoding, purpose) == (Encoding::Bytes, Purpose::Listening) {
            drop((client, connection));
            let config = self.driver_config(host, address, credential, mode);
            (client, connection) = self.open_mended(&config, host, credential, tls.clone(), context).await?;
        }
        let canceller = Canceller::new(client.cancel_token(), host, address, tls.clone());
        let mut under_way = canceller.guard();
        let checked = check_writable(&client, &mut connection, host, context).await;
        under_way.is_answered = true;
        checked?;
        Ok(Link { client, connection, canceller, host: host.to_string(), encoding })
    }

    /// Connect again so that notifications may contain arbitrary bytes: the server must not check them, and the driver
    /// must not see them.
    async fn open_mended(
        &self,
        config: &Config,
        host: &Host,
        credential: &Credential,
        mut tls: MakeRustlsConnect,
        context: &str,
    ) -> Result<(Client, Connection)> {
        // With a client encoding of UTF-8 the server refuses to send anything else. It sends an error message instead,
        // which ends the driver's connection as well.
        const CHECK_NOTHING: &str = "SET client_encoding TO 'SQL_ASCII'";
        let socket = socket::open(config).await.map_err(|error| Error::lost(context, error))?;
        let Ok(tls) = MakeTlsConnect::<Plain>::make_tls_connect(&mut tls, &host.server_name());
        let opened = mended::connect(config, socket, tls).await;
        let (client, connection) = opened.map_err(|error| self.translate(&error, context, credential))?;
        let mut connection = Connection::Mended(Box::new(connection));
        ask(&client, &mut connection, CHECK_NOTHING, context).await?;
        Ok((client, connection))
    }

    fn driver_config(
        &self,
        host: &Host,
        address: Option<IpAddr>,
        credential: &Credential,
        mode: DriverSslMode,
    ) -> Config {
        let conninfo = &self.conninfo;
        let mut config = Config::new();
        config
            .user(conninfo.user())
            .dbname(conninfo.dbname())
            .application_name(&conninfo.application_name)
            .channel_binding(conninfo.channel_binding)
            .ssl_mode(mode)
            .port(host.port);
        if conninfo.tls.is_direct && mode == DriverSslMode::Require {
            config.ssl_negotiation(SslNegotiation::Direct);
        }
        if let Some(password) = &credential.password {
            config.password(password);
        }
        if let Some(options) = &conninfo.options {
            config.options(options);
        }
        match (address, host.socket_dir()) {
            (Some(address), _) => {
                config.host(host.server_name()).hostaddr(address);
            }
            #[cfg(unix)]
            (None, Some(dir)) => {
                config.host_path(dir);
            }
            (None, _) => {
                config.host(host.server_name());
            }
        }
        match &conninfo.keepalives {
            None => {
                config.keepalives(false);
            }
            Some(keepalives) => {
                if let Some(idle) = keepalives.idle {
                    config.keepalives_idle(idle);
                }
                if let Some(interval) = keepalives.interval {
                    config.keepalives_interval(interval);
                }
                if let Some(count) = keepalives.count {
                    config.keepalives_retries(count);
                }
            }
        }
        if let Some(limit) = conninfo.tcp_user_timeout {
            config.tcp_user_timeout(limit);
        }
        config
    }

    fn translate(&self, error: &tokio_postgres::Error, context: &str, credential: &Credential) -> Error {
        if error.as_db_error().is_some() {
            let mut translated = Error::from_postgres(context, error, false);
            if let Error::Database { report, .. } = &mut translated
                && report.sqlstate == WRONG_PASSWORD
                && report.hint.is_none()
            {
                report.hint.clone_from(&credential.note);
            }
            return translated;
        }
        if let Some(cause) = tls::find_cause(error) {
            let (message, hint) = tls::explain(cause, &self.conninfo.tls);
            return refused(context, message, &hint);
        }
        let reason = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
        // The driver keeps the kind of its errors private, but prints a constant text for each.
        match error.to_string().as_str() {
            "invalid configuration" if credential.password.is_none() => Error::options(
                "password",
                "",
                match &credential.note {
                    Some(note) => format!("the server asks for one and none is given; {note}"),
                    None => "the server asks for one; give it in the connection string, PGPASSWORD, the password \
                             file (~/.pgpass) or as a callable"
                        .to_owned(),
                },
            ),
            "authentication error" => refused(
                context,
                format!("authentication failed: {reason}"),
                "supported are scram-sha-256, md5, password, cert and trust; channel_binding=require needs TLS and \
                 scram-sha-256",
            ),
            HANDSHAKE_FAILED if !is_io(error) => refused(
                context,
                format!("TLS with sslmode={} failed: {reason}", self.conninfo.tls.mode),
                "enable ssl on the server, or use sslmode=prefer if an unencrypted connection is acceptable",
            ),
            _ => Error::from_postgres(context, error, false),
        }
    }
}

/// An error that waiting does not cure. It has no SQLSTATE, because the server did not report it.
fn refused(context: &str, message: String, hint: &str) -> Error {
    let report =
        ServerReport { severity: "FATAL".to_owned(), message, hint: Some(hint.to_owned()), ..ServerReport::default() };
    Error::Database { context: context.to_owned(), report: Box::new(report) }
}

/// Turn a refusal into an outage, for settings that have worked before.
fn as_outage(error: Error) -> Error {
    match error {
        Error::Database { .. } => Error::Refused(Box::new(error)),
        // For example a certificate file was removed, or the password callable fails: the caller's options are still
        // right.
        Error::Options { .. } => Error::lost("connect", error),
        other => other,
    }
}

fn sqlstate(error: &Error) -> Option<&str> {
    match error {
        Error::Database { report, .. } => Some(&report.sqlstate),
        _ => None,
    }
}

/// Whether an attempt with the other mode, encrypted or unencrypted, may succeed: the TLS handshake failed, or
/// `pg_hba.conf` rejected this mode. As in libpq, except that a wrong password is not tried again over an unencrypted
/// connection. A server that fails to authenticate itself (SCRAM) gets no second attempt, either: it may be an attacker
/// in the middle who wants an unencrypted connection.
fn may_be_about_encryption(error: &tokio_postgres::Error) -> bool {
    let is_handshake = error.to_string() == HANDSHAKE_FAILED && !is_io(error);
    is_not_authorized(error) || is_handshake || tls::find_cause(error).is_some()
}

fn is_not_authorized(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|code| code.code() == NOT_AUTHORIZED)
}

fn is_io(error: &tokio_postgres::Error) -> bool {
    std::error::Error::source(error).is_some_and(<dyn std::error::Error>::is::<io::Error>)
}

/// One error for all failed attempts, each of which names its host.
fn combine(mut failures: Vec<Error>) -> Error {
    if failures.len() == 1 {
        return failures.remove(0);
    }
    let reasons: Vec<String> = failures.iter().map(ToString::to_string).collect();
    let reasons = reasons.join("; ");
    if failures.iter().all(|error| sqlstate(error) == Some(READ_ONLY)) {
        return Error::refused(READ_ONLY, "connect", format!("none of the servers accepts writes: {reasons}"));
    }
    Error::lost("connect to any server", reasons)
}

/// Run a statement on a connection that nobody else polls yet.
async fn ask(
    client: &Client,
    connection: &mut Connection,
    sql: &str,
    context: &str,
) -> Result<Vec<SimpleQueryMessage>> {
    let mut query = pin!(client.simple_query(sql));
    let answer = poll_fn(|cx| {
        // The first poll sends the request; the answer arrives while the connection is polled.
        if let Poll::Ready(answer) = query.as_mut().poll(cx) {
            return Poll::Ready(answer);
        }
        loop {
            match connection.poll_message(cx) {
                Poll::Ready(Some(Ok(_))) => {} // notices; there is no LISTEN yet
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(None) | Poll::Pending => return query.as_mut().poll(cx),
            }
        }
    });
    answer.await.map_err(|error| Error::from_postgres(context, &error, false))
}

/// Reject a standby at connect, with an error that names it, instead of at the first LISTEN. The driver's own check is
/// not used: its error cannot be distinguished from others, and it does not distinguish a standby from a read-only
/// role.
async fn check_writable(client: &Client, connection: &mut Connection, host: &Host, context: &str) -> Result<()> {
    const SQL: &str = "SELECT pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('transaction_read_only')";
    let messages = ask(client, connection, SQL, context).await?;
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some((row.get(0), row.get(1))),
        _ => None,
    });
    match row {
        Some((Some("t"), _)) => Err(Error::refused(
            READ_ONLY,
            context,
            format!("{host} is a hot standby: LISTEN/NOTIFY need the primary; connect to it, or name several hosts"),
        )),
        Some((_, Some("on"))) => Err(Error::refused(
            READ_ONLY,
            context,
            format!("{host} gives read-only sessions (default_transaction_read_only is on): a writable one is needed"),
        )),
        _ => Ok(()),
    }
}
