//! Publishing: a bounded, ordered buffer and one connection that commits it group by group.
//!
//! What was queued while the previous group was in flight goes out together, in one statement and so in one
//! transaction and one round trip; when nothing is in flight a message leaves at once. There is no timer. One
//! connection makes commit order the call order.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_postgres::Client;

use crate::attachment::AttachmentTable;
use crate::backoff::Backoff;
use crate::buffer::{Buffer, Outgoing};
use crate::codec::{self, Encoded, Limits, Seal};
use crate::echo::Echo;
use crate::error::{Error, Result};
use crate::inbox::{Completion, Item, Outcome, Outlet};
use crate::protocol::{EMITTER_UID, Message, NOTIFY_LIMIT_BYTES, channel_name, check_channel};
use crate::runtime;
use crate::session::Session;
use crate::signature::SigningKey;
use crate::statement;

/// Letters of an emitter's process id on the wire: 48 bits.
const PROCESS_LENGTH: usize = 8;

/// What becomes of a message for which the buffer has no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFull {
    /// It is buffered all the same, in call order, and whoever sent it waits for room before they go on: the buffer
    /// exceeds its limits by no more than one message of each of those who wait.
    Wait,
    /// It is refused.
    Raise,
    /// It is given up and reported; whoever waits for its commit is told at once.
    Drop,
}

/// Everything a publisher needs to know, decided by the Python layer.
#[derive(Clone)]
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
    /// What happens beyond that.
    pub on_full: OnFull,
    /// Signs every message.
    pub signing_key: Option<SigningKey>,
}

/// Counters since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PublisherStats {
    /// Messages committed.
    pub published: u64,
    /// Messages that failed, in doubt or not.
    pub failed: u64,
    /// Of the failed ones, those whose commit may have happened.
    pub in_doubt: u64,
    /// Of the failed ones, those dropped because the buffer was full.
    pub dropped: u64,
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

/// Failures of messages that nobody waits for, until a flush asks.
#[derive(Debug, Default)]
pub struct Unreported {
    /// How many.
    pub failed: u64,
    /// Of these, in doubt.
    pub in_doubt: u64,
    /// Why the first one failed.
    pub first: Option<Error>,
}

impl Unreported {
    fn add(&mut self, error: &Error) {
        self.failed += 1;
        self.in_doubt += u64::from(error.is_in_doubt());
        self.first.get_or_insert_with(|| error.clone());
    }
}

struct State {
    buffer: Buffer,
    sequences: HashMap<String, u64>,
    space_waiters: Vec<Completion>,
    unreported: Unreported,
    stats: PublisherStats,
    is_dropping: bool,
    is_running: bool,
    is_closed: bool,
    closing: Option<(Completion, Instant)>,
}

