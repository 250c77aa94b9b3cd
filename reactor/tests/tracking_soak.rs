//! A thousand clients that track, in every mode, and leave in storms: when they are gone, so is all that was kept for
//! them. `MILLRACE_SOAK_S=3600 cargo test --profile ci -p reactor --test tracking_soak` lets it run for an hour on each
//! driver; without it, a few storms.

#[allow(dead_code, reason = "other tests use the rest of it")]
mod harness;

use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use harness::{Client, Random, Server, raise_descriptor_limit, seed};

const TRACKERS: usize = 1000;
const KEYS: u64 = 4096;
const MIB: usize = 1 << 20;

/// What the server keeps for clients that track, by its own account.
const KEPT: [(&str, &str); 7] = [
    ("clients", "tracking_clients"),
    ("stats", "tracking_total_keys"),
    ("stats", "tracking_total_items"),
    ("stats", "tracking_total_prefixes"),
    ("stats", "tracking_pushes_held"),
    ("memory", "tracking_bytes"),
    ("memory", "mem_clients_normal"),
];

fn key(random: &mut Random) -> String {
    format!("key:{:05}", random.next() % KEYS)
}

/// A new client, with what it wants to be told on its way. It may leave before it reads anything of it.
fn tracker(server: &Server, random: &mut Random, ids: &[u64]) -> Client<TcpStream> {
    let mut client = server.client();
    let redirect;
    let prefixes;
    let mode: &[&str] = match random.next() % 8 {
        0 => &["BCAST"],
        1 => {
            prefixes = format!("key:{:03}", random.next() % 41);
            &["BCAST", "PREFIX", &prefixes, "NOLOOP"]
        }
        2 => &["OPTIN"],
        3 => &["OPTOUT"],
        4 if !ids.is_empty() => {
            redirect = ids[(random.next() % ids.len() as u64) as usize].to_string();
            &["REDIRECT", &redirect]
        }
        5 => &["NOLOOP"],
        _ => &[],
    };
    let mut text = String::new();
    if !mode.contains(&"REDIRECT") {
        text.push_str("HELLO 3\r\n");
    }
    text.push_str(&format!("CLIENT TRACKING ON {}\r\n", mode.join(" ")));
    for _ in 0..random.next() % 48 {
        if mode.contains(&"OPTIN") {
            text.push_str("CLIENT CACHING YES\r\n");
        }
        match random.next() % 8 {
            0 => text.push_str(&format!("MGET {} {} {}\r\n", key(random), key(random), key(random))),
            1 => text.push_str(&format!("SET {} {:064}\r\n", key(random), random.next())),
            2 => text.push_str(&format!("MULTI\r\nGET {}\r\nGET {}\r\nEXEC\r\n", key(random), key(random))),
            _ => text.push_str(&format!("GET {}\r\n", key(random))),
        }
    }
    client.send(text.as_bytes());
    client
}

/// Some just close, which the kernel makes a reset for what they have not read; some say so first.
fn leave(client: Client<TcpStream>, random: &mut Random) {
    match random.next() % 3 {
        0 => {
            let _ = client.stream.shutdown(Shutdown::Write);
        }
        1 => {
            let mut client = client;
            client.stream.set_nonblocking(true).expect("nonblocking");
            // Half of a command.
            let _ = std::io::Write::write(&mut client.stream, b"*2\r\n$3\r\nGET\r\n$9\r\nkey:0");
        }
        _ => {}
    }
}

/// Numbers of clients that could be redirected to.
fn ids(admin: &mut Client<TcpStream>) -> Vec<u64> {
    let list = String::from_utf8(admin.call_bulk(&[b"CLIENT", b"LIST"])).expect("CLIENT LIST is text");
    list.lines().filter_map(|line| line.strip_prefix("id=")?.split(' ').next()?.parse().ok()).collect()
}

fn fill(client: &mut Client<TcpStream>) {
    for number in 0..KEYS {
        client.set(format!("key:{number:05}").as_bytes(), &[b'v'; 64]);
    }
}

