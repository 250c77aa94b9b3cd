//! Any bytes as the meta of a memory image. All the work is in `store::image::fuzz`.
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use store::image::fuzz::{self, Memory};

thread_local! {
    static MEMORY: RefCell<Memory> = RefCell::new(Memory::new());
}

fuzz_target!(|input: &[u8]| MEMORY.with_borrow_mut(|memory| fuzz::fuzz_image_meta(memory, input)));
