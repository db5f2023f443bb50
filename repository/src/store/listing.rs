//! Listings: page by page, a whole folder, a large one folder by folder.
//! Owns how many objects a listing may hold and in which order pages come. Does not know what the paths mean.

use std::collections::BTreeSet;
use std::time::SystemTime;

use futures_util::{StreamExt, TryStreamExt};

use super::backend::{Page, PageRequest};
use super::{MAX_CONCURRENT_REQUESTS, Store, checked};
use crate::{Error, Result};

/// Objects that a listing holds at most; any number is read by [`Store::pages`]. One takes about 160 bytes.
pub const MAX_LISTED: usize = 4_000_000;

/// An object in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Path below the repository's root.
    pub path: String,
    /// Size in bytes.
    pub size: u64,
    /// When it was written, by the store's clock.
    pub last_modified: SystemTime,
}

impl Store {
    /// All objects below `folder` (without a closing slash; empty for the root), at any depth, in byte order of their paths.
    ///
    /// # Errors
    /// `TooManyObjects` (class `Retry`) when there are more than [`MAX_LISTED`].
    pub async fn list(&self, folder: &str) -> Result<Vec<Listed>> {
        self.collect(self.pages(folder, None)?, folder).await
    }

    /// As [`Store::list`], only paths greater than `start_after` (a full path below the root, which need not exist).
    ///
    /// # Errors
    /// As [`Store::list`].
    pub async fn list_after(&self, folder: &str, start_after: &str) -> Result<Vec<Listed>> {
        self.collect(self.pages(folder, Some(start_after))?, folder)
            .await
    }

    /// As [`Store::list`] or [`Store::list_after`], if that takes one request; `None`: there is more.
    ///
    /// # Errors
    /// As [`Store::list`].
    pub async fn list_if_few(
        &self,
        folder: &str,
        start_after: Option<&str>,
    ) -> Result<Option<Vec<Listed>>> {
        let mut pages = self.pages(folder, start_after)?;
        let first = pages.next().await?.unwrap_or_default();
        Ok(pages.is_over().then_some(first))
    }

    /// A listing in pages of at most 1000 objects, for folders that may hold any number. Objects are in byte order within a page;
    /// across pages only as far as the store lists in byte order (AWS and `file://` do).
    ///
    /// # Errors
    /// `InvalidPath`.
    pub fn pages(&self, folder: &str, start_after: Option<&str>) -> Result<Pages> {
        if !folder.is_empty() {
            checked(folder)?;
        }
        let after = start_after.map(str::to_owned);
        let request = PageRequest {
            folder: folder.to_owned(),
            after,
            delimited: false,
            token: None,
        };
        Ok(Pages {
            store: self.clone(),
            next: Some(request),
            last: String::new(),
            in_order: true,
        })
    }

    /// All objects below `folder`, which may hold very much, given to `take` as they come: folder by folder for `levels` levels and
    /// everything below those at once, several requests at a time. What lies in the folder `without` is left out.
    ///
    /// # Errors
    /// As [`Store::list`], and those of `take`.
    pub async fn list_wide(
        &self,
        folder: &str,
        levels: usize,
        without: Option<&str>,
        mut take: impl FnMut(Vec<Listed>) -> Result<()>,
    ) -> Result<()> {
        let mut folders = vec![folder.to_owned()];
        for _ in 0..levels {
            let requests = folders
                .into_iter()
                .map(|folder| async move { self.list_level(&folder).await });
            let mut found = futures_util::stream::iter(requests).buffered(MAX_CONCURRENT_REQUESTS);
            let mut deeper = Vec::new();
            while let Some((objects, folders)) = found.try_next().await? {
                take(objects)?;
                let wanted = |folder: &String| without.is_none_or(|without| *folder != without);
                deeper.extend(folders.into_iter().filter(wanted));
            }
            drop(found);
            folders = deeper;
        }
        let requests = folders
            .into_iter()
            .map(|folder| async move { self.list(&folder).await });
        let mut found = futures_util::stream::iter(requests).buffered(MAX_CONCURRENT_REQUESTS);
        while let Some(objects) = found.try_next().await? {
            take(objects)?;
        }
        Ok(())
    }

