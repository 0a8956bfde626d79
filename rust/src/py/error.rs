//! Rust errors as the Python exceptions of `socketio_postgres.exceptions`.

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{IntoPyDict as _, PyDict, PyModule};

use crate::error::Error;

static EXCEPTIONS: PyOnceLock<Py<PyModule>> = PyOnceLock::new();

/// The exception object for an error, with every detail as an attribute.
pub fn exception<'py>(py: Python<'py>, error: &Error) -> PyResult<Bound<'py, PyAny>> {
    let text = error.to_string();
    let (class, details): (&str, Bound<'py, PyDict>) = match error {
        Error::Options { option, value, reason } => {
            ("OptionsError", [("option", option), ("value", value), ("reason", reason)].into_py_dict(py)?)
        }
        Error::Closed(_) => ("ClosedError", PyDict::new(py)),
        Error::Forked(_) => ("ForkedProcessError", PyDict::new(py)),
        Error::Encode { path, reason } => ("EncodeError", [("path", path), ("reason", reason)].into_py_dict(py)?),
        Error::Decode { channel, size_bytes, reason } => {
            let details = [("channel", channel), ("reason", reason)].into_py_dict(py)?;
            details.set_item("size_bytes", size_bytes)?;
            ("DecodeError", details)
        }
        Error::TooLarge { size_bytes, limit_bytes, .. } => {
            ("PayloadTooLargeError", [("size_bytes", size_bytes), ("limit_bytes", limit_bytes)].into_py_dict(py)?)
        }
        Error::AttachmentMissing { attachment_id, channel } => {
            ("AttachmentMissingError", [("attachment_id", attachment_id), ("channel", channel)].into_py_dict(py)?)
        }
        Error::Database { report, .. } => {
            let details = [("sqlstate", &report.sqlstate), ("severity", &report.severity)].into_py_dict(py)?;
            details.set_item("detail", &report.detail)?;
            details.set_item("hint", &report.hint)?;
            details.set_item("constraint", &report.constraint)?;
            ("DatabaseError", details)
        }
        Error::ConnectionLost { may_be_sent, .. } => {
            ("ConnectionLostError", [("may_be_sent", may_be_sent)].into_py_dict(py)?)
        }
        Error::Timeout { .. } => ("OperationTimeoutError", PyDict::new(py)),
    };
    let module =
        EXCEPTIONS.get_or_try_init(py, || PyModule::import(py, "socketio_postgres.exceptions").map(Bound::unbind))?;
    module.bind(py).getattr(class)?.call((text,), Some(&details))
}

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        Python::attach(|py| match exception(py, &error) {
            Ok(value) => Self::from_value(value),
            Err(failure) => failure,
        })
    }
}
