//! JSON text to Python objects in one pass, as Python's own `json` makes them, only faster.
//!
//! What is unusual is left to `json.loads`, which knows what it means: invalid text, integers beyond 64 bits, unpaired
//! surrogates, very deep nesting. So the results are the same, and so are the errors.

use std::sync::{Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyString};

/// Nesting that is parsed here.
const MAX_DEPTH: usize = 64;
/// Digits that always fit into 64 bits.
const MAX_DIGITS: usize = 18;
/// Keys that are remembered, each in the place that its hash gives it.
const KEYS: usize = 512;
/// Longest key that is remembered.
const KEY_BYTES: usize = 64;

type Key = (Box<str>, Py<PyString>);

/// Keys come again and again: one object for all of them spares making it and hashing it.
static SEEN: Mutex<[Option<Key>; KEYS]> = Mutex::new([const { None }; KEYS]);

/// The value of a JSON text; `None` for what `json.loads` has to judge.
pub fn parse<'py>(py: Python<'py>, text: &str) -> Option<Bound<'py, PyAny>> {
    let mut parser = Parser { py, text, at: 0 };
    let value = parser.value(0)?;
    parser.skip_space();
    (parser.at == text.len()).then_some(value)
}

struct Parser<'a, 'py> {
    py: Python<'py>,
    text: &'a str,
    at: usize,
}

impl<'a, 'py> Parser<'a, 'py> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.at += 1;
        }
    }

    /// The next character that is no space, if it is this one.
    fn take(&mut self, byte: u8) -> Option<()> {
        self.skip_space();
        (self.peek() == Some(byte)).then(|| self.at += 1)
    }

    fn word(&mut self, word: &str) -> Option<()> {
        self.text.get(self.at..)?.starts_with(word).then(|| self.at += word.len())
    }

    fn value(&mut self, depth: usize) -> Option<Bound<'py, PyAny>> {
        if depth > MAX_DEPTH {
            return None;
        }
        self.skip_space();
        let py = self.py;
        match self.peek()? {
            b'"' => match self.string()? {
                Text::Plain(text) => Some(PyString::new(py, text).into_any()),
                Text::Escaped(text) => Some(PyString::new(py, &text).into_any()),
            },
            b'{' => self.object(depth),
            b'[' => self.array(depth),
            b'n' => self.word("null").map(|()| py.None().into_bound(py)),
            b't' => self.word("true").map(|()| PyBool::new(py, true).to_owned().into_any()),
            b'f' => self.word("false").map(|()| PyBool::new(py, false).to_owned().into_any()),
            _ => self.number(),
        }
    }

    fn array(&mut self, depth: usize) -> Option<Bound<'py, PyAny>> {
        self.take(b'[')?;
        let mut items = Vec::new();
        if self.take(b']').is_none() {
            loop {
                items.push(self.value(depth + 1)?);
                if self.take(b',').is_none() {
                    self.take(b']')?;
                    break;
                }
            }
        }
        PyList::new(self.py, items).ok().map(Bound::into_any)
    }

    fn object(&mut self, depth: usize) -> Option<Bound<'py, PyAny>> {
        self.take(b'{')?;
        let dict = PyDict::new(self.py);
        if self.take(b'}').is_some() {
            return Some(dict.into_any());
        }
        loop {
            self.skip_space();
            let key = match self.string()? {
                Text::Plain(text) => self.key(text),
                Text::Escaped(text) => PyString::new(self.py, &text),
            };
            self.take(b':')?;
            dict.set_item(key, self.value(depth + 1)?).ok()?;
            if self.take(b',').is_none() {
                self.take(b'}')?;
                return Some(dict.into_any());
            }
        }
    }

    fn key(&self, text: &str) -> Bound<'py, PyString> {
        if text.len() > KEY_BYTES {
            return PyString::new(self.py, text);
        }
        // FNV-1a: short, and who makes keys collide here only makes them as slow as unknown ones.
        let hash = text
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        let place = usize::try_from(hash % KEYS as u64).unwrap_or_default();
        // Nothing under this lock runs Python code: a string is made before, and the one it replaces is dropped after.
        if let Some(Some((known, key))) = SEEN.lock().unwrap_or_else(PoisonError::into_inner).get(place)
            && **known == *text
        {
            return key.bind(self.py).clone();
        }
        let key = PyString::new(self.py, text);
        let entry = Some((text.into(), key.clone().unbind()));
        let replaced = {
            let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
            seen.get_mut(place).map(|slot| std::mem::replace(slot, entry))
        };
        drop(replaced);
        key
    }

    fn string(&mut self) -> Option<Text<'a>> {
        if self.peek() != Some(b'"') {
            return None;
        }
        let (bytes, start) = (self.text.as_bytes(), self.at + 1);
        let mut at = start;
        let mut is_escaped = false;
        loop {
            match *bytes.get(at)? {
                b'"' => break,
                b'\\' => {
                    is_escaped = true;
                    at += 2;
                }
                0..0x20 => return None,
                _ => at += 1,
            }
        }
        self.at = at + 1;
        if is_escaped {
            return serde_json::from_str(self.text.get(start - 1..=at)?).ok().map(Text::Escaped);
        }
        self.text.get(start..at).map(Text::Plain)
    }

    fn digits(&mut self) -> usize {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        self.at - start
    }

    fn number(&mut self) -> Option<Bound<'py, PyAny>> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        let begins_with_zero = self.peek() == Some(b'0');
        let whole = self.digits();
        if whole == 0 || begins_with_zero && whole > 1 {
            return None;
        }
        let mut is_integer = true;
        if self.peek() == Some(b'.') {
            self.at += 1;
            is_integer = false;
            if self.digits() == 0 {
                return None;
            }
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            is_integer = false;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            if self.digits() == 0 {
                return None;
            }
        }
        let text = self.text.get(start..self.at)?;
        if !is_integer {
            return Some(PyFloat::new(self.py, text.parse().ok()?).into_any());
        }
        if whole > MAX_DIGITS {
            return None;
        }
        Some(PyInt::new(self.py, text.parse::<i64>().ok()?).into_any())
    }
}

/// The inside of a string.
enum Text<'a> {
    /// As it stands in the text.
    Plain(&'a str),
    /// With its escapes resolved.
    Escaped(String),
}
