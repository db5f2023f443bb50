//! What the repositories hold when a session begins: together, and each of them measured against that.
//!
//! Owns how long a repository may take to answer before the others go on without it. What follows from the listings is pure. Does not own what
//! happens to one that lacks something (`lanes.rs`, `fill.rs`).

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use repository::catalog::Catalog;
use repository::cluster::ClusterDocument;
use wal_format::{Lsn, SegmentName, SegmentSize, TimelineId};

use crate::upload::{Uploader, error_text, require_known};
use crate::{Error, Result};

/// How long the others are waited for once one repository has answered.
const GRACE: Duration = Duration::from_secs(5);

/// The listings of the repositories that answered.
pub(super) struct Survey {
    /// In the configuration's order; `None`: it did not answer, or may not be written to.
    pub(super) catalogs: Vec<Option<Catalog>>,
    /// What they hold together: each is filled from the others, so this is what there is.
    pub(super) union: Catalog,
}

/// Lists all repositories; those that do not answer in time are gone on without.
///
/// # Errors
/// As the store's, if none answers.
pub(super) async fn survey(uploader: &Uploader, cluster: &ClusterDocument) -> Result<Survey> {
    uploader.require_enough()?;
    let repositories = uploader.repositories();
    let mut asked: FuturesUnordered<_> = repositories
        .iter()
        .enumerate()
        .filter(|(number, _)| !uploader.is_refused(*number))
        .map(|(number, repository)| async move {
            let listed = async {
                require_known(repository, cluster).await?;
                Ok::<_, Error>(repository.list(cluster.id()).await?)
            };
            (number, listed.await)
        })
        .collect();
    let mut catalogs: Vec<Option<Catalog>> = repositories.iter().map(|_| None).collect();
    let (mut until, mut failed) = (None, None);
    loop {
        let next = match until {
            None => asked.next().await,
            Some(until) => match tokio::time::timeout_at(until, asked.next()).await {
                Ok(next) => next,
                Err(_) => break,
            },
        };
        match next {
            None => break,
            Some((number, Ok(catalog))) => {
                catalogs[number] = Some(catalog);
                until.get_or_insert_with(|| tokio::time::Instant::now() + GRACE);
            }
            Some((number, Err(error))) => {
                if repositories.len() > 1 {
                    let (name, error) = (repositories[number].name(), error_text(&error));
                    tracing::warn!(
                        repository = name,
                        error,
                        "this repository cannot be asked; going on without it"
                    );
                }
                failed = Some(error);
            }
        }
    }
    let answered: Vec<&Catalog> = catalogs.iter().flatten().collect();
    match (answered.as_slice(), failed) {
        ([], Some(error)) => Err(error),
        ([], None) => Err(Error::Timeout {
            during: "list the repositories".into(),
            after: GRACE,
        }),
        (answered, _) => {
            let union = union(answered);
            Ok(Survey { catalogs, union })
        }
    }
}

impl Survey {
    /// Which repositories have everything that the others have, as far as a stream that begins at `start` of `timeline` does not bring it
    /// again.
    pub(super) fn level(&self, timeline: TimelineId, start: Lsn, size: SegmentSize) -> Vec<bool> {
        let catalogs = self.catalogs.iter();
        let level = catalogs.map(|catalog| {
            let catalog = catalog.as_ref();
            catalog.is_some_and(|catalog| !lacks(catalog, &self.union, timeline, start, size))
        });
        level.collect()
    }
}

/// What several catalogues hold together.
fn union(catalogs: &[&Catalog]) -> Catalog {
    let mut union = Catalog::default();
    for catalog in catalogs {
        for (timeline, objects) in &catalog.timelines {
            let known = union.timelines.entry(*timeline).or_default();
            known.history |= objects.history;
            known.segments.extend(&objects.segments);
            known.partials.extend(&objects.partials);
            for (name, chunks) in &objects.tails {
                known.tails.entry(*name).or_default().extend(chunks);
            }
        }
        union.gaps.extend(&catalog.gaps);
        for (label, backup) in &catalog.backups {
            let known = union.backups.entry(label.clone()).or_default();
            known.complete |= backup.complete;
        }
    }
    union
}

