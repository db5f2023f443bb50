//! What the repository holds beside a server's own path through WAL: branches that were left at a promotion, and timelines that the
//! server never was on.
//!
//! Pure. PostgreSQL's rule decides which branch lives: a promotion takes a timeline number above all it knows of, so of two branches the one
//! with the higher number was made with the other in view, or the other was never archived. Where streaming goes on is `resume.rs`'s.

use repository::catalog::Catalog;
use wal_format::{Lsn, SegmentSize, TimelineHistory, TimelineId};

use crate::resume::ResumeConflict;

/// Stored WAL that no longer leads to what the server is: half-open, on one timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeftBehind {
    /// On which timeline.
    pub timeline: TimelineId,
    /// Where the server's path left the timeline; for one that it never was on, where what is stored of it begins.
    pub from: Lsn,
    /// Behind the last byte stored.
    pub to: Lsn,
    /// The server's path leads over this timeline.
    pub is_ancestor: bool,
}

/// Everything stored that lies beside the path of `history`, oldest timeline first.
#[must_use]
pub fn left_behind(
    history: &TimelineHistory,
    catalog: &Catalog,
    size: SegmentSize,
) -> Vec<LeftBehind> {
    let branch = |timeline: TimelineId| {
        let to = catalog.wal_end(timeline, size)?;
        let is_ancestor = history.contains(timeline);
        let from = match is_ancestor {
            true => history.switch_point(timeline)?,
            false => first_byte(catalog, timeline, size)?,
        };
        (from < to).then_some(LeftBehind {
            timeline,
            from,
            to,
            is_ancestor,
        })
    };
    catalog
        .timelines
        .keys()
        .copied()
        .filter_map(branch)
        .collect()
}

/// Whether a server with this history may be received from: nothing is stored of a timeline that is newer than its own and not its own
/// past.
///
/// # Errors
/// [`ResumeConflict::ForeignTimeline`]: the repository knows a later promotion than the server does.
pub fn check_newest(
    history: &TimelineHistory,
    catalog: &Catalog,
    size: SegmentSize,
) -> Result<(), ResumeConflict> {
    let server = history.timeline();
    let mut newer = catalog.timelines.keys().rev().copied();
    let newer =
        newer.find(|timeline| *timeline > server && catalog.wal_end(*timeline, size).is_some());
    match newer {
        Some(repository) => Err(ResumeConflict::ForeignTimeline { server, repository }),
        None => Ok(()),
    }
}

fn first_byte(catalog: &Catalog, timeline: TimelineId, size: SegmentSize) -> Option<Lsn> {
    let objects = catalog.timelines.get(&timeline)?;
    let segment = objects.segments.keys().next();
    let tail = objects.tails.keys().next();
    segment.into_iter().chain(tail).min()?.start(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: SegmentSize = SegmentSize::DEFAULT;

    fn timeline(n: u32) -> TimelineId {
        TimelineId::new(n).unwrap()
    }

    fn catalog(segments: &[(u32, u64)]) -> Catalog {
        let path = |(timeline, n): &(u32, u64)| {
            format!("7412/wal/{timeline:08X}/00000000/{timeline:08X}00000000{n:08X}.wal")
        };
        Catalog::from_listing(
            "7412".parse().unwrap(),
            segments.iter().map(|segment| (path(segment), 1)),
        )
    }

    fn third() -> TimelineHistory {
        let text = b"1\t0/3000500\tx\n";
        TimelineHistory::parse(timeline(3), text).unwrap()
    }

    #[test]
    fn what_lies_behind_a_switch_point_was_left_and_so_was_a_sibling() {
        let left = left_behind(
            &third(),
            &catalog(&[(1, 2), (1, 3), (2, 3), (2, 4), (3, 3)]),
            SIZE,
        );
        let branch = |n, from, to, is_ancestor| LeftBehind {
            timeline: timeline(n),
            from: Lsn::new(from),
            to: Lsn::new(to),
            is_ancestor,
        };
        assert_eq!(
            left,
            [
                branch(1, 0x300_0500, 0x400_0000, true),
                branch(2, 0x300_0000, 0x500_0000, false)
            ]
        );
        assert_eq!(left_behind(&third(), &catalog(&[(1, 2), (3, 3)]), SIZE), []);
        let up_to_the_switch = catalog(&[(1, 2)]);
        assert_eq!(left_behind(&third(), &up_to_the_switch, SIZE), []);
    }

    #[test]
    fn a_server_that_missed_a_later_promotion_is_refused_and_one_that_came_later_is_not() {
        let check = |segments: &[(u32, u64)]| check_newest(&third(), &catalog(segments), SIZE);
        assert_eq!(check(&[]), Ok(()));
        assert_eq!(check(&[(1, 9), (2, 9), (3, 4)]), Ok(()));
        assert_eq!(
            check(&[(1, 9), (4, 4)]),
            Err(ResumeConflict::ForeignTimeline {
                server: timeline(3),
                repository: timeline(4)
            })
        );
    }
}
