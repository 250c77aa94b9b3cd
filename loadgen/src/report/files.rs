//! The run in other tools' formats: HdrHistogram's V2 log, its percentile tables (.hgrm), and CSV.
//!
//! The log and the tables hold the whole histograms, so runs can be merged and compared elsewhere without averaging
//! percentiles. All of it is written after the run.

use super::RunReport;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};
use std::fmt::Write;
use std::time::{Duration, SystemTime};

/// What a run recorded, whole.
#[derive(Clone, Debug)]
pub struct Histograms {
    /// When the measurement began.
    pub began: SystemTime,
    /// Received − intended. Empty in a closed loop.
    pub response: Histogram<u64>,
    /// Received − sent.
    pub service: Histogram<u64>,
    /// Sent − intended. Empty in a closed loop.
    pub lateness: Histogram<u64>,
}

impl Histograms {
    /// Those that hold something, by name.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, &Histogram<u64>)> {
        let all = [("response", &self.response), ("service", &self.service), ("lateness", &self.lateness)];
        all.into_iter().filter(|(_, histogram)| !histogram.is_empty())
    }
}

/// A log of all runs, one interval each, tagged `response`, `service` and `lateness`; of several runs numbered.
/// Values are nanoseconds; the column of maxima is in milliseconds, as HdrHistogram's own tools have it.
pub fn hdr_log(runs: &[RunReport]) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let mut serializer = V2DeflateSerializer::new();
    let mut builder = IntervalLogWriterBuilder::new();
    builder.add_comment("loadgen: values in nanoseconds, maxima in milliseconds");
    for (index, run) in runs.iter().enumerate() {
        builder.add_comment(&format!(
            "run {}: {}, {}, {}",
            index + 1,
            run.title,
            run.loop_text(),
            run.verdict
        ));
    }
    let Some(first) = runs.first() else { return Err("there is no run".into()) };
    let start = first.histograms.began;
    builder.with_start_time(start).with_max_value_divisor(1e6);
    let mut log = builder.begin_log_with(&mut bytes, &mut serializer).map_err(|error| error.to_string())?;
    for (index, run) in runs.iter().enumerate() {
        let at = run.histograms.began.duration_since(start).unwrap_or_default();
        for (name, histogram) in run.histograms.named() {
            let tag = file_part(index, runs.len(), name);
            let tag = Tag::new(&tag).expect("neither blanks nor commas");
            log.write_histogram(histogram, at, Duration::from_secs_f64(run.window_s.max(0.0)), Some(tag))
                .map_err(|error| format!("{error:?}"))?;
        }
    }
    Ok(bytes)
}

/// `response`, or `2.response` where there are several runs.
pub fn file_part(index: usize, count: usize, name: &str) -> String {
    if count == 1 { name.into() } else { format!("{}.{name}", index + 1) }
}

/// A percentile table as HdrHistogram prints it, values in milliseconds.
pub fn hgrm(histogram: &Histogram<u64>) -> String {
    let mut text = String::from("       Value     Percentile TotalCount 1/(1-Percentile)\n\n");
    let ms = |ns: f64| ns / 1e6;
    let mut seen = 0;
    for step in histogram.iter_quantiles(5) {
        seen += step.count_since_last_iteration();
        let quantile = step.quantile_iterated_to();
        let _ = write!(text, "{:12.6} {quantile:1.12} {seen:10}", ms(step.value_iterated_to() as f64));
        if quantile < 1.0 {
            let _ = write!(text, " {:14.2}", 1.0 / (1.0 - quantile));
        }
        text.push('\n');
    }
    let _ = writeln!(
        text,
        "#[Mean    = {:12.6}, StdDeviation   = {:12.6}]\n#[Max     = {:12.6}, Total count    = {:12}]\n\
         #[Buckets = {:12}, SubBuckets     = {:12}]",
        ms(histogram.mean()),
        ms(histogram.stdev()),
        ms(histogram.max() as f64),
        histogram.len(),
        histogram.buckets(),
        2_048
    );
    text
}

