//! Tests of the engine: what a connection sees, cut, batched, paused and refused.

use super::*;
use crate::arena::HeapSource;
use crate::command::COMMANDS;
use core::cell::Cell;

const NOW: Now = Now { unix_us: 1_700_000_000_000_000, monotonic: Nanos(1_000_000_000) };

/// A clock that advances by a fixed step each time it is read.
struct Steps {
    time: Cell<u64>,
    step: u64,
}

impl Steps {
    fn of(step: u64) -> Steps {
        Steps { time: Cell::new(NOW.monotonic.0), step }
    }
}

impl Clock for Steps {
    fn monotonic(&self) -> Nanos {
        self.time.set(self.time.get() + self.step);
        Nanos(self.time.get())
    }
}

fn engine_with(settings: &[(&str, &str)]) -> Engine {
    let mut config = Config::default();
    for (name, value) in settings {
        let setting = crate::config::Setting::find(name.as_bytes()).unwrap();
        (setting.set)(&mut config, value).unwrap();
    }
    let seeds = Seeds { hash: 11, random: 12, run_id: [0xab; 20] };
    Engine::new(config, seeds, Box::new(HeapSource::with_limit(1 << 30)), NOW)
}

fn engine() -> Engine {
    engine_with(&[("enable-debug-command", "yes")])
}

fn id(slot: u32) -> ConnectionId {
    ConnectionId { slot, generation: 7 }
}

fn connect(engine: &mut Engine, slot: u32) -> ConnectionId {
    let peer = Peer { address: format!("127.0.0.1:{}", 5000 + slot), ..Peer::default() };
    engine.handle_connect(id(slot), peer, NOW);
    id(slot)
}

/// Everything the session has to say now, as if the peer read at once.
fn read(engine: &mut Engine, connection: ConnectionId) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(output) = engine.take_output(connection) {
        all.extend_from_slice(&output);
        engine.handle_sent(connection, output, NOW, &Steps::of(0));
    }
    all
}

