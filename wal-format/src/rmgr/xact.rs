//! Main data of the resource manager Transaction: commit, abort, prepare and the end of prepared transactions.
//!
//! Source: `src/include/access/xact.h` (`xl_xact_commit`, `xl_xact_abort`, `xl_xact_xinfo`, `xl_xact_prepare`) and `ParseCommitRecord`,
//! `ParseAbortRecord` in `xactdesc.c`, majors 14 to 18. Little-endian. A commit or abort is
//!
//! | size | field | present |
//! |---|---|---|
//! | 8 | time | always |
//! | 4 | which of the following parts there are | bit 0x80 of `xl_info` |
//! | 8 | database | bit 0 |
//! | 4 + 4 n | subtransactions | bit 1 |
//! | 4 + 12 n | dropped relation files | bit 2 |
//! | 4 + 12 n, 4 + 16 n since 18 | dropped statistics, since 15 | bit 8 |
//! | 4 + 16 n | invalidation messages, commits only | bit 3 |
//! | 4 | the prepared transaction | bit 4 |
//! | to its zero byte | its name | bit 7, if bit 4 |
//! | 16 | LSN and time at the replication origin | bit 5 |
//!
//! The lists may be of any length, so they are passed over without being kept.

use super::{FIELD_BYTES, Next, RecordKind, text_of};
use crate::cursor::{Cursor, index};
use crate::{Error, Major, Timestamp, TransactionId};
use alloc::string::String;

const OPERATION_MASK: u8 = 0x70;
pub(super) const HAS_INFO: u8 = 0x80;

pub(super) const HAS_DATABASE: u32 = 1 << 0;
pub(super) const HAS_SUBTRANSACTIONS: u32 = 1 << 1;
pub(super) const HAS_RELATION_FILES: u32 = 1 << 2;
pub(super) const HAS_INVALIDATIONS: u32 = 1 << 3;
pub(super) const HAS_TWO_PHASE: u32 = 1 << 4;
pub(super) const HAS_ORIGIN: u32 = 1 << 5;
pub(super) const HAS_LOCKS: u32 = 1 << 6;
pub(super) const HAS_GID: u32 = 1 << 7;
pub(super) const HAS_DROPPED_STATS: u32 = 1 << 8;

#[derive(Debug, Clone)]
pub(super) struct Reader {
    operation: Operation,
    has_info: bool,
    major: Major,
    xid: TransactionId,
    part: Part,
    /// The bits of the parts that are still to come.
    parts: u32,
    time: Option<Timestamp>,
    two_phase: Option<TransactionId>,
    gid: Option<String>,
}

/// What happened to the transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Commit,
    Prepare,
    Abort,
    CommitPrepared,
    AbortPrepared,
}

impl Operation {
    /// The operation of a record with those bits; `None` for the kinds that end and prepare nothing.
    pub(super) const fn of(info: u8) -> Option<Self> {
        Some(match info & OPERATION_MASK {
            0x00 => Self::Commit,
            0x10 => Self::Prepare,
            0x20 => Self::Abort,
            0x30 => Self::CommitPrepared,
            0x40 => Self::AbortPrepared,
            _ => return None,
        })
    }
}

/// The field that is being read.
#[derive(Debug, Clone, Copy)]
enum Part {
    Time,
    Info,
    /// The count of a list whose items have that many bytes.
    Count {
        item_bytes: u32,
    },
    TwoPhase,
    Gid,
    PrepareHeader,
}

impl Reader {
    pub(super) const fn new(info: u8, xid: TransactionId, major: Major) -> Option<Self> {
        let Some(operation) = Operation::of(info) else {
            return None;
        };
        let part = if matches!(operation, Operation::Prepare) {
            Part::PrepareHeader
        } else {
            Part::Time
        };
        let has_info = info & HAS_INFO != 0;
        Some(Self {
            operation,
            has_info,
            major,
            xid,
            part,
            parts: 0,
            time: None,
            two_phase: None,
            gid: None,
        })
    }

    pub(super) const fn begin(&self) -> Next {
        let need = match self.part {
            Part::PrepareHeader if self.major.prepare_counts_dropped_stats() => 72,
            Part::PrepareHeader => 64,
            _ => 8,
        };
        Next::Field { skip: 0, need }
    }

    /// Takes the field that was asked for; `left` bytes of main data follow it.
    pub(super) fn field(&mut self, bytes: &[u8], left: u32) -> Next {
        self.try_field(bytes, left).unwrap_or(Next::Malformed)
    }

