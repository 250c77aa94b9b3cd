//! Request bodies: Content-Length counted down, chunks decoded, both resumable at every byte.
//!
//! Decoded bytes are appended to the sink as they arrive and nothing is reserved in advance: a sender pays for
//! memory with bytes, never with a number. Chunk extensions and trailers are read, bounded and dropped.

use alloc::format;
use alloc::vec::Vec;

use super::head::is_token_byte;
use super::response::Problem;

/// Bytes of chunk extensions, and of trailers, that one body may have in all.
const CHUNK_EXTRAS_MAX: usize = 16 * 1024;
/// Hexadecimal digits a chunk size may have; 16 of them are a whole u64.
const CHUNK_SIZE_DIGITS_MAX: u8 = 16;

/// Reads one body.
#[derive(Debug)]
pub(super) struct BodyReader {
    state: State,
    /// What may still be added to the sink.
    room: u64,
    /// Whether decoded bytes go to the sink or are only counted.
    keep: bool,
    /// Extension and trailer bytes seen.
    extras: usize,
    /// The bound `room` began with, for the message.
    limit: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Length { remaining: u64 },
    ChunkSize { size: u64, digits: u8 },
    ChunkSpace { size: u64 },
    ChunkExtension { size: u64 },
    ChunkSizeLineFeed { size: u64 },
    ChunkData { remaining: u64 },
    ChunkDataReturn,
    ChunkDataLineFeed,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLineFeed,
    LastLineFeed,
    Done,
}

impl BodyReader {
    /// A body of `length` bytes. The caller has compared it with its limit.
    pub(super) fn with_length(length: u64, keep: bool) -> BodyReader {
        let state = if length == 0 { State::Done } else { State::Length { remaining: length } };
        BodyReader { state, room: length, keep, extras: 0, limit: length }
    }

    /// A chunked body of at most `limit` decoded bytes.
    pub(super) fn chunked(limit: u64, keep: bool) -> BodyReader {
        BodyReader { state: State::ChunkSize { size: 0, digits: 0 }, room: limit, keep, extras: 0, limit }
    }

