//! HTTP/1.1 over the same commands as RESP: bytes in, responses out.
//!
//! A connection alternates between two phases. In the *head* phase [`head`] looks for the end of a request
//! head and parses it once; [`access`] and [`routes`] turn it into a [`Request`] or a refusal. In the *body*
//! phase [`body`] decodes what belongs to the body straight into the buffer the command will be executed from.
//! Then [`execute`] runs it through the command table like any RESP command (a GET or HEAD of a key goes to
//! the keyspace directly, counted and gated alike) and [`response`] writes the answer.
//!
//! Both phases go on at any byte, search no byte twice and keep nothing a sender has not sent. Execution stops
//! while [`OUTPUT_HIGH_WATER`] bytes of responses wait for their reader. Whatever leaves the end of a request
//! in doubt is answered with `Connection: close` and ends the connection: what follows could be read in two
//! ways, and request smuggling lives on the difference.
//!
//! This module never talks to a socket, never trusts a length and sends no CORS field: pages of other
//! origins may neither write (Origin, Sec-Fetch-Site) nor, by DNS rebinding, read (Host).

mod access;
mod body;
mod conditions;
mod execute;
mod head;
mod response;
mod routes;
#[cfg(test)]
mod tests;

pub(crate) use execute::push_percent_encoded;
pub use head::{HEAD_BYTES_MAX, HEAD_FIELDS_MAX};

use alloc::boxed::Box;
use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;
use core::mem::{self, MaybeUninit};

use self::body::BodyReader;
use self::head::{Framing, HeadScan, Persistence};
use self::response::{DateBlocks, Problem, insert_field, write_problem};
use self::routes::{AtLeast, Method, Operation, Request, Resource};
use crate::command;
use crate::engine::Shared;
use crate::reads::{Refusal, Token, Verdict, Written};
use crate::session::Session;
use crate::time::{Clock, Nanos, Now};

/// Pipelined requests wait while this many bytes of responses are unread.
pub const OUTPUT_HIGH_WATER: usize = 1024 * 1024;
/// The largest body that is read only to be thrown away, so that the connection survives a refusal.
const DISCARDED_BODY_MAX: u64 = 64 * 1024;
/// A scratch buffer that grew beyond this is given back after the request.
const SCRATCH_BYTES_KEPT: usize = 64 * 1024;

/// What one connection remembers between receives.
#[derive(Debug, Default)]
pub struct Connection {
    scan: HeadScan,
    /// The request whose body is arriving.
    pending: Option<Pending>,
    /// The request that waits for a record.
    parked: Option<Box<HopRequest>>,
}

/// A request whose head is understood and whose body is not all there.
#[derive(Debug)]
struct Pending {
    /// What to do when the body is complete; a refusal waits so that the body does not become the next request.
    outcome: Result<Request, Problem>,
    body: BodyReader,
    /// The request's texts, and behind them the body.
    arguments: Vec<u8>,
    persistence: Persistence,
    head_only: bool,
}

/// What all HTTP connections of a shard share: the blocks with this second's date, and scratch buffers.
#[derive(Debug, Default)]
pub struct Responder {
    dates: DateBlocks,
    arguments: Vec<u8>,
    reply: Vec<u8>,
    /// The last Host that was an IP literal or localhost, which no setting can forbid.
    literal_host: Vec<u8>,
    /// When the present run of GETs began, and how many it has.
    get_run: Option<(Nanos, u64)>,
}

impl Responder {
    /// A cleared argument buffer, reused if there is one.
    fn take_arguments(&mut self) -> Vec<u8> {
        mem::take(&mut self.arguments)
    }

    fn give_back_arguments(&mut self, mut arguments: Vec<u8>) {
        if arguments.capacity() <= SCRATCH_BYTES_KEPT {
            arguments.clear();
            self.arguments = arguments;
        }
    }
}

