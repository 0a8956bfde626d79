//! Fuzz target: every received message can be encoded as the publisher does it, with sequence number and signature, and
//! decoded again.
//!
//! The input begins with four bytes that choose format, sequence number and threshold, see `seeds` in scripts/fuzz.py.

#![no_main]

use _core::wire::codec::{self, Encoded, Limits, Mark, Received, Seal, Stamp};
use _core::wire::protocol::{Message, NOTIFY_LIMIT_BYTES, channel_name};
use _core::wire::signature::SigningKey;
use libfuzzer_sys::{Corpus, fuzz_target};

fuzz_target!(|data: &[u8]| -> Corpus {
    let Some((&[is_packed, digits, high, low], rest)) = data.split_first_chunk() else { return Corpus::Reject };
    let Some(message) = decode(is_packed % 2 == 1, rest) else { return Corpus::Reject };
    let Ok(channel) = channel_name("socket.io", &message.nsp) else { return Corpus::Reject };
    let limits = Limits {
        payload_threshold_bytes: usize::from(u16::from_be_bytes([high, low])).clamp(1, 8000),
        max_payload_bytes: 1 << 24,
    };
    let Ok(encoded) = codec::encode(&message, "a1", limits) else { return Corpus::Keep };
    let key = SigningKey::new(b"secret of all servers").expect("any key will do");
    let (sequence, process) = (10_u64.pow(u32::from(digits % 20)), (digits >= 128).then_some("a1B2c3D4"));
    let (mark, expected) = if digits == 127 {
        (Mark::Random("a1B2c3D4"), Stamp::default())
    } else {
        let stamp = Stamp { sequence: Some(sequence), process: process.map(str::to_owned) };
        (Mark::Number { sequence, process }, stamp)
    };
    let seal = Seal { mark, key: (is_packed < 128).then_some(&key), channel: &channel };
    let (sent, body) = match codec::finish(encoded, seal, &message, "a1", limits) {
        Ok(Encoded::Inline(text)) => {
            assert!(text.len() < limits.payload_threshold_bytes, "too long for this peer's threshold");
            (text, None)
        }
        Ok(Encoded::Attachment { header, body }) => (header + "9223372036854775807\"}", Some(body)),
        Err(_) => return Corpus::Keep, // JSON that MessagePack cannot represent
    };
    assert!(sent.len() <= NOTIFY_LIMIT_BYTES, "PostgreSQL refuses it");
    let (received, stamp) = codec::decode_stamped(&sent, "/elsewhere").expect("what was sent is read");
    assert_eq!(stamp, expected);
    if seal.key.is_some() {
        let signed = key.verify(&channel, &sent).expect("what was signed is genuine");
        assert!(body.as_ref().is_none_or(|body| signed.covers(body)));
        assert!(key.verify("socket.io#/elsewhere", &sent).is_err(), "of another channel");
    }
    let read = match (received, body) {
        (Received::Message(read), None) => {
            let sent = Message { uid: "a1".to_owned(), is_from_go: false, ..message.clone() };
            assert_eq!(read, sent);
            read
        }
        (Received::Attachment { uid, nsp, .. }, Some(body)) => {
            assert_eq!((uid.as_str(), &nsp), ("a1", &message.nsp));
            codec::decode_attachment(&body, &uid, &nsp).expect("what was stored is read")
        }
        _ => panic!("one was sent and the other read"),
    };
    assert_eq!((read.uid.as_str(), read.nsp), ("a1", message.nsp));
    assert_eq!(read.kind, message.kind);
    Corpus::Keep
});

fn decode(is_packed: bool, bytes: &[u8]) -> Option<Message> {
    if is_packed {
        return codec::decode_attachment(bytes, "", "/channel").ok();
    }
    match codec::decode_notification(std::str::from_utf8(bytes).ok()?, "/channel").ok()? {
        Received::Message(message) => Some(message),
        Received::Attachment { .. } => None,
    }
}
