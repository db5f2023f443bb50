//! What `walden init` makes: keys, the repository's and the cluster's documents, the slot, the configuration file. Each step may be
//! repeated: what is there is looked at, never replaced. Does not judge the server (`server_check.rs`).

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use archiver::replication::{Connection, ConnectionInfo, Mode, SlotCreation};
use jiff::Timestamp;
use repository::cluster::{ClusterDocument, RESCUE, RepositoryDocument};
use repository::durable::{self, Written};
use repository::identity::{ExposeSecret, Identities, SecretReference, generate_identity};
use repository::key::ObjectKey;
use repository::{ErrorClass, Repository};
use serde::Serialize;

use crate::config::{Config, Encryption};
use crate::exit_code::ExitCode;
use crate::failure::Advise;
use crate::server_check::ServerFacts;

/// Name of the identity file, beside the configuration.
const IDENTITY_FILE: &str = "walden.key";

/// What the command line says of keys.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KeyWishes<'a> {
    /// `--recipient`
    pub(crate) recipients: &'a [String],
    /// `--no-encryption`
    pub(crate) no_encryption: bool,
    /// `--identity-file`
    pub(crate) identity_file: Option<&'a Path>,
}

/// What became of the configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ConfigState {
    /// It is new.
    Written,
    /// It says the same already.
    Unchanged,
    /// Another one stands there and was left alone: the lines in which it differs.
    Different(Vec<String>),
}

/// The cluster as its server describes itself.
///
/// # Errors
/// Neither connection told all of it.
pub(crate) fn cluster_of(facts: &ServerFacts) -> Result<ClusterDocument> {
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
pub(crate) struct Keys {
    /// Whether and for whom.
    pub(crate) encryption: Encryption,
    /// The identity file, if one stands there.
    pub(crate) identity_file: Option<PathBuf>,
    /// It was made now.
    pub(crate) is_new: bool,
}

/// The flags decide, then an existing configuration (its identity may have been moved away, as it should), then an identity file;
/// only where there is none of them a new identity is made.
///
/// # Errors
/// The identity file can be neither written nor read.
pub(crate) async fn settle_encryption(
    wishes: KeyWishes<'_>,
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
    if wishes.no_encryption {
        return Ok(keys(Encryption::None, None, false));
    }
    if !wishes.recipients.is_empty() {
        let mut recipients: Vec<String> = Vec::new();
        for recipient in wishes.recipients {
            if !recipients.contains(recipient) {
                recipients.push(recipient.clone());
            }
        }
        return Ok(keys(sealed(recipients), None, false));
    }
    if let (None, Some(encryption)) = (
        wishes.identity_file,
        existing.and_then(|config| config.encryption.clone()),
    ) {
        return Ok(keys(encryption, None, false));
    }
    let path = match wishes.identity_file {
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

/// One repository, made or found.
#[derive(Debug, Serialize)]
pub(crate) struct MadeRepository {
    /// Its name in the configuration.
    pub(crate) name: String,
    /// Where it is.
    pub(crate) url: String,
    /// It was made now.
    pub(crate) is_new: bool,
    /// The cluster was not known there.
    pub(crate) cluster_is_new: bool,
}

/// Makes all of them, and the cluster known in each, with one and the same document.
///
/// # Errors
/// As [`make_repository`] and [`make_cluster`], for the first that fails; those before it are made.
pub(crate) async fn make_repositories(
    repositories: &[Repository],
    cluster: &ClusterDocument,
) -> Result<Vec<MadeRepository>> {
    let mut made = Vec::with_capacity(repositories.len());
    for repository in repositories {
        made.push(MadeRepository {
            name: repository.name().to_owned(),
            url: repository.url().to_owned(),
            is_new: make_repository(repository).await?,
            cluster_is_new: false,
        });
    }
    let mut document = cluster.clone();
    for repository in repositories {
        let known = repository.fetch_cluster(cluster.id()).await?;
        if let Some(known) = known.filter(|known| known.difference(cluster).is_none()) {
            document = known;
            break;
        }
    }
    for (repository, made) in repositories.iter().zip(&mut made) {
        made.cluster_is_new = make_cluster(repository, &document).await?;
    }
    Ok(made)
}

/// Makes `walden.json` and `RESCUE.md` unless they are there; says whether the repository is new.
///
/// # Errors
/// As the store's; a repository of a later version.
pub(crate) async fn make_repository(repository: &Repository) -> Result<bool> {
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
///
/// # Errors
/// As the store's; known with another segment size: exit code 5.
pub(crate) async fn make_cluster(
    repository: &Repository,
    cluster: &ClusterDocument,
) -> Result<bool> {
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
    .hint("its WAL cannot go on in the same place: `walden init --new-incarnation` opens one beside it")
    .exit_code(ExitCode::Integrity)
}

/// Makes the slot, which keeps WAL from now on; says whether it is new.
///
/// # Errors
/// As the server's.
pub(crate) async fn make_slot(info: &ConnectionInfo, slot: &str) -> Result<bool> {
    let mut connection = Connection::connect(info, Mode::PhysicalReplication).await?;
    let made = connection
        .create_physical_slot(slot, true)
        .await
        .with_context(|| format!("make the replication slot {slot}"))?;
    connection.close().await?;
    Ok(made == SlotCreation::Created)
}

/// Writes the file, or compares one that is there: only in what `init` decides, the rest is the user's.
///
/// # Errors
/// It cannot be written, or appeared meanwhile.
pub(crate) fn write_config(
    config: &Config,
    existing: Option<&Config>,
    file: &Path,
) -> Result<ConfigState> {
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

/// Lower-case hex digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
