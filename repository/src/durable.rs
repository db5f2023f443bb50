//! Every change to local files and folders, made to survive a power cut: write, fsync, rename, fsync the folder.
//! The only file that mutates local data; the other crates use it too. Owns temporary names. Does not own what is written where.
//!
//! A new file appears under its name complete or not at all: it is written under a temporary name in the same folder
//! (`.walden-tmp.<16 hex>`), fsynced, renamed without replacing, and the folder is fsynced. A failed fsync is never repeated on the
//! same file (the kernel may have dropped the dirty pages): the temporary file is removed and the caller writes again.
//! All calls block; call them from worker threads.

#![expect(
    clippy::disallowed_methods,
    reason = "this is the one place that changes local files; everybody else comes here"
)]

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::{Error, Result};

/// First characters of every temporary name. Listings ignore such files.
pub const TEMPORARY_PREFIX: &str = ".walden-tmp.";

/// A temporary file older than this was left by a process that died: no write of ours takes as long.
pub const TEMPORARY_FILE_MAX_AGE: Duration = Duration::from_secs(24 * 3600);

/// Attempts to find a free temporary name before giving up; one is enough unless randomness is broken.
const MAX_TEMPORARY_NAME_ATTEMPTS: u32 = 8;

/// Levels of folders [`create_dir_chain`] makes at most.
const MAX_DIR_DEPTH: usize = 128;

/// Whether a write made the file or found one there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Written {
    /// The file is new and holds our bytes.
    Created,
    /// A file of that name was there; it is untouched.
    AlreadyExists,
}

/// Makes `path` and every missing parent with permission bits `mode` (less the umask), each durable in its parent.
///
/// # Errors
/// `Io`; class `Config` when a part of the path is a file or not permitted.
pub fn create_dir_chain(path: &Path, mode: u32) -> Result<()> {
    let mut missing = Vec::new();
    let mut existing = path;
    while !existing.is_dir() {
        missing.push(existing);
        if missing.len() > MAX_DIR_DEPTH {
            return Err(io_error(
                "create folder",
                path,
                ErrorKind::InvalidInput.into(),
            ));
        }
        match existing.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => existing = parent,
            _ => break,
        }
    }
    for folder in missing.into_iter().rev() {
        match std::fs::DirBuilder::new().mode(mode).create(folder) {
            Ok(()) => {}
            // Another process was faster: its fsync of the parent may still be to come, so ours is done all the same.
            Err(error) if error.kind() == ErrorKind::AlreadyExists && folder.is_dir() => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                return Err(io_error(
                    "create folder",
                    folder,
                    ErrorKind::NotADirectory.into(),
                ));
            }
            Err(error) => return Err(io_error("create folder", folder, error)),
        }
        sync_parent(folder)?;
    }
    Ok(())
}

/// Makes one folder; `AlreadyExists` when a folder (or anything else) of that name is there.
///
/// # Errors
/// `Io`; class `NotFound` when the parent is missing.
pub fn create_dir(path: &Path, mode: u32) -> Result<Written> {
    match std::fs::DirBuilder::new().mode(mode).create(path) {
        Ok(()) => sync_parent(path).map(|()| Written::Created),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(Written::AlreadyExists),
        Err(error) => Err(io_error("create folder", path, error)),
    }
}

/// Writes a new file from `chunks`; an existing one is never touched. The folder must exist.
///
/// After `AlreadyExists` too the folder has been fsynced, so the file found there is as durable as one of ours.
///
/// # Errors
/// `Io`; no temporary file is left behind. Class `NotFound` when the folder is missing, `Retry` when the disk is full.
pub fn write_new<C: AsRef<[u8]>>(
    path: &Path,
    mode: u32,
    chunks: impl IntoIterator<Item = C>,
) -> Result<Written> {
    if std::fs::symlink_metadata(path).is_ok() {
        return sync_parent(path).map(|()| Written::AlreadyExists);
    }
    let mut file = NewFile::create(path, mode)?;
    for chunk in chunks {
        file.write_chunk(chunk.as_ref())?;
    }
    file.commit()
}

/// Writes `bytes` under `path`, atomically taking the place of a file already there. The folder must exist.
///
/// # Errors
/// `Io`; the old file is whole, and no temporary file is left behind.
pub fn replace(path: &Path, mode: u32, bytes: &[u8]) -> Result<()> {
    let mut file = NewFile::create(path, mode)?;
    file.write_chunk(bytes)?;
    file.commit_replacing()
}

