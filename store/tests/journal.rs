//! Replies that wait for the log: nobody sees what a crash could take back, and nobody waits for anything else.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use store::arena::HeapSource;
use store::config::Config;
use store::engine::{Action, Engine, Seeds};
use store::journal::{Journal, Records};
use store::keyspace::{Keyspace, KeyspaceOptions};
use store::mutation::Mutation;
use store::session::{ConnectionId, Durability, Peer, Transport};
use store::time::{Clock, Nanos, Now};

const NOW: Now = Now { unix_us: 1_700_000_000_000_000, monotonic: Nanos(5_000_000_000) };

struct Still;

impl Clock for Still {
    fn monotonic(&self) -> Nanos {
        NOW.monotonic
    }
}

/// A shard with a log, and what its clients have received.
struct Node {
    engine: Engine,
    received: Vec<String>,
    closed: Vec<bool>,
    /// The effects of each record.
    log: Vec<Vec<u8>>,
    /// Connections may be cut off.
    aborts: bool,
}

impl Node {
    fn new(class: Durability) -> Node {
        let mut engine =
            Engine::new(Config::default(), Seeds::default(), Box::new(HeapSource::default()), NOW);
        engine.keep_journal(Journal::new(Arc::new(AtomicU64::new(1)), class));
        Node { engine, received: Vec::new(), closed: Vec::new(), log: Vec::new(), aborts: false }
    }

    fn connect(&mut self, transport: Transport) -> usize {
        let slot = self.received.len();
        self.received.push(String::new());
        self.closed.push(false);
        let peer = Peer { transport, address: format!("127.0.0.1:{slot}"), ..Peer::default() };
        self.engine.handle_connect(id(slot), peer, NOW);
        slot
    }

    fn send(&mut self, client: usize, input: &str) {
        self.engine.handle_receive(id(client), input.as_bytes(), NOW, &Still);
        self.turn();
    }

    /// Ends the turn: what may leave leaves.
    fn turn(&mut self) {
        self.engine.finish_turn(NOW);
        while let Some(action) = self.engine.poll_action() {
            match action {
                Action::Flush(connection) => {
                    if let Some(bytes) = self.engine.take_output(connection) {
                        let text = String::from_utf8(bytes.clone()).unwrap();
                        self.received[connection.slot as usize].push_str(&text);
                        self.engine.handle_sent(connection, bytes, NOW, &Still);
                    }
                }
                Action::Close(connection) => self.closed[connection.slot as usize] = true,
                Action::Abort(connection) if self.aborts => self.closed[connection.slot as usize] = true,
                other => panic!("{other:?}"),
            }
        }
        let mut records = Records::default();
        self.engine.shared_mut().take_records(&mut records);
        for (lsn, effects) in records.iter() {
            self.log.push(effects.to_vec());
            assert_eq!(lsn, self.log.len() as u64, "numbered from one, without a hole");
        }
    }

    fn durable(&mut self, lsn: u64) {
        self.engine.set_durable(lsn);
        self.turn();
    }

    fn take(&mut self, client: usize) -> String {
        std::mem::take(&mut self.received[client])
    }
}

fn id(slot: usize) -> ConnectionId {
    ConnectionId { slot: slot as u32, generation: 0 }
}

#[test]
fn a_write_is_answered_when_it_is_durable() {
    let mut node = Node::new(Durability::Always);
    let client = node.connect(Transport::Resp);
    node.send(client, "SET a 1\r\n");
    assert_eq!(node.take(client), "");
    assert_eq!(node.log.len(), 1);
    node.durable(1);
    assert_eq!(node.take(client), "+OK\r\n");
}

#[test]
fn only_reads_of_pending_keys_wait() {
    let mut node = Node::new(Durability::Always);
    let (writer, reader) = (node.connect(Transport::Resp), node.connect(Transport::Resp));
    node.send(writer, "SET a 1\r\n");
    node.durable(1);
    node.send(writer, "SET b 2\r\nDEL a\r\n");
    node.take(writer);
    node.send(reader, "GET c\r\nPING\r\n");
    assert_eq!(node.take(reader), "$-1\r\n+PONG\r\n", "neither shows what is pending");
    node.send(reader, "GET b\r\n");
    node.send(reader, "EXISTS a\r\n");
    node.send(reader, "PING\r\n");
    assert_eq!(node.take(reader), "", "a value, an absence, and what comes behind them");
    node.durable(2);
    assert_eq!(node.take(reader), "$1\r\n2\r\n");
    assert_eq!(node.take(writer), "", "the replies to one receive leave together");
    node.durable(3);
    assert_eq!(node.take(reader), ":0\r\n+PONG\r\n");
    assert_eq!(node.take(writer), "+OK\r\n:1\r\n");
}

