//! The process's single Tokio runtime. It is started on first use, shut down with the last object that may use it, and
//! abandoned in a forked child.

use std::sync::{Arc, Condvar, MutexGuard};
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};

use crate::error::{Error, Result};
use crate::lock::{Mutex, wait_while};

struct Owned {
    pid: u32,
    /// Number of objects that may use the runtime.
    leases: usize,
    /// Number of objects that their user has dropped and that are still sending buffered messages.
    leftovers: usize,
    runtime: Option<Runtime>,
}

static OWNED: Mutex<Option<Owned>> = Mutex::new(None);
static LEFTOVER_ENDED: Condvar = Condvar::new();

/// The runtime of this process. In a forked child the parent's runtime is leaked: its threads exist in the parent only,
/// and dropping it in the child would wait for them for ever.
fn owned() -> MutexGuard<'static, Option<Owned>> {
    let mut slot = OWNED.lock();
    let pid = std::process::id();
    if slot.as_ref().is_none_or(|owned| owned.pid != pid) {
        std::mem::forget(slot.replace(Owned { pid, leases: 0, leftovers: 0, runtime: None }));
    }
    slot
}

/// The right to use the runtime. The background thread ends when the last lease is dropped.
pub struct Lease {
    pid: u32,
}

impl Lease {
    /// A lease. The runtime is not started yet.
    pub fn new() -> Self {
        if let Some(owned) = owned().as_mut() {
            owned.leases += 1;
        }
        Self { pid: std::process::id() }
    }
}

impl Default for Lease {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.pid != std::process::id() {
            return; // the lease belongs to the parent
        }
        let ended = owned().as_mut().and_then(|owned| {
            owned.leases = owned.leases.saturating_sub(1);
            if owned.leases == 0 { owned.runtime.take() } else { None }
        });
        if let Some(runtime) = ended {
            runtime.shutdown_background(); // does not block, so it may be called from anywhere
        }
    }
}

/// In a forked child, keep a value that the process `pid` created from being dropped with the object that holds it. Its
/// locks may have been held at the fork and then stay locked for ever, and its wakers refer to threads that exist in
/// the parent only. For values whose clones share one inner value, which is leaked.
pub fn leave_to<T: Clone>(pid: u32, value: &T) {
    if pid != std::process::id() {
        std::mem::forget(value.clone());
    }
}

/// The lease of an object that was dropped while in use. It is kept until the last of the object's tasks has ended.
pub struct Leftover {
    lease: Lease,
}

impl Leftover {
    /// A leftover that the remaining tasks share.
    pub fn new(lease: Lease) -> Arc<Self> {
        if let Some(owned) = owned().as_mut() {
            owned.leftovers += 1;
        }
        Arc::new(Self { lease })
    }
}

impl Drop for Leftover {
    fn drop(&mut self) {
        if let Some(owned) = owned().as_mut().filter(|owned| owned.pid == self.lease.pid) {
            owned.leftovers = owned.leftovers.saturating_sub(1);
            LEFTOVER_ENDED.notify_all();
        }
    }
}

/// Block until no dropped object is sending any more, or for at most `limit`. Returns the number of objects that are
/// still sending.
pub fn wait_for_leftovers(limit: Duration) -> usize {
    let count = |slot: &Option<Owned>| slot.as_ref().map_or(0, |owned| owned.leftovers);
    count(&wait_while(&LEFTOVER_ENDED, owned(), limit, |slot| count(slot) > 0))
}

/// A handle of the runtime, which is started if this process has none yet.
///
/// The runtime has one worker thread. The work consists of waiting for sockets and decoding small messages, and further
/// threads would compete with Python for the same cores.
pub fn handle() -> Result<Handle> {
    let mut slot = owned();
    let Some(owned) = slot.as_mut() else { return Err(Error::Closed("runtime")) };
    if let Some(runtime) = &owned.runtime {
        return Ok(runtime.handle().clone());
    }
    let runtime = Builder::new_multi_thread().worker_threads(1).thread_name("socketio-postgres").enable_all().build();
    let runtime = runtime.map_err(|error| Error::lost("start the background thread", error))?;
    let handle = runtime.handle().clone();
    owned.runtime = Some(runtime);
    Ok(handle)
}
