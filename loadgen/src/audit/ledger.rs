//! What one key may hold: pure bookkeeping of what was sent, what was acknowledged, and what was seen.
//!
//! A key has one owner, which sends its changes over one connection; so a server carries them out in the order in
//! which they were sent, and what it holds after a crash is the state after some of them: at least all that were
//! acknowledged, at most all that were sent. Those states are the *candidates*. Anything else is [`Verdict::Lost`] if
//! the key held it before, and [`Verdict::Phantom`] if it never did.
//!
//! A change that was refused with an error may have taken effect all the same (a server that learns too late that its
//! disk has failed has executed it), so it leaves two states behind where there was one. And a reader of somebody
//! else's key can be shown more than its owner was told: from then on that must survive as well.

use std::collections::VecDeque;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

/// Earlier states that are remembered of each key, as hashes. What is older counts as never written.
const HISTORY_MAX: usize = 4096;
/// With more states possible than this a key is left alone until it has been looked at.
const KNOWN_MAX: usize = 8;
/// With more changes under way it is left alone until they are answered: each that is refused may double the states.
const PENDING_MAX: usize = 8;

/// When a value ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Expiry {
    /// Never.
    Never,
    /// At this time, milliseconds since 1970.
    At(u64),
    /// Some time: it was given as a distance from a clock that is not ours.
    Sometime,
}

/// What a server says of when a value ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeenExpiry {
    /// Nothing: it does not know the command.
    Unsaid,
    /// This.
    Said(Expiry),
}

/// A value and its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The bytes.
    pub value: Vec<u8>,
    /// When it ends.
    pub expiry: Expiry,
}

/// What a key holds; `None` if it is missing.
pub type State = Option<Held>;

/// A write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// SET, with an expiry or without.
    Set(Held),
    /// DEL.
    Delete,
    /// INCRBY.
    Add(i64),
    /// APPEND.
    Append(Vec<u8>),
}

/// What the server answered to a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// `OK`: it was set.
    Done,
    /// HTTP 201: it was set and had been missing.
    Created,
    /// HTTP 204: it was set and had been there.
    Replaced,
    /// A number: deleted keys, a sum, a length.
    Number(i64),
    /// An error.
    Refused(String),
}

impl Change {
    /// The state after it.
    pub fn apply(&self, state: &State) -> State {
        let expiry = state.as_ref().map_or(Expiry::Never, |held| held.expiry);
        match self {
            Change::Set(held) => Some(held.clone()),
            Change::Delete => None,
            Change::Add(step) => {
                let value = (number(state).unwrap_or(0).wrapping_add(*step)).to_string().into_bytes();
                Some(Held { value, expiry })
            }
            Change::Append(tail) => {
                let mut value = state.as_ref().map_or(Vec::new(), |held| held.value.clone());
                value.extend_from_slice(tail);
                Some(Held { value, expiry })
            }
        }
    }

    /// Whether a server that held `state` answers so.
    fn is_answered(&self, state: &State, answer: &Answer) -> bool {
        match (self, answer) {
            (Change::Set(_), Answer::Done) => true,
            (Change::Set(_), Answer::Created) => state.is_none(),
            (Change::Set(_), Answer::Replaced) => state.is_some(),
            (Change::Delete, Answer::Number(count)) => *count == i64::from(state.is_some()),
            (Change::Add(step), Answer::Number(sum)) => {
                number(state).unwrap_or(0).wrapping_add(*step) == *sum
            }
            (Change::Append(tail), Answer::Number(length)) => {
                let held = state.as_ref().map_or(0, |held| held.value.len());
                (held + tail.len()) as i64 == *length
            }
            _ => false,
        }
    }
}

fn number(state: &State) -> Option<i64> {
    std::str::from_utf8(&state.as_ref()?.value).ok()?.parse().ok()
}

/// What a key turned out to be after a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// One of the candidates.
    Kept,
    /// What it held before: something that was acknowledged, or shown to a reader, is gone.
    Lost,
    /// What it never held.
    Phantom,
}

/// One key.
#[derive(Debug)]
pub struct Ledger {
    /// The states to which what was acknowledged may have led: one, unless something was refused.
    known: Vec<State>,
    /// Sent, and not answered.
    pending: VecDeque<Change>,
    /// How many of the first candidates a reader has been shown to be over.
    overtaken: usize,
    /// Hashes of values it held before.
    history: VecDeque<u64>,
    /// Bytes of its value once all that was sent is done, or more.
    pub length_max: usize,
}

impl Default for Ledger {
    fn default() -> Ledger {
        Ledger {
            known: vec![None],
            pending: VecDeque::new(),
            overtaken: 0,
            history: VecDeque::new(),
            length_max: 0,
        }
    }
}

