//! `walden archive-get`: the `restore_command` hook. Owns the retries a hook has and what a standby is told; the answer itself is
//! `pitr::archive_get`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, ValueHint};
use pitr::archive_get::{Answer, answer};
use pitr::scope::RestoreScope;
use pitr::segment_source::SegmentSource;
use repository::{Deadlines, durable};
use wal_format::SegmentName;

use super::Globals;
use crate::config::Overrides;
use crate::exit_code::ExitCode;
use crate::open;

/// How long store errors are retried: recovery that aborts needs a human, recovery that waits does not.
const PATIENCE: Duration = Duration::from_secs(600);
/// Permission bits of what PostgreSQL reads.
const FILE_MODE: u32 = 0o600;
/// Kept in a standby's `pg_wal` while a request of it could not be answered.
const UNPROVEN_FILE: &str = "walden-unproven";

/// Hook for restore_command: fetch one WAL or history file
///
/// Exits 0 when the file was delivered, 1 only when the repository is proven not to hold it, and 126 for anything else:
/// PostgreSQL reads 1 as the end of WAL and opens the database.
#[derive(Debug, Args)]
#[command(after_help = "\
In postgresql.conf:
  restore_command = 'walden archive-get --config /etc/walden/walden.toml %f %p'
`walden restore` writes this setting itself.")]
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
    let standby = Standby::here(&args.path);
    if let Some(standby) = &standby
        && standby.must_wait_for_newer(&args.name)
    {
        tracing::warn!(
            file = args.name,
            "a newer timeline's segment is not answered yet: this older one stays unserved"
        );
        return Ok(ExitCode::ProvenAbsent);
    }
    let served = serve(&args, globals).await;
    match (served, standby) {
        (Ok(code), standby) => {
            if let Some(standby) = standby {
                standby.note_answer(&args.name)?;
            }
            Ok(code)
        }
        // The standby asks again by itself; for it "absent" only means "not now".
        (Err(error), Some(standby)) if args.name.parse::<SegmentName>().is_ok() => {
            tracing::error!("{error:#}");
            standby.note_failure(&args.name)?;
            Ok(ExitCode::ProvenAbsent)
        }
        (Err(error), _) => Err(error),
    }
}

async fn serve(args: &ArchiveGetArgs, globals: &Globals) -> Result<ExitCode> {
    let config = globals.load_hook_config(&Overrides::default())?;
    let deadlines = Deadlines {
        total: PATIENCE,
        ..Deadlines::default()
    };
    let repository = open::open_repository_with(&config, deadlines).await?;
    let policy = open::open_policy(&config, false).await?;
    let scope = args.plan.as_deref().map(read_scope).transpose()?;
    let (cluster, size) = match &scope {
        Some(scope) => (scope.cluster()?, scope.size()?),
        None => {
            let cluster = open::find_cluster(&config, &repository, None).await?;
            (cluster.id(), cluster.segment_size()?)
        }
    };
    let source = SegmentSource {
        repository,
        policy,
        cluster,
        size,
    };
    match answer(&source, scope.as_ref(), &args.name).await? {
        Answer::Serve(bytes) => {
            durable::replace(&args.path, FILE_MODE, &bytes)
                .with_context(|| format!("deliver {}", args.name))?;
            tracing::info!(file = args.name, "delivered");
            Ok(ExitCode::Done)
        }
        Answer::Absent => {
            tracing::info!(file = args.name, "not in the repository: proven");
            Ok(ExitCode::ProvenAbsent)
        }
    }
}

fn read_scope(path: &Path) -> Result<RestoreScope> {
    let bytes = std::fs::read(path).with_context(|| format!("read the plan {}", path.display()))?;
    Ok(RestoreScope::parse(&bytes)?)
}

/// A standby asks again and again, and falls back to older timelines in between: after a request that could not be answered, the
/// same segment of an older timeline, a dead branch perhaps, must not be served.
struct Standby {
    marker: PathBuf,
}

impl Standby {
    /// The standby whose data directory is the working directory; `None` for other recoveries.
    fn here(destination: &Path) -> Option<Self> {
        let folder = destination.parent()?;
        Path::new("standby.signal").exists().then(|| Self {
            marker: folder.join(UNPROVEN_FILE),
        })
    }

    /// The segment that could not be answered, if there is one.
    fn unproven(&self) -> Option<SegmentName> {
        std::fs::read_to_string(&self.marker)
            .ok()?
            .trim()
            .parse()
            .ok()
    }

    fn must_wait_for_newer(&self, name: &str) -> bool {
        let asked = name.parse::<SegmentName>().ok();
        asked
            .zip(self.unproven())
            .is_some_and(|(asked, unproven)| is_same_on_older(asked, unproven))
    }

    fn note_failure(&self, name: &str) -> Result<()> {
        durable::replace(&self.marker, FILE_MODE, name.as_bytes())
            .context("remember the unanswered request")
    }

    fn note_answer(&self, name: &str) -> Result<()> {
        if self
            .unproven()
            .is_some_and(|unproven| unproven.to_string() == name)
        {
            durable::remove_file(&self.marker).context("forget the unanswered request")?;
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
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn an_unanswered_segment_keeps_the_same_one_of_older_timelines_back() {
        let folder = tempfile::tempdir().unwrap();
        let standby = Standby {
            marker: folder.path().join(UNPROVEN_FILE),
        };
        let (newer, older) = ("000000020000000000000003", "000000010000000000000003");
        assert!(!standby.must_wait_for_newer(older));
        standby.note_failure(newer).unwrap();
        assert!(standby.must_wait_for_newer(older));
        assert!(!standby.must_wait_for_newer(newer));
        assert!(!standby.must_wait_for_newer("000000010000000000000002"));
        standby.note_answer(older).unwrap();
        assert!(
            standby.must_wait_for_newer(older),
            "only the newer one's answer settles it"
        );
        standby.note_answer(newer).unwrap();
        assert!(!standby.must_wait_for_newer(older));
    }
}
