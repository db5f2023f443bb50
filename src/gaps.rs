//! Holes in a cluster's stored WAL: which are open, for `list` and `status`. Pure: from the catalogue's names alone.

use std::collections::BTreeSet;
use std::fmt;

use repository::catalog::{Catalog, GapRange};
use serde::Serialize;
use wal_format::{Lsn, SegmentName, SegmentSize};

/// WAL that is not stored although later WAL is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Gap {
    /// On which timeline.
    pub(crate) timeline: u32,
    /// First missing byte.
    pub(crate) from: String,
    /// First byte behind it.
    pub(crate) to: String,
    /// The server no longer had it: `walden run` recorded that. Else it may still come.
    pub(crate) recorded: bool,
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.recorded {
            "the server had removed it"
        } else {
            "not stored"
        };
        write!(
            f,
            "WAL from {} to {} on timeline {}: {what}",
            self.from, self.to, self.timeline
        )
    }
}

/// The open gaps, in WAL order. A recorded one that was filled later is closed; one between stored segments counts whether or not
/// it was recorded, once.
pub(crate) fn open_gaps(catalog: &Catalog, size: SegmentSize) -> Vec<Gap> {
    let recorded: Vec<GapRange> = catalog
        .gaps
        .iter()
        .filter(|gap| !is_filled(catalog, size, gap))
        .copied()
        .collect();
    let mut found: BTreeSet<(GapRange, bool)> = recorded.iter().map(|gap| (*gap, true)).collect();
    for timeline in catalog.timelines.keys() {
        for hole in catalog.holes(*timeline, size) {
            let is_known = recorded.iter().any(|gap| {
                gap.timeline == hole.timeline && gap.from <= hole.from && gap.to >= hole.to
            });
            if !is_known {
                found.insert((hole, false));
            }
        }
    }
    found
        .into_iter()
        .map(|(gap, recorded)| Gap {
            timeline: gap.timeline.get(),
            from: gap.from.to_string(),
            to: gap.to.to_string(),
            recorded,
        })
        .collect()
}

fn is_filled(catalog: &Catalog, size: SegmentSize, gap: &GapRange) -> bool {
    let Some(objects) = catalog.timelines.get(&gap.timeline) else {
        return false;
    };
    // Walks at most over what is stored, whatever range the gap's name claims.
    let mut number = size.segment(gap.from);
    while size.start(number) < gap.to.max(Lsn::new(1)) {
        let name = SegmentName::new(gap.timeline, number, size);
        if !objects.segments.contains_key(&name) {
            return false;
        }
        number = number.next();
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gaps(paths: &[&str]) -> Vec<String> {
        let catalog =
            Catalog::from_listing("7412".parse().unwrap(), paths.iter().map(|path| (*path, 1)));
        let found = open_gaps(&catalog, SegmentSize::DEFAULT);
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn gaps_are_counted_once_and_close_when_filled() {
        const ONE: &str = "7412/wal/00000001/00000000/000000010000000000000001.wal";
        const TWO: &str = "7412/wal/00000001/00000000/000000010000000000000002.wal";
        const THREE: &str = "7412/wal/00000001/00000000/000000010000000000000003.wal";
        const GAP: &str = "7412/gaps/00000001-0000000002000000-0000000003000000.json";
        let open = "WAL from 0/2000000 to 0/3000000 on timeline 1: ";
        assert_eq!(gaps(&[ONE, TWO, THREE]), [""; 0]);
        assert_eq!(gaps(&[ONE, THREE]), [format!("{open}not stored")]);
        assert_eq!(
            gaps(&[ONE, THREE, GAP]),
            [format!("{open}the server had removed it")]
        );
        assert_eq!(
            gaps(&[ONE, GAP]),
            [format!("{open}the server had removed it")]
        );
        assert_eq!(gaps(&[ONE, TWO, THREE, GAP]), [""; 0]);
    }
}