fn ask(engine: &mut Engine, connection: ConnectionId, bytes: &[u8]) -> Vec<u8> {
    engine.handle_receive(connection, bytes, NOW, &Steps::of(100));
    read(engine, connection)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn actions(engine: &mut Engine) -> Vec<Action> {
    core::iter::from_fn(|| engine.poll_action()).collect()
}

/// A command as a client library sends it.
fn resp(arguments: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", arguments.len()).into_bytes();
    for argument in arguments {
        bytes.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
        bytes.extend_from_slice(argument);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// The generator of every random test here; its seed is in the messages.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ (mixed >> 29)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }
}

/// A pipeline in which every kind of thing happens: both request forms, errors, a transaction, RESP3, silence.
fn eventful_pipeline() -> Vec<u8> {
    let mut bytes = Vec::new();
    for arguments in [
        &[&b"SET"[..], b"key", b"value"][..],
        &[b"GET", b"key"],
        &[b"get", b"missing"],
        &[b"nonsense", b"a\0b", b"c"],
        &[b"GET"],
        &[b"MULTI"],
        &[b"INCR", b"counter"],
        &[b"INCR", b"key"],
        &[b"EXEC"],
        &[b"HELLO", b"3"],
        &[b"CLIENT", b"REPLY", b"SKIP"],
        &[b"PING"],
        &[b"SUBSCRIBE", b"channel"],
        &[b"PUBLISH", b"channel", b"to myself"],
        &[b"SET", b"empty", b""],
        &[b"MGET", b"key", b"missing", b"empty"],
    ] {
        bytes.extend_from_slice(&resp(arguments));
    }
    bytes.extend_from_slice(b"\r\nPING 'a b' \"\\x41\\n\"\r\n*0\r\n*-1\r\nECHO last\n");
    bytes.extend_from_slice(&resp(&[b"SET", b"long", &[b'x'; 300]]));
    bytes.extend_from_slice(b"*1\r\n$3\r\nbad\r\n*1\r\n:3\r\n");
    bytes
}

#[test]
fn every_split_of_a_pipeline_is_answered_like_the_whole() {
    let input = eventful_pipeline();
    let mut whole_engine = engine();
    let connection = connect(&mut whole_engine, 0);
    let whole = ask(&mut whole_engine, connection, &input);
    assert!(text(&whole).ends_with("-ERR Protocol error: expected '$', got ':'\r\n"), "{}", text(&whole));
    for cut in 0..input.len() {
        let mut engine = engine();
        let connection = connect(&mut engine, 0);
        let mut answer = ask(&mut engine, connection, &input[..cut]);
        answer.extend(ask(&mut engine, connection, &input[cut..]));
        assert_eq!(text(&answer), text(&whole), "cut at {cut}");
    }
    let mut engine = engine();
    let connection = connect(&mut engine, 0);
    let answer: Vec<u8> = input.chunks(1).flat_map(|byte| ask(&mut engine, connection, byte)).collect();
    assert_eq!(text(&answer), text(&whole), "byte by byte");
}

/// Random commands over a small key space, most of them valid.
fn random_command(random: &mut Random) -> Vec<u8> {
    let keys: [&[u8]; 4] = [b"a", b"b", b"c", b"a long key, longer than the others"];
    let values: [&[u8]; 5] = [b"1", b"-7", b"text", b"", b"9223372036854775807"];
    let (key, other, value) = (random.pick(&keys), random.pick(&keys), random.pick(&values));
    match random.below(24) {
        0..=4 => resp(&[b"GET", key]),
        5..=8 => resp(&[b"SET", key, value]),
        9 => resp(&[b"INCR", key]),
        10 => resp(&[b"APPEND", key, value]),
        11 => resp(&[b"DEL", key, other]),
        12 => resp(&[b"MGET", key, other, b"a"]),
        13 => resp(&[b"MSET", key, value, other, b"x"]),
        14 => resp(&[b"EXPIRE", key, b"100"]),
        15 => resp(&[b"MULTI"]),
        16 => resp(&[b"EXEC"]),
        17 => resp(&[b"WATCH", key]),
        18 => resp(&[b"DISCARD"]),
        19 => resp(&[b"RENAME", key, other]),
        20 => resp(&[random.pick::<[u8]>(&[b"foo", b"get", b"config"]), key, value]),
        21 => resp(&[b"HELLO", if random.below(2) == 0 { b"2" } else { b"3" }]),
        22 => resp(&[b"CLIENT", b"REPLY", random.pick::<[u8]>(&[b"ON", b"SKIP", b"ON"])]),
        _ => b"PING inline\r\n".to_vec(),
    }
}

#[test]
fn a_batch_is_answered_like_its_commands_one_by_one() {
    for seed in 0..40 {
        let mut random = Random(seed);
        let commands: Vec<Vec<u8>> = (0..300).map(|_| random_command(&mut random)).collect();
        let (mut one, mut batch) = (engine(), engine());
        let (a, b) = (connect(&mut one, 0), connect(&mut batch, 0));
        let single: Vec<u8> = commands.iter().flat_map(|command| ask(&mut one, a, command)).collect();
        let whole = ask(&mut batch, b, &commands.concat());
        assert_eq!(text(&single), text(&whole), "seed {seed}");
    }
}

#[test]
fn the_same_inputs_give_the_same_bytes() {
    let run = || {
        let mut random = Random(99);
        let mut engine = engine();
        let connections: Vec<_> = (0..4).map(|slot| connect(&mut engine, slot)).collect();
        let mut all = Vec::new();
        for step in 0..2000 {
            let connection = connections[random.below(connections.len())];
            all.extend(ask(&mut engine, connection, &random_command(&mut random)));
            if step % 100 == 0 {
                all.extend(ask(&mut engine, connection, &resp(&[b"SCAN", b"0"])));
                all.extend(ask(&mut engine, connection, &resp(&[b"RANDOMKEY"])));
                all.extend(ask(&mut engine, connection, &resp(&[b"CLIENT", b"LIST"])));
                all.extend(ask(&mut engine, connection, &resp(&[b"INFO", b"all"])));
            }
            engine.finish_turn(NOW);
        }
        all
    };
    assert_eq!(text(&run()), text(&run()));
}

#[test]
fn junk_never_panics_and_never_keeps_more_than_was_sent() {
    for seed in 0..200 {
        let mut random = Random(seed);
        let mut engine = engine();
        let connection = connect(&mut engine, 0);
        let mut sent = 0;
        for _ in 0..60 {
            let mut bytes: Vec<u8> = match random.below(3) {
                0 => (0..random.below(200)).map(|_| random.next() as u8).collect(),
                1 => {
                    let parts: [&[u8]; 10] =
                        [b"*", b"$", b"\r\n", b"1", b"3", b"GET", b"-", b"99999999999", b"\"", b" "];
                    (0..random.below(40)).flat_map(|_| random.pick(&parts).to_vec()).collect()
                }
                _ => random_command(&mut random),
            };
            if random.below(4) == 0 && !bytes.is_empty() {
                let at = random.below(bytes.len());
                bytes[at] = random.next() as u8;
            }
            sent += bytes.len();
            engine.handle_receive(connection, &bytes, NOW, &Steps::of(1));
            read(&mut engine, connection);
            let kept = engine.shared().buffer_bytes;
            assert!(kept <= 4 * sent + 64 * 1024, "seed {seed}: {kept} bytes kept of {sent} sent");
            if engine.shared_mut().sessions.get_mut(connection).is_none_or(|session| session.closing) {
                break;
            }
        }
        engine.handle_disconnect(connection, NOW);
        assert_eq!((engine.shared().buffer_bytes, engine.shared().clients), (0, 0), "seed {seed}");
    }
}

#[test]
fn a_client_that_does_not_read_600_megabytes_is_slowed_and_costs_little() {
    let mut engine = engine();
    let connection = connect(&mut engine, 0);
    ask(&mut engine, connection, &resp(&[b"SET", b"big", &vec![b'x'; 100_000]]));
    actions(&mut engine);
    // 6,000 replies of 100 kB, of which none is ever read.
    let request = resp(&[b"GET", b"big"]).repeat(60);
    for _ in 0..100 {
        engine.handle_receive(connection, &request, NOW, &Steps::of(1));
    }
    let bytes = engine.shared().buffer_bytes;
    assert!(bytes < 4 << 20, "{bytes} bytes of buffers for a client that does not read");
    let asked = actions(&mut engine);
    assert_eq!(asked, [Action::PauseReceive(connection), Action::Flush(connection)]);
    assert_eq!(engine.shared().metrics.output_pauses, 1);
    // Once it reads, everything it asked for arrives, and it may send again.
    let answer = read(&mut engine, connection);
    assert_eq!(answer.len(), 6000 * (100_000 + "$100000\r\n\r\n".len()));
    assert!(actions(&mut engine).contains(&Action::ResumeReceive(connection)));
    assert_eq!(ask(&mut engine, connection, b"PING\r\n"), b"+PONG\r\n");
}

#[test]
fn one_command_with_a_reply_beyond_the_bound_ends_its_client_and_no_other() {
    let mut engine = engine_with(&[("output-buffer-max", "1mb")]);
    let (greedy, other) = (connect(&mut engine, 0), connect(&mut engine, 1));
    ask(&mut engine, greedy, &resp(&[b"SET", b"big", &vec![b'x'; 100_000]]));
    let mut keys: Vec<&[u8]> = vec![b"MGET"];
    keys.resize(5000, b"big");
    engine.handle_receive(greedy, &resp(&keys), NOW, &Steps::of(1));
    assert!(actions(&mut engine).contains(&Action::Abort(greedy)));
    assert_eq!(engine.take_output(greedy), None);
    assert_eq!(engine.shared().metrics.output_limit_disconnections, 1);
    assert!(engine.shared().buffer_bytes < 1 << 20);
    assert_eq!(ask(&mut engine, other, b"PING\r\n"), b"+PONG\r\n");
    // The same inside a transaction.
    let queue: Vec<u8> = (0..100).flat_map(|_| resp(&[b"GET", b"big"])).collect();
    engine.handle_receive(other, &[b"MULTI\r\n", &queue[..], b"EXEC\r\n"].concat(), NOW, &Steps::of(1));
    assert!(actions(&mut engine).contains(&Action::Abort(other)));
    assert_eq!(engine.shared().metrics.output_limit_disconnections, 2);
}

#[test]
fn a_listener_that_does_not_read_is_closed_and_the_publisher_goes_on() {
    let mut engine = engine_with(&[("output-buffer-max", "1mb")]);
    let (deaf, publisher) = (connect(&mut engine, 0), connect(&mut engine, 1));
    ask(&mut engine, deaf, b"SUBSCRIBE news\r\n");
    let message = resp(&[b"PUBLISH", b"news", &[b'x'; 10_000]]);
    let answers: Vec<u8> = (0..300).flat_map(|_| ask(&mut engine, publisher, &message)).collect();
    assert!(actions(&mut engine).contains(&Action::Abort(deaf)));
    assert!(answers.starts_with(b":1\r\n") && answers.ends_with(b":0\r\n"));
    assert!(engine.shared().buffer_bytes < 1 << 20);
    assert_eq!(engine.shared().subscribers, 0);
}

#[test]
fn an_idle_session_owns_no_buffers() {
    let mut engine = engine();
    let connection = connect(&mut engine, 0);
    ask(&mut engine, connection, &resp(&[b"SET", b"a", b"b"]));
    ask(&mut engine, connection, b"*2\r\n$3\r\nGET\r\n$1");
    ask(&mut engine, connection, b"\r\na\r\n");
    let session = engine.shared_mut().sessions.get_mut(connection).unwrap();
    assert_eq!((session.output.capacity(), session.input.capacity()), (0, 0));
    assert!(size_of::<Session>() + size_of::<Peer>() <= 640, "{}", size_of::<Session>());
    assert_eq!(engine.shared().buffer_bytes, 0);
}

#[test]
fn a_huge_command_in_pieces_is_kept_once() {
    let mut engine = engine();
    let connection = connect(&mut engine, 0);
    let mut arguments: Vec<Vec<u8>> = vec![b"MSET".to_vec()];
    (0..20_000).for_each(|n| arguments.extend([format!("key:{n}").into_bytes(), vec![b'v'; 50]]));
    let borrowed: Vec<&[u8]> = arguments.iter().map(Vec::as_slice).collect();
    let request = resp(&borrowed);
    for piece in request.chunks(16 * 1024) {
        engine.handle_receive(connection, piece, NOW, &Steps::of(1));
    }
    assert_eq!(read(&mut engine, connection), b"+OK\r\n");
    assert_eq!(ask(&mut engine, connection, b"DBSIZE\r\n"), b":20000\r\n");
}

#[test]
fn too_many_clients_are_told_so_and_do_not_count() {
    let mut engine = engine_with(&[("maxclients", "1")]);
    let first = connect(&mut engine, 0);
    let second = connect(&mut engine, 1);
    assert_eq!(read(&mut engine, second), b"-ERR max number of clients reached\r\n");
    assert_eq!(actions(&mut engine), [Action::Flush(second), Action::Close(second)]);
    assert_eq!(ask(&mut engine, second, b"PING\r\n"), b"");
    engine.handle_disconnect(second, NOW);
    engine.handle_disconnect(first, NOW);
    let third = connect(&mut engine, 1);
    assert_eq!(ask(&mut engine, third, b"PING\r\n"), b"+PONG\r\n");
    assert_eq!(engine.shared().metrics.connections_rejected, 1);
}

#[test]
fn before_the_password_only_the_door_opens() {
    let mut engine = engine_with(&[("requirepass", "secret")]);
    let connection = connect(&mut engine, 0);
    let mut say = |line: &str| text(&ask(&mut engine, connection, line.as_bytes()));
    assert_eq!(say("GET a\r\n"), "-NOAUTH Authentication required.\r\n");
    assert_eq!(say("AUTH wrong\r\n"), "-WRONGPASS invalid username-password pair or user is disabled.\r\n");
    assert!(say("HELLO 3\r\n").starts_with("-NOAUTH HELLO must be called"));
    assert_eq!(say("AUTH secret\r\nGET a\r\n"), "+OK\r\n$-1\r\n");
    assert_eq!(say("RESET\r\nGET a\r\n"), "+RESET\r\n-NOAUTH Authentication required.\r\n");
    assert_eq!(say("*2\r\n$4\r\nAUTH\r\n$16385\r\n"), "-ERR Protocol error: unauthenticated bulk length\r\n");
}

#[test]
fn the_limits_before_the_password_end_in_the_middle_of_a_pipeline() {
    let mut engine = engine_with(&[("requirepass", "secret")]);
    let connection = connect(&mut engine, 0);
    let mut bytes = resp(&[b"AUTH", b"secret"]);
    bytes.extend(resp(&[b"SET", b"k", &vec![b'v'; 20_000]]));
    assert_eq!(ask(&mut engine, connection, &bytes), b"+OK\r\n+OK\r\n");
}

#[test]
fn words_of_http_end_the_connection_without_a_word() {
    for line in ["POST / HTTP/1.1\r\n", "Host: localhost\r\n", "PING\r\nhost: x\r\nSET a b\r\n"] {
        let mut engine = engine();
        let connection = connect(&mut engine, 0);
        assert_eq!(ask(&mut engine, connection, line.as_bytes()), b"");
        assert!(actions(&mut engine).contains(&Action::Abort(connection)), "{line}");
        assert_eq!(engine.shared().keyspace.len(), 0);
    }
}

/// Turning on without end, to evict what the policy may not touch, would take a whole core.
#[test]
fn a_full_server_with_nothing_to_evict_sleeps() {
    for policy in ["noeviction", "volatile-lru", "volatile-ttl", "volatile-random", "volatile-lfu"] {
        let mut engine = engine_with(&[("maxmemory-policy", policy)]);
        let client = connect(&mut engine, 0);
        assert_eq!(ask(&mut engine, client, b"SET kept for-ever\r\n"), b"+OK\r\n");
        assert_eq!(ask(&mut engine, client, b"CONFIG SET maxmemory 1\r\n"), b"+OK\r\n");
        for _ in 0..100 {
            engine.finish_turn(NOW);
            actions(&mut engine);
        }
        assert!(engine.poll_timeout(NOW).is_none_or(|wait| wait >= Nanos(100_000_000)), "{policy}");
        assert_eq!(ask(&mut engine, client, b"GET kept\r\n"), b"$8\r\nfor-ever\r\n", "{policy}");
    }
}

#[test]
fn memory_is_bounded_by_refusing_or_by_evicting() {
    let fill = |policy: &str| {
        let mut engine = engine_with(&[("maxmemory", "2mb"), ("maxmemory-policy", policy)]);
        let connection = connect(&mut engine, 0);
        let value = [b'v'; 1000];
        let mut refused = 0;
        for n in 0..10_000 {
            let key = format!("key:{n}");
            let answer = ask(&mut engine, connection, &resp(&[b"SET", key.as_bytes(), &value]));
            refused += usize::from(answer == b"-OOM command not allowed when used memory > 'maxmemory'.\r\n");
            engine.finish_turn(NOW);
        }
        assert!(engine.shared().used_memory() < 3 << 20, "{policy}: {}", engine.shared().used_memory());
        assert_eq!(ask(&mut engine, connection, b"PING\r\n"), b"+PONG\r\n");
        (refused, engine.shared().keyspace.stats().evicted)
    };
    let (refused, evicted) = fill("noeviction");
    assert!(refused > 7000 && evicted == 0, "{refused} refused, {evicted} evicted");
    let (refused, evicted) = fill("allkeys-lru");
    assert!(refused == 0 && evicted > 7000, "{refused} refused, {evicted} evicted");
}

#[test]
fn a_pause_holds_writes_back_and_lets_reads_through() {
    let mut engine = engine();
    let (a, b) = (connect(&mut engine, 0), connect(&mut engine, 1));
    assert_eq!(
        ask(&mut engine, a, b"CLIENT PAUSE 1000 WRITE\r\nGET x\r\nSET x 1\r\nGET x\r\n"),
        b"+OK\r\n$-1\r\n"
    );
    assert_eq!(ask(&mut engine, b, b"GET x\r\n"), b"$-1\r\n");
    assert!(actions(&mut engine).contains(&Action::PauseReceive(a)));
    assert!(engine.poll_timeout(NOW).is_some_and(|wait| wait <= Nanos(1_000_000_000)));
    let later = Now { monotonic: Nanos(NOW.monotonic.0 + 2_000_000_000), ..NOW };
    engine.finish_turn(later);
    assert_eq!(read(&mut engine, a), b"+OK\r\n$1\r\n1\r\n");
    assert!(actions(&mut engine).contains(&Action::ResumeReceive(a)));
}

#[test]
fn a_half_closed_client_gets_what_it_asked_for() {
    let mut engine = engine();
    let connection = connect(&mut engine, 0);
    ask(&mut engine, connection, &resp(&[b"SET", b"big", &vec![b'x'; 400_000]]));
    engine.handle_receive(connection, &resp(&[b"GET", b"big"]).repeat(9), NOW, &Steps::of(1));
    engine.handle_receive_end(connection, NOW);
    assert!(!actions(&mut engine).contains(&Action::Close(connection)), "there is more to execute");
    assert_eq!(read(&mut engine, connection).len(), 9 * (400_000 + "$400000\r\n\r\n".len()));
    assert!(actions(&mut engine).contains(&Action::Close(connection)));
}

#[test]
fn silent_clients_are_closed_after_the_timeout_but_listeners_are_not() {
    let mut engine = engine_with(&[("timeout", "5")]);
    let (silent, listener) = (connect(&mut engine, 0), connect(&mut engine, 1));
    ask(&mut engine, listener, b"SUBSCRIBE a\r\n");
    let later = Now { monotonic: Nanos(NOW.monotonic.0 + 6_000_000_000), ..NOW };
    engine.finish_turn(later);
    let asked = actions(&mut engine);
    assert!(asked.contains(&Action::Abort(silent)) && !asked.contains(&Action::Abort(listener)));
}

/// Whoever leaves without taking its replies would else hold them, and its place, for ever.
#[test]
fn a_client_that_leaves_and_never_reads_is_closed_after_the_timeout() {
    let mut engine = engine_with(&[("timeout", "5")]);
    let client = connect(&mut engine, 0);
    engine.handle_receive(client, b"PING\r\nQUIT\r\n", NOW, &Steps::of(1));
    assert!(engine.take_output(client).is_some(), "which stays on its way");
    let later = Now { monotonic: Nanos(NOW.monotonic.0 + 6_000_000_000), ..NOW };
    engine.finish_turn(later);
    assert!(actions(&mut engine).contains(&Action::Abort(client)));
}

#[test]
fn of_many_silent_clients_each_is_looked_at_within_a_second() {
    let mut engine = engine_with(&[("timeout", "5")]);
    let clients: Vec<ConnectionId> = (0..5000).map(|slot| connect(&mut engine, slot)).collect();
    let mut now = Now { monotonic: Nanos(NOW.monotonic.0 + 6_000_000_000), ..NOW };
    let end = now.monotonic.0 + 1_000_000_000;
    let mut aborted = 0;
    while now.monotonic.0 < end {
        engine.finish_turn(now);
        aborted += actions(&mut engine).iter().filter(|action| matches!(action, Action::Abort(_))).count();
        now.monotonic.0 += engine.poll_timeout(now).map_or(u64::MAX / 4, |wait| wait.0.max(1));
    }
    assert_eq!(aborted, clients.len());
}

#[test]
fn shutting_down_answers_what_was_executed_and_closes() {
    let mut engine = engine();
    let connection = connect(&mut engine, 0);
    engine.handle_receive(connection, b"PING\r\n", NOW, &Steps::of(1));
    engine.begin_shutdown(NOW);
    assert_eq!(ask(&mut engine, connection, b"PING\r\n"), b"+PONG\r\n");
    assert_eq!(actions(&mut engine), [Action::Flush(connection), Action::Close(connection)]);
    let connection = connect(&mut engine, 1);
    assert_eq!(ask(&mut engine, connection, b"SHUTDOWN NOSAVE\r\n"), b"");
}

#[test]
fn slow_commands_are_kept_with_the_time_they_stood_still() {
    let mut engine = engine();
    let connection = connect(&mut engine, 0);
    ask(&mut engine, connection, b"CONFIG SET latency-monitor-threshold 10\r\nDEBUG SLEEP 0.05\r\nGET a\r\n");
    assert!(actions(&mut engine).contains(&Action::Stall(Nanos(50_000_000))));
    let entries: Vec<_> = engine.shared().slowlog.iter().cloned().collect();
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].arguments, [b"DEBUG".to_vec(), b"SLEEP".to_vec(), b"0.05".to_vec()]);
    assert!((50_000..50_100).contains(&entries[0].duration_us));
    let history = text(&ask(&mut engine, connection, b"LATENCY HISTORY command\r\n"));
    assert_eq!(history, "*1\r\n*2\r\n:1700000000\r\n:50\r\n");
    // With a threshold of microseconds, quick commands are timed one by one too.
    ask(
        &mut engine,
        connection,
        b"CONFIG SET slowlog-log-slower-than 0\r\nSLOWLOG RESET\r\nGET a\r\nGET b\r\n",
    );
    let names: Vec<_> =
        engine.shared().slowlog.iter().map(|entry| text(&entry.arguments.join(&b' '))).collect();
    assert_eq!(names, ["GET b", "GET a", "SLOWLOG RESET"]);
    ask(
        &mut engine,
        connection,
        b"SLOWLOG RESET\r\nCONFIG SET requirepass secret\r\nHELLO 3 AUTH default secret\r\n",
    );
    let log = format!(
        "{:?}",
        engine.shared().slowlog.iter().map(|entry| text(&entry.arguments.join(&b' '))).collect::<Vec<_>>()
    );
    assert!(log.contains("requirepass (redacted)") && !log.contains("secret"), "{log}");
}

