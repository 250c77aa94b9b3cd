//! Several shards in one thread, from a seed: they answer as one does, and no client sees half of anything.
//!
//! `FLEET_SEED` replays one run of each test, exactly; `FLEET_RUNS` says how many there are otherwise (a hundred by
//! default, about half a minute; a million is a night). At the end stand the stories of what these runs have found.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use store::arena::HeapSource;
use store::config::{Config, Setting};
use store::engine::{Action, Engine, Seeds};
use store::session::{ConnectionId, Peer};
use store::shards::{Message, Place, Totals};
use store::time::{Clock, Nanos, Now};
use tests::fleet::{Fleet, Plan, alike, crowd};
use tests::random::{self, Random};

/// Runs of each test, unless `FLEET_RUNS` says otherwise.
const RUNS: u64 = 100;

#[test]
fn one_client_at_a_time_reads_what_one_shard_answers() {
    let commands = over_seeds(1, |plan, _| alike::one_at_a_time(plan, 600));
    println!("{commands} commands");
}

#[test]
fn clients_that_do_not_meet_read_what_one_shard_answers() {
    let bytes = over_seeds(1, |plan, random| {
        let clients = 1 + random.below(8);
        alike::streams(plan, clients, 200)
    });
    println!("{bytes} bytes of replies compared");
}

#[test]
fn no_client_sees_half_of_anything() {
    let replies = over_seeds(3, |plan, random| {
        let clients = 2 + random.below(8);
        let counts = crowd::run(plan, clients, 40)?;
        Ok(counts.replies)
    });
    println!("{replies} replies");
}

/// Draws so many plans, `times` as many as usual, and fails with the first that finds something.
fn over_seeds(times: u64, run: impl Fn(Plan, &mut Random) -> Result<usize, String>) -> usize {
    let number = |name: &str| {
        let text = std::env::var(name).ok()?;
        Some(text.parse::<u64>().unwrap_or_else(|_| panic!("{name}={text} is not a number below 2^64")))
    };
    let given = number("FLEET_SEED");
    let runs = number("FLEET_RUNS").unwrap_or(if given.is_some() { 1 } else { RUNS * times });
    let first = given.unwrap_or_else(random::seed);
    println!("{runs} runs from FLEET_SEED={first} on");
    let mut total = 0;
    for seed in (0..runs).map(|run| first.wrapping_add(run)) {
        let told = Told(seed);
        let mut random = Random::new(seed);
        let plan = Plan::draw(&mut random);
        match run(plan, &mut random) {
            Ok(count) => total += count,
            Err(error) => panic!("{plan:?}: {error}"),
        }
        drop(told);
    }
    total
}

/// Says which seed it was, however a run ends.
struct Told(u64);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("replay with FLEET_SEED={}", self.0);
        }
    }
}

// ------------------------------------------------------------------------------------------------ stories

/// A key that lies on a shard.
fn key_on(shard: usize, count: usize, name: &str) -> Vec<u8> {
    let place = Place { index: shard, count };
    let mut names = (0..).map(|number| format!("{name}:{number}").into_bytes());
    names.find(|key| place.shard_of(key) == shard).expect("every shard has keys")
}

