//! One run: nodes, a network, time, and what goes wrong, all from a seed.

mod chaos;
mod checks;
mod edges;
mod net;

use super::disk::{Disk, Rec, Snapshot};
use super::ledger::{Ledger, Name, Truth, after, decode_name, encode_name};
use super::network::{Connection, Weather};
use super::node::{Node, Role, nonce};
use super::random::Random;
use super::{Bug, Tally};
use repl::lineage::BranchId;
use repl::message::SnapshotName;
use repl::primary::{self, LinkId, Primary};
use repl::reads::{AtLeast, ReadId, ReadVerdict};
use repl::replica::{self, Replica, State as Standing};
use repl::run::Delivery;
use std::collections::{BTreeMap, HashMap};
use wal::lsn::Lsn;
use wal::record::Record;

/// More events than this in one run: something turns round and round.
const EVENTS_MAX: u64 = 600_000;
/// When the network has healed, everybody is equal after so long at the latest.
const HEALED_US: u64 = 3_000_000;

#[derive(Debug)]
enum Event {
    Timer { node: usize, life: u64 },
    Deliver { connection: u64, to_replica: bool },
    Datagram { node: usize, bytes: Vec<u8> },
    Connected { node: usize, life: u64, to: usize },
    Write,
    TurnEnds { node: usize, life: u64, began: u64 },
    Flushed { node: usize, life: u64, lsn: u64 },
    Applied { node: usize, life: u64 },
    LogRead { node: usize, life: u64, link: LinkId, from: u64, until: u64, bytes_max: usize },
    SnapshotFound { node: usize, life: u64, link: LinkId, partial: Option<SnapshotName> },
    SnapshotRead { node: usize, life: u64, link: LinkId, name: SnapshotName, offset: u64, length: usize },
    Installed { node: usize, life: u64, name: SnapshotName, lineage: repl::lineage::Lineage },
    Fed { node: usize, life: u64 },
    Chaos,
    Heal,
    Restart { node: usize },
    Read,
}

pub struct World {
    pub random: Random,
    pub now: u64,
    pub nodes: Vec<Node>,
    pub ledger: Ledger,
    pub tally: Tally,
    bug: Option<Bug>,
    weather: Weather,
    events: BTreeMap<(u64, u64), Event>,
    scheduled: u64,
    connections: HashMap<u64, Connection>,
    next_connection: u64,
    /// Pairs of nodes between which nothing passes.
    cut: Vec<(usize, usize)>,
    /// Which run told a time first: a word may come to hold when its teller is no longer followed.
    tellers: HashMap<u64, u64>,
    reads: HashMap<(usize, u64, ReadId), Name>,
    waits: HashMap<(usize, u64, primary::WaitId), Name>,
    next_run: u64,
    healed: bool,
    writes_left: u64,
    failure: Option<String>,
    is_traced: bool,
}

impl World {
    pub fn new(seed: u64, bug: Option<Bug>) -> World {
        let mut random = Random(seed);
        let is_rough = random.chance(70);
        let rate = |random: &mut Random, most: u64| if is_rough { random.below(most + 1) } else { 0 };
        let weather = Weather {
            loss_percent: rate(&mut random, 25),
            duplicate_percent: rate(&mut random, 10),
            late_percent: rate(&mut random, 20),
            damage_percent: rate(&mut random, 5),
            latency_us: random.between(20, 1500),
        };
        let count = random.between(2, 5) as usize;
        let group = super::node::group_settings(&mut random);
        let nodes = (0..count).map(|index| Node::new(index, &group, &mut random)).collect();
        let writes_left = random.between(20, 150);
        World {
            random,
            now: 1000,
            nodes,
            ledger: Ledger::default(),
            tally: Tally { runs: 1, ..Tally::default() },
            bug,
            weather,
            events: BTreeMap::new(),
            scheduled: 0,
            connections: HashMap::new(),
            next_connection: 1,
            cut: Vec::new(),
            tellers: HashMap::new(),
            reads: HashMap::new(),
            waits: HashMap::new(),
            next_run: 1,
            healed: false,
            writes_left,
            failure: None,
            is_traced: std::env::var_os("MILLRACE_TRACE").is_some(),
        }
    }

