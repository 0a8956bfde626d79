//! The messages that wait to be committed: bounded, in order, taken group by group; who waits for which of them, and what
//! became of them all. No I/O.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::MutexGuard;
use std::time::Instant;

use crate::connect::outage::Outage;
use crate::error::{Error, Result};
use crate::handover::completion::Completion;
use crate::handover::item::{Item, Recipient};
use crate::lock::Mutex;
use crate::wire::codec::Encoded;

/// Most messages in one transaction: the commit holds a server-wide lock while they are copied to the queue.
const GROUP_MESSAGES: usize = 1000;
/// Most bytes of notifications in one transaction, for the same reason.
const GROUP_INLINE_BYTES: usize = 256 * 1024;
/// Most bytes of attachments in one transaction; they are written before the lock is taken.
const GROUP_ATTACHMENT_BYTES: usize = 4 * 1024 * 1024;

/// One message on its way.
pub struct Outgoing {
    /// Channel it goes to.
    pub channel: String,
    /// Its bytes.
    pub wire: Encoded,
    /// When it was appended.
    pub since: Instant,
    /// Who waits for its commit, if anybody.
    pub completion: Option<Completion>,
    /// Its sequence number. Payloads of the user's own have none, and so two equal ones must not share a transaction:
    /// PostgreSQL would deliver one.
    pub sequence: Option<u64>,
}

impl Outgoing {
    /// Bytes of its notification, and of its attachment.
    fn sizes(&self) -> (usize, usize) {
        match &self.wire {
            Encoded::Inline(text) => (text.len() + self.channel.len(), 0),
            Encoded::Attachment { header, body } => (header.len() + 24 + self.channel.len(), body.len()),
        }
    }

    /// Whether it needs the attachment table.
    pub fn is_attachment(&self) -> bool {
        matches!(self.wire, Encoded::Attachment { .. })
    }

    /// What it takes in memory.
    pub fn size_bytes(&self) -> usize {
        let (inline, attachment) = self.sizes();
        inline + attachment + 100
    }
}

/// Counters since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PublisherStats {
    /// Messages committed.
    pub published: u64,
    /// Messages that failed, in doubt or not.
    pub failed: u64,
    /// Of the failed ones, those whose commit may have happened.
    pub in_doubt: u64,
    /// Of the failed ones, those dropped because the buffer was full.
    pub dropped: u64,
    /// Transactions committed.
    pub groups: u64,
    /// Of the published messages, those that travelled as attachments.
    pub attachments: u64,
    /// Connections opened after the first one.
    pub reconnects: u64,
    /// Messages appended and not yet settled, those in flight included.
    pub waiting_count: usize,
    /// Their bytes.
    pub waiting_bytes: usize,
}

/// Failures of messages that nobody waits for, until a flush asks.
#[derive(Debug, Default)]
pub struct Unreported {
    /// How many.
    pub failed: u64,
    /// Of these, in doubt.
    pub in_doubt: u64,
    /// Why the first one failed.
    pub first: Option<Error>,
}

impl Unreported {
    fn add(&mut self, error: &Error) {
        self.failed += 1;
        self.in_doubt += u64::from(error.is_in_doubt());
        self.first.get_or_insert_with(|| error.clone());
    }
}

enum Entry {
    Message(Outgoing),
    Flush(Completion),
}

/// What is in a buffer.
pub struct Queue {
    entries: VecDeque<Entry>,
    limit_count: usize,
    limit_bytes: usize,
    /// Failures to be told by a flush.
    pub unreported: Unreported,
    /// Counters.
    pub stats: PublisherStats,
    /// Whether the publisher's task runs.
    pub is_running: bool,
    /// Whether nothing more is accepted.
    pub is_closed: bool,
    /// Who waits for the task to end.
    pub closing: Vec<Completion>,
    /// When it must have ended, once `close` was called.
    pub closes_at: Option<Instant>,
    sequences: HashMap<String, u64>,
    space_waiters: Vec<Completion>,
    is_dropping: bool,
}

impl Queue {
    fn new(limit_count: usize, limit_bytes: usize) -> Self {
        Self {
            entries: VecDeque::new(),
            limit_count,
            limit_bytes,
            unreported: Unreported::default(),
            stats: PublisherStats::default(),
            is_running: false,
            is_closed: false,
            closing: Vec::new(),
            closes_at: None,
            sequences: HashMap::new(),
            space_waiters: Vec::new(),
            is_dropping: false,
        }
    }

