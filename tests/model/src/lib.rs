//! Every order of events between shards: nothing lost, nothing twice, nobody asleep while there is something to do.
//!
//! And what replicas are told of the time: it passes no turn that runs.
//!
//! The modules below are the product's, not copies. `model` runs a closure once for every way in which its threads
//! can interleave, up to a number of preemptions, and for every store that a load may see; it reports deadlocks, data
//! races on cells, and leaks.

#![allow(dead_code, missing_docs)]

#[path = "../../../reactor/src/server/mailbox.rs"]
mod mailbox;
#[path = "../../../reactor/src/io/queue.rs"]
mod queue;
mod sync;
#[path = "../../../reactor/src/server/replication/turns.rs"]
mod turns;

/// As the product's files name them.
mod io {
    pub(crate) use crate::{queue, sync};
}

#[cfg(test)]
mod tests {
    use crate::mailbox::{Mailbox, Mailboxes};
    use crate::queue::{Consumer, Producer, queue};
    use crate::sync::{Arc, AtomicU64, Ordering};
    use crate::turns::{TurnMark, earliest};
    use loom::model::Builder;
    use loom::thread;
    use std::collections::VecDeque;

    /// Interruptions of a thread at a place where it need not give way. Bugs of this kind need one or two.
    fn model(preemptions: usize, test: impl Fn() + Sync + Send + 'static) {
        let mut builder = Builder::new();
        builder.preemption_bound = Some(preemptions);
        builder.check(test);
    }

    /// A message that loom sees die: one that is lost or taken twice is a leak or a panic.
    type Message = Box<u32>;

    fn push_all(mut to: Producer<Message>, count: u32) {
        for number in 0..count {
            let mut message = Box::new(number);
            while let Err(back) = to.push(message) {
                message = back;
                to.publish();
                thread::yield_now();
            }
            // Not each by itself: batches are what the product publishes.
            if number % 2 == 1 {
                to.publish();
            }
        }
    }

    fn take_all(from: &mut Consumer<Message>, count: u32) {
        for number in 0..count {
            let message = loop {
                if let Some(message) = from.pop() {
                    break message;
                }
                from.release();
                if !from.look() {
                    thread::yield_now();
                }
            };
            assert_eq!(*message, number, "in the order of sending, and each once");
        }
    }

    #[test]
    fn a_queue_keeps_order_and_loses_nothing() {
        for capacity in [1, 2, 3] {
            model(3, move || {
                let (to, mut from) = queue(capacity);
                let sender = thread::spawn(move || push_all(to, 4));
                take_all(&mut from, 4);
                sender.join().unwrap();
                assert!(!from.look() && from.pop().is_none());
            });
        }
    }

    #[test]
    fn what_nobody_takes_is_dropped_once() {
        model(3, || {
            let (mut to, mut from) = queue::<loom::sync::Arc<u32>>(4);
            let message = loom::sync::Arc::new(7);
            let copies = [message.clone(), message.clone(), message.clone()];
            let sender = thread::spawn(move || {
                for copy in copies {
                    assert!(to.push(copy).is_ok());
                }
            });
            if from.look() {
                assert_eq!(*from.pop().unwrap(), 7);
            }
            drop(from);
            sender.join().unwrap();
            assert_eq!(loom::sync::Arc::strong_count(&message), 1);
        });
    }

    fn pair(capacity: usize) -> (Mailbox<Message>, Mailbox<Message>) {
        let mut both = VecDeque::from(Mailboxes::new(2, capacity).unwrap());
        (both.pop_front().unwrap(), both.pop_front().unwrap())
    }

    /// Receives so many, sleeping wherever there is nothing to do, and ends as a shard does.
    fn receive(mailbox: &mut Mailbox<Message>, from: usize, count: u32) {
        for number in 0..count {
            let message = loop {
                match mailbox.receive() {
                    Some(message) => break message,
                    None => mailbox.wait(None),
                }
            };
            assert_eq!((message.0, *message.1), (from, number));
        }
    }

    fn end(mailbox: &mut Mailbox<Message>) {
        while !mailbox.finish() {
            mailbox.wait(None);
            assert!(mailbox.receive().is_none());
        }
    }

    /// A sleeper is woken by a message, whenever it falls asleep.
    #[test]
    fn no_message_is_slept_through() {
        model(3, || {
            let (mut a, mut b) = pair(4);
            let sender = thread::spawn(move || {
                for number in 0..2 {
                    b.send(0, Box::new(number));
                    assert!(b.flush());
                }
                end(&mut b);
            });
            receive(&mut a, 1, 2);
            end(&mut a);
            sender.join().unwrap();
        });
    }