#[test]
fn every_call_is_counted_and_the_time_of_a_run_is_shared_out() {
    let mut engine = engine();
    let connection = connect(&mut engine, 0);
    engine.handle_receive(connection, &b"GET a\r\n".repeat(50), NOW, &Steps::of(1_000_000));
    ask(&mut engine, connection, b"GET\r\nINCR x\r\nSET x y\r\nINCR x\r\n");
    let stats = |name: &[u8]| {
        let command = command::lookup(name).unwrap();
        engine.shared().metrics.commands[usize::from(command.id)].clone()
    };
    let get = stats(b"get");
    assert_eq!((get.calls, get.rejected, get.failed), (50, 1, 0));
    // The one that was refused had its share of another run.
    assert!((990_000..=1_000_100).contains(&get.nanos), "{} for one step of the clock", get.nanos);
    let incr = stats(b"incr");
    assert_eq!((incr.calls, incr.failed), (2, 1));
    assert_eq!(engine.shared().metrics.errors[&b"ERR"[..]], 2);
    let info = text(&ask(&mut engine, connection, b"INFO commandstats\r\n"));
    assert!(
        info.contains("cmdstat_get:calls=50,usec=1000,usec_per_call=20.00,rejected_calls=1,failed_calls=0"),
        "{info}"
    );
}

