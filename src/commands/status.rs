//! `walden status`: how far archiving is. Owns how it looks; what is asked and what follows is `archiving_state`'s.

use anyhow::Result;
use clap::Args;
use futures_util::future::join_all;
use jiff::Timestamp;
use serde::Serialize;

use super::Globals;
use crate::archiving_state::{
    self as state, Hook, Problem, ServerState, StoredState, lag_bytes, lag_seconds,
};
use crate::cli::ServerArgs;
use crate::config::{self, Ack, Config, Overrides};
use crate::conflicts;
use crate::each::{Place, Unseen};
use crate::exit_code::ExitCode;
use crate::failure::Failure;
use crate::left_behind::{self, LeftBehind};
use crate::open;
use crate::slot_state;
use crate::units::{ByteSize, counted, human_duration};
use crate::windows::{Gap, Point};

/// Show how far WAL is received and stored, the lag, the slot and any gaps
///
/// Asks the server and the repository. A gap that nobody has acknowledged (walden gap), or WAL that the server no longer keeps, shows in the
/// exit code.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  walden status
  walden status --json | jq .lag_bytes")]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

#[derive(Debug, Serialize)]
struct Report {
    /// The one whose WAL reaches furthest: `stored` and the lag are its.
    repository: String,
    /// Every configured one.
    repositories: Vec<Mirror>,
    cluster: Option<String>,
    /// `None`: it could not be asked, `problems` says why.
    server: Option<Server>,
    /// `None`: it could not be asked, `problems` says why.
    stored: Option<Stored>,
    lag_bytes: Option<u64>,
    lag_seconds: Option<f64>,
    /// What is stored beside the server's path in any repository: the cost of failovers.
    left_behind: Vec<LeftBehind>,
    /// Repositories that answer, and could not be looked at for that.
    left_behind_unseen: Vec<Unseen>,
    problems: Vec<Problem>,
}

#[derive(Debug, Serialize)]
struct Mirror {
    name: String,
    url: String,
    /// `level`, `behind` or `unreachable`.
    state: MirrorState,
    /// Where its WAL ends.
    durable_lsn: Option<String>,
    lag_bytes: Option<u64>,
    lag_seconds: Option<f64>,
    /// The newest transaction it has, where a later one is missing.
    behind_since: Option<Timestamp>,
    /// Label of its newest base backup.
    last_backup: Option<String>,
    /// When that ended: labels have no more than seconds.
    #[serde(skip)]
    backup_stopped: Option<Timestamp>,
    /// Segments that it holds with other contents than the one that stands for all.
    conflicts: Vec<String>,
    /// Why it cannot be asked.
    error: Option<String>,
}

#[derive(Debug, Serialize)]
struct Server {
    version: Option<String>,
    is_standby: bool,
    timeline: u32,
    flush_lsn: String,
    slot: Option<Slot>,
    archive_command: Hook,
}

#[derive(Debug, Serialize)]
struct Slot {
    name: String,
    active: bool,
    restart_lsn: Option<String>,
    wal_status: Option<String>,
    /// WAL that the server keeps for it.
    retained_bytes: Option<u64>,
    /// Reported by `walden run`: received up to.
    received_lsn: Option<String>,
    /// Reported by `walden run`: stored up to.
    durable_lsn: Option<String>,
}

#[derive(Debug, Serialize)]
struct Stored {
    timelines: Vec<TimelineEnd>,
    newest_transaction: Option<Timestamp>,
    last_backup: Option<LastBackup>,
    /// What can be recovered to; `None`: nothing.
    reachable: Option<Reachable>,
    gaps: Vec<Gap>,
}

#[derive(Debug, Serialize)]
struct Reachable {
    from: Point,
    to: Point,
}

#[derive(Debug, Serialize)]
struct TimelineEnd {
    timeline: u32,
    end_lsn: String,
}

#[derive(Debug, Serialize)]
struct LastBackup {
    label: String,
    stopped: Timestamp,
    age_seconds: f64,
}

