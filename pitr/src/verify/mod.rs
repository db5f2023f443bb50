//! `verify`: proves, as deep as asked, that going back will work. The read path with its output thrown away.
//!
//! Owns the levels and the order of the work. What is looked at where: `survey.rs` (what is stored), `presence.rs` (names), `wal.rs` and
//! `open_wal.rs` (WAL), `rolled.rs` (what roll-ups say of it), `backups.rs` (base backups), `documents.rs` (what is small),
//! `memory.rs` (what earlier runs verified), `finding.rs` (what is said about it). `deep.rs` looks at what one recovery reads.

mod backups;
mod decode;
mod deep;
mod documents;
mod finding;
mod gaps;
mod memory;
mod open_wal;
mod pages;
mod presence;
mod reader;
mod rolled;
mod survey;
mod wal;

pub use deep::{cost_of, verify_plan};
pub use finding::{Effect, Finding, Problem};
pub use memory::{Depth, Memory, Prepared};
pub use presence::Reach;
pub use reader::Counts;

use crate::error::Result;
use crate::roll_ups::fetch_roll_ups;
use crate::segment_source::SegmentSource;
use crate::settle::Settled;
use finding::Found;
use reader::{Reader, Want};
use repository::Repository;
use repository::cluster::ClusterDocument;
use repository::descriptor::WalDescriptor;
use repository::key::{BackupObject, ObjectKey};
use repository::sealed::OpenPolicy;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use survey::{Meta, Survey};
use wal_format::{DecoderConfig, SegmentName, Timestamp};

/// Most findings that are kept; more are counted.
const MAX_FINDINGS: usize = 10_000;

/// How deep to look; each level includes those before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Names and descriptors: no hole, one chain.
    Presence,
    /// All stored bytes.
    Checksums,
    /// Every WAL record.
    Wal,
    /// Every file of every backup.
    Backups,
}

impl Level {
    /// Whether stored bytes are read.
    #[must_use]
    pub fn reads(self) -> bool {
        self >= Self::Checksums
    }

    /// Whether WAL is decoded, which needs a key where objects are encrypted.
    #[must_use]
    pub fn decodes(self) -> bool {
        self >= Self::Wal
    }
}

/// What to verify.
pub struct Request<'a> {
    /// Where.
    pub repository: &'a Repository,
    /// How objects are opened.
    pub policy: &'a OpenPolicy,
    /// Whose.
    pub cluster: &'a ClusterDocument,
    /// How deep.
    pub level: Level,
    /// Only what recoveries to this time or later need.
    pub since: Option<Timestamp>,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// How deep was looked.
    pub level: Level,
    /// What is wrong, in the order of WAL and backups.
    pub findings: Vec<Finding>,
    /// Findings beyond those listed.
    pub findings_not_listed: u64,
    /// What should be known of how far this result carries.
    pub notes: Vec<String>,
    /// How far each backup can be recovered on each timeline, as far as names say.
    pub backups: Vec<Reach>,
    /// Transactions that stay prepared at the end of a timeline.
    pub prepared: BTreeMap<u32, Vec<Prepared>>,
    /// What was looked at.
    pub counts: Counts,
}

/// What the files beside this one share.
pub(crate) struct Job<'a> {
    pub(crate) reader: &'a Reader<'a>,
    pub(crate) survey: &'a Survey,
    pub(crate) level: Level,
    pub(crate) decoder: DecoderConfig,
    /// What an object must have been verified to, to be passed over.
    pub(crate) enough: Depth,
    /// What roll-ups say of segments.
    pub(crate) rolled: &'a BTreeMap<SegmentName, WalDescriptor>,
}

impl Job<'_> {
    pub(crate) fn segment_key(&self, name: SegmentName) -> ObjectKey {
        ObjectKey::Segment {
            cluster: self.survey.cluster,
            name,
        }
    }

    pub(crate) fn segment_limit(&self) -> usize {
        usize::try_from(self.survey.size.bytes()).unwrap_or(usize::MAX)
    }

    /// How much of an object is to be looked at, given what is known of it.
    pub(crate) fn want(&self, key: &ObjectKey, memory: &Memory) -> Want {
        let meta = self.survey.objects.get(key).copied();
        let is_known =
            |depth| meta.is_some_and(|meta: Meta| memory.knows(&key.to_string(), meta, depth));
        match self.level {
            Level::Presence => Want::Descriptor,
            Level::Checksums if is_known(self.enough) => Want::Descriptor,
            Level::Checksums => Want::Checked,
            Level::Wal | Level::Backups if is_known(Depth::Understood) => Want::Descriptor,
            Level::Wal | Level::Backups => Want::Contents,
        }
    }
}