#[test]
fn a_killed_client_is_gone_at_once() {
    let mut engine = engine();
    let (victim, killer) = (connect(&mut engine, 0), connect(&mut engine, 1));
    ask(&mut engine, victim, b"SUBSCRIBE a\r\n");
    assert_eq!(ask(&mut engine, killer, b"CLIENT KILL ADDR 127.0.0.1:5000\r\n"), b":1\r\n");
    assert_eq!(ask(&mut engine, killer, b"PUBSUB NUMSUB a\r\n"), b"*2\r\n$1\r\na\r\n:0\r\n");
    assert_eq!(ask(&mut engine, victim, b"PING\r\n"), b"");
    assert!(!text(&ask(&mut engine, killer, b"CLIENT LIST\r\n")).contains("127.0.0.1:5000"));
    assert!(actions(&mut engine).contains(&Action::Abort(victim)));
    assert_eq!(ask(&mut engine, killer, b"CLIENT KILL 127.0.0.1:5001\r\n"), b"+OK\r\n");
    assert!(actions(&mut engine).contains(&Action::Close(killer)));
}

#[test]
fn a_wrong_generation_reaches_nobody() {
    let mut engine = engine();
    let connection = connect(&mut engine, 0);
    let stale = ConnectionId { generation: 6, ..connection };
    engine.handle_receive(stale, b"SET a b\r\n", NOW, &Steps::of(1));
    engine.handle_disconnect(stale, NOW);
    assert_eq!(engine.take_output(stale), None);
    assert_eq!(ask(&mut engine, connection, b"DBSIZE\r\n"), b":0\r\n");
}

