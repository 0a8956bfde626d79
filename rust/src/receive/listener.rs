//! Listening: a separate connection that holds `LISTEN` for the wanted channels. After it is lost, it is opened again,
//! with an unlimited number of attempts.
//!
//! Notifications are passed to a [`Sink`], which must not block.
//!
//! A session that looks healthy and receives nothing is detected by the probe (the session no longer answers, or
//! listens on other channels) and by the [`Echo`] of the messages that this server publishes.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_postgres::Client;

use crate::connect::backoff::Backoff;
use crate::connect::connection::{Connector, Link};
use crate::connect::listening::{self, Heard, Listening};
use crate::connect::mended;
use crate::connect::notify_queue;
use crate::connect::outage::{Outage, Present};
use crate::connect::probe::{self, Identity};
use crate::connect::runtime;
use crate::connect::session::Session;
use crate::error::{Error, LikelyCause, Result};
use crate::handover::completion::Completion;
use crate::handover::item::{Item, Notification, Recipient};
use crate::lock::Mutex;
use crate::receive::channels::{Change, Channels};
use crate::receive::echo::Echo;
use crate::receive::membership::{self, MemberLock};
use crate::wire::gap::{Gap, Overflow, Reason};
use crate::wire::protocol::{check_channel, quote_identifier};

/// Longest wait for an answer, or silence before it, while a session is being set up. Later the probe interval is the
/// limit.
const SETUP_LIMIT: Duration = Duration::from_secs(5);
/// `pg_notification_queue_usage` takes locks that publishers need, so it is asked rarely.
const QUEUE_USAGE_INTERVAL: Duration = Duration::from_secs(30);
/// Takes notifications, in the order of their commits. Called on the background thread; must not block.
pub trait Sink: Send + Sync + 'static {
    /// Take one notification: its channel, its payload, the process id of the sending session, and the time of arrival.
    /// Notifications that arrive in quick succession may be given the same time.
    fn take(&self, channel: &str, payload: &str, pid: i32, arrived: SystemTime);
    /// A notification arrived that cannot be read; `error` says why.
    fn skip(&self, error: Error);
    /// The session was lost and a new one is active now; messages sent after `since` may be missing.
    fn lost(&self, since: SystemTime);
    /// The session no longer listens on a channel.
    fn unlistened(&self, channel: &str);
}

/// Hands raw notifications over to Python.
pub struct RawSink {
    /// The receiver in Python.
    pub recipient: Recipient,
    /// Notifications that were not valid UTF-8, skipped.
    pub undecodable: AtomicU64,
}

impl Sink for RawSink {
    fn take(&self, channel: &str, payload: &str, pid: i32, _: SystemTime) {
        let notification = Notification { channel: channel.to_owned(), payload: payload.to_owned(), pid };
        if !self.recipient.push(Item::Notification(notification)) {
            self.recipient.push_overflow(Overflow::of(None, None));
        }
    }

    fn skip(&self, error: Error) {
        self.undecodable.fetch_add(1, Ordering::Relaxed);
        self.recipient.push(Item::Failure(error));
    }

    fn lost(&self, since: SystemTime) {
        self.recipient.push(Item::Gap(Gap {
            reason: Reason::Reconnect,
            nsp: None,
            sender: None,
            missing: None,
            since,
        }));
    }

    fn unlistened(&self, _: &str) {}
}

/// A listener's settings.
pub struct ListenerSettings {
    /// Interval between probes, and the time limit for an answer. Half the time within which a deaf session must be
    /// noticed.
    pub probe_interval: Duration,
    /// The lock to hold, if this server is a member of a cluster.
    pub member_lock: Option<MemberLock>,
    /// The publisher's session, for diagnosing why the listening session is deaf.
    pub writer: Session,
    /// This server's own messages, which are expected to come back.
    pub echo: Arc<Echo>,
}

