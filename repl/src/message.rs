//! What frames say: the table of messages, their bytes, and when they are valid.
//!
//! | kind | message | who | when |
//! |---|---|---|---|
//! | 1 | hello | replica | first: who it is, what it has |
//! | 2 | proof | replica | after the challenge: it knows the secret |
//! | 3 | ack | replica | what it has applied |
//! | 4 | repair | replica | records that no datagram brought |
//! | 16 | challenge | primary | after the hello: who it is |
//! | 17 | welcome | primary | after the proof: from where it will go on, and that it knows the secret, too |
//! | 18 | refused | both | why the connection ends; the last frame |
//! | 19 | chunk | primary | bytes of the snapshot |
//! | 20 | records | primary | a run |
//! | 21 | heartbeat | primary | where it stands |
//! | 22 | branch | primary | a branch of the history begins |
//! | 23 | chain | primary | where its own records come from |
//! | 24 | live | primary | from here on records come as datagrams |

use alloc::string::String;
use alloc::vec::Vec;

use wal::checksum::Checksum;
use wal::layout::{Field, is_dense};
use wal::lsn::{Epoch, Lsn};

use crate::fault::{Fault, Reason};
use crate::frame::{begin_frame, finish_frame};
use crate::identity::{Chain, NodeId};
use crate::lineage::{BRANCH_BYTES, Branch, Lineage};
use crate::run::Run;
use crate::secret::{MAC_BYTES, NONCE_BYTES, Nonce};

/// Kinds of messages.
pub mod kind {
    /// [`super::Hello`].
    pub const HELLO: u32 = 1;
    /// [`super::Message::Proof`].
    pub const PROOF: u32 = 2;
    /// [`super::Ack`].
    pub const ACK: u32 = 3;
    /// [`super::Repair`].
    pub const REPAIR: u32 = 4;
    /// [`super::Challenge`].
    pub const CHALLENGE: u32 = 16;
    /// [`super::Welcome`].
    pub const WELCOME: u32 = 17;
    /// [`super::Message::Refused`].
    pub const REFUSED: u32 = 18;
    /// [`super::Message::Chunk`].
    pub const CHUNK: u32 = 19;
    /// [`super::Message::Records`].
    pub const RECORDS: u32 = 20;
    /// [`super::Heartbeat`].
    pub const HEARTBEAT: u32 = 21;
    /// [`super::Message::Branch`].
    pub const BRANCH: u32 = 22;
    /// [`super::Message::Chain`].
    pub const CHAIN: u32 = 23;
    /// [`super::Message::Live`].
    pub const LIVE: u32 = 24;
}

/// Bits of what a replica can do.
pub mod capability {
    /// It takes records as datagrams.
    pub const DATAGRAMS: u32 = 1;
    /// It can take a snapshot that was made with another number of shards.
    pub const RESHARD: u32 = 2;
    /// The others are zero in this version, and ignored by a reader.
    pub const ALL: u32 = DATAGRAMS | RESHARD;
}

/// Which snapshot: what its file's header says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SnapshotName {
    /// The epoch it was taken in; 0: no snapshot.
    pub epoch: u64,
    /// The lowest LSN of a shard: records from the next one on are needed.
    pub lsn: Lsn,
    /// The highest: with these records, too, it is a state that the primary was in.
    pub lsn_max: Lsn,
    /// The file's random id.
    pub uid: u64,
    /// Bytes of the file.
    pub length: u64,
}

/// Bytes of a [`SnapshotName`].
pub const SNAPSHOT_NAME_BYTES: usize = 40;
const _: () = assert!(is_dense(snapshot_name::FIELDS, SNAPSHOT_NAME_BYTES));

/// The fields of a snapshot's name.
pub mod snapshot_name {
    use super::Field;

