//! Rust errors as the Python exceptions of `socketio_postgres.exceptions`.

use std::time::SystemTime;

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{IntoPyDict as _, PyDict, PyModule};

use crate::connect::outage::Present;
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
            let class = if *may_be_sent { "CommitInDoubtError" } else { "ConnectionLostError" };
            (class, [("may_be_sent", may_be_sent)].into_py_dict(py)?)
        }
        Error::Signature { channel, reason } => {
            let details = [("channel", channel)].into_py_dict(py)?;
            details.set_item("reason", reason)?;
            ("SignatureError", details)
        }
        Error::BufferFull { count, bytes } => {
            ("BufferFullError", [("count", count), ("bytes", bytes)].into_py_dict(py)?)
        }
        Error::SelfTest { likely_cause, .. } => {
            ("SelfTestError", [("likely_cause", likely_cause.as_str())].into_py_dict(py)?)
        }
        Error::Timeout { .. } => ("OperationTimeoutError", PyDict::new(py)),
        Error::Refused(error) => return exception(py, error),
        Error::WrongExpectedVersion { aggregate_id, expected, actual } => {
            let details = [("aggregate_id", aggregate_id)].into_py_dict(py)?;
            details.set_item("expected", expected)?;
            details.set_item("actual", actual)?;
            ("WrongExpectedVersionError", details)
        }
        Error::DuplicateEvent { id, version } => {
            let details = [("event_id", id)].into_py_dict(py)?;
            details.set_item("version", version)?;
            ("DuplicateEventError", details)
        }
        Error::AggregateIdTooLong { aggregate_id, size_bytes, limit_bytes, .. } => {
            let details = [("size_bytes", size_bytes), ("limit_bytes", limit_bytes)].into_py_dict(py)?;
            details.set_item("aggregate_id", aggregate_id)?;
            ("AggregateIdTooLongError", details)
        }
        Error::AggregateLocked { aggregate_id, pid, application_name, state, open_for, .. } => {
            let details = [("aggregate_id", aggregate_id)].into_py_dict(py)?;
            details.set_item("pid", pid)?;
            details.set_item("application_name", application_name)?;
            details.set_item("state", state)?;
            details.set_item("seconds", open_for.map(|open_for| open_for.as_secs_f64()))?;
            ("AggregateLockedError", details)
        }
        Error::SchemaMismatch { table, reason } => {
            ("SchemaMismatchError", [("table_name", table), ("reason", reason)].into_py_dict(py)?)
        }
        Error::LocksNotVisible { table, sequence } => {
            ("LocksNotVisibleError", [("table_name", table), ("sequence", sequence)].into_py_dict(py)?)
        }
        Error::Rewound { position, last_version, event_id, found_id, .. } => {
            let details = [("position", position), ("last_version", last_version)].into_py_dict(py)?;
            details.set_item("event_id", event_id)?;
            details.set_item("found_id", found_id)?;
            ("StoreRewoundError", details)
        }
        Error::InvalidConnection(_) => ("InvalidConnectionError", PyDict::new(py)),
        Error::StoreClosed => ("StoreClosedError", PyDict::new(py)),
    };
    let module =
        EXCEPTIONS.get_or_try_init(py, || PyModule::import(py, "socketio_postgres.exceptions").map(Bound::unbind))?;
    module.bind(py).getattr(class)?.call((text,), Some(&details))
}

/// An outage for `stats()`: `None` when there is none.
pub fn outage<'py>(py: Python<'py>, present: Option<&Present>) -> PyResult<Option<Bound<'py, PyDict>>> {
    let Some(Present { since, error }) = present else { return Ok(None) };
    let exception = exception(py, error)?;
    let out = PyDict::new(py);
    out.set_item("kind", exception.get_type().name()?)?;
    out.set_item("sqlstate", exception.getattr_opt("sqlstate")?)?;
    out.set_item("text", error.to_string())?;
    out.set_item("since", since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64())?;
    Ok(Some(out))
}

/// How long an outage has lasted.
pub fn outage_seconds(present: Option<&Present>) -> Option<f64> {
    present.map(|present| present.since.elapsed().unwrap_or_default().as_secs_f64())
}

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        Python::attach(|py| match exception(py, &error) {
            Ok(value) => Self::from_value(value),
            Err(failure) => failure,
        })
    }
}
