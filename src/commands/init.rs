//! `walden init`: what a user says to begin archiving a cluster into a repository.

use std::path::PathBuf;

use clap::{Args, ValueHint};

use crate::cli::{ServerArgs, StoreArgs};

/// Prepare a repository and the server, and write the configuration file
///
/// Makes the repository (or joins one that exists), checks what the server needs, creates the replication slot, and writes
/// the configuration. May be run twice harmlessly: nothing that exists is replaced.
///
/// Unless --recipient or --no-encryption is given, a new identity is made and written to --identity-file. Keep it away from
/// the database host: archiving needs only its public half, and without it nothing can be restored.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  walden init s3://acme-pg-eu/prod --postgres 'host=db1 user=walden'
  walden init file:///srv/walden --postgres 'host=/run/postgresql' --recipient age1…")]
pub(crate) struct InitArgs {
    /// Repository: s3://BUCKET/PREFIX or file:///PATH
    #[arg(value_name = "URL", value_hint = ValueHint::Url)]
    pub(crate) url: String,

    #[command(flatten)]
    pub(crate) server: ServerArgs,

    /// Public key that backups are encrypted to (age1…); may be repeated
    #[arg(long = "recipient", value_name = "KEY", value_parser = crate::config::parse_recipient)]
    pub(crate) recipients: Vec<String>,

    /// Where to write the identity that is made when no --recipient is given [default: walden.key beside the configuration]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "recipients")]
    pub(crate) identity_file: Option<PathBuf>,

    /// Store everything unencrypted
    #[arg(long, conflicts_with_all = ["recipients", "identity_file"])]
    pub(crate) no_encryption: bool,

    #[command(flatten)]
    pub(crate) store: StoreArgs,
}
