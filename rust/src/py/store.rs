//! `EventStore` and `Subscription`: thin classes over the event store.

use std::collections::BTreeMap;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use super::error::{exception, outage, outage_seconds};
use super::event::{self, PyStoredEvent};
use super::inbox::{PyInbox, ToPython};
use super::settings::{connectors, seconds};
use crate::connect::runtime::{self, Lease};
use crate::error::{Error, Result};
use crate::store::event::{NewEvent, StoredEvent};
use crate::store::event_store::{EventStore, Opened, Settings};
use crate::store::filter::{Condition, Filter};
use crate::store::indexes::Index;
use crate::store::pool::Limits;
use crate::store::read::anchor::Anchor;
use crate::store::read::reader::{Page, Query};
use crate::store::read::reading::Reading;
use crate::store::read::sharing::Wanted;
use crate::store::read::subscription::{Batch, Next, Start, Subscription};
use crate::store::read::wakeup;
use crate::store::table::{LOCK_BUCKETS, Part, TURN_KEY, ddl};
use crate::store::write::calls::{Bounds, Position, Request, Ticket};
use crate::store::write::import::Import;
use crate::store::write::writer;
use crate::table_name::TableName;

/// A part of the schema by its name in Python.
fn part_of(name: &str) -> Part {
    match name {
        "subscriptions" => Part::Subscriptions,
        "settled" => Part::Settled,
        "guard" => Part::Guard,
        "serial" => Part::Serial,
        "go_notify" => Part::GoNotify,
        _ => Part::Events,
    }
}

/// The complete settings, checked and filled with defaults by `events/options.py`.
#[derive(FromPyObject)]
struct GivenSettings {
    dsn: String,
    listen_dsn: Option<String>,
    password: Option<Py<PyAny>>,
    table_name: String,
    create_table: bool,
    max_open_conns: usize,
    max_idle_conns: usize,
    conn_max_lifetime: f64,
    conn_max_idle_time: f64,
    notification_timeout: f64,
    reconnect_interval: f64,
    max_reconnect_attempts: Option<u32>,
    batch_size: usize,
    enable_prepared_stmts: bool,
    poll_interval: f64,
    lock_wait: f64,
    answer_timeout: f64,
    buffer_count: usize,
    buffer_bytes: usize,
    on_full: String,
}

/// See `_core.pyi`.
#[pyclass(name = "EventStore", frozen, module = "socketio_postgres._core")]
pub struct PyEventStore {
    pid: u32,
    description: String,
    table_name: TableName,
    store: Arc<EventStore>,
    _lease: Lease,
}

/// See `_core.pyi`.
#[pyclass(name = "Subscription", frozen, module = "socketio_postgres._core")]
pub struct PySubscription {
    pid: u32,
    subscription: Arc<Subscription>,
}

/// See `_core.pyi`.
#[pyclass(name = "Import", frozen, module = "socketio_postgres._core")]
pub struct PyImport {
    pid: u32,
    import: Arc<Import>,
}

/// See `_core.pyi`.
#[pyclass(name = "Reading", frozen, module = "socketio_postgres._core")]
pub struct PyReading {
    pid: u32,
    reading: Arc<Reading>,
}

impl Drop for PyEventStore {
    fn drop(&mut self) {
        runtime::leave_to(self.pid, &self.store);
    }
}

impl Drop for PyImport {
    fn drop(&mut self) {
        runtime::leave_to(self.pid, &self.import);
    }
}

impl Drop for PyReading {
    fn drop(&mut self) {
        runtime::leave_to(self.pid, &self.reading);
    }
}

fn check_process(pid: u32) -> Result<()> {
    if pid == std::process::id() { Ok(()) } else { Err(Error::Forked("event store")) }
}

/// Id, aggregate id, type, data and metadata of an event to store.
type Row = (String, String, String, Option<String>, Option<String>);

/// A condition: its kind, a metadata key or an empty string, and its texts.
type GivenCondition = (String, String, Vec<String>);

