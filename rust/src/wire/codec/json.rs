//! The JSON side of the codec: envelopes and headers inside notifications.

use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::convert::Infallible;
use std::fmt::{self, Write as _};

use super::write::{self, Sink};
use super::{HINT_KEY, HINT_LIMIT_BYTES, Received, Stamp, checked, undecodable};
use crate::error::Result;
use crate::wire::cursor::Cursor;
use crate::wire::protocol::{Data, Flags, MAX_DEPTH, Message, MessageType, Opts};

// ---------------------------------------------------------------------------------------------------- writing

/// The message as JSON, without the closing brace, so that the publisher can append its sequence number.
///
/// User data in MessagePack cannot be represented in JSON and is written as `null`; [`super::encode`] never requests
/// that.
pub fn write(message: &Message, uid: &str) -> String {
    let mut out = Text::open(160 + message.size_bytes());
    let Ok(()) = write::message(&mut out, message, uid);
    out.0
}

/// The header that announces an attachment, without the attachment id and the closing brace. For messages that
/// [`super::glance`] may answer it includes the rooms, an extension of this package.
pub fn write_header(message: &Message, uid: &str) -> String {
    let mut out = Text::open(128);
    write::envelope(&mut out, message, uid);
    if let Some(opts) = message.opts_for_sockets() {
        let length = out.0.len();
        out.key(HINT_KEY).strings(&opts.rooms);
        if escaped_len(&out.0[length..]) > HINT_LIMIT_BYTES {
            out.0.truncate(length);
        }
    }
    out.0
}

/// Appends JSON to a text.
struct Text(String);

impl Text {
    /// A text to which the document's first key is appended.
    fn open(capacity: usize) -> Self {
        let mut text = String::with_capacity(capacity);
        text.push('{');
        Self(text)
    }
}

impl Sink for Text {
    type Error = Infallible;

    fn map(&mut self, entries: impl FnOnce(&mut Self) -> Result<(), Infallible>) -> Result<(), Infallible> {
        self.0.push('{');
        entries(self)?;
        self.0.push('}');
        Ok(())
    }

    // Inlining halves the time for constant names; a message has a dozen keys.
    #[inline]
    fn key(&mut self, name: &str) -> &mut Self {
        self.0.push_str(if self.0.ends_with('{') { "\"" } else { ",\"" });
        self.0.push_str(name);
        self.0.push_str("\":");
        self
    }

    fn str(&mut self, text: &str) {
        // Names usually need no escaping, and a message has four of them, so this avoids an allocation for each.
        if text.bytes().all(|byte| byte >= b' ' && byte != b'"' && byte != b'\\') {
            self.0.push('"');
            self.0.push_str(text);
            self.0.push('"');
        } else if let Ok(quoted) = serde_json::to_string(text) {
            self.0.push_str(&quoted); // a string always serialises
        }
    }

    fn strings(&mut self, items: &[String]) {
        self.0.push('[');
        for (index, item) in items.iter().enumerate() {
            if index > 0 {
                self.0.push(',');
            }
            self.str(item);
        }
        self.0.push(']');
    }

    fn uint(&mut self, value: u64) {
        match u8::try_from(value) {
            Ok(digit @ 0..=9) => self.0.push(char::from(b'0' + digit)), // mostly types; formatting takes 20 ns
            _ => drop(write!(self.0, "{value}")),                       // writing to a String cannot fail
        }
    }

    fn bool(&mut self, value: bool) {
        self.0.push_str(if value { "true" } else { "false" });
    }

    fn data(&mut self, data: &Data) -> Result<(), Infallible> {
        self.0.push_str(match data {
            Data::Json(text) => text,
            Data::MessagePack(_) => "null",
        });
        Ok(())
    }
}

/// JSON in ASCII. Other characters occur only inside strings, where they can be escaped.
pub fn escape(json: &str) -> String {
    let mut out = String::with_capacity(json.len() + json.len() / 2);
    for c in json.chars() {
        if c.is_ascii() {
            out.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(out, "\\u{unit:04x}"); // writing to a String cannot fail
            }
        }
    }
    out
}

