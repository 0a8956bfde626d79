//! The calls that are to be stored: a queue of new calls, and a waiting room for those that could not be stored with
//! their group. No I/O.
//!
//! A call comes to the waiting room when another transaction holds the lock of one of its aggregates or one of its ids,
//! when the reason for leaving it out is to be found out, and while its commit is in doubt or the server is away. Calls
//! of one aggregate keep their order there, and later calls of the aggregate line up behind them.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::handover::completion::Completion;
use crate::store::event::NewEvent;

/// Maximum size of the events in one statement.
const GROUP_BYTES: usize = 8 * 1024 * 1024;
/// How many calls are looked at for one group, beyond those that it takes.
const LOOK_AHEAD: usize = 4096;

/// How long others wait for a call that was let in, or that was refused and is to wait.
const COMING_LIMIT: Duration = Duration::from_secs(10);

/// Where an event was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Its version.
    pub version: i64,
    /// Time of storing, in microseconds since 1970.
    pub created_at: Option<i64>,
    /// Whether an earlier call has stored the event already, with the same id and content.
    pub is_duplicate: bool,
}

/// The place of a call among those that find no room; 0 before it has one.
pub type Ticket = u64;

/// One call, whose events are stored atomically.
pub struct Request {
    /// At least one.
    pub events: Vec<NewEvent>,
    /// The expected versions of aggregates before these events: that of the last event, 0 for no events, -1 for any
    /// version. Aggregates that are not listed may have any version.
    pub expected: BTreeMap<String, i64>,
    /// Receives the positions, in the order of the events.
    pub completion: Completion<Vec<Position>>,
}

impl Request {
    /// Whether the call expects something of an aggregate.
    pub fn is_conditional(&self) -> bool {
        !self.expected.is_empty()
    }

    /// The aggregates that it writes or checks; some may occur repeatedly.
    pub fn aggregates(&self) -> impl Iterator<Item = &str> {
        let written = self.events.iter().map(|event| event.aggregate_id.as_str());
        written.chain(self.expected.keys().map(String::as_str))
    }

    fn size_bytes(&self) -> usize {
        self.events.iter().map(NewEvent::size_bytes).sum()
    }
}

/// A call that has been accepted.
pub struct Call {
    /// What is to be stored.
    pub request: Request,
    /// When it was accepted.
    pub since: Instant,
    /// Since when a commit of it has been in doubt.
    pub doubt: Option<Instant>,
    /// Since when the server has been away.
    pub away: Option<Instant>,
    /// Conflicts with other writers, apart from those that only take time.
    pub conflicts: u32,
    /// The error of the last attempt.
    pub trouble: Option<Error>,
    size_bytes: usize,
}

/// Counters since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WriterStats {
    /// Events stored.
    pub stored: u64,
    /// Calls that failed.
    pub failed: u64,
    /// Transactions that stored calls.
    pub groups: u64,
    /// Calls that went to the waiting room.
    pub alone: u64,
    /// Calls waiting now.
    pub waiting: usize,
}

/// How many calls may wait.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Their number.
    pub count: usize,
    /// The size of their events.
    pub bytes: usize,
}

/// The queue and the waiting room.
pub struct Calls {
    queue: VecDeque<Call>,
    room: VecDeque<Call>,
    /// For each aggregate and id, how many calls of the room have it. Hashes will do: if two are the same, a call waits
    /// once without need.
    held: HashMap<u64, usize>,
    hasher: RandomState,
    bounds: Bounds,
    /// Calls that are not finished, and their size.
    count: usize,
    bytes: usize,
    /// Callers that wait for a place, in the order of their first calls.
    waiters: BTreeMap<Ticket, Completion>,
    /// Those that were refused or let in, and have not come again yet, since when.
    coming: BTreeMap<Ticket, Instant>,
    last_ticket: Ticket,
    /// Counters.
    pub stats: WriterStats,
    /// Whether the task that stores groups runs.
    pub is_running: bool,
    /// Whether the task of the waiting room runs.
    pub is_room_running: bool,
    /// When the remaining calls fail. No further ones are accepted.
    pub closes_at: Option<Instant>,
}

