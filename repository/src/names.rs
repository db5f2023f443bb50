//! The catalogue snapshot of a backup (`<cluster>/backups/<label>/catalog`): names of databases, tablespaces and relations, and the numbers
//! of their files, as JSON lines.
//!
//! Owns the lines, their order and their limits: [`NamesWriter`] for who takes a backup, [`CatalogNames`] for who reads WAL. Does not own how
//! a server is asked (`archiver`) or what a file number of a WAL record means to the log (`pitr`).
//!
//! The first line is a [`Line::Catalog`]; tablespaces and databases follow; the relations of a database stand behind its line.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use wal_format::Lsn;

use crate::descriptor::{FORMAT, text};
use crate::{Error, Result};

/// Most plain bytes of a snapshot, some 600,000 relations. What does not fit is left out, and said.
pub const MAX_CATALOG_BYTES: usize = 64 << 20;
/// Longest line that is read, in bytes: six names of 63 bytes, each byte of which may need six.
const MAX_LINE_BYTES: usize = 8 << 10;
/// `pg_global`, the tablespace of the relations that all databases share.
pub const GLOBAL_TABLESPACE: u32 = 1664;

/// One line of the snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Line {
    /// The first line: what all others belong to.
    Catalog {
        /// Stored format, 1.
        format: u32,
        /// What a reader must understand; an unknown entry is refused.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        requires: Vec<String>,
        /// The backup's label.
        label: String,
        /// PostgreSQL's system identifier.
        #[serde(with = "text")]
        system_identifier: u64,
        /// PostgreSQL's major version.
        pg_version: u16,
        /// When reading began, by the clock of the host that took the backup.
        taken: jiff::Timestamp,
    },
    /// A tablespace.
    Tablespace {
        /// Its OID.
        oid: u32,
        /// Its name.
        name: String,
    },
    /// A database. The relations that follow are its own, or of those that all databases share.
    Database {
        /// Its OID.
        oid: u32,
        /// Its name.
        name: String,
        /// Its default tablespace.
        tablespace: u32,
        /// What its relations were read at; absent if they were not.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        read: Option<ReadAt>,
    },
    /// A relation, with files or (views, partitioned and foreign ones) without.
    Relation {
        /// Its OID.
        oid: u32,
        /// The number of its files; absent if it has none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        file: Option<u32>,
        /// The tablespace of its files; 1664 (`pg_global`): shared by all databases.
        tablespace: u32,
        /// `relkind`: `r` table, `i` index, `t` TOAST table, `S` sequence, `m` materialized view, `p` and `I` partitioned, `v` view, `f`
        /// foreign table.
        kind: char,
        /// Its schema.
        schema: String,
        /// Its name.
        name: String,
        /// The table that an index or a TOAST table belongs to, by OID.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        owner: Option<u32>,
    },
    /// A line of a later version.
    #[serde(other)]
    Unknown,
}

/// The moment at which a database was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadAt {
    /// Insert position of a primary, replay position of a standby, right behind the snapshot.
    #[serde(with = "text")]
    pub lsn: Lsn,
    /// `pg_current_snapshot()`: which transactions the names already show.
    pub snapshot: String,
}

/// Puts a snapshot together, within [`MAX_CATALOG_BYTES`].
#[derive(Debug, Default)]
pub struct NamesWriter {
    bytes: Vec<u8>,
    left_out: u64,
}

impl NamesWriter {
    /// Adds a line. Once the limit is reached this and every later line is left out and counted.
    ///
    /// # Errors
    /// `Unsealable` (class `Bug`): a line that is no JSON.
    pub fn push(&mut self, line: &Line) -> Result<()> {
        if self.left_out > 0 {
            self.left_out += 1;
            return Ok(());
        }
        let before = self.bytes.len();
        serde_json::to_writer(&mut self.bytes, line).map_err(|error| Error::Unsealable {
            key: "catalog".into(),
            reason: error.to_string(),
        })?;
        self.bytes.push(b'\n');
        if self.bytes.len() > MAX_CATALOG_BYTES {
            self.bytes.truncate(before);
            self.left_out += 1;
        }
        Ok(())
    }