impl Ledger {
    /// A change is about to be sent.
    pub fn sent(&mut self, change: Change) {
        self.length_max = match &change {
            Change::Set(held) => held.value.len(),
            Change::Delete => 0,
            Change::Add(_) => self.length_max.max(20),
            Change::Append(tail) => self.length_max + tail.len(),
        };
        self.pending.push_back(change);
    }

    /// The oldest change without an answer was answered. An error tells what could not be answered so.
    pub fn answered(&mut self, answer: &Answer) -> Result<(), String> {
        let change = self.pending.pop_front().expect("an answer follows something that was sent");
        if let Answer::Refused(_) = answer {
            let applied: Vec<State> = self.known.iter().map(|state| change.apply(state)).collect();
            for state in applied {
                if !self.known.contains(&state) {
                    self.known.push(state);
                }
            }
            return Ok(());
        }
        let mut possible: Vec<&State> =
            self.known.iter().filter(|state| change.is_answered(state, answer)).collect();
        let mut wrong = Ok(());
        if possible.is_empty() {
            wrong = Err(format!(
                "{} was answered with {answer:?} while the key held {}",
                change.show(),
                self.known.iter().map(show).collect::<Vec<_>>().join(" or ")
            ));
            possible = self.known.iter().collect();
        }
        let mut known: Vec<State> = Vec::with_capacity(possible.len());
        for state in possible {
            let next = change.apply(state);
            if !known.contains(&next) {
                known.push(next);
            }
        }
        for state in std::mem::replace(&mut self.known, known) {
            self.remember(&state);
        }
        wrong
    }

    /// Too little is known of it to go on writing before it has been looked at.
    pub fn is_frozen(&self) -> bool {
        self.known.len() > KNOWN_MAX
    }

    /// Another change may be sent now.
    pub fn has_room(&self) -> bool {
        !self.is_frozen() && self.pending.len() < PENDING_MAX
    }

    /// Every state in which the key may be found, the oldest first.
    pub fn candidates(&self) -> Vec<State> {
        let mut all = self.known.clone();
        let mut latest = self.known.clone();
        for change in &self.pending {
            for state in &mut latest {
                *state = change.apply(state);
            }
            for state in &latest {
                if !all.contains(state) {
                    all.push(state.clone());
                }
            }
        }
        all
    }

    /// The states in which it must be found: the candidates that no reader has been shown to be over.
    pub fn expected(&self) -> Vec<State> {
        self.candidates().split_off(self.overtaken)
    }

    /// A reader was shown this value while the changes were under way. It must be one that is written once only.
    /// False: nobody has written it.
    pub fn shown(&mut self, value: &[u8]) -> bool {
        let holds = |state: &State| state.as_ref().is_some_and(|held| held.value == value);
        if self.known.iter().any(holds) {
            return true;
        }
        // With several states known there is no telling which of the candidates came before the one that was shown.
        if let Some(at) = self.candidates().iter().position(holds) {
            if self.known.len() == 1 {
                self.overtaken = self.overtaken.max(at);
            }
            return true;
        }
        self.held_before(value) || self.history.len() == HISTORY_MAX
    }

    /// The key was found like this. Whatever it is, it is what is known from now on.
    pub fn found(&mut self, value: Option<Vec<u8>>, expiry: SeenExpiry) -> Verdict {
        let candidates = self.candidates();
        let fits = |state: &State| match (state, &value) {
            (None, None) => true,
            (Some(held), Some(value)) => held.value == *value && agree(held.expiry, expiry),
            _ => false,
        };
        let kept = candidates[self.overtaken..].iter().find(|state| fits(state)).cloned();
        let verdict = if kept.is_some() {
            Verdict::Kept
        } else {
            let is_older = candidates[..self.overtaken].iter().any(fits);
            match &value {
                None => Verdict::Lost,
                Some(_) if is_older => Verdict::Lost,
                Some(value) => {
                    let same =
                        candidates.iter().flatten().find(|held| held.value == *value).map(|held| held.expiry);
                    match same {
                        // The value is right and its end is not.
                        Some(Expiry::Never) => Verdict::Phantom,
                        Some(_) => Verdict::Lost,
                        None if self.held_before(value) => Verdict::Lost,
                        None => Verdict::Phantom,
                    }
                }
            }
        };
        for state in candidates {
            self.remember(&state);
        }
        let seen = match expiry {
            SeenExpiry::Said(expiry) => Some(expiry),
            SeenExpiry::Unsaid => None,
        };
        let now = value.map(|value| {
            let expected = kept.flatten().map(|held| held.expiry);
            let expiry = match (seen, expected) {
                // A server that names the moment can be held to it.
                (Some(Expiry::At(at)), _) => Expiry::At(at),
                (_, Some(expected)) => expected,
                (seen, None) => seen.unwrap_or(Expiry::Never),
            };
            Held { value, expiry }
        });
        self.length_max = now.as_ref().map_or(0, |held| held.value.len());
        self.known = vec![now];
        self.pending.clear();
        self.overtaken = 0;
        verdict
    }

