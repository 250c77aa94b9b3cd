//! What nodes do with their disks: the edges of both machines.

use super::*;

impl World {
    pub(super) fn write(&mut self) {
        if self.writes_left > 0 {
            let roots: Vec<usize> = (0..self.nodes.len())
                .filter(|&index| self.nodes[index].is_up && self.nodes[index].role == Role::Root)
                .collect();
            for index in roots {
                let (count, is_long) = (self.random.between(1, 4), self.random.chance(15));
                let unix_us = self.nodes[index].clock_us(self.now, self.bug);
                for _ in 0..count {
                    self.append(index, unix_us);
                }
                if is_long {
                    // Another shard's, which will write at its end.
                    self.nodes[index].turns.push(unix_us);
                    self.tally.turns += 1;
                    let (delay, life) = (self.random.between(100, 30_000), self.nodes[index].life);
                    self.at(delay, Event::TurnEnds { node: index, life, began: unix_us });
                }
                let (delay, life) = (self.random.between(50, 800), self.nodes[index].life);
                let lsn = self.nodes[index].last_lsn();
                self.at(delay, Event::Flushed { node: index, life, lsn });
                if self.bug == Some(Bug::ShipsBeforeDurable) {
                    self.ship(index, lsn);
                    self.pump(index);
                }
            }
            self.writes_left -= 1;
            // The last ones are written when all is well: there is something to be equal about.
            if !self.healed {
                self.writes_left = self.writes_left.max(8);
            }
        }
        let delay = self.random.between(20, 4000);
        self.at(delay, Event::Write);
    }

    pub(super) fn turn_ends(&mut self, index: usize, life: u64, began: u64) {
        if !self.lives(index, life) || self.nodes[index].role != Role::Root {
            return;
        }
        self.append(index, began);
        let node = &mut self.nodes[index];
        let at = node.turns.iter().position(|&turn| turn == began).expect("it runs");
        node.turns.swap_remove(at);
        let (delay, lsn) = (self.random.between(50, 800), self.nodes[index].last_lsn());
        self.at(delay, Event::Flushed { node: index, life, lsn });
    }

    /// What a replica has heard of the time.
    pub(super) fn take_word(&mut self, index: usize) {
        self.tally.words += u64::from(self.nodes[index].take_word(&self.tellers));
    }

    pub(super) fn append(&mut self, index: usize, unix_us: u64) {
        let length = match self.random.below(20) {
            0 => self.random.between(500, 6000),
            1..4 => self.random.between(100, 900),
            _ => self.random.below(60),
        };
        let node = &mut self.nodes[index];
        let name = Name { run: node.run, lsn: node.last_lsn() + 1 };
        let mut payload = Vec::new();
        encode_name(name, &mut payload);
        payload.extend((0..length).map(|at| (at ^ name.lsn) as u8));
        node.pending.push_back(Rec { lsn: name.lsn, unix_us, payload });
    }

    pub(super) fn flushed(&mut self, index: usize, life: u64, lsn: u64) {
        if !self.lives(index, life) {
            return;
        }
        let is_root = self.nodes[index].role == Role::Root;
        while self.nodes[index].pending.front().is_some_and(|record| record.lsn <= lsn) {
            let node = &mut self.nodes[index];
            let record = node.pending.pop_front().unwrap();
            if is_root {
                let name = Name { run: node.run, lsn: record.lsn };
                let before = node.state.last;
                let shards =
                    after(self.ledger.shards(before).expect("a durable state"), record.lsn, &record.payload);
                node.state.apply(record.lsn, &record.payload);
                let branch =
                    node.lineage().branch_of(Lsn(record.lsn)).map_or(BranchId(0), |branch| branch.id);
                let truth =
                    Truth { before, shards, durable_at: self.now, executed_us: record.unix_us, branch };
                self.ledger.durable(name, truth);
                self.tally.records += 1;
            }
            let node = &mut self.nodes[index];
            node.disk.log.push(record);
        }
        if is_root {
            self.check_state(index);
            if self.bug != Some(Bug::ShipsBeforeDurable) {
                self.ship(index, lsn);
            }
            self.wait(index);
        } else if let Some(replica) = &mut self.nodes[index].replica {
            let applied = replica.applied_lsn();
            let (durable, now) = (self.nodes[index].disk.last_lsn(), self.nodes[index].now(self.now));
            if let Some(replica) = &mut self.nodes[index].replica {
                replica.handle_applied(applied, Lsn(durable.min(applied.0)), now);
            }
        }
        self.pump(index);
    }

