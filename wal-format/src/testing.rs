//! Makes WAL as a server would, for tests, benches and fuzz targets: pages, records of any length, switches, aborted records.
//!
//! Written from PostgreSQL's structures and not with the reading code, so that the two can be held against each other.

use crate::{Lsn, Major, PAGE_BYTES, SegmentSize, TimelineId, Timestamp};
use alloc::vec;
use alloc::vec::Vec;

/// Writes WAL from a page's start on.
#[derive(Debug, Clone)]
pub struct WalBuilder {
    /// The major whose pages are written.
    pub major: Major,
    /// The size of segments.
    pub segment_size: SegmentSize,
    /// The cluster's identifier.
    pub system_identifier: u64,
    /// The timeline of pages to come.
    pub timeline: TimelineId,
    start: Lsn,
    previous: Lsn,
    bytes: Vec<u8>,
}

impl WalBuilder {
    /// A builder whose first byte is the byte at `start`, the start of a page; the record before it began at `previous`.
    #[must_use]
    pub const fn new(major: Major, segment_size: SegmentSize, start: Lsn, previous: Lsn) -> Self {
        Self {
            major,
            segment_size,
            system_identifier: 0x7412_3456_7890_1234,
            timeline: TimelineId::FIRST,
            start,
            previous,
            bytes: Vec::new(),
        }
    }

    /// Where the next byte goes.
    #[must_use]
    pub fn position(&self) -> Lsn {
        self.start.saturating_add(self.bytes.len() as u64)
    }

    /// The start of the last record.
    #[must_use]
    pub const fn previous(&self) -> Lsn {
        self.previous
    }

    /// All bytes so far.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// All bytes so far.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Writes a record and gives its start.
    pub fn record(&mut self, resource_manager: u8, info: u8, xid: u32, body: &[u8]) -> Lsn {
        let record = encode_record(resource_manager, info, xid, self.previous, body);
        let start = self.record_start();
        self.write(&record, record.len());
        self.previous = start;
        self.align();
        start
    }

    /// Writes a record whose main data is `data`.
    pub fn data_record(&mut self, resource_manager: u8, info: u8, xid: u32, data: &[u8]) -> Lsn {
        self.record(resource_manager, info, xid, &main_data(data))
    }

    /// Writes a commit that carries nothing but its time.
    pub fn commit(&mut self, xid: u32, time: Timestamp) -> Lsn {
        self.data_record(1, 0x00, xid, &time.0.to_le_bytes())
    }

    /// Writes an abort that carries nothing but its time.
    pub fn abort(&mut self, xid: u32, time: Timestamp) -> Lsn {
        self.data_record(1, 0x20, xid, &time.0.to_le_bytes())
    }

    /// Writes a restore point.
    pub fn restore_point(&mut self, time: Timestamp, name: &str) -> Lsn {
        let mut data = time.0.to_le_bytes().to_vec();
        data.extend(name.as_bytes().iter().take(63));
        data.resize(72, 0);
        self.data_record(0, 0x70, 0, &data)
    }

    /// Writes a segment switch and the zeros after it.
    pub fn switch(&mut self) -> Lsn {
        let start = self.record(0, 0x40, 0, &[]);
        let offset = self.segment_size.offset(self.position());
        if offset != 0 {
            let left = self.segment_size.bytes().saturating_sub(offset);
            self.zeros(left as usize);
        }
        start
    }

    /// Writes records of a resource manager without meaning until `length` bytes are there (the last record is cut).
    pub fn fill_to(&mut self, length: usize, body_length: usize) {
        while self.bytes.len() < length {
            self.record(10, 0, 7, &vec![0x5A; body_length]);
        }
        self.bytes.truncate(length);
    }

    /// Begins a record, breaks off at the next page boundary, and replaces its rest as a server does after a crash. Gives the
    /// start of the broken record, whose body is at least a page long so that it cannot end before.
    pub fn aborted_record(&mut self, body_length: usize, time: Timestamp) -> Lsn {
        let record = encode_record(
            10,
            0,
            7,
            self.previous,
            &vec![1; body_length.max(PAGE_BYTES as usize)],
        );
        let start = self.record_start();
        let left = PAGE_BYTES.saturating_sub(self.offset_in_page());
        let cut = record.len().min(left as usize);
        self.write(record.get(..cut).unwrap_or(&[]), record.len());
        let left = PAGE_BYTES.saturating_sub(self.offset_in_page()) % PAGE_BYTES;
        self.zeros(left as usize);
        self.page_header(0x0008, 0);
        let mut data = start.0.to_le_bytes().to_vec();
        data.extend(time.0.to_le_bytes());
        self.data_record(0, 0xD0, 0, &data);
        start
    }

