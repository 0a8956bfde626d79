//! `Bus`: one Python object's access to a PostgreSQL database: publisher, listener and attachment table.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::error::{exception, outage, outage_seconds};
use super::inbox::{Answer, PyInbox, ToPython};
use super::message::PyMessage;
use super::settings::{connectors, seconds};
use crate::connect::runtime::{self, Lease, Leftover};
use crate::connect::session::{OpenConnection, Session};
use crate::error::{Error, Result};
use crate::handover::completion::Completion;
use crate::handover::inbox::Inbox;
use crate::handover::item::{Receiver as _, Recipient};
use crate::lock::Mutex;
use crate::publish::place::Place;
use crate::publish::publisher::{OnFull, Publisher, PublisherSettings};
use crate::receive::attachment::AttachmentTable;
use crate::receive::attachment::Body;
use crate::receive::echo::Echo;
use crate::receive::intake::{Intake, IntakeSettings};
use crate::receive::listener::{Listener, ListenerSettings, RawSink, Sink};
use crate::receive::membership::MemberLock;
use crate::receive::rooms::Rooms;
use crate::wire::codec::Limits;
use crate::wire::protocol;
use crate::wire::signature::SigningKey;

/// How many times per probe interval a server may be reported alive; that is twenty times per `heartbeat_timeout`.
const SEEN_PART: u32 = 10;

/// The complete settings, checked and filled with defaults by `options.py`.
#[derive(FromPyObject)]
struct Settings {
    dsn: String,
    listen_dsn: Option<String>,
    password: Option<Py<PyAny>>,
    uid: String,
    channel: String,
    table_name: String,
    create_table: bool,
    payload_threshold: usize,
    max_payload: usize,
    buffer_count: usize,
    buffer_bytes: usize,
    buffer_age: f64,
    on_full: String,
    receive_buffer_bytes: usize,
    signing_key: Option<Vec<u8>>,
    probe_interval: f64,
    is_raw: bool,
}

/// See `_core.pyi`.
#[pyclass(name = "Bus", frozen, module = "socketio_postgres._core")]
pub struct PyBus {
    pid: u32,
    lease: Mutex<Option<Lease>>,
    /// Whether any call may have opened a connection.
    is_used: AtomicBool,
    description: String,
    table: Arc<AttachmentTable>,
    session: Session,
    publisher: Arc<Publisher>,
    listener: Arc<Listener>,
    intake: Option<Arc<Intake>>,
    raw: Arc<RawSink>,
    echo: Arc<Echo>,
    rooms: Arc<Rooms>,
    inbox: Arc<Inbox<Answer>>,
    buffer_age: Duration,
}

impl PyBus {
    /// A bus cannot be used after a fork: its threads exist in the parent only, and its sockets belong to the parent.
    fn check_process(&self) -> Result<()> {
        self.is_used.store(true, Ordering::Relaxed);
        self.check_fork()
    }

    fn check_fork(&self) -> Result<()> {
        if self.pid == std::process::id() { Ok(()) } else { Err(Error::Forked("connection")) }
    }

    /// Run an operation on the attachment table in the background.
    fn on_table<T, F>(
        &self,
        inbox: &PyInbox,
        token: u64,
        operation: impl FnOnce(Arc<AttachmentTable>, Arc<OpenConnection>) -> F + Send + 'static,
    ) -> Result<()>
    where
        T: ToPython,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        self.check_process()?;
        let completion = inbox.completion(token);
        let (table, session) = (Arc::clone(&self.table), self.session.clone());
        runtime::handle()?.spawn(async move {
            completion.finish(match session.open().await {
                Ok(connection) => operation(table, connection).await,
                Err(error) => Err(error),
            });
        });
        Ok(())
    }
}

impl ToPython for Place {
    fn to_python<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok((&self.database, &self.table).into_pyobject(py)?.into_any())
    }
}

impl Drop for PyBus {
    /// A bus that was used and never closed still sends its buffered messages, and then disconnects.
    fn drop(&mut self) {
        runtime::leave_to(self.pid, &self.session);
        runtime::leave_to(self.pid, &self.publisher);
        runtime::leave_to(self.pid, &self.listener);
        runtime::leave_to(self.pid, &self.intake);
        let lease = self.lease.get_mut().take();
        let Some(lease) = lease.filter(|_| self.pid == std::process::id() && self.is_used.load(Ordering::Relaxed))
        else {
            return;
        };
        let leftover = Leftover::new(lease);
        // An error means that there is nothing to close.
        let _ = self.listener.close(Completion::of_nobody(Arc::clone(&leftover)));
        let _ = self.publisher.close(self.buffer_age, Completion::of_nobody(leftover));
    }
}

