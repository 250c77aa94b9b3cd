//! Which key a request is about.

use super::Share;
use rand::Rng;
use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;
use rand_distr::{Distribution, Normal, Zipf};
use serde::{Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// The distribution of keys.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum KeyDistribution {
    /// All alike.
    Uniform,
    /// The n-th key as often as n^−theta.
    Zipf {
        /// The exponent.
        theta: f64,
    },
    /// A few keys get most requests; within both groups all are alike.
    Hotspot {
        /// Share of the keys that are hot.
        keys: f64,
        /// Share of the requests that go to them.
        requests: f64,
    },
    /// One after the other, and again.
    Sequential,
    /// Around the middle of the key range.
    Gaussian {
        /// Standard deviation as a part of the number of keys.
        deviation: f64,
    },
}

/// How `--key-distribution` is written.
pub const KEYS_USAGE: &str =
    "uniform, zipf[:THETA], hotspot:KEYS/REQUESTS (hotspot:0.2/0.8), sequential or gaussian[:DEVIATION]";

impl FromStr for KeyDistribution {
    type Err = String;

    fn from_str(text: &str) -> Result<KeyDistribution, String> {
        let usage = || format!("\"{text}\" is no distribution of keys; there are {KEYS_USAGE}");
        let (name, rest) = match text.split_once(':') {
            Some((name, rest)) => (name, Some(rest)),
            None => (text, None),
        };
        let number = |text: &str| text.parse::<f64>().map_err(|_| usage());
        let share = |text: &str| match number(text)? {
            share if share > 0.0 && share < 1.0 => Ok(share),
            _ => Err("a share of a hotspot lies between 0 and 1".to_string()),
        };
        match (name, rest) {
            ("uniform", None) => Ok(KeyDistribution::Uniform),
            ("sequential", None) => Ok(KeyDistribution::Sequential),
            ("zipf", rest) => {
                let theta = rest.map_or(Ok(0.99), number)?;
                if theta.is_finite() && theta >= 0.0 {
                    return Ok(KeyDistribution::Zipf { theta });
                }
                Err(format!("--theta {theta}: an exponent is 0 or more"))
            }
            ("hotspot", Some(rest)) => {
                let (keys, requests) = rest.split_once('/').ok_or_else(usage)?;
                Ok(KeyDistribution::Hotspot { keys: share(keys)?, requests: share(requests)? })
            }
            ("gaussian", rest) => {
                // As memtier_benchmark's default.
                let deviation = rest.map_or(Ok(1.0 / 6.0), number)?;
                if deviation > 0.0 && deviation <= 10.0 {
                    return Ok(KeyDistribution::Gaussian { deviation });
                }
                Err("the deviation is a part of the number of keys: more than 0, and 10 at most".into())
            }
            _ => Err(usage()),
        }
    }
}

impl fmt::Display for KeyDistribution {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeyDistribution::Uniform => out.write_str("uniform"),
            KeyDistribution::Zipf { theta } => write!(out, "zipf:{theta}"),
            KeyDistribution::Hotspot { keys, requests } => write!(out, "hotspot:{keys}/{requests}"),
            KeyDistribution::Sequential => out.write_str("sequential"),
            KeyDistribution::Gaussian { deviation } => write!(out, "gaussian:{deviation}"),
        }
    }
}

impl Serialize for KeyDistribution {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A distribution ready to draw from.
#[derive(Clone, Debug)]
pub enum KeyChoice {
    /// See [`KeyDistribution::Uniform`].
    Uniform(u64),
    /// See [`KeyDistribution::Zipf`].
    Zipf(Zipf<f64>),
    /// Hot keys, all keys, and the part of 2^64 below which a draw is hot.
    Hotspot(u64, u64, u64),
    /// The next one, and how many there are.
    Sequential(u64, u64),
    /// The middle and the deviation, and how many there are.
    Gaussian(Normal<f64>, u64),
}

impl KeyChoice {
    /// For that many keys.
    pub fn new(distribution: KeyDistribution, keys: u64) -> Result<KeyChoice, String> {
        Ok(match distribution {
            KeyDistribution::Uniform => KeyChoice::Uniform(keys),
            KeyDistribution::Zipf { theta } => KeyChoice::Zipf(
                Zipf::new(keys as f64, theta).map_err(|error| format!("--theta {theta}: {error}"))?,
            ),
            KeyDistribution::Hotspot { keys: share, requests } => {
                if keys < 2 {
                    return Err("a hotspot needs two keys: one that is hot and one that is not".into());
                }
                let hot = ((keys as f64 * share).round() as u64).clamp(1, keys - 1);
                KeyChoice::Hotspot(hot, keys, (requests * u64::MAX as f64) as u64)
            }
            KeyDistribution::Sequential => KeyChoice::Sequential(0, keys),
            KeyDistribution::Gaussian { deviation } => {
                let normal = Normal::new(keys as f64 / 2.0, keys as f64 * deviation);
                KeyChoice::Gaussian(normal.map_err(|error| format!("--key-distribution: {error}"))?, keys)
            }
        })
    }

