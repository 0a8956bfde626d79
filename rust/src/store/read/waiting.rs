//! Who waits for events, and whom an event wakes.
//!
//! Ten thousand subscriptions may each wait for a few aggregates. Waking all of them for every event would cost ten
//! thousand tasks. Waiting subscriptions are therefore found by what their filters name: an event is compared with those
//! that its aggregate, its partition or its type leads to, and with those whose filters name none of these.
//!
//! Whoever is not woken was not meant. A subscription that goes on after a wait therefore skips all events before the
//! one that woke it.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::lock::Mutex;
use crate::store::event::StoredEvent;
use crate::store::filter::{Filter, Key, Looked, partition_of};
use crate::store::read::anchor::Anchor;

/// Comparisons of events with filters at a time. Instead of more of them, those who wait are woken, and compare by
/// themselves: they let each other run meanwhile.
const COMPARISONS: usize = 100_000;

type Id = u64;

struct Waiter {
    filter: Arc<Filter>,
    wake: oneshot::Sender<Anchor>,
}

#[derive(Default)]
struct State {
    next: Id,
    waiters: HashMap<Id, Waiter>,
    aggregates: HashMap<String, BTreeSet<Id>>,
    types: HashMap<String, BTreeSet<Id>>,
    aggregate_prefixes: Prefixes,
    type_prefixes: Prefixes,
    /// By the number of partitions, and then by partition.
    partitions: HashMap<i32, HashMap<i32, BTreeSet<Id>>>,
    /// Those whose filters name nothing by which they can be found.
    others: BTreeSet<Id>,
}

/// Ids by prefix, and how many prefixes there are of each length.
#[derive(Default)]
struct Prefixes {
    ids: HashMap<String, BTreeSet<Id>>,
    lengths: BTreeMap<usize, usize>,
}

/// See the module documentation.
#[derive(Default)]
pub struct Waiting {
    state: Mutex<State>,
}

/// A place among those who wait, which is given up when dropped.
pub struct Place<'a> {
    waiting: &'a Waiting,
    id: Id,
    /// Answers with the anchor up to which there was nothing for this subscription. An error means: look again.
    pub woken: oneshot::Receiver<Anchor>,
}

impl Waiting {
    /// Wait for an event that matches the filter, if `is_current`: nobody is woken between this check and the wait.
    pub fn enter(&self, filter: &Arc<Filter>, is_current: impl FnOnce() -> bool) -> Option<Place<'_>> {
        let mut state = self.state.lock();
        if !is_current() {
            return None;
        }
        state.next += 1;
        let (id, (wake, woken)) = (state.next, oneshot::channel());
        state.place(id, filter, true);
        state.waiters.insert(id, Waiter { filter: Arc::clone(filter), wake });
        Some(Place { waiting: self, id, woken })
    }

    /// Let `change` take effect, and wake everybody, to look again.
    pub fn change(&self, change: impl FnOnce()) {
        let mut state = self.state.lock();
        change();
        *state = State { next: state.next, ..State::default() };
    }

    /// Let `change` take effect, which makes known that these events follow `before`, and wake those that want any of
    /// them. Returns how many were woken.
    pub fn tell(&self, events: &[Arc<StoredEvent>], before: &Anchor, change: impl FnOnce()) -> u64 {
        let mut state = self.state.lock();
        change();
        let (mut woken, mut compared) = (0, 0);
        for event in events {
            if state.waiters.is_empty() {
                break;
            }
            let looked = Looked::at(event);
            for id in state.found(event) {
                let Some(waiter) = state.waiters.get(&id) else { continue };
                compared += 1;
                let is_wanted = compared > COMPARISONS || waiter.filter.matches(&looked) != Some(false);
                woken += u64::from(is_wanted && state.wake(id, before));
            }
        }
        woken
    }
}

impl Place<'_> {
    /// Stop waiting. Returns the anchor up to which there was nothing for this subscription, where `now` is the last event
    /// that was told; `None` if that is not known.
    pub fn leave(mut self, now: impl FnOnce() -> Option<Anchor>) -> Option<Anchor> {
        let mut state = self.waiting.state.lock();
        if state.remove(self.id) { now() } else { self.woken.try_recv().ok() }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.waiting.state.lock().remove(self.id);
    }
}

