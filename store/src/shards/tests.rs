//! Tests of several shards: three engines in one thread that look like one server.
//!
//! Messages between two shards arrive in their order; between pairs the order is drawn from a seed. Nothing here waits:
//! time advances a little with every round, and a fleet is left alone when it has nothing to say any more.

mod caches;
mod commands;
mod reads;
mod server;
mod streams;
mod tracking;
mod traffic;

use super::*;
use crate::arena::HeapSource;
use crate::config::{Config, Setting};
use crate::engine::{Action, Engine, Seeds};
use crate::journal::{Journal, Records};
use crate::session::{ConnectionId, Durability, Peer, Transport};
use crate::time::{Clock, Nanos, Now};
use alloc::format;
use alloc::string::String;

const START: Now = Now { unix_us: 1_700_000_000_000_000, monotonic: Nanos(1_000_000_000) };

/// A clock that does not move while a turn lasts.
struct Standing(Nanos);

impl Clock for Standing {
    fn monotonic(&self) -> Nanos {
        self.0
    }
}

/// The generator of every random choice here; its seed is in the messages.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ (mixed >> 29)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }
}

/// One client as its driver sees it.
struct Client {
    shard: usize,
    connection: ConnectionId,
    received: Vec<u8>,
    /// It takes what it is sent.
    reads: bool,
    in_flight: Option<Vec<u8>>,
    wants_flush: bool,
    closing: bool,
    closed: bool,
}

/// Some shards, their messages and their clients.
struct Server {
    engines: Vec<Engine>,
    /// By receiver and sender.
    links: Vec<Vec<VecDeque<Message>>>,
    clients: Vec<Client>,
    now: Now,
    /// Draws which messages arrive in a round; without it, one of each pair.
    order: Option<Random>,
    /// Those that stand still (DEBUG SLEEP): no turns, no clients.
    asleep: ShardSet,
    /// With a log: the next LSN.
    lsns: Option<Arc<AtomicU64>>,
}

impl Server {
    fn new(count: usize, settings: &[(&str, &str)]) -> Server {
        let mut config = Config::default();
        for (name, value) in [("enable-debug-command", "yes")].iter().chain(settings) {
            let setting = Setting::find(name.as_bytes()).unwrap();
            (setting.set)(&mut config, value).unwrap();
        }
        let totals = Totals::new(count);
        let engine = |index| {
            let seeds = Seeds { hash: 11, random: 12 + index as u64, run_id: [0xab; 20] };
            let source = Box::new(HeapSource::with_limit(1 << 28));
            Engine::with_place(config.clone(), seeds, source, START, Place { index, count }, totals.clone())
        };
        Server {
            engines: (0..count).map(engine).collect(),
            links: (0..count).map(|_| (0..count).map(|_| VecDeque::new()).collect()).collect(),
            clients: Vec::new(),
            now: START,
            order: None,
            asleep: ShardSet::default(),
            lsns: None,
        }
    }

    /// From now on writes are durable some rounds after they were made, as each shard hears in its own time.
    fn keep_log(&mut self) {
        let lsns = Arc::new(AtomicU64::new(1));
        for engine in &mut self.engines {
            engine.keep_journal(Journal::new(lsns.clone(), Durability::Always));
        }
        self.lsns = Some(lsns);
    }

    fn connect_as(&mut self, shard: usize, transport: Transport) -> usize {
        let client = self.clients.len();
        let connection = ConnectionId { slot: client as u32, generation: 7 };
        let peer = Peer { address: format!("127.0.0.1:{}", 5000 + client), transport, ..Peer::default() };
        self.engines[shard].handle_connect(connection, peer, self.now);
        self.clients.push(Client {
            shard,
            connection,
            received: Vec::new(),
            reads: true,
            in_flight: None,
            wants_flush: false,
            closing: false,
            closed: false,
        });
        client
    }

    fn connect(&mut self, shard: usize) -> usize {
        self.connect_as(shard, Transport::Resp)
    }

    /// One client on each shard.
    fn three() -> (Server, [usize; 3]) {
        let mut server = Server::new(3, &[]);
        let clients = [0, 1, 2].map(|shard| server.connect(shard));
        (server, clients)
    }