#[test]
fn settings_change_together_or_not_at_all() {
    let mut engine = engine();
    let connection = connect(&mut engine, 0);
    let answer = text(&ask(&mut engine, connection, b"CONFIG SET timeout 7 maxclients 0\r\n"));
    assert_eq!(
        answer,
        "-ERR CONFIG SET failed (possibly related to argument 'maxclients') - argument must be between 1 and \
         4294967295 inclusive\r\n"
    );
    assert_eq!(engine.config().timeout, 0);
    assert_eq!(ask(&mut engine, connection, b"CONFIG SET timeout 7 hz 20\r\n"), b"+OK\r\n");
    assert_eq!((engine.config().timeout, engine.config().hz), (7, 20));
}

#[test]
fn every_metric_is_in_the_prometheus_text_with_its_type() {
    let mut engine = engine();
    let connection = connect(&mut engine, 0);
    ask(&mut engine, connection, b"SET a b\r\nfoo\r\n");
    let mut out = Vec::new();
    crate::metrics::write_prometheus(engine.shared(), &mut out);
    let out = text(&out);
    for metric in crate::metrics::METRICS {
        assert!(out.contains(&format!("# TYPE millrace_{} ", metric.name)), "{}", metric.name);
    }
    assert!(out.contains("millrace_command_calls_total{command=\"set\"} 1\n"), "{out}");
    assert!(out.contains("millrace_errors_total{code=\"ERR\"} 1\n"));
    assert!(out.contains("millrace_keys 1\n"));
}

