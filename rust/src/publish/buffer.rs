//! A bounded, ordered buffer of the messages to be committed, which are taken in groups. It also keeps the completions
//! of waiting callers and counts the outcomes. No I/O.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::MutexGuard;
use std::time::Instant;

use crate::connect::outage::Outage;
use crate::error::{Error, Result};
use crate::handover::completion::Completion;
use crate::handover::item::{Item, Recipient};
use crate::lock::Mutex;
use crate::wire::codec::Encoded;

/// Maximum number of messages in one transaction. The commit holds a server-wide lock while they are copied to the
/// queue.
const GROUP_MESSAGES: usize = 1000;
/// Maximum size of the notifications in one transaction, for the same reason.
const GROUP_INLINE_BYTES: usize = 256 * 1024;
/// Maximum size of the attachments in one transaction. They are written before the lock is taken.
const GROUP_ATTACHMENT_BYTES: usize = 4 * 1024 * 1024;

/// One outgoing message.
pub struct Outgoing {
    /// The channel it is published on.
    pub channel: String,
    /// The encoded message.
    pub wire: Encoded,
    /// The time when it was appended.
    pub since: Instant,
    /// Completed when the message is committed or has failed, if a caller waits for that.
    pub completion: Option<Completion>,
    /// Its sequence number. The user's raw payloads have none, so two equal ones must not share a transaction:
    /// PostgreSQL would deliver only one.
    pub sequence: Option<u64>,
}

impl Outgoing {
    /// Size of its notification and of its attachment, in bytes.
    fn sizes(&self) -> (usize, usize) {
        match &self.wire {
            Encoded::Inline(text) => (text.len() + self.channel.len(), 0),
            Encoded::Attachment { header, body } => (header.len() + 24 + self.channel.len(), body.len()),
        }
    }

    /// Whether the message needs the attachment table.
    pub fn is_attachment(&self) -> bool {
        matches!(self.wire, Encoded::Attachment { .. })
    }

    /// Its size in memory.
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
    /// Messages that failed, including those in doubt.
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
    /// Messages appended and not yet settled, including those in flight.
    pub waiting_count: usize,
    /// Size of these messages.
    pub waiting_bytes: usize,
}

/// Failures of messages without a completion, which the next flush reports.
#[derive(Debug, Default)]
pub struct Unreported {
    /// Number of failed messages.
    pub failed: u64,
    /// Of these, those in doubt.
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

/// The content of a buffer.
pub struct Queue {
    entries: VecDeque<Entry>,
    limit_count: usize,
    limit_bytes: usize,
    /// Failures that the next flush reports.
    pub unreported: Unreported,
    /// Counters.
    pub stats: PublisherStats,
    /// Whether the publisher's task runs.
    pub is_running: bool,
    /// Whether nothing more is accepted.
    pub is_closed: bool,
    /// Completions of callers that wait for the task to end.
    pub closing: Vec<Completion>,
    /// The task's deadline, once `close` was called.
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

    /// Whether the buffer has no room for another message.
    pub fn is_full(&self) -> bool {
        self.stats.waiting_count >= self.limit_count || self.stats.waiting_bytes >= self.limit_bytes
    }

    /// The error for a caller that finds the buffer full.
    pub fn full_error(&self) -> Error {
        Error::BufferFull { count: self.stats.waiting_count, bytes: self.stats.waiting_bytes }
    }

    /// Whether the queue has neither messages nor flushes.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The sequence number of the next message on a channel. Numbers are assigned in the order of the calls, and only
    /// to messages that could be encoded.
    pub fn next_sequence(&self, channel: &str) -> u64 {
        self.sequences.get(channel).map_or(1, |last| last + 1)
    }

    fn use_sequence(&mut self, channel: &str) {
        match self.sequences.get_mut(channel) {
            Some(last) => *last += 1,
            None => drop(self.sequences.insert(channel.to_owned(), 1)),
        }
    }