/// Ends with 5 for a gap, 1 if a side cannot be asked, 3 for what needs attention.
pub(crate) async fn run(args: StatusArgs, globals: &Globals) -> Result<ExitCode> {
    let overrides = Overrides {
        conninfo: args.server.conninfo,
        slot: args.server.slot,
        ..Overrides::default()
    };
    let config = globals.load_config(&overrides)?;
    let info = open::connection_info(&config)?;
    let slot = config.postgres.slot.as_str();
    let asked = join_all(
        config
            .repositories
            .iter()
            .map(|one| ask_repository(&config, one)),
    );
    let (server, mut asked) = tokio::join!(state::ask_server(&info, slot), asked);
    let timeline = server.as_ref().ok().map(|server| server.identity.timeline);
    let mut mirrors = Vec::new();
    for (configured, asked) in config.repositories.iter().zip(&asked) {
        let asked = asked.as_ref().map(|(_, stored)| stored);
        mirrors.push(Mirror::new(configured, asked, server.as_ref().ok()));
    }
    let reach = |asked: &Result<(Place, StoredState)>| {
        let (_, stored) = asked.as_ref().ok()?;
        timeline.map_or(stored.ends.last().map(|(_, end)| *end), |timeline| {
            stored.end_for(timeline)
        })
    };
    // Of those that reach as far the first one.
    let best = (0..asked.len())
        .rev()
        .max_by_key(|number| (asked[*number].is_ok(), reach(&asked[*number])));
    let best = best.unwrap_or_default();
    if let Ok(standing) = &asked[best] {
        for (mirror, asked) in mirrors.iter_mut().zip(&asked) {
            if let Ok(other) = asked {
                mirror.conflicts = conflicts::find(standing, other).await;
            }
        }
    }
    let named = config.repositories.iter().zip(&asked);
    let named = named.filter_map(|(one, asked)| Some((one.name.as_str(), &asked.as_ref().ok()?.1)));
    let unusable = state::judge_unusable(&named.collect::<Vec<_>>());
    let stored = asked.swap_remove(best);
    let mut places: Vec<Place> = Vec::new();
    let (cluster, stored) = match stored {
        Ok((place, stored)) => {
            let identifier = place.cluster.system_identifier;
            places.push(place);
            (Some(identifier), Ok(stored))
        }
        Err(error) => {
            let failure = Failure::of(&error);
            // That there is no repository is not a question of reaching it.
            if failure.code == ExitCode::NoRepository {
                return Err(error);
            }
            (None, Err(failure.line()))
        }
    };
    places.extend(asked.into_iter().flatten().map(|(place, _)| place));
    let server = server.map_err(|error| state::why(&error));
    let configured = config.postgres.system_identifier.map(u64::from);
    let found = server
        .as_ref()
        .ok()
        .map(|server| server.identity.system_identifier);
    let expected = cluster.or(configured).or(found).unwrap_or_default();
    let mut problems = state::judge(
        server.as_ref().map_err(Clone::clone),
        stored.as_ref().map_err(Clone::clone),
        expected,
        slot,
    );
    if mirrors.len() > 1 {
        judge_mirrors(&mirrors, best, config.archive.ack, &mut problems);
        judge_backups(&mirrors, &mut problems);
    }
    problems.extend(unusable);
    let (server, stored) = (server.ok(), stored.ok());
    let guard = config.archive.disk_guard;
    let disk = server.as_ref();
    problems.extend(disk.and_then(|server| slot_state::judge_disk(server, guard)));
    problems.extend(stored.as_ref().and_then(slot_state::judge_behind_gap));
    let both = server.as_ref().zip(stored.as_ref());
    let (left_behind, left_behind_unseen) = match &both {
        Some((server, _)) => {
            let left = left_behind::ask(&info, server.identity.timeline, &config, &places).await;
            left.unwrap_or_else(|error| {
                tracing::warn!("what failovers left behind could not be asked: {error:#}");
                Default::default()
            })
        }
        None => Default::default(),
    };
    problems.extend(left_behind_unseen.iter().map(|unseen| Problem {
        side: "repository",
        what: format!("what failovers left behind: {unseen}"),
        code: ExitCode::Warnings,
    }));
    let report = Report {
        repository: config.repositories[best].url.clone(),
        repositories: mirrors,
        cluster: cluster.map(|identifier| identifier.to_string()),
        lag_bytes: both.and_then(|(server, stored)| lag_bytes(server, stored)),
        lag_seconds: both.and_then(|(server, stored)| lag_seconds(server, stored)),
        server: server.map(|server| Server::new(&server, slot)),
        stored: stored.map(Stored::new),
        left_behind,
        left_behind_unseen,
        problems,
    };
    globals
        .output
        .print("walden.status", &report, || report.to_text())?;
    Ok(state::exit_code(&report.problems))
}

