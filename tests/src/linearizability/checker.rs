//! The search for an order that explains a history: Wing and Gong's, with Lowe's memory of configurations.
//!
//! Go through the history's events. At any moment one of the operations that have been invoked may be the next to
//! take effect, as long as no operation that was over before it is left out. Choose one whose reply the model would
//! have given, take it out of the list and begin again; where none is left, take the last choice back. A
//! *configuration*, the set of operations chosen so far and the state they lead to, is never visited twice: that makes
//! the search fast enough for histories of hundreds of thousands of operations, most of which it passes through in
//! one straight line.
//!
//! **Pipelines.** Operations of one client on the same key that were answered take effect in the order in which it asked
//! for them, also where it did not wait for replies: every server here promises that. Of different keys, which may lie on
//! different shards, it does not: commands on their way at the same time are executed at the same time.
//!
//! **What changes nothing**, a read above all, is chosen as soon as its reply fits, and without an alternative: whatever
//! order there is, it is as good with this one moved to the front.
//!
//! **Unknown outcomes.** An operation without a response may take effect at any later moment, or never. It is
//! chosen only together with a completed operation behind it whose outcome it changes: whatever else could be
//! explained with it can be explained without it as well. Tried last, one at a time before several, and of several that
//! ask for the same the earliest, it costs little while it is not needed.
//!
//! **Power cuts.** Of an operation that was under way when the power went nobody knows more than that it took effect
//! before the cut or never: it has a last moment (its `responded`). An order is possible if every operation's last
//! moment is later than the invocations of all that come before it. So once anything that was asked after a cut has been
//! chosen, what the cut left unknown is out of the search, however many cuts there were.
//!
//! A set of operations is known by the exclusive or of random 128-bit numbers, one for each operation. Two sets
//! that agree by chance (once in 10^24 histories of ten million configurations) could make a good history look wrong,
//! never a wrong one good.

use super::history::{NEVER, Operation};
use crate::random::Random;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::hash::Hash;
use std::mem;

/// A server that does one thing at a time.
pub trait Model {
    /// What is asked.
    type Input: fmt::Debug + PartialEq;
    /// What is answered.
    type Output: fmt::Debug;
    /// What the server holds.
    type State: Clone + Eq + Hash;

    /// What it holds at first.
    fn initial(&self) -> Self::State;

    /// The state after `input`, if `output` is the answer in this state; without an output, the state if it takes
    /// effect.
    fn step(
        &self,
        state: &Self::State,
        input: &Self::Input,
        output: Option<&Self::Output>,
    ) -> Option<Self::State>;

    /// The keys it is about: what a client asks of one key is done in the order in which it asked.
    fn keys(&self, input: &Self::Input) -> Vec<usize>;

    /// Whether it can change the state. One that cannot tells nothing if its outcome is unknown.
    fn may_write(&self, input: &Self::Input) -> bool;

    /// Whether what was answered so left every state as it was: a read, and a write that was not carried out.
    fn only_looked(&self, input: &Self::Input, output: &Self::Output) -> bool;

    /// Whether its answer is the same in every state. Those whose answers fit are tried before it, for it would wipe
    /// out what they speak of.
    fn is_blind(&self, input: &Self::Input) -> bool;

    /// A state for people.
    fn show(&self, state: &Self::State) -> String;
}

/// An operation of a model.
type OperationOf<M> = Operation<<M as Model>::Input, <M as Model>::Output>;

/// What a search found.
#[derive(Clone, Debug)]
pub struct Report {
    /// Operations that were judged.
    pub operations: usize,
    /// Parts that were judged each by itself.
    pub partitions: usize,
    /// Configurations that were visited: as many as operations if nothing had to be taken back.
    pub configurations: usize,
    /// Operations of unknown outcome that the order found needs: these did take effect.
    pub unknown_needed: usize,
    /// The judgement.
    pub outcome: Outcome,
}

impl Report {
    /// Panics with the explanation unless the history is linearizable.
    #[track_caller]
    pub fn demand(&self, what: &str) {
        match &self.outcome {
            Outcome::Linearizable => {}
            Outcome::Violation(violation) => panic!("{what}: no order explains it\n{violation}"),
            Outcome::Undecided => panic!("{what}: not decided within {} configurations", self.configurations),
        }
    }
}

