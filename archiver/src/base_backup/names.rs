//! Takes a backup's catalogue snapshot: asks every database for the names and file numbers of its relations, and stores the answers.
//!
//! Owns the questions, their limits and what is said about databases that do not answer. A snapshot is a service to `walden log`: nothing
//! that goes wrong here fails a backup. Does not own the form of what is stored (`repository::names`).

use std::time::Duration;

use repository::descriptor::FORMAT;
use repository::key::BackupObject;
use repository::names::{GLOBAL_TABLESPACE, Line, MAX_CATALOG_BYTES, NamesWriter, ReadAt};
use tokio::time::Instant;

use super::BackupRequest;
use super::holders::Holders;
use super::parts::{self, Place};
use crate::replication::{Connection, ConnectionInfo, Mode, QueryResult};
use crate::upload::error_text;
use crate::{Error, Result};

/// How long all databases together may take.
const TOTAL_DEADLINE: Duration = Duration::from_secs(10 * 60);
/// How long one database may take.
const DATABASE_DEADLINE: Duration = Duration::from_secs(2 * 60);
/// Relations asked for at a time.
const FETCH_ROWS: u32 = 5000;
/// Most warnings that are kept; the others are counted.
const MAX_WARNINGS: usize = 20;
/// Databases that any cluster should have, for a role that has none of its own.
const USUAL_DATABASES: [&str; 2] = ["postgres", "template1"];

/// The catalogue is read as it was at one moment, and never waits long for somebody else's lock.
const BEGIN: &str = "SET lock_timeout = '5s'; SET statement_timeout = '60s'; SET client_encoding = 'UTF8'; SET search_path = pg_catalog; \
                     SET idle_in_transaction_session_timeout = '60s'; BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

/// The snapshot is taken when this begins; the position is read right behind it.
const POSITION: &str = "SELECT pg_current_snapshot()::text AS snapshot, \
                        (SELECT system_identifier::text FROM pg_control_system()) AS system_identifier, \
                        (SELECT oid::text FROM pg_database WHERE datname = current_database()) AS database, \
                        CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END::text AS lsn";

/// Mapped catalogs have `relfilenode` 0; for all others the row itself, unlike the function, is of the snapshot's moment. Temporary
/// relations leave no trace in WAL.
const RELATIONS: &str = "DECLARE names NO SCROLL CURSOR FOR \
     SELECT c.oid::text AS oid, \
            (CASE WHEN c.relfilenode <> 0 THEN c.relfilenode ELSE pg_relation_filenode(c.oid) END)::text AS file, \
            (CASE WHEN c.reltablespace <> 0 THEN c.reltablespace ELSE d.dattablespace END)::text AS tablespace, \
            c.relkind::text AS kind, n.nspname::text AS schema, c.relname::text AS name, coalesce(i.indrelid, t.oid)::text AS owner \
     FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
          JOIN pg_database d ON d.datname = current_database() \
          LEFT JOIN pg_index i ON i.indexrelid = c.oid \
          LEFT JOIN pg_class t ON t.reltoastrelid = c.oid AND c.relkind = 't' \
     WHERE c.relkind IN ('r', 'i', 't', 'S', 'm', 'p', 'I', 'v', 'f') AND c.relpersistence <> 't'";

/// What became of the snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamesTaken {
    /// Databases whose relations are in it.
    pub databases: u32,
    /// Relations in it.
    pub relations: u64,
    /// Its stored bytes; 0 if none is stored.
    pub stored_bytes: u64,
    /// What is missing from it, and why.
    pub warnings: Vec<String>,
    /// Warnings beyond those.
    pub more_warnings: u32,
}

impl NamesTaken {
    fn warn(&mut self, warning: String) {
        match self.warnings.len() < MAX_WARNINGS {
            true => self.warnings.push(warning),
            false => self.more_warnings = self.more_warnings.saturating_add(1),
        }
    }
}

/// Reads the names and stores them.
pub(super) async fn take(
    request: &BackupRequest<'_>,
    holders: &Holders,
    place: &Place,
) -> NamesTaken {
    let mut taken = NamesTaken::default();
    let mut writer = NamesWriter::default();
    let begun = Instant::now();
    if let Err(error) = read(request, place, begun, &mut writer, &mut taken).await {
        taken.warn(format!("no names: {}", error_text(&error)));
        return taken;
    }
    if writer.left_out() > 0 {
        taken.warn(format!(
            "names of {} relations found no room in {} MiB",
            writer.left_out(),
            MAX_CATALOG_BYTES >> 20
        ));
        taken.relations = taken.relations.saturating_sub(writer.left_out());
    }
    match store(holders, place, writer.finish()).await {
        Ok(bytes) => taken.stored_bytes = bytes,
        Err(error) => taken.warn(format!("names are not stored: {}", error_text(&error))),
    }
    taken
}

