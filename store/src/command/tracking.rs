//! CLIENT TRACKING, CACHING, TRACKINGINFO and GETREDIR: what a client asks for. What becomes of it is in
//! [`crate::tracking`].

use super::{Call, c_string, integer, is_word, reply};
use crate::session::Session;
use crate::tracking::{Mode, Target};
use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use core::ops::Bound;

/// `CLIENT TRACKING ON|OFF [REDIRECT id] [PREFIX prefix …] [BCAST] [OPTIN] [OPTOUT] [NOLOOP]`
pub fn client_tracking(call: &mut Call<'_>) {
    let args = call.args;
    let (mut redirect, mut broadcast, mut opt_in, mut opt_out, mut no_loop) =
        (None, false, false, false, false);
    let mut prefixes: Vec<&[u8]> = Vec::new();
    let mut at = 3;
    while at < args.len() {
        let (option, more) = (args.at(at), args.len() - at - 1);
        if is_word(option, "redirect") && more > 0 {
            at += 1;
            if redirect.is_some() {
                return reply!(call).error("ERR A client can only redirect to a single other client");
            }
            let Some(id) = integer(args.at(at)) else {
                return reply!(call).error("ERR value is not an integer or out of range");
            };
            redirect = find(call, id);
            if redirect.is_none() {
                return reply!(call).error("ERR The client ID you want redirect to does not exist");
            }
        } else if is_word(option, "bcast") {
            broadcast = true;
        } else if is_word(option, "optin") {
            opt_in = true;
        } else if is_word(option, "optout") {
            opt_out = true;
        } else if is_word(option, "noloop") {
            no_loop = true;
        } else if is_word(option, "prefix") && more > 0 {
            at += 1;
            prefixes.push(args.at(at));
        } else {
            return call.syntax_error();
        }
        at += 1;
    }
    if is_word(args.at(2), "off") {
        call.engine.stop_tracking(call.session);
        return reply!(call).ok();
    }
    if !is_word(args.at(2), "on") {
        return call.syntax_error();
    }
    if let Some(text) = mismatch(call.session, broadcast, opt_in, opt_out, !prefixes.is_empty()) {
        return reply!(call).error(text);
    }
    let mode = match (broadcast, opt_in, opt_out) {
        (true, ..) => Mode::Broadcast,
        (_, true, _) => Mode::OptIn,
        (_, _, true) => Mode::OptOut,
        _ => Mode::Reads,
    };
    if mode == Mode::Broadcast
        && let Some(text) = overlap(call.session, &prefixes)
    {
        return reply!(call).error_bytes(&text);
    }
    if !call.engine.has_room_for_prefixes(&prefixes) {
        return reply!(call).error("ERR too many prefixes: tracking-table-max-pairs bounds them, too");
    }
    call.engine.start_tracking(call.session, mode, no_loop, redirect, &prefixes);
    reply!(call).ok();
}

/// The client of this id, whichever shard it is on. One that speaks HTTP cannot be told anything.
fn find(call: &Call<'_>, id: i64) -> Option<Target> {
    let target =
        |session: &Session| Target { id: session.id, shard: session.home, connection: session.connection };
    if call.session.id as i64 == id {
        return Some(target(call.session));
    }
    let mut others = call
        .engine
        .all()
        .flat_map(|shard| shard.sessions.iter())
        .filter(|other| !other.left && other.http.is_none());
    others.find(|other| other.id as i64 == id).map(target)
}

/// Options that do not go together, or not with what the client asked for before; in the order in which Redis asks.
fn mismatch(
    session: &Session,
    broadcast: bool,
    opt_in: bool,
    opt_out: bool,
    has_prefixes: bool,
) -> Option<&'static str> {
    let before = session.tracking.as_deref().filter(|tracking| tracking.is_on).map(|tracking| tracking.mode);
    if !broadcast && has_prefixes {
        return Some("ERR PREFIX option requires BCAST mode to be enabled");
    }
    if before.is_some_and(|mode| (mode == Mode::Broadcast) != broadcast) {
        return Some(
            "ERR You can't switch BCAST mode on/off before disabling tracking for this client, and then re-enabling it \
             with a different mode.",
        );
    }
    if broadcast && (opt_in || opt_out) {
        return Some("ERR OPTIN and OPTOUT are not compatible with BCAST");
    }
    if opt_in && opt_out {
        return Some("ERR You can't specify both OPTIN mode and OPTOUT mode");
    }
    if (opt_in && before == Some(Mode::OptOut)) || (opt_out && before == Some(Mode::OptIn)) {
        return Some(
            "ERR You can't switch OPTIN/OPTOUT mode before disabling tracking for this client, and then re-enabling it \
             with a different mode.",
        );
    }
    None
}

