//! Storing large numbers of events by `COPY`: while the server stores one chunk, the next one is prepared.

use std::sync::Arc;

use tokio::task::JoinHandle;

use crate::connect::runtime;
use crate::error::{Error, Result};
use crate::handover::completion::Completion;
use crate::lock::Mutex;
use crate::store::event::NewEvent;
use crate::store::event_store::EventStore;

/// See the module documentation. Calls must not overlap.
pub struct Import {
    store: Arc<EventStore>,
    /// Whether events that are there already are left out.
    skips_existing: bool,
    /// The chunk that is being stored.
    chunk: Mutex<Option<JoinHandle<Result<i64>>>>,
}

impl Import {
    /// An import; it does nothing before the first chunk.
    pub fn new(store: Arc<EventStore>, skips_existing: bool) -> Self {
        Self { store, skips_existing, chunk: Mutex::default() }
    }

    /// Wait until the previous chunk is stored, report its number of events, and begin to store this chunk. Without
    /// events, only wait. If the previous chunk failed, this one is not begun.
    pub fn add(&self, events: Vec<NewEvent>, completion: Completion<i64>) -> Result<()> {
        let mut chunk = self.chunk.lock();
        let before = chunk.take();
        let (told, failed) = tokio::sync::oneshot::channel::<bool>();
        let (store, skips_existing) = (Arc::clone(&self.store), self.skips_existing);
        let handle = runtime::handle()?;
        if !events.is_empty() {
            *chunk = Some(handle.spawn(async move {
                match failed.await {
                    Ok(false) => store.import(events, skips_existing).await,
                    _ => Ok(0),
                }
            }));
        }
        handle.spawn(async move {
            let result = match before {
                None => Ok(0),
                Some(before) => before.await.unwrap_or(Err(Error::Closed("event store"))),
            };
            let _ = told.send(result.is_err());
            completion.finish(result);
        });
        Ok(())
    }
}
