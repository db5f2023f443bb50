//! Writing the files of a backup where they belong: paths, folders, owners, and the check against the manifest.
//!
//! Owns the mapping from a path in a tar stream to a path on disk, and what of each file has been seen. Mutates through `durable` only. Does
//! not fetch (`restore.rs`).

use crate::data_directory::DataDirectory;
use crate::error::{Error, Result};
use crate::manifest::{
    FileFacts, FileLedger, Manifest, PieceSums, crc32c, name_of, wrong_checksum,
};
use crate::postgres::Owner;
use crate::restore::{PG_CONTROL, create_root, own_by};
use crate::tablespaces::Tablespace;
use crate::tar_slice::{Slice, SliceContent};
use repository::durable::{self, DurableFile, Written};
use repository::key::Archive;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes read at once when a file is checked again.
const READ_BYTES: usize = 1 << 20;
/// Largest `pg_control` that is kept in memory; the server's has 8 KiB.
const MAX_CONTROL_BYTES: u64 = 64 << 10;

/// What a folder that files of the backup go to has to take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Room {
    /// The folder.
    pub path: PathBuf,
    /// Bytes of the backup's files there.
    pub needed: u64,
    /// Bytes free on its file system.
    pub free: u64,
}

impl Room {
    /// Refuses a folder with too little room.
    ///
    /// # Errors
    /// `Config`.
    pub(crate) fn check(&self) -> Result<()> {
        let Self { path, needed, free } = self;
        match free < needed {
            true => Err(Error::InvalidRequest {
                what: path.display().to_string(),
                reason: format!("{needed} bytes are needed and {free} are free"),
            }),
            false => Ok(()),
        }
    }
}

/// A folder that files of the backup go to.
pub(crate) struct Root {
    path: PathBuf,
    /// Paths of its files in the manifest begin so.
    prefix: String,
}

impl Root {
    /// The data directory and every tablespace outside of it.
    pub(crate) fn all(data: &DataDirectory, tablespaces: &[Tablespace]) -> Vec<Self> {
        let mut roots = vec![Self {
            path: data.path().to_owned(),
            prefix: String::new(),
        }];
        let outside = tablespaces
            .iter()
            .filter(|tablespace| tablespace.location.starts_with('/'));
        roots.extend(outside.map(|tablespace| Self {
            path: PathBuf::from(&tablespace.location),
            prefix: format!("pg_tblspc/{}/", tablespace.oid),
        }));
        roots
    }

    fn is_tablespace(&self) -> bool {
        !self.prefix.is_empty()
    }

    /// Refuses a folder that is in use; the data directory itself is looked at elsewhere.
    ///
    /// # Errors
    /// `Conflict`.
    pub(crate) fn check_free(&self) -> Result<()> {
        let in_use = std::fs::read_dir(&self.path)
            .is_ok_and(|mut entries| entries.next().is_some())
            || self.path.is_file();
        if self.is_tablespace() && in_use {
            return Err(Error::DataDirectory {
                path: self.path.clone(),
                reason: "a tablespace belongs here, and the folder is not empty: put it elsewhere with --map-tablespace".into(),
            });
        }
        Ok(())
    }

    /// What it has to take.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn room(&self, manifest: &Manifest) -> Result<Room> {
        let mine = |path: &str| match self.is_tablespace() {
            true => path.starts_with(&self.prefix),
            false => !path.starts_with("pg_tblspc/"),
        };
        let needed: u64 = manifest
            .files
            .iter()
            .filter(|(path, _)| mine(path))
            .map(|(_, facts)| facts.size)
            .sum();
        let existing = self
            .path
            .ancestors()
            .find(|folder| folder.is_dir())
            .unwrap_or(Path::new("/"));
        Ok(Room {
            path: self.path.clone(),
            needed,
            free: durable::free_space(existing)?,
        })
    }
}

/// Where everything goes, and what has come.
pub(crate) struct Layout {
    data: PathBuf,
    /// Folder of each tablespace, by OID.
    tablespaces: BTreeMap<u32, PathBuf>,
    manifest: Manifest,
    owner: Option<Owner>,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    folders: BTreeSet<PathBuf>,
    files: FileLedger,
    control: Option<Vec<u8>>,
}

