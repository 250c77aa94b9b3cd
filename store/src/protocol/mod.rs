//! The clients' protocols: RESP2 and RESP3 requests in ([`resp`]), replies out ([`reply`]), and HTTP/1.1 over
//! the same commands ([`http`]). Bytes only; what a request means is the business of [`crate::command`]. What fuzzers
//! call is in [`fuzz`].

pub mod fuzz;
pub mod http;
pub mod reply;
pub mod resp;
