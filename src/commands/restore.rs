//! `walden restore`: brings a cluster back to a moment. Here stand the flags and the order of the steps; what a target means, the plan
//! and the work are the `pitr` crate's.

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use clap::{ArgGroup, Args, ValueEnum, ValueHint};
use pitr::data_directory::DataDirectory;
use pitr::gather::PlanMaterial;
use pitr::plan::RecoveryPlan;
use pitr::postgres::Owner;
use pitr::restore::RestoreJob;
use pitr::time::{find_zone, format_utc, parse_time};
use pitr::verify::cost_of;
use pitr::{RecoveryGoal, RecoveryTarget};
use wal_format::TimelineId;

use super::Globals;
use crate::cli::{KeyArgs, SourceArgs};
use crate::exit_code::ExitCode;
use crate::failure::Advise;
use crate::plan_report::PlanReport;
use crate::restore_run::{self, RestoreRequest};
use crate::{dry_run, open, sources};

/// Bring the cluster back, in a new data directory, at a chosen moment
///
/// Makes a plan and proves it first: a target that cannot be reached is refused before anything is written, with the window
/// that can. Then lays out the newest fitting backup, starts the server, and replays WAL to the target.
///
/// Needs only a repository and an identity: no configuration file, no source server.
#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("target").required(true).multiple(false)
        .args(["to", "to_time", "to_lsn", "to_xid", "to_name"]),
    after_help = "\
Examples:
  walden restore --to '2026-01-23 14:27' --tz Europe/Paris -D /srv/pg/restored
  walden restore --to 2026-01-23T14:27:00Z -D /srv/pg/restored --dry-run
  walden restore --to latest -D /srv/pg/restored --dry-run --deep
  walden restore s3://acme-pg-eu/prod --identity file:walden.key --to latest -D /srv/pg/restored

Exit codes of --dry-run: 0 the restore would work, as far as was looked; 3 this machine or the command line is in its way; 4 the target
cannot be reached; 5 something that it needs is damaged or missing.")]
pub(crate) struct RestoreArgs {
    #[command(flatten)]
    pub(crate) target: TargetArgs,

    /// New data directory: absent, empty, or one whose restore was interrupted
    #[arg(short = 'D', long = "pgdata", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) pgdata: PathBuf,

    /// Backup to start from [default: the newest before the target]
    #[arg(long, value_name = "LABEL")]
    pub(crate) backup: Option<String>,

    /// Show the plan and its cost, and write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,

    /// And read everything that this restore would read: each part and file of the backup, each WAL record up to the target
    #[arg(long)]
    pub(crate) deep: bool,

    /// Lay everything out but leave starting the server to you
    #[arg(long)]
    pub(crate) no_start: bool,

    /// Put tablespace OLD at NEW, both absolute; may be repeated (write \= for a = in a path)
    #[arg(long = "map-tablespace", value_name = "OLD=NEW", value_parser = parse_mapping)]
    pub(crate) map_tablespaces: Vec<TablespaceMapping>,

    /// User who shall own the files and run the server
    #[arg(long, value_name = "USER")]
    pub(crate) owner: Option<String>,

    /// Folder of the server programs [default: found by major version]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) bin_dir: Option<PathBuf>,

    /// Port on which the restored server listens
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) port: Option<u16>,

    #[command(flatten)]
    pub(crate) key: KeyArgs,

    #[command(flatten)]
    pub(crate) source: SourceArgs,
}

/// Where recovery ends and what the server does there.
#[derive(Debug, Args)]
pub(crate) struct TargetArgs {
    /// latest, immediate (the end of the backup), a time (RFC 3339), or an LSN
    #[arg(help_heading = "Target options", long, value_name = "TARGET")]
    pub(crate) to: Option<String>,

    /// Time of the last commit to keep
    #[arg(help_heading = "Target options", long, value_name = "TIME")]
    pub(crate) to_time: Option<String>,

    /// LSN, as 16/B374D848
    #[arg(help_heading = "Target options", long, value_name = "LSN")]
    pub(crate) to_lsn: Option<String>,

    /// Transaction number
    #[arg(help_heading = "Target options", long, value_name = "XID")]
    pub(crate) to_xid: Option<String>,

