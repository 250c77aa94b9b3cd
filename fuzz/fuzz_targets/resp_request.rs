//! Untrusted bytes on RESP connections. All the work is in `store::protocol::fuzz`.
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use store::engine::Engine;
use store::protocol::fuzz;

thread_local! {
    static ENGINE: RefCell<Engine> = RefCell::new(fuzz::engine());
}

fuzz_target!(|input: &[u8]| ENGINE.with_borrow_mut(|engine| fuzz::fuzz_resp_request(engine, input)));
