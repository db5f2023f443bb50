//! Main data of the resource manager XLOG: checkpoints, restore points, end of recovery, settings, overwritten records.
//!
//! Source: `src/include/catalog/pg_control.h` (`CheckPoint`), `src/include/access/xlog_internal.h` (`xl_restore_point`, `xl_end_of_recovery`,
//! `xl_parameter_change`, `xl_overwrite_contrecord`), majors 14 to 18. Little-endian.
//!
//! | kind | `xl_info` | bytes | fields |
//! |---|---|---|---|
//! | checkpoint, shutdown and online | 0x00, 0x10 | 88 | see [`parse_checkpoint`] |
//! | switch | 0x40 | 0 | |
//! | backup end | 0x50 | 8 | start LSN |
//! | parameter change | 0x60 | 28 | 6 numbers of 4 bytes, 2 booleans, padding |
//! | restore point | 0x70 | 72 | time, name (64, padded with zeros) |
//! | end of recovery | 0x90 | 16, 24 since 17 | time, timeline, timeline before, since 17 `wal_level` and padding |
//! | overwrite contrecord | 0xD0 | 16 | LSN, time |

use super::{Action, Checkpoint, Next, Parameters, RecordKind, WalLevel, text_of};
use crate::cursor::Cursor;
use crate::{Error, Lsn, Major, TimelineId, Timestamp, TransactionId};

/// The size of a checkpoint in bytes, the same in all majors.
pub(crate) const CHECKPOINT_BYTES: usize = 88;

const INFO_MASK: u8 = 0xF0;
const SWITCH: u8 = 0x40;

/// Whether a record of this resource manager is a segment switch.
pub(super) const fn is_switch(info: u8) -> bool {
    info & INFO_MASK == SWITCH
}

#[derive(Debug, Clone)]
pub(super) struct Reader {
    layout: Layout,
    major: Major,
    kind: Option<RecordKind>,
}

#[derive(Debug, Clone, Copy)]
enum Layout {
    CheckpointShutdown,
    CheckpointOnline,
    BackupEnd,
    ParameterChange,
    RestorePoint,
    EndOfRecovery,
    OverwriteContrecord,
}

impl Reader {
    pub(super) const fn new(info: u8, major: Major) -> Option<Self> {
        let layout = match info & INFO_MASK {
            0x00 => Layout::CheckpointShutdown,
            0x10 => Layout::CheckpointOnline,
            0x50 => Layout::BackupEnd,
            0x60 => Layout::ParameterChange,
            0x70 => Layout::RestorePoint,
            0x90 => Layout::EndOfRecovery,
            0xD0 => Layout::OverwriteContrecord,
            _ => return None,
        };
        Some(Self {
            layout,
            major,
            kind: None,
        })
    }

    /// All of these are one field of a known size.
    pub(super) const fn begin(&self) -> Next {
        Next::Field {
            skip: 0,
            need: self.bytes(),
        }
    }

    const fn bytes(&self) -> usize {
        match self.layout {
            Layout::CheckpointShutdown | Layout::CheckpointOnline => CHECKPOINT_BYTES,
            Layout::BackupEnd => 8,
            Layout::ParameterChange => 28,
            Layout::RestorePoint => 72,
            Layout::EndOfRecovery => 16,
            Layout::OverwriteContrecord => 16,
        }
    }

    pub(super) fn field(&mut self, bytes: &[u8]) -> Next {
        match self.parse(bytes) {
            Ok(kind) => {
                self.kind = Some(kind);
                Next::Done
            }
            Err(_) => Next::Malformed,
        }
    }

    pub(super) fn finish(self) -> Option<RecordKind> {
        self.kind
    }

    fn parse(&self, bytes: &[u8]) -> Result<RecordKind, Error> {
        let mut cursor = Cursor::new(bytes);
        Ok(match self.layout {
            Layout::CheckpointShutdown => {
                RecordKind::CheckpointShutdown(parse_checkpoint(&mut cursor, self.major)?)
            }
            Layout::CheckpointOnline => {
                RecordKind::CheckpointOnline(parse_checkpoint(&mut cursor, self.major)?)
            }
            Layout::BackupEnd => RecordKind::BackupEnd {
                start: Lsn(cursor.u64("start LSN")?),
            },
            Layout::ParameterChange => RecordKind::ParameterChange(parse_parameters(&mut cursor)?),
            Layout::RestorePoint => RecordKind::RestorePoint {
                time: Timestamp(cursor.i64("time")?),
                name: text_of(&cursor.take_array::<64>("name")?),
            },
            Layout::EndOfRecovery => RecordKind::EndOfRecovery {
                time: Timestamp(cursor.i64("time")?),
                timeline: parse_timeline(&mut cursor)?,
                previous_timeline: parse_timeline(&mut cursor)?,
            },
            Layout::OverwriteContrecord => RecordKind::OverwriteContrecord {
                overwritten: Lsn(cursor.u64("overwritten LSN")?),
                time: Timestamp(cursor.i64("time")?),
            },
        })
    }
}

