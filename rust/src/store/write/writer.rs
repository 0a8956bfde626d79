//! Storing: concurrent calls merged into one commit, expected versions, idempotence, and commits in doubt.
//!
//! When nothing is in flight, a call is sent at once. Calls that arrive while a group is in flight form the next group.
//! There is no timer. Each call stays atomic and has a result of its own.
//!
//! Every writer of this package takes an advisory lock per aggregate before it draws versions: shared for unconditional
//! events, exclusive for events with an expected version, and exclusive for all where the guard trigger is. Therefore,
//! between the check of an expected version and the commit, no other writer of this package can add an event to the
//! aggregate, or hold a lower version that commits later.
//!
//! A group never waits for such a lock, and only briefly for an event id that another transaction holds. Calls that
//! cannot be stored with their group go to the waiting room. There, one task tries all of them together, again and
//! again, on one connection, which it returns between the attempts. So it makes no difference to anybody else how many
//! calls wait.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::connect::backoff::Backoff;
use crate::connect::runtime;
use crate::error::{Error, Result};
use crate::handover::completion::Completion;
use crate::lock::Mutex;
use crate::store::event::NewEvent;
use crate::store::pool::Pool;
use crate::store::table::{self, Table};
use crate::store::write::calls::{Bounds, Call, Calls, Position, Request, Ticket, WriterStats, whose_turn_to_queue};
use crate::store::write::copy::copy;
use crate::store::write::storing::{self, Attempt, Layout, Outcome, Taking};

/// Maximum number of attempts after conflicts with other writers that waiting does not end.
const ATTEMPTS: u32 = 10;
/// Pause of the waiting room after an attempt in vain, which is doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
/// Longest pause while locks or ids are held by others.
const LAST_PAUSE: Duration = Duration::from_millis(50);
/// Longest pause while the server is away.
const LAST_PAUSE_AWAY: Duration = Duration::from_secs(1);
/// One of so many attempts is for a call that queues up for its locks.
const QUEUES_EVERY: u64 = 8;
/// Shortest time between two looks at the table's layout after conflicts.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What a writer needs to know.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Maximum number of events in one statement.
    pub batch_size: usize,
    /// How long a call waits for a lock, or for an id, that another transaction holds.
    pub lock_wait: Duration,
    /// How long a call waits for a server that is away, and how long it tries to find out whether a commit in doubt took
    /// place.
    pub away_limit: Duration,
    /// How many calls may wait.
    pub bounds: Bounds,
}

/// See the module documentation.
pub struct Writer {
    pool: Arc<Pool>,
    settings: Settings,
    layout: Mutex<Arc<Layout>>,
    /// When the layout was last looked at.
    looked_at: Mutex<Option<Instant>>,
    calls: Mutex<Calls>,
    /// A call has come to the waiting room.
    arrival: Notify,
}

impl Writer {
    /// A writer, which connects on first use.
    pub fn new(pool: Arc<Pool>, table: Arc<Table>, settings: Settings) -> Arc<Self> {
        Arc::new(Self {
            pool,
            settings,
            layout: Mutex::new(Layout::new(table)),
            looked_at: Mutex::default(),
            calls: Mutex::new(Calls::new(settings.bounds)),
            arrival: Notify::new(),
        })
    }

    /// Store the events of a call. Its completion is finished after the commit. Returns the call's ticket, with which it
    /// keeps its place among others if it finds no room and comes again.
    pub fn store(self: &Arc<Self>, request: Request, ticket: Ticket) -> Result<Ticket> {
        let mut calls = self.calls.lock();
        let ticket = calls.push(request, ticket);
        if !calls.is_queue_empty() && !std::mem::replace(&mut calls.is_running, true) {
            runtime::handle()?.spawn(run(Arc::clone(self)));
        }
        Ok(ticket)
    }

    /// Finish `waiter` once the call with this ticket can be accepted, or none will be any more. Returns the ticket.
    pub fn wait_for_room(&self, waiter: Completion, ticket: Ticket) -> Ticket {
        self.calls.lock().wait(waiter, ticket)
    }

