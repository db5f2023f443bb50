//! What a file or an OID was called (pure): from the catalogue snapshots of backups and from rewrites seen in WAL, never guessed, and
//! always with where the name comes from.
//!
//! Owns the order of preference. Does not fetch snapshots (`read.rs`).

use std::collections::BTreeMap;
use std::sync::Arc;

use repository::names::{CatalogNames, FileLocator, RelationName};
use wal_format::{Lsn, RelationLocator};

use super::scan::Link;
use super::work::Birth;

/// Most links that are followed from file to file.
const MAX_HOPS: usize = 64;
/// Most new relations that are remembered: the newest.
const MAX_BIRTHS: usize = 65_536;
/// OIDs and file numbers below this are of catalogs that every database has.
const FIRST_NORMAL_OID: u32 = 16384;

/// Where a name comes from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NameSource {
    /// The snapshot of the newest backup before.
    Snapshot {
        /// The backup.
        label: String,
    },
    /// That, and rewrites of the relation since.
    Rewritten {
        /// The backup.
        label: String,
    },
    /// A later backup's snapshot, in which the same file or OID has this name.
    Later {
        /// The backup.
        label: String,
    },
}

impl NameSource {
    /// The backup.
    pub fn label(&self) -> &str {
        match self {
            Self::Snapshot { label } | Self::Rewritten { label } | Self::Later { label } => label,
        }
    }
}

/// A relation by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedRelation {
    /// Its database; `None` for relations that all share.
    pub database: Option<String>,
    /// The database's OID; 0 for those.
    pub database_oid: u32,
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Its OID.
    pub oid: u32,
    /// `relkind`.
    pub kind: char,
    /// The OID of the table that it belongs to.
    pub owner: Option<u32>,
    /// Where this comes from.
    pub source: NameSource,
}

/// The snapshots at hand, by the position from which on each is the newest, and rewrites.
#[derive(Clone, Debug, Default)]
pub struct NameBook {
    snapshots: Vec<(Lsn, Arc<CatalogNames>)>,
    links: Vec<Link>,
    /// By database and OID, and by database and number of the file.
    born: [BTreeMap<(u32, u32), Vec<Birth>>; 2],
    births: usize,
    /// Where WAL begins again behind what is missing.
    behind_holes: Vec<Lsn>,
}

impl NameBook {
    /// Adds a snapshot that was taken at `position`, and keeps the order.
    pub fn add(&mut self, position: Lsn, names: Arc<CatalogNames>) {
        self.snapshots.push((position, names));
        self.snapshots.sort_by_key(|(position, _)| *position);
    }

    /// Keeps only the snapshots that `keep` accepts by their position.
    pub fn retain(&mut self, keep: impl Fn(Lsn) -> bool) {
        self.snapshots.retain(|(position, _)| keep(*position));
    }

    /// Whether the snapshot of that position is at hand.
    pub fn has(&self, position: Lsn) -> bool {
        self.snapshots.iter().any(|(known, _)| *known == position)
    }

    /// Adds rewrites.
    pub fn add_links(&mut self, links: impl IntoIterator<Item = Link>) {
        self.links.extend(links);
    }

    /// Adds relations that were made.
    pub(super) fn add_births(&mut self, born: impl IntoIterator<Item = Birth>) {
        for birth in born {
            if self.births >= MAX_BIRTHS {
                return;
            }
            self.births += 1;
            let [by_oid, by_file] = &mut self.born;
            if birth.file != 0 {
                let of_file = by_file.entry((birth.database, birth.file)).or_default();
                of_file.push(birth.clone());
            }
            let of_oid = by_oid.entry((birth.database, birth.oid)).or_default();
            of_oid.push(birth);
        }
    }

    /// WAL is missing before this position: OIDs and numbers may have been given to others in it.
    pub(super) fn add_hole(&mut self, behind: Lsn) {
        self.behind_holes.push(behind);
    }

    /// What WAL says that the relation with this file was called when it was made, of the one that had it at `at`.
    pub fn birth_of_file(&self, at: Lsn, file: RelationLocator) -> Option<&Birth> {
        let birth = self.newest_birth(&self.born[1], at, (file.database, file.relation))?;
        (birth.tablespace == 0 || birth.tablespace == file.tablespace).then_some(birth)
    }

    /// The same by the relation's OID.
    pub fn birth_of_relation(&self, at: Lsn, database: u32, oid: u32) -> Option<&Birth> {
        self.newest_birth(&self.born[0], at, (database, oid))
    }

