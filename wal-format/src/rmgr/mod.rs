//! The resource managers: what their records mean.
//!
//! Recovery needs a few kinds of every record that passes: [`RecordKind`], read from bodies that arrive in any pieces. This file finds the main data
//! in a body and keeps as much of it as a kind needs, at most [`FIELD_BYTES`] at a time; `xlog.rs` and `xact.rs` know the structures.
//! The log asks more, of fewer records whose main data was kept: `action.rs` and the files it names. `names.rs` names all kinds.
//!
//! Source: `src/include/access/xlogrecord.h`, majors 14 to 18. The kinds read here have no block references; a body is
//!
//! | size | field |
//! |---|---|
//! | 1 + 2 | 253: replication origin, optional |
//! | 1 + 4 | 252: top-level transaction, optional |
//! | 1 + 1 or 1 + 4 | 255 or 254: length of the main data |
//! | that | main data |

mod action;
mod class_row;
mod dropped;
mod files;
mod glance;
mod heap;
mod names;
mod standby;
mod transaction;
mod xact;
mod xlog;

pub use action::Action;
pub use class_row::ClassRow;
pub use dropped::DroppedStatistics;
pub use glance::{Glance, RowChange};
pub use names::{record_kind_name, resource_manager_name};
pub use standby::{ExclusiveLock, Invalidation, RunningTransactions};
pub use transaction::{OriginPosition, PreparedTransaction, TransactionEnd};

use crate::cursor::{Held, index, length, split};
use crate::record::RecordHeader;
use crate::{Lsn, Major, TimelineId, Timestamp, TransactionId};
use alloc::string::String;
use core::fmt;

/// The longest field of a kind: a prepared transaction's name (200 bytes with its final zero) is the longest but for none.
const FIELD_BYTES: usize = 200;

const XLOG: u8 = 0;
const XACT: u8 = 1;
const STORAGE: u8 = 2;
const DATABASE: u8 = 4;
const TABLESPACE: u8 = 5;
const RELATION_MAP: u8 = 7;
const STANDBY: u8 = 8;
const HEAP2: u8 = 9;
const HEAP: u8 = 10;
const LOGICAL_MESSAGE: u8 = 21;

/// Whether the main data of that resource manager may be a list of any length that tells something.
pub(crate) const fn has_long_lists(resource_manager: u8) -> bool {
    matches!(resource_manager, XACT | STANDBY | HEAP | DATABASE)
}

/// What a record means, where that matters to recovery.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RecordKind {
    /// A transaction committed.
    Commit {
        /// The transaction.
        xid: TransactionId,
        /// When; not monotonic in WAL order.
        time: Timestamp,
    },
    /// A transaction was rolled back.
    Abort {
        /// The transaction.
        xid: TransactionId,
        /// When.
        time: Timestamp,
    },
    /// A prepared transaction committed.
    CommitPrepared {
        /// The prepared transaction (not the record's own xid).
        xid: TransactionId,
        /// When.
        time: Timestamp,
        /// Its name, if the record carries it (`wal_level = logical`).
        gid: Option<String>,
    },
    /// A prepared transaction was rolled back.
    AbortPrepared {
        /// The prepared transaction (not the record's own xid).
        xid: TransactionId,
        /// When.
        time: Timestamp,
        /// Its name, if the record carries it (`wal_level = logical`).
        gid: Option<String>,
    },
    /// A transaction was prepared for two-phase commit.
    Prepare {
        /// The transaction.
        xid: TransactionId,
        /// When.
        time: Timestamp,
        /// Its name.
        gid: String,
    },
    /// `pg_create_restore_point`.
    RestorePoint {
        /// When.
        time: Timestamp,
        /// Its name, at most 63 bytes; those that are not UTF-8 are replaced.
        name: String,
    },
    /// A checkpoint of a running server.
    CheckpointOnline(Checkpoint),
    /// The checkpoint of a server that shut down, or that ended its recovery.
    CheckpointShutdown(Checkpoint),
    /// `pg_switch_wal`: the rest of the segment is zeros.
    #[doc(alias = "XLOG_SWITCH")]
    Switch,
    /// A base backup ended; recovery from it is consistent after this.
    BackupEnd {
        /// The backup's start LSN.
        start: Lsn,
    },
    /// Recovery ended without a checkpoint: promotion.
    EndOfRecovery {
        /// When.
        time: Timestamp,
        /// The timeline that begins.
        timeline: TimelineId,
        /// The timeline that ended.
        previous_timeline: TimelineId,
    },
    /// The server started with other settings than before.
    ParameterChange(Parameters),
    /// Stands in for the rest of a record that a crash cut.
    OverwriteContrecord {
        /// The start of the record that was cut.
        overwritten: Lsn,
        /// When.
        time: Timestamp,
    },
}

