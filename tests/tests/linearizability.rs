//! A real server under many clients, and the question whether one order of all operations explains every reply.
//!
//! `MILLRACE_SEED` replays what the clients send (not what the scheduler makes of it), `MILLRACE_BIN` names another
//! binary, `MILLRACE_LINEARIZABILITY_OPERATIONS` makes the runs longer.

use std::net::SocketAddr;
use std::time::Instant;
use tests::linearizability::Reply;
use tests::linearizability::checker::{Outcome, check_partitioned};
use tests::linearizability::clients::{self, GROUP_KEYS, OPENING_BALANCE, Plan, Use, use_of};
use tests::linearizability::history::{History, Operation};
use tests::linearizability::keyspace::{Command as Several, Keyspace, Transaction};
use tests::linearizability::register::{Command, Keyed, Register};
use tests::oracle::target::{Address, Process, millrace_binary};
use tests::random;

/// Every run is made with each of these.
const SHARDS: &[usize] = &[1, 2, 4];
const DRIVERS: [&str; 2] = ["io_uring", "epoll"];

/// Operations on single keys in all runs together, unless the environment says otherwise; half as many on several keys.
const OPERATIONS: usize = 600_000;
const CLIENTS: u32 = 8;

#[test]
fn operations_on_single_keys_have_an_order() {
    each_server(|server, address, seed| {
        let history = History::new();
        let began = Instant::now();
        clients::single_key(&plan(address, 24, seed, 1), &history);
        let operations = history.into_operations();
        let ran = began.elapsed();
        judge_registers(server, &operations, ran.as_secs_f64());
        enough(server, &operations, operations_wanted());
        stale_reads_are_found(&operations, seed);
    });
}

#[test]
fn operations_on_several_keys_have_an_order() {
    each_server(|server, address, seed| {
        let history = History::new();
        let began = Instant::now();
        let plan = plan(address, 9, seed, 2);
        clients::open_accounts(&plan, &history).expect("the server serves");
        clients::multi_key(&plan, &history);
        let operations = history.into_operations();
        let ran = began.elapsed();
        groups_are_whole_and_sums_stay(&operations);
        judge_groups(server, &operations, ran.as_secs_f64());
        enough(server, &operations, operations_wanted() / 2);
        for outcome in [Reply::Done, Reply::Aborted] {
            let is_it = |operation: &&Operation<Transaction, Vec<Reply>>| {
                let watches = !operation.input.watched.is_empty();
                watches && operation.output.as_deref() == Some(std::slice::from_ref(&outcome))
            };
            let count = operations.iter().filter(is_it).count();
            assert!(
                count > 20,
                "{count} transactions with WATCH ended with {outcome:?}: nothing was contended"
            );
        }
        torn_groups_are_found(&operations);
    });
}

fn each_server(run: impl Fn(&str, SocketAddr, u64)) {
    let binary = millrace_binary().unwrap_or_else(|error| panic!("{error}"));
    let seed = random::seed();
    println!("MILLRACE_SEED={seed}");
    for io in DRIVERS {
        for shards in SHARDS {
            let shards = shards.to_string();
            let arguments = ["--io", io, "--shards", &shards];
            let process =
                Process::start_millrace(&binary, &arguments, false).unwrap_or_else(|e| panic!("{e}"));
            let Address::Tcp(address) = process.address() else { panic!("TCP was asked for") };
            run(&format!("{io}, {shards} shards"), address.parse().expect("an address"), seed);
        }
    }
}

/// Of one run.
fn operations_wanted() -> usize {
    let given = std::env::var("MILLRACE_LINEARIZABILITY_OPERATIONS").ok();
    let number = |text: String| text.parse().expect("MILLRACE_LINEARIZABILITY_OPERATIONS is a number");
    given.map_or(OPERATIONS, number) / (DRIVERS.len() * SHARDS.len())
}

fn plan(address: SocketAddr, keys: u32, seed: u64, share: usize) -> Plan {
    Plan {
        address,
        first_client: 0,
        clients: CLIENTS,
        operations: operations_wanted() / share / CLIENTS as usize,
        keys,
        hot_keys: 0,
        pipeline_max: 4,
        hang_up_every: 2_000,
        may_be_refused: false,
        progress: clients::Progress::default(),
        seed,
    }
}

/// A run in which nearly nothing happened proves nothing.
fn enough<I, O>(server: &str, operations: &[Operation<I, O>], wanted: usize) {
    assert!(operations.len() >= wanted * 9 / 10, "{server}: only {} operations", operations.len());
    let unknown = operations.iter().filter(|operation| operation.output.is_none()).count();
    assert!(unknown > 0, "{server}: no outcome is unknown, though clients hang up");
    assert!(unknown < operations.len() / 100, "{server}: {unknown} outcomes are unknown");
    let mut latest = 0;
    let overlaps = operations.iter().filter(|operation| {
        let overlaps = operation.invoked < latest;
        latest = latest.max(operation.responded.min(operation.invoked + 10_000));
        overlaps
    });
    assert!(overlaps.count() > operations.len() / 4, "{server}: the operations hardly overlap");
}

