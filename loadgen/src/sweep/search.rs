//! The search for the knee: the highest rate at which an objective is met. Pure: it is told the outcome of each
//! measurement and says which rate to measure next.
//!
//! 1. **Climb**: the rate doubles until the objective is missed (or halves until it is met).
//! 2. **Bisect**: between the highest rate met and the lowest missed, until they lie as near as asked for.
//! 3. **Confirm**: one lucky measurement is no knee. The rate is measured again and again; where fewer than two thirds
//!    of the measurements meet the objective, the search goes a step down and confirms there.
//! 4. **Come down**: from half as much again, in steps, to below the knee. A server that was overloaded a moment ago
//!    may miss what it met on the way up; a knee that holds on the way up only is no rate to run at.

/// What a search is to do.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The first rate.
    pub from: f64,
    /// No higher rate is tried.
    pub to: f64,
    /// The knee is found to this part of itself: 0.05.
    pub resolution: f64,
    /// Measurements that confirm it.
    pub repeats: u32,
}

/// Which part of the search a measurement belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Doubling, or halving.
    Climb,
    /// Between a rate met and one missed.
    Bisect,
    /// The same rate again.
    Confirm,
    /// From overload to below the knee.
    ComeDown,
}

/// Rates of the way down, as parts of the knee.
const WAY_DOWN: [f64; 6] = [1.5, 1.25, 1.1, 1.0, 0.9, 0.8];
/// A search that goes down so many steps without a rate being confirmed gives up.
const STEPS_DOWN_MAX: u32 = 30;
/// A search that halves so often without meeting the objective gives up.
const HALVINGS_MAX: u32 = 8;

/// A search under way.
#[derive(Clone, Debug)]
pub struct Search {
    settings: Settings,
    state: State,
    /// The highest rate met and the lowest missed.
    met: Option<f64>,
    missed: Option<f64>,
    halvings: u32,
    steps_down: u32,
    knee: Option<f64>,
    way_down: Vec<(f64, bool)>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Climb(f64),
    Bisect(f64),
    Confirm { rate: f64, tried: u32, met: u32 },
    ComeDown,
    Over,
}

/// What a search found.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Found {
    /// The highest rate that met the objective when it was repeated; `None`: none did.
    pub knee_per_s: Option<f64>,
    /// The highest rate from which on down the objective was met after overload.
    pub coming_down_per_s: Option<f64>,
    /// The objective was met at the highest rate allowed: the knee lies beyond it.
    pub at_the_limit: bool,
}

impl Search {
    /// A search that begins at `settings.from`.
    pub fn new(settings: Settings) -> Search {
        assert!(settings.from > 0.0 && settings.to >= settings.from, "checked by the command line");
        assert!(settings.resolution > 0.0 && settings.repeats > 0, "checked by the command line");
        Search {
            settings,
            state: State::Climb(settings.from),
            met: None,
            missed: None,
            halvings: 0,
            steps_down: 0,
            knee: None,
            way_down: Vec::new(),
        }
    }

    /// The next rate to measure; `None`: it is over.
    pub fn next(&self) -> Option<(Phase, f64)> {
        match self.state {
            State::Climb(rate) => Some((Phase::Climb, rate)),
            State::Bisect(rate) => Some((Phase::Bisect, rate)),
            State::Confirm { rate, .. } => Some((Phase::Confirm, rate)),
            State::ComeDown => {
                Some((Phase::ComeDown, self.knee.expect("it was found") * WAY_DOWN[self.way_down.len()]))
            }
            State::Over => None,
        }
    }

    /// Whether the objective was met at the rate that [`Search::next`] said.
    pub fn tell(&mut self, met: bool) {
        let Some((_, rate)) = self.next() else { return };
        self.state = match self.state {
            State::Climb(_) if met => {
                self.met = Some(rate);
                match self.missed {
                    None if rate >= self.settings.to => State::Confirm { rate, tried: 0, met: 0 },
                    None => State::Climb((rate * 2.0).min(self.settings.to)),
                    Some(_) => self.narrow(),
                }
            }
            State::Climb(_) => {
                self.missed = Some(rate);
                match self.met {
                    Some(_) => self.narrow(),
                    None if self.halvings == HALVINGS_MAX => State::Over,
                    None => {
                        self.halvings += 1;
                        State::Climb(rate / 2.0)
                    }
                }
            }
            State::Bisect(_) => {
                *(if met { &mut self.met } else { &mut self.missed }) = Some(rate);
                self.narrow()
            }
            State::Confirm { tried, met: already, .. } => {
                self.confirm(rate, tried + 1, already + u32::from(met))
            }
            State::ComeDown => {
                self.way_down.push((rate, met));
                if self.way_down.len() == WAY_DOWN.len() { State::Over } else { State::ComeDown }
            }
            State::Over => State::Over,
        };
    }

    fn narrow(&self) -> State {
        let (Some(met), Some(missed)) = (self.met, self.missed) else { unreachable!("both were found") };
        if missed / met <= 1.0 + self.settings.resolution {
            return State::Confirm { rate: met, tried: 0, met: 0 };
        }
        State::Bisect((met * missed).sqrt())
    }

    fn confirm(&mut self, rate: f64, tried: u32, met: u32) -> State {
        let repeats = self.settings.repeats;
        let enough = (repeats * 2).div_ceil(3);
        if met >= enough {
            // The rest would change nothing.
            self.knee = Some(rate);
            return State::ComeDown;
        }
        if met + (repeats - tried) >= enough {
            return State::Confirm { rate, tried, met };
        }
        self.steps_down += 1;
        match self.steps_down > STEPS_DOWN_MAX {
            true => State::Over,
            false => State::Confirm { rate: rate / (1.0 + self.settings.resolution), tried: 0, met: 0 },
        }
    }

