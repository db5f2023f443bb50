//! `walden init`: the repository, the cluster in it, the slot and the configuration file. Owns the order in which they are made, so
//! that every run may be repeated; what the server must have is `server_check`'s.

mod adopt;
mod incarnation;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, ValueHint};
use repository::cluster::RESCUE;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::Globals;
use crate::cli::{ServerArgs, StoreArgs};
use crate::config::{Caller, Config, Encryption, Overrides};
use crate::exit_code::ExitCode;
use crate::open;
use crate::server_check::{self, Finding, ServerFacts};
use crate::setup::{self, ConfigState, KeyWishes, MadeRepository, hex};

/// Name of the configuration file where `--config` names none.
const DEFAULT_FILE: &str = "walden.toml";

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
  walden init file:///srv/walden --postgres 'host=/run/postgresql' --recipient age1…
  walden init --adopt
  walden init --new-incarnation")]
pub(crate) struct InitArgs {
    /// Repository: s3://BUCKET/PREFIX or file:///PATH
    #[arg(value_name = "URL", value_hint = ValueHint::Url, required_unless_present_any = ["adopt", "new_incarnation"])]
    pub(crate) url: Option<String>,

    /// Let a restored server take its source's place: check that what is stored goes on with it, and take away the mark of the restore
    #[arg(long, conflicts_with_all = ["url", "new_incarnation", "recipients", "identity_file", "no_encryption"])]
    pub(crate) adopt: bool,

