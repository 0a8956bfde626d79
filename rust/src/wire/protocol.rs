//! Cluster messages as data: types, limits and the shape of each message. No I/O, no encoding.
//!
//! Source of every wire fact: `socket.io-adapter` 2.5 `ClusterAdapter` (message types and fields) and
//! `@socket.io/postgres-adapter` 0.5 (channels, attachments).

use crate::error::{Error, Result};

/// Longest payload that `NOTIFY` accepts: one byte less than 8000 (PostgreSQL `NOTIFY_PAYLOAD_MAX_LENGTH`).
pub const NOTIFY_LIMIT_BYTES: usize = 7999;
/// Longest identifier, and therefore the longest channel name (`NAMEDATALEN - 1`).
pub const CHANNEL_LIMIT_BYTES: usize = 63;
/// Node's default `payloadThreshold`: from this size on a message travels as an attachment.
pub const DEFAULT_PAYLOAD_THRESHOLD_BYTES: usize = 8000;
/// Deepest nesting of arrays and maps in user data, when sending and when reading.
///
/// `serde_json` and `rmp-serde` recurse; 100 levels plus the envelope stay inside their own limit of 128.
pub const MAX_DEPTH: usize = 100;
/// The uid of senders that are not members of the cluster.
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
    /// How many clients of one server received a broadcast that requests acknowledgements.
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

    /// Whether messages of this type select sockets.
    pub const fn has_opts(self) -> bool {
        matches!(
            self,
            Self::Broadcast | Self::SocketsJoin | Self::SocketsLeave | Self::DisconnectSockets | Self::FetchSockets
        )
    }
}

/// User data in the format in which it was written or received.
///
/// A JSON text can be sent to clients unchanged. MessagePack is used exactly when the data contain binary or the
/// message arrived as an attachment.
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

    /// Whether it is an array.
    pub fn is_array(&self) -> bool {
        match self {
            Self::Json(text) => text.starts_with('['),
            Self::MessagePack(bytes) => matches!(bytes.first(), Some(0x90..=0x9f | 0xdc | 0xdd)),
        }
    }

    /// Whether there are no bytes at all, not even an empty document.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The sockets that a message addresses. Without rooms it addresses all sockets of the namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Opts {
    /// Union of rooms.
    pub rooms: Vec<String>,
    /// Rooms whose members are excluded.
    pub except: Vec<String>,
    /// Modifiers of the broadcast.
    pub flags: Flags,
}

/// Flags with an effect across servers. Absent, null and false are the same.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flags {
    /// The packet may be dropped for clients that are not ready.
    pub volatile: bool,
    /// Whether the transport should compress; peers default to true.
    pub compress: Option<bool>,
}

/// One message between servers. The fields from `opts` to `args` are used by some types only, see [`Message::trimmed`].
/// In messages of other types they have their default values and are not sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Type of the message.
    pub kind: MessageType,
    /// Server id of the sender; empty until published, [`EMITTER_UID`] for processes that are not servers.
    pub uid: String,
    /// Namespace, with its leading slash.
    pub nsp: String,
    /// The sockets that the message addresses.
    pub opts: Opts,
    /// Rooms that sockets join or leave.
    pub rooms: Vec<String>,
    /// Whether a disconnect closes the connection below the namespace, too.
    pub close: bool,
    /// Id of a request, which its answers repeat. A broadcast or an event for servers has one when it requests answers.
    pub request_id: Option<String>,
    /// `[event, *args]`; in an answer, its value.
    pub packet: Option<Data>,
    /// The sockets that were found, as an array.
    pub sockets: Option<Data>,
    /// How many clients received a broadcast.
    pub client_count: u64,
    /// All arguments of an acknowledgement as an array, an extension of this package; `packet` is the first argument.
    pub args: Option<Data>,
    /// Whether a Go server wrote the message, determined from the order of its keys. Go wraps the value of an answer in
    /// an array and expects the same, where Node sends and expects the bare value.
    pub is_from_go: bool,
}

impl Message {
    /// A message without the fields that only some types have. The publisher adds its own uid.
    pub fn new(kind: MessageType, nsp: impl Into<String>) -> Self {
        Self {
            kind,
            uid: String::new(),
            nsp: nsp.into(),
            opts: Opts::default(),
            rooms: Vec::new(),
            close: false,
            request_id: None,
            packet: None,
            sockets: None,
            client_count: 0,
            args: None,
            is_from_go: false,
        }
    }

