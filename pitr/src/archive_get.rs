//! `archive-get`: the answer to PostgreSQL's request for one file, and the proof behind "absent".
//!
//! Owns the rule of holes: PostgreSQL takes "absent" for the end of WAL and opens the database, so it is said only of what nothing
//! stored descends from. Everything that is not proven is an error. Does not own exit codes (the hook's) or fetching
//! (`segment_source.rs`).

use std::time::{Duration, Instant};

use repository::catalog::{Catalog, TimelineObjects};
use repository::descriptor::WalDescriptor;
use repository::key::ObjectKey;
use repository::several::Absence;
use repository::wal::{describe, lineage};
use wal_format::{
    DecoderConfig, Lsn, SegmentName, SegmentScanner, SegmentSize, TimelineHistory, TimelineId,
    WalFileName,
};

use crate::assemble::{AssembledSegment, cut_at};
use crate::scope::{RestoreScope, Ruling};
use crate::segment_source::SegmentSource;
use crate::{Error, Result};

/// Time between the listing that shows a hole and the one that confirms it: stores list what was written a moment ago, but a
/// segment may be on its way.
const SECOND_LOOK: Duration = Duration::from_secs(1);

/// Longest time between listings while a repository does not answer.
const LATER_LOOK: Duration = Duration::from_secs(10);

/// Why a file on the planned path must be there.
const PLANNED: &str = "the plan of this restore needs it";

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The file's bytes.
    Serve(Vec<u8>),
    /// Proven absent: for PostgreSQL the end of WAL, or of a timeline.
    Absent,
    /// It lies behind what the restore's plan needs, and cannot be served for this reason: for PostgreSQL the same.
    Unneeded(String),
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
    let answer = match name.parse::<WalFileName>() {
        Ok(WalFileName::Segment(segment)) => answer_segment(source, scope, segment).await?,
        Ok(WalFileName::History(timeline)) => answer_history(source, scope, timeline).await?,
        Ok(_) => return Err(unknown("PostgreSQL never asks for such a file")),
        Err(_) => {
            return Err(unknown(
                "not the name of a WAL segment or timeline history file",
            ));
        }
    };
    if answer == Answer::Absent {
        require_cluster(source, scope).await?;
    }
    Ok(answer)
}

/// Nothing is proven absent where nothing is: a file system that is not mounted, another bucket of the same name. Within a restore one
/// repository that is there is enough: what its plan needs is never absent.
async fn require_cluster(source: &SegmentSource, scope: Option<&RestoreScope>) -> Result<()> {
    let missing = |place: &str| Error::Missing {
        object: format!("{place}{}", ObjectKey::Cluster(source.cluster)),
        reason: "without it nothing else is proven absent".into(),
    };
    let repositories = &source.repository;
    if scope.is_some() || !repositories.is_several() {
        let found = repositories.fetch_cluster(source.cluster).await?;
        return found.map(drop).ok_or_else(|| missing(""));
    }
    for member in repositories.members() {
        let found = member.fetch_cluster(source.cluster).await?;
        found.ok_or_else(|| missing(&format!("{}/", member.url())))?;
    }
    Ok(())
}

async fn answer_history(
    source: &SegmentSource,
    scope: Option<&RestoreScope>,
    timeline: TimelineId,
) -> Result<Answer> {
    let planned = scope.and_then(|scope| scope.lineage(timeline));
    let not_planned = || Error::Integrity {
        object: WalFileName::History(timeline).to_string(),
        reason: "it is not the history with which the restore was planned".into(),
    };
    // A restore that promotes asks for files that nobody has: that of timeline 1, and of timelines off the path. With its plan carried
    // out it must not fail over a repository that no longer answers.
    let absence = match (scope, planned.unwrap_or_default()) {
        (Some(_), "") => Absence::Likely,
        _ => Absence::Proven,
    };
    let fits = |content: &[u8]| match planned {
        Some(planned) if lineage(Some(content)) != planned => Err(not_planned()),
        _ => Ok(()),
    };
    let stored = source.find_history(timeline, absence, fits).await?;
    // Timelines off the path are told of too: the server must not begin one whose number is taken.
    match (stored, planned) {
        (Some((content, _)), _) => Ok(Answer::Serve(content)),
        (None, Some(planned)) if !planned.is_empty() => Err(Error::Missing {
            object: WalFileName::History(timeline).to_string(),
            reason: PLANNED.to_owned(),
        }),
        (None, _) => Ok(Answer::Absent),
    }
}

