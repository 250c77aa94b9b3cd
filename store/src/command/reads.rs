//! CLIENT LSN and WAITLSN: read on any node what was written on the primary.
//!
//! WAITLSN is a command before the reads and not a property of the connection: a pool hands connections from one
//! caller to the next, and what one of them waited for must not hold up, or be lost on, the others.

use super::{Call, integer, reply};
use crate::reads::{FORM, Token, Verdict};
use crate::time::Nanos;
use alloc::format;

/// CLIENT LSN
pub fn client_lsn(call: &mut Call<'_>) {
    match call.engine.last_token(call.session) {
        Some(Ok(token)) => reply!(call).bulk(token.as_bytes()),
        Some(Err(why)) => reply!(call).error(&why),
        None => reply!(call).null(),
    }
}

/// WAITLSN token timeout
pub fn waitlsn(call: &mut Call<'_>) {
    let Some(wanted) = Token::parse(call.args.at(1)) else {
        let text = format!("ERR a token is what CLIENT LSN or X-Millrace-LSN said: {FORM}");
        return reply!(call).error(&text);
    };
    let timeout = match integer(call.args.at(2)) {
        None => return reply!(call).error("ERR timeout is not an integer or out of range"),
        Some(..0) => return reply!(call).error("ERR timeout is negative"),
        Some(timeout) => timeout as u64,
    };
    // Within a transaction nothing waits, as with WAIT.
    if call.session.executing > 0 || call.engine.verdict(wanted) != Verdict::Behind {
        return call.engine.reply_to_token(call.session, wanted);
    }
    let until = call.now.monotonic.0.saturating_add(timeout.saturating_mul(1_000_000));
    call.engine.wait_for_record(call.session, wanted, (timeout > 0).then_some(Nanos(until)));
}
