//! A primary and its replicas step by step, over connections that lose nothing: who is refused and in which
//! words, what is bounded, what WAIT and reads are told, what datagrams bring.

use repl::fault::{Fault, Reason};
use repl::frame::preamble_of;
use repl::identity::{NodeId, Now};
use repl::lineage::{BranchId, Lineage};
use repl::message::SnapshotName;
use repl::primary::{self, LinkId, Primary, PrimaryStart, ReplicaState, WaitVerdict};
use repl::reads::{AtLeast, ReadVerdict};
use repl::replica::{self, Replica, ReplicaStart, State};
use repl::secret::Secret;
use repl::settings::{DatagramSettings, PrimarySettings, ReplicaSettings};
use std::collections::BTreeMap;
use wal::checksum::Checksum;
use wal::lsn::{Epoch, Lsn};
use wal::record::Record;

const SNAPSHOT_BYTES: u64 = 5000;

fn id(n: u8) -> NodeId {
    NodeId([n; 16])
}

/// A replica and what its edge has done.
struct Follower {
    replica: Replica,
    link: LinkId,
    applied: Vec<(u64, Vec<u8>)>,
    /// Deliveries that the shards have not applied: only while this is true.
    holds: bool,
    held: Vec<u64>,
    closed: Vec<Fault>,
    installed: Vec<(SnapshotName, u64)>,
    stored: u64,
    /// What is written to it is not read: its socket is full.
    is_stuck: bool,
}

/// What a primary is told of a record that its log does not give.
#[derive(Clone, Copy)]
enum Damaged {
    Said,
    /// That it is gone; and not where the log begins.
    Gone,
}

struct Cluster {
    now: Now,
    primary: Primary,
    log: Vec<Vec<u8>>,
    log_first: u64,
    /// This record cannot be read, and what the primary is told of that.
    damaged: Option<(u64, Damaged)>,
    followers: BTreeMap<LinkId, Follower>,
    closed: Vec<(LinkId, Fault)>,
    next_link: u64,
    waits: Vec<usize>,
    snapshot_shards: u32,
    /// Why there are no snapshots.
    no_snapshots: Option<&'static str>,
    /// Which datagrams get lost, by their order.
    loses: fn(u64) -> bool,
    datagrams: u64,
    log_reads: usize,
    feeds_asked: usize,
    strangers_closed: usize,
}

fn lineage(seed: u64) -> Lineage {
    let mut lineage = Lineage::default();
    lineage.begin(Lsn::FIRST, BranchId(seed), Epoch::FIRST);
    lineage
}

fn settings() -> PrimarySettings {
    PrimarySettings {
        backlog_bytes_max: 4096,
        frame_bytes_max: 1024,
        send_window_bytes: 2000,
        log_read_bytes: 1000,
        snapshot_chunk_bytes: 700,
        heartbeat_us: 1000,
        timeout_us: 50_000,
        replicas_max: 3,
        strangers_max: 4,
        ..PrimarySettings::default()
    }
}

fn follower_settings() -> ReplicaSettings {
    ReplicaSettings {
        timeout_us: 50_000,
        ack_interval_us: 1000,
        backoff_us_min: 100,
        backoff_us_max: 1000,
        read_wait_us: 5000,
        datagrams: true,
        ..ReplicaSettings::default()
    }
}

fn start(node: u8, secret: &[u8]) -> ReplicaStart {
    ReplicaStart {
        node: id(node),
        secret: Secret::new(secret),
        lineage: Lineage::default(),
        last_lsn: Lsn::ZERO,
        partial: None,
        seed: u64::from(node),
    }
}

impl Cluster {
    fn new(settings: PrimarySettings) -> Cluster {
        let start = PrimaryStart {
            node: id(1),
            secret: Secret::new(b"s"),
            stream: 1,
            salt: [7; 16],
            lineage: lineage(1),
            durable_lsn: Lsn::ZERO,
            log_first_lsn: Some(Lsn::FIRST),
            is_serving: true,
        };
        let now = Now { micros: 1000, unix_us: 1_700_000_000_000_000 };
        Cluster {
            now,
            primary: Primary::new(settings, start, Checksum::portable(), now),
            log: Vec::new(),
            log_first: 1,
            damaged: None,
            followers: BTreeMap::new(),
            closed: Vec::new(),
            next_link: 1,
            waits: Vec::new(),
            snapshot_shards: 1,
            no_snapshots: None,
            loses: |_| false,
            datagrams: 0,
            log_reads: 0,
            feeds_asked: 0,
            strangers_closed: 0,
        }
    }

    /// Somebody connects, and has not said a word.
    fn stranger(&mut self) -> LinkId {
        let link = LinkId(self.next_link);
        self.next_link += 1;
        self.primary.handle_connected(link, [1; 16], self.now);
        self.run();
        link
    }

    fn write(&mut self, count: usize, length: usize) {
        let from = self.log.len();
        for n in from..from + count {
            self.log.push((0..length).map(|at| (at + n) as u8).collect());
        }
        let (unix_us, durable) = (self.now.unix_us, Lsn(self.log.len() as u64));
        let new = self.log[from..].iter().zip(from as u64 + 1..);
        let records = new.map(|(payload, lsn)| Record { lsn: Lsn(lsn), unix_us, payload });
        self.primary.handle_durable(records, durable, self.now);
        self.run();
    }

    fn follow(&mut self, settings: ReplicaSettings, start: ReplicaStart) -> LinkId {
        let mut replica = Replica::new(settings, start, Checksum::portable());
        replica.start(self.now);
        self.connect(replica)
    }

    fn connect(&mut self, mut replica: Replica) -> LinkId {
        let link = LinkId(self.next_link);
        self.next_link += 1;
        replica.handle_timeout(self.now);
        assert_eq!(replica.poll_action(), Some(replica::Action::Connect));
        replica.handle_connected([link.0 as u8; 16], self.now);
        self.primary.handle_connected(link, [100 + link.0 as u8; 16], self.now);
        let follower = Follower {
            replica,
            link,
            applied: Vec::new(),
            holds: false,
            held: Vec::new(),
            closed: Vec::new(),
            installed: Vec::new(),
            stored: 0,
            is_stuck: false,
        };
        self.followers.insert(link, follower);
        self.run();
        link
    }