async fn answer_segment(
    source: &SegmentSource,
    scope: Option<&RestoreScope>,
    name: SegmentName,
) -> Result<Answer> {
    if name.start(source.size).is_none() {
        return Err(Error::InvalidRequest {
            what: name.to_string(),
            reason: "no WAL segment of this cluster has this name".into(),
        });
    }
    let ruling = scope.map(|scope| scope.rule(name)).transpose()?;
    let (cut, planned) = match ruling {
        Some(Ruling::OffPath) => return Ok(Answer::Absent),
        Some(Ruling::Needed { cut, bytes }) => (cut, Some(bytes)),
        Some(Ruling::BehindEnd) => {
            let found = find_segment(source, scope, name, None, Some(0)).await;
            // The server reads ahead; what it must not reach may be damaged, or be what the target was chosen to avoid.
            return Ok(found.unwrap_or_else(|error| Answer::Unneeded(error.to_string())));
        }
        None => (None, None),
    };
    find_segment(source, scope, name, cut, planned).await
}

/// A segment, or as much of it as is stored; with its end cut off where the path leaves its timeline, and `planned`: how many of its bytes the plan
/// of a restore needs.
async fn find_segment(
    source: &SegmentSource,
    scope: Option<&RestoreScope>,
    name: SegmentName,
    cut: Option<u32>,
    planned: Option<u32>,
) -> Result<Answer> {
    let serve = |mut bytes: Vec<u8>| {
        if let Some(offset) = cut {
            cut_at(&mut bytes, offset);
        }
        Answer::Serve(bytes)
    };
    let way = Way::find(source, scope, name.timeline).await?;
    // Without a history file nothing of the timeline can be trusted; whether anything is there decides below.
    if let Some(way) = &way
        && let Some(bytes) = fetch_sealed(source, way, name, planned).await?
    {
        return Ok(serve(bytes));
    }
    let begun = Instant::now();
    let mut pause = SECOND_LOOK;
    let mut has_looked = false;
    loop {
        match look(source, scope, name, planned).await? {
            Look::Found(bytes) => return Ok(serve(bytes)),
            Look::Absent => return Ok(Answer::Absent),
            Look::Hole(reason) if has_looked => {
                return Err(Error::Missing {
                    object: name.to_string(),
                    reason,
                });
            }
            Look::Hole(_) => {}
            Look::Unknown(error) if begun.elapsed() >= source.repository.patience() => {
                return Err(error.into());
            }
            // What the others get meanwhile is seen by looking again.
            Look::Unknown(_) => pause = (pause * 2).min(LATER_LOOK),
        }
        has_looked = true;
        tokio::time::sleep(pause).await;
    }
}

/// What a listing says of a segment that is not sealed, or was not a moment ago.
enum Look {
    /// Its bytes.
    Found(Vec<u8>),
    /// Nothing that is stored descends from it.
    Absent,
    /// It must be there, or more of it, for a reason.
    Hole(String),
    /// A repository that may hold it does not answer.
    Unknown(repository::Error),
}

