#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

const NO_ENV: Env = &|_| None;

fn env_of<'a>(variables: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + 'a {
    move |name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
}

fn parse(dsn: &str) -> Result<Conninfo> {
    Conninfo::parse(dsn, NO_ENV)
}

/// A directory of its own per test, removed when it ends.
struct TempDir(PathBuf);

impl TempDir {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("sio-conninfo-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn write(&self, name: &str, text: &str, mode: u32) -> PathBuf {
        let file = self.0.join(name);
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        file
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Results of libpq 18's parser for connection strings, recorded with `psycopg.conninfo.conninfo_to_dict`.
const LIBPQ_ACCEPTS: &[(&str, &[(&str, &str)])] = &[
    ("", &[]),
    ("host=a port=1", &[("host", "a"), ("port", "1")]),
    (" host = a  port=  1 ", &[("host", "a"), ("port", "1")]),
    ("user='a b' password='it\\'s'", &[("user", "a b"), ("password", "it's")]),
    ("user=a\\ b password=x\\\\y", &[("user", "a b"), ("password", "x\\y")]),
    ("host=a host=b", &[("host", "b")]),
    ("user='' dbname=x", &[("user", ""), ("dbname", "x")]),
    ("user= dbname=x", &[("user", "dbname=x")]),
    ("options='-c a=b'", &[("options", "-c a=b")]),
    ("host=a'b", &[("host", "a'b")]),
    ("user='a'dbname=b", &[("user", "a"), ("dbname", "b")]),
    ("user=a\\", &[("user", "a")]),
    ("postgresql://", &[]),
    ("postgres://", &[]),
    ("postgresql://h", &[("host", "h")]),
    ("postgresql://h:1", &[("host", "h"), ("port", "1")]),
    ("postgresql://u@h", &[("user", "u"), ("host", "h")]),
    (
        "postgresql://u:p@h:1/d?sslmode=require",
        &[("user", "u"), ("password", "p"), ("dbname", "d"), ("host", "h"), ("port", "1"), ("sslmode", "require")],
    ),
    ("postgresql://h1:1,h2:2/d", &[("dbname", "d"), ("host", "h1,h2"), ("port", "1,2")]),
    ("postgresql://h1,h2:2/d", &[("dbname", "d"), ("host", "h1,h2"), ("port", ",2")]),
    ("postgresql://h1,h2", &[("host", "h1,h2"), ("port", ",")]),
    ("postgresql://[::1]:5433/d", &[("dbname", "d"), ("host", "::1"), ("port", "5433")]),
    ("postgresql://[::1]", &[("host", "::1")]),
    ("postgresql://[::1],[::2]:7/d", &[("dbname", "d"), ("host", "::1,::2"), ("port", ",7")]),
    ("postgresql://%2Fvar%2Frun/d", &[("dbname", "d"), ("host", "/var/run")]),
    ("postgresql:///d?host=/tmp", &[("dbname", "d"), ("host", "/tmp")]),
    ("postgresql://u:p%40ss@h", &[("user", "u"), ("password", "p@ss"), ("host", "h")]),
    ("postgresql://u:p@ss@h", &[("user", "u"), ("password", "p"), ("host", "ss@h")]),
    ("postgresql://h/d?ssl=true", &[("dbname", "d"), ("host", "h"), ("sslmode", "require")]),
    ("postgresql://h?user=x", &[("user", "x"), ("host", "h")]),
    ("postgresql://h?user=a@b", &[("user", "h?user=a"), ("host", "b")]),
    ("postgresql://h/d?host=x&port=9", &[("dbname", "d"), ("host", "x"), ("port", "9")]),
    ("postgresql://h/?", &[("host", "h")]),
    ("postgresql://h/d?", &[("dbname", "d"), ("host", "h")]),
    ("postgresql://h/d?user=a&", &[("user", "a"), ("dbname", "d"), ("host", "h")]),
    ("postgresql://h/a%20b", &[("dbname", "a b"), ("host", "h")]),
    ("postgresql:// h /d", &[("dbname", "d"), ("host", "h")]),
    ("postgresql://h/d?user= a ", &[("user", "a"), ("dbname", "d"), ("host", "h")]),
    ("postgresql://h/d?application_name=a+b", &[("dbname", "d"), ("host", "h"), ("application_name", "a+b")]),
    ("postgresql://h/a/b", &[("dbname", "a/b"), ("host", "h")]),
    ("postgresql://u:@h", &[("user", "u"), ("host", "h")]),
    ("postgresql://:p@h", &[("password", "p"), ("host", "h")]),
    ("postgresql://@h", &[("host", "h")]),
    ("postgresql://h:/d", &[("dbname", "d"), ("host", "h")]),
    ("postgresql://u:p:q@h", &[("user", "u"), ("password", "p:q"), ("host", "h")]),
    (
        "postgresql://h/d?connect_timeout=10&connect_timeout=20",
        &[("connect_timeout", "20"), ("dbname", "d"), ("host", "h")],
    ),
    ("postgresql://h/d?requiressl=1", &[("dbname", "d"), ("host", "h"), ("sslmode", "require")]),
    ("requiressl=1", &[("sslmode", "require")]),
    ("requiressl=0", &[("sslmode", "prefer")]),
    ("host=a\tport=1\nuser=b", &[("user", "b"), ("host", "a"), ("port", "1")]),
    ("postgresql://h/d?us%65r=x", &[("user", "x"), ("dbname", "d"), ("host", "h")]),
    ("postgresql://ü@h/ß", &[("user", "ü"), ("dbname", "ß"), ("host", "h")]),
    ("user=ü", &[("user", "ü")]),
    ("postgresql://h/d?options=-c%20a%3Db", &[("dbname", "d"), ("host", "h"), ("options", "-c a=b")]),
    ("postgresql://,/d", &[("dbname", "d"), ("host", ","), ("port", ",")]),
    ("postgresql://:5/d", &[("dbname", "d"), ("port", "5")]),
    ("postgresql://h1:1,:2/d", &[("dbname", "d"), ("host", "h1,"), ("port", "1,2")]),
    ("postgresql://u@/d", &[("user", "u"), ("dbname", "d")]),
    ("postgresql://user@[fe80::1%25eth0]/d", &[("user", "user"), ("dbname", "d"), ("host", "fe80::1%eth0")]),
    ("dbname=postgresql://x/y", &[("dbname", "postgresql://x/y")]),
];

/// Connection strings that libpq 18 rejects; this parser must reject them, too.
const LIBPQ_REFUSES: &[&str] = &[
    "host",
    "host=a port",
    "user='a",
    "nope=1",
    "=x",
    "postgresql://[::1",
    "postgresql://[]",
    "postgresql://[::1]x",
    "postgresql://u%zz@h",
    "postgresql://u%0@h",
    "postgresql://u%00@h",
    "postgresql://h/d?a",
    "postgresql://h/d?sslmode=a=b",
    "postgresql://h/d?nope=1",
    "postgresql://h/d?ssl=false",
    "postgresql://h/d?&user=a",
    "postgresql://h/a b",
    "postgresql:/h",
    "http://h",
    "HOST=a",
];

#[test]
fn reads_what_libpq_reads() {
    for (dsn, expected) in LIBPQ_ACCEPTS {
        let pairs: HashMap<_, _> = syntax::parse(dsn).unwrap_or_else(|e| panic!("{dsn:?}: {e}")).into_iter().collect();
        let expected: HashMap<_, _> = expected.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        assert_eq!(pairs, expected, "{dsn:?}");
    }
}

#[test]
fn refuses_what_libpq_refuses() {
    for dsn in LIBPQ_REFUSES {
        let error = parse(dsn).expect_err(dsn);
        assert!(matches!(error, Error::Options { .. }), "{dsn:?}: {error:?}");
        assert!(!error.is_transient());
    }
}

#[test]
fn bad_values_name_the_option_and_the_value() {
    // connection string, option, value shown, part of the reason
    let table: &[(&str, &str, &str, &str)] = &[
        ("sslmode=prefered", "sslmode", "prefered", "verify-full"),
        ("nope=hunter2", "nope", "", "unknown"),
        ("postgresql://h/d?nope=hunter2", "nope", "", "unknown"),
        ("port=0", "port", "0", "65535"),
        ("port=65536", "port", "65536", "65535"),
        ("port=-1", "port", "", "65535"),
        ("port=5432x", "port", "", "65535"),
        ("host=a,b port=1,2,3", "port", "", "3 ports"),
        ("host=a,b hostaddr=127.0.0.1", "hostaddr", "", "2 host names"),
        ("hostaddr=localhost", "hostaddr", "localhost", "IP address"),
        ("host=@abstract", "host", "@abstract", "abstract"),
        ("postgresql://u:p@ss@h/d", "host", "", "%40"),
        ("postgresql://u:pa/ss@h/d", "port", "", "%2F"),
        ("connect_timeout=soon", "connect_timeout", "soon", "integer"),
        ("connect_timeout=2.5", "connect_timeout", "2.5", "integer"),
        ("keepalives=yes", "keepalives", "yes", "integer"),
        ("keepalives_idle=x", "keepalives_idle", "x", "integer"),
        ("keepalives_interval=x", "keepalives_interval", "x", "integer"),
        ("keepalives_count=x", "keepalives_count", "x", "integer"),
        ("tcp_user_timeout=99999999999", "tcp_user_timeout", "99999999999", "integer"),
        ("target_session_attrs=standby", "target_session_attrs", "standby", "primary"),
        ("target_session_attrs=read-only", "target_session_attrs", "read-only", "primary"),
        ("target_session_attrs=prefer-standby", "target_session_attrs", "prefer-standby", "primary"),
        ("target_session_attrs=master", "target_session_attrs", "master", "one of"),
        ("load_balance_hosts=yes", "load_balance_hosts", "yes", "random"),
        ("channel_binding=on", "channel_binding", "on", "require"),
        ("client_encoding=latin1", "client_encoding", "latin1", "utf8"),
        ("sslnegotiation=tls", "sslnegotiation", "tls", "direct"),
        ("sslnegotiation=direct", "sslmode", "prefer", "require"),
        ("sslrootcert=system sslmode=require", "sslmode", "require", "verify-full"),
        ("sslmode=verify-full hostaddr=127.0.0.1", "host", "", "host name"),
        ("ssl_min_protocol_version=SSLv3", "ssl_min_protocol_version", "SSLv3", "TLSv1.2"),
        ("ssl_max_protocol_version=TLSv1.1", "ssl_max_protocol_version", "TLSv1.1", "TLSv1.2"),
        (
            "ssl_min_protocol_version=TLSv1.3 ssl_max_protocol_version=TLSv1.2",
            "ssl_max_protocol_version",
            "TLSv1.2",
            "below",
        ),
        ("sslsni=2", "sslsni", "2", "one of"),
        ("sslpassword=hunter2", "sslpassword", "", "decrypt"),
        ("sslcrl=/x.crl", "sslcrl", "/x.crl", "revocation"),
        ("sslcrldir=/x", "sslcrldir", "/x", "revocation"),
        ("sslcertmode=require", "sslcertmode", "require", "allow"),
        ("gssencmode=require", "gssencmode", "require", "GSSAPI"),
        ("gssdelegation=1", "gssdelegation", "1", "GSSAPI"),
        ("requirepeer=postgres", "requirepeer", "postgres", "owner"),
        ("require_auth=md5", "require_auth", "md5", "channel_binding"),
        ("replication=database", "replication", "database", "replication"),
        ("min_protocol_version=3.2", "min_protocol_version", "3.2", "3.0"),
        ("sslkeylogfile=/x", "sslkeylogfile", "/x", "secrets"),
        ("oauth_client_secret=hunter2", "oauth_client_secret", "", "OAuth"),
        ("scram_client_key=hunter2", "scram_client_key", "", "password"),
        ("scram_server_key=hunter2", "scram_server_key", "", "password"),
        ("user=a\0b", "dsn", "", "NUL"),
        ("postgresql://%ff@h", "user", "", "UTF-8"),
        ("service=nowhere", "service", "nowhere", "not defined"),
        ("service=a servicefile=/nonexistent", "servicefile", "/nonexistent", "no such file"),
    ];
    for (dsn, option, value, part) in table {
        let error = parse(dsn).expect_err(dsn);
        let Error::Options { option: got_option, value: got_value, reason } = &error else {
            panic!("{dsn}: {error:?}")
        };
        assert_eq!((got_option.as_str(), got_value.as_str()), (*option, *value), "{dsn}");
        assert!(reason.contains(part), "{dsn}: {reason}");
        assert!(!error.to_string().contains("hunter2"), "{dsn}: {error}");
    }
}

#[test]
fn harmless_settings_of_unsupported_features_are_accepted() {
    for dsn in [
        "gssencmode=disable",
        "gssencmode=prefer krbsrvname=postgres gsslib=gssapi gssdelegation=0",
        "sslcompression=0 sslcrl='' sslcertmode=allow replication=false",
        "min_protocol_version=3.0 max_protocol_version=latest",
        "client_encoding=UTF-8",
        "client_encoding=auto",
        "target_session_attrs=any",
        "target_session_attrs=primary",
    ] {
        parse(dsn).unwrap_or_else(|error| panic!("{dsn}: {error}"));
    }
}

#[test]
fn defaults_are_ours() {
    let conninfo = parse("").unwrap();
    assert_eq!(conninfo.user(), whoami::username().unwrap());
    assert_eq!(conninfo.dbname(), conninfo.user());
    assert_eq!(conninfo.hosts(), [Host { name: String::new(), addr: None, port: 5432 }]);
    assert!(conninfo.hosts()[0].socket_dir().is_some());
    assert_eq!(conninfo.connect_timeout, Duration::from_secs(10));
    assert_eq!(conninfo.keepalives.unwrap().idle, Some(Duration::from_secs(30)));
    assert_eq!(conninfo.tcp_user_timeout, Some(Duration::from_secs(30)));
    assert_eq!(conninfo.application_name, "socketio-postgres");
    assert_eq!(conninfo.tls.mode, SslMode::Prefer);
    assert_eq!(parse("sslrootcert=system").unwrap().tls.mode, SslMode::VerifyFull);
    assert_eq!(parse("user=eve").unwrap().dbname(), "eve");
    assert_eq!(parse("fallback_application_name=f").unwrap().application_name, "f");
    assert_eq!(parse("fallback_application_name=f application_name=a").unwrap().application_name, "a");
}

#[test]
fn zero_turns_limits_off() {
    let conninfo = parse("connect_timeout=0 tcp_user_timeout=0 keepalives_idle=0 keepalives_count=0").unwrap();
    assert_eq!((conninfo.connect_timeout, conninfo.tcp_user_timeout), (Duration::from_secs(120), None));
    let keepalives = conninfo.keepalives.unwrap();
    assert_eq!((keepalives.idle, keepalives.count), (None, None));
    assert_eq!(keepalives.interval, Some(Duration::from_secs(10)));
    assert_eq!(parse("keepalives=0").unwrap().keepalives, None);
    assert_eq!(parse("connect_timeout=-1").unwrap().connect_timeout, Duration::from_secs(120));
    assert_eq!(parse("connect_timeout=' 7 '").unwrap().connect_timeout, Duration::from_secs(7));
}

#[test]
fn lists_of_hosts() {
    let shown = |dsn: &str| parse(dsn).unwrap().hosts().iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(shown("postgresql://a:1,b/d"), ["a:1", "b:5432"]);
    assert_eq!(shown("host=a,b port=7"), ["a:7", "b:7"]);
    assert_eq!(shown("host=a,b port=7,"), ["a:7", "b:5432"]);
    assert_eq!(shown("hostaddr=127.0.0.1,::1 port=7"), ["127.0.0.1:7", "[::1]:7"]);
    assert_eq!(shown("host=a,b hostaddr=,10.0.0.1"), ["a:5432", "b:5432"]);
    assert_eq!(shown("postgresql://%2Ftmp%2Fx:9/d"), ["/tmp/x:9"]);
    let conninfo = parse("host=a,b hostaddr=,10.0.0.1").unwrap();
    assert_eq!(conninfo.hosts()[0].addr, None);
    assert_eq!(conninfo.hosts()[1].addr, Some("10.0.0.1".parse().unwrap()));
    assert_eq!(parse("host=/tmp").unwrap().hosts()[0].socket_dir(), Some(PathBuf::from("/tmp")));
    assert_eq!(parse("host=a").unwrap().hosts()[0].socket_dir(), None);
}

#[test]
fn nothing_printed_shows_the_password() {
    let conninfo = parse("postgresql://us%40er:s3cr%40t@db1,[::1]:5433,%2Ftmp:1/my%20db?sslmode=require").unwrap();
    assert_eq!(conninfo.password, Some(Secret("s3cr@t".to_owned())));
    assert_eq!(conninfo.redacted(), "postgresql://us%40er@db1:5432,[::1]:5433,%2Ftmp:1/my%20db?sslmode=require");
    // The printed connection string can be used to connect.
    assert_eq!(parse(&conninfo.redacted()).unwrap().hosts(), conninfo.hosts());
    assert!(!format!("{conninfo:?}").contains("s3cr"));
}

#[test]
fn every_variable_is_read_and_the_dsn_wins() {
    let variables = [
        ("PGHOST", "h"),
        ("PGHOSTADDR", "10.0.0.1"),
        ("PGPORT", "7"),
        ("PGDATABASE", "d"),
        ("PGUSER", "u"),
        ("PGPASSWORD", "p"),
        ("PGPASSFILE", "/pass"),
        ("PGCONNECT_TIMEOUT", "3"),
        ("PGAPPNAME", "app"),
        ("PGOPTIONS", "-c a=b"),
        ("PGSSLMODE", "verify-ca"),
        ("PGSSLROOTCERT", "/root.crt"),
        ("PGSSLCERT", "/c.crt"),
        ("PGSSLKEY", "/c.key"),
        ("PGSSLNEGOTIATION", "direct"),
        ("PGSSLSNI", "0"),
        ("PGSSLMINPROTOCOLVERSION", "TLSv1.3"),
        ("PGCHANNELBINDING", "require"),
        ("PGTARGETSESSIONATTRS", "primary"),
        ("PGLOADBALANCEHOSTS", "random"),
        ("PGCLIENTENCODING", "utf8"),
    ];
    let explicit = |path: &str| Some(TlsFile { path: path.into(), is_explicit: true });
    let conninfo = Conninfo::parse("", &env_of(&variables)).unwrap();
    assert_eq!(conninfo.hosts(), [Host { name: "h".to_owned(), addr: Some([10, 0, 0, 1].into()), port: 7 }]);
    assert_eq!((conninfo.dbname(), conninfo.user()), ("d", "u"));
    assert_eq!(conninfo.password, Some(Secret("p".to_owned())));
    assert_eq!(conninfo.passfile, Some("/pass".into()));
    assert_eq!(conninfo.connect_timeout, Duration::from_secs(3));
    assert_eq!((conninfo.application_name.as_str(), conninfo.options.as_deref()), ("app", Some("-c a=b")));
    assert_eq!(conninfo.tls.mode, SslMode::VerifyCa);
    assert_eq!(conninfo.tls.root, RootCert::File(explicit("/root.crt")));
    assert_eq!((&conninfo.tls.cert, &conninfo.tls.key), (&explicit("/c.crt"), &explicit("/c.key")));
    assert!(conninfo.tls.is_direct && !conninfo.tls.has_sni && conninfo.shuffles_hosts);
    assert_eq!(conninfo.tls.min_version, TlsVersion::V13);
    assert_eq!(conninfo.channel_binding, ChannelBinding::Require);

    let conninfo = Conninfo::parse("postgresql://x:y@z:9/w", &env_of(&variables[2..])).unwrap();
    assert_eq!((conninfo.user(), conninfo.dbname()), ("x", "w"));
    assert_eq!(conninfo.hosts()[0].to_string(), "z:9");
    assert_eq!(conninfo.password, Some(Secret("y".to_owned())));
    // Given but empty: the variable is not asked, the default applies.
    assert_eq!(Conninfo::parse("dbname='' user=x", &env_of(&variables)).unwrap().dbname(), "x");
    for (name, bad) in [("PGSSLMODE", "x"), ("PGPORT", "x"), ("PGGSSENCMODE", "require"), ("PGSSLCRL", "/x")] {
        assert!(Conninfo::parse("", &env_of(&[(name, bad)])).is_err(), "{name}");
    }
}

#[test]
fn home_supplies_default_files() {
    let conninfo = Conninfo::parse("", &env_of(&[("HOME", "/home/eve")])).unwrap();
    let default = |path: &str| Some(TlsFile { path: path.into(), is_explicit: false });
    assert_eq!(conninfo.passfile, Some("/home/eve/.pgpass".into()));
    assert_eq!(conninfo.tls.root, RootCert::File(default("/home/eve/.postgresql/root.crt")));
    assert_eq!(conninfo.tls.cert, default("/home/eve/.postgresql/postgresql.crt"));
    assert_eq!(conninfo.tls.key, default("/home/eve/.postgresql/postgresql.key"));
}

#[test]
fn service_files() {
    let dir = TempDir::new("service");
    let text = "# comment\n[other]\nhost=wrong\n\n[app]\nhost=db\n port=7 \nuser=svc\nuser=late\n[last]\nhost=x\n\
                [bad]\nnonsense\n[spaced]\nhost = a\n[nested]\nservice=app\n";
    let file = dir.write("service.conf", text, 0o644);
    let file = file.to_str().unwrap();
    let env = [("PGSERVICEFILE", file), ("PGUSER", "env"), ("PGDATABASE", "env"), ("PGPORT", "1")];

    // connection string over service file over environment
    let conninfo = Conninfo::parse("service=app host=mine", &env_of(&env)).unwrap();
    assert_eq!(conninfo.hosts()[0].to_string(), "mine:7");
    assert_eq!((conninfo.user(), conninfo.dbname()), ("svc", "env"));
    let by_env = [("PGSERVICE", "app"), ("PGSERVICEFILE", file)];
    assert_eq!(Conninfo::parse("", &env_of(&by_env)).unwrap().hosts()[0].to_string(), "db:7");
    let by_dsn = format!("service=app servicefile={file}");
    assert_eq!(parse(&by_dsn).unwrap().hosts()[0].to_string(), "db:7");
    for (service, part) in [("bad", "line 13"), ("spaced", "\"host \""), ("nested", "another"), ("none", "not defined")]
    {
        let error = Conninfo::parse(&format!("service={service}"), &env_of(&env)).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }

    // ~/.pg_service.conf, then the system's
    dir.write(".pg_service.conf", "[one]\nhost=personal\n", 0o644);
    dir.write("pg_service.conf", "[one]\nhost=system\n[two]\nhost=system\n", 0o644);
    let env = [("HOME", dir.path()), ("PGSYSCONFDIR", dir.path())];
    assert_eq!(Conninfo::parse("service=one", &env_of(&env)).unwrap().hosts()[0].name, "personal");
    assert_eq!(Conninfo::parse("service=two", &env_of(&env)).unwrap().hosts()[0].name, "system");
}

#[test]
fn password_file() {
    let dir = TempDir::new("pgpass");
    let text = "# db:5432:d:u:comment\n\ndb:5432:d:u:first\r\ndb:5432:d:u:second\n*:7:*:u:any:ignored\n\
                db:5432:with\\:colon:u:p\\:\\\\\nlocalhost:5432:d:u:local\n::1:5432:d:u:no\n\\:\\:1:5432:d:u:six\n\
                db:5432:d:\\*:star\ndb:short\nzwölf:5432:d:u:ü\ndb:9:d:u:\n";
    let file = dir.write(".pgpass", text, 0o600);
    let look = |dsn: &str| {
        let conninfo = Conninfo::parse(&format!("user=u dbname=d {dsn}"), &env_of(&[("HOME", dir.path())])).unwrap();
        conninfo.hosts().iter().map(|host| conninfo.read_passfile(host).password).collect::<Vec<_>>()
    };
    let some = |password: &str| Some(password.to_owned());
    assert_eq!(look("host=db,db,elsewhere port=5432,7,5432"), [some("first"), some("any"), None]);
    assert_eq!(look("host=db dbname=with:colon"), [some("p:\\")]);
    assert_eq!(look("host=/var/run/postgresql"), [some("local")]);
    assert_eq!(look(""), [some("local")]);
    assert_eq!(look("hostaddr=::1"), [some("six")]);
    assert_eq!(look("host=db hostaddr=10.0.0.1"), [some("first")]);
    assert_eq!(look("host=db user=eve"), [None]); // `\*` is not a wildcard
    assert_eq!(look("host=db user=*"), [some("star")]);
    assert_eq!(look("host=zwölf"), [some("ü")]);
    assert_eq!(look("host=short"), [None]);

    dir.write(".pgpass", text, 0o640);
    let conninfo = Conninfo::parse("host=db user=u dbname=d", &env_of(&[("HOME", dir.path())])).unwrap();
    let found = conninfo.read_passfile(&conninfo.hosts()[0]);
    assert_eq!(found.password, None);
    assert!(found.ignored.unwrap().contains("chmod 0600"));
    fs::remove_file(file).unwrap();
    assert_eq!(conninfo.read_passfile(&conninfo.hosts()[0]), Passfile::default());
    let explicit = Conninfo::parse(&format!("passfile={}", dir.path()), NO_ENV).unwrap();
    assert!(explicit.read_passfile(&explicit.hosts()[0]).ignored.unwrap().contains("not a plain file"));
}

proptest::proptest! {
    #[test]
    fn quoting_round_trips(value in "[^\0]*") {
        let quoted = format!("dbname='{}' user=x", value.replace('\\', r"\\").replace('\'', r"\'"));
        let pairs = syntax::parse(&quoted).unwrap();
        proptest::prop_assert_eq!(&pairs[0].1, &value);
        let uri = format!("postgresql:///?dbname={}", encode(&value));
        proptest::prop_assert_eq!(&syntax::parse(&uri).unwrap()[0].1, &value);
    }

    #[test]
    fn no_text_makes_it_panic(dsn in "(postgres(ql)?://)?[a-z=:/@%,?&' \\\\\\[\\]0-9\u{e9}]*") {
        let _ = parse(&dsn);
    }
}
