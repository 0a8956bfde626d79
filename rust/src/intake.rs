//! From notifications to cluster messages: decode, drop our own, fetch attachments ahead, deliver in order.
//!
//! Order is that of the notifications, per channel: a small message waits behind a large one whose attachment is
//! still being fetched. Attachments of all channels are fetched together, as many as wait, in one query.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::attachment::AttachmentTable;
use crate::backoff::Backoff;
use crate::codec::{self, Received};
use crate::error::{Error, Result};
use crate::inbox::{Item, Notification, Outlet};
use crate::listener::Sink;
use crate::protocol::Message;
use crate::runtime;
use crate::session::Session;

/// Most attachments fetched by one query.
const FETCH_COUNT: usize = 64;
/// How long a message may wait for its attachment while the database cannot be asked.
const FETCH_LIMIT: Duration = Duration::from_secs(10);

/// Counters since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IntakeStats {
    /// Messages handed to Python.
    pub received: u64,
    /// Notifications of our own, dropped.
    pub own: u64,
    /// Messages that could not be decoded, dropped.
    pub undecodable: u64,
    /// Messages whose attachment was missing or could not be fetched, dropped.
    pub attachments_missing: u64,
    /// Attachments fetched.
    pub attachments: u64,
    /// Messages dropped because Python did not keep up.
    pub overflowed: u64,
}

enum Slot {
    Ready(Message),
    Fetching(i64),
    Lost,
}

struct Wanted {
    id: i64,
    channel: String,
    uid: String,
    nsp: String,
    since: Instant,
}

#[derive(Default)]
struct State {
    lanes: HashMap<String, VecDeque<Slot>>,
    wanted: VecDeque<Wanted>,
    stats: IntakeStats,
    is_fetching: bool,
    is_overflowing: bool,
}

struct Shared {
    uid: String,
    prefix: String,
    session: Session,
    table: Arc<AttachmentTable>,
    outlet: Outlet,
    state: Mutex<State>,
    closed: Notify,
}

/// See the module documentation.
#[derive(Clone)]
pub struct Intake {
    shared: Arc<Shared>,
}

impl Intake {
    /// An intake for messages under `prefix`, dropping those of `uid`.
    pub fn new(uid: String, prefix: String, session: Session, table: Arc<AttachmentTable>, outlet: Outlet) -> Self {
        let (state, closed) = (Mutex::default(), Notify::new());
        Self { shared: Arc::new(Shared { uid, prefix, session, table, outlet, state, closed }) }
    }

    /// Counters.
    pub fn stats(&self) -> IntakeStats {
        self.shared.lock().stats
    }

    /// Stop fetching.
    pub fn close(&self) {
        self.shared.closed.notify_one();
    }
}

impl Sink for Intake {
    fn take(&self, notification: Notification) {
        let shared = &self.shared;
        let Notification { channel, payload, .. } = notification;
        let nsp = channel.strip_prefix(&shared.prefix).and_then(|rest| rest.strip_prefix('#')).unwrap_or("/");
        let received = codec::decode_notification(&payload, nsp);
        let mut state = shared.lock();
        match received {
            Err(error) => {
                state.stats.undecodable += 1;
                drop(state);
                shared.outlet.push(Item::Failure(on_channel(error, &channel)));
            }
            Ok(Received::Message(Message { uid, .. }) | Received::Attachment { uid, .. }) if uid == shared.uid => {
                state.stats.own += 1;
            }
            Ok(Received::Message(message)) => match state.lanes.get_mut(&channel) {
                Some(lane) => lane.push_back(Slot::Ready(message)),
                None => shared.deliver(&mut state, message),
            },
            Ok(Received::Attachment { uid, nsp, id }) => {
                state.lanes.entry(channel.clone()).or_default().push_back(Slot::Fetching(id));
                state.wanted.push_back(Wanted { id, channel, uid, nsp, since: Instant::now() });
                if !std::mem::replace(&mut state.is_fetching, true) {
                    drop(state);
                    if let Ok(handle) = runtime::handle() {
                        let shared = Arc::clone(shared);
                        handle.spawn(async move {
                            tokio::select! {
                                () = fetch(&shared) => {}
                                () = shared.closed.notified() => {}
                            }
                        });
                    }
                }
            }
        }
    }
}

