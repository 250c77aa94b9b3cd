//! Where the server says its time went: Millrace's figures by stage, fetched before and after a run.
//!
//! The server times a sample of the batches of requests it receives (`docs/stages.md`). What it counted during a run is
//! the difference of two readings, taken over a connection of its own, by RESP (`INFO stages`) or HTTP (`/metrics`), like
//! the load: the first when the warm-up begins, the second when the last reply is there. Neither lies within the measured
//! interval, so neither side's CPU time has it; but the figures are those of warm-up, measurement and drain together.
//!
//! A target that is no Millrace has no such figures. Then the report says so, and the run is what it was.

use crate::client::Plan;
use crate::histogram::enough_samples;
use crate::report::CurvePoint;
use crate::workload::Protocol;
use reactor::server::event::Target;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;
use store::stages::{KINDS, STAGES};

/// A target that does not answer within this has no figures.
const PATIENCE: Duration = Duration::from_secs(1);
/// Nor has one that answers with more than this.
const ANSWER_BYTES_MAX: u64 = 4 << 20;
/// The name of all stages together.
pub const TOTAL: &str = "total";
/// Percentiles of the curves that are plotted.
const CURVE: [f64; 13] = [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9995, 0.9999, 0.99999];

/// Times by how long they were, as the server tells them.
#[derive(Clone, Debug, Default, PartialEq)]
struct Times {
    count: u64,
    sum_ns: f64,
    /// How many, by the greatest time of their bucket; [`u64::MAX`] for the bucket without an end.
    buckets: BTreeMap<u64, u64>,
}

impl Times {
    fn since(&self, before: &Times) -> Option<Times> {
        let mut buckets = self.buckets.clone();
        for (end, count) in &before.buckets {
            let here = buckets.get_mut(end)?;
            *here = here.checked_sub(*count)?;
        }
        let count = self.count.checked_sub(before.count)?;
        Some(Times { count, sum_ns: (self.sum_ns - before.sum_ns).max(0.0), buckets })
    }

    /// The end of the bucket that holds the quantile; of buckets that have no end, the beginning.
    fn at(&self, quantile: f64) -> u64 {
        let rank = ((self.count as f64 * quantile).ceil() as u64).max(1);
        let (mut seen, mut last) = (0, 0);
        for (&end, &count) in &self.buckets {
            seen += count;
            if end != u64::MAX {
                last = end;
            }
            if seen >= rank {
                break;
            }
        }
        last
    }
}

/// One reading of the server's figures.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    times: BTreeMap<(usize, usize), Times>,
    left_out: u64,
    sampling: Option<u64>,
}

/// Where the total stands behind the stages.
const TOTAL_AT: usize = STAGES.len();

fn stage_at(name: &str) -> Option<usize> {
    if name == TOTAL { Some(TOTAL_AT) } else { STAGES.iter().position(|stage| stage.name == name) }
}

fn kind_at(name: &str) -> Option<usize> {
    KINDS.iter().position(|kind| *kind == name)
}

/// Whom to ask, and how.
#[derive(Clone, Debug)]
pub struct Probe {
    target: Target,
    protocol: Protocol,
    host: String,
    password: Option<String>,
}

/// What is said of a target without such figures.
const NO_FIGURES: &str = "the target has no figures by stage: it is no Millrace, or an old one";

/// A blocking connection, whatever it runs over.
pub trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

impl Probe {
    /// For the target of a plan.
    pub fn of(plan: &Plan) -> Probe {
        Probe {
            target: plan.target.clone(),
            protocol: plan.workload.protocol,
            host: plan.workload.http_host.clone(),
            password: plan.workload.password.clone(),
        }
    }

    /// AUTH, where there is a password.
    pub fn password(&self) -> Option<&str> {
        self.password.as_deref()
    }