/// redis-cli --stat shows the first field that starts with `used_memory`: behind `used_memory_human` it showed 0B. And
/// the quick mend for that gave the field twice.
#[test]
fn info_memory_starts_with_the_plain_figure_and_names_no_field_twice() {
    let mut engine = engine();
    let connection = connect(&mut engine, 0);
    let info = text(&ask(&mut engine, connection, b"SET a b EX 100\r\nINFO everything\r\n"));
    let fields: Vec<&str> = info.lines().filter_map(|line| Some(line.split_once(':')?.0)).collect();
    let first = fields.iter().find(|field| field.starts_with("used_memory"));
    assert_eq!(first, Some(&"used_memory"), "{info}");
    for field in &fields {
        assert_eq!(fields.iter().filter(|other| *other == field).count(), 1, "{field} in {info}");
    }
}

#[test]
fn info_has_the_fields_that_tools_parse() {
    let mut engine = engine();
    let connection = connect(&mut engine, 0);
    let info = text(&ask(&mut engine, connection, b"SET a b EX 100\r\nINFO everything\r\n"));
    for field in [
        "redis_version:7.4.0\r\n",
        "run_id:abababababababababababababababababababab\r\n",
        "loading:0\r\n",
        "role:master\r\n",
        "connected_clients:1\r\n",
        "used_memory:",
        "maxmemory:0\r\n",
        "evicted_keys:0\r\n",
        "aof_enabled:0\r\n",
        "cluster_enabled:0\r\n",
        "db0:keys=1,expires=1,avg_ttl=100000\r\n",
    ] {
        assert!(info.contains(field), "no {field:?} in {info}");
    }
    let info = text(&ask(&mut engine, connection, b"INFO replication\r\n"));
    assert!(info.contains("# Replication\r\nrole:master") && !info.contains("# Server"));
}

#[test]
fn help_is_there_for_every_container() {
    let mut engine = engine();
    let connection = connect(&mut engine, 0);
    for container in COMMANDS.iter().filter(|command| command.is_container) {
        let answer = ask(&mut engine, connection, format!("{} HELP\r\n", container.name).as_bytes());
        assert!(answer.starts_with(b"*"), "{}: {}", container.name, text(&answer));
    }
}

/// Believes all pages but one.
struct AllBut(Option<(u32, u32)>);

impl crate::image::PageCheck for AllBut {
    fn check(&self, region: u32, page: u32, _bytes: &[u8]) -> Result<(), (u32, u32)> {
        if self.0 == Some((region, page)) { Err((1, 2)) } else { Ok(()) }
    }
}

/// An engine that lives on an image of another one's keys.
fn restarted(original: &mut Engine, damaged: Option<(u32, u32)>) -> Engine {
    let begin = original.begin_image(NOW).unwrap();
    let mut source = HeapSource::default();
    let mut regions: Vec<_> =
        begin.regions.iter().map(|region| source.allocate(region.bytes).unwrap()).collect();
    while original.image_step(100_000, &mut |part| {
        regions[part.region as usize][part.offset..][..part.bytes.len()].copy_from_slice(part.bytes);
    }) {}
    original.end_image();
    let seeds = Seeds { hash: 11, random: 13, run_id: [0xcd; 20] };
    let options = seeds.keyspace_options();
    let check = Box::new(AllBut(damaged));
    let keyspace = Keyspace::from_image(options, Box::new(source), &begin.meta, regions, check, NOW).unwrap();
    Engine::with_keyspace(Config::default(), seeds, keyspace, NOW, Place::default(), Totals::new(1))
}

fn filled() -> Engine {
    let mut engine = engine();
    let connection = connect(&mut engine, 1);
    for n in 0..3000 {
        let key = format!("key:{n}");
        assert_eq!(ask(&mut engine, connection, &resp(&[b"SET", key.as_bytes(), b"value"])), b"+OK\r\n");
    }
    engine
}

