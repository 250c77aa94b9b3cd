//! Arbitrary bytes as replication's stream, datagrams and lineage file. All the work is in `repl::fuzz`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| repl::fuzz::fuzz_replication(input));
