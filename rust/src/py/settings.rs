//! Settings that a bus and an event store have in common.

use std::sync::Arc;
use std::time::Duration;

use pyo3::prelude::*;

use crate::connect::connection::{Connector, PasswordSource};
use crate::connect::conninfo::{Conninfo, process_env};
use crate::error::{Error, Result};

/// Connectors for requests and for listening. Without a `listen_dsn`, both are the same.
pub fn connectors(
    dsn: &str,
    listen_dsn: Option<&str>,
    password: Option<Py<PyAny>>,
) -> Result<(Arc<Connector>, Arc<Connector>)> {
    let password = password.map(password_source);
    let connector = |dsn| -> Result<Arc<Connector>> {
        Ok(Arc::new(Connector::new(Conninfo::parse(dsn, &process_env)?, password.clone())))
    };
    let requests = connector(dsn)?;
    let listening = listen_dsn.map_or_else(|| Ok(Arc::clone(&requests)), connector)?;
    Ok((requests, listening))
}

/// Call the user's callable for a password, on a separate thread. A coroutine is run to completion there.
fn password_source(callable: Py<PyAny>) -> PasswordSource {
    Arc::new(move || {
        Python::attach(|py| {
            let ask = || -> PyResult<String> {
                let mut value = callable.bind(py).call0()?;
                if value.hasattr("__await__")? {
                    value = py.import("socketio_postgres._bus.password")?.call_method1("resolve", (value,))?;
                }
                value.extract()
            };
            ask().map_err(|error| {
                // The message of a user's exception may contain the secret, so only its type is named.
                let kind = error.get_type(py).qualname().map_or_else(|_| String::new(), |name| name.to_string());
                Error::lost("ask the password callable", format!("it raised {kind}"))
            })
        })
    })
}

/// A setting in seconds.
pub fn seconds(option: &str, value: f64) -> Result<Duration> {
    Duration::try_from_secs_f64(value).map_err(|error| Error::options(option, value.to_string(), error.to_string()))
}
