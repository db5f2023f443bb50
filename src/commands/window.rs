//! `walden window`: the moments one can go back to, as a table, a document or a page. What they are is `pitr`'s answer (`windows.rs` has it
//! as a document), the page is `window_page.rs`.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, ValueHint};
use futures_util::future::join_all;
use jiff::Timestamp;
use repository::{Deadlines, durable};
use serde::Serialize;

use super::Globals;
use crate::cli::{IdentityArgs, SourceArgs};
use crate::each::{self, Unseen};
use crate::exit_code::ExitCode;
use crate::report::{Align, Table, time};
use crate::windows::{BackupRange, CommitPoint, RepositoryWindows, TimelineBranch, policy_if_any};
use crate::{open, window_page};

/// Permission bits of the page, less the umask.
const PAGE_MODE: u32 = 0o644;

/// Show the moments you can go back to
///
/// For each repository and each backup in it the range that it opens, what is missing, the last commit that can be reached, and the
/// timelines. Reads repositories alone. Without a key, the last commit is known by its time only.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  walden window
  walden window s3://acme-pg-eu/prod --identity file:walden.key
  walden window --html window.html
  walden window --json | jq '.repositories[].last_commit'")]
pub(crate) struct WindowArgs {
    /// Write one self-contained page to FILE (`-`: to stdout), to look at or to print
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "json")]
    pub(crate) html: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) identity: IdentityArgs,

    #[command(flatten)]
    pub(crate) source: SourceArgs,
}

#[derive(Debug, Serialize)]
struct Report {
    /// When it was asked.
    asked: Timestamp,
    repositories: Vec<RepositoryWindows>,
    /// Repositories that could not be looked at.
    unseen: Vec<Unseen>,
}

/// Ends with 3 if something between the oldest moment and the newest cannot be reached, or nothing can.
pub(crate) async fn run(args: WindowArgs, globals: &Globals) -> Result<ExitCode> {
    let config = args
        .source
        .choose(globals.load_config(&args.identity.overrides(&args.source))?)?;
    let places = each::open_each(
        &config,
        args.source.cluster.as_deref(),
        Deadlines::default(),
    )
    .await?;
    let policy = match args.identity.reference() {
        // Named here and not usable: an error. A configured one that is elsewhere is not needed.
        Some(_) => open::open_policy(&config, true).await?,
        None => policy_if_any(&config).await,
    };
    let policy = &policy;
    let gathered = places.each.iter().map(|place| async move {
        RepositoryWindows::gather(&place.repository, &place.cluster, policy)
            .await
            .with_context(|| format!("read what can be reached in {}", place.repository.url()))
    });
    let gathered = join_all(gathered).await;
    let repositories = places.each.iter().map(|place| &place.repository);
    let seen = each::collect(repositories.zip(gathered))?;
    let report = Report {
        asked: Timestamp::now(),
        repositories: seen.each,
        unseen: [places.unseen, seen.unseen].concat(),
    };
    match &args.html {
        Some(path) => {
            write_page(
                path,
                &window_page::render(&report.repositories, &report.unseen, report.asked),
            )?;
            if path != Path::new("-") {
                let what = format!("the page is written to {}", path.display());
                globals.screen.say(&what);
            }
        }
        None => globals.output.print("walden.window", &report, || {
            report.to_text(globals.output.color)
        })?,
    }
    let is_unwell = |windows: &RepositoryWindows| windows.has_gaps() || windows.newest.is_none();
    let is_unwell = report.repositories.iter().any(is_unwell) || !report.unseen.is_empty();
    Ok(if is_unwell {
        ExitCode::Warnings
    } else {
        ExitCode::Done
    })
}

fn write_page(path: &Path, page: &str) -> Result<()> {
    if path == Path::new("-") {
        let mut stdout = std::io::stdout().lock();
        return match stdout.write_all(page.as_bytes()) {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            written => Ok(written?),
        };
    }
    durable::replace(path, PAGE_MODE, page.as_bytes())
        .with_context(|| format!("write the page to {}", path.display()))
}

impl Report {
    fn to_text(&self, color: bool) -> String {
        let mut text = String::new();
        for (index, repository) in self.repositories.iter().enumerate() {
            if index > 0 {
                text.push('\n');
            }
            text.push_str(&repository_text(repository, color));
        }
        for unseen in &self.unseen {
            text.push_str(&format!("\n{unseen}\n"));
        }
        text
    }
}

