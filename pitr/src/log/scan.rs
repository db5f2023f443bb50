//! One stretch of WAL, record by record, into the transactions that committed in it (pure): who did what, what is still open at its end,
//! and which may have begun before it.
//!
//! Owns attribution: subtransactions to their transaction, marks to commits, the row of `pg_database` to its drop. Joining stretches is
//! `history.rs`; reading a record is `decode.rs`.

use std::collections::{BTreeMap, VecDeque};

use wal_format::{Glance, Lsn, Record, RecordBody, RecordHeader, RelationLocator, RowChange};

use super::decode::{birth_of, change_of};
use super::open::Open;
use super::work::{Birth, Change, ClusterEvent, End, Mark, Work};

/// Most transactions of a stretch that are kept although they may have begun before it.
const MAX_UNDECIDED: usize = 10_000;
/// Most rows of `pg_database` that are remembered as overwritten.
const MAX_IN_PLACE: usize = 1024;
/// Most moves of databases that are followed at a time.
const MAX_MOVES: usize = 64;
/// Most rewrites that are remembered of a stretch.
const MAX_LINKS: usize = 1024;
/// Most new relations that are remembered of a stretch: the newest.
const MAX_BORN: usize = 16_384;
/// The file of `pg_class`, unless that was rewritten. Relations that people make never get a number that low.
const PG_CLASS: u32 = 1259;
/// Most subtransactions that are kept by number.
const MAX_SUBTRANSACTIONS: usize = 64;

/// A transaction that committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The start of its commit record.
    pub commit: Lsn,
    /// The end of that.
    pub end: Lsn,
    /// What the commit record says; of subtransactions at most 64.
    pub record: End,
    /// How many subtransactions it had.
    pub subtransactions: u64,
    /// What it did.
    pub work: Work,
    /// Whether older WAL may hold records of it.
    pub may_have_begun_before: bool,
    /// Commits of the stretch before it; moved on by every older stretch that was looked at for its beginning.
    pub commits_before: u64,
}

/// A file that took the place of another, for certain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Since when.
    pub commit: Lsn,
    /// The file that was removed.
    pub old: RelationLocator,
    /// The file that took its place.
    pub new: RelationLocator,
    /// The relation's OID.
    pub relation: u32,
}

/// What a stretch of WAL says.
#[derive(Clone, Debug, Default)]
pub(super) struct Stretch {
    /// Transactions that committed and were asked for, oldest first.
    pub(super) ended: VecDeque<Ended>,
    /// All commits.
    pub(super) commits: u64,
    /// What transactions that did not end in it did in it.
    pub(super) open: BTreeMap<u32, Work>,
    /// Rows of `pg_database` that were last overwritten here.
    pub(super) in_place: BTreeMap<(u32, u16), Mark>,
    /// Transactions from this one on began in it.
    pub(super) first_next_xid: Option<u32>,
    /// Files that took another's place.
    pub(super) links: Vec<Link>,
    /// Relations that were made, oldest first.
    pub(super) born: VecDeque<Birth>,
    /// Whether some transactions could not be followed.
    pub(super) overflowed: bool,
}

/// Looks at the records of a stretch in WAL order.
pub(super) struct Scan<'a> {
    /// The file of `pg_database`.
    pg_database: u32,
    /// Most transactions to keep: the newest ones.
    keep: usize,
    /// Whether a transaction is asked for, if all of it is known; or could be.
    wanted: &'a (dyn Fn(&Ended) -> bool + Sync),
    decided: usize,
    undecided: usize,
    /// Databases whose files were copied elsewhere, and the commits since that may be the move's.
    moves: BTreeMap<u32, (Mark, Vec<Lsn>)>,
    open: Open,
    found: Stretch,
}

impl<'a> Scan<'a> {
    /// A scan that keeps the `keep` newest of the transactions that `wanted` accepts. `wanted` must accept what it could accept once the
    /// beginning of the transaction is known.
    pub(super) fn new(
        pg_database: u32,
        keep: usize,
        wanted: &'a (dyn Fn(&Ended) -> bool + Sync),
    ) -> Self {
        Self {
            pg_database,
            keep,
            wanted,
            decided: 0,
            undecided: 0,
            moves: BTreeMap::new(),
            open: Open::default(),
            found: Stretch::default(),
        }
    }

