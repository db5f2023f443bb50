//! What differs between major versions of PostgreSQL, and nothing else. No other file compares majors.
//!
//! To add a major: a variant, a row in each `match` (the compiler finds them), a server for the oracle tests. Sources: `xlog_internal.h`,
//! `xact.h`, `pg_control.h`, `rmgrlist.h`, `catversion.h` of each major.

use core::fmt;

/// A major version of PostgreSQL whose WAL and `pg_control` can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Major {
    /// PostgreSQL 14.
    V14,
    /// PostgreSQL 15.
    V15,
    /// PostgreSQL 16.
    V16,
    /// PostgreSQL 17.
    V17,
    /// PostgreSQL 18.
    V18,
}

/// The flag bits of a WAL page header as a major defines them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PageFlags {
    /// All bits that may be set.
    pub(crate) all: u16,
    /// The page replaces the continuation of an aborted record.
    pub(crate) overwrite_contrecord: u16,
}

/// The flag bits of a page image as a major defines them; 0 for what it does not have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ImageFlags {
    pub(crate) has_hole: u8,
    pub(crate) apply: u8,
    pub(crate) pglz: u8,
    pub(crate) lz4: u8,
    pub(crate) zstd: u8,
}

impl Major {
    /// All of them, oldest first.
    pub const ALL: [Self; 5] = [Self::V14, Self::V15, Self::V16, Self::V17, Self::V18];

