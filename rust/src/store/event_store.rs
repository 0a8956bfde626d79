//! One event store object: opened on first use, closed once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex as AsyncMutex, OnceCell};
use tokio_postgres::types::Type;

use crate::connect::runtime;
use crate::error::{Error, Result};
use crate::handover::completion::Completion;
use crate::lock::Mutex;
use crate::store::add_index::add_index;
use crate::store::event::NewEvent;
use crate::store::filter::Filter;
use crate::store::indexes::Index;
use crate::store::pool::{Bind, PLANNED_BY_VALUES, Pool};
use crate::store::read::feed::Feed;
use crate::store::read::page_size::PageSize;
use crate::store::read::reader::{self, Page, Query};
use crate::store::read::sharing::{self, Member, Shared, Wanted};
use crate::store::read::subscription::{self, Owner, Subscription};
use crate::store::row::get;
use crate::store::server;
use crate::store::table::{self, Part, Table};
use crate::store::write::calls::{Request, Ticket};
use crate::store::write::writer::{self, Writer};
use crate::table_name::TableName;

/// How long closing waits for calls whose time is over to be told so.
const LAST_WORD: Duration = Duration::from_secs(1);

/// A store's settings, chosen by the Python layer.
pub struct Settings {
    /// How to connect and listen.
    pub wanted: Arc<Wanted>,
    /// The table.
    pub table_name: TableName,
    /// Create the table when it is missing.
    pub may_create: bool,
    /// How to store events.
    pub writing: writer::Settings,
}

/// The parts of a store that exist once the table was found.
pub struct Opened {
    /// The table.
    pub table: Arc<Table>,
    /// Stores events.
    pub writer: Arc<Writer>,
    /// The parts of this store that its subscriptions need.
    pub owner: Arc<Owner>,
    member: Mutex<Option<Member>>,
    shared: Arc<Shared>,
    /// How many of these errors this store has reported: outages of the listening session and of the keeper, changes of the
    /// table, and statements that took too long.
    told: Mutex<[u64; 4]>,
}

impl Opened {
    /// The feed of all stores on this table.
    pub fn feed(&self) -> &Arc<Feed> {
        &self.shared.feed
    }

    /// The errors that made subscriptions wait, and changes of the table that readers need not fear, since the last call or since the store was opened.
    pub fn take_failures(&self) -> Vec<Error> {
        let feed = self.feed();
        let mut told = self.told.lock();
        let mut failures = Vec::new();
        for (told, outage) in told.iter_mut().zip(feed.reports()) {
            let (news, count) = outage.news(*told);
            failures.extend(news);
            *told = count;
        }
        failures
    }
}

/// See the module documentation.
pub struct EventStore {
    settings: Settings,
    /// Connections for writing and for reading pages.
    pub pool: Arc<Pool>,
    opened: OnceCell<Opened>,
    /// Average size of the events in the last page of limited size.
    average_bytes: AtomicUsize,
    is_closed: AtomicBool,
    /// Held while the store is being closed; true afterwards.
    closing: AsyncMutex<bool>,
}

impl EventStore {
    /// A store, which connects on first use.
    pub fn new(settings: Settings) -> Arc<Self> {
        let pool = Pool::new(Arc::clone(&settings.wanted.connector), settings.wanted.limits);
        Arc::new(Self {
            settings,
            pool,
            opened: OnceCell::new(),
            average_bytes: AtomicUsize::new(0),
            is_closed: AtomicBool::new(false),
            closing: AsyncMutex::default(),
        })
    }

    /// Open the store, if it is not open yet: find the table, or create it.
    pub async fn open(&self) -> Result<&Opened> {
        if self.is_closed.load(Ordering::Acquire) {
            return Err(Error::StoreClosed);
        }
        let open = async || {
            let settings = &self.settings;
            let table = table::open(&self.pool, &settings.table_name, settings.may_create).await?;
            reader::check_locks(&self.pool, &table).await?;
            let table = Arc::new(table);
            let member = sharing::join(&settings.wanted, &table);
            let feed = &member.shared.feed;
            // What is found out about its indexes is found out for all.
            feed.table.indexes.become_like(&table.indexes);
            let table = Arc::clone(&feed.table);
            Ok(Opened {
                told: Mutex::new(feed.reports().map(|outage| outage.news(u64::MAX).1)),
                writer: Writer::new(Arc::clone(&self.pool), Arc::clone(&table), settings.writing),
                owner: Owner::new(Arc::clone(&self.pool)),
                shared: Arc::clone(&member.shared),
                member: Mutex::new(Some(member)),
                table,
            })
        };
        self.opened.get_or_try_init(open).await
    }

