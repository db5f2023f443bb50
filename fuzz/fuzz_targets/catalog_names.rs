//! See the function of the same name in `repository::fuzzing`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| repository::fuzzing::catalog_names(data));
