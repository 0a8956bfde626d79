//! What the publisher's callers and its task share: the buffer, who waits for what in it, and what became of it all.

use std::collections::HashMap;
use std::sync::MutexGuard;
use std::time::Instant;

use crate::connect::outage::Outage;
use crate::error::{Error, Result};
use crate::handover::completion::Completion;
use crate::handover::item::{Item, Recipient};
use crate::lock::Mutex;
use crate::publish::buffer::{Buffer, Outgoing};

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
    /// Messages waiting now.
    pub waiting_count: usize,
    /// Bytes waiting now.
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

/// What is in it.
pub struct Contents {
    /// The messages.
    pub buffer: Buffer,
    /// Failures to be told by a flush.
    pub unreported: Unreported,
    /// Counters.
    pub stats: PublisherStats,
    /// Whether the publisher's task runs.
    pub is_running: bool,
    /// Whether nothing more is accepted.
    pub is_closed: bool,
    /// Who waits for the task to end, and when it must have.
    pub closing: Option<(Completion, Instant)>,
    sequences: HashMap<String, u64>,
    space_waiters: Vec<Completion>,
    is_dropping: bool,
}

impl Contents {
    /// The number of the next message on a channel. Numbers are used up in call order, and only by messages that could
    /// be encoded.
    pub fn next_sequence(&self, channel: &str) -> u64 {
        self.sequences.get(channel).map_or(1, |last| last + 1)
    }

    /// Append a message, which uses its number up.
    pub fn append(&mut self, outgoing: Outgoing) {
        if outgoing.sequence.is_some() {
            self.use_sequence(&outgoing.channel);
        }
        self.is_dropping = false;
        self.buffer.append(outgoing);
    }

    /// Give a message up for lack of room. It keeps its number, so that receivers notice. The error is for the first one
    /// only of those in a row.
    pub fn give_up(&mut self, channel: &str) -> Option<Error> {
        self.use_sequence(channel);
        let error = self.buffer.full_error();
        self.stats.failed += 1;
        self.stats.dropped += 1;
        self.unreported.add(&error);
        let is_first = !std::mem::replace(&mut self.is_dropping, true);
        is_first.then_some(error)
    }

    fn use_sequence(&mut self, channel: &str) {
        match self.sequences.get_mut(channel) {
            Some(last) => *last += 1,
            None => drop(self.sequences.insert(channel.to_owned(), 1)),
        }
    }

    /// Who waits for room, or for the end.
    pub fn take_space_waiters(&mut self) -> Vec<Completion> {
        std::mem::take(&mut self.space_waiters)
    }
}

/// See the module documentation.
pub struct Outbox {
    contents: Mutex<Contents>,
    recipient: Recipient,
    /// Why nothing can be committed.
    pub outage: Outage,
}

impl Outbox {
    /// An empty one that reports to `recipient` what nobody waits for.
    pub fn new(buffer: Buffer, recipient: Recipient) -> Self {
        let contents = Contents {
            buffer,
            unreported: Unreported::default(),
            stats: PublisherStats::default(),
            is_running: false,
            is_closed: false,
            closing: None,
            sequences: HashMap::new(),
            space_waiters: Vec::new(),
            is_dropping: false,
        };
        Self { contents: Mutex::new(contents), recipient, outage: Outage::default() }
    }

    /// The contents, for this caller alone.
    pub fn lock(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock()
    }

    /// The contents, while messages are accepted.
    pub fn open(&self) -> Result<MutexGuard<'_, Contents>> {
        let contents = self.lock();
        if contents.is_closed { Err(Error::Closed("publisher")) } else { Ok(contents) }
    }

    /// Report a failure that concerns the connection, or messages that nobody waits for.
    pub fn report(&self, error: &Error) {
        self.recipient.push(Item::Failure(error.clone()));
    }

    /// Keep `completion` until there is room.
    pub fn when_space(&self, completion: Completion) {
        let mut contents = self.lock();
        if contents.is_closed || !contents.buffer.is_full() {
            drop(contents);
            completion.finish(Ok(()));
        } else {
            contents.space_waiters.push(completion);
        }
    }

    /// Put messages that were certainly not committed back in front.
    pub fn put_back(&self, group: Vec<Outgoing>) {
        self.lock().buffer.put_back(group);
    }

    /// Report the fate of messages and release their space.
    pub fn settle(&self, group: Vec<Outgoing>, result: &Result<()>) {
        let mut unobserved = false;
        let mut contents = self.lock();
        let stats = &mut contents.stats;
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
            contents.buffer.release(&outgoing);
            match (outgoing.completion, result) {
                (Some(completion), _) => completions.push(completion),
                (None, Ok(())) => {}
                (None, Err(error)) => {
                    unobserved = true;
                    contents.unreported.add(error);
                }
            }
        }
        let waiters = if contents.buffer.is_full() { Vec::new() } else { contents.take_space_waiters() };
        // Whoever is told goes on at once, often with the next message: not into our lock.
        drop(contents);
        Completion::finish_all(completions, &result.clone());
        Completion::finish_all(waiters, &Ok(()));
        if let (true, Err(error)) = (unobserved, result) {
            self.report(error);
        }
    }

    /// Fail the messages in front that `is_hit` selects.
    pub fn fail_while(&self, error: &Error, is_hit: impl Fn(&Outgoing) -> bool) {
        let failed = self.lock().buffer.take_while(is_hit);
        if !failed.is_empty() {
            self.settle(failed, &Err(error.clone()));
        }
    }
}
