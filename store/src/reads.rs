//! Reads that want at least some record: answered now, made to wait a bounded time, or refused; never wrongly.
//!
//! A client is told with its write which record that became: a [`Token`]. It gives the token back with a read, on
//! whichever node, and that node answers from data that has the record, or says that it cannot. What a replica has, and
//! which histories it knows, is for [`crate::replication`] to say.
//!
//! Who has to wait is parked: its connection executes nothing more until the record is there or its time is over, like one
//! in WAITAOF, and the shard goes on. Each connection waits for one record at a time, so `maxclients` bounds the table.
//!
//! A primary makes nobody wait: what it does not have is not on its way to it.

use crate::engine::{Engine, Shared, StandingClock};
use crate::protocol::http;
use crate::protocol::reply::Reply;
use crate::protocol::resp::parse_integer;
use crate::replication::Hindrance;
use crate::session::{ConnectionId, Durability, ReplyMode, Session};
use crate::time::{Nanos, Now};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::{String, ToString};
use core::fmt;

/// How long a read waits over HTTP that does not say it.
pub const WAIT_MS_DEFAULT: u64 = 1000;
/// The longest it may ask for.
pub const WAIT_MS_MAX: u64 = 60_000;
/// How often waits are looked at although nothing else happens. Usually something does: whoever deals records to a replica's
/// shards wakes them.
const LOOK: Nanos = Nanos(10_000_000);

/// Names a record: what a client was told with its write. An LSN alone can lie: after a failover another record may have
/// it, so the branch of the history goes with it (`docs/adr/0012-replication-is-a-pure-crate.md`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// The branch, where the node that told it has one.
    pub branch: Option<u64>,
    /// The record's number; 0: before all records.
    pub lsn: u64,
}

impl Token {
    /// `0123456789abcdef:42`, or `42` for whichever record has the number.
    pub fn parse(text: &[u8]) -> Option<Token> {
        let (branch, lsn) = match memchr::memchr(b':', text) {
            None => (None, text),
            Some(16) => {
                let digits = core::str::from_utf8(&text[..16]).ok()?;
                // A sign would do for a digit.
                let branch = u64::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+'))?;
                (Some(branch), &text[17..])
            }
            Some(_) => return None,
        };
        let lsn = u64::try_from(parse_integer(lsn)?).ok()?;
        Some(Token { branch, lsn })
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.branch {
            Some(branch) => write!(f, "{branch:016x}:{}", self.lsn),
            None => write!(f, "{}", self.lsn),
        }
    }
}

/// The last write of a connection: the record that it became, and the branch of the history that this was in. A number
/// alone would name another record once the server has followed another primary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Written {
    /// 0: nothing was written.
    pub(crate) lsn: u64,
    /// 0: the server kept no history for others then.
    pub(crate) branch: u64,
}

impl Written {
    fn token(self) -> Token {
        Token { branch: (self.branch != 0).then_some(self.branch), lsn: self.lsn }
    }
}

/// What a token looks like, for errors.
pub(crate) const FORM: &str = "16 hexadecimal digits, a colon and a number, or a number alone";

/// What a node says to a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The data has the record.
    Now,
    /// It may come.
    Behind,
    /// It is not there and will not come by itself.
    Absent,
    /// It was lost in a failover, or is older than what is remembered of the history.
    Lost,
}

/// What a node is, for whoever asks where to go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// It follows another one.
    pub(crate) is_replica: bool,
    /// Whom it follows, as HOST:PORT.
    pub(crate) primary: Option<String>,
    /// The same for HTTP, once the primary has said it.
    pub(crate) http_primary: Option<String>,
    /// Why it should be asked nothing now: it has no data yet, or old data.
    pub(crate) trouble: Option<String>,
}

/// A client that waits.
#[derive(Clone, Copy, Debug)]
struct Wait {
    wanted: Token,
    until: Nanos,
    /// CLIENT REPLY: nobody wants the answer.
    silent: bool,
}

