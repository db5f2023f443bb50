//! Cutting the tar streams of a base backup into parts, and sealing and storing these beside the network read.
//!
//! Owns the bound on memory: at most [`PLAIN_BUFFERS`] parts in the clear (one of them being filled) and [`SEALED_PARTS`] sealed ones that
//! wait for the stores, so 3 × 32 MiB + 3 × 33 MiB at the worst: a part is sealed once, and its bytes are the same ones on their way to every
//! repository. Reading goes on as long as there is a buffer to read into. Does not know the replication protocol (`mod.rs`) or tar
//! (`members.rs`).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use repository::backup::{PART_BYTES, PartDescriptor};
use repository::key::{Archive, BackupLabel, BackupObject, ClusterId, ObjectKey};
use repository::sealed::{Facts, Sealed};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinError, JoinSet};

use super::holders::Holders;
use super::members::{PartMembers, TarMembers, leading_file};
use crate::upload::Uploader;
use crate::{Error, Result};

/// Most parts in the clear: one is filled while two are sealed.
const PLAIN_BUFFERS: usize = 3;
/// Most sealed parts, those being made included.
pub(super) const SEALED_PARTS: usize = 3;
/// Parts of one archive that six digits can number.
const MAX_PARTS: u32 = 1_000_000;

/// Whose backup, and how long the store may take over one object.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) cluster: ClusterId,
    pub(super) label: BackupLabel,
    pub(super) pg_version: u16,
    pub(super) patience: Duration,
}

impl Place {
    /// Where an object of this backup stands.
    pub(super) fn key(&self, object: BackupObject) -> ObjectKey {
        ObjectKey::Backup {
            cluster: self.cluster,
            label: self.label.clone(),
            object,
        }
    }
}

/// The parts of a backup on their way to the store.
pub(super) struct PartUploads {
    holders: Holders,
    place: Place,
    /// The archive being received.
    open: Option<OpenArchive>,
    /// Buffers that may still be allocated.
    unallocated: usize,
    returned: mpsc::Receiver<Vec<u8>>,
    give_back: mpsc::Sender<Vec<u8>>,
    sealed: Arc<Semaphore>,
    tasks: JoinSet<Result<PartDescriptor>>,
    stored: Vec<PartDescriptor>,
    label: Option<wal_format::BackupLabel>,
}

struct OpenArchive {
    archive: Archive,
    part: u32,
    members: TarMembers,
    buffer: Vec<u8>,
}

impl PartUploads {
    pub(super) fn new(holders: Holders, place: Place) -> Self {
        let (give_back, returned) = mpsc::channel(PLAIN_BUFFERS);
        Self {
            holders,
            place,
            open: None,
            unallocated: PLAIN_BUFFERS,
            returned,
            give_back,
            sealed: Arc::new(Semaphore::new(SEALED_PARTS)),
            tasks: JoinSet::new(),
            stored: Vec::new(),
            label: None,
        }
    }

    /// The `backup_label` that the data directory's stream began with.
    pub(super) fn label(&self) -> Option<&wal_format::BackupLabel> {
        self.label.as_ref()
    }

    /// The next tar stream begins. The one before must be finished.
    pub(super) async fn begin_archive(&mut self, archive: Archive) -> Result<()> {
        let buffer = self.take_buffer().await?;
        self.open = Some(OpenArchive {
            archive,
            part: 0,
            members: TarMembers::default(),
            buffer,
        });
        Ok(())
    }

    /// Takes bytes of the open tar stream; waits only if every buffer is in use.
    pub(super) async fn push(&mut self, mut data: Bytes) -> Result<()> {
        while !data.is_empty() {
            let Some(open) = &mut self.open else {
                return Err(unusable("archive", "data before it begins".into()));
            };
            let room = PART_BYTES - open.buffer.len();
            let here = data.split_to(room.min(data.len()));
            open.buffer.extend_from_slice(&here);
            if open.buffer.len() == PART_BYTES {
                let next = self.take_buffer().await?;
                self.cut(next)?;
            }
        }
        Ok(())
    }

    /// The open tar stream has ended: its last part goes too.
    pub(super) fn finish_archive(&mut self) -> Result<()> {
        let Some(open) = &self.open else {
            return Ok(());
        };
        // A stream whose length is a multiple of the part size leaves nothing for a last part.
        if !open.buffer.is_empty() {
            self.cut(Vec::new())?;
        } else if let Some(open) = &mut self.open {
            let unused = std::mem::take(&mut open.buffer);
            self.give_back.try_send(unused).ok();
        }
        let Some(open) = self.open.take() else {
            return Ok(());
        };
        if open.part == 0 {
            return Err(unusable(open.archive, "the stream is empty".into()));
        }
        let ended = open.members.finish();
        ended.map_err(|reason| unusable(open.archive, reason))
    }

