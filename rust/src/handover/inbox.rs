//! Hand-over from the background thread to Python: a queue and a file descriptor that becomes readable.
//!
//! Nothing here takes the GIL. An event loop watches the descriptor and drains many items at once; a plain thread
//! blocks in [`Inbox::wait`]. Both see the same items in the same order.

use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::connect::runtime::Leftover;
use crate::error::{Error, Result};
use crate::store::read::feed::Batch;
use crate::store::read::reader::Page;
use crate::store::write::writer::Position;
use crate::wire::gap::{Gap, Overflow};
use crate::wire::protocol::Message;

/// Most background failures that wait for Python; a flood of bad messages must not fill the memory. Further ones are
/// only counted.
const FAILURES: usize = 1000;

/// One raw notification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notification {
    /// Channel it was sent on.
    pub channel: String,
    /// Its payload, at most 7999 bytes.
    pub payload: String,
    /// Backend process id of the sending session.
    pub pid: i32,
}

/// Result of a finished operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is done.
    Done,
    /// A number: rows deleted, attachment id.
    Number(i64),
    /// Bytes, if there were any.
    Bytes(Option<Vec<u8>>),
    /// Where events were stored, in the order of the call.
    Positions(Vec<Position>),
    /// Events of the store.
    Page(Box<Page>),
    /// Events of a subscription.
    Batch(Box<Batch>),
    /// Rows of texts.
    Rows(Vec<Vec<Option<String>>>),
}

/// What an item without user data takes in memory.
pub const SMALL_BYTES: usize = 300;

/// What reaches Python.
#[derive(Debug, Clone)]
pub enum Item {
    /// An operation finished.
    Finished(Result<Outcome>),
    /// A message of the cluster.
    Message(Message),
    /// A raw notification.
    Notification(Notification),
    /// The listening session is active; true when it had been lost before.
    Listening {
        /// Whether messages may have been missed.
        after_gap: bool,
    },
    /// Something failed in the background; it is counted, and the work goes on.
    Failure(Error),
    /// Messages that will not come.
    Gap(Gap),
    /// Messages dropped for lack of room, at this place in the order.
    Overflow(Overflow),
    /// Members of the cluster whose listening session is alive, by the ids of their advisory locks; `None` once our own
    /// session is lost, and nobody can be asked.
    Members(Option<Vec<u32>>),
    /// A server sent something that concerns nobody here, and so is alive.
    Seen {
        /// In this namespace.
        nsp: String,
        /// Its id.
        uid: String,
    },
}

impl Item {
    fn size_bytes(&self) -> usize {
        match self {
            Self::Message(message) => message.size_bytes(),
            Self::Notification(n) => n.payload.len() + n.channel.len() + 100,
            Self::Gap(gap) if gap.missing.is_some() => SMALL_BYTES,
            Self::Seen { .. } => SMALL_BYTES,
            // Few, bounded otherwise, or too important to be dropped.
            _ => 0,
        }
    }
}

struct Queue {
    items: VecDeque<(u64, Item)>,
    bytes: usize,
    failures: usize,
    is_signalled: bool,
    is_closed: bool,
    /// Threads in [`Inbox::wait`].
    waiters: usize,
    drained_at: Instant,
    /// Since when something waits and Python has taken nothing.
    stalled_since: Option<Instant>,
}

impl Queue {
    fn append(&mut self, token: u64, item: Item) {
        self.items.push_back((token, item));
        self.stalled_since.get_or_insert_with(Instant::now);
    }

    fn append_overflow(&mut self, token: u64, overflow: Overflow) -> bool {
        if let Some((last, Item::Overflow(before))) = self.items.back_mut()
            && *last == token
        {
            before.merge(overflow);
            return false;
        }
        self.append(token, Item::Overflow(overflow));
        true
    }
}

/// See the module documentation.
pub struct Inbox {
    queue: Mutex<Queue>,
    ready: Condvar,
    limit_bytes: usize,
    dropped: AtomicU64,
    waker: UnixStream,
    watched: UnixStream,
}

