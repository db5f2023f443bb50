//! PostgreSQL's own byte formats: LSN, timelines, WAL pages and records, `pg_control`, `backup_label`.
//!
//! `no_std` + alloc: the compiler proves that nothing here does I/O. Nothing here panics on any input or allocates by what unread input
//! says. Only [`Lsn`] arithmetic (`lsn.rs`) and the byte cursor (`cursor.rs`) compute with numbers taken from input; everything else asks them.
#![no_std]
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::cast_possible_truncation,
        clippy::panic,
        clippy::arithmetic_side_effects,
        clippy::expect_used,
        clippy::unreachable
    )
)]
extern crate alloc;
#[cfg(test)]
extern crate std;

mod backup_label;
mod body;
mod control_file;
mod crc;
mod cursor;
mod data_page;
mod error;
mod file_name;
mod list;
mod lsn;
mod page;
mod record;
mod rmgr;
mod segment;
mod step;
mod stream;
mod timeline;
mod timestamp;
mod version;

pub use backup_label::{BackupHistory, BackupLabel, IncrementalFrom};
pub use body::{
    BlockImage, BlockReference, Blocks, BodyParts, Fork, ImageCompression, RecordBody,
    RelationLocator,
};
pub use control_file::{ClusterState, ControlFile};
pub use data_page::{DATA_PAGE_BYTES, DataPage};
pub use error::Error;
pub use file_name::{SegmentName, WalFileName};
pub use list::{List, ListItem};
pub use lsn::{Lsn, SegmentNumber, SegmentSize};
pub use page::{LongHeader, PAGE_BYTES, PageHeader};
pub use record::{Record, RecordHeader, TransactionId};
pub use rmgr::{
    Action, Checkpoint, ClassRow, DroppedStatistics, ExclusiveLock, Glance, Invalidation,
    OriginPosition, Parameters, PreparedTransaction, RecordKind, RowChange, RunningTransactions,
    TransactionEnd, WalLevel, record_kind_name, resource_manager_name,
};
pub use segment::{Completion, SegmentScanner, SegmentSummary, Transactions, summarise_segment};
pub use step::{EndReason, InvalidReason, Step};
pub use stream::{Decoded, DecoderConfig, OpenRecord, WalDecoder};
pub use timeline::{HistoryEntry, TimelineHistory, TimelineId};
pub use timestamp::Timestamp;
pub use version::Major;

#[cfg(any(test, feature = "testing"))]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

#[cfg(test)]
mod reference;
