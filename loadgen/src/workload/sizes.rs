//! How large keys and values are, and how long values live.
//!
//! The sizes of a key and its value follow from the key's number and the seed: whoever sets a key, in whatever order, sets the same bytes, so a
//! prefill and the run agree and any value can be checked.

use serde::{Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// Sizes of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueSizes {
    /// All alike.
    Fixed(u32),
    /// Evenly between both, which are possible, too.
    Range(u32, u32),
    /// Facebook's pool ETC.
    Etc,
}

/// Larger values are asked for by no test, and answered by no server's defaults.
pub const VALUE_BYTES_MAX: u32 = 64 << 20;
/// The tail of ETC is cut here: memcached's own limit.
const ETC_BYTES_MAX: u32 = 1 << 20;

impl FromStr for ValueSizes {
    type Err = String;

    fn from_str(text: &str) -> Result<ValueSizes, String> {
        let usage = || "sizes of values are a number of bytes, a range such as 32-512, or etc".to_string();
        let number = |text: &str| match text.parse::<u32>() {
            Ok(bytes) if bytes <= VALUE_BYTES_MAX => Ok(bytes),
            Ok(_) => Err(format!("a value has at most {VALUE_BYTES_MAX} bytes")),
            Err(_) => Err(usage()),
        };
        match text.split_once('-') {
            _ if text == "etc" => Ok(ValueSizes::Etc),
            None => Ok(ValueSizes::Fixed(number(text)?)),
            Some((from, to)) => match (number(from)?, number(to)?) {
                (from, to) if from < to => Ok(ValueSizes::Range(from, to)),
                (from, to) if from == to => Ok(ValueSizes::Fixed(from)),
                _ => Err("a range of sizes begins with the smaller one".into()),
            },
        }
    }
}

impl fmt::Display for ValueSizes {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ValueSizes::Fixed(bytes) => write!(out, "{bytes}"),
            ValueSizes::Range(from, to) => write!(out, "{from}-{to}"),
            ValueSizes::Etc => out.write_str("etc"),
        }
    }
}

impl Serialize for ValueSizes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Sizes up to 14 bytes and their shares in ETC, as Atikoglu et al. give them (SIGMETRICS 2012, table 5); the rest is a
/// generalised Pareto distribution from 15 bytes on.
const ETC_SMALL: [f64; 15] = [
    0.00536, 0.00047, 0.17820, 0.09239, 0.00018, 0.02740, 0.00065, 0.00606, 0.00023, 0.00837, 0.00837,
    0.08989, 0.00092, 0.00326, 0.01980,
];
const ETC_SCALE: f64 = 214.476;
const ETC_SHAPE: f64 = 0.348_238;

impl ValueSizes {
    /// The largest possible.
    pub fn max(self) -> u32 {
        match self {
            ValueSizes::Fixed(bytes) | ValueSizes::Range(_, bytes) => bytes,
            ValueSizes::Etc => ETC_BYTES_MAX,
        }
    }

    /// The size of a key's value.
    #[inline]
    pub fn of_key(self, key: u64, seed: u64) -> u32 {
        match self {
            ValueSizes::Fixed(bytes) => bytes,
            ValueSizes::Range(from, to) => {
                let span = u64::from(to - from) + 1;
                from + ((u128::from(mix(key ^ seed)) * u128::from(span)) >> 64) as u32
            }
            ValueSizes::Etc => etc((mix(key ^ seed) >> 11) as f64 / (1u64 << 53) as f64),
        }
    }
}

/// The size at which ETC's distribution function reaches `share`.
fn etc(share: f64) -> u32 {
    let mut below = 0.0;
    for (bytes, part) in ETC_SMALL.iter().enumerate() {
        below += part;
        if share < below {
            return bytes as u32;
        }
    }
    let rest = (share - below) / (1.0 - below);
    let bytes = 15.0 + ETC_SCALE / ETC_SHAPE * ((1.0 - rest).powf(-ETC_SHAPE) - 1.0);
    bytes.min(f64::from(ETC_BYTES_MAX)) as u32
}

/// Sizes of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeySizes {
    /// All alike.
    Fixed(u16),
    /// Evenly between both, which are possible, too.
    Range(u16, u16),
    /// Facebook's pool ETC.
    Etc,
}

