//! Base backups: their stored bytes, and with a key every file against PostgreSQL's manifest and every data page against its checksum.
//!
//! Owns the order of reading. The rules of manifests, tar slices and `backup_label` are those of a restore.

use super::Job;
use super::finding::{Found, Place, Problem};
use super::memory::{Depth, Memory};
use super::pages::PageCheck;
use super::reader::{Examined, Want, blocking};
use super::survey::KnownBackup;
use crate::error::{Error, Result};
use crate::manifest::{FileLedger, Manifest, PieceSums, name_of};
use crate::restore::{MAX_MANIFEST_BYTES, PARTS_IN_FLIGHT, PG_CONTROL, check_label, read_manifest};
use crate::tar_slice::{SliceContent, read_part};
use futures_util::StreamExt;
use repository::backup::{PART_BYTES, PartDescriptor};
use repository::descriptor::Descriptor;
use repository::key::{Archive, BackupObject, ObjectKey};
use repository::names::MAX_CATALOG_BYTES;
use wal_format::{ControlFile, Lsn};

/// Largest `pg_control` that is looked at; the server's has 8 KiB.
const MAX_CONTROL_BYTES: usize = 64 << 10;
/// Most files that are named one by one.
const MAX_NAMED: usize = 100;

/// What the parts of a backup have said so far.
struct Contents {
    manifest: Manifest,
    files: FileLedger,
    pages: PageCheck,
    control: Option<Vec<u8>>,
    count: u64,
}

/// Looks at one backup.
pub(crate) async fn check_backup(
    job: &Job<'_>,
    backup: &KnownBackup,
    memory: &mut Memory,
) -> Result<Vec<Found>> {
    let mut check = BackupCheck {
        job,
        backup,
        found: Vec::new(),
    };
    let understood = check.is_understood(memory);
    let contents = job.level >= super::Level::Backups && !understood;
    let manifest = check.manifest(contents, memory).await?;
    let contents = manifest.map(|manifest| {
        Box::new(Contents {
            pages: PageCheck::new(manifest.start.1),
            manifest,
            files: FileLedger::default(),
            control: None,
            count: 0,
        })
    });
    check.parts(contents, memory).await?;
    check.catalog(memory).await?;
    Ok(check.found)
}

struct BackupCheck<'a> {
    job: &'a Job<'a>,
    backup: &'a KnownBackup,
    found: Vec<Found>,
}

