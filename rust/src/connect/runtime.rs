//! The one Tokio runtime of the process: started on first use, ended with the last object that may use it, forgotten
//! in a forked child.

use std::sync::{Arc, Condvar, MutexGuard};
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};

use crate::error::{Error, Result};
use crate::lock::{Mutex, wait_while};

struct Owned {
    pid: u32,
    /// Objects that may use it.
    leases: usize,
    /// Objects that their user has dropped and that are still sending what they had buffered.
    leftovers: usize,
    runtime: Option<Runtime>,
}

static OWNED: Mutex<Option<Owned>> = Mutex::new(None);
static LEFTOVER_ENDED: Condvar = Condvar::new();

/// The record of this process. That of a parent is leaked: its threads stayed there, and dropping the runtime here would
/// wait for them for ever.
fn owned() -> MutexGuard<'static, Option<Owned>> {
    let mut slot = OWNED.lock();
    let pid = std::process::id();
    if slot.as_ref().is_none_or(|owned| owned.pid != pid) {
        std::mem::forget(slot.replace(Owned { pid, leases: 0, leftovers: 0, runtime: None }));
    }
    slot
}

/// The right to use the runtime. When the last one is gone the background thread ends.
pub struct Lease {
    pid: u32,
}

impl Lease {
    /// A lease; nothing is started yet.
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
            return; // the parent's
        }
        let ended = owned().as_mut().and_then(|owned| {
            owned.leases = owned.leases.saturating_sub(1);
            if owned.leases == 0 { owned.runtime.take() } else { None }
        });
        if let Some(runtime) = ended {
            runtime.shutdown_background(); // does not wait, so it may be called from anywhere
        }
    }
}

/// Leave alone, in a forked child, what the process with this id made, although the object that holds it is dropped here:
/// its locks may have been held at the fork, and will be for ever, and its wakers lead to threads that stayed in the parent.
/// For values whose clones share one thing: that thing is never dropped.
pub fn leave_to<T: Clone>(pid: u32, value: &T) {
    if pid != std::process::id() {
        std::mem::forget(value.clone());
    }
}

/// What is left of an object that was dropped while in use: its lease, until the last of its tasks has ended.
pub struct Leftover {
    lease: Lease,
}

impl Leftover {
    /// To be shared by those tasks.
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

/// Block until no dropped object is sending any more, or the time is over; returns how many still are.
pub fn wait_for_leftovers(limit: Duration) -> usize {
    let count = |slot: &Option<Owned>| slot.as_ref().map_or(0, |owned| owned.leftovers);
    count(&wait_while(&LEFTOVER_ENDED, owned(), limit, |slot| count(slot) > 0))
}

/// Handle of the runtime, started if this process has none yet.
///
/// One worker thread: all work here is waiting for sockets and decoding small messages, and every further thread
/// would compete with Python for the same cores.
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
