//! What crosses from the background thread to Python.

pub mod completion;
pub mod inbox;
pub mod item;