/// Whether WAL that `all` has is missing in `one`, apart from what a stream from `start` of `timeline` on brings.
fn lacks(
    one: &Catalog,
    all: &Catalog,
    timeline: TimelineId,
    start: Lsn,
    size: SegmentSize,
) -> bool {
    let comes = |name: &SegmentName| {
        name.timeline == timeline && name.start(size).is_some_and(|lsn| lsn >= start)
    };
    let nothing = repository::catalog::TimelineObjects::default();
    all.timelines.iter().any(|(number, theirs)| {
        let ours = one.timelines.get(number).unwrap_or(&nothing);
        let covered = |name: &SegmentName| {
            ours.segments.contains_key(name) || ours.partials.iter().any(|one| one.name == *name)
        };
        let mut segments = theirs.segments.keys();
        let mut partials = theirs.partials.iter();
        let mut tails = theirs.tails.iter();
        (theirs.history && !ours.history)
            || segments.any(|name| !comes(name) && !ours.segments.contains_key(name))
            || partials.any(|partial| !ours.partials.contains(partial))
            || tails.any(|(name, chunks)| {
                let known = ours.tails.get(name);
                !comes(name)
                    && !covered(name)
                    && chunks
                        .iter()
                        .any(|chunk| known.is_none_or(|known| !known.contains(chunk)))
            })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: fn(u32) -> String =
        |n| format!("7/wal/00000001/00000000/0000000100000000{n:08X}.wal");

    fn catalog(paths: &[String]) -> Catalog {
        let listing = paths.iter().map(|path| (path, 1));
        let catalog = Catalog::from_listing("7".parse().unwrap(), listing);
        assert_eq!(catalog.unknown, 0, "{paths:?}");
        catalog
    }

    /// For a stream that begins at segment 4 of timeline 1.
    fn level(repositories: &[&[String]]) -> Vec<bool> {
        let catalogs: Vec<Catalog> = repositories.iter().map(|paths| catalog(paths)).collect();
        let union = union(&catalogs.iter().collect::<Vec<_>>());
        let catalogs = catalogs.into_iter().map(Some).collect();
        let start = Lsn::new(4 << 24);
        let survey = Survey { catalogs, union };
        survey.level(TimelineId::FIRST, start, SegmentSize::DEFAULT)
    }

    #[test]
    fn whoever_lacks_what_does_not_come_again_is_behind() {
        let segments = |range: std::ops::Range<u32>| range.map(SEGMENT).collect::<Vec<_>>();
        let tail = |n: u32, to: u32| {
            format!("7/tail/00000001/0000000100000000{n:08X}.00000000-{to:08X}.0A1B2C3D")
        };
        assert_eq!(level(&[&[], &[]]), [true, true], "both are new");
        assert_eq!(level(&[&segments(1..4), &segments(1..4)]), [true, true]);
        assert_eq!(level(&[&segments(1..4), &segments(1..3)]), [true, false]);
        assert_eq!(level(&[&segments(1..4), &[]]), [true, false], "a new one");
        assert_eq!(
            level(&[&segments(1..7), &segments(1..4)]),
            [true, true],
            "from 4 on it comes again"
        );
        let hole: Vec<String> = [1, 3].map(SEGMENT).to_vec();
        assert_eq!(level(&[&segments(1..4), &hole]), [true, false]);
        assert_eq!(level(&[&segments(1..3), &segments(2..4)]), [false, false]);
        let with = |mut paths: Vec<String>, more: String| {
            paths.push(more);
            paths
        };
        let open = with(segments(1..4), tail(4, 0x200));
        assert_eq!(level(&[&open, &segments(1..4)]), [true, true]);
        let (old, sealed) = (with(segments(1..3), tail(3, 0x200)), segments(1..4));
        assert_eq!(level(&[&old, &segments(1..3)]), [true, false]);
        assert_eq!(level(&[&old, &sealed]), [false, true], "sealed covers it");
        let history = "7/wal/00000002.history".to_owned();
        assert_eq!(level(&[&[history], &[]]), [true, false]);
        let partial = "7/wal/00000001/00000000/000000010000000000000004.0000AAAA.partial";
        assert_eq!(level(&[&[partial.to_owned()], &[]]), [true, false]);
    }
}
