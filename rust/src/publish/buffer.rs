//! The messages that wait to be committed: bounded, in order, taken group by group. No I/O.

use std::collections::{HashSet, VecDeque};
use std::time::Instant;

use crate::error::Error;
use crate::handover::completion::Completion;
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
    fn inline_bytes(&self) -> usize {
        match &self.wire {
            Encoded::Inline(text) => text.len() + self.channel.len(),
            Encoded::Attachment { header, .. } => header.len() + 24 + self.channel.len(),
        }
    }

    fn attachment_bytes(&self) -> usize {
        match &self.wire {
            Encoded::Inline(_) => 0,
            Encoded::Attachment { body, .. } => body.len(),
        }
    }

    /// Whether it needs the attachment table.
    pub fn is_attachment(&self) -> bool {
        matches!(self.wire, Encoded::Attachment { .. })
    }

    /// What it takes in memory.
    pub fn size_bytes(&self) -> usize {
        self.inline_bytes() + self.attachment_bytes() + 100
    }
}

enum Entry {
    Message(Outgoing),
    Flush(Completion),
}

/// See the module documentation.
pub struct Buffer {
    queue: VecDeque<Entry>,
    limit_count: usize,
    limit_bytes: usize,
    count: usize,
    bytes: usize,
}

impl Buffer {
    /// An empty buffer with limits. The last message before the limit may exceed it.
    pub fn new(limit_count: usize, limit_bytes: usize) -> Self {
        Self { queue: VecDeque::new(), limit_count, limit_bytes, count: 0, bytes: 0 }
    }

    /// Whether there is no room for more.
    pub fn is_full(&self) -> bool {
        self.count >= self.limit_count || self.bytes >= self.limit_bytes
    }

    /// What a caller is told who finds no room.
    pub fn full_error(&self) -> Error {
        Error::BufferFull { count: self.count, bytes: self.bytes }
    }

    /// Whether there is neither a message nor a flush.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Messages appended and not yet released, those in flight included.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Their bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Append a message; whether there is room is for the caller to ask.
    pub fn append(&mut self, outgoing: Outgoing) {
        self.count += 1;
        self.bytes += outgoing.size_bytes();
        self.queue.push_back(Entry::Message(outgoing));
    }

    /// Append a promise, to be kept once everything in front of it is committed or failed.
    pub fn append_flush(&mut self, completion: Completion) {
        self.queue.push_back(Entry::Flush(completion));
    }

    /// A message that was taken out is committed or failed: its room is free.
    pub fn release(&mut self, outgoing: &Outgoing) {
        self.count -= 1;
        self.bytes -= outgoing.size_bytes();
    }

    /// A message that was taken out goes on with other bytes.
    pub fn replace(&mut self, outgoing: &mut Outgoing, wire: Encoded) {
        self.bytes -= outgoing.size_bytes();
        outgoing.wire = wire;
        self.bytes += outgoing.size_bytes();
    }

    /// Take the messages of the next group; flushes whose turn has come are answered.
    pub fn take_group(&mut self) -> Vec<Outgoing> {
        let mut group: Vec<Outgoing> = Vec::new();
        let (mut inline_bytes, mut attachment_bytes) = (0, 0);
        let mut raw: HashSet<(String, String)> = HashSet::new();
        while let Some(entry) = self.queue.pop_front() {
            match entry {
                Entry::Flush(completion) if group.is_empty() => completion.finish(Ok(())),
                Entry::Message(next) => {
                    inline_bytes += next.inline_bytes();
                    attachment_bytes += next.attachment_bytes();
                    let is_over = group.len() >= GROUP_MESSAGES
                        || inline_bytes > GROUP_INLINE_BYTES
                        || attachment_bytes > GROUP_ATTACHMENT_BYTES;
                    let is_repeated = match (next.sequence, &next.wire) {
                        (None, Encoded::Inline(text)) => !raw.insert((next.channel.clone(), text.clone())),
                        _ => false,
                    };
                    if (is_over && !group.is_empty()) || is_repeated {
                        self.queue.push_front(Entry::Message(next));
                        break;
                    }
                    group.push(next);
                }
                flush @ Entry::Flush(_) => {
                    self.queue.push_front(flush);
                    break;
                }
            }
        }
        group
    }

    /// Answer the flushes in front: whatever stood before them is committed or failed.
    pub fn answer_flushes(&mut self) {
        while let Some(Entry::Flush(_)) = self.queue.front() {
            if let Some(Entry::Flush(completion)) = self.queue.pop_front() {
                completion.finish(Ok(()));
            }
        }
    }

