//! `walden backup`: takes a base backup. Owns the report and the advice for what can go wrong; the backup itself
//! is `archiver::base_backup`, and what is shown meanwhile is in `display.rs`.

mod display;
mod elsewhere;

use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result};
use archiver::base_backup::{self, BackupOptions, BackupRequest, NamesTaken, Taken};
use archiver::error::ServerErrorKind;
use archiver::upload::Uploader;
use clap::Args;
use serde_json::json;

use self::display::Display;
use super::Globals;
use crate::cli::ServerArgs;
use crate::config::Overrides;
use crate::exit_code::ExitCode;
use crate::failure::Advice;
use crate::open;
use crate::report;
use crate::shutdown::{GRACE, Shutdown};
use crate::units::{ByteSize, counted, human_duration};

/// Take a full base backup over the replication connection
///
/// Needs WAL archiving to be at work: a backup counts only once the WAL it needs is stored too.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  walden backup
  walden backup --fast-checkpoint --max-rate 50MiB")]
pub(crate) struct BackupArgs {
    /// Start with an immediate checkpoint: begins at once, at the price of a burst of writes
    #[arg(long, overrides_with = "spread")]
    pub(crate) fast_checkpoint: bool,

    /// Wait for a checkpoint spread over time (the default)
    #[arg(long, overrides_with = "fast_checkpoint")]
    pub(crate) spread: bool,

