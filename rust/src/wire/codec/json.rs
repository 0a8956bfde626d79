//! The JSON side of the codec: envelopes and headers inside notifications.

use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt::{self, Write as _};

use super::fields::{Fields, Slice};
use super::{HINT_KEY, HINT_LIMIT_BYTES, Received, Stamp, undecodable};
use crate::error::Result;
use crate::wire::protocol::{Body, Data, Flags, MAX_DEPTH, Message, MessageType, Opts, PACKET_EVENT, SOURCE};

// ---------------------------------------------------------------------------------------------------- writing

/// The message as JSON, without the closing brace, so that the publisher can append its sequence number.
///
/// `opts` stands before `packet`: a receiver can decide that nobody here wants the message without reading it all.
/// User data held as MessagePack has no place in JSON and is written as `null`; [`super::encode`] never asks for it.
pub fn write(message: &Message, uid: &str) -> String {
    let mut out = String::with_capacity(160 + message.size_bytes());
    push_envelope(&mut out, message, uid);
    match &message.body {
        Body::InitialHeartbeat | Body::Heartbeat | Body::AdapterClose => return out,
        _ => out.push_str(",\"data\":{"),
    }
    match &message.body {
        Body::InitialHeartbeat | Body::Heartbeat | Body::AdapterClose => {}
        Body::Broadcast { opts, packet, request_id } => {
            push_request_id(&mut out, request_id.as_deref());
            push_opts(&mut out, opts);
            let _ = write!(out, ",\"packet\":{{\"type\":{PACKET_EVENT},\"nsp\":");
            push_string(&mut out, &message.nsp);
            out.push_str(",\"data\":");
            push_data(&mut out, packet);
            out.push('}');
        }
        Body::SocketsJoin { opts, rooms } | Body::SocketsLeave { opts, rooms } => {
            push_opts(&mut out, opts);
            out.push_str(",\"rooms\":");
            push_strings(&mut out, rooms);
        }
        Body::DisconnectSockets { opts, close } => {
            push_opts(&mut out, opts);
            let _ = write!(out, ",\"close\":{close}");
        }
        Body::FetchSockets { opts, request_id } => {
            push_request_id(&mut out, Some(request_id));
            push_opts(&mut out, opts);
        }
        Body::FetchSocketsResponse { request_id, sockets } => {
            push_request_id(&mut out, Some(request_id));
            out.push_str("\"sockets\":");
            push_data(&mut out, sockets);
        }
        Body::ServerSideEmit { packet, request_id } => {
            push_request_id(&mut out, request_id.as_deref());
            out.push_str("\"packet\":");
            push_data(&mut out, packet);
        }
        Body::ServerSideEmitResponse { request_id, packet } => {
            push_last_request_id(&mut out, request_id);
            push_optional(&mut out, "packet", packet.as_ref());
        }
        Body::BroadcastClientCount { request_id, client_count } => {
            push_request_id(&mut out, Some(request_id));
            let _ = write!(out, "\"clientCount\":{client_count}");
        }
        Body::BroadcastAck { request_id, packet, args } => {
            push_last_request_id(&mut out, request_id);
            push_optional(&mut out, "packet", packet.as_ref());
            push_optional(&mut out, "args", args.as_ref());
        }
    }
    out.push('}');
    out
}

/// The header that announces an attachment, without the attachment id and the closing brace.
///
/// Node's own header lacks `nsp` and `source`; with them a Node server recognises and a cluster worker accepts it. The rooms
/// are ours, for whatever [`super::glance`] may answer.
pub fn write_header(message: &Message, uid: &str) -> String {
    let mut out = String::with_capacity(128);
    push_envelope(&mut out, message, uid);
    if let Some(opts) = message.body.opts_for_sockets() {
        let length = out.len();
        let _ = write!(out, ",\"{HINT_KEY}\":");
        push_strings(&mut out, &opts.rooms);
        if escaped_len(&out[length..]) > HINT_LIMIT_BYTES {
            out.truncate(length);
        }
    }
    out
}

fn push_envelope(out: &mut String, message: &Message, uid: &str) {
    let _ = write!(out, "{{\"type\":{},\"uid\":", message.body.message_type().number());
    push_string(out, uid);
    out.push_str(",\"nsp\":");
    push_string(out, &message.nsp);
    let _ = write!(out, ",\"source\":\"{SOURCE}\"");
}

fn push_request_id(out: &mut String, request_id: Option<&str>) {
    if let Some(id) = request_id {
        push_last_request_id(out, id);
        out.push(',');
    }
}

