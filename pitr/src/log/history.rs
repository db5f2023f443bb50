//! Stretches of WAL, newest first, into one history (pure): what began in an older stretch is joined to where it committed, and every
//! transaction knows how many committed after it.
//!
//! Owns the joining and the counting. What a stretch says is `scan.rs`; which stretches are read, and when it is enough, `read.rs`.

use std::collections::VecDeque;

use super::scan::{Ended, Stretch, is_from};
use super::work::{Birth, Work};

/// A transaction of the history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Past {
    /// What is known of it.
    pub ended: Ended,
    /// Transactions that committed after it.
    pub commits_after: u64,
    /// Older WAL that may hold its beginning is not there.
    given_up: bool,
}

impl Past {
    /// One of which everything is known.
    #[cfg(test)]
    pub(super) fn new(ended: Ended, commits_after: u64) -> Self {
        Self {
            ended,
            commits_after,
            given_up: false,
        }
    }

    fn is_unsettled(&self) -> bool {
        self.ended.may_have_begun_before && !self.given_up
    }
}

/// Transactions that were asked for, newest first.
#[derive(Clone, Debug, Default)]
pub(super) struct History {
    past: Vec<Past>,
    commits: u64,
    overflowed: bool,
}

impl History {
    /// A history behind which so many transactions are known to follow.
    pub(super) fn new(commits_after: u64) -> Self {
        Self {
            commits: commits_after,
            ..Self::default()
        }
    }

    /// Adds the stretch before those that were added; gives the relations that are known to have been made in it.
    pub(super) fn add_older(&mut self, mut stretch: Stretch) -> VecDeque<Birth> {
        for past in &mut self.past {
            if past.is_unsettled() {
                join(&mut past.ended, &mut stretch);
            }
        }
        let commits = stretch.commits;
        for ended in std::mem::take(&mut stretch.ended).into_iter().rev() {
            let later_here = commits
                .saturating_sub(ended.commits_before)
                .saturating_sub(1);
            self.past.push(Past {
                commits_after: self.commits.saturating_add(later_here),
                given_up: false,
                ended,
            });
        }
        self.commits = self.commits.saturating_add(commits);
        self.overflowed |= stretch.overflowed;
        stretch.born
    }

    /// Transactions, newest first.
    pub(super) fn past(&self) -> &[Past] {
        &self.past
    }

    /// Lets go of those that are not wanted after all, and of those that are older than `count` that are.
    pub(super) fn retain(&mut self, count: usize, wanted: impl Fn(&Ended) -> bool) {
        self.past
            .retain(|past| past.ended.may_have_begun_before || wanted(&past.ended));
        let settled = self.past.iter().enumerate();
        let mut settled = settled.filter(|(_, past)| !past.is_unsettled());
        if let Some((last, _)) = count.checked_sub(1).and_then(|index| settled.nth(index)) {
            self.past.truncate(last.saturating_add(1));
        }
    }

    /// Of how many nothing is left to find out.
    pub(super) fn settled(&self) -> usize {
        self.past.iter().filter(|past| !past.is_unsettled()).count()
    }

    /// What comes next does not continue what was added: what began before will not be found.
    pub(super) fn give_up(&mut self) {
        for past in &mut self.past {
            past.given_up |= past.ended.may_have_begun_before;
        }
    }

    /// Whether older WAL may tell more of any.
    pub(super) fn has_unsettled(&self) -> bool {
        self.past.iter().any(Past::is_unsettled)
    }

    /// Whether something found no room.
    pub(super) fn overflowed(&self) -> bool {
        self.overflowed
    }
}

fn join(ended: &mut Ended, stretch: &mut Stretch) {
    let mut before = Work::default();
    let parts = [ended.record.xid]
        .into_iter()
        .chain(ended.record.subtransactions.iter().copied());
    for xid in parts {
        if let Some(part) = stretch.open.remove(&xid) {
            before.absorb(part);
        }
    }
    before.carry(ended.commits_before);
    if ended.record.gid.is_none() {
        ended.record.gid = before.gid.take().map(String::from);
    }
    stretch.born.extend(std::mem::take(&mut before.born));
    // A row that was deleted in this same stretch was looked for there.
    if let Some(row) = ended.work.dropped_database_row
        && let Some(mark) = stretch.in_place.get(&row)
    {
        let mut mark = *mark;
        mark.commits = mark.commits.saturating_add(ended.commits_before);
        ended.work.mark_early(mark);
        ended.work.dropped_database_row = None;
    }
    let made_files = before.files.has_empty();
    ended.work.absorb(before);
    let is_unknown = ended.work.is_emptiness_unknown || made_files;
    ended.work.is_emptiness_unknown = is_unknown && ended.work.files.has_empty();
    let began = stretch
        .first_next_xid
        .is_some_and(|next| is_from(ended.record.xid, next));
    ended.may_have_begun_before = !began || ended.work.dropped_database_row.is_some();
    ended.commits_before = ended.commits_before.saturating_add(stretch.commits);
}

#[cfg(test)]
mod tests {
    use super::super::scan::Scan;
    use super::super::work::{Change, End, RowCounts};
    use super::*;
    use proptest::prelude::*;
    use wal_format::{Lsn, RelationLocator, Timestamp};

    fn file(number: u32) -> RelationLocator {
        RelationLocator {
            tablespace: 1664,
            database: 0,
            relation: number,
        }
    }

    /// (transaction, change)
    type Step = (u32, Change);

