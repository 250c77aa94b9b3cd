//! Replication: durable records go out in frames and datagrams, and come in again in order; decided here and
//! performed elsewhere.
//!
//! A node with replicas has one [`primary::Primary`]: it is given the records that have become durable, and
//! the bytes of each replica's connection, and asked what to send, to read and to close. A node that follows
//! another has one [`replica::Replica`]: it is given the bytes of its connection and the datagrams that
//! arrive, and asked for records to apply. A node in the middle of a chain has both. Between them lies one
//! rule: a replica is at every moment a prefix of its primary's durable log. [`lineage`] is what makes it
//! true across restarts and promotions, [`intake`] what makes it true on a network that loses and reorders.
//!
//! Nothing here opens a socket or a file, reads a clock, waits or asks for randomness: times and nonces are
//! arguments. Every queue has a bound in [`settings`], and a counter for reaching it.
//!
//! `docs/formats/delta.md` is the format; its tables are bound to the constants here by a test.
//!
//! | module | what it owns |
//! |---|---|
//! | [`lineage`] | which history a log belongs to, and what two logs have in common |
//! | [`identity`] | names of nodes, chains of nodes, the two clocks |
//! | [`secret`] | the shared secret: proofs in the handshake, keys of datagrams |
//! | [`frame`] | the TCP stream: preamble, frames |
//! | [`message`] | what a frame says: the table of messages |
//! | [`run`] | consecutive records, or parts of one, as bytes: in frames and in datagrams |
//! | [`datagram`] | the UDP datagram |
//! | [`fault`] | why a connection ends, in words for an operator |
//! | [`settings`] | what can be configured, and what cannot work |
//! | [`backlog`] | the newest records, encoded once for all replicas |
//! | [`pacer`] | the rate cap of datagrams |
//! | [`primary`] | the side that has the records |
//! | [`intake`] | runs in, whole records in order out |
//! | [`reorder`] | datagrams that are early; gaps, and when to ask for them |
//! | [`freshness`] | how far behind a replica is at most, without trusting anybody's clock |
//! | [`word`] | the primary's time, by which keys expire everywhere |
//! | [`reads`] | reads that want at least some LSN |
//! | [`replica`] | the side that follows |
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
extern crate alloc;

pub mod backlog;
pub mod datagram;
pub mod fault;
pub mod frame;
pub mod freshness;
pub mod fuzz;
pub mod identity;
pub mod intake;
pub mod lineage;
pub mod message;
pub mod pacer;
pub mod primary;
pub mod reads;
pub mod reorder;
pub mod replica;
pub mod run;
pub mod secret;
pub mod settings;
pub mod word;