    /// [`super::SnapshotName::epoch`].
    pub const EPOCH: Field = Field::new("epoch", 0, 8);
    /// [`super::SnapshotName::lsn`].
    pub const LSN: Field = Field::new("lsn", 8, 8);
    /// [`super::SnapshotName::lsn_max`].
    pub const LSN_MAX: Field = Field::new("lsn_max", 16, 8);
    /// [`super::SnapshotName::uid`].
    pub const UID: Field = Field::new("uid", 24, 8);
    /// [`super::SnapshotName::length`].
    pub const LENGTH: Field = Field::new("length", 32, 8);
    /// All of them, in order.
    pub const FIELDS: &[Field] = &[EPOCH, LSN, LSN_MAX, UID, LENGTH];
}

impl SnapshotName {
    fn encode(&self, out: &mut Vec<u8>) {
        for number in [self.epoch, self.lsn.0, self.lsn_max.0, self.uid, self.length] {
            out.extend_from_slice(&number.to_le_bytes());
        }
    }

    fn decode(bytes: &[u8]) -> SnapshotName {
        SnapshotName {
            epoch: snapshot_name::EPOCH.u64(bytes),
            lsn: Lsn(snapshot_name::LSN.u64(bytes)),
            lsn_max: Lsn(snapshot_name::LSN_MAX.u64(bytes)),
            uid: snapshot_name::UID.u64(bytes),
            length: snapshot_name::LENGTH.u64(bytes),
        }
    }

    /// The epoch, of a snapshot that is one.
    pub fn epoch(&self) -> Epoch {
        Epoch(self.epoch)
    }

    /// True if there can be such a snapshot.
    pub fn is_sane(&self) -> bool {
        self.epoch >= 1 && self.lsn <= self.lsn_max && self.lsn_max.0 < u64::MAX - 1 && self.length > 0
    }
}

/// What a replica says first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Who it is.
    pub node: NodeId,
    /// Drawn for this connection.
    pub nonce: Nonce,
    /// The last record it has; 0 if none.
    pub last_lsn: Lsn,
    /// It has something of records up to this one: a snapshot's shards stand at different places. Not less
    /// than `last_lsn`.
    pub partly_lsn: Lsn,
    /// Bits of [`capability`].
    pub capabilities: u32,
    /// How many shards it has.
    pub shards: u32,
    /// The port that clients reach it at, for INFO and Sentinel.
    pub port: u32,
    /// So many bytes of this snapshot are there from an earlier attempt.
    pub partial: Option<(SnapshotName, u64)>,
    /// Its history.
    pub lineage: Lineage,
}

/// The fields of a hello; branches follow to its end.
pub mod hello {
    use super::{Field, SNAPSHOT_NAME_BYTES};

    /// [`super::Hello::node`].
    pub const NODE: Field = Field::new("node", 0, 16);
    /// [`super::Hello::nonce`].
    pub const NONCE: Field = Field::new("nonce", 16, 16);
    /// [`super::Hello::last_lsn`].
    pub const LAST_LSN: Field = Field::new("last_lsn", 32, 8);
    /// [`super::Hello::capabilities`].
    pub const CAPABILITIES: Field = Field::new("capabilities", 40, 4);
    /// [`super::Hello::shards`].
    pub const SHARDS: Field = Field::new("shards", 44, 4);
    /// [`super::Hello::port`].
    pub const PORT: Field = Field::new("port", 48, 4);
    /// Zero.
    pub const RESERVED: Field = Field::new("reserved", 52, 4);
    /// [`super::Hello::partial`]; zeros if there is none.
    pub const PARTIAL: Field = Field::new("partial", 56, SNAPSHOT_NAME_BYTES);
    /// Bytes of it that are there.
    pub const PARTIAL_BYTES: Field = Field::new("partial_bytes", 96, 8);
    /// [`super::Hello::partly_lsn`].
    pub const PARTLY_LSN: Field = Field::new("partly_lsn", 104, 8);
    /// All of them, in order.
    pub const FIELDS: &[Field] =
        &[NODE, NONCE, LAST_LSN, CAPABILITIES, SHARDS, PORT, RESERVED, PARTIAL, PARTIAL_BYTES, PARTLY_LSN];
    /// Bytes of all fields.
    pub const BYTES: usize = 112;
}

/// What a primary asks of a replica that said hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// Who it is.
    pub node: NodeId,
    /// Drawn for this connection.
    pub nonce: Nonce,
}

