//! What records say of objects that are gone for good: statistics that a commit or an abort drops, and which row was deleted.
//!
//! Source: `xl_xact_stats_item` in `src/include/access/xact.h`, majors 15 to 18, `PGSTAT_KIND_*` in `pgstat.h` and `pgstat_kind.h`;
//! `xl_heap_delete` in `heapam_xlog.h`, majors 14 to 18. Little-endian.
//!
//! | size | field of an item |
//! |---|---|
//! | 4 | kind of statistics: 2 is a relation's |
//! | 4 | database |
//! | 4, 8 since 18 | object's OID, since 18 its low half first |
//!
//! | size | field of a deletion |
//! |---|---|
//! | 4 | transaction |
//! | 2 | the row's number on its page |
//! | 2 | flags |

use crate::BodyParts;
use crate::cursor::Cursor;

const HEAP: u8 = 10;
const HEAP_KIND_MASK: u8 = 0x70;
const HEAP_DELETE: u8 = 0x10;
const RELATION: u32 = 2;

/// Objects whose statistics end with a transaction: those it dropped, or after an abort those it had made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DroppedStatistics<'a> {
    bytes: &'a [u8],
    item_bytes: usize,
}

impl<'a> DroppedStatistics<'a> {
    pub(super) const NONE: Self = Self {
        bytes: &[],
        item_bytes: 12,
    };

    /// `item_bytes`: 12, or 16 since 18.
    pub(super) const fn new(bytes: &'a [u8], item_bytes: usize) -> Self {
        Self { bytes, item_bytes }
    }

    /// The relations among them: database (0: shared by all) and OID. Not the numbers of their files.
    pub fn relations(&self) -> impl Iterator<Item = (u32, u32)> + use<'a> {
        self.bytes
            .chunks(self.item_bytes.max(1))
            .filter_map(|item| {
                let mut item = Cursor::new(item);
                let kind = item.u32("kind").ok()?;
                let database = item.u32("database").ok()?;
                let object = item.u32("object").ok()?;
                (kind == RELATION).then_some((database, object))
            })
    }
}

impl BodyParts<'_> {
    /// The number of the row on its page, if the record deletes one.
    #[must_use]
    pub fn deleted_row(&self) -> Option<u16> {
        let header = self.header();
        if header.resource_manager != HEAP || header.info & HEAP_KIND_MASK != HEAP_DELETE {
            return None;
        }
        let mut main = Cursor::new(self.main_data());
        main.u32("transaction").ok()?;
        main.u16("row").ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn relations_are_told_from_other_statistics() {
        let item = |kind: u32, database: u32, object: u32, padding: usize| {
            let mut bytes: Vec<u8> = [kind, database, object]
                .into_iter()
                .flat_map(u32::to_le_bytes)
                .collect();
            bytes.resize(bytes.len() + padding, 0);
            bytes
        };
        for padding in [0, 4] {
            let mut bytes = item(2, 5, 16384, padding);
            bytes.extend(item(3, 5, 16385, padding));
            bytes.extend(item(2, 0, 16386, padding));
            let dropped = DroppedStatistics::new(&bytes, 12 + padding);
            assert_eq!(
                dropped.relations().collect::<Vec<_>>(),
                [(5, 16384), (0, 16386)]
            );
            let cut = DroppedStatistics::new(&bytes[..9], 12 + padding);
            assert_eq!(cut.relations().count(), 0);
        }
        assert_eq!(DroppedStatistics::NONE.relations().count(), 0);
    }
}
