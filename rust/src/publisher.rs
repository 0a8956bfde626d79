//! Publishing: a bounded, ordered buffer and one connection that commits it group by group.
//!
//! What was queued while the previous group was in flight goes out together, in one statement and so in one
//! transaction and one round trip; when nothing is in flight a message leaves at once. There is no timer. One
//! connection makes commit order the call order.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use crate::attachment::AttachmentTable;
use crate::backoff::Backoff;
use crate::codec::{self, Encoded, Limits};
use crate::error::{Error, Result};
use crate::inbox::{Completion, Item, Outcome, Outlet};
use crate::protocol::{Message, NOTIFY_LIMIT_BYTES, channel_name, check_channel};
use crate::runtime;
use crate::session::Session;

/// Most messages in one transaction: the commit holds a server-wide lock while they are copied to the queue.
const GROUP_MESSAGES: usize = 1000;
/// Most bytes of notifications in one transaction, for the same reason.
const GROUP_INLINE_BYTES: usize = 256 * 1024;
/// Most bytes of attachments in one transaction; they are written before the lock is taken.
const GROUP_ATTACHMENT_BYTES: usize = 4 * 1024 * 1024;

/// Everything a publisher needs to know, decided by the Python layer.
#[derive(Debug, Clone)]
pub struct PublisherSettings {
    /// Server id under which messages are published.
    pub uid: String,
    /// Channel prefix.
    pub prefix: String,
    /// Sizes.
    pub limits: Limits,
    /// Most messages waiting to be committed.
    pub buffer_count: usize,
    /// Most bytes waiting to be committed.
    pub buffer_bytes: usize,
    /// Longest time a message waits for a connection before it fails.
    pub buffer_age: Duration,
}

/// Counters since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PublisherStats {
    /// Messages committed.
    pub published: u64,
    /// Messages that failed.
    pub failed: u64,
    /// Transactions committed.
    pub groups: u64,
    /// Of the published messages, those that travelled as attachments.
    pub attachments: u64,
    /// Connections opened after the first one.
    pub reconnects: u64,
    /// Messages waiting now.
    pub waiting_count: usize,
    /// Bytes waiting now.
    pub waiting_bytes: usize,
}

struct Outgoing {
    channel: String,
    wire: Encoded,
    since: Instant,
    completion: Option<Completion>,
    /// A payload of the user's own: two equal ones must not share a transaction, PostgreSQL would deliver one.
    is_raw: bool,
}

impl Outgoing {
    fn inline_bytes(&self) -> usize {
        match &self.wire {
            Encoded::Inline(text) => text.len() + self.channel.len(),
            Encoded::Attachment { header, .. } => header.len() + 24 + self.channel.len(),
        }
    }

    fn attachment_bytes(&self) -> usize {
        match &self.wire {
            Encoded::Inline(_) => 0,
            Encoded::Attachment { body, .. } => body.len(),
        }
    }

    fn size_bytes(&self) -> usize {
        self.inline_bytes() + self.attachment_bytes() + 100
    }
}

enum Entry {
    Message(Outgoing),
    Flush(Completion),
}

struct State {
    queue: VecDeque<Entry>,
    count: usize,
    bytes: usize,
    sequences: HashMap<String, u64>,
    space_waiters: Vec<Completion>,
    unreported: u64,
    first_unreported: Option<Error>,
    stats: PublisherStats,
    is_running: bool,
    is_closed: bool,
    closing: Option<(Completion, Instant)>,
}

struct Shared {
    settings: PublisherSettings,
    session: Session,
    table: Arc<AttachmentTable>,
    outlet: Outlet,
    state: Mutex<State>,
    changed: Notify,
    closed: Notify,
}

/// See the module documentation.
pub struct Publisher {
    shared: Arc<Shared>,
}

