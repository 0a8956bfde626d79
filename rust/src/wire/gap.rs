//! Gaps: lost messages, as reported to the application.

use std::collections::BTreeMap;
use std::time::SystemTime;

/// Why messages are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Sequence numbers of one sender were skipped.
    Hole,
    /// The listening session was lost and is active again.
    Reconnect,
    /// Python did not read fast enough, and its queue was full.
    Overflow,
    /// An attachment was gone, unreadable or too large.
    Attachment,
}

impl Reason {
    /// The reason's name in the Python API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hole => "hole",
            Self::Reconnect => "reconnect",
            Self::Overflow => "overflow",
            Self::Attachment => "attachment",
        }
    }
}

/// Missing messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// Why.
    pub reason: Reason,
    /// Namespace; `None` for all namespaces.
    pub nsp: Option<String>,
    /// The sender; `None` for all senders.
    pub sender: Option<String>,
    /// Number of missing messages; `None` when it is unknown.
    pub missing: Option<u64>,
    /// The last moment at which nothing was missing.
    pub since: SystemTime,
}

/// Maximum number of senders that one overflow lists. The losses of further senders are counted together.
const SENDERS: usize = 1000;

/// Consecutive messages that were dropped for lack of room, by namespace and sender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overflow {
    since: SystemTime,
    missing: BTreeMap<(Option<String>, Option<String>), u64>,
}

impl Overflow {
    /// An overflow with the first dropped message.
    pub fn of(nsp: Option<String>, sender: Option<String>) -> Self {
        Self { since: SystemTime::now(), missing: BTreeMap::from([((nsp, sender), 1)]) }
    }

    /// An overflow with the content of a gap, when there is no room for another gap.
    pub fn from_gap(gap: Gap) -> Self {
        let Gap { nsp, sender, missing, since, .. } = gap;
        Self { since, missing: BTreeMap::from([((nsp, sender), missing.unwrap_or(1))]) }
    }

    /// Add messages that were dropped later.
    pub fn merge(&mut self, other: Self) {
        self.since = self.since.min(other.since);
        for ((nsp, sender), count) in other.missing {
            let key = (nsp, sender);
            let is_kept = self.missing.contains_key(&key) || self.missing.len() < SENDERS;
            let key = if is_kept { key } else { (None, None) };
            let missing = self.missing.entry(key).or_default();
            *missing = missing.saturating_add(count);
        }
    }

    /// Total number of missing messages. Saturates, because sequence numbers, and therefore gaps, are whatever a sender
    /// claims.
    pub fn missing(&self) -> u64 {
        self.missing.values().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// One gap for each sender.
    pub fn gaps(&self) -> impl Iterator<Item = Gap> {
        self.missing.iter().map(|((nsp, sender), count)| Gap {
            reason: Reason::Overflow,
            nsp: nsp.clone(),
            sender: sender.clone(),
            missing: Some(*count),
            since: self.since,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overflow_counts_by_sender_and_stays_small() {
        let of = |sender: &str| Overflow::of(Some("/".into()), Some(sender.into()));
        let mut overflow = of("a");
        overflow.merge(of("b"));
        overflow.merge(of("a"));
        for number in 0..5000 {
            overflow.merge(of(&format!("s{number}")));
        }
        let gaps: Vec<Gap> = overflow.gaps().collect();
        assert!(gaps.len() <= SENDERS + 1);
        assert_eq!(gaps.iter().filter_map(|gap| gap.missing).sum::<u64>(), 5003);
        let counted = |sender: &str| gaps.iter().find(|gap| gap.sender.as_deref() == Some(sender)).unwrap().missing;
        assert_eq!((counted("a"), counted("b")), (Some(2), Some(1)));
    }

    #[test]
    fn what_a_sender_claims_cannot_overflow() {
        let claimed = |sender: &str| {
            let (nsp, sender, since) = (Some("/".into()), Some(sender.into()), SystemTime::now());
            Overflow::from_gap(Gap { reason: Reason::Hole, nsp, sender, missing: Some(u64::MAX - 1), since })
        };
        let mut overflow = claimed("a");
        overflow.merge(claimed("a"));
        overflow.merge(claimed("b"));
        assert_eq!(overflow.missing(), u64::MAX);
        assert_eq!(overflow.gaps().next().unwrap().missing, Some(u64::MAX));
    }
}
