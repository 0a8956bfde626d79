//! What went missing, as it is told to the application.

use std::collections::BTreeMap;
use std::time::SystemTime;

/// Why messages are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Sequence numbers of one sender never came.
    Hole,
    /// The listening session was lost and is active again.
    Reconnect,
    /// Python did not keep up, and its queue was full.
    Overflow,
    /// An attachment was gone, unreadable or too large.
    Attachment,
}

impl Reason {
    /// The word that Python uses.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hole => "hole",
            Self::Reconnect => "reconnect",
            Self::Overflow => "overflow",
            Self::Attachment => "attachment",
        }
    }
}

/// Messages that will not come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// Why.
    pub reason: Reason,
    /// Namespace; `None` for all.
    pub nsp: Option<String>,
    /// Who sent them; `None` for anybody.
    pub sender: Option<String>,
    /// How many; `None` when nobody can know.
    pub missing: Option<u64>,
    /// The last moment at which nothing was missing.
    pub since: SystemTime,
}

/// Most senders that one overflow tells apart; what further ones lost is counted together.
const SENDERS: usize = 1000;

/// Messages dropped one after the other because there was no room, by namespace and sender.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overflow {
    since: SystemTime,
    missing: BTreeMap<(Option<String>, Option<String>), u64>,
}

impl Overflow {
    /// The first dropped message.
    pub fn of(nsp: Option<String>, sender: Option<String>) -> Self {
        Self { since: SystemTime::now(), missing: BTreeMap::from([((nsp, sender), 1)]) }
    }

    /// What a gap says, where there is no room for one more gap.
    pub fn from_gap(gap: Gap) -> Self {
        let Gap { nsp, sender, missing, since, .. } = gap;
        Self { since, missing: BTreeMap::from([((nsp, sender), missing.unwrap_or(1))]) }
    }

    /// Add what was dropped later.
    pub fn merge(&mut self, other: Self) {
        self.since = self.since.min(other.since);
        for ((nsp, sender), count) in other.missing {
            let key = (nsp, sender);
            let is_kept = self.missing.contains_key(&key) || self.missing.len() < SENDERS;
            let key = if is_kept { key } else { (None, None) };
            *self.missing.entry(key).or_default() += count;
        }
    }

    /// How many in all.
    pub fn missing(&self) -> u64 {
        self.missing.values().sum()
    }

    /// One gap for each sender.
    pub fn into_gaps(self) -> impl Iterator<Item = Gap> {
        let since = self.since;
        self.missing.into_iter().map(move |((nsp, sender), count)| Gap {
            reason: Reason::Overflow,
            nsp,
            sender,
            missing: Some(count),
            since,
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
        let gaps: Vec<Gap> = overflow.into_gaps().collect();
        assert!(gaps.len() <= SENDERS + 1);
        assert_eq!(gaps.iter().filter_map(|gap| gap.missing).sum::<u64>(), 5003);
        let counted = |sender: &str| gaps.iter().find(|gap| gap.sender.as_deref() == Some(sender)).unwrap().missing;
        assert_eq!((counted("a"), counted("b")), (Some(2), Some(1)));
    }
}