/// What a record did, of which all of the main data is there.
pub(super) fn parse_action<'a>(
    info: u8,
    mut cursor: Cursor<'a>,
    major: Major,
) -> Result<Action<'a>, Error> {
    if let Some(reader) = Reader::new(info, major) {
        let field = cursor.take(reader.bytes(), "main data")?;
        return reader.parse(field).map(Action::Recovery);
    }
    Ok(match info & INFO_MASK {
        SWITCH => Action::Recovery(RecordKind::Switch),
        0x30 => Action::NextOid(cursor.u32("next OID")?),
        0x80 => Action::FullPageWrites(cursor.bool(0, "full_page_writes")?),
        0xA0 => Action::FullPageImages { for_hint: true },
        0xB0 => Action::FullPageImages { for_hint: false },
        0xE0 if major.has_checkpoint_redo() => Action::CheckpointRedo {
            wal_level: parse_wal_level(&mut cursor)?,
        },
        _ => Action::Other,
    })
}

fn parse_timeline(cursor: &mut Cursor<'_>) -> Result<TimelineId, Error> {
    TimelineId::new(cursor.u32("timeline")?).ok_or(Error::Truncated { field: "timeline" })
}

fn parse_wal_level(cursor: &mut Cursor<'_>) -> Result<WalLevel, Error> {
    WalLevel::from_number(cursor.i32("wal_level")?).ok_or(Error::Truncated { field: "wal_level" })
}

fn parse_parameters(cursor: &mut Cursor<'_>) -> Result<Parameters, Error> {
    let max_connections = cursor.i32("max_connections")?;
    let max_worker_processes = cursor.i32("max_worker_processes")?;
    let max_wal_senders = cursor.i32("max_wal_senders")?;
    let max_prepared_transactions = cursor.i32("max_prepared_transactions")?;
    let max_locks_per_transaction = cursor.i32("max_locks_per_transaction")?;
    let wal_level = parse_wal_level(cursor)?;
    Ok(Parameters {
        wal_level,
        wal_log_hints: cursor.bool(0, "wal_log_hints")?,
        max_connections,
        max_worker_processes,
        max_wal_senders,
        max_prepared_transactions,
        max_locks_per_transaction,
        track_commit_timestamp: cursor.bool(0, "track_commit_timestamp")?,
    })
}

/// Reads the 88 bytes of a checkpoint.
///
/// | offset | size | field | | offset | size | field |
/// |---|---|---|---|---|---|---|
/// | 0 | 8 | redo | | 44 | 4 | oldest xid |
/// | 8 | 4 | timeline | | 48 | 4 | its database |
/// | 12 | 4 | timeline before | | 52 | 4 | oldest multixact |
/// | 16 | 1 | full_page_writes | | 56 | 4 | its database |
/// | 20 | 4 | `wal_level`, since 17 (before: padding) | | 64 | 8 | time, seconds since 1970 |
/// | 24 | 8 | next xid with its epoch | | 72 | 4 | oldest xid with a commit timestamp |
/// | 32 | 4 | next OID | | 76 | 4 | newest xid with a commit timestamp |
/// | 36 | 4 | next multixact | | 80 | 4 | oldest running xid |
/// | 40 | 4 | next multixact offset | | 84 | 4 | padding |
pub(crate) fn parse_checkpoint(cursor: &mut Cursor<'_>, major: Major) -> Result<Checkpoint, Error> {
    let redo = Lsn(cursor.u64("redo")?);
    let timeline = parse_timeline(cursor)?;
    let previous_timeline = parse_timeline(cursor)?;
    let full_page_writes = cursor.bool(3, "full_page_writes")?;
    let wal_level = cursor.i32("wal_level")?;
    let wal_level = match WalLevel::from_number(wal_level) {
        _ if !major.checkpoint_has_wal_level() => None,
        Some(wal_level) => Some(wal_level),
        None => return Err(Error::Truncated { field: "wal_level" }),
    };
    let next_full_xid = cursor.u64("next xid")?;
    let next_oid = cursor.u32("next OID")?;
    let next_multixact = cursor.u32("next multixact")?;
    let next_multixact_offset = cursor.u32("next multixact offset")?;
    let oldest_xid = TransactionId(cursor.u32("oldest xid")?);
    let oldest_xid_database = cursor.u32("oldest xid's database")?;
    let oldest_multixact = cursor.u32("oldest multixact")?;
    let oldest_multixact_database = cursor.u32("oldest multixact's database")?;
    cursor.u32("padding")?;
    let time = Timestamp::from_unix_seconds(cursor.i64("time")?);
    let oldest_commit_timestamp_xid = TransactionId(cursor.u32("oldest commit timestamp xid")?);
    let newest_commit_timestamp_xid = TransactionId(cursor.u32("newest commit timestamp xid")?);
    let oldest_active_xid = TransactionId(cursor.u32("oldest active xid")?);
    cursor.u32("padding")?;
    Ok(Checkpoint {
        redo,
        timeline,
        previous_timeline,
        full_page_writes,
        wal_level,
        next_full_xid,
        next_oid,
        next_multixact,
        next_multixact_offset,
        oldest_xid,
        oldest_xid_database,
        oldest_multixact,
        oldest_multixact_database,
        time,
        oldest_commit_timestamp_xid,
        newest_commit_timestamp_xid,
        oldest_active_xid,
    })
}
