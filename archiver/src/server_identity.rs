//! Whether a server is the one whose data a repository holds: asked before a byte of it is stored, by the receiver and by base
//! backups; and whether a timeline of a server is the stored one of that number.

use repository::cluster::ClusterDocument;
use repository::key::{ClusterId, ObjectKey};
use repository::{ErrorClass, Repository};
use wal_format::TimelineId;

use crate::error::{Error, Result};
use crate::replication::{Connection, SystemIdentity};

/// Who the server says it is, if it is the cluster of `document`.
///
/// # Errors
/// `WrongServer`: another cluster, or one with another segment size. `RestoredClone`: a restored one, which must not take over its
/// source's data by itself. Others from the connection.
pub(crate) async fn check_identity(
    connection: &mut Connection,
    document: &ClusterDocument,
) -> Result<SystemIdentity> {
    let identity = connection.identify_system().await?;
    let size = connection.wal_segment_size().await?;
    let wrong = |what, expected: String, found: String| Error::WrongServer {
        what,
        expected,
        found,
    };
    if identity.system_identifier != document.system_identifier {
        return Err(wrong(
            "system identifier",
            document.system_identifier.to_string(),
            identity.system_identifier.to_string(),
        ));
    }
    if size != document.segment_size()? {
        return Err(wrong(
            "WAL segment size",
            document.wal_segment_size.to_string(),
            size.bytes().to_string(),
        ));
    }
    match connection.show("walden.restored_from").await {
        Ok(from) if !from.is_empty() => Err(Error::RestoredClone { from }),
        Ok(_) => Ok(identity),
        // A server that was never restored does not know the setting.
        Err(error) if error.server().is_some() => Ok(identity),
        Err(error) => Err(error),
    }
}

/// A timeline's history file as the repository has it, held against a server's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredHistory {
    /// It is not stored.
    Absent,
    /// It is the same, as far as its descriptor says.
    Same,
    /// Another server was promoted to this timeline.
    Another,
}

/// Compares a server's history file of `timeline` with what is stored. Needs no key.
///
/// # Errors
/// As the store's.
pub async fn compare_history(
    repository: &Repository,
    cluster: ClusterId,
    timeline: TimelineId,
    content: &[u8],
) -> Result<StoredHistory> {
    let there = match repository
        .fetch_descriptor(&ObjectKey::History { cluster, timeline })
        .await
    {
        Ok(there) => there,
        Err(error) if error.class() == ErrorClass::NotFound => return Ok(StoredHistory::Absent),
        Err(error) => return Err(error.into()),
    };
    let checksum = crc32fast::hash(content);
    let same = there.plain_size == content.len() as u64
        && there.plain_crc32.is_none_or(|known| known == checksum);
    Ok(match same {
        true => StoredHistory::Same,
        false => StoredHistory::Another,
    })
}
