//! `Inbox`: the queue from which Python takes the items of the background thread.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use pyo3::exceptions::{PyException, PyMemoryError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

use super::error::exception;
use super::message::PyMessage;
use crate::handover::completion::Completion;
use crate::handover::inbox::{Entry, Inbox};
use crate::handover::item::{Item, Receiver as _};
use crate::wire::gap::{Gap, Reason};

/// See `_core.pyi`.
#[pyclass(name = "Inbox", frozen, module = "socketio_postgres._core")]
pub struct PyInbox(pub Arc<Inbox<Answer>>);

/// The result of an operation.
pub struct Answer(Box<dyn ToPython>);

/// Converts a result to a Python object.
pub trait ToPython: Send + 'static {
    /// Convert to an object. May be called any number of times.
    fn to_python<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>>;
}

impl<T: ToPython> From<T> for Answer {
    fn from(value: T) -> Self {
        Self(Box::new(value))
    }
}

impl ToPython for () {
    fn to_python<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(py.None().into_bound(py))
    }
}

impl ToPython for i64 {
    fn to_python<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(self.into_pyobject(py)?.into_any())
    }
}

impl ToPython for Option<Vec<u8>> {
    fn to_python<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(self.as_ref().map(|bytes| PyBytes::new(py, bytes)).into_pyobject(py)?.into_any())
    }
}

const FINISHED: u8 = 0;
const FAILED: u8 = 1;
const MESSAGE: u8 = 2;
const NOTIFICATION: u8 = 3;
const LISTENING: u8 = 4;
const FAILURE: u8 = 5;
const GAP: u8 = 6;
const MEMBERS: u8 = 7;
const SEEN: u8 = 8;

impl PyInbox {
    pub fn completion<T: ToPython>(&self, token: u64) -> Completion<T> {
        Completion::new(&self.0, token)
    }
}

#[pymethods]
impl PyInbox {
    #[new]
    fn new(limit_bytes: usize) -> PyResult<Self> {
        Ok(Self(Inbox::new(limit_bytes)?))
    }

    fn fileno(&self) -> i32 {
        self.0.fileno()
    }

    #[getter]
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn close(&self) {
        self.0.close();
    }

    #[getter]
    fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    #[getter]
    fn dropped(&self) -> u64 {
        self.0.dropped()
    }

    #[getter]
    fn bytes(&self) -> usize {
        self.0.bytes()
    }

    fn wait(&self, py: Python<'_>, seconds: f64) -> bool {
        let limit = super::wait_of(seconds);
        py.detach(|| self.0.wait(limit))
    }

    #[pyo3(signature = (max_count, into=None))]
    fn drain<'py>(
        &self,
        py: Python<'py>,
        max_count: usize,
        into: Option<Bound<'py, PyList>>,
    ) -> PyResult<Bound<'py, PyList>> {
        let list = into.unwrap_or_else(|| PyList::empty(py));
        let mut taken = self.0.take(max_count);
        let now = SystemTime::now();
        while let Some((token, entry)) = taken.first() {
            let length = list.len();
            if let Err(error) = append(&list, *token, entry, now) {
                list.del_slice(length, list.len())?; // some of several gaps may have been added
                if !is_about_the_value(py, &error) {
                    return Err(error);
                }
                let kind = if matches!(entry, Entry::Finished(_)) { FAILED } else { FAILURE };
                list.append((*token, kind, error.into_value(py)))?;
                self.0.count_dropped();
            }
            taken.hand_over();
        }
        Ok(list)
    }
}

/// Whether an error means that this value cannot be converted for Python. Other errors (Ctrl-C, out of memory) are not
/// about the value.
fn is_about_the_value(py: Python<'_>, error: &PyErr) -> bool {
    error.is_instance_of::<PyException>(py) && !error.is_instance_of::<PyMemoryError>(py)
}

fn append(list: &Bound<'_, PyList>, token: u64, entry: &mut Entry<Answer>, now: SystemTime) -> PyResult<()> {
    let py = list.py();
    let (kind, value) = match entry {
        Entry::Finished(Ok(Answer(value))) => (FINISHED, value.to_python(py)?),
        Entry::Finished(Err(error)) => (FAILED, exception(py, error)?),
        Entry::Item(Item::Overflow(overflow)) => {
            return overflow.gaps().try_for_each(|gap| list.append((token, GAP, gap_to_python(py, &gap)?)));
        }
        Entry::Item(item) => item_to_python(py, item, now)?,
    };
    list.append((token, kind, value))
}

/// The kind and the value of an item, which is not changed. Only a message is moved, because copying it costs too much;
/// a gap takes its place until Python has received the message.
fn item_to_python<'py>(py: Python<'py>, item: &mut Item, now: SystemTime) -> PyResult<(u8, Bound<'py, PyAny>)> {
    Ok(match item {
        Item::Message(_) => {
            let gap = Gap { reason: Reason::Overflow, nsp: None, sender: None, missing: Some(1), since: now };
            let Item::Message(message) = std::mem::replace(item, Item::Gap(gap)) else {
                return Ok((GAP, py.None().into_bound(py))); // it was a message just now
            };
            (MESSAGE, Bound::new(py, PyMessage(message))?.into_any())
        }
        Item::Notification(n) => (NOTIFICATION, (&n.channel, &n.payload, n.pid).into_pyobject(py)?.into_any()),
        Item::Listening { after_gap } => (LISTENING, after_gap.into_pyobject(py)?.to_owned().into_any()),
        Item::Failure(error) => (FAILURE, exception(py, error)?),
        Item::Gap(gap) => (GAP, gap_to_python(py, gap)?),
        // Handled by the caller, because it becomes several gaps.
        Item::Overflow(_) => (GAP, py.None().into_bound(py)),
        Item::Seen { nsp, uid } => (SEEN, (&*nsp, &*uid).into_pyobject(py)?.into_any()),
        Item::Members(ids) => (MEMBERS, ids.as_ref().into_pyobject(py)?),
    })
}

fn gap_to_python<'py>(py: Python<'py>, gap: &Gap) -> PyResult<Bound<'py, PyAny>> {
    let since = gap.since.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    Ok((gap.reason.as_str(), &gap.nsp, &gap.sender, gap.missing, since).into_pyobject(py)?.into_any())
}

/// Add the class and the kinds of items.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    for (name, kind) in [
        ("FINISHED", FINISHED),
        ("FAILED", FAILED),
        ("MESSAGE", MESSAGE),
        ("NOTIFICATION", NOTIFICATION),
        ("LISTENING", LISTENING),
        ("FAILURE", FAILURE),
        ("GAP", GAP),
        ("MEMBERS", MEMBERS),
        ("SEEN", SEEN),
    ] {
        module.add(name, kind)?;
    }
    module.add_class::<PyInbox>()
}
