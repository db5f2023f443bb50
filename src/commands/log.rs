//! `walden log`: what happened, and the target that undoes it. Here stand the flags and what they ask for; the answer is
//! `pitr::log`'s, how it is printed is in `display.rs`.

mod display;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::{Args, ValueHint};
use pitr::gather::PlanMaterial;
use pitr::log::{Log, LogMaterial, LogQuery, NamesSource, WalDir, read_log, stored_pieces};
use pitr::recovery_conf::quote_for_shell;
use pitr::time::{find_zone, parse_time};
use wal_format::{DecoderConfig, Lsn, TimelineId, Timestamp};

use self::display::Shown;
use super::Globals;
use super::restore::parse_timeline;
use crate::cli::{KeyArgs, SourceArgs};
use crate::exit_code::ExitCode;
use crate::failure::Advise;
use crate::{open, sources};

/// Half of the time that `--around` looks at, unless `--window` says otherwise.
const USUAL_WINDOW: Duration = Duration::from_secs(20 * 60);
/// Most transactions that one answer can show.
const MAX_LAST: u64 = 10_000;

/// Show what happened: transactions in WAL, and how to go back to before each
///
/// For each transaction it says what was done to which relation and the target that restores to just before it, with
/// the number of later transactions that would be lost.
///
/// Needs only a repository and an identity, or with --wal-dir a folder of WAL segments.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  walden log --drops
  walden log --around 2026-01-23T14:28:00Z --window 20m --relation billing.orders
  walden log --deletes-over 10000 --since '2026-01-23 08:00' --tz Europe/Paris
  walden log --wal-dir /var/lib/postgresql/18/main/pg_wal --last 50")]
pub(crate) struct LogArgs {
    /// Most transactions to show: the newest that fit
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=MAX_LAST))]
    pub(crate) last: u64,

    /// Committed at this time or later (RFC 3339)
    #[arg(help_heading = "Selection", long, value_name = "TIME")]
    pub(crate) since: Option<String>,

    /// Committed at this time or before
    #[arg(help_heading = "Selection", long, value_name = "TIME")]
    pub(crate) until: Option<String>,

    /// Committed around this time
    #[arg(help_heading = "Selection", long, value_name = "TIME", conflicts_with_all = ["since", "until"])]
    pub(crate) around: Option<String>,

    /// How far around that time, before and after [default: 20m]
    #[arg(help_heading = "Selection", long, value_name = "DURATION", requires = "around", value_parser = parse_window)]
    pub(crate) window: Option<Duration>,

    /// Zone of times that name none, such as Europe/Paris
    #[arg(help_heading = "Selection", long, value_name = "ZONE")]
    pub(crate) tz: Option<String>,

    /// This transaction, or the one that it was a subtransaction of
    #[arg(help_heading = "Selection", long, value_name = "XID")]
    pub(crate) xid: Option<u32>,

    /// Commit record from LSN A up to B; either may be left out
    #[arg(help_heading = "Selection", long, value_name = "A..B", value_parser = parse_range)]
    pub(crate) lsn: Option<LsnRange>,

    /// Touched this relation: name (in any schema), schema.name or database.schema.name, or as shown where the name is not known
    #[arg(help_heading = "Selection", long, value_name = "NAME")]
    pub(crate) relation: Option<String>,

    /// Dropped something (or may have: WAL does not always tell a drop from a rewrite)
    #[arg(help_heading = "Selection", long)]
    pub(crate) drops: bool,

    /// Truncated something (or may have)
    #[arg(help_heading = "Selection", long)]
    pub(crate) truncates: bool,

    /// Deleted more than N rows
    #[arg(help_heading = "Selection", long, value_name = "N")]
    pub(crate) deletes_over: Option<u64>,

    /// Timeline to follow back [default: the newest]
    #[arg(help_heading = "Selection", long, value_name = "NUMBER", value_parser = parse_timeline)]
    pub(crate) timeline: Option<u32>,

    /// Read plain WAL segments from this folder instead of a repository; relations are shown by number
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, conflicts_with_all = ["url", "cluster", "identity"])]
    pub(crate) wal_dir: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) key: KeyArgs,

    #[command(flatten)]
    pub(crate) source: SourceArgs,
}