#[pymethods]
impl PyBus {
    #[new]
    fn new(settings: Settings, inbox: &PyInbox, token: u64) -> PyResult<Self> {
        let (write_connector, listen_connector) =
            connectors(&settings.dsn, settings.listen_dsn.as_deref(), settings.password)?;
        let description = write_connector.conninfo().redacted();
        let table = Arc::new(AttachmentTable::new(&settings.table_name, settings.create_table)?);
        protocol::channel_name(&settings.channel, "/")?;
        let recipient = Recipient { inbox: Arc::clone(&inbox.0) as _, token };
        let buffer_age = seconds("buffer_age", settings.buffer_age)?;
        let probe_interval = seconds("probe_interval", settings.probe_interval)?;
        // A deaf listener is detected within two intervals, and so is a publisher that gets no answer.
        let answer_limit = 2 * probe_interval;
        let signing_key = settings.signing_key.as_deref().map(SigningKey::new).transpose()?;
        let (echo, rooms) = (Arc::new(Echo::default()), Arc::new(Rooms::default()));
        // Attachments have a separate session, because fetching a large one must not delay publishing.
        let session = Session::new(Arc::clone(&write_connector), answer_limit);
        let writer = Session::new(write_connector, answer_limit);
        let publisher = Arc::new(Publisher::new(
            PublisherSettings {
                uid: settings.uid.clone(),
                prefix: settings.channel.clone(),
                limits: Limits {
                    payload_threshold_bytes: settings.payload_threshold,
                    max_payload_bytes: settings.max_payload,
                },
                buffer_count: settings.buffer_count,
                buffer_bytes: settings.buffer_bytes,
                buffer_age,
                on_full: match settings.on_full.as_str() {
                    "raise" => OnFull::Raise,
                    "drop" => OnFull::Drop,
                    _ => OnFull::Wait,
                },
                signing_key: signing_key.clone(),
            },
            writer.clone(),
            Arc::clone(&table),
            Arc::clone(&echo),
            recipient.clone(),
        )?);
        let is_member = !settings.is_raw && settings.uid != protocol::EMITTER_UID;
        let listener_settings = ListenerSettings {
            probe_interval,
            member_lock: is_member.then(|| MemberLock::of(&settings.channel, &settings.uid)),
            writer,
            echo: Arc::clone(&echo),
        };
        let intake_settings = IntakeSettings {
            uid: settings.uid,
            prefix: settings.channel,
            buffer_bytes: settings.receive_buffer_bytes,
            max_payload_bytes: settings.max_payload,
            seen_interval: probe_interval / SEEN_PART,
            signing_key,
        };
        let intake = (!settings.is_raw).then(|| {
            let (table, echo, rooms) = (Arc::clone(&table), Arc::clone(&echo), Arc::clone(&rooms));
            Intake::new(intake_settings, session.clone(), table, echo, rooms, recipient.clone())
        });
        let raw = Arc::new(RawSink { recipient: recipient.clone(), undecodable: AtomicU64::default() });
        let sink: Arc<dyn Sink> = match &intake {
            Some(intake) => Arc::new(Arc::clone(intake)),
            None => Arc::clone(&raw) as _,
        };
        let listener = Arc::new(Listener::new(listen_connector, listener_settings, sink, recipient.clone()));
        let pid = std::process::id();
        let lease = Mutex::new(Some(Lease::new()));
        Ok(Self {
            pid,
            lease,
            is_used: AtomicBool::new(false),
            description,
            table,
            session,
            publisher,
            listener,
            intake,
            raw,
            echo,
            rooms,
            inbox: Arc::clone(&inbox.0),
            buffer_age,
        })
    }

    #[getter]
    fn description(&self) -> &str {
        &self.description
    }

    #[getter]
    fn is_used(&self) -> bool {
        self.is_used.load(Ordering::Relaxed)
    }

    #[getter]
    fn table_name(&self) -> &str {
        self.table.quoted()
    }

    #[getter]
    fn table_ddl(&self) -> String {
        self.table.ddl()
    }