impl State {
    /// Insert an id at all places where events look for it, or remove it there.
    fn place(&mut self, id: Id, filter: &Filter, is_there: bool) {
        match filter.key() {
            Key::Aggregates(texts) => texts.iter().for_each(|text| place(&mut self.aggregates, text, id, is_there)),
            Key::Types(texts) => texts.iter().for_each(|text| place(&mut self.types, text, id, is_there)),
            Key::AggregatePrefixes(texts) => self.aggregate_prefixes.place(texts, id, is_there),
            Key::TypePrefixes(texts) => self.type_prefixes.place(texts, id, is_there),
            Key::Partitions(partitions, own) => {
                let ids = self.partitions.entry(partitions).or_default();
                for partition in own {
                    place(ids, partition, id, is_there);
                }
                if ids.is_empty() {
                    self.partitions.remove(&partitions);
                }
            }
            Key::None if is_there => drop(self.others.insert(id)),
            Key::None => drop(self.others.remove(&id)),
        }
    }

    fn remove(&mut self, id: Id) -> bool {
        let Some(waiter) = self.waiters.remove(&id) else { return false };
        self.place(id, &waiter.filter, false);
        true
    }

    fn wake(&mut self, id: Id, before: &Anchor) -> bool {
        let Some(waiter) = self.waiters.remove(&id) else { return false };
        self.place(id, &waiter.filter, false);
        waiter.wake.send(before.clone()).is_ok()
    }

    /// Those that may want an event.
    fn found(&self, event: &StoredEvent) -> Vec<Id> {
        let mut found: Vec<Id> = self.others.iter().copied().collect();
        for ids in [self.aggregates.get(&event.aggregate_id), self.types.get(&event.event_type)].into_iter().flatten() {
            found.extend(ids);
        }
        self.aggregate_prefixes.find(&event.aggregate_id, &mut found);
        self.type_prefixes.find(&event.event_type, &mut found);
        for (&partitions, ids) in &self.partitions {
            found.extend(ids.get(&partition_of(&event.aggregate_id, partitions)).into_iter().flatten());
        }
        found
    }
}

impl Prefixes {
    fn place(&mut self, texts: &[String], id: Id, is_there: bool) {
        for text in texts {
            let before = self.ids.len();
            place(&mut self.ids, text, id, is_there);
            if self.ids.len() > before {
                *self.lengths.entry(text.len()).or_default() += 1;
            } else if self.ids.len() < before
                && let Some(count) = self.lengths.get_mut(&text.len())
            {
                *count -= 1;
                self.lengths.retain(|_, count| *count > 0);
            }
        }
    }

    fn find(&self, text: &str, found: &mut Vec<Id>) {
        let prefixes = self.lengths.keys().map_while(|&length| (length <= text.len()).then(|| text.get(..length)));
        found.extend(prefixes.flatten().filter_map(|prefix| self.ids.get(prefix)).flatten());
    }
}

