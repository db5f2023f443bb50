//! Objects as files below a folder. Owns reading and listing them; writing goes through [`crate::durable`].
//!
//! `object_store`'s own local back end is not used: it reports "already exists" without flushing the folder, so the name of an object
//! whose writer died could vanish after a power cut although it was taken for durable, and its temporary files stay for ever.
//! A missing object counts as absent only while the repository's folder is the one first seen: an unmounted file system proves nothing.

use std::collections::HashSet;
use std::fs::File;
use std::io::ErrorKind;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;

use super::backend::{Backend, Failure, FailureKind, Fetched, PAGE_SIZE, Page, PageRequest};
use super::{Listed, ObjectMeta, PutOutcome};
use crate::durable::{self, Written};
use crate::{Error, ErrorClass};

/// Permission bits of objects and folders, less the umask: without encryption they hold the database's data.
const FILE_MODE: u32 = 0o640;
const DIR_MODE: u32 = 0o750;

/// Folders below the root, at most: keys have six.
const MAX_DEPTH: usize = 32;

/// Folders remembered as flushed; beyond that all are forgotten and flushed again.
const MAX_SETTLED_FOLDERS: usize = 4096;

/// A repository in a local folder.
#[derive(Clone, Debug)]
pub(crate) struct LocalBackend {
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    root: PathBuf,
    /// Device and inode of the root when first seen: another one later means that a file system came or went.
    identity: OnceLock<(u64, u64)>,
    /// Folders whose own entry, and those of their parents, this process has flushed.
    settled: Mutex<HashSet<PathBuf>>,
}

impl LocalBackend {
    pub(crate) fn new(root: PathBuf) -> Self {
        LocalBackend {
            state: Arc::new(State {
                root,
                identity: OnceLock::new(),
                settled: Mutex::default(),
            }),
        }
    }

    /// File operations block: they run on tokio's threads for that.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&State) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let state = Arc::clone(&self.state);
        tokio::task::spawn_blocking(move || work(&state))
            .await
            .map_err(|error| {
                Failure::new(
                    FailureKind::Odd("a file operation did not finish".into()),
                    error.to_string(),
                )
            })?
    }
}

#[async_trait]
impl Backend for LocalBackend {
    async fn put_new(&self, path: &str, body: &[Bytes]) -> Result<PutOutcome, Failure> {
        let (path, body) = (self.state.root.join(path), body.to_vec());
        self.blocking(move |state| state.put_new(&path, &body))
            .await
    }

    async fn fetch(
        &self,
        path: &str,
        range: Option<Range<u64>>,
        limit: u64,
    ) -> Result<Fetched, Failure> {
        let path = self.state.root.join(path);
        self.blocking(move |state| state.fetch(&path, range, limit))
            .await
    }

    async fn head(&self, path: &str) -> Result<ObjectMeta, Failure> {
        let path = self.state.root.join(path);
        self.blocking(move |state| {
            let (_, meta) = state.open(&path)?;
            Ok(meta)
        })
        .await
    }

    async fn list_page(&self, request: &PageRequest) -> Result<Page, Failure> {
        let request = request.clone();
        self.blocking(move |state| state.list_page(&request)).await
    }
}

impl State {
    fn put_new(&self, path: &Path, body: &[Bytes]) -> Result<PutOutcome, Failure> {
        let folder = path.parent().unwrap_or(&self.root);
        if self.check_root()? == Root::Missing && self.identity.get().is_some() {
            return Err(gone());
        }
        let mut written = self
            .settle(folder)
            .and_then(|()| durable::write_new(path, FILE_MODE, body));
        if written
            .as_ref()
            .is_err_and(|error| error.class() == ErrorClass::NotFound)
        {
            // The folder was removed after we had settled it: make it again, once.
            self.settled
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clear();
            written = self
                .settle(folder)
                .and_then(|()| durable::write_new(path, FILE_MODE, body));
        }
        match written.map_err(|error| failure_of(&error))? {
            Written::Created => Ok(PutOutcome::Created),
            Written::AlreadyExists => Ok(PutOutcome::AlreadyExists),
        }
    }

    /// Makes `folder` and flushes it and its parents up to the root, also when another process (perhaps dead by now) made them.
    fn settle(&self, folder: &Path) -> Result<(), Error> {
        if self
            .settled
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(folder)
        {
            return Ok(());
        }
        durable::create_dir_chain(folder, DIR_MODE)?;
        for parent in folder
            .ancestors()
            .skip(1)
            .take_while(|parent| parent.starts_with(&self.root))
        {
            durable::sync_dir(parent)?;
        }
        durable::remove_stale_temporary_files(folder, SystemTime::now())?;
        let mut settled = self.settled.lock().unwrap_or_else(PoisonError::into_inner);
        if settled.len() >= MAX_SETTLED_FOLDERS {
            settled.clear();
        }
        settled.insert(folder.to_owned());
        Ok(())
    }

