//! How this program's allocator treats large blocks. Owns one setting of glibc; what is allocated, and how much at a time, is the
//! affair of those who do it.

/// Blocks of this size and more are the system's again as soon as they are freed. Segments and parts of backups are larger, and pools
/// keep those that are worth keeping.
#[cfg(target_env = "gnu")]
const LARGE_BLOCK_BYTES: std::ffi::c_int = 1 << 20;

/// Has freed large blocks given back to the system. Left alone, glibc keeps up to 60 MiB of them for each thread: parts of a backup pass
/// through many, so a restore would take twice the memory that it uses. To be called before threads are started.
pub(crate) fn give_back_large_blocks() {
    #[cfg(target_env = "gnu")]
    {
        #[expect(
            unsafe_code,
            reason = "the one way to set this from within; no memory is touched"
        )]
        // SAFETY: takes two integers, and no other thread allocates yet.
        let set = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES) };
        debug_assert_eq!(set, 1, "glibc takes up to 32 MiB");
    }
}