fn push_last_request_id(out: &mut String, request_id: &str) {
    out.push_str("\"requestId\":");
    push_string(out, request_id);
}

fn push_optional(out: &mut String, key: &str, data: Option<&Data>) {
    if let Some(data) = data {
        let _ = write!(out, ",\"{key}\":");
        push_data(out, data);
    }
}

fn push_opts(out: &mut String, opts: &Opts) {
    out.push_str("\"opts\":{\"rooms\":");
    push_strings(out, &opts.rooms);
    out.push_str(",\"except\":");
    push_strings(out, &opts.except);
    out.push_str(",\"flags\":{");
    if opts.flags.volatile {
        out.push_str("\"volatile\":true");
    }
    if let Some(compress) = opts.flags.compress {
        let comma = if opts.flags.volatile { "," } else { "" };
        let _ = write!(out, "{comma}\"compress\":{compress}");
    }
    out.push_str("}}");
}

fn push_strings(out: &mut String, items: &[String]) {
    out.push('[');
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        push_string(out, item);
    }
    out.push(']');
}

fn push_data(out: &mut String, data: &Data) {
    match data {
        Data::Json(text) => out.push_str(text),
        Data::MessagePack(_) => out.push_str("null"),
    }
}

/// JSON in nothing but ASCII. All else stands inside strings, where it can be escaped.
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

/// Append `text` as a JSON string.
pub fn push_string(out: &mut String, text: &str) {
    // Names have nothing to be escaped, and there are four of them in a message: no text of its own for each.
    if text.bytes().all(|byte| byte >= b' ' && byte != b'"' && byte != b'\\') {
        out.push('"');
        out.push_str(text);
        out.push('"');
        return;
    }
    match serde_json::to_string(text) {
        Ok(quoted) => out.push_str(&quoted),
        Err(_) => out.push_str("\"\""), // a string always serialises
    }
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
    // Only senders of this package write these two. Another's keys of these names may hold anything.
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

#[derive(Deserialize)]
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
    let is_from_go = payload.starts_with("{\"uid\"");
    let Some(data) = envelope.data else {
        let body = Fields::default().into_body(kind, size)?;
        let nsp = nsp.unwrap_or_else(|| channel_nsp.to_owned());
        return Ok((Received::Message(Message { uid, nsp, body, is_from_go }), stamp));
    };
    let raw: RawData<'_> = object(data.get(), size)?;
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
    let fields = Fields {
        opts: raw.opts.map(|raw| opts(raw, size)).transpose()?.unwrap_or_default(),
        rooms: raw.rooms.map(|names| names.0).unwrap_or_default(),
        close: raw.close.unwrap_or_default(),
        request_id: raw.request_id.map(|name| name.0),
        packet: packet.map(|raw| slice(raw, size)).transpose()?,
        sockets: raw.sockets.map(|raw| slice(raw, size)).transpose()?,
        client_count: raw.client_count.unwrap_or_default(),
        args: raw.args.map(|raw| slice(raw, size)).transpose()?,
    };
    let body = fields.into_body(kind, size)?;
    let nsp = nsp.or(inner_nsp).unwrap_or_else(|| channel_nsp.to_owned());
    Ok((Received::Message(Message { uid, nsp, body, is_from_go }), stamp))
}

/// Parse one object; serde alone would also take an array, its items being the fields in order.
fn object<'a, T: Deserialize<'a>>(text: &'a str, size_bytes: usize) -> Result<T> {
    if !text.trim_start().starts_with('{') {
        return Err(undecodable(size_bytes, "expected an object"));
    }
    serde_json::from_str(text).map_err(|error| undecodable(size_bytes, error.to_string()))
}

fn slice(raw: &RawValue, size_bytes: usize) -> Result<Slice<'_>> {
    if is_too_deep(raw.get()) {
        return Err(undecodable(size_bytes, format!("nesting deeper than {MAX_DEPTH} levels")));
    }
    Ok(Slice::Json(raw.get()))
}

/// Whether valid JSON nests deeper than user data may: whoever reads it later may do so by recursion.
pub fn is_too_deep(text: &str) -> bool {
    if text.len() <= 2 * MAX_DEPTH {
        return false; // each level has two brackets
    }
    let (mut depth, mut is_string, mut is_escaped) = (0_usize, false, false);
    for byte in text.bytes() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => is_string = !is_string,
            b'[' | b'{' if !is_string => depth += 1,
            b']' | b'}' if !is_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_DEPTH {
            return true;
        }
    }
    false
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
