//! Reading on and on: while one page is being looked at, the next ones are on their way.

use std::sync::Arc;

use tokio::sync::{Mutex, mpsc};

use crate::error::{Error, Result};
use crate::inbox::{Completion, Outcome};
use crate::runtime;
use crate::store::event::StoredEvent;
use crate::store::event_store::EventStore;
use crate::store::reader::{self, Page, Query};

/// Pages that wait for the consumer, beside the one it has and the one being read.
const AHEAD: usize = 1;

/// Pages of a query, one after the other. Dropped, it stops.
pub struct Reading {
    pages: Arc<Mutex<mpsc::Receiver<Result<Vec<Arc<StoredEvent>>>>>>,
}

impl Reading {
    /// Begin. The query's limit is the size of a page.
    pub fn begin(store: Arc<EventStore>, query: Query) -> Result<Self> {
        let (sender, pages) = mpsc::channel(AHEAD);
        runtime::handle()?.spawn(run(store, query, sender));
        Ok(Self { pages: Arc::new(Mutex::new(pages)) })
    }

    /// Hand the next page over as soon as it is there; an empty one is the end.
    pub fn next(&self, completion: Completion) -> Result<()> {
        let pages = Arc::clone(&self.pages);
        runtime::handle()?.spawn(async move {
            let page = pages.lock().await.recv().await.unwrap_or_else(|| Ok(Vec::new()));
            completion.finish(page.map(|events| Outcome::Page(Box::new(Page { events, safe_since: 0 }))));
        });
        Ok(())
    }
}

async fn run(store: Arc<EventStore>, mut query: Query, pages: mpsc::Sender<Result<Vec<Arc<StoredEvent>>>>) {
    let mut is_first = true;
    loop {
        let page = tokio::select! {
            page = read(&store, &query, is_first) => page,
            () = pages.closed() => return,
        };
        is_first = false;
        let next = page.as_ref().ok().and_then(|events| after(&query, events));
        if pages.send(page).await.is_err() {
            return;
        }
        match next {
            Some(next) => query = next,
            None => return,
        }
    }
}

/// The query of the page after this one; `None` after the last.
fn after(query: &Query, events: &[Arc<StoredEvent>]) -> Option<Query> {
    let last = events.last()?.version;
    let is_full = i64::try_from(events.len()).is_ok_and(|count| count >= query.limit);
    let query = query.clone();
    is_full.then_some(if query.is_backwards {
        Query { until: last - 1, ..query }
    } else {
        Query { since: last, ..query }
    })
}

async fn read(store: &EventStore, query: &Query, is_first: bool) -> Result<Vec<Arc<StoredEvent>>> {
    if is_first {
        // Notices, too, that the table ends before the position given.
        return match store.load(query.clone()).await? {
            Outcome::Page(page) => Ok(page.events),
            _ => Err(Error::Closed("event store")),
        };
    }
    let opened = store.open().await?;
    let (sql, parameters) = reader::sql(&opened.table, query);
    let mut connection = store.pool.get().await?;
    let rows = connection.query("read events", &sql, &reader::binds(&parameters), false).await?;
    reader::events(&rows)
}
