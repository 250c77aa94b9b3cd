//! Other load generators' own figures, read where each of them writes them.
//!
//! All are closed loops, and each has its own clock and its own idea of a percentile: what they report is shown as
//! theirs. Times are brought to nanoseconds; what a tool does not say is not known.

use super::cases::{Case, ToolOutput};
use crate::workload::Protocol;
use std::path::Path;

/// What a tool says of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ToolFigures {
    /// Requests a second.
    pub throughput_per_s: f64,
    /// Median latency.
    pub p50_ns: Option<u64>,
    /// 99th percentile.
    pub p99_ns: Option<u64>,
}

impl ToolOutput {
    /// What its figures mean, and where they cannot agree with this tool's.
    pub fn explained(self) -> &'static str {
        match self {
            ToolOutput::RedisBenchmarkCsv => {
                "redis-benchmark: a closed loop of one thread and a fixed number of requests; its rate counts the start and the \
                 last stragglers, its latency runs from the write of a batch to the first read that holds a reply. At pipeline 1 it \
                 is the bottleneck of a fast server: then its median is its own turn of the loop."
            }
            ToolOutput::MemtierJson => {
                "memtier_benchmark: a closed loop; a connection asks again with every reply, not with every batch; its rate is the \
                 mean over whole seconds, without a warm-up. Its keys have the size of this tool's, and are set before."
            }
            ToolOutput::WrkText => {
                "wrk: a closed loop over keep-alive connections that asks for one key again and again; its latency counts from \
                 the write, and its percentiles are of all threads together."
            }
            ToolOutput::K6Summary => {
                "k6: a closed loop of virtual users, each a script; http_req_duration begins when the request is written, after \
                 the script, so a k6 that is busy shows less latency and a rate of its own, many times below the server's."
            }
            ToolOutput::NullClientText => {
                "the null server's bare client: a closed loop that does nothing but ask and count; of a batch it knows when the \
                 last reply came. It is the limit of what a generator on one core can ask."
            }
        }
    }

    /// What is spoken by the tool that writes this.
    pub fn protocol(self) -> Protocol {
        match self {
            ToolOutput::RedisBenchmarkCsv | ToolOutput::MemtierJson | ToolOutput::NullClientText => {
                Protocol::Resp
            }
            ToolOutput::WrkText | ToolOutput::K6Summary => Protocol::Http,
        }
    }

    /// Why its throughput in a case is another figure than this tool's; `None`: it is the same.
    pub fn other_throughput(self, case: &Case) -> Option<String> {
        if case.is_open() {
            return Some("it has a closed loop, and this tool an open one".into());
        }
        match self {
            ToolOutput::WrkText | ToolOutput::K6Summary if case.pipeline > 1 => {
                Some(format!("it has no pipeline: it asks once where this tool asks {} times", case.pipeline))
            }
            ToolOutput::RedisBenchmarkCsv | ToolOutput::NullClientText if case.sets > 0 && case.gets > 0 => {
                Some("it asks one kind of request, and this tool a mix".into())
            }
            _ => None,
        }
    }

    /// Why its median in a case is another figure than this tool's, although the throughput is the same.
    pub fn other_median(self, case: &Case) -> Option<&'static str> {
        match self {
            _ if case.pipeline == 1 => None,
            ToolOutput::RedisBenchmarkCsv => Some(
                "of a batch it counts to the first read that holds a reply, this tool each request to its own reply",
            ),
            ToolOutput::NullClientText => {
                Some("of a batch it counts to the last reply, this tool each request to its own reply")
            }
            _ => None,
        }
    }

    /// The file that it writes in the server's folder, if its figures are there and not on its standard output.
    fn file(self) -> Option<&'static str> {
        match self {
            ToolOutput::RedisBenchmarkCsv | ToolOutput::WrkText | ToolOutput::NullClientText => None,
            ToolOutput::MemtierJson | ToolOutput::K6Summary => Some("out.json"),
        }
    }

    /// Finds the figures; `None`: they are not where they should be.
    pub fn figures(self, stdout: &[u8], folder: &Path) -> Option<ToolFigures> {
        match self.file() {
            Some(file) => self.parse(&std::fs::read(folder.join(file)).ok()?),
            None => self.parse(stdout),
        }
    }

    fn parse(self, bytes: &[u8]) -> Option<ToolFigures> {
        let text = std::str::from_utf8(bytes).ok()?;
        match self {
            ToolOutput::RedisBenchmarkCsv => redis_benchmark(text),
            ToolOutput::MemtierJson => memtier(text),
            ToolOutput::WrkText => wrk(text),
            ToolOutput::K6Summary => k6(text),
            ToolOutput::NullClientText => null_client(text),
        }
    }
}

fn ms(ms: f64) -> Option<u64> {
    (ms.is_finite() && ms >= 0.0).then_some((ms * 1e6).round() as u64)
}

/// `"test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms",…` and a line of values.
fn redis_benchmark(text: &str) -> Option<ToolFigures> {
    let cells =
        |line: &str| line.split(',').map(|cell| cell.trim_matches('"').to_string()).collect::<Vec<_>>();
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with('"')).collect();
    let (names, values) = (cells(lines.first()?), cells(lines.last().filter(|_| lines.len() > 1)?));
    let at = |name: &str| {
        let index = names.iter().position(|known| known == name)?;
        values.get(index)?.parse::<f64>().ok()
    };
    Some(ToolFigures {
        throughput_per_s: at("rps")?,
        p50_ns: at("p50_latency_ms").and_then(ms),
        p99_ns: at("p99_latency_ms").and_then(ms),
    })
}

