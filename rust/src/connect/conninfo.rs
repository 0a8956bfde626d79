//! Connection settings, merged and checked: a libpq connection string, service file, environment and defaults.
//!
//! Precedence is libpq's: connection string, service file, environment, default. The defaults that differ from libpq's
//! are listed in [`defaults`]; they suit a process that keeps its connections open for months and mostly listens.

pub mod defaults;
mod files;
mod host;
mod keywords;
mod syntax;
#[cfg(test)]
mod tests;
mod tls_settings;
mod values;

pub(crate) use files::Passfile;
pub use host::Host;
pub use keywords::Env;
pub use tls_settings::SslMode;
pub(crate) use tls_settings::{RootCert, TlsFile, TlsSettings, TlsVersion};
use values::Values;

use crate::error::{Error, Result};
use std::fmt::{self, Write as _};
use std::path::PathBuf;
use std::time::Duration;
use tokio_postgres::config::ChannelBinding;

/// The environment of this process, with libpq's fallback for an unset `HOME`.
pub fn process_env(name: &str) -> Option<String> {
    std::env::var(name).ok().or_else(|| {
        (name == "HOME").then(std::env::home_dir).flatten().and_then(|home| home.into_os_string().into_string().ok())
    })
}

/// A value that is never shown when formatted.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(pub(crate) String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// TCP keepalive; a `None` field keeps the system's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Keepalives {
    pub(crate) idle: Option<Duration>,
    pub(crate) interval: Option<Duration>,
    pub(crate) count: Option<u32>,
}

impl Keepalives {
    fn read(values: &Values) -> Result<Option<Self>> {
        if values.integer("keepalives")? == Some(0) {
            return Ok(None);
        }
        let seconds = |keyword, default| {
            Ok::<_, Error>(match values.integer(keyword)? {
                None => Some(default),
                Some(seconds) => positive(seconds).map(Duration::from_secs),
            })
        };
        Ok(Some(Self {
            idle: seconds("keepalives_idle", defaults::KEEPALIVES_IDLE)?,
            interval: seconds("keepalives_interval", defaults::KEEPALIVES_INTERVAL)?,
            count: match values.integer("keepalives_count")? {
                None => Some(defaults::KEEPALIVES_COUNT),
                Some(count) => u32::try_from(count).ok().filter(|count| *count > 0),
            },
        }))
    }
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
    pub(crate) connect_timeout: Duration,
    pub(crate) keepalives: Option<Keepalives>,
    pub(crate) tcp_user_timeout: Option<Duration>,
    pub(crate) shuffles_hosts: bool,
    pub(crate) channel_binding: ChannelBinding,
    pub(crate) tls: TlsSettings,
}

impl Conninfo {
    /// Parse a connection string, `key=value` or URI. Parameters that it does not set come from the service file, the
    /// environment or the defaults. `""` is valid.
    pub fn parse(dsn: &str, env: Env) -> Result<Self> {
        let values = Values::gather(dsn, env)?;
        let user = match values.get("user") {
            Some(user) => user.to_owned(),
            None => whoami::username().map_err(|error| {
                Error::options("user", "", format!("none given and the system's user name is unknown: {error}"))
            })?,
        };
        check_session_attrs(&values)?;
        check_encoding(&values)?;
        let (hosts, tls) = (Host::list(&values)?, TlsSettings::read(&values)?);
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
                None => defaults::CONNECT_TIMEOUT,
                Some(seconds) => positive(seconds).map_or(defaults::LONGEST_CONNECT_TIMEOUT, Duration::from_secs),
            },
            keepalives: Keepalives::read(&values)?,
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

    /// Look up the password of one server. The password file is read at every connect, so that a changed password is
    /// used.
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

/// Check `target_session_attrs`. Whatever its value, a server that accepts writes is required, which is checked after
/// connecting.
fn check_session_attrs(values: &Values) -> Result<()> {
    const ATTRS: &[(&str, bool)] = &[
        ("any", true),
        ("read-write", true),
        ("primary", true),
        ("read-only", false),
        ("standby", false),
        ("prefer-standby", false),
    ];
    match values.choice("target_session_attrs", ATTRS)? {
        Some(false) => Err(Error::options(
            "target_session_attrs",
            values.get("target_session_attrs").unwrap_or_default(),
            "LISTEN/NOTIFY need the primary; use read-write or primary",
        )),
        _ => Ok(()),
    }
}

fn check_encoding(values: &Values) -> Result<()> {
    let Some(value) = values.get("client_encoding") else { return Ok(()) };
    // Compared as PostgreSQL does: letters and digits only, without case.
    let name: String = value.chars().filter(char::is_ascii_alphanumeric).collect();
    if matches!(name.to_ascii_lowercase().as_str(), "auto" | "utf8" | "unicode") {
        return Ok(());
    }
    Err(Error::options("client_encoding", value, "must be utf8 or auto; text always travels as UTF-8"))
}
