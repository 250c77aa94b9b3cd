//! When each request of an open loop is meant to be sent.
//!
//! The arrivals are a function of seed, rate and process alone: nothing the server does can move one. They are
//! drawn in order, always ahead of the moment they are due, so a run of an hour needs no more memory than one of
//! a second. One process feeds all connections, dealt round-robin: connections that each kept a clock of their
//! own would beat in phase (memtier's rate limiter sends all its connections' requests in one burst).

use crate::workload::Share;
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use rand_distr::{Distribution, Exp1, Pareto};
use serde::{Serialize, Serializer};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The shape of Pareto gaps where none is given: heavy-tailed, with a mean and without a variance.
const PARETO_SHAPE: f64 = 1.5;
/// The gaps between requests of Facebook's pool ETC, generalised Pareto from 0 on: scale in nanoseconds, and shape (Atikoglu et
/// al., SIGMETRICS 2012, section 5).
const ETC_GAP: (f64, f64) = (16_029.2, 0.154_971);
/// A trace has at most this many arrivals: 80 MB.
const TRACE_ARRIVALS_MAX: usize = 10_000_000;

/// The process that arrivals follow.
#[derive(Clone, Debug, PartialEq)]
pub enum Arrival {
    /// Exponential gaps: independent users.
    Poisson,
    /// Equal gaps.
    Constant,
    /// Pareto gaps: bursts on every time scale.
    Pareto {
        /// Its exponent; over 1, so that there is a mean.
        shape: f64,
    },
    /// Generalised Pareto gaps, as measured in Facebook's pool ETC.
    Etc,
    /// Poisson while on, nothing while off; the rate is the mean over both.
    OnOff {
        /// Length of a burst.
        on_s: f64,
        /// Length of the silence after it.
        off_s: f64,
    },
    /// Poisson at a rate that goes from the given one to another in a straight line, and stays there.
    Ramp {
        /// The rate it goes to.
        to: f64,
        /// How long it takes.
        over_s: f64,
    },
    /// Recorded arrivals, again and again.
    Trace(Arc<Trace>),
}

/// How `--arrival` is written.
pub const ARRIVAL_USAGE: &str = "poisson, constant, pareto[:SHAPE], etc, onoff:ON/OFF (onoff:200ms/800ms), ramp:RATE/TIME \
                                 (ramp:50000/10s) or trace:FILE (one time in seconds a line)";

impl FromStr for Arrival {
    type Err = String;

    fn from_str(text: &str) -> Result<Arrival, String> {
        let usage = || format!("\"{text}\" is no arrival process; there are {ARRIVAL_USAGE}");
        let (name, rest) = match text.split_once(':') {
            Some((name, rest)) => (name, Some(rest)),
            None => (text, None),
        };
        let time = |text: &str| {
            let time = crate::cli::parse_duration(text)?.as_secs_f64();
            if time > 0.0 {
                Ok(time)
            } else {
                Err("a time of an arrival process is more than nothing".to_string())
            }
        };
        match (name, rest) {
            ("poisson", None) => Ok(Arrival::Poisson),
            ("constant", None) => Ok(Arrival::Constant),
            ("etc", None) => Ok(Arrival::Etc),
            ("pareto", rest) => {
                let shape = rest.map_or(Ok(PARETO_SHAPE), |rest| rest.parse().map_err(|_| usage()))?;
                // At 1 the mean is infinite; nearby it is so seldom reached that no run shows the rate asked for.
                if !(1.05..=100.0).contains(&shape) {
                    return Err(format!(
                        "the shape of Pareto gaps lies between 1.05 and 100, not at {shape}"
                    ));
                }
                Ok(Arrival::Pareto { shape })
            }
            ("onoff", Some(rest)) => {
                let (on, off) = rest.split_once('/').ok_or_else(usage)?;
                Ok(Arrival::OnOff { on_s: time(on)?, off_s: time(off)? })
            }
            ("ramp", Some(rest)) => {
                let (to, over) = rest.split_once('/').ok_or_else(usage)?;
                let to: f64 = to.parse().map_err(|_| usage())?;
                if !(0.001..=1e9).contains(&to) {
                    return Err("a rate lies between 0.001 and 1e9".into());
                }
                Ok(Arrival::Ramp { to, over_s: time(over)? })
            }
            ("trace", Some(path)) => Ok(Arrival::Trace(Arc::new(Trace::read(path)?))),
            _ => Err(usage()),
        }
    }
}

