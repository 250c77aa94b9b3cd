//! The thread: what has happened is told to `Primary` and `Replica`, what they want is performed, and then it waits.
//!
//! Changes of role and the installation of a snapshot are done in one go, waiting for shards and log: both answer within
//! a turn or a block. What takes longer (connecting, reading the log or a snapshot) is done by threads of their own,
//! which leave an [`Event`] and ring the bell.

use super::end::{Lane, Order};
use super::following::Upstream;
use super::links::{Entrance, Finding, LinkSocket, READ_BYTES};
use super::log_side::{LogRead, OwnRecords};
use super::tap::TapRun;
use super::{Command, Handle, Options, OwnLog, Setup, files, latest_epoch, lock, turns};
use crate::clock::{monotonic_ns, realtime_ns};
use crate::io::datagrams::{DatagramReceiver, DatagramSender};
use crate::io::log_files::checksum;
use crate::io::stop::StopSignal;
use crate::io::sync::Bell;
use crate::io::sys;
use crate::server::log_handle::{Replace, Restart};
use crate::server::recovery::RecoveryError;
use crate::server::snapshot_thread::SnapshotControl;
use repl::identity::{NodeId, Now};
use repl::lineage::{BranchId, Lineage};
use repl::primary::{LinkId, Primary, PrimaryStart};
use repl::replica::{Replica, ReplicaStart, State};
use repl::run::Delivery;
use repl::secret::Nonce;
use repl::settings::{DatagramSettings, PrimarySettings, ReplicaSettings};
use repl::word::Teller;
use std::collections::{BTreeMap, VecDeque};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;
use store::engine::Seeds;
use store::replication::{Hindrance, ReplicationState, Role};
use wal::lsn::{Epoch, Lsn};

use super::tap::Tap;
use crate::server::snapshot_start::received::Received;

/// Clocks of two nodes may be so far apart: by so much a primary that follows another goes back in its time for keys,
/// until that one says its own.
const CLOCKS_APART_US: u64 = 50_000;
/// The same for what was read of a snapshot or a log: turns that had begun before were not over yet, and the primary says
/// its time soon.
pub(super) const START_MARGIN_US: u64 = 10_000_000;
/// How often replicas are told the time.
const HEARTBEAT_US: u64 = 50_000;
/// How often the clock is looked at that replicas were told of, though there is none now; and while the wall clock is behind.
const CLOCK_PERIODS_US: (u64, u64) = (1_000_000, 50_000);
/// While something is looked at again and again.
const LOOK_PERIOD_US: u64 = 5_000;
/// How often figures for INFO are put together while nothing changes but them.
const REPORT_PERIOD_US: u64 = 50_000;
/// How long the end waits for records to become durable, and replicas to take them.
const END_PATIENCE_US: u64 = 2_000_000;
/// How often what was written may make room for more before others have their turn.
const PUMP_ROUNDS: usize = 4;

/// What a thread that was sent out has to say.
pub(super) enum Event {
    /// The primary is reached (its port for HTTP with it), or why not; of this attempt.
    Connected(u64, Result<(TcpStream, u16), String>),
    /// Records of the log.
    Read(LinkId, Result<LogRead, RecoveryError>),
    /// A snapshot that was received is made into keyspaces, or cannot be.
    Loaded(Result<Received, String>),
}

/// Where the tap stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TapState {
    Closed,
    Opening,
    Open,
}

/// See the module.
pub(super) struct Worker {
    pub(super) options: Options,
    pub(super) handle: Arc<Handle>,
    pub(super) state: Arc<ReplicationState>,
    pub(super) bell: Arc<Bell>,
    pub(super) node: NodeId,
    pub(super) lanes: Vec<Arc<Lane>>,
    /// Orders each shard was given.
    told: Vec<u64>,
    pub(super) listener: Option<TcpListener>,
    pub(super) seeds: Vec<Seeds>,
    pub(super) helper_core: Option<usize>,
    pub(super) stop: StopSignal,

