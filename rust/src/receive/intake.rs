//! From notifications to cluster messages: verify, decode, drop this server's own, detect gaps, prefetch attachments,
//! deliver in order.
//!
//! Messages are delivered in the order of their notifications, per channel: a small message waits behind a large one
//! whose attachment is still being fetched. One query fetches the waiting attachments of all channels, within limits.
//!
//! Nothing here waits for Python. Messages that do not fit into the buffer are dropped, and a gap takes their place.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::Notify;

use crate::connect::backoff::Backoff;
use crate::connect::runtime;
use crate::connect::session::Session;
use crate::error::{Error, Result};
use crate::handover::item::{Item, Recipient, SMALL_BYTES};
use crate::lock::Mutex;
use crate::receive::attachment::{AttachmentTable, Body};
use crate::receive::echo::Echo;
use crate::receive::lanes::{Lanes, Slot};
use crate::receive::listener::Sink;
use crate::receive::rooms::Rooms;
use crate::receive::sequence::{Arrival, Sender, Sequences};
use crate::wire::codec::{self, Received};
use crate::wire::gap::{Gap, Overflow, Reason};
use crate::wire::protocol::{EMITTER_UID, Message};
use crate::wire::signature::{Signed, SigningKey};

/// Maximum number of attachments fetched by one query.
const FETCH_COUNT: usize = 64;
/// Maximum size of these attachments, unless a single one is larger.
const FETCH_BYTES: usize = 16 * 1024 * 1024;
/// How long a message may wait for its attachment while the database is unavailable.
const FETCH_LIMIT: Duration = Duration::from_secs(10);
/// Maximum number of servers remembered for `seen_interval`.
const SEEN_LIMIT: usize = 10_000;

/// An intake's settings.
pub struct IntakeSettings {
    /// This server's id; messages that carry it are the server's own.
    pub uid: String,
    /// Channel prefix.
    pub prefix: String,
    /// Maximum size of the messages that wait for Python or behind an attachment.
    pub buffer_bytes: usize,
    /// Largest attachment that is read.
    pub max_payload_bytes: usize,
    /// How often Python is told that a server is alive when its messages have no receiver on this server. A small
    /// fraction of the time after which that server would be considered dead.
    pub seen_interval: Duration,
    /// Verifies every message.
    pub signing_key: Option<SigningKey>,
}

/// Counters since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IntakeStats {
    /// Messages handed to Python.
    pub received: u64,
    /// Messages without a receiver on this server, dropped.
    pub irrelevant: u64,
    /// Notifications of this server itself, dropped.
    pub own: u64,
    /// Messages received before, dropped.
    pub duplicates: u64,
    /// Messages that could not be decoded, dropped.
    pub undecodable: u64,
    /// Messages without a valid signature, dropped.
    pub bad_signatures: u64,
    /// Messages whose attachment was missing, too large or could not be fetched, dropped.
    pub attachments_missing: u64,
    /// Attachments fetched.
    pub attachments: u64,
    /// Attachments without a receiver on this server according to their headers, not fetched. Also counted as
    /// irrelevant.
    pub attachments_skipped: u64,
    /// Messages dropped because Python did not read fast enough.
    pub overflowed: u64,
    /// Number of gaps detected.
    pub gaps: u64,
    /// Messages known to be missing.
    pub missing: u64,
    /// Current size of the messages that wait behind an attachment.
    pub held_bytes: usize,
}

/// The origin of a message, as reported to the application when the message is lost.
#[derive(Clone)]
struct Source {
    nsp: String,
    sender: String,
}

impl Source {
    fn gap(&self, reason: Reason, missing: u64, since: SystemTime) -> Gap {
        let (nsp, sender) = (Some(self.nsp.clone()), Some(self.sender.clone()));
        Gap { reason, nsp, sender, missing: Some(missing), since }
    }
}

/// An attachment that was announced.
struct Wanted {
    id: i64,
    channel: String,
    uid: String,
    from: Source,
    signed: Option<Signed>,
    since: Instant,
    arrived: SystemTime,
}

