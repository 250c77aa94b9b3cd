//! Replication by datagrams between real servers: to a multicast group, and to addresses behind a path that loses,
//! reorders and changes them.

#[allow(dead_code, reason = "each suite uses its part")]
mod nodes;
#[allow(dead_code, reason = "each suite uses its part")]
mod process;

use nodes::*;
use process::*;
use repl::datagram::{DATAGRAM_HEADER_BYTES, header};
use std::net::{SocketAddr, UdpSocket};

/// A datagram path that loses, holds back, repeats and changes some of what it carries.
fn bad_path(to: SocketAddr, seed: u64) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    // It ends with the process.
    std::thread::spawn(move || {
        let (mut random, mut bytes, mut held) = (seed | 1, vec![0; 65_536], Vec::new());
        while let Ok(count) = socket.recv(&mut bytes) {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let _ = match random % 100 {
                0..10 => Ok(0),
                10..15 => {
                    held = bytes[..count].to_vec();
                    Ok(0)
                }
                15..18 => {
                    let _ = socket.send_to(&bytes[..count], to);
                    socket.send_to(&bytes[..count], to)
                }
                18..20 => {
                    bytes[count / 2] ^= 1;
                    socket.send_to(&bytes[..count], to)
                }
                _ => socket.send_to(&bytes[..count], to),
            };
            if random % 100 >= 20 && !held.is_empty() {
                let _ = socket.send_to(&std::mem::take(&mut held), to);
            }
        }
    });
    address
}

/// An address for datagrams that was free a moment ago.
fn free_address() -> SocketAddr {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A path on which somebody sends, before each datagram, one that he has made of it himself: without the key.
fn forging_path(to: SocketAddr) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    // It ends with the process.
    std::thread::spawn(move || {
        let mut bytes = vec![0; 65_536];
        while let Ok(count) = socket.recv(&mut bytes) {
            let own = header::CRC.offset;
            let mut forged = bytes[..count].to_vec();
            // Its records at another time, and a checksum that is right.
            forged[DATAGRAM_HEADER_BYTES + 24] ^= 1;
            let crc = crc32c::crc32c_append(crc32c::crc32c(&forged[..own]), &forged[own + 4..]);
            header::CRC.put(&mut forged, &crc.to_le_bytes());
            let _ = socket.send_to(&forged, to);
            let _ = socket.send_to(&bytes[..count], to);
        }
    });
    address
}

/// Datagrams of who does not know the secret are counted, and nothing of them is taken.
#[test]
fn forged_datagrams_are_counted_and_nothing_else() {
    let scratch = Scratch::new("repl-forged");
    let secret = scratch.file("secret", "a secret of many bytes");
    std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let here = free_address();
    let path = forging_path(here).to_string();
    let knows = ["--replication-secret-file", &secret];
    let mut primary = Node::new(&scratch, "primary", "1").with(&knows).with(&["--delta-udp", &path]);
    primary.start();
    let mut replica =
        Node::new(&scratch, "replica", "1").with(&knows).with(&["--delta-udp-listen", &here.to_string()]);
    replica.follow(&primary).start();
    let writer = Writer::start(primary.port);
    live(&replica);
    writer.goes_on(2000);
    writer.stop();
    same(&primary, &replica);
    let text = || replica.client().bulk("INFO replication");
    eventually(text, || number(&mut replica.client(), "replica_datagrams_forged") > 0);
    assert_eq!(number(&mut replica.client(), "replica_datagrams_damaged"), 0, "{}", text());
}

/// Waits until records of new writes come as datagrams.
fn live(replica: &Node) {
    let text = || replica.client().bulk("INFO replication");
    // Before the first report there is no such field.
    eventually(text, || info(&mut replica.client(), "replica_datagrams").is_some_and(|count| count != "0"));
}

#[test]
fn what_a_bad_path_loses_is_repaired_over_the_connection() {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()) * 0x9e37_79b9);
    println!("SEED={seed}");
    let scratch = Scratch::new("repl-udp");
    let (here, also) = (free_address(), free_address());
    let list = format!("{},{also}", bad_path(here, seed));
    let mut primary = Node::new(&scratch, "primary", "2").with(&["--delta-udp", &list]);
    primary.start();
    let mut bad = Node::new(&scratch, "bad", "1").with(&["--delta-udp-listen", &here.to_string()]);
    bad.follow(&primary).start();
    let mut good = Node::new(&scratch, "good", "1").with(&["--delta-udp-listen", &also.to_string()]);
    good.follow(&primary).start();
    let writer = Writer::start(primary.port);
    live(&bad);
    live(&good);
    writer.goes_on(20_000);
    writer.stop();
    same(&primary, &bad);
    same(&primary, &good);
    let mut client = bad.client();
    for field in [
        "replica_datagrams_lost",
        "replica_datagrams_damaged",
        "replica_repairs_asked",
        "replica_records_repaired",
    ] {
        assert!(number(&mut client, field) > 0, "{field}: {}", client.bulk("INFO replication"));
    }
    assert_eq!(number(&mut good.client(), "replica_datagrams_damaged"), 0);
    let line = info(&mut primary.client(), "slave0").unwrap();
    assert!(line.contains("datagrams=1"), "{line}");
}

#[test]
fn a_group_has_what_is_sent_once_and_takes_nothing_from_strangers() {
    let scratch = Scratch::new("repl-multicast");
    // A port of its own for this process: other groups on it stay out.
    let group = SocketAddr::from(([239, 255, 77, 9], free_address().port())).to_string();
    let datagrams =
        ["--delta-udp", &group, "--delta-udp-listen", &group, "--delta-udp-interface", "127.0.0.1"];
    let mut primary = Node::new(&scratch, "primary", "1").with(&datagrams);
    primary.start();
    let mut replicas = Vec::new();
    for name in ["one", "two", "three"] {
        let mut replica = Node::new(&scratch, name, "1").with(&datagrams[2..]);
        replica.follow(&primary).start();
        replicas.push(replica);
    }
    let writer = Writer::start(primary.port);
    replicas.iter().for_each(live);
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket2::SockRef::from(&stranger).set_multicast_if_v4(&std::net::Ipv4Addr::LOCALHOST).unwrap();
    for junk in [&b"junk"[..], &[0; 1400], b"MRDG and more that is none"] {
        stranger.send_to(junk, &group).unwrap();
    }
    writer.goes_on(5000);
    writer.stop();
    for replica in &replicas {
        same(&primary, replica);
        let mut client = replica.client();
        assert!(number(&mut client, "replica_datagrams_damaged") >= 3, "{}", client.bulk("INFO replication"));
    }
    // Promoted, one of them sends to the others.
    replicas[0].client().ask("REPLICAOF NO ONE");
    let text = || replicas[0].client().bulk("INFO replication");
    eventually(text, || replicas[0].client().ask("SET mine now") == "+OK");
}
