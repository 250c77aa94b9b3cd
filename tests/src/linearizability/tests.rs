//! Tests of the checker: histories known to be good, histories made wrong on purpose, and every order of small ones.

use super::checker::{Model, Outcome, Report, check, check_partitioned};
use super::history::{NEVER, Operation};
use super::keyspace::{Command as Several, Keyspace, Transaction};
use super::register::{Command, Keyed, Register};
use super::{Reply, Value};
use crate::random::{Random, seed};
use std::time::Instant;

type Single = Operation<Keyed, Reply>;
type Multi = Operation<Transaction, Vec<Reply>>;

/// `at`: the stamps of invocation and response.
fn op(client: u32, at: (u64, u64), command: Command, reply: Reply) -> Single {
    Operation {
        client,
        input: Keyed { key: 0, command },
        output: Some(reply),
        invoked: at.0,
        responded: at.1,
    }
}

fn unknown(client: u32, invoked: u64, command: Command) -> Single {
    Operation { client, input: Keyed { key: 0, command }, output: None, invoked, responded: NEVER }
}

fn set(text: &str) -> Command {
    Command::Set(text.into())
}

fn append(text: &str) -> Command {
    Command::Append(text.into())
}

fn held(text: &str) -> Reply {
    Reply::Value(Some(text.into()))
}

const NOTHING: Reply = Reply::Value(None);

#[track_caller]
fn good(history: &[Single]) {
    check(&Register, history).demand("a good history");
}

#[track_caller]
fn wrong(history: &[Single]) -> String {
    match check(&Register, history).outcome {
        Outcome::Violation(violation) => violation.to_string(),
        other => panic!("a wrong history is {other:?}"),
    }
}

#[test]
fn overlapping_operations_may_take_effect_in_either_order() {
    good(&[]);
    good(&[op(1, (0, 5), set("a"), Reply::Done), op(2, (1, 4), Command::Get, NOTHING)]);
    good(&[op(1, (0, 5), set("a"), Reply::Done), op(2, (1, 4), Command::Get, held("a"))]);
    // Two writers, and readers who see one and then the other while both are under way.
    good(&[
        op(1, (0, 20), set("a"), Reply::Done),
        op(2, (1, 21), set("b"), Reply::Done),
        op(3, (2, 3), Command::Get, held("b")),
        op(3, (4, 5), Command::Get, held("a")),
    ]);
}

#[test]
fn a_pipeline_keeps_its_order() {
    let both = |clients: [u32; 2]| {
        [op(clients[0], (0, 10), set("a"), Reply::Done), op(clients[1], (1, 11), Command::Get, NOTHING)]
    };
    good(&both([1, 2]));
    wrong(&both([1, 1]));
    // What was not answered binds nobody: the client may have gone on over another connection.
    good(&[
        unknown(1, 0, set("a")),
        op(1, (1, 3), Command::Get, NOTHING),
        op(1, (4, 5), Command::Get, held("a")),
    ]);
}

#[test]
fn a_stale_read_is_found() {
    let explanation = wrong(&[
        op(1, (0, 1), set("a"), Reply::Done),
        op(1, (2, 3), set("b"), Reply::Done),
        op(2, (4, 5), Command::Get, held("a")),
    ]);
    assert!(explanation.contains("2 of 3") && explanation.contains("GET of key 0 -> \"a\""), "{explanation}");
    // New, then old again: each alone would be fine, for the write is still under way.
    wrong(&[
        op(1, (0, 1), set("a"), Reply::Done),
        op(1, (2, 20), set("b"), Reply::Done),
        op(2, (4, 5), Command::Get, held("b")),
        op(3, (6, 7), Command::Get, held("a")),
    ]);
}

