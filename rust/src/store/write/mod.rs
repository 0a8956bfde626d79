//! Storing events.

pub mod calls;
pub mod copy;
pub mod import;
pub mod statements;
pub mod storing;
pub mod writer;