    fn all(_: &Ended) -> bool {
        true
    }

    fn scan(steps: &[Step], from: usize) -> Stretch {
        let mut scan = Scan::new(1262, 1000, &all);
        for (number, (xid, change)) in steps.iter().enumerate() {
            let start = Lsn::new((from + number + 1) as u64 * 100);
            scan.observe(start, start.saturating_add(80), 80, *xid, change.clone());
        }
        scan.finish()
    }

    fn history(steps: &[Step], cuts: &[usize]) -> Vec<Past> {
        let mut history = History::default();
        let mut end = steps.len();
        for cut in cuts.iter().rev().chain([&0]) {
            history.add_older(scan(&steps[*cut..end], *cut));
            end = *cut;
        }
        history.past().to_vec()
    }

    fn step() -> impl Strategy<Value = Step> {
        let xid = 10_u32..16;
        (xid, 0_u8..8, 1_u32..4).prop_map(|(xid, what, number)| match what {
            0 => (
                0,
                Change::InPlace {
                    file: file(1262),
                    row: (0, xid as u16),
                },
            ),
            1 => (xid, Change::Locks(vec![(xid, 5, number)])),
            2 => (xid, Change::CreateFile(file(number))),
            3 => (
                xid,
                Change::Rows {
                    file: file(1262),
                    rows: RowCounts {
                        deleted: 1,
                        ..RowCounts::default()
                    },
                    deleted: Some((0, xid as u16)),
                },
            ),
            _ => (
                xid,
                Change::Rows {
                    file: file(number),
                    rows: RowCounts {
                        inserted: u64::from(number),
                        ..RowCounts::default()
                    },
                    deleted: None,
                },
            ),
        })
    }

    fn end(xid: u32, committed: bool, subtransactions: Vec<u32>) -> Step {
        let end = End {
            xid,
            committed,
            time: Timestamp(0),
            gid: None,
            database: 5,
            subtransactions,
            dropped_files: Vec::new(),
            dropped_relations: None,
        };
        (xid, Change::End(end))
    }

    #[test]
    fn what_was_prepared_or_made_before_a_cut_is_joined() {
        let mut swapped = end(10, true, vec![]);
        let Change::End(ended) = &mut swapped.1 else {
            panic!("an end")
        };
        ended.dropped_files = vec![file(2)];
        let steps = [
            (0, Change::NextXid(10)),
            (10, Change::CreateFile(file(3))),
            (10, Change::Prepared("two".into())),
            (10, Change::Blocks(vec![file(3)])),
            swapped,
        ];
        let check = |cuts: &[usize], is_unknown: bool, is_empty: bool| {
            let past = history(&steps, cuts);
            let ended = &past[0].ended;
            assert_eq!(ended.record.gid.as_deref(), Some("two"), "{cuts:?}");
            assert_eq!(ended.work.is_emptiness_unknown, is_unknown, "{cuts:?}");
            assert_eq!(ended.work.files.has_empty(), is_empty, "{cuts:?}");
        };
        check(&[], false, false);
        check(&[4], false, false);
        // What was written into the file is in a stretch that does not know it: nobody may say that it is empty.
        check(&[3], true, true);
        check(&[2], true, true);
        check(&[1], false, false);
    }

    proptest! {
        /// However WAL is cut into stretches, the history is that of all of it in one.
        #[test]
        fn cuts_change_nothing(
            steps in proptest::collection::vec(step(), 0..60),
            cuts in proptest::collection::vec(0_usize..60, 0..5),
            ends in proptest::collection::vec(0_usize..60, 6),
        ) {
            let mut steps = steps;
            // A transaction drops at most one database.
            let mut dropped = std::collections::BTreeSet::new();
            steps.retain(|(xid, change)| {
                !matches!(change, Change::Rows { deleted: Some(_), .. }) || (*xid < 14 && dropped.insert(*xid))
            });
            // Nobody has begun at the start; each transaction ends once; 15 is a subtransaction of 14.
            steps.insert(0, (0, Change::NextXid(10)));
            for (number, place) in ends.iter().enumerate().take(5) {
                let xid = 10 + number as u32;
                let place = 1 + place % steps.len();
                let sub = if xid == 14 { vec![15] } else { vec![] };
                let of = |step: &Step| step.0 == xid || sub.contains(&step.0);
                let mut number = 0;
                steps.retain(|step| { number += 1; number <= place || !of(step) });
                let place = place.min(steps.len());
                steps.insert(place, end(xid, xid != 12, sub));
            }
            let cuts: Vec<usize> = {
                let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % steps.len()).filter(|cut| *cut > 0).collect();
                cuts.sort_unstable();
                cuts.dedup();
                cuts
            };
            let (whole, cut) = (history(&steps, &[]), history(&steps, &cuts));
            prop_assert_eq!(whole.len(), 4);
            for (whole, cut) in whole.iter().zip(&cut) {
                prop_assert_eq!(&whole.ended.record, &cut.ended.record);
                let mut work = cut.ended.work.clone();
                // It says that it was cut, and only of what is empty.
                prop_assert!(!work.is_emptiness_unknown || work.files.has_empty());
                work.is_emptiness_unknown = false;
                prop_assert_eq!(&whole.ended.work, &work);
                prop_assert_eq!(whole.commits_after, cut.commits_after);
                prop_assert_eq!(whole.ended.commits_before, cut.ended.commits_before);
            }
        }
    }
}
