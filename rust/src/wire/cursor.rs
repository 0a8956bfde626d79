//! Scanning JSON text piece by piece, without a copy. All code that does not use serde uses this scanner.
//!
//! Every byte is checked to be valid JSON. Each method begins where the previous one ended, and returns `None` if the
//! text is not JSON or not the requested kind of value.

use std::borrow::Cow;

/// A position in a text.
#[derive(Debug, Clone)]
pub struct Cursor<'a> {
    text: &'a str,
    at: usize,
}

/// A string as written in the text.
#[derive(Debug, Clone, Copy)]
pub struct Quoted<'a> {
    text: &'a str,
    is_plain: bool,
}

impl<'a> Quoted<'a> {
    /// The text inside the quotes, if it has no escapes.
    pub fn plain(self) -> Option<&'a str> {
        if self.is_plain { self.text.get(1..self.text.len() - 1) } else { None }
    }

    /// The text with its escapes resolved. `None` if it holds half a surrogate pair.
    pub fn unescaped(self) -> Option<Cow<'a, str>> {
        match self.plain() {
            Some(text) => Some(Cow::Borrowed(text)),
            None => serde_json::from_str(self.text).ok().map(Cow::Owned),
        }
    }
}

impl<'a> Cursor<'a> {
    /// A cursor at the beginning of a text.
    pub fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// The next byte that is not white space.
    pub fn ahead(&mut self) -> Option<u8> {
        loop {
            let byte = self.peek()?;
            if byte > b' ' || !matches!(byte, b' ' | b'\n' | b'\r' | b'\t') {
                return Some(byte);
            }
            self.at += 1;
        }
    }

    /// Whether nothing but white space follows.
    pub fn is_at_end(&mut self) -> bool {
        self.ahead().is_none()
    }

    /// Consume `expected`, after optional white space.
    pub fn take(&mut self, expected: u8) -> Option<()> {
        let is_there = self.ahead()? == expected;
        self.at += usize::from(is_there);
        is_there.then_some(())
    }

    /// Consume exactly `text` at the current position, or nothing.
    pub fn piece(&mut self, text: &str) -> Option<()> {
        let is_there = self.text.as_bytes().get(self.at..)?.starts_with(text.as_bytes());
        self.at += if is_there { text.len() } else { 0 };
        is_there.then_some(())
    }

    /// Consume an object. `member` is called with each key, and consumes the value.
    pub fn object(&mut self, mut member: impl FnMut(&mut Self, Quoted<'a>) -> Option<()>) -> Option<()> {
        self.take(b'{')?;
        if self.ahead()? == b'}' {
            return self.take(b'}');
        }
        loop {
            let key = self.key()?;
            member(self, key)?;
            if self.ahead()? != b',' {
                return self.take(b'}');
            }
            self.at += 1;
        }
    }

    /// Consume an array. `item` consumes each of its values.
    pub fn array(&mut self, mut item: impl FnMut(&mut Self) -> Option<()>) -> Option<()> {
        self.take(b'[')?;
        if self.ahead()? == b']' {
            return self.take(b']');
        }
        loop {
            item(self)?;
            if self.ahead()? != b',' {
                return self.take(b']');
            }
            self.at += 1;
        }
    }

    /// The text that `read` consumes.
    pub fn text_of(&mut self, read: impl FnOnce(&mut Self) -> Option<()>) -> Option<&'a str> {
        self.ahead()?;
        let start = self.at;
        read(self)?;
        self.text.get(start..self.at)
    }

