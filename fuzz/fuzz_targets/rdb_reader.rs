//! Arbitrary bytes as a Redis dump. All the work is in `snapshot::fuzz`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| snapshot::fuzz::fuzz_rdb_reader(input));