    /// Full paths of the folders directly below `folder`, in byte order, without closing slashes.
    ///
    /// # Errors
    /// As [`Store::list`].
    pub async fn list_folders(&self, folder: &str) -> Result<Vec<String>> {
        Ok(self.list_level(folder).await?.1)
    }

    /// The objects directly in `folder`, and the folders there as [`Store::list_folders`] gives them.
    ///
    /// # Errors
    /// As [`Store::list`].
    pub async fn list_level(&self, folder: &str) -> Result<(Vec<Listed>, Vec<String>)> {
        if !folder.is_empty() {
            checked(folder)?;
        }
        let mut request = PageRequest {
            folder: folder.to_owned(),
            after: None,
            delimited: true,
            token: None,
        };
        let (mut objects, mut folders) = (Vec::new(), BTreeSet::new());
        loop {
            let page = self.page(&request).await?;
            objects.extend(page.objects);
            folders.extend(page.folders);
            self.limited(objects.len().saturating_add(folders.len()), folder)?;
            let Some(token) = page.token else { break };
            request.token = Some(token);
        }
        Ok((objects, folders.into_iter().collect()))
    }

    /// There are more than `limit` objects below `folder`, and a listing would hold them all.
    pub(crate) fn too_many(&self, folder: &str, limit: usize) -> Error {
        Error::TooManyObjects {
            location: self.url_of(folder),
            limit,
        }
    }

    async fn collect(&self, mut pages: Pages, folder: &str) -> Result<Vec<Listed>> {
        let mut all = Vec::new();
        while let Some(page) = pages.next().await? {
            all.extend(page);
            self.limited(all.len(), folder)?;
        }
        all.sort_unstable_by(|one: &Listed, other| one.path.cmp(&other.path));
        all.dedup_by(|one, other| one.path == other.path);
        Ok(all)
    }

    fn limited(&self, count: usize, folder: &str) -> Result<()> {
        match count <= MAX_LISTED {
            true => Ok(()),
            false => Err(self.too_many(folder, MAX_LISTED)),
        }
    }

    async fn page(&self, request: &PageRequest) -> Result<Page> {
        let deadline = self.shared.deadlines.request;
        self.attempts(&request.folder, 0, deadline, || {
            self.shared.backend.list_page(request)
        })
        .await
    }
}

/// A listing being read page by page.
#[derive(Debug)]
pub struct Pages {
    store: Store,
    /// `None`: all pages were read.
    next: Option<PageRequest>,
    /// The last path that the store gave, in its order.
    last: String,
    in_order: bool,
}

impl Pages {
    /// The next page, in byte order of paths; `None` after the last. An empty page does not mean the end.
    ///
    /// # Errors
    /// As [`Store::list`]; the same page can be asked for again.
    pub async fn next(&mut self) -> Result<Option<Vec<Listed>>> {
        let Some(request) = &mut self.next else {
            return Ok(None);
        };
        let mut page = self.store.page(request).await?;
        for object in &page.objects {
            self.in_order &= self.last.as_str() < object.path.as_str();
            object.path.clone_into(&mut self.last);
        }
        page.objects
            .sort_unstable_by(|one, other| one.path.cmp(&other.path));
        match page.token {
            Some(token) => request.token = Some(token),
            None => self.next = None,
        }
        Ok(Some(page.objects))
    }

    /// Whether all pages were read.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.next.is_none()
    }

    /// Whether the store gave everything so far in byte order: then what is still to come lies behind it.
    #[must_use]
    pub fn is_in_order(&self) -> bool {
        self.in_order
    }
}