    pub fn run(mut self) -> Result<Tally, String> {
        self.nodes[0].role = Role::Root;
        for index in 0..self.nodes.len() {
            self.start_node(index);
        }
        self.at(100, Event::Write);
        self.at(3000, Event::Chaos);
        self.at(2000, Event::Read);
        let heal_at = self.random.between(20_000, 300_000);
        self.at(heal_at, Event::Heal);
        while let Some(((at, _), event)) = self.events.pop_first() {
            self.now = self.now.max(at);
            self.tally.events += 1;
            if self.tally.events > EVENTS_MAX {
                return Err(format!("{EVENTS_MAX} events and no end, at {} us", self.now));
            }
            self.trace(|| format!("{event:?}"));
            self.handle(event);
            if let Some(failure) = self.failure.take() {
                return Err(failure);
            }
            if self.healed && self.writes_left == 0 && self.is_settled() {
                self.count_datagrams();
                return Ok(self.tally);
            }
            if self.healed && self.now > heal_at + HEALED_US {
                return Err(format!(
                    "not equal {HEALED_US} us after the network healed: {}",
                    self.describe()
                ));
            }
        }
        Err(format!("nothing more happens: {}", self.describe()))
    }

    pub fn trace(&self, line: impl FnOnce() -> String) {
        if self.is_traced {
            let line: String = line().chars().take(300).collect();
            eprintln!("{:>9} {line}", self.now);
        }
    }

    fn fail(&mut self, why: String) {
        self.failure.get_or_insert(why);
    }

    fn at(&mut self, delay: u64, event: Event) {
        self.scheduled += 1;
        self.events.insert((self.now + delay.max(1), self.scheduled), event);
    }

    fn is_cut(&self, a: usize, b: usize) -> bool {
        self.cut.contains(&(a.min(b), a.max(b)))
    }

    fn describe(&self) -> String {
        let all = self.nodes.iter().map(|node| {
            let replica = node.replica.as_ref();
            format!(
                "\n  {}: {:?}, last {:?}, {:?}, {:?}",
                node.index,
                node.role,
                node.state.last,
                replica.map(Replica::state),
                replica.and_then(Replica::last_fault).map(ToString::to_string)
            )
        });
        all.collect()
    }

    /// Everybody has what the one primary has, and no more.
    fn is_settled(&self) -> bool {
        let mut roots = self.nodes.iter().filter(|node| node.role == Role::Root);
        let Some(root) = roots.next() else { return false };
        let all = root.pending.is_empty() && self.nodes.iter().all(|node| node.is_up);
        all && self.nodes.iter().all(|node| node.state == root.state && node.is_caught_up())
    }

