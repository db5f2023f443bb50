//! Getting data in: replication client, receiver, archive-push, base backup.

pub mod error;
pub mod replication;

pub use error::{Error, Result};
