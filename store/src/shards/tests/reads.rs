//! Tokens of writes that other shards executed, and waiting for records where the keys are another shard's.

use super::*;
use crate::replication::{ReplicationState, Role};

/// Three shards of one server, which share what they know of replication.
fn fleet() -> (Server, Arc<ReplicationState>) {
    let mut server = Server::new(3, &[]);
    let state = ReplicationState::new();
    state.set_branch(0xb0, 1);
    for engine in &mut server.engines {
        engine.shared_mut().replication.state = state.clone();
    }
    (server, state)
}

#[test]
fn a_write_on_another_shard_is_named_to_its_client() {
    let (mut server, _) = fleet();
    server.keep_log();
    let (client, http) = (server.connect(0), server.connect_as(0, Transport::Http));
    for (at, shard) in [2, 0, 1].into_iter().enumerate() {
        let lsn = 2 * at + 1;
        let key = on(shard, "k");
        let answers = server.say(client, lines(&[&format!("SET {key} 1"), "CLIENT LSN"]));
        assert_eq!(answers, format!("+OK\r\n{}", bulk(&format!("00000000000000b0:{lsn}"))), "shard {shard}");
        let put = format!("PUT /v1/keys/{key} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");
        let answer = server.say(http, put);
        let field = format!("\r\nX-Millrace-LSN: 00000000000000b0:{}\r\n", lsn + 1);
        assert!(answer.starts_with("HTTP/1.1 204 ") && answer.contains(&field), "shard {shard}: {answer}");
        assert!(answer.ends_with("\r\n\r\n"), "{answer}");
    }
    let both = format!("MSET {} 1 {} 2", on(1, "k"), on(2, "k"));
    let answers = server.say(client, lines(&[&both, "CLIENT LSN", "WAITLSN 00000000000000b0:7 0"]));
    assert_eq!(answers, format!("+OK\r\n{}+OK\r\n", bulk("00000000000000b0:7")), "over several shards");
}

#[test]
fn reads_of_another_shards_keys_wait_at_home() {
    let (mut server, state) = fleet();
    let client = server.connect(0);
    server.say(client, lines(&[&format!("MSET {} one {} two", on(1, "k"), on(2, "k"))]));
    state.set_role(Role::Replica);
    state.set_dealt_lsn(4);
    let http = server.connect_as(1, Transport::Http);
    let get = |lsn: u64| {
        let key = on(2, "k");
        format!("GET /v1/keys/{key} HTTP/1.1\r\nHost: localhost\r\nX-Millrace-LSN: {lsn}\r\n\r\n")
    };
    assert!(server.say(http, get(4)).ends_with("\r\n\r\ntwo"));
    let commands = [format!("GET {}", on(1, "k")), "WAITLSN 5 0".into(), format!("GET {}", on(2, "k"))];
    let answers = server.say(client, lines(&[&commands[0], &commands[1], &commands[2]]));
    assert_eq!((answers, server.say(http, get(5))), (bulk("one"), String::new()));
    state.set_dealt_lsn(5);
    server.run();
    assert_eq!(server.take(client), format!("+OK\r\n{}", bulk("two")));
    assert!(server.take(http).ends_with("\r\n\r\ntwo"));
}