    fn handle(&mut self, event: Event) {
        let (bug, now) = (self.bug, self.now);
        for node in &mut self.nodes {
            let before = node.teller.told_us();
            node.look(now, bug);
            if node.role == Role::Root {
                let (told, run) = (node.teller.told_us(), node.run);
                let first = *self.tellers.entry(told).or_insert(run);
                if told != before && first != run {
                    // Two primaries whose clocks are equal: nobody knows whose word it is.
                    self.tellers.insert(told, 0);
                }
            }
        }
        match event {
            Event::Timer { node, life } => {
                if self.lives(node, life) {
                    self.nodes[node].timer_at = u64::MAX;
                    let now = self.nodes[node].now(self.now);
                    if let Some(primary) = &mut self.nodes[node].primary {
                        primary.handle_timeout(now);
                    }
                    if let Some(replica) = &mut self.nodes[node].replica {
                        replica.handle_timeout(now);
                    }
                    self.pump(node);
                }
            }
            Event::Deliver { connection, to_replica } => self.deliver(connection, to_replica),
            Event::Datagram { node, bytes } => {
                let now = self.nodes[node].now(self.now);
                if let Some(replica) = &mut self.nodes[node].replica {
                    replica.handle_datagram(&bytes, now);
                    self.pump(node);
                }
            }
            Event::Connected { node, life, to } => self.connected(node, life, to),
            Event::Write => self.write(),
            Event::TurnEnds { node, life, began } => self.turn_ends(node, life, began),
            Event::Flushed { node, life, lsn } => self.flushed(node, life, lsn),
            Event::Applied { node, life } => self.applied(node, life),
            Event::LogRead { node, life, link, from, until, bytes_max } => {
                if self.lives(node, life) {
                    self.read_log(node, link, from, until, bytes_max);
                    self.pump(node);
                }
            }
            Event::SnapshotFound { node, life, link, partial } => {
                if self.lives(node, life) {
                    self.find_snapshot(node, link, partial);
                    self.pump(node);
                }
            }
            Event::SnapshotRead { node, life, link, name, offset, length } => {
                if self.lives(node, life) {
                    let now = self.nodes[node].now(self.now);
                    let Node { disk, primary: Some(primary), .. } = &mut self.nodes[node] else { return };
                    match disk.snapshots.iter().find(|snapshot| snapshot.name.uid == name.uid) {
                        Some(snapshot) => {
                            let bytes = &snapshot.bytes[offset as usize..][..length];
                            primary.handle_snapshot_bytes(link, offset, bytes, now);
                        }
                        None => primary.handle_no_snapshot(link, "it was removed", now),
                    }
                    self.pump(node);
                }
            }
            Event::Installed { node, life, name, lineage } => {
                if self.lives(node, life) {
                    self.install(node, name, lineage);
                    self.pump(node);
                }
            }
            Event::Fed { node, life } => {
                if self.lives(node, life) {
                    self.feed(node);
                    self.pump(node);
                }
            }
            Event::Chaos => self.chaos(),
            Event::Heal => self.heal(),
            Event::Restart { node } => {
                if !self.nodes[node].is_up {
                    self.start_node(node);
                }
            }
            Event::Read => self.read(),
        }
    }

    /// Of the replicas' last lives: those before took theirs with them.
    fn count_datagrams(&mut self) {
        for counters in self.nodes.iter().filter_map(|node| Some(node.replica.as_ref()?.datagram_counters()))
        {
            self.tally.datagrams_lost += counters.lost;
            self.tally.datagrams_late += counters.late;
            self.tally.repaired += counters.repaired;
            self.tally.forged_or_damaged += counters.forged + counters.damaged;
        }
    }

    fn lives(&self, node: usize, life: u64) -> bool {
        self.nodes[node].is_up && self.nodes[node].life == life
    }

    fn start_node(&mut self, index: usize) {
        let (bug, now) = (self.bug, self.now);
        self.next_run += 1;
        let run = self.next_run;
        self.nodes[index].start(run, now, bug, &mut self.random);
        self.check_state(index);
        self.pump(index);
    }

    fn crash(&mut self, index: usize) {
        self.tally.crashes += 1;
        self.drop_connections(index, 70);
        self.nodes[index].crash();
        let delay = self.random.between(100, 60_000);
        self.at(delay, Event::Restart { node: index });
    }

    /// Those who follow it go on without a new handshake.
    fn promote_while_it_serves(&mut self, index: usize) {
        self.next_run += 1;
        let (run, id) = (self.next_run, BranchId(self.random.next()));
        let begins = self.bug != Some(Bug::MixesEpochs);
        if let Some(connection) = self.nodes[index].connection.take() {
            self.close(connection, false);
        }
        self.nodes[index].become_root(run, begins.then_some(id));
        self.pump(index);
    }

