//! Subscriptions: each requests the events after its own position, from the ring or from pages of the table.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::sleep;
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use crate::connect::backoff::Backoff;
use crate::connect::runtime;
use crate::error::{Error, Result};
use crate::handover::completion::Completion;
use crate::lock::Mutex;
use crate::store::event::StoredEvent;
use crate::store::filter::Filter;
use crate::store::pool::Pool;
use crate::store::read::anchor::Anchor;
use crate::store::read::feed::{Feed, Progress, is_cancelled, passes};
use crate::store::read::page_size::PageSize;
use crate::store::read::reader::{self, NOTHING, Query, Statement};
use crate::store::read::window::Window;
use crate::store::row::micros;

/// The position at which a subscription begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// After this version.
    After(i64),
    /// After this event, which must still be there.
    AfterEvent(Anchor),
    /// With the events stored from now on.
    End,
}

/// A subscription's request for the events after a position, to be answered as soon as there are any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Next {
    /// All events up to this version have been received.
    pub position: i64,
    /// Maximum number of events.
    pub limit: usize,
    /// Also answer as soon as it is known that no matching event exists up to a higher position.
    pub reports_progress: bool,
    /// Also answer as soon as there are no more events to read.
    pub tells_caught_up: bool,
    /// Answer after this time with the events known by then, even if there are none.
    pub patience: Duration,
    /// Also answer as soon as durable subscriptions may have been changed more or less often than this.
    pub heeded: Option<u64>,
}

/// The answer to one request of a subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The events, in increasing order of versions.
    pub events: Vec<Arc<StoredEvent>>,
    /// All matching events up to this version have been delivered.
    pub position: i64,
    /// Id of the event with this version, if the position is not the one that was asked from.
    pub position_id: Option<Arc<str>>,
    /// At this moment there are no more events to read.
    pub is_caught_up: bool,
    /// How often the listening session was lost and reopened since the subscription was made.
    pub reconnects: u64,
}

/// The parts of a store that its subscriptions need. The subscriptions end with the store; the feed may continue for
/// others.
pub struct Owner {
    /// Connections for reading pages.
    pool: Arc<Pool>,
    subscriptions: AtomicUsize,
    is_closed: watch::Sender<bool>,
}

impl Owner {
    /// An owner for a store that reads pages through `pool`.
    pub fn new(pool: Arc<Pool>) -> Arc<Self> {
        Arc::new(Self { pool, subscriptions: AtomicUsize::new(0), is_closed: watch::Sender::new(false) })
    }

    /// Number of open subscriptions of the store.
    pub fn subscriptions(&self) -> usize {
        self.subscriptions.load(Ordering::Relaxed)
    }

    /// End the store's subscriptions.
    pub fn close(&self) {
        self.is_closed.send_replace(true);
    }
}

/// A new subscription to a feed, which runs while there are any.
pub fn subscribe(feed: &Arc<Feed>, filter: Filter, owner: &Arc<Owner>) -> Result<Arc<Subscription>> {
    let number = feed.enter()?;
    owner.subscriptions.fetch_add(1, Ordering::Relaxed);
    Ok(Arc::new(Subscription {
        pid: std::process::id(),
        feed: Arc::clone(feed),
        owner: Arc::clone(owner),
        filter: Arc::new(filter),
        window: Mutex::default(),
        pages: PageSize::default(),
        reconnects_before: feed.wakeup.reconnects(),
        number,
        asking: Mutex::default(),
        nudged: Notify::new(),
        is_closed: AtomicBool::new(false),
    }))
}

/// See [`subscribe`].
pub struct Subscription {
    /// The process that created the subscription. A forked child inherits it, but must not use it.
    pid: u32,
    feed: Arc<Feed>,
    owner: Arc<Owner>,
    filter: Arc<Filter>,
    window: Mutex<Window>,
    pages: PageSize,
    /// How often the listening session had been reopened when the subscription was made.
    reconnects_before: u64,
    /// Its number among the newcomers of the feed.
    number: u64,
    /// The pending answer, which a new request replaces.
    asking: Mutex<Option<AbortHandle>>,
    nudged: Notify,
    is_closed: AtomicBool,
}

impl Subscription {
    /// Check a start, and determine its position.
    pub fn begin(self: &Arc<Self>, start: Start, completion: Completion<Anchor>) -> Result<()> {
        self.answer(completion, |this| async move { this.retried(|| this.find_start(start.clone()), || None).await })
    }

