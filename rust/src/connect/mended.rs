//! A stream from the server on which the payload of every notification is valid UTF-8.
//!
//! The driver closes a connection when it receives a notification that is not valid UTF-8. In a database with the
//! encoding `SQL_ASCII` PostgreSQL accepts and sends any bytes, so every user who may connect could end all listening
//! sessions repeatedly. This stream replaces the payload of such a notification by its size, and its process id by one
//! that no session has. Everything else is passed on unchanged.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BufMut as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::config::{Config, SslMode, SslNegotiation};
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};
use tokio_postgres::{Client, Connection, Error, Notification};

use crate::connect::socket::Socket;

/// First byte of a `NotificationResponse`. Source for this and the following constants: PostgreSQL's "Message Formats".
const NOTIFICATION: u8 = b'A';
/// The server's positive answer to a request for TLS. After any other answer the connection is not encrypted.
const AGREES_TO_TLS: u8 = b'S';
/// Size of a message's header: the type byte, and the length, which does not count the type byte.
const HEADER_BYTES: usize = 5;
/// Bytes requested by one read.
const CHUNK_BYTES: usize = 8 * 1024;
/// Process id that marks a replaced notification.
const NOBODY: i32 = i32::MIN;

/// Original size of a notification's payload, if the payload was not valid UTF-8 and was replaced.
pub fn unreadable_bytes(notification: &Notification) -> Option<usize> {
    if notification.process_id() != NOBODY {
        return None;
    }
    notification.payload().parse().ok()
}

/// State of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The server's first byte is awaited, which says whether TLS follows.
    Negotiating,
    /// The stream consists of protocol messages.
    Messages,
    /// The stream is encrypted and passed on as it is.
    Opaque,
}

/// See the module documentation.
pub struct Mended<S> {
    inner: S,
    stage: Stage,
    /// Bytes that were read from the server. The complete messages at the front may be passed on.
    bytes: BytesMut,
    /// Size of the complete messages at the front.
    ready: usize,
}

impl<S> Mended<S> {
    fn new(inner: S, stage: Stage) -> Self {
        Self { inner, stage, bytes: BytesMut::new(), ready: 0 }
    }

    /// Examine the bytes that were read since the last call.
    fn look(&mut self) {
        if self.stage == Stage::Negotiating
            && let Some(&answer) = self.bytes.first()
        {
            self.stage = if answer == AGREES_TO_TLS { Stage::Opaque } else { Stage::Messages };
            self.ready = 1;
        }
        if self.stage == Stage::Opaque {
            self.ready = self.bytes.len();
            return;
        }
        while let Some(size) = message_size(&self.bytes[self.ready..]) {
            let Some(message) = self.bytes.get(self.ready..self.ready + size) else { break };
            match mend(message) {
                None => self.ready += size,
                Some(mended) => {
                    let mut rest = self.bytes.split_off(self.ready);
                    rest.advance(size);
                    self.bytes.extend_from_slice(&mended);
                    self.ready = self.bytes.len();
                    self.bytes.unsplit(rest);
                }
            }
        }
    }
}

/// Size of the message at the front, once its header is complete. An impossible length is left for the driver to
/// reject.
fn message_size(bytes: &[u8]) -> Option<usize> {
    let &[_, a, b, c, d, ..] = bytes else { return None };
    let length = usize::try_from(u32::from_be_bytes([a, b, c, d])).ok()?;
    Some((length + 1).max(HEADER_BYTES))
}

/// The replacement of a message, or `None` when it is passed on unchanged.
fn mend(message: &[u8]) -> Option<BytesMut> {
    if message.first() != Some(&NOTIFICATION) {
        return None;
    }
    let texts = message.get(HEADER_BYTES + 4..)?;
    if str::from_utf8(texts).is_ok() {
        return None;
    }
    let mut texts = texts.split(|&byte| byte == 0);
    // The channels listened to have UTF-8 names. Should the server send another name, a lossy copy is better than a
    // lost connection.
    let channel = String::from_utf8_lossy(texts.next()?);
    let size = texts.next()?.len().to_string();
    let mut mended = BytesMut::new();
    mended.put_u8(NOTIFICATION);
    mended.put_u32(u32::try_from(4 + 4 + channel.len() + 1 + size.len() + 1).ok()?);
    mended.put_i32(NOBODY);
    for text in [channel.as_bytes(), size.as_bytes()] {
        mended.put_slice(text);
        mended.put_u8(0);
    }
    Some(mended)
}

impl<S: AsyncRead + Unpin> AsyncRead for Mended<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if this.ready > 0 {
                let count = this.ready.min(out.remaining());
                out.put_slice(&this.bytes[..count]);
                this.bytes.advance(count);
                this.ready -= count;
                return Poll::Ready(Ok(()));
            }
            if this.stage == Stage::Opaque {
                return Pin::new(&mut this.inner).poll_read(cx, out);
            }
            let mut chunk = [0; CHUNK_BYTES];
            let mut chunk = ReadBuf::new(&mut chunk);
            ready!(Pin::new(&mut this.inner).poll_read(cx, &mut chunk))?;
            if chunk.filled().is_empty() {
                // End of the stream. The driver reports a truncated message.
                if this.bytes.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                this.ready = this.bytes.len();
                continue;
            }
            this.bytes.extend_from_slice(chunk.filled());
            this.look();
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Mended<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl<S: TlsStream + Unpin> TlsStream for Mended<S> {
    fn channel_binding(&self) -> ChannelBinding {
        self.inner.channel_binding()
    }
}

