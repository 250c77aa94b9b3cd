//! Reads that name a record: answered from data that has it, made to wait, or refused; and what writes tell of theirs.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use store::arena::HeapSource;
use store::config::Config;
use store::engine::{Action, Engine, Seeds};
use store::journal::{Journal, Records};
use store::replication::{Edge, Hindrance, ReplicationState, Report, Role, Upstream};
use store::session::{ConnectionId, Durability, Peer, Transport};
use store::time::{Clock, Nanos, Now};

/// The branch of everything that was not lost.
const BRANCH: u64 = 0x0123_4567_89ab_cdef;

/// A replication thread that knows one branch before the present one, which ended with record 1.
struct Standin;

/// That branch.
const FORMER: u64 = 0xf0;

impl Edge for Standin {
    fn report(&self) -> Report {
        let upstream =
            Upstream { host: "10.0.0.1".into(), port: 6379, http_port: 8080, ..Upstream::default() };
        Report { upstream: Some(upstream), ..Report::default() }
    }

    fn follow(&self, _: Option<(String, u16)>) -> Result<u64, String> {
        Ok(1)
    }

    fn followed(&self, _: u64) -> Option<Result<(), String>> {
        Some(Ok(()))
    }

    fn replicas_with(&self, _: u64, _: bool) -> usize {
        0
    }

    fn holds_record(&self, branch: u64, lsn: u64) -> bool {
        branch == FORMER && lsn <= 1
    }
}

struct At(Now);

impl Clock for At {
    fn monotonic(&self) -> Nanos {
        self.0.monotonic
    }
}

/// A shard, and what its clients have received.
struct Server {
    engine: Engine,
    received: Vec<String>,
    closed: Vec<bool>,
    now: Now,
}

impl Server {
    fn new(log: Option<Durability>) -> Server {
        let now = Now { unix_us: 1_700_000_000_000_000, monotonic: Nanos(5_000_000_000) };
        let mut engine =
            Engine::new(Config::default(), Seeds::default(), Box::new(HeapSource::default()), now);
        if let Some(class) = log {
            engine.keep_journal(Journal::new(Arc::new(AtomicU64::new(1)), class));
        }
        let replication = &mut engine.shared_mut().replication;
        replication.state.set_branch(if log.is_some() { BRANCH } else { 0 }, 1);
        replication.edge = Some(Arc::new(Standin));
        Server { engine, received: Vec::new(), closed: Vec::new(), now }
    }

    fn primary() -> Server {
        Server::new(Some(Durability::Always))
    }

    /// One that has the first ten records, and a key of its primary.
    fn replica() -> Server {
        let mut server = Server::new(None);
        let client = server.connect(Transport::Resp);
        server.send(client, "SET k old\r\n");
        server.take(client);
        server.state().set_role(Role::Replica);
        server.state().set_branch(BRANCH, 2);
        server.state().set_linked(true);
        server.apply(10);
        server
    }

    fn state(&self) -> &ReplicationState {
        &self.engine.shared().replication.state
    }

    fn connect(&mut self, transport: Transport) -> usize {
        let slot = self.received.len();
        self.received.push(String::new());
        self.closed.push(false);
        let peer = Peer { transport, address: format!("127.0.0.1:{slot}"), ..Peer::default() };
        self.engine.handle_connect(id(slot), peer, self.now);
        slot
    }

    fn send(&mut self, client: usize, input: &str) {
        self.engine.handle_receive(id(client), input.as_bytes(), self.now, &At(self.now));
        self.turn();
    }

    fn get(&mut self, client: usize, fields: &str) {
        self.send(client, &format!("GET /v1/keys/k HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n"));
    }

    fn apply(&mut self, lsn: u64) {
        self.state().set_dealt_lsn(lsn);
        self.turn();
    }

    fn pass(&mut self, milliseconds: u64) {
        self.now.monotonic.0 += milliseconds * 1_000_000;
        self.turn();
    }