    /// What was found so far.
    pub fn found(&self) -> Found {
        // From below: the lowest rates first, as long as they are met.
        let held = self.way_down.iter().rev().take_while(|(_, met)| *met).last();
        Found {
            knee_per_s: self.knee,
            coming_down_per_s: held.map(|(rate, _)| *rate),
            at_the_limit: self.knee.is_some_and(|knee| knee >= self.settings.to),
        }
    }
}

impl Found {
    /// The knee does not hold after overload.
    pub fn has_hysteresis(&self) -> bool {
        match (self.knee_per_s, self.coming_down_per_s) {
            // The way down has a step at the knee itself, and one a tenth below it.
            (Some(knee), Some(down)) => down < knee * 0.95,
            (Some(_), None) => true,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::Xoshiro256PlusPlus;
    use rand::{RngExt, SeedableRng};

    const SETTINGS: Settings = Settings { from: 1_000.0, to: 1e6, resolution: 0.05, repeats: 3 };

    /// Searches with a server that answers as `meets` says; the trials and what was found.
    fn search(
        settings: Settings,
        mut meets: impl FnMut(Phase, f64) -> bool,
    ) -> (Vec<(Phase, f64, bool)>, Found) {
        let mut search = Search::new(settings);
        let mut trials = Vec::new();
        while let Some((phase, rate)) = search.next() {
            assert!(trials.len() < 200, "it does not end");
            assert!(rate <= settings.to * 1.5 && rate > 0.0);
            let met = meets(phase, rate);
            trials.push((phase, rate, met));
            search.tell(met);
        }
        (trials, search.found())
    }

    #[test]
    fn a_sharp_knee_is_found_to_the_resolution_from_any_start() {
        for capacity in [60.0, 999.0, 1_000.0, 12_345.0, 700_000.0] {
            let (trials, found) = search(SETTINGS, |_, rate| rate <= capacity);
            let knee = found.knee_per_s.expect("there is one");
            assert!(knee <= capacity && knee * 1.051 >= capacity, "{capacity}: {knee}");
            assert!(!found.at_the_limit && !found.has_hysteresis(), "{capacity}: {found:?}");
            assert!(trials.len() < 40, "{capacity}: {} measurements", trials.len());
            // Never confirmed by one measurement alone.
            assert!(trials.iter().filter(|(phase, ..)| *phase == Phase::Confirm).count() >= 2);
            let down: Vec<f64> =
                trials.iter().filter(|(phase, ..)| *phase == Phase::ComeDown).map(|trial| trial.1).collect();
            assert!(down.len() == WAY_DOWN.len() && down.windows(2).all(|pair| pair[0] > pair[1]));
        }
    }

    #[test]
    fn a_lucky_measurement_is_no_knee() {
        // 10,000 is the truth; a bisection is once told that 16,000 and more are met.
        let mut lucky = true;
        let (trials, found) = search(SETTINGS, |phase, rate| {
            rate <= 10_000.0 || (phase == Phase::Bisect && rate < 17_000.0) || std::mem::take(&mut lucky)
        });
        let knee = found.knee_per_s.expect("there is one");
        assert!(knee <= 10_000.0 && knee > 9_000.0, "{knee}");
        assert!(trials.iter().any(|(phase, rate, met)| *phase == Phase::Confirm && *rate > 11_000.0 && !met));
    }

    #[test]
    fn a_noisy_server_has_its_knee_near_where_it_meets_the_objective_mostly() {
        for seed in 0..50 {
            let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
            let (_, found) = search(SETTINGS, |_, rate| {
                let chance = 1.0 / (1.0 + ((rate - 20_000.0) / 1_000.0).exp());
                random.random::<f64>() < chance
            });
            let knee = found.knee_per_s.expect("there is one");
            assert!((14_000.0..24_000.0).contains(&knee), "seed {seed}: {knee}");
        }
    }

    #[test]
    fn what_overload_leaves_behind_is_found() {
        // Overload leaves a backlog that halves the capacity for the rest of the day.
        let mut broken = false;
        let (_, found) = search(SETTINGS, |phase, rate| {
            broken |= phase == Phase::ComeDown && rate > 15_000.0;
            rate <= if broken { 5_000.0 } else { 12_000.0 }
        });
        assert!(found.knee_per_s.is_some_and(|knee| knee > 11_000.0));
        assert!(found.has_hysteresis() && found.coming_down_per_s.is_none(), "{found:?}");
        // It holds a tenth below the knee: that is the rate to run at.
        let (_, found) = search(SETTINGS, |phase, rate| {
            rate <= if phase == Phase::ComeDown { 11_200.0 } else { 12_000.0 }
        });
        let down = found.coming_down_per_s.expect("it recovers");
        assert!(found.has_hysteresis() && down < 11_200.0, "{found:?}");
    }

    #[test]
    fn there_may_be_none_or_no_end_of_it() {
        let (trials, found) = search(SETTINGS, |_, _| false);
        assert_eq!((found.knee_per_s, found.coming_down_per_s), (None, None));
        assert!(trials.len() <= 10);
        let (_, found) = search(SETTINGS, |_, _| true);
        assert_eq!(found.knee_per_s, Some(1e6));
        assert!(found.at_the_limit);
        // Met once and never again.
        let mut first = true;
        let (_, found) = search(SETTINGS, |_, _| std::mem::take(&mut first));
        assert_eq!(found.knee_per_s, None);
    }
}
