//! What earlier runs verified, kept in a local file: an object that was found good and has not changed since is not read again.
//!
//! Owns the file's format and what makes an object the same: size and time of writing, since objects are written once. The file is a
//! convenience: one that cannot be read, or is of another repository, only costs time.

use super::survey::Meta;
use crate::error::{Error, Result};
use repository::durable;
use repository::key::ClusterId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Largest file that is read: some two million objects.
const MAX_BYTES: u64 = 512 << 20;
/// Format of the file.
const FORMAT: u32 = 1;

/// How deep an object was verified; each includes those before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Depth {
    /// Its stored bytes against its descriptor.
    Stored,
    /// Opened with a key (or not encrypted).
    Opened,
    /// What it holds: every record of WAL; of a backup, every file.
    Understood,
}

/// A transaction that is prepared and neither committed nor rolled back.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Prepared {
    /// Its name.
    pub name: String,
    /// Its number.
    pub xid: u32,
    /// Start of the record that prepared it, `X/X`.
    pub lsn: String,
}

/// What is open where verification of a timeline's sealed WAL ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    /// First byte behind it, `X/X`.
    pub(crate) to: String,
    pub(crate) open: Vec<Prepared>,
    /// The same where a child timeline begins, by its number.
    pub(crate) forks: BTreeMap<u32, Vec<Prepared>>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Document {
    format: u32,
    repository: String,
    cluster: String,
    /// By key: size, time of writing, depth.
    objects: BTreeMap<String, (u64, i64, Depth)>,
    timelines: BTreeMap<u32, Mark>,
}

/// What is remembered.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    path: Option<PathBuf>,
    before: Document,
    now: Document,
    /// What is known now is not written yet.
    is_changed: bool,
}

impl Memory {
    /// Remembers nothing and keeps nothing.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Reads what is remembered of a cluster in a repository (`repository_id` tells it and its place from others) from `folder`; with `ignore`, only keeps what this run
    /// verifies. Says why, if a file is there and cannot be used.
    #[must_use]
    pub fn load(
        folder: &Path,
        repository_id: &str,
        cluster: ClusterId,
        ignore: bool,
    ) -> (Self, Option<String>) {
        let name = format!(
            "verify-{:08x}-{cluster}.json",
            crc32fast::hash(repository_id.as_bytes())
        );
        let path = folder.join(name);
        let fresh = Document {
            format: FORMAT,
            repository: repository_id.to_owned(),
            cluster: cluster.to_string(),
            ..Document::default()
        };
        let (before, trouble) = match read(&path) {
            _ if ignore => (Document::default(), None),
            Ok(None) => (Document::default(), None),
            Ok(Some(document))
                if (document.format, &document.repository, &document.cluster)
                    == (FORMAT, &fresh.repository, &fresh.cluster) =>
            {
                (document, None)
            }
            Ok(Some(_)) => (
                Document::default(),
                Some(format!(
                    "{} is of another repository or version",
                    path.display()
                )),
            ),
            Err(why) => (
                Document::default(),
                Some(format!("{} cannot be used: {why}", path.display())),
            ),
        };
        let now = Document {
            objects: before.objects.clone(),
            timelines: before.timelines.clone(),
            ..fresh
        };
        let memory = Self {
            path: Some(path),
            before,
            now,
            is_changed: true,
        };
        (memory, trouble)
    }

    /// Whether an object was verified as deep as `depth`, and is the same.
    pub(crate) fn knows(&self, key: &str, meta: Meta, depth: Depth) -> bool {
        let known = self.before.objects.get(key);
        known.is_some_and(|(size, modified, known)| {
            (*size, *modified) == (meta.size, meta.modified) && *known >= depth
        })
    }

    /// Keeps that an object was verified. What was known of it to be deeper, and still holds, stays.
    pub(crate) fn note(&mut self, key: &str, meta: Meta, depth: Depth) {
        let deepest = [Depth::Understood, Depth::Opened]
            .into_iter()
            .find(|deeper| *deeper > depth && self.knows(key, meta, *deeper));
        let entry = (meta.size, meta.modified, deepest.unwrap_or(depth));
        if self.now.objects.get(key) != Some(&entry) {
            self.now.objects.insert(key.to_owned(), entry);
            self.is_changed = true;
        }
    }

