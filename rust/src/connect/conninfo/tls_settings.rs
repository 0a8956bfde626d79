//! The settings of the TLS keywords.

use super::values::Values;
use crate::error::{Error, Result};
use std::fmt;
use std::path::PathBuf;

/// `sslmode`, as in libpq.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SslMode {
    /// Never TLS.
    Disable,
    /// TLS only if the server rejects an unencrypted connection.
    Allow,
    /// TLS if the server supports it.
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

/// A file that is either named by the user, and must exist then, or optional at its default location.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TlsFile {
    pub(crate) path: PathBuf,
    pub(crate) is_explicit: bool,
}

impl TlsFile {
    fn read(values: &Values, keyword: &str, default: &str) -> Option<Self> {
        match values.path(keyword) {
            Some(path) => Some(Self { path, is_explicit: true }),
            None => values.at_home(".postgresql").map(|dir| Self { path: dir.join(default), is_explicit: false }),
        }
    }
}

/// `sslrootcert`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RootCert {
    System,
    File(Option<TlsFile>),
}

/// TLS protocol versions that rustls supports.
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

impl TlsSettings {
    /// Read all TLS keywords, and reject combinations that protect less than they seem to.
    pub(super) fn read(values: &Values) -> Result<Self> {
        let root = match values.get("sslrootcert") {
            Some("system") => RootCert::System,
            _ => RootCert::File(TlsFile::read(values, "sslrootcert", "root.crt")),
        };
        // Anybody can get a valid certificate from a public CA, so the host name must be checked.
        let default_mode = if root == RootCert::System { SslMode::VerifyFull } else { SslMode::Prefer };
        let mode = values.choice("sslmode", SSL_MODES)?.unwrap_or(default_mode);
        if root == RootCert::System && mode < SslMode::VerifyFull {
            let reason = "too weak for sslrootcert=system; use verify-full";
            return Err(Error::options("sslmode", mode.to_string(), reason));
        }
        let is_direct = values.choice("sslnegotiation", &[("postgres", false), ("direct", true)])?.unwrap_or(false);
        if is_direct && mode < SslMode::Require {
            let reason = "too weak for sslnegotiation=direct; use require, verify-ca or verify-full";
            return Err(Error::options("sslmode", mode.to_string(), reason));
        }
        // rustls supports TLS 1.2 and later: an older lower bound is always met, an older upper bound never.
        let min_version = values.choice(
            "ssl_min_protocol_version",
            &[
                ("TLSv1", TlsVersion::V12),
                ("TLSv1.1", TlsVersion::V12),
                ("TLSv1.2", TlsVersion::V12),
                ("TLSv1.3", TlsVersion::V13),
            ],
        )?;
        let max_version =
            values.choice("ssl_max_protocol_version", &[("TLSv1.2", TlsVersion::V12), ("TLSv1.3", TlsVersion::V13)])?;
        let (min_version, max_version) =
            (min_version.unwrap_or(TlsVersion::V12), max_version.unwrap_or(TlsVersion::V13));
        if min_version > max_version {
            let value = values.get("ssl_max_protocol_version").unwrap_or_default();
            return Err(Error::options("ssl_max_protocol_version", value, "is below ssl_min_protocol_version"));
        }
        Ok(Self {
            mode,
            is_direct,
            has_sni: values.choice("sslsni", &[("0", false), ("1", true)])?.unwrap_or(true),
            root,
            cert: TlsFile::read(values, "sslcert", "postgresql.crt"),
            key: TlsFile::read(values, "sslkey", "postgresql.key"),
            min_version,
            max_version,
        })
    }
}