    fn durable(&mut self, lsn: u64) {
        self.engine.set_durable(lsn);
        self.turn();
    }

    fn turn(&mut self) {
        self.engine.finish_turn(self.now);
        while let Some(action) = self.engine.poll_action() {
            match action {
                Action::Flush(connection) => {
                    if let Some(bytes) = self.engine.take_output(connection) {
                        let text = String::from_utf8(bytes.clone()).unwrap();
                        self.received[connection.slot as usize].push_str(&text);
                        self.engine.handle_sent(connection, bytes, self.now, &At(self.now));
                    }
                }
                Action::Close(connection) => self.closed[connection.slot as usize] = true,
                Action::PauseReceive(_) | Action::ResumeReceive(_) => {}
                other => panic!("{other:?}"),
            }
        }
        self.engine.shared_mut().take_records(&mut Records::default());
    }

    fn take(&mut self, client: usize) -> String {
        std::mem::take(&mut self.received[client])
    }

    fn waits(&self) -> usize {
        self.engine.shared().reads.waits()
    }
}

fn id(slot: usize) -> ConnectionId {
    ConnectionId { slot: slot as u32, generation: 0 }
}

/// A response's field.
fn field<'a>(response: &'a str, name: &str) -> Option<&'a str> {
    response.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

#[test]
fn a_write_is_named_when_it_is_durable() {
    let mut node = Server::primary();
    let client = node.connect(Transport::Resp);
    node.send(client, "CLIENT LSN\r\n");
    assert_eq!(node.take(client), "$-1\r\n", "nothing is written yet");
    node.send(client, "CLIENT REPLY SKIP\r\nSET a 1\r\nCLIENT LSN\r\n");
    assert_eq!(node.take(client), "", "a token tells of the write");
    node.durable(1);
    assert_eq!(node.take(client), "$18\r\n0123456789abcdef:1\r\n");
    node.send(client, "GET a\r\nCLIENT LSN\r\n");
    assert_eq!(node.take(client), "$1\r\n1\r\n$18\r\n0123456789abcdef:1\r\n", "reads are no writes");
}