    fn newest_birth<'a>(
        &self,
        born: &'a BTreeMap<(u32, u32), Vec<Birth>>,
        at: Lsn,
        key: (u32, u32),
    ) -> Option<&'a Birth> {
        let earlier = born.get(&key)?.iter().filter(|birth| birth.lsn < at);
        let newest = earlier.max_by_key(|birth| birth.lsn)?;
        let between = |behind: &Lsn| newest.lsn < *behind && *behind <= at;
        (!self.behind_holes.iter().any(between)).then_some(newest)
    }

    /// Whose file this was at `at`.
    pub fn of_file(&self, at: Lsn, file: RelationLocator) -> Option<NamedRelation> {
        let known = |names: &CatalogNames, file: RelationLocator| {
            names.relation_of_file(locator(file)).cloned()
        };
        if let Some(found) = self.before(at, |names| known(names, file)) {
            return Some(found);
        }
        let mut place = (file, at);
        for _ in 0..MAX_HOPS {
            let link = self
                .links
                .iter()
                .find(|link| link.new == place.0 && link.commit <= place.1);
            let Some(link) = link else { break };
            let of_relation = |names: &CatalogNames| {
                let relation = known(names, link.old)?;
                (relation.oid == link.relation).then_some(relation)
            };
            if let Some(mut found) = self.before(link.commit, of_relation) {
                found.source = NameSource::Rewritten {
                    label: found.source.label().to_owned(),
                };
                return Some(found);
            }
            place = (link.old, link.commit);
        }
        self.after(at, |names| known(names, file))
    }

    /// What a relation was called at `at`; `database` is 0 for those that all share.
    pub fn of_relation(&self, at: Lsn, database: u32, oid: u32) -> Option<NamedRelation> {
        let known = |names: &CatalogNames| names.relation(database, oid).cloned();
        self.before(at, known).or_else(|| self.after(at, known))
    }

    /// The name of a database.
    pub fn database(&self, at: Lsn, oid: u32) -> Option<&str> {
        self.in_order(at)
            .find_map(|(names, _)| names.database(oid).map(|database| database.name.as_str()))
    }

    /// The name of a tablespace.
    pub fn tablespace(&self, at: Lsn, oid: u32) -> Option<&str> {
        self.in_order(at)
            .find_map(|(names, _)| names.tablespace(oid))
    }

    /// The file of `pg_database`, which only a rewrite of it changes.
    pub fn pg_database_file(&self) -> u32 {
        const PG_DATABASE: u32 = 1262;
        let newest = self.snapshots.last().and_then(|(_, names)| {
            names
                .files()
                .find(|(file, relation)| file.database == 0 && relation.oid == PG_DATABASE)
        });
        newest.map_or(PG_DATABASE, |(file, _)| file.file)
    }

    /// Snapshots before `at`, newest first, then those after, oldest first; with whether they are later.
    fn in_order(&self, at: Lsn) -> impl Iterator<Item = (&CatalogNames, bool)> {
        let cut = self
            .snapshots
            .partition_point(|(position, _)| *position <= at);
        let (before, after) = self.snapshots.split_at(cut);
        let before = before
            .iter()
            .rev()
            .map(|(_, names)| (names.as_ref(), false));
        before.chain(after.iter().map(|(_, names)| (names.as_ref(), true)))
    }

    fn before(
        &self,
        at: Lsn,
        find: impl Fn(&CatalogNames) -> Option<RelationName>,
    ) -> Option<NamedRelation> {
        let mut before = self.in_order(at).filter(|(_, later)| !later);
        before.find_map(|(names, later)| Some(named(names, find(names)?, later)))
    }

    fn after(
        &self,
        at: Lsn,
        find: impl Fn(&CatalogNames) -> Option<RelationName>,
    ) -> Option<NamedRelation> {
        let mut after = self.in_order(at).filter(|(_, later)| *later);
        after.find_map(|(names, later)| Some(named(names, find(names)?, later)))
    }
}

fn named(names: &CatalogNames, relation: RelationName, later: bool) -> NamedRelation {
    let label = names.label.clone();
    NamedRelation {
        database: names
            .database(relation.database)
            .map(|database| database.name.clone()),
        database_oid: relation.database,
        schema: relation.schema,
        name: relation.name,
        oid: relation.oid,
        kind: relation.kind,
        owner: relation.owner,
        source: match later {
            true => NameSource::Later { label },
            false => NameSource::Snapshot { label },
        },
    }
}

fn locator(file: RelationLocator) -> FileLocator {
    FileLocator {
        tablespace: file.tablespace,
        database: file.database,
        file: file.relation,
    }
}

/// Whether a file whose name is not known can only be a catalog's.
pub fn is_catalog_number(file: RelationLocator) -> bool {
    file.relation < FIRST_NORMAL_OID
}

#[cfg(test)]
mod tests {
    use super::*;
    use repository::names::{Line, NamesWriter, ReadAt};

    fn names(label: &str, relations: &[(u32, u32, &str)]) -> Arc<CatalogNames> {
        let mut writer = NamesWriter::default();
        let mut push = |line| writer.push(&line).unwrap();
        push(Line::Catalog {
            format: 1,
            requires: Vec::new(),
            label: label.into(),
            system_identifier: 1,
            pg_version: 18,
            taken: jiff::Timestamp::UNIX_EPOCH,
        });
        push(Line::Database {
            oid: 5,
            name: "shop".into(),
            tablespace: 1663,
            read: Some(ReadAt {
                lsn: Lsn::new(1),
                snapshot: "3:3:".into(),
            }),
        });
        for (oid, file, name) in relations {
            push(Line::Relation {
                oid: *oid,
                file: Some(*file),
                tablespace: 1663,
                kind: 'r',
                schema: "public".into(),
                name: (*name).into(),
                owner: None,
            });
        }
        Arc::new(CatalogNames::parse(&writer.finish(), "k").unwrap())
    }