async fn look(
    source: &SegmentSource,
    scope: Option<&RestoreScope>,
    name: SegmentName,
    planned: Option<u32>,
) -> Result<Look> {
    let listed = source.repository.list_wal(source.cluster).await?;
    // What only they hold is not known. What the plan of a restore does not need may be said to be absent all the same.
    let unanswered = listed.unknown(&name.to_string());
    let catalog = listed.catalog;
    let hole = |reason: String, unanswered: Option<repository::Error>| match unanswered {
        Some(error) => Look::Unknown(error),
        None => Look::Hole(reason),
    };
    let objects = catalog.timelines.get(&name.timeline);
    let is_stored = objects.is_some_and(|objects| {
        objects.segments.contains_key(&name)
            || objects.tails.contains_key(&name)
            || objects.partials.iter().any(|partial| partial.name == name)
    });
    let requirement = match planned {
        Some(0) => None,
        Some(bytes) => Some(Requirement {
            bytes,
            reason: PLANNED.to_owned(),
        }),
        None => {
            let histories = fetch_histories(source, &catalog).await?;
            requirement(&catalog, &histories, source.size, name)
        }
    };
    let Some(objects) = objects.filter(|_| is_stored) else {
        return Ok(match (requirement, unanswered) {
            (Some(requirement), unanswered) => hole(requirement.reason, unanswered),
            (None, Some(error)) if planned.is_none() => Look::Unknown(error),
            (None, _) if planned.is_none() => match find_successor(source, name).await? {
                Some(later) => Look::Hole(follows(later)),
                None => Look::Absent,
            },
            (None, _) => Look::Absent,
        });
    };
    let Some(way) = Way::find(source, scope, name.timeline).await? else {
        // Says why its absence is an error.
        source.fetch_lineage(name.timeline).await?;
        return Ok(Look::Hole("its history file was not there".to_owned()));
    };
    if let Some(bytes) = fetch_sealed(source, &way, name, planned).await? {
        return Ok(Look::Found(bytes));
    }
    let unanswered = match (unanswered, planned) {
        // They may hold more of it, and less would be taken for the end of WAL.
        (Some(error), None) => return Ok(Look::Unknown(error)),
        (unanswered, _) => unanswered,
    };
    let needed = requirement.as_ref().map_or(0, |needs| needs.bytes);
    let found = source.fetch_incomplete(name, objects, way.lineage()).await;
    let reason = match found {
        Ok(Some(incomplete)) if incomplete.length >= needed => {
            let may_end_torn = objects.partials.iter().any(|p| p.name == name);
            let needed = match planned {
                Some(bytes) => bytes,
                // The end of a timeline that was left: whatever else its server had written there is not valid.
                None if may_end_torn => needed,
                None => incomplete.length,
            };
            check_incomplete(source, &way, name, &incomplete, needed).await?;
            return Ok(Look::Found(incomplete.bytes));
        }
        Ok(Some(incomplete)) => format!(
            "only {} of its first {needed} bytes are stored, and {}",
            incomplete.length,
            requirement.map_or_else(String::new, |needs| needs.reason)
        ),
        Ok(None) => "it is listed and cannot be fetched".to_owned(),
        // Chunks may have been removed between the listing and now, because something that covers them was stored.
        Err(Error::Missing { object, reason }) => format!("{object} are missing: {reason}"),
        Err(error) => return Err(error),
    };
    Ok(hole(reason, unanswered))
}

/// How a timeline was reached.
enum Way<'a> {
    /// As the plan of a restore has it.
    Planned(&'a RestoreScope, String),
    /// As its stored history has it.
    Stored(TimelineHistory, String),
}

impl<'a> Way<'a> {
    /// `None` if no history file says how.
    async fn find(
        source: &SegmentSource,
        scope: Option<&'a RestoreScope>,
        timeline: TimelineId,
    ) -> Result<Option<Self>> {
        if let Some((scope, lineage)) =
            scope.and_then(|scope| Some((scope, scope.lineage(timeline)?)))
        {
            return Ok(Some(Self::Planned(scope, lineage.to_owned())));
        }
        if timeline == TimelineId::FIRST {
            return Ok(Some(Self::Stored(TimelineHistory::first(), lineage(None))));
        }
        let stored = source.fetch_history(timeline).await?;
        Ok(stored.map(|(content, history)| Self::Stored(history, lineage(Some(&content)))))
    }

    fn lineage(&self) -> &str {
        match self {
            Self::Planned(_, lineage) | Self::Stored(_, lineage) => lineage,
        }
    }

    fn timeline_at(&self, lsn: Lsn) -> Result<TimelineId> {
        match self {
            Self::Planned(scope, _) => Ok(scope.timeline_at(lsn)?.unwrap_or(TimelineId::FIRST)),
            Self::Stored(history, _) => Ok(history.timeline_at(lsn)),
        }
    }
}

/// Fetches a sealed segment, and checks what PostgreSQL would take for the end of WAL: records that are not valid, and records that
/// do not continue those of the segment before. `planned`: how many of its bytes the plan of a restore needs; all without a plan.
async fn fetch_sealed(
    source: &SegmentSource,
    way: &Way<'_>,
    name: SegmentName,
    planned: Option<u32>,
) -> Result<Option<Vec<u8>>> {
    let needed = planned.unwrap_or(source.size.bytes());
    let check = |(wal, bytes): (WalDescriptor, Vec<u8>)| async move {
        check_records(source, way, name, &wal, needed).await?;
        Ok((wal, bytes))
    };
    // That it is absent is not said before all have been listed.
    let fetched = source
        .find_sealed(name, way.lineage(), Absence::Likely, check)
        .await?;
    Ok(fetched.map(|(_, bytes)| bytes))
}

/// Decodes what partials and chunks gave together: each may be valid, and they need not be of one server.
async fn check_incomplete(
    source: &SegmentSource,
    way: &Way<'_>,
    name: SegmentName,
    incomplete: &AssembledSegment,
    needed: u32,
) -> Result<()> {
    let integrity = |reason: String| Error::Integrity {
        object: name.to_string(),
        reason,
    };
    let start = name.start(source.size).unwrap_or(Lsn::INVALID);
    let decoder = DecoderConfig {
        segment_size: source.size,
        system_identifier: Some(source.cluster.system_identifier),
        major: None,
    };
    let mut scanner =
        SegmentScanner::new(decoder, start).map_err(|error| integrity(error.to_string()))?;
    let stored = incomplete.bytes.get(..incomplete.length as usize);
    scanner.push(stored.unwrap_or_default(), |_| {});
    let end = start.saturating_add(u64::from(incomplete.length));
    let wal = describe(&scanner.summary(), end, way.lineage());
    check_records(source, way, name, &wal, needed).await
}