/// What a group contains, so that no call of it affects another one: the statement sees the table as it was before the
/// whole group.
#[derive(Default)]
struct Group {
    calls: Vec<Call>,
    /// Hashes of ids and of aggregates.
    ids: HashSet<u64>,
    aggregates: HashSet<u64>,
    /// Those of calls that were passed over. Later calls must not overtake them.
    passed: HashSet<u64>,
}

impl Group {
    /// Whether a call may join. Whoever expects something of an aggregate must see what earlier calls stored there.
    fn suits(&self, ids: &[u64], aggregates: &[u64], is_conditional: bool) -> bool {
        let overtakes = ids.iter().chain(aggregates).any(|mark| self.passed.contains(mark));
        let shares_id = ids.iter().any(|id| self.ids.contains(id));
        let depends = is_conditional && aggregates.iter().any(|aggregate| self.aggregates.contains(aggregate));
        !overtakes && !shares_id && !depends
    }
}

impl Calls {
    /// No calls yet.
    pub fn new(bounds: Bounds) -> Self {
        Self {
            queue: VecDeque::new(),
            room: VecDeque::new(),
            held: HashMap::new(),
            hasher: RandomState::new(),
            bounds,
            count: 0,
            bytes: 0,
            waiters: BTreeMap::new(),
            coming: BTreeMap::new(),
            last_ticket: 0,
            stats: WriterStats::default(),
            is_running: false,
            is_room_running: false,
            closes_at: None,
        }
    }

    /// Append a call to the queue, or report to its completion why it is not accepted: also if one with an earlier ticket
    /// has not found room yet. A single call is accepted whatever its size. Returns the call's ticket, with which it is to
    /// wait or to be given up if it is refused.
    pub fn push(&mut self, request: Request, ticket: Ticket) -> Ticket {
        let ticket = self.ticket(ticket);
        self.coming.remove(&ticket);
        if self.closes_at.is_some() {
            request.completion.finish(Err(Error::StoreClosed));
            return ticket;
        }
        let first = self.first_outside();
        if self.is_full() || first.is_some_and(|first| first < ticket) {
            let (count, bytes) = (self.count, self.bytes);
            self.coming.insert(ticket, Instant::now());
            request.completion.finish(Err(Error::BufferFull { count, bytes }));
            return ticket;
        }
        let size_bytes = request.size_bytes();
        self.count += 1;
        self.bytes += size_bytes;
        let (since, trouble) = (Instant::now(), None);
        self.queue.push_back(Call { request, since, doubt: None, away: None, conflicts: 0, trouble, size_bytes });
        self.admit();
        ticket
    }

    /// The earliest ticket of a call that has found no room yet. Nobody waits for long for one that does not come again.
    fn first_outside(&mut self) -> Option<Ticket> {
        while let Some(coming) = self.coming.first_entry()
            && coming.get().elapsed() >= COMING_LIMIT
        {
            coming.remove();
        }
        let coming = self.coming.first_key_value().map(|(ticket, _)| *ticket);
        self.waiters.first_key_value().map(|(ticket, _)| *ticket).into_iter().chain(coming).min()
    }

    fn ticket(&mut self, ticket: Ticket) -> Ticket {
        if ticket > 0 {
            return ticket;
        }
        self.last_ticket += 1;
        self.last_ticket
    }

    /// Finish `waiter` once there is room for the call with this ticket. Returns the ticket.
    pub fn wait(&mut self, waiter: Completion, ticket: Ticket) -> Ticket {
        let ticket = self.ticket(ticket);
        self.coming.remove(&ticket);
        self.waiters.insert(ticket, waiter);
        self.admit();
        ticket
    }

    /// Forget a call that found no room and will not come again.
    pub fn give_up(&mut self, ticket: Ticket) {
        self.waiters.remove(&ticket);
        self.coming.remove(&ticket);
        self.admit();
    }

    fn is_full(&self) -> bool {
        self.count >= self.bounds.count || self.bytes >= self.bounds.bytes
    }

