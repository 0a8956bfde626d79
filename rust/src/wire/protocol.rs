//! Cluster messages as data: types, limits and the shape of each message. No I/O, no encoding.
//!
//! Source of every wire fact: `socket.io-adapter` 2.5 `ClusterAdapter` (message types and fields) and
//! `@socket.io/postgres-adapter` 0.5 (channels, attachments).

use crate::error::{Error, Result};

/// Longest payload `NOTIFY` accepts: one byte less than 8000 (PostgreSQL `NOTIFY_PAYLOAD_MAX_LENGTH`).
pub const NOTIFY_LIMIT_BYTES: usize = 7999;
/// Longest identifier, and so the longest channel name (`NAMEDATALEN - 1`).
pub const CHANNEL_LIMIT_BYTES: usize = 63;
/// Node's default `payloadThreshold`: from this size on a message travels as an attachment.
pub const DEFAULT_PAYLOAD_THRESHOLD_BYTES: usize = 8000;
/// Deepest nesting of arrays and maps in user data, when sending and when reading.
///
/// `serde_json` and `rmp-serde` recurse; 100 levels plus the envelope stay inside their own limit of 128.
pub const MAX_DEPTH: usize = 100;
/// The uid that makes peers treat the sender as no member of the cluster.
pub const EMITTER_UID: &str = "emitter";
/// Value of `source`: `@socket.io/cluster-adapter` workers drop messages that lack it.
pub const SOURCE: &str = "_sio_adapter";
/// Packet type of an event inside a broadcast; binary or not, Node derives the rest itself.
pub const PACKET_EVENT: u8 = 2;

/// `MessageType` of `socket.io-adapter`, numbers included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum MessageType {
    /// A server joined; every peer answers with a heartbeat.
    InitialHeartbeat = 1,
    /// A server is alive.
    Heartbeat = 2,
    /// Deliver a packet to clients.
    Broadcast = 3,
    /// Make sockets join rooms.
    SocketsJoin = 4,
    /// Make sockets leave rooms.
    SocketsLeave = 5,
    /// Disconnect sockets.
    DisconnectSockets = 6,
    /// List sockets; every server answers.
    FetchSockets = 7,
    /// Answer to [`MessageType::FetchSockets`].
    FetchSocketsResponse = 8,
    /// An event for the servers themselves.
    ServerSideEmit = 9,
    /// Answer to [`MessageType::ServerSideEmit`].
    ServerSideEmitResponse = 10,
    /// How many clients of one server got a broadcast that wants acknowledgements.
    BroadcastClientCount = 11,
    /// One client's acknowledgement of a broadcast.
    BroadcastAck = 12,
    /// A server leaves.
    AdapterClose = 13,
}

impl MessageType {
    /// All types, in the order of their numbers.
    pub const ALL: [Self; 13] = [
        Self::InitialHeartbeat,
        Self::Heartbeat,
        Self::Broadcast,
        Self::SocketsJoin,
        Self::SocketsLeave,
        Self::DisconnectSockets,
        Self::FetchSockets,
        Self::FetchSocketsResponse,
        Self::ServerSideEmit,
        Self::ServerSideEmitResponse,
        Self::BroadcastClientCount,
        Self::BroadcastAck,
        Self::AdapterClose,
    ];

    /// The type with this number, if there is one.
    pub fn from_number(number: u64) -> Option<Self> {
        let index = usize::try_from(number.checked_sub(1)?).ok()?;
        Self::ALL.get(index).copied()
    }

    /// The number on the wire.
    pub const fn number(self) -> u8 {
        self as u8
    }
}

/// User data still in the format it was written or received in.
///
/// A JSON text can be handed to clients untouched; MessagePack is used exactly when binary is inside or when the
/// message came as an attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// One JSON document.
    Json(String),
    /// One MessagePack value.
    MessagePack(Vec<u8>),
}

impl Data {
    /// Size in its format.
    pub fn len(&self) -> usize {
        match self {
            Self::Json(text) => text.len(),
            Self::MessagePack(bytes) => bytes.len(),
        }
    }

    /// Whether there is nothing at all, not even an empty document.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Which sockets a message is for. No rooms means all sockets of the namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Opts {
    /// Union of rooms.
    pub rooms: Vec<String>,
    /// Rooms whose members are left out.
    pub except: Vec<String>,
    /// Modifiers of the broadcast.
    pub flags: Flags,
}

/// Flags that mean something across servers. Absent, null and false are the same.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flags {
    /// The packet may be dropped for clients that are not ready.
    pub volatile: bool,
    /// Whether the transport should compress; peers default to true.
    pub compress: Option<bool>,
}