#[test]
fn a_lost_update_is_found() {
    // Both were told 1: one of the two counts is gone.
    wrong(&[
        op(1, (0, 5), Command::Add(1), Reply::Number(1)),
        op(2, (1, 6), Command::Add(1), Reply::Number(1)),
    ]);
    good(&[
        op(1, (0, 5), Command::Add(1), Reply::Number(2)),
        op(2, (1, 6), Command::Add(1), Reply::Number(1)),
    ]);
    // Both compared with the same value and both were told that they set theirs.
    let swap = |new: &str| Command::CompareAndSet { expected: Some("a".into()), new: new.into() };
    let both = |second: Reply| {
        [
            op(1, (0, 1), set("a"), Reply::Done),
            op(1, (2, 6), swap("b"), Reply::Done),
            op(2, (3, 7), swap("c"), second),
        ]
    };
    wrong(&both(Reply::Done));
    good(&both(Reply::Aborted));
    // Acknowledged, and then it was never there.
    wrong(&[op(1, (0, 1), set("a"), Reply::Done), op(2, (2, 3), Command::Get, NOTHING)]);
}

#[test]
fn a_phantom_value_is_found() {
    wrong(&[op(1, (0, 1), set("a"), Reply::Done), op(2, (2, 3), Command::Get, held("z"))]);
    // Written, but by somebody who began later.
    wrong(&[op(2, (0, 1), Command::Get, held("z")), op(1, (2, 3), set("z"), Reply::Done)]);
}

#[test]
fn replies_to_conditions_and_lengths_are_judged() {
    wrong(&[
        op(1, (0, 1), Command::SetIfAbsent("a".into()), Reply::Done),
        op(2, (2, 3), Command::SetIfAbsent("b".into()), Reply::Done),
    ]);
    wrong(&[op(1, (0, 1), Command::SetIfPresent("a".into()), Reply::Done)]);
    wrong(&[op(1, (0, 1), append("ab"), Reply::Number(2)), op(1, (2, 3), append("c"), Reply::Number(2))]);
    wrong(&[op(1, (0, 1), Command::Delete, Reply::Number(1))]);
    wrong(&[op(1, (0, 1), set("a"), Reply::Done), op(1, (2, 3), Command::Add(1), Reply::Number(1))]);
    good(&[op(1, (0, 1), set("a"), Reply::Done), op(1, (2, 3), Command::Add(1), Reply::Refused)]);
}

#[test]
fn an_unknown_outcome_may_take_effect_late_or_never_but_once() {
    let base = [op(1, (0, 1), set("a"), Reply::Done), unknown(2, 2, set("b"))];
    let with = |more: &[Single]| [&base[..], more].concat();
    let read = |at: u64, text: &str| op(3, (at, at + 1), Command::Get, held(text));
    good(&with(&[read(10, "a"), read(12, "a")]));
    good(&with(&[read(10, "a"), read(12, "b")]));
    good(&with(&[read(10, "b"), op(1, (12, 13), set("c"), Reply::Done), read(14, "c")]));
    // It was seen, so it has happened; it cannot happen again over what came later.
    wrong(&with(&[read(10, "b"), read(12, "a")]));
    wrong(&with(&[read(10, "b"), op(1, (12, 13), set("c"), Reply::Done), read(14, "b")]));
    // Not before it was asked for.
    wrong(&[read(0, "b"), unknown(2, 2, set("b"))]);
}

#[test]
fn unknown_outcomes_may_be_needed_several_at_a_time_and_in_their_own_order() {
    let unknown_appends: Vec<Single> = ["a", "b", "c", "d"]
        .iter()
        .enumerate()
        .map(|(at, text)| unknown(9, at as u64, append(text)))
        .collect();
    let with = |text: &str| [&unknown_appends[..], &[op(1, (10, 11), Command::Get, held(text))]].concat();
    good(&with("dbca"));
    good(&with("bd"));
    wrong(&with("bb"));
    wrong(&with("abcde"));
    let counts: Vec<Single> = (0..6).map(|at| unknown(9, at, Command::Add(10))).collect();
    let with = |sum: i64| [&counts[..], &[op(1, (10, 11), Command::Add(1), Reply::Number(sum))]].concat();
    good(&with(61));
    good(&with(1));
    wrong(&with(71));
    wrong(&with(12));
}

// ── power cuts ──

/// Under way at a cut: it took effect before the stamp `cut`, or never.
fn cut_off(client: u32, invoked: u64, cut: u64, command: Command) -> Single {
    Operation { responded: cut, ..unknown(client, invoked, command) }
}

