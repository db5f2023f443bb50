//! A full base backup: BASE_BACKUP over the replication connection, cut into parts that are sealed and stored while it arrives.
//!
//! Owns the order of things: nothing begins unless somebody archives; the label is claimed before anything else of the backup; the
//! descriptor is written last in each repository, when every part, the manifest and the WAL up to the stop LSN are durable there. Whatever ends
//! it earlier leaves objects that no listing shows as a backup. Everything is read and sealed once, and goes to all repositories side by side
//! (`holders.rs`). Does not own the protocol (`replication`), sealing and storing (`upload`), or receiving WAL (`receive`).

mod archiving;
mod holders;
mod members;
mod names;
mod parts;
mod receive;
mod wal;

use std::future::Future;
use std::time::Duration;

use repository::backup::{BackupClaim, BackupDescriptor, PartDescriptor};
use repository::cluster::ClusterDocument;
use repository::descriptor::FORMAT;
use repository::key::{BackupLabel, BackupObject};
use repository::manifest::{ManifestFacts, WalRange};
use repository::wal::lineage;
use repository::{ErrorClass, Repository};
use wal_format::{Lsn, TimelineId};

use self::holders::Holders;
pub use self::holders::LeftOut;
pub use self::names::NamesTaken;
use self::parts::Place;
use self::receive::Received;
use self::wal::StoredWal;
pub use self::wal::require_wal;
use crate::replication::{CancelToken, Connection, ConnectionInfo, Mode, SystemIdentity};
use crate::server_identity::check_identity;
use crate::upload::{Uploader, error_text};
use crate::{Error, Result};

/// Sealed buffers an [`Uploader`] for a backup should keep.
pub const UPLOAD_BUFFERS: usize = parts::SEALED_PARTS;
/// How long telling the server to stop may take.
const CANCEL_DEADLINE: Duration = Duration::from_secs(5);

/// What to back up, to where, and how.
#[derive(Clone, Debug)]
pub struct BackupOptions {
    /// Checkpoint at once instead of spread over time.
    pub fast_checkpoint: bool,
    /// Most KiB a second that the server sends, 32 to 1048576.
    pub max_rate_kib: Option<u32>,
    /// How long to look for somebody who archives before refusing to start.
    pub archiving_grace: Duration,
    /// How long to wait for the WAL the backup needs, each time since some of it arrived.
    pub wal_patience: Duration,
    /// How long storing one object may take, outages of the store included.
    pub store_patience: Duration,
}

impl Default for BackupOptions {
    fn default() -> Self {
        Self {
            fast_checkpoint: false,
            max_rate_kib: None,
            archiving_grace: Duration::from_secs(5),
            wal_patience: Duration::from_secs(10 * 60),
            store_patience: Duration::from_secs(30 * 60),
        }
    }
}

/// One base backup to take.
pub struct BackupRequest<'a> {
    /// The server: a primary or a standby.
    pub server: &'a ConnectionInfo,
    /// Where it goes, to all of them; keeps [`UPLOAD_BUFFERS`] buffers at best.
    pub uploader: &'a Uploader,
    /// The cluster as the repository knows it: another server is refused.
    pub cluster: &'a ClusterDocument,
    /// The slot that `walden run` uses.
    pub slot: &'a str,
    /// How.
    pub options: BackupOptions,
    /// The clock.
    pub now: fn() -> jiff::Timestamp,
    /// Tells labels of one second apart.
    pub random: u16,
}

/// What happens, for whoever shows progress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackupEvent {
    /// The label is taken and the server was asked for a checkpoint, which may take long if it is spread.
    CheckpointRequested {
        /// The backup's label.
        label: BackupLabel,
    },
    /// The server begins to send.
    Started {
        /// Where WAL replay of the backup will start.
        start_lsn: Lsn,
        /// On which timeline.
        timeline: TimelineId,
        /// The server's estimate of all bytes.
        total_bytes: Option<u64>,
    },
    /// So many bytes more have arrived.
    Received(u64),
    /// Everything has arrived; what is not stored yet is being stored.
    Stopped {
        /// WAL is needed up to here.
        stop_lsn: Lsn,
    },
    /// All parts are stored, but not yet the WAL they need. Said again at every look.
    WaitingForWal {
        /// The timeline looked at.
        timeline: TimelineId,
        /// First byte that is not stored.
        stored: Lsn,
        /// First byte behind what is needed.
        needed: Lsn,
    },
}

