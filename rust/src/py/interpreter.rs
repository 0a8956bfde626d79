//! Support for one interpreter per process, not for several.

use std::sync::atomic::{AtomicI64, Ordering};

use pyo3::exceptions::PyImportError;
use pyo3::ffi;
use pyo3::prelude::*;

/// Id of the interpreter that uses the core. Ids are never reused.
static OWNER: AtomicI64 = AtomicI64::new(NOBODY);
const NOBODY: i64 = -1;

/// Reject every interpreter but the first one. Classes and exceptions are created once per process, so another
/// interpreter would get those of the first. No `except` of the other interpreter would match them, and they would be
/// destroyed with the first interpreter.
pub fn claim(_py: Python<'_>) -> PyResult<()> {
    let current = id_of_current();
    match OWNER.compare_exchange(NOBODY, current, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => Ok(()),
        Err(owner) if owner == current => Ok(()),
        Err(_) => Err(PyImportError::new_err(
            "socketio_postgres is in use by another interpreter of this process, and works in one only; with mod_wsgi, \
             put the application into the main interpreter (WSGIApplicationGroup %{GLOBAL}), and each further one into a \
             daemon process of its own (WSGIDaemonProcess, WSGIProcessGroup)",
        )),
    }
}

#[allow(unsafe_code, reason = "pyo3 has no safe way to ask for it")]
fn id_of_current() -> i64 {
    // SAFETY: this is called by the interpreter, on a thread that is attached to it.
    unsafe { ffi::PyInterpreterState_GetID(ffi::PyInterpreterState_Get()) }
}