    /// Let others go before a call that found no room and will not come again.
    pub fn give_up(&self, ticket: Ticket) {
        self.calls.lock().give_up(ticket);
    }

    /// Store events by `COPY`, in one transaction, under the same locks as other calls. Events that are there already are
    /// an error, or left out if `skips_existing`; then a commit in doubt is tried again. Returns the number of events
    /// stored.
    pub async fn import(&self, events: &[NewEvent], skips_existing: bool) -> Result<i64> {
        let (mut began, mut away, mut is_doubtful, mut conflicts) = (Instant::now(), None, false, 0);
        let mut doubtful = 0;
        let mut backoff = Backoff::up_to(LAST_PAUSE_AWAY);
        loop {
            let layout = self.layout();
            check(events, &layout.table)?;
            match self.import_in(&layout, events, skips_existing, &mut doubtful).await {
                Err(error) if is_lock_timeout(&error) => {
                    let aggregates: Vec<&str> = events.iter().map(|event| event.aggregate_id.as_str()).collect();
                    let holders = storing::holders(&self.pool, &layout.sql, &aggregates).await;
                    return Err(holders.locked(&aggregates, began.elapsed()));
                }
                // Nothing of it is there. After a deadlock the guard may be, which was not; and an event with the same
                // id, which was not, either. Behind a pooler, nothing will be prepared.
                Err(error)
                    if is_conflict(&error)
                        && (skips_existing || is_deadlock(&error) || is_forgotten(&error))
                        && conflicts < ATTEMPTS =>
                {
                    conflicts += 1;
                    self.look_again_after_conflict().await;
                }
                Err(error) if error.is_connection_lost() && (skips_existing || !is_in_doubt(&error)) => {
                    let since = away.get_or_insert_with(Instant::now);
                    is_doubtful |= is_in_doubt(&error);
                    if since.elapsed() >= self.settings.away_limit || self.calls.lock().closes_at.is_some() {
                        return Err(if is_doubtful { in_doubt(error) } else { error });
                    }
                    tokio::time::sleep(backoff.next_delay()).await;
                    began = Instant::now();
                }
                Err(error) if is_in_doubt(&error) => return Err(in_doubt(error)),
                Err(error) => return Err(self.why_refused(events, error).await),
                result => return result,
            }
        }
    }

    /// Import once. `doubtful` is how many events the last commit in doubt was to store: if none is missing any more, it has
    /// stored them.
    async fn import_in(
        &self,
        layout: &Layout,
        events: &[NewEvent],
        skips_existing: bool,
        doubtful: &mut i64,
    ) -> Result<i64> {
        let mut connection = self.pool.get().await?;
        connection.set_patience(self.settings.lock_wait);
        storing::wait_for_locks(&mut connection, &layout.sql, events, self.settings.lock_wait).await?;
        let count = if skips_existing {
            storing::import_missing(&mut connection, &layout.sql, events).await?
        } else {
            copy(&mut connection, &layout.table.name, events).await?
        };
        connection.set_patience(Duration::ZERO);
        let committed = storing::commit_imported(&mut connection).await;
        let count = if count == 0 { *doubtful } else { count };
        if committed.as_ref().is_err_and(is_in_doubt) {
            *doubtful = count;
        }
        committed?;
        self.calls.lock().imported(count);
        Ok(count)
    }

    /// The table as it was when it was last looked at.
    pub fn table(&self) -> Arc<Table> {
        Arc::clone(&self.layout().table)
    }

    fn layout(&self) -> Arc<Layout> {
        Arc::clone(&self.layout.lock())
    }

    /// Look at the table again, and write as it is now.
    pub async fn look_again(&self) -> Result<()> {
        *self.looked_at.lock() = Some(Instant::now());
        let name = self.table().table_name.clone();
        let mut connection = self.pool.get().await?;
        if let Some(table) = table::find(&mut connection, &name).await? {
            *self.layout.lock() = Layout::new(Arc::new(table));
        }
        Ok(())
    }