/// Verifies. `progress` is told of stored bytes as they are read, and of the total first.
///
/// # Errors
/// `Key`: WAL or backups are encrypted and there is no key, or a wrong one. `Retry`, `Config`: the store. What is wrong with what is stored
/// is no error but a finding.
pub async fn verify(
    request: &Request<'_>,
    memory: &mut Memory,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Report> {
    let advance = |bytes| progress(Progress::Read(bytes));
    let segments = SegmentSource {
        repository: request.repository.into(),
        policy: request.policy.clone(),
        cluster: request.cluster.id(),
        size: request.cluster.segment_size()?,
        settled: Settled::default(),
    };
    let reader = Reader::new(&segments, &advance);
    let mut found = Vec::new();
    let (repository, since) = (request.repository, request.since);
    let survey = Survey::take(&reader, repository, request.cluster, since, &mut found).await?;
    if let Some(wrong) = documents::check_cluster(request.cluster, &survey, &mut found) {
        found.push(wrong);
        return Ok(nothing_fits(request.level, found, &survey, reader.counts()));
    }
    // Where every segment is read, they would say nothing new.
    let rolled = match request.level == Level::Presence || !memory.is_empty() {
        true => fetch_roll_ups(&segments.repository, survey.cluster, &survey.catalog).await?,
        false => BTreeMap::new(),
    };
    let keyless = request.policy.identities.is_empty();
    let job = Job {
        reader: &reader,
        survey: &survey,
        level: request.level,
        decoder: DecoderConfig {
            segment_size: survey.size,
            system_identifier: Some(survey.cluster.system_identifier),
            major: None,
        },
        enough: match keyless {
            true => Depth::Stored,
            false => Depth::Opened,
        },
        rolled: &rolled,
    };
    progress(Progress::Total(total(&job, memory)));

    let mut backups = Vec::new();
    for backup in &survey.backups {
        presence::check_parts(&survey, backup, &mut found);
        backups.extend(presence::check_reach(&survey, backup, &mut found));
    }
    let mut notes = notes(&job, keyless);
    let prepared = read_wal(&job, memory, &mut found, &mut notes).await?;
    if job.level.reads() {
        found.extend(documents::check_documents(&job, repository, memory).await?);
        for backup in &survey.backups {
            found.extend(backups::check_backup(&job, backup, memory).await?);
            save(&job, memory, &mut notes);
        }
    }
    memory.retain(|key| {
        key.parse()
            .is_ok_and(|key| survey.objects.contains_key(&key))
    });
    save(&job, memory, &mut notes);
    let found = gaps::settle(found, &survey, &mut notes);
    let counts = reader.counts();
    notes.splice(0..0, trusted(&job, &counts));
    let (findings, findings_not_listed) = conclude(found, &survey);
    Ok(Report {
        level: job.level,
        findings,
        findings_not_listed,
        notes,
        backups,
        prepared,
        counts,
    })
}

/// Looks at the WAL of all timelines; gives the transactions that stay prepared at the end of each.
async fn read_wal(
    job: &Job<'_>,
    memory: &mut Memory,
    found: &mut Vec<Found>,
    notes: &mut Vec<String>,
) -> Result<BTreeMap<u32, Vec<Prepared>>> {
    let mut prepared = BTreeMap::new();
    let mut inherited: BTreeMap<u32, Vec<Prepared>> = BTreeMap::new();
    // Numbers rise from parents to children.
    for (timeline, path) in &job.survey.paths {
        let open = inherited.remove(&timeline.get()).unwrap_or_default();
        let walked = wal::walk_timeline(job, path, open, memory).await?;
        found.extend(walked.found);
        inherited.extend(walked.forks);
        if let Some(lsn) = walked.unknown_before {
            notes.push(format!(
                "timeline {timeline}: transactions prepared before {lsn} are not known, as that WAL was verified by an earlier run or left \
                 out; --all reads it again"
            ));
        }
        if !walked.open.is_empty() {
            prepared.insert(timeline.get(), walked.open);
        }
        save(job, memory, notes);
    }
    Ok(prepared)
}

/// Where segments have another size than is said, no position is what it seems: everything would be wrong.
fn nothing_fits(level: Level, found: Vec<Found>, survey: &Survey, counts: Counts) -> Report {
    let (findings, findings_not_listed) = conclude(found, survey);
    Report {
        level,
        findings,
        findings_not_listed,
        notes: vec!["WAL was not looked at: no position in it is known".to_owned()],
        backups: Vec::new(),
        prepared: BTreeMap::new(),
        counts,
    }
}

/// How far verification is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// So many stored bytes are to be read: an estimate.
    Total(u64),
    /// So many more were.
    Read(u64),
}

