//! Getting data in: replication client, receiver, archive-push, base backup.

pub mod assembler;
pub mod base_backup;
pub mod branches;
mod commit_watch;
pub mod error;
pub mod progress;
pub mod push;
pub mod receive;
pub mod replication;
pub mod resume;
pub mod server_identity;
pub mod synchronous;
pub mod tail;
pub mod upload;

pub use error::{Error, Result};
