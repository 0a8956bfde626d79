//! Publishing: a bounded, ordered buffer and one connection that commits it group by group.
//!
//! What was queued while the previous group was in flight goes out together, in one statement and so in one
//! transaction and one round trip; when nothing is in flight a message leaves at once. There is no timer. One
//! connection makes commit order the call order.

use std::pin::pin;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::sleep;

use crate::connect::backoff::Backoff;
use crate::connect::outage::Present;
use crate::connect::runtime;
use crate::connect::session::Session;
use crate::error::{Error, Result};
use crate::handover::completion::Completion;
use crate::handover::item::Recipient;
use crate::publish::buffer::{Buffer, Outgoing};
use crate::publish::flight::Flight;
use crate::publish::outbox::{Contents, Outbox, PublisherStats, Unreported};
use crate::receive::attachment::AttachmentTable;
use crate::receive::echo::Echo;
use crate::wire::codec::{self, Encoded, Limits, Seal};
use crate::wire::protocol::{EMITTER_UID, Message, NOTIFY_LIMIT_BYTES, channel_name, check_channel};
use crate::wire::signature::SigningKey;

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

struct Shared {
    settings: PublisherSettings,
    /// Which of the emitters we are; servers have an id of their own.
    process: Option<String>,
    session: Session,
    table: Arc<AttachmentTable>,
    echo: Arc<Echo>,
    outbox: Outbox,
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
        recipient: Recipient,
    ) -> Result<Self> {
        let buffer = Buffer::new(settings.buffer_count, settings.buffer_bytes);
        let outbox = Outbox::new(buffer, recipient);
        let process = if settings.uid == EMITTER_UID { Some(new_process_id()?) } else { None };
        let shared =
            Shared { settings, process, session, table, echo, outbox, changed: Notify::new(), closed: Notify::new() };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Connect now, in one attempt, and check the attachment table if asked to.
    pub fn start(&self, check_table: bool, completion: Completion) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        runtime::handle()?.spawn(async move {
            let result = async {
                let connection = shared.session.open().await?;
                if check_table {
                    connection.ask("look up the attachment table", |client| shared.table.ensure(client)).await?;
                }
                shared.outbox.outage.ended();
                Ok(())
            };
            completion.finish(result.await);
        });
        Ok(())
    }

    /// Append a cluster message to the buffer. `Ok(false)`: there was no room, so wait for it (`when_space`) before the
    /// next one.
    pub fn publish(&self, message: &Message, completion: Option<Completion>) -> Result<bool> {
        let (channel, encoded) = self.encode(message)?;
        let mut contents = self.shared.outbox.open()?;
        let had_room = !contents.buffer.is_full();
        if !had_room && self.shared.settings.on_full == OnFull::Drop && completion.is_none() {
            let news = contents.give_up(&channel);
            drop(contents);
            if let Some(error) = news {
                self.shared.outbox.report(&error);
            }
            return Ok(true);
        }
        let completion = self.admit(&contents, completion)?;
        self.append(&mut contents, message, channel, encoded, completion)?;
        self.wake(contents)?;
        Ok(had_room)
    }

    /// Append messages so that they share a transaction, as far as there is room; returns how many were appended.
    pub fn publish_many(&self, messages: &[&Message]) -> Result<usize> {
        let encoded = messages.iter().map(|message| self.encode(message)).collect::<Result<Vec<_>>>()?;
        let mut contents = self.shared.outbox.open()?;
        let mut count = 0;
        for (message, (channel, encoded)) in messages.iter().zip(encoded) {
            if contents.buffer.is_full() {
                break;
            }
            if let Err(error) = self.append(&mut contents, message, channel, encoded, None) {
                self.wake(contents)?; // those before it go all the same
                return Err(error);
            }
            count += 1;
        }
        self.wake(contents)?;
        Ok(count)
    }

    /// Refuse a message if the buffer is full and nobody is to wait for room; then nothing is reported to `completion`.
    fn admit(&self, contents: &Contents, completion: Option<Completion>) -> Result<Option<Completion>> {
        if contents.buffer.is_full() && self.shared.settings.on_full != OnFull::Wait {
            forget(completion);
            return Err(contents.buffer.full_error());
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
        let mut contents = self.shared.outbox.open()?;
        let completion = self.admit(&contents, Some(completion))?;
        let (channel, wire) = (channel.to_owned(), Encoded::Inline(payload.to_owned()));
        contents.append(Outgoing { channel, wire, since: Instant::now(), completion, sequence: None });
        self.wake(contents)
    }

    /// Messages that failed, with nobody told of each, since this was asked last.
    pub fn take_unreported(&self) -> Unreported {
        std::mem::take(&mut self.shared.outbox.lock().unreported)
    }

    /// Keep `completion` until everything appended before is committed or failed.
    pub fn flush(&self, completion: Completion) -> Result<()> {
        let mut contents = self.shared.outbox.lock();
        contents.buffer.append_flush(completion);
        self.wake(contents)
    }

    /// Keep `completion` until there is room in the buffer.
    pub fn when_space(&self, completion: Completion) {
        self.shared.outbox.when_space(completion);
    }

    /// Accept nothing more, commit what is buffered within `limit`, disconnect.
    pub fn close(&self, limit: Duration, completion: Completion) -> Result<()> {
        let mut contents = self.shared.outbox.lock();
        if contents.is_closed {
            drop(contents);
            completion.finish(Ok(()));
            return Ok(());
        }
        contents.is_closed = true;
        if !contents.is_running && contents.buffer.is_empty() {
            drop(contents);
            let session = self.shared.session.clone();
            runtime::handle()?.spawn(async move {
                session.close().await;
                completion.finish(Ok(()));
            });
            return Ok(());
        }
        contents.closing = Some((completion, Instant::now() + limit));
        self.wake(contents)?;
        self.shared.closed.notify_one();
        Ok(())
    }

    /// Counters and queue depths.
    pub fn stats(&self) -> PublisherStats {
        let contents = self.shared.outbox.lock();
        let (waiting_count, waiting_bytes) = (contents.buffer.count(), contents.buffer.bytes());
        PublisherStats { waiting_count, waiting_bytes, reconnects: self.shared.session.reconnects(), ..contents.stats }
    }

    /// Why nothing was committed at the last attempt, and since when that is so.
    pub fn outage(&self) -> Option<Present> {
        self.shared.outbox.outage.present()
    }

    fn encode(&self, message: &Message) -> Result<(String, Encoded)> {
        let settings = &self.shared.settings;
        let channel = channel_name(&settings.prefix, &message.nsp)?;
        Ok((channel, codec::encode(message, &settings.uid, settings.limits)?))
    }

    fn append(
        &self,
        contents: &mut Contents,
        message: &Message,
        channel: String,
        encoded: Encoded,
        completion: Option<Completion>,
    ) -> Result<()> {
        let settings = &self.shared.settings;
        let sequence = contents.next_sequence(&channel);
        let seal = self.shared.seal(sequence, &channel);
        let wire = codec::finish(encoded, seal, message, &settings.uid, settings.limits)?;
        contents.append(Outgoing { channel, wire, since: Instant::now(), completion, sequence: Some(sequence) });
        Ok(())
    }

    fn wake(&self, mut contents: MutexGuard<'_, Contents>) -> Result<()> {
        if !contents.is_running {
            runtime::handle()?.spawn(run(Arc::clone(&self.shared)));
            contents.is_running = true;
        }
        drop(contents);
        self.shared.changed.notify_one();
        Ok(())
    }
}