/// One line a run. What is not known is empty.
pub fn csv(runs: &[RunReport]) -> String {
    let mut text = String::from(
        "title,loop,target,connections,offered_per_s,throughput_per_s,latency,p50_ns,p90_ns,p99_ns,p99.9_ns,p99.99_ns,\
         max_ns,mean_ns,samples,service_p50_ns,service_p99_ns,lateness_p99_ns,server_us_per_request,\
         generator_us_per_request,errors,misses,timeouts,lost,unanswered,verdict,reasons\n",
    );
    for run in runs {
        let (name, latency) = run.latency();
        let whole = |value: Option<u64>| value.map_or(String::new(), |value| value.to_string());
        let number = |value: Option<f64>| value.map_or(String::new(), |value| format!("{value:.3}"));
        let rules: Vec<&str> = run.reasons.iter().map(|reason| reason.rule).collect();
        let counts = &run.counts;
        let mut cells = vec![
            quoted(&run.title),
            quoted(&run.loop_text()),
            quoted(&run.target),
            run.connections.to_string(),
            number(run.offered_per_s),
            number(run.throughput_per_s),
            name.replace(' ', "_"),
        ];
        cells.extend([0.5, 0.9, 0.99, 0.999, 0.9999].map(|quantile| whole(latency.at(quantile))));
        cells.extend([
            whole(latency.max_ns),
            number(latency.mean_ns),
            latency.samples.to_string(),
            whole(run.service_time.at(0.5)),
            whole(run.service_time.at(0.99)),
            whole(run.lateness.as_ref().and_then(|lateness| lateness.at(0.99))),
            number(run.cpu.server_us_per_request),
            number(run.cpu.generator_us_per_request),
        ]);
        cells.extend(
            [counts.errors, counts.nulls, counts.timeouts, counts.lost, counts.unanswered]
                .map(|count| count.to_string()),
        );
        cells.extend([run.verdict.to_string(), rules.join(" ")]);
        text.push_str(&cells.join(","));
        text.push('\n');
    }
    text
}

/// A cell that may hold commas.
fn quoted(text: &str) -> String {
    match text.contains([',', '"', '\n']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::reported;
    use super::*;
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    fn run(open: bool, samples: u64) -> RunReport {
        reported("a, run", open, samples)
    }

    #[test]
    fn the_log_gives_the_histograms_back() {
        let runs = [run(true, 20_000), run(false, 3_000)];
        let log = hdr_log(&runs).expect("it is written");
        let mut found = Vec::new();
        for entry in IntervalLogIterator::new(&log) {
            if let LogEntry::Interval(interval) = entry.expect("well-formed") {
                let bytes = base64(interval.encoded_histogram());
                let histogram: Histogram<u64> = Deserializer::new().deserialize(&mut &bytes[..]).expect("V2");
                let tag = interval.tag().expect("tagged").as_str().to_string();
                assert_eq!(interval.duration(), Duration::from_secs(2));
                assert!((interval.max() - histogram.max() as f64 / 1e6).abs() < 0.01, "{}", interval.max());
                found.push((tag, histogram));
            }
        }
        let tags: Vec<&str> = found.iter().map(|(tag, _)| tag.as_str()).collect();
        assert_eq!(tags, ["1.response", "1.service", "1.lateness", "2.service"]);
        assert_eq!(found[0].1, runs[0].histograms.response);
        assert_eq!(found[3].1, runs[1].histograms.service);
    }

    /// Enough of base64 for a test: no library is needed for anything else.
    fn base64(text: &str) -> Vec<u8> {
        let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let (mut bytes, mut bits, mut count) = (Vec::new(), 0u32, 0);
        for character in text.bytes().filter(|byte| *byte != b'=') {
            let value = alphabet.iter().position(|known| *known == character).expect("base64") as u32;
            bits = bits << 6 | value;
            count += 6;
            if count >= 8 {
                count -= 8;
                bytes.push((bits >> count) as u8);
            }
        }
        bytes
    }

    #[test]
    fn the_percentile_table_counts_every_sample() {
        let mut histogram = crate::histogram::empty();
        (1..=1_000).for_each(|value| histogram.saturating_record(value * 1_000_000));
        let table = hgrm(&histogram);
        let rows: Vec<Vec<f64>> = table
            .lines()
            .skip(2)
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.split_ascii_whitespace().map(|cell| cell.parse().expect("a number")).collect())
            .collect();
        let last = rows.last().expect("rows");
        assert_eq!((last[1], last[2]), (1.0, 1_000.0));
        let median = rows.iter().find(|row| row[1] == 0.5).expect("the median");
        assert!((median[0] - 500.0).abs() < 1.0 && median[2] >= 500.0 && median[3] == 2.0, "{median:?}");
        assert!(rows.windows(2).all(|pair| pair[0][0] <= pair[1][0] && pair[0][2] <= pair[1][2]));
        assert!(table.contains("Total count    =         1000]"), "{table}");
    }

    #[test]
    fn csv_has_as_many_cells_in_every_line() {
        let text = csv(&[run(true, 20_000), run(false, 50)]);
        let lines: Vec<&str> = text.lines().collect();
        let columns = lines[0].split(',').count();
        // The title's and the loop's own commas are quoted; so are those of a loop's name.
        let unquoted = |line: &str| {
            let (mut inside, mut count) = (false, 1);
            for character in line.chars() {
                inside ^= character == '"';
                count += usize::from(character == ',' && !inside);
            }
            count
        };
        assert!(lines.iter().all(|line| unquoted(line) == columns), "{text}");
        assert!(lines[1].contains("response_time") && lines[2].contains("service_time"));
        assert!(!text.contains("NaN"));
    }
}
