//! The event store: one table, written by several languages, read in commit-safe order.
//!
//! Writing: event → writer (merging) → pool. Reading: wake-up → feed (watermark, ring) → subscription; reader for
//! pages.

pub mod add_index;
pub mod event;
pub mod event_id;
pub mod event_store;
pub mod filter;
pub mod indexes;
pub mod json;
pub mod pool;
pub mod read;
pub mod row;
pub mod server;
pub mod table;
pub mod write;