    /// Look at the table again after a conflict, unless that has just been done: another process may have added the
    /// guard, under which writers that take shared locks deadlock.
    async fn look_again_after_conflict(&self) {
        if self.looked_at.lock().is_none_or(|at| at.elapsed() >= LOOK_EVERY) {
            // If it fails, the next conflict is another opportunity.
            let _ = self.look_again().await;
        }
    }

    /// The error of events that the server has refused with `error`. If a limit of go-sync-kit's trigger was the reason,
    /// which was not there when the table was last looked at, it says which one.
    async fn why_refused(&self, events: &[NewEvent], error: Error) -> Error {
        if error.is_about_a_value() && self.look_again().await.is_ok() {
            return check(events, &self.table()).err().unwrap_or(error);
        }
        self.or_behind(error).await
    }

    /// A version that exists already has a reason that no other attempt removes: the sequence is behind the table.
    async fn or_behind(&self, error: Error) -> Error {
        if !is_duplicate(&error) {
            return error;
        }
        let looked = async { table::check_sequence(&mut self.pool.get().await?, &self.table()).await };
        match looked.await {
            Err(behind @ Error::SchemaMismatch { .. }) => behind,
            _ => error,
        }
    }

    /// Accept no more calls. Those that are not finished within `limit` fail.
    pub fn close(&self, limit: Duration) {
        self.calls.lock().close(Instant::now() + limit);
        self.arrival.notify_one();
    }

    /// Whether no call is waiting or running.
    pub fn is_idle(&self) -> bool {
        self.calls.lock().is_idle()
    }

    /// Counters.
    pub fn stats(&self) -> WriterStats {
        self.calls.lock().stats()
    }

    /// Count a transaction, if it has stored events.
    fn count_group(&self, group: &[Call], outcomes: &[Outcome]) {
        let has_stored = |(call, outcome): (&Call, &Outcome)| match outcome {
            Outcome::Stored(positions) => positions.iter().any(|position| call.has_stored(position)),
            _ => false,
        };
        if group.iter().zip(outcomes).any(has_stored) {
            self.calls.lock().stats.groups += 1;
        }
    }

    fn finish(&self, call: Call, result: Result<Vec<Position>>) {
        if let Ok(positions) = &result {
            self.pool.has_seen(positions.last().map_or(0, |position| position.version));
        }
        self.calls.lock().finished(&call, &result);
        call.request.completion.finish(result);
    }

    fn finish_in_room(&self, call: Call, result: Result<Vec<Position>>) {
        self.calls.lock().leave_room(&call);
        self.finish(call, result);
    }

    /// Let calls wait in the room.
    fn send_to_room(self: &Arc<Self>, waiting: impl IntoIterator<Item = Call>) {
        let mut calls = self.calls.lock();
        for call in waiting {
            calls.send_to_room(call);
        }
        if !calls.is_room_empty() && !std::mem::replace(&mut calls.is_room_running, true) {
            tokio::spawn(serve(Arc::clone(self)));
        }
        self.arrival.notify_one();
    }
}

/// The writer's task: group after group until nothing waits.
async fn run(writer: Arc<Writer>) {
    loop {
        let group = {
            let mut calls = writer.calls.lock();
            let group = calls.take_group(writer.settings.batch_size);
            calls.is_running = !group.is_empty();
            group
        };
        if group.is_empty() {
            return;
        }
        commit(&writer, group).await;
    }
}