    pub(super) primary: Primary,
    /// The history of what this node has.
    pub(super) lineage: Lineage,
    pub(super) links: BTreeMap<LinkId, LinkSocket>,
    pub(super) next_link: u64,
    pub(super) entrance: Entrance,
    pub(super) finding: Vec<Finding>,
    pub(super) sender: Option<DatagramSender>,
    pub(super) receiver: Option<DatagramReceiver>,
    pub(super) tap: Arc<Tap>,
    pub(super) tap_state: TapState,
    tapped: VecDeque<TapRun>,
    pub(super) log: Option<OwnLog>,
    pub(super) snapshots: Option<SnapshotControl>,

    pub(super) replica: Option<Replica>,
    pub(super) upstream: Upstream,
    pub(super) deliveries: VecDeque<Delivery>,
    pub(super) own: OwnRecords,
    /// What the shards of the snapshot that was installed hold, while that matters.
    pub(super) image_lsns: Vec<Lsn>,
    pub(super) consistent_lsn: Lsn,
    /// Those who follow this node are served.
    pub(super) is_passing_on: bool,
    /// It could not go on following, and the server ends: nothing more is taken, dealt or shown.
    pub(super) has_failed: bool,
    /// The time that those who follow this node are told.
    word: Teller,
    /// There is more to do, and nothing that would wake this thread for it.
    is_more_wanted: bool,
    random: u64,

    pub(super) events: Receiver<Event>,
    pub(super) teller: Sender<Event>,
    reported_at: u64,
    /// Something has happened since.
    is_report_owed: bool,
    /// Descriptors that had something to tell when this was last waited for.
    ready: Vec<RawFd>,
    /// What sockets are read into.
    pub(super) buffer: Vec<u8>,
    /// The last fault that was said.
    pub(super) said: String,
}

impl Worker {
    pub(super) fn new(options: Options, setup: Setup, random: [u8; 32]) -> Worker {
        let Setup { prepared, history, lanes, log, snapshots, seeds, helper_core, stop, .. } = setup;
        let super::Prepared { state, handle, bell, tap, listener, sender, receiver } = prepared;
        let word = |at: usize| u64::from_le_bytes(random[at..at + 8].try_into().expect("eight bytes"));
        let (events, teller) = {
            let (teller, events) = channel();
            (events, teller)
        };
        let follows = options.replicaof.is_some();
        let lineage = history.lineage;
        handle.tell_history(&lineage);
        let settings = PrimarySettings {
            backlog_bytes_max: options.backlog_bytes,
            log_read_bytes: 8 << 20,
            send_window_bytes: 1 << 20,
            shards: options.shards as u32,
            heartbeat_us: HEARTBEAT_US,
            datagrams: sender.as_ref().map(|_| DatagramSettings {
                bytes_per_second: options.datagram_bytes_per_second,
                ..DatagramSettings::default()
            }),
            ..PrimarySettings::default()
        };
        let mut salt = [0; 16];
        salt.copy_from_slice(&random[8..24]);
        let start = PrimaryStart {
            node: history.node,
            secret: options.secret.clone(),
            stream: word(0),
            salt,
            lineage: lineage.clone(),
            durable_lsn: history.last_lsn,
            log_first_lsn: history.log_first_lsn,
            is_serving: lineage.latest().is_some(),
        };
        let is_passing_on = start.is_serving;
        let primary = Primary::new(settings, start, checksum(), now_of(0));
        state.set_dealt_lsn(if follows { history.last_lsn.0 } else { 0 });
        // A primary goes on where it was, as far as that is known; and who followed is told soon.
        let first_word_us = match follows {
            true => history.last_unix_us.saturating_sub(START_MARGIN_US),
            false if lineage.latest().is_some() => history.last_unix_us,
            false => 0,
        };
        state.set_word_us(first_word_us, true);
        let mut worker = Worker {
            told: vec![0; lanes.len()],
            handle,
            state,
            bell,
            node: history.node,
            lanes,
            listener,
            seeds,
            helper_core,
            stop,
            primary,
            lineage,
            links: BTreeMap::new(),
            next_link: 1,
            entrance: Entrance::default(),
            finding: Vec::new(),
            sender,
            receiver,
            tap,
            tap_state: TapState::Closed,
            tapped: VecDeque::new(),
            log,
            snapshots,
            replica: None,
            upstream: Upstream::default(),
            deliveries: VecDeque::new(),
            own: OwnRecords::new(history.last_lsn),
            image_lsns: Vec::new(),
            consistent_lsn: Lsn::ZERO,
            is_passing_on,
            has_failed: false,
            word: Teller::new(if follows { 0 } else { first_word_us }),
            is_more_wanted: false,
            random: word(24),
            events,
            teller,
            reported_at: 0,
            is_report_owed: true,
            ready: Vec::new(),
            buffer: vec![0; READ_BYTES],
            said: String::new(),
            options,
        };
        match worker.options.replicaof.clone() {
            Some(whom) => worker.begin_following(whom, history.last_lsn),
            // There are no replicas yet.
            None => {
                worker.primary.rest();
            }
        }
        worker
    }

