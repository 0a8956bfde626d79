//! The Python module `socketio_postgres._core`: thin classes over the crate. Only the files of this module use pyo3.

mod bus;
mod convert;
mod error;
mod event;
mod framer;
mod inbox;
mod interpreter;
mod json;
mod message;
mod session;
mod settings;
mod store;

use std::time::Duration;

use pyo3::prelude::*;

use crate::connect::runtime;
use crate::error::Result;
use crate::wire::protocol;

/// The longest wait, a century: the clock cannot represent a moment much later.
const LONGEST_WAIT: Duration = Duration::from_secs(100 * 365 * 86_400);

/// Seconds to wait as a `Duration`; a negative number counts as 0.
fn wait_of(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(LONGEST_WAIT).min(LONGEST_WAIT)
}

/// See `_core.pyi`.
#[pyfunction]
fn channel_name(prefix: &str, nsp: &str) -> Result<String> {
    protocol::channel_name(prefix, nsp)
}

/// See `_core.pyi`.
#[pyfunction]
fn member_lock(uid: &str) -> u32 {
    crate::receive::membership::member_id(uid)
}

/// See `_core.pyi`.
#[pyfunction]
fn new_event_id() -> Result<String> {
    crate::store::event_id::new()
}

/// See `_core.pyi`.
#[pyfunction]
fn wait_for_dropped(py: Python<'_>, seconds: f64) -> usize {
    py.detach(|| runtime::wait_for_leftovers(wait_of(seconds)))
}

/// The module.
#[pymodule(gil_used = false)]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    interpreter::claim(module.py())?;
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add("IS_DEBUG_BUILD", cfg!(debug_assertions))?;
    module.add("PLACE_SQL", crate::publish::place::PLACE_SQL)?;
    module.add_function(wrap_pyfunction!(channel_name, module)?)?;
    module.add_function(wrap_pyfunction!(member_lock, module)?)?;
    module.add_function(wrap_pyfunction!(new_event_id, module)?)?;
    module.add_function(wrap_pyfunction!(wait_for_dropped, module)?)?;
    module.add_class::<bus::PyBus>()?;
    module.add_class::<framer::PyFramer>()?;
    inbox::register(module)?;
    message::register(module)?;
    session::register(module)?;
    store::register(module)
}
