//! Messages that somebody else publishes, in a transaction that may be rolled back.

use crate::error::{Error, Result};
use crate::wire::codec::{self, Encoded, Limits, Mark, Seal};
use crate::wire::protocol::{EMITTER_UID, Message, channel_name};
use crate::wire::signature::SigningKey;

/// Length of a random id on the wire, which has 48 bits.
const ID_LENGTH: usize = 8;

/// Writes messages as a publisher with the same settings does, but for their number. Has no connection.
pub struct Framer {
    /// Channel prefix.
    pub prefix: String,
    /// Size limits of a message.
    pub limits: Limits,
    /// Signs every message.
    pub signing_key: Option<SigningKey>,
}

impl Framer {
    /// A message's channel and its notification. The message comes from no server, because a server would take its own
    /// for an echo. The text is ASCII, which databases and connections of every encoding take.
    pub fn frame(&self, message: &Message) -> Result<(String, Encoded)> {
        let (channel, id) = (channel_name(&self.prefix, &message.nsp)?, random_id()?);
        let seal = Seal { mark: Mark::Random(&id), key: self.signing_key.as_ref(), channel: &channel };
        let encoded = codec::encode(message, EMITTER_UID, self.limits)?;
        let wire = codec::finish(encoded, seal, message, EMITTER_UID, self.limits)?;
        let wire = codec::in_ascii(&wire, seal, EMITTER_UID, self.limits)?.unwrap_or(wire);
        Ok((channel, wire))
    }
}

/// A random id, from the operating system. A generator inside the process would give forked children the same id, and
/// receivers would confuse their messages.
pub fn random_id() -> Result<String> {
    const LETTERS: &[u8; 64] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_";
    let mut bytes = [0; ID_LENGTH];
    getrandom::fill(&mut bytes).map_err(|error| Error::lost("draw a random id", error))?;
    Ok(bytes.into_iter().map(|byte| char::from(LETTERS[usize::from(byte % 64)])).collect())
}