    /// The whole life of the thread.
    pub(super) fn run(mut self) {
        loop {
            // Asked for what it has told already: not once more.
            if self.is_ready(&self.bell.as_fd()) {
                self.bell.clear();
            }
            self.take_commands();
            self.take_events();
            self.take_tapped();
            self.accept();
            self.serve_sockets();
            self.step_following();
            self.handle_time();
            self.pump();
            self.report();
            if self.handle.stops.load(Ordering::Acquire) {
                return self.end();
            }
            self.wait();
        }
    }

    // ---- time ---------------------------------------------------------------------------------------------

    /// The time. What is said of it to other nodes holds behind the last record that they may have: replicas let keys expire
    /// by it.
    pub(super) fn now(&mut self) -> Now {
        if self.replica.is_some() {
            return now_of(self.state.word_us());
        }
        let durable = self.primary.durable_lsn();
        self.word.handle_durable(durable);
        if self.tells_time()
            && (self.word.wants_look() || self.word.is_ahead())
            && let Some(log) = &self.log
        {
            let clock_us = self.word.tick(realtime_ns() / 1000, monotonic_ns() / 1000);
            self.state.set_word_us(clock_us, false);
            if let Some(earliest) = turns::earliest(self.lanes.iter().map(|lane| lane.turn())) {
                self.word.handle_look(earliest, log.handle.shared().allocated_lsn());
                self.word.handle_durable(durable);
            }
        }
        now_of(self.word.told_us())
    }

    /// Somebody is told the time, or was.
    fn tells_time(&self) -> bool {
        !self.state.is_replica() && (!self.links.is_empty() || self.word.told_us() > 0)
    }

    /// Random bytes; the first comes from the kernel, and nobody is to guess the others.
    pub(super) fn nonce(&mut self) -> Nonce {
        let mut nonce = [0; 16];
        if getrandom::fill(&mut nonce).is_err() {
            self.random = self.random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            nonce[..8].copy_from_slice(&self.random.to_le_bytes());
        }
        nonce
    }

    fn handle_time(&mut self) {
        let now = self.now();
        self.primary.handle_timeout(now);
        if self.handle.is_waited_for() {
            self.primary.ask_for_acks(now);
        }
        if let Some(replica) = &mut self.replica {
            replica.handle_timeout(now);
        }
        self.look_for_snapshots();
        self.see_to_entrance(now.micros);
    }

    fn wait(&mut self) {
        let now = monotonic_ns() / 1000;
        let replica = self.replica.as_ref().and_then(Replica::poll_timeout);
        let mut until =
            [self.primary.poll_timeout(), replica, self.entrance.until()].into_iter().flatten().min();
        let looks = !self.finding.is_empty() || self.upstream.loaded.is_some() || self.own.is_blocked;
        if looks || self.links.values().any(LinkSocket::is_closing) {
            until = Some(until.unwrap_or(u64::MAX).min(now + LOOK_PERIOD_US));
        }
        if self.is_report_owed {
            until = Some(until.unwrap_or(u64::MAX).min(self.reported_at + REPORT_PERIOD_US));
        }
        if self.tells_time() {
            let (seldom, often) = CLOCK_PERIODS_US;
            let period = if self.word.is_ahead() { often } else { seldom };
            until = Some(until.unwrap_or(u64::MAX).min(now + period));
        }
        if self.is_more_wanted {
            until = Some(now);
        }
        let timeout = until.map(|until| Duration::from_micros(until.saturating_sub(now)));
        let mut entries = vec![entry(self.bell.as_fd().as_raw_fd(), libc::POLLIN)];
        let listener = self.listener.as_ref().filter(|_| self.takes_connections());
        entries.extend(listener.map(|listener| entry(listener.as_raw_fd(), libc::POLLIN)));
        if let Some(socket) = &self.upstream.socket {
            let wants = self.replica.as_ref().is_some_and(Replica::wants_bytes);
            let read = if wants { libc::POLLIN } else { 0 };
            let write = if self.upstream.out.is_empty() { 0 } else { libc::POLLOUT };
            // One that nothing is wanted of would tell of its end again and again.
            if read | write != 0 {
                entries.push(entry(socket.as_raw_fd(), read | write));
            }
        }
        if let Some(receiver) = self.receiver.as_ref().filter(|_| self.replica.is_some()) {
            entries.push(entry(receiver.as_raw_fd(), libc::POLLIN));
        }
        for link in self.links.values() {
            let write = if link.has_output() { libc::POLLOUT } else { 0 };
            entries.push(entry(link.socket.as_raw_fd(), libc::POLLIN | write));
        }
        self.ready.clear();
        let polled = sys::poll(&mut entries, timeout);
        self.ready.extend(entries.iter().filter(|entry| entry.revents != 0).map(|entry| entry.fd));
        if let Err(error) = polled {
            eprintln!("millrace: replication: waiting for sockets: {error}");
            self.bell.wait(Some(Duration::from_millis(10)));
        }
    }

