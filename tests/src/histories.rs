//! Servers that change roles, and what their clients are told of records: from a seed.
//!
//! Each server is a real engine with the state that replication shares with its shards. What the replication thread does to
//! these is done here, in the thread's order and one step at a time, and clients ask between any two: CLIENT LSN, WAIT,
//! WAITLSN with a read behind it, and over HTTP the same. Several servers write histories of their own, follow one another
//! with what they have in common or are given everything anew, and are promoted.
//!
//! Each record has a number that is never given twice, and every server's list of them is the truth that answers are held
//! against: a token names one record for ever; a read that wants a record is answered from data that has it; "lost" is said
//! of what is not there, and WAIT counts servers that have the very record.

use crate::random::Random;
use repl::lineage::{BranchId, Common, Lineage};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use store::arena::HeapSource;
use store::config::Config;
use store::engine::{Action, Engine, Seeds};
use store::journal::{Journal, Records};
use store::replication::{Edge, Feed, Hindrance, Portion, ReplicationState, Report, Role};
use store::session::{ConnectionId, Durability, Peer, Transport};
use store::time::{Clock, Nanos, Now};
use wal::lsn::{Epoch, Lsn};

const NODES: usize = 3;
/// Of each node: the first half speak RESP, the others HTTP.
const CLIENTS: usize = 6;
const KEYS: usize = 3;
const EVENTS: usize = 2500;

/// A mistake made on purpose, by who changes the roles: the answers must show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// Data of another history can be read before the history is told.
    ShowsBeforeHistory,
    /// Who is promoted begins no branch.
    BeginsNoBranch,
    /// Whatever branch a record is of, it is said to be held.
    HoldsAllBranches,
    /// Who has another history, and has yet to be given this one, counts as a replica.
    CountsStrangers,
}

impl Mistake {
    /// All of them.
    pub const ALL: [Mistake; 4] = [
        Mistake::ShowsBeforeHistory,
        Mistake::BeginsNoBranch,
        Mistake::HoldsAllBranches,
        Mistake::CountsStrangers,
    ];
}

/// What a run came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Records written.
    pub written: u64,
    /// Reads answered from data that has their record.
    pub found: u64,
    /// Reads told that theirs is lost.
    pub lost: u64,
    /// Reads told that theirs is not there.
    pub behind: u64,
    /// Answers of WAIT that counted, and those that refused to.
    pub counted: u64,
    /// WAITs refused because the write was lost.
    pub lost_waits: u64,
    /// Tokens told by CLIENT LSN that name a record of another history than the server's.
    pub foreign_names: u64,
    /// Promotions.
    pub promotions: u64,
    /// Full syncs.
    pub installs: u64,
}

impl Tally {
    /// Adds another run's.
    pub fn add(&mut self, other: &Tally) {
        let Tally { written, found, lost, behind, counted, lost_waits, foreign_names, promotions, installs } =
            self;
        *written += other.written;
        *found += other.found;
        *lost += other.lost;
        *behind += other.behind;
        *counted += other.counted;
        *lost_waits += other.lost_waits;
        *foreign_names += other.foreign_names;
        *promotions += other.promotions;
        *installs += other.installs;
    }
}

/// What one command changed, under a number of its own.
#[derive(Debug)]
struct Record {
    id: u64,
    key: usize,
    effects: Vec<u8>,
}

#[derive(Debug, Default)]
struct EdgeEnd {
    lineage: Mutex<Lineage>,
    acked: Mutex<Vec<u64>>,
    holds_all: bool,
}

impl Edge for EdgeEnd {
    fn report(&self) -> Report {
        Report::default()
    }

    fn follow(&self, _: Option<(String, u16)>) -> Result<u64, String> {
        Err("ERR it is told otherwise".into())
    }

    fn followed(&self, _: u64) -> Option<Result<(), String>> {
        None
    }

    fn replicas_with(&self, lsn: u64, _: bool) -> usize {
        self.acked.lock().unwrap().iter().filter(|&&acked| acked >= lsn).count()
    }

    fn holds_record(&self, branch: u64, lsn: u64) -> bool {
        self.holds_all || self.lineage.lock().unwrap().holds_record(BranchId(branch), Lsn(lsn))
    }
}

