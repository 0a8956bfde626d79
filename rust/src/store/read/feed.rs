//! One keeper reads every event once, in settled order, into a ring that all subscriptions share.
//!
//! ```text
//! wake-up ──► keeper (watermark) ──► ring, bounded ──► subscriptions that keep up
//!                                         └─ behind it: pages from the table, up to the watermark
//! ```
//!
//! Each subscription requests the events after its own position. Therefore a slow subscription does not affect the
//! others, an abandoned answer loses no events, and the change from pages to the ring neither loses nor repeats events.
//! Positions are versions of events that were read, never of gaps: a sequence that goes back after a crash assigns
//! again only versions that no reader has seen.
//!
//! Every read also reads the [`Anchor`], the newest event that was delivered, so that a table that went back in time is
//! noticed before anything of its new history is delivered.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex as AsyncMutex, Notify, watch};
use tokio::time::{sleep, sleep_until, timeout, timeout_at};
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use crate::connect::backoff::Backoff;
use crate::connect::outage::Outage;
use crate::connect::runtime;
use crate::error::{Error, Result};
use crate::lock::Mutex;
use crate::store::event::{COLUMNS, StoredEvent};
use crate::store::filter::{Filter, Looked};
use crate::store::pool::{Bind, Pool};
use crate::store::read::anchor::Anchor;
use crate::store::read::mark::Marker;
use crate::store::read::newcomers::Newcomers;
use crate::store::read::pace::PAUSE;
use crate::store::read::page_size::PageSize;
use crate::store::read::reader::{self, Known, Query, Settled, Settler, Statement};
use crate::store::read::waiting::Waiting;
use crate::store::read::wakeup::Wakeup;
use crate::store::table::{self, Table};

/// Maximum number of events in one read of the keeper.
const PAGE: i64 = 1000;
/// Maximum number of events in the ring.
const RING_COUNT: usize = 10_000;
/// Maximum size of the events in the ring.
const RING_BYTES: usize = 16 * 1024 * 1024;
/// Longest delay between looks at the locks of writers that may fill a gap, of a reader that is alone. Looks are needed,
/// because a rollback sends no notification.
const LOOK_LAST: Duration = Duration::from_millis(50);
/// Delay after a wake-up that has not filled the gap.
const WAKE_DELAY: Duration = Duration::from_millis(2);

/// Number of versions that the keeper reads rather than skips, after it has begun beside open writers.
const SKIP: i64 = 10_000;
/// How long the keeper tries to leave a mark when it ends.
const MARK_LIMIT: Duration = Duration::from_secs(1);
/// How often the table's properties are checked again, while there is nothing to read.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);

#[derive(Default)]
struct Ring {
    events: VecDeque<Arc<StoredEvent>>,
    bytes: usize,
    /// The ring holds every event after this version.
    floor: i64,
}

/// The keeper's progress, for waiting subscriptions.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress {
    /// All events up to this one are final and read; `None` before the first settled version is known.
    pub position: Option<Anchor>,
    /// What follows the position was not read yet, since the keeper has begun there.
    pub is_beginning: bool,
    pub failure: Option<Error>,
}

/// The result of one read of the keeper.
struct Read {
    events: Vec<Arc<StoredEvent>>,
    /// All events up to this version are final and read.
    end: i64,
    /// All versions up to this one are final, as far as this read knows.
    settled: i64,
    /// There is more to read.
    is_full: bool,
    /// The first event beyond the end, after a gap.
    beyond: Option<i64>,
}

/// How to read on.
enum How {
    /// The rows alone.
    Rows,
    /// The rows after a look at the locks.
    Look,
    /// The rows alone, after a look from which this is known.
    After(Known),
}

/// A gap that has been open for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// The time since when the gap is known.
    pub since: Instant,
    /// Transactions that may still fill it.
    pub holders: Vec<String>,
}