/// Reads that name a record: those that wait, and how they ended.
#[derive(Debug, Default)]
pub struct Reads {
    waits: BTreeMap<ConnectionId, Wait>,
    by_lsn: BTreeSet<(u64, ConnectionId)>,
    by_end: BTreeSet<(Nanos, ConnectionId)>,
    /// When they were last looked at.
    looked: Nanos,
    /// Reads that had to wait.
    pub waited: u64,
    /// Reads that waited, or could not wait, in vain.
    pub behind: u64,
    /// Reads of what is in no history here.
    pub lost: u64,
}

impl Reads {
    /// Clients that wait.
    pub fn waits(&self) -> usize {
        self.waits.len()
    }

    /// The first record that any of them waits for.
    pub fn first_awaited(&self) -> Option<u64> {
        self.by_lsn.first().map(|entry| entry.0)
    }

    /// When to look again, at the latest.
    pub(crate) fn next_look(&self) -> Option<Nanos> {
        let end = self.by_end.first()?.0;
        Some(end.min(Nanos(self.looked.0.saturating_add(LOOK.0))))
    }

    fn forget(&mut self, connection: ConnectionId) -> Option<Wait> {
        let wait = self.waits.remove(&connection)?;
        self.by_lsn.remove(&(wait.wanted.lsn, connection));
        self.by_end.remove(&(wait.until, connection));
        Some(wait)
    }
}

/// Why a token is refused: for a client, with the code that Redis' clients tell errors by.
pub(crate) struct Refusal {
    pub(crate) code: &'static str,
    pub(crate) text: String,
}

impl Shared {
    /// The last record that a read sees: on a primary it may not be durable yet, and the reply waits for that.
    pub(crate) fn visible_lsn(&self) -> u64 {
        match &self.journal {
            Some(journal) if !self.is_replica() => journal.latest_lsn(),
            // Or it has been one, and keeps no log: nothing numbers what it writes itself.
            _ => self.replication.state.dealt_lsn(),
        }
    }

    /// Whether this shard, or the server, follows another.
    pub(crate) fn is_replica(&self) -> bool {
        self.replication.is_following() || self.replication.state.is_replica()
    }

    /// Whether a read that begins now sees a record, whatever shard it is executed on.
    pub(crate) fn verdict(&self, wanted: Token) -> Verdict {
        let Token { branch, lsn } = wanted;
        let state = &self.replication.state;
        // First how far the data goes, then the branch: while a snapshot is installed they change the other way round, and
        // a number of the new history must not be held against the branch before.
        let visible = self.visible_lsn();
        let other = branch.filter(|&branch| lsn > 0 && branch != state.branch().0);
        // Whoever does not follow its primary now may find that the history has gone on in another way.
        let may_turn = self.is_replica() && !state.is_linked();
        if lsn > visible {
            return match other {
                _ if self.is_replica() => Verdict::Behind,
                None => Verdict::Absent,
                // Nothing will be added to a branch that has ended.
                Some(_) => Verdict::Lost,
            };
        }
        let edge = self.replication.edge.as_ref();
        match other {
            Some(branch) if edge.is_some_and(|edge| edge.holds_record(branch, lsn)) => Verdict::Now,
            Some(_) if may_turn => Verdict::Behind,
            Some(_) => Verdict::Lost,
            None => Verdict::Now,
        }
    }

    /// A write that was executed just now. Nothing is written while a server goes from one branch to another.
    pub(crate) fn written(&self, lsn: u64) -> Written {
        Written { lsn, branch: self.replication.state.branch().0 }
    }

    /// The name of a write for its client.
    pub(crate) fn token_of(&self, written: Written) -> Token {
        written.token()
    }

    /// Which of two writes of a connection on two shards came later. Where the server has followed another meanwhile that
    /// is the one in the present branch, whatever the numbers.
    pub(crate) fn later(&self, known: Written, told: Written) -> Written {
        let present = self.replication.state.branch().0;
        match () {
            _ if told.lsn == 0 => known,
            _ if known.branch == told.branch => Written { lsn: known.lsn.max(told.lsn), ..told },
            _ if known.lsn > 0 && known.branch == present => known,
            _ => told,
        }
    }

