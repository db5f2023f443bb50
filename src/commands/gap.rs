//! `walden gap`: recorded holes in the WAL, and their acknowledgement. What is missing is the repository's to say (`Catalog::open_gaps`, and
//! `pitr` for holes that nobody has recorded); here is how it looks, and who may be told to be quiet about it.

use std::collections::BTreeSet;

use anyhow::{Context, Result, anyhow};
use clap::{Args, Subcommand};
use jiff::Timestamp;
use pitr::survey::{Effort, Survey};
use pitr::window::Hole;
use repository::catalog::GapRange;
use repository::cluster::ClusterDocument;
use repository::gap::{GapAcknowledgement, GapDocument};
use repository::key::ClusterId;
use repository::sealed::OpenPolicy;
use repository::{ErrorClass, Repository};
use serde::Serialize;
use wal_format::{Lsn, TimelineId};

use super::Globals;
use crate::cli::SourceArgs;
use crate::config::Overrides;
use crate::exit_code::ExitCode;
use crate::failure::Advise;
use crate::open;
use crate::report::time;
use crate::sources;
use crate::units::ByteSize;

/// Most bytes of a reason or a name.
const MAX_WORDS_BYTES: usize = 4096;

/// Show WAL that was lost, and acknowledge that it was
#[derive(Debug, Args)]
pub(crate) struct GapArgs {
    #[command(subcommand)]
    action: GapCommand,
}

#[derive(Debug, Subcommand)]
enum GapCommand {
    /// List gaps: what is missing, why, and who knows of it
    ///
    /// Ends with 5 if there is one that is neither closed nor acknowledged.
    List(GapListArgs),
    /// Acknowledge a gap: it stays, but is no alarm any more
    ///
    /// Who, when and why is kept for good beside the gap. `status` and `verify` no longer end with 5 for it. No restore crosses it, as before.
    #[command(after_help = "\
Examples:
  walden gap ack 0/3000000-0/5000000 --reason \"disk full on 3 May, see INC-4711\" --yes
  walden gap ack 00000001-0000000003000000-0000000005000000 --reason \"known\" --by dba --yes")]
    Ack(GapAckArgs),
}

#[derive(Debug, Args)]
struct GapListArgs {
    #[command(flatten)]
    source: SourceArgs,
}

#[derive(Debug, Args)]
struct GapAckArgs {
    /// Which: the id, or FROM-TO in LSNs, as `walden gap list` shows them
    #[arg(value_name = "GAP")]
    gap: String,

    /// Why it may stay
    #[arg(long, value_name = "TEXT", value_parser = parse_words)]
    reason: String,

    /// Who says so [default: this user]
    #[arg(long, value_name = "NAME", value_parser = parse_words)]
    by: Option<String>,

    /// Do it; without, only what would be done is shown
    #[arg(long)]
    yes: bool,

    #[command(flatten)]
    source: SourceArgs,
}

fn parse_words(text: &str) -> Result<String, String> {
    let text = text.trim();
    match text.len() {
        0 => Err("it says nothing".to_owned()),
        1..=MAX_WORDS_BYTES => Ok(text.to_owned()),
        _ => Err(format!("it has more than {MAX_WORDS_BYTES} bytes")),
    }
}