/// A judgement.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// There is an order.
    Linearizable,
    /// There is none.
    Violation(Box<Violation>),
    /// The search was given up at its bound.
    Undecided,
}

/// How far the longest attempt came.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Which part of the history.
    pub partition: String,
    /// Completed operations that could be ordered.
    pub ordered: usize,
    /// Completed operations in all.
    pub completed: usize,
    /// The last of those that could be ordered.
    pub last: Vec<String>,
    /// The state they led to.
    pub state: String,
    /// The operation that is over by then and could not take effect any more.
    pub stuck: String,
    /// The others that were under way.
    pub open: Vec<String>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "partition {}: {} of {} completed operations can be ordered",
            self.partition, self.ordered, self.completed
        )?;
        for line in &self.last {
            writeln!(f, "    {line}")?;
        }
        writeln!(f, "which leaves {}", self.state)?;
        write!(f, "where this has no place:\n    {}", self.stuck)?;
        for line in &self.open {
            write!(f, "\n  under way: {line}")?;
        }
        Ok(())
    }
}

/// How many configurations a search may visit unless told otherwise: some gigabytes.
pub const CONFIGURATIONS_MAX: usize = 20_000_000;
/// How many of the operations that could be ordered are shown.
const LAST_SHOWN: usize = 12;
/// Orders of unknown operations before one completed operation; beyond this a search is given up.
const UNKNOWN_ORDERS_MAX: usize = 200_000;

/// Judges a history part by part: `key` must not tell two operations apart that touch the same state.
pub fn check_partitioned<M: Model, K: Ord + fmt::Debug>(
    model: &M,
    history: &[OperationOf<M>],
    key: impl Fn(&M::Input) -> K,
) -> Report {
    let mut parts: BTreeMap<K, Vec<&OperationOf<M>>> = BTreeMap::new();
    for operation in history {
        parts.entry(key(&operation.input)).or_default().push(operation);
    }
    let mut report = Report {
        operations: history.len(),
        partitions: parts.len(),
        configurations: 0,
        unknown_needed: 0,
        outcome: Outcome::Linearizable,
    };
    for (key, part) in parts {
        match search(model, part, CONFIGURATIONS_MAX, &mut report) {
            Outcome::Linearizable => {}
            // Another part may still be wrong for certain.
            Outcome::Undecided => report.outcome = Outcome::Undecided,
            Outcome::Violation(mut violation) => {
                violation.partition = format!("{key:?}");
                return Report { outcome: Outcome::Violation(violation), ..report };
            }
        }
    }
    report
}

/// Judges a history as a whole.
pub fn check<M: Model>(model: &M, history: &[OperationOf<M>]) -> Report {
    check_partitioned(model, history, |_| ())
}

fn search<M: Model>(
    model: &M,
    mut operations: Vec<&OperationOf<M>>,
    configurations_max: usize,
    report: &mut Report,
) -> Outcome {
    operations.sort_unstable_by_key(|operation| operation.invoked);
    let unknown = operations.iter().filter(|operation| operation.output.is_none()).count();
    // A chain of unknown operations is rare; allowing it where it is not needed makes the search long.
    let mut chain_max = unknown.min(1);
    loop {
        let mut search = Search::new(model, &operations, chain_max, configurations_max);
        let outcome = search.run();
        report.configurations += search.visited.len();
        report.unknown_needed += search.is_chosen.iter().filter(|is_chosen| **is_chosen).count();
        if !search.was_limited || !matches!(outcome, Outcome::Violation(_)) {
            return outcome;
        }
        chain_max = (chain_max * 2).min(unknown);
    }
}

/// No operation.
const NONE: u32 = u32::MAX;
/// The event before all others in the list of events.
const HEAD: u32 = 0;