/// Moves `from` to `to`, replacing a file there, and makes it durable in both folders. Same file system only.
///
/// # Errors
/// `Io`.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to).map_err(|error| io_error("rename", from, error))?;
    sync_both_parents(from, to)
}

/// Moves `from` to `to` unless something is there already (then `from` stays). Same file system only.
///
/// # Errors
/// `Io`.
pub fn rename_new(from: &Path, to: &Path) -> Result<Written> {
    let written =
        rename_without_replacing(from, to).map_err(|error| io_error("rename", from, error))?;
    sync_both_parents(from, to)?;
    Ok(written)
}

/// Removes a file or symbolic link. `false`: there was none.
///
/// # Errors
/// `Io`.
pub fn remove_file(path: &Path) -> Result<bool> {
    match std::fs::remove_file(path) {
        Ok(()) => sync_parent(path).map(|()| true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(io_error("remove", path, error)),
    }
}

/// Removes an empty folder. `false`: there was none.
///
/// # Errors
/// `Io`; class `Conflict` when it is not empty.
pub fn remove_dir(path: &Path) -> Result<bool> {
    match std::fs::remove_dir(path) {
        Ok(()) => sync_parent(path).map(|()| true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(io_error("remove folder", path, error)),
    }
}

/// Removes a folder and all below it; symbolic links are removed, not followed. `false`: there was none.
///
/// # Errors
/// `Io`; part of the tree may be gone.
pub fn remove_tree(path: &Path) -> Result<bool> {
    match std::fs::remove_dir_all(path) {
        Ok(()) => sync_parent(path).map(|()| true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(io_error("remove folder", path, error)),
    }
}

/// Makes the symbolic link `link` with the text `target`; `AlreadyExists` when anything of that name is there.
///
/// # Errors
/// `Io`.
pub fn symlink(target: &Path, link: &Path) -> Result<Written> {
    match std::os::unix::fs::symlink(target, link) {
        Ok(()) => sync_parent(link).map(|()| Written::Created),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(Written::AlreadyExists),
        Err(error) => Err(io_error("link", link, error)),
    }
}

/// Sets the permission bits (`0o7777`) of a file or folder, whatever the umask.
///
/// # Errors
/// `Io`.
pub fn set_mode(path: &Path, mode: u32) -> Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .map_err(|error| io_error("set permissions of", path, error))
}

/// Sets owner and group by number, of a symbolic link itself if it is one.
///
/// # Errors
/// `Io`; class `Config` when not permitted.
pub fn set_owner(path: &Path, user: u32, group: u32) -> Result<()> {
    std::os::unix::fs::lchown(path, Some(user), Some(group))
        .map_err(|error| io_error("set owner of", path, error))
}

/// Flushes the entries of a folder to disk. File systems that cannot (`EINVAL`, `EBADF`) are left to their own rules, as PostgreSQL does.
///
/// # Errors
/// `Io`.
pub fn sync_dir(path: &Path) -> Result<()> {
    let folder = File::open(path).map_err(|error| io_error("open folder", path, error))?;
    match folder.sync_all() {
        Ok(()) => Ok(()),
        Err(error)
            if matches!(error.raw_os_error(), Some(code) if code == rustix::io::Errno::INVAL.raw_os_error()
            || code == rustix::io::Errno::BADF.raw_os_error()) =>
        {
            Ok(())
        }
        Err(error) => Err(io_error("flush folder", path, error)),
    }
}

/// Opens a file to append to, making it with permission bits `mode` (less the umask) when it does not exist: a log for another program.
///
/// # Errors
/// `Io`.
pub fn open_append(path: &Path, mode: u32) -> Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(mode)
        .open(path)
        .map_err(|error| io_error("open", path, error))
}

/// Flushes everything on the file system that holds `path`: cheaper than one flush for each of many files.
///
/// # Errors
/// `Io`.
pub fn sync_file_system(path: &Path) -> Result<()> {
    let folder = File::open(path).map_err(|error| io_error("open", path, error))?;
    #[cfg(target_os = "linux")]
    rustix::fs::syncfs(&folder).map_err(|errno| io_error("flush", path, errno.into()))?;
    #[cfg(not(target_os = "linux"))]
    {
        drop(folder);
        rustix::fs::sync();
    }
    Ok(())
}

/// Flushes the bytes of an existing file to disk (not its name: see [`sync_dir`]).
///
/// # Errors
/// `Io`.
pub fn sync_file(path: &Path) -> Result<()> {
    let file = File::open(path).map_err(|error| io_error("open", path, error))?;
    file.sync_all()
        .map_err(|error| io_error("flush", path, error))
}

/// Bytes that this user can still write on the file system that holds `path` (which must exist).
///
/// # Errors
/// `Io`.
pub fn free_space(path: &Path) -> Result<u64> {
    let space = rustix::fs::statvfs(path)
        .map_err(|errno| io_error("ask free space of", path, errno.into()))?;
    Ok(space.f_bavail.saturating_mul(space.f_frsize))
}

/// Removes temporary files in `folder` that are older than [`TEMPORARY_FILE_MAX_AGE`] at `now`; answers how many.
///
/// # Errors
/// `Io`; a file that vanishes meanwhile is no error.
pub fn remove_stale_temporary_files(folder: &Path, now: SystemTime) -> Result<u32> {
    let mut removed = 0;
    for entry in std::fs::read_dir(folder).map_err(|error| io_error("list", folder, error))? {
        let entry = entry.map_err(|error| io_error("list", folder, error))?;
        if !is_temporary_name(&entry.file_name()) {
            continue;
        }
        let age = entry
            .metadata()
            .and_then(|metadata| metadata.modified())
            .ok()
            .and_then(|at| now.duration_since(at).ok());
        if age.is_some_and(|age| age > TEMPORARY_FILE_MAX_AGE) && remove_file(&entry.path())? {
            removed += 1;
        }
    }
    Ok(removed)
}

/// Whether this is the name of a file still being written (or left by a process that died).
pub fn is_temporary_name(name: &OsStr) -> bool {
    name.as_encoded_bytes()
        .starts_with(TEMPORARY_PREFIX.as_bytes())
}

/// A file being written under a temporary name. Dropped without a commit, it is gone.
#[derive(Debug)]
pub struct NewFile {
    /// `None` once committed.
    temporary: Option<(PathBuf, File)>,
    path: PathBuf,
}

impl NewFile {
    /// Begins a file that will be called `path`, in that folder, with permission bits `mode` less the umask.
    ///
    /// # Errors
    /// `Io`; class `NotFound` when the folder is missing.
    pub fn create(path: &Path, mode: u32) -> Result<Self> {
        let folder = parent_of(path);
        let mut attempt = 0;
        loop {
            let temporary = folder.join(format!("{TEMPORARY_PREFIX}{:016x}", random_number(path)?));
            match OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(mode)
                .open(&temporary)
            {
                Ok(file) => {
                    return Ok(NewFile {
                        temporary: Some((temporary, file)),
                        path: path.to_owned(),
                    });
                }
                Err(error)
                    if error.kind() == ErrorKind::AlreadyExists
                        && attempt < MAX_TEMPORARY_NAME_ATTEMPTS =>
                {
                    attempt += 1;
                }
                Err(error) => return Err(io_error("create", path, error)),
            }
        }
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// `Io`; the file can then only be dropped.
    pub fn write_chunk(&mut self, bytes: &[u8]) -> Result<()> {
        let path = &self.path;
        match &mut self.temporary {
            Some((_, file)) => file
                .write_all(bytes)
                .map_err(|error| io_error("write", path, error)),
            None => Err(io_error("write", path, ErrorKind::InvalidInput.into())),
        }
    }

    /// Flushes, gives the file its name unless one is there, and flushes the folder.
    ///
    /// # Errors
    /// `Io`; the temporary file is removed.
    pub fn commit(mut self) -> Result<Written> {
        let temporary = self.flush()?;
        let written = rename_without_replacing(&temporary, &self.path);
        match written {
            Ok(Written::Created) => {}
            // `self.temporary` is spent: remove it here, the error that brought us here says more than a second one.
            Ok(Written::AlreadyExists) | Err(_) => remove_quietly(&temporary),
        }
        let written = written.map_err(|error| io_error("rename", &self.path, error))?;
        sync_parent(&self.path)?;
        Ok(written)
    }

    /// Flushes, gives the file its name in place of a file already there, and flushes the folder.
    ///
    /// # Errors
    /// `Io`; the temporary file is removed.
    pub fn commit_replacing(mut self) -> Result<()> {
        let temporary = self.flush()?;
        if let Err(error) = std::fs::rename(&temporary, &self.path) {
            remove_quietly(&temporary);
            return Err(io_error("rename", &self.path, error));
        }
        sync_parent(&self.path)
    }

    /// Flushes the bytes and hands out the temporary name, which the caller must then rename or remove.
    fn flush(&mut self) -> Result<PathBuf> {
        if let Some((_, file)) = &self.temporary {
            file.sync_all()
                .map_err(|error| io_error("flush", &self.path, error))?;
        }
        match self.temporary.take() {
            Some((temporary, _file)) => Ok(temporary),
            None => Err(io_error(
                "flush",
                &self.path,
                ErrorKind::InvalidInput.into(),
            )),
        }
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some((temporary, _)) = self.temporary.take() {
            remove_quietly(&temporary);
        }
    }
}

/// A file written in place, by position and from several threads: the parts of a restored file arrive in any order.
///
/// Not atomic: until [`DurableFile::sync`] and a [`sync_dir`] of its folder, any part may be missing after a crash.
#[derive(Debug)]
pub struct DurableFile {
    file: File,
    path: PathBuf,
}

impl DurableFile {
    /// Makes a file that must not exist.
    ///
    /// # Errors
    /// `Io`; class `Conflict` when it exists (also as a dangling symbolic link, which is not followed).
    pub fn create_new(path: &Path, mode: u32) -> Result<Self> {
        Self::open_with(
            path,
            OpenOptions::new().write(true).create_new(true).mode(mode),
        )
    }

    /// Opens a file for writing, making it when it does not exist; its bytes stay. A symbolic link is refused.
    ///
    /// # Errors
    /// `Io`.
    pub fn open_or_create(path: &Path, mode: u32) -> Result<Self> {
        let no_follow = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or(0);
        Self::open_with(
            path,
            OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(mode)
                .custom_flags(no_follow),
        )
    }

    fn open_with(path: &Path, options: &OpenOptions) -> Result<Self> {
        let file = options
            .open(path)
            .map_err(|error| io_error("create", path, error))?;
        Ok(DurableFile {
            file,
            path: path.to_owned(),
        })
    }

    /// Writes all bytes at `offset` (bytes from the start of the file); callable from several threads at once.
    ///
    /// # Errors
    /// `Io`.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.file
            .write_all_at(bytes, offset)
            .map_err(|error| io_error("write", &self.path, error))
    }

    /// Cuts or extends (with zeros, without using space) to `size` bytes.
    ///
    /// # Errors
    /// `Io`.
    pub fn set_len(&self, size: u64) -> Result<()> {
        self.file
            .set_len(size)
            .map_err(|error| io_error("resize", &self.path, error))
    }

    /// Flushes bytes and size to disk.
    ///
    /// # Errors
    /// `Io`; the file must then be written again from the start.
    pub fn sync(&self) -> Result<()> {
        self.file
            .sync_all()
            .map_err(|error| io_error("flush", &self.path, error))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// `RENAME_NOREPLACE` where the file system has it, else a hard link (NFS and some others).
fn rename_without_replacing(from: &Path, to: &Path) -> io::Result<Written> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use rustix::io::Errno;
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(Written::Created),
        Err(Errno::EXIST) => Ok(Written::AlreadyExists),
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => link_and_unlink(from, to),
        Err(errno) => Err(errno.into()),
    }
}

fn link_and_unlink(from: &Path, to: &Path) -> io::Result<Written> {
    match std::fs::hard_link(from, to) {
        Ok(()) => {
            std::fs::remove_file(from)?;
            Ok(Written::Created)
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(Written::AlreadyExists),
        Err(error) => Err(error),
    }
}

fn sync_both_parents(from: &Path, to: &Path) -> Result<()> {
    sync_parent(to)?;
    if from.parent() != to.parent() {
        sync_parent(from)?;
    }
    Ok(())
}

fn sync_parent(path: &Path) -> Result<()> {
    sync_dir(parent_of(path))
}

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) => Path::new("."),
        None => path,
    }
}

