//! Connecting, against real servers: TLS, authentication, several hosts, standbys, time limits.
//!
//! Servers are started from `SIO_PG_TEST_BIN`, a directory with `initdb` and a `postgres` built with TLS (for
//! example `/usr/lib/postgresql/15/bin`); as root they run as the user `SIO_PG_TEST_USER` (default `postgres`).
//! Without the variable those tests are skipped and say so.

#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

use _core::connect::connection::{Connector, Encoding, Link, PasswordSource};
use _core::connect::conninfo::Conninfo;
use _core::connect::mended::unreadable_bytes;
use _core::error::{Error, Result, ServerReport};
use socket2::{Domain, Socket, Type};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{env, fs};
use tokio::time::timeout;
use tokio_postgres::{AsyncMessage, SimpleQueryMessage};

const MAKE_CERTIFICATES: &str = r#"
sign() { # name, subject, authority, extensions
    openssl req -new -newkey rsa:2048 -nodes -keyout $1.key -out $1.csr -subj "$2"
    printf '%b' "$4" > $1.ext
    openssl x509 -req -in $1.csr -CA $3.crt -CAkey $3.key -CAcreateserial -days 2 -out $1.crt -extfile $1.ext
}
for ca in ca other; do
    openssl req -x509 -newkey rsa:2048 -nodes -keyout $ca.key -out $ca.crt -days 2 -subj "/CN=$ca"
done
sign server /CN=server ca 'subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n'
sign old /CN=localhost ca ''
openssl req -x509 -newkey rsa:2048 -nodes -keyout selfsigned.key -out selfsigned.crt -days 2 -subj "/CN=localhost"
sign client /CN=cert_user ca 'basicConstraints=CA:FALSE\n'
sign stranger /CN=cert_user other 'basicConstraints=CA:FALSE\n'
openssl pkey -in client.key -aes256 -passout pass:x -out encrypted.key
chmod 600 *.key
"#;

const PG_HBA: &str = "
local    all         all                    trust
local    replication all                    trust
hostssl  all         cert_user  127.0.0.1/32 cert
hostssl  all         tls_only   127.0.0.1/32 trust
hostnossl all        clear_only 127.0.0.1/32 trust
hostssl  all         clear_only 127.0.0.1/32 reject
host     all         app,reader 127.0.0.1/32 scram-sha-256
";

/// A server in a directory of its own, stopped and removed when dropped.
struct Server {
    bin: String,
    dir: PathBuf,
    port: u16,
    standby_port: u16,
    _ports: [Socket; 2],
}

/// A port at which nobody listens, and which the system gives to nobody else as long as the socket is there. A program
/// that is told to listen at it can: all servers set `SO_REUSEADDR`, and this socket does not listen.
fn reserved_port() -> (Socket, u16) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let port = socket.local_addr().unwrap().as_socket().unwrap().port();
    (socket, port)
}

