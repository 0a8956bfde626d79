//! One feed per process and table: its listener, its keeper and its ring serve the subscriptions of all stores on that
//! table.
//!
//! Stores with equal connection and listening settings share a feed. The first store creates it, with separate
//! connections, and it ends with the last store.

use std::sync::Arc;
use std::time::Duration;

use crate::connect::connection::Connector;
use crate::lock::Mutex;
use crate::store::pool::{Limits, Pool};
use crate::store::read::feed::Feed;
use crate::store::read::reader::Settler;
use crate::store::read::wakeup::{self, Wakeup};
use crate::store::table::Table;

/// A store's connection and listening settings. Stores with equal settings share a feed.
pub struct Wanted {
    /// Connects for reading.
    pub connector: Arc<Connector>,
    /// Connects for listening.
    pub listen_connector: Arc<Connector>,
    /// How to listen.
    pub listening: wakeup::Settings,
    /// How long connections live.
    pub limits: Limits,
    /// Longest time between two reads of the table while no notification arrives.
    pub poll_interval: Duration,
}

impl Wanted {
    fn is_like(&self, other: &Self) -> bool {
        self.connector.is_same(&other.connector)
            && self.listen_connector.is_same(&other.listen_connector)
            && self.listening == other.listening
            && self.poll_interval == other.poll_interval
            && self.limits.is_preparing == other.limits.is_preparing
            && self.limits.answer_limit == other.limits.answer_limit
    }
}

struct Entry {
    /// The process that created the settings. A forked child inherits the feed, but must not use it.
    pid: u32,
    wanted: Arc<Wanted>,
    table: Arc<Table>,
    shared: Arc<Shared>,
    members: usize,
}

static ENTRIES: Mutex<Vec<Entry>> = Mutex::new(Vec::new());

/// The parts that the stores of a table share.
pub struct Shared {
    /// Subscriptions.
    pub feed: Arc<Feed>,
    /// The watermark.
    pub settler: Arc<Settler>,
    /// The keeper's connections: one for rows, and one for the watermark, which is tied to that connection.
    pools: [Arc<Pool>; 2],
}

/// A store's share of the feed, which is returned when dropped at the latest.
pub struct Member {
    /// The shared parts.
    pub shared: Arc<Shared>,
    pid: u32,
    is_left: bool,
}

/// Join the existing feed of this table, or create one.
pub fn join(wanted: &Arc<Wanted>, table: &Arc<Table>) -> Member {
    let pid = std::process::id();
    let mut entries = ENTRIES.lock();
    let is_same = |entry: &&mut Entry| entry.pid == pid && entry.table == *table && entry.wanted.is_like(wanted);
    if let Some(entry) = entries.iter_mut().find(is_same) {
        entry.members += 1;
        return Member { shared: Arc::clone(&entry.shared), pid, is_left: false };
    }
    let single = Limits { max_open: 1, max_idle: 1, ..wanted.limits };
    let pools = [(); 2].map(|()| Pool::new(Arc::clone(&wanted.connector), single));
    let [rows, settling] = &pools;
    let settler = Arc::new(Settler::new(Arc::clone(settling), table));
    let feed = Feed::new(
        Arc::clone(rows),
        Arc::clone(&settler),
        Arc::clone(table),
        Arc::new(Wakeup::new(Arc::clone(&wanted.listen_connector), wanted.listening)),
        wanted.poll_interval,
    );
    let shared = Arc::new(Shared { feed, settler, pools });
    let (wanted, table) = (Arc::clone(wanted), Arc::clone(table));
    entries.push(Entry { pid, wanted, table, shared: Arc::clone(&shared), members: 1 });
    Member { shared, pid, is_left: false }
}

impl Member {
    /// Return the share. The last share ends the feed, and returns the shared parts so that their connections can be
    /// closed.
    fn leave(&self) -> Option<Arc<Shared>> {
        if self.pid != std::process::id() {
            return None;
        }
        let mut entries = ENTRIES.lock();
        let index = entries.iter().position(|entry| Arc::ptr_eq(&entry.shared, &self.shared))?;
        let entry = entries.get_mut(index)?;
        entry.members -= 1;
        if entry.members > 0 {
            return None;
        }
        let Entry { shared, .. } = entries.swap_remove(index);
        drop(entries);
        shared.feed.close();
        for pool in &shared.pools {
            pool.close();
        }
        Some(shared)
    }

    /// Return the share.
    pub async fn close(mut self) {
        self.is_left = true;
        if let Some(shared) = self.leave() {
            shared.settler.close().await;
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if !self.is_left {
            self.leave();
        }
    }
}
