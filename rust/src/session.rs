//! One lazily opened connection for requests, opened again when it broke.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Mutex;
use tokio_postgres::Client;

use crate::connection::Connector;
use crate::error::Result;

/// See the module documentation. Cheap to clone; clones share the connection.
#[derive(Clone)]
pub struct Session {
    connector: Arc<Connector>,
    client: Arc<Mutex<Option<Arc<Client>>>>,
    connects: Arc<AtomicU64>,
}

impl Session {
    /// A session that connects on first use.
    pub fn new(connector: Arc<Connector>) -> Self {
        Self { connector, client: Arc::default(), connects: Arc::default() }
    }

    /// The open connection, made now if there is none. One attempt; the caller decides about another.
    pub async fn client(&self) -> Result<Arc<Client>> {
        let mut slot = self.client.lock().await;
        if let Some(client) = slot.as_ref().filter(|client| !client.is_closed()) {
            return Ok(Arc::clone(client));
        }
        let link = self.connector.connect().await?;
        // The driver ends with the connection; its error reaches the request in flight, or the next one.
        tokio::spawn(async move {
            let _ = link.connection.await;
        });
        self.connects.fetch_add(1, Ordering::Relaxed);
        let client = Arc::new(link.client);
        *slot = Some(Arc::clone(&client));
        Ok(client)
    }

    /// Connections opened after the first one.
    pub fn reconnects(&self) -> u64 {
        self.connects.load(Ordering::Relaxed).saturating_sub(1)
    }

    /// Close the connection; the next use opens another.
    pub async fn close(&self) {
        *self.client.lock().await = None;
    }
}
