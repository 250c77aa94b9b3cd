//! The I/O edge: everything below the [`driver::Driver`] trait.
//!
//! | module | what it owns |
//! |---|---|
//! | [`driver`] | the seam: operations in, events out |
//! | [`uring`], [`ring`], [`buffers`] | the io_uring driver, its ring, its receive buffers |
//! | [`epoll`] | the epoll driver: the honest baseline, and the way in where io_uring is forbidden |
//! | [`listener`] | bound sockets, TCP and AF_UNIX |
//! | [`log_files`] | the log's files, and the lock on their directory |
//! | [`memory`] | the arena's segments on huge pages |
//! | [`queue`], [`sync`] | a bounded queue between two threads, and what it is built of |
//! | [`stop`] | SIGTERM, SIGINT and other threads asking for the end |
//! | [`probe`] | what this kernel and these limits allow, and what to do where they do not |
//! | `sys` | single system calls behind safe signatures |
//!
//! The workspace denies `unsafe`; this folder is the exception, because memory shared with the kernel, raw
//! descriptors and signal handlers cannot be had without it. Each block carries its argument.
#![allow(unsafe_code)]

pub mod buffers;
pub mod driver;
pub mod epoll;
pub mod listener;
pub mod log_files;
pub mod memory;
pub mod probe;
pub mod queue;
pub mod ring;
pub mod stop;
pub mod sync;
pub mod sys;
pub mod uring;
