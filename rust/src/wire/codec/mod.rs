//! Encoding and decoding of cluster messages: JSON inside a notification, or MessagePack in the attachment table
//! announced by a small JSON header.
//!
//! Writing is strict and canonical (accepted by every known peer), reading is lenient (accepts what every known peer
//! sends). See `json` and `msgpack` for the two formats, and `write` for the fields that both contain.

mod glance;
pub mod json;
pub mod msgpack;
mod write;

use crate::error::{Error, Result};
use crate::wire::protocol::{Data, Message, MessageType, NOTIFY_LIMIT_BYTES};
use crate::wire::signature::SigningKey;

pub use glance::{Glance, glance};

/// An encoded message for the publisher, without its sequence number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Encoded {
    /// Sent inside the notification: JSON text without the closing brace.
    Inline(String),
    /// Sent as an attachment.
    Attachment {
        /// JSON header without the attachment id and the closing brace.
        header: String,
        /// MessagePack body.
        body: Vec<u8>,
    },
}

/// The content of a notification's payload.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "most are messages, and a box would be an allocation for each")]
pub enum Received {
    /// The whole message.
    Message(Message),
    /// A header; the message itself is in the attachment table.
    Attachment {
        /// Server id of the sender.
        uid: String,
        /// Namespace, from the header, or from the channel if the header has none.
        nsp: String,
        /// Row id.
        id: i64,
    },
}

/// Fields that this package adds to its messages, so that receivers detect gaps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stamp {
    /// Sequence number of the message among its sender's messages on the channel, beginning with 1.
    pub sequence: Option<u64>,
    /// The emitter process that sent the message; all emitters share one uid.
    pub process: Option<String>,
}

/// What makes equal messages of one transaction distinct, which PostgreSQL would otherwise deliver only once.
#[derive(Clone, Copy)]
pub enum Mark<'a> {
    /// The message's place among those of its sender: receivers detect gaps.
    Number {
        /// The [`Stamp`]'s number.
        sequence: u64,
        /// The [`Stamp`]'s process.
        process: Option<&'a str>,
    },
    /// A random key, for a message that may be rolled back. A number would then show a gap.
    Random(&'a str),
}

/// The fields that a publisher appends to a message, see [`finish`].
#[derive(Clone, Copy)]
pub struct Seal<'a> {
    /// What distinguishes the message from an equal one.
    pub mark: Mark<'a>,
    /// The key that signs the message, if there is one.
    pub key: Option<&'a SigningKey>,
    /// The channel that the message is published on.
    pub channel: &'a str,
}

/// Limits of one publisher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// From this size on, in bytes of JSON, a message becomes an attachment. Never above 8000.
    pub payload_threshold_bytes: usize,
    /// Largest message that is accepted, in the format in which it is sent.
    pub max_payload_bytes: usize,
}

impl Limits {
    fn inline_limit(self) -> usize {
        self.payload_threshold_bytes.saturating_sub(1).min(NOTIFY_LIMIT_BYTES)
    }

    fn check(self, message: &Message, size_bytes: usize) -> Result<()> {
        if size_bytes > self.max_payload_bytes {
            return Err(Error::TooLarge {
                what: format!("message of type {} for namespace {:?}", message.kind.number(), message.nsp),
                size_bytes,
                limit_bytes: self.max_payload_bytes,
            });
        }
        Ok(())
    }
}

/// The key that carries the per-sender sequence number; peers ignore it.
const SEQUENCE_KEY: &str = ",\"n\":";
/// The key that carries the emitter's process; peers ignore it.
const PROCESS_KEY: &str = ",\"p\":\"";
/// The key that carries a random key instead of these two; peers ignore it.
const RANDOM_KEY: &str = ",\"k\":\"";

/// The key of a header with the rooms that the attachment addresses. A server without members in these rooms need not
/// fetch it. Peers ignore it.
const HINT_KEY: &str = "rooms";
/// Longest hint, in ASCII, so that the header stays far below a notification's size limit.
const HINT_LIMIT_BYTES: usize = 4000;

/// Longest server id and namespace that are read. Known servers have ids of 32 letters, and channels carry less.
const ORIGIN_LIMIT_BYTES: usize = 255;

/// Encode a message as `uid` would send it: inline when it fits and holds no binary, else as an attachment.
pub fn encode(message: &Message, uid: &str, limits: Limits) -> Result<Encoded> {
    if !message.is_binary() {
        let text = json::write(message, uid);
        if text.len() + SEQUENCE_KEY.len() + 2 <= limits.inline_limit() {
            limits.check(message, text.len())?;
            return Ok(Encoded::Inline(text));
        }
    }
    encode_attachment(message, uid, limits)
}

fn encode_attachment(message: &Message, uid: &str, limits: Limits) -> Result<Encoded> {
    let body = msgpack::write(message, uid)?;
    limits.check(message, body.len())?;
    Ok(Encoded::Attachment { header: json::write_header(message, uid), body })
}

