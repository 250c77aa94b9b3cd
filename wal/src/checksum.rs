//! CRC-32C (Castagnoli), the checksum of blocks and headers.
//!
//! The instruction that makes it fast can be detected only with std and called only with `unsafe`, and this
//! crate has neither. So the function is an argument, like the clock: the I/O edge lends one that uses the
//! CPU, and [`Checksum::lent`] takes no function that computes anything else. Without one,
//! [`Checksum::portable`] computes the same from tables, at a fraction of the speed.

/// A function that continues a CRC-32C over more bytes; the first call starts at 0.
pub type Crc32c = fn(u32, &[u8]) -> u32;

/// The checksum function in use.
#[derive(Clone, Copy, Debug)]
pub struct Checksum(Crc32c);

/// CRC-32C of the nine bytes `123456789`, by which implementations are recognised.
pub const CHECK_VALUE: u32 = 0xe306_9283;

impl Checksum {
    /// Tables and no special instruction.
    pub const fn portable() -> Checksum {
        Checksum(portable)
    }

    /// The caller's function, if it computes CRC-32C.
    pub fn lent(function: Crc32c) -> Option<Checksum> {
        let sample: [u8; 1021] = core::array::from_fn(|index| (index * 7) as u8);
        let known = function(0, b"123456789") == CHECK_VALUE;
        // Long enough for any inner loop, and continued at an odd place.
        let alike = function(function(0, &sample[..13]), &sample[13..]) == portable(0, &sample);
        (known && alike).then_some(Checksum(function))
    }

    /// A function that always says 0, for fuzzers and nobody else: they cannot guess checksums, and what is
    /// behind them must be fuzzed too.
    pub const fn blind() -> Checksum {
        Checksum(|_, _| 0)
    }

    /// Continues `crc` over `bytes`.
    pub fn continued(self, crc: u32, bytes: &[u8]) -> u32 {
        (self.0)(crc, bytes)
    }

    /// The checksum of `bytes`.
    pub fn of(self, bytes: &[u8]) -> u32 {
        self.continued(0, bytes)
    }
}

/// The reflected polynomial 0x1EDC6F41.
const POLYNOMIAL: u32 = 0x82f6_3b78;
const SLICES: usize = 16;
static TABLES: [[u32; 256]; SLICES] = tables();

const fn tables() -> [[u32; 256]; SLICES] {
    let mut tables = [[0; 256]; SLICES];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut slice = 1;
    while slice < SLICES {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[slice - 1][byte];
            tables[slice][byte] = before >> 8 ^ tables[0][(before & 0xff) as usize];
            byte += 1;
        }
        slice += 1;
    }
    tables
}

/// Sixteen bytes a step, each looked up in the table of its distance from the step's end.
fn portable(crc: u32, bytes: &[u8]) -> u32 {
    let mut crc = !crc;
    let (steps, rest) = bytes.as_chunks::<SLICES>();
    for step in steps {
        let mixed = crc ^ u32::from_le_bytes([step[0], step[1], step[2], step[3]]);
        let mut next = 0;
        for (index, byte) in mixed.to_le_bytes().into_iter().enumerate() {
            next ^= TABLES[SLICES - 1 - index][usize::from(byte)];
        }
        for (index, &byte) in step.iter().enumerate().skip(4) {
            next ^= TABLES[SLICES - 1 - index][usize::from(byte)];
        }
        crc = next;
    }
    for &byte in rest {
        crc = crc >> 8 ^ TABLES[0][usize::from(crc as u8 ^ byte)];
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_portable_function_agrees_with_the_instruction() {
        assert_eq!(Checksum::portable().of(b"123456789"), CHECK_VALUE);
        // RFC 3720, B.4.
        assert_eq!(Checksum::portable().of(&[0; 32]), 0x8a91_36aa);
        assert_eq!(Checksum::portable().of(&[0xff; 32]), 0x62a8_ab43);
        let bytes: Vec<u8> = (0..5000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for length in (0..200).chain([4095, 4096, 4097, 5000]) {
            for start in [0, 1, 7] {
                let bytes = &bytes[start.min(length)..length];
                assert_eq!(portable(0, bytes), crc32c::crc32c(bytes), "{start}..{length}");
                assert_eq!(portable(77, bytes), crc32c::crc32c_append(77, bytes), "{start}..{length}");
            }
        }
    }

    #[test]
    fn only_crc32c_is_taken() {
        assert!(Checksum::lent(crc32c::crc32c_append).is_some());
        assert!(Checksum::lent(|_, _| CHECK_VALUE).is_none(), "a constant");
        assert!(Checksum::lent(|_, bytes| crc32c::crc32c(bytes)).is_none(), "one that does not continue");
        assert!(Checksum::lent(|crc, bytes| !crc32c::crc32c_append(crc, bytes)).is_none(), "complemented");
    }
}
