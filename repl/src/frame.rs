//! The TCP stream: a preamble from each side, then frames.
//!
//! Each side begins with its preamble and waits for nobody, so two programs that do not understand each other
//! both find out, and can both say so. A frame is a length, a kind and a checksum; TCP's own checksum lets
//! one error in some thousands pass, and a record that was changed on its way would be on the replica for
//! good.

use alloc::vec::Vec;

use wal::checksum::Checksum;
use wal::layout::{Field, is_dense};

use crate::fault::{Fault, Reason};

/// The first eight bytes from either side.
pub const MAGIC: [u8; 8] = *b"MILLRDLT";
/// The version of the stream that this program speaks.
pub const VERSION: u32 = 1;
/// The oldest version that it still speaks.
pub const VERSION_OLDEST: u32 = 1;
/// Bytes of the preamble.
pub const PREAMBLE_BYTES: usize = 20;

/// The fields of the preamble. They stay the same in all versions.
pub mod preamble {
    use super::Field;

    /// [`super::MAGIC`].
    pub const MAGIC: Field = Field::new("magic", 0, 8);
    /// The latest version that the sender speaks.
    pub const VERSION: Field = Field::new("version", 8, 4);
    /// The oldest that it speaks.
    pub const OLDEST: Field = Field::new("oldest", 12, 4);
    /// Of the bytes before.
    pub const CRC: Field = Field::new("crc32c", 16, 4);
    /// All of them, in order.
    pub const FIELDS: &[Field] = &[MAGIC, VERSION, OLDEST, CRC];
}

/// Bytes before a frame's body.
pub const FRAME_HEADER_BYTES: usize = 12;
/// No body is longer.
pub const BODY_BYTES_LIMIT: usize = 1 << 20;
/// Nor, as long as the other side has not proved who it is, longer than this.
pub const GREETING_BYTES_LIMIT: usize = 8 << 10;

/// The fields before a frame's body.
pub mod header {
    use super::Field;

    /// Of everything behind this field, body included.
    pub const CRC: Field = Field::new("crc32c", 0, 4);
    /// Bytes of the body.
    pub const LENGTH: Field = Field::new("length", 4, 4);
    /// The kind of message in it.
    pub const KIND: Field = Field::new("kind", 8, 4);
    /// All of them, in order.
    pub const FIELDS: &[Field] = &[CRC, LENGTH, KIND];
}

const _: () = assert!(is_dense(preamble::FIELDS, PREAMBLE_BYTES));
const _: () = assert!(is_dense(header::FIELDS, FRAME_HEADER_BYTES));

/// What a side says first.
pub fn encode_preamble(checksum: Checksum) -> [u8; PREAMBLE_BYTES] {
    preamble_of(VERSION, VERSION_OLDEST, checksum)
}

/// The preamble of a program that speaks these versions.
pub fn preamble_of(version: u32, oldest: u32, checksum: Checksum) -> [u8; PREAMBLE_BYTES] {
    let mut bytes = [0; PREAMBLE_BYTES];
    preamble::MAGIC.put(&mut bytes, &MAGIC);
    preamble::VERSION.put(&mut bytes, &version.to_le_bytes());
    preamble::OLDEST.put(&mut bytes, &oldest.to_le_bytes());
    let crc = checksum.of(&bytes[..preamble::CRC.offset]);
    preamble::CRC.put(&mut bytes, &crc.to_le_bytes());
    bytes
}

/// Which version both sides speak.
fn agree(bytes: &[u8], checksum: Checksum) -> Result<u32, Fault> {
    if preamble::CRC.u32(bytes) != checksum.of(&bytes[..preamble::CRC.offset]) {
        return Err(Fault::new(Reason::Protocol, "expected a preamble, found one whose checksum is wrong"));
    }
    let (version, oldest) = (preamble::VERSION.u32(bytes), preamble::OLDEST.u32(bytes));
    let common = version.min(VERSION);
    if oldest > version || common < oldest || common < VERSION_OLDEST {
        return Err(Fault::new(
            Reason::Version,
            alloc::format!(
                "expected a node that speaks a version from {VERSION_OLDEST} to {VERSION} of the replication \
                 stream, found one that speaks {oldest} to {version}"
            ),
        ));
    }
    Ok(common)
}

/// Begins a frame; its body is what is appended until [`finish_frame`] is given what this returns.
pub fn begin_frame(out: &mut Vec<u8>, kind: u32) -> usize {
    let start = out.len();
    out.resize(start + FRAME_HEADER_BYTES, 0);
    header::KIND.put(&mut out[start..], &kind.to_le_bytes());
    start
}

/// Ends the frame that began there.
pub fn finish_frame(out: &mut [u8], start: usize, checksum: Checksum) {
    let frame = &mut out[start..];
    let length = frame.len() - FRAME_HEADER_BYTES;
    assert!(length <= BODY_BYTES_LIMIT, "a frame of {length} bytes");
    header::LENGTH.put(frame, &(length as u32).to_le_bytes());
    let crc = checksum.of(&frame[header::LENGTH.offset..]);
    header::CRC.put(frame, &crc.to_le_bytes());
}

/// A frame that has arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// See [`header::KIND`].
    pub kind: u32,
    /// Its body; the checksum was right.
    pub body: Vec<u8>,
}

/// Cuts a stream into frames, whatever the pieces it arrives in.
#[derive(Debug)]
pub struct FrameReader {
    checksum: Checksum,
    buffer: Vec<u8>,
    consumed: usize,
    version: Option<u32>,
    body_bytes_max: usize,
    fault: Option<Fault>,
}

