//! What one recovery reads, and nothing else: every part of its backup, every record of its WAL up to the target. Where there are several
//! repositories each object comes from the one that the recovery would take it from.
//!
//! Owns which objects a plan needs. Looking at them is the business of the files beside this one.

use super::finding::{Found, Place, Problem};
use super::memory::{Depth, Memory};
use super::reader::{Examined, Reader, Want};
use super::survey::{KnownBackup, Meta, Survey};
use super::{Job, Level, Progress, Report, backups, conclude, read_wal, total};
use crate::error::{Error, Result};
use crate::gather::PlanMaterial;
use crate::plan::{Piece, PieceSource, RecoveryPlan};
use crate::segment_source::MAX_HISTORY_BYTES;
use repository::backup::BackupDescriptor;
use repository::catalog::{Catalog, TimelineObjects};
use repository::key::{BackupObject, ObjectKey};
use repository::wal::lineage;
use std::collections::{BTreeMap, BTreeSet};
use wal_format::{Lsn, TimelineId};

/// Reads everything that carrying out `plan` would read. `progress` is told of stored bytes as they are read, and of the total first.
///
/// # Errors
/// `Key`: no identity opens it. `Retry`, `Config`: the stores. What is wrong with what is stored is no error but a finding.
pub async fn verify_plan(
    material: &PlanMaterial,
    plan: &RecoveryPlan,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Report> {
    let advance = |bytes| progress(Progress::Read(bytes));
    let segments = &material.segments;
    let reader = Reader::new(segments, &advance).on_path(&plan.path.lineages);
    let survey = survey_of(material, plan)?;
    let rolled = BTreeMap::new();
    let job = Job {
        reader: &reader,
        survey: &survey,
        level: Level::Backups,
        decoder: material.decoder(),
        enough: Depth::Opened,
        rolled: &rolled,
    };
    let mut memory = Memory::none();
    progress(Progress::Total(total(&job, &memory)));
    let (mut found, mut notes) = (Vec::new(), Vec::new());
    for timeline in plan.path.timelines() {
        found.extend(check_history(&job, plan, timeline).await?);
    }
    for backup in &survey.backups {
        found.extend(backups::check_backup(&job, backup, &mut memory).await?);
    }
    read_wal(&job, &mut memory, &mut found, &mut notes).await?;
    found.retain(|one| !is_behind(one, plan.stop.needed_to));
    let (findings, findings_not_listed) = conclude(found, &survey);
    Ok(Report {
        level: job.level,
        findings,
        findings_not_listed,
        notes,
        backups: Vec::new(),
        // What is open at the target is the plan's to say; the last segment goes on behind it.
        prepared: BTreeMap::new(),
        counts: reader.counts(),
    })
}

/// How many objects carrying out `plan` reads, and their stored bytes, nearly: of what is not sealed yet only the plain size is known.
///
/// # Errors
/// `Corrupt`: the plan contradicts itself.
pub fn cost_of(material: &PlanMaterial, plan: &RecoveryPlan) -> Result<(u64, u64)> {
    let survey = survey_of(material, plan)?;
    let lineages = plan.path.timelines();
    let histories = lineages.filter(|timeline| *timeline != TimelineId::FIRST);
    let objects = survey.objects.len() + histories.count();
    let bytes = survey.objects.values().map(|meta| meta.size).sum();
    Ok((objects as u64, bytes))
}

/// WAL behind the target is in the last segment too, and no replay looks at it.
fn is_behind(found: &Found, end: Lsn) -> bool {
    let about_records = matches!(found.problem, Problem::InvalidWal | Problem::Contradiction);
    about_records
        && matches!(found.place, Place::Wal(..))
        && found.lsn.is_some_and(|lsn| lsn >= end)
}

/// The history file by which the server follows the path.
async fn check_history(
    job: &Job<'_>,
    plan: &RecoveryPlan,
    timeline: TimelineId,
) -> Result<Option<Found>> {
    let planned = plan.path.lineages.get(&timeline);
    let Some(planned) = planned.filter(|planned| !planned.is_empty()) else {
        return Ok(None);
    };
    let key = ObjectKey::History {
        cluster: job.survey.cluster,
        timeline,
    };
    let seen = job.reader.examine(&key, MAX_HISTORY_BYTES, Want::Contents);
    let (problem, detail) = match seen.await? {
        Examined::Good { plain, .. } if lineage(plain.as_deref()) == *planned => return Ok(None),
        Examined::Good { .. } => (
            Problem::Lineage,
            "it is not the history that was planned with".to_owned(),
        ),
        Examined::Bad(problem, detail) => (problem, detail),
        Examined::Gone => (Problem::Missing, job.survey.gone.to_owned()),
    };
    Ok(Some(Found {
        object: key.to_string(),
        place: Place::History(timeline),
        lsn: None,
        problem,
        detail,
    }))
}

/// What is stored, as far as the plan needs it.
fn survey_of(material: &PlanMaterial, plan: &RecoveryPlan) -> Result<Survey> {
    let (cluster, size) = (material.segments.cluster, material.segments.size);
    let label = &plan.backup.label;
    let descriptor = material
        .descriptors
        .get(label)
        .ok_or_else(|| Error::Missing {
            object: format!("backup {label}"),
            reason: "the plan begins with it".into(),
        })?;
    let mut survey = Survey {
        cluster,
        size,
        catalog: Catalog::default(),
        objects: BTreeMap::new(),
        backups: vec![KnownBackup {
            facts: plan.backup.clone(),
            descriptor: descriptor.clone(),
        }],
        paths: BTreeMap::new(),
        partial_ends: BTreeMap::new(),
        sealed_histories: BTreeSet::new(),
        from: Some(size.segment(plan.backup.start_lsn)),
        gone: "this restore needs it",
    };
    for piece in &plan.pieces {
        let timeline = piece.name.timeline;
        if let Some(stored) = material.catalog.timelines.get(&timeline) {
            let needed = survey.catalog.timelines.entry(timeline).or_default();
            add_piece(&mut survey.objects, cluster, piece, stored, needed);
        }
        survey.paths.insert(timeline, plan.path.up_to(timeline)?);
    }
    survey
        .objects
        .extend(objects_of(descriptor, label, cluster));
    Ok(survey)
}

fn add_piece(
    objects: &mut BTreeMap<ObjectKey, Meta>,
    cluster: repository::key::ClusterId,
    piece: &Piece,
    stored: &TimelineObjects,
    needed: &mut TimelineObjects,
) {
    let name = piece.name;
    let mut add = |key, size| {
        objects.insert(key, Meta { size, modified: 0 });
    };
    if piece.source == PieceSource::Sealed {
        let bytes = stored.segments.get(&name).copied().unwrap_or(0);
        needed.segments.insert(name, bytes);
        add(piece.key(cluster), bytes);
        return;
    }
    let chunks = stored.needed_chunks(&name);
    for chunk in &chunks {
        let (from, to, writer) = (chunk.from, chunk.to, chunk.writer);
        let key = ObjectKey::Tail {
            cluster,
            name,
            from,
            to,
            writer,
        };
        add(key, u64::from(to.saturating_sub(from)));
    }
    needed.tails.insert(name, chunks);
    for partial in stored.partials.iter().filter(|one| one.name == name) {
        needed.partials.insert(*partial);
        let tag = partial.tag;
        add(ObjectKey::Partial { cluster, name, tag }, 0);
    }
}

/// What is read of a backup: not the names of relations, which only `walden log` reads.
fn objects_of(
    backup: &BackupDescriptor,
    label: &repository::key::BackupLabel,
    cluster: repository::key::ClusterId,
) -> Vec<(ObjectKey, Meta)> {
    let object = |object, size| {
        let key = ObjectKey::Backup {
            cluster,
            label: label.clone(),
            object,
        };
        (key, Meta { size, modified: 0 })
    };
    let parts = backup.parts.iter().map(|part| {
        let (archive, number) = (part.archive, part.part);
        let part_of = BackupObject::Part {
            archive,
            part: number,
        };
        object(part_of, u64::from(part.stored_size))
    });
    let manifest = object(BackupObject::Manifest, backup.manifest_size);
    parts.chain([manifest]).collect()
}
