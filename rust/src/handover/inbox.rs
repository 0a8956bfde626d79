//! Hand-over from the background thread to Python: a queue, and a file descriptor that is readable while items wait.
//!
//! Nothing here takes the GIL. An event loop watches the descriptor and drains many items at once; a plain thread
//! blocks in [`Inbox::wait`]. Both see the same items in the same order.

use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, MutexGuard};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::handover::completion::Answers;
use crate::handover::item::{Item, Receiver};
use crate::lock::{Mutex, wait_while};
use crate::wire::gap::Overflow;

/// Maximum number of background failures that wait for Python, so that a flood of bad messages cannot exhaust the
/// memory. Further failures are only counted.
const FAILURES: usize = 1000;

/// An entry that is handed over to Python.
#[derive(Debug, Clone)]
pub enum Entry<A = ()> {
    /// An operation ended, with a result that can be converted for Python.
    Finished(Result<A>),
    /// Any other item.
    Item(Item),
}

impl<A> Entry<A> {
    fn size_bytes(&self) -> usize {
        match self {
            Self::Finished(_) => 0, // awaited, and therefore never dropped
            Self::Item(item) => item.size_bytes(),
        }
    }

    fn is_failure(&self) -> bool {
        matches!(self, Self::Item(Item::Failure(_)))
    }
}

struct Queue<A> {
    items: VecDeque<(u64, Entry<A>)>,
    bytes: usize,
    failures: usize,
    is_signalled: bool,
    is_closed: bool,
    /// Number of threads in [`Inbox::wait`].
    waiters: usize,
    drained_at: Instant,
    /// The time since when items wait and Python has taken none.
    stalled_since: Option<Instant>,
}

impl<A> Queue<A> {
    fn append(&mut self, token: u64, entry: Entry<A>) {
        self.items.push_back((token, entry));
        self.stalled_since.get_or_insert_with(Instant::now);
    }

    fn append_overflow(&mut self, token: u64, overflow: Overflow) -> bool {
        if let Some((last, Entry::Item(Item::Overflow(before)))) = self.items.back_mut()
            && *last == token
        {
            before.merge(overflow);
            return false;
        }
        self.append(token, Entry::Item(Item::Overflow(overflow)));
        true
    }
}

/// See the module documentation. `A` is the type of the results of operations.
pub struct Inbox<A = ()> {
    queue: Mutex<Queue<A>>,
    ready: Condvar,
    limit_bytes: usize,
    dropped: AtomicU64,
    waker: UnixStream,
    watched: UnixStream,
}

