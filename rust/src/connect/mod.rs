//! Opening sessions and keeping them healthy: connection strings, TLS, one connection for requests, outages.

pub mod backoff;
pub mod cancel;
pub mod connection;
pub mod conninfo;
pub mod listening;
pub mod mended;
pub mod notify_queue;
pub mod outage;
pub mod probe;
pub mod pulse;
pub mod runtime;
pub mod session;
pub mod socket;
pub mod tls;
