//! The snapshot file: memory images of all shards, each at one LSN, as they are written, checked and read.
//!
//! An image is opaque here: *meta* bytes and *regions* of whole pages, which the keyspace makes and takes back.
//! [`writer::SnapshotWriter`] is told their lengths, is given their bytes in any order, and is asked what to do
//! to the file next. [`view::SnapshotView`] is given the file's bytes and trusts none of them: what it hands
//! out has been checked, except for the pages of the regions, which are checked one by one when they are
//! first used. Nothing here opens a file, reads a clock, waits or asks for randomness.
//!
//! `docs/formats/snapshot.md` is the format; its tables are bound to the constants here by a test.
//!
//! | module | what it owns |
//! |---|---|
//! | [`format`] | the layout: header, tables, trailer |
//! | [`names`] | names of files, and which file of a directory is what |
//! | [`operation`] | everything the writer can ask of the disk, on one screen |
//! | [`writer`] | the writer |
//! | [`view`] | reading: what is believed, and when |
//! | [`damage`] | what is wrong with a file, in words an operator can act on |
//! | [`rdb`] | Redis' dump format: strings and their expiry, both ways |
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
extern crate alloc;

pub mod damage;
pub mod format;
pub mod fuzz;
pub mod names;
pub mod operation;
pub mod rdb;
pub mod view;
pub mod writer;
