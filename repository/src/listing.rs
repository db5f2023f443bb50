//! What a cluster's folder holds: everything, or its WAL, without the tail chunks that nothing needs.
//!
//! Owns the order of the requests and what they may cost. Most chunks are garbage: a sealed segment took their place, and they stay as
//! long as nothing expires them. So a listing of many of them jumps over the segments that are sealed; requests and memory are bounded by what is
//! alive. Does not own pages (`store/listing.rs`) or what the names mean together (`catalog.rs`).
//!
//! **Order.** What becomes sealed while a listing goes on must not look absent. A listing of chunks shows no segment to have more behind it than is
//! seen if the segments are listed after the chunks: what was sealed before a chunk was written is then listed. Few chunks (one page) are
//! therefore listed first. Many can only be listed with the sealed segments known; then the segments are listed, the chunks, and the
//! segments behind the last one once more. Only segments that were listed are jumped over, and they stay. Where a listing lacks a segment that is
//! stored (a store may be late), its chunks are listed, so it costs requests and never what is alive; what is then missing all the same is asked for by
//! its name by whoever needs it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::{StreamExt, TryStreamExt};
use wal_format::{SegmentName, SegmentSize, TimelineId};

use crate::catalog::Catalog;
use crate::key::{
    BackupObject, ClusterId, ObjectKey, all_wal_prefix, before_segment, behind_segment, log_prefix,
    tail_prefix, timeline_tail_prefix, wal_prefix,
};
use crate::store::{Listed, MAX_CONCURRENT_REQUESTS, MAX_LISTED};
use crate::{Error, ErrorClass, Repository, Result};

/// Entries of a catalogue at most, parts of backups not counted. A segment takes 42 bytes, a chunk 30; a year of 16 MiB segments, one in
/// five minutes, is 105,000 of them.
const MAX_CATALOGUED: usize = 8_000_000;
/// Folders below a cluster's that are listed each for itself: kind, timeline or backup, log.
const CLUSTER_LEVELS: usize = 3;
/// The same below the folder of all WAL: timeline, log.
const WAL_LEVELS: usize = 2;

impl Repository {
    /// Lists everything of a cluster but the tail chunks of segments that are sealed. A large one is listed folder by folder, several at a
    /// time: WAL by timeline and log, backups by label.
    ///
    /// # Errors
    /// `Retry`, `Config` from the store; `TooManyObjects` (class `Retry`): more than memory is meant for.
    pub async fn list(&self, cluster: ClusterId) -> Result<Catalog> {
        let found = self.everything(Found::names(cluster)).await?;
        Ok(found.catalog)
    }

    /// Lists the same objects as the store names them, in the order of their paths.
    ///
    /// # Errors
    /// As [`Repository::list`].
    pub async fn list_objects(&self, cluster: ClusterId) -> Result<Vec<Listed>> {
        let found = self.everything(Found::objects(cluster)).await?;
        Ok(found.objects.unwrap_or_default())
    }

    /// Lists the WAL of all timelines: history files, and what [`Repository::list`] lists of segments, partials and tail chunks.
    ///
    /// # Errors
    /// As [`Repository::list`].
    pub async fn list_wal(&self, cluster: ClusterId) -> Result<Catalog> {
        let found = self.wal(Found::names(cluster), Scope::Wal).await?;
        Ok(found.catalog)
    }

    /// As [`Repository::list_wal`], of one timeline from `first` on, or from somewhat before it.
    ///
    /// # Errors
    /// As [`Repository::list`].
    pub async fn list_wal_from(&self, cluster: ClusterId, first: SegmentName) -> Result<Catalog> {
        let found = self.wal(Found::names(cluster), Scope::From(first)).await?;
        Ok(found.catalog)
    }

    /// Lists a cluster's objects below a prefix of `key.rs`.
    ///
    /// # Errors
    /// `Retry`, `Config` from the store; `TooManyObjects` (class `Retry`).
    pub async fn list_below(&self, cluster: ClusterId, prefix: &str) -> Result<Catalog> {
        let listing = self.store().list(prefix.trim_end_matches('/')).await?;
        Ok(Catalog::from_listing(
            cluster,
            listing.iter().map(|object| (&object.path, object.size)),
        ))
    }

    async fn everything(&self, mut found: Found) -> Result<Found> {
        let folder = found.cluster.to_string();
        match self.store().list_if_few(&folder, None).await? {
            Some(all) => {
                self.take(&mut found, all)?;
                Ok(found.finish())
            }
            None => self.wal(found, Scope::Cluster).await,
        }
    }

