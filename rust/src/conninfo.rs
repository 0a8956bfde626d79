//! Where and how to connect: a libpq connection string, service file, environment and defaults, merged and checked.
//!
//! Precedence is libpq's: connection string, service file, environment, default. What differs from libpq, because
//! this process keeps its connections open for months and listens more than it speaks, is listed at [`defaults`].

mod files;
mod syntax;
#[cfg(test)]
mod tests;

pub(crate) use files::Passfile;

use crate::error::{Error, Result};
use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio_postgres::config::ChannelBinding;

/// Looks an environment variable up; [`process_env`] outside tests.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

type Pairs = Vec<(String, String)>;

/// Defaults that differ from libpq's.
pub mod defaults {
    use std::time::Duration;

    /// libpq waits for ever; a black-holed host must not keep the others from being tried.
    pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
    /// The system's (and the driver's) default is 2 h. A listener only reads, so without probes it would not notice
    /// for that long that a firewall or a failover took the peer away. 30 s also keeps NAT entries alive.
    pub const KEEPALIVES_IDLE: Duration = Duration::from_secs(30);
    /// With three probes: a dead peer is noticed within a minute, one lost packet does no harm.
    pub const KEEPALIVES_INTERVAL: Duration = Duration::from_secs(10);
    /// See [`KEEPALIVES_INTERVAL`].
    pub const KEEPALIVES_COUNT: u32 = 3;
    /// Keepalive does not run while sent data is unacknowledged; without this limit the system retransmits for
    /// about 15 minutes. Equal to interval times count, so that both ways take equally long.
    pub const TCP_USER_TIMEOUT: Duration = Duration::from_secs(30);
    /// Seen in `pg_stat_activity`.
    pub const APPLICATION_NAME: &str = "socketio-postgres";
    /// Tried in this order when no host is given: the choice of Debian and that of upstream.
    pub const SOCKET_DIRS: [&str; 2] = ["/var/run/postgresql", "/tmp"];
}

/// Every keyword that is understood, with the environment variable that supplies it.
const KEYWORDS: &[(&str, &str)] = &[
    ("host", "PGHOST"),
    ("hostaddr", "PGHOSTADDR"),
    ("port", "PGPORT"),
    ("dbname", "PGDATABASE"),
    ("user", "PGUSER"),
    ("password", "PGPASSWORD"),
    ("passfile", "PGPASSFILE"),
    ("service", "PGSERVICE"),
    ("servicefile", "PGSERVICEFILE"),
    ("connect_timeout", "PGCONNECT_TIMEOUT"),
    ("application_name", "PGAPPNAME"),
    ("fallback_application_name", ""),
    ("options", "PGOPTIONS"),
    ("client_encoding", "PGCLIENTENCODING"),
    ("keepalives", ""),
    ("keepalives_idle", ""),
    ("keepalives_interval", ""),
    ("keepalives_count", ""),
    ("tcp_user_timeout", ""),
    ("sslmode", "PGSSLMODE"),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("sslcert", "PGSSLCERT"),
    ("sslkey", "PGSSLKEY"),
    ("sslnegotiation", "PGSSLNEGOTIATION"),
    ("sslsni", "PGSSLSNI"),
    ("ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION"),
    ("ssl_max_protocol_version", "PGSSLMAXPROTOCOLVERSION"),
    ("channel_binding", "PGCHANNELBINDING"),
    ("target_session_attrs", "PGTARGETSESSIONATTRS"),
    ("load_balance_hosts", "PGLOADBALANCEHOSTS"),
];

