//! How far archiving is: what the server says, what the repository holds, and what follows from the two. For `status`.
//!
//! Asking either side is separate, so that each can be down alone; [`judge`] is pure and tells apart which one is, and whether
//! nothing archives although both are up.

use std::collections::BTreeMap;
use std::time::Duration;

use archiver::replication::{
    Connection, ConnectionInfo, Deadlines, Mode, SlotStatus, SystemIdentity, WalStatus,
};
use archiver::upload::error_text;
use futures_util::StreamExt;
use jiff::Timestamp;
use pitr::survey::{Effort, Survey};
use pitr::window::Moment;
use repository::Repository;
use repository::catalog::Catalog;
use repository::cluster::ClusterDocument;
use repository::key::{ClusterId, ObjectKey};
use repository::sealed::OpenPolicy;
use repository::wal::utc;
use serde::Serialize;
use wal_format::{Lsn, SegmentName, SegmentSize, TimelineId};

use crate::exit_code::ExitCode;
use crate::windows::{Gap, gaps_of};

/// How long one answer of the server may take: a person waits.
const PATIENCE: Deadlines = Deadlines {
    connect: Duration::from_secs(5),
    reply: Duration::from_secs(15),
    ..Deadlines::DEFAULT
};
/// Most segments, from the newest, whose descriptors are read for WAL that is not valid.
const MAX_DESCRIPTORS: usize = 512;
/// Descriptors asked for at the same time.
const DESCRIPTORS_IN_FLIGHT: usize = 32;
/// A server whose WAL is stored this far behind is worth a word.
pub(crate) const MAX_LAG_SEGMENTS: u64 = 16;

/// What the server says.
#[derive(Debug, Clone)]
pub(crate) struct ServerState {
    /// Who it is and where its WAL ends.
    pub(crate) identity: SystemIdentity,
    /// Full version.
    pub(crate) version: Option<String>,
    /// It is a standby.
    pub(crate) is_standby: bool,
    /// Its clock.
    pub(crate) now: Timestamp,
    /// Our slot; `None`: there is none.
    pub(crate) slot: Option<SlotStatus>,
    /// What the connection that uses the slot reported: written and flushed up to.
    pub(crate) received: Option<(Lsn, Lsn)>,
    /// `archive_command` or `archive_library` is Walden's, and its archiver process works.
    pub(crate) hook: Hook,
}

/// The other way to archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Hook {
    /// `archive_mode` is off, or archives elsewhere.
    Unused,
    /// It archives with Walden.
    Working,
    /// Its last call failed.
    Failing,
}

/// What the repository holds.
#[derive(Debug, Clone)]
pub(crate) struct StoredState {
    /// The segment size.
    pub(crate) size: SegmentSize,
    /// Where the WAL of each timeline ends, newest timeline last.
    pub(crate) ends: Vec<(TimelineId, Lsn)>,
    /// Newest transaction near that end.
    pub(crate) newest_transaction: Option<Timestamp>,
    /// Open gaps.
    pub(crate) gaps: Vec<Gap>,
    /// The oldest and the newest moment that can be recovered to.
    pub(crate) reachable: Option<(Moment, Moment)>,
    /// Newest backup and when it ended.
    pub(crate) last_backup: Option<(String, Timestamp)>,
    /// Each backup; and why nothing can be recovered from it, if nothing can.
    pub(crate) backups: BTreeMap<String, Option<String>>,
    /// Timelines, and whether the history file of one is missing.
    pub(crate) lacks_history: BTreeMap<TimelineId, bool>,
    /// WAL behind the newest backup that was stored although it is not valid: segment, and from where on.
    pub(crate) invalid: Vec<(SegmentName, Lsn)>,
    /// Sealed segments and their stored size in bytes.
    pub(crate) segments: BTreeMap<SegmentName, u64>,
}

/// Something that is wrong, and with which side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Problem {
    /// `server`, `archiver` (walden run or the hook), `repository`, `gap`, `wal`, `backup`.
    pub(crate) side: &'static str,
    /// What.
    pub(crate) what: String,
    #[serde(skip)]
    pub(crate) code: ExitCode,
}