impl fmt::Display for Arrival {
    /// As the flag is written, so that a report can be replayed.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Arrival::Poisson => out.write_str("poisson"),
            Arrival::Constant => out.write_str("constant"),
            Arrival::Etc => out.write_str("etc"),
            Arrival::Pareto { shape } => write!(out, "pareto:{shape}"),
            Arrival::OnOff { on_s, off_s } => write!(out, "onoff:{on_s}s/{off_s}s"),
            Arrival::Ramp { to, over_s } => write!(out, "ramp:{to}/{over_s}s"),
            Arrival::Trace(trace) => write!(out, "trace:{}", trace.path),
        }
    }
}

impl Serialize for Arrival {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Arrival {
    /// For people.
    pub fn describe(&self) -> String {
        match self {
            Arrival::Poisson => "Poisson".into(),
            Arrival::Constant => "constant".into(),
            Arrival::Etc => "ETC (generalised Pareto)".into(),
            Arrival::Pareto { shape } => format!("Pareto (shape {shape})"),
            Arrival::OnOff { on_s, off_s } => format!("on {on_s} s, off {off_s} s"),
            Arrival::Ramp { to, over_s } => format!("ramp to {to}/s over {over_s} s"),
            Arrival::Trace(trace) => format!("trace {}", trace.path),
        }
    }

    /// The rate of its own that a process has.
    pub fn own_rate(&self) -> Option<f64> {
        match self {
            Arrival::Trace(trace) => Some(trace.rate()),
            // The mean of such gaps is scale / (1 − shape).
            Arrival::Etc => Some(1e9 * (1.0 - ETC_GAP.1) / ETC_GAP.0),
            _ => None,
        }
    }

    /// Its rate changes over the time of a run, and latencies may, too.
    pub fn is_stationary(&self) -> bool {
        matches!(self, Arrival::Poisson | Arrival::Constant | Arrival::Etc)
    }
}

/// Arrivals that were recorded somewhere.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// The file.
    path: String,
    /// Nanoseconds since the trace's beginning, ascending.
    arrivals_ns: Vec<u64>,
    /// Where the next repetition begins: one mean gap behind the last arrival.
    period_ns: u64,
}

impl Trace {
    /// Reads a file of times in seconds, one a line; what follows `#` is not read.
    pub fn read(path: &str) -> Result<Trace, String> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("cannot read the trace {path}: {error}"))?;
        Trace::parse(path, &text)
    }

    fn parse(path: &str, text: &str) -> Result<Trace, String> {
        let mut arrivals_ns = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let wrong = |what: &str| format!("{path}, line {}: {what}", index + 1);
            let word = line.split('#').next().unwrap_or_default().trim();
            if word.is_empty() {
                continue;
            }
            let seconds: f64 = word.parse().map_err(|_| wrong("not a time in seconds"))?;
            if !(0.0..=1e7).contains(&seconds) {
                return Err(wrong("a time lies between 0 and 1e7 seconds"));
            }
            let at = (seconds * 1e9) as u64;
            if arrivals_ns.last().is_some_and(|last| *last > at) {
                return Err(wrong("times must ascend"));
            }
            if arrivals_ns.len() == TRACE_ARRIVALS_MAX {
                return Err(wrong("a trace has at most ten million arrivals"));
            }
            arrivals_ns.push(at);
        }
        let (Some(first), Some(last)) = (arrivals_ns.first(), arrivals_ns.last()) else {
            return Err(format!("{path} holds no arrivals"));
        };
        if first == last {
            return Err(format!("{path}: all arrivals are at one moment; a rate needs two"));
        }
        let mean_gap = (last - first) / (arrivals_ns.len() as u64 - 1);
        let period_ns = last + mean_gap.max(1);
        Ok(Trace { path: path.into(), arrivals_ns, period_ns })
    }

    /// Arrivals a second.
    fn rate(&self) -> f64 {
        self.arrivals_ns.len() as f64 / (self.period_ns as f64 / 1e9)
    }
}

