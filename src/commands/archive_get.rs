//! `walden archive-get`: the `restore_command` hook's arguments.

use std::path::PathBuf;

use clap::{Args, ValueHint};

/// Hook for restore_command: fetch one WAL or history file
///
/// Exits 0 when the file was delivered, 1 only when the repository is proven not to hold it, and 126 for anything else:
/// PostgreSQL reads 1 as the end of WAL and opens the database.
#[derive(Debug, Args)]
#[command(after_help = "\
In postgresql.conf:
  restore_command = 'walden archive-get --config /etc/walden/walden.toml %f %p'
`walden restore` writes this setting itself.")]
pub(crate) struct ArchiveGetArgs {
    /// Name of the file, as %f gives it
    #[arg(value_name = "NAME")]
    pub(crate) name: String,

    /// Where to put it, as %p gives it
    #[arg(value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub(crate) path: PathBuf,

    /// Plan of a restore, as `walden restore` wrote it: serves its path and nothing else
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) plan: Option<PathBuf>,
}