    fn at(&mut self, link: LinkId) -> &mut Follower {
        self.followers.get_mut(&link).unwrap()
    }

    /// Time passes, in steps.
    fn pass(&mut self, micros: u64) {
        for _ in 0..micros.div_ceil(500) {
            self.now.micros += 500;
            self.now.unix_us += 500;
            self.primary.handle_timeout(self.now);
            for follower in self.followers.values_mut() {
                follower.replica.handle_timeout(self.now);
            }
            self.run();
        }
    }

    /// Until nobody has anything to do.
    fn run(&mut self) {
        loop {
            if let Some(action) = self.primary.poll_action(self.now) {
                self.primary_does(action);
            } else if let Some(burst) = self.primary.poll_datagrams(self.now) {
                for datagram in burst.datagrams() {
                    self.datagrams += 1;
                    if !(self.loses)(self.datagrams) {
                        self.followers
                            .values_mut()
                            .for_each(|one| one.replica.handle_datagram(datagram, self.now));
                    }
                }
            } else {
                let acting =
                    self.followers.values_mut().find_map(|one| Some((one.link, one.replica.poll_action()?)));
                let Some((link, action)) = acting else { return };
                self.replica_does(link, action);
            }
        }
    }

    fn primary_does(&mut self, action: primary::Action) {
        match action {
            primary::Action::Send { link, bytes } => {
                let now = self.now;
                let Some(follower) = self.followers.get_mut(&link).filter(|one| !one.is_stuck) else {
                    return;
                };
                follower.replica.handle_bytes(&bytes, now);
                self.primary.handle_written(link, bytes.len());
            }
            primary::Action::Feed => self.feeds_asked += 1,
            primary::Action::Close { link, fault, is_stranger } => {
                self.strangers_closed += usize::from(is_stranger);
                self.closed.push((link, fault));
                let now = self.now;
                if let Some(follower) = self.followers.get_mut(&link) {
                    follower.replica.handle_closed("that it was closed", now);
                }
            }
            primary::Action::ReadLog { link, from, until, bytes_max } => {
                self.log_reads += 1;
                if from.0 < self.log_first {
                    return self.primary.handle_log_gone(link);
                }
                match self.damaged.filter(|&(lsn, _)| from.0 == lsn) {
                    Some((_, Damaged::Said)) => return self.primary.handle_log_damaged(link, "damage"),
                    Some((_, Damaged::Gone)) => return self.primary.handle_log_gone(link),
                    None => {}
                }
                let behind = self.damaged.filter(|&(lsn, _)| from.0 < lsn);
                let (mut bytes, unreadable) = (0, behind.map_or(u64::MAX, |(lsn, _)| lsn));
                let records = self.log.iter().zip(1_u64..).skip(from.0 as usize - 1);
                let enough = records.take_while(|&(payload, lsn)| {
                    let wanted = lsn <= until.0 && bytes < bytes_max && lsn < unreadable;
                    bytes += payload.len();
                    wanted
                });
                let records = enough.map(|(payload, lsn)| Record { lsn: Lsn(lsn), unix_us: 5, payload });
                self.primary.handle_log_records(link, records);
            }
            primary::Action::FindSnapshot { link, .. } => {
                if let Some(why) = self.no_snapshots {
                    return self.primary.handle_no_snapshot(link, why, self.now);
                }
                let lsn = self.primary.durable_lsn();
                let epoch = self.primary.lineage().latest().unwrap().epoch.0;
                let name = SnapshotName { epoch, lsn, lsn_max: lsn, uid: 9, length: SNAPSHOT_BYTES };
                drop(self.primary.handle_snapshot_found(link, name, self.snapshot_shards, self.now.micros));
            }
            primary::Action::ReadSnapshot { link, offset, length, .. } => {
                let bytes: Vec<u8> = (offset..offset + length as u64).map(|at| at as u8).collect();
                self.primary.handle_snapshot_bytes(link, offset, &bytes, self.now);
            }
            primary::Action::SnapshotSent { .. } => (),
            primary::Action::WaitDone { replicas, .. } => self.waits.push(replicas),
        }
    }

    fn replica_does(&mut self, link: LinkId, action: replica::Action) {
        let now = self.now;
        let follower = self.followers.get_mut(&link).unwrap();
        match action {
            replica::Action::Send(bytes) => self.primary.handle_bytes(link, &bytes, now),
            replica::Action::Close(fault) => {
                follower.closed.push(fault);
                self.primary.handle_closed(link);
            }
            replica::Action::Apply(delivery) => {
                let records = delivery.records().map(|record| (record.lsn.0, record.payload.to_vec()));
                follower.applied.extend(records);
                match follower.holds {
                    true => follower.held.push(delivery.last_lsn.0),
                    false => follower.replica.handle_applied(delivery.last_lsn, Lsn::ZERO, now),
                }
            }
            replica::Action::BeginSnapshot { offset, .. } => follower.stored = offset,
            replica::Action::StoreSnapshot { offset, bytes } => {
                assert_eq!(offset, follower.stored);
                assert!(bytes.iter().zip(offset..).all(|(&byte, at)| byte == at as u8));
                follower.stored += bytes.len() as u64;
                follower.replica.handle_snapshot_stored(follower.stored);
            }
            replica::Action::Install { name, .. } => {
                follower.installed.push((name, follower.stored));
                follower.applied.clear();
                follower.replica.handle_installed(Ok(()), now);
            }
            // One attempt a test makes itself.
            replica::Action::Connect | replica::Action::Follow(_) | replica::Action::DropSnapshot => (),
        }
    }

