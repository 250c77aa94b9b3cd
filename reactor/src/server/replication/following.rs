//! The side that follows: the connection to the primary, records on their way to log and shards, snapshots on their way in.

use super::end::Order;
use super::files::{self, Incoming};
use super::thread::{Event, START_MARGIN_US, Worker};
use crate::clock::monotonic_ns;
use crate::server::recovery::RecoveryOptions;
use crate::server::snapshot_start::Wishes;
use crate::server::snapshot_start::received::{self, Received};
use repl::fault::Fault;
use repl::lineage::Lineage;
use repl::message::SnapshotName;
use repl::replica::{Action, Replica, State};
use repl::run::Delivery;
use snapshot::names::SnapshotId;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;
use store::mutation::Mutation;
use store::replication::{Cleared, Hindrance, Portion};
use store::shards::{Place, ShardSet};
use wal::lsn::Lsn;

/// How long an attempt to reach a node may take.
const CONNECT_PATIENCE: Duration = Duration::from_secs(3);
/// Bytes of records that are dealt before the shards are told.
const DEAL_BYTES: usize = 1 << 20;
/// Batches of datagrams taken in one round.
const ROUND_BATCHES: usize = 32;
/// Bytes read of the connection in one round.
const ROUND_BYTES: usize = 4 << 20;

/// The connection to the node that is followed.
#[derive(Default)]
pub(super) struct Upstream {
    pub(super) whom: Option<(String, u16)>,
    pub(super) http_port: u16,
    pub(super) socket: Option<TcpStream>,
    pub(super) out: Vec<u8>,
    attempt: u64,
    incoming: Option<Incoming>,
    pub(super) sync: Option<(u64, u64)>,
    /// What is to be installed once it is loaded.
    install: Option<(SnapshotName, Lineage)>,
    pub(super) loaded: Option<Result<Received, String>>,
    pub(super) is_installing: bool,
    pub(super) down_since: Option<u64>,
    pub(super) heard_at: Option<u64>,
    pub(super) full_syncs: u64,
}

impl Upstream {
    /// Nothing is known of this one yet. Attempts to reach another come to nothing.
    pub(super) fn begin(&mut self, whom: Option<(String, u16)>) {
        let attempt = self.attempt + 1;
        *self = Upstream { whom, attempt, down_since: Some(monotonic_ns()), ..Upstream::default() };
    }

    /// Another node is followed. What there is of a snapshot may be of use; where the former one is reached is not.
    pub(super) fn turn_to(&mut self, whom: (String, u16)) {
        (self.whom, self.http_port, self.heard_at) = (Some(whom), 0, None);
    }
}

impl Worker {
    // ---- the socket -----------------------------------------------------------------------------------------------

    fn connect(&mut self) {
        let Some((host, port)) = self.upstream.whom.clone() else { return };
        self.upstream.attempt += 1;
        let (attempt, teller, bell) = (self.upstream.attempt, self.teller.clone(), Arc::clone(&self.bell));
        let work = move || {
            let _ = teller.send(Event::Connected(attempt, reach(&host, port)));
            bell.ring();
        };
        if let Err(error) = std::thread::Builder::new().name("replica-connect".into()).spawn(work) {
            let now = self.now();
            if let Some(replica) = &mut self.replica {
                replica.handle_closed(&format!("no thread to connect with: {error}"), now);
            }
        }
    }

    pub(super) fn handle_connected(&mut self, attempt: u64, result: Result<(TcpStream, u16), String>) {
        if attempt != self.upstream.attempt || self.replica.is_none() {
            return;
        }
        let (now, nonce) = (self.now(), self.nonce());
        let Some(replica) = &mut self.replica else { return };
        match result {
            Ok((socket, http_port)) => {
                self.upstream.http_port = http_port;
                self.upstream.socket = Some(socket);
                self.upstream.out.clear();
                replica.handle_connected(nonce, now);
            }
            Err(why) => {
                replica.handle_closed(&why, now);
                self.say_once(format!("cannot follow: {why}; it is tried again"));
            }
        }
    }

    pub(super) fn say_once(&mut self, text: String) {
        if self.said != text {
            eprintln!("millrace: replication: {text}");
            self.said = text;
        }
    }

