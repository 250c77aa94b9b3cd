//! The client with its driver played by the test: time is what the test says.

use super::*;
use crate::report;
use crate::schedule::Arrival;
use crate::worker::Machine;

const MS: u64 = 1_000_000;

/// A client with its driver played by the test: time is what the test says.
struct Played {
    client: Client,
    now: u64,
    next_slot: u32,
    /// Sends that were not completed yet.
    in_flight: VecDeque<(ConnectionId, Vec<u8>)>,
}

impl Played {
    fn new(change: impl FnOnce(&mut Plan)) -> Played {
        let mut plan = report::tests::plan(false);
        plan.connections = 1;
        plan.warmup_ns = 0;
        plan.stop = Stop::After(100 * MS);
        plan.workload.sets = 0;
        plan.workload.gets = 1;
        change(&mut plan);
        let client = Client::new(plan).expect("valid");
        let mut played = Played { client, now: 0, next_slot: 0, in_flight: VecDeque::new() };
        played.turn(0);
        played
    }

    /// Lets the clock reach `now` and takes what the client wants done. Connections open at once.
    fn turn(&mut self, now: u64) {
        self.now = now;
        loop {
            self.client.handle_time(now);
            while let Some(index) = self.client.poll_unconnected(now) {
                let id = ConnectionId { slot: self.next_slot, generation: 1 };
                self.next_slot += 1;
                self.client.connect(index, id);
            }
            let Some(operation) = self.client.poll_operation(now) else { break };
            match operation {
                Operation::Connect { connection, token, .. } => {
                    self.client.handle(Event::Connected { connection, token, result: Ok(()) }, now);
                }
                Operation::Send { connection, buffer } => self.in_flight.push_back((connection, buffer)),
                Operation::Close { connection } => {
                    self.in_flight.retain(|(id, _)| *id != connection);
                    self.client.handle(Event::Closed { connection }, now);
                }
                other => panic!("a client does not ask for {other:?}"),
            }
        }
    }

    /// The oldest send ends; how many requests it carried.
    fn complete_send(&mut self, now: u64) -> (ConnectionId, usize) {
        let (connection, buffer) = self.in_flight.pop_front().expect("a send is in flight");
        let requests = buffer.windows(3).filter(|window| window == b"GET").count();
        self.client.handle(Event::Sent { connection, buffer, result: Ok(()) }, now);
        (connection, requests)
    }

    fn reply(&mut self, connection: ConnectionId, count: usize, now: u64) {
        let bytes = b"$3\r\nabc\r\n".repeat(count);
        self.client.handle(Event::Received { connection, bytes: &bytes }, now);
    }

    fn outcome(self) -> Outcome {
        self.client.into_outcome()
    }
}

fn open(rate: f64) -> impl FnOnce(&mut Plan) {
    move |plan| plan.load = Load::Open { rate, arrival: Arrival::Constant }
}

fn assert_close(found: u64, expected: u64) {
    let error = (found as f64 / expected as f64 - 1.0).abs();
    assert!(error < 0.002, "{found} is not {expected}");
}

#[test]
fn late_requests_are_sent_all_and_keep_their_intended_time() {
    // One a millisecond; the first send's completion takes until 10.5 ms.
    let mut played = Played::new(open(1_000.0));
    played.turn(MS);
    assert_eq!(played.in_flight.len(), 1);
    for now in 2..=10 {
        played.turn(now * MS);
    }
    assert_eq!(played.in_flight.len(), 1, "one send in flight a connection");
    let (id, requests) = played.complete_send(10 * MS + MS / 2);
    assert_eq!(requests, 1);
    played.turn(10 * MS + MS / 2);
    let (_, requests) = played.complete_send(10 * MS + MS / 2);
    assert_eq!(requests, 9, "nothing that was due is dropped");
    played.reply(id, 10, 12 * MS);
    let outcome = played.outcome();
    assert_eq!((outcome.counts.offered, outcome.counts.sent, outcome.counts.answered), (10, 10, 10));
    // The first: intended and sent at 1 ms, so 11 ms. The second: intended at 2 ms, sent at 10.5 ms.
    assert_close(outcome.response.max(), 11 * MS);
    assert_close(outcome.service.max(), 11 * MS);
    assert_close(outcome.lateness.max(), 8 * MS + MS / 2);
    assert_close(outcome.response.value_at_quantile(0.85), 10 * MS);
    assert_close(outcome.service.value_at_quantile(0.85), MS + MS / 2);
}

#[test]
fn a_batch_waits_for_all_replies_of_the_last() {
    let mut played = Played::new(|plan| plan.load = Load::Closed { pipeline: 5 });
    let (id, requests) = played.complete_send(MS);
    assert_eq!(requests, 5);
    played.reply(id, 4, 2 * MS);
    played.turn(2 * MS);
    assert!(played.in_flight.is_empty());
    played.reply(id, 1, 3 * MS);
    played.turn(3 * MS);
    assert_eq!(played.complete_send(3 * MS).1, 5);
    let outcome = played.outcome();
    assert_eq!((outcome.counts.sent, outcome.counts.answered), (10, 5));
    assert_close(outcome.service.min(), 2 * MS);
    assert_close(outcome.service.max(), 3 * MS);
    assert_eq!((outcome.response.len(), outcome.lateness.len()), (0, 0));
}

#[test]
fn a_reply_that_overtakes_its_sends_completion_is_taken() {
    let mut played = Played::new(|_| {});
    let id = played.in_flight[0].0;
    played.reply(id, 1, MS);
    played.turn(MS);
    assert_eq!(played.in_flight.len(), 1, "the buffer is not back: nothing new is sent");
    played.complete_send(MS);
    played.turn(MS);
    assert_eq!(played.in_flight.len(), 1);
    assert_eq!(played.outcome().counts.answered, 1);
}

