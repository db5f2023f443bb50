//! `walden list`: what a user says to see the backups of a repository.

use clap::Args;

use crate::cli::SourceArgs;

/// List backups, their sizes and the window each one opens
///
/// Needs no key and no server: what it shows is read from the repository alone.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  walden list
  walden list s3://acme-pg-eu/prod --cluster 7412345678901234567
  walden list --json | jq '.backups[].label'")]
pub(crate) struct ListArgs {
    #[command(flatten)]
    pub(crate) source: SourceArgs,
}
