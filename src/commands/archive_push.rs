//! `walden archive-push`: the `archive_command` hook's arguments.

use std::path::PathBuf;

use clap::{Args, ValueHint};

/// Hook for archive_command: store one finished WAL file
///
/// Exits 0 only when the file is safely stored, 1 for anything else; PostgreSQL then keeps the file and tries again.
#[derive(Debug, Args)]
#[command(after_help = "\
In postgresql.conf:
  archive_mode = on
  archive_command = 'walden archive-push --config /etc/walden/walden.toml %p'")]
pub(crate) struct ArchivePushArgs {
    /// The file, as %p gives it
    #[arg(value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub(crate) path: PathBuf,
}
