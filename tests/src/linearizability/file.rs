//! Histories as files: what a test found wrong can be judged again, and looked at.
//!
//! Text, an operation a line, in order of invocation: client, stamp of the invocation, stamp of the response (`-` if
//! there is none and never will be), what was asked, `->`, what was answered (`unknown` if nobody knows). Words are
//! separated by one blank; a value is `=` and its bytes, with everything but letters, digits and some marks as `%XX`, or
//! `-` where there is none. The first line names the model.
//!
//! `cargo run -p tests --example check_history FILE` judges one.

use super::checker::{Report, check_partitioned};
use super::history::{NEVER, Operation};
use super::keyspace::{self, Keyspace, Transaction};
use super::register::{self, Keyed, Register};
use super::{Reply, Value};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// The first words of every file.
const HEADER: &str = "millrace history 1";

/// A history of one of the two models.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// Operations on single keys.
    Registers(Vec<Operation<Keyed, Reply>>),
    /// Transactions in groups of so many keys.
    Groups(usize, Vec<Operation<Transaction, Vec<Reply>>>),
}

impl Recorded {
    /// Judges it, key by key or group by group.
    pub fn check(&self) -> Report {
        match self {
            Recorded::Registers(operations) => check_partitioned(&Register, operations, |input| input.key),
            Recorded::Groups(keys, operations) => {
                check_partitioned(&Keyspace { keys: *keys }, operations, |input| input.group)
            }
        }
    }

    /// How many operations there are, and of how many the outcome is unknown.
    pub fn counts(&self) -> (usize, usize) {
        fn of<I, O>(operations: &[Operation<I, O>]) -> (usize, usize) {
            (operations.len(), operations.iter().filter(|operation| operation.output.is_none()).count())
        }
        match self {
            Recorded::Registers(operations) => of(operations),
            Recorded::Groups(_, operations) => of(operations),
        }
    }

    /// As text.
    pub fn to_text(&self) -> String {
        match self {
            Recorded::Registers(operations) => lines(
                format!("{HEADER} registers\n"),
                operations,
                |text, input| put_register(text, input.key, &input.command),
                put_reply,
            ),
            Recorded::Groups(keys, operations) => lines(
                format!("{HEADER} groups {keys}\n"),
                operations,
                put_transaction,
                |text, replies: &Vec<Reply>| {
                    let _ = write!(text, " {}", replies.len());
                    replies.iter().for_each(|reply| put_reply(text, reply));
                },
            ),
        }
    }

    /// From text. An error names the line.
    pub fn from_text(text: &str) -> Result<Recorded, String> {
        let (first, rest) = text.split_once('\n').unwrap_or((text, ""));
        let model = first
            .strip_prefix(HEADER)
            .ok_or_else(|| format!("line 1: expected \"{HEADER} MODEL\", found {first:?}"))?;
        let mut words = Words::of(model.trim_start());
        match words.next()? {
            "registers" => Ok(Recorded::Registers(parse(
                rest,
                |words| {
                    let key = words.number()?;
                    Ok(Keyed { key, command: take_register(words)? })
                },
                take_reply,
            )?)),
            "groups" => {
                let keys = words.number()?;
                let operations = parse(rest, take_transaction, |words| {
                    let count: usize = words.number()?;
                    (0..count).map(|_| take_reply(words)).collect()
                })?;
                Ok(Recorded::Groups(keys, operations))
            }
            other => Err(format!("line 1: expected the model registers or groups, found {other:?}")),
        }
    }

    /// Writes it to a file of this name in the folder for what tests leave behind, and says how to judge it again.
    pub fn save(&self, folder: &Path, name: &str) -> String {
        let path: PathBuf = folder.join(format!("{name}.history"));
        match fs::create_dir_all(folder).and_then(|()| fs::write(&path, self.to_text())) {
            Ok(()) => format!(
                "the history is in {}; judge it again: cargo run --profile ci -p tests --example check_history {}",
                path.display(),
                path.display()
            ),
            Err(error) => format!("the history could not be written to {}: {error}", path.display()),
        }
    }
}