impl FrameReader {
    /// At the beginning of a stream. Bodies are bounded by [`GREETING_BYTES_LIMIT`] at first.
    pub fn new(checksum: Checksum) -> FrameReader {
        FrameReader {
            checksum,
            buffer: Vec::new(),
            consumed: 0,
            version: None,
            body_bytes_max: GREETING_BYTES_LIMIT,
            fault: None,
        }
    }

    /// The other side has proved who it is: its frames may be as long as frames are.
    pub fn trust(&mut self) {
        self.body_bytes_max = BODY_BYTES_LIMIT;
    }

    /// The version that both sides speak, once the preamble is there.
    pub fn version(&self) -> Option<u32> {
        self.version
    }

    /// Takes what has arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.consumed > 0 && self.consumed * 2 >= self.buffer.len() {
            self.buffer.drain(..self.consumed);
            self.consumed = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Bytes that wait here.
    pub fn waiting_bytes(&self) -> usize {
        self.buffer.len() - self.consumed
    }

    /// The next frame, if all of it is there. After a fault the stream is of no use.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, Fault> {
        if let Some(fault) = &self.fault {
            return Err(fault.clone());
        }
        self.try_next().inspect_err(|fault| self.fault = Some(fault.clone()))
    }

    fn try_next(&mut self) -> Result<Option<Frame>, Fault> {
        if self.version.is_none() {
            let waiting = &self.buffer[self.consumed..];
            let seen = waiting.len().min(MAGIC.len());
            if waiting[..seen] != MAGIC[..seen] {
                return Err(Fault::new(
                    Reason::Protocol,
                    alloc::format!(
                        "expected a replication stream (MILLRDLT), found \"{}\"",
                        waiting[..waiting.len().min(16)].escape_ascii()
                    ),
                ));
            }
            let Some(bytes) = waiting.get(..PREAMBLE_BYTES) else { return Ok(None) };
            self.version = Some(agree(bytes, self.checksum)?);
            self.consumed += PREAMBLE_BYTES;
        }
        let waiting = &self.buffer[self.consumed..];
        let Some(head) = waiting.get(..FRAME_HEADER_BYTES) else { return Ok(None) };
        let length = header::LENGTH.u32(head) as usize;
        if length > self.body_bytes_max {
            return Err(Fault::new(
                Reason::Protocol,
                alloc::format!("expected a frame of at most {} bytes, found {length}", self.body_bytes_max),
            ));
        }
        let Some(frame) = waiting.get(..FRAME_HEADER_BYTES + length) else { return Ok(None) };
        if header::CRC.u32(frame) != self.checksum.of(&frame[header::LENGTH.offset..]) {
            return Err(Fault::new(
                Reason::Protocol,
                alloc::format!("expected a frame of {length} bytes, found one whose checksum is wrong"),
            ));
        }
        let read = Frame { kind: header::KIND.u32(frame), body: frame[FRAME_HEADER_BYTES..].to_vec() };
        self.consumed += FRAME_HEADER_BYTES + length;
        if self.consumed == self.buffer.len() {
            self.buffer.clear();
            self.consumed = 0;
        }
        Ok(Some(read))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream() -> Vec<u8> {
        let mut bytes = encode_preamble(Checksum::portable()).to_vec();
        for (kind, body) in [(1, b"one".as_slice()), (2, b""), (3, &[7; 5000])] {
            let start = begin_frame(&mut bytes, kind);
            bytes.extend_from_slice(body);
            finish_frame(&mut bytes, start, Checksum::portable());
        }
        bytes
    }

    fn read(bytes: &[u8], piece: usize) -> Result<Vec<Frame>, Fault> {
        let mut reader = FrameReader::new(Checksum::portable());
        let mut frames = Vec::new();
        for bytes in bytes.chunks(piece) {
            reader.push(bytes);
            while let Some(frame) = reader.next_frame()? {
                frames.push(frame);
            }
        }
        Ok(frames)
    }

    #[test]
    fn frames_read_back_whatever_the_pieces() {
        let bytes = stream();
        let whole = read(&bytes, bytes.len()).unwrap();
        assert_eq!(
            whole.iter().map(|frame| (frame.kind, frame.body.len())).collect::<Vec<_>>(),
            [(1, 3), (2, 0), (3, 5000)]
        );
        for piece in [1, 2, 3, 19, 20, 21, 4096] {
            assert_eq!(read(&bytes, piece).unwrap(), whole, "pieces of {piece}");
        }
    }

    #[test]
    fn a_flipped_bit_gives_a_fault_or_less_and_never_another_frame() {
        let bytes = stream();
        let whole = read(&bytes, 4096).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            // A length that grew waits for more: then what was read before is all there is.
            let found = read(&flipped, 4096).unwrap_or_default();
            assert!(found.len() < whole.len() && found == whole[..found.len()], "bit {bit}");
        }
    }

    #[test]
    fn others_are_told_apart() {
        let fault = read(b"GET / HTTP/1.1\r\n\r\n", 3).unwrap_err();
        assert!(fault.reason == Reason::Protocol && fault.text.contains("GET"), "{fault}");
        let later = preamble_of(VERSION + 4, VERSION + 1, Checksum::portable());
        let fault = read(&later, 64).unwrap_err();
        assert!(
            fault.reason == Reason::Version && fault.text.contains("found one that speaks 2 to 5"),
            "{fault}"
        );
        let mut reader = FrameReader::new(Checksum::portable());
        reader.push(&preamble_of(VERSION + 4, VERSION, Checksum::portable()));
        assert_eq!((reader.next_frame(), reader.version()), (Ok(None), Some(VERSION)));
        let mut huge = encode_preamble(Checksum::portable()).to_vec();
        huge.extend_from_slice(&[0, 0, 0, 0, 0xff, 0xff, 0xff, 0x7f, 1, 0, 0, 0]);
        assert!(read(&huge, 64).unwrap_err().text.contains("at most 8192"), "before anything was allocated");
    }
}