    /// The message without fields that have no meaning for its type.
    #[must_use]
    pub fn trimmed(self) -> Self {
        let Self { kind, uid, nsp, opts, rooms, close, request_id, packet, sockets, client_count, args, is_from_go } =
            self;
        let bare = Self { uid, is_from_go, ..Self::new(kind, nsp) };
        match kind {
            MessageType::InitialHeartbeat | MessageType::Heartbeat | MessageType::AdapterClose => bare,
            MessageType::Broadcast => Self { opts, request_id, packet, ..bare },
            MessageType::SocketsJoin | MessageType::SocketsLeave => Self { opts, rooms, ..bare },
            MessageType::DisconnectSockets => Self { opts, close, ..bare },
            MessageType::FetchSockets => Self { opts, request_id, ..bare },
            MessageType::FetchSocketsResponse => Self { request_id, sockets, ..bare },
            MessageType::ServerSideEmit | MessageType::ServerSideEmitResponse => Self { request_id, packet, ..bare },
            MessageType::BroadcastClientCount => Self { request_id, client_count, ..bare },
            MessageType::BroadcastAck => Self { request_id, packet, args, ..bare },
        }
    }

    /// The name on the wire of a required field that is missing.
    pub fn lacks(&self) -> Option<&'static str> {
        match self.kind {
            MessageType::Broadcast | MessageType::ServerSideEmit => self.packet.is_none().then_some("packet"),
            MessageType::FetchSockets
            | MessageType::FetchSocketsResponse
            | MessageType::ServerSideEmitResponse
            | MessageType::BroadcastClientCount
            | MessageType::BroadcastAck
                if self.request_id.is_none() =>
            {
                Some("requestId")
            }
            MessageType::FetchSocketsResponse => self.sockets.is_none().then_some("sockets"),
            _ => None,
        }
    }

    /// Rooms that the message makes sockets join.
    pub fn joined(&self) -> &[String] {
        if self.kind == MessageType::SocketsJoin { &self.rooms } else { &[] }
    }

    /// The parts that hold user data.
    pub fn data(&self) -> impl Iterator<Item = &Data> {
        [&self.packet, &self.args, &self.sockets].into_iter().flatten()
    }

    /// Whether any of them holds binary, which JSON cannot represent.
    pub fn is_binary(&self) -> bool {
        self.data().any(|data| matches!(data, Data::MessagePack(_)))
    }

    /// The addressed sockets, if the message is for sockets and requests no answer. A server without any of these
    /// sockets can ignore such a message.
    pub fn opts_for_sockets(&self) -> Option<&Opts> {
        let is_for_sockets = self.kind.has_opts() && self.request_id.is_none();
        is_for_sockets.then_some(&self.opts)
    }

    /// Rough size in memory, for bounded queues.
    pub fn size_bytes(&self) -> usize {
        let data = self.data().map(Data::len).sum::<usize>();
        let names = self.opts.rooms.iter().chain(&self.opts.except).chain(&self.rooms).chain(&self.request_id);
        // A name of one byte takes the size of its `String` and of the smallest heap allocation.
        let names = names.map(|name| name.len() + 48).sum::<usize>();
        data + names + self.nsp.len() + self.uid.len() + 200
    }
}

/// Name of the channel that carries a namespace.
///
/// # Errors The name is longer than 63 bytes: `LISTEN` would truncate it silently, and `pg_notify` would reject it.
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

/// Quote a string literal, as the server's own function does: what a backslash means in another kind of literal depends on
/// `standard_conforming_strings`.
pub fn quote_literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if text.contains('\\') { format!(" E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
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
    fn a_literal_is_the_same_whatever_a_backslash_means() {
        assert_eq!(quote_literal("it's"), "'it''s'");
        assert_eq!(quote_literal(r"a\'b"), r" E'a\\''b'");
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
        let data = || Some(Data::Json("x".repeat(1000)));
        for (kind, expected) in
            MessageType::ALL.into_iter().zip([0, 0, 4000, 3000, 3000, 2000, 3000, 2000, 2000, 2000, 1000, 3000, 0])
        {
            let message = Message {
                opts: Opts { rooms: names(), except: names(), flags: Flags::default() },
                rooms: names(),
                request_id: Some("x".repeat(1000)),
                packet: data(),
                sockets: data(),
                args: data(),
                ..Message::new(kind, "/")
            };
            let size = message.trimmed().size_bytes();
            assert!((expected..2 * expected + 300).contains(&size), "{size} for {kind:?}");
        }
        let many = Message { rooms: vec!["1".to_owned(); 1000], ..Message::new(MessageType::SocketsJoin, "/") };
        assert!(many.size_bytes() > 1000 * size_of::<String>());
    }

    #[test]
    fn identifiers_are_quoted() {
        assert_eq!(quote_identifier(r#"we"ird"#), r#""we""ird""#);
    }
}
