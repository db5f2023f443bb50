//! Where streaming goes on: a decision from what the repository holds and what the server says.
//!
//! Pure. Streaming always starts at the first byte of a segment, so that every segment is assembled and validated whole.

use repository::catalog::{Catalog, GapRange};
use wal_format::{Lsn, SegmentSize, TimelineHistory, TimelineId};

/// What the server says of itself.
#[derive(Clone, Debug)]
pub struct ServerPosition {
    /// Its current timeline and the way there.
    pub history: TimelineHistory,
    /// How far its WAL is flushed.
    pub flush_lsn: Lsn,
    /// Oldest WAL that our slot keeps, if it keeps any.
    pub restart_lsn: Option<Lsn>,
    /// Whether it is a standby: it may lag behind what another server already sent us.
    pub is_standby: bool,
}

/// Where the WAL in the repository ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RepositoryEnd {
    /// The latest timeline of which anything is stored.
    pub timeline: TimelineId,
    /// First byte behind what is stored of it.
    pub end: Lsn,
}

/// Where to ask for WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResumePoint {
    /// On which timeline.
    pub timeline: TimelineId,
    /// The first byte of a segment.
    pub start: Lsn,
}

/// Why streaming cannot go on from this server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResumeConflict {
    /// The server has lost WAL that the repository holds.
    #[error(
        "the server's WAL ends at {server} on timeline {timeline}, but the repository holds WAL up to {repository}: the server was rolled back"
    )]
    RolledBack {
        /// On which timeline.
        timeline: TimelineId,
        /// Where the server ends.
        server: Lsn,
        /// Where the repository ends.
        repository: Lsn,
    },
    /// A standby that has not received yet what the repository holds.
    #[error(
        "the standby has WAL up to {server} on timeline {timeline}, the repository up to {repository}: waiting for it to catch up"
    )]
    StandbyBehind {
        /// On which timeline.
        timeline: TimelineId,
        /// Where the server ends.
        server: Lsn,
        /// Where the repository ends.
        repository: Lsn,
    },
    /// The repository holds a timeline that this server never was on.
    #[error(
        "the repository holds WAL of timeline {repository}, which is not in the history of this server on timeline {server}: another server wrote it"
    )]
    ForeignTimeline {
        /// The server's timeline.
        server: TimelineId,
        /// The repository's latest.
        repository: TimelineId,
    },
}

/// Where the repository's WAL of the server's own path ends: before the first hole that the slot can still fill, on whichever timeline of the path,
/// else behind everything. A hole on record is none: the server has said that it does not have it.
#[must_use]
pub fn repository_end(
    size: SegmentSize,
    server: &ServerPosition,
    catalog: &Catalog,
) -> Option<RepositoryEnd> {
    let history = &server.history;
    let ends = catalog.timelines.keys().rev();
    let (timeline, end) = ends
        .filter(|timeline| history.contains(**timeline))
        .filter_map(|timeline| Some((*timeline, catalog.wal_end(*timeline, size)?)))
        .next()?;
    let path = history.entries().iter().map(|entry| entry.timeline);
    let path = path.chain([history.timeline()]);
    let legs: Vec<Leg> = path
        .filter(|one| *one <= timeline)
        .map(|one| Leg::new(size, history, one, one == timeline))
        .collect();
    let kept = server.restart_lsn.map(|lsn| size.start(size.segment(lsn)));
    let hole = kept.and_then(|kept| first_hole(size, catalog, &legs, kept));
    Some(RepositoryEnd {
        timeline: hole.map_or(timeline, |hole| hole.timeline),
        end: hole.map_or(end, |hole| hole.from),
    })
}

/// The segments that one timeline contributes to a path, as a stretch of WAL. The one in which it was left is its child's, which repeats its bytes.
struct Leg {
    timeline: TimelineId,
    from: Lsn,
    to: Lsn,
}

impl Leg {
    fn new(
        size: SegmentSize,
        history: &TimelineHistory,
        timeline: TimelineId,
        is_last: bool,
    ) -> Self {
        let segment_start = |lsn: Lsn| size.start(size.segment(lsn));
        let switch_point = history.switch_point(timeline).filter(|_| !is_last);
        Self {
            timeline,
            from: history.begin(timeline).map_or(Lsn::INVALID, segment_start),
            to: switch_point.map_or(Lsn::new(u64::MAX), segment_start),
        }
    }

