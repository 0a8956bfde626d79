//! `Inbox`: where Python takes what the background thread hands over.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

use super::error::exception;
use super::message::PyMessage;
use crate::gap::Gap;
use crate::inbox::{Completion, Inbox, Item, Outcome};

/// See `_core.pyi`.
#[pyclass(name = "Inbox", frozen, module = "socketio_postgres._core")]
pub struct PyInbox(pub Arc<Inbox>);

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
    pub fn completion(&self, token: u64) -> Completion {
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
        let limit = Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX);
        py.detach(|| self.0.wait(limit))
    }

    fn drain<'py>(&self, py: Python<'py>, max_count: usize) -> PyResult<Bound<'py, PyList>> {
        let list = PyList::empty(py);
        for (token, item) in self.0.drain(max_count) {
            if let Item::Overflow(overflow) = item {
                for gap in overflow.into_gaps() {
                    list.append((token, GAP, gap_to_python(py, gap)?))?;
                }
                continue;
            }
            let (kind, value) = item_to_python(py, item)?;
            list.append((token, kind, value))?;
        }
        Ok(list)
    }
}

fn item_to_python(py: Python<'_>, item: Item) -> PyResult<(u8, Bound<'_, PyAny>)> {
    Ok(match item {
        Item::Finished(Ok(outcome)) => (FINISHED, outcome_to_python(py, outcome)?),
        Item::Finished(Err(error)) => (FAILED, exception(py, &error)?),
        Item::Message(message) => (MESSAGE, Bound::new(py, PyMessage(message))?.into_any()),
        Item::Notification(n) => (NOTIFICATION, (n.channel, n.payload, n.pid).into_pyobject(py)?.into_any()),
        Item::Listening { after_gap } => (LISTENING, after_gap.into_pyobject(py)?.to_owned().into_any()),
        Item::Failure(error) => (FAILURE, exception(py, &error)?),
        Item::Gap(gap) => (GAP, gap_to_python(py, gap)?),
        // Taken apart by the caller, because it is several gaps.
        Item::Overflow(_) => (GAP, py.None().into_bound(py)),
        Item::Seen { nsp, uid } => (SEEN, (nsp, uid).into_pyobject(py)?.into_any()),
        Item::Members(ids) => (MEMBERS, ids.into_pyobject(py)?),
    })
}

fn gap_to_python(py: Python<'_>, gap: Gap) -> PyResult<Bound<'_, PyAny>> {
    let since = gap.since.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    Ok((gap.reason.as_str(), gap.nsp, gap.sender, gap.missing, since).into_pyobject(py)?.into_any())
}

fn outcome_to_python(py: Python<'_>, outcome: Outcome) -> PyResult<Bound<'_, PyAny>> {
    Ok(match outcome {
        Outcome::Done | Outcome::Bytes(None) => py.None().into_bound(py),
        Outcome::Number(number) => number.into_pyobject(py)?.into_any(),
        Outcome::Bytes(Some(bytes)) => PyBytes::new(py, &bytes).into_any(),
        outcome => super::store::outcome_to_python(py, outcome)?,
    })
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
