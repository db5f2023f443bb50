//! Main data of the resource manager Transaction, all of it: what the log tells of how transactions ended. `xact.rs` reads the little that recovery
//! needs from bodies in pieces, and has the table of a commit's parts.
//!
//! Source: as there, and `ParsePrepareRecord` in `xactdesc.c`, majors 14 to 18. Little-endian.

use super::Action;
use super::dropped::DroppedStatistics;
use super::standby::Invalidation;
use super::xact::{
    HAS_DATABASE, HAS_DROPPED_STATS, HAS_GID, HAS_INFO, HAS_INVALIDATIONS, HAS_LOCKS, HAS_ORIGIN,
    HAS_RELATION_FILES, HAS_SUBTRANSACTIONS, HAS_TWO_PHASE, Operation,
};
use crate::cursor::{Cursor, aligned, index};
use crate::list::{List, ListItem};
use crate::{Error, Lsn, Major, RecordHeader, RelationLocator, Timestamp, TransactionId};

/// How a transaction ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransactionEnd<'a> {
    /// The transaction; of a prepared one not the record's own xid.
    pub xid: TransactionId,
    /// When; not monotonic in WAL order.
    pub time: Timestamp,
    /// Whether it was prepared before.
    pub is_prepared: bool,
    /// The name of a prepared transaction, if the record carries it (`wal_level = logical`).
    pub gid: Option<&'a [u8]>,
    /// The OID of the database; 0 if the record does not say. It does if the transaction changed catalogs.
    pub database: u32,
    /// Its subtransactions that ended in the same way.
    pub subtransactions: List<'a, TransactionId>,
    /// The relations whose files were removed: dropped or rewritten ones after a commit, new ones after an abort.
    pub dropped: List<'a, RelationLocator>,
    /// The objects whose statistics ended with it, since 15: what it dropped, by OID.
    pub dropped_statistics: DroppedStatistics<'a>,
    /// What other sessions must forget.
    pub invalidations: List<'a, Invalidation>,
    /// Where the transaction ended on the server that it was replicated from.
    pub origin: Option<OriginPosition>,
    /// Whether it held locks that exclude even readers.
    pub held_exclusive_locks: bool,
}

/// A place on the server that a transaction was replicated from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OriginPosition {
    /// The LSN there.
    pub lsn: Lsn,
    /// When, there.
    pub time: Timestamp,
}

/// A transaction that was prepared for two-phase commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreparedTransaction<'a> {
    /// The transaction.
    pub xid: TransactionId,
    /// When.
    pub time: Timestamp,
    /// Its name.
    pub gid: &'a [u8],
    /// The OID of the database.
    pub database: u32,
    /// The OID of the role that prepared it.
    pub owner: u32,
    /// Its subtransactions.
    pub subtransactions: List<'a, TransactionId>,
    /// The relations whose files a commit will remove.
    pub dropped_by_commit: List<'a, RelationLocator>,
    /// The relations whose files an abort will remove.
    pub dropped_by_abort: List<'a, RelationLocator>,
    /// What other sessions must forget after a commit.
    pub invalidations: List<'a, Invalidation>,
    /// Where it was prepared on the server that it was replicated from.
    pub origin: Option<OriginPosition>,
}

pub(super) fn parse<'a>(
    header: &RecordHeader,
    mut cursor: Cursor<'a>,
    major: Major,
) -> Result<Action<'a>, Error> {
    let Some(operation) = Operation::of(header.info) else {
        return match header.info & 0x70 {
            0x50 => {
                let top_level = TransactionId(cursor.u32("top-level transaction")?);
                let count = cursor.u32("number of subtransactions")?;
                Ok(Action::AssignSubtransactions {
                    top_level,
                    subtransactions: cursor.list(count, "subtransactions")?,
                })
            }
            0x60 => {
                let count = cursor.u32("number of messages")?;
                Ok(Action::Invalidate {
                    database: 0,
                    messages: cursor.list(count, "messages")?,
                })
            }
            _ => Ok(Action::Other),
        };
    };
    Ok(match operation {
        Operation::Commit | Operation::CommitPrepared => {
            Action::Commit(parse_end(header, operation, cursor, major)?)
        }
        Operation::Abort | Operation::AbortPrepared => {
            Action::Abort(parse_end(header, operation, cursor, major)?)
        }
        Operation::Prepare => Action::Prepare(parse_prepare(cursor, major)?),
    })
}