impl Server {
    fn start(bin: String) -> Self {
        let dir = env::temp_dir().join(format!("sio-connect-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
        let ((one, port), (other, standby_port)) = (reserved_port(), reserved_port());
        let server = Self { bin, dir, port, standby_port, _ports: [one, other] };
        server.run(MAKE_CERTIFICATES);
        fs::write(server.dir.join("pg_hba.conf"), PG_HBA).unwrap();
        server.run("$BIN/initdb -D data -U postgres --auth=trust --no-sync");
        server.run("cp pg_hba.conf data/; for f in server.key server.crt ca.crt; do cp -p $f data/; done");
        server.run(&format!(
            "cat >> data/postgresql.conf <<END
listen_addresses = '127.0.0.1'
unix_socket_directories = '{}'
fsync = off
ssl = on
ssl_ca_file = 'ca.crt'
END",
            server.dir.display()
        ));
        server.run(&format!("$BIN/pg_ctl -w -D data -l log -o '-p {}' start", server.port));
        server.sql("CREATE ROLE app LOGIN PASSWORD 'right'; CREATE ROLE reader LOGIN PASSWORD 'right';");
        server.sql("CREATE ROLE cert_user LOGIN; CREATE ROLE tls_only LOGIN; CREATE ROLE clear_only LOGIN;");
        server.sql("CREATE DATABASE app; ALTER ROLE reader SET default_transaction_read_only = on");
        // The standby has no TLS: it serves as the server without it, too.
        server.run(&format!(
            "$BIN/pg_basebackup -D standby -R -c fast -h $PWD -p {} -U postgres
             $BIN/pg_ctl -w -D standby -l standby.log -o '-p {} -c ssl=off' start",
            server.port, server.standby_port
        ));
        server
    }

    /// Run a shell script in the directory; not as root, because the server refuses that.
    fn run(&self, script: &str) {
        let (output, text) = self.try_run(script);
        assert!(output, "{script}\n{text}");
    }

    fn try_run(&self, script: &str) -> (bool, String) {
        let script = format!("set -e; BIN='{}'; {script}", self.bin);
        let is_root = Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
        let mut command = if is_root {
            let user = env::var("SIO_PG_TEST_USER").unwrap_or_else(|_| "postgres".to_owned());
            let mut su = Command::new("su");
            su.args([&user, "-s", "/bin/sh", "-c", &script]);
            su
        } else {
            let mut shell = Command::new("sh");
            shell.args(["-c", &script]);
            shell
        };
        // Not through pipes: the server would keep them open.
        let log = fs::File::create(self.dir.join("commands.log")).unwrap();
        let status = command.current_dir(&self.dir).stdout(log.try_clone().unwrap()).stderr(log).status().unwrap();
        (status.success(), fs::read_to_string(self.dir.join("commands.log")).unwrap_or_default())
    }

    fn sql(&self, sql: &str) {
        fs::write(self.dir.join("script.sql"), sql).unwrap();
        self.run(&format!("$BIN/psql -qX -v ON_ERROR_STOP=1 -h $PWD -p {} -U postgres -f script.sql", self.port));
    }

    /// Present another certificate from now on.
    fn use_certificate(&self, name: &str) {
        self.run(&format!(
            "cp -p {name}.crt data/server.crt; cp -p {name}.key data/server.key
             $BIN/pg_ctl -w -m fast -D data -l log -o '-p {}' restart",
            self.port
        ));
    }

    fn file(&self, name: &str) -> String {
        self.dir.join(name).to_str().unwrap().to_owned()
    }

    /// A connector for the primary over TCP as `app` with the right password; `more` overrides.
    fn connector(&self, more: &str) -> Connector {
        connector(&format!(
            "host=localhost hostaddr=127.0.0.1 port={} user=app password=right dbname=app {more}",
            self.port
        ))
    }

    async fn connect(&self, more: &str) -> Result<Link> {
        self.connector(more).connect().await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.try_run("for d in standby data; do $BIN/pg_ctl -w -m immediate -D $d stop || true; done");
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// No environment: neither the developer's variables nor files play a part.
fn connector(dsn: &str) -> Connector {
    Connector::new(Conninfo::parse(dsn, &|_| None).unwrap(), None)
}

async fn query(link: Link, sql: &str) -> String {
    let Link { client, connection, .. } = link;
    tokio::spawn(connection);
    let messages = client.simple_query(sql).await.unwrap();
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap().to_owned()),
        _ => None,
    });
    row.unwrap()
}

const TLS_VERSION: &str = "SELECT coalesce(version, 'none') FROM pg_stat_ssl WHERE pid = pg_backend_pid()";

async fn tls_version(server: &Server, more: &str) -> String {
    query(server.connect(more).await.unwrap_or_else(|e| panic!("{more}: {e}")), TLS_VERSION).await
}

#[track_caller]
fn report(result: Result<Link>) -> ServerReport {
    match result {
        Err(Error::Database { report, .. }) => *report,
        other => panic!("expected a report, got {other:?}"),
    }
}

/// Assert that TLS failed for good, with `message` and `hint` in the error.
#[track_caller]
fn assert_tls_refused(result: Result<Link>, message: &str, hint: &str) {
    assert!(!result.as_ref().unwrap_err().is_transient());
    let report = report(result);
    assert_eq!(report.sqlstate, "");
    assert!(report.message.contains(message), "{report:?}");
    assert!(report.hint.as_deref().unwrap().contains(hint), "{report:?}");
}

#[track_caller]
fn assert_option(result: Result<Link>, name: &str, part: &str) {
    match result {
        Err(Error::Options { option, reason, .. }) => {
            assert_eq!(option, name, "{reason}");
            assert!(reason.contains(part), "{reason}");
        }
        other => panic!("expected an error about {name}, got {other:?}"),
    }
}

#[tokio::test]
async fn against_real_servers() {
    // Boxed, because the scenarios add up to a large future.
    Box::pin(run_scenarios()).await;
}

async fn run_scenarios() {
    let Ok(bin) = env::var("SIO_PG_TEST_BIN") else {
        // Not eprintln, which the test harness hides.
        let why = "SKIPPED against_real_servers: set SIO_PG_TEST_BIN to a directory with initdb and postgres\n";
        std::io::stderr().write_all(why.as_bytes()).unwrap();
        return;
    };
    let server = Server::start(bin);
    unix_socket(&server).await;
    passwords(&server).await;
    password_file(&server).await;
    password_callable(&server).await;
    options(&server).await;
    ssl_modes(&server).await;
    cancelling(&server).await;
    tls_verification(&server).await;
    client_certificates(&server).await;
    channel_binding(&server).await;
    bytes_that_are_no_text(&server).await;
    several_hosts(&server).await;
    Box::pin(standbys(&server)).await;
    // These change the server's certificate.
    self_signed_certificate(&server).await;
    version_one_certificate(&server).await;
}

/// Refused, but not from the start: it passes.
fn assert_outage(result: Result<Link>, text: &str) {
    let error = result.unwrap_err();
    assert!(error.is_transient() && !error.is_in_doubt(), "{error:?}");
    assert!(error.to_string().contains(text), "{error}");
}

async fn unix_socket(server: &Server) {
    // sslmode does not apply, as in libpq.
    let dsn = format!("postgresql://app@{}:{}/app?sslmode=require", server.file("").replace('/', "%2F"), server.port);
    let link = connector(&dsn).connect().await.unwrap();
    assert_eq!(query(link, TLS_VERSION).await, "none");
}

/// Over a connection like the session's own: in clear text, encrypted, and a Unix socket.
async fn cancelling(server: &Server) {
    let socket = format!("host={} port={} user=app dbname=app", server.file(""), server.port);
    let connectors = [server.connector("sslmode=disable"), server.connector("sslmode=require"), connector(&socket)];
    for connector in connectors {
        let Link { client, connection, canceller, .. } = connector.connect().await.unwrap();
        tokio::spawn(connection);
        let asking = tokio::spawn(async move { client.simple_query("SELECT pg_sleep(60)").await });
        let answered = async {
            while !asking.is_finished() {
                canceller.cancel().await; // the first may come before the question
            }
            asking.await.unwrap()
        };
        let error = timeout(Duration::from_secs(20), answered).await.expect("it is cancelled").unwrap_err();
        assert_eq!(error.code().unwrap().code(), "57014");
    }
}

async fn passwords(server: &Server) {
    let link = server.connect("application_name=my_app").await.unwrap();
    assert_eq!(link.host, format!("localhost:{}", server.port));
    assert_eq!(query(link, "SHOW application_name").await, "my_app");

    let wrong = server.connect("password=hunter2").await;
    let error = wrong.as_ref().unwrap_err().clone();
    assert_eq!(report(wrong).sqlstate, "28P01");
    assert!(!error.is_transient() && !format!("{error} {error:?}").contains("hunter2"));
    assert!(error.to_string().contains(&format!("connect to localhost:{} (127.0.0.1)", server.port)), "{error}");

    assert_option(server.connect("password=''").await, "password", "callable");

    let missing = server.connect("dbname=nowhere").await;
    assert!(!missing.as_ref().unwrap_err().is_transient());
    assert_eq!(report(missing).sqlstate, "3D000");
}

async fn password_file(server: &Server) {
    let passfile = server.file("pass");
    fs::write(&passfile, format!("localhost:{}:app:app:right\n*:*:*:reader:wrong\n", server.port)).unwrap();
    fs::set_permissions(&passfile, fs::Permissions::from_mode(0o600)).unwrap();
    let dsn = format!("password='' passfile={passfile}");
    let app = server.connector(&dsn);
    app.connect().await.unwrap();
    let hint = report(server.connect(&format!("user=reader {dsn}")).await).hint;
    assert!(hint.unwrap().contains("password file"));
    // Read anew at every connect.
    fs::set_permissions(&passfile, fs::Permissions::from_mode(0o644)).unwrap();
    assert_option(server.connect(&dsn).await, "password", "chmod 0600");
    assert_outage(app.connect().await, "chmod 0600");
}

async fn password_callable(server: &Server) {
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = calls.clone();
    let source: PasswordSource = Arc::new(move || {
        // The second token has expired, the third cannot be had.
        match counter.fetch_add(1, Ordering::SeqCst) {
            0 | 3 => Ok("right".to_owned()),
            1 => Ok("expired".to_owned()),
            2 => Err(Error::options("token", "", "no network")),
            _ => panic!("broken callable"),
        }
    });
    let conninfo = server.connector("password=overridden").conninfo().clone();
    let connector = Connector::new(conninfo, Some(source));
    connector.connect().await.unwrap();
    assert_outage(connector.connect().await, "28P01");
    assert_outage(connector.connect().await, "no network");
    connector.connect().await.unwrap();
    assert_outage(connector.connect().await, "panicked");
    assert_eq!(calls.load(Ordering::SeqCst), 5);
}

async fn options(server: &Server) {
    let connector = server.connector("options='-c work_mem=1MB'");
    assert_eq!(query(connector.connect().await.unwrap(), "SHOW work_mem").await, "1MB");
}

async fn ssl_modes(server: &Server) {
    assert_eq!(tls_version(server, "sslmode=disable").await, "none");
    assert_eq!(tls_version(server, "sslmode=allow").await, "none");
    assert_eq!(tls_version(server, "sslmode=prefer").await, "TLSv1.3");
    assert_eq!(tls_version(server, "sslmode=require").await, "TLSv1.3");
    assert_eq!(tls_version(server, "sslmode=require ssl_max_protocol_version=TLSv1.2").await, "TLSv1.2");
    // Second tries when the server refuses the first way.
    assert_eq!(tls_version(server, "sslmode=allow user=tls_only").await, "TLSv1.3");
    assert_eq!(tls_version(server, "sslmode=prefer user=clear_only").await, "none");
    assert_eq!(report(server.connect("sslmode=disable user=tls_only").await).sqlstate, "28000");
    assert_eq!(report(server.connect("sslmode=require user=clear_only").await).sqlstate, "28000");
    // A server without TLS.
    let dsn = format!("host=127.0.0.1 port={} user=app password=right dbname=app", server.standby_port);
    assert_eq!(report(connector(&dsn).connect().await).sqlstate, "25006");
    assert_tls_refused(connector(&format!("{dsn} sslmode=require")).connect().await, "does not support TLS", "prefer");
}

async fn tls_verification(server: &Server) {
    let (ca, other) = (server.file("ca.crt"), server.file("other.crt"));
    for mode in ["prefer", "require", "verify-ca", "verify-full"] {
        assert_eq!(tls_version(server, &format!("sslmode={mode} sslrootcert={ca}")).await, "TLSv1.3");
    }
    assert_tls_refused(
        server.connect(&format!("sslmode=verify-full sslrootcert={ca} host=db.example.com")).await,
        "is not for db.example.com",
        "subjectAltName",
    );
    assert_eq!(
        tls_version(server, &format!("sslmode=verify-ca sslrootcert={ca} host=db.example.com")).await,
        "TLSv1.3"
    );
    for mode in ["require", "verify-ca", "verify-full"] {
        // With a root file `require` verifies the chain, too.
        let result = server.connect(&format!("sslmode={mode} sslrootcert={other}")).await;
        assert_tls_refused(result, "not signed", &other);
    }
    assert_tls_refused(server.connect("sslrootcert=system").await, "verify-full", "the system's certificates");
    // `prefer` goes on without TLS, as libpq does.
    assert_eq!(tls_version(server, &format!("sslmode=prefer sslrootcert={other}")).await, "none");

    assert_option(server.connect("sslmode=verify-ca").await, "sslrootcert", "name a file");
    assert_option(server.connect("sslmode=require sslrootcert=/nonexistent").await, "sslrootcert", "cannot be used");
    let key = server.file("ca.key");
    assert_option(server.connect(&format!("sslrootcert={key} sslmode=require")).await, "sslrootcert", "no certificate");
}

async fn client_certificates(server: &Server) {
    let file = |name: &str| server.file(name);
    let dsn = |cert: &str, key: &str| {
        format!("user=cert_user password='' sslmode=require sslcert={} sslkey={}", file(cert), file(key))
    };
    assert_eq!(tls_version(server, &dsn("client.crt", "client.key")).await, "TLSv1.3");
    assert_eq!(
        tls_version(server, &format!("{} ssl_max_protocol_version=TLSv1.2", dsn("client.crt", "client.key"))).await,
        "TLSv1.2"
    );
    assert_eq!(report(server.connect("user=cert_user sslmode=require").await).sqlstate, "28000");
    assert_tls_refused(server.connect(&dsn("stranger.crt", "stranger.key")).await, "client certificate", "ssl_ca_file");
    assert_option(server.connect(&dsn("client.crt", "stranger.key")).await, "sslkey", "does not fit");
    assert_option(server.connect(&dsn("client.crt", "encrypted.key")).await, "sslkey", "decrypt");
    assert_option(server.connect(&dsn("client.crt", "missing.key")).await, "sslkey", "cannot be used");
    assert_option(server.connect(&dsn("missing.crt", "client.key")).await, "sslcert", "cannot be used");
    server.run("cp client.crt rotated.crt");
    let rotated = server.connector(&dsn("rotated.crt", "client.key"));
    rotated.connect().await.unwrap();
    server.run("cp stranger.crt rotated.crt");
    assert_outage(rotated.connect().await, "does not fit");
    server.run("rm rotated.crt");
    assert_outage(rotated.connect().await, "cannot be used");
    server.run("cp client.crt rotated.crt");
    rotated.connect().await.unwrap();
    server.run("cp client.key open.key && chmod 644 open.key");
    assert_option(server.connect(&dsn("client.crt", "open.key")).await, "sslkey", "chmod 0600");
}

async fn channel_binding(server: &Server) {
    assert_eq!(tls_version(server, "channel_binding=require sslmode=require").await, "TLSv1.3");
    let old = "channel_binding=require sslmode=require ssl_max_protocol_version=TLSv1.2";
    assert_eq!(tls_version(server, old).await, "TLSv1.2");
    assert_eq!(tls_version(server, "channel_binding=disable sslmode=require").await, "TLSv1.3");
    let refused = server.connect("channel_binding=require sslmode=disable").await;
    assert_tls_refused(refused, "channel binding", "needs TLS");
}

/// What arrives on a channel of a database that takes any bytes: texts, and the sizes of what is none.
async fn bytes_heard(link: Link) -> Vec<Result<String, usize>> {
    let Link { client, mut connection, .. } = link;
    let (sender, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let driver = tokio::spawn(async move {
        while let Some(message) = std::future::poll_fn(|cx| connection.poll_message(cx)).await {
            let AsyncMessage::Notification(notification) = message.unwrap() else { continue };
            let text = notification.payload().to_owned();
            let _ = sender.send(unreadable_bytes(&notification).map_or(Ok(text), Err));
        }
    });
    client.batch_execute(r"LISTEN jobs; SELECT pg_notify('jobs', convert_from('\xc3a9', 'SQL_ASCII'))").await.unwrap();
    client.batch_execute(r"SELECT pg_notify('jobs', convert_from('\x63e9ff', 'SQL_ASCII'))").await.unwrap();
    client.batch_execute("NOTIFY jobs, 'after'").await.unwrap();
    let mut found = Vec::new();
    while found.last() != Some(&Ok("after".to_owned())) {
        found.push(timeout(Duration::from_secs(20), heard.recv()).await.unwrap().unwrap());
    }
    drop(client);
    driver.await.unwrap();
    found
}

async fn bytes_that_are_no_text(server: &Server) {
    server.sql("CREATE DATABASE bytes ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0");
    let expected = [Ok("é".to_owned()), Err(3), Ok("after".to_owned())];
    let folder = server.file("").replace('/', "%2F");
    let unix = format!("postgresql://app@{folder}:{}/bytes", server.port);
    let connectors = [
        connector(&unix),
        server.connector("dbname=bytes sslmode=disable keepalives=0"),
        server.connector("dbname=bytes sslmode=prefer keepalives_idle=9 keepalives_interval=3 keepalives_count=2"),
        server.connector("dbname=bytes sslmode=require channel_binding=require tcp_user_timeout=9000"),
        server.connector("dbname=bytes sslmode=prefer user=clear_only"),
        server.connector("dbname=bytes sslmode=allow user=tls_only"),
    ];
    for connector in connectors {
        let link = connector.connect_to_listen().await.unwrap();
        assert_eq!(link.encoding, Encoding::Bytes);
        assert_eq!(bytes_heard(link).await, expected, "{connector:?}");
    }
    assert_eq!(server.connect("").await.unwrap().encoding, Encoding::Utf8);
}

async fn several_hosts(server: &Server) {
    let ((_reserved, dead), port) = (reserved_port(), server.port);
    let dsn = |hosts: &str| format!("postgresql://app:right@{hosts}/app");
    for more in ["", "?load_balance_hosts=random"] {
        let link = connector(&(dsn(&format!("127.0.0.1:{dead},127.0.0.1:{port}")) + more)).connect().await.unwrap();
        assert_eq!(link.host, format!("127.0.0.1:{port}"));
    }
    // Looked up; where the name has an IPv6 address, that one is refused first.
    connector(&dsn(&format!("localhost:{port}"))).connect().await.unwrap();
    // A wrong password ends the attempt: asking every host would only lock the account.
    let wrong = dsn(&format!("127.0.0.1:{port},127.0.0.1:{dead}")).replace("right", "wrong");
    assert_eq!(report(connector(&wrong).connect().await).sqlstate, "28P01");
}

async fn standbys(server: &Server) {
    let (primary, standby) = (format!("127.0.0.1:{}", server.port), format!("127.0.0.1:{}", server.standby_port));
    let dsn = |user: &str, hosts: &str| format!("postgresql://{user}:right@{hosts}/app");
    let result = connector(&dsn("app", &standby)).connect().await;
    assert!(result.as_ref().unwrap_err().is_transient()); // it may be promoted
    let found = report(result);
    assert_eq!(found.sqlstate, "25006");
    assert!(found.message.contains(&format!("{standby} is a hot standby")), "{}", found.message);

    let both = connector(&dsn("app", &format!("{standby},{primary}"))).connect().await.unwrap();
    assert_eq!(both.host, primary);
    let none = report(connector(&dsn("app", &format!("{standby},{standby}"))).connect().await);
    assert_eq!(none.sqlstate, "25006");
    let (_reserved, dead) = reserved_port();
    let dead = format!("127.0.0.1:{dead}");
    match connector(&dsn("app", &format!("{standby},{dead}"))).connect().await {
        Err(Error::ConnectionLost { reason, .. }) => {
            assert!(reason.contains("hot standby") && reason.contains(&dead), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    let read_only = report(connector(&dsn("reader", &primary)).connect().await);
    assert_eq!(read_only.sqlstate, "25006");
    assert!(read_only.message.contains("default_transaction_read_only"), "{}", read_only.message);
}

/// As the manual of `PostgreSQL` makes one: an authority by its extensions, a common name, no alternative names.
async fn self_signed_certificate(server: &Server) {
    server.use_certificate("selfsigned");
    let own = server.file("selfsigned.crt");
    assert_eq!(tls_version(server, &format!("sslmode=verify-full sslrootcert={own}")).await, "TLSv1.3");
    assert_eq!(tls_version(server, "sslmode=require channel_binding=require").await, "TLSv1.3");
    let result = server.connect(&format!("sslmode=verify-full sslrootcert={own} host=db.example.com")).await;
    assert_tls_refused(result, "is not for db.example.com", "subjectAltName");
    let ca = server.file("ca.crt");
    assert_tls_refused(server.connect(&format!("sslmode=verify-ca sslrootcert={ca}")).await, "verify-ca", "");
}

async fn version_one_certificate(server: &Server) {
    server.use_certificate("old");
    assert_eq!(tls_version(server, "sslmode=require channel_binding=require").await, "TLSv1.3");
    let ca = server.file("ca.crt");
    assert_tls_refused(server.connect(&format!("sslmode=verify-ca sslrootcert={ca}")).await, "version 1", "version 3");
}

#[tokio::test]
async fn unreachable_hosts_are_all_named() {
    let ((_one, one), (_two, two)) = (reserved_port(), reserved_port());
    let result = connector(&format!("postgresql://u@127.0.0.1:{one},127.0.0.1:{two}/d")).connect().await;
    let error = result.unwrap_err();
    assert!(error.is_transient());
    let text = error.to_string();
    assert!(text.contains(&format!("127.0.0.1:{one}")) && text.contains(&format!("127.0.0.1:{two}")), "{text}");
    assert!(text.contains("refused"), "{text}");

    let error = connector("postgresql://u@name.invalid/d").connect().await.unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("name.invalid:5432"), "{error}");
    let error = connector("postgresql://u@%2Fnonexistent/d").connect().await.unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("/nonexistent:5432"), "{error}");
}

/// The limit covers what the driver's own does not: a server that accepts the connection and never answers.
#[tokio::test]
async fn a_silent_server_is_given_up() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    for mode in ["disable", "require"] {
        let connector = connector(&format!("host=127.0.0.1 port={port} user=u sslmode={mode} connect_timeout=1"));
        let result =
            timeout(Duration::from_secs(60), connector.connect()).await.expect("connect_timeout has no effect");
        let error = result.unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }) && error.is_transient(), "{error:?}");
        assert!(error.to_string().contains(&format!("127.0.0.1:{port} did not finish within 1 s")), "{error}");
    }
}

