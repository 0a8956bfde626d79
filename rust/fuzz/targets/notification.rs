//! Any text that PostgreSQL may deliver as a notification.

#![no_main]

mod common;

use _core::codec::{self, Received};
use _core::signature::SigningKey;
use libfuzzer_sys::{Corpus, fuzz_target};

fuzz_target!(|data: &[u8]| -> Corpus {
    // PostgreSQL delivers valid text only.
    let Ok(payload) = std::str::from_utf8(data) else { return Corpus::Reject };
    let key = SigningKey::new(b"a key that no input was signed with").expect("any key will do");
    assert!(key.verify("socket.io#/", payload).is_err(), "forged");
    if let Ok((received, stamp)) = codec::decode_stamped(payload, "/channel") {
        assert!(stamp.process.is_none_or(|process| process.len() <= 32), "remembered for as long as we run");
        if let Received::Message(message) = received {
            common::check(&message);
        }
    }
    Corpus::Keep
});
