//! What `status` says of the WAL that our slot keeps on the server's disk, and of WAL behind a gap that no backup covers (pure).
//! The rest of the judgement is `archiving_state.rs`; that a guard is at work is `walden run`'s business.

use archiver::receive::{Danger, DiskGuard, KeptWal};
use wal_format::Lsn;

use crate::archiving_state::{Problem, ServerState, StoredState};
use crate::config;
use crate::exit_code::ExitCode;
use crate::units::ByteSize;

/// The configured limits as the library takes them.
pub(crate) fn limits(guard: config::DiskGuard) -> DiskGuard {
    DiskGuard {
        warn: guard.warn.bytes(),
        drop_slot: guard.drop_slot.map(ByteSize::bytes),
    }
}

/// Whether the slot keeps more WAL than the configuration allows.
pub(crate) fn judge_disk(
    server: &ServerState,
    guard: Option<config::DiskGuard>,
) -> Option<Problem> {
    let (slot, guard) = (server.slot.as_ref()?, guard?);
    let from = slot.restart_lsn?;
    let bytes = server.identity.flush_lsn.distance_from(from).unwrap_or(0);
    let safe = slot.safe_wal_size;
    let kept = KeptWal {
        bytes,
        safe: safe.map(|safe| u64::try_from(safe).unwrap_or(0)),
    };
    let keeps = format!(
        "the slot keeps {} of WAL on the server's disk",
        ByteSize::new(bytes)
    );
    let what = match limits(guard).judge(kept) {
        Danger::None => return None,
        Danger::Much => {
            let then = guard.drop_slot.map_or_else(String::new, |drop| {
                format!("; from {drop} on walden run gives the slot up, and WAL is lost")
            });
            format!("{keeps}, because it is not stored{then}")
        }
        Danger::TooMuch => {
            format!("{keeps}: walden run gives it up now (disk_guard.drop_slot), and WAL is lost")
        }
        Danger::NearServersLimit => format!(
            "{keeps}, and the server removes WAL that is not stored after {} more (max_slot_wal_keep_size)",
            ByteSize::new(kept.safe.unwrap_or(0))
        ),
    };
    Some(Problem {
        side: "server",
        what,
        code: ExitCode::Warnings,
    })
}

/// Whether what is written now is behind a gap, and no backup behind it: acknowledged or not, it cannot be restored.
pub(crate) fn judge_behind_gap(stored: &StoredState) -> Option<Problem> {
    stored.last_backup.as_ref()?;
    let (_, end) = *stored.ends.last()?;
    let reachable = stored
        .reachable
        .map_or(Lsn::INVALID, |(_, newest)| newest.lsn);
    let behind = stored
        .gaps
        .iter()
        .filter_map(|gap| gap.to.parse::<Lsn>().ok())
        .filter(|to| reachable < *to && *to < end)
        .max()?;
    Some(Problem {
        side: "backup",
        what: format!(
            "no base backup was taken since the gap that ends at {behind}: nothing written behind it can be restored; take one with `walden backup`"
        ),
        code: ExitCode::Warnings,
    })
}
