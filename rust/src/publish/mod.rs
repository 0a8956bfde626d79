//! Messages on their way out: admitted to a buffer, in the order of the calls, and committed group by group.

pub mod buffer;
pub mod flight;
pub mod publisher;
pub mod statement;
