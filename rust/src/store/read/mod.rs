//! Reading events, and being notified of new ones, in an order that is safe against late commits.

pub mod anchor;
pub mod feed;
pub mod mark;
pub mod newcomers;
pub mod pace;
pub mod page_size;
pub mod reader;
pub mod reading;
pub mod sharing;
pub mod subscription;
pub mod waiting;
pub mod wakeup;
pub mod watermark;
pub mod window;
