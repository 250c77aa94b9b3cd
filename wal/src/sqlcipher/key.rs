//! The key of a journal: how it is written down, and that no copy of it is left behind.
//!
//! A key is text on one line. 64 hexadecimal digits are the key itself; anything else is a passphrase, from which
//! SQLCipher derives one. Memory that this crate held a key in is overwritten before it is given back; SQLCipher keeps
//! what it needs for as long as a journal is open.

use std::fmt;

use zeroize::Zeroizing;

use super::JournalError;

/// The longest passphrase: more is a file that was meant for something else.
pub const KEY_BYTES_MAX: usize = 4096;

/// The key of a journal.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(Zeroizing<String>);

impl Key {
    /// Reads a key as it stands in a file or a variable. 64 hexadecimal digits are the key itself; anything
    /// else is a passphrase, from which SQLCipher derives one (a few tenths of a second at each start). A
    /// line end is not part of it.
    pub fn parse(text: &str) -> Result<Key, JournalError> {
        let text = text.strip_suffix('\n').unwrap_or(text);
        let text = text.strip_suffix('\r').unwrap_or(text);
        let wrong = |found: &str| Err(JournalError::Key(found.to_string()));
        if text.is_empty() {
            return wrong("nothing");
        }
        if text.len() > KEY_BYTES_MAX {
            return wrong("more than 4096 bytes");
        }
        if text.contains(['\0', '\n', '\r']) {
            return wrong("more than one line, or a zero byte");
        }
        if text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(Key(Zeroizing::new(["x'", text, "'"].concat())));
        }
        // SQLCipher would take it for hexadecimal digits, and fail or not depending on what follows.
        if text.get(..2).is_some_and(|start| start.eq_ignore_ascii_case("x'")) {
            return wrong("something that begins with x' (write the 64 digits alone)");
        }
        Ok(Key(Zeroizing::new(text.to_string())))
    }

    /// The statement that gives it to SQLCipher.
    pub(super) fn statement(&self) -> Zeroizing<String> {
        // Room for all of it: growing would leave a copy behind.
        let mut sql = Zeroizing::new(String::with_capacity(2 * self.0.len() + 32));
        sql.push_str("PRAGMA key = '");
        for letter in self.0.chars() {
            if letter == '\'' {
                sql.push('\'');
            }
            sql.push(letter);
        }
        sql.push('\'');
        sql
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(hidden)")
    }
}