impl Layout {
    pub(crate) fn new(
        data: &DataDirectory,
        manifest: Manifest,
        tablespaces: &[Tablespace],
        owner: Option<Owner>,
    ) -> Self {
        Self {
            data: data.path().to_owned(),
            // An in-place tablespace is relative to the data directory.
            tablespaces: tablespaces
                .iter()
                .map(|tablespace| (tablespace.oid, data.path().join(&tablespace.location)))
                .collect(),
            manifest,
            owner,
            seen: Mutex::default(),
        }
    }

    /// Makes the folders that files go to.
    pub(crate) fn create_roots(&self) -> Result<()> {
        for root in self.tablespaces.values() {
            create_root(root, self.owner)?;
        }
        Ok(())
    }

    /// Writes an entry of a part; says whether it was `pg_control`, which is only kept.
    pub(crate) fn write(&self, archive: Archive, slice: &Slice, part: &[u8]) -> Result<bool> {
        let (root, name) = self.place(archive, &slice.path)?;
        let path = root.join(&slice.path);
        let SliceContent::Piece {
            size,
            offset,
            bytes,
        } = &slice.content
        else {
            self.create_folders(&root, &path, slice.mode)?;
            return Ok(false);
        };
        let facts = self.manifest.expect(&name, *size)?;
        let bytes = part.get(bytes.clone()).unwrap_or_default();
        if name == PG_CONTROL {
            return self.keep_control(&name, facts, bytes).map(|()| true);
        }
        if let Some(folder) = path.parent() {
            self.create_folders(&root, folder, 0o700)?;
        }
        let file = DurableFile::open_or_create(&path, 0o600 | slice.mode & 0o640)?;
        if *offset == 0 {
            // What an earlier run or a longer file left behind goes.
            file.set_len(*size)?;
            own_by(&path, self.owner)?;
        }
        file.write_at(bytes, *offset)?;
        self.note(&name, facts, *offset, bytes)?;
        Ok(false)
    }

    /// Checks every file of the manifest that was not seen whole (those of an earlier run), and flushes everything. Says how many files there are.
    pub(crate) fn check_and_flush(&self) -> Result<usize> {
        for (name, facts) in &self.manifest.files {
            let is_whole = self.seen().files.is_whole(name);
            if name != PG_CONTROL && !is_whole {
                self.check_again(name, *facts)?;
            }
        }
        durable::sync_file_system(&self.data)?;
        for root in self.tablespaces.values() {
            durable::sync_file_system(root)?;
        }
        Ok(self.manifest.files.len())
    }

    /// Links `pg_tblspc/<oid>` to each tablespace outside the data directory.
    pub(crate) fn link_tablespaces(&self, tablespaces: &[Tablespace]) -> Result<()> {
        for tablespace in tablespaces
            .iter()
            .filter(|tablespace| tablespace.location.starts_with('/'))
        {
            let link = self.data.join("pg_tblspc").join(tablespace.oid.to_string());
            durable::remove_file(&link)?;
            // An existing folder of that name is the server's or a stranger's; it is not replaced.
            if durable::symlink(Path::new(&tablespace.location), &link)? == Written::AlreadyExists {
                return Err(Error::DataDirectory {
                    path: link,
                    reason: "is in the way of a tablespace's link".into(),
                });
            }
            own_by(&link, self.owner)?;
        }
        Ok(())
    }

    /// The bytes of `pg_control`, checked; `None` if no part held it.
    pub(crate) fn take_control(&self) -> Option<Vec<u8>> {
        self.seen().control.take()
    }

