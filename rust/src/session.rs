//! One lazily opened connection for requests, opened again when it broke.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::Client;

use crate::connection::Connector;
use crate::error::{Error, Result};

/// How long closing waits for the server to take our farewell.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

struct Open {
    client: Arc<Client>,
    driver: JoinHandle<()>,
}

/// See the module documentation. Cheap to clone; clones share the connection.
#[derive(Clone)]
pub struct Session {
    connector: Arc<Connector>,
    /// Longest wait for one answer: a server that is frozen, or a link that is half open, never gives one.
    answer_limit: Duration,
    open: Arc<Mutex<Option<Open>>>,
    closed: Arc<watch::Sender<bool>>,
    connects: Arc<AtomicU64>,
}

impl Session {
    /// A session that connects on first use.
    pub fn new(connector: Arc<Connector>, answer_limit: Duration) -> Self {
        let closed = Arc::new(watch::Sender::new(false));
        Self { connector, answer_limit, open: Arc::default(), closed, connects: Arc::default() }
    }

    /// The open connection, made now if there is none. One attempt; the caller decides about another.
    pub async fn client(&self) -> Result<Arc<Client>> {
        let mut closed = self.closed.subscribe();
        let mut slot = self.open.lock().await;
        if let Some(open) = slot.as_ref().filter(|open| !open.client.is_closed()) {
            return Ok(Arc::clone(&open.client));
        }
        // Boxed: connecting needs much state, and is rare.
        let connect = Box::pin(self.connector.connect());
        let link = tokio::select! {
            biased;
            // Or closing would wait for as long as a black hole may take to answer.
            _ = closed.wait_for(|is_closed| *is_closed) => return Err(Error::Closed("connection")),
            link = connect => link?,
        };
        // The driver ends with the connection; its error reaches the request in flight, or the next one.
        let driver = tokio::spawn(async move {
            let _ = link.connection.await;
        });
        self.connects.fetch_add(1, Ordering::Relaxed);
        let client = Arc::new(link.client);
        *slot = Some(Open { client: Arc::clone(&client), driver });
        Ok(client)
    }

    /// Wait for an answer, but not for ever. After a failure the caller calls [`Session::discard`].
    pub async fn answer<T>(&self, context: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
        match timeout(self.answer_limit, work).await {
            Ok(result) => result,
            Err(_) => Err(Error::ConnectionLost {
                context: context.to_owned(),
                reason: format!("PostgreSQL did not answer within {} s", self.answer_limit.as_secs_f64()),
                may_be_sent: false,
            }),
        }
    }

    /// The same for a statement that writes: without an answer it may have been committed.
    pub async fn answer_to_commit<T>(&self, context: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
        self.answer(context, work).await.map_err(|error| match error {
            Error::ConnectionLost { context, reason, .. } => {
                Error::ConnectionLost { context, reason, may_be_sent: true }
            }
            other => other,
        })
    }

    /// Connections opened after the first one.
    pub fn reconnects(&self) -> u64 {
        self.connects.load(Ordering::Relaxed).saturating_sub(1)
    }

    /// Drop a connection that broke, without a farewell; the next use opens another.
    pub async fn discard(&self) {
        if let Some(open) = self.open.lock().await.take() {
            open.driver.abort();
        }
    }

    /// Close the connection in good order, and for good; one that is just being made is given up.
    pub async fn close(&self) {
        self.closed.send_replace(true);
        if let Some(Open { client, mut driver }) = self.open.lock().await.take() {
            drop(client);
            if timeout(CLOSE_LIMIT, &mut driver).await.is_err() {
                driver.abort();
            }
        }
    }
}
