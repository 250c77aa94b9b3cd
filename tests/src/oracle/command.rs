//! A command as the oracle sends it, and a step: some commands in one burst on one connection.

use super::value::show_bytes;

/// One command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Its arguments, the name first.
    pub args: Vec<Vec<u8>>,
    /// Sent as a line of text instead of an array of bulk strings.
    pub inline: bool,
}

impl Command {
    /// A command of these arguments.
    pub fn new(args: Vec<Vec<u8>>) -> Command {
        Command { args, inline: false }
    }

    /// The name in upper case.
    pub fn name(&self) -> String {
        self.upper(0)
    }

    /// Argument `at` in upper case, as far as it is text; empty where there is none.
    pub fn upper(&self, at: usize) -> String {
        self.args
            .get(at)
            .map_or(String::new(), |argument| String::from_utf8_lossy(argument).to_ascii_uppercase())
    }

    /// Whether the first words are these.
    pub fn starts_with(&self, words: &[&str]) -> bool {
        words.iter().enumerate().all(|(at, word)| self.upper(at) == *word)
    }

    /// The bytes on the wire.
    pub fn encode(&self, out: &mut Vec<u8>) {
        if self.inline {
            for (at, argument) in self.args.iter().enumerate() {
                if at > 0 {
                    out.push(b' ');
                }
                quote(argument, at, out);
            }
            out.extend_from_slice(b"\r\n");
            return;
        }
        out.extend_from_slice(format!("*{}\r\n", self.args.len()).as_bytes());
        for argument in &self.args {
            out.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
            out.extend_from_slice(argument);
            out.extend_from_slice(b"\r\n");
        }
    }

    /// For people.
    pub fn show(&self) -> String {
        let shown: Vec<String> = self
            .args
            .iter()
            .take(30)
            .map(|argument| {
                let text = show_bytes(argument, 120);
                let plain = !text.is_empty() && !text.contains([' ', '\\', '"']);
                if plain { text } else { format!("\"{text}\"") }
            })
            .collect();
        let more = if self.args.len() > 30 { " …" } else { "" };
        format!("{}{more}{}", shown.join(" "), if self.inline { "   (inline)" } else { "" })
    }
}

/// An inline argument: bare where possible, else in double quotes with escapes.
fn quote(argument: &[u8], at: usize, out: &mut Vec<u8>) {
    let bare = !argument.is_empty()
        && argument
            .iter()
            .all(|&byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\'' && byte != b'\\')
        && !(at == 0 && argument[0] == b'*');
    if bare {
        out.extend_from_slice(argument);
        return;
    }
    out.push(b'"');
    for &byte in argument {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b' '..=b'~' => out.push(byte),
            _ => out.extend_from_slice(format!("\\x{byte:02x}").as_bytes()),
        }
    }
    out.push(b'"');
}

/// What is done next.
#[derive(Clone, Debug)]
pub enum Step {
    /// Commands on a lasting connection, followed by a PING whose answer tells that all are answered.
    Burst {
        /// Which connection.
        connection: usize,
        /// The commands.
        commands: Vec<Command>,
    },
    /// Commands on a lasting connection that leaves MULTI open: a PING would be queued, so replies are counted, and
    /// each command has exactly one.
    Open {
        /// Which connection.
        connection: usize,
        /// The commands, MULTI among them or before them.
        commands: Vec<Command>,
    },
    /// Bytes on a connection of its own, which then sends nothing more; everything until it closes is compared.
    Throwaway {
        /// What is sent.
        bytes: Vec<u8>,
    },
    /// A connection of its own sends commands; then others are sent on a lasting one, which close it. What it
    /// receives until then is compared.
    Victim {
        /// What the victim sends.
        opening: Vec<Command>,
        /// Which connection closes it.
        connection: usize,
        /// By what.
        commands: Vec<Command>,
    },
    /// SCAN from 0 to 0 with these options, on both sides by their own cursors; the sets of keys are compared.
    FullScan {
        /// MATCH, COUNT, TYPE.
        options: Vec<Vec<u8>>,
    },
}
