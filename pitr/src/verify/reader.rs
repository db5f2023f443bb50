//! Looks at one object: its descriptor, its stored bytes, or its contents, and counts what was read.
//!
//! Owns the line between an object that is wrong (a finding) and a store or key that does not work (an error). Every check of bytes is
//! the repository crate's own.

use super::finding::Problem;
use super::memory::Depth;
use crate::error::{Error, Result};
use crate::segment_source::{SegmentSource, check, found};
use repository::descriptor::Descriptor;
use repository::key::ObjectKey;
use repository::sealed::check_stored;
use repository::several::Absence;
use repository::{ErrorClass, Repository};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use wal_format::TimelineId;

/// How much of an object is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// What it says of itself.
    Descriptor,
    /// All its bytes; what they mean is not needed.
    Checked,
    /// The same, and what they mean if there is a key for them.
    ContentsIfOpened,
    /// All its bytes, and what they mean.
    Contents,
}

/// What was found.
#[derive(Debug)]
pub(crate) enum Examined {
    /// All that was looked at fits.
    Good {
        /// What it says of itself.
        descriptor: Box<Descriptor>,
        /// Its plain bytes, if they were wanted and could be had.
        plain: Option<Vec<u8>>,
        /// How deep it was looked at; `None` for a descriptor alone.
        depth: Option<Depth>,
    },
    /// It is not what it should be.
    Bad(Problem, String),
    /// It is not there.
    Gone,
}

/// What was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Objects whose bytes were read.
    pub objects_read: u64,
    /// Objects that were not read because an earlier run had verified them.
    pub objects_remembered: u64,
    /// Objects of which only the descriptor was read.
    pub descriptors_read: u64,
    /// Segments of which a roll-up told the descriptor.
    pub descriptors_rolled_up: u64,
    /// Stored bytes read.
    pub stored_bytes: u64,
    /// Plain bytes they held; 0 without a key.
    pub plain_bytes: u64,
    /// WAL records checked.
    pub records: u64,
    /// Files of backups held against their manifest.
    pub files: u64,
    /// Data pages whose checksum was computed.
    pub pages: u64,
}

#[derive(Default)]
struct Counters {
    objects: AtomicU64,
    remembered: AtomicU64,
    descriptors: AtomicU64,
    rolled_up: AtomicU64,
    stored: AtomicU64,
    plain: AtomicU64,
    records: AtomicU64,
    files: AtomicU64,
    pages: AtomicU64,
}

/// Reads objects.
pub(crate) struct Reader<'a> {
    /// Where they are, how they are opened, and whose they are.
    pub(crate) segments: &'a SegmentSource,
    /// Told of stored bytes as they are read.
    progress: &'a (dyn Fn(u64) + Sync),
    /// Lineages of the timelines on the way, by which an object is taken from one of several repositories, as those do who recover from them.
    lineages: BTreeMap<TimelineId, String>,
    counters: Counters,
}

/// An object as it was read.
type Looked = (Descriptor, Option<Vec<u8>>, Option<Depth>);

impl<'a> Reader<'a> {
    pub(crate) fn new(segments: &'a SegmentSource, progress: &'a (dyn Fn(u64) + Sync)) -> Self {
        Self {
            segments,
            progress,
            lineages: BTreeMap::new(),
            counters: Counters::default(),
        }
    }

    /// The same, for WAL of these timelines in several repositories.
    pub(crate) fn on_path(mut self, lineages: &BTreeMap<TimelineId, String>) -> Self {
        if self.segments.repository.is_several() {
            self.lineages.clone_from(lineages);
        }
        self
    }

    /// Looks at an object of at most `limit` plain bytes.
    ///
    /// # Errors
    /// `Key`: encrypted, and its contents are wanted without a key, or no identity has opened any object. `Retry`, `Config`: the store.
    pub(crate) async fn examine(
        &self,
        key: &ObjectKey,
        limit: usize,
        want: Want,
    ) -> Result<Examined> {
        if want == Want::Descriptor {
            self.counters.descriptors.fetch_add(1, Ordering::Relaxed);
        }
        let ask = |one: Repository| self.ask(one, key, limit, want);
        let repositories = &self.segments.repository;
        let looked = repositories
            .first_given(&key.to_string(), limit as u64, Absence::Proven, ask)
            .await;
        match looked {
            Ok(Some((descriptor, plain, depth))) => Ok(Examined::Good {
                descriptor: Box::new(descriptor),
                plain: plain.filter(|_| want != Want::Checked),
                depth,
            }),
            Ok(None) => Ok(Examined::Gone),
            Err(Error::Repository(error)) => self.judge(key, error),
            Err(error) => Err(error),
        }
    }

