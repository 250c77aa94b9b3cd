//! The effect of a write, as bytes: what the log stores, what replicas are sent, what recovery applies.
//!
//! An effect says what became of a key, not which command did it: expiry times are absolute, conditions are decided,
//! increments are results. Applied to the state it was made in, it gives the state after it, whatever the clock says then; so
//! a key whose time has come needs no effect, and one that was evicted does.
//!
//! | byte | effect | what follows |
//! |---|---|---|
//! | 1 | set | flags (1 byte), expiry if flag 4 (8 bytes, little-endian, Unix milliseconds), key, value |
//! | 2 | append | key, bytes |
//! | 3 | write range | key, offset (varint), bytes |
//! | 4 | set expiry | key, expiry (8 bytes; 0: none) |
//! | 5 | remove | key |
//! | 6 | clear | nothing |
//!
//! Keys and bytes are a length (varint: seven bits a byte, the lowest first, the high bit set on all but the last) and so
//! many bytes. The two low bits of the flags are the value's [`Encoding`]. Effects follow one another without a gap.

use crate::expiry::Expiry;
use crate::image::restore::LiveCursor;
use crate::keyspace::{KeyHash, Keyspace, StoreError};
use crate::time::Now;
use crate::value::Encoding;
use alloc::vec::Vec;

/// What became of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation<'a> {
    /// A key has this value, whatever it had.
    Set {
        /// The key.
        key: &'a [u8],
        /// Its value.
        value: &'a [u8],
        /// Unix milliseconds.
        expires_at: Option<u64>,
        /// How OBJECT ENCODING describes it.
        encoding: Encoding,
    },
    /// A key that is there has more at its end.
    Append {
        /// The key.
        key: &'a [u8],
        /// What was added.
        bytes: &'a [u8],
    },
    /// Part of a value was overwritten; it grew with zeros where it was too short.
    WriteRange {
        /// The key.
        key: &'a [u8],
        /// Where.
        offset: u64,
        /// With what.
        bytes: &'a [u8],
    },
    /// A key that is there expires then, or never.
    SetExpiry {
        /// The key.
        key: &'a [u8],
        /// Unix milliseconds.
        expires_at: Option<u64>,
    },
    /// A key is gone.
    Remove {
        /// The key.
        key: &'a [u8],
    },
    /// All keys are gone.
    Clear,
}

const SET: u8 = 1;
const APPEND: u8 = 2;
const WRITE_RANGE: u8 = 3;
const SET_EXPIRY: u8 = 4;
const REMOVE: u8 = 5;
const CLEAR: u8 = 6;

const ENCODING_BITS: u8 = 3;
const HAS_EXPIRY: u8 = 4;

/// Bytes that are no effect: a bug, or a log of another version. What checks lengths and sums comes before this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// What was expected.
    pub expected: &'static str,
    /// How many bytes were left where it was expected.
    pub left: usize,
}

impl core::fmt::Display for Malformed {
    fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(formatter, "expected {} in an effect, {} bytes before its end", self.expected, self.left)
    }
}

/// How many effects' keys are fetched together.
const AHEAD: usize = 32;
const _: () = assert!(AHEAD <= u64::BITS as usize, "a batch is a word of flags");

/// Bytes of removals that are gathered before they happen, and of records walked between two looks at that.
const REMOVALS_BYTES: usize = 16 << 20;
const WALK_BYTES: usize = 1 << 20;

/// An effect that could not be made happen; those before it were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotApplied {
    /// Where it begins in the bytes that were given.
    pub at: usize,
    /// Why.
    pub why: WhyNot,
}

/// Why an effect could not be made happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhyNot {
    /// It is none.
    Malformed(Malformed),
    /// There is no room for it.
    Refused(StoreError),
}

impl core::fmt::Display for WhyNot {
    fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            WhyNot::Malformed(malformed) => malformed.fmt(formatter),
            WhyNot::Refused(StoreError::OutOfSpace) => formatter.write_str(
                "there is no memory for it: this process may have no more, or a shard has the 32 GiB it can have; give it more \
                 memory, or more shards (--shards)",
            ),
            WhyNot::Refused(StoreError::Damaged) => {
                formatter.write_str("the snapshot that the shard was started from is damaged")
            }
            WhyNot::Refused(StoreError::TooLarge) => {
                formatter.write_str("its key or value is longer than this version takes")
            }
        }
    }
}