    /// Whether there is no room for more.
    pub fn is_full(&self) -> bool {
        self.stats.waiting_count >= self.limit_count || self.stats.waiting_bytes >= self.limit_bytes
    }

    /// What a caller is told who finds no room.
    pub fn full_error(&self) -> Error {
        Error::BufferFull { count: self.stats.waiting_count, bytes: self.stats.waiting_bytes }
    }

    /// Whether there is neither a message nor a flush.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The number of the next message on a channel. Numbers are used up in call order, and only by messages that could
    /// be encoded.
    pub fn next_sequence(&self, channel: &str) -> u64 {
        self.sequences.get(channel).map_or(1, |last| last + 1)
    }

    fn use_sequence(&mut self, channel: &str) {
        match self.sequences.get_mut(channel) {
            Some(last) => *last += 1,
            None => drop(self.sequences.insert(channel.to_owned(), 1)),
        }
    }

    /// Append a message, which uses its number up; whether there is room is for the caller to ask.
    pub fn append(&mut self, outgoing: Outgoing) {
        if outgoing.sequence.is_some() {
            self.use_sequence(&outgoing.channel);
        }
        self.is_dropping = false;
        self.stats.waiting_count += 1;
        self.stats.waiting_bytes += outgoing.size_bytes();
        self.entries.push_back(Entry::Message(outgoing));
    }

    /// Give a message up for lack of room. It keeps its number, so that receivers notice. The error is for the first one
    /// only of those in a row.
    pub fn give_up(&mut self, channel: &str) -> Option<Error> {
        self.use_sequence(channel);
        let error = self.full_error();
        self.stats.failed += 1;
        self.stats.dropped += 1;
        self.unreported.add(&error);
        let is_first = !std::mem::replace(&mut self.is_dropping, true);
        is_first.then_some(error)
    }

    /// Append a promise, to be kept once everything in front of it is committed or failed.
    pub fn append_flush(&mut self, completion: Completion) {
        self.entries.push_back(Entry::Flush(completion));
    }

    /// A message that was taken out is committed or failed: its room is free.
    fn release(&mut self, outgoing: &Outgoing) {
        self.stats.waiting_count -= 1;
        self.stats.waiting_bytes -= outgoing.size_bytes();
    }

    /// A message that was taken out goes on with other bytes.
    pub fn replace(&mut self, outgoing: &mut Outgoing, wire: Encoded) {
        self.stats.waiting_bytes -= outgoing.size_bytes();
        outgoing.wire = wire;
        self.stats.waiting_bytes += outgoing.size_bytes();
    }

    /// Take the messages of the next group; flushes whose turn has come are answered.
    pub fn take_group(&mut self) -> Vec<Outgoing> {
        let mut group: Vec<Outgoing> = Vec::new();
        let (mut inline_bytes, mut attachment_bytes) = (0, 0);
        let mut raw: HashSet<(String, String)> = HashSet::new();
        while let Some(entry) = self.entries.pop_front() {
            match entry {
                Entry::Flush(completion) if group.is_empty() => completion.finish(Ok(())),
                Entry::Message(next) => {
                    let (inline, attachment) = next.sizes();
                    inline_bytes += inline;
                    attachment_bytes += attachment;
                    let is_over = group.len() >= GROUP_MESSAGES
                        || inline_bytes > GROUP_INLINE_BYTES
                        || attachment_bytes > GROUP_ATTACHMENT_BYTES;
                    let is_repeated = match (next.sequence, &next.wire) {
                        (None, Encoded::Inline(text)) => !raw.insert((next.channel.clone(), text.clone())),
                        _ => false,
                    };
                    if (is_over && !group.is_empty()) || is_repeated {
                        self.entries.push_front(Entry::Message(next));
                        break;
                    }
                    group.push(next);
                }
                flush @ Entry::Flush(_) => {
                    self.entries.push_front(flush);
                    break;
                }
            }
        }
        group
    }

    /// Answer the flushes in front: whatever stood before them is committed or failed.
    pub fn answer_flushes(&mut self) {
        while let Some(Entry::Flush(_)) = self.entries.front() {
            if let Some(Entry::Flush(completion)) = self.entries.pop_front() {
                completion.finish(Ok(()));
            }
        }
    }

