//! Arbitrary bytes as the files of a log. All the work is in `wal::fuzz`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| wal::fuzz::fuzz_log_reader(input));