/// The arrivals of one run, in nanoseconds since its start.
#[derive(Clone, Debug)]
pub struct Schedule {
    random: Xoshiro256PlusPlus,
    process: Process,
    /// Exact time of the last arrival drawn, on the process' own clock. A float keeps fractions of a nanosecond,
    /// so that a constant rate does not drift by rounding; 2^53 ns are 104 days.
    at: f64,
    next: u64,
    /// Of so many arrivals one is this schedule's: the others belong to other threads.
    one_in: usize,
}

/// A process ready to draw from.
#[derive(Clone, Debug)]
enum Process {
    Poisson {
        gap_ns: f64,
    },
    Constant {
        gap_ns: f64,
    },
    Pareto {
        gaps: Pareto<f64>,
    },
    Etc {
        scale_ns: f64,
    },
    /// Its own clock stands still while it is off.
    OnOff {
        gap_ns: f64,
        on_ns: f64,
        period_ns: f64,
    },
    /// Its own clock counts expected arrivals.
    Ramp {
        from: f64,
        to: f64,
        over_s: f64,
    },
    /// Its own clock counts arrivals.
    Trace {
        trace: Arc<Trace>,
        stretch: f64,
    },
}

impl Process {
    fn new(arrival: Arrival, rate: f64) -> Process {
        let gap_ns = 1e9 / rate;
        match arrival {
            Arrival::Poisson => Process::Poisson { gap_ns },
            Arrival::Constant => Process::Constant { gap_ns },
            Arrival::Pareto { shape } => {
                // The mean of Pareto gaps is scale · shape / (shape − 1).
                let scale = gap_ns * (shape - 1.0) / shape;
                Process::Pareto { gaps: Pareto::new(scale, shape).expect("checked when it was read") }
            }
            Arrival::Etc => Process::Etc { scale_ns: gap_ns * (1.0 - ETC_GAP.1) },
            Arrival::OnOff { on_s, off_s } => {
                let period_ns = (on_s + off_s) * 1e9;
                let share_on = on_s / (on_s + off_s);
                Process::OnOff { gap_ns: gap_ns * share_on, on_ns: on_s * 1e9, period_ns }
            }
            Arrival::Ramp { to, over_s } => Process::Ramp { from: rate, to, over_s },
            Arrival::Trace(trace) => {
                let stretch = trace.rate() / rate;
                Process::Trace { trace, stretch }
            }
        }
    }
}

impl Schedule {
    /// Arrivals at `rate` a second on average, from time 0. A ramp begins there.
    pub fn new(arrival: Arrival, rate: f64, seed: u64) -> Schedule {
        assert!(rate.is_finite() && rate > 0.0, "a rate is a positive number");
        let random = Xoshiro256PlusPlus::seed_from_u64(seed ^ 0x5c4e_d01e_a221_7a15);
        let mut schedule =
            Schedule { random, process: Process::new(arrival, rate), at: 0.0, next: 0, one_in: 1 };
        schedule.draw();
        schedule
    }

    /// One thread's arrivals, dealt in turn: all threads draw the same and take every so-manieth. Whatever their number, the
    /// arrivals of all are those of the seed.
    pub fn dealt(mut self, share: Share) -> Schedule {
        self.one_in = share.of;
        (0..share.index).for_each(|_| self.draw());
        self
    }

