//! `walden list`: the backups of a cluster and how far each one reaches. Read from names and descriptors: no key is needed. With
//! one (or unencrypted), history files are opened too, and a window goes on across timelines.

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use jiff::Timestamp;
use pitr::survey::{Effort, Survey};
use repository::backup::BackupDescriptor;
use serde::Serialize;

use super::Globals;
use crate::cli::SourceArgs;
use crate::config::Overrides;
use crate::exit_code::ExitCode;
use crate::open;
use crate::report::{Align, Table};
use crate::units::{ByteSize, human_duration};
use crate::windows::{Gap, Window, gaps_of, policy_if_any};

/// List backups, their sizes and the window each one opens
///
/// Needs no key and no server: what it shows is read from the repository alone.
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
    repository: String,
    cluster: String,
    /// Others of the same system identifier: opened after a conflict, or before one.
    other_incarnations: Vec<String>,
    /// Names of other configured repositories, of which nothing is said here.
    other_repositories: Vec<String>,
    backups: Vec<Backup>,
    /// Labels that were begun and not finished, or are being made now.
    unfinished: Vec<String>,
    gaps: Vec<Gap>,
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
}

/// Lists; ends with 3 if there are gaps that nobody has acknowledged.
pub(crate) async fn run(args: ListArgs, globals: &Globals) -> Result<ExitCode> {
    let overrides = Overrides {
        repository: args.source.repository(),
        ..Overrides::default()
    };
    let config = args.source.choose(globals.load_config(&overrides)?)?;
    let repository = open::open_existing_repository(&config).await?;
    let cluster = open::find_cluster(&config, &repository, args.source.cluster.as_deref()).await?;
    let policy = policy_if_any(&config).await;
    let survey = Survey::gather(&repository, &cluster, &policy, Effort::ENDS).await?;
    let windows = survey.windows.backups.iter();
    let mut backups: Vec<Backup> = windows
        .filter_map(|window| {
            let descriptor = survey.descriptors.get(&window.backup.label)?;
            Some(Backup::new(descriptor, Window::of(window)))
        })
        .collect();
    // Labels have no more than seconds.
    backups.sort_by_key(|backup| backup.started);
    let id = cluster.id();
    let others = repository.list_clusters().await?.into_iter();
    let others =
        others.filter(|other| other.system_identifier == id.system_identifier && *other != id);
    let report = Report {
        repository: repository.url().to_owned(),
        cluster: id.to_string(),
        other_repositories: config
            .repositories
            .iter()
            .filter(|one| one.name != repository.name())
            .map(|one| one.name.clone())
            .collect(),
        other_incarnations: others.map(|other| other.to_string()).collect(),
        backups,
        unfinished: survey
            .catalog
            .backups
            .iter()
            .filter(|(_, backup)| !backup.complete)
            .map(|(label, _)| label.to_string())
            .collect(),
        gaps: gaps_of(&survey.windows),
    };
    globals.output.print("walden.list", &report, || {
        report.to_text(globals.output.color)
    })?;
    Ok(if report.gaps.iter().all(|gap| gap.acknowledged) {
        ExitCode::Done
    } else {
        ExitCode::Warnings
    })
}

impl Backup {
    fn new(descriptor: &BackupDescriptor, window: Option<Window>) -> Self {
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
            window,
        }
    }
}

fn took(descriptor: &BackupDescriptor) -> Duration {
    let took = descriptor.stopped.duration_since(descriptor.started);
    Duration::try_from(took).unwrap_or_default()
}

impl Report {
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
        for gap in &self.gaps {
            text.push_str(&format!("gap: {gap}\n"));
        }
        if !self.other_repositories.is_empty() {
            text.push_str(&format!(
                "this is {} alone; --repository shows another one: {}\n",
                self.repository,
                self.other_repositories.join(", ")
            ));
        }
        text
    }
}