/// The list of events is doubly linked, so that an operation can be taken out and put back at no cost.
struct Search<'a, M: Model> {
    model: &'a M,
    /// Completed operations by invocation; event numbers lead here.
    completed: Vec<&'a OperationOf<M>>,
    /// Operations of unknown outcome that may have changed something, by invocation.
    unknown: Vec<&'a OperationOf<M>>,
    is_chosen: Vec<bool>,
    /// For each of these the first that asks for the same until the same moment: of equals the earliest goes first, the
    /// others could do no more.
    first_equal: Vec<u32>,
    /// For each event the operation and whether it is the invocation. Event 0 is the head.
    events: Vec<(u32, bool)>,
    /// For each completed operation its two events.
    events_of: Vec<[u32; 2]>,
    /// For each completed operation whether it changed nothing.
    only_looked: Vec<bool>,
    /// For each completed operation whether its answer would have been the same in every state.
    is_blind: Vec<bool>,
    /// For each completed operation those that its client asked for before it, the last of each of its keys.
    asked_before: Vec<Vec<u32>>,
    is_taken_out: Vec<bool>,
    /// The last moments of unknown operations, each once, in ascending order.
    cuts: Vec<u64>,
    next: Vec<u32>,
    previous: Vec<u32>,
    /// One random number for each operation, the unknown behind the completed.
    marks: Vec<u128>,
    /// Of what has been chosen.
    chosen: u128,
    visited: HashSet<(u128, M::State)>,
    /// How many unknown operations are tried in a row, but at a cut: there it is now or never.
    chain_max: usize,
    /// Whether longer chains were left out.
    was_limited: bool,
    configurations_max: usize,
    is_given_up: bool,
    state: M::State,
    /// The last invocation among those chosen: what comes next takes effect later than this.
    latest: u64,
}

/// An operation that was chosen, with those of unknown outcome just before it, and how to go on when it is taken back.
struct Choice<S> {
    operation: u32,
    chain: Vec<u32>,
    state_before: S,
    latest_before: u64,
    resume: Resume<S>,
}

/// Which choices remain in a configuration.
enum Resume<S> {
    /// Those from this event on; then, if they were not, those that are blind; and then chains.
    Calls(u32, bool),
    /// Those behind chains of unknown operations.
    Chains(Chains<S>),
    /// None.
    Nothing,
}

/// Chains of unknown operations, short ones first, and longer ones only if it comes to that.
struct Chains<S> {
    /// Of the present length, each with the completed operation behind it and the state after that; the first is last.
    found: Vec<(Vec<u32>, u32, S)>,
    /// All of the present length, and the states they lead to.
    level: Vec<(Vec<u32>, S)>,
    /// Which unknown operations they are made of.
    available: Vec<u32>,
    /// Completed operations that may be next.
    calls: Vec<u32>,
    length: usize,
    length_max: usize,
}

/// Where no choice was left.
struct DeadEnd<S> {
    ordered: usize,
    last: Vec<(Vec<u32>, u32)>,
    state: S,
    stuck: u32,
    open: Vec<u32>,
}

