//! One connection for requests, which is opened on first use and opened again after it was lost.
//!
//! Statements run only on an open connection, and always with a time limit. Connecting has limits of its own, so it
//! never uses up the time of a statement. A statement that is given up is cancelled on the server, and the connection
//! that it ran on is closed; a newer connection is not affected.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Mutex, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout};
use tokio_postgres::Client;

use crate::connect::cancel::{CANCEL_LIMIT, Canceller};
use crate::connect::connection::{Connector, Encoding, Link};
use crate::connect::pulse::Pulse;
use crate::error::{Error, Result};

/// How long closing waits for running statements, and for the server to accept the `Terminate` message. After that,
/// cancelling may take up to [`CANCEL_LIMIT`].
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// Pause before a statement is cancelled again. The first cancel request may reach the server before the statement
/// does, and other statements may be queued behind it. The pause is doubled for as long as no bytes move on the
/// connection.
const CANCEL_PAUSE: Duration = Duration::from_millis(20);

/// How long a caller that gave a statement up waits for its outcome. A frozen server, or a network that drops every
/// packet, gives no answer, and other callers wait meanwhile. Cancelling goes on in the background.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Assumed minimum throughput of the network, in bytes per second, from which a statement's additional time is
/// computed. Once the statement is in the kernel's or a pooler's buffer, no progress is reported until the server
/// answers.
const SLOWEST_LINK_BYTES: f64 = 64.0 * 1024.0;

/// `query_canceled`
const CANCELLED: &str = "57014";

#[derive(Default)]
struct Slot {
    open: Option<Arc<OpenConnection>>,
    /// Number of finished attempts to connect, and the error of the last one if it failed.
    attempts: u64,
    failure: Option<Error>,
}

/// See the module documentation. Cheap to clone; clones share the connection.
#[derive(Clone)]
pub struct Session {
    connector: Arc<Connector>,
    /// Longest silence before an answer. A frozen server or a half-open connection never answers.
    answer_limit: Duration,
    slot: Arc<Mutex<Slot>>,
    /// A copy of the slot's counter, for tasks that wait for the slot.
    attempts: Arc<AtomicU64>,
    closed: Arc<watch::Sender<bool>>,
    connects: Arc<AtomicU64>,
}

impl Session {
    /// A session that connects on first use.
    pub fn new(connector: Arc<Connector>, answer_limit: Duration) -> Self {
        let closed = Arc::new(watch::Sender::new(false));
        let (slot, attempts, connects) = (Arc::default(), Arc::default(), Arc::default());
        Self { connector, answer_limit, slot, attempts, closed, connects }
    }

    /// The open connection, which is established now if there is none. Makes a single attempt, shared by all concurrent
    /// callers; the caller decides whether to try again. The call takes as long as [`Connector::connect`] does, and
    /// ends early when the session is closed.
    pub async fn open(&self) -> Result<Arc<OpenConnection>> {
        let mut closed = self.closed.subscribe();
        let attempts = self.attempts.load(Ordering::Acquire);
        let mut slot = self.slot.lock().await;
        if let Some(open) = slot.open.as_ref().filter(|open| open.is_usable()) {
            return Ok(Arc::clone(open));
        }
        slot.open = None;
        // Otherwise every waiting caller would make an attempt of its own, one after the other.
        if let Some(failure) = slot.failure.as_ref().filter(|_| slot.attempts > attempts) {
            return Err(failure.clone());
        }
        // Boxed, because the future is large and connecting is rare.
        let connect = Box::pin(self.connector.connect());
        let connected = tokio::select! {
            biased;
            // Otherwise closing would wait for an attempt to an unreachable host.
            _ = closed.wait_for(|is_closed| *is_closed) => return Err(Error::Closed("connection")),
            connected = connect => connected,
        };
        slot.attempts += 1;
        self.attempts.store(slot.attempts, Ordering::Release);
        slot.failure = connected.as_ref().err().cloned();
        let open = OpenConnection::new(connected?, self.answer_limit);
        self.connects.fetch_add(1, Ordering::Relaxed);
        slot.open = Some(Arc::clone(&open));
        Ok(open)
    }

    /// Connections opened after the first one.
    pub fn reconnects(&self) -> u64 {
        self.connects.load(Ordering::Relaxed).saturating_sub(1)
    }

    /// Close the session permanently and in an orderly way. An attempt to connect is abandoned, and statements that
    /// still run after [`CLOSE_LIMIT`] are cancelled.
    pub async fn close(&self) {
        self.closed.send_replace(true);
        let open = self.slot.lock().await.open.take();
        if let Some(open) = open {
            OpenConnection::close(open).await;
        }
    }
}

