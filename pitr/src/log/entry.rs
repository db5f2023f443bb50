//! What a transaction did, in the words of `walden log` (pure): per relation, by name where one is certain, with the target that undoes it.
//!
//! Owns the judgement: dropped or rewritten, truncated or filled again, and which LSN a restore should stop before. The numbers come from
//! `work.rs`, the names from `names.rs`.

use std::collections::{BTreeMap, BTreeSet};

use wal_format::{Lsn, RelationLocator, Timestamp};

use super::history::Past;
use super::names::{NameBook, NameSource, NamedRelation, is_catalog_number};
use super::scan::Ended;
use super::work::{Birth, ClusterEvent, RowCounts};

/// Which relation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// By name.
    Named(NamedRelation),
    /// By the place of its file: no snapshot has it. With what it was called when it was made, if WAL that was read says so.
    File(RelationLocator, Option<Birth>),
    /// By database and OID: a relation without a file, that no snapshot has. With the same.
    Oid(u32, u32, Option<Birth>),
}

/// What became of a relation's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The relation is new.
    Created,
    /// A file is new; whether the relation is, or an old one was rewritten into it, WAL does not say.
    CreatedOrRewritten,
    /// The relation is gone.
    Dropped,
    /// The file is gone; whether the relation is too, WAL does not say.
    DroppedOrRewritten,
    /// Every row is gone.
    Truncated,
    /// The relation has a new file with other contents: `VACUUM FULL`, `CLUSTER`, `ALTER TABLE`, or `TRUNCATE` and new rows.
    Rewritten,
    /// One of the two.
    TruncatedOrRewritten,
}

/// What was done to one relation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelationChange {
    /// To which.
    pub subject: Subject,
    /// Its rows.
    pub rows: RowCounts,
    /// What became of it as a whole.
    pub fate: Option<Fate>,
    /// Indexes and TOAST tables of it that share its fate.
    pub dependents: u32,
}

/// What happened to a database or tablespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventChange {
    /// What, by OID.
    pub event: ClusterEvent,
    /// Its name, if a snapshot has it.
    pub name: Option<String>,
}

/// Where a restore stops so that a transaction has not happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// For `--to-lsn … --exclusive`.
    pub lsn: Lsn,
    /// Other transactions that are lost, all that committed later among them.
    pub lost: u64,
    /// Why it is not the commit record.
    pub because: Because,
}

/// Why a target is where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Because {
    /// It is the commit record.
    Commit,
    /// It is where the transaction locked the relation: readers of a paused server would wait for that lock.
    Lock,
    /// It is where the transaction began to act without waiting for its commit.
    ActsEarly,
}

/// A transaction as the log shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// What WAL says of it.
    pub ended: Ended,
    /// Transactions that committed after it.
    pub commits_after: u64,
    /// Its database: OID and name. `None` if nothing says which.
    pub database: Option<(u32, Option<String>)>,
    /// What it did to relations: those that people made.
    pub relations: Vec<RelationChange>,
    /// Rows of catalogs that it changed.
    pub catalog_rows: u64,
    /// What it did to databases and tablespaces.
    pub events: Vec<EventChange>,
    /// Where a restore stops so that it has not happened.
    pub target: Target,
    /// Where else: later, at a price. With [`Because::Lock`] only.
    pub alternative: Option<Target>,
    /// Where its names come from.
    pub sources: BTreeSet<NameSource>,
}

impl LogEntry {
    /// Puts a transaction into words.
    pub fn new(past: &Past, book: &NameBook) -> Self {
        let ended = &past.ended;
        let described = describe(ended, book);
        let (target, alternative) = targets(past);
        Self {
            ended: ended.clone(),
            commits_after: past.commits_after,
            database: described.database,
            relations: described.relations,
            catalog_rows: described.catalog_rows,
            events: described.events,
            target,
            alternative,
            sources: described.sources,
        }
    }