    /// Takes the next record. Of most, the header and the first relation say all that matters.
    #[inline]
    pub(super) fn record(&mut self, record: &Record, body: Option<&RecordBody<'_>>) {
        let (header, xid) = (&record.header, record.header.xid.0);
        match header.glance() {
            Glance::Row(change) => {
                // Which row of pg_database it was matters, too, and which name a row of pg_class gives.
                if let Some(file) = body.and_then(RecordBody::first_relation)
                    && !self.is_pg_database(file)
                    && file.relation != PG_CLASS
                {
                    if xid != 0
                        && let Some(work) = self.open.work(xid)
                    {
                        work.row(file, change);
                        work.note(record.start, header.total_length);
                    }
                    return;
                }
            }
            Glance::Blocks => {
                if xid == 0 {
                    return;
                }
                match self.open.work(xid) {
                    None => return,
                    Some(work) if !work.minds_blocks() => {
                        return work.note(record.start, header.total_length);
                    }
                    Some(_) => {}
                }
            }
            Glance::Action => {}
        }
        // Copies, so that what is not read of most records need not be put into memory.
        self.whole_record(record.start, record.end, *header, body.copied());
    }

    /// The same for a record that must be read as a whole.
    #[inline(never)]
    fn whole_record(
        &mut self,
        start: Lsn,
        end: Lsn,
        header: RecordHeader,
        body: Option<RecordBody<'_>>,
    ) {
        let xid = header.xid.0;
        let Some(parts) = body.and_then(|body| body.parse().ok()) else {
            return self.observe(start, end, header.total_length, xid, Change::None);
        };
        if header.glance() == Glance::Row(RowChange::Inserted)
            && xid != 0
            && let Some(birth) = birth_of(start, &parts, PG_CLASS)
            && let Some(work) = self.open.work(xid)
        {
            work.bear(birth);
        }
        match change_of(&header, &parts) {
            // The two kinds that there are many of.
            Change::End(record) => {
                self.note(start, header.total_length, xid);
                self.end(start, end, record);
            }
            Change::Rows {
                file,
                rows,
                deleted: None,
            } => {
                if xid != 0
                    && let Some(work) = self.open.work(xid)
                {
                    work.rows(file, rows);
                    work.note(start, header.total_length);
                }
            }
            change => self.observe(start, end, header.total_length, xid, change),
        }
    }

    fn note(&mut self, start: Lsn, bytes: u32, xid: u32) {
        if xid != 0
            && let Some(work) = self.open.work(xid)
        {
            work.note(start, bytes);
        }
    }

    /// Takes the next record: where it starts and ends, its length, its transaction (0: none), what it says.
    pub(super) fn observe(&mut self, start: Lsn, end: Lsn, bytes: u32, xid: u32, change: Change) {
        let mark = Mark {
            lsn: start,
            commits: self.found.commits,
        };
        match change {
            Change::NextXid(xid) => {
                self.found.first_next_xid.get_or_insert(xid);
                return;
            }
            Change::End(record) => {
                self.note(start, bytes, xid);
                return self.end(start, end, record);
            }
            // Written for the holders of all locks at once, too.
            Change::Locks(locks) => {
                for (xid, database, relation) in locks {
                    if let Some(work) = self.open.work(xid) {
                        work.lock((database, relation));
                        work.first_lock.get_or_insert(mark);
                    }
                }
            }
            Change::InPlace { file, row } if self.is_pg_database(file) => {
                let rows = &mut self.found.in_place;
                if rows.len() < MAX_IN_PLACE || rows.contains_key(&row) {
                    rows.insert(row, mark);
                }
            }
            // Of ALTER DATABASE … SET TABLESPACE only the commit between these two has a number.
            Change::Cluster(ClusterEvent::MoveDatabase(database))
                if xid == 0 && self.moves.len() < MAX_MOVES =>
            {
                self.moves.insert(database, (mark, Vec::new()));
            }
            Change::Cluster(ClusterEvent::DropDatabase(database)) if xid == 0 => {
                self.moved(database);
            }
            change if xid != 0 => self.apply(xid, mark, change),
            _ => {}
        }
        self.note(start, bytes, xid);
    }

    /// The old files of a moved database are removed: the move is the one transaction in between that changed `pg_database`, if it is one.
    fn moved(&mut self, database: u32) {
        let Some((begun, commits)) = self.moves.remove(&database) else {
            return;
        };
        let [commit] = commits.as_slice() else {
            return;
        };
        let mut ended = self.found.ended.iter_mut();
        if let Some(ended) = ended.find(|ended| ended.commit == *commit) {
            let mut mark = begun;
            mark.commits = ended.commits_before.saturating_sub(begun.commits);
            ended.work.mark_early(mark);
            ended.work.push_event(ClusterEvent::MoveDatabase(database));
        }
    }