/// Random bits for [`BackupRequest::random`].
///
/// # Errors
/// `LocalFile`: the system has no randomness.
pub fn draw_random() -> Result<u16> {
    let mut bits = [0; 2];
    getrandom::fill(&mut bits).map_err(|error| Error::LocalFile {
        path: "randomness".into(),
        reason: error.to_string(),
        source: None,
    })?;
    Ok(u16::from_le_bytes(bits))
}

/// A backup that exists, in at least one repository.
#[derive(Clone, Debug)]
pub struct Taken {
    /// Its descriptor, as it was stored.
    pub descriptor: BackupDescriptor,
    /// What became of its catalogue snapshot, without which the backup is as good.
    pub names: NamesTaken,
    /// The WAL that it needs.
    pub wal: Vec<WalRange>,
    /// The repositories that do not have it, or not all of it.
    pub left_out: Vec<LeftOut>,
}

type Observe<'a> = &'a (dyn Fn(BackupEvent) + Send + Sync);

/// Takes a full base backup. It exists when this returns `Ok`, and only then: in every repository but those that are left out, of which the
/// result tells.
///
/// When `stop` resolves first, the server is told to cancel and the result is `Interrupted`.
///
/// # Errors
/// `Config`: major 14, or a server, role or right that is not fit for it. `Conflict`: another server than the repository's
/// (`WrongServer`), or the label is taken anywhere. `Retry`: nothing archives (`NotArchiving`), the WAL did not arrive (`WalNotStored`), the
/// server or the store failed, interrupted. `Corrupt`: bad page checksums on the server, or a stream that could not be restored.
pub async fn take(
    request: &BackupRequest<'_>,
    observe: Observe<'_>,
    stop: impl Future<Output = ()>,
) -> Result<Taken> {
    let mut running = None;
    let outcome = tokio::select! {
        outcome = Box::pin(run(request, observe, &mut running)) => outcome,
        () = stop => Err(Error::Interrupted { during: "base backup" }),
    };
    // The connection is closed by now. The server notices that when it next sends; while it waits for a checkpoint, only this ends it.
    if let (Err(_), Some(token)) = (&outcome, running) {
        match tokio::time::timeout(CANCEL_DEADLINE, token.cancel()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(
                error = error_text(&error),
                "cannot cancel the base backup on the server"
            ),
            Err(_) => {
                tracing::warn!("the server does not answer the request to cancel the base backup")
            }
        }
    }
    outcome
}

async fn run(
    request: &BackupRequest<'_>,
    observe: Observe<'_>,
    running: &mut Option<CancelToken>,
) -> Result<Taken> {
    let mut connection = Connection::connect(request.server, Mode::PhysicalReplication).await?;
    connection.require_supported()?;
    let identity = check_identity(&mut connection, request.cluster).await?;
    let size = request.cluster.segment_size()?;
    let holders = Holders::begin(request.uploader, request.cluster).await?;
    let stored = StoredWal {
        holders: &holders,
        cluster: request.cluster.id(),
        size,
    };
    let grace = request.options.archiving_grace;
    archiving::require(
        &mut connection,
        request.server,
        &identity,
        request.slot,
        stored,
        grace,
    )
    .await?;

    let started = (request.now)();
    let place = Place {
        cluster: request.cluster.id(),
        label: BackupLabel::full(started, request.random),
        // A supported major is a small number.
        pg_version: u16::try_from(connection.server_major()).unwrap_or(u16::MAX),
        patience: request.options.store_patience,
    };
    claim(&holders, &place, started).await?;
    observe(BackupEvent::CheckpointRequested {
        label: place.label.clone(),
    });
    *running = Some(connection.cancel_token());
    let received = receive::receive(&mut connection, request, &holders, &place, observe).await?;
    *running = None;
    let stopped = (request.now)();
    observe(BackupEvent::Stopped {
        stop_lsn: received.stop.0,
    });

    let (start, stop) = (received.start.1, received.stop.1);
    if start != stop {
        return Err(Error::TimelineChanged { start, stop });
    }
    let manifest = check_manifest(&received, &identity)?;
    let from_standby = check_label(&received)?;
    let server_version = connection.parameter("server_version").unwrap_or_default();
    let server_version = server_version
        .split(' ')
        .next()
        .unwrap_or_default()
        .to_owned();
    let lineage = lineage_of(&mut connection, received.start.1).await?;
    if let Err(error) = connection.close().await {
        tracing::debug!(error = error_text(&error), "the connection ended badly");
    }

    let names = names::take(request, &holders, &place).await;
    let parts = received.uploads.finish().await?;
    let manifest_size = received.manifest.len() as u64;
    let (sealed, _) = parts::seal(
        request.uploader,
        &place,
        BackupObject::Manifest,
        received.manifest,
    )
    .await?;
    holders.put(&place, &sealed).await?;
    let patience = request.options.wal_patience;
    stored
        .wait_for(&manifest.wal_ranges, patience, observe)
        .await?;

    let sum = |bytes: fn(&PartDescriptor) -> u32| {
        parts.iter().map(|part| u64::from(bytes(part))).sum::<u64>()
    };
    let descriptor = BackupDescriptor {
        format: FORMAT,
        requires: Vec::new(),
        label: place.label.to_string(),
        kind: "full".to_owned(),
        system_identifier: identity.system_identifier,
        pg_version: place.pg_version,
        server_version,
        wal_segment_size: size.bytes(),
        timeline: received.start.1.get(),
        lineage,
        start_lsn: received.start.0,
        stop_lsn: received.stop.0,
        started,
        stopped,
        from_standby,
        tablespaces: received.tablespaces,
        manifest_size,
        plain_size: sum(|part| part.plain_size),
        stored_size: sum(|part| part.stored_size) + sealed.stored_size() + names.stored_bytes,
        parts,
    };
    let key = place.key(BackupObject::Descriptor);
    holders.put_document(&place, &key, &descriptor).await?;
    Ok(Taken {
        descriptor,
        names,
        wal: manifest.wal_ranges,
        left_out: holders.left_out(),
    })
}