fn repository_text(windows: &RepositoryWindows, color: bool) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| text.push_str(&format!("{name:<16} {value}\n"));
    line(
        "repository",
        &format!(
            "{} ({}), cluster {}",
            windows.name, windows.url, windows.cluster
        ),
    );
    match (&windows.oldest_promised, &windows.newest) {
        (Some(oldest), Some(newest)) => {
            line(
                "oldest",
                &format!(
                    "{}, from backup {}: no retention is configured, nothing expires",
                    oldest.moment, oldest.backup
                ),
            );
            line("newest", &newest.to_string());
        }
        _ if windows.backups.is_empty() => line(
            "nothing",
            "can be reached: there is no backup; take one with `walden backup`",
        ),
        _ => line("nothing", "can be reached: no backup is usable"),
    }
    if let Some(commit) = &windows.last_commit {
        line("last commit", &commit_text(commit));
    } else if windows.lacks_key {
        line(
            "last commit",
            "not known: no key opens the WAL (--identity); times are from what objects say of themselves",
        );
    }
    if !windows.backups.is_empty() {
        text.push('\n');
        text.push_str(&ranges_table(&windows.backups).to_text(color));
    }
    if windows.timelines.len() > 1 {
        text.push_str("\nTimelines:\n");
        text.push_str(&tree(&windows.timelines));
    }
    if windows.has_gaps() {
        text.push_str("\nWhat cannot be reached:\n");
        for what in windows.unreachable() {
            text.push_str(&format!("  {what}\n"));
        }
    }
    text
}

pub(crate) fn commit_text(commit: &CommitPoint) -> String {
    let moment = commit.time.map(time).unwrap_or_default();
    format!("{moment}, transaction {}, LSN {}", commit.xid, commit.lsn)
}

fn ranges_table(backups: &[BackupRange]) -> Table<6> {
    let mut table = Table::new([
        ("BACKUP", Align::Left),
        ("FROM", Align::Left),
        ("TO", Align::Left),
        ("UP TO LSN", Align::Left),
        ("TIMELINE", Align::Right),
        ("ENDS", Align::Left),
    ]);
    for backup in backups {
        let from = backup
            .from
            .time
            .map_or_else(String::new, |time| format!("{time:.6}"));
        if backup.ranges.is_empty() {
            table.push([
                backup.label.clone(),
                from,
                "nothing".to_owned(),
                String::new(),
                String::new(),
                String::new(),
            ]);
            continue;
        }
        for (index, range) in backup.ranges.iter().enumerate() {
            let later = range.to.time.filter(|to| Some(*to) >= backup.from.time);
            let (label, from) = match index {
                0 => (backup.label.clone(), from.clone()),
                _ => Default::default(),
            };
            table.push([
                label,
                from,
                later.map_or_else(|| "no later transaction".to_owned(), |to| to.to_string()),
                range.to.lsn.clone(),
                range.timeline.to_string(),
                range.gap.clone().unwrap_or_default(),
            ]);
        }
    }
    table
}

/// Timelines, each below the one it branched off.
fn tree(timelines: &[TimelineBranch]) -> String {
    let mut text = String::new();
    // A parent's number is lower, so this ends.
    fn branch(text: &mut String, all: &[TimelineBranch], one: &TimelineBranch, depth: usize) {
        let indent = "   ".repeat(depth);
        let origin = match &one.switch_lsn {
            Some(lsn) => format!(" from {lsn} on"),
            None if one.known => String::new(),
            None => " (where it branched off is not known without a key)".to_owned(),
        };
        let stored = match (&one.stored_from, &one.stored_to) {
            (Some(from), Some(to)) => format!(", WAL {from} to {to}"),
            _ => ", no WAL".to_owned(),
        };
        let reason = match one.reason.is_empty() {
            true => String::new(),
            false => format!(" ({})", one.reason),
        };
        text.push_str(&format!(
            "  {indent}{}{origin}{stored}{reason}\n",
            one.timeline
        ));
        for child in all
            .iter()
            .filter(|child| child.parent == Some(one.timeline))
        {
            branch(text, all, child, depth + 1);
        }
    }
    let is_root = |one: &&TimelineBranch| {
        one.parent
            .is_none_or(|parent| timelines.iter().all(|other| other.timeline != parent))
    };
    for root in timelines.iter().filter(is_root) {
        branch(&mut text, timelines, root, 0);
    }
    text
}
