//! Reads what the answer about windows is made from: names, history files, backup descriptors, as many descriptors of WAL as the caller
//! can wait for, and the last WAL before each end for its last commit.
//!
//! Owns the order and the number of those requests. What follows from them is `stretches.rs` and `reach.rs`.

use crate::error::{Error, Result};
use crate::gather::{StoredWal, fetch_backups};
use crate::last_commit::find_last_commit;
use crate::plan::{BackupFacts, Piece, PieceSource};
use crate::reach::{find_broken, find_windows};
use crate::roll_ups::fetch_roll_ups;
use crate::segment_source::SegmentSource;
use crate::settle::Settled;
use crate::stretches::{Evidence, KnownHistory, WalFacts};
use crate::window::{Reach, Windows};
use futures_util::StreamExt;
use repository::backup::BackupDescriptor;
use repository::catalog::Catalog;
use repository::cluster::ClusterDocument;
use repository::descriptor::WalDescriptor;
use repository::key::{BackupLabel, ObjectKey};
use repository::sealed::OpenPolicy;
use repository::wal::lineage;
use repository::{ErrorClass, Repository};
use std::collections::{BTreeMap, BTreeSet};
use wal_format::{DecoderConfig, Lsn, SegmentName, TimelineId};

/// Descriptors asked for at the same time.
const IN_FLIGHT: usize = 16;
/// Segments before each end that are asked first for a transaction, and then, if they hold none.
const LOOK_BACK: [u64; 2] = [8, 64];
/// Ends whose last commit is read from the WAL itself, the furthest first: each costs a segment or two.
const MAX_COMMITS_READ: usize = 32;

/// Segments before each end for which a roll-up's word is not enough.
const DOUBTED_BEFORE_END: u64 = 2;
/// How often the answer is made anew when roll-ups proved wrong.
const MAX_CONFIRMATIONS: usize = 64;

/// How much is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// All descriptors are read if no more than this have to be fetched one by one; else only those before the ends.
    pub max_descriptors: usize,
    /// Whether the last commits are read out of the WAL, where a key opens it.
    pub commits: bool,
}

impl Effort {
    /// What a person waits for without a thought: the ends alone.
    pub const ENDS: Self = Self {
        max_descriptors: 0,
        commits: false,
    };
    /// Everything that descriptors say.
    pub const WHOLE: Self = Self {
        max_descriptors: usize::MAX,
        commits: true,
    };
}

/// What was read, and what follows.
#[derive(Clone, Debug)]
pub struct Survey {
    /// Names of everything stored.
    pub catalog: Catalog,
    /// The descriptor of each backup.
    pub descriptors: BTreeMap<BackupLabel, BackupDescriptor>,
    /// The answer.
    pub windows: Windows,
    /// What could not be read although it should be: for people.
    pub problems: Vec<String>,
    /// No key opens the history files or the WAL: timelines are taken each for itself, last commits are not known.
    pub lacks_key: bool,
}

impl Survey {
    /// Reads a cluster.
    ///
    /// # Errors
    /// As the store's. `Corrupt`: a history file or a backup's descriptor is damaged.
    pub async fn gather(
        repository: &Repository,
        cluster: &ClusterDocument,
        policy: &OpenPolicy,
        effort: Effort,
    ) -> Result<Self> {
        let catalog = repository.list(cluster.id()).await?;
        let segments = SegmentSource {
            repository: repository.into(),
            policy: policy.clone(),
            cluster: cluster.id(),
            size: cluster.segment_size()?,
            settled: Settled::default(),
        };
        let (backups, descriptors) = fetch_backups(&segments, &catalog).await?;
        let mut reader = Reader::new(&segments, &catalog, &backups);
        let windows = reader.read(effort).await?;
        let (problems, lacks_key) = (reader.problems, reader.lacks_key);
        Ok(Self {
            windows,
            descriptors,
            problems,
            lacks_key,
            catalog,
        })
    }
}

/// The answer for what a plan has read already: the ends alone.
///
/// # Errors
/// As [`Survey::gather`].
pub(crate) async fn windows_of(
    segments: &SegmentSource,
    catalog: &Catalog,
    backups: &[BackupFacts],
) -> Result<Windows> {
    Reader::new(segments, catalog, backups)
        .read(Effort::ENDS)
        .await
}

