//! Tests of the breakdown by stage: every moment on a clock that the test holds.

use super::*;
use crate::arena::HeapSource;
use crate::config::{Config, Setting};
use crate::engine::{Engine, Seeds};
use crate::journal::Journal;
use crate::session::{Durability, Peer, Transport};
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::cell::Cell;
use core::sync::atomic::AtomicU64;

/// A clock that stands until it is set, and goes on by one each time it is read.
struct Hand(Cell<u64>);

impl Clock for Hand {
    fn monotonic(&self) -> Nanos {
        self.0.set(self.0.get() + 1);
        Nanos(self.0.get())
    }
}

fn at(nanos: u64) -> Now {
    Now { unix_us: 1_700_000_000_000_000, monotonic: Nanos(nanos) }
}

fn id(slot: u32) -> ConnectionId {
    ConnectionId { slot, generation: 1 }
}

fn engine(settings: &[(&str, &str)]) -> Engine {
    let mut config = Config::default();
    for (name, value) in settings {
        (Setting::find(name.as_bytes()).expect("a setting").set)(&mut config, value).expect("a value");
    }
    let seeds = Seeds { hash: 1, random: 2, run_id: [0; 20] };
    let mut engine = Engine::new(config, seeds, Box::new(HeapSource::with_limit(1 << 30)), at(1));
    for slot in 0..2 {
        engine.handle_connect(id(slot), Peer::default(), at(1));
    }
    engine
}

fn with_log() -> Engine {
    let mut engine = engine(&[("stage-sampling", "1")]);
    engine.keep_journal(Journal::new(Arc::new(AtomicU64::new(1)), Durability::Always));
    engine
}

/// A turn that woke at `woke`, whose batch is executed from `begun` on, and that ends at `handed`.
fn receive(engine: &mut Engine, slot: u32, input: &str, woke: u64, begun: u64) {
    engine.handle_receive(id(slot), input.as_bytes(), at(woke), &Hand(Cell::new(begun)));
    engine.finish_turn(at(woke));
}

/// What the connection has to send is handed over at `handed`, and the completion is seen at `sent`.
fn send(engine: &mut Engine, slot: u32, handed: u64, sent: u64) -> String {
    let Some(output) = engine.take_output(id(slot)) else { return String::new() };
    engine.shared_mut().sampler.handed(Nanos(handed));
    let text = String::from_utf8_lossy(&output).into_owned();
    engine.handle_sent(id(slot), output, at(sent), &Hand(Cell::new(sent)));
    text
}

fn sums(engine: &Engine, kind: usize) -> ([u64; STAGE_COUNT], u64) {
    let kind = &engine.shared().metrics.stages.kinds[kind];
    (kind.stages.each_ref().map(StageHistogram::sum), kind.total.sum())
}

fn left_out(engine: &Engine) -> u64 {
    engine.shared().metrics.stages.left_out
}

#[test]
fn a_bucket_is_at_most_an_eighth_wide_and_none_is_missing() {
    let mut next = 0;
    for bucket in 0..BUCKETS - 1 {
        let end = upper_end(bucket);
        assert_eq!((bucket_of(next), bucket_of(end)), (bucket, bucket), "{next} to {end}");
        assert!(end - next <= next / DIVISIONS as u64, "{next} to {end}");
        next = end + 1;
    }
    assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    let mut histogram = StageHistogram::default();
    (1..=1000).for_each(|value| histogram.record(Nanos(value * 1000)));
    for (thousandths, exact) in [(500, 500_000), (990, 990_000), (999, 999_000)] {
        let found = histogram.at_thousandths(thousandths);
        assert!((exact..=exact + exact / 8).contains(&found), "{thousandths}: {found}");
    }
    assert_eq!((histogram.at_thousandths(1000), histogram.sum()), (1_000_000, 500_500_000));
    assert_eq!(histogram.count_below(19), 524, "524,000 is below 2^19");
    assert_eq!(StageHistogram::default().at_thousandths(990), 0);
}

#[test]
fn gaps_between_samples_are_random_and_their_mean_is_the_setting() {
    let mut sampler = Sampler::new(7);
    assert!((0..1000).all(|_| !sampler.is_due()), "nothing was asked for");
    sampler.set_period(16);
    let drawn: Vec<usize> = (0..160_000).filter(|_| sampler.is_due()).collect();
    assert!((9_500..10_500).contains(&drawn.len()), "{} of 160,000", drawn.len());
    let gaps: Vec<usize> = drawn.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!((gaps.iter().min(), gaps.iter().max()), (Some(&1), Some(&31)));
    sampler.set_period(1);
    assert!((0..100).all(|_| sampler.is_due()));
    sampler.set_period(0);
    assert!((0..1000).all(|_| !sampler.is_due()));
}