/// Store a group. Calls that it leaves out, and all calls of a group that fails, go to the waiting room.
async fn commit(writer: &Arc<Writer>, mut group: Vec<Call>) {
    let layout = writer.layout();
    // The trigger that serializes writers waits for the turn for any length of time.
    let result = if layout.table.is_serial || group.iter().any(|call| call.request.is_conditional()) {
        storing::store_trying(&writer.pool, &layout, &group).await
    } else {
        storing::store_free(&writer.pool, &layout, &group).await
    };
    let result = match result {
        Err(error) => Err(writer.or_behind(error).await),
        stored => stored,
    };
    match result {
        Ok(outcomes) => {
            writer.count_group(&group, &outcomes);
            let mut left_out = Vec::new();
            for (call, outcome) in group.into_iter().zip(outcomes) {
                match outcome {
                    Outcome::Stored(positions) => writer.finish(call, Ok(positions)),
                    Outcome::Refused(error) => writer.finish(call, Err(error)),
                    Outcome::LeftOut => left_out.push(call),
                }
            }
            if !left_out.is_empty() {
                writer.send_to_room(left_out);
            }
        }
        // What is wrong with the table concerns every call.
        Err(error) if is_final(&error) && (group.len() == 1 || matches!(error, Error::SchemaMismatch { .. })) => {
            for call in group {
                writer.finish(call, Err(error.clone()));
            }
        }
        Err(error) => {
            for call in &mut group {
                call.failed(&error);
            }
            writer.send_to_room(group);
        }
    }
}

/// The task of the waiting room: attempt after attempt until nobody waits. Newcomers are tried at once. What was tried in
/// vain waits for the end of the pause, whoever comes meanwhile.
async fn serve(writer: Arc<Writer>) {
    let (is_due, pause, attempts) = (true, FIRST_PAUSE, 0);
    let mut room = Room { writer: &writer, most_looked: usize::MAX, most: usize::MAX, is_due, pause, attempts };
    let mut due = Instant::now();
    loop {
        room.is_due = Instant::now() >= due;
        let (expired, calls) = {
            let mut calls = writer.calls.lock();
            let Settings { lock_wait, away_limit, .. } = writer.settings;
            let expired = calls.take_expired(lock_wait, away_limit);
            calls.is_room_running = !expired.is_empty() || !calls.is_room_empty();
            if !calls.is_room_running {
                return;
            }
            (expired, calls.take_from_room(room.is_due))
        };
        let is_waiting = expired.is_empty() && calls.is_empty();
        room.give_up(expired).await;
        if is_waiting {
            tokio::select! {
                () = tokio::time::sleep_until(due.into()) => {}
                () = writer.arrival.notified() => {}
            }
        } else if !calls.is_empty() && !room.attempt(calls).await && room.is_due {
            due = Instant::now() + room.pause.mul_f64(0.5 + rand::random::<f64>() / 2.0);
        }
    }
}

struct Room<'a> {
    writer: &'a Arc<Writer>,
    /// How many calls an attempt takes at most: halved when the server refuses to take their locks, to find the call that
    /// is to blame, and doubled when it does so.
    most_looked: usize,
    /// The same for storing those whose locks were free.
    most: usize,
    /// Whether this attempt is for all calls, and not for newcomers alone.
    is_due: bool,
    pause: Duration,
    attempts: u64,
}