    /// Put messages that were certainly not committed back in front.
    pub fn put_back(&mut self, group: Vec<Outgoing>) {
        for outgoing in group.into_iter().rev() {
            self.entries.push_front(Entry::Message(outgoing));
        }
    }

    /// Take the messages in front that `is_hit` selects, up to the first that it does not; flushes stay.
    ///
    /// Messages are in order of age, so this is how those that waited too long are found.
    pub fn take_while(&mut self, is_hit: impl Fn(&Outgoing) -> bool) -> Vec<Outgoing> {
        let mut taken = Vec::new();
        let mut flushes = Vec::new();
        while let Some(entry) = self.entries.pop_front() {
            match entry {
                Entry::Flush(completion) => flushes.push(Entry::Flush(completion)),
                Entry::Message(outgoing) if is_hit(&outgoing) => taken.push(outgoing),
                other @ Entry::Message(_) => {
                    self.entries.push_front(other);
                    break;
                }
            }
        }
        for flush in flushes.into_iter().rev() {
            self.entries.push_front(flush);
        }
        taken
    }

    /// Who waits for room, or for the end.
    pub fn take_space_waiters(&mut self) -> Vec<Completion> {
        std::mem::take(&mut self.space_waiters)
    }
}

/// See the module documentation. What the publisher's callers and its task share.
pub struct Buffer {
    queue: Mutex<Queue>,
    recipient: Recipient,
    /// Why nothing can be committed.
    pub outage: Outage,
}

impl Buffer {
    /// An empty buffer with limits, of which the last message may exceed that of bytes; it reports to `recipient` what
    /// nobody waits for.
    pub fn new(limit_count: usize, limit_bytes: usize, recipient: Recipient) -> Self {
        Self { queue: Mutex::new(Queue::new(limit_count, limit_bytes)), recipient, outage: Outage::default() }
    }

