//! Lays a backup out in a data directory: fetches parts in parallel, writes them durably, checks every file against PostgreSQL's
//! manifest, writes `pg_control` last.
//!
//! Owns the order of those steps, resuming an interrupted restore, and the refusal of anything the manifest does not list. Which backup is the
//! plan's decision, settings are `recovery_conf.rs`, starting is `postgres.rs`.
//!
//! `backup.json` is only a hint here: start, stop and files come from the sealed manifest, the timeline from the sealed `backup_label`.
//! Without `pg_control` the server refuses to start, so a restore that was cut short never looks like a finished one.

use crate::data_directory::{DataDirectory, Occupancy};
use crate::error::{Error, Result};
pub use crate::layout::Room;
use crate::layout::{Layout, Root};
use crate::manifest::{Manifest, crc32c};
use crate::postgres::Owner;
use crate::recovery_conf::RecoverySetup;
use crate::tablespaces::{
    TABLESPACE_MAP, Tablespace, encode_tablespace_map, map_tablespaces, parse_tablespace_map,
};
use crate::tar_slice::{Slice, SliceContent, read_part};
use futures_util::StreamExt;
use repository::backup::{BackupDescriptor, PART_BYTES, PartDescriptor};
use repository::key::{Archive, BackupLabel, BackupObject, ClusterId, ObjectKey};
use repository::sealed::OpenPolicy;
use repository::{Repositories, durable};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use wal_format::{BackupLabel as BackupLabelFile, ControlFile};

/// Folder of our own files, relative to the data directory. The server leaves unknown folders in `pg_wal` alone.
pub const OWN_FOLDER: &str = "pg_wal/walden";
/// What a restore leaves while it works, relative to the data directory.
pub const STATE_FILE: &str = "pg_wal/walden/restoring.json";
/// The file whose absence keeps the server from starting.
pub const PG_CONTROL: &str = "global/pg_control";

/// Parts fetched and written at the same time; each takes up to 32 MiB plain and as much stored.
pub(crate) const PARTS_IN_FLIGHT: usize = 3;
/// Largest manifest that is read: some ten million files.
pub(crate) const MAX_MANIFEST_BYTES: u64 = 2 << 30;

/// What to lay out, and where.
#[derive(Clone)]
pub struct RestoreJob {
    /// Where the backup is: what one of them cannot give is asked of the next.
    pub repository: Repositories,
    /// How it is opened.
    pub policy: OpenPolicy,
    /// Whose it is.
    pub cluster: ClusterId,
    /// Its label.
    pub label: BackupLabel,
    /// Its descriptor.
    pub backup: BackupDescriptor,
    /// The new data directory.
    pub data: DataDirectory,
    /// Tablespaces to move: location on the source, new location.
    pub mappings: Vec<(String, String)>,
    /// Who is to own the files; `None` is the current user.
    pub owner: Option<Owner>,
}

/// How far a layout is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestoreProgress {
    /// Parts that are written, those of an earlier run included.
    pub parts_done: usize,
    /// All parts.
    pub parts: usize,
    /// Plain bytes of the parts that are written.
    pub bytes_done: u64,
    /// Plain bytes of all parts.
    pub bytes: u64,
}

/// A data directory in which only `pg_control` and the settings are missing.
pub struct LaidOut {
    data: DataDirectory,
    owner: Option<Owner>,
    control: Vec<u8>,
    /// What the backup's `pg_control` says.
    pub control_file: ControlFile,
    /// Where its tablespaces are now.
    pub tablespaces: Vec<Tablespace>,
    /// Files written and checked.
    pub files: usize,
    /// Whether an earlier, interrupted restore was continued.
    pub resumed: bool,
}

/// What [`STATE_FILE`] says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    format: u32,
    cluster: String,
    backup: String,
    /// OID and location.
    tablespaces: Vec<(u32, String)>,
    /// Archive and number of the parts that are written.
    parts: BTreeSet<(String, u32)>,
}

/// What is read before anything is written.
struct Opening {
    manifest: Manifest,
    manifest_bytes: Vec<u8>,
    map: Vec<Tablespace>,
}

/// What a restore takes on this machine, and what it would be refused for.
#[derive(Debug, Default)]
pub struct Preview {
    /// The data directory and the tablespaces.
    pub room: Vec<Room>,
    /// Each of them refuses the restore.
    pub conflicts: Vec<Error>,
    /// It goes on with one that was interrupted there.
    pub resumes: bool,
}

