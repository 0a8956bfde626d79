//! Cluster membership: every member holds an advisory lock.

use sha2::{Digest as _, Sha256};
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use crate::error::{Error, Result};

/// The advisory lock that a cluster member holds, in shared mode, for as long as its listening session lives.
///
/// A server that holds its lock is alive. PostgreSQL releases the lock with the session, however the session ends.
/// Every role may read `pg_locks`, and neither taking nor reading the lock writes anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemberLock {
    /// First key, the same for all servers of a cluster.
    pub class: u32,
    /// Second key, different for each server.
    pub id: u32,
}

impl MemberLock {
    /// The lock of the server `uid` in the cluster with this channel prefix.
    pub fn of(prefix: &str, uid: &str) -> Self {
        Self { class: short_hash("cluster", prefix), id: member_id(uid) }
    }
}

/// The second key of a server's lock.
pub fn member_id(uid: &str) -> u32 {
    short_hash("server", uid)
}

fn short_hash(kind: &str, name: &str) -> u32 {
    let digest = Sha256::digest(format!("socketio-postgres {kind} {name}"));
    u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]])
}

/// Take or release the member lock.
pub async fn set_member(client: &Client, lock: MemberLock, is_member: bool) -> Result<()> {
    const JOIN: &str = "SELECT pg_catalog.pg_try_advisory_lock_shared($1, $2)";
    const LEAVE: &str = "SELECT pg_catalog.pg_advisory_unlock_shared($1, $2)";
    // The lock functions take signed numbers; `pg_locks` shows unsigned ones.
    let (class, id) = (lock.class.cast_signed(), lock.id.cast_signed());
    let sql = if is_member { JOIN } else { LEAVE };
    let done = client.query_typed(sql, &[(&class, Type::INT4), (&id, Type::INT4)]).await;
    done.map(drop).map_err(|error| Error::from_postgres("take the lock of a member", &error, false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_differ_by_cluster_and_server() {
        let lock = MemberLock::of("socket.io", "a1");
        assert_eq!(lock, MemberLock { class: lock.class, id: member_id("a1") });
        assert_ne!(lock.class, MemberLock::of("chat", "a1").class);
        assert_ne!(lock.id, member_id("a2"));
    }
}
