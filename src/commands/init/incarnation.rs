//! `walden init --new-incarnation`: after a conflict that only a human can settle, opens a place of its own for the server's WAL beside
//! what is stored, and has the configuration name it. Owns that decision; nothing that is stored is touched.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use repository::Repository;
use repository::cluster::ClusterDocument;
use repository::durable;
use repository::key::ClusterId;
use serde::Serialize;

use super::super::Globals;
use crate::cli::ServerArgs;
use crate::config::{Config, Overrides};
use crate::exit_code::ExitCode;
use crate::failure::Advise;
use crate::server_check::{self, ServerFacts};
use crate::{open, setup};

/// What was opened, for `--json` and for people.
#[derive(Debug, Serialize)]
struct Report {
    repositories: Vec<String>,
    cluster: String,
    parent: String,
    cluster_is_new: bool,
    config: PathBuf,
    config_is: FileState,
    /// The server was restored, and is not let in before `walden init --adopt`.
    restored_from: Option<String>,
}

/// What became of the configuration file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum FileState {
    /// It names the incarnation now.
    Written,
    /// It did already.
    Unchanged,
    /// It could not be changed: the user has to.
    LeftToYou,
}

/// An incarnation that the repositories know.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    document: ClusterDocument,
    /// No WAL and no backup is stored of it, anywhere.
    is_empty: bool,
}

/// Opens the next incarnation, or finds the one that an earlier call opened and nothing was stored in yet.
pub(super) async fn run(server: ServerArgs, globals: &Globals) -> Result<ExitCode> {
    let overrides = Overrides {
        conninfo: server.conninfo,
        slot: server.slot,
        ..Overrides::default()
    };
    let config = globals.load_config(&overrides)?;
    let (Some(file), Some(configured)) = (config.file.clone(), config.postgres.cluster()) else {
        return Err(anyhow!("no configuration file says which cluster goes on"))
            .hint("`walden init URL` makes one; a first incarnation needs no --new-incarnation")
            .exit_code(ExitCode::Usage);
    };
    let info = open::connection_info(&config)?;
    let mut facts = ServerFacts::ask(&info, &config.postgres.slot).await;
    let restored_from = facts.restored_from.take();
    let findings = server_check::judge(&facts, &config.postgres.slot, config.archive.rpo);
    if server_check::has_errors(&findings) {
        return super::refuse(&facts, &findings, globals);
    }
    let mut document = setup::cluster_of(&facts)?;
    if document.system_identifier != configured.system_identifier {
        return Err(anyhow!(
            "the server's system identifier is {}, the configuration names {}",
            document.system_identifier,
            configured.system_identifier
        ))
        .hint("another cluster is no incarnation of this one: make it known with `walden init URL`")
        .exit_code(ExitCode::Integrity);
    }
    let repositories = open::repositories(&config).await?;
    let mut known = Vec::new();
    for repository in &repositories {
        open::require_repository(repository).await?;
        survey(repository, configured, &mut known).await?;
    }
    let Some((number, parent)) = choose(configured, &document, &known) else {
        return Err(anyhow!("the cluster {configured} is not known there"))
            .hint("a first incarnation needs no --new-incarnation: `walden init URL` makes the cluster known")
            .exit_code(ExitCode::Integrity);
    };
    document.incarnation = number;
    document.parent = Some(parent.to_string());
    // One and the same document everywhere, also where an earlier call got half-way.
    let opened = known.iter().find(|one| one.document.id() == document.id());
    let document = opened.map_or(document, |opened| opened.document.clone());
    let mut cluster_is_new = false;
    for repository in &repositories {
        cluster_is_new |= setup::make_cluster(repository, &document).await?;
    }
    let config_is = name_in(&file, &config, number);
    let report = Report {
        repositories: repositories
            .iter()
            .map(|repository| repository.url().to_owned())
            .collect(),
        cluster: document.id().to_string(),
        parent: parent.to_string(),
        cluster_is_new,
        config: file,
        config_is,
        restored_from,
    };
    globals
        .output
        .print("walden.new-incarnation", &report, || report.to_text())?;
    Ok(match config_is {
        FileState::LeftToYou => ExitCode::Warnings,
        _ => ExitCode::Done,
    })
}

/// Adds what one repository knows of the cluster's incarnations.
async fn survey(
    repository: &Repository,
    configured: ClusterId,
    known: &mut Vec<Known>,
) -> Result<()> {
    let clusters = repository.list_clusters().await?;
    let same = |id: &ClusterId| id.system_identifier == configured.system_identifier;
    for id in clusters.into_iter().filter(same) {
        let Some(document) = repository.fetch_cluster(id).await? else {
            continue;
        };
        let catalog = repository.list(id).await?;
        let is_empty = catalog.timelines.is_empty() && catalog.backups.is_empty();
        match known.iter_mut().find(|one| one.document.id() == id) {
            Some(one) => one.is_empty &= is_empty,
            None => known.push(Known { document, is_empty }),
        }
    }
    Ok(())
}