/// Counters.
#[derive(Debug, Clone, Default)]
pub struct FeedStats {
    /// All events up to this version are final and read; 0 before the first read.
    pub position: i64,
    /// Events the keeper has read.
    pub read: u64,
    /// Statements of the keeper that read rows.
    pub reads: u64,
    /// Pages read for subscriptions that were behind the ring.
    pub pages: u64,
    /// Pages, and reads of the keeper, that took longer than the server's `statement_timeout`, and were then read in
    /// smaller parts.
    pub page_timeouts: u64,
    /// How often the locks of writers were read.
    pub looks: u64,
    /// How often a waiting subscription was woken by an event.
    pub wakeups: u64,
    /// The gap that the keeper waits for.
    pub gap: Option<Gap>,
}

#[derive(Default)]
struct Life {
    subscriptions: usize,
    is_running: bool,
    is_closed: bool,
}

/// See the module documentation.
pub struct Feed {
    /// Connections for the keeper.
    pool: Arc<Pool>,
    pub(super) settler: Arc<Settler>,
    /// The table.
    pub table: Arc<Table>,
    /// Wakes the keeper.
    pub wakeup: Arc<Wakeup>,
    /// The reason why the keeper cannot read.
    pub outage: Outage,
    /// What has changed about the table without affecting readers.
    pub doubts: Outage,
    /// Statements of subscriptions that were cancelled because they took too long.
    pub timeouts: Outage,
    poll_interval: Duration,
    /// Reads the events after version `$1`, at most `$2`, if the event at that version has the id `$3`.
    sql_after: String,
    /// Reads the first events after version `$1`, at most `$2`.
    sql_first: String,
    ring: Mutex<Ring>,
    /// Changes only within a call of `waiting`.
    pub(super) progress: watch::Sender<Progress>,
    /// Subscriptions that wait for progress.
    pub(super) waiting: Waiting,
    /// Subscriptions that have begun and wait for a read.
    pub(super) newcomers: Newcomers,
    life: Mutex<Life>,
    stop: Notify,
    pub(super) stats: Mutex<FeedStats>,
    marker: AsyncMutex<Marker>,
    pages: PageSize,
}

impl Feed {
    /// A feed that starts with the first subscription.
    pub fn new(
        pool: Arc<Pool>,
        settler: Arc<Settler>,
        table: Arc<Table>,
        wakeup: Arc<Wakeup>,
        poll_interval: Duration,
    ) -> Arc<Self> {
        let name = &table.name;
        let sql = |is_there: &str| {
            format!("SELECT {COLUMNS} FROM {name} WHERE version > $1{is_there} ORDER BY version LIMIT $2")
        };
        Arc::new(Self {
            sql_after: sql(&format!(" AND (SELECT id FROM {name} WHERE version = $1) = $3")),
            sql_first: sql(""),
            pool,
            settler,
            table,
            wakeup,
            outage: Outage::default(),
            doubts: Outage::default(),
            timeouts: Outage::default(),
            poll_interval,
            ring: Mutex::default(),
            progress: watch::Sender::new(Progress::default()),
            waiting: Waiting::default(),
            newcomers: Newcomers::default(),
            life: Mutex::default(),
            stop: Notify::new(),
            stats: Mutex::default(),
            marker: AsyncMutex::default(),
            pages: PageSize::default(),
        })
    }

    /// Count a new subscription; the feed runs while there are any. Returns its number among the newcomers.
    pub(super) fn enter(self: &Arc<Self>) -> Result<u64> {
        let mut life = self.life.lock();
        if life.is_closed {
            return Err(Error::StoreClosed);
        }
        if !life.is_running {
            self.set_progress(|progress| *progress = Progress::default());
            runtime::handle()?.spawn(run(Arc::clone(self)));
            life.is_running = true;
        }
        life.subscriptions += 1;
        Ok(self.newcomers.enter())
    }

    /// Count a subscription that has ended. The feed ends with the last one.
    pub(super) fn leave(&self) {
        let mut life = self.life.lock();
        life.subscriptions -= 1;
        if life.subscriptions == 0 {
            self.stop.notify_one();
        }
    }