    /// How it asks.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Asks once; the error says why there is nothing.
    pub fn read(&self) -> Result<Reading, String> {
        if self.protocol == Protocol::Memcache {
            return Err(NO_FIGURES.into());
        }
        let mut stream = self.connect().map_err(|error| format!("no figures by stage: {error}"))?;
        let answered = match self.protocol {
            Protocol::Resp => ask_resp(&mut *stream, self.password.as_deref()),
            Protocol::Http | Protocol::Memcache => ask_http(&mut *stream, &self.host, self.password()),
        };
        let text = answered.map_err(|error| match error.kind() {
            std::io::ErrorKind::InvalidData => NO_FIGURES.to_string(),
            _ => format!("no figures by stage: {error}"),
        })?;
        let reading = match self.protocol {
            Protocol::Resp => parse_info(&text),
            Protocol::Http | Protocol::Memcache => parse_metrics(&text),
        };
        match reading {
            None => Err(NO_FIGURES.into()),
            Some(Reading { sampling: Some(0), .. }) => {
                Err("no figures by stage: the server's stage-sampling is 0".into())
            }
            Some(reading) => Ok(reading),
        }
    }

    /// A connection of its own to the target.
    pub fn connect(&self) -> std::io::Result<Box<dyn Stream>> {
        connect(&self.target)
    }
}

/// A blocking connection, on which nothing takes for ever.
pub fn connect(target: &Target) -> std::io::Result<Box<dyn Stream>> {
    Ok(match target {
        Target::Tcp(address) => {
            let stream = TcpStream::connect_timeout(address, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            Box::new(stream)
        }
        Target::Unix(path) => {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            Box::new(stream)
        }
    })
}

fn not_ours() -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, "not what Millrace answers")
}

/// `INFO stages`, behind AUTH where there is a password.
fn ask_resp(stream: &mut dyn Stream, password: Option<&str>) -> std::io::Result<String> {
    let mut request = Vec::new();
    if let Some(password) = password {
        request.extend_from_slice(
            format!("*2\r\n$4\r\nAUTH\r\n${}\r\n{password}\r\n", password.len()).as_bytes(),
        );
    }
    request.extend_from_slice(b"*2\r\n$4\r\nINFO\r\n$6\r\nstages\r\n");
    stream.write_all(&request)?;
    let mut reader = std::io::BufReader::new(stream);
    if password.is_some() && read_line(&mut reader)? != "+OK" {
        return Err(not_ours());
    }
    let head = read_line(&mut reader)?;
    let length = head.strip_prefix('$').and_then(|length| length.parse::<u64>().ok());
    let length = length.filter(|&length| length <= ANSWER_BYTES_MAX).ok_or_else(not_ours)?;
    let mut text = vec![0; length as usize];
    reader.read_exact(&mut text)?;
    String::from_utf8(text).map_err(|_| not_ours())
}

/// A line without its end, of at most 4 KiB.
pub fn read_line(reader: &mut impl std::io::BufRead) -> std::io::Result<String> {
    let mut line = String::new();
    std::io::BufRead::read_line(&mut reader.take(4096), &mut line)?;
    Ok(line.trim_end().to_string())
}

/// `GET /metrics`
fn ask_http(stream: &mut dyn Stream, host: &str, password: Option<&str>) -> std::io::Result<String> {
    let authorization =
        password.map(|password| format!("Authorization: Bearer {password}\r\n")).unwrap_or_default();
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: {host}\r\n{authorization}Connection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(not_ours)?;
    let is_fine = head.split(' ').nth(1) == Some("200");
    if is_fine { Ok(body.to_string()) } else { Err(not_ours()) }
}

/// Reads `stage_KIND_STAGE:samples=N,nanoseconds=N,…` and `stage_KIND_STAGE_histogram:END=COUNT,…`.
fn parse_info(text: &str) -> Option<Reading> {
    let mut reading = Reading { times: BTreeMap::new(), left_out: 0, sampling: None };
    for line in text.lines() {
        let Some((field, value)) = line.strip_prefix("stage_").and_then(|line| line.split_once(':')) else {
            continue;
        };
        match field {
            "sampling" => reading.sampling = value.parse().ok(),
            "samples_left_out" => reading.left_out = value.parse().ok()?,
            _ => {}
        }
        let Some((kind, stage)) = field.split_once('_') else { continue };
        let (stage, is_histogram) = match stage.strip_suffix("_histogram") {
            Some(stage) => (stage, true),
            None => (stage, false),
        };
        let Some(key) = kind_at(kind).zip(stage_at(stage)) else { continue };
        let times = reading.times.entry(key).or_default();
        for pair in value.split(',').filter(|pair| !pair.is_empty()) {
            let (name, number) = pair.split_once('=')?;
            match (name, is_histogram) {
                (_, true) => drop(times.buckets.insert(name.parse().ok()?, number.parse().ok()?)),
                ("samples", _) => times.count = number.parse().ok()?,
                ("nanoseconds", _) => times.sum_ns = number.parse().ok()?,
                _ => {}
            }
        }
    }
    (!reading.times.is_empty()).then_some(reading)
}

