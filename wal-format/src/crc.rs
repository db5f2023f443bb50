//! CRC-32C (Castagnoli) as PostgreSQL uses it, on `crc-fast`. The CRC-32 of stored objects is another polynomial and not here.
//!
//! Most WAL records are around 100 bytes long. Two calls into the library for each (body, then header) cost more than the sum itself, so whole short
//! records are summed here, with the processor's own instruction where it has one.

use crc_fast::{CrcAlgorithm, Digest};

/// The bytes of a record's header that its CRC covers, after the body.
pub(crate) const HEADER_BYTES: usize = 20;

/// Longer bodies are the library's: it sums several stretches at once.
const SHORT_BYTES: usize = 384;

/// A running CRC-32C.
#[derive(Debug, Clone)]
pub(crate) struct Crc32c {
    digest: Digest,
    short: Option<short::Sum>,
}

impl Crc32c {
    pub(crate) fn new() -> Self {
        Self {
            digest: Digest::new(CrcAlgorithm::Crc32Iscsi),
            short: short::Sum::new(),
        }
    }

    /// The CRC of a whole record.
    #[inline]
    pub(crate) fn record(&mut self, body: &[u8], header: &[u8; HEADER_BYTES]) -> u32 {
        match self.short {
            Some(short) if body.len() < SHORT_BYTES => short.record(body, header),
            _ => {
                self.reset();
                self.update(body);
                self.update(header);
                self.finish()
            }
        }
    }

    /// Begins anew; cheaper than [`Crc32c::new`].
    #[inline]
    pub(crate) fn reset(&mut self) {
        self.digest.reset();
    }

    #[inline]
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.digest.update(bytes);
    }

    #[inline]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "a 32-bit CRC in the low half of the library's u64"
    )]
    pub(crate) fn finish(&self) -> u32 {
        self.digest.finalize() as u32
    }
}

#[cfg(target_arch = "x86_64")]
mod short {
    use super::HEADER_BYTES;
    use crate::cursor::length;
    use core::arch::x86_64::{__cpuid, _mm_crc32_u8, _mm_crc32_u32, _mm_crc32_u64};

    /// Bit 20 of what the processor says of itself, in ECX under leaf 1: SSE 4.2.
    const HAS_SSE42: u32 = 1 << 20;

    /// Exists only where the processor has the instruction.
    #[derive(Debug, Clone, Copy)]
    pub(super) struct Sum(());

    impl Sum {
        pub(super) fn new() -> Option<Self> {
            (__cpuid(1).ecx & HAS_SSE42 != 0).then_some(Self(()))
        }

        #[inline]
        pub(super) fn record(self, body: &[u8], header: &[u8; HEADER_BYTES]) -> u32 {
            #[expect(
                unsafe_code,
                reason = "calls a function for SSE 4.2, which `self` proves that there is"
            )]
            // SAFETY: `Sum` is only made where the processor has SSE 4.2; the function itself is safe.
            unsafe {
                record(body, header)
            }
        }
    }

    #[target_feature(enable = "sse4.2")]
    fn record(body: &[u8], header: &[u8; HEADER_BYTES]) -> u32 {
        let (words, rest) = body.as_chunks::<8>();
        let crc = words.iter().fold(u64::from(u32::MAX), |crc, word| {
            _mm_crc32_u64(crc, u64::from_le_bytes(*word))
        });
        let crc = match body.last_chunk() {
            Some(last) => append_end(crc, *last, rest.len()),
            None => rest
                .iter()
                .fold(crc, |crc, byte| u64::from(_mm_crc32_u8(low(crc), *byte))),
        };
        let (words, rest) = header.as_chunks::<8>();
        let crc = words.iter().fold(crc, |crc, word| {
            _mm_crc32_u64(crc, u64::from_le_bytes(*word))
        });
        let (words, _) = rest.as_chunks::<4>();
        !words.iter().fold(low(crc), |crc, word| {
            _mm_crc32_u32(crc, u32::from_le_bytes(*word))
        })
    }

    /// Appends the last `count` (0 to 7) of those eight bytes. Lengths of records cannot be foreseen, so nothing here depends on a branch: the sum
    /// of zeros is zero, so bytes that do not count are made zeros in front of those that do, and the part of the CRC that has already
    /// passed (of less than four bytes) is added at the end.
    #[inline]
    #[target_feature(enable = "sse4.2")]
    fn append_end(crc: u64, last: [u8; 8], count: usize) -> u64 {
        let bits = length(count & 7).wrapping_mul(8);
        // By 64 bits less those; in two steps, for 64 is too far for one.
        let up = |value: u64| value << 8 << (56_u32.wrapping_sub(bits));
        let down = |value: u64| value >> 8 >> (56_u32.wrapping_sub(bits));
        let bytes = up(down(u64::from_le_bytes(last)));
        _mm_crc32_u64(0, bytes ^ up(crc)) ^ (crc >> bits)
    }

    #[inline]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the instruction leaves a 32-bit CRC in 64 bits"
    )]
    const fn low(crc: u64) -> u32 {
        crc as u32
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod short {
    use super::HEADER_BYTES;

    /// Nothing is faster than the library here.
    #[derive(Debug, Clone, Copy)]
    pub(super) enum Sum {}

    impl Sum {
        pub(super) const fn new() -> Option<Self> {
            None
        }

        pub(super) const fn record(self, _: &[u8], _: &[u8; HEADER_BYTES]) -> u32 {
            match self {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Crc32c;
    use proptest::prelude::*;
    use std::vec::Vec;

    proptest! {
        #[test]
        fn agrees_with_the_reference_in_any_pieces(bytes in proptest::collection::vec(any::<u8>(), 0..2000), cut: prop::sample::Index) {
            let (head, tail) = bytes.split_at(cut.index(bytes.len() + 1));
            let mut crc = Crc32c::new();
            for _ in 0..2 {
                crc.reset();
                crc.update(head);
                crc.update(tail);
                prop_assert_eq!(crc.finish(), crc32c::crc32c(&bytes));
            }
        }
    }

    #[test]
    fn a_record_of_any_length_and_place_agrees_with_the_reference() {
        let bytes: Vec<u8> = (0..2000_u32).map(|i| ((i * i) >> 3) as u8).collect();
        let mut crc = Crc32c::new();
        for length in 0..1000 {
            // Bodies begin where input was cut: at any address.
            let body = &bytes[length % 17..][..length];
            let header = bytes[length % 23 + 1000..].first_chunk().unwrap();
            let expected = crc32c::crc32c(&[body, header].concat());
            assert_eq!(crc.record(body, header), expected, "{length}");
        }
    }

    #[test]
    fn agrees_with_the_reference_on_every_length_of_a_page() {
        let bytes: Vec<u8> = (0..8192_u32).map(|i| ((i * 31) >> 3) as u8).collect();
        for length in 0..bytes.len() {
            let mut crc = Crc32c::new();
            crc.update(&bytes[..length]);
            assert_eq!(crc.finish(), crc32c::crc32c(&bytes[..length]), "{length}");
        }
    }
}
