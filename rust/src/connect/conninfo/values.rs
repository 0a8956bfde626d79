//! What was given for each keyword, from the connection string, the service file and the environment.

use super::{Env, files, syntax};
use crate::error::{Error, Result};
use std::collections::HashMap;
use std::path::PathBuf;

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

/// Whether libpq has such a keyword, supported here or not.
pub(super) fn is_keyword(word: &str) -> bool {
    KEYWORDS.iter().any(|(keyword, _)| *keyword == word) || UNSUPPORTED.iter().any(|(keyword, ..)| *keyword == word)
}

/// The merged values by keyword. An empty one counts as not given, but keeps the environment from supplying it.
pub(super) struct Values {
    by_keyword: HashMap<String, String>,
    home: Option<PathBuf>,
}

impl Values {
    /// Merge by libpq's precedence, and refuse keywords that nobody knows or that the driver cannot heed.
    pub(super) fn gather(dsn: &str, env: Env) -> Result<Self> {
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

    /// What was given, unless it is empty.
    pub(super) fn get(&self, keyword: &str) -> Option<&str> {
        self.by_keyword.get(keyword).map(String::as_str).filter(|value| !value.is_empty())
    }

    pub(super) fn path(&self, keyword: &str) -> Option<PathBuf> {
        self.get(keyword).map(PathBuf::from)
    }

    /// A file in the home directory, where libpq has its defaults.
    pub(super) fn at_home(&self, file: &str) -> Option<PathBuf> {
        self.home.as_ref().map(|home| home.join(file))
    }

    /// One of the words that are allowed.
    pub(super) fn choice<T: Copy>(&self, keyword: &str, allowed: &[(&str, T)]) -> Result<Option<T>> {
        let Some(value) = self.get(keyword) else { return Ok(None) };
        if let Some((_, choice)) = allowed.iter().find(|(name, _)| *name == value) {
            return Ok(Some(*choice));
        }
        let names: Vec<&str> = allowed.iter().map(|(name, _)| *name).collect();
        Err(Error::options(keyword, value, format!("must be one of {}", names.join(", "))))
    }

    pub(super) fn integer(&self, keyword: &str) -> Result<Option<i32>> {
        let Some(value) = self.get(keyword) else { return Ok(None) };
        match value.trim().parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(Error::options(keyword, value, "must be an integer")),
        }
    }
}
