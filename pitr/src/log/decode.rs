//! From a decoded record to what the log wants to know of it (pure). Owns the translation only; what bytes mean is `wal-format`'s.

use wal_format::{Action, BodyParts, Fork, Lsn, Major, RecordHeader, RelationLocator};

use super::work::{Birth, Change, ClusterEvent, End, RowCounts};

/// What a record says.
pub(super) fn change_of(header: &RecordHeader, parts: &BodyParts<'_>) -> Change {
    let Ok(action) = parts.action() else {
        return Change::None;
    };
    match action {
        Action::Commit(end) => ended(parts.major(), header, &end, true),
        Action::Abort(end) => ended(parts.major(), header, &end, false),
        Action::Prepare(prepared) => {
            Change::Prepared(String::from_utf8_lossy(prepared.gid).as_ref().into())
        }
        Action::Insert => rows(parts, |rows| rows.inserted = 1),
        Action::MultiInsert { rows: count } => rows(parts, |rows| rows.inserted = u64::from(count)),
        Action::Update { .. } => rows(parts, |rows| rows.updated = 1),
        Action::Delete => rows(parts, |rows| rows.deleted = 1),
        Action::Truncate {
            database,
            relations,
            ..
        } => Change::Truncate {
            database,
            relations: relations.iter().collect(),
        },
        Action::UpdateInPlace { row, .. } => match parts.first_block() {
            Some(block) => Change::InPlace {
                file: block.relation,
                row: (block.block, row),
            },
            None => Change::None,
        },
        Action::CreateFile {
            relation,
            fork: Fork::Main,
        } => Change::CreateFile(relation),
        Action::CreateDatabase {
            database,
            copied_from: Some((from, _)),
            ..
        } if from == database => Change::Cluster(ClusterEvent::MoveDatabase(database)),
        Action::CreateDatabase { database, .. } => {
            Change::Cluster(ClusterEvent::CreateDatabase(database))
        }
        Action::DropDatabase { database, .. } => {
            Change::Cluster(ClusterEvent::DropDatabase(database))
        }
        Action::CreateTablespace { tablespace, .. } => {
            Change::Cluster(ClusterEvent::CreateTablespace(tablespace))
        }
        Action::DropTablespace { tablespace } => {
            Change::Cluster(ClusterEvent::DropTablespace(tablespace))
        }
        Action::ExclusiveLocks(locks) => Change::Locks(
            locks
                .iter()
                .map(|lock| (lock.xid.0, lock.database, lock.relation))
                .collect(),
        ),
        Action::RunningTransactions(running) => Change::NextXid(running.next_xid.0),
        _ => blocks(parts),
    }
}

/// The relation that a record at `start` makes, if it inserts a row into the file `pg_class`.
pub(super) fn birth_of(start: Lsn, parts: &BodyParts<'_>, pg_class: u32) -> Option<Birth> {
    let file = parts.first_block()?.relation;
    let row = parts
        .inserted_class_row()
        .filter(|_| file.relation == pg_class)?;
    let name = String::from_utf8_lossy(row.name);
    if may_give_file_away(&name, row.namespace) {
        return None;
    }
    Some(Birth {
        lsn: start,
        database: file.database,
        oid: row.oid,
        file: row.file,
        tablespace: row.tablespace,
        name: name.into_owned(),
        schema_oid: row.namespace,
        kind: char::from(row.kind),
    })
}

/// Whether a relation of that name may be the transient one of a rewrite, whose file becomes another's: `VACUUM FULL`, `CLUSTER`, `REFRESH` and
/// `ALTER TABLE` make `pg_temp_` with the OID of the table, and swap files; TOAST tables follow.
fn may_give_file_away(name: &str, schema: u32) -> bool {
    const PG_TOAST: u32 = 99;
    let number = name.strip_prefix("pg_temp_");
    let transient = number.is_some_and(|oid| oid.bytes().all(|byte| byte.is_ascii_digit()));
    transient || schema == PG_TOAST
}

fn rows(parts: &BodyParts<'_>, count: impl FnOnce(&mut RowCounts)) -> Change {
    let Some(block) = parts.first_block() else {
        return Change::None;
    };
    let mut rows = RowCounts::default();
    count(&mut rows);
    Change::Rows {
        file: block.relation,
        rows,
        deleted: parts.deleted_row().map(|row| (block.block, row)),
    }
}

fn blocks(parts: &BodyParts<'_>) -> Change {
    let mut files: Vec<RelationLocator> = Vec::new();
    for block in parts.blocks() {
        if block.fork == Fork::Main && files.last() != Some(&block.relation) {
            files.push(block.relation);
        }
    }
    match files.is_empty() {
        true => Change::None,
        false => Change::Blocks(files),
    }
}

fn ended(
    major: Major,
    header: &RecordHeader,
    end: &wal_format::TransactionEnd<'_>,
    committed: bool,
) -> Change {
    // Statistics of dropped objects are written since 15; before, silence says nothing.
    let says_drops = major != Major::V14;
    Change::End(End {
        xid: match end.is_prepared {
            true => end.xid.0,
            false => header.xid.0,
        },
        committed,
        time: end.time,
        gid: end.gid.map(|gid| String::from_utf8_lossy(gid).into_owned()),
        database: end.database,
        subtransactions: end.subtransactions.iter().map(|xid| xid.0).collect(),
        dropped_files: end.dropped.iter().collect(),
        dropped_relations: says_drops.then(|| end.dropped_statistics.relations().collect()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_swapped_tells_no_name() {
        assert!(may_give_file_away("pg_temp_16384", 2200));
        assert!(may_give_file_away("pg_toast_16384", 99));
        assert!(!may_give_file_away("pg_temp_orders", 2200));
        assert!(!may_give_file_away("orders", 2200));
    }
}