    /// Put messages that were certainly not committed back in front.
    pub fn put_back(&mut self, group: Vec<Outgoing>) {
        for outgoing in group.into_iter().rev() {
            self.queue.push_front(Entry::Message(outgoing));
        }
    }

    /// Take the messages in front that `is_hit` selects, up to the first that it does not; flushes stay.
    ///
    /// Messages are in order of age, so this is how those that waited too long are found.
    pub fn take_while(&mut self, is_hit: impl Fn(&Outgoing) -> bool) -> Vec<Outgoing> {
        let mut taken = Vec::new();
        let mut flushes = Vec::new();
        while let Some(entry) = self.queue.pop_front() {
            match entry {
                Entry::Flush(completion) => flushes.push(Entry::Flush(completion)),
                Entry::Message(outgoing) if is_hit(&outgoing) => taken.push(outgoing),
                other @ Entry::Message(_) => {
                    self.queue.push_front(other);
                    break;
                }
            }
        }
        for flush in flushes.into_iter().rev() {
            self.queue.push_front(flush);
        }
        taken
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
        let mut buffer = Buffer::new(10, 10_000);
        for text in ["a", "b", "a", "c"] {
            buffer.append(raw(text));
        }
        assert_eq!(texts(&buffer.take_group()), ["a", "b"]);
        assert_eq!(texts(&buffer.take_group()), ["a", "c"]);
        assert!(buffer.is_empty());
        let numbered = |number| Outgoing { sequence: Some(number), ..raw("same") };
        buffer.append(numbered(1));
        buffer.append(numbered(2));
        assert_eq!(buffer.take_group().len(), 2);
    }

    #[test]
    fn a_flush_waits_for_what_is_in_front_of_it() {
        let inbox = Inbox::<()>::new(1000).unwrap();
        let mut buffer = Buffer::new(10, 10_000);
        buffer.append(raw("a"));
        buffer.append_flush(Completion::new(&inbox, 1));
        buffer.append(raw("b"));
        let group = buffer.take_group();
        assert_eq!(texts(&group), ["a"]);
        assert!(inbox.drain(9).is_empty());
        buffer.put_back(group);
        assert_eq!(texts(&buffer.take_group()), ["a"]);
        assert_eq!(texts(&buffer.take_group()), ["b"]);
        assert_eq!(inbox.drain(9).len(), 1);
    }

    #[test]
    fn room_is_counted_until_the_end() {
        let mut buffer = Buffer::new(2, 10_000);
        buffer.append(raw("a"));
        buffer.append(raw("b"));
        assert!(buffer.is_full());
        let group = buffer.take_group();
        assert!(buffer.is_full(), "what is in flight may come back");
        for outgoing in &group {
            buffer.release(outgoing);
        }
        assert_eq!((buffer.count(), buffer.bytes()), (0, 0));
    }

    #[test]
    fn bytes_that_are_replaced_are_counted_anew() {
        let mut buffer = Buffer::new(2, 10_000);
        buffer.append(raw("é"));
        let before = buffer.bytes();
        let mut group = buffer.take_group();
        buffer.replace(&mut group[0], Encoded::Inline("\\u00e9".to_owned()));
        assert_eq!((texts(&group), buffer.bytes()), (vec!["\\u00e9"], before + 4));
        buffer.release(&group[0]);
        assert_eq!((buffer.count(), buffer.bytes()), (0, 0));
    }

    #[test]
    fn groups_are_bounded_but_never_empty() {
        let mut buffer = Buffer::new(10_000, 1 << 30);
        let big = "x".repeat(GROUP_INLINE_BYTES + 1);
        buffer.append(raw(&big));
        for number in 0..GROUP_MESSAGES + 5 {
            buffer.append(raw(&number.to_string()));
        }
        assert_eq!(buffer.take_group().len(), 1);
        assert_eq!(buffer.take_group().len(), GROUP_MESSAGES);
        assert_eq!(buffer.take_group().len(), 5);
    }

    #[test]
    fn the_oldest_are_taken_and_flushes_stay() {
        let inbox = Inbox::<()>::new(1000).unwrap();
        let mut buffer = Buffer::new(10, 10_000);
        buffer.append(raw("old"));
        buffer.append_flush(Completion::new(&inbox, 1));
        buffer.append(raw("old too"));
        buffer.append(raw("young"));
        let taken = buffer.take_while(|outgoing| matches!(&outgoing.wire, Encoded::Inline(text) if text != "young"));
        assert_eq!(texts(&taken), ["old", "old too"]);
        assert!(inbox.drain(9).is_empty());
        buffer.answer_flushes();
        assert_eq!(inbox.drain(9).len(), 1, "nothing is in front of it any more");
        assert_eq!(texts(&buffer.take_group()), ["young"]);
    }
}