fn filter(given: Vec<GivenCondition>) -> Result<Filter> {
    let condition = |(kind, key, texts): GivenCondition| {
        Ok(match kind.as_str() {
            "types" => Condition::Types(texts),
            "type_prefixes" => Condition::TypePrefixes(texts),
            "aggregates" => Condition::Aggregates(texts),
            "aggregate_prefixes" => Condition::AggregatePrefixes(texts),
            "metadata" => Condition::Metadata(key, texts),
            "data" => Condition::Data(texts.concat()),
            "partitions" => {
                let number =
                    |text: &str| text.parse::<i32>().map_err(|error| Error::options("filter", text, error.to_string()));
                Condition::Partitions(number(&key)?, texts.iter().map(|text| number(text)).collect::<Result<_>>()?)
            }
            _ => return Err(Error::options("filter", kind, "is no kind of condition")),
        })
    };
    Filter::new(given.into_iter().map(condition).collect::<Result<_>>()?)
}

impl PyEventStore {
    /// Run an operation in the background.
    fn run<T, F>(&self, inbox: &PyInbox, token: u64, work: impl FnOnce(Arc<EventStore>) -> F) -> PyResult<()>
    where
        T: ToPython,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        check_process(self.pid)?;
        Ok(self.store.spawn(inbox.completion(token), work)?)
    }
}

#[pymethods]
impl PyEventStore {
    #[new]
    fn new(settings: GivenSettings) -> PyResult<Self> {
        let (writing, listen_connector) = connectors(&settings.dsn, settings.listen_dsn.as_deref(), settings.password)?;
        let description = writing.conninfo().redacted();
        let table_name = TableName::parse(&settings.table_name)?;
        let answer_limit = seconds("answer_timeout", settings.answer_timeout)?;
        let wanted = Wanted {
            connector: writing,
            listen_connector,
            listening: wakeup::Settings {
                notification_timeout: seconds("notification_timeout", settings.notification_timeout)?,
                reconnect_interval: seconds("reconnect_interval", settings.reconnect_interval)?,
                max_reconnect_attempts: settings.max_reconnect_attempts,
            },
            limits: Limits {
                max_open: settings.max_open_conns,
                max_idle: settings.max_idle_conns,
                max_lifetime: seconds("conn_max_lifetime", settings.conn_max_lifetime)?,
                max_idle_time: seconds("conn_max_idle_time", settings.conn_max_idle_time)?,
                is_preparing: settings.enable_prepared_stmts,
                answer_limit,
            },
            poll_interval: seconds("poll_interval", settings.poll_interval)?,
        };
        let store = EventStore::new(Settings {
            wanted: Arc::new(wanted),
            table_name: table_name.clone(),
            may_create: settings.create_table,
            writing: writer::Settings {
                batch_size: settings.batch_size,
                lock_wait: seconds("lock_wait", settings.lock_wait)?,
                away_limit: answer_limit,
                bounds: Bounds {
                    count: settings.buffer_count,
                    bytes: settings.buffer_bytes,
                    is_waiting: settings.on_full == "wait",
                },
            },
        });
        Ok(Self { pid: std::process::id(), description, table_name, store, _lease: Lease::new() })
    }

    #[getter]
    fn description(&self) -> &str {
        &self.description
    }

    fn table(&self, suffix: &str) -> String {
        self.table_name.beside(suffix)
    }

    #[allow(clippy::needless_pass_by_value, reason = "pyo3 makes the list")]
    fn ddl(&self, parts: Vec<String>) -> Result<String> {
        ddl(&self.table_name, &parts.into_iter().map(|part| part_of(&part)).collect::<Vec<_>>())
    }

    fn open(&self, inbox: &PyInbox, token: u64) -> PyResult<()> {
        self.run(inbox, token, |store| async move { store.open().await.map(drop) })
    }