    /// Restore point made by pg_create_restore_point()
    #[arg(help_heading = "Target options", long, value_name = "NAME")]
    pub(crate) to_name: Option<String>,

    /// Stop just before the target instead of just after it
    #[arg(help_heading = "Target options", long)]
    pub(crate) exclusive: bool,

    /// Zone of times that name none, such as Europe/Paris
    #[arg(help_heading = "Target options", long, value_name = "ZONE")]
    pub(crate) tz: Option<String>,

    /// Timeline to follow: a number, latest (the newest), or current (the one the backup was taken on)
    #[arg(help_heading = "Target options", long, value_name = "TIMELINE", default_value = "latest", value_parser = parse_followed)]
    pub(crate) timeline: Followed,

    /// Refuse to end before this time
    #[arg(help_heading = "Target options", long, value_name = "TIME")]
    pub(crate) not_before: Option<String>,

    /// What the server does at the target
    #[arg(
        help_heading = "Target options",
        long,
        value_enum,
        value_name = "ACTION",
        default_value_t
    )]
    pub(crate) action: Action,
}

/// What the server does once it reached the target (`recovery_target_action`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Action {
    /// Wait, open for reading, so that you can look first
    #[default]
    Pause,
    /// Open for writing on a new timeline
    Promote,
    /// Stop
    Shutdown,
}

impl From<Action> for pitr::recovery_conf::Action {
    fn from(action: Action) -> Self {
        match action {
            Action::Pause => Self::Pause,
            Action::Promote => Self::Promote,
            Action::Shutdown => Self::Shutdown,
        }
    }
}

/// One `--map-tablespace OLD=NEW`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TablespaceMapping {
    /// Where the tablespace was on the source server.
    pub(crate) old: PathBuf,
    /// Where it shall be.
    pub(crate) new: PathBuf,
}

impl TablespaceMapping {
    /// Both paths as text: they were given as such.
    fn as_text(&self) -> (String, String) {
        (
            self.old.to_string_lossy().into_owned(),
            self.new.to_string_lossy().into_owned(),
        )
    }
}

/// `OLD=NEW` as `pg_basebackup -T` reads it: `\=` is a `=` in a path.
fn parse_mapping(text: &str) -> Result<TablespaceMapping, String> {
    let mut sides = vec![String::new()];
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match (character, sides.last_mut()) {
            ('\\', Some(side)) if characters.peek() == Some(&'=') => {
                side.push('=');
                characters.next();
            }
            ('=', _) => sides.push(String::new()),
            (other, Some(side)) => side.push(other),
            (_, None) => {}
        }
    }
    let [old, new] = sides.as_slice() else {
        return Err(r"expected OLD=NEW with one `=`; a `=` in a path is written `\=`".to_owned());
    };
    for side in [old, new] {
        if !side.starts_with('/') {
            return Err(format!("`{side}` is not an absolute path"));
        }
    }
    Ok(TablespaceMapping {
        old: old.into(),
        new: new.into(),
    })
}

/// Which timeline a recovery follows, in the words of `recovery_target_timeline`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Followed {
    /// The newest by number.
    Latest,
    /// The one on which the chosen backup was taken.
    Current,
    /// This one.
    Numbered(TimelineId),
}

fn parse_followed(text: &str) -> Result<Followed, String> {
    match text {
        "latest" => Ok(Followed::Latest),
        "current" => Ok(Followed::Current),
        _ => parse_timeline(text)
            .ok()
            .and_then(TimelineId::new)
            .map(Followed::Numbered)
            .ok_or_else(|| {
                "a timeline is latest, current, a number from 1 on, or hexadecimal after 0x"
                    .to_owned()
            }),
    }
}

/// A timeline as `recovery_target_timeline` takes it: decimal, or hexadecimal after `0x`.
pub(crate) fn parse_timeline(text: &str) -> Result<u32, String> {
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => text.parse(),
    };
    match parsed {
        Ok(timeline) if timeline > 0 && !text.contains('+') => Ok(timeline),
        _ => Err("a timeline is a number from 1 on, or hexadecimal after 0x".to_owned()),
    }
}