    fn admit(&mut self) {
        if self.waiters.is_empty() {
            return;
        }
        let count = match () {
            // Nobody else would let the others in, should those that are let in not come.
            () if self.count == 0 || self.closes_at.is_some() => self.waiters.len(),
            // They come first.
            () if self.is_full() || !self.coming.is_empty() => 0,
            () => self.bounds.count - self.count,
        };
        let rest = self.waiters.keys().nth(count).copied();
        let rest = rest.map_or_else(BTreeMap::new, |first| self.waiters.split_off(&first));
        let admitted = std::mem::replace(&mut self.waiters, rest);
        self.coming.extend(admitted.keys().map(|&ticket| (ticket, Instant::now())));
        Completion::finish_all(admitted.into_values(), &Ok(()));
    }

    /// Forget a call that is finished.
    pub fn finished(&mut self, call: &Call, result: &Result<Vec<Position>>) {
        match result {
            Ok(positions) => self.stats.stored += positions.iter().filter(|p| !p.is_duplicate).count() as u64,
            Err(_) => self.stats.failed += 1,
        }
        self.count -= 1;
        self.bytes -= call.size_bytes;
        self.admit();
    }

    /// Accept no more calls, and let those that are not finished by `at` fail.
    pub fn close(&mut self, at: Instant) {
        self.closes_at.get_or_insert(at);
        self.admit();
    }

    /// Whether every call is finished, and their tasks have ended.
    pub fn is_idle(&self) -> bool {
        !self.is_running && !self.is_room_running && self.count == 0
    }

    /// Counters.
    pub fn stats(&self) -> WriterStats {
        WriterStats { waiting: self.queue.len() + self.room.len(), ..self.stats }
    }

    fn marks(&self, request: &Request) -> (Vec<u64>, Vec<u64>) {
        let ids = request.events.iter().map(|event| self.hasher.hash_one(&event.id)).collect();
        (ids, request.aggregates().map(|aggregate_id| self.hasher.hash_one(aggregate_id)).collect())
    }

    /// The next calls of the queue that can share one statement of at most `batch_size` events. A call that does not
    /// suit the group is passed over and keeps its place.
    pub fn take_group(&mut self, batch_size: usize) -> Vec<Call> {
        if self.queue.len() == 1 && self.held.is_empty() {
            return self.queue.drain(..).collect(); // it affects nobody, so nothing is compared
        }
        let mut group = Group::default();
        let (mut events, mut bytes) = (0, 0);
        let mut passed = VecDeque::new();
        while let Some(call) = self.queue.pop_front() {
            let (ids, aggregates) = self.marks(&call.request);
            if ids.iter().chain(&aggregates).any(|mark| self.held.contains_key(mark)) {
                self.send_to_room(call);
                continue;
            }
            if !group.suits(&ids, &aggregates, call.request.is_conditional()) {
                group.passed.extend(ids.into_iter().chain(aggregates));
                passed.push_back(call);
                if passed.len() >= LOOK_AHEAD {
                    break;
                }
                continue;
            }
            events += call.request.events.len();
            bytes += call.size_bytes;
            if !group.calls.is_empty() && (events > batch_size || bytes > GROUP_BYTES) {
                self.queue.push_front(call);
                break;
            }
            group.ids.extend(ids);
            group.aggregates.extend(aggregates);
            group.calls.push(call);
        }
        while let Some(call) = passed.pop_back() {
            self.queue.push_front(call);
        }
        group.calls
    }

    /// Let a call wait in the room.
    pub fn send_to_room(&mut self, call: Call) {
        self.stats.alone += 1;
        let (ids, aggregates) = self.marks(&call.request);
        for mark in ids.into_iter().chain(aggregates) {
            *self.held.entry(mark).or_default() += 1;
        }
        self.room.push_back(call);
    }

    /// The calls of the room whose turn it is: of those that affect one another, the first one. They remain in the room's
    /// books until [`Calls::leave_room`].
    pub fn take_from_room(&mut self) -> Vec<Call> {
        let mut group = Group::default();
        let mut passed = VecDeque::new();
        while let Some(call) = self.room.pop_front() {
            let (ids, aggregates) = self.marks(&call.request);
            if group.suits(&ids, &aggregates, call.request.is_conditional()) {
                group.ids.extend(ids);
                group.aggregates.extend(aggregates);
                group.calls.push(call);
            } else {
                group.passed.extend(ids.into_iter().chain(aggregates));
                passed.push_back(call);
            }
        }
        self.room = passed;
        group.calls
    }