    /// An object is not as it should be: it will be looked at again.
    pub(crate) fn forget(&mut self, key: &str) {
        self.is_changed |= self.now.objects.remove(key).is_some();
    }

    /// Drops what is known of objects that are no more.
    pub(crate) fn retain(&mut self, is_stored: impl Fn(&str) -> bool) {
        let before = self.now.objects.len();
        self.now.objects.retain(|key, _| is_stored(key));
        self.is_changed |= self.now.objects.len() != before;
    }

    /// Whether nothing is known of any object.
    pub(crate) fn is_empty(&self) -> bool {
        self.before.objects.is_empty()
    }

    pub(crate) fn mark(&self, timeline: u32) -> Option<&Mark> {
        self.before.timelines.get(&timeline)
    }

    pub(crate) fn set_mark(&mut self, timeline: u32, mark: Mark) {
        if self.now.timelines.get(&timeline) != Some(&mark) {
            self.now.timelines.insert(timeline, mark);
            self.is_changed = true;
        }
    }

    /// Writes what is known now, if that has changed.
    ///
    /// # Errors
    /// `Io`: the folder cannot be written.
    pub fn save(&mut self) -> Result<()> {
        let Some(path) = self.path.as_ref().filter(|_| self.is_changed) else {
            return Ok(());
        };
        let json = serde_json::to_vec(&self.now).map_err(|error| Error::Integrity {
            object: path.display().to_string(),
            reason: error.to_string(),
        })?;
        if let Some(folder) = path.parent() {
            durable::create_dir_chain(folder, 0o700)?;
        }
        durable::replace(path, 0o600, &json)?;
        self.is_changed = false;
        Ok(())
    }
}

/// The file; `None` if there is none.
fn read(path: &Path) -> std::result::Result<Option<Document>, String> {
    let size = match std::fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    if size > MAX_BYTES {
        return Err(format!("it has {size} bytes"));
    }
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const META: Meta = Meta {
        size: 10,
        modified: 5,
    };

    fn load(folder: &Path, id: &str) -> (Memory, Option<String>) {
        Memory::load(folder, id, ClusterId::new(7), false)
    }

    #[test]
    fn an_object_is_known_as_long_as_it_is_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let (mut memory, trouble) = load(folder.path(), "a");
        assert_eq!(trouble, None);
        memory.note("k", META, Depth::Opened);
        assert!(
            !memory.knows("k", META, Depth::Stored),
            "not this run's own"
        );
        memory.save().unwrap();
        let (mut memory, _) = load(folder.path(), "a");
        assert!(memory.knows("k", META, Depth::Opened));
        assert!(!memory.knows("k", META, Depth::Understood));
        for (size, modified) in [(11, 5), (10, 6)] {
            assert!(!memory.knows("k", Meta { size, modified }, Depth::Stored));
        }
        // A shallower look does not make the deeper one undone.
        memory.note("k", META, Depth::Stored);
        memory.save().unwrap();
        let (memory, _) = load(folder.path(), "a");
        assert!(memory.knows("k", META, Depth::Opened));
        let (ignoring, _) = Memory::load(folder.path(), "a", ClusterId::new(7), true);
        assert!(!ignoring.knows("k", META, Depth::Stored));
    }

    #[test]
    fn a_file_of_another_repository_or_a_broken_one_is_told_and_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let (mut memory, _) = load(folder.path(), "a");
        memory.note("k", META, Depth::Opened);
        memory.save().unwrap();
        let path = memory.path.clone().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        for broken in [
            text.replace("\"a\"", "\"b\""),
            text.replace("\"format\":1", "\"format\":2"),
            text[..text.len() / 2].to_owned(),
            String::new(),
        ] {
            std::fs::write(&path, broken).unwrap();
            let (memory, trouble) = load(folder.path(), "a");
            assert!(trouble.is_some());
            assert!(!memory.knows("k", META, Depth::Stored));
        }
    }
}