/// A checkpoint, as its record and `pg_control` carry it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Where recovery from it starts.
    pub redo: Lsn,
    /// Its timeline.
    pub timeline: TimelineId,
    /// The timeline before, if the record begins a new one; else the same.
    pub previous_timeline: TimelineId,
    /// `full_page_writes`.
    pub full_page_writes: bool,
    /// `wal_level`, since 17.
    pub wal_level: Option<WalLevel>,
    /// The next transaction: epoch in the high half, xid in the low half.
    pub next_full_xid: u64,
    /// The next object identifier.
    pub next_oid: u32,
    /// The next multixact.
    pub next_multixact: u32,
    /// The next offset in the members of multixacts.
    pub next_multixact_offset: u32,
    /// The oldest transaction that is not frozen in any database.
    pub oldest_xid: TransactionId,
    /// The database that has it.
    pub oldest_xid_database: u32,
    /// The oldest multixact that is still in a table.
    pub oldest_multixact: u32,
    /// The database that has it.
    pub oldest_multixact_database: u32,
    /// When, to the second.
    pub time: Timestamp,
    /// The oldest transaction with a commit timestamp; 0 if none.
    pub oldest_commit_timestamp_xid: TransactionId,
    /// The newest transaction with a commit timestamp; 0 if none.
    pub newest_commit_timestamp_xid: TransactionId,
    /// The oldest running transaction; 0 if not known.
    pub oldest_active_xid: TransactionId,
}

/// The settings that a standby or a restored server must not go below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parameters {
    /// `wal_level`.
    pub wal_level: WalLevel,
    /// `wal_log_hints`.
    pub wal_log_hints: bool,
    /// `max_connections`.
    pub max_connections: i32,
    /// `max_worker_processes`.
    pub max_worker_processes: i32,
    /// `max_wal_senders`.
    pub max_wal_senders: i32,
    /// `max_prepared_transactions`.
    pub max_prepared_transactions: i32,
    /// `max_locks_per_transaction`.
    pub max_locks_per_transaction: i32,
    /// `track_commit_timestamp`.
    pub track_commit_timestamp: bool,
}

/// `wal_level`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalLevel {
    /// Not enough to recover from an archive.
    Minimal,
    /// Archiving and physical replication.
    Replica,
    /// Logical decoding too.
    Logical,
}

impl WalLevel {
    pub(crate) const fn from_number(number: i32) -> Option<Self> {
        match number {
            0 => Some(Self::Minimal),
            1 => Some(Self::Replica),
            2 => Some(Self::Logical),
            _ => None,
        }
    }
}

impl fmt::Display for WalLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Minimal => "minimal",
            Self::Replica => "replica",
            Self::Logical => "logical",
        })
    }
}

pub(crate) use xlog::parse_checkpoint;

/// Reads the kind of one record from its body, which may arrive in any pieces.
#[derive(Debug, Clone)]
pub(crate) struct KindReader {
    main: Main,
    state: State,
    /// Body bytes that have not come yet or have not been looked at.
    left: u32,
    /// Of these, bytes that do not matter.
    skip: u32,
    /// The field that is being collected and its length.
    held: Held<FIELD_BYTES>,
    need: usize,
}

/// The reader of the main data.
#[derive(Debug, Clone)]
enum Main {
    Switch,
    Xlog(xlog::Reader),
    Xact(xact::Reader),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The number before a part of the body.
    Part,
    /// A part that does not matter.
    Other,
    /// The length of the main data.
    Length,
    /// The main data.
    Main,
    /// All that is needed was read; what is left does not matter.
    Done,
    /// The body is not what its header promised.
    Malformed,
}

/// What the reader of the main data wants next.
#[derive(Debug, Clone, Copy)]
enum Next {
    /// To pass over so many bytes, then get a field of that many.
    Field { skip: u32, need: usize },
    /// Nothing.
    Done,
    /// To give up.
    Malformed,
}

