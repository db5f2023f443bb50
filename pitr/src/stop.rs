//! Finds in decoded WAL where a recovery stops (pure): the start of the last record to apply, by PostgreSQL's own rules
//! (`recoveryStopsBefore`, `recoveryStopsAfter` in `xlogrecovery.c`, majors 14 to 18).
//!
//! Owns the rules. Does not choose backups or segments (`plan.rs`) and reads nothing (`search.rs`).

use crate::recovery_conf::WalMinimums;
use crate::target::{RecoveryGoal, RecoveryTarget};
use std::collections::BTreeMap;
use wal_format::{Lsn, Parameters, Record, RecordKind, Timestamp};

/// Most open prepared transactions that are kept by name; more are not shown.
const MAX_PREPARED: usize = 1000;

/// Where a recovery stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    /// Start of the last record to apply: what PostgreSQL gets as `recovery_target_lsn`, inclusive.
    pub record: Lsn,
    /// End of the WAL that has to be there: the end of that record, or the start of the first record that is not applied.
    pub needed_to: Lsn,
}

/// What the records seen so far say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The stop is known.
    Reached(Stop),
    /// The target lies before the backup is consistent; the record that shows it starts here.
    BeforeConsistency(Lsn),
    /// The target has not been seen.
    NotReached,
}

/// Looks at records in WAL order until the target is found, and counts what comes after it.
#[derive(Clone, Debug)]
pub struct StopFinder {
    goal: RecoveryGoal,
    replay_from: Lsn,
    consistent_at: Lsn,
    verdict: Verdict,
    last: Option<(Lsn, Lsn)>,
    settled: Option<(Lsn, Lsn)>,
    newest_transaction: Option<Timestamp>,
    newest_seen: Option<Timestamp>,
    transactions_after: u64,
    prepared: BTreeMap<u32, String>,
    minimums: Option<WalMinimums>,
}

impl StopFinder {
    /// For a backup whose replay starts at `replay_from` (its start LSN) and which is consistent at `consistent_at` (its stop LSN).
    pub fn new(goal: RecoveryGoal, replay_from: Lsn, consistent_at: Lsn) -> Self {
        Self {
            goal,
            replay_from,
            consistent_at,
            verdict: Verdict::NotReached,
            last: None,
            settled: None,
            newest_transaction: None,
            newest_seen: None,
            transactions_after: 0,
            prepared: BTreeMap::new(),
            minimums: None,
        }
    }

    /// Takes the next record.
    pub fn observe(&mut self, record: &Record) {
        if record.start < self.replay_from {
            return;
        }
        if let Some((_, time)) = end_of_transaction(record) {
            self.newest_seen = self.newest_seen.max(Some(time));
        }
        // Segments that cannot hold the stop are passed over: what ended in them is not known.
        if self
            .last
            .is_some_and(|(start, _)| start != record.header.previous)
        {
            self.settled = None;
        }
        if self.verdict == Verdict::NotReached {
            self.verdict = self.judge(record);
        }
        let applied = match self.verdict {
            Verdict::NotReached => true,
            Verdict::Reached(stop) => record.start <= stop.record,
            Verdict::BeforeConsistency(at) => record.start < at,
        };
        if applied {
            self.apply(record);
        } else if end_of_transaction(record).is_some() {
            self.transactions_after = self.transactions_after.saturating_add(1);
        }
    }

    /// What is known, while more records may come.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// What is known after the last record of all stored WAL.
    pub fn verdict_at_end(&self) -> Verdict {
        let Some((start, end)) = self.last.filter(|_| self.verdict == Verdict::NotReached) else {
            return self.verdict;
        };
        let everything = match &self.goal.target {
            RecoveryTarget::Latest => true,
            // Every record that starts before the position is there, although none that starts at it is.
            RecoveryTarget::Lsn(target) => !self.goal.inclusive && *target <= end,
            _ => false,
        };
        match everything {
            false => Verdict::NotReached,
            true if end < self.consistent_at => Verdict::BeforeConsistency(start),
            true => Verdict::Reached(Stop {
                record: start,
                needed_to: end,
            }),
        }
    }

    /// Start and end of the last record seen that would be applied.
    pub fn last_applied(&self) -> Option<(Lsn, Lsn)> {
        self.last
    }

    /// Newest commit or abort among the records that would be applied.
    pub fn newest_transaction(&self) -> Option<Timestamp> {
        self.newest_transaction
    }

    /// Newest commit or abort among all records seen, those after the stop included.
    pub fn newest_seen(&self) -> Option<Timestamp> {
        self.newest_seen
    }

