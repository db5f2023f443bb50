//! For commands that look at each configured repository by itself (`list`, `window`, `verify`): all of them, or the one that is named. One that
//! cannot be looked at keeps nobody from the others, and is told. Reading several as one is `sources.rs`'s.

use std::fmt;

use anyhow::{Result, anyhow};
use futures_util::future::join_all;
use repository::cluster::ClusterDocument;
use repository::{Deadlines, Repository};
use serde::Serialize;

use crate::config::Config;
use crate::exit_code::ExitCode;
use crate::failure::Failure;
use crate::open;

/// A repository and the cluster in it.
pub(crate) struct Place {
    pub(crate) repository: Repository,
    pub(crate) cluster: ClusterDocument,
}

/// A repository that could not be looked at.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Unseen {
    /// Its name in the configuration.
    pub(crate) repository: String,
    pub(crate) url: String,
    /// Why.
    pub(crate) problem: String,
    /// Whether it answers, and what it says is wrong.
    #[serde(skip)]
    pub(crate) is_damaged: bool,
}

impl Unseen {
    pub(crate) fn new(repository: &Repository, error: &anyhow::Error) -> Self {
        let failure = Failure::of(error);
        Self {
            repository: repository.name().to_owned(),
            url: repository.url().to_owned(),
            problem: failure.line(),
            is_damaged: failure.code == ExitCode::Integrity,
        }
    }
}

impl fmt::Display for Unseen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            repository,
            url,
            problem,
            ..
        } = self;
        write!(
            f,
            "repository {repository} ({url}) was not looked at: {problem}"
        )
    }
}

/// What came of looking at each of several.
pub(crate) struct Seen<T> {
    pub(crate) each: Vec<T>,
    pub(crate) unseen: Vec<Unseen>,
}

/// Opens every configured repository and finds the cluster in it: `named` on the command line, or the configured one. Of several, one that does
/// not answer within `patience` is not waited for.
///
/// # Errors
/// As [`open::require_repository`] and [`open::find_cluster`] for the first one, if none of them can be looked at.
pub(crate) async fn open_each(
    config: &Config,
    named: Option<&str>,
    patience: Deadlines,
) -> Result<Seen<Place>> {
    let patience = match config.repositories.len() {
        1 => Deadlines::default(),
        _ => patience,
    };
    let repositories = open::repositories(config).await?;
    let probes = open::repositories_with(config, patience).await?;
    let asked = repositories.iter().zip(&probes);
    let asked = asked.map(|(repository, probe)| async move {
        open::require_repository(probe).await?;
        let cluster = open::find_cluster(config, probe, named).await?;
        Ok(Place {
            repository: repository.clone(),
            cluster,
        })
    });
    collect(repositories.iter().zip(join_all(asked).await))
}

/// Parts what was seen from what was not.
///
/// # Errors
/// The first one's, if nothing was seen.
pub(crate) fn collect<'a, T>(
    all: impl Iterator<Item = (&'a Repository, Result<T>)>,
) -> Result<Seen<T>> {
    let (mut each, mut unseen, mut first) = (Vec::new(), Vec::new(), None);
    for (repository, one) in all {
        match one {
            Ok(one) => each.push(one),
            Err(error) => {
                unseen.push(Unseen::new(repository, &error));
                first.get_or_insert(error);
            }
        }
    }
    match each.is_empty() {
        true => Err(first.unwrap_or_else(|| anyhow!("no repository is configured"))),
        false => Ok(Seen { each, unseen }),
    }
}
