//! Linearizability: was there one order of all operations that explains every reply?
//!
//! Clients record what they ask and what they are told in a [`history::History`]; [`checker::check`] looks for an
//! order in which every operation takes effect at one moment between its invocation and its response, such that
//! a [`checker::Model`] of the server, which does one thing at a time, gives the same replies. An operation
//! whose outcome nobody learnt (the connection broke, the server died) may have taken effect at any later moment
//! or never; if the power was cut meanwhile, at any moment before the cut or never. If there is no such order, somebody saw what no single copy of the data could have shown: a stale read,
//! a lost update, half of a group, a value nobody wrote.
//!
//! | module | what it owns |
//! |---|---|
//! | [`history`] | operations with their stamps, recorded by several threads |
//! | [`checker`] | the search (Wing and Gong, with Lowe's memory of configurations), partition by partition |
//! | [`register`] | the model of one key |
//! | [`keyspace`] | the model of a few keys and of transactions over them |
//! | [`clients`] | threads that drive a real server over RESP and record |
//! | [`http`] | the same over HTTP |
//! | [`file`](mod@file) | histories as files, to be judged again |
//!
//! It judges what it is shown: an anomaly that left no trace in a reply is not found.

pub mod checker;
pub mod clients;
pub mod file;
pub mod history;
pub mod http;
pub mod keyspace;
pub mod register;
#[cfg(test)]
mod tests;

/// The bytes of a value.
pub type Value = Vec<u8>;

/// A reply, as far as a model speaks of replies.
#[derive(Clone, PartialEq, Eq)]
pub enum Reply {
    /// `OK`.
    Done,
    /// An error: the command had no effect.
    Refused,
    /// EXEC answered null: the transaction had no effect.
    Aborted,
    /// An integer.
    Number(i64),
    /// A value; `None` is the null.
    Value(Option<Value>),
    /// Several values.
    Values(Vec<Option<Value>>),
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Reply::Done => f.write_str("OK"),
            Reply::Refused => f.write_str("an error"),
            Reply::Aborted => f.write_str("aborted"),
            Reply::Number(number) => write!(f, "{number}"),
            Reply::Value(value) => f.write_str(&show(value)),
            Reply::Values(values) => {
                f.debug_list().entries(values.iter().map(|value| Shown(show(value)))).finish()
            }
        }
    }
}

/// Text that is its own debug form.
struct Shown(String);

impl std::fmt::Debug for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A value for people.
pub fn show(value: &Option<Value>) -> String {
    value.as_ref().map_or("nothing".into(), |bytes| format!("\"{}\"", bytes.escape_ascii()))
}