    /// When it committed.
    pub fn time(&self) -> Timestamp {
        self.ended.record.time
    }
}

/// What a transaction did, without its place in history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Described {
    /// As in [`LogEntry`].
    pub database: Option<(u32, Option<String>)>,
    /// As in [`LogEntry`].
    pub relations: Vec<RelationChange>,
    /// As in [`LogEntry`].
    pub catalog_rows: u64,
    /// As in [`LogEntry`].
    pub events: Vec<EventChange>,
    /// As in [`LogEntry`].
    pub sources: BTreeSet<NameSource>,
}

/// Says what a transaction did.
pub fn describe(ended: &Ended, book: &NameBook) -> Described {
    let (at, work, record) = (ended.commit, &ended.work, &ended.record);
    let mut changes = Changes {
        at,
        book,
        found: Vec::new(),
        catalog_rows: 0,
    };
    let created: BTreeSet<RelationLocator> = work
        .files
        .iter()
        .filter(|(_, file)| file.created)
        .map(|(file, _)| *file)
        .collect();
    let dropped_files: Vec<RelationLocator> = record
        .dropped_files
        .iter()
        .filter(|file| !created.contains(file))
        .copied()
        .collect();
    // A relation that the same transaction made has its first file's number for an OID: rewrites make and drop such a one.
    let own = |database: u32, oid: u32| {
        created
            .iter()
            .any(|file| file.database == database && file.relation == oid)
    };
    let dropped: Option<BTreeSet<(u32, u32)>> = record.dropped_relations.as_ref().map(|dropped| {
        let others = dropped
            .iter()
            .filter(|(database, oid)| !own(*database, *oid));
        others.copied().collect()
    });
    let lasting = created
        .iter()
        .filter(|file| !record.dropped_files.contains(file))
        .copied()
        .collect();
    let fates = Fates::judge(ended, book, &lasting, &dropped_files, dropped.as_ref());

    for (file, work) in work.files.iter() {
        let transient = work.created && record.dropped_files.contains(file);
        let fate = (work.created && !transient)
            .then_some(fates.of_created)
            .flatten();
        if !work.rows.is_empty() || fate.is_some() {
            changes.file(*file, work.rows, fate);
        }
    }
    let mut explained: BTreeSet<(u32, u32)> = BTreeSet::new();
    for file in &dropped_files {
        let fate = match (&dropped, book.of_file(at, *file)) {
            (None, _) => Fate::DroppedOrRewritten,
            (Some(dropped), Some(known)) => {
                let relation = (known.database_oid, known.oid);
                match dropped.contains(&relation) {
                    true => {
                        explained.insert(relation);
                        Fate::Dropped
                    }
                    false => fates.of_replaced,
                }
            }
            // A file that was never rewritten has its relation's OID for a number.
            (Some(dropped), None) if dropped.contains(&(file.database, file.relation)) => {
                explained.insert((file.database, file.relation));
                Fate::Dropped
            }
            (Some(_), None) => fates.of_unknown,
        };
        changes.file(*file, RowCounts::default(), Some(fate));
    }
    for (database, oid) in dropped.iter().flatten() {
        if !explained.contains(&(*database, *oid)) {
            changes.relation(*database, *oid, Fate::Dropped);
        }
    }
    for (database, oid) in &work.truncated {
        changes.relation(*database, *oid, Fate::Truncated);
    }
    let database = match record.database {
        0 => work
            .files
            .iter()
            .map(|(file, _)| file.database)
            .find(|database| *database != 0),
        database => Some(database),
    };
    let name = |oid| book.database(at, oid).map(str::to_owned);
    let events = work.events.iter().map(|event| EventChange {
        event: *event,
        name: match *event {
            ClusterEvent::CreateDatabase(oid)
            | ClusterEvent::MoveDatabase(oid)
            | ClusterEvent::DropDatabase(oid) => name(oid),
            ClusterEvent::CreateTablespace(oid) | ClusterEvent::DropTablespace(oid) => {
                book.tablespace(at, oid).map(str::to_owned)
            }
        },
    });
    let events = events.collect();
    let (relations, catalog_rows) = changes.finish();
    let sources = relations
        .iter()
        .filter_map(|change| match &change.subject {
            Subject::Named(named) => Some(named.source.clone()),
            _ => None,
        })
        .collect();
    Described {
        database: database.map(|oid| (oid, name(oid))),
        relations,
        catalog_rows,
        events,
        sources,
    }
}

