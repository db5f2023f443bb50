//! The configuration of one cluster: a TOML file, with what flags and variables say laid over it, checked once. Every value
//! here is usable as it is; a setting that cannot be used never leaves this module. Secrets are references only.
//!
//! Order: flag, environment variable, file, default (clap merges the first two). Does not talk to a server or a store, and
//! does not fetch secrets.

mod edit;
mod guard;
mod locate;
mod reader;
mod render;
mod repository;
mod secret_ref;

use std::io::Read;
use std::num::NonZeroU64;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use ::repository::identity::{Identities, Recipients, SecretReference};
use ::repository::key::ClusterId;
pub(crate) use ::repository::mirror::Ack;
use ::repository::sealed::{Compression, MAX_RECIPIENTS};
use anyhow::{Context, Result};

use crate::exit_code::ExitCode;
use crate::failure::Advise;
use crate::redact;
use crate::units::{exact_duration, parse_duration};
use reader::{At, Complaint, Table};

pub(crate) use guard::{Backup, DiskGuard};
pub(crate) use locate::Caller;
#[cfg(test)]
pub(crate) use repository::Credentials;
pub(crate) use repository::{Location, Repository, RepositoryOverride};
pub(crate) use secret_ref::{parse_recipient, parse_secret_reference};

/// Largest configuration file that is read.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Bounds of the tail chunk interval: below, a store is flooded with requests; above, `sync` or segments alone say it better.
const RPO_RANGE: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(3600);

/// Bounds of the longest silence of the server: below, one that is busy is taken for gone; above, WAL piles up there unseen.
const WAL_RECEIVER_TIMEOUT_RANGE: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(3600);
/// Bounds of the hooks' patience: below, a store that hiccups stops a recovery; above, nobody waits any more.
const PATIENCE_RANGE: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(7 * 86_400);

/// The settings of one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    /// The file that was read; none if everything came from the command line.
    pub(crate) file: Option<PathBuf>,
    /// `[postgres]`
    pub(crate) postgres: Postgres,
    /// `[archive]`
    pub(crate) archive: Archive,
    /// `[backup]`
    pub(crate) backup: Backup,
    /// `[restore]`
    pub(crate) restore: Restore,
    /// `[encryption]`, or `encryption = "none"`; `None` only if there is no file and no identity was given.
    pub(crate) encryption: Option<Encryption>,
    /// `[[repository]]`, in the file's order: at least one, their names and places all different.
    pub(crate) repositories: Vec<Repository>,
    /// What is allowed but unwise, a sentence fragment each.
    pub(crate) warnings: Vec<String>,
}

/// The server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Postgres {
    /// Connection string as libpq reads it; `None`: the `PG*` variables and libpq's defaults say it all.
    pub(crate) conninfo: Option<String>,
    /// Replication slot.
    pub(crate) slot: String,
    /// The one cluster that may be archived here; written by `walden init`.
    pub(crate) system_identifier: Option<NonZeroU64>,
    /// Which incarnation of it; 0 for the first. Written by `walden init --new-incarnation`.
    pub(crate) incarnation: u32,
    /// Whether `walden run` keeps a slot on each of the other listed servers too.
    pub(crate) standby_slots: bool,
    /// How long the server may be silent before the connection is made again; as PostgreSQL's setting of that name, never off.
    pub(crate) wal_receiver_timeout: Duration,
}

/// How WAL is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Archive {
    /// How long WAL may stay unstored.
    pub(crate) rpo: Rpo,
    /// Which repositories must have stored WAL before the server may forget it.
    pub(crate) ack: Ack,
    /// What to do with WAL that fails validation.
    pub(crate) on_invalid: OnInvalid,
    /// How objects are compressed.
    pub(crate) compression: Compression,
    /// Whether checksums of plain bytes are left out of descriptors and `backup.json`: they let a guess of the contents be confirmed.
    pub(crate) minimal_descriptor: bool,
    /// How much WAL the slot may keep on the server; `None`: nobody looks.
    pub(crate) disk_guard: Option<DiskGuard>,
    /// How long `archive-push` may take in all before it leaves the file to the server's next try: 1 s to 7 d.
    pub(crate) patience: Duration,
}

