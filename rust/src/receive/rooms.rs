//! The rooms that have members on this server, so that messages without a receiver are dropped before Python is woken.
//!
//! Python owns the rooms and mirrors their names here: a room is entered when it gets its first member, and left when
//! it loses its last one. In doubt a room counts as occupied, and Python finds that the message has no receiver.

use foldhash::{HashMap, HashSet};

use crate::lock::Mutex;
use crate::wire::protocol::Message;

#[derive(Default)]
struct Namespace {
    has_clients: bool,
    rooms: HashSet<String>,
    /// Rooms that sockets may join by messages that Python has not applied yet, with the number of such messages.
    expected: HashMap<String, u32>,
}

impl Namespace {
    /// Whether any of these rooms has members. Without any rooms, a message is for all clients.
    fn is_meant<'a>(&self, rooms: impl Iterator<Item = &'a str>) -> bool {
        let mut rooms = rooms.peekable();
        if rooms.peek().is_none() {
            return self.has_clients || !self.expected.is_empty();
        }
        rooms.any(|room| self.rooms.contains(room) || self.expected.contains_key(room))
    }
}

/// See the module documentation.
#[derive(Default)]
pub struct Rooms {
    /// `None` when rooms are not mirrored, so that every message passes.
    namespaces: Mutex<Option<HashMap<String, Namespace>>>,
}

impl Rooms {
    /// Begin to mirror rooms; there are none yet.
    pub fn begin(&self) {
        self.namespaces.lock().get_or_insert_default();
    }

    /// Record that a room, or with `None` the namespace itself, got its first member.
    pub fn enter(&self, nsp: &str, room: Option<&str>) {
        let mut namespaces = self.namespaces.lock();
        let Some(namespaces) = namespaces.as_mut() else { return };
        let namespace = match namespaces.get_mut(nsp) {
            Some(namespace) => namespace,
            None => namespaces.entry(nsp.to_owned()).or_default(),
        };
        match room {
            Some(room) => drop(namespace.rooms.insert(room.to_owned())),
            None => namespace.has_clients = true,
        }
    }

    /// Record that a room, or with `None` the namespace itself, lost its last member.
    pub fn leave(&self, nsp: &str, room: Option<&str>) {
        self.with(nsp, |namespace| match room {
            Some(room) => drop(namespace.rooms.remove(room)),
            None => namespace.has_clients = false,
        });
    }

    /// Record that Python has applied a message that made sockets join `rooms`.
    pub fn settled(&self, nsp: &str, rooms: &[String]) {
        self.with(nsp, |namespace| {
            for room in rooms {
                if let Some(count) = namespace.expected.get_mut(room) {
                    *count -= 1;
                    if *count == 0 {
                        namespace.expected.remove(room);
                    }
                }
            }
        });
    }

    fn with(&self, nsp: &str, change: impl FnOnce(&mut Namespace)) {
        let mut namespaces = self.namespaces.lock();
        let Some(namespaces) = namespaces.as_mut() else { return };
        if let Some(namespace) = namespaces.get_mut(nsp) {
            change(namespace);
            if !namespace.has_clients && namespace.rooms.is_empty() && namespace.expected.is_empty() {
                namespaces.remove(nsp);
            }
        }
    }

    /// Whether no socket on this server is in these rooms or about to join them.
    pub fn are_empty<'a>(&self, nsp: &str, rooms: impl Iterator<Item = &'a str>) -> bool {
        let namespaces = self.namespaces.lock();
        let Some(namespaces) = namespaces.as_ref() else { return false };
        namespaces.get(nsp).is_none_or(|namespace| !namespace.is_meant(rooms))
    }

    /// Whether a message is relevant to this server. The rooms of a message that makes sockets join count as occupied
    /// from here on, because later messages may be for those rooms. Python calls [`Rooms::settled`] once it has applied
    /// the message.
    pub fn admit(&self, message: &Message) -> bool {
        // Heartbeats, and messages that require an answer, are always relevant.
        let Some(opts) = message.opts_for_sockets() else { return true };
        let mut namespaces = self.namespaces.lock();
        let Some(namespaces) = namespaces.as_mut() else { return true };
        let Some(namespace) = namespaces.get_mut(&message.nsp) else { return false };
        let is_for_us = namespace.is_meant(opts.rooms.iter().map(String::as_str));
        if is_for_us {
            for room in message.joined() {
                match namespace.expected.get_mut(room) {
                    Some(count) => *count += 1,
                    None => drop(namespace.expected.insert(room.clone(), 1)),
                }
            }
        }
        is_for_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::protocol::{Data, MessageType, Opts};

    fn opts(rooms: &[&str]) -> Opts {
        Opts { rooms: rooms.iter().map(ToString::to_string).collect(), ..Opts::default() }
    }

    fn broadcast(nsp: &str, rooms: &[&str]) -> Message {
        let packet = Some(Data::Json("[\"e\"]".into()));
        Message { opts: opts(rooms), packet, ..Message::new(MessageType::Broadcast, nsp) }
    }

    fn join(rooms: &[&str], joined: &[&str]) -> Message {
        let joined = joined.iter().map(ToString::to_string).collect();
        Message { opts: opts(rooms), rooms: joined, ..Message::new(MessageType::SocketsJoin, "/") }
    }

    fn occupied() -> Rooms {
        let rooms = Rooms::default();
        rooms.begin();
        rooms.enter("/", None);
        rooms.enter("/", Some("red"));
        rooms
    }

    #[test]
    fn only_what_reaches_somebody_is_admitted() {
        let rooms = occupied();
        assert!(rooms.admit(&broadcast("/", &[])));
        assert!(rooms.admit(&broadcast("/", &["blue", "red"])));
        assert!(!rooms.admit(&broadcast("/", &["blue"])));
        assert!(!rooms.admit(&broadcast("/other", &[])));
        rooms.leave("/", Some("red"));
        assert!(!rooms.admit(&broadcast("/", &["red"])));
        rooms.leave("/", None);
        assert!(!rooms.admit(&broadcast("/", &[])));
    }

    #[test]
    fn everything_passes_while_nobody_mirrors_or_wants_an_answer() {
        assert!(Rooms::default().admit(&broadcast("/", &["red"])));
        let rooms = occupied();
        assert!(rooms.admit(&Message { request_id: Some("r".into()), ..broadcast("/", &["blue"]) }));
        assert!(rooms.admit(&Message::new(MessageType::Heartbeat, "/other")));
        let fetch = Message::new(MessageType::FetchSockets, "/other");
        assert!(rooms.admit(&Message { opts: opts(&["blue"]), request_id: Some("r".into()), ..fetch }));
    }

    #[test]
    fn a_room_counts_while_a_join_is_on_its_way() {
        let rooms = occupied();
        assert!(rooms.admit(&join(&["red"], &["blue"])));
        assert!(rooms.admit(&join(&["red"], &["blue"])));
        assert!(rooms.admit(&broadcast("/", &["blue"])));
        rooms.settled("/", &["blue".into()]);
        assert!(rooms.admit(&broadcast("/", &["blue"])), "the second join is still on its way");
        rooms.settled("/", &["blue".into()]);
        assert!(!rooms.admit(&broadcast("/", &["blue"])), "nobody joined");
        assert!(!rooms.admit(&join(&["green"], &["blue"])), "for sockets that are not here");
        assert!(!rooms.admit(&broadcast("/", &["blue"])));
        rooms.settled("/", &["blue".into()]);
        rooms.settled("/nowhere", &["blue".into()]);
    }
}
