//! A backup's way to the other configured repositories, once it stands in one: it is read from the server and sealed only once. Owns what
//! is copied and what is said of each repository; copying is `repository::copy`'s. What does not get over now, `walden run` brings later.

use anyhow::{Context, Result};
use repository::Repository;
use repository::copy::{CopyEvent, CopyLimits, copy_missing, missing};
use repository::key::{BackupLabel, ClusterId, ObjectKey};
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

/// Stores the backup in every other repository that is configured, one after the other. Dropped in between, `copies` has those that were
/// done.
pub(super) async fn store(
    config: &Config,
    from: &Repository,
    cluster: ClusterId,
    label: &BackupLabel,
    screen: &Screen,
    copies: &mut Vec<Copy>,
) {
    for other in others(config, from) {
        let stored = store_in(other, from, cluster, label, screen).await;
        let problem = stored.err().map(|error| format!("{error:#}"));
        copies.push(Copy::new(other, problem));
    }
}

/// Adds those that a signal left out.
pub(super) fn add_left_out(config: &Config, from: &Repository, copies: &mut Vec<Copy>) {
    for other in others(config, from).skip(copies.len()) {
        let why = "a signal ended the copying".to_owned();
        copies.push(Copy::new(other, Some(why)));
    }
}

fn others<'a>(
    config: &'a Config,
    from: &'a Repository,
) -> impl Iterator<Item = &'a config::Repository> {
    let all = config.repositories.iter();
    all.filter(|one| one.name != from.name())
}

impl Copy {
    fn new(other: &config::Repository, problem: Option<String>) -> Self {
        Self {
            repository: other.name.clone(),
            url: other.url.clone(),
            problem,
        }
    }
}

async fn store_in(
    other: &config::Repository,
    from: &Repository,
    cluster: ClusterId,
    label: &BackupLabel,
    screen: &Screen,
) -> Result<()> {
    // Whether it answers is found out soon; what it then takes may take its time.
    let probe = open::open_configured(other, open::IMPATIENT).await?;
    open::require_repository(&probe).await?;
    let to = open::open_configured(other, repository::store::Deadlines::default()).await?;
    let known = to.fetch_cluster(cluster).await?;
    known.context("it does not know the cluster: run `walden init` again")?;
    let listing =
        |objects: Vec<Listed>| objects.into_iter().map(|object| (object.path, object.size));
    let there = to.list_objects(cluster).await.context("list what it has")?;
    let here = from
        .list_objects(cluster)
        .await
        .context("list the backup")?;
    let mut lacks = missing(listing(here), listing(there));
    lacks.retain(|key| matches!(key, ObjectKey::Backup { label: one, .. } if one == label));
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
            .fetch_backup(cluster, label)
            .await
            .map(drop)
            .context("read it back"),
        Some((key, error)) => Err(anyhow::Error::from(error).context(key.to_string())),
    }
}
