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
//! | [`journal`] | which of the two journals a directory holds; the key and the recovery of the encrypted one |
//! | `journal_thread` | the owner of the encrypted journal (feature `sqlcipher`) |
//! | [`recovery`] | what the log holds, before anybody is served |
//! | `replay` | its records on their way to the shards |
//! | [`topology`] | what runs where |
//! | [`start`] | listeners, driver, thread: starting and stopping |

pub mod config;
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
pub mod shard;
pub mod start;
pub mod topology;