/// Keywords of libpq for what the driver cannot do: environment variable, the values that ask for nothing (empty
/// list: any value), and what to do instead.
const UNSUPPORTED: &[(&str, &str, &[&str], &str)] = &[
    ("gssencmode", "PGGSSENCMODE", &["disable", "prefer"], "GSSAPI is not supported; use sslmode"),
    ("gssdelegation", "PGGSSDELEGATION", &["0"], "GSSAPI is not supported"),
    // Names only, without effect unless the server asks for GSSAPI, which is then an error of its own.
    ("krbsrvname", "PGKRBSRVNAME", &[], ""),
    ("gsslib", "PGGSSLIB", &[], ""),
    ("sslcompression", "PGSSLCOMPRESSION", &[], ""), // without effect in libpq, too
    ("sslpassword", "", &[""], "encrypted keys are not supported; decrypt the key and protect the file by its rights"),
    ("sslcrl", "PGSSLCRL", &[""], "certificate revocation lists are not supported"),
    ("sslcrldir", "PGSSLCRLDIR", &[""], "certificate revocation lists are not supported"),
    ("sslcertmode", "PGSSLCERTMODE", &["allow"], "only allow is supported; leave sslcert out to send no certificate"),
    ("sslkeylogfile", "", &[""], "logging TLS secrets is not supported"),
    ("requirepeer", "PGREQUIREPEER", &[""], "checking the owner of the socket is not supported"),
    ("require_auth", "PGREQUIREAUTH", &[""], "not supported; channel_binding=require enforces SCRAM over TLS"),
    ("min_protocol_version", "PGMINPROTOCOLVERSION", &["3.0"], "the driver speaks protocol 3.0"),
    ("max_protocol_version", "PGMAXPROTOCOLVERSION", &["3.0", "3.2", "latest"], "the driver speaks protocol 3.0"),
    ("replication", "", &["false", "off", "no", "0"], "replication connections are not supported"),
    ("scram_client_key", "", &[""], "not supported; give the password"),
    ("scram_server_key", "", &[""], "not supported; give the password"),
    ("oauth_issuer", "", &[""], "OAuth is not supported; give the token as a password callable"),
    ("oauth_client_id", "", &[""], "OAuth is not supported; give the token as a password callable"),
    ("oauth_client_secret", "", &[""], "OAuth is not supported; give the token as a password callable"),
    ("oauth_scope", "", &[""], "OAuth is not supported; give the token as a password callable"),
];

/// The environment of this process, with libpq's fallback for an unset `HOME`.
pub fn process_env(name: &str) -> Option<String> {
    std::env::var(name).ok().or_else(|| {
        (name == "HOME").then(std::env::home_dir).flatten().and_then(|home| home.into_os_string().into_string().ok())
    })
}

fn is_keyword(word: &str) -> bool {
    KEYWORDS.iter().any(|(keyword, _)| *keyword == word) || UNSUPPORTED.iter().any(|(keyword, ..)| *keyword == word)
}

/// A value that no formatting shows.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(pub(crate) String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// One server to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Name or address; a directory when it begins with `/`; empty for the default socket directory.
    pub name: String,
    /// Address to use instead of looking the name up.
    pub addr: Option<IpAddr>,
    /// Port, also of a Unix socket.
    pub port: u16,
}

impl Host {
    /// Directory of the Unix socket, if this is one. The default one is looked for at every call, because the
    /// server may not have been up before.
    pub fn socket_dir(&self) -> Option<PathBuf> {
        if self.addr.is_some() || !cfg!(unix) {
            return None;
        }
        if self.name.is_empty() {
            let [first, second] = defaults::SOCKET_DIRS;
            let has_socket = |dir: &str| Path::new(dir).join(format!(".s.PGSQL.{}", self.port)).exists();
            return Some(PathBuf::from(if !has_socket(first) && has_socket(second) { second } else { first }));
        }
        self.name.starts_with('/').then(|| PathBuf::from(&self.name))
    }

    /// Name to look up and to verify the certificate against; the address if there is no name.
    pub(crate) fn server_name(&self) -> String {
        match self.addr {
            Some(addr) if self.name.is_empty() || self.name.starts_with('/') => addr.to_string(),
            _ if self.name.is_empty() => "localhost".to_owned(),
            _ => self.name.clone(),
        }
    }