/// Reads the histograms `millrace_stage_seconds` and `millrace_request_seconds`.
fn parse_metrics(text: &str) -> Option<Reading> {
    let mut reading = Reading { times: BTreeMap::new(), left_out: 0, sampling: None };
    // Buckets are cumulative: what stood at the end before.
    let mut below: BTreeMap<(usize, usize), u64> = BTreeMap::new();
    for line in text.lines() {
        let Some((name, value)) = line.strip_prefix("millrace_").and_then(|line| line.rsplit_once(' '))
        else {
            continue;
        };
        if name == "stage_samples_left_out_total" {
            reading.left_out = value.parse().ok()?;
        }
        let Some((name, labels)) = name.split_once('{') else { continue };
        let label = |wanted: &str| {
            let mut pairs = labels.trim_end_matches('}').split(',').filter_map(|pair| pair.split_once('='));
            pairs.find(|(name, _)| *name == wanted).map(|(_, value)| value.trim_matches('"'))
        };
        let (stage, part) = match name.strip_prefix("stage_seconds_") {
            Some(part) => (label("stage").and_then(stage_at), part),
            None => (Some(TOTAL_AT), name.strip_prefix("request_seconds_").unwrap_or_default()),
        };
        let Some(key) = label("kind").and_then(kind_at).zip(stage) else { continue };
        let times = reading.times.entry(key).or_default();
        match part {
            "count" => times.count = value.parse().ok()?,
            "sum" => times.sum_ns = value.parse::<f64>().ok()? * 1e9,
            "bucket" => {
                let end = match label("le")? {
                    "+Inf" => u64::MAX,
                    seconds => (seconds.parse::<f64>().ok()? * 1e9).round() as u64,
                };
                let (count, before) = (value.parse::<u64>().ok()?, below.entry(key).or_default());
                times.buckets.insert(end, count.checked_sub(*before)?);
                *before = count;
            }
            _ => {}
        }
    }
    (!reading.times.is_empty()).then_some(reading)
}

/// What a run knows of the server's stages. The fields of `stages` in the JSON report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StagesReport {
    /// How the server was asked.
    pub source: &'static str,
    /// A percentile may be too high by this share of itself: the width of the server's buckets.
    pub precision: f64,
    /// The server times one batch in so many, on average; `null` where it does not say (HTTP).
    pub sampling: Option<u64>,
    /// Batches that were drawn and not timed.
    pub left_out: u64,
    /// What the figures are about beside the measurement.
    pub covers: &'static str,
    /// Reads and writes, those that occurred.
    pub kinds: Vec<KindReport>,
}

/// Batches that read, or that write.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KindReport {
    /// `read` or `write`.
    pub kind: &'static str,
    /// Batches timed.
    pub samples: u64,
    /// The stages in order. Their means add up to that of `total`.
    pub stages: Vec<StageReport>,
    /// All of them together.
    pub total: StageReport,
}

/// One stage.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StageReport {
    /// As in `docs/stages.md`; `total` is all of them.
    pub stage: &'static str,
    /// Mean, exact.
    pub mean_ns: f64,
    /// Median; `null` where there are too few samples to name it, as with the others.
    pub p50_ns: Option<u64>,
    /// 99th percentile.
    pub p99_ns: Option<u64>,
    /// The same by percentile, as far as the samples carry.
    pub curve: Vec<CurvePoint>,
}

