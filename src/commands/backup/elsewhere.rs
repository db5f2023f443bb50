//! What becomes of the repositories that a backup had to go on without: it is copied to those that are back when it is done. Owns what is copied and
//! what is said of each repository; copying is `repository::copy`'s. What does not get over now, `walden run` brings later.

use anyhow::{Context, Result};
use archiver::base_backup::{LeftOut, Taken, require_wal};
use repository::Repository;
use repository::cluster::ClusterDocument;
use repository::copy::{CopyEvent, CopyLimits, copy_missing, missing};
use repository::key::{BackupLabel, ObjectKey};
use repository::store::Listed;
use serde::Serialize;

use crate::config::{self, Config};
use crate::open;
use crate::progress::Screen;

/// A repository that shall have the backup too.
#[derive(Debug, Serialize)]
pub(super) struct Copy {
    /// Its name.
    pub(super) repository: String,
    /// Where it is.
    pub(super) url: String,
    /// Why it has not got the backup; `None`: it has.
    pub(super) problem: Option<String>,
}

/// Every repository but `from`, which has the backup, in the configuration's order.
pub(super) fn copies(config: &Config, from: usize, taken: &Taken) -> Vec<Copy> {
    let others = config.repositories.iter().enumerate();
    let others = others.filter(|(number, _)| *number != from);
    let copy = |(number, other): (usize, &config::Repository)| {
        let mut left_out = taken.left_out.iter();
        let left_out = left_out.find(|left| left.repository == number);
        Copy {
            repository: other.name.clone(),
            url: other.url.clone(),
            problem: left_out.map(|left| left.why.clone()),
        }
    };
    others.map(copy).collect()
}

/// Stores the backup in those that were left out, one after the other, and notes what came of it. Dropped in between, the problems of those that
/// are left stay as they were.
pub(super) async fn fill(
    config: &Config,
    from: &Repository,
    cluster: &ClusterDocument,
    taken: &Taken,
    screen: &Screen,
    copies: &mut [Copy],
) {
    for LeftOut { repository, .. } in &taken.left_out {
        let other = &config.repositories[*repository];
        let filled = fill_one(other, from, cluster, taken, screen).await;
        let mut copies = copies.iter_mut();
        if let Some(copy) = copies.find(|copy| copy.repository == other.name) {
            copy.problem = filled.err().map(|error| format!("{error:#}"));
        }
    }
}

async fn fill_one(
    other: &config::Repository,
    from: &Repository,
    cluster: &ClusterDocument,
    taken: &Taken,
    screen: &Screen,
) -> Result<()> {
    let (id, label) = (cluster.id(), taken.descriptor.label.parse()?);
    // Whether it answers is found out soon; what it then takes may take its time.
    let probe = open::open_configured(other, open::IMPATIENT).await?;
    open::require_repository(&probe).await?;
    let known = probe.fetch_cluster(id).await?;
    let known = known.context("it does not know the cluster: run `walden init` again")?;
    if let Some(what) = known.difference(cluster) {
        anyhow::bail!("it knows the cluster with another {what}");
    }
    // A backup whose WAL is elsewhere is none.
    require_wal(&probe, cluster, &taken.wal).await?;
    let to = open::open_configured(other, repository::store::Deadlines::default()).await?;
    let listing =
        |objects: Vec<Listed>| objects.into_iter().map(|object| (object.path, object.size));
    let there = to.list_objects(id).await.context("list what it has")?;
    let here = from.list_objects(id).await.context("list the backup")?;
    let mut lacks = missing(listing(here), listing(there));
    let is_of = |one: &BackupLabel| *one == label;
    lacks.retain(|key| matches!(key, ObjectKey::Backup { label, .. } if is_of(label)));
    let progress = screen.progress(&format!("to {}", other.name), Some(lacks.bytes()));
    let tell = |event: CopyEvent<'_>| {
        if let CopyEvent::Done(item) = event {
            progress.advance(item.size);
        }
    };
    let report = copy_missing(from, &to, &lacks, CopyLimits::default(), &tell).await;
    progress.finish();
    match report
        .failures
        .into_iter()
        .find_map(|failed| Some((failed.key, failed.error?)))
    {
        // What counts is what can be read there.
        None => to
            .fetch_backup(id, &label)
            .await
            .map(drop)
            .context("read it back"),
        Some((key, error)) => Err(anyhow::Error::from(error).context(key.to_string())),
    }
}
