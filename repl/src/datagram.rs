//! The UDP datagram: a run of records, or none, which makes a heartbeat.
//!
//! Datagrams are numbered one by one, so that a receiver can count what is lost and late; but their order
//! follows from the positions of their records alone. Every datagram says up to where the sender's log is
//! durable.
//!
//! The checksum finds accidents, the authenticator forgery: it is made with a key that both sides derive from
//! the shared secret, the salt of the handshake and the epoch (see [`crate::secret`] for what that protects
//! and what not). Zeros may follow, so that a burst is cut into datagrams of one length (UDP_SEGMENT).

use alloc::vec::Vec;

use wal::checksum::Checksum;
use wal::layout::{Field, is_dense};

use crate::run::{RUN_HEADER_BYTES, Run};
use crate::secret::{DatagramKey, MAC_BYTES};

/// The first four bytes.
pub const MAGIC: [u8; 4] = *b"MRDG";
/// The version of the datagram.
pub const VERSION: u32 = 1;
/// Bytes before the run.
pub const DATAGRAM_HEADER_BYTES: usize = 56;
/// Bytes before the first record.
pub const OVERHEAD_BYTES: usize = DATAGRAM_HEADER_BYTES + RUN_HEADER_BYTES;
/// No datagram is longer: what UDP over IPv4 can carry.
pub const DATAGRAM_BYTES_LIMIT: usize = 65_507;

/// The fields before the run. Place and rule of the first three are the same in all versions.
pub mod header {
    use super::Field;

    /// [`super::MAGIC`].
    pub const MAGIC: Field = Field::new("magic", 0, 4);
    /// [`super::VERSION`].
    pub const VERSION: Field = Field::new("version", 4, 4);
    /// Of all other bytes of the datagram, zeros at its end included.
    pub const CRC: Field = Field::new("crc32c", 8, 4);
    /// Bytes of header and run.
    pub const LENGTH: Field = Field::new("length", 12, 4);
    /// HMAC-SHA-256, cut, of all other bytes up to `length`, without the checksum.
    pub const MAC: Field = Field::new("mac", 16, 16);
    /// Counts the datagrams of a stream, from 1.
    pub const SEQUENCE: Field = Field::new("sequence", 32, 8);
    /// Names the sender's run: random.
    pub const STREAM: Field = Field::new("stream", 40, 8);
    /// The sender's time, microseconds since 1970.
    pub const SENT_UNIX_US: Field = Field::new("sent_unix_us", 48, 8);
    /// All of them, in order.
    pub const FIELDS: &[Field] = &[MAGIC, VERSION, CRC, LENGTH, MAC, SEQUENCE, STREAM, SENT_UNIX_US];
}

const _: () = assert!(is_dense(header::FIELDS, DATAGRAM_HEADER_BYTES));
const _: () = assert!(header::MAC.size == MAC_BYTES);

/// Why bytes are no datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidDatagram {
    /// Not one of these at all.
    Magic,
    /// The checksum does not match.
    Checksum,
    /// Of another version.
    Version(u32),
    /// Checksummed, and not as any sender makes it.
    Nonsense,
}

/// A datagram that was not damaged. Whether it is the primary's, [`Datagram::is_authentic`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram<'a> {
    bytes: &'a [u8],
    /// See [`header::SEQUENCE`].
    pub sequence: u64,
    /// See [`header::STREAM`].
    pub stream: u64,
    /// See [`header::SENT_UNIX_US`].
    pub sent_unix_us: u64,
    /// Its records.
    pub run: Run<'a>,
}

impl<'a> Datagram<'a> {
    /// Reads one datagram as it arrived.
    pub fn decode(bytes: &'a [u8], checksum: Checksum) -> Result<Datagram<'a>, InvalidDatagram> {
        if bytes.len() < OVERHEAD_BYTES || header::MAGIC.get(bytes) != MAGIC {
            return Err(InvalidDatagram::Magic);
        }
        if header::CRC.u32(bytes) != crc(bytes, checksum) {
            return Err(InvalidDatagram::Checksum);
        }
        let version = header::VERSION.u32(bytes);
        if version != VERSION {
            return Err(InvalidDatagram::Version(version));
        }
        let length = header::LENGTH.u32(bytes) as usize;
        let Some((bytes, padding)) = bytes.split_at_checked(length) else {
            return Err(InvalidDatagram::Nonsense);
        };
        let run = bytes.get(DATAGRAM_HEADER_BYTES..).and_then(Run::parse);
        let run = run.filter(|_| padding.iter().all(|&byte| byte == 0)).ok_or(InvalidDatagram::Nonsense)?;
        Ok(Datagram {
            bytes,
            sequence: header::SEQUENCE.u64(bytes),
            stream: header::STREAM.u64(bytes),
            sent_unix_us: header::SENT_UNIX_US.u64(bytes),
            run,
        })
    }

    /// True if who made it knows the key.
    pub fn is_authentic(&self, key: &DatagramKey) -> bool {
        key.is_mac(header::MAC.get(self.bytes), &authenticated(self.bytes))
    }
}

fn authenticated(bytes: &[u8]) -> [&[u8]; 3] {
    [
        &bytes[..header::CRC.offset],
        &bytes[header::LENGTH.offset..header::MAC.offset],
        &bytes[header::SEQUENCE.offset..],
    ]
}

fn crc(bytes: &[u8], checksum: Checksum) -> u32 {
    checksum.continued(checksum.of(&bytes[..header::CRC.offset]), &bytes[header::LENGTH.offset..])
}

/// Writes a datagram at the end of some bytes: the head first, then the caller's run, then this is closed.
#[derive(Debug)]
pub struct DatagramWriter {
    start: usize,
}

impl DatagramWriter {
    /// Begins one.
    pub fn begin(out: &mut Vec<u8>, stream: u64, sequence: u64, sent_unix_us: u64) -> DatagramWriter {
        let start = out.len();
        out.resize(start + DATAGRAM_HEADER_BYTES, 0);
        let bytes = &mut out[start..];
        header::MAGIC.put(bytes, &MAGIC);
        header::VERSION.put(bytes, &VERSION.to_le_bytes());
        header::SEQUENCE.put(bytes, &sequence.to_le_bytes());
        header::STREAM.put(bytes, &stream.to_le_bytes());
        header::SENT_UNIX_US.put(bytes, &sent_unix_us.to_le_bytes());
        DatagramWriter { start }
    }

    /// Bytes of it so far.
    pub fn bytes(&self, out: &[u8]) -> usize {
        out.len() - self.start
    }

    /// Ends it, with zeros up to `padded_bytes`.
    pub fn finish(self, out: &mut Vec<u8>, padded_bytes: usize, key: &DatagramKey, checksum: Checksum) {
        let length = self.bytes(out);
        let bytes = &mut out[self.start..];
        header::LENGTH.put(bytes, &(length as u32).to_le_bytes());
        let mac = key.mac(&authenticated(bytes));
        header::MAC.put(bytes, &mac);
        out.resize(self.start + length.max(padded_bytes), 0);
        let bytes = &mut out[self.start..];
        let crc = crc(bytes, checksum);
        header::CRC.put(bytes, &crc.to_le_bytes());
    }
}
