//! What the targets in `fuzz/` call: untrusted bytes against a whole engine, on either protocol.
//!
//! The first byte of the input says how the rest is cut into receives. The bytes are executed uncut and then,
//! from the same state, in pieces; nothing may panic, memory must stay bounded, and both runs must give
//! the same output. An engine is used again and again, because tools' memory is never given back: [`engine`]
//! makes it, and each run first removes whatever the last one left.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::arena::HeapSource;
use crate::config::Config;
use crate::engine::{Action, Engine, Pause, Seeds};
use crate::session::{ConnectionId, Peer, Transport};
use crate::time::{Clock, Nanos, Now};

const CONNECTION: ConnectionId = ConnectionId { slot: 0, generation: 0 };
const NOW: Now = Now { unix_us: 1_700_000_000_000_000, monotonic: Nanos(1_000_000_000) };
/// More memory than this for one input is a finding.
const MEMORY_MAX: usize = 64 << 20;
/// What one input may cost in buffers beyond its own length: a head, a pending body, a batch of replies.
const BUFFER_SLACK: usize = 4 << 20;

struct StandingClock;

impl Clock for StandingClock {
    fn monotonic(&self) -> Nanos {
        NOW.monotonic
    }
}

/// An engine to hand to the functions below.
pub fn engine() -> Engine {
    Engine::new(Config::default(), Seeds::default(), Box::new(HeapSource::with_limit(MEMORY_MAX)), NOW)
}

/// RESP requests, inline commands, and everything that is neither.
pub fn fuzz_resp_request(engine: &mut Engine, input: &[u8]) {
    fuzz(engine, input, Transport::Resp);
}

/// HTTP requests and everything that is none.
pub fn fuzz_http_request(engine: &mut Engine, input: &[u8]) {
    fuzz(engine, input, Transport::Http);
}

fn fuzz(engine: &mut Engine, input: &[u8], transport: Transport) {
    let Some((&cut, bytes)) = input.split_first() else { return };
    let (whole, whole_aborted) = run(engine, bytes, bytes.len().max(1), transport);
    let (pieces, pieces_aborted) = run(engine, bytes, usize::from(cut).max(1), transport);
    // An abort drops the output that waits, and how much waits then is a matter of timing.
    let dropped =
        whole_aborted && pieces_aborted && (whole.starts_with(&pieces) || pieces.starts_with(&whole));
    if !dropped && !shows_buffers(bytes) {
        assert!(
            whole == pieces,
            "cut every {cut} bytes:\n{}\nwhole:\n{}",
            pieces.escape_ascii(),
            whole.escape_ascii()
        );
    }
}

/// Whether the input asks for something that legitimately depends on how it arrived or on what ran before.
fn shows_buffers(bytes: &[u8]) -> bool {
    const WORDS: [&[u8]; 8] =
        [b"info", b"client", b"memory", b"metrics", b"slowlog", b"latency", b"hello", b"debug"];
    let lower = bytes.to_ascii_lowercase();
    // Random choices go on from one run to the next.
    const RANDOM: [&[u8]; 2] = [b"randomkey", b"config"];
    WORDS.iter().chain(&RANDOM).any(|word| lower.windows(word.len()).any(|window| window == *word))
}

/// Executes `bytes`, `cut` at a time, from an empty keyspace; returns all output, and whether it ended in an abort.
fn run(engine: &mut Engine, bytes: &[u8], cut: usize, transport: Transport) -> (Vec<u8>, bool) {
    reset(engine);
    let peer = Peer { transport, ..Peer::default() };
    engine.handle_connect(CONNECTION, peer, NOW);
    let mut output = Vec::new();
    let (mut closed, mut aborted) = (false, false);
    for piece in bytes.chunks(cut) {
        engine.handle_receive(CONNECTION, piece, NOW, &StandingClock);
        settle(engine, &mut output, &mut closed, &mut aborted);
        if closed {
            break;
        }
        let held = engine.shared().buffer_bytes;
        assert!(
            held <= 2 * bytes.len() + BUFFER_SLACK,
            "{held} bytes of buffers for {} of input",
            bytes.len()
        );
    }
    engine.finish_turn(NOW);
    settle(engine, &mut output, &mut closed, &mut aborted);
    engine.handle_disconnect(CONNECTION, NOW);
    (output, aborted)
}

/// Takes all output until no more comes.
fn settle(engine: &mut Engine, output: &mut Vec<u8>, closed: &mut bool, aborted: &mut bool) {
    loop {
        while let Some(action) = engine.poll_action() {
            *aborted |= matches!(action, Action::Abort(_));
            *closed |= matches!(action, Action::Close(_) | Action::Abort(_) | Action::Shutdown);
        }
        let Some(sent) = engine.take_output(CONNECTION) else { return };
        output.extend_from_slice(&sent);
        engine.handle_sent(CONNECTION, sent, NOW, &StandingClock);
    }
}

fn reset(engine: &mut Engine) {
    engine.handle_disconnect(CONNECTION, NOW);
    while engine.poll_action().is_some() {}
    let shared = engine.shared_mut();
    shared.config = Config::default();
    shared.pause = Pause::default();
    shared.settings_changed(NOW);
    // Cheaper than clearing, which would give the segments back and have them zeroed again.
    let keyspace = &mut shared.keyspace;
    let mut keys = Vec::new();
    let mut cursor = 0;
    loop {
        cursor = keyspace.scan(cursor, 1000, NOW, &mut |key| keys.push(key.to_vec()));
        if cursor == 0 {
            break;
        }
    }
    for key in keys {
        keyspace.remove(&key, keyspace.hash(&key), NOW);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The targets need a nightly compiler and are not built by CI; their functions and seeds are kept alive here.
    #[test]
    fn the_seed_corpus_passes() {
        type Target = fn(&mut Engine, &[u8]);
        let targets: [(&str, Target); 2] =
            [("http_request", fuzz_http_request), ("resp_request", fuzz_resp_request)];
        for (name, target) in targets {
            let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(name);
            let mut engine = engine();
            let mut seeds = 0;
            for entry in
                std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
            {
                let seed = std::fs::read(entry.unwrap().path()).unwrap();
                for cut in [1, 2, 3, 7, 64, seed[0]] {
                    target(&mut engine, &[&[cut], &seed[1..]].concat());
                }
                seeds += 1;
            }
            assert!(seeds >= 10, "only {seeds} seeds in {}", folder.display());
        }
    }
}