    /// Put calls back to the front of the room, in their order.
    pub fn return_to_room(&mut self, calls: Vec<Call>) {
        for call in calls.into_iter().rev() {
            self.room.push_front(call);
        }
    }

    /// Put a call to the end of the room.
    pub fn requeue_in_room(&mut self, call: Call) {
        self.room.push_back(call);
    }

    /// Take a call that is finished out of the room's books.
    pub fn leave_room(&mut self, call: &Call) {
        let (ids, aggregates) = self.marks(&call.request);
        for mark in ids.into_iter().chain(aggregates) {
            if let Some(count) = self.held.get_mut(&mark) {
                *count -= 1;
                if *count == 0 {
                    self.held.remove(&mark);
                }
            }
        }
    }

    /// The calls of the room that have waited for too long: for a lock, for the server, or until the end.
    pub fn take_expired(&mut self, lock_wait: Duration, away_limit: Duration) -> Vec<Call> {
        let now = Instant::now();
        let is_over = |call: &Call| {
            let is_away = call.away.is_some_and(|since| now.duration_since(since) >= away_limit);
            let has_waited = call.away.is_none() && now.duration_since(call.since) >= lock_wait;
            is_away || has_waited || self.closes_at.is_some_and(|at| now >= at)
        };
        let (expired, rest) = std::mem::take(&mut self.room).into_iter().partition::<VecDeque<_>, _>(is_over);
        self.room = rest;
        expired.into()
    }

    /// Whether nothing waits in the queue.
    pub fn is_queue_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether nothing waits in the room.
    pub fn is_room_empty(&self) -> bool {
        self.room.is_empty()
    }
}

/// Size of the events of calls.
pub fn size_bytes(calls: &[Call]) -> usize {
    calls.iter().map(|call| call.size_bytes).sum()
}

