//! The servers to try, from `host`, `hostaddr` and `port`.

use super::defaults;
use super::values::Values;
use crate::error::{Error, Result};
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// One server to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Name or address; a directory when it begins with `/`; empty for the default socket directory.
    pub name: String,
    /// Address to use instead of looking the name up.
    pub addr: Option<IpAddr>,
    /// Port; for a Unix socket, the number in its file name.
    pub port: u16,
}

impl Host {
    /// Combine `host`, `hostaddr` and `port`, each a comma-separated list.
    pub(super) fn list(values: &Values) -> Result<Vec<Self>> {
        let list = |keyword| values.get(keyword).map(|value| value.split(',').collect::<Vec<_>>());
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
                Ok(Self { name: name.to_owned(), addr, port: parse_port(port)? })
            })
            .collect()
    }

    /// Directory of the Unix socket, or `None` for TCP. The default directory is searched at every call, because the
    /// server may not have been running before.
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

    /// Name to look up and to verify the certificate against, or the address if there is no name.
    pub(crate) fn server_name(&self) -> String {
        match self.addr {
            Some(addr) if self.name.is_empty() || self.name.starts_with('/') => addr.to_string(),
            _ if self.name.is_empty() => "localhost".to_owned(),
            _ => self.name.clone(),
        }
    }

    /// The value to compare with the first field of the password file.
    pub(super) fn passfile_name(&self) -> String {
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
