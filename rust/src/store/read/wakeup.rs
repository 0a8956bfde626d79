//! The listening connection of an event store. It signals that there may be new events, never which ones.
//!
//! A notification only sets a flag. Therefore a slow reader cannot hold back the server's notification queue, and a
//! lost notification delays reading until the next poll at most. On the same channel comes that somebody has changed
//! durable subscriptions, which is a flag of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tokio_postgres::Notification;

use crate::connect::backoff::Backoff;
use crate::connect::connection::{Connector, Link};
use crate::connect::listening::{self, Heard, Listening};
use crate::connect::notify_queue;
use crate::connect::outage::Outage;
use crate::connect::probe;
use crate::error::{Error, Result};
use crate::store::read::pace::Pace;
use crate::store::table::{GO_CHANNEL, Table};
use crate::wire::protocol::quote_identifier;

/// What is sent when somebody has changed a durable subscription; see `changed.sql`.
const DURABLE: &str = "durable";

/// Listening settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Silence after which the session is probed, and the time limit for the answer.
    pub notification_timeout: Duration,
    /// Longest delay between attempts to connect.
    pub reconnect_interval: Duration,
    /// Number of failed attempts in a row after which listening ends with an error; `None` for no limit.
    pub max_reconnect_attempts: Option<u32>,
}

/// See the module documentation.
pub struct Wakeup {
    connector: Arc<Connector>,
    settings: Settings,
    /// Signalled for every notification, and whenever a session begins.
    pub changed: Notify,
    /// How often durable subscriptions may have been changed by others.
    pub durable: watch::Sender<u64>,
    is_connected: AtomicBool,
    sessions: AtomicU64,
    reconnects: AtomicU64,
    notifications: AtomicU64,
    heard: Heard,
    /// The reason why there is no session.
    pub outage: Outage,
}

impl Wakeup {
    /// A listener; it does nothing before [`Wakeup::run`].
    pub fn new(connector: Arc<Connector>, settings: Settings) -> Self {
        Self {
            connector,
            settings,
            changed: Notify::new(),
            durable: watch::Sender::default(),
            is_connected: AtomicBool::new(false),
            sessions: AtomicU64::new(0),
            reconnects: AtomicU64::new(0),
            notifications: AtomicU64::new(0),
            heard: Heard::default(),
            outage: Outage::default(),
        }
    }

    /// Whether a session is listening.
    pub fn is_connected(&self) -> bool {
        self.is_connected.load(Ordering::Relaxed)
    }

    /// Number of sessions opened, including the first one.
    pub fn sessions(&self) -> u64 {
        self.sessions.load(Ordering::Relaxed)
    }

    /// How often a session has followed one that was lost.
    pub fn reconnects(&self) -> u64 {
        self.reconnects.load(Ordering::Relaxed)
    }

    /// Number of notifications received.
    pub fn notifications(&self) -> u64 {
        self.notifications.load(Ordering::Relaxed)
    }

    /// Record that listening has stopped and is no longer wanted.
    pub fn rest(&self) {
        self.is_connected.store(false, Ordering::Relaxed);
        self.outage.ended();
    }

