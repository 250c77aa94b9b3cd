//! The reactor: everything of Millrace that touches the machine.
//!
//! ```text
//!   main thread                     shard threads (pinned, one for each core)
//!   ───────────                     ─────────────────────────────────────────────────────
//!   settings, probe, listeners ───▶ loop {                                   server::shard
//!   prints `ready`                      driver.submit_and_wait(timeout)      io::{uring,epoll}
//!   waits for the threads               now = clock.tick()                   clock
//!        ▲                              for event: pipeline.handle(event)    server::pipeline
//!        │                              for message: pipeline.handle_message server::mailbox, from other shards
//!        │                              pipeline.finish_turn(now)
//!        └── threads end ◀──────        for operation: driver.enqueue(op)
//!                                       for message: mailbox.send        to other shards
//!                                   }
//!   SIGTERM, SIGINT ──▶ io::stop (an eventfd) ──▶ every driver: Event::StopRequested
//! ```
//!
//! A shard shares nothing with other threads but its queues of messages ([`server::mailbox`]), the stop signal and a
//! shelf of segments that a helper thread has touched ahead ([`io::memory`]): one lock in 2 MiB of growth, and no
//! request sees it. The one seam between the pure code above and the kernel below is [`io::driver::Driver`].
//!
//! | module | what it owns |
//! |---|---|
//! | [`server`] | starting and stopping, settings, the loop, the pipeline |
//! | [`io`] | drivers, listeners, memory, signals, the start-up probe: the only `unsafe` of the workspace |
//! | [`log_tool`] | `millrace log`: verify, dump, repair |
//! | [`journal_tool`] | `millrace journal`: another key, conversion |
//! | [`snapshot_tool`] | `millrace snapshot`: verify, info, dump |
//! | [`rdb_tool`] | `millrace export-rdb`, `import-rdb`: Redis' dumps |
//! | [`clock`] | the one reading of the time in a turn |
//! | [`cpu`] | pinning, and what a thread has burnt |

pub mod clock;
pub mod cpu;
pub mod io;
pub mod journal_tool;
pub mod log_tool;
pub mod rdb_tool;
pub mod server;
pub mod snapshot_tool;

pub use server::start::{RunningServer, Server, StartError};
