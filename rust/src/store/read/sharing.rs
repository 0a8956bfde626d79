//! One feed per process and table: its listener, its keeper and its ring serve the subscriptions of all stores there.
//!
//! Stores share what connects and listens alike. The first one makes it, with connections of its own; it ends with the
//! last one.

use std::sync::Arc;
use std::time::Duration;

use crate::connect::connection::Connector;
use crate::lock::Mutex;
use crate::store::pool::{Limits, Pool};
use crate::store::read::feed::Feed;
use crate::store::read::reader::Settler;
use crate::store::read::wakeup::{self, Wakeup};
use crate::store::table::Table;

/// How a store connects and listens. Stores that do so alike share a feed.
pub struct Wanted {
    /// Where to read.
    pub connector: Arc<Connector>,
    /// Where to listen.
    pub listen_connector: Arc<Connector>,
    /// How to listen.
    pub listening: wakeup::Settings,
    /// How long connections live.
    pub limits: Limits,
    /// Longest time between two looks at the table while nothing is heard.
    pub poll_interval: Duration,
}

impl Wanted {
    fn is_like(&self, other: &Self) -> bool {
        self.connector.is_same(&other.connector)
            && self.listen_connector.is_same(&other.listen_connector)
            && self.listening == other.listening
            && self.poll_interval == other.poll_interval
            && self.limits.is_preparing == other.limits.is_preparing
    }
}

struct Entry {
    /// A forked child inherits what it must not use.
    pid: u32,
    wanted: Arc<Wanted>,
    table: Arc<Table>,
    shared: Arc<Shared>,
    members: usize,
}

static ENTRIES: Mutex<Vec<Entry>> = Mutex::new(Vec::new());

/// What is shared.
pub struct Shared {
    /// Subscriptions.
    pub feed: Arc<Feed>,
    /// The watermark.
    pub settler: Arc<Settler>,
    /// The keeper's connections: one for rows, one for the watermark, whose fence belongs to it.
    pools: [Arc<Pool>; 2],
}

/// A store's share; given back when dropped, at the latest.
pub struct Member {
    /// What is shared.
    pub shared: Arc<Shared>,
    pid: u32,
    is_left: bool,
}

/// A share in what there is for this table, or in something new.
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
    /// Give the share back; the last one ends what is shared, and hands it out so that its connections can be closed.
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

    /// Give the share back.
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
