//! What a transaction did, in the words of `walden log` (pure): per relation, by name where one is certain, with the target that undoes it.
//!
//! Owns the judgement: dropped or rewritten, truncated or filled again, and which LSN a restore should stop before. The numbers come from
//! `work.rs`, the names from `names.rs`.

use std::collections::{BTreeMap, BTreeSet};

use wal_format::{Lsn, RelationLocator, Timestamp};

use super::history::Past;
use super::names::{NameBook, NameSource, NamedRelation, is_catalog_number};
use super::scan::Ended;
use super::work::{ClusterEvent, RowCounts};

/// Which relation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// By name.
    Named(NamedRelation),
    /// By the place of its file: no snapshot has it.
    File(RelationLocator),
    /// By database and OID: a relation without a file, that no snapshot has.
    Oid(u32, u32),
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
    let fates = Fates::judge(ended, book, &created, &dropped_files, dropped.as_ref());

    for (file, work) in &work.files {
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
            .keys()
            .map(|file| file.database)
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
            match dropped.is_some_and(|dropped| dropped.contains(&relation)) {
                true => explained += 1,
                false => replaced.push(named.map(|named| named.kind)),
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
            named.map_or(Subject::File(file), Subject::Named),
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
                Subject::Oid(database, oid),
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
