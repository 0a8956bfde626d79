//! Cancelling a statement whose result is no longer needed.
//!
//! While a statement waits for a lock, PostgreSQL does not notice that its client has disconnected. Therefore every
//! statement that is given up is cancelled. Otherwise each attempt would leave another session waiting for the lock,
//! which commits once the lock is released.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::Handle;
use tokio::time::timeout;
use tokio_postgres::CancelToken;
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::connect::conninfo::Host;

/// Longest wait for a cancel request to be accepted, and for a sign that it had an effect. When the network drops every
/// packet, a cancel request takes this long.
pub const CANCEL_LIMIT: Duration = Duration::from_secs(2);

/// The address that a session is connected to.
#[derive(Clone)]
pub enum Address {
    /// Address and port.
    Tcp(SocketAddr),
    /// Path of a Unix socket.
    Unix(PathBuf),
}

impl Address {
    /// The address of `host`, at `ip` or at its Unix socket; `None` when it has neither.
    pub fn of(host: &Host, ip: Option<IpAddr>) -> Option<Self> {
        match (ip, host.socket_dir()) {
            (Some(ip), _) => Some(Self::Tcp(SocketAddr::new(ip, host.port))),
            (None, Some(dir)) => Some(Self::Unix(dir.join(format!(".s.PGSQL.{}", host.port)))),
            (None, None) => None,
        }
    }
}

/// Cancels the current statement of one PostgreSQL session. The request uses a separate connection to the same address,
/// with the same encryption.
#[derive(Clone)]
pub struct Canceller {
    token: CancelToken,
    address: Option<Address>,
    server_name: String,
    tls: MakeRustlsConnect,
}

impl Canceller {
    /// A canceller for the session with this token, which was opened on `host` at `ip`.
    pub fn new(token: CancelToken, host: &Host, ip: Option<IpAddr>, tls: MakeRustlsConnect) -> Self {
        Self { token, address: Address::of(host, ip), server_name: host.server_name(), tls }
    }

    /// Send one cancel request and wait, for at most [`CANCEL_LIMIT`], until the server has accepted it. The server
    /// does not report whether the request had an effect; only the statement's own answer shows that.
    pub async fn cancel(&self) {
        let _ = timeout(CANCEL_LIMIT, self.request()).await;
    }

    async fn request(&self) -> io::Result<()> {
        match &self.address {
            Some(Address::Tcp(address)) => self.request_over(TcpStream::connect(address).await?).await,
            Some(Address::Unix(path)) => self.request_over(UnixStream::connect(path).await?).await,
            None => Ok(()),
        }
    }

    /// The driver's own cancel request closes the connection as soon as it is sent, and PgBouncer then drops the
    /// request.
    async fn request_over<S>(&self, stream: S) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let tls = MakeTlsConnect::<UntilEnd<S>>::make_tls_connect(&mut self.tls.clone(), &self.server_name);
        let tls = Patient(tls.map_err(io::Error::other)?);
        self.token.cancel_query_raw(UntilEnd(stream), tls).await.map_err(io::Error::other)
    }

    /// A guard for statements whose future may be dropped.
    pub fn guard(&self) -> UnderWay {
        UnderWay { canceller: self.clone(), is_answered: false }
    }
}

/// Cancels the guarded statement in the background when dropped before the statement was answered.
pub struct UnderWay {
    canceller: Canceller,
    /// Whether the guarded statement was answered, so that there is nothing to cancel.
    pub is_answered: bool,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if self.is_answered {
            return;
        }
        let canceller = self.canceller.clone();
        // Without a runtime the process is ending, and the connection with it.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move { canceller.cancel().await });
        }
    }
}

/// A stream whose shutdown sends nothing and waits until the peer closes the connection.
struct UntilEnd<S>(S);

impl<S: AsyncRead + Unpin> AsyncRead for UntilEnd<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for UntilEnd<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut bytes = [0; 64];
        loop {
            let mut buf = ReadBuf::new(&mut bytes);
            let read = ready!(Pin::new(&mut self.0).poll_read(cx, &mut buf));
            if read.is_err() || buf.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: TlsStream + Unpin> TlsStream for UntilEnd<S> {
    fn channel_binding(&self) -> ChannelBinding {
        self.0.channel_binding()
    }
}

/// Makes encrypted [`UntilEnd`] streams.
struct Patient<C>(C);

impl<S, C> TlsConnect<S> for Patient<C>
where
    C: TlsConnect<S>,
    C::Future: Send + 'static,
{
    type Stream = UntilEnd<C::Stream>;
    type Error = C::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Stream, Self::Error>> + Send>>;

    fn connect(self, stream: S) -> Self::Future {
        let connecting = self.0.connect(stream);
        Box::pin(async move { connecting.await.map(UntilEnd) })
    }
}