impl StagesReport {
    /// What happened between two readings. The error says why that cannot be told.
    pub fn between(
        before: &Reading,
        after: &Reading,
        protocol: Protocol,
        covers: &'static str,
    ) -> Result<StagesReport, String> {
        let kinds = KINDS
            .iter()
            .enumerate()
            .filter_map(|(at, kind)| kind_report(at, kind, before, after).transpose());
        let kinds: Vec<KindReport> = kinds.collect::<Result<_, Shrunk>>().map_err(|Shrunk| {
            "no figures by stage: they were reset during the run (CONFIG RESETSTAT, or a restart)".to_string()
        })?;
        if kinds.is_empty() {
            return Err(
                "no figures by stage: the server timed none of the requests; see its stage-sampling".into()
            );
        }
        let (source, precision) = match protocol {
            Protocol::Resp => ("INFO stages", 0.125),
            Protocol::Http | Protocol::Memcache => ("GET /metrics", 1.0),
        };
        let left_out = after.left_out.saturating_sub(before.left_out);
        Ok(StagesReport { source, precision, sampling: after.sampling, left_out, covers, kinds })
    }

    /// A stage of a kind, or `total`.
    pub fn find(&self, kind: &str, stage: &str) -> Option<&StageReport> {
        let kind = self.kinds.iter().find(|one| one.kind == kind)?;
        kind.stages.iter().chain([&kind.total]).find(|one| one.stage == stage)
    }

    /// The mean of what a client measured that did not pass in the server: the way there and back, and what its requests
    /// waited before the server looked at them. Clients measure single requests and the server batches, so this is
    /// known where a batch is one request.
    pub fn outside_ns(&self, client_mean_ns: f64) -> f64 {
        (client_mean_ns - self.mean_ns()).max(0.0)
    }

    /// Mean time in the server of all batches timed.
    pub fn mean_ns(&self) -> f64 {
        let samples: u64 = self.kinds.iter().map(|kind| kind.samples).sum();
        self.kinds.iter().map(|kind| kind.total.mean_ns * kind.samples as f64).sum::<f64>() / samples as f64
    }
}

/// `Ok(None)`: no batch of this kind was timed. `Err`: the figures are less than they were.
fn kind_report(
    at: usize,
    kind: &'static str,
    before: &Reading,
    after: &Reading,
) -> Result<Option<KindReport>, Shrunk> {
    let stage_of = |stage_at: usize, stage: &'static str| {
        let nothing = Times::default();
        let of = |reading: &Reading| reading.times.get(&(at, stage_at)).cloned();
        let (before, after) = (of(before).unwrap_or(nothing), of(after).ok_or(Shrunk)?);
        let times = after.since(&before).ok_or(Shrunk)?;
        let at = |quantile| enough_samples(times.count, quantile).then(|| times.at(quantile));
        let curve = CURVE.iter().filter_map(|&quantile| Some(CurvePoint { quantile, ns: at(quantile)? }));
        let report = StageReport {
            stage,
            mean_ns: if times.count > 0 { times.sum_ns / times.count as f64 } else { 0.0 },
            p50_ns: at(0.5),
            p99_ns: at(0.99),
            curve: curve.collect(),
        };
        Ok((times.count, report))
    };
    let (samples, total) = stage_of(TOTAL_AT, TOTAL)?;
    if samples == 0 {
        return Ok(None);
    }
    let stages = STAGES.iter().enumerate().map(|(at, stage)| Ok(stage_of(at, stage.name)?.1));
    let stages = stages.collect::<Result<_, Shrunk>>()?;
    Ok(Some(KindReport { kind, samples, stages, total }))
}

/// The server counted less than before.
struct Shrunk;

#[cfg(test)]
pub mod tests {
    use super::*;

    /// INFO of a server that timed so many reads, each 1 µs in every stage, and a write of 10 µs in each.
    pub fn info(reads: u64) -> String {
        let mut text = String::from("# Stages\r\nstage_samples_left_out:3\r\nstage_sampling:64\r\n");
        for (kind, count, each) in [("read", reads, 1_000), ("write", 1, 10_000)] {
            let names = STAGES.iter().map(|stage| (stage.name, 1)).chain([(TOTAL, STAGES.len() as u64)]);
            for (stage, parts) in names {
                let (ns, end) = (each * parts, each * parts * 9 / 8);
                text.push_str(&format!(
                    "stage_{kind}_{stage}:samples={count},nanoseconds={},p50={end},p99={end},p99.9={end},max={ns}\r\n\
                     stage_{kind}_{stage}_histogram:{end}={count}\r\n",
                    count * ns
                ));
            }
        }
        text
    }