    /// Bytes arrive, once the shard is at home; nothing else happens.
    fn send(&mut self, client: usize, bytes: &[u8]) {
        self.come_home(self.clients[client].shard);
        let Client { shard, connection, .. } = self.clients[client];
        let clock = Standing(self.now.monotonic);
        self.engines[shard].handle_receive(connection, bytes, self.now, &clock);
    }

    /// Until the shard is not lent.
    fn come_home(&mut self, shard: usize) {
        while self.engines[shard].is_lent() {
            self.round();
        }
    }

    /// Bytes arrive, everything that follows happens, and this is what the client has got since it was last asked.
    fn say(&mut self, client: usize, bytes: impl AsRef<[u8]>) -> String {
        self.send(client, bytes.as_ref());
        self.run();
        self.take(client)
    }

    fn take(&mut self, client: usize) -> String {
        text(&core::mem::take(&mut self.clients[client].received))
    }

    fn disconnect(&mut self, client: usize) {
        let Client { shard, connection, closed, .. } = self.clients[client];
        if !closed {
            self.engines[shard].handle_disconnect(connection, self.now);
            self.clients[client].closed = true;
        }
    }

    /// What the driver of one shard does between two turns. True: there was something.
    fn act(&mut self, shard: usize) -> bool {
        let mut acted = false;
        while let Some(action) = self.engines[shard].poll_action() {
            acted = true;
            let (Action::Flush(connection) | Action::Close(connection) | Action::Abort(connection)) = action
            else {
                continue;
            };
            let same = |client: &&mut Client| client.shard == shard && client.connection == connection;
            let Some(client) = self.clients.iter_mut().find(same).filter(|client| !client.closed) else {
                continue;
            };
            match action {
                Action::Flush(_) => client.wants_flush = true,
                Action::Close(_) => client.closing = true,
                _ => {
                    client.closed = true;
                    self.engines[shard].handle_disconnect(connection, self.now);
                }
            }
        }
        for at in 0..self.clients.len() {
            if self.clients[at].shard == shard && !self.clients[at].closed {
                acted |= self.transmit(at);
            }
        }
        acted
    }

    fn transmit(&mut self, at: usize) -> bool {
        let client = &mut self.clients[at];
        let engine = &mut self.engines[client.shard];
        if client.in_flight.is_none() && client.wants_flush {
            client.wants_flush = false;
            client.in_flight = engine.take_output(client.connection);
        }
        match client.in_flight.take() {
            Some(output) if client.reads => {
                client.received.extend_from_slice(&output);
                // There may be more by now.
                client.wants_flush = true;
                engine.handle_sent(client.connection, output, self.now, &Standing(self.now.monotonic));
                true
            }
            kept => {
                client.in_flight = kept;
                if client.closing && client.in_flight.is_none() {
                    client.closed = true;
                    engine.handle_disconnect(client.connection, self.now);
                    return true;
                }
                false
            }
        }
    }

    /// One round: messages arrive, every shard takes a turn. True: something happened.
    fn round(&mut self) -> bool {
        self.now.monotonic.0 += 20_000;
        self.now.unix_us += 20;
        let (now, clock) = (self.now, Standing(self.now.monotonic));
        let mut happened = false;
        for to in 0..self.engines.len() {
            for from in 0..self.engines.len() {
                happened |= !self.links[to][from].is_empty();
                let arrives = self.order.as_mut().is_none_or(|order| order.below(3) == 0);
                if arrives && let Some(message) = self.links[to][from].pop_front() {
                    self.engines[to].handle_message(from, message, now, &clock);
                }
            }
        }
        for shard in 0..self.engines.len() {
            if !self.engines[shard].is_lent() && !self.asleep.contains(shard) {
                self.engines[shard].finish_turn(now);
                // Before the log has its records, and before anything of the turn is seen.
                while let Some((to, tell)) = self.engines[shard].poll_tell() {
                    happened = true;
                    self.links[to][shard].push_back(tell);
                }
                happened |= self.flush_log(shard);
                happened |= self.act(shard);
                let soon = |wait: Nanos| wait.0 < 1_000_000;
                happened |= self.engines[shard].poll_timeout(now).is_some_and(soon);
            }
            while let Some((to, message)) = self.engines[shard].poll_message() {
                happened = true;
                self.links[to][shard].push_back(message);
            }
        }
        happened
    }

