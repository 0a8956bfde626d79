//! `StoredEvent`, and events between Python and the core.

use std::sync::Arc;

use pyo3::basic::CompareOp;
use pyo3::exceptions::PyOverflowError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{IntoPyDict as _, PyDict, PyString, PyTuple};

use super::convert::{self, Root};
use crate::error::{Error, Result};
use crate::store::event::{NewEvent, StoredEvent};
use crate::wire::protocol::Data;

/// See `_core.pyi`.
#[pyclass(name = "StoredEvent", frozen, generic, module = "socketio_postgres._core")]
pub struct PyStoredEvent {
    event: Arc<StoredEvent>,
    data: PyOnceLock<Py<PyAny>>,
    metadata: PyOnceLock<Py<PyAny>>,
}

impl From<Arc<StoredEvent>> for PyStoredEvent {
    fn from(event: Arc<StoredEvent>) -> Self {
        Self { event, data: PyOnceLock::new(), metadata: PyOnceLock::new() }
    }
}

static EPOCH: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
static TIMEDELTA: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

/// Microseconds since 1970 as an aware `datetime`, or the nearest one that exists.
pub fn datetime(py: Python<'_>, micros: Option<i64>) -> PyResult<Bound<'_, PyAny>> {
    let Some(micros) = micros else { return Ok(py.None().into_bound(py)) };
    let epoch = EPOCH.get_or_try_init(py, || {
        let module = py.import("datetime")?;
        let utc = module.getattr("timezone")?.getattr("utc")?;
        let (class, fields) = (module.getattr("datetime")?, (1970, 1, 1, 0, 0, 0, 0, utc));
        class.call1(fields).map(Bound::unbind)
    })?;
    let delta = TIMEDELTA.import(py, "datetime", "timedelta")?.call1((0, 0, micros))?;
    let epoch = epoch.bind(py);
    match epoch.add(delta) {
        Err(error) if error.is_instance_of::<PyOverflowError>(py) => extreme(epoch, micros),
        moment => moment,
    }
}

/// The last or the first moment that a `datetime` can represent. PostgreSQL's range is larger, and includes infinity.
fn extreme<'py>(epoch: &Bound<'py, PyAny>, micros: i64) -> PyResult<Bound<'py, PyAny>> {
    let keywords = [("tzinfo", epoch.getattr("tzinfo")?)].into_py_dict(epoch.py())?;
    let bound = if micros < 0 { "min" } else { "max" };
    epoch.getattr(bound)?.call_method("replace", (), Some(&keywords))
}

fn decoded<'py>(py: Python<'py>, cache: &PyOnceLock<Py<PyAny>>, text: Option<&String>) -> PyResult<Bound<'py, PyAny>> {
    let value = cache.get_or_try_init(py, || match text {
        None => Ok(py.None()),
        Some(text) => convert::decode_json(py, text).map(Bound::unbind),
    })?;
    Ok(value.bind(py).clone())
}

#[pymethods]
impl PyStoredEvent {
    #[new]
    #[pyo3(signature = (version, id, aggregate_id, event_type, data_json=None, metadata_json=None, created_at_us=None))]
    fn new(
        version: i64,
        id: String,
        aggregate_id: String,
        event_type: String,
        data_json: Option<String>,
        metadata_json: Option<String>,
        created_at_us: Option<i64>,
    ) -> Self {
        let (data, metadata, created_at) = (data_json, metadata_json, created_at_us);
        Arc::new(StoredEvent { version, id, aggregate_id, event_type, data, metadata, created_at }).into()
    }

    #[getter]
    fn version(&self) -> i64 {
        self.event.version
    }

    #[getter]
    fn id(&self) -> &str {
        &self.event.id
    }

    #[getter]
    fn aggregate_id(&self) -> &str {
        &self.event.aggregate_id
    }

    #[getter]
    fn event_type(&self) -> &str {
        &self.event.event_type
    }

    #[getter]
    fn stream_name(&self) -> String {
        format!("stream_{}", self.event.aggregate_id)
    }

    #[getter]
    fn size_bytes(&self) -> usize {
        self.event.size_bytes()
    }

