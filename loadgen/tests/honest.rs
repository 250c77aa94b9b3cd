//! What the tool says of a measurement when the measurement is not what was asked for: overload, refusal, silence, Ctrl-C,
//! flags that cannot be carried out.

mod harness;
mod schema;

use harness::*;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
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

/// The words of a line; `{}` is the target.
fn words<'a>(line: &'a str, target: &'a str) -> Vec<&'a str> {
    line.split(' ').map(|word| if word == "{}" { target } else { word }).collect()
}

fn press_ctrl_c(child: &Child) {
    let status = Command::new("sh").arg("-c").arg(format!("kill -INT {}", child.id())).status();
    assert!(status.expect("a shell").success());
}

fn start(line: &[&str]) -> Child {
    let mut command = loadgen(line);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts")
}

#[test]
fn a_number_of_requests_is_judged_by_when_they_were_meant_and_not_by_when_the_last_was_answered() {
    // Some 450 a second at best; 400 requests are offered within 80 ms.
    let server = one_at_a_time(Duration::from_millis(2));
    let line = "--loop open --rate 5000 --arrival constant -n 400 -c 4 --warmup 0s --ratio 0:1";
    let (ran, run) = measure("overload-n", &server.target(), &words(line, ""));
    let offered = run["offered_per_s"].as_f64().expect("a rate");
    assert!((4_900.0..5_100.0).contains(&offered), "{offered} offered\n{}", ran.stdout);
    assert!(run["throughput_per_s"].as_f64() < Some(600.0), "{run}");
    assert!(rules(&run).contains(&"rate_not_reached".to_string()), "{run}");
    assert_eq!((ran.code, run["counts"]["answered"].as_u64()), (Some(1), Some(400)), "{}", ran.stdout);
    // What is far from overload is as good as before.
    let server = Server::start(store());
    let line = "--loop open --rate 1000 --arrival constant -n 400 -c 4 --warmup 0s --ratio 0:1";
    let (_, run) = measure("reached-n", &server.target(), &words(line, ""));
    assert!(!rules(&run).contains(&"rate_not_reached".to_string()), "{run}");
    // A sweep and a knee see it as well.
    let server = one_at_a_time(Duration::from_millis(2));
    let target = server.target();
    let line = "sweep --target {} --rates 5000 -n 400 -c 4 --warmup 0s --ratio 0:1";
    let ran = run_words(line, &target);
    assert!(ran.stdout.contains("unbounded"), "{}", ran.stdout);
    let line = "knee --target {} --from 4000 --to 8000 --objective p50<10s -n 200 -c 4 --warmup 0s --ratio 0:1 --repeats 1";
    let ran = run_words(line, &target);
    assert!(
        !ran.stderr.lines().any(|line| line.contains(" 4,0") && line.ends_with(" met")),
        "{}",
        ran.stderr
    );
}

fn run_words(line: &str, target: &str) -> Ran {
    run(&words(line, target))
}

#[test]
fn errors_keep_no_objective() {
    let server = Server::start(|_, _| reply("-NOAUTH Authentication required.\r\n"));
    let line = "knee --target {} --ratio 0:1 -c 2 --warmup 0s --duration 200ms --from 500 --to 2000 --objective p50<10s";
    let ran = run_words(line, &server.target());
    assert_eq!(ran.code, Some(1), "{}{}", ran.stdout, ran.stderr);
    assert!(!ran.stdout.contains("knee: "), "{}", ran.stdout);
    assert!(ran.stderr.contains("NOAUTH"), "{}", ran.stderr);
}

#[test]
fn a_server_that_answers_neither_info_nor_config_is_no_silent_one() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let target = format!("resp://{}", listener.local_addr().expect("its address"));
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            thread::spawn(move || {
                let mut reader = BufReader::new(stream.try_clone().expect("a descriptor"));
                while let Some(request) = read_request(&mut reader) {
                    if request[0] != b"INFO" && request[0] != b"CONFIG" {
                        stream.write_all(b"$2\r\nok\r\n").expect("the generator is there");
                    }
                }
            });
        }
    });
    let (ran, run) =
        measure("mute-info", &target, &words("-n 500 --warmup 0s -c 2 --ratio 0:1 --timeout 300ms", ""));
    assert_eq!((ran.code, run["counts"]["answered"].as_u64()), (Some(0), Some(500)), "{}", ran.stderr);
}

