//! One record: the bytes of an entry as they lie in a segment, in memory and later in a snapshot file.
//!
//! | bytes | field | present |
//! |---|---|---|
//! | 1 | flags | always |
//! | 1 | key length, or 0 when wide | always |
//! | 2 | value length, little endian, or 0 when wide | always |
//! | 4 + 4 | key length, value length | flag `WIDE` |
//! | 8 | expiry, unix milliseconds; 0 = none | flag `EXPIRY` |
//! | 4 | bytes of the whole slot | flag `SLACK` |
//! | … | key, value, padding to a multiple of 8 | always |
//!
//! A 16-byte key with a 64-byte value is 88 bytes. The smallest slot is 16 bytes, because a free slot must hold
//! its links: a 4-byte header (flags, 24-bit length in units of 8) and two offsets. `SLACK` implies `WIDE`,
//! so that a value can grow in place without its header changing shape. A record that has a segment of its own
//! always has the expiry field: EXPIRE and PERSIST must not copy megabytes.
//!
//! This module only computes; where slots lie and who owns them is [`crate::arena`]'s business.

/// How OBJECT ENCODING describes a value. Millrace always stores the text; this is what it remembers about how
/// the text came to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Encoding {
    /// Decided by the text: `int` if it is a canonical 64-bit integer, `embstr` up to 44 bytes, else `raw`.
    #[default]
    Auto,
    /// Always `raw`: what APPEND and SETRANGE leave behind.
    Raw,
    /// `embstr` or `raw`, never `int`: what INCRBYFLOAT leaves behind.
    NotInteger,
}

impl Encoding {
    fn bits(self) -> u8 {
        match self {
            Encoding::Auto => 0,
            Encoding::Raw => 1 << ENCODING_SHIFT,
            Encoding::NotInteger => 2 << ENCODING_SHIFT,
        }
    }

    fn from_flags(flags: u8) -> Encoding {
        match (flags >> ENCODING_SHIFT) & 3 {
            1 => Encoding::Raw,
            2 => Encoding::NotInteger,
            _ => Encoding::Auto,
        }
    }
}

pub(crate) const EXPIRY: u8 = 1;
pub(crate) const WIDE: u8 = 2;
pub(crate) const SLACK: u8 = 4;
pub(crate) const FREE: u8 = 8;
const ENCODING_SHIFT: u32 = 4;
/// A free slot that is on a free list (a free slot that is not waits for compaction).
pub(crate) const LISTED: u8 = 64;

/// Slots are counted in units of eight bytes, which is what lets 32-bit offsets reach 32 GiB.
pub(crate) const UNIT: usize = 8;
/// A free slot must hold its links.
pub(crate) const MIN_SLOT_BYTES: usize = 16;
/// The longest key, and the longest value, of a record. Redis' limit of 512 MiB lies below it.
pub const MAX_LEN: usize = 1 << 30;

/// What a record's header says, decoded once per access.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub flags: u8,
    /// Bytes before the key.
    pub prefix: u32,
    pub key_len: u32,
    pub value_len: u32,
    /// Unix milliseconds; 0 = never.
    pub expires_at: u64,
    /// Bytes of the slot, a multiple of eight.
    pub slot_bytes: u32,
}

#[inline(always)]
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

#[inline(always)]
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[inline(always)]
pub(crate) fn padded(bytes: usize) -> usize {
    ((bytes + UNIT - 1) & !(UNIT - 1)).max(MIN_SLOT_BYTES)
}

impl Header {
    /// Decodes the header at the start of `bytes`, which must be a record and not a free slot.
    #[inline(always)]
    pub fn read(bytes: &[u8]) -> Header {
        let word = u32_at(bytes, 0);
        let flags = word as u8;
        debug_assert!(flags & FREE == 0, "a free slot was read as a record");
        if flags & (EXPIRY | WIDE | SLACK) == 0 {
            let key_len = (word >> 8) & 0xff;
            let value_len = word >> 16;
            let slot_bytes = padded(4 + key_len as usize + value_len as usize) as u32;
            return Header { flags, prefix: 4, key_len, value_len, expires_at: 0, slot_bytes };
        }
        Header::read_extended(bytes, word)
    }

    fn read_extended(bytes: &[u8], word: u32) -> Header {
        let flags = word as u8;
        let (mut key_len, mut value_len) = ((word >> 8) & 0xff, word >> 16);
        let mut at = 4;
        if flags & WIDE != 0 {
            key_len = u32_at(bytes, at);
            value_len = u32_at(bytes, at + 4);
            at += 8;
        }
        let mut expires_at = 0;
        if flags & EXPIRY != 0 {
            expires_at = u64_at(bytes, at);
            at += 8;
        }
        let mut slot_bytes = 0;
        if flags & SLACK != 0 {
            slot_bytes = u32_at(bytes, at);
            at += 4;
        }
        if slot_bytes == 0 {
            slot_bytes = padded(at + key_len as usize + value_len as usize) as u32;
        }
        Header { flags, prefix: at as u32, key_len, value_len, expires_at, slot_bytes }
    }

