//! Python values to JSON or MessagePack and back, without an intermediate value tree.

use std::cell::{Cell, RefCell};
use std::fmt::Write as _;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::sync::critical_section::with_critical_section;
use pyo3::types::{PyBool, PyByteArray, PyBytes, PyDict, PyFloat, PyInt, PyList, PyMemoryView, PyString, PyTuple};
use serde::ser::{Error as _, Serialize, SerializeMap as _, SerializeSeq as _, Serializer};
use serde_json::value::RawValue;

use crate::error::{Error, Result};
use crate::wire::codec::json;
use crate::wire::codec::msgpack::{self, Build};
use crate::wire::protocol::{Data, MAX_DEPTH};

const CHANGED: &str = "it changed while it was being encoded; give a copy of what others may change";

/// The kind of the outermost value, for the path in error messages.
#[derive(Clone, Copy)]
pub enum Root {
    /// `[event, *args]`: the first element is the event, the others are the caller's arguments.
    Packet,
    /// Any other value.
    Data,
}

enum Step {
    Index(usize),
    Key(String),
}

/// State of one walk over a Python value.
struct Walk {
    is_json: bool,
    has_binary: Cell<bool>,
    depth: Cell<usize>,
    /// Collected from the inside out, and only after a failure.
    path: RefCell<Vec<Step>>,
    reason: RefCell<Option<String>>,
}

impl Walk {
    fn new(is_json: bool) -> Self {
        Self {
            is_json,
            has_binary: Cell::new(false),
            depth: Cell::new(0),
            path: RefCell::default(),
            reason: RefCell::default(),
        }
    }

    fn fail<E: serde::ser::Error>(&self, reason: impl Into<String>) -> E {
        *self.reason.borrow_mut() = Some(reason.into());
        E::custom("")
    }

    fn error(self, root: Root, fallback: &str) -> Error {
        let mut path = String::new();
        for (level, step) in self.path.into_inner().into_iter().rev().enumerate() {
            let _ = match (level, root, step) {
                // writing to a String cannot fail
                (0, Root::Packet, Step::Index(0)) => write!(path, "event"),
                (0, Root::Packet, Step::Index(index)) => write!(path, "args[{}]", index - 1),
                (_, _, Step::Index(index)) => write!(path, "[{index}]"),
                (_, _, Step::Key(key)) => write!(path, "[{key:?}]"),
            };
        }
        if path.is_empty() || path.starts_with('[') {
            path.insert_str(0, "data");
        }
        Error::Encode { path, reason: self.reason.into_inner().unwrap_or_else(|| fallback.to_owned()) }
    }
}

/// Encode a Python value as JSON, or as MessagePack when it contains binary.
pub fn encode(value: &Bound<'_, PyAny>, root: Root) -> Result<Data> {
    let walk = Walk::new(true);
    let mut text = Vec::with_capacity(128);
    let written = Item { value, walk: &walk }.serialize(&mut serde_json::Serializer::new(&mut text));
    match written {
        // serde_json writes UTF-8 only
        Ok(()) => String::from_utf8(text).map(Data::Json).map_err(|error| walk.error(root, &error.to_string())),
        Err(_) if walk.has_binary.get() => {
            let walk = Walk::new(false);
            let mut bytes = Vec::with_capacity(128);
            match (Item { value, walk: &walk }).serialize(&mut rmp_serde::Serializer::new(&mut bytes)) {
                Ok(()) => Ok(Data::MessagePack(bytes)),
                Err(error) => Err(walk.error(root, &error.to_string())),
            }
        }
        Err(error) => Err(walk.error(root, &error.to_string())),
    }
}

struct Item<'a, 'py> {
    value: &'a Bound<'py, PyAny>,
    walk: &'a Walk,
}

impl<'a, 'py> Item<'a, 'py> {
    fn child(&self, value: &'a Bound<'py, PyAny>) -> Item<'a, 'py> {
        Item { value, walk: self.walk }
    }

