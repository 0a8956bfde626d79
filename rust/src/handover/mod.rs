//! The values that the background thread hands over to Python.

pub mod completion;
pub mod inbox;
pub mod item;