#[test]
fn ctrl_c_ends_another_tool_as_well() {
    let folder = scratch("tool-interrupt");
    let text = |path: &Path| path.to_str().expect("text").to_string();
    let (fifo, file, results) = (folder.join("fifo"), folder.join("cases.toml"), folder.join("results"));
    assert!(Command::new("mkfifo").arg(&fifo).status().expect("coreutils").success());
    let cases = format!(
        "title = \"a test\"\nsubject = \"one\"\nrounds = 1\nduration-s = 0.1\nwarmup-s = 0.0\nconnections = 2\n{}\
         tool = [\"sh\", \"-c\", \"echo $$ > {}; exec sleep 300\"]\ntool-output = \"redis-benchmark-csv\"\nfill = false\n\
         [[case]]\nname = \"GET\"\ntargets = [\"one\"]\ngets = 1\nkeys = 100\n",
        target_entry("one"),
        text(&fifo)
    );
    std::fs::write(&file, cases).expect("a file");
    let child = start(&["compare", "--cases", &text(&file), "--results", &text(&results)]);
    let (tell, told) = channel();
    thread::spawn(move || tell.send(std::fs::read_to_string(fifo)));
    let pid = told.recv_timeout(Duration::from_secs(60)).expect("the tool runs").expect("its pid");
    press_ctrl_c(&child);
    let (tell, told) = channel();
    let id = child.id();
    thread::spawn(move || tell.send(ran(child.wait_with_output().expect("it ends"))));
    let Ok(ran) = told.recv_timeout(Duration::from_secs(30)) else {
        // Both are ours, and neither would end.
        let _ = Command::new("sh").arg("-c").arg(format!("kill -9 {} {id}", pid.trim())).status();
        panic!("it hangs");
    };
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert!(ran.stderr.contains("interrupted"), "{}", ran.stderr);
    assert!(!Path::new("/proc").join(pid.trim()).exists(), "the tool has ended");
    let _ = std::fs::remove_dir_all(folder);
}

#[test]
fn ctrl_c_in_the_first_loop_of_a_sweep_leaves_what_it_measured() {
    let folder = scratch("sweep-first");
    let json = folder.join("sweep.json");
    let (tell, told) = channel();
    let server = Server::start(move |number, _| {
        if number == 200 {
            tell.send(()).expect("the test waits");
        }
        reply("$2\r\nok\r\n")
    });
    let target = server.target();
    let mut line = words("sweep --target {} --ratio 0:1 -c 2 --warmup 0s --duration 300s --json", &target);
    line.push(json.to_str().expect("text"));
    let child = start(&line);
    told.recv_timeout(Duration::from_secs(60)).expect("two hundred requests");
    press_ctrl_c(&child);
    let ran = ran(child.wait_with_output().expect("it ends"));
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert!(json.exists(), "nothing was written: {}", ran.stderr);
    let report = read_json(&json);
    schema::keeps_to("report", &report);
    let runs = report["runs"].as_array().expect("runs");
    assert_eq!(runs.len(), 1);
    assert!(runs[0]["incomplete"].is_string() && runs[0]["counts"]["completed"].as_u64() >= Some(100));
    let _ = std::fs::remove_dir_all(folder);
}

#[test]
fn ctrl_c_in_a_calibration_leaves_the_cases_that_were_whole() {
    let folder = scratch("calibrate-interrupt");
    let json = folder.join("calibration.json");
    let mut child = start(&["calibrate", "--attempts", "1", "--json", json.to_str().expect("text")]);
    let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut line = String::new();
    // The first case's table; the others take seconds from here on.
    while !line.contains("attempt 1") {
        line.clear();
        assert!(stdout.read_line(&mut line).expect("readable") > 0, "it ended");
    }
    press_ctrl_c(&child);
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).expect("text");
    let ran = ran(child.wait_with_output().expect("it ends"));
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert!(ran.stderr.contains("interrupted") && !ran.stderr.contains("before it began"), "{}", ran.stderr);
    assert!(json.exists(), "nothing was written");
    let report = read_json(&json);
    schema::keeps_to("calibration", &report);
    assert!(report["incomplete"].as_str().is_some_and(|why| why.contains("interrupted")), "{report}");
    assert_eq!((&report["agrees"], &report["cases"][0]["attempts"]), (&false.into(), &1.into()), "{report}");
    let _ = std::fs::remove_dir_all(folder);
}

