//! The commands around a run: sweeps, the knee, replays, overlays, and the formats they write.

mod harness;
mod schema;

use harness::*;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

/// A server that answers one request after the other, each after `delay`.
fn one_at_a_time(delay: Duration) -> Server {
    let gate = Mutex::new(());
    Server::start(move |_, _| {
        let _one = gate.lock().expect("no panic");
        thread::sleep(delay);
        reply("$2\r\nok\r\n")
    })
}

#[test]
fn what_is_written_keeps_to_the_published_schema() {
    let schema = schema::published("report");
    let folder = scratch("schema");
    let json = folder.join("report.json");
    let server = Server::start(store());
    let target = server.target();
    let loops: [&[&str]; 4] = [
        &["-n", "3000"],
        &["--loop", "open", "--rate", "4000", "--duration", "1200ms"],
        &["--loop", "open", "--rate", "2000", "--arrival", "onoff:50ms/50ms", "-n", "500"],
        &["-n", "10", "--preset", "counter"],
    ];
    for flags in loops {
        let path = json.to_str().expect("a text path");
        let base = ["run", "--target", &target, "--warmup", "0s", "-c", "4", "--keys", "500", "--json", path];
        let ran = run(&[&base[..], flags].concat());
        let report = read_json(&json);
        assert_eq!(schema::broken(&schema, &report), Vec::<String>::new(), "{flags:?}: {}", ran.stderr);
        // The check can fail: a field too many, one too few, and one of another kind.
        for change in [
            (|report: &mut Value| report["runs"][0]["surprise"] = 1.into()) as fn(&mut Value),
            |report| drop(report["runs"][0]["counts"].as_object_mut().expect("an object").remove("lost")),
            |report| report["runs"][0]["verdict"] = "FINE".into(),
            |report| report["runs"][0]["service_time"]["samples"] = (-1).into(),
        ] {
            let mut changed = report.clone();
            change(&mut changed);
            assert_eq!(schema::broken(&schema, &changed).len(), 1);
        }
    }
    let _ = std::fs::remove_dir_all(folder);
}

#[test]
fn every_published_schema_is_whole() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/formats");
    let files = std::fs::read_dir(folder).expect("the formats are documented").flatten();
    let names = files.filter_map(|file| {
        let name = file.file_name().into_string().ok()?;
        Some(name.strip_prefix("loadgen-")?.strip_suffix(".schema.json")?.to_string())
    });
    let mut names: Vec<String> = names.collect();
    names.sort();
    assert_eq!(
        names,
        ["audit", "caching", "calibration", "comparison", "knee", "report"].map(str::to_string)
    );
    names.iter().for_each(|name| schema::is_whole(name));
}

#[test]
fn a_run_is_written_in_every_format() {
    let folder = scratch("formats");
    let file = |name: &str| folder.join(name).to_str().expect("a text path").to_string();
    let server = Server::start(store());
    let (csv, prefix, html) = (file("a.csv"), file("whole"), file("a.html"));
    let target = server.target();
    let flags = [
        "run",
        "--target",
        &target,
        "--loop",
        "open",
        "--rate",
        "2000",
        "--duration",
        "1s",
        "--warmup",
        "100ms",
        "--prefill",
        "--keys",
        "50",
        "--csv",
        &csv,
        "--hdr-file-prefix",
        &prefix,
        "--html",
        &html,
    ];
    let ran = run(&flags);
    assert!(ran.stdout.contains("verdict"), "{}{}", ran.stdout, ran.stderr);
    let text =
        |name: &str| std::fs::read_to_string(folder.join(name)).unwrap_or_else(|_| panic!("no {name}"));
    let csv = text("a.csv");
    assert_eq!(csv.lines().count(), 2);
    let log = text("whole.hlog");
    for tag in ["Tag=response,", "Tag=service,", "Tag=lateness,"] {
        assert_eq!(log.lines().filter(|line| line.starts_with(tag)).count(), 1, "{tag} in {log}");
    }
    // The table of percentiles counts the requests that the table of figures does.
    let samples: u64 = csv
        .lines()
        .nth(1)
        .and_then(|line| line.split("response_time,").nth(1))
        .expect("a line")
        .split(',')
        .nth(7)
        .expect("samples")
        .parse()
        .expect("a number");
    assert!((1_700..2_300).contains(&samples), "{samples}");
    for name in ["response", "service", "lateness"] {
        let table = text(&format!("whole.{name}.hgrm"));
        assert!(table.contains(&format!("Total count    = {samples:12}]")), "{name}: {table}");
    }
    let _ = std::fs::remove_dir_all(folder);
}