impl Room<'_> {
    /// Try to store calls. Returns whether to try again at once.
    async fn attempt(&mut self, mut calls: Vec<Call>) -> bool {
        let Self { writer, .. } = *self;
        self.attempts += u64::from(self.is_due);
        let mut taking = Taking::Free(self.most);
        if self.is_due
            && self.attempts.is_multiple_of(QUEUES_EVERY)
            && let Some(index) = whose_turn_to_queue(&calls, self.attempts / QUEUES_EVERY)
        {
            taking = Taking::Queued;
            let call = calls.remove(index);
            writer.calls.lock().return_to_room(std::mem::replace(&mut calls, vec![call]));
        }
        if calls.len() > self.most_looked {
            let rest = calls.split_off(self.most_looked);
            writer.calls.lock().return_to_room(rest);
        }
        for call in &mut calls {
            call.is_tried = true;
        }
        let layout = writer.layout();
        let attempt = storing::attempt(&writer.pool, &layout, calls, writer.settings.batch_size, taking).await;
        let Attempt { mut untried, mut tried, has_looked, result } = attempt;
        if has_looked {
            self.most_looked = self.most_looked.saturating_mul(2);
        }
        match result {
            Ok(outcomes) => {
                for call in untried.iter_mut().chain(&mut tried) {
                    call.is_served();
                }
                writer.calls.lock().return_to_room(untried);
                if tried.is_empty() {
                    return self.wait(LAST_PAUSE);
                }
                self.most = self.most.saturating_mul(2);
                self.stored(tried, outcomes)
            }
            Err(error) => {
                for call in untried.iter_mut().chain(&mut tried) {
                    call.failed(&error);
                }
                writer.calls.lock().return_to_room(untried);
                // Without locks nothing was tried: serialized writers wait for their turn.
                if error.is_connection_lost() || !has_looked && is_held(&error) {
                    let longest = if error.is_connection_lost() { LAST_PAUSE_AWAY } else { LAST_PAUSE };
                    writer.calls.lock().return_to_room(tried);
                    return self.wait(longest);
                }
                self.refused(tried, error, has_looked).await
            }
        }
    }

    fn stored(&mut self, tried: Vec<Call>, outcomes: Vec<Outcome>) -> bool {
        let writer = self.writer;
        writer.count_group(&tried, &outcomes);
        let (mut has_progress, mut again) = (false, Vec::new());
        for (mut call, outcome) in tried.into_iter().zip(outcomes) {
            let result = match outcome {
                Outcome::Stored(positions) => Ok(positions),
                Outcome::Refused(error) => Err(error),
                Outcome::LeftOut => {
                    let reason = "the table has left an event out; is there a trigger that does so?";
                    let error = Error::refused("23505", "store events", reason);
                    call.conflicts += 1;
                    if call.conflicts < ATTEMPTS {
                        again.push(call);
                        continue;
                    }
                    Err(error)
                }
            };
            has_progress = true;
            writer.finish_in_room(call, result);
        }
        if !again.is_empty() {
            writer.calls.lock().requeue_in_room(again);
        }
        if !has_progress {
            return self.wait(LAST_PAUSE);
        }
        if self.is_due {
            self.pause = FIRST_PAUSE;
        }
        true
    }

    /// After the server has refused to store calls: find the one that is to blame, and decide on it.
    async fn refused(&mut self, mut tried: Vec<Call>, error: Error, has_looked: bool) -> bool {
        let writer = self.writer;
        let error = writer.or_behind(error).await;
        if is_held(&error) || is_conflict(&error) {
            writer.look_again_after_conflict().await;
        }
        if tried.len() > 1 {
            *(if has_looked { &mut self.most } else { &mut self.most_looked }) = tried.len() / 2;
            for call in &mut tried {
                call.is_tried = false;
            }
            writer.calls.lock().return_to_room(tried);
            return true;
        }
        let Some(mut call) = tried.pop() else { return self.wait(LAST_PAUSE) };
        call.conflicts += u32::from(is_conflict(&error));
        if is_held(&error) || is_conflict(&error) && call.conflicts < ATTEMPTS {
            // The next one may be able to go on.
            writer.calls.lock().requeue_in_room(vec![call]);
            return self.wait(LAST_PAUSE);
        }
        let error = writer.why_refused(&call.request.events, error).await;
        writer.finish_in_room(call, Err(error));
        true
    }

    fn wait(&mut self, longest: Duration) -> bool {
        if self.is_due {
            self.pause = (self.pause * 2).min(longest);
        }
        false
    }

    /// Finish calls that have waited for too long, and say what for.
    async fn give_up(&self, expired: Vec<Call>) {
        let writer = self.writer;
        let is_closing = writer.calls.lock().closes_at.is_some_and(|at| Instant::now() >= at);
        let mut locked = Vec::new();
        for call in expired {
            let error = match &call.trouble {
                trouble if call.doubt.is_some() => in_doubt(trouble.clone().unwrap_or(Error::StoreClosed)),
                _ if is_closing => Error::StoreClosed,
                Some(error) if !is_lock_timeout(error) => error.clone(),
                _ => {
                    locked.push(call);
                    continue;
                }
            };
            writer.finish_in_room(call, Err(error));
        }
        if locked.is_empty() {
            return;
        }
        let aggregates: Vec<&str> = locked.iter().flat_map(|call| call.request.aggregates()).collect();
        let holders = storing::holders(&writer.pool, &writer.layout().sql, &aggregates).await;
        for call in locked {
            let aggregates: Vec<&str> = call.request.aggregates().collect();
            let error = holders.locked(&aggregates, call.since.elapsed());
            writer.finish_in_room(call, Err(error));
        }
    }
}

