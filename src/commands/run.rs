//! `walden run`: what a user says to receive WAL continuously.

use clap::Args;

use crate::cli::ServerArgs;
use crate::config::Rpo;

/// Receive WAL from the server and store it, until stopped
///
/// Streams WAL through the replication slot, validates every record, and reports to the server only what is safely stored.
/// SIGTERM and SIGINT store what is pending and leave within 10 seconds; a second one leaves at once.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  walden run
  walden run --config /etc/walden/prod.toml --log-format json
  walden run --rpo 1s")]
pub(crate) struct RunArgs {
    /// Longest time for which WAL may be unstored (5s), or sync: COMMIT waits for the store
    #[arg(long, env = "WALDEN_RPO", value_name = "TIME", hide_env_values = true)]
    pub(crate) rpo: Option<Rpo>,

    #[command(flatten)]
    pub(crate) server: ServerArgs,
}
