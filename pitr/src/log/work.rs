//! What one transaction has done so far, as plain data within bounds, and what a record adds to it (pure).
//!
//! Owns the counting. Which transaction a record belongs to and when one ends is `scan.rs`; what the counts mean is `entry.rs`.

use std::collections::BTreeSet;

use wal_format::{Lsn, RelationLocator, RowChange, Timestamp};

/// Most files of relations that are counted one by one in a transaction; the rows of others are counted together.
pub(super) const MAX_RELATIONS: usize = 256;
/// Most files, objects, locks and events of a kind that are kept of a transaction.
pub(super) const MAX_LISTED: usize = 1024;

/// What a record says that the log wants to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing but bytes.
    None,
    /// Rows of a file changed.
    Rows {
        /// Which.
        file: RelationLocator,
        /// How many, and how.
        rows: RowCounts,
        /// The deleted row's block and number, if one row was deleted.
        deleted: Option<(u32, u16)>,
    },
    /// Blocks of files were written otherwise: an index, a page as a whole.
    Blocks(Vec<RelationLocator>),
    /// A relation got a file.
    CreateFile(RelationLocator),
    /// The transaction was prepared under this name.
    Prepared(Box<str>),
    /// `TRUNCATE`, as `wal_level = logical` has it: the OIDs.
    Truncate {
        /// Of the database.
        database: u32,
        /// Of the relations.
        relations: Vec<u32>,
    },
    /// Locks that exclude readers: transaction, database, relation's OID.
    Locks(Vec<(u32, u32, u32)>),
    /// A row was overwritten at once, whatever becomes of the transaction.
    InPlace {
        /// In which file.
        file: RelationLocator,
        /// In which block, and its number there.
        row: (u32, u16),
    },
    /// Something happened to a database or a tablespace, at once.
    Cluster(ClusterEvent),
    /// No transaction from this one on has begun.
    NextXid(u32),
    /// A transaction ended.
    End(End),
}

/// What happened to a database or tablespace, by OID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterEvent {
    /// A database was created.
    CreateDatabase(u32),
    /// A database's files were copied into another tablespace (`ALTER DATABASE … SET TABLESPACE`).
    MoveDatabase(u32),
    /// A database's files were removed.
    DropDatabase(u32),
    /// A tablespace was created.
    CreateTablespace(u32),
    /// A tablespace was removed.
    DropTablespace(u32),
}

/// What a new relation was called, as the row that was inserted into `pg_class` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Birth {
    /// The record that inserted it.
    pub lsn: Lsn,
    /// The OID of its database.
    pub database: u32,
    /// Its own.
    pub oid: u32,
    /// The number of its file; 0 if it has none.
    pub file: u32,
    /// The OID of its tablespace; 0: its database's.
    pub tablespace: u32,
    /// Its name then; what is not UTF-8 is replaced.
    pub name: String,
    /// The OID of its schema.
    pub schema_oid: u32,
    /// `relkind`.
    pub kind: char,
}

/// The end of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// Which.
    pub xid: u32,
    /// Whether what it did counts.
    pub committed: bool,
    /// When.
    pub time: Timestamp,
    /// The name of a prepared one, if the record has it.
    pub gid: Option<String>,
    /// The database, if the record says.
    pub database: u32,
    /// Its subtransactions that ended with it.
    pub subtransactions: Vec<u32>,
    /// The files that were removed.
    pub dropped_files: Vec<RelationLocator>,
    /// The relations that were dropped: database and OID. `None`: not said before PostgreSQL 15.
    pub dropped_relations: Option<Vec<(u32, u32)>>,
}

/// Rows of one relation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowCounts {
    /// Inserted.
    pub inserted: u64,
    /// Updated.
    pub updated: u64,
    /// Deleted.
    pub deleted: u64,
}

impl RowCounts {
    #[inline]
    fn add(&mut self, other: Self) {
        self.inserted = self.inserted.saturating_add(other.inserted);
        self.updated = self.updated.saturating_add(other.updated);
        self.deleted = self.deleted.saturating_add(other.deleted);
    }