    /// The opened parts, or `None` before [`EventStore::open`].
    pub fn opened(&self) -> Option<&Opened> {
        self.opened.get()
    }

    /// Run `work` in the background; `completion` receives its result.
    pub fn spawn<T, F>(self: &Arc<Self>, completion: Completion<T>, work: impl FnOnce(Arc<Self>) -> F) -> Result<()>
    where
        T: 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let work = work(Arc::clone(self));
        runtime::handle()?.spawn(async move { completion.finish(work.await) });
        Ok(())
    }

    /// Store events atomically. Returns the call's ticket, as [`Writer::store`] does; 0 if the store is not open yet.
    pub fn store(self: &Arc<Self>, request: Request, ticket: Ticket) -> Result<Ticket> {
        if let Some(opened) = self.opened() {
            return match writer::check(&request.events, &opened.writer.table()) {
                Ok(()) if request.events.is_empty() => {
                    request.completion.finish(Ok(Vec::new()));
                    Ok(ticket)
                }
                Ok(()) => opened.writer.store(request, ticket),
                Err(error) => {
                    request.completion.finish(Err(error));
                    Ok(ticket)
                }
            };
        }
        let store = Arc::clone(self);
        runtime::handle()?.spawn(async move {
            match store.open().await {
                // An error means that the store was closed; dropping the completion reports that. Nobody learns the ticket.
                Ok(_) => store.store(request, ticket).map_or((), |ticket| store.give_up(ticket)),
                Err(error) => request.completion.finish(Err(error)),
            }
        });
        Ok(ticket)
    }

    /// All visible events that match a query, or fewer if they are large, and how many were asked for; see
    /// [`reader::load`].
    pub async fn load(&self, query: Query, may_look: bool, pages: &PageSize) -> Result<(i64, Page)> {
        let opened = self.open().await?;
        let (pool, settler, table) = (&self.pool, &opened.shared.settler, &opened.table);
        loop {
            let limit = pages.rows(query.limit);
            let query = &Query { limit, ..query.clone() };
            match pool.retrying(|| reader::load(pool, settler, table, query, may_look, pages.limit_bytes())).await {
                Err(error) if pages.shrink(&error) => {}
                page => {
                    let page = page?;
                    pages.took(limit, page.events.len(), reader::size_bytes(&page.events));
                    return Ok((limit, page));
                }
            }
        }
    }

    /// The same, but no more than `max_bytes` together, unless the first event is larger.
    pub async fn load_some(&self, query: Query, may_look: bool, max_bytes: usize) -> Result<Page> {
        let pages = PageSize::expecting(max_bytes, self.average_bytes.load(Ordering::Relaxed));
        let (_, mut page) = self.load(query, may_look, &pages).await?;
        let (mut fitting, mut bytes) = (0, 0);
        for event in &page.events {
            bytes += event.size_bytes();
            if bytes > max_bytes && fitting > 0 {
                break;
            }
            fitting += 1;
        }
        if fitting > 0 {
            self.average_bytes.store(reader::size_bytes(&page.events) / page.events.len(), Ordering::Relaxed);
        }
        page.events.truncate(fitting);
        // Backwards it is the position that was asked from.
        let last = page.events.last().map_or(page.safe_since, |event| event.version);
        Ok(Page { safe_since: page.safe_since.min(last), ..page })
    }

    /// The version of the event with an id; 0 when there is none.
    pub async fn version_of(&self, id: String) -> Result<i64> {
        let table = &self.open().await?.table.name;
        let sql = format!("SELECT version FROM {table} WHERE id = $1");
        let (pool, sql, id) = (&self.pool, &*sql, &id);
        let look =
            || async move { pool.get().await?.query("look for an event", sql, &[(id, Type::TEXT)], false).await };
        pool.retrying(look).await?.first().map_or(Ok(0), |row| get(row, 0))
    }

    /// The version of the last event, or of the last settled one.
    pub async fn latest_version(&self, is_settled: bool) -> Result<i64> {
        let opened = self.open().await?;
        let (pool, settler, table) = (&self.pool, &opened.shared.settler, &opened.table);
        pool.retrying(|| reader::latest_version(pool, settler, table, is_settled)).await
    }

    /// Read the settled version once: all versions up to the returned one are final.
    pub async fn settled_version(&self) -> Result<i64> {
        let opened = self.open().await?;
        let (settler, table) = (&opened.shared.settler, &opened.table);
        Ok(self.pool.retrying(|| settler.step(table)).await?.settled)
    }

    /// A subscription; the store must have been opened.
    pub fn subscribe(&self, filter: Filter) -> Result<Arc<Subscription>> {
        match self.opened() {
            Some(opened) if !self.is_closed.load(Ordering::Acquire) => {
                subscription::subscribe(opened.feed(), filter, &opened.owner)
            }
            _ => Err(Error::StoreClosed),
        }
    }

    /// How often durable subscriptions may have been changed by others, as far as was heard.
    pub fn durable_changes(&self) -> u64 {
        self.opened().map_or(0, |opened| *opened.feed().wakeup.durable.borrow())
    }

    /// Apply the migrations of a part, if they are not applied yet. The writer heeds them at once.
    pub async fn migrate(&self, part: Part) -> Result<()> {
        let mut connection = self.pool.get().await?;
        table::migrate(&mut connection, &self.settings.table_name, part).await?;
        if part == Part::Subscriptions {
            table::migrate(&mut connection, &self.settings.table_name, Part::Settled).await?;
        }
        drop(connection);
        match self.opened() {
            Some(opened) if part != Part::Subscriptions => opened.writer.look_again().await,
            _ => Ok(()),
        }
    }

    /// Make an index, if it is not there; readers of this process use it at once, and others soon.
    pub async fn add_index(&self, index: Index) -> Result<()> {
        let table = &self.open().await?.table;
        add_index(&self.pool, table, index).await?;
        table::check_again(&mut self.pool.get().await?, table).await.map(drop)
    }

    /// Look at the table again; the writer heeds what has changed.
    pub async fn look_again(&self) -> Result<()> {
        self.open().await?.writer.look_again().await
    }

    /// Finish `waiter` once the writer can accept the call with this ticket. Returns the ticket.
    pub fn wait_for_room(&self, waiter: Completion, ticket: Ticket) -> Ticket {
        if let Some(opened) = self.opened() {
            return opened.writer.wait_for_room(waiter, ticket);
        }
        waiter.finish(Ok(()));
        ticket
    }

    /// Let others go before a call that found no room and will not come again.
    pub fn give_up(&self, ticket: Ticket) {
        if let Some(opened) = self.opened() {
            opened.writer.give_up(ticket);
        }
    }

    /// Run a statement with text parameters and text results.
    pub async fn query(&self, sql: String, texts: Vec<Option<String>>) -> Result<Vec<Vec<Option<String>>>> {
        self.open().await?;
        let binds: Vec<Bind<'_>> = texts.iter().map(|text| (text as _, Type::TEXT)).collect();
        let mut connection = self.pool.get().await?;
        // Never prepared: all would run again if it became stale.
        let look = format!("{PLANNED_BY_VALUES}{}", server::IS_STANDBY);
        let [looked, rows] = connection.pipeline("query", [(&*look, &[][..]), (&*sql, &*binds)], true).await?;
        server::check_primary(&looked)?;
        let row = |row: &tokio_postgres::Row| (0..row.len()).map(|column| get(row, column)).collect::<Result<_>>();
        rows.iter().map(row).collect()
    }

    /// Store many events by binary `COPY`, in one transaction; see [`Writer::import`].
    pub async fn import(&self, events: Vec<NewEvent>, skips_existing: bool) -> Result<i64> {
        self.open().await?.writer.import(&events, skips_existing).await
    }

    /// Finish running operations within `limit`, end the subscriptions, and disconnect. Concurrent calls wait for the end,
    /// too.
    pub async fn close(&self, limit: Duration) -> Result<()> {
        self.is_closed.store(true, Ordering::Release);
        let mut is_done = self.closing.lock().await;
        if std::mem::replace(&mut *is_done, true) {
            return Ok(());
        }
        if let Some(opened) = self.opened() {
            opened.owner.close();
            opened.writer.close(limit);
            let idle = async {
                while !opened.writer.is_idle() {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            };
            let _ = tokio::time::timeout(limit + LAST_WORD, idle).await;
            // The last store of a table ends the shared parts.
            let member = opened.member.lock().take();
            if let Some(member) = member {
                member.close().await;
            }
        }
        self.pool.close();
        Ok(())
    }
}
