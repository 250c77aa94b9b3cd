//! What happens within a turn of the loop, by hand: two shards in one thread, and a driver whose next event comes when the
//! test says so, with whatever another shard has done by then.

use reactor::clock::SystemClock;
use reactor::io::driver::{Driver, DriverCounters};
use reactor::io::log_files::LogDisk;
use reactor::io::memory::MmapSource;
use reactor::io::stop::StopSignal;
use reactor::io::sync::Bell;
use reactor::server::event::{ConnectionId, Event, Operation};
use reactor::server::log_end::LogEnd;
use reactor::server::log_handle::{LogHandle, Waker};
use reactor::server::log_thread::{LogOptions, LogThread};
use reactor::server::mailbox::Mailboxes;
use reactor::server::pipeline::{ListenerRole, Pipeline};
use reactor::server::shard::{Company, Shard};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use store::config::Config;
use store::engine::{Engine, Seeds};
use store::journal::Journal;
use store::session::{Durability, Transport};
use store::shards::{Place, Totals};
use wal::group_commit::Start;
use wal::operation::{Action, Completion, Operation as DiskOperation};

const SHARDS: usize = 2;
/// Longer than anything here takes; reaching it is a failure.
const PATIENCE: Duration = Duration::from_secs(60);

/// What comes next within a turn.
enum Step {
    Accepted(ConnectionId),
    Received(ConnectionId, Vec<u8>),
    Sent(ConnectionId, Vec<u8>),
    /// Something else, before what follows has arrived.
    Meanwhile(Box<dyn FnOnce()>),
}

/// A driver that does as the test says.
#[derive(Default)]
struct Scripted {
    steps: VecDeque<Step>,
    received: Vec<u8>,
    /// What each connection was sent.
    sent: Vec<Vec<u8>>,
}

impl Driver for Scripted {
    fn submit_and_wait(&mut self, _timeout: Option<Duration>) -> io::Result<()> {
        Ok(())
    }

    fn next_event(&mut self) -> Option<Event<'_>> {
        loop {
            return Some(match self.steps.pop_front()? {
                Step::Meanwhile(act) => {
                    act();
                    continue;
                }
                Step::Accepted(connection) => Event::Accepted { connection, listener: 0, peer: None },
                Step::Received(connection, bytes) => {
                    self.received = bytes;
                    Event::Received { connection, bytes: &self.received }
                }
                Step::Sent(connection, buffer) => Event::Sent { connection, buffer, result: Ok(()) },
            });
        }
    }

    fn enqueue(&mut self, operation: Operation) {
        if let Operation::Send { connection, buffer } = operation {
            self.sent[connection.slot as usize].extend_from_slice(&buffer);
            self.steps.push_back(Step::Sent(connection, buffer));
        }
    }

    fn reserve(&mut self) -> Option<ConnectionId> {
        None
    }

    fn watch(&mut self, _waker: OwnedFd) -> io::Result<()> {
        Ok(())
    }

    fn counters(&self) -> DriverCounters {
        DriverCounters::default()
    }
}

/// A disk on which everything succeeds at once.
struct Willing;

impl LogDisk for Willing {
    fn perform(&self, operation: DiskOperation) -> Completion {
        let DiskOperation { id, action } = operation;
        match action {
            Action::Write { buffer, start, .. } => {
                Completion { id, result: Ok(buffer.as_slice().len() - start), buffer: Some(buffer) }
            }
            _ => Completion { id, result: Ok(0), buffer: None },
        }
    }
}

/// A shard that others can let take a turn while it is not taking one.
type Shared = Rc<RefCell<Shard<Scripted, SystemClock>>>;

/// Two shards; with a log, if there are handles of one.
fn shards(handles: Option<Vec<LogHandle>>, bells: &[Arc<Bell>]) -> [Shared; SHARDS] {
    let mailboxes = Mailboxes::new(SHARDS, 64).unwrap();
    let (stop, totals) = (StopSignal::new().unwrap(), Totals::new(SHARDS));
    let mut handles = handles.map(Vec::into_iter);
    let shards = mailboxes.into_iter().zip(bells).enumerate().map(|(index, (mailbox, bell))| {
        let clock = SystemClock::new();
        let seeds = Seeds { hash: 1, random: index as u64, run_id: [0; 20] };
        let place = Place { index, count: SHARDS };
        let source = Box::new(MmapSource::new());
        let mut engine =
            Engine::with_place(Config::default(), seeds, source, clock.now(), place, totals.clone());
        let log = handles.as_mut().and_then(Iterator::next).map(|handle| {
            engine.keep_journal(Journal::new(handle.shared().lsns(), Durability::Always));
            LogEnd::new(handle, Arc::clone(bell), false)
        });
        let role = ListenerRole { transport: Transport::Resp, unix: false, local: "127.0.0.1:6379".into() };
        let pipeline = Pipeline::new(engine, vec![role]);
        let company = Company::new(mailbox, stop.clone());
        Rc::new(RefCell::new(Shard::new(Scripted::default(), pipeline, clock, Some(company), log)))
    });
    shards.collect::<Vec<_>>().try_into().unwrap_or_else(|_| panic!("{SHARDS} shards"))
}