/// Waits until nothing is kept for anybody any more.
fn nothing_is_kept(server: &Server, admin: &mut Client<TcpStream>, before: &[u64]) {
    server.connected_clients_become(admin, 1);
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        let now = kept(admin);
        if now == before {
            return;
        }
        if Instant::now() > end {
            for ((_, name), (now, before)) in KEPT.iter().zip(now.iter().zip(before)) {
                eprintln!("{name}: {now}, {before} before");
            }
            panic!("something is kept for clients that have left");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn kept(admin: &mut Client<TcpStream>) -> Vec<u64> {
    KEPT.iter().map(|(section, name)| admin.info_of(section, name)).collect()
}

/// One storm: the thousand come, others write, half of them leave and come back a few times, all leave.
/// Returns the most pairs that were kept, and how many keys were evicted over the bound.
fn storm(server: &Server, admin: &mut Client<TcpStream>, random: &mut Random) -> (u64, u64) {
    let ended = AtomicBool::new(false);
    let (mut most, mut evictions) = (0, 0);
    std::thread::scope(|scope| {
        let (ended, seed, mut writer) = (&ended, random.next(), server.client());
        scope.spawn(move || {
            let mut random = Random(seed);
            while !ended.load(Ordering::Acquire) {
                // Values of one length: what is stored takes what it took before.
                writer.set(key(&mut random).as_bytes(), format!("{:064}", random.next()).as_bytes());
            }
        });
        let mut trackers: Vec<Client<TcpStream>> = Vec::new();
        for _ in 0..3 {
            let ids = ids(admin);
            while trackers.len() < TRACKERS {
                trackers.push(tracker(server, random, &ids));
            }
            // Whatever they sent is executed when the last one's commands are; they are on several shards.
            admin.ping();
            most = most.max(admin.info_of("stats", "tracking_total_items"));
            evictions = evictions.max(admin.info_of("stats", "tracking_evictions"));
            // A few read what they are told, the others let it pile up.
            for client in trackers.iter().step_by(10) {
                client.stream.set_nonblocking(true).expect("nonblocking");
                let mut bytes = [0; 16384];
                while std::io::Read::read(&mut &client.stream, &mut bytes).is_ok_and(|length| length > 0) {}
                client.stream.set_nonblocking(false).expect("blocking");
            }
            for _ in 0..TRACKERS / 2 {
                let at = (random.next() % trackers.len() as u64) as usize;
                leave(trackers.swap_remove(at), random);
            }
        }
        // Half of those that are left are thrown out, the others go at once.
        for id in ids_of_trackers(admin).into_iter().step_by(2) {
            admin.call_integer(&[b"CLIENT", b"KILL", b"ID", id.to_string().as_bytes()]);
        }
        drop(trackers);
        ended.store(true, Ordering::Release);
    });
    (most, evictions)
}

fn ids_of_trackers(admin: &mut Client<TcpStream>) -> Vec<u64> {
    let list = String::from_utf8(admin.call_bulk(&[b"CLIENT", b"LIST"])).expect("CLIENT LIST is text");
    let tracks = |line: &&str| {
        let flags = line.split(' ').find_map(|word| word.strip_prefix("flags=")).expect("flags");
        flags.contains(['t', 'B'])
    };
    let id = |line: &str| line.strip_prefix("id=")?.split(' ').next()?.parse().ok();
    list.lines().filter(tracks).filter_map(id).collect()
}

fn soak(io: &str, shards: &str) {
    let seed = seed();
    eprintln!("SEED={seed} ({io}, {shards} shards)");
    let mut random = Random(seed);
    // Fewer pairs than they would make: some are evicted for it.
    let server = Server::start(io, &["--shards", shards, "--tracking-table-max-pairs", "4000"]);
    let mut admin = server.client();
    fill(&mut admin);
    let descriptors = server.descriptors();
    let before = kept(&mut admin);
    let used_before = admin.info_of("memory", "used_memory");
    let span = std::env::var("MILLRACE_SOAK_S").ok().and_then(|text| text.parse().ok());
    let end = span.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let (mut storms, mut resident_after_two, mut evictions) = (0, 0, 0);
    while storms < 3 || end.is_some_and(|end| Instant::now() < end) {
        let (most, evicted) = storm(&server, &mut admin, &mut random);
        assert!(most > 1000, "only {most} pairs were ever kept: this tests nothing");
        evictions += evicted;
        nothing_is_kept(&server, &mut admin, &before);
        server.descriptors_become(descriptors);
        storms += 1;
        if storms == 2 {
            resident_after_two = server.resident_bytes();
        }
        // Keys and values have the lengths they had; the index and the arena have their own ways of storing them.
        let used = admin.info_of("memory", "used_memory");
        assert!(
            used < used_before + MIB as u64,
            "{used} bytes used after {storms} storms, {used_before} before; SEED={seed}"
        );
    }
    assert!(admin.info_of("stats", "tracking_pushes") > 10_000, "hardly anybody was told of anything");
    assert!(evictions > 0, "the bound was never reached");
    // What the allocator keeps for the next storm, it has by the second one.
    server.resident_falls_below(resident_after_two + 16 * MIB);
    server.stop();
}

#[test]
fn nothing_is_kept_for_those_who_left() {
    raise_descriptor_limit();
    let without = std::env::var_os("MILLRACE_WITHOUT_IO_URING").is_some();
    for (io, shards) in [("io_uring", "1"), ("epoll", "2"), ("io_uring", "4")] {
        if io == "epoll" || !without {
            soak(io, shards);
        }
    }
}