/// The fields of a challenge.
pub mod challenge {
    use super::Field;

    /// [`super::Challenge::node`].
    pub const NODE: Field = Field::new("node", 0, 16);
    /// [`super::Challenge::nonce`].
    pub const NONCE: Field = Field::new("nonce", 16, 16);
    /// All of them, in order.
    pub const FIELDS: &[Field] = &[NODE, NONCE];
    /// Bytes of all fields.
    pub const BYTES: usize = 32;
}

/// How a replica will get what it lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The primary knows the secret: [`crate::secret::Prover::Primary`], of hello, challenge, and the rest of
    /// this.
    pub proof: [u8; MAC_BYTES],
    /// Names the primary's run, in its datagrams.
    pub stream: u64,
    /// Part of the key of its datagrams.
    pub salt: Nonce,
    /// The first record that comes, after the snapshot if there is one.
    pub start_lsn: Lsn,
    /// New records will come as datagrams.
    pub datagrams: bool,
    /// The replica's data is not a prefix, or too old: this snapshot replaces it, from this byte on.
    pub full: Option<(SnapshotName, u64)>,
    /// Where the primary's own records come from.
    pub chain: Chain,
    /// Its history.
    pub lineage: Lineage,
}

/// The fields of a welcome; the nodes of the chain and then branches follow to its end.
pub mod welcome {
    use super::{Field, SNAPSHOT_NAME_BYTES};

    /// [`super::Welcome::proof`].
    pub const PROOF: Field = Field::new("proof", 0, 16);
    /// [`super::Welcome::stream`].
    pub const STREAM: Field = Field::new("stream", 16, 8);
    /// [`super::Welcome::salt`].
    pub const SALT: Field = Field::new("salt", 24, 16);
    /// [`super::Welcome::start_lsn`].
    pub const START_LSN: Field = Field::new("start_lsn", 40, 8);
    /// 1: new records come as datagrams. Other bits are zero.
    pub const FLAGS: Field = Field::new("flags", 48, 4);
    /// Nodes of the chain.
    pub const CHAIN: Field = Field::new("chain", 52, 4);
    /// [`super::Welcome::full`]; zeros if nothing is to be replaced.
    pub const SNAPSHOT: Field = Field::new("snapshot", 56, SNAPSHOT_NAME_BYTES);
    /// The first byte of it that comes.
    pub const SNAPSHOT_OFFSET: Field = Field::new("snapshot_offset", 96, 8);
    /// All of them, in order.
    pub const FIELDS: &[Field] = &[PROOF, STREAM, SALT, START_LSN, FLAGS, CHAIN, SNAPSHOT, SNAPSHOT_OFFSET];
    /// Bytes of all fields.
    pub const BYTES: usize = 104;
}

/// Where a primary stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heartbeat {
    /// The last record that is durable there, or applied if it follows another.
    pub durable_lsn: Lsn,
    /// The records before this one have left as datagrams.
    pub datagrams_lsn: Lsn,
    /// Its time, microseconds since 1970.
    pub unix_us: u64,
    /// The stamp of the latest ack it has read when it wrote this.
    pub echo: u64,
    /// Bytes of records that it has made durable since its start: the distance of two heartbeats in bytes.
    pub log_bytes: u64,
    /// It may itself lack what became durable this long ago; 0 for who follows nobody.
    pub age_us: u64,
    /// Somebody waits for an answer: ack at once.
    pub wants_ack: bool,
}

/// The fields of a heartbeat.
pub mod heartbeat {
    use super::Field;