impl<'a> Mutation<'a> {
    /// Adds it to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match *self {
            Mutation::Set { key, value, expires_at, encoding } => {
                let has_expiry = if expires_at.is_some() { HAS_EXPIRY } else { 0 };
                out.extend_from_slice(&[SET, encoding as u8 | has_expiry]);
                if let Some(at) = expires_at {
                    out.extend_from_slice(&at.to_le_bytes());
                }
                push_bytes(out, key);
                push_bytes(out, value);
            }
            Mutation::Append { key, bytes } => {
                out.push(APPEND);
                push_bytes(out, key);
                push_bytes(out, bytes);
            }
            Mutation::WriteRange { key, offset, bytes } => {
                out.push(WRITE_RANGE);
                push_bytes(out, key);
                push_varint(out, offset);
                push_bytes(out, bytes);
            }
            Mutation::SetExpiry { key, expires_at } => {
                out.push(SET_EXPIRY);
                push_bytes(out, key);
                out.extend_from_slice(&expires_at.unwrap_or(0).to_le_bytes());
            }
            Mutation::Remove { key } => {
                out.push(REMOVE);
                push_bytes(out, key);
            }
            Mutation::Clear => out.push(CLEAR),
        }
    }

    /// Takes the first effect of `bytes`.
    pub fn decode(bytes: &mut &'a [u8]) -> Result<Mutation<'a>, Malformed> {
        let kind = take(bytes, 1, "the kind")?[0];
        Ok(match kind {
            SET => {
                let flags = take(bytes, 1, "flags")?[0];
                let encoding = match flags & ENCODING_BITS {
                    0 => Encoding::Auto,
                    1 => Encoding::Raw,
                    2 => Encoding::NotInteger,
                    _ => return Err(Malformed { expected: "an encoding from 0 to 2", left: bytes.len() }),
                };
                if flags & !(ENCODING_BITS | HAS_EXPIRY) != 0 {
                    return Err(Malformed { expected: "known flags", left: bytes.len() });
                }
                let expires_at = if flags & HAS_EXPIRY != 0 { Some(take_u64(bytes)?) } else { None };
                Mutation::Set { key: take_bytes(bytes)?, value: take_bytes(bytes)?, expires_at, encoding }
            }
            APPEND => Mutation::Append { key: take_bytes(bytes)?, bytes: take_bytes(bytes)? },
            WRITE_RANGE => Mutation::WriteRange {
                key: take_bytes(bytes)?,
                offset: take_varint(bytes)?,
                bytes: take_bytes(bytes)?,
            },
            SET_EXPIRY => Mutation::SetExpiry {
                key: take_bytes(bytes)?,
                expires_at: Some(take_u64(bytes)?).filter(|&at| at != 0),
            },
            REMOVE => Mutation::Remove { key: take_bytes(bytes)? },
            CLEAR => Mutation::Clear,
            _ => return Err(Malformed { expected: "a kind from 1 to 6", left: bytes.len() + 1 }),
        })
    }

    /// The key it is about; none: all of them.
    pub fn key(&self) -> Option<&'a [u8]> {
        match *self {
            Mutation::Set { key, .. }
            | Mutation::Append { key, .. }
            | Mutation::WriteRange { key, .. }
            | Mutation::SetExpiry { key, .. }
            | Mutation::Remove { key } => Some(key),
            Mutation::Clear => None,
        }
    }
}

impl Keyspace {
    /// Makes an effect happen: recovery, and what a replica does all day.
    pub fn apply(&mut self, mutation: &Mutation<'_>, now: Now) -> Result<(), StoreError> {
        self.apply_hashed(mutation, mutation.key().map_or(KeyHash(0), |key| self.hash(key)), now)
    }

    /// Makes effects happen that stand one behind the other, as [`apply`](Self::apply) would one by one. The buckets and
    /// records of a few dozen are fetched before the first of them is touched: while one is awaited, the others come.
    pub fn apply_all(&mut self, effects: &[u8], now: Now) -> Result<(), NotApplied> {
        // Where a record lies depends on how long it has left to live now, though its time is not looked at.
        self.applying_ms = now.unix_ms();
        let applied = self.apply_batches(effects, now);
        self.applying_ms = 0;
        applied
    }

    /// Removes the keys for which this holds, whatever their time: [`Mutation::Clear`] of a part.
    pub fn clear_where(&mut self, goes: &dyn Fn(&[u8]) -> bool, now: Now) -> Result<(), NotApplied> {
        loop {
            let (mut removals, mut at) = (Vec::new(), Some(LiveCursor::START));
            // At the beginning of time nothing has expired.
            while let Some(cursor) = at.filter(|_| removals.len() < REMOVALS_BYTES) {
                at = self.for_each_live(cursor, WALK_BYTES, Now::default(), &mut |key, _| {
                    if goes(key) {
                        Mutation::Remove { key }.encode(&mut removals);
                    }
                });
            }
            if self.damage().is_some() {
                return Err(NotApplied { at: 0, why: WhyNot::Refused(StoreError::Damaged) });
            }
            if removals.is_empty() {
                return Ok(());
            }
            // Slots that are free are joined: the walk begins anew behind it.
            self.apply_all(&removals, now)?;
        }
    }