fn on_channel(error: Error, channel: &str) -> Error {
    match error {
        Error::Decode { size_bytes, reason, .. } => Error::Decode { channel: channel.to_owned(), size_bytes, reason },
        other => other,
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn deliver(&self, state: &mut State, message: Message) {
        if self.outlet.push(Item::Message(message)) {
            state.stats.received += 1;
            state.is_overflowing = false;
            return;
        }
        state.stats.overflowed += 1;
        if !std::mem::replace(&mut state.is_overflowing, true) {
            let what = "backlog of messages that Python has not taken yet (further ones are dropped)".to_owned();
            let waiting = self.outlet.inbox.bytes();
            self.outlet.push(Item::Failure(Error::TooLarge { what, size_bytes: waiting, limit_bytes: waiting }));
        }
    }

    fn want_again(&self, batch: Vec<Wanted>) {
        let mut state = self.lock();
        for wanted in batch.into_iter().rev() {
            state.wanted.push_front(wanted);
        }
    }

    /// Fill the slot of one attachment and release what it held back.
    fn settle(&self, wanted: &Wanted, body: Option<&[u8]>) {
        let result = match body {
            Some(body) => codec::decode_attachment(body, &wanted.uid, &wanted.nsp)
                .map_err(|error| on_channel(error, &wanted.channel)),
            None => {
                Err(Error::AttachmentMissing { attachment_id: wanted.id.to_string(), channel: wanted.channel.clone() })
            }
        };
        let mut state = self.lock();
        let (slot, failure) = match result {
            Ok(message) => {
                state.stats.attachments += 1;
                (Slot::Ready(message), None)
            }
            Err(error) => {
                match error {
                    Error::AttachmentMissing { .. } => state.stats.attachments_missing += 1,
                    _ => state.stats.undecodable += 1,
                }
                (Slot::Lost, Some(error))
            }
        };
        let Some(mut lane) = state.lanes.remove(&wanted.channel) else { return };
        if let Some(place) = lane.iter_mut().find(|slot| matches!(slot, Slot::Fetching(id) if *id == wanted.id)) {
            *place = slot;
        }
        while let Some(slot) = lane.pop_front() {
            match slot {
                Slot::Ready(message) => self.deliver(&mut state, message),
                Slot::Lost => {}
                waiting @ Slot::Fetching(_) => {
                    lane.push_front(waiting);
                    break;
                }
            }
        }
        if !lane.is_empty() {
            state.lanes.insert(wanted.channel.clone(), lane);
        }
        drop(state);
        if let Some(error) = failure {
            self.outlet.push(Item::Failure(error));
        }
    }
}

/// Fetch attachments until none is wanted.
async fn fetch(shared: &Shared) {
    let mut backoff = Backoff::default();
    loop {
        let batch: Vec<Wanted> = {
            let mut state = shared.lock();
            let count = state.wanted.len().min(FETCH_COUNT);
            if count == 0 {
                state.is_fetching = false;
                return;
            }
            state.wanted.drain(..count).collect()
        };
        let ids: Vec<i64> = batch.iter().map(|wanted| wanted.id).collect();
        match fetch_once(shared, &ids).await {
            Ok(bodies) => {
                backoff.reset();
                for wanted in &batch {
                    shared.settle(wanted, bodies.get(&wanted.id).map(Vec::as_slice));
                }
            }
            Err(error) => {
                if backoff.attempts() == 0 {
                    shared.outlet.push(Item::Failure(error.clone()));
                }
                let (late, rest): (Vec<_>, Vec<_>) = batch
                    .into_iter()
                    .partition(|wanted| !error.is_transient() || wanted.since.elapsed() >= FETCH_LIMIT);
                for wanted in &late {
                    shared.settle(wanted, None);
                }
                shared.want_again(rest);
                shared.session.close().await;
                tokio::time::sleep(backoff.next_delay()).await;
            }
        }
    }
}

async fn fetch_once(shared: &Shared, ids: &[i64]) -> Result<HashMap<i64, Vec<u8>>> {
    let client = shared.session.client().await?;
    shared.table.fetch(&client, ids).await
}