    /// What a follower was told when it was refused.
    fn refusal(&mut self, settings: ReplicaSettings, start: ReplicaStart) -> Fault {
        let link = self.follow(settings, start);
        let fault = self.at(link).replica.last_fault().cloned();
        fault.unwrap_or_else(|| panic!("{:?}", self.followers[&link].replica.state()))
    }

    #[track_caller]
    fn assert_equal(&mut self, link: LinkId) {
        let log = self.log.clone();
        let applied = &self.at(link).applied;
        let first = applied.first().map_or(0, |first| first.0 as usize - 1);
        let expected: Vec<(u64, Vec<u8>)> = (1..).zip(log).skip(first).collect();
        assert!(*applied == expected, "{:?}", applied.iter().map(|record| record.0).collect::<Vec<_>>());
    }
}

#[test]
fn a_replica_follows_from_the_backlog_and_from_the_log() {
    let mut cluster = Cluster::new(settings());
    cluster.write(20, 100);
    let early = cluster.follow(follower_settings(), start(2, b"s"));
    cluster.write(300, 100);
    let late = cluster.follow(follower_settings(), start(3, b"s"));
    assert!(cluster.log_reads > 10, "the backlog is too small for all of it: {}", cluster.log_reads);
    cluster.write(5, 3000);
    cluster.pass(3000);
    for link in [early, late] {
        cluster.assert_equal(link);
        assert_eq!(cluster.at(link).applied.len(), 325);
    }
    let infos: Vec<_> = cluster.primary.replicas(cluster.now).collect();
    assert!(
        infos.iter().all(|info| info.state == ReplicaState::Streaming && info.lag_records == 0),
        "{infos:?}"
    );
    assert!(infos.iter().all(|info| info.applied_lsn == Lsn(325) && info.lag_bytes == 0), "{infos:?}");
    assert!(cluster.primary.backlog().0 <= 4096 + 1100 && cluster.primary.needs_log_from().is_none());
    assert_eq!(cluster.primary.counters().full_syncs, 0);
}

#[test]
fn who_is_refused_learns_why_on_both_sides() {
    let mut cluster = Cluster::new(settings());
    cluster.write(3, 10);
    let fault = cluster.refusal(follower_settings(), start(1, b"s"));
    assert!(fault.reason == Reason::Itself && fault.text.contains("which is this one"), "{fault}");
    let fault = cluster.refusal(follower_settings(), start(2, b"other"));
    assert!(
        fault.reason == Reason::Secret
            && fault.is_peers
            && fault.to_string().contains("same replication secret")
    );
    assert_eq!(cluster.closed.last().unwrap().1.reason, Reason::Secret);
    // More of the same history than the primary has: a replica of a node that lags.
    let ahead = ReplicaStart { lineage: lineage(1), last_lsn: Lsn(4), ..start(2, b"s") };
    let fault = cluster.refusal(follower_settings(), ahead);
    assert!(
        fault.reason == Reason::Behind && fault.text.contains("at most LSN 3, found one that has LSN 4"),
        "{fault}"
    );
    // A ring.
    cluster.primary.handle_chain(repl::identity::Chain::new(vec![id(5), id(2)]).unwrap());
    let fault = cluster.refusal(follower_settings(), start(2, b"s"));
    assert!(fault.reason == Reason::Cycle && fault.text.contains("0202"), "{fault}");
    cluster.primary.handle_chain(repl::identity::Chain::new((10..26).map(id).collect()).unwrap());
    let fault = cluster.refusal(follower_settings(), start(2, b"s"));
    assert_eq!(fault.reason, Reason::ChainTooLong, "{fault}");
    cluster.primary.handle_chain(repl::identity::Chain::default());
    cluster.primary.handle_history(lineage(1), Lsn(3), false);
    let fault = cluster.refusal(follower_settings(), start(2, b"s"));
    assert_eq!(fault.reason, Reason::NotReady, "{fault}");
    cluster.primary.handle_history(lineage(1), Lsn(3), true);
    // A snapshot of another number of shards.
    cluster.snapshot_shards = 4;
    let other = ReplicaStart { lineage: lineage(9), last_lsn: Lsn(2), ..start(2, b"s") };
    let fault = cluster.refusal(ReplicaSettings { reshards: false, ..follower_settings() }, other);
    assert!(fault.reason == Reason::Shards && fault.text.contains("with 4 shards"), "{fault}");
    for n in 0..3 {
        let link = cluster.follow(follower_settings(), start(20 + n, b"s"));
        assert_eq!(cluster.at(link).replica.state(), State::Streaming);
    }
    let fault = cluster.refusal(follower_settings(), start(30, b"s"));
    assert!(fault.reason == Reason::TooManyReplicas && fault.text.contains("at most 3"), "{fault}");
    assert_eq!(cluster.primary.replicas(cluster.now).count(), 3);
    // None of it touched anybody's data.
    assert!(cluster.followers.values().all(|one| one.installed.is_empty()));
}

#[test]
fn junk_and_other_versions_are_told_apart() {
    let mut cluster = Cluster::new(settings());
    for (bytes, reason, text) in [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), Reason::Protocol, "found \"GET / HTTP/1.1"),
        (preamble_of(9, 7, Checksum::portable()).to_vec(), Reason::Version, "that speaks 7 to 9"),
    ] {
        let link = cluster.stranger();
        cluster.primary.handle_bytes(link, &bytes, cluster.now);
        cluster.run();
        let (closed, fault) = cluster.closed.last().unwrap();
        assert!((*closed, fault.reason) == (link, reason) && fault.text.contains(text), "{fault}");
        let mut replica = Replica::new(follower_settings(), start(2, b"s"), Checksum::portable());
        replica.start(cluster.now);
        replica.handle_timeout(cluster.now);
        replica.handle_connected([1; 16], cluster.now);
        replica.handle_bytes(&bytes, cluster.now);
        let fault = replica.last_fault().unwrap();
        assert!(fault.reason == reason && fault.text.contains(text), "{fault}");
    }
}