    /// Records up to this one go to the replicas.
    pub(super) fn ship(&mut self, index: usize, lsn: u64) {
        let now = self.nodes[index].now(self.now);
        let Node { primary: Some(primary), disk, pending, .. } = &mut self.nodes[index] else { return };
        // Nobody is there: what is written costs nothing more.
        if self.random.chance(10) && primary.rest() {
            self.tally.rests += 1;
        }
        let from = primary.durable_lsn().0;
        if lsn <= from || !primary.is_fed() {
            return;
        }
        let records = disk.log.iter().chain(pending.iter());
        let wanted = records.filter(|record| record.lsn > from && record.lsn <= lsn).map(as_record);
        primary.handle_durable(wanted, Lsn(lsn), now);
    }

    /// What becomes durable from now on is handed over.
    pub(super) fn feed(&mut self, index: usize) {
        let now = self.nodes[index].now(self.now);
        let Node { primary: Some(primary), disk, .. } = &mut self.nodes[index] else { return };
        self.tally.feeds += 1;
        primary.handle_feed(Lsn(disk.last_lsn()), now);
    }

    pub(super) fn wait(&mut self, index: usize) {
        if !self.random.chance(20) {
            return;
        }
        let (lsn, replicas) = (self.nodes[index].state.last.lsn, self.random.between(1, 3) as usize);
        let (now, life) = (self.nodes[index].now(self.now), self.nodes[index].life);
        let name = self.nodes[index].state.last;
        let deadline = now.micros + self.random.between(100, 20_000);
        let Some(primary) = &mut self.nodes[index].primary else { return };
        if let primary::WaitVerdict::Waiting(id) = primary.wait(Lsn(lsn), replicas, Some(deadline), now) {
            self.waits.insert((index, life, id), name);
        }
    }

    pub(super) fn read_log(&mut self, index: usize, link: LinkId, from: u64, until: u64, bytes_max: usize) {
        self.tally.log_reads += 1;
        let Node { primary: Some(primary), disk, pending, .. } = &mut self.nodes[index] else { return };
        if from < disk.first_lsn() {
            return primary.handle_log_gone(link);
        }
        let mut bytes = 0;
        let wanted =
            disk.log.iter().chain(pending.iter()).filter(|record| (from..=until).contains(&record.lsn));
        let enough = wanted.take_while(|record| {
            let is_wanted = bytes < bytes_max;
            bytes += record.payload.len();
            is_wanted
        });
        primary.handle_log_records(link, enough.map(as_record));
    }

    /// A snapshot of what this node shows now, each shard at an LSN of its own.
    pub(super) fn take_snapshot(&mut self, index: usize) -> Option<Snapshot> {
        let node = &self.nodes[index];
        let lsn_max = node.state.last.lsn;
        if lsn_max == 0 || !node.is_consistent() {
            return None;
        }
        let mut state = node.state;
        let shard = self.random.below(state.lsns.len() as u64) as usize;
        let lsn = lsn_max.saturating_sub(self.random.below(8)).max(node.disk.base.lsns.into_iter().max()?);
        let earlier = self.ledger.ancestor(state.last, lsn)?;
        state.shards[shard] = self.ledger.shards(earlier)?[shard];
        state.lsns[shard] = lsn;
        let branch = node.lineage().branch_of(Lsn(lsn_max))?;
        let (uid, padding) = (self.random.next(), self.random.below(20_000) as usize);
        Some(Snapshot::new(&state, branch.epoch.0, uid, padding))
    }

    pub(super) fn find_snapshot(&mut self, index: usize, link: LinkId, partial: Option<SnapshotName>) {
        let stale = self.bug == Some(Bug::TrustsStaleSnapshots);
        let node = &mut self.nodes[index];
        let Some(primary) = &node.primary else { return };
        if stale {
            // The oldest there is, whatever history it is of, called one of the present.
            for snapshot in &mut node.disk.snapshots {
                if let Some(branch) = primary.lineage().branch_of(snapshot.name.lsn_max) {
                    snapshot.name.epoch = branch.epoch.0;
                }
            }
        }
        let fitting = |snapshot: &&Snapshot| primary.check_snapshot(&snapshot.name).is_ok();
        let same = |snapshot: &&Snapshot| Some(snapshot.name) == partial;
        let files = &node.disk.snapshots;
        let found = files.iter().filter(fitting).find(same).or_else(|| files.iter().find(fitting)).cloned();
        let found = found.or_else(|| {
            let taken = self.take_snapshot(index)?;
            self.nodes[index].disk.snapshots.push(taken.clone());
            Some(taken)
        });
        let now = self.nodes[index].now(self.now);
        let Some(primary) = &mut self.nodes[index].primary else { return };
        match found {
            // It may have become too old while it was taken.
            Some(snapshot) => drop(primary.handle_snapshot_found(link, snapshot.name, 2, now.micros)),
            None => primary.handle_no_snapshot(link, "nothing to take one of", now),
        }
    }