impl BackupCheck<'_> {
    fn key(&self, object: BackupObject) -> ObjectKey {
        ObjectKey::Backup {
            cluster: self.job.survey.cluster,
            label: self.backup.facts.label.clone(),
            object,
        }
    }

    /// Whether an earlier run has understood the whole backup, and every object of it is the same.
    fn is_understood(&self, memory: &Memory) -> bool {
        let parts = self.backup.descriptor.parts.iter().map(part_object);
        let objects = parts.chain([BackupObject::Descriptor, BackupObject::Manifest]);
        objects.into_iter().all(|object| {
            let key = self.key(object);
            let meta = self.job.survey.objects.get(&key);
            meta.is_some_and(|meta| memory.knows(&key.to_string(), *meta, Depth::Understood))
        })
    }

    /// Reads an object unless it is known well enough; `None` also if something is wrong with it, which is then told.
    async fn read(
        &mut self,
        key: &ObjectKey,
        limit: usize,
        contents: bool,
        memory: &mut Memory,
    ) -> Result<Option<(Descriptor, Option<Vec<u8>>)>> {
        let Some(meta) = self.job.survey.objects.get(key).copied() else {
            return Ok(None);
        };
        let name = key.to_string();
        if !contents && memory.knows(&name, meta, self.job.enough) {
            self.job.reader.remembered();
            return Ok(None);
        }
        let want = match contents {
            true => Want::Contents,
            false => Want::Checked,
        };
        let seen = self.job.reader.examine(key, limit, want).await?;
        Ok(self.accept(key, seen, memory))
    }

    fn accept(
        &mut self,
        key: &ObjectKey,
        seen: Examined,
        memory: &mut Memory,
    ) -> Option<(Descriptor, Option<Vec<u8>>)> {
        let name = key.to_string();
        let (problem, detail) = match seen {
            Examined::Good {
                descriptor,
                plain,
                depth,
            } => {
                if let Some((meta, depth)) = self.job.survey.objects.get(key).zip(depth) {
                    memory.note(&name, *meta, depth);
                }
                return Some((*descriptor, plain));
            }
            Examined::Bad(problem, detail) => (problem, detail),
            Examined::Gone => (Problem::Missing, self.job.survey.gone.to_owned()),
        };
        memory.forget(&name);
        self.add(name, None, problem, detail);
        None
    }

    /// Looks at the manifest; gives what it says, if that is wanted and all is well.
    async fn manifest(&mut self, contents: bool, memory: &mut Memory) -> Result<Option<Manifest>> {
        let descriptor = &self.backup.descriptor;
        let limit = descriptor.manifest_size.min(MAX_MANIFEST_BYTES);
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let key = self.key(BackupObject::Manifest);
        let Some((found, plain)) = self.read(&key, limit, contents, memory).await? else {
            return Ok(None);
        };
        if found.plain_size != descriptor.manifest_size {
            let detail = format!(
                "it has {} bytes, backup.json says {}",
                found.plain_size, descriptor.manifest_size
            );
            self.add(key.to_string(), None, Problem::Contradiction, detail);
            return Ok(None);
        }
        let Some(bytes) = plain else {
            return Ok(None);
        };
        let name = key.to_string();
        match read_manifest(&name, &bytes, self.job.survey.cluster, descriptor) {
            Ok(manifest) => Ok(Some(manifest)),
            Err(error) => {
                memory.forget(&name);
                let lsn = Some(self.backup.facts.start_lsn);
                self.add(name, lsn, Problem::Contradiction, reason_of(&error));
                Ok(None)
            }
        }
    }

    /// Looks at the names of relations, if they are stored; no recovery needs them.
    async fn catalog(&mut self, memory: &mut Memory) -> Result<()> {
        let key = self.key(BackupObject::Catalog);
        let before = self.found.len();
        self.read(&key, MAX_CATALOG_BYTES, false, memory).await?;
        for found in self.found.iter_mut().skip(before) {
            found.place = Place::Nowhere;
        }
        Ok(())
    }

    /// Looks at every part; with `contents` at every file in it.
    async fn parts(
        &mut self,
        mut contents: Option<Box<Contents>>,
        memory: &mut Memory,
    ) -> Result<()> {
        let (job, backup) = (self.job, self.backup);
        let want = match contents.is_some() {
            true => Want::Contents,
            false => Want::Checked,
        };
        let mut wanted = Vec::new();
        for part in &backup.descriptor.parts {
            let key = self.key(part_object(part));
            // A part that is not stored has its finding already.
            let Some(meta) = job.survey.objects.get(&key).copied() else {
                continue;
            };
            let known = memory.knows(&key.to_string(), meta, job.enough);
            match known && contents.is_none() {
                true => job.reader.remembered(),
                false => wanted.push((part, key)),
            }
        }
        let mut is_whole = contents.is_some() && wanted.len() == backup.descriptor.parts.len();
        let mut read =
            futures_util::stream::iter(wanted.into_iter().map(|(part, key)| async move {
                let seen = job.reader.examine(&key, PART_BYTES, want).await;
                (part, key, seen)
            }))
            .buffered(PARTS_IN_FLIGHT);
        while let Some((part, key, seen)) = read.next().await {
            let Some((descriptor, plain)) = self.accept(&key, seen?, memory) else {
                is_whole = false;
                continue;
            };
            let name = key.to_string();
            // Neither may say: it would tell what the plain bytes are.
            let sums = descriptor.plain_crc32.zip(part.plain_crc32);
            let same_sum = sums.is_none_or(|(found, listed)| found == listed);
            if descriptor.plain_size != u64::from(part.plain_size) || !same_sum {
                let detail = "it is not the part that backup.json lists: size or checksum differ";
                memory.forget(&name);
                self.add(name, None, Problem::Contradiction, detail.into());
                is_whole = false;
                continue;
            }
            let Some((plain, state)) = plain.zip(contents.take()) else {
                continue;
            };
            let part = part.clone();
            let (state, wrong) = blocking(move || {
                let mut state = state;
                let wrong = state.take(&name, &part, &plain);
                (state, wrong)
            })
            .await;
            contents = Some(state);
            for (file, detail) in wrong {
                let object = format!("{key}: {file}");
                memory.forget(&key.to_string());
                self.add(object, None, Problem::Contradiction, detail);
            }
        }
        drop(read);
        if let Some(contents) = contents {
            self.finish(*contents, is_whole, memory);
        }
        Ok(())
    }

    /// What can only be said once every part was seen.
    fn finish(&mut self, contents: Contents, is_whole: bool, memory: &mut Memory) {
        let pages = contents.pages.pages;
        let manifest = self.key(BackupObject::Manifest).to_string();
        let missing: Vec<&String> = contents
            .manifest
            .files
            .keys()
            .filter(|name| !contents.files.is_whole(name))
            .collect();
        // With a part that cannot be read, its files are missing too: that part is what is wrong.
        if is_whole {
            for name in missing.iter().take(MAX_NAMED) {
                let detail = format!("it lists {name}, and no part of the backup holds it whole");
                self.add(
                    format!("{manifest}: {name}"),
                    None,
                    Problem::Contradiction,
                    detail,
                );
            }
        }
        let control = contents.control.as_deref().map(ControlFile::parse);
        let has_checksums = match control {
            Some(Ok(control)) => {
                let foreign =
                    control.system_identifier != self.job.survey.cluster.system_identifier;
                let version = u32::from(self.backup.descriptor.pg_version);
                if foreign || control.major.number() != version {
                    let detail = format!(
                        "{PG_CONTROL} is of cluster {} and PostgreSQL {}",
                        control.system_identifier, control.major
                    );
                    self.add(manifest, None, Problem::Contradiction, detail);
                }
                PageCheck::applies(&control)
            }
            Some(Err(error)) => {
                let detail = format!("{PG_CONTROL} cannot be read: {error}");
                self.add(manifest, None, Problem::Damaged, detail);
                false
            }
            None => false,
        };
        let checked = if has_checksums { pages } else { 0 };
        self.job.reader.add_files(contents.count, checked);
        if has_checksums {
            for page in &contents.pages.wrong {
                let detail = format!(
                    "block {} of {} carries checksum {:04X}, its bytes have {:04X}",
                    page.block, page.file, page.stored, page.computed
                );
                let object = format!("{}: {}", self.key(BackupObject::Descriptor), page.file);
                self.add(object, Some(page.lsn), Problem::PageChecksum, detail);
            }
            let more = contents.pages.wrong_count - contents.pages.wrong.len() as u64;
            if more > 0 {
                let object = self.key(BackupObject::Descriptor).to_string();
                let detail = format!("{more} more pages do not have their checksum");
                self.add(object, None, Problem::PageChecksum, detail);
            }
        }
        if self.found.is_empty() && is_whole {
            let parts = self.backup.descriptor.parts.iter().map(part_object);
            for object in parts.chain([BackupObject::Descriptor, BackupObject::Manifest]) {
                let key = self.key(object);
                if let Some(meta) = self.job.survey.objects.get(&key) {
                    memory.note(&key.to_string(), *meta, Depth::Understood);
                }
            }
        }
    }

    fn add(&mut self, object: String, lsn: Option<Lsn>, problem: Problem, detail: String) {
        self.found.push(Found {
            object,
            place: Place::Backup(self.backup.facts.label.to_string()),
            lsn,
            problem,
            detail,
        });
    }
}