/// Looks at what [`lay_out`] would refuse, and writes nothing. Reads the manifest; where tablespaces were it believes `backup.json`.
///
/// # Errors
/// As [`lay_out`], of what is stored; what is wrong with this machine is in the answer.
pub async fn preview(job: &RestoreJob) -> Result<Preview> {
    let mut preview = Preview::default();
    match job.data.check_free(OWN_FOLDER, STATE_FILE) {
        Ok(occupancy) => preview.resumes = occupancy == Occupancy::Interrupted,
        Err(error) => preview.conflicts.push(error),
    }
    let (manifest, _) = fetch_manifest(job).await?;
    let map: Vec<Tablespace> = job
        .backup
        .tablespaces
        .iter()
        .map(|tablespace| Tablespace {
            oid: tablespace.oid,
            location: tablespace.location.clone(),
        })
        .collect();
    let tablespaces = match map_tablespaces(&map, &job.mappings) {
        Ok(mapped) => mapped,
        Err(error) => {
            preview.conflicts.push(error);
            map
        }
    };
    for root in Root::all(&job.data, &tablespaces) {
        let room = root.room(&manifest)?;
        if !preview.resumes {
            let refused = [root.check_free(), room.check()];
            preview
                .conflicts
                .extend(refused.into_iter().filter_map(Result::err));
        }
        preview.room.push(room);
    }
    Ok(preview)
}

/// Lays the backup out. Continues where an earlier run with the same backup and tablespaces was interrupted.
///
/// # Errors
/// `Conflict`: the data directory or a tablespace's folder is in use. `Corrupt`: an object is missing, damaged, or not what the manifest lists.
/// `Config`: a mapping that fits nothing, too little space. Others from the repository and the file system; run again, it continues.
pub async fn lay_out(
    job: &RestoreJob,
    progress: &(dyn Fn(RestoreProgress) + Sync),
) -> Result<LaidOut> {
    let occupancy = job.data.check_free(OWN_FOLDER, STATE_FILE)?;
    let opening = open_backup(job).await?;
    let tablespaces = map_tablespaces(&opening.map, &job.mappings)?;
    let mut state = begin(job, occupancy, &opening, &tablespaces)?;
    let layout = Arc::new(Layout::new(
        &job.data,
        opening.manifest,
        &tablespaces,
        job.owner,
    ));
    layout.create_roots()?;

    let parts = job.backup.parts.as_slice();
    let mut done = RestoreProgress {
        parts_done: 0,
        parts: parts.len(),
        bytes_done: 0,
        bytes: parts.iter().map(|part| u64::from(part.plain_size)).sum(),
    };
    let (ready, left): (Vec<_>, Vec<_>) = parts
        .iter()
        .partition(|part| state.parts.contains(&part_id(part)));
    for part in ready {
        done.parts_done += 1;
        done.bytes_done += u64::from(part.plain_size);
    }
    progress(done);
    // After a failure no further part is begun, but those in flight are finished and remembered: a run that continues need not fetch them.
    let failed = AtomicBool::new(false);
    let mut first_error = None;
    let mut written = futures_util::stream::iter(
        left.into_iter()
            .take_while(|_| !failed.load(Ordering::Relaxed))
            .map(|part| restore_part(job, part, &layout)),
    )
    .buffer_unordered(PARTS_IN_FLIGHT);
    while let Some(part) = written.next().await {
        let (part, is_fetched_again) = match part {
            Ok(written) => written,
            Err(error) => {
                failed.store(true, Ordering::Relaxed);
                first_error.get_or_insert(error);
                continue;
            }
        };
        done.parts_done += 1;
        done.bytes_done += u64::from(part.plain_size);
        if !is_fetched_again {
            state.parts.insert(part_id(part));
            save_state(&job.data, &state)?;
        }
        progress(done);
    }
    if let Some(error) = first_error {
        return Err(error);
    }
    drop(written);
    let finishing = Arc::clone(&layout);
    let files = blocking(move || finishing.check_and_flush()).await?;
    finish_layout(job, &layout, &tablespaces, &opening.manifest_bytes)?;
    let control = layout.take_control().ok_or_else(|| Error::Missing {
        object: PG_CONTROL.into(),
        reason: "no part of the backup holds it".into(),
    })?;
    let control_file =
        ControlFile::parse(&control).map_err(|error| integrity(PG_CONTROL, error.to_string()))?;
    if control_file.system_identifier != job.cluster.system_identifier {
        return Err(integrity(
            PG_CONTROL,
            format!("belongs to the cluster {}", control_file.system_identifier),
        ));
    }
    Ok(LaidOut {
        data: job.data.clone(),
        owner: job.owner,
        control,
        control_file,
        tablespaces,
        files,
        resumed: occupancy == Occupancy::Interrupted,
    })
}

