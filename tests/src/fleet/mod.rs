//! Several shards in one thread: the deterministic driver of a fleet.
//!
//! A [`Fleet`] does what N threads and a kernel do for N engines. Messages between any two shards keep their order
//! and arrive when the seed says; so do the bytes of clients, cut anywhere, and the ends of sends. In a turn a
//! shard takes some of what has arrived, finishes the turn, does what the engine asks for and sends its messages. A
//! shard that is lent, or that stands still (DEBUG SLEEP), only hears messages. Nothing sleeps and nothing reads a
//! clock: time goes on by itself, and by leaps when nothing can happen before.
//!
//! When nothing can ever happen again and somebody still waits, that is the bug: [`Fleet::step`] says so.
//!
//! | module | what it owns |
//! |---|---|
//! | [`alike`] | a fleet answers as one shard does, byte for byte |
//! | [`crowd`] | many clients at once, and what none of them may see |
//! | [`history`] | whether reads and writes could have happened one after the other |
//! | [`script`] | random commands for clients that must not meet |

pub mod alike;
pub mod crowd;
pub mod history;
pub mod script;

use crate::random::Random;
use std::collections::VecDeque;
use std::sync::Arc;
use store::arena::HeapSource;
use store::config::{Config, Setting};
use store::engine::{Action, Engine, Seeds};
use store::session::{ConnectionId, Peer};
use store::shards::{Message, Place, Totals};
use store::time::{Clock, Nanos, Now};

/// Steps in which everything a test does must be over.
pub const STEPS_MAX: u64 = 5_000_000;

/// Turns of background work after which nothing else is expected.
const IDLE_MAX: u64 = 5000;

/// How a fleet is made.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How many shards.
    pub shards: usize,
    /// Delays, orders, cuts.
    pub seed: u64,
    /// The setting of this name.
    pub hop_queue: u32,
    /// The setting of this name; 0: its default.
    pub output_buffer_max: usize,
}

impl Plan {
    /// One shard and no delays to speak of: what a fleet is compared with.
    pub fn alone(seed: u64) -> Plan {
        Plan { shards: 1, seed, hop_queue: 1024, output_buffer_max: 0 }
    }

    /// Several shards, everything else drawn.
    pub fn draw(random: &mut Random) -> Plan {
        Plan {
            shards: *random.pick(&[1, 2, 2, 3, 3, 4, 4]),
            seed: random.next_u64(),
            hop_queue: *random.pick(&[1, 1, 2, 1024]),
            output_buffer_max: 0,
        }
    }
}

/// A client's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wire(usize);

/// What a client does.
enum Input {
    Connect,
    Bytes(Vec<u8>),
    /// It sends nothing more, and reads on.
    End,
    /// It is gone.
    Reset,
}

struct Line {
    shard: usize,
    id: ConnectionId,
    inputs: VecDeque<(u64, Input)>,
    /// What is being sent, and when that is done.
    sending: Option<(u64, Vec<u8>)>,
    /// The engine asked to close it once its output is out.
    draining: bool,
    /// It is closed, and the engine will hear of it.
    closing: Option<u64>,
    /// Receiving is paused.
    paused: bool,
    /// The engine has forgotten it.
    gone: bool,
    received: Vec<u8>,
    /// The longest that a send takes.
    read_delay: u64,
}

#[derive(Clone, Copy, Default)]
struct Shard {
    wakes_at: Option<u64>,
    stands_until: Option<u64>,
}

/// See the module.
pub struct Fleet {
    random: Random,
    /// Wall-clock time, microseconds. It stands still but for [`advance_unix`](Self::advance_unix).
    unix_us: u64,
    now: u64,
    engines: Vec<Engine>,
    shards: Vec<Shard>,
    /// From, to.
    pipes: Vec<Vec<VecDeque<(u64, Message)>>>,
    /// The longest that a message takes, by the same.
    delays: Vec<Vec<u64>>,
    lines: Vec<Line>,
    /// Slots of each shard that are free, with the generation of their last user.
    free: Vec<Vec<(u32, u32)>>,
    slots: Vec<u32>,
    steps: u64,
    /// Turns in a row in which nothing happened.
    idle: u64,
}

struct Standing(Nanos);

impl Clock for Standing {
    fn monotonic(&self) -> Nanos {
        self.0
    }
}