fn lines<I, O>(
    mut text: String,
    operations: &[Operation<I, O>],
    put_input: impl Fn(&mut String, &I),
    put_output: impl Fn(&mut String, &O),
) -> String {
    for operation in operations {
        let _ = write!(text, "{} {} ", operation.client, operation.invoked);
        match operation.responded {
            NEVER => text.push('-'),
            stamp => text.push_str(&stamp.to_string()),
        }
        text.push(' ');
        put_input(&mut text, &operation.input);
        text.push_str(" ->");
        match &operation.output {
            Some(output) => put_output(&mut text, output),
            None => text.push_str(" unknown"),
        }
        text.push('\n');
    }
    text
}

fn parse<I, O>(
    text: &str,
    take_input: impl Fn(&mut Words) -> Result<I, String>,
    take_output: impl Fn(&mut Words) -> Result<O, String>,
) -> Result<Vec<Operation<I, O>>, String> {
    let operation = |line: &str| -> Result<Operation<I, O>, String> {
        let mut words = Words::of(line);
        let (client, invoked) = (words.number()?, words.number()?);
        let responded = if words.skip("-") { NEVER } else { words.number()? };
        let input = take_input(&mut words)?;
        if !words.skip("->") {
            return Err(format!("expected ->, found {:?}", words.next().unwrap_or("nothing")));
        }
        let output = if words.skip("unknown") { None } else { Some(take_output(&mut words)?) };
        match words.next() {
            Ok(more) => Err(format!("expected the end of the line, found {more:?}")),
            Err(_) => Ok(Operation { client, input, output, invoked, responded }),
        }
    };
    let lines = text.lines().enumerate();
    lines.map(|(at, line)| operation(line).map_err(|error| format!("line {}: {error}", at + 2))).collect()
}

/// The words of a line.
struct Words<'a>(std::iter::Peekable<std::str::Split<'a, char>>);

impl<'a> Words<'a> {
    fn of(line: &'a str) -> Words<'a> {
        Words(line.split(' ').peekable())
    }

    fn next(&mut self) -> Result<&'a str, String> {
        self.0.next().ok_or_else(|| "the line ends too early".into())
    }

    fn skip(&mut self, word: &str) -> bool {
        self.0.next_if_eq(&word).is_some()
    }

    fn number<N: std::str::FromStr>(&mut self) -> Result<N, String> {
        let word = self.next()?;
        word.parse().map_err(|_| format!("expected a number, found {word:?}"))
    }

    fn value(&mut self) -> Result<Value, String> {
        let word = self.next()?;
        let wrong = || format!("expected = and a value with %XX for its odd bytes, found {word:?}");
        let mut bytes = word.strip_prefix('=').ok_or_else(wrong)?.bytes();
        let mut value = Vec::new();
        while let Some(byte) = bytes.next() {
            let byte = match byte {
                b'%' => {
                    let digits = [bytes.next().ok_or_else(wrong)?, bytes.next().ok_or_else(wrong)?];
                    let digits = std::str::from_utf8(&digits).map_err(|_| wrong())?;
                    u8::from_str_radix(digits, 16).map_err(|_| wrong())?
                }
                byte => byte,
            };
            value.push(byte);
        }
        Ok(value)
    }

    fn value_or_nothing(&mut self) -> Result<Option<Value>, String> {
        if self.skip("-") { Ok(None) } else { self.value().map(Some) }
    }
}