/// Length of such a text.
fn escaped_len(json: &str) -> usize {
    json.chars().map(|c| if c.is_ascii() { 1 } else { 6 * c.len_utf16() }).sum()
}

// ---------------------------------------------------------------------------------------------------- reading

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(rename = "type", default)]
    kind: Option<u64>,
    #[serde(borrow, default)]
    uid: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    nsp: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
    #[serde(rename = "attachmentId", default)]
    attachment_id: Option<Name>,
    // Only senders of this package write these two keys. Other senders may use keys with these names for anything.
    #[serde(borrow, default)]
    n: Option<&'a RawValue>,
    #[serde(borrow, default)]
    p: Option<&'a RawValue>,
}

impl Envelope<'_> {
    fn stamp(&self) -> Stamp {
        let process = self.p.and_then(|raw| raw.get().strip_prefix('"')?.strip_suffix('"'));
        Stamp {
            sequence: self.n.and_then(|raw| raw.get().parse().ok()),
            process: process.filter(|process| process.len() <= PROCESS_LIMIT_BYTES).map(str::to_owned),
        }
    }
}

/// Longest name of an emitter's process that is remembered.
pub(super) const PROCESS_LIMIT_BYTES: usize = 32;

#[derive(Default, Deserialize)]
struct RawData<'a> {
    #[serde(borrow, default)]
    opts: Option<&'a RawValue>,
    #[serde(default)]
    rooms: Option<Names>,
    #[serde(default)]
    close: Option<bool>,
    #[serde(rename = "requestId", default)]
    request_id: Option<Name>,
    #[serde(borrow, default, deserialize_with = "present")]
    packet: Option<&'a RawValue>,
    #[serde(borrow, default)]
    sockets: Option<&'a RawValue>,
    #[serde(rename = "clientCount", default)]
    client_count: Option<u64>,
    #[serde(borrow, default, deserialize_with = "present")]
    args: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct RawOpts<'a> {
    #[serde(default)]
    rooms: Option<Names>,
    #[serde(default)]
    except: Option<Names>,
    #[serde(borrow, default)]
    flags: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct RawFlags {
    #[serde(default)]
    volatile: Option<bool>,
    #[serde(default)]
    compress: Option<bool>,
}

#[derive(Deserialize)]
struct RawPacket<'a> {
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
    #[serde(borrow, default)]
    nsp: Option<Cow<'a, str>>,
}

/// Decode the payload of a notification; `channel_nsp` stands in for a missing `nsp`.
pub fn read(payload: &str, channel_nsp: &str) -> Result<(Received, Stamp)> {
    let size = payload.len();
    let envelope: Envelope<'_> = object(payload, size)?;
    let stamp = envelope.stamp();
    let uid = envelope.uid.map(Cow::into_owned).unwrap_or_default();
    let nsp = envelope.nsp.map(Cow::into_owned);
    if let Some(Name(id)) = envelope.attachment_id {
        let id = id.parse().map_err(|_| undecodable(size, format!("attachmentId {id:?} is no row id")))?;
        let nsp = nsp.unwrap_or_else(|| channel_nsp.to_owned());
        return Ok((Received::Attachment { uid, nsp, id }, stamp));
    }
    let kind = message_type(envelope.kind, size)?;
    let raw: RawData<'_> = envelope.data.map(|data| object(data.get(), size)).transpose()?.unwrap_or_default();
    let mut inner_nsp = None;
    let packet = match (kind, raw.packet) {
        (MessageType::Broadcast, Some(packet)) => {
            let packet: RawPacket<'_> = object(packet.get(), size)?;
            // A Go server leaves it empty.
            inner_nsp = packet.nsp.map(Cow::into_owned).filter(|nsp| !nsp.is_empty());
            packet.data
        }
        (_, packet) => packet,
    };
    let data = |raw: Option<&RawValue>| raw.map(|raw| data(raw, size)).transpose();
    let message = Message {
        uid,
        opts: raw.opts.map(|raw| opts(raw, size)).transpose()?.unwrap_or_default(),
        rooms: raw.rooms.map(|names| names.0).unwrap_or_default(),
        close: raw.close.unwrap_or_default(),
        request_id: raw.request_id.map(|name| name.0),
        packet: data(packet)?,
        sockets: data(raw.sockets)?,
        client_count: raw.client_count.unwrap_or_default(),
        args: data(raw.args)?,
        is_from_go: payload.starts_with("{\"uid\""),
        ..Message::new(kind, nsp.or(inner_nsp).unwrap_or_else(|| channel_nsp.to_owned()))
    };
    Ok((Received::Message(checked(message, size)?), stamp))
}