#[test]
fn a_cut_leaves_what_was_under_way_done_or_undone_for_ever() {
    let base = [op(1, (0, 1), set("a"), Reply::Done), cut_off(2, 2, 10, set("b"))];
    let with = |more: &[Single]| [&base[..], more].concat();
    let read = |at: u64, text: &str| op(3, (at, at + 1), Command::Get, held(text));
    good(&with(&[read(3, "a"), read(12, "a"), read(14, "a")]));
    good(&with(&[read(3, "a"), read(12, "b"), read(14, "b")]));
    // Without the cut the third would be fine: it may take effect at any later moment.
    wrong(&with(&[read(12, "a"), read(14, "b")]));
    good(&[base[0].clone(), unknown(2, 2, set("b")), read(12, "a"), read(14, "b")]);
    // Any operation from after the cut excludes it, and not only a read of it.
    let after = op(1, (12, 13), append("c"), Reply::Number(2));
    good(&with(&[after.clone(), read(14, "ac")]));
    good(&with(&[after.clone(), read(14, "bc")]));
    wrong(&with(&[after.clone(), read(14, "b")]));
    wrong(&with(&[op(1, (12, 13), set("c"), Reply::Done), read(14, "b")]));
    // A read that was asked for before the cut and answered after it may be first.
    good(&with(&[op(3, (9, 12), Command::Get, held("a")), read(14, "b")]));
}

#[test]
fn an_acknowledged_write_that_a_cut_took_is_found() {
    wrong(&[op(1, (0, 1), set("a"), Reply::Done), op(2, (12, 13), Command::Get, NOTHING)]);
    let both =
        [op(1, (0, 1), Command::Add(5), Reply::Number(5)), op(1, (2, 3), Command::Add(5), Reply::Number(10))];
    let read = |text: &str| op(2, (12, 13), Command::Get, held(text));
    wrong(&[&both[..], &[read("5")]].concat());
    good(&[&both[..], &[read("10")]].concat());
    good(&[&both[..], &[cut_off(2, 4, 10, Command::Add(5)), read("15")]].concat());
    wrong(&[&both[..], &[cut_off(2, 4, 10, Command::Add(5)), read("20")]].concat());
    // Of what was acknowledged nothing is missing, but it was put in another order: the later one is gone.
    wrong(&[op(1, (0, 1), set("a"), Reply::Done), op(1, (2, 3), set("b"), Reply::Done), read("a")]);
}

#[test]
fn a_value_that_was_shown_before_a_cut_and_is_gone_after_it_is_found() {
    let write = cut_off(1, 0, 10, set("a"));
    let before = op(2, (2, 3), Command::Get, held("a"));
    wrong(&[write.clone(), before.clone(), op(2, (12, 13), Command::Get, NOTHING)]);
    good(&[write.clone(), before.clone(), op(2, (12, 13), Command::Get, held("a"))]);
    // Shown by a reply that came after the power had gone.
    wrong(&[write.clone(), op(2, (2, 11), Command::Get, held("a")), op(2, (12, 13), Command::Get, NOTHING)]);
    // Shown indirectly: the length of what was appended to it.
    wrong(&[write, op(2, (2, 3), append("b"), Reply::Number(2)), op(2, (12, 13), Command::Get, held("b"))]);
}

#[test]
fn a_deleted_value_that_comes_back_is_found() {
    let base = [op(1, (0, 1), set("a"), Reply::Done), op(1, (2, 3), Command::Delete, Reply::Number(1))];
    let read = op(2, (12, 13), Command::Get, held("a"));
    wrong(&[&base[..], std::slice::from_ref(&read)].concat());
    // Whose deletion was under way it may be there or not, but not both.
    let open = [base[0].clone(), cut_off(1, 2, 10, Command::Delete)];
    good(&[&open[..], std::slice::from_ref(&read)].concat());
    good(&[&open[..], &[op(2, (12, 13), Command::Get, NOTHING)]].concat());
    wrong(
        &[&open[..], &[op(2, (12, 13), Command::Get, NOTHING), op(2, (14, 15), Command::Get, held("a"))]]
            .concat(),
    );
}