    fn layout<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        let Some(opened) = self.store.opened() else { return Ok(None) };
        let (out, table) = (PyDict::new(py), opened.writer.table());
        out.set_item("table_name", &table.name)?;
        out.set_item("oid", table.oid)?;
        out.set_item("sequence", &table.sequence)?;
        out.set_item("lock_class", table.lock_class())?;
        out.set_item("lock_mask", LOCK_BUCKETS - 1)?;
        out.set_item("turn_key", TURN_KEY)?;
        out.set_item("notifies_go", table.notifies_go)?;
        out.set_item("notifies_us", table.notifies_us)?;
        out.set_item("has_aggregate_index", table.has_aggregate_index)?;
        out.set_item("is_guarded", table.is_guarded)?;
        out.set_item("is_native", table.is_native)?;
        out.set_item("is_serial", table.is_serial)?;
        let name = |suffix: &String| table.table_name.beside(suffix);
        out.set_item("indexes", opened.table.indexes.suffixes().iter().map(name).collect::<Vec<_>>())?;
        Ok(Some(out))
    }

    fn store(
        &self,
        events: &Bound<'_, PyAny>,
        expected: BTreeMap<String, i64>,
        ticket: Ticket,
        inbox: &PyInbox,
        token: u64,
    ) -> PyResult<Ticket> {
        check_process(self.pid)?;
        let events = event::new_events(events)?;
        Ok(self.store.store(Request { events, expected, completion: inbox.completion(token) }, ticket)?)
    }

    fn wait_for_room(&self, ticket: Ticket, inbox: &PyInbox, token: u64) -> PyResult<Ticket> {
        check_process(self.pid)?;
        Ok(self.store.wait_for_room(inbox.completion(token), ticket))
    }

    fn give_up(&self, ticket: Ticket) -> PyResult<()> {
        check_process(self.pid)?;
        self.store.give_up(ticket);
        Ok(())
    }

    fn look_again(&self, inbox: &PyInbox, token: u64) -> PyResult<()> {
        self.run(inbox, token, |store| async move { store.look_again().await })
    }

    fn version_of(&self, event_id: String, inbox: &PyInbox, token: u64) -> PyResult<()> {
        self.run(inbox, token, |store| async move { store.version_of(event_id).await })
    }

    /// The columns of events as they would be stored, checked for this table.
    fn checked(&self, events: &Bound<'_, PyAny>) -> PyResult<Vec<Row>> {
        let opened = self.store.opened().ok_or(Error::Closed("event store"))?;
        let events = event::new_events(events)?;
        writer::check(&events, &opened.writer.table())?;
        let row = |event: NewEvent| (event.id, event.aggregate_id, event.event_type, event.data, event.metadata);
        Ok(events.into_iter().map(row).collect())
    }

    fn importing(&self, skips_existing: bool) -> PyResult<PyImport> {
        check_process(self.pid)?;
        Ok(PyImport { pid: self.pid, import: Arc::new(Import::new(Arc::clone(&self.store), skips_existing)) })
    }

    fn read(
        &self,
        since: i64,
        page_size: i64,
        is_backwards: bool,
        conditions: Vec<GivenCondition>,
    ) -> PyResult<PyReading> {
        check_process(self.pid)?;
        let query = Query { since, until: i64::MAX, limit: page_size, is_backwards, filter: filter(conditions)? };
        let reading = Arc::new(Reading::begin(Arc::clone(&self.store), query)?);
        Ok(PyReading { pid: self.pid, reading })
    }

    #[pyo3(signature = (since, until, limit, is_backwards, conditions, may_look, max_bytes, inbox, token))]
    #[allow(clippy::too_many_arguments)]
    fn load(
        &self,
        since: i64,
        until: i64,
        limit: i64,
        is_backwards: bool,
        conditions: Vec<GivenCondition>,
        may_look: bool,
        max_bytes: Option<usize>,
        inbox: &PyInbox,
        token: u64,
    ) -> PyResult<()> {
        let query = Query { since, until, limit, is_backwards, filter: filter(conditions)? };
        let max_bytes = max_bytes.unwrap_or(usize::MAX);
        self.run(inbox, token, move |store| async move { store.load_some(query, may_look, max_bytes).await })
    }

    fn latest_version(&self, is_settled: bool, inbox: &PyInbox, token: u64) -> PyResult<()> {
        self.run(inbox, token, move |store| async move { store.latest_version(is_settled).await })
    }

    fn settled_version(&self, inbox: &PyInbox, token: u64) -> PyResult<()> {
        self.run(inbox, token, move |store| async move { store.settled_version().await })
    }

    fn migrate(&self, part: &str, inbox: &PyInbox, token: u64) -> PyResult<()> {
        let part = part_of(part);
        self.run(inbox, token, move |store| async move { store.migrate(part).await })
    }

    fn add_index(&self, kind: &str, partitions: i32, inbox: &PyInbox, token: u64) -> PyResult<()> {
        let index = match kind {
            "type" => Index::Type,
            "category" => Index::Category,
            _ => Index::Partition(partitions),
        };
        self.run(inbox, token, move |store| async move { store.add_index(index).await })
    }

    fn query(&self, sql: String, texts: Vec<Option<String>>, inbox: &PyInbox, token: u64) -> PyResult<()> {
        self.run(inbox, token, |store| async move { store.query(sql, texts).await })
    }

    fn subscribe(&self, conditions: Vec<GivenCondition>) -> PyResult<PySubscription> {
        check_process(self.pid)?;
        let subscription = self.store.subscribe(filter(conditions)?)?;
        Ok(PySubscription { pid: self.pid, subscription })
    }

    fn durable_changes(&self) -> PyResult<u64> {
        check_process(self.pid)?;
        Ok(self.store.durable_changes())
    }

    fn close(&self, limit_seconds: f64, inbox: &PyInbox, token: u64) -> PyResult<()> {
        let limit = super::wait_of(limit_seconds);
        self.run(inbox, token, move |store| async move { store.close(limit).await })
    }

    fn take_failures<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyAny>>> {
        let failures = self.store.opened().map(Opened::take_failures).unwrap_or_default();
        failures.iter().map(|failure| exception(py, failure)).collect()
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let out = PyDict::new(py);
        let (pool, limits) = (self.store.pool.stats(), self.store.pool.limits());
        out.set_item("max_open_connections", limits.max_open)?;
        out.set_item("open_connections", pool.open)?;
        out.set_item("in_use", pool.in_use)?;
        out.set_item("idle", pool.open.saturating_sub(pool.in_use))?;
        out.set_item("wait_count", pool.wait_count)?;
        out.set_item("wait_duration", pool.wait_duration.as_secs_f64())?;
        out.set_item("max_idle_closed", pool.max_idle_closed)?;
        out.set_item("max_idle_time_closed", pool.max_idle_time_closed)?;
        out.set_item("max_lifetime_closed", pool.max_lifetime_closed)?;
        let opened = self.store.opened();
        let writer = opened.map(|opened| opened.writer.stats()).unwrap_or_default();
        out.set_item("stored", writer.stored)?;
        out.set_item("store_failed", writer.failed)?;
        out.set_item("store_groups", writer.groups)?;
        out.set_item("store_alone", writer.alone)?;
        out.set_item("store_waiting", writer.waiting)?;
        let feed = opened.map(|opened| opened.feed().stats()).unwrap_or_default();
        let subscriptions = opened.map_or(0, |opened| opened.owner.subscriptions());
        out.set_item("subscriptions", subscriptions)?;
        out.set_item("settled_version", feed.position)?;
        out.set_item("read", feed.read)?;
        out.set_item("reads", feed.reads)?;
        out.set_item("pages", feed.pages)?;
        out.set_item("page_timeouts", feed.page_timeouts)?;
        out.set_item("lock_looks", feed.looks)?;
        out.set_item("subscription_wakeups", feed.wakeups)?;
        let wakeup = opened.map(|opened| Arc::clone(&opened.feed().wakeup));
        out.set_item("is_listening", wakeup.as_ref().is_some_and(|wakeup| wakeup.is_connected()))?;
        let sessions = wakeup.as_ref().map_or(0, |wakeup| wakeup.sessions());
        out.set_item("listener_reconnects", sessions.saturating_sub(1))?;
        out.set_item("notifications", wakeup.as_ref().map_or(0, |wakeup| wakeup.notifications()))?;
        let deaf = wakeup.as_ref().and_then(|wakeup| wakeup.outage.present());
        out.set_item("listener_outage", outage(py, deaf.as_ref())?)?;
        out.set_item("listener_outage_seconds", outage_seconds(deaf.as_ref()))?;
        let blind = opened.and_then(|opened| opened.feed().outage.present());
        out.set_item("reader_outage", outage(py, blind.as_ref())?)?;
        out.set_item("reader_outage_seconds", outage_seconds(blind.as_ref()))?;
        let gap = feed.gap.as_ref();
        out.set_item("gap_seconds", gap.map(|gap| gap.since.elapsed().as_secs_f64()))?;
        out.set_item("gap_holders", gap.map(|gap| gap.holders.clone()).unwrap_or_default())?;
        Ok(out)
    }
}