/// The largest key of memcached, and of its pools.
const KEY_BYTES_MAX: u16 = 250;

impl FromStr for KeySizes {
    type Err = String;

    fn from_str(text: &str) -> Result<KeySizes, String> {
        if text == "etc" {
            return Ok(KeySizes::Etc);
        }
        let number = |text: &str| match text.parse::<u16>() {
            Ok(0) | Err(_) => {
                Err("sizes of keys are a number of bytes, a range such as 16-40, or etc".to_string())
            }
            Ok(bytes) => Ok(bytes),
        };
        match text.split_once('-') {
            None => Ok(KeySizes::Fixed(number(text)?)),
            Some((from, to)) => match (number(from)?, number(to)?) {
                (from, to) if from < to && to - from < KEY_BYTES_MAX => Ok(KeySizes::Range(from, to)),
                (from, to) if from == to => Ok(KeySizes::Fixed(from)),
                _ => Err(format!(
                    "a range of sizes begins with the smaller one, and spans less than {KEY_BYTES_MAX} bytes"
                )),
            },
        }
    }
}

impl fmt::Display for KeySizes {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeySizes::Fixed(bytes) => write!(out, "{bytes}"),
            KeySizes::Range(from, to) => write!(out, "{from}-{to}"),
            KeySizes::Etc => out.write_str("etc"),
        }
    }
}

impl Serialize for KeySizes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The generalised extreme value distribution of ETC's key sizes (Atikoglu et al., section 5): location, scale, shape.
const ETC_KEY: (f64, f64, f64) = (30.7984, 8.20449, 0.078688);

impl KeySizes {
    /// The smallest and the largest possible, where a key needs at least so many bytes for its number.
    pub fn span(self, needed: u16) -> (u16, u16) {
        match self {
            KeySizes::Fixed(bytes) => (bytes, bytes),
            KeySizes::Range(from, to) => (from, to),
            KeySizes::Etc => (needed.min(KEY_BYTES_MAX), KEY_BYTES_MAX),
        }
    }

    /// The size of a key, within `span`.
    #[inline]
    pub fn of_key(self, key: u64, seed: u64, span: (u16, u16)) -> u16 {
        match self {
            KeySizes::Fixed(bytes) => bytes,
            KeySizes::Range(from, to) => {
                let count = u128::from(to - from) + 1;
                from + ((u128::from(mix(key ^ seed ^ KEY_SIZES)) * count) >> 64) as u16
            }
            KeySizes::Etc => {
                let share = ((mix(key ^ seed ^ KEY_SIZES) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
                let (location, scale, shape) = ETC_KEY;
                let bytes = location + scale / shape * ((-share.ln()).powf(-shape) - 1.0);
                (bytes.round() as u16).clamp(span.0, span.1)
            }
        }
    }
}

/// A key's size says nothing of its value's.
const KEY_SIZES: u64 = 0x6b65_7973_697a_6573;

/// Finaliser of splitmix64: neighbours in, strangers out.
#[inline]
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// How long values live: times to live with weights. Empty: for ever.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TtlMix(pub Vec<(Ttl, u32)>);

/// A time to live in milliseconds; `None`: for ever.
pub type Ttl = Option<u64>;

impl FromStr for TtlMix {
    type Err = String;

    fn from_str(text: &str) -> Result<TtlMix, String> {
        let mut mix = Vec::new();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (time, weight) = part.split_once(':').unwrap_or((part, "1"));
            let weight = weight.parse().map_err(|_| format!("\"{part}\": a weight is a whole number"))?;
            let ttl = match time {
                "none" => None,
                time => match crate::cli::parse_duration(time)?.as_millis() as u64 {
                    0 => return Err("a time to live is at least a millisecond".into()),
                    ms => Some(ms),
                },
            };
            mix.push((ttl, weight));
        }
        match mix.iter().map(|(_, weight)| u64::from(*weight)).sum::<u64>() {
            0 if !mix.is_empty() => Err("a mix of times to live needs a weight".into()),
            _ if mix.len() > 100 => Err("a mix has at most a hundred times to live".into()),
            _ => Ok(TtlMix(mix)),
        }
    }
}

impl fmt::Display for TtlMix {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |(ttl, weight): &(Ttl, u32)| match ttl {
            Some(ms) => format!("{ms}ms:{weight}"),
            None => format!("none:{weight}"),
        };
        out.write_str(&self.0.iter().map(part).collect::<Vec<_>>().join(","))
    }
}

