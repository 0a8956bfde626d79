//! JSON with the equality of `jsonb`: numbers are compared by value, whatever their size or notation, and objects
//! without order.
//!
//! The texts are valid JSON, written by PostgreSQL or by this package's encoder.

use std::collections::BTreeMap;

use crate::wire::cursor::Cursor;
use crate::wire::protocol::MAX_DEPTH;

/// A parsed document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// `null`
    Null,
    /// `true`, `false`
    Bool(bool),
    /// A number in normal form: sign, digits without leading or trailing zeros, and the exponent of the last digit.
    Number {
        /// Below zero.
        is_negative: bool,
        /// Significant digits; empty for zero.
        digits: String,
        /// Power of ten of the last digit.
        exponent: i64,
    },
    /// A string.
    String(String),
    /// An array.
    Array(Vec<Value>),
    /// An object. As in `jsonb`, the last of equal keys counts.
    Object(BTreeMap<String, Value>),
}

impl Value {
    /// Parse a text; `None` when it is not JSON or is nested too deeply.
    pub fn parse(text: &str) -> Option<Self> {
        let mut cursor = Cursor::new(text);
        let value = Self::read(&mut cursor, 0)?;
        cursor.is_at_end().then_some(value)
    }

    fn read(cursor: &mut Cursor<'_>, depth: usize) -> Option<Self> {
        if depth > MAX_DEPTH {
            return None;
        }
        match cursor.ahead()? {
            b'n' => cursor.piece("null").map(|()| Self::Null),
            b't' => cursor.piece("true").map(|()| Self::Bool(true)),
            b'f' => cursor.piece("false").map(|()| Self::Bool(false)),
            b'"' => Some(Self::String(cursor.string()?.unescaped()?.into_owned())),
            b'[' => {
                let mut items = Vec::new();
                cursor.array(|cursor| {
                    items.push(Self::read(cursor, depth + 1)?);
                    Some(())
                })?;
                Some(Self::Array(items))
            }
            b'{' => {
                let mut members = BTreeMap::new();
                cursor.object(|cursor, key| {
                    members.insert(key.unescaped()?.into_owned(), Self::read(cursor, depth + 1)?);
                    Some(())
                })?;
                Some(Self::Object(members))
            }
            _ => Self::number(cursor.number()?),
        }
    }

    fn number(text: &str) -> Option<Self> {
        let (mantissa, exponent) = match text.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent.parse::<i64>().ok()?),
            None => (text, 0),
        };
        let (is_negative, mantissa) = mantissa.strip_prefix('-').map_or((false, mantissa), |rest| (true, rest));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits = format!("{whole}{fraction}");
        let exponent = exponent.checked_sub(i64::try_from(fraction.len()).ok()?)?;
        let significant = digits.trim_start_matches('0');
        let trimmed = significant.trim_end_matches('0');
        if trimmed.is_empty() {
            return Some(Self::Number { is_negative: false, digits: String::new(), exponent: 0 });
        }
        let exponent = exponent.checked_add(i64::try_from(significant.len() - trimmed.len()).ok()?)?;
        Some(Self::Number { is_negative, digits: trimmed.to_owned(), exponent })
    }

    /// `jsonb @> jsonb`: whether this document contains `other`.
    pub fn contains(&self, other: &Self) -> bool {
        match (self, other) {
            // The server's only special case: an array contains a bare scalar.
            (Self::Array(items), scalar) if !scalar.is_container() => items.contains(scalar),
            _ => self.holds(other),
        }
    }

    fn holds(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Object(mine), Self::Object(others)) => {
                others.iter().all(|(key, other)| mine.get(key).is_some_and(|value| value.holds(other)))
            }
            (Self::Array(mine), Self::Array(others)) => {
                others.iter().all(|other| mine.iter().any(|value| value.holds(other)))
            }
            _ => self == other,
        }
    }

    fn is_container(&self) -> bool {
        matches!(self, Self::Array(_) | Self::Object(_))
    }
}

/// Why valid JSON cannot be stored as `jsonb`: a string contains a NUL or half a surrogate pair. `None` when it can be
/// stored.
pub fn unstorable(text: &str) -> Option<&'static str> {
    let hex = |at: usize| text.get(at..at + 4).and_then(|digits| u16::from_str_radix(digits, 16).ok());
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(found) = text.get(at..).and_then(|rest| rest.find('\\')) {
        at += found;
        if bytes.get(at + 1) != Some(&b'u') {
            at += 2;
            continue;
        }
        match hex(at + 2) {
            Some(0) => return Some("it holds a NUL character, which jsonb cannot store"),
            Some(0xD800..=0xDBFF) => {
                let follows = bytes.get(at + 6..at + 8) == Some(b"\\u");
                if !follows || !matches!(hex(at + 8), Some(0xDC00..=0xDFFF)) {
                    return Some("it holds half a surrogate pair, which jsonb cannot store");
                }
                at += 12;
            }
            Some(0xDC00..=0xDFFF) => return Some("it holds half a surrogate pair, which jsonb cannot store"),
            _ => at += 6,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contains(document: &str, part: &str) -> bool {
        Value::parse(document).unwrap().contains(&Value::parse(part).unwrap())
    }

    #[test]
    fn numbers_are_equal_by_value() {
        for (a, b) in [("1", "1.0"), ("1e2", "100"), ("-0", "0"), ("1200e-2", "12"), ("0.10", "1e-1")] {
            assert_eq!(Value::parse(a), Value::parse(b), "{a} {b}");
        }
        for (a, b) in [("9007199254740993", "9007199254740992"), ("1", "-1"), ("1", "10"), ("0.1", "0.01")] {
            assert_ne!(Value::parse(a), Value::parse(b), "{a} {b}");
        }
    }

    #[test]
    fn contains_as_the_server_does() {
        for (document, part) in [
            (r#"{"a": 1, "b": {"c": [1, 2, {"d": 3}]}}"#, r#"{"b": {"c": [{"d": 3}, 1, 1]}}"#),
            ("[1, [2, 3]]", "[[3]]"),
            ("[1, 2]", "2"),
            ("5", "5"),
            ("{}", "{}"),
            (r#"[{"a": 1, "b": 2}]"#, r#"[{"a": 1}]"#),
        ] {
            assert!(contains(document, part), "{document} {part}");
        }
        for (document, part) in [
            ("{}", "[]"),
            ("5", "[5]"),
            ("[[1]]", "1"),
            (r#"{"a": [1]}"#, r#"{"a": 1}"#),
            (r#"{"a": 1}"#, r#"{"a": {}}"#),
        ] {
            assert!(!contains(document, part), "{document} {part}");
        }
    }

    #[test]
    fn no_json_is_no_value() {
        for text in [
            "",
            "{",
            "[1,]",
            "nul",
            "1 2",
            "\"a",
            "-",
            "--1",
            ".",
            &"[".repeat(300),
            "10e9223372036854775807",
            "0.1e-9223372036854775808",
        ] {
            assert_eq!(Value::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn finds_what_jsonb_refuses() {
        for text in [r#""\u0000""#, r#""\\\u0000""#, r#""\ud800""#, r#""\udc00\ud800""#, r#""\ud83dx""#] {
            assert!(unstorable(text).is_some(), "{text}");
        }
        for text in [r#""\\u0000""#, r#""\ud83d\ude00""#, r#""\n\"""#, r#""\u0001""#, "{}"] {
            assert_eq!(unstorable(text), None, "{text}");
        }
    }
}