#[test]
fn what_several_cuts_left_is_kept_apart() {
    let counts = |from: u64, cut: u64| (0..8).map(move |at| cut_off(9, from + at, cut, Command::Add(10)));
    let read = |at: u64, sum: &str| op(3, (at, at + 1), Command::Get, held(sum));
    let history = |first: &str, second: &str| -> Vec<Single> {
        let first = counts(0, 20).chain([read(22, first)]);
        first.chain(counts(30, 50)).chain([read(52, second)]).collect()
    };
    good(&history("80", "160"));
    good(&history("30", "30"));
    wrong(&history("30", "120"));
    wrong(&history("90", "100"));
    wrong(&history("30", "20"));
    // A transaction that a cut tore.
    let pair = Operation { responded: 10, output: None, ..multi(1, (2, 3), mset(&["b", "b"]), Reply::Done) };
    let torn = |after: &[&str]| {
        let read = multi(2, (12, 13), Several::GetAll(vec![0, 1]), all(after));
        is_good(2, &[multi(1, (0, 1), mset(&["a", "a"]), Reply::Done), pair.clone(), read])
    };
    assert!(torn(&["a", "a"]) && torn(&["b", "b"]) && !torn(&["a", "b"]) && !torn(&["b", "a"]));
}

// ── several keys ──

fn multi(client: u32, at: (u64, u64), command: Several, reply: Reply) -> Multi {
    Operation {
        client,
        input: Transaction::of(0, command),
        output: Some(vec![reply]),
        invoked: at.0,
        responded: at.1,
    }
}

fn mset(values: &[&str]) -> Several {
    Several::SetAll(values.iter().enumerate().map(|(key, text)| (key, Value::from(*text))).collect())
}

fn all(values: &[&str]) -> Reply {
    Reply::Values(values.iter().map(|text| (!text.is_empty()).then(|| Value::from(*text))).collect())
}

fn is_good(keys: usize, history: &[Multi]) -> bool {
    match check(&Keyspace { keys }, history).outcome {
        Outcome::Linearizable => true,
        Outcome::Violation(_) => false,
        Outcome::Undecided => panic!("undecided"),
    }
}

#[test]
fn a_torn_group_is_found() {
    let read = |at, reply| multi(3, at, Several::GetAll(vec![0, 1]), reply);
    let writes =
        [multi(1, (0, 1), mset(&["a", "a"]), Reply::Done), multi(1, (2, 9), mset(&["b", "b"]), Reply::Done)];
    let with = |reply| [&writes[..], &[read((3, 4), reply)]].concat();
    assert!(is_good(2, &with(all(&["a", "a"]))));
    assert!(is_good(2, &with(all(&["b", "b"]))));
    assert!(!is_good(2, &with(all(&["b", "a"]))));
    // Torn in time: each key alone is read fresh, but no moment has both.
    let get = |key, at, text: &str| multi(3, at, Several::One(key, Command::Get), held(text));
    assert!(!is_good(2, &[&writes[..], &[get(0, (3, 4), "b"), get(1, (5, 6), "a")]].concat()));
    assert!(is_good(2, &[&writes[..], &[get(0, (3, 4), "a"), get(1, (5, 6), "b")]].concat()));
    // Two pairs, each seen as its own writer left it, by two readers who disagree about the order.
    let crossed = [
        multi(1, (0, 20), Several::One(0, set("a")), Reply::Done),
        multi(2, (1, 21), Several::One(1, set("b")), Reply::Done),
        read((2, 3), all(&["a", ""])),
        multi(4, (4, 5), Several::GetAll(vec![0, 1]), all(&["", "b"])),
    ];
    assert!(!is_good(2, &crossed), "key by key this looks fine");
}

