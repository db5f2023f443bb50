//! A data directory on this machine: whether it may be restored into, its configuration files, and carrying out a [`RecoverySetup`].
//!
//! Owns local paths; decides nothing about settings (`recovery_conf.rs`) and unpacks no backup (`restore.rs`). Mutates through `durable`.

use crate::conf_file::ConfigSource;
use crate::error::{Error, Result};
use crate::postgres::{Owner, is_running};
use crate::recovery_conf::{FileToWrite, RecoverySetup};
use repository::durable;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// Largest configuration file that is read. The server's sample has 30 kB.
const MAX_CONFIG_BYTES: u64 = 4 << 20;
/// Most entries of an `include_dir`.
const MAX_CONFIG_FILES: usize = 1000;

/// A folder that is, or is to become, a data directory. The path is absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataDirectory {
    path: PathBuf,
}

/// What stands in the way of a restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occupancy {
    /// No such folder, an empty one, or one in which a restore of ours was killed before it had written anything.
    Free,
    /// A restore of ours was here and did not end.
    Interrupted,
}

impl DataDirectory {
    /// The data directory at `path`, made absolute from the current folder.
    ///
    /// # Errors
    /// `Io` without a current folder; `Config` for a path that is not UTF-8 (it must be written into configuration files).
    pub fn new(path: &Path) -> Result<Self> {
        let absolute = std::path::absolute(path).map_err(|source| Error::Io {
            action: "resolve",
            path: path.to_owned(),
            source,
        })?;
        if absolute.to_str().is_none() {
            return Err(Error::InvalidRequest {
                what: format!("data directory {}", path.display()),
                reason: "its path is not UTF-8 and cannot be written into configuration files"
                    .into(),
            });
        }
        Ok(Self { path: absolute })
    }

    /// Its absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its absolute path as text (it is UTF-8, see [`DataDirectory::new`]).
    pub fn as_str(&self) -> &str {
        self.path.to_str().unwrap_or_default()
    }

    /// Whether a restore may write here. Relative to the data directory, `own_folder` is what a restore of ours leaves for good, `marker` the file it leaves while it works.
    ///
    /// # Errors
    /// `Conflict`: a server runs here, or there are files that are not ours; `Io`.
    pub fn check_free(&self, own_folder: &str, marker: &str) -> Result<Occupancy> {
        let refuse = |reason: &str| Error::DataDirectory {
            path: self.path.clone(),
            reason: reason.into(),
        };
        if is_running(&self.path) {
            return Err(refuse("a server is running in it"));
        }
        if self.path.join(marker).is_file() {
            return Ok(Occupancy::Interrupted);
        }
        let is_free = self.is_free(own_folder).map_err(|source| Error::Io {
            action: "read",
            path: self.path.clone(),
            source,
        })?;
        match is_free {
            true => Ok(Occupancy::Free),
            false if self.path.join(own_folder).is_dir() => Err(refuse(
                "a finished restore is in it: start its server (pg_ctl start -D), or empty the folder to restore anew",
            )),
            false => Err(refuse("not empty: a restore wants a new or empty folder")),
        }
    }

    /// Whether nothing is here but, at most, the way to our own folder and files in it that have no name yet: a restore was killed before it had
    /// named the first.
    fn is_free(&self, own_folder: &str) -> std::io::Result<bool> {
        let mut folder = self.path.clone();
        for part in own_folder.split('/') {
            if !holds_only(&folder, |name| name == part)? {
                return Ok(false);
            }
            folder.push(part);
        }
        holds_only(&folder, durable::is_temporary_name)
    }

    /// Removes and writes what `setup` says, in its order, each file durable before the next.
    ///
    /// # Errors
    /// `Io`; run again it does the same again.
    pub fn apply(&self, setup: &RecoverySetup, owner: Option<Owner>) -> Result<()> {
        for name in setup.remove {
            durable::remove_file(&self.path.join(name))?;
        }
        for file in &setup.write {
            self.write(file, owner)?;
        }
        Ok(())
    }