    fn apply_batches(&mut self, effects: &[u8], now: Now) -> Result<(), NotApplied> {
        let mut rest = effects;
        while !rest.is_empty() {
            let mut batch = [(0, Mutation::Clear, KeyHash(0)); AHEAD];
            let mut count = 0;
            let mut malformed = None;
            while count < AHEAD && !rest.is_empty() {
                let at = effects.len() - rest.len();
                match Mutation::decode(&mut rest) {
                    Ok(mutation) => {
                        let hash = mutation.key().map_or(KeyHash(0), |key| self.hash(key));
                        self.prefetch_bucket(hash);
                        batch[count] = (at, mutation, hash);
                        count += 1;
                    }
                    Err(error) => {
                        // What comes before it happens first, as it would one by one.
                        malformed = Some(NotApplied { at, why: WhyNot::Malformed(error) });
                        break;
                    }
                }
            }
            let batch = &batch[..count];
            let mut away = 0u64;
            for (index, &(_, _, hash)) in batch.iter().enumerate() {
                away |= u64::from(self.prefetch_record(hash)) << index;
            }
            while away != 0 {
                self.prefetch_away(batch[away.trailing_zeros() as usize].2);
                away &= away - 1;
            }
            for &(at, ref mutation, hash) in batch {
                self.apply_hashed(mutation, hash, now)
                    .map_err(|error| NotApplied { at, why: WhyNot::Refused(error) })?;
            }
            malformed.map_or(Ok(()), Err)?;
        }
        Ok(())
    }

    fn apply_hashed(&mut self, mutation: &Mutation<'_>, hash: KeyHash, now: Now) -> Result<(), StoreError> {
        // The time of the past: what had not expired when the effect was made must not expire before it is applied.
        let then = Now { unix_us: 0, ..now };
        match *mutation {
            Mutation::Set { key, value, expires_at, encoding } => {
                let expiry = expires_at.map_or(Expiry::Never, Expiry::At);
                self.set(key, hash, value, expiry, encoding, then)
            }
            Mutation::Append { key, bytes } => self.append(key, hash, bytes, then).map(drop),
            Mutation::WriteRange { key, offset, bytes } => {
                let offset = usize::try_from(offset).map_err(|_| StoreError::TooLarge)?;
                self.write_range(key, hash, offset, bytes, then).map(drop)
            }
            Mutation::SetExpiry { key, expires_at } => self.set_expiry(key, hash, expires_at, then).map(drop),
            Mutation::Remove { key } => {
                self.remove(key, hash, then);
                Ok(())
            }
            Mutation::Clear => {
                self.clear(then);
                Ok(())
            }
        }
    }
}

fn push_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn push_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    push_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn take<'a>(rest: &mut &'a [u8], count: usize, expected: &'static str) -> Result<&'a [u8], Malformed> {
    let Some((taken, behind)) = rest.split_at_checked(count) else {
        return Err(Malformed { expected, left: rest.len() });
    };
    *rest = behind;
    Ok(taken)
}

fn take_u64(rest: &mut &[u8]) -> Result<u64, Malformed> {
    let bytes = take(rest, 8, "a time of 8 bytes")?;
    Ok(bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
}

fn take_varint(rest: &mut &[u8]) -> Result<u64, Malformed> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(rest, 1, "a number")?[0];
        if shift == 63 && byte > 1 {
            break;
        }
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(Malformed { expected: "a number of 64 bits", left: rest.len() })
}

