//! Tests that belong to no single crate: the rules of the repository.
//!
//! [`tree`] reads the repository into memory, [`rules`] judges it; `tests/repository.rs` puts the two together. The
//! client programs (`tests/clients/`) and the proof that `store` needs no std (`tests/no_std/`) are beside them and
//! are run by `test.sh`.

pub mod rules;
pub mod tree;
