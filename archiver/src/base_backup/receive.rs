//! The stream of one BASE_BACKUP: archives go to the parts, the manifest is kept, and everything announced must have come.
//!
//! Does not own the order of messages (`replication/base_backup.rs`), nor what happens before and after (`mod.rs`).

use std::collections::BTreeSet;

use repository::backup::{MAX_MANIFEST_BYTES, TablespaceDescriptor};
use repository::key::Archive;
use wal_format::{Lsn, TimelineId};

use super::holders::Holders;
use super::parts::{PartUploads, Place};
use super::{BackupEvent, BackupRequest, Observe};
use crate::replication::{BaseBackupEvent, BaseBackupOptions, Connection};
use crate::{Error, Result};

/// What the server sent.
pub(super) struct Received {
    /// Where WAL replay starts.
    pub(super) start: (Lsn, TimelineId),
    /// Where the backup becomes consistent.
    pub(super) stop: (Lsn, TimelineId),
    /// Tablespaces outside the data directory.
    pub(super) tablespaces: Vec<TablespaceDescriptor>,
    /// The manifest, byte for byte.
    pub(super) manifest: Vec<u8>,
    /// The parts, some of them still on their way.
    pub(super) uploads: PartUploads,
}

/// Runs BASE_BACKUP to its end.
pub(super) async fn receive(
    connection: &mut Connection,
    request: &BackupRequest<'_>,
    holders: &Holders,
    place: &Place,
    observe: Observe<'_>,
) -> Result<Received> {
    let mut options = BaseBackupOptions::new(place.label.as_str());
    options.fast_checkpoint = request.options.fast_checkpoint;
    options.max_rate = request.options.max_rate_kib;
    let mut backup = connection.base_backup(&options).await?;
    let kib = backup
        .tablespaces
        .iter()
        .map(|tablespace| tablespace.size_kib);
    let kib = kib
        .chain([backup.data_directory_size_kib])
        .sum::<Option<u64>>();
    let start = (backup.start_lsn, backup.timeline);
    observe(BackupEvent::Started {
        start_lsn: start.0,
        timeline: start.1,
        total_bytes: kib.map(|kib| kib.saturating_mul(1024)),
    });

    let tablespaces: Vec<TablespaceDescriptor> = backup
        .tablespaces
        .iter()
        .map(|tablespace| TablespaceDescriptor {
            oid: tablespace.oid,
            location: tablespace.location.clone(),
        })
        .collect();
    let named = tablespaces
        .iter()
        .map(|tablespace| Archive::Tablespace(tablespace.oid));
    let mut missing: BTreeSet<Archive> = named.chain([Archive::Base]).collect();
    let mut uploads = PartUploads::new(holders.clone(), place.clone());
    let mut manifest: Option<Vec<u8>> = None;
    let stop = loop {
        let event = tokio::select! {
            event = backup.next() => event?,
            error = uploads.failed() => return Err(error),
        };
        match event {
            BaseBackupEvent::ArchiveStart { name, .. } => {
                uploads.finish_archive()?;
                let archive = parse_archive(&name).filter(|archive| missing.remove(archive));
                match archive {
                    Some(archive) if manifest.is_none() => uploads.begin_archive(archive).await?,
                    _ => return Err(unusable(&name, "it has no place in this backup")),
                }
            }
            BaseBackupEvent::ManifestStart => {
                uploads.finish_archive()?;
                if manifest.replace(Vec::new()).is_some() {
                    return Err(unusable("manifest", "it comes twice"));
                }
            }
            BaseBackupEvent::Data(data) => {
                observe(BackupEvent::Received(data.len() as u64));
                match &mut manifest {
                    None => uploads.push(data).await?,
                    Some(manifest) if manifest.len() + data.len() > MAX_MANIFEST_BYTES => {
                        return Err(unusable("manifest", "it is larger than 256 MiB"));
                    }
                    Some(manifest) => manifest.extend_from_slice(&data),
                }
            }
            BaseBackupEvent::Progress(_) => {}
            BaseBackupEvent::End { stop_lsn, timeline } => break (stop_lsn, timeline),
        }
    };
    if let Some(archive) = missing.first() {
        return Err(unusable(&archive.to_string(), "the server did not send it"));
    }
    let manifest = manifest.ok_or_else(|| unusable("manifest", "the server did not send it"))?;
    Ok(Received {
        start,
        stop,
        tablespaces,
        manifest,
        uploads,
    })
}

/// `base.tar`, `16385.tar`.
fn parse_archive(name: &str) -> Option<Archive> {
    name.strip_suffix(".tar")?.parse().ok()
}

fn unusable(what: &str, reason: &str) -> Error {
    Error::UnusableBackup {
        what: what.to_owned(),
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_are_named_by_oid_and_nothing_else() {
        assert_eq!(parse_archive("base.tar"), Some(Archive::Base));
        assert_eq!(parse_archive("16385.tar"), Some(Archive::Tablespace(16385)));
        for name in [
            "base",
            "0.tar",
            "../base.tar",
            "a/b.tar",
            "16385.tar.gz",
            ".tar",
            "+1.tar",
        ] {
            assert_eq!(parse_archive(name), None, "{name}");
        }
    }
}
