//! Who is a member of the cluster: whoever holds an advisory lock.

use sha2::{Digest as _, Sha256};
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use crate::error::{Error, Result};

/// The advisory lock that a member of the cluster holds, shared, for as long as its listening session lives.
///
/// Whoever holds it is alive, and PostgreSQL lets go of it with the session, however that ends. `pg_locks` is readable
/// for every role, and neither taking the lock nor reading it writes anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemberLock {
    /// The same for all servers of a cluster.
    pub class: u32,
    /// That of one server.
    pub id: u32,
}

impl MemberLock {
    /// The lock of the server `uid` in the cluster with this channel prefix.
    pub fn of(prefix: &str, uid: &str) -> Self {
        Self { class: short_hash("cluster", prefix), id: member_id(uid) }
    }
}

/// Id of the lock of one server.
pub fn member_id(uid: &str) -> u32 {
    short_hash("server", uid)
}

fn short_hash(kind: &str, name: &str) -> u32 {
    let digest = Sha256::digest(format!("socketio-postgres {kind} {name}"));
    u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]])
}

/// Take the lock of a member, or let go of it.
pub async fn set_member(client: &Client, lock: MemberLock, is_member: bool) -> Result<()> {
    const JOIN: &str = "SELECT pg_catalog.pg_try_advisory_lock_shared($1, $2)";
    const LEAVE: &str = "SELECT pg_catalog.pg_advisory_unlock_shared($1, $2)";
    // The functions take signed numbers, pg_locks shows unsigned ones.
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