    /// The next arrival, not taken.
    #[inline]
    pub fn peek(&self) -> u64 {
        self.next
    }

    /// Takes the next arrival if it is due at `now`.
    #[inline]
    pub fn take_due(&mut self, now: u64) -> Option<u64> {
        if self.next > now {
            return None;
        }
        let due = self.next;
        (0..self.one_in).for_each(|_| self.draw());
        Some(due)
    }

    #[inline]
    fn draw(&mut self) {
        let exponential = |random: &mut Xoshiro256PlusPlus| -> f64 { Exp1.sample(random) };
        self.next = match &self.process {
            Process::Poisson { gap_ns } => {
                self.at += exponential(&mut self.random) * gap_ns;
                self.at as u64
            }
            Process::Constant { gap_ns } => {
                self.at += gap_ns;
                self.at as u64
            }
            Process::Pareto { gaps } => {
                self.at += gaps.sample(&mut self.random);
                self.at as u64
            }
            Process::Etc { scale_ns } => {
                // The inverse of its distribution function, at a value that is exponential's: −ln of a uniform one.
                let shape = ETC_GAP.1;
                self.at += scale_ns / shape * ((exponential(&mut self.random) * shape).exp() - 1.0);
                self.at as u64
            }
            Process::OnOff { gap_ns, on_ns, period_ns } => {
                self.at += exponential(&mut self.random) * gap_ns;
                let bursts = (self.at / on_ns).floor();
                (bursts * period_ns + (self.at - bursts * on_ns)) as u64
            }
            Process::Ramp { from, to, over_s } => {
                self.at += exponential(&mut self.random);
                (ramp_time_s(self.at, *from, *to, *over_s) * 1e9) as u64
            }
            Process::Trace { trace, stretch } => {
                let number = self.at as usize;
                self.at += 1.0;
                let count = trace.arrivals_ns.len();
                let repetitions = (number / count) as u64;
                let at = repetitions * trace.period_ns + trace.arrivals_ns[number % count];
                (at as f64 * stretch) as u64
            }
        };
    }
}

