//! Payload buffers that come back: a fresh 16 MiB allocation costs more than compressing into it.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// A bounded set of buffers for payloads. Cheap to clone; all clones share the buffers.
#[derive(Clone, Debug)]
pub struct BufferPool {
    idle: Arc<Mutex<Vec<Vec<u8>>>>,
    keep: usize,
}

impl BufferPool {
    /// A pool that keeps at most `keep` idle buffers; more are freed as they come back.
    #[must_use]
    pub fn new(keep: usize) -> Self {
        Self {
            idle: Arc::default(),
            keep,
        }
    }

    /// A buffer with room for `capacity` bytes.
    pub(crate) fn take(&self, capacity: usize) -> Vec<u8> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting = idle.iter().position(|buffer| buffer.capacity() >= capacity);
        match fitting {
            Some(index) => idle.swap_remove(index),
            None => Vec::with_capacity(capacity),
        }
    }

    /// Hands a filled buffer out; it comes back when the last clone of the `Bytes` is dropped.
    pub(crate) fn lend(&self, buffer: Vec<u8>) -> Bytes {
        // Small objects must not hold large buffers while they wait for the store.
        if buffer.len() < buffer.capacity() / 8 {
            let bytes = Bytes::copy_from_slice(&buffer);
            self.give_back(buffer);
            return bytes;
        }
        Bytes::from_owner(Lent {
            buffer,
            pool: self.clone(),
        })
    }

    fn give_back(&self, buffer: Vec<u8>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < self.keep {
            idle.push(buffer);
        }
    }
}

struct Lent {
    buffer: Vec<u8>,
    pool: BufferPool,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.pool.give_back(std::mem::take(&mut self.buffer));
    }
}