    /// What the first field of the password file is compared with.
    fn passfile_name(&self) -> String {
        match self.addr {
            Some(addr) if self.name.is_empty() => addr.to_string(),
            _ if self.name.is_empty() || defaults::SOCKET_DIRS.contains(&self.name.as_str()) => "localhost".to_owned(),
            _ => self.name.clone(),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.socket_dir() {
            Some(dir) => dir.to_string_lossy().into_owned(),
            None => self.server_name(),
        };
        if name.contains(':') { write!(f, "[{name}]:{}", self.port) } else { write!(f, "{name}:{}", self.port) }
    }
}

/// How far a connection is to be protected, as in libpq.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SslMode {
    /// Never TLS.
    Disable,
    /// TLS only if the server refuses without.
    Allow,
    /// TLS if the server has it.
    Prefer,
    /// TLS; the chain is verified if a root certificate file exists.
    Require,
    /// TLS with a verified chain.
    VerifyCa,
    /// TLS with a verified chain and host name.
    VerifyFull,
}

const SSL_MODES: &[(&str, SslMode)] = &[
    ("disable", SslMode::Disable),
    ("allow", SslMode::Allow),
    ("prefer", SslMode::Prefer),
    ("require", SslMode::Require),
    ("verify-ca", SslMode::VerifyCa),
    ("verify-full", SslMode::VerifyFull),
];

impl fmt::Display for SslMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(SSL_MODES.iter().find(|(_, mode)| mode == self).map_or("", |(name, _)| name))
    }
}

/// A file that is either named by the user, and then must exist, or looked for at its default place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TlsFile {
    pub(crate) path: PathBuf,
    pub(crate) is_explicit: bool,
}

/// `sslrootcert`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RootCert {
    System,
    File(Option<TlsFile>),
}

/// TLS protocol versions that rustls has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TlsVersion {
    V12,
    V13,
}

/// Everything about TLS; see `tls.rs` for its use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TlsSettings {
    pub(crate) mode: SslMode,
    pub(crate) is_direct: bool,
    pub(crate) has_sni: bool,
    pub(crate) root: RootCert,
    pub(crate) cert: Option<TlsFile>,
    pub(crate) key: Option<TlsFile>,
    pub(crate) min_version: TlsVersion,
    pub(crate) max_version: TlsVersion,
}

/// TCP keepalive; `None` inside leaves the system's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Keepalives {
    pub(crate) idle: Option<Duration>,
    pub(crate) interval: Option<Duration>,
    pub(crate) count: Option<u32>,
}

/// A checked connection configuration. Neither `Debug` nor [`Conninfo::redacted`] shows the password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conninfo {
    hosts: Vec<Host>,
    user: String,
    dbname: String,
    pub(crate) password: Option<Secret>,
    passfile: Option<PathBuf>,
    pub(crate) application_name: String,
    pub(crate) options: Option<String>,
    pub(crate) connect_timeout: Option<Duration>,
    pub(crate) keepalives: Option<Keepalives>,
    pub(crate) tcp_user_timeout: Option<Duration>,
    pub(crate) shuffles_hosts: bool,
    pub(crate) channel_binding: ChannelBinding,
    pub(crate) tls: TlsSettings,
}

impl Conninfo {
    /// Read a connection string of either spelling; everything it leaves out comes from the service file, the
    /// environment or the defaults. `""` is valid.
    pub fn parse(dsn: &str, env: Env) -> Result<Self> {
        let values = Values::gather(dsn, env)?;
        let user = match values.get("user") {
            Some(user) => user.to_owned(),
            None => whoami::username().map_err(|error| {
                Error::options("user", "", format!("none given and the system's user name is unknown: {error}"))
            })?,
        };
        values.check_session_attrs()?;
        values.check_encoding()?;
        let (hosts, tls) = (values.hosts()?, values.tls()?);
        if tls.mode == SslMode::VerifyFull
            && hosts.iter().any(|host| host.addr.is_some() && (host.name.is_empty() || host.name.starts_with('/')))
        {
            return Err(Error::options("host", "", "sslmode=verify-full needs a host name beside hostaddr"));
        }
        Ok(Self {
            hosts,
            dbname: values.get("dbname").unwrap_or(&user).to_owned(),
            user,
            password: values.get("password").map(|password| Secret(password.to_owned())),
            passfile: values.path("passfile").or_else(|| values.at_home(".pgpass")),
            application_name: values
                .get("application_name")
                .or(values.get("fallback_application_name"))
                .unwrap_or(defaults::APPLICATION_NAME)
                .to_owned(),
            options: values.get("options").map(str::to_owned),
            connect_timeout: match values.integer("connect_timeout")? {
                None => Some(defaults::CONNECT_TIMEOUT),
                Some(seconds) => positive(seconds).map(Duration::from_secs), // 0 or less: for ever, as in libpq
            },
            keepalives: values.keepalives()?,
            tcp_user_timeout: match values.integer("tcp_user_timeout")? {
                None => Some(defaults::TCP_USER_TIMEOUT),
                Some(milliseconds) => positive(milliseconds).map(Duration::from_millis),
            },
            shuffles_hosts: values
                .choice("load_balance_hosts", &[("disable", false), ("random", true)])?
                .unwrap_or(false),
            channel_binding: values
                .choice(
                    "channel_binding",
                    &[
                        ("disable", ChannelBinding::Disable),
                        ("prefer", ChannelBinding::Prefer),
                        ("require", ChannelBinding::Require),
                    ],
                )?
                .unwrap_or(ChannelBinding::Prefer),
            tls,
        })
    }