struct Reader<'a> {
    segments: &'a SegmentSource,
    catalog: &'a Catalog,
    backups: &'a [BackupFacts],
    histories: BTreeMap<TimelineId, KnownHistory>,
    wal: WalFacts,
    /// Segments known from roll-ups alone.
    rolled_up: BTreeSet<SegmentName>,
    problems: Vec<String>,
    lacks_key: bool,
}

impl<'a> Reader<'a> {
    fn new(segments: &'a SegmentSource, catalog: &'a Catalog, backups: &'a [BackupFacts]) -> Self {
        Self {
            segments,
            catalog,
            backups,
            histories: BTreeMap::new(),
            wal: WalFacts::default(),
            rolled_up: BTreeSet::new(),
            problems: Vec::new(),
            lacks_key: false,
        }
    }

    async fn read(&mut self, effort: Effort) -> Result<Windows> {
        self.fetch_histories().await?;
        self.fetch_open_ends().await?;
        if effort.max_descriptors > 0 {
            let (repository, cluster) = (&self.segments.repository, self.segments.cluster);
            self.wal.sealed = fetch_roll_ups(repository, cluster, self.catalog).await?;
            self.rolled_up = self.wal.sealed.keys().copied().collect();
        }
        let missing: Vec<SegmentName> = self.unread().collect();
        if missing.len() <= effort.max_descriptors {
            self.fetch_sealed(missing).await?;
        } else {
            for depth in LOOK_BACK {
                let wanted = self.before_ends(depth);
                self.fetch_sealed(wanted).await?;
            }
        }
        let mut windows = self.windows();
        // A roll-up is only a hint: what it says of places that matter is read from the objects themselves.
        for _ in 0..MAX_CONFIRMATIONS {
            let doubtful = self.doubtful(&windows);
            if doubtful.is_empty() {
                break;
            }
            for name in &doubtful {
                self.rolled_up.remove(name);
                self.wal.sealed.remove(name);
            }
            self.fetch_sealed(doubtful).await?;
            windows = self.windows();
        }
        if effort.commits {
            self.read_commits(&mut windows).await?;
        }
        Ok(windows)
    }

