//! Signed messages: HMAC-SHA256 with a secret that the servers of a cluster share.
//!
//! PostgreSQL lets every role that may connect publish on every channel. With a signing key, messages that were not
//! written by a holder of the key are dropped. Node and Go servers cannot sign, so they cannot be members of a cluster
//! with a key.
//!
//! The signature is the last field of the notification, `"h"`. It covers the channel and all fields before it: server
//! id, namespace, sequence number and, for an attachment, the digest of the body, `"b"`. Therefore a header is verified
//! before its attachment is fetched.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};

use crate::error::{Error, Result};

/// Number of bytes of a signature, and of a digest, that are sent. RFC 2104 §5 allows truncation to half of the output,
/// 128 bits.
const TAG_BYTES: usize = 16;
/// The key that carries the signature.
const SIGNATURE_KEY: &str = ",\"h\":\"";
/// The key that carries the digest of an attachment.
const DIGEST_KEY: &str = ",\"b\":\"";
/// The text after the signature in the header of an attachment; the database adds the id.
const ATTACHMENT_KEY: &str = "\",\"attachmentId\":\"";

/// The shared secret.
#[derive(Clone)]
pub struct SigningKey {
    mac: Hmac<Sha256>,
}

/// What a verified notification says about its attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    digest: Option<Vec<u8>>,
}

impl SigningKey {
    /// A key from the secret's bytes.
    pub fn new(secret: &[u8]) -> Result<Self> {
        // RFC 2104 allows keys of any length, but the type requires the error to be handled.
        let mac = Hmac::new_from_slice(secret).map_err(|error| Error::options("signing_key", "", error.to_string()))?;
        Ok(Self { mac })
    }

    fn mac(&self, channel: &str, text: &str) -> Hmac<Sha256> {
        let mut mac = self.mac.clone();
        mac.update(channel.as_bytes());
        mac.update(b"\0"); // no channel holds a NUL, so the boundary is unambiguous
        mac.update(text.as_bytes());
        mac
    }

    /// Append the signature to a notification that is complete except for its end.
    pub fn sign(&self, channel: &str, text: &mut String, body: Option<&[u8]>) {
        if let Some(body) = body {
            push(text, DIGEST_KEY, &digest(body));
        }
        let tag = self.mac(channel, text).finalize().into_bytes();
        push(text, SIGNATURE_KEY, &tag[..TAG_BYTES]);
    }

    /// Check a received notification; the error says what is wrong.
    pub fn verify(&self, channel: &str, payload: &str) -> Result<Signed, &'static str> {
        let missing = "it is not signed";
        let (text, rest) = payload.rsplit_once(SIGNATURE_KEY).ok_or(missing)?;
        let (tag, rest) = rest.split_at_checked(rest.find('"').ok_or(missing)?).ok_or(missing)?;
        // Only the closing brace, or the id that the database added, may follow the signature.
        if rest != "\"}" && !rest.strip_prefix(ATTACHMENT_KEY).is_some_and(is_id) {
            return Err("something stands behind its signature");
        }
        let tag = BASE64.decode(tag).ok().filter(|tag| tag.len() == TAG_BYTES).ok_or(missing)?;
        self.mac(channel, text).verify_truncated_left(&tag).map_err(|_| "it is signed with another key")?;
        let digest = text.rsplit_once(DIGEST_KEY).and_then(|(_, rest)| BASE64.decode(rest.strip_suffix('"')?).ok());
        Ok(Signed { digest })
    }
}

impl Signed {
    /// Whether `body` is the attachment that was signed.
    pub fn covers(&self, body: &[u8]) -> bool {
        self.digest.as_deref() == Some(&digest(body))
    }
}

fn is_id(rest: &str) -> bool {
    rest.strip_suffix("\"}").is_some_and(|id| id.bytes().all(|byte| byte.is_ascii_digit()))
}

fn digest(body: &[u8]) -> [u8; TAG_BYTES] {
    let mut out = [0; TAG_BYTES];
    out.copy_from_slice(&Sha256::digest(body)[..TAG_BYTES]);
    out
}

fn push(text: &mut String, key: &str, bytes: &[u8]) {
    text.push_str(key);
    BASE64.encode_string(bytes, text);
    text.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(channel: &str, text: &str, body: Option<&[u8]>) -> String {
        let mut text = text.to_owned();
        SigningKey::new(b"secret").unwrap().sign(channel, &mut text, body);
        text
    }

    fn verify(secret: &[u8], channel: &str, payload: &str) -> Option<Signed> {
        SigningKey::new(secret).unwrap().verify(channel, payload).ok()
    }

    #[test]
    fn what_was_signed_is_genuine() {
        let payload = signed("c", "{\"type\":2,\"n\":1", None) + "}";
        assert_eq!(payload.len(), "{\"type\":2,\"n\":1}".len() + SIGNATURE_KEY.len() + 22 + 1);
        assert!(!verify(b"secret", "c", &payload).unwrap().covers(b""), "there is no attachment");
        let header = signed("c", "{\"type\":3", Some(b"body")) + ",\"attachmentId\":\"42\"}";
        let found = verify(b"secret", "c", &header).unwrap();
        assert!(found.covers(b"body"));
        assert!(!found.covers(b"bodY"));
    }

    #[test]
    fn anything_else_is_not() {
        let payload = signed("c", "{\"type\":2,\"n\":1", None) + "}";
        assert!(verify(b"secret", "c", &payload).is_some());
        assert!(verify(b"other", "c", &payload).is_none());
        assert!(verify(b"secret", "d", &payload).is_none(), "another channel");
        assert!(verify(b"secret", "c", &payload.replace(":1", ":2")).is_none());
        for text in ["", "{}", "{\"type\":2,\"n\":1}", "{\"type\":2,\"h\":\"\"}", "{\"type\":2,\"h\":\"", "{\"h\":\"é"]
        {
            assert!(verify(b"secret", "c", text).is_none(), "{text}");
        }
        let header = signed("c", "{\"type\":3", Some(b"body"));
        for end in ["}", ",\"attachmentId\":\"4\",\"data\":7}", ",\"attachmentId\":\"x\"}", ",\"type\":6}"] {
            let is_plain = end == "}";
            assert_eq!(verify(b"secret", "c", &(header.clone() + end)).is_some(), is_plain, "{end}");
        }
    }
}