    pub(super) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Takes what belongs to the body from the front of `data` and says how much that was. Every error closes the
    /// connection: the end of the body is unknown.
    pub(super) fn advance(&mut self, data: &[u8], sink: &mut Vec<u8>) -> Result<usize, Problem> {
        let mut at = 0;
        while at < data.len() {
            let byte = data[at];
            self.state = match self.state {
                State::Done => break,
                State::Length { remaining } | State::ChunkData { remaining } => {
                    let available = data.len() - at;
                    let taken = usize::try_from(remaining).unwrap_or(usize::MAX).min(available);
                    if self.keep {
                        sink.extend_from_slice(&data[at..at + taken]);
                    }
                    at += taken;
                    let remaining = remaining - taken as u64;
                    self.state = match (self.state, remaining) {
                        (State::Length { .. }, 0) => State::Done,
                        (State::Length { .. }, _) => State::Length { remaining },
                        (_, 0) => State::ChunkDataReturn,
                        (_, _) => State::ChunkData { remaining },
                    };
                    continue;
                }
                State::ChunkSize { size, digits } => match (char::from(byte).to_digit(16), byte) {
                    (Some(_), _) if digits == CHUNK_SIZE_DIGITS_MAX => {
                        return Err(Problem::new(400, "A chunk size has more than 16 hexadecimal digits."));
                    }
                    (Some(digit), _) => {
                        State::ChunkSize { size: size << 4 | u64::from(digit), digits: digits + 1 }
                    }
                    (None, b'\r') if digits > 0 => State::ChunkSizeLineFeed { size },
                    (None, b';') if digits > 0 => State::ChunkExtension { size },
                    (None, b' ' | b'\t') if digits > 0 => State::ChunkSpace { size },
                    _ => {
                        return Err(Problem::new(
                            400,
                            format!(
                                "A chunk must begin with its size in hexadecimal; found the byte 0x{byte:02x}."
                            ),
                        ));
                    }
                },
                // Blanks after the size are allowed only before an extension.
                State::ChunkSpace { size } => {
                    self.count_extra(400)?;
                    match byte {
                        b' ' | b'\t' => State::ChunkSpace { size },
                        b';' => State::ChunkExtension { size },
                        _ => {
                            return Err(Problem::new(
                                400,
                                "A chunk size must be followed by CRLF or by ; and an extension.",
                            ));
                        }
                    }
                }
                State::ChunkExtension { size } => match byte {
                    b'\r' => State::ChunkSizeLineFeed { size },
                    b'\t' | b' '..=b'~' | 0x80.. => {
                        self.count_extra(400)?;
                        State::ChunkExtension { size }
                    }
                    _ => {
                        return Err(Problem::new(
                            400,
                            "A chunk extension holds a control character or ends in LF without CR.",
                        ));
                    }
                },
                State::ChunkSizeLineFeed { size } => {
                    expect_line_feed(byte)?;
                    // Decided from the size alone, before its bytes come.
                    if size > self.room {
                        return Err(too_large(self.limit));
                    }
                    self.room -= size;
                    if size == 0 { State::TrailerStart } else { State::ChunkData { remaining: size } }
                }
                State::ChunkDataReturn if byte == b'\r' => State::ChunkDataLineFeed,
                State::ChunkDataReturn => {
                    return Err(Problem::new(
                        400,
                        "A chunk is not as long as its size says: CRLF must follow its last byte.",
                    ));
                }
                State::ChunkDataLineFeed => {
                    expect_line_feed(byte)?;
                    State::ChunkSize { size: 0, digits: 0 }
                }
                State::TrailerStart if byte == b'\r' => State::LastLineFeed,
                // A line that is no field means that the body's last CRLF is missing and this is the next request.
                State::TrailerStart | State::TrailerName => {
                    self.count_extra(431)?;
                    match byte {
                        b':' if self.state == State::TrailerName => State::TrailerValue,
                        _ if is_token_byte(byte) => State::TrailerName,
                        _ => {
                            return Err(Problem::new(
                                400,
                                "A trailer field is malformed, or the CRLF that ends the body is missing.",
                            ));
                        }
                    }
                }
                State::TrailerValue => {
                    self.count_extra(431)?;
                    match byte {
                        b'\r' => State::TrailerLineFeed,
                        b'\t' | b' '..=b'~' | 0x80.. => State::TrailerValue,
                        _ => {
                            return Err(Problem::new(
                                400,
                                "A trailer field holds a control character or ends in LF without CR.",
                            ));
                        }
                    }
                }
                State::TrailerLineFeed => {
                    expect_line_feed(byte)?;
                    State::TrailerStart
                }
                State::LastLineFeed => {
                    expect_line_feed(byte)?;
                    State::Done
                }
            };
            at += 1;
        }
        Ok(at)
    }

    fn count_extra(&mut self, status: u16) -> Result<(), Problem> {
        self.extras += 1;
        if self.extras > CHUNK_EXTRAS_MAX {
            return Err(Problem::new(
                status,
                format!(
                    "The chunk extensions and trailers of one body are limited to {CHUNK_EXTRAS_MAX} bytes."
                ),
            ));
        }
        Ok(())
    }
}

/// The problem of a body beyond `limit`.
pub(super) fn too_large(limit: u64) -> Problem {
    Problem::new(
        413,
        format!(
            "The body is larger than {limit} bytes, the most this server takes for this request (setting proto-max-bulk-len for values)."
        ),
    )
}

fn expect_line_feed(byte: u8) -> Result<(), Problem> {
    if byte == b'\n' {
        Ok(())
    } else {
        Err(Problem::new(400, "A CR in the chunked body is not followed by LF."))
    }
}
