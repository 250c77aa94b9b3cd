//! Lines that anybody may cause to be said: at most one a second, and with the number of those that were not.

/// Microseconds between two lines.
const PERIOD_US: u64 = 1_000_000;

/// Lines of one kind.
#[derive(Debug, Default)]
pub(super) struct Seldom {
    said_at: Option<u64>,
    /// Since then, with the last.
    unsaid: u64,
    last: String,
}

impl Seldom {
    /// There is something to be said.
    pub(super) fn add(&mut self, line: String) {
        (self.unsaid, self.last) = (self.unsaid + 1, line);
    }

    /// When it will be, if nothing else happens.
    pub(super) fn due(&self) -> Option<u64> {
        (self.unsaid > 0).then(|| self.said_at.map_or(0, |at| at + PERIOD_US))
    }

    /// The line that is to be said now.
    pub(super) fn poll(&mut self, now_us: u64) -> Option<String> {
        if self.due()? > now_us {
            return None;
        }
        self.said_at = Some(now_us);
        let others = std::mem::take(&mut self.unsaid) - 1;
        let line = std::mem::take(&mut self.last);
        Some(match others {
            0 => line,
            others => format!("{line} ({others} more like it)"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_is_said_at_once_and_then_one_a_second_with_their_number() {
        let mut seldom = Seldom::default();
        assert_eq!((seldom.due(), seldom.poll(5)), (None, None));
        seldom.add("one".into());
        assert_eq!(seldom.due(), Some(0));
        assert_eq!(seldom.poll(5).as_deref(), Some("one"));
        ["two", "three", "four"].into_iter().for_each(|line| seldom.add(line.into()));
        assert_eq!((seldom.due(), seldom.poll(1_000_004)), (Some(1_000_005), None));
        assert_eq!(seldom.poll(1_000_005).as_deref(), Some("four (2 more like it)"));
        assert_eq!((seldom.due(), seldom.poll(9_000_000)), (None, None));
        seldom.add("five".into());
        assert_eq!(seldom.poll(9_000_000).as_deref(), Some("five"));
    }
}