    fn start_publisher(&self, check_table: bool, inbox: &PyInbox, token: u64) -> PyResult<()> {
        self.check_process()?;
        Ok(self.publisher.start(check_table, inbox.completion(token))?)
    }

    fn start_listener(&self, inbox: &PyInbox, token: u64) -> PyResult<()> {
        self.check_process()?;
        Ok(self.listener.start(inbox.completion(token))?)
    }

    #[pyo3(signature = (message, inbox=None, token=0))]
    fn publish(&self, message: &PyMessage, inbox: Option<&PyInbox>, token: u64) -> PyResult<bool> {
        self.check_process()?;
        Ok(self.publisher.publish(&message.0, inbox.map(|inbox| || inbox.completion(token)))?)
    }

    #[allow(clippy::needless_pass_by_value, reason = "pyo3 makes the list")]
    fn publish_many(&self, messages: Vec<PyRef<'_, PyMessage>>) -> PyResult<usize> {
        self.check_process()?;
        let messages: Vec<_> = messages.iter().map(|message| &message.0).collect();
        Ok(self.publisher.publish_many(&messages)?)
    }

    fn notify(&self, channel: &str, payload: &str, inbox: &PyInbox, token: u64) -> PyResult<()> {
        self.check_process()?;
        Ok(self.publisher.notify(channel, payload, || inbox.completion(token))?)
    }

    fn find_place(&self, needs_table: bool, inbox: &PyInbox, token: u64) -> PyResult<()> {
        self.check_process()?;
        Ok(self.publisher.find_place(needs_table, inbox.completion(token))?)
    }

    fn when_space(&self, inbox: &PyInbox, token: u64) -> PyResult<()> {
        self.check_fork()?;
        self.publisher.when_space(inbox.completion(token));
        Ok(())
    }

    fn flush(&self, inbox: &PyInbox, token: u64) -> PyResult<()> {
        self.check_process()?;
        Ok(self.publisher.flush(inbox.completion(token))?)
    }