/// What a client sends together to different shards is executed at the same time: it may see the new value of one key and then
/// the old one of another. Of one key, or once it has waited for a reply, it may not.
#[test]
fn a_pipeline_over_several_keys_has_no_order() {
    let writes =
        [multi(1, (0, 1), mset(&["a", "a"]), Reply::Done), multi(1, (2, 30), mset(&["b", "b"]), Reply::Done)];
    let get = |key, at, text: &str| multi(2, at, Several::One(key, Command::Get), held(text));
    let after = |reads: [Operation<Transaction, Vec<Reply>>; 2]| is_good(2, &[&writes[..], &reads].concat());
    assert!(after([get(1, (3, 8), "b"), get(0, (4, 9), "a")]), "sent together");
    assert!(!after([get(1, (3, 8), "b"), get(1, (4, 9), "a")]), "the same key");
    assert!(!after([get(1, (3, 4), "b"), get(0, (5, 9), "a")]), "one after the other");
}

#[test]
fn transfers_keep_their_sum_and_watch_keeps_its_promise() {
    let transfer = |client, at, watched: Option<[&str; 2]>, commands: Vec<Several>, output| Operation {
        client,
        input: Transaction {
            group: 0,
            watched: watched
                .iter()
                .flat_map(|seen| seen.iter().enumerate().map(|(key, text)| (key, Some(Value::from(*text)))))
                .collect(),
            commands,
        },
        output: Some(output),
        invoked: at,
        responded: at + 5,
    };
    let opening = multi(1, (0, 1), mset(&["10", "10"]), Reply::Done);
    let move_three = vec![Several::One(0, Command::Add(-3)), Several::One(1, Command::Add(3))];
    let moved =
        |at, a, b| transfer(2, at, None, move_three.clone(), vec![Reply::Number(a), Reply::Number(b)]);
    let read = |at, reply| multi(3, (at, at + 1), Several::GetAll(vec![0, 1]), reply);
    assert!(is_good(
        2,
        &[opening.clone(), moved(2, 7, 13), read(3, all(&["10", "10"])), read(8, all(&["7", "13"]))]
    ));
    assert!(!is_good(2, &[opening.clone(), moved(2, 7, 13), read(3, all(&["7", "10"]))]), "half a transfer");
    assert!(!is_good(2, &[opening.clone(), moved(2, 7, 13), moved(3, 7, 13)]), "the same transfer twice");
    // Two who watched the same balances cannot both have committed.
    let write =
        |at, client, output| transfer(client, at, Some(["10", "10"]), vec![mset(&["5", "15"])], output);
    let committed = || vec![Reply::Done];
    assert!(!is_good(2, &[opening.clone(), write(2, 1, committed()), write(3, 2, committed())]));
    assert!(is_good(2, &[opening.clone(), write(2, 1, committed()), write(3, 2, vec![Reply::Aborted])]));
    // What watches nothing cannot be aborted.
    assert!(!is_good(2, &[opening, transfer(2, 2, None, move_three, vec![Reply::Aborted])]));
}

#[test]
fn renames_copies_and_deletions_of_several_keys_are_judged() {
    let before = multi(1, (0, 1), mset(&["a", "b"]), Reply::Done);
    let then = |command, reply, after: &[&str]| {
        let keys = (0..after.len()).collect();
        is_good(
            3,
            &[
                before.clone(),
                multi(1, (2, 3), command, reply),
                multi(2, (4, 5), Several::GetAll(keys), all(after)),
            ],
        )
    };
    assert!(then(Several::Rename(0, 2), Reply::Done, &["", "b", "a"]));
    assert!(!then(Several::Rename(0, 2), Reply::Done, &["a", "b", "a"]));
    assert!(then(Several::Rename(2, 0), Reply::Refused, &["a", "b", ""]));
    assert!(then(Several::Copy { from: 0, to: 1, replace: false }, Reply::Number(0), &["a", "b", ""]));
    assert!(then(Several::Copy { from: 0, to: 1, replace: true }, Reply::Number(1), &["a", "a", ""]));
    assert!(!then(Several::Copy { from: 0, to: 1, replace: true }, Reply::Number(1), &["a", "b", ""]));
    assert!(then(Several::DeleteAll(vec![0, 2]), Reply::Number(1), &["", "b", ""]));
    assert!(!then(Several::DeleteAll(vec![0, 1]), Reply::Number(2), &["", "b", ""]), "half a deletion");
}