#[test]
fn warm_up_is_discarded_by_the_intended_time() {
    let mut played = Played::new(|plan| {
        open(1_000.0)(plan);
        plan.warmup_ns = 10 * MS + MS / 2;
    });
    // A generator that slept over the boundary: ten arrivals before it, ten after.
    played.turn(20 * MS + MS / 4);
    let (id, requests) = played.complete_send(20 * MS + MS / 4);
    assert_eq!(requests, 20);
    played.turn(20 * MS + MS / 4);
    played.reply(id, 20, 21 * MS);
    let outcome = played.outcome();
    assert_eq!((outcome.counts.offered, outcome.counts.answered, outcome.response.len()), (10, 10, 10));
    assert_close(outcome.response.max(), 10 * MS);
}

#[test]
fn what_is_unanswered_at_the_end_counts_as_long_as_it_took() {
    let mut played = Played::new(|plan| {
        open(1_000.0)(plan);
        plan.stop = Stop::After(10 * MS);
        plan.drain_ns = 50 * MS;
    });
    played.turn(MS);
    played.turn(10 * MS + 1);
    assert_eq!(played.client.stage(), Stage::Drain);
    played.turn(60 * MS);
    assert_eq!(played.client.stage(), Stage::Done);
    let outcome = played.outcome();
    // The one sent, and those that waited behind its send to the end.
    assert_eq!((outcome.counts.offered, outcome.counts.unanswered, outcome.counts.answered), (9, 9, 0));
    assert_eq!(outcome.response.len(), 9);
    assert_close(outcome.response.max(), 59 * MS);
    assert_eq!(outcome.window_ns, 10 * MS);
}

#[test]
fn a_connection_that_is_not_answered_is_given_up_and_opened_again() {
    let mut played = Played::new(|plan| {
        plan.connections = 2;
        plan.stop = Stop::After(1_000 * MS);
        plan.timeout_ns = 100 * MS;
    });
    let (first, _) = played.complete_send(MS);
    let (second, _) = played.complete_send(MS);
    // The second goes on working, the first is silent.
    for now in (20..=200).step_by(20) {
        played.reply(second, 1, now * MS);
        played.turn(now * MS);
        if played.in_flight.iter().any(|(id, _)| *id == second) {
            while played.in_flight[0].0 != second {
                played.in_flight.rotate_left(1);
            }
            played.complete_send(now * MS);
        }
    }
    assert_eq!((played.client.counts.timeouts, played.client.counts.reconnects), (1, 1));
    assert_eq!(played.next_slot, 3, "the first was opened again");
    // What comes late on the old connection harms nobody.
    played.reply(first, 1, 201 * MS);
    let outcome = played.outcome();
    assert_eq!(outcome.failure, None);
    assert!(outcome.service.max() >= 100 * MS, "a lower bound stands in the histogram");
}

#[test]
fn replies_nobody_asked_for_end_the_run() {
    let mut played = Played::new(|_| {});
    let (id, _) = played.complete_send(MS);
    played.reply(id, 2, MS);
    assert_eq!(played.client.stage(), Stage::Done);
    let failure = played.outcome().failure.expect("it failed").to_string();
    assert!(failure.contains("more than were asked for"), "{failure}");
}

#[test]
fn connections_start_at_different_places_of_the_cycle() {
    let mut played = Played::new(|plan| {
        plan.connections = 4;
        (plan.workload.sets, plan.workload.gets) = (1, 3);
    });
    let sets = played.in_flight.iter().filter(|(_, buffer)| buffer.windows(3).any(|part| part == b"SET"));
    assert_eq!(sets.count(), 1);
    played.client.interrupt(MS);
    assert!(played.outcome().interrupted);
}

#[test]
fn a_connection_is_renewed_after_its_requests_and_nothing_is_lost() {
    for open_loop in [false, true] {
        let mut played = Played::new(|plan| {
            if open_loop {
                open(1_000.0)(plan);
            }
            plan.requests_per_connection = Some(3);
            plan.stop = Stop::Requests(10);
        });
        let mut sent = Vec::new();
        for step in 1..200 {
            played.turn(step * MS);
            if !played.in_flight.is_empty() {
                let (id, requests) = played.complete_send(step * MS);
                sent.push((id.slot, requests));
                played.turn(step * MS);
                played.reply(id, requests, step * MS);
            }
        }
        let on =
            |slot| sent.iter().filter(|(at, _)| *at == slot).map(|(_, requests)| requests).sum::<usize>();
        assert_eq!([on(0), on(1), on(2), on(3)], [3, 3, 3, 1], "open: {open_loop}, {sent:?}");
        let outcome = played.outcome();
        assert_eq!((outcome.counts.answered, outcome.counts.lost, outcome.counts.reconnects), (10, 0, 0));
        assert_eq!((outcome.counts.churned, outcome.failure), (3, None));
    }
}

#[test]
fn connections_are_opened_no_faster_than_the_ramp() {
    let mut played = Played::new(|plan| {
        plan.connections = 5;
        plan.connects_per_s = Some(100.0);
    });
    for step in 0..100 {
        // One at the beginning and one every 10 ms; the load waits for all.
        assert_eq!(u64::from(played.next_slot), (step / 10 + 1).min(5), "at {step} ms");
        assert_eq!(played.client.stage() > Stage::Connect, played.next_slot == 5);
        played.turn((step + 1) * MS);
    }
}