    /// Whether a socket had something to tell: what has not is not asked.
    pub(super) fn is_ready(&self, socket: &impl AsRawFd) -> bool {
        self.ready.contains(&socket.as_raw_fd())
    }

    fn take_events(&mut self) {
        while let Ok(event) = self.events.try_recv() {
            match event {
                Event::Connected(attempt, result) => self.handle_connected(attempt, result),
                Event::Read(link, read) => self.handle_log_read(link, read),
                Event::Loaded(loaded) => self.upstream.loaded = Some(loaded),
            }
        }
    }

    /// Performs what is wanted and writes what is to be written, as long as that makes room for more: nobody else would wake
    /// this thread for it. Others have their turn after some of it.
    pub(super) fn pump(&mut self) {
        self.is_more_wanted = false;
        for _ in 0..PUMP_ROUNDS {
            self.perform_all();
            let has_made_room = self.flush_links();
            self.flush_upstream();
            if !has_made_room {
                return;
            }
        }
        self.is_more_wanted = true;
    }

    /// Performs what is wanted, until nothing is.
    fn perform_all(&mut self) {
        loop {
            let now = self.now();
            let mut has_done = false;
            while let Some(action) = self.primary.poll_action(now) {
                has_done = true;
                self.perform_for_replica(action);
            }
            while let Some(action) = self.replica.as_mut().and_then(Replica::poll_action) {
                has_done = true;
                self.perform_for_primary(action);
            }
            if let Some(sender) = &mut self.sender {
                while let Some(burst) = self.primary.poll_datagrams(now) {
                    sender.send(&burst.bytes, burst.datagram_bytes);
                }
            }
            if !has_done {
                return;
            }
        }
    }

    // ---- the log's records ----------------------------------------------------------------------------------

    /// Records that have become durable go to the replicas.
    fn take_tapped(&mut self) {
        if self.tap_state == TapState::Closed || self.replica.is_some() {
            return;
        }
        let taken = self.tap.take();
        if taken.has_overflowed {
            eprintln!(
                "millrace: replication: replicas begin anew from the log: too many records waited for this thread"
            );
            self.open_tap();
            return;
        }
        self.tapped.extend(taken.runs);
        if self.tap_state == TapState::Opening {
            let Some(from) = taken.from.filter(|&from| from <= taken.durable) else { return };
            self.tap_state = TapState::Open;
            let now = self.now();
            self.primary.handle_feed(from, now);
        }
        let before = self.primary.durable_lsn();
        if taken.durable <= before {
            return;
        }
        let now = self.now();
        let records = self.tapped.iter().flat_map(|run| run.records(before, taken.durable));
        self.primary.handle_durable(records, taken.durable, now);
        while self.tapped.pop_front_if(|run| run.last_lsn() <= taken.durable).is_some() {}
    }

    /// From now on records are wanted.
    pub(super) fn open_tap(&mut self) {
        if let Some(log) = &self.log {
            self.tap_state = TapState::Opening;
            self.tapped.clear();
            log.control.open_tap(self.tap.ask());
        }
    }

