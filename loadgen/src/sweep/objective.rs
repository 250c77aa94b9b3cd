//! What a service is to keep: `p99<1ms`.

use crate::cli::parse_duration;
use crate::histogram::{QUANTILES, Summary};
use crate::report::table::{micros, quantile_name};
use std::fmt;
use std::str::FromStr;

/// A figure of the response time and its limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Objective {
    /// Which percentile; `None`: the mean.
    quantile: Option<f64>,
    limit_ns: u64,
}

impl FromStr for Objective {
    type Err = String;

    fn from_str(text: &str) -> Result<Objective, String> {
        let usage = || {
            let names: Vec<String> = QUANTILES.iter().map(|quantile| quantile_name(*quantile)).collect();
            format!("an objective looks like p99<1ms; there are {} and mean", names.join(", "))
        };
        let (figure, limit) = text.split_once('<').ok_or_else(usage)?;
        let figure = figure.trim();
        let quantile = match figure {
            "mean" => None,
            _ => Some(
                QUANTILES
                    .into_iter()
                    .find(|quantile| quantile_name(*quantile) == figure)
                    .ok_or_else(usage)?,
            ),
        };
        let limit_ns = parse_duration(limit.trim_start_matches('=').trim())?.as_nanos() as u64;
        if limit_ns == 0 {
            return Err("a limit is more than nothing".into());
        }
        Ok(Objective { quantile, limit_ns })
    }
}

impl fmt::Display for Objective {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let figure = self.quantile.map_or("mean".into(), quantile_name);
        write!(out, "{figure} < {}", micros(Some(self.limit_ns)))
    }
}

impl serde::Serialize for Objective {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Objective {
    /// The figure it is about; `None`: too few samples name it.
    pub fn figure_ns(&self, summary: &Summary) -> Option<u64> {
        match self.quantile {
            Some(quantile) => summary.at(quantile),
            None => summary.mean_ns.map(|mean| mean as u64),
        }
    }

    /// Whether that figure keeps it.
    pub fn is_met_by(&self, figure_ns: u64) -> bool {
        figure_ns < self.limit_ns
    }

    /// Samples that name the figure, with some to spare: arrivals vary.
    pub fn samples_needed(&self) -> f64 {
        self.quantile.map_or(100.0, |quantile| 10.0 / (1.0 - quantile) * 1.2 + 50.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objectives_are_read() {
        let objective: Objective = "p99.9<=500us".parse().expect("well-formed");
        assert_eq!(objective, Objective { quantile: Some(0.999), limit_ns: 500_000 });
        assert_eq!(objective.to_string(), "p99.9 < 500 µs");
        assert_eq!("mean < 2ms".parse(), Ok(Objective { quantile: None, limit_ns: 2_000_000 }));
        for wrong in ["", "p99", "p98<1ms", "p99<0ms", "p99<x", "max<1s"] {
            assert!(wrong.parse::<Objective>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_objective_is_kept_below_its_limit_and_unknown_without_samples() {
        let objective: Objective = "p99<1ms".parse().expect("well-formed");
        assert!(objective.is_met_by(999_999) && !objective.is_met_by(1_000_000));
        let mut histogram = crate::histogram::empty();
        histogram.saturating_record_n(5_000, 999);
        assert_eq!(objective.figure_ns(&Summary::of(&histogram)), None);
        histogram.saturating_record_n(5_000, 1);
        assert!(objective.figure_ns(&Summary::of(&histogram)).is_some());
        assert!(objective.samples_needed() >= 1_000.0);
    }
}