/// Found in review: whoever connected and said nothing had a place among the replicas, and with a word now and then for ever.
#[test]
fn strangers_are_bounded_in_number_and_in_time_and_keep_no_replica_out() {
    let mut cluster = Cluster::new(settings());
    let first = cluster.stranger();
    cluster.pass(1000);
    let others: Vec<LinkId> = (0..3).map(|_| cluster.stranger()).collect();
    assert!(cluster.closed.is_empty(), "four are as many as may be");
    cluster.pass(1000);
    let last = cluster.stranger();
    let (closed, fault) = cluster.closed.pop().unwrap();
    assert!((closed, fault.reason) == (first, Reason::Timeout) && cluster.closed.is_empty(), "{fault}");
    assert!(fault.text.contains("expected a proof before 4 others came"), "{fault}");
    let counters = cluster.primary.counters();
    assert_eq!((counters.strangers, counters.strangers_crowded_out), (1, 1));
    // Replicas have places of their own, and are not in the way of strangers.
    for node in 2..5 {
        let link = cluster.follow(follower_settings(), start(node, b"s"));
        assert_eq!(cluster.at(link).replica.state(), State::Streaming);
    }
    assert_eq!(cluster.closed.pop().unwrap().0, others[0], "the handshake took one place for a moment");
    assert!(cluster.closed.is_empty());
    assert!(cluster.primary.has_replicas());
    // Half a handshake buys no time: hello comes, and the proof does not.
    cluster.pass(20_000);
    let mut replica = Replica::new(follower_settings(), start(9, b"s"), Checksum::portable());
    replica.start(cluster.now);
    replica.handle_timeout(cluster.now);
    replica.handle_connected([9; 16], cluster.now);
    while let Some(action) = replica.poll_action() {
        if let replica::Action::Send(bytes) = action {
            cluster.primary.handle_bytes(last, &bytes, cluster.now);
        }
    }
    cluster.run();
    let strangers = |cluster: &Cluster| {
        let infos = cluster.primary.replicas(cluster.now);
        infos.filter(|info| info.state == ReplicaState::Handshake).count()
    };
    assert_eq!(strangers(&cluster), 3);
    cluster.pass(30_000);
    assert_eq!((strangers(&cluster), cluster.strangers_closed), (0, 5), "{:?}", cluster.closed);
    assert!(cluster.closed.iter().all(|(_, fault)| fault.reason == Reason::Timeout));
    assert_eq!(cluster.primary.replicas(cluster.now).count(), 3, "and replicas are still there");
}

/// Found in review: the primary kept records for whoever connected, and went on for ever.
#[test]
fn records_are_handed_over_while_there_is_a_replica_and_to_nobody_else() {
    let mut cluster = Cluster::new(settings());
    cluster.write(10, 100);
    assert!(cluster.primary.rest() && !cluster.primary.is_fed());
    assert_eq!(cluster.primary.backlog().0, 0, "nobody needs it");
    // Meanwhile ten more become durable, and nobody tells.
    cluster.log.extend((0..10).map(|n| vec![n; 50]));
    let silent = cluster.stranger();
    cluster.primary.handle_bytes(silent, b"GET / HTTP/1.1\r\n", cluster.now);
    let fault = cluster.refusal(follower_settings(), start(3, b"wrong"));
    assert_eq!((fault.reason, cluster.feeds_asked), (Reason::Secret, 0));
    let fault = cluster.refusal(follower_settings(), start(1, b"s"));
    assert_eq!((fault.reason, cluster.feeds_asked), (Reason::Itself, 0), "it gets nothing anyway");
    let links: Vec<LinkId> =
        (2..4).map(|node| cluster.follow(follower_settings(), start(node, b"s"))).collect();
    assert!(cluster.feeds_asked >= 1);
    assert!(!cluster.primary.rest(), "there are replicas");
    assert_eq!(cluster.at(links[0]).replica.state(), State::Handshake, "it waits for records to come");
    // It waits without being taken for dead.
    cluster.pass(60_000);
    cluster.primary.handle_feed(Lsn(20), cluster.now);
    cluster.run();
    cluster.write(5, 100);
    cluster.pass(3000);
    for link in links {
        cluster.assert_equal(link);
        assert_eq!(cluster.at(link).applied.len(), 25);
    }
    // Some are lost on their way: those who stream begin anew, and who comes later does not notice.
    cluster.log.extend((0..3).map(|n| vec![n; 50]));
    let before = cluster.closed.len();
    cluster.primary.handle_feed(Lsn(28), cluster.now);
    cluster.run();
    assert!(cluster.closed[before..].iter().all(|(_, fault)| fault.reason == Reason::HistoryChanged));
    assert_eq!(cluster.closed.len(), before + 2);
    let late = cluster.follow(follower_settings(), start(4, b"s"));
    cluster.pass(3000);
    assert_eq!(cluster.at(late).applied.len(), 28);
    cluster.assert_equal(late);
}