    /// What is in it, for this caller alone.
    pub fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock()
    }

    /// The same while messages are accepted.
    pub fn open(&self) -> Result<MutexGuard<'_, Queue>> {
        let queue = self.lock();
        if queue.is_closed { Err(Error::Closed("publisher")) } else { Ok(queue) }
    }

    /// Report a failure that concerns the connection, or messages that nobody waits for.
    pub fn report(&self, error: &Error) {
        self.recipient.push(Item::Failure(error.clone()));
    }

    /// Keep `completion` until there is room.
    pub fn when_space(&self, completion: Completion) {
        let mut queue = self.lock();
        if queue.is_closed || !queue.is_full() {
            drop(queue);
            completion.finish(Ok(()));
        } else {
            queue.space_waiters.push(completion);
        }
    }

    /// Report the fate of messages and release their space.
    pub fn settle(&self, group: Vec<Outgoing>, result: &Result<()>) {
        let mut unobserved = false;
        let mut queue = self.lock();
        let stats = &mut queue.stats;
        match result {
            Ok(()) => {
                stats.groups += 1;
                stats.published += group.len() as u64;
                stats.attachments += group.iter().filter(|each| each.is_attachment()).count() as u64;
            }
            Err(error) => {
                stats.failed += group.len() as u64;
                stats.in_doubt += if error.is_in_doubt() { group.len() as u64 } else { 0 };
            }
        }
        let mut completions = Vec::new();
        for outgoing in group {
            queue.release(&outgoing);
            match (outgoing.completion, result) {
                (Some(completion), _) => completions.push(completion),
                (None, Ok(())) => {}
                (None, Err(error)) => {
                    unobserved = true;
                    queue.unreported.add(error);
                }
            }
        }
        let waiters = if queue.is_full() { Vec::new() } else { queue.take_space_waiters() };
        // Whoever is told goes on at once, often with the next message: not into our lock.
        drop(queue);
        Completion::finish_all(completions, &result.clone());
        Completion::finish_all(waiters, &Ok(()));
        if let (true, Err(error)) = (unobserved, result) {
            self.report(error);
        }
    }

    /// Fail the messages in front that `is_hit` selects.
    pub fn fail_while(&self, error: &Error, is_hit: impl Fn(&Outgoing) -> bool) {
        let failed = self.lock().take_while(is_hit);
        if !failed.is_empty() {
            self.settle(failed, &Err(error.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handover::inbox::Inbox;

    fn raw(text: &str) -> Outgoing {
        let wire = Encoded::Inline(text.to_owned());
        Outgoing { channel: "c".into(), wire, since: Instant::now(), completion: None, sequence: None }
    }

    fn texts(group: &[Outgoing]) -> Vec<&str> {
        group.iter().map(|each| if let Encoded::Inline(text) = &each.wire { text.as_str() } else { "" }).collect()
    }

    #[test]
    fn equal_payloads_do_not_share_a_group() {
        let mut queue = Queue::new(10, 10_000);
        for text in ["a", "b", "a", "c"] {
            queue.append(raw(text));
        }
        assert_eq!(texts(&queue.take_group()), ["a", "b"]);
        assert_eq!(texts(&queue.take_group()), ["a", "c"]);
        assert!(queue.is_empty());
        let numbered = |number| Outgoing { sequence: Some(number), ..raw("same") };
        queue.append(numbered(1));
        queue.append(numbered(2));
        assert_eq!(queue.take_group().len(), 2);
    }

    #[test]
    fn a_flush_waits_for_what_is_in_front_of_it() {
        let inbox = Inbox::<()>::new(1000).unwrap();
        let mut queue = Queue::new(10, 10_000);
        queue.append(raw("a"));
        queue.append_flush(Completion::new(&inbox, 1));
        queue.append(raw("b"));
        let group = queue.take_group();
        assert_eq!(texts(&group), ["a"]);
        assert!(inbox.drain(9).is_empty());
        queue.put_back(group);
        assert_eq!(texts(&queue.take_group()), ["a"]);
        assert_eq!(texts(&queue.take_group()), ["b"]);
        assert_eq!(inbox.drain(9).len(), 1);
    }

    #[test]
    fn room_is_counted_until_the_end() {
        let mut queue = Queue::new(2, 10_000);
        queue.append(raw("a"));
        queue.append(raw("b"));
        assert!(queue.is_full());
        let group = queue.take_group();
        assert!(queue.is_full(), "what is in flight may come back");
        for outgoing in &group {
            queue.release(outgoing);
        }
        assert_eq!((queue.stats.waiting_count, queue.stats.waiting_bytes), (0, 0));
    }

    #[test]
    fn bytes_that_are_replaced_are_counted_anew() {
        let mut queue = Queue::new(2, 10_000);
        queue.append(raw("é"));
        let before = queue.stats.waiting_bytes;
        let mut group = queue.take_group();
        queue.replace(&mut group[0], Encoded::Inline("\\u00e9".to_owned()));
        assert_eq!((texts(&group), queue.stats.waiting_bytes), (vec!["\\u00e9"], before + 4));
        queue.release(&group[0]);
        assert_eq!((queue.stats.waiting_count, queue.stats.waiting_bytes), (0, 0));
    }

    #[test]
    fn groups_are_bounded_but_never_empty() {
        let mut queue = Queue::new(10_000, 1 << 30);
        let big = "x".repeat(GROUP_INLINE_BYTES + 1);
        queue.append(raw(&big));
        for number in 0..GROUP_MESSAGES + 5 {
            queue.append(raw(&number.to_string()));
        }
        assert_eq!(queue.take_group().len(), 1);
        assert_eq!(queue.take_group().len(), GROUP_MESSAGES);
        assert_eq!(queue.take_group().len(), 5);
    }

    #[test]
    fn the_oldest_are_taken_and_flushes_stay() {
        let inbox = Inbox::<()>::new(1000).unwrap();
        let mut queue = Queue::new(10, 10_000);
        queue.append(raw("old"));
        queue.append_flush(Completion::new(&inbox, 1));
        queue.append(raw("old too"));
        queue.append(raw("young"));
        let taken = queue.take_while(|outgoing| matches!(&outgoing.wire, Encoded::Inline(text) if text != "young"));
        assert_eq!(texts(&taken), ["old", "old too"]);
        assert!(inbox.drain(9).is_empty());
        queue.answer_flushes();
        assert_eq!(inbox.drain(9).len(), 1, "nothing is in front of it any more");
        assert_eq!(texts(&queue.take_group()), ["young"]);
    }
}
