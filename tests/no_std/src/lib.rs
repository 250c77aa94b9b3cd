//! A program without std that uses `store`: it compiles only if `store` and all it depends on do without std too.
#![no_std]

#[cfg(feature = "with-std")]
extern crate std;

use store::time::Now;

/// Refers to `store`, so that it is linked and not just found.
pub fn uses_the_store(now: Now) -> Now {
    now
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        core::hint::spin_loop();
    }
}
