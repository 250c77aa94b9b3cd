//! A node: what it keeps, what it runs, and how it starts and dies.

use super::Bug;
use super::disk::{Disk, Rec, State};
use super::random::Random;
use repl::identity::{NodeId, Now};
use repl::lineage::{BranchId, Lineage};
use repl::primary::{Primary, PrimaryStart};
use repl::replica::{Replica, ReplicaStart};
use repl::run::Delivery;
use repl::secret::Secret;
use repl::settings::{DatagramSettings, PrimarySettings, ReplicaSettings};
use repl::word::Teller;
use std::collections::{HashMap, VecDeque};
use wal::checksum::Checksum;
use wal::lsn::{Epoch, Lsn};

/// What a node was told to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It writes.
    Root,
    /// It follows that one.
    Follows(usize),
}

pub struct Node {
    pub index: usize,
    pub role: Role,
    pub is_up: bool,
    pub life: u64,
    /// Names its run as a primary in the ledger.
    pub run: u64,
    /// Its clock is so much ahead of the world's.
    pub offset: u64,
    /// Its wall clock is so much behind.
    pub behind: u64,
    /// When its turns began that are still running.
    pub turns: Vec<u64>,
    /// What it tells of the time, as a root.
    pub teller: Teller,
    /// By what time keys expire, or before which nothing is executed; and the run that said so, for a replica.
    pub word: (u64, u64),
    /// It keeps a log of its own.
    pub has_log: bool,
    pub primary_settings: PrimarySettings,
    pub replica_settings: ReplicaSettings,
    pub disk: Disk,
    pub state: State,
    /// Records that its log does not have durably yet.
    pub pending: VecDeque<Rec>,
    /// Handed over and not applied.
    pub inflight: VecDeque<Delivery>,
    pub consistent_lsn: u64,
    /// Those who follow it are served.
    pub is_passing_on: bool,
    pub primary: Option<Primary>,
    pub replica: Option<Replica>,
    pub connection: Option<u64>,
    pub timer_at: u64,
    /// What it writes by, if a bug has it begin no branch.
    lineage: Lineage,
}

/// Random bytes for a connection or a run.
pub fn nonce(random: &mut Random) -> [u8; 16] {
    let mut nonce = [0; 16];
    nonce[..8].copy_from_slice(&random.next().to_le_bytes());
    nonce[8..].copy_from_slice(&random.next().to_le_bytes());
    nonce
}

fn checksum() -> Checksum {
    Checksum::lent(crc32c::crc32c_append).expect("CRC-32C")
}

/// What all nodes of a run have alike.
pub fn group_settings(random: &mut Random) -> (PrimarySettings, ReplicaSettings) {
    let datagrams = random.chance(65).then(|| DatagramSettings {
        datagram_bytes: random.between(200, 1400) as usize,
        burst_datagrams_max: random.between(1, 16) as usize,
        bytes_per_second: *random.pick(&[0, 0, 20_000_000, 2_000_000]),
        burst_bytes: 3000,
        heartbeat_us_min: 1000,
        heartbeat_us_max: 5000,
    });
    let primary = PrimarySettings {
        backlog_bytes_max: random.between(4096, 30_000) as usize,
        frame_bytes_max: random.between(150, 4096) as usize,
        replicas_max: 8,
        strangers_max: 6,
        send_window_bytes: random.between(500, 20_000) as usize,
        log_read_bytes: random.between(100, 8000) as usize,
        log_reads_max: random.between(1, 2) as usize,
        snapshot_chunk_bytes: random.between(500, 8000) as usize,
        heartbeat_us: 5000,
        timeout_us: 60_000,
        lag_records_max: *random.pick(&[1_000_000, 200, 60]),
        first_records_max: *random.pick(&[1_000_000, 20, 0]),
        waits_max: 4,
        shards: 2,
        datagrams,
    };
    let replica = ReplicaSettings {
        record_bytes_max: 100_000,
        apply_bytes_max: random.between(1, 20_000) as usize,
        reorder_datagrams_max: random.between(1, 64) as usize,
        reorder_bytes_max: 70_000,
        gap_delay_us: random.between(0, 1000),
        gap_jitter_us: random.below(500),
        repair_timeout_us: random.between(2000, 8000),
        ack_delay_us: random.below(5000),
        ack_interval_us: 5000,
        timeout_us: 60_000,
        backoff_us_min: 1000,
        backoff_us_max: 20_000,
        lag_us_max: *random.pick(&[0, 0, 30_000]),
        reads_waiting_max: 6,
        read_wait_us: 10_000,
        datagrams: random.chance(90),
        reshards: true,
        shards: 2,
        port: 6379,
    };
    (primary, replica)
}

