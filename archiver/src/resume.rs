//! Where streaming goes on: a decision from what the repository holds and what the server says.
//!
//! Pure. Streaming always starts at the first byte of a segment, so that every segment is assembled and validated whole.

use repository::catalog::GapRange;
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
