//! The codec against bytes written by hand or by another implementation, and against anything at all.

use proptest::prelude::*;
use serde_json::{Value, json as value};

use super::msgpack::{Build, build};
use super::*;
use crate::wire::protocol::MessageType::{
    AdapterClose, Broadcast, BroadcastAck, BroadcastClientCount, DisconnectSockets, FetchSockets, FetchSocketsResponse,
    Heartbeat, InitialHeartbeat, ServerSideEmit, ServerSideEmitResponse, SocketsJoin, SocketsLeave,
};
use crate::wire::protocol::{Flags, MAX_DEPTH, Opts};

const LIMITS: Limits = Limits { payload_threshold_bytes: 8000, max_payload_bytes: 1 << 24 };

// ---------------------------------------------------------------------------------------------------- helpers

fn json(text: &str) -> Data {
    Data::Json(text.to_owned())
}

#[allow(clippy::unnecessary_wraps, reason = "reads as what it stands for")]
fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

fn opts() -> Opts {
    Opts {
        rooms: vec!["r1".into(), "r2".into()],
        except: vec!["r3".into()],
        flags: Flags { volatile: true, compress: Some(false) },
    }
}

/// A message as read on the channel of the namespace `/channel`, when it has no namespace and no sender.
fn of(kind: MessageType) -> Message {
    Message::new(kind, "/channel")
}

fn from(uid: &str, nsp: &str, message: Message) -> Message {
    Message { uid: uid.to_owned(), nsp: nsp.to_owned(), ..message }
}

fn event(text: &str) -> Message {
    Message { packet: Some(json(text)), ..of(Broadcast) }
}

