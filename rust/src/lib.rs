//! The compiled core of `socketio_postgres`: connecting to PostgreSQL, the LISTEN loop, the cluster codec,
//! attachments and the group-committing publisher. Policy lives in Python; see ARCHITECTURE.md.

pub mod attachment;
pub mod backoff;
pub mod codec;
pub mod connection;
pub mod conninfo;
pub mod error;
pub mod inbox;
pub mod intake;
pub mod listener;
pub mod protocol;
pub mod publisher;
#[cfg(feature = "python")]
mod py;
pub mod runtime;
pub mod session;
pub mod tls;
