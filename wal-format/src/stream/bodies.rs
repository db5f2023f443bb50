//! Keeps what is needed of the bodies of records that do not lie whole in one input: the head and the main data. Page images and the data of
//! blocks pass by.

use crate::body::{MAX_HEAD_BYTES, kept_main_bytes, main_data_offset};
use crate::cursor::{index, length, split};
use crate::{Major, RecordBody, RecordHeader};
use alloc::vec::Vec;

/// A buffer that grew beyond this for one record is given back for the next one.
const USUAL_BYTES: usize = 64 << 10;

/// Collects one body; the buffer is used again for the next.
#[derive(Debug, Clone, Default)]
pub(super) struct BodyCollector {
    /// The body of which record is being collected.
    record: Option<(RecordHeader, Major)>,
    /// The head (as many bytes as a head may have), then the main data as far as it is not part of those.
    kept: Vec<u8>,
    /// Body bytes that have passed.
    position: u32,
    /// Where the main data begins, once the head was read; at the body's end if it cannot be read.
    main_offset: Option<u32>,
}

impl BodyCollector {
    /// Begins with a record; if it is not wanted, nothing is collected until the next.
    pub(super) fn begin(&mut self, record: Option<(RecordHeader, Major)>) {
        self.record = record;
        self.kept.clear();
        self.kept.shrink_to(USUAL_BYTES);
        self.position = 0;
        self.main_offset = None;
    }

    /// Takes the next bytes of the body.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        let Some((header, major)) = self.record else {
            return;
        };
        let head_bytes = index(header.body_length()).min(MAX_HEAD_BYTES);
        let (head, rest) = split(bytes, head_bytes.saturating_sub(index(self.position)));
        self.kept.extend_from_slice(head);
        self.position = self.position.saturating_add(length(head.len()));
        if self.kept.len() < head_bytes {
            return;
        }
        let body_length = header.body_length();
        let main_offset = *self.main_offset.get_or_insert_with(|| {
            main_data_offset(&self.kept, body_length, major).unwrap_or(body_length)
        });
        let (passed, main) = split(rest, index(main_offset.saturating_sub(self.position)));
        let bound = head_bytes.saturating_add(kept_main_bytes(header.resource_manager));
        let (main, cut) = split(main, bound.saturating_sub(self.kept.len()));
        self.kept.extend_from_slice(main);
        for piece in [passed, main, cut] {
            self.position = self.position.saturating_add(length(piece.len()));
        }
    }

    /// The body, after its last byte.
    pub(super) fn body(&self) -> Option<RecordBody<'_>> {
        let (header, major) = self.record.as_ref()?;
        let head_bytes = index(header.body_length()).min(MAX_HEAD_BYTES);
        let main_offset = index(self.main_offset.unwrap_or(0)).min(head_bytes);
        let (head, _) = split(&self.kept, head_bytes);
        let (_, main) = split(&self.kept, main_offset);
        Some(RecordBody::kept(header, *major, head, main))
    }
}
