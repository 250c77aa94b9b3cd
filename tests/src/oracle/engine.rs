//! A Millrace engine in this process, driven without any I/O: the fastest of the servers, and the one that shows
//! whether a difference lies in the core or in what carries its bytes.
//!
//! It does what a driver does, one event at a time: what arrives goes to the engine, what the engine asks for is
//! done at once. Time is the real one, so that expiry times mean what they mean to redis-server.

use super::target::{Link, Received, Server};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use store::arena::HeapSource;
use store::config::{Config, Setting};
use store::engine::{Action, Engine, Seeds};
use store::session::{ConnectionId, Peer};
use store::time::{Clock, Nanos, Now};

/// The server.
pub struct InProcess {
    shared: Rc<RefCell<Driver>>,
}

struct Driver {
    engine: Engine,
    clock: RealClock,
    wires: Vec<Wire>,
}

/// One connection's way back.
#[derive(Default)]
struct Wire {
    generation: u32,
    received: Vec<u8>,
    closed: bool,
    ended: bool,
}

#[derive(Clone, Copy)]
struct RealClock(Instant);

impl RealClock {
    fn now(self) -> Now {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is set after 1970");
        Now { unix_us: unix.as_micros() as u64, monotonic: self.monotonic() }
    }
}

impl Clock for RealClock {
    fn monotonic(&self) -> Nanos {
        Nanos(self.0.elapsed().as_nanos() as u64)
    }
}

impl InProcess {
    /// An engine without data, all of whose choices follow from `seed`.
    pub fn new(seed: u64) -> InProcess {
        let clock = RealClock(Instant::now());
        let seeds = Seeds { hash: seed, random: seed ^ 1, run_id: [7; 20] };
        let mut config = Config::default();
        let setting = Setting::find(b"enable-debug-command").expect("a setting of the table");
        (setting.set)(&mut config, "yes").expect("one of its values");
        let engine = Engine::new(config, seeds, Box::new(HeapSource::default()), clock.now());
        InProcess { shared: Rc::new(RefCell::new(Driver { engine, clock, wires: Vec::new() })) }
    }
}

impl Server for InProcess {
    fn name(&self) -> &str {
        "millrace's engine"
    }

    fn connect(&mut self) -> Box<dyn Link> {
        let mut driver = self.shared.borrow_mut();
        let free = driver.wires.iter().position(|wire| wire.ended);
        let slot = free.unwrap_or(driver.wires.len());
        let generation = match free {
            Some(slot) => driver.wires[slot].generation + 1,
            None => {
                driver.wires.push(Wire::default());
                1
            }
        };
        driver.wires[slot] = Wire { generation, ..Wire::default() };
        let connection = ConnectionId { slot: slot as u32, generation };
        let peer =
            Peer { address: "127.0.0.1:4242".into(), local: "127.0.0.1:6379".into(), ..Peer::default() };
        let now = driver.clock.now();
        driver.engine.handle_connect(connection, peer, now);
        driver.act();
        Box::new(EngineLink { shared: Rc::clone(&self.shared), connection })
    }
}

impl Driver {
    /// Takes turns until the engine asks for nothing and has nothing more to do at once.
    fn act(&mut self) {
        const TURNS_MAX: usize = 100_000;
        for _ in 0..TURNS_MAX {
            let now = self.clock.now();
            self.engine.finish_turn(now);
            while let Some(action) = self.engine.poll_action() {
                match action {
                    Action::Flush(connection) => self.flush(connection),
                    Action::Close(connection) => {
                        self.flush(connection);
                        self.close(connection);
                    }
                    Action::Abort(connection) => self.close(connection),
                    Action::Shutdown => panic!("no command of the grammar stops a server"),
                    Action::PauseReceive(_) | Action::ResumeReceive(_) | Action::Stall(_) => {}
                }
            }
            if self.engine.poll_timeout(self.clock.now()) != Some(Nanos(0)) {
                return;
            }
        }
        panic!("after {TURNS_MAX} turns the engine still wants one more at once");
    }

    fn flush(&mut self, connection: ConnectionId) {
        while let Some(output) = self.engine.take_output(connection) {
            self.wires[connection.slot as usize].received.extend_from_slice(&output);
            let now = self.clock.now();
            self.engine.handle_sent(connection, output, now, &self.clock);
        }
    }

    fn close(&mut self, connection: ConnectionId) {
        self.wires[connection.slot as usize].closed = true;
        let now = self.clock.now();
        self.engine.handle_disconnect(connection, now);
    }
}

struct EngineLink {
    shared: Rc<RefCell<Driver>>,
    connection: ConnectionId,
}

impl Link for EngineLink {
    fn send(&mut self, bytes: &[u8]) {
        let mut driver = self.shared.borrow_mut();
        let driver = &mut *driver;
        if !driver.wires[self.connection.slot as usize].closed {
            let now = driver.clock.now();
            driver.engine.handle_receive(self.connection, bytes, now, &driver.clock);
            driver.act();
        }
    }

    fn finish(&mut self) {
        let mut driver = self.shared.borrow_mut();
        if !driver.wires[self.connection.slot as usize].closed {
            let now = driver.clock.now();
            driver.engine.handle_receive_end(self.connection, now);
            driver.act();
        }
    }

    fn receive(&mut self, into: &mut Vec<u8>) -> Received {
        let mut driver = self.shared.borrow_mut();
        let waits_until = Instant::now() + Duration::from_secs(1);
        loop {
            let wire = &mut driver.wires[self.connection.slot as usize];
            if !wire.received.is_empty() {
                into.append(&mut wire.received);
                return Received::Bytes;
            }
            if wire.closed {
                return Received::Closed;
            }
            // As a driver would: wait for what the engine waits for (CLIENT PAUSE), not for what is far away.
            match driver.engine.poll_timeout(driver.clock.now()) {
                Some(Nanos(timeout)) if Instant::now() + Duration::from_nanos(timeout) < waits_until => {
                    std::thread::sleep(Duration::from_nanos(timeout));
                    driver.act();
                }
                _ => return Received::Silence,
            }
        }
    }
}

impl Drop for EngineLink {
    fn drop(&mut self) {
        let mut driver = self.shared.borrow_mut();
        if !driver.wires[self.connection.slot as usize].closed {
            driver.close(self.connection);
        }
        driver.wires[self.connection.slot as usize].ended = true;
    }
}