#[test]
fn a_sweep_says_unbounded_where_the_server_does_not_keep_up() {
    let folder = scratch("sweep");
    let (json, html) = (folder.join("sweep.json"), folder.join("sweep.html"));
    // Some 450 a second.
    let server = one_at_a_time(Duration::from_millis(2));
    let target = server.target();
    let flags = [
        "sweep",
        "--target",
        &target,
        "--ratio",
        "0:1",
        "-c",
        "8",
        "--warmup",
        "0s",
        "--duration",
        "600ms",
        "--drain",
        "100ms",
        "--rates",
        "3000,50,100,200,4000",
        "--json",
        json.to_str().expect("text"),
        "--html",
        html.to_str().expect("text"),
    ];
    let ran = run(&flags);
    assert_eq!(ran.code, Some(0), "{}{}", ran.stdout, ran.stderr);
    let report = read_json(&json);
    schema::keeps_to("report", &report);
    let runs = report["runs"].as_array().expect("runs");
    let rates: Vec<f64> =
        runs.iter().map(|run| run["loop"]["rate_per_s"].as_f64().expect("a rate")).collect();
    // In order, and no higher than the first that is not reached.
    assert_eq!(rates, [50.0, 100.0, 200.0, 3_000.0]);
    assert_eq!(rules(&runs[3]).iter().filter(|rule| *rule == "rate_not_reached").count(), 1);
    let last = ran.stdout.lines().find(|line| line.contains("INVALID")).expect("a row");
    assert!(last.contains("unbounded"), "{last}");
    assert!(std::fs::read_to_string(&html).expect("a page").contains("Latency against offered rate"));
    let _ = std::fs::remove_dir_all(folder);
}

#[test]
fn the_knee_lies_below_the_capacity_and_is_repeated() {
    let folder = scratch("knee");
    let json = folder.join("knee.json");
    let server = one_at_a_time(Duration::from_millis(4));
    let target = server.target();
    let flags = [
        "knee",
        "--target",
        &target,
        "--ratio",
        "0:1",
        "-c",
        "16",
        "--warmup",
        "0s",
        "--duration",
        "500ms",
        "--drain",
        "50ms",
        "--arrival",
        "constant",
        "--objective",
        "p50<40ms",
        "--from",
        "50",
        "--resolution",
        "0.2",
        "--json",
        json.to_str().expect("text"),
    ];
    let ran = run(&flags);
    assert_eq!(ran.code, Some(0), "{}{}", ran.stdout, ran.stderr);
    let report = read_json(&json);
    assert_eq!(report["schema"], "millrace-loadgen-knee-1");
    let knee = report["found"]["knee_per_s"].as_f64().expect("a knee");
    // 250 a second is what 4 ms leave room for; sleeps end late on a busy machine.
    assert!((50.0..=280.0).contains(&knee), "{knee}: {}", ran.stdout);
    let phases: Vec<&str> = report["trials"]
        .as_array()
        .expect("trials")
        .iter()
        .map(|trial| trial["phase"].as_str().expect("text"))
        .collect();
    let count = |name: &str| phases.iter().filter(|phase| **phase == name).count();
    assert!(count("confirm") >= 2 && count("come_down") == 6, "{phases:?}");
    schema::keeps_to("knee", &report);
    // Its runs can be laid over each other like any.
    let overlay = run(&["report", json.to_str().expect("text")]);
    assert_eq!(overlay.code, Some(0), "{}", overlay.stderr);
    let _ = std::fs::remove_dir_all(folder);
}