impl Connection {
    /// What it allocates, for the sum of client buffers.
    pub fn buffer_bytes(&self) -> usize {
        let parked = self.parked.as_ref().map_or(0, |parked| parked.arguments.capacity());
        let pending = self.pending.as_ref().map_or(0, |pending| pending.arguments.capacity());
        size_of::<Connection>() + pending + parked
    }
}

/// Bytes arrived. What cannot be executed yet is kept in `session.input`.
pub fn handle_receive(shared: &mut Shared, session: &mut Session, bytes: &[u8], now: Now, clock: &dyn Clock) {
    if session.closing {
        return;
    }
    if session.input.is_empty() {
        let executed = execute_input(shared, session, bytes, now, clock);
        if !session.closing && executed < bytes.len() {
            session.input.extend_from_slice(&bytes[executed..]);
        }
    } else {
        session.input.extend_from_slice(bytes);
        resume(shared, session, now, clock);
    }
}

/// Output was sent: executes input that was kept because too much output waited.
pub fn resume(shared: &mut Shared, session: &mut Session, now: Now, clock: &dyn Clock) {
    if session.closing {
        return;
    }
    let mut input = mem::take(&mut session.input);
    session.input_start += execute_input(shared, session, &input[session.input_start..], now, clock);
    if session.closing || session.input_start == input.len() {
        session.input_start = 0;
    } else {
        // What was executed is dropped once it is the larger part: a byte is moved once, on average.
        if session.input_start > input.len() / 2 {
            input.drain(..session.input_start);
            session.input_start = 0;
        }
        session.input = input;
    }
    session.closing |= session.input_ended && !is_paused(session) && !is_parked(session);
}

/// The peer sends nothing more: complete requests are still answered, an incomplete one is forgotten.
pub fn handle_receive_end(session: &mut Session) {
    session.input_ended = true;
    session.closing |= !is_paused(session) && !is_parked(session);
}

/// Whether complete requests may be waiting: for the peer to read, or for CLIENT UNPAUSE.
#[inline]
pub fn is_paused(session: &Session) -> bool {
    !session.input.is_empty()
        && (session.paused_client || session.paused_hops || session.unsent() >= OUTPUT_HIGH_WATER)
}

/// Whether a request waits for a record.
fn is_parked(session: &Session) -> bool {
    session.http.as_ref().is_some_and(|state| state.parked.is_some())
}

/// The server stops: a request that waits for a record is told that it is not there.
pub(crate) fn end_wait(shared: &mut Shared, session: &mut Session, now: Now) {
    let parked = session.http.as_mut().and_then(|state| state.parked.take());
    let Some(HopRequest { request, persistence, .. }) = parked.map(|parked| *parked) else { return };
    shared.http.dates.refresh(now);
    let wanted = request.at_least.map_or(Token { branch: None, lsn: 0 }, |at_least| at_least.token);
    let problem = not_there(shared, wanted, Verdict::Behind);
    refuse(shared, session, problem, persistence, request.method == Method::Head);
}

/// Says that there are too many connections already.
pub fn refuse_connection(output: &mut Vec<u8>, now: Now) {
    let mut dates = DateBlocks::default();
    dates.refresh(now);
    let problem =
        Problem::new(503, "The server has as many connections as it may (maxclients). Try again later.");
    write_problem(output, &dates, &problem, Persistence::Close, false);
}