    fn fetch(
        &self,
        path: &Path,
        range: Option<Range<u64>>,
        limit: u64,
    ) -> Result<Fetched, Failure> {
        let (file, meta) = self.open(path)?;
        if range.is_none() && meta.size > limit {
            return Err(Failure::new(FailureKind::TooLarge(meta.size), ""));
        }
        let range = range.unwrap_or(0..meta.size);
        let (start, end) = (range.start.min(meta.size), range.end.min(meta.size));
        let length = usize::try_from(end.saturating_sub(start))
            .map_err(|_| Failure::new(FailureKind::TooLarge(meta.size), ""))?;
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, start)
            .map_err(|error| io_failure(&error, "read"))?;
        Ok(Fetched {
            bytes: bytes.into(),
            object_size: meta.size,
            last_modified: meta.last_modified,
        })
    }

    fn open(&self, path: &Path) -> Result<(File, ObjectMeta), Failure> {
        let root = self.check_root()?;
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error)
                if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
            {
                return Err(match root {
                    Root::Present => Failure::new(FailureKind::NotFound, "no such file"),
                    Root::Missing => missing_root(),
                });
            }
            Err(error) => return Err(io_failure(&error, "open")),
        };
        let metadata = file
            .metadata()
            .map_err(|error| io_failure(&error, "stat"))?;
        if !metadata.is_file() {
            return Err(Failure::new(FailureKind::NotFound, "not a file"));
        }
        let last_modified = metadata
            .modified()
            .map_err(|error| io_failure(&error, "stat"))?;
        Ok((
            file,
            ObjectMeta {
                size: metadata.len(),
                last_modified,
            },
        ))
    }

    fn check_root(&self) -> Result<Root, Failure> {
        let metadata = match std::fs::metadata(&self.root) {
            Ok(metadata) if metadata.is_dir() => metadata,
            Ok(_) => {
                let reason = "is not a folder: name a folder, or move this file away";
                return Err(Failure::new(
                    FailureKind::Config(reason.into()),
                    "not a directory",
                ));
            }
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Root::Missing),
            Err(error) => return Err(io_failure(&error, "stat")),
        };
        let now = (metadata.dev(), metadata.ino());
        if *self.identity.get_or_init(|| now) != now {
            return Err(gone());
        }
        Ok(Root::Present)
    }

    fn list_page(&self, request: &PageRequest) -> Result<Page, Failure> {
        if self.check_root()? == Root::Missing {
            return Err(missing_root());
        }
        let after = request.token.as_deref().or(request.after.as_deref());
        let mut walk = Walk {
            page: Page::default(),
            cut_behind: None,
            after,
            delimited: request.delimited,
        };
        let full = walk.folder(&self.root.join(&request.folder), &request.folder, 0)?;
        let mut page = walk.page;
        if full {
            let last = page.objects.last().map(|listed| listed.path.clone());
            page.token = walk.cut_behind.or(last);
        }
        Ok(page)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Root {
    Present,
    Missing,
}

/// Depth-first in byte order of whole paths, so `a.b` comes before `a/b`.
struct Walk<'a> {
    page: Page,
    /// The last file looked at of a folder whose other files were left out, although some before them were none to list.
    cut_behind: Option<String>,
    after: Option<&'a str>,
    delimited: bool,
}

impl Walk<'_> {
    /// `true`: the page is full.
    fn folder(&mut self, folder: &Path, path: &str, depth: usize) -> Result<bool, Failure> {
        if depth > MAX_DEPTH {
            let reason =
                format!("folders deeper than {MAX_DEPTH} levels: a symbolic link that leads back?");
            return Err(Failure::new(
                FailureKind::Odd(reason),
                folder.display().to_string(),
            ));
        }
        // Files that earlier pages had, and more than this one takes, are not even remembered: a folder may hold millions.
        let passed = self.after.and_then(|after| below(path, after));
        let most = match self.delimited {
            true => usize::MAX,
            false => PAGE_SIZE,
        };
        let entries = sorted_entries(folder, passed, most)?;
        let mut last = None;
        for (name, is_folder) in entries.names {
            let path = if path.is_empty() {
                name.clone()
            } else {
                format!("{path}/{name}")
            };
            if is_folder && self.delimited {
                self.page.folders.push(path);
            } else if is_folder {
                if !self.is_folder_passed(&path)
                    && self.folder(&folder.join(&name), &path, depth + 1)?
                {
                    return Ok(true);
                }
            } else if self.after.is_none_or(|after| path.as_str() > after) {
                last = entries.is_cut.then(|| path.clone());
                if let Some(listed) = listed(&folder.join(&name), path)? {
                    self.page.objects.push(listed);
                }
                if self.page.objects.len() >= PAGE_SIZE && !self.delimited {
                    return Ok(true);
                }
            }
        }
        self.cut_behind = last;
        Ok(self.cut_behind.is_some())
    }

    /// Whether everything in this folder comes before the place where the page begins.
    fn is_folder_passed(&self, path: &str) -> bool {
        let first = format!("{path}/");
        self.after
            .is_some_and(|after| after > first.as_str() && !after.starts_with(&first))
    }
}