    pub fn report(reads: u64) -> StagesReport {
        let (before, after) = (parse_info(&info(0)).expect("ours"), parse_info(&info(reads)).expect("ours"));
        let mut before = before;
        before.times.retain(|(kind, _), _| *kind == 0);
        StagesReport::between(&before, &after, Protocol::Resp, "a test").expect("a difference")
    }

    #[test]
    fn the_figures_of_a_run_are_the_difference_of_two_readings() {
        let (before, after) =
            (parse_info(&info(500)).expect("ours"), parse_info(&info(2_500)).expect("ours"));
        let report = StagesReport::between(&before, &after, Protocol::Resp, "a test").expect("a difference");
        assert_eq!((report.sampling, report.left_out, report.kinds.len()), (Some(64), 0, 1));
        let [read] = &report.kinds[..] else { panic!("the write was before: {report:?}") };
        assert_eq!((read.kind, read.samples, read.stages.len()), ("read", 2_000, STAGES.len()));
        assert_eq!(
            (read.stages[0].mean_ns, read.stages[0].p50_ns, read.stages[0].p99_ns),
            (1e3, Some(1_125), Some(1_125))
        );
        let means: f64 = read.stages.iter().map(|stage| stage.mean_ns).sum();
        assert!((means - read.total.mean_ns).abs() < 1e-6, "{means}");
        assert_eq!(report.mean_ns(), 7e3);
        let few =
            StagesReport::between(&before, &parse_info(&info(510)).expect("ours"), Protocol::Resp, "a test");
        assert_eq!(few.expect("ten samples").kinds[0].stages[0].p50_ns, None, "ten samples name no median");
    }

    #[test]
    fn what_cannot_be_told_is_said() {
        let (before, after) = (parse_info(&info(500)).expect("ours"), parse_info(&info(400)).expect("ours"));
        let between =
            |before, after| StagesReport::between(before, after, Protocol::Resp, "a test").unwrap_err();
        assert!(between(&before, &after).contains("reset"));
        assert!(between(&before, &before).contains("timed none"));
        assert_eq!(parse_info("# Server\r\nredis_version:7.0.0\r\n"), None);
        assert_eq!(parse_info(""), None);
        assert_eq!(parse_metrics("<html>404</html>"), None);
    }

    #[test]
    fn a_servers_own_pages_say_the_same_over_http_and_resp() {
        use store::arena::HeapSource;
        use store::config::Config;
        use store::engine::{Engine, Seeds};
        use store::time::{Nanos, Now};
        let now = Now { unix_us: 1, monotonic: Nanos(1) };
        let source = Box::new(HeapSource::with_limit(1 << 30));
        let mut engine = Engine::new(Config::default(), Seeds::default(), source, now);
        for kind in &mut engine.shared_mut().metrics.stages.kinds {
            for (at, stage) in kind.stages.iter_mut().chain([&mut kind.total]).enumerate() {
                (0..1_000).for_each(|n| stage.record(Nanos((at as u64 + 1) * 10_000 + n)));
            }
        }
        let mut page = Vec::new();
        store::metrics::write_prometheus(engine.shared(), &mut page);
        let http = parse_metrics(&String::from_utf8(page).expect("text")).expect("ours");
        let id = store::session::ConnectionId { slot: 0, generation: 0 };
        engine.handle_connect(id, store::session::Peer::default(), now);
        struct Still;
        impl store::time::Clock for Still {
            fn monotonic(&self) -> Nanos {
                Nanos(1)
            }
        }
        engine.handle_receive(id, b"INFO stages\r\n", now, &Still);
        let info = String::from_utf8(engine.take_output(id).expect("a reply")).expect("text");
        let resp = parse_info(&info).expect("ours");
        assert_eq!(resp.times.len(), KINDS.len() * (STAGES.len() + 1));
        for (key, times) in &resp.times {
            let other = &http.times[key];
            assert_eq!(
                (times.count, times.sum_ns, other.count),
                (1_000, other.sum_ns.round(), 1_000),
                "{key:?}"
            );
            let (fine, coarse) = (times.at(0.5), other.at(0.5));
            assert!(fine <= coarse && coarse < 2 * fine, "{key:?}: {fine} and {coarse}");
        }
    }
}