#[derive(Default)]
struct State {
    channels: Channels,
    starting: Vec<Completion>,
    reconnects: u64,
    is_running: bool,
    is_closed: bool,
    closing: Vec<Completion>,
    /// Identity of the current session.
    identity: Option<Identity>,
    /// The time when the lost session last received anything. Sessions that failed while being set up do not change it.
    lost_since: Option<SystemTime>,
    /// Number of sessions that were lost or could not be opened; `lost_by` is the error of the last one.
    sessions_lost: u64,
    lost_by: Option<Error>,
    /// The value of `sessions_lost` at the last start.
    lost_before_start: u64,
    /// Whether the session holds the member lock.
    is_member: bool,
    members: Option<usize>,
    queue_usage: Option<f64>,
    queue_usage_at: Option<Instant>,
}

/// See the module documentation.
pub struct Listener {
    connector: Arc<Connector>,
    settings: ListenerSettings,
    sink: Arc<dyn Sink>,
    recipient: Recipient,
    state: Mutex<State>,
    heard: Heard,
    outage: Outage,
    changed: Notify,
    closed: Notify,
}

/// State of a listener.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ListenerStats {
    /// `idle` before the first use, `connecting`, `listening`, or `closed`.
    pub state: &'static str,
    /// Whether a session is open and listens on every wanted channel.
    pub is_listening: bool,
    /// Number of wanted channels.
    pub channels: usize,
    /// Sessions opened after the first one.
    pub reconnects: u64,
    /// Time since anything was received on the session.
    pub alive_age: Option<Duration>,
    /// Number of cluster members at the last probe, including this server.
    pub members: Option<usize>,
    /// Used fraction of the server's notification queue, 0 to 1.
    pub queue_usage: Option<f64>,
}

impl Listener {
    /// A listener that connects with the first channel, or with [`Listener::start`].
    pub fn new(
        connector: Arc<Connector>,
        settings: ListenerSettings,
        sink: Arc<dyn Sink>,
        recipient: Recipient,
    ) -> Self {
        let (state, heard, outage) = (Mutex::default(), Heard::default(), Outage::default());
        let (changed, closed) = (Notify::new(), Notify::new());
        Self { connector, settings, sink, recipient, state, heard, outage, changed, closed }
    }

    /// Connect. `completion` receives the result of the current attempt; after a failure further attempts follow.
    pub fn start(self: &Arc<Self>, completion: Completion) -> Result<()> {
        let mut state = self.open_state()?;
        if state.channels.is_open() {
            state.lost_before_start = state.sessions_lost;
            drop(state);
            completion.finish(Ok(()));
            return Ok(());
        }
        state.starting.push(completion);
        self.wake(state)
    }

    /// Listen on a channel. `completion` is finished when `LISTEN` is active.
    pub fn listen(self: &Arc<Self>, channel: &str, completion: Completion) -> Result<()> {
        check_channel(channel)?;
        let mut state = self.open_state()?;
        let done = state.channels.want(channel, completion);
        if done.is_none() {
            return self.wake(state);
        }
        drop(state);
        finish(done);
        Ok(())
    }

    /// Stop listening on a channel.
    pub fn unlisten(self: &Arc<Self>, channel: &str, completion: Completion) -> Result<()> {
        let mut state = self.open_state()?;
        let done = state.channels.unwant(channel, completion);
        if done.is_none() {
            return self.wake(state);
        }
        drop(state);
        finish(done);
        Ok(())
    }

    /// Disconnect permanently.
    pub fn close(&self, completion: Completion) -> Result<()> {
        let mut state = self.state.lock();
        state.is_closed = true;
        if !state.is_running {
            drop(state);
            completion.finish(Ok(()));
            return Ok(());
        }
        state.closing.push(completion);
        drop(state);
        self.closed.notify_one();
        Ok(())
    }

    /// State and counters.
    pub fn stats(&self) -> ListenerStats {
        let state = self.state.lock();
        let is_listening = state.channels.is_complete();
        ListenerStats {
            state: match (state.is_closed, state.is_running, is_listening) {
                (true, ..) => "closed",
                (_, false, _) => "idle",
                (_, _, true) => "listening",
                (_, _, false) => "connecting",
            },
            is_listening,
            channels: state.channels.count(),
            reconnects: state.reconnects,
            alive_age: self.heard.at().and_then(|at| at.elapsed().ok()),
            members: state.members,
            queue_usage: state.queue_usage,
        }
    }