    /// The node ends all its connections; the others hear of it, perhaps.
    fn drop_connections(&mut self, index: usize, heard_percent: u64) {
        let ids: Vec<u64> = self.connections.keys().copied().collect();
        let mut ids: Vec<u64> = ids
            .into_iter()
            .filter(|id| {
                let connection = &self.connections[id];
                connection.replica.0 == index || connection.primary.0 == index
            })
            .collect();
        ids.sort_unstable();
        for id in ids {
            let is_heard = self.random.chance(heard_percent);
            let latency = self.weather.latency_us;
            let Some(connection) = self.connections.get_mut(&id) else { continue };
            let to_replica = connection.primary.0 == index;
            let way = if to_replica { &mut connection.to_replica } else { &mut connection.to_primary };
            way.queue.clear();
            if is_heard {
                way.is_closed = true;
                self.at(latency, Event::Deliver { connection: id, to_replica });
            }
            let Some(connection) = self.connections.get_mut(&id) else { continue };
            if to_replica { connection.primary_knows = false } else { connection.replica_knows = false }
        }
    }

    /// Follow this one, or nobody: a command.
    fn follow(&mut self, index: usize, to: usize) {
        self.tally.repoints += 1;
        self.trace(|| format!("{index} follows {to}"));
        if self.nodes[index].role == Role::Root {
            // It was a primary: it begins anew as a replica, with what is durable.
            self.drop_connections(index, 100);
            self.nodes[index].crash();
            self.nodes[index].role = Role::Follows(to);
            return self.start_node(index);
        }
        self.nodes[index].role = Role::Follows(to);
        let now = self.nodes[index].now(self.now);
        if let Some(replica) = &mut self.nodes[index].replica {
            replica.stop(now);
            replica.start(now);
        }
        self.pump(index);
    }

    fn promote(&mut self, index: usize) {
        let now = self.nodes[index].now(self.now);
        let node = &mut self.nodes[index];
        let can = node.is_up
            && node.role != Role::Root
            && node.inflight.is_empty()
            && node.replica.as_mut().is_some_and(|replica| {
                replica.read(None, now) != ReadVerdict::Loading && replica.state() != Standing::FullSync
            });
        if !can {
            return;
        }
        self.trace(|| format!("{index} is promoted"));
        self.tally.promotions += 1;
        if self.random.chance(50) && self.nodes[index].is_passing_on {
            return self.promote_while_it_serves(index);
        }
        // All that was applied is durable before the new branch begins.
        self.drop_connections(index, 100);
        let node = &mut self.nodes[index];
        node.make_durable();
        node.crash();
        node.role = Role::Root;
        self.start_node(index);
    }

    fn pump(&mut self, index: usize) {
        if !self.nodes[index].is_up {
            return;
        }
        self.take_word(index);
        loop {
            let (now, life) = (self.nodes[index].now(self.now), self.nodes[index].life);
            if let Some(action) =
                self.nodes[index].primary.as_mut().and_then(|primary| primary.poll_action(now))
            {
                self.primary_does(index, action);
            } else if let Some(burst) =
                self.nodes[index].primary.as_mut().and_then(|primary| primary.poll_datagrams(now))
            {
                self.multicast(index, &burst);
            } else if let Some(action) = self.nodes[index].replica.as_mut().and_then(Replica::poll_action) {
                self.replica_does(index, action);
            } else if let Some((read, verdict)) =
                self.nodes[index].replica.as_mut().and_then(Replica::poll_read)
            {
                if let Some(wanted) = self.reads.remove(&(index, life, read)) {
                    self.check_read(index, wanted, verdict);
                }
            } else {
                break;
            }
        }
        self.check_bounds(index);
        let node = &mut self.nodes[index];
        if let (Some(primary), Some(replica)) = (&mut node.primary, &node.replica) {
            primary.handle_chain(replica.chain().clone());
            primary.handle_freshness(replica.fresh_as_of());
        }
        let primary = node.primary.as_ref().and_then(Primary::poll_timeout);
        let replica = node.replica.as_ref().and_then(Replica::poll_timeout);
        let Some(next) = primary.into_iter().chain(replica).min() else { return };
        let next = next.saturating_sub(node.offset).max(self.now + 1);
        if next < node.timer_at {
            node.timer_at = next;
            let life = node.life;
            self.at(next - self.now, Event::Timer { node: index, life });
        }
    }