async fn ask_repository(
    config: &Config,
    configured: &config::Repository,
) -> Result<(Place, StoredState)> {
    let repository = open::open_configured(configured, open::IMPATIENT).await?;
    open::require_repository(&repository).await?;
    let cluster = open::find_cluster(config, &repository, None).await?;
    let stored = state::ask_repository(&repository, &cluster).await?;
    let place = Place {
        repository,
        cluster,
    };
    Ok((place, stored))
}

impl Mirror {
    fn new(
        configured: &config::Repository,
        stored: Result<&StoredState, &anyhow::Error>,
        server: Option<&ServerState>,
    ) -> Self {
        let mut mirror = Self {
            name: configured.name.clone(),
            url: configured.url.clone(),
            state: MirrorState::Unreachable,
            durable_lsn: None,
            lag_bytes: None,
            lag_seconds: None,
            behind_since: None,
            last_backup: None,
            backup_stopped: None,
            conflicts: Vec::new(),
            error: None,
        };
        match stored {
            Err(error) => mirror.error = Some(Failure::of(error).line()),
            Ok(stored) => {
                let timeline = server.map(|server| server.identity.timeline);
                let end = timeline.map_or(stored.ends.last().map(|(_, end)| *end), |timeline| {
                    stored.end_for(timeline)
                });
                let lag = server.and_then(|server| lag_bytes(server, stored));
                let limit = state::MAX_LAG_SEGMENTS * u64::from(stored.size.bytes());
                // Without anything stored, or behind a hole, nobody can say how much is missing.
                let is_behind = match (server, lag) {
                    (Some(_), None) => true,
                    (_, lag) => lag.is_some_and(|lag| lag > limit),
                };
                mirror.state = match is_behind {
                    true => MirrorState::Behind,
                    false => MirrorState::Level,
                };
                mirror.behind_since = stored.newest_transaction.filter(|_| is_behind);
                if let Some((label, stopped)) = &stored.last_backup {
                    mirror.last_backup = Some(label.clone());
                    mirror.backup_stopped = Some(*stopped);
                }
                mirror.durable_lsn = end.map(|end| end.to_string());
                mirror.lag_bytes = lag;
                mirror.lag_seconds = server.and_then(|server| lag_seconds(server, stored));
            }
        }
        mirror
    }

    fn to_text(&self) -> String {
        let mut text = format!("repository  {} ({})", self.url, self.name);
        match (&self.error, self.state) {
            (Some(_), _) | (None, MirrorState::Unreachable) => text.push_str(": unreachable"),
            (None, MirrorState::Level) => text.push_str(": level"),
            (None, MirrorState::Behind) => text.push_str(": BEHIND"),
        }
        if let Some(end) = &self.durable_lsn {
            text.push_str(&format!(", stored to {end}"));
        }
        if let Some(bytes) = self.lag_bytes.filter(|bytes| *bytes > 0) {
            text.push_str(&format!(", {} behind", ByteSize::new(bytes)));
        }
        if let Some(since) = self.behind_since {
            text.push_str(&format!(", newest transaction {since}"));
        }
        text
    }
}

