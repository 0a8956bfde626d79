//! The Python module `socketio_postgres._core`: thin classes over the crate. The only files that name pyo3.

mod bus;
mod convert;
mod error;
mod event;
mod inbox;
mod json;
mod message;
mod store;

use std::time::Duration;

use pyo3::prelude::*;

use crate::error::Result;
use crate::{protocol, runtime};

/// See `_core.pyi`.
#[pyfunction]
fn channel_name(prefix: &str, nsp: &str) -> Result<String> {
    protocol::channel_name(prefix, nsp)
}

/// See `_core.pyi`.
#[pyfunction]
fn member_lock(uid: &str) -> u32 {
    crate::probe::member_id(uid)
}

/// See `_core.pyi`.
#[pyfunction]
fn new_event_id() -> Result<String> {
    crate::store::event_id::new()
}

/// See `_core.pyi`.
#[pyfunction]
fn wait_for_dropped(py: Python<'_>, seconds: f64) -> usize {
    let limit = Duration::try_from_secs_f64(seconds).unwrap_or_default();
    py.detach(|| runtime::wait_for_leftovers(limit))
}

/// The module.
#[pymodule(gil_used = false)]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("IS_DEBUG_BUILD", cfg!(debug_assertions))?;
    module.add_function(wrap_pyfunction!(channel_name, module)?)?;
    module.add_function(wrap_pyfunction!(member_lock, module)?)?;
    module.add_function(wrap_pyfunction!(new_event_id, module)?)?;
    module.add_function(wrap_pyfunction!(wait_for_dropped, module)?)?;
    module.add_class::<bus::PyBus>()?;
    inbox::register(module)?;
    message::register(module)?;
    store::register(module)
}
