//! Up to which version the table is final, determined from the locks that writers hold on its sequence.
//!
//! Versions are drawn in order but committed in any order, so the highest visible version is not a safe position: a
//! lower one may still be committed. `nextval` locks the sequence before it draws a version, and keeps the lock until
//! the end of the top-level transaction, regardless of savepoints. Therefore, if `last` is read *before* the lock's
//! holders, every writer of a version up to `last` is either among the holders or has ended. PostgreSQL makes a commit
//! visible before it releases locks, so rows read *after* the holders are complete up to `last` when there are no
//! holders.
//!
//! When there are holders, each one bounds what is settled: it has drawn nothing up to the version that was the last one
//! at the latest look that did not show it. So an event waits only for transactions that may come before it, whatever
//! others begin meanwhile, and new writers cannot delay it for ever.
//!
//! All of this requires that `last` has been drawn already. A plain `SELECT last_value` may be ahead of that; see
//! `sql_last` in `reader.rs`.

use std::collections::{BTreeMap, BTreeSet};

/// Transactions, as `pg_locks.virtualtransaction` names them.
pub type Holders = BTreeSet<String>;

/// See the module documentation. It does no I/O; the caller queries the server and passes the results.
#[derive(Debug, Default, Clone)]
pub struct Watermark {
    settled: i64,
    /// The last version at the latest look.
    last: i64,
    /// The holders at the latest look, each with a version up to which it has drawn none.
    holders: BTreeMap<String, i64>,
}

impl Watermark {
    /// All versions up to this one are final.
    pub fn settled(&self) -> i64 {
        self.settled
    }

    /// Record the sequence's last version (0: none drawn) and the holders of its lock, which must be read after it.
    /// Returns the settled version, which is valid for rows read after both.
    pub fn observe(&mut self, last: i64, holders: &Holders) -> i64 {
        let bound_of = |holder: &String| match self.holders.get(holder) {
            Some(bound) => *bound,
            // A prepared transaction that the server recovered at its start; its previous name is unknown.
            None if holder.starts_with("-1/") => self.settled,
            None => self.last.max(self.settled),
        };
        let now: BTreeMap<_, _> = holders.iter().map(|holder| (holder.clone(), bound_of(holder))).collect();
        self.settled = self.settled.max(now.values().copied().min().unwrap_or(last));
        (self.last, self.holders) = (last, now);
        self.settled
    }