#[test]
fn no_knee_is_a_failure_that_says_so() {
    let server = one_at_a_time(Duration::from_millis(5));
    let target = server.target();
    let flags = [
        "knee",
        "--target",
        &target,
        "--ratio",
        "0:1",
        "-c",
        "2",
        "--warmup",
        "0s",
        "--duration",
        "100ms",
        "--drain",
        "20ms",
        "--objective",
        "p50<1us",
        "--from",
        "50000",
        "--timeout",
        "2s",
    ];
    let ran = run(&flags);
    assert_eq!(ran.code, Some(1), "{}{}", ran.stdout, ran.stderr);
    assert!(ran.stdout.contains("no rate was found that keeps p50 < 1.00 µs"), "{}", ran.stdout);
}

#[test]
fn a_run_is_replayed_and_laid_beside_the_old_one() {
    let folder = scratch("replay");
    let (json, html) = (folder.join("old.json"), folder.join("overlay.html"));
    let (json, results) = (json.to_str().expect("text"), folder.join("results"));
    let server = Server::start(store());
    let target = server.target();
    let ran = run(&["run", "--target", &target, "-n", "2000", "--warmup", "0s", "-c", "3", "--json", json]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let before = std::fs::read(json).expect("a report");
    let replayed = run(&["replay", json, "--results", results.to_str().expect("text")]);
    assert_eq!(replayed.code, Some(0), "{}", replayed.stderr);
    assert_eq!(server.requests.load(Ordering::SeqCst), 4_000, "as many requests again");
    assert_eq!(std::fs::read(json).expect("a report"), before, "the old report is not written over");
    assert!(replayed.stdout.contains("A: run") && replayed.stdout.contains("B: run"), "{}", replayed.stdout);
    let new = only_folder(&results);
    assert_eq!(read_json(&new.join("report.json"))["runs"][0]["counts"]["answered"], 2_000);
    // Two reports in one picture: a file and a folder.
    let page = html.to_str().expect("text");
    let ran = run(&["report", json, new.to_str().expect("text"), "--html", page]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let page = std::fs::read_to_string(&html).expect("a page");
    assert!(page.contains("B: run: service time") && page.matches("<svg").count() == 1);
    // What cannot be replayed says why.
    for flags in [&["replay", "/no/such/report"][..], &["report", "/no/such/report"], &["report"]] {
        assert_eq!(run(flags).code, Some(2), "{flags:?}");
    }
    let _ = std::fs::remove_dir_all(folder);
}

#[test]
fn comparisons_and_caches_are_replayed_and_laid_beside_the_old_ones() {
    let folder = scratch("replay-others");
    let path = |name: &str| folder.join(name).to_str().expect("text").to_string();
    let cases = format!(
        "title = \"a test\"\nsubject = \"one\"\nrounds = 2\nduration-s = 0.1\nwarmup-s = 0.0\nconnections = 4\n\
         repeats-if-noisy = 0\n{}[[case]]\nname = \"GET\"\ntargets = [\"one\"]\ngets = 1\nkeys = 100\n\
         [[case]]\nname = \"half\"\ntargets = [\"one\"]\ngets = 1\nkeys = 100\nrate-share = 0.5\nrate-of = \"GET\"\n\
         goals = [{{ against = \"one\", lateness-p99-us-max = 1e9 }}]\n",
        target_entry("one")
    );
    std::fs::write(path("cases.toml"), cases).expect("a file");
    let ran = run(&["compare", "--cases", &path("cases.toml"), "--results", &path("old"), "--threads", "2"]);
    assert_ne!(ran.code, Some(2), "{}", ran.stderr);
    let old = only_folder(&folder.join("old"));
    let report = read_json(&old.join("report.json"));
    schema::keeps_to("comparison", &report);
    assert_eq!(report["generator_threads"], 2);
    // An open loop at half of what the closed one reached, and the generator's own lateness beside it.
    for at in [0, 2] {
        let [whole, half] = [at, at + 1].map(|at| report["measurements"][at].clone());
        let reached = whole["throughput_per_s"].as_f64().expect("a rate");
        assert_eq!(half["offered_per_s"].as_f64(), Some((reached * 0.5).floor()), "{report}");
        assert!(half["lateness_p99_ns"].is_u64() || half["verdict"] != "VALID", "{report}");
        assert!(whole["lateness_p99_ns"].is_null() && whole["offered_per_s"].is_null(), "{report}");
    }
    assert_ne!(report["cases"][1]["goals"][0]["met"], false, "{report}");

    let server = millrace(&[("http", "no")]);
    let target = format!("resp://{}", server.resp.expect("a port"));
    let json = path("delay.json");
    let words = [
        "caching",
        "delay",
        "--target",
        &target,
        "--trackers",
        "2",
        "-n",
        "20",
        "--rounds",
        "1",
        "--json",
        &json,
    ];
    assert_eq!(run(&words).code, Some(0));
    for (report, results, expected) in
        [(old.to_str().expect("text"), "again", "GET, one"), (&json, "later", "trackers 2")]
    {
        let replayed = run(&["replay", report, "--results", &path(results)]);
        assert_ne!(replayed.code, Some(2), "{}", replayed.stderr);
        let (_, table) = replayed.stdout.split_once("  A: ").unwrap_or_else(|| panic!("{}", replayed.stderr));
        for word in [expected, "B / A", "p50 µs"] {
            assert!(table.contains(word), "{word} in {table}");
        }
    }
    assert_eq!(read_json(&only_folder(&folder.join("later")).join("report.json"))["kind"], "delay");
    // A comparison brings its own servers.
    let elsewhere =
        run(&["replay", old.to_str().expect("text"), "--target", &target, "--results", &path("no")]);
    assert_eq!(elsewhere.code, Some(2), "{}", elsewhere.stderr);
    server.stop();
    server.join().expect("it ends well");
    let _ = std::fs::remove_dir_all(folder);
}

#[test]
fn connections_are_renewed_and_ramped() {
    let server = Server::start(store());
    let flags = [
        "-n",
        "300",
        "--warmup",
        "0s",
        "-c",
        "3",
        "--requests-per-connection",
        "10",
        "--connect-rate",
        "500",
    ];
    let (ran, one) = measure("churn", &server.target(), &flags);
    let count = |run: &Value, name: &str| run["counts"][name].as_u64().expect("a count");
    assert_eq!(
        (count(&one, "answered"), count(&one, "lost"), count(&one, "reconnects")),
        (300, 0, 0),
        "{one}"
    );
    assert!((26..=30).contains(&count(&one, "churned")), "{one}");
    assert!(ran.stdout.contains("connections renewed"), "{}", ran.stdout);
    // The open loop's arrivals wait for the new connection, and that is lateness.
    let flags = [
        "-n",
        "400",
        "--warmup",
        "0s",
        "-c",
        "1",
        "--requests-per-connection",
        "100",
        "--connect-rate",
        "5",
        "--loop",
        "open",
        "--rate",
        "2000",
    ];
    let (_, open) = measure("churn-open", &server.target(), &flags);
    assert_eq!((count(&open, "offered"), count(&open, "answered")), (400, 400), "{open}");
    assert!(open["lateness"]["max_ns"].as_u64() > Some(50_000_000), "{open}");
}

/// A memcached of one thread for each connection: it stores, finds, and counts in one key.
fn memcached() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("its address");
    let map = std::sync::Arc::new(Mutex::new(std::collections::HashMap::<String, Vec<u8>>::new()));
    thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let map = map.clone();
            thread::spawn(move || {
                let mut writer = stream.try_clone().ok()?;
                let mut reader = BufReader::new(stream);
                loop {
                    let mut line = String::new();
                    if reader.read_line(&mut line).ok()? == 0 {
                        return Some(());
                    }
                    let words: Vec<&str> = line.split_ascii_whitespace().collect();
                    let answer = match words[..] {
                        ["set", key, "0", _, length] => {
                            let mut data = vec![0; length.parse::<usize>().ok()? + 2];
                            reader.read_exact(&mut data).ok()?;
                            data.truncate(data.len() - 2);
                            map.lock().ok()?.insert(key.into(), data);
                            b"STORED\r\n".to_vec()
                        }
                        ["get", key] => match map.lock().ok()?.get(key) {
                            Some(data) => {
                                let head = format!("VALUE {key} 0 {}\r\n", data.len());
                                [head.as_bytes(), data, b"\r\nEND\r\n"].concat()
                            }
                            None => b"END\r\n".to_vec(),
                        },
                        _ => b"ERROR\r\n".to_vec(),
                    };
                    writer.write_all(&answer).ok()?;
                }
            });
        }
    });
    format!("memcache://{address}")
}