/// Wraps another TLS connector so that its streams are mended.
pub struct MendedTls<T>(T);

impl<S, T> TlsConnect<S> for MendedTls<T>
where
    T: TlsConnect<S>,
    T::Future: Send + 'static,
{
    type Stream = Mended<T::Stream>;
    type Error = T::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Stream, Self::Error>> + Send>>;

    fn connect(self, stream: S) -> Self::Future {
        let connecting = self.0.connect(stream);
        Box::pin(async { Ok(Mended::new(connecting.await?, Stage::Messages)) })
    }
}

/// The stream below TLS. Without TLS the driver reads it directly.
pub type Plain = Mended<Socket>;

/// Connect over `socket` as [`Config::connect`] does over a socket that it opens itself, and mend the stream that is
/// read.
pub async fn connect<T>(
    config: &Config,
    socket: Socket,
    tls: T,
) -> Result<(Client, Connection<Plain, Mended<T::Stream>>), Error>
where
    T: TlsConnect<Plain>,
    T::Future: Send + 'static,
{
    let stage = match (config.get_ssl_mode(), config.get_ssl_negotiation()) {
        (SslMode::Disable, _) => Stage::Messages,
        (_, SslNegotiation::Direct) => Stage::Opaque,
        _ => Stage::Negotiating,
    };
    config.connect_raw(Mended::new(socket, stage), MendedTls(tls)).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let mut message = vec![kind];
        message.extend(u32::try_from(body.len() + 4).unwrap().to_be_bytes());
        message.extend(body);
        message
    }

    fn notification(pid: i32, channel: &[u8], payload: &[u8]) -> Vec<u8> {
        message(NOTIFICATION, &[&pid.to_be_bytes(), channel, b"\0", payload, b"\0"].concat())
    }

    /// The bytes that the stream returns when `bytes` arrive in pieces of size `piece`.
    async fn read(stage: Stage, bytes: &[u8], piece: usize) -> Vec<u8> {
        let (mut server, client) = tokio::io::duplex(piece);
        let bytes = bytes.to_vec();
        let sending = tokio::spawn(async move { server.write_all(&bytes).await.unwrap() });
        let mut found = Vec::new();
        Mended::new(client, stage).read_to_end(&mut found).await.unwrap();
        sending.await.unwrap();
        found
    }

    #[tokio::test]
    async fn only_notifications_that_are_no_text_change() {
        let good = [notification(7, b"jobs", "é".as_bytes()), message(b'D', b"\xff"), message(b'Z', b"I")].concat();
        let sent = [&good[..], &notification(7, "ü".as_bytes(), b"caf\xe9"), &good].concat();
        let mended = [&good[..], &notification(NOBODY, "ü".as_bytes(), b"4"), &good].concat();
        for piece in [1, 2, 3, 5, 7, 11, 64, 1024] {
            assert_eq!(read(Stage::Messages, &sent, piece).await, mended, "{piece}");
        }
        let channel = read(Stage::Messages, &notification(7, b"\xff", b"text"), 64).await;
        assert_eq!(channel, notification(NOBODY, "\u{fffd}".as_bytes(), b"4"));
    }

    #[tokio::test]
    async fn messages_larger_than_what_is_read_at_once() {
        let large = [message(b'D', &vec![b'A'; 3 * CHUNK_BYTES]), notification(7, b"c", &[0x80; CHUNK_BYTES])].concat();
        let mended = [message(b'D', &vec![b'A'; 3 * CHUNK_BYTES]), notification(NOBODY, b"c", b"8192")].concat();
        assert_eq!(read(Stage::Messages, &large, 1000).await, mended);
    }

    #[tokio::test]
    async fn encrypted_bytes_pass() {
        let bad = notification(7, b"jobs", b"\xff");
        let mended = notification(NOBODY, b"jobs", b"1");
        let after = |answer: &[u8], rest: &[u8]| [answer, rest].concat();
        assert_eq!(read(Stage::Opaque, &bad, 4).await, bad);
        assert_eq!(read(Stage::Negotiating, &after(b"S", &bad), 4).await, after(b"S", &bad));
        assert_eq!(read(Stage::Negotiating, &after(b"N", &bad), 4).await, after(b"N", &mended));
    }

    #[tokio::test]
    async fn what_is_no_message_is_left_to_the_driver() {
        let cut = &notification(7, b"jobs", b"\xff")[..9];
        for bytes in [&b"A"[..], b"A\0\0\0\0", b"A\0\0\0\x04", b"A\0\0\0\x09\0\0\0\x01\xff", b"Z\xff\xff\xff\xff", cut]
        {
            assert_eq!(read(Stage::Messages, bytes, 64).await, bytes, "{bytes:?}");
        }
    }
}
