//! `Session`: one connection for statements of the command line, opened as the manager opens its connections.

use pyo3::prelude::*;
use tokio_postgres::SimpleQueryMessage;

use super::inbox::PyInbox;
use super::settings::{connectors, seconds};
use crate::connect::runtime::{self, Lease};
use crate::connect::session::Session;
use crate::error::{Error, Result};

/// See `_core.pyi`.
#[pyclass(name = "Session", frozen, module = "socketio_postgres._core")]
pub struct PySession {
    pid: u32,
    description: String,
    session: Session,
    _lease: Lease,
}

impl Drop for PySession {
    fn drop(&mut self) {
        runtime::leave_to(self.pid, &self.session);
    }
}

/// The rows of the last statement, as text.
type Rows = Vec<Vec<Option<String>>>;

fn rows(messages: &[SimpleQueryMessage]) -> Rows {
    let mut rows = Vec::new();
    for message in messages {
        match message {
            SimpleQueryMessage::RowDescription(_) => rows.clear(),
            SimpleQueryMessage::Row(row) => {
                rows.push((0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect());
            }
            _ => {}
        }
    }
    rows
}

#[pymethods]
impl PySession {
    #[new]
    fn new(dsn: &str, answer_limit: f64) -> PyResult<Self> {
        let (connector, _) = connectors(dsn, None, None)?;
        let description = connector.conninfo().redacted();
        let session = Session::new(connector, seconds("answer_limit", answer_limit)?);
        Ok(Self { pid: std::process::id(), description, session, _lease: Lease::new() })
    }

    #[getter]
    fn description(&self) -> &str {
        &self.description
    }

    fn query(&self, sql: String, inbox: &PyInbox, token: u64) -> PyResult<()> {
        let (completion, session) = (inbox.completion::<Rows>(token), self.session.clone());
        let work = async move || -> Result<Rows> {
            let connection = session.open().await?;
            let context = "run a statement";
            connection
                .ask(context, async |client| {
                    let messages = client.simple_query(&sql).await;
                    messages
                        .map(|messages| rows(&messages))
                        .map_err(|error| Error::from_postgres(context, &error, false))
                })
                .await
        };
        runtime::handle()?.spawn(async move { completion.finish(work().await) });
        Ok(())
    }

    fn close(&self, inbox: &PyInbox, token: u64) -> PyResult<()> {
        let (completion, session) = (inbox.completion(token), self.session.clone());
        runtime::handle()?.spawn(async move {
            session.close().await;
            completion.finish(Ok(()));
        });
        Ok(())
    }
}

/// Add the class.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PySession>()
}
