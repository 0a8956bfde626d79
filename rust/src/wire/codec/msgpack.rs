//! The MessagePack side of the codec: bodies of attachments, encoded as maps, which Node and Go expect.

mod reader;

use rmp::encode as w;

use super::write::{self, Sink};
use super::{checked, json};
use crate::error::{Error, Result};
use crate::wire::protocol::{Data, MAX_DEPTH, Message, MessageType};
use reader::Reader;
pub use reader::{Build, build};

/// The message as one MessagePack map, with the same keys as its JSON form.
pub fn write(message: &Message, uid: &str) -> Result<Vec<u8>> {
    let mut out = Bytes { bytes: Vec::with_capacity(160 + message.size_bytes()), map: 0 };
    out.map(|out| write::message(out, message, uid))?;
    Ok(out.bytes)
}

/// Appends MessagePack to a vector; writing to memory cannot fail, so results are dropped here, once.
struct Bytes {
    bytes: Vec<u8>,
    /// Start of the innermost open map. Its first byte holds the length, because the maps written here have fewer than
    /// 16 keys.
    map: usize,
}

impl Sink for Bytes {
    type Error = Error;

    fn map(&mut self, entries: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let outer = std::mem::replace(&mut self.map, self.bytes.len());
        self.bytes.push(0x80);
        entries(self)?;
        self.map = outer;
        Ok(())
    }

    fn key(&mut self, name: &str) -> &mut Self {
        if let Some(length) = self.bytes.get_mut(self.map) {
            *length += 1;
        }
        self.str(name);
        self
    }

    fn str(&mut self, text: &str) {
        let _ = w::write_str(&mut self.bytes, text);
    }

    fn strings(&mut self, items: &[String]) {
        let _ = w::write_array_len(&mut self.bytes, u32::try_from(items.len()).unwrap_or(u32::MAX));
        for item in items {
            self.str(item);
        }
    }

    fn uint(&mut self, value: u64) {
        let _ = w::write_uint(&mut self.bytes, value);
    }

    fn bool(&mut self, value: bool) {
        let _ = w::write_bool(&mut self.bytes, value);
    }

    fn data(&mut self, data: &Data) -> Result<()> {
        match data {
            Data::Json(text) => transcode(text, &mut self.bytes),
            Data::MessagePack(bytes) => {
                self.bytes.extend_from_slice(bytes);
                Ok(())
            }
        }
    }
}

/// Append JSON text as MessagePack. Integers beyond 64 bits become floats, lone surrogates U+FFFD.
fn transcode(text: &str, out: &mut Vec<u8>) -> Result<()> {
    let start = out.len();
    let attempt = |text: &str, out: &mut Vec<u8>| {
        let mut reader = serde_json::Deserializer::from_str(text);
        serde_transcode::transcode(&mut reader, &mut rmp_serde::Serializer::new(out))
    };
    if attempt(text, out).is_ok() {
        return Ok(());
    }
    out.truncate(start);
    attempt(&replace_lone_surrogates(text), out)
        .map_err(|error| Error::Encode { path: "args".to_owned(), reason: error.to_string() })
}

/// Replace lone surrogates: JSON can escape half of a surrogate pair, but UTF-8, and therefore MessagePack, cannot
/// represent it.
fn replace_lone_surrogates(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        let escape = &rest[at..];
        let (kept, replaced) = match surrogate(escape) {
            Some(0xD800..=0xDBFF) if matches!(escape.get(6..).and_then(surrogate), Some(0xDC00..=0xDFFF)) => {
                (12, false)
            }
            Some(_) => (6, true),
            None => (2.min(escape.len()), false),
        };
        out.push_str(&rest[..at]);
        if replaced {
            out.push_str("\\ufffd");
        } else {
            out.push_str(&escape[..kept]);
        }
        rest = &escape[kept..];
    }
    out.push_str(rest);
    out
}

/// The surrogate that an escape sequence at the start of `text` stands for.
fn surrogate(text: &str) -> Option<u32> {
    let unit = u32::from_str_radix(text.strip_prefix("\\u")?.get(..4)?, 16).ok()?;
    (0xD800..=0xDFFF).contains(&unit).then_some(unit)
}

/// Decode an attachment; `uid` and `nsp` come from its header and stand in for missing fields.
pub fn read(bytes: &[u8], uid: &str, nsp: &str) -> Result<Message> {
    // User data is nested inside `data` and, in a broadcast, `packet`.
    let mut reader = Reader::new(bytes, bytes.len(), MAX_DEPTH + 2);
    let (mut kind, mut message_uid, mut message_nsp, mut data, mut first_key) = (None, None, None, None, None);
    reader.entries(|reader, key| {
        first_key.get_or_insert_with(|| key.to_owned());
        match key {
            "type" => kind = reader.uint()?,
            "uid" => message_uid = reader.name()?,
            "nsp" => message_nsp = reader.name()?,
            "data" => data = Some(reader.slice()?),
            _ => reader.skip()?,
        }
        Ok(())
    })?;
    let mut message = Message::new(json::message_type(kind, bytes.len())?, "");
    let mut packet = None;
    if let Some(data) = data {
        // Of a broadcast, the user data is inside the packet.
        let in_packet = usize::from(message.kind == MessageType::Broadcast);
        let mut reader = Reader::new(data, bytes.len(), MAX_DEPTH);
        reader.entries(|reader, key| {
            match key {
                "opts" => message.opts = reader.opts()?,
                "rooms" => message.rooms = reader.names()?,
                "close" => message.close = reader.bool()?.unwrap_or_default(),
                "requestId" => message.request_id = reader.name()?,
                "packet" => packet = Some(reader.deeper(in_packet, Reader::slice)?),
                "sockets" => message.sockets = reader.present_slice()?.map(owned),
                "clientCount" => message.client_count = reader.uint()?.unwrap_or_default(),
                "args" => message.args = Some(owned(reader.slice()?)),
                _ => reader.skip()?,
            }
            Ok(())
        })?;
    }
    match packet {
        Some(packet) if message.kind == MessageType::Broadcast => {
            let mut reader = Reader::new(packet, bytes.len(), MAX_DEPTH);
            reader.entries(|reader, key| {
                match key {
                    "data" => message.packet = Some(owned(reader.slice()?)),
                    "nsp" if message_nsp.is_none() => message_nsp = reader.name()?.filter(|nsp| !nsp.is_empty()),
                    _ => reader.skip()?,
                }
                Ok(())
            })?;
        }
        packet => message.packet = packet.map(owned),
    }
    message.uid = message_uid.unwrap_or_else(|| uid.to_owned());
    message.nsp = message_nsp.unwrap_or_else(|| nsp.to_owned());
    message.is_from_go = first_key.as_deref() == Some("uid");
    checked(message, bytes.len())
}

fn owned(value: &[u8]) -> Data {
    Data::MessagePack(value.to_owned())
}