/// Plans, shows the plan, and does it.
pub(crate) async fn run(args: RestoreArgs, globals: &Globals) -> Result<ExitCode> {
    if args.deep && !args.dry_run {
        return Err(anyhow!("--deep reads what a restore would read and restores nothing"))
            .hint("use it with --dry-run, or leave it out: a restore checks everything it reads in any case")
            .exit_code(ExitCode::Usage);
    }
    let (goal, target) = goal_of(&args.target)?;
    let config = args
        .source
        .choose(globals.load_config(&args.key.identity.overrides(&args.source))?)?;
    let repository = sources::open_existing(&config).await?;
    let cluster = open::find_cluster(&config, &repository, args.source.cluster.as_deref()).await?;
    let policy = open::open_policy(&config, args.key.allow_plain).await?;
    let label = args
        .backup
        .as_deref()
        .map(str::parse)
        .transpose()
        .exit_code(ExitCode::Usage)?;
    let planning = || format!("plan the recovery to {target}");
    let gather = async |timeline| {
        PlanMaterial::gather(&repository, &policy, cluster.id(), timeline)
            .await
            .with_context(planning)
    };
    let first = match args.target.timeline {
        Followed::Numbered(timeline) => Some(timeline),
        Followed::Latest | Followed::Current => None,
    };
    let mut material = gather(first).await?;
    sources::warn_of(&material.unanswered);
    let planned = material.plan(&goal, label.as_ref()).await;
    let planned = planned.with_context(planning);
    let mut plan = match material.unanswered.is_empty() {
        true => planned?,
        false => planned.hint(
            "not every repository answered: what those hold alone may reach the target; see to them and try again",
        )?,
    };
    let own = plan.backup.timeline;
    if args.target.timeline == Followed::Current && own != plan.path.history.timeline() {
        let label = plan.backup.label.clone();
        material = gather(Some(own)).await?;
        plan = material
            .plan(&goal, Some(&label))
            .await
            .with_context(planning)?;
    }
    let backup = material
        .descriptors
        .get(&plan.backup.label)
        .context("the plan's backup has a descriptor")?;
    check_not_before(&args.target, &plan)?;
    // What they alone hold may be newer than this plan.
    let done = match material.unanswered.is_empty() {
        true => ExitCode::Done,
        false => ExitCode::Warnings,
    };
    let cost = cost_of(&material, &plan)?;
    let shown = PlanReport {
        plan: &plan,
        backup,
        target: &target,
        cost,
    };
    if !args.dry_run {
        globals.screen.say(shown.to_text().trim_end());
    }
    let job = RestoreJob {
        repository,
        policy,
        cluster: cluster.id(),
        label: plan.backup.label.clone(),
        backup: backup.clone(),
        data: DataDirectory::new(&args.pgdata)?,
        mappings: args
            .map_tablespaces
            .iter()
            .map(TablespaceMapping::as_text)
            .collect(),
        owner: match &args.owner {
            Some(name) => Some(Owner::find(name).await?),
            None => None,
        },
    };
    let request = RestoreRequest {
        job,
        plan: &plan,
        target: &target,
        config: &config,
        action: args.target.action.into(),
        start: !args.no_start,
        port: args.port,
        bin_dir: args.bin_dir.as_deref(),
        settled: material.segments.settled.clone(),
        unanswered: &material.unanswered,
    };
    if args.dry_run {
        let code = dry_run::run(&request, &material, &shown, args.deep, globals).await?;
        return Ok(if code == ExitCode::Done { done } else { code });
    }
    restore_run::run(request, globals).await?;
    Ok(done)
}

fn check_not_before(args: &TargetArgs, plan: &RecoveryPlan) -> Result<()> {
    let Some(text) = &args.not_before else {
        return Ok(());
    };
    let zone = args.tz.as_deref().map(find_zone).transpose()?;
    let wanted = parse_time(text, zone.as_ref())?;
    let newest = plan.newest_transaction;
    if newest.is_some_and(|newest| newest >= wanted) {
        return Ok(());
    }
    let newest = newest.map_or_else(|| "not known".to_owned(), format_utc);
    Err(anyhow!("the last transaction of this plan ended at {newest}, before {}", format_utc(wanted)))
        .hint("--not-before refuses such a plan; leave it out to accept it, or choose another target or repository")
        .exit_code(ExitCode::Target)
}

type ParseTarget = fn(&str, Option<&jiff::tz::TimeZone>) -> pitr::Result<RecoveryTarget>;