impl LaidOut {
    /// Writes our own files (name below [`OWN_FOLDER`], content) and the settings, then `pg_control`: from here on the server can be started.
    ///
    /// # Errors
    /// `Io`; run again, the restore continues.
    pub fn finish(&self, setup: &RecoverySetup, own_files: &[(&str, &[u8])]) -> Result<()> {
        let own = self.data.path().join(OWN_FOLDER);
        for (name, content) in own_files {
            let path = own.join(name);
            durable::replace(&path, 0o600, content)?;
            own_by(&path, self.owner)?;
        }
        let mut changed = setup.write.iter().map(|file| file.path.as_str());
        if !changed.all(is_changed_later) {
            self.forget_parts()?;
        }
        self.data.apply(setup, self.owner)?;
        let control = self.data.path().join(PG_CONTROL);
        durable::replace(&control, 0o600, &self.control)?;
        own_by(&control, self.owner)?;
        durable::remove_file(&self.data.path().join(STATE_FILE))?;
        Ok(())
    }
}

impl LaidOut {
    /// A file that could be in any part is about to be changed: a run that continues fetches all of them.
    fn forget_parts(&self) -> Result<()> {
        let path = self.data.path().join(STATE_FILE);
        let bytes = std::fs::read(&path).map_err(|source| Error::Io {
            action: "read",
            path,
            source,
        })?;
        let state: State = serde_json::from_slice(&bytes)
            .map_err(|error| integrity(STATE_FILE, error.to_string()))?;
        save_state(
            &self.data,
            &State {
                parts: BTreeSet::new(),
                ..state
            },
        )
    }
}

/// Fetches the manifest and the first part, which holds `backup_label` and `tablespace_map`, and holds them against each other.
async fn open_backup(job: &RestoreJob) -> Result<Opening> {
    let (manifest, manifest_bytes) = fetch_manifest(job).await?;
    let first = job
        .backup
        .parts
        .iter()
        .find(|part| part.archive == Archive::Base && part.part == 0);
    let Some(first) = first else {
        return Err(Error::Missing {
            object: format!("backup {}: first part", job.backup.label),
            reason: "backup.json does not list it".into(),
        });
    };
    let (key, bytes) = fetch_part(job, first).await?;
    let slices = read_part(&key, &bytes, None)?;
    check_label(&key, &bytes, &slices, &manifest)?;
    let map = match manifest.files.contains_key(TABLESPACE_MAP) {
        true => parse_tablespace_map(small_file(
            &key,
            &bytes,
            &slices,
            TABLESPACE_MAP,
            &manifest,
        )?)?,
        false => Vec::new(),
    };
    Ok(Opening {
        manifest,
        manifest_bytes,
        map,
    })
}

/// The manifest, and its bytes.
async fn fetch_manifest(job: &RestoreJob) -> Result<(Manifest, Vec<u8>)> {
    let key = ObjectKey::Backup {
        cluster: job.cluster,
        label: job.label.clone(),
        object: BackupObject::Manifest,
    };
    let limit =
        usize::try_from(job.backup.manifest_size.min(MAX_MANIFEST_BYTES)).unwrap_or(usize::MAX);
    let (name, bytes) = fetch(job, &key, limit).await?;
    let manifest = read_manifest(&name, &bytes, job.cluster, &job.backup)?;
    Ok((manifest, bytes))
}

/// Reads a manifest and holds it against what the backup's descriptor says.
///
/// # Errors
/// `Corrupt`: damaged, or of another backup.
pub(crate) fn read_manifest(
    object: &str,
    bytes: &[u8],
    cluster: ClusterId,
    backup: &BackupDescriptor,
) -> Result<Manifest> {
    let manifest = Manifest::parse(bytes)?;
    let foreign = manifest
        .system_identifier
        .is_some_and(|found| found != cluster.system_identifier);
    if foreign || (manifest.start.1, manifest.stop.1) != (backup.start_lsn, backup.stop_lsn) {
        return Err(integrity(
            object,
            "does not belong to what backup.json says".into(),
        ));
    }
    Ok(manifest)
}