#[test]
fn what_is_about_all_keys_waits_for_all_of_them() {
    for question in ["DBSIZE", "KEYS *", "SCAN 0", "RANDOMKEY", "INFO keyspace", "FLUSHALL"] {
        let mut node = Node::new(Durability::Always);
        let (writer, reader) = (node.connect(Transport::Resp), node.connect(Transport::Resp));
        node.send(writer, "SET a 1\r\n");
        node.send(reader, &format!("{question}\r\n"));
        assert_eq!(node.take(reader), "", "{question}");
        node.durable(2);
        assert_ne!(node.take(reader), "", "{question}");
    }
}

#[test]
fn after_a_pending_flush_every_key_is_pending() {
    let mut node = Node::new(Durability::Always);
    let (writer, reader) = (node.connect(Transport::Resp), node.connect(Transport::Resp));
    node.send(writer, "SET a 1\r\n");
    node.durable(1);
    node.send(writer, "FLUSHALL\r\n");
    node.send(reader, "GET a\r\n");
    assert_eq!(node.take(reader), "");
    node.durable(2);
    assert_eq!(node.take(reader), "$-1\r\n");
    node.send(reader, "GET a\r\n");
    assert_eq!(node.take(reader), "$-1\r\n");
}

#[test]
fn a_transaction_is_one_record_and_its_messages_wait_for_it() {
    let mut node = Node::new(Durability::Always);
    let (client, listener) = (node.connect(Transport::Resp), node.connect(Transport::Resp));
    node.send(listener, "SUBSCRIBE news\r\n");
    node.take(listener);
    node.send(client, "MULTI\r\nSET a 1\r\nINCR n\r\nPUBLISH news hello\r\nEXEC\r\n");
    assert_eq!(node.log.len(), 1);
    assert_eq!(node.take(listener), "");
    node.durable(1);
    assert!(node.take(client).ends_with("*3\r\n+OK\r\n:1\r\n:1\r\n"));
    assert!(node.take(listener).ends_with("hello\r\n"));
    node.send(client, "PUBLISH news again\r\n");
    assert_eq!((node.take(client), node.take(listener).ends_with("again\r\n")), (":1\r\n".into(), true));
}

#[test]
fn a_command_that_changes_nothing_is_no_record() {
    let mut node = Node::new(Durability::Always);
    let client = node.connect(Transport::Resp);
    node.send(client, "SET a 1 XX\r\nDEL b\r\nEXPIRE b 10\r\nGETDEL b\r\nPERSIST b\r\nINCRBY a x\r\n");
    assert!(node.log.is_empty());
    assert!(!node.take(client).is_empty());
}

#[test]
fn a_client_that_ends_hears_its_last_words_first() {
    let mut node = Node::new(Durability::Always);
    let client = node.connect(Transport::Resp);
    node.send(client, "SET a 1\r\nQUIT\r\n");
    assert!(!node.closed[client]);
    node.durable(1);
    assert_eq!(node.take(client), "+OK\r\n+OK\r\n");
    assert!(node.closed[client]);
}

