//! `walden list`: the backups of a cluster, how far each one reaches, and what each repository has of them. Read from names and descriptors: no key
//! is needed. With one (or unencrypted), history files are opened too, and a window goes on across timelines.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use futures_util::future::join_all;
use jiff::Timestamp;
use pitr::survey::{Effort, Survey};
use pitr::window::Reach;
use repository::backup::BackupDescriptor;
use repository::key::ClusterId;
use serde::Serialize;

use super::Globals;
use crate::cli::SourceArgs;
use crate::config::Overrides;
use crate::each::{self, Place, Unseen};
use crate::exit_code::ExitCode;
use crate::open;
use crate::report::{Align, Table};
use crate::units::{ByteSize, counted, human_duration};
use crate::windows::{Gap, Point, Window, gaps_of, policy_if_any};

/// List backups, their sizes and the window each one opens
///
/// Needs no key and no server: what it shows is read from the repositories alone, each of them or the one that is named. A backup from which nothing
/// can be recovered, what one repository lacks of another's, or that one cannot be looked at, shows in the exit code.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  walden list
  walden list s3://acme-pg-eu/prod --cluster 7412345678901234567
  walden list --json | jq '.backups[].label'")]
pub(crate) struct ListArgs {
    #[command(flatten)]
    pub(crate) source: SourceArgs,
}

#[derive(Debug, Serialize)]
struct Report {
    cluster: String,
    /// Others of the same system identifier: opened after a conflict, or before one.
    other_incarnations: Vec<String>,
    /// Those that any repository has whole, each with the window of the one in which it reaches furthest.
    backups: Vec<Backup>,
    /// Labels that were begun and are finished nowhere, or are being made now.
    unfinished: Vec<String>,
    /// Those of any repository.
    gaps: Vec<Gap>,
    /// Each that was looked at.
    repositories: Vec<Shelf>,
    /// Those that could not be.
    unseen: Vec<Unseen>,
}

/// What one repository has of it.
#[derive(Debug, Serialize)]
struct Shelf {
    /// Its name in the configuration.
    name: String,
    url: String,
    /// Backups that it has whole.
    backups: usize,
    /// Labels of those that others have whole.
    lacks: Vec<String>,
    gaps: Vec<Gap>,
    /// The furthest moment that can be recovered to from it alone.
    newest: Option<Point>,
}

#[derive(Debug, Serialize)]
struct Backup {
    label: String,
    kind: String,
    server_version: String,
    timeline: u32,
    from_standby: bool,
    started: Timestamp,
    duration_seconds: f64,
    plain_bytes: u64,
    stored_bytes: u64,
    start_lsn: String,
    stop_lsn: String,
    /// `None`: the WAL that makes the backup consistent is not stored.
    window: Option<Window>,
    /// Names of those that have it whole.
    repositories: Vec<String>,
}

/// Lists; ends with 3 if there are gaps that nobody has acknowledged, nothing can be recovered from a backup, a repository lacks one that another
/// has, or could not be looked at.
pub(crate) async fn run(args: ListArgs, globals: &Globals) -> Result<ExitCode> {
    let overrides = Overrides {
        repository: args.source.repository(),
        ..Overrides::default()
    };
    let config = args.source.choose(globals.load_config(&overrides)?)?;
    let named = args.source.cluster.as_deref();
    let places = each::open_each(&config, named, open::IMPATIENT).await?;
    let policy = &policy_if_any(&config).await;
    let surveys = places.each.iter().map(|place| async move {
        let (repository, cluster) = (&place.repository, &place.cluster);
        let survey = Survey::gather(repository, cluster, policy, Effort::ENDS).await?;
        let known = repository.list_clusters().await?;
        Ok::<_, anyhow::Error>((place, survey, known))
    });
    let surveys = join_all(surveys).await;
    let repositories = places.each.iter().map(|place| &place.repository);
    let seen = each::collect(repositories.zip(surveys))?;
    let report = Report::new(&seen.each, [places.unseen, seen.unseen].concat());
    globals.output.print("walden.list", &report, || {
        report.to_text(globals.output.color)
    })?;
    Ok(match report.is_well() {
        true => ExitCode::Done,
        false => ExitCode::Warnings,
    })
}

impl Backup {
    fn new(descriptor: &BackupDescriptor) -> Self {
        Self {
            label: descriptor.label.clone(),
            kind: descriptor.kind.clone(),
            server_version: descriptor.server_version.clone(),
            timeline: descriptor.timeline,
            from_standby: descriptor.from_standby,
            started: descriptor.started,
            duration_seconds: took(descriptor).as_secs_f64(),
            plain_bytes: descriptor.plain_size,
            stored_bytes: descriptor.stored_size,
            start_lsn: descriptor.start_lsn.to_string(),
            stop_lsn: descriptor.stop_lsn.to_string(),
            window: None,
            repositories: Vec::new(),
        }
    }
}

fn took(descriptor: &BackupDescriptor) -> Duration {
    let took = descriptor.stopped.duration_since(descriptor.started);
    Duration::try_from(took).unwrap_or_default()
}

