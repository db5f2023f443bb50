//! What names and backup descriptors alone prove: that every backup has its parts, and that the WAL from its start to the end of every
//! timeline it can be recovered to is stored without a hole (pure).

use super::finding::{Found, Place, Problem};
use super::survey::{KnownBackup, Survey};
use crate::plan::{Piece, PieceSource, WalPath, plan_pieces};
use repository::key::{Archive, BackupObject, ObjectKey};
use repository::names::MAX_CATALOG_BYTES;
use serde::Serialize;
use std::collections::BTreeMap;
use wal_format::{Lsn, SegmentName};

/// Largest catalogue snapshot as it is stored.
const MAX_STORED_CATALOG: u64 = MAX_CATALOG_BYTES as u64 + (1 << 20);

/// How far a backup can be recovered on one timeline, as far as what is stored says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reach {
    /// Its label.
    pub backup: String,
    /// The timeline.
    pub timeline: u32,
    /// Where it is consistent, `X/X`.
    pub from_lsn: String,
    /// End of the WAL that follows without a hole, `X/X`.
    pub to_lsn: String,
}

/// The objects that a backup's descriptor lists, against the listing.
pub(crate) fn check_parts(survey: &Survey, backup: &KnownBackup, found: &mut Vec<Found>) {
    let label = &backup.facts.label;
    let key = |object| ObjectKey::Backup {
        cluster: survey.cluster,
        label: label.clone(),
        object,
    };
    let mut bad = |object: String, problem, detail: String| {
        found.push(Found {
            object,
            place: Place::Backup(label.to_string()),
            lsn: None,
            problem,
            detail,
        });
    };
    let descriptor = &backup.descriptor;
    let own = key(BackupObject::Descriptor).to_string();
    let mut next: BTreeMap<Archive, u32> = BTreeMap::new();
    let (mut plain, mut stored) = (0, 0);
    for part in &descriptor.parts {
        plain += u64::from(part.plain_size);
        stored += u64::from(part.stored_size);
        let expected = next.entry(part.archive).or_default();
        if part.part != *expected {
            let detail = format!(
                "it lists part {} of {} where part {expected} should be",
                part.part, part.archive
            );
            bad(own.clone(), Problem::Contradiction, detail);
        }
        *expected = part.part.saturating_add(1);
        let object = key(BackupObject::Part {
            archive: part.archive,
            part: part.part,
        });
        match survey.objects.get(&object) {
            None => bad(
                object.to_string(),
                Problem::Missing,
                "the backup's descriptor lists it".into(),
            ),
            Some(meta) if meta.size != u64::from(part.stored_size) => {
                let detail = format!(
                    "it has {} bytes, the backup's descriptor says {}",
                    meta.size, part.stored_size
                );
                bad(object.to_string(), Problem::Damaged, detail);
            }
            Some(_) => {}
        }
    }
    let manifest = key(BackupObject::Manifest);
    match survey.objects.get(&manifest) {
        None => bad(
            manifest.to_string(),
            Problem::Missing,
            "no backup can be laid out without its manifest".into(),
        ),
        Some(meta) => stored += meta.size,
    }
    let first_part = key(BackupObject::Part {
        archive: Archive::Base,
        part: 0,
    });
    for (object, _) in survey.objects.range(first_part..) {
        let ObjectKey::Backup {
            label: other,
            object: BackupObject::Part { archive, part },
            ..
        } = object
        else {
            break;
        };
        if other != label {
            break;
        }
        if next.get(archive).is_none_or(|parts| part >= parts) {
            let detail = "the backup's descriptor does not list it".into();
            bad(object.to_string(), Problem::Contradiction, detail);
        }
    }
    let catalog = key(BackupObject::Catalog);
    match survey.objects.get(&catalog) {
        Some(meta) => stored += meta.size,
        // Without it the sum is smaller, whether it was never taken or is gone; nothing but `walden log` reads it.
        None => {
            stored = stored.max(
                descriptor
                    .stored_size
                    .min(stored.saturating_add(MAX_STORED_CATALOG)),
            )
        }
    }
    if plain != descriptor.plain_size || stored != descriptor.stored_size {
        let detail = format!(
            "its sizes do not add up: parts of {plain} plain and {stored} stored bytes, {} and {} are said",
            descriptor.plain_size, descriptor.stored_size
        );
        bad(own, Problem::Contradiction, detail);
    }
}

/// The WAL of a backup on every timeline it can be recovered to: what is missing, and how far it reaches.
pub(crate) fn check_reach(
    survey: &Survey,
    backup: &KnownBackup,
    found: &mut Vec<Found>,
) -> Vec<Reach> {
    let facts = &backup.facts;
    let mut reaches = Vec::new();
    for path in survey.paths_of(facts) {
        let pieces = plan_pieces(&survey.catalog, path, facts.start_lsn);
        let end = pieces
            .pieces
            .last()
            .map_or(facts.start_lsn, |piece| end_of(survey, piece));
        if let Some((_, reason)) = &pieces.hole {
            found.push(missing(survey, path, end, reason.clone()));
        } else if end < facts.stop_lsn || pieces.pieces.is_empty() {
            let reason = format!(
                "WAL up to {} is needed before backup {} is consistent",
                facts.stop_lsn, facts.label
            );
            found.push(missing(survey, path, end, reason));
        }
        reaches.push(Reach {
            backup: facts.label.to_string(),
            timeline: path.history.timeline().get(),
            from_lsn: facts.stop_lsn.to_string(),
            to_lsn: end.to_string(),
        });
    }
    if reaches.is_empty() {
        let timeline = facts.timeline;
        let first = SegmentName::new(timeline, survey.size.segment(facts.start_lsn), survey.size);
        found.push(Found {
            object: key_of(survey, first).to_string(),
            place: Place::Backup(facts.label.to_string()),
            lsn: Some(facts.start_lsn),
            problem: Problem::Missing,
            detail: format!(
                "no WAL that fits backup {}, taken on timeline {timeline}, is stored",
                facts.label
            ),
        });
    }
    reaches
}

fn missing(survey: &Survey, path: &WalPath, at: Lsn, detail: String) -> Found {
    let number = survey.size.segment(at);
    let timeline = path.timeline_of_segment(number);
    Found {
        object: key_of(survey, path.name(timeline, number)).to_string(),
        place: Place::Wal(timeline, at),
        lsn: Some(at),
        problem: Problem::Missing,
        detail,
    }
}

fn key_of(survey: &Survey, name: SegmentName) -> ObjectKey {
    ObjectKey::Segment {
        cluster: survey.cluster,
        name,
    }
}

/// First byte behind a piece of WAL.
fn end_of(survey: &Survey, piece: &Piece) -> Lsn {
    match &piece.source {
        PieceSource::Sealed => piece.start.saturating_add(u64::from(survey.size.bytes())),
        PieceSource::Open { tail, partials } => {
            let reach = tail.iter().map(|chunk| chunk.to).max().unwrap_or(0);
            let chunks = piece.start.saturating_add(u64::from(reach));
            let partials = partials.iter().filter_map(|partial| {
                let key = ObjectKey::Partial {
                    cluster: survey.cluster,
                    name: partial.name,
                    tag: partial.tag,
                };
                survey.partial_ends.get(&key).copied()
            });
            partials.fold(chunks, Lsn::max)
        }
    }
}