impl Fleet {
    /// A fleet without data and clients.
    pub fn new(plan: Plan) -> Fleet {
        let mut random = Random::new(plan.seed);
        let mut config = Config { hop_queue: plan.hop_queue, ..Config::default() };
        if plan.output_buffer_max > 0 {
            config.output_buffer_max = plan.output_buffer_max;
        }
        let debug = Setting::find(b"enable-debug-command").expect("a setting of the table");
        (debug.set)(&mut config, "yes").expect("one of its values");
        let count = plan.shards;
        let totals = Totals::new(count);
        let (unix_us, now) = (1_700_000_000_000_000, 1_000_000_000);
        let start = Now { unix_us, monotonic: Nanos(now) };
        let engines = (0..count)
            .map(|index| {
                let seeds = Seeds { hash: 11, random: random.next_u64(), run_id: [7; 20] };
                let (source, totals) = (Box::new(HeapSource::default()), Arc::clone(&totals));
                Engine::with_place(config.clone(), seeds, source, start, Place { index, count }, totals)
            })
            .collect();
        let mut delay = |_| (0..count).map(|_| *random.pick(&[300, 3_000, 30_000, 1_000_000])).collect();
        let delays = (0..count).map(&mut delay).collect();
        Fleet {
            unix_us,
            now,
            engines,
            shards: vec![Shard::default(); count],
            pipes: (0..count).map(|_| (0..count).map(|_| VecDeque::new()).collect()).collect(),
            delays,
            lines: Vec::new(),
            free: vec![Vec::new(); count],
            slots: vec![0; count],
            steps: 0,
            idle: 0,
            random,
        }
    }

    /// How many shards.
    pub fn shards(&self) -> usize {
        self.engines.len()
    }

    /// For decisions that belong to the same seed.
    pub fn random(&mut self) -> &mut Random {
        &mut self.random
    }

    /// Steps taken: the time of histories.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Wall-clock time goes on.
    pub fn advance_unix(&mut self, milliseconds: u64) {
        self.unix_us += milliseconds * 1000;
    }

    /// A client connects to a shard.
    pub fn connect(&mut self, shard: usize) -> Wire {
        let (slot, generation) = self.free[shard].pop().unwrap_or_else(|| {
            self.slots[shard] += 1;
            (self.slots[shard] - 1, 0)
        });
        let read_delay = *self.random.pick(&[500, 20_000, 400_000]);
        self.lines.push(Line {
            shard,
            id: ConnectionId { slot, generation: generation + 1 },
            inputs: VecDeque::new(),
            sending: None,
            draining: false,
            closing: None,
            paused: false,
            gone: false,
            received: Vec::new(),
            read_delay,
        });
        let wire = Wire(self.lines.len() - 1);
        self.push(wire, Input::Connect, 1000);
        wire
    }

    /// A client sends, in pieces of any size.
    pub fn send(&mut self, wire: Wire, bytes: &[u8]) {
        let delay = *self.random.pick(&[1, 1_000, 100_000]);
        let mut rest = bytes;
        while !rest.is_empty() {
            let most = match self.random.below(8) {
                0 => 3,
                1..4 => 100,
                4..6 => 20_000,
                _ => usize::MAX,
            };
            let (piece, behind) = rest.split_at(1 + self.random.below(rest.len().min(most)));
            rest = behind;
            self.push(wire, Input::Bytes(piece.to_vec()), delay);
        }
    }

    /// A client sends, in one piece.
    pub fn send_whole(&mut self, wire: Wire, bytes: &[u8]) {
        self.push(wire, Input::Bytes(bytes.to_vec()), 1000);
    }

    /// A client will send nothing more.
    pub fn finish(&mut self, wire: Wire) {
        self.push(wire, Input::End, 1000);
    }

    /// A client goes away without a word, once what it sent has arrived, or sooner.
    pub fn reset(&mut self, wire: Wire) {
        if self.random.chance(50) {
            let keep = self.random.below(self.lines[wire.0].inputs.len() + 1).max(1);
            self.lines[wire.0].inputs.truncate(keep);
        }
        self.push(wire, Input::Reset, 100_000);
    }

    /// What a client has received so far.
    pub fn received(&self, wire: Wire) -> &[u8] {
        &self.lines[wire.0].received
    }