impl Publisher {
    /// A publisher that connects with the first message, or with [`Publisher::start`].
    pub fn new(settings: PublisherSettings, session: Session, table: Arc<AttachmentTable>, outlet: Outlet) -> Self {
        let state = State {
            queue: VecDeque::new(),
            count: 0,
            bytes: 0,
            sequences: HashMap::new(),
            space_waiters: Vec::new(),
            unreported: 0,
            first_unreported: None,
            stats: PublisherStats::default(),
            is_running: false,
            is_closed: false,
            closing: None,
        };
        let shared = Shared {
            settings,
            session,
            table,
            outlet,
            state: Mutex::new(state),
            changed: Notify::new(),
            closed: Notify::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Connect now, in one attempt, and check the attachment table if asked to.
    pub fn start(&self, check_table: bool, completion: Completion) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        runtime::handle()?.spawn(async move {
            let result = async {
                let client = shared.session.client().await?;
                if check_table {
                    shared.table.ensure(&client).await?;
                }
                Ok(Outcome::Done)
            };
            completion.finish(result.await);
        });
        Ok(())
    }

    /// Append a cluster message to the buffer. `Ok(false)`: the buffer is full and nothing was appended.
    pub fn publish(&self, message: &Message, completion: Option<Completion>) -> Result<bool> {
        let settings = &self.shared.settings;
        let channel = channel_name(&settings.prefix, &message.nsp)?;
        let encoded = codec::encode(message, &settings.uid, settings.limits)?;
        let mut state = self.open_state()?;
        if state.is_full(settings) {
            forget(completion);
            return Ok(false);
        }
        let sequence = state.sequences.get(&channel).map_or(1, |last| last + 1);
        let wire = codec::finish(encoded, sequence, message, &settings.uid, settings.limits)?;
        match state.sequences.get_mut(&channel) {
            Some(last) => *last = sequence,
            None => drop(state.sequences.insert(channel.clone(), sequence)),
        }
        self.append(state, Outgoing { channel, wire, since: Instant::now(), completion, is_raw: false })
    }

    /// Append a notification with a payload of the caller's own. `Ok(false)`: the buffer is full.
    pub fn notify(&self, channel: &str, payload: &str, completion: Option<Completion>) -> Result<bool> {
        check_channel(channel)?;
        if payload.len() > NOTIFY_LIMIT_BYTES {
            let what = format!("payload for channel {channel:?}");
            return Err(Error::TooLarge { what, size_bytes: payload.len(), limit_bytes: NOTIFY_LIMIT_BYTES });
        }
        if payload.contains('\0') {
            return Err(Error::Encode {
                path: "payload".into(),
                reason: "PostgreSQL text holds no NUL character".into(),
            });
        }
        let state = self.open_state()?;
        if state.is_full(&self.shared.settings) {
            forget(completion);
            return Ok(false);
        }
        let wire = Encoded::Inline(payload.to_owned());
        self.append(
            state,
            Outgoing { channel: channel.to_owned(), wire, since: Instant::now(), completion, is_raw: true },
        )
    }

    /// Messages that failed, with nobody told of each, since this was asked last: how many, and why the first did.
    pub fn take_unreported(&self) -> (u64, Option<Error>) {
        let mut state = self.shared.lock();
        (std::mem::take(&mut state.unreported), state.first_unreported.take())
    }

    /// Keep `completion` until everything appended before is committed or failed.
    pub fn flush(&self, completion: Completion) -> Result<()> {
        let mut state = self.shared.lock();
        state.queue.push_back(Entry::Flush(completion));
        self.wake(state)
    }

    /// Keep `completion` until there is room in the buffer.
    pub fn when_space(&self, completion: Completion) {
        let mut state = self.shared.lock();
        if state.is_closed || !state.is_full(&self.shared.settings) {
            drop(state);
            completion.finish(Ok(Outcome::Done));
        } else {
            state.space_waiters.push(completion);
        }
    }

    /// Accept nothing more, commit what is buffered within `limit`, disconnect.
    pub fn close(&self, limit: Duration, completion: Completion) -> Result<()> {
        let mut state = self.shared.lock();
        if state.is_closed {
            drop(state);
            completion.finish(Ok(Outcome::Done));
            return Ok(());
        }
        state.is_closed = true;
        if !state.is_running && state.queue.is_empty() {
            drop(state);
            let session = self.shared.session.clone();
            runtime::handle()?.spawn(async move {
                session.close().await;
                completion.finish(Ok(Outcome::Done));
            });
            return Ok(());
        }
        state.closing = Some((completion, Instant::now() + limit));
        self.wake(state)?;
        self.shared.closed.notify_one();
        Ok(())
    }

    /// Counters and queue depths.
    pub fn stats(&self) -> PublisherStats {
        let state = self.shared.lock();
        let reconnects = self.shared.session.reconnects();
        PublisherStats { waiting_count: state.count, waiting_bytes: state.bytes, reconnects, ..state.stats }
    }

    fn open_state(&self) -> Result<MutexGuard<'_, State>> {
        let state = self.shared.lock();
        if state.is_closed { Err(Error::Closed("publisher")) } else { Ok(state) }
    }