/// Append the stamp and the signature. A message that no longer fits inline becomes an attachment here.
pub fn finish(encoded: Encoded, seal: Seal<'_>, message: &Message, uid: &str, limits: Limits) -> Result<Encoded> {
    match encoded {
        Encoded::Inline(mut text) => {
            push_seal(&mut text, seal, None);
            if text.len() < limits.inline_limit() {
                text.push('}');
                return Ok(Encoded::Inline(text));
            }
            finish(encode_attachment(message, uid, limits)?, seal, message, uid, limits)
        }
        Encoded::Attachment { mut header, body } => {
            push_seal(&mut header, seal, Some(&body));
            header.push_str(",\"attachmentId\":\"");
            Ok(Encoded::Attachment { header, body })
        }
    }
}

/// The same message in ASCII, for a database whose encoding lacks some of its characters; JSON can write each as
/// `\uXXXX`. A message that is too long then becomes an attachment, whose body is `bytea` to PostgreSQL. `None` if the
/// message is ASCII already.
pub fn in_ascii(wire: &Encoded, seal: Seal<'_>, uid: &str, limits: Limits) -> Result<Option<Encoded>> {
    let (message, body) = match wire {
        Encoded::Inline(text) if !text.is_ascii() => match json::read(text, "/")?.0 {
            Received::Message(message) => (message, None),
            Received::Attachment { .. } => return Ok(None), // this package writes no such message
        },
        Encoded::Attachment { header, body } if !header.is_ascii() => {
            (msgpack::read(body, uid, "/")?, Some(body.clone()))
        }
        _ => return Ok(None),
    };
    let body = if let Some(body) = body {
        body
    } else {
        let mut text = json::escape(&json::write(&message, uid));
        push_seal(&mut text, seal, None);
        if text.len() < limits.inline_limit() {
            text.push('}');
            return Ok(Some(Encoded::Inline(text)));
        }
        msgpack::write(&message, uid)?
    };
    let header = json::escape(&json::write_header(&message, uid));
    finish(Encoded::Attachment { header, body }, seal, &message, uid, limits).map(Some)
}

fn push_seal(text: &mut String, seal: Seal<'_>, body: Option<&[u8]>) {
    use std::fmt::Write as _;
    let mut push_name = |key: &str, name: &str| {
        text.push_str(key);
        text.push_str(name); // letters and digits
        text.push('"');
    };
    match seal.mark {
        Mark::Number { sequence, process } => {
            if let Some(process) = process {
                push_name(PROCESS_KEY, process);
            }
            text.push_str(SEQUENCE_KEY);
            let _ = write!(text, "{sequence}"); // writing to a String cannot fail
        }
        Mark::Random(name) => push_name(RANDOM_KEY, name),
    }
    if let Some(key) = seal.key {
        key.sign(seal.channel, text, body);
    }
}

/// Decode the payload of a notification received on the channel of namespace `channel_nsp`.
pub fn decode_notification(payload: &str, channel_nsp: &str) -> Result<Received> {
    decode_stamped(payload, channel_nsp).map(|(received, _)| received)
}

/// As [`decode_notification`], and also returns the sender's [`Stamp`].
pub fn decode_stamped(payload: &str, channel_nsp: &str) -> Result<(Received, Stamp)> {
    let (received, stamp) = json::read(payload, channel_nsp)?;
    let (Received::Message(Message { uid, nsp, .. }) | Received::Attachment { uid, nsp, .. }) = &received;
    check_origin(uid, nsp, payload.len())?;
    Ok((received, stamp))
}

/// Decode an attachment. `uid` and `nsp` are the header's, used where the body names none.
pub fn decode_attachment(bytes: &[u8], uid: &str, nsp: &str) -> Result<Message> {
    let message = msgpack::read(bytes, uid, nsp)?;
    check_origin(&message.uid, &message.nsp, bytes.len())?;
    Ok(message)
}

/// Reject implausibly long names, because names are remembered for every sender, long after its message.
fn check_origin(uid: &str, nsp: &str, size_bytes: usize) -> Result<()> {
    for (what, name) in [("uid", uid), ("nsp", nsp)] {
        if name.len() > ORIGIN_LIMIT_BYTES {
            let reason = format!("{what} has {} bytes, at most {ORIGIN_LIMIT_BYTES} are read", name.len());
            return Err(undecodable(size_bytes, reason));
        }
    }
    Ok(())
}

/// Normalize a peer's message: fill in defaults for omitted fields, and remove fields without meaning for its type.
///
/// Peers differ: Node omits, `null`s or sends numbers where strings are expected, Go omits every zero value.
fn checked(mut message: Message, size_bytes: usize) -> Result<Message> {
    if message.kind == MessageType::FetchSocketsResponse {
        message.sockets.get_or_insert_with(|| Data::Json("[]".to_owned()));
    }
    if let Some(what) = message.lacks() {
        let reason = format!("message of type {} without {what}", message.kind.number());
        return Err(undecodable(size_bytes, reason));
    }
    match (message.kind, &message.packet) {
        (MessageType::Broadcast | MessageType::ServerSideEmit, Some(packet)) if !packet.is_array() => {
            Err(undecodable(size_bytes, format!("packet data is no array ({} bytes)", packet.len())))
        }
        _ => Ok(message.trimmed()),
    }
}

pub(crate) fn undecodable(size_bytes: usize, reason: impl Into<String>) -> Error {
    Error::Decode { channel: String::new(), size_bytes, reason: reason.into() }
}

#[cfg(test)]
mod tests;