    /// Request the events after a position.
    pub fn next(self: &Arc<Self>, next: Next, completion: Completion<Batch>) -> Result<()> {
        let began = Instant::now();
        self.answer(completion, move |this| async move {
            let nothing = || this.batch(Vec::new(), next.position, None, false);
            this.retried(|| this.take(next), || (began.elapsed() >= next.patience).then(nothing)).await
        })
    }

    /// Answer a request in the background. It replaces the previous request.
    fn answer<T, F>(self: &Arc<Self>, completion: Completion<T>, work: impl FnOnce(Arc<Self>) -> F) -> Result<()>
    where
        T: 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let mut asking = self.asking.lock();
        if self.is_closed.load(Ordering::Acquire) {
            return Err(Error::Closed("subscription"));
        }
        let (mut closed, work) = (self.owner.is_closed.subscribe(), work(Arc::clone(self)));
        let answering = runtime::handle()?.spawn(async move {
            let result = tokio::select! {
                biased;
                _ = closed.wait_for(|&is_closed| is_closed) => Err(Error::StoreClosed),
                result = work => result,
            };
            completion.finish(result);
        });
        if let Some(given_up) = asking.replace(answering.abort_handle()) {
            given_up.abort();
        }
        Ok(())
    }

    /// Answer the pending request, or the next one, with the events known by now, even if there are none.
    pub fn nudge(&self) {
        self.nudged.notify_one();
    }

    /// Wait until durable subscriptions may have been changed otherwise than so often.
    async fn changed(&self, heeded: Option<u64>) {
        match heeded {
            // The sender is part of the feed.
            Some(heeded) => drop(self.feed.wakeup.durable.subscribe().wait_for(|changes| *changes != heeded).await),
            None => pending().await,
        }
    }

    /// End the subscription. The feed ends with its last subscription. In a forked child this does nothing, because the
    /// subscription belongs to the parent.
    pub fn close(&self) {
        if self.pid != std::process::id() || self.is_closed.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Some(asking) = self.asking.lock().take() {
            asking.abort(); // its completion reports "closed"
        }
        self.owner.subscriptions.fetch_sub(1, Ordering::Relaxed);
        self.feed.leave();
    }

    /// Repeat an attempt while its errors are transient, until `instead` returns a value.
    async fn retried<T, F>(&self, attempt: impl Fn() -> F, instead: impl Fn() -> Option<T>) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let mut backoff = Backoff::default();
        loop {
            // A failure of the keeper is final. A failure of this subscription may be cured by trying again, as the
            // keeper does.
            if let Some(error) = self.feed.progress.borrow().failure.clone() {
                return Err(error);
            }
            match attempt().await {
                // A statement that takes too long will do so again.
                Err(error) if passes(&error) && !is_cancelled(&error) => match instead() {
                    Some(answer) => return Ok(answer),
                    None => sleep(backoff.next_delay()).await,
                },
                result => return result,
            }
        }
    }

    async fn find_start(&self, start: Start) -> Result<Anchor> {
        let feed = &self.feed;
        self.check_filter().await?;
        match start {
            Start::End => {
                let settled = feed.settler.settle_now(&feed.table).await?;
                reader::latest_up_to(&self.owner.pool, &feed.table, settled).await
            }
            Start::After(version) => {
                self.check_position(version).await?;
                Ok(Anchor { version, ..Anchor::default() })
            }
            Start::AfterEvent(anchor) => {
                // What changes after the keeper has begun, it notices itself.
                let mut progress = feed.progress.subscribe();
                let has_begun = |progress: &Progress| progress.position.is_some() || progress.failure.is_some();
                progress.wait_for(has_begun).await.map_err(|_| Error::StoreClosed)?;
                self.check_anchor(&anchor).await?;
                Ok(anchor)
            }
        }
    }

    /// Let the server refuse values with characters that its encoding lacks. In memory they would match nothing.
    async fn check_filter(&self) -> Result<()> {
        if self.filter.is_ascii() {
            return Ok(());
        }
        let filter = (*self.filter).clone();
        let query = Query { since: 0, until: i64::MAX, limit: 0, is_backwards: false, filter };
        let (sql, parameters) = reader::sql(&self.feed.table, &query);
        let mut connection = self.owner.pool.get().await?;
        connection.query("read events", &sql, &reader::binds(&parameters), false).await.map(drop)
    }

    /// Check that the sequence has assigned a position. The keeper checks its own position; a subscription may be ahead
    /// of it.
    async fn check_position(&self, position: i64) -> Result<()> {
        let last = reader::last_version(&self.owner.pool, &self.feed.table).await?;
        if position > last { Err(reader::rewound(&self.feed.table, position, last)) } else { Ok(()) }
    }

    async fn check_anchor(&self, anchor: &Anchor) -> Result<()> {
        let Feed { settler, table, .. } = &*self.feed;
        let (pool, binds) = (&self.owner.pool, [(&anchor.version as _, Type::INT8)]);
        let rows = pool.get().await?.query("look for an event", &settler.sql_anchor, &binds, false).await?;
        if anchor.is_in(&rows)? {
            return Ok(());
        }
        Err(anchor.rewound(table, &rows, reader::last_version(pool, table).await?))
    }

    async fn take(&self, next: Next) -> Result<Batch> {
        let Next { position: begun, limit, reports_progress, tells_caught_up, patience, heeded } = next;
        let deadline = tokio::time::Instant::now() + patience;
        let (progress, newcomers) = (&self.feed.progress, &self.feed.newcomers);
        let everything = Arc::default();
        let filter = if reports_progress { &everything } else { &self.filter };
        let (mut position, mut id, mut is_over) = (begun, None, false);
        loop {
            // Asked before the progress: a read that was there for this subscription is part of it.
            let is_served = newcomers.is_served(self.number);
            let now = progress.borrow().clone();
            if let Some(error) = now.failure {
                return Err(error);
            }
            let has_begun = is_served && !now.is_beginning;
            if let Some(settled) = now.position.as_ref().filter(|settled| settled.version > position) {
                let batch = self.take_settled(position, settled, limit).await?;
                let is_caught_up = batch.is_caught_up && has_begun;
                if !batch.events.is_empty() {
                    return Ok(Batch { is_caught_up, ..batch });
                }
                (position, id) = (batch.position, batch.position_id);
                is_over = is_over || tokio::time::Instant::now() >= deadline || self.is_called(heeded).await;
            }
            let is_read = now.position.as_ref().is_some_and(|settled| settled.version <= position);
            let is_caught_up = is_read && has_begun;
            if is_over || is_caught_up && (tells_caught_up || reports_progress && position > begun) {
                if now.position.is_some_and(|settled| settled.version < position) {
                    self.check_position(position).await?;
                }
                return Ok(self.batch(Vec::new(), position, id, is_caught_up));
            }
            if now.position.is_some() && !is_read {
                continue;
            }
            let is_current = || {
                let current = progress.borrow();
                let is_same = current.position == now.position && current.is_beginning == now.is_beginning;
                is_same && current.failure.is_none()
            };
            let Some(mut place) = self.feed.waiting.enter(filter, is_current) else { continue };
            let woken = tokio::select! {
                woken = &mut place.woken => Some(woken.ok()),
                () = newcomers.served(self.number), if !is_served => Some(None),
                () = self.nudged.notified() => None,
                () = self.changed(heeded) => None,
                () = tokio::time::sleep_until(deadline) => None,
            };
            is_over = woken.is_none();
            // Of what has come meanwhile, nothing up to here was for this subscription.
            let passed = woken.unwrap_or_else(|| place.leave(|| progress.borrow().position.clone()));
            if let Some(passed) = passed.filter(|passed| passed.version > position) {
                (position, id) = (passed.version, Some(passed.id).filter(|id| !id.is_empty()));
            }
        }
    }

    /// Whether the request is to be answered with what is known: there was a nudge since the last one was answered, or a
    /// change of durable subscriptions.
    async fn is_called(&self, heeded: Option<u64>) -> bool {
        tokio::select! {
            biased;
            () = self.nudged.notified() => true,
            () = self.changed(heeded) => true,
            () = std::future::ready(()) => false,
        }
    }

    fn batch(
        &self,
        events: Vec<Arc<StoredEvent>>,
        position: i64,
        position_id: Option<Arc<str>>,
        is_caught_up: bool,
    ) -> Batch {
        let reconnects = self.feed.wakeup.reconnects() - self.reconnects_before;
        Batch { events, position, position_id, is_caught_up, reconnects }
    }

    /// A batch that ends with its last event if it `is_full`, and otherwise at `end`, up to where was looked.
    fn batch_up_to(&self, events: Vec<Arc<StoredEvent>>, end: &Anchor, settled: &Anchor, is_full: bool) -> Batch {
        let end = match events.last().filter(|_| is_full) {
            Some(event) => Anchor::of(event),
            None => end.clone(),
        };
        let id = (!end.id.is_empty()).then_some(end.id);
        self.batch(events, end.version, id, end.version >= settled.version)
    }

    /// The events after a position, up to a settled version, from the ring or from a page of the table.
    async fn take_settled(&self, position: i64, settled: &Anchor, limit: usize) -> Result<Batch> {
        if let Some((events, is_full)) = self.feed.ring_after(position, settled.version, limit, &self.filter) {
            return Ok(self.batch_up_to(events, settled, settled, is_full));
        }
        loop {
            match self.read_page(position, settled, limit).await {
                Err(error) if self.pages.shrink(&error) => {}
                Err(error) if is_cancelled(&error) => {
                    self.feed.stats.lock().page_timeouts += 1;
                    self.feed.timeouts.failed(&error);
                    let is_smaller = if self.filter.is_empty() {
                        self.pages.halve(self.page_rows(limit))
                    } else {
                        self.window.lock().shrink()
                    };
                    if !is_smaller {
                        return Err(error);
                    }
                }
                batch => return batch,
            }
        }
    }

    /// Number of events to ask for, where `limit` are wanted.
    fn page_rows(&self, limit: usize) -> i64 {
        self.pages.rows(i64::try_from(limit).unwrap_or(i64::MAX))
    }

    /// Read a page of the table. With a filter it covers a window of versions only, so that the work is bounded although
    /// nothing may match.
    async fn read_page(&self, position: i64, settled: &Anchor, limit: usize) -> Result<Batch> {
        let Feed { settler, table, stats, .. } = &*self.feed;
        stats.lock().pages += 1;
        let limit = self.page_rows(limit);
        // Without a filter, events that are not settled are removed here and not by the statement; see `reader::sql`.
        let until = if self.filter.is_empty() { i64::MAX } else { self.window.lock().end(position, settled.version) };
        let query = Query { since: position, until, limit, is_backwards: false, filter: (*self.filter).clone() };
        let (sql, parameters) = reader::sql(table, &query);
        let (binds, sql_latest) = (reader::binds(&parameters), reader::sql_latest(table));
        let end = until.min(settled.version);
        let clock = if self.filter.is_empty() { NOTHING } else { CLOCK };
        let requests = [
            clock,
            (&*sql, &*binds),
            clock,
            (&*settler.sql_anchor, &[(&settled.version as _, Type::INT8)][..]),
            (&sql_latest, &[(&end, Type::INT8)]),
        ];
        self.owner.pool.has_seen(settled.version);
        let mut connection = self.owner.pool.get().await?;
        connection.set_answer_limit_bytes(self.pages.limit_bytes());
        let [began, rows, ended, at_anchor, at_end] = connection.pipeline("read events", requests, false).await?;
        drop(connection);
        if !settled.is_in(&at_anchor)? {
            let last = reader::last_version(&self.owner.pool, table).await?;
            return Err(settled.rewound(table, &at_anchor, last));
        }
        if let (Some(began), Some(ended)) = (time(&began)?, time(&ended)?) {
            let micros = u64::try_from(ended.saturating_sub(began)).unwrap_or_default();
            self.window.lock().took(Duration::from_micros(micros));
        }
        let mut events = reader::events(rows)?;
        self.pages.took(limit, events.len(), reader::size_bytes(&events));
        events.retain(|event| event.version <= settled.version);
        let is_full = i64::try_from(events.len()).is_ok_and(|count| count >= limit);
        if let Some(last) = events.last().filter(|_| is_full) {
            self.window.lock().filled(last.version - position);
        }
        // The last event up to the end, if it is in this window. Otherwise the end is a gap, which is as final.
        let last = Anchor::from_rows(&at_end)?;
        let end = if last.version > position { last } else { Anchor { version: end, ..Anchor::default() } };
        Ok(self.batch_up_to(events, &end, settled, is_full))
    }
}

/// The statement that reads the server's clock.
const CLOCK: Statement<'static> = ("SELECT pg_catalog.clock_timestamp()", &[]);

/// The time that it has read, in microseconds.
fn time(rows: &[Row]) -> Result<Option<i64>> {
    rows.first().map_or(Ok(None), |row| micros(row, 0))
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.close();
    }
}
