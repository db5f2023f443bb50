//! `walden init`: the repository, the cluster in it, the slot and the configuration file. Owns the order in which they are made, so
//! that every run may be repeated; what the server must have is `server_check`'s.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use archiver::replication::{Connection, ConnectionInfo, Mode, SlotCreation};
use clap::{Args, ValueHint};
use jiff::Timestamp;
use repository::cluster::{ClusterDocument, RESCUE, RepositoryDocument};
use repository::durable::{self, Written};
use repository::identity::{ExposeSecret, Identities, SecretReference, generate_identity};
use repository::key::ObjectKey;
use repository::{ErrorClass, Repository};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::Globals;
use crate::cli::{ServerArgs, StoreArgs};
use crate::config::{Caller, Config, Encryption, Overrides};
use crate::exit_code::ExitCode;
use crate::failure::Advise;
use crate::open;
use crate::server_check::{self, Finding, ServerFacts};

/// Name of the configuration file where `--config` names none.
const DEFAULT_FILE: &str = "walden.toml";
/// Name of the identity file, beside the configuration.
const IDENTITY_FILE: &str = "walden.key";

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

/// What was made or found, for `--json` and for people.
#[derive(Debug, Serialize)]
struct Report {
    repository: String,
    repository_is_new: bool,
    ready: bool,
    cluster: String,
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

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum ConfigState {
    Written,
    Unchanged,
    /// Another one stands there and was left alone: the lines in which it differs.
    Different(Vec<String>),
}

/// Makes what is missing; nothing before the server has everything it needs.
pub(crate) async fn run(args: InitArgs, globals: &Globals) -> Result<ExitCode> {
    let file = config_path(globals)?;
    let existing = match file.try_exists() {
        Ok(false) => None,
        _ => Some(Config::load(
            Some(&file),
            Caller::Command,
            &Overrides::default(),
        )?),
    };
    let mut config = wanted_config(&args, &file)?;
    let info = open::connection_info(&config)?;
    let facts = ServerFacts::ask(&info, &config.postgres.slot).await;
    let findings = server_check::judge(&facts, &config.postgres.slot);
    if server_check::has_errors(&findings) {
        return refuse(&facts, &findings, globals);
    }
    let cluster = cluster_of(&facts)?;
    config.postgres.system_identifier = std::num::NonZeroU64::new(cluster.system_identifier);

    let keys = settle_encryption(&args, &file, existing.as_ref()).await?;
    config.encryption = Some(keys.encryption.clone());
    let repository = open::open_repository(&config).await?;
    let repository_is_new = make_repository(&repository).await?;
    let cluster_is_new = make_cluster(&repository, &cluster).await?;
    let slot_is_new = make_slot(&info, &config.postgres.slot).await?;
    let config_is = write_config(&config, existing.as_ref(), &file)?;

    let report = Report {
        repository: repository.url().to_owned(),
        repository_is_new,
        ready: true,
        cluster: cluster.id().to_string(),
        cluster_is_new,
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

/// The configuration as the command line wants it, without keys and identifier.
fn wanted_config(args: &InitArgs, file: &Path) -> Result<Config> {
    let mut repository = args.store.repository(&args.url);
    // The file may stand elsewhere, and a hook runs elsewhere.
    if let Some(path) = repository.ca_file.take() {
        repository.ca_file = Some(std::path::absolute(path).context("--ca-file")?);
    }
    let overrides = Overrides {
        conninfo: args.server.conninfo.clone(),
        slot: args.server.slot.clone(),
        repository: Some(repository),
        ..Overrides::default()
    };
    let mut config = Config::load(None, Caller::Command, &overrides)?;
    config.file = Some(file.to_owned());
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

fn cluster_of(facts: &ServerFacts) -> Result<ClusterDocument> {
    let known = || {
        Some(ClusterDocument {
            format: 1,
            requires: Vec::new(),
            system_identifier: facts.system_identifier?,
            incarnation: 0,
            parent: None,
            pg_version: u16::try_from(facts.major?).ok()?,
            block_size: facts.block_size?,
            wal_segment_size: facts.segment_size?.bytes(),
            created: Timestamp::now(),
        })
    };
    known().context("the server does not say what it is")
}

/// Whom objects will be encrypted for, and where the secret half is.
struct Keys {
    encryption: Encryption,
    identity_file: Option<PathBuf>,
    is_new: bool,
}

/// The flags decide, then an existing configuration (its identity may have been moved away, as it should), then an identity file;
/// only where there is none of them a new identity is made.
async fn settle_encryption(
    args: &InitArgs,
    file: &Path,
    existing: Option<&Config>,
) -> Result<Keys> {
    let keys = |encryption, identity_file, is_new| Keys {
        encryption,
        identity_file,
        is_new,
    };
    let sealed = |recipients: Vec<String>| Encryption::Sealed {
        recipients,
        identity: None,
    };
    if args.no_encryption {
        return Ok(keys(Encryption::None, None, false));
    }
    if !args.recipients.is_empty() {
        let mut recipients: Vec<String> = Vec::new();
        for recipient in &args.recipients {
            if !recipients.contains(recipient) {
                recipients.push(recipient.clone());
            }
        }
        return Ok(keys(sealed(recipients), None, false));
    }
    if let (None, Some(encryption)) = (
        &args.identity_file,
        existing.and_then(|config| config.encryption.clone()),
    ) {
        return Ok(keys(encryption, None, false));
    }
    let path = match &args.identity_file {
        Some(path) => std::path::absolute(path).context("--identity-file")?,
        None => file.with_file_name(IDENTITY_FILE),
    };
    let new = generate_identity(Timestamp::now());
    if let Some(folder) = path.parent() {
        durable::create_dir_chain(folder, 0o755)?;
    }
    let written = durable::write_new(&path, 0o600, [new.file.expose_secret()])?;
    if written == Written::Created {
        return Ok(keys(sealed(vec![new.recipient]), Some(path), true));
    }
    let text = path
        .to_str()
        .context("the identity file's path is not UTF-8")?;
    let found = Identities::load(&[SecretReference::File(text.to_owned())]).await?;
    Ok(keys(sealed(found.recipients()), Some(path), false))
}

/// Makes `walden.json` and `RESCUE.md` unless they are there; says whether the repository is new.
async fn make_repository(repository: &Repository) -> Result<bool> {
    let action = || format!("make a repository at {}", repository.url());
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|error| anyhow!("no randomness: {error}"))?;
    let document = RepositoryDocument {
        format: 1,
        requires: Vec::new(),
        repository_id: hex(&id),
        created: Timestamp::now(),
    };
    // Put first: a `file://` folder that is not there yet cannot be asked.
    let is_new = match repository.put_json(&ObjectKey::Repository, &document).await {
        Ok(_) => true,
        Err(error) if error.class() == ErrorClass::Conflict => {
            repository.fetch_identity().await.with_context(action)?;
            false
        }
        Err(error) => return Err(error).with_context(action),
    };
    let rescue = repository.put_document(&ObjectKey::Rescue, RESCUE.as_bytes().into());
    match rescue.await {
        // Another version's words for the same format.
        Err(error) if error.class() == ErrorClass::Conflict => {
            tracing::warn!("RESCUE.md of another version of walden is there: it stays");
        }
        result => {
            result.with_context(action)?;
        }
    }
    Ok(is_new)
}

/// Makes the cluster known; says whether it is new. One that is known must be the same.
async fn make_cluster(repository: &Repository, cluster: &ClusterDocument) -> Result<bool> {
    let key = ObjectKey::Cluster(cluster.id());
    let known = match repository.fetch_cluster(cluster.id()).await? {
        Some(known) => known,
        None => match repository.put_json(&key, cluster).await {
            Ok(_) => return Ok(true),
            Err(error) if error.class() == ErrorClass::Conflict => {
                let known = repository.fetch_cluster(cluster.id()).await?;
                known.with_context(|| format!("{key} is there and is not"))?
            }
            Err(error) => return Err(error.into()),
        },
    };
    let Some(what) = known.difference(cluster) else {
        return Ok(false);
    };
    let (before, now) = (known.wal_segment_size, cluster.wal_segment_size);
    Err(anyhow!(
        "{}: the cluster {} is known with another {what} (segments of {before} bytes there, {now} on the server)",
        repository.url(),
        cluster.id()
    ))
    .hint("its WAL cannot go on in the same place: use another repository URL for it")
    .exit_code(ExitCode::Integrity)
}

async fn make_slot(info: &ConnectionInfo, slot: &str) -> Result<bool> {
    let mut connection = Connection::connect(info, Mode::PhysicalReplication).await?;
    let made = connection
        .create_physical_slot(slot, true)
        .await
        .with_context(|| format!("make the replication slot {slot}"))?;
    connection.close().await?;
    Ok(made == SlotCreation::Created)
}

/// Writes the file, or compares one that is there: only in what `init` decides, the rest is the user's.
fn write_config(config: &Config, existing: Option<&Config>, file: &Path) -> Result<ConfigState> {
    if let Some(existing) = existing {
        let mut merged = config.clone();
        merged.archive = existing.archive.clone();
        if let (
            Some(Encryption::Sealed { identity, .. }),
            Some(Encryption::Sealed {
                identity: known, ..
            }),
        ) = (&mut merged.encryption, &existing.encryption)
        {
            identity.clone_from(known);
        }
        for (repository, known) in merged.repositories.iter_mut().zip(&existing.repositories) {
            repository.name.clone_from(&known.name);
        }
        let (before, after) = (existing.redacted().to_toml(), merged.redacted().to_toml());
        return Ok(if before == after {
            ConfigState::Unchanged
        } else {
            ConfigState::Different(difference(&before, &after))
        });
    }
    if let Some(folder) = file.parent() {
        durable::create_dir_chain(folder, 0o755)?;
    }
    // Every reader of the file would read a password in it.
    let mode = if config.postgres.has_password() {
        0o600
    } else {
        0o644
    };
    match durable::write_new(file, mode, [config.to_toml()])? {
        Written::Created => Ok(ConfigState::Written),
        Written::AlreadyExists => Err(anyhow!("{}: appeared while init ran", file.display()))
            .hint("run `walden init` again"),
    }
}

/// Lines of one text that the other lacks: `-` only before, `+` only after.
fn difference(before: &str, after: &str) -> Vec<String> {
    let lacking = |of: &str, other: &str, sign: char| {
        of.lines()
            .filter(|line| !line.starts_with('#') && !other.lines().any(|known| known == *line))
            .map(|line| format!("{sign} {line}"))
            .collect::<Vec<_>>()
    };
    let mut lines = lacking(before, after, '-');
    lines.extend(lacking(after, before, '+'));
    lines
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Report {
    fn to_text(&self) -> String {
        let state = |is_new: bool| if is_new { "made" } else { "was there" };
        let mut text = format!(
            "repository  {} ({})\ncluster     {}, PostgreSQL {}, WAL segments of {} ({})\nslot        {} ({})\n",
            self.repository,
            state(self.repository_is_new),
            self.cluster,
            self.pg_version,
            crate::units::ByteSize::new(u64::from(self.wal_segment_size)),
            state(self.cluster_is_new),
            self.slot,
            state(self.slot_is_new),
        );
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