    /// Bytes of the longest header.
    pub const BYTES_MAX: usize = 24;

    /// Decodes what may be anything; `None`: it is no record, or one that would reach beyond `bytes`.
    pub fn read_untrusted(bytes: &[u8]) -> Option<Header> {
        // A record shorter than the longest header may end where its memory does.
        let mut front = [0; Header::BYTES_MAX];
        let len = front.len().min(bytes.len());
        front[..len].copy_from_slice(&bytes[..len]);
        if front[0] & FREE != 0 || (front[0] & SLACK != 0 && front[0] & WIDE == 0) {
            return None;
        }
        if front[0] & WIDE != 0 && (u32_at(&front, 4).max(u32_at(&front, 8)) as usize) > MAX_LEN {
            return None;
        }
        let header = Header::read(&front);
        let end = header.value_start() + header.value_len as usize;
        let slot_bytes = header.slot_bytes as usize;
        let fits = slot_bytes >= end.max(MIN_SLOT_BYTES) && slot_bytes <= bytes.len();
        (fits && slot_bytes.is_multiple_of(UNIT)).then_some(header)
    }

    /// The shape this header has; a value of another length can be written under it if it fits.
    pub fn layout(&self) -> Layout {
        Layout {
            flags: self.flags & (EXPIRY | WIDE | SLACK),
            prefix: self.prefix,
            key_len: self.key_len,
            value_len: self.value_len,
            slot_bytes: self.slot_bytes,
        }
    }

    pub fn encoding(&self) -> Encoding {
        Encoding::from_flags(self.flags)
    }

    /// Where the value starts, counted from the start of the slot.
    #[inline(always)]
    pub fn value_start(&self) -> usize {
        (self.prefix + self.key_len) as usize
    }

    #[inline(always)]
    pub fn is_expired(&self, now_ms: u64) -> bool {
        self.expires_at != 0 && now_ms > self.expires_at
    }
}

/// The shape of a record about to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// `EXPIRY`, `WIDE`, `SLACK`.
    pub flags: u8,
    pub prefix: u32,
    pub key_len: u32,
    pub value_len: u32,
    pub slot_bytes: u32,
}

impl Layout {
    /// The tightest shape for these lengths. Records longer than `span_bytes` get the expiry field in any case.
    #[inline(always)]
    pub fn exact(key_len: usize, value_len: usize, expiry: bool, span_bytes: usize) -> Option<Layout> {
        if key_len > 0xff || value_len > 0xffff {
            return Layout::with_capacity(key_len, value_len, value_len, expiry, span_bytes, 0);
        }
        let (flags, prefix) = if expiry { (EXPIRY, 12) } else { (0, 4) };
        let slot_bytes = padded(prefix + key_len + value_len) as u32;
        Some(Layout {
            flags,
            prefix: prefix as u32,
            key_len: key_len as u32,
            value_len: value_len as u32,
            slot_bytes,
        })
    }

    /// A shape in which the value can grow to `capacity` bytes where it lies.
    pub fn growing(
        key_len: usize,
        value_len: usize,
        capacity: usize,
        expiry: bool,
        span_bytes: usize,
    ) -> Option<Layout> {
        Layout::with_capacity(key_len, value_len, capacity, expiry, span_bytes, SLACK)
    }

    fn with_capacity(
        key_len: usize,
        value_len: usize,
        capacity: usize,
        expiry: bool,
        span_bytes: usize,
        slack: u8,
    ) -> Option<Layout> {
        if key_len > MAX_LEN || value_len > MAX_LEN {
            return None;
        }
        let mut prefix = if slack != 0 { 16 } else { 12 };
        let mut flags = WIDE | slack;
        if expiry || padded(prefix + 8 + key_len + capacity) > span_bytes {
            flags |= EXPIRY;
            prefix += 8;
        }
        let slot_bytes = u32::try_from(padded(prefix + key_len + capacity)).ok()?;
        Some(Layout {
            flags,
            prefix: prefix as u32,
            key_len: key_len as u32,
            value_len: value_len as u32,
            slot_bytes,
        })
    }

    /// Whether a value of `value_len` bytes can be written under this shape in this slot.
    pub fn holds(&self, value_len: usize) -> bool {
        (self.flags & WIDE != 0 || value_len <= 0xffff)
            && (self.prefix + self.key_len) as usize + value_len <= self.slot_bytes as usize
            // Without SLACK the slot's length follows from the value's, so it must not change.
            && (self.flags & SLACK != 0
                || padded((self.prefix + self.key_len) as usize + value_len) == self.slot_bytes as usize)
    }