/// What may be said of files of each kind.
struct Fates {
    /// Of a new file. `None`: it took the place of one that is reported.
    of_created: Option<Fate>,
    /// Of a removed file whose relation is known and was not dropped.
    of_replaced: Fate,
    /// Of a removed file whose relation is not known, and whose number is no dropped relation's.
    of_unknown: Fate,
}

impl Fates {
    fn judge(
        ended: &Ended,
        book: &NameBook,
        created: &BTreeSet<RelationLocator>,
        dropped_files: &[RelationLocator],
        dropped: Option<&BTreeSet<(u32, u32)>>,
    ) -> Self {
        let (mut explained, mut replaced) = (0, Vec::new());
        for file in dropped_files {
            let named = book.of_file(ended.commit, *file);
            let relation = match &named {
                Some(named) => (named.database_oid, named.oid),
                None => (file.database, file.relation),
            };
            let is_dropped = |relation| dropped.is_some_and(|dropped| dropped.contains(&relation));
            explained += usize::from(is_dropped(relation));
            // A rewrite gives the table another TOAST table and drops the old one.
            let table = named
                .as_ref()
                .and_then(|named| toast_owner(ended.commit, book, named));
            if !is_dropped(table.unwrap_or(relation)) {
                replaced.push(named.map(|named| named.kind));
            }
        }
        // Each relation that lost its file and stays got a new one.
        let only_replacements = created.len() == replaced.len();
        let of_created = match dropped {
            _ if replaced.is_empty() => Some(Fate::Created),
            Some(_) if only_replacements => None,
            _ => Some(Fate::CreatedOrRewritten),
        };
        let files = &ended.work.files;
        let empty = files
            .iter()
            .filter(|(file, work)| created.contains(file) && !work.written)
            .count();
        let with_rows = replaced
            .iter()
            .filter(|kind| matches!(kind, Some('r' | 'm' | 't')))
            .count();
        // What a subtransaction wrote into the file of another is not told apart.
        let certain = only_replacements
            && replaced.iter().all(Option::is_some)
            && ended.subtransactions == 0
            && !ended.may_have_begun_before
            && !ended.work.is_emptiness_unknown
            && !ended.work.overflowed;
        Self {
            of_created,
            of_replaced: match certain {
                false => Fate::TruncatedOrRewritten,
                // As many new files were left empty as files that held rows were replaced.
                true if empty >= with_rows => Fate::Truncated,
                true => Fate::Rewritten,
            },
            // A dropped relation that no file explains may be this file's.
            of_unknown: match dropped.is_none_or(|dropped| dropped.len() > explained) {
                true => Fate::DroppedOrRewritten,
                false => Fate::TruncatedOrRewritten,
            },
        }
    }
}

/// The table of a TOAST table, or of its index.
fn toast_owner(at: Lsn, book: &NameBook, named: &NamedRelation) -> Option<(u32, u32)> {
    let owner = named.owner?;
    let database = named.database_oid;
    match named.kind {
        't' => Some((database, owner)),
        'i' => {
            let toast = book.of_relation(at, database, owner)?;
            let table = toast.owner.filter(|_| toast.kind == 't')?;
            Some((database, table))
        }
        _ => None,
    }
}

/// The changes of a transaction, relation by relation.
struct Changes<'a> {
    at: Lsn,
    book: &'a NameBook,
    found: Vec<RelationChange>,
    catalog_rows: u64,
}