#[test]
fn a_diverged_replica_is_given_everything_and_goes_on_where_it_was_cut() {
    let mut cluster = Cluster::new(settings());
    cluster.write(30, 50);
    let diverged = ReplicaStart { lineage: lineage(77), last_lsn: Lsn(12), ..start(2, b"s") };
    // The first attempt ends in the middle of the file.
    let mut replica = Replica::new(follower_settings(), diverged, Checksum::portable());
    replica.start(cluster.now);
    let link = cluster.connect(replica);
    assert_eq!(cluster.at(link).installed.len(), 1);
    assert_eq!(cluster.followers[&link].replica.lineage(), cluster.primary.lineage());
    let name = cluster.at(link).installed[0].0;
    let half = ReplicaStart {
        lineage: lineage(77),
        last_lsn: Lsn(12),
        partial: Some((name, 2100)),
        ..start(3, b"s")
    };
    let link = cluster.follow(follower_settings(), half);
    assert_eq!(cluster.at(link).installed, [(name, SNAPSHOT_BYTES)]);
    assert_eq!(cluster.primary.counters().resumed_syncs, 1);
    // Of another snapshot nothing is used.
    let other = (SnapshotName { uid: 8, ..name }, 2100);
    let half =
        ReplicaStart { lineage: lineage(77), last_lsn: Lsn(12), partial: Some(other), ..start(4, b"s") };
    let link = cluster.follow(follower_settings(), half);
    assert_eq!((cluster.at(link).installed.len(), cluster.primary.counters().resumed_syncs), (1, 1));
    cluster.write(10, 50);
    cluster.assert_equal(link);
    let snapshot_of_another = SnapshotName { epoch: 1, ..name };
    assert_eq!(cluster.primary.check_snapshot(&snapshot_of_another).unwrap_err().reason, Reason::Snapshot);
    let of_the_future = SnapshotName { lsn: Lsn(41), lsn_max: Lsn(41), ..name };
    assert!(cluster.primary.check_snapshot(&of_the_future).is_err());
    cluster.log_first = 35;
    cluster.primary.handle_log_begins(Some(Lsn(35)));
    let gone = SnapshotName { lsn: Lsn(3), lsn_max: Lsn(3), ..name };
    let fault = cluster.primary.check_snapshot(&gone);
    assert!(fault.is_err() || cluster.primary.backlog().1 == 0, "{fault:?}");
}

/// Found by the simulator: a snapshot's shards stood at 8 and 12, the node then followed another whose history had parted
/// from theirs at 10, and went on from 9: one shard had records of both.
#[test]
fn a_history_that_parts_between_the_places_of_shards_is_not_gone_on_with() {
    let mut cluster = Cluster::new(settings());
    cluster.write(9, 10);
    let mut forked = cluster.primary.lineage().clone();
    forked.begin(Lsn(10), BranchId(7), Epoch::FIRST);
    for (consistent, is_replaced) in [(9, false), (12, true)] {
        let half = ReplicaStart { lineage: forked.clone(), last_lsn: Lsn(8), ..start(2, b"s") };
        let replica = Replica::new(follower_settings(), half, Checksum::portable());
        let mut replica = replica.with_consistent_lsn(Lsn(consistent));
        replica.start(cluster.now);
        let link = cluster.connect(replica);
        assert_eq!(!cluster.at(link).installed.is_empty(), is_replaced, "shards up to {consistent}");
    }
}

#[test]
fn what_is_older_than_the_remembered_history_is_not_sent_as_records() {
    let mut cluster = Cluster::new(settings());
    cluster.write(50, 100);
    let mut lineage = Lineage::default();
    lineage.begin(Lsn(41), BranchId(5), Epoch::FIRST);
    cluster.primary.handle_history(lineage, Lsn(50), true);
    let link = cluster.follow(follower_settings(), start(2, b"s"));
    assert_eq!(cluster.at(link).installed.len(), 1, "the log has them, but of which branch are they?");
}

/// What came without a record counts as one: a history on it begins with the second, and who has none of it has not all that
/// is before.
#[test]
fn who_has_nothing_is_not_taken_for_one_that_has_what_is_before_the_history() {
    let mut cluster = Cluster::new(settings());
    let mut lineage = Lineage::default();
    lineage.begin(Lsn(2), BranchId(5), Epoch::FIRST);
    cluster.write(1, 100);
    cluster.primary.handle_history(lineage.clone(), Lsn(1), true);
    let link = cluster.follow(follower_settings(), start(2, b"s"));
    assert_eq!(cluster.at(link).installed.len(), 1);
    // Nor is one whose only record is of no history, or of another.
    for (node, theirs) in [(3, Lineage::default()), (4, self::lineage(9))] {
        let other = ReplicaStart { lineage: theirs, last_lsn: Lsn(1), ..start(node, b"s") };
        let link = cluster.follow(follower_settings(), other);
        assert_eq!(cluster.at(link).installed.len(), 1, "node {node}");
    }
}

/// Found in review: it came back for the damaged record at once, and again, for ever.
#[test]
fn who_needs_what_is_damaged_in_the_log_is_given_a_snapshot() {
    let mut cluster = Cluster::new(settings());
    cluster.write(300, 100);
    cluster.damaged = Some((30, Damaged::Said));
    let link = cluster.follow(follower_settings(), start(2, b"s"));
    // It has what is before the damage, and is told.
    let told = cluster.at(link).closed.pop().unwrap();
    assert_eq!((told.reason, told.is_peers), (Reason::LogGone, true));
    assert!(told.text.contains("expected LSN 30 in the log, found damage"), "{told}");
    let reads = cluster.log_reads;
    let again = ReplicaStart { lineage: lineage(1), last_lsn: Lsn(29), ..start(3, b"s") };
    for start in [again, start(4, b"s")] {
        let link = cluster.follow(follower_settings(), start);
        assert_eq!(cluster.at(link).installed.len(), 1);
    }
    assert_eq!(cluster.log_reads, reads, "the log is not asked again");
    cluster.write(300, 100);
    cluster.pass(1000);
    // What is written from then on can be read.
    let near = ReplicaStart { lineage: lineage(1), last_lsn: Lsn(300), ..start(5, b"s") };
    let link = cluster.follow(follower_settings(), near);
    assert_eq!((cluster.at(link).installed.len(), cluster.at(link).applied.len()), (0, 300));
    assert!(cluster.log_reads > reads);
}

/// A primary that says again and again that there is another way is not believed: the second time leads to no new place.
#[test]
fn another_way_is_gone_at_once_and_the_same_one_is_not() {
    let mut cluster = Cluster::new(settings());
    cluster.write(300, 100);
    cluster.damaged = Some((30, Damaged::Gone));
    let link = cluster.follow(follower_settings(), start(2, b"s"));
    assert_eq!(cluster.at(link).closed.len(), 1);
    let begun = cluster.now.micros;
    assert_eq!(cluster.at(link).replica.poll_timeout(), Some(begun), "it comes back at once");
    let replica = cluster.followers.remove(&link).unwrap().replica;
    let link = cluster.connect(replica);
    assert_eq!(cluster.at(link).closed.len(), 1);
    let (now, most) = (cluster.now.micros, follower_settings().backoff_us_max);
    let next = cluster.at(link).replica.poll_timeout().unwrap();
    assert!(next >= now + most / 2, "{next} is {} after {now}", next - now);
}