    fn append(&self, mut state: MutexGuard<'_, State>, outgoing: Outgoing) -> Result<bool> {
        state.count += 1;
        state.bytes += outgoing.size_bytes();
        state.queue.push_back(Entry::Message(outgoing));
        self.wake(state)?;
        Ok(true)
    }

    fn wake(&self, mut state: MutexGuard<'_, State>) -> Result<()> {
        if !state.is_running {
            runtime::handle()?.spawn(run(Arc::clone(&self.shared)));
            state.is_running = true;
        }
        drop(state);
        self.shared.changed.notify_one();
        Ok(())
    }
}

/// Drop a completion without reporting it: its caller learns the outcome from the return value.
fn forget(completion: Option<Completion>) {
    if let Some(completion) = completion {
        completion.cancel();
    }
}

impl State {
    fn is_full(&self, settings: &PublisherSettings) -> bool {
        self.count >= settings.buffer_count || self.bytes >= settings.buffer_bytes
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remove the messages of the next group; answer flushes whose turn has come.
    fn take_group(&self) -> Vec<Outgoing> {
        let mut group: Vec<Outgoing> = Vec::new();
        let (mut inline_bytes, mut attachment_bytes) = (0, 0);
        let mut raw: HashSet<(String, String)> = HashSet::new();
        let mut state = self.lock();
        loop {
            match state.queue.front() {
                None => break,
                Some(Entry::Flush(_)) => {
                    if !group.is_empty() {
                        break;
                    }
                    if let Some(Entry::Flush(completion)) = state.queue.pop_front() {
                        completion.finish(Ok(Outcome::Done));
                    }
                    continue;
                }
                Some(Entry::Message(next)) => {
                    inline_bytes += next.inline_bytes();
                    attachment_bytes += next.attachment_bytes();
                    let is_over = group.len() >= GROUP_MESSAGES
                        || inline_bytes > GROUP_INLINE_BYTES
                        || attachment_bytes > GROUP_ATTACHMENT_BYTES;
                    if is_over && !group.is_empty() {
                        break;
                    }
                    if let (true, Encoded::Inline(text)) = (next.is_raw, &next.wire)
                        && !raw.insert((next.channel.clone(), text.clone()))
                    {
                        break;
                    }
                }
            }
            if let Some(Entry::Message(next)) = state.queue.pop_front() {
                group.push(next);
            }
        }
        group
    }

    /// Put messages that were certainly not committed back in front.
    fn put_back(&self, group: Vec<Outgoing>) {
        let mut state = self.lock();
        for outgoing in group.into_iter().rev() {
            state.queue.push_front(Entry::Message(outgoing));
        }
    }

    /// Report the fate of messages and release their space.
    fn settle(&self, group: Vec<Outgoing>, result: &Result<()>) {
        let mut unobserved = false;
        let mut state = self.lock();
        for outgoing in group {
            state.count -= 1;
            state.bytes -= outgoing.size_bytes();
            match result {
                Ok(()) => {
                    state.stats.published += 1;
                    state.stats.attachments += u64::from(outgoing.attachment_bytes() > 0);
                }
                Err(_) => state.stats.failed += 1,
            }
            match (outgoing.completion, result) {
                (Some(completion), result) => completion.finish(result.clone().map(|()| Outcome::Done)),
                (None, Ok(())) => {}
                (None, Err(error)) => {
                    unobserved = true;
                    state.unreported += 1;
                    state.first_unreported.get_or_insert_with(|| error.clone());
                }
            }
        }
        state.stats.groups += u64::from(result.is_ok());
        if !state.is_full(&self.settings) {
            for waiter in state.space_waiters.drain(..) {
                waiter.finish(Ok(Outcome::Done));
            }
        }
        drop(state);
        if let (true, Err(error)) = (unobserved, result) {
            self.outlet.push(Item::Failure(error.clone()));
        }
    }

    /// Fail the messages that `is_hit` selects; those that waited longest are asked first.
    fn fail_where(&self, error: &Error, is_hit: impl Fn(&Outgoing) -> bool) {
        let mut expired = Vec::new();
        {
            // Messages are in order of age: everything in front of the first young one goes.
            let mut state = self.lock();
            let mut flushes = Vec::new();
            while let Some(entry) = state.queue.pop_front() {
                match entry {
                    Entry::Flush(completion) => flushes.push(Entry::Flush(completion)),
                    Entry::Message(outgoing) if is_hit(&outgoing) => expired.push(outgoing),
                    young @ Entry::Message(_) => {
                        state.queue.push_front(young);
                        break;
                    }
                }
            }
            for flush in flushes.into_iter().rev() {
                state.queue.push_front(flush);
            }
        }
        if !expired.is_empty() {
            self.settle(expired, &Err(error.clone()));
        }
    }

    fn deadline(&self) -> Option<Instant> {
        self.lock().closing.as_ref().map(|(_, deadline)| *deadline)
    }
}

/// The publisher's task: work until closed, but not past the deadline of [`Publisher::close`].
async fn run(shared: Arc<Shared>) {
    let overtime = async {
        shared.closed.notified().await;
        let deadline = shared.deadline().unwrap_or_else(Instant::now);
        tokio::time::sleep_until(deadline.into()).await;
    };
    tokio::select! {
        () = work(&shared) => {}
        () = overtime => {}
    }
    shared.fail_where(&Error::Closed("publisher"), |_| true);
    shared.take_group(); // answers the flushes that are left
    shared.session.close().await;
    let (closing, waiters) = {
        let mut state = shared.lock();
        state.is_running = false;
        (state.closing.take(), std::mem::take(&mut state.space_waiters))
    };
    for completion in waiters.into_iter().chain(closing.map(|(completion, _)| completion)) {
        completion.finish(Ok(Outcome::Done));
    }
}

/// Wait for messages, connect, commit group after group.
async fn work(shared: &Shared) {
    let mut backoff = Backoff::default();
    loop {
        let (is_idle, has_messages, is_closed) = {
            let state = shared.lock();
            (state.queue.is_empty(), state.count > 0, state.is_closed)
        };
        if is_idle {
            if is_closed {
                return;
            }
            shared.changed.notified().await;
            continue;
        }
        if !has_messages {
            shared.take_group(); // only flushes wait
            continue;
        }
        let client = match shared.session.client().await {
            Ok(client) => client,
            Err(error) => {
                wait_after(shared, &error, &mut backoff).await;
                continue;
            }
        };
        let group = shared.take_group();
        match commit(shared, &client, group).await {
            Ok(()) => backoff.reset(),
            Err(error) => {
                shared.session.close().await;
                wait_after(shared, &error, &mut backoff).await;
            }
        }
    }
}

/// After a failed attempt: report it, fail what cannot or may no longer wait, and wait before the next attempt.
async fn wait_after(shared: &Shared, error: &Error, backoff: &mut Backoff) {
    if !error.is_transient() {
        // Waiting cannot mend a wrong password, database or right: the caller must hear of it now.
        shared.fail_where(error, |_| true);
        return;
    }
    let age = shared.settings.buffer_age;
    shared.fail_where(error, |outgoing| outgoing.since.elapsed() >= age);
    if backoff.attempts() == 0 {
        shared.outlet.push(Item::Failure(error.clone()));
    }
    tokio::time::sleep(backoff.next_delay()).await;
}

/// Commit a group. `Err` means that the connection is of no use any more; every message has been settled or put
/// back by then.
async fn commit(shared: &Shared, client: &Client, mut group: Vec<Outgoing>) -> Result<()> {
    if group.iter().any(|outgoing| outgoing.attachment_bytes() > 0)
        && let Err(error) = shared.table.ensure(client).await
    {
        if error.is_transient() {
            shared.put_back(group);
            return Err(error);
        }
        let (refused, rest) = group.into_iter().partition(|outgoing: &Outgoing| outgoing.attachment_bytes() > 0);
        shared.settle(refused, &Err(error));
        group = rest;
    }
    // Halving instead of recursion: a stack of groups still to be sent, first one last.
    let mut pending = vec![group];
    while let Some(mut group) = pending.pop() {
        if group.is_empty() {
            continue;
        }
        match send(shared, client, &group).await {
            Ok(()) => shared.settle(group, &Ok(())),
            Err(error) if error.is_connection_lost() => {
                shared.settle(group, &Err(in_doubt(&error)));
                pending.into_iter().rev().for_each(|rest| shared.put_back(rest));
                return Err(error);
            }
            // The server refused before committing: nothing was sent, and another attempt may succeed.
            Err(error) if error.is_transient() => {
                pending.push(group);
                let rest = pending.into_iter().rev().flatten().collect();
                shared.put_back(rest);
                return Err(error);
            }
            Err(error) if group.len() > 1 && is_about_one_message(&error) => {
                let second = group.split_off(group.len() / 2);
                pending.push(second);
                pending.push(group);
            }
            Err(error) => shared.settle(group, &Err(error)),
        }
    }
    Ok(())
}

/// Class 22 (data exception): one message of the group cannot be stored or is not representable; the others can.
fn is_about_one_message(error: &Error) -> bool {
    matches!(error, Error::Database { report, .. } if report.sqlstate.starts_with("22"))
}

fn in_doubt(error: &Error) -> Error {
    Error::ConnectionLost { context: "commit messages".to_owned(), reason: error.to_string(), may_be_sent: true }
}

async fn send(shared: &Shared, client: &Client, group: &[Outgoing]) -> Result<()> {
    let mut channels: Vec<&str> = Vec::with_capacity(group.len());
    let mut texts: Vec<&str> = Vec::with_capacity(group.len());
    let mut bodies: Vec<Option<&[u8]>> = Vec::new();
    for outgoing in group {
        channels.push(&outgoing.channel);
        match &outgoing.wire {
            Encoded::Inline(text) => {
                texts.push(text);
                bodies.push(None);
            }
            Encoded::Attachment { header, body } => {
                texts.push(header);
                bodies.push(Some(body));
            }
        }
    }
    let result = if bodies.iter().any(Option::is_some) {
        let sequence = shared.table.ensure(client).await?;
        let sql = attachment_sql(shared.table.quoted(), sequence);
        client
            .query_typed(
                &sql,
                &[(&channels, Type::TEXT_ARRAY), (&texts, Type::TEXT_ARRAY), (&bodies, Type::BYTEA_ARRAY)],
            )
            .await
    } else {
        // count() keeps the answer at one row. An unnamed statement works through transaction poolers.
        const SQL: &str = "SELECT count(pg_notify(channel, payload)) FROM unnest($1, $2) AS t(channel, payload)";
        client.query_typed(SQL, &[(&channels, Type::TEXT_ARRAY), (&texts, Type::TEXT_ARRAY)]).await
    };
    result.map(drop).map_err(|error| Error::from_postgres("commit messages", &error, true))
}

/// One statement stores the bodies and notifies, in the order of the arrays: ids are drawn from the table's own
/// sequence so that each header can name its row.
///
/// `synchronous_commit` matters for a table that was created logged: the row is as volatile as its notification,
/// and waiting for its WAL would hold the server-wide notify lock during an fsync.
fn attachment_sql(table: &str, sequence: &str) -> String {
    let sequence = sequence.replace('\'', "''");
    format!(
        "WITH m AS MATERIALIZED (\
            SELECT n, channel, head, body, CASE WHEN body IS NOT NULL THEN nextval('{sequence}'::regclass) END AS id \
            FROM unnest($1, $2, $3) WITH ORDINALITY AS t(channel, head, body, n)), \
         stored AS (\
            INSERT INTO {table} (id, payload) OVERRIDING SYSTEM VALUE SELECT id, body FROM m WHERE body IS NOT NULL) \
         SELECT count(pg_notify(channel, CASE WHEN id IS NULL THEN head ELSE head || id || '\"}}' END)) \
         FROM (SELECT channel, head, id FROM m ORDER BY n) AS ordered \
         WHERE (SELECT set_config('synchronous_commit', 'off', true)) IS NOT NULL"
    )
}