    /// Most bytes to read from the server per second, such as 50MiB
    #[arg(long, value_name = "SIZE", value_parser = parse_rate)]
    pub(crate) max_rate: Option<ByteSize>,

    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// The server accepts 32 kB to 1 GB a second (`MAX_RATE`, in KiB).
fn parse_rate(text: &str) -> Result<ByteSize, String> {
    let rate: ByteSize = text.parse()?;
    if (ByteSize::KIB * 32..=ByteSize::MIB * 1024).contains(&rate.bytes()) {
        Ok(rate)
    } else {
        Err("the server accepts rates from 32KiB to 1GiB a second".to_owned())
    }
}

/// Takes a backup and says what it is; a signal gives it up in order.
pub(crate) async fn run(args: BackupArgs, globals: &Globals) -> Result<ExitCode> {
    let overrides = Overrides {
        conninfo: args.server.conninfo,
        slot: args.server.slot,
        ..Overrides::default()
    };
    let config = globals.load_config(&overrides)?;
    let server = open::connection_info(&config)?;
    let policy = open::seal_policy(&config)?;
    let repositories = open::repositories(&config).await?;
    let cluster = open::find_cluster_anywhere(&config, &repositories).await?;
    let (ack, buffers) = (config.archive.ack, base_backup::UPLOAD_BUFFERS);
    let uploader = Uploader::mirrored(repositories, ack, policy, buffers);
    let request = BackupRequest {
        server: &server,
        uploader: &uploader,
        cluster: &cluster,
        slot: &config.postgres.slot,
        options: BackupOptions {
            fast_checkpoint: args.fast_checkpoint,
            // The range was checked: it fits.
            max_rate_kib: args
                .max_rate
                .and_then(|rate| u32::try_from(rate.bytes() / ByteSize::KIB).ok()),
            ..BackupOptions::default()
        },
        now: jiff::Timestamp::now,
        random: base_backup::draw_random()?,
    };
    let began = Instant::now();
    let display = Display::new(&globals.screen);
    let observe = |event| display.show(event);
    let mut shutdown = Shutdown::on_signals(GRACE)?;
    let taken = base_backup::take(&request, &observe, shutdown.requested()).await;
    display.finish();
    let backup = taken.map_err(advise).context("take a base backup")?;
    let took = began.elapsed();
    let is_left_out = |number| backup.left_out.iter().any(|left| left.repository == number);
    let mut repositories = uploader.repositories().iter().enumerate();
    let (number, from) = repositories
        .find(|(number, _)| !is_left_out(*number))
        .context("no repository has the backup")?;
    let mut copies = elsewhere::copies(&config, number, &backup);
    tokio::select! {
        () = elsewhere::fill(&config, from, &cluster, &backup, &globals.screen, &mut copies) => {}
        () = shutdown.requested() => {}
    }
    print(globals, &backup, &copies, from.url(), took)?;
    let everywhere = copies.iter().all(|copy| copy.problem.is_none());
    Ok(match backup.names.warnings.is_empty() && everywhere {
        true => ExitCode::Done,
        false => ExitCode::Warnings,
    })
}

/// The next step after an error that has one.
fn advise(error: archiver::Error) -> Error {
    use archiver::Error as E;
    let hint = match &error {
        E::NotArchiving { .. } => {
            "start `walden run` (or set archive_command = 'walden archive-push %p') and take the backup then"
        }
        E::WalNotStored { .. } => {
            "see what `walden run` says, then take a new backup; where only archive_command archives a quiet primary of this standby, \
             SELECT pg_switch_wal() there ends the wait"
        }
        E::WrongServer { .. } => {
            "the repository keeps another cluster's WAL: check conninfo, or make this cluster known with `walden init`"
        }
        E::Interrupted { .. } => "nothing of it counts as a backup; take a new one",
        E::Repository(repository::Error::AlreadyStored { key, .. })
            if key.ends_with("/started.json") =>
        {
            let hint = "another backup took the same label in this second: try again";
            return Advice::exit_code(Advice::hint(error.into(), hint), ExitCode::Locked);
        }
        other if other.server_kind() == Some(ServerErrorKind::DataCorrupted) => {
            "the server found damaged pages; its log names the files"
        }
        _ => return error.into(),
    };
    Advice::hint(error.into(), hint)
}

fn print(
    globals: &Globals,
    taken: &Taken,
    copies: &[elsewhere::Copy],
    repository: &str,
    took: Duration,
) -> Result<()> {
    let (backup, names) = (&taken.descriptor, &taken.names);
    let tablespaces: Vec<_> = backup
        .tablespaces
        .iter()
        .map(|tablespace| json!({ "oid": tablespace.oid, "location": tablespace.location }))
        .collect();
    let body = json!({
        "label": backup.label,
        "kind": backup.kind,
        "repository": repository,
        "copies": copies,
        "system_identifier": backup.system_identifier.to_string(),
        "server_version": backup.server_version,
        "from_standby": backup.from_standby,
        "timeline": backup.timeline,
        "start_lsn": backup.start_lsn.to_string(),
        "stop_lsn": backup.stop_lsn.to_string(),
        "started": backup.started,
        "stopped": backup.stopped,
        "seconds": took.as_secs_f64(),
        "plain_bytes": backup.plain_size,
        "stored_bytes": backup.stored_size,
        "parts": backup.parts.len(),
        "tablespaces": tablespaces,
        "names": {
            "databases": names.databases,
            "relations": names.relations,
            "stored_bytes": names.stored_bytes,
        },
        "warnings": warnings(names),
    });
    globals.output.print("walden.backup", &body, || {
        to_text(taken, copies, repository, took)
    })
}

/// What is missing from the catalogue snapshot, a line each.
fn warnings(names: &NamesTaken) -> Vec<String> {
    let more = (names.more_warnings > 0).then(|| format!("and {} more", names.more_warnings));
    names.warnings.iter().cloned().chain(more).collect()
}

fn to_text(taken: &Taken, copies: &[elsewhere::Copy], repository: &str, took: Duration) -> String {
    let (backup, names) = (&taken.descriptor, &taken.names);
    let source = match backup.from_standby {
        true => "standby",
        false => "primary",
    };
    let mut text = format!(
        "backup {} ({}, from a {source}) in {repository}\n",
        backup.label, backup.kind
    );
    let mut line = |name: &str, value: String| text.push_str(&format!("  {name:<8} {value}\n"));
    line(
        "size",
        format!(
            "{}, stored as {} in {}",
            ByteSize::new(backup.plain_size),
            ByteSize::new(backup.stored_size),
            counted(backup.parts.len(), "part")
        ),
    );
    let (start, stop) = (backup.start_lsn, backup.stop_lsn);
    line(
        "WAL",
        format!("{start} to {stop} on timeline {}, stored", backup.timeline),
    );
    line("began", report::time(backup.started));
    line("ended", report::time(backup.stopped));
    line("took", human_duration(took));
    for tablespace in &backup.tablespaces {
        line(
            "space",
            format!("{} {:?}", tablespace.oid, tablespace.location),
        );
    }
    line(
        "names",
        format!(
            "of {} in {}, for walden log",
            counted(names.relations, "relation"),
            counted(names.databases, "database")
        ),
    );
    for warning in warnings(names) {
        line("warning", warning);
    }
    for copy in copies {
        match &copy.problem {
            None => line("also in", copy.url.clone()),
            Some(problem) => line(
                "warning",
                format!(
                    "not in repository {} yet: {problem}; `walden run` brings it when it can, or `walden copy`",
                    copy.repository
                ),
            ),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_is_what_the_server_accepts() {
        for good in ["32KiB", "1GiB", "50MiB", "100MB"] {
            assert!(parse_rate(good).is_ok(), "{good}");
        }
        for bad in ["31KiB", "1025MiB", "0", "fast"] {
            assert!(parse_rate(bad).is_err(), "{bad}");
        }
    }
}