    /// Commits and aborts seen after the stop.
    pub fn transactions_after(&self) -> u64 {
        self.transactions_after
    }

    /// Names of transactions that were prepared in the records seen and neither committed nor rolled back by the stop.
    pub fn prepared_open(&self) -> impl Iterator<Item = &str> {
        self.prepared.values().map(String::as_str)
    }

    /// The largest settings that parameter changes among the records seen ask for.
    pub fn minimums(&self) -> Option<WalMinimums> {
        self.minimums
    }

    fn judge(&self, record: &Record) -> Verdict {
        let transaction = end_of_transaction(record);
        let inclusive = self.goal.inclusive;
        match &self.goal.target {
            RecoveryTarget::Latest => Verdict::NotReached,
            RecoveryTarget::Immediate if record.end >= self.consistent_at => {
                self.stop_after(record)
            }
            RecoveryTarget::Time(target) => match transaction {
                Some((_, time)) if time > *target || (!inclusive && time == *target) => {
                    self.stop_before_transaction(record)
                }
                _ => Verdict::NotReached,
            },
            RecoveryTarget::Lsn(target) if record.start >= *target => self.stop_at(record),
            RecoveryTarget::Xid(target) if transaction.is_some_and(|(xid, _)| xid == *target) => {
                match inclusive {
                    true => self.stop_after(record),
                    false => self.stop_before_transaction(record),
                }
            }
            RecoveryTarget::Name(target) => match &record.kind {
                Some(RecordKind::RestorePoint { name, .. }) if name == target => {
                    self.stop_after(record)
                }
                _ => Verdict::NotReached,
            },
            _ => Verdict::NotReached,
        }
    }

    fn stop_at(&self, record: &Record) -> Verdict {
        if self.goal.inclusive {
            self.stop_after(record)
        } else {
            self.stop_before(record)
        }
    }

    fn stop_after(&self, record: &Record) -> Verdict {
        if record.end < self.consistent_at {
            return Verdict::BeforeConsistency(record.start);
        }
        Verdict::Reached(Stop {
            record: record.start,
            needed_to: record.end,
        })
    }

    /// The record before is named by the link back, so this holds even where the records before were not looked at.
    fn stop_before(&self, record: &Record) -> Verdict {
        if record.start < self.consistent_at {
            return Verdict::BeforeConsistency(record.start);
        }
        Verdict::Reached(Stop {
            record: record.header.previous,
            needed_to: record.start,
        })
    }

    /// PostgreSQL itself would go on up to the record before `record`: for readers the same, as no transaction ends in between, but the
    /// locks of the transaction that is *not* wanted (a DROP TABLE, say) would be replayed and keep readers of a paused server waiting,
    /// and a DROP DATABASE would have marked its victim. So the stop is the last record that settled something.
    fn stop_before_transaction(&self, record: &Record) -> Verdict {
        match self.settled {
            Some((start, end)) if end >= self.consistent_at => Verdict::Reached(Stop {
                record: start,
                needed_to: end,
            }),
            _ => self.stop_before(record),
        }
    }

    fn apply(&mut self, record: &Record) {
        let settles = end_of_transaction(record).is_some()
            || matches!(record.kind, Some(RecordKind::Prepare { .. }))
            // The first record of a consistent server, where no transaction has ended since.
            || (record.end >= self.consistent_at
                && self.last.is_some_and(|(_, end)| end < self.consistent_at));
        if settles {
            self.settled = Some((record.start, record.end));
        }
        self.last = Some((record.start, record.end));
        if let Some((_, time)) = end_of_transaction(record) {
            self.newest_transaction = self.newest_transaction.max(Some(time));
        }
        match &record.kind {
            Some(RecordKind::Prepare { xid, gid, .. }) if self.prepared.len() < MAX_PREPARED => {
                self.prepared.insert(xid.0, gid.clone());
            }
            Some(
                RecordKind::CommitPrepared { xid, .. } | RecordKind::AbortPrepared { xid, .. },
            ) => {
                self.prepared.remove(&xid.0);
            }
            Some(RecordKind::ParameterChange(parameters)) => {
                let changed = minimums_of(parameters);
                self.minimums = Some(
                    self.minimums
                        .map_or(changed, |minimums| minimums.max(changed)),
                );
            }
            _ => {}
        }
    }
}

