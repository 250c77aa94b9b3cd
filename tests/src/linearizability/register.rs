//! The model of one key: a register that is read, written, compared and set, counted with, appended to and deleted.

use super::checker::Model;
use super::{Reply, Value, show};
use std::fmt;

/// What is asked of a key.
#[derive(Clone, PartialEq, Eq)]
pub enum Command {
    /// GET.
    Get,
    /// SET.
    Set(Value),
    /// GETSET.
    GetSet(Value),
    /// PUT over HTTP: a SET whose answer says whether the key was there (0) or is new (1).
    Put(Value),
    /// SET … NX.
    SetIfAbsent(Value),
    /// SET … XX.
    SetIfPresent(Value),
    /// WATCH, GET (which gave `expected`), MULTI, SET, EXEC: as one operation.
    CompareAndSet {
        /// What the key must hold.
        expected: Option<Value>,
        /// What it holds then.
        new: Value,
    },
    /// INCRBY.
    Add(i64),
    /// APPEND.
    Append(Value),
    /// DEL.
    Delete,
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |value: &Value| value.escape_ascii().to_string();
        match self {
            Command::Get => f.write_str("GET"),
            Command::Set(value) => write!(f, "SET {}", text(value)),
            Command::GetSet(value) => write!(f, "GETSET {}", text(value)),
            Command::Put(value) => write!(f, "PUT {}", text(value)),
            Command::SetIfAbsent(value) => write!(f, "SET {} NX", text(value)),
            Command::SetIfPresent(value) => write!(f, "SET {} XX", text(value)),
            Command::CompareAndSet { expected, new } => {
                write!(f, "SET {} if it holds {}", text(new), show(expected))
            }
            Command::Add(number) => write!(f, "INCRBY {number}"),
            Command::Append(value) => write!(f, "APPEND {}", text(value)),
            Command::Delete => f.write_str("DEL"),
        }
    }
}

impl Command {
    /// Whether it can change what the key holds.
    pub fn may_write(&self) -> bool {
        *self != Command::Get
    }

    /// Whether what was answered so changed nothing.
    pub fn only_looked(&self, output: &Reply) -> bool {
        match self {
            Command::Get => true,
            Command::SetIfAbsent(_) | Command::SetIfPresent(_) => *output == Reply::Value(None),
            Command::CompareAndSet { .. } => *output == Reply::Aborted,
            Command::Add(_) => *output == Reply::Refused,
            Command::Delete => *output == Reply::Number(0),
            Command::Set(_) | Command::GetSet(_) | Command::Put(_) | Command::Append(_) => false,
        }
    }

    /// Does it, and says what the answer is. A compare-and-set does and says what it must when it is not aborted by a
    /// change in between.
    pub fn execute(&self, state: &mut Option<Value>) -> Reply {
        match self {
            Command::Get => Reply::Value(state.clone()),
            Command::Set(value) => {
                *state = Some(value.clone());
                Reply::Done
            }
            Command::GetSet(value) => Reply::Value(state.replace(value.clone())),
            Command::Put(value) => Reply::Number(i64::from(state.replace(value.clone()).is_none())),
            Command::SetIfAbsent(_) if state.is_some() => Reply::Value(None),
            Command::SetIfPresent(_) if state.is_none() => Reply::Value(None),
            Command::SetIfAbsent(value) | Command::SetIfPresent(value) => {
                *state = Some(value.clone());
                Reply::Done
            }
            Command::CompareAndSet { expected, .. } if state != expected => Reply::Aborted,
            Command::CompareAndSet { new, .. } => {
                *state = Some(new.clone());
                Reply::Done
            }
            Command::Add(step) => {
                let held =
                    state.as_deref().map_or(Some(0), |bytes| std::str::from_utf8(bytes).ok()?.parse().ok());
                match held.and_then(|held: i64| held.checked_add(*step)) {
                    Some(sum) => {
                        *state = Some(sum.to_string().into_bytes());
                        Reply::Number(sum)
                    }
                    None => Reply::Refused,
                }
            }
            Command::Append(tail) => {
                let value = state.get_or_insert_default();
                value.extend_from_slice(tail);
                Reply::Number(value.len() as i64)
            }
            Command::Delete => Reply::Number(i64::from(state.take().is_some())),
        }
    }
}

/// A command and its key. The model looks at the command only: histories are checked key by key.
#[derive(Clone, PartialEq, Eq)]
pub struct Keyed {
    /// The key's number.
    pub key: u32,
    /// The command.
    pub command: Command,
}

impl fmt::Debug for Keyed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of key {}", self.command, self.key)
    }
}

/// The model of a key that is missing at first.
#[derive(Clone, Copy, Debug, Default)]
pub struct Register;

impl Model for Register {
    type Input = Keyed;
    type Output = Reply;
    type State = Option<Value>;

    fn initial(&self) -> Self::State {
        None
    }

    fn keys(&self, _: &Keyed) -> Vec<usize> {
        // A register is one key: a history is judged key by key.
        vec![0]
    }

    fn step(&self, state: &Self::State, input: &Keyed, output: Option<&Reply>) -> Option<Self::State> {
        let mut next = state.clone();
        let reply = input.command.execute(&mut next);
        match (&input.command, output) {
            // WATCH aborts also where a value was changed and changed back.
            (Command::CompareAndSet { .. }, Some(Reply::Aborted)) => Some(state.clone()),
            (_, Some(output)) if *output != reply => None,
            _ => Some(next),
        }
    }

    fn may_write(&self, input: &Keyed) -> bool {
        input.command.may_write()
    }

    fn only_looked(&self, input: &Keyed, output: &Reply) -> bool {
        input.command.only_looked(output)
    }

    fn is_blind(&self, input: &Keyed) -> bool {
        matches!(input.command, Command::Set(_))
    }

    fn show(&self, state: &Self::State) -> String {
        show(state)
    }
}