    /// [`super::Heartbeat::durable_lsn`].
    pub const DURABLE_LSN: Field = Field::new("durable_lsn", 0, 8);
    /// [`super::Heartbeat::datagrams_lsn`].
    pub const DATAGRAMS_LSN: Field = Field::new("datagrams_lsn", 8, 8);
    /// [`super::Heartbeat::unix_us`].
    pub const UNIX_US: Field = Field::new("unix_us", 16, 8);
    /// [`super::Heartbeat::echo`].
    pub const ECHO: Field = Field::new("echo", 24, 8);
    /// [`super::Heartbeat::log_bytes`].
    pub const LOG_BYTES: Field = Field::new("log_bytes", 32, 8);
    /// [`super::Heartbeat::age_us`].
    pub const AGE_US: Field = Field::new("age_us", 40, 8);
    /// 1: ack at once. Other bits are zero.
    pub const FLAGS: Field = Field::new("flags", 48, 4);
    /// All of them, in order.
    pub const FIELDS: &[Field] = &[DURABLE_LSN, DATAGRAMS_LSN, UNIX_US, ECHO, LOG_BYTES, AGE_US, FLAGS];
    /// Bytes of all fields.
    pub const BYTES: usize = 52;
}

/// What a replica has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ack {
    /// Everything up to here can be read there.
    pub applied_lsn: Lsn,
    /// Everything up to here is in its own log; 0 if it keeps none.
    pub durable_lsn: Lsn,
    /// Its own time when it wrote this: the primary sends it back.
    pub stamp: u64,
}

/// The fields of an ack.
pub mod ack {
    use super::Field;

    /// [`super::Ack::applied_lsn`].
    pub const APPLIED_LSN: Field = Field::new("applied_lsn", 0, 8);
    /// [`super::Ack::durable_lsn`].
    pub const DURABLE_LSN: Field = Field::new("durable_lsn", 8, 8);
    /// [`super::Ack::stamp`].
    pub const STAMP: Field = Field::new("stamp", 16, 8);
    /// All of them, in order.
    pub const FIELDS: &[Field] = &[APPLIED_LSN, DURABLE_LSN, STAMP];
    /// Bytes of all fields.
    pub const BYTES: usize = 24;
}

/// Records that a replica asks for again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repair {
    /// The first.
    pub from_lsn: Lsn,
    /// The last.
    pub to_lsn: Lsn,
}

/// The fields of a repair.
pub mod repair {
    use super::Field;

    /// [`super::Repair::from_lsn`].
    pub const FROM_LSN: Field = Field::new("from_lsn", 0, 8);
    /// [`super::Repair::to_lsn`].
    pub const TO_LSN: Field = Field::new("to_lsn", 8, 8);
    /// All of them, in order.
    pub const FIELDS: &[Field] = &[FROM_LSN, TO_LSN];
    /// Bytes of all fields.
    pub const BYTES: usize = 16;
}

/// Bytes of a refusal before its text, UTF-8, which goes to its end: the number of the [`Reason`].
pub const REFUSED_BYTES: usize = 4;
/// The longest text of a refusal.
pub const REFUSED_TEXT_BYTES_MAX: usize = 1024;
/// Bytes of a chunk before its contents: where they stand in the file.
pub const CHUNK_BYTES: usize = 8;
/// Bytes of a live message: the first record that comes as a datagram.
pub const LIVE_BYTES: usize = 8;

const _: () = assert!(is_dense(hello::FIELDS, hello::BYTES));
const _: () = assert!(is_dense(challenge::FIELDS, challenge::BYTES));
const _: () = assert!(is_dense(welcome::FIELDS, welcome::BYTES));
const _: () = assert!(is_dense(heartbeat::FIELDS, heartbeat::BYTES));
const _: () = assert!(is_dense(ack::FIELDS, ack::BYTES));
const _: () = assert!(is_dense(repair::FIELDS, repair::BYTES));

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// See [`Hello`].
    Hello(Hello),
    /// The replica knows the secret.
    Proof([u8; MAC_BYTES]),
    /// See [`Ack`].
    Ack(Ack),
    /// See [`Repair`].
    Repair(Repair),
    /// See [`Challenge`].
    Challenge(Challenge),
    /// See [`Welcome`].
    Welcome(Welcome),
    /// The sender ends the connection.
    Refused(Fault),
    /// Bytes of the snapshot.
    Chunk {
        /// Where they stand in the file.
        offset: u64,
        /// They.
        bytes: Vec<u8>,
    },
    /// A run of records; it parses.
    Records(Vec<u8>),
    /// See [`Heartbeat`].
    Heartbeat(Heartbeat),
    /// From its first record on, records belong to this branch.
    Branch(Branch),
    /// Where the primary's records come from now.
    Chain(Chain),
    /// Records from this one on come as datagrams.
    Live(Lsn),
}