/// For temporary files on the way out of an error: the first error is the one to report, and a stale file is swept later.
fn remove_quietly(temporary: &Path) {
    if let Err(error) = std::fs::remove_file(temporary) {
        tracing::warn!(path = %temporary.display(), %error, "could not remove a temporary file");
    }
}

fn random_number(path: &Path) -> Result<u64> {
    getrandom::u64().map_err(|error| io_error("name a temporary file for", path, error.into()))
}

fn io_error(action: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorClass;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn writes_a_new_file_once_and_never_touches_an_existing_one() {
        let folder = tempfile::tempdir().unwrap();
        for name in [
            "plain",
            "with space",
            "100%",
            "q'uo\"te",
            "Ünïcødé-日本",
            &"n".repeat(255),
        ] {
            let path = folder.path().join(name);
            assert_eq!(
                write_new(&path, 0o600, [b"first".as_slice(), b" second"]).unwrap(),
                Written::Created,
                "{name}"
            );
            assert_eq!(
                write_new(&path, 0o600, [b"other"]).unwrap(),
                Written::AlreadyExists,
                "{name}"
            );
            assert_eq!(std::fs::read(&path).unwrap(), b"first second", "{name}");
            assert_eq!(
                std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
                0o600,
                "{name}"
            );
        }
        assert_eq!(
            names(folder.path()).len(),
            6,
            "no temporary file is left: {:?}",
            names(folder.path())
        );
    }

    #[test]
    fn a_race_that_is_lost_at_the_rename_leaves_the_winner_and_no_litter() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let mut ours = NewFile::create(&path, 0o600).unwrap();
        ours.write_chunk(b"ours").unwrap();
        std::fs::write(&path, b"theirs").unwrap();
        assert_eq!(ours.commit().unwrap(), Written::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"theirs");
        assert_eq!(names(folder.path()), ["x"]);
    }

    #[test]
    fn the_hard_link_fallback_does_not_replace_either() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        std::fs::write(&from, b"1").unwrap();
        assert_eq!(link_and_unlink(&from, &to).unwrap(), Written::Created);
        assert_eq!(names(folder.path()), ["to"]);
        std::fs::write(&from, b"2").unwrap();
        assert_eq!(link_and_unlink(&from, &to).unwrap(), Written::AlreadyExists);
        assert_eq!(std::fs::read(&to).unwrap(), b"1");
    }

    #[test]
    fn a_dropped_or_failed_write_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = NewFile::create(&folder.path().join("x"), 0o600).unwrap();
        file.write_chunk(b"half").unwrap();
        assert!(names(folder.path())[0].starts_with(TEMPORARY_PREFIX));
        drop(file);
        assert_eq!(names(folder.path()), Vec::<String>::new());

        // A folder in the way: the rename over it fails after everything was written.
        std::fs::create_dir(folder.path().join("folder")).unwrap();
        let error = replace(&folder.path().join("folder"), 0o600, b"bytes").unwrap_err();
        assert_eq!(error.class(), ErrorClass::Config, "{error:?}");
        assert_eq!(names(folder.path()), ["folder"]);
    }

    #[test]
    fn a_missing_folder_is_not_found_and_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let error = write_new(&folder.path().join("no/x"), 0o600, [b"bytes"]).unwrap_err();
        assert_eq!(error.class(), ErrorClass::NotFound);
        assert!(error.to_string().contains("no/x"), "{error}");
    }

    #[test]
    fn replace_takes_the_place_of_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("conf");
        replace(&path, 0o600, b"old and longer").unwrap();
        replace(&path, 0o640, b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(names(folder.path()), ["conf"]);
    }

    #[test]
    fn makes_a_chain_of_folders_and_refuses_a_file_in_the_way() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("a b/c%20/ü/d");
        create_dir_chain(&deep, 0o700).unwrap();
        create_dir_chain(&deep, 0o700).unwrap();
        assert!(deep.is_dir());
        assert_eq!(create_dir(&deep, 0o700).unwrap(), Written::AlreadyExists);
        std::fs::write(deep.join("file"), b"").unwrap();
        let error = create_dir_chain(&deep.join("file/sub"), 0o700).unwrap_err();
        assert_eq!(error.class(), ErrorClass::Config, "{error:?}");
    }

    #[test]
    fn rename_new_keeps_both_files_when_the_name_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        std::fs::write(&one, b"1").unwrap();
        std::fs::write(&two, b"2").unwrap();
        assert_eq!(rename_new(&one, &two).unwrap(), Written::AlreadyExists);
        assert_eq!(names(folder.path()), ["one", "two"]);
        rename(&one, &two).unwrap();
        assert_eq!(std::fs::read(&two).unwrap(), b"1");
        assert_eq!(rename_new(&two, &one).unwrap(), Written::Created);
        assert_eq!(names(folder.path()), ["one"]);
    }

    #[test]
    fn removing_what_is_not_there_is_false() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        std::fs::write(&path, b"").unwrap();
        assert!(remove_file(&path).unwrap());
        assert!(!remove_file(&path).unwrap());
        assert!(!remove_dir(&path).unwrap());
        assert!(!remove_tree(&path).unwrap());
        create_dir_chain(&path.join("y"), 0o700).unwrap();
        assert_eq!(remove_dir(&path).unwrap_err().class(), ErrorClass::Conflict);
        assert!(remove_tree(&path).unwrap());
    }

    #[test]
    fn remove_tree_does_not_follow_links() {
        let folder = tempfile::tempdir().unwrap();
        let (outside, tree) = (folder.path().join("outside"), folder.path().join("tree"));
        create_dir_chain(&outside, 0o700).unwrap();
        create_dir_chain(&tree, 0o700).unwrap();
        std::fs::write(outside.join("precious"), b"").unwrap();
        assert_eq!(
            symlink(&outside, &tree.join("link")).unwrap(),
            Written::Created
        );
        assert_eq!(
            symlink(&outside, &tree.join("link")).unwrap(),
            Written::AlreadyExists
        );
        assert!(remove_tree(&tree).unwrap());
        assert_eq!(names(&outside), ["precious"]);
    }

    #[test]
    fn parts_written_by_position_from_threads_make_one_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("relation");
        let file = DurableFile::create_new(&path, 0o600).unwrap();
        file.set_len(8 * 4096).unwrap();
        std::thread::scope(|scope| {
            for part in (0..8_u8).rev() {
                let file = &file;
                scope.spawn(move || {
                    file.write_at(&[part + 1; 4096], u64::from(part) * 4096)
                        .unwrap()
                });
            }
        });
        file.sync().unwrap();
        let expected: Vec<u8> = (1..=8_u8).flat_map(|part| [part; 4096]).collect();
        assert_eq!(std::fs::read(&path).unwrap(), expected);
        assert_eq!(
            DurableFile::create_new(&path, 0o600).unwrap_err().class(),
            ErrorClass::Conflict
        );
        DurableFile::open_or_create(&path, 0o600)
            .unwrap()
            .write_at(b"x", 0)
            .unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().len(),
            8 * 4096,
            "reopening keeps the bytes"
        );
    }

    #[test]
    fn a_link_planted_in_the_way_is_not_written_through() {
        let folder = tempfile::tempdir().unwrap();
        let (victim, link) = (folder.path().join("victim"), folder.path().join("link"));
        std::fs::write(&victim, b"precious").unwrap();
        assert_eq!(symlink(&victim, &link).unwrap(), Written::Created);
        DurableFile::open_or_create(&link, 0o600).unwrap_err();
        assert_eq!(
            write_new(&link, 0o600, [b"evil"]).unwrap(),
            Written::AlreadyExists
        );
        assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
    }

    #[test]
    fn only_old_temporary_files_are_swept() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(".walden-tmp.0000000000000001"), b"").unwrap();
        std::fs::write(folder.path().join("object"), b"").unwrap();
        let now = SystemTime::now();
        assert_eq!(remove_stale_temporary_files(folder.path(), now).unwrap(), 0);
        let later = now + TEMPORARY_FILE_MAX_AGE + Duration::from_secs(60);
        assert_eq!(
            remove_stale_temporary_files(folder.path(), later).unwrap(),
            1
        );
        assert_eq!(names(folder.path()), ["object"]);
    }

    #[test]
    fn permissions_owner_and_space_of_a_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        std::fs::write(&path, b"").unwrap();
        set_mode(&path, 0o400).unwrap();
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o7777, 0o400);
        let (user, group) = (
            std::os::unix::fs::MetadataExt::uid(&metadata),
            std::os::unix::fs::MetadataExt::gid(&metadata),
        );
        set_owner(&path, user, group).unwrap();
        sync_file(&path).unwrap();
        assert!(free_space(folder.path()).unwrap() > 0);
        assert_eq!(
            free_space(&folder.path().join("no")).unwrap_err().class(),
            ErrorClass::NotFound
        );
    }
}