    /// Listen, with one session after the other. Returns the error of the last allowed attempt, or, before the first
    /// session, an error that waiting cannot cure.
    pub async fn run(&self, table: &Table) -> Error {
        let mut backoff = Backoff::up_to(self.settings.reconnect_interval);
        let (before, mut failed) = (self.sessions(), 0);
        loop {
            let sessions = self.sessions();
            let error = match self.connector.connect_to_listen().await {
                Ok(link) => self.session(table, link, before, &mut backoff).await,
                Err(error) => error,
            };
            self.is_connected.store(false, Ordering::Relaxed);
            self.outage.failed(&error);
            self.changed.notify_one();
            failed = if self.sessions() > sessions { 0 } else { failed + 1 };
            let is_over = self.settings.max_reconnect_attempts.is_some_and(|most| failed >= most);
            if is_over || (self.sessions() == 0 && !error.is_transient()) {
                return error;
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }

    /// Run one session, where there were so many `before` the first one of this run. Returns the reason why it ended.
    async fn session(&self, table: &Table, link: Link, before: u64, backoff: &mut Backoff) -> Error {
        let tested = Notify::new();
        let nonce = format!("test {:032x}", rand::random::<u128>());
        let (session, reading) = listening::halves(link, &self.heard, self.settings.notification_timeout);
        let take = |notification: &Notification, _| {
            if notification.payload() == nonce {
                tested.notify_one();
            } else {
                self.notifications.fetch_add(1, Ordering::Relaxed);
                if notification.payload() == DURABLE {
                    self.durable.send_modify(|changes| *changes += 1);
                } else {
                    self.changed.notify_one();
                }
            }
        };
        let keep = async {
            self.listen(table, &session, &nonce, &tested).await?;
            self.count_in(table, &session).await?;
            backoff.reset();
            self.outage.ended();
            self.is_connected.store(true, Ordering::Relaxed);
            if self.sessions.fetch_add(1, Ordering::Relaxed) > before {
                self.reconnects.fetch_add(1, Ordering::Relaxed);
            }
            // Read now the events that were committed before LISTEN, and what else was changed.
            self.changed.notify_one();
            self.durable.send_modify(|changes| *changes += 1);
            loop {
                tokio::time::sleep(self.settings.notification_timeout).await;
                self.probe(table, &session).await?;
            }
        };
        reading.run("listen for events", take, keep).await
    }

    /// Run `LISTEN`, and send a notification to this session itself. A pooler in transaction mode accepts `LISTEN`, but
    /// the notification never arrives.
    async fn listen(&self, table: &Table, session: &Listening<'_>, nonce: &str, tested: &Notify) -> Result<()> {
        let ours = quote_identifier(&table.wake_channel());
        let go = if table.notifies_us { String::new() } else { format!("LISTEN {};", quote_identifier(GO_CHANNEL)) };
        let script = format!("LISTEN {ours};{go}NOTIFY {ours}, '{nonce}'");
        let limit = self.settings.notification_timeout;
        let prepare = async {
            probe::configure(&session.client, limit).await?;
            notify_queue::listen(&session.client, "listen for events", &script).await
        };
        session.ask("the test of the listening session", limit, prepare).await?;
        if timeout(limit.min(Duration::from_secs(5)), tested.notified()).await.is_ok() {
            return Ok(());
        }
        // When this process was stopped, or the network is slow, the time limit may pass before the notification
        // arrives. A notification in flight arrives before the probe's answer; if it has not arrived by then, it is
        // lost.
        self.probe(table, session).await?;
        timeout(Duration::ZERO, tested.notified()).await.map_err(|_| {
            Error::InvalidConnection(
                "LISTEN does not work over this connection: a notification to ourselves did not arrive; it needs a \
                 direct connection or a pooler in session mode, see listen_dsn"
                    .to_owned(),
            )
        })
    }

    /// Let other readers know that there is this one. If the server refuses that, it is only quicker than it should be.
    /// The script begins with LISTEN, so that `pg_stat_activity` still shows what the session is for.
    async fn count_in(&self, table: &Table, session: &Listening<'_>) -> Result<()> {
        let context = "be counted as a reader";
        let script = format!("LISTEN {}; {}", quote_identifier(&table.wake_channel()), Pace::sql_count_in());
        let work = notify_queue::listen(&session.client, context, &script);
        match session.ask(context, self.settings.notification_timeout, work).await {
            Err(Error::Database { .. }) => Ok(()),
            result => result,
        }
    }

    /// Ask the session for its channels. Without a query, a half-open connection or a hanging server looks healthy.
    async fn probe(&self, table: &Table, session: &Listening<'_>) -> Result<()> {
        let work = probe::probe(&session.client, None, false);
        let limit = self.settings.notification_timeout;
        let found = session.ask("the probe of the listening session", limit, work).await?;
        if found.channels.contains(&table.wake_channel()) {
            return Ok(());
        }
        Err(Error::lost("listen for events", "the session no longer holds its channel"))
    }
}