    /// None is wanted any more.
    pub(super) fn close_tap(&mut self) {
        self.tap.close();
        self.tap_state = TapState::Closed;
        self.tapped.clear();
    }

    // ---- roles ------------------------------------------------------------------------------------------------

    fn take_commands(&mut self) {
        loop {
            let Some(command) = lock(&self.handle.commands).pop_front() else { return };
            let done = match command {
                _ if self.has_failed => Err("this server cannot follow any more, and ends".into()),
                Command::Follow(Some(whom)) => self.follow(whom),
                Command::Follow(None) => self.promote(),
            };
            if let Err(why) = &done {
                eprintln!("millrace: replication: {why}");
                self.said.clone_from(why);
            }
            // Whoever has the reply is not told of the former primary.
            self.reported_at = 0;
            self.report();
            self.handle.note_followed(done);
            self.state.note_wake();
            self.lanes.iter().for_each(|lane| lane.ring());
        }
    }

    /// REPLICAOF host port.
    fn follow(&mut self, whom: (String, u16)) -> Result<(), String> {
        let now = self.now();
        if let Some(replica) = &mut self.replica {
            if self.upstream.whom.as_ref() == Some(&whom) {
                return Ok(());
            }
            replica.stop(now);
            self.pump();
            self.close_upstream();
            eprintln!("millrace: replication: following {}:{} from now on", whom.0, whom.1);
            self.upstream.turn_to(whom);
            if let Some(replica) = &mut self.replica {
                replica.start(now);
            }
            return Ok(());
        }
        let failed =
            "the log has failed, and what it has of the last writes is not known: start this server anew";
        if self.log.as_ref().is_some_and(|log| !log.handle.shared().is_open()) {
            return Err(failed.into());
        }
        eprintln!("millrace: replication: this server is a replica of {}:{} from now on", whom.0, whom.1);
        // Of a history that was followed before nothing is dealt once more.
        self.deliveries.clear();
        self.lanes.iter().for_each(|lane| lane.clear());
        // Before anybody takes the replica's time for the time, and what was dealt once for what is dealt.
        self.state.set_word_us((realtime_ns() / 1000).saturating_sub(CLOCKS_APART_US), true);
        self.state.set_dealt_lsn(0);
        self.state.set_role(Role::Replica);
        self.order_all(|| Order::Follow)?;
        // What clients were promised is in the log before anything else is.
        let mut last = Lsn::ZERO;
        if let Some(log) = &self.log {
            log.control.request_flush();
            let shared = Arc::clone(log.handle.shared());
            self.wait_until("the log", || {
                shared.durable_lsn() == shared.allocated_lsn() || !shared.is_open()
            })?;
            if !shared.is_open() {
                self.state.set_role(Role::Primary);
                self.word = Teller::new(self.word.told_us());
                self.state.set_word_us(self.word.told_us(), false);
                let allocated = shared.allocated_lsn();
                self.order_all(|| Order::Lead(allocated))?;
                return Err(failed.into());
            }
            last = shared.durable_lsn();
        } else {
            // Nothing says which history this was; what is followed begins with its first record.
            self.order_all(|| Order::Clear)?;
        }
        self.take_tapped();
        self.pump();
        self.primary.stop();
        self.pump();
        self.close_tap();
        self.state.set_dealt_lsn(last.0);
        self.is_passing_on = self.lineage.latest().is_some();
        self.primary.handle_history(self.lineage.clone(), last, self.is_passing_on);
        self.begin_following(whom, last);
        Ok(())
    }

    pub(super) fn begin_following(&mut self, whom: (String, u16), last: Lsn) {
        let settings = ReplicaSettings {
            shards: self.options.shards as u32,
            port: u32::from(self.options.ports.0),
            datagrams: self.receiver.is_some(),
            ..ReplicaSettings::default()
        };
        let seed = u64::from_le_bytes(self.nonce()[..8].try_into().expect("eight bytes"));
        let start = ReplicaStart {
            node: self.node,
            secret: self.options.secret.clone(),
            lineage: self.lineage.clone(),
            last_lsn: last,
            partial: None,
            seed,
        };
        self.own = OwnRecords::new(last);
        self.image_lsns.clear();
        self.consistent_lsn = Lsn::ZERO;
        for lane in &self.lanes {
            lane.set_applied_lsn(last);
        }
        // What was served before goes on being served: it is a prefix of some history, perhaps an old one.
        let has_data = last > Lsn::ZERO;
        self.state.set_hindrance(if has_data { Hindrance::None } else { Hindrance::Loading });
        let mut replica = Replica::new(settings, start, checksum());
        replica.start(now_of(0));
        self.replica = Some(replica);
        self.upstream.begin(Some(whom));
    }

