//! A session that holds `LISTEN`. It is read continuously, and every query on it has a time limit.
//!
//! The session runs nothing but `LISTEN`, `UNLISTEN` and probes, never a transaction block, and reading from it never
//! waits for a consumer. A session that stays in a transaction, or is not read, would prevent PostgreSQL from shrinking
//! the notification queue and from vacuuming, for the whole database.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::pin;
use std::time::{Duration, Instant, SystemTime};

use tokio::time::timeout;
use tokio_postgres::{AsyncMessage, Client, Notification};

use crate::connect::cancel::Canceller;
use crate::connect::connection::{Connection, Link};
use crate::connect::probe;
use crate::error::{Error, Result};
use crate::lock::Mutex;

/// Number of consecutive notifications that share one reading of the clocks. Two clock calls and a lock per
/// notification would be a tenth of the cost of a message that has no receiver on this server.
const TOGETHER: u32 = 64;

/// When anything was last received, on both clocks. The value is kept when a session is replaced by the next.
#[derive(Default)]
pub struct Heard(Mutex<Option<(Instant, SystemTime)>>);

impl Heard {
    /// Record that something was received now.
    pub fn note(&self) -> SystemTime {
        let now = SystemTime::now();
        *self.0.lock() = Some((Instant::now(), now));
        now
    }

    /// The time when something was last received.
    pub fn at(&self) -> Option<SystemTime> {
        self.0.lock().map(|(_, at)| at)
    }

    fn is_within(&self, limit: Duration) -> bool {
        self.0.lock().is_some_and(|(at, _)| at.elapsed() < limit)
    }
}

/// The half of a session that sends queries.
pub struct Listening<'a> {
    /// Sends statements. Wait for their answers only by [`Listening::ask`].
    pub client: Client,
    canceller: Canceller,
    heard: &'a Heard,
    /// The interval between probes.
    interval: Duration,
}

/// The half of a session that reads.
pub struct Reading<'a> {
    connection: Connection,
    heard: &'a Heard,
}

/// Split a session that will be probed once per `interval`.
pub fn halves(link: Link, heard: &Heard, interval: Duration) -> (Listening<'_>, Reading<'_>) {
    let Link { client, connection, canceller, .. } = link;
    (Listening { client, canceller, heard, interval }, Reading { connection, heard })
}

impl Listening<'_> {
    /// Wait for the answer to a query until nothing has been received for `limit`. The answer follows the notifications
    /// that the server sent before it, and these may be many, or the network slow. When the answer does not arrive, or
    /// the returned future is dropped, the query is cancelled on the server.
    pub async fn ask<T>(&self, context: &str, limit: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut under_way = self.canceller.guard();
        let began = Instant::now();
        let mut work = pin!(work);
        loop {
            match timeout(limit.min(self.interval), &mut work).await {
                Ok(result) => {
                    under_way.is_answered = !result.as_ref().is_err_and(Error::is_connection_lost);
                    return result;
                }
                Err(_) if began.elapsed() < limit || self.heard.is_within(limit) => probe::remind(&self.client),
                Err(_) => return Err(Error::Timeout { context: context.to_owned(), limit }),
            }
        }
    }
}

impl Reading<'_> {
    /// Pass every notification and its time of arrival to `take`, until the session ends or `work`, which uses the
    /// other half, ends. Returns the reason. `take` must not block. Notifications that arrive in quick succession may
    /// be given the same time.
    pub async fn run(
        mut self,
        context: &str,
        take: impl Fn(&Notification, SystemTime),
        work: impl Future<Output = Result<Infallible>>,
    ) -> Error {
        let reading = async {
            let (mut arrived, mut together) = (SystemTime::UNIX_EPOCH, 0);
            loop {
                let message = poll_fn(|cx| {
                    let message = self.connection.poll_message(cx);
                    if message.is_pending() {
                        together = 0;
                    }
                    message
                });
                match message.await {
                    Some(Ok(AsyncMessage::Notification(notification))) => {
                        if together == 0 {
                            arrived = self.heard.note();
                        }
                        together = (together + 1) % TOGETHER;
                        take(&notification, arrived);
                    }
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Error::from_postgres(context, &error, false),
                    None => return Error::lost(context, "the server closed the connection"),
                }
            }
        };
        tokio::select! {
            // Reading first: what has arrived while this process was not running counts, before time limits do.
            biased;
            error = reading => error,
            Err(error) = work => error,
        }
    }
}
