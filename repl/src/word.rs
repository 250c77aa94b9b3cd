//! The primary's time, by which keys expire everywhere: which time may be told, and when it holds for a replica.
//!
//! A replica lets keys expire by its primary's word and is told of no expiry. So the word for data that ends with a
//! record must be a time before which nothing was executed that comes behind that record: a key that was gone here too
//! early would be missing when a record changes it.
//!
//! [`Teller`] is the primary's side. It does not look at what records say of their time: that is when the turn of the
//! loop began that wrote them, and a turn may be long, or stopped in its middle. It looks at the turns that run now, and
//! then at the last LSN that was drawn: what is drawn behind that belongs to one of those turns or to a later one, so it is
//! executed at the earliest of their times or after. When that LSN is durable the time is told with it.
//!
//! The clock behind it does not go back and makes no leaps, whatever becomes of the wall clock ([`Teller::tick`]); the
//! shards of a primary never take a time before it.
//!
//! [`Heard`] is the replica's side: what was told counts when the record it was told with is applied.

use wal::lsn::Lsn;

/// The clock catches up with a wall clock that was put forward by so many times the time that passes.
const PACE_MAX: u64 = 100;

/// See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Teller {
    clock_us: u64,
    /// When, by the monotonic clock, and whether the wall clock was behind.
    read: Option<(u64, bool)>,
    told_us: u64,
    /// The time that may be told when this record is durable.
    candidate: Option<(Lsn, u64)>,
}

impl Teller {
    /// One that has told this time, or has been told it as a replica. 0: none.
    pub fn new(told_us: u64) -> Teller {
        Teller { clock_us: told_us, told_us, ..Teller::default() }
    }

    /// Reads the clock: the wall clock's time as long as that goes its way. Where it was put back this one goes on at half
    /// its pace until the other has caught up; where it was put forward this one follows, but not in one leap, which
    /// could not be taken back. What shards execute from now on they are to execute at this time or later.
    pub fn tick(&mut self, wall_us: u64, now_micros: u64) -> u64 {
        self.clock_us = match self.read {
            None => self.clock_us.max(wall_us),
            Some((at, _)) => {
                let passed = now_micros.saturating_sub(at);
                let most = self.clock_us.saturating_add(passed.saturating_mul(PACE_MAX));
                wall_us.clamp(self.clock_us.saturating_add(passed / 2), most)
            }
        };
        self.read = Some((now_micros, wall_us < self.clock_us));
        self.clock_us
    }

    /// The wall clock was behind when it was last looked at: somebody has to go on looking.
    pub fn is_ahead(&self) -> bool {
        self.read.is_some_and(|(_, is_ahead)| is_ahead)
    }

    /// No time waits for its record: another may be looked for.
    pub fn wants_look(&self) -> bool {
        self.candidate.is_none()
    }

    /// After [`Teller::tick`] the turns were looked at, of which this is the earliest, if one runs (none if a shard is just
    /// beginning one, and its time is not known), and after that the last LSN that was drawn.
    pub fn handle_look(&mut self, earliest_us: u64, drawn: Lsn) {
        if self.candidate.is_none() {
            self.candidate = Some((drawn, earliest_us.min(self.clock_us)));
        }
    }

    /// Everything up to here is durable and can be told.
    pub fn handle_durable(&mut self, durable: Lsn) {
        if let Some((_, time_us)) = self.candidate.take_if(|candidate| candidate.0 <= durable) {
            self.told_us = self.told_us.max(time_us);
        }
    }

    /// The time to tell with the last durable record; 0: none is known.
    pub fn told_us(&self) -> u64 {
        self.told_us
    }
}

/// See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// What will hold first, and what was heard last. Not only the latter: a replica that is always a little behind would
    /// never come to it.
    next: Option<(Lsn, u64)>,
    latest: Option<(Lsn, u64)>,
}

impl Heard {
    /// The primary has said what time it was when this record was its last durable one.
    pub fn hear(&mut self, durable: Lsn, unix_us: u64) {
        match &mut self.next {
            _ if unix_us == 0 => (),
            None => self.next = Some((durable, unix_us)),
            Some((lsn, time)) if *lsn >= durable => *time = unix_us.max(*time),
            Some(_) => self.latest = Some((durable, unix_us)),
        }
    }

    /// The latest time that holds for data which ends with this record, if it was not taken before.
    pub fn take(&mut self, last: Lsn) -> Option<u64> {
        if let Some((_, time)) = self.latest.take_if(|latest| latest.0 <= last) {
            self.next = None;
            return Some(time);
        }
        let (_, time) = self.next.take_if(|next| next.0 <= last)?;
        self.next = self.latest.take();
        Some(time)
    }