    /// After a conflict (two servers wrote different WAL under one identity, or one was put back in time): store what comes from the
    /// configured server in a place of its own, beside what is stored
    #[arg(long, conflicts_with_all = ["url", "recipients", "identity_file", "no_encryption"])]
    pub(crate) new_incarnation: bool,

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

/// What was made or found, for `--json` and for people.
#[derive(Debug, Serialize)]
struct Report {
    /// The first of `repositories`.
    repository: String,
    repository_is_new: bool,
    repositories: Vec<MadeRepository>,
    ready: bool,
    cluster: String,
    /// New in one of them at least.
    cluster_is_new: bool,
    pg_version: u32,
    wal_segment_size: u32,
    slot: String,
    slot_is_new: bool,
    config: PathBuf,
    config_is: ConfigState,
    encrypted: bool,
    recipients: Vec<String>,
    /// The identity file, if one stands there.
    identity_file: Option<PathBuf>,
    identity_is_new: bool,
    rescue_sha256: String,
    warnings: Vec<Finding>,
}

/// Makes what is missing; nothing before the server has everything it needs.
pub(crate) async fn run(args: InitArgs, globals: &Globals) -> Result<ExitCode> {
    let url = match args.url.as_deref() {
        Some(url) => url,
        None if args.adopt => return adopt::run(args.server, globals).await,
        None => return incarnation::run(args.server, globals).await,
    };
    let file = config_path(globals)?;
    let existing = match file.try_exists() {
        Ok(false) => None,
        _ => Some(Config::load(
            Some(&file),
            Caller::Command,
            &Overrides::default(),
        )?),
    };
    let mut config = wanted_config(&args, url, &file, existing.as_ref())?;
    let info = open::connection_info(&config)?;
    let facts = ServerFacts::ask(&info, &config.postgres.slot).await;
    let findings = server_check::judge(&facts, &config.postgres.slot, config.archive.rpo);
    if server_check::has_errors(&findings) {
        return refuse(&facts, &findings, globals);
    }
    let mut cluster = setup::cluster_of(&facts)?;
    config.postgres.system_identifier = std::num::NonZeroU64::new(cluster.system_identifier);
    if let Some(known) = existing.as_ref().map(|existing| &existing.postgres)
        && known.system_identifier == config.postgres.system_identifier
    {
        cluster.incarnation = known.incarnation;
        config.postgres.incarnation = known.incarnation;
        config.postgres.standby_slots = known.standby_slots;
        config.postgres.wal_receiver_timeout = known.wal_receiver_timeout;
    }

    let wishes = KeyWishes {
        recipients: &args.recipients,
        no_encryption: args.no_encryption,
        identity_file: args.identity_file.as_deref(),
    };
    let keys = setup::settle_encryption(wishes, &file, existing.as_ref()).await?;
    config.encryption = Some(keys.encryption.clone());
    let repositories = open::repositories(&config).await?;
    let repositories = setup::make_repositories(&repositories, &cluster).await?;
    let slot_is_new = setup::make_slot(&info, &config.postgres.slot).await?;
    let config_is = setup::write_config(&config, existing.as_ref(), &file)?;

    let report = Report {
        repository: config.repository().url.clone(),
        repository_is_new: repositories.first().is_some_and(|made| made.is_new),
        ready: true,
        cluster: cluster.id().to_string(),
        cluster_is_new: repositories.iter().any(|made| made.cluster_is_new),
        repositories,
        pg_version: u32::from(cluster.pg_version),
        wal_segment_size: cluster.wal_segment_size,
        slot: config.postgres.slot.clone(),
        slot_is_new,
        config: file,
        encrypted: keys.encryption != Encryption::None,
        recipients: match keys.encryption {
            Encryption::None => Vec::new(),
            Encryption::Sealed { recipients, .. } => recipients,
        },
        identity_file: keys.identity_file,
        identity_is_new: keys.is_new,
        rescue_sha256: hex(&Sha256::digest(RESCUE)),
        warnings: findings,
        config_is,
    };
    globals
        .output
        .print("walden.init", &report, || report.to_text())?;
    let differs = matches!(report.config_is, ConfigState::Different(_));
    Ok(if differs || !report.warnings.is_empty() {
        ExitCode::Warnings
    } else {
        ExitCode::Done
    })
}

fn config_path(globals: &Globals) -> Result<PathBuf> {
    let named = globals.config_file.as_deref();
    std::path::absolute(named.unwrap_or(Path::new(DEFAULT_FILE)))
        .context("where the configuration goes")
}

/// The configuration as the command line wants it, without keys and identifier. What it does not say of the server, an existing
/// file does.
fn wanted_config(
    args: &InitArgs,
    url: &str,
    file: &Path,
    existing: Option<&Config>,
) -> Result<Config> {
    let known = existing.map(|config| &config.postgres);
    let mut repository = args.store.repository(url);
    // The file may stand elsewhere, and a hook runs elsewhere.
    if let Some(path) = repository.ca_file.take() {
        repository.ca_file = Some(std::path::absolute(path).context("--ca-file")?);
    }
    let overrides = Overrides {
        conninfo: (args.server.conninfo.clone())
            .or_else(|| known.and_then(|known| known.conninfo.clone())),
        slot: (args.server.slot.clone()).or_else(|| known.map(|known| known.slot.clone())),
        repository: Some(repository),
        ..Overrides::default()
    };
    let mut config = Config::load(None, Caller::Command, &overrides)?;
    config.file = Some(file.to_owned());
    // A file that names this one among others means all of them.
    let mut known = existing.map_or_else(Vec::new, |existing| existing.repositories.clone());
    if let Some(named) = known.iter_mut().find(|known| known.url == url) {
        let name = named.name.clone();
        named.clone_from(config.repository());
        named.name = name;
        config.repositories = known;
    }
    Ok(config)
}

fn refuse(facts: &ServerFacts, findings: &[Finding], globals: &Globals) -> Result<ExitCode> {
    let body = serde_json::json!({ "ready": false, "findings": findings });
    globals.output.print("walden.init", &body, || {
        let found = server_check::to_text(findings);
        format!("{found}\nNothing was changed. Do what is listed and run `walden init` again.\n")
    })?;
    Ok(match facts.is_unreachable() {
        true => ExitCode::Failed,
        false => ExitCode::Usage,
    })
}

impl Report {
    fn to_text(&self) -> String {
        let state = |is_new: bool| if is_new { "made" } else { "was there" };
        let mut text = String::new();
        for made in &self.repositories {
            text.push_str(&format!(
                "repository  {} ({})\n",
                made.url,
                state(made.is_new)
            ));
        }
        text.push_str(&format!(
            "cluster     {}, PostgreSQL {}, WAL segments of {} ({})\nslot        {} ({})\n",
            self.cluster,
            self.pg_version,
            crate::units::ByteSize::new(u64::from(self.wal_segment_size)),
            state(self.cluster_is_new),
            self.slot,
            state(self.slot_is_new),
        ));
        let config = self.config.display();
        match &self.config_is {
            ConfigState::Written => text.push_str(&format!("config      {config} (written)\n")),
            ConfigState::Unchanged => text.push_str(&format!("config      {config} (unchanged)\n")),
            ConfigState::Different(lines) => {
                text.push_str(&format!(
                    "config      {config} (another one, left alone; it differs:)\n"
                ));
                for line in lines {
                    text.push_str(&format!("    {line}\n"));
                }
            }
        }
        if !self.encrypted {
            text.push_str("encryption  none: whoever reads the store reads the data\n");
        }
        for recipient in &self.recipients {
            text.push_str(&format!("encrypted   for {recipient}\n"));
        }
        text.push_str(&format!("RESCUE.md   SHA-256 {}\n", self.rescue_sha256));
        text.push_str(&server_check::to_text(&self.warnings));
        if let Some(path) = &self.identity_file {
            text.push_str(&format!(
                "\nThe identity {} opens everything that will be stored, and nothing else does.\n\
                 Move it off this host, keep two copies: archiving does not need it, restores do (--identity file:PATH).\n",
                path.display()
            ));
        }
        text.push_str("\nNext: `walden run` in the background, then `walden backup`.\n");
        text
    }
}
