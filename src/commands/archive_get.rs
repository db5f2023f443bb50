//! `walden archive-get`: the `restore_command` hook. Owns the retries a hook has and what a standby is told; the answer itself is
//! `pitr::archive_get`.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, ValueHint};
use pitr::archive_get::{Answer, answer};
use pitr::scope::RestoreScope;
use pitr::segment_source::SegmentSource;
use pitr::settle::Settled;
use repository::{Deadlines, Repositories, durable};
use wal_format::{SegmentName, WalFileName};

use super::Globals;
use crate::config::{Config, Overrides};
use crate::exit_code::ExitCode;
use crate::{open, sources};

/// Permission bits of what PostgreSQL reads.
const FILE_MODE: u32 = 0o600;
/// Kept in a standby's `pg_wal` while a segment it asked for could not be answered.
const UNPROVEN_SEGMENT_FILE: &str = "walden-unproven-segment";
/// The same for a timeline history file.
const UNPROVEN_HISTORY_FILE: &str = "walden-unproven-history";

/// Hook for restore_command: fetch one WAL or history file
///
/// Exits 0 when the file was delivered, 1 only when every repository is proven not to hold it, and 126 for anything else:
/// PostgreSQL reads 1 as the end of WAL and opens the database.
#[derive(Debug, Args)]
#[command(after_help = "\
In postgresql.conf:
  restore_command = 'walden archive-get --config /etc/walden/walden.toml %f %p'
`walden restore` writes this setting itself.

Errors of the store are retried for [restore] patience, 10 minutes unless the configuration says otherwise.")]
pub(crate) struct ArchiveGetArgs {
    /// Name of the file, as %f gives it
    #[arg(value_name = "NAME")]
    pub(crate) name: String,

    /// Where to put it, as %p gives it
    #[arg(value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub(crate) path: PathBuf,

    /// Plan of a restore, as `walden restore` wrote it: serves its path and nothing else
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) plan: Option<PathBuf>,
}

/// Serves one file. What it returns as an error is never the end of WAL.
pub(crate) async fn run(args: ArchiveGetArgs, globals: &Globals) -> Result<ExitCode> {
    let Some((standby, name)) = Standby::here(&args.path).zip(args.name.parse().ok()) else {
        return serve(&args, globals).await;
    };
    if let Some(unproven) = standby.waits_for(name)? {
        tracing::warn!(
            file = args.name,
            "{unproven} of a newer timeline is not answered yet: this file of an older one stays unserved"
        );
        return Ok(ExitCode::ProvenAbsent);
    }
    match serve(&args, globals).await {
        Ok(code) => {
            standby.note_answer(name)?;
            Ok(code)
        }
        // The standby asks again by itself; for it "absent" only means "not now".
        Err(error) => {
            tracing::error!("{error:#}");
            standby.note_failure(name)?;
            Ok(ExitCode::ProvenAbsent)
        }
    }
}

async fn serve(args: &ArchiveGetArgs, globals: &Globals) -> Result<ExitCode> {
    let config = globals.load_hook_config(&Overrides::default())?;
    let deadlines = Deadlines {
        // Recovery that aborts needs a human, recovery that waits does not.
        total: config.restore.patience,
        ..Deadlines::default()
    };
    let repositories = Repositories::new(open::repositories_with(&config, deadlines).await?);
    let folder = args.path.parent().unwrap_or(Path::new(""));
    sources::remember(&repositories, folder);
    let served = serve_from(&repositories, &config, args).await;
    sources::leave_memory(&repositories, folder);
    served
}

async fn serve_from(
    repositories: &Repositories,
    config: &Config,
    args: &ArchiveGetArgs,
) -> Result<ExitCode> {
    let scope = args.plan.as_deref().map(read_scope).transpose()?;
    let allow_plain = scope.as_ref().is_some_and(|scope| scope.allow_plain);
    let policy = open::open_policy(config, allow_plain).await?;
    let (cluster, size) = match &scope {
        Some(scope) => (scope.cluster()?, scope.size()?),
        None => {
            let cluster = open::find_cluster(config, repositories, None).await?;
            (cluster.id(), cluster.segment_size()?)
        }
    };
    let source = SegmentSource {
        repository: repositories.clone(),
        policy,
        cluster,
        size,
        settled: scope
            .as_ref()
            .map_or_else(|| Ok(Settled::default()), RestoreScope::settled)?,
    };
    match answer(&source, scope.as_ref(), &args.name).await? {
        Answer::Serve(bytes) => {
            durable::replace(&args.path, FILE_MODE, &bytes)
                .with_context(|| format!("deliver {}", args.name))?;
            let from = repositories.account().taken.into_keys().collect::<Vec<_>>();
            tracing::info!(file = args.name, also_from = from.join(", "), "delivered");
            Ok(ExitCode::Done)
        }
        Answer::Absent => {
            tracing::info!(file = args.name, "not in the repository: proven");
            Ok(ExitCode::ProvenAbsent)
        }
        Answer::Unneeded(why) => {
            tracing::warn!(
                file = args.name,
                "not served, and not needed: it lies behind the target: {why}"
            );
            Ok(ExitCode::ProvenAbsent)
        }
    }
}

fn read_scope(path: &Path) -> Result<RestoreScope> {
    let bytes = std::fs::read(path).with_context(|| format!("read the plan {}", path.display()))?;
    Ok(RestoreScope::parse(&bytes)?)
}