    /// The connection has ended, or the data was replaced: another primary's records have other numbers.
    pub fn forget(&mut self) {
        *self = Heard::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000_000;

    /// A teller that has read the clock once, at 1000 s.
    fn started() -> (Teller, u64) {
        let mut teller = Teller::new(0);
        assert_eq!((teller.told_us(), teller.tick(1_000_000_000, 5)), (0, 1_000_000_000));
        (teller, 1_000_000_000)
    }

    #[test]
    fn a_running_turn_holds_the_time_back() {
        let (mut teller, start) = started();
        teller.tick(start + 90_000, 90_005);
        // A shard is in a turn that began long ago; nothing is pending.
        teller.handle_look(start + 10, Lsn(7));
        teller.handle_durable(Lsn(7));
        assert_eq!(teller.told_us(), start + 10);
        teller.handle_look(u64::MAX, Lsn(7));
        teller.handle_durable(Lsn(7));
        assert_eq!(teller.told_us(), start + 90_000, "and nothing holds it back when all rest");
    }

    #[test]
    fn a_time_is_told_when_all_before_it_is_durable() {
        let (mut teller, start) = started();
        teller.handle_look(u64::MAX, Lsn(9));
        teller.handle_durable(Lsn(8));
        assert_eq!((teller.told_us(), teller.wants_look()), (0, false));
        // A later look does not push it out: under load there is always something pending.
        teller.tick(start + 50, 55);
        teller.handle_look(u64::MAX, Lsn(20));
        teller.handle_durable(Lsn(12));
        assert_eq!((teller.told_us(), teller.wants_look()), (start, true));
    }

    #[test]
    fn the_clock_goes_on_at_half_its_pace_where_the_wall_clock_was_put_back() {
        let (mut teller, start) = started();
        let mut before = teller.tick(start + 1000, 1005);
        assert!(!teller.is_ahead());
        for step in 1..=4000u64 {
            let now = teller.tick(start + 1000 - 1_000_000 + step * 1000, 1005 + step * 1000);
            assert!(now >= before + 500, "{step}");
            before = now;
            assert_eq!(teller.is_ahead(), step < 2000, "{step}");
        }
        assert_eq!(before, start + 1000 + 3_000_000);
    }

    #[test]
    fn the_clock_makes_no_leaps() {
        let (mut teller, start) = started();
        let leapt = teller.tick(start + HOUR, 1005);
        assert_eq!(leapt, start + 100 * 1000);
        // It was a mistake: little of it is left.
        assert_eq!(teller.tick(start + 2000, 2005), leapt + 500);
        // It was none.
        let (mut teller, start) = started();
        assert_eq!(teller.tick(start + HOUR, 5 + HOUR / 50), start + HOUR);
        // The first reading is no leap.
        assert_eq!(Teller::new(0).tick(start, 5), start);
        assert_eq!(Teller::new(start + 7).tick(start, 5), start + 7, "and is not before what was told");
    }

    #[test]
    fn what_was_told_never_goes_back() {
        let mut teller = Teller::new(500);
        teller.handle_look(300, Lsn(1));
        teller.handle_durable(Lsn(1));
        assert_eq!(teller.told_us(), 500);
    }

    #[test]
    fn a_word_holds_when_its_record_is_there() {
        let mut heard = Heard::default();
        heard.hear(Lsn(10), 0);
        assert_eq!(heard, Heard::default(), "nothing was said");
        heard.hear(Lsn(10), 100);
        assert_eq!(heard.take(Lsn(9)), None);
        // Nothing was written meanwhile.
        heard.hear(Lsn(10), 150);
        assert_eq!((heard.take(Lsn(10)), heard.take(Lsn(10))), (Some(150), None));
        // One that is always behind the latest word comes to some all the same.
        heard.hear(Lsn(20), 200);
        heard.hear(Lsn(30), 300);
        heard.hear(Lsn(40), 400);
        assert_eq!(heard.take(Lsn(25)), Some(200));
        assert_eq!(heard.take(Lsn(39)), None);
        heard.hear(Lsn(50), 500);
        assert_eq!(heard.take(Lsn(60)), Some(500));
        assert_eq!(heard.take(Lsn(60)), None);
        heard.hear(Lsn(70), 700);
        heard.hear(Lsn(71), 710);
        heard.forget();
        assert_eq!(heard.take(Lsn(99)), None);
    }
}