    /// Whether nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What was done to one file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileWork {
    /// Its rows.
    pub rows: RowCounts,
    /// Whether it is new.
    pub created: bool,
    /// Whether anything was written into it.
    pub written: bool,
}

/// What was done to each file, by file; the one last looked for is found without a search.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// In order.
    list: Vec<(RelationLocator, FileWork)>,
    last: usize,
    /// Whether there may be one that is new and into which nothing was written.
    may_be_empty: bool,
}

/// What is known without looking for it does not count.
impl PartialEq for Files {
    fn eq(&self, other: &Self) -> bool {
        self.list == other.list
    }
}

impl Eq for Files {}

impl Files {
    /// How many.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// In the order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (&RelationLocator, &FileWork)> {
        self.list.iter().map(|(file, work)| (file, work))
    }

    /// What was done to one of them.
    pub fn get(&self, file: RelationLocator) -> Option<&FileWork> {
        let place = self.list.binary_search_by_key(&file, |(file, _)| *file);
        self.list.get(place.ok()?).map(|(_, work)| work)
    }

    fn get_mut(&mut self, file: RelationLocator) -> Option<&mut FileWork> {
        let place = self.list.binary_search_by_key(&file, |(file, _)| *file);
        self.list.get_mut(place.ok()?).map(|(_, work)| work)
    }

    /// The place of one, which is added if it is not there and there are fewer than `most`.
    #[inline]
    fn place(&mut self, file: RelationLocator, most: usize) -> Option<usize> {
        match self.list.get(self.last) {
            Some((last, _)) if *last == file => Some(self.last),
            _ => self.search(file, most),
        }
    }

    fn search(&mut self, file: RelationLocator, most: usize) -> Option<usize> {
        self.last = match self.list.binary_search_by_key(&file, |(file, _)| *file) {
            Ok(place) => place,
            Err(_) if self.list.len() >= most => return None,
            Err(place) => {
                self.list.insert(place, (file, FileWork::default()));
                place
            }
        };
        Some(self.last)
    }

    /// Removes all, and keeps the room.
    pub(super) fn clear(&mut self) {
        self.list.clear();
        (self.last, self.may_be_empty) = (0, false);
    }

    /// Whether one is new and nothing was written into it.
    pub(super) fn has_empty(&self) -> bool {
        self.list
            .iter()
            .any(|(_, work)| work.created && !work.written)
    }
}

impl FromIterator<(RelationLocator, FileWork)> for Files {
    fn from_iter<I: IntoIterator<Item = (RelationLocator, FileWork)>>(files: I) -> Self {
        let mut list: Vec<_> = files.into_iter().collect();
        list.sort_by_key(|(file, _)| *file);
        Self {
            list,
            last: 0,
            may_be_empty: true,
        }
    }
}

/// A place in WAL, and how many transactions have committed since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The start of the record.
    pub lsn: Lsn,
    /// Commits between it and where the transaction, or the scan, ended. While a scan goes on: commits of the scan before it.
    pub commits: u64,
}

/// What a transaction has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// The start of its first record.
    pub first: Option<Lsn>,
    /// Bytes of its records.
    pub bytes: u64,
    /// What it did to which file.
    pub files: Files,
    /// Rows of files that found no room there.
    pub other_rows: RowCounts,
    /// Relations that it locked against readers: database and OID.
    pub locks: BTreeSet<(u32, u32)>,
    /// The first of these locks.
    pub first_lock: Option<Mark>,
    /// The first thing it did that does not wait for its commit.
    pub early: Option<Mark>,
    /// A row of `pg_database` that it deleted: where the drop of that database began is not known yet.
    pub dropped_database_row: Option<(u32, u16)>,
    /// What it did to databases and tablespaces.
    pub events: Vec<ClusterEvent>,
    /// Relations that a record says were truncated: database and OID.
    pub truncated: Vec<(u32, u32)>,
    /// Relations that it made.
    pub born: Vec<Birth>,
    /// The name that it was prepared under.
    pub gid: Option<Box<str>>,
    /// Whether something found no room.
    pub overflowed: bool,
    /// Whether a file that it made before the stretch in which it committed may hold what was written into it since: what writes blocks and no rows
    /// is followed within a stretch only.
    pub is_emptiness_unknown: bool,
}

