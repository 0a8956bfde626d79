//! Listening: a connection of its own that holds `LISTEN` for the wanted channels and is opened again for ever.
//!
//! The session runs nothing but `LISTEN`, `UNLISTEN` and a probe, never a transaction, and reading it never waits for
//! anyone: a notification goes to a [`Sink`] that must not block. Otherwise PostgreSQL could neither shrink the
//! notification queue nor vacuum, for the whole database.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_postgres::{AsyncMessage, Client};

use crate::backoff::Backoff;
use crate::connection::{Connection, Connector};
use crate::error::{Error, Result};
use crate::inbox::{Completion, Item, Notification, Outcome, Outlet};
use crate::protocol::{check_channel, quote_identifier};
use crate::runtime;

/// Takes notifications, in the order of their commits. Called on the background thread; must not block.
pub trait Sink: Send + Sync + 'static {
    /// One notification arrived.
    fn take(&self, notification: Notification);
}

/// Hands raw notifications to Python.
pub struct RawSink {
    /// Where to.
    pub outlet: Outlet,
}

impl Sink for RawSink {
    fn take(&self, notification: Notification) {
        self.outlet.push(Item::Notification(notification));
    }
}

#[derive(Default)]
struct State {
    wanted: BTreeSet<String>,
    /// Channels the present session listens to; `None` while there is no session.
    applied: Option<BTreeSet<String>>,
    waiting: HashMap<String, Vec<Completion>>,
    starting: Vec<Completion>,
    reconnects: u64,
    is_running: bool,
    is_closed: bool,
    closing: Option<Completion>,
}

struct Shared {
    connector: Arc<Connector>,
    probe_interval: Duration,
    sink: Arc<dyn Sink>,
    outlet: Outlet,
    state: Mutex<State>,
    changed: Notify,
    closed: Notify,
}

/// See the module documentation.
pub struct Listener {
    shared: Arc<Shared>,
}

/// State of a listener.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ListenerStats {
    /// Whether a session is open and holds every wanted channel.
    pub is_listening: bool,
    /// Channels wanted.
    pub channels: usize,
    /// Sessions opened after the first one.
    pub reconnects: u64,
}

impl Listener {
    /// A listener that connects with the first channel, or with [`Listener::start`].
    ///
    /// After `probe_interval` of silence from us the session is asked which channels it holds; no answer within
    /// another interval, or the wrong one, ends it and a new one is opened.
    pub fn new(connector: Arc<Connector>, probe_interval: Duration, sink: Arc<dyn Sink>, outlet: Outlet) -> Self {
        let state = Mutex::new(State::default());
        let shared =
            Shared { connector, probe_interval, sink, outlet, state, changed: Notify::new(), closed: Notify::new() };
        Self { shared: Arc::new(shared) }
    }

    /// Connect; `completion` hears of the first success or of an error that waiting cannot mend.
    pub fn start(&self, completion: Completion) -> Result<()> {
        let mut state = self.open_state()?;
        if state.applied.is_some() {
            drop(state);
            completion.finish(Ok(Outcome::Done));
            return Ok(());
        }
        state.starting.push(completion);
        self.wake(state)
    }

    /// Listen to a channel; `completion` hears when `LISTEN` is active.
    pub fn listen(&self, channel: &str, completion: Completion) -> Result<()> {
        check_channel(channel)?;
        let mut state = self.open_state()?;
        state.wanted.insert(channel.to_owned());
        if state.applied.as_ref().is_some_and(|applied| applied.contains(channel)) {
            drop(state);
            completion.finish(Ok(Outcome::Done));
            return Ok(());
        }
        state.waiting.entry(channel.to_owned()).or_default().push(completion);
        self.wake(state)
    }

    /// Stop listening to a channel.
    pub fn unlisten(&self, channel: &str, completion: Completion) -> Result<()> {
        let mut state = self.open_state()?;
        state.wanted.remove(channel);
        if state.applied.as_ref().is_none_or(|applied| !applied.contains(channel)) {
            drop(state);
            completion.finish(Ok(Outcome::Done));
            return Ok(());
        }
        state.waiting.entry(channel.to_owned()).or_default().push(completion);
        self.wake(state)
    }

    /// Disconnect for good.
    pub fn close(&self, completion: Completion) -> Result<()> {
        let mut state = self.shared.lock();
        let was_closed = std::mem::replace(&mut state.is_closed, true);
        if was_closed || !state.is_running {
            drop(state);
            completion.finish(Ok(Outcome::Done));
            return Ok(());
        }
        state.closing = Some(completion);
        drop(state);
        self.shared.closed.notify_one();
        Ok(())
    }

    /// State and counters.
    pub fn stats(&self) -> ListenerStats {
        let state = self.shared.lock();
        ListenerStats {
            is_listening: state.applied.as_ref().is_some_and(|applied| *applied == state.wanted),
            channels: state.wanted.len(),
            reconnects: state.reconnects,
        }
    }