/// How WAL is fetched back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Restore {
    /// How long `archive-get` asks again while the store fails, before recovery stops: 1 s to 7 d.
    pub(crate) patience: Duration,
}

/// The longest time for which received WAL may be unstored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rpo {
    /// COMMIT waits for the store.
    Sync,
    /// Tail chunks at this interval.
    Interval(Duration),
}

/// What is done with WAL that fails validation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnInvalid {
    /// Store it, marked, and report it.
    StoreAndReport,
    /// Stop.
    Refuse,
}

/// Whether and to whom objects are encrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Encryption {
    /// Objects are stored in the clear, said explicitly.
    None,
    /// Objects are sealed.
    Sealed {
        /// Public keys that new objects are sealed to, at most 16; empty where only restores run.
        recipients: Vec<String>,
        /// Where the identity is kept; only where restores run. Never absent if `recipients` is empty.
        identity: Option<SecretReference>,
    },
}

/// What the command line and its variables say; every field left `None` is the file's to say.
#[derive(Debug, Clone, Default)]
pub(crate) struct Overrides {
    /// `--postgres`
    pub(crate) conninfo: Option<String>,
    /// `--slot`
    pub(crate) slot: Option<String>,
    /// `--rpo`
    pub(crate) rpo: Option<Rpo>,
    /// `--identity`
    pub(crate) identity: Option<SecretReference>,
    /// A repository URL: with it no file is looked for.
    pub(crate) repository: Option<RepositoryOverride>,
}

impl Default for Postgres {
    fn default() -> Self {
        Self {
            conninfo: None,
            slot: "walden".to_owned(),
            system_identifier: None,
            incarnation: 0,
            standby_slots: true,
            wal_receiver_timeout: Duration::from_secs(60),
        }
    }
}

impl Default for Archive {
    fn default() -> Self {
        Self {
            rpo: Rpo::Interval(Duration::from_secs(5)),
            ack: Ack::All,
            on_invalid: OnInvalid::StoreAndReport,
            compression: Compression::Lz4,
            minimal_descriptor: false,
            disk_guard: None,
            patience: Duration::from_secs(300),
        }
    }
}

impl Default for Restore {
    fn default() -> Self {
        Self {
            patience: Duration::from_secs(600),
        }
    }
}

impl Config {
    /// Finds, reads and checks the configuration.
    ///
    /// `named` is the file of `--config`; without one the usual places are tried, unless a repository is given.
    ///
    /// # Errors
    /// Nothing found, unreadable, or not valid: all exit code 2, with the line and the next step.
    pub(crate) fn load(
        named: Option<&Path>,
        caller: Caller,
        overrides: &Overrides,
    ) -> Result<Self> {
        Self::find_and_read(named, caller, overrides).exit_code(ExitCode::Usage)
    }

    fn find_and_read(named: Option<&Path>, caller: Caller, overrides: &Overrides) -> Result<Self> {
        let file = match (named, &overrides.repository) {
            (Some(path), _) => Some(path.to_owned()),
            (None, Some(_)) => None,
            (None, None) => {
                let candidates = locate::Places::from_env().candidates(caller);
                // What may not be looked at counts as there, so that it is reported and not passed over.
                let found =
                    locate::locate(&candidates, |path| path.try_exists().unwrap_or(true)).cloned();
                let tried = || {
                    candidates
                        .iter()
                        .map(|path| path.display().to_string())
                        .collect::<Vec<_>>()
                        .join(", ")
                };
                let found =
                    found.with_context(|| format!("no configuration file (tried {})", tried()));
                Some(found.hint("name one with --config, or make one with `walden init`")?)
            }
        };
        let mut config = match file {
            Some(path) => Self::read(&path)?,
            None => Self::without_file(),
        };
        config.lay_over(overrides)?;
        Ok(config)
    }