    /// The same, taken.
    pub fn take_received(&mut self, wire: Wire) -> Vec<u8> {
        std::mem::take(&mut self.lines[wire.0].received)
    }

    /// Whether the server has closed the connection.
    pub fn is_closed(&self, wire: Wire) -> bool {
        let line = &self.lines[wire.0];
        line.gone || line.closing.is_some()
    }

    fn push(&mut self, wire: Wire, input: Input, delay: u64) {
        self.idle = 0;
        let at = self.now + self.random.next_u64() % delay;
        let line = &mut self.lines[wire.0];
        let at = line.inputs.back().map_or(at, |last| last.0.max(at));
        line.inputs.push_back((at, input));
    }

    /// Something happens somewhere. `false`: nothing ever will again.
    pub fn step(&mut self) -> bool {
        self.steps += 1;
        self.idle += 1;
        // Background work has its times: only many turns without an event mean that there will be none.
        if self.idle > IDLE_MAX {
            return false;
        }
        let ready: Vec<usize> = (0..self.engines.len()).filter(|&shard| self.is_ready(shard)).collect();
        if ready.is_empty() {
            let Some(next) = self.next_time() else { return false };
            self.now = self.now.max(next);
            return true;
        }
        let shard = *self.random.pick(&ready);
        self.turn(shard);
        self.now += self.random.next_u64() % 3000;
        true
    }

    /// Steps until `is_over`, or says why that will never be.
    pub fn run_until(&mut self, mut is_over: impl FnMut(&Fleet) -> bool) -> Result<(), String> {
        let limit = self.steps + STEPS_MAX;
        while !is_over(self) {
            if !self.step() {
                return Err(format!("nothing will ever happen again; {}", self.describe()));
            }
            if self.steps > limit {
                return Err(format!("after {STEPS_MAX} steps it is not over; {}", self.describe()));
            }
        }
        Ok(())
    }

    /// Nobody has anything to send, and no shard anything to do but wait for clients.
    pub fn is_settled(&self) -> bool {
        let silent = |line: &Line| {
            line.gone || (line.inputs.is_empty() && line.sending.is_none() && line.closing.is_none())
        };
        self.pipes.iter().flatten().all(VecDeque::is_empty)
            && self.lines.iter().all(silent)
            && self.shards.iter().all(|shard| shard.wakes_at.is_none_or(|at| at > self.now))
            && self.engines.iter().all(|engine| engine.unfinished().is_none())
    }

    /// All clients leave. What is left then is a leak.
    pub fn end(&mut self) -> Result<(), String> {
        for at in 0..self.lines.len() {
            if !self.lines[at].gone {
                self.push(Wire(at), Input::Reset, 1000);
            }
        }
        let still = |fleet: &Fleet| fleet.engines.iter().find_map(Engine::unfinished);
        self.run_until(|fleet| {
            let quiet = fleet.pipes.iter().flatten().all(VecDeque::is_empty);
            quiet && fleet.lines.iter().all(|line| line.gone) && still(fleet).is_none()
        })
        .map_err(|error| format!("the clients are gone, but {error}"))?;
        for (index, engine) in self.engines.iter().enumerate() {
            let shared = engine.shared();
            let left = [
                ("sessions", shared.sessions.len()),
                ("bytes of buffers", shared.buffer_bytes),
                ("clients", shared.clients),
                ("subscribers", shared.subscribers),
                ("watched keys", shared.keyspace.watched_len()),
                ("actions", usize::from(!shared.sessions.is_empty())),
            ];
            if let Some((what, count)) = left.into_iter().find(|(_, count)| *count > 0) {
                return Err(format!("shard {index} still has {count} {what} without any client"));
            }
            shared.keyspace.check().map_err(|error| format!("the keyspace of shard {index}: {error}"))?;
        }
        Ok(())
    }

    /// What each shard is about, for a report.
    fn describe(&self) -> String {
        let mut text = String::new();
        for (index, engine) in self.engines.iter().enumerate() {
            let unfinished = engine.unfinished().unwrap_or("nothing unfinished");
            text.push_str(&format!("shard {index}: {unfinished}; "));
        }
        for (at, line) in self.lines.iter().enumerate().filter(|(_, line)| !line.gone) {
            text.push_str(&format!(
                "wire {at} on shard {}: {} inputs wait, paused {}, sending {}, received {}; ",
                line.shard,
                line.inputs.len(),
                line.paused,
                line.sending.is_some(),
                line.received.len()
            ));
        }
        text
    }