#[test]
fn a_read_waits_for_nothing_but_its_turn_and_the_send() {
    let mut engine = engine(&[("stage-sampling", "1")]);
    receive(&mut engine, 0, "GET a\r\n", 1_000, 1_099);
    assert_eq!(send(&mut engine, 0, 2_000, 7_000), "$-1\r\n");
    let ([receive, execute, hop, log_wait, flush, reveal, send], total) = sums(&engine, 0);
    assert_eq!((receive, hop, log_wait, flush), (100, 0, 0, 0));
    assert!(execute > 0 && execute < 100, "{execute}");
    assert_eq!((reveal, send), (900 - execute, 5_000));
    assert_eq!(total, 6_000);
    assert_eq!(sums(&engine, 1).1, 0, "nothing was written");
}

#[test]
fn a_write_waits_for_its_block_and_so_does_who_reads_it() {
    let mut engine = with_log();
    receive(&mut engine, 0, "SET a 1\r\n", 1_000, 1_099);
    assert_eq!(send(&mut engine, 0, 1_500, 0), "", "it is not durable");
    // Its block is being written meanwhile.
    receive(&mut engine, 1, "GET a\r\n", 4_000, 4_009);
    engine.set_durable(1);
    assert_eq!(engine.shared().next_durable_sample(), Some(1));
    let times = BlockTimes { begun: Nanos(3_000), durable: Nanos(9_000) };
    engine.shared_mut().stamp_log(1, Some(times));
    assert_eq!(engine.shared().next_durable_sample(), None);
    assert_eq!(send(&mut engine, 0, 10_000, 12_000), "+OK\r\n");
    assert_eq!(send(&mut engine, 1, 10_000, 13_000), "$1\r\n1\r\n");
    let (write, total) = sums(&engine, 1);
    assert_eq!(
        (write[3] + write[1], write[4], write[5], write[6]),
        (1_900, 6_000, 1_000, 2_000),
        "{write:?}"
    );
    assert_eq!((write.iter().sum::<u64>(), total), (11_000, 11_000));
    let (read, total) = sums(&engine, 0);
    assert_eq!((read[3], read[4]), (0, 9_000 - 4_010 - read[1]), "the block had begun: {read:?}");
    assert_eq!((read.iter().sum::<u64>(), total), (9_000, 9_000));
    // What waits for nothing is not held up in the figures either.
    receive(&mut engine, 1, "GET a\r\n", 20_000, 20_000);
    send(&mut engine, 1, 21_000, 22_000);
    assert_eq!((sums(&engine, 0).0[3], sums(&engine, 0).0[4]), (read[3], read[4]));
}

#[test]
fn a_batch_ends_with_its_last_reply_and_one_that_writes_is_a_write() {
    let mut engine = engine(&[("stage-sampling", "1")]);
    receive(&mut engine, 0, "GET a\r\nSET a 1\r\nGET a\r\n", 1_000, 1_000);
    let output = engine.take_output(id(0)).expect("three replies");
    engine.shared_mut().sampler.handed(Nanos(2_000));
    // The next batch gathers behind the send in flight: its way ends with the second send.
    receive(&mut engine, 0, "GET a\r\n", 3_000, 3_000);
    engine.handle_sent(id(0), output, at(4_000), &Hand(Cell::new(0)));
    assert_eq!((sums(&engine, 0).1, sums(&engine, 1).1), (0, 3_000));
    send(&mut engine, 0, 5_000, 9_000);
    assert_eq!((sums(&engine, 0).1, sums(&engine, 1).1), (6_000, 3_000));
    assert!(!engine.shared_mut().sessions.get_mut(id(0)).expect("open").is_sampled);
}

#[test]
fn a_put_over_http_is_a_write() {
    let mut engine = engine(&[("stage-sampling", "1")]);
    let peer = Peer { transport: Transport::Http, ..Peer::default() };
    engine.handle_connect(id(2), peer, at(1));
    for (method, body) in [("PUT", "content-length: 1\r\n\r\nx"), ("GET", "\r\n")] {
        let request = format!("{method} /v1/keys/a HTTP/1.1\r\nhost: localhost\r\n{body}");
        receive(&mut engine, 2, &request, 1_000, 1_000);
        assert!(send(&mut engine, 2, 2_000, 3_000).starts_with("HTTP/1.1 20"));
    }
    assert_eq!((sums(&engine, 0).1, sums(&engine, 1).1), (2_000, 2_000));
}

