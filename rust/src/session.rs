//! One lazily opened connection for requests, opened again when it broke.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex as SyncMutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, Sleep, sleep_until, timeout};
use tokio_postgres::Client;

use crate::connection::{Connector, Encoding};
use crate::error::{Error, Result};

/// How long closing waits for the server to take our farewell.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// What a statement holds is taken off our hands at once, by the system or a pooler, and nobody tells how it gets on from
/// there. So it gets time for a link that carries this much in a second.
const SLOWEST_LINK_BYTES: f64 = 64.0 * 1024.0;

/// When bytes last moved on the connection, in either direction.
#[derive(Default)]
struct Pulse {
    moved_at: SyncMutex<Option<Instant>>,
    /// A request was made since the driver was polled last.
    is_asked: AtomicBool,
}

impl Pulse {
    /// The driver was woken. That is the socket's doing, or that of a request, which says nothing about the link.
    fn woken(&self) {
        if !self.is_asked.swap(false, Ordering::Relaxed) {
            *self.moved_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
    }

    fn asked(&self) {
        self.is_asked.store(true, Ordering::Relaxed);
    }

    fn moved_at(&self) -> Option<Instant> {
        *self.moved_at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Open {
    client: Arc<Client>,
    driver: JoinHandle<()>,
}

/// See the module documentation. Cheap to clone; clones share the connection.
#[derive(Clone)]
pub struct Session {
    connector: Arc<Connector>,
    /// Longest silence before an answer: a server that is frozen, or a link that is half open, never gives one.
    answer_limit: Duration,
    pulse: Arc<Pulse>,
    alarm: Arc<SyncMutex<Option<Pin<Box<Sleep>>>>>,
    open: Arc<Mutex<Option<Open>>>,
    closed: Arc<watch::Sender<bool>>,
    connects: Arc<AtomicU64>,
    is_narrow: Arc<AtomicBool>,
}

impl Session {
    /// A session that connects on first use.
    pub fn new(connector: Arc<Connector>, answer_limit: Duration) -> Self {
        let closed = Arc::new(watch::Sender::new(false));
        let (pulse, alarm, open, connects) = (Arc::default(), Arc::default(), Arc::default(), Arc::default());
        Self { connector, answer_limit, pulse, alarm, open, closed, connects, is_narrow: Arc::default() }
    }

    /// The open connection, made now if there is none. One attempt; the caller decides about another.
    pub async fn client(&self) -> Result<Arc<Client>> {
        let mut closed = self.closed.subscribe();
        let mut slot = self.open.lock().await;
        if let Some(open) = slot.as_ref().filter(|open| !open.client.is_closed()) {
            return Ok(Arc::clone(&open.client));
        }
        // Boxed: connecting needs much state, and is rare.
        let connect = Box::pin(self.connector.connect());
        let link = tokio::select! {
            biased;
            // Or closing would wait for as long as a black hole may take to answer.
            _ = closed.wait_for(|is_closed| *is_closed) => return Err(Error::Closed("connection")),
            link = connect => link?,
        };
        // The driver ends with the connection; its error reaches the request in flight, or the next one.
        let pulse = Arc::clone(&self.pulse);
        let driver = tokio::spawn(async move {
            let mut connection = pin!(link.connection);
            let _ = poll_fn(|cx| {
                pulse.woken();
                connection.as_mut().poll(cx)
            })
            .await;
        });
        self.connects.fetch_add(1, Ordering::Relaxed);
        self.is_narrow.store(link.encoding == Encoding::Narrow, Ordering::Relaxed);
        let client = Arc::new(link.client);
        *slot = Some(Open { client: Arc::clone(&client), driver });
        Ok(client)
    }

    /// Wait for an answer, but not for ever: until nothing has moved on the connection for `answer_limit`. However large
    /// the answer and slow the link, a session that is well is not given up. After a failure the caller calls
    /// [`Session::discard`].
    pub async fn answer<T>(&self, context: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
        self.unless_silent(context, self.answer_limit, work).await
    }

    /// The same for a statement that writes, and holds `sent_bytes`: it gets time to travel, and without an answer it may
    /// have been committed.
    pub async fn answer_to_commit<T>(
        &self,
        context: &str,
        sent_bytes: usize,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        #[allow(clippy::cast_precision_loss, reason = "a number of seconds")]
        let limit = self.answer_limit + Duration::from_secs_f64(sent_bytes as f64 / SLOWEST_LINK_BYTES);
        self.unless_silent(context, limit, work).await.map_err(|error| match error {
            Error::ConnectionLost { context, reason, .. } => {
                Error::ConnectionLost { context, reason, may_be_sent: true }
            }
            other => other,
        })
    }

    async fn unless_silent<T>(
        &self,
        context: &str,
        limit: Duration,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        self.pulse.asked();
        let mut work = pin!(work);
        let mut deadline = Instant::now() + limit;
        let mut alarm = self.alarm(deadline);
        let result = loop {
            tokio::select! {
                biased;
                result = &mut work => break result,
                () = &mut alarm => {}
            }
            match self.pulse.moved_at().map(|at| at + limit).filter(|later| *later > deadline) {
                Some(later) => deadline = later,
                None => {
                    return Err(Error::ConnectionLost {
                        context: context.to_owned(),
                        reason: format!("PostgreSQL did not answer within {} s", limit.as_secs_f64()),
                        may_be_sent: false,
                    });
                }
            }
            alarm.as_mut().reset(deadline);
        };
        *self.alarm.lock().unwrap_or_else(PoisonError::into_inner) = Some(alarm);
        result
    }

    /// One that was set before, if nobody else waits by it: to put an alarm off is next to nothing, and to set another
    /// wakes the thread that would have slept until then, two system calls for each request.
    fn alarm(&self, deadline: Instant) -> Pin<Box<Sleep>> {
        match self.alarm.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(mut alarm) => {
                alarm.as_mut().reset(deadline);
                alarm
            }
            None => Box::pin(sleep_until(deadline)),
        }
    }

    /// Whether the database of the last connection lacks characters, so that ASCII alone is safe.
    pub fn is_narrow(&self) -> bool {
        self.is_narrow.load(Ordering::Relaxed)
    }

    /// Connections opened after the first one.
    pub fn reconnects(&self) -> u64 {
        self.connects.load(Ordering::Relaxed).saturating_sub(1)
    }

    /// Drop a connection that broke, without a farewell; the next use opens another.
    pub async fn discard(&self) {
        if let Some(open) = self.open.lock().await.take() {
            open.driver.abort();
        }
    }

    /// Close the connection in good order, and for good; one that is just being made is given up.
    pub async fn close(&self) {
        self.closed.send_replace(true);
        if let Some(Open { client, mut driver }) = self.open.lock().await.take() {
            drop(client);
            if timeout(CLOSE_LIMIT, &mut driver).await.is_err() {
                driver.abort();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conninfo::Conninfo;

    const LIMIT: Duration = Duration::from_secs(10);

    fn session() -> Session {
        let conninfo = Conninfo::parse("host=127.0.0.1 user=any", &|_| None).unwrap();
        Session::new(Arc::new(Connector::new(conninfo, None, Vec::new()).unwrap()), LIMIT)
    }

    /// A request that is answered after a while.
    async fn after(session: &Session, seconds: u64) -> Result<u64> {
        session.pulse.woken(); // as the driver is by every request
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        Ok(seconds)
    }

    /// Bytes move on the connection once in so many seconds, so often.
    fn move_bytes(session: &Session, seconds: u64, times: u64) {
        let pulse = Arc::clone(&session.pulse);
        tokio::spawn(async move {
            for _ in 0..times {
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                pulse.woken();
            }
        });
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_a_wait() {
        let session = session();
        assert_eq!(session.answer("ask", after(&session, 9)).await.unwrap(), 9);
        let began = Instant::now();
        let error = session.answer("ask", after(&session, 11)).await.unwrap_err();
        assert!(error.is_connection_lost() && !error.is_in_doubt(), "{error}");
        assert_eq!(began.elapsed().as_secs(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn every_request_has_its_own_time() {
        let session = session();
        assert_eq!(session.answer("ask", after(&session, 9)).await.unwrap(), 9);
        let other = async { session.answer("ask", after(&session, 5)).await };
        let (one, other) = tokio::join!(session.answer("ask", after(&session, 8)), other);
        assert_eq!((one.unwrap(), other.unwrap()), (8, 5));
        let began = Instant::now();
        session.answer("ask", after(&session, 99)).await.unwrap_err();
        assert_eq!(began.elapsed().as_secs(), 10);
        let began = Instant::now();
        session.answer("ask", after(&session, 99)).await.unwrap_err();
        assert_eq!(began.elapsed().as_secs(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_answer_on_a_slow_link_is_waited_for() {
        let session = session();
        move_bytes(&session, 9, 10);
        assert_eq!(session.answer("ask", after(&session, 95)).await.unwrap(), 95);
        let began = Instant::now();
        move_bytes(&session, 7, 3);
        assert!(session.answer("ask", after(&session, 99)).await.is_err());
        assert_eq!(began.elapsed().as_secs(), 3 * 7 + 10);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_of_others_are_no_sign_of_life() {
        let session = session();
        let others = session.clone();
        tokio::spawn(async move {
            for _ in 0..20 {
                tokio::time::sleep(Duration::from_secs(1)).await;
                let one = others.clone();
                tokio::spawn(async move { one.answer("ask", after(&one, 99)).await });
            }
        });
        assert!(session.answer("ask", after(&session, 15)).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_statement_has_time_to_travel() {
        let session = session();
        let mebibyte = 1024 * 1024;
        assert_eq!(session.answer_to_commit("store", mebibyte, after(&session, 25)).await.unwrap(), 25);
        let error = session.answer_to_commit("store", mebibyte, after(&session, 27)).await.unwrap_err();
        assert!(error.is_in_doubt(), "{error}");
    }
}
