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
/// How much longer a call may wait that was not tried yet.
const TURN_LIMIT: Duration = Duration::from_secs(1);
/// After so long a call with several aggregates queues up for their locks now and then.
const QUEUES_AFTER: Duration = Duration::from_secs(1);

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
    /// When it was accepted, or came to the waiting room.
    pub since: Instant,
    /// Whether the waiting room has tried it.
    pub is_tried: bool,
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

impl Call {
    /// Whether the call has stored the event at a position. What was in doubt and is found, it has most likely stored.
    pub fn has_stored(&self, position: &Position) -> bool {
        !position.is_duplicate || self.doubt.is_some()
    }
}

/// Counters since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WriterStats {
    /// Events stored.
    pub stored: u64,
    /// Calls that failed.
    pub failed: u64,
    /// Transactions that stored events.
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
    /// Whether those that find no room wait for it.
    pub is_waiting: bool,
}

/// A call that was refused or let in, and has not come again yet.
struct Coming {
    since: Instant,
    size_bytes: usize,
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
    /// Callers that wait for a place, in the order of their first calls, and the sizes of these.
    waiters: BTreeMap<Ticket, (Completion, usize)>,
    /// Those that were refused or let in, and have not come again yet.
    coming: BTreeMap<Ticket, Coming>,
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
        let (since, size_bytes) = (Instant::now(), request.size_bytes());
        let first = self.first_outside();
        if self.is_full() || first.is_some_and(|first| first < ticket) {
            let (count, bytes) = (self.count, self.bytes);
            if self.bounds.is_waiting {
                self.coming.insert(ticket, Coming { since, size_bytes });
            }
            request.completion.finish(Err(Error::BufferFull { count, bytes }));
            return ticket;
        }
        self.count += 1;
        self.bytes += size_bytes;
        let (is_tried, doubt, away, conflicts, trouble) = (false, None, None, 0, None);
        self.queue.push_back(Call { request, since, is_tried, doubt, away, conflicts, trouble, size_bytes });
        self.admit();
        ticket
    }

    /// The earliest ticket of a call that has found no room yet. Nobody waits for long for one that does not come again.
    fn first_outside(&mut self) -> Option<Ticket> {
        while let Some(coming) = self.coming.first_entry()
            && coming.get().since.elapsed() >= COMING_LIMIT
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
        let size_bytes = self.coming.remove(&ticket).map_or(0, |coming| coming.size_bytes);
        self.waiters.insert(ticket, (waiter, size_bytes));
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
            () => self.fitting(),
        };
        let rest = self.waiters.keys().nth(count).copied();
        let rest = rest.map_or_else(BTreeMap::new, |first| self.waiters.split_off(&first));
        let admitted = std::mem::replace(&mut self.waiters, rest);
        let since = Instant::now();
        let coming = admitted.iter().map(|(&ticket, &(_, size_bytes))| (ticket, Coming { since, size_bytes }));
        self.coming.extend(coming);
        Completion::finish_all(admitted.into_values().map(|(waiter, _)| waiter), &Ok(()));
    }

    /// How many of the callers that wait find room.
    fn fitting(&self) -> usize {
        let Bounds { count, bytes, .. } = self.bounds;
        let mut free = (count - self.count, bytes.saturating_sub(self.bytes));
        let fits = |(_, size_bytes): &&(Completion, usize)| {
            let is_room = free.0 > 0 && free.1 > 0;
            free = (free.0.saturating_sub(1), free.1.saturating_sub(*size_bytes));
            is_room
        };
        self.waiters.values().take_while(fits).count()
    }

    /// Forget a call that is finished.
    pub fn finished(&mut self, call: &Call, result: &Result<Vec<Position>>) {
        match result {
            Ok(positions) => {
                self.stats.stored += positions.iter().filter(|position| call.has_stored(position)).count() as u64;
            }
            Err(_) => self.stats.failed += 1,
        }
        self.count -= 1;
        self.bytes -= call.size_bytes;
        self.admit();
    }

    /// Count the events of an import.
    pub fn imported(&mut self, count: i64) {
        self.stats.stored += u64::try_from(count).unwrap_or_default();
        self.stats.groups += u64::from(count > 0);
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

    /// Let a call wait in the room. What it waits for begins now.
    pub fn send_to_room(&mut self, mut call: Call) {
        self.stats.alone += 1;
        call.since = Instant::now();
        let (ids, aggregates) = self.marks(&call.request);
        for mark in ids.into_iter().chain(aggregates) {
            *self.held.entry(mark).or_default() += 1;
        }
        self.room.push_back(call);
    }

    /// The calls of the room whose turn it is: of those that affect one another, the first one. Unless the pause of those
    /// that were tried in vain `is_over`, only others. They remain in the room's books until [`Calls::leave_room`].
    pub fn take_from_room(&mut self, is_over: bool) -> Vec<Call> {
        let mut group = Group::default();
        let mut passed = VecDeque::new();
        while let Some(call) = self.room.pop_front() {
            let (ids, aggregates) = self.marks(&call.request);
            let is_its_turn = is_over || !call.is_tried;
            if is_its_turn && group.suits(&ids, &aggregates, call.request.is_conditional()) {
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

    /// Put calls that have to wait for longer behind all others that they do not affect. Those that they affect remain
    /// behind them, in their order.
    pub fn requeue_in_room(&mut self, calls: Vec<Call>) {
        let all_marks = |calls: &Self, call: &Call| {
            let (ids, aggregates) = calls.marks(&call.request);
            ids.into_iter().chain(aggregates)
        };
        let mut affected: HashSet<u64> = calls.iter().flat_map(|call| all_marks(self, call)).collect();
        let (mut ahead, mut behind) = (VecDeque::new(), VecDeque::from(calls));
        for call in std::mem::take(&mut self.room) {
            let marks: Vec<u64> = all_marks(self, &call).collect();
            if marks.iter().any(|mark| affected.contains(mark)) {
                affected.extend(marks);
                behind.push_back(call);
            } else {
                ahead.push_back(call);
            }
        }
        ahead.append(&mut behind);
        self.room = ahead;
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

    /// The calls of the room that have waited for too long: for a lock, for the server, or until the end. Who does not
    /// come although it was let in is forgotten, too: this is asked again and again while calls are in the room.
    pub fn take_expired(&mut self, lock_wait: Duration, away_limit: Duration) -> Vec<Call> {
        let now = Instant::now();
        self.coming.retain(|_, coming| now.duration_since(coming.since) < COMING_LIMIT);
        self.admit();
        let is_over = |call: &Call| {
            let is_away = call.away.is_some_and(|since| now.duration_since(since) >= away_limit);
            let limit = if call.is_tried { lock_wait } else { lock_wait.saturating_add(TURN_LIMIT) };
            let has_waited = call.away.is_none() && now.duration_since(call.since) >= limit;
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

/// Of calls of the room in their order, the one that is to queue up for its locks, each in its turn. A call that follows
/// another one of its aggregates does not, because it would overtake that one.
pub fn whose_turn_to_queue(calls: &[Call], turn: u64) -> Option<usize> {
    let (mut before, mut queueing) = (HashSet::new(), Vec::new());
    for (index, Call { request, since, .. }) in calls.iter().enumerate() {
        let aggregates: HashSet<&str> = request.aggregates().collect();
        if aggregates.len() > 1 && since.elapsed() >= QUEUES_AFTER && before.is_disjoint(&aggregates) {
            queueing.push(index);
        }
        before.extend(aggregates);
    }
    let turn = turn.checked_rem(queueing.len() as u64)?;
    queueing.get(usize::try_from(turn).ok()?).copied()
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

    use proptest::prelude::*;

    use super::*;
    use crate::handover::completion::Answers;
    use crate::lock::Mutex;

    struct Nobody;

    impl<T> Answers<T> for Nobody {
        fn finished(&self, _: &mut dyn Iterator<Item = (u64, Result<T>)>) {}
    }

    /// Who was told that there is room.
    #[derive(Default)]
    struct Told(Mutex<Vec<u64>>);

    impl Answers<()> for Told {
        fn finished(&self, results: &mut dyn Iterator<Item = (u64, Result<()>)>) {
            self.0.lock().extend(results.filter(|(_, result)| result.is_ok()).map(|(token, _)| token));
        }
    }

    /// Longer ago than any limit.
    fn long_ago() -> Instant {
        Instant::now().checked_sub(2 * COMING_LIMIT).unwrap()
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
        let mut calls = Calls::new(Bounds { count: 100, bytes: 1_000_000, is_waiting: true });
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
        let mut taken = calls.take_from_room(true);
        assert_eq!(ids(&taken), ["1", "3"], "the other ones must see what these store, or have an id of theirs");
        let first = taken.remove(0);
        calls.leave_room(&first);
        calls.return_to_room(taken);
        let taken = calls.take_from_room(true);
        assert_eq!(ids(&taken), ["3", "1"], "a place of its own in the order, although its id was held before");
        assert_eq!(ids(&calls.take_from_room(true)), ["4", "5"]);
    }

    #[test]
    fn whoever_waits_for_too_long_is_taken_out() {
        let mut calls = calls(&["a:1", "b:2"]);
        for call in calls.take_group(100) {
            calls.send_to_room(call);
        }
        assert!(calls.take_expired(Duration::ZERO, Duration::ZERO).is_empty(), "they have not had their turn");
        let mut taken = calls.take_from_room(true);
        for call in &mut taken {
            call.is_tried = true;
        }
        calls.return_to_room(taken);
        assert!(calls.take_expired(Duration::from_secs(60), Duration::ZERO).is_empty());
        assert_eq!(ids(&calls.take_expired(Duration::ZERO, Duration::ZERO)), ["1", "2"]);
    }

    #[test]
    fn the_wait_begins_in_the_room() {
        let mut calls = calls(&["a:1"]);
        let mut call = calls.take_group(100).remove(0);
        (call.since, call.is_tried) = (long_ago(), true);
        calls.send_to_room(call);
        assert!(calls.take_expired(Duration::from_secs(60), Duration::ZERO).is_empty());
    }

    #[test]
    fn whoever_has_to_wait_for_longer_lets_others_go_first_but_not_those_behind_it() {
        let mut calls = calls(&["a:1", "b:2", "a:3 c:4", "c:5", "d:6", "e:7"]);
        for call in calls.take_group(100) {
            calls.send_to_room(call);
        }
        let mut taken = calls.take_from_room(true);
        let last = taken.pop().unwrap();
        let first = taken.remove(0);
        calls.return_to_room(taken);
        calls.requeue_in_room(vec![first, last]);
        assert_eq!(ids(&calls.take_from_room(true)), ["2", "6", "1", "7", "3", "4", "5"]);
    }

    #[test]
    fn newcomers_do_not_make_those_before_them_come_again() {
        let mut calls = calls(&["a:1", "b:2"]);
        for mut call in calls.take_group(100) {
            call.is_tried = true;
            calls.send_to_room(call);
        }
        for text in ["c:3", "a:4", "b:5 d:6", "d:7"] {
            calls.push(request(text), 0);
        }
        for call in calls.take_group(100) {
            calls.send_to_room(call);
        }
        assert_eq!(ids(&calls.take_from_room(false)), ["3"], "the others line up");
        assert_eq!(calls.take_from_room(false).len(), 0);
        assert_eq!(ids(&calls.take_from_room(true)), ["1", "2", "4", "5", "6", "7"]);
    }

    #[test]
    fn whoever_queues_up_overtakes_nobody_and_each_has_its_turn() {
        let mut group = calls(&["a:1", "a:2 b:3", "c:4 d:5", "d:6", "e:7 f:8", "b:9"]).take_group(100);
        assert_eq!(whose_turn_to_queue(&group, 0), None, "they have hardly waited");
        for call in &mut group {
            call.since = long_ago();
        }
        let turns: Vec<_> = (0..4).map(|turn| whose_turn_to_queue(&group, turn)).collect();
        assert_eq!(turns, [Some(2), Some(4), Some(2), Some(4)]);
        assert_eq!(whose_turn_to_queue(&group[..2], 7), None);
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut calls = Calls::new(Bounds { count: 2, bytes: 1_000_000, is_waiting: true });
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
        let mut calls = Calls::new(Bounds { count: 1, bytes: 1_000_000, is_waiting: true });
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

    #[test]
    fn where_nobody_waits_for_room_nobody_is_expected_to_come() {
        let mut calls = Calls::new(Bounds { count: 1, bytes: 1_000_000, is_waiting: false });
        for text in ["a:1", "a:2"] {
            calls.push(request(text), 0);
        }
        let group = calls.take_group(100);
        calls.finished(&group[0], &Ok(Vec::new()));
        calls.push(request("a:3"), 0);
        assert_eq!(ids(&calls.take_group(100)), ["3"]);
    }

    #[test]
    fn as_many_are_let_in_as_find_room() {
        let size_bytes = request("a:1").size_bytes();
        let mut calls = Calls::new(Bounds { count: 100, bytes: 3 * size_bytes, is_waiting: true });
        let told = Arc::new(Told::default());
        for number in 1..=20 {
            let ticket = calls.push(request("a:1"), 0);
            if number > 3 {
                calls.wait(Completion::new(&told, number), ticket);
            }
        }
        let call = calls.take_group(100).remove(0);
        calls.finished(&call, &Ok(Vec::new()));
        assert_eq!(*told.0.lock(), [4]);
    }

    #[test]
    fn nobody_waits_for_long_for_whoever_does_not_come() {
        let mut calls = Calls::new(Bounds { count: 2, bytes: 1_000_000, is_waiting: true });
        let told = Arc::new(Told::default());
        for (number, text) in (1..).zip(["a:1", "b:2", "c:3", "d:4"]) {
            let ticket = calls.push(request(text), 0);
            if number > 2 {
                calls.wait(Completion::new(&told, number), ticket);
            }
        }
        let mut group = calls.take_group(100);
        calls.send_to_room(group.pop().unwrap());
        calls.finished(&group[0], &Ok(Vec::new()));
        assert_eq!(*told.0.lock(), [3]);
        let second = Duration::from_secs(1);
        assert!(calls.take_expired(second, second).is_empty());
        assert_eq!(*told.0.lock(), [3]);
        calls.coming.get_mut(&3).unwrap().since = long_ago();
        assert!(calls.take_expired(second, second).is_empty());
        assert_eq!(*told.0.lock(), [3, 4], "it has gone without a word, and the other call is still there");
    }

    /// What a caller does in the model below.
    #[derive(Debug, Clone)]
    enum Step {
        Come,
        /// A caller outside does what is next: it waits for room, or comes again.
        GoOn(usize),
        GiveUp(usize),
        Finish,
    }

    proptest! {
        /// Calls are accepted in the order in which they first came, and whoever waits is let in at the latest when all
        /// others have gone.
        #[test]
        fn whoever_came_first_is_let_in_first(
            count in 1..4_usize,
            bytes in 100..400_usize,
            steps in proptest::collection::vec(
                prop_oneof![
                    3 => Just(Step::Come),
                    5 => (0..8_usize).prop_map(Step::GoOn),
                    1 => (0..8_usize).prop_map(Step::GiveUp),
                    2 => Just(Step::Finish),
                ],
                1..200,
            ),
        ) {
            let mut calls = Calls::new(Bounds { count, bytes, is_waiting: true });
            let told = Arc::new(Told::default());
            // Those outside, with what they do next: wait, or come again once they are told.
            let mut outside: BTreeMap<Ticket, bool> = BTreeMap::new();
            let mut inside = Vec::new();
            let come = |calls: &mut Calls, outside: &mut BTreeMap<Ticket, bool>, ticket| {
                let before = calls.count;
                let ticket = calls.push(request(&format!("a:{}", "x".repeat(before * 40))), ticket);
                outside.remove(&ticket);
                if calls.count > before {
                    prop_assert!(outside.keys().all(|&other| other > ticket), "{ticket} overtakes {outside:?}");
                } else {
                    outside.insert(ticket, true);
                }
                Ok(())
            };
            for step in steps {
                let nth = |outside: &BTreeMap<Ticket, bool>, n: usize| {
                    outside.iter().nth(n.checked_rem(outside.len())?).map(|(&ticket, &waits)| (ticket, waits))
                };
                match step {
                    Step::Come => come(&mut calls, &mut outside, 0)?,
                    Step::GoOn(n) => match nth(&outside, n) {
                        Some((ticket, true)) => {
                            outside.insert(ticket, false);
                            calls.wait(Completion::new(&told, ticket), ticket);
                        }
                        Some((ticket, false)) if told.0.lock().contains(&ticket) => {
                            told.0.lock().retain(|&other| other != ticket);
                            come(&mut calls, &mut outside, ticket)?;
                        }
                        _ => {}
                    },
                    Step::GiveUp(n) => {
                        if let Some((ticket, _)) = nth(&outside, n) {
                            outside.remove(&ticket);
                            calls.give_up(ticket);
                        }
                    }
                    Step::Finish => {
                        inside.extend(calls.take_group(100));
                        if let Some(call) = inside.pop() {
                            calls.finished(&call, &Ok(Vec::new()));
                        }
                    }
                }
                prop_assert!(calls.count <= count);
                if calls.count == 0 {
                    let is_told = |(ticket, waits): (&Ticket, &bool)| *waits || told.0.lock().contains(ticket);
                    prop_assert!(outside.iter().all(is_told));
                }
            }
        }
    }
}
