//! Data pages of a backup against their checksums, as the pieces of relation files pass by (pure).
//!
//! Owns which files have pages and which pages can be judged: one that changed after the backup began may be torn, and replay rewrites it.
//! Source: `verify_page_checksum` in `src/backend/backup/basebackup.c`, majors 14 to 18.

use std::collections::BTreeMap;
use wal_format::{ControlFile, DATA_PAGE_BYTES, DataPage, Lsn};

/// Blocks of one file of a relation, where the server was not compiled for other ones.
const FILE_BLOCKS: u32 = 131_072;
/// Most wrong pages that are kept by name.
const MAX_WRONG: usize = 100;

/// A page whose checksum is not that of its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WrongPage {
    /// The file, as the manifest names it.
    pub(crate) file: String,
    /// The block in its relation.
    pub(crate) block: u32,
    /// Its last change.
    pub(crate) lsn: Lsn,
    /// What it carries, and what its bytes give.
    pub(crate) stored: u16,
    pub(crate) computed: u16,
}

/// Where in its page a piece begins, and its bytes.
type Fragment = (usize, Vec<u8>);

/// Looks at pages. Whether the cluster has checksums is known only at the end, from its `pg_control`.
pub(crate) struct PageCheck {
    start: Lsn,
    /// Pages of which only a part has come: file and block in it.
    fragments: BTreeMap<(String, u64), Vec<Fragment>>,
    pub(crate) pages: u64,
    pub(crate) wrong: Vec<WrongPage>,
    /// Wrong pages, those that are not kept included.
    pub(crate) wrong_count: u64,
}

impl PageCheck {
    /// For a backup whose replay starts at `start`.
    pub(crate) fn new(start: Lsn) -> Self {
        Self {
            start,
            fragments: BTreeMap::new(),
            pages: 0,
            wrong: Vec::new(),
            wrong_count: 0,
        }
    }

    /// Takes a piece of a file.
    pub(crate) fn take(&mut self, file: &str, offset: u64, bytes: &[u8]) {
        let Some(number) = relation_file(file) else {
            return;
        };
        let page = DATA_PAGE_BYTES as u64;
        let (mut offset, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let within = usize::try_from(offset % page).unwrap_or(0);
            let length = (DATA_PAGE_BYTES - within).min(rest.len());
            let (here, after) = rest.split_at(length);
            let index = offset / page;
            match <&[u8; DATA_PAGE_BYTES]>::try_from(here) {
                Ok(whole) => self.judge(file, number, index, whole),
                Err(_) => self.collect(file, number, index, within, here),
            }
            offset += length as u64;
            rest = after;
        }
    }

    /// Whether the cluster's pages carry checksums that can be judged here.
    pub(crate) fn applies(control: &ControlFile) -> bool {
        control.data_checksum_version != 0
            && control.block_bytes as usize == DATA_PAGE_BYTES
            && control.relation_segment_blocks == FILE_BLOCKS
    }

    fn collect(&mut self, file: &str, number: u32, index: u64, within: usize, bytes: &[u8]) {
        let place = (file.to_owned(), index);
        let pieces = self.fragments.entry(place.clone()).or_default();
        pieces.push((within, bytes.to_vec()));
        let held: usize = pieces.iter().map(|(_, piece)| piece.len()).sum();
        if held < DATA_PAGE_BYTES {
            return;
        }
        let Some(mut pieces) = self.fragments.remove(&place) else {
            return;
        };
        pieces.sort();
        let whole: Vec<u8> = pieces.into_iter().flat_map(|(_, piece)| piece).collect();
        if let Ok(whole) = <&[u8; DATA_PAGE_BYTES]>::try_from(whole.as_slice()) {
            self.judge(file, number, index, whole);
        }
    }

    fn judge(&mut self, file: &str, number: u32, index: u64, bytes: &[u8; DATA_PAGE_BYTES]) {
        let page = DataPage::new(bytes);
        if page.is_new() || page.lsn() >= self.start {
            return;
        }
        self.pages += 1;
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        let block = number.saturating_mul(FILE_BLOCKS).saturating_add(index);
        let stored = page.stored_checksum();
        let computed = page.checksum(block);
        if stored == computed {
            return;
        }
        self.wrong_count += 1;
        if self.wrong.len() < MAX_WRONG {
            self.wrong.push(WrongPage {
                file: file.to_owned(),
                block,
                lsn: page.lsn(),
                stored,
                computed,
            });
        }
    }
}

/// Which file of its relation's fork a path is, from 0; `None` for anything that is no relation.
fn relation_file(path: &str) -> Option<u32> {
    let parts: Vec<&str> = path.split('/').collect();
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let name = match parts.as_slice() {
        ["global", name] => *name,
        ["base", database, name] if number(database) => *name,
        ["pg_tblspc", oid, version, database, name]
            if number(oid) && version.starts_with("PG_") && number(database) =>
        {
            *name
        }
        _ => return None,
    };
    let (name, file) = match name.split_once('.') {
        Some((name, file)) if number(file) => (name, file.parse().ok()?),
        Some(_) => return None,
        None => (name, 0),
    };
    let (node, fork) = name.split_once('_').unwrap_or((name, "main"));
    let known = ["main", "fsm", "vm", "init"].contains(&fork);
    (number(node) && known).then_some(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_relation_files() {
        for (path, expected) in [
            ("base/5/1259", Some(0)),
            ("base/5/1259.12", Some(12)),
            ("base/5/1259_vm", Some(0)),
            ("base/5/1259_fsm.1", Some(1)),
            ("global/1262", Some(0)),
            ("pg_tblspc/16400/PG_18_202506291/5/16401", Some(0)),
            ("global/pg_control", None),
            ("base/5/pg_filenode.map", None),
            ("base/5/PG_VERSION", None),
            ("pg_xact/0000", None),
            ("base/5/1259_other", None),
            ("base/5/1259.x", None),
            ("base/x/1259", None),
        ] {
            assert_eq!(relation_file(path), expected, "{path}");
        }
    }

    #[test]
    fn a_page_is_judged_in_whatever_pieces_it_comes() {
        let mut page = [7_u8; DATA_PAGE_BYTES];
        page[..8].copy_from_slice(&[0, 0, 0, 0, 1, 0, 0, 0]);
        let sum = DataPage::new(&page).checksum(FILE_BLOCKS + 1);
        page[8..10].copy_from_slice(&sum.to_le_bytes());
        let mut file = vec![0; DATA_PAGE_BYTES];
        file.extend_from_slice(&page);
        for cut in [0, 1, 512, 8192, 8193, 16383] {
            for (flip, wrong) in [(None, 0), (Some(9000), 1)] {
                let mut file = file.clone();
                if let Some(offset) = flip {
                    file[offset] ^= 1;
                }
                let mut check = PageCheck::new(Lsn::new(100));
                let (head, tail) = file.split_at(cut);
                check.take("base/5/1.1", cut as u64, tail);
                check.take("base/5/1.1", 0, head);
                assert_eq!((check.pages, check.wrong_count), (1, wrong), "{cut}");
                assert!(check.fragments.is_empty());
            }
        }
        // What changed since the backup began may be torn.
        let mut check = PageCheck::new(Lsn::new(1));
        check.take("base/5/1", 0, &file);
        assert_eq!(check.pages, 0);
    }
}