    /// The place to [rewind](NamesWriter::rewind) to if what follows cannot be completed.
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark {
            bytes: self.bytes.len(),
            left_out: self.left_out,
        }
    }

    /// Drops every line since `mark`.
    pub fn rewind(&mut self, mark: Mark) {
        self.bytes.truncate(mark.bytes);
        self.left_out = mark.left_out;
    }

    /// Lines that found no room.
    #[must_use]
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// The plain bytes of the object.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// A place between two lines of a [`NamesWriter`].
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    bytes: usize,
    left_out: u64,
}

/// Where a relation's files are: what WAL calls it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileLocator {
    /// The tablespace's OID.
    pub tablespace: u32,
    /// The database's OID; 0 for shared relations.
    pub database: u32,
    /// The number of the files.
    pub file: u32,
}

/// A relation of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelationName {
    /// Its OID.
    pub oid: u32,
    /// The database's OID; 0 for shared relations.
    pub database: u32,
    /// `relkind`.
    pub kind: char,
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// The table that it belongs to, by OID.
    pub owner: Option<u32>,
}

/// A database of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseName {
    /// Its name.
    pub name: String,
    /// What its relations were read at; absent if they were not.
    pub read: Option<ReadAt>,
}

/// A snapshot as it was read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogNames {
    /// The backup's label.
    pub label: String,
    /// PostgreSQL's system identifier.
    pub system_identifier: u64,
    /// When reading began.
    pub taken: jiff::Timestamp,
    tablespaces: BTreeMap<u32, String>,
    databases: BTreeMap<u32, DatabaseName>,
    /// By database and OID.
    relations: BTreeMap<(u32, u32), RelationName>,
    /// The OID behind each file.
    files: BTreeMap<FileLocator, u32>,
}

impl CatalogNames {
    /// Reads the plain bytes of the object found at `key`.
    ///
    /// # Errors
    /// `Corrupt`: not such lines. `Config`: of a later version.
    pub fn parse(bytes: &[u8], key: &str) -> Result<Self> {
        let damaged = |what: String| Error::Damaged {
            key: key.to_owned(),
            what,
        };
        let mut lines = bytes.split_inclusive(|byte| *byte == b'\n');
        let mut next = |number: usize| -> Result<Option<Line>> {
            let Some(line) = lines.next() else {
                return Ok(None);
            };
            let line = line
                .strip_suffix(b"\n")
                .filter(|line| line.len() <= MAX_LINE_BYTES)
                .ok_or_else(|| damaged(format!("line {number} is too long or cut")))?;
            serde_json::from_slice(line)
                .map(Some)
                .map_err(|error| damaged(format!("line {number} cannot be read: {error}")))
        };
        let Some(Line::Catalog {
            format,
            requires,
            label,
            system_identifier,
            taken,
            ..
        }) = next(1)?
        else {
            return Err(damaged("it does not begin as a catalogue snapshot".into()));
        };
        if format > FORMAT || !requires.is_empty() {
            return Err(Error::FromTheFuture {
                key: key.to_owned(),
                what: format!("format {format}, requires {requires:?}"),
            });
        }
        let mut names = Self {
            label,
            system_identifier,
            taken,
            tablespaces: BTreeMap::new(),
            databases: BTreeMap::new(),
            relations: BTreeMap::new(),
            files: BTreeMap::new(),
        };
        let mut database = None;
        let mut number = 1;
        while let Some(line) = {
            number += 1;
            next(number)?
        } {
            names
                .add(line, &mut database)
                .map_err(|what| damaged(format!("line {number}: {what}")))?;
        }
        Ok(names)
    }