#[test]
fn a_restarted_shard_answers_at_once_and_warms_when_idle() {
    let mut engine = restarted(&mut filled(), None);
    let connection = connect(&mut engine, 2);
    assert_eq!(ask(&mut engine, connection, &resp(&[b"GET", b"key:2999"])), b"$5\r\nvalue\r\n");
    actions(&mut engine);
    let mut turns = 0;
    while engine.warm_progress().is_some() {
        engine.finish_turn(NOW);
        assert!(turns == 0 || engine.poll_timeout(NOW) == Some(Nanos(0)), "it goes on by itself");
        turns += 1;
        assert!(turns < 1000, "{:?}", engine.warm_progress());
    }
    assert!(turns > 30, "no turn does much of it: {turns}");
    while engine.poll_timeout(NOW) == Some(Nanos(0)) {
        engine.finish_turn(NOW);
        turns += 1;
        assert!(turns < 2000, "it comes to rest");
    }
    assert_eq!(ask(&mut engine, connection, &resp(&[b"DBSIZE"])), b":3000\r\n");
    assert_eq!(engine.damage(), None);
}

/// Whoever reads the file ahead says how far a shard may go; where it has come there, it is not busy, and looks again soon.
#[test]
fn warming_goes_no_further_than_it_may() {
    use alloc::sync::Arc;
    use core::sync::atomic::{AtomicU64, Ordering};
    let mut engine = restarted(&mut filled(), None);
    let bound = Arc::new(AtomicU64::new(0));
    engine.bound_warming(Arc::clone(&bound));
    let total = engine.warm_progress().unwrap().total_bytes;
    for allowed in [0, 4096, 300 << 10, 2 << 20, total - 4096] {
        bound.store(allowed, Ordering::Relaxed);
        for _ in 0..1000 {
            engine.finish_turn(NOW);
        }
        let progress = engine.warm_progress().expect("it is not over");
        let (checked, moved) = (progress.checked_bytes, progress.warmed_bytes);
        assert!(checked <= allowed && checked + (128 << 10) >= allowed, "{progress:?}, {allowed} allowed");
        assert!(moved <= allowed, "{progress:?}, {allowed} allowed");
        let soon = engine.poll_timeout(NOW);
        assert!(soon > Some(Nanos(0)) && soon <= Some(WARM_LOOK), "{soon:?} with {allowed} allowed");
        let shown = engine.shared().warm_figures();
        assert_eq!((shown.total_bytes, shown.checked_bytes), (total, checked));
    }
    bound.store(u64::MAX, Ordering::Relaxed);
    for _ in 0..1000 {
        engine.finish_turn(NOW);
    }
    assert_eq!(engine.warm_progress(), None);
    let shown = engine.shared().warm_figures();
    assert_eq!((shown.total_bytes, shown.checked_bytes, shown.warmed_bytes), (total, total, total));
}

#[test]
fn nothing_leaves_a_shard_that_met_damage() {
    // Everything is in the first page of records or in none: whichever it is, the answer must not leave.
    let mut engine = restarted(&mut filled(), Some((1, 0)));
    let connection = connect(&mut engine, 2);
    assert_eq!(ask(&mut engine, connection, &resp(&[b"GET", b"key:2999"])), b"$5\r\nvalue\r\n");
    let both =
        [resp(&[b"GET", b"key:2998"]), resp(&[b"GET", b"key:0"]), resp(&[b"SET", b"new", b"v"])].concat();
    assert_eq!(ask(&mut engine, connection, &both), b"", "a miss that is none is not told");
    let damage = engine.damage().expect("the page of the first record");
    assert_eq!((damage.region, damage.page), (1, 0));
    assert!(damage.to_string().contains("expected checksum 00000001, found 00000002"), "{damage}");
    assert_eq!(ask(&mut engine, connection, &resp(&[b"PING"])), b"");
    // In the background it is met as well.
    let mut engine = restarted(&mut filled(), Some((0, 511)));
    for _ in 0..1000 {
        engine.finish_turn(NOW);
    }
    assert!(engine.damage().is_some() && engine.warm_progress().is_some());
}

/// A write that a thousand were told of cost a thousand sends in one turn, and every other client's reply came after
/// them: 18 ms.
#[test]
fn messages_to_many_do_not_stand_before_replies() {
    let mut engine = engine();
    let crowd: Vec<_> = (0..100).map(|slot| connect(&mut engine, slot)).collect();
    for (n, listener) in crowd.iter().enumerate() {
        match n % 2 {
            0 => ask(&mut engine, *listener, b"SUBSCRIBE news\r\n"),
            _ => ask(&mut engine, *listener, b"HELLO 3\r\nCLIENT TRACKING ON BCAST\r\n"),
        };
    }
    let (writer, other) = (connect(&mut engine, 200), connect(&mut engine, 201));
    engine.finish_turn(NOW);
    actions(&mut engine);
    engine.handle_receive(writer, b"PUBLISH news one\r\nSET k v\r\n", NOW, &Steps::of(0));
    engine.handle_receive(other, b"GET k\r\n", NOW, &Steps::of(0));
    // One of those in line asks something: it is answered with the others, and has been told before.
    let asking = crowd[90];
    engine.handle_receive(asking, b"PING\r\n", NOW, &Steps::of(0));
    engine.finish_turn(NOW);
    let first = actions(&mut engine);
    let at = |connection| first.iter().position(|action| *action == Action::Flush(connection)).unwrap();
    assert!(at(writer) <= 8 && at(other) <= 9 && at(asking) <= 10, "replies come before the line: {first:?}");
    assert_eq!(first.len(), 8 + 3 + 32);
    assert!(
        text(&read(&mut engine, asking)).ends_with("news\r\n$3\r\none\r\n*2\r\n$4\r\npong\r\n$0\r\n\r\n")
    );
    read(&mut engine, other);
    // Nobody is forgotten, and nobody waits for anything to happen.
    let mut told: Vec<Action> = first;
    while engine.poll_timeout(NOW) == Some(Nanos(0)) {
        engine.finish_turn(NOW);
        let turn = actions(&mut engine);
        assert!(!turn.is_empty() && turn.len() <= 32, "{turn:?}");
        told.extend(turn);
        if told.len() < 100 {
            // Replies of later turns come first too.
            engine.handle_receive(other, b"GET k\r\n", NOW, &Steps::of(0));
            engine.finish_turn(NOW);
            let turn = actions(&mut engine);
            assert_eq!(turn[0], Action::Flush(other), "{turn:?}");
            read(&mut engine, other);
            told.extend(&turn[1..]);
        }
    }
    for listener in crowd {
        assert_eq!(
            told.iter().filter(|action| **action == Action::Flush(listener)).count(),
            1,
            "{listener:?}"
        );
        assert_eq!(read(&mut engine, listener).is_empty(), listener == asking);
    }
}

