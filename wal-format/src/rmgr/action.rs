//! What a record did, for those kinds that tell a story; the structures are in `transaction.rs`, `heap.rs`, `files.rs`, `standby.rs` and `xlog.rs`.
//!
//! Nothing is copied but what is small: lists and texts are read where they stand.

use super::{
    DATABASE, HEAP, HEAP2, LOGICAL_MESSAGE, RELATION_MAP, STANDBY, STORAGE, TABLESPACE, XACT, XLOG,
    files, heap, standby, transaction, xlog,
};
use super::{
    ExclusiveLock, Invalidation, PreparedTransaction, RecordKind, RunningTransactions,
    TransactionEnd, WalLevel,
};
use crate::cursor::Cursor;
use crate::list::List;
use crate::{Error, Fork, Major, RecordHeader, RelationLocator, TransactionId};

/// What a record did.
///
/// Which relation, where it is not said here, is that of the record's first block. OIDs and numbers of databases, tablespaces and relations are as the
/// server wrote them; 0 means none.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Action<'a> {
    /// A transaction committed, prepared or not.
    Commit(TransactionEnd<'a>),
    /// A transaction was rolled back, prepared or not.
    Abort(TransactionEnd<'a>),
    /// A transaction was prepared for two-phase commit.
    Prepare(PreparedTransaction<'a>),
    /// Transactions are subtransactions of another (written once in a while, for standbys).
    AssignSubtransactions {
        /// The transaction that they belong to.
        top_level: TransactionId,
        /// They.
        subtransactions: List<'a, TransactionId>,
    },
    /// What other sessions must forget, before or without a commit.
    Invalidate {
        /// The OID of the database; 0 if the record does not say.
        database: u32,
        /// What.
        messages: List<'a, Invalidation>,
    },
    /// One row was inserted.
    Insert,
    /// One row was deleted.
    Delete,
    /// One row was updated. The second block, if there is one, is that of the old row.
    Update {
        /// Whether the new row is on the same page and no index was touched.
        hot: bool,
    },
    /// Rows were inserted: `COPY` and the like.
    MultiInsert {
        /// How many.
        rows: u16,
    },
    /// `TRUNCATE` (written with `wal_level = logical` only; the new files tell it otherwise).
    Truncate {
        /// The OID of the database.
        database: u32,
        /// The OIDs of the relations, of those given and of those that depend on them.
        relations: List<'a, u32>,
        /// `CASCADE`.
        cascade: bool,
        /// `RESTART IDENTITY`.
        restart_identity: bool,
    },
    /// A speculative insertion (`INSERT … ON CONFLICT`) stays.
    ConfirmInsert,
    /// One row was locked.
    LockRow,
    /// A row of a catalog was overwritten where it stands, at once and whether the transaction commits or not. The record may have no transaction.
    ///
    /// `DROP DATABASE` does this to the database's row in `pg_database` first: a recovery that replays it leaves a database nobody can connect to.
    UpdateInPlace {
        /// The row's number on its page.
        row: u16,
        /// What other sessions must forget, since 18.
        invalidations: List<'a, Invalidation>,
    },
    /// Heap pages were pruned, vacuumed, frozen, marked visible; nothing that a query sees has changed.
    HeapUpkeep,
    /// A relation's file was created.
    CreateFile {
        /// Which relation.
        relation: RelationLocator,
        /// Which of its files.
        fork: Fork,
    },
    /// The files of a relation became shorter.
    TruncateFile {
        /// Which relation.
        relation: RelationLocator,
        /// How many blocks are left of its rows.
        blocks: u32,
        /// Whether the rows' file was truncated,
        main: bool,
        /// the visibility map,
        visibility_map: bool,
        /// the free space map.
        free_space_map: bool,
    },
    /// A database was created.
    CreateDatabase {
        /// Its OID.
        database: u32,
        /// The OID of its tablespace.
        tablespace: u32,
        /// The database (and its tablespace) whose files were copied; `None` if each block is written to WAL instead.
        copied_from: Option<(u32, u32)>,
    },
    /// A database's files were removed, at once and whether the transaction commits or not.
    DropDatabase {
        /// Its OID.
        database: u32,
        /// The OIDs of the tablespaces that they were in. (One alone also when a database was moved.)
        tablespaces: List<'a, u32>,
    },
    /// A tablespace was created.
    CreateTablespace {
        /// Its OID.
        tablespace: u32,
        /// Where it is on the server.
        path: &'a [u8],
    },
    /// A tablespace was removed, at once and whether the transaction commits or not.
    DropTablespace {
        /// Its OID.
        tablespace: u32,
    },
    /// The files of catalogs that are found without catalogs changed.
    UpdateRelationMap {
        /// The OID of the database; 0 for the catalogs that all share.
        database: u32,
        /// The OID of the database's tablespace.
        tablespace: u32,
        /// The size of the new map in bytes.
        length: u32,
    },
    /// `pg_logical_emit_message`.
    LogicalMessage {
        /// The OID of the database.
        database: u32,
        /// Whether it counts only if its transaction commits.
        transactional: bool,
        /// Its prefix.
        prefix: &'a [u8],
        /// The length of the message in bytes.
        length: u64,
    },
    /// Locks that readers on standbys must give way to: `DROP`, `TRUNCATE`, most of `ALTER TABLE`.
    ExclusiveLocks(List<'a, ExclusiveLock>),
    /// The transactions that run at this moment.
    RunningTransactions(RunningTransactions<'a>),
    /// What recovery itself needs: see [`RecordKind`].
    Recovery(RecordKind),
    /// Whole pages and nothing else.
    FullPageImages {
        /// Only because a hint on them changed (checksums, `wal_log_hints`).
        for_hint: bool,
    },
    /// OIDs up to this one may be given out.
    NextOid(u32),
    /// `full_page_writes` changed.
    FullPageWrites(bool),
    /// Where an online checkpoint starts from, since 17.
    CheckpointRedo {
        /// `wal_level`.
        wal_level: WalLevel,
    },
    /// Everything else: see [`record_kind_name`](crate::record_kind_name).
    Other,
}

impl<'a> Action<'a> {
    /// What the record with that header and that main data did.
    #[inline(always)]
    pub(crate) fn parse(
        header: &RecordHeader,
        main: &'a [u8],
        major: Major,
    ) -> Result<Self, Error> {
        let cursor = Cursor::new(main);
        let info = header.info;
        match header.resource_manager {
            HEAP => heap::parse_heap(info, cursor, major),
            HEAP2 => heap::parse_heap2(info, cursor),
            XLOG | XACT | STORAGE | DATABASE | TABLESPACE | RELATION_MAP | STANDBY
            | LOGICAL_MESSAGE => Self::parse_rare(header, cursor, major),
            _ => Ok(Self::Other),
        }
    }

    fn parse_rare(header: &RecordHeader, cursor: Cursor<'a>, major: Major) -> Result<Self, Error> {
        let info = header.info;
        match header.resource_manager {
            XACT => transaction::parse(header, cursor, major),
            XLOG => xlog::parse_action(info, cursor, major),
            STORAGE => files::parse_storage(info, cursor),
            DATABASE => files::parse_database(info, cursor, major),
            TABLESPACE => files::parse_tablespace(info, cursor),
            RELATION_MAP => files::parse_relation_map(info, cursor),
            STANDBY => standby::parse_standby(info, cursor),
            LOGICAL_MESSAGE => standby::parse_message(info, cursor),
            _ => Ok(Self::Other),
        }
    }
}
