//! Taking a statement back that nobody waits for any more.
//!
//! PostgreSQL does not notice that a client has gone while it waits for a lock. So every statement that is given up is
//! cancelled, or behind a lock each attempt would leave another session that waits, and commits once the lock falls.

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

/// Longest wait for a cancel request to be taken, and for a sign that it had an effect. On a link that is a black hole
/// this is what it costs to ask.
pub const CANCEL_LIMIT: Duration = Duration::from_secs(2);

/// Where a session was opened.
#[derive(Clone)]
pub enum Address {
    /// Address and port.
    Tcp(SocketAddr),
    /// A socket's path.
    Unix(PathBuf),
}

impl Address {
    /// That of a host, one of whose addresses is `ip`; `None` when neither that nor a Unix socket is given.
    pub fn of(host: &Host, ip: Option<IpAddr>) -> Option<Self> {
        match (ip, host.socket_dir()) {
            (Some(ip), _) => Some(Self::Tcp(SocketAddr::new(ip, host.port))),
            (None, Some(dir)) => Some(Self::Unix(dir.join(format!(".s.PGSQL.{}", host.port)))),
            (None, None) => None,
        }
    }
}

/// Cancels what one session of PostgreSQL is doing, over a connection of its own to the same address, encrypted alike.
#[derive(Clone)]
pub struct Canceller {
    token: CancelToken,
    address: Option<Address>,
    server_name: String,
    tls: MakeRustlsConnect,
}

impl Canceller {
    /// For the session of this token, which was opened there.
    pub fn new(token: CancelToken, host: &Host, ip: Option<IpAddr>, tls: MakeRustlsConnect) -> Self {
        Self { token, address: Address::of(host, ip), server_name: host.server_name(), tls }
    }

    /// Ask once, within [`CANCEL_LIMIT`], and wait until the request was passed on. The server does not say what came of
    /// it: the statement's own answer does.
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

    /// The driver's own request hangs up as soon as it has spoken; PgBouncer forgets what it was asked then.
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

/// Cancels in the background when it is dropped before what it guards was answered.
pub struct UnderWay {
    canceller: Canceller,
    /// Whether nothing is under way at present.
    pub is_answered: bool,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if self.is_answered {
            return;
        }
        let canceller = self.canceller.clone();
        // Without a runtime we are at the end of the process, and so is the connection.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move { canceller.cancel().await });
        }
    }
}

/// A stream whose shutdown says nothing and waits until the other side hangs up.
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

/// Makes encrypted streams of that kind.
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
