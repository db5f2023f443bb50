//! What a record's header alone tells of what it did, so that of most records nothing else need be read.
//!
//! Agrees with `action.rs`, which reads the main data too: the fuzz target of bodies holds the two against each other.

use super::{
    DATABASE, HEAP, HEAP2, LOGICAL_MESSAGE, RELATION_MAP, STANDBY, STORAGE, TABLESPACE, XACT, heap,
};
use crate::RecordHeader;

/// What a record's header tells of what it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Glance {
    /// One row of the first block's relation changed.
    Row(RowChange),
    /// Blocks changed; which ones is all that there is to know (or [`Action`](super::Action) tells nothing that concerns transactions).
    Blocks,
    /// The main data tells what: see [`Action`](super::Action).
    Action,
}

/// What became of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowChange {
    /// It is new.
    Inserted,
    /// It has a new version.
    Updated,
    /// It is gone.
    Deleted,
}

impl RecordHeader {
    /// What the header alone tells of what the record did.
    #[inline]
    #[must_use]
    pub fn glance(&self) -> Glance {
        /// Of these the main data tells a story: a bit each.
        const TELLING: u32 = 1 << XACT
            | 1 << STORAGE
            | 1 << DATABASE
            | 1 << TABLESPACE
            | 1 << RELATION_MAP
            | 1 << STANDBY
            | 1 << LOGICAL_MESSAGE;
        // No jump table: nobody can foresee where it leads.
        let manager = self.resource_manager;
        if manager == HEAP {
            heap::glance(self.info)
        } else if manager < 32 && TELLING >> manager & 1 != 0
            || manager == HEAP2 && heap::is_multi_insert(self.info)
        {
            Glance::Action
        } else {
            Glance::Blocks
        }
    }
}