impl Message {
    /// The number of its kind.
    pub fn kind(&self) -> u32 {
        match self {
            Message::Hello(_) => kind::HELLO,
            Message::Proof(_) => kind::PROOF,
            Message::Ack(_) => kind::ACK,
            Message::Repair(_) => kind::REPAIR,
            Message::Challenge(_) => kind::CHALLENGE,
            Message::Welcome(_) => kind::WELCOME,
            Message::Refused(_) => kind::REFUSED,
            Message::Chunk { .. } => kind::CHUNK,
            Message::Records(_) => kind::RECORDS,
            Message::Heartbeat(_) => kind::HEARTBEAT,
            Message::Branch(_) => kind::BRANCH,
            Message::Chain(_) => kind::CHAIN,
            Message::Live(_) => kind::LIVE,
        }
    }

    /// Adds it as a frame.
    pub fn encode(&self, out: &mut Vec<u8>, checksum: Checksum) {
        let start = begin_frame(out, self.kind());
        self.encode_body(out);
        finish_frame(out, start, checksum);
    }

    /// Adds the body of its frame.
    pub fn encode_body(&self, out: &mut Vec<u8>) {
        match self {
            Message::Hello(hello) => hello.encode(out),
            Message::Proof(proof) => out.extend_from_slice(proof),
            Message::Ack(ack) => put_numbers(out, &[ack.applied_lsn.0, ack.durable_lsn.0, ack.stamp]),
            Message::Repair(repair) => put_numbers(out, &[repair.from_lsn.0, repair.to_lsn.0]),
            Message::Challenge(challenge) => {
                out.extend_from_slice(&challenge.node.0);
                out.extend_from_slice(&challenge.nonce);
            }
            Message::Welcome(welcome) => welcome.encode(out),
            Message::Refused(fault) => {
                out.extend_from_slice(&(fault.reason as u32).to_le_bytes());
                let end = fault.text.floor_char_boundary(REFUSED_TEXT_BYTES_MAX);
                out.extend_from_slice(&fault.text.as_bytes()[..end]);
            }
            Message::Chunk { offset, bytes } => {
                out.extend_from_slice(&offset.to_le_bytes());
                out.extend_from_slice(bytes);
            }
            Message::Records(run) => out.extend_from_slice(run),
            Message::Heartbeat(beat) => {
                put_numbers(out, &[beat.durable_lsn.0, beat.datagrams_lsn.0, beat.unix_us]);
                put_numbers(out, &[beat.echo, beat.log_bytes, beat.age_us]);
                out.extend_from_slice(&u32::from(beat.wants_ack).to_le_bytes());
            }
            Message::Branch(branch) => branch.encode(out),
            Message::Chain(chain) => chain.nodes().iter().for_each(|node| out.extend_from_slice(&node.0)),
            Message::Live(lsn) => out.extend_from_slice(&lsn.0.to_le_bytes()),
        }
    }

    /// Reads the body of a frame of this kind.
    pub fn decode(kind: u32, body: Vec<u8>) -> Result<Message, Fault> {
        let length = body.len();
        decode_body(kind, body).ok_or_else(|| {
            Fault::new(
                Reason::Protocol,
                alloc::format!(
                    "expected a message as docs/formats/delta.md has it, found kind {kind} of {length} bytes"
                ),
            )
        })
    }
}

fn put_numbers(out: &mut Vec<u8>, numbers: &[u64]) {
    numbers.iter().for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
}

fn array<const N: usize>(field: Field, bytes: &[u8]) -> [u8; N] {
    field.get(bytes).try_into().expect("a field of its size")
}

fn nodes(bytes: &[u8]) -> Option<Chain> {
    let (nodes, rest) = bytes.as_chunks::<{ NodeId::BYTES }>();
    Chain::new(nodes.iter().copied().map(NodeId).collect()).filter(|_| rest.is_empty())
}