/// The rest of a path behind a folder.
fn below<'a>(folder: &str, path: &'a str) -> Option<&'a str> {
    match folder {
        "" => Some(path),
        folder => path.strip_prefix(folder)?.strip_prefix('/'),
    }
}

/// What is in a folder.
#[derive(Default)]
struct Entries {
    /// Names, and whether each is a folder, in the order of whole paths.
    names: Vec<(String, bool)>,
    /// There is more behind the last one, which is a file.
    is_cut: bool,
}

/// Folders, and the first `most` files or somewhat more behind `passed`. A missing folder is empty.
fn sorted_entries(folder: &Path, passed: Option<&str>, most: usize) -> Result<Entries, Failure> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Entries::default());
        }
        Err(error) => return Err(io_failure(&error, "list")),
    };
    let (mut files, mut folders, mut is_cut) = (Vec::new(), Vec::new(), false);
    for entry in entries {
        let entry = entry.map_err(|error| io_failure(&error, "list"))?;
        let name = entry.file_name();
        // `lost+found` of a file system whose top is the repository; names that are no UTF-8 are not ours either.
        if durable::is_temporary_name(&name) || name == "lost+found" {
            continue;
        }
        let Ok(name) = name.into_string() else {
            continue;
        };
        let kind = entry
            .file_type()
            .map_err(|error| io_failure(&error, "list"))?;
        let is_folder = if kind.is_symlink() {
            entry.path().is_dir()
        } else {
            kind.is_dir()
        };
        if is_folder {
            folders.push((name, true));
        } else if passed.is_none_or(|passed| name.as_str() > passed) {
            files.push((name, false));
        }
        if files.len() > most.saturating_mul(2) {
            keep_first(&mut files, most);
            is_cut = true;
        }
    }
    if is_cut {
        keep_first(&mut files, most);
    }
    // A name seen here may be of a writer that died before it flushed the folder; who sees it may rely on it. Readers without the right
    // to flush only read.
    if let Err(error) = durable::sync_dir(folder) {
        tracing::debug!(folder = %folder.display(), %error, "could not flush a listed folder");
    }
    let mut names = files;
    names.append(&mut folders);
    names.sort_by_cached_key(|(name, is_folder)| {
        if *is_folder {
            format!("{name}/")
        } else {
            name.clone()
        }
    });
    if is_cut {
        // Folders behind the last file come behind files that were left out.
        let files = names.iter().rposition(|(_, is_folder)| !is_folder);
        names.truncate(files.map_or(0, |last| last + 1));
    }
    Ok(Entries { names, is_cut })
}

fn keep_first(files: &mut Vec<(String, bool)>, most: usize) {
    if most < files.len() {
        files.select_nth_unstable(most);
        files.truncate(most);
    }
}

fn listed(file: &Path, path: String) -> Result<Option<Listed>, Failure> {
    let metadata = match std::fs::metadata(file) {
        Ok(metadata) if metadata.is_file() => metadata,
        Ok(_) => return Ok(None),
        // Removed since the folder was read, or a link to nowhere.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_failure(&error, "stat")),
    };
    let last_modified = metadata
        .modified()
        .map_err(|error| io_failure(&error, "stat"))?;
    Ok(Some(Listed {
        path,
        size: metadata.len(),
        last_modified,
    }))
}

fn missing_root() -> Failure {
    let reason = "the repository folder does not exist: is its file system mounted, or was `walden init` not run yet?";
    Failure::new(FailureKind::Config(reason.into()), "no such folder")
}

fn gone() -> Failure {
    Failure::transient(
        "the repository folder is no longer the one it was: its file system was mounted or unmounted",
    )
}

fn failure_of(error: &Error) -> Failure {
    match error {
        Error::Io { source, action, .. } => io_failure(source, action),
        other => Failure::new(
            FailureKind::Odd("a file operation failed".into()),
            other.to_string(),
        ),
    }
}

fn io_failure(error: &std::io::Error, action: &str) -> Failure {
    let kind = match error.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => FailureKind::Denied,
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            FailureKind::Full
        }
        ErrorKind::NotADirectory | ErrorKind::IsADirectory => {
            FailureKind::Config("a file is where a folder should be, or the reverse".into())
        }
        ErrorKind::InvalidFilename => {
            FailureKind::Config("a name is too long for this file system".into())
        }
        // EIO, ESTALE, EINTR, EMFILE and all that is unknown prove nothing.
        _ => FailureKind::Transient,
    };
    Failure::new(kind, format!("{action}: {error}"))
}
