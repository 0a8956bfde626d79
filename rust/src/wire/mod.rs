//! The protocol between servers: messages, their encodings, signatures and gap detection by sequence number. No I/O.

pub mod codec;
pub mod cursor;
pub mod gap;
pub mod protocol;
pub mod signature;
