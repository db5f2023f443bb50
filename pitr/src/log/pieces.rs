//! All WAL that is stored on a path, as pieces with the holes between them (pure): for the log a hole is no end.

use std::collections::{BTreeMap, BTreeSet};

use repository::catalog::Catalog;
use wal_format::SegmentNumber;

use crate::plan::{Piece, WalPath, plan_pieces};

/// The pieces in WAL order, and by index what is missing before a piece.
pub fn stored_pieces(catalog: &Catalog, path: &WalPath) -> (Vec<Piece>, BTreeMap<usize, String>) {
    let size = path.segment_size;
    let mut numbers: BTreeSet<SegmentNumber> = BTreeSet::new();
    for timeline in path.timelines() {
        let Some(objects) = catalog.timelines.get(&timeline) else {
            continue;
        };
        let partials = objects.partials.iter().map(|partial| &partial.name);
        let names = objects.segments.keys().chain(objects.tails.keys());
        let own = names
            .chain(partials)
            .filter_map(|name| name.number(size))
            .filter(|number| path.timeline_of_segment(*number) == timeline);
        numbers.extend(own);
    }
    let (mut pieces, mut holes) = (Vec::<Piece>::new(), BTreeMap::new());
    let mut from = numbers.first().copied();
    while let Some(number) = from {
        let found = plan_pieces(catalog, path, size.start(number));
        let reached = found
            .pieces
            .last()
            .map_or(number, |piece| size.segment(piece.start).max(number));
        pieces.extend(found.pieces);
        from = numbers.range(reached.next()..).next().copied();
        if from.is_some() {
            let hole = match found.hole {
                Some((object, reason)) => format!("{object}: {reason}"),
                None => format!("WAL behind segment {reached:?} is missing"),
            };
            holes.insert(pieces.len(), hole);
        }
    }
    (pieces, holes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use repository::key::ClusterId;
    use wal_format::{SegmentSize, TimelineHistory, TimelineId};

    #[test]
    fn a_hole_is_no_end() {
        let listing: Vec<(String, u64)> = [1, 2, 5, 6, 9]
            .iter()
            .map(|number| {
                let name = format!("7/wal/00000001/00000000/0000000100000000{number:08X}.wal");
                (name, 1)
            })
            .collect();
        let catalog = Catalog::from_listing(ClusterId::new(7), listing);
        let path = WalPath {
            history: TimelineHistory::first(),
            lineages: BTreeMap::from([(TimelineId::FIRST, String::new())]),
            segment_size: SegmentSize::DEFAULT,
        };
        let (pieces, holes) = stored_pieces(&catalog, &path);
        let numbers: Vec<u64> = pieces
            .iter()
            .map(|piece| piece.start.as_u64() >> 24)
            .collect();
        assert_eq!(numbers, [1, 2, 5, 6, 9]);
        assert_eq!(holes.keys().copied().collect::<Vec<_>>(), [2, 4]);
        assert!(holes[&2].contains("000000010000000000000003"), "{holes:?}");
        let (none, holes) = stored_pieces(&Catalog::default(), &path);
        assert!(none.is_empty() && holes.is_empty());
    }
}