fn judge_registers(server: &str, operations: &[Operation<Keyed, Reply>], ran_s: f64) {
    let began = Instant::now();
    let report = check_partitioned(&Register, operations, |input| input.key);
    said(server, report.operations, ran_s, began, report.configurations);
    report.demand(server);
}

fn judge_groups(server: &str, operations: &[Operation<Transaction, Vec<Reply>>], ran_s: f64) {
    let began = Instant::now();
    let report = check_partitioned(&Keyspace { keys: GROUP_KEYS }, operations, |input| input.group);
    said(server, report.operations, ran_s, began, report.configurations);
    report.demand(server);
}

fn said(server: &str, operations: usize, ran_s: f64, began: Instant, configurations: usize) {
    println!(
        "{server}: {operations} operations in {ran_s:.1} s, judged in {:.1} s, {:.2} configurations each",
        began.elapsed().as_secs_f64(),
        configurations as f64 / operations as f64
    );
}

/// What no order can allow is also visible without searching for one.
fn groups_are_whole_and_sums_stay(operations: &[Operation<Transaction, Vec<Reply>>]) {
    let mut seen = [0, 0];
    for operation in operations {
        let (Some(replies), [Several::GetAll(keys)]) = (&operation.output, &operation.input.commands[..])
        else {
            continue;
        };
        let Reply::Values(values) = &replies[0] else { panic!("MGET answered {replies:?}") };
        let whole = keys.len() == GROUP_KEYS;
        match use_of(operation.input.group) {
            Use::Together if whole => {
                assert!(values.windows(2).all(|pair| pair[0] == pair[1]), "a torn group: {operation:?}");
                seen[0] += 1;
            }
            Use::Bank if whole => {
                let balance = |value: &Option<Vec<u8>>| -> i64 {
                    let text = std::str::from_utf8(value.as_deref().expect("an open account")).expect("text");
                    text.parse().expect("a number")
                };
                let sum: i64 = values.iter().map(balance).sum();
                assert_eq!(sum, OPENING_BALANCE * GROUP_KEYS as i64, "money was made or lost: {operation:?}");
                seen[1] += 1;
            }
            _ => {}
        }
    }
    assert!(seen.iter().all(|&count| count > 1_000), "hardly a snapshot was read: {seen:?}");
}

/// The test of the test: in what really happened, one reply is replaced by one that was right a while before.
fn stale_reads_are_found(operations: &[Operation<Keyed, Reply>], seed: u64) {
    let mut random = random::Random::new(seed);
    for _ in 0..5 {
        // Texts have even numbers; none of them is ever written twice.
        let key = random.below(12) as u32 * 2;
        let mut mine: Vec<_> =
            operations.iter().filter(|operation| operation.input.key == key).cloned().collect();
        let reads: Vec<usize> = (0..mine.len())
            .filter(|&at| {
                let read = matches!(mine[at].output, Some(Reply::Value(Some(_))));
                read && mine[at].input.command == Command::Get
            })
            .collect();
        let late = reads[reads.len() / 2 + random.below(reads.len() / 2)];
        let early = reads[random.below(reads.len() / 4)];
        if mine[early].output == mine[late].output {
            continue;
        }
        mine[late].output = mine[early].output.clone();
        let report = check_partitioned(&Register, &mine, |input| input.key);
        assert!(matches!(report.outcome, Outcome::Violation(_)), "a stale read of key {key} went unnoticed");
    }
}

/// The same for a snapshot of which one value is older than the others.
fn torn_groups_are_found(operations: &[Operation<Transaction, Vec<Reply>>]) {
    for group in [0, 1, 2] {
        let mut mine: Vec<_> =
            operations.iter().filter(|operation| operation.input.group == group).cloned().collect();
        let snapshots: Vec<usize> = (0..mine.len())
            .filter(|&at| {
                let is_whole = mine[at].input.commands == [Several::GetAll((0..GROUP_KEYS).collect())];
                is_whole && mine[at].output.is_some()
            })
            .collect();
        let values =
            |at: usize, mine: &[Operation<Transaction, Vec<Reply>>]| match &mine[at].output.as_deref() {
                Some([Reply::Values(values)]) => values.clone(),
                other => panic!("MGET answered {other:?}"),
            };
        let late = snapshots[snapshots.len() * 3 / 4];
        let now = values(late, &mine);
        let torn = snapshots[snapshots.len() / 4..].iter().find_map(|&early| {
            let mut torn = values(early, &mine);
            let differs = torn[0] != now[0] && torn[0].is_some();
            torn[1..].clone_from_slice(&now[1..]);
            differs.then_some(torn)
        });
        mine[late].output = Some(vec![Reply::Values(torn.expect("the group changes"))]);
        let report = check_partitioned(&Keyspace { keys: GROUP_KEYS }, &mine, |input| input.group);
        assert!(
            matches!(report.outcome, Outcome::Violation(_)),
            "a torn read of group {group} went unnoticed"
        );
    }
}
