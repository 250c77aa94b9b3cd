//! What goes wrong, and how all becomes well.

use super::*;

impl World {
    pub(super) fn chaos(&mut self) {
        if self.healed {
            return;
        }
        let count = self.nodes.len() as u64;
        let (a, b) = (self.random.below(count) as usize, self.random.below(count) as usize);
        match self.random.below(14) {
            0 | 1 if self.nodes[a].is_up => self.crash(a),
            2 if a != b => {
                self.tally.partitions += 1;
                self.cut.push((a.min(b), a.max(b)));
            }
            3 | 4 => self.cut.clear(),
            5 => self.promote(a),
            6 if a != b && self.nodes[a].is_up && !self.is_last_root(a) => self.follow(a, b),
            7 if self.nodes[a].is_up => {
                // Connections break, nodes stay.
                self.drop_connections(a, 100);
                self.nodes[a].forget_connections(self.now);
                self.pump(a);
            }
            8 | 9 if self.nodes[a].is_up => self.snapshot_and_trim(a),
            // The wall clock is put back, or is right again.
            10 | 11 => {
                self.nodes[a].behind = *self.random.pick(&[0, 500, 40_000, 3_000_000]);
                self.tally.clock_steps += 1;
            }
            _ => (),
        }
        let delay = self.random.between(500, 20_000);
        self.at(delay, Event::Chaos);
    }

    pub(super) fn is_last_root(&self, index: usize) -> bool {
        let is_root = |node: &&Node| node.role == Role::Root;
        is_root(&&self.nodes[index]) && self.nodes.iter().filter(is_root).count() == 1
    }

    pub(super) fn snapshot_and_trim(&mut self, index: usize) {
        let Some(snapshot) = self.take_snapshot(index) else { return };
        self.tally.snapshots += 1;
        let state = Snapshot::read(&snapshot.name, &snapshot.bytes).expect("as it was written");
        let trims = self.random.chance(60);
        let node = &mut self.nodes[index];
        // A log is let go up to what a snapshot holds durably.
        if node.has_log && trims && snapshot.name.lsn_max.0 <= node.disk.last_lsn() {
            node.disk.trim(state);
            if let Some(primary) = &mut node.primary {
                primary.handle_log_begins(Some(Lsn(node.disk.first_lsn())));
            }
        }
        node.disk.snapshots.push(snapshot);
        if node.disk.snapshots.len() > 2 {
            node.disk.snapshots.remove(0);
        }
    }

    /// The network heals, everybody is up and follows the one primary, directly or behind one another.
    pub(super) fn heal(&mut self) {
        self.trace(|| "healed".into());
        self.cut.clear();
        for index in 0..self.nodes.len() {
            if !self.nodes[index].is_up {
                self.start_node(index);
            }
        }
        let roots: Vec<usize> =
            (0..self.nodes.len()).filter(|&index| self.nodes[index].role == Role::Root).collect();
        let root = *self.random.pick(&roots);
        let in_a_row = self.random.chance(40);
        let others: Vec<usize> = (0..self.nodes.len()).filter(|&index| index != root).collect();
        let mut before = root;
        for index in others {
            self.follow(index, before);
            if in_a_row {
                before = index;
            }
        }
        self.healed = true;
        self.writes_left = 10;
    }
}
