//! Fuzz target: arbitrary bytes in the attachment table.

#![no_main]

mod common;

use _core::wire::codec;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(message) = codec::decode_attachment(data, "a1", "/channel") {
        common::check(&message);
    }
});