#[test]
fn memcached_is_driven_filled_and_checked() {
    let target = memcached();
    let flags = [
        "-n",
        "4000",
        "--warmup",
        "0s",
        "-c",
        "2",
        "--keys",
        "100",
        "--prefill",
        "--verify",
        "--ratio",
        "1:3",
        "--value-size",
        "3-300",
        "--ttl",
        "none:1,60s:1",
    ];
    let (ran, one) = measure("memcache", &target, &flags);
    let count = |name: &str| one["counts"][name].as_u64().expect("a count");
    assert_eq!(
        (count("answered"), count("misses"), count("errors"), count("wrong")),
        (4_000, 0, 0, 0),
        "{one}"
    );
    assert!(count("checked") > 0 && one["target"].as_str().expect("text").starts_with("memcache://"));
    assert_eq!(ran.code, Some(0), "{}", ran.stdout);
    // Its errors are errors, and RESP is none of its answers.
    let (_, errors) =
        measure("memcache-errors", &target, &["-n", "50", "--warmup", "0s", "--command", "flush"]);
    assert_eq!(errors["counts"]["errors"], 50);
    let resp = Server::start(|_, _| reply("-ERR\r\n"));
    let ran =
        run(&["run", "--target", &format!("memcache://{}", resp.address), "--timeout", "300ms", "-n", "5"]);
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
}