fn connect(shard: &Shared) -> ConnectionId {
    let mut shard = shard.borrow_mut();
    let driver = shard.driver_mut();
    let connection = ConnectionId { slot: driver.sent.len() as u32, generation: 1 };
    driver.sent.push(Vec::new());
    driver.steps.push_back(Step::Accepted(connection));
    connection
}

fn send(shard: &Shared, connection: ConnectionId, bytes: &str) {
    let step = Step::Received(connection, bytes.as_bytes().to_vec());
    shard.borrow_mut().driver_mut().steps.push_back(step);
}

fn turn(shard: &Shared) {
    let mut shard = shard.borrow_mut();
    // CLIENT TRACKING is over all shards: one has the other meanwhile.
    if shard.is_lent() {
        return shard.hear().unwrap();
    }
    shard.before_waiting();
    shard.turn().unwrap();
    shard.dispatch();
}

/// What a connection has been sent since it was last asked, once that ends so.
fn answer(shards: &[Shared; SHARDS], of: usize, connection: ConnectionId, end: &str) -> String {
    let begun = Instant::now();
    loop {
        shards.iter().for_each(turn);
        let mut shard = shards[of].borrow_mut();
        let sent = &mut shard.driver_mut().sent[connection.slot as usize];
        if sent.ends_with(end.as_bytes()) {
            return String::from_utf8(std::mem::take(sent)).unwrap();
        }
        assert!(begun.elapsed() < PATIENCE, "{}", sent.escape_ascii());
    }
}

/// A tracker on one shard, a writer and the key on another. The first shard has begun a turn when the other executes the
/// write and its writer has the answer; only then the tracker sends something, and the turn is not over: what epoll
/// finds in a socket may be younger than the turn.
fn what_arrives_in_a_turn_is_answered_behind_what_was_told_before(
    handles: Option<Vec<LogHandle>>,
    bells: &[Arc<Bell>],
) {
    let shards = shards(handles, bells);
    let [near, far] = &shards;
    let place = Place { index: 0, count: SHARDS };
    let key = (0..).map(|at| format!("k{at}")).find(|key| place.shard_of(key.as_bytes()) == 1).unwrap();
    let (tracker, writer) = (connect(near), connect(far));
    send(near, tracker, &format!("HELLO 3\r\nCLIENT TRACKING ON\r\nGET {key}\r\n"));
    answer(&shards, 0, tracker, "+OK\r\n_\r\n");
    let write = {
        let (far, key) = (Rc::clone(far), key.clone());
        move || {
            send(&far, writer, &format!("SET {key} 1\r\n"));
            let begun = Instant::now();
            while far.borrow_mut().driver_mut().sent[0].is_empty() {
                assert!(begun.elapsed() < PATIENCE, "the write is not acknowledged");
                turn(&far);
            }
        }
    };
    near.borrow_mut().driver_mut().steps.push_back(Step::Meanwhile(Box::new(write)));
    send(near, tracker, "PING\r\n");
    let told = format!(">2\r\n$10\r\ninvalidate\r\n*1\r\n${}\r\n{key}\r\n", key.len());
    assert_eq!(answer(&shards, 0, tracker, "+PONG\r\n"), format!("{told}+PONG\r\n"));
    assert_eq!(answer(&shards, 1, writer, "\r\n"), "+OK\r\n");
}

fn bells() -> Vec<Arc<Bell>> {
    (0..SHARDS).map(|_| Arc::new(Bell::new().unwrap())).collect()
}

#[test]
fn without_a_log() {
    what_arrives_in_a_turn_is_answered_behind_what_was_told_before(None, &bells());
}

/// What was told is then held until the shard hears that it is durable, which it has to ask for in the turn, too.
#[test]
fn with_a_log() {
    let bells = bells();
    let waker = |bell: &Arc<Bell>| -> Waker {
        let bell = Arc::clone(bell);
        Box::new(move || bell.ring())
    };
    let wakers = bells.iter().map(waker).collect();
    let (log, handles) = LogThread::start(Willing, &Start::empty(1), LogOptions::default(), wakers).unwrap();
    what_arrives_in_a_turn_is_answered_behind_what_was_told_before(Some(handles), &bells);
    log.abandon();
}