    /// Servers in the order given.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// Role to connect as.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Database to connect to.
    pub fn dbname(&self) -> &str {
        &self.dbname
    }

    /// One line for logs: a URI without password and options.
    pub fn redacted(&self) -> String {
        let hosts: Vec<String> = self
            .hosts
            .iter()
            .map(|host| match host.socket_dir() {
                Some(dir) => format!("{}:{}", encode(&dir.to_string_lossy()), host.port),
                None => host.to_string(),
            })
            .collect();
        let (user, dbname) = (encode(&self.user), encode(&self.dbname));
        format!("postgresql://{user}@{}/{dbname}?sslmode={}", hosts.join(","), self.tls.mode)
    }

    /// Look the password of one server up. Read at every connect, so that a rotated password is found.
    pub(crate) fn read_passfile(&self, host: &Host) -> Passfile {
        let Some(file) = &self.passfile else { return Passfile::default() };
        files::read_passfile(file, [&host.passfile_name(), &host.port.to_string(), &self.dbname, &self.user])
    }
}

fn positive(number: i32) -> Option<u64> {
    u64::try_from(number).ok().filter(|number| *number > 0)
}

fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}"); // writing to a String cannot fail
        }
    }
    encoded
}

/// The merged values by keyword. An empty one counts as not given, but keeps the environment from supplying it.
struct Values {
    by_keyword: HashMap<String, String>,
    home: Option<PathBuf>,
}

impl Values {
    fn gather(dsn: &str, env: Env) -> Result<Self> {
        let mut by_keyword = HashMap::new();
        for (keyword, value) in syntax::parse(dsn)? {
            if !is_keyword(&keyword) {
                // The value is not shown: it may be a password behind a misspelt keyword.
                return Err(Error::options(keyword, "", "unknown connection parameter"));
            }
            by_keyword.insert(keyword, value);
        }
        let lookup = |keyword: &str, variable: &str| match by_keyword.get(keyword) {
            Some(value) => Some(value.clone()),
            None => env(variable),
        };
        if let Some(service) = lookup("service", "PGSERVICE").filter(|service| !service.is_empty()) {
            let file = lookup("servicefile", "PGSERVICEFILE").filter(|file| !file.is_empty());
            for (keyword, value) in files::read_service(&service, file.as_deref(), env)? {
                by_keyword.entry(keyword).or_insert(value);
            }
        }
        let unsupported = UNSUPPORTED.iter().map(|(keyword, variable, ..)| (keyword, variable));
        for (keyword, variable) in KEYWORDS.iter().map(|(keyword, variable)| (keyword, variable)).chain(unsupported) {
            if !variable.is_empty()
                && !by_keyword.contains_key(*keyword)
                && let Some(value) = env(variable)
            {
                by_keyword.insert((*keyword).to_owned(), value);
            }
        }
        let values = Self { by_keyword, home: env("HOME").map(PathBuf::from) };
        for (keyword, _, harmless, advice) in UNSUPPORTED {
            if let Some(value) = values.get(keyword)
                && !harmless.is_empty()
                && !harmless.contains(&value)
            {
                let is_secret = ["password", "secret", "scram"].iter().any(|word| keyword.contains(word));
                return Err(Error::options(*keyword, if is_secret { "" } else { value }, *advice));
            }
        }
        Ok(values)
    }