    /// Writes everything before the key.
    #[inline(always)]
    pub fn write(&self, bytes: &mut [u8], expires_at: u64, encoding: Encoding) {
        let flags = self.flags | encoding.bits();
        if self.flags == 0 {
            let word = flags as u32 | self.key_len << 8 | self.value_len << 16;
            bytes[..4].copy_from_slice(&word.to_le_bytes());
            return;
        }
        self.write_extended(bytes, flags, expires_at);
    }

    fn write_extended(&self, bytes: &mut [u8], flags: u8, expires_at: u64) {
        let mut at = 4;
        if self.flags & WIDE != 0 {
            bytes[..4].copy_from_slice(&(flags as u32).to_le_bytes());
            bytes[4..8].copy_from_slice(&self.key_len.to_le_bytes());
            bytes[8..12].copy_from_slice(&self.value_len.to_le_bytes());
            at = 12;
        } else {
            let word = flags as u32 | self.key_len << 8 | self.value_len << 16;
            bytes[..4].copy_from_slice(&word.to_le_bytes());
        }
        if self.flags & EXPIRY != 0 {
            bytes[at..at + 8].copy_from_slice(&expires_at.to_le_bytes());
            at += 8;
        }
        if self.flags & SLACK != 0 {
            bytes[at..at + 4].copy_from_slice(&self.slot_bytes.to_le_bytes());
        }
    }

    pub fn has_expiry_field(&self) -> bool {
        self.flags & EXPIRY != 0
    }

    #[inline(always)]
    pub fn value_start(&self) -> usize {
        (self.prefix + self.key_len) as usize
    }

    #[inline(always)]
    pub fn units(&self) -> u32 {
        self.slot_bytes / UNIT as u32
    }
}

/// Equality of two keys, eight bytes at a time: for the 10 to 40 bytes of a usual key a call of `memcmp` costs
/// more than the comparison.
#[inline(always)]
pub(crate) fn same_bytes(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let len = a.len();
    if len > 64 {
        return a == b;
    }
    if len >= 8 {
        let mut at = 0;
        while at + 8 <= len {
            if u64_at(a, at) != u64_at(b, at) {
                return false;
            }
            at += 8;
        }
        // The last eight bytes may overlap what was compared already.
        return u64_at(a, len - 8) == u64_at(b, len - 8);
    }
    a.iter().zip(b).all(|(x, y)| x == y)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: usize = 1 << 20;

    #[test]
    fn a_16_byte_key_with_a_64_byte_value_takes_88_bytes() {
        assert_eq!(Layout::exact(16, 64, false, SPAN).unwrap().slot_bytes, 88);
    }

    #[test]
    fn every_shape_reads_back_as_it_was_written() {
        let mut bytes = vec![0u8; 256];
        for (key_len, value_len) in [(0, 0), (1, 0), (255, 65535), (256, 1), (3, 65536), (300, 2 << 20)] {
            for expiry in [false, true] {
                for capacity in [None, Some(value_len), Some(value_len + 100)] {
                    let layout = match capacity {
                        None => Layout::exact(key_len, value_len, expiry, SPAN),
                        Some(capacity) => Layout::growing(key_len, value_len, capacity, expiry, SPAN),
                    }
                    .unwrap();
                    let expires_at = if expiry { 77 } else { 0 };
                    layout.write(&mut bytes, expires_at, Encoding::NotInteger);
                    let header = Header::read(&bytes);
                    assert_eq!(header.layout(), layout);
                    assert_eq!(header.expires_at, expires_at);
                    assert_eq!(header.encoding(), Encoding::NotInteger);
                    assert!(layout.holds(value_len));
                    assert!(layout.slot_bytes >= 16 && layout.slot_bytes % 8 == 0);
                    assert!(layout.has_expiry_field() || (layout.slot_bytes as usize) <= SPAN);
                }
            }
        }
    }

    #[test]
    fn lengths_beyond_the_limit_have_no_shape() {
        assert!(Layout::exact(1, MAX_LEN + 1, false, SPAN).is_none());
        assert!(Layout::exact(MAX_LEN + 1, 1, false, SPAN).is_none());
        assert!(Layout::exact(MAX_LEN, MAX_LEN, true, SPAN).is_some());
    }

    #[test]
    fn keys_compare_as_slices_do() {
        for len in 0..80usize {
            let a: Vec<u8> = (0..len as u8).collect();
            assert!(same_bytes(&a, &a));
            for at in 0..len {
                let mut b = a.clone();
                b[at] ^= 0x80;
                assert!(!same_bytes(&a, &b), "length {len}, difference at {at}");
            }
            assert!(!same_bytes(&a, &[&a[..], &[0]].concat()));
        }
    }
}
