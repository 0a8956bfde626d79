//! Publishing: a bounded, ordered buffer, and one connection that commits its messages in groups.
//!
//! When nothing is in flight, a message is sent at once. Messages that are queued while a group is in flight form the
//! next group, which is one statement and therefore one transaction and one round trip. There is no timer. Because
//! there is only one connection, messages are committed in the order of the calls.

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
use crate::publish::buffer::{Buffer, Outgoing, PublisherStats, Queue, Unreported};
use crate::publish::flight::Flight;
use crate::publish::framer::random_id;
use crate::publish::place::{self, Place};
use crate::receive::attachment::AttachmentTable;
use crate::receive::echo::Echo;
use crate::wire::codec::{self, Encoded, Limits, Mark, Seal};
use crate::wire::protocol::{EMITTER_UID, Message, NOTIFY_LIMIT_BYTES, channel_name, check_channel};
use crate::wire::signature::SigningKey;

/// The policy for a message when the buffer has no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFull {
    /// The message is buffered all the same, in call order, and its sender waits for room before it continues. The
    /// buffer exceeds its limits by at most one message per waiting sender.
    Wait,
    /// The message is refused.
    Raise,
    /// The message is dropped and reported. A caller that waits for its commit gets an error at once.
    Drop,
}

/// A publisher's settings, chosen by the Python layer.
#[derive(Clone)]
pub struct PublisherSettings {
    /// Server id under which messages are published.
    pub uid: String,
    /// Channel prefix.
    pub prefix: String,
    /// Size limits of a message.
    pub limits: Limits,
    /// Maximum number of messages waiting to be committed.
    pub buffer_count: usize,
    /// Maximum size of the messages waiting to be committed.
    pub buffer_bytes: usize,
    /// Longest time a message waits for a connection before it fails.
    pub buffer_age: Duration,
    /// What happens when the buffer is full.
    pub on_full: OnFull,
    /// Signs every message.
    pub signing_key: Option<SigningKey>,
}

/// See the module documentation.
pub struct Publisher {
    settings: PublisherSettings,
    /// Identifies this emitter process; `None` for a server, which has a server id of its own.
    process: Option<String>,
    session: Session,
    table: Arc<AttachmentTable>,
    echo: Arc<Echo>,
    buffer: Buffer,
    changed: Notify,
    closed: Notify,
}

impl Publisher {
    /// A publisher, which connects with the first message or with [`Publisher::start`]. It tells `echo` which messages
    /// to expect.
    pub fn new(
        settings: PublisherSettings,
        session: Session,
        table: Arc<AttachmentTable>,
        echo: Arc<Echo>,
        recipient: Recipient,
    ) -> Result<Self> {
        let buffer = Buffer::new(settings.buffer_count, settings.buffer_bytes, recipient);
        let process = if settings.uid == EMITTER_UID { Some(random_id()?) } else { None };
        let (changed, closed) = (Notify::new(), Notify::new());
        Ok(Self { settings, process, session, table, echo, buffer, changed, closed })
    }

    /// Connect now, in a single attempt. With `check_table`, also check the attachment table.
    pub fn start(self: &Arc<Self>, check_table: bool, completion: Completion) -> Result<()> {
        let this = Arc::clone(self);
        runtime::handle()?.spawn(async move {
            let result = async {
                let connection = this.session.open().await?;
                if check_table {
                    connection.ask("look up the attachment table", |client| this.table.ensure(client)).await?;
                }
                this.buffer.outage.ended();
                Ok(())
            };
            completion.finish(result.await);
        });
        Ok(())
    }

    /// Append a cluster message to the buffer; once the message is admitted, `waiter` creates the completion for its
    /// commit. `Ok(false)` means that the buffer is full: wait for room (`when_space`) before the next message.
    pub fn publish(self: &Arc<Self>, message: &Message, waiter: Option<impl FnOnce() -> Completion>) -> Result<bool> {
        let (channel, encoded) = self.encode(message)?;
        let mut queue = self.buffer.open()?;
        let had_room = !queue.is_full();
        if !had_room && self.settings.on_full == OnFull::Drop && waiter.is_none() {
            let news = queue.give_up(&channel);
            drop(queue);
            if let Some(error) = news {
                self.buffer.report(&error);
            }
            return Ok(true);
        }
        self.admit(&queue)?;
        self.append(&mut queue, message, channel, encoded, || waiter.map(|promise| promise()))?;
        self.wake(queue)?;
        Ok(had_room)
    }