    /// The text of any value, at most 63 levels deep.
    pub fn value(&mut self) -> Option<&'a str> {
        self.text_of(Self::skip)
    }

    /// Any value, at most 63 levels deep.
    pub fn skip(&mut self) -> Option<()> {
        // A one bit, followed by one bit for each open array (0) or object (1).
        let mut open = 1_u64;
        loop {
            match self.ahead()? {
                b'"' => drop(self.string()?),
                bracket @ (b'[' | b'{') => {
                    self.at += 1;
                    let is_object = bracket == b'{';
                    let end = if is_object { b'}' } else { b']' };
                    if self.ahead()? == end {
                        self.at += 1;
                    } else if open.leading_zeros() == 0 {
                        return None;
                    } else {
                        open = open << 1 | u64::from(is_object);
                        if is_object {
                            self.key()?;
                        }
                        continue;
                    }
                }
                b't' => self.piece("true")?,
                b'f' => self.piece("false")?,
                b'n' => self.piece("null")?,
                _ => drop(self.number()?),
            }
            // A value has ended, and perhaps the arrays and objects around it.
            loop {
                if open == 1 {
                    return Some(());
                }
                let is_object = open & 1 == 1;
                match self.ahead()? {
                    b',' => {
                        self.at += 1;
                        if is_object {
                            self.key()?;
                        }
                        break;
                    }
                    b'}' if is_object => self.at += 1,
                    b']' if !is_object => self.at += 1,
                    _ => return None,
                }
                open >>= 1;
            }
        }
    }

    /// Whether the remaining text, which must be valid JSON, is nested deeper than `levels`.
    pub fn is_deeper_than(mut self, levels: usize) -> bool {
        let mut depth = 0_usize;
        while let Some(byte) = self.peek() {
            match byte {
                b'"' => {
                    if self.string().is_none() {
                        return true; // it is none
                    }
                    continue;
                }
                b'[' | b'{' => depth += 1,
                b']' | b'}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            if depth > levels {
                return true;
            }
            self.at += 1;
        }
        false
    }

    /// The key of a member.
    fn key(&mut self) -> Option<Quoted<'a>> {
        let key = self.string()?;
        self.take(b':')?;
        Some(key)
    }

    /// A string.
    pub fn string(&mut self) -> Option<Quoted<'a>> {
        if self.ahead()? != b'"' {
            return None;
        }
        let bytes = self.text.as_bytes();
        let (start, mut is_plain) = (self.at, true);
        let mut at = start + 1;
        loop {
            // Eight bytes at a time, as long as there is no special byte among them: takes half the time of single
            // bytes.
            while let Some(chunk) = bytes.get(at..).and_then(<[u8]>::first_chunk) {
                let special = special(u64::from_le_bytes(*chunk));
                if special != 0 {
                    at += special.trailing_zeros() as usize / 8;
                    break;
                }
                at += 8;
            }
            match *bytes.get(at)? {
                b'"' => {
                    self.at = at + 1;
                    return self.text.get(start..self.at).map(|text| Quoted { text, is_plain });
                }
                b'\\' => {
                    is_plain = false;
                    match *bytes.get(at + 1)? {
                        b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => at += 2,
                        b'u' if bytes.get(at + 2..at + 6)?.iter().all(u8::is_ascii_hexdigit) => at += 6,
                        _ => return None,
                    }
                }
                0..=0x1f => return None,
                _ => at += 1,
            }
        }
    }

    /// A number, as written in the text.
    pub fn number(&mut self) -> Option<&'a str> {
        self.text_of(|cursor| {
            let _ = cursor.piece("-");
            let leading = cursor.peek();
            if cursor.digits()? > 1 && leading == Some(b'0') {
                return None;
            }
            if cursor.piece(".").is_some() {
                cursor.digits()?;
            }
            if matches!(cursor.peek(), Some(b'e' | b'E')) {
                cursor.at += 1;
                if matches!(cursor.peek(), Some(b'+' | b'-')) {
                    cursor.at += 1;
                }
                cursor.digits()?;
            }
            Some(())
        })
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// Consume at least one digit. Returns the number of digits.
    fn digits(&mut self) -> Option<usize> {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        (self.at > start).then_some(self.at - start)
    }
}

/// Marks the first of eight bytes that ends a plain piece of a string (a quote, a backslash or a control character) by
/// setting its highest bit. Bits above that one have no meaning.
const fn special(word: u64) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHEST: u64 = 0x80 * ONES;
    let quotes = word ^ (ONES * b'"' as u64);
    let backslashes = word ^ (ONES * b'\\' as u64);
    let is_zero_quote = quotes.wrapping_sub(ONES) & !quotes;
    let is_zero_backslash = backslashes.wrapping_sub(ONES) & !backslashes;
    let is_control = word.wrapping_sub(0x20 * ONES) & !word;
    (is_zero_quote | is_zero_backslash | is_control) & HIGHEST
}
