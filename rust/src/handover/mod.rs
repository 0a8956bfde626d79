//! The queue between the core and Python.

pub mod inbox;