    #[getter]
    fn data<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        decoded(py, &self.data, self.event.data.as_ref())
    }

    #[getter]
    fn metadata<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        decoded(py, &self.metadata, self.event.metadata.as_ref())
    }

    #[getter]
    fn data_json(&self) -> Option<&str> {
        self.event.data.as_deref()
    }

    #[getter]
    fn metadata_json(&self) -> Option<&str> {
        self.event.metadata.as_deref()
    }

    #[getter]
    fn created_at<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        datetime(py, self.event.created_at)
    }

    fn __repr__(&self) -> String {
        let event = &self.event;
        format!("StoredEvent({} {:?} of {:?}, id {:?})", event.version, event.event_type, event.aggregate_id, event.id)
    }

    fn __richcmp__(&self, py: Python<'_>, other: &Bound<'_, PyAny>, op: CompareOp) -> PyResult<Py<PyAny>> {
        let is_equal = match other.cast::<Self>() {
            Ok(other) => self.event == other.get().event,
            Err(_) => return Ok(py.NotImplemented()),
        };
        match op {
            CompareOp::Eq => Ok(is_equal.into_pyobject(py)?.to_owned().into_any().unbind()),
            CompareOp::Ne => Ok((!is_equal).into_pyobject(py)?.to_owned().into_any().unbind()),
            _ => Ok(py.NotImplemented()),
        }
    }

    fn __hash__(&self) -> u64 {
        // versions are unique in a table
        self.event.version.cast_unsigned()
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let event = &self.event;
        let fields = (
            event.version,
            &event.id,
            &event.aggregate_id,
            &event.event_type,
            event.data.as_deref(),
            event.metadata.as_deref(),
            event.created_at,
        );
        (py.get_type::<Self>(), fields.into_pyobject(py)?).into_pyobject(py)
    }
}

/// JSON text of a value; `None` for `None`, which becomes `NULL`.
fn json(value: &Bound<'_, PyAny>, field: &str) -> Result<Option<String>> {
    if value.is_none() {
        return Ok(None);
    }
    match convert::encode(value, Root::Data) {
        Ok(Data::Json(text)) => Ok(Some(text)),
        Ok(Data::MessagePack(_)) => Err(Error::Encode {
            path: field.to_owned(),
            reason: "it holds bytes, which JSON has no place for; store a string, such as base64".to_owned(),
        }),
        Err(Error::Encode { path, reason }) => Err(Error::Encode { path: path.replacen("data", field, 1), reason }),
        Err(error) => Err(error),
    }
}

fn text(event: &Bound<'_, PyAny>, field: &Bound<'_, PyString>) -> PyResult<String> {
    let value = event.getattr(field)?;
    value.extract().map_err(|_: PyErr| {
        let kind = value.get_type().qualname().map_or_else(|_| String::new(), |name| name.to_string());
        let reason = format!("it must be a str without unpaired surrogates, not {kind}");
        Error::Encode { path: field.to_string_lossy().into_owned(), reason }.into()
    })
}

/// Events from any iterable.
pub fn new_events(events: &Bound<'_, PyAny>) -> PyResult<Vec<NewEvent>> {
    events.try_iter()?.map(|event| new_event(&event?)).collect()
}

/// An event from an object with the attributes of an event. Its data are encoded now, so that later changes of the
/// object have no effect.
fn new_event(event: &Bound<'_, PyAny>) -> PyResult<NewEvent> {
    let py = event.py();
    let metadata = event.getattr(intern!(py, "metadata"))?;
    if !metadata.is_none() && !metadata.is_instance_of::<PyDict>() {
        let reason = "metadata must be a dict or None".to_owned();
        return Err(Error::Encode { path: "metadata".to_owned(), reason }.into());
    }
    Ok(NewEvent {
        id: text(event, intern!(py, "id"))?,
        aggregate_id: text(event, intern!(py, "aggregate_id"))?,
        event_type: text(event, intern!(py, "event_type"))?,
        data: json(&event.getattr(intern!(py, "data"))?, "data")?,
        metadata: json(&metadata, "metadata")?,
    })
}
