//! The event store: one table, written by several languages, read in commit-safe order.
//!
//! Out: event → writer (merging) → pool. In: wake-up → feed (watermark, ring) → subscription; reader for pages.

mod copy;
pub mod error;
pub mod event;
pub mod event_id;
pub mod event_store;
pub mod feed;
pub mod filter;
pub mod import;
pub mod json;
pub mod pool;
pub mod reader;
pub mod reading;
pub mod sharing;
mod statements;
pub mod table;
pub mod wakeup;
pub mod watermark;
pub mod writer;