/// The incarnation to go on in, and its parent; `None` if the configured one is not known. A later one that is empty was opened by a call
/// like this one; opening another beside it would help nobody.
fn choose(
    configured: ClusterId,
    server: &ClusterDocument,
    known: &[Known],
) -> Option<(u32, ClusterId)> {
    known.iter().find(|one| one.document.id() == configured)?;
    let last = known.iter().max_by_key(|one| one.document.incarnation)?;
    let number = last.document.incarnation;
    let mut same = server.clone();
    same.incarnation = number;
    let parent = last.document.parent.as_deref();
    let is_reusable = number > 0 && last.is_empty && last.document.difference(&same).is_none();
    match parent.and_then(|parent| parent.parse().ok()) {
        Some(parent)
            if is_reusable && (number == configured.incarnation || parent == configured) =>
        {
            Some((number, parent))
        }
        _ => Some((number.checked_add(1)?, configured)),
    }
}

/// Has the configuration file name the incarnation.
fn name_in(file: &Path, config: &Config, number: u32) -> FileState {
    if config.postgres.incarnation == number {
        return FileState::Unchanged;
    }
    match try_name_in(file, number) {
        Ok(true) => FileState::Written,
        Ok(false) => FileState::LeftToYou,
        Err(error) => {
            tracing::warn!("{error:#}");
            FileState::LeftToYou
        }
    }
}

fn try_name_in(file: &Path, number: u32) -> Result<bool> {
    let action = || format!("change {}", file.display());
    // A link stays one.
    let file = file.canonicalize().with_context(action)?;
    let text = std::fs::read_to_string(&file).with_context(action)?;
    let Some(changed) = Config::with_incarnation(&text, &file, number) else {
        return Ok(false);
    };
    let before = file.metadata().with_context(action)?;
    durable::replace(
        &file,
        before.permissions().mode() & 0o7777,
        changed.as_bytes(),
    )?;
    let after = file.metadata().with_context(action)?;
    if (before.uid(), before.gid()) != (after.uid(), after.gid()) {
        durable::set_owner(&file, before.uid(), before.gid())?;
    }
    Ok(true)
}

impl Report {
    fn to_text(&self) -> String {
        let mut text = String::new();
        for repository in &self.repositories {
            text.push_str(&format!("repository  {repository}\n"));
        }
        let config = self.config.display();
        let incarnation = self.cluster.rsplit('.').next().unwrap_or_default();
        text.push_str(&format!(
            "cluster     {}, goes on from {} ({})\n",
            self.cluster,
            self.parent,
            if self.cluster_is_new {
                "opened"
            } else {
                "was there, still empty"
            }
        ));
        text.push_str(&match self.config_is {
            FileState::Written => format!("config      {config} (incarnation = {incarnation} written)\n"),
            FileState::Unchanged => format!("config      {config} (unchanged)\n"),
            FileState::LeftToYou => format!(
                "config      {config}: write incarnation = {incarnation} into its [postgres] table yourself\n"
            ),
        });
        if let Some(from) = &self.restored_from {
            text.push_str(&format!(
                "warning: the server was restored from {from}: it is let in after `walden init --adopt`\n"
            ));
        }
        text.push_str(&format!(
            "\nWhat is stored of {parent} stays, and restores with --cluster {parent}.\n\
             Next: the same line into every other copy of the configuration, restart `walden run`, then `walden backup`:\n\
             nothing of {cluster} can be restored before it has a backup of its own.\n",
            parent = self.parent,
            cluster = self.cluster
        ));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(incarnation: u32, parent: Option<&str>) -> ClusterDocument {
        ClusterDocument {
            incarnation,
            parent: parent.map(str::to_owned),
            ..repository::testing::cluster_document(7)
        }
    }

    fn known(incarnation: u32, parent: Option<&str>, is_empty: bool) -> Known {
        Known {
            document: document(incarnation, parent),
            is_empty,
        }
    }

    #[track_caller]
    fn check(configured: u32, known: &[Known], expected: Option<(u32, &str)>) {
        let configured = ClusterId {
            system_identifier: 7,
            incarnation: configured,
        };
        let chosen = choose(configured, &document(0, None), known);
        let chosen = chosen.map(|(number, parent)| (number, parent.to_string()));
        let expected = expected.map(|(number, parent)| (number, parent.to_owned()));
        assert_eq!(chosen, expected, "{known:?}");
    }

    #[test]
    fn an_incarnation_that_nothing_was_stored_in_is_found_again() {
        let first = known(0, None, false);
        check(0, &[], None);
        check(0, std::slice::from_ref(&first), Some((1, "7")));
        // A first one that is empty has no conflict yet, but a human asked.
        check(0, &[known(0, None, true)], Some((1, "7")));
        let empty = known(1, Some("7"), true);
        check(0, &[first.clone(), empty.clone()], Some((1, "7")));
        check(1, &[first.clone(), empty.clone()], Some((1, "7")));
        let used = known(1, Some("7"), false);
        check(1, &[first.clone(), used.clone()], Some((2, "7.1")));
        check(0, &[first.clone(), used.clone()], Some((2, "7")));
        // Somebody else's, for another purpose.
        check(
            1,
            &[first.clone(), used, known(2, Some("7"), true)],
            Some((3, "7.1")),
        );
        let mut resized = empty;
        resized.document.wal_segment_size = 2 << 20;
        check(0, &[first, resized], Some((2, "7")));
    }
}