    fn primary_does(&mut self, index: usize, action: primary::Action) {
        let (life, delay) = (self.nodes[index].life, self.random.between(20, 1500));
        match action {
            primary::Action::Send { link, bytes } => self.send(link.0, true, bytes.to_vec()),
            primary::Action::Feed => self.at(delay, Event::Fed { node: index, life }),
            primary::Action::Close { link, fault, .. } => {
                self.trace(|| format!("{index} closes {link:?}: {fault}"));
                self.check_fault(index, &fault);
                self.close(link.0, true);
            }
            primary::Action::ReadLog { link, from, until, bytes_max } => {
                let (from, until) = (from.0, until.0);
                self.at(delay, Event::LogRead { node: index, life, link, from, until, bytes_max });
            }
            primary::Action::FindSnapshot { link, partial } => {
                self.at(delay * 10, Event::SnapshotFound { node: index, life, link, partial });
            }
            primary::Action::ReadSnapshot { link, name, offset, length } => {
                self.at(delay, Event::SnapshotRead { node: index, life, link, name, offset, length });
            }
            primary::Action::SnapshotSent { .. } => (),
            primary::Action::WaitDone { wait, replicas } => {
                let Some(name) = self.waits.remove(&(index, life, wait)) else { return };
                self.tally.waits += 1;
                let true_count = self.ledger.shown_by(name);
                // The primary itself has it as well.
                if replicas > 0 && replicas + 1 > true_count {
                    self.fail(format!(
                        "WAIT said {replicas} replicas have {name:?}, and {true_count} nodes ever had"
                    ));
                }
            }
        }
    }

    fn replica_does(&mut self, index: usize, action: replica::Action) {
        let life = self.nodes[index].life;
        match action {
            replica::Action::Connect => {
                let Role::Follows(to) = self.nodes[index].role else { return };
                let delay = self.weather.latency_us + self.random.below(500);
                self.at(delay, Event::Connected { node: index, life, to });
            }
            replica::Action::Send(bytes) => {
                if let Some(id) = self.nodes[index].connection {
                    self.send(id, false, bytes);
                }
            }
            replica::Action::Close(fault) => {
                self.trace(|| format!("{index} closes: {fault}"));
                self.check_fault(index, &fault);
                if let Some(id) = self.nodes[index].connection.take() {
                    self.close(id, false);
                }
            }
            replica::Action::BeginSnapshot { name, offset } => {
                self.tally.resumed += u64::from(offset > 0);
                let disk = &mut self.nodes[index].disk;
                match &mut disk.partial {
                    Some((partial, bytes)) if *partial == name => bytes.truncate(offset as usize),
                    partial => {
                        assert_eq!(offset, 0, "bytes of another snapshot");
                        *partial = Some((name, Vec::new()));
                    }
                }
            }
            replica::Action::StoreSnapshot { offset, bytes } => {
                let node = &mut self.nodes[index];
                let Some((_, stored)) = &mut node.disk.partial else { return };
                assert_eq!(stored.len() as u64, offset);
                stored.extend_from_slice(&bytes);
                let stored = stored.len() as u64;
                if let Some(replica) = &mut node.replica {
                    replica.handle_snapshot_stored(stored);
                }
            }
            replica::Action::Install { name, lineage } => {
                let delay = self.random.between(100, 30_000);
                self.at(delay, Event::Installed { node: index, life, name, lineage });
            }
            replica::Action::DropSnapshot => self.nodes[index].disk.partial = None,
            replica::Action::Follow(lineage) => {
                let node = &mut self.nodes[index];
                node.disk.lineage = lineage.clone();
                if let Some(primary) = node.primary.as_mut().filter(|_| node.is_passing_on) {
                    primary.handle_follow(&lineage);
                }
            }
            replica::Action::Apply(delivery) => {
                let last = delivery.last_lsn;
                self.nodes[index].inflight.push_back(delivery);
                let delay = self.random.between(10, 600);
                self.at(delay, Event::Applied { node: index, life });
                if self.bug == Some(Bug::AnnouncesUnapplied) {
                    let now = self.nodes[index].now(self.now);
                    if let Some(replica) = &mut self.nodes[index].replica {
                        replica.handle_applied(last, Lsn::ZERO, now);
                    }
                }
            }
        }
    }
}