/// Says of every repository but the one that stands for all what is wrong with it, and whether `ack` can still be met.
fn judge_mirrors(mirrors: &[Mirror], best: usize, ack: Ack, problems: &mut Vec<Problem>) {
    let level = mirrors.iter().filter(|one| one.state == MirrorState::Level);
    let is_met = ack.is_met(level.count(), mirrors.len());
    for (number, mirror) in mirrors.iter().enumerate() {
        let name = &mirror.name;
        if let Some(first) = mirror.conflicts.first() {
            problems.push(Problem {
                side: "repository",
                what: format!(
                    "CONFLICT: repository {name} holds other contents than {} in {}, {first} first: nothing is overwritten; find out which are right",
                    mirrors[best].name,
                    counted(mirror.conflicts.len(), "segment")
                ),
                code: ExitCode::Integrity,
            });
        }
        let what = match (&mirror.error, mirror.state) {
            // Said of the one that stands for all already.
            (_, _) if number == best => continue,
            (Some(error), _) => format!("repository {name} cannot be asked: {error}"),
            (None, MirrorState::Behind) => format!(
                "repository {name} is behind{}: `walden run` fills it up, or `walden copy`",
                match mirror.lag_bytes {
                    Some(bytes) => format!(" by {}", ByteSize::new(bytes)),
                    None => ", and has nothing of this server's WAL".to_owned(),
                }
            ),
            _ => continue,
        };
        problems.push(Problem {
            side: "repository",
            what,
            code: ExitCode::Warnings,
        });
    }
    if !is_met {
        problems.push(Problem {
            side: "archiver",
            what: "fewer repositories are level than ack asks for: the server keeps its WAL until they are, \
                   and with rpo = \"sync\" commits wait"
                .to_owned(),
            code: ExitCode::Warnings,
        });
    }
}

/// Says of every repository that can be asked whether it lacks the newest backup: should it be the one that is left, less can be restored than
/// the others promise.
fn judge_backups(mirrors: &[Mirror], problems: &mut Vec<Problem>) {
    let holders = mirrors
        .iter()
        .filter_map(|one| Some((one.backup_stopped?, one.last_backup.as_deref()?, one)));
    let Some((_, newest, holder)) = holders.max_by_key(|(stopped, ..)| *stopped) else {
        return;
    };
    let asked = mirrors.iter().filter(|one| one.error.is_none());
    for lacking in asked.filter(|one| one.last_backup.as_deref() != Some(newest)) {
        let (name, holder) = (&lacking.name, &holder.name);
        problems.push(Problem {
            side: "backup",
            what: format!(
                "repository {name} lacks the newest backup, {newest}: `walden run` brings it within minutes, or `walden copy {holder} {name}`"
            ),
            code: ExitCode::Warnings,
        });
    }
}

/// How a repository stands to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum MirrorState {
    Level,
    Behind,
    Unreachable,
}

impl Server {
    fn new(server: &ServerState, name: &str) -> Self {
        let flush = server.identity.flush_lsn;
        let slot = server.slot.as_ref().map(|slot| Slot {
            name: name.to_owned(),
            active: slot.is_active,
            restart_lsn: slot.restart_lsn.map(|lsn| lsn.to_string()),
            wal_status: slot
                .wal_status
                .as_ref()
                .map(|status| format!("{status:?}").to_lowercase()),
            retained_bytes: slot.restart_lsn.and_then(|lsn| flush.distance_from(lsn)),
            received_lsn: server.received.map(|(write, _)| write.to_string()),
            durable_lsn: server.received.map(|(_, flush)| flush.to_string()),
        });
        Self {
            version: server.version.clone(),
            is_standby: server.is_standby,
            timeline: server.identity.timeline.get(),
            flush_lsn: flush.to_string(),
            slot,
            archive_command: server.hook,
        }
    }
}

impl Stored {
    fn new(stored: StoredState) -> Self {
        let ends = stored.ends.iter().map(|(timeline, end)| TimelineEnd {
            timeline: timeline.get(),
            end_lsn: end.to_string(),
        });
        Self {
            timelines: ends.collect(),
            newest_transaction: stored.newest_transaction,
            last_backup: stored.last_backup.map(|(label, stopped)| LastBackup {
                label,
                stopped,
                age_seconds: Timestamp::now()
                    .duration_since(stopped)
                    .as_secs_f64()
                    .max(0.0),
            }),
            reachable: stored.reachable.map(|(from, to)| Reachable {
                from: from.into(),
                to: to.into(),
            }),
            gaps: stored.gaps,
        }
    }
}