#[tokio::test]
async fn what_is_no_postgresql_server_is_refused() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut socket, b"SSH-2.0-OpenSSH\r\n").await.unwrap();
        std::future::pending::<()>().await; // keeps the socket open
    });
    let result = connector(&format!("host=127.0.0.1 port={port} user=u sslmode=require")).connect().await;
    assert_tls_refused(result, "not TLS", "port");
}

/// A server that knows no password: it cannot prove that it is the one we know, and then asks for the password itself. Counts
/// the sessions that were begun, and keeps the password if it is told.
struct Impostor {
    port: u16,
    sessions: Arc<AtomicUsize>,
    learned: Arc<Mutex<Vec<u8>>>,
}

impl Impostor {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sessions, learned) = <(Arc<AtomicUsize>, Arc<Mutex<Vec<u8>>>)>::default();
        let (count, told) = (Arc::clone(&sessions), Arc::clone(&learned));
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                let session = count.fetch_add(1, Ordering::SeqCst);
                if let Ok(word) = Self::serve(&mut socket.unwrap(), session) {
                    told.lock().unwrap().extend(word);
                }
            }
        });
        Self { port, sessions, learned }
    }

    fn serve(socket: &mut TcpStream, session: usize) -> std::io::Result<Vec<u8>> {
        const SSL_REQUEST: [u8; 4] = 80_877_103_u32.to_be_bytes();
        while Self::read(socket)?.starts_with(&SSL_REQUEST) {
            socket.write_all(b"N")?;
        }
        if session > 0 {
            Self::send(socket, 3, b"")?; // in clear text, please
            return Self::read_typed(socket);
        }
        Self::send(socket, 10, b"SCRAM-SHA-256\0\0")?;
        let hello = Self::read_typed(socket)?;
        let nonce = String::from_utf8_lossy(&hello).rsplit_once("r=").unwrap().1.to_owned();
        Self::send(socket, 11, format!("r={nonce}more,s=c2FsdA==,i=4096").as_bytes())?;
        Self::read_typed(socket)?;
        Self::send(socket, 12, b"v=c29tZXRoaW5nIG1hZGUgdXAgYnkgdGhlIGltcG9zdG8=")?;
        Ok(Vec::new())
    }

    fn send(socket: &mut TcpStream, kind: u32, body: &[u8]) -> std::io::Result<()> {
        let length = u32::try_from(body.len() + 8).unwrap();
        socket.write_all(&[b"R", &length.to_be_bytes()[..], &kind.to_be_bytes()[..], body].concat())
    }

    fn read(socket: &mut TcpStream) -> std::io::Result<Vec<u8>> {
        let mut length = [0; 4];
        socket.read_exact(&mut length)?;
        let mut body = vec![0; u32::from_be_bytes(length) as usize - 4];
        socket.read_exact(&mut body)?;
        Ok(body)
    }

    fn read_typed(socket: &mut TcpStream) -> std::io::Result<Vec<u8>> {
        socket.read_exact(&mut [0])?;
        Self::read(socket)
    }
}

#[tokio::test]
async fn a_server_that_cannot_prove_itself_is_not_tried_again() {
    for mode in ["prefer", "allow", "disable"] {
        let impostor = Impostor::start();
        let dsn = format!("host=127.0.0.1 port={} user=u password=secret sslmode={mode}", impostor.port);
        assert_tls_refused(connector(&dsn).connect().await, "authentication failed: SCRAM", "scram-sha-256");
        assert_eq!(impostor.sessions.load(Ordering::SeqCst), 1, "{mode}");
        assert!(impostor.learned.lock().unwrap().is_empty(), "{mode}");
    }
}