// ── random histories ──

/// A history of clients whose operations overlap, carried out on a register for each key at a moment within each; about
/// one in `unknown_in` has lost its reply, and a power cut ends all that is under way once in `cut_in` steps.
fn simulated(
    random: &mut Random,
    count: usize,
    clients: usize,
    keys: u32,
    unknown_in: usize,
    cut_in: usize,
) -> Vec<Single> {
    let mut states: Vec<Option<Value>> = vec![None; keys as usize];
    let mut pending: Vec<Option<(Single, bool)>> = vec![None; clients];
    let mut history = Vec::with_capacity(count);
    let mut started = 0;
    let mut stamp = 0;
    while history.len() < count {
        let client = random.below(clients);
        stamp += 1;
        if random.below(cut_in) == 0 {
            let cut_off = pending.iter_mut().filter_map(Option::take).map(|(operation, _)| operation);
            history.extend(cut_off.map(|operation| Operation { output: None, ..operation }));
            for operation in history.iter_mut().rev().filter(|operation| operation.output.is_none()) {
                operation.responded = operation.responded.min(stamp);
            }
            continue;
        }
        match pending[client].take() {
            None if started == count => {}
            None => {
                started += 1;
                let key = random.below(keys as usize) as u32;
                let value = || -> Value { format!("{started}").into_bytes() };
                let command = match random.below(10) {
                    0..4 => Command::Get,
                    4 => Command::Set(value()),
                    5 => Command::SetIfAbsent(value()),
                    6 => Command::Delete,
                    7 => Command::Append(value()),
                    8 => Command::CompareAndSet { expected: states[key as usize].clone(), new: value() },
                    _ => Command::Add(1),
                };
                let mut operation = unknown(client as u32, stamp, command);
                operation.input.key = key;
                pending[client] = Some((operation, false));
            }
            Some((operation, true)) => {
                let lost = random.below(unknown_in) == 0;
                let responded = if lost { NEVER } else { stamp };
                let output = operation.output.filter(|_| !lost);
                history.push(Operation { output, responded, ..operation });
            }
            Some((mut operation, false)) => {
                // A few of those whose reply is lost never take effect: they are dropped here.
                if random.below(unknown_in * 4) == 0 {
                    history.push(operation);
                    continue;
                }
                let state = &mut states[operation.input.key as usize];
                operation.output = Some(operation.input.command.execute(state));
                pending[client] = Some((operation, true));
            }
        }
    }
    history
}

fn by_key(history: &[Single]) -> Report {
    check_partitioned(&Register, history, |input| input.key)
}

#[test]
fn half_a_million_operations_are_judged_key_by_key() {
    let seed = seed();
    println!("MILLRACE_SEED={seed}");
    for (keys, unknown_in, cut_in) in
        [(200, usize::MAX / 8, usize::MAX), (50, 2_000, usize::MAX), (50, 20_000, 20_000)]
    {
        let mut history = simulated(&mut Random::new(seed), 500_000, 16, keys, unknown_in, cut_in);
        let unknown = history.iter().filter(|operation| operation.output.is_none()).count();
        let began = Instant::now();
        let report = by_key(&history);
        let took = began.elapsed().as_secs_f64();
        report.demand(&format!("MILLRACE_SEED={seed}"));
        assert_eq!((report.operations, report.partitions), (history.len(), keys as usize));
        println!(
            "{} operations of 16 clients, {unknown} of unknown outcome, {keys} keys: {took:.2} s, {:.0} thousand a \
             second, {:.2} configurations an operation",
            report.operations,
            report.operations as f64 / took / 1e3,
            report.configurations as f64 / report.operations as f64
        );
        // One read of the half million, in the middle, is given a value that was gone long before.
        let stale = (250_000..).find(|&at| {
            let Operation { input, output, .. } = &history[at];
            input.command == Command::Get && matches!(output, Some(Reply::Value(_)))
        });
        let stale = stale.expect("there are reads");
        let key = history[stale].input.key;
        let old = history[..100_000].iter().rev().find_map(|earlier| {
            match (&earlier.input.command, &earlier.output) {
                (Command::Set(value), Some(Reply::Done)) if earlier.input.key == key => Some(value.clone()),
                _ => None,
            }
        });
        history[stale].output = Some(Reply::Value(old));
        let began = Instant::now();
        assert!(matches!(by_key(&history).outcome, Outcome::Violation(_)), "a stale read went unnoticed");
        println!("with a stale read among them: rejected after {:.2} s", began.elapsed().as_secs_f64());
    }
}