/// Holds the `backup_label` in a backup's first part against the manifest.
///
/// # Errors
/// `Corrupt`: it is not there, or starts elsewhere.
pub(crate) fn check_label(
    key: &str,
    part: &[u8],
    slices: &[Slice],
    manifest: &Manifest,
) -> Result<()> {
    let label_bytes = small_file(key, part, slices, "backup_label", manifest)?;
    let label_file = BackupLabelFile::parse(label_bytes)
        .map_err(|error| integrity("backup_label", error.to_string()))?;
    if label_file.start != manifest.start.1 || label_file.start_timeline != manifest.start.0 {
        return Err(integrity(
            "backup_label",
            "starts elsewhere than the manifest says".into(),
        ));
    }
    Ok(())
}

/// A file that lies whole in a part, checked against the manifest.
fn small_file<'a>(
    key: &str,
    part: &'a [u8],
    slices: &[Slice],
    name: &str,
    manifest: &Manifest,
) -> Result<&'a [u8]> {
    let found = slices
        .iter()
        .find(|slice| slice.path == name)
        .and_then(|slice| match &slice.content {
            SliceContent::Piece {
                offset: 0,
                bytes,
                size,
            } => part
                .get(bytes.clone())
                .filter(|bytes| bytes.len() as u64 == *size),
            _ => None,
        });
    let bytes = found.ok_or_else(|| integrity(key, format!("does not hold the whole {name}")))?;
    let facts = manifest.files.get(name);
    let fits = facts.is_some_and(|facts| {
        facts.size == bytes.len() as u64 && facts.crc32c.is_none_or(|crc| crc == crc32c(bytes))
    });
    match fits {
        true => Ok(bytes),
        false => Err(integrity(
            name,
            "is not the file that the manifest lists".into(),
        )),
    }
}

/// Makes sure that there is room, and leaves the mark by which a later run knows its own.
fn begin(
    job: &RestoreJob,
    occupancy: Occupancy,
    opening: &Opening,
    tablespaces: &[Tablespace],
) -> Result<State> {
    let fresh = State {
        format: 1,
        cluster: job.cluster.to_string(),
        backup: job.backup.label.clone(),
        tablespaces: tablespaces
            .iter()
            .map(|tablespace| (tablespace.oid, tablespace.location.clone()))
            .collect(),
        parts: BTreeSet::new(),
    };
    let refuse = |reason: &str| Error::DataDirectory {
        path: job.data.path().to_owned(),
        reason: reason.into(),
    };
    if occupancy == Occupancy::Interrupted {
        let bytes =
            std::fs::read(job.data.path().join(STATE_FILE)).map_err(|source| Error::Io {
                action: "read",
                path: job.data.path().join(STATE_FILE),
                source,
            })?;
        let found: State = serde_json::from_slice(&bytes).map_err(|_| {
            refuse("an interrupted restore left a state that cannot be read: empty the folder")
        })?;
        let same = (
            found.format,
            &found.cluster,
            &found.backup,
            &found.tablespaces,
        ) == (1, &fresh.cluster, &fresh.backup, &fresh.tablespaces);
        if !same {
            return Err(refuse(&format!(
                "a restore of backup {} was interrupted here: finish that one, or empty the folder",
                found.backup
            )));
        }
        // The server takes backup_label away when it starts: from then on these are no longer the backup's files.
        let has = |name: &str| job.data.path().join(name).exists();
        if has(PG_CONTROL) && !has("backup_label") {
            return Err(refuse(
                "its restore was finished and a server has run in it",
            ));
        }
        return Ok(found);
    }
    for root in Root::all(&job.data, tablespaces) {
        root.check_free()?;
        root.room(&opening.manifest)?.check()?;
    }
    create_root(job.data.path(), job.owner)?;
    for folder in ["pg_wal", OWN_FOLDER] {
        let path = job.data.path().join(folder);
        if durable::create_dir(&path, 0o700)? == durable::Written::Created {
            own_by(&path, job.owner)?;
        }
    }
    save_state(&job.data, &fresh)?;
    Ok(fresh)
}

fn save_state(data: &DataDirectory, state: &State) -> Result<()> {
    let json =
        serde_json::to_vec(state).map_err(|error| integrity(STATE_FILE, error.to_string()))?;
    durable::replace(&data.path().join(STATE_FILE), 0o600, &json)?;
    Ok(())
}

