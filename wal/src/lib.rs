//! The write-ahead log: what makes an acknowledged write durable, decided here and performed elsewhere.
//!
//! Records (opaque bytes, one per command) get consecutive numbers, gather in blocks, and blocks go to
//! segment files. [`group_commit::GroupCommit`] is the writer: it is given records and completions, and asked
//! what to do next. [`reader::LogReader`] is recovery: it is given bytes and asked for records, and tells a
//! torn tail, which it cuts, from damage, which it refuses. Nothing here opens a file, reads a clock, waits
//! or asks for randomness; times and seeds are arguments, and so is the CPU's instruction for the checksum
//! ([`checksum::Checksum`]).
//!
//! `docs/formats/wal.md` is the format; its tables are bound to the constants here by a test.
//!
//! | module | what it owns |
//! |---|---|
//! | [`lsn`] | the numbers of records and of histories |
//! | [`record`] | records handed over in batches, and their framing inside a block |
//! | [`block`] | the header of a block, aligned buffers |
//! | [`segment`] | segment files: names, header, unique ids |
//! | [`checksum`] | CRC-32C, portable or lent by the caller |
//! | [`operation`] | everything the writer can ask of the disk, on one screen |
//! | [`settings`] | what can be configured |
//! | [`group_commit`] | the writer |
//! | [`spares`] | segments prepared ahead, recycled and removed |
//! | [`reader`] | recovery: records in order, and the decision where the log ends |
//! | [`end_of_log`] | where and why it ends, and how a writer goes on |
//! | `sqlcipher` | with the feature of that name: the journal that is encrypted at rest, which performs its own I/O |
//! | [`damage`] | what is wrong with a log, in words an operator can act on |
#![cfg_attr(not(any(test, feature = "sqlcipher")), no_std)]
#![forbid(unsafe_code)]
extern crate alloc;

pub mod block;
pub mod checksum;
pub mod damage;
pub mod end_of_log;
pub mod fuzz;
pub mod group_commit;
pub mod layout;
pub mod lsn;
pub mod operation;
pub mod reader;
pub mod record;
pub mod segment;
pub mod settings;
pub mod spares;
#[cfg(feature = "sqlcipher")]
pub mod sqlcipher;
