//! The keywords of a connection string.

/// Looks up an environment variable; [`process_env`](super::process_env) outside tests.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Keywords and their values.
pub(super) type Pairs = Vec<(String, String)>;

/// Every supported keyword, with its environment variable.
pub(super) const KEYWORDS: &[(&str, &str)] = &[
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

/// Keywords of libpq for features that the driver lacks, each with its environment variable, the values that do not
/// request the feature (empty list: any value), and what to do instead.
pub(super) const UNSUPPORTED: &[(&str, &str, &[&str], &str)] = &[
    ("gssencmode", "PGGSSENCMODE", &["disable", "prefer"], "GSSAPI is not supported; use sslmode"),
    ("gssdelegation", "PGGSSDELEGATION", &["0"], "GSSAPI is not supported"),
    // Only a name, without effect unless the server requests GSSAPI, which is an error of its own.
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
