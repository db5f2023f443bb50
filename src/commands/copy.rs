//! `walden copy`: fills a repository from another one. Here stand the flags, what is left out on request, and the report; the order and the
//! checks are the `repository` crate's.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use clap::{Args, ValueHint};
use jiff::Timestamp;
use pitr::time::{find_zone, parse_time};
use repository::copy::{CopyEvent, CopyLimits, CopyReport, Missing, copy_missing, missing};
use repository::key::{BackupLabel, ClusterId, ObjectKey};
use repository::wal::utc;
use repository::{Deadlines, ErrorClass, Repository};
use wal_format::{Lsn, SegmentName, SegmentSize};

use super::Globals;
use crate::config::{Overrides, RepositoryOverride};
use crate::copy_report::{Copied, Summary, problem};
use crate::exit_code::ExitCode;
use crate::failure::Advise;
use crate::{open, setup};

/// Fill a repository from another one
///
/// Copies byte for byte what TO lacks of what FROM holds, each object checked on its way and never over another one. Needs no key and no
/// server. Run it again after an interruption, or to catch up: it continues with what is missing.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  walden copy primary second
  walden copy s3://acme-pg-eu/prod file:///srv/walden/copy --dry-run
  walden copy primary second --since 2026-01-23T00:00:00Z")]
pub(crate) struct CopyArgs {
    /// Repository to read: its name in the configuration, or its URL
    #[arg(value_name = "FROM", value_hint = ValueHint::Url)]
    pub(crate) from: String,

    /// Repository to fill: its name or URL; it is made if there is none
    #[arg(value_name = "TO", value_hint = ValueHint::Url)]
    pub(crate) to: String,

    /// Copy this cluster only: its system identifier, or that and .N [default: every cluster in FROM]
    #[arg(long, value_name = "ID", value_parser = crate::cli::parse_cluster_id)]
    pub(crate) cluster: Option<String>,

    /// Copy only what restoring to this time and later needs: the newest backup that ended before it, and what follows
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<String>,

    /// Zone of a time that names none, such as Europe/Paris
    #[arg(long, value_name = "ZONE", requires = "since")]
    pub(crate) tz: Option<String>,

    /// Show what would be copied, and write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// Copies, and reports.
pub(crate) async fn run(args: CopyArgs, globals: &Globals) -> Result<ExitCode> {
    let zone = args.tz.as_deref().map(find_zone).transpose();
    let zone = zone.exit_code(ExitCode::Usage)?;
    let since = args.since.as_deref();
    let since = since.map(|text| parse_time(text, zone.as_ref()));
    let since = since.transpose().exit_code(ExitCode::Usage)?.and_then(utc);
    let from = open_side(&args.from, globals).await?;
    let to = open_side(&args.to, globals).await?;
    if from.url() == to.url() {
        return Err(anyhow!("FROM and TO are both {}", from.url()))
            .hint("name two different repositories")
            .exit_code(ExitCode::Usage);
    }
    open::require_repository(&from).await?;
    let is_made = match args.dry_run {
        true => false,
        false => setup::make_repository(&to).await?,
    };
    let clusters = match &args.cluster {
        Some(named) => {
            let cluster = named.parse().exit_code(ExitCode::Usage)?;
            let known = from.fetch_cluster(cluster).await?;
            known
                .with_context(|| {
                    format!("{}: the cluster {cluster} is not known there", from.url())
                })
                .hint("`walden copy` without --cluster copies every cluster there is")
                .exit_code(ExitCode::Integrity)?;
            vec![cluster]
        }
        None => from.list_clusters().await?,
    };
    let begun = Instant::now();
    let mut all = Vec::new();
    for cluster in clusters {
        let copied = copy_cluster(&from, &to, cluster, since, args.dry_run, globals);
        all.push(
            copied
                .await
                .with_context(|| format!("copy cluster {cluster}"))?,
        );
    }
    let summary = Summary {
        from: &from,
        to: &to,
        is_made,
        clusters: &all,
        took: begun.elapsed(),
    };
    globals
        .output
        .print("walden.copy", &summary.to_json(), || summary.to_text())?;
    Ok(summary.exit_code())
}

/// A repository by its name in the configuration, or by its URL: then no configuration is needed, and one that `--config` names says how
/// to reach it if it knows the URL.
async fn open_side(named: &str, globals: &Globals) -> Result<Repository> {
    let by_url = named.contains("://");
    let overrides = Overrides {
        repository: by_url.then(|| RepositoryOverride {
            url: named.to_owned(),
            ..RepositoryOverride::default()
        }),
        ..Overrides::default()
    };
    let config = globals.load_config(&overrides)?;
    let mut known = config.repositories.iter();
    let found = known.find(|known| by_url || known.name == named);
    let names: Vec<&str> = config
        .repositories
        .iter()
        .map(|one| one.name.as_str())
        .collect();
    let found = found
        .with_context(|| format!("no repository is named `{named}`"))
        .hint(format!("known are: {}; or give a URL", names.join(", ")))
        .exit_code(ExitCode::Usage)?;
    open::open_configured(found, Deadlines::default()).await
}

async fn copy_cluster(
    from: &Repository,
    to: &Repository,
    cluster: ClusterId,
    since: Option<Timestamp>,
    dry_run: bool,
    globals: &Globals,
) -> Result<Copied> {
    let document = from.fetch_cluster(cluster).await?;
    let document = document.with_context(|| format!("{}: {cluster} has gone", from.url()))?;
    let size = document.segment_size()?;
    // The target first: what the source gets meanwhile is the next run's.
    let there = match to.list_objects(cluster).await {
        // A folder that is not there yet.
        Err(error) if dry_run && error.class() == ErrorClass::Config => Vec::new(),
        listed => {
            let known = to.fetch_cluster(cluster).await?;
            if let Some(what) = known.and_then(|known| known.difference(&document)) {
                return Err(anyhow!(
                    "{}: knows the cluster with another {what}",
                    to.url()
                ))
                .hint("copy it to a repository URL of its own")
                .exit_code(ExitCode::Integrity);
            }
            listed?
        }
    };
    let here = from.list_objects(cluster).await?;
    let listing = |objects: Vec<repository::store::Listed>| {
        objects.into_iter().map(|object| (object.path, object.size))
    };
    let mut missing = missing(listing(here), listing(there));
    let mut from_lsn = None;
    if let Some(since) = since {
        let kept = keep_since(from, cluster, &missing, since).await?;
        if let Some((labels, start)) = kept {
            missing.retain(|key| is_kept(key, &labels, start, size));
            from_lsn = Some(start);
        }
    }
    let report = match dry_run {
        true => None,
        false => Some(carry_over(from, to, cluster, &missing, globals).await),
    };
    Ok(Copied {
        cluster,
        missing,
        report,
        from_lsn,
    })
}

async fn carry_over(
    from: &Repository,
    to: &Repository,
    cluster: ClusterId,
    missing: &Missing,
    globals: &Globals,
) -> CopyReport {
    let label = format!("copy {cluster}");
    let progress = globals.screen.progress(&label, Some(missing.bytes()));
    let tell = |event: CopyEvent<'_>| match event {
        CopyEvent::Done(item) => progress.advance(item.size),
        CopyEvent::Failed(failed) => {
            tracing::error!(object = %failed.key, "{}", problem(failed));
        }
    };
    let report = copy_missing(from, to, missing, CopyLimits::default(), &tell).await;
    progress.finish();
    report
}

