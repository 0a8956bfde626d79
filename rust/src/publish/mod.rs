//! Outgoing messages: admitted to a buffer in the order of the calls, and committed in groups.

pub mod buffer;
pub mod flight;
pub mod framer;
pub mod place;
pub mod publisher;
pub mod statement;
