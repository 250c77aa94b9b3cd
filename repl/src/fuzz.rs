//! What the target in `fuzz/` calls: arbitrary bytes as a datagram, as each side's stream, and as a lineage
//! file.
//!
//! The first byte says as what. Half of the inputs are read with a checksum that is always 0, since no fuzzer
//! guesses a right one. Nothing may panic, what is decoded encodes to the bytes it was read from, and how a
//! stream is cut into pieces does not matter. No input can prove that it knows the secret, so none may get a
//! replica to do more than to close, or a primary to tell it anything of its records.

use alloc::vec::Vec;

use wal::checksum::Checksum;
use wal::lsn::{Epoch, Lsn};

use crate::datagram::Datagram;
use crate::fault::Fault;
use crate::frame::{Frame, FrameReader};
use crate::identity::{NodeId, Now};
use crate::lineage::{BranchId, Lineage};
use crate::message::Message;
use crate::primary::{self, LinkId, Primary, PrimaryStart};
use crate::replica::{self, Replica, ReplicaStart};
use crate::run::{Position, Run};
use crate::secret::Secret;
use crate::settings::{PrimarySettings, ReplicaSettings};

/// Reads one input.
pub fn fuzz_replication(input: &[u8]) {
    let Some((&how, bytes)) = input.split_first() else { return };
    let checksum = if how & 1 == 0 { Checksum::blind() } else { Checksum::portable() };
    match how >> 1 & 3 {
        0 => datagram(bytes, checksum),
        1 => stream(bytes, checksum, 1 + usize::from(how >> 3)),
        2 => peers(bytes, checksum),
        _ => {
            if let Ok(lineage) = Lineage::decode_file(bytes, checksum) {
                // A blind checksum stores itself as it was found, whatever it was.
                assert_eq!(lineage.encode_file(checksum)[16..], bytes[16..]);
            }
        }
    }
}

fn datagram(bytes: &[u8], checksum: Checksum) {
    let Ok(datagram) = Datagram::decode(bytes, checksum) else { return };
    check_run(&datagram.run);
    assert!(datagram.run.as_bytes().len() < bytes.len());
    let mut replica = replica(checksum);
    replica.handle_datagram(bytes, Now::default());
    assert_eq!(replica.poll_action(), None, "a datagram that nobody asked for");
}

fn check_run(run: &Run<'_>) {
    let mut position = run.first();
    let mut count = 0;
    for part in run.parts() {
        assert!(part.position == position && part.end() > position, "{part:?}");
        assert!(part.position.lsn <= run.durable_lsn());
        (position, count) = (part.end(), count + 1);
    }
    assert!(count == run.count() && (count == 0 || position > Position::start_of(run.last_lsn())));
}

fn frames(bytes: &[u8], checksum: Checksum, piece: usize) -> (Vec<Frame>, Option<Fault>) {
    let mut reader = FrameReader::new(checksum);
    let mut frames = Vec::new();
    for bytes in bytes.chunks(piece) {
        reader.push(bytes);
        loop {
            match reader.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(fault) => return (frames, Some(fault)),
            }
        }
    }
    (frames, None)
}

fn stream(bytes: &[u8], checksum: Checksum, piece: usize) {
    let (whole, fault) = frames(bytes, checksum, bytes.len().max(1));
    let (pieces, other) = frames(bytes, checksum, piece);
    assert!(whole == pieces, "pieces of {piece} bytes give other frames");
    assert_eq!(fault.map(|fault| fault.reason), other.map(|fault| fault.reason));
    for Frame { kind, body } in whole {
        let Ok(message) = Message::decode(kind, body.clone()) else { continue };
        if let Message::Records(run) = &message {
            check_run(&Run::parse(run).expect("it was checked"));
        }
        let mut again = Vec::new();
        message.encode_body(&mut again);
        // The text of a refusal is made fit to be shown.
        assert!(matches!(message, Message::Refused(_)) || again == body, "{message:?}");
    }
}

fn replica(checksum: Checksum) -> Replica {
    let start = ReplicaStart {
        node: NodeId([2; 16]),
        secret: Secret::new(b"fuzz"),
        lineage: Lineage::default(),
        last_lsn: Lsn::ZERO,
        partial: None,
        seed: 1,
    };
    Replica::new(ReplicaSettings { datagrams: true, ..ReplicaSettings::default() }, start, checksum)
}

/// The bytes to either side of a connection.
fn peers(bytes: &[u8], checksum: Checksum) {
    let now = Now { micros: 1000, unix_us: 1000 };
    let mut replica = replica(checksum);
    replica.start(now);
    replica.handle_timeout(now);
    replica.handle_connected([3; 16], now);
    replica.handle_bytes(bytes, now);
    replica.handle_timeout(Now { micros: 9_000_000, unix_us: 0 });
    while let Some(action) = replica.poll_action() {
        use replica::Action::*;
        assert!(matches!(action, Connect | Send(_) | Close(_)), "{action:?}");
    }
    let mut lineage = Lineage::default();
    lineage.begin(Lsn::FIRST, BranchId(1), Epoch::FIRST);
    let start = PrimaryStart {
        node: NodeId([1; 16]),
        secret: Secret::new(b"fuzz"),
        stream: 1,
        salt: [1; 16],
        lineage,
        durable_lsn: Lsn(5),
        log_first_lsn: Some(Lsn::FIRST),
        is_serving: true,
    };
    let mut primary = Primary::new(PrimarySettings::default(), start, checksum, now);
    primary.handle_connected(LinkId(1), [4; 16], now);
    primary.handle_bytes(LinkId(1), bytes, now);
    primary.handle_timeout(Now { micros: 9_000_000, unix_us: 0 });
    while let Some(action) = primary.poll_action(now) {
        use primary::Action::*;
        assert!(matches!(action, Send { .. } | Close { .. }), "{action:?}");
    }
}