    /// The folder of an archive, and the name of a path of it in the manifest.
    fn place(&self, archive: Archive, path: &str) -> Result<(PathBuf, String)> {
        match archive {
            Archive::Base => {
                let oid = path
                    .strip_prefix("pg_tblspc/")
                    .and_then(|rest| rest.split('/').next())
                    .and_then(|oid| oid.parse().ok());
                let linked = oid
                    .and_then(|oid: u32| self.tablespaces.get(&oid))
                    .is_some_and(|root| !root.starts_with(&self.data));
                match linked {
                    true => Err(integrity(
                        path,
                        "lies in a tablespace, and came with the data directory".into(),
                    )),
                    false => Ok((self.data.clone(), name_of(archive, path))),
                }
            }
            Archive::Tablespace(oid) => {
                let root = self.tablespaces.get(&oid).cloned();
                let root = root.ok_or_else(|| {
                    integrity(
                        path,
                        format!("belongs to tablespace {oid}, which tablespace_map does not name"),
                    )
                })?;
                Ok((root, name_of(archive, path)))
            }
        }
    }

    fn keep_control(&self, name: &str, facts: FileFacts, bytes: &[u8]) -> Result<()> {
        let fits = bytes.len() as u64 == facts.size
            && facts.size <= MAX_CONTROL_BYTES
            && facts.crc32c.is_none_or(|crc| crc == crc32c(bytes));
        if !fits {
            return Err(integrity(
                name,
                "is not the file that the manifest lists".into(),
            ));
        }
        self.seen().control = Some(bytes.to_vec());
        Ok(())
    }

    fn note(&self, name: &str, facts: FileFacts, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut piece = PieceSums::default();
        piece.add(offset, bytes);
        self.seen().files.note(name, facts, piece)
    }

    fn check_again(&self, name: &str, facts: FileFacts) -> Result<()> {
        let path = self.path_of(name);
        let missing = || Error::Missing {
            object: name.to_owned(),
            reason: "the manifest lists it, and no part of the backup held it whole".into(),
        };
        let io = |source: std::io::Error| match source.kind() {
            std::io::ErrorKind::NotFound => missing(),
            _ => Error::Io {
                action: "read",
                path: path.clone(),
                source,
            },
        };
        let mut file = std::fs::File::open(&path).map_err(io)?;
        let mut sums = PieceSums::default();
        let mut buffer = vec![0; READ_BYTES];
        let mut offset = 0;
        loop {
            let count = file.read(&mut buffer).map_err(io)?;
            if count == 0 {
                break;
            }
            sums.add(offset, buffer.get(..count).unwrap_or_default());
            offset += count as u64;
        }
        match sums.whole(facts.size) {
            None => Err(missing()),
            Some(sum) if facts.crc32c.is_some_and(|expected| expected != sum) => {
                Err(wrong_checksum(name))
            }
            Some(_) => Ok(()),
        }
    }

    /// The path on disk of a file of the manifest.
    fn path_of(&self, name: &str) -> PathBuf {
        let in_tablespace = name.strip_prefix("pg_tblspc/").and_then(|rest| {
            let (oid, path) = rest.split_once('/')?;
            Some(self.tablespaces.get(&oid.parse().ok()?)?.join(path))
        });
        in_tablespace.unwrap_or_else(|| self.data.join(name))
    }

    /// Makes `folder` and what is missing between it and `root`; `mode` is the folder's own.
    fn create_folders(&self, root: &Path, folder: &Path, mode: u32) -> Result<()> {
        if self.seen().folders.contains(folder) {
            return Ok(());
        }
        let mut path = root.to_owned();
        for name in folder
            .strip_prefix(root)
            .into_iter()
            .flat_map(Path::components)
        {
            path.push(name);
            let mode = if path == folder {
                0o700 | mode & 0o750
            } else {
                0o700
            };
            if durable::create_dir(&path, mode)? == Written::Created {
                own_by(&path, self.owner)?;
            } else if path
                .symlink_metadata()
                .is_ok_and(|metadata| !metadata.is_dir())
            {
                return Err(Error::DataDirectory {
                    path,
                    reason: "is not a folder".into(),
                });
            }
        }
        self.seen().folders.insert(folder.to_owned());
        Ok(())
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        // Every change under the lock is whole, so a panic elsewhere leaves nothing half done.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn integrity(object: &str, reason: String) -> Error {
    Error::Integrity {
        object: object.to_owned(),
        reason,
    }
}
