//! Temporary folders: short paths (a socket's path may have 107 bytes), removed when dropped. What a killed test run
//! left behind is removed by the next one.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::Duration;
use tempfile::TempDir;

const PREFIX: &str = "walden-it-";
const LOCK: &str = ".in-use";

/// A folder of one test.
#[derive(Debug)]
pub(crate) struct Scratch {
    directory: TempDir,
    /// Held as long as the folder is in use; the kernel lets go of it however this program ends.
    lock: File,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        static SWEEP: Once = Once::new();
        SWEEP.call_once(remove_abandoned);
        let directory = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempdir_in(parent())
            .expect("make a temporary folder");
        let lock = File::create(directory.path().join(LOCK)).expect("make the lock file");
        lock.try_lock().expect("nobody else knows this folder");
        Self { directory, lock }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Gives the folder away: whoever takes it removes it, and holds the lock while it is in use.
    pub(crate) fn keep(self) -> (PathBuf, File) {
        (self.directory.keep(), self.lock)
    }

    pub(crate) fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// The system's choice, unless sockets below it could get too long a path.
fn parent() -> PathBuf {
    let directory = std::env::temp_dir();
    if directory.as_os_str().len() <= 60 {
        directory
    } else {
        PathBuf::from("/tmp")
    }
}

/// A folder is abandoned if nobody holds its lock. A young one may be between its making and its locking.
fn remove_abandoned() {
    let Ok(entries) = std::fs::read_dir(parent()) else {
        return;
    };
    for entry in entries.flatten() {
        let old = |path: &Path| {
            path.metadata()
                .and_then(|metadata| metadata.modified())
                .is_ok_and(|time| {
                    time.elapsed()
                        .is_ok_and(|age| age > Duration::from_secs(600))
                })
        };
        let ours = entry
            .file_name()
            .to_str()
            .is_some_and(|name| name.starts_with(PREFIX));
        if ours
            && old(&entry.path())
            && let Ok(lock) = File::open(entry.path().join(LOCK))
            && lock.try_lock().is_ok()
            && let Err(error) = std::fs::remove_dir_all(entry.path())
        {
            // Another user's, or another run sweeping at the same time: not this test's affair.
            super::process::note(&format!(
                "cannot remove {}: {error}",
                entry.path().display()
            ));
        }
    }
}