struct Shared {
    settings: PublisherSettings,
    /// Which of the emitters we are; servers have an id of their own.
    process: Option<String>,
    session: Session,
    table: Arc<AttachmentTable>,
    echo: Arc<Echo>,
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
    /// A publisher that connects with the first message, or with [`Publisher::start`]; tells `echo` what to expect.
    pub fn new(
        settings: PublisherSettings,
        session: Session,
        table: Arc<AttachmentTable>,
        echo: Arc<Echo>,
        outlet: Outlet,
    ) -> Result<Self> {
        let state = State {
            buffer: Buffer::new(settings.buffer_count, settings.buffer_bytes),
            sequences: HashMap::new(),
            space_waiters: Vec::new(),
            unreported: Unreported::default(),
            stats: PublisherStats::default(),
            is_dropping: false,
            is_running: false,
            is_closed: false,
            closing: None,
        };
        let process = if settings.uid == EMITTER_UID { Some(new_process_id()?) } else { None };
        let shared = Shared {
            settings,
            process,
            session,
            table,
            echo,
            outlet,
            state: Mutex::new(state),
            changed: Notify::new(),
            closed: Notify::new(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Connect now, in one attempt, and check the attachment table if asked to.
    pub fn start(&self, check_table: bool, completion: Completion) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        runtime::handle()?.spawn(async move {
            let result = async {
                let client = shared.session.client().await?;
                if check_table {
                    let work = shared.table.ensure(&client);
                    shared.session.answer("look up the attachment table", work).await?;
                }
                Ok(Outcome::Done)
            };
            completion.finish(result.await);
        });
        Ok(())
    }

    /// Append a cluster message to the buffer. `Ok(false)`: there was no room, so wait for it (`when_space`) before the
    /// next one.
    pub fn publish(&self, message: &Message, completion: Option<Completion>) -> Result<bool> {
        let (channel, encoded) = self.encode(message)?;
        let mut state = self.open_state()?;
        let had_room = !state.buffer.is_full();
        if !had_room && self.shared.settings.on_full == OnFull::Drop && completion.is_none() {
            self.drop_message(state, &channel);
            return Ok(true);
        }
        let completion = self.admit(&state, completion)?;
        self.append(&mut state, message, channel, encoded, completion)?;
        self.wake(state)?;
        Ok(had_room)
    }

    /// Append messages so that they share a transaction, as far as there is room; returns how many were appended.
    pub fn publish_many(&self, messages: &[&Message]) -> Result<usize> {
        let encoded = messages.iter().map(|message| self.encode(message)).collect::<Result<Vec<_>>>()?;
        let mut state = self.open_state()?;
        let mut count = 0;
        for (message, (channel, encoded)) in messages.iter().zip(encoded) {
            if state.buffer.is_full() {
                break;
            }
            self.append(&mut state, message, channel, encoded, None)?;
            count += 1;
        }
        self.wake(state)?;
        Ok(count)
    }

    /// Give a message up for lack of room. It keeps its number, so that receivers notice.
    fn drop_message(&self, mut state: MutexGuard<'_, State>, channel: &str) {
        state.next_sequence(channel);
        let error = state.buffer.full_error();
        state.stats.failed += 1;
        state.stats.dropped += 1;
        state.unreported.add(&error);
        let is_first = !std::mem::replace(&mut state.is_dropping, true);
        drop(state);
        if is_first {
            self.shared.outlet.push(Item::Failure(error));
        }
    }

    /// Refuse a message if the buffer is full and nobody is to wait for room; then nothing is reported to `completion`.
    fn admit(&self, state: &State, completion: Option<Completion>) -> Result<Option<Completion>> {
        if state.buffer.is_full() && self.shared.settings.on_full != OnFull::Wait {
            forget(completion);
            return Err(state.buffer.full_error());
        }
        Ok(completion)
    }

    /// Append a notification with a payload of the caller's own.
    pub fn notify(&self, channel: &str, payload: &str, completion: Completion) -> Result<()> {
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
        let mut state = self.open_state()?;
        let completion = self.admit(&state, Some(completion))?;
        let (channel, wire) = (channel.to_owned(), Encoded::Inline(payload.to_owned()));
        state.append(Outgoing { channel, wire, since: Instant::now(), completion, sequence: None });
        self.wake(state)
    }

    /// Messages that failed, with nobody told of each, since this was asked last.
    pub fn take_unreported(&self) -> Unreported {
        std::mem::take(&mut self.shared.lock().unreported)
    }

    /// Keep `completion` until everything appended before is committed or failed.
    pub fn flush(&self, completion: Completion) -> Result<()> {
        let mut state = self.shared.lock();
        state.buffer.append_flush(completion);
        self.wake(state)
    }

    /// Keep `completion` until there is room in the buffer.
    pub fn when_space(&self, completion: Completion) {
        let mut state = self.shared.lock();
        if state.is_closed || !state.buffer.is_full() {
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
        if !state.is_running && state.buffer.is_empty() {
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
        let (waiting_count, waiting_bytes) = (state.buffer.count(), state.buffer.bytes());
        PublisherStats { waiting_count, waiting_bytes, reconnects: self.shared.session.reconnects(), ..state.stats }
    }

    fn encode(&self, message: &Message) -> Result<(String, Encoded)> {
        let settings = &self.shared.settings;
        let channel = channel_name(&settings.prefix, &message.nsp)?;
        Ok((channel, codec::encode(message, &settings.uid, settings.limits)?))
    }

    fn append(
        &self,
        state: &mut State,
        message: &Message,
        channel: String,
        encoded: Encoded,
        completion: Option<Completion>,
    ) -> Result<()> {
        let settings = &self.shared.settings;
        let sequence = state.sequences.get(&channel).map_or(1, |last| last + 1);
        let (process, key) = (self.shared.process.as_deref(), settings.signing_key.as_ref());
        let seal = Seal { sequence, process, key, channel: &channel };
        let wire = codec::finish(encoded, seal, message, &settings.uid, settings.limits)?;
        state.next_sequence(&channel);
        state.append(Outgoing { channel, wire, since: Instant::now(), completion, sequence: Some(sequence) });
        Ok(())
    }

    fn open_state(&self) -> Result<MutexGuard<'_, State>> {
        let state = self.shared.lock();
        if state.is_closed { Err(Error::Closed("publisher")) } else { Ok(state) }
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

/// A name for this publisher. From the operating system: a generator of ours would give forked children the same one,
/// and receivers would take the messages of one for those of the other.
fn new_process_id() -> Result<String> {
    const LETTERS: &[u8; 64] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz-_";
    let mut bytes = [0; PROCESS_LENGTH];
    getrandom::fill(&mut bytes).map_err(|error| Error::ConnectionLost {
        context: "draw a random id".to_owned(),
        reason: error.to_string(),
        may_be_sent: false,
    })?;
    Ok(bytes.into_iter().map(|byte| char::from(LETTERS[usize::from(byte % 64)])).collect())
}

/// Drop a completion without reporting it: its caller learns the outcome from the return value.
fn forget(completion: Option<Completion>) {
    if let Some(completion) = completion {
        completion.cancel();
    }
}

impl State {
    /// Numbers are used up in call order, and only by messages that could be encoded.
    fn next_sequence(&mut self, channel: &str) {
        match self.sequences.get_mut(channel) {
            Some(last) => *last += 1,
            None => drop(self.sequences.insert(channel.to_owned(), 1)),
        }
    }

    fn append(&mut self, outgoing: Outgoing) {
        self.is_dropping = false;
        self.buffer.append(outgoing);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put_back(&self, group: Vec<Outgoing>) {
        self.lock().buffer.put_back(group);
    }

    /// Report the fate of messages and release their space.
    fn settle(&self, group: Vec<Outgoing>, result: &Result<()>) {
        let mut unobserved = false;
        let mut state = self.lock();
        for outgoing in group {
            state.buffer.release(&outgoing);
            match result {
                Ok(()) => {
                    state.stats.published += 1;
                    state.stats.attachments += u64::from(outgoing.is_attachment());
                }
                Err(error) => {
                    state.stats.failed += 1;
                    state.stats.in_doubt += u64::from(error.is_in_doubt());
                }
            }
            match (outgoing.completion, result) {
                (Some(completion), result) => completion.finish(result.clone().map(|()| Outcome::Done)),
                (None, Ok(())) => {}
                (None, Err(error)) => {
                    unobserved = true;
                    state.unreported.add(error);
                }
            }
        }
        state.stats.groups += u64::from(result.is_ok());
        if !state.buffer.is_full() {
            for waiter in state.space_waiters.drain(..) {
                waiter.finish(Ok(Outcome::Done));
            }
        }
        drop(state);
        if let (true, Err(error)) = (unobserved, result) {
            self.outlet.push(Item::Failure(error.clone()));
        }
    }

    /// Fail the messages in front that `is_hit` selects.
    fn fail_while(&self, error: &Error, is_hit: impl Fn(&Outgoing) -> bool) {
        let failed = self.lock().buffer.take_while(is_hit);
        if !failed.is_empty() {
            self.settle(failed, &Err(error.clone()));
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
    shared.fail_while(&Error::Closed("publisher"), |_| true);
    shared.lock().buffer.take_group(); // answers the flushes that are left
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
            (state.buffer.is_empty(), state.buffer.count() > 0, state.is_closed)
        };
        if is_idle {
            if is_closed {
                return;
            }
            shared.changed.notified().await;
            continue;
        }
        if !has_messages {
            shared.lock().buffer.take_group(); // only flushes wait
            continue;
        }
        let client = match shared.session.client().await {
            Ok(client) => client,
            Err(error) => {
                wait_after(shared, &error, &mut backoff).await;
                continue;
            }
        };
        let group = InFlight::take(shared);
        match commit(shared, &client, group).await {
            Ok(()) => backoff.reset(),
            Err(error) => {
                shared.session.discard().await;
                wait_after(shared, &error, &mut backoff).await;
            }
        }
    }
}

/// After a failed attempt: report it, fail what cannot or may no longer wait, and wait before the next attempt.
async fn wait_after(shared: &Shared, error: &Error, backoff: &mut Backoff) {
    if !error.is_transient() {
        // Waiting cannot mend a wrong password, database or right: the caller must hear of it now.
        shared.fail_while(error, |_| true);
        shared.lock().buffer.answer_flushes();
        return;
    }
    let age = shared.settings.buffer_age;
    shared.fail_while(error, |outgoing| outgoing.since.elapsed() >= age);
    // Nothing is in flight here, so a flush need not wait for what was published after it.
    shared.lock().buffer.answer_flushes();
    if backoff.attempts() == 0 {
        shared.outlet.push(Item::Failure(error.clone()));
    }
    tokio::time::sleep(backoff.next_delay()).await;
}

/// A group on its way: a stack of parts still to be sent, the first one last. However this ends, by an error, or by the
/// deadline of [`Publisher::close`], every message is settled or back in the buffer afterwards.
struct InFlight<'a> {
    shared: &'a Shared,
    parts: Vec<Vec<Outgoing>>,
    /// Whether the last part may have reached the server.
    is_sending: bool,
}

impl<'a> InFlight<'a> {
    fn take(shared: &'a Shared) -> Self {
        let group = shared.lock().buffer.take_group();
        Self { shared, parts: vec![group], is_sending: false }
    }

    /// Settle the last part.
    fn settle(&mut self, result: &Result<()>) {
        self.is_sending = false;
        if let Some(group) = self.parts.pop() {
            self.shared.settle(group, result);
        }
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        if self.is_sending {
            self.settle(&Err(in_doubt("the publisher was closed while a commit was under way")));
        }
        self.shared.put_back(std::mem::take(&mut self.parts).into_iter().rev().flatten().collect());
    }
}

/// Commit a group. `Err` means that the connection is of no use any more.
async fn commit(shared: &Shared, client: &Client, mut flight: InFlight<'_>) -> Result<()> {
    if flight.parts.iter().flatten().any(Outgoing::is_attachment)
        && let Err(error) = shared.session.answer("look up the attachment table", shared.table.ensure(client)).await
    {
        if error.is_transient() {
            return Err(error);
        }
        let group: Vec<Outgoing> = flight.parts.drain(..).flatten().collect();
        let (refused, rest) = group.into_iter().partition(Outgoing::is_attachment);
        shared.settle(refused, &Err(error));
        flight.parts.push(rest);
    }
    let mut has_tidied = false;
    while let Some(group) = flight.parts.last() {
        if group.is_empty() {
            flight.parts.pop();
            continue;
        }
        let began = Instant::now();
        flight.is_sending = true;
        let sent_bytes = group.iter().map(Outgoing::size_bytes).sum();
        let work = statement::commit(client, &shared.table, group);
        let sent = shared.session.answer_to_commit("commit messages", sent_bytes, work).await;
        flight.is_sending = sent.as_ref().is_err_and(Error::is_connection_lost);
        match sent {
            Ok(()) => {
                expect_echo(shared, group, began);
                flight.settle(&Ok(()));
            }
            Err(error) if error.is_connection_lost() => {
                flight.settle(&Err(in_doubt(&reason_of(&error))));
                return Err(error);
            }
            // Nothing was sent. Begin anew: the table is made again where that is allowed, or its absence reported.
            Err(error) if shared.table.forget_if_gone(&error).await => return Ok(()),
            Err(error) if statement::is_queue_full(&error) && !std::mem::replace(&mut has_tidied, true) => {
                shared.session.answer("tidy the notification queue", statement::tidy_queue(client)).await?;
            }
            // The server refused before committing: nothing was sent, and another attempt may succeed.
            Err(error) if error.is_transient() => return Err(error),
            Err(error) if group.len() > 1 && (statement::is_about_one_message(&error) || is_mixed(group)) => {
                let mut first = flight.parts.pop().unwrap_or_default();
                let second = first.split_off(first.len() / 2);
                flight.parts.extend([second, first]);
            }
            Err(error) => flight.settle(&Err(error)),
        }
    }
    Ok(())
}

/// Our own listener will hear of this group, if it is not deaf.
fn expect_echo(shared: &Shared, group: &[Outgoing], began: Instant) {
    let mut last: HashMap<&str, u64> = HashMap::new();
    for (channel, number) in group.iter().filter_map(|each| Some((each.channel.as_str(), each.sequence?))) {
        last.insert(channel, number);
    }
    for (channel, number) in last {
        shared.echo.committed(channel, number, began, Instant::now());
    }
}

/// Whether what is wrong with the attachment table would fail messages that do not need it.
fn is_mixed(group: &[Outgoing]) -> bool {
    group.iter().any(Outgoing::is_attachment) && !group.iter().all(Outgoing::is_attachment)
}

/// What happened, without what was being done: a commit, always.
fn reason_of(error: &Error) -> String {
    match error {
        Error::ConnectionLost { reason, .. } => reason.clone(),
        other => other.to_string(),
    }
}

fn in_doubt(reason: &str) -> Error {
    Error::ConnectionLost { context: "commit messages".to_owned(), reason: reason.to_owned(), may_be_sent: true }
}