/// Split off the calls that do not fit into one statement of at most `batch_size` events and `most` calls.
pub fn split_off(calls: &mut Vec<Call>, batch_size: usize, most: usize) -> Vec<Call> {
    let (mut events, mut bytes, mut count) = (0, 0, 0);
    for call in calls.iter().take(most.max(1)) {
        events += call.request.events.len();
        bytes += call.size_bytes;
        if count > 0 && (events > batch_size || bytes > GROUP_BYTES) {
            break;
        }
        count += 1;
    }
    calls.split_off(count)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::handover::completion::Answers;

    struct Nobody;

    impl<T> Answers<T> for Nobody {
        fn finished(&self, _: &mut dyn Iterator<Item = (u64, Result<T>)>) {}
    }

    /// A call like `a:e1 b:e2 ?a`: events of aggregates with ids, and what is expected of aggregates.
    fn request(text: &str) -> Request {
        let (mut events, mut expected) = (Vec::new(), BTreeMap::new());
        for word in text.split(' ') {
            if let Some(aggregate_id) = word.strip_prefix('?') {
                expected.insert(aggregate_id.to_owned(), 0);
            } else if let Some((aggregate_id, id)) = word.split_once(':') {
                let (id, aggregate_id, event_type) = (id.to_owned(), aggregate_id.to_owned(), "T".to_owned());
                events.push(NewEvent { id, aggregate_id, event_type, data: None, metadata: None });
            }
        }
        Request { events, expected, completion: Completion::new(&Arc::new(Nobody), 0) }
    }

    fn calls(texts: &[&str]) -> Calls {
        let mut calls = Calls::new(Bounds { count: 100, bytes: 1_000_000 });
        for text in texts {
            calls.push(request(text), 0);
        }
        calls
    }

    fn ids(calls: &[Call]) -> Vec<&str> {
        calls.iter().flat_map(|call| &call.request.events).map(|event| event.id.as_str()).collect()
    }

    #[test]
    fn calls_that_affect_one_another_are_in_different_groups_and_in_order() {
        let mut calls = calls(&["a:1", "b:2 ?b", "a:3 ?a", "c:4", "b:5", "a:6", "c:4", "d:7 ?d", "c:8"]);
        assert_eq!(ids(&calls.take_group(100)), ["1", "2", "4", "5", "7"]);
        assert_eq!(ids(&calls.take_group(100)), ["3", "6", "4", "8"]);
        assert!(calls.take_group(100).is_empty());
    }

    #[test]
    fn a_group_has_a_size() {
        let mut calls = calls(&["a:1 a:2 a:3", "b:4", "c:5", "d:6"]);
        assert_eq!(ids(&calls.take_group(2)), ["1", "2", "3"], "a call is not split");
        assert_eq!(ids(&calls.take_group(2)), ["4", "5"]);
        assert_eq!(ids(&calls.take_group(2)), ["6"]);
    }

    #[test]
    fn later_calls_line_up_behind_those_that_wait() {
        let mut calls = calls(&["a:1"]);
        let mut group = calls.take_group(100);
        calls.send_to_room(group.pop().unwrap());
        for text in ["b:2", "a:3", "c:4 ?a", "c:5", "d:1"] {
            calls.push(request(text), 0);
        }
        assert_eq!(ids(&calls.take_group(100)), ["2"]);
        let mut taken = calls.take_from_room();
        assert_eq!(ids(&taken), ["1", "3"], "the other ones must see what these store, or have an id of theirs");
        let first = taken.remove(0);
        calls.leave_room(&first);
        calls.return_to_room(taken);
        let taken = calls.take_from_room();
        assert_eq!(ids(&taken), ["3", "1"], "a place of its own in the order, although its id was held before");
        assert_eq!(ids(&calls.take_from_room()), ["4", "5"]);
    }

    #[test]
    fn whoever_waits_for_too_long_is_taken_out() {
        let mut calls = calls(&["a:1", "b:2"]);
        for call in calls.take_group(100) {
            calls.send_to_room(call);
        }
        assert!(calls.take_expired(Duration::from_secs(60), Duration::ZERO).is_empty());
        assert_eq!(ids(&calls.take_expired(Duration::ZERO, Duration::ZERO)), ["1", "2"]);
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut calls = Calls::new(Bounds { count: 2, bytes: 1_000_000 });
        for text in ["a:1", "a:2", "a:3"] {
            let ticket = calls.push(request(text), 0);
            calls.give_up(ticket);
        }
        assert_eq!(calls.stats().waiting, 2);
        let group = calls.take_group(1);
        let ticket = calls.push(request("a:3"), 0);
        calls.give_up(ticket);
        assert_eq!(calls.stats().waiting, 1, "what is under way counts, too");
        calls.finished(&group[0], &Ok(Vec::new()));
        calls.push(request("a:3"), 0);
        assert_eq!(calls.stats().waiting, 2);
    }

    #[test]
    fn whoever_came_first_finds_room_first() {
        let mut calls = Calls::new(Bounds { count: 1, bytes: 1_000_000 });
        let nobody = Arc::new(Nobody);
        let waiter = || Completion::new(&nobody, 0);
        let is_in = |calls: &mut Calls, text: &str, ticket| {
            let waiting = calls.stats().waiting;
            let ticket = calls.push(request(text), ticket);
            (calls.stats().waiting > waiting, ticket)
        };
        assert_eq!(is_in(&mut calls, "a:1", 0), (true, 1));
        assert_eq!(is_in(&mut calls, "a:2", 0), (false, 2));
        assert_eq!(is_in(&mut calls, "a:3", 0), (false, 3));
        calls.wait(waiter(), 3);
        calls.wait(waiter(), 2);
        let group = calls.take_group(1);
        calls.finished(&group[0], &Ok(Vec::new()));
        assert_eq!(is_in(&mut calls, "a:4", 0), (false, 4), "others were here before");
        assert_eq!(is_in(&mut calls, "a:3", 3), (false, 3));
        calls.wait(waiter(), 3);
        assert_eq!(is_in(&mut calls, "a:2", 2), (true, 2));
        let group = calls.take_group(1);
        calls.finished(&group[0], &Ok(Vec::new()));
        calls.give_up(3);
        assert_eq!(is_in(&mut calls, "a:4", 4), (true, 4), "nobody waits for whoever has gone");
    }
}