/// Replicas that have records up to these, and how often anybody asked.
#[derive(Default)]
struct Replicas {
    applied: std::sync::Mutex<Vec<u64>>,
    asked: std::sync::atomic::AtomicUsize,
}

impl crate::replication::Edge for Replicas {
    fn report(&self) -> crate::replication::Report {
        crate::replication::Report::default()
    }
    fn follow(&self, _: Option<(String, u16)>) -> Result<u64, String> {
        Ok(1)
    }
    fn followed(&self, _: u64) -> Option<Result<(), String>> {
        None
    }
    fn replicas_with(&self, lsn: u64, _: bool) -> usize {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.applied.lock().unwrap().iter().filter(|&&applied| applied >= lsn).count()
    }
    fn holds_record(&self, _: u64, _: u64) -> bool {
        false
    }
}

/// Found in review: every turn looked at every client in WAIT, and at all of them again for each that was answered.
#[test]
fn thousands_in_wait_cost_a_turn_nothing_and_are_answered_in_one_go() {
    const CLIENTS: u32 = 3000;
    let mut engine = engine();
    let replicas = Arc::new(Replicas::default());
    engine.shared_mut().replication.edge = Some(Arc::<Replicas>::clone(&replicas));
    let clients: Vec<ConnectionId> = (0..CLIENTS).map(|slot| connect(&mut engine, slot)).collect();
    for (number, &client) in clients.iter().enumerate() {
        // A third each: one replica, two, and three, which there will never be; the last ones for a second only.
        let (wanted, timeout) = (number % 3 + 1, if number % 3 == 2 { 1000 } else { 0 });
        let mut session = engine.shared_mut().sessions.take(client).unwrap();
        session.last_write = engine.shared().written(number as u64 + 1);
        engine.shared_mut().sessions.insert(session);
        assert_eq!(text(&ask(&mut engine, client, format!("WAIT {wanted} {timeout}\r\n").as_bytes())), "");
    }
    let asked = |replicas: &Replicas| replicas.asked.swap(0, Ordering::Relaxed);
    let turn = |engine: &mut Engine, now: Now| {
        asked(&replicas);
        engine.finish_turn(now);
        asked(&replicas)
    };
    assert!(turn(&mut engine, NOW) <= 4, "nobody has anything");
    *replicas.applied.lock().unwrap() = vec![100, 50];
    let cost = turn(&mut engine, NOW);
    assert!(cost <= 6 * 60, "{cost} questions for 50 answers");
    *replicas.applied.lock().unwrap() = vec![u64::MAX, 2000];
    let cost = turn(&mut engine, NOW);
    assert!(cost <= 6 * CLIENTS as usize, "{cost} questions for {CLIENTS} answers");
    let after = Now { monotonic: Nanos(NOW.monotonic.0 + 1_000_000_000), ..NOW };
    turn(&mut engine, after);
    for (number, &client) in clients.iter().enumerate() {
        let lsn = number as u64 + 1;
        let expected = match number % 3 {
            // Answered at the first of the two looks at which one had it.
            0 if lsn <= 50 => ":2\r\n",
            0 if lsn <= 100 => ":1\r\n",
            0 if lsn <= 2000 => ":2\r\n",
            0 => ":1\r\n",
            1 if lsn <= 2000 => ":2\r\n",
            1 => "",
            _ if lsn <= 2000 => ":2\r\n",
            _ => ":1\r\n",
        };
        assert_eq!(text(&read(&mut engine, client)), expected, "{number}");
    }
    let left = clients.iter().enumerate().filter(|(number, _)| number % 3 == 1 && *number >= 2000).count();
    assert_eq!(engine.shared().replica_waits.len(), left);
    assert_eq!(engine.shared().replica_waits.next_end(), None, "they wait for ever");
}

/// Each stayed in a list that every turn looked through.
#[test]
fn who_waits_for_replicas_and_leaves_is_forgotten() {
    let mut engine = engine();
    engine.shared_mut().replication.edge = Some(Arc::<Replicas>::default());
    for (slot, words) in [(0, "WAIT 100 0\r\n"), (1, "REPLICAOF 10.0.0.1 6379\r\n")] {
        let connection = connect(&mut engine, slot);
        assert_eq!(
            text(&ask(&mut engine, connection, words.as_bytes())),
            "",
            "{words}: it is answered later"
        );
        assert_eq!(engine.shared().replica_waits.len(), 1);
        engine.handle_disconnect(connection, NOW);
        assert_eq!(engine.shared().replica_waits.len(), 0, "{words}");
    }
}