/// Takes the label, before anything else is stored under it. Somebody who has it anywhere has it.
async fn claim(holders: &Holders, place: &Place, started: jiff::Timestamp) -> Result<()> {
    let claim = BackupClaim {
        format: FORMAT,
        label: place.label.to_string(),
        started,
        host: rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned(),
    };
    let (claim, key) = (&claim, &place.key(BackupObject::Started));
    let taken = holders.each(|number| async move {
        let repository: &Repository = &holders.uploader().repositories()[number];
        match repository.put_json(key, claim).await {
            Ok(_) => Ok(None),
            Err(error) if error.class() == ErrorClass::Conflict => Ok(Some(error)),
            Err(error) => Err(error.into()),
        }
    });
    match taken.await?.into_values().flatten().next() {
        None => Ok(()),
        Some(error) => Err(error.into()),
    }
}

/// The manifest must be of this server and of this backup.
fn check_manifest(received: &Received, identity: &SystemIdentity) -> Result<ManifestFacts> {
    let unusable = |reason: String| Error::UnusableBackup {
        what: "manifest".to_owned(),
        reason,
    };
    let manifest = ManifestFacts::parse(&received.manifest).map_err(unusable)?;
    let of_server = manifest
        .system_identifier
        .is_none_or(|identifier| identifier == identity.system_identifier);
    if !of_server {
        return Err(unusable("it is of another server".to_owned()));
    }
    if (manifest.start(), manifest.stop()) != (Some(received.start), Some(received.stop)) {
        return Err(unusable(format!(
            "its WAL ranges are not those of the backup, {} to {}",
            received.start.0, received.stop.0
        )));
    }
    Ok(manifest)
}

/// `backup_label` must say what the server said. Gives whether it was a standby.
fn check_label(received: &Received) -> Result<bool> {
    let unusable = |reason: String| Error::UnusableBackup {
        what: "backup_label".to_owned(),
        reason,
    };
    let label = received.uploads.label();
    let label = label.ok_or_else(|| unusable("the server did not send it".to_owned()))?;
    if (label.start, label.start_timeline) != received.start {
        return Err(unusable(format!(
            "it starts at {} on timeline {}, the server said {} on timeline {}",
            label.start, label.start_timeline, received.start.0, received.start.1
        )));
    }
    if label.incremental_from.is_some() {
        return Err(unusable("it is of an incremental backup".to_owned()));
    }
    Ok(label.from_standby)
}

/// Timeline 1 has no history file.
async fn lineage_of(connection: &mut Connection, timeline: TimelineId) -> Result<String> {
    if timeline.get() == 1 {
        return Ok(lineage(None));
    }
    let history = connection.timeline_history(timeline).await?;
    Ok(lineage(Some(&history.content)))
}