    fn take_unreported<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let unreported = self.publisher.take_unreported();
        let Some(first) = unreported.first else { return Ok(None) };
        let error = exception(py, &first)?;
        error.setattr("failed_count", unreported.failed)?;
        error.setattr("in_doubt_count", unreported.in_doubt)?;
        Ok(Some(error))
    }

    fn self_test(&self, inbox: &PyInbox, token: u64) -> PyResult<()> {
        self.check_process()?;
        Ok(self.listener.self_test(inbox.completion(token))?)
    }

    fn mirror_rooms(&self) {
        self.rooms.begin();
    }

    fn enter_room(&self, nsp: &str, room: Option<&str>) {
        self.rooms.enter(nsp, room);
    }

    fn leave_room(&self, nsp: &str, room: Option<&str>) {
        self.rooms.leave(nsp, room);
    }

    #[allow(clippy::needless_pass_by_value, reason = "pyo3 makes the list")]
    fn rooms_joined(&self, nsp: &str, rooms: Vec<String>) {
        self.rooms.settled(nsp, &rooms);
    }

    fn listen(&self, channel: &str, inbox: &PyInbox, token: u64) -> PyResult<()> {
        self.check_process()?;
        Ok(self.listener.listen(channel, inbox.completion(token))?)
    }

    fn unlisten(&self, channel: &str, inbox: &PyInbox, token: u64) -> PyResult<()> {
        self.check_process()?;
        Ok(self.listener.unlisten(channel, inbox.completion(token))?)
    }

    fn ensure_table(&self, inbox: &PyInbox, token: u64) -> PyResult<()> {
        Ok(self.on_table(inbox, token, |table, connection| async move {
            connection.ask("look up the attachment table", |client| table.ensure(client)).await?;
            Ok(())
        })?)
    }

    fn insert_attachment(&self, body: Vec<u8>, inbox: &PyInbox, token: u64) -> PyResult<()> {
        Ok(self.on_table(inbox, token, |table, connection| async move {
            connection.ask("look up the attachment table", |client| table.ensure(client)).await?;
            let insert = |client| table.insert(client, &body);
            connection.commit("insert an attachment", body.len(), insert).await
        })?)
    }

    fn get_attachment(&self, attachment_id: i64, inbox: &PyInbox, token: u64) -> PyResult<()> {
        Ok(self.on_table(inbox, token, move |table, connection| async move {
            let ids = [attachment_id];
            let fetch = |client| table.fetch(client, &ids, usize::MAX, usize::MAX);
            let found = connection.ask("fetch attachments", fetch).await?.remove(&attachment_id);
            Ok(match found {
                Some(Body::Bytes(bytes)) => Some(bytes),
                _ => None,
            })
        })?)
    }

    fn expire_attachments(&self, age_seconds: f64, inbox: &PyInbox, token: u64) -> PyResult<()> {
        Ok(self.on_table(inbox, token, move |table, connection| async move {
            let expire = |client| table.expire(client, age_seconds);
            connection.ask("expire attachments", expire).await
        })?)
    }

    fn migrate(&self, sql: String, inbox: &PyInbox, token: u64) -> PyResult<()> {
        Ok(self.on_table(inbox, token, move |table, connection| async move {
            connection.ask("run a migration", |client| table.migrate(client, &sql)).await
        })?)
    }

    fn close_listener(&self, inbox: &PyInbox, token: u64) -> PyResult<()> {
        self.check_process()?;
        if let Some(intake) = &self.intake {
            intake.close();
        }
        Ok(self.listener.close(inbox.completion(token))?)
    }

    fn close_publisher(&self, limit_seconds: f64, inbox: &PyInbox, token: u64) -> PyResult<()> {
        self.check_process()?;
        let limit = super::wait_of(limit_seconds);
        let completion = inbox.completion(token);
        let (session, publisher) = (self.session.clone(), Arc::clone(&self.publisher));
        runtime::handle()?.spawn(async move {
            session.close().await;
            // A failure drops the completion, which reports it.
            let _ = publisher.close(limit, completion);
        });
        Ok(())
    }

    fn release(&self) {
        // The lock is released before the runtime ends.
        let lease = self.lease.lock().take();
        drop(lease);
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let out = PyDict::new(py);
        let seconds = |age: Option<Duration>| age.map(|age| age.as_secs_f64());
        let listener = self.listener.stats();
        out.set_item("state", listener.state)?;
        out.set_item("is_listening", listener.is_listening)?;
        out.set_item("channels", listener.channels)?;
        out.set_item("members", listener.members)?;
        out.set_item("listener_reconnects", listener.reconnects)?;
        out.set_item("probe_age", seconds(listener.alive_age))?;
        out.set_item("echo_age", seconds(self.echo.age()))?;
        out.set_item("notification_queue_usage", listener.queue_usage)?;
        let deaf = self.listener.outage();
        out.set_item("listener_outage", outage(py, deaf.as_ref())?)?;
        out.set_item("listener_outage_seconds", outage_seconds(deaf.as_ref()))?;
        let publisher = self.publisher.stats();
        out.set_item("published", publisher.published)?;
        out.set_item("publish_failed", publisher.failed)?;
        out.set_item("publish_in_doubt", publisher.in_doubt)?;
        out.set_item("publish_dropped", publisher.dropped)?;
        out.set_item("publish_groups", publisher.groups)?;
        out.set_item("publish_attachments", publisher.attachments)?;
        out.set_item("publisher_reconnects", publisher.reconnects)?;
        let mute = self.publisher.outage();
        out.set_item("publisher_outage", outage(py, mute.as_ref())?)?;
        out.set_item("publisher_outage_seconds", outage_seconds(mute.as_ref()))?;
        out.set_item("buffer_count", publisher.waiting_count)?;
        out.set_item("buffer_bytes", publisher.waiting_bytes)?;
        let intake = self.intake.as_ref().map(|intake| intake.stats()).unwrap_or_default();
        out.set_item("received", intake.received)?;
        out.set_item("irrelevant", intake.irrelevant)?;
        out.set_item("own", intake.own)?;
        out.set_item("duplicates", intake.duplicates)?;
        out.set_item("undecodable", intake.undecodable + self.raw.undecodable.load(Ordering::Relaxed))?;
        out.set_item("bad_signatures", intake.bad_signatures)?;
        out.set_item("attachments", intake.attachments)?;
        out.set_item("attachments_skipped", intake.attachments_skipped)?;
        out.set_item("attachments_missing", intake.attachments_missing)?;
        out.set_item("overflowed", intake.overflowed)?;
        out.set_item("gaps", intake.gaps)?;
        out.set_item("missing_messages", intake.missing)?;
        out.set_item("inbox_bytes", self.inbox.bytes())?;
        out.set_item("inbox_age", self.inbox.stalled().as_secs_f64())?;
        out.set_item("held_bytes", intake.held_bytes)?;
        Ok(out)
    }
}