    fn open_state(&self) -> Result<MutexGuard<'_, State>> {
        let state = self.shared.lock();
        if state.is_closed { Err(Error::Closed("listener")) } else { Ok(state) }
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

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn run(shared: Arc<Shared>) {
    tokio::select! {
        () = work(&shared) => {}
        () = shared.closed.notified() => {}
    }
    let mut state = shared.lock();
    state.applied = None;
    state.is_running = false;
    let forgotten = (std::mem::take(&mut state.waiting), std::mem::take(&mut state.starting));
    let closing = state.closing.take();
    drop(state);
    drop(forgotten);
    if let Some(completion) = closing {
        completion.finish(Ok(Outcome::Done));
    }
}

/// Open session after session.
async fn work(shared: &Shared) {
    let mut backoff = Backoff::default();
    let mut sessions = 0u64;
    loop {
        let error = match shared.connector.connect().await {
            Ok(link) => {
                sessions += 1;
                let after_gap = sessions > 1;
                session(shared, link.client, link.connection, after_gap, &mut backoff).await
            }
            Err(error) => error,
        };
        {
            let mut state = shared.lock();
            state.applied = None;
            if !error.is_transient() {
                // Waiting cannot mend this: whoever waits for the session must hear of it now.
                let mut waiting: Vec<_> = state.starting.drain(..).collect();
                waiting.extend(state.waiting.drain().flat_map(|(_, waiting)| waiting));
                drop(state);
                for completion in waiting {
                    completion.finish(Err(error.clone()));
                }
            }
        }
        shared.outlet.push(Item::Failure(error));
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

/// Drive one session until it breaks; returns why.
async fn session(
    shared: &Shared,
    client: Client,
    mut connection: Connection,
    after_gap: bool,
    backoff: &mut Backoff,
) -> Error {
    let lost = |reason: String| Error::ConnectionLost { context: "listen".to_owned(), reason, may_be_sent: false };
    let reading = async {
        loop {
            match std::future::poll_fn(|cx| connection.poll_message(cx)).await {
                Some(Ok(AsyncMessage::Notification(n))) => shared.sink.take(Notification {
                    channel: n.channel().to_owned(),
                    payload: n.payload().to_owned(),
                    pid: n.process_id(),
                }),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Error::from_postgres("listen", &error, false),
                None => return lost("the server closed the connection".to_owned()),
            }
        }
    };
    let listening = async {
        let mut is_first = true;
        loop {
            if let Err(error) = apply(shared, &client).await {
                return error;
            }
            if std::mem::take(&mut is_first) {
                backoff.reset();
                let mut state = shared.lock();
                state.reconnects += u64::from(after_gap);
                let starting: Vec<_> = state.starting.drain(..).collect();
                drop(state);
                // Only now may the application act on "listening again": what it reads is not older than LISTEN.
                shared.outlet.push(Item::Listening { after_gap });
                for completion in starting {
                    completion.finish(Ok(Outcome::Done));
                }
            }
            let is_quiet = timeout(shared.probe_interval, shared.changed.notified()).await.is_err();
            if is_quiet && let Err(error) = probe(shared, &client).await {
                return error;
            }
        }
    };
    tokio::select! {
        error = reading => error,
        error = listening => error,
    }
}

/// Ask the session which channels it holds: a link that is half open, a server that hangs and a pooler that gave the
/// `LISTEN` to somebody else all look healthy otherwise. Reading only, so an idle database writes nothing.
async fn probe(shared: &Shared, client: &Client) -> Result<()> {
    const SQL: &str = "SELECT channel FROM pg_listening_channels() AS channel";
    let rows = timeout(shared.probe_interval, client.query_typed(SQL, &[])).await;
    let rows = rows
        .map_err(|_| Error::Timeout {
            context: "the probe of the listening session".to_owned(),
            seconds: shared.probe_interval.as_secs_f64().into(),
        })?
        .map_err(|error| Error::from_postgres("probe the listening session", &error, false))?;
    let held: BTreeSet<String> = rows.iter().filter_map(|row| row.try_get(0).ok()).collect();
    if shared.lock().applied.as_ref().is_some_and(|applied| *applied != held) {
        return Err(Error::ConnectionLost {
            context: "listen".to_owned(),
            reason: "the session no longer holds its channels; LISTEN needs a direct connection or a pooler in \
                     session mode, see listen_dsn"
                .to_owned(),
            may_be_sent: false,
        });
    }
    Ok(())
}

/// Bring the session's channels to the wanted ones, and tell who waited for them.
async fn apply(shared: &Shared, client: &Client) -> Result<()> {
    loop {
        let (wanted, applied) = {
            let mut state = shared.lock();
            let applied = state.applied.get_or_insert_with(BTreeSet::new).clone();
            (state.wanted.clone(), applied)
        };
        let mut script = String::new();
        for channel in wanted.difference(&applied) {
            let _ = write!(script, "LISTEN {};", quote_identifier(channel)); // a String: cannot fail
        }
        for channel in applied.difference(&wanted) {
            let _ = write!(script, "UNLISTEN {};", quote_identifier(channel));
        }
        if !script.is_empty() {
            client.batch_execute(&script).await.map_err(|error| Error::from_postgres("listen", &error, false))?;
        }
        let done: Vec<Completion> = {
            let mut state = shared.lock();
            let ready: Vec<_> = state
                .waiting
                .keys()
                .filter(|channel| state.wanted.contains(*channel) == wanted.contains(*channel))
                .cloned()
                .collect();
            let done = ready.iter().filter_map(|channel| state.waiting.remove(channel)).flatten().collect();
            let is_complete = state.wanted == wanted;
            state.applied = Some(wanted);
            if is_complete && state.waiting.is_empty() {
                drop(state);
                finish(done);
                return Ok(());
            }
            done
        };
        finish(done);
    }
}

fn finish(completions: Vec<Completion>) {
    for completion in completions {
        completion.finish(Ok(Outcome::Done));
    }
}