/// Reads a commit or an abort.
fn parse_end<'a>(
    header: &RecordHeader,
    operation: Operation,
    mut cursor: Cursor<'a>,
    major: Major,
) -> Result<TransactionEnd<'a>, Error> {
    let is_prepared = matches!(
        operation,
        Operation::CommitPrepared | Operation::AbortPrepared
    );
    let mut end = TransactionEnd {
        xid: header.xid,
        time: Timestamp(cursor.i64("time")?),
        is_prepared,
        gid: None,
        database: 0,
        subtransactions: List::EMPTY,
        dropped: List::EMPTY,
        dropped_statistics: DroppedStatistics::NONE,
        invalidations: List::EMPTY,
        origin: None,
        held_exclusive_locks: false,
    };
    let parts = if header.info & HAS_INFO != 0 {
        cursor.u32("parts")?
    } else {
        0
    };
    end.held_exclusive_locks = parts & HAS_LOCKS != 0;
    if parts & HAS_DATABASE != 0 {
        end.database = cursor.u32("database")?;
        cursor.u32("tablespace")?;
    }
    if parts & HAS_SUBTRANSACTIONS != 0 {
        let count = cursor.u32("number of subtransactions")?;
        end.subtransactions = cursor.list(count, "subtransactions")?;
    }
    if parts & HAS_RELATION_FILES != 0 {
        let count = cursor.u32("number of dropped relations")?;
        end.dropped = cursor.list(count, "dropped relations")?;
    }
    if let Some(item_bytes) = major
        .dropped_stats_item_bytes()
        .filter(|_| parts & HAS_DROPPED_STATS != 0)
    {
        let count = cursor.u32("number of dropped statistics")?;
        let bytes = index(count).saturating_mul(index(item_bytes));
        let items = cursor.take(bytes, "dropped statistics")?;
        end.dropped_statistics = DroppedStatistics::new(items, index(item_bytes));
    }
    let is_commit = matches!(operation, Operation::Commit | Operation::CommitPrepared);
    if is_commit && parts & HAS_INVALIDATIONS != 0 {
        let count = cursor.u32("number of invalidation messages")?;
        end.invalidations = cursor.list(count, "invalidation messages")?;
    }
    if parts & HAS_TWO_PHASE != 0 {
        end.xid = TransactionId(cursor.u32("prepared transaction")?);
        if parts & HAS_GID != 0 {
            end.gid = Some(cursor.text("name")?);
        }
    } else if is_prepared {
        return Err(Error::RecordBody {
            problem: "end of a prepared transaction that it does not name",
        });
    }
    if parts & HAS_ORIGIN != 0 {
        end.origin = Some(parse_origin(&mut cursor)?);
    }
    Ok(end)
}

fn parse_origin(cursor: &mut Cursor<'_>) -> Result<OriginPosition, Error> {
    Ok(OriginPosition {
        lsn: Lsn(cursor.u64("origin LSN")?),
        time: Timestamp(cursor.i64("origin time")?),
    })
}

/// Reads a prepare record, of which each part is padded to a multiple of 8.
///
/// | size | field |
/// |---|---|
/// | 8 | magic number and length of the state file |
/// | 4 + 4 | transaction, database |
/// | 8 | time |
/// | 4 | owner |
/// | 4 + 4 + 4 | numbers of subtransactions, of files a commit removes, of files an abort removes |
/// | 4 + 4 | numbers of statistics that a commit and an abort drop, since 15 |
/// | 4 | number of invalidation messages |
/// | 2 | a boolean, padding |
/// | 2 | length of the name with its zero byte |
/// | 16 | replication origin |
/// | | name, subtransactions, both lists of files, both of statistics, invalidation messages, then what is of no interest |
fn parse_prepare<'a>(
    mut cursor: Cursor<'a>,
    major: Major,
) -> Result<PreparedTransaction<'a>, Error> {
    cursor.u64("magic and length")?;
    let xid = TransactionId(cursor.u32("transaction")?);
    let database = cursor.u32("database")?;
    let time = Timestamp(cursor.i64("time")?);
    let owner = cursor.u32("owner")?;
    let subtransactions = cursor.u32("number of subtransactions")?;
    let by_commit = cursor.u32("number of files")?;
    let by_abort = cursor.u32("number of files")?;
    let (stats_by_commit, stats_by_abort) = if major.prepare_counts_dropped_stats() {
        (
            cursor.u32("number of statistics")?,
            cursor.u32("number of statistics")?,
        )
    } else {
        (0, 0)
    };
    let invalidations = cursor.u32("number of invalidation messages")?;
    cursor.u16("relation cache")?;
    let gid_bytes = cursor.u16("length of the name")?;
    let origin = parse_origin(&mut cursor)?;
    let name = cursor.take(aligned(u32::from(gid_bytes)), "name")?;
    let gid = Cursor::new(name).text("name")?;
    let subtransactions = padded_list(&mut cursor, subtransactions, "subtransactions")?;
    let dropped_by_commit = padded_list(&mut cursor, by_commit, "files")?;
    let dropped_by_abort = padded_list(&mut cursor, by_abort, "files")?;
    let stats_item = major.dropped_stats_item_bytes().unwrap_or(0);
    for count in [stats_by_commit, stats_by_abort] {
        cursor.take(aligned(count.saturating_mul(stats_item)), "statistics")?;
    }
    Ok(PreparedTransaction {
        xid,
        time,
        gid,
        database,
        owner,
        subtransactions,
        dropped_by_commit,
        dropped_by_abort,
        invalidations: padded_list(&mut cursor, invalidations, "invalidation messages")?,
        origin: (origin.lsn != Lsn(0)).then_some(origin),
    })
}

fn padded_list<'a, T: ListItem>(
    cursor: &mut Cursor<'a>,
    count: u32,
    field: &'static str,
) -> Result<List<'a, T>, Error> {
    let before = cursor.len();
    let list = cursor.list(count, field)?;
    let taken = before.saturating_sub(cursor.len());
    let padding = taken.wrapping_neg() & 7;
    // After the last list of all nothing need follow.
    cursor.take(padding.min(cursor.len()), field)?;
    Ok(list)
}