impl Changes<'_> {
    fn file(&mut self, file: RelationLocator, rows: RowCounts, fate: Option<Fate>) {
        let named = self.book.of_file(self.at, file);
        let is_catalog = match &named {
            Some(named) => is_catalog(named),
            None => is_catalog_number(file),
        };
        if is_catalog {
            self.catalog_rows += rows.inserted + rows.updated + rows.deleted;
            return;
        }
        self.push(
            named.map_or_else(
                || Subject::File(file, self.book.birth_of_file(self.at, file).cloned()),
                Subject::Named,
            ),
            rows,
            fate,
        );
    }

    fn relation(&mut self, database: u32, oid: u32, fate: Fate) {
        let named = self.book.of_relation(self.at, database, oid);
        match named {
            Some(named) if is_catalog(&named) => {}
            Some(named) => self.push(Subject::Named(named), RowCounts::default(), Some(fate)),
            None => self.push(
                Subject::Oid(
                    database,
                    oid,
                    self.book.birth_of_relation(self.at, database, oid).cloned(),
                ),
                RowCounts::default(),
                Some(fate),
            ),
        }
    }

    /// Adds to what is known of the same relation.
    fn push(&mut self, subject: Subject, rows: RowCounts, fate: Option<Fate>) {
        let same = |known: &Subject| match (known, &subject) {
            (Subject::Named(one), Subject::Named(two)) => {
                (one.database_oid, one.oid) == (two.database_oid, two.oid)
            }
            (one, two) => one == two,
        };
        match self.found.iter_mut().find(|known| same(&known.subject)) {
            Some(known) => {
                known.rows.inserted += rows.inserted;
                known.rows.updated += rows.updated;
                known.rows.deleted += rows.deleted;
                // A record that says so is better than a conclusion.
                known.fate = match (known.fate, fate) {
                    (_, Some(Fate::Truncated)) => Some(Fate::Truncated),
                    (Some(known), _) => Some(known),
                    (None, fate) => fate,
                };
            }
            None => self.found.push(RelationChange {
                subject,
                rows,
                fate,
                dependents: 0,
            }),
        }
    }

    /// Folds indexes and TOAST tables into their tables where these stand too.
    fn finish(self) -> (Vec<RelationChange>, u64) {
        let mut owners: BTreeMap<(u32, u32), Option<(u32, u32)>> = BTreeMap::new();
        for change in &self.found {
            if let Subject::Named(named) = &change.subject {
                let owner = named.owner.map(|owner| (named.database_oid, owner));
                owners.insert((named.database_oid, named.oid), owner);
            }
        }
        // An index of a TOAST table belongs to the table in two steps.
        let table_of = |named: &NamedRelation| {
            let mut at = (named.database_oid, named.owner?);
            for _ in 0..2 {
                if !owners.contains_key(&at)
                    && let Some(above) = self.book.of_relation(self.at, at.0, at.1)
                    && let Some(owner) = above.owner
                {
                    at = (at.0, owner);
                } else if let Some(Some(owner)) = owners.get(&at) {
                    at = *owner;
                }
            }
            owners.contains_key(&at).then_some(at)
        };
        let mut dependents: BTreeMap<(u32, u32), u32> = BTreeMap::new();
        let mut kept = Vec::new();
        for change in &self.found {
            let table = match &change.subject {
                Subject::Named(named) if matches!(named.kind, 'i' | 't') => table_of(named),
                _ => None,
            };
            match table {
                Some(table) => *dependents.entry(table).or_default() += 1,
                None => kept.push(change.clone()),
            }
        }
        for change in &mut kept {
            if let Subject::Named(named) = &change.subject {
                let relation = (named.database_oid, named.oid);
                change.dependents = dependents.get(&relation).copied().unwrap_or(0);
            }
        }
        (kept, self.catalog_rows)
    }
}