    /// Resolves when a part fails, else never: for a `select!` beside the network read.
    pub(super) async fn failed(&mut self) -> Error {
        loop {
            match self.tasks.join_next().await {
                None => std::future::pending().await,
                Some(joined) => {
                    if let Err(error) = self.note(joined) {
                        return error;
                    }
                }
            }
        }
    }

    /// Waits until every part is durable. In order of archive and number.
    pub(super) async fn finish(mut self) -> Result<Vec<PartDescriptor>> {
        while let Some(joined) = self.tasks.join_next().await {
            self.note(joined)?;
        }
        self.stored.sort_by_key(|part| (part.archive, part.part));
        Ok(self.stored)
    }

    /// Hands the filled buffer to a task and goes on with `next`.
    fn cut(&mut self, next: Vec<u8>) -> Result<()> {
        let Some(open) = &mut self.open else {
            return Ok(());
        };
        let plain = std::mem::replace(&mut open.buffer, next);
        let members = open.members.walk(&plain);
        let members = members.map_err(|reason| unusable(open.archive, reason))?;
        if (open.archive, open.part) == (Archive::Base, 0) {
            self.label = Some(read_label(&plain)?);
        }
        let object = BackupObject::Part {
            archive: open.archive,
            part: open.part,
        };
        open.part += 1;
        if open.part > MAX_PARTS {
            return Err(unusable(open.archive, "more than a million parts".into()));
        }
        let task = store_part(
            self.holders.clone(),
            self.place.clone(),
            object,
            members,
            plain,
            Arc::clone(&self.sealed),
            self.give_back.clone(),
        );
        self.tasks.spawn(task);
        Ok(())
    }

    /// An empty buffer: a fresh one, or one that a sealed part gave back.
    async fn take_buffer(&mut self) -> Result<Vec<u8>> {
        if let Ok(buffer) = self.returned.try_recv() {
            return Ok(buffer);
        }
        if self.unallocated > 0 {
            self.unallocated -= 1;
            return Ok(Vec::with_capacity(PART_BYTES));
        }
        loop {
            tokio::select! {
                buffer = self.returned.recv() => {
                    return buffer.ok_or_else(|| unusable("part", "no buffer comes back".into()));
                }
                Some(joined) = self.tasks.join_next() => note(&mut self.stored, joined)?,
            }
        }
    }

    fn note(&mut self, joined: Result<Result<PartDescriptor>, JoinError>) -> Result<()> {
        note(&mut self.stored, joined)
    }
}

/// Without its `backup_label` a data directory would recover from the wrong place, and look well.
fn read_label(part: &[u8]) -> Result<wal_format::BackupLabel> {
    let missing = || unusable("base", "it does not begin with backup_label".into());
    let (_, contents) = leading_file(part)
        .filter(|(name, _)| name == b"backup_label")
        .ok_or_else(missing)?;
    Ok(wal_format::BackupLabel::parse(contents)?)
}

