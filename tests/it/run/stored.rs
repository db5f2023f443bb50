//! What the repository of a [`Site`] holds of a timeline, compared byte for byte with the server's own `pg_wal`. Does not own the
//! promises: those are the tests beside it.

use crate::site::{Site, wait};
use repository::catalog::{Catalog, GapRange, TailChunk};
use repository::descriptor::WalDescriptor;
use repository::key::ObjectKey;
use repository::wal::ChainLink;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use wal_format::{Lsn, SegmentName, TimelineId};

/// What of a timeline is stored and was found equal to the server's.
#[derive(Debug)]
pub(crate) struct Compared {
    pub(crate) from: Lsn,
    /// Behind the last byte before which nothing is missing.
    pub(crate) to: Lsn,
    pub(crate) segments: usize,
    pub(crate) chunks: usize,
}

impl Site {
    fn segment_key(&self, name: SegmentName) -> ObjectKey {
        let cluster = self.cluster();
        ObjectKey::Segment { cluster, name }
    }

    fn tail_key(&self, name: SegmentName, chunk: &TailChunk) -> ObjectKey {
        ObjectKey::Tail {
            cluster: self.cluster(),
            name,
            from: chunk.from,
            to: chunk.to,
            writer: chunk.writer,
        }
    }

    fn plain(&self, key: &ObjectKey) -> Vec<u8> {
        let limit = self.size.bytes() as usize;
        let fetched = wait(self.repository.fetch(key, &self.open, limit));
        fetched.unwrap_or_else(|error| panic!("{key}: {error}")).1
    }

    fn descriptor(&self, key: &ObjectKey) -> WalDescriptor {
        let fetched = wait(self.repository.fetch_descriptor(key));
        let descriptor = fetched.unwrap_or_else(|error| panic!("{key}: {error}"));
        descriptor.wal.expect("WAL describes itself")
    }

    /// The byte behind the last one of a timeline before which nothing is missing, by the names in a listing alone.
    pub(crate) fn covered_to(&self, catalog: &Catalog, timeline: TimelineId) -> Option<Lsn> {
        let objects = catalog.timelines.get(&timeline)?;
        let first = objects.segments.keys().chain(objects.tails.keys()).min()?;
        let mut number = first.number(self.size)?;
        loop {
            let name = SegmentName::new(timeline, number, self.size);
            if !objects.segments.contains_key(&name) {
                let chunks = objects.tails.get(&name).into_iter().flatten();
                // In order of their start.
                let reach = chunks.fold(0, |reach, chunk| {
                    if chunk.from <= reach {
                        reach.max(chunk.to)
                    } else {
                        reach
                    }
                });
                return Some(self.size.start(number).saturating_add(u64::from(reach)));
            }
            number = number.next();
        }
    }

    /// Compares everything that is stored of a timeline with the server's files: each segment and each chunk has the
    /// server's bytes, nothing is missing in between, the records chain, nothing is called invalid.
    #[track_caller]
    pub(crate) fn compare(&self, timeline: TimelineId, pg_wal: &Path) -> Compared {
        self.compare_with_hole(timeline, pg_wal, None)
    }