/// Whether a key could begin with two of the client's prefixes: it would be told twice. A command can bring a million of
/// them, so they are not laid beside each other one by one; what is said is what Redis says, which does.
fn overlap(session: &Session, prefixes: &[&[u8]]) -> Option<Vec<u8>> {
    let nothing = BTreeSet::new();
    let present = session.tracking.as_ref().map_or(&nothing, |tracking| &tracking.prefixes);
    let with_present = prefixes.iter().enumerate().find_map(|(at, new)| Some((at, among(present, new)?)));
    let text = |new: &[u8], what: &[u8], other: &[u8]| {
        let quoted = |bytes| c_string(bytes, usize::MAX);
        let rest = b"'. Prefixes for a single client must not overlap.";
        [b"ERR Prefix '", quoted(new), b"' overlaps with ", what, b" prefix '", quoted(other), rest].concat()
    };
    match (with_present, first_pair(prefixes)) {
        (Some((at, other)), pair) if pair.is_none_or(|(first, _)| at <= first) => {
            Some(text(prefixes[at], b"an existing", other))
        }
        (_, Some((one, two))) => Some(text(prefixes[one], b"another provided", prefixes[two])),
        _ => None,
    }
}

fn meet(a: &[u8], b: &[u8]) -> bool {
    a.starts_with(b) || b.starts_with(a)
}

/// The first of a client's prefixes that overlaps with this one. No two of them do, except that all may stand beside the
/// empty one (BCAST without a prefix behind one with).
fn among<'a>(present: &'a BTreeSet<Box<[u8]>>, new: &[u8]) -> Option<&'a [u8]> {
    let all = present.iter().map(|prefix| &**prefix);
    let up_to = present.range::<[u8], _>((Bound::Unbounded, Bound::Included(new))).map(|prefix| &**prefix);
    let from = present.range::<[u8], _>((Bound::Included(new), Bound::Unbounded)).map(|prefix| &**prefix);
    let (first, before, behind) = (all.take(1), up_to.rev().take(1), from.take(1));
    first.filter(|first: &&[u8]| first.is_empty()).chain(before).chain(behind).find(|other| meet(other, new))
}

/// The first prefix that overlaps with a later one, and the first of these.
fn first_pair(prefixes: &[&[u8]]) -> Option<(usize, usize)> {
    let mut sorted: Vec<usize> = (0..prefixes.len()).collect();
    sorted.sort_unstable_by_key(|&at| (prefixes[at], at));
    // Those that what comes next may begin with, each with the earliest of itself and those that it begins with.
    let mut beginnings: Vec<(usize, usize)> = Vec::new();
    let mut first = usize::MAX;
    for at in sorted {
        while beginnings.pop_if(|(one, _)| !prefixes[at].starts_with(prefixes[*one])).is_some() {}
        let mut earliest = at;
        if let Some((_, of_beginnings)) = beginnings.last() {
            earliest = at.min(*of_beginnings);
            first = first.min(earliest);
        }
        beginnings.push((at, earliest));
    }
    let with = (first.saturating_add(1)..prefixes.len()).find(|&at| meet(prefixes[first], prefixes[at]))?;
    Some((first, with))
}

/// CLIENT CACHING YES|NO
pub fn client_caching(call: &mut Call<'_>) {
    let word = call.args.at(2);
    let Some(tracking) = call.session.tracking.as_deref_mut().filter(|tracking| tracking.is_on) else {
        return reply!(call).error(
            "ERR CLIENT CACHING can be called only when the client is in tracking mode with OPTIN or OPTOUT mode \
             enabled",
        );
    };
    if is_word(word, "yes") {
        if tracking.mode != Mode::OptIn {
            return reply!(call)
                .error("ERR CLIENT CACHING YES is only valid when tracking is enabled in OPTIN mode.");
        }
    } else if is_word(word, "no") {
        if tracking.mode != Mode::OptOut {
            return reply!(call)
                .error("ERR CLIENT CACHING NO is only valid when tracking is enabled in OPTOUT mode.");
        }
    } else {
        return call.syntax_error();
    }
    tracking.caching = true;
    call.session.update_tracks();
    reply!(call).ok();
}

/// The client that is told in place of this one: 0 for none, -1 without tracking.
pub(super) fn redirection(session: &Session) -> i64 {
    match session.tracking.as_deref().filter(|tracking| tracking.is_on) {
        None => -1,
        Some(tracking) => tracking.redirect.map_or(0, |redirect| redirect.id as i64),
    }
}