/// Executes every complete request at the front of `data` and returns how many bytes that took; a partial body
/// is taken too. Stops early when too much output waits or the connection is to be closed.
fn execute_input(
    shared: &mut Shared,
    session: &mut Session,
    data: &[u8],
    now: Now,
    clock: &dyn Clock,
) -> usize {
    if session.is_stream {
        return data.len();
    }
    let Some(mut state) = session.http.take() else { return data.len() };
    shared.http.dates.refresh(now);
    if session.output.capacity() == 0 {
        session.output = shared.pool.take();
    }
    // Its wait is over, whatever ended it.
    if let Some(parked) = state.parked.take_if(|_| !session.gathers) {
        let HopRequest { request, mut arguments, persistence } = *parked;
        let is_head = request.method == Method::Head;
        answer(shared, session, &mut state, Ok(request), &mut arguments, persistence, is_head, now, clock);
        shared.http.give_back_arguments(arguments);
    }
    let mut at = 0;
    while at < data.len()
        && !session.closing
        && !session.paused_hops
        && !session.is_stream
        && session.unsent() < OUTPUT_HIGH_WATER
    {
        // CLIENT PAUSE, even of writes only, holds everything here: what a request will be is not known yet.
        if shared.pause.holds(true) {
            if !session.paused_client {
                session.paused_client = true;
                shared.postponed.push(session.connection);
            }
            break;
        }
        let rest = &data[at..];
        if state.pending.is_some() {
            at += continue_body(shared, session, &mut state, rest, now, clock);
        } else if rest[0] == b'\r' && (rest.len() == 1 || rest[1] == b'\n') {
            // Some clients send CRLF after a body; RFC 9112, section 2.2 asks to overlook it.
            if rest.len() == 1 {
                break;
            }
            at += 2;
        } else {
            match state.scan.advance(rest) {
                Ok(Some(length)) => {
                    state.scan = HeadScan::default();
                    at += length;
                    begin_request(shared, session, &mut state, &rest[..length], now, clock);
                }
                Ok(None) => break,
                Err(problem) => refuse(shared, session, problem, Persistence::Close, false),
            }
        }
    }
    end_get_run(shared, clock);
    session.http = Some(state);
    at
}

/// Shares the time since the first of a run of GETs among them: reading the clock for each would cost a tenth of it.
fn end_get_run(shared: &mut Shared, clock: &dyn Clock) {
    if let Some((started, count)) = shared.http.get_run.take()
        && let Some(get) = command::lookup(b"get")
    {
        let elapsed = clock.monotonic().since(started);
        shared.metrics.note_time(get.id, Nanos(elapsed.0 / count), count);
    }
}

/// A complete head: a request without a body is executed at once.
fn begin_request(
    shared: &mut Shared,
    session: &mut Session,
    state: &mut Connection,
    bytes: &[u8],
    now: Now,
    clock: &dyn Clock,
) {
    let mut slots = [const { MaybeUninit::uninit() }; HEAD_FIELDS_MAX];
    let head = match head::parse(bytes, &mut slots) {
        Ok(head) => head,
        Err(problem) => return refuse(shared, session, problem, Persistence::Close, false),
    };
    shared.metrics.http_requests += 1;
    let mut arguments = shared.http.take_arguments();
    let outcome = routes::route(shared, session, &head, &mut arguments);
    let head_only = head.method == "HEAD";
    let (keep, limit) = match &outcome {
        Ok(request) if request.method_takes_value() => (true, routes::value_bytes_max(shared)),
        _ => (false, DISCARDED_BODY_MAX),
    };
    let body = match head.framing {
        Framing::Absent | Framing::Length(0) => {
            answer(shared, session, state, outcome, &mut arguments, head.persistence, head_only, now, clock);
            return shared.http.give_back_arguments(arguments);
        }
        Framing::Length(length) => BodyReader::with_length(length, keep),
        Framing::Chunked => BodyReader::chunked(limit, keep),
    };
    let too_large = matches!(head.framing, Framing::Length(length) if length > limit);
    // Whether a refused body comes at all is unknown after an expectation, and where it ends, with chunks.
    let stays_unread = head.expects_continue || head.framing == Framing::Chunked;
    match outcome {
        Err(problem) if too_large || stays_unread => {
            refuse(shared, session, problem, Persistence::Close, head_only);
            shared.http.give_back_arguments(arguments);
        }
        Ok(_) if too_large => {
            refuse(shared, session, body::too_large(limit), Persistence::Close, head_only);
            shared.http.give_back_arguments(arguments);
        }
        outcome => {
            if head.expects_continue {
                session.output.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
            }
            state.pending =
                Some(Pending { outcome, body, arguments, persistence: head.persistence, head_only });
        }
    }
}

