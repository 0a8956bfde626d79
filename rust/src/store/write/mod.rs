//! Storing events.

pub mod copy;
pub mod import;
pub mod statements;
pub mod writer;