    fn held_before(&self, value: &[u8]) -> bool {
        self.history.contains(&hash(value))
    }

    fn remember(&mut self, state: &State) {
        let Some(held) = state else { return };
        if self.history.len() == HISTORY_MAX {
            self.history.pop_front();
        }
        self.history.push_back(hash(&held.value));
    }
}

fn agree(expected: Expiry, seen: SeenExpiry) -> bool {
    match (expected, seen) {
        (_, SeenExpiry::Unsaid) => true,
        (Expiry::Sometime, SeenExpiry::Said(seen)) => seen != Expiry::Never,
        (Expiry::At(_), SeenExpiry::Said(Expiry::Sometime)) => true,
        (expected, SeenExpiry::Said(seen)) => expected == seen,
    }
}

fn hash(value: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

impl Change {
    /// For people.
    pub fn show(&self) -> String {
        match self {
            Change::Set(held) => format!("SET {}", show_held(held)),
            Change::Delete => "DEL".into(),
            Change::Add(step) => format!("INCRBY {step}"),
            Change::Append(tail) => format!("APPEND {}", show_bytes(tail)),
        }
    }
}

/// A state for people.
pub fn show(state: &State) -> String {
    state.as_ref().map_or("nothing".into(), show_held)
}

fn show_held(held: &Held) -> String {
    let value = show_bytes(&held.value);
    match held.expiry {
        Expiry::Never => value,
        Expiry::At(at) => format!("{value} until {at} ms"),
        Expiry::Sometime => format!("{value} with an expiry"),
    }
}

/// Head and tail: an append shows at the end.
fn show_bytes(bytes: &[u8]) -> String {
    const SHOWN: usize = 40;
    if bytes.len() <= SHOWN * 2 {
        return format!("\"{}\"", bytes.escape_ascii());
    }
    let (head, tail) = (&bytes[..SHOWN], &bytes[bytes.len() - SHOWN..]);
    format!("\"{}…{}\" ({} bytes)", head.escape_ascii(), tail.escape_ascii(), bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(text: &str) -> Change {
        Change::Set(Held { value: text.into(), expiry: Expiry::Never })
    }

    fn never(text: &str) -> (Option<Vec<u8>>, SeenExpiry) {
        (Some(text.into()), SeenExpiry::Said(Expiry::Never))
    }

    const MISSING: (Option<Vec<u8>>, SeenExpiry) = (None, SeenExpiry::Said(Expiry::Never));

    /// Acknowledged: a, b. Under way: c, then an append.
    fn ledger() -> Ledger {
        let mut ledger = Ledger::default();
        for text in ["a", "b"] {
            ledger.sent(set(text));
            ledger.answered(&Answer::Done).expect("a SET is answered so");
        }
        ledger.sent(set("c"));
        ledger.sent(Change::Append(b"d".to_vec()));
        ledger
    }

    fn verdict(ledger: &mut Ledger, (value, expiry): (Option<Vec<u8>>, SeenExpiry)) -> Verdict {
        ledger.found(value, expiry)
    }

    #[test]
    fn all_that_was_acknowledged_and_any_beginning_of_the_rest_is_kept() {
        for text in ["b", "c", "cd"] {
            assert_eq!(verdict(&mut ledger(), never(text)), Verdict::Kept, "{text}");
        }
        assert_eq!(verdict(&mut ledger(), never("a")), Verdict::Lost, "the value before");
        assert_eq!(verdict(&mut ledger(), MISSING), Verdict::Lost);
        // The append without the SET before it: a hole.
        assert_eq!(verdict(&mut ledger(), never("bd")), Verdict::Phantom);
        assert_eq!(verdict(&mut ledger(), never("cdd")), Verdict::Phantom);
        assert_eq!(verdict(&mut ledger(), never("z")), Verdict::Phantom);
    }

    #[test]
    fn what_is_found_counts_from_then_on() {
        let mut ledger = ledger();
        assert_eq!(verdict(&mut ledger, never("a")), Verdict::Lost);
        assert_eq!((ledger.pending.len(), ledger.expected().len()), (0, 1));
        assert_eq!(verdict(&mut ledger, never("a")), Verdict::Kept, "a loss is reported once");
        // What was under way and did not survive must not come back after the next crash.
        assert_eq!(verdict(&mut ledger, never("cd")), Verdict::Lost);
    }

    #[test]
    fn a_deletion_that_was_acknowledged_stays() {
        let mut ledger = ledger();
        for answer in [Answer::Done, Answer::Number(2)] {
            ledger.answered(&answer).expect("the answers are right");
        }
        ledger.sent(Change::Delete);
        ledger.answered(&Answer::Number(1)).expect("it was there");
        assert_eq!(ledger.expected(), [None]);
        assert_eq!(verdict(&mut ledger, never("cd")), Verdict::Lost);
    }

    #[test]
    fn a_refused_change_may_have_taken_effect() {
        for (found, expected) in
            [("b", Verdict::Kept), ("c", Verdict::Kept), ("cd", Verdict::Kept), ("bd", Verdict::Kept)]
        {
            let mut ledger = ledger();
            ledger.answered(&Answer::Refused("MISCONF".into())).expect("an error is no lie");
            assert_eq!(verdict(&mut ledger, never(found)), expected, "{found}");
        }
        // A later answer tells which it was.
        let mut ledger = ledger();
        ledger.sent(Change::Append(b"xx".to_vec()));
        ledger.answered(&Answer::Refused("MISCONF".into())).expect("an error is no lie");
        ledger.answered(&Answer::Refused("MISCONF".into())).expect("an error is no lie");
        ledger.answered(&Answer::Number(4)).expect("one, d and two more");
        assert_eq!(ledger.expected().len(), 2, "the append has happened: bdxx or cdxx");
        assert_eq!(verdict(&mut ledger, never("cd")), Verdict::Lost);
        let mut ledger = Ledger::default();
        for step in 0..10 {
            ledger.sent(Change::Add(1 << step));
            ledger.answered(&Answer::Refused("OOM".into())).expect("an error is no lie");
        }
        assert!(ledger.is_frozen());
    }

    #[test]
    fn answers_that_contradict_what_the_key_holds_are_told() {
        let mut ledger = Ledger::default();
        ledger.sent(Change::Add(5));
        ledger.answered(&Answer::Number(5)).expect("nothing and five");
        ledger.sent(Change::Add(1));
        let error = ledger.answered(&Answer::Number(7)).expect_err("five and one is six");
        assert!(error.contains("INCRBY 1") && error.contains("\"5\""), "{error}");
        for (change, wrong) in [
            (Change::Delete, Answer::Number(0)),
            (Change::Append(b"x".to_vec()), Answer::Number(1)),
            (set("y"), Answer::Created),
            (set("y"), Answer::Number(1)),
        ] {
            let mut ledger = Ledger::default();
            ledger.sent(set("here"));
            ledger.answered(&Answer::Created).expect("it was missing");
            ledger.sent(change);
            assert!(ledger.answered(&wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn what_a_reader_was_shown_must_survive_too() {
        let mut shown = ledger();
        assert!(shown.shown(b"a") && shown.shown(b"b") && shown.shown(b"c"));
        assert!(!shown.shown(b"z"), "nobody has written this");
        assert_eq!(verdict(&mut shown, never("b")), Verdict::Lost);
        let mut shown = ledger();
        assert!(shown.shown(b"c"));
        assert_eq!(verdict(&mut shown, never("cd")), Verdict::Kept);
    }

    #[test]
    fn an_expiry_is_part_of_what_was_acknowledged() {
        let with = |expiry| {
            let mut ledger = Ledger::default();
            ledger.sent(Change::Set(Held { value: b"v".to_vec(), expiry }));
            ledger.answered(&Answer::Done).expect("a SET is answered so");
            ledger
        };
        let seen = |expiry| (Some(b"v".to_vec()), SeenExpiry::Said(expiry));
        assert_eq!(verdict(&mut with(Expiry::At(9)), seen(Expiry::At(9))), Verdict::Kept);
        assert_eq!(verdict(&mut with(Expiry::At(9)), seen(Expiry::Sometime)), Verdict::Kept);
        assert_eq!(verdict(&mut with(Expiry::At(9)), seen(Expiry::At(8))), Verdict::Lost);
        assert_eq!(verdict(&mut with(Expiry::At(9)), seen(Expiry::Never)), Verdict::Lost);
        assert_eq!(verdict(&mut with(Expiry::Never), seen(Expiry::At(9))), Verdict::Phantom);
        assert_eq!(verdict(&mut with(Expiry::Sometime), seen(Expiry::Never)), Verdict::Lost);
        assert_eq!(
            verdict(&mut with(Expiry::At(9)), (Some(b"v".to_vec()), SeenExpiry::Unsaid)),
            Verdict::Kept
        );
        // Told as a distance, seen as a moment: held to the moment from then on.
        let mut ledger = with(Expiry::Sometime);
        assert_eq!(verdict(&mut ledger, seen(Expiry::At(9))), Verdict::Kept);
        assert_eq!(verdict(&mut ledger, seen(Expiry::At(8))), Verdict::Lost);
    }
}