    /// Append messages so that they share a transaction, as far as there is room; returns how many were appended.
    pub fn publish_many(self: &Arc<Self>, messages: &[&Message]) -> Result<usize> {
        let encoded = messages.iter().map(|message| self.encode(message)).collect::<Result<Vec<_>>>()?;
        let mut queue = self.buffer.open()?;
        let mut count = 0;
        for (message, (channel, encoded)) in messages.iter().zip(encoded) {
            if queue.is_full() {
                break;
            }
            if let Err(error) = self.append(&mut queue, message, channel, encoded, || None) {
                self.wake(queue)?; // the messages before it are sent all the same
                return Err(error);
            }
            count += 1;
        }
        self.wake(queue)?;
        Ok(count)
    }

    /// Refuse a message if the buffer is full and the policy is not to wait for room.
    fn admit(&self, queue: &Queue) -> Result<()> {
        let is_refused = queue.is_full() && self.settings.on_full != OnFull::Wait;
        if is_refused { Err(queue.full_error()) } else { Ok(()) }
    }

    /// Append a raw notification with the caller's payload; `waiter` as in [`Publisher::publish`].
    pub fn notify(self: &Arc<Self>, channel: &str, payload: &str, waiter: impl FnOnce() -> Completion) -> Result<()> {
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
        let mut queue = self.buffer.open()?;
        self.admit(&queue)?;
        let (channel, wire) = (channel.to_owned(), Encoded::Inline(payload.to_owned()));
        let completion = Some(waiter());
        queue.append(Outgoing { channel, wire, since: Instant::now(), completion, sequence: None });
        self.wake(queue)
    }

    /// Find out which database this publisher is connected to, as [`place::ask`] does; with `needs_table`, also the
    /// name of the attachment table there.
    pub fn find_place(self: &Arc<Self>, needs_table: bool, completion: Completion<Place>) -> Result<()> {
        let this = Arc::clone(self);
        runtime::handle()?.spawn(async move {
            let result = async {
                let connection = this.session.open().await?;
                let table = needs_table.then(|| Arc::clone(&this.table));
                connection.ask("find out which database this is", |client| place::ask(client, table)).await
            };
            completion.finish(result.await);
        });
        Ok(())
    }

    /// Failures of messages without a completion since the last call.
    pub fn take_unreported(&self) -> Unreported {
        std::mem::take(&mut self.buffer.lock().unreported)
    }

    /// Finish `completion` once every message appended before is committed or has failed.
    pub fn flush(self: &Arc<Self>, completion: Completion) -> Result<()> {
        let mut queue = self.buffer.lock();
        queue.append_flush(completion);
        self.wake(queue)
    }

    /// Finish `completion` once there is room in the buffer.
    pub fn when_space(&self, completion: Completion) {
        self.buffer.when_space(completion);
    }

    /// Accept no more messages, commit the buffered ones within `limit`, and disconnect.
    pub fn close(self: &Arc<Self>, limit: Duration, completion: Completion) -> Result<()> {
        let mut queue = self.buffer.lock();
        if queue.is_closed && queue.is_running {
            queue.closing.push(completion); // waits for the close under way, with its deadline
            return Ok(());
        }
        if queue.is_closed {
            drop(queue);
            completion.finish(Ok(()));
            return Ok(());
        }
        queue.is_closed = true;
        if !queue.is_running && queue.is_empty() {
            drop(queue);
            let session = self.session.clone();
            runtime::handle()?.spawn(async move {
                session.close().await;
                completion.finish(Ok(()));
            });
            return Ok(());
        }
        queue.closing.push(completion);
        queue.closes_at = Some(Instant::now() + limit);
        self.wake(queue)?;
        self.closed.notify_one();
        Ok(())
    }

    /// Counters and queue depths.
    pub fn stats(&self) -> PublisherStats {
        let queue = self.buffer.lock();
        PublisherStats { reconnects: self.session.reconnects(), ..queue.stats }
    }

    /// The current outage: the error of the last attempt, and the time of the first failure.
    pub fn outage(&self) -> Option<Present> {
        self.buffer.outage.present()
    }

    fn encode(&self, message: &Message) -> Result<(String, Encoded)> {
        let settings = &self.settings;
        let channel = channel_name(&settings.prefix, &message.nsp)?;
        Ok((channel, codec::encode(message, &settings.uid, settings.limits)?))
    }