    /// The matching events of the ring after a position, and whether there may be more of them; `None` if the ring does
    /// not reach back so far, or if only the server can tell whether an event matches.
    pub(super) fn ring_after(
        &self,
        position: i64,
        settled: i64,
        limit: usize,
        filter: &Filter,
    ) -> Option<(Vec<Arc<StoredEvent>>, bool)> {
        let ring = self.ring.lock();
        if position < ring.floor {
            return None;
        }
        let first = ring.events.partition_point(|event| event.version <= position);
        let mut events = Vec::new();
        for event in ring.events.range(first..) {
            if event.version > settled {
                break;
            }
            if filter.matches(&Looked::at(event))? {
                events.push(Arc::clone(event));
                if events.len() >= limit {
                    return Some((events, true));
                }
            }
        }
        Some((events, false))
    }

    /// End all subscriptions and the keeper.
    pub fn close(&self) {
        self.life.lock().is_closed = true;
        self.set_progress(|progress| progress.failure = Some(Error::StoreClosed));
        self.stop.notify_one();
    }

    /// Change the progress otherwise than by events, which everybody must know.
    fn set_progress(&self, change: impl FnOnce(&mut Progress)) {
        self.waiting.change(|| self.progress.send_modify(change));
    }

    /// What stores report, in a fixed order.
    pub fn reports(&self) -> [&Outage; 4] {
        [&self.wakeup.outage, &self.outage, &self.doubts, &self.timeouts]
    }

    /// Counters.
    pub fn stats(&self) -> FeedStats {
        let position = self.progress.borrow().position.as_ref().map_or(0, |anchor| anchor.version);
        FeedStats { position, ..self.stats.lock().clone() }
    }

    /// The keeper's task: determine the settled version, and read on from there.
    async fn keep(&self) -> Error {
        let mut backoff = Backoff::default();
        let mut position = None;
        loop {
            let Err(error) = self.keep_session(&mut position, &mut backoff).await;
            if !passes(&error) {
                return error;
            }
            self.outage.failed(&error);
            sleep(backoff.next_delay()).await;
        }
    }

    async fn keep_session(&self, position: &mut Option<Anchor>, backoff: &mut Backoff) -> Result<Infallible> {
        let (mut from, mut skips_to) = match position {
            Some(position) => (position.clone(), None),
            None => self.find_beginning().await?,
        };
        *position = Some(from.clone());
        *self.marker.lock().await = Marker::new(&mut self.pool.get().await?, &self.table).await?;
        let mut how = How::Rows;
        let (mut checked, mut looked_at) = (Instant::now(), Instant::now());
        loop {
            if matches!(how, How::Look) && checked.elapsed() >= CHECK_INTERVAL {
                self.check_table().await?;
                checked = Instant::now();
            }
            let (has_looked, is_look) = (!matches!(how, How::Rows), matches!(how, How::Look));
            let come = self.newcomers.come();
            let read = match self.read_on(&from, how).await {
                Err(error) if self.pages.shrink(&error) => {
                    how = How::Rows;
                    continue;
                }
                Err(error) if is_cancelled(&error) && self.pages.halve(self.pages.rows(PAGE)) => {
                    self.stats.lock().page_timeouts += 1;
                    self.timeouts.failed(&error);
                    how = How::Rows;
                    continue;
                }
                read => read?,
            };
            if has_looked {
                looked_at = Instant::now();
            }
            backoff.reset();
            self.outage.ended();
            if skips_to.is_some_and(|version| read.settled >= version) {
                // Whoever was open at the beginning has ended.
                skips_to = None;
                if read.settled - read.end > SKIP {
                    from = self.begin_at(read.settled).await?;
                    *position = Some(from.clone());
                    how = How::Rows;
                    continue;
                }
            }
            if read.end > from.version {
                from = self.append(&from, &read.events, read.end);
                *position = Some(from.clone());
            }
            if !read.is_full || read.beyond.is_some() {
                if self.progress.borrow().is_beginning {
                    self.set_progress(|progress| progress.is_beginning = false);
                }
                // What follows a gap comes as soon as nobody may fill it, which only a look can tell.
                if read.beyond.is_none() || is_look {
                    self.newcomers.serve(come);
                }
            }
            self.leave_mark(&from).await?;
            how = match read.beyond {
                None => {
                    self.set_gap(None);
                    // The poll detects a disabled trigger, a lost wake-up and a table that was set back. It is not put off
                    // by what happens meanwhile.
                    let look = (looked_at + self.poll_interval).max(self.settler.next_look(PAUSE));
                    if !read.is_full {
                        tokio::select! {
                            () = self.wakeup.changed.notified() => {}
                            () = self.newcomers.unserved() => {}
                            () = sleep_until(look.min(Instant::now() + self.poll_interval).into()) => {}
                        }
                    }
                    if Instant::now() >= look { How::Look } else { How::Rows }
                }
                Some(_) if !has_looked && Instant::now() >= self.settler.next_look(PAUSE) => How::Look,
                Some(beyond) => self.wait_at_gap(&from, beyond).await?,
            };
        }
    }