    pub(super) fn applied(&mut self, index: usize, life: u64) {
        if !self.lives(index, life) {
            return;
        }
        let Some(delivery) = self.nodes[index].inflight.pop_front() else { return };
        let is_lost = self.bug == Some(Bug::SkipsRecords) && self.random.chance(5);
        delivery.records().for_each(|record| self.check_word(index, decode_name(record.payload)));
        let node = &mut self.nodes[index];
        if !is_lost {
            for record in delivery.records() {
                node.state.apply(record.lsn.0, record.payload);
                if node.has_log {
                    let payload = record.payload.to_vec();
                    node.pending.push_back(Rec { lsn: record.lsn.0, unix_us: record.unix_us, payload });
                }
            }
        }
        if self.bug == Some(Bug::BelievesRecords)
            && let Some(record) = delivery.records().last()
        {
            node.word = node.word.max((record.unix_us, decode_name(record.payload).run));
        }
        self.tally.applied += delivery.last_lsn.0 - delivery.first_lsn.0 + 1;
        let (now, last, has_log) = (node.now(self.now), delivery.last_lsn, node.has_log);
        let durable = node.disk.last_lsn();
        if let Some(replica) = &mut node.replica {
            replica.handle_applied(last, Lsn(if has_log { durable } else { 0 }), now);
        }
        self.check_state(index);
        self.pass_on(index, Some(&delivery));
        if has_log {
            let delay = self.random.between(50, 2000);
            self.at(delay, Event::Flushed { node: index, life, lsn: last.0 });
        }
        self.pump(index);
    }

    /// What is applied goes on to those who follow this node.
    pub(super) fn pass_on(&mut self, index: usize, delivery: Option<&Delivery>) {
        let node = &mut self.nodes[index];
        let now = node.now(self.now);
        let (is_consistent, lineage) = (node.is_consistent(), node.lineage().clone());
        let Some(primary) = &mut node.primary else { return };
        let applied = Lsn(node.state.last.lsn);
        if !node.is_passing_on {
            if is_consistent && lineage.latest().is_some() {
                primary.handle_history(lineage, applied, true);
                node.is_passing_on = true;
            }
        } else if let Some(delivery) = delivery {
            let from = primary.durable_lsn();
            let new = delivery.records().filter(|record| record.lsn > from);
            primary.handle_durable(new, delivery.last_lsn, now);
        }
    }

    pub(super) fn install(&mut self, index: usize, name: SnapshotName, lineage: repl::lineage::Lineage) {
        let now = self.nodes[index].now(self.now);
        let keeps = self.bug == Some(Bug::TrustsStaleSnapshots);
        let node = &mut self.nodes[index];
        let file = node.disk.partial.take();
        let state = file.as_ref().filter(|(partial, _)| *partial == name);
        let state = state.and_then(|(name, bytes)| Snapshot::read(name, bytes));
        let Some(replica) = &mut node.replica else { return };
        let Some(state) = state else {
            self.tally.failed_installs += 1;
            return replica.handle_installed(Err("another file"), now);
        };
        self.tally.full_syncs += 1;
        // One step: data, log, history.
        if node.has_log {
            let snapshots = if keeps { std::mem::take(&mut node.disk.snapshots) } else { Vec::new() };
            node.disk = Disk { lineage: lineage.clone(), base: state, snapshots, ..Disk::default() };
        } else if !keeps {
            node.disk.snapshots.clear();
        }
        node.state = state;
        node.pending.clear();
        node.inflight.clear();
        node.consistent_lsn = name.lsn_max.0;
        node.is_passing_on = false;
        node.word = (0, 0);
        replica.handle_installed(Ok(()), now);
        if let Some(primary) = &mut node.primary {
            primary.handle_history(Default::default(), Lsn::ZERO, false);
            primary.handle_log_begins(node.has_log.then(|| Lsn(node.disk.first_lsn())));
        }
        self.check_state(index);
        self.pass_on(index, None);
    }
}

fn as_record(record: &Rec) -> Record<'_> {
    Record { lsn: Lsn(record.lsn), unix_us: record.unix_us, payload: &record.payload }
}
