//! `archive-get`: the answer to PostgreSQL's request for one file, and the proof behind "absent".
//!
//! Owns the rule of holes: PostgreSQL takes "absent" for the end of WAL and opens the database, so it is said only of what nothing
//! stored descends from. Everything that is not proven is an error. Does not own exit codes (the hook's) or fetching
//! (`segment_source.rs`).

use std::time::Duration;

use repository::catalog::Catalog;
use repository::key::{all_wal_prefix, tail_prefix};
use wal_format::{SegmentName, SegmentSize, TimelineHistory, TimelineId, WalFileName};

use crate::assemble::cut_at;
use crate::scope::{RestoreScope, Ruling};
use crate::segment_source::SegmentSource;
use crate::{Error, Result};

/// Time between the listing that shows a hole and the one that confirms it: stores list what was written a moment ago, but a
/// segment may be on its way.
const SECOND_LOOK: Duration = Duration::from_secs(1);

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The file's bytes.
    Serve(Vec<u8>),
    /// Proven absent: for PostgreSQL the end of WAL, or of a timeline.
    Absent,
}

/// Answers the request for `name`, within `scope` if a restore asks.
///
/// # Errors
/// `Corrupt`: a hole, or an object that is not what it should be. `Config`: a name PostgreSQL never asks for. Everything else that
/// keeps the answer from being proven.
pub async fn answer(
    source: &SegmentSource,
    scope: Option<&RestoreScope>,
    name: &str,
) -> Result<Answer> {
    let unknown = |reason: &str| Error::InvalidRequest {
        what: name.to_owned(),
        reason: reason.to_owned(),
    };
    match name.parse::<WalFileName>() {
        Ok(WalFileName::Segment(segment)) => answer_segment(source, scope, segment).await,
        Ok(WalFileName::History(timeline)) => {
            let history = source.fetch_history(timeline).await?;
            Ok(history.map_or(Answer::Absent, |(content, _)| Answer::Serve(content)))
        }
        Ok(_) => Err(unknown("PostgreSQL never asks for such a file")),
        Err(_) => Err(unknown(
            "not the name of a WAL segment or timeline history file",
        )),
    }
}

async fn answer_segment(
    source: &SegmentSource,
    scope: Option<&RestoreScope>,
    name: SegmentName,
) -> Result<Answer> {
    let ruling = scope.map(|scope| scope.rule(name)).transpose()?;
    let cut = match ruling {
        Some(Ruling::OffPath) => return Ok(Answer::Absent),
        Some(Ruling::Needed { cut }) => cut,
        Some(Ruling::BehindEnd) | None => None,
    };
    let serve = |mut bytes: Vec<u8>| {
        if let Some(offset) = cut {
            cut_at(&mut bytes, offset);
        }
        Answer::Serve(bytes)
    };
    let lineage = match scope.and_then(|scope| scope.lineage(name.timeline)) {
        Some(lineage) => Some(lineage.to_owned()),
        None => expected_lineage(source, name.timeline).await?,
    };
    // Without a history file nothing of the timeline can be trusted; whether anything is there decides below.
    if let Some(lineage) = &lineage
        && let Some(bytes) = source.fetch_sealed(name, lineage).await?
    {
        return Ok(serve(bytes));
    }
    let mut hole = None;
    for look in 0..2 {
        if look > 0 {
            tokio::time::sleep(SECOND_LOOK).await;
        }
        let catalog = list_wal(source).await?;
        let objects = catalog.timelines.get(&name.timeline);
        if objects.is_some_and(|objects| objects.segments.contains_key(&name)) {
            let lineage = source.fetch_lineage(name.timeline).await?;
            if let Some(bytes) = source.fetch_sealed(name, &lineage).await? {
                return Ok(serve(bytes));
            }
            hole = Some(format!("{name} is listed and cannot be fetched"));
            continue;
        }
        let histories = fetch_histories(source, &catalog).await?;
        let descendant = descendant_of(&catalog, &histories, source.size, name);
        let incomplete = match (objects, &lineage) {
            (Some(objects), Some(lineage)) => {
                source.fetch_incomplete(name, objects, lineage).await?
            }
            _ => None,
        };
        if let Some(incomplete) = incomplete {
            let needed = bytes_needed(scope, source.size, name, cut)?;
            let continues = scope.is_none() && descendant.is_some();
            if incomplete.length >= needed && !continues {
                return Ok(serve(incomplete.bytes));
            }
            hole = Some(format!(
                "only {} bytes of {name} are stored",
                incomplete.length
            ));
            continue;
        }
        hole = match ruling {
            Some(Ruling::Needed { .. }) => Some("the plan of this restore needs it".to_owned()),
            Some(_) => None,
            None => descendant,
        };
        if hole.is_none() {
            return Ok(Answer::Absent);
        }
    }
    Err(Error::Missing {
        object: name.to_string(),
        reason: hole.unwrap_or_default(),
    })
}