/// Asks the server.
///
/// # Errors
/// It cannot be reached, or does not let us in.
pub(crate) async fn ask_server(info: &ConnectionInfo, slot: &str) -> archiver::Result<ServerState> {
    let mut replication =
        Connection::connect_with(info, Mode::PhysicalReplication, PATIENCE).await?;
    let identity = replication.identify_system().await?;
    let host = replication.host().clone();
    replication.close().await?;
    let mut info = info.clone();
    // The same one of several.
    info.hosts = vec![host];
    info.database.get_or_insert_with(|| "postgres".to_owned());
    let mut sql = Connection::connect_with(&info, Mode::Sql, PATIENCE).await?;
    let status = sql.slot_status(slot).await?;
    let answer = sql
        .simple_query(
            "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now, \
             current_setting('archive_mode') AS archive_mode, current_setting('archive_command') AS archive_command, \
             current_setting('archive_library', true) AS archive_library, \
             coalesce(last_failed_time > coalesce(last_archived_time, '-infinity'), false) AS failing \
             FROM pg_catalog.pg_stat_archiver",
        )
        .await?;
    let command = format!(
        "{}{}",
        answer.text(0, "archive_command").unwrap_or_default(),
        answer.text(0, "archive_library").unwrap_or_default()
    );
    let is_standby = sql.parameter("in_hot_standby") == Some("on");
    let archives = match answer.text(0, "archive_mode") {
        Some("always") => true,
        Some("on") => !is_standby,
        _ => false,
    };
    let hook = match archives && command.contains("walden") {
        false => Hook::Unused,
        true if answer.text(0, "failing") == Some("t") => Hook::Failing,
        true => Hook::Working,
    };
    let now = answer
        .text(0, "now")
        .and_then(|text| text.parse().ok())
        .and_then(|micros| Timestamp::from_microsecond(micros).ok());
    let received = match status.as_ref().and_then(|slot| slot.active_pid) {
        None => None,
        Some(pid) => {
            let query = format!(
                "SELECT write_lsn, flush_lsn FROM pg_catalog.pg_stat_replication WHERE pid = {pid}"
            );
            let answer = sql.simple_query(&query).await?;
            let lsn = |column: &str| answer.text(0, column).and_then(|text| text.parse().ok());
            lsn("write_lsn").zip(lsn("flush_lsn"))
        }
    };
    let version = sql
        .parameter("server_version")
        .and_then(|text| text.split_whitespace().next())
        .map(str::to_owned);
    Ok(ServerState {
        identity,
        version,
        is_standby,
        now: now.unwrap_or_else(Timestamp::now),
        slot: status,
        received,
        hook,
    })
}

/// Asks the repository.
///
/// # Errors
/// As the store's.
pub(crate) async fn ask_repository(
    repository: &Repository,
    cluster: &ClusterDocument,
) -> anyhow::Result<StoredState> {
    let size = cluster.segment_size()?;
    // No key: what is asked for here, objects say of themselves.
    let policy = OpenPolicy::default();
    let survey = Survey::gather(repository, cluster, &policy, Effort::ENDS).await?;
    let catalog = &survey.catalog;
    let ends: Vec<(TimelineId, Lsn)> = catalog
        .timelines
        .keys()
        .filter_map(|timeline| Some((*timeline, catalog.wal_end(*timeline, size)?)))
        .collect();
    let windows = &survey.windows;
    let newest_timeline = windows.timelines.last();
    let oldest = windows.promise.as_ref().map(|promise| promise.moment);
    let newest = windows.newest().map(|(_, reach)| reach.to());
    // Labels have no more than seconds.
    let backups = survey.descriptors.values();
    let last_backup = backups.max_by_key(|backup| backup.stopped);
    let needed_from = last_backup.map_or(Lsn::INVALID, |backup| backup.start_lsn);
    let invalid = find_invalid(repository, cluster.id(), size, catalog, needed_from).await?;
    Ok(StoredState {
        size,
        ends,
        newest_transaction: newest_timeline
            .and_then(|timeline| timeline.newest_transaction)
            .and_then(utc),
        gaps: gaps_of(windows),
        reachable: oldest.zip(newest),
        last_backup: last_backup.map(|backup| (backup.label.clone(), backup.stopped)),
        backups: windows
            .backups
            .iter()
            .map(|one| (one.backup.label.to_string(), one.unusable.clone()))
            .collect(),
        lacks_history: windows
            .timelines
            .iter()
            .map(|one| (one.timeline, one.lacks_history))
            .collect(),
        invalid,
        segments: catalog
            .timelines
            .values()
            .flat_map(|objects| objects.segments.clone())
            .collect(),
    })
}

