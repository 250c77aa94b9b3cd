//! What goes wrong outside of the tool: said clearly, with the right exit code, and without hanging. More of it stands beside
//! what it belongs to (`end_to_end.rs`: refusing, garbage, silence, death, errors; `caching.rs`, `threads.rs`, `audit.rs`).

mod harness;

use harness::*;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

#[test]
fn impossible_rates_are_wrong_usage() {
    let base = ["run", "--target", "resp://127.0.0.1:1", "--loop", "open"];
    for rate in ["0", "-5", "nan", "inf", "1e12", "fast", ""] {
        let ran = run(&[&base[..], &[&format!("--rate={rate}")]].concat());
        assert_eq!(ran.code, Some(2), "{rate:?}: {}", ran.stderr);
        assert!(ran.stderr.contains("rate"), "{rate:?}: {}", ran.stderr);
    }
    for arrival in ["pareto:1", "ramp:0/1s", "ramp:5/0s", "onoff:0s/1s", "trace:/no/such/file", "always"] {
        let ran = run(&[&base[..], &["--rate", "5", "--arrival", arrival]].concat());
        assert_eq!(ran.code, Some(2), "{arrival}: {}", ran.stderr);
    }
    for words in [
        &["sweep", "--target", "resp://127.0.0.1:1", "--rates", "100,0"][..],
        &["knee", "--target", "resp://127.0.0.1:1", "--objective", "p99<fast"],
        &["run", "--target", "resp://127.0.0.1:1", "--connect-rate", "0"],
    ] {
        assert_eq!(run(words).code, Some(2), "{words:?}");
    }
}

#[test]
fn a_rate_that_no_generator_reaches_ends_and_is_invalid() {
    let server = Server::start(store());
    let flags = [
        "--loop",
        "open",
        "--rate",
        "100000000",
        "--duration",
        "500ms",
        "--warmup",
        "0s",
        "--drain",
        "100ms",
        "-c",
        "2",
    ];
    let began = Instant::now();
    let (ran, run) = measure("impossible", &server.target(), &flags);
    assert!(began.elapsed() < Duration::from_secs(60), "it took {:?}", began.elapsed());
    assert_eq!((ran.code, &run["verdict"]), (Some(1), &"INVALID".into()), "{}", ran.stdout);
    let said = rules(&run);
    assert!(said.iter().any(|rule| ["rate_not_reached", "incomplete"].contains(&rule.as_str())), "{said:?}");
}

#[test]
fn a_server_that_falls_silent_leaves_what_was_measured() {
    let server =
        Server::start(|number, _| if number < 1_500 { reply("$2\r\nok\r\n") } else { Reaction::Silence });
    let flags = ["--duration", "120s", "--warmup", "0s", "--ratio", "0:1", "-c", "3", "--timeout", "500ms"];
    let began = Instant::now();
    let (ran, run) = measure("falls-silent", &server.target(), &flags);
    assert!(began.elapsed() < Duration::from_secs(60), "it does not wait for the end of the run");
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("does not answer (requests)"), "{}", ran.stderr);
    assert_eq!(
        (&run["counts"]["completed"], &run["counts"]["unanswered"]),
        (&1_500.into(), &3.into()),
        "{run}"
    );
    assert!(run["incomplete"].is_string(), "{run}");
}

#[test]
fn a_full_disk_is_said_for_every_kind_of_report() {
    let server = Server::start(store());
    let target = server.target();
    let folder = scratch("full");
    let kept = folder.join("kept.json");
    for flag in ["--json", "--html", "--csv"] {
        // One that fails does not keep the others from being written.
        let other = if flag == "--json" { "--html" } else { "--json" };
        let kept_path = kept.to_str().expect("text");
        let ran = run(&[
            "run",
            "--target",
            &target,
            "-n",
            "10",
            "--warmup",
            "0s",
            flag,
            "/dev/full",
            other,
            kept_path,
        ]);
        assert_eq!(ran.code, Some(1), "{flag}: {}", ran.stderr);
        assert!(
            ran.stderr.contains("cannot write /dev/full") && ran.stderr.contains("space"),
            "{flag}: {}",
            ran.stderr
        );
        assert!(kept.exists(), "{flag}: {other} is written all the same");
        std::fs::remove_file(&kept).expect("it is there");
    }
    let grid = [
        "caching",
        "grid",
        "--target",
        &target,
        "--workers",
        "2",
        "--rounds",
        "1",
        "--duration",
        "50ms",
        "--warmup",
        "0s",
    ];
    // Its server knows no HELLO: the failure that is written down is the one of the disk.
    let ran = run(&[&grid[..], &["--json", "/dev/full"]].concat());
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("cannot write /dev/full"), "{}", ran.stderr);
    let _ = std::fs::remove_dir_all(folder);
}