    /// Add a step to the path of a failure.
    fn at<T, E>(&self, result: std::result::Result<T, E>, step: impl FnOnce() -> Step) -> std::result::Result<T, E> {
        if result.is_err() {
            let step = step();
            self.walk.path.borrow_mut().push(step);
        }
        result
    }

    fn sequence<S: Serializer>(
        &self,
        serializer: S,
        len: usize,
        items: impl Iterator<Item = Bound<'py, PyAny>>,
    ) -> std::result::Result<S::Ok, S::Error> {
        let mut seq = serializer.serialize_seq(Some(len))?;
        let mut count = 0;
        for (index, item) in items.take(len).enumerate() {
            let item = Item { value: &item, walk: self.walk };
            let written = seq.serialize_element(&item);
            self.at(written, || Step::Index(index))?;
            count += 1;
        }
        // MessagePack writes the length before the items.
        if count == len { seq.end() } else { Err(self.walk.fail(CHANGED)) }
    }

    fn mapping<S: Serializer>(&self, serializer: S, dict: &Bound<'py, PyDict>) -> std::result::Result<S::Ok, S::Error> {
        let len = dict.len();
        let mut map = serializer.serialize_map(Some(len))?;
        let mut entries = dict.iter();
        for _ in 0..len {
            // The iterator panics when the dictionary's size changes, or when it finds more entries than there were.
            // Other code can run between two entries: another thread, or a destructor.
            let entry = with_critical_section(dict, || if dict.len() == len { entries.next() } else { None });
            let Some((key, value)) = entry else { return Err(self.walk.fail(CHANGED)) };
            let written = match key_text(&key) {
                Some(key) if !self.walk.is_json && key == "__proto__" => {
                    Err(self.walk.fail("Node.js refuses the key \"__proto__\" in MessagePack; use another"))
                }
                Some(key) => map.serialize_entry(&key, &self.child(&value)),
                None => {
                    let kind = type_name(&key);
                    Err(self.walk.fail(format!("keys must be str, int, float, bool or None, not {kind}")))
                }
            };
            self.at(written, || Step::Key(key_text(&key).unwrap_or_else(|| type_name(&key))))?;
        }
        map.end()
    }

    fn integer<S: Serializer>(&self, serializer: S, value: &Bound<'py, PyInt>) -> std::result::Result<S::Ok, S::Error> {
        if let Ok(value) = value.extract::<i64>() {
            return serializer.serialize_i64(value);
        }
        if let Ok(value) = value.extract::<u64>() {
            return serializer.serialize_u64(value);
        }
        if self.walk.is_json {
            // serde_json does not support integers beyond 64 bits, but their digits are valid JSON.
            let digits = value.get_type().py().get_type::<PyInt>().call_method1("__repr__", (value,));
            let digits = digits.and_then(|digits| digits.extract::<String>());
            return match digits.map_err(|error| error.to_string()).map(RawValue::from_string) {
                Ok(Ok(raw)) => raw.serialize(serializer),
                Ok(Err(error)) => Err(self.walk.fail(error.to_string())),
                Err(error) => Err(self.walk.fail(error)),
            };
        }
        // Not a subclass's method, which may do anything.
        let float = value.py().get_type::<PyInt>().call_method1("__float__", (value,));
        match float.and_then(|float| float.extract::<f64>()) {
            Ok(value) => serializer.serialize_f64(value),
            Err(_) => Err(self.walk.fail("integer too large for a 64-bit float")),
        }
    }

    fn string<S: Serializer>(
        &self,
        serializer: S,
        value: &Bound<'py, PyString>,
    ) -> std::result::Result<S::Ok, S::Error> {
        if let Ok(text) = value.to_str() {
            return serializer.serialize_str(text);
        }
        // Unpaired surrogates exist in Python and JavaScript strings but not in UTF-8: escaped in JSON, lost in
        // MessagePack, as Node does it.
        if self.walk.is_json {
            let quoted = json_dumps(value);
            return match quoted.map_err(|error| error.to_string()).map(RawValue::from_string) {
                Ok(Ok(raw)) => raw.serialize(serializer),
                Ok(Err(error)) => Err(self.walk.fail(error.to_string())),
                Err(error) => Err(self.walk.fail(error)),
            };
        }
        serializer.serialize_str(&value.to_string_lossy())
    }
}