#[test]
fn ctrl_c_in_a_sweep_leaves_the_runs_that_were_whole() {
    let folder = scratch("sweep-interrupt");
    let json = folder.join("sweep.json");
    let (tell, told) = std::sync::mpsc::channel();
    let server = Server::start(move |number, _| {
        if number == 700 {
            tell.send(()).expect("the test waits");
        }
        reply("$2\r\nok\r\n")
    });
    let target = server.target();
    let flags = [
        "sweep",
        "--target",
        &target,
        "--ratio",
        "0:1",
        "-c",
        "2",
        "--warmup",
        "0s",
        "--duration",
        "500ms",
        "--rates",
        "1000",
        "--repeats",
        "900",
        "--json",
        json.to_str().expect("text"),
    ];
    let mut command = loadgen(&flags);
    let child = command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn();
    let child = child.expect("the program starts");
    told.recv_timeout(Duration::from_secs(60)).expect("seven hundred requests");
    let status = std::process::Command::new("sh").arg("-c").arg(format!("kill -INT {}", child.id())).status();
    assert!(status.expect("a shell").success());
    let ran = ran(child.wait_with_output().expect("it ends"));
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    let runs = read_json(&json)["runs"].as_array().expect("runs").clone();
    assert!((2..800).contains(&runs.len()), "{}", runs.len());
    assert!(runs[0]["incomplete"].is_null() && runs[runs.len() - 1]["incomplete"].is_string());
    let _ = std::fs::remove_dir_all(folder);
}