impl Shared {
    fn seal<'a>(&'a self, sequence: u64, channel: &'a str) -> Seal<'a> {
        Seal { sequence, process: self.process.as_deref(), key: self.settings.signing_key.as_ref(), channel }
    }

    /// A message for a database that lacks some of its characters. `None`: it is in ASCII, or a text of the user's own.
    fn in_ascii(&self, outgoing: &Outgoing) -> Result<Option<Encoded>> {
        let Some(sequence) = outgoing.sequence else { return Ok(None) };
        let seal = self.seal(sequence, &outgoing.channel);
        codec::in_ascii(&outgoing.wire, seal, &self.settings.uid, self.settings.limits)
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

/// The publisher's task: work until closed, but not past the deadline of [`Publisher::close`].
async fn run(shared: Arc<Shared>) {
    let overtime = async {
        shared.closed.notified().await;
        let deadline = shared.outbox.lock().closing.as_ref().map_or_else(Instant::now, |(_, deadline)| *deadline);
        tokio::time::sleep_until(deadline.into()).await;
    };
    tokio::select! {
        () = work(&shared) => {}
        () = overtime => {}
    }
    shared.outbox.fail_while(&Error::Closed("publisher"), |_| true);
    shared.session.close().await;
    let (closing, waiters) = {
        let mut contents = shared.outbox.lock();
        // In one step with the end: a flush that comes later finds no task, and starts one.
        contents.buffer.answer_flushes();
        contents.is_running = false;
        (contents.closing.take(), contents.take_space_waiters())
    };
    for completion in waiters.into_iter().chain(closing.map(|(completion, _)| completion)) {
        completion.finish(Ok(()));
    }
}

/// Wait for messages, connect, commit group after group.
async fn work(shared: &Shared) {
    let mut backoff = Backoff::default();
    loop {
        let (is_idle, has_messages, is_closed) = {
            let contents = shared.outbox.lock();
            (contents.buffer.is_empty(), contents.buffer.count() > 0, contents.is_closed)
        };
        if is_idle {
            if is_closed {
                return;
            }
            shared.changed.notified().await;
            continue;
        }
        if !has_messages {
            shared.outbox.lock().buffer.take_group(); // only flushes wait
            continue;
        }
        let connection = match shared.session.open().await {
            Ok(connection) => connection,
            Err(error) => {
                if !error.is_transient() {
                    // It has never connected, and waiting cannot mend that: the caller must hear of it now.
                    shared.outbox.fail_while(&error, |_| true);
                }
                wait_after(shared, &error, &mut backoff).await;
                continue;
            }
        };
        let mut group = Flight::take(&shared.outbox, &connection, &shared.table, &shared.echo);
        if connection.is_narrow() {
            group.respell(|outgoing| shared.in_ascii(outgoing));
        }
        match group.commit().await {
            Ok(()) => {
                backoff.reset();
                shared.outbox.outage.ended();
            }
            Err(error) => {
                connection.leave();
                wait_after(shared, &error, &mut backoff).await;
            }
        }
    }
}

/// After a failed attempt: report it, fail what may no longer wait, and wait before the next attempt.
async fn wait_after(shared: &Shared, error: &Error, backoff: &mut Backoff) {
    let age = shared.settings.buffer_age;
    shared.outbox.fail_while(error, |outgoing| outgoing.since.elapsed() >= age);
    if shared.outbox.outage.failed(error) && error.is_transient() {
        shared.outbox.report(error); // otherwise each message has said so
    }
    let mut pause = pin!(sleep(backoff.next_delay()));
    loop {
        {
            let mut contents = shared.outbox.lock();
            // Nothing is in flight here, so a flush need not wait for what was published after it.
            contents.buffer.answer_flushes();
            if contents.is_closed && contents.buffer.is_empty() {
                return;
            }
        }
        tokio::select! {
            () = &mut pause => return,
            () = shared.changed.notified() => {}
        }
    }
}