/// An open connection. Every statement on it has a time limit.
pub struct OpenConnection {
    client: Client,
    canceller: Canceller,
    /// Whether its database lacks characters, so that ASCII alone is safe.
    is_narrow: bool,
    answer_limit: Duration,
    pulse: Arc<Pulse>,
    driver: AbortHandle,
    /// Closed when the driver ends.
    ended: watch::Receiver<()>,
    /// No new statement may begin on this connection.
    is_left: AtomicBool,
    /// The running statements are being cancelled.
    is_given_up: AtomicBool,
}

impl OpenConnection {
    /// Drive a new link.
    pub fn new(link: Link, answer_limit: Duration) -> Arc<Self> {
        let Link { client, connection, canceller, encoding, .. } = link;
        let is_narrow = encoding == Encoding::Narrow;
        let pulse = Arc::new(Pulse::default());
        let (ending, ended) = watch::channel(());
        // The driver ends with the connection. Its error is returned by the request in flight, or by the next one.
        let driver = tokio::spawn({
            let pulse = Arc::clone(&pulse);
            async move {
                let _ending = ending;
                let mut connection = pin!(connection);
                let _ = poll_fn(|cx| {
                    pulse.woken();
                    connection.as_mut().poll(cx)
                })
                .await;
            }
        });
        let driver = driver.abort_handle();
        let (is_left, is_given_up) = (AtomicBool::new(false), AtomicBool::new(false));
        Arc::new(Self { client, canceller, is_narrow, answer_limit, pulse, driver, ended, is_left, is_given_up })
    }

    /// Whether its database lacks characters, so that ASCII alone is safe.
    pub fn is_narrow(&self) -> bool {
        self.is_narrow
    }

    /// Whether statements may begin on this connection.
    pub fn is_usable(&self) -> bool {
        !self.client.is_closed() && !self.is_left.load(Ordering::Relaxed)
    }

    /// Run a statement and wait for the answer, until no bytes have moved on the connection for `answer_limit`. After
    /// that limit, and also when the returned future is dropped, the statement is cancelled and the connection is not
    /// used again.
    ///
    /// # Errors
    ///
    /// The error of `work`. A statement that was cancelled fails with SQLSTATE 57014, if the server confirms the
    /// cancellation within a second; it has had no effect then. Without that confirmation the error is
    /// [`Error::ConnectionLost`].
    pub async fn ask<'a, T, F>(self: &'a Arc<Self>, context: &str, work: impl FnOnce(&'a Client) -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        self.unless_silent(context, self.answer_limit, work).await
    }