/// Stored bytes of what the level looks at and no earlier run has verified.
fn total(job: &Job<'_>, memory: &Memory) -> u64 {
    let survey = job.survey;
    let depth = |key: &ObjectKey| match (key, job.level) {
        (ObjectKey::Segment { .. }, level) if level.decodes() => Depth::Understood,
        (ObjectKey::Backup { object, .. }, Level::Backups) if *object != BackupObject::Catalog => {
            Depth::Understood
        }
        _ => job.enough,
    };
    let wanted = |key: &ObjectKey| match key {
        ObjectKey::Segment { name, .. }
        | ObjectKey::Tail { name, .. }
        | ObjectKey::Partial { name, .. } => name
            .number(survey.size)
            .is_some_and(|number| survey.is_wanted(number)),
        ObjectKey::Backup {
            label,
            object: BackupObject::Manifest | BackupObject::Catalog | BackupObject::Part { .. },
            ..
        } => survey
            .backups
            .iter()
            .any(|backup| backup.facts.label == *label),
        ObjectKey::BackupHistory { .. } => true,
        _ => false,
    };
    if !job.level.reads() {
        return 0;
    }
    let is_known = |key, meta| memory.knows(&ObjectKey::to_string(key), meta, depth(key));
    let objects = survey.objects.iter().filter(|(key, _)| wanted(key));
    let unknown = objects.filter(|(key, meta)| !is_known(*key, **meta));
    unknown.map(|(_, meta)| meta.size).sum()
}

/// What was believed instead of read.
fn trusted(job: &Job<'_>, counts: &Counts) -> Vec<String> {
    let mut notes = Vec::new();
    let rolled = counts.descriptors_rolled_up;
    if job.level == Level::Presence {
        notes.push(
            "descriptors were believed, not authenticated: this finds accidents, not an attacker; --checksums with a key proves them"
                .to_owned(),
        );
        if rolled > 0 {
            notes.push(format!(
                "{} were believed from roll-ups, and the segments themselves by name and size: --checksums reads them",
                counted(rolled, "descriptor")
            ));
        }
    }
    if counts.objects_remembered > 0 {
        notes.push(format!(
            "{} not read again: an earlier run verified {}, and size and time of writing are the same{}; --all reads everything",
            match counts.objects_remembered {
                1 => "1 object was".to_owned(),
                many => format!("{many} objects were"),
            },
            if counts.objects_remembered == 1 { "it" } else { "them" },
            match rolled {
                0 => String::new(),
                _ => format!(", and {} were believed from roll-ups", counted(rolled, "descriptor")),
            }
        ));
    }
    notes
}

fn counted(count: u64, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    }
}

fn save(job: &Job<'_>, memory: &mut Memory, notes: &mut Vec<String>) {
    if !job.level.reads() {
        return;
    }
    if let Err(error) = memory.save() {
        let note = format!("what was verified cannot be remembered: {error}");
        if !notes.contains(&note) {
            notes.push(note);
        }
    }
}

fn notes(job: &Job<'_>, keyless: bool) -> Vec<String> {
    let survey = job.survey;
    let mut notes = Vec::new();
    if job.level.reads() && keyless {
        notes.push(
            "no key: encrypted objects were held against their own checksums, which finds accidents, not an attacker"
                .to_owned(),
        );
    }
    if !survey.sealed_histories.is_empty() {
        notes.push(
            "no key for history files: each timeline was looked at on its own, not across the switch from its parent"
                .to_owned(),
        );
    }
    if survey.backups.is_empty() {
        notes.push("there is no backup that can be used: nothing can be recovered".to_owned());
    }
    let begun = survey.catalog.backups.iter();
    for (label, _) in begun.filter(|(_, backup)| !backup.complete) {
        notes.push(format!(
            "backup {label} was begun and not finished, or is being made"
        ));
    }
    if survey.catalog.unknown > 0 {
        notes.push(format!(
            "{} objects are none of Walden's and were passed over",
            survey.catalog.unknown
        ));
    }
    notes
}

/// Each problem once, in the order of objects' keys, with what it means.
fn conclude(found: Vec<Found>, survey: &Survey) -> (Vec<Finding>, u64) {
    let mut seen = BTreeSet::new();
    let mut findings = Vec::new();
    let mut not_listed = 0;
    for found in found {
        if !seen.insert((found.object.clone(), found.problem, found.lsn)) {
            continue;
        }
        if findings.len() == MAX_FINDINGS {
            not_listed += 1;
        } else {
            findings.push(found.conclude(survey));
        }
    }
    findings.sort_by(|a, b| (&a.object, a.lsn).cmp(&(&b.object, b.lsn)));
    (findings, not_listed)
}