    fn append(
        &self,
        queue: &mut Queue,
        message: &Message,
        channel: String,
        encoded: Encoded,
        completion: impl FnOnce() -> Option<Completion>,
    ) -> Result<()> {
        let settings = &self.settings;
        let sequence = queue.next_sequence(&channel);
        let seal = self.seal(sequence, &channel);
        let wire = codec::finish(encoded, seal, message, &settings.uid, settings.limits)?;
        let (since, completion) = (Instant::now(), completion());
        queue.append(Outgoing { channel, wire, since, completion, sequence: Some(sequence) });
        Ok(())
    }

    fn wake(self: &Arc<Self>, mut queue: MutexGuard<'_, Queue>) -> Result<()> {
        if !queue.is_running {
            runtime::handle()?.spawn(run(Arc::clone(self)));
            queue.is_running = true;
        }
        drop(queue);
        self.changed.notify_one();
        Ok(())
    }

    fn seal<'a>(&'a self, sequence: u64, channel: &'a str) -> Seal<'a> {
        let mark = Mark::Number { sequence, process: self.process.as_deref() };
        Seal { mark, key: self.settings.signing_key.as_ref(), channel }
    }

    /// The message in ASCII, for a database whose encoding lacks some of its characters. `None` if the message is ASCII
    /// already, or a raw payload of the user.
    fn in_ascii(&self, outgoing: &Outgoing) -> Result<Option<Encoded>> {
        let Some(sequence) = outgoing.sequence else { return Ok(None) };
        let seal = self.seal(sequence, &outgoing.channel);
        codec::in_ascii(&outgoing.wire, seal, &self.settings.uid, self.settings.limits)
    }
}

/// The publisher's task: works until the publisher is closed, at most until the deadline of [`Publisher::close`].
async fn run(publisher: Arc<Publisher>) {
    let overtime = async {
        publisher.closed.notified().await;
        let deadline = publisher.buffer.lock().closes_at.unwrap_or_else(Instant::now);
        tokio::time::sleep_until(deadline.into()).await;
    };
    tokio::select! {
        () = work(&publisher) => {}
        () = overtime => {}
    }
    publisher.buffer.fail_while(&Error::Closed("publisher"), |_| true);
    publisher.session.close().await;
    let (closing, waiters) = {
        let mut queue = publisher.buffer.lock();
        // Under the same lock as the end of the task, so that a later flush finds no task and starts one.
        queue.answer_flushes();
        queue.is_running = false;
        (std::mem::take(&mut queue.closing), queue.take_space_waiters())
    };
    for completion in waiters.into_iter().chain(closing) {
        completion.finish(Ok(()));
    }
}

/// Wait for messages, connect, commit group after group.
async fn work(publisher: &Publisher) {
    let mut backoff = Backoff::default();
    loop {
        let (is_idle, is_closed) = {
            let mut queue = publisher.buffer.lock();
            queue.answer_flushes();
            (queue.is_empty(), queue.is_closed)
        };
        if is_idle {
            if is_closed {
                return;
            }
            publisher.changed.notified().await;
            continue;
        }
        let connection = match publisher.session.open().await {
            Ok(connection) => connection,
            Err(error) => {
                if !error.is_transient() {
                    // No attempt has ever succeeded and waiting cannot cure the error, so the caller must get it now.
                    publisher.buffer.fail_while(&error, |_| true);
                }
                wait_after(publisher, &error, &mut backoff).await;
                continue;
            }
        };
        let mut group = Flight::take(&publisher.buffer, &connection, &publisher.table, &publisher.echo);
        if connection.is_narrow() {
            group.respell(|outgoing| publisher.in_ascii(outgoing));
        }
        match group.commit().await {
            Ok(()) => {
                backoff.reset();
                publisher.buffer.outage.ended();
            }
            Err(error) => {
                connection.leave();
                wait_after(publisher, &error, &mut backoff).await;
            }
        }
    }
}

/// After a failed attempt: report it, fail messages that have waited too long, and wait before the next attempt.
async fn wait_after(publisher: &Publisher, error: &Error, backoff: &mut Backoff) {
    let age = publisher.settings.buffer_age;
    publisher.buffer.fail_while(error, |outgoing| outgoing.since.elapsed() >= age);
    if publisher.buffer.outage.failed(error) && error.is_transient() {
        publisher.buffer.report(error); // otherwise each message has reported the error
    }
    let mut pause = pin!(sleep(backoff.next_delay()));
    loop {
        {
            let mut queue = publisher.buffer.lock();
            // Nothing is in flight here, so a flush need not wait for messages that were published after it.
            queue.answer_flushes();
            if queue.is_closed && queue.is_empty() {
                return;
            }
        }
        tokio::select! {
            () = &mut pause => return,
            () = publisher.changed.notified() => {}
        }
    }
}