    /// Writes bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Writes zeros.
    pub fn zeros(&mut self, count: usize) {
        self.bytes.resize(self.bytes.len().saturating_add(count), 0);
    }

    /// Where the next record starts, after a page header if one is due.
    fn record_start(&mut self) -> Lsn {
        if self.offset_in_page() == 0 {
            self.page_header(0, 0);
        }
        self.position()
    }

    fn offset_in_page(&self) -> u32 {
        self.position().offset_in(PAGE_BYTES)
    }

    /// Writes the bytes of a record of `total` bytes, with page headers where they are due.
    fn write(&mut self, record: &[u8], total: usize) {
        let mut rest = record;
        while !rest.is_empty() {
            if self.offset_in_page() == 0 {
                let written = record.len().saturating_sub(rest.len());
                let remaining = u32::try_from(total.saturating_sub(written)).unwrap_or(u32::MAX);
                self.page_header(0x0001, remaining);
            }
            let left = PAGE_BYTES.saturating_sub(self.offset_in_page()) as usize;
            let (part, after) = rest.split_at(left.min(rest.len()));
            self.bytes.extend_from_slice(part);
            rest = after;
        }
    }

    fn align(&mut self) {
        self.zeros(self.position().record_padding() as usize);
    }

    /// Writes the header of a page with those flags, long at a segment's start.
    fn page_header(&mut self, flags: u16, remaining: u32) {
        let address = self.position();
        let long = self.segment_size.offset(address) == 0;
        let flags = if long { flags | 0x0002 } else { flags };
        self.bytes.extend(self.major.page_magic().to_le_bytes());
        self.bytes.extend(flags.to_le_bytes());
        self.bytes.extend(self.timeline.get().to_le_bytes());
        self.bytes.extend(address.0.to_le_bytes());
        self.bytes.extend(remaining.to_le_bytes());
        self.zeros(4);
        if long {
            self.bytes.extend(self.system_identifier.to_le_bytes());
            self.bytes.extend(self.segment_size.bytes().to_le_bytes());
            self.bytes.extend(PAGE_BYTES.to_le_bytes());
        }
    }
}

/// The bytes of a record, with its CRC.
#[must_use]
pub fn encode_record(
    resource_manager: u8,
    info: u8,
    xid: u32,
    previous: Lsn,
    body: &[u8],
) -> Vec<u8> {
    let total = u32::try_from(body.len())
        .unwrap_or(u32::MAX)
        .saturating_add(24);
    let mut record = Vec::new();
    record.extend(total.to_le_bytes());
    record.extend(xid.to_le_bytes());
    record.extend(previous.0.to_le_bytes());
    record.extend([info, resource_manager, 0, 0]);
    let mut crc = crate::crc::Crc32c::new();
    crc.update(body);
    crc.update(&record);
    record.extend(crc.finish().to_le_bytes());
    record.extend_from_slice(body);
    record
}

/// A record body that is main data only.
#[must_use]
pub fn main_data(data: &[u8]) -> Vec<u8> {
    let mut body = match u8::try_from(data.len()) {
        Ok(length) => vec![255, length],
        Err(_) => {
            let length = u32::try_from(data.len()).unwrap_or(u32::MAX).to_le_bytes();
            [&[254][..], &length].concat()
        }
    };
    body.extend_from_slice(data);
    body
}

/// A block of a record: see [`encode_body`].
#[derive(Debug, Clone)]
pub struct TestBlock {
    /// Its number in the record.
    pub id: u8,
    /// The flags of the fork, of how the page is made, of the relation; those of image and data come from what there is.
    pub flags: u8,
    /// Tablespace, database and file, left out if the flags say that it is the relation of the block before.
    pub relation: [u32; 3],
    /// The number of the block.
    pub block: u32,
    /// The page image with its hole's offset, its flags, and the hole's length if that is stored.
    pub image: Option<(Vec<u8>, u16, u8, Option<u16>)>,
    /// Its data.
    pub data: Vec<u8>,
}