    fn evidence(&self) -> Evidence<'_> {
        Evidence {
            catalog: self.catalog,
            segment_size: self.segments.size,
            histories: &self.histories,
            backups: self.backups,
            wal: &self.wal,
        }
    }

    fn windows(&self) -> Windows {
        find_windows(self.evidence())
    }

    /// The history files that can be opened; those that cannot are left out.
    async fn fetch_histories(&mut self) -> Result<()> {
        let stored = self.catalog.timelines.iter();
        let stored =
            stored.filter(|(timeline, objects)| objects.history && **timeline != TimelineId::FIRST);
        let fetches = stored.map(|(timeline, _)| async {
            (*timeline, self.segments.fetch_history(*timeline).await)
        });
        let fetched: Vec<_> = futures_util::stream::iter(fetches)
            .buffered(IN_FLIGHT)
            .collect()
            .await;
        for (timeline, fetched) in fetched {
            match fetched {
                Ok(Some((bytes, history))) => {
                    let lineage = lineage(Some(&bytes));
                    self.histories
                        .insert(timeline, KnownHistory { history, lineage });
                }
                Ok(None) => {}
                Err(error) if error.class() == ErrorClass::Key => self.lacks_key = true,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// What partial segments and tail chunks say of themselves, where no sealed segment takes their place.
    async fn fetch_open_ends(&mut self) -> Result<()> {
        let cluster = self.segments.cluster;
        let mut keys = Vec::new();
        for objects in self.catalog.timelines.values() {
            let is_open = |name: &SegmentName| !objects.segments.contains_key(name);
            for partial in objects.partials.iter().filter(|one| is_open(&one.name)) {
                let (name, tag) = (partial.name, partial.tag);
                keys.push(ObjectKey::Partial { cluster, name, tag });
            }
            for (name, chunks) in objects.tails.iter().filter(|(name, _)| is_open(name)) {
                keys.extend(chunks.iter().map(|chunk| ObjectKey::Tail {
                    cluster,
                    name: *name,
                    from: chunk.from,
                    to: chunk.to,
                    writer: chunk.writer,
                }));
            }
        }
        for (key, described) in self.describe(keys).await {
            let wal = match described {
                Ok(wal) => wal,
                Err(error) => {
                    self.tolerate(&key, error)?;
                    continue;
                }
            };
            match key {
                ObjectKey::Partial { name, tag, .. } => {
                    let partial = repository::catalog::PartialObject { name, tag };
                    self.wal.partials.insert(partial, wal);
                }
                ObjectKey::Tail {
                    name,
                    from,
                    to,
                    writer,
                    ..
                } => {
                    let chunk = repository::catalog::TailChunk { from, to, writer };
                    self.wal.tails.insert((name, chunk), wal);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Segments known from roll-ups alone on which an end depends: the last ones before each, and the two that do not follow each other.
    fn doubtful(&self, windows: &Windows) -> Vec<SegmentName> {
        let mut doubtful = BTreeSet::new();
        let reaches = windows.backups.iter().flat_map(|backup| &backup.reaches);
        for reach in reaches {
            let pieces = self.last_pieces(reach, DOUBTED_BEFORE_END);
            doubtful.extend(pieces.into_iter().map(|piece| piece.name));
        }
        for (segment, before) in find_broken(self.evidence()) {
            doubtful.insert(segment);
            doubtful.extend(before);
        }
        doubtful.retain(|name| self.rolled_up.contains(name));
        doubtful.into_iter().collect()
    }

    /// Sealed segments of which nothing is known but the name.
    fn unread(&self) -> impl Iterator<Item = SegmentName> + '_ {
        let all = self.catalog.timelines.values();
        all.flat_map(|objects| objects.segments.keys())
            .filter(|name| !self.wal.sealed.contains_key(name))
            .copied()
    }

    /// Sealed segments not read yet among the last `depth` before each end in which no transaction is known yet.
    fn before_ends(&self, depth: u64) -> Vec<SegmentName> {
        let windows = self.windows();
        let mut wanted = BTreeSet::new();
        let reaches = windows
            .backups
            .iter()
            .flat_map(|backup| &backup.reaches)
            .filter(|reach| reach.newest_transaction.is_none());
        for reach in reaches {
            let pieces = self.last_pieces(reach, depth);
            wanted.extend(pieces.into_iter().map(|piece| piece.name));
        }
        for node in &windows.timelines {
            let Some(objects) = self.catalog.timelines.get(&node.timeline) else {
                continue;
            };
            if node.newest_transaction.is_none() {
                let depth = usize::try_from(depth).unwrap_or(usize::MAX);
                wanted.extend(objects.segments.keys().rev().take(depth));
            }
        }
        let sealed = |name: &SegmentName| {
            let objects = self.catalog.timelines.get(&name.timeline);
            objects.is_some_and(|objects| objects.segments.contains_key(name))
        };
        wanted.retain(|name| sealed(name) && !self.wal.sealed.contains_key(name));
        wanted.into_iter().collect()
    }

    async fn fetch_sealed(&mut self, names: Vec<SegmentName>) -> Result<()> {
        let cluster = self.segments.cluster;
        let keys = names
            .into_iter()
            .map(|name| ObjectKey::Segment { cluster, name });
        for (key, described) in self.describe(keys.collect()).await {
            let ObjectKey::Segment { name, .. } = key else {
                continue;
            };
            match described {
                Ok(wal) => {
                    self.wal.sealed.insert(name, wal);
                }
                Err(error) if error.class() == ErrorClass::Corrupt => {
                    self.wal.damaged.insert(name, error.to_string());
                }
                Err(error) => self.tolerate(&key, error)?,
            }
        }
        Ok(())
    }

    async fn describe(&self, keys: Vec<ObjectKey>) -> Vec<(ObjectKey, Result<WalDescriptor>)> {
        let repository = &self.segments.repository;
        let fetches = keys.into_iter().map(|key| async {
            let described = repository.fetch_descriptor(&key).await;
            let wal = described.map_err(Error::from).and_then(|described| {
                described.wal.ok_or_else(|| Error::Integrity {
                    object: key.to_string(),
                    reason: "its descriptor says nothing of WAL".into(),
                })
            });
            (key, wal)
        });
        futures_util::stream::iter(fetches)
            .buffer_unordered(IN_FLIGHT)
            .collect()
            .await
    }

    /// What was listed may be gone (a chunk that a sealed segment covers), and what is damaged is only not known.
    fn tolerate(&mut self, key: &ObjectKey, error: Error) -> Result<()> {
        match error.class() {
            ErrorClass::NotFound => Ok(()),
            ErrorClass::Corrupt => {
                self.problems.push(format!("{key}: {error}"));
                Ok(())
            }
            _ => Err(error),
        }
    }

    /// The last segments of a reach, at most `depth`, oldest first.
    fn last_pieces(&self, reach: &Reach, depth: u64) -> Vec<Piece> {
        let size = self.segments.size;
        let mut pieces = Vec::new();
        'legs: for leg in reach.legs.iter().rev() {
            let mut number = leg.last;
            while number >= leg.first {
                if pieces.len() as u64 >= depth {
                    break 'legs;
                }
                let name = SegmentName::new(leg.timeline, number, size);
                let start = size.start(number);
                let objects = self.catalog.timelines.get(&leg.timeline);
                let source = match objects {
                    Some(objects) if !objects.segments.contains_key(&name) => {
                        let tail = objects.tails.get(&name).into_iter().flatten();
                        let partials = objects.partials.iter().filter(|one| one.name == name);
                        PieceSource::Open {
                            tail: tail.copied().collect(),
                            partials: partials.copied().collect(),
                        }
                    }
                    _ => PieceSource::Sealed,
                };
                pieces.push(Piece {
                    name,
                    start,
                    source,
                    cut: Some(reach.end).filter(|end| size.segment_before(*end) == number),
                });
                number = match number.previous() {
                    Some(before) => before,
                    None => break,
                };
            }
        }
        pieces.reverse();
        pieces
    }

    /// Reads the last commit before each end out of the WAL.
    async fn read_commits(&mut self, windows: &mut Windows) -> Result<()> {
        let mut ends: BTreeMap<(Lsn, TimelineId), Reach> = BTreeMap::new();
        for reach in windows.backups.iter().flat_map(|backup| &backup.reaches) {
            // The oldest backup's reach looks back furthest.
            ends.entry((reach.end, reach.timeline))
                .or_insert_with(|| reach.clone());
        }
        let mut lineages: BTreeMap<TimelineId, String> = self
            .histories
            .iter()
            .map(|(timeline, known)| (*timeline, known.lineage.clone()))
            .collect();
        lineages.insert(TimelineId::FIRST, lineage(None));
        let decoder = DecoderConfig {
            segment_size: self.segments.size,
            system_identifier: Some(self.segments.cluster.system_identifier),
            major: None,
        };
        let mut found = BTreeMap::new();
        for (key, reach) in ends.into_iter().rev().take(MAX_COMMITS_READ) {
            let source = StoredWal {
                segments: self.segments,
                catalog: self.catalog,
                lineages: &lineages,
            };
            let pieces = self.last_pieces(&reach, LOOK_BACK[1]);
            match find_last_commit(&source, decoder, &pieces, &self.wal, reach.end).await {
                Ok(Some(commit)) => {
                    found.insert(key, commit);
                }
                Ok(None) => {}
                Err(error) if error.class() == ErrorClass::Key => {
                    self.lacks_key = true;
                    break;
                }
                Err(error)
                    if matches!(error.class(), ErrorClass::Corrupt | ErrorClass::NotFound) =>
                {
                    self.problems.push(error.to_string());
                }
                Err(error) => return Err(error),
            }
        }
        let size = self.segments.size;
        for reach in windows
            .backups
            .iter_mut()
            .flat_map(|backup| backup.reaches.iter_mut())
        {
            let first = reach.legs.first().map(|leg| size.start(leg.first));
            reach.last_commit = found
                .get(&(reach.end, reach.timeline))
                .copied()
                .filter(|commit| Some(commit.lsn) >= first);
        }
        Ok(())
    }
}
