//! Reading many pages with read-ahead: while one page is being processed, the next ones are fetched.

use std::sync::Arc;

use tokio::sync::{Mutex, mpsc};
use tokio_postgres::Row;

use crate::connect::runtime;
use crate::error::Result;
use crate::handover::completion::Completion;
use crate::store::event::StoredEvent;
use crate::store::event_store::EventStore;
use crate::store::read::page_size::PageSize;
use crate::store::read::reader::{self, Page, Query};
use crate::store::row::get;

/// Number of pages that wait for the consumer, in addition to the one being processed and the one being read.
const AHEAD: usize = 1;

type Events = Result<Vec<Arc<StoredEvent>>>;

/// Reads the pages of a query, one after the other. Reading stops when this is dropped.
pub struct Reading {
    pages: Arc<Mutex<mpsc::Receiver<Events>>>,
}

impl Reading {
    /// Begin to read. The query's limit is the size of a page.
    pub fn begin(store: Arc<EventStore>, query: Query) -> Result<Self> {
        let (sender, pages) = mpsc::channel(AHEAD);
        runtime::handle()?.spawn(run(store, query, sender));
        Ok(Self { pages: Arc::new(Mutex::new(pages)) })
    }

    /// Hand over the next page as soon as it is available. An empty page is the end.
    pub fn next(&self, completion: Completion<Page>) -> Result<()> {
        let pages = Arc::clone(&self.pages);
        runtime::handle()?.spawn(async move {
            let page = pages.lock().await.recv().await.unwrap_or_else(|| Ok(Vec::new()));
            completion.finish(page.map(|events| Page { events, safe_since: 0 }));
        });
        Ok(())
    }
}

/// The rows of a page, and whether others follow.
type Rows = Result<(Vec<Row>, bool)>;

async fn run(store: Arc<EventStore>, query: Query, pages: mpsc::Sender<Events>) {
    let size = &PageSize::default();
    let reading = async {
        // The first read also detects that the table ends before the given position.
        let page = store.load(query.clone(), false, size).await;
        let last = page.as_ref().ok().and_then(|(asked, page)| {
            let last = page.events.last()?.version;
            is_full(page.events.len(), *asked).then_some(last)
        });
        if pages.send(page.map(|(_, page)| page.events)).await.is_err() {
            return;
        }
        let mut rows = match last {
            Some(last) => read_after(&store, &query, last, size).await,
            None => return,
        };
        loop {
            let last = rows.as_ref().map_or(Ok(None), |(rows, is_full)| last_of(rows, *is_full));
            // The next page is requested first, so that the server reads it while this one is decoded.
            let next = async {
                match last {
                    Ok(Some(last)) => Some(read_after(&store, &query, last, size).await),
                    Ok(None) => None,
                    Err(error) => Some(Err(error)),
                }
            };
            let handing_over = async {
                // The runtime has one thread: the request is sent once this task yields to the connection's task.
                tokio::task::yield_now().await;
                let events = rows.and_then(|(rows, _)| reader::events(rows));
                pages.send(events).await
            };
            match tokio::join!(next, handing_over) {
                (Some(next), Ok(())) => rows = next,
                _ => return,
            }
        }
    };
    tokio::select! {
        () = reading => {}
        () = pages.closed() => {}
    }
}

/// The version after which the next page begins; `None` after the last page.
fn last_of(rows: &[Row], is_full: bool) -> Result<Option<i64>> {
    rows.last().filter(|_| is_full).map(|row| get(row, 0)).transpose()
}

fn is_full(count: usize, asked: i64) -> bool {
    i64::try_from(count).is_ok_and(|count| count >= asked)
}

async fn read_after(store: &EventStore, query: &Query, last: i64, size: &PageSize) -> Rows {
    let opened = store.open().await?;
    loop {
        let limit = size.rows(query.limit);
        let query = Query { limit, ..query.clone() };
        let query =
            if query.is_backwards { Query { until: last - 1, ..query } } else { Query { since: last, ..query } };
        let (sql, parameters) = reader::sql(&opened.table, &query);
        let (sql, binds, pool) = (&*sql, &*reader::binds(&parameters), &store.pool);
        let read = || async move {
            let mut connection = pool.get().await?;
            connection.set_answer_limit_bytes(size.limit_bytes());
            connection.query("read events", sql, binds, false).await
        };
        match pool.retrying(read).await {
            Err(error) if size.shrink(&error) => {}
            rows => {
                let rows = rows?;
                size.took(limit, rows.len(), rows.iter().map(Row::raw_size_bytes).sum());
                let is_full = is_full(rows.len(), limit);
                return Ok((rows, is_full));
            }
        }
    }
}