async fn store(holders: &Holders, place: &Place, plain: Vec<u8>) -> Result<u64> {
    let (sealed, _) = parts::seal(holders.uploader(), place, BackupObject::Catalog, plain).await?;
    holders.put(place, &sealed).await?;
    Ok(sealed.stored_size())
}

/// A database as the list of them has it.
struct Database {
    oid: u32,
    name: String,
    tablespace: u32,
}

async fn read(
    request: &BackupRequest<'_>,
    place: &Place,
    begun: Instant,
    writer: &mut NamesWriter,
    taken: &mut NamesTaken,
) -> Result<()> {
    writer.push(&Line::Catalog {
        format: FORMAT,
        requires: Vec::new(),
        label: place.label.to_string(),
        system_identifier: place.cluster.system_identifier,
        pg_version: place.pg_version,
        taken: (request.now)(),
    })?;
    let list = list_databases(request.server, writer);
    let databases = within("list databases", DATABASE_DEADLINE, list).await?;
    let mut shared = true;
    for database in databases {
        let mark = writer.mark();
        let left = TOTAL_DEADLINE.saturating_sub(begun.elapsed());
        let limit = left.min(DATABASE_DEADLINE);
        let during = format!("read names in database {:?}", database.name);
        let reading = read_database(request.server, place, &database, shared, writer);
        match within(&during, limit, reading).await {
            Ok(relations) => {
                shared = false;
                taken.databases += 1;
                taken.relations += relations;
            }
            Err(error) => {
                writer.rewind(mark);
                writer.push(&database.line(None))?;
                taken.warn(format!(
                    "no names of database {:?}: {}",
                    database.name,
                    error_text(&error)
                ));
            }
        }
    }
    Ok(())
}

impl Database {
    fn line(&self, read: Option<ReadAt>) -> Line {
        Line::Database {
            oid: self.oid,
            name: self.name.clone(),
            tablespace: self.tablespace,
            read,
        }
    }
}

/// Writes the tablespaces and gives the databases that accept connections. Those that do not get their line at once.
async fn list_databases(
    server: &ConnectionInfo,
    writer: &mut NamesWriter,
) -> Result<Vec<Database>> {
    let mut sql = connect_anywhere(server).await?;
    sql.simple_query(BEGIN).await?;
    let spaces = sql
        .simple_query("SELECT oid::text AS oid, spcname::text AS name FROM pg_tablespace")
        .await?;
    for row in 0..spaces.rows.len() {
        writer.push(&Line::Tablespace {
            oid: number(&spaces, row, "oid")?,
            name: name(&spaces, row, "name")?,
        })?;
    }
    let answer = sql
        .simple_query(
            "SELECT oid::text AS oid, datname::text AS name, dattablespace::text AS tablespace, datallowconn::text AS open \
             FROM pg_database ORDER BY pg_database.oid",
        )
        .await?;
    let mut databases = Vec::new();
    for row in 0..answer.rows.len() {
        let database = Database {
            oid: number(&answer, row, "oid")?,
            name: name(&answer, row, "name")?,
            tablespace: number(&answer, row, "tablespace")?,
        };
        match answer.text(row, "open") {
            Some("true") => databases.push(database),
            // template0: nobody can have changed it.
            _ => writer.push(&database.line(None))?,
        }
    }
    close(sql).await;
    Ok(databases)
}

/// The database of the settings, else one that every cluster should have.
async fn connect_anywhere(server: &ConnectionInfo) -> Result<Connection> {
    let first = match Connection::connect(server, Mode::Sql).await {
        Ok(connection) => return Ok(connection),
        Err(error) => error,
    };
    for usual in USUAL_DATABASES {
        if let Ok(connection) = Connection::connect(&at(server, usual), Mode::Sql).await {
            return Ok(connection);
        }
    }
    Err(first)
}

fn at(server: &ConnectionInfo, database: &str) -> ConnectionInfo {
    let mut server = server.clone();
    server.database = Some(database.to_owned());
    server
}

