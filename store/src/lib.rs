//! The deterministic core of Millrace: *(state, bytes, now) → (state′, replies)*.
//!
//! Everything a command can see or change lives here: the arena of records and its index, expiry and
//! eviction, the protocols' bytes, the sessions and the command table. Nothing here performs I/O, reads a
//! clock, starts a thread or asks for randomness: time and seeds are arguments, memory comes from a
//! [`arena::SegmentSource`], and what must happen outside is returned by [`engine::Engine::poll_action`].
//! The same inputs give the same outputs, byte for byte.
//!
//! | module | what it owns |
//! |---|---|
//! | [`engine`] | one shard: keyspace, sessions, settings, metrics; `handle_*` in, `poll_action` out |
//! | [`session`] | what the server knows of one connection |
//! | [`shards`] | several engines that look like one server: hops, and commands over several shards |
//! | [`command`] | the command table and every handler |
//! | [`protocol`] | RESP2, RESP3 and HTTP/1.1 bytes in, replies out |
//! | [`keyspace`] | the only mutator of data: [`arena`], [`index`], [`expiry`], [`eviction`] below it |
//! | [`image`] | memory images: taking them, living on them |
//! | [`journal`] | records on their way to the log, replies that wait for it |
//! | [`replication`] | which role the server has, what a replica applies and when it may be read |
//! | [`snapshots`] | who wants a snapshot, and who waits for it |
//! | [`reads`] | reads that want at least some record, and those of them that wait |
//! | [`tracking`] | which clients have read what, and how they hear that it changed |
//! | [`mutation`] | the effect of a write, as bytes |
//! | [`glob`], [`long_double`] | matching and arithmetic exactly as Redis has them |
//! | [`config`], [`metrics`] | the tables of settings and of counters |
//! | [`stages`] | where the time of a request goes |
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
extern crate alloc;

pub mod arena;
pub mod command;
pub mod config;
pub mod engine;
pub mod eviction;
pub mod expiry;
pub mod glob;
pub mod image;
pub mod index;
pub mod journal;
pub mod keyspace;
pub mod long_double;
pub mod metrics;
pub mod mutation;
pub(crate) mod pending;
pub mod protocol;
pub mod pubsub;
pub mod reads;
pub(crate) mod replica_waits;
pub mod replication;
pub mod session;
pub mod shards;
pub mod slowlog;
pub mod snapshots;
pub mod stages;
pub mod time;
pub mod tracking;
pub mod value;
