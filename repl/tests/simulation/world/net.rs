//! Bytes and datagrams on their way, and what becomes of them.

use super::*;

impl World {
    pub(super) fn connected(&mut self, index: usize, life: u64, to: usize) {
        if !self.lives(index, life) {
            return;
        }
        // It may have been told to follow another meanwhile, and be at something else.
        let is_waiting = |replica: &Replica| replica.state() == Standing::Connecting;
        if !self.nodes[index].replica.as_ref().is_some_and(is_waiting) {
            return;
        }
        let now = self.nodes[index].now(self.now);
        let is_reached =
            self.nodes[to].is_up && !self.is_cut(index, to) && self.nodes[index].role == Role::Follows(to);
        let nonces = (nonce(&mut self.random), nonce(&mut self.random));
        if !is_reached {
            if let Some(replica) = &mut self.nodes[index].replica {
                replica.handle_closed("nobody there", now);
            }
            return self.pump(index);
        }
        let id = self.next_connection;
        self.next_connection += 1;
        let connection = Connection {
            replica: (index, life),
            primary: (to, self.nodes[to].life),
            to_replica: Default::default(),
            to_primary: Default::default(),
            replica_knows: true,
            primary_knows: true,
        };
        self.connections.insert(id, connection);
        self.nodes[index].connection = Some(id);
        if let Some(replica) = &mut self.nodes[index].replica {
            replica.handle_connected(nonces.0, now);
        }
        let there = self.nodes[to].now(self.now);
        if let Some(primary) = &mut self.nodes[to].primary {
            primary.handle_connected(LinkId(id), nonces.1, there);
        }
        self.pump(index);
        self.pump(to);
    }

    pub(super) fn send(&mut self, id: u64, to_replica: bool, bytes: Vec<u8>) {
        let latency = self.weather.latency_us + self.random.below(200);
        let at = self.now + latency;
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let way = if to_replica { &mut connection.to_replica } else { &mut connection.to_primary };
        if !way.is_closed {
            let at = way.push(at, bytes);
            self.scheduled += 1;
            self.events.insert((at, self.scheduled), Event::Deliver { connection: id, to_replica });
        }
    }

    /// One end closes; the other hears of it behind what was sent.
    pub(super) fn close(&mut self, id: u64, by_primary: bool) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let way = if by_primary { &mut connection.to_replica } else { &mut connection.to_primary };
        way.is_closed = true;
        if by_primary {
            connection.primary_knows = false
        } else {
            connection.replica_knows = false
        }
        let latency = self.weather.latency_us + 250;
        self.at(latency, Event::Deliver { connection: id, to_replica: by_primary });
    }

    pub(super) fn deliver(&mut self, id: u64, to_replica: bool) {
        let Some(connection) = self.connections.get(&id) else { return };
        let (replica, primary) = (connection.replica, connection.primary);
        if self.is_cut(replica.0, primary.0) {
            return self.at(2000, Event::Deliver { connection: id, to_replica });
        }
        let (end, knows) = match to_replica {
            true => (replica, connection.replica_knows),
            false => (primary, connection.primary_knows),
        };
        let is_alive = self.lives(end.0, end.1) && knows;
        if to_replica && is_alive {
            let node = &self.nodes[end.0];
            let is_current = node.connection == Some(id);
            if is_current && node.replica.as_ref().is_some_and(|replica| !replica.wants_bytes()) {
                // The socket fills; a node that installs a snapshot reads nothing.
                return self.at(300, Event::Deliver { connection: id, to_replica });
            }
        }
        let now_global = self.now;
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let way = if to_replica { &mut connection.to_replica } else { &mut connection.to_primary };
        let mut bytes = Vec::new();
        while way.queue.front().is_some_and(|(at, _)| *at <= now_global) {
            bytes.extend(way.queue.pop_front().unwrap().1);
        }
        let is_over = way.is_closed && way.queue.is_empty();
        let now = self.nodes[end.0].now(self.now);
        if !bytes.is_empty() {
            let cut = self.random.below(bytes.len() as u64 + 1) as usize;
            if is_alive {
                for piece in [&bytes[..cut], &bytes[cut..]].into_iter().filter(|piece| !piece.is_empty()) {
                    let node = &mut self.nodes[end.0];
                    match to_replica {
                        true if node.connection == Some(id) => {
                            if let Some(replica) = &mut node.replica {
                                replica.handle_bytes(piece, now);
                            }
                        }
                        true => (),
                        false => {
                            if let Some(primary) = &mut node.primary {
                                primary.handle_bytes(LinkId(id), piece, now);
                            }
                        }
                    }
                }
                self.pump(end.0);
            }
            if to_replica && self.lives(primary.0, primary.1) {
                if let Some(primary) = &mut self.nodes[primary.0].primary {
                    primary.handle_written(LinkId(id), bytes.len());
                }
                self.pump(primary.0);
            }
        }
        if is_over {
            if is_alive {
                let node = &mut self.nodes[end.0];
                match to_replica {
                    true if node.connection == Some(id) => {
                        node.connection = None;
                        if let Some(replica) = &mut node.replica {
                            replica.handle_closed("that it was closed", now);
                        }
                    }
                    true => (),
                    false => {
                        if let Some(primary) = &mut node.primary {
                            primary.handle_closed(LinkId(id));
                        }
                    }
                }
                let connection = self.connections.get_mut(&id).unwrap();
                if to_replica {
                    connection.replica_knows = false
                } else {
                    connection.primary_knows = false
                }
                self.pump(end.0);
            }
            let Some(connection) = self.connections.get(&id) else { return };
            if !connection.replica_knows && !connection.primary_knows {
                self.connections.remove(&id);
            }
        }
    }

    pub(super) fn multicast(&mut self, from: usize, burst: &primary::Burst) {
        let weather =
            if self.healed { Weather { latency_us: 50, ..Weather::default() } } else { self.weather };
        for index in 0..self.nodes.len() {
            // Others hear it, too, now and then: the group is shared.
            let follows = self.nodes[index].role == Role::Follows(from) || self.random.chance(3);
            if index == from || !follows || !self.nodes[index].is_up || self.is_cut(from, index) {
                continue;
            }
            for datagram in burst.datagrams() {
                let copies = u64::from(!self.random.chance(weather.loss_percent))
                    + u64::from(self.random.chance(weather.duplicate_percent));
                for _ in 0..copies {
                    let late =
                        if self.random.chance(weather.late_percent) { self.random.below(8000) } else { 0 };
                    let mut bytes = datagram.to_vec();
                    if self.random.chance(weather.damage_percent) {
                        let at = self.random.below(bytes.len() as u64) as usize;
                        bytes[at] ^= 1 << self.random.below(8);
                    }
                    let delay = weather.latency_us / 2 + self.random.below(30) + late;
                    self.at(delay, Event::Datagram { node: index, bytes });
                }
            }
        }
    }
}
