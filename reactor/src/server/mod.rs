//! One server: settings in, threads out.
//!
//! | module | what it owns |
//! |---|---|
//! | [`shard`] | the loop: read this first |
//! | [`pipeline`] | the pure heart of a shard: events in, operations out |
//! | [`event`] | every event and every operation, on one screen |
//! | [`config`] | flags, configuration file, and what the reactor itself heeds of them |
//! | [`mailbox`] | messages between shards, and how they sleep and wake |
//! | [`log_handle`] | what shards and the log's thread share: batches, room, the durable LSN |
//! | [`log_owner`] | the owner of the log: one order for all shards, group commit, failure |
//! | [`log_thread`] | the threads it runs on: one that writes, one that helps |
//! | [`snapshot_handle`] | what shards and the snapshot's thread share: orders, parts of images |
//! | [`snapshot_end`] | a shard's end of snapshots: its image goes out between other turns |
//! | [`snapshot_owner`] | when a snapshot is taken, what goes into it, what may go after it |
//! | [`snapshot_thread`] | the thread that writes it |
//! | [`journal`] | which of the two journals a directory holds; the key and the recovery of the encrypted one |
//! | `journal_thread` | the owner of the encrypted journal (feature `sqlcipher`) |
//! | [`recovery`] | what the log holds, before anybody is served |
//! | `replay` | its records on their way to the shards |
//! | [`replication`] | one thread for replicas and for whom the server follows |
//! | `data_directory` | locked, read and made into keyspaces at the start |
//! | [`snapshot_start`] | what a directory holds becomes keyspaces: a snapshot, and the log behind it |
//! | `warm_pace` | how fast the rest of a snapshot is read behind the traffic |
//! | [`topology`] | what runs where |
//! | `stopped` | the directory of a stopped server, read for a tool |
//! | [`start`] | listeners, driver, thread: starting and stopping |

pub mod config;
mod data_directory;
pub mod event;
pub mod journal;
#[cfg(feature = "sqlcipher")]
pub mod journal_thread;
pub mod log_end;
pub mod log_handle;
pub mod log_owner;
pub mod log_thread;
pub mod mailbox;
pub mod pipeline;
pub mod recovery;
mod replay;
pub mod replication;
pub mod shard;
pub mod snapshot_end;
pub mod snapshot_handle;
pub mod snapshot_owner;
pub mod snapshot_start;
mod snapshot_survey;
pub mod snapshot_thread;
pub mod start;
pub(crate) mod stopped;
pub mod topology;
mod warm_pace;
