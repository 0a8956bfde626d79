//! Establish one connection to a server that accepts writes, trying every host and address.

use crate::conninfo::{Conninfo, Host, SslMode};
use crate::error::{Error, Result, ServerReport};
use crate::tls;
use rand::seq::SliceRandom;
use std::fmt::{self, Write as _};
use std::future::{Future, poll_fn};
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use tokio::net::lookup_host;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_postgres::config::{SslMode as DriverSslMode, SslNegotiation};
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Client, Config, SimpleQueryMessage, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

/// Returns the password for one connection, for tokens that expire. Called on a blocking thread at every connect;
/// overrides every other source.
pub type PasswordSource = Arc<dyn Fn() -> Result<String, Error> + Send + Sync>;

/// The driver's half that must be polled; one type for TCP, TLS and Unix sockets.
pub type Connection = tokio_postgres::Connection<Socket, <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream>;

/// `invalid_authorization_specification`: what `pg_hba.conf` refuses, for example for lack of encryption.
const NOT_AUTHORIZED: &str = "28000";
const WRONG_PASSWORD: &str = "28P01";
/// What the driver prints for a TLS handshake that failed.
const HANDSHAKE_FAILED: &str = "error performing TLS handshake";
/// `read_only_sql_transaction`: what a write on a standby reports.
const READ_ONLY: &str = "25006";

/// An open session.
pub struct Link {
    /// Sends statements; they progress only while `connection` is polled.
    pub client: Client,
    /// To be polled by the owner: `poll_message` for notifications, or awaited in a task of its own.
    pub connection: Connection,
    /// Which of the hosts answered, for example `db1:5432`.
    pub host: String,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("host", &self.host).finish_non_exhaustive()
    }
}

/// Connects, any number of times, as one [`Conninfo`] says.
#[derive(Clone)]
pub struct Connector {
    conninfo: Arc<Conninfo>,
    password: Option<PasswordSource>,
    /// The start-up parameter `options`.
    options: String,
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { conninfo, password: _, options } = self;
        f.debug_struct("Connector").field("conninfo", conninfo).field("options", options).finish_non_exhaustive()
    }
}

/// What is read anew for every connect, because passwords and certificates are renewed while we run.
struct Prepared {
    tls: MakeRustlsConnect,
    credentials: Vec<Credential>,
}

/// The password for one host and, for error messages, where it is from or why there is none.
#[derive(Default)]
struct Credential {
    password: Option<String>,
    note: Option<String>,
}

impl Connector {
    /// Whether both connect alike. Functions that give a password are alike when they are the same.
    pub fn is_same(&self, other: &Self) -> bool {
        let is_same_password = match (&self.password, &other.password) {
            (None, None) => true,
            (Some(one), Some(two)) => Arc::ptr_eq(one, two),
            _ => false,
        };
        is_same_password && self.conninfo == other.conninfo && self.options == other.options
    }

    /// `session_options` are settings such as `statement_timeout`, sent at start-up as `-c name=value`. Poolers
    /// refuse what they do not know, so pass none unless the user asked for it.
    pub fn new(
        conninfo: Conninfo,
        password: Option<PasswordSource>,
        session_options: Vec<(String, String)>,
    ) -> Result<Self> {
        let mut options = conninfo.options.clone().unwrap_or_default();
        for (name, value) in session_options {
            let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.');
            if name.is_empty() || !name.chars().all(is_name) {
                return Err(Error::options("session option", name, "is not the name of a PostgreSQL setting"));
            }
            if value.contains('\0') {
                return Err(Error::options(name, "", "contains a NUL character"));
            }
            // The server splits at white space and takes a backslash as the escape.
            let mut escaped = String::with_capacity(value.len());
            for c in value.chars() {
                if c == '\\' || c.is_ascii_whitespace() || c == '\x0b' {
                    escaped.push('\\');
                }
                escaped.push(c);
            }
            let space = if options.is_empty() { "" } else { " " };
            let _ = write!(options, "{space}-c {name}={escaped}"); // writing to a String cannot fail
        }
        Ok(Self { conninfo: Arc::new(conninfo), password, options })
    }

    /// The configuration it connects with.
    pub fn conninfo(&self) -> &Conninfo {
        &self.conninfo
    }

    /// Open a session on the first server that accepts writes.
    ///
    /// Names are resolved anew at every call. As in libpq an error that another host would most likely report,
    /// too (password, database, certificate), ends the attempt; unreachable hosts and standbys are passed over.
    /// `connect_timeout` bounds each look-up and, per address, everything from TCP to the first answer.
    pub async fn connect(&self) -> Result<Link> {
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
                let attempt = self.attempt(host, address, credential, &prepared.tls, &context);
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
        let Some(limit) = self.conninfo.connect_timeout else { return work.await };
        match timeout(limit, work).await {
            Ok(result) => result,
            Err(_) => Err(Error::Timeout { context, seconds: limit.as_secs_f64().into() }),
        }
    }