impl Inbox {
    /// An empty inbox that holds at most `limit_bytes` of messages.
    ///
    /// When Python stalls and the limit is reached, further messages are dropped, and the caller says so by
    /// [`Inbox::push_overflow`]: reading from PostgreSQL never stops, because a listener that stops reading holds back
    /// the notification queue and vacuum of the whole database. Results of operations and gaps are never dropped.
    pub fn new(limit_bytes: usize) -> Result<Arc<Self>> {
        let failed = |error: std::io::Error| Error::ConnectionLost {
            context: "create the hand-over socket".to_owned(),
            reason: error.to_string(),
            may_be_sent: false,
        };
        let (waker, watched) = UnixStream::pair().map_err(failed)?;
        waker.set_nonblocking(true).map_err(failed)?;
        watched.set_nonblocking(true).map_err(failed)?;
        Ok(Arc::new(Self {
            queue: Mutex::new(Queue {
                items: VecDeque::new(),
                bytes: 0,
                failures: 0,
                is_signalled: false,
                is_closed: false,
                waiters: 0,
                drained_at: Instant::now(),
                stalled_since: None,
            }),
            ready: Condvar::new(),
            limit_bytes,
            dropped: AtomicU64::new(0),
            waker,
            watched,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Descriptor that is readable while items wait.
    pub fn fileno(&self) -> RawFd {
        self.watched.as_raw_fd()
    }

    /// Messages dropped because the inbox was full.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.lock().items.is_empty()
    }

    /// Nothing more is awaited: from now on the descriptor is readable, so that whoever waits looks here.
    pub fn close(&self) {
        self.lock().is_closed = true;
        let _ = (&self.waker).write(&[1]);
        self.ready.notify_all();
    }

    /// Whether it was closed; what it holds may still be taken.
    pub fn is_closed(&self) -> bool {
        self.lock().is_closed
    }

    /// Bytes of messages waiting.
    pub fn bytes(&self) -> usize {
        self.lock().bytes
    }

    /// Time since Python looked here last.
    pub fn idle(&self) -> Duration {
        self.lock().drained_at.elapsed()
    }

    /// How long something has waited without Python taking anything; zero when nothing waits.
    pub fn stalled(&self) -> Duration {
        self.lock().stalled_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Add an item for the receiver known as `token`. False when it was dropped. A gap is never: without room it becomes
    /// part of the overflow.
    pub fn push(&self, token: u64, item: Item) -> bool {
        let size = item.size_bytes();
        let mut queue = self.lock();
        if size > 0 && queue.bytes + size > self.limit_bytes && queue.bytes > 0 {
            if let Item::Gap(gap) = item {
                queue.append_overflow(token, Overflow::from_gap(gap));
                self.release(queue);
                return true;
            }
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        if matches!(item, Item::Failure(_)) {
            if queue.failures >= FAILURES {
                self.dropped.fetch_add(1, Ordering::Relaxed);
                return false;
            }
            queue.failures += 1;
        }
        queue.bytes += size;
        queue.append(token, item);
        self.release(queue);
        true
    }

    /// Say to several receivers at once how their operations ended.
    fn push_finished(&self, tokens: impl Iterator<Item = u64>, result: &Result<Outcome>) {
        let mut queue = self.lock();
        for token in tokens {
            queue.append(token, Item::Finished(result.clone()));
        }
        self.release(queue);
    }

    /// Say that messages were dropped here. What is dropped one after the other is one item, however many it is; true
    /// for the first.
    pub fn push_overflow(&self, token: u64, overflow: Overflow) -> bool {
        let mut queue = self.lock();
        let is_first = queue.append_overflow(token, overflow);
        self.release(queue);
        is_first
    }

    /// Let go of the queue, and then wake who waits for it: the other way round they would run into its lock.
    fn release(&self, mut queue: MutexGuard<'_, Queue>) {
        if queue.items.is_empty() || std::mem::replace(&mut queue.is_signalled, true) {
            return;
        }
        let has_waiters = queue.waiters > 0;
        drop(queue);
        // A full socket buffer means that the descriptor is readable already.
        let _ = (&self.waker).write(&[1]);
        if has_waiters {
            self.ready.notify_all();
        }
    }

    /// Take up to `max` items, to be handed over one by one; those that are not go back to the front, in order.
    pub fn take(&self, max: usize) -> Taken<'_> {
        Taken { inbox: self, items: self.drain(max).into() }
    }

    fn put_back(&self, items: VecDeque<(u64, Item)>) {
        let mut queue = self.lock();
        for (token, item) in items.into_iter().rev() {
            queue.bytes += item.size_bytes();
            queue.failures += usize::from(matches!(item, Item::Failure(_)));
            queue.items.push_front((token, item));
        }
        queue.stalled_since.get_or_insert_with(Instant::now);
        self.release(queue);
    }

    /// Count something that Python cannot be given.
    pub fn count_dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// Take up to `max` items. The descriptor stays readable while items remain.
    pub fn drain(&self, max: usize) -> Vec<(u64, Item)> {
        let mut queue = self.lock();
        queue.drained_at = Instant::now();
        let count = queue.items.len().min(max);
        let taken: Vec<_> = queue.items.drain(..count).collect();
        queue.bytes -= taken.iter().map(|(_, item)| item.size_bytes()).sum::<usize>();
        queue.failures -= taken.iter().filter(|(_, item)| matches!(item, Item::Failure(_))).count();
        queue.stalled_since = (!queue.items.is_empty()).then_some(queue.drained_at);
        // Nothing to take: the wake-up of what was taken meanwhile came late.
        if queue.items.is_empty() && (queue.is_signalled || taken.is_empty()) && !queue.is_closed {
            queue.is_signalled = false;
            let mut sink = [0u8; 16];
            let _ = (&self.watched).read(&mut sink);
        }
        taken
    }

    /// Block until an item waits, it is closed or the time is over; true when an item waits.
    pub fn wait(&self, limit: Duration) -> bool {
        let mut queue = self.lock();
        queue.waiters += 1;
        let waited = self.ready.wait_timeout_while(queue, limit, |queue| queue.items.is_empty() && !queue.is_closed);
        let (mut queue, _) = waited.unwrap_or_else(PoisonError::into_inner);
        queue.waiters -= 1;
        !queue.items.is_empty()
    }
}

/// Items on their way to Python. Whatever ends the way early, an exception or a panic, loses none of them.
pub struct Taken<'a> {
    inbox: &'a Inbox,
    items: VecDeque<(u64, Item)>,
}

impl Taken<'_> {
    /// The next item, which stays here until [`Taken::hand_over`].
    pub fn first(&mut self) -> Option<&mut (u64, Item)> {
        self.items.front_mut()
    }

    /// The first one has arrived.
    pub fn hand_over(&mut self) {
        self.items.pop_front();
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if !self.items.is_empty() {
            self.inbox.put_back(std::mem::take(&mut self.items));
        }
    }
}

/// The promise to tell one inbox, once, how an operation ended.
///
/// It does not keep the inbox: that of an event loop that is gone would keep its descriptors for as long as a message
/// waits for PostgreSQL to come back.
pub struct Completion {
    target: Option<(Weak<Inbox>, u64)>,
    leftover: Option<Arc<Leftover>>,
}

impl Completion {
    /// Tell `inbox` under `token`.
    pub fn new(inbox: &Arc<Inbox>, token: u64) -> Self {
        Self { target: Some((Arc::downgrade(inbox), token)), leftover: None }
    }

    /// Nobody is left to be told; only the background thread must go on until then.
    pub fn of_nobody(leftover: Arc<Leftover>) -> Self {
        Self { target: None, leftover: Some(leftover) }
    }

    /// Withdraw the promise: the caller learns the outcome in another way.
    pub fn cancel(mut self) {
        self.target = None;
        self.leftover = None;
    }

    /// Keep promises that end alike. Those to one inbox share its lock and its wake-up.
    pub fn finish_all(completions: Vec<Self>, result: &Result<Outcome>) {
        let targets: Vec<_> = completions.into_iter().filter_map(|mut each| each.target.take()).collect();
        for run in targets.chunk_by(|(one, _), (next, _)| Weak::ptr_eq(one, next)) {
            if let Some(inbox) = run.first().and_then(|(inbox, _)| inbox.upgrade()) {
                inbox.push_finished(run.iter().map(|(_, token)| *token), result);
            }
        }
    }

    /// Keep the promise.
    pub fn finish(mut self, result: Result<Outcome>) {
        self.tell(result);
    }

    fn tell(&mut self, result: Result<Outcome>) {
        if let Some((inbox, token)) = self.target.take()
            && let Some(inbox) = inbox.upgrade()
        {
            inbox.push(token, Item::Finished(result));
        }
    }
}

impl Drop for Completion {
    /// A promise that would be forgotten (task cancelled, runtime gone) is kept as "closed": nobody waits for ever.
    fn drop(&mut self) {
        self.tell(Err(Error::Closed("connection")));
    }
}

/// Where background events of one object go.
#[derive(Clone)]
pub struct Outlet {
    /// The inbox.
    pub inbox: Arc<Inbox>,
    /// The receiver's token in it.
    pub token: u64,
}

impl Outlet {
    /// Add an item. False when it was dropped.
    pub fn push(&self, item: Item) -> bool {
        self.inbox.push(self.token, item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::protocol::Body;

    fn message(size: usize) -> Item {
        let packet = crate::wire::protocol::Data::Json("x".repeat(size));
        Item::Message(Message::new("/", Body::ServerSideEmit { packet, request_id: None }))
    }

    #[test]
    fn it_is_stalled_while_something_waits_and_nothing_is_taken() {
        let inbox = Inbox::new(10_000).unwrap();
        assert_eq!(inbox.stalled(), Duration::ZERO);
        inbox.push(1, message(1));
        inbox.push(1, message(1));
        std::thread::sleep(Duration::from_millis(20));
        let before = inbox.stalled();
        assert!(before >= Duration::from_millis(20));
        assert_eq!(inbox.drain(1).len(), 1);
        assert!(inbox.stalled() < before, "it was looked at");
        assert_eq!(inbox.drain(9).len(), 1);
        std::thread::sleep(Duration::from_millis(1));
        assert_eq!(inbox.stalled(), Duration::ZERO);
    }

    #[test]
    fn stays_readable_until_empty() {
        let inbox = Inbox::new(1 << 20).unwrap();
        assert!(!inbox.wait(Duration::ZERO));
        for _ in 0..3 {
            assert!(inbox.push(7, message(10)));
        }
        assert_eq!(inbox.drain(2).len(), 2);
        assert!(inbox.wait(Duration::ZERO));
        let mut byte = [0u8; 8];
        assert_eq!(inbox.drain(2).len(), 1);
        assert!((&inbox.watched).read(&mut byte).is_err(), "nothing left to read");
        assert_eq!(inbox.bytes(), 0);
    }

    #[test]
    fn what_is_not_handed_over_goes_back_in_order() {
        let inbox = Inbox::new(1 << 20).unwrap();
        for token in 1..=5 {
            inbox.push(token, if token == 3 { Item::Failure(Error::Closed("x")) } else { message(10) });
        }
        let bytes = inbox.bytes();
        let mut taken = inbox.take(4);
        assert_eq!(taken.first().unwrap().0, 1);
        taken.hand_over();
        assert_eq!(taken.first().unwrap().0, 2);
        drop(taken);
        assert!(inbox.bytes() < bytes);
        assert_eq!(inbox.lock().failures, 1);
        let tokens = |taken: Vec<(u64, Item)>| taken.into_iter().map(|(token, _)| token).collect::<Vec<_>>();
        assert_eq!(tokens(inbox.drain(9)), [2, 3, 4, 5]);
        assert_eq!((inbox.bytes(), inbox.lock().failures), (0, 0));
        inbox.push(6, message(10));
        drop(inbox.take(9));
        assert!(inbox.wait(Duration::ZERO) && (&inbox.watched).read(&mut [0; 8]).is_ok(), "it is readable again");
    }

    #[test]
    fn a_wake_up_that_comes_late_does_not_stay() {
        let inbox = Inbox::new(1000).unwrap();
        (&inbox.waker).write_all(&[1]).unwrap(); // of something that was taken before its wake-up was sent
        assert!(inbox.drain(9).is_empty());
        let mut byte = [0u8; 8];
        assert!((&inbox.watched).read(&mut byte).is_err(), "nobody is woken again and again");
    }

    #[test]
    fn closing_wakes_whoever_waits_now_and_later() {
        let inbox = Inbox::new(1000).unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| inbox.wait(Duration::from_secs(60)));
            inbox.close();
            assert!(!waiting.join().unwrap());
        });
        inbox.push(1, message(10));
        assert!(inbox.wait(Duration::from_secs(60)));
        assert_eq!(inbox.drain(9).len(), 1);
        assert!(inbox.drain(9).is_empty());
        assert!(!inbox.wait(Duration::from_secs(60)));
        let mut byte = [0u8; 8];
        assert!((&inbox.watched).read(&mut byte).is_ok(), "an event loop is woken, too");
    }

    #[test]
    fn a_promise_does_not_keep_the_inbox() {
        let inbox = Inbox::new(1000).unwrap();
        let (first, second) = (Completion::new(&inbox, 1), Completion::new(&inbox, 2));
        let watched = Arc::downgrade(&inbox);
        drop(inbox);
        assert!(watched.upgrade().is_none(), "its descriptors are closed");
        first.finish(Ok(Outcome::Done));
        Completion::finish_all(vec![second], &Ok(Outcome::Done));
    }

    #[test]
    fn promises_that_end_alike_are_all_kept() {
        let (one, other) = (Inbox::new(1000).unwrap(), Inbox::new(1000).unwrap());
        let of = |inbox: &Arc<Inbox>, token| Completion::new(inbox, token);
        Completion::finish_all(vec![of(&one, 1), of(&one, 2), of(&other, 3), of(&one, 4)], &Ok(Outcome::Done));
        let tokens = |inbox: &Inbox| inbox.drain(9).into_iter().map(|(token, _)| token).collect::<Vec<_>>();
        assert_eq!((tokens(&one), tokens(&other)), (vec![1, 2, 4], vec![3]));
    }

    #[test]
    fn drops_messages_but_no_results_when_full() {
        let inbox = Inbox::new(1000).unwrap();
        assert!(inbox.push(1, message(900)));
        assert!(!inbox.push(1, message(900)));
        assert!(inbox.push(1, Item::Finished(Ok(Outcome::Done))));
        assert_eq!(inbox.dropped(), 1);
        assert_eq!(inbox.drain(10).len(), 2);
        // one message larger than the whole limit still passes an empty inbox
        assert!(inbox.push(1, message(5000)));
    }

    #[test]
    fn a_run_of_dropped_messages_is_one_item_and_failures_are_bounded() {
        let inbox = Inbox::new(1000).unwrap();
        for _ in 0..5000 {
            inbox.push_overflow(1, Overflow::of(None, None));
            inbox.push(1, Item::Failure(Error::Closed("x")));
        }
        assert_eq!(inbox.dropped(), 4000);
        let taken = inbox.drain(10_000);
        let counted = |item: &Item| match item {
            Item::Overflow(overflow) => overflow.gaps().filter_map(|gap| gap.missing).sum(),
            _ => 0,
        };
        assert!(taken.len() <= 2001, "{}", taken.len());
        assert_eq!(taken.iter().map(|(_, item)| counted(item)).sum::<u64>(), 5000);
        assert!(inbox.push(1, Item::Failure(Error::Closed("x"))), "there is room again");
    }

    #[test]
    fn holes_beyond_the_limit_are_counted_in_the_overflow() {
        let inbox = Inbox::new(10_000).unwrap();
        let hole = |count| {
            let (reason, since) = (crate::wire::gap::Reason::Hole, std::time::SystemTime::now());
            Item::Gap(Gap { reason, nsp: None, sender: None, missing: count, since })
        };
        for _ in 0..20_000 {
            assert!(inbox.push(1, hole(Some(2))));
            if !inbox.push(1, message(1000)) {
                inbox.push_overflow(1, Overflow::of(None, None));
            }
        }
        assert!(inbox.push(1, hole(None)), "nobody knows how many: never dropped");
        let taken = inbox.drain(100_000);
        assert!(taken.len() < 50, "{}", taken.len());
        let counted = |item: &Item| match item {
            Item::Overflow(overflow) => overflow.missing(),
            Item::Gap(gap) => gap.missing.unwrap_or_default(),
            Item::Message(_) => 1,
            _ => 0,
        };
        assert_eq!(taken.iter().map(|(_, item)| counted(item)).sum::<u64>(), 60_000);
    }

    #[test]
    fn a_forgotten_promise_is_reported_closed() {
        let inbox = Inbox::new(1000).unwrap();
        drop(Completion::new(&inbox, 5));
        assert!(matches!(inbox.drain(9)[..], [(5, Item::Finished(Err(Error::Closed(_))))]));
    }
}