fn decode_body(kind: u32, body: Vec<u8>) -> Option<Message> {
    let bytes = body.as_slice();
    let sized = |size| (bytes.len() == size).then_some(bytes);
    Some(match kind {
        kind::HELLO => Message::Hello(Hello::decode(bytes)?),
        kind::PROOF => Message::Proof(bytes.try_into().ok()?),
        kind::ACK => {
            let bytes = sized(ack::BYTES)?;
            Message::Ack(Ack {
                applied_lsn: Lsn(ack::APPLIED_LSN.u64(bytes)),
                durable_lsn: Lsn(ack::DURABLE_LSN.u64(bytes)),
                stamp: ack::STAMP.u64(bytes),
            })
        }
        kind::REPAIR => {
            let bytes = sized(repair::BYTES)?;
            let (from_lsn, to_lsn) = (Lsn(repair::FROM_LSN.u64(bytes)), Lsn(repair::TO_LSN.u64(bytes)));
            let sane = Lsn::FIRST <= from_lsn && from_lsn <= to_lsn && to_lsn < Lsn::MAX;
            sane.then_some(Message::Repair(Repair { from_lsn, to_lsn }))?
        }
        kind::CHALLENGE => {
            let bytes = sized(challenge::BYTES)?;
            let node = NodeId(array(challenge::NODE, bytes));
            Message::Challenge(Challenge { node, nonce: array(challenge::NONCE, bytes) })
        }
        kind::WELCOME => Message::Welcome(Welcome::decode(bytes)?),
        kind::REFUSED => {
            let (number, text) = bytes.split_first_chunk::<REFUSED_BYTES>()?;
            let reason = Reason::of(u32::from_le_bytes(*number))?;
            if text.len() > REFUSED_TEXT_BYTES_MAX {
                return None;
            }
            // Whatever it is, it goes into a log that somebody reads.
            let printable = |c: char| if c.is_control() { '?' } else { c };
            let text = String::from_utf8_lossy(text).chars().map(printable).collect();
            Message::Refused(Fault { reason, is_peers: true, text })
        }
        kind::CHUNK => {
            let (offset, contents) = bytes.split_first_chunk::<CHUNK_BYTES>()?;
            let offset = u64::from_le_bytes(*offset);
            offset.checked_add(contents.len() as u64).filter(|_| !contents.is_empty())?;
            Message::Chunk { offset, bytes: contents.to_vec() }
        }
        kind::RECORDS => {
            Run::parse(bytes).filter(|run| run.count() > 0)?;
            Message::Records(body)
        }
        kind::HEARTBEAT => {
            let bytes = sized(heartbeat::BYTES)?;
            let flags = heartbeat::FLAGS.u32(bytes);
            let beat = Heartbeat {
                durable_lsn: Lsn(heartbeat::DURABLE_LSN.u64(bytes)),
                datagrams_lsn: Lsn(heartbeat::DATAGRAMS_LSN.u64(bytes)),
                unix_us: heartbeat::UNIX_US.u64(bytes),
                echo: heartbeat::ECHO.u64(bytes),
                log_bytes: heartbeat::LOG_BYTES.u64(bytes),
                age_us: heartbeat::AGE_US.u64(bytes),
                wants_ack: flags == 1,
            };
            let sane = flags <= 1 && beat.durable_lsn.0 < u64::MAX - 1 && beat.datagrams_lsn < Lsn::MAX;
            sane.then_some(Message::Heartbeat(beat))?
        }
        kind::BRANCH => Message::Branch(Branch::decode(sized(BRANCH_BYTES)?)?),
        kind::CHAIN => Message::Chain(nodes(bytes)?),
        kind::LIVE => {
            let lsn = Lsn(u64::from_le_bytes(bytes.try_into().ok()?));
            (Lsn::FIRST..Lsn::MAX).contains(&lsn).then_some(Message::Live(lsn))?
        }
        _ => return None,
    })
}

