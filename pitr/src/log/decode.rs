//! From a decoded record to what the log wants to know of it (pure). Owns the translation only; what bytes mean is `wal-format`'s.

use wal_format::{Action, BodyParts, Fork, Major, Record, RecordBody, RelationLocator};

use super::work::{Change, ClusterEvent, End, RowCounts};

/// What a record says. One whose body cannot be read (its CRC was right) says nothing.
pub(super) fn change_of(record: &Record, body: Option<&RecordBody<'_>>) -> Change {
    let Some(body) = body else {
        return Change::None;
    };
    let Ok(parts) = body.parse() else {
        return Change::None;
    };
    let Ok(action) = parts.action() else {
        return Change::None;
    };
    match action {
        Action::Commit(end) => ended(body.major(), record, &end, true),
        Action::Abort(end) => ended(body.major(), record, &end, false),
        Action::Insert => rows(&parts, |rows| rows.inserted = 1),
        Action::MultiInsert { rows: count } => {
            rows(&parts, |rows| rows.inserted = u64::from(count))
        }
        Action::Update { .. } => rows(&parts, |rows| rows.updated = 1),
        Action::Delete => rows(&parts, |rows| rows.deleted = 1),
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
        _ => blocks(&parts),
    }
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
    record: &Record,
    end: &wal_format::TransactionEnd<'_>,
    committed: bool,
) -> Change {
    // Statistics of dropped objects are written since 15; before, silence says nothing.
    let says_drops = major != Major::V14;
    Change::End(Box::new(End {
        xid: match end.is_prepared {
            true => end.xid.0,
            false => record.header.xid.0,
        },
        committed,
        time: end.time,
        gid: end.gid.map(|gid| String::from_utf8_lossy(gid).into_owned()),
        database: end.database,
        subtransactions: end.subtransactions.iter().map(|xid| xid.0).collect(),
        dropped_files: end.dropped.iter().collect(),
        dropped_relations: says_drops.then(|| end.dropped_statistics.relations().collect()),
    }))
}
