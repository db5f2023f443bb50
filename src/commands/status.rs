//! `walden status`: what a user says to see how far archiving is.

use clap::Args;

use crate::cli::ServerArgs;

/// Show how far WAL is received and stored, the lag, the slot and any gaps
///
/// Asks the server and the repository. A gap, or WAL that the server no longer keeps, shows in the exit code.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  walden status
  walden status --json | jq .lag_bytes")]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}