    fn read(path: &Path) -> Result<Self> {
        let action = || format!("read configuration {}", path.display());
        let file = std::fs::File::open(path).with_context(action)?;
        let mode = file.metadata().with_context(action)?.permissions().mode();
        let mut text = String::new();
        let read = file
            .take(MAX_FILE_BYTES + 1)
            .read_to_string(&mut text)
            .with_context(action)?;
        if read as u64 > MAX_FILE_BYTES {
            return Err(anyhow::anyhow!("the file is larger than 1 MiB").context(action()));
        }
        let mut config = Self::parse(&text, path).map_err(|complaint| complaint.in_file(path))?;
        let name = path.display();
        if mode & 0o002 != 0 {
            config.warnings.push(format!(
                "{name} can be changed by every user of this host: chmod o-w {name}"
            ));
        }
        if mode & 0o004 != 0 && config.postgres.has_password() {
            config.warnings.push(format!(
                "{name} holds a password that every user of this host can read: chmod o-r {name}"
            ));
        }
        Ok(config)
    }

    /// Checks a file's text; relative paths in it are taken from the folder of `path`. Reads nothing itself.
    fn parse(text: &str, path: &Path) -> Result<Self, Complaint> {
        let folder = path.parent().unwrap_or(Path::new(""));
        reader::read_document(text, |top| {
            let mut warnings = Vec::new();
            let postgres = match top.table("postgres")? {
                Some(table) => Postgres::read(table, &mut warnings)?,
                None => Postgres::default(),
            };
            let archive = top.table("archive")?;
            let backup = match top.table("backup")? {
                Some(table) => Backup::read(table)?,
                None => Backup::default(),
            };
            let restore = match top.table("restore")? {
                Some(table) => Restore::read(table)?,
                None => Restore::default(),
            };
            let encryption = Encryption::read(top, folder)?;
            let tables = top.tables("repository")?;
            let repositories = repository::read_all(tables, folder)?;
            let archive = match archive {
                Some(table) => Archive::read(table, repositories.len())?,
                None => Archive::default(),
            };
            Ok(Self {
                file: Some(path.to_owned()),
                postgres,
                archive,
                backup,
                restore,
                encryption: Some(encryption),
                repositories,
                warnings,
            })
        })
    }

    /// The text of a file with another incarnation, if it can be changed so that nothing else in it means anything else.
    pub(crate) fn with_incarnation(text: &str, path: &Path, incarnation: u32) -> Option<String> {
        let changed = edit::with_incarnation(text, incarnation)?;
        let mut before = Self::parse(text, path).ok()?;
        before.postgres.incarnation = incarnation;
        let after = Self::parse(&changed, path).ok()?;
        // Warnings name lines, which may have moved.
        before.warnings.clone_from(&after.warnings);
        (before == after).then_some(changed)
    }

    fn without_file() -> Self {
        Self {
            file: None,
            postgres: Postgres::default(),
            archive: Archive::default(),
            backup: Backup::default(),
            restore: Restore::default(),
            encryption: None,
            repositories: Vec::new(),
            warnings: Vec::new(),
        }
    }