fn take_bytes<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], Malformed> {
    let length = take_varint(rest)?;
    take(rest, usize::try_from(length).unwrap_or(usize::MAX), "as many bytes as announced")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<Mutation<'static>> {
        let long: &'static [u8] = &[7; 300];
        let mut all = Vec::from([
            Mutation::Append { key: b"a", bytes: long },
            Mutation::WriteRange { key: long, offset: u64::MAX, bytes: b"" },
            Mutation::SetExpiry { key: b"k", expires_at: None },
            Mutation::SetExpiry { key: b"k", expires_at: Some(u64::MAX) },
            Mutation::Remove { key: b"" },
            Mutation::Clear,
        ]);
        for encoding in [Encoding::Auto, Encoding::Raw, Encoding::NotInteger] {
            for expires_at in [None, Some(1_700_000_000_123)] {
                all.push(Mutation::Set { key: b"key", value: b"value\0\r\n", expires_at, encoding });
            }
        }
        all
    }

    /// Recovery applies with a clock that stands still, so that nothing expires meanwhile. Where a record lies goes by the
    /// real one: all of them once lay with those that have years to live, and none of their segments was dropped whole.
    #[test]
    fn what_is_applied_lies_with_others_that_end_when_it_does() {
        let now = Now { unix_us: 1_700_000_000_000_000, ..Now::default() };
        let keyspace = || {
            let source = Box::new(crate::arena::HeapSource::default());
            Keyspace::new(crate::keyspace::KeyspaceOptions::default(), source)
        };
        let classes = |keyspace: &Keyspace| -> Vec<u8> {
            let live = keyspace.arena.segments().iter().filter(|segment| segment.live > 0);
            live.map(|segment| segment.class).collect()
        };
        for (left_ms, length) in [(5000, 10), (100_000, 10), (1_000_000_000, 10), (5000, 300_000)] {
            let value = alloc::vec![7; length];
            let expires_at = now.unix_ms() + left_ms;
            let (mut written, mut applied) = (keyspace(), keyspace());
            let hash = written.hash(b"key");
            written.set(b"key", hash, &value, Expiry::At(expires_at), Encoding::Auto, now).unwrap();
            let mut effect = Vec::new();
            let expires_at = Some(expires_at);
            Mutation::Set { key: b"key", value: &value, expires_at, encoding: Encoding::Auto }
                .encode(&mut effect);
            applied.apply_all(&effect, now).unwrap();
            assert_eq!(classes(&applied), classes(&written), "{left_ms} ms left, {length} bytes");
            // What has ended already is applied all the same.
            applied.apply_all(&effect, Now { unix_us: u64::MAX, ..now }).unwrap();
            assert_eq!(applied.len(), 1);
        }
    }

    #[test]
    fn what_was_encoded_is_decoded_one_after_the_other() {
        let mut bytes = Vec::new();
        samples().iter().for_each(|mutation| mutation.encode(&mut bytes));
        let mut rest = &bytes[..];
        for mutation in samples() {
            assert_eq!(Mutation::decode(&mut rest), Ok(mutation));
        }
        assert!(rest.is_empty());
    }

    /// The table at the head of this file, byte by byte: what is on disks already must stay readable.
    #[test]
    fn the_bytes_are_those_of_the_table() {
        let bytes = |mutation: Mutation<'_>| {
            let mut out = Vec::new();
            mutation.encode(&mut out);
            out
        };
        let set =
            Mutation::Set { key: b"k", value: b"vv", expires_at: Some(0x0102), encoding: Encoding::Raw };
        assert_eq!(bytes(set), [1, 5, 2, 1, 0, 0, 0, 0, 0, 0, 1, b'k', 2, b'v', b'v']);
        assert_eq!(bytes(Mutation::Append { key: b"k", bytes: b"x" }), [2, 1, b'k', 1, b'x']);
        let range = Mutation::WriteRange { key: b"k", offset: 300, bytes: b"x" };
        assert_eq!(bytes(range), [3, 1, b'k', 0xac, 2, 1, b'x']);
        let expiry = Mutation::SetExpiry { key: b"k", expires_at: None };
        assert_eq!(bytes(expiry), [4, 1, b'k', 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes(Mutation::Remove { key: b"k" }), [5, 1, b'k']);
        assert_eq!(bytes(Mutation::Clear), [6]);
    }

    #[test]
    fn what_is_cut_or_unknown_is_an_error() {
        for mutation in samples() {
            let mut bytes = Vec::new();
            mutation.encode(&mut bytes);
            for len in 0..bytes.len() {
                assert!(Mutation::decode(&mut &bytes[..len]).is_err(), "{mutation:?} cut at {len}");
            }
        }
        for wrong in [&[0u8][..], &[7], &[1, 3, 0, 0], &[1, 8, 0, 0], &[2, 0xff, 0xff, 0xff]] {
            assert!(Mutation::decode(&mut &wrong[..]).is_err(), "{wrong:?}");
        }
        let number_too_long = [2, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2];
        assert!(Mutation::decode(&mut &number_too_long[..]).is_err());
    }

    /// What comes before the effect that is none has happened, and the place of the other is told.
    #[test]
    fn effects_are_applied_up_to_the_first_that_cannot_be() {
        let now = Now { unix_us: 1_700_000_000_000_000, ..Now::default() };
        for good in [0, 1, AHEAD - 1, AHEAD, 3 * AHEAD + 5] {
            let source = Box::new(crate::arena::HeapSource::default());
            let mut keyspace = Keyspace::new(crate::keyspace::KeyspaceOptions::default(), source);
            let mut effects = Vec::new();
            for number in 0..good {
                let key = format!("key-{number}");
                let encoding = Encoding::Auto;
                Mutation::Set { key: key.as_bytes(), value: b"v", expires_at: None, encoding }
                    .encode(&mut effects);
            }
            let at = effects.len();
            effects.extend_from_slice(&[SET, 9]);
            let refused = keyspace.apply_all(&effects, now).unwrap_err();
            assert_eq!((refused.at, keyspace.len()), (at, good));
            assert!(matches!(refused.why, WhyNot::Malformed(_)), "{refused:?}");
        }
    }
}
