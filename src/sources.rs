//! The repositories that a reading command works on: all that are configured, or the one that is named, read as one. Owns what is said of
//! those that did not answer and of what came from others than the first. Asking and falling over is the `repository` crate's.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use repository::several::Account;
use repository::{ErrorClass, Repositories, durable};
use serde_json::{Value, json};

use crate::config::Config;
use crate::exit_code::ExitCode;
use crate::failure::Advise;
use crate::open;

/// Where a hook remembers which repositories did not answer, beside the file it delivers: each hook is a process of its own.
const MEMORY_FILE: &str = "walden-unanswered-repositories";
/// Largest such file that is read, in bytes.
const MAX_MEMORY_BYTES: u64 = 64 << 10;

/// Opens what is configured, and asks that at least one of them is a repository.
///
/// # Errors
/// As [`open::repositories`]; none of them is one: exit code 10; none answers.
pub(crate) async fn open_existing(config: &Config) -> Result<Repositories> {
    let repositories = Repositories::new(open::repositories(config).await?);
    if let [only] = repositories.members() {
        open::require_repository(only).await?;
        return Ok(repositories);
    }
    let found = repositories.fetch_identity().await;
    let asked = || format!("ask for the repositories at {}", repositories.urls());
    if found.with_context(asked)?.is_some() {
        return Ok(repositories);
    }
    Err(anyhow!("{}: there is no repository", repositories.urls()))
        .hint("check the URLs, or make one with `walden init`")
        .exit_code(ExitCode::NoRepository)
}

/// Takes over what earlier hooks that delivered into `folder` learned. What cannot be read only costs time.
pub(crate) fn remember(repositories: &Repositories, folder: &Path) {
    if !repositories.is_several() {
        return;
    }
    let path = folder.join(MEMORY_FILE);
    let is_small = std::fs::metadata(&path).is_ok_and(|file| file.len() <= MAX_MEMORY_BYTES);
    if is_small && let Ok(text) = std::fs::read_to_string(&path) {
        repositories.remember(&text);
    }
}

/// Leaves for later hooks what this one learned.
pub(crate) fn leave_memory(repositories: &Repositories, folder: &Path) {
    let path = folder.join(MEMORY_FILE);
    let memory = repositories.memory();
    let is_known = std::fs::read_to_string(&path).unwrap_or_default() == memory;
    if !repositories.is_several() || is_known {
        return;
    }
    if let Err(error) = durable::replace(&path, 0o600, memory.as_bytes()) {
        tracing::debug!("{}: not remembered: {error}", path.display());
    }
}

/// Repositories that did not answer when something was listed.
pub(crate) type Unanswered = [(String, repository::Error)];

/// Says which repositories did not answer, and what that means.
pub(crate) fn warn_of(unanswered: &Unanswered) {
    for (name, error) in unanswered {
        let kind = match error.class() {
            ErrorClass::Retry => "did not answer",
            _ => "cannot be read",
        };
        tracing::warn!("repository {name} {kind}: what it alone holds is not considered: {error}");
    }
}

/// For programs: who did not answer, and what came from others than the first.
pub(crate) fn to_json(unanswered: &Unanswered, account: &Account) -> Value {
    let unanswered: Vec<Value> = unanswered
        .iter()
        .map(|(name, error)| json!({ "repository": name, "problem": error.to_string() }))
        .collect();
    let named: Vec<Value> = account
        .named
        .iter()
        .map(|one| {
            json!({
                "repository": one.repository,
                "object": one.object,
                "problem": one.problem,
                "taken_from": one.taken_from,
            })
        })
        .collect();
    json!({ "unanswered": unanswered, "taken": account.taken, "fell_over": named })
}

/// For people: a line for each repository that stood in for another.
pub(crate) fn lines(account: &Account) -> Vec<String> {
    let taken = account.taken.iter();
    let mut lines: Vec<String> = taken
        .map(|(name, count)| {
            format!(
                "taken from repository {name}: {}",
                crate::units::counted(*count, "object")
            )
        })
        .collect();
    for one in &account.named {
        lines.push(format!(
            "  {} from {}, as {} could not give it: {}",
            one.object, one.taken_from, one.repository, one.problem
        ));
    }
    lines
}
