//! The fields of `data` that any message may carry, and what their absence means.
//!
//! Peers differ: Node omits, `null`s or sends numbers where strings are expected, Go omits every zero value. Both
//! formats are read into [`Fields`] and made into a [`Body`] here, once.

use crate::error::Result;
use crate::wire::protocol::{Body, Data, MessageType, Opts};

use super::undecodable;

/// User data inside the received bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slice<'a> {
    /// JSON text of one document.
    Json(&'a str),
    /// Bytes of one MessagePack value.
    MessagePack(&'a [u8]),
}

impl Slice<'_> {
    fn to_data(self) -> Data {
        match self {
            Self::Json(text) => Data::Json(text.to_owned()),
            Self::MessagePack(bytes) => Data::MessagePack(bytes.to_vec()),
        }
    }

    fn len(self) -> usize {
        match self {
            Self::Json(text) => text.len(),
            Self::MessagePack(bytes) => bytes.len(),
        }
    }

    fn is_array(self) -> bool {
        match self {
            Self::Json(text) => text.starts_with('['),
            Self::MessagePack(bytes) => matches!(bytes.first(), Some(0x90..=0x9f | 0xdc | 0xdd)),
        }
    }

    fn empty_array(self) -> Data {
        match self {
            Self::Json(_) => Data::Json("[]".to_owned()),
            Self::MessagePack(_) => Data::MessagePack(vec![0x90]),
        }
    }
}

/// Everything found under `data`; absent and null are the same.
#[derive(Debug, Default)]
pub struct Fields<'a> {
    /// `opts`.
    pub opts: Opts,
    /// `rooms` of a join or leave.
    pub rooms: Vec<String>,
    /// `close` of a disconnect.
    pub close: bool,
    /// `requestId`.
    pub request_id: Option<String>,
    /// `packet`: of a broadcast its inner `packet.data`, otherwise as it stands.
    pub packet: Option<Slice<'a>>,
    /// `sockets`.
    pub sockets: Option<Slice<'a>>,
    /// `clientCount`.
    pub client_count: u64,
    /// `args`: all arguments of an acknowledgement, our extension.
    pub args: Option<Slice<'a>>,
}

impl Fields<'_> {
    /// The body these fields make in a message of this type.
    pub fn into_body(self, kind: MessageType, size_bytes: usize) -> Result<Body> {
        let missing = |what: &str| undecodable(size_bytes, format!("message of type {} without {what}", kind.number()));
        let event = |packet: Option<Slice<'_>>| {
            let packet = packet.ok_or_else(|| missing("packet"))?;
            if packet.is_array() {
                Ok(packet.to_data())
            } else {
                Err(undecodable(size_bytes, format!("packet data is no array ({} bytes)", packet.len())))
            }
        };
        let request_id = |id: Option<String>| id.ok_or_else(|| missing("requestId"));
        Ok(match kind {
            MessageType::InitialHeartbeat => Body::InitialHeartbeat,
            MessageType::Heartbeat => Body::Heartbeat,
            MessageType::AdapterClose => Body::AdapterClose,
            MessageType::Broadcast => {
                Body::Broadcast { opts: self.opts, packet: event(self.packet)?, request_id: self.request_id }
            }
            MessageType::SocketsJoin => Body::SocketsJoin { opts: self.opts, rooms: self.rooms },
            MessageType::SocketsLeave => Body::SocketsLeave { opts: self.opts, rooms: self.rooms },
            MessageType::DisconnectSockets => Body::DisconnectSockets { opts: self.opts, close: self.close },
            MessageType::FetchSockets => {
                Body::FetchSockets { opts: self.opts, request_id: request_id(self.request_id)? }
            }
            MessageType::FetchSocketsResponse => Body::FetchSocketsResponse {
                request_id: request_id(self.request_id)?,
                sockets: self.sockets.map_or_else(|| Slice::Json("").empty_array(), Slice::to_data),
            },
            MessageType::ServerSideEmit => {
                Body::ServerSideEmit { packet: event(self.packet)?, request_id: self.request_id }
            }
            MessageType::ServerSideEmitResponse => Body::ServerSideEmitResponse {
                request_id: request_id(self.request_id)?,
                packet: self.packet.map(Slice::to_data),
            },
            MessageType::BroadcastClientCount => {
                Body::BroadcastClientCount { request_id: request_id(self.request_id)?, client_count: self.client_count }
            }
            MessageType::BroadcastAck => Body::BroadcastAck {
                request_id: request_id(self.request_id)?,
                packet: self.packet.map(Slice::to_data),
                args: self.args.map(Slice::to_data),
            },
        })
    }
}
