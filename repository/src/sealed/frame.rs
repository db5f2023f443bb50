//! The compressed frame inside a payload: one standard LZ4 frame, or one zstd frame.
//!
//! Owns compression and decompression of whole frames, bounded by the size the caller expects. We write LZ4 frames of independent
//! 256 KiB blocks with the content size and without checksums (tags and descriptor cover them), around `lz4_flex`'s raw blocks,
//! which is faster than its frame API; frames of other writers (`lz4` program: checksums, dependent blocks) go through that API.
//! Source: LZ4 frame format 1.6.2; RFC 8878 for zstd.

use std::io::Read;

use lz4_flex::block::{
    CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size,
};
use twox_hash::XxHash32;

/// Plain bytes in an LZ4 block.
const BLOCK: usize = 256 * 1024;
const LZ4_MAGIC: [u8; 4] = 0x184D_2204_u32.to_le_bytes();
const ZSTD_MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();
/// Version 01, independent blocks, content size; no block or content checksum, no dictionary.
const OUR_FLAGS: u8 = 0b0110_1000;
/// Blocks of at most 256 KiB.
const OUR_BLOCK_SIZE: u8 = 5 << 4;
const HEADER: usize = 4 + 2 + 8 + 1;
/// Set in a block's length when its bytes are stored as they are.
const STORED: u32 = 1 << 31;
/// The level at which zstd is worth its time on WAL.
const ZSTD_LEVEL: i32 = 1;

/// How plain bytes are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// LZ4: fast, about a third of the size on WAL.
    #[default]
    Lz4,
    /// zstd, level 1: half the speed, about a fifth of the size.
    Zstd,
}

/// Most bytes a frame of `plain` bytes can take.
pub(crate) fn bound(plain: usize) -> usize {
    // zstd's own bound is plain + plain/256 + a small constant.
    HEADER + 4 + plain + plain / 256 + (plain / BLOCK + 1) * 4 + 1024
}

/// Compresses frames; keeps its tables and buffers from one to the next.
pub(crate) struct FrameEncoder {
    table: CompressTable,
    block: Vec<u8>,
    zstd: Option<zstd::bulk::Compressor<'static>>,
}

impl FrameEncoder {
    pub(crate) fn new() -> Self {
        Self {
            table: CompressTable::large(),
            block: Vec::new(),
            zstd: None,
        }
    }

    /// Compresses `plain` into one frame, handed to `sink` piece by piece. Returns the CRC-32 of `plain`.
    pub(crate) fn encode(
        &mut self,
        compression: Compression,
        plain: &[u8],
        sink: &mut dyn FnMut(&[u8]),
    ) -> std::io::Result<u32> {
        match compression {
            Compression::Lz4 => Ok(self.encode_lz4(plain, sink)),
            Compression::Zstd => {
                if self.zstd.is_none() {
                    self.zstd = Some(zstd::bulk::Compressor::new(ZSTD_LEVEL)?);
                }
                let compressor = self.zstd.as_mut().expect("made above");
                sink(&compressor.compress(plain)?);
                Ok(crc32fast::hash(plain))
            }
        }
    }

    fn encode_lz4(&mut self, plain: &[u8], sink: &mut dyn FnMut(&[u8])) -> u32 {
        self.block.resize(4 + get_maximum_output_size(BLOCK), 0);
        let mut checksum = crc32fast::Hasher::new();
        sink(&lz4_header(plain.len() as u64));
        for block in plain.chunks(BLOCK) {
            checksum.update(block);
            let packed = compress_into_with_table(block, &mut self.block[4..], &mut self.table)
                .expect("the buffer holds the largest output of a block");
            if packed < block.len() {
                self.block[..4].copy_from_slice(&block_length(packed).to_le_bytes());
                sink(&self.block[..4 + packed]);
            } else {
                sink(&(block_length(block.len()) | STORED).to_le_bytes());
                sink(block);
            }
        }
        sink(&0_u32.to_le_bytes());
        checksum.finalize()
    }
}