impl Node {
    pub fn new(index: usize, group: &(PrimarySettings, ReplicaSettings), random: &mut Random) -> Node {
        let follows = random.below(index.max(1) as u64) as usize;
        Node {
            index,
            role: if index == 0 { Role::Root } else { Role::Follows(follows) },
            is_up: false,
            life: 0,
            run: 0,
            offset: 0,
            behind: 0,
            turns: Vec::new(),
            teller: Teller::default(),
            word: (0, 0),
            has_log: index == 0 || random.chance(75),
            primary_settings: group.0,
            replica_settings: group.1,
            disk: Disk::default(),
            state: State::default(),
            pending: VecDeque::new(),
            inflight: VecDeque::new(),
            consistent_lsn: 0,
            is_passing_on: false,
            primary: None,
            replica: None,
            connection: None,
            timer_at: u64::MAX,
            lineage: Lineage::default(),
        }
    }

    pub fn now(&self, global: u64) -> Now {
        let unix_us = if self.replica.is_some() { self.word.0 } else { self.teller.told_us() };
        Now { micros: global + self.offset, unix_us }
    }

    pub fn wall_us(&self, global: u64) -> u64 {
        1_700_000_000_000_000 + global - self.behind
    }

    /// By what time it executes.
    pub fn clock_us(&self, global: u64, bug: Option<Bug>) -> u64 {
        let floor = if bug == Some(Bug::TakesTimeBack) { 0 } else { self.word.0 };
        self.wall_us(global).max(floor)
    }

    /// As the edge does it: the clock is told to all, then turns are looked at, then the last LSN.
    pub fn look(&mut self, global: u64, bug: Option<Bug>) {
        let Some(primary) = self.primary.as_ref().filter(|_| self.role == Role::Root) else { return };
        let durable = primary.durable_lsn();
        self.teller.handle_durable(durable);
        if self.teller.wants_look() || self.teller.is_ahead() {
            let clock = self.teller.tick(self.wall_us(global), global + self.offset);
            self.word = (self.word.0.max(clock), self.run);
            let turns = self.turns.iter().filter(|_| bug != Some(Bug::PassesTurns));
            self.teller.handle_look(turns.copied().min().unwrap_or(u64::MAX), Lsn(self.last_lsn()));
            self.teller.handle_durable(durable);
        }
    }

    /// What was heard of the time counts as far as it holds; `tellers`: which run told a time.
    pub fn take_word(&mut self, tellers: &HashMap<u64, u64>) -> bool {
        let word = self.replica.as_mut().and_then(|replica| replica.take_word(replica.applied_lsn()));
        if let Some(word) = word.filter(|&word| word > self.word.0) {
            self.word = (word, tellers.get(&word).copied().unwrap_or(0));
        }
        word.is_some()
    }

    pub fn lineage(&self) -> &Lineage {
        self.replica.as_ref().map_or(&self.lineage, Replica::lineage)
    }

    pub fn last_lsn(&self) -> u64 {
        self.pending.back().map_or(self.disk.last_lsn(), |last| last.lsn)
    }

    pub fn is_consistent(&self) -> bool {
        self.state.last.lsn >= self.consistent_lsn
            && self.state.lsns.iter().all(|&lsn| lsn == self.state.last.lsn)
    }

    /// Nothing is on its way.
    pub fn is_caught_up(&self) -> bool {
        self.inflight.is_empty() && (self.role == Role::Root || self.connection.is_some())
    }