    /// A sender without room sleeps too, and is woken by whoever makes room.
    #[test]
    fn no_room_is_slept_through() {
        model(3, || {
            let (mut a, mut b) = pair(1);
            let sender = thread::spawn(move || {
                for number in 0..3 {
                    b.send(0, Box::new(number));
                    // Room may come before the next: what waits goes first all the same.
                    b.flush();
                }
                while !b.flush() {
                    b.wait(None);
                }
                end(&mut b);
            });
            receive(&mut a, 1, 3);
            end(&mut a);
            sender.join().unwrap();
        });
    }

    /// Question and answer, both sleeping in between: the shape of a hop.
    #[test]
    fn answers_find_who_asked() {
        model(3, || {
            let (mut a, mut b) = pair(1);
            let other = thread::spawn(move || {
                receive(&mut b, 0, 1);
                b.send(0, Box::new(0));
                assert!(b.flush());
                end(&mut b);
            });
            a.send(1, Box::new(0));
            receive(&mut a, 1, 1);
            end(&mut a);
            other.join().unwrap();
        });
    }

    /// Both have more to say than there is room for: neither may wait for the other without being woken.
    #[test]
    fn two_that_flood_each_other_both_get_through() {
        model(2, || {
            let (mut a, mut b) = pair(1);
            fn flood(mailbox: &mut Mailbox<Message>, other: usize) {
                for number in 0..2 {
                    mailbox.send(other, Box::new(number));
                }
                receive(mailbox, other, 2);
                while !mailbox.flush() {
                    mailbox.wait(None);
                }
                end(mailbox);
            }
            let thread = thread::spawn(move || flood(&mut b, 0));
            flood(&mut a, 1);
            thread.join().unwrap();
        });
    }

    /// Two senders, one sleeper: one of the two may leave the ringing to the other, but not both.
    #[test]
    fn two_senders_wake_one_sleeper() {
        model(2, || {
            let mut all = VecDeque::from(Mailboxes::new::<Message>(3, 1).unwrap());
            let mut sleeper = all.pop_front().unwrap();
            let senders: Vec<_> = all
                .into_iter()
                .map(|mut mailbox| {
                    thread::spawn(move || {
                        mailbox.send(0, Box::new(0));
                        assert!(mailbox.flush());
                        mailbox.finish();
                    })
                })
                .collect();
            let mut seen = [false; 3];
            for _ in 0..2 {
                let (from, _) = loop {
                    match sleeper.receive() {
                        Some(message) => break message,
                        None => sleeper.wait(None),
                    }
                };
                assert!(!std::mem::replace(&mut seen[from], true));
            }
            end(&mut sleeper);
            for sender in senders {
                sender.join().unwrap();
            }
        });
    }

    /// A shard that ends without having finished wakes those who would wait for it for ever.
    #[test]
    fn a_failure_is_not_slept_through() {
        model(3, || {
            let (mut a, b) = pair(1);
            let failing = thread::spawn(move || drop(b));
            while !a.is_broken() {
                a.wait(None);
            }
            failing.join().unwrap();
        });
    }

    /// Two shards write, and the wall clock is put back under them in any moment: what is told as the time, once a record is
    /// durable, is no later than the time of anything that comes behind that record.
    #[test]
    fn no_turn_has_an_earlier_time_than_was_told() {
        model(3, || {
            let marks = Arc::new([TurnMark::new(), TurnMark::new()]);
            let (floor, drawn) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
            let shards: Vec<_> = [[120, 130], [125, 90]]
                .into_iter()
                .enumerate()
                .map(|(shard, walls)| {
                    let (marks, floor, drawn) = (Arc::clone(&marks), Arc::clone(&floor), Arc::clone(&drawn));
                    // One of them takes one turn only: two more would be too much to try.
                    thread::spawn(move || {
                        let mut written = Vec::new();
                        for wall in &walls[shard..] {
                            marks[shard].begin();
                            let now = floor.load(Ordering::Acquire).max(*wall);
                            marks[shard].since(now);
                            written.push((drawn.fetch_add(1, Ordering::Relaxed) + 1, now));
                            marks[shard].rest();
                        }
                        written
                    })
                })
                .collect();
            floor.fetch_max(128, Ordering::AcqRel);
            let told =
                earliest(marks.iter()).map(|earliest| (drawn.load(Ordering::Relaxed), earliest.min(128)));
            for shard in shards {
                for (lsn, now) in shard.join().unwrap() {
                    if let Some((last, time)) = told {
                        assert!(lsn <= last || now >= time, "{now} behind LSN {last} and {time}: LSN {lsn}");
                    }
                }
            }
        });
    }
}
