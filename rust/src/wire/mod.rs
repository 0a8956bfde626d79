//! What travels between servers: messages, their encodings, signatures, and what a hole in their numbers means. No I/O.

pub mod codec;
pub mod cursor;
pub mod gap;
pub mod protocol;
pub mod signature;