    /// Whether a write of a connection is in the history that this server has now. What was acknowledged in one history
    /// is not said to be anywhere by its position in another.
    pub(crate) fn has_kept(&self, written: Written) -> bool {
        let present = self.replication.state.branch().0;
        let edge = self.replication.edge.as_ref();
        written.lsn == 0
            || written.branch == present
            || edge.is_some_and(|edge| edge.holds_record(written.branch, written.lsn))
    }

    /// What a client is told that asks for a write of its own which [is not kept](Self::has_kept).
    pub(crate) fn refuse_lost(&mut self, written: Written) -> String {
        self.reads.lost += 1;
        Shared::lost_text(written)
    }

    /// The same for one whose wait ends so.
    pub(crate) fn lost_text(written: Written) -> String {
        let name = written.token();
        format!(
            "LOST the last write of this connection, the record {name}, is not in this server's history: it was lost when \
             the server followed another, or is older than what is remembered. Read what is there before you write again"
        )
    }

    /// What this node is.
    pub(crate) fn standing(&self) -> Standing {
        let is_replica = self.is_replica();
        if !is_replica {
            return Standing::default();
        }
        let upstream = self.replication.edge.as_ref().and_then(|edge| edge.report().upstream);
        let address = |port: u16| {
            let upstream = upstream.as_ref().filter(|_| port > 0)?;
            // A colon makes it an IPv6 address.
            let host = &upstream.host;
            Some(if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") })
        };
        let trouble = match self.replication.state.hindrance() {
            Hindrance::None => None,
            Hindrance::Loading => Some(String::from("its data is on its way from the primary")),
            Hindrance::Stale => {
                Some(String::from("it may be further behind the primary than replica-max-lag"))
            }
        };
        let (port, http_port) =
            upstream.as_ref().map_or((0, 0), |upstream| (upstream.port, upstream.http_port));
        Standing { is_replica, primary: address(port), http_primary: address(http_port), trouble }
    }

    /// Parks a connection until the record is there, until then at most (`None`: for ever).
    pub(crate) fn wait_for_record(&mut self, session: &mut Session, wanted: Token, until: Option<Nanos>) {
        let silent = matches!(session.reply_mode, ReplyMode::Off | ReplyMode::Skip);
        let until = until.unwrap_or(Nanos(u64::MAX));
        let reads = &mut self.reads;
        reads.forget(session.connection);
        reads.waits.insert(session.connection, Wait { wanted, until, silent });
        reads.by_lsn.insert((wanted.lsn, session.connection));
        reads.by_end.insert((until, session.connection));
        reads.waited += 1;
        session.paused_hops = true;
        session.gathers = true;
    }

    /// The connection ends: it waits for nothing more.
    pub(crate) fn forget_wait(&mut self, connection: ConnectionId) {
        if !self.reads.waits.is_empty() {
            self.reads.forget(connection);
        }
    }

    /// Counts a verdict that is not "now", and puts it into words.
    pub(crate) fn refuse_token(&mut self, wanted: Token, verdict: Verdict) -> Refusal {
        let standing = self.standing();
        if verdict == Verdict::Lost {
            self.reads.lost += 1;
            let text = format!(
                "the record {wanted} is not in this server's history: it was lost in a failover, or is older than what \
                 is remembered. What was written with it may be gone; read without it"
            );
            return Refusal { code: "LOST", text };
        }
        self.reads.behind += 1;
        let has = self.visible_lsn();
        let wanted = wanted.lsn;
        let text = match (standing.is_replica, standing.primary) {
            (true, Some(primary)) => {
                format!(
                    "expected record {wanted}, found records up to {has}; ask again later, or the primary, {primary}"
                )
            }
            (true, None) => format!("expected record {wanted}, found records up to {has}; ask again later"),
            (false, _) if self.journal.is_none() => {
                String::from("this server keeps no log, so its writes have no numbers (durability is off)")
            }
            (false, _) => format!(
                "expected record {wanted}, found records up to {has}, and this is a primary: nothing more is on its way"
            ),
        };
        Refusal { code: "BEHIND", text }
    }

    /// The next client whose wait is over. Over RESP it has its reply, over HTTP its request goes on; both may go on.
    fn end_read(&mut self, now: Now) -> Option<ConnectionId> {
        let (visible, is_replica) = (self.visible_lsn(), self.is_replica());
        let mut coming = self.reads.by_lsn.iter().take_while(|(lsn, _)| *lsn <= visible || !is_replica);
        let over = coming
            .find(|(_, connection)| self.verdict(self.reads.waits[connection].wanted) != Verdict::Behind);
        let over = over.copied();
        let late = self.reads.by_end.first().filter(|entry| entry.0 <= now.monotonic);
        let connection = over.map(|entry| entry.1).or(late.map(|entry| entry.1))?;
        let wait = self.reads.forget(connection)?;
        let Some(mut session) = self.sessions.take(connection) else { return Some(connection) };
        session.gathers = false;
        if !session.aborted && session.http.is_none() {
            let start = session.output.len();
            self.reply_to_token(&mut session, wait.wanted);
            if wait.silent {
                session.output.truncate(start);
            }
        }
        self.sessions.insert(session);
        Some(connection)
    }

    /// What WAITLSN answers now.
    pub(crate) fn reply_to_token(&mut self, session: &mut Session, wanted: Token) {
        let start = session.output.len();
        match self.verdict(wanted) {
            Verdict::Now => Reply::new(&mut session.output, session.resp3).ok(),
            verdict => {
                let Refusal { code, text } = self.refuse_token(wanted, verdict);
                Reply::new(&mut session.output, session.resp3).error(&format!("{code} {text}"));
                self.metrics.note_error(&session.output[start..]);
            }
        }
    }

    /// The token of the last write of a connection. It is told when the record is what its client was promised.
    /// An error: it cannot be told, for this reason.
    pub(crate) fn last_token(&mut self, session: &mut Session) -> Option<Result<String, String>> {
        let written = session.last_write;
        if written.lsn == 0 {
            return None;
        }
        let (lsn, present) = (written.lsn, self.replication.state.branch().0);
        if written.branch == 0 && present != 0 && !self.has_kept(written) {
            // Its number alone would be taken for another record's.
            return Some(Err(self.refuse_lost(written)));
        }
        // A branch ends when all of it is durable.
        if written.branch == present
            && self.durability_of(session) == Durability::Always
            && self.journal.as_ref().is_some_and(|journal| lsn > journal.durable_lsn())
        {
            session.gate = session.gate.max(lsn);
        }
        Some(Ok(self.token_of(written).to_string()))
    }
}

impl Engine {
    /// There may be news for those who wait for records: answers whoever need not wait any more.
    #[cold]
    pub(crate) fn end_reads(&mut self, now: Now) {
        let clock = StandingClock(now.monotonic);
        self.shared_mut().reads.looked = now.monotonic;
        while let Some(connection) = self.shared_mut().end_read(now) {
            self.resume(connection, now, &clock);
        }
    }

    /// The server stops: nobody waits any longer.
    #[cold]
    pub(crate) fn abandon_reads(&mut self, now: Now) {
        let shared = self.shared_mut();
        while let Some((&connection, _)) = shared.reads.waits.first_key_value() {
            let Some(wait) = shared.reads.forget(connection) else { continue };
            let Some(mut session) = shared.sessions.take(connection) else { continue };
            session.gathers = false;
            if session.http.is_some() {
                http::end_wait(shared, &mut session, now);
            } else if !wait.silent {
                shared.reply_to_token(&mut session, wait.wanted);
            }
            shared.sessions.insert(session);
        }
    }

    /// The first record that anybody waits for in [`Reads`].
    pub fn first_awaited_record(&self) -> Option<u64> {
        self.shared.as_ref()?.reads.first_awaited()
    }
}