    /// Password and files, on a blocking thread: the callable is the user's and may take its time.
    async fn prepare(&self) -> Result<Prepared> {
        let (conninfo, source) = (self.conninfo.clone(), self.password.clone());
        let work = move || {
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

    /// Addresses to try; `None` for a Unix socket.
    async fn resolve(&self, host: &Host) -> Result<Vec<Option<IpAddr>>> {
        if host.socket_dir().is_some() {
            return Ok(vec![None]);
        }
        if let Some(addr) = host.addr {
            return Ok(vec![Some(addr)]);
        }
        let lost =
            |reason: String| Error::ConnectionLost { context: format!("look {host} up"), reason, may_be_sent: false };
        let found = lookup_host((host.name.as_str(), host.port)).await.map_err(|error| lost(error.to_string()))?;
        let mut addresses: Vec<_> = found.map(|address| Some(address.ip())).collect();
        if addresses.is_empty() {
            return Err(lost("the name has no address".to_owned()));
        }
        if self.conninfo.shuffles_hosts {
            addresses.shuffle(&mut rand::rng());
        }
        Ok(addresses)
    }

    /// One address, with libpq's second try for `allow` and `prefer`.
    async fn attempt(
        &self,
        host: &Host,
        address: Option<IpAddr>,
        credential: &Credential,
        tls: &MakeRustlsConnect,
        context: &str,
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
        let mut opened = open(first).await;
        if let (Err(error), Some(second)) = (&opened, second)
            && may_be_about_encryption(error)
        {
            let again = open(second).await;
            // Refused both ways: the first answer says more, it is about the preferred way.
            if !again.as_ref().is_err_and(is_not_authorized) {
                opened = again;
            }
        }
        let (client, mut connection) = opened.map_err(|error| self.translate(&error, context, credential))?;
        check_writable(&client, &mut connection, host, context).await?;
        Ok(Link { client, connection, host: host.to_string() })
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
        if !self.options.is_empty() {
            config.options(&self.options);
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

/// An error that waiting does not cure and that has no SQLSTATE, because it is not the server's.
fn refused(context: &str, message: String, hint: &str) -> Error {
    let report =
        ServerReport { severity: "FATAL".to_owned(), message, hint: Some(hint.to_owned()), ..ServerReport::default() };
    Error::Database { context: context.to_owned(), report: Box::new(report) }
}

fn sqlstate(error: &Error) -> Option<&str> {
    match error {
        Error::Database { report, .. } => Some(&report.sqlstate),
        _ => None,
    }
}

/// Whether the other way, encrypted or not, may succeed where this one failed: the handshake did, or the server does not
/// let us in this way. As in libpq, but for a wrong password, which that repeats in clear text. A server that could not
/// prove who it is gets no second chance: it may be somebody in between, who waits for just that.
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
        return read_only("connect".to_owned(), format!("none of the servers accepts writes: {reasons}"));
    }
    Error::ConnectionLost { context: "connect to any server".to_owned(), reason: reasons, may_be_sent: false }
}

fn read_only(context: String, message: String) -> Error {
    let report = ServerReport {
        sqlstate: READ_ONLY.to_owned(),
        severity: "ERROR".to_owned(),
        message,
        ..ServerReport::default()
    };
    Error::Database { context, report: Box::new(report) }
}

/// Refuse a standby here, by name, instead of at the first LISTEN. Asked in our own words: the driver's check cannot
/// be told from other failures, and does not say whether it met a standby or a read-only role.
async fn check_writable(client: &Client, connection: &mut Connection, host: &Host, context: &str) -> Result<()> {
    const SQL: &str = "SELECT pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('transaction_read_only')";
    let mut query = pin!(client.simple_query(SQL));
    let answer = poll_fn(|cx| {
        // The request goes out with the first poll, the answer comes in while the connection is polled.
        if let Poll::Ready(answer) = query.as_mut().poll(cx) {
            return Poll::Ready(answer);
        }
        loop {
            match connection.poll_message(cx) {
                Poll::Ready(Some(Ok(_))) => {} // notices; nothing is listened for yet
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(None) | Poll::Pending => return query.as_mut().poll(cx),
            }
        }
    });
    let messages = answer.await.map_err(|error| Error::from_postgres(context, &error, false))?;
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some((row.get(0), row.get(1))),
        _ => None,
    });
    match row {
        Some((Some("t"), _)) => Err(read_only(
            context.to_owned(),
            format!("{host} is a hot standby: LISTEN/NOTIFY need the primary; connect to it, or name several hosts"),
        )),
        Some((_, Some("on"))) => Err(read_only(
            context.to_owned(),
            format!("{host} gives read-only sessions (default_transaction_read_only is on): a writable one is needed"),
        )),
        _ => Ok(()),
    }
}
