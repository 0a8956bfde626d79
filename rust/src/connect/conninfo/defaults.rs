//! Defaults that differ from libpq's.

use std::time::Duration;

/// libpq waits for ever. An unreachable host must not keep the others from being tried.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Limit for `connect_timeout` values of 0 or less, which mean no limit in libpq: about as long as the system tries a
/// TCP connection. Without a limit, a host that accepts connections and never answers would block a listener for ever,
/// without an error.
pub const LONGEST_CONNECT_TIMEOUT: Duration = Duration::from_secs(120);
/// The system's (and the driver's) default is 2 h. A listener only reads, so without probes it would take that long to
/// notice that a firewall or a failover had cut the connection. 30 s also keeps NAT entries alive.
pub const KEEPALIVES_IDLE: Duration = Duration::from_secs(30);
/// With three probes, a dead peer is noticed within a minute, and one lost packet does no harm.
pub const KEEPALIVES_INTERVAL: Duration = Duration::from_secs(10);
/// See [`KEEPALIVES_INTERVAL`].
pub const KEEPALIVES_COUNT: u32 = 3;
/// Keepalive probes are not sent while data is unacknowledged; without this limit the system retransmits for about 15
/// minutes. Equal to interval times count, so that both cases take equally long to detect.
pub const TCP_USER_TIMEOUT: Duration = Duration::from_secs(30);
/// Shown in `pg_stat_activity`.
pub const APPLICATION_NAME: &str = "socketio-postgres";
/// Tried in this order when no host is given: the choice of Debian and that of upstream.
pub const SOCKET_DIRS: [&str; 2] = ["/var/run/postgresql", "/tmp"];