    fn is_pg_database(&self, file: RelationLocator) -> bool {
        file.database == 0 && file.relation == self.pg_database
    }

    fn apply(&mut self, xid: u32, mark: Mark, change: Change) {
        let dropped_row = match &change {
            Change::Rows {
                file,
                deleted: Some(row),
                ..
            } if self.is_pg_database(*file) => Some(*row),
            _ => None,
        };
        let begun = dropped_row.and_then(|row| self.found.in_place.get(&row).copied());
        let Some(work) = self.open.work(xid) else {
            return;
        };
        match (dropped_row, begun) {
            (Some(_), Some(begun)) => work.mark_early(begun),
            (Some(row), None) => work.dropped_database_row = Some(row),
            (None, _) => {}
        }
        match change {
            Change::Rows { file, rows, .. } => work.rows(file, rows),
            Change::Prepared(gid) => work.gid = Some(gid),
            Change::Blocks(files) => work.wrote(&files),
            Change::CreateFile(file) => work.created(file),
            Change::Truncate {
                database,
                relations,
            } => {
                for relation in relations {
                    work.truncate((database, relation));
                }
            }
            Change::Cluster(event) => {
                work.push_event(event);
                if !matches!(event, ClusterEvent::CreateTablespace(_)) {
                    work.mark_early(mark);
                }
            }
            Change::None
            | Change::Locks(_)
            | Change::InPlace { .. }
            | Change::NextXid(_)
            | Change::End(_) => {}
        }
    }

    fn end(&mut self, start: Lsn, end: Lsn, mut record: End) {
        let mut work = self.open.remove(record.xid).unwrap_or_default();
        for xid in &record.subtransactions {
            if let Some(part) = self.open.remove(*xid) {
                work.absorb(part);
            }
        }
        if !record.committed {
            return self.open.recycle(work);
        }
        let changes_pg_database = !self.moves.is_empty()
            && work
                .files
                .iter()
                .any(|(file, done)| self.is_pg_database(*file) && done.rows.updated > 0);
        if changes_pg_database {
            for (begun, commits) in self.moves.values_mut() {
                if work.first.is_some_and(|first| first > begun.lsn) && commits.len() < 2 {
                    commits.push(start);
                }
            }
        }
        let commits_before = self.found.commits;
        self.found.commits += 1;
        work.settle(commits_before);
        if record.gid.is_none() {
            record.gid = work.gid.take().map(String::from);
        }
        self.found.born.extend(std::mem::take(&mut work.born));
        while self.found.born.len() > MAX_BORN {
            self.found.born.pop_front();
        }
        let subtransactions = record.subtransactions.len() as u64;
        record.subtransactions.truncate(MAX_SUBTRANSACTIONS);
        let began_here = self
            .found
            .first_next_xid
            .is_some_and(|next| is_from(record.xid, next));
        let ended = Ended {
            commit: start,
            end,
            record,
            subtransactions,
            may_have_begun_before: !began_here || work.dropped_database_row.is_some(),
            work,
            commits_before,
        };
        if let Some(link) = link_of(&ended).filter(|_| self.found.links.len() < MAX_LINKS) {
            self.found.links.push(link);
        }
        match (self.wanted)(&ended) {
            true => self.keep(ended),
            false => self.open.recycle(ended.work),
        }
    }

    /// Keeps one more, and lets go of the oldest that cannot be among the newest any more.
    fn keep(&mut self, ended: Ended) {
        match ended.may_have_begun_before {
            true => self.undecided += 1,
            false => self.decided += 1,
        }
        self.found.ended.push_back(ended);
        while self.decided > self.keep || self.undecided > MAX_UNDECIDED {
            match self.found.ended.pop_front() {
                Some(oldest) if oldest.may_have_begun_before => {
                    self.undecided -= 1;
                    self.found.overflowed |= self.decided < self.keep;
                }
                Some(_) => self.decided -= 1,
                None => return,
            }
        }
    }