impl Work {
    /// Counts a record of the transaction that starts at `at`.
    pub fn note(&mut self, at: Lsn, bytes: u32) {
        // Records come in the order of WAL.
        self.first.get_or_insert(at);
        self.bytes = self.bytes.saturating_add(u64::from(bytes));
    }

    /// The entry of a file, unless there is no room for one more.
    #[inline]
    pub fn file(&mut self, file: RelationLocator) -> Option<&mut FileWork> {
        match self.files.place(file, MAX_RELATIONS) {
            Some(place) => self.files.list.get_mut(place).map(|(_, work)| work),
            None => {
                self.overflowed = true;
                None
            }
        }
    }

    /// A file is new.
    pub fn created(&mut self, file: RelationLocator) {
        if let Some(work) = self.file(file) {
            work.created = true;
            self.files.may_be_empty = true;
        }
    }

    /// Whether it matters into which files something was written: only of new ones it does.
    #[inline]
    pub fn minds_blocks(&self) -> bool {
        self.files.may_be_empty
    }

    /// Something other than rows was written into files.
    pub fn wrote(&mut self, files: &[RelationLocator]) {
        for file in files {
            if let Some(work) = self.files.get_mut(*file) {
                work.written = true;
            }
        }
        self.files.may_be_empty = self.files.has_empty();
    }

    /// Counts one row of a file.
    #[inline]
    pub fn row(&mut self, file: RelationLocator, change: RowChange) {
        let rows = match self.file(file) {
            Some(work) => {
                work.written = true;
                &mut work.rows
            }
            None => &mut self.other_rows,
        };
        // Sums and no branches: what comes next cannot be foreseen.
        rows.add(RowCounts {
            inserted: u64::from(change == RowChange::Inserted),
            updated: u64::from(change == RowChange::Updated),
            deleted: u64::from(change == RowChange::Deleted),
        });
    }

    /// Counts rows of a file.
    pub fn rows(&mut self, file: RelationLocator, rows: RowCounts) {
        match self.file(file) {
            Some(work) => {
                work.rows.add(rows);
                work.written = true;
            }
            None => self.other_rows.add(rows),
        }
    }

    /// Takes the first of a kind of mark.
    pub fn mark_early(&mut self, mark: Mark) {
        self.early = first_of(self.early, Some(mark));
    }

    /// Keeps an item unless there are too many.
    pub fn push_event(&mut self, event: ClusterEvent) {
        match self.events.len() < MAX_LISTED {
            true => self.events.push(event),
            false => self.overflowed = true,
        }
    }

    /// Adds what another part of the same transaction did: a subtransaction, or its beginning in older WAL. Marks of both must count from
    /// the same place.
    pub fn absorb(&mut self, other: Self) {
        self.first = match (self.first, other.first) {
            (Some(one), Some(two)) => Some(one.min(two)),
            (one, two) => one.or(two),
        };
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.is_emptiness_unknown |= other.is_emptiness_unknown;
        self.files.may_be_empty |= other.files.may_be_empty;
        for (file, work) in other.files.list {
            match self.file(file) {
                Some(mine) => {
                    mine.rows.add(work.rows);
                    mine.created |= work.created;
                    mine.written |= work.written;
                }
                None => self.other_rows.add(work.rows),
            }
        }
        self.other_rows.add(other.other_rows);
        for lock in other.locks {
            self.lock(lock);
        }
        self.first_lock = first_of(self.first_lock, other.first_lock);
        self.early = first_of(self.early, other.early);
        self.dropped_database_row = self.dropped_database_row.or(other.dropped_database_row);
        let later = std::mem::replace(&mut self.events, other.events);
        for event in later {
            self.push_event(event);
        }
        for truncated in other.truncated {
            self.truncate(truncated);
        }
        self.overflowed |= other.overflowed;
        for birth in other.born {
            self.bear(birth);
        }
        self.gid = self.gid.take().or(other.gid);
    }