impl TestBlock {
    /// A block of the main fork with data and without an image.
    #[must_use]
    pub fn new(id: u8, relation: [u32; 3], block: u32, data: &[u8]) -> Self {
        Self {
            id,
            flags: 0,
            relation,
            block,
            image: None,
            data: data.to_vec(),
        }
    }
}

/// A record body of blocks and main data, after parts that are already encoded (origin, top-level transaction).
#[must_use]
pub fn encode_body(parts: &[u8], blocks: &[TestBlock], main: &[u8]) -> Vec<u8> {
    let length = |bytes: &[u8]| u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_le_bytes();
    let mut body = parts.to_vec();
    let mut data = Vec::new();
    for block in blocks {
        let has_image = if block.image.is_some() { 0x10 } else { 0 };
        let has_data = if block.data.is_empty() { 0 } else { 0x20 };
        body.extend([block.id, block.flags | has_image | has_data]);
        body.extend(length(&block.data));
        if let Some((image, hole_offset, flags, hole_length)) = &block.image {
            body.extend(length(image));
            body.extend(hole_offset.to_le_bytes());
            body.push(*flags);
            body.extend(hole_length.map(u16::to_le_bytes).into_iter().flatten());
            data.extend_from_slice(image);
        }
        if block.flags & 0x80 == 0 {
            body.extend(block.relation.into_iter().flat_map(u32::to_le_bytes));
        }
        body.extend(block.block.to_le_bytes());
        data.extend_from_slice(&block.data);
    }
    if !main.is_empty() {
        let main = main_data(main);
        let head = if main.first() == Some(&255) { 2 } else { 5 };
        let (head, main) = main.split_at(head);
        body.extend_from_slice(head);
        data.extend_from_slice(main);
    }
    [body, data].concat()
}

/// The used part of a `pg_control` of that major: a cluster of timeline 1 that was shut down, with segments of 16 MiB.
#[must_use]
pub fn control_file(major: Major, system_identifier: u64) -> Vec<u8> {
    let mut bytes = vec![0; major.control_crc_offset().saturating_add(4)];
    let mut put = |at: usize, value: &[u8]| {
        if let Some(place) = bytes
            .get_mut(at..)
            .and_then(|rest| rest.get_mut(..value.len()))
        {
            place.copy_from_slice(value);
        }
    };
    put(0, &system_identifier.to_le_bytes());
    put(8, &major.control_version().to_le_bytes());
    put(12, &major.catalog_version().to_le_bytes());
    put(16, &1_u32.to_le_bytes());
    put(24, &1_769_178_491_i64.to_le_bytes());
    put(32, &0x0300_0028_u64.to_le_bytes());
    // The checkpoint's copy.
    put(40, &0x0300_0028_u64.to_le_bytes());
    put(48, &1_u32.to_le_bytes());
    put(52, &1_u32.to_le_bytes());
    put(56, &[1]);
    put(60, &1_u32.to_le_bytes());
    put(64, &747_u64.to_le_bytes());
    put(104, &1_769_178_490_i64.to_le_bytes());
    // Settings and sizes.
    for (at, value) in [
        (172, 1_u32),
        (180, 100),
        (184, 8),
        (188, 10),
        (196, 64),
        (204, 8),
        (216, 8192),
    ] {
        put(at, &value.to_le_bytes());
    }
    put(208, &1_234_567.0_f64.to_le_bytes());
    for (at, value) in [
        (220, 131_072_u32),
        (224, 8192),
        (228, 16 << 20),
        (232, 64),
        (252, 1),
    ] {
        put(at, &value.to_le_bytes());
    }
    control_file_crc(&mut bytes, major);
    bytes
}

/// Writes the CRC that fits the other bytes of a `pg_control`.
pub fn control_file_crc(bytes: &mut [u8], major: Major) {
    let (covered, rest) = bytes.split_at_mut(major.control_crc_offset().min(bytes.len()));
    let mut crc = crate::crc::Crc32c::new();
    crc.update(covered);
    if let Some(place) = rest.first_chunk_mut() {
        *place = crc.finish().to_le_bytes();
    }
}
