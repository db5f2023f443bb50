//! `walden backup`: what a user says to take a base backup.

use clap::Args;

use crate::cli::ServerArgs;
use crate::units::ByteSize;

/// Take a full base backup over the replication connection
///
/// Needs WAL archiving to be at work: a backup counts only once the WAL it needs is stored too.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  walden backup
  walden backup --fast-checkpoint --max-rate 50MiB")]
pub(crate) struct BackupArgs {
    /// Start with an immediate checkpoint: begins at once, at the price of a burst of writes
    #[arg(long, overrides_with = "spread")]
    pub(crate) fast_checkpoint: bool,

    /// Wait for a checkpoint spread over time (the default)
    #[arg(long, overrides_with = "fast_checkpoint")]
    pub(crate) spread: bool,

    /// Most bytes to read from the server per second, such as 50MiB
    #[arg(long, value_name = "SIZE", value_parser = parse_rate)]
    pub(crate) max_rate: Option<ByteSize>,

    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// The server accepts 32 kB to 1 GB a second (`MAX_RATE`, in KiB).
fn parse_rate(text: &str) -> Result<ByteSize, String> {
    let rate: ByteSize = text.parse()?;
    if (ByteSize::KIB * 32..=ByteSize::MIB * 1024).contains(&rate.bytes()) {
        Ok(rate)
    } else {
        Err("the server accepts rates from 32KiB to 1GiB a second".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_is_what_the_server_accepts() {
        for good in ["32KiB", "1GiB", "50MiB", "100MB"] {
            assert!(parse_rate(good).is_ok(), "{good}");
        }
        for bad in ["31KiB", "1025MiB", "0", "fast"] {
            assert!(parse_rate(bad).is_err(), "{bad}");
        }
    }
}
