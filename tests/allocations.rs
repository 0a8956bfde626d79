//! How often a message makes the core allocate: a cost that, unlike time, is the same on every machine.
//!
//! The counts are exact on purpose. One that falls is good news and is written down; one that rises needs a reason.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use _core::connect::connection::Connector;
use _core::connect::conninfo::Conninfo;
use _core::connect::session::Session;
use _core::handover::inbox::Inbox;
use _core::handover::item::Recipient;
use _core::receive::attachment::AttachmentTable;
use _core::receive::echo::Echo;
use _core::receive::intake::{Intake, IntakeSettings};
use _core::receive::listener::Sink as _;
use _core::receive::rooms::Rooms;
use _core::wire::codec::{self, Encoded, Limits, Mark, Seal};
use _core::wire::protocol::{Data, Message, MessageType, Opts};

const CHANNEL: &str = "socket.io#/";
const UID: &str = "a1b2c3d4e5f60718";
const PEER: &str = "0123456789abcdef";
const LIMITS: Limits = Limits { payload_threshold_bytes: 8000, max_payload_bytes: 1 << 24 };

fn broadcast(room: &str, text_bytes: usize) -> Message {
    let packet = Data::Json(format!(r#"["chat",{{"number":1,"text":"{}"}}]"#, "x".repeat(text_bytes)));
    let opts = Opts { rooms: vec![room.to_owned()], ..Opts::default() };
    Message { opts, packet: Some(packet), ..Message::new(MessageType::Broadcast, "/") }
}

fn payload(message: &Message, uid: &str, number: u64) -> String {
    let seal = Seal { mark: Mark::Number { sequence: number, process: None }, key: None, channel: CHANNEL };
    let encoded = codec::encode(message, uid, LIMITS).unwrap();
    match codec::finish(encoded, seal, message, uid, LIMITS).unwrap() {
        Encoded::Inline(text) => text,
        Encoded::Attachment { .. } => panic!("it fits"),
    }
}

/// An intake of a server with one client, in `room1`. It never connects: nothing is fetched here.
fn intake() -> (Arc<Intake>, Arc<Inbox>) {
    let conninfo = Conninfo::parse("host=localhost user=app", &|_| None).unwrap();
    let session = Session::new(Arc::new(Connector::new(conninfo, None)), Duration::from_secs(1));
    let rooms = Rooms::default();
    rooms.begin();
    rooms.enter("/", None);
    rooms.enter("/", Some("room1"));
    let inbox = Inbox::new(1 << 24).unwrap();
    let settings = IntakeSettings {
        uid: UID.to_owned(),
        prefix: "socket.io".to_owned(),
        buffer_bytes: 1 << 24,
        max_payload_bytes: 1 << 24,
        seen_interval: Duration::from_secs(3600),
        signing_key: None,
    };
    let table = Arc::new(AttachmentTable::new("socket_io_attachments", false).unwrap());
    let recipient = Recipient { inbox: Arc::clone(&inbox) as _, token: 1 };
    (Intake::new(settings, session, table, Arc::new(Echo::default()), Arc::new(rooms), recipient), inbox)
}

/// Allocations of one message, after others have made room for its kind.
fn of_one_message(room: &str) -> u64 {
    let (intake, inbox) = intake();
    let payloads: Vec<String> = (1..=65).map(|number| payload(&broadcast(room, 100), PEER, number)).collect();
    let now = SystemTime::now();
    let (last, before) = payloads.split_last().unwrap();
    for payload in before {
        intake.take(CHANNEL, payload, 1, now);
    }
    drop(inbox.drain(1000));
    let counted = allocation_counter::measure(|| intake.take(CHANNEL, last, 1, now));
    let stats = intake.stats();
    assert_eq!(stats.received + stats.irrelevant, 65, "{stats:?}");
    counted.count_total
}

#[test]
fn a_message_for_nobody_here_allocates_nothing() {
    assert_eq!(of_one_message("elsewhere"), 0);
}

#[test]
fn a_message_for_somebody_here_allocates_what_python_gets() {
    assert_eq!(of_one_message("room1"), 12);
}

#[test]
fn a_message_is_encoded_and_sealed_with_few_allocations() {
    let message = broadcast("room1", 100);
    let counted = allocation_counter::measure(|| drop(payload(&message, UID, 1)));
    assert_eq!(counted.count_total, 1);
}
