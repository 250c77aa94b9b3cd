//! Tests that belong to no single crate: the rules of the repository, and Redis as the oracle.
//!
//! [`tree`] reads the repository into memory, [`rules`] judges it; `tests/repository.rs` puts the two together. The
//! client programs (`tests/clients/`) and the proof that `store` and `wal` need no std (`tests/no_std/`) are beside
//! them and are run by `test.sh`. [`oracle`] sends random commands to redis-server and to Millrace and compares the replies
//! byte for byte; `tests/oracle.rs` says how many. [`fleet`] drives several shards in one thread, from a seed;
//! [`simulator`] the whole server with its log, on a machine whose power is cut.
//! [`linearizability`] judges recorded histories of concurrent clients; `tests/linearizability.rs` records them,
//! `tests/linearizability_power_cuts.rs` across power cuts.
//! [`histories`] has servers change their roles and asks what their clients are told.
//! [`random`] is the seeded generator.
//! [`hosts`] are network namespaces joined by a bridge, whose packets can be lost; `tests/namespaces.rs` runs servers in them,
//! and NGINX, which [`proxy`] starts.
//! [`power_cut`] is a disk whose power can be cut, and [`runner`] runs tests that not every machine can run.

pub mod fleet;
pub mod histories;
pub mod hosts;
pub mod linearizability;
pub mod oracle;
pub mod power_cut;
pub mod proxy;
pub mod random;
pub mod rules;
pub mod runner;
pub mod simulator;
pub mod tree;