    /// Writes a file durably in place of the old one.
    ///
    /// # Errors
    /// `Io`; the old file is whole.
    pub fn write(&self, file: &FileToWrite, owner: Option<Owner>) -> Result<()> {
        let path = self.path.join(&file.path);
        durable::replace(&path, 0o600, file.content.as_bytes())?;
        if let Some(owner) = owner {
            durable::set_owner(&path, owner.user, owner.group)?;
        }
        Ok(())
    }
}

impl ConfigSource for DataDirectory {
    fn read(&self, path: &str) -> Option<String> {
        let path = self.path.join(path);
        // Anything but a file of sensible size (a device, a key as large as a database) is no configuration.
        let metadata = std::fs::metadata(&path).ok()?;
        if !metadata.is_file() || metadata.len() > MAX_CONFIG_BYTES {
            return None;
        }
        let bytes = std::fs::read(path).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn list(&self, path: &str) -> Option<Vec<String>> {
        let mut names: Vec<String> = std::fs::read_dir(self.path.join(path))
            .ok()?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.ends_with(".conf") && !name.starts_with('.'))
            .take(MAX_CONFIG_FILES)
            .collect();
        names.sort();
        Some(
            names
                .into_iter()
                .map(|name| format!("{path}/{name}"))
                .collect(),
        )
    }
}

/// Whether every name in a folder passes; of a folder that is not there, all do.
fn holds_only(folder: &Path, passes: impl Fn(&OsStr) -> bool) -> std::io::Result<bool> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(true),
        entries => entries?,
    };
    for entry in entries {
        if !passes(&entry?.file_name()) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_empty_or_interrupted_folder_is_restored_into() {
        let folder = tempfile::tempdir().unwrap();
        let directory = |name: &str| DataDirectory::new(&folder.path().join(name)).unwrap();
        assert_eq!(
            directory("new").check_free("own", "marker").unwrap(),
            Occupancy::Free
        );
        std::fs::create_dir(folder.path().join("data")).unwrap();
        assert_eq!(
            directory("data").check_free("own", "marker").unwrap(),
            Occupancy::Free
        );
        let own = folder.path().join("begun/pg_wal/own");
        std::fs::create_dir_all(&own).unwrap();
        std::fs::write(own.join(format!("{}7", durable::TEMPORARY_PREFIX)), "{").unwrap();
        let begun = || directory("begun").check_free("pg_wal/own", "pg_wal/own/marker");
        assert_eq!(begun().unwrap(), Occupancy::Free);
        std::fs::write(own.join("plan.json"), "{}").unwrap();
        assert!(begun().is_err());
        std::fs::write(folder.path().join("data/PG_VERSION"), "17\n").unwrap();
        let error = directory("data").check_free("own", "marker").unwrap_err();
        assert_eq!(error.class(), repository::ErrorClass::Conflict);
        assert!(
            error.to_string().contains("wants a new or empty"),
            "{error}"
        );
        std::fs::create_dir(folder.path().join("data/own")).unwrap();
        let error = directory("data").check_free("own", "marker").unwrap_err();
        assert!(error.to_string().contains("a finished restore"), "{error}");
        std::fs::write(folder.path().join("data/marker"), "").unwrap();
        assert_eq!(
            directory("data").check_free("own", "marker").unwrap(),
            Occupancy::Interrupted
        );
        std::fs::write(
            folder.path().join("data/postmaster.pid"),
            format!("{}\n", std::process::id()),
        )
        .unwrap();
        assert!(directory("data").check_free("own", "marker").is_err());
        std::fs::write(folder.path().join("file"), "").unwrap();
        assert!(directory("file").check_free("own", "marker").is_err());
    }

    #[test]
    fn a_folder_of_configuration_is_read_in_the_order_of_names() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b.conf", "a.conf", ".hidden.conf", "c.txt"] {
            std::fs::write(folder.path().join(name), name).unwrap();
        }
        let directory = DataDirectory::new(folder.path()).unwrap();
        assert_eq!(directory.list(".").unwrap(), ["./a.conf", "./b.conf"]);
        assert_eq!(directory.read("./a.conf").as_deref(), Some("a.conf"));
        assert_eq!(directory.read("gone"), None);
        assert_eq!(directory.read("."), None);
        assert_eq!(directory.list("gone"), None);
    }
}
