//! Objects in a map. Owns the simplest true reading of the back end's rules.

use std::collections::BTreeMap;
use std::ops::{Bound, Range};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};

use crate::store::seam::{Backend, Failure, FailureKind, Fetched, Page, PageRequest};
use crate::store::{Listed, ObjectMeta, PutOutcome};

#[derive(Debug)]
pub(super) struct MemoryBackend {
    page_size: usize,
    objects: Mutex<BTreeMap<String, (Bytes, SystemTime)>>,
}

impl MemoryBackend {
    pub(super) fn new(page_size: usize) -> Self {
        Self {
            page_size,
            objects: Mutex::default(),
        }
    }

    fn with<T>(&self, work: impl FnOnce(&mut BTreeMap<String, (Bytes, SystemTime)>) -> T) -> T {
        work(&mut self.objects.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn object(&self, path: &str) -> Result<(Bytes, SystemTime), Failure> {
        self.with(|objects| objects.get(path).cloned())
            .ok_or_else(|| Failure::new(FailureKind::NotFound, "no such object"))
    }
}

#[async_trait]
impl Backend for MemoryBackend {
    async fn put_new(&self, path: &str, body: &[Bytes]) -> Result<PutOutcome, Failure> {
        let mut bytes = BytesMut::new();
        body.iter().for_each(|piece| bytes.extend_from_slice(piece));
        Ok(self.with(|objects| match objects.contains_key(path) {
            true => PutOutcome::AlreadyExists,
            false => {
                objects.insert(path.to_owned(), (bytes.freeze(), SystemTime::now()));
                PutOutcome::Created
            }
        }))
    }

    async fn fetch(
        &self,
        path: &str,
        range: Option<Range<u64>>,
        limit: u64,
    ) -> Result<Fetched, Failure> {
        let (bytes, last_modified) = self.object(path)?;
        let object_size = bytes.len() as u64;
        if range.is_none() && object_size > limit {
            return Err(Failure::new(FailureKind::TooLarge(object_size), ""));
        }
        let range = range.unwrap_or(0..object_size);
        let index = |offset: u64| {
            usize::try_from(offset)
                .unwrap_or(usize::MAX)
                .min(bytes.len())
        };
        let (start, end) = (index(range.start), index(range.end));
        Ok(Fetched {
            bytes: bytes.slice(start..end.max(start)),
            object_size,
            last_modified,
        })
    }

    async fn head(&self, path: &str) -> Result<ObjectMeta, Failure> {
        let (bytes, last_modified) = self.object(path)?;
        Ok(ObjectMeta {
            size: bytes.len() as u64,
            last_modified,
        })
    }

    async fn list_page(&self, request: &PageRequest) -> Result<Page, Failure> {
        let prefix = if request.folder.is_empty() {
            String::new()
        } else {
            format!("{}/", request.folder)
        };
        let after = request
            .token
            .as_ref()
            .or(request.after.as_ref())
            .filter(|after| **after >= prefix);
        let start = after.map_or(Bound::Included(&prefix), Bound::Excluded);
        Ok(self.with(|objects| {
            let mut page = Page::default();
            for (path, (bytes, last_modified)) in
                objects.range::<String, _>((start, Bound::Unbounded))
            {
                let Some(rest) = path.strip_prefix(&prefix) else {
                    break;
                };
                if let (true, Some((folder, _))) = (request.delimited, rest.split_once('/')) {
                    let folder = format!("{prefix}{folder}");
                    if page.folders.last() != Some(&folder) {
                        page.folders.push(folder);
                    }
                    continue;
                }
                let listed = Listed {
                    path: path.clone(),
                    size: bytes.len() as u64,
                    last_modified: *last_modified,
                };
                page.objects.push(listed);
                if page.objects.len() >= self.page_size {
                    page.token = Some(path.clone());
                    break;
                }
            }
            page
        }))
    }
}
