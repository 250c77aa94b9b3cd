//! The model of a few keys that are used together: groups set at once, transfers, renames, transactions.
//!
//! Every operation is a transaction, most of them of a single command. What WATCH promises is part of it: a
//! transaction that was committed found the watched keys as its client had seen them.

use super::checker::Model;
use super::{Reply, Value, register, show};
use std::fmt;

/// One command. Keys are numbers below the model's.
#[derive(Clone, PartialEq, Eq)]
pub enum Command {
    /// A command on one key.
    One(usize, register::Command),
    /// MSET.
    SetAll(Vec<(usize, Value)>),
    /// MGET.
    GetAll(Vec<usize>),
    /// DEL of several keys.
    DeleteAll(Vec<usize>),
    /// RENAME.
    Rename(usize, usize),
    /// COPY, with REPLACE or without.
    Copy {
        /// From this key.
        from: usize,
        /// To this, another one.
        to: usize,
        /// Over what it holds.
        replace: bool,
    },
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Command::One(key, command) => write!(f, "{command:?} of key {key}"),
            Command::SetAll(pairs) => {
                f.write_str("MSET")?;
                pairs.iter().try_for_each(|(key, value)| write!(f, " {key}={}", value.escape_ascii()))
            }
            Command::GetAll(keys) => write!(f, "MGET {keys:?}"),
            Command::DeleteAll(keys) => write!(f, "DEL {keys:?}"),
            Command::Rename(from, to) => write!(f, "RENAME {from} {to}"),
            Command::Copy { from, to, replace } => {
                write!(f, "COPY {from} {to}{}", if *replace { " REPLACE" } else { "" })
            }
        }
    }
}

impl Command {
    fn keys(&self) -> Vec<usize> {
        match self {
            Command::One(key, _) => vec![*key],
            Command::SetAll(pairs) => pairs.iter().map(|(key, _)| *key).collect(),
            Command::GetAll(keys) | Command::DeleteAll(keys) => keys.clone(),
            Command::Rename(from, to) | Command::Copy { from, to, .. } => vec![*from, *to],
        }
    }

    fn may_write(&self) -> bool {
        match self {
            Command::One(_, command) => command.may_write(),
            Command::GetAll(_) => false,
            _ => true,
        }
    }

    fn only_looked(&self, output: &Reply) -> bool {
        match self {
            Command::One(_, command) => command.only_looked(output),
            Command::GetAll(_) => true,
            Command::DeleteAll(_) | Command::Copy { .. } => *output == Reply::Number(0),
            Command::Rename(..) => *output == Reply::Refused,
            Command::SetAll(_) => false,
        }
    }

    fn execute(&self, state: &mut [Option<Value>]) -> Reply {
        match self {
            Command::One(key, command) => command.execute(&mut state[*key]),
            Command::SetAll(pairs) => {
                for (key, value) in pairs {
                    state[*key] = Some(value.clone());
                }
                Reply::Done
            }
            Command::GetAll(keys) => Reply::Values(keys.iter().map(|key| state[*key].clone()).collect()),
            Command::DeleteAll(keys) => {
                Reply::Number(keys.iter().map(|key| i64::from(state[*key].take().is_some())).sum())
            }
            Command::Rename(from, to) => match state[*from].take() {
                Some(value) => {
                    state[*to] = Some(value);
                    Reply::Done
                }
                None => Reply::Refused,
            },
            Command::Copy { from, to, replace } => {
                let copied = state[*from].is_some() && (*replace || state[*to].is_none());
                if copied {
                    state[*to] = state[*from].clone();
                }
                Reply::Number(i64::from(copied))
            }
        }
    }
}

/// Commands that take effect together.
#[derive(Clone, PartialEq, Eq)]
pub struct Transaction {
    /// Which group of keys it is about. The model does not look at it: histories are checked group by group.
    pub group: u32,
    /// Keys that were watched, and what they held then.
    pub watched: Vec<(usize, Option<Value>)>,
    /// What is done.
    pub commands: Vec<Command>,
}

impl fmt::Debug for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (key, seen) in &self.watched {
            write!(f, "WATCH {key}={} ", show(seen))?;
        }
        match &self.commands[..] {
            [command] if self.watched.is_empty() => write!(f, "{command:?}"),
            commands => write!(f, "MULTI {commands:?} EXEC"),
        }
    }
}

impl Transaction {
    /// A single command.
    pub fn of(group: u32, command: Command) -> Transaction {
        Transaction { group, watched: Vec::new(), commands: vec![command] }
    }
}

/// The model of so many keys, all missing at first.
#[derive(Clone, Copy, Debug)]
pub struct Keyspace {
    /// How many.
    pub keys: usize,
}

impl Model for Keyspace {
    type Input = Transaction;
    /// A reply to each command, or `Aborted` alone.
    type Output = Vec<Reply>;
    type State = Vec<Option<Value>>;

    fn initial(&self) -> Self::State {
        vec![None; self.keys]
    }

    fn keys(&self, input: &Transaction) -> Vec<usize> {
        let commands = input.commands.iter().flat_map(Command::keys);
        let mut keys: Vec<usize> = commands.chain(input.watched.iter().map(|(key, _)| *key)).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    fn step(
        &self,
        state: &Self::State,
        input: &Transaction,
        output: Option<&Vec<Reply>>,
    ) -> Option<Self::State> {
        let aborted = output.is_some_and(|replies| replies[..] == [Reply::Aborted]);
        if aborted {
            return (!input.watched.is_empty()).then(|| state.clone());
        }
        if input.watched.iter().any(|(key, seen)| state[*key] != *seen) {
            // Committed it cannot be; unknown it was aborted.
            return output.is_none().then(|| state.clone());
        }
        let mut next = state.clone();
        for (index, command) in input.commands.iter().enumerate() {
            let reply = command.execute(&mut next);
            if output.is_some_and(|replies| replies.get(index) != Some(&reply)) {
                return None;
            }
        }
        output.is_none_or(|replies| replies.len() == input.commands.len()).then_some(next)
    }

    fn may_write(&self, input: &Transaction) -> bool {
        input.commands.iter().any(Command::may_write)
    }

    fn only_looked(&self, input: &Transaction, output: &Vec<Reply>) -> bool {
        let mut pairs = input.commands.iter().zip(output);
        output[..] == [Reply::Aborted] || pairs.all(|(command, output)| command.only_looked(output))
    }

    fn is_blind(&self, input: &Transaction) -> bool {
        let is_blind = |command: &Command| {
            matches!(command, Command::SetAll(_) | Command::One(_, register::Command::Set(_)))
        };
        input.watched.is_empty() && input.commands.iter().all(is_blind)
    }

    fn show(&self, state: &Self::State) -> String {
        state.iter().map(show).collect::<Vec<_>>().join(", ")
    }
}
