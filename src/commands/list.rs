//! `walden list`: the backups of a cluster and how far each one reaches. Read from names and descriptors: no key is needed. With
//! one (or unencrypted), history files are opened too, and a window goes on across timelines.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use jiff::Timestamp;
use pitr::plan::{BackupFacts, Piece, PieceSource, WalPath, plan_pieces};
use repository::Repository;
use repository::backup::BackupDescriptor;
use repository::catalog::Catalog;
use repository::cluster::ClusterDocument;
use repository::key::ObjectKey;
use repository::sealed::OpenPolicy;
use repository::wal::lineage;
use serde::Serialize;
use wal_format::{Lsn, SegmentSize, TimelineHistory, TimelineId};

use super::Globals;
use crate::cli::SourceArgs;
use crate::config::{Config, Overrides};
use crate::exit_code::ExitCode;
use crate::gaps::{Gap, open_gaps};
use crate::open;
use crate::report::{Align, Table, time};
use crate::units::{ByteSize, human_duration};

/// Most segments that are looked at, from the end, for the newest transaction.
const MAX_LOOK_BACK: usize = 64;
/// Largest history file.
const MAX_HISTORY_BYTES: usize = 1 << 20;

/// List backups, their sizes and the window each one opens
///
/// Needs no key and no server: what it shows is read from the repository alone.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  walden list
  walden list s3://acme-pg-eu/prod --cluster 7412345678901234567
  walden list --json | jq '.backups[].label'")]
pub(crate) struct ListArgs {
    #[command(flatten)]
    pub(crate) source: SourceArgs,
}

#[derive(Debug, Serialize)]
struct Report {
    repository: String,
    cluster: String,
    backups: Vec<Backup>,
    /// Labels that were begun and not finished, or are being made now.
    unfinished: Vec<String>,
    gaps: Vec<Gap>,
}

#[derive(Debug, Serialize)]
struct Backup {
    label: String,
    kind: String,
    server_version: String,
    timeline: u32,
    from_standby: bool,
    started: Timestamp,
    duration_seconds: f64,
    plain_bytes: u64,
    stored_bytes: u64,
    start_lsn: String,
    stop_lsn: String,
    /// `None`: the WAL that makes the backup consistent is not stored.
    window: Option<Window>,
}

/// What can be recovered from one backup.
#[derive(Debug, Clone, Serialize)]
struct Window {
    from_time: Timestamp,
    from_lsn: String,
    /// Newest transaction that is stored; `None`: none after the backup is known.
    to_time: Option<Timestamp>,
    to_lsn: String,
    timeline: u32,
    /// What stops it, if something later is stored.
    ends_at_gap: Option<String>,
}

/// Lists; ends with 3 if there are gaps.
pub(crate) async fn run(args: ListArgs, globals: &Globals) -> Result<ExitCode> {
    let overrides = Overrides {
        repository: args.source.repository(),
        ..Overrides::default()
    };
    let config = globals.load_config(&overrides)?;
    let repository = open::open_existing_repository(&config).await?;
    let cluster = open::find_cluster(&config, &repository, args.source.cluster.as_deref()).await?;
    let size = cluster.segment_size()?;
    let catalog = repository.list(cluster.id()).await?;
    let mut survey = Survey {
        histories: fetch_histories(&config, &repository, &cluster, &catalog).await?,
        newest: BTreeMap::new(),
        catalog,
        repository,
        cluster,
        size,
    };
    let labels: Vec<_> = survey.catalog.complete_backups().cloned().collect();
    let mut backups = Vec::with_capacity(labels.len());
    for label in &labels {
        let descriptor = survey
            .repository
            .fetch_backup(survey.cluster.id(), label)
            .await?;
        let window = survey.window(&descriptor).await?;
        backups.push(Backup::new(&descriptor, window));
    }
    let report = Report {
        repository: survey.repository.url().to_owned(),
        cluster: survey.cluster.id().to_string(),
        backups,
        unfinished: survey
            .catalog
            .backups
            .iter()
            .filter(|(_, backup)| !backup.complete)
            .map(|(label, _)| label.to_string())
            .collect(),
        gaps: open_gaps(&survey.catalog, size),
    };
    globals.output.print("walden.list", &report, || {
        report.to_text(globals.output.color)
    })?;
    Ok(if report.gaps.is_empty() {
        ExitCode::Done
    } else {
        ExitCode::Warnings
    })
}