impl Serialize for Item<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let value = self.value;
        if let Ok(text) = value.cast::<PyString>() {
            return self.string(serializer, text);
        }
        if value.is_none() {
            return serializer.serialize_unit();
        }
        if let Ok(value) = value.cast::<PyBool>() {
            return serializer.serialize_bool(value.is_true());
        }
        if let Ok(value) = value.cast::<PyInt>() {
            return self.integer(serializer, value);
        }
        if let Ok(number) = value.cast::<PyFloat>() {
            let number = number.value();
            if number.is_finite() {
                return serializer.serialize_f64(number);
            }
            return Err(self.walk.fail(format!("{number} has no place in JSON; send None or a string")));
        }
        let is_binary = value.is_instance_of::<PyBytes>()
            || value.is_instance_of::<PyByteArray>()
            || value.is_instance_of::<PyMemoryView>();
        if is_binary {
            if self.walk.is_json {
                self.walk.has_binary.set(true);
                return Err(S::Error::custom("binary"));
            }
            if let Ok(bytes) = value.cast::<PyBytes>() {
                return serializer.serialize_bytes(bytes.as_bytes());
            }
            if let Ok(bytes) = value.cast::<PyByteArray>() {
                return serializer.serialize_bytes(&bytes.to_vec());
            }
            return match value.py().get_type::<PyBytes>().call1((value,)).and_then(|bytes| bytes.extract::<Vec<u8>>()) {
                Ok(bytes) => serializer.serialize_bytes(&bytes),
                Err(error) => Err(self.walk.fail(error.to_string())),
            };
        }
        let depth = self.walk.depth.get() + 1;
        if depth > MAX_DEPTH {
            return Err(self.walk.fail(format!("nested deeper than {MAX_DEPTH} levels (or it contains itself)")));
        }
        self.walk.depth.set(depth);
        let written = if let Ok(dict) = value.cast::<PyDict>() {
            self.mapping(serializer, dict)
        } else if let Ok(list) = value.cast::<PyList>() {
            self.sequence(serializer, list.len(), list.iter())
        } else if let Ok(tuple) = value.cast::<PyTuple>() {
            self.sequence(serializer, tuple.len(), tuple.iter())
        } else {
            let kind = type_name(value);
            Err(self.walk.fail(format!("an object of type {kind} is not JSON serializable; convert it first")))
        };
        self.walk.depth.set(depth - 1);
        written
    }
}

fn type_name(value: &Bound<'_, PyAny>) -> String {
    value.get_type().qualname().map_or_else(|_| "unknown".to_owned(), |name| name.to_string())
}

/// A dictionary key as `json.dumps` writes it.
fn key_text(key: &Bound<'_, PyAny>) -> Option<String> {
    if let Ok(text) = key.cast::<PyString>() {
        return Some(text.to_string_lossy().into_owned());
    }
    if key.is_none() {
        return Some("null".to_owned());
    }
    if let Ok(value) = key.cast::<PyBool>() {
        return Some(if value.is_true() { "true" } else { "false" }.to_owned());
    }
    if key.is_instance_of::<PyInt>() {
        let py = key.py();
        return py.get_type::<PyInt>().call_method1("__repr__", (key,)).ok()?.extract().ok();
    }
    if let Ok(value) = key.cast::<PyFloat>() {
        let is_finite = value.value().is_finite();
        let digits = || key.py().get_type::<PyFloat>().call_method1("__repr__", (key,));
        return if is_finite { digits().ok()?.extract().ok() } else { None };
    }
    None
}

static DUMPS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
static LOADS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

fn json_dumps(value: &Bound<'_, PyString>) -> PyResult<String> {
    DUMPS.import(value.py(), "json", "dumps")?.call1((value,))?.extract()
}