#[test]
fn a_replica_that_another_of_its_name_replaces_waits() {
    let mut cluster = Cluster::new(settings());
    let first = cluster.follow(follower_settings(), start(2, b"s"));
    cluster.follow(follower_settings(), start(2, b"s"));
    let fault = cluster.at(first).closed.pop().unwrap();
    assert_eq!(fault.reason, Reason::Replaced);
    assert!(fault.to_string().contains("remove the file replica-id"), "{fault}");
    let (now, most) = (cluster.now.micros, follower_settings().backoff_us_max);
    assert!(cluster.at(first).replica.poll_timeout().unwrap() >= now + most / 2);
}

#[test]
fn replicas_of_a_replica_go_on_when_it_is_promoted() {
    let mut cluster = Cluster::new(datagram_settings());
    cluster.primary.handle_chain(repl::identity::Chain::new(vec![id(9)]).unwrap());
    cluster.primary.handle_freshness(None);
    cluster.write(5, 100);
    let link = cluster.follow(follower_settings(), start(2, b"s"));
    assert_eq!(cluster.at(link).replica.chain().nodes(), [id(1), id(9)]);
    cluster.pass(5000);
    let now = cluster.now;
    assert_eq!(cluster.at(link).replica.lag_us(now), None, "its primary does not know how fresh it is");
    let mut lineage = cluster.primary.lineage().clone();
    lineage.begin(Lsn(6), BranchId(6), Epoch::FIRST);
    cluster.primary.handle_promoted(&lineage);
    cluster.write(5, 100);
    cluster.pass(5000);
    cluster.assert_equal(link);
    let now = cluster.now;
    assert!(cluster.at(link).replica.lag_us(now).is_some_and(|lag| lag < 4000));
    assert_eq!(cluster.at(link).replica.chain().nodes(), [id(1)]);
    assert_eq!((cluster.followers[&link].replica.lineage(), cluster.closed.len()), (&lineage, 0));
}

#[test]
fn a_stuck_replica_costs_its_window_and_is_closed() {
    let settings = PrimarySettings { lag_records_max: 1000, ..settings() };
    let mut cluster = Cluster::new(settings);
    let stuck = cluster.follow(follower_settings(), start(2, b"s"));
    let well = cluster.follow(follower_settings(), start(3, b"s"));
    cluster.at(stuck).is_stuck = true;
    for _ in 0..40 {
        cluster.write(10, 200);
        cluster.assert_equal(well);
        let infos: Vec<_> = cluster.primary.replicas(cluster.now).collect();
        assert!(infos.iter().all(|info| info.in_flight_bytes <= 2000 + 1100), "{infos:?}");
        assert!(cluster.primary.backlog().0 <= 4096 + 1100);
    }
    let lost = cluster.primary.replicas(cluster.now).find(|info| info.link == stuck).unwrap();
    assert!(lost.lag_records > 300 && lost.state == ReplicaState::CatchingUp, "{lost:?}");
    assert!(cluster.primary.needs_log_from().is_some_and(|lsn| lsn < Lsn(100)));
    cluster.pass(1500);
    assert!(cluster.closed.is_empty());
    // Beyond the bound it is closed, and then needs a snapshot.
    for _ in 0..70 {
        cluster.write(10, 200);
    }
    cluster.pass(1000);
    assert!(cluster.closed.iter().any(|(link, fault)| *link == stuck && fault.reason == Reason::TooSlow));
    let behind = ReplicaStart { lineage: lineage(1), last_lsn: Lsn(5), ..start(2, b"s") };
    let link = cluster.follow(follower_settings(), behind);
    assert_eq!(cluster.at(link).installed.len(), 1, "1095 records are more than it is sent from the log");
}

/// Ten million records one by one took a replica nine seconds, though the primary had just taken a snapshot.
#[test]
fn who_has_nothing_is_given_a_snapshot_if_there_is_much_and_the_records_if_there_is_none() {
    let mut cluster = Cluster::new(PrimarySettings { first_records_max: 20, ..settings() });
    cluster.write(20, 10);
    let few = cluster.follow(follower_settings(), start(2, b"s"));
    assert_eq!(cluster.at(few).installed.len(), 0, "20 records are not much");
    cluster.write(1, 10);
    let many = cluster.follow(follower_settings(), start(3, b"s"));
    assert_eq!(cluster.at(many).installed.len(), 1);
    let has_some = ReplicaStart { lineage: lineage(1), last_lsn: Lsn(1), ..start(4, b"s") };
    let has_some = cluster.follow(follower_settings(), has_some);
    assert_eq!(cluster.at(has_some).installed.len(), 0, "the rest of what it has is not thrown away");

    let mut cluster = Cluster::new(PrimarySettings { first_records_max: 20, ..settings() });
    cluster.no_snapshots = Some("this node cannot take any");
    cluster.write(21, 10);
    let link = cluster.follow(follower_settings(), start(2, b"s"));
    cluster.assert_equal(link);
    assert_eq!((cluster.at(link).applied.len(), cluster.closed.len()), (21, 0));
    assert_eq!((cluster.primary.counters().partial_syncs, cluster.primary.counters().full_syncs), (1, 0));
}