#[test]
fn no_place_that_cannot_be_written_is_found_out_afterwards() {
    let server = Server::start(store());
    let target = server.target();
    let folder = scratch("unwritable");
    let json = folder.join("report.json");
    let json = json.to_str().expect("text");
    assert_eq!(
        run(&["run", "--target", &target, "-n", "10", "--warmup", "0s", "--json", json]).code,
        Some(0)
    );
    server.requests.store(0, Ordering::SeqCst);
    let nowhere = "/proc/no/such/place";
    for line in [
        "run --target {} --json",
        "sweep --target {} --rates 10 --html",
        "knee --target {} --json",
        "caching grid --target {} --json",
        "caching delay --target {} --html",
        "compare --targets millrace --millrace /bin/true --results",
        "audit --target {} --cycles 1 --json",
        "calibrate --only 1ms --json",
        "report JSON --html",
        "replay JSON --results",
        "--duration 100ms --results",
    ] {
        let mut line: Vec<&str> = words(line, &target);
        line.iter_mut().filter(|word| **word == "JSON").for_each(|word| *word = json);
        line.push(nowhere);
        let ran = run(&line);
        assert_eq!(ran.code, Some(1), "{line:?}: {}{}", ran.stdout, ran.stderr);
        assert!(ran.stderr.contains("cannot write /proc/no/such/place"), "{line:?}: {}", ran.stderr);
        assert_eq!(ran.stdout, "", "{line:?}");
    }
    assert_eq!(server.requests.load(Ordering::SeqCst), 0, "nothing was measured");
    let _ = std::fs::remove_dir_all(folder);
}

#[test]
fn without_the_servers_share_a_run_says_that_it_cannot_judge_the_machine() {
    let server = Server::start(store());
    let (_, one) = measure("no-pid", &server.target(), &words("-n 500 --warmup 0s -c 2", ""));
    let notes = one["notes"].to_string();
    assert!(notes.contains("other programs' CPU cannot be judged: give --server-pid"), "{notes}");
    let line = format!("-n 500 --warmup 0s -c 2 --server-pid {}", std::process::id());
    let (_, one) = measure("with-pid", &server.target(), &words(&line, ""));
    assert!(!one["notes"].to_string().contains("cannot be judged"), "{one}");
}

#[test]
fn what_cannot_be_counted_of_a_server_is_said() {
    let server = Server::start(store());
    let line = format!("-n 500 --warmup 0s -c 2 --syscalls --server-pid {}", std::process::id());
    let (_, one) = measure("uncounted", &server.target(), &words(&line, ""));
    // Whichever of them this machine counts: the others are in the notes.
    let names =
        ["server_cycles_per_request", "server_instructions_per_request", "server_syscalls_per_request"];
    let missing = names.iter().filter(|name| one["cpu"][**name].is_null()).count();
    let said =
        one["notes"].as_array().expect("notes").iter().filter(|note| note.to_string().contains("count"));
    assert!(said.count() >= missing.min(1), "{missing} are missing: {}", one["notes"]);
}

#[test]
fn flags_that_would_be_ignored_are_wrong_usage() {
    let server = Server::start(store());
    let target = server.target();
    for (line, word) in [
        ("run --target {} -n 5 --arrival constant", "--arrival"),
        ("run --target http://127.0.0.1:1 -n 5 --resp 3", "--resp"),
        ("run --target memcache://127.0.0.1:1 -n 5 --resp 3", "--resp"),
        ("sweep --target {} --pipeline 4 --warmup 0s --duration 200ms", "--pipeline"),
        ("knee --target {} --pipeline 4", "--pipeline"),
    ] {
        let ran = run(&words(line, &target));
        assert_eq!(ran.code, Some(2), "{line}: {}{}", ran.stdout, ran.stderr);
        assert!(ran.stderr.contains(word), "{line}: {}", ran.stderr);
    }
    assert_eq!(server.requests.load(Ordering::SeqCst), 0, "nothing was measured");
}