impl Contents {
    /// Takes a part; gives the files that are not as listed, and why.
    fn take(&mut self, key: &str, part: &PartDescriptor, bytes: &[u8]) -> Vec<(String, String)> {
        let slices = match read_part(key, bytes, part.continued.as_ref()) {
            Ok(slices) => slices,
            Err(error) => return vec![("tar stream".to_owned(), reason_of(&error))],
        };
        let mut wrong = Vec::new();
        if part.archive == Archive::Base
            && part.part == 0
            && let Err(error) = check_label(key, bytes, &slices, &self.manifest)
        {
            wrong.push(("backup_label".to_owned(), reason_of(&error)));
        }
        for slice in &slices {
            let SliceContent::Piece {
                size,
                offset,
                bytes: range,
            } = &slice.content
            else {
                continue;
            };
            let name = name_of(part.archive, &slice.path);
            let piece = bytes.get(range.clone()).unwrap_or_default();
            let mut sums = PieceSums::default();
            sums.add(*offset, piece);
            let noted = self
                .manifest
                .expect(&name, *size)
                .and_then(|facts| self.files.note(&name, facts, sums));
            match noted {
                Ok(()) => {
                    self.pages.take(&name, *offset, piece);
                    if self.files.is_whole(&name) {
                        self.count += 1;
                    }
                }
                Err(error) if wrong.len() < MAX_NAMED => {
                    wrong.push((name.clone(), reason_of(&error)));
                }
                Err(_) => {}
            }
            if name == PG_CONTROL && piece.len() <= MAX_CONTROL_BYTES {
                self.control = Some(piece.to_vec());
            }
        }
        wrong
    }
}

fn part_object(part: &PartDescriptor) -> BackupObject {
    BackupObject::Part {
        archive: part.archive,
        part: part.part,
    }
}

/// The reason of an error whose object is named beside it.
pub(crate) fn reason_of(error: &Error) -> String {
    match error {
        Error::Integrity { reason, .. } => reason.clone(),
        other => other.to_string(),
    }
}
