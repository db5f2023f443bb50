//! `walden log`: what happened, and where exactly. Decoded WAL as transactions, newest first, each with what it did to which relation and
//! the target that undoes it.
//!
//! `decode.rs` reads records, `work.rs` counts, `open.rs` finds, `scan.rs` attributes, `history.rs` joins stretches, `names.rs` names, `entry.rs` judges,
//! `query.rs` selects: all pure. `read.rs` and `wal_dir.rs` fetch. How an entry is printed is the command line's.

mod decode;
pub mod entry;
mod history;
pub mod names;
mod open;
mod pieces;
pub mod query;
mod read;
mod scan;
mod wal_dir;
mod work;

pub use entry::{Because, EventChange, Fate, LogEntry, RelationChange, Subject, Target};
pub use names::{NameSource, NamedRelation};
pub use pieces::stored_pieces;
pub use query::LogQuery;
#[doc(hidden)]
pub use read::scan_for_drops;
pub use read::{Count, Hole, Log, LogMaterial, NamesSource, read_log};
pub use scan::Ended;
pub use wal_dir::WalDir;
pub use work::{Birth, ClusterEvent, RowCounts};
