//! The compiled core of `socketio_postgres`: connecting to PostgreSQL, the LISTEN loop, the cluster codec,
//! attachments and the group-committing publisher. Policy lives in Python; see ARCHITECTURE.md.

pub mod attachment;
pub mod backoff;
pub mod buffer;
pub mod cancel;
pub mod channels;
pub mod codec;
pub mod connection;
pub mod conninfo;
pub mod echo;
pub mod error;
pub mod flight;
pub mod gap;
pub mod inbox;
pub mod intake;
pub mod lanes;
pub mod listener;
pub mod mended;
pub mod outage;
pub mod outbox;
pub mod probe;
pub mod protocol;
pub mod publisher;
pub mod pulse;
#[cfg(feature = "python")]
mod py;
pub mod queue;
pub mod rooms;
pub mod runtime;
pub mod sequence;
pub mod session;
pub mod signature;
pub mod socket;
pub mod statement;
pub mod store;
pub mod tls;