    async fn ask(
        &self,
        one: Repository,
        key: &ObjectKey,
        limit: usize,
        want: Want,
    ) -> Result<Option<Looked>> {
        if want == Want::Descriptor {
            let described = found(one.fetch_descriptor(key).await)?;
            let Some(descriptor) = described else {
                return Ok(None);
            };
            self.check_place(key, &descriptor)?;
            return Ok(Some((descriptor, None, None)));
        }
        let Some(object) = found(one.fetch_stored(key, limit).await)? else {
            return Ok(None);
        };
        let stored = object.len() as u64;
        let (place, policy) = (key.clone(), self.segments.policy.clone());
        let opened = blocking(move || {
            if policy.identities.is_empty() {
                let descriptor = check_stored(&place, &object)?;
                let mut plain = Vec::new();
                return match policy.open(&place, object, limit, &mut plain) {
                    Ok(descriptor) => Ok((descriptor, Some(plain))),
                    Err(error) if error.class() == ErrorClass::Key && want != Want::Contents => {
                        Ok((descriptor, None))
                    }
                    Err(error) => Err(error),
                };
            }
            let mut plain = Vec::new();
            let descriptor = policy.open(&place, object, limit, &mut plain)?;
            Ok((descriptor, Some(plain)))
        })
        .await;
        self.count_read(stored);
        let (descriptor, plain) = opened?;
        self.check_place(key, &descriptor)?;
        let depth = match &plain {
            Some(plain) => {
                self.counters
                    .plain
                    .fetch_add(plain.len() as u64, Ordering::Relaxed);
                Depth::Opened
            }
            None => Depth::Stored,
        };
        Ok(Some((descriptor, plain, Some(depth))))
    }

    /// With other repositories to ask, WAL of another place, lineage or chain is not taken, as no recovery takes it.
    fn check_place(&self, key: &ObjectKey, descriptor: &Descriptor) -> Result<()> {
        let (name, from) = match key {
            ObjectKey::Segment { name, .. } | ObjectKey::Partial { name, .. } => (name, 0),
            ObjectKey::Tail { name, from, .. } => (name, *from),
            _ => return Ok(()),
        };
        let lineage = self.lineages.get(&name.timeline);
        let Some((lineage, start)) = lineage.zip(name.start(self.segments.size)) else {
            return Ok(());
        };
        let begin = start.saturating_add(u64::from(from));
        let range = (begin, begin.saturating_add(descriptor.plain_size));
        let wal = check(key, descriptor, range, lineage)?;
        match key {
            ObjectKey::Segment { .. } => self.segments.settled.check(*name, wal),
            _ => Ok(()),
        }
    }

    /// An object that an earlier run verified.
    pub(crate) fn remembered(&self) {
        self.counters.remembered.fetch_add(1, Ordering::Relaxed);
    }

    /// Segments that roll-ups described.
    pub(crate) fn rolled_up(&self, count: u64) {
        self.counters.rolled_up.fetch_add(count, Ordering::Relaxed);
    }

    /// An object of so many bytes was read.
    pub(crate) fn count_read(&self, stored: u64) {
        self.counters.objects.fetch_add(1, Ordering::Relaxed);
        self.counters.stored.fetch_add(stored, Ordering::Relaxed);
        (self.progress)(stored);
    }

    pub(crate) fn add_records(&self, count: u64) {
        self.counters.records.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn add_files(&self, files: u64, pages: u64) {
        self.counters.files.fetch_add(files, Ordering::Relaxed);
        self.counters.pages.fetch_add(pages, Ordering::Relaxed);
    }

    /// What was looked at so far.
    pub(crate) fn counts(&self) -> Counts {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            objects_read: of(&self.counters.objects),
            objects_remembered: of(&self.counters.remembered),
            descriptors_read: of(&self.counters.descriptors),
            descriptors_rolled_up: of(&self.counters.rolled_up),
            stored_bytes: of(&self.counters.stored),
            plain_bytes: of(&self.counters.plain),
            records: of(&self.counters.records),
            files: of(&self.counters.files),
            pages: of(&self.counters.pages),
        }
    }

    /// An object that is wrong, or a reason to give up.
    pub(crate) fn judge(&self, key: &ObjectKey, error: repository::Error) -> Result<Examined> {
        use repository::Error as Stored;
        let text = error.to_string();
        let prefix = format!("{key}: ");
        let detail = text.strip_prefix(&prefix).unwrap_or(&text).to_owned();
        let problem = match &error {
            Stored::NotFound { .. } => return Ok(Examined::Gone),
            Stored::Damaged { .. }
            | Stored::InvalidKey { .. }
            | Stored::NoDescriptor { .. }
            | Stored::ObjectTooLarge { .. } => Problem::Damaged,
            Stored::Misplaced { .. } => Problem::Misplaced,
            Stored::FromTheFuture { .. } => Problem::LaterVersion,
            Stored::PlainRefused { .. } => Problem::Unencrypted,
            // Each says why.
            Stored::NoRepositoryGives { class, .. } if *class == ErrorClass::Corrupt => {
                Problem::Damaged
            }
            // The identity is right for others: this object is the odd one.
            Stored::WrongIdentity { .. } if self.counters.plain.load(Ordering::Relaxed) > 0 => {
                Problem::WrongKey
            }
            _ => return Err(Error::Repository(error)),
        };
        Ok(Examined::Bad(problem, detail))
    }
}

/// Runs work that computes on a thread for it.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}