#[derive(Default)]
struct State {
    lanes: Lanes,
    wanted: VecDeque<Wanted>,
    sequences: Sequences,
    /// The time when Python was last told that a server is alive, by namespace and server.
    seen: foldhash::HashMap<String, foldhash::HashMap<String, SystemTime>>,
    stats: IntakeStats,
    is_fetching: bool,
}

/// See the module documentation.
pub struct Intake {
    settings: IntakeSettings,
    session: Session,
    table: Arc<AttachmentTable>,
    echo: Arc<Echo>,
    rooms: Arc<Rooms>,
    recipient: Recipient,
    state: Mutex<State>,
    closed: Notify,
}

impl Intake {
    /// An intake for the messages of one cluster. It drops the server's own messages, which it reports to `echo`, and
    /// messages that according to `rooms` have no receiver on this server.
    pub fn new(
        settings: IntakeSettings,
        session: Session,
        table: Arc<AttachmentTable>,
        echo: Arc<Echo>,
        rooms: Arc<Rooms>,
        recipient: Recipient,
    ) -> Arc<Self> {
        let (state, closed) = (Mutex::default(), Notify::new());
        Arc::new(Self { settings, session, table, echo, rooms, recipient, state, closed })
    }

    /// Counters.
    pub fn stats(&self) -> IntakeStats {
        let state = self.state.lock();
        IntakeStats { held_bytes: state.lanes.bytes(), ..state.stats }
    }

    /// Stop fetching.
    pub fn close(&self) {
        self.closed.notify_one();
    }
}

impl Sink for Arc<Intake> {
    fn take(&self, channel: &str, payload: &str, _: i32, arrived: SystemTime) {
        if let Err(error) = self.receive(channel, payload, arrived) {
            self.skip(on_channel(error, channel));
        }
        self.fetch_if_wanted();
    }

    fn skip(&self, error: Error) {
        {
            let stats = &mut self.state.lock().stats;
            match error {
                Error::Signature { .. } => stats.bad_signatures += 1,
                _ => stats.undecodable += 1,
            }
        }
        self.recipient.push(Item::Failure(error));
    }

    fn lost(&self, since: SystemTime) {
        self.state.lock().stats.gaps += 1;
        self.recipient.push(Item::Gap(Gap {
            reason: Reason::Reconnect,
            nsp: None,
            sender: None,
            missing: None,
            since,
        }));
    }

    fn unlistened(&self, channel: &str) {
        self.state.lock().sequences.forget(channel);
    }
}

impl Intake {
    fn fetch_if_wanted(self: &Arc<Self>) {
        {
            let mut state = self.state.lock();
            if state.wanted.is_empty() || std::mem::replace(&mut state.is_fetching, true) {
                return;
            }
        }
        if let Ok(handle) = runtime::handle() {
            let intake = Arc::clone(self);
            handle.spawn(async move {
                tokio::select! {
                    () = fetch(&intake) => {}
                    () = intake.closed.notified() => {}
                }
            });
        }
    }
}

fn on_channel(error: Error, channel: &str) -> Error {
    match error {
        Error::Decode { size_bytes, reason, .. } => Error::Decode { channel: channel.to_owned(), size_bytes, reason },
        other => other,
    }
}

/// The origin of a message, as the message states it.
#[derive(Clone, Copy)]
struct Origin<'a> {
    nsp: &'a str,
    uid: &'a str,
    process: Option<&'a str>,
}

/// The sender's name for the application: a server's id; for an emitter, the id and the process.
fn sender_of(uid: &str, process: Option<&str>) -> String {
    match process {
        Some(process) if uid == EMITTER_UID => format!("{uid}/{process}"),
        _ => uid.to_owned(),
    }
}