/// `--lsn A..B`, half-open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LsnRange {
    from: Option<Lsn>,
    to: Option<Lsn>,
}

fn parse_range(text: &str) -> Result<LsnRange, String> {
    let expected = "expected A..B with LSNs like 16/B374D848, either of which may be left out";
    let (from, to) = text.split_once("..").ok_or(expected)?;
    let lsn = |text: &str| match text.is_empty() {
        true => Ok(None),
        false => text
            .parse::<Lsn>()
            .map(Some)
            .map_err(|_| expected.to_owned()),
    };
    let range = LsnRange {
        from: lsn(from)?,
        to: lsn(to)?,
    };
    match (range.from, range.to) {
        (Some(from), Some(to)) if from >= to => {
            Err("the first LSN must be below the second".into())
        }
        _ => Ok(range),
    }
}

fn parse_window(text: &str) -> Result<Duration, String> {
    crate::units::parse_duration(text)
}

/// Answers; 5 if WAL on the way is missing or not valid, 3 if names could not be read.
pub(crate) async fn run(args: LogArgs, globals: &Globals) -> Result<ExitCode> {
    let query = query_of(&args)?;
    let timeline = args.timeline.and_then(TimelineId::new);
    let (log, shown) = match &args.wal_dir {
        Some(folder) => {
            let folder = WalDir::open(folder, timeline)
                .await
                .exit_code(ExitCode::Usage)?;
            let material = LogMaterial {
                source: &folder,
                pieces: &folder.pieces,
                holes: folder.holes.clone(),
                decoder: DecoderConfig {
                    segment_size: folder.size,
                    system_identifier: None,
                    major: None,
                },
                names: None,
            };
            let log = read_log(&material, &query).await.context("read WAL")?;
            (log, Shown::of_folder(folder.timeline))
        }
        None => from_repository(&args, &query, timeline, globals).await?,
    };
    let code = match (log.problems.is_empty(), log.warnings.is_empty()) {
        (false, _) => ExitCode::Integrity,
        (true, false) => ExitCode::Warnings,
        (true, true) => ExitCode::Done,
    };
    let body = shown.to_json(&log);
    globals
        .output
        .print("walden.log", &body, || shown.to_text(&log))?;
    Ok(code)
}

async fn from_repository(
    args: &LogArgs,
    query: &LogQuery,
    timeline: Option<TimelineId>,
    globals: &Globals,
) -> Result<(Log, Shown)> {
    let config = args
        .source
        .choose(globals.load_config(&args.key.identity.overrides(&args.source))?)?;
    let repository = sources::open_existing(&config).await?;
    let cluster = open::find_cluster(&config, &repository, args.source.cluster.as_deref()).await?;
    let policy = open::open_policy(&config, args.key.allow_plain).await?;
    let stored = PlanMaterial::gather(&repository, &policy, cluster.id(), timeline)
        .await
        .context("find stored WAL")?;
    sources::warn_of(&stored.unanswered);
    let (pieces, holes) = stored_pieces(&stored.catalog, &stored.path);
    let behind_holes = holes
        .keys()
        .filter_map(|index| pieces.get(*index).map(|piece| piece.start))
        .collect();
    let on_path = || {
        stored
            .backups
            .iter()
            .filter(|backup| stored.path.holds(backup))
    };
    let has_names = |label| {
        let objects = stored.catalog.backups.get(label);
        objects.is_some_and(|objects| objects.names)
    };
    let backups: BTreeMap<Lsn, _> = on_path()
        .filter(|backup| has_names(&backup.label))
        .map(|backup| (backup.stop_lsn, backup.label.clone()))
        .collect();
    let material = LogMaterial {
        source: &stored,
        pieces: &pieces,
        holes,
        decoder: stored.decoder(),
        names: Some(NamesSource {
            repository: &repository,
            policy: &policy,
            cluster: cluster.id(),
            backups,
        }),
    };
    let log = read_log(&material, query).await.context("read WAL")?;
    let shown = Shown {
        repository: Some(repository.urls()),
        history: stored.path.history.clone(),
        backups: on_path()
            .map(|backup| (backup.start_lsn, backup.stop_lsn))
            .collect(),
        behind_holes,
        arguments: restore_arguments(args),
    };
    Ok((log, shown))
}

