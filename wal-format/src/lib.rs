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

mod error;
mod file_name;
mod lsn;
mod timeline;
mod timestamp;

pub use error::Error;
pub use file_name::{SegmentName, WalFileName};
pub use lsn::{Lsn, SegmentNumber, SegmentSize};
pub use timeline::{HistoryEntry, TimelineHistory, TimelineId};
pub use timestamp::Timestamp;
