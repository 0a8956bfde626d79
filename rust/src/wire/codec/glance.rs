//! A quick scan of a notification for its addressees, in one pass over the text and without a copy.
//!
//! It returns a result only if [`super::json::read`] would read the same: every byte is checked to be JSON, and every
//! field to be of the expected type. Rare cases (escapes in names, numbers as rooms, duplicate keys, deep nesting) are
//! left to the full decoder.

use super::json::PROCESS_LIMIT_BYTES;
use super::{HINT_KEY, ORIGIN_LIMIT_BYTES};
use crate::wire::cursor::Cursor;

/// The fields of a message that determine its addressees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Glance<'a> {
    /// Server id of the sender.
    pub uid: &'a str,
    /// Namespace, if the message has one.
    pub nsp: Option<&'a str>,
    /// The [`Stamp`](super::Stamp)'s number.
    pub sequence: Option<u64>,
    /// The [`Stamp`](super::Stamp)'s process.
    pub process: Option<&'a str>,
    /// Whether the payload is a header, with the message itself in the attachment table.
    pub is_attachment: bool,
    /// An array of strings without escapes.
    rooms: &'a str,
}

impl<'a> Glance<'a> {
    /// Names of the rooms that the message is for.
    pub fn rooms(&self) -> impl Iterator<Item = &'a str> + Clone {
        self.rooms.split('"').skip(1).step_by(2)
    }

    /// `self`, unless a name exceeds its length limit.
    fn checked(self) -> Option<Self> {
        let is_short = |name: &str| name.len() <= ORIGIN_LIMIT_BYTES;
        (is_short(self.uid) && self.nsp.is_none_or(is_short)).then_some(self)
    }
}

/// Scan a message that is for sockets and requests no answer. `None` for any other message, and whenever
/// [`super::json::read`] has to decide.
pub fn glance(payload: &str) -> Option<Glance<'_>> {
    as_written(payload).or_else(|| in_any_order(payload))
}

/// As [`glance`], for a broadcast as this package writes it, which is the most common message. Comparing whole pieces
/// of text takes a third of the time of reading each key.
pub(super) fn as_written(payload: &str) -> Option<Glance<'_>> {
    let mut cursor = Cursor::new(payload);
    cursor.piece(r#"{"type":3,"uid":"#)?;
    let uid = name(&mut cursor)?;
    cursor.piece(r#","nsp":"#)?;
    let nsp = Some(name(&mut cursor)?);
    cursor.piece(r#","source":"_sio_adapter","data":{"opts":{"rooms":"#)?;
    let rooms = names(&mut cursor)?;
    cursor.piece(r#","except":[],"flags":{}},"packet":{"type":2,"nsp":"#)?;
    name(&mut cursor)?;
    cursor.piece(r#","data":"#)?;
    cursor.value().filter(|value| value.starts_with('['))?;
    cursor.piece("}}")?;
    let process = if cursor.piece(r#","p":"#).is_some() { Some(name(&mut cursor)?) } else { None };
    let sequence = if cursor.piece(r#","k":"#).is_some() {
        name(&mut cursor)?;
        None
    } else {
        cursor.piece(r#","n":"#)?;
        cursor.value()?.parse().ok()
    };
    if cursor.piece(r#","h":"#).is_some() {
        name(&mut cursor)?;
    }
    cursor.piece("}")?;
    let process = process.filter(|process| process.len() <= PROCESS_LIMIT_BYTES);
    cursor.is_at_end().then_some(Glance { uid, nsp, sequence, process, is_attachment: false, rooms })?.checked()
}

/// As [`glance`], for messages of any sender.
fn in_any_order(payload: &str) -> Option<Glance<'_>> {
    let mut cursor = Cursor::new(payload);
    let (mut kind, mut uid, mut nsp, mut data) = (None, None, None, None);
    let (mut sequence, mut process, mut attachment_id, mut hint) = (None, None, None, None);
    if !payload.starts_with('{') {
        return None;
    }
    object(&mut cursor, |cursor, key| match key {
        "type" => set(&mut kind, cursor.value()?),
        "uid" => set(&mut uid, name(cursor)?),
        "nsp" => set(&mut nsp, name(cursor)?),
        "data" => set(&mut data, read_data(cursor)?),
        "n" => set(&mut sequence, cursor.value()?),
        "p" => set(&mut process, cursor.value()?),
        "attachmentId" => set(&mut attachment_id, name(cursor)?.parse::<i64>().ok()?),
        HINT_KEY => set(&mut hint, names(cursor)?),
        _ => cursor.skip(),
    })?;
    if !cursor.is_at_end() {
        return None;
    }
    let (kind, is_attachment) = (kind?, attachment_id.is_some());
    let (rooms, packet_nsp) = match data {
        None if is_attachment && matches!(kind, "3" | "4" | "5" | "6") => (hint?, ""),
        // A broadcast has a packet; messages that make sockets join, leave or disconnect have none.
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

/// The value of `data`.
struct Data<'a> {
    rooms: &'a str,
    /// The namespace in a broadcast's packet, empty if the packet has none.
    packet_nsp: Option<&'a str>,
}

/// Store a value. `None` if there is one already, because the decoder rejects duplicates.
fn set<T>(place: &mut Option<T>, value: T) -> Option<()> {
    place.replace(value).is_none().then_some(())
}

/// Consume an object whose keys have no escapes. `member` consumes each value.
fn object<'a>(cursor: &mut Cursor<'a>, mut member: impl FnMut(&mut Cursor<'a>, &'a str) -> Option<()>) -> Option<()> {
    cursor.object(|cursor, key| member(cursor, key.plain()?))
}

/// A string without escapes.
fn name<'a>(cursor: &mut Cursor<'a>) -> Option<&'a str> {
    cursor.string()?.plain()
}

/// The text of an array of names.
fn names<'a>(cursor: &mut Cursor<'a>) -> Option<&'a str> {
    cursor.text_of(|cursor| cursor.array(|cursor| name(cursor).map(drop)))
}

fn bool<'a>(cursor: &mut Cursor<'a>) -> Option<&'a str> {
    cursor.value().filter(|value| matches!(*value, "true" | "false" | "null"))
}