/// Files of a backup that the restore itself may change or remove later (configuration, `tablespace_map`, `standby.signal`), so that a run that
/// continues cannot hold them against the manifest: their parts are fetched again.
fn is_changed_later(path: &str) -> bool {
    !path.contains('/') || path.ends_with(".conf")
}

/// Fetches and writes one part; says whether a run that continues must fetch it again: it holds `pg_control`, whose bytes are kept in memory only,
/// or what is changed later.
async fn restore_part<'p>(
    job: &RestoreJob,
    part: &'p PartDescriptor,
    layout: &Arc<Layout>,
) -> Result<(&'p PartDescriptor, bool)> {
    let (key, bytes) = fetch_part(job, part).await?;
    let layout = Arc::clone(layout);
    let (archive, continued) = (part.archive, part.continued.clone());
    let is_fetched_again = blocking(move || {
        let slices = read_part(&key, &bytes, continued.as_ref())?;
        let mut is_fetched_again = false;
        for slice in &slices {
            is_fetched_again |= layout.write(archive, slice, &bytes)?;
            let is_file = archive == Archive::Base && slice.content != SliceContent::Folder;
            is_fetched_again |= is_file && is_changed_later(&slice.path);
        }
        Ok(is_fetched_again)
    })
    .await?;
    Ok((part, is_fetched_again))
}

async fn fetch_part(job: &RestoreJob, part: &PartDescriptor) -> Result<(String, Vec<u8>)> {
    let key = ObjectKey::Backup {
        cluster: job.cluster,
        label: job.label.clone(),
        object: BackupObject::Part {
            archive: part.archive,
            part: part.part,
        },
    };
    let (name, bytes) = fetch(job, &key, PART_BYTES).await?;
    if bytes.len() as u64 != u64::from(part.plain_size) {
        return Err(integrity(
            &name,
            format!(
                "holds {} bytes, backup.json says {}",
                bytes.len(),
                part.plain_size
            ),
        ));
    }
    Ok((name, bytes))
}

async fn fetch(job: &RestoreJob, key: &ObjectKey, limit: usize) -> Result<(String, Vec<u8>)> {
    match job.repository.fetch(key, &job.policy, limit).await {
        Ok((_, bytes)) => Ok((key.to_string(), bytes)),
        Err(error) if error.class() == repository::ErrorClass::NotFound => Err(Error::Missing {
            object: key.to_string(),
            reason: "the backup is not whole without it".into(),
        }),
        Err(error) => Err(error.into()),
    }
}

/// Links, the map and the manifest: what is not a file of the backup's parts, or differs from it.
fn finish_layout(
    job: &RestoreJob,
    layout: &Layout,
    tablespaces: &[Tablespace],
    manifest: &[u8],
) -> Result<()> {
    layout.link_tablespaces(tablespaces)?;
    let mut files = vec![("backup_manifest", manifest.to_vec())];
    if !job.mappings.is_empty() {
        // The server makes the links again from this file, so it must say the new places.
        files.push((
            TABLESPACE_MAP,
            encode_tablespace_map(tablespaces).into_bytes(),
        ));
    }
    for (name, content) in files {
        let path = job.data.path().join(name);
        durable::replace(&path, 0o600, &content)?;
        own_by(&path, job.owner)?;
    }
    Ok(())
}

fn part_id(part: &PartDescriptor) -> (String, u32) {
    (part.archive.to_string(), part.part)
}

/// Makes a folder that the server's user alone can enter, and its parents so that this user can reach it.
pub(crate) fn create_root(path: &std::path::Path, owner: Option<Owner>) -> Result<()> {
    if let Some(parent) = path.parent() {
        durable::create_dir_chain(parent, 0o755)?;
    }
    // One that is there already was empty, or is of our earlier run.
    let _either = durable::create_dir(path, 0o700)?;
    durable::set_mode(path, 0o700)?;
    own_by(path, owner)
}

pub(crate) fn own_by(path: &std::path::Path, owner: Option<Owner>) -> Result<()> {
    if let Some(owner) = owner {
        durable::set_owner(path, owner.user, owner.group)?;
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

fn integrity(object: &str, reason: String) -> Error {
    Error::Integrity {
        object: object.to_owned(),
        reason,
    }
}