impl<A> Inbox<A> {
    /// An empty inbox that holds at most `limit_bytes` of messages.
    ///
    /// When Python stalls and the limit is reached, further messages are dropped, which the caller reports by
    /// [`Receiver::push_overflow`]. Reading from PostgreSQL never stops, because a listener that stops reading holds
    /// back the notification queue and vacuum of the whole database. Results of operations and gaps are never dropped.
    pub fn new(limit_bytes: usize) -> Result<Arc<Self>> {
        let failed = |error: std::io::Error| Error::lost("create the hand-over socket", error);
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

    /// The descriptor, which is readable while items wait.
    pub fn fileno(&self) -> RawFd {
        self.watched.as_raw_fd()
    }

    /// Messages dropped because the inbox was full.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Whether no item waits.
    pub fn is_empty(&self) -> bool {
        self.queue.lock().items.is_empty()
    }

    /// Close the inbox. From now on the descriptor is readable, so that waiting readers wake up.
    pub fn close(&self) {
        self.queue.lock().is_closed = true;
        let _ = (&self.waker).write(&[1]);
        self.ready.notify_all();
    }

    /// Whether the inbox was closed. Its remaining items may still be taken.
    pub fn is_closed(&self) -> bool {
        self.queue.lock().is_closed
    }

    /// How long items have waited without Python taking any; zero when no item waits.
    pub fn stalled(&self) -> Duration {
        self.queue.lock().stalled_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Unlock the queue, and then wake the readers. In the opposite order they would block on the lock.
    fn release(&self, mut queue: MutexGuard<'_, Queue<A>>) {
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

    /// Take up to `max` items, to be handed over one by one. Items that are not handed over return to the front, in
    /// order.
    pub fn take(&self, max: usize) -> Taken<'_, A> {
        Taken { inbox: self, items: self.drain(max).into() }
    }

    fn put_back(&self, items: VecDeque<(u64, Entry<A>)>) {
        let mut queue = self.queue.lock();
        for (token, entry) in items.into_iter().rev() {
            queue.bytes += entry.size_bytes();
            queue.failures += usize::from(entry.is_failure());
            queue.items.push_front((token, entry));
        }
        queue.stalled_since.get_or_insert_with(Instant::now);
        self.release(queue);
    }

    /// Count an item that cannot be converted for Python.
    pub fn count_dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// Take up to `max` items. The descriptor stays readable while items remain.
    pub fn drain(&self, max: usize) -> Vec<(u64, Entry<A>)> {
        let mut queue = self.queue.lock();
        queue.drained_at = Instant::now();
        let count = queue.items.len().min(max);
        let taken: Vec<_> = queue.items.drain(..count).collect();
        queue.bytes -= taken.iter().map(|(_, entry)| entry.size_bytes()).sum::<usize>();
        queue.failures -= taken.iter().filter(|(_, entry)| entry.is_failure()).count();
        queue.stalled_since = (!queue.items.is_empty()).then_some(queue.drained_at);
        // There is nothing to take: the wake-up came late, and its items have been taken already.
        if queue.items.is_empty() && (queue.is_signalled || taken.is_empty()) && !queue.is_closed {
            queue.is_signalled = false;
            let mut sink = [0u8; 16];
            let _ = (&self.watched).read(&mut sink);
        }
        taken
    }

    /// Block until an item waits or the inbox is closed, for at most `limit`. Returns true when an item waits.
    pub fn wait(&self, limit: Duration) -> bool {
        let mut queue = self.queue.lock();
        queue.waiters += 1;
        queue = wait_while(&self.ready, queue, limit, |queue| queue.items.is_empty() && !queue.is_closed);
        queue.waiters -= 1;
        !queue.items.is_empty()
    }
}

impl<A: Send> Receiver for Inbox<A> {
    fn push(&self, token: u64, item: Item) -> bool {
        let size = item.size_bytes();
        let mut queue = self.queue.lock();
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
        queue.append(token, Entry::Item(item));
        self.release(queue);
        true
    }

    fn push_overflow(&self, token: u64, overflow: Overflow) -> bool {
        let mut queue = self.queue.lock();
        let is_first = queue.append_overflow(token, overflow);
        self.release(queue);
        is_first
    }

    fn bytes(&self) -> usize {
        self.queue.lock().bytes
    }

    fn idle(&self) -> Duration {
        self.queue.lock().drained_at.elapsed()
    }
}

impl<T, A: From<T> + Send> Answers<T> for Inbox<A> {
    fn finished(&self, results: &mut dyn Iterator<Item = (u64, Result<T>)>) {
        let mut queue = self.queue.lock();
        for (token, result) in results {
            queue.append(token, Entry::Finished(result.map(A::from)));
        }
        self.release(queue);
    }
}

/// Items that are being handed over to Python. None is lost when an exception or a panic interrupts the hand-over.
pub struct Taken<'a, A> {
    inbox: &'a Inbox<A>,
    items: VecDeque<(u64, Entry<A>)>,
}

impl<A> Taken<'_, A> {
    /// The next item, which remains in `self` until [`Taken::hand_over`].
    pub fn first(&mut self) -> Option<&mut (u64, Entry<A>)> {
        self.items.front_mut()
    }

    /// Remove the first item, which Python has received.
    pub fn hand_over(&mut self) {
        self.items.pop_front();
    }
}