/// JSON text as MessagePack, by code that the codec does not use.
fn pack(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let parsed: Value = serde_json::from_str(text).unwrap();
    serde::Serialize::serialize(&parsed, &mut rmp_serde::Serializer::new(&mut out)).unwrap();
    out
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: String = text.split_whitespace().collect();
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

/// Builds `serde_json` values; binary becomes `{"$bytes": [..]}`.
struct Values;

impl Build for Values {
    type Value = Value;
    fn null(&mut self) -> Value {
        Value::Null
    }
    fn bool(&mut self, value: bool) -> Value {
        value.into()
    }
    fn int(&mut self, value: i64) -> Value {
        value.into()
    }
    fn uint(&mut self, value: u64) -> Value {
        value.into()
    }
    fn float(&mut self, value: f64) -> Value {
        assert!(value.is_finite());
        value.into()
    }
    fn str(&mut self, value: &str) -> Value {
        value.into()
    }
    fn bytes(&mut self, value: &[u8]) -> Value {
        value!({ "$bytes": value })
    }
    fn array(&mut self, items: Vec<Value>) -> Result<Value> {
        Ok(items.into())
    }
    fn map(&mut self, entries: Vec<(Value, Value)>) -> Result<Value> {
        let key = |key: Value| key.as_str().map_or_else(|| key.to_string(), str::to_owned);
        Ok(entries.into_iter().map(|(name, value)| (key(name), value)).collect::<serde_json::Map<_, _>>().into())
    }
}

/// The value of user data, whatever its format.
fn value_of(data: &Data) -> Value {
    match data {
        Data::Json(text) => serde_json::from_str(text).unwrap(),
        Data::MessagePack(bytes) => build(bytes, &mut Values).unwrap(),
    }
}

/// A message with its user data decoded, so that both formats can be compared.
fn plain(message: &Message) -> (Message, [Option<Value>; 3]) {
    let mut rest = message.clone();
    let data = [&mut rest.packet, &mut rest.sockets, &mut rest.args];
    let values = data.map(|data| data.take().map(|data| value_of(&data)));
    (rest, values)
}

/// All user data of a message, decoded.
fn values_of(message: &Message) -> Vec<Value> {
    message.data().map(value_of).collect()
}

fn read_json(text: &str) -> Result<Message> {
    match decode_notification(text, "/channel")? {
        Received::Message(message) => Ok(message),
        other @ Received::Attachment { .. } => panic!("{other:?} for {text}"),
    }
}

fn reason(result: Result<impl std::fmt::Debug>) -> String {
    match result {
        Err(Error::Decode { reason, .. }) => reason,
        other => panic!("expected a decode error, got {other:?}"),
    }
}

// ---------------------------------------------------------------------------------------------------- writing

/// Messages from `a1` in `/x`, each with its JSON, and the same message as the Python package `msgpack` packs that JSON.
#[allow(clippy::too_many_lines, reason = "a table")]
fn canonical() -> Vec<(Message, &'static str, &'static str)> {
    let table = vec![
        (
            of(InitialHeartbeat),
            r#"{"type":1,"uid":"a1","nsp":"/x","source":"_sio_adapter"}"#,
            "84a47479706501a3756964a26131a36e7370a22f78a6736f75726365ac5f73696f5f61646170746572",
        ),
        (
            of(Heartbeat),
            r#"{"type":2,"uid":"a1","nsp":"/x","source":"_sio_adapter"}"#,
            "84a47479706502a3756964a26131a36e7370a22f78a6736f75726365ac5f73696f5f61646170746572",
        ),
        (
            Message { opts: opts(), packet: Some(json(r#"["hé",1,null]"#)), ..of(Broadcast) },
            r#"{"type":3,"uid":"a1","nsp":"/x","source":"_sio_adapter","data":{"opts":{"rooms":["r1","r2"],"except":["r3"],"flags":{"volatile":true,"compress":false}},"packet":{"type":2,"nsp":"/x","data":["hé",1,null]}}}"#,
            "85a47479706503a3756964a26131a36e7370a22f78a6736f75726365ac5f73696f5f61646170746572a46461746182a46f70 \
             747383a5726f6f6d7392a27231a27232a665786365707491a27233a5666c61677382a8766f6c6174696c65c3a8636f6d7072 \
             657373c2a67061636b657483a47479706502a36e7370a22f78a46461746193a368c3a901c0",
        ),
        (
            Message { packet: Some(json(r#"["e"]"#)), request_id: some("q1"), ..of(Broadcast) },
            r#"{"type":3,"uid":"a1","nsp":"/x","source":"_sio_adapter","data":{"requestId":"q1","opts":{"rooms":[],"except":[],"flags":{}},"packet":{"type":2,"nsp":"/x","data":["e"]}}}"#,
            "85a47479706503a3756964a26131a36e7370a22f78a6736f75726365ac5f73696f5f61646170746572a46461746183a97265 \
             71756573744964a27131a46f70747383a5726f6f6d7390a665786365707490a5666c61677380a67061636b657483a4747970 \
             6502a36e7370a22f78a46461746191a165",
        ),
        (
            Message { opts: opts(), rooms: vec!["a".into()], ..of(SocketsJoin) },
            r#"{"type":4,"uid":"a1","nsp":"/x","source":"_sio_adapter","data":{"opts":{"rooms":["r1","r2"],"except":["r3"],"flags":{"volatile":true,"compress":false}},"rooms":["a"]}}"#,
            "85a47479706504a3756964a26131a36e7370a22f78a6736f75726365ac5f73696f5f61646170746572a46461746182a46f70 \
             747383a5726f6f6d7392a27231a27232a665786365707491a27233a5666c61677382a8766f6c6174696c65c3a8636f6d7072 \
             657373c2a5726f6f6d7391a161",
        ),
        (
            Message { rooms: vec!["a".into(), "b".into()], ..of(SocketsLeave) },
            r#"{"type":5,"uid":"a1","nsp":"/x","source":"_sio_adapter","data":{"opts":{"rooms":[],"except":[],"flags":{}},"rooms":["a","b"]}}"#,
            "85a47479706505a3756964a26131a36e7370a22f78a6736f75726365ac5f73696f5f61646170746572a46461746182a46f70 \
             747383a5726f6f6d7390a665786365707490a5666c61677380a5726f6f6d7392a161a162",
        ),
        (
            Message { close: true, ..of(DisconnectSockets) },
            r#"{"type":6,"uid":"a1","nsp":"/x","source":"_sio_adapter","data":{"opts":{"rooms":[],"except":[],"flags":{}},"close":true}}"#,
            "85a47479706506a3756964a26131a36e7370a22f78a6736f75726365ac5f73696f5f61646170746572a46461746182a46f70 \
             747383a5726f6f6d7390a665786365707490a5666c61677380a5636c6f7365c3",
        ),
        (
            Message { request_id: Some("q1".into()), ..of(FetchSockets) },
            r#"{"type":7,"uid":"a1","nsp":"/x","source":"_sio_adapter","data":{"requestId":"q1","opts":{"rooms":[],"except":[],"flags":{}}}}"#,
            "85a47479706507a3756964a26131a36e7370a22f78a6736f75726365ac5f73696f5f61646170746572a46461746182a97265 \
             71756573744964a27131a46f70747383a5726f6f6d7390a665786365707490a5666c61677380",
        ),
        (
            Message {
                request_id: Some("q1".into()),
                sockets: Some(json(r#"[{"id":"s"}]"#)),
                ..of(FetchSocketsResponse)
            },
            r#"{"type":8,"uid":"a1","nsp":"/x","source":"_sio_adapter","data":{"requestId":"q1","sockets":[{"id":"s"}]}}"#,
            "85a47479706508a3756964a26131a36e7370a22f78a6736f75726365ac5f73696f5f61646170746572a46461746182a97265 \
             71756573744964a27131a7736f636b6574739181a26964a173",
        ),
        (
            Message { packet: Some(json(r#"["e",1.5]"#)), ..of(ServerSideEmit) },
            r#"{"type":9,"uid":"a1","nsp":"/x","source":"_sio_adapter","data":{"packet":["e",1.5]}}"#,
            "85a47479706509a3756964a26131a36e7370a22f78a6736f75726365ac5f73696f5f61646170746572a46461746181a67061 \
             636b657492a165cb3ff8000000000000",
        ),
        (
            Message { packet: Some(json(r#"["e"]"#)), request_id: some("q1"), ..of(ServerSideEmit) },
            r#"{"type":9,"uid":"a1","nsp":"/x","source":"_sio_adapter","data":{"requestId":"q1","packet":["e"]}}"#,
            "85a47479706509a3756964a26131a36e7370a22f78a6736f75726365ac5f73696f5f61646170746572a46461746182a97265 \
             71756573744964a27131a67061636b657491a165",
        ),
        (
            Message { request_id: Some("q1".into()), packet: Some(json("null")), ..of(ServerSideEmitResponse) },
            r#"{"type":10,"uid":"a1","nsp":"/x","source":"_sio_adapter","data":{"requestId":"q1","packet":null}}"#,
            "85a4747970650aa3756964a26131a36e7370a22f78a6736f75726365ac5f73696f5f61646170746572a46461746182a97265 \
             71756573744964a27131a67061636b6574c0",
        ),
        (
            Message { request_id: Some("q1".into()), ..of(ServerSideEmitResponse) },
            r#"{"type":10,"uid":"a1","nsp":"/x","source":"_sio_adapter","data":{"requestId":"q1"}}"#,
            "85a4747970650aa3756964a26131a36e7370a22f78a6736f75726365ac5f73696f5f61646170746572a46461746181a97265 \
             71756573744964a27131",
        ),
        (
            Message { request_id: Some("q1".into()), ..of(BroadcastClientCount) },
            r#"{"type":11,"uid":"a1","nsp":"/x","source":"_sio_adapter","data":{"requestId":"q1","clientCount":0}}"#,
            "85a4747970650ba3756964a26131a36e7370a22f78a6736f75726365ac5f73696f5f61646170746572a46461746182a97265 \
             71756573744964a27131ab636c69656e74436f756e7400",
        ),
        (
            Message { request_id: Some("q1".into()), packet: Some(json("7")), ..of(BroadcastAck) },
            r#"{"type":12,"uid":"a1","nsp":"/x","source":"_sio_adapter","data":{"requestId":"q1","packet":7}}"#,
            "85a4747970650ca3756964a26131a36e7370a22f78a6736f75726365ac5f73696f5f61646170746572a46461746182a97265 \
             71756573744964a27131a67061636b657407",
        ),
        (
            Message {
                request_id: Some("q1".into()),
                packet: Some(json("7")),
                args: Some(json("[7,8]")),
                ..of(BroadcastAck)
            },
            r#"{"type":12,"uid":"a1","nsp":"/x","source":"_sio_adapter","data":{"requestId":"q1","packet":7,"args":[7,8]}}"#,
            "85a4747970650ca3756964a26131a36e7370a22f78a6736f75726365ac5f73696f5f61646170746572a46461746183a97265 \
             71756573744964a27131a67061636b657407a461726773920708",
        ),
        (
            Message { request_id: Some("q1".into()), ..of(BroadcastAck) },
            r#"{"type":12,"uid":"a1","nsp":"/x","source":"_sio_adapter","data":{"requestId":"q1"}}"#,
            "85a4747970650ca3756964a26131a36e7370a22f78a6736f75726365ac5f73696f5f61646170746572a46461746181a97265 \
             71756573744964a27131",
        ),
        (
            of(AdapterClose),
            r#"{"type":13,"uid":"a1","nsp":"/x","source":"_sio_adapter"}"#,
            "84a4747970650da3756964a26131a36e7370a22f78a6736f75726365ac5f73696f5f61646170746572",
        ),
    ];
    table.into_iter().map(|(message, text, hex)| (from("a1", "/x", message), text, hex)).collect()
}

#[test]
fn every_type_is_written_exactly_so() {
    let mut types = std::collections::BTreeSet::new();
    for (message, text, hex) in canonical() {
        types.insert(message.kind.number());
        let message = from("not mine", "/x", message);
        assert_eq!(json::write(&message, "a1") + "}", text);
        assert_eq!(msgpack::write(&message, "a1").unwrap(), unhex(hex), "{text}");
    }
    assert_eq!(types.into_iter().collect::<Vec<_>>(), (1..=13).collect::<Vec<u8>>());
}

#[test]
fn every_type_is_read_as_it_was_written() {
    for (message, text, hex) in canonical() {
        assert_eq!(read_json(text).unwrap(), message);
        assert_eq!(plain(&decode_attachment(&unhex(hex), "", "").unwrap()), plain(&message), "{text}");
    }
}

fn seal(sequence: u64) -> Seal<'static> {
    Seal { mark: Mark::Number { sequence, process: None }, key: None, channel: "socket.io#/" }
}

fn of_emitter(sequence: u64, process: &str) -> Seal<'_> {
    Seal { mark: Mark::Number { sequence, process: Some(process) }, ..seal(sequence) }
}

fn keyed(name: &str) -> Seal<'_> {
    Seal { mark: Mark::Random(name), ..seal(0) }
}

#[test]
fn a_stamp_is_read_as_it_was_written_and_never_in_the_way() {
    let message = from("", "/", event("[\"e\"]"));
    let seal = of_emitter(57, "a1B2c3D4");
    let Encoded::Inline(text) =
        finish(encode(&message, "emitter", LIMITS).unwrap(), seal, &message, "emitter", LIMITS).unwrap()
    else {
        panic!()
    };
    assert!(text.ends_with(r#","p":"a1B2c3D4","n":57}"#), "{text}");
    let stamp = Stamp { sequence: Some(57), process: Some("a1B2c3D4".into()) };
    assert_eq!(decode_stamped(&text, "/").unwrap().1, stamp);
    for other in [r#""n":"x","p":7"#, r#""n":-1,"p":null"#, r#""n":1.5"#, r#""n":[1],"p":{"n":1}"#, r#""p":"""#] {
        let (_, stamp) = decode_stamped(&format!("{{\"type\":2,{other}}}"), "/").unwrap();
        assert_eq!(stamp.sequence, None, "{other}");
    }
}

#[test]
fn a_random_key_is_no_stamp() {
    let key = SigningKey::new(b"secret").unwrap();
    let message = from("", "/", event("[\"e\"]"));
    for seal in [keyed("a1B2c3D4"), Seal { key: Some(&key), ..keyed("a1B2c3D4") }] {
        let encoded = encode(&message, "emitter", LIMITS).unwrap();
        let Encoded::Inline(text) = finish(encoded, seal, &message, "emitter", LIMITS).unwrap() else { panic!() };
        assert!(text.contains(r#""data":["e"]}},"k":"a1B2c3D4""#), "{text}");
        assert_eq!(seal.key.is_some(), key.verify(seal.channel, &text).is_ok(), "{text}");
        let (received, stamp) = decode_stamped(&text, "/").unwrap();
        assert_eq!(stamp, Stamp::default());
        assert_eq!(received, Received::Message(from("emitter", "/", event("[\"e\"]"))));
    }
}

#[test]
fn in_ascii_every_character_is_there() {
    let key = SigningKey::new(b"secret").unwrap();
    let seal = Seal { key: Some(&key), ..of_emitter(7, "q1") };
    let written = |message: &Message| {
        let sent = finish(encode(message, "a1", LIMITS).unwrap(), seal, message, "a1", LIMITS).unwrap();
        in_ascii(&sent, seal, "a1", LIMITS).unwrap()
    };
    assert_eq!(written(&from("", "/", event("[\"plain\"]"))), None);
    let Some(Encoded::Inline(text)) = written(&from("", "/é", event("[\"日本\",\"😀\\u00e9\"]"))) else {
        panic!()
    };
    assert!(text.contains(r#""nsp":"/\u00e9","data":["\u65e5\u672c","\ud83d\ude00\u00e9"]"#), "{text}");
    assert!(key.verify(seal.channel, &text).is_ok(), "what was signed is what arrives");
    assert_eq!(decode_stamped(&text, "/").unwrap().1, Stamp { sequence: Some(7), process: some("q1") });
    // Too long in ASCII, by only one byte.
    let grows = |count: usize| written(&from("", "/", event(&format!("[\"{}\"]", "é".repeat(count)))));
    let count = (1..4000).find(|&count| !matches!(grows(count), Some(Encoded::Inline(_)))).unwrap();
    let Some(Encoded::Inline(text)) = grows(count - 1) else { panic!() };
    assert!(text.len() <= NOTIFY_LIMIT_BYTES && text.len() + 6 > NOTIFY_LIMIT_BYTES, "{}", text.len());
    let Some(Encoded::Attachment { header, body }) = grows(count) else { panic!() };
    assert!(key.verify(seal.channel, &(header + "42\"}")).unwrap().covers(&body));
    // A header; the body is unchanged.
    let opts = |room: &str| Opts { rooms: vec![room.to_owned()], ..Opts::default() };
    let binary = |room: &str| {
        let packet = Data::MessagePack(unhex("91 c4 01 00"));
        written(&from("", "/", Message { opts: opts(room), packet: Some(packet), ..of(Broadcast) }))
    };
    assert_eq!(binary("a"), None);
    let Some(Encoded::Attachment { header, body }) = binary("é") else { panic!() };
    assert!(header.contains(r#""rooms":["\u00e9"]"#), "{header}");
    assert!(key.verify(seal.channel, &(header + "42\"}")).unwrap().covers(&body));
    // With escapes, the room names no longer fit into the header.
    let Some(Encoded::Attachment { header, .. }) = binary(&"😀".repeat(300)).or_else(|| binary("é")) else {
        panic!()
    };
    assert!(header.len() < HINT_LIMIT_BYTES, "{header}");
}

#[test]
fn the_header_of_an_attachment_routes_it() {
    let message = from("", "/x\"", event("[\"e\"]"));
    let encoded = Encoded::Attachment { header: json::write_header(&message, "a1"), body: vec![] };
    let Encoded::Attachment { header, .. } = finish(encoded, seal(7), &message, "a1", LIMITS).unwrap() else {
        panic!()
    };
    let payload = header + "42\"}"; // PostgreSQL appends the rest, which contains the id
    assert_eq!(
        payload,
        r#"{"type":3,"uid":"a1","nsp":"/x\"","source":"_sio_adapter","rooms":[],"n":7,"attachmentId":"42"}"#
    );
    let received = Received::Attachment { uid: "a1".into(), nsp: "/x\"".into(), id: 42 };
    assert_eq!(decode_notification(&payload, "/channel").unwrap(), received);
}

/// A broadcast whose JSON, with `,"n":` and `digits` digits, has exactly this many bytes.
fn broadcast_of(size: usize, digits: usize, filler: &str) -> Message {
    let empty = json::write(&from("", "/", event("[\"e\",\"\"]")), "a1").len() + ",\"n\":}".len() + digits;
    let mut text = filler.repeat((size - empty) / filler.len());
    text.push_str(&"x".repeat(size - empty - text.len()));
    from("", "/", event(&format!("[\"e\",\"{text}\"]")))
}

fn sent(message: &Message, sequence: u64, limits: Limits) -> Encoded {
    finish(encode(message, "a1", limits).unwrap(), seal(sequence), message, "a1", limits).unwrap()
}

#[test]
fn up_to_7999_bytes_travel_inside_the_notification() {
    for filler in ["x", "é", "😀"] {
        for (sequence, digits) in [(9, 1), (10, 2), (12_345, 5), (u64::MAX, 20)] {
            for (size, is_inline) in [(7998, true), (7999, true), (8000, false), (8001, false)] {
                let message = broadcast_of(size, digits, filler);
                let case = format!("{size} bytes of {filler}, number {sequence}");
                match sent(&message, sequence, LIMITS) {
                    Encoded::Inline(text) => {
                        assert!(is_inline, "{case}");
                        assert_eq!(text.len(), size, "{case}");
                        assert!(text.ends_with(&format!("}},\"n\":{sequence}}}")), "{case}");
                        assert_eq!(values_of(&read_json(&text).unwrap()), values_of(&message));
                    }
                    Encoded::Attachment { header, body } => {
                        assert!(!is_inline, "{case}");
                        assert!(header.ends_with(&format!(",\"n\":{sequence},\"attachmentId\":\"")), "{case}");
                        assert_eq!(values_of(&decode_attachment(&body, "", "").unwrap()), values_of(&message));
                    }
                }
            }
        }
    }
}

#[test]
fn a_longer_sequence_number_can_make_the_difference() {
    let message = broadcast_of(7999, 1, "x");
    assert!(matches!(encode(&message, "a1", LIMITS).unwrap(), Encoded::Inline(_)));
    assert!(matches!(sent(&message, 9, LIMITS), Encoded::Inline(_)));
    assert!(matches!(sent(&message, 10, LIMITS), Encoded::Attachment { .. }));
}

#[test]
fn the_threshold_can_be_lowered_but_not_raised() {
    for (threshold, largest) in [(1000, 999), (7999, 7998), (8000, 7999), (8001, 7999), (100_000, 7999)] {
        let limits = Limits { payload_threshold_bytes: threshold, ..LIMITS };
        assert!(matches!(sent(&broadcast_of(largest, 1, "x"), 1, limits), Encoded::Inline(_)), "{threshold}");
        let larger = broadcast_of(largest + 1, 1, "x");
        assert!(matches!(sent(&larger, 1, limits), Encoded::Attachment { .. }), "{threshold}");
    }
}

#[test]
fn binary_is_always_an_attachment() {
    let packet = Data::MessagePack(unhex("92 a165 c4 02 00ff"));
    let message = from("", "/", Message { packet: Some(packet), ..of(ServerSideEmit) });
    let Encoded::Attachment { body, .. } = sent(&message, 1, LIMITS) else { panic!("inline") };
    let read = decode_attachment(&body, "", "").unwrap();
    assert_eq!(read, from("a1", "/", message));
}

#[test]
fn the_largest_message_is_limited_in_either_form() {
    let text = r#"["e","0123456789"]"#;
    let message = from("", "/", event(text));
    let size = json::write(&message, "a1").len();
    let limits = |max_payload_bytes| Limits { max_payload_bytes, ..LIMITS };
    assert!(encode(&message, "a1", limits(size)).is_ok());
    assert!(matches!(
        encode(&message, "a1", limits(size - 1)),
        Err(Error::TooLarge { size_bytes, limit_bytes, .. }) if size_bytes == size && limit_bytes == size - 1
    ));
    let binary = from("", "/", Message { packet: Some(Data::MessagePack(pack(text))), ..of(ServerSideEmit) });
    assert!(matches!(encode(&binary, "a1", limits(20)), Err(Error::TooLarge { limit_bytes: 20, .. })));
}

#[test]
fn json_becomes_messagepack_value_by_value() {
    let cases = [
        (r"9007199254740993", value!(9_007_199_254_740_993_u64)),
        ("18446744073709551615", value!(u64::MAX)),
        ("-9223372036854775808", value!(i64::MIN)),
        // JSON has no limit, but MessagePack does: the nearest float, as JavaScript reads it
        ("1180591620717411303424", value!(1_180_591_620_717_411_303_424.0)),
        ("1e300", value!(1e300)),
        ("1801439850948199.0", Value::from("1801439850948199.0".parse::<f64>().unwrap())), // to the last digit
        ("-0.0", value!(-0.0)),
        (r#""\u0000é\ud83d\ude00""#, value!("\0é😀")),
        // half a surrogate pair has no UTF-8 form; after an escaped backslash there is no escape
        (r#""a\ud800b""#, value!("a\u{fffd}b")),
        (r#""\ud83d\ude00\udc00""#, value!("😀\u{fffd}")),
        (r#""\\ud800""#, value!("\\ud800")),
        (r#"{"\udfff":["\ud800\ud800"]}"#, value!({"\u{fffd}": ["\u{fffd}\u{fffd}"]})),
    ];
    let limits = Limits { payload_threshold_bytes: 1, ..LIMITS };
    for (text, expected) in cases {
        let message = from("", "/", event(&format!("[\"e\",{text}]")));
        let Encoded::Attachment { body, .. } = encode(&message, "a1", limits).unwrap() else { panic!("{text}") };
        assert_eq!(values_of(&decode_attachment(&body, "", "").unwrap()), [value!(["e", expected])], "{text}");
    }
}

// ---------------------------------------------------------------------------------------------------- reading

/// Messages that peers send or might send: each line means the same message in JSON and packed as MessagePack.
#[allow(clippy::too_many_lines, reason = "a table")]
fn lenient() -> Vec<(&'static str, Message)> {
    let none = Opts::default;
    let in_r1 = || Opts { rooms: vec!["1".into()], ..Opts::default() };
    vec![
        // no nsp: the channel's; of emitters also the packet's
        (r#"{"type":2,"uid":"a"}"#, from("a", "/channel", of(Heartbeat))),
        (r#"{"type":2,"uid":"a","nsp":null,"data":null}"#, from("a", "/channel", of(Heartbeat))),
        (
            r#"{"type":3,"data":{"packet":{"type":2,"data":["e"],"nsp":"/inner"},"opts":{"rooms":[]}},"uid":"emitter"}"#,
            from("emitter", "/inner", event(r#"["e"]"#)),
        ),
        (
            r#"{"type":3,"data":{"packet":{"type":2,"data":["e"]}},"uid":"emitter"}"#,
            from("emitter", "/channel", event(r#"["e"]"#)),
        ),
        (
            r#"{"type":3,"nsp":"/outer","data":{"packet":{"data":["e"],"nsp":"/inner"}}}"#,
            from("", "/outer", event(r#"["e"]"#)),
        ),
        // no uid, or an empty one
        (r#"{"type":13}"#, from("", "/channel", of(AdapterClose))),
        (r#"{"type":13,"uid":null}"#, from("", "/channel", of(AdapterClose))),
        // null for an absent value
        (
            r#"{"type":3,"uid":"a","nsp":"/","data":{"requestId":null,"packet":{"type":2,"data":["e",null]},"opts":null}}"#,
            from("a", "/", event(r#"["e",null]"#)),
        ),
        (
            r#"{"type":3,"uid":"a","nsp":"/","data":{"packet":{"data":["e"],"nsp":null},"opts":{"rooms":null,"except":null,"flags":null}}}"#,
            from("a", "/", event(r#"["e"]"#)),
        ),
        // flags: Go sends all of them, false and null mean not set
        (
            r#"{"type":3,"uid":"a","nsp":"/","data":{"packet":{"data":["e"]},"opts":{"flags":{"volatile":false,"compress":null,"local":false,"timeout":1000000000,"expectSingleResponse":false}}}}"#,
            from("a", "/", event(r#"["e"]"#)),
        ),
        (
            r#"{"type":3,"uid":"a","nsp":"/","data":{"packet":{"data":["e"]},"opts":{"flags":{"volatile":null,"compress":false}}}}"#,
            from(
                "a",
                "/",
                Message {
                    opts: Opts { flags: Flags { volatile: false, compress: Some(false) }, ..none() },
                    packet: Some(json(r#"["e"]"#)),
                    ..of(Broadcast)
                },
            ),
        ),
        // numbers as names
        (
            r#"{"type":4,"uid":"a","nsp":"/","data":{"opts":{"rooms":[1],"except":[]},"rooms":[-2,"x"]}}"#,
            from("a", "/", Message { opts: in_r1(), rooms: vec!["-2".into(), "x".into()], ..of(SocketsJoin) }),
        ),
        (
            r#"{"type":7,"uid":"a","nsp":"/","data":{"requestId":5}}"#,
            from("a", "/", Message { request_id: Some("5".into()), ..of(FetchSockets) }),
        ),
        // Go omits zero values
        (r#"{"type":5,"uid":"a","nsp":"/","data":{}}"#, from("a", "/", of(SocketsLeave))),
        (r#"{"type":5}"#, from("", "/channel", of(SocketsLeave))),
        (
            r#"{"type":6,"uid":"a","nsp":"/","data":{"opts":{"rooms":[1]}}}"#,
            from("a", "/", Message { opts: in_r1(), ..of(DisconnectSockets) }),
        ),
        (
            r#"{"type":6,"uid":"a","nsp":"/","data":{"opts":{"rooms":[1]},"close":null}}"#,
            from("a", "/", Message { opts: in_r1(), ..of(DisconnectSockets) }),
        ),
        (
            r#"{"type":8,"uid":"a","nsp":"/","data":{"requestId":"q"}}"#,
            from(
                "a",
                "/",
                Message { request_id: Some("q".into()), sockets: Some(json("[]")), ..of(FetchSocketsResponse) },
            ),
        ),
        (
            r#"{"type":8,"uid":"a","nsp":"/","data":{"requestId":"q","sockets":null}}"#,
            from(
                "a",
                "/",
                Message { request_id: Some("q".into()), sockets: Some(json("[]")), ..of(FetchSocketsResponse) },
            ),
        ),
        (
            r#"{"type":11,"uid":"a","nsp":"/","data":{"requestId":"q"}}"#,
            from("a", "/", Message { request_id: Some("q".into()), ..of(BroadcastClientCount) }),
        ),
        // an answer of null is an answer, one without a packet has no value
        (
            r#"{"type":12,"uid":"a","nsp":"/","data":{"requestId":"q","packet":null}}"#,
            from("a", "/", Message { request_id: Some("q".into()), packet: Some(json("null")), ..of(BroadcastAck) }),
        ),
        (
            r#"{"type":10,"uid":"a","nsp":"/","data":{"requestId":"q"}}"#,
            from("a", "/", Message { request_id: Some("q".into()), ..of(ServerSideEmitResponse) }),
        ),
        // unknown keys, of whatever shape
        (
            r#"{"n":9,"x":[[{"y":[]}]],"source":7,"nodeId":"w","type":9,"uid":"a","nsp":"/","data":{"packet":["e"],"z":{"z":null}}}"#,
            from("a", "/", Message { packet: Some(json(r#"["e"]"#)), ..of(ServerSideEmit) }),
        ),
    ]
}

#[test]
fn peers_are_read_leniently() {
    for (text, expected) in lenient() {
        assert_eq!(plain(&read_json(text).unwrap()), plain(&expected), "{text}");
        let packed = decode_attachment(&pack(text), "", "/channel").unwrap();
        assert_eq!(plain(&packed), plain(&expected), "as MessagePack: {text}");
    }
}

/// Whether a glance finds the addressees of a message. If it does, the decoder must read the same.
fn glances(text: &str) -> bool {
    let Some(glance) = glance(text) else { return false };
    let (received, stamp) = decode_stamped(text, "/channel").expect("a glance took it");
    let (Received::Message(Message { uid, nsp, .. }) | Received::Attachment { uid, nsp, .. }) = &received;
    assert_eq!((uid.as_str(), nsp.as_str()), (glance.uid, glance.nsp.unwrap_or("/channel")), "{text}");
    assert_eq!((stamp.sequence, stamp.process.as_deref()), (glance.sequence, glance.process), "{text}");
    assert_eq!(matches!(received, Received::Attachment { .. }), glance.is_attachment, "{text}");
    if let Received::Message(message) = received {
        let opts = message.opts_for_sockets().expect("a closer look is needed");
        assert_eq!(opts.rooms, glance.rooms().collect::<Vec<_>>(), "{text}");
    }
    true
}

#[test]
fn a_glance_suffices_for_what_is_for_sockets() {
    for (message, text, _) in canonical() {
        let is_for_sockets = (3..=6).contains(&message.kind.number()) && !text.contains("requestId");
        assert_eq!(glances(text), is_for_sockets && !text.contains('\\'), "{text}");
    }
    // Node's order of keys, Go's order, white space, and various packets.
    for text in [
        r#"{"type":3,"data":{"packet":{"type":2,"data":["e"],"nsp":"/"},"opts":{"rooms":["a"],"except":[],"flags":{}}},"uid":"x","nsp":"/"}"#,
        r#"{"uid":"x","nsp":"/","type":3,"data":{"opts":{"rooms":["a","é"],"flags":{"volatile":false,"local":true}},"packet":{"nsp":"","data":["e"]}}}"#,
        "{ \"type\" : 4 ,\t\"uid\":\"x\",\n\"data\":{\"opts\":{\"rooms\":[ \"a\" , \"b\" ]},\"rooms\":[ ]}\r} ",
        r#"{"type":3,"uid":"x","data":{"opts":{"rooms":[]},"packet":{"data":["e",-0.5e+7,0,[[],{}],{"a":{"b":[null,true,false]}},"\"\\\u00e9\n"]}},"n":7,"p":"q"}"#,
        r#"{"type":6,"uid":"x","n":"7","p":7,"data":{"opts":{"rooms":["a"]},"close":true},"h":"abc","later":{"x":[1]}}"#,
    ] {
        assert!(glances(text), "{text}");
    }
}

#[test]
fn a_glance_knows_what_we_write() {
    let sealed = |opts: Opts, seal| {
        let message = from("", "/chat", Message { opts, packet: Some(json("[\"e\",1]")), ..of(Broadcast) });
        match finish(encode(&message, "a1", LIMITS).unwrap(), seal, &message, "a1", LIMITS).unwrap() {
            Encoded::Inline(text) => text,
            Encoded::Attachment { .. } => panic!("it fits"),
        }
    };
    let key = SigningKey::new(b"secret").unwrap();
    let to = |rooms: &[&str]| Opts { rooms: rooms.iter().map(ToString::to_string).collect(), ..Opts::default() };
    for rooms in [&[][..], &["a"], &["a", "b c"]] {
        for seal in [seal(7), of_emitter(7, "q1"), keyed("q1"), Seal { key: Some(&key), ..seal(7) }] {
            let text = sealed(to(rooms), seal);
            assert!(glance::as_written(&text).is_some() && glances(&text), "{text}");
        }
    }
    let text = sealed(Opts { except: vec!["b".into()], ..to(&["a"]) }, seal(7));
    assert!(glance::as_written(&text).is_none() && glances(&text), "{text}");
}

#[test]
fn the_header_of_an_attachment_says_whom_it_is_for() {
    let header = |message| {
        let message = from("", "/", message);
        let encoded = Encoded::Attachment { header: json::write_header(&message, "a1"), body: vec![] };
        match finish(encoded, seal(7), &message, "a1", LIMITS).unwrap() {
            Encoded::Attachment { header, .. } => header + "42\"}",
            Encoded::Inline(text) => panic!("{text}"),
        }
    };
    let to = |rooms: Vec<String>| Opts { rooms, ..Opts::default() };
    let join = |rooms| Message { opts: to(rooms), rooms: vec!["elsewhere".into()], ..of(SocketsJoin) };
    let text = header(join(vec!["a".into(), "é".into()]));
    assert!(glances(&text), "{text}");
    assert_eq!(glance(&text).unwrap().rooms().collect::<Vec<_>>(), ["a", "é"]);
    assert!(glances(&header(join(vec![]))), "for everybody");
    // One room too many, or one byte too long.
    assert!(glances(&header(join(vec!["x".repeat(HINT_LIMIT_BYTES - 14)]))));
    let text = header(join(vec!["x".repeat(HINT_LIMIT_BYTES)]));
    assert!(!glances(&text) && text.len() < 200, "{text}");
    // A message that requests an answer is relevant to every server.
    let fetch = Message { opts: to(vec!["a".into()]), request_id: Some("q".into()), ..of(FetchSockets) };
    assert!(!header(fetch).contains("rooms"));
    // Other senders write no hint, and may use the name for something else.
    for hint in ["", r#","rooms":null"#, r#","rooms":["a",1]"#, r#","rooms":["\u0061"]"#, r#","rooms":["a"],"data":{}"#]
    {
        let text = format!(r#"{{"type":3,"uid":"x"{hint},"attachmentId":"7"}}"#);
        assert!(glance(&text).is_none(), "{text}");
        assert!(decode_notification(&text, "/").is_ok(), "{text}");
    }
}

#[test]
fn what_is_no_json_is_never_taken_by_a_glance() {
    let frame = |value: &str| {
        format!(r#"{{"type":3,"uid":"x","data":{{"opts":{{"rooms":["a"]}},"packet":{{"data":["e",{value}]}}}}}}"#)
    };
    assert!(glances(&frame("1")));
    let control = "\"\u{1}\"";
    for bad in [
        "",
        "01",
        "-",
        "1.",
        ".5",
        "1e",
        "1e+",
        "+1",
        "tru",
        "nulll",
        "NaN",
        "[",
        "[1,]",
        "[,1]",
        "{",
        "{1:2}",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1,}",
        "[1}",
        "{\"a\":1]",
        "\"",
        "\"\\x\"",
        "\"\\u12g4\"",
        "\"\\u123",
        "1 2",
        "'a'",
        control,
    ] {
        let text = frame(bad);
        assert!(glance(&text).is_none(), "{text}");
        assert!(decode_notification(&text, "/").is_err(), "{text}");
    }
    for text in [frame("1") + "x", frame("1") + "{}", frame("1")[1..].to_owned(), format!("\u{a0}{}", frame("1"))] {
        assert!(glance(&text).is_none(), "{text}");
    }
    let whole = frame("[1,{\"a\":\"b\"}]");
    for end in 0..whole.len() {
        assert!(glance(&whole[..end]).is_none(), "{}", &whole[..end]);
    }
}

#[test]
fn a_glance_gives_way_to_a_closer_look() {
    let frame = |rest: &str| {
        format!(r#"{{"type":3,"uid":"x",{rest}"data":{{"opts":{{"rooms":["a"]}},"packet":{{"data":[]}}}}}}"#)
    };
    assert!(glances(&frame("")));
    let long = "x".repeat(ORIGIN_LIMIT_BYTES + 1);
    for rest in [
        r#""type":3,"#, // twice
        r#""data":{},"#,
        r#""uid":"x","#,
        r#""attachmentId":"1","#,
        r#""nsp":"\u002f","#,
        r#""\u006esp":"/x","#,
        r#""nsp":null,"#,
        &format!(r#""nsp":"{long}","#),
    ] {
        assert!(glance(&frame(rest)).is_none(), "{rest}");
    }
    let data = |data: &str| format!(r#"{{"type":3,"uid":"x","data":{data}}}"#);
    for rest in [
        r#"{"packet":{"data":[]}}"#,
        r#"{"opts":{},"packet":{"data":[]}}"#,
        r#"{"opts":{"rooms":null},"packet":{"data":[]}}"#,
        r#"{"opts":{"rooms":[1]},"packet":{"data":[]}}"#,
        r#"{"opts":{"rooms":["\u0061"]},"packet":{"data":[]}}"#,
        r#"{"opts":{"rooms":[],"rooms":[]},"packet":{"data":[]}}"#,
        r#"{"opts":{"rooms":[]},"packet":{"data":[]},"requestId":"q"}"#,
        r#"{"opts":{"rooms":[],"flags":{"volatile":1}},"packet":{"data":[]}}"#,
        r#"{"opts":{"rooms":[]},"packet":{"data":{}}}"#,
        r#"{"opts":{"rooms":[]},"packet":[]}"#,
        r#"{"opts":{"rooms":[]}}"#,
        &format!(r#"{{"opts":{{"rooms":[]}},"packet":{{"data":{}1{}}}}}"#, "[".repeat(64), "]".repeat(64)),
    ] {
        assert!(glance(&data(rest)).is_none(), "{rest}");
    }
}

#[test]
fn an_attachment_without_uid_or_nsp_has_those_of_its_header() {
    let message = decode_attachment(&pack(r#"{"type":2}"#), "a1", "/x").unwrap();
    assert_eq!(plain(&message), plain(&from("a1", "/x", of(Heartbeat))));
}

#[test]
fn headers_are_read_leniently() {
    let header = |uid: &str, nsp: &str, id| Received::Attachment { uid: uid.into(), nsp: nsp.into(), id };
    for (text, expected) in [
        (r#"{"uid":"a","type":3,"attachmentId":"7"}"#, header("a", "/channel", 7)),
        (r#"{"uid":"a","type":3,"attachmentId":7}"#, header("a", "/channel", 7)),
        (r#"{"attachmentId":"9223372036854775807"}"#, header("", "/channel", i64::MAX)),
        (r#"{"type":99,"uid":null,"nsp":"/x","data":7,"attachmentId":"1"}"#, header("", "/x", 1)),
    ] {
        assert_eq!(decode_notification(text, "/channel").unwrap(), expected, "{text}");
    }
    for bad in [r#""seven""#, r#""""#, "\"9223372036854775808\"", "1.5", "[]", "true"] {
        let text = format!("{{\"type\":3,\"uid\":\"a\",\"attachmentId\":{bad}}}");
        assert!(matches!(decode_notification(&text, "/"), Err(Error::Decode { .. })), "{text}");
    }
    // null is not an attachment
    assert!(matches!(decode_notification(r#"{"type":2,"attachmentId":null}"#, "/"), Ok(Received::Message(_))));
}

#[test]
fn what_is_no_message_is_refused_in_both_formats() {
    for (text, expected) in [
        ("{}", "no message type"),
        (r#"{"uid":"a"}"#, "no message type"),
        (r#"{"type":null}"#, "no message type"),
        (r#"{"type":0}"#, "unknown message type 0"),
        (r#"{"type":14}"#, "unknown message type 14"),
        (r#"{"type":18446744073709551615}"#, "unknown message type 18446744073709551615"),
        (r#"{"type":-1}"#, ""),
        (r#"{"type":"3"}"#, ""),
        (r#"{"type":3.5}"#, ""),
        (r#"{"type":[3]}"#, ""),
        (r#"{"type":2,"uid":["a"]}"#, ""),
        (r#"{"type":2,"nsp":{}}"#, ""),
        (r#"{"type":3}"#, "type 3 without packet"),
        (r#"{"type":3,"data":{}}"#, "type 3 without packet"),
        (r#"{"type":3,"data":{"packet":{}}}"#, "type 3 without packet"),
        (r#"{"type":3,"data":{"packet":{"data":"e"}}}"#, "packet data is no array"),
        (r#"{"type":3,"data":{"packet":{"data":{"0":"e"}}}}"#, "packet data is no array"),
        (r#"{"type":3,"data":{"packet":["e"]}}"#, ""),
        (r#"{"type":3,"data":["e"]}"#, ""),
        (r#"{"type":3,"data":"e"}"#, ""),
        (r#"{"type":9}"#, "type 9 without packet"),
        (r#"{"type":9,"data":{"packet":{"data":["e"]}}}"#, "packet data is no array"),
        (r#"{"type":7,"data":{}}"#, "type 7 without requestId"),
        (r#"{"type":8,"data":{}}"#, "type 8 without requestId"),
        (r#"{"type":10,"data":{}}"#, "type 10 without requestId"),
        (r#"{"type":11,"data":{"clientCount":1}}"#, "type 11 without requestId"),
        (r#"{"type":12,"data":{"requestId":null}}"#, "type 12 without requestId"),
        (r#"{"type":11,"data":{"requestId":"q","clientCount":-1}}"#, ""),
        (r#"{"type":11,"data":{"requestId":"q","clientCount":"1"}}"#, ""),
        (r#"{"type":4,"data":{"rooms":"r"}}"#, ""),
        (r#"{"type":4,"data":{"rooms":[null]}}"#, ""),
        (r#"{"type":4,"data":{"rooms":[["r"]]}}"#, ""),
        (r#"{"type":4,"data":{"rooms":[1.5]}}"#, ""),
        (r#"{"type":4,"data":{"opts":{"except":{}}}}"#, ""),
        (r#"{"type":4,"data":{"opts":[]}}"#, ""),
        (r#"{"type":6,"data":{"close":1}}"#, ""),
        (r#"{"type":6,"data":{"opts":{"flags":{"volatile":"yes"}}}}"#, ""),
        ("[]", ""),
        ("3", ""),
        ("\"x\"", ""),
    ] {
        let found = reason(decode_notification(text, "/"));
        assert!(found.contains(expected), "{text}: {found}");
        let found = reason(decode_attachment(&pack(text), "", "/"));
        assert!(found.contains(expected), "{text} as MessagePack: {found}");
    }
    for text in ["", " ", "null!", "{", "{\"type\":2", "{\"type\":2}}", "{\"type\":2}{}", "{'type':2}", "\u{feff}{}"] {
        reason(decode_notification(text, "/"));
    }
    assert!(matches!(decode_notification("{\"type\":é", "/"), Err(Error::Decode { size_bytes: 10, .. })));
}

#[test]
fn user_data_in_json_stays_as_it_was_sent() {
    let data = r#"["e", "\ud800 \u00e9" ,1e400,123456789012345678901234567890 , {"a":1,"a":2}]"#;
    let message = read_json(&format!(r#"{{"type":3,"data":{{"packet":{{"data":{data}}}}}}}"#)).unwrap();
    assert_eq!(message, event(data));
}

#[test]
fn nesting_is_limited() {
    let nested = |depth: usize| format!("{}\"e\"{}", "[".repeat(depth), "]".repeat(depth));
    let broadcast = |data: &str| format!(r#"{{"type":3,"data":{{"packet":{{"data":{data}}}}}}}"#);
    // serde_json's own values stop at 128 levels, so the deep ones are packed by hand
    let packed = |depth: usize| {
        [&unhex("82 a474797065 03 a464617461 81 a67061636b6574 81 a464617461")[..], &vec![0x91; depth], &[0xa1, b'e']]
            .concat()
    };
    for depth in [1, 50, MAX_DEPTH] {
        let message = read_json(&broadcast(&nested(depth))).unwrap();
        assert_eq!(message, event(&nested(depth)));
        let message = decode_attachment(&packed(depth), "", "/").unwrap();
        assert_eq!(values_of(&message), [serde_json::from_str::<Value>(&nested(depth)).unwrap()]);
    }
    for depth in [MAX_DEPTH + 1, 3900, 1_000_000] {
        let found = reason(decode_notification(&broadcast(&nested(depth)), "/"));
        assert!(found.contains("nest"), "{found}");
        let found = reason(decode_attachment(&packed(depth), "", "/"));
        assert!(found.contains("nest"), "{found}");
        // user data that is not inside a packet of a broadcast: of a server-side emit, answers, and sockets
        for (kind, key) in [("09", "a67061636b6574"), ("0c", "a461726773"), ("08", "a7736f636b657473")] {
            let head = unhex(&format!("82 a474797065 {kind} a464617461 81 {key}"));
            let bytes = [&head[..], &vec![0x91; depth], &[0xa1, b'e']].concat();
            let found = reason(decode_attachment(&bytes, "", "/"));
            assert!(found.contains("nest"), "{found}");
        }
        // depth must not exhaust the stack in unknown keys or values of an unexpected type, either
        let _ = decode_notification(&format!(r#"{{"type":2,"x":{}}}"#, nested(depth)), "/");
        let _ = decode_notification(&format!(r#"{{"type":4,"data":{{"rooms":{}}}}}"#, nested(depth)), "/");
        let _ = decode_notification(&"[".repeat(depth), "/");
        let _ = decode_notification(&"{\"data\":".repeat(depth), "/");
        let _ = decode_attachment(&vec![0x91; depth], "", "/");
        let _ = decode_attachment(&vec![0x81; depth], "", "/");
    }
    // brackets inside strings are not nesting
    let text = format!("[\"e\",\"{}\\\"{}\"]", "[{".repeat(500), "[".repeat(500));
    assert_eq!(read_json(&broadcast(&text)).unwrap(), event(&text));
    // and neither are siblings
    let text = format!("[\"e\",{}]", vec!["[[]]"; 500].join(","));
    assert_eq!(read_json(&broadcast(&text)).unwrap(), event(&text));
}

#[test]
fn who_sent_it_has_a_short_name() {
    let long = "x".repeat(256);
    for what in ["uid", "nsp"] {
        for rest in ["\"type\":2", "\"type\":3,\"attachmentId\":\"1\"", "\"type\":4,\"data\":{}"] {
            let frame = |name: &str| format!("{{\"{what}\":\"{name}\",{rest}}}");
            assert!(decode_notification(&frame(&long[1..]), "/").is_ok());
            assert!(reason(decode_notification(&frame(&long), "/")).contains("256 bytes"), "{what} {rest}");
        }
        let frame = |name: &str| pack(&format!(r#"{{"type":2,"{what}":"{name}"}}"#));
        assert!(decode_attachment(&frame(&long[1..]), "", "/").is_ok());
        assert!(reason(decode_attachment(&frame(&long), "", "/")).contains("256 bytes"), "{what}");
    }
}

#[test]
fn a_length_is_only_a_claim() {
    for hex in [
        "df ffffffff",           // a map of four billion entries
        "de ffff a474797065 03", // 65535 entries, one of them there
        "82 a474797065 03 a464617461 dd ffffffff 01",
        "82 a474797065 04 a464617461 81 a5726f6f6d73 dd ffffffff a161",
        "82 a474797065 03 a464617461 db ffffffff",
        "82 a474797065 03 a464617461 c6 ffffffff 00",
        "82 a474797065 03 a464617461 c9 ffffffff 00",
        "82 a474797065 03 c1 03", // the reserved marker
    ] {
        reason(decode_attachment(&unhex(hex), "", "/"));
    }
    assert!(build(&unhex("dd ffffffff c0"), &mut Values).is_err());
    assert!(build(&unhex("df ffffffff c0"), &mut Values).is_err());
    assert!(build(&unhex("c0 c0"), &mut Values).is_err(), "bytes after the end");
}

#[test]
fn messagepack_cut_anywhere_is_refused() {
    for (_, text, hex) in canonical() {
        let bytes = unhex(hex);
        for end in 0..bytes.len() {
            assert!(
                matches!(decode_attachment(&bytes[..end], "", "/"), Err(Error::Decode { .. })),
                "{text} cut at {end}"
            );
        }
    }
}

#[test]
fn every_messagepack_type_is_read() {
    for (hex, expected) in [
        ("c0", value!(null)),
        ("c2", value!(false)),
        ("c3", value!(true)),
        ("7f", value!(127)),
        ("e0", value!(-32)),
        ("cc ff", value!(255)),
        ("cd ffff", value!(65535)),
        ("ce ffffffff", value!(4_294_967_295_u32)),
        ("cf ffffffffffffffff", value!(u64::MAX)),
        ("cf 0000000000000005", value!(5)),
        ("d0 80", value!(-128)),
        ("d1 8000", value!(-32768)),
        ("d2 80000000", value!(i32::MIN)),
        ("d3 8000000000000000", value!(i64::MIN)),
        ("d3 0000000000000001", value!(1)),
        ("ca 3fc00000", value!(1.5)),
        ("cb 3ff8000000000000", value!(1.5)),
        // as JSON.stringify writes them
        ("cb 7ff8000000000000", value!(null)),
        ("cb fff0000000000000", value!(null)),
        ("ca 7f800000", value!(null)),
        ("a1 61", value!("a")),
        ("d9 01 61", value!("a")),
        ("da 0001 61", value!("a")),
        ("db 00000001 61", value!("a")),
        // a lone surrogate as WTF-8, and garbage
        ("a3 eda080", value!("\u{fffd}\u{fffd}\u{fffd}")),
        ("a2 61ff", value!("a\u{fffd}")),
        ("c4 01 00", value!({"$bytes": [0]})),
        ("c5 0001 00", value!({"$bytes": [0]})),
        ("c6 00000001 00", value!({"$bytes": [0]})),
        ("c4 00", value!({"$bytes": []})),
        ("90", value!([])),
        ("dc 0001 01", value!([1])),
        ("dd 00000001 01", value!([1])),
        ("80", value!({})),
        ("de 0001 a161 01", value!({"a": 1})),
        ("df 00000001 a161 01", value!({"a": 1})),
        ("81 05 06", value!({"5": 6})),
        // other extensions: as @msgpack/msgpack shows them
        ("d4 05 01", value!({"type": 5, "data": {"$bytes": [1]}})),
        ("d5 05 0102", value!({"type": 5, "data": {"$bytes": [1, 2]}})),
        (
            "d8 80 000102030405060708090a0b0c0d0e0f",
            value!({"type": -128, "data": {"$bytes": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]}}),
        ),
        ("c7 01 05 01", value!({"type": 5, "data": {"$bytes": [1]}})),
        ("c8 0001 05 01", value!({"type": 5, "data": {"$bytes": [1]}})),
        ("c9 00000001 05 01", value!({"type": 5, "data": {"$bytes": [1]}})),
    ] {
        assert_eq!(build(&unhex(hex), &mut Values).unwrap(), expected, "{hex}");
        let skipped = unhex(&format!("82 a178 {hex} a474797065 02")); // as an unknown key, too
        assert_eq!(decode_attachment(&skipped, "", "/channel").unwrap(), of(Heartbeat), "{hex}");
    }
    assert!(build(&unhex("c1"), &mut Values).is_err());
}

#[test]
fn dates_are_iso_text() {
    for (hex, expected) in [
        ("d6 ff 00000000", "1970-01-01T00:00:00.000Z"),
        ("d6 ff ffffffff", "2106-02-07T06:28:15.000Z"),
        ("d6 ff 38bb9ec0", "2000-02-29T10:26:08.000Z"),
        ("d7 ff 1dcd6500 38bb9ec0", "2000-02-29T10:26:08.125Z"),
        ("d7 ff ee6b27fc 00000001", "1970-01-01T00:00:01.999Z"), // truncated, not rounded
        ("c7 0c ff 00000000 ffffffffffffffff", "1969-12-31T23:59:59.000Z"),
        ("c7 0c ff 00000000 fffffff1868b8400", "0000-01-01T00:00:00.000Z"),
        ("c7 0c ff 3b8b87c0 0000003afff4417f", "9999-12-31T23:59:59.999Z"),
    ] {
        assert_eq!(build(&unhex(hex), &mut Values).unwrap(), value!(expected), "{hex}");
    }
    // years of more than four digits, and sizes that are not a timestamp, stay extensions
    for hex in
        ["c7 0c ff 00000000 0000003afff44180", "c7 0c ff 00000000 7fffffffffffffff", "d4 ff 00", "c7 05 ff 0000000000"]
    {
        assert_eq!(build(&unhex(hex), &mut Values).unwrap()["type"], value!(-1), "{hex}");
    }
}

// ------------------------------------------------------------------------------------------------- properties

fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_filter("finite", |number| number.is_finite()).prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((any::<String>(), inner), 0..6)
                .prop_map(|entries| entries.into_iter().collect::<serde_json::Map<_, _>>().into()),
        ]
    })
}

fn packets() -> impl Strategy<Value = Data> {
    prop::collection::vec(values(), 0..4).prop_map(|items| Data::Json(Value::from(items).to_string()))
}

fn names() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec(any::<String>(), 0..4)
}

fn all_opts() -> impl Strategy<Value = Opts> {
    (names(), names(), any::<bool>(), any::<Option<bool>>()).prop_map(|(rooms, except, volatile, compress)| Opts {
        rooms,
        except,
        flags: Flags { volatile, compress },
    })
}

fn messages() -> impl Strategy<Value = Message> {
    let answer = prop::option::of(values().prop_map(|value| Data::Json(value.to_string())));
    let names = (all_opts(), names(), any::<Option<String>>());
    let data = (packets(), answer, prop::option::of(packets()));
    (prop::sample::select(&MessageType::ALL[..]), names, data, any::<(bool, u64)>()).prop_map(
        |(kind, (opts, rooms, request_id), (array, answer, args), (close, client_count))| {
            let packet = if matches!(kind, Broadcast | ServerSideEmit) { Some(array.clone()) } else { answer };
            let sockets = Some(array);
            let mut message =
                Message { opts, rooms, close, request_id, packet, sockets, client_count, args, ..of(kind) };
            if message.lacks() == Some("requestId") {
                message.request_id = Some("q1".into());
            }
            message.trimmed()
        },
    )
}

/// Every name in a message.
fn names_of(message: &Message) -> Message {
    from("", &message.nsp, plain(message).0)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn what_is_written_is_read(uid in any::<String>(), nsp in any::<String>(), message in messages()) {
        let message = from(&uid, &nsp, message);
        prop_assert_eq!(&read_json(&(json::write(&message, &uid) + "}")).unwrap(), &message);
        glances(&(json::write(&message, &uid) + "}"));
        let packed = msgpack::write(&message, &uid).unwrap();
        prop_assert_eq!(plain(&decode_attachment(&packed, "", "").unwrap()), plain(&message));
        // and each message the publisher would send, with its number
        let encoded = sent(&message, 12, LIMITS);
        if let Some(Encoded::Inline(text)) = in_ascii(&encoded, seal(12), "a1", LIMITS).unwrap() {
            prop_assert!(text.is_ascii() && text.len() <= NOTIFY_LIMIT_BYTES);
            prop_assert_eq!(values_of(&read_json(&text).unwrap()), values_of(&message));
            prop_assert_eq!(names_of(&read_json(&text).unwrap()), names_of(&message));
        }
        match encoded {
            Encoded::Inline(text) => {
                prop_assert!(text.len() <= NOTIFY_LIMIT_BYTES);
                let read = read_json(&text).unwrap();
                prop_assert_eq!(read, from("a1", &nsp, message));
            }
            Encoded::Attachment { body, .. } => {
                prop_assert_eq!(values_of(&decode_attachment(&body, "", "").unwrap()), values_of(&message));
            }
        }
    }

    #[test]
    fn any_text_is_a_message_or_an_error(text in any::<String>()) {
        let _ = decode_notification(&text, "/");
    }

    #[test]
    fn any_bytes_are_a_message_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode_attachment(&bytes, "", "/");
        let _ = build(&bytes, &mut Values);
    }

    #[test]
    fn a_damaged_message_is_a_message_or_an_error(
        case in 0..canonical().len(), at in any::<prop::sample::Index>(), byte in any::<u8>()
    ) {
        let (_, text, hex) = canonical().swap_remove(case);
        let mut bytes = unhex(hex);
        let place = at.index(bytes.len());
        bytes[place] = byte;
        if let Ok(message) = decode_attachment(&bytes, "", "/") {
            // an accepted message must not fail later, when it is read
            message.data().for_each(|data| if let Data::MessagePack(bytes) = data {
                let _ = build(bytes, &mut Values);
            });
        }
        let mut bytes = text.as_bytes().to_vec();
        let place = at.index(bytes.len());
        bytes[place] = byte;
        let text = String::from_utf8_lossy(&bytes);
        glances(&text);
        let _ = decode_notification(&text, "/");
    }

    #[test]
    fn a_glance_at_a_patchwork_of_messages_is_right(
        pieces in prop::collection::vec((0..canonical().len(), any::<[prop::sample::Index; 2]>()), 1..4),
        tokens in prop::collection::vec(prop::sample::select(TOKENS), 0..4), at in any::<prop::sample::Index>(),
    ) {
        // Pieces of messages, cut between any two characters, and JSON's tokens somewhere in between.
        let mut text = String::new();
        for (case, cuts) in pieces {
            let (_, whole, _) = canonical().swap_remove(case);
            let chars: Vec<char> = whole.chars().collect();
            let [one, two] = cuts.map(|cut| cut.index(chars.len() + 1));
            text.extend(&chars[..one.min(two)]);
            text.extend(&chars[one.max(two)..]);
        }
        let places: Vec<usize> = text.char_indices().map(|(place, _)| place).chain([text.len()]).collect();
        text.insert_str(places[at.index(places.len())], &tokens.concat());
        glances(&text);
    }
}

const TOKENS: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "\"",
    "\\",
    "\\u00e9",
    "\\ud800",
    "\u{1}",
    " ",
    "null",
    "true",
    "0",
    "-1",
    "1e9",
    "3",
    "4",
    "\"type\":",
    "\"uid\":\"x\"",
    "\"nsp\":\"/y\"",
    "\"n\":12",
    "\"p\":\"q\"",
    "\"rooms\":[\"a\"]",
    "\"opts\":{",
    "\"packet\":{",
    "\"data\":[",
    "\"requestId\":\"q\"",
    "\"attachmentId\":\"1\"",
    "\"close\":true",
    "\"except\":[]",
    "é",
];
