//! Whether anything stores the server's WAL, asked before a base backup is begun: without its WAL a backup is worth nothing.
//!
//! The decision is pure ([`Facts::judge`]); around it stand the questions to the server and to the repository. That the WAL really
//! arrives is waited for at the end of the backup (`wal.rs`).

use std::time::{Duration, Instant};

use wal_format::{Lsn, SegmentSize};

use super::wal::StoredWal;
use crate::replication::{Connection, ConnectionInfo, Mode, SystemIdentity};
use crate::upload::error_text;
use crate::{Error, Result};

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(500);
/// How many segments the repository may lag behind and still count as being fed.
const NEAR_SEGMENTS: u64 = 4;

/// What is known about who archives.
#[derive(Clone, Debug)]
struct Facts<'a> {
    slot: &'a str,
    slot_state: SlotState,
    /// `off`, `on`, `always`.
    archive_mode: String,
    /// `archive_command` or `archive_library`, whichever is set.
    archive_command: String,
    /// Since its last success the archiver process failed.
    archiver_fails: bool,
    is_standby: bool,
    /// End of the server's WAL.
    server_end: Lsn,
    /// End of what the repository has of that timeline.
    stored_end: Option<Lsn>,
    size: SegmentSize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SlotState {
    /// The server does not let us ask.
    Unknown,
    Missing,
    Idle,
    Active,
}

impl Facts<'_> {
    /// `Ok` if WAL is being stored as far as can be seen, else how things are found.
    fn judge(&self) -> Result<(), String> {
        if self.slot_state == SlotState::Active {
            return Ok(());
        }
        let archiver_works = match self.archive_mode.as_str() {
            "always" => true,
            "on" => !self.is_standby,
            _ => false,
        };
        let is_ours = self.archive_command.contains("walden");
        if archiver_works && is_ours && !self.archiver_fails {
            return Ok(());
        }
        let near = self
            .server_end
            .saturating_sub(NEAR_SEGMENTS * u64::from(self.size.bytes()));
        let is_fed = self.stored_end.is_some_and(|end| end >= near);
        // A standby does not know who archives its primary, and some servers do not let us look: then the outcome has to do. An
        // archive_command may be anybody's script.
        let cannot_see = self.is_standby || self.slot_state == SlotState::Unknown;
        if is_fed && (cannot_see || (archiver_works && !is_ours)) {
            return Ok(());
        }
        Err(self.describe(archiver_works, is_ours))
    }

    fn describe(&self, archiver_works: bool, is_ours: bool) -> String {
        let slot = match self.slot_state {
            SlotState::Unknown => format!("who uses slot {:?} cannot be seen", self.slot),
            SlotState::Missing => format!("there is no slot {:?}", self.slot),
            SlotState::Idle => format!("nobody uses slot {:?}", self.slot),
            SlotState::Active => format!("slot {:?} is in use", self.slot),
        };
        let archiver = match (archiver_works, is_ours) {
            (false, _) => format!("archive_mode is {}", self.archive_mode),
            (true, false) => "archive_command is not walden's".to_owned(),
            (true, true) => "archive_command fails".to_owned(),
        };
        let stored = match self.stored_end {
            Some(end) => format!("the repository has WAL up to {end}"),
            None => "the repository has none of its WAL".to_owned(),
        };
        format!(
            "{slot}, {archiver}, {stored}, the server is at {}",
            self.server_end
        )
    }
}