/// Found in review: a connection kept the number of its last write, and the name was made of it and the branch of the day.
#[test]
fn what_was_written_in_one_history_is_not_named_in_another() {
    let lost = "-LOST the last write of this connection, the record 0123456789abcdef:1, is not in this server's history";
    let mut node = Server::primary();
    let (client, http) = (node.connect(Transport::Resp), node.connect(Transport::Http));
    node.send(client, "SET a 1\r\n");
    node.durable(1);
    node.take(client);
    // The server follows another, which has a record 1, too, and is promoted again.
    node.state().set_role(Role::Replica);
    node.apply(3);
    node.send(client, "WAIT 0 0\r\nWAITAOF 0 0 0\r\nCLIENT LSN\r\n");
    let answers = node.take(client);
    assert!(answers.starts_with("-ERR WAIT cannot be used with replica instances."), "{answers}");
    assert!(answers.contains("-ERR WAITAOF cannot be used with replica instances."), "{answers}");
    assert!(answers.ends_with("\r\n$18\r\n0123456789abcdef:1\r\n"), "{answers}");
    node.state().set_branch(0xabc, 3);
    node.state().set_role(Role::Primary);
    node.send(client, "CLIENT LSN\r\nWAITLSN 0123456789abcdef:1 0\r\n");
    let answers = node.take(client);
    assert!(
        answers.starts_with("$18\r\n0123456789abcdef:1\r\n-LOST "),
        "it has the name that it was given: {answers}"
    );
    for command in ["WAIT 0 0", "WAIT 1 10", "WAITAOF 0 0 0", "WAITAOF 1 0 0"] {
        node.send(client, &format!("{command}\r\n"));
        let answer = node.take(client);
        assert!(answer.starts_with(lost), "{command}: {answer}");
    }
    // Who has written nothing here has lost nothing, and what is written from now on is of this history.
    let other = node.connect(Transport::Resp);
    node.send(other, "WAIT 0 0\r\n");
    assert_eq!(node.take(other), ":0\r\n");
    node.send(client, "SET b 2\r\nCLIENT LSN\r\nWAIT 0 0\r\n");
    node.durable(2);
    assert_eq!(node.take(client), "+OK\r\n$18\r\n0000000000000abc:2\r\n:0\r\n");
    node.send(http, "PUT /v1/keys/k HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
    node.durable(3);
    assert_eq!(field(&node.take(http), "X-Millrace-LSN"), Some("0000000000000abc:3"));
    assert_eq!(node.engine.shared().reads.lost, 5);
}

#[test]
fn what_was_written_in_a_history_that_goes_on_is_still_there() {
    let mut node = Server::primary();
    node.state().set_branch(FORMER, 1);
    let client = node.connect(Transport::Resp);
    node.send(client, "SET a 1\r\n");
    node.durable(1);
    node.take(client);
    node.state().set_branch(BRANCH, 2);
    node.send(client, "CLIENT LSN\r\nWAIT 0 0\r\nWAITAOF 1 0 0\r\nWAITLSN 00000000000000f0:1 0\r\n");
    assert_eq!(node.take(client), "$18\r\n00000000000000f0:1\r\n:0\r\n*2\r\n:1\r\n:0\r\n+OK\r\n");
}

/// A server that had no replicas named its writes by their numbers alone.
#[test]
fn a_number_without_a_history_is_not_told_in_one() {
    let mut node = Server::primary();
    node.state().set_branch(0, 0);
    let client = node.connect(Transport::Resp);
    node.send(client, "SET a 1\r\nCLIENT LSN\r\n");
    node.durable(1);
    assert_eq!(node.take(client), "+OK\r\n$1\r\n1\r\n");
    node.state().set_branch(BRANCH, 1);
    node.send(client, "CLIENT LSN\r\nWAIT 0 0\r\n");
    let answers = node.take(client);
    assert_eq!(
        answers.matches("-LOST the last write of this connection, the record 1, is").count(),
        2,
        "{answers}"
    );
}

#[test]
fn who_waits_for_replicas_hears_when_the_history_changes() {
    let mut node = Server::primary();
    let (client, silent) = (node.connect(Transport::Resp), node.connect(Transport::Resp));
    node.send(client, "SET a 1\r\n");
    node.send(silent, "SET a 1\r\nCLIENT REPLY SKIP\r\nWAIT 1 0\r\nPING\r\n");
    node.durable(2);
    node.take(silent);
    node.send(client, "WAIT 1 0\r\n");
    let other = node.connect(Transport::Resp);
    node.send(other, "INFO clients\r\n");
    assert!(node.take(other).contains("blocked_clients:2\r\n"), "they are blocked, as in Redis");
    node.state().set_branch(0xabc, 3);
    node.turn();
    assert!(
        node.take(client)
            .contains("-LOST the last write of this connection, the record 0123456789abcdef:1, ")
    );
    assert_eq!(node.take(silent), "+PONG\r\n");
    node.state().set_branch(BRANCH, 1);
    node.send(client, "WAIT 1 0\r\nPING\r\n");
    assert_eq!(node.take(client), "");
    node.state().set_role(Role::Replica);
    node.turn();
    assert_eq!(
        node.take(client),
        "-UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)\r\n+PONG\r\n"
    );
}

#[test]
fn a_response_to_a_write_names_it_and_no_other_does() {
    let mut node = Server::primary();
    let client = node.connect(Transport::Http);
    let ask = |node: &mut Server, request: &str, durable: u64| {
        node.send(client, &format!("{request}\r\n"));
        node.durable(durable);
        node.take(client)
    };
    let put = "PUT /v1/keys/k HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n";
    let created = ask(&mut node, put, 1);
    assert!(created.starts_with("HTTP/1.1 201 Created\r\nDate: "), "{created}");
    assert_eq!(field(&created, "X-Millrace-LSN"), Some("0123456789abcdef:1"));
    assert!(created.ends_with("Content-Length: 0\r\n\r\n"), "{created}");
    for (method, target, status, lsn) in [
        ("GET", "/v1/keys/k", "200", None),
        ("POST", "/v1/keys/n?op=incr", "200", Some("0123456789abcdef:2")),
        ("POST", "/v1/keys/k?op=incr", "409", None),
        ("DELETE", "/v1/keys/k", "204", Some("0123456789abcdef:3")),
        ("DELETE", "/v1/keys/k", "404", None),
        ("GET", "/v1/keys/k", "404", None),
    ] {
        let durable = lsn.map_or(3, |lsn| lsn[17..].parse().unwrap());
        let response = ask(&mut node, &format!("{method} {target} HTTP/1.1\r\nHost: localhost\r\n"), durable);
        assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{method} {target}: {response}");
        assert_eq!(field(&response, "X-Millrace-LSN"), lsn, "{method} {target}");
    }
    let mut node = Server::new(None);
    let client = node.connect(Transport::Http);
    node.send(client, &format!("{put}\r\n"));
    assert_eq!(field(&node.take(client), "X-Millrace-LSN"), None, "without a log there are no numbers");
}

#[test]
fn a_primary_has_what_it_wrote_and_waits_for_nothing() {
    let mut node = Server::primary();
    let client = node.connect(Transport::Resp);
    node.send(client, "SET a 1\r\n");
    node.durable(1);
    node.take(client);
    node.send(client, "WAITLSN 0123456789abcdef:1 0\r\nWAITLSN 1 0\r\nWAITLSN 0 0\r\n");
    assert_eq!(node.take(client), "+OK\r\n+OK\r\n+OK\r\n");
    node.send(client, "WAITLSN 2 10000\r\n");
    let refused = node.take(client);
    assert!(refused.starts_with("-BEHIND expected record 2, found records up to 1"), "{refused}");
    node.send(client, "WAITLSN 00000000000000f0:6 0\r\nWAITLSN 00000000000000f0:2 0\r\n");
    let answers = node.take(client);
    assert!(
        answers.starts_with("-LOST ") && answers.contains("\r\n-LOST "),
        "it ended with 1, and nothing follows: {answers}"
    );
    node.send(client, "WAITLSN 00000000000000f0:1 0\r\n");
    assert_eq!(node.take(client), "+OK\r\n", "the branch before this one");
    node.send(client, "WAITLSN 00000000000000ff:1 0\r\n");
    assert!(node.take(client).starts_with("-LOST "));
    let mut node = Server::new(None);
    let client = node.connect(Transport::Resp);
    node.send(client, "WAITLSN 1 0\r\n");
    assert!(node.take(client).contains("durability is off"));
}

#[test]
fn waitlsn_holds_up_its_connection_and_no_other() {
    let mut node = Server::replica();
    let (client, other) = (node.connect(Transport::Resp), node.connect(Transport::Resp));
    node.send(client, "PING\r\nWAITLSN 12 0\r\nGET k\r\n");
    node.send(client, "PING\r\n");
    assert_eq!(node.take(client), "+PONG\r\n");
    node.send(other, "GET k\r\n");
    assert_eq!(node.take(other), "$3\r\nold\r\n");
    node.apply(11);
    assert_eq!((node.take(client), node.waits()), (String::new(), 1));
    assert!(node.engine.poll_timeout(node.now).is_some_and(|timeout| timeout.0 <= 10_000_000));
    node.apply(13);
    assert_eq!(node.take(client), "+OK\r\n$3\r\nold\r\n+PONG\r\n");
    assert_eq!((node.waits(), node.engine.first_awaited_record()), (0, None));
}

#[test]
fn waitlsn_waits_no_longer_than_asked_and_says_what_is_there() {
    let mut node = Server::replica();
    let client = node.connect(Transport::Resp);
    node.send(client, "WAITLSN 12 50\r\nPING\r\n");
    node.pass(49);
    assert_eq!(node.take(client), "");
    node.pass(1);
    assert_eq!(
        node.take(client),
        "-BEHIND expected record 12, found records up to 10; ask again later, or the primary, 10.0.0.1:6379\r\n+PONG\r\n"
    );
    node.send(client, "WAITLSN 00000000000000ff:9 50\r\n");
    assert!(
        node.take(client).starts_with("-LOST the record 00000000000000ff:9 is not in this server's history")
    );
    // Whether it is of this history shows when it has come.
    node.send(client, "WAITLSN 00000000000000ff:11 50\r\n");
    assert_eq!(node.take(client), "");
    node.apply(11);
    assert!(node.take(client).starts_with("-LOST "));
    node.send(client, "MULTI\r\nWAITLSN 12 50\r\nWAITLSN 11 50\r\nEXEC\r\n");
    let answers = node.take(client);
    assert!(
        answers.contains("*2\r\n-BEHIND expected record 12, found") && answers.ends_with("+OK\r\n"),
        "{answers}"
    );
    node.send(client, "CLIENT REPLY SKIP\r\nWAITLSN 12 50\r\nPING\r\n");
    node.pass(50);
    assert_eq!(node.take(client), "+PONG\r\n", "nobody wants to hear of it");
    let figures = &node.engine.shared().reads;
    assert_eq!((figures.waited, figures.behind, figures.lost), (3, 3, 2));
}

#[test]
fn a_replica_that_follows_nobody_now_does_not_say_lost() {
    let mut node = Server::replica();
    let (client, other) = (node.connect(Transport::Resp), node.connect(Transport::Resp));
    node.state().set_linked(false);
    node.send(client, "WAITLSN 00000000000000ff:9 0\r\n");
    assert_eq!(node.take(client), "", "it may have fallen behind a failover");
    // Whoever waits behind it is not held up.
    node.send(other, "WAITLSN 12 0\r\n");
    node.apply(12);
    assert_eq!((node.take(other).as_str(), node.take(client).as_str()), ("+OK\r\n", ""));
    node.state().set_branch(0xff, 3);
    node.state().set_linked(true);
    node.turn();
    assert_eq!(node.take(client), "+OK\r\n", "and indeed it had");
}

#[test]
fn a_replica_without_a_log_keeps_what_it_had_when_it_is_promoted() {
    let mut node = Server::replica();
    let client = node.connect(Transport::Resp);
    node.state().set_role(Role::Primary);
    node.send(client, "WAITLSN 0123456789abcdef:10 0\r\nWAITLSN 11 0\r\nSET k v\r\nCLIENT LSN\r\n");
    let answers = node.take(client);
    assert!(answers.starts_with("+OK\r\n-BEHIND ") && answers.ends_with("+OK\r\n$-1\r\n"), "{answers}");
}

#[test]
fn many_wait_and_each_is_answered_in_its_time() {
    let mut node = Server::replica();
    let clients: Vec<usize> = (0..20).map(|_| node.connect(Transport::Resp)).collect();
    for (at, &client) in clients.iter().enumerate() {
        // Every other waits a short time only.
        node.send(client, &format!("WAITLSN {} {}\r\n", 30 - at, if at % 2 == 0 { 1000 } else { 10 }));
    }
    assert_eq!(node.engine.first_awaited_record(), Some(11));
    node.pass(10);
    for (at, &client) in clients.iter().enumerate() {
        assert_eq!(node.take(client).starts_with("-BEHIND"), at % 2 == 1, "{at}");
    }
    node.apply(20);
    for (at, &client) in clients.iter().enumerate() {
        assert_eq!(node.take(client) == "+OK\r\n", at % 2 == 0 && 30 - at <= 20, "{at}");
    }
    node.state().set_role(Role::Primary);
    node.turn();
    assert_eq!(node.waits(), 0, "it was promoted: nothing more comes");
    assert!(node.take(clients[0]).starts_with("-BEHIND"));
}

#[test]
fn whoever_leaves_waits_no_more() {
    let mut node = Server::replica();
    let (client, other, http) =
        (node.connect(Transport::Resp), node.connect(Transport::Resp), node.connect(Transport::Http));
    node.send(client, "WAITLSN 12 0\r\n");
    node.get(http, "X-Millrace-LSN: 12\r\n");
    node.send(other, "WAITLSN 12 0\r\n");
    assert_eq!(node.waits(), 3);
    node.engine.handle_disconnect(id(client), node.now);
    assert_eq!(node.waits(), 2);
    node.engine.begin_shutdown(node.now);
    node.turn();
    assert_eq!(node.waits(), 0);
    assert!(node.take(other).starts_with("-BEHIND"));
    assert!(node.take(http).starts_with("HTTP/1.1 409 "));
    assert_eq!((node.closed[other], node.closed[http]), (true, true));
}

#[test]
fn a_request_waits_for_its_record() {
    let mut node = Server::replica();
    let client = node.connect(Transport::Http);
    node.get(client, "X-Millrace-LSN: 0123456789abcdef:10\r\n");
    assert!(node.take(client).starts_with("HTTP/1.1 200 "), "it is there");
    node.get(client, "X-Millrace-LSN: 0123456789abcdef:12\r\n");
    node.send(client, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n");
    node.apply(11);
    assert_eq!(node.take(client), "");
    node.apply(12);
    let both = node.take(client);
    assert!(both.starts_with("HTTP/1.1 200 ") && both.contains("\r\n\r\noldHTTP/1.1 200 "), "{both}");
    assert!(both.ends_with("\r\n\r\nok"), "{both}");
    // A client that says no more is answered, and then the connection ends.
    node.get(client, "X-Millrace-LSN: 13\r\n");
    node.engine.handle_receive_end(id(client), node.now);
    node.turn();
    assert_eq!((node.take(client).as_str(), node.closed[client]), ("", false));
    node.apply(13);
    assert!(node.take(client).ends_with("\r\n\r\nold"));
    assert!(node.closed[client]);
}

#[test]
fn a_request_is_refused_with_where_to_ask() {
    let mut node = Server::replica();
    let client = node.connect(Transport::Http);
    node.get(client, "X-Millrace-LSN: 12\r\nX-Millrace-Wait-Ms: 0\r\n");
    let refused = node.take(client);
    assert!(refused.starts_with("HTTP/1.1 409 Conflict\r\n"), "{refused}");
    assert_eq!(field(&refused, "X-Millrace-Primary"), Some("10.0.0.1:8080"));
    assert_eq!(field(&refused, "X-Millrace-Applied-LSN"), Some("10"));
    assert!(
        refused.contains("\"detail\":\"BEHIND expected record 12, found records up to 10; ask"),
        "{refused}"
    );
    node.get(client, "X-Millrace-LSN: 12\r\nX-Millrace-Wait-Ms: 20\r\n");
    node.pass(19);
    assert_eq!(node.take(client), "");
    node.pass(1);
    assert!(node.take(client).starts_with("HTTP/1.1 409 "));
    node.get(client, "X-Millrace-LSN: 12\r\nConnection: close\r\n");
    node.pass(999);
    assert_eq!(node.take(client), "");
    node.pass(1);
    assert!(node.take(client).contains("\r\nConnection: close\r\n"), "a second is the usual time");
    assert!(node.closed[client]);
    let client = node.connect(Transport::Http);
    node.get(client, "X-Millrace-LSN: 00000000000000ff:3\r\n");
    let lost = node.take(client);
    assert!(lost.starts_with("HTTP/1.1 409 ") && lost.contains("\"detail\":\"LOST "), "{lost}");
}

#[test]
fn what_is_no_token_is_said_so() {
    let mut node = Server::replica();
    let (client, http) = (node.connect(Transport::Resp), node.connect(Transport::Http));
    for wrong in
        ["", "x", "-1", "+1", "1:1", "0123456789abcdef:", "0123456789abcdeg:1", "+123456789abcdef:1", "1 "]
    {
        node.send(client, &format!("*3\r\n$7\r\nWAITLSN\r\n${}\r\n{wrong}\r\n$1\r\n0\r\n", wrong.len()));
        assert!(node.take(client).starts_with("-ERR a token is what CLIENT LSN"), "{wrong:?}");
        if wrong != "1 " {
            node.get(http, &format!("X-Millrace-LSN: {wrong}\r\n"));
            assert!(node.take(http).starts_with("HTTP/1.1 400 "), "{wrong:?}");
        }
    }
    for wrong in ["x", "-1", "60001", "1.5"] {
        node.get(http, &format!("X-Millrace-LSN: 1\r\nX-Millrace-Wait-Ms: {wrong}\r\n"));
        assert!(node.take(http).starts_with("HTTP/1.1 400 "), "{wrong:?}");
    }
    node.get(http, "X-Millrace-LSN: 1\r\nX-Millrace-LSN: 2\r\n");
    assert!(node.take(http).starts_with("HTTP/1.1 400 "), "which of them?");
    let http = node.connect(Transport::Http);
    node.send(client, "WAITLSN 1 x\r\nWAITLSN 1 -1\r\nWAITLSN 1\r\n");
    let refused = node.take(client);
    assert_eq!(refused.matches("-ERR ").count(), 3, "{refused}");
    // What is about no key waits for no record.
    node.send(http, "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Millrace-LSN: 99\r\n\r\n");
    assert!(node.take(http).starts_with("HTTP/1.1 200 "));
}

#[test]
fn the_role_is_told_to_whoever_watches() {
    let mut node = Server::replica();
    let ask = |node: &mut Server, role: &str| {
        let client = node.connect(Transport::Http);
        node.send(client, &format!("GET /role/{role} HTTP/1.1\r\nHost: proxy.example\r\n\r\n"));
        let response = node.take(client);
        let (head, text) = response.split_once("\r\n\r\n").unwrap();
        assert_eq!(text.matches('\n').count(), 1, "{text}");
        (head[9..12].to_string(), text.trim_end().to_string())
    };
    let answer = |status: &str, text: &str| (status.to_string(), text.to_string());
    assert_eq!(ask(&mut node, "replica"), answer("200", "a replica of 10.0.0.1:6379"));
    assert_eq!(ask(&mut node, "primary"), answer("503", "this is a replica of 10.0.0.1:6379"));
    node.state().set_hindrance(Hindrance::Stale);
    let stale = answer(
        "503",
        "a replica of 10.0.0.1:6379, and not to be used: it may be further behind the primary than replica-max-lag",
    );
    assert_eq!(ask(&mut node, "replica"), stale);
    node.state().set_hindrance(Hindrance::Loading);
    assert_eq!(ask(&mut node, "replica").0, "503");
    // Where there is a password, whoever has none learns nothing of the primary.
    node.state().set_hindrance(Hindrance::None);
    let client = node.connect(Transport::Resp);
    node.send(client, "CONFIG SET requirepass secret\r\n");
    assert_eq!(node.take(client), "+OK\r\n");
    assert_eq!(ask(&mut node, "replica"), answer("200", "a replica"));
    assert_eq!(ask(&mut node, "primary"), answer("503", "this is a replica"));
    let mut node = Server::primary();
    assert_eq!(ask(&mut node, "primary"), answer("200", "a primary"));
    assert_eq!(ask(&mut node, "replica"), answer("503", "this is a primary"));
    let client = node.connect(Transport::Http);
    node.send(client, "PUT /role/primary HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
    assert!(node.take(client).starts_with("HTTP/1.1 405 "));
    node.send(client, "HEAD /role/primary HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(node.take(client).ends_with("Content-Length: 10\r\n\r\n"));
}