    /// What of it is stored, in order; stretches may overlap.
    fn stored(&self, size: SegmentSize, catalog: &Catalog) -> Vec<(Lsn, Lsn)> {
        let Some(objects) = catalog.timelines.get(&self.timeline) else {
            return Vec::new();
        };
        let segments = objects.segments.keys();
        let segments =
            segments.filter_map(|name| Some((name.start(size)?, size.end(name.number(size)?))));
        let tails = objects.tails.iter().flat_map(|(name, chunks)| {
            let at = move |offset: u32| name.start(size)?.checked_add(offset.into());
            chunks
                .iter()
                .filter_map(move |chunk| Some((at(chunk.from)?, at(chunk.to)?)))
        });
        let mut stored: Vec<(Lsn, Lsn)> = segments
            .chain(tails)
            .filter(|(from, _)| (self.from..self.to).contains(from))
            .collect();
        stored.sort_unstable();
        stored
    }
}

/// The first hole of the path that begins behind `kept`, or the rest of one behind that; what was never stored before the oldest is none.
fn first_hole(size: SegmentSize, catalog: &Catalog, legs: &[Leg], kept: Lsn) -> Option<GapRange> {
    let stored = legs.iter().flat_map(|leg| leg.stored(size, catalog));
    let mut covered: Option<Lsn> = None;
    for (from, to) in stored {
        let missing = covered.map(|covered| (covered.max(kept), from));
        let open = missing
            .filter(|(from, to)| from < to)
            .and_then(|(from, to)| {
                // A hole may go over the end of a timeline, and gaps are recorded for each.
                let parts = legs.iter().map(|leg| GapRange {
                    timeline: leg.timeline,
                    from: from.max(leg.from),
                    to: to.min(leg.to),
                });
                let parts = parts.filter(|part| part.from < part.to);
                parts.flat_map(|part| catalog.unrecorded_in(part)).next()
            });
        if open.is_some() {
            return open;
        }
        covered = covered.max(Some(to));
    }
    None
}

/// Decides where to go on.
///
/// # Errors
/// [`ResumeConflict`]: only a human, or for a standby time, can settle it.
pub fn plan_resume(
    size: SegmentSize,
    server: &ServerPosition,
    stored: Option<RepositoryEnd>,
) -> Result<ResumePoint, ResumeConflict> {
    let segment_start = |lsn: Lsn| size.start(size.segment(lsn));
    let current = server.history.timeline();
    let Some(stored) = stored else {
        let from = server.restart_lsn.unwrap_or(server.flush_lsn);
        return Ok(ResumePoint {
            timeline: server.history.timeline_at(from),
            start: segment_start(from),
        });
    };
    if !server.history.contains(stored.timeline) {
        return Err(ResumeConflict::ForeignTimeline {
            server: current,
            repository: stored.timeline,
        });
    }
    match server.history.switch_point(stored.timeline) {
        // What lies behind the switch point in the repository is of a dead branch; the living one is the child's.
        Some(switch_point) if stored.end >= switch_point => {
            let timeline = server.history.timeline_at(switch_point);
            Ok(ResumePoint {
                timeline,
                start: segment_start(switch_point),
            })
        }
        Some(_) => Ok(ResumePoint {
            timeline: stored.timeline,
            start: segment_start(stored.end),
        }),
        None if server.flush_lsn < stored.end => {
            let (timeline, server_end, repository) = (current, server.flush_lsn, stored.end);
            Err(if server.is_standby {
                ResumeConflict::StandbyBehind {
                    timeline,
                    server: server_end,
                    repository,
                }
            } else {
                ResumeConflict::RolledBack {
                    timeline,
                    server: server_end,
                    repository,
                }
            })
        }
        None => Ok(ResumePoint {
            timeline: current,
            start: segment_start(stored.end),
        }),
    }
}

