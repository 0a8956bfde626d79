//! Fuzz target: arbitrary text that PostgreSQL may deliver as a notification.

#![no_main]

mod common;

use _core::wire::codec::{self, Received};
use _core::wire::protocol::Message;
use _core::wire::signature::SigningKey;
use libfuzzer_sys::{Corpus, fuzz_target};

fuzz_target!(|data: &[u8]| -> Corpus {
    // PostgreSQL delivers valid text only.
    let Ok(payload) = std::str::from_utf8(data) else { return Corpus::Reject };
    let key = SigningKey::new(b"a key that no input was signed with").expect("any key will do");
    assert!(key.verify("socket.io#/", payload).is_err(), "forged");
    let decoded = codec::decode_stamped(payload, "/channel");
    if let Some(glance) = codec::glance(payload) {
        let (received, stamp) = decoded.as_ref().expect("a glance took it");
        let (Received::Message(Message { uid, nsp, .. }) | Received::Attachment { uid, nsp, .. }) = received;
        let found = (glance.uid, glance.nsp.unwrap_or("/channel"), glance.sequence, glance.process);
        assert_eq!(found, (&**uid, &**nsp, stamp.sequence, stamp.process.as_deref()));
        assert_eq!(glance.is_attachment, matches!(received, Received::Attachment { .. }));
        if let Received::Message(message) = received {
            let opts = message.opts_for_sockets().expect("it wants no answer");
            assert!(glance.rooms().eq(&opts.rooms));
        }
    }
    if let Ok((received, stamp)) = decoded {
        assert!(stamp.process.is_none_or(|process| process.len() <= 32), "remembered for as long as we run");
        if let Received::Message(message) = received {
            common::check(&message);
        }
    }
    Corpus::Keep
});