fn place<K, Q>(ids: &mut HashMap<K, BTreeSet<Id>>, key: &Q, id: Id, is_there: bool)
where
    K: Eq + Hash + Borrow<Q>,
    Q: Eq + Hash + ToOwned<Owned = K> + ?Sized,
{
    if is_there {
        ids.entry(key.to_owned()).or_default().insert(id);
    } else if let Some(those) = ids.get_mut(key) {
        those.remove(&id);
        if those.is_empty() {
            ids.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::filter::Condition;

    fn filter(conditions: Vec<Condition>) -> Arc<Filter> {
        Arc::new(Filter::new(conditions).unwrap())
    }

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|&text| text.to_owned()).collect()
    }

    fn event(version: i64, aggregate_id: &str, event_type: &str) -> Arc<StoredEvent> {
        Arc::new(StoredEvent {
            version,
            id: format!("e{version}"),
            aggregate_id: aggregate_id.to_owned(),
            event_type: event_type.to_owned(),
            data: Some(r#"{"n": 1}"#.to_owned()),
            metadata: None,
            created_at: None,
        })
    }

    fn anchor(version: i64) -> Anchor {
        Anchor { version, id: "".into() }
    }

    #[test]
    fn an_event_wakes_those_that_want_it() {
        let waiting = Waiting::default();
        let own = partition_of("a1", 8);
        let other = (own + 1) % 8;
        let filters = [
            vec![],
            vec![Condition::Aggregates(texts(&["a1", "a2"]))],
            vec![Condition::AggregatePrefixes(texts(&["a", "å"]))],
            vec![Condition::AggregatePrefixes(texts(&["a1x"]))],
            vec![Condition::Types(texts(&["T"]))],
            vec![Condition::TypePrefixes(texts(&["", "U"])), Condition::Aggregates(texts(&["a2"]))],
            vec![Condition::TypePrefixes(texts(&["U"]))],
            vec![Condition::Data(r#"{"n": 1}"#.to_owned())],
            vec![Condition::Data(r#"{"n": 2}"#.to_owned())],
            vec![Condition::Types(vec![])],
            vec![Condition::Partitions(8, vec![own, other])],
            vec![Condition::Partitions(8, vec![other])],
            vec![Condition::Partitions(1, vec![0])],
        ];
        let mut places: Vec<_> =
            filters.iter().map(|conditions| waiting.enter(&filter(conditions.clone()), || true).unwrap()).collect();
        let mut told = false;
        assert_eq!(waiting.tell(&[event(5, "a1", "T")], &anchor(4), || told = true), 7);
        assert!(told);
        let woken: Vec<bool> = places.iter_mut().map(|place| place.woken.try_recv() == Ok(anchor(4))).collect();
        assert_eq!(woken, [true, true, true, false, true, false, false, true, false, false, true, false, true]);
        drop(places);
        let state = waiting.state.lock();
        assert!(state.waiters.is_empty() && state.aggregates.is_empty() && state.types.is_empty());
        assert!(state.aggregate_prefixes.ids.is_empty() && state.aggregate_prefixes.lengths.is_empty());
        assert!(state.type_prefixes.lengths.is_empty() && state.others.is_empty() && state.partitions.is_empty());
    }

    #[test]
    fn whoever_leaves_has_passed_what_did_not_wake_it() {
        let waiting = Waiting::default();
        let wanted = filter(vec![Condition::Types(texts(&["T"]))]);
        let place = waiting.enter(&wanted, || true).unwrap();
        assert_eq!(waiting.tell(&[event(5, "a", "U")], &anchor(4), || ()), 0);
        assert_eq!(place.leave(|| Some(anchor(5))), Some(anchor(5)));
        let place = waiting.enter(&wanted, || true).unwrap();
        assert_eq!(waiting.tell(&[event(6, "a", "U"), event(7, "a", "T")], &anchor(5), || ()), 1);
        assert_eq!(place.leave(|| Some(anchor(7))), Some(anchor(5)), "it was woken");
        let place = waiting.enter(&wanted, || true).unwrap();
        waiting.change(|| ());
        assert_eq!(place.leave(|| Some(anchor(7))), None, "it is to look again");
        assert!(waiting.enter(&wanted, || false).is_none());
    }

    #[test]
    fn many_comparisons_are_left_to_those_that_wait() {
        let nothing = Condition::Data("[]".to_owned());
        for conditions in [vec![nothing.clone()], vec![nothing, Condition::Types(texts(&["T"]))]] {
            let waiting = Waiting::default();
            let nothing = filter(conditions);
            let places: Vec<_> = (0..COMPARISONS / 100).map(|_| waiting.enter(&nothing, || true)).collect();
            let events: Vec<_> = (0..100).map(|version| event(version, "a", "T")).collect();
            assert_eq!(waiting.tell(&events, &anchor(0), || ()), 0);
            let events: Vec<_> = (0..101).map(|version| event(version, "a", "T")).collect();
            assert_eq!(waiting.tell(&events, &anchor(0), || ()), places.len() as u64);
        }
    }
}