/// CLIENT GETREDIR
pub fn client_getredir(call: &mut Call<'_>) {
    let id = redirection(call.session);
    reply!(call).integer(id);
}

/// CLIENT TRACKINGINFO
pub fn client_trackinginfo(call: &mut Call<'_>) {
    let redirect = redirection(call.session);
    let tracking = call.session.tracking.as_deref().filter(|tracking| tracking.is_on);
    let mut flags: Vec<&[u8]> = Vec::from([if tracking.is_some() { &b"on"[..] } else { b"off" }]);
    if let Some(tracking) = tracking {
        let (mode, caching) = (tracking.mode, tracking.caching);
        let words: [(bool, &[u8]); 7] = [
            (mode == Mode::Broadcast, b"bcast"),
            (mode == Mode::OptIn, b"optin"),
            (mode == Mode::OptIn && caching, b"caching-yes"),
            (mode == Mode::OptOut, b"optout"),
            (mode == Mode::OptOut && caching, b"caching-no"),
            (tracking.no_loop, b"noloop"),
            (tracking.is_broken, b"broken_redirect"),
        ];
        flags.extend(words.iter().filter(|(holds, _)| *holds).map(|(_, word)| *word));
    }
    let prefixes: Vec<&[u8]> =
        tracking.iter().flat_map(|all| &all.prefixes).map(|prefix| &**prefix).collect();
    let mut reply = reply!(call);
    reply.map(3);
    reply.bulk(b"flags");
    reply.set(flags.len());
    flags.iter().for_each(|flag| reply.bulk(flag));
    reply.bulk(b"redirect");
    reply.integer(redirect);
    reply.bulk(b"prefixes");
    reply.array(prefixes.len());
    prefixes.iter().for_each(|prefix| reply.bulk(prefix));
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: usize) -> usize {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            ((mixed ^ (mixed >> 29)) % bound as u64) as usize
        }

        fn prefix(&mut self, length_max: usize) -> Box<[u8]> {
            (0..self.below(length_max + 1)).map(|_| b"ab"[self.below(2)]).collect()
        }
    }

    /// As Redis does: one by one.
    #[test]
    fn overlaps_are_those_that_looking_at_all_pairs_finds() {
        let mut random = Random(0x0e71_a95e);
        let (mut with_pairs, mut with_present) = (0, 0);
        for round in 0..20_000 {
            let length_max = 1 + random.below(8);
            let all: Vec<Box<[u8]>> = (0..random.below(9)).map(|_| random.prefix(length_max)).collect();
            let all: Vec<&[u8]> = all.iter().map(|prefix| &**prefix).collect();
            let pairs = || (0..all.len()).flat_map(|one| (one + 1..all.len()).map(move |two| (one, two)));
            let pair = pairs().find(|&(one, two)| meet(all[one], all[two]));
            assert_eq!(first_pair(&all), pair, "round {round}: {all:?}");
            with_pairs += usize::from(pair.is_some());
            // What a client can have.
            let mut present: BTreeSet<Box<[u8]>> = BTreeSet::new();
            for _ in 0..random.below(9) {
                let prefix = random.prefix(length_max);
                if prefix.is_empty() || !present.iter().any(|other| meet(other, &prefix)) {
                    present.insert(prefix);
                }
            }
            for new in &all {
                let first = present.iter().map(|one| &**one).find(|other| meet(other, new));
                assert_eq!(among(&present, new), first, "round {round}: {present:?}, {new:?}");
                with_present += usize::from(first.is_some());
            }
        }
        assert!(with_pairs > 5000 && with_present > 20_000, "{with_pairs}, {with_present}");
    }

    /// Two hundred thousand prefixes have twenty milliards of pairs: whoever looked at each would be looking still.
    #[test]
    fn very_many_prefixes_take_hardly_longer_than_reading_them() {
        let all: Vec<Vec<u8>> = (0..200_000).map(|at| alloc::format!("{at:06}").into_bytes()).collect();
        let mut all: Vec<&[u8]> = all.iter().map(|prefix| &**prefix).collect();
        assert_eq!(first_pair(&all), None);
        all.push(b"19999");
        assert_eq!(first_pair(&all), Some((199_990, 200_000)));
        // Each begins with the one before: the longest way.
        let steps = alloc::vec![b'x'; 2000];
        let all: Vec<&[u8]> = (1..=2000).rev().map(|length| &steps[..length]).collect();
        assert_eq!(first_pair(&all), Some((0, 1)));
    }
}