/// Writes a database and its relations. Gives their number.
async fn read_database(
    server: &ConnectionInfo,
    place: &Place,
    database: &Database,
    shared: bool,
    writer: &mut NamesWriter,
) -> Result<u64> {
    let mut sql = Connection::connect(&at(server, &database.name), Mode::Sql).await?;
    sql.simple_query(BEGIN).await?;
    let position = sql.simple_query(POSITION).await?;
    // Of several hosts another one may have answered, or the database may have been replaced since it was listed.
    for (column, expected) in [
        (
            "system_identifier",
            place.cluster.system_identifier.to_string(),
        ),
        ("database", database.oid.to_string()),
    ] {
        let found = position.text(0, column).unwrap_or_default().to_owned();
        if found != expected {
            return Err(Error::WrongServer {
                what: column,
                expected,
                found,
            });
        }
    }
    let lsn = position.text(0, "lsn").and_then(|lsn| lsn.parse().ok());
    writer.push(&database.line(Some(ReadAt {
        lsn: lsn.ok_or_else(|| unusable("lsn"))?,
        snapshot: name(&position, 0, "snapshot")?,
    })))?;
    sql.simple_query(RELATIONS).await?;
    let fetch = format!("FETCH {FETCH_ROWS} FROM names");
    let mut relations = 0;
    loop {
        let answer = sql.simple_query(&fetch).await?;
        if answer.rows.is_empty() {
            close(sql).await;
            return Ok(relations);
        }
        for row in 0..answer.rows.len() {
            let line = relation(&answer, row)?;
            let is_shared = matches!(
                line,
                Line::Relation {
                    tablespace: GLOBAL_TABLESPACE,
                    ..
                }
            );
            if shared || !is_shared {
                writer.push(&line)?;
                relations += 1;
            }
        }
    }
}

fn relation(answer: &QueryResult, row: usize) -> Result<Line> {
    let optional = |column| match answer.text(row, column) {
        Some(_) => number(answer, row, column).map(Some),
        None => Ok(None),
    };
    let kind = name(answer, row, "kind")?;
    Ok(Line::Relation {
        oid: number(answer, row, "oid")?,
        file: optional("file")?,
        tablespace: number(answer, row, "tablespace")?,
        kind: kind.chars().next().ok_or_else(|| unusable("kind"))?,
        schema: name(answer, row, "schema")?,
        name: name(answer, row, "name")?,
        owner: optional("owner")?,
    })
}

async fn close(sql: Connection) {
    if let Err(error) = sql.close().await {
        tracing::debug!(error = error_text(&error), "the SQL connection ended badly");
    }
}

fn number(answer: &QueryResult, row: usize, column: &str) -> Result<u32> {
    let value = answer.text(row, column).and_then(|text| text.parse().ok());
    value.ok_or_else(|| unusable(column))
}

/// A name; where a `SQL_ASCII` database holds bytes that are no UTF-8, with replacement characters.
fn name(answer: &QueryResult, row: usize, column: &str) -> Result<String> {
    let index = answer.columns.iter().position(|found| found == column);
    let value = index.and_then(|index| answer.rows.get(row)?.get(index)?.as_ref());
    let value = value.ok_or_else(|| unusable(column))?;
    Ok(String::from_utf8_lossy(value).into_owned())
}

fn unusable(column: &str) -> Error {
    Error::Protocol {
        during: "read names".to_owned(),
        reason: format!("the answer has no usable {column}"),
    }
}

async fn within<T>(
    during: &str,
    limit: Duration,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result,
        Err(_) => Err(Error::Timeout {
            during: during.to_owned(),
            after: limit,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn answer(values: &[(&str, Option<&[u8]>)]) -> QueryResult {
        QueryResult {
            columns: values.iter().map(|(name, _)| (*name).to_owned()).collect(),
            rows: vec![
                values
                    .iter()
                    .map(|(_, value)| value.map(Bytes::copy_from_slice))
                    .collect(),
            ],
            command_tags: Vec::new(),
        }
    }

    fn row<'a>(file: Option<&'a [u8]>, name: &'a [u8]) -> QueryResult {
        answer(&[
            ("oid", Some(b"16384")),
            ("file", file),
            ("tablespace", Some(b"1663")),
            ("kind", Some(b"r")),
            ("schema", Some(b"public")),
            ("name", Some(name)),
            ("owner", None),
        ])
    }

    #[test]
    fn a_row_becomes_a_line() {
        let check = |answer: &QueryResult, expected: (Option<u32>, &str)| {
            let Line::Relation { file, name, .. } = relation(answer, 0).unwrap() else {
                panic!("no relation");
            };
            assert_eq!((file, name.as_str()), expected);
        };
        check(&row(Some(b"7"), b"orders"), (Some(7), "orders"));
        check(&row(None, b"parent"), (None, "parent"));
        check(&row(Some(b"7"), b"caf\xe9"), (Some(7), "caf\u{fffd}"));
        assert!(relation(&row(Some(b"seven"), b"x"), 0).is_err());
        assert!(relation(&answer(&[("oid", None)]), 0).is_err());
    }

    #[test]
    fn warnings_are_bounded() {
        let mut taken = NamesTaken::default();
        for number in 0..25 {
            taken.warn(number.to_string());
        }
        assert_eq!((taken.warnings.len(), taken.more_warnings), (20, 5));
    }
}