#[pymethods]
impl PyImport {
    fn add(&self, events: &Bound<'_, PyAny>, inbox: &PyInbox, token: u64) -> PyResult<()> {
        check_process(self.pid)?;
        Ok(self.import.add(event::new_events(events)?, inbox.completion(token))?)
    }
}

#[pymethods]
impl PyReading {
    fn next(&self, inbox: &PyInbox, token: u64) -> PyResult<()> {
        check_process(self.pid)?;
        Ok(self.reading.next(inbox.completion(token))?)
    }
}

#[pymethods]
impl PySubscription {
    #[pyo3(signature = (after, after_id, inbox, token))]
    fn begin(&self, after: Option<i64>, after_id: Option<&str>, inbox: &PyInbox, token: u64) -> PyResult<()> {
        check_process(self.pid)?;
        let start = match (after, after_id) {
            (None, _) => Start::End,
            (Some(version), None) => Start::After(version),
            (Some(version), Some(id)) => Start::AfterEvent(Anchor { version, id: id.into() }),
        };
        Ok(self.subscription.begin(start, inbox.completion(token))?)
    }

    #[allow(clippy::too_many_arguments)]
    fn next(
        &self,
        position: i64,
        limit: usize,
        reports_progress: bool,
        tells_caught_up: bool,
        patience_seconds: f64,
        heeded: Option<u64>,
        inbox: &PyInbox,
        token: u64,
    ) -> PyResult<()> {
        check_process(self.pid)?;
        let patience = super::wait_of(patience_seconds);
        let next = Next { position, limit, reports_progress, tells_caught_up, patience, heeded };
        Ok(self.subscription.next(next, inbox.completion(token))?)
    }