/// How many of the segment's first bytes the plan needs.
fn bytes_needed(
    scope: Option<&RestoreScope>,
    size: SegmentSize,
    name: SegmentName,
    cut: Option<u32>,
) -> Result<u32> {
    let Some(scope) = scope else { return Ok(0) };
    let end = name
        .start(size)
        .and_then(|start| scope.end_lsn().ok()?.distance_from(start));
    let to_end = end
        .and_then(|bytes| u32::try_from(bytes).ok())
        .unwrap_or(u32::MAX)
        .min(size.bytes());
    Ok(
        if name
            .start(size)
            .is_some_and(|start| scope.end_lsn().is_ok_and(|end| end <= start))
        {
            0
        } else {
            to_end.min(cut.unwrap_or(u32::MAX))
        },
    )
}

async fn expected_lineage(source: &SegmentSource, timeline: TimelineId) -> Result<Option<String>> {
    if timeline == TimelineId::FIRST {
        return Ok(Some(String::new()));
    }
    let history = source.fetch_history(timeline).await?;
    Ok(history.map(|(content, _)| repository::wal::lineage(Some(&content))))
}

async fn list_wal(source: &SegmentSource) -> Result<Catalog> {
    let mut catalog = source
        .repository
        .list_below(source.cluster, &all_wal_prefix(source.cluster))
        .await?;
    let tails = source
        .repository
        .list_below(source.cluster, &tail_prefix(source.cluster))
        .await?;
    for (timeline, objects) in tails.timelines {
        catalog.timelines.entry(timeline).or_default().tails = objects.tails;
    }
    Ok(catalog)
}

async fn fetch_histories(
    source: &SegmentSource,
    catalog: &Catalog,
) -> Result<Vec<TimelineHistory>> {
    let mut histories = Vec::new();
    for (timeline, objects) in &catalog.timelines {
        if objects.history
            && let Some((_, history)) = source.fetch_history(*timeline).await?
        {
            histories.push(history);
        }
    }
    Ok(histories)
}

/// What is stored that descends from a segment, in words: its absence then is a hole.
fn descendant_of(
    catalog: &Catalog,
    histories: &[TimelineHistory],
    size: SegmentSize,
    name: SegmentName,
) -> Option<String> {
    let start = name.start(size)?;
    if let Some(objects) = catalog.timelines.get(&name.timeline) {
        let segments = objects.segments.keys().chain(objects.tails.keys());
        let later = segments
            .chain(objects.partials.iter().map(|partial| &partial.name))
            .find(|later| **later > name);
        if let Some(later) = later {
            return Some(format!("{later}, which follows it, is stored"));
        }
    }
    for history in histories {
        let own = history.timeline();
        let begins_here = own == name.timeline
            && history.parent().is_some()
            && history
                .begin(own)
                .is_some_and(|begin| size.segment(begin) == size.segment(start));
        if begins_here {
            return Some(format!(
                "timeline {own} begins in it, and its history file is stored"
            ));
        }
        let leaves = history
            .switch_point(name.timeline)
            .filter(|switch_point| *switch_point > start);
        if let Some(switch_point) = leaves {
            return Some(format!(
                "timeline {own}, which leaves timeline {} at {switch_point}, is stored",
                name.timeline
            ));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descends(paths: &[&str], histories: &[(u32, &str)], name: &str) -> Option<String> {
        let paths = paths.iter().map(|path| (format!("7412/{path}"), 1));
        let catalog = Catalog::from_listing("7412".parse().unwrap(), paths);
        let parse = |(n, text): &(u32, &str)| {
            TimelineHistory::parse(TimelineId::new(*n).unwrap(), text.as_bytes()).unwrap()
        };
        let histories: Vec<TimelineHistory> = histories.iter().map(parse).collect();
        descendant_of(
            &catalog,
            &histories,
            SegmentSize::DEFAULT,
            name.parse().unwrap(),
        )
    }

    const SEGMENT_3: &str = "wal/00000001/00000000/000000010000000000000003.wal";
    const TAIL_4: &str = "tail/00000001/000000010000000000000004.00000000-00000100.0A1B2C3D";
    const HISTORY_2: (u32, &str) = (2, "1\t0/3000500\tx\n");

    #[test]
    fn the_end_of_a_timeline_is_no_hole() {
        assert_eq!(
            descends(&[SEGMENT_3], &[], "000000010000000000000004"),
            None
        );
        assert_eq!(
            descends(&[SEGMENT_3], &[HISTORY_2], "000000010000000000000004"),
            None,
            "behind the switch"
        );
        assert_eq!(
            descends(&[], &[HISTORY_2], "000000020000000000000004"),
            None,
            "behind the first segment of the child"
        );
    }

    #[test]
    fn a_missing_segment_that_others_descend_from_is_a_hole() {
        let hole = |paths: &[&str], histories: &[(u32, &str)], name: &str| {
            descends(paths, histories, name).unwrap()
        };
        assert!(
            hole(&[SEGMENT_3], &[], "000000010000000000000002")
                .contains("000000010000000000000003")
        );
        assert!(
            hole(&[TAIL_4], &[], "000000010000000000000003").contains("000000010000000000000004")
        );
        assert!(
            hole(&[], &[HISTORY_2], "000000010000000000000003")
                .contains("leaves timeline 1 at 0/3000500")
        );
        assert!(hole(&[], &[HISTORY_2], "000000010000000000000002").contains("timeline 2"));
        assert!(hole(&[], &[HISTORY_2], "000000020000000000000003").contains("begins in it"));
    }
}