/// Reads on in a body and executes its request when it is complete. Returns the bytes taken.
fn continue_body(
    shared: &mut Shared,
    session: &mut Session,
    state: &mut Connection,
    data: &[u8],
    now: Now,
    clock: &dyn Clock,
) -> usize {
    let Some(mut pending) = state.pending.take() else { return 0 };
    match pending.body.advance(data, &mut pending.arguments) {
        Ok(taken) => {
            if pending.body.is_done() {
                let Pending { outcome, mut arguments, persistence, head_only, .. } = pending;
                answer(shared, session, state, outcome, &mut arguments, persistence, head_only, now, clock);
                shared.http.give_back_arguments(arguments);
            } else {
                state.pending = Some(pending);
            }
            taken
        }
        Err(problem) => {
            refuse(shared, session, problem, Persistence::Close, pending.head_only);
            0
        }
    }
}

/// Executes or refuses a request that is all there.
#[allow(clippy::too_many_arguments, reason = "the parts of one request, two of which callers keep")]
fn answer(
    shared: &mut Shared,
    session: &mut Session,
    state: &mut Connection,
    outcome: Result<Request, Problem>,
    arguments: &mut Vec<u8>,
    persistence: Persistence,
    head_only: bool,
    now: Now,
    clock: &dyn Clock,
) {
    let outcome = outcome.and_then(|request| {
        debug_assert_eq!(head_only, request.method == Method::Head);
        if shared.sampler.is_timing() {
            shared.sampler.note(request.method.changes_state());
        }
        if let Some(at_least) = request.at_least
            && !has_record(shared, session, state, &request, at_least, arguments, persistence, now)?
        {
            return Ok(false);
        }
        if shared.is_sharded && leave(shared, session, &request, arguments, persistence) {
            return Ok(false);
        }
        session.durability = request.durability;
        let begun = Begun::of(session);
        let outcome = execute::execute(shared, session, &request, arguments, persistence, now, clock);
        shared.conclude(session);
        begun.name_write(shared, session, &request);
        // The next request may ask for another.
        session.durability = None;
        outcome.map(|()| true)
    });
    match outcome {
        Ok(false) => {}
        Ok(true) => session.closing |= persistence == Persistence::Close && !session.is_stream,
        Err(problem) => refuse(shared, session, problem, persistence, head_only),
    }
}

/// Where a request's response begins, and what its connection had written before.
struct Begun {
    at: usize,
    last_write: Written,
}

impl Begun {
    fn of(session: &Session) -> Begun {
        Begun { at: session.output.len(), last_write: session.last_write }
    }

    /// Tells with the response which record the write became, if it was one.
    fn name_write(self, shared: &Shared, session: &mut Session, request: &Request) {
        let written = session.last_write;
        if written != self.last_write && request.method.changes_state() && session.output.len() > self.at {
            let token = shared.token_of(written).to_string();
            insert_field(&mut session.output, self.at, "X-Millrace-LSN", token.as_bytes());
        }
    }
}

/// Whether the data has what a request names; if it may come, the request waits (`false`).
#[allow(clippy::too_many_arguments, reason = "the parts of one request")]
fn has_record(
    shared: &mut Shared,
    session: &mut Session,
    state: &mut Connection,
    request: &Request,
    AtLeast { token, wait_ms }: AtLeast,
    arguments: &mut Vec<u8>,
    persistence: Persistence,
    now: Now,
) -> Result<bool, Problem> {
    match shared.verdict(token) {
        Verdict::Now => Ok(true),
        Verdict::Behind if wait_ms > 0 => {
            let until = Nanos(now.monotonic.0.saturating_add(wait_ms * 1_000_000));
            // It waits once.
            let request = Request { at_least: Some(AtLeast { token, wait_ms: 0 }), ..*request };
            state.parked =
                Some(Box::new(HopRequest { request, arguments: mem::take(arguments), persistence }));
            shared.wait_for_record(session, token, Some(until));
            Ok(false)
        }
        verdict => Err(not_there(shared, token, verdict)),
    }
}