/// The history files that can be opened; those that cannot are left out, with a word about it.
async fn fetch_histories(
    config: &Config,
    repository: &Repository,
    cluster: &ClusterDocument,
    catalog: &Catalog,
) -> Result<BTreeMap<TimelineId, Vec<u8>>> {
    let mut histories = BTreeMap::new();
    let stored = catalog
        .timelines
        .iter()
        .filter(|(_, objects)| objects.history);
    let stored: Vec<TimelineId> = stored.map(|(timeline, _)| *timeline).collect();
    if stored.is_empty() {
        return Ok(histories);
    }
    let policy = match config.identities().await {
        Ok(identities) => OpenPolicy {
            identities,
            allow_plain: true,
        },
        Err(error) => {
            tracing::info!("without the identity: {error:#}");
            OpenPolicy::default()
        }
    };
    for timeline in stored {
        let key = ObjectKey::History {
            cluster: cluster.id(),
            timeline,
        };
        match repository.fetch(&key, &policy, MAX_HISTORY_BYTES).await {
            Ok((_, bytes)) => {
                histories.insert(timeline, bytes);
            }
            Err(error) if error.class() == repository::ErrorClass::Key => {
                tracing::info!(
                    timeline = timeline.get(),
                    "no key for its history: windows end with their own timeline"
                );
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(histories)
}

/// What has been read so far.
struct Survey {
    repository: Repository,
    cluster: ClusterDocument,
    size: SegmentSize,
    catalog: Catalog,
    histories: BTreeMap<TimelineId, Vec<u8>>,
    /// Time of the newest transaction before the end of a timeline's WAL.
    newest: BTreeMap<(TimelineId, Lsn), Option<Timestamp>>,
}

impl Survey {
    async fn window(&mut self, backup: &BackupDescriptor) -> Result<Option<Window>> {
        let facts = BackupFacts::from_descriptor(backup)?;
        let path = self.path_of(&facts)?;
        let found = plan_pieces(&self.catalog, &path, facts.start_lsn);
        let Some(last) = found.pieces.last() else {
            return Ok(None);
        };
        let end = match &last.source {
            PieceSource::Sealed => last.start.saturating_add(u64::from(self.size.bytes())),
            PieceSource::Open { tail, partials } => {
                let reach = tail.iter().map(|chunk| chunk.to).max().unwrap_or(0);
                let mut end = last.start.saturating_add(u64::from(reach));
                for partial in partials {
                    let key = ObjectKey::Partial {
                        cluster: self.cluster.id(),
                        name: partial.name,
                        tag: partial.tag,
                    };
                    let described = self.repository.fetch_descriptor(&key).await?;
                    end = end.max(described.wal.unwrap_or_default().end_lsn);
                }
                end
            }
        };
        if end < facts.stop_lsn {
            return Ok(None);
        }
        let timeline = last.name.timeline;
        let to_time = match self.newest.get(&(timeline, end)) {
            Some(known) => *known,
            None => {
                let newest = self.newest_transaction(&found.pieces).await?;
                self.newest.insert((timeline, end), newest);
                newest
            }
        };
        Ok(Some(Window {
            from_time: backup.stopped,
            from_lsn: facts.stop_lsn.to_string(),
            to_time: to_time.filter(|time| *time >= backup.stopped),
            to_lsn: end.to_string(),
            timeline: timeline.get(),
            ends_at_gap: found
                .hole
                .map(|(object, reason)| format!("{object}: {reason}")),
        }))
    }

    /// The way to the newest timeline that descends from the backup; its own timeline alone where histories cannot be read.
    fn path_of(&self, backup: &BackupFacts) -> Result<WalPath> {
        for (timeline, bytes) in self.histories.iter().rev() {
            let history = TimelineHistory::parse(*timeline, bytes)?;
            let mut lineages = BTreeMap::from([(*timeline, lineage(Some(bytes)))]);
            for entry in history.entries() {
                let bytes = self.histories.get(&entry.timeline).map(Vec::as_slice);
                lineages.insert(entry.timeline, lineage(bytes));
            }
            let path = WalPath {
                history,
                lineages,
                segment_size: self.size,
            };
            if path.holds(backup) {
                return Ok(path);
            }
        }
        Ok(WalPath {
            history: TimelineHistory::parse(backup.timeline, b"")?,
            lineages: BTreeMap::from([(backup.timeline, backup.lineage.clone())]),
            segment_size: self.size,
        })
    }

    /// Looks back from the end until a piece names a transaction.
    async fn newest_transaction(&self, pieces: &[Piece]) -> Result<Option<Timestamp>> {
        for piece in pieces.iter().rev().take(MAX_LOOK_BACK) {
            let cluster = self.cluster.id();
            let name = piece.name;
            let keys: Vec<ObjectKey> = match &piece.source {
                PieceSource::Sealed => vec![piece.key(cluster)],
                PieceSource::Open { tail, partials } => {
                    let chunks = tail.iter().map(|chunk| ObjectKey::Tail {
                        cluster,
                        name,
                        from: chunk.from,
                        to: chunk.to,
                        writer: chunk.writer,
                    });
                    let partials = partials.iter().map(|partial| ObjectKey::Partial {
                        cluster,
                        name,
                        tag: partial.tag,
                    });
                    chunks.chain(partials).collect()
                }
            };
            let mut newest = None;
            for key in keys {
                let described = self.repository.fetch_descriptor(&key).await?;
                newest = newest.max(described.wal.and_then(|wal| wal.time_max));
            }
            if newest.is_some() {
                return Ok(newest);
            }
        }
        Ok(None)
    }
}

impl Backup {
    fn new(descriptor: &BackupDescriptor, window: Option<Window>) -> Self {
        Self {
            label: descriptor.label.clone(),
            kind: descriptor.kind.clone(),
            server_version: descriptor.server_version.clone(),
            timeline: descriptor.timeline,
            from_standby: descriptor.from_standby,
            started: descriptor.started,
            duration_seconds: took(descriptor).as_secs_f64(),
            plain_bytes: descriptor.plain_size,
            stored_bytes: descriptor.stored_size,
            start_lsn: descriptor.start_lsn.to_string(),
            stop_lsn: descriptor.stop_lsn.to_string(),
            window,
        }
    }
}

fn took(descriptor: &BackupDescriptor) -> Duration {
    let took = descriptor.stopped.duration_since(descriptor.started);
    Duration::try_from(took).unwrap_or_default()
}

impl Report {
    fn to_text(&self, color: bool) -> String {
        if self.backups.is_empty() {
            return format!(
                "cluster {}: no backups yet; take one with `walden backup`\n{}",
                self.cluster,
                self.notes()
            );
        }
        let mut table = Table::new([
            ("LABEL", Align::Left),
            ("KIND", Align::Left),
            ("STARTED", Align::Left),
            ("TOOK", Align::Right),
            ("SIZE", Align::Right),
            ("STORED", Align::Right),
            ("SERVER", Align::Left),
        ]);
        let mut windows = String::from("\nWhat each one can be recovered to:\n");
        for backup in &self.backups {
            table.push([
                backup.label.clone(),
                backup.kind.clone(),
                format!("{:.0}", backup.started),
                human_duration(Duration::from_secs_f64(backup.duration_seconds)),
                ByteSize::new(backup.plain_bytes).to_string(),
                ByteSize::new(backup.stored_bytes).to_string(),
                backup.server_version.clone(),
            ]);
            let reach = match &backup.window {
                None => "nothing: the WAL that belongs to it is not stored".to_owned(),
                Some(window) => window.to_text(),
            };
            windows.push_str(&format!("  {}  {reach}\n", backup.label));
        }
        format!("{}{windows}{}", table.to_text(color), self.notes())
    }

    fn notes(&self) -> String {
        let mut text = String::new();
        for label in &self.unfinished {
            text.push_str(&format!("unfinished: {label}\n"));
        }
        for gap in &self.gaps {
            text.push_str(&format!("gap: {gap}\n"));
        }
        text
    }
}

impl Window {
    fn to_text(&self) -> String {
        let newest = match self.to_time {
            Some(newest) => time(newest),
            None => "no later transaction".to_owned(),
        };
        let mut text = format!(
            "{} ({}) to {newest} ({}), timeline {}",
            time(self.from_time),
            self.from_lsn,
            self.to_lsn,
            self.timeline
        );
        if let Some(gap) = &self.ends_at_gap {
            text.push_str(&format!("; ends at a gap: {gap}"));
        }
        text
    }
}