/// The newest backup that ended before `since`, or the oldest there is, with those after it, and where the WAL they need begins. `None`: there
/// is no backup.
async fn keep_since(
    from: &Repository,
    cluster: ClusterId,
    missing: &Missing,
    since: Timestamp,
) -> Result<Option<(BTreeSet<BackupLabel>, Lsn)>> {
    let items = missing.objects.iter().chain(&missing.present);
    let labels: BTreeSet<BackupLabel> = items
        .chain(&missing.differing)
        .filter_map(|item| match &item.key {
            ObjectKey::Backup { label, .. } => Some(label.clone()),
            _ => None,
        })
        .collect();
    let mut kept = BTreeSet::new();
    let mut start: Option<Lsn> = None;
    for label in labels.into_iter().rev() {
        let backup = from.fetch_backup(cluster, &label).await?;
        start = Some(start.map_or(backup.start_lsn, |start| start.min(backup.start_lsn)));
        kept.insert(label);
        if backup.stopped <= since {
            break;
        }
    }
    Ok(start.map(|start| (kept, start)))
}

/// Whether an object is needed for the backups kept, whose WAL begins at `start`.
fn is_kept(key: &ObjectKey, labels: &BTreeSet<BackupLabel>, start: Lsn, size: SegmentSize) -> bool {
    let first = size.segment(start);
    let reaches = |name: &SegmentName| name.number(size).is_none_or(|number| number >= first);
    match key {
        ObjectKey::Segment { name, .. }
        | ObjectKey::Partial { name, .. }
        | ObjectKey::BackupHistory { name, .. }
        | ObjectKey::Tail { name, .. } => reaches(name),
        ObjectKey::Backup { label, .. } => labels.contains(label),
        ObjectKey::RollUp { log, .. } => u64::from(*log) >= start.as_u64() >> 32,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_keeps_the_backups_after_it_and_the_wal_they_need() {
        let size = SegmentSize::new(1 << 20).unwrap();
        let start = Lsn::new(0x1_0030_0028);
        let kept = "20260123T142811Z-full-3fa9";
        let labels = BTreeSet::from([kept.parse().unwrap()]);
        let check = |path: &str, expected: bool| {
            let key: ObjectKey = path.parse().unwrap();
            assert_eq!(is_kept(&key, &labels, start, size), expected, "{path}");
        };
        check("7/cluster.json", true);
        check("7/wal/00000002.history", true);
        check(
            "7/wal/00000001/00000001/000000010000000100000002.wal",
            false,
        );
        check("7/wal/00000001/00000001/000000010000000100000003.wal", true);
        check(
            "7/wal/00000002/00000000/000000020000000000000FFF.wal",
            false,
        );
        check(&format!("7/backups/{kept}/manifest"), true);
        check("7/backups/20260122T142811Z-full-3fa9/manifest", false);
        check("7/index/00000001/00000000.0A1B2C3D", false);
        check("7/index/00000001/00000001.0A1B2C3D", true);
        check(
            "7/gaps/00000001-0000000002000000-0000000004000000.json",
            true,
        );
    }
}
