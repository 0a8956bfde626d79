//! The MessagePack side of the codec: bodies of attachments, map-encoded as Node and Go read them.

mod reader;

use rmp::encode as w;

use super::fields::{Fields, Slice};
use super::json;
use crate::error::{Error, Result};
use crate::wire::protocol::{Body, Data, MAX_DEPTH, Message, MessageType, Opts, PACKET_EVENT, SOURCE};
use reader::Reader;
pub use reader::{Build, build};

/// The message as one MessagePack map, with the same keys as its JSON form.
pub fn write(message: &Message, uid: &str) -> Result<Vec<u8>> {
    let mut out = Writer(Vec::with_capacity(160 + message.size_bytes()));
    let has_data = !matches!(message.body, Body::InitialHeartbeat | Body::Heartbeat | Body::AdapterClose);
    out.map(if has_data { 5 } else { 4 });
    out.key("type").uint(u64::from(message.body.message_type().number()));
    out.key("uid").str(uid);
    out.key("nsp").str(&message.nsp);
    out.key("source").str(SOURCE);
    if has_data {
        out.key("data");
        write_body(&mut out, message)?;
    }
    Ok(out.0)
}

fn write_body(out: &mut Writer, message: &Message) -> Result<()> {
    match &message.body {
        Body::InitialHeartbeat | Body::Heartbeat | Body::AdapterClose => {}
        Body::Broadcast { opts, packet, request_id } => {
            out.map(2 + u32::from(request_id.is_some()));
            out.request_id(request_id.as_deref());
            out.opts(opts);
            out.key("packet").map(3);
            out.key("type").uint(u64::from(PACKET_EVENT));
            out.key("nsp").str(&message.nsp);
            out.key("data").data(packet)?;
        }
        Body::SocketsJoin { opts, rooms } | Body::SocketsLeave { opts, rooms } => {
            out.map(2);
            out.opts(opts);
            out.key("rooms").strings(rooms);
        }
        Body::DisconnectSockets { opts, close } => {
            out.map(2);
            out.opts(opts);
            out.key("close").bool(*close);
        }
        Body::FetchSockets { opts, request_id } => {
            out.map(2);
            out.request_id(Some(request_id));
            out.opts(opts);
        }
        Body::FetchSocketsResponse { request_id, sockets } => {
            out.map(2);
            out.request_id(Some(request_id));
            out.key("sockets").data(sockets)?;
        }
        Body::ServerSideEmit { packet, request_id } => {
            out.map(1 + u32::from(request_id.is_some()));
            out.request_id(request_id.as_deref());
            out.key("packet").data(packet)?;
        }
        Body::ServerSideEmitResponse { request_id, packet } => {
            out.map(1 + u32::from(packet.is_some()));
            out.request_id(Some(request_id));
            out.optional("packet", packet.as_ref())?;
        }
        Body::BroadcastClientCount { request_id, client_count } => {
            out.map(2);
            out.request_id(Some(request_id));
            out.key("clientCount").uint(*client_count);
        }
        Body::BroadcastAck { request_id, packet, args } => {
            out.map(1 + u32::from(packet.is_some()) + u32::from(args.is_some()));
            out.request_id(Some(request_id));
            out.optional("packet", packet.as_ref())?;
            out.optional("args", args.as_ref())?;
        }
    }
    Ok(())
}

/// Appends MessagePack to a vector; writing to memory cannot fail, so results are dropped here, once.
struct Writer(Vec<u8>);

impl Writer {
    fn key(&mut self, name: &str) -> &mut Self {
        self.str(name);
        self
    }

    fn map(&mut self, len: u32) {
        let _ = w::write_map_len(&mut self.0, len);
    }

    fn str(&mut self, text: &str) {
        let _ = w::write_str(&mut self.0, text);
    }

    fn uint(&mut self, value: u64) {
        let _ = w::write_uint(&mut self.0, value);
    }

    fn bool(&mut self, value: bool) {
        let _ = w::write_bool(&mut self.0, value);
    }

    fn strings(&mut self, items: &[String]) {
        let _ = w::write_array_len(&mut self.0, u32::try_from(items.len()).unwrap_or(u32::MAX));
        for item in items {
            self.str(item);
        }
    }

    fn request_id(&mut self, id: Option<&str>) {
        if let Some(id) = id {
            self.key("requestId").str(id);
        }
    }

    fn opts(&mut self, opts: &Opts) {
        self.key("opts").map(3);
        self.key("rooms").strings(&opts.rooms);
        self.key("except").strings(&opts.except);
        self.key("flags").map(u32::from(opts.flags.volatile) + u32::from(opts.flags.compress.is_some()));
        if opts.flags.volatile {
            self.key("volatile").bool(true);
        }
        if let Some(compress) = opts.flags.compress {
            self.key("compress").bool(compress);
        }
    }

    fn optional(&mut self, name: &str, data: Option<&Data>) -> Result<()> {
        match data {
            Some(data) => self.key(name).data(data),
            None => Ok(()),
        }
    }

    fn data(&mut self, data: &Data) -> Result<()> {
        match data {
            Data::MessagePack(bytes) => {
                self.0.extend_from_slice(bytes);
                Ok(())
            }
            Data::Json(text) => transcode(text, &mut self.0),
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

/// JSON can escape half of a surrogate pair, UTF-8 and so MessagePack cannot.
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
    // Around user data stand `data` and, in a broadcast, `packet`.
    let mut reader = Reader::new(bytes, bytes.len(), MAX_DEPTH + 2);
    let mut message_uid = None;
    let mut message_nsp = None;
    let mut kind = None;
    let mut data = None;
    let mut first_key = None;
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
    let kind = json::message_type(kind, bytes.len())?;
    let mut fields = Fields::default();
    let mut packet = None;
    if let Some(data) = data {
        let mut reader = Reader::new(data, bytes.len(), MAX_DEPTH + 1);
        reader.entries(|reader, key| {
            match key {
                "opts" => fields.opts = reader.opts()?,
                "rooms" => fields.rooms = reader.names()?,
                "close" => fields.close = reader.bool()?.unwrap_or_default(),
                "requestId" => fields.request_id = reader.name()?,
                "packet" => packet = Some(reader.slice()?),
                "sockets" => fields.sockets = reader.present_slice()?.map(Slice::MessagePack),
                "clientCount" => fields.client_count = reader.uint()?.unwrap_or_default(),
                "args" => fields.args = Some(Slice::MessagePack(reader.slice()?)),
                _ => reader.skip()?,
            }
            Ok(())
        })?;
    }
    if matches!(kind, MessageType::Broadcast) {
        if let Some(packet) = packet {
            let mut reader = Reader::new(packet, bytes.len(), MAX_DEPTH);
            reader.entries(|reader, key| {
                match key {
                    "data" => fields.packet = Some(Slice::MessagePack(reader.slice()?)),
                    "nsp" if message_nsp.is_none() => message_nsp = reader.name()?.filter(|nsp| !nsp.is_empty()),
                    _ => reader.skip()?,
                }
                Ok(())
            })?;
        }
    } else {
        fields.packet = packet.map(Slice::MessagePack);
    }
    Ok(Message {
        uid: message_uid.unwrap_or_else(|| uid.to_owned()),
        nsp: message_nsp.unwrap_or_else(|| nsp.to_owned()),
        body: fields.into_body(kind, bytes.len())?,
        is_from_go: first_key.as_deref() == Some("uid"),
    })
}