/// Refuses a server whose WAL nothing stores. Looks again for `grace`: a receiver may be about to connect.
///
/// # Errors
/// `NotArchiving`; `Server`, `ConnectionLost`, … from the connection; `Config`, `Retry` from the store.
pub(super) async fn require(
    connection: &mut Connection,
    info: &ConnectionInfo,
    identity: &SystemIdentity,
    slot: &str,
    stored: StoredWal<'_>,
    grace: Duration,
) -> Result<()> {
    let mut sql = match Connection::connect(info, Mode::Sql).await {
        Ok(connection) => Some(connection),
        Err(error) => {
            // pg_hba.conf may let the role replicate and nothing else.
            tracing::info!(error = error_text(&error), "no SQL connection");
            None
        }
    };
    let archive_mode = connection.show("archive_mode").await?;
    let command = connection.show("archive_command").await?;
    let library = connection.show("archive_library").await?;
    let mut facts = Facts {
        slot,
        slot_state: SlotState::Unknown,
        archive_mode,
        archive_command: if library.is_empty() { command } else { library },
        archiver_fails: false,
        is_standby: connection.parameter("in_hot_standby") == Some("on"),
        server_end: identity.flush_lsn,
        stored_end: None,
        size: stored.size,
    };
    let begun = Instant::now();
    let outcome = loop {
        if let Some(sql) = &mut sql {
            facts.slot_state = slot_state(sql, slot).await?;
            facts.archiver_fails = archiver_fails(sql).await?;
        }
        facts.stored_end = stored.end(identity.timeline, identity.flush_lsn).await?;
        let judged = facts.judge();
        if judged.is_ok() || begun.elapsed() >= grace {
            break judged;
        }
        tokio::time::sleep(PAUSE.min(grace)).await;
    };
    if let Some(sql) = sql
        && let Err(error) = sql.close().await
    {
        tracing::debug!(error = error_text(&error), "the SQL connection ended badly");
    }
    outcome.map_err(|reason| Error::NotArchiving { reason })
}

async fn slot_state(sql: &mut Connection, slot: &str) -> Result<SlotState> {
    let status = sql.slot_status(slot).await?;
    Ok(match status {
        None => SlotState::Missing,
        Some(status) if status.is_active => SlotState::Active,
        Some(_) => SlotState::Idle,
    })
}

async fn archiver_fails(sql: &mut Connection) -> Result<bool> {
    let query = "SELECT coalesce(last_failed_time > last_archived_time, last_failed_time IS NOT NULL) AS fails \
                 FROM pg_catalog.pg_stat_archiver";
    let answer = sql.simple_query(query).await?;
    Ok(answer.text(0, "fails") == Some("t"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn idle() -> Facts<'static> {
        Facts {
            slot: "walden",
            slot_state: SlotState::Idle,
            archive_mode: "off".into(),
            archive_command: "(disabled)".into(),
            archiver_fails: false,
            is_standby: false,
            server_end: Lsn::new(100 << 20),
            stored_end: None,
            size: SegmentSize::new(1 << 20).unwrap(),
        }
    }

    #[test]
    fn somebody_has_to_archive() {
        let check = |change: fn(&mut Facts<'_>), expected: Result<(), &str>| {
            let mut facts = idle();
            change(&mut facts);
            match (facts.judge(), expected) {
                (Ok(()), Ok(())) => {}
                (Err(found), Err(expected)) => assert!(found.contains(expected), "{found}"),
                (found, _) => panic!("{facts:?}: {found:?}"),
            }
        };
        check(
            |_| {},
            Err("nobody uses slot \"walden\", archive_mode is off"),
        );
        check(
            |f| f.slot_state = SlotState::Missing,
            Err("there is no slot"),
        );
        check(|f| f.slot_state = SlotState::Active, Ok(()));
        // Up to date once does not mean that anybody is at work now.
        check(
            |f| f.stored_end = Some(f.server_end),
            Err("nobody uses slot"),
        );

        fn pushes(f: &mut Facts<'_>) {
            f.archive_mode = "on".into();
            f.archive_command = "/usr/bin/walden archive-push %p".into();
        }
        check(pushes, Ok(()));
        check(
            |f| {
                pushes(f);
                f.archiver_fails = true;
            },
            Err("archive_command fails"),
        );
        check(
            |f| {
                pushes(f);
                f.is_standby = true;
            },
            Err("archive_mode is on"),
        );
        check(
            |f| {
                pushes(f);
                f.archive_command = "/etc/push.sh %p".into();
            },
            Err("archive_command is not walden's"),
        );
        check(
            |f| {
                pushes(f);
                f.archive_command = "/etc/push.sh %p".into();
                f.stored_end = Some(Lsn::new(96 << 20));
            },
            Ok(()),
        );
    }

    #[test]
    fn where_nothing_can_be_seen_the_stored_wal_decides() {
        for change in [
            |f: &mut Facts<'_>| f.is_standby = true,
            |f: &mut Facts<'_>| f.slot_state = SlotState::Unknown,
        ] {
            let mut facts = idle();
            change(&mut facts);
            assert!(facts.judge().is_err());
            facts.stored_end = Some(Lsn::new(96 << 20));
            assert_eq!(facts.judge(), Ok(()));
            facts.stored_end = Some(Lsn::new((96 << 20) - 1));
            assert!(facts.judge().is_err());
        }
    }
}
