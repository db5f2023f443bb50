//! `walden verify`: proves that what is stored can be recovered from. Owns the flags, where what was verified is remembered, and how findings
//! look; what is verified is `pitr::verify`'s.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;
use clap::{ArgGroup, Args};
use pitr::time::{find_zone, parse_time};
use pitr::verify::{Level, Memory, Report, Request, verify};
use repository::Deadlines;
use repository::sealed::OpenPolicy;
use serde::Serialize;
use wal_format::Timestamp;

use super::Globals;
use crate::cli::{KeyArgs, SourceArgs};
use crate::each::{self, Place, Unseen};
use crate::exit_code::ExitCode;
use crate::failure::{Advise, Failure};
use crate::open;
use crate::verify_report::{Bar, looked_at, write_findings};

/// Prove that what is stored can be recovered from
///
/// Each level includes those before it: --presence reads names and descriptors, --checksums all stored bytes, --wal decodes every
/// WAL record, --backups holds every file of every backup against PostgreSQL's manifest. What was verified is remembered in the state
/// directory, so that the next run reads only what is new.
#[derive(Debug, Args)]
#[command(
    group = ArgGroup::new("level").multiple(false).args(["presence", "checksums", "wal", "backups"]),
    after_help = "\
Examples:
  walden verify                     every WAL record, as far as not verified before
  walden verify --backups --all     everything, again
  walden verify --presence          quick, and without a key
  walden verify s3://acme-pg-eu/prod --identity file:walden.key --json

Exit codes: 0 all is well, 5 something is damaged or missing, 12 the level needs a key. Remembered in $STATE_DIRECTORY, else
$XDG_STATE_HOME/walden, else ~/.local/state/walden.")]
pub(crate) struct VerifyArgs {
    /// Names and descriptors: no hole from any backup to the end (needs no key)
    #[arg(help_heading = "Level options", long)]
    pub(crate) presence: bool,

    /// And all stored bytes; with a key their authentication
    #[arg(help_heading = "Level options", long)]
    pub(crate) checksums: bool,

    /// And every WAL record, across segments and timelines (default)
    #[arg(help_heading = "Level options", long)]
    pub(crate) wal: bool,

    /// And every file and data page of every backup
    #[arg(help_heading = "Level options", long)]
    pub(crate) backups: bool,

    /// Only what recoveries to this time or later need
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<String>,

    /// Zone of a time that names none, such as Europe/Paris
    #[arg(long, value_name = "ZONE", requires = "since")]
    pub(crate) tz: Option<String>,

    /// Read again what earlier runs have verified
    #[arg(long)]
    pub(crate) all: bool,

    #[command(flatten)]
    pub(crate) key: KeyArgs,

    #[command(flatten)]
    pub(crate) source: SourceArgs,
}

#[derive(Debug, Serialize)]
struct Document {
    repository: String,
    cluster: String,
    healthy: bool,
    seconds: f64,
    #[serde(flatten)]
    report: Report,
}

/// Of several repositories.
#[derive(Debug, Serialize)]
struct Verified {
    healthy: bool,
    repositories: Vec<Document>,
    /// Repositories that could not be looked at.
    unseen: Vec<Unseen>,
}

/// Verifies; ends with 5 if something is wrong, 3 if nothing can be recovered for want of a backup.
pub(crate) async fn run(args: VerifyArgs, globals: &Globals) -> Result<ExitCode> {
    let since = match &args.since {
        Some(text) => {
            let zone = args.tz.as_deref().map(find_zone).transpose()?;
            Some(parse_time(text, zone.as_ref())?)
        }
        None => None,
    };
    let level = match () {
        () if args.presence => Level::Presence,
        () if args.checksums => Level::Checksums,
        () if args.backups => Level::Backups,
        () => Level::Wal,
    };
    let config = args
        .source
        .choose(globals.load_config(&args.key.identity.overrides(&args.source))?)?;
    let policy = match level {
        // Believes descriptors, so that it works where no key is.
        Level::Presence => open::open_policy(&config, true).await.unwrap_or_default(),
        _ => open::open_policy(&config, args.key.allow_plain).await?,
    };
    let places = each::open_each(
        &config,
        args.source.cluster.as_deref(),
        Deadlines::default(),
    )
    .await?;
    let mut verified = Vec::new();
    // One after the other: each takes all processors.
    for place in &places.each {
        let document = verify_one(place, &policy, (level, since), args.all, globals).await;
        match document {
            // The same key is asked for everywhere.
            Err(error) if Failure::of(&error).code == ExitCode::NoKey => return Err(error),
            document => verified.push((&place.repository, document)),
        }
    }
    let seen = each::collect(verified.into_iter())?;
    let report = Verified {
        healthy: seen.each.iter().all(|one| one.healthy)
            && places.unseen.is_empty()
            && seen.unseen.is_empty(),
        repositories: seen.each,
        unseen: [places.unseen, seen.unseen].concat(),
    };
    match report.repositories.as_slice() {
        [only] if config.repositories.len() == 1 => {
            (globals.output).print("walden.verify", only, || only.to_text())?;
        }
        _ => (globals.output).print("walden.verify", &report, || report.to_text())?,
    }
    let is_damaged = report.repositories.iter().any(|one| !one.healthy)
        || report.unseen.iter().any(|one| one.is_damaged);
    let is_empty = |one: &Document| one.report.backups.is_empty();
    Ok(match () {
        () if is_damaged => ExitCode::Integrity,
        () if report.repositories.iter().any(is_empty) => ExitCode::Warnings,
        () if !report.unseen.is_empty() => ExitCode::Warnings,
        () => ExitCode::Done,
    })
}