    /// As [`Self::compare`], where this is known to be missing.
    #[track_caller]
    pub(crate) fn compare_with_hole(
        &self,
        timeline: TimelineId,
        pg_wal: &Path,
        hole: Option<GapRange>,
    ) -> Compared {
        let catalog = self.catalog_with_covered();
        let objects = catalog
            .timelines
            .get(&timeline)
            .expect("the timeline is stored");
        let mut files: BTreeMap<SegmentName, Vec<u8>> = BTreeMap::new();
        let mut file = |name: SegmentName| {
            let read = || fs::read(pg_wal.join(name.to_string()));
            let bytes = files
                .entry(name)
                .or_insert_with(|| read().unwrap_or_else(|error| panic!("{name}: {error}")));
            assert_eq!(bytes.len(), self.size.bytes() as usize, "{name}");
            bytes.clone()
        };
        let mut link = ChainLink::default();
        for name in objects.segments.keys() {
            let key = self.segment_key(*name);
            assert!(self.plain(&key) == file(*name), "{key} is not the server's");
            let descriptor = self.descriptor(&key);
            assert_eq!(descriptor.invalid_at, None, "{key}");
            assert_eq!(Some(descriptor.start_lsn), name.start(self.size), "{key}");
            if hole.is_some_and(|hole| hole.to == descriptor.start_lsn) {
                link = ChainLink::default();
            }
            link.follow(&descriptor)
                .unwrap_or_else(|broken| panic!("{key}: {broken:?}"));
        }
        let mut chunks = 0;
        for (name, tails) in &objects.tails {
            for chunk in tails {
                let key = self.tail_key(*name, chunk);
                let range = chunk.from as usize..chunk.to as usize;
                let expected = file(*name).get(range).expect("in the segment").to_vec();
                assert!(self.plain(&key) == expected, "{key} is not the server's");
                assert_eq!(self.descriptor(&key).invalid_at, None, "{key}");
                chunks += 1;
            }
        }
        let holes = catalog.holes(timeline, self.size);
        assert_eq!(holes, Vec::from_iter(hole), "what is missing");
        let first = objects.segments.keys().chain(objects.tails.keys()).min();
        let first = first.and_then(|name| name.start(self.size));
        Compared {
            from: first.expect("something is stored"),
            to: self
                .covered_to(&catalog, timeline)
                .expect("something is stored"),
            segments: objects.segments.len(),
            chunks,
        }
    }

    /// The bytes of the only `.partial` of a timeline, and which segment it is of.
    #[track_caller]
    pub(crate) fn partial(&self, timeline: TimelineId) -> (SegmentName, Vec<u8>) {
        let catalog = self.catalog();
        let partials = &catalog.timelines[&timeline].partials;
        assert_eq!(partials.len(), 1, "{partials:?}");
        let partial = partials.first().expect("one");
        let key = ObjectKey::Partial {
            cluster: self.cluster(),
            name: partial.name,
            tag: partial.tag,
        };
        (partial.name, self.plain(&key))
    }

    /// Every object of a repository in a folder: path, bytes, when it was finished.
    pub(crate) fn objects(&self) -> BTreeMap<String, (Vec<u8>, std::time::SystemTime)> {
        let mut objects = BTreeMap::new();
        for path in self.files() {
            // A file may be finished, and so renamed, between the listing and this.
            let Ok(bytes) = fs::read(&path) else { continue };
            let metadata = path.metadata().expect("an object's metadata");
            let name = path.strip_prefix(&self.root).expect("below the root");
            let modified = metadata.modified().expect("a time");
            objects.insert(name.display().to_string(), (bytes, modified));
        }
        objects
    }

    /// Files of a repository in a folder that are being written right now.
    pub(crate) fn unfinished(&self) -> BTreeSet<PathBuf> {
        let temporary = |path: &PathBuf| {
            path.file_name()
                .is_some_and(repository::durable::is_temporary_name)
        };
        self.files().into_iter().filter(temporary).collect()
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        for folder in self.folders() {
            let entries = fs::read_dir(folder).expect("list a folder");
            let paths = entries.map(|entry| entry.expect("an entry").path());
            files.extend(paths.filter(|path| !path.is_dir()));
        }
        files
    }

    /// The folders of a repository in a folder, its root first.
    pub(crate) fn folders(&self) -> Vec<PathBuf> {
        let mut folders = vec![self.root.clone()];
        let mut next = 0;
        while let Some(folder) = folders.get(next) {
            let entries = fs::read_dir(folder).expect("list a folder");
            let paths = entries.map(|entry| entry.expect("an entry").path());
            let below: Vec<PathBuf> = paths.filter(|path| path.is_dir()).collect();
            folders.extend(below);
            next += 1;
        }
        folders
    }
}
