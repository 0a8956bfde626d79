//! A session that holds `LISTEN`: read without a pause, and asked within limits.
//!
//! It runs nothing but `LISTEN`, `UNLISTEN` and probes, never a transaction, and reading it waits for nobody. Otherwise
//! PostgreSQL could neither shrink the notification queue nor vacuum, for the whole database.

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

/// Notifications that come without a pause look at the clocks once for so many: two calls and a lock each are a tenth of
/// what a message costs that is for nobody here.
const TOGETHER: u32 = 64;

/// When a session last gave a sign of life, on both clocks; kept from session to session.
#[derive(Default)]
pub struct Heard(Mutex<Option<(Instant, SystemTime)>>);

impl Heard {
    /// It gives one now.
    pub fn note(&self) -> SystemTime {
        let now = SystemTime::now();
        *self.0.lock() = Some((Instant::now(), now));
        now
    }

    /// When it did.
    pub fn at(&self) -> Option<SystemTime> {
        self.0.lock().map(|(_, at)| at)
    }

    fn is_within(&self, limit: Duration) -> bool {
        self.0.lock().is_some_and(|(at, _)| at.elapsed() < limit)
    }
}

/// The half of a session that is asked.
pub struct Listening<'a> {
    /// Sends statements; wait for their answers by [`Listening::ask`] only.
    pub client: Client,
    canceller: Canceller,
    heard: &'a Heard,
    /// How often it is to be probed.
    interval: Duration,
}

/// The half that is read.
pub struct Reading<'a> {
    connection: Connection,
    heard: &'a Heard,
}

/// Both halves of a session that is to be probed once in an `interval`.
pub fn halves(link: Link, heard: &Heard, interval: Duration) -> (Listening<'_>, Reading<'_>) {
    let Link { client, connection, canceller, .. } = link;
    (Listening { client, canceller, heard, interval }, Reading { connection, heard })
}

impl Listening<'_> {
    /// Wait for an answer for as long as anything else arrives, and then for `limit`: it stands behind the notifications
    /// that were sent before it, and those may be many, or the link slow. One that does not come, or is not waited for,
    /// is cancelled on the server.
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
    /// Give every notification to `take`, with the time it arrived, until the session or `work` on its other half ends;
    /// returns why. `take` must not block. What came a little later may have the same time.
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
            error = reading => error,
            Err(error) = work => error,
        }
    }
}