    async fn wal(&self, mut found: Found, scope: Scope) -> Result<Found> {
        let (folder, after) = scope.tails(found.cluster);
        let few = (self.store().list_if_few(&folder, after.as_deref())).await?;
        self.all_but_tails(&mut found, scope).await?;
        match few {
            Some(few) => self.take(&mut found, few)?,
            None => {
                self.tails(&mut found, scope).await?;
                self.sealed_meanwhile(&mut found, scope).await?;
            }
        }
        Ok(found.finish())
    }

    async fn all_but_tails(&self, found: &mut Found, scope: Scope) -> Result<()> {
        let (folder, levels) = match scope {
            Scope::Cluster => (found.cluster.to_string(), CLUSTER_LEVELS),
            Scope::Wal => (as_folder(all_wal_prefix(found.cluster)), WAL_LEVELS),
            Scope::From(first) => {
                let timeline = first.timeline;
                let listed = self.wal_of(found.cluster, timeline, Some(Edge::Before(first)));
                return self.take(found, listed.await?);
            }
        };
        let tails = as_folder(tail_prefix(found.cluster));
        let take = |objects| self.take(found, objects);
        self.store()
            .list_wide(&folder, levels, Some(&tails), take)
            .await
    }

    /// The tail chunks of segments that are not among those found.
    async fn tails(&self, found: &mut Found, scope: Scope) -> Result<()> {
        let cluster = found.cluster;
        let size = self.segment_size(cluster).await?;
        let count = AtomicUsize::new(found.count);
        let (listed, folders) = match scope {
            Scope::Cluster | Scope::Wal => {
                let folder = as_folder(tail_prefix(cluster));
                self.store().list_level(&folder).await?
            }
            Scope::From(_) => (Vec::new(), vec![scope.tails(cluster).0]),
        };
        self.take(found, listed)?;
        let walks: Vec<_> = folders
            .into_iter()
            .map(|folder| {
                self.walk_tails(Walk {
                    after: scope.tails(cluster).1,
                    folder,
                    size,
                    found,
                    count: &count,
                })
            })
            .collect();
        let listed: Vec<Vec<Listed>> = futures_util::stream::iter(walks)
            .buffered(MAX_CONCURRENT_REQUESTS)
            .try_collect()
            .await?;
        for objects in listed {
            self.take(found, objects)?;
        }
        Ok(())
    }

    async fn walk_tails(&self, walk: Walk<'_>) -> Result<Vec<Listed>> {
        let mut alive = Vec::new();
        let mut pages = self.store().pages(&walk.folder, walk.after.as_deref())?;
        while let Some(page) = pages.next().await? {
            let last = page.last().and_then(|object| walk.segment_of(object));
            let before = alive.len();
            alive.extend(page.into_iter().filter(|object| !walk.is_covered(object)));
            let more = alive.len() - before;
            let count = walk.count.fetch_add(more, Ordering::Relaxed) + more;
            if count > walk.found.limit {
                return Err(self.store().too_many(&walk.folder, walk.found.limit));
            }
            // A store that does not list in byte order may still have something before the place to jump to.
            let run = last.filter(|_| pages.is_in_order() && !pages.is_over());
            if let Some(sealed) = run.and_then(|first| walk.end_of_run(first)) {
                let prefix = format!("{}/", walk.folder);
                let after = behind_segment(&prefix, sealed);
                pages = self.store().pages(&walk.folder, Some(&after))?;
            }
        }
        Ok(alive)
    }

