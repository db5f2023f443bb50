//! See the function of the same name in `wal_format::fuzzing`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| wal_format::fuzzing::record_body(data));