    fn lay_over(&mut self, overrides: &Overrides) -> Result<()> {
        if let Some(conninfo) = &overrides.conninfo {
            self.postgres.conninfo = Some(conninfo.clone());
        }
        if let Some(slot) = &overrides.slot {
            check_slot(slot)
                .map_err(anyhow::Error::msg)
                .context("--slot")?;
            self.postgres.slot.clone_from(slot);
        }
        if let Some(rpo) = overrides.rpo {
            self.archive.rpo = rpo;
        }
        if let Some(reference) = &overrides.identity {
            match &mut self.encryption {
                Some(Encryption::Sealed { identity, .. }) => *identity = Some(reference.clone()),
                // A reader with an identity refuses unsealed objects: whoever gives one expects sealed ones.
                other => {
                    *other = Some(Encryption::Sealed {
                        recipients: Vec::new(),
                        identity: Some(reference.clone()),
                    })
                }
            }
        }
        if let Some(named) = &overrides.repository {
            let mut known = self.repositories.drain(..);
            let repository = match known.find(|known| known.url == named.url) {
                Some(known) => known.with(named),
                None => Repository::from_override(named),
            };
            drop(known);
            self.repositories = vec![
                repository
                    .map_err(anyhow::Error::msg)
                    .context("repository")?,
            ];
            // A quorum of those in the file says nothing about this one.
            self.archive.ack = Ack::All;
        }
        if self.repositories.is_empty() {
            let missing = anyhow::anyhow!("{}: no [[repository]]", self.source_name());
            return Err(missing)
                .hint("add [[repository]] with its url, or name one on the command line");
        }
        Ok(())
    }

    /// The first repository.
    pub(crate) fn repository(&self) -> &Repository {
        self.repositories
            .first()
            .expect("a checked configuration has a repository")
    }

    /// The public keys that new objects are sealed to; `None` if they are stored in the clear, which the file says.
    ///
    /// # Errors
    /// Only an identity is configured, or nothing says whether to encrypt: nothing falls back to the clear.
    pub(crate) fn recipients(&self) -> Result<Option<Recipients>> {
        match &self.encryption {
            Some(Encryption::None) => Ok(None),
            Some(Encryption::Sealed { recipients, .. }) if !recipients.is_empty() => {
                Ok(Some(Recipients::parse(recipients)?))
            }
            _ => {
                let missing = anyhow::anyhow!(
                    "{}: no recipients, so nothing can be encrypted",
                    self.source_name()
                );
                let missing = Err(missing).hint(
                    "add [encryption] recipients = [\"age1…\"], the public half of your identity",
                );
                missing.exit_code(ExitCode::Usage)
            }
        }
    }

    /// The secret keys that open objects; none if no identity is configured.
    ///
    /// # Errors
    /// The reference cannot be resolved or holds no key.
    pub(crate) async fn identities(&self) -> Result<Identities> {
        match &self.encryption {
            Some(Encryption::Sealed {
                identity: Some(reference),
                ..
            }) => {
                let loaded = Identities::load(std::slice::from_ref(reference)).await;
                loaded
                    .context("load the identity")
                    .exit_code(ExitCode::NoKey)
            }
            _ => Ok(Identities::default()),
        }
    }

    /// The file's name for messages.
    pub(crate) fn source_name(&self) -> String {
        self.file.as_ref().map_or_else(
            || "the command line".to_owned(),
            |path| path.display().to_string(),
        )
    }
}

impl Complaint {
    fn in_file(self, path: &Path) -> anyhow::Error {
        let place = match self.line {
            Some(line) => format!("{}:{line}", path.display()),
            None => path.display().to_string(),
        };
        let error = anyhow::Error::msg(self.message).context(place);
        match self.hint {
            Some(hint) => crate::failure::Advice::hint(error, hint),
            None => error,
        }
    }
}