fn is_catalog(named: &NamedRelation) -> bool {
    named.schema == "pg_catalog"
        || named.schema == "information_schema"
        // The TOAST tables of catalogs.
        || (named.schema == "pg_toast" && named.owner.is_some_and(|owner| owner < 16384))
        || named.oid < 14000
}

/// Where to stop, best first.
fn targets(past: &Past) -> (Target, Option<Target>) {
    let after = past.commits_after;
    let work = &past.ended.work;
    let commit = Target {
        lsn: past.ended.commit,
        lost: after,
        because: Because::Commit,
    };
    if let Some(early) = work.early {
        let early = Target {
            lsn: early.lsn,
            lost: after.saturating_add(early.commits),
            because: Because::ActsEarly,
        };
        return (early, None);
    }
    match work.first_lock {
        None => (commit, None),
        Some(lock) => {
            let lock = Target {
                lsn: lock.lsn,
                lost: after.saturating_add(lock.commits),
                because: Because::Lock,
            };
            match lock.lost == commit.lost {
                true => (lock, None),
                false => (commit, Some(lock)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::query::LogQuery;
    use super::super::work::{End, FileWork, Mark, Work};
    use super::*;
    use repository::names::{CatalogNames, Line, NamesWriter, ReadAt};
    use std::sync::Arc;

    const DB: u32 = 5;

    fn file(number: u32) -> RelationLocator {
        RelationLocator {
            tablespace: 1663,
            database: DB,
            relation: number,
        }
    }

    /// `orders` (16384) with an index (16388) and a TOAST table (16386) with its index (16387); `view` (16390); `seen` (16391).
    fn book() -> NameBook {
        let mut writer = NamesWriter::default();
        let mut push = |line| writer.push(&line).unwrap();
        push(Line::Catalog {
            format: 1,
            requires: Vec::new(),
            label: "b".into(),
            system_identifier: 1,
            pg_version: 18,
            taken: jiff::Timestamp::UNIX_EPOCH,
        });
        push(Line::Database {
            oid: DB,
            name: "shop".into(),
            tablespace: 1663,
            read: Some(ReadAt {
                lsn: Lsn::new(1),
                snapshot: "3:3:".into(),
            }),
        });
        for (oid, kind, schema, name, owner) in [
            (1259, 'r', "pg_catalog", "pg_class", None),
            (16384, 'r', "public", "orders", None),
            (16386, 't', "pg_toast", "pg_toast_16384", Some(16384)),
            (16387, 'i', "pg_toast", "pg_toast_16384_index", Some(16386)),
            (16388, 'i', "public", "orders_pkey", Some(16384)),
            (16390, 'p', "public", "parted", None),
            (16391, 'm', "public", "seen", None),
        ] {
            push(Line::Relation {
                oid,
                file: (kind != 'p').then_some(oid),
                tablespace: 1663,
                kind,
                schema: schema.into(),
                name: name.into(),
                owner,
            });
        }
        let names = CatalogNames::parse(&writer.finish(), "k").unwrap();
        let mut book = NameBook::default();
        book.add(Lsn::new(10), Arc::new(names));
        book
    }

    /// (number, inserted rows, created, written)
    fn past(
        files: &[(u32, u64, bool, bool)],
        dropped_files: &[u32],
        dropped: Option<&[u32]>,
    ) -> Past {
        let files = files.iter().map(|(number, inserted, created, written)| {
            let work = FileWork {
                rows: RowCounts {
                    inserted: *inserted,
                    ..RowCounts::default()
                },
                created: *created,
                written: *written,
            };
            (file(*number), work)
        });
        let ended = Ended {
            commit: Lsn::new(500),
            end: Lsn::new(580),
            record: End {
                xid: 7,
                committed: true,
                time: Timestamp(0),
                gid: None,
                database: DB,
                subtransactions: Vec::new(),
                dropped_files: dropped_files.iter().copied().map(file).collect(),
                dropped_relations: dropped
                    .map(|dropped| dropped.iter().map(|oid| (DB, *oid)).collect()),
            },
            subtransactions: 0,
            work: Work {
                first: Some(Lsn::new(400)),
                files: files.collect(),
                ..Work::default()
            },
            may_have_begun_before: false,
            commits_before: 3,
        };
        Past::new(ended, 2)
    }

    #[track_caller]
    fn check(past: &Past, expected: &[(&str, Option<Fate>, u64, u32)]) {
        let entry = LogEntry::new(past, &book());
        let found: Vec<(String, Option<Fate>, u64, u32)> = entry
            .relations
            .iter()
            .map(|change| {
                let name = match &change.subject {
                    Subject::Named(named) => named.name.clone(),
                    Subject::File(file, _) => file.to_string(),
                    Subject::Oid(database, oid, _) => format!("{database}/{oid}"),
                };
                (name, change.fate, change.rows.inserted, change.dependents)
            })
            .collect();
        let expected: Vec<(String, Option<Fate>, u64, u32)> = expected
            .iter()
            .map(|(name, fate, rows, dependents)| ((*name).to_owned(), *fate, *rows, *dependents))
            .collect();
        assert_eq!(found, expected);
    }

    const ALL: &[u32] = &[16384, 16386, 16387, 16388];

    #[test]
    fn a_drop_is_told_from_a_rewrite_and_a_truncate() {
        check(
            &past(&[(1259, 4, false, true)], ALL, Some(ALL)),
            &[("orders", Some(Fate::Dropped), 0, 3)],
        );
        // New files of table, TOAST table and both indexes: only the indexes were written.
        let emptied = &[
            (20001, 0, true, false),
            (20002, 0, true, false),
            (20003, 0, true, true),
            (20004, 0, true, true),
        ];
        check(
            &past(emptied, ALL, Some(&[])),
            &[("orders", Some(Fate::Truncated), 0, 3)],
        );
        let filled = &[
            (20001, 0, true, true),
            (20002, 0, true, false),
            (20003, 0, true, true),
            (20004, 0, true, true),
        ];
        check(
            &past(filled, ALL, Some(&[])),
            &[("orders", Some(Fate::Rewritten), 0, 3)],
        );
        // VACUUM FULL makes a relation whose OID is its file's number, and drops it with the old TOAST table.
        check(
            &past(filled, ALL, Some(&[20001, 16386, 16387])),
            &[("orders", Some(Fate::Rewritten), 0, 3)],
        );
    }

    #[test]
    fn what_wal_does_not_tell_is_not_guessed() {
        // Before 15 nothing says which relations were dropped.
        check(
            &past(&[], ALL, None),
            &[("orders", Some(Fate::DroppedOrRewritten), 0, 3)],
        );
        // One more file than was replaced: a new table beside the rewrite, but which is it?
        let more = &[(20001, 0, true, true), (20009, 0, true, true)];
        check(
            &past(more, &[16391], Some(&[])),
            &[
                ("1663/5/20001", Some(Fate::CreatedOrRewritten), 0, 0),
                ("1663/5/20009", Some(Fate::CreatedOrRewritten), 0, 0),
                ("seen", Some(Fate::TruncatedOrRewritten), 0, 0),
            ],
        );
        // An unknown file, and an unknown relation that was dropped: perhaps one and the same.
        check(
            &past(&[], &[17000], Some(&[16999])),
            &[
                ("1663/5/17000", Some(Fate::DroppedOrRewritten), 0, 0),
                ("5/16999", Some(Fate::Dropped), 0, 0),
            ],
        );
        check(
            &past(&[(17001, 0, true, false)], &[17000], Some(&[])),
            &[("1663/5/17000", Some(Fate::TruncatedOrRewritten), 0, 0)],
        );
        check(
            &past(&[], &[17000], Some(&[17000])),
            &[("1663/5/17000", Some(Fate::Dropped), 0, 0)],
        );
    }

    #[test]
    fn what_is_new_what_is_transient_and_what_has_no_file() {
        check(
            &past(&[(20001, 3, true, true)], &[], Some(&[])),
            &[("1663/5/20001", Some(Fate::Created), 3, 0)],
        );
        check(
            &past(&[(20001, 0, true, true)], &[20001], Some(&[20001])),
            &[],
        );
        check(
            &past(&[(20001, 0, true, true)], ALL, Some(ALL)),
            &[
                ("1663/5/20001", Some(Fate::Created), 0, 0),
                ("orders", Some(Fate::Dropped), 0, 3),
            ],
        );
        check(
            &past(&[], &[], Some(&[16390])),
            &[("parted", Some(Fate::Dropped), 0, 0)],
        );
        check(
            &past(
                &[
                    (1259, 4, false, true),
                    (16386, 9, false, true),
                    (16384, 2, false, true),
                ],
                &[],
                Some(&[]),
            ),
            &[("orders", None, 2, 1)],
        );
    }

    #[test]
    fn the_target_is_before_the_lock_unless_others_committed_meanwhile() {
        let target = |lsn: u64, lost, because| Target {
            lsn: Lsn::new(lsn),
            lost,
            because,
        };
        let check = |lock: Option<u64>, early: Option<u64>, expected: (Target, Option<Target>)| {
            let mut past = past(&[], &[], Some(&[]));
            let mark = |lsn: u64, commits| Mark {
                lsn: Lsn::new(lsn),
                commits,
            };
            past.ended.work.first_lock = lock.map(|commits| mark(450, commits));
            past.ended.work.early = early.map(|commits| mark(300, commits));
            assert_eq!(targets(&past), expected);
        };
        let commit = target(500, 2, Because::Commit);
        check(None, None, (commit, None));
        check(Some(0), None, (target(450, 2, Because::Lock), None));
        check(Some(4), None, (commit, Some(target(450, 6, Because::Lock))));
        check(Some(4), Some(5), (target(300, 7, Because::ActsEarly), None));
    }

    #[test]
    fn selections_find_what_may_be_meant() {
        let book = book();
        let check = |past: &Past, query: LogQuery, expected: bool| {
            assert_eq!(query.wants(&past.ended, &book), expected, "{query:?}");
        };
        let drops = || LogQuery {
            drops: true,
            ..LogQuery::default()
        };
        let relation = |name: &str| LogQuery {
            relation: Some(name.into()),
            ..LogQuery::default()
        };
        let inserted = past(&[(16384, 2, false, true)], &[], Some(&[]));
        check(&past(&[], ALL, Some(ALL)), drops(), true);
        check(&past(&[], ALL, None), drops(), true);
        check(&inserted, drops(), false);
        check(&inserted, relation("public.orders"), true);
        check(&inserted, relation("shop.public.orders"), true);
        check(&inserted, relation("orders"), true);
        check(&inserted, relation("order"), false);
        check(&inserted, relation("billing.orders"), false);
        check(
            &past(&[(17000, 1, false, true)], &[], Some(&[])),
            relation("1663/5/17000"),
            true,
        );
        let mut unsettled = inserted.clone();
        unsettled.ended.may_have_begun_before = true;
        check(&unsettled, drops(), true);
        let mut event = inserted.clone();
        event.ended.work.events = vec![ClusterEvent::DropDatabase(9)];
        check(&event, drops(), true);
        let in_range = |from: u64, to: u64| LogQuery {
            from: Some(Lsn::new(from)),
            to: Some(Lsn::new(to)),
            ..LogQuery::default()
        };
        check(&inserted, in_range(500, 501), true);
        check(&inserted, in_range(501, 600), false);
        check(&inserted, in_range(100, 500), false);
    }
}