    /// Everything but the disk is gone.
    pub fn crash(&mut self) {
        self.is_up = false;
        (self.primary, self.replica, self.connection) = (None, None, None);
        self.pending.clear();
        self.inflight.clear();
        self.turns.clear();
        self.word = (0, 0);
        if !self.has_log {
            self.disk = Disk::default();
        }
    }

    /// What is applied is in the log, whether it kept one before or not.
    pub fn make_durable(&mut self) {
        self.disk.lineage = self.lineage().clone();
        if self.has_log {
            self.disk.log.extend(self.pending.drain(..));
        } else {
            self.has_log = true;
            self.disk.base = self.state;
            self.disk.log.clear();
        }
    }

    pub fn start(&mut self, run: u64, global: u64, bug: Option<Bug>, random: &mut Random) {
        self.life += 1;
        (self.is_up, self.run, self.timer_at) = (true, run, u64::MAX);
        self.offset = random.below(1_000_000_000);
        self.is_passing_on = false;
        // The time of the last record is the last that is known.
        let last_us = self.disk.log.last().map_or(0, |record| record.unix_us);
        self.word = if self.role == Role::Root { (last_us, run) } else { (0, 0) };
        self.teller = Teller::new(self.word.0);
        let now = self.now(global);
        let (state, consistent_lsn) = self.disk.recover();
        (self.state, self.consistent_lsn) = (state, consistent_lsn);
        let last_lsn = Lsn(self.disk.last_lsn());
        let (node, secret) = (NodeId([self.index as u8 + 1; 16]), Secret::new(b"of this run"));
        let is_root = self.role == Role::Root;
        if is_root && (bug != Some(Bug::MixesEpochs) || self.disk.lineage.latest().is_none()) {
            self.disk.lineage.begin(last_lsn.next(), BranchId(random.next()), Epoch::FIRST);
        }
        self.lineage = self.disk.lineage.clone();
        let start = PrimaryStart {
            node,
            secret: secret.clone(),
            stream: random.next(),
            salt: nonce(random),
            lineage: self.lineage.clone(),
            durable_lsn: last_lsn,
            log_first_lsn: self.has_log.then(|| Lsn(self.disk.first_lsn())),
            is_serving: is_root || (self.is_consistent() && self.lineage.latest().is_some()),
        };
        self.is_passing_on = start.is_serving;
        self.primary = Some(Primary::new(self.primary_settings, start, checksum(), now));
        self.replica = (!is_root).then(|| {
            let partial = self.disk.partial.as_ref().map(|(name, bytes)| (*name, bytes.len() as u64));
            let lineage = self.lineage.clone();
            let start = ReplicaStart { node, secret, lineage, last_lsn, partial, seed: random.next() };
            let consistent = if bug == Some(Bug::ServesHalfSnapshots) { 0 } else { consistent_lsn };
            let mut replica =
                Replica::new(self.replica_settings, start, checksum()).with_consistent_lsn(Lsn(consistent));
            replica.start(now);
            replica
        });
    }

    /// A replica writes from now on, and keeps its replicas.
    pub fn become_root(&mut self, run: u64, branch: Option<BranchId>) {
        self.make_durable();
        self.lineage = self.disk.lineage.clone();
        if let Some(branch) = branch {
            self.lineage.begin(Lsn(self.state.last.lsn + 1), branch, Epoch::FIRST);
        }
        self.disk.lineage = self.lineage.clone();
        (self.run, self.role, self.replica) = (run, Role::Root, None);
        (self.word.1, self.teller) = (run, Teller::new(self.word.0));
        if let Some(primary) = &mut self.primary {
            primary.handle_log_begins(Some(Lsn(self.disk.first_lsn())));
            primary.handle_promoted(&self.lineage);
        }
    }

    /// All its connections broke.
    pub fn forget_connections(&mut self, global: u64) {
        let now = self.now(global);
        if let Some(primary) = &mut self.primary {
            let links: Vec<_> = primary.replicas(now).map(|replica| replica.link).collect();
            links.into_iter().for_each(|link| primary.handle_closed(link));
        }
        if self.connection.take().is_some()
            && let Some(replica) = &mut self.replica
        {
            replica.handle_closed("that it broke", now);
        }
    }
}
