//! JSON text to Python objects in one pass, with the same results as Python's own `json`, only faster.
//!
//! Unusual input is left to `json.loads`: invalid text, integers beyond 64 bits, unpaired surrogates, very deep
//! nesting. Therefore both the results and the errors are the same.

use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyString};

use crate::lock::Mutex;
use crate::wire::cursor::Cursor;

/// Deepest nesting that is parsed here.
const MAX_DEPTH: usize = 64;
/// Number of cached keys, each in the slot that its hash determines.
const KEYS: usize = 512;
/// Longest key that is cached.
const KEY_BYTES: usize = 64;

type Key = (Box<str>, Py<PyString>);

/// Keys recur: one shared object avoids creating and hashing another one.
static SEEN: Mutex<[Option<Key>; KEYS]> = Mutex::new([const { None }; KEYS]);

/// The value of a JSON text; `None` for a text that is left to `json.loads`.
pub fn parse<'py>(py: Python<'py>, text: &str) -> Option<Bound<'py, PyAny>> {
    let mut cursor = Cursor::new(text);
    let parsed = value(py, &mut cursor, 0)?;
    cursor.is_at_end().then_some(parsed)
}

fn value<'py>(py: Python<'py>, cursor: &mut Cursor<'_>, depth: usize) -> Option<Bound<'py, PyAny>> {
    if depth > MAX_DEPTH {
        return None;
    }
    Some(match cursor.ahead()? {
        b'"' => PyString::new(py, &cursor.string()?.unescaped()?).into_any(),
        b'{' => {
            let dict = PyDict::new(py);
            cursor.object(|cursor, name| {
                let key = match name.plain() {
                    Some(name) => key(py, name),
                    None => PyString::new(py, &name.unescaped()?),
                };
                dict.set_item(key, value(py, cursor, depth + 1)?).ok()
            })?;
            dict.into_any()
        }
        b'[' => {
            let mut items = Vec::new();
            cursor.array(|cursor| {
                items.push(value(py, cursor, depth + 1)?);
                Some(())
            })?;
            PyList::new(py, items).ok()?.into_any()
        }
        b'n' => cursor.piece("null").map(|()| py.None().into_bound(py))?,
        b't' => cursor.piece("true").map(|()| PyBool::new(py, true).to_owned().into_any())?,
        b'f' => cursor.piece("false").map(|()| PyBool::new(py, false).to_owned().into_any())?,
        _ => {
            let number = cursor.number()?;
            if number.contains(['.', 'e', 'E']) {
                PyFloat::new(py, number.parse().ok()?).into_any()
            } else {
                PyInt::new(py, number.parse::<i64>().ok()?).into_any()
            }
        }
    })
}

fn key<'py>(py: Python<'py>, text: &str) -> Bound<'py, PyString> {
    if text.len() > KEY_BYTES {
        return PyString::new(py, text);
    }
    // FNV-1a: short, and colliding keys are only as slow as unknown ones.
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let place = usize::try_from(hash % KEYS as u64).unwrap_or_default();
    // No Python code runs under this lock: a string is created before, and the one that it replaces is dropped
    // afterwards.
    if let Some(Some((known, key))) = SEEN.lock().get(place)
        && **known == *text
    {
        return key.bind(py).clone();
    }
    let key = PyString::new(py, text);
    let entry = Some((text.into(), key.clone().unbind()));
    let replaced = {
        let mut seen = SEEN.lock();
        seen.get_mut(place).map(|slot| std::mem::replace(slot, entry))
    };
    drop(replaced);
    key
}