#[test]
fn a_replica_that_cannot_apply_is_not_read_and_is_not_lost() {
    let mut cluster = Cluster::new(settings());
    let small = ReplicaSettings { apply_bytes_max: 1000, ..follower_settings() };
    let link = cluster.follow(small, start(2, b"s"));
    cluster.at(link).holds = true;
    cluster.write(10, 300);
    cluster.write(10, 300);
    assert!(!cluster.at(link).replica.wants_bytes());
    let applied = cluster.at(link).applied.len();
    assert!(applied < 20, "{applied} records were handed over at once");
    let verdict = cluster.at(link).replica.read(Some(AtLeast { lsn: Lsn(1), branch: None }), Now::default());
    assert!(matches!(verdict, ReadVerdict::Wait(_)), "nothing is applied");
    cluster.at(link).holds = false;
    while let Some(last) = cluster.at(link).held.pop() {
        let now = cluster.now;
        cluster.at(link).held.clear();
        cluster.at(link).replica.handle_applied(Lsn(last), Lsn::ZERO, now);
        cluster.run();
    }
    cluster.assert_equal(link);
    assert_eq!(cluster.at(link).applied.len(), 20);
}

#[test]
fn wait_counts_those_who_have_it() {
    let mut cluster = Cluster::new(settings());
    let first = cluster.follow(follower_settings(), start(2, b"s"));
    let second = cluster.follow(follower_settings(), start(3, b"s"));
    cluster.at(second).holds = true;
    cluster.write(5, 10);
    let deadline = Some(cluster.now.micros + 3000);
    let verdict = cluster.primary.wait(Lsn(5), 1, deadline, cluster.now);
    assert!(matches!(verdict, WaitVerdict::Waiting(_)), "no ack yet: {verdict:?}");
    // It is asked for one, and does not wait for its time.
    cluster.run();
    cluster.at(first).replica.handle_timeout(Now { micros: 1001, unix_us: 0 });
    cluster.run();
    assert_eq!(cluster.waits, [1]);
    assert!(matches!(cluster.primary.wait(Lsn(5), 2, deadline, cluster.now), WaitVerdict::Waiting(_)));
    cluster.pass(4000);
    assert_eq!((cluster.waits.as_slice(), cluster.primary.waiting()), ([1, 1].as_slice(), 0));
    assert_eq!(cluster.primary.wait(Lsn(5), 1, None, cluster.now), WaitVerdict::Done(1));
    assert_eq!(cluster.primary.replicas_with(Lsn(6)), 0);
}

/// Acks in a replica's own time cost the primary little; who waits has his as soon as there is something to say, and not only
/// what was there when it was asked for.
#[test]
fn who_is_asked_acks_as_soon_as_it_has_what_is_waited_for() {
    let mut cluster = Cluster::new(settings());
    let slow = ReplicaSettings { ack_delay_us: 15_000, ack_interval_us: 20_000, ..follower_settings() };
    let link = cluster.follow(slow, start(2, b"s"));
    cluster.pass(1000);
    cluster.write(5, 10);
    cluster.pass(5000);
    assert_eq!(cluster.primary.replicas_with(Lsn(5)), 0, "nobody asked");
    cluster.pass(10_000);
    assert_eq!(cluster.primary.replicas_with(Lsn(5)), 1, "it says so by itself in the end");

    cluster.write(1, 10);
    cluster.at(link).holds = true;
    cluster.write(1, 10);
    let verdict = cluster.primary.wait(Lsn(7), 1, None, cluster.now);
    assert!(matches!(verdict, WaitVerdict::Waiting(_)), "{verdict:?}");
    cluster.pass(1000);
    assert_eq!(
        (cluster.primary.replicas_with(Lsn(6)), cluster.primary.replicas_with(Lsn(7))),
        (1, 0),
        "what it has"
    );
    let now = cluster.now;
    cluster.at(link).replica.handle_applied(Lsn(7), Lsn::ZERO, now);
    cluster.pass(1000);
    assert_eq!((cluster.primary.replicas_with(Lsn(7)), cluster.waits.as_slice()), (1, [1].as_slice()));

    // What is written while somebody waits for it is asked for when it is durable.
    cluster.at(link).holds = false;
    let verdict = cluster.primary.wait(Lsn(8), 1, None, cluster.now);
    assert!(matches!(verdict, WaitVerdict::Waiting(_)), "{verdict:?}");
    cluster.write(1, 10);
    cluster.pass(1000);
    assert_eq!((cluster.primary.replicas_with(Lsn(8)), cluster.waits.as_slice()), (1, [1, 1].as_slice()));
}

#[test]
fn a_replica_knows_how_stale_it_is() {
    let mut cluster = Cluster::new(settings());
    let link = cluster.follow(ReplicaSettings { lag_us_max: 10_000, ..follower_settings() }, start(2, b"s"));
    let now = cluster.now;
    assert_eq!(cluster.at(link).replica.read(None, now), ReadVerdict::Stale { lag_us: None });
    cluster.pass(5000);
    let now = cluster.now;
    assert_eq!(cluster.at(link).replica.read(None, now), ReadVerdict::Now);
    assert!(
        cluster.at(link).replica.lag_us(now).unwrap() <= 3000,
        "{:?}",
        cluster.at(link).replica.lag_us(now)
    );
    cluster.at(link).is_stuck = true;
    cluster.write(1, 1);
    cluster.pass(12_000);
    let now = cluster.now;
    let verdict = cluster.at(link).replica.read(None, now);
    assert!(matches!(verdict, ReadVerdict::Stale { lag_us: Some(10_001..) }), "{verdict:?}");
    // And after silence it gives up, and so does the primary.
    cluster.pass(50_000);
    assert!(matches!(cluster.at(link).replica.state(), State::Resting | State::Connecting));
}