    fn file(number: u32) -> RelationLocator {
        RelationLocator {
            tablespace: 1663,
            database: 5,
            relation: number,
        }
    }

    #[test]
    fn names_come_from_the_newest_snapshot_before_then_rewrites_then_later_ones() {
        let mut book = NameBook::default();
        book.add(
            Lsn::new(100),
            names(
                "a",
                &[(16384, 16384, "old_name"), (16390, 16390, "rewritten")],
            ),
        );
        book.add(
            Lsn::new(500),
            names(
                "b",
                &[
                    (16384, 16384, "new_name"),
                    (16395, 16395, "young"),
                    (16390, 16400, "rewritten"),
                ],
            ),
        );
        book.add_links([Link {
            commit: Lsn::new(300),
            old: file(16390),
            new: file(16400),
            relation: 16390,
        }]);
        let check = |at: u64, number: u32, expected: Option<(&str, &str)>| {
            let found = book.of_file(Lsn::new(at), file(number));
            let found = found.as_ref().map(|found| {
                let source = match &found.source {
                    NameSource::Snapshot { label } => label.clone(),
                    NameSource::Rewritten { label } => format!("{label} rewritten"),
                    NameSource::Later { label } => format!("{label} later"),
                };
                (found.name.clone(), source)
            });
            let expected = expected.map(|(name, source)| (name.to_owned(), source.to_owned()));
            assert_eq!(found, expected, "{number} at {at}");
        };
        check(99, 16384, Some(("old_name", "a later")));
        check(100, 16384, Some(("old_name", "a")));
        check(499, 16384, Some(("old_name", "a")));
        check(500, 16384, Some(("new_name", "b")));
        check(400, 16395, Some(("young", "b later")));
        check(400, 16400, Some(("rewritten", "a rewritten")));
        check(500, 16400, Some(("rewritten", "b")));
        // The rewrite was after this.
        check(200, 16400, Some(("rewritten", "b later")));
        check(400, 16999, None);
        let by_oid = book.of_relation(Lsn::new(400), 5, 16395).unwrap();
        assert_eq!(by_oid.database.as_deref(), Some("shop"));
        assert_eq!(book.of_relation(Lsn::new(400), 6, 16395), None);
        assert_eq!(book.pg_database_file(), 1262);
    }

    #[test]
    fn a_name_from_wal_is_the_newest_before_and_none_behind_a_hole() {
        let birth = |lsn: u64, file: u32, tablespace: u32, name: &str| Birth {
            lsn: Lsn::new(lsn),
            database: 5,
            oid: 16390,
            file,
            tablespace,
            name: name.into(),
            schema_oid: 2200,
            kind: 'r',
        };
        let mut book = NameBook::default();
        book.add_births([
            birth(300, 16390, 0, "second"),
            birth(100, 16390, 0, "first"),
        ]);
        book.add_births([birth(50, 16380, 1700, "elsewhere"), birth(40, 0, 0, "view")]);
        let by_file = |book: &NameBook, at: u64, number: u32| {
            let birth = book.birth_of_file(Lsn::new(at), file(number));
            birth.map(|birth| birth.name.clone()).unwrap_or_default()
        };
        let by_oid = |book: &NameBook, at: u64| {
            let birth = book.birth_of_relation(Lsn::new(at), 5, 16390);
            birth.map(|birth| birth.name.clone()).unwrap_or_default()
        };
        for (at, of_file, of_oid) in [
            (400, "second", "second"),
            (300, "first", "first"),
            (100, "", "elsewhere"),
            (50, "", "view"),
            (40, "", ""),
        ] {
            assert_eq!(by_file(&book, at, 16390), of_file, "{at}");
            assert_eq!(by_oid(&book, at), of_oid, "{at}");
        }
        assert_eq!(by_file(&book, 400, 16380), "", "of another tablespace");
        assert_eq!(book.birth_of_relation(Lsn::new(400), 6, 16390), None);
        book.add_hole(Lsn::new(350));
        assert_eq!(
            (by_file(&book, 349, 16390), by_oid(&book, 350)),
            ("second".into(), String::new())
        );
    }

    #[test]
    fn a_link_whose_old_file_was_another_relations_is_not_believed() {
        let mut book = NameBook::default();
        book.add(Lsn::new(100), names("a", &[(16390, 16390, "other")]));
        book.add_links([Link {
            commit: Lsn::new(300),
            old: file(16390),
            new: file(16400),
            relation: 16391,
        }]);
        assert_eq!(book.of_file(Lsn::new(400), file(16400)), None);
    }
}