    /// REPLICAOF NO ONE.
    fn promote(&mut self) -> Result<(), String> {
        if self.replica.is_none() {
            return Ok(());
        }
        if self.state.dealt_lsn() < self.consistent_lsn.0 || self.upstream.is_installing {
            return Err(String::from(
                "expected a replica that has its data, found one in the middle of a full sync: it stays a replica. Wait for the \
                 sync, or promote another",
            ));
        }
        let now = self.now();
        if let Some(replica) = &mut self.replica {
            replica.stop(now);
        }
        self.pump();
        self.close_upstream();
        let done = self.lead();
        if let (Err(_), Some(replica)) = (&done, &mut self.replica) {
            // It goes on as what it was.
            replica.start(now);
        }
        done
    }

    /// The second half of a promotion: nothing comes from a primary any more.
    fn lead(&mut self) -> Result<(), String> {
        // What was handed over is finished, here and on the disk.
        while !self.deliveries.is_empty() {
            self.step_following();
            if self.own.is_blocked && self.handle.stops.load(Ordering::Acquire) {
                return Err("the server stops".into());
            }
            if self.own.is_blocked {
                self.bell.wait(Some(Duration::from_millis(1)));
            }
        }
        if self.has_failed {
            return Err("what was on its way could not be finished, and this server ends".into());
        }
        let last = Lsn(self.state.dealt_lsn());
        let lanes = self.lanes.clone();
        self.wait_until("the shards", || lanes.iter().all(|lane| lane.applied_lsn() >= last))?;
        if self.log.is_some() {
            let id = u64::from_le_bytes(self.nonce()[..8].try_into().expect("eight bytes"));
            let log_epoch = self.log.as_ref().map_or(Epoch::FIRST, |log| log.handle.shared().epoch());
            let mut lineage = self.lineage.clone();
            let branch = lineage.begin(last.next(), BranchId(id), log_epoch);
            files::write_lineage(&self.options.directory, &lineage)?;
            self.lineage = lineage;
            self.restart_log(branch.epoch, None)?;
            if self.consistent_lsn > Lsn::ZERO {
                // All of the snapshot is in the log, and nobody else will look.
                files::mark_sync(&self.options.directory, None)?;
                self.consistent_lsn = Lsn::ZERO;
            }
            self.handle.tell_history(&self.lineage);
            self.primary.handle_promoted(&self.lineage);
        } else {
            // Nothing numbers its writes: nobody can follow it any more.
            self.lineage = Lineage::default();
            self.primary.handle_history(Lineage::default(), Lsn::ZERO, false);
        }
        self.drop_incoming();
        self.upstream.begin(None);
        self.replica = None;
        // It goes on from the time that it was told.
        self.word = Teller::new(self.state.word_us());
        self.open_tap();
        self.state.set_role(Role::Primary);
        self.order_all(|| Order::Lead(last))?;
        self.state.set_hindrance(Hindrance::None);
        self.state.set_linked(false);
        self.state.set_lag(None, 0);
        self.state.note_wake();
        self.lanes.iter().for_each(|lane| lane.ring());
        eprintln!(
            "millrace: replication: this server writes from now on, behind LSN {last}, in epoch {}",
            latest_epoch(&self.lineage)
        );
        Ok(())
    }

    /// The log goes on in another epoch, or with other content; everything before is durable then.
    pub(super) fn restart_log(&mut self, epoch: Epoch, fresh: Option<(Lsn, Replace)>) -> Result<(), String> {
        let Some(log) = &self.log else { return Ok(()) };
        log.control.request_flush();
        let shared = Arc::clone(log.handle.shared());
        let last = self.own.submitted;
        if fresh.is_none() {
            self.wait_until("the log", || shared.durable_lsn() >= last || !shared.is_open())?;
        }
        let (tell, told) = channel();
        let bell = Arc::clone(&self.bell);
        let uid_seed = u64::from_le_bytes(self.nonce()[..8].try_into().expect("eight bytes"));
        let done = Box::new(move |result| {
            let _ = tell.send(result);
            bell.ring();
        });
        if let Some(log) = &self.log {
            log.control.restart(Restart { epoch, uid_seed, fresh, done });
        }
        // The log's thread answers, or has ended.
        told.recv().unwrap_or_else(|_| Err("the log's thread has ended".into()))
    }