    /// Append a message and consume its sequence number. The caller checks for room.
    pub fn append(&mut self, outgoing: Outgoing) {
        if outgoing.sequence.is_some() {
            self.use_sequence(&outgoing.channel);
        }
        self.is_dropping = false;
        self.stats.waiting_count += 1;
        self.stats.waiting_bytes += outgoing.size_bytes();
        self.entries.push_back(Entry::Message(outgoing));
    }

    /// Drop a message for lack of room. The message consumes its sequence number, so that receivers notice the gap.
    /// Returns an error only for the first of consecutive drops.
    pub fn give_up(&mut self, channel: &str) -> Option<Error> {
        self.use_sequence(channel);
        let error = self.full_error();
        self.stats.failed += 1;
        self.stats.dropped += 1;
        self.unreported.add(&error);
        let is_first = !std::mem::replace(&mut self.is_dropping, true);
        is_first.then_some(error)
    }

    /// Append a flush, which is completed once every message before it is committed or has failed.
    pub fn append_flush(&mut self, completion: Completion) {
        self.entries.push_back(Entry::Flush(completion));
    }

    /// Release the room of a message that was taken out, and is committed or has failed.
    fn release(&mut self, outgoing: &Outgoing) {
        self.stats.waiting_count -= 1;
        self.stats.waiting_bytes -= outgoing.size_bytes();
    }

    /// Replace the encoding of a message that was taken out.
    pub fn replace(&mut self, outgoing: &mut Outgoing, wire: Encoded) {
        self.stats.waiting_bytes -= outgoing.size_bytes();
        outgoing.wire = wire;
        self.stats.waiting_bytes += outgoing.size_bytes();
    }

    /// Take the messages of the next group, and complete the flushes that are due.
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

    /// Complete the flushes at the front of the queue: every message before them is committed or has failed.
    pub fn answer_flushes(&mut self) {
        while let Some(Entry::Flush(_)) = self.entries.front() {
            if let Some(Entry::Flush(completion)) = self.entries.pop_front() {
                completion.finish(Ok(()));
            }
        }
    }

    /// Put messages that were certainly not committed back at the front.
    pub fn put_back(&mut self, group: Vec<Outgoing>) {
        for outgoing in group.into_iter().rev() {
            self.entries.push_front(Entry::Message(outgoing));
        }
    }

    /// Take messages from the front for as long as `is_hit` selects them. Flushes stay.
    ///
    /// Messages are ordered by age, so this finds the messages that have waited too long.
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

    /// Take the completions of callers that wait for room or for the end.
    pub fn take_space_waiters(&mut self) -> Vec<Completion> {
        std::mem::take(&mut self.space_waiters)
    }
}

/// The buffer that the publisher's callers and its task share. See the module documentation.
pub struct Buffer {
    queue: Mutex<Queue>,
    recipient: Recipient,
    /// The reason why nothing can be committed.
    pub outage: Outage,
}

impl Buffer {
    /// An empty buffer. The last message that is admitted may exceed `limit_bytes`. Failures of messages without a
    /// completion are reported to `recipient`.
    pub fn new(limit_count: usize, limit_bytes: usize, recipient: Recipient) -> Self {
        Self { queue: Mutex::new(Queue::new(limit_count, limit_bytes)), recipient, outage: Outage::default() }
    }

    /// Lock the buffer's content.
    pub fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock()
    }

    /// As [`Buffer::lock`]; an error if the buffer no longer accepts messages.
    pub fn open(&self) -> Result<MutexGuard<'_, Queue>> {
        let queue = self.lock();
        if queue.is_closed { Err(Error::Closed("publisher")) } else { Ok(queue) }
    }

    /// Report a failure of the connection, or of messages without a completion.
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

    /// Report the outcome of messages and release their room.
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
        // A notified caller continues at once, often with the next message, and would block on this lock.
        drop(queue);
        Completion::finish_all(completions, &result.clone());
        Completion::finish_all(waiters, &Ok(()));
        if let (true, Err(error)) = (unobserved, result) {
            self.report(error);
        }
    }

    /// Fail messages from the front for as long as `is_hit` selects them.
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