impl Intake {
    fn receive(&self, channel: &str, payload: &str, arrived: SystemTime) -> Result<()> {
        let settings = &self.settings;
        let bad = |reason| Error::Signature { channel: channel.to_owned(), reason };
        let signed = match &settings.signing_key {
            Some(key) => Some(key.verify(channel, payload).map_err(bad)?),
            None => None,
        };
        let nsp = channel.strip_prefix(&settings.prefix).and_then(|rest| rest.strip_prefix('#')).unwrap_or("/");
        if self.drop_irrelevant(channel, payload, nsp, arrived) {
            return Ok(());
        }
        let (received, stamp) = codec::decode_stamped(payload, nsp)?;
        let (Received::Message(Message { uid, nsp, .. }) | Received::Attachment { uid, nsp, .. }) = &received;
        if *uid == settings.uid && uid != EMITTER_UID {
            self.state.lock().stats.own += 1;
            if let Some(number) = stamp.sequence {
                self.echo.arrived(channel, number, Instant::now());
            }
            return Ok(());
        }
        let process = stamp.process.as_deref();
        let mut state = self.state.lock();
        if !self.observe(&mut state, channel, Origin { nsp, uid, process }, stamp.sequence, arrived) {
            return Ok(());
        }
        let from = Source { nsp: nsp.clone(), sender: sender_of(uid, process) };
        match received {
            Received::Message(message) if state.lanes.is_held_up(channel) => {
                self.hold(&mut state, channel, Slot::Ready(message, from.sender.clone()), from);
            }
            Received::Message(message) => self.deliver(&mut state, message, from.sender),
            Received::Attachment { uid, id, .. } => {
                if self.hold(&mut state, channel, Slot::Fetching(id), from.clone()) {
                    let (channel, since) = (channel.to_owned(), Instant::now());
                    state.wanted.push_back(Wanted { id, channel, uid, from, signed, since, arrived });
                }
            }
        }
        Ok(())
    }

    /// Drop a message without a receiver on this server, if `glance` can tell. That takes one pass without a copy,
    /// whereas decoding takes several passes and copies, and no attachment is fetched. On a server with few clients in
    /// a busy cluster, most messages are of this kind.
    fn drop_irrelevant(&self, channel: &str, payload: &str, channel_nsp: &str, arrived: SystemTime) -> bool {
        let Some(glance) = codec::glance(payload) else { return false };
        let nsp = glance.nsp.unwrap_or(channel_nsp);
        if glance.uid == self.settings.uid || !self.rooms.are_empty(nsp, glance.rooms()) {
            return false;
        }
        let mut state = self.state.lock();
        if state.lanes.is_held_up(channel) {
            return false; // a message in the lane may make sockets join the rooms
        }
        if self.observe(
            &mut state,
            channel,
            Origin { nsp, uid: glance.uid, process: glance.process },
            glance.sequence,
            arrived,
        ) {
            state.stats.irrelevant += 1;
            state.stats.attachments_skipped += u64::from(glance.is_attachment);
            self.pass_sign_of_life(&mut state, nsp, glance.uid, arrived);
        }
        true
    }

    /// Check a message's sequence number, and report a gap before it. Returns false for a repeated message.
    fn observe(
        &self,
        state: &mut State,
        channel: &str,
        origin: Origin<'_>,
        number: Option<u64>,
        arrived: SystemTime,
    ) -> bool {
        let Origin { nsp, uid, process } = origin;
        let Some(number) = number else { return true };
        let sender = if uid == EMITTER_UID { Sender::Emitter(process.unwrap_or(uid)) } else { Sender::Server(uid) };
        match state.sequences.observe(channel, sender, number, arrived) {
            Arrival::InOrder => {}
            Arrival::Repeated => {
                state.stats.duplicates += 1;
                return false;
            }
            Arrival::Hole { missing, since } => {
                let from = Source { nsp: nsp.to_owned(), sender: sender_of(uid, process) };
                self.append_gap(state, channel, from.gap(Reason::Hole, missing, since));
            }
        }
        true
    }

    /// Append a gap to a channel's lane, or pass it on when there is no lane.
    fn append_gap(&self, state: &mut State, channel: &str, gap: Gap) {
        if !state.lanes.is_held_up(channel) {
            self.release(state, Slot::Gap(gap));
        } else if self.has_room(state, SMALL_BYTES) {
            state.lanes.keep(channel, Slot::Gap(gap));
        } else {
            state.lanes.keep_overflow(channel, Overflow::from_gap(gap));
        }
    }

    fn has_room(&self, state: &State, size: usize) -> bool {
        let waiting = state.lanes.bytes() + self.recipient.inbox.bytes();
        waiting == 0 || waiting + size <= self.settings.buffer_bytes
    }