/// What a record or `pg_control` says of settings. Negative numbers do not occur in valid WAL.
pub fn minimums_of(parameters: &Parameters) -> WalMinimums {
    let count = |value: i32| u32::try_from(value).unwrap_or(0);
    WalMinimums {
        max_connections: count(parameters.max_connections),
        max_worker_processes: count(parameters.max_worker_processes),
        max_wal_senders: count(parameters.max_wal_senders),
        max_prepared_transactions: count(parameters.max_prepared_transactions),
        max_locks_per_transaction: count(parameters.max_locks_per_transaction),
    }
}

/// The transaction that a record ends, and when.
fn end_of_transaction(record: &Record) -> Option<(u32, Timestamp)> {
    match record.kind {
        Some(
            RecordKind::Commit { xid, time }
            | RecordKind::Abort { xid, time }
            | RecordKind::CommitPrepared { xid, time, .. }
            | RecordKind::AbortPrepared { xid, time, .. },
        ) => Some((xid.0, time)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wal_format::{RecordHeader, TransactionId};

    /// Records at 100, 200, …, each 80 bytes long, linked.
    fn records(kinds: Vec<Option<RecordKind>>) -> Vec<Record> {
        let at = |index: usize| Lsn::new(index as u64 * 100);
        let mut index = 0;
        kinds
            .into_iter()
            .map(|kind| {
                index += 1;
                Record {
                    start: at(index),
                    end: at(index).saturating_add(80),
                    header: RecordHeader {
                        total_length: 80,
                        xid: TransactionId(0),
                        previous: at(index - 1),
                        info: 0,
                        resource_manager: 0,
                        crc: 0,
                    },
                    kind,
                }
            })
            .collect()
    }

    fn commit(xid: u32, time: i64) -> Option<RecordKind> {
        Some(RecordKind::Commit {
            xid: TransactionId(xid),
            time: Timestamp(time),
        })
    }

    fn abort(xid: u32, time: i64) -> Option<RecordKind> {
        Some(RecordKind::Abort {
            xid: TransactionId(xid),
            time: Timestamp(time),
        })
    }

    fn point(name: &str) -> Option<RecordKind> {
        Some(RecordKind::RestorePoint {
            name: name.into(),
            time: Timestamp(0),
        })
    }

    fn prepare(xid: u32, gid: &str) -> Option<RecordKind> {
        Some(RecordKind::Prepare {
            xid: TransactionId(xid),
            time: Timestamp(0),
            gid: gid.into(),
        })
    }

    fn commit_prepared(xid: u32, time: i64) -> Option<RecordKind> {
        Some(RecordKind::CommitPrepared {
            xid: TransactionId(xid),
            time: Timestamp(time),
            gid: None,
        })
    }

    /// Start of the last record to apply, or what else is said; the backup is consistent at 280, the end of the record at 200.
    fn find(target: RecoveryTarget, inclusive: bool) -> String {
        let goal = RecoveryGoal { target, inclusive };
        let mut finder = StopFinder::new(goal, Lsn::new(100), Lsn::new(280));
        for record in records(sample()) {
            finder.observe(&record);
        }
        show(finder.verdict_at_end())
    }

    fn show(verdict: Verdict) -> String {
        match verdict {
            Verdict::Reached(stop) => stop.record.as_u64().to_string(),
            Verdict::BeforeConsistency(_) => "early".into(),
            Verdict::NotReached => "none".into(),
        }
    }

    fn sample() -> Vec<Option<RecordKind>> {
        vec![
            commit(10, 1000),          // 100, before the backup is consistent
            None,                      // 200
            commit(11, 2000),          // 300
            point("here"),             // 400
            commit(12, 5000),          // 500, a clock ahead
            commit(13, 3000),          // 600
            prepare(14, "a"),          // 700
            abort(15, 6000),           // 800
            commit_prepared(14, 7000), // 900
            point("here"),             // 1000
            commit(16, 7000),          // 1100
            None,                      // 1200 to 1280
        ]
    }

    #[test]
    fn time_stops_behind_what_settled_before_the_first_end_of_a_transaction_beyond_it() {
        let check = |time: i64, inclusive: &str, exclusive: &str| {
            assert_eq!(
                find(RecoveryTarget::Time(Timestamp(time)), true),
                inclusive,
                "{time}"
            );
            assert_eq!(
                find(RecoveryTarget::Time(Timestamp(time)), false),
                exclusive,
                "{time} exclusive"
            );
        };
        check(999, "early", "early");
        check(1000, "200", "early");
        check(1999, "200", "200");
        check(2000, "300", "200");
        // The commit of 3000 comes after one of 5000, at which recovery stops first.
        check(3000, "300", "300");
        check(4999, "300", "300");
        check(5000, "700", "300");
        check(6000, "800", "700");
        check(6999, "800", "800");
        check(7000, "none", "800");
        check(7001, "none", "none");
    }

    #[test]
    fn what_settled_before_passed_over_segments_is_not_the_stop() {
        let goal = RecoveryGoal {
            target: RecoveryTarget::Time(Timestamp(4000)),
            inclusive: true,
        };
        let mut finder = StopFinder::new(goal, Lsn::new(100), Lsn::new(200));
        let records = records(sample());
        // 400 and the record before it were not looked at.
        for index in [0, 1, 4] {
            finder.observe(&records[index]);
        }
        assert_eq!(show(finder.verdict()), "400");
    }

    #[test]
    fn lsn_stops_at_the_first_record_that_starts_at_or_after_it() {
        let check = |lsn: u64, inclusive: &str, exclusive: &str| {
            assert_eq!(
                find(RecoveryTarget::Lsn(Lsn::new(lsn)), true),
                inclusive,
                "{lsn}"
            );
            assert_eq!(
                find(RecoveryTarget::Lsn(Lsn::new(lsn)), false),
                exclusive,
                "{lsn} exclusive"
            );
        };
        check(50, "early", "early");
        check(200, "200", "early");
        check(201, "300", "200");
        check(280, "300", "200");
        check(300, "300", "200");
        check(301, "400", "300");
        check(1200, "1200", "1100");
        // No record starts there, but all that start before are there up to 1280.
        check(1201, "none", "1200");
        check(1280, "none", "1200");
        check(1281, "none", "none");
    }

    #[test]
    fn xid_stops_at_the_end_of_the_transaction() {
        let check = |xid: u32, inclusive: &str, exclusive: &str| {
            assert_eq!(find(RecoveryTarget::Xid(xid), true), inclusive, "{xid}");
            assert_eq!(
                find(RecoveryTarget::Xid(xid), false),
                exclusive,
                "{xid} exclusive"
            );
        };
        check(10, "early", "early");
        check(11, "300", "200");
        check(15, "800", "700");
        // A prepared transaction ends where it is committed, not where it is prepared.
        check(14, "900", "800");
        check(99, "none", "none");
    }

    #[test]
    fn the_other_targets() {
        for inclusive in [true, false] {
            assert_eq!(find(RecoveryTarget::Latest, inclusive), "1200");
            assert_eq!(find(RecoveryTarget::Immediate, inclusive), "200");
            assert_eq!(find(RecoveryTarget::Name("here".into()), inclusive), "400");
            assert_eq!(
                find(RecoveryTarget::Name("there".into()), inclusive),
                "none"
            );
        }
    }

    #[test]
    fn wal_that_ends_before_consistency_is_never_the_latest() {
        let goal = RecoveryGoal {
            target: RecoveryTarget::Latest,
            inclusive: true,
        };
        let mut finder = StopFinder::new(goal, Lsn::new(100), Lsn::new(5000));
        for record in records(sample()) {
            finder.observe(&record);
        }
        assert_eq!(show(finder.verdict_at_end()), "early");
    }

    #[test]
    fn records_before_the_backups_start_do_not_count() {
        let goal = RecoveryGoal {
            target: RecoveryTarget::Xid(10),
            inclusive: true,
        };
        let mut finder = StopFinder::new(goal, Lsn::new(101), Lsn::new(280));
        for record in records(sample()) {
            finder.observe(&record);
        }
        assert_eq!(finder.verdict_at_end(), Verdict::NotReached);
    }

    #[test]
    fn says_what_is_lost_and_what_stays_open() {
        let at = |lsn: u64| {
            let goal = RecoveryGoal {
                target: RecoveryTarget::Lsn(Lsn::new(lsn)),
                inclusive: true,
            };
            let mut finder = StopFinder::new(goal, Lsn::new(100), Lsn::new(280));
            for record in records(sample()) {
                finder.observe(&record);
            }
            let open: Vec<String> = finder.prepared_open().map(str::to_owned).collect();
            (
                finder.transactions_after(),
                open,
                finder.newest_transaction(),
            )
        };
        assert_eq!(at(700), (3, vec!["a".to_owned()], Some(Timestamp(5000))));
        assert_eq!(at(600), (3, vec![], Some(Timestamp(5000))));
        assert_eq!(at(900), (1, vec![], Some(Timestamp(7000))));
        assert_eq!(at(1100), (0, vec![], Some(Timestamp(7000))));
    }
}
