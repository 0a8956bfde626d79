//! Invariants of every decoded message, whatever its source.

use _core::error::Result;
use _core::wire::codec::{self, json, msgpack};
use _core::wire::protocol::{Data, MAX_DEPTH, Message};

/// Read all of a message, as a server with clients for it does, and pass it on.
pub fn check(message: &Message) {
    let is_all_json = message.data().all(|data| matches!(data, Data::Json(_)));
    let is_all_packed = message.data().all(|data| matches!(data, Data::MessagePack(_)));
    for data in message.data() {
        match data {
            Data::Json(text) => {
                assert!(!json::is_too_deep(text), "deeper than {MAX_DEPTH}");
                // Python handles numbers beyond a float, and halves of surrogate pairs, but the text must be JSON.
                serde_json::from_str::<&serde_json::value::RawValue>(text).expect("user data is JSON");
            }
            Data::MessagePack(bytes) => msgpack::build(bytes, &mut Nothing).expect("user data is MessagePack"),
        }
    }
    let message = &Message { is_from_go: false, ..message.clone() };
    if is_all_json {
        let text = json::write(message, &message.uid) + "}";
        let read = codec::decode_notification(&text, "/elsewhere").expect("what was written is read");
        assert_eq!(read, codec::Received::Message(message.clone()));
    }
    if let Ok(bytes) = msgpack::write(message, &message.uid) {
        let read = codec::decode_attachment(&bytes, "somebody else", "/elsewhere").expect("what was written is read");
        if is_all_packed {
            assert_eq!(&read, message);
        }
    } else {
        assert!(!is_all_packed, "only JSON can hold what MessagePack cannot");
    }
}

/// Builds no values.
struct Nothing;

impl msgpack::Build for Nothing {
    type Value = ();
    fn null(&mut self) {}
    fn bool(&mut self, _: bool) {}
    fn int(&mut self, _: i64) {}
    fn uint(&mut self, value: u64) {
        assert!(i64::try_from(value).is_err());
    }
    fn float(&mut self, value: f64) {
        assert!(value.is_finite());
    }
    fn str(&mut self, _: &str) {}
    fn bytes(&mut self, _: &[u8]) {}
    fn array(&mut self, _: Vec<()>) -> Result<()> {
        Ok(())
    }
    fn map(&mut self, _: Vec<((), ())>) -> Result<()> {
        Ok(())
    }
}