    /// Wait until the gap between the anchor and an event beyond is filled, or final. The events beyond are not read again
    /// meanwhile.
    ///
    /// Newcomers let it look soon: whether they have caught up depends on whether somebody may still fill the gap.
    async fn wait_at_gap(&self, anchor: &Anchor, beyond: i64) -> Result<How> {
        let (since, until, filter) = (anchor.version, beyond - 1, Filter::default());
        let (sql, parameters) =
            reader::sql(&self.table, &Query { since, until, limit: 1, is_backwards: false, filter });
        let binds = reader::binds(&parameters);
        let reads = [(&*sql, &*binds), (&*self.settler.sql_anchor, &[(&anchor.version as _, Type::INT8)][..])];
        let began = Instant::now();
        let (mut delay, mut read_at) = (PAUSE, began);
        loop {
            let known = self.settler.known();
            if known.settled >= until {
                return Ok(How::After(known)); // others of this process have looked
            }
            let is_asked = self.newcomers.are_unserved();
            // With many readers there may be several polls before the next look.
            let (next, poll) =
                (self.settler.next_look(if is_asked { PAUSE } else { delay }), read_at + self.poll_interval);
            let wanted = async {
                tokio::select! {
                    () = self.wakeup.changed.notified() => true,
                    () = self.newcomers.unserved(), if !is_asked => false,
                }
            };
            let now = Instant::now();
            let is_woken = if now < next { timeout_at(next.min(poll).into(), wanted).await.ok() } else { None };
            if is_woken == Some(false) {
                continue;
            }
            if is_woken.is_some() || Instant::now() < next {
                read_at = Instant::now();
                let [rows, at_anchor] = self.pool.get().await?.pipeline("read events", reads, false).await?;
                if !rows.is_empty() || !anchor.is_in(&at_anchor)? {
                    return Ok(How::Rows);
                }
                if is_woken.is_some() {
                    delay = PAUSE;
                    sleep(WAKE_DELAY).await;
                }
                continue;
            }
            let come = self.newcomers.come();
            let (settled, [rows, _]) = self.look(anchor, reads).await?;
            self.set_gap(Some(settled.holders.into_iter().collect()));
            let is_filled = !rows.is_empty() || settled.settled >= until;
            if !is_filled {
                self.newcomers.serve(come);
            }
            // Without notifications the gap may be filled while others keep the watermark where it is.
            if is_filled || began.elapsed() >= self.poll_interval {
                return Ok(How::After(Known { settled: settled.settled, server: Some(settled.server) }));
            }
            delay = (delay * 2).min(LOOK_LAST);
        }
    }