impl Serialize for TtlMix {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_in_range_reach_both_ends_and_belong_to_their_key() {
        let range = ValueSizes::Range(10, 19);
        let mut seen = [0; 10];
        for key in 0..10_000 {
            let size = range.of_key(key, 7);
            assert_eq!(size, range.of_key(key, 7));
            seen[size as usize - 10] += 1;
        }
        assert!(seen.iter().all(|count| (850..1_150).contains(count)), "{seen:?}");
        assert!(
            (0..100).any(|key| range.of_key(key, 7) != range.of_key(key, 8)),
            "another seed, other sizes"
        );
    }

    #[test]
    fn etc_has_the_sizes_of_the_paper() {
        let mut sizes: Vec<u32> = (0..200_000).map(|key| ValueSizes::Etc.of_key(key, 1)).collect();
        sizes.sort_unstable();
        let share = |size: u32| sizes.iter().filter(|found| **found == size).count() as f64 / 200_000.0;
        assert!((share(2) - 0.1782).abs() < 0.005 && (share(11) - 0.0899).abs() < 0.005);
        // The distribution function, worked out from its formula: half of the tail lies below 15 + 168 bytes.
        let small: f64 = ETC_SMALL.iter().sum();
        let tail = &sizes[(small * 200_000.0) as usize..];
        let median = 15.0 + ETC_SCALE / ETC_SHAPE * (2f64.powf(ETC_SHAPE) - 1.0);
        assert!((f64::from(tail[tail.len() / 2]) / median - 1.0).abs() < 0.03, "{}", tail[tail.len() / 2]);
        assert!(sizes.last().is_some_and(|last| *last > 5_000 && *last <= ETC_BYTES_MAX));
    }

    #[test]
    fn etc_has_the_key_sizes_of_the_paper() {
        let span = KeySizes::Etc.span(10);
        let mut sizes: Vec<u16> = (0..200_000).map(|key| KeySizes::Etc.of_key(key, 1, span)).collect();
        sizes.sort_unstable();
        // Quantiles by the formula of the distribution function, exp(-(1 + k·(x − μ)/σ)^(−1/k)).
        for (at, expected) in [(0.1, 24.4), (0.5, 33.9), (0.9, 50.9), (0.99, 76.3)] {
            let found = f64::from(sizes[(at * 200_000.0) as usize]);
            assert!((found - expected).abs() < 1.0, "{at}: {found}, not {expected}");
        }
        assert!(sizes[0] >= 10 && sizes[199_999] <= 250);
        let range: KeySizes = "20-40".parse().expect("a range");
        assert!((0..1_000).all(|key| (20..=40).contains(&range.of_key(key, 3, range.span(0)))));
        for text in ["16", "20-40", "etc"] {
            assert_eq!(text.parse::<KeySizes>().expect("known").to_string(), text);
        }
        for wrong in ["", "0", "x", "40-20", "1-9999", "70000"] {
            assert!(wrong.parse::<KeySizes>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_and_ttls_are_written_as_they_are_read() {
        for text in ["64", "32-512", "etc"] {
            assert_eq!(text.parse::<ValueSizes>().expect("known").to_string(), text);
        }
        for wrong in ["", "x", "5-2", "-", "1-", "99999999999", "64MB"] {
            assert!(wrong.parse::<ValueSizes>().is_err(), "{wrong}");
        }
        let mix: TtlMix = "none:8,60s,500ms:2".parse().expect("well-formed");
        assert_eq!(mix, TtlMix(vec![(None, 8), (Some(60_000), 1), (Some(500), 2)]));
        assert_eq!(mix.to_string().parse(), Ok(mix));
        assert_eq!("".parse(), Ok(TtlMix::default()));
        for wrong in ["0s", "5s:x", "none:0", "5q"] {
            assert!(wrong.parse::<TtlMix>().is_err(), "{wrong}");
        }
    }
}