#[test]
fn one_key_that_everybody_wants_is_judged_as_well() {
    let seed = seed();
    println!("MILLRACE_SEED={seed}");
    let history = simulated(&mut Random::new(seed), 5_000, 16, 1, 1_000, usize::MAX);
    let began = Instant::now();
    let report = by_key(&history);
    report.demand(&format!("MILLRACE_SEED={seed}"));
    println!("{} configurations, {:.2} s", report.configurations, began.elapsed().as_secs_f64());
}

/// Tries every order: right by inspection, and hopeless beyond a handful of operations.
fn has_an_order<M: Model>(
    model: &M,
    state: &M::State,
    latest: u64,
    left: &[&Operation<M::Input, M::Output>],
) -> bool {
    let completed = left.iter().filter(|operation| operation.output.is_some());
    let Some(first_response) = completed.map(|operation| operation.responded).min() else { return true };
    let is_next = |at: &usize| {
        let it = left[*at];
        let comes_first = |other: &&Operation<M::Input, M::Output>| {
            other.output.is_some() && other.client == it.client && other.invoked < it.invoked
        };
        let is_its_turn = it.output.is_none() || !left.iter().any(comes_first);
        is_its_turn && it.invoked < first_response && latest < it.responded
    };
    (0..left.len()).filter(is_next).any(|at| {
        let next = model.step(state, &left[at].input, left[at].output.as_ref());
        let rest = [&left[..at], &left[at + 1..]].concat();
        next.is_some_and(|next| has_an_order(model, &next, latest.max(left[at].invoked), &rest))
    })
}

#[test]
fn small_histories_are_judged_as_by_trying_every_order() {
    let seed = seed();
    println!("MILLRACE_SEED={seed}");
    let mut random = Random::new(seed);
    let mut verdicts = [[0; 2]; 2];
    for round in 0..20_000 {
        let cut_in = *random.pick(&[usize::MAX, 15]);
        let mut history = simulated(&mut random, 7, 3, 1, 4, cut_in);
        history.truncate(7);
        // Clients that do not wait for replies: some of them are one.
        if random.chance(50) {
            history.iter_mut().for_each(|operation| operation.client = operation.client.min(1));
        }
        // Half of them are spoilt: a reply taken from another operation, or a response that came earlier.
        for _ in 0..random.below(3) {
            let (at, from) = (random.below(7), random.below(7));
            if history[at].output.is_some() && history[from].output.is_some() {
                history[at].output = history[from].output.clone();
            } else if history[at].output.is_none() && history[at].invoked + 2 < history[at].responded {
                // A cut that came right after it was asked for.
                history[at].responded = history[at].invoked + 2;
            }
        }
        let operations: Vec<&Single> = history.iter().collect();
        let expected = has_an_order(&Register, &None, 0, &operations);
        let found = matches!(check(&Register, &history).outcome, Outcome::Linearizable);
        assert_eq!(found, expected, "round {round} with MILLRACE_SEED={seed}: {history:#?}");
        let is_cut =
            history.iter().any(|operation| operation.output.is_none() && operation.responded < NEVER);
        verdicts[usize::from(is_cut)][usize::from(found)] += 1;
    }
    println!("without a cut {} good, {} wrong", verdicts[0][1], verdicts[0][0]);
    println!("with one {} good, {} wrong", verdicts[1][1], verdicts[1][0]);
    assert!(
        verdicts.concat().iter().all(|&count| count > 500),
        "too one-sided to prove anything: {verdicts:?}"
    );
}