    /// Has all shards heed an order.
    pub(super) fn order_all(&mut self, mut order: impl FnMut() -> Order) -> Result<(), String> {
        for (lane, told) in self.lanes.iter().zip(&mut self.told) {
            lane.order(order(), told);
        }
        self.await_orders()
    }

    /// The same, each its own.
    pub(super) fn order_each(&mut self, orders: Vec<Order>) -> Result<(), String> {
        for ((lane, told), order) in self.lanes.iter().zip(&mut self.told).zip(orders) {
            lane.order(order, told);
        }
        self.await_orders()
    }

    fn await_orders(&self) -> Result<(), String> {
        let (lanes, told) = (&self.lanes, &self.told);
        self.wait_until("the shards", || {
            lanes.iter().zip(told).all(|(lane, &told)| lane.orders_done() >= told)
        })
    }

    /// Waits for what comes soon, unless the server ends.
    pub(super) fn wait_until(&self, whom: &str, is_done: impl Fn() -> bool) -> Result<(), String> {
        while !is_done() {
            if self.handle.stops.load(Ordering::Acquire) {
                return Err(format!("the server stops, and {whom} did not answer"));
            }
            self.bell.wait(Some(Duration::from_millis(1)));
        }
        Ok(())
    }

    // ---- the end, and figures -------------------------------------------------------------------------------------

    /// Replicas are sent what is durable, and told.
    fn end(mut self) {
        let begun = monotonic_ns() / 1000;
        let is_patient = || monotonic_ns() / 1000 - begun < END_PATIENCE_US;
        if let Some(log) = self.log.as_ref().filter(|_| !self.links.is_empty() && self.replica.is_none()) {
            log.control.request_flush();
            let shared = Arc::clone(log.handle.shared());
            while shared.durable_lsn() < shared.allocated_lsn() && shared.is_open() && is_patient() {
                self.bell.wait(Some(Duration::from_millis(1)));
            }
            self.take_tapped();
        }
        self.pump();
        let now = self.now();
        if let Some(replica) = &mut self.replica {
            replica.stop(now);
        }
        if !self.options.keeps_log {
            // The next start has another name, and would not look for it.
            self.drop_incoming();
        }
        // What they have been sent by now they have room for; the rest they ask for again.
        self.primary.stop();
        self.pump();
        while self.links.values().any(LinkSocket::has_output) && is_patient() {
            self.flush_links();
            self.bell.wait(Some(Duration::from_millis(1)));
        }
    }

    pub(super) fn report(&mut self) {
        let now = self.now();
        let acked: Vec<u64> = self
            .primary
            .replicas(now)
            .filter(|replica| replica.applied_lsn > Lsn::ZERO)
            .map(|replica| replica.applied_lsn.0)
            .collect();
        let has_changed = {
            let mut known = lock(&self.handle.acked);
            let has_changed = *known != acked;
            *known = acked;
            has_changed
        };
        if has_changed && self.handle.wants_acks.swap(false, Ordering::AcqRel) {
            self.state.note_wake();
            self.lanes.iter().for_each(|lane| lane.ring());
        }
        if let Some(replica) = &self.replica {
            self.state.set_linked(replica.state() == State::Streaming);
            self.state.set_lag(replica.lag_us(now), replica.lag_records());
        }
        if now.micros.saturating_sub(self.reported_at) >= REPORT_PERIOD_US {
            (self.reported_at, self.is_report_owed) = (now.micros, false);
            let report = self.make_report(now);
            *lock(&self.handle.report) = report;
        } else {
            self.is_report_owed = true;
        }
    }
}

/// A time by this machine's monotonic clock.
pub(super) fn now_of(unix_us: u64) -> Now {
    Now { micros: monotonic_ns() / 1000, unix_us }
}

fn entry(fd: i32, events: i16) -> libc::pollfd {
    libc::pollfd { fd, events, revents: 0 }
}