/// What is missing if a stream that was to go on at `from` on `timeline` goes on at `next` instead: a stretch for each timeline of the
/// server's history on the way, the first from `from`, each other from the start of the segment in which its timeline begins.
#[must_use]
pub fn missing_between(
    size: SegmentSize,
    history: &TimelineHistory,
    timeline: TimelineId,
    from: Lsn,
    next: ResumePoint,
) -> Vec<GapRange> {
    let (mut timeline, mut from) = (timeline, from);
    let mut missing = Vec::new();
    loop {
        let switch_point = match timeline == next.timeline {
            true => None,
            false => history.switch_point(timeline),
        };
        // The child's first segment repeats the parent's bytes.
        let to = switch_point.map_or(next.start, |at| at.min(next.start));
        if from < to {
            missing.push(GapRange { timeline, from, to });
        }
        let child = switch_point.map(|at| (history.timeline_at(at), at));
        let Some((child, at)) = child.filter(|(child, _)| *child > timeline) else {
            return missing;
        };
        (timeline, from) = (child, size.start(size.segment(at)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lsn(text: &str) -> Lsn {
        text.parse().unwrap()
    }

    fn timeline(n: u32) -> TimelineId {
        TimelineId::new(n).unwrap()
    }

    fn server(number: u32, history: &str, flush: &str, restart: Option<&str>) -> ServerPosition {
        let history = match number {
            1 => TimelineHistory::first(),
            _ => TimelineHistory::parse(timeline(number), history.as_bytes()).unwrap(),
        };
        ServerPosition {
            history,
            flush_lsn: lsn(flush),
            restart_lsn: restart.map(lsn),
            is_standby: false,
        }
    }

    fn resume(
        server: &ServerPosition,
        stored: Option<(u32, &str)>,
    ) -> Result<(u32, String), ResumeConflict> {
        let stored = stored.map(|(n, end)| RepositoryEnd {
            timeline: timeline(n),
            end: lsn(end),
        });
        let point = plan_resume(SegmentSize::DEFAULT, server, stored)?;
        Ok((point.timeline.get(), point.start.to_string()))
    }

    const HISTORY: &str = "1\t0/3000500\tno recovery target specified\n";

    /// Where the repository ends for a server on timeline 2, which left timeline 1 in segment 3, or on timeline 1 alone.
    fn end_of(objects: &[&str], server: &ServerPosition) -> (u32, String) {
        let paths = objects.iter().map(|path| (format!("7412/{path}"), 1));
        let catalog = Catalog::from_listing("7412".parse().unwrap(), paths);
        let end = repository_end(SegmentSize::DEFAULT, server, &catalog).unwrap();
        (end.timeline.get(), end.end.to_string())
    }

    fn segments(timeline: u32, numbers: &[u32]) -> Vec<String> {
        let name =
            |n: &u32| format!("wal/{timeline:08X}/00000000/{timeline:08X}00000000{n:08X}.wal");
        numbers.iter().map(name).collect()
    }

    #[test]
    fn goes_back_to_a_hole_that_the_slot_can_fill() {
        let mut objects = segments(1, &[1, 2, 4, 5, 7]);
        let end = |objects: &[String], restart| {
            let objects: Vec<&str> = objects.iter().map(String::as_str).collect();
            end_of(&objects, &server(1, "", "0/9000000", restart)).1
        };
        assert_eq!(end(&objects, None), "0/8000000");
        assert_eq!(end(&objects, Some("0/300004D")), "0/3000000");
        assert_eq!(end(&objects, Some("0/4000000")), "0/6000000");
        assert_eq!(end(&objects, Some("0/7000000")), "0/8000000");
        // What the server did not have is not asked for again; the next hole is.
        objects.push("gaps/00000001-0000000003000000-0000000004000000.json".into());
        assert_eq!(end(&objects, Some("0/3000000")), "0/6000000");
        // Of a longer hole the slot has the end.
        let objects = segments(1, &[1, 5]);
        assert_eq!(end(&objects, Some("0/3000020")), "0/3000000");
    }

    #[test]
    fn a_segment_that_was_begun_and_not_ended_is_a_hole_too() {
        let mut objects = segments(1, &[1, 3]);
        for chunk in ["00000000-00000100", "00000100-00000180"] {
            objects.push(format!(
                "tail/00000001/000000010000000000000002.{chunk}.0A1B2C3D"
            ));
        }
        let objects: Vec<&str> = objects.iter().map(String::as_str).collect();
        let end = |restart| end_of(&objects, &server(1, "", "0/9000000", Some(restart)));
        assert_eq!(end("0/2000000"), (1, "0/2000180".to_owned()));
        assert_eq!(end("0/3000000"), (1, "0/4000000".to_owned()));
    }

    #[test]
    fn a_hole_before_the_server_changed_its_timeline_is_gone_back_to() {
        let end = |first: &[u32], second: &[u32], more: &[&str], restart| {
            let objects = [segments(1, first), segments(2, second)].concat();
            let objects = objects
                .iter()
                .map(String::as_str)
                .chain(more.iter().copied());
            let server = server(2, HISTORY, "0/9000000", restart);
            end_of(&objects.collect::<Vec<_>>(), &server)
        };
        let slot = Some("0/1000028");
        // Its last segment is the child's too, whatever of it was stored as the parent's.
        assert_eq!(end(&[0, 1, 2], &[3, 4], &[], slot), (2, "0/5000000".into()));
        assert_eq!(
            end(&[0, 1, 2, 3, 4], &[3, 4], &[], slot),
            (2, "0/5000000".into())
        );
        let tail = "tail/00000001/000000010000000000000003.00000000-00000500.0A1B2C3D";
        assert_eq!(
            end(&[0, 1, 2], &[4], &[tail], slot),
            (2, "0/3000000".into())
        );
        assert_eq!(end(&[0], &[3, 4], &[], slot), (1, "0/1000000".into()));
        assert_eq!(end(&[0, 1], &[4], &[], slot), (1, "0/2000000".into()));
        // What is not kept, or on record, is not gone back to.
        assert_eq!(end(&[0], &[3, 4], &[], None), (2, "0/5000000".into()));
        assert_eq!(
            end(&[0], &[3, 4], &[], Some("0/3000028")),
            (2, "0/5000000".into())
        );
        let gap = "gaps/00000001-0000000001000000-0000000003000000.json";
        assert_eq!(end(&[0], &[3, 4], &[gap], slot), (2, "0/5000000".into()));
        assert_eq!(end(&[0], &[4], &[gap], slot), (2, "0/3000000".into()));
    }

    #[test]
    fn starts_at_the_slot_or_else_at_the_servers_end() {
        assert_eq!(
            resume(&server(1, "", "0/5000000", Some("0/3000028")), None),
            Ok((1, "0/3000000".into()))
        );
        assert_eq!(
            resume(&server(1, "", "0/5000123", None), None),
            Ok((1, "0/5000000".into()))
        );
        assert_eq!(
            resume(&server(2, HISTORY, "0/5000123", Some("0/2000000")), None),
            Ok((1, "0/2000000".into()))
        );
    }

    #[test]
    fn goes_on_at_the_start_of_the_segment_that_holds_the_repositorys_end() {
        let server = server(1, "", "0/5000000", Some("0/2000000"));
        assert_eq!(
            resume(&server, Some((1, "0/4000100"))),
            Ok((1, "0/4000000".into()))
        );
        assert_eq!(
            resume(&server, Some((1, "0/5000000"))),
            Ok((1, "0/5000000".into()))
        );
    }

    #[test]
    fn follows_a_switch_from_where_the_repository_ends() {
        let server = server(2, HISTORY, "0/5000000", None);
        assert_eq!(
            resume(&server, Some((1, "0/2000100"))),
            Ok((1, "0/2000000".into()))
        );
        assert_eq!(
            resume(&server, Some((1, "0/3000500"))),
            Ok((2, "0/3000000".into()))
        );
        assert_eq!(
            resume(&server, Some((1, "0/3000900"))),
            Ok((2, "0/3000000".into())),
            "a dead branch was stored"
        );
        assert_eq!(
            resume(&server, Some((2, "0/4000000"))),
            Ok((2, "0/4000000".into()))
        );
    }

    #[test]
    fn a_server_behind_the_repository_was_rolled_back_and_a_standby_may_catch_up() {
        let mut server = server(1, "", "0/3000000", None);
        assert!(matches!(
            resume(&server, Some((1, "0/3000001"))),
            Err(ResumeConflict::RolledBack { .. })
        ));
        server.is_standby = true;
        assert!(matches!(
            resume(&server, Some((1, "0/3000001"))),
            Err(ResumeConflict::StandbyBehind { .. })
        ));
    }

    #[test]
    fn what_is_missing_is_named_for_each_timeline_on_the_way() {
        let history = "1\t0/3000500\tfirst\n2\t0/5000500\tsecond\n";
        let history = TimelineHistory::parse(timeline(3), history.as_bytes()).unwrap();
        let missing = |first: u32, from: &str, next: u32, start: &str| {
            let next = ResumePoint {
                timeline: timeline(next),
                start: lsn(start),
            };
            let size = SegmentSize::DEFAULT;
            let missing = missing_between(size, &history, timeline(first), lsn(from), next);
            let text = |gap: GapRange| format!("{}: {} to {}", gap.timeline, gap.from, gap.to);
            missing.into_iter().map(text).collect::<Vec<_>>()
        };
        assert_eq!(
            missing(3, "0/6000077", 3, "0/8000000"),
            ["3: 0/6000077 to 0/8000000"]
        );
        assert_eq!(
            missing(1, "0/1000000", 3, "0/7000000"),
            [
                "1: 0/1000000 to 0/3000500",
                "2: 0/3000000 to 0/5000500",
                "3: 0/5000000 to 0/7000000"
            ]
        );
        // It goes on in the segment in which the timeline switched.
        assert_eq!(
            missing(1, "0/1000000", 2, "0/3000000"),
            ["1: 0/1000000 to 0/3000000"]
        );
        assert_eq!(
            missing(1, "0/1000000", 1, "0/3000000"),
            ["1: 0/1000000 to 0/3000000"]
        );
        assert_eq!(missing(3, "0/7000000", 3, "0/7000000"), [""; 0]);
    }

    #[test]
    fn a_timeline_the_server_never_was_on_is_a_conflict() {
        let old_primary = server(1, "", "0/9000000", None);
        assert!(matches!(
            resume(&old_primary, Some((2, "0/4000000"))),
            Err(ResumeConflict::ForeignTimeline { .. })
        ));
    }
}