impl StoredState {
    /// Where what is stored of the server's own WAL ends: on its timeline, else (nothing of it is stored yet) on the one before.
    pub(crate) fn end_for(&self, timeline: TimelineId) -> Option<Lsn> {
        let before = self.ends.iter().rev().find(|(known, _)| *known <= timeline);
        before.map(|(_, end)| *end)
    }
}

/// The newest segments, back to the one that holds `from`, that say that WAL in them is not valid. Of an older timeline only what lies before the
/// first segment of a newer one: its end may be of a server that was left behind.
async fn find_invalid(
    repository: &Repository,
    cluster: ClusterId,
    size: SegmentSize,
    catalog: &Catalog,
    from: Lsn,
) -> repository::Result<Vec<(SegmentName, Lsn)>> {
    let first = size.segment(from);
    let mut asked: Vec<SegmentName> = Vec::new();
    let mut behind = None;
    for objects in catalog.timelines.values().rev() {
        let names = objects.segments.keys().rev();
        let names = names.filter_map(|name| Some((*name, name.number(size)?)));
        let names = names.filter(|(_, number)| behind.is_none_or(|behind| *number < behind));
        let names = names.take_while(|(_, number)| *number >= first);
        asked.extend(
            names
                .map(|(name, _)| name)
                .take(MAX_DESCRIPTORS - asked.len()),
        );
        let begins = objects.segments.keys().find_map(|name| name.number(size));
        behind = match (behind, begins) {
            (Some(behind), Some(begins)) => Some(behind.min(begins)),
            (behind, begins) => behind.or(begins),
        };
    }
    let mut described = futures_util::stream::iter(asked.into_iter().map(|name| async move {
        let key = ObjectKey::Segment { cluster, name };
        let described = repository.fetch_descriptor(&key).await;
        (name, described)
    }))
    .buffered(DESCRIPTORS_IN_FLIGHT);
    let mut invalid = Vec::new();
    while let Some((name, described)) = described.next().await {
        match described {
            Ok(described) => {
                let at = described.wal.and_then(|wal| wal.invalid_at);
                invalid.extend(at.map(|at| (name, at)));
            }
            // What is damaged or gone is for `verify` to say.
            Err(error)
                if matches!(
                    error.class(),
                    repository::ErrorClass::NotFound | repository::ErrorClass::Corrupt
                ) => {}
            Err(error) => return Err(error),
        }
    }
    invalid.reverse();
    Ok(invalid)
}

/// Bytes of the server's WAL that are not stored.
pub(crate) fn lag_bytes(server: &ServerState, stored: &StoredState) -> Option<u64> {
    let end = stored.end_for(server.identity.timeline)?;
    Some(server.identity.flush_lsn.distance_from(end).unwrap_or(0))
}

/// How old the newest stored transaction is, where something later is not stored; at most so much would be lost.
pub(crate) fn lag_seconds(server: &ServerState, stored: &StoredState) -> Option<f64> {
    if lag_bytes(server, stored)? == 0 {
        return Some(0.0);
    }
    let age = server.now.duration_since(stored.newest_transaction?);
    Some(age.as_secs_f64().max(0.0))
}