impl Postgres {
    fn read(mut table: Table<'_>, warnings: &mut Vec<String>) -> Result<Self, Complaint> {
        let mut postgres = Self::default();
        if let Some(conninfo) = table.string("conninfo")? {
            postgres.conninfo = Some(conninfo.value);
            if postgres.has_password() {
                warnings.push(format!(
                    "line {}: a password in `conninfo` is better kept in .pgpass (passfile=…) or $PGPASSWORD",
                    conninfo.line
                ));
            }
        }
        if let Some(slot) = table.string("slot")? {
            check_slot(&slot.value).map_err(|message| slot.complain(message))?;
            postgres.slot = slot.value;
        }
        if let Some(identifier) = table.string("system_identifier")? {
            let parsed = Some(&identifier.value)
                .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
            let parsed = parsed.and_then(|text| text.parse().ok()).ok_or_else(|| {
                identifier
                    .complain(format!("`{}` is not a system identifier", identifier.value))
                    .hint("take it from pg_controldata, or leave it to `walden init`")
            })?;
            postgres.system_identifier = Some(parsed);
        }
        if let Some(incarnation) = table.integer("incarnation")? {
            postgres.incarnation = u32::try_from(incarnation.value).map_err(|_| {
                incarnation.complain("`incarnation` is a number from 0 (the first) on")
            })?;
            if postgres.system_identifier.is_none() {
                let complaint = incarnation.complain("`incarnation` is of no cluster");
                return Err(complaint.hint("name the `system_identifier` too"));
            }
        }
        if let Some(wanted) = table.boolean("standby_slots")? {
            postgres.standby_slots = wanted.value;
        }
        let longest = table.duration("wal_receiver_timeout", &WAL_RECEIVER_TIMEOUT_RANGE)?;
        postgres.wal_receiver_timeout = longest.unwrap_or(postgres.wal_receiver_timeout);
        table.finish()?;
        Ok(postgres)
    }

    /// The cluster that is archived, if the file names it.
    pub(crate) fn cluster(&self) -> Option<ClusterId> {
        Some(ClusterId {
            system_identifier: self.system_identifier?.get(),
            incarnation: self.incarnation,
        })
    }

    /// Whether `conninfo` itself holds a password.
    pub(crate) fn has_password(&self) -> bool {
        self.conninfo
            .as_deref()
            .is_some_and(|conninfo| redact::text(conninfo) != conninfo)
    }
}

/// `[a-z0-9_]`, at most 63 bytes (`ReplicationSlotValidateName`).
fn check_slot(name: &str) -> Result<(), String> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if name.is_empty() || name.len() > 63 || !name.bytes().all(allowed) {
        return Err(format!(
            "`{name}` is not a slot name: lower-case letters, digits and _, at most 63"
        ));
    }
    Ok(())
}

impl Archive {
    fn read(mut table: Table<'_>, repositories: usize) -> Result<Self, Complaint> {
        let mut archive = Self::default();
        if let Some(rpo) = table.string("rpo")? {
            archive.rpo = rpo
                .value
                .parse()
                .map_err(|message: String| rpo.complain(message))?;
        }
        if table.is_string("ack") {
            if let Some(ack) = table.string("ack")? {
                archive.ack = word(&ack, "ack", &[("all", Ack::All), ("any", Ack::Any)])?;
            }
        } else if let Some(mut inner) = table.table("ack")? {
            let quorum = inner
                .integer("quorum")?
                .ok_or_else(|| inner.complain("`ack` is \"all\", \"any\" or { quorum = N }"))?;
            let count = usize::try_from(quorum.value)
                .ok()
                .filter(|count| (1..=repositories.max(1)).contains(count));
            archive.ack = Ack::Quorum(count.ok_or_else(|| {
                quorum.complain(format!(
                    "a quorum is from 1 to the number of repositories, here {repositories}"
                ))
            })?);
            inner.finish()?;
        }
        if let Some(choice) = table.string("on_invalid")? {
            let words = [
                ("store-and-report", OnInvalid::StoreAndReport),
                ("refuse", OnInvalid::Refuse),
            ];
            archive.on_invalid = word(&choice, "on_invalid", &words)?;
        }
        if let Some(choice) = table.string("compression")? {
            archive.compression = word(
                &choice,
                "compression",
                &[("lz4", Compression::Lz4), ("zstd", Compression::Zstd)],
            )?;
        }
        if let Some(choice) = table.string("descriptor")? {
            let words = [("full", false), ("minimal", true)];
            archive.minimal_descriptor = word(&choice, "descriptor", &words)?;
        }
        if let Some(inner) = table.table("disk_guard")? {
            archive.disk_guard = Some(DiskGuard::read(inner)?);
        }
        let patience = table.duration("patience", &PATIENCE_RANGE)?;
        archive.patience = patience.unwrap_or(archive.patience);
        table.finish()?;
        Ok(archive)
    }
}