impl Report {
    fn to_text(&self) -> String {
        let mut lines = Vec::new();
        if let Some(server) = &self.server {
            lines.push(format!(
                "server      PostgreSQL {}{}, timeline {}, WAL flushed to {}",
                server.version.as_deref().unwrap_or("?"),
                if server.is_standby { " (standby)" } else { "" },
                server.timeline,
                server.flush_lsn
            ));
            lines.push(match &server.slot {
                Some(slot) => slot.to_text(),
                None => "slot        none".to_owned(),
            });
            if server.archive_command != Hook::Unused {
                let word = match server.archive_command {
                    Hook::Failing => "fails",
                    _ => "archives with walden",
                };
                lines.push(format!("hook        archive_command {word}"));
            }
        }
        match self.repositories.as_slice() {
            several @ [_, _, ..] => lines.extend(several.iter().map(Mirror::to_text)),
            _ => lines.push(format!("repository  {}", self.repository)),
        }
        if let Some(stored) = &self.stored {
            for end in &stored.timelines {
                lines.push(format!(
                    "stored      timeline {} up to {}",
                    end.timeline, end.end_lsn
                ));
            }
            if let Some(backup) = &stored.last_backup {
                let age = std::time::Duration::from_secs_f64(backup.age_seconds);
                lines.push(format!(
                    "backup      {} ({} old)",
                    backup.label,
                    human_duration(age)
                ));
            }
            if let Some(reachable) = &stored.reachable {
                lines.push(format!(
                    "reachable   {} to {}",
                    reachable.from, reachable.to
                ));
            }
            for gap in stored.gaps.iter().filter(|gap| gap.acknowledged) {
                lines.push(format!("gap         {gap}"));
            }
        }
        if let Some(bytes) = self.lag_bytes {
            let seconds = self.lag_seconds.map(std::time::Duration::from_secs_f64);
            let time = match seconds {
                Some(seconds) if bytes > 0 => {
                    format!(
                        ", newest stored transaction {} ago",
                        human_duration(seconds)
                    )
                }
                _ => String::new(),
            };
            lines.push(format!("lag         {}{time}", ByteSize::new(bytes)));
        }
        let is_seen = |mirror: &&Mirror| {
            let mut unseen = self.left_behind_unseen.iter();
            mirror.error.is_none() && !unseen.any(|one| one.repository == mirror.name)
        };
        let seen = self.repositories.iter().filter(is_seen);
        let seen: Vec<String> = seen.map(|mirror| mirror.name.clone()).collect();
        for left in &self.left_behind {
            lines.push(format!("left behind {}", left.to_text(&seen)));
        }
        for problem in &self.problems {
            lines.push(format!("{}: {}", problem.side, problem.what));
        }
        if self.problems.is_empty() {
            lines.push("all is well".to_owned());
        }
        lines.join("\n") + "\n"
    }
}

impl Slot {
    fn to_text(&self) -> String {
        let mut text = format!(
            "slot        {}: {}",
            self.name,
            if self.active {
                "in use"
            } else {
                "nobody uses it"
            }
        );
        if let Some(bytes) = self.retained_bytes {
            text.push_str(&format!(", keeps {}", ByteSize::new(bytes)));
        }
        if let (Some(received), Some(durable)) = (&self.received_lsn, &self.durable_lsn) {
            text.push_str(&format!(", received to {received}, stored to {durable}"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A repository whose newest backup has this label and ended at this second.
    fn mirror(name: &str, backup: Option<(&str, i64)>) -> Mirror {
        Mirror {
            name: name.to_owned(),
            url: String::new(),
            state: MirrorState::Level,
            durable_lsn: None,
            lag_bytes: None,
            lag_seconds: None,
            behind_since: None,
            last_backup: backup.map(|(label, _)| label.to_owned()),
            backup_stopped: backup.map(|(_, second)| Timestamp::from_second(second).unwrap()),
            conflicts: Vec::new(),
            error: None,
        }
    }

    #[test]
    fn the_newest_backup_is_the_one_that_ended_last_whatever_its_label_draws() {
        let (older, newer) = ("20260123T142811Z-full-f000", "20260123T142811Z-full-0001");
        let mirrors = [
            mirror("near", Some((newer, 8))),
            mirror("far", Some((older, 7))),
            mirror("new", None),
        ];
        let mut problems = Vec::new();
        judge_backups(&mirrors, &mut problems);
        let told: Vec<&str> = problems.iter().map(|one| one.what.as_str()).collect();
        assert_eq!(told.len(), 2, "{told:?}");
        let begin = |name: &str| format!("repository {name} lacks the newest backup, {newer}");
        assert!(told[0].starts_with(&begin("far")), "{told:?}");
        assert!(told[1].starts_with(&begin("new")), "{told:?}");
    }
}
