//! The fields of a written message and their order, which are the same in JSON and in MessagePack.

use crate::wire::protocol::{Data, Message, MessageType, Opts, PACKET_EVENT, SOURCE};

/// Writes a document in one format, piece by piece.
pub(super) trait Sink {
    /// Why user data cannot be written.
    type Error;
    /// A map; `entries` gives its keys, and after each the value.
    fn map(&mut self, entries: impl FnOnce(&mut Self) -> Result<(), Self::Error>) -> Result<(), Self::Error>;
    /// The key of the value that follows.
    fn key(&mut self, name: &str) -> &mut Self;
    /// A string.
    fn str(&mut self, text: &str);
    /// An array of strings.
    fn strings(&mut self, items: &[String]);
    /// A number.
    fn uint(&mut self, value: u64);
    /// A boolean.
    fn bool(&mut self, value: bool);
    /// User data.
    fn data(&mut self, data: &Data) -> Result<(), Self::Error>;
}

/// The entries of a message, as `uid` sends it.
///
/// `opts` precedes `packet`, so that a receiver can decide that the message is irrelevant without reading all of it.
pub(super) fn message<S: Sink>(out: &mut S, message: &Message, uid: &str) -> Result<(), S::Error> {
    envelope(out, message, uid);
    match message.kind {
        MessageType::InitialHeartbeat | MessageType::Heartbeat | MessageType::AdapterClose => Ok(()),
        _ => out.key("data").map(|out| fields(out, message)),
    }
}

/// The entries of the header that announces an attachment.
///
/// Node's own header lacks `nsp` and `source`. With them, a Node server recognises the header, and a cluster worker
/// accepts it.
pub(super) fn envelope<S: Sink>(out: &mut S, message: &Message, uid: &str) {
    out.key("type").uint(u64::from(message.kind.number()));
    out.key("uid").str(uid);
    out.key("nsp").str(&message.nsp);
    out.key("source").str(SOURCE);
}

fn fields<S: Sink>(out: &mut S, message: &Message) -> Result<(), S::Error> {
    if let Some(id) = &message.request_id {
        out.key("requestId").str(id);
    }
    if message.kind.has_opts() {
        out.key("opts").map(|out| opts(out, &message.opts))?;
    }
    match message.kind {
        MessageType::SocketsJoin | MessageType::SocketsLeave => out.key("rooms").strings(&message.rooms),
        MessageType::DisconnectSockets => out.key("close").bool(message.close),
        MessageType::BroadcastClientCount => out.key("clientCount").uint(message.client_count),
        _ => {}
    }
    match &message.packet {
        Some(packet) if message.kind == MessageType::Broadcast => out.key("packet").map(|out| {
            out.key("type").uint(u64::from(PACKET_EVENT));
            out.key("nsp").str(&message.nsp);
            out.key("data").data(packet)
        })?,
        Some(packet) => out.key("packet").data(packet)?,
        None => {}
    }
    for (key, data) in [("sockets", &message.sockets), ("args", &message.args)] {
        if let Some(data) = data {
            out.key(key).data(data)?;
        }
    }
    Ok(())
}

fn opts<S: Sink>(out: &mut S, opts: &Opts) -> Result<(), S::Error> {
    out.key("rooms").strings(&opts.rooms);
    out.key("except").strings(&opts.except);
    out.key("flags").map(|out| {
        if opts.flags.volatile {
            out.key("volatile").bool(true);
        }
        if let Some(compress) = opts.flags.compress {
            out.key("compress").bool(compress);
        }
        Ok(())
    })
}