/// Parse an object. serde alone would also accept an array with the fields in order.
fn object<'a, T: Deserialize<'a>>(text: &'a str, size_bytes: usize) -> Result<T> {
    if !text.trim_start().starts_with('{') {
        return Err(undecodable(size_bytes, "expected an object"));
    }
    serde_json::from_str(text).map_err(|error| undecodable(size_bytes, error.to_string()))
}

fn data(raw: &RawValue, size_bytes: usize) -> Result<Data> {
    if is_too_deep(raw.get()) {
        return Err(undecodable(size_bytes, format!("nesting deeper than {MAX_DEPTH} levels")));
    }
    Ok(Data::Json(raw.get().to_owned()))
}

/// Whether valid JSON is nested deeper than allowed for user data, which later readers may process recursively.
pub fn is_too_deep(text: &str) -> bool {
    if text.len() <= 2 * MAX_DEPTH {
        return false; // each level has two brackets
    }
    Cursor::new(text).is_deeper_than(MAX_DEPTH)
}

pub(super) fn message_type(number: Option<u64>, size_bytes: usize) -> Result<MessageType> {
    let number = number.ok_or_else(|| undecodable(size_bytes, "no message type"))?;
    MessageType::from_number(number).ok_or_else(|| undecodable(size_bytes, format!("unknown message type {number}")))
}

fn opts(raw: &RawValue, size_bytes: usize) -> Result<Opts> {
    let raw: RawOpts<'_> = object(raw.get(), size_bytes)?;
    let flags: Option<RawFlags> = raw.flags.map(|flags| object(flags.get(), size_bytes)).transpose()?;
    Ok(Opts {
        rooms: raw.rooms.map(|names| names.0).unwrap_or_default(),
        except: raw.except.map(|names| names.0).unwrap_or_default(),
        flags: flags.map_or_else(Flags::default, |flags| Flags {
            volatile: flags.volatile.unwrap_or_default(),
            compress: flags.compress,
        }),
    })
}

/// Keep `null` apart from absence: an acknowledgement of `null` has one argument, one without `packet` has none.
fn present<'de: 'a, 'a, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// A string, or an integer that stands for one (rooms such as `42`, ids of lenient peers).
struct Name(String);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct NameVisitor;
        impl Visitor<'_> for NameVisitor {
            type Value = Name;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or an integer")
            }
            fn visit_str<E: de::Error>(self, v: &str) -> std::result::Result<Name, E> {
                Ok(Name(v.to_owned()))
            }
            fn visit_u64<E: de::Error>(self, v: u64) -> std::result::Result<Name, E> {
                Ok(Name(v.to_string()))
            }
            fn visit_i64<E: de::Error>(self, v: i64) -> std::result::Result<Name, E> {
                Ok(Name(v.to_string()))
            }
        }
        deserializer.deserialize_any(NameVisitor)
    }
}

/// An array of names.
struct Names(Vec<String>);

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct NamesVisitor;
        impl<'de> Visitor<'de> for NamesVisitor {
            type Value = Names;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of room names")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Names, A::Error> {
                let mut names = Vec::new();
                while let Some(Name(name)) = seq.next_element()? {
                    names.push(name);
                }
                Ok(Names(names))
            }
        }
        deserializer.deserialize_seq(NamesVisitor)
    }
}