/// What of this command line a restore needs too.
fn restore_arguments(args: &LogArgs) -> String {
    let mut arguments = String::new();
    if let Some(url) = &args.source.url {
        arguments.push_str(&format!(" {}", word(url)));
    }
    if let Some(name) = &args.source.repository_name {
        arguments.push_str(&format!(" --repository {}", word(name)));
    }
    if let Some(identity) = args.key.identity.reference() {
        arguments.push_str(&format!(" --identity {}", word(&identity.to_string())));
    }
    if let Some(cluster) = &args.source.cluster {
        arguments.push_str(&format!(" --cluster {cluster}"));
    }
    if let Some(timeline) = args.timeline {
        arguments.push_str(&format!(" --timeline {timeline}"));
    }
    arguments
}

/// One word for a shell, quoted where that is needed.
fn word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || ":/._-=,@+".contains(c);
    match text.chars().all(plain) {
        true => text.to_owned(),
        false => quote_for_shell(text),
    }
}

fn query_of(args: &LogArgs) -> Result<LogQuery> {
    let zone = args.tz.as_deref().map(find_zone).transpose();
    let zone = zone.exit_code(ExitCode::Usage)?;
    let time = |text: &Option<String>| {
        let parsed = text.as_deref().map(|text| parse_time(text, zone.as_ref()));
        parsed.transpose().exit_code(ExitCode::Usage)
    };
    let (mut since, mut until) = (time(&args.since)?, time(&args.until)?);
    if let Some(around) = time(&args.around)? {
        let window = args.window.unwrap_or(USUAL_WINDOW).as_micros();
        let window = i64::try_from(window).unwrap_or(i64::MAX);
        since = Some(Timestamp(around.0.saturating_sub(window)));
        until = Some(Timestamp(around.0.saturating_add(window)));
    }
    if since.zip(until).is_some_and(|(since, until)| since > until) {
        return Err(anyhow!("--since is after --until")).exit_code(ExitCode::Usage);
    }
    Ok(LogQuery {
        last: usize::try_from(args.last).unwrap_or(usize::MAX),
        since,
        until,
        from: args.lsn.and_then(|range| range.from),
        to: args.lsn.and_then(|range| range.to),
        xid: args.xid,
        relation: args.relation.clone(),
        drops: args.drops,
        truncates: args.truncates,
        deletes_over: args.deletes_over,
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn parse(line: &str) -> Result<LogArgs, clap::Error> {
        let words = ["walden", "log"].into_iter().chain(line.split_whitespace());
        match Cli::try_parse_from(words)?.command {
            Command::Log(args) => Ok(*args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_range_of_lsns_is_half_open_and_may_be_open_ended() {
        let range = |from: Option<u64>, to: Option<u64>| LsnRange {
            from: from.map(Lsn::new),
            to: to.map(Lsn::new),
        };
        assert_eq!(parse_range("0/10..1/0"), Ok(range(Some(16), Some(1 << 32))));
        assert_eq!(parse_range("0/10.."), Ok(range(Some(16), None)));
        assert_eq!(parse_range("..0/10"), Ok(range(None, Some(16))));
        for bad in ["", "0/10", "0/10...0/20", "0/20..0/10", "a..b"] {
            assert!(parse_range(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn around_is_a_window_on_both_sides() {
        let query = query_of(&parse("--around 2026-01-23T14:28:00Z --window 1m").unwrap()).unwrap();
        let (since, until) = (query.since.unwrap(), query.until.unwrap());
        assert_eq!(until.0 - since.0, 2 * 60 * 1_000_000);
        assert_eq!(query.last, 20);
        assert!(query_of(&parse("--since 2026-01-23T14:28:00").unwrap()).is_err());
        let zone = "--since 2026-01-23T14:28:00 --tz Europe/Paris";
        assert!(query_of(&parse(zone).unwrap()).is_ok());
        assert!(parse("--window 1m").is_err());
        assert!(parse("--last 0").is_err());
        assert!(parse("s3://b/p --wal-dir /x").is_err());
    }
}