impl Restore {
    fn read(mut table: Table<'_>) -> Result<Self, Complaint> {
        let mut restore = Self::default();
        let patience = table.duration("patience", &PATIENCE_RANGE)?;
        restore.patience = patience.unwrap_or(restore.patience);
        table.finish()?;
        Ok(restore)
    }
}

/// The value that a word stands for.
fn word<T: Copy>(given: &At<String>, key: &str, words: &[(&str, T)]) -> Result<T, Complaint> {
    let found = words.iter().find(|(name, _)| *name == given.value);
    found.map(|(_, value)| *value).ok_or_else(|| {
        let known = words
            .iter()
            .map(|(name, _)| format!("\"{name}\""))
            .collect::<Vec<_>>()
            .join(" or ");
        given.complain(format!("`{key}` is {known}, not \"{}\"", given.value))
    })
}

impl FromStr for Rpo {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "sync" {
            return Ok(Self::Sync);
        }
        let interval = parse_duration(text).map_err(|message| format!("{message}, or \"sync\""))?;
        if RPO_RANGE.contains(&interval) {
            Ok(Self::Interval(interval))
        } else {
            let (low, high) = (
                exact_duration(*RPO_RANGE.start()),
                exact_duration(*RPO_RANGE.end()),
            );
            Err(format!(
                "an rpo of {text} is outside {low} to {high}; \"sync\" makes COMMIT wait for the store"
            ))
        }
    }
}

impl Encryption {
    fn read(top: &mut Table<'_>, folder: &Path) -> Result<Self, Complaint> {
        const ADVICE: &str = "give [encryption] recipients = [\"age1…\"] (`walden init` makes a key), or write encryption = \"none\" \
                              at the top of the file";
        let unsaid = |complaint: Complaint| complaint.hint(ADVICE);
        if top.is_string("encryption") {
            let Some(choice) = top.string("encryption")? else {
                return Ok(Self::None);
            };
            return word(&choice, "encryption", &[("none", ())])
                .map(|()| Self::None)
                .map_err(unsaid);
        }
        let Some(mut table) = top.table("encryption")? else {
            let nowhere = Complaint {
                line: None,
                message: "nothing says whether to encrypt".to_owned(),
                hint: None,
            };
            return Err(unsaid(nowhere));
        };
        let given = table.strings("recipients")?;
        if let Some(extra) = given.get(MAX_RECIPIENTS) {
            return Err(extra.complain(format!("more than {MAX_RECIPIENTS} recipients")));
        }
        let recipients = given
            .iter()
            .map(|item| parse_recipient(&item.value).map_err(|message| item.complain(message)))
            .collect::<Result<Vec<_>, _>>()?;
        let identity = secret_ref_at(&mut table, "identity", folder)?;
        if recipients.is_empty() && identity.is_none() {
            return Err(unsaid(table.complain("[encryption] names no key")));
        }
        table.finish()?;
        Ok(Self::Sealed {
            recipients,
            identity,
        })
    }
}

/// A reference to a secret, its path taken from the folder of the file.
fn secret_ref_at(
    table: &mut Table<'_>,
    key: &'static str,
    folder: &Path,
) -> Result<Option<SecretReference>, Complaint> {
    let Some(text) = table.string(key)? else {
        return Ok(None);
    };
    let reference = parse_secret_reference(&text.value)
        .and_then(|read| secret_ref::resolved_from(read, folder));
    reference
        .map(Some)
        .map_err(|message| text.complain(format!("`{key}`: {message}")))
}

#[cfg(test)]
mod tests;