#[derive(Debug, Default)]
struct FeedEnd(Mutex<VecDeque<Portion>>);

impl Feed for FeedEnd {
    fn take(&self, until: u64) -> Option<Portion> {
        self.0.lock().unwrap().pop_front_if(|portion| portion.last_lsn <= until)
    }

    fn applied(&self, _: u64, result: Result<(), String>) {
        result.expect("records can be applied");
    }
}

struct At(Now);

impl Clock for At {
    fn monotonic(&self) -> Nanos {
        self.0.monotonic
    }
}

/// What a client waits to be told.
#[derive(Clone, Debug)]
enum Asked {
    /// The name of this record, which it has just written.
    Write(u64),
    Name,
    Wait,
    /// This record's token, and then its key.
    Read(u64),
}

#[derive(Clone, Debug, Default)]
struct Client {
    received: String,
    asked: Option<Asked>,
    last: Option<u64>,
}

/// What the thread does next, and clients may ask before.
#[derive(Clone, Debug)]
enum Step {
    Dealt(u64),
    Role(Role),
    Follow,
    Flush,
    /// What is there can be read.
    ShowAll,
    Lineage(Lineage),
    Branch(BranchId, u64),
    Hinder(Hindrance),
    Replace(Vec<Arc<Record>>),
    Linked(u64),
    Lead,
}

struct Node {
    engine: Engine,
    state: Arc<ReplicationState>,
    edge: Arc<EdgeEnd>,
    feed: Arc<FeedEnd>,
    lsns: Arc<AtomicU64>,
    log: Vec<Arc<Record>>,
    durable: usize,
    lineage: Lineage,
    follows: Option<usize>,
    /// Of the node it follows, when it was given its history.
    linked: Option<u64>,
    /// Goes up with every change of role or history.
    term: u64,
    steps: VecDeque<Step>,
    clients: Vec<Client>,
    now: Now,
}

fn id(client: usize) -> ConnectionId {
    ConnectionId { slot: client as u32, generation: 0 }
}

impl Node {
    fn new(branch: u64, mistake: Option<Mistake>) -> Node {
        let now = Now { unix_us: 1_700_000_000_000_000, monotonic: Nanos(5_000_000_000) };
        let mut engine =
            Engine::new(Config::default(), Seeds::default(), Box::new(HeapSource::default()), now);
        let lsns = Arc::new(AtomicU64::new(1));
        engine.keep_journal(Journal::new(Arc::clone(&lsns), Durability::Always));
        let holds_all = mistake == Some(Mistake::HoldsAllBranches);
        let edge = Arc::new(EdgeEnd { holds_all, ..EdgeEnd::default() });
        let replication = &mut engine.shared_mut().replication;
        replication.edge = Some(Arc::<EdgeEnd>::clone(&edge));
        let state = Arc::clone(&replication.state);
        let mut lineage = Lineage::default();
        let begun = lineage.begin(Lsn::FIRST, BranchId(branch), Epoch::FIRST);
        edge.lineage.lock().unwrap().clone_from(&lineage);
        state.set_branch(branch, begun.epoch.0);
        for client in 0..CLIENTS {
            let transport = if client < CLIENTS / 2 { Transport::Resp } else { Transport::Http };
            let peer = Peer { transport, address: format!("10.0.0.1:{client}"), ..Peer::default() };
            engine.handle_connect(id(client), peer, now);
        }
        Node {
            engine,
            state,
            edge,
            feed: Arc::default(),
            lsns,
            log: Vec::new(),
            durable: 0,
            lineage,
            follows: None,
            linked: None,
            term: 0,
            steps: VecDeque::new(),
            clients: vec![Client::default(); CLIENTS],
            now,
        }
    }

    fn is_primary(&self) -> bool {
        self.follows.is_none() && self.steps.is_empty()
    }

    /// Where a record is in what this node has, from 1 on.
    fn lsn_of(&self, record: u64) -> Option<usize> {
        self.log.iter().position(|known| known.id == record).map(|at| at + 1)
    }