    fn add(&mut self, line: Line, current: &mut Option<u32>) -> Result<(), &'static str> {
        match line {
            Line::Catalog { .. } => return Err("a second beginning"),
            Line::Unknown => {}
            Line::Tablespace { oid, name } => {
                self.tablespaces.insert(oid, name);
            }
            Line::Database {
                oid, name, read, ..
            } => {
                *current = Some(oid);
                self.databases.insert(oid, DatabaseName { name, read });
            }
            Line::Relation {
                oid,
                file,
                tablespace,
                kind,
                schema,
                name,
                owner,
            } => {
                let database = match tablespace {
                    GLOBAL_TABLESPACE => 0,
                    _ => current.ok_or("a relation before any database")?,
                };
                if let Some(file) = file {
                    let locator = FileLocator {
                        tablespace,
                        database,
                        file,
                    };
                    self.files.insert(locator, oid);
                }
                let relation = RelationName {
                    oid,
                    database,
                    kind,
                    schema,
                    name,
                    owner,
                };
                self.relations.insert((database, oid), relation);
            }
        }
        Ok(())
    }

    /// The relation that had this file.
    #[must_use]
    pub fn relation_of_file(&self, file: FileLocator) -> Option<&RelationName> {
        let oid = *self.files.get(&file)?;
        self.relation(file.database, oid)
    }

    /// A relation by its database (0: shared) and OID.
    #[must_use]
    pub fn relation(&self, database: u32, oid: u32) -> Option<&RelationName> {
        self.relations.get(&(database, oid))
    }

    /// A database by its OID.
    #[must_use]
    pub fn database(&self, oid: u32) -> Option<&DatabaseName> {
        self.databases.get(&oid)
    }

    /// A tablespace's name by its OID.
    #[must_use]
    pub fn tablespace(&self, oid: u32) -> Option<&str> {
        self.tablespaces.get(&oid).map(String::as_str)
    }

    /// How many databases were read.
    #[must_use]
    pub fn databases_read(&self) -> usize {
        let read = |database: &&DatabaseName| database.read.is_some();
        self.databases.values().filter(read).count()
    }

    /// All relations and where their files were, in no order that means anything.
    pub fn files(&self) -> impl Iterator<Item = (FileLocator, &RelationName)> {
        self.files
            .iter()
            .filter_map(|(file, oid)| Some((*file, self.relation(file.database, *oid)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorClass;

    fn head(format: u32, requires: &[&str]) -> Line {
        Line::Catalog {
            format,
            requires: requires.iter().map(|name| (*name).to_owned()).collect(),
            label: "20260123T142811Z-full-3fa9".into(),
            system_identifier: u64::MAX,
            pg_version: 18,
            taken: jiff::Timestamp::UNIX_EPOCH,
        }
    }

    fn database(oid: u32) -> Line {
        Line::Database {
            oid,
            name: format!("d{oid}"),
            tablespace: 1663,
            read: Some(ReadAt {
                lsn: Lsn::new(77),
                snapshot: "5:9:6".into(),
            }),
        }
    }

    fn relation(oid: u32, file: Option<u32>, tablespace: u32, name: &str) -> Line {
        Line::Relation {
            oid,
            file,
            tablespace,
            kind: 'r',
            schema: "public".into(),
            name: name.into(),
            owner: None,
        }
    }

    fn bytes(lines: &[Line]) -> Vec<u8> {
        let mut writer = NamesWriter::default();
        for line in lines {
            writer.push(line).unwrap();
        }
        assert_eq!(writer.left_out(), 0);
        writer.finish()
    }

    #[test]
    fn a_snapshot_reads_back_with_each_relation_in_its_database() {
        let names = bytes(&[
            head(1, &[]),
            Line::Tablespace {
                oid: 1663,
                name: "pg_default".into(),
            },
            database(5),
            relation(1259, Some(1259), 1663, "pg_class"),
            relation(1262, Some(1262), GLOBAL_TABLESPACE, "pg_database"),
            relation(16400, Some(16500), 1663, "a\n\"b\""),
            relation(16401, None, 1663, "partitioned"),
            database(6),
            relation(16400, Some(16500), 1663, "other"),
        ]);
        let names = CatalogNames::parse(&names, "k").unwrap();
        let name = |database, file, tablespace| {
            let file = FileLocator {
                tablespace,
                database,
                file,
            };
            names
                .relation_of_file(file)
                .map(|relation| relation.name.as_str())
        };
        assert_eq!(name(5, 16500, 1663), Some("a\n\"b\""));
        assert_eq!(name(6, 16500, 1663), Some("other"));
        assert_eq!(name(7, 16500, 1663), None);
        assert_eq!(name(5, 16500, 1700), None);
        assert_eq!(name(5, 16400, 1663), None);
        assert_eq!(name(0, 1262, 1664), Some("pg_database"));
        assert_eq!(names.relation(5, 16401).unwrap().name, "partitioned");
        assert_eq!(names.database(6).unwrap().name, "d6");
        assert_eq!(names.tablespace(1663), Some("pg_default"));
        assert_eq!(names.system_identifier, u64::MAX);
        assert_eq!((names.databases_read(), names.files().count()), (2, 4));
    }

    #[test]
    fn refuses_what_is_no_snapshot_or_a_later_one() {
        let check = |bytes: &[u8], class: ErrorClass| {
            let error = CatalogNames::parse(bytes, "k").unwrap_err();
            assert_eq!(error.class(), class, "{error}");
        };
        check(b"", ErrorClass::Corrupt);
        check(b"{}\n", ErrorClass::Corrupt);
        check(&bytes(&[database(5)]), ErrorClass::Corrupt);
        check(
            &bytes(&[head(1, &[]), relation(1, None, 1663, "x")]),
            ErrorClass::Corrupt,
        );
        check(&bytes(&[head(1, &[]), head(1, &[])]), ErrorClass::Corrupt);
        let whole = bytes(&[head(1, &[]), database(5)]);
        check(&whole[..whole.len() - 1], ErrorClass::Corrupt);
        let mut long = bytes(&[head(1, &[])]);
        long.extend(std::iter::repeat_n(b' ', MAX_LINE_BYTES));
        long.extend(b"{\"is\":\"tablespace\",\"oid\":1,\"name\":\"x\"}\n");
        check(&long, ErrorClass::Corrupt);
        check(&bytes(&[head(2, &[])]), ErrorClass::Config);
        check(&bytes(&[head(1, &["magic"])]), ErrorClass::Config);
    }

    #[test]
    fn passes_over_lines_and_fields_of_later_versions() {
        let mut whole = bytes(&[head(1, &[]), database(5)]);
        whole.extend(b"{\"is\":\"comment\",\"on\":{\"oid\":1}}\n");
        whole.extend(b"{\"is\":\"tablespace\",\"oid\":9,\"name\":\"x\",\"size\":1}\n");
        let names = CatalogNames::parse(&whole, "k").unwrap();
        assert_eq!(names.tablespace(9), Some("x"));
    }

    #[test]
    fn what_finds_no_room_is_left_out_and_counted() {
        let mut writer = NamesWriter::default();
        writer.push(&head(1, &[])).unwrap();
        writer.push(&database(5)).unwrap();
        let long = "x".repeat(1 << 20);
        let mut pushed = 0;
        while writer.left_out() == 0 {
            writer.push(&relation(1, None, 1663, &long)).unwrap();
            pushed += 1;
        }
        writer.push(&relation(2, None, 1663, "small")).unwrap();
        assert_eq!((pushed, writer.left_out()), (64, 2));
        let bytes = writer.finish();
        assert!(bytes.len() <= MAX_CATALOG_BYTES && bytes.ends_with(b"\n"));
    }
}