fn block_length(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("a block has at most 256 KiB")
}

fn lz4_header(plain: u64) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..4].copy_from_slice(&LZ4_MAGIC);
    header[4] = OUR_FLAGS;
    header[5] = OUR_BLOCK_SIZE;
    header[6..14].copy_from_slice(&plain.to_le_bytes());
    header[14] = (XxHash32::oneshot(0, &header[4..14]) >> 8) as u8;
    header
}

/// Decompresses the one frame in `frame` into `out`, which is emptied and keeps its allocation.
///
/// # Errors
/// What does not hold, as text: not a frame, damaged, longer than `limit` bytes of plain text, bytes behind the frame.
pub(crate) fn decode(frame: &[u8], limit: usize, out: &mut Vec<u8>) -> Result<(), String> {
    if frame.starts_with(&ZSTD_MAGIC) {
        let reader = zstd::stream::read::Decoder::with_buffer(frame)
            .map_err(|e| e.to_string())?
            .single_frame();
        return drain(reader, limit, out, |decoder| decoder.finish().len());
    }
    if !frame.starts_with(&LZ4_MAGIC) {
        return Err("the plain bytes are neither an LZ4 nor a zstd frame".to_owned());
    }
    if frame.get(4) == Some(&OUR_FLAGS) && frame.get(5) == Some(&OUR_BLOCK_SIZE) {
        return decode_ours(frame, limit, out);
    }
    let decoder = lz4_flex::frame::FrameDecoder::new(frame);
    drain(decoder, limit, out, |decoder| decoder.into_inner().len())
}

fn decode_ours(frame: &[u8], limit: usize, out: &mut Vec<u8>) -> Result<(), String> {
    let cut = || "the LZ4 frame is cut off".to_owned();
    let header: &[u8; HEADER] = frame.first_chunk().ok_or_else(cut)?;
    let size = u64::from_le_bytes(*header[6..].first_chunk().ok_or_else(cut)?);
    if lz4_header(size) != *header {
        return Err("the header checksum of the LZ4 frame does not fit".to_owned());
    }
    let size = usize::try_from(size).ok().filter(|size| *size <= limit);
    let size = size.ok_or_else(|| format!("the LZ4 frame holds more than {limit} bytes"))?;
    out.resize(size, 0);
    let (mut rest, mut at) = (&frame[HEADER..], 0);
    loop {
        let (length, behind) = rest.split_first_chunk::<4>().ok_or_else(cut)?;
        let length = u32::from_le_bytes(*length);
        if length == 0 {
            return match (at == size, behind.is_empty()) {
                (true, true) => Ok(()),
                (false, _) => Err("the LZ4 frame ends early".to_owned()),
                (_, false) => Err("bytes follow the LZ4 frame".to_owned()),
            };
        }
        let stored = (length & !STORED) as usize;
        let block = behind.get(..stored).ok_or_else(cut)?;
        rest = &behind[stored..];
        let room = (size - at).min(BLOCK);
        let target = &mut out[at..at + room];
        if length & STORED != 0 {
            let target = target
                .get_mut(..stored)
                .ok_or("a block of the LZ4 frame is too long")?;
            target.copy_from_slice(block);
            at += stored;
        } else {
            at += decompress_into(block, target).map_err(|error| error.to_string())?;
        }
    }
}

fn drain<R: Read>(
    mut reader: R,
    limit: usize,
    out: &mut Vec<u8>,
    left: impl FnOnce(R) -> usize,
) -> Result<(), String> {
    out.clear();
    let bound = limit as u64 + 1;
    (&mut reader)
        .take(bound)
        .read_to_end(out)
        .map_err(|error| error.to_string())?;
    if out.len() > limit {
        return Err(format!("the frame holds more than {limit} bytes"));
    }
    match left(reader) {
        0 => Ok(()),
        more => Err(format!("{more} bytes follow the frame")),
    }
}