/// What a message says.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are those of the wire, described at their MessageType")]
pub enum Body {
    InitialHeartbeat,
    Heartbeat,
    Broadcast { opts: Opts, packet: Data, request_id: Option<String> },
    SocketsJoin { opts: Opts, rooms: Vec<String> },
    SocketsLeave { opts: Opts, rooms: Vec<String> },
    DisconnectSockets { opts: Opts, close: bool },
    FetchSockets { opts: Opts, request_id: String },
    FetchSocketsResponse { request_id: String, sockets: Data },
    ServerSideEmit { packet: Data, request_id: Option<String> },
    ServerSideEmitResponse { request_id: String, packet: Option<Data> },
    BroadcastClientCount { request_id: String, client_count: u64 },
    BroadcastAck { request_id: String, packet: Option<Data>, args: Option<Data> },
    AdapterClose,
}

impl Body {
    /// Type of the message that carries this body.
    pub const fn message_type(&self) -> MessageType {
        match self {
            Self::InitialHeartbeat => MessageType::InitialHeartbeat,
            Self::Heartbeat => MessageType::Heartbeat,
            Self::Broadcast { .. } => MessageType::Broadcast,
            Self::SocketsJoin { .. } => MessageType::SocketsJoin,
            Self::SocketsLeave { .. } => MessageType::SocketsLeave,
            Self::DisconnectSockets { .. } => MessageType::DisconnectSockets,
            Self::FetchSockets { .. } => MessageType::FetchSockets,
            Self::FetchSocketsResponse { .. } => MessageType::FetchSocketsResponse,
            Self::ServerSideEmit { .. } => MessageType::ServerSideEmit,
            Self::ServerSideEmitResponse { .. } => MessageType::ServerSideEmitResponse,
            Self::BroadcastClientCount { .. } => MessageType::BroadcastClientCount,
            Self::BroadcastAck { .. } => MessageType::BroadcastAck,
            Self::AdapterClose => MessageType::AdapterClose,
        }
    }

    /// The parts that hold user data.
    pub fn data(&self) -> impl Iterator<Item = &Data> {
        let (first, second) = match self {
            Self::Broadcast { packet, .. } | Self::ServerSideEmit { packet, .. } => (Some(packet), None),
            Self::FetchSocketsResponse { sockets, .. } => (Some(sockets), None),
            Self::ServerSideEmitResponse { packet, .. } => (packet.as_ref(), None),
            Self::BroadcastAck { packet, args, .. } => (packet.as_ref(), args.as_ref()),
            _ => (None, None),
        };
        first.into_iter().chain(second)
    }

    /// Which sockets it is for, if it is for sockets and wants no answer: then a server without any of them has nothing to
    /// do.
    pub const fn opts_for_sockets(&self) -> Option<&Opts> {
        match self {
            Self::Broadcast { opts, request_id: None, .. }
            | Self::SocketsJoin { opts, .. }
            | Self::SocketsLeave { opts, .. }
            | Self::DisconnectSockets { opts, .. } => Some(opts),
            _ => None,
        }
    }

    /// The names of rooms, and the request id.
    fn names(&self) -> impl Iterator<Item = &String> {
        let (opts, rooms, request_id) = match self {
            Self::InitialHeartbeat | Self::Heartbeat | Self::AdapterClose => (None, None, None),
            Self::SocketsJoin { opts, rooms } | Self::SocketsLeave { opts, rooms } => (Some(opts), Some(rooms), None),
            Self::DisconnectSockets { opts, .. } => (Some(opts), None, None),
            Self::Broadcast { opts, request_id, .. } => (Some(opts), None, request_id.as_ref()),
            Self::FetchSockets { opts, request_id } => (Some(opts), None, Some(request_id)),
            Self::ServerSideEmit { request_id, .. } => (None, None, request_id.as_ref()),
            Self::FetchSocketsResponse { request_id, .. }
            | Self::ServerSideEmitResponse { request_id, .. }
            | Self::BroadcastClientCount { request_id, .. }
            | Self::BroadcastAck { request_id, .. } => (None, None, Some(request_id)),
        };
        let chosen = opts.into_iter().flat_map(|opts| opts.rooms.iter().chain(&opts.except));
        chosen.chain(rooms.into_iter().flatten()).chain(request_id)
    }
}

/// One message between servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Server id of the sender; empty until published, [`EMITTER_UID`] for processes that are no server.
    pub uid: String,
    /// Namespace, with its leading slash.
    pub nsp: String,
    /// What it says.
    pub body: Body,
    /// Whether a Go server wrote it, told by the order of its keys. Go wraps the value of an answer in an array and
    /// expects the same, where Node sends and expects the bare value.
    pub is_from_go: bool,
}