    fn try_field(&mut self, bytes: &[u8], left: u32) -> Result<Next, Error> {
        let mut cursor = Cursor::new(bytes);
        Ok(match self.part {
            Part::Time => {
                self.time = Some(Timestamp(cursor.i64("time")?));
                self.part = Part::Info;
                if self.has_info {
                    Next::Field { skip: 0, need: 4 }
                } else {
                    Next::Done
                }
            }
            Part::Info => {
                self.parts = cursor.u32("parts")?;
                self.next_part(0, left)
            }
            Part::Count { item_bytes } => {
                let count = cursor.u32("count")?;
                self.next_part(count.saturating_mul(item_bytes), left)
            }
            Part::TwoPhase => {
                self.two_phase = Some(TransactionId(cursor.u32("prepared transaction")?));
                self.part = Part::Gid;
                // What follows the name is short, so a name's field may hold some of it too.
                let need = index(left).min(FIELD_BYTES);
                if self.parts & HAS_GID != 0 {
                    Next::Field { skip: 0, need }
                } else {
                    Next::Done
                }
            }
            Part::Gid => {
                if !bytes.contains(&0) {
                    return Ok(Next::Malformed);
                }
                self.gid = Some(text_of(bytes));
                Next::Done
            }
            Part::PrepareHeader => self.parse_prepare(&mut cursor)?,
        })
    }

    /// What to read after `skip` bytes of the part before.
    fn next_part(&mut self, skip: u32, left: u32) -> Next {
        let mut skip = skip;
        let mut take = |bit: u32| {
            let there = self.parts & bit != 0;
            self.parts &= !bit;
            there
        };
        if take(HAS_DATABASE) {
            skip = skip.saturating_add(8);
        }
        let is_commit = matches!(
            self.operation,
            Operation::Commit | Operation::CommitPrepared
        );
        self.part = if take(HAS_SUBTRANSACTIONS) {
            Part::Count { item_bytes: 4 }
        } else if take(HAS_RELATION_FILES) {
            Part::Count { item_bytes: 12 }
        } else if let Some(item_bytes) = self
            .major
            .dropped_stats_item_bytes()
            .filter(|_| take(HAS_DROPPED_STATS))
        {
            Part::Count { item_bytes }
        } else if is_commit && take(HAS_INVALIDATIONS) {
            Part::Count { item_bytes: 16 }
        } else if take(HAS_TWO_PHASE) {
            Part::TwoPhase
        } else {
            return if skip <= left {
                Next::Done
            } else {
                Next::Malformed
            };
        };
        Next::Field { skip, need: 4 }
    }

    /// Reads the header of a prepare record: 72 bytes, in 14 without the two counts of dropped statistics.
    ///
    /// | offset | size | field |
    /// |---|---|---|
    /// | 0 | 8 | magic number and length of the state file |
    /// | 8 | 4 | transaction |
    /// | 12 | 4 | database |
    /// | 16 | 8 | time |
    /// | 24 | 16 | owner, counts of subtransactions and relation files |
    /// | 40 | 8 | counts of dropped statistics, since 15 |
    /// | 48 | 6 | count of invalidation messages, a boolean, padding |
    /// | 54 | 2 | length of the name with its zero byte |
    /// | 56 | 16 | replication origin |
    /// | 72 | | name |
    fn parse_prepare(&mut self, cursor: &mut Cursor<'_>) -> Result<Next, Error> {
        cursor.u64("magic and length")?;
        self.xid = TransactionId(cursor.u32("transaction")?);
        cursor.u32("database")?;
        self.time = Some(Timestamp(cursor.i64("time")?));
        cursor.take(16, "owner and counts")?;
        if self.major.prepare_counts_dropped_stats() {
            cursor.u64("counts of dropped statistics")?;
        }
        cursor.take(6, "invalidation messages")?;
        let gid_bytes = cursor.u16("length of the name")?;
        self.part = Part::Gid;
        Ok(Next::Field {
            skip: 0,
            need: usize::from(gid_bytes),
        })
    }

    pub(super) fn finish(self) -> Option<RecordKind> {
        let Self {
            xid,
            time,
            two_phase,
            gid,
            ..
        } = self;
        let time = time?;
        Some(match self.operation {
            Operation::Commit => RecordKind::Commit { xid, time },
            Operation::Abort => RecordKind::Abort { xid, time },
            Operation::CommitPrepared => RecordKind::CommitPrepared {
                xid: two_phase?,
                time,
                gid,
            },
            Operation::AbortPrepared => RecordKind::AbortPrepared {
                xid: two_phase?,
                time,
                gid,
            },
            Operation::Prepare => RecordKind::Prepare {
                xid,
                time,
                gid: gid?,
            },
        })
    }
}