/// What is wrong. Either side may be missing, with the reason why.
pub(crate) fn judge(
    server: Result<&ServerState, String>,
    stored: Result<&StoredState, String>,
    expected_identifier: u64,
    slot: &str,
) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut add = |side, code, what: String| problems.push(Problem { side, what, code });
    match &server {
        Err(why) => add(
            "server",
            ExitCode::Failed,
            format!("the server cannot be asked: {why}"),
        ),
        Ok(server) => {
            let found = server.identity.system_identifier;
            if found != expected_identifier {
                add(
                    "server",
                    ExitCode::Integrity,
                    format!(
                        "this is another server: its system identifier is {found}, the repository's cluster is {expected_identifier}"
                    ),
                );
            }
            judge_archiver(server, slot, &mut add);
        }
    }
    match &stored {
        Err(why) => add(
            "repository",
            ExitCode::Failed,
            format!("the repository cannot be asked: {why}"),
        ),
        Ok(stored) => {
            for gap in stored.gaps.iter().filter(|gap| !gap.acknowledged) {
                add(
                    "gap",
                    ExitCode::Integrity,
                    format!("{gap}; restores cannot cross it"),
                );
            }
            for (name, at) in &stored.invalid {
                add(
                    "wal",
                    ExitCode::Integrity,
                    format!(
                        "the server's WAL is not valid from {at} on (segment {name}): recovery ends there; take a new base backup"
                    ),
                );
            }
            if stored.last_backup.is_none() {
                add(
                    "backup",
                    ExitCode::Warnings,
                    "there is no base backup yet: WAL alone restores nothing".into(),
                );
            }
        }
    }
    if let (Ok(server), Ok(stored)) = (&server, &stored) {
        let lag = lag_bytes(server, stored);
        let limit = MAX_LAG_SEGMENTS * u64::from(stored.size.bytes());
        match lag {
            None => add(
                "archiver",
                ExitCode::Warnings,
                "nothing of this server's WAL is stored yet".into(),
            ),
            Some(lag) if lag > limit => add(
                "archiver",
                ExitCode::Warnings,
                format!(
                    "{} of WAL are not stored yet",
                    crate::units::ByteSize::new(lag)
                ),
            ),
            Some(_) => {}
        }
    }
    problems
}

/// Backups from which nothing can be recovered, and history files that are missing, in the repositories of these names: in all that should have
/// it, or in some.
pub(crate) fn judge_unusable(stored: &[(&str, &StoredState)]) -> Vec<Problem> {
    let newest = stored
        .iter()
        .filter_map(|(_, one)| one.last_backup.as_ref());
    let newest = newest.max_by_key(|(_, stopped)| *stopped);
    let (mut backups, mut histories) = (BTreeMap::new(), BTreeMap::new());
    for (name, one) in stored {
        for (label, why) in &one.backups {
            let all: &mut Vec<_> = backups.entry(label).or_default();
            all.push((*name, why.clone()));
        }
        for (timeline, lacks) in &one.lacks_history {
            let why = lacks.then(|| "it is not stored".to_owned());
            let all: &mut Vec<_> = histories.entry(*timeline).or_default();
            all.push((*name, why));
        }
    }
    let backups = backups.into_iter().flat_map(|(label, all)| {
        let code = match newest.is_some_and(|(newest, _)| newest == label) {
            true => ExitCode::Integrity,
            false => ExitCode::Warnings,
        };
        let what = format!("nothing can be recovered from backup {label}");
        lacking("backup", &what, code, all)
    });
    let histories = histories.into_iter().flat_map(|(timeline, all)| {
        let what = format!("the history file of timeline {timeline} is missing, without which its WAL leads nowhere");
        lacking("wal", &what, ExitCode::Integrity, all)
    });
    backups.chain(histories).collect()
}

/// The problem that all have, or a warning for each that has it where others do not.
fn lacking(
    side: &'static str,
    what: &str,
    code: ExitCode,
    all: Vec<(&str, Option<String>)>,
) -> Vec<Problem> {
    let bad = || {
        all.iter()
            .filter_map(|(name, why)| Some((name, why.as_ref()?)))
    };
    match bad().next() {
        Some((_, why)) if bad().count() == all.len() => vec![Problem {
            side,
            what: format!("{what}: {why}"),
            code,
        }],
        _ => bad()
            .map(|(name, why)| Problem {
                side,
                what: format!("repository {name}: {what}: {why}"),
                code: ExitCode::Warnings,
            })
            .collect(),
    }
}

