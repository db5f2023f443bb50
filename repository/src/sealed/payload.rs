//! The payload of a sealed object as bytes on disk: age v1 STREAM chunks, or the bytes themselves where nothing is encrypted.
//!
//! Owns nonce, chunks and tags, both ways, in place. Does not own what is inside (`frame.rs`).
//! Source: C2SP `age.md`, "Payload": 16 bytes of nonce, then chunks of 64 KiB and a 16-byte tag each; the 12-byte nonce of a chunk
//! is its number (11 bytes, big-endian) and 1 for the last chunk, 0 for the others; the last chunk is empty only if the whole is.

use age_core::format::FileKey;
use age_core::primitives::hkdf;
use age_core::secrecy::ExposeSecret;
use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{ChaCha20Poly1305, Nonce, Tag};

/// Bytes of plain text in a chunk.
pub(crate) const CHUNK: usize = 64 * 1024;
/// Bytes of a tag.
pub(crate) const TAG: usize = 16;
/// Bytes of the nonce ahead of the chunks.
pub(crate) const NONCE: usize = 16;

/// Bytes that a payload of `plain` bytes takes at most, encrypted or not.
pub(crate) fn bound(plain: usize) -> usize {
    NONCE + plain + (plain / CHUNK + 1) * TAG
}

/// Builds a payload in one buffer: bytes are copied in once and encrypted where they lie.
pub(crate) struct PayloadWriter {
    out: Vec<u8>,
    cipher: Option<Stream>,
    /// Where the open chunk starts in `out`.
    chunk: usize,
    checksum: crc32fast::Hasher,
    checked: usize,
}

struct Stream {
    cipher: ChaCha20Poly1305,
    counter: u64,
}

impl Stream {
    fn new(file_key: &FileKey, nonce: &[u8; NONCE]) -> Self {
        let key = hkdf(nonce, b"payload", file_key.expose_secret());
        Self {
            cipher: ChaCha20Poly1305::new(&key.into()),
            counter: 0,
        }
    }

    fn next_nonce(&mut self, last: bool) -> Nonce {
        let mut nonce = [0; 12];
        nonce[3..11].copy_from_slice(&self.counter.to_be_bytes());
        nonce[11] = u8::from(last);
        self.counter += 1;
        nonce.into()
    }
}

impl PayloadWriter {
    /// Starts an encrypted payload in `out`, which is emptied and keeps its allocation.
    pub(crate) fn encrypted(mut out: Vec<u8>, file_key: &FileKey, nonce: [u8; NONCE]) -> Self {
        out.clear();
        out.extend_from_slice(&nonce);
        let cipher = Some(Stream::new(file_key, &nonce));
        Self {
            out,
            cipher,
            chunk: NONCE,
            checksum: crc32fast::Hasher::new(),
            checked: 0,
        }
    }

    /// Starts an unencrypted payload in `out`, which is emptied and keeps its allocation.
    pub(crate) fn plain(mut out: Vec<u8>) -> Self {
        out.clear();
        Self {
            out,
            cipher: None,
            chunk: 0,
            checksum: crc32fast::Hasher::new(),
            checked: 0,
        }
    }

    /// Appends bytes.
    pub(crate) fn write(&mut self, mut bytes: &[u8]) {
        if self.cipher.is_none() {
            self.out.extend_from_slice(bytes);
            return;
        }
        while !bytes.is_empty() {
            // A full chunk is closed only when more follows: the last chunk must be marked, and must not be empty.
            if self.out.len() - self.chunk == CHUNK {
                self.close_chunk(false);
            }
            let room = CHUNK - (self.out.len() - self.chunk);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.out.extend_from_slice(now);
            bytes = later;
        }
    }

    /// Ends the payload. Returns its bytes and their CRC-32.
    pub(crate) fn finish(mut self) -> (Vec<u8>, u32) {
        self.close_chunk(true);
        self.checksum.update(&self.out[self.checked..]);
        (self.out, self.checksum.finalize())
    }

    fn close_chunk(&mut self, last: bool) {
        if let Some(stream) = &mut self.cipher {
            let nonce = stream.next_nonce(last);
            let tag = stream
                .cipher
                .encrypt_inout_detached(&nonce, &[], (&mut self.out[self.chunk..]).into())
                .expect("a chunk is far below ChaCha20's limit");
            self.out.extend_from_slice(&tag);
            self.chunk = self.out.len();
            // While the chunk is in the cache.
            self.checksum.update(&self.out[self.checked..]);
            self.checked = self.out.len();
        }
    }
}

/// Decrypts a payload where it lies and closes the gaps that nonce and tags leave.
///
/// Returns the length of the plain text, which then stands at the start of `payload`; `None` if a tag does not fit, a chunk is
/// missing or the last one is not marked.
pub(crate) fn decrypt_in_place(file_key: &FileKey, payload: &mut [u8]) -> Option<usize> {
    let nonce: [u8; NONCE] = payload.get(..NONCE)?.try_into().ok()?;
    let mut stream = Stream::new(file_key, &nonce);
    let (mut read, mut written) = (NONCE, 0);
    loop {
        let length = (payload.len() - read).min(CHUNK + TAG);
        let plain = length.checked_sub(TAG)?;
        let last = read + length == payload.len();
        if plain == 0 && !(last && read == NONCE) {
            return None;
        }
        let (text, tag) = payload[read..read + length].split_at_mut(plain);
        let tag = Tag::try_from(&*tag).ok()?;
        let nonce = stream.next_nonce(last);
        stream
            .cipher
            .decrypt_inout_detached(&nonce, &[], text.into(), &tag)
            .ok()?;
        payload.copy_within(read..read + plain, written);
        (read, written) = (read + length, written + plain);
        if last {
            return Some(written);
        }
    }
}