impl Hello {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.node.0);
        out.extend_from_slice(&self.nonce);
        out.extend_from_slice(&self.last_lsn.0.to_le_bytes());
        for number in [self.capabilities, self.shards, self.port, 0] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        let (partial, bytes) = self.partial.unwrap_or_default();
        partial.encode(out);
        out.extend_from_slice(&bytes.to_le_bytes());
        out.extend_from_slice(&self.partly_lsn.0.to_le_bytes());
        self.lineage.encode(out);
    }

    fn decode(bytes: &[u8]) -> Option<Hello> {
        let (bytes, branches) = bytes.split_at_checked(hello::BYTES)?;
        let partial = SnapshotName::decode(hello::PARTIAL.get(bytes));
        let partial_bytes = hello::PARTIAL_BYTES.u64(bytes);
        let has_partial = partial != SnapshotName::default();
        let sane = match has_partial {
            true => partial.is_sane() && partial_bytes <= partial.length,
            false => partial_bytes == 0,
        };
        let (last_lsn, partly_lsn) = (Lsn(hello::LAST_LSN.u64(bytes)), Lsn(hello::PARTLY_LSN.u64(bytes)));
        let can_be = last_lsn <= partly_lsn && partly_lsn.0 < u64::MAX - 1;
        if !sane || !can_be || hello::RESERVED.u32(bytes) != 0 {
            return None;
        }
        Some(Hello {
            node: NodeId(array(hello::NODE, bytes)),
            nonce: array::<NONCE_BYTES>(hello::NONCE, bytes),
            last_lsn,
            partly_lsn,
            capabilities: hello::CAPABILITIES.u32(bytes),
            shards: hello::SHARDS.u32(bytes),
            port: hello::PORT.u32(bytes),
            partial: has_partial.then_some((partial, partial_bytes)),
            lineage: Lineage::decode(branches)?,
        })
    }
}

impl Welcome {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.proof);
        out.extend_from_slice(&self.stream.to_le_bytes());
        out.extend_from_slice(&self.salt);
        out.extend_from_slice(&self.start_lsn.0.to_le_bytes());
        out.extend_from_slice(&u32::from(self.datagrams).to_le_bytes());
        out.extend_from_slice(&(self.chain.nodes().len() as u32).to_le_bytes());
        let (snapshot, offset) = self.full.unwrap_or_default();
        snapshot.encode(out);
        out.extend_from_slice(&offset.to_le_bytes());
        self.chain.nodes().iter().for_each(|node| out.extend_from_slice(&node.0));
        self.lineage.encode(out);
    }

    /// What the proof is made of, besides hello and challenge: all but itself.
    pub fn proven(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.encode(&mut bytes);
        bytes.split_off(welcome::PROOF.size)
    }

    fn decode(bytes: &[u8]) -> Option<Welcome> {
        let (bytes, rest) = bytes.split_at_checked(welcome::BYTES)?;
        let chain_bytes = (welcome::CHAIN.u32(bytes) as usize).checked_mul(NodeId::BYTES)?;
        let (chain, branches) = rest.split_at_checked(chain_bytes)?;
        let snapshot = SnapshotName::decode(welcome::SNAPSHOT.get(bytes));
        let offset = welcome::SNAPSHOT_OFFSET.u64(bytes);
        let start_lsn = Lsn(welcome::START_LSN.u64(bytes));
        let is_full = snapshot != SnapshotName::default();
        let sane = match is_full {
            true => snapshot.is_sane() && offset <= snapshot.length && start_lsn == snapshot.lsn.next(),
            false => offset == 0,
        };
        let flags = welcome::FLAGS.u32(bytes);
        if !sane || flags > 1 || start_lsn < Lsn::FIRST || start_lsn == Lsn::MAX {
            return None;
        }
        Some(Welcome {
            proof: array(welcome::PROOF, bytes),
            stream: welcome::STREAM.u64(bytes),
            salt: array::<NONCE_BYTES>(welcome::SALT, bytes),
            start_lsn,
            datagrams: flags == 1,
            full: is_full.then_some((snapshot, offset)),
            chain: nodes(chain)?,
            lineage: Lineage::decode(branches)?,
        })
    }
}