#[test]
fn an_argument_that_is_no_text_is_no_panic() {
    use std::os::unix::ffi::OsStrExt;
    let folder = scratch("no-text");
    let json = folder.join(std::ffi::OsStr::from_bytes(b"\xff.json"));
    let server = Server::start(store());
    let mut command = loadgen(&["run", "--target", &server.target(), "-n", "10", "--warmup", "0s", "--json"]);
    let ran = ran(command.arg(&json).output().expect("the program starts"));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(json.exists());
    let _ = std::fs::remove_dir_all(folder);
}

#[test]
fn a_password_is_sent_over_http_as_well() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let target = format!("http://{}", listener.local_addr().expect("its address"));
    static AUTHORIZED: AtomicBool = AtomicBool::new(false);
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            thread::spawn(move || {
                let mut reader = BufReader::new(stream.try_clone().expect("a descriptor"));
                let mut fields = Vec::new();
                while let Some(line) = read_line(&mut reader) {
                    if !line.is_empty() {
                        fields.push(line.to_ascii_lowercase());
                        continue;
                    }
                    let is_ours = std::mem::take(&mut fields)
                        .iter()
                        .any(|field| field == "authorization: bearer sesame");
                    AUTHORIZED.fetch_or(is_ours, Ordering::SeqCst);
                    let answer: &[u8] = match is_ours {
                        true => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
                        false => b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n",
                    };
                    if stream.write_all(answer).is_err() {
                        return;
                    }
                }
            });
        }
    });
    let line = "run --target {} -n 20 --warmup 0s -c 1 --ratio 0:1 --password-env LOADGEN_TEST_PASSWORD";
    let mut command = loadgen(&words(line, &target));
    let ran = ran(command.env("LOADGEN_TEST_PASSWORD", "sesame").output().expect("the program starts"));
    assert!(AUTHORIZED.load(Ordering::SeqCst), "{}{}", ran.stdout, ran.stderr);
    assert_eq!(ran.code, Some(0), "{}{}", ran.stdout, ran.stderr);
}

#[test]
fn a_report_names_the_commit_that_was_built_and_not_the_one_that_lies_there_now() {
    let folder = scratch("commit");
    let json = folder.join("report.json");
    let server = Server::start(store());
    let target = server.target();
    let mut line = words("run --target {} -n 10 --warmup 0s --json", &target);
    line.push(json.to_str().expect("text"));
    // Where it runs there may be no git, or another tree at the place of the one that was built.
    let ran = ran(loadgen(&line).env("PATH", "").output().expect("the program starts"));
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let commit = read_json(&json)["manifest"]["commit"].clone();
    let is_checkout = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.git").exists();
    assert_eq!(commit.as_str().is_some_and(|commit| commit.len() >= 7), is_checkout, "{commit}");
    let _ = std::fs::remove_dir_all(folder);
}

#[test]
fn sweeps_side_by_side_have_a_curve_of_their_own_each() {
    let folder = scratch("sweeps");
    let path = |name: &str| folder.join(name).to_str().expect("text").to_string();
    let server = Server::start(store());
    let target = server.target();
    let reports = [path("a.json"), path("b.json")];
    for report in &reports {
        let line = "sweep --target {} --rates 500,1000,2000 -n 200 -c 2 --warmup 0s --ratio 0:1 --json";
        let mut line = words(line, &target);
        line.push(report);
        // Whether a rate can be quoted on this machine is another matter.
        assert_ne!(run(&line).code, Some(2));
        assert!(Path::new(report).exists());
    }
    let html = path("both.html");
    assert_eq!(run(&["report", &reports[0], &reports[1], "--html", &html]).code, Some(0));
    let page = std::fs::read_to_string(&html).expect("a page");
    assert!(page.contains("Latency against offered rate") && page.matches("<svg").count() == 2, "no curve");
    for name in ["A: p50", "B: p50"] {
        assert!(page.contains(name), "{name}");
    }
    let _ = std::fs::remove_dir_all(folder);
}
