//! The one listening connection of a store: it says "look", never what there is.
//!
//! The session runs nothing but `LISTEN` and a probe, never a transaction, and reading it waits for nobody. A
//! notification sets a flag; so a slow reader cannot hold up the server's queue, and a lost notification costs at most
//! the time to the next poll.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_postgres::{AsyncMessage, Client};

use crate::connect::connection::{Connection, Connector};
use crate::connect::outage::Outage;
use crate::connect::queue;
use crate::error::{Error, Result};
use crate::store::table::{GO_CHANNEL, Table};
use crate::wire::protocol::quote_identifier;

/// First delay between attempts to connect; it doubles up to the setting.
const FIRST_DELAY: Duration = Duration::from_millis(50);

/// How to listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Silence after which the session is probed, and time it has to answer.
    pub notification_timeout: Duration,
    /// Longest delay between attempts to connect.
    pub reconnect_interval: Duration,
    /// Attempts in a row after which listening ends with an error; `None`: never.
    pub max_reconnect_attempts: Option<u32>,
}

/// See the module documentation.
pub struct Wakeup {
    connector: Arc<Connector>,
    settings: Settings,
    /// Signalled for every notification, and for every session that begins.
    pub changed: Notify,
    is_connected: AtomicBool,
    sessions: AtomicU64,
    notifications: AtomicU64,
    /// Why there is no session.
    pub outage: Outage,
}

impl Wakeup {
    /// A listener; it does nothing before [`Wakeup::run`].
    pub fn new(connector: Arc<Connector>, settings: Settings) -> Self {
        Self {
            connector,
            settings,
            changed: Notify::new(),
            is_connected: AtomicBool::new(false),
            sessions: AtomicU64::new(0),
            notifications: AtomicU64::new(0),
            outage: Outage::default(),
        }
    }

    /// Whether a session is listening.
    pub fn is_connected(&self) -> bool {
        self.is_connected.load(Ordering::Relaxed)
    }

    /// Sessions opened, the first one included.
    pub fn sessions(&self) -> u64 {
        self.sessions.load(Ordering::Relaxed)
    }

    /// Notifications received.
    pub fn notifications(&self) -> u64 {
        self.notifications.load(Ordering::Relaxed)
    }

    /// Note that nobody listens any more, or wants to.
    pub fn rest(&self) {
        self.is_connected.store(false, Ordering::Relaxed);
        self.outage.ended();
    }

    /// Listen, session after session; returns the error of the last attempt allowed, or, before the first session, one
    /// that cannot be mended by waiting.
    pub async fn run(&self, table: &Table) -> Error {
        let mut attempts = 0;
        loop {
            let error = match self.connector.connect_to_listen().await {
                Ok(link) => self.session(table, &link.client, link.connection, &mut attempts).await,
                Err(error) => error,
            };
            self.is_connected.store(false, Ordering::Relaxed);
            self.outage.failed(&error);
            self.changed.notify_one();
            attempts += 1;
            let is_over = self.settings.max_reconnect_attempts.is_some_and(|most| attempts > most);
            if is_over || (self.sessions() == 0 && !error.is_transient()) {
                return error;
            }
            let delay = FIRST_DELAY.saturating_mul(1 << attempts.min(16)).min(self.settings.reconnect_interval);
            tokio::time::sleep(delay.mul_f64(0.5 + rand::random::<f64>() / 2.0)).await;
        }
    }

    /// One session; returns why it ended.
    async fn session(&self, table: &Table, client: &Client, mut connection: Connection, attempts: &mut u32) -> Error {
        let tested = Notify::new();
        let nonce = format!("test {:032x}", rand::random::<u128>());
        let reading = async {
            loop {
                match std::future::poll_fn(|context| connection.poll_message(context)).await {
                    Some(Ok(AsyncMessage::Notification(notification))) if notification.payload() == nonce => {
                        tested.notify_one();
                    }
                    Some(Ok(AsyncMessage::Notification(_))) => {
                        self.notifications.fetch_add(1, Ordering::Relaxed);
                        self.changed.notify_one();
                    }
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Error::from_postgres("listen for events", &error, false),
                    None => {
                        return Error::ConnectionLost {
                            context: "listen for events".to_owned(),
                            reason: "the server closed the connection".to_owned(),
                            may_be_sent: false,
                        };
                    }
                }
            }
        };
        let listening = async {
            if let Err(error) = self.listen(table, client, &nonce, &tested).await {
                return error;
            }
            *attempts = 0;
            self.outage.ended();
            self.is_connected.store(true, Ordering::Relaxed);
            self.sessions.fetch_add(1, Ordering::Relaxed);
            // What was committed before LISTEN is read now.
            self.changed.notify_one();
            loop {
                tokio::time::sleep(self.settings.notification_timeout).await;
                if let Err(error) = self.probe(table, client).await {
                    return error;
                }
            }
        };
        tokio::select! {
            error = reading => error,
            error = listening => error,
        }
    }

    /// `LISTEN`, and a message to ourselves: a pooler in transaction mode takes the first and swallows the second.
    async fn listen(&self, table: &Table, client: &Client, nonce: &str, tested: &Notify) -> Result<()> {
        let channel = table.wake_channel();
        let ours = quote_identifier(&channel);
        let go = if table.notifies_us { String::new() } else { format!("LISTEN {};", quote_identifier(GO_CHANNEL)) };
        let script = format!("LISTEN {ours};{go}NOTIFY {ours}, '{nonce}'");
        let limit = self.settings.notification_timeout;
        let context = || "the test of the listening session".to_owned();
        timeout(limit, queue::listen(client, "listen for events", &script))
            .await
            .map_err(|_| Error::Timeout { context: context(), limit })??;
        if timeout(limit.min(Duration::from_secs(5)), tested.notified()).await.is_ok() {
            return Ok(());
        }
        // When this process was stopped, or the link is slow, the time is over first. What was on its way comes before
        // the probe's answer; only what is not there even then does not come.
        self.probe(table, client).await?;
        timeout(Duration::ZERO, tested.notified()).await.map_err(|_| {
            Error::InvalidConnection(
                "LISTEN does not work over this connection: a notification to ourselves did not arrive; it needs a \
                 direct connection or a pooler in session mode, see listen_dsn"
                    .to_owned(),
            )
        })
    }

    /// Ask the session which channels it holds: a link that is half open, or a server that hangs, looks healthy
    /// otherwise. Reading only, so an idle database writes nothing.
    async fn probe(&self, table: &Table, client: &Client) -> Result<()> {
        let limit = self.settings.notification_timeout;
        let sql = "SELECT channel FROM pg_catalog.pg_listening_channels() AS channel";
        let rows = timeout(limit, client.query_typed(sql, &[])).await;
        let rows = rows
            .map_err(|_| Error::Timeout { context: "the probe of the listening session".to_owned(), limit })?
            .map_err(|error| Error::from_postgres("probe the listening session", &error, false))?;
        let channel = table.wake_channel();
        if rows.iter().any(|row| row.try_get::<_, &str>(0).is_ok_and(|held| held == channel)) {
            return Ok(());
        }
        Err(Error::ConnectionLost {
            context: "listen for events".to_owned(),
            reason: "the session no longer holds its channel".to_owned(),
            may_be_sent: false,
        })
    }
}