impl Message {
    /// A message to be published; the publisher signs it with its own uid.
    pub fn new(nsp: impl Into<String>, body: Body) -> Self {
        Self { uid: String::new(), nsp: nsp.into(), body, is_from_go: false }
    }

    /// Rough size in memory, for bounded queues.
    pub fn size_bytes(&self) -> usize {
        let data = self.body.data().map(Data::len).sum::<usize>();
        // A name of one byte takes as much as its String and the smallest piece of heap.
        let names = self.body.names().map(|name| name.len() + 48).sum::<usize>();
        data + names + self.nsp.len() + self.uid.len() + 200
    }
}

/// Name of the channel that carries a namespace.
///
/// # Errors
/// Longer than 63 bytes: `LISTEN` would cut it silently and `pg_notify` would refuse it.
pub fn channel_name(prefix: &str, nsp: &str) -> Result<String> {
    let channel = [prefix, "#", nsp].concat();
    check_channel(&channel)?;
    Ok(channel)
}

/// Check a channel name given by a user.
pub fn check_channel(channel: &str) -> Result<()> {
    if channel.is_empty() || channel.contains('\0') {
        return Err(Error::options("channel", channel, "a channel name has 1 to 63 bytes and no NUL"));
    }
    if channel.len() > CHANNEL_LIMIT_BYTES {
        return Err(Error::TooLarge {
            what: format!("channel name {channel:?}"),
            size_bytes: channel.len(),
            limit_bytes: CHANNEL_LIMIT_BYTES,
        });
    }
    Ok(())
}

/// Quote an identifier so that case and any character survive.
pub fn quote_identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Quote a text. With `standard_conforming_strings`, the default, only quotes in it matter.
pub fn quote_literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_socket_io_adapter() {
        for (index, kind) in MessageType::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(kind.number()), index + 1);
            assert_eq!(MessageType::from_number(index as u64 + 1), Some(kind));
        }
        assert_eq!(MessageType::from_number(0), None);
        assert_eq!(MessageType::from_number(14), None);
    }

    #[test]
    fn a_channel_name_has_at_most_63_bytes() {
        assert_eq!(channel_name("socket.io", "/").unwrap(), "socket.io#/");
        assert!(channel_name("socket.io", &format!("/{}", "x".repeat(52))).is_ok());
        assert!(matches!(
            channel_name("socket.io", &format!("/{}", "x".repeat(53))),
            Err(Error::TooLarge { size_bytes: 64, limit_bytes: 63, .. })
        ));
        // bytes, not characters
        assert!(channel_name("socket.io", &format!("/{}", "é".repeat(27))).is_err());
        assert!(check_channel("a\0b").is_err());
    }

    #[test]
    fn nothing_large_is_taken_for_small() {
        let names = || vec!["x".repeat(100); 10];
        let opts = || Opts { rooms: names(), except: names(), flags: Flags::default() };
        let data = || Data::Json("x".repeat(1000));
        let id = || "x".repeat(1000);
        for (body, expected) in [
            (Body::Heartbeat, 0),
            (Body::Broadcast { opts: opts(), packet: data(), request_id: Some(id()) }, 4000),
            (Body::SocketsJoin { opts: opts(), rooms: names() }, 3000),
            (Body::SocketsLeave { opts: opts(), rooms: names() }, 3000),
            (Body::DisconnectSockets { opts: opts(), close: true }, 2000),
            (Body::FetchSockets { opts: opts(), request_id: id() }, 3000),
            (Body::FetchSocketsResponse { request_id: id(), sockets: data() }, 2000),
            (Body::ServerSideEmit { packet: data(), request_id: Some(id()) }, 2000),
            (Body::ServerSideEmitResponse { request_id: id(), packet: Some(data()) }, 2000),
            (Body::BroadcastClientCount { request_id: id(), client_count: 1 }, 1000),
            (Body::BroadcastAck { request_id: id(), packet: Some(data()), args: Some(data()) }, 3000),
        ] {
            let size = Message::new("/", body.clone()).size_bytes();
            assert!((expected..2 * expected + 300).contains(&size), "{size} for {body:?}");
        }
        let many = Body::SocketsJoin { opts: Opts::default(), rooms: vec!["1".to_owned(); 1000] };
        assert!(Message::new("/", many).size_bytes() > 1000 * size_of::<String>());
    }

    #[test]
    fn identifiers_are_quoted() {
        assert_eq!(quote_identifier(r#"we"ird"#), r#""we""ird""#);
    }
}