#[test]
fn http_waits_as_well() {
    let mut node = Node::new(Durability::Always);
    let client = node.connect(Transport::Http);
    node.send(client, "PUT /v1/keys/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nx");
    node.send(client, "GET /v1/keys/a HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(node.take(client), "");
    node.durable(1);
    let text = node.take(client);
    assert!(text.starts_with("HTTP/1.1 201") && text.ends_with("\r\n\r\nx"), "{text}");
}

#[test]
fn refused_writes_are_told_and_reads_go_on() {
    let mut node = Node::new(Durability::Always);
    let client = node.connect(Transport::Resp);
    node.send(client, "SET a 1\r\n");
    node.durable(1);
    node.take(client);
    node.engine.shared_mut().refuse_writes(Some("the disk is full".into()));
    node.send(client, "SET a 2\r\nGET a\r\nMULTI\r\nSET a 3\r\nEXEC\r\n");
    let text = node.take(client);
    assert!(text.starts_with("-MISCONF the disk is full\r\n$1\r\n1\r\n+OK\r\n-MISCONF"), "{text}");
    assert!(text.ends_with("-EXECABORT Transaction discarded because of previous errors.\r\n"), "{text}");
    assert_eq!(node.log.len(), 1);
    node.engine.shared_mut().refuse_writes(None);
    node.send(client, "SET a 4\r\n");
    assert_eq!(node.log.len(), 2);
}

#[test]
fn a_weaker_promise_does_not_wait() {
    let mut node = Node::new(Durability::EverySecond);
    let client = node.connect(Transport::Resp);
    node.send(client, "SET a 1\r\nGET a\r\n");
    assert_eq!(node.take(client), "+OK\r\n$1\r\n1\r\n");
    assert_eq!(node.log.len(), 1);
}

/// Random clients, a log that becomes durable at random, and after every step the question: were the power cut now, would
/// anybody have seen what is lost? Each client owns keys with counters it increments; what it has been told must be
/// in the records that are durable.
#[test]
fn nobody_has_seen_what_a_crash_would_take_back() {
    let seed: u64 = match std::env::var("MILLRACE_SEED") {
        Ok(text) => text.parse().expect("MILLRACE_SEED is a number"),
        Err(_) => std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64,
    };
    eprintln!("MILLRACE_SEED={seed}");
    let mut random = seed | 1;
    let mut below = move |bound: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random >> 11) % bound
    };
    let mut node = Node::new(Durability::Always);
    let clients: Vec<usize> = (0..6).map(|_| node.connect(Transport::Resp)).collect();
    let mut durable = 0;
    let mut checked = 0;
    for _ in 0..1500 {
        let client = clients[below(6) as usize];
        let mut input = String::new();
        for _ in 0..=below(5) {
            let key = below(8);
            input.push_str(&match below(4) {
                0 => format!("GET n{key}\r\n"),
                1 => format!("MULTI\r\nINCR n{key}\r\nINCR m{key}\r\nEXEC\r\n"),
                _ => format!("INCR n{key}\r\n"),
            });
        }
        node.send(client, &input);
        if below(3) == 0 {
            durable += below(node.log.len() as u64 - durable + 1);
            node.durable(durable);
        }
        // The highest number anybody was told stands in the durable part of the log.
        let mut keyspace = Keyspace::new(KeyspaceOptions::default(), Box::new(HeapSource::default()));
        if below(20) != 0 {
            continue;
        }
        for record in &node.log[..durable as usize] {
            let mut rest = &record[..];
            while !rest.is_empty() {
                keyspace.apply(&Mutation::decode(&mut rest).unwrap(), NOW).unwrap();
            }
        }
        let sum: u64 = (0..8)
            .map(|key| {
                let key = format!("n{key}");
                let hash = keyspace.hash(key.as_bytes());
                let value = keyspace.get(key.as_bytes(), hash, NOW).map(|entry| entry.value.to_vec());
                value.map_or(0, |value| String::from_utf8(value).unwrap().parse::<u64>().unwrap())
            })
            .sum();
        let increments = node
            .received
            .iter()
            .flat_map(|text| text.split("\r\n"))
            .filter(|line| line.starts_with(':'))
            .count() as u64;
        // Every reply to an INCR of n or m is one number; m's are told with n's, two by two.
        let pairs = node.received.iter().map(|text| text.matches("*2\r\n").count() as u64).sum::<u64>();
        assert!(increments - pairs <= sum, "told {increments} with {pairs} pairs, durable {sum}");
        checked += 1;
    }
    assert!(checked > 50 && durable > 100);
    node.durable(node.log.len() as u64);
    assert!(!node.engine.shared().journal.as_ref().unwrap().is_waited_for());
}

#[test]
fn a_client_may_ask_for_less_and_for_more_than_the_setting() {
    let mut node = Node::new(Durability::Always);
    let client = node.connect(Transport::Resp);
    node.send(client, "CLIENT DURABILITY\r\nCLIENT DURABILITY Off\r\nSET a 1\r\nCLIENT DURABILITY\r\n");
    assert_eq!(node.take(client), "$6\r\nalways\r\n+OK\r\n+OK\r\n$3\r\noff\r\n");
    node.send(client, "MULTI\r\nSET a 2\r\nEXEC\r\nCLIENT DURABILITY x\r\n");
    let text = node.take(client);
    assert!(text.contains("*1\r\n+OK\r\n-ERR CLIENT DURABILITY must be ALWAYS"), "{text}");
    node.send(client, "RESET\r\nSET a 3\r\n");
    assert_eq!(node.take(client), "", "RESET puts it back");
    node.durable(3);
    node.take(client);
    let mut node = Node::new(Durability::EverySecond);
    let client = node.connect(Transport::Resp);
    node.send(client, "CLIENT DURABILITY always\r\n");
    node.take(client);
    node.engine.handle_receive(id(client), b"SET a 1\r\n", NOW, &Still);
    assert!(node.engine.shared_mut().take_flush_wish(), "it asks for the flush it waits for");
    node.turn();
    assert_eq!(node.take(client), "");
    node.durable(1);
    assert_eq!(node.take(client), "+OK\r\n");
    node.send(client, "CLIENT DURABILITY default\r\nSET a 2\r\n");
    assert_eq!(node.take(client), "+OK\r\n+OK\r\n");
}