/// Found by the simulator: a replica was fresh, followed another history that had long been written on, and still said
/// that it has everything of then.
#[test]
fn how_fresh_it_was_in_another_history_says_nothing() {
    let (mut before, mut after) = (Cluster::new(settings()), Cluster::new(settings()));
    before.write(9, 10);
    let link = before.follow(follower_settings(), start(2, b"s"));
    before.pass(5000);
    let mut one = before.followers.remove(&link).unwrap().replica;
    let as_of = one.fresh_as_of().unwrap();
    one.handle_closed("another is followed", before.now);

    after.write(9, 10);
    let mut forked = after.primary.lineage().clone();
    forked.begin(Lsn(10), BranchId(7), Epoch::FIRST);
    after.primary.handle_promoted(&forked);
    after.now = Now { micros: as_of - 1, ..after.now };
    after.write(9, 10);
    after.now = before.now;
    after.pass(1000);
    let link = after.connect(one);
    assert_eq!(after.at(link).replica.lineage(), &forked);
    assert_eq!(after.at(link).replica.fresh_as_of(), None, "no stamp of its own has come back yet");
    after.pass(5000);
    assert!(after.at(link).replica.fresh_as_of().unwrap() > as_of);
    // And one that learns of a new branch over the connection that it has.
    forked.begin(Lsn(19), BranchId(8), Epoch::FIRST);
    after.primary.handle_promoted(&forked);
    after.run();
    assert_eq!(after.at(link).replica.lineage(), &forked);
    assert_eq!(after.at(link).replica.fresh_as_of(), None);
}

fn datagram_settings() -> PrimarySettings {
    let datagrams =
        DatagramSettings { datagram_bytes: 300, heartbeat_us_min: 500, ..DatagramSettings::default() };
    PrimarySettings { datagrams: Some(datagrams), ..settings() }
}

#[test]
fn records_come_as_datagrams_and_what_is_lost_over_the_connection() {
    let mut cluster = Cluster::new(datagram_settings());
    cluster.write(10, 50);
    let link = cluster.follow(follower_settings(), start(2, b"s"));
    let plain = cluster.follow(ReplicaSettings { datagrams: false, ..follower_settings() }, start(3, b"s"));
    assert!(cluster.at(link).replica.is_live() && !cluster.at(plain).replica.is_live());
    cluster.loses = |number| number % 3 == 0;
    for _ in 0..20 {
        cluster.write(7, 90);
        cluster.write(1, 1000);
        cluster.pass(1500);
    }
    cluster.pass(200_000);
    cluster.assert_equal(link);
    cluster.assert_equal(plain);
    let counters = cluster.at(link).replica.datagram_counters();
    assert!(counters.lost > 30 && counters.repairs > 10 && counters.repaired > 30, "{counters:?}");
    assert!(counters.received > 60 && counters.forged == 0 && counters.damaged == 0, "{counters:?}");
    assert_eq!(cluster.primary.counters().full_syncs, 0);
    let heard = cluster.at(plain).replica.datagram_counters();
    assert!(heard.foreign > 60 && heard.foreign == heard.received, "{heard:?}");
}

#[test]
fn without_loss_nothing_is_asked_for() {
    let mut cluster = Cluster::new(datagram_settings());
    let link = cluster.follow(follower_settings(), start(2, b"s"));
    for _ in 0..50 {
        cluster.write(7, 90);
        cluster.pass(500);
    }
    cluster.assert_equal(link);
    let counters = cluster.at(link).replica.datagram_counters();
    assert_eq!((counters.lost, counters.repairs, counters.duplicate), (0, 0, 0), "{counters:?}");
    // Full datagrams, but for the last of each burst.
    let sent = cluster.primary.fanout_counters();
    assert!(sent.bytes / sent.datagrams > 150 && sent.skipped_records == 0, "{sent:?}");
}

#[test]
fn forged_and_foreign_datagrams_are_counted_and_nothing_else() {
    let mut cluster = Cluster::new(datagram_settings());
    let link = cluster.follow(follower_settings(), start(2, b"s"));
    // Another primary with the same ids, whose secret is another.
    let mut forger = Cluster::new(datagram_settings());
    let start = PrimaryStart {
        node: id(1),
        secret: Secret::new(b"wrong"),
        stream: 1,
        salt: [7; 16],
        lineage: lineage(1),
        durable_lsn: Lsn::ZERO,
        log_first_lsn: Some(Lsn::FIRST),
        is_serving: true,
    };
    forger.primary = Primary::new(datagram_settings(), start, Checksum::portable(), forger.now);
    let own =
        forger.follow(follower_settings(), ReplicaStart { secret: Secret::new(b"wrong"), ..start_of(4) });
    assert!(forger.at(own).replica.is_live());
    forger.log = vec![vec![0]];
    let payload = [0];
    let record = Record { lsn: Lsn(1), unix_us: 0, payload: &payload };
    forger.primary.handle_durable([record].into_iter(), Lsn(1), forger.now);
    let burst = forger.primary.poll_datagrams(forger.now).unwrap();
    let now = cluster.now;
    for datagram in burst.datagrams() {
        cluster.at(link).replica.handle_datagram(datagram, now);
        let mut damaged = datagram.to_vec();
        damaged[60] ^= 1;
        cluster.at(link).replica.handle_datagram(&damaged, now);
        cluster.at(link).replica.handle_datagram(b"hello", now);
    }
    let counters = cluster.at(link).replica.datagram_counters();
    assert_eq!((counters.forged, counters.damaged), (1, 2));
    assert!(cluster.at(link).applied.is_empty() && cluster.at(link).replica.poll_action().is_none());
}

fn start_of(node: u8) -> ReplicaStart {
    start(node, b"s")
}

#[test]
fn the_cap_holds_datagrams_back_and_loses_nothing() {
    let datagrams = DatagramSettings {
        datagram_bytes: 300,
        bytes_per_second: 200_000,
        burst_bytes: 600,
        ..DatagramSettings::default()
    };
    let mut cluster = Cluster::new(PrimarySettings { datagrams: Some(datagrams), ..settings() });
    let link = cluster.follow(follower_settings(), start(2, b"s"));
    let began = cluster.now.micros;
    cluster.write(100, 100);
    cluster.pass(100_000);
    let (sent, micros) = (cluster.primary.fanout_counters(), cluster.now.micros - began);
    assert!(sent.bytes <= 600 + micros / 5 + 300, "{sent:?} in {micros} us");
    assert!(sent.held_back > 0 && sent.skipped_records > 0, "{sent:?}");
    cluster.assert_equal(link);
    assert_eq!(cluster.at(link).applied.len(), 100);
}