    fn nudge(&self) {
        self.subscription.nudge();
    }

    fn close(&self) {
        self.subscription.close();
    }
}

impl Drop for PySubscription {
    /// Leaving the loop ends the subscription, even while an answer is pending.
    fn drop(&mut self) {
        self.close();
        runtime::leave_to(self.pid, &self.subscription);
    }
}

/// Events as a list of objects.
fn events<'py>(py: Python<'py>, events: &[Arc<StoredEvent>]) -> PyResult<Bound<'py, PyList>> {
    let event = |event| Bound::new(py, PyStoredEvent::from(Arc::clone(event)));
    PyList::new(py, events.iter().map(event).collect::<PyResult<Vec<_>>>()?)
}

impl ToPython for Vec<Position> {
    fn to_python<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let list = PyList::empty(py);
        // Events of one transaction have the same time, so they share one object.
        let mut time = (None, event::datetime(py, None)?);
        for position in self {
            if position.created_at != time.0 {
                time = (position.created_at, event::datetime(py, position.created_at)?);
            }
            list.append((position.version, &time.1, position.is_duplicate))?;
        }
        Ok(list.into_any())
    }
}

impl ToPython for Page {
    fn to_python<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok((events(py, &self.events)?, self.safe_since).into_pyobject(py)?.into_any())
    }
}

impl ToPython for Batch {
    fn to_python<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let events = events(py, &self.events)?;
        let (position, id) = (self.position, self.position_id.as_deref());
        Ok((events, position, id, self.is_caught_up, self.reconnects).into_pyobject(py)?.into_any())
    }
}

impl ToPython for Anchor {
    fn to_python<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let id = (!self.id.is_empty()).then_some(&*self.id);
        Ok((self.version, id).into_pyobject(py)?.into_any())
    }
}

impl ToPython for Vec<Vec<Option<String>>> {
    fn to_python<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.into_pyobject(py)
    }
}

/// Add the classes.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyEventStore>()?;
    module.add_class::<PyImport>()?;
    module.add_class::<PyReading>()?;
    module.add_class::<PySubscription>()?;
    module.add_class::<PyStoredEvent>()
}
