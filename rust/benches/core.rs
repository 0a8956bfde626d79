//! Benchmarks of the core's functions that every message passes through, without Python: `cargo bench
//! --no-default-features`.

#![allow(missing_docs, reason = "criterion's macros make public functions")]
#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "a bench that fails is to stop")]

use std::hint::black_box;
use std::time::{Instant, SystemTime};

use _core::receive::echo::Echo;
use _core::receive::rooms::Rooms;
use _core::receive::sequence::{Sender, Sequences};
use _core::wire::codec::{self, Encoded, Limits, Mark, Seal, msgpack};
use _core::wire::protocol::{Data, Message, MessageType, Opts};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const CHANNEL: &str = "socket.io#/";
const UID: &str = "a1b2c3d4e5f60718";
const LIMITS: Limits = Limits { payload_threshold_bytes: 8000, max_payload_bytes: 1 << 24 };
/// Length of the text in an event: a chat message, a small document, and nearly the largest message that is not an
/// attachment.
const SIZES: [usize; 3] = [60, 1000, 7000];

fn broadcast(rooms: &[&str], text_bytes: usize) -> Message {
    let packet = Data::Json(format!(r#"["chat",{{"number":1,"user":"ada","text":"{}"}}]"#, "x".repeat(text_bytes)));
    let rooms = rooms.iter().map(|&room| room.to_owned()).collect();
    let opts = Opts { rooms, ..Opts::default() };
    Message { opts, packet: Some(packet), ..Message::new(MessageType::Broadcast, "/") }
}

/// The message as a publisher sends it.
fn sealed(message: &Message) -> Encoded {
    let seal = Seal { mark: Mark::Number { sequence: 1_000_000, process: None }, key: None, channel: CHANNEL };
    let encoded = codec::encode(message, UID, LIMITS).unwrap();
    codec::finish(encoded, seal, message, UID, LIMITS).unwrap()
}

fn payload(message: &Message) -> String {
    match sealed(message) {
        Encoded::Inline(text) => text,
        Encoded::Attachment { .. } => panic!("it fits"),
    }
}

fn codec_benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("codec");
    for size in SIZES {
        let message = broadcast(&["room1"], size);
        let text = payload(&message);
        assert!(matches!(codec::decode_notification(&text, "/"), Ok(codec::Received::Message(_))));
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.bench_function(BenchmarkId::new("encode and seal", size), |bencher| {
            bencher.iter(|| sealed(black_box(&message)));
        });
        group.bench_function(BenchmarkId::new("decode", size), |bencher| {
            bencher.iter(|| codec::decode_stamped(black_box(&text), "/").unwrap());
        });
        group.bench_function(BenchmarkId::new("glance", size), |bencher| {
            bencher.iter(|| assert!(codec::glance(black_box(&text)).is_some()));
        });
    }
    // A binary packet of 64 KiB as it comes out of the attachment table.
    let mut packet = Vec::new();
    rmp::encode::write_array_len(&mut packet, 2).unwrap();
    rmp::encode::write_str(&mut packet, "chat").unwrap();
    rmp::encode::write_bin(&mut packet, &vec![7; 64 * 1024]).unwrap();
    let message = Message { packet: Some(Data::MessagePack(packet)), ..broadcast(&["room1"], 0) };
    let body = msgpack::write(&message, UID).unwrap();
    group.throughput(Throughput::Bytes(body.len() as u64));
    group.bench_function("decode attachment of 64 KiB", |bencher| {
        bencher.iter(|| codec::decode_attachment(black_box(&body), UID, "/").unwrap());
    });
    group.finish();
}

fn filter_benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("rooms");
    for count in [10, 10_000] {
        let rooms = Rooms::default();
        rooms.begin();
        rooms.enter("/", None);
        for number in 0..count {
            rooms.enter("/", Some(&format!("room{number}")));
        }
        let is_empty = |room| rooms.are_empty(black_box("/"), std::iter::once(black_box(room)));
        assert!(is_empty("elsewhere") && !is_empty("room1"));
        group.bench_function(BenchmarkId::new("nobody here", count), |bencher| {
            bencher.iter(|| is_empty("elsewhere"));
        });
        group.bench_function(BenchmarkId::new("enter and leave", count), |bencher| {
            bencher.iter(|| {
                rooms.enter("/", black_box(Some("passing")));
                rooms.leave("/", black_box(Some("passing")));
            });
        });
    }
    group.finish();
}

fn order_benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("order");
    let now = SystemTime::now();
    let mut sequences = Sequences::default();
    let mut number = 0;
    group.bench_function("observe the next number", |bencher| {
        bencher.iter(|| {
            number += 1;
            sequences.observe(black_box(CHANNEL), black_box(Sender::Server(UID)), number, now)
        });
    });
    let echo = Echo::default();
    let began = Instant::now();
    let channels = [CHANNEL.to_owned()];
    echo.listening(channels.iter(), true, began);
    let mut number = 0;
    group.bench_function("expect an echo and hear it", |bencher| {
        bencher.iter(|| {
            number += 1;
            echo.committed(black_box(CHANNEL), number, began, began);
            echo.arrived(black_box(CHANNEL), number, began);
        });
    });
    group.finish();
}

criterion_group!(benches, codec_benches, filter_benches, order_benches);
criterion_main!(benches);