    // -------------------------------------------------------------------------------------- what can happen

    fn hears(&self, shard: usize) -> impl Iterator<Item = usize> {
        let fronts = self.pipes.iter().enumerate().filter_map(move |(from, pipes)| {
            pipes[shard].front().filter(|(at, _)| *at <= self.now).map(|_| from)
        });
        fronts.collect::<Vec<_>>().into_iter()
    }

    fn is_ready(&self, shard: usize) -> bool {
        let state = &self.shards[shard];
        if self.hears(shard).next().is_some() {
            return true;
        }
        if let Some(until) = state.stands_until {
            return until <= self.now;
        }
        !self.engines[shard].is_lent()
            && (state.wakes_at.is_some_and(|at| at <= self.now)
                || self.lines.iter().any(|line| line.shard == shard && line.is_ready(self.now)))
    }

    fn next_time(&self) -> Option<u64> {
        let messages = self.pipes.iter().flatten().filter_map(|pipe| pipe.front().map(|front| front.0));
        let stands = self.shards.iter().filter_map(|shard| shard.stands_until);
        let acts =
            |shard: &usize| self.shards[*shard].stands_until.is_none() && !self.engines[*shard].is_lent();
        let wakes = (0..self.engines.len()).filter(acts).filter_map(|shard| self.shards[shard].wakes_at);
        let lines = self.lines.iter().filter(|line| acts(&line.shard)).filter_map(Line::next_time);
        messages.chain(stands).chain(wakes).chain(lines).min()
    }

    // -------------------------------------------------------------------------------------- a turn

    fn time(&self) -> (Now, Standing) {
        (Now { unix_us: self.unix_us, monotonic: Nanos(self.now) }, Standing(Nanos(self.now)))
    }

    fn turn(&mut self, shard: usize) {
        let (now, clock) = self.time();
        if self.engines[shard].is_lent() {
            self.hear_some(shard);
            if !self.engines[shard].is_lent() {
                self.shards[shard].wakes_at = Some(self.now);
            }
            return;
        }
        if let Some(until) = self.shards[shard].stands_until {
            self.hear_some(shard);
            if until <= self.now {
                self.idle = 0;
                self.shards[shard].stands_until = None;
                self.engines[shard].end_stall(now, &clock);
                self.shards[shard].wakes_at = Some(self.now);
            }
            self.post(shard);
            return;
        }
        for _ in 0..=self.random.below(8) {
            let lines: Vec<usize> = (0..self.lines.len())
                .filter(|&at| self.lines[at].shard == shard && self.lines[at].is_ready(self.now))
                .collect();
            let senders: Vec<usize> = self.hears(shard).collect();
            match self.random.below((lines.len() + senders.len()).max(1)) {
                at if at < lines.len() => self.act(lines[at]),
                at if at - lines.len() < senders.len() => self.hear(senders[at - lines.len()], shard),
                _ => break,
            }
        }
        self.engines[shard].finish_turn(now);
        let mut stall = 0;
        while let Some(action) = self.engines[shard].poll_action() {
            self.obey(shard, action, &mut stall);
        }
        if stall > 0 {
            self.engines[shard].begin_stall();
            self.shards[shard].stands_until = Some(self.now + stall);
            // What is sent leaves when it is over.
            for line in self.lines.iter_mut().filter(|line| line.shard == shard) {
                if let Some((at, _)) = &mut line.sending {
                    *at = (*at).max(self.now + stall);
                }
            }
        }
        self.post(shard);
        let lent = self.engines[shard].is_lent();
        let timeout = if lent { None } else { self.engines[shard].poll_timeout(now) };
        self.shards[shard].wakes_at = timeout.map(|timeout| self.now.saturating_add(timeout.0));
    }

    /// Takes some of the messages that have arrived.
    fn hear_some(&mut self, shard: usize) {
        for _ in 0..=self.random.below(4) {
            let senders: Vec<usize> = self.hears(shard).collect();
            if senders.is_empty() {
                return;
            }
            let from = *self.random.pick(&senders);
            self.hear(from, shard);
        }
    }

    fn hear(&mut self, from: usize, shard: usize) {
        let (now, clock) = self.time();
        if let Some((_, message)) = self.pipes[from][shard].pop_front() {
            self.idle = 0;
            self.engines[shard].handle_message(from, message, now, &clock);
        }
    }

