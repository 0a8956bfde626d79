//! The MessagePack side of the codec: bodies of attachments, map-encoded as Node and Go read them.

use rmp::Marker;
use rmp::decode::RmpRead as _;
use rmp::encode as w;

use super::fields::{Fields, Slice};
use super::{json, undecodable};
use crate::error::{Error, Result};
use crate::protocol::{Body, Data, Flags, MAX_DEPTH, Message, MessageType, Opts, PACKET_EVENT, SOURCE};

// ---------------------------------------------------------------------------------------------------- writing

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

// ---------------------------------------------------------------------------------------------------- reading

/// Decode an attachment; `uid` and `nsp` come from its header and stand in for missing fields.
pub fn read(bytes: &[u8], uid: &str, nsp: &str) -> Result<Message> {
    // Around user data stand `data` and, in a broadcast, `packet`.
    let mut reader = Reader { rest: bytes, total: bytes.len(), max_depth: MAX_DEPTH + 2 };
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
        let mut reader = Reader { rest: data, total: bytes.len(), max_depth: MAX_DEPTH + 1 };
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
            let mut reader = Reader { rest: packet, total: bytes.len(), max_depth: MAX_DEPTH };
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

/// Makes values of some kind out of a MessagePack document.
pub trait Build {
    /// The kind.
    type Value;
    /// nil.
    fn null(&mut self) -> Self::Value;
    /// A boolean.
    fn bool(&mut self, value: bool) -> Self::Value;
    /// A negative or small integer.
    fn int(&mut self, value: i64) -> Self::Value;
    /// An integer beyond `i64`.
    fn uint(&mut self, value: u64) -> Self::Value;
    /// A finite float; NaN and infinities arrive as null, as `JSON.stringify` writes them.
    fn float(&mut self, value: f64) -> Self::Value;
    /// A string; bytes that are no UTF-8 have been replaced.
    fn str(&mut self, value: &str) -> Self::Value;
    /// Binary.
    fn bytes(&mut self, value: &[u8]) -> Self::Value;
    /// An array.
    fn array(&mut self, items: Vec<Self::Value>) -> Result<Self::Value>;
    /// A map.
    fn map(&mut self, entries: Vec<(Self::Value, Self::Value)>) -> Result<Self::Value>;
}

/// Build the value of a document.
pub fn build<B: Build>(bytes: &[u8], builder: &mut B) -> Result<B::Value> {
    let mut reader = Reader { rest: bytes, total: bytes.len(), max_depth: MAX_DEPTH };
    let value = reader.value(builder, 0)?;
    if reader.rest.is_empty() { Ok(value) } else { Err(reader.bad("bytes after the end")) }
}

/// ISO 8601 text of the timestamp extension (type -1), as Node prints the dates it sends as such.
fn timestamp(data: &[u8]) -> Option<String> {
    let (seconds, nanos) = match data.len() {
        4 => (i64::from(u32::from_be_bytes(data.try_into().ok()?)), 0),
        8 => {
            let packed = u64::from_be_bytes(data.try_into().ok()?);
            (i64::try_from(packed & 0x3_ffff_ffff).ok()?, packed >> 34)
        }
        12 => {
            let nanos = u32::from_be_bytes(data[..4].try_into().ok()?);
            (i64::from_be_bytes(data[4..].try_into().ok()?), u64::from(nanos))
        }
        _ => return None,
    };
    // Civil date from days, proleptic Gregorian (Howard Hinnant, "chrono-compatible low-level date algorithms").
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let shifted = days.checked_add(719_468)?;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    (0..=9999)
        .contains(&year)
        .then(|| format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z", nanos / 1_000_000))
}

/// Walks a MessagePack document.
struct Reader<'a> {
    rest: &'a [u8],
    total: usize,
    /// Deepest nesting of one value.
    max_depth: usize,
}

impl<'a> Reader<'a> {
    fn bad(&self, what: &str) -> Error {
        undecodable(self.total, format!("{what} at byte {} of the attachment", self.total - self.rest.len()))
    }

    /// Call `each` with every key of the map (or of nil, which has none); it must consume the value.
    fn entries(&mut self, mut each: impl FnMut(&mut Self, &str) -> Result<()>) -> Result<()> {
        if self.nil() {
            return Ok(());
        }
        let len = rmp::decode::read_map_len(&mut self.rest).map_err(|_| self.bad("expected a map"))?;
        for _ in 0..len {
            let key = self.name()?.ok_or_else(|| self.bad("expected a key"))?;
            each(self, &key)?;
        }
        Ok(())
    }

    /// Consume nil, if it is next.
    fn nil(&mut self) -> bool {
        match self.rest.split_first() {
            Some((&0xc0, rest)) => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    /// A string, or an integer that stands for one; `None` for nil.
    fn name(&mut self) -> Result<Option<String>> {
        if self.nil() {
            return Ok(None);
        }
        if matches!(self.rest.first(), Some(0xa0..=0xbf | 0xd9..=0xdb)) {
            let len = rmp::decode::read_str_len(&mut self.rest).map_err(|_| self.bad("broken string"))?;
            let bytes = self.take(u64::from(len))?;
            // Node writes unpaired surrogates as WTF-8.
            return Ok(Some(String::from_utf8_lossy(bytes).into_owned()));
        }
        let value: i64 = rmp::decode::read_int(&mut self.rest).map_err(|_| self.bad("expected a string"))?;
        Ok(Some(value.to_string()))
    }

    fn uint(&mut self) -> Result<Option<u64>> {
        if self.nil() {
            return Ok(None);
        }
        rmp::decode::read_int(&mut self.rest).map(Some).map_err(|_| self.bad("expected an unsigned integer"))
    }

    fn bool(&mut self) -> Result<Option<bool>> {
        if self.nil() {
            return Ok(None);
        }
        rmp::decode::read_bool(&mut self.rest).map(Some).map_err(|_| self.bad("expected a boolean"))
    }

    fn names(&mut self) -> Result<Vec<String>> {
        if self.nil() {
            return Ok(Vec::new());
        }
        let len = rmp::decode::read_array_len(&mut self.rest).map_err(|_| self.bad("expected an array"))?;
        let mut names = Vec::with_capacity(self.plausible(u64::from(len)));
        for _ in 0..len {
            names.push(self.name()?.ok_or_else(|| self.bad("expected a room name"))?);
        }
        Ok(names)
    }

    fn opts(&mut self) -> Result<Opts> {
        let mut opts = Opts::default();
        self.entries(|reader, key| {
            match key {
                "rooms" => opts.rooms = reader.names()?,
                "except" => opts.except = reader.names()?,
                "flags" => opts.flags = reader.flags()?,
                _ => reader.skip()?,
            }
            Ok(())
        })?;
        Ok(opts)
    }

    fn flags(&mut self) -> Result<Flags> {
        let mut flags = Flags::default();
        self.entries(|reader, key| {
            match key {
                "volatile" => flags.volatile = reader.bool()?.unwrap_or_default(),
                "compress" => flags.compress = reader.bool()?,
                _ => reader.skip()?,
            }
            Ok(())
        })?;
        Ok(flags)
    }

    fn present_slice(&mut self) -> Result<Option<&'a [u8]>> {
        if self.nil() { Ok(None) } else { self.slice().map(Some) }
    }

    /// The bytes of the next value.
    fn slice(&mut self) -> Result<&'a [u8]> {
        let start = self.rest;
        self.skip()?;
        Ok(&start[..start.len() - self.rest.len()])
    }

    fn take(&mut self, len: u64) -> Result<&'a [u8]> {
        let len = usize::try_from(len).map_err(|_| self.bad("length beyond the address space"))?;
        if len > self.rest.len() {
            return Err(self.bad("truncated value"));
        }
        let (taken, rest) = self.rest.split_at(len);
        self.rest = rest;
        Ok(taken)
    }

    /// Step over the next value; counters instead of recursion, so that no nesting can exhaust the stack.
    fn skip(&mut self) -> Result<()> {
        let mut pending: u64 = 1;
        let mut outer = Vec::new(); // values pending on each level around
        loop {
            if pending == 0 {
                match outer.pop() {
                    Some(rest) => pending = rest,
                    None => return Ok(()),
                }
                continue;
            }
            pending -= 1;
            let marker = self.rest.read_u8().map(Marker::from_u8).map_err(|_| self.bad("truncated value"))?;
            let (length_bytes, extra, per_item) = match marker {
                Marker::Null | Marker::False | Marker::True | Marker::FixPos(_) | Marker::FixNeg(_) => continue,
                Marker::U8 | Marker::I8 => (0, 1, 0),
                Marker::U16 | Marker::I16 | Marker::FixExt1 => (0, 2, 0),
                Marker::U32 | Marker::I32 | Marker::F32 => (0, 4, 0),
                Marker::FixExt2 => (0, 3, 0),
                Marker::FixExt4 => (0, 5, 0),
                Marker::U64 | Marker::I64 | Marker::F64 => (0, 8, 0),
                Marker::FixExt8 => (0, 9, 0),
                Marker::FixExt16 => (0, 17, 0),
                Marker::FixStr(len) => (0, u64::from(len), 0),
                Marker::Bin8 | Marker::Str8 => (1, 0, 0),
                Marker::Bin16 | Marker::Str16 => (2, 0, 0),
                Marker::Bin32 | Marker::Str32 => (4, 0, 0),
                Marker::Ext8 => (1, 1, 0),
                Marker::Ext16 => (2, 1, 0),
                Marker::Ext32 => (4, 1, 0),
                Marker::FixArray(len) => {
                    outer.push(std::mem::replace(&mut pending, u64::from(len)));
                    self.check_depth(outer.len())?;
                    continue;
                }
                Marker::FixMap(len) => {
                    outer.push(std::mem::replace(&mut pending, 2 * u64::from(len)));
                    self.check_depth(outer.len())?;
                    continue;
                }
                Marker::Array16 => (2, 0, 1),
                Marker::Array32 => (4, 0, 1),
                Marker::Map16 => (2, 0, 2),
                Marker::Map32 => (4, 0, 2),
                Marker::Reserved => return Err(self.bad("reserved marker 0xc1")),
            };
            let len = self.big_endian(length_bytes)?;
            if per_item > 0 {
                outer.push(std::mem::replace(&mut pending, len * per_item));
                self.check_depth(outer.len())?;
            } else {
                self.take(len + extra)?;
            }
        }
    }

    fn check_depth(&self, depth: usize) -> Result<()> {
        if depth <= self.max_depth { Ok(()) } else { Err(self.bad("nesting deeper than 100 levels")) }
    }

    /// Big-endian unsigned integer of `len` bytes.
    fn big_endian(&mut self, len: u64) -> Result<u64> {
        Ok(self.take(len)?.iter().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    }

    fn value<B: Build>(&mut self, builder: &mut B, depth: usize) -> Result<B::Value> {
        self.check_depth(depth)?;
        let marker = self.rest.read_u8().map(Marker::from_u8).map_err(|_| self.bad("truncated value"))?;
        Ok(match marker {
            Marker::Null => builder.null(),
            Marker::False => builder.bool(false),
            Marker::True => builder.bool(true),
            Marker::FixPos(value) => builder.int(i64::from(value)),
            Marker::FixNeg(value) => builder.int(i64::from(value)),
            Marker::U8 => self.unsigned(builder, 1)?,
            Marker::U16 => self.unsigned(builder, 2)?,
            Marker::U32 => self.unsigned(builder, 4)?,
            Marker::U64 => self.unsigned(builder, 8)?,
            Marker::I8 => self.signed(builder, 1)?,
            Marker::I16 => self.signed(builder, 2)?,
            Marker::I32 => self.signed(builder, 4)?,
            Marker::I64 => self.signed(builder, 8)?,
            Marker::F32 => {
                let bits = u32::try_from(self.big_endian(4)?).map_err(|_| self.bad("broken float"))?;
                float(builder, f64::from(f32::from_bits(bits)))
            }
            Marker::F64 => float(builder, f64::from_bits(self.big_endian(8)?)),
            Marker::FixStr(len) => self.string(builder, u64::from(len))?,
            Marker::Str8 => self.sized(1, |reader, len| reader.string(builder, len))?,
            Marker::Str16 => self.sized(2, |reader, len| reader.string(builder, len))?,
            Marker::Str32 => self.sized(4, |reader, len| reader.string(builder, len))?,
            Marker::Bin8 => self.sized(1, |reader, len| Ok(builder.bytes(reader.take(len)?)))?,
            Marker::Bin16 => self.sized(2, |reader, len| Ok(builder.bytes(reader.take(len)?)))?,
            Marker::Bin32 => self.sized(4, |reader, len| Ok(builder.bytes(reader.take(len)?)))?,
            Marker::FixArray(len) => self.array(builder, u64::from(len), depth)?,
            Marker::Array16 => self.sized(2, |reader, len| reader.array(builder, len, depth))?,
            Marker::Array32 => self.sized(4, |reader, len| reader.array(builder, len, depth))?,
            Marker::FixMap(len) => self.map(builder, u64::from(len), depth)?,
            Marker::Map16 => self.sized(2, |reader, len| reader.map(builder, len, depth))?,
            Marker::Map32 => self.sized(4, |reader, len| reader.map(builder, len, depth))?,
            Marker::FixExt1 => self.extension(builder, 1)?,
            Marker::FixExt2 => self.extension(builder, 2)?,
            Marker::FixExt4 => self.extension(builder, 4)?,
            Marker::FixExt8 => self.extension(builder, 8)?,
            Marker::FixExt16 => self.extension(builder, 16)?,
            Marker::Ext8 => self.sized(1, |reader, len| reader.extension(builder, len))?,
            Marker::Ext16 => self.sized(2, |reader, len| reader.extension(builder, len))?,
            Marker::Ext32 => self.sized(4, |reader, len| reader.extension(builder, len))?,
            Marker::Reserved => return Err(self.bad("reserved marker 0xc1")),
        })
    }

    fn sized<T>(&mut self, length_bytes: u64, then: impl FnOnce(&mut Self, u64) -> Result<T>) -> Result<T> {
        let len = self.big_endian(length_bytes)?;
        then(self, len)
    }

    fn unsigned<B: Build>(&mut self, builder: &mut B, bytes: u64) -> Result<B::Value> {
        let value = self.big_endian(bytes)?;
        Ok(match i64::try_from(value) {
            Ok(value) => builder.int(value),
            Err(_) => builder.uint(value),
        })
    }

    fn signed<B: Build>(&mut self, builder: &mut B, bytes: u64) -> Result<B::Value> {
        // Shifting up and arithmetically down again extends the sign.
        let unused_bits = 64 - 8 * bytes;
        Ok(builder.int((self.big_endian(bytes)? << unused_bits).cast_signed() >> unused_bits))
    }

    fn string<B: Build>(&mut self, builder: &mut B, len: u64) -> Result<B::Value> {
        Ok(builder.str(&String::from_utf8_lossy(self.take(len)?)))
    }

    fn array<B: Build>(&mut self, builder: &mut B, len: u64, depth: usize) -> Result<B::Value> {
        let mut items = Vec::with_capacity(self.plausible(len));
        for _ in 0..len {
            items.push(self.value(builder, depth + 1)?);
        }
        builder.array(items)
    }

    fn map<B: Build>(&mut self, builder: &mut B, len: u64, depth: usize) -> Result<B::Value> {
        let mut entries = Vec::with_capacity(self.plausible(len));
        for _ in 0..len {
            let key = self.value(builder, depth + 1)?;
            entries.push((key, self.value(builder, depth + 1)?));
        }
        builder.map(entries)
    }

    /// A length is the sender's claim: reserve no more than the bytes that are really there can hold.
    fn plausible(&self, len: u64) -> usize {
        usize::try_from(len).unwrap_or(usize::MAX).min(self.rest.len()).min(4096)
    }

    fn extension<B: Build>(&mut self, builder: &mut B, len: u64) -> Result<B::Value> {
        let kind = self.take(1)?.first().copied().unwrap_or_default().cast_signed();
        let data = self.take(len)?;
        if let (-1, Some(text)) = (kind, timestamp(data)) {
            return Ok(builder.str(&text));
        }
        let entries =
            vec![(builder.str("type"), builder.int(i64::from(kind))), (builder.str("data"), builder.bytes(data))];
        builder.map(entries)
    }
}

fn float<B: Build>(builder: &mut B, value: f64) -> B::Value {
    if value.is_finite() { builder.float(value) } else { builder.null() }
}