    /// The number, as in `server_version_num / 10000`.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::V14 => 14,
            Self::V15 => 15,
            Self::V16 => 16,
            Self::V17 => 17,
            Self::V18 => 18,
        }
    }

    /// The major of that number, if it is known here.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|major| major.number() == number)
    }

    /// The first two bytes of every WAL page.
    #[doc(alias = "XLOG_PAGE_MAGIC")]
    #[must_use]
    pub const fn page_magic(self) -> u16 {
        match self {
            Self::V14 => 0xD10D,
            Self::V15 => 0xD110,
            Self::V16 => 0xD113,
            Self::V17 => 0xD116,
            Self::V18 => 0xD118,
        }
    }

    /// The major that writes pages with that magic number, if it is known here.
    #[must_use]
    pub const fn from_page_magic(magic: u16) -> Option<Self> {
        match magic {
            0xD10D => Some(Self::V14),
            0xD110 => Some(Self::V15),
            0xD113 => Some(Self::V16),
            0xD116 => Some(Self::V17),
            0xD118 => Some(Self::V18),
            _ => None,
        }
    }

    /// The version of `pg_control`'s layout.
    #[doc(alias = "PG_CONTROL_VERSION")]
    #[must_use]
    pub const fn control_version(self) -> u32 {
        match self {
            Self::V14 | Self::V15 | Self::V16 => 1300,
            Self::V17 => 1700,
            Self::V18 => 1800,
        }
    }

    /// The version of the system catalogs, which tells majors of one `pg_control` layout apart.
    #[doc(alias = "CATALOG_VERSION_NO")]
    #[must_use]
    pub const fn catalog_version(self) -> u32 {
        match self {
            Self::V14 => 202_107_181,
            Self::V15 => 202_209_061,
            Self::V16 => 202_307_071,
            Self::V17 => 202_406_281,
            Self::V18 => 202_506_291,
        }
    }

    /// The released major with that `pg_control` layout and those catalogs, if it is known here.
    #[must_use]
    pub fn from_catalog_version(control: u32, catalog: u32) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|major| major.control_version() == control && major.catalog_version() == catalog)
    }

    pub(crate) const fn page_flags(self) -> PageFlags {
        match self {
            Self::V14 | Self::V15 | Self::V16 | Self::V17 | Self::V18 => PageFlags {
                all: 0x000F,
                overwrite_contrecord: 0x0008,
            },
        }
    }

    /// The flags of page images.
    #[doc(alias = "BKPIMAGE_APPLY")]
    pub(crate) const fn image_flags(self) -> ImageFlags {
        match self {
            Self::V14 => ImageFlags {
                has_hole: 0x01,
                pglz: 0x02,
                apply: 0x04,
                lz4: 0,
                zstd: 0,
            },
            Self::V15 | Self::V16 | Self::V17 | Self::V18 => ImageFlags {
                has_hole: 0x01,
                apply: 0x02,
                pglz: 0x04,
                lz4: 0x08,
                zstd: 0x10,
            },
        }
    }

    /// Whether databases can be created block by block, which has a record kind of its own before that of dropping one.
    #[doc(alias = "XLOG_DBASE_CREATE_WAL_LOG")]
    pub(crate) const fn has_database_wal_log(self) -> bool {
        match self {
            Self::V14 => false,
            Self::V15 | Self::V16 | Self::V17 | Self::V18 => true,
        }
    }

    /// Whether one kind of record prunes, vacuums and freezes heap pages, named by who did it.
    #[doc(alias = "XLOG_HEAP2_PRUNE_ON_ACCESS")]
    pub(crate) const fn has_one_prune_record(self) -> bool {
        match self {
            Self::V14 | Self::V15 | Self::V16 => false,
            Self::V17 | Self::V18 => true,
        }
    }

    /// Whether in-place updates carry invalidation messages.
    #[doc(alias = "xl_heap_inplace")]
    pub(crate) const fn inplace_has_invalidations(self) -> bool {
        match self {
            Self::V14 | Self::V15 | Self::V16 | Self::V17 => false,
            Self::V18 => true,
        }
    }

    /// Whether an online checkpoint marks its redo point with a record.
    #[doc(alias = "XLOG_CHECKPOINT_REDO")]
    pub(crate) const fn has_checkpoint_redo(self) -> bool {
        match self {
            Self::V14 | Self::V15 | Self::V16 => false,
            Self::V17 | Self::V18 => true,
        }
    }

    /// The largest record that the server can read back, in bytes.
    pub(crate) const fn max_record_length(self) -> u32 {
        match self {
            // MaxAllocSize: no limit of its own yet, but the reader must allocate it.
            Self::V14 | Self::V15 => 0x3FFF_FFFF,
            // XLogRecordMaxSize
            Self::V16 | Self::V17 | Self::V18 => 1020 << 20,
        }
    }

    /// Whether a record may carry that resource manager.
    pub(crate) const fn has_resource_manager(self, id: u8) -> bool {
        // The built-in ones are 0 to 21 in all majors so far; extensions bring their own, from 128, since 15.
        match self {
            Self::V14 => id <= 21,
            Self::V15 | Self::V16 | Self::V17 | Self::V18 => id <= 21 || id >= 128,
        }
    }

    /// The size of the columns of `pg_class` from `relpages` up to `reltoastrelid`, in bytes.
    pub(crate) const fn class_statistics_bytes(self) -> usize {
        match self {
            Self::V14 | Self::V15 | Self::V16 | Self::V17 => 12,
            // relallfrozen
            Self::V18 => 16,
        }
    }

    /// The size of one dropped-statistics entry of a commit or abort record in bytes; `None` before they existed.
    #[doc(alias = "xl_xact_stats_item")]
    pub(crate) const fn dropped_stats_item_bytes(self) -> Option<u32> {
        match self {
            Self::V14 => None,
            Self::V15 | Self::V16 | Self::V17 => Some(12),
            Self::V18 => Some(16),
        }
    }

    /// Whether the header of a prepare record counts dropped statistics (two 32-bit numbers).
    #[doc(alias = "xl_xact_prepare")]
    pub(crate) const fn prepare_counts_dropped_stats(self) -> bool {
        match self {
            Self::V14 => false,
            Self::V15 | Self::V16 | Self::V17 | Self::V18 => true,
        }
    }

    /// Whether checkpoints and end-of-recovery records say the `wal_level`.
    pub(crate) const fn checkpoint_has_wal_level(self) -> bool {
        match self {
            Self::V14 | Self::V15 | Self::V16 => false,
            Self::V17 | Self::V18 => true,
        }
    }

    /// Where the CRC of `pg_control` stands, in bytes: 18 has the default signedness of `char` before the nonce.
    pub(crate) const fn control_crc_offset(self) -> usize {
        match self {
            Self::V14 | Self::V15 | Self::V16 | Self::V17 => 288,
            Self::V18 => 292,
        }
    }
}

impl fmt::Display for Major {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::Major;

    #[test]
    fn numbers_and_magics_lead_back_to_their_major() {
        for major in Major::ALL {
            assert_eq!(Major::from_number(major.number()), Some(major));
            assert_eq!(Major::from_page_magic(major.page_magic()), Some(major));
            assert_eq!(
                Major::from_catalog_version(major.control_version(), major.catalog_version()),
                Some(major)
            );
        }
        assert_eq!(Major::from_number(13), None);
        assert_eq!(Major::from_page_magic(0), None);
        assert_eq!(
            Major::from_catalog_version(1300, 202_007_201),
            None,
            "13 shares the layout of 14"
        );
    }
}
