//! The compiled core of `socketio_postgres`: connecting to PostgreSQL, the LISTEN loop, the cluster codec,
//! attachments and the group-committing publisher. Policy lives in Python; see ARCHITECTURE.md.

pub mod connect;
pub mod error;
pub mod handover;
pub mod lock;
pub mod publish;
#[cfg(feature = "python")]
mod py;
pub mod receive;
pub mod store;
pub mod table_name;
pub mod wire;