    /// Append a message, or an announced attachment, to the channel's lane. Returns false when there is no room and the
    /// message is dropped.
    fn hold(&self, state: &mut State, channel: &str, slot: Slot, from: Source) -> bool {
        if self.has_room(state, slot.size_bytes()) {
            state.lanes.keep(channel, slot);
            return true;
        }
        state.stats.overflowed += 1;
        let overflow = Overflow::of(Some(from.nsp), Some(from.sender));
        if state.lanes.is_held_up(channel) {
            state.lanes.keep_overflow(channel, overflow);
        } else {
            self.overflow(state, overflow);
        }
        false
    }

    /// Pass the first slot of a lane on to Python.
    fn release(&self, state: &mut State, slot: Slot) {
        match slot {
            Slot::Ready(message, sender) => self.deliver(state, message, sender),
            Slot::Gap(gap) => {
                state.stats.gaps += 1;
                state.stats.missing = state.stats.missing.saturating_add(gap.missing.unwrap_or_default());
                self.recipient.push(Item::Gap(gap));
            }
            Slot::Overflow(overflow) => self.overflow(state, overflow),
            Slot::Fetching(_) => {}
        }
    }

    fn deliver(&self, state: &mut State, mut message: Message, sender: String) {
        if message.uid.is_empty() {
            EMITTER_UID.clone_into(&mut message.uid); // only messages created by Python itself have no uid
        }
        if !self.rooms.admit(&message) {
            state.stats.irrelevant += 1;
            self.pass_sign_of_life(state, &message.nsp, &message.uid, SystemTime::now());
            return;
        }
        let nsp = message.nsp.clone();
        let joined = message.joined().to_vec();
        if self.recipient.push(Item::Message(message)) {
            state.stats.received += 1;
        } else {
            self.rooms.settled(&nsp, &joined);
            state.stats.overflowed += 1;
            self.overflow(state, Overflow::of(Some(nsp), Some(sender)));
        }
    }

    /// Report that a peer is alive although all its messages are irrelevant to this server.
    fn pass_sign_of_life(&self, state: &mut State, nsp: &str, uid: &str, now: SystemTime) {
        if uid == EMITTER_UID {
            return;
        }
        let last = state.seen.get(nsp).and_then(|uids| uids.get(uid));
        // After the clock was set back, the duration of the silence is unknown.
        let silence = last.and_then(|at| now.duration_since(*at).ok());
        if silence.is_some_and(|silence| silence < self.settings.seen_interval) {
            return;
        }
        if state.seen.values().map(foldhash::HashMap::len).sum::<usize>() >= SEEN_LIMIT {
            state.seen.clear();
        }
        self.recipient.push(Item::Seen { nsp: nsp.to_owned(), uid: uid.to_owned() });
        state.seen.entry(nsp.to_owned()).or_default().insert(uid.to_owned(), now);
    }

    fn overflow(&self, state: &mut State, overflow: Overflow) {
        state.stats.missing = state.stats.missing.saturating_add(overflow.missing());
        if self.recipient.push_overflow(overflow) {
            state.stats.gaps += 1;
        }
    }

    fn want_again(&self, batch: impl DoubleEndedIterator<Item = Wanted>) {
        let mut state = self.state.lock();
        for wanted in batch.rev() {
            state.wanted.push_front(wanted);
        }
    }

    /// Give up attachments that have waited too long. Only the time since `in_vain`, during which the database was
    /// unavailable, counts.
    fn give_up(&self, in_vain: Instant) {
        let late: Vec<Wanted> = {
            let mut state = self.state.lock();
            let is_late = |wanted: &Wanted| wanted.since.max(in_vain).elapsed() >= FETCH_LIMIT;
            let count = state.wanted.iter().take_while(|wanted| is_late(wanted)).count();
            state.wanted.drain(..count).collect()
        };
        for wanted in late {
            let missing = missing(&wanted);
            self.settle(wanted, Err(missing));
        }
    }