impl<A> Drop for Taken<'_, A> {
    fn drop(&mut self) {
        if !self.items.is_empty() {
            self.inbox.put_back(std::mem::take(&mut self.items));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::gap::Gap;
    use crate::wire::protocol::{Data, Message, MessageType};

    fn message(size: usize) -> Item {
        let packet = Some(Data::Json("x".repeat(size)));
        Item::Message(Message { packet, ..Message::new(MessageType::ServerSideEmit, "/") })
    }

    #[test]
    fn it_is_stalled_while_something_waits_and_nothing_is_taken() {
        let inbox = Inbox::<()>::new(10_000).unwrap();
        assert_eq!(inbox.stalled(), Duration::ZERO);
        inbox.push(1, message(1));
        inbox.push(1, message(1));
        std::thread::sleep(Duration::from_millis(20));
        assert!(inbox.stalled() >= Duration::from_millis(20));
        let looked_at = Instant::now();
        assert_eq!(inbox.drain(1).len(), 1);
        assert!(inbox.stalled() <= looked_at.elapsed());
        assert_eq!(inbox.drain(9).len(), 1);
        std::thread::sleep(Duration::from_millis(1));
        assert_eq!(inbox.stalled(), Duration::ZERO);
    }

    #[test]
    fn stays_readable_until_empty() {
        let inbox = Inbox::<()>::new(1 << 20).unwrap();
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
        let inbox = Inbox::<()>::new(1 << 20).unwrap();
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
        assert_eq!(inbox.queue.lock().failures, 1);
        let tokens = |taken: Vec<(u64, Entry)>| taken.into_iter().map(|(token, _)| token).collect::<Vec<_>>();
        assert_eq!(tokens(inbox.drain(9)), [2, 3, 4, 5]);
        assert_eq!((inbox.bytes(), inbox.queue.lock().failures), (0, 0));
        inbox.push(6, message(10));
        drop(inbox.take(9));
        assert!(inbox.wait(Duration::ZERO) && (&inbox.watched).read(&mut [0; 8]).is_ok(), "it is readable again");
    }

    #[test]
    fn a_wake_up_that_comes_late_does_not_stay() {
        let inbox = Inbox::<()>::new(1000).unwrap();
        (&inbox.waker).write_all(&[1]).unwrap(); // of something that was taken before its wake-up was sent
        assert!(inbox.drain(9).is_empty());
        let mut byte = [0u8; 8];
        assert!((&inbox.watched).read(&mut byte).is_err(), "nobody is woken again and again");
    }

    #[test]
    fn closing_wakes_whoever_waits_now_and_later() {
        let inbox = Inbox::<()>::new(1000).unwrap();
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
    fn drops_messages_but_no_results_when_full() {
        let inbox = Inbox::<()>::new(1000).unwrap();
        assert!(inbox.push(1, message(900)));
        assert!(!inbox.push(1, message(900)));
        inbox.finished(&mut std::iter::once((1, Ok::<(), Error>(()))));
        assert_eq!(inbox.dropped(), 1);
        assert_eq!(inbox.drain(10).len(), 2);
        // one message larger than the whole limit still passes an empty inbox
        assert!(inbox.push(1, message(5000)));
    }

    #[test]
    fn a_run_of_dropped_messages_is_one_item_and_failures_are_bounded() {
        let inbox = Inbox::<()>::new(1000).unwrap();
        for _ in 0..5000 {
            inbox.push_overflow(1, Overflow::of(None, None));
            inbox.push(1, Item::Failure(Error::Closed("x")));
        }
        assert_eq!(inbox.dropped(), 4000);
        let taken = inbox.drain(10_000);
        let counted = |entry: &Entry| match entry {
            Entry::Item(Item::Overflow(overflow)) => overflow.gaps().filter_map(|gap| gap.missing).sum(),
            _ => 0,
        };
        assert!(taken.len() <= 2001, "{}", taken.len());
        assert_eq!(taken.iter().map(|(_, entry)| counted(entry)).sum::<u64>(), 5000);
        assert!(inbox.push(1, Item::Failure(Error::Closed("x"))), "there is room again");
    }

    #[test]
    fn holes_beyond_the_limit_are_counted_in_the_overflow() {
        let inbox = Inbox::<()>::new(10_000).unwrap();
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
        let counted = |entry: &Entry| match entry {
            Entry::Item(Item::Overflow(overflow)) => overflow.missing(),
            Entry::Item(Item::Gap(gap)) => gap.missing.unwrap_or_default(),
            Entry::Item(Item::Message(_)) => 1,
            _ => 0,
        };
        assert_eq!(taken.iter().map(|(_, entry)| counted(entry)).sum::<u64>(), 60_000);
    }
}