impl<'a, M: Model> Search<'a, M> {
    fn new(
        model: &'a M,
        operations: &[&'a OperationOf<M>],
        chain_max: usize,
        configurations_max: usize,
    ) -> Self {
        let is_completed = |operation: &&&OperationOf<M>| operation.output.is_some();
        let completed: Vec<_> = operations.iter().filter(is_completed).copied().collect();
        let unknown: Vec<_> = operations
            .iter()
            .filter(|operation| !is_completed(operation) && model.may_write(&operation.input))
            .copied()
            .collect();
        let first_equal = unknown
            .iter()
            .map(|operation| {
                let is_equal = |other: &&OperationOf<M>| {
                    other.responded == operation.responded && other.input == operation.input
                };
                unknown.iter().position(is_equal)
            })
            .map(|at| at.expect("it equals itself") as u32)
            .collect();
        let mut stamps: Vec<(u64, u32, bool)> = Vec::with_capacity(completed.len() * 2);
        for (index, operation) in completed.iter().enumerate() {
            assert!(operation.invoked < operation.responded, "a response before its invocation");
            stamps.push((operation.invoked, index as u32, true));
            stamps.push((operation.responded, index as u32, false));
        }
        stamps.sort_unstable();
        let mut last_of = HashMap::new();
        let asked_before = (0..).zip(&completed).map(|(index, operation)| {
            let keys = model.keys(&operation.input).into_iter();
            let before = keys.filter_map(|key| last_of.insert((operation.client, key), index));
            let mut before: Vec<u32> = before.filter(|&before| before != index).collect();
            before.dedup();
            before
        });
        let asked_before = asked_before.collect();
        let only_looked = completed
            .iter()
            .map(|it| it.output.as_ref().is_some_and(|output| model.only_looked(&it.input, output)))
            .collect();
        let mut cuts: Vec<u64> = unknown.iter().map(|operation| operation.responded).collect();
        cuts.sort_unstable();
        cuts.dedup();
        let mut events = vec![(NONE, false)];
        let mut events_of = vec![[0; 2]; completed.len()];
        for (_, operation, is_call) in stamps {
            events_of[operation as usize][usize::from(!is_call)] = events.len() as u32;
            events.push((operation, is_call));
        }
        let count = events.len() as u32;
        let mut random = Random::new(operations.len() as u64);
        let mut mark = || u128::from(random.next_u64()) << 64 | u128::from(random.next_u64());
        Search {
            model,
            is_chosen: vec![false; unknown.len()],
            is_taken_out: vec![false; completed.len()],
            only_looked,
            is_blind: completed.iter().map(|operation| model.is_blind(&operation.input)).collect(),
            asked_before,
            cuts,
            marks: (0..completed.len() + unknown.len()).map(|_| mark()).collect(),
            completed,
            unknown,
            first_equal,
            events,
            events_of,
            next: (1..=count).map(|event| event % count).collect(),
            previous: (0..count).map(|event| (event + count - 1) % count).collect(),
            chosen: 0,
            visited: HashSet::new(),
            chain_max,
            was_limited: false,
            configurations_max,
            is_given_up: false,
            state: model.initial(),
            latest: 0,
        }
    }

    fn run(&mut self) -> Outcome {
        let mut choices: Vec<Choice<M::State>> = Vec::new();
        let mut resume = Resume::Calls(self.next[HEAD as usize], false);
        let mut longest: Option<DeadEnd<M::State>> = None;
        loop {
            if choices.len() == self.completed.len() {
                return Outcome::Linearizable;
            }
            if let Some((chain, operation, state)) = self.next_choice(&mut resume) {
                let latest_before = self.latest;
                self.latest = self.latest.max(self.completed[operation as usize].invoked);
                for &index in &chain {
                    self.is_chosen[index as usize] = true;
                    self.latest = self.latest.max(self.unknown[index as usize].invoked);
                }
                self.take_out(operation);
                let state_before = mem::replace(&mut self.state, state);
                let resume = mem::replace(&mut resume, Resume::Calls(self.next[HEAD as usize], false));
                choices.push(Choice { operation, chain, state_before, latest_before, resume });
                continue;
            }
            if self.is_given_up {
                return Outcome::Undecided;
            }
            if longest.as_ref().is_none_or(|longest| longest.ordered < choices.len()) {
                longest = Some(self.dead_end(&choices));
            }
            let Some(choice) = choices.pop() else {
                let longest = longest.expect("a search that failed has been somewhere");
                return Outcome::Violation(Box::new(self.describe(longest)));
            };
            self.put_back(choice.operation);
            for &index in &choice.chain {
                self.is_chosen[index as usize] = false;
            }
            self.chosen ^= self.marks_of(&choice.chain, choice.operation);
            self.state = choice.state_before;
            self.latest = choice.latest_before;
            resume = choice.resume;
        }
    }

    /// The next choice that leads to a configuration nobody has seen; it is counted as chosen and seen.
    fn next_choice(&mut self, resume: &mut Resume<M::State>) -> Option<(Vec<u32>, u32, M::State)> {
        if let Resume::Calls(event, blind) = resume {
            if !*blind
                && *event == self.next[HEAD as usize]
                && let Some(operation) = self.next_look()
            {
                *resume = Resume::Nothing;
                let state = self.state.clone();
                return self.visit(&[], operation, &state).then_some((Vec::new(), operation, state));
            }
            loop {
                // The first response ends the list of those that may be next.
                while let (operation, true) = self.events[*event as usize] {
                    *event = self.next[*event as usize];
                    if self.is_blind[operation as usize] != *blind || !self.is_its_turn(operation) {
                        continue;
                    }
                    let asked = self.completed[operation as usize];
                    if let Some(state) = self.model.step(&self.state, &asked.input, asked.output.as_ref())
                        && self.visit(&[], operation, &state)
                    {
                        return Some((Vec::new(), operation, state));
                    }
                }
                if *blind {
                    break;
                }
                (*event, *blind) = (self.next[HEAD as usize], true);
            }
            *resume = Resume::Chains(self.chains());
        }
        let Resume::Chains(chains) = resume else { return None };
        loop {
            while let Some((chain, operation, state)) = chains.found.pop() {
                if self.visit(&chain, operation, &state) {
                    return Some((chain, operation, state));
                }
            }
            if !self.lengthen(chains) {
                return None;
            }
        }
    }

    /// An operation that may be next, changes nothing, and does not put an end to any unknown one.
    fn next_look(&self) -> Option<u32> {
        let next_cut = self.cuts.partition_point(|&cut| cut <= self.latest);
        let next_cut = self.cuts.get(next_cut).copied().unwrap_or(NEVER);
        let mut event = self.next[HEAD as usize];
        while let (operation, true) = self.events[event as usize] {
            event = self.next[event as usize];
            if !self.only_looked[operation as usize] || !self.is_its_turn(operation) {
                continue;
            }
            let asked = self.completed[operation as usize];
            if asked.invoked >= next_cut {
                break;
            }
            if self.model.step(&self.state, &asked.input, asked.output.as_ref()).is_some() {
                return Some(operation);
            }
        }
        None
    }

    /// Whether all that its client asked of the same keys before has been chosen.
    fn is_its_turn(&self, operation: u32) -> bool {
        self.asked_before[operation as usize].iter().all(|&before| self.is_taken_out[before as usize])
    }

    fn visit(&mut self, chain: &[u32], operation: u32, state: &M::State) -> bool {
        if self.visited.len() >= self.configurations_max {
            self.is_given_up = true;
        }
        if self.is_given_up {
            return false;
        }
        let chosen = self.chosen ^ self.marks_of(chain, operation);
        let is_new = self.visited.insert((chosen, state.clone()));
        if is_new {
            self.chosen = chosen;
        }
        is_new
    }

    fn marks_of(&self, chain: &[u32], operation: u32) -> u128 {
        self.unknown_marks(chain) ^ self.marks[operation as usize]
    }

    fn unknown_marks(&self, chain: &[u32]) -> u128 {
        let marks = chain.iter().map(|&index| self.marks[self.completed.len() + index as usize]);
        marks.fold(0, |all, mark| all ^ mark)
    }

    /// What chains can be made of in the present configuration.
    fn chains(&mut self) -> Chains<M::State> {
        let mut chains = Chains {
            found: Vec::new(),
            level: Vec::new(),
            available: Vec::new(),
            calls: Vec::new(),
            length: 0,
            length_max: 0,
        };
        if self.unknown.is_empty() {
            return chains;
        }
        let (calls, first_response) = self.open_calls();
        let first_response = self.completed[first_response as usize].responded;
        let first_call = self.completed[calls[0] as usize].invoked;
        chains.available = (0..self.unknown.len())
            .take_while(|&index| self.unknown[index].invoked < first_response)
            .filter(|&index| !self.is_chosen[index] && self.unknown[index].responded > self.latest)
            .map(|index| index as u32)
            .collect();
        // At a cut, whatever is chosen next, all that is unknown is out of the search: there it is now or never.
        let is_cut =
            chains.available.iter().all(|&index| self.unknown[index as usize].responded < first_call);
        chains.length_max = chains.available.len();
        if !is_cut && chains.length_max > self.chain_max {
            chains.length_max = self.chain_max;
            self.was_limited = true;
        }
        chains.calls = calls;
        chains.level.push((Vec::new(), self.state.clone()));
        chains
    }

    /// All chains of one more unknown operation that make a completed one possible, or change what it leads to. False
    /// if there are none.
    fn lengthen(&mut self, chains: &mut Chains<M::State>) -> bool {
        if chains.length == chains.length_max || chains.level.is_empty() || self.is_given_up {
            return false;
        }
        chains.length += 1;
        let mut longer = Vec::new();
        // The same operations that lead to the same state in another order lead nowhere else.
        let mut seen = HashSet::new();
        for (chain, state) in &chains.level {
            let mut tried = Vec::new();
            let latest = chain.iter().map(|&index| self.unknown[index as usize].invoked).max();
            let latest = latest.map_or(self.latest, |latest| latest.max(self.latest));
            for &index in chains.available.iter().filter(|index| !chain.contains(index)) {
                let unknown = self.unknown[index as usize];
                let class = self.first_equal[index as usize];
                if unknown.responded <= latest || tried.contains(&class) {
                    continue;
                }
                tried.push(class);
                let Some(next) = self.model.step(state, &unknown.input, None) else { continue };
                let chain: Vec<u32> = chain.iter().copied().chain([index]).collect();
                // What fewer can do is done by fewer: they leave more for later.
                if self.can_do_with_fewer(&chain, None, &next) {
                    continue;
                }
                if !seen.insert((self.unknown_marks(&chain), next.clone())) {
                    continue;
                }
                for &operation in &chains.calls {
                    let asked = self.completed[operation as usize];
                    let after = self.model.step(&next, &asked.input, asked.output.as_ref());
                    if let Some(after) = after
                        && !self.can_do_with_fewer(&chain, Some(asked), &after)
                    {
                        chains.found.push((chain.clone(), operation, after));
                    }
                }
                longer.push((chain, next));
            }
            if longer.len() + chains.found.len() > UNKNOWN_ORDERS_MAX {
                self.is_given_up = true;
                return false;
            }
        }
        chains.level = longer;
        chains.found.reverse();
        true
    }

    /// Whether one of the chain can be left out and the state is the same, after the completed operation if there is one.
    fn can_do_with_fewer(&self, chain: &[u32], asked: Option<&OperationOf<M>>, after: &M::State) -> bool {
        (0..chain.len()).any(|left_out| {
            let mut state = self.state.clone();
            for (position, &index) in chain.iter().enumerate() {
                if position != left_out {
                    match self.model.step(&state, &self.unknown[index as usize].input, None) {
                        Some(next) => state = next,
                        None => return false,
                    }
                }
            }
            match asked {
                None => state == *after,
                Some(asked) => {
                    self.model.step(&state, &asked.input, asked.output.as_ref()).as_ref() == Some(after)
                }
            }
        })
    }

    /// The operations that may be next, and the one among them that is over first.
    fn open_calls(&self) -> (Vec<u32>, u32) {
        let mut calls = Vec::new();
        let mut event = self.next[HEAD as usize];
        while let (operation, true) = self.events[event as usize] {
            calls.extend(self.is_its_turn(operation).then_some(operation));
            event = self.next[event as usize];
        }
        (calls, self.events[event as usize].0)
    }

    fn take_out(&mut self, operation: u32) {
        self.is_taken_out[operation as usize] = true;
        for event in self.events_of[operation as usize] {
            let (before, after) = (self.previous[event as usize], self.next[event as usize]);
            self.next[before as usize] = after;
            self.previous[after as usize] = before;
        }
    }

    fn put_back(&mut self, operation: u32) {
        self.is_taken_out[operation as usize] = false;
        for event in self.events_of[operation as usize].into_iter().rev() {
            let (before, after) = (self.previous[event as usize], self.next[event as usize]);
            self.next[before as usize] = event;
            self.previous[after as usize] = event;
        }
    }

    fn dead_end(&self, choices: &[Choice<M::State>]) -> DeadEnd<M::State> {
        let last = &choices[choices.len().saturating_sub(LAST_SHOWN)..];
        let (open, first_response) = self.open_calls();
        DeadEnd {
            ordered: choices.len(),
            last: last.iter().map(|choice| (choice.chain.clone(), choice.operation)).collect(),
            state: self.state.clone(),
            stuck: first_response,
            open: open.into_iter().filter(|operation| *operation != first_response).collect(),
        }
    }

    fn describe(&self, end: DeadEnd<M::State>) -> Violation {
        let show = |operation: &OperationOf<M>| {
            let Operation { client, input, output, invoked, responded } = operation;
            match output {
                Some(output) => {
                    format!("[{invoked} to {responded}] client {client}: {input:?} -> {output:?}")
                }
                None if *responded == NEVER => {
                    format!("[{invoked} to …] client {client}: {input:?} -> unknown")
                }
                None => {
                    format!("[{invoked} to a cut at {responded}] client {client}: {input:?} -> unknown")
                }
            }
        };
        let completed = |operation: u32| show(self.completed[operation as usize]);
        let mut last = Vec::new();
        for (chain, operation) in end.last {
            last.extend(chain.into_iter().map(|index| show(self.unknown[index as usize])));
            last.push(completed(operation));
        }
        Violation {
            partition: String::new(),
            ordered: end.ordered,
            completed: self.completed.len(),
            last,
            state: self.model.show(&end.state),
            stuck: completed(end.stuck),
            open: end.open.into_iter().map(completed).collect(),
        }
    }
}