    pub(super) fn close_upstream(&mut self) {
        self.flush_upstream();
        self.upstream.socket = None;
        self.upstream.out.clear();
        // What an attempt that is under way brings is not wanted.
        self.upstream.attempt += 1;
    }

    pub(super) fn read_upstream(&mut self, buffer: &mut [u8]) {
        let mut left = ROUND_BYTES;
        while left > 0 {
            let now = self.now();
            let Some(replica) = self.replica.as_mut().filter(|replica| replica.wants_bytes()) else { return };
            let Some(socket) = &mut self.upstream.socket else { return };
            let closed = match socket.read(buffer) {
                Ok(0) => String::from("that the primary closed it"),
                Ok(count) => {
                    left = left.saturating_sub(count);
                    self.upstream.heard_at = Some(monotonic_ns());
                    replica.handle_bytes(&buffer[..count], now);
                    self.pump_following();
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => format!("that it broke: {error}"),
            };
            replica.handle_closed(&closed, now);
            self.upstream.socket = None;
            self.say_once(format!("the connection to the primary ended: found {closed}; it is tried again"));
        }
    }

    /// Takes the datagrams that have come, a bounded number.
    pub(super) fn read_datagrams(&mut self) {
        for _ in 0..ROUND_BATCHES {
            let now = self.now();
            let (Some(receiver), Some(replica)) = (&mut self.receiver, &mut self.replica) else { return };
            let count = match receiver.receive() {
                Ok(count) => count,
                Err(error) => return self.say_once(format!("taking datagrams: {error}")),
            };
            (0..count).for_each(|at| replica.handle_datagram(receiver.datagram(at), now));
            if count == 0 {
                return;
            }
            self.pump_following();
        }
    }

    fn pump_following(&mut self) {
        while let Some(action) = self.replica.as_mut().and_then(Replica::poll_action) {
            self.perform_for_primary(action);
        }
        self.step_following();
    }

    pub(super) fn flush_upstream(&mut self) {
        while !self.upstream.out.is_empty() {
            let Some(socket) = &mut self.upstream.socket else { return self.upstream.out.clear() };
            match socket.write(&self.upstream.out) {
                Ok(count) => drop(self.upstream.out.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A broken one is found by reading.
                Err(_) => return,
            }
        }
    }

    // ---- what the machine wants ---------------------------------------------------------------------------------------

    pub(super) fn perform_for_primary(&mut self, action: Action) {
        match action {
            // What comes behind a failure would be without what it goes on from.
            _ if self.has_failed && !matches!(action, Action::Send(_) | Action::Close(_)) => {}
            Action::Connect => self.connect(),
            Action::Send(bytes) => self.upstream.out.extend_from_slice(&bytes),
            Action::Close(fault) => self.say_fault(&fault),
            Action::BeginSnapshot { name, offset } => {
                if offset == 0 {
                    self.drop_incoming();
                    let id = SnapshotId { epoch: name.epoch(), lsn: name.lsn };
                    match Incoming::begin(&self.incoming_below(), id, self.options.keeps_log) {
                        Ok(incoming) => self.upstream.incoming = Some(incoming),
                        Err(why) => return self.give_up_sync(&why),
                    }
                }
                self.upstream.sync = Some((offset, name.length));
            }
            Action::StoreSnapshot { offset, bytes } => {
                let stored = offset + bytes.len() as u64;
                let result = match &self.upstream.incoming {
                    Some(incoming) => incoming.store(offset, &bytes),
                    None => Err("the file that was begun is not there".into()),
                };
                match result {
                    Ok(()) => {
                        if let Some((at, _)) = &mut self.upstream.sync {
                            *at = stored;
                        }
                        if let Some(replica) = &mut self.replica {
                            replica.handle_snapshot_stored(stored);
                        }
                    }
                    Err(why) => self.give_up_sync(&why),
                }
            }
            Action::Install { name, lineage } => self.load(name, lineage),
            Action::DropSnapshot => {
                self.drop_incoming();
            }
            Action::Follow(lineage) => self.keep_lineage(lineage),
            Action::Apply(delivery) => self.deliveries.push_back(delivery),
        }
    }

    fn say_fault(&mut self, fault: &Fault) {
        self.close_upstream();
        let whom = self.upstream.whom.clone().unwrap_or_default();
        self.say_once(format!("the connection to {}:{} ends: {fault}", whom.0, whom.1));
    }

    /// Where snapshots are received: in the data directory, or, without a log, in one of this process.
    fn incoming_below(&self) -> std::path::PathBuf {
        match self.options.keeps_log {
            true => self.options.directory.clone(),
            false => self.options.directory.join(files::sync_name(&self.node)),
        }
    }

    /// Nothing is kept of a snapshot that was on its way.
    pub(super) fn drop_incoming(&mut self) {
        (self.upstream.incoming, self.upstream.sync) = (None, None);
        Incoming::remove(&self.incoming_below());
        if !self.options.keeps_log {
            files::remove_sync(&self.incoming_below());
        }
    }

    /// The disk does not take a snapshot: the connection ends, and it is tried again.
    fn give_up_sync(&mut self, why: &str) {
        let now = self.now();
        self.say_once(format!("the full sync was given up: {why}; it is tried again"));
        self.drop_incoming();
        if let Some(replica) = &mut self.replica {
            // Nothing is kept of it: it begins anew, and what it took is free meanwhile.
            replica.handle_snapshot_stored(0);
            replica.handle_closed(why, now);
        }
        self.close_upstream();
    }

    /// The history has grown: what comes next belongs to a branch that is kept first.
    fn keep_lineage(&mut self, lineage: Lineage) {
        if self.options.keeps_log
            && let Err(why) = files::write_lineage(&self.options.directory, &lineage)
        {
            return self.fail(&why);
        }
        self.handle.tell_history(&lineage);
        self.lineage = lineage;
        if self.is_passing_on {
            self.primary.handle_follow(&self.lineage);
        }
    }

    /// This node cannot follow any more: its own disk, or a record that it cannot apply. What is dealt is a prefix of the
    /// primary's records and stays one: what was on its way behind it goes.
    fn fail(&mut self, why: &str) {
        if std::mem::replace(&mut self.has_failed, true) {
            return;
        }
        eprintln!("millrace: replication: this server cannot follow any more, and ends: {why}");
        self.state.set_hindrance(Hindrance::Loading);
        let now = self.now();
        if let Some(replica) = &mut self.replica {
            replica.stop(now);
        }
        self.close_upstream();
        self.deliveries.clear();
        (self.upstream.loaded, self.upstream.install, self.upstream.is_installing) = (None, None, false);
        self.drop_incoming();
        self.stop.request();
    }

    // ---- records ------------------------------------------------------------------------------------------------------

    /// Records go to the log and to the shards; what these have done is said.
    pub(super) fn step_following(&mut self) {
        if self.replica.is_none() || self.has_failed {
            return;
        }
        self.install_if_loaded();
        self.deal();
        if self.has_failed {
            return;
        }
        if let Some(why) = self.lanes.iter().find_map(|lane| lane.failure()) {
            return self.fail(&why);
        }
        let now = self.now();
        let dealt = Lsn(self.state.dealt_lsn());
        let applied = self.lanes.iter().map(|lane| lane.applied_lsn()).min().unwrap_or(dealt).min(dealt);
        let durable = match &self.log {
            Some(log) => log.handle.durable_lsn().min(applied),
            None => Lsn::ZERO,
        };
        let Some(replica) = &mut self.replica else { return };
        let before = replica.applied_lsn();
        if !self.upstream.is_installing {
            replica.handle_applied(applied.max(before), durable, now);
        }
        if let Some(word_us) = replica.take_word(dealt) {
            self.state.set_word_us(word_us, false);
        }
        let (chain, fresh_as_of) = (replica.chain().clone(), replica.fresh_as_of());
        let is_streaming = replica.state() == State::Streaming;
        let lag_us = replica.lag_us(now);
        self.primary.handle_chain(chain);
        self.primary.handle_freshness(fresh_as_of);
        self.upstream.down_since = match is_streaming {
            true => None,
            false => Some(self.upstream.down_since.unwrap_or_else(monotonic_ns)),
        };
        self.see_to_hindrance(lag_us);
    }

    /// Whether reads may be answered.
    fn see_to_hindrance(&mut self, lag_us: Option<u64>) {
        let most = self.state.lag_max_ms();
        let dealt = Lsn(self.state.dealt_lsn());
        let is_loading =
            self.upstream.is_installing || dealt < self.consistent_lsn || self.lineage.latest().is_none();
        let hindrance = match () {
            _ if is_loading => Hindrance::Loading,
            _ if most > 0 && lag_us.is_none_or(|lag| lag > most.saturating_mul(1000)) => Hindrance::Stale,
            _ => Hindrance::None,
        };
        if hindrance != self.state.hindrance() {
            self.state.set_hindrance(hindrance);
            self.state.note_wake();
        }
        if !is_loading && self.consistent_lsn > Lsn::ZERO {
            let durable = self.log.as_ref().map(|log| log.handle.durable_lsn());
            if durable.is_none_or(|durable| durable >= self.consistent_lsn) {
                let unmarked = match durable {
                    Some(_) => files::mark_sync(&self.options.directory, None),
                    None => Ok(()),
                };
                match unmarked {
                    Ok(()) => self.consistent_lsn = Lsn::ZERO,
                    // Tried again: a start would take the data for half of a snapshot.
                    Err(why) => self.say_once(why),
                }
            }
        }
        if !is_loading && !self.is_passing_on {
            self.is_passing_on = true;
            self.primary.handle_history(self.lineage.clone(), dealt, true);
        }
    }

    fn deal(&mut self) {
        let mut bytes = 0;
        let mut last = None;
        while bytes < DEAL_BYTES
            && let Some(delivery) = self.deliveries.front()
        {
            if let Some(log) = &self.log
                && delivery.epoch > log.handle.shared().epoch()
            {
                // What was dealt is shown before the log stands still.
                self.show(last.take());
                let epoch =
                    self.deliveries.front().map_or(repl::lineage::BranchId(0).0, |first| first.epoch.0);
                if let Err(why) = self.restart_log(wal::lsn::Epoch(epoch), None) {
                    return self.fail(&why);
                }
                continue;
            }
            if let Some(log) = &mut self.log {
                match self.own.submit(log, delivery) {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(why) => return self.fail(&why),
                }
            }
            let Some(delivery) = self.deliveries.pop_front() else { break };
            bytes += delivery.bytes();
            if let Err(why) = self.deal_one(&delivery) {
                return self.fail(&why);
            }
            last = Some(delivery);
            if self.is_passing_on {
                self.pass_on(last.as_ref());
            }
        }
        if last.is_some() {
            self.bell.ring();
        }
        self.show(last);
    }

    /// What was dealt can be read from now on.
    fn show(&mut self, last: Option<Delivery>) {
        let Some(delivery) = last else { return };
        self.state.set_dealt_lsn(delivery.last_lsn.0);
        self.state.note_wake();
        self.lanes.iter().for_each(|lane| lane.ring());
    }

    /// Effects go to the shards that have their keys.
    fn deal_one(&mut self, delivery: &Delivery) -> Result<(), String> {
        let last_lsn = delivery.last_lsn.0;
        let count = self.lanes.len();
        let is_partial = self.image_lsns.iter().any(|&lsn| lsn >= delivery.first_lsn);
        if count == 1 && !is_partial {
            self.image_lsns.clear();
            let effects = Vec::with_capacity(delivery.bytes());
            let mut portion = Portion { effects, last_lsn, ..Portion::default() };
            delivery.records().for_each(|record| portion.effects.extend_from_slice(record.payload));
            self.lanes[0].deal(portion);
            return Ok(());
        }
        let (here, there) =
            (Place { index: 0, count }, Place { index: 0, count: self.image_lsns.len().max(1) });
        let mut portions: Vec<Portion> =
            (0..count).map(|_| Portion { last_lsn, ..Portion::default() }).collect();
        for record in delivery.records() {
            let mut rest = record.payload;
            while !rest.is_empty() {
                let effect = rest;
                let mutation = Mutation::decode(&mut rest).map_err(|error| error.to_string())?;
                let effect = &effect[..effect.len() - rest.len()];
                // What the image of the shard that had the key holds already is left out.
                let has = |shard: usize| is_partial && self.image_lsns[shard] >= record.lsn;
                match mutation.key() {
                    Some(key) if has(there.shard_of(key)) => {}
                    Some(key) => portions[here.shard_of(key)].effects.extend_from_slice(effect),
                    None if !is_partial => {
                        portions.iter_mut().for_each(|portion| portion.effects.extend_from_slice(effect));
                    }
                    None if there.count == count => {
                        let wanted = portions.iter_mut().enumerate().filter(|(shard, _)| !has(*shard));
                        wanted.for_each(|(_, portion)| portion.effects.extend_from_slice(effect));
                    }
                    // Keys that went into the snapshot before that are on all shards here, among others that did not.
                    None => {
                        let mut cleared = Cleared { count: there.count, shards: ShardSet::default() };
                        (0..there.count).filter(|&shard| !has(shard)).for_each(|s| cleared.shards.insert(s));
                        for (lane, portion) in self.lanes.iter().zip(&mut portions) {
                            let next = Portion { cleared: Some(cleared), last_lsn, ..Portion::default() };
                            lane.deal(std::mem::replace(portion, next));
                        }
                    }
                }
            }
        }
        for (lane, portion) in self.lanes.iter().zip(portions) {
            if !portion.effects.is_empty() || portion.cleared.is_some() {
                lane.deal(portion);
            }
        }
        if !is_partial {
            self.image_lsns.clear();
        }
        Ok(())
    }

    /// What can be read here goes on to those who follow this node.
    fn pass_on(&mut self, delivery: Option<&Delivery>) {
        let Some(delivery) = delivery else { return };
        let now = self.now();
        let from = self.primary.durable_lsn();
        let new = delivery.records().filter(|record| record.lsn > from);
        self.primary.handle_durable(new, delivery.last_lsn, now);
    }

    // ---- full sync ----------------------------------------------------------------------------------------------------

    /// A snapshot is here whole: it is read by a thread of its own.
    fn load(&mut self, name: SnapshotName, lineage: Lineage) {
        let Some(incoming) = &self.upstream.incoming else {
            return self.handle_load_failure("the file that was begun is not there");
        };
        let (directory, id) = (incoming.directory().to_path_buf(), incoming.id());
        self.upstream.install = Some((name, lineage));
        self.upstream.is_installing = true;
        let (teller, bell) = (self.teller.clone(), Arc::clone(&self.bell));
        let (seeds, core, is_kept) = (self.seeds.clone(), self.helper_core, self.log.is_some());
        let work = move || {
            let mut recovery = RecoveryOptions::new(0);
            recovery.from = Lsn::FIRST;
            let wishes = Wishes {
                seeds: &seeds,
                recovery,
                warms_fully: true,
                may_write: false,
                now: crate::clock::SystemClock::new().now(),
            };
            let mut say = |line: &str| eprintln!("millrace: replication: {line}");
            let _ =
                teller.send(Event::Loaded(received::load(&directory, id, is_kept, core, &wishes, &mut say)));
            bell.ring();
        };
        if let Err(error) = std::thread::Builder::new().name("replica-load".into()).spawn(work) {
            self.handle_load_failure(&error.to_string());
        }
    }

    fn handle_load_failure(&mut self, why: &str) {
        let now = self.now();
        self.upstream.is_installing = false;
        self.upstream.install = None;
        self.drop_incoming();
        self.say_once(format!("the snapshot that was received is not used: {why}"));
        if let Some(replica) = &mut self.replica {
            replica.handle_installed(Err(why), now);
        }
    }

    /// The snapshot takes the place of everything, as soon as nobody takes another.
    fn install_if_loaded(&mut self) {
        let Some(loaded) = self.upstream.loaded.take() else { return };
        let received = match loaded {
            Ok(received) => received,
            Err(why) => return self.handle_load_failure(&why),
        };
        let Some((name, lineage)) = self.upstream.install.clone() else { return };
        if received.uid != name.uid {
            return self.handle_load_failure("it is another one than was announced");
        }
        if let Some(snapshots) = &self.snapshots
            && !snapshots.status.claim()
        {
            // One is being taken, of what is about to go.
            self.upstream.loaded = Some(Ok(received));
            return;
        }
        let done = self.install(name, lineage, received);
        if let Some(snapshots) = &self.snapshots {
            snapshots.status.release();
        }
        self.upstream.is_installing = false;
        self.upstream.install = None;
        if let Err(why) = done {
            self.fail(&why);
        }
    }

    fn install(&mut self, name: SnapshotName, lineage: Lineage, received: Received) -> Result<(), String> {
        let Received { keyspaces, lsns, unix_us, .. } = received;
        self.state.set_hindrance(Hindrance::Loading);
        // What was handed over before is of no use any more, wherever it is.
        self.deliveries.clear();
        self.state.set_dealt_lsn(0);
        self.lanes.iter().for_each(|lane| lane.clear());
        if self.log.is_some() {
            let (directory, history) = (self.options.directory.clone(), lineage.clone());
            let until = name.lsn_max;
            let replace = Box::new(move || files::install(&directory, &history, until));
            self.restart_log(name.epoch(), Some((name.lsn.next(), replace)))?;
        }
        // With a log it has taken its place by now.
        self.drop_incoming();
        // Before shards have the data: none of its keys may expire by what time it was for others.
        self.state.set_word_us(unix_us.saturating_sub(START_MARGIN_US), true);
        let orders =
            keyspaces.into_iter().map(|keyspace| Order::Replace(Box::new(keyspace), name.lsn)).collect();
        self.order_each(orders)?;
        self.lanes.iter().for_each(|lane| lane.set_applied_lsn(name.lsn));
        if let Some(snapshots) = &self.snapshots {
            let id = SnapshotId { epoch: name.epoch(), lsn: name.lsn };
            snapshots.replaced(self.log.is_some().then_some(id));
        }
        self.own = super::log_side::OwnRecords::new(name.lsn);
        (self.image_lsns, self.consistent_lsn) = (lsns, name.lsn_max);
        self.handle.tell_history(&lineage);
        self.lineage = lineage;
        self.state.set_dealt_lsn(name.lsn.0);
        self.is_passing_on = false;
        self.primary.handle_history(Lineage::default(), Lsn::ZERO, false);
        self.primary.handle_log_begins(self.log.is_some().then(|| name.lsn.next()));
        self.upstream.full_syncs += 1;
        let now = self.now();
        if let Some(replica) = &mut self.replica {
            replica.handle_installed(Ok(()), now);
        }
        eprintln!(
            "millrace: replication: a snapshot of {} bytes, up to LSN {}, has taken the place of all data",
            name.length, name.lsn_max
        );
        Ok(())
    }
}

/// Reaches a node: asks at its port for clients where replicas connect, and connects there.
fn reach(host: &str, port: u16) -> Result<(TcpStream, u16), String> {
    let place = format!("{host}:{port}");
    let addresses = (host, port).to_socket_addrs().map_err(|error| format!("{place}: {error}"))?;
    let mut last = format!("{place}: the name has no address");
    for address in addresses {
        match reach_at(address, &place) {
            Ok(reached) => return Ok(reached),
            Err(why) => last = why,
        }
    }
    Err(last)
}

fn reach_at(mut address: std::net::SocketAddr, place: &str) -> Result<(TcpStream, u16), String> {
    let failed = |doing: &str, error: io::Error| format!("{place}: {doing}: {error}");
    let asked = TcpStream::connect_timeout(&address, CONNECT_PATIENCE)
        .map_err(|error| failed("connecting", error))?;
    let ask = || -> io::Result<String> {
        asked.set_read_timeout(Some(CONNECT_PATIENCE))?;
        asked.set_write_timeout(Some(CONNECT_PATIENCE))?;
        (&asked).write_all(b"*2\r\n$8\r\nREPLCONF\r\n$16\r\nreplication-port\r\n")?;
        let mut line = String::new();
        BufReader::new((&asked).take(512)).read_line(&mut line)?;
        Ok(line)
    };
    let line = ask().map_err(|error| failed("asking where replicas connect", error))?;
    let mut words = line.trim_end().strip_prefix("+REPLICATION ").unwrap_or_default().split(' ');
    let mut number = || words.next().and_then(|word| word.parse::<u16>().ok());
    let (Some(port), Some(http_port)) = (number(), number()) else {
        return Err(format!(
            "{place}: expected a Millrace that says where replicas connect, found {:?}",
            line.trim_end().chars().take(120).collect::<String>()
        ));
    };
    if port == 0 {
        return Err(format!("{place}: it takes no replicas; start it with --replica-listen PORT"));
    }
    address.set_port(port);
    let socket = TcpStream::connect_timeout(&address, CONNECT_PATIENCE)
        .map_err(|error| format!("{place}: connecting to port {port}, where it takes replicas: {error}"))?;
    socket
        .set_nodelay(true)
        .and_then(|()| socket.set_nonblocking(true))
        .map_err(|error| failed("preparing", error))?;
    Ok((socket, http_port))
}
