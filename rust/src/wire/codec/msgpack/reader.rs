//! Walking a MessagePack document: field by field without building values, or into values of the caller's type.

use rmp::Marker;
use rmp::decode::RmpRead as _;

use crate::error::{Error, Result};
use crate::wire::codec::undecodable;
use crate::wire::protocol::{Flags, MAX_DEPTH, Opts};

/// Builds values of type [`Build::Value`] from a MessagePack document.
pub trait Build {
    /// The type of the values.
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
    /// A string; invalid UTF-8 has been replaced.
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
    let mut reader = Reader::new(bytes, bytes.len(), MAX_DEPTH);
    let value = reader.value(builder, 0)?;
    if reader.rest.is_empty() { Ok(value) } else { Err(reader.bad("bytes after the end")) }
}

/// ISO 8601 text of the timestamp extension (type -1), in the format in which Node prints dates.
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
pub(super) struct Reader<'a> {
    rest: &'a [u8],
    total: usize,
    /// Deepest nesting of one value.
    max_depth: usize,
}

impl<'a> Reader<'a> {
    /// A reader at the start of `rest`, the last part of a document of `total` bytes.
    pub(super) fn new(rest: &'a [u8], total: usize, max_depth: usize) -> Self {
        Self { rest, total, max_depth }
    }

    fn bad(&self, what: &str) -> Error {
        undecodable(self.total, format!("{what} at byte {} of the attachment", self.total - self.rest.len()))
    }

    /// Call `each` with every key of the map (or of nil, which has none); it must consume the value.
    pub(super) fn entries(&mut self, mut each: impl FnMut(&mut Self, &str) -> Result<()>) -> Result<()> {
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
    pub(super) fn name(&mut self) -> Result<Option<String>> {
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

    pub(super) fn uint(&mut self) -> Result<Option<u64>> {
        if self.nil() {
            return Ok(None);
        }
        rmp::decode::read_int(&mut self.rest).map(Some).map_err(|_| self.bad("expected an unsigned integer"))
    }

    pub(super) fn bool(&mut self) -> Result<Option<bool>> {
        if self.nil() {
            return Ok(None);
        }
        rmp::decode::read_bool(&mut self.rest).map(Some).map_err(|_| self.bad("expected a boolean"))
    }

    pub(super) fn names(&mut self) -> Result<Vec<String>> {
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

    pub(super) fn opts(&mut self) -> Result<Opts> {
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

    pub(super) fn present_slice(&mut self) -> Result<Option<&'a [u8]>> {
        if self.nil() { Ok(None) } else { self.slice().map(Some) }
    }

    /// Read something that may be nested some levels deeper than everything else.
    pub(super) fn deeper<T>(&mut self, levels: usize, read: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.max_depth += levels;
        let found = read(self);
        self.max_depth -= levels;
        found
    }

    /// The bytes of the next value.
    pub(super) fn slice(&mut self) -> Result<&'a [u8]> {
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
    pub(super) fn skip(&mut self) -> Result<()> {
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

    /// Limit a length to the number of items that the remaining bytes can hold, because the length is only the sender's
    /// claim.
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
