//! The breakdown by stage of a real server over real files: what it says adds up, and fits what a client measures.

#[allow(dead_code, reason = "other tests use the rest of it")]
mod harness;

use harness::{Client, Server};
use std::collections::HashMap;
use std::net::TcpStream;
use std::time::Instant;
use store::stages::{KINDS, STAGES};

const DRIVERS: [&str; 2] = ["io_uring", "epoll"];
const REQUESTS: u64 = 50;

/// Samples and nanoseconds of each stage, and of `total`, by `kind_stage`.
fn stages(client: &mut Client<TcpStream>) -> HashMap<String, (u64, u64)> {
    let info = String::from_utf8(client.call_bulk(&[b"INFO", b"stages"])).expect("INFO is text");
    let lines = info.lines().filter_map(|line| line.strip_prefix("stage_")?.split_once(":samples="));
    let figures = lines.map(|(name, rest)| {
        let (samples, rest) = rest.split_once(",nanoseconds=").expect("the time behind the samples");
        let nanoseconds = rest.split(',').next().expect("a number");
        (name.to_string(), (samples.parse().expect("a number"), nanoseconds.parse().expect("a number")))
    });
    figures.collect()
}

/// Every batch of a kind passes every stage, and the stages are all of its time.
fn adds_up(figures: &HashMap<String, (u64, u64)>) {
    for kind in KINDS {
        let total = figures[&format!("{kind}_total")];
        let of = |stage: &str| figures[&format!("{kind}_{stage}")];
        assert!(STAGES.iter().all(|stage| of(stage.name).0 == total.0), "{figures:?}");
        assert_eq!(STAGES.iter().map(|stage| of(stage.name).1).sum::<u64>(), total.1, "{kind}: {figures:?}");
    }
}

/// One request after the other, and how long the client waited in all.
fn ask(client: &mut Client<TcpStream>, command: &[&[u8]], reply: &[u8]) -> u64 {
    let began = Instant::now();
    for _ in 0..REQUESTS {
        client.send_command(command);
        client.expect(reply);
    }
    u64::try_from(began.elapsed().as_nanos()).expect("less than centuries")
}

#[test]
fn the_stages_of_writes_and_reads_add_up_to_no_more_than_the_client_waited() {
    for driver in DRIVERS {
        let arguments = ["--durability", "always", "--log-write-mode", "fdatasync", "--shards", "1"];
        let server = Server::start(driver, &[&arguments[..], &["--stage-sampling", "1"]].concat());
        let (mut client, mut watcher) = (server.client(), server.client());
        let waited_for_writes = ask(&mut client, &[b"SET", b"key", b"value"], b"+OK\r\n");
        let waited_for_reads = ask(&mut client, &[b"GET", b"key"], b"$5\r\nvalue\r\n");
        let figures = stages(&mut watcher);
        adds_up(&figures);
        let of = |name: &str| figures[name];
        assert_eq!((of("write_total").0, of("read_total").0), (REQUESTS, REQUESTS), "{driver}: {figures:?}");
        // Each write waited for a disk; nothing that was read was pending.
        assert!(of("write_flush").1 > 0 && of("write_log_wait").1 > 0, "{driver}: {figures:?}");
        assert_eq!((of("read_flush").1, of("read_log_wait").1), (0, 0), "{driver}: {figures:?}");
        for stage in ["execute", "reveal", "send"] {
            assert!(of(&format!("write_{stage}")).1 > 0, "{driver}, {stage}: {figures:?}");
        }
        for (kind, waited) in [("write", waited_for_writes), ("read", waited_for_reads)] {
            let total = of(&format!("{kind}_total")).1;
            // The completion of a send may be seen after the client has the reply: that part is not the client's.
            let seen = total - of(&format!("{kind}_send")).1;
            assert!(seen < waited, "{driver}, {kind}: {seen} of {waited} ns: {figures:?}");
        }
        assert_eq!(watcher.info_of("stages", "stage_samples_left_out"), 0, "{driver}");
        server.stop();
    }
}

#[test]
fn a_read_of_what_is_pending_waits_for_the_same_flush_and_sampling_can_be_changed() {
    let server =
        Server::start("io_uring", &["--durability", "always", "--shards", "1", "--stage-sampling", "0"]);
    let (mut writer, mut watcher) = (server.client(), server.client());
    ask(&mut writer, &[b"SET", b"key", b"value"], b"+OK\r\n");
    assert_eq!(watcher.info_of("stages", "stage_samples"), 0, "nothing was asked for");
    watcher.send_command(&[b"CONFIG", b"SET", b"stage-sampling", b"1"]);
    watcher.expect(b"+OK\r\n");
    // One batch: the GET is answered with the write it saw.
    for _ in 0..REQUESTS {
        writer.send(b"SET key value\r\n");
        writer.send(b"GET key\r\n");
        writer.expect(b"+OK\r\n$5\r\nvalue\r\n");
    }
    let figures = stages(&mut watcher);
    adds_up(&figures);
    assert!(figures["write_flush"].1 > 0, "{figures:?}");
    watcher.send_command(&[b"CONFIG", b"RESETSTAT"]);
    watcher.expect(b"+OK\r\n");
    assert!(stages(&mut watcher)["write_total"].0 == 0);
    server.stop();
}

#[test]
fn several_shards_add_up_with_the_way_over_another_shard() {
    for driver in DRIVERS {
        let arguments = ["--durability", "always", "--shards", "2", "--stage-sampling", "1"];
        let server = Server::start(driver, &arguments);
        let (mut client, mut watcher) = (server.client(), server.client());
        // The tags lie on one shard each, whichever has the connection.
        for key in [&b"{a}"[..], b"{b}", b"{c}", b"{d}", b"{e}", b"{f}"] {
            ask(&mut client, &[b"SET", key, b"value"], b"+OK\r\n");
        }
        let figures = stages(&mut watcher);
        adds_up(&figures);
        let of = |name: &str| figures[name];
        assert_eq!(of("write_total").0, 6 * REQUESTS, "{driver}: {figures:?}");
        // Where the key is another shard's, its wait for the log is part of the hop.
        assert!(of("write_hop").1 > 0 && of("write_flush").1 > 0, "{driver}: {figures:?}");
        server.stop();
    }
}