    /// The current outage: why there is no session, and since when.
    pub fn outage(&self) -> Option<Present> {
        self.outage.present()
    }

    /// Check that this server receives what it publishes: every message committed since [`Listener::start`] must come
    /// back, on the session that existed then. The session's probes determine when a message is overdue.
    pub fn self_test(self: &Arc<Self>, completion: Completion) -> Result<()> {
        drop(self.open_state()?);
        let this = Arc::clone(self);
        runtime::handle()?.spawn(async move { completion.finish(self_test(&this).await) });
        Ok(())
    }

    fn open_state(&self) -> Result<MutexGuard<'_, State>> {
        let state = self.state.lock();
        if state.is_closed { Err(Error::Closed("listener")) } else { Ok(state) }
    }

    fn wake(self: &Arc<Self>, mut state: MutexGuard<'_, State>) -> Result<()> {
        if !state.is_running {
            runtime::handle()?.spawn(run(Arc::clone(self)));
            state.is_running = true;
        }
        drop(state);
        self.changed.notify_one();
        Ok(())
    }
}

async fn run(listener: Arc<Listener>) {
    tokio::select! {
        () = work(&listener) => {}
        () = listener.closed.notified() => {}
    }
    listener.settings.echo.lost();
    let mut state = listener.state.lock();
    state.channels.lost();
    state.is_running = false;
    let forgotten = (state.channels.take_waiting(), std::mem::take(&mut state.starting));
    let closing = std::mem::take(&mut state.closing);
    drop(state);
    drop(forgotten);
    for completion in closing {
        completion.finish(Ok(()));
    }
}

