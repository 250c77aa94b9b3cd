//! A program without std that uses `store`, `wal`, `snapshot` and `repl`: it compiles only if they and all they depend on do without std
//! too.
#![no_std]

#[cfg(feature = "with-std")]
extern crate std;

use repl::run::Position;
use snapshot::names::SnapshotId;
use store::time::Now;
use wal::lsn::Lsn;

/// Refers to `store`, so that it is linked and not just found.
pub fn uses_the_store(now: Now) -> Now {
    now
}

/// Refers to `wal`.
pub fn uses_the_log(lsn: Lsn) -> Lsn {
    lsn.next()
}

/// Refers to `snapshot`.
pub fn uses_the_snapshot(id: SnapshotId) -> Lsn {
    id.lsn
}

/// Refers to `repl`.
pub fn uses_replication(lsn: Lsn) -> Position {
    Position::start_of(lsn)
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        core::hint::spin_loop();
    }
}