impl KindReader {
    /// Whether a record with that header may be of interest; quick.
    #[inline]
    pub(crate) const fn may_read(header: &RecordHeader) -> bool {
        matches!(header.resource_manager, XLOG | XACT)
    }

    /// A reader for a record with that header; `None` if its kind is of no interest.
    pub(crate) fn new(header: &RecordHeader, major: Major) -> Option<Self> {
        let main = match header.resource_manager {
            XLOG if is_switch(XLOG, header.info) => Main::Switch,
            XLOG => Main::Xlog(xlog::Reader::new(header.info, major)?),
            XACT => Main::Xact(xact::Reader::new(header.info, header.xid, major)?),
            _ => return None,
        };
        let state = if matches!(main, Main::Switch) {
            State::Done
        } else {
            State::Part
        };
        Some(Self {
            main,
            state,
            left: header.body_length(),
            skip: 0,
            held: Held::new(),
            need: 1,
        })
    }

    /// Takes the next bytes of the body.
    pub(crate) fn feed(&mut self, mut bytes: &[u8]) {
        while !matches!(self.state, State::Done | State::Malformed) {
            let (skipped, rest) = split(bytes, index(self.skip));
            self.skip = self.skip.saturating_sub(length(skipped.len()));
            self.left = self.left.saturating_sub(length(skipped.len()));
            let (taken, whole) = self.held.fill(rest, self.need);
            self.left = self.left.saturating_sub(length(taken));
            bytes = split(rest, taken).1;
            if self.skip != 0 || !whole {
                return;
            }
            self.advance();
            self.held.clear();
        }
    }

    /// What the record means, after its whole body.
    ///
    /// # Errors
    /// The unit error if the body does not hold what its header promises.
    pub(crate) fn finish(self) -> Result<RecordKind, ()> {
        match (self.state, self.main) {
            (State::Done, Main::Switch) => Ok(RecordKind::Switch),
            (State::Done, Main::Xlog(reader)) => reader.finish().ok_or(()),
            (State::Done, Main::Xact(reader)) => reader.finish().ok_or(()),
            _ => Err(()),
        }
    }

    /// Acts on a whole field.
    fn advance(&mut self) {
        let field = self.held.bytes();
        match self.state {
            State::Part => match field {
                [255] => self.want(State::Length, 0, 1),
                [254] => self.want(State::Length, 0, 4),
                [253] => self.want(State::Other, 0, 2),
                [252] => self.want(State::Other, 0, 4),
                _ => self.state = State::Malformed,
            },
            State::Other => self.want(State::Part, 0, 1),
            State::Length => {
                let main = match *field {
                    [short] => u32::from(short),
                    [a, b, c, d] => u32::from_le_bytes([a, b, c, d]),
                    _ => u32::MAX,
                };
                if main == self.left {
                    let next = match &self.main {
                        Main::Xlog(reader) => reader.begin(),
                        Main::Xact(reader) => reader.begin(),
                        Main::Switch => Next::Done,
                    };
                    self.follow(next);
                } else {
                    self.state = State::Malformed;
                }
            }
            State::Main => {
                let next = match &mut self.main {
                    Main::Xlog(reader) => reader.field(field),
                    Main::Xact(reader) => reader.field(field, self.left),
                    Main::Switch => Next::Done,
                };
                self.follow(next);
            }
            State::Done | State::Malformed => {}
        }
    }

    fn follow(&mut self, next: Next) {
        match next {
            Next::Field { skip, need } => self.want(State::Main, skip, need),
            Next::Done => self.state = State::Done,
            Next::Malformed => self.state = State::Malformed,
        }
    }

    fn want(&mut self, state: State, skip: u32, need: usize) {
        let enough = u64::from(skip).saturating_add(need as u64) <= u64::from(self.left)
            && need <= FIELD_BYTES;
        self.state = if enough { state } else { State::Malformed };
        self.skip = skip;
        self.need = need;
    }
}

/// Whether a record with that resource manager and those bits is a segment switch.
pub(crate) const fn is_switch(resource_manager: u8, info: u8) -> bool {
    resource_manager == XLOG && xlog::is_switch(info)
}

/// Text up to the first zero byte.
fn text_of(bytes: &[u8]) -> String {
    let text = bytes.split(|&b| b == 0).next().unwrap_or(&[]);
    String::from_utf8_lossy(text).into_owned()
}
