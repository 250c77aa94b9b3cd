//! What clients asked and were told, with stamps that order invocations and responses.
//!
//! A stamp is a ticket from one shared counter, taken before a request is written and after its reply is read. So if
//! one operation's response has a lower stamp than another's invocation, it really was over before the other
//! began. Time itself would not do: clocks of two cores may disagree by more than a request takes.
//!
//! Each thread writes to a [`Log`] of its own; a history is touched only by the counter, and once when a log ends.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// The response stamp of an operation that has none.
pub const NEVER: u64 = u64::MAX;

/// One operation of one client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation<I, O> {
    /// Who asked.
    pub client: u32,
    /// What was asked.
    pub input: I,
    /// What was answered; `None`: nobody knows whether it took effect.
    pub output: Option<O>,
    /// The stamp before it was sent.
    pub invoked: u64,
    /// The stamp after its reply was read. Of an unknown outcome: the stamp after which it cannot take effect any more,
    /// or [`NEVER`].
    pub responded: u64,
}

/// The operations of several clients.
#[derive(Debug)]
pub struct History<I, O> {
    stamps: AtomicU64,
    operations: Mutex<Vec<Operation<I, O>>>,
}

impl<I, O> Default for History<I, O> {
    fn default() -> Self {
        History { stamps: AtomicU64::new(0), operations: Mutex::default() }
    }
}

impl<I, O> History<I, O> {
    /// An empty history.
    pub fn new() -> Self {
        History::default()
    }

    /// Where one client, on one thread, writes down what it does.
    pub fn client(&self, client: u32) -> Log<'_, I, O> {
        Log { history: self, client, operations: Vec::new(), withdrawn: Vec::new() }
    }

    /// All operations of the logs that have ended, by invocation.
    pub fn into_operations(self) -> Vec<Operation<I, O>> {
        let mut operations = self.operations.into_inner().unwrap_or_else(PoisonError::into_inner);
        operations.sort_unstable_by_key(|operation| operation.invoked);
        operations
    }

    /// A stamp of its own: later than all that was given out, earlier than all that follows.
    pub fn stamp(&self) -> u64 {
        self.stamps.fetch_add(1, Ordering::SeqCst)
    }

    /// The power was cut before the stamp `cut`, and what was not durable by then never will be: of the logs that have
    /// ended, an operation without a response took effect before the cut or never. One that was asked for later never
    /// did, and is struck out. Call this before anybody asks a server that was started again.
    pub fn power_was_cut(&self, cut: u64) {
        let mut all = self.operations.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain_mut(|operation| {
            let is_open = operation.output.is_none() && operation.responded == NEVER;
            if is_open {
                operation.responded = cut;
            }
            !is_open || operation.invoked < cut
        });
    }
}

/// The operations of one client. They join the history when this is dropped.
#[derive(Debug)]
pub struct Log<'h, I, O> {
    history: &'h History<I, O>,
    client: u32,
    operations: Vec<Operation<I, O>>,
    /// Which of them were refused.
    withdrawn: Vec<usize>,
}

/// An operation that was invoked. Whoever drops it says: its outcome is unknown.
#[derive(Debug)]
pub struct Invocation(usize);

impl<I, O> Log<'_, I, O> {
    /// Call this before the first byte of a request can leave.
    pub fn invoke(&mut self, input: I) -> Invocation {
        let invoked = self.history.stamp();
        self.operations.push(Operation {
            client: self.client,
            input,
            output: None,
            invoked,
            responded: NEVER,
        });
        Invocation(self.operations.len() - 1)
    }

    /// Call this after the last byte of its reply has come.
    pub fn respond(&mut self, invocation: Invocation, output: O) {
        let responded = self.history.stamp();
        let operation = &mut self.operations[invocation.0];
        (operation.output, operation.responded) = (Some(output), responded);
    }

    /// The server said that it did not do it and will not: the history goes on as if it had never been asked for, and
    /// whoever sees its effect sees what nobody wrote.
    pub fn withdraw(&mut self, invocation: Invocation) {
        self.withdrawn.push(invocation.0);
    }
}

impl<I, O> Drop for Log<'_, I, O> {
    fn drop(&mut self) {
        self.withdrawn.sort_unstable();
        for at in self.withdrawn.drain(..).rev() {
            self.operations.swap_remove(at);
        }
        let mut all = self.history.operations.lock().unwrap_or_else(PoisonError::into_inner);
        all.append(&mut self.operations);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_ends_what_was_under_way_and_strikes_out_what_came_later() {
        let history = History::<&str, ()>::new();
        let mut log = history.client(1);
        let done = log.invoke("done");
        log.respond(done, ());
        log.invoke("under way");
        let refused = log.invoke("refused");
        log.invoke("also under way");
        log.withdraw(refused);
        let cut = history.stamp();
        log.invoke("too late");
        let read = log.invoke("answered without a disk");
        log.respond(read, ());
        drop(log);
        history.power_was_cut(cut);
        let mut log = history.client(2);
        log.invoke("later");
        drop(log);
        let found: Vec<_> = history
            .into_operations()
            .into_iter()
            .map(|operation| (operation.input, operation.output.is_some(), operation.responded))
            .collect();
        let expected = [
            ("done", true, 1),
            ("under way", false, cut),
            ("also under way", false, cut),
            ("answered without a disk", true, cut + 3),
            ("later", false, NEVER),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn threads_record_side_by_side_and_stamps_tell_who_was_over_before_whom() {
        let history = History::new();
        std::thread::scope(|scope| {
            for client in 0..4 {
                let mut log = history.client(client);
                scope.spawn(move || {
                    for number in 0..1_000 {
                        let invocation = log.invoke(number);
                        if number % 10 != 9 {
                            log.respond(invocation, number * 2);
                        }
                    }
                });
            }
        });
        let operations = history.into_operations();
        assert_eq!(operations.len(), 4_000);
        assert_eq!(operations.iter().filter(|operation| operation.output.is_none()).count(), 400);
        let mut stamps: Vec<u64> = operations.iter().map(|operation| operation.invoked).collect();
        assert!(stamps.is_sorted());
        stamps.extend(operations.iter().map(|operation| operation.responded).filter(|&stamp| stamp != NEVER));
        stamps.sort_unstable();
        stamps.dedup();
        assert_eq!(stamps.len(), 7_600, "no stamp is given twice");
        for client in 0..4 {
            let mine: Vec<_> = operations.iter().filter(|operation| operation.client == client).collect();
            let follows = |pair: &[&Operation<i32, i32>]| {
                pair[0].responded < pair[1].invoked || pair[0].responded == NEVER
            };
            assert!(mine.windows(2).all(follows), "a client that waits for replies never overlaps itself");
        }
    }
}