    /// Keeps a new relation's name, unless there are too many: a name that is not known is only that.
    pub fn bear(&mut self, birth: Birth) {
        if self.born.len() < MAX_LISTED {
            self.born.push(birth);
        }
    }

    /// Keeps a lock.
    pub fn lock(&mut self, lock: (u32, u32)) {
        match self.locks.len() < MAX_LISTED {
            true => drop(self.locks.insert(lock)),
            false => self.overflowed = true,
        }
    }

    /// Keeps a truncated relation.
    pub fn truncate(&mut self, relation: (u32, u32)) {
        if self.truncated.contains(&relation) {
            return;
        }
        match self.truncated.len() < MAX_LISTED {
            true => self.truncated.push(relation),
            false => self.overflowed = true,
        }
    }

    /// Turns marks that say how many commits were before them into such that say how many came since, of `total`.
    pub fn settle(&mut self, total: u64) {
        for mark in [&mut self.first_lock, &mut self.early]
            .into_iter()
            .flatten()
        {
            mark.commits = total.saturating_sub(mark.commits);
        }
    }

    /// Moves the end that settled marks count to by so many commits.
    pub fn carry(&mut self, commits: u64) {
        for mark in [&mut self.first_lock, &mut self.early]
            .into_iter()
            .flatten()
        {
            mark.commits = mark.commits.saturating_add(commits);
        }
    }
}

fn first_of(one: Option<Mark>, two: Option<Mark>) -> Option<Mark> {
    match (one, two) {
        (Some(one), Some(two)) if two.lsn < one.lsn => Some(two),
        (one, two) => one.or(two),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(number: u32) -> RelationLocator {
        RelationLocator {
            tablespace: 1663,
            database: 5,
            relation: number,
        }
    }

    fn inserted(count: u64) -> RowCounts {
        RowCounts {
            inserted: count,
            ..RowCounts::default()
        }
    }

    #[test]
    fn rows_of_more_files_than_fit_are_counted_together() {
        let mut work = Work::default();
        for number in 0..1000 {
            work.rows(file(number % 300), inserted(1));
        }
        assert_eq!(work.files.len(), MAX_RELATIONS);
        let listed: u64 = work.files.iter().map(|(_, file)| file.rows.inserted).sum();
        assert_eq!(listed + work.other_rows.inserted, 1000);
        assert!(work.other_rows.inserted > 0 && work.overflowed);
    }

    #[test]
    fn parts_of_a_transaction_add_up() {
        let mark = |lsn: u64, commits| Mark {
            lsn: Lsn::new(lsn),
            commits,
        };
        let mut older = Work::default();
        older.note(Lsn::new(10), 100);
        older.rows(file(1), inserted(3));
        older.push_event(ClusterEvent::CreateDatabase(7));
        older.first_lock = Some(mark(10, 2));
        older.settle(5);
        older.carry(4);
        let mut newer = Work::default();
        newer.note(Lsn::new(70), 50);
        newer.rows(file(1), inserted(1));
        newer.rows(file(2), inserted(1));
        newer.push_event(ClusterEvent::DropDatabase(8));
        newer.first_lock = Some(mark(70, 1));
        newer.early = Some(mark(75, 1));
        newer.absorb(older);
        assert_eq!((newer.first, newer.bytes), (Some(Lsn::new(10)), 150));
        assert_eq!(newer.files.get(file(1)).unwrap().rows, inserted(4));
        assert_eq!(newer.files.get(file(2)).unwrap().rows, inserted(1));
        assert_eq!(newer.first_lock, Some(mark(10, 7)));
        assert_eq!(newer.early, Some(mark(75, 1)));
        assert_eq!(
            newer.events,
            [
                ClusterEvent::CreateDatabase(7),
                ClusterEvent::DropDatabase(8)
            ]
        );
    }
}