    /// The log takes what a shard wrote; sometimes the shard hears what is durable by now, which is what was drawn when
    /// its turn came: whatever lies in another shard was taken in that one's turn. True: somebody waits for it.
    fn flush_log(&mut self, shard: usize) -> bool {
        let Some(lsns) = &self.lsns else { return false };
        let durable = lsns.load(Ordering::Relaxed) - 1;
        self.engines[shard].shared_mut().take_records(&mut Records::default());
        let awaited = self.engines[shard].first_awaited();
        let hears = self.order.as_mut().is_none_or(|order| order.below(4) == 0);
        if hears {
            self.engines[shard].set_durable(durable);
        }
        awaited.is_some()
    }

    /// What comes before a shard takes what a client has sent: it hears what it was told, and then what is durable.
    fn hasten(&mut self, shard: usize) {
        let (now, clock) = (self.now, Standing(self.now.monotonic));
        for from in 0..self.engines.len() {
            let link = core::mem::take(&mut self.links[shard][from]);
            let (tells, others): (VecDeque<_>, VecDeque<_>) = link.into_iter().partition(Message::is_tell);
            self.links[shard][from] = others;
            for tell in tells {
                self.engines[shard].handle_message(from, tell, now, &clock);
            }
        }
        let heard = |engine: &Engine| engine.shared.as_ref()?.journal.as_ref().map(|j| j.durable_lsn());
        if let Some(durable) = self.engines.iter().filter_map(heard).max()
            && !self.engines[shard].is_lent()
        {
            self.engines[shard].set_durable(durable);
        }
    }

    /// Until nothing happens any more.
    fn run(&mut self) {
        let mut quiet = 0;
        for _ in 0..200_000 {
            quiet = if self.round() { 0 } else { quiet + 1 };
            if quiet == 3 {
                return;
            }
        }
        panic!("the shards never come to rest");
    }

    fn shared(&self, shard: usize) -> &Shared {
        self.engines[shard].shared()
    }

    /// Keys that are watched, on all shards.
    fn watched(&self) -> usize {
        self.engines.iter().map(|engine| engine.shared().keyspace.watched_len()).sum()
    }

    fn sleep(&mut self, shard: usize) {
        self.asleep.insert(shard);
        self.engines[shard].begin_stall();
    }

    fn wake(&mut self, shard: usize) {
        self.asleep.remove(shard);
        self.engines[shard].end_stall(self.now, &Standing(self.now.monotonic));
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A command as a client library sends it.
fn resp(arguments: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", arguments.len()).into_bytes();
    for argument in arguments {
        bytes.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
        bytes.extend_from_slice(argument);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// Lines as inline commands.
fn lines(commands: &[&str]) -> Vec<u8> {
    commands.iter().flat_map(|line| [line.as_bytes(), b"\r\n"].concat()).collect()
}

fn bulk(value: &str) -> String {
    format!("${}\r\n{value}\r\n", value.len())
}

/// A key of this name that lies on a shard of three.
fn on(shard: usize, name: &str) -> String {
    let place = Place { index: 0, count: 3 };
    let tag = (0..1000).find(|tag| place.shard_of(format!("t{tag}").as_bytes()) == shard).unwrap();
    format!("{{t{tag}}}{name}")
}

/// The number behind `field` in a text of `field:number`, `field=number` or `field number`.
fn field(text: &str, field: &str) -> u64 {
    let is_whole = |at: &usize| text[at + field.len()..].starts_with([':', '=', ' ']);
    let found = text.match_indices(field).map(|(at, _)| at).find(is_whole);
    let at = found.unwrap_or_else(|| panic!("no {field} in {text}")) + field.len() + 1;
    let digits: String = text[at..].chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap_or_else(|_| panic!("no number behind {field} in {text}"))
}
