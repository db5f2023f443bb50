//! Main data of the resource managers Standby and LogicalMessage, and the messages that tell sessions what to forget.
//!
//! Source: `standbydefs.h`, `lockdefs.h`, `sinval.h`, `message.h`, majors 14 to 18. Little-endian.
//!
//! | kind | `xl_info` | fields |
//! |---|---|---|
//! | Standby lock | 0x00 | number (4), locks (12 each): transaction, database, relation |
//! | Standby running transactions | 0x10 | their number (4), that of subtransactions (4), boolean (1), padding (3), next xid (4), oldest (4), newest ended (4), xids (4 each) |
//! | Standby invalidations | 0x20 | database (4), tablespace (4), boolean (1), padding (3), number (4), messages (16 each) |
//! | Logical message | 0x00 | database (4), boolean (1), padding (3), length of the prefix with its zero byte (8), of the message (8), both |

use super::Action;
use crate::cursor::Cursor;
use crate::list::{List, ListItem};
use crate::{Error, RelationLocator, TransactionId};

const KIND_MASK: u8 = 0xF0;

/// A lock on a relation that excludes even readers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExclusiveLock {
    /// The transaction that holds it.
    pub xid: TransactionId,
    /// The OID of the database; 0 for a relation that all share.
    pub database: u32,
    /// The OID of the relation (not the number of its file).
    pub relation: u32,
}

/// The transactions that run at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningTransactions<'a> {
    /// The next transaction to begin.
    pub next_xid: TransactionId,
    /// The oldest that runs.
    pub oldest_running: TransactionId,
    /// The newest that has ended.
    pub newest_ended: TransactionId,
    /// Those that run.
    pub transactions: List<'a, TransactionId>,
    /// Their subtransactions.
    pub subtransactions: List<'a, TransactionId>,
    /// Whether not all subtransactions are listed.
    pub incomplete: bool,
}

/// What sessions must forget: a hint at what a transaction changed in the catalogs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Invalidation {
    /// A row that is found by a system cache.
    CatalogRow {
        /// The number of the cache, which differs between majors.
        cache: u8,
        /// The OID of the database; 0 if all share it.
        database: u32,
    },
    /// All rows of a catalog.
    Catalog {
        /// The OID of the database.
        database: u32,
        /// The catalog's OID.
        catalog: u32,
    },
    /// What is known of a relation.
    Relation {
        /// The OID of the database.
        database: u32,
        /// The relation's OID; 0 for all.
        relation: u32,
    },
    /// An open file.
    File(RelationLocator),
    /// The map of catalogs' files.
    RelationMap {
        /// The OID of the database; 0 for the catalogs that all share.
        database: u32,
    },
    /// Snapshots for scanning a catalog.
    Snapshot {
        /// The OID of the database.
        database: u32,
        /// The catalog's OID.
        relation: u32,
    },
    /// What logical replication knows of a relation.
    RelationSync {
        /// The OID of the database.
        database: u32,
        /// The relation's OID; 0 for all.
        relation: u32,
    },
    /// Of a kind that is not known here.
    Unknown {
        /// The number of the kind.
        kind: i8,
    },
}

impl ListItem for u32 {
    const BYTES: usize = 4;

    fn read(bytes: &[u8]) -> Option<Self> {
        bytes.first_chunk().copied().map(Self::from_le_bytes)
    }
}

impl ListItem for TransactionId {
    const BYTES: usize = 4;

    fn read(bytes: &[u8]) -> Option<Self> {
        u32::read(bytes).map(Self)
    }
}

impl ListItem for RelationLocator {
    const BYTES: usize = 12;

    fn read(bytes: &[u8]) -> Option<Self> {
        Self::read(&mut Cursor::new(bytes)).ok()
    }
}

impl ListItem for ExclusiveLock {
    const BYTES: usize = 12;

    fn read(bytes: &[u8]) -> Option<Self> {
        let mut cursor = Cursor::new(bytes);
        Some(Self {
            xid: TransactionId(cursor.u32("transaction").ok()?),
            database: cursor.u32("database").ok()?,
            relation: cursor.u32("relation").ok()?,
        })
    }
}

impl ListItem for Invalidation {
    const BYTES: usize = 16;

    fn read(bytes: &[u8]) -> Option<Self> {
        let mut cursor = Cursor::new(bytes);
        let kind = i8::from_le_bytes(cursor.take_array("kind").ok()?);
        cursor.take(3, "padding").ok()?;
        let file = cursor.clone();
        let database = cursor.u32("database").ok()?;
        let object = cursor.u32("object").ok()?;
        Some(match kind {
            -1 => Self::Catalog {
                database,
                catalog: object,
            },
            -2 => Self::Relation {
                database,
                relation: object,
            },
            -3 => Self::File(RelationLocator::read(&mut { file }).ok()?),
            -4 => Self::RelationMap { database },
            -5 => Self::Snapshot {
                database,
                relation: object,
            },
            -6 => Self::RelationSync {
                database,
                relation: object,
            },
            _ => match u8::try_from(kind) {
                Ok(cache) => Self::CatalogRow { cache, database },
                Err(_) => Self::Unknown { kind },
            },
        })
    }
}

pub(super) fn parse_standby(info: u8, mut cursor: Cursor<'_>) -> Result<Action<'_>, Error> {
    Ok(match info & KIND_MASK {
        0x00 => {
            let count = cursor.u32("number of locks")?;
            Action::ExclusiveLocks(cursor.list(count, "locks")?)
        }
        0x10 => {
            let count = cursor.u32("number of transactions")?;
            let subtransactions = cursor.u32("number of subtransactions")?;
            let incomplete = cursor.bool(3, "overflow")?;
            Action::RunningTransactions(RunningTransactions {
                next_xid: TransactionId(cursor.u32("next xid")?),
                oldest_running: TransactionId(cursor.u32("oldest running xid")?),
                newest_ended: TransactionId(cursor.u32("newest ended xid")?),
                transactions: cursor.list(count, "transactions")?,
                subtransactions: cursor.list(subtransactions, "subtransactions")?,
                incomplete,
            })
        }
        0x20 => {
            let database = cursor.u32("database")?;
            cursor.u64("tablespace, boolean")?;
            let count = cursor.u32("number of messages")?;
            Action::Invalidate {
                database,
                messages: cursor.list(count, "messages")?,
            }
        }
        _ => Action::Other,
    })
}

pub(super) fn parse_message(info: u8, mut cursor: Cursor<'_>) -> Result<Action<'_>, Error> {
    if info & KIND_MASK != 0 {
        return Ok(Action::Other);
    }
    let database = cursor.u32("database")?;
    let transactional = cursor.bool(3, "transactional")?;
    let prefix_length = cursor.u64("length of the prefix")?;
    let length = cursor.u64("length of the message")?;
    let prefix_length = usize::try_from(prefix_length).unwrap_or(usize::MAX);
    let prefix = cursor.take(prefix_length, "prefix")?;
    Ok(Action::LogicalMessage {
        database,
        transactional,
        prefix: Cursor::new(prefix).text("prefix")?,
        length,
    })
}