fn memtier(text: &str) -> Option<ToolFigures> {
    let report: serde_json::Value = serde_json::from_str(text).ok()?;
    let totals = report.pointer("/ALL STATS/Totals")?;
    let percentile =
        |name: &str| totals.pointer(&format!("/Percentile Latencies/{name}"))?.as_f64().and_then(ms);
    Some(ToolFigures {
        throughput_per_s: totals.pointer("/Ops~1sec")?.as_f64()?,
        p50_ns: percentile("p50.00"),
        p99_ns: percentile("p99.00"),
    })
}

/// `Requests/sec: 12345.67`, and with `--latency` a line such as `50%  635.00us` for each percentile.
fn wrk(text: &str) -> Option<ToolFigures> {
    let after = |name: &str| {
        text.lines().find_map(|line| line.trim().strip_prefix(name)).map(|rest| rest.trim().to_string())
    };
    let time = |name: &str| {
        let text = after(name)?;
        let digits = text.trim_end_matches(|character: char| character.is_ascii_alphabetic());
        let factor = match &text[digits.len()..] {
            "us" => 1e-3,
            "ms" => 1.0,
            "s" => 1e3,
            _ => return None,
        };
        ms(digits.parse::<f64>().ok()? * factor)
    };
    Some(ToolFigures {
        throughput_per_s: after("Requests/sec:")?.parse().ok()?,
        p50_ns: time("50%"),
        p99_ns: time("99%"),
    })
}

/// `--summary-export` with `--summary-trend-stats med,p(99)`.
fn k6(text: &str) -> Option<ToolFigures> {
    let summary: serde_json::Value = serde_json::from_str(text).ok()?;
    let trend =
        |name: &str| summary.pointer(&format!("/metrics/http_req_duration/{name}"))?.as_f64().and_then(ms);
    Some(ToolFigures {
        throughput_per_s: summary.pointer("/metrics/http_reqs/rate")?.as_f64()?,
        p50_ns: trend("med"),
        p99_ns: trend("p(99)"),
    })
}

/// `166000 requests/s  conns 50 pipeline 1  p50 290.8 us  p99 512.0 us  p99.9 …`
fn null_client(text: &str) -> Option<ToolFigures> {
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let before = |name: &str| {
        let at = words.iter().position(|word| *word == name)?;
        words.get(at.checked_sub(1)?)?.parse::<f64>().ok()
    };
    let after = |name: &str| {
        let at = words.iter().position(|word| *word == name)?;
        ms(words.get(at + 1)?.parse::<f64>().ok()? / 1e3)
    };
    Some(ToolFigures { throughput_per_s: before("requests/s")?, p50_ns: after("p50"), p99_ns: after("p99") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tools_figures_are_found() {
        let expected = |rate, p50, p99| {
            Some(ToolFigures { throughput_per_s: rate, p50_ns: Some(p50), p99_ns: Some(p99) })
        };
        let csv = b"\"test\",\"rps\",\"avg_latency_ms\",\"min_latency_ms\",\"p50_latency_ms\",\"p95_latency_ms\",\
            \"p99_latency_ms\",\"max_latency_ms\"\n\"GET\",\"81234.50\",\"0.301\",\"0.100\",\"0.295\",\"0.4\",\"0.527\",\"1.0\"\n";
        assert_eq!(ToolOutput::RedisBenchmarkCsv.parse(csv), expected(81_234.5, 295_000, 527_000));
        let json = br#"{"ALL STATS": {"Totals": {"Ops/sec": 86000.25,
            "Percentile Latencies": {"p50.00": 0.567, "p99.00": 1.2, "p99.90": 3.0}}}}"#;
        assert_eq!(ToolOutput::MemtierJson.parse(json), expected(86_000.25, 567_000, 1_200_000));
        let text = b"Running 3s test\n  Latency Distribution\n     50%  635.00us\n     75%    1.02ms\n     99%    1.50ms\n\
            Requests/sec:  76543.21\nTransfer/sec:      9.12MB\n";
        assert_eq!(ToolOutput::WrkText.parse(text), expected(76_543.21, 635_000, 1_500_000));
        let json = br#"{"metrics": {"http_reqs": {"count": 5, "rate": 9600.5}, "http_req_duration": {"med": 2.34, "p(99)": 9.5}}}"#;
        assert_eq!(ToolOutput::K6Summary.parse(json), expected(9_600.5, 2_340_000, 9_500_000));
        let line = b"166000 requests/s  conns 50 pipeline 1  p50 290.8 us  p99 512.0 us  p99.9 900.0 us  (332000 in 2.00 s)\n";
        assert_eq!(ToolOutput::NullClientText.parse(line), expected(166_000.0, 290_800, 512_000));
    }

    #[test]
    fn nothing_is_made_up() {
        for output in [
            ToolOutput::RedisBenchmarkCsv,
            ToolOutput::MemtierJson,
            ToolOutput::WrkText,
            ToolOutput::K6Summary,
            ToolOutput::NullClientText,
        ] {
            for text in ["", "ERROR", "{}", "\"rps\"", "Requests/sec: many"] {
                assert_eq!(output.parse(text.as_bytes()), None, "{output:?}: {text}");
            }
        }
        // An older redis-benchmark says its rate alone; a run without a reply has NaN for its percentiles.
        let old = ToolOutput::RedisBenchmarkCsv.parse(b"\"test\",\"rps\"\n\"GET\",\"5\"\n").expect("a rate");
        assert_eq!((old.throughput_per_s, old.p50_ns), (5.0, None));
        let nan = ToolOutput::MemtierJson.parse(
            br#"{"ALL STATS": {"Totals": {"Ops/sec": 1.0, "Percentile Latencies": {"p50.00": null}}}}"#,
        );
        assert_eq!(nan.expect("a rate").p50_ns, None);
    }
}