/// Refuses what PostgreSQL would take for the end of WAL in the first `needed` bytes of a segment.
async fn check_records(
    source: &SegmentSource,
    way: &Way<'_>,
    name: SegmentName,
    wal: &WalDescriptor,
    needed: u32,
) -> Result<()> {
    if let Some(at) = wal.invalid_at
        && at
            .distance_from(wal.start_lsn)
            .is_none_or(|offset| offset < u64::from(needed))
    {
        return Err(Error::Integrity {
            object: name.to_string(),
            reason: format!(
                "the record at {at} is not valid, and PostgreSQL would take it for the end of WAL"
            ),
        });
    }
    if needed > 0 {
        source
            .check_link(name, wal, |lsn| way.timeline_at(lsn))
            .await?;
    }
    Ok(())
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

/// Why a segment must be there, and how much of it: less is a hole.
#[derive(Debug, PartialEq, Eq)]
struct Requirement {
    /// How many of its first bytes; 0 if it must be there, however little of it.
    bytes: u32,
    /// What descends from it, in words.
    reason: String,
}

/// What is stored that descends from a segment, and asks most of it.
fn requirement(
    catalog: &Catalog,
    histories: &[TimelineHistory],
    size: SegmentSize,
    name: SegmentName,
) -> Option<Requirement> {
    let start = name.start(size)?;
    let whole = size.bytes();
    let up_to = |lsn: Lsn| {
        let bytes = lsn.distance_from(start).unwrap_or(0);
        u32::try_from(bytes).unwrap_or(whole).min(whole)
    };
    let own = histories
        .iter()
        .find(|history| history.timeline() == name.timeline);
    let begin = own.and_then(|history| history.begin(name.timeline));
    if begin.is_some_and(|begin| size.segment(begin) > size.segment(start)) {
        // The timeline had not begun: there never was such a segment.
        return None;
    }
    let mut found = Vec::new();
    if let Some(own) = own
        && let Some(begin) = begin
        && own.parent().is_some()
        && size.segment(begin) == size.segment(start)
    {
        found.push(Requirement {
            bytes: up_to(begin),
            reason: format!(
                "timeline {} begins in it, and its history file is stored",
                name.timeline
            ),
        });
    }
    for (timeline, objects) in &catalog.timelines {
        if *timeline == name.timeline {
            let later = stored_segments(objects).find(|later| **later > name);
            found.extend(later.map(|later| Requirement {
                bytes: whole,
                reason: follows(*later),
            }));
        }
        let is_explained = histories.iter().any(|known| known.timeline() == *timeline);
        if *timeline > name.timeline && !is_explained {
            let same_or_later =
                |stored: &&SegmentName| (stored.log, stored.segment) >= (name.log, name.segment);
            let later = stored_segments(objects).find(same_or_later);
            found.extend(later.map(|later| Requirement {
                bytes: whole,
                reason: format!(
                    "{later} is stored, and no history file says that timeline {timeline} does not descend from it"
                ),
            }));
        }
    }
    for history in histories {
        let leaves = history
            .switch_point(name.timeline)
            .filter(|switch_point| *switch_point > start);
        found.extend(leaves.map(|switch_point| Requirement {
            bytes: up_to(switch_point),
            reason: format!(
                "timeline {}, which leaves timeline {} at {switch_point}, is stored",
                history.timeline(),
                name.timeline
            ),
        }));
    }
    // The first of those that ask most.
    found
        .into_iter()
        .reduce(|most, next| if next.bytes > most.bytes { next } else { most })
}

fn follows(later: SegmentName) -> String {
    format!("{later}, which follows it, is stored")
}

/// The segment behind it, if it is stored and only the listing does not say so.
async fn find_successor(source: &SegmentSource, name: SegmentName) -> Result<Option<SegmentName>> {
    let Some(number) = name.number(source.size) else {
        return Ok(None);
    };
    let later = SegmentName::new(name.timeline, number.next(), source.size);
    let key = ObjectKey::Segment {
        cluster: source.cluster,
        name: later,
    };
    let found = source
        .repository
        .find_descriptor(&key, Absence::Likely)
        .await?;
    Ok(found.map(|_| later))
}

fn stored_segments(objects: &TimelineObjects) -> impl Iterator<Item = &SegmentName> {
    let partials = objects.partials.iter().map(|partial| &partial.name);
    let segments = objects.segments.keys().chain(objects.tails.keys());
    segments.chain(partials)
}

#[cfg(test)]
mod tests {
    use super::*;
    use repository::key::ClusterId;
    use repository::sealed::OpenPolicy;
    use repository::{PutOutcome, Repositories, Repository, Store};

    fn descends(paths: &[&str], histories: &[(u32, &str)], name: &str) -> Option<String> {
        needs(paths, histories, name).map(|needs| needs.reason)
    }

    fn needs(paths: &[&str], histories: &[(u32, &str)], name: &str) -> Option<Requirement> {
        let paths = paths.iter().map(|path| (format!("7412/{path}"), 1));
        let catalog = Catalog::from_listing("7412".parse().unwrap(), paths);
        let parse = |(n, text): &(u32, &str)| {
            TimelineHistory::parse(TimelineId::new(*n).unwrap(), text.as_bytes()).unwrap()
        };
        let histories: Vec<TimelineHistory> = histories.iter().map(parse).collect();
        requirement(
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

    #[test]
    fn only_what_descends_from_a_segment_is_asked_of_it() {
        let bytes = |paths: &[&str], histories: &[(u32, &str)], name: &str| {
            needs(paths, histories, name).unwrap().bytes
        };
        let whole = SegmentSize::DEFAULT.bytes();
        let (parent, child) = ("000000010000000000000003", "000000020000000000000003");
        assert_eq!(bytes(&[], &[HISTORY_2], parent), 0x500);
        assert_eq!(bytes(&[], &[HISTORY_2], child), 0x500);
        assert_eq!(bytes(&[], &[HISTORY_2], "000000010000000000000002"), whole);
        assert_eq!(bytes(&[TAIL_4], &[HISTORY_2], parent), whole);
        let boundary = (2, "1\t0/3000000\tx\n");
        assert_eq!(bytes(&[], &[boundary], child), 0);
        assert_eq!(needs(&[], &[boundary], parent), None);
    }

    #[test]
    fn a_timeline_that_had_not_begun_has_no_hole() {
        let segment = "wal/00000002/00000000/000000020000000000000003.wal";
        let name = "000000020000000000000002";
        assert_eq!(needs(&[segment], &[HISTORY_2], name), None);
        assert!(descends(&[segment], &[], name).unwrap().contains("follows"));
    }

    #[test]
    fn a_timeline_without_its_history_may_descend_from_any() {
        let segment = "wal/00000002/00000000/000000020000000000000003.wal";
        for (name, hole) in [
            ("000000010000000000000002", true),
            ("000000010000000000000003", true),
            ("000000010000000000000004", false),
            ("000000030000000000000003", false),
        ] {
            assert_eq!(descends(&[segment], &[], name).is_some(), hole, "{name}");
        }
    }

    /// What another process stores is seen by the second listing, a moment after the first.
    #[tokio::test]
    async fn a_segment_that_comes_a_moment_later_is_no_hole() {
        let store = Store::in_memory();
        let repository = Repository::new("memory", store.clone());
        let cluster = ClusterId::new(7412);
        let size = SegmentSize::new(1 << 20).unwrap();
        let later = format!("7412/{SEGMENT_3}");
        let put = store
            .put_new(&later, b"only its name counts".to_vec())
            .await;
        assert_eq!(put.unwrap(), PutOutcome::Created);
        let source = SegmentSource {
            repository: Repositories::from(&repository),
            policy: OpenPolicy::default(),
            cluster,
            size,
            settled: crate::settle::Settled::default(),
        };
        let name: SegmentName = "000000010000000000000002".parse().unwrap();
        let start = name.start(size).unwrap();
        let wal = WalDescriptor {
            start_lsn: start,
            end_lsn: size.end(size.segment(start)),
            ..WalDescriptor::default()
        };
        let whole = vec![0; size.bytes() as usize];
        let key = ObjectKey::Segment { cluster, name };
        let sealed = repository::testing::sealed(key, Some(wal), &whole);
        let name = name.to_string();
        let comes = async {
            tokio::time::sleep(SECOND_LOOK / 2).await;
            repository.put(&sealed).await
        };
        let (served, stored) = tokio::join!(answer(&source, None, &name), comes);
        stored.unwrap();
        assert_eq!(served.unwrap(), Answer::Serve(whole));
    }
}
