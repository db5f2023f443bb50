//! `walden archive-push`: the `archive_command` hook. Owns the refusal of restored clones and which key is fetched when; what a
//! file must be is `archiver::push`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use archiver::push::{PushConfig, WalFile, push};
use archiver::receive;
use clap::{Args, ValueHint};
use pitr::conf_file::{Statement, parse_lines};
use pitr::recovery_conf::RESTORED_FROM;
use repository::Deadlines;
use repository::sealed::OpenPolicy;

use super::Globals;
use crate::config::{Config, OnInvalid, Overrides};
use crate::exit_code::ExitCode;
use crate::failure::Advise;
use crate::open;

/// Hook for archive_command: store one finished WAL file
///
/// Exits 0 only when the file is safely stored, 1 for anything else; PostgreSQL then keeps the file and tries again.
#[derive(Debug, Args)]
#[command(after_help = "\
In postgresql.conf:
  archive_mode = on
  archive_command = 'walden archive-push --config /etc/walden/walden.toml %p'

One call takes [archive] patience at most, 5 minutes unless the configuration says otherwise; then it ends with 1.")]
pub(crate) struct ArchivePushArgs {
    /// The file, as %p gives it
    #[arg(value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub(crate) path: PathBuf,
}

/// Stores one file. The server calls again after every failure, so nothing goes on beyond `[archive] patience`.
pub(crate) async fn run(args: ArchivePushArgs, globals: &Globals) -> Result<ExitCode> {
    let config = globals.load_hook_config(&Overrides::default())?;
    if let Some(from) = restored_from(&args.path)? {
        let refused = Err(archiver::Error::RestoredClone { from });
        return refused.hint(
            "a restored server must not write into its source's archive: leave archive_mode off, or let it replace its source with `walden init --adopt`",
        );
    }
    let patience = config.archive.patience;
    match tokio::time::timeout(patience, store(&args.path, &config)).await {
        Ok(stored) => stored,
        Err(_) => {
            let during = "store the file".into();
            let late: Result<ExitCode, _> = Err(archiver::Error::Timeout {
                during,
                after: patience,
            });
            late.hint("the server tries again; [archive] patience says how long one try may take")
        }
    }
}

async fn store(path: &Path, config: &Config) -> Result<ExitCode> {
    // A little less than all there is: what the store said last is worth more than that time was up.
    let total = config.archive.patience.mul_f64(0.9);
    let deadlines = Deadlines {
        // One request that hangs leaves time for others.
        request: Deadlines::default().request.min(total / 3),
        total,
    };
    let repositories = open::repositories_with(config, deadlines).await?;
    let push_config = PushConfig {
        repositories: &repositories,
        ack: config.archive.ack,
        seal: open::seal_policy(config)?,
        system_identifier: config.postgres.system_identifier.map(u64::from),
        incarnation: config.postgres.incarnation,
        on_invalid: match config.archive.on_invalid {
            OnInvalid::StoreAndReport => receive::OnInvalid::StoreAndReport,
            OnInvalid::Refuse => receive::OnInvalid::Refuse,
        },
    };
    let name = path.file_name().unwrap_or_default().display().to_string();
    let file = WalFile::read(path).with_context(|| format!("archive {name}"))?;
    // Archiving needs no key; only a history file that the server has lost does.
    let policy = if file.lacks_history() {
        open::open_policy(config, false).await?
    } else {
        OpenPolicy::default()
    };
    let pushed = push(file, &push_config, &policy)
        .await
        .with_context(|| format!("archive {name}"));
    let pushed = match pushed {
        Err(error) if is_unknown_cluster(&error) => {
            return Err(error).hint("make the cluster known to the repository with `walden init`");
        }
        pushed => pushed?,
    };
    if let Some(invalid) = &pushed.invalid {
        tracing::error!(
            file = name,
            at = %invalid.at,
            reason = invalid.reason,
            "WAL that is not valid: it is stored and marked, recovery stops there; take a new base backup"
        );
    }
    if !pushed.missing_in.is_empty() {
        tracing::warn!(
            file = name,
            repositories = pushed.missing_in.join(", "),
            "archived as ack asks, but not in every repository: `walden run` or `walden copy` fills them up"
        );
    }
    tracing::info!(file = name, stored = ?pushed.stored, bytes = pushed.stored_size, "archived");
    Ok(ExitCode::Done)
}

fn is_unknown_cluster(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref::<archiver::Error>(),
        Some(archiver::Error::UnknownCluster { .. })
    )
}

/// What the server of this file was restored from, if `walden restore` made it. The server runs hooks in its data directory; a file
/// named by an absolute path has its data directory two folders up.
fn restored_from(path: &Path) -> Result<Option<String>> {
    let above = path.parent().and_then(Path::parent);
    let folders = [Some(Path::new(".")), above.filter(|_| path.is_absolute())];
    for folder in folders.into_iter().flatten() {
        let file = folder.join("postgresql.auto.conf");
        let text = match std::fs::read(&file) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(anyhow!(error).context(format!("read {}", file.display()))),
        };
        let found = parse_lines(&text)
            .into_iter()
            .filter_map(|line| match line.statement {
                Statement::Setting { name, value } if name == RESTORED_FROM => Some(value),
                _ => None,
            })
            .next_back();
        if let Some(value) = found.filter(|value| !value.is_empty()) {
            return Ok(Some(value));
        }
    }
    Ok(None)
}
