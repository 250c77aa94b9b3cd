//! Arbitrary bytes as a snapshot. All the work is in `snapshot::fuzz`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| snapshot::fuzz::fuzz_snapshot_view(input));
