//! Recorded holes in what verification finds (pure): one that somebody has acknowledged is a note and no finding, as is what is missing within it;
//! one that is open and that nothing else speaks of is a finding.

use super::finding::{Found, Place, Problem};
use super::survey::Survey;
use repository::catalog::GapRange;

/// Brings findings and recorded holes together.
pub(crate) fn settle(found: Vec<Found>, survey: &Survey, notes: &mut Vec<String>) -> Vec<Found> {
    let (catalog, size) = (&survey.catalog, survey.size);
    let open = catalog.open_gaps(size).into_iter();
    let open = open.filter(|(missing, _)| survey.is_wanted(size.segment(missing.from)));
    let (acknowledged, open): (Vec<_>, Vec<_>) =
        open.partition(|(_, recorded)| catalog.acknowledged.contains(recorded));
    let is_within = |one: &Found, gap: &GapRange| {
        let Place::Wal(timeline, at) = one.place else {
            return false;
        };
        one.problem == Problem::Missing
            && timeline == gap.timeline
            && size.segment(at) >= size.segment(gap.from)
            && at < gap.to
    };
    for (missing, recorded) in &acknowledged {
        notes.push(format!(
            "gap {recorded} is acknowledged: WAL from {} to {} on timeline {} is lost, and no restore crosses it",
            missing.from, missing.to, missing.timeline
        ));
    }
    let mut found: Vec<Found> = found
        .into_iter()
        .filter(|one| !acknowledged.iter().any(|(gap, _)| is_within(one, gap)))
        .collect();
    for (missing, recorded) in open {
        if found.iter().any(|one| is_within(one, &missing)) {
            continue;
        }
        found.push(Found {
            object: recorded.key(survey.cluster).to_string(),
            place: Place::Wal(missing.timeline, missing.from),
            lsn: Some(missing.from),
            problem: Problem::Missing,
            detail: format!(
                "WAL up to {} is lost: the server had removed it before it was stored",
                missing.to
            ),
        });
    }
    found
}