impl Report {
    fn new(seen: &[(&Place, Survey, Vec<ClusterId>)], unseen: Vec<Unseen>) -> Self {
        let (mut backups, mut gaps) = (BTreeMap::new(), Vec::new());
        let (mut unfinished, mut others) = (BTreeSet::new(), BTreeSet::new());
        for (place, survey, known) in seen {
            for one in &survey.windows.backups {
                let label = &one.backup.label;
                let Some(descriptor) = survey.descriptors.get(label) else {
                    continue;
                };
                let reach = one.reaches.first().map(Reach::to);
                let reach = reach.map(|to| (to.timeline, to.lsn));
                let (furthest, backup) = backups
                    .entry(label.clone())
                    .or_insert_with(|| (None, Backup::new(descriptor)));
                if reach > *furthest {
                    (*furthest, backup.window) = (reach, Window::of(one));
                }
                let name = place.repository.name();
                backup.repositories.push(name.to_owned());
            }
            for gap in gaps_of(&survey.windows) {
                if !gaps.contains(&gap) {
                    gaps.push(gap);
                }
            }
            let begun = survey.catalog.backups.iter();
            unfinished.extend(begun.map(|(label, _)| label.clone()));
            let id = place.cluster.id();
            let other = |other: &&ClusterId| {
                other.system_identifier == id.system_identifier && **other != id
            };
            others.extend(known.iter().filter(other).copied());
        }
        unfinished.retain(|label| !backups.contains_key(label));
        let shelf = |(place, survey, _): &(&Place, Survey, _)| {
            let has = &survey.descriptors;
            let lacks = backups.keys().filter(|label| !has.contains_key(*label));
            let newest = survey.windows.newest();
            Shelf {
                name: place.repository.name().to_owned(),
                url: place.repository.url().to_owned(),
                backups: has.len(),
                lacks: lacks.map(ToString::to_string).collect(),
                gaps: gaps_of(&survey.windows),
                newest: newest.map(|(_, reach)| reach.to().into()),
            }
        };
        let repositories = seen.iter().map(shelf).collect();
        let mut backups: Vec<Backup> = backups.into_values().map(|(_, backup)| backup).collect();
        // Labels have no more than seconds.
        backups.sort_by_key(|backup| backup.started);
        let cluster = seen.first().map(|(place, ..)| place.cluster.id());
        Self {
            cluster: cluster.map(|id| id.to_string()).unwrap_or_default(),
            other_incarnations: others.iter().map(ToString::to_string).collect(),
            backups,
            unfinished: unfinished.iter().map(ToString::to_string).collect(),
            gaps,
            repositories,
            unseen,
        }
    }

    fn is_well(&self) -> bool {
        self.unseen.is_empty()
            && self.gaps.iter().all(|gap| gap.acknowledged)
            && self.backups.iter().all(|backup| backup.window.is_some())
            && self.repositories.iter().all(|one| one.lacks.is_empty())
    }

    fn to_text(&self, color: bool) -> String {
        if self.backups.is_empty() {
            return format!(
                "cluster {}: no backups yet; take one with `walden backup`\n{}",
                self.cluster,
                self.notes()
            );
        }
        let mut table = Table::new([
            ("LABEL", Align::Left),
            ("KIND", Align::Left),
            ("STARTED", Align::Left),
            ("TOOK", Align::Right),
            ("SIZE", Align::Right),
            ("STORED", Align::Right),
            ("SERVER", Align::Left),
        ]);
        let mut windows = String::from("\nWhat each one can be recovered to:\n");
        for backup in &self.backups {
            table.push([
                backup.label.clone(),
                backup.kind.clone(),
                format!("{:.0}", backup.started),
                human_duration(Duration::from_secs_f64(backup.duration_seconds)),
                ByteSize::new(backup.plain_bytes).to_string(),
                ByteSize::new(backup.stored_bytes).to_string(),
                backup.server_version.clone(),
            ]);
            let reach = match &backup.window {
                None => "nothing: the WAL that belongs to it is not stored".to_owned(),
                Some(window) => window.to_text(),
            };
            windows.push_str(&format!("  {}  {reach}\n", backup.label));
        }
        if self.is_by_name() {
            windows.push_str(
                "  (by the names of segments; walden window reads what each one says of itself)\n",
            );
        }
        format!("{}{windows}{}", table.to_text(color), self.notes())
    }

    fn is_by_name(&self) -> bool {
        let mut windows = self.backups.iter().filter_map(|one| one.window.as_ref());
        windows.any(Window::is_by_name)
    }

    fn notes(&self) -> String {
        let mut text = String::new();
        for label in &self.unfinished {
            text.push_str(&format!("unfinished: {label}\n"));
        }
        for other in &self.other_incarnations {
            text.push_str(&format!(
                "another incarnation: {other} (--cluster {other} lists it)\n"
            ));
        }
        let is_one = self.repositories.len() + self.unseen.len() == 1;
        for gap in self.gaps.iter().filter(|_| is_one) {
            text.push_str(&format!("gap: {gap}\n"));
        }
        for shelf in self.repositories.iter().filter(|_| !is_one) {
            text.push_str(&shelf.to_text());
        }
        for unseen in &self.unseen {
            text.push_str(&format!("{unseen}\n"));
        }
        text
    }
}

impl Shelf {
    fn to_text(&self) -> String {
        let reaches = match &self.newest {
            Some(newest) => format!("reaches {newest}"),
            None => "nothing can be recovered from it".to_owned(),
        };
        let (name, url) = (&self.name, &self.url);
        let mut text = format!(
            "repository {name} ({url}): {}, {reaches}\n",
            counted(self.backups, "backup")
        );
        for label in &self.lacks {
            text.push_str(&format!("repository {name} lacks {label}\n"));
        }
        for gap in &self.gaps {
            text.push_str(&format!("repository {name}: gap: {gap}\n"));
        }
        text
    }
}