    /// Threads that go through the keys in order begin at different places.
    pub fn of_share(mut self, share: Share) -> KeyChoice {
        if let KeyChoice::Sequential(next, count) = &mut self {
            *next = (u128::from(*count) * share.index as u128 / share.of as u128) as u64;
        }
        self
    }

    /// The key of the next request.
    #[inline]
    pub fn draw(&mut self, random: &mut Xoshiro256PlusPlus) -> u64 {
        // Multiply-shift: the bias of 2^-64·n is far below what a run could show.
        let below = |random: &mut Xoshiro256PlusPlus, count: u64| {
            ((u128::from(random.next_u64()) * u128::from(count)) >> 64) as u64
        };
        match self {
            KeyChoice::Uniform(count) => below(random, *count),
            KeyChoice::Zipf(zipf) => zipf.sample(random) as u64 - 1,
            KeyChoice::Sequential(next, count) => {
                let key = *next;
                *next = if key + 1 == *count { 0 } else { key + 1 };
                key
            }
            KeyChoice::Hotspot(hot, count, limit) => match random.next_u64() < *limit {
                true => below(random, *hot),
                false => *hot + below(random, *count - *hot),
            },
            KeyChoice::Gaussian(normal, count) => {
                // What falls outside is drawn again, a few times: then it is spread evenly, and no draw is endless.
                for _ in 0..16 {
                    let key = normal.sample(random);
                    if key >= 0.0 && key < *count as f64 {
                        return key as u64;
                    }
                }
                random.random_range(0..*count)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    const KEYS: u64 = 1_000;
    const DRAWS: usize = 200_000;

    /// How often each key was drawn.
    fn counts(text: &str, seed: u64) -> Vec<f64> {
        let mut choice = KeyChoice::new(text.parse().expect("a distribution"), KEYS).expect("possible");
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut counts = vec![0.0; KEYS as usize];
        (0..DRAWS).for_each(|_| counts[choice.draw(&mut random) as usize] += 1.0);
        counts
    }

    fn share(counts: &[f64]) -> f64 {
        counts.iter().sum::<f64>() / DRAWS as f64
    }

    #[test]
    fn every_distribution_has_its_shape() {
        for seed in 0..3 {
            let uniform = counts("uniform", seed);
            // Five standard deviations of a count of 200.
            assert!(
                uniform.iter().all(|count| (count - 200.0).abs() < 5.0 * 200f64.sqrt() + 1.0),
                "seed {seed}"
            );
            let sequential = counts("sequential", seed);
            assert!(sequential.iter().all(|count| *count == 200.0));
            let hotspot = counts("hotspot:0.2/0.8", seed);
            assert!((share(&hotspot[..200]) - 0.8).abs() < 0.005, "seed {seed}: {}", share(&hotspot[..200]));
            assert!(
                hotspot[200..].iter().all(|count| *count > 10.0),
                "seed {seed}: the others are asked for, too"
            );
            let zipf = counts("zipf:0.99", seed);
            // 1/H(1000, 0.99) is 13 %, and the tenth key gets 10^−0.99 of that.
            assert!((share(&zipf[..1]) - 0.130).abs() < 0.01, "seed {seed}: {}", share(&zipf[..1]));
            assert!((zipf[9] / zipf[0] - 0.1023).abs() < 0.02, "seed {seed}");
            let gaussian = counts("gaussian:0.1", seed);
            // One deviation to either side.
            assert!((share(&gaussian[400..600]) - 0.6827).abs() < 0.01, "seed {seed}");
            assert!((share(&gaussian[..500]) - 0.5).abs() < 0.01, "seed {seed}");
        }
    }

    #[test]
    fn distributions_are_written_as_they_are_read_and_nonsense_is_refused() {
        for text in ["uniform", "zipf:0.99", "hotspot:0.2/0.8", "sequential", "gaussian:0.25"] {
            assert_eq!(text.parse::<KeyDistribution>().expect("known").to_string(), text);
        }
        for wrong in
            ["", "zipf:-1", "zipf:x", "hotspot", "hotspot:0/1", "hotspot:0.5", "gaussian:0", "uniform:1"]
        {
            assert!(wrong.parse::<KeyDistribution>().is_err(), "{wrong}");
        }
        assert!(KeyChoice::new(KeyDistribution::Hotspot { keys: 0.5, requests: 0.5 }, 1).is_err());
    }
}