    /// Start again at the version of an event before which nothing can be added any more: the settled mark. Required
    /// after every lost connection, because the server may have crashed. After a crash the sequence can assign versions
    /// again that were drawn but never committed, so versions that counted as settled for that reason are not settled
    /// any more. The versions of committed events are safe, because their commit also wrote the sequence's state.
    pub fn restart(&mut self, position: i64) {
        *self = Self { settled: position, ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn holders(names: &[&str]) -> Holders {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn nobody_writes() {
        let mut watermark = Watermark::default();
        assert_eq!(watermark.observe(0, &holders(&[])), 0);
        assert_eq!(watermark.observe(7, &holders(&[])), 7);
        assert_eq!(watermark.observe(5, &holders(&[])), 7, "never goes back by itself");
    }

    #[test]
    fn who_began_later_holds_up_only_what_is_later() {
        let mut watermark = Watermark::default();
        assert_eq!(watermark.observe(1, &holders(&["1/1"])), 0);
        assert_eq!(watermark.observe(2, &holders(&["1/1"])), 0);
        assert_eq!(watermark.observe(3, &holders(&["1/1", "2/9"])), 0);
        assert_eq!(watermark.observe(4, &holders(&["2/9"])), 2);
        assert_eq!(watermark.observe(9, &holders(&["2/9", "3/5"])), 2);
        assert_eq!(watermark.observe(9, &holders(&["3/5"])), 4);
        assert_eq!(watermark.observe(9, &holders(&[])), 9);
    }

    #[test]
    fn a_version_is_final_without_those_that_may_have_drawn_it() {
        let mut watermark = Watermark::default();
        assert_eq!(watermark.observe(3, &holders(&["1/1", "2/9"])), 0);
        assert_eq!(watermark.observe(8, &holders(&["2/9", "3/1"])), 0);
        assert_eq!(watermark.observe(9, &holders(&["3/1"])), 3, "others may write on");
        assert_eq!(watermark.observe(9, &holders(&["3/1"])), 3);
        assert_eq!(watermark.observe(12, &holders(&["4/1"])), 9);
    }

    #[test]
    fn a_recovered_transaction_could_be_any_of_them() {
        let mut watermark = Watermark::default();
        watermark.observe(3, &holders(&["1/1"]));
        assert_eq!(watermark.observe(5, &holders(&["-1/750"])), 0);
        assert_eq!(watermark.observe(5, &holders(&[])), 5);
    }

    /// What a writer does in the model below.
    #[derive(Debug, Clone)]
    enum Step {
        Draw(usize),
        Commit(usize),
        Rollback(usize),
        /// The reader's three steps, with others in between.
        ReadLast,
        ReadHolders,
        ReadRows,
        /// The reader keeps its position for the next reader.
        Mark,
        /// Another reader begins, which knows the mark and nothing else, or the server crashes. A crash loses what was drawn
        /// last, up to so many versions, as far as nothing of it was committed.
        Restart,
        Crash(i64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..4_usize).prop_map(Step::Draw),
            3 => (0..4_usize).prop_map(Step::Commit),
            1 => (0..4_usize).prop_map(Step::Rollback),
            2 => Just(Step::ReadLast),
            2 => Just(Step::ReadHolders),
            2 => Just(Step::ReadRows),
            1 => Just(Step::Mark),
            1 => Just(Step::Restart),
            1 => (0..8_i64).prop_map(Step::Crash),
        ]
    }

    proptest! {
        /// Every version that is committed, at the end or earlier, is visible at the read that settles it.
        #[test]
        fn what_is_settled_is_complete(steps in proptest::collection::vec(step(), 1..200)) {
            let mut open: BTreeMap<usize, Vec<i64>> = BTreeMap::new();
            let mut generation = [0_u32; 4];
            let (mut last, mut visible) = (0_i64, BTreeSet::new());
            let (mut seen_last, mut settled) = (None, None);
            let (mut position, mut mark, mut seen) = (0_i64, 0_i64, BTreeSet::new());
            let mut watermark = Watermark::default();
            for step in steps {
                match step {
                    Step::Draw(writer) => {
                        last += 1;
                        open.entry(writer).or_default().push(last);
                    }
                    Step::Commit(writer) => {
                        visible.extend(open.remove(&writer).unwrap_or_default());
                        generation[writer] += 1;
                    }
                    Step::Rollback(writer) => {
                        open.remove(&writer);
                        generation[writer] += 1;
                    }
                    Step::ReadLast => (seen_last, settled) = (Some(last), None),
                    Step::ReadHolders => {
                        if let Some(last) = seen_last.take() {
                            let names = open.keys().map(|&w| format!("{w}/{}", generation[w])).collect();
                            settled = Some(watermark.observe(last, &names));
                        }
                    }
                    Step::ReadRows => {
                        if let Some(settled) = settled.take() {
                            seen.extend(visible.iter().filter(|&&version| version > position && version <= settled));
                            // Positions are versions of events.
                            position = seen.last().copied().unwrap_or(position).max(position);
                        }
                    }
                    Step::Mark => mark = mark.max(position),
                    Step::Restart => {
                        watermark.restart(mark);
                        (seen_last, settled) = (None, None);
                        // What the one before has read beyond the mark comes again.
                        seen.split_off(&(mark + 1));
                        position = mark;
                    }
                    Step::Crash(lost) => {
                        open.clear();
                        last = visible.last().copied().unwrap_or(0).max(last - lost);
                        generation = generation.map(|generation| generation + 1);
                        watermark.restart(mark);
                        (seen_last, settled) = (None, None);
                    }
                }
            }
            for versions in open.into_values() {
                visible.extend(versions);
            }
            let expected: BTreeSet<i64> = visible.range(..=position).copied().collect();
            prop_assert_eq!(seen, expected);
        }
    }
}
