//! Data pages of relations: as much of their header as tells whether a page is whole, and their checksum.
//!
//! Source: `src/include/storage/bufpage.h` (`PageHeaderData`) and `checksum_impl.h` (`pg_checksum_page`), majors 14 to 18. Little-endian.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 + 4 | LSN of the last change: high half, low half |
//! | 8 | 2 | checksum; 0 if it was written without |
//! | 14 | 2 | end of free space; 0 on a page that was never used |

use crate::Lsn;

/// Size of a data page in bytes, where the server was not compiled for another.
#[doc(alias = "BLCKSZ")]
pub const DATA_PAGE_BYTES: usize = 8192;

const SUMS: usize = 32;
const PRIME: u32 = 16_777_619;
/// Where the sums begin (`checksumBaseOffsets`).
const BASES: [u32; SUMS] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

/// One page of a relation.
#[derive(Debug, Clone, Copy)]
pub struct DataPage<'a> {
    bytes: &'a [u8; DATA_PAGE_BYTES],
}

impl<'a> DataPage<'a> {
    /// A page in its place.
    #[must_use]
    pub const fn new(bytes: &'a [u8; DATA_PAGE_BYTES]) -> Self {
        Self { bytes }
    }

    /// The end of the record that changed it last.
    #[doc(alias = "pd_lsn")]
    #[must_use]
    pub const fn lsn(&self) -> Lsn {
        let [a, b, c, d, e, f, g, h, ..] = *self.bytes;
        let (high, low) = (
            u32::from_le_bytes([a, b, c, d]),
            u32::from_le_bytes([e, f, g, h]),
        );
        Lsn::new((high as u64) << 32 | low as u64)
    }

    /// The checksum it carries; 0 if none was written.
    #[doc(alias = "pd_checksum")]
    #[must_use]
    pub const fn stored_checksum(&self) -> u16 {
        let [_, _, _, _, _, _, _, _, low, high, ..] = *self.bytes;
        u16::from_le_bytes([low, high])
    }

    /// Whether it was never used: such a page carries no checksum.
    #[doc(alias = "PageIsNew")]
    #[must_use]
    pub const fn is_new(&self) -> bool {
        let [_, _, _, _, _, _, _, _, _, _, _, _, _, _, low, high, ..] = *self.bytes;
        u16::from_le_bytes([low, high]) == 0
    }

    /// The checksum of its bytes as block `block` of its relation's fork; never 0.
    #[doc(alias = "pg_checksum_page")]
    #[must_use]
    pub fn checksum(&self, block: u32) -> u16 {
        let mut sums = BASES;
        let (words, _) = self.bytes.as_chunks::<4>();
        let (rows, _) = words.as_chunks::<SUMS>();
        for (number, row) in rows.iter().enumerate() {
            for (column, (sum, word)) in sums.iter_mut().zip(row).enumerate() {
                let value = match (number, column) {
                    // The checksum itself counts as zero.
                    (0, 2) => u32::from_le_bytes(*word) & 0xFFFF_0000,
                    _ => u32::from_le_bytes(*word),
                };
                *sum = mix(*sum, value);
            }
        }
        for sum in &mut sums {
            *sum = mix(mix(*sum, 0), 0);
        }
        let folded = sums.iter().fold(0, |all, sum| all ^ sum) ^ block;
        let reduced = folded.checked_rem(0xFFFF).unwrap_or(0);
        u16::try_from(reduced).unwrap_or(0).saturating_add(1)
    }
}

const fn mix(sum: u32, value: u32) -> u32 {
    let mixed = sum ^ value;
    mixed.wrapping_mul(PRIME) ^ (mixed >> 17)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_depends_on_every_byte_but_its_own_and_on_the_block() {
        let mut bytes = [0_u8; DATA_PAGE_BYTES];
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = (index * 31 % 251) as u8;
        }
        let sum = DataPage::new(&bytes).checksum(7);
        assert_ne!(sum, DataPage::new(&bytes).checksum(8));
        for offset in [0, 7, 8, 9, 10, 14, 127, 128, 5000, DATA_PAGE_BYTES - 1] {
            let mut changed = bytes;
            changed[offset] ^= 1;
            let same = DataPage::new(&changed).checksum(7) == sum;
            assert_eq!(same, [8, 9].contains(&offset), "{offset}");
        }
    }

    #[test]
    fn reads_the_header() {
        let mut bytes = [0_u8; DATA_PAGE_BYTES];
        assert!(DataPage::new(&bytes).is_new());
        bytes[..10].copy_from_slice(&[1, 0, 0, 0, 2, 0, 0, 0x30, 0x34, 0x12]);
        bytes[15] = 0x20;
        let page = DataPage::new(&bytes);
        assert_eq!(page.lsn(), Lsn::new(0x1_3000_0002));
        assert_eq!((page.stored_checksum(), page.is_new()), (0x1234, false));
    }
}