#[test]
fn what_has_no_reply_or_loses_it_is_not_counted_as_timed() {
    let mut engine = with_log();
    receive(&mut engine, 0, "GET ", 1_000, 1_000);
    receive(&mut engine, 0, "a\r\nCLIENT REPLY SKIP\r\nGET a\r\n", 1_000, 1_000);
    assert!(engine.shared().sampler.active.len() == 1, "the first GET has a reply, the other has none");
    send(&mut engine, 0, 2_000, 3_000);
    assert_eq!((engine.shared().metrics.stages.samples(), left_out(&engine)), (1, 0));
    // The connection ends before the log is through.
    receive(&mut engine, 0, "SET a 1\r\n", 1_000, 1_000);
    engine.handle_disconnect(id(0), at(2_000));
    assert_eq!((engine.shared().sampler.active.len(), left_out(&engine)), (0, 1));
    // The log does not remember.
    receive(&mut engine, 1, "SET a 1\r\n", 1_000, 1_000);
    engine.set_durable(2);
    engine.shared_mut().stamp_log(2, None);
    send(&mut engine, 1, 2_000, 3_000);
    assert_eq!((engine.shared().metrics.stages.samples(), left_out(&engine)), (1, 2));
    // More than can be followed are under way.
    for _ in 0..=ACTIVE_MAX {
        receive(&mut engine, 1, "SET a 1\r\n", 1_000, 1_000);
    }
    assert_eq!((engine.shared().sampler.active.len(), left_out(&engine)), (ACTIVE_MAX, 3));
}

#[test]
fn info_and_prometheus_show_every_stage_and_resetstat_forgets() {
    let mut engine = engine(&[("stage-sampling", "1")]);
    receive(&mut engine, 0, "GET a\r\n", 1_000, 1_000);
    send(&mut engine, 0, 2_000, 7_000);
    let mut page = Vec::new();
    crate::metrics::write_prometheus(engine.shared(), &mut page);
    let page = String::from_utf8(page).expect("text");
    let info = |engine: &mut Engine| {
        receive(engine, 1, "INFO stages\r\n", 1, 1);
        let output = engine.take_output(id(1)).expect("a reply");
        let text = String::from_utf8_lossy(&output).into_owned();
        engine.handle_sent(id(1), output, at(1), &Hand(Cell::new(1)));
        text
    };
    let text = info(&mut engine);
    for expected in [
        "# Stages\r\n",
        "stage_samples:1\r\n",
        "stage_sampling:1\r\n",
        "stage_read_send:samples=1,nanoseconds=5000,p50=5000,p99=5000,p99.9=5000,max=5000\r\n",
        "stage_read_send_histogram:5119=1\r\n",
        "stage_read_flush_histogram:0=1\r\n",
        "stage_read_total:samples=1,nanoseconds=6000,",
        "stage_write_flush:samples=0,nanoseconds=0,p50=0,p99=0,p99.9=0,max=0\r\n",
        "stage_write_flush_histogram:\r\n",
    ] {
        assert!(text.contains(expected), "{expected} in {text}");
    }
    for expected in [
        "# TYPE millrace_stage_seconds histogram\n",
        "millrace_stage_seconds_bucket{kind=\"read\",stage=\"send\",le=\"0.000004095\"} 0\n",
        "millrace_stage_seconds_bucket{kind=\"read\",stage=\"send\",le=\"0.000008191\"} 1\n",
        "millrace_stage_seconds_bucket{kind=\"write\",stage=\"flush\",le=\"+Inf\"} 0\n",
    ] {
        assert!(page.contains(expected), "{expected} in {page}");
    }
    for stage in &STAGES {
        assert!(
            page.contains(&format!(
                "millrace_stage_seconds_count{{kind=\"read\",stage=\"{}\"}} ",
                stage.name
            ))
        );
    }
    assert!(page.contains("millrace_request_seconds_sum{kind=\"read\"} 0.000006000\n"), "{page}");
    receive(&mut engine, 0, "CONFIG RESETSTAT\r\n", 1, 1);
    let text = info(&mut engine);
    assert!(text.contains("stage_read_total:samples=0,"), "{text}");
    receive(&mut engine, 0, "CONFIG SET stage-sampling 0\r\n", 1, 1);
    assert!(info(&mut engine).contains("stage_sampling:0\r\n"));
    assert!((0..10).all(|_| !engine.shared_mut().sampler.is_due()));
}