    /// As [`OpenConnection::ask`], for a statement that writes and is `sent_bytes` long. It gets additional time for
    /// the transfer, and when it is unknown whether the statement was committed, the error says so.
    pub async fn commit<'a, T, F>(
        self: &'a Arc<Self>,
        context: &str,
        sent_bytes: usize,
        work: impl FnOnce(&'a Client) -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        if !self.is_usable() {
            return Err(Error::lost(context, "the connection was given up before anything was sent"));
        }
        self.unless_silent(context, self.limit_of(sent_bytes), work).await.map_err(|error| match error {
            Error::ConnectionLost { context, reason, .. } => {
                Error::ConnectionLost { context, reason, may_be_sent: true }
            }
            other => other,
        })
    }

    /// Run a statement and wait for its answer for at most `limit`. A missing answer does not count against the
    /// connection, because a large statement of another caller may be in progress.
    pub async fn ask_aside<'a, T, F>(
        &'a self,
        context: &str,
        limit: Duration,
        work: impl FnOnce(&'a Client) -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        self.pulse.asked();
        let late = |_| Error::Timeout { context: context.to_owned(), limit };
        timeout(limit, work(&self.client)).await.map_err(late)?
    }

    async fn unless_silent<'a, T, F>(
        self: &'a Arc<Self>,
        context: &str,
        limit: Duration,
        work: impl FnOnce(&'a Client) -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let mut under_way = UnderWay { connection: self, is_answered: false };
        let result = self.answer(context, limit, work).await;
        under_way.is_answered = !result.as_ref().is_err_and(Error::is_connection_lost);
        result
    }

    /// As [`OpenConnection::ask`], with a limit of its own. When the returned future is dropped, the statement goes on.
    /// The owner of the connection then waits for its end, or calls [`OpenConnection::give_up`].
    pub async fn answer<'a, T, F>(
        self: &'a Arc<Self>,
        context: &str,
        limit: Duration,
        work: impl FnOnce(&'a Client) -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        self.pulse.asked();
        let mut work = pin!(work(&self.client));
        if let Some(answer) = self.pulse.unless_silent(limit, &mut work).await {
            return answer;
        }
        self.give_up();
        match timeout(LAST_WORD, work).await {
            Ok(result) => result.map_err(|error| cancelled(error, context, limit)),
            Err(_) => Err(silent(context, limit)),
        }
    }

    /// How long a statement that is `sent_bytes` long may remain unanswered.
    pub fn limit_of(&self, sent_bytes: usize) -> Duration {
        self.answer_limit + travel_time(sent_bytes)
    }

    /// Retire the connection: running statements finish, and the next use of the session opens another connection.
    pub fn leave(&self) {
        self.is_left.store(true, Ordering::Relaxed);
    }

    /// Cancel the running statements and close the connection, in the background.
    pub fn give_up(self: &Arc<Self>) {
        self.leave();
        if self.is_given_up.swap(true, Ordering::Relaxed) {
            return;
        }
        // Without a runtime the process is ending, and the connection with it.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(Arc::clone(self).end());
        }
    }

    /// Cancel repeatedly until every sent statement is answered, or until no bytes have moved for [`CANCEL_LIMIT`].
    async fn end(self: Arc<Self>) {
        // This query is queued behind all others. On a lost connection it fails at once, while the statement may still
        // run.
        let mut answered = pin!(async {
            self.pulse.asked();
            let _ = self.client.batch_execute("").await;
        });
        let (mut pause, mut moved_at) = (CANCEL_PAUSE, self.pulse.moved_at());
        let mut deadline = Instant::now() + CANCEL_LIMIT;
        while Instant::now() < deadline {
            self.canceller.cancel().await;
            if timeout(pause, &mut answered).await.is_ok() {
                break;
            }
            let moved = self.pulse.moved_at();
            if moved == moved_at {
                pause *= 2;
            } else {
                (pause, moved_at) = (CANCEL_PAUSE, moved);
                deadline = Instant::now() + CANCEL_LIMIT;
            }
        }
        self.driver.abort();
    }

    async fn close(self: Arc<Self>) {
        let (driver, mut ended) = (self.driver.clone(), self.ended.clone());
        let is_given_up = self.is_given_up.load(Ordering::Relaxed);
        let whoever_waits = Arc::downgrade(&self);
        drop(self); // the driver sends `Terminate` once the last client handle is dropped
        if !is_given_up && timeout(CLOSE_LIMIT, ended.changed()).await.is_err() {
            match whoever_waits.upgrade() {
                Some(open) => open.give_up(),
                None => driver.abort(),
            }
        }
        if timeout(CANCEL_LIMIT, ended.changed()).await.is_err() {
            driver.abort();
        }
    }
}

/// A running statement. When it is dropped, or its connection is lost, it may still wait for a lock on the server.
struct UnderWay<'a> {
    connection: &'a Arc<OpenConnection>,
    is_answered: bool,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if !self.is_answered {
            self.connection.give_up();
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "a number of seconds")]
fn travel_time(sent_bytes: usize) -> Duration {
    Duration::from_secs_f64(sent_bytes as f64 / SLOWEST_LINK_BYTES)
}

fn silent(context: &str, limit: Duration) -> Error {
    Error::lost(context, format!("PostgreSQL did not answer within {} s", seconds(limit)))
}

fn seconds(limit: Duration) -> f64 {
    (limit.as_secs_f64() * 10.0).round() / 10.0
}

/// The error of a cancelled statement, with the reason for cancelling it.
fn cancelled(error: Error, context: &str, limit: Duration) -> Error {
    match error {
        Error::Database { report, .. } if report.sqlstate == CANCELLED => {
            let context = format!("{context}: cancelled, there was no answer within {} s", seconds(limit));
            Error::Database { context, report }
        }
        error if error.is_connection_lost() => silent(context, limit),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ServerReport;

    #[test]
    fn a_large_statement_has_time_to_travel() {
        assert_eq!(travel_time(0), Duration::ZERO);
        assert_eq!(travel_time(1024 * 1024), Duration::from_secs(16));
    }

    #[test]
    fn the_last_word_says_why_it_was_cancelled() {
        let said = |sqlstate: &str| {
            let report = ServerReport { sqlstate: sqlstate.to_owned(), ..ServerReport::default() };
            let error = Error::Database { context: "commit messages".to_owned(), report: Box::new(report) };
            cancelled(error, "commit messages", Duration::from_millis(1234)).to_string()
        };
        assert!(said(CANCELLED).starts_with("commit messages: cancelled, there was no answer within 1.2 s"));
        assert!(said("23505").starts_with("commit messages: "), "another answer came in time");
        assert!(!said("23505").contains("cancelled"));
        let broken = cancelled(Error::lost("commit messages", "closed"), "commit messages", Duration::from_secs(1));
        assert_eq!(broken, silent("commit messages", Duration::from_secs(1)));
    }
}
