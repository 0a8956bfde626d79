//! The first look at a notification: whom it is for, found in one pass over the text, without a copy.
//!
//! It says nothing unless [`super::json::read`] would read the very same: every byte is checked to be JSON, every field
//! to be of the kind that is expected there. What is rare (escapes in names, numbers for rooms, a key that comes twice,
//! deep nesting) is left to the closer look.

use super::json::PROCESS_LIMIT_BYTES;
use super::{HINT_KEY, ORIGIN_LIMIT_BYTES};

/// As much of a message as says whom it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Glance<'a> {
    /// Server id of the sender.
    pub uid: &'a str,
    /// Namespace, if it is named.
    pub nsp: Option<&'a str>,
    /// The [`Stamp`](super::Stamp)'s number.
    pub sequence: Option<u64>,
    /// The [`Stamp`](super::Stamp)'s process.
    pub process: Option<&'a str>,
    /// Whether it is a header, and the message itself is in the attachment table.
    pub is_attachment: bool,
    /// An array of strings without escapes.
    rooms: &'a str,
}

impl<'a> Glance<'a> {
    /// Names of the rooms that the message is for.
    pub fn rooms(&self) -> impl Iterator<Item = &'a str> + Clone {
        self.rooms.split('"').skip(1).step_by(2)
    }

    /// Unless a name is longer than any that is read.
    fn checked(self) -> Option<Self> {
        let is_short = |name: &str| name.len() <= ORIGIN_LIMIT_BYTES;
        (is_short(self.uid) && self.nsp.is_none_or(is_short)).then_some(self)
    }
}

/// Look at a message that is for sockets and wants no answer. `None` for any other, and whenever a closer look is needed;
/// then [`super::json::read`] tells.
pub fn glance(payload: &str) -> Option<Glance<'_>> {
    as_written(payload).or_else(|| in_any_order(payload))
}