    /// Fill the slot of one attachment and release the slots that waited behind it.
    fn settle(&self, wanted: Wanted, body: Result<&[u8]>) {
        let result = body.and_then(|body| {
            if wanted.signed.as_ref().is_some_and(|signed| !signed.covers(body)) {
                let reason = "its attachment is not the one that was signed";
                return Err(Error::Signature { channel: wanted.channel.clone(), reason });
            }
            codec::decode_attachment(body, &wanted.uid, &wanted.from.nsp)
        });
        let mut state = self.state.lock();
        let (slot, failure) = match result {
            Ok(message) => {
                state.stats.attachments += 1;
                (Slot::Ready(message, wanted.from.sender), None)
            }
            Err(error) => {
                match error {
                    Error::Decode { .. } => state.stats.undecodable += 1,
                    Error::Signature { .. } => state.stats.bad_signatures += 1,
                    _ => state.stats.attachments_missing += 1,
                }
                (Slot::Gap(wanted.from.gap(Reason::Attachment, 1, wanted.arrived)), Some(error))
            }
        };
        for slot in state.lanes.fill(&wanted.channel, wanted.id, slot) {
            self.release(&mut state, slot);
        }
        drop(state);
        if let Some(error) = failure {
            self.recipient.push(Item::Failure(on_channel(error, &wanted.channel)));
        }
    }
}

/// Fetch attachments until none is announced any more.
async fn fetch(intake: &Intake) {
    let mut backoff = Backoff::default();
    // The time of the first failed query since the last success.
    let mut in_vain: Option<Instant> = None;
    loop {
        let batch: Vec<Wanted> = {
            let mut state = intake.state.lock();
            // After a failure, only the first attachment is fetched, which has the best chance to succeed.
            let count = state.wanted.len().min(if in_vain.is_none() { FETCH_COUNT } else { 1 });
            if count == 0 {
                state.is_fetching = false;
                return;
            }
            state.wanted.drain(..count).collect()
        };
        let ids: Vec<i64> = batch.iter().map(|wanted| wanted.id).collect();
        let began = Instant::now();
        match fetch_once(intake, &ids).await {
            Ok(bodies) => {
                backoff.reset();
                in_vain = None;
                settle_batch(intake, batch, &bodies);
            }
            Err(error) => {
                intake.table.forget_if_gone(&error).await;
                if backoff.attempts() == 0 {
                    intake.recipient.push(Item::Failure(error.clone()));
                }
                if error.is_transient() || error.is_connection_lost() {
                    intake.want_again(batch.into_iter());
                    if let Some(since) = in_vain {
                        intake.give_up(since); // not before a second attempt, on a new connection
                    }
                    in_vain = in_vain.or(Some(began));
                } else {
                    for wanted in batch {
                        let missing = missing(&wanted);
                        intake.settle(wanted, Err(missing));
                    }
                }
                tokio::time::sleep(backoff.next_delay()).await;
            }
        }
    }
}

/// Settle the attachments that were fetched, up to the first that did not fit into this batch.
fn settle_batch(intake: &Intake, batch: Vec<Wanted>, bodies: &HashMap<i64, Body>) {
    let mut batch = batch.into_iter();
    while let Some(wanted) = batch.next() {
        match bodies.get(&wanted.id) {
            Some(Body::Later) => {
                intake.want_again(std::iter::once(wanted).chain(batch));
                return;
            }
            Some(Body::Bytes(bytes)) => intake.settle(wanted, Ok(bytes)),
            Some(Body::TooLarge(size_bytes)) => {
                let what = format!("attachment {} announced on channel {:?}", wanted.id, wanted.channel);
                let (size_bytes, limit_bytes) = (*size_bytes, intake.settings.max_payload_bytes);
                intake.settle(wanted, Err(Error::TooLarge { what, size_bytes, limit_bytes }));
            }
            None => {
                let missing = missing(&wanted);
                intake.settle(wanted, Err(missing));
            }
        }
    }
}

fn missing(wanted: &Wanted) -> Error {
    Error::AttachmentMissing { attachment_id: wanted.id.to_string(), channel: wanted.channel.clone() }
}

async fn fetch_once(intake: &Intake, ids: &[i64]) -> Result<HashMap<i64, Body>> {
    let connection = intake.session.open().await?;
    let limit = intake.settings.max_payload_bytes;
    let fetch = |client| intake.table.fetch(client, ids, limit, FETCH_BYTES);
    let found = connection.ask("fetch attachments", fetch).await;
    if found.is_err() {
        connection.leave(); // another connection may lead to a server that can answer
    }
    found
}