/// What the user asked for, and in which words.
fn goal_of(args: &TargetArgs) -> Result<(RecoveryGoal, String)> {
    let zone = args
        .tz
        .as_deref()
        .map(find_zone)
        .transpose()
        .exit_code(ExitCode::Usage)?;
    let zone = zone.as_ref();
    let forms: [(&Option<String>, &str, ParseTarget); 5] = [
        (&args.to, "", RecoveryTarget::parse),
        (&args.to_time, "time ", RecoveryTarget::parse_time),
        (&args.to_lsn, "LSN ", |text, _| {
            RecoveryTarget::parse_lsn(text)
        }),
        (&args.to_xid, "transaction ", |text, _| {
            RecoveryTarget::parse_xid(text)
        }),
        (&args.to_name, "restore point ", |text, _| {
            RecoveryTarget::parse_name(text)
        }),
    ];
    let given = forms
        .iter()
        .find_map(|(text, kind, parse)| Some((text.as_deref()?, kind, parse)));
    let (text, kind, parse) = given.context("no target").exit_code(ExitCode::Usage)?;
    let target = parse(text, zone).exit_code(ExitCode::Usage)?;
    let position = if args.exclusive { "just before " } else { "" };
    Ok((
        RecoveryGoal {
            target,
            inclusive: !args.exclusive,
        },
        format!("{position}{kind}{text}"),
    ))
}

#[cfg(test)]
mod tests {

    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn parse(line: &str) -> Result<Box<RestoreArgs>, clap::Error> {
        let cli = Cli::try_parse_from(
            ["walden", "restore"]
                .into_iter()
                .chain(line.split_whitespace()),
        )?;
        match cli.command {
            Command::Restore(args) => Ok(args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn needs_nothing_but_a_repository_and_an_identity() {
        let args = parse("s3://b/p --identity file:k --to latest -D /tmp/x").unwrap();
        assert_eq!(args.source.repository().unwrap().url, "s3://b/p");
        assert_eq!(args.key.identity.reference().unwrap().to_string(), "file:k");
        assert_eq!(args.target.to.as_deref(), Some("latest"));
        assert_eq!(args.target.action, Action::Pause);
    }

    #[test]
    fn wants_exactly_one_target() {
        assert!(parse("-D /tmp/x").is_err());
        for target in [
            "--to latest",
            "--to-time t",
            "--to-lsn 0/1",
            "--to-xid 7",
            "--to-name n",
        ] {
            assert!(parse(&format!("-D /x {target}")).is_ok(), "{target}");
            if target != "--to latest" {
                assert!(
                    parse(&format!("-D /x --to latest {target}")).is_err(),
                    "{target}"
                );
            }
        }
    }

    #[test]
    fn maps_tablespaces_with_escaped_equal_signs() {
        let check = |text: &str, old: &str, new: &str| {
            assert_eq!(
                parse_mapping(text),
                Ok(TablespaceMapping {
                    old: old.into(),
                    new: new.into()
                })
            );
        };
        check("/a=/b", "/a", "/b");
        check(r"/a\=1=/b\=2", "/a=1", "/b=2");
        check(r"/a\b=/ü x", r"/a\b", "/ü x");
        for bad in ["", "/a", "/a=", "=/b", "a=/b", "/a=b", "/a=/b=/c"] {
            assert!(parse_mapping(bad).is_err(), "{bad}");
        }
        let args =
            parse("-D /x --to latest --map-tablespace /a=/b --map-tablespace /c=/d").unwrap();
        assert_eq!(args.map_tablespaces.len(), 2);
    }

    #[test]
    fn timeline_is_decimal_or_marked_hexadecimal() {
        assert_eq!(parse_timeline("10"), Ok(10));
        assert_eq!(parse_timeline("0x10"), Ok(16));
        for bad in ["0", "0x0", "+1", "0x+1", "-1", "A", "latest", "4294967296"] {
            assert!(parse_timeline(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_followed("latest"), Ok(Followed::Latest));
        assert_eq!(parse_followed("current"), Ok(Followed::Current));
        assert_eq!(
            parse_followed("0x2"),
            Ok(Followed::Numbered(TimelineId::new(2).unwrap()))
        );
        assert!(parse_followed("newest").is_err());
    }
}