fn note(
    stored: &mut Vec<PartDescriptor>,
    joined: Result<Result<PartDescriptor>, JoinError>,
) -> Result<()> {
    match joined {
        Ok(part) => stored.push(part?),
        // Nobody aborts these tasks but the drop of the set, after which nobody waits here.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
    Ok(())
}

async fn store_part(
    holders: Holders,
    place: Place,
    object: BackupObject,
    members: PartMembers,
    plain: Vec<u8>,
    permits: Arc<Semaphore>,
    give_back: mpsc::Sender<Vec<u8>>,
) -> Result<PartDescriptor> {
    let BackupObject::Part { archive, part } = object else {
        return Err(unusable("part", "it is another object".into()));
    };
    let _permit = permits.acquire().await.expect("nobody closes it");
    let (sealed, mut plain) = seal(holders.uploader(), &place, object, plain).await?;
    let descriptor = PartDescriptor {
        archive,
        part,
        plain_size: size(&sealed, plain.len())?,
        stored_size: size(&sealed, sealed.stored_size())?,
        plain_crc32: sealed.descriptor.plain_crc32,
        first_member: members.first_member,
        continued: members.continued,
    };
    plain.clear();
    // There is room for every buffer; nobody listens any more once the backup was given up.
    give_back.try_send(plain).ok();
    holders.put(&place, &sealed).await?;
    Ok(descriptor)
}

/// Seals an object of this backup, and gives the plain bytes back.
pub(super) async fn seal(
    uploader: &Uploader,
    place: &Place,
    object: BackupObject,
    plain: Vec<u8>,
) -> Result<(Sealed, Vec<u8>)> {
    let facts = Facts {
        key: place.key(object),
        pg_version: place.pg_version,
        wal: None,
    };
    uploader.seal(facts, plain).await
}

fn size(sealed: &Sealed, bytes: impl TryInto<u32>) -> Result<u32> {
    bytes
        .try_into()
        .map_err(|_| unusable(&sealed.key, "it is larger than 4 GiB".into()))
}

fn unusable(what: impl ToString, reason: String) -> Error {
    Error::UnusableBackup {
        what: what.to_string(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use repository::testing::{FaultPlan, Outage, UNENCRYPTED};
    use repository::{ErrorClass, Repository, Store};

    const PATIENCE: Duration = Duration::from_secs(20);

    fn place() -> Place {
        Place {
            cluster: ClusterId::new(7),
            label: BackupLabel::full(jiff::Timestamp::UNIX_EPOCH, 1),
            pg_version: 18,
            patience: PATIENCE,
        }
    }

    fn uploads(store: Store) -> PartUploads {
        let uploader = Uploader::new(Repository::new("test", store), UNENCRYPTED, SEALED_PARTS);
        PartUploads::new(Holders::new(uploader), place())
    }

    /// A tar stream of one file that is `parts` parts long, end mark included.
    fn stream(parts: usize) -> Bytes {
        let size = parts * PART_BYTES - 3 * 512;
        let mut header = tar::Header::new_ustar();
        header.as_old_mut().name[0] = b'a';
        header.set_size(size as u64);
        header.set_mode(0o600);
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.resize(512 + size, b'x');
        bytes.resize(parts * PART_BYTES, 0);
        bytes.into()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_stalled_store_is_read_ahead_of_by_six_parts_and_no_further() {
        let outage = Outage::default();
        outage.set(true);
        let plan = FaultPlan {
            outage: outage.clone(),
            ..FaultPlan::default()
        };
        let deadlines = repository::Deadlines {
            request: Duration::from_millis(500),
            total: Duration::from_millis(600),
        };
        let memory = Store::in_memory();
        let mut uploads = uploads(Store::faulty(&memory, plan, deadlines));
        let mut rest = stream(8);
        let mut taken = 0;
        uploads.begin_archive(Archive::Tablespace(5)).await.unwrap();
        while !rest.is_empty() {
            let next = rest.split_to(rest.len().min(1 << 20));
            let push = uploads.push(next.clone());
            let wait = Duration::from_secs(3);
            match tokio::time::timeout(wait, push).await {
                Ok(pushed) => pushed.unwrap(),
                Err(_) => {
                    assert_eq!(
                        (taken + next.len()) / PART_BYTES,
                        PLAIN_BUFFERS + SEALED_PARTS
                    );
                    assert!(outage.requests_stalled() >= SEALED_PARTS as u64);
                    outage.set(false);
                    // The push that was given up had filled its buffer: go on with the cut.
                    let buffer = uploads.take_buffer().await.unwrap();
                    uploads.cut(buffer).unwrap();
                }
            }
            taken += next.len();
        }
        assert!(outage.requests_stalled() > 0, "reading had to wait");
        uploads.finish_archive().unwrap();
        let parts = uploads.finish().await.unwrap();
        let numbers: Vec<u32> = parts.iter().map(|part| part.part).collect();
        assert_eq!(numbers, (0..8).collect::<Vec<u32>>());
        assert_eq!(
            parts[7].continued.as_ref().map(|file| file.offset),
            Some(7 * PART_BYTES as u64 - 512)
        );
        assert_eq!(memory.list("").await.unwrap().len(), 8);
    }

    #[tokio::test]
    async fn other_bytes_at_a_parts_key_end_the_backup_at_once() {
        let memory = Store::in_memory();
        let mut first = uploads(memory.clone());
        first.begin_archive(Archive::Tablespace(5)).await.unwrap();
        first.push(stream(1)).await.unwrap();
        first.finish_archive().unwrap();
        assert_eq!(first.finish().await.unwrap().len(), 1);

        let mut second = uploads(memory);
        second.begin_archive(Archive::Tablespace(5)).await.unwrap();
        second.push(stream(2)).await.unwrap();
        let error = tokio::time::timeout(PATIENCE, second.failed())
            .await
            .unwrap();
        assert_eq!(error.class(), ErrorClass::Conflict, "{error}");
    }

    #[tokio::test]
    async fn a_stream_that_breaks_off_is_refused() {
        let mut cut = uploads(Store::in_memory());
        cut.begin_archive(Archive::Tablespace(5)).await.unwrap();
        let mut half = stream(1);
        cut.push(half.split_to(PART_BYTES / 2)).await.unwrap();
        let error = cut.finish_archive().unwrap_err();
        assert_eq!(error.to_string(), "base backup: 5: it ends inside \"a\"");

        let mut empty = uploads(Store::in_memory());
        empty.begin_archive(Archive::Tablespace(5)).await.unwrap();
        let error = empty.finish_archive().unwrap_err();
        assert_eq!(error.to_string(), "base backup: 5: the stream is empty");

        let mut unlabelled = uploads(Store::in_memory());
        unlabelled.begin_archive(Archive::Base).await.unwrap();
        let error = unlabelled.push(stream(1)).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "base backup: base: it does not begin with backup_label"
        );
    }
}