fn read_data<'a>(cursor: &mut Cursor<'a>) -> Option<Data<'a>> {
    let (mut opts, mut packet_nsp, mut joined, mut close) = (None, None, None, None);
    object(cursor, |cursor, key| match key {
        "opts" => set(&mut opts, read_opts(cursor)?),
        "packet" => set(&mut packet_nsp, packet(cursor)?),
        "rooms" => set(&mut joined, names(cursor)?),
        "close" => set(&mut close, bool(cursor)?),
        "requestId" | "sockets" | "clientCount" | "args" => None,
        _ => cursor.skip(),
    })?;
    Some(Data { rooms: opts?, packet_nsp })
}

fn read_opts<'a>(cursor: &mut Cursor<'a>) -> Option<&'a str> {
    let (mut rooms, mut except, mut flags) = (None, None, None);
    object(cursor, |cursor, key| match key {
        "rooms" => set(&mut rooms, names(cursor)?),
        "except" => set(&mut except, names(cursor)?),
        "flags" => set(&mut flags, read_flags(cursor)?),
        _ => cursor.skip(),
    })?;
    rooms
}

fn read_flags(cursor: &mut Cursor<'_>) -> Option<()> {
    let (mut volatile, mut compress) = (None, None);
    object(cursor, |cursor, key| match key {
        "volatile" => set(&mut volatile, bool(cursor)?),
        "compress" => set(&mut compress, bool(cursor)?),
        _ => cursor.skip(),
    })
}

/// The namespace of a packet that holds an array, empty if the packet has none.
fn packet<'a>(cursor: &mut Cursor<'a>) -> Option<&'a str> {
    let (mut nsp, mut data) = (None, None);
    object(cursor, |cursor, key| match key {
        "nsp" => set(&mut nsp, name(cursor)?),
        "data" => set(&mut data, cursor.value().filter(|value| value.starts_with('[')).map(drop)?),
        _ => cursor.skip(),
    })?;
    data.map(|()| nsp.unwrap_or_default())
}