    /// Segments that were sealed after those before them had been listed, of each timeline that now has chunks behind its last one; and the
    /// history of one that has begun.
    async fn sealed_meanwhile(&self, found: &mut Found, scope: Scope) -> Result<()> {
        let cluster = found.cluster;
        let timelines = found.catalog.timelines.iter();
        let open = timelines.filter_map(|(timeline, objects)| {
            let sealed = objects.segments.keys().next_back();
            let is_open = objects.tails.keys().next_back() > sealed;
            is_open.then_some((*timeline, sealed.copied(), objects.history))
        });
        let open: Vec<_> = open.collect();
        let is_new = |(timeline, _, history): &(TimelineId, _, bool)| {
            *timeline != TimelineId::FIRST && !history
        };
        let first = match scope {
            Scope::From(first) => Some(Edge::Before(first)),
            Scope::Cluster | Scope::Wal => None,
        };
        let mut again = Vec::new();
        if first.is_none() && open.iter().any(is_new) {
            let folder = as_folder(all_wal_prefix(cluster));
            again.push(self.store().list_level(&folder).await?.0);
        }
        let lists: Vec<_> = open
            .into_iter()
            .map(|(timeline, sealed, _)| {
                let edge = sealed.map(Edge::Behind).or(first);
                self.wal_of(cluster, timeline, edge)
            })
            .collect();
        let lists: Vec<Vec<Listed>> = futures_util::stream::iter(lists)
            .buffered(MAX_CONCURRENT_REQUESTS)
            .try_collect()
            .await?;
        again.extend(lists);
        for mut objects in again {
            // What is no key was counted the first time.
            objects.retain(|object| object.path.parse::<ObjectKey>().is_ok());
            self.take(found, objects)?;
        }
        Ok(())
    }

    /// A timeline's folder of WAL from an edge on.
    async fn wal_of(
        &self,
        cluster: ClusterId,
        timeline: TimelineId,
        edge: Option<Edge>,
    ) -> Result<Vec<Listed>> {
        let (log, after) = match edge {
            None => (None, None),
            Some(Edge::Before(name)) => {
                let log = log_prefix(cluster, name);
                let after = before_segment(&log, name);
                (Some(as_folder(log)), after)
            }
            Some(Edge::Behind(name)) => {
                let log = log_prefix(cluster, name);
                let after = behind_segment(&log, name);
                (Some(as_folder(log)), Some(after))
            }
        };
        let folder = as_folder(wal_prefix(cluster, timeline));
        let (mut all, folders) = self.store().list_level(&folder).await?;
        // Names of logs have one length.
        let wanted = folders
            .into_iter()
            .filter(|folder| Some(folder) >= log.as_ref());
        let lists: Vec<_> = wanted
            .map(|folder| {
                let after = after.clone().filter(|_| Some(&folder) == log.as_ref());
                async move {
                    match after {
                        Some(after) => self.store().list_after(&folder, &after).await,
                        None => self.store().list(&folder).await,
                    }
                }
            })
            .collect();
        let mut lists = futures_util::stream::iter(lists).buffered(MAX_CONCURRENT_REQUESTS);
        while let Some(objects) = lists.try_next().await? {
            all.extend(objects);
            if all.len() > MAX_LISTED {
                return Err(self.store().too_many(&folder, MAX_LISTED));
            }
        }
        Ok(all)
    }

    /// To know which segment of the next log follows the last one of a log. Without it a listing of chunks takes a request a log.
    async fn segment_size(&self, cluster: ClusterId) -> Result<Option<SegmentSize>> {
        match self.fetch_cluster(cluster).await {
            Ok(document) => Ok(document.and_then(|document| document.segment_size().ok())),
            Err(error) if error.class() == ErrorClass::Retry => Err(error),
            Err(error) => {
                tracing::debug!(%error, "listing tail chunks without knowing the segment size");
                Ok(None)
            }
        }
    }

    fn take(&self, found: &mut Found, objects: Vec<Listed>) -> Result<()> {
        for object in objects {
            found.add(object);
        }
        match found.count <= found.limit {
            true => Ok(()),
            false => Err(self.too_many(found)),
        }
    }

    fn too_many(&self, found: &Found) -> Error {
        self.store()
            .too_many(&found.cluster.to_string(), found.limit)
    }
}

/// What is listed.
#[derive(Clone, Copy)]
enum Scope {
    /// Everything.
    Cluster,
    /// WAL of all timelines.
    Wal,
    /// WAL of the segment's timeline, from it on.
    From(SegmentName),
}

impl Scope {
    /// The folder of the tail chunks, and behind which path they are listed.
    fn tails(self, cluster: ClusterId) -> (String, Option<String>) {
        match self {
            Self::Cluster | Self::Wal => (as_folder(tail_prefix(cluster)), None),
            Self::From(first) => {
                let prefix = timeline_tail_prefix(cluster, first.timeline);
                let after = before_segment(&prefix, first);
                (as_folder(prefix), after)
            }
        }
    }
}

/// Where a listing of segments begins.
#[derive(Clone, Copy)]
enum Edge {
    Before(SegmentName),
    Behind(SegmentName),
}