fn resp(words: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

fn reply_bytes(fleet: &mut Fleet, shard: usize, commands: &[Vec<u8>]) -> usize {
    let wire = fleet.connect(shard);
    fleet.send_whole(wire, &commands.concat());
    fleet.run_until(Fleet::is_settled).unwrap_or_else(|error| panic!("{error}"));
    fleet.received(wire).len()
}

/// The other shard stopped answering a hop at a megabyte, to be asked for the rest when the client has read. The
/// connection measured all that it had not sent, and that was another megabyte, behind the missing reply: nothing
/// could be sent, and nothing was asked for.
#[test]
fn the_rest_of_a_hop_does_not_wait_for_what_stands_behind_it() {
    for seed in 0..20 {
        let mut fleet = Fleet::new(Plan { shards: 2, ..Plan::alone(seed) });
        let (large, small) = (key_on(1, 2, "large"), key_on(1, 2, "small"));
        let mine = key_on(0, 2, "mine");
        let commands = [
            resp(&[b"SETRANGE", &large, b"1100000", b"x"]),
            resp(&[b"SETRANGE", &mine, b"1100000", b"x"]),
            resp(&[b"SET", &small, b"x"]),
            resp(&[b"GET", &large]),
            resp(&[b"GET", &small]),
            resp(&[b"GET", &mine]),
        ];
        let bytes = reply_bytes(&mut fleet, 0, &commands);
        assert_eq!(bytes, 10 + 10 + 5 + 1_100_013 + 7 + 1_100_013, "seed {seed}");
        fleet.end().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }
}

/// One bulk string may be larger than `output-buffer-max`, which bounds what a command of many elements adds. A
/// connection was cut for a GET whose key was on another shard, and served where it was on its own.
#[test]
fn a_value_over_the_output_bound_is_answered_from_any_shard() {
    let mut fleet = Fleet::new(Plan { shards: 2, output_buffer_max: 65_536, ..Plan::alone(1) });
    for owner in 0..2 {
        let key = key_on(owner, 2, "large");
        let commands = [resp(&[b"SETRANGE", &key, b"100000", b"x"]), resp(&[b"GET", &key])];
        for shard in 0..2 {
            let bytes = reply_bytes(&mut fleet, shard, &commands);
            assert_eq!(bytes, 9 + 100_001 + 11, "a key of shard {owner}, asked on shard {shard}");
        }
    }
    fleet.end().unwrap_or_else(|error| panic!("{error}"));
}

const NOW: Now = Now { unix_us: 1_700_000_000_000_000, monotonic: Nanos(1_000_000_000) };

struct Standing;

impl Clock for Standing {
    fn monotonic(&self) -> Nanos {
        NOW.monotonic
    }
}

/// Shards whose every message is delivered by hand.
struct ByHand {
    engines: Vec<Engine>,
    pipes: BTreeMap<(usize, usize), VecDeque<Message>>,
    replies: BTreeMap<ConnectionId, Vec<u8>>,
}

impl ByHand {
    fn new(count: usize) -> ByHand {
        let totals = Totals::new(count);
        let mut config = Config::default();
        let debug = Setting::find(b"enable-debug-command").expect("a setting of the table");
        (debug.set)(&mut config, "yes").expect("one of its values");
        let engine = |index| {
            let place = Place { index, count };
            let source = Box::new(HeapSource::default());
            Engine::with_place(config.clone(), Seeds::default(), source, NOW, place, Arc::clone(&totals))
        };
        ByHand { engines: (0..count).map(engine).collect(), pipes: BTreeMap::new(), replies: BTreeMap::new() }
    }

    /// A client of a shard says something.
    fn say(&mut self, shard: usize, slot: u32, bytes: &[u8]) -> ConnectionId {
        let connection = ConnectionId { slot, generation: 1 };
        self.engines[shard].handle_connect(connection, Peer::default(), NOW);
        self.engines[shard].handle_receive(connection, bytes, NOW, &Standing);
        connection
    }

    /// The end of a turn. True: the shard is to stand still.
    fn turn(&mut self, shard: usize) -> bool {
        let engine = &mut self.engines[shard];
        let mut stalls = false;
        if !engine.is_lent() {
            engine.finish_turn(NOW);
            while let Some(action) = engine.poll_action() {
                match action {
                    Action::Flush(connection) => {
                        let output = engine.take_output(connection).unwrap_or_default();
                        self.replies.entry(connection).or_default().extend_from_slice(&output);
                        engine.handle_sent(connection, output, NOW, &Standing);
                    }
                    Action::Stall(_) => stalls = true,
                    _ => {}
                }
            }
            if stalls {
                engine.begin_stall();
            }
        }
        while let Some((to, message)) = engine.poll_message() {
            self.pipes.entry((shard, to)).or_default().push_back(message);
        }
        stalls
    }

    /// Delivers the first message from one to another, and ends the turn.
    fn deliver(&mut self, from: usize, to: usize) {
        let message = self.pipes.get_mut(&(from, to)).and_then(VecDeque::pop_front);
        let message = message.unwrap_or_else(|| panic!("{from} has said nothing to {to}"));
        self.engines[to].handle_message(from, message, NOW, &Standing);
        self.turn(to);
    }

    /// Delivers everything until nobody says anything.
    fn deliver_all(&mut self) {
        while let Some((&(from, to), _)) = self.pipes.iter().find(|(_, pipe)| !pipe.is_empty()) {
            self.deliver(from, to);
        }
    }
}

/// Shard 1 had asked shard 2 for all it has, and stood still before the answer came. Awake again it was lent to shard
/// 0, which then asked shard 2, which had just been lent to shard 1: all three waited for ever.
#[test]
fn a_shard_that_was_asked_for_and_is_not_wanted_any_more_finds_its_way_home() {
    let mut fleet = ByHand::new(3);
    let keys = [0, 1, 2].map(|shard| key_on(shard, 3, "key"));
    let mset = resp(&[b"MSET", &keys[0], b"x", &keys[1], b"x", &keys[2], b"x"]);
    let first = fleet.say(1, 1, &mset);
    fleet.turn(1);
    fleet.deliver(1, 0); // Borrow
    fleet.deliver(0, 1); // Lent: shard 1 asks shard 2
    fleet.say(1, 2, &resp(&[b"DEBUG", b"SLEEP", b"0.01"]));
    assert!(fleet.turn(1), "shard 1 falls asleep");
    fleet.deliver(1, 0); // Return
    fleet.engines[1].end_stall(NOW, &Standing);
    let second = fleet.say(0, 3, &mset);
    fleet.turn(0);
    fleet.deliver(0, 1); // Borrow
    fleet.deliver(1, 2); // the old Borrow
    fleet.deliver_all();
    for (index, engine) in fleet.engines.iter().enumerate() {
        assert_eq!(engine.unfinished(), None, "shard {index}");
    }
    for connection in [first, second] {
        assert_eq!(fleet.replies.get(&connection).map(Vec::as_slice), Some(&b"+OK\r\n"[..]));
    }
}