#[test]
fn a_place_that_cannot_be_written_is_refused_before_the_load_begins() {
    let server = Server::start(store());
    let target = server.target();
    for words in [
        &["run", "--target", &target, "--json", "/proc/no/such/place"][..],
        &["sweep", "--target", &target, "--rates", "10", "--html", "/proc/no/such/place"],
        &["caching", "grid", "--target", &target, "--json", "/proc/no/such/place"],
        &["compare", "--targets", "millrace", "--millrace", "/bin/true", "--results", "/proc/no/such/place"],
    ] {
        let ran = run(words);
        assert_eq!(ran.code, Some(1), "{words:?}");
        assert!(ran.stderr.contains("cannot write /proc/no/such/place"), "{words:?}: {}", ran.stderr);
    }
    assert_eq!(server.requests.load(std::sync::atomic::Ordering::SeqCst), 0, "nothing was measured");
}

/// Starts the program, waits until it has said `told` on stderr so many times, and presses Ctrl-C.
fn interrupted(words: &[&str], told: &str, times: usize) -> (Option<i32>, String) {
    use std::io::{BufRead, BufReader, Read};
    let mut command = loadgen(words);
    let mut child: Child =
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the program starts");
    let mut stderr = BufReader::new(child.stderr.take().expect("a pipe"));
    let (mut said, mut seen) = (String::new(), 0);
    while seen < times {
        let mut line = String::new();
        assert!(stderr.read_line(&mut line).expect("readable") > 0, "it ended: {said}");
        seen += usize::from(line.contains(told));
        said.push_str(&line);
    }
    let status = Command::new("sh").arg("-c").arg(format!("kill -INT {}", child.id())).status();
    assert!(status.expect("a shell").success());
    stderr.read_to_string(&mut said).expect("text");
    (child.wait().expect("it ends").code(), said)
}

#[test]
fn ctrl_c_in_a_comparison_and_in_a_grid_writes_what_was_measured() {
    let folder = scratch("interrupts");
    let cases = format!(
        "title = \"a test\"\nsubject = \"one\"\nrounds = 1000\nduration-s = 0.1\nwarmup-s = 0.0\nconnections = 2\n\
         repeats-if-noisy = 0\n{}[[case]]\nname = \"GET\"\ntargets = [\"one\"]\ngets = 1\nkeys = 100\n",
        target_entry("one")
    );
    let (file, results) = (folder.join("cases.toml"), folder.join("results"));
    std::fs::write(&file, cases).expect("a file");
    let text = |path: &Path| path.to_str().expect("text").to_string();
    let words = ["compare", "--cases", &text(&file), "--results", &text(&results)];
    let (code, said) = interrupted(&words, "round ", 2);
    assert_eq!(code, Some(1), "{said}");
    let written = only_folder(&results);
    let report = read_json(&written.join("report.json"));
    assert!(report["incomplete"].as_str().is_some_and(|why| why.contains("interrupted")), "{report}");
    assert!(report["measurements"].as_array().is_some_and(|list| list.len() >= 2), "{report}");
    for name in ["report.md", "report.html"] {
        let page = std::fs::read_to_string(written.join(name)).expect("a report");
        assert!(page.contains("Incomplete"), "{name}: {page}");
    }

    let server = millrace(&[]);
    let target = format!("resp://{}", server.resp.expect("a port"));
    let json = folder.join("grid.json");
    let words = [
        "caching",
        "grid",
        "--target",
        &target,
        "--workers",
        "2",
        "--rounds",
        "1000",
        "--duration",
        "100ms",
        "--warmup",
        "0s",
        "--keys",
        "10",
        "--json",
        &text(&json),
    ];
    let (code, said) = interrupted(&words, "round ", 2);
    assert_eq!(code, Some(1), "{said}");
    let report = read_json(&json);
    assert!(report["incomplete"].as_str().is_some_and(|why| why.contains("interrupted")), "{report}");
    assert!(report["cells"].as_array().is_some_and(|list| list.len() >= 2), "{report}");
    server.stop();
    server.join().expect("it ends well");
    let _ = std::fs::remove_dir_all(folder);
}