    /// What was found.
    pub(super) fn finish(mut self) -> Stretch {
        let total = self.found.commits;
        self.found.overflowed |= self.open.overflowed;
        self.found.open = self.open.into_works();
        for work in self.found.open.values_mut() {
            work.settle(total);
        }
        for mark in self.found.in_place.values_mut() {
            mark.commits = total.saturating_sub(mark.commits);
        }
        self.found
    }
}

/// Whether a transaction number is `first` or comes after it: numbers are counted in a circle.
pub(super) fn is_from(xid: u32, first: u32) -> bool {
    xid.wrapping_sub(first) < 1 << 31
}

/// A rewrite that can be nothing else: one relation locked, one file made, one removed, no relation dropped.
fn link_of(ended: &Ended) -> Option<Link> {
    let work = &ended.work;
    let [old] = ended.record.dropped_files.as_slice() else {
        return None;
    };
    let mut created = work.files.iter().filter(|(_, file)| file.created);
    let (new, _) = created.next()?;
    let mut locks = work.locks.iter();
    let (database, relation) = locks.next()?;
    let certain = created.next().is_none()
        && locks.next().is_none()
        && !work.overflowed
        && !ended.may_have_begun_before
        && ended
            .record
            .dropped_relations
            .as_ref()
            .is_some_and(Vec::is_empty)
        && old.database == *database
        && new.database == *database
        && old != new;
    certain.then_some(Link {
        commit: ended.commit,
        old: *old,
        new: *new,
        relation: *relation,
    })
}

#[cfg(test)]
mod tests {
    use super::super::work::RowCounts;
    use super::*;
    use wal_format::Timestamp;

    fn file(number: u32) -> RelationLocator {
        RelationLocator {
            tablespace: 1663,
            database: 5,
            relation: number,
        }
    }

    const PG_DATABASE: RelationLocator = RelationLocator {
        tablespace: 1664,
        database: 0,
        relation: 1262,
    };

    fn rows(file: RelationLocator, inserted: u64, deleted: Option<(u32, u16)>) -> Change {
        Change::Rows {
            file,
            rows: RowCounts {
                inserted,
                updated: 0,
                deleted: u64::from(deleted.is_some()),
            },
            deleted,
        }
    }

    fn end(xid: u32, committed: bool, subtransactions: &[u32]) -> Change {
        Change::End(End {
            xid,
            committed,
            time: Timestamp(i64::from(xid)),
            gid: None,
            database: 5,
            subtransactions: subtransactions.to_vec(),
            dropped_files: Vec::new(),
            dropped_relations: Some(Vec::new()),
        })
    }

    fn scan(keep: usize, changes: Vec<(u32, Change)>) -> Stretch {
        let all = |_: &Ended| true;
        let mut scan = Scan::new(1262, keep, &all);
        for (number, (xid, change)) in changes.into_iter().enumerate() {
            let start = Lsn::new(100 * (number as u64 + 1));
            scan.observe(start, start.saturating_add(80), 80, xid, change);
        }
        scan.finish()
    }

    #[test]
    fn subtransactions_count_in_their_transaction_unless_rolled_back() {
        let found = scan(
            9,
            vec![
                (0, Change::NextXid(10)),
                (10, rows(file(1), 1, None)),
                (11, rows(file(1), 2, None)),
                (12, rows(file(1), 4, None)),
                (13, rows(file(2), 8, None)),
                (12, end(12, false, &[13])),
                (14, rows(file(2), 16, None)),
                (14, end(14, false, &[])),
                (10, end(10, true, &[11])),
                (15, rows(file(3), 1, None)),
            ],
        );
        assert_eq!(found.commits, 1);
        let ended = &found.ended[0];
        assert_eq!(ended.work.files.len(), 1);
        assert_eq!(ended.work.files.get(file(1)).unwrap().rows.inserted, 3);
        assert_eq!(ended.work.first, Some(Lsn::new(200)));
        assert_eq!(ended.work.bytes, 240, "two of rows, one of the commit");
        assert!(!ended.may_have_begun_before);
        assert_eq!(found.open.keys().collect::<Vec<_>>(), [&15]);
    }

    #[test]
    fn what_may_have_begun_before_is_said() {
        let found = scan(
            9,
            vec![
                (8, end(8, true, &[])),
                (0, Change::NextXid(10)),
                (9, end(9, true, &[])),
                (10, end(10, true, &[])),
                (0, Change::NextXid(12)),
                (11, end(11, true, &[])),
            ],
        );
        let before: Vec<bool> = found
            .ended
            .iter()
            .map(|ended| ended.may_have_begun_before)
            .collect();
        assert_eq!(before, [true, true, false, false]);
        assert!(is_from(3, u32::MAX - 3) && !is_from(u32::MAX - 3, 3));
    }