    fn turn(&mut self) {
        self.engine.apply_dealt(self.now);
        self.engine.finish_turn(self.now);
        while let Some(action) = self.engine.poll_action() {
            match action {
                Action::Flush(connection) => {
                    if let Some(bytes) = self.engine.take_output(connection) {
                        let text = std::str::from_utf8(&bytes).expect("text");
                        self.clients[connection.slot as usize].received.push_str(text);
                        self.engine.handle_sent(connection, bytes, self.now, &At(self.now));
                    }
                }
                Action::PauseReceive(_) | Action::ResumeReceive(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn do_step(&mut self, step: Step) {
        match step {
            Step::Dealt(lsn) => self.state.set_dealt_lsn(lsn),
            Step::Role(role) => self.state.set_role(role),
            Step::Follow => {
                let feed = Arc::clone(&self.feed);
                self.engine.shared_mut().begin_following(feed, 0);
            }
            Step::Flush => {
                self.durable = self.log.len();
                self.engine.set_durable(self.durable as u64);
            }
            Step::ShowAll => self.state.set_dealt_lsn(self.log.len() as u64),
            Step::Lineage(lineage) => {
                self.edge.lineage.lock().unwrap().clone_from(&lineage);
                self.lineage = lineage;
            }
            Step::Branch(branch, epoch) => self.state.set_branch(branch.0, epoch),
            Step::Hinder(hindrance) => self.state.set_hindrance(hindrance),
            Step::Replace(log) => {
                self.feed.0.lock().unwrap().clear();
                self.engine.shared_mut().clear_for_another(self.now);
                for record in &log {
                    self.engine.apply_all(&record.effects, self.now).expect("they were applied before");
                }
                let feed = Arc::clone(&self.feed);
                self.engine.shared_mut().begin_following(feed, log.len() as u64);
                (self.durable, self.log) = (log.len(), log);
                self.lsns.store(self.durable as u64 + 1, Ordering::Relaxed);
            }
            Step::Linked(term) => {
                self.linked = Some(term);
                self.state.set_linked(true);
            }
            Step::Lead => {
                self.state.set_linked(false);
                self.engine.shared_mut().end_following(self.log.len() as u64);
            }
        }
    }
}

/// A run.
pub struct World {
    random: Random,
    mistake: Option<Mistake>,
    nodes: Vec<Node>,
    next_record: u64,
    /// Records by the tokens that were told of them.
    named: BTreeMap<String, Arc<Record>>,
    tally: Tally,
}

/// Runs a seed; an error is a wrong answer.
pub fn run(seed: u64, mistake: Option<Mistake>) -> Result<Tally, String> {
    let mut random = Random::new(seed);
    let nodes = (0..NODES).map(|_| Node::new(random.next_u64(), mistake)).collect();
    let mut world =
        World { random, mistake, nodes, next_record: 1, named: BTreeMap::new(), tally: Tally::default() };
    for _ in 0..EVENTS {
        let node = world.random.below(NODES);
        match world.random.below(100) {
            0..45 => world.ask(node)?,
            45..58 if world.nodes[node].follows.is_none() => world.nodes[node].do_step(Step::Flush),
            58..72 => world.deal(node),
            72..90 => world.go_on(node),
            90..93 => world.promote(node),
            93..96 => world.follow(node),
            _ => {
                let now = &mut world.nodes[node].now;
                (now.monotonic.0, now.unix_us) = (now.monotonic.0 + 7_000_000, now.unix_us + 7000);
            }
        }
        world.nodes[node].turn();
        world.hear(node)?;
    }
    Ok(world.tally)
}

impl World {
    // ---- what the threads do ------------------------------------------------------------------------------

    /// The next step of a change, or the handshake with the node that is followed.
    fn go_on(&mut self, node: usize) {
        if let Some(step) = self.nodes[node].steps.pop_front() {
            return self.nodes[node].do_step(step);
        }
        let Some(to) = self.nodes[node].follows.filter(|&to| self.nodes[to].is_primary()) else { return };
        if self.nodes[node].linked == Some(self.nodes[to].term) {
            return;
        }
        let (there, here) = (&self.nodes[to], &self.nodes[node]);
        let last = here.log.len();
        let is_partial =
            last <= there.durable && there.lineage.common(&here.lineage, Lsn(last as u64)) == Common::Prefix;
        let (lineage, term) = (there.lineage.clone(), there.term);
        let latest = lineage.latest().expect("it has begun one");
        let history = [Step::Lineage(lineage), Step::Branch(latest.id, latest.epoch.0)];
        let mut steps = VecDeque::new();
        if is_partial {
            steps.extend(history);
        } else {
            self.tally.installs += 1;
            let log: Vec<_> = there.log[..there.durable].to_vec();
            steps.extend([Step::Hinder(Hindrance::Loading), Step::Dealt(0)]);
            let show = Step::Dealt(log.len() as u64);
            steps.push_back(Step::Replace(log));
            match self.mistake {
                Some(Mistake::ShowsBeforeHistory) => steps.extend([show].into_iter().chain(history)),
                _ => steps.extend(history.into_iter().chain([show])),
            }
            steps.push_back(Step::Hinder(Hindrance::None));
        }
        steps.push_back(Step::Linked(term));
        let node = &mut self.nodes[node];
        (node.steps, node.linked) = (steps, None);
        node.state.set_linked(false);
    }

    /// Some records go to a replica.
    fn deal(&mut self, node: usize) {
        let Some(to) = self.nodes[node].follows.filter(|_| self.nodes[node].steps.is_empty()) else { return };
        if self.nodes[node].linked != Some(self.nodes[to].term) || !self.nodes[to].is_primary() {
            return;
        }
        let at = self.nodes[node].log.len();
        let end = self.nodes[to].durable.min(at + 1 + self.random.below(3));
        let new: Vec<_> = self.nodes[to].log.get(at..end).unwrap_or_default().to_vec();
        let node = &mut self.nodes[node];
        let mut portion = Portion { last_lsn: end as u64, ..Portion::default() };
        new.iter().for_each(|record| portion.effects.extend_from_slice(&record.effects));
        node.log.extend(new);
        node.durable = node.log.len();
        node.lsns.store(node.durable as u64 + 1, Ordering::Relaxed);
        node.feed.0.lock().unwrap().push_back(portion);
        node.state.set_dealt_lsn(node.durable as u64);
    }

    fn promote(&mut self, node: usize) {
        let id = BranchId(self.random.next_u64());
        let node = &mut self.nodes[node];
        if node.follows.is_none() || !node.steps.is_empty() {
            return;
        }
        self.tally.promotions += 1;
        (node.follows, node.linked) = (None, None);
        node.term += 1;
        let mut lineage = node.lineage.clone();
        let branch = lineage.begin(Lsn(node.log.len() as u64).next(), id, Epoch::FIRST);
        if self.mistake != Some(Mistake::BeginsNoBranch) {
            node.steps.extend([Step::Lineage(lineage), Step::Branch(branch.id, branch.epoch.0)]);
        }
        node.steps.extend([Step::Role(Role::Primary), Step::Lead, Step::Hinder(Hindrance::None)]);
    }

    fn follow(&mut self, node: usize) {
        let to = (node + 1 + self.random.below(NODES - 1)) % NODES;
        // Somebody is to write.
        let is_last = (0..NODES).all(|other| other == node || self.nodes[other].follows.is_some());
        let node = &mut self.nodes[node];
        if !node.steps.is_empty() || is_last {
            return;
        }
        if node.follows.is_none() {
            node.term += 1;
            let steps = [Step::Dealt(0), Step::Role(Role::Replica), Step::Follow, Step::Flush, Step::ShowAll];
            node.steps.extend(steps);
        }
        (node.follows, node.linked) = (Some(to), None);
        node.state.set_linked(false);
    }

    /// What each replica of a node has said that it has.
    fn tell_acks(&mut self, node: usize) {
        let term = self.nodes[node].term;
        let counts_all = self.mistake == Some(Mistake::CountsStrangers);
        let follows = |other: &&Node| {
            other.follows == Some(node)
                && (counts_all || other.linked == Some(term) && other.steps.is_empty())
        };
        let acked = self.nodes.iter().filter(follows).map(|other| other.state.dealt_lsn()).collect();
        *self.nodes[node].edge.acked.lock().unwrap() = acked;
    }

    // ---- what clients do ------------------------------------------------------------------------------------

    fn ask(&mut self, node: usize) -> Result<(), String> {
        self.tell_acks(node);
        let client = self.random.below(CLIENTS);
        if self.nodes[node].clients[client].asked.is_some() {
            return Ok(());
        }
        let is_http = client >= CLIENTS / 2;
        let (key, recent) = (self.random.below(KEYS), self.named.len().saturating_sub(1));
        let (asked, text) = match self.random.below(10) {
            0..4 => {
                let record = self.next_record;
                self.next_record += 1;
                let text = match is_http {
                    true => format!(
                        "PUT /v1/keys/k{key} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{record}",
                        record.to_string().len()
                    ),
                    false => format!("SET k{key} {record}\r\nCLIENT LSN\r\n"),
                };
                (Asked::Write(record), text)
            }
            4 if !is_http => (Asked::Name, "CLIENT LSN\r\n".to_string()),
            5 | 6 if !is_http => {
                (Asked::Wait, format!("WAIT {} {}\r\n", self.random.below(3), 1 + self.random.below(30)))
            }
            _ if self.named.is_empty() => return Ok(()),
            _ => {
                let at = self.random.below(recent + 1);
                let (token, record) = self.named.iter().nth(at).expect("there are so many");
                let wait_ms = self.random.below(30);
                let text = match is_http {
                    true => format!(
                        "GET /v1/keys/k{} HTTP/1.1\r\nHost: localhost\r\nX-Millrace-LSN: {token}\r\nX-Millrace-Wait-Ms: {wait_ms}\r\n\r\n",
                        record.key
                    ),
                    false => format!("WAITLSN {token} {}\r\nGET k{}\r\n", wait_ms + 1, record.key),
                };
                (Asked::Read(record.id), text)
            }
        };
        let here = &mut self.nodes[node];
        let written = if let Asked::Write(record) = asked { record } else { 0 };
        here.clients[client].asked = Some(asked);
        here.engine.handle_receive(id(client), text.as_bytes(), here.now, &At(here.now));
        let mut records = Records::default();
        here.engine.shared_mut().take_records(&mut records);
        for (lsn, effects) in records.iter() {
            if lsn != here.log.len() as u64 + 1 {
                return Err(format!("LSN {lsn} was written behind LSN {}", here.log.len()));
            }
            here.log.push(Arc::new(Record { id: written, key, effects: effects.to_vec() }));
            here.clients[client].last = Some(written);
            self.tally.written += 1;
        }
        Ok(())
    }

    /// Judges what clients of a node were told.
    fn hear(&mut self, node: usize) -> Result<(), String> {
        for client in 0..CLIENTS {
            let said = std::mem::take(&mut self.nodes[node].clients[client].received);
            if said.is_empty() {
                continue;
            }
            let Some(asked) = self.nodes[node].clients[client].asked.clone() else {
                return Err(format!("nobody asked for {said:?}"));
            };
            let is_partial = match asked {
                // Two answers, which may come one by one.
                Asked::Write(_) | Asked::Read(_) if client < CLIENTS / 2 => lines(&said) < 2,
                _ => false,
            };
            if is_partial {
                self.nodes[node].clients[client].received = said;
                continue;
            }
            self.nodes[node].clients[client].asked = None;
            self.judge(node, client, &asked, &said)
                .map_err(|why| format!("{why}: node {node}, client {client}, {asked:?} was told {said:?}"))?;
        }
        Ok(())
    }

    fn judge(&mut self, node: usize, client: usize, asked: &Asked, said: &str) -> Result<(), String> {
        let is_http = client >= CLIENTS / 2;
        if said.starts_with("-LOADING") || is_http && said[9..].starts_with("503") {
            return Ok(());
        }
        match *asked {
            Asked::Write(record) => {
                let token = match is_http {
                    true => said.lines().find_map(|line| line.strip_prefix("X-Millrace-LSN: ")),
                    false if said.starts_with("+OK\r\n") => said.lines().nth(2),
                    false => None,
                };
                match token {
                    Some(token) => self.name(token, record, node),
                    None if said.starts_with("-READONLY") => Ok(()),
                    None if is_http && said[9..].starts_with("409") => Ok(()),
                    None => Err("a write without a name".into()),
                }
            }
            Asked::Name if said == "$-1\r\n" => match self.nodes[node].clients[client].last {
                None => Ok(()),
                Some(last) => Err(format!("it has written {last}")),
            },
            Asked::Name => {
                let last = self.nodes[node].clients[client].last.ok_or("it has written nothing")?;
                let token = said.lines().nth(1).ok_or("no name")?;
                self.tally.foreign_names += u64::from(self.nodes[node].lsn_of(last).is_none());
                self.name(token, last, node)
            }
            Asked::Wait => self.judge_wait(node, client, said),
            Asked::Read(record) => self.judge_read(node, record, said, is_http),
        }
    }

    /// A token was told for a record.
    fn name(&mut self, token: &str, record: u64, node: usize) -> Result<(), String> {
        if let Some(known) = self.named.get(token) {
            return match known.id == record {
                true => Ok(()),
                false => Err(format!("{token} names {} and {record}", known.id)),
            };
        }
        let known = self.nodes[node].log.iter().find(|known| known.id == record);
        let known = known.ok_or(format!("{record} is named {token} when it is lost"))?;
        self.named.insert(token.into(), Arc::clone(known));
        Ok(())
    }

    fn judge_wait(&mut self, node: usize, client: usize, said: &str) -> Result<(), String> {
        let last = self.nodes[node].clients[client].last;
        let is_here = last.is_none_or(|last| self.nodes[node].lsn_of(last).is_some());
        if let Some(count) = said.strip_prefix(':') {
            self.tally.counted += 1;
            let count: usize = count.trim_end().parse().map_err(|_| "no number")?;
            let has = |(at, other): (usize, &Node)| {
                at != node && last.is_none_or(|last| other.lsn_of(last).is_some())
            };
            let there = self.nodes.iter().enumerate().filter(|&at| has(at)).count();
            return match is_here && count <= there {
                true => Ok(()),
                false => Err(format!("{there} others have {last:?}; it does itself: {is_here}")),
            };
        }
        self.tally.lost_waits += u64::from(said.starts_with("-LOST"));
        match said.starts_with("-LOST") && is_here && last.is_some() {
            true => Err("it is there".into()),
            false
                if ["-LOST", "-UNBLOCKED", "-ERR WAIT cannot"].iter().any(|word| said.starts_with(word)) =>
            {
                Ok(())
            }
            false => Err("no answer to WAIT".into()),
        }
    }

    fn judge_read(&mut self, node: usize, record: u64, said: &str, is_http: bool) -> Result<(), String> {
        let here = &self.nodes[node];
        let wanted = here.lsn_of(record);
        let (is_found, value) = match is_http {
            true if said[9..].starts_with("200") => (true, said.split("\r\n\r\n").nth(1)),
            true if said[9..].starts_with("404") => return Err("the key is not there".into()),
            true => (false, None),
            // Reads behind it may be refused, while the data is replaced.
            false => (said.starts_with("+OK\r\n"), said.lines().nth(2)),
        };
        if is_found {
            self.tally.found += 1;
            let wanted = wanted.ok_or(format!("{record} is not there"))?;
            let Some(value) = value else { return Ok(()) };
            let value: u64 = value.parse().map_err(|_| "another value")?;
            return match here.lsn_of(value) {
                Some(lsn) if lsn >= wanted => Ok(()),
                lsn => Err(format!("LSN {wanted} was wanted, and {value}, LSN {lsn:?}, read")),
            };
        }
        let says = |word: &str| {
            said.starts_with(&format!("-{word}")) || said.contains(&format!("\"detail\":\"{word}"))
        };
        match () {
            () if says("LOST") => {
                self.tally.lost += 1;
                if wanted.is_none() { Ok(()) } else { Err(format!("it is there, LSN {wanted:?}")) }
            }
            () if says("BEHIND") => {
                self.tally.behind += 1;
                let is_shown = wanted.is_some() && here.steps.is_empty();
                if is_shown { Err(format!("it is there, LSN {wanted:?}")) } else { Ok(()) }
            }
            () => Err("no answer".into()),
        }
    }
}

/// Complete answers in what was said over RESP.
fn lines(said: &str) -> usize {
    let mut lines = said.split_inclusive("\r\n").filter(|line| line.ends_with("\r\n"));
    let mut count = 0;
    while let Some(line) = lines.next() {
        if line.starts_with('$') && !line.starts_with("$-") && lines.next().is_none() {
            break;
        }
        count += 1;
    }
    count
}