/// When the expected number of arrivals of a ramp reaches `count`: the inverse of from·t + (to − from)·t²/(2·over).
fn ramp_time_s(count: f64, from: f64, to: f64, over_s: f64) -> f64 {
    let at_its_end = (from + to) / 2.0 * over_s;
    if count >= at_its_end {
        return over_s + (count - at_its_end) / to;
    }
    // The form of the solution that loses no digits where the ramp is nearly flat.
    let slope = (to - from) / over_s;
    2.0 * count / (from + (from * from + 2.0 * slope * count).max(0.0).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(arrival: Arrival, rate: f64, seed: u64, count: usize) -> Vec<u64> {
        let mut schedule = Schedule::new(arrival, rate, seed);
        (0..count).map(|_| schedule.take_due(u64::MAX).expect("always due")).collect()
    }

    #[test]
    fn the_same_seed_gives_the_same_arrivals_and_another_seed_others() {
        let first = draw(Arrival::Poisson, 1e5, 7, 10_000);
        assert_eq!(first, draw(Arrival::Poisson, 1e5, 7, 10_000));
        assert_ne!(first, draw(Arrival::Poisson, 1e5, 8, 10_000));
    }

    #[test]
    fn arrivals_do_not_depend_on_when_they_are_asked_for() {
        let expected = draw(Arrival::Poisson, 1e6, 3, 5_000);
        let mut schedule = Schedule::new(Arrival::Poisson, 1e6, 3);
        let mut taken = Vec::new();
        // Ask rarely and often in turn, as a stalled and a spinning generator would.
        let mut now = 0;
        while taken.len() < expected.len() {
            now += if taken.len() % 2 == 0 { 100_000 } else { 100 };
            while let Some(due) = schedule.take_due(now) {
                assert!(due <= now && schedule.peek() >= due);
                taken.push(due);
            }
        }
        assert_eq!(taken[..expected.len()], expected);
    }

    #[test]
    fn threads_deal_the_arrivals_of_one_schedule_among_themselves() {
        for arrival in ["poisson", "constant", "pareto", "etc", "onoff:10ms/20ms", "ramp:9000/1s"] {
            let arrival: Arrival = arrival.parse().expect("known");
            let whole = draw(arrival.clone(), 5_000.0, 11, 3_000);
            for of in [1, 2, 3, 7] {
                let mut dealt: Vec<u64> = Vec::new();
                for index in 0..of {
                    let mut schedule = Schedule::new(arrival.clone(), 5_000.0, 11).dealt(Share { index, of });
                    let mine =
                        (index..3_000).step_by(of).map(|_| schedule.take_due(u64::MAX).expect("always due"));
                    dealt.extend(mine);
                }
                dealt.sort_unstable();
                assert_eq!(dealt, whole, "{arrival}, {of} threads");
            }
        }
    }

    #[test]
    fn constant_arrivals_are_even_and_do_not_drift() {
        let arrivals = draw(Arrival::Constant, 3e5, 1, 300_000);
        assert_eq!(arrivals[299_999], 1_000_000_000);
        let gaps = arrivals.windows(2).map(|pair| pair[1] - pair[0]);
        assert!(gaps.into_iter().all(|gap| gap == 3333 || gap == 3334));
    }

    #[test]
    fn poisson_gaps_have_the_mean_the_spread_and_the_shape() {
        let rate = 50_000.0;
        for seed in 0..5 {
            let arrivals = draw(Arrival::Poisson, rate, seed, 200_000);
            let gaps: Vec<f64> =
                arrivals.windows(2).map(|pair| (pair[1] - pair[0]) as f64 * rate / 1e9).collect();
            let count = gaps.len() as f64;
            let mean = gaps.iter().sum::<f64>() / count;
            let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / count;
            // Five standard errors: 1/√n for the mean, √(8/n) for the variance of an exponential.
            assert!((mean - 1.0).abs() < 5.0 / count.sqrt(), "seed {seed}: mean {mean}");
            assert!((variance - 1.0).abs() < 5.0 * (8.0 / count).sqrt(), "seed {seed}: variance {variance}");
            // Kolmogorov-Smirnov distance to 1 − e^−x, at a level no honest seed reaches.
            let mut sorted = gaps;
            sorted.sort_by(f64::total_cmp);
            let distance = sorted
                .iter()
                .enumerate()
                .map(|(rank, gap)| ((rank as f64 + 0.5) / count - (1.0 - (-gap).exp())).abs())
                .fold(0.0, f64::max);
            assert!(distance < 2.2 / count.sqrt(), "seed {seed}: distance {distance}");
        }
    }

    fn every_process() -> Vec<Arrival> {
        let trace =
            Trace::parse("a trace", "0\n0.001 # a comment\n\n0.001\n0.0025\n0.004\n").expect("well-formed");
        vec![
            Arrival::Poisson,
            Arrival::Constant,
            Arrival::Pareto { shape: 1.5 },
            Arrival::OnOff { on_s: 0.02, off_s: 0.08 },
            Arrival::Ramp { to: 90_000.0, over_s: 0.5 },
            Arrival::Ramp { to: 1_000.0, over_s: 0.5 },
            Arrival::Trace(Arc::new(trace)),
        ]
    }

    #[test]
    fn every_process_ascends_repeats_with_its_seed_and_ignores_who_asks() {
        for arrival in every_process() {
            for seed in 0..20 {
                let expected = draw(arrival.clone(), 30_000.0, seed, 3_000);
                assert!(expected.windows(2).all(|pair| pair[0] <= pair[1]), "{arrival}, seed {seed}");
                assert_eq!(expected, draw(arrival.clone(), 30_000.0, seed, 3_000), "{arrival}, seed {seed}");
                // A generator that looks at random moments: each arrival is had once, in order, and not early.
                let mut asked_at = Xoshiro256PlusPlus::seed_from_u64(seed);
                let mut schedule = Schedule::new(arrival.clone(), 30_000.0, seed);
                let (mut taken, mut now) = (Vec::new(), 0);
                while taken.len() < expected.len() {
                    let pause: f64 = Exp1.sample(&mut asked_at);
                    now += 1 + (pause * 100_000.0) as u64;
                    while let Some(due) = schedule.take_due(now) {
                        assert!(due <= now, "{arrival}, seed {seed}");
                        taken.push(due);
                    }
                    assert!(schedule.peek() > now, "{arrival}, seed {seed}: what is due is not left");
                }
                assert_eq!(taken[..expected.len()], expected, "{arrival}, seed {seed}");
            }
        }
    }

    #[test]
    fn the_mean_rate_is_the_rate_asked_for() {
        // Gaps without a variance converge too slowly to be tested by their mean; see the next test.
        let rate = 40_000.0;
        for arrival in every_process().into_iter().filter(|arrival| !matches!(arrival, Arrival::Ramp { .. }))
        {
            if matches!(arrival, Arrival::Pareto { .. }) {
                continue;
            }
            for seed in 0..5 {
                // Whole periods of the on/off process, so that its phase does not count.
                let seconds = 4.0;
                let mut schedule = Schedule::new(arrival.clone(), rate, seed);
                let mut count = 0.0;
                while schedule.take_due((seconds * 1e9) as u64).is_some() {
                    count += 1.0;
                }
                let expected: f64 = rate * seconds;
                assert!((count - expected).abs() < 5.0 * expected.sqrt(), "{arrival}, seed {seed}: {count}");
            }
        }
    }

    #[test]
    fn pareto_gaps_have_their_distribution() {
        for shape in [1.2, 1.5, 3.0] {
            let rate = 10_000.0;
            let arrivals = draw(Arrival::Pareto { shape }, rate, 9, 100_000);
            let scale = 1e9 / rate * (shape - 1.0) / shape;
            let distance = distance(&arrivals, |gap| 1.0 - (scale / gap.max(scale)).powf(shape));
            assert!(distance < 2.2, "shape {shape}: distance {distance}");
        }
    }

    /// Kolmogorov's distance of the gaps from a distribution function, times the root of their number.
    fn distance(arrivals: &[u64], function: impl Fn(f64) -> f64) -> f64 {
        let mut gaps: Vec<f64> = arrivals.windows(2).map(|pair| (pair[1] - pair[0]) as f64).collect();
        gaps.sort_by(f64::total_cmp);
        let count = gaps.len() as f64;
        let ranked = gaps.iter().enumerate();
        let off = ranked.map(|(rank, gap)| ((rank as f64 + 0.5) / count - function(*gap)).abs());
        off.fold(0.0, f64::max) * count.sqrt()
    }

    #[test]
    fn etcs_gaps_are_those_of_the_paper_at_its_own_rate_and_at_others() {
        let own = Arrival::Etc.own_rate().expect("it has one");
        // The mean of the published distribution: 16.0292 µs / (1 − 0.154971).
        assert!((own - 1e6 / 18.968_816).abs() < 1.0, "{own}");
        for (rate, scale_us) in [(own, 16.029_2), (own / 10.0, 160.292)] {
            let arrivals = draw(Arrival::Etc, rate, 4, 100_000);
            let function = |gap: f64| 1.0 - (1.0 + 0.154_971 * gap / (scale_us * 1e3)).powf(-1.0 / 0.154_971);
            let distance = distance(&arrivals, function);
            assert!(distance < 2.2, "{rate}/s: distance {distance}");
        }
    }

    #[test]
    fn nothing_arrives_while_it_is_off_and_much_while_it_is_on() {
        let arrival = Arrival::OnOff { on_s: 0.01, off_s: 0.03 };
        for seed in 0..5 {
            let arrivals = draw(arrival.clone(), 10_000.0, seed, 20_000);
            assert!(arrivals.iter().all(|at| at % 40_000_000 < 10_000_000), "seed {seed}");
            // 40,000 a second while on: half of the first burst's arrivals in its first half.
            let half = arrivals.iter().filter(|at| **at % 40_000_000 < 5_000_000).count() as f64;
            assert!((half - 10_000.0).abs() < 5.0 * 5_000f64.sqrt(), "seed {seed}: {half}");
        }
    }

    #[test]
    fn a_ramp_goes_up_or_down_in_a_straight_line() {
        for (from, to) in [(1_000.0, 9_000.0), (9_000.0, 1_000.0), (5_000.0, 5_000.0)] {
            let mut counts = [0.0; 6];
            let mut schedule = Schedule::new(Arrival::Ramp { to, over_s: 8.0 }, from, 3);
            while let Some(at) = schedule.take_due(12_000_000_000 - 1) {
                counts[at as usize / 2_000_000_000] += 1.0;
            }
            for (index, count) in counts.iter().enumerate() {
                // The middle of two seconds decides; behind the ramp the rate stays.
                let share = ((index as f64 * 2.0 + 1.0) / 8.0).min(1.0);
                let expected: f64 = (from + (to - from) * share) * 2.0;
                assert!((count - expected).abs() < 5.0 * expected.sqrt(), "{from} to {to}, {index}: {count}");
            }
        }
    }

    #[test]
    fn a_trace_is_replayed_exactly_repeated_and_stretched() {
        let Some(Arrival::Trace(trace)) = every_process().pop() else { unreachable!("it is the last one") };
        let ms = |list: &[f64]| list.iter().map(|ms| (ms * 1e6) as u64).collect::<Vec<u64>>();
        // The mean gap of four in 4 ms stands between the repetitions.
        let expected = ms(&[0.0, 1.0, 1.0, 2.5, 4.0, 5.0, 6.0, 6.0, 7.5, 9.0]);
        assert_eq!(draw(Arrival::Trace(trace.clone()), trace.rate(), 1, 10), expected);
        assert!((trace.rate() - 1_000.0).abs() < 1e-6);
        let twice: Vec<u64> = expected.iter().map(|at| at / 2).collect();
        assert_eq!(draw(Arrival::Trace(trace), 2_000.0, 1, 10), twice);
        let wrong = |text: &str| Trace::parse("t", text).expect_err("must be refused");
        assert!(wrong("0\nx\n").contains("t, line 2: not a time"));
        assert!(wrong("1\n0.5\n").contains("must ascend"));
        assert!(wrong("# nothing\n").contains("no arrivals"));
        assert!(wrong("1\n1\n").contains("one moment"));
        assert!(wrong("-1\n").contains("between"));
    }

    #[test]
    fn processes_are_written_as_they_are_read() {
        for arrival in every_process() {
            if !matches!(arrival, Arrival::Trace(_)) {
                assert_eq!(arrival.to_string().parse(), Ok(arrival));
            }
        }
        assert_eq!("pareto".parse(), Ok(Arrival::Pareto { shape: 1.5 }));
        assert_eq!("onoff:200ms/1s".parse(), Ok(Arrival::OnOff { on_s: 0.2, off_s: 1.0 }));
        for wrong in [
            "",
            "fast",
            "poisson:2",
            "pareto:1",
            "pareto:x",
            "onoff:1s",
            "onoff:0s/1s",
            "ramp:0/1s",
            "ramp:5",
        ] {
            assert!(wrong.parse::<Arrival>().is_err(), "{wrong}");
        }
        assert!("trace:/no/such/file".parse::<Arrival>().expect_err("no file").contains("/no/such/file"));
    }
}