/// The same for a broadcast as this package writes it, which is what there is most of: comparing whole pieces of text takes
/// a third of the time of looking at each key.
pub(super) fn as_written(payload: &str) -> Option<Glance<'_>> {
    let mut scanner = Scanner { text: payload, at: 0 };
    scanner.piece(r#"{"type":3,"uid":"#)?;
    let uid = scanner.name()?;
    scanner.piece(r#","nsp":"#)?;
    let nsp = Some(scanner.name()?);
    scanner.piece(r#","source":"_sio_adapter","data":{"opts":{"rooms":"#)?;
    let rooms = scanner.names()?;
    scanner.piece(r#","except":[],"flags":{}},"packet":{"type":2,"nsp":"#)?;
    scanner.name()?;
    scanner.piece(r#","data":"#)?;
    scanner.value().filter(|value| value.starts_with('['))?;
    scanner.piece("}}")?;
    let process = if scanner.piece(r#","p":"#).is_some() { Some(scanner.name()?) } else { None };
    scanner.piece(r#","n":"#)?;
    let sequence = scanner.value()?.parse().ok();
    if scanner.piece(r#","h":"#).is_some() {
        scanner.name()?;
    }
    scanner.piece("}")?;
    let process = process.filter(|process| process.len() <= PROCESS_LIMIT_BYTES);
    let is_over = scanner.at == payload.len();
    is_over.then_some(Glance { uid, nsp, sequence, process, is_attachment: false, rooms })?.checked()
}

/// The same for what anybody writes.
fn in_any_order(payload: &str) -> Option<Glance<'_>> {
    let mut scanner = Scanner { text: payload, at: 0 };
    let (mut kind, mut uid, mut nsp, mut data) = (None, None, None, None);
    let (mut sequence, mut process, mut attachment_id, mut hint) = (None, None, None, None);
    if !payload.starts_with('{') {
        return None;
    }
    scanner.object(|scanner, key| match key {
        "type" => set(&mut kind, scanner.value()?),
        "uid" => set(&mut uid, scanner.name()?),
        "nsp" => set(&mut nsp, scanner.name()?),
        "data" => set(&mut data, scanner.data()?),
        "n" => set(&mut sequence, scanner.value()?),
        "p" => set(&mut process, scanner.value()?),
        "attachmentId" => set(&mut attachment_id, scanner.name()?.parse::<i64>().ok()?),
        HINT_KEY => set(&mut hint, scanner.names()?),
        _ => scanner.skip(),
    })?;
    if scanner.ahead().is_some() {
        return None;
    }
    let (kind, is_attachment) = (kind?, attachment_id.is_some());
    let (rooms, packet_nsp) = match data {
        None if is_attachment && matches!(kind, "3" | "4" | "5" | "6") => (hint?, ""),
        // A broadcast has a packet; who joins, leaves or is disconnected has none.
        Some(Data { rooms, packet_nsp: Some(nsp) }) if !is_attachment && kind == "3" => (rooms, nsp),
        Some(Data { rooms, packet_nsp: None }) if !is_attachment && matches!(kind, "4" | "5" | "6") => (rooms, ""),
        _ => return None,
    };
    let process = process.and_then(|quoted| quoted.strip_prefix('"')?.strip_suffix('"'));
    let glance = Glance {
        uid: uid?,
        nsp: nsp.or(Some(packet_nsp).filter(|nsp| !nsp.is_empty())),
        sequence: sequence.and_then(|digits| digits.parse().ok()),
        process: process.filter(|process| process.len() <= PROCESS_LIMIT_BYTES),
        is_attachment,
        rooms,
    };
    glance.checked()
}

/// What stands under `data`.
struct Data<'a> {
    rooms: &'a str,
    /// Of a broadcast: the namespace that its packet names, empty if it names none.
    packet_nsp: Option<&'a str>,
}

/// Keep a value; `None` when there is one already, because of two the decoder wants neither.
fn set<T>(place: &mut Option<T>, value: T) -> Option<()> {
    place.replace(value).is_none().then_some(())
}

/// Where in a text we are. Every method begins where it is and ends behind what it has read, or gives up with `None`.
struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scanner<'a> {
    fn data(&mut self) -> Option<Data<'a>> {
        let (mut opts, mut packet_nsp, mut joined, mut close) = (None, None, None, None);
        self.object(|scanner, key| match key {
            "opts" => set(&mut opts, scanner.opts()?),
            "packet" => set(&mut packet_nsp, scanner.packet()?),
            "rooms" => set(&mut joined, scanner.names()?),
            "close" => set(&mut close, scanner.bool()?),
            "requestId" | "sockets" | "clientCount" | "args" => None,
            _ => scanner.skip(),
        })?;
        Some(Data { rooms: opts?, packet_nsp })
    }

    fn opts(&mut self) -> Option<&'a str> {
        let (mut rooms, mut except, mut flags) = (None, None, None);
        self.object(|scanner, key| match key {
            "rooms" => set(&mut rooms, scanner.names()?),
            "except" => set(&mut except, scanner.names()?),
            "flags" => set(&mut flags, scanner.flags()?),
            _ => scanner.skip(),
        })?;
        rooms
    }

    fn flags(&mut self) -> Option<()> {
        let (mut volatile, mut compress) = (None, None);
        self.object(|scanner, key| match key {
            "volatile" => set(&mut volatile, scanner.bool()?),
            "compress" => set(&mut compress, scanner.bool()?),
            _ => scanner.skip(),
        })
    }

    /// The namespace of a packet that holds an array, empty if it names none.
    fn packet(&mut self) -> Option<&'a str> {
        let (mut nsp, mut data) = (None, None);
        self.object(|scanner, key| match key {
            "nsp" => set(&mut nsp, scanner.name()?),
            "data" => set(&mut data, scanner.value().filter(|value| value.starts_with('[')).map(drop)?),
            _ => scanner.skip(),
        })?;
        data.map(|()| nsp.unwrap_or_default())
    }

    /// The next byte that is no white space.
    fn ahead(&mut self) -> Option<u8> {
        loop {
            let byte = *self.text.as_bytes().get(self.at)?;
            if byte > b' ' || !matches!(byte, b' ' | b'\n' | b'\r' | b'\t') {
                return Some(byte);
            }
            self.at += 1;
        }
    }

    fn take(&mut self, expected: u8) -> Option<()> {
        let is_there = self.ahead()? == expected;
        self.at += usize::from(is_there);
        is_there.then_some(())
    }

    /// An object with keys that have no escapes; `member` reads each value.
    fn object(&mut self, mut member: impl FnMut(&mut Self, &'a str) -> Option<()>) -> Option<()> {
        self.take(b'{')?;
        if self.ahead()? == b'}' {
            return self.take(b'}');
        }
        loop {
            let key = self.name()?;
            self.take(b':')?;
            member(self, key)?;
            if self.ahead()? != b',' {
                return self.take(b'}');
            }
            self.at += 1;
        }
    }

    /// The text of an array of names.
    fn names(&mut self) -> Option<&'a str> {
        self.ahead()?;
        let start = self.at;
        self.take(b'[')?;
        if self.ahead()? != b']' {
            self.name()?;
            while self.ahead()? == b',' {
                self.at += 1;
                self.name()?;
            }
        }
        self.take(b']')?;
        self.text.get(start..self.at)
    }

    fn bool(&mut self) -> Option<&'a str> {
        self.value().filter(|value| matches!(*value, "true" | "false" | "null"))
    }

    /// A string without escapes.
    fn name(&mut self) -> Option<&'a str> {
        self.ahead()?;
        let start = self.at + 1;
        let is_plain = self.string()?;
        is_plain.then(|| self.text.get(start..self.at - 1)).flatten()
    }

    /// The text of any value.
    fn value(&mut self) -> Option<&'a str> {
        self.ahead()?;
        let start = self.at;
        self.skip()?;
        self.text.get(start..self.at)
    }

    /// Any value, at most 63 levels deep.
    fn skip(&mut self) -> Option<()> {
        // A one, then a bit for each array or object that is open, ones for objects.
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
                b'-' | b'0'..=b'9' => self.number()?,
                b't' => self.piece("true")?,
                b'f' => self.piece("false")?,
                b'n' => self.piece("null")?,
                _ => return None,
            }
            // A value has ended, and with it perhaps what it stands in.
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

    fn key(&mut self) -> Option<()> {
        self.ahead()?;
        self.string()?;
        self.take(b':')
    }

    /// A string, quotes included. False when it has escapes.
    fn string(&mut self) -> Option<bool> {
        let bytes = self.text.as_bytes();
        if *bytes.get(self.at)? != b'"' {
            return None;
        }
        let mut is_plain = true;
        let mut at = self.at + 1;
        loop {
            // Eight bytes at once, as long as there is nothing special among them: half of the time of one by one.
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
                    return Some(is_plain);
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

    fn number(&mut self) -> Option<()> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        let leading = self.peek();
        let digits = self.digits()?;
        if leading == Some(b'0') && digits > 1 {
            return None;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        Some(())
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// At least one digit; how many.
    fn digits(&mut self) -> Option<usize> {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        (self.at > start).then_some(self.at - start)
    }

    /// This very text; where it is not, nothing is read.
    fn piece(&mut self, text: &str) -> Option<()> {
        let is_there = self.text.as_bytes().get(self.at..)?.starts_with(text.as_bytes());
        self.at += if is_there { text.len() } else { 0 };
        is_there.then_some(())
    }
}

/// Of eight bytes the highest bit is set in the first one that ends a plain piece of a string: a quote, a backslash, a
/// control character. Bits above that one mean nothing.
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
