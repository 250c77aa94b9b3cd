//! The I/O edge: everything below the [`driver::Driver`] trait.
//!
//! | module | what it owns |
//! |---|---|
//! | [`driver`] | the seam: operations in, events out |
//! | [`uring`], [`ring`], [`buffers`] | the io_uring driver, its ring, its receive buffers |
//! | [`epoll`] | the epoll driver: the honest baseline, and the way in where io_uring is forbidden |
//! | [`listener`] | bound sockets, TCP and AF_UNIX |
//! | [`log_files`] | the log's files, and the lock on their directory |
//! | [`snapshot_files`] | the file of a snapshot, and which of them a directory holds |
//! | [`memory`] | the arena's segments on huge pages |
//! | [`snapshot_source`] | where a start finds snapshots |
//! | [`snapshot_map`] | a snapshot's file as memory, and what happens where it cannot be read |
//! | [`queue`], [`sync`] | a bounded queue between two threads, and what it is built of |
//! | [`stop`] | SIGTERM, SIGINT and other threads asking for the end |
//! | [`perf`] | what a process does, by the kernel's and the processor's counters |
//! | [`probe`] | what this kernel and these limits allow, and what to do where they do not |
//! | `sys` | single system calls behind safe signatures |
//!
//! The workspace denies `unsafe`; this folder is the exception, because memory shared with the kernel, raw
//! descriptors and signal handlers cannot be had without it. Each block carries its argument.
#![allow(unsafe_code)]

pub mod buffers;
pub mod datagrams;
pub mod driver;
pub mod epoll;
pub mod listener;
pub mod log_files;
pub mod memory;
pub mod perf;
pub mod probe;
pub mod queue;
pub mod ring;
pub mod snapshot_files;
pub mod snapshot_map;
pub mod snapshot_source;
pub mod stop;
pub mod sync;
pub mod sys;
pub mod uring;