/// A gap as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Gap {
    /// Name of the repository that lacks the WAL.
    repository: String,
    id: String,
    timeline: u32,
    from: String,
    to: String,
    bytes: u64,
    state: State,
    /// What of it is still missing.
    missing: Vec<Stretch>,
    /// How it was lost; `None`: nobody recorded it, it was found missing.
    why: Option<String>,
    recorded: Option<Timestamp>,
    acknowledgement: Option<Acknowledgement>,
    #[serde(skip)]
    range: GapRange,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    /// WAL is missing.
    Open,
    /// WAL is missing, and somebody knows.
    Acknowledged,
    /// All of it is stored now.
    Closed,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Stretch {
    from: String,
    to: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Acknowledgement {
    by: String,
    reason: String,
    at: Timestamp,
}

#[derive(Debug, Serialize)]
struct ListReport {
    cluster: String,
    /// By repository, timeline and position.
    gaps: Vec<Gap>,
}

#[derive(Debug, Serialize)]
struct AckReport {
    cluster: String,
    /// `acknowledged`, `already-acknowledged`, or `planned` without `--yes`.
    outcome: Outcome,
    /// One for each repository that has it.
    gaps: Vec<Gap>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Outcome {
    AlreadyAcknowledged,
    Acknowledged,
    Planned,
}

/// Lists or acknowledges.
pub(crate) async fn run(args: GapArgs, globals: &Globals) -> Result<ExitCode> {
    match args.action {
        GapCommand::List(args) => list(&args, globals).await,
        GapCommand::Ack(args) => acknowledge(&args, globals).await,
    }
}

/// The configured repositories, each with the gaps in it.
struct Places {
    cluster: ClusterId,
    places: Vec<(Repository, Vec<Gap>)>,
}

impl Places {
    async fn ask(source: &SourceArgs, globals: &Globals) -> Result<Self> {
        let overrides = Overrides {
            repository: source.repository(),
            ..Overrides::default()
        };
        let config = source.choose(globals.load_config(&overrides)?)?;
        let repositories = sources::open_existing(&config).await?;
        let document =
            open::find_cluster(&config, &repositories, source.cluster.as_deref()).await?;
        let mut places = Vec::new();
        for repository in repositories.members() {
            let gaps = gaps_in(repository, &document).await;
            let gaps = gaps.with_context(|| format!("read the gaps in {}", repository.url()))?;
            places.push((repository.clone(), gaps));
        }
        Ok(Self {
            cluster: document.id(),
            places,
        })
    }
}

async fn gaps_in(repository: &Repository, document: &ClusterDocument) -> Result<Vec<Gap>> {
    let (cluster, size) = (document.id(), document.segment_size()?);
    // No key: where WAL is missing, names say.
    let policy = OpenPolicy::default();
    let survey = Survey::gather(repository, document, &policy, Effort::ENDS).await?;
    let name = repository.name();
    let mut gaps = Vec::new();
    for recorded in repository.fetch_gaps(cluster).await? {
        let missing = survey.catalog.missing_in(recorded.range, size);
        let state = match (missing.is_empty(), &recorded.acknowledgement) {
            (true, _) => State::Closed,
            (false, Some(_)) => State::Acknowledged,
            (false, None) => State::Open,
        };
        gaps.push(Gap {
            state,
            missing: missing.into_iter().map(Stretch::from).collect(),
            why: Some(recorded.document.why),
            recorded: recorded.document.recorded,
            acknowledgement: recorded.acknowledgement.map(Acknowledgement::from),
            ..Gap::found(name, recorded.range)
        });
    }
    let holes = survey.windows.holes.iter().filter(|hole| !hole.recorded);
    let range = |hole: &Hole| GapRange {
        timeline: hole.timeline,
        from: hole.from,
        to: hole.to,
    };
    gaps.extend(holes.map(|hole| Gap::found(name, range(hole))));
    gaps.sort_by_key(|gap| gap.range);
    Ok(gaps)
}

async fn list(args: &GapListArgs, globals: &Globals) -> Result<ExitCode> {
    let asked = Places::ask(&args.source, globals).await?;
    let report = ListReport {
        cluster: asked.cluster.to_string(),
        gaps: asked
            .places
            .into_iter()
            .flat_map(|(_, gaps)| gaps)
            .collect(),
    };
    globals
        .output
        .print("walden.gaps", &report, || report.to_text())?;
    let is_open = |gap: &Gap| gap.state == State::Open;
    Ok(match report.gaps.iter().any(is_open) {
        true => ExitCode::Integrity,
        false => ExitCode::Done,
    })
}

async fn acknowledge(args: &GapAckArgs, globals: &Globals) -> Result<ExitCode> {
    let by = args.by.clone().or_else(|| {
        let names = ["USER", "LOGNAME"].into_iter();
        let mut users = names.filter_map(|name| std::env::var(name).ok());
        users.find(|user| !user.trim().is_empty())
    });
    let by = by
        .ok_or_else(|| anyhow!("who acknowledges the gap is not known"))
        .hint("give --by NAME")
        .exit_code(ExitCode::Usage)?;
    let asked = Places::ask(&args.source, globals).await?;
    let all = asked.places.iter().flat_map(|(_, gaps)| gaps);
    let meant = find(all, &args.gap)?;
    let now = Timestamp::from_microsecond(Timestamp::now().as_microsecond())?;
    let acknowledgement = GapAcknowledgement::new(&by, &args.reason, now);
    let (mut outcome, mut gaps) = (Outcome::AlreadyAcknowledged, Vec::new());
    for (repository, there) in &asked.places {
        let there = there.iter().find(|gap| gap.range == meant);
        let Some(gap) = there.filter(|gap| gap.state != State::Closed) else {
            continue;
        };
        let mut gap = gap.clone();
        let one = match (gap.state, args.yes) {
            (State::Open, false) => {
                gap.acknowledgement = Some(acknowledgement.clone().into());
                Outcome::Planned
            }
            (State::Open, true) => {
                put(repository, asked.cluster, &mut gap, &acknowledgement).await?
            }
            _ => Outcome::AlreadyAcknowledged,
        };
        outcome = outcome.max(one);
        gaps.push(gap);
    }
    if gaps.is_empty() {
        return Err(anyhow!("gap {meant} is closed: all of it is stored"))
            .hint("nothing is to be done about it");
    }
    let report = AckReport {
        cluster: asked.cluster.to_string(),
        outcome,
        gaps,
    };
    globals
        .output
        .print("walden.gap-ack", &report, || report.to_text())?;
    Ok(match outcome {
        Outcome::Planned => ExitCode::Warnings,
        Outcome::Acknowledged | Outcome::AlreadyAcknowledged => ExitCode::Done,
    })
}

async fn put(
    repository: &Repository,
    cluster: ClusterId,
    gap: &mut Gap,
    acknowledgement: &GapAcknowledgement,
) -> Result<Outcome> {
    if gap.why.is_none() {
        let why = "found missing when it was acknowledged";
        let document = GapDocument::new(gap.range, why, acknowledgement.acknowledged);
        repository.record_gap(cluster, gap.range, &document).await?;
        gap.why = Some(why.to_owned());
        gap.recorded = Some(acknowledgement.acknowledged);
    }
    let put = repository
        .acknowledge_gap(cluster, gap.range, acknowledgement)
        .await;
    let (first, outcome) = match put {
        Ok(_) => (acknowledgement.clone(), Outcome::Acknowledged),
        // Somebody was faster.
        Err(error) if error.class() == ErrorClass::Conflict => (
            repository.fetch_acknowledgement(cluster, gap.range).await?,
            Outcome::AlreadyAcknowledged,
        ),
        Err(error) => return Err(error.into()),
    };
    gap.state = State::Acknowledged;
    gap.acknowledgement = Some(first.into());
    Ok(outcome)
}

/// The gap that is meant: by its id, or by its LSNs where these name one.
fn find<'a>(gaps: impl Iterator<Item = &'a Gap>, name: &str) -> Result<GapRange> {
    let lsns = name
        .split_once('-')
        .and_then(|(from, to)| Some((from.parse::<Lsn>().ok()?, to.parse::<Lsn>().ok()?)));
    let id: Option<GapRange> = name.parse().ok();
    if lsns.is_none() && id.is_none() {
        return Err(anyhow!("`{name}` names no gap"))
            .hint("give an id, or FROM-TO in LSNs, as `walden gap list` shows them")
            .exit_code(ExitCode::Usage);
    }
    let is_meant = |range: &GapRange| id == Some(*range) || lsns == Some((range.from, range.to));
    // Several repositories may have the same.
    let meant: BTreeSet<GapRange> = gaps.map(|gap| gap.range).filter(is_meant).collect();
    let mut meant = meant.into_iter();
    match (meant.next(), meant.next()) {
        (Some(only), None) => Ok(only),
        (None, _) => Err(anyhow!("there is no gap {name}"))
            .hint("`walden gap list` shows those there are")
            .exit_code(ExitCode::Target),
        (Some(one), Some(other)) => Err(anyhow!("{name} is a gap on more than one timeline"))
            .hint(format!("give the id of one: {one}, {other}, …"))
            .exit_code(ExitCode::Usage),
    }
}

impl Gap {
    /// One of which nothing is known but that it is missing.
    fn found(repository: &str, range: GapRange) -> Self {
        Self {
            repository: repository.to_owned(),
            id: range.to_string(),
            timeline: TimelineId::get(range.timeline),
            from: range.from.to_string(),
            to: range.to.to_string(),
            bytes: range.to.distance_from(range.from).unwrap_or(0),
            state: State::Open,
            missing: vec![range.into()],
            why: None,
            recorded: None,
            acknowledgement: None,
            range,
        }
    }

    fn to_text(&self) -> String {
        let state = match self.state {
            State::Open => "open",
            State::Acknowledged => "acknowledged",
            State::Closed => "closed: it is stored",
        };
        let mut text = format!(
            "gap {}  {state}, in {}\n  WAL       {}-{} on timeline {}, {}\n",
            self.id,
            self.repository,
            self.from,
            self.to,
            self.timeline,
            ByteSize::new(self.bytes)
        );
        let mut line = |name: &str, value: &str| text.push_str(&format!("  {name:<9} {value}\n"));
        let whole = [Stretch::from(self.range)];
        if self.state != State::Closed && self.missing != whole {
            for stretch in &self.missing {
                line("missing", &format!("{}-{}", stretch.from, stretch.to));
            }
        }
        let unknown = "not recorded: it is not stored, later WAL is";
        line("why", self.why.as_deref().unwrap_or(unknown));
        if let Some(recorded) = self.recorded {
            line("recorded", &time(recorded));
        }
        if let Some(known) = &self.acknowledgement {
            line(
                "known to",
                &format!("{}, since {}", known.by, time(known.at)),
            );
            line("reason", &known.reason);
        }
        text
    }
}

impl ListReport {
    fn to_text(&self) -> String {
        if self.gaps.is_empty() {
            return format!("cluster {}: no gaps\n", self.cluster);
        }
        let gaps: Vec<String> = self.gaps.iter().map(Gap::to_text).collect();
        gaps.join("\n")
    }
}

impl AckReport {
    fn to_text(&self) -> String {
        let outcome = match self.outcome {
            Outcome::Planned => "This would be kept for good; do it with --yes.",
            Outcome::Acknowledged => "Acknowledged. No restore crosses it, as before.",
            Outcome::AlreadyAcknowledged => "It was acknowledged before; that stays.",
        };
        let gaps: Vec<String> = self.gaps.iter().map(Gap::to_text).collect();
        format!("{}{outcome}\n", gaps.join("\n"))
    }
}

impl From<GapRange> for Stretch {
    fn from(range: GapRange) -> Self {
        Self {
            from: range.from.to_string(),
            to: range.to.to_string(),
        }
    }
}

impl From<GapAcknowledgement> for Acknowledgement {
    fn from(document: GapAcknowledgement) -> Self {
        Self {
            by: document.by,
            reason: document.reason,
            at: document.acknowledged,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Failure;

    #[test]
    fn a_gap_is_named_by_its_id_or_by_its_lsns_where_these_name_one() {
        let gap = |timeline, from, to| {
            let timeline = TimelineId::new(timeline).unwrap();
            let (from, to) = (Lsn::new(from), Lsn::new(to));
            Gap::found("one", GapRange { timeline, from, to })
        };
        let mut gaps = vec![gap(1, 0x10, 0x20), gap(1, 0x20, 0x30), gap(2, 0x20, 0x30)];
        // The same in another repository.
        gaps.push(gap(1, 0x10, 0x20));
        let found = |name: &str| find(gaps.iter(), name).map(|range| range.to_string());
        let code = |name: &str| Failure::of(&found(name).unwrap_err()).code;
        assert_eq!(found("0/10-0/20").unwrap(), gaps[0].id);
        for gap in &gaps {
            assert_eq!(found(&gap.id).unwrap(), gap.id);
        }
        assert_eq!(code("0/20-0/30"), ExitCode::Usage);
        assert_eq!(code("0/20-0/31"), ExitCode::Target);
        assert_eq!(code("all"), ExitCode::Usage);
    }
}