/// Decode user data. JSON is decoded by `loads`, or by Python's own `json` without one, so that integers of any size,
/// unpaired surrogates and a custom json module behave as in python-socketio.
pub fn decode<'py>(py: Python<'py>, data: &Data, loads: Option<&Bound<'py, PyAny>>) -> PyResult<Bound<'py, PyAny>> {
    match data {
        Data::Json(text) => match loads {
            Some(loads) => loads.call1((text,)),
            None => decode_json(py, text),
        },
        Data::MessagePack(bytes) => Ok(msgpack::build(bytes, &mut Builder { py })?),
    }
}

/// Decode JSON as Python's own `json` does.
pub fn decode_json<'py>(py: Python<'py>, text: &str) -> PyResult<Bound<'py, PyAny>> {
    if let Some(value) = super::json::parse(py, text) {
        return Ok(value);
    }
    LOADS.import(py, "json", "loads")?.call1((text,)).map_err(|error| {
        // Valid JSON that Python rejects: an integer of more than sys.get_int_max_str_digits() digits.
        if error.is_instance_of::<PyValueError>(py) { bad_value(&error).into() } else { error }
    })
}

struct Builder<'py> {
    py: Python<'py>,
}

impl<'py> Build for Builder<'py> {
    type Value = Bound<'py, PyAny>;

    fn null(&mut self) -> Self::Value {
        self.py.None().into_bound(self.py)
    }

    fn bool(&mut self, value: bool) -> Self::Value {
        PyBool::new(self.py, value).to_owned().into_any()
    }

    fn int(&mut self, value: i64) -> Self::Value {
        PyInt::new(self.py, value).into_any()
    }

    fn uint(&mut self, value: u64) -> Self::Value {
        PyInt::new(self.py, value).into_any()
    }

    fn float(&mut self, value: f64) -> Self::Value {
        PyFloat::new(self.py, value).into_any()
    }

    fn str(&mut self, value: &str) -> Self::Value {
        PyString::new(self.py, value).into_any()
    }

    fn bytes(&mut self, value: &[u8]) -> Self::Value {
        PyBytes::new(self.py, value).into_any()
    }

    fn array(&mut self, items: Vec<Self::Value>) -> Result<Self::Value> {
        PyList::new(self.py, items).map(Bound::into_any).map_err(|error| bad_value(&error))
    }

    fn map(&mut self, entries: Vec<(Self::Value, Self::Value)>) -> Result<Self::Value> {
        let dict = PyDict::new(self.py);
        for (key, value) in entries {
            // Keys become strings, as in JSON and in JavaScript. With numbers, a sender could choose keys that all
            // collide in a dict.
            let key = if key.is_instance_of::<PyString>() { key } else { self.key(&key)? };
            dict.set_item(key, value).map_err(|error| bad_value(&error))?;
        }
        Ok(dict.into_any())
    }
}

impl<'py> Builder<'py> {
    fn key(&self, key: &Bound<'py, PyAny>) -> Result<Bound<'py, PyAny>> {
        let text = key_text(key).ok_or_else(|| unreadable(format!("a map has a key of type {}", type_name(key))))?;
        Ok(PyString::new(self.py, &text).into_any())
    }
}

fn bad_value(error: &PyErr) -> Error {
    unreadable(error.to_string())
}

fn unreadable(reason: String) -> Error {
    Error::Decode { channel: String::new(), size_bytes: 0, reason }
}

/// Check a JSON text from a custom json module, and use it as data.
pub fn json_text(text: String) -> Result<Data> {
    let refused = |reason: String| Error::Encode { path: "data".to_owned(), reason };
    match serde_json::from_str::<&RawValue>(&text) {
        Ok(_) if json::is_too_deep(&text) => Err(refused(format!("nested deeper than {MAX_DEPTH} levels"))),
        Ok(_) => Ok(Data::Json(text)),
        Err(error) => Err(refused(format!("the json module produced invalid JSON: {error}"))),
    }
}