/// Under `everysec` hardly anybody waits, so nobody keeps a table of what is on its way: who does wait, waits for all.
#[test]
fn under_everysec_a_careful_reader_waits_for_the_last_write_to_any_key() {
    let mut node = Node::new(Durability::EverySecond);
    let (writer, reader) = (node.connect(Transport::Resp), node.connect(Transport::Resp));
    node.send(reader, "CLIENT DURABILITY always\r\n");
    node.take(reader);
    node.send(writer, "SET a 1\r\nSET b 1\r\n");
    assert_eq!(node.take(writer), "+OK\r\n+OK\r\n");
    node.send(reader, "GET a\r\n");
    assert_eq!(node.take(reader), "");
    node.durable(1);
    assert_eq!(node.take(reader), "", "the key's own write is durable, the last one is not");
    node.durable(2);
    assert_eq!(node.take(reader), "$1\r\n1\r\n");
    node.send(reader, "GET a\r\n");
    assert_eq!(node.take(reader), "$1\r\n1\r\n", "nothing is on its way");
}

/// A shard without a log.
fn without_log() -> Node {
    let engine = Engine::new(Config::default(), Seeds::default(), Box::new(HeapSource::default()), NOW);
    Node { engine, received: Vec::new(), closed: Vec::new(), log: Vec::new(), aborts: false }
}

#[test]
fn without_a_log_nothing_is_promised() {
    // `turn` collects records, of which there are none.
    let mut node = without_log();
    let client = node.connect(Transport::Resp);
    node.send(client, "CLIENT DURABILITY\r\nCLIENT DURABILITY off\r\nCLIENT DURABILITY everysec\r\n");
    let text = node.take(client);
    assert!(text.starts_with("$3\r\noff\r\n+OK\r\n-ERR CLIENT DURABILITY everysec needs a log"), "{text}");
    node.send(client, "WAITAOF 1 0 0\r\nWAITAOF 0 0 0\r\nCONFIG GET appendonly\r\n");
    assert_eq!(
        node.take(client),
        "-ERR WAITAOF cannot be used when numlocal is set but appendonly is disabled.\r\n*2\r\n:0\r\n:0\r\n\
         *2\r\n$10\r\nappendonly\r\n$2\r\nno\r\n"
    );
    let http = node.connect(Transport::Http);
    node.send(http, "GET /v1/keys/a HTTP/1.1\r\nHost: localhost\r\nX-Millrace-Durability: always\r\n\r\n");
    assert!(node.take(http).starts_with("HTTP/1.1 409"));
}

#[test]
fn an_http_request_has_a_class_of_its_own() {
    let put = |class: &str| {
        format!("PUT /v1/keys/a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n{class}\r\nx")
    };
    let mut node = Node::new(Durability::Always);
    let client = node.connect(Transport::Http);
    node.send(client, &put("X-Millrace-Durability: off\r\n"));
    assert!(node.take(client).starts_with("HTTP/1.1 201"));
    node.send(client, &put(""));
    assert_eq!(node.take(client), "", "the next request asked for nothing");
    node.durable(2);
    assert!(node.take(client).starts_with("HTTP/1.1 204"));
    node.send(client, &put("X-Millrace-Durability: sometimes\r\n"));
    let text = node.take(client);
    assert!(text.starts_with("HTTP/1.1 400") && text.contains("always, everysec or off"), "{text}");
}