    /// Sends the messages of a shard, the last of which may be the shard itself.
    fn post(&mut self, shard: usize) {
        while let Some((to, message)) = self.engines[shard].poll_message() {
            assert_ne!(to, shard, "a shard tells itself {message:?}");
            let at = self.now + self.random.next_u64() % self.delays[shard][to];
            let pipe = &mut self.pipes[shard][to];
            let at = pipe.back().map_or(at, |last| last.0.max(at));
            pipe.push_back((at, message));
        }
    }

    /// One event of a connection.
    fn act(&mut self, at: usize) {
        let (now, clock) = self.time();
        self.idle = 0;
        let line = &mut self.lines[at];
        let (engine, id) = (&mut self.engines[line.shard], line.id);
        if line.sending.as_ref().is_some_and(|sending| sending.0 <= self.now) {
            if let Some((_, buffer)) = line.sending.take() {
                line.received.extend_from_slice(&buffer);
                engine.handle_sent(id, buffer, now, &clock);
                self.flush(at);
            }
            return;
        }
        if line.closing.is_some_and(|at| at <= self.now) {
            engine.handle_disconnect(id, now);
            line.gone = true;
            line.inputs.clear();
            self.free[line.shard].push((id.slot, id.generation));
            return;
        }
        match line.inputs.pop_front().map(|(_, input)| input) {
            Some(Input::Connect) => {
                let peer = Peer {
                    address: "127.0.0.1:4242".into(),
                    local: "127.0.0.1:6379".into(),
                    ..Peer::default()
                };
                engine.handle_connect(id, peer, now);
            }
            Some(Input::Bytes(_) | Input::End) if line.draining || line.closing.is_some() => {}
            Some(Input::Bytes(bytes)) => engine.handle_receive(id, &bytes, now, &clock),
            Some(Input::End) => engine.handle_receive_end(id, now),
            Some(Input::Reset) => {
                line.closing.get_or_insert(self.now);
                line.sending = None;
            }
            None => {}
        }
    }

    fn obey(&mut self, shard: usize, action: Action, stall: &mut u64) {
        let (Action::Flush(id)
        | Action::Close(id)
        | Action::Abort(id)
        | Action::PauseReceive(id)
        | Action::ResumeReceive(id)) = action
        else {
            match action {
                Action::Stall(length) => *stall += length.0,
                other => panic!("no client asks for {other:?}"),
            }
            return;
        };
        let is_it = |line: &Line| line.shard == shard && line.id == id;
        let at = self.lines.iter().position(is_it);
        let at = at.unwrap_or_else(|| panic!("{action:?} on shard {shard}, which never had that connection"));
        // As in the server: what was queued for a connection that is gone is overlooked.
        if self.lines[at].gone {
            return;
        }
        match action {
            Action::Close(_) => {
                self.lines[at].draining = true;
                self.flush(at);
            }
            Action::Abort(_) => {
                self.lines[at].closing.get_or_insert(self.now + self.random.next_u64() % 2000);
            }
            Action::PauseReceive(_) => self.lines[at].paused = true,
            Action::ResumeReceive(_) => self.lines[at].paused = false,
            _ => self.flush(at),
        }
    }

    fn flush(&mut self, at: usize) {
        let line = &mut self.lines[at];
        if line.sending.is_some() || line.gone || line.closing.is_some() {
            return;
        }
        if let Some(output) = self.engines[line.shard].take_output(line.id) {
            line.sending = Some((self.now + self.random.next_u64() % line.read_delay, output));
        } else if line.draining {
            line.closing = Some(self.now + self.random.next_u64() % 2000);
        }
    }
}

impl Line {
    /// When something happens here next.
    fn next_time(&self) -> Option<u64> {
        if self.gone {
            return None;
        }
        let sent = self.sending.as_ref().map(|sending| sending.0);
        let heeds = |input: &Input| !self.paused || self.draining || matches!(input, Input::Reset);
        let input = self.inputs.front().filter(|(_, input)| heeds(input)).map(|front| front.0);
        [sent, self.closing, input].into_iter().flatten().min()
    }

    fn is_ready(&self, now: u64) -> bool {
        self.next_time().is_some_and(|at| at <= now)
    }
}