/// The listener's task: opens one session after the other.
async fn work(listener: &Listener) {
    let mut backoff = Backoff::default();
    let mut is_first = true;
    loop {
        let error = match listener.connector.connect_to_listen().await {
            Ok(link) => session(listener, link, &mut is_first, &mut backoff).await,
            Err(error) => error,
        };
        {
            let mut state = listener.state.lock();
            (state.sessions_lost, state.lost_by) = (state.sessions_lost + 1, Some(error.clone()));
            listener.settings.echo.lost(); // after that, for a self-test that waits
            state.channels.lost();
            state.lost_since = state.lost_since.or(listener.heard.at());
            if state.members.take().is_some() {
                listener.recipient.push(Item::Members(None));
            }
            let mut failed: Vec<_> = state.starting.drain(..).collect();
            if is_first && !error.is_transient() {
                // No session has ever listened and waiting cannot cure the error, so callers that wait for a channel
                // must get it now.
                failed.extend(state.channels.take_waiting());
            }
            drop(state);
            for completion in failed {
                completion.finish(Err(error.clone()));
            }
        }
        if listener.outage.failed(&error) {
            listener.recipient.push(Item::Failure(error));
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

/// Drive one session until it breaks; returns why.
async fn session(listener: &Listener, link: Link, is_first: &mut bool, backoff: &mut Backoff) -> Error {
    let (listening, reading) = listening::halves(link, &listener.heard, listener.settings.probe_interval);
    let take = |n: &tokio_postgres::Notification, arrived| match mended::unreadable_bytes(n) {
        None => listener.sink.take(n.channel(), n.payload(), n.process_id(), arrived),
        Some(size_bytes) => listener.sink.skip(not_text(n.channel(), size_bytes)),
    };
    reading.run("listen", take, keep(listener, &listening, is_first, backoff)).await
}

/// Set up a session, keep it on the wanted channels, and probe it.
async fn keep(
    listener: &Listener,
    session: &Listening<'_>,
    is_first: &mut bool,
    backoff: &mut Backoff,
) -> Result<Infallible> {
    set_up(listener, session, is_first, backoff).await?;
    let interval = listener.settings.probe_interval;
    let mut probe_at = Instant::now() + interval;
    loop {
        let is_changed = timeout(probe_at.saturating_duration_since(Instant::now()), listener.changed.notified());
        if is_changed.await.is_ok() {
            session.ask("LISTEN", 2 * interval, apply(listener, &session.client, false)).await?;
        } else {
            probe_at = Instant::now() + interval;
            check(listener, session, interval).await?;
        }
    }
}

fn not_text(channel: &str, size_bytes: usize) -> Error {
    let reason = "the payload is not UTF-8; the encoding of this database, SQL_ASCII, takes any bytes".to_owned();
    Error::Decode { channel: channel.to_owned(), size_bytes, reason }
}

/// Everything from the open connection to "listening again".
async fn set_up(
    listener: &Listener,
    session: &Listening<'_>,
    is_first: &mut bool,
    backoff: &mut Backoff,
) -> Result<()> {
    let (context, client) = ("setting the listening session up", &session.client);
    let prepare = async {
        listener.state.lock().identity = Some(probe::identify(client).await?);
        probe::configure(client, listener.settings.probe_interval).await
    };
    session.ask(context, SETUP_LIMIT, prepare).await?;
    session.ask(context, SETUP_LIMIT, apply(listener, client, true)).await?;
    // From here on, callers that requested a channel rely on receiving everything.
    let after_gap = !std::mem::replace(is_first, false);
    listener.state.lock().is_member = false;
    session.ask(context, SETUP_LIMIT, keep_membership(listener, client)).await?;
    check(listener, session, SETUP_LIMIT).await?;
    backoff.reset();
    listener.outage.ended();
    let mut state = listener.state.lock();
    let since = state.lost_since.take();
    state.reconnects += u64::from(after_gap);
    let starting: Vec<_> = state.starting.drain(..).collect();
    if !starting.is_empty() {
        state.lost_before_start = state.sessions_lost;
    }
    drop(state);
    // Only now may the application react to "listening again": data that it reads now is at least as recent as LISTEN.
    listener.recipient.push(Item::Listening { after_gap });
    if after_gap {
        listener.sink.lost(since.unwrap_or_else(SystemTime::now));
    }
    finish(starting);
    Ok(())
}

/// Hold the member lock exactly as long as Python takes items from the inbox. Peers must not rely on a server whose
/// event loop hangs, even though its connection is healthy.
async fn keep_membership(listener: &Listener, client: &Client) -> Result<()> {
    let Some(lock) = listener.settings.member_lock else { return Ok(()) };
    // Each probe adds an item to the inbox, so a running event loop reads the inbox at least once per interval.
    let is_member = listener.recipient.inbox.idle() < 2 * listener.settings.probe_interval;
    if is_member != listener.state.lock().is_member {
        membership::set_member(client, lock, is_member).await?;
        listener.state.lock().is_member = is_member;
    }
    Ok(())
}

/// Probe the session, and look for the echo of this server's messages.
async fn check(listener: &Listener, session: &Listening<'_>, limit: Duration) -> Result<()> {
    let settings = &listener.settings;
    let asks_queue_usage = listener.state.lock().queue_usage_at.is_none_or(|at| at.elapsed() >= QUEUE_USAGE_INTERVAL);
    let class = settings.member_lock.map(|lock| lock.class);
    let work = async {
        keep_membership(listener, &session.client).await?;
        probe::probe(&session.client, class, asks_queue_usage).await
    };
    let asked_at = Instant::now();
    let found = session.ask("the probe of the listening session", limit, work).await?;
    listener.heard.note();
    {
        let mut state = listener.state.lock();
        if asks_queue_usage {
            state.queue_usage = found.queue_usage;
            state.queue_usage_at = Some(Instant::now());
        }
        let is_same = state.identity.as_ref().is_some_and(|identity| identity.pid == found.pid);
        if !is_same || !state.channels.are_held(&found.channels) {
            return Err(Error::SelfTest {
                likely_cause: LikelyCause::TransactionPooling,
                reason: "the listening session no longer holds its channels: a pooler in transaction or statement \
                         mode is in between; give a direct connection, or one in session mode, as listen_dsn"
                    .to_owned(),
            });
        }
        state.members = class.map(|_| found.locks.len());
    }
    if class.is_some() {
        listener.recipient.push(Item::Members(Some(found.locks)));
    }
    // Before its answer the server sends the notifications that were committed earlier. Therefore a message committed
    // long before the probe must have arrived by now, however many notifications came before it.
    match settings.echo.overdue(settings.probe_interval, asked_at) {
        Some(channel) => {
            // The diagnosis may have to connect. It has a limit, so that a deaf session is not kept for that long.
            let cause = timeout(SETUP_LIMIT, explain(listener)).await;
            Err(cause.ok().flatten().unwrap_or_else(|| probe::deaf(&channel)))
        }
        None => Ok(()),
    }
}

/// Why the session is deaf, if the identities of the two sessions show it.
async fn explain(listener: &Listener) -> Option<Error> {
    let ours = listener.state.lock().identity.clone()?;
    let connection = listener.settings.writer.open().await.ok()?;
    let writer = connection.ask_aside("identify the server", SETUP_LIMIT, probe::identify).await.ok()?;
    probe::diagnose(&ours, &writer)
}

/// Wait for the awaited messages for as long as the session is healthy: behind a long backlog, or on a slow network,
/// they arrive late. A deaf session is ended by its own probe.
async fn self_test(listener: &Listener) -> Result<()> {
    if let Some(error) = explain(listener).await {
        return Err(error);
    }
    let awaited = listener.settings.echo.awaited();
    loop {
        {
            let state = listener.state.lock();
            match &state.lost_by {
                _ if state.is_closed => return Err(Error::Closed("listener")),
                // The awaited messages were lost with the session.
                Some(error) if state.sessions_lost != state.lost_before_start => return Err(error.clone()),
                _ => {}
            }
        }
        if !listener.settings.echo.is_waiting_for(&awaited) {
            return Ok(());
        }
        listener.settings.echo.changed(listener.settings.probe_interval).await;
    }
}

/// Change the session's channels to the wanted ones, and finish the completions that waited for them.
async fn apply(listener: &Listener, client: &Client, is_new_session: bool) -> Result<()> {
    let mut is_new_session = is_new_session;
    loop {
        let change = listener.state.lock().channels.change();
        let script = change.script();
        if !script.is_empty()
            && let Err(error) = notify_queue::listen(client, "listen", &script).await
        {
            if !error.is_about_a_value() {
                return Err(error);
            }
            refuse(listener, client, &change).await?;
            continue;
        }
        listener.settings.echo.listening(change.wanted(), std::mem::take(&mut is_new_session), Instant::now());
        for channel in change.dropped() {
            listener.sink.unlistened(channel);
        }
        let (done, is_over) = listener.state.lock().channels.changed(change);
        finish(done);
        if is_over {
            return Ok(());
        }
    }
}

async fn execute(client: &Client, script: &str, context: &str) -> Result<()> {
    client.batch_execute(script).await.map_err(|error| Error::from_postgres(context, &error, false))
}

/// Find the channels whose names this database's encoding cannot represent. Those are given up, and the session
/// continues.
async fn refuse(listener: &Listener, client: &Client, change: &Change) -> Result<()> {
    for channel in change.added() {
        let script = format!("LISTEN {}", quote_identifier(channel));
        let Err(error) = execute(client, &script, &format!("listen to {channel:?}")).await else { continue };
        if !error.is_about_a_value() {
            return Err(error);
        }
        let (waiting, is_first) = listener.state.lock().channels.refuse(channel);
        Completion::finish_all(waiting, &Err(error.clone()));
        // Callers may request the same channel repeatedly.
        if is_first {
            listener.recipient.push(Item::Failure(error));
        }
    }
    Ok(())
}

fn finish(completions: impl IntoIterator<Item = Completion>) {
    for completion in completions {
        completion.finish(Ok(()));
    }
}