#[test]
fn waitaof_waits_for_the_last_write_and_no_longer_than_asked() {
    let mut node = Node::new(Durability::EverySecond);
    let client = node.connect(Transport::Resp);
    node.send(client, "WAITAOF 1 0 0\r\nWAITAOF 2 0 0\r\nWAITAOF 1 0 -1\r\n");
    assert_eq!(
        node.take(client),
        "*2\r\n:1\r\n:0\r\n-ERR value is out of range, value must between 0 and 1\r\n-ERR timeout is negative\r\n"
    );
    node.send(client, "SET a 1\r\nWAITAOF 1 0 0\r\nPING\r\n");
    assert_eq!(node.take(client), "+OK\r\n", "what stands behind waits, too");
    assert_eq!(node.engine.first_awaited(), Some(1));
    node.send(client, "GET a\r\n");
    assert_eq!(node.take(client), "");
    node.durable(1);
    assert_eq!(node.take(client), "*2\r\n:1\r\n:0\r\n+PONG\r\n$1\r\n1\r\n");
    node.send(client, "SET a 2\r\nWAITAOF 0 0 0\r\nWAITAOF 1 0 50\r\nPING\r\n");
    assert_eq!(node.take(client), "+OK\r\n*2\r\n:0\r\n:0\r\n");
    assert_eq!(node.engine.poll_timeout(NOW), Some(Nanos(50_000_000)));
    let late = |ms: u64| Now { monotonic: Nanos(NOW.monotonic.0 + ms * 1_000_000), ..NOW };
    node.engine.finish_turn(late(49));
    node.turn();
    assert_eq!(node.take(client), "");
    node.engine.finish_turn(late(50));
    node.turn();
    assert_eq!(node.take(client), "*2\r\n:0\r\n:0\r\n+PONG\r\n");
    assert_eq!(node.engine.first_awaited(), None);
    node.send(client, "WAITAOF 1 0 0\r\n");
    node.engine.shared_mut().refuse_writes(Some("the disk is gone".into()));
    node.engine.shared_mut().fail_pending();
    node.turn();
    assert!(node.take(client).starts_with("-MISCONF the last write will not be durable: the disk is gone"));
    node.send(client, "INFO persistence\r\n");
    let text = node.take(client);
    for line in ["aof_enabled:1", "aof_last_write_status:err", "durable_lsn:1", "latest_lsn:2"] {
        assert!(text.contains(&format!("{line}\r\n")), "{line} in {text}");
    }
}

/// Plain INFO was cut off once the log had failed with writes on their way: just when somebody needs to look.
#[test]
fn an_operator_is_answered_while_writes_wait_and_after_the_log_has_failed() {
    let mut node = Node::new(Durability::Always);
    let (writer, reader) = (node.connect(Transport::Resp), node.connect(Transport::Resp));
    node.send(writer, "SET a 1\r\n");
    let asks =
        ["PING", "CLIENT LIST", "CONFIG GET maxmemory", "SLOWLOG LEN", "INFO persistence", "LATENCY LATEST"];
    for ask in asks {
        node.send(reader, &format!("{ask}\r\n"));
        assert_ne!(node.take(reader), "", "{ask} tells nothing of the write");
    }
    for ask in ["DBSIZE", "INFO", "KEYS *"] {
        let client = node.connect(Transport::Resp);
        node.send(client, &format!("{ask}\r\n"));
        assert_eq!(node.take(client), "", "{ask} tells of the write");
    }
    node.engine.shared_mut().refuse_writes(Some("the disk is gone".into()));
    node.aborts = true;
    node.engine.shared_mut().fail_pending();
    node.turn();
    assert!(node.closed[writer] && !node.closed[reader]);
    for ask in ["INFO", "INFO all", "INFO keyspace", "MEMORY STATS"].iter().chain(&asks) {
        node.send(reader, &format!("{ask}\r\n"));
        assert!(!node.take(reader).is_empty() && !node.closed[reader], "{ask} is answered");
    }
    let scraper = node.connect(Transport::Http);
    node.send(scraper, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(node.take(scraper).starts_with("HTTP/1.1 200 "));
    // What shows the write that is lost gets no answer, as before.
    node.send(reader, "GET a\r\n");
    assert!(node.take(reader).is_empty() && node.closed[reader]);
}

#[test]
fn what_the_log_has_done_is_shown() {
    let mut node = Node::new(Durability::Always);
    let metrics = node.engine.metrics_mut();
    metrics.log.records = 5;
    metrics.log.batch_records[2] = 2;
    metrics.log.flush_us[3] = 4;
    metrics.log.flush_us_total = 20;
    let client = node.connect(Transport::Http);
    node.send(client, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let text = node.take(client);
    for line in [
        "millrace_log_records_total 5",
        "millrace_log_batch_records_bucket{le=\"1\"} 0",
        "millrace_log_batch_records_bucket{le=\"3\"} 2",
        "millrace_log_batch_records_sum 5",
        "millrace_log_flush_seconds_count 4",
    ] {
        assert!(text.contains(&format!("{line}\n")), "{line} in {text}");
    }
}