fn put_value(text: &mut String, value: &[u8]) {
    text.push_str(" =");
    for &byte in value {
        if byte.is_ascii_alphanumeric() || b"-.;:_".contains(&byte) {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
    }
}

fn put_value_or_nothing(text: &mut String, value: &Option<Value>) {
    match value {
        Some(value) => put_value(text, value),
        None => text.push_str(" -"),
    }
}

fn put_register(text: &mut String, key: u32, command: &register::Command) {
    use register::Command;
    let _ = write!(text, "{key}");
    let mut with = |name: &str, value: &Value| {
        text.push_str(name);
        put_value(text, value);
    };
    match command {
        Command::Get => text.push_str(" get"),
        Command::Delete => text.push_str(" delete"),
        Command::Set(value) => with(" set", value),
        Command::GetSet(value) => with(" get_set", value),
        Command::Put(value) => with(" put", value),
        Command::SetIfAbsent(value) => with(" set_if_absent", value),
        Command::SetIfPresent(value) => with(" set_if_present", value),
        Command::Append(value) => with(" append", value),
        Command::Add(number) => {
            let _ = write!(text, " add {number}");
        }
        Command::CompareAndSet { expected, new } => {
            with(" compare_and_set", new);
            put_value_or_nothing(text, expected);
        }
    }
}

fn take_register(words: &mut Words) -> Result<register::Command, String> {
    use register::Command;
    Ok(match words.next()? {
        "get" => Command::Get,
        "delete" => Command::Delete,
        "set" => Command::Set(words.value()?),
        "get_set" => Command::GetSet(words.value()?),
        "put" => Command::Put(words.value()?),
        "set_if_absent" => Command::SetIfAbsent(words.value()?),
        "set_if_present" => Command::SetIfPresent(words.value()?),
        "append" => Command::Append(words.value()?),
        "add" => Command::Add(words.number()?),
        "compare_and_set" => {
            let new = words.value()?;
            Command::CompareAndSet { expected: words.value_or_nothing()?, new }
        }
        other => return Err(format!("expected a command on one key, found {other:?}")),
    })
}

fn put_transaction(text: &mut String, transaction: &Transaction) {
    use keyspace::Command;
    let _ = write!(text, "{} {}", transaction.group, transaction.watched.len());
    for (key, seen) in &transaction.watched {
        let _ = write!(text, " {key}");
        put_value_or_nothing(text, seen);
    }
    let _ = write!(text, " {}", transaction.commands.len());
    let keys = |text: &mut String, name: &str, keys: &[usize]| {
        let _ = write!(text, " {name} {}", keys.len());
        keys.iter().for_each(|key| {
            let _ = write!(text, " {key}");
        });
    };
    for command in &transaction.commands {
        match command {
            Command::One(key, command) => {
                text.push_str(" one ");
                put_register(text, *key as u32, command);
            }
            Command::SetAll(pairs) => {
                let _ = write!(text, " set_all {}", pairs.len());
                for (key, value) in pairs {
                    let _ = write!(text, " {key}");
                    put_value(text, value);
                }
            }
            Command::GetAll(of) => keys(text, "get_all", of),
            Command::DeleteAll(of) => keys(text, "delete_all", of),
            Command::Rename(from, to) => {
                let _ = write!(text, " rename {from} {to}");
            }
            Command::Copy { from, to, replace } => {
                let _ = write!(text, " copy {from} {to} {}", u8::from(*replace));
            }
        }
    }
}

fn take_transaction(words: &mut Words) -> Result<Transaction, String> {
    use keyspace::Command;
    fn list<T>(words: &mut Words, item: impl Fn(&mut Words) -> Result<T, String>) -> Result<Vec<T>, String> {
        let count: usize = words.number()?;
        (0..count).map(|_| item(words)).collect()
    }
    let group = words.number()?;
    let watched = list(words, |words| Ok((words.number()?, words.value_or_nothing()?)))?;
    let commands = list(words, |words| {
        Ok(match words.next()? {
            "one" => Command::One(words.number()?, take_register(words)?),
            "set_all" => Command::SetAll(list(words, |words| Ok((words.number()?, words.value()?)))?),
            "get_all" => Command::GetAll(list(words, |words| words.number())?),
            "delete_all" => Command::DeleteAll(list(words, |words| words.number())?),
            "rename" => Command::Rename(words.number()?, words.number()?),
            "copy" => {
                let (from, to, replace) = (words.number()?, words.number()?, words.number::<u8>()? == 1);
                Command::Copy { from, to, replace }
            }
            other => return Err(format!("expected a command, found {other:?}")),
        })
    })?;
    Ok(Transaction { group, watched, commands })
}

fn put_reply(text: &mut String, reply: &Reply) {
    match reply {
        Reply::Done => text.push_str(" ok"),
        Reply::Refused => text.push_str(" refused"),
        Reply::Aborted => text.push_str(" aborted"),
        Reply::Number(number) => {
            let _ = write!(text, " number {number}");
        }
        Reply::Value(value) => {
            text.push_str(" value");
            put_value_or_nothing(text, value);
        }
        Reply::Values(values) => {
            let _ = write!(text, " values {}", values.len());
            values.iter().for_each(|value| put_value_or_nothing(text, value));
        }
    }
}

fn take_reply(words: &mut Words) -> Result<Reply, String> {
    Ok(match words.next()? {
        "ok" => Reply::Done,
        "refused" => Reply::Refused,
        "aborted" => Reply::Aborted,
        "number" => Reply::Number(words.number()?),
        "value" => Reply::Value(words.value_or_nothing()?),
        "values" => {
            let count: usize = words.number()?;
            Reply::Values((0..count).map(|_| words.value_or_nothing()).collect::<Result<_, _>>()?)
        }
        other => return Err(format!("expected a reply, found {other:?}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linearizability::checker::Outcome;

    const GOOD: &str = "millrace history 1 registers\n\
        1 0 3 7 set =a%0D%20b -> ok\n\
        2 4 9 7 append =c -> unknown\n\
        3 10 11 7 get -> value =a%0D%20bc\n\
        3 12 - 7 compare_and_set =x - -> unknown\n\
        4 13 14 7 add 5 -> refused\n\
        4 15 16 7 get_set =5 -> value =a%0D%20bc\n\
        4 17 18 7 put =6 -> number 0\n\
        4 19 20 7 delete -> number 1\n\
        4 21 22 7 get -> value -\n\
        4 23 24 7 set_if_absent = -> ok\n\
        4 25 26 7 set_if_present =x -> ok\n";

    const GROUPS: &str = "millrace history 1 groups 2\n\
        1 0 1 4 0 1 set_all 2 0 =a 1 =b -> 1 ok\n\
        1 2 3 4 1 0 =a 2 one 0 set =c get_all 2 0 1 -> 2 ok values 2 =c =b\n\
        1 4 5 4 1 1 - 1 delete_all 1 0 -> 1 aborted\n\
        1 6 7 4 0 1 rename 0 1 -> 1 ok\n\
        1 8 9 4 0 1 copy 1 0 1 -> 1 number 1\n\
        1 10 11 4 0 1 get_all 2 0 1 -> 1 values 2 =c =c\n";

    #[test]
    fn a_file_is_judged_as_the_history_was() {
        for text in [GOOD, GROUPS] {
            let recorded = Recorded::from_text(text).expect(text);
            assert_eq!(recorded.to_text(), text);
            recorded.check().demand(text);
        }
        assert_eq!(Recorded::from_text(GOOD).expect("it is good").counts(), (11, 2));
        // The cut at 9 is over when 10 looks: seen or not, it stays as it was.
        let lost = GOOD.replace("3 10 11 7 get -> value =a%0D%20bc", "3 10 11 7 get -> value =a%0D%20b");
        for wrong in [lost, GROUPS.replace("values 2 =c =c", "values 2 =c =b")] {
            let report = Recorded::from_text(&wrong).expect(&wrong).check();
            assert!(matches!(report.outcome, Outcome::Violation(_)), "{wrong}");
        }
    }

    #[test]
    fn what_is_no_history_is_said_with_its_line() {
        for (from, to, expected) in [
            ("millrace history 1", "millrace history 2", "line 1: expected \"millrace history 1 MODEL\""),
            ("registers", "lists", "line 1: expected the model"),
            ("7 delete -> number 1", "7 delete -> number", "line 9: the line ends too early"),
            ("7 add 5", "7 add five", "line 6: expected a number, found \"five\""),
            ("7 get_set", "7 get_sat", "line 7: expected a command on one key, found \"get_sat\""),
            ("=a%0D%20b ->", "=a%0D%2 ->", "line 2: expected = and a value"),
            ("-> refused", "-> refused again", "line 6: expected the end of the line, found \"again\""),
            ("7 put =6 ->", "7 put =6", "line 8: expected ->, found \"number\""),
        ] {
            let error = Recorded::from_text(&GOOD.replacen(from, to, 1)).expect_err(to);
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
