//! The one Tokio runtime of the process: started on first use, forgotten in a forked child.

use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, Result};

struct Owned {
    pid: u32,
    runtime: Arc<tokio::runtime::Runtime>,
}

static RUNTIME: Mutex<Option<Owned>> = Mutex::new(None);

/// Handle of the runtime, started if this process has none yet.
///
/// One worker thread: all work here is waiting for sockets and decoding small messages, and every further thread
/// would compete with Python for the same cores.
pub fn handle() -> Result<tokio::runtime::Handle> {
    let mut slot = RUNTIME.lock().unwrap_or_else(PoisonError::into_inner);
    let pid = std::process::id();
    if let Some(owned) = slot.take() {
        if owned.pid == pid {
            let handle = owned.runtime.handle().clone();
            *slot = Some(owned);
            return Ok(handle);
        }
        // The threads stayed in the parent; dropping the runtime here would wait for them for ever.
        std::mem::forget(owned);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("socketio-postgres")
        .enable_all()
        .build()
        .map_err(|error| Error::ConnectionLost {
            context: "start the background thread".to_owned(),
            reason: error.to_string(),
            may_be_sent: false,
        })?;
    let runtime = Arc::new(runtime);
    let handle = runtime.handle().clone();
    *slot = Some(Owned { pid, runtime });
    Ok(handle)
}