/// A standby asks again and again, and falls back to older timelines in between: after a request that could not be answered, the
/// same segment of an older timeline, a dead branch perhaps, must not be served. If it was a history file, the standby does not even
/// know of the newer timeline: nothing of an older one is served then.
struct Standby {
    folder: PathBuf,
}

impl Standby {
    /// The standby whose data directory is the working directory; `None` for other recoveries.
    fn here(destination: &Path) -> Option<Self> {
        let folder = destination.parent()?.to_owned();
        Path::new("standby.signal")
            .exists()
            .then_some(Self { folder })
    }

    fn marker(&self, name: WalFileName) -> PathBuf {
        self.folder.join(match name {
            WalFileName::History(_) => UNPROVEN_HISTORY_FILE,
            _ => UNPROVEN_SEGMENT_FILE,
        })
    }

    /// The file that could not be answered, if there is one.
    fn unproven(&self, marker: &str) -> Result<Option<WalFileName>> {
        let path = self.folder.join(marker);
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            text => text.with_context(|| format!("read {}", path.display()))?,
        };
        let name = text.trim().parse();
        name.map(Some)
            .with_context(|| format!("{} does not name a WAL file", path.display()))
    }

    /// The file of a newer timeline that must be answered before this one may be.
    fn waits_for(&self, asked: WalFileName) -> Result<Option<WalFileName>> {
        let WalFileName::Segment(asked) = asked else {
            return Ok(None);
        };
        let history = self.unproven(UNPROVEN_HISTORY_FILE)?;
        let segment = self.unproven(UNPROVEN_SEGMENT_FILE)?;
        let holds_back = |unproven: &WalFileName| match unproven {
            WalFileName::History(newer) => asked.timeline < *newer,
            WalFileName::Segment(newer) => is_same_on_older(asked, *newer),
            _ => false,
        };
        Ok(history
            .filter(&holds_back)
            .or_else(|| segment.filter(&holds_back)))
    }

    fn note_failure(&self, name: WalFileName) -> Result<()> {
        durable::replace(&self.marker(name), FILE_MODE, name.to_string().as_bytes())
            .context("remember the unanswered request")
    }

    fn note_answer(&self, name: WalFileName) -> Result<()> {
        let unproven = match name {
            WalFileName::History(_) => self.unproven(UNPROVEN_HISTORY_FILE)?,
            _ => self.unproven(UNPROVEN_SEGMENT_FILE)?,
        };
        if unproven == Some(name) {
            durable::remove_file(&self.marker(name)).context("forget the unanswered request")?;
        }
        Ok(())
    }
}

fn is_same_on_older(asked: SegmentName, unproven: SegmentName) -> bool {
    asked.timeline < unproven.timeline
        && (asked.log, asked.segment) == (unproven.log, unproven.segment)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standby() -> (tempfile::TempDir, Standby) {
        let folder = tempfile::tempdir().unwrap();
        let standby = Standby {
            folder: folder.path().to_owned(),
        };
        (folder, standby)
    }

    fn waits(standby: &Standby, name: &str) -> bool {
        standby.waits_for(name.parse().unwrap()).unwrap().is_some()
    }

    #[test]
    fn an_unanswered_segment_keeps_the_same_one_of_older_timelines_back() {
        let (_folder, standby) = standby();
        let (newer, older) = ("000000020000000000000003", "000000010000000000000003");
        assert!(!waits(&standby, older));
        standby.note_failure(newer.parse().unwrap()).unwrap();
        assert!(waits(&standby, older));
        assert!(!waits(&standby, newer));
        assert!(!waits(&standby, "000000010000000000000002"));
        assert!(!waits(&standby, "00000001.history"));
        standby.note_answer(older.parse().unwrap()).unwrap();
        assert!(
            waits(&standby, older),
            "only the newer one's answer settles it"
        );
        standby.note_answer(newer.parse().unwrap()).unwrap();
        assert!(!waits(&standby, older));
    }

    #[test]
    fn an_unanswered_history_keeps_every_older_timeline_back() {
        let (_folder, standby) = standby();
        let history = "00000003.history".parse().unwrap();
        standby.note_failure(history).unwrap();
        assert!(waits(&standby, "000000020000000000000003"));
        assert!(waits(&standby, "000000010000000000000009"));
        assert!(!waits(&standby, "000000030000000000000003"));
        standby
            .note_answer("00000002.history".parse().unwrap())
            .unwrap();
        assert!(waits(&standby, "000000020000000000000003"));
        standby.note_answer(history).unwrap();
        assert!(!waits(&standby, "000000020000000000000003"));
    }

    #[test]
    fn a_marker_that_cannot_be_read_is_an_error() {
        let (folder, standby) = standby();
        let asked: WalFileName = "000000010000000000000003".parse().unwrap();
        std::fs::write(folder.path().join(UNPROVEN_SEGMENT_FILE), "x").unwrap();
        assert!(standby.waits_for(asked).is_err());
        std::fs::remove_file(folder.path().join(UNPROVEN_SEGMENT_FILE)).unwrap();
        std::fs::create_dir(folder.path().join(UNPROVEN_HISTORY_FILE)).unwrap();
        assert!(standby.waits_for(asked).is_err());
    }
}