fn judge_archiver(
    server: &ServerState,
    slot: &str,
    add: &mut impl FnMut(&'static str, ExitCode, String),
) {
    match server.hook {
        Hook::Failing => add(
            "archiver",
            ExitCode::Warnings,
            "archive_command fails: see the server's log".into(),
        ),
        Hook::Unused | Hook::Working => {}
    }
    let Some(status) = &server.slot else {
        if server.hook == Hook::Unused {
            add(
                "archiver",
                ExitCode::Warnings,
                format!(
                    "walden run is not running, and there is no slot {slot:?}: the server does not keep WAL for it"
                ),
            );
        }
        return;
    };
    match &status.wal_status {
        Some(WalStatus::Lost) => add(
            "server",
            ExitCode::Integrity,
            format!("the slot {slot:?} is lost: the server has removed WAL that was not stored"),
        ),
        Some(WalStatus::Unreserved) => add(
            "server",
            ExitCode::Warnings,
            format!(
                "the server is about to remove WAL that the slot {slot:?} still needs (max_slot_wal_keep_size)"
            ),
        ),
        _ => {}
    }
    if !status.is_active && server.hook == Hook::Unused {
        add(
            "archiver",
            ExitCode::Warnings,
            format!(
                "walden run is not running: nobody uses the slot {slot:?}, and the server keeps all WAL for it"
            ),
        );
    }
}

/// The exit code that the worst problem asks for: a gap before an unanswered question before a warning.
pub(crate) fn exit_code(problems: &[Problem]) -> ExitCode {
    let has = |code: ExitCode| problems.iter().any(|problem| problem.code == code);
    [ExitCode::Integrity, ExitCode::Failed, ExitCode::Warnings]
        .into_iter()
        .find(|code| has(*code))
        .unwrap_or(ExitCode::Done)
}

/// A failure in one line.
pub(crate) fn why(error: &(dyn std::error::Error + 'static)) -> String {
    error_text(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(flush: u64) -> ServerState {
        ServerState {
            identity: SystemIdentity {
                system_identifier: 7,
                timeline: TimelineId::FIRST,
                flush_lsn: Lsn::new(flush),
                database: None,
            },
            version: None,
            is_standby: false,
            now: Timestamp::from_second(1000).unwrap(),
            slot: Some(SlotStatus {
                is_physical: true,
                is_active: true,
                active_pid: Some(1),
                restart_lsn: Some(Lsn::new(flush)),
                wal_status: Some(WalStatus::Reserved),
                safe_wal_size: None,
                invalidation_reason: None,
            }),
            received: None,
            hook: Hook::Unused,
        }
    }

    fn stored(end: u64) -> StoredState {
        StoredState {
            size: SegmentSize::MIN,
            ends: vec![(TimelineId::FIRST, Lsn::new(end))],
            newest_transaction: Timestamp::from_second(990).ok(),
            gaps: Vec::new(),
            reachable: None,
            last_backup: Some(("x".into(), Timestamp::UNIX_EPOCH)),
            backups: BTreeMap::from([("x".into(), None)]),
            lacks_history: BTreeMap::from([(TimelineId::FIRST, false)]),
            invalid: Vec::new(),
            segments: BTreeMap::new(),
        }
    }

    fn sides(
        server: Result<&ServerState, String>,
        stored: Result<&StoredState, String>,
    ) -> Vec<(&'static str, u8)> {
        let problems = judge(server, stored, 7, "walden");
        problems
            .iter()
            .map(|problem| (problem.side, problem.code.status()))
            .collect()
    }

    #[test]
    fn which_side_is_down_is_told_apart() {
        let (up, full) = (server(5 << 20), stored(5 << 20));
        assert_eq!(sides(Ok(&up), Ok(&full)), []);
        assert_eq!(sides(Err("x".into()), Ok(&full)), [("server", 1)]);
        assert_eq!(sides(Ok(&up), Err("x".into())), [("repository", 1)]);
        let mut idle = server(5 << 20);
        idle.slot.as_mut().unwrap().is_active = false;
        assert_eq!(sides(Ok(&idle), Ok(&full)), [("archiver", 3)]);
        idle.hook = Hook::Working;
        assert_eq!(sides(Ok(&idle), Ok(&full)), []);
        idle.hook = Hook::Failing;
        assert_eq!(sides(Ok(&idle), Ok(&full)), [("archiver", 3)]);
        let without = ServerState {
            slot: None,
            ..server(5 << 20)
        };
        assert_eq!(sides(Ok(&without), Ok(&full)), [("archiver", 3)]);
        let mut lost = server(5 << 20);
        lost.slot.as_mut().unwrap().wal_status = Some(WalStatus::Lost);
        assert_eq!(sides(Ok(&lost), Ok(&full)), [("server", 5)]);
        let mut other = server(5 << 20);
        other.identity.system_identifier = 8;
        assert_eq!(sides(Ok(&other), Ok(&full)), [("server", 5)]);
    }

    #[tokio::test]
    async fn invalid_wal_before_a_promotion_is_found_and_that_of_a_branch_that_was_left_is_not() {
        let repository = Repository::new("test", repository::Store::in_memory());
        let size = SegmentSize::MIN;
        let name = |timeline: u32, number: u64| {
            let timeline = TimelineId::new(timeline).unwrap();
            SegmentName::new(timeline, wal_format::SegmentNumber::new(number), size)
        };
        let cluster: ClusterId = "7412".parse().unwrap();
        // Timeline 2 begins in segment 4; the backup in segment 2.
        for (timeline, number, is_valid) in [
            (1, 1, false),
            (1, 2, true),
            (1, 3, false),
            (1, 4, true),
            (1, 5, false),
            (2, 4, true),
            (2, 5, false),
        ] {
            let name = name(timeline, number);
            let start = name.start(size).unwrap();
            let wal = repository::descriptor::WalDescriptor {
                start_lsn: start,
                invalid_at: (!is_valid).then_some(start),
                ..Default::default()
            };
            let key = ObjectKey::Segment { cluster, name };
            let sealed = repository::testing::sealed(key, Some(wal), b"WAL");
            repository.put(&sealed).await.unwrap();
        }
        let catalog = repository.list(cluster).await.unwrap();
        let from = name(1, 2).start(size).unwrap();
        let found = find_invalid(&repository, cluster, size, &catalog, from).await;
        let found: Vec<_> = found.unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(found, [name(1, 3), name(2, 5)]);
    }

    #[test]
    fn what_nothing_can_be_recovered_from_is_told() {
        let sides = |all: &[(&str, &StoredState)]| {
            let problems = judge_unusable(all);
            let told = |one: &Problem| (one.side, one.code.status(), one.what.contains("far"));
            problems.iter().map(told).collect::<Vec<_>>()
        };
        let well = stored(5 << 20);
        let mut bad = well.clone();
        bad.backups.insert("x".into(), Some("it has no WAL".into()));
        assert_eq!(sides(&[("near", &well)]), []);
        assert_eq!(sides(&[("far", &bad)]), [("backup", 5, false)]);
        assert_eq!(
            sides(&[("near", &well), ("far", &bad)]),
            [("backup", 3, true)]
        );
        assert_eq!(
            sides(&[("near", &bad), ("far", &bad)]),
            [("backup", 5, false)]
        );
        // An older one than the newest.
        let mut older = well.clone();
        older
            .backups
            .insert("a".into(), Some("it has no WAL".into()));
        assert_eq!(sides(&[("near", &older)]), [("backup", 3, false)]);
        assert_eq!(
            sides(&[("near", &well), ("far", &older)]),
            [("backup", 3, false)]
        );
        let mut without = well.clone();
        without
            .lacks_history
            .insert(TimelineId::new(2).unwrap(), true);
        assert_eq!(
            sides(&[("near", &well), ("far", &without)]),
            [("wal", 5, false)]
        );
    }

    #[test]
    fn lag_and_missing_backups_are_warnings_and_gaps_are_not() {
        let (ahead, behind) = (server(40 << 20), stored(5 << 20));
        assert_eq!(sides(Ok(&ahead), Ok(&behind)), [("archiver", 3)]);
        assert_eq!(lag_bytes(&ahead, &behind), Some(35 << 20));
        assert_eq!(lag_seconds(&ahead, &behind), Some(10.0));
        assert_eq!(lag_seconds(&server(5 << 20), &behind), Some(0.0));
        let mut bare = stored(5 << 20);
        bare.last_backup = None;
        bare.gaps = vec![Gap {
            timeline: 1,
            from: "0/1".into(),
            to: "0/2".into(),
            first_missing: "x".into(),
            segments: 1,
            recorded: true,
            acknowledged: false,
            text: "x".into(),
        }];
        let mut known = bare.clone();
        known.gaps[0].acknowledged = true;
        assert_eq!(sides(Ok(&server(5 << 20)), Ok(&known)), [("backup", 3)]);
        let problems = judge(Ok(&server(5 << 20)), Ok(&bare), 7, "walden");
        assert_eq!(problems.len(), 2);
        let mut invalid = stored(5 << 20);
        let name = "000000010000000000000004".parse().unwrap();
        invalid.invalid = vec![(name, Lsn::new(0x40_1000))];
        assert_eq!(sides(Ok(&server(5 << 20)), Ok(&invalid)), [("wal", 5)]);
        assert_eq!(exit_code(&problems), ExitCode::Integrity);
        assert_eq!(exit_code(&problems[1..]), ExitCode::Warnings);
        assert_eq!(exit_code(&[]), ExitCode::Done);
    }
}