    /// Look at the locks of writers and read rows after that, and the anchor at last.
    async fn look(&self, anchor: &Anchor, reads: [Statement<'_>; 2]) -> Result<(Settled, [Vec<Row>; 2])> {
        self.stats.lock().looks += 1;
        let (settled, rows) = self.settler.step_and_read(&self.table, reads, self.pages.limit_bytes()).await?;
        let [_, at_anchor] = &rows;
        if !anchor.is_in(at_anchor)? {
            return Err(anchor.rewound(&self.table, at_anchor, settled.last));
        }
        if settled.last < anchor.version {
            return Err(self.table.is_behind(settled.last, anchor.version));
        }
        Ok((settled, rows))
    }

    /// The keeper's first position, before which no event can be added any more. If no writer is open, it skips the
    /// history. Otherwise it begins at the settled mark, or with the first event, and skips the rest of the history once
    /// the returned version is final.
    async fn find_beginning(&self) -> Result<(Anchor, Option<i64>)> {
        self.stats.lock().looks += 1;
        let now = self.settler.step(&self.table).await?;
        Ok((self.begin_at(now.settled).await?, (now.settled < now.last).then_some(now.last)))
    }

    /// Go on at the last event up to a settled version, with an empty ring.
    async fn begin_at(&self, settled: i64) -> Result<Anchor> {
        let position = reader::latest_up_to(&self.pool, &self.table, settled).await?;
        *self.ring.lock() = Ring { floor: position.version, ..Ring::default() };
        self.set_progress(|progress| {
            progress.position = Some(position.clone());
            progress.is_beginning = true;
        });
        Ok(position)
    }

    /// Write the settled mark, if it is time.
    async fn leave_mark(&self, position: &Anchor) -> Result<()> {
        let mut marker = self.marker.lock().await;
        if marker.is_due(position) {
            marker.write(&mut self.pool.get().await?, position).await?;
        }
        Ok(())
    }

    async fn leave_last_mark(&self) -> Result<()> {
        let position = self.progress.borrow().position.clone().unwrap_or_default();
        let mut marker = self.marker.lock().await;
        if marker.has_written(&position) {
            return Ok(());
        }
        let mut connection = self.pool.get().await?;
        *marker = Marker::new(&mut connection, &self.table).await?;
        marker.write(&mut connection, &position).await
    }

    async fn check_table(&self) -> Result<()> {
        let doubts = table::check_again(&mut self.pool.get().await?, &self.table).await?;
        if doubts.is_empty() {
            self.doubts.ended();
        }
        for doubt in doubts {
            self.doubts.failed(&doubt);
        }
        Ok(())
    }

    /// Read the events after the anchor. When their versions have no gap, one statement suffices. The locks are
    /// read only when there is a gap, and from time to time.
    async fn read_on(&self, anchor: &Anchor, how: How) -> Result<Read> {
        let from = anchor.version;
        let limit = self.pages.rows(PAGE);
        let all = Query { since: from, until: i64::MAX, limit, is_backwards: false, filter: Filter::default() };
        let (sql, parameters) = reader::sql(&self.table, &all);
        let binds = reader::binds(&parameters);
        let reads = [(&*sql, &*binds), (&*self.settler.sql_anchor, &[(&anchor.version as _, Type::INT8)][..])];
        self.stats.lock().reads += 1;
        let read = match how {
            How::Rows => self.read_rows(anchor, limit).await?.map(|rows| (rows, from)),
            How::Look => None,
            How::After(known) => {
                let mut connection = self.pool.get().await?;
                connection.set_answer_limit_bytes(self.pages.limit_bytes());
                let [rows, at_anchor] = connection.pipeline("read events", reads, false).await?;
                // What was known of another server is of no use.
                let is_same = Some(Anchor::server_of(&at_anchor)?) == known.server;
                (is_same && anchor.is_in(&at_anchor)?).then_some((rows, known.settled))
            }
        };
        let (rows, settled) = if let Some(read) = read {
            read
        } else {
            let (settled, [rows, _]) = self.look(anchor, reads).await?;
            (rows, settled.settled)
        };
        let events = reader::events(rows)?;
        self.pages.took(limit, events.len(), reader::size_bytes(&events));
        self.pool.has_seen(events.last().map_or(0, |event| event.version));
        let end = reader::final_up_to(settled, from, &events);
        let beyond = events.iter().map(|event| event.version).find(|version| *version > end);
        Ok(Read {
            end,
            settled,
            is_full: i64::try_from(events.len()).is_ok_and(|count| count >= limit),
            beyond,
            events,
        })
    }

    /// Read the rows after the anchor, in the hottest statement of all: it returns none if the anchor is gone. Returns
    /// `None` in that case.
    async fn read_rows(&self, anchor: &Anchor, limit: i64) -> Result<Option<Vec<Row>>> {
        let (version, id) = (&anchor.version, &&*anchor.id);
        let mut connection = self.pool.get().await?;
        connection.set_answer_limit_bytes(self.pages.limit_bytes());
        let binds: [Bind<'_>; 3] = [(version, Type::INT8), (&limit, Type::INT8), (id, Type::TEXT)];
        let (sql, binds) = if *version > 0 { (&self.sql_after, &binds[..]) } else { (&self.sql_first, &binds[..2]) };
        let rows = connection.query("read events", sql, binds, false).await?;
        if rows.is_empty() && *version > 0 {
            let at_anchor = [(version as _, Type::INT8)];
            let at_anchor = connection.query("read events", &self.settler.sql_anchor, &at_anchor, false).await?;
            return Ok(anchor.is_in(&at_anchor)?.then_some(rows));
        }
        Ok(Some(rows))
    }

    fn set_gap(&self, holders: Option<Vec<String>>) {
        let gap = &mut self.stats.lock().gap;
        *gap = holders.map(|holders| Gap { since: gap.as_ref().map_or_else(Instant::now, |gap| gap.since), holders });
    }

    /// Append the events up to `end`, the version of one of them, which is returned.
    fn append(&self, before: &Anchor, events: &[Arc<StoredEvent>], end: i64) -> Anchor {
        let count = events.partition_point(|event| event.version <= end);
        let events = events.get(..count).unwrap_or_default();
        let anchor = events.last().map(|event| Anchor::of(event)).unwrap_or_default();
        {
            let mut ring = self.ring.lock();
            for event in events {
                ring.bytes += event.size_bytes();
                ring.events.push_back(Arc::clone(event));
            }
            self.stats.lock().read += count as u64;
            // The ring is full: drop the oldest events. Subscriptions behind them read pages.
            while ring.events.len() > RING_COUNT || ring.bytes > RING_BYTES {
                let Some(oldest) = ring.events.pop_front() else { break };
                ring.bytes -= oldest.size_bytes();
                ring.floor = oldest.version;
            }
        }
        let change = |progress: &mut Progress| progress.position = Some(anchor.clone());
        let woken = self.waiting.tell(events, before, || self.progress.send_modify(change));
        self.stats.lock().wakeups += woken;
        anchor
    }
}

/// Whether another attempt can help. The store was opened successfully, so a refused or lost connection is an outage now,
/// whatever its SQLSTATE. Others may have locked the table for longer than this role may wait (55P03), or be in the way
/// otherwise (class 40).
pub(super) fn passes(error: &Error) -> bool {
    let is_conflict = matches!(error, Error::Database { report, .. }
        if report.sqlstate == "55P03" || report.sqlstate.starts_with("40"));
    is_conflict || error.is_transient() || error.is_connection_lost()
}

/// Whether the server cancelled a statement, because it took too long or because an administrator asked for it.
pub(super) fn is_cancelled(error: &Error) -> bool {
    matches!(error, Error::Database { report, .. } if report.sqlstate == "57014")
}

async fn run(feed: Arc<Feed>) {
    loop {
        let error = tokio::select! {
            error = feed.keep() => Some(error),
            error = feed.wakeup.run(&feed.table) => Some(error),
            () = feed.stop.notified() => None,
        };
        if error.is_none() {
            // The last subscription has ended. This is for the next reader, and nobody waits long for it.
            let _ = timeout(MARK_LIMIT, feed.leave_last_mark()).await;
        }
        feed.wakeup.rest();
        feed.outage.ended();
        feed.settler.close().await;
        let mut life = feed.life.lock();
        // A new subscription may have been made before the keeper stopped.
        if error.is_none() && life.subscriptions > 0 && !life.is_closed {
            drop(life);
            feed.set_progress(|progress| *progress = Progress::default());
            continue;
        }
        life.is_running = false;
        if let Some(error) = error {
            feed.set_progress(|progress| progress.failure = Some(error));
        }
        return;
    }
}