/// 409, with where to ask instead.
fn not_there(shared: &mut Shared, wanted: Token, verdict: Verdict) -> Problem {
    let Refusal { code, text } = shared.refuse_token(wanted, verdict);
    let mut problem = Problem::new(409, format!("{code} {text}"));
    problem.fields.push(("X-Millrace-Applied-LSN", shared.visible_lsn().to_string()));
    problem.fields.extend(shared.standing().http_primary.map(|primary| ("X-Millrace-Primary", primary)));
    problem
}

/// A request that another shard executes, or this one with others in hand.
#[derive(Debug)]
pub struct HopRequest {
    request: Request,
    arguments: Vec<u8>,
    persistence: Persistence,
}

impl HopRequest {
    /// Executes it and writes the response to `session`, which is a stand-in on another shard than the connection's.
    pub(crate) fn execute(
        &mut self,
        shared: &mut Shared,
        session: &mut Session,
        now: Now,
        clock: &dyn Clock,
    ) {
        shared.http.dates.refresh(now);
        let HopRequest { request, arguments, persistence } = self;
        if shared.has_guests() {
            shared.deselect();
        }
        session.durability = request.durability;
        let begun = Begun::of(session);
        // Asked again where it is executed: what was there when it left may have been replaced by another history since.
        let absent = request.at_least.map(|at_least| (at_least.token, shared.verdict(at_least.token)));
        let outcome = match absent.filter(|(_, verdict)| *verdict != Verdict::Now) {
            Some((token, verdict)) => Err(not_there(shared, token, verdict)),
            None => execute::execute(shared, session, request, arguments, *persistence, now, clock),
        };
        match outcome {
            Ok(()) => session.closing |= *persistence == Persistence::Close && !session.is_stream,
            Err(problem) => refuse(shared, session, problem, *persistence, request.method == Method::Head),
        }
        end_get_run(shared, clock);
        shared.conclude(session);
        begun.name_write(shared, session, request);
        session.durability = None;
    }
}

/// Sends a request to the shards that have to execute it; `false`: this one has.
fn leave(
    shared: &mut Shared,
    session: &mut Session,
    request: &Request,
    arguments: &mut Vec<u8>,
    persistence: Persistence,
) -> bool {
    let place = shared.fleet.place;
    let shard = match (request.resource, request.operation) {
        (Resource::Key, _) if request.method != Method::Options => {
            place.shard_of(routes::slice(arguments, request.key))
        }
        (_, Operation::List { cursor, .. }) => (cursor % place.count as u64) as usize,
        (Resource::Metrics, _) | (Resource::Invalidations, Operation::Stream { .. }) => {
            let request =
                Box::new(HopRequest { request: *request, arguments: mem::take(arguments), persistence });
            shared.gather_request(session, place.everybody(), request);
            return true;
        }
        _ => return false,
    };
    if shard == place.index {
        return false;
    }
    let request = Box::new(HopRequest { request: *request, arguments: mem::take(arguments), persistence });
    shared.hop_request(session, shard, request);
    session.paused_hops = true;
    true
}

/// Answers with a problem document. Whoever cannot tell where the next request begins passes `Close`.
fn refuse(
    shared: &mut Shared,
    session: &mut Session,
    problem: Problem,
    persistence: Persistence,
    head_only: bool,
) {
    if problem.status >= 500 {
        shared.metrics.http_responses_5xx += 1;
    } else {
        shared.metrics.http_responses_4xx += 1;
    }
    write_problem(&mut session.output, &shared.http.dates, &problem, persistence, head_only);
    session.closing |= persistence == Persistence::Close;
}