/// Verifies one repository.
async fn verify_one(
    Place {
        repository,
        cluster,
    }: &Place,
    policy: &OpenPolicy,
    (level, since): (Level, Option<Timestamp>),
    again: bool,
    globals: &Globals,
) -> Result<Document> {
    let mut trouble = None;
    let mut memory = Memory::none();
    match state_folder(|name| std::env::var_os(name).map(PathBuf::from)) {
        Some(folder) if level.reads() => {
            let identity = repository.fetch_identity().await?;
            let id = identity.map(|document| document.repository_id);
            // A copy of the repository at another place is another one.
            let id = format!("{} at {}", id.unwrap_or_default(), repository.url());
            (memory, trouble) = Memory::load(&folder, &id, cluster.id(), again);
        }
        None if level.reads() => {
            trouble =
                Some("no state directory: set STATE_DIRECTORY, XDG_STATE_HOME or HOME".to_owned());
        }
        _ => {}
    }
    let request = Request {
        repository,
        policy,
        cluster,
        level,
        since,
    };
    let begun = Instant::now();
    let bar = Bar::new(&globals.screen, "verify");
    let verified = verify(&request, &mut memory, &|step| bar.step(step)).await;
    bar.finish();
    let mut report = match verified {
        Err(error) if error.class() == repository::ErrorClass::Key => {
            return Err(error).hint(
                "give the identity with --identity, or verify what needs none with --checksums or --presence",
            );
        }
        verified => verified?,
    };
    if let Some(trouble) = trouble {
        report.notes.push(format!(
            "what earlier runs verified is not known: {trouble}"
        ));
    }
    Ok(Document {
        repository: repository.url().to_owned(),
        cluster: cluster.id().to_string(),
        healthy: report.findings.is_empty(),
        seconds: begun.elapsed().as_secs_f64(),
        report,
    })
}

/// The folder in which programs keep their state: systemd's, else the user's.
fn state_folder(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let absolute = |name| variable(name).filter(|path| path.is_absolute());
    // systemd lists several folders with colons between them.
    let systemd = variable("STATE_DIRECTORY").and_then(|list| {
        let first = list.to_str()?.split(':').next()?.to_owned();
        Some(PathBuf::from(first)).filter(|path| path.is_absolute())
    });
    let per_user = || {
        let base = absolute("XDG_STATE_HOME");
        let home = || absolute("HOME").map(|home| home.join(Path::new(".local/state")));
        base.or_else(home).map(|base| base.join("walden"))
    };
    systemd.or_else(per_user)
}

impl Verified {
    fn to_text(&self) -> String {
        let documents = self.repositories.iter().map(Document::to_text);
        let mut text = documents.collect::<Vec<_>>().join("\n");
        for unseen in &self.unseen {
            text.push_str(&format!("\n{unseen}\n"));
        }
        text
    }
}

impl Document {
    fn to_text(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        self.write(&mut text).expect("a string takes any text");
        text
    }

    fn write(&self, text: &mut String) -> std::fmt::Result {
        let report = &self.report;
        let level = match report.level {
            Level::Presence => "--presence: names and descriptors",
            Level::Checksums => "--checksums: stored bytes",
            Level::Wal => "--wal: stored bytes and every WAL record",
            Level::Backups => {
                "--backups: stored bytes, every WAL record, every file of the backups"
            }
        };
        writeln!(text, "cluster     {} in {}", self.cluster, self.repository)?;
        writeln!(text, "verified    {level}")?;
        let looked_at = looked_at(report, self.seconds);
        writeln!(text, "looked at   {looked_at}")?;
        for reach in &report.backups {
            writeln!(
                text,
                "backup      {}: WAL from {} to {} on timeline {}",
                reach.backup, reach.from_lsn, reach.to_lsn, reach.timeline
            )?;
        }
        for (timeline, open) in &report.prepared {
            for prepared in open {
                writeln!(
                    text,
                    "prepared    {} (xid {}, prepared at {}) is open at the end of timeline {timeline}",
                    prepared.name, prepared.xid, prepared.lsn
                )?;
            }
        }
        for note in &report.notes {
            writeln!(text, "note        {note}")?;
        }
        write_findings(text, report)?;
        match report.findings.len() {
            0 if report.backups.is_empty() => writeln!(
                text,
                "nothing is wrong with what is stored, but nothing can be recovered from it"
            ),
            0 => writeln!(text, "all is well"),
            1 => writeln!(text, "\n1 problem"),
            count => writeln!(text, "\n{count} problems"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_is_kept_where_the_system_says() {
        let find = |set: &[(&str, &str)]| {
            state_folder(|name| {
                let found = set.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| PathBuf::from(value))
            })
        };
        assert_eq!(find(&[]), None);
        assert_eq!(find(&[("HOME", "relative")]), None);
        let home = [("HOME", "/h")];
        assert_eq!(find(&home), Some("/h/.local/state/walden".into()));
        let xdg = [("HOME", "/h"), ("XDG_STATE_HOME", "/x")];
        assert_eq!(find(&xdg), Some("/x/walden".into()));
        let systemd = [
            ("XDG_STATE_HOME", "/x"),
            ("STATE_DIRECTORY", "/var/lib/a:/var/lib/b"),
        ];
        assert_eq!(find(&systemd), Some("/var/lib/a".into()));
    }
}