    fn get(&self, keyword: &str) -> Option<&str> {
        self.by_keyword.get(keyword).map(String::as_str).filter(|value| !value.is_empty())
    }

    fn path(&self, keyword: &str) -> Option<PathBuf> {
        self.get(keyword).map(PathBuf::from)
    }

    fn at_home(&self, file: &str) -> Option<PathBuf> {
        self.home.as_ref().map(|home| home.join(file))
    }

    fn choice<T: Copy>(&self, keyword: &str, allowed: &[(&str, T)]) -> Result<Option<T>> {
        let Some(value) = self.get(keyword) else { return Ok(None) };
        if let Some((_, choice)) = allowed.iter().find(|(name, _)| *name == value) {
            return Ok(Some(*choice));
        }
        let names: Vec<&str> = allowed.iter().map(|(name, _)| *name).collect();
        Err(Error::options(keyword, value, format!("must be one of {}", names.join(", "))))
    }

    fn integer(&self, keyword: &str) -> Result<Option<i32>> {
        let Some(value) = self.get(keyword) else { return Ok(None) };
        match value.trim().parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(Error::options(keyword, value, "must be an integer")),
        }
    }

    /// Combine `host`, `hostaddr` and `port`, each a comma-separated list.
    fn hosts(&self) -> Result<Vec<Host>> {
        let list = |keyword| self.get(keyword).map(|value| value.split(',').collect::<Vec<_>>());
        let (names, addrs) = (list("host"), list("hostaddr"));
        let count = addrs.as_ref().or(names.as_ref()).map_or(1, Vec::len);
        if let Some(names) = &names
            && names.len() != count
        {
            let reason = format!("{} host names do not match {count} hostaddr values", names.len());
            return Err(Error::options("hostaddr", "", reason));
        }
        let ports = list("port").unwrap_or_else(|| vec![""]);
        if ports.len() != 1 && ports.len() != count {
            let reason = format!("{} ports do not match {count} hosts; give one for all or one each", ports.len());
            return Err(Error::options("port", "", reason));
        }
        (0..count)
            .map(|i| {
                let name = names.as_ref().map_or("", |names| names[i]);
                if name.starts_with('@') {
                    return Err(Error::options("host", name, "abstract Unix sockets are not supported"));
                }
                if name.contains('@') && !name.starts_with('/') {
                    // Not shown: it is most likely the end of the password.
                    return Err(Error::options("host", "", "contains \"@\"; write \"@\" in a password as %40"));
                }
                let addr = match addrs.as_ref().map_or("", |addrs| addrs[i]) {
                    "" => None,
                    addr => Some(addr.parse().map_err(|_| Error::options("hostaddr", addr, "is not an IP address"))?),
                };
                let port = if ports.len() == 1 { ports[0] } else { ports[i] };
                Ok(Host { name: name.to_owned(), addr, port: parse_port(port)? })
            })
            .collect()
    }

    fn keepalives(&self) -> Result<Option<Keepalives>> {
        if self.integer("keepalives")? == Some(0) {
            return Ok(None);
        }
        let seconds = |keyword, default| {
            Ok::<_, Error>(match self.integer(keyword)? {
                None => Some(default),
                Some(seconds) => positive(seconds).map(Duration::from_secs),
            })
        };
        Ok(Some(Keepalives {
            idle: seconds("keepalives_idle", defaults::KEEPALIVES_IDLE)?,
            interval: seconds("keepalives_interval", defaults::KEEPALIVES_INTERVAL)?,
            count: match self.integer("keepalives_count")? {
                None => Some(defaults::KEEPALIVES_COUNT),
                Some(count) => u32::try_from(count).ok().filter(|count| *count > 0),
            },
        }))
    }

    /// We always need a server that accepts writes, which is checked after connecting whatever is written here.
    fn check_session_attrs(&self) -> Result<()> {
        const ATTRS: &[(&str, bool)] = &[
            ("any", true),
            ("read-write", true),
            ("primary", true),
            ("read-only", false),
            ("standby", false),
            ("prefer-standby", false),
        ];
        match self.choice("target_session_attrs", ATTRS)? {
            Some(false) => Err(Error::options(
                "target_session_attrs",
                self.get("target_session_attrs").unwrap_or_default(),
                "LISTEN/NOTIFY need the primary; use read-write or primary",
            )),
            _ => Ok(()),
        }
    }

    fn check_encoding(&self) -> Result<()> {
        let Some(value) = self.get("client_encoding") else { return Ok(()) };
        // Compared as PostgreSQL does: letters and digits only, without case.
        let name: String = value.chars().filter(char::is_ascii_alphanumeric).collect();
        if matches!(name.to_ascii_lowercase().as_str(), "auto" | "utf8" | "unicode") {
            return Ok(());
        }
        Err(Error::options("client_encoding", value, "must be utf8 or auto; text always travels as UTF-8"))
    }

    fn tls(&self) -> Result<TlsSettings> {
        let root = match self.get("sslrootcert") {
            Some("system") => RootCert::System,
            _ => RootCert::File(self.tls_file("sslrootcert", "root.crt")),
        };
        // With the public authorities anybody can have a valid certificate, so the name must be checked.
        let default_mode = if root == RootCert::System { SslMode::VerifyFull } else { SslMode::Prefer };
        let mode = self.choice("sslmode", SSL_MODES)?.unwrap_or(default_mode);
        if root == RootCert::System && mode < SslMode::VerifyFull {
            let reason = "too weak for sslrootcert=system; use verify-full";
            return Err(Error::options("sslmode", mode.to_string(), reason));
        }
        let is_direct = self.choice("sslnegotiation", &[("postgres", false), ("direct", true)])?.unwrap_or(false);
        if is_direct && mode < SslMode::Require {
            let reason = "too weak for sslnegotiation=direct; use require, verify-ca or verify-full";
            return Err(Error::options("sslmode", mode.to_string(), reason));
        }
        // rustls has nothing older than 1.2: an older lower bound is met, an older upper bound cannot be.
        let min_version = self.choice(
            "ssl_min_protocol_version",
            &[
                ("TLSv1", TlsVersion::V12),
                ("TLSv1.1", TlsVersion::V12),
                ("TLSv1.2", TlsVersion::V12),
                ("TLSv1.3", TlsVersion::V13),
            ],
        )?;
        let max_version =
            self.choice("ssl_max_protocol_version", &[("TLSv1.2", TlsVersion::V12), ("TLSv1.3", TlsVersion::V13)])?;
        let (min_version, max_version) =
            (min_version.unwrap_or(TlsVersion::V12), max_version.unwrap_or(TlsVersion::V13));
        if min_version > max_version {
            let value = self.get("ssl_max_protocol_version").unwrap_or_default();
            return Err(Error::options("ssl_max_protocol_version", value, "is below ssl_min_protocol_version"));
        }
        Ok(TlsSettings {
            mode,
            is_direct,
            has_sni: self.choice("sslsni", &[("0", false), ("1", true)])?.unwrap_or(true),
            root,
            cert: self.tls_file("sslcert", "postgresql.crt"),
            key: self.tls_file("sslkey", "postgresql.key"),
            min_version,
            max_version,
        })
    }

    fn tls_file(&self, keyword: &str, default: &str) -> Option<TlsFile> {
        match self.path(keyword) {
            Some(path) => Some(TlsFile { path, is_explicit: true }),
            None => self.at_home(".postgresql").map(|dir| TlsFile { path: dir.join(default), is_explicit: false }),
        }
    }
}

fn parse_port(text: &str) -> Result<u16> {
    if text.is_empty() {
        return Ok(5432);
    }
    match text.trim().parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => {
            // Text in the place of the port is most likely a password with an unescaped "/" or "@".
            let shown = if text.trim().bytes().all(|b| b.is_ascii_digit()) { text } else { "" };
            Err(Error::options(
                "port",
                shown,
                "must be a number from 1 to 65535 (write \"/\" and \"@\" in a password as %2F and %40)",
            ))
        }
    }
}