/// What was listed so far.
struct Found {
    cluster: ClusterId,
    catalog: Catalog,
    /// The objects themselves, if they are wanted.
    objects: Option<Vec<Listed>>,
    /// What takes memory, and how much of it may there be.
    count: usize,
    limit: usize,
}

impl Found {
    fn names(cluster: ClusterId) -> Self {
        Self {
            cluster,
            catalog: Catalog::default(),
            objects: None,
            count: 0,
            limit: MAX_CATALOGUED,
        }
    }

    fn objects(cluster: ClusterId) -> Self {
        Self {
            objects: Some(Vec::new()),
            limit: MAX_LISTED,
            ..Self::names(cluster)
        }
    }

    fn add(&mut self, object: Listed) {
        let mut takes_memory = self.objects.is_some();
        match object.path.parse::<ObjectKey>() {
            Ok(key) if key.cluster() == Some(self.cluster) => {
                if let ObjectKey::Tail { name, .. } = key
                    && self.catalog.is_sealed(name)
                {
                    return;
                }
                takes_memory |= !matches!(
                    key,
                    ObjectKey::Backup {
                        object: BackupObject::Part { .. },
                        ..
                    }
                );
                self.catalog.add(&key, object.size);
            }
            Ok(_) => {}
            Err(_) => self.catalog.unknown += 1,
        }
        self.count += usize::from(takes_memory);
        if let Some(objects) = &mut self.objects {
            objects.push(object);
        }
    }

    /// Without the chunks that turned out to be covered once they had been added, and without what was listed twice.
    fn finish(mut self) -> Self {
        self.catalog.forget_covered();
        if let Some(objects) = &mut self.objects {
            let tails = tail_prefix(self.cluster);
            objects.retain(|object| {
                let is_tail = object.path.starts_with(&tails);
                let segment = Some(object).filter(|_| is_tail).and_then(tail_segment);
                segment.is_none_or(|name| !self.catalog.is_sealed(name))
            });
            objects.sort_unstable_by(|one, other| one.path.cmp(&other.path));
            objects.dedup_by(|one, other| one.path == other.path);
        }
        self
    }
}

/// A way through a folder of tail chunks.
struct Walk<'a> {
    folder: String,
    after: Option<String>,
    size: Option<SegmentSize>,
    found: &'a Found,
    /// Of all ways.
    count: &'a AtomicUsize,
}

impl Walk<'_> {
    fn segment_of(&self, object: &Listed) -> Option<SegmentName> {
        // Only in the folder of its own timeline do names stand in the order of segments.
        let name = tail_segment(object)?;
        let prefix = timeline_tail_prefix(self.found.cluster, name.timeline);
        (as_folder(prefix) == self.folder).then_some(name)
    }

    fn is_covered(&self, object: &Listed) -> bool {
        tail_segment(object).is_some_and(|name| self.found.catalog.is_sealed(name))
    }

    fn end_of_run(&self, first: SegmentName) -> Option<SegmentName> {
        let objects = self.found.catalog.timelines.get(&first.timeline)?;
        end_of_run(&objects.segments, first, self.size)
    }
}

/// The last of the sealed segments that follow `first` without one between them that is not; `None` if it is not sealed itself.
fn end_of_run(
    sealed: &BTreeMap<SegmentName, u64>,
    first: SegmentName,
    size: Option<SegmentSize>,
) -> Option<SegmentName> {
    let (mut expected, mut end) = (Some(first), None);
    for (name, _) in sealed.range(first..) {
        if expected != Some(*name) {
            break;
        }
        end = expected;
        expected = next_name(*name, size);
    }
    end
}

/// The name behind another one. Without the size that is one which there may not be: then a run ends with a log, and nothing is passed over.
fn next_name(name: SegmentName, size: Option<SegmentSize>) -> Option<SegmentName> {
    if let Some(size) = size
        && let Some(number) = name.number(size)
    {
        return Some(SegmentName::new(name.timeline, number.next(), size));
    }
    let segment = name.segment.checked_add(1)?;
    Some(SegmentName { segment, ..name })
}

fn tail_segment(object: &Listed) -> Option<SegmentName> {
    match object.path.parse() {
        Ok(ObjectKey::Tail { name, .. }) => Some(name),
        _ => None,
    }
}

/// A prefix as the store takes a folder.
fn as_folder(mut prefix: String) -> String {
    prefix.truncate(prefix.trim_end_matches('/').len());
    prefix
}

#[cfg(test)]
#[path = "listing/tests.rs"]
mod tests;