    #[test]
    fn the_newest_are_kept() {
        let mut changes = vec![(0, Change::NextXid(10))];
        changes.extend((10..30).map(|xid| (xid, end(xid, true, &[]))));
        let found = scan(3, changes);
        let xids: Vec<u32> = found.ended.iter().map(|ended| ended.record.xid).collect();
        assert_eq!((xids, found.commits), (vec![27, 28, 29], 20));
    }

    #[test]
    fn a_database_is_lost_from_the_moment_its_row_is_overwritten() {
        let in_place = |row| {
            (
                0,
                Change::InPlace {
                    file: PG_DATABASE,
                    row: (0, row),
                },
            )
        };
        let found = scan(
            9,
            vec![
                (0, Change::NextXid(10)),
                in_place(4),
                in_place(5),
                (9, end(9, true, &[])),
                (10, rows(PG_DATABASE, 0, Some((0, 4)))),
                (10, Change::Cluster(ClusterEvent::DropDatabase(77))),
                (10, end(10, true, &[])),
                (11, rows(PG_DATABASE, 0, Some((0, 6)))),
                (11, end(11, true, &[])),
            ],
        );
        let dropped = &found.ended[1];
        assert_eq!(
            dropped.work.early,
            Some(Mark {
                lsn: Lsn::new(200),
                commits: 1
            })
        );
        assert!(!dropped.may_have_begun_before);
        // Its beginning is in older WAL.
        assert!(found.ended[2].may_have_begun_before);
        assert_eq!(found.ended[2].work.dropped_database_row, Some((0, 6)));
    }

    #[test]
    fn a_move_is_the_one_transaction_between_copy_and_removal() {
        let updated = Change::Rows {
            file: PG_DATABASE,
            rows: RowCounts {
                updated: 1,
                ..RowCounts::default()
            },
            deleted: None,
        };
        let check = |other: bool, expected: usize| {
            let mut changes = vec![
                (0, Change::NextXid(10)),
                (0, Change::Cluster(ClusterEvent::MoveDatabase(77))),
                (10, updated.clone()),
            ];
            if other {
                changes.extend([(11, updated.clone()), (11, end(11, true, &[]))]);
            }
            changes.push((10, end(10, true, &[])));
            changes.push((0, Change::Cluster(ClusterEvent::DropDatabase(77))));
            let found = scan(9, changes);
            let moved = found
                .ended
                .iter()
                .filter(|ended| ended.work.events == [ClusterEvent::MoveDatabase(77)])
                .map(|ended| ended.work.early.unwrap().lsn);
            assert_eq!(moved.collect::<Vec<_>>(), vec![Lsn::new(200); expected]);
        };
        check(false, 1);
        check(true, 0);
    }

    #[test]
    fn only_a_rewrite_that_can_be_nothing_else_is_a_link() {
        let check =
            |locks: &[(u32, u32, u32)], created: &[u32], dropped: &[u32], expected: bool| {
                let mut changes =
                    vec![(0, Change::NextXid(10)), (0, Change::Locks(locks.to_vec()))];
                changes.extend(
                    created
                        .iter()
                        .map(|number| (10, Change::CreateFile(file(*number)))),
                );
                let Change::End(mut end) = end(10, true, &[]) else {
                    panic!("an end")
                };
                end.dropped_files = dropped.iter().map(|number| file(*number)).collect();
                changes.push((10, Change::End(end)));
                let found = scan(9, changes);
                assert_eq!(found.links.len(), usize::from(expected), "{locks:?}");
                if expected {
                    assert_eq!(
                        (
                            found.links[0].old,
                            found.links[0].new,
                            found.links[0].relation
                        ),
                        (file(1), file(2), 16384)
                    );
                }
            };
        check(&[(10, 5, 16384)], &[2], &[1], true);
        check(&[(10, 5, 16384), (10, 5, 16384)], &[2], &[1], true);
        check(&[(10, 5, 16384), (10, 5, 16385)], &[2], &[1], false);
        check(&[(10, 5, 16384)], &[2, 3], &[1], false);
        check(&[(10, 5, 16384)], &[2], &[1, 4], false);
        check(&[(10, 6, 16384)], &[2], &[1], false);
        check(&[], &[2], &[1], false);
    }
}