impl Call {
    /// Note why an attempt failed.
    fn failed(&mut self, error: &Error) {
        if is_in_doubt(error) {
            self.doubt.get_or_insert_with(Instant::now);
        }
        if error.is_connection_lost() {
            self.away.get_or_insert_with(Instant::now);
        } else {
            self.is_served();
        }
        self.trouble = Some(error.clone());
    }

    /// Note that the server answers. The time that it was away does not count as waiting for a lock.
    fn is_served(&mut self) {
        if self.away.take().is_some() {
            self.since = Instant::now();
        }
        self.trouble = None;
    }
}

/// Whether the connection was lost while a commit may have been in flight. A timeout can only come from connecting.
fn is_in_doubt(error: &Error) -> bool {
    let is_before_sending =
        matches!(error, Error::ConnectionLost { may_be_sent: false, .. } | Error::Refused(_) | Error::Timeout { .. });
    error.is_connection_lost() && !is_before_sending
}

/// 40P01 deadlock detected.
fn is_deadlock(error: &Error) -> bool {
    matches!(error, Error::Database { report, .. } if report.sqlstate == "40P01")
}

/// 55P03 lock not available.
fn is_lock_timeout(error: &Error) -> bool {
    matches!(error, Error::Database { report, .. } if report.sqlstate == "55P03")
}

/// Whether another transaction holds what the call needs, or the table; then the statement was cancelled (57014).
fn is_held(error: &Error) -> bool {
    is_lock_timeout(error) || matches!(error, Error::Database { report, .. } if report.sqlstate == "57014")
}

/// Whether another writer caused a conflict, so that the call is to be tried again. 23505 unique violation, 40001
/// serialization failure, 40P01 deadlock; 0A000: a prepared statement that no longer fits.
fn is_conflict(error: &Error) -> bool {
    is_forgotten(error)
        || matches!(error, Error::Database { report, .. }
            if matches!(report.sqlstate.as_str(), "23505" | "40001" | "40P01" | "0A000"))
}

/// 26000 and 42P05: behind a pooler, a prepared statement no longer exists, or one of this name exists already.
fn is_forgotten(error: &Error) -> bool {
    matches!(error, Error::Database { report, .. } if matches!(report.sqlstate.as_str(), "26000" | "42P05"))
}

/// Whether an id or a version exists already.
fn is_duplicate(error: &Error) -> bool {
    matches!(error, Error::Database { report, .. } if report.sqlstate == "23505")
}

/// Whether another attempt would fail, too, and nothing more can be said about the reason.
fn is_final(error: &Error) -> bool {
    !is_held(error) && !is_conflict(error) && !error.is_connection_lost() && !error.is_about_a_value()
}

/// Mark an error as in doubt: whatever the last query failed with, it does not show whether the commit took place.
fn in_doubt(error: Error) -> Error {
    let (context, reason) = match error {
        Error::ConnectionLost { context, reason, .. } => (context, reason),
        other => ("store events".to_owned(), other.to_string()),
    };
    Error::ConnectionLost { context, reason, may_be_sent: true }
}

/// Check a call before anything is sent.
pub fn check(events: &[NewEvent], table: &Table) -> Result<()> {
    let mut ids = HashSet::with_capacity(events.len());
    for event in events {
        event.check(table)?;
        if !ids.insert(event.id.as_str()) {
            return Err(Error::DuplicateEvent { id: event.id.clone(), version: 0 });
        }
    }
    Ok(())
}
