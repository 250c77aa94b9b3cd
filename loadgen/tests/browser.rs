//! Every kind of report in a real browser: no script error, no request that leaves the file, each plot there and drawn.
//!
//! A runner of its own: where there is no Chromium the tests are counted as skipped, loudly, never as passed. The browser is
//! spoken to over a pipe in its own protocol (Chrome DevTools, JSON between NUL bytes), so nothing else is needed. With
//! LOADGEN_SCREENSHOTS=DIR the pictures are kept for people to look at.

mod harness;
#[path = "../../tests/src/runner.rs"]
#[allow(dead_code, unused_imports, reason = "its own tests are run where it lives")]
mod runner;

use harness::*;
use runner::{Skipped, Test};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

const TESTS: [Test; 4] = [
    ("the_report_of_a_sweep_has_every_plot", || in_a_browser(sweep)),
    ("the_report_of_a_comparison_has_its_bars", || in_a_browser(compare)),
    ("the_reports_of_caches_have_their_plots", || in_a_browser(caching)),
    ("runs_laid_over_each_other_share_a_plot", || in_a_browser(overlay)),
];
/// No page and no browser takes longer.
const PATIENCE: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    runner::main(&TESTS)
}

fn in_a_browser(test: fn(&Path)) -> Result<(), Skipped> {
    let browser = chromium().ok_or("no chromium or google-chrome in PATH; scripts/setup.sh installs one");
    test(&browser.map_err(|why| Skipped(why.into()))?);
    Ok(())
}

fn chromium() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"];
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    names
        .iter()
        .flat_map(|name| folders.iter().map(move |folder| folder.join(name)))
        .find(|path| path.is_file())
}

/// A browser with one page.
struct Browser {
    child: Child,
    input: File,
    output: Receiver<Value>,
    session: Option<String>,
    number: u64,
    events: Vec<Value>,
}

impl Browser {
    fn start(program: &Path, folder: &Path) -> Browser {
        let (to, from) = (folder.join("to"), folder.join("from"));
        let made = Command::new("mkfifo").args([&to, &from]).status().expect("mkfifo");
        assert!(made.success());
        // The protocol's pipes are descriptors 3 and 4.
        let script = r#"exec "$0" "$@" 3<"$TO" 4>"$FROM""#;
        let mut command = Command::new("sh");
        command.arg("-c").arg(script).arg(program).env("TO", &to).env("FROM", &from);
        command.args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-extensions",
        ]);
        // Nothing is to be reached, not even by the browser for itself.
        command.args([
            "--remote-debugging-pipe",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            "--disable-background-networking",
        ]);
        command.arg(format!("--user-data-dir={}", folder.join("profile").display())).arg("about:blank");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(folder.join("log")).expect("a file"));
        let child = command.spawn().expect("a shell");
        let input = File::options().write(true).open(&to).expect("the browser's end");
        let output = File::open(&from).expect("the browser's end");
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            for message in BufReader::new(output).split(0) {
                let Ok(message) = message else { return };
                let _ = sender.send(serde_json::from_slice(&message).expect("JSON"));
            }
        });
        let mut browser =
            Browser { child, input, output: receiver, session: None, number: 0, events: Vec::new() };
        let target = browser.call("Target.createTarget", json!({"url": "about:blank"}));
        let attached =
            browser.call("Target.attachToTarget", json!({"targetId": target["targetId"], "flatten": true}));
        browser.session = attached["sessionId"].as_str().map(str::to_string);
        for domain in ["Page", "Runtime", "Network", "Log"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        // A window of a usual size: what does not fit there is too wide.
        let window = json!({"width": 1200, "height": 900, "deviceScaleFactor": 1, "mobile": false});
        browser.call("Emulation.setDeviceMetricsOverride", window);
        browser
    }

    fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.number += 1;
        let mut message = json!({"id": self.number, "method": method, "params": parameters});
        if let Some(session) = &self.session {
            message["sessionId"] = session.clone().into();
        }
        self.input.write_all(message.to_string().as_bytes()).expect("the browser reads");
        self.input.write_all(&[0]).expect("the browser reads");
        loop {
            let message =
                self.output.recv_timeout(PATIENCE).unwrap_or_else(|error| panic!("{method}: {error}"));
            if message["id"] == self.number {
                assert!(message["error"].is_null(), "{method}: {message}");
                return message["result"].clone();
            }
            self.events.push(message);
        }
    }

    fn evaluate(&mut self, script: &str) -> Value {
        let answer = self.call("Runtime.evaluate", json!({"expression": script, "returnByValue": true}));
        assert!(answer["exceptionDetails"].is_null(), "{script}: {answer}");
        answer["result"]["value"].clone()
    }

    /// Opens a file and waits until all of it is there.
    fn open(&mut self, file: &Path) {
        self.events.clear();
        let address = format!("file://{}", file.display());
        let opened = self.call("Page.navigate", json!({"url": address}));
        assert!(opened["errorText"].is_null(), "{opened}");
        while !self.events.iter().any(|event| event["method"] == "Page.loadEventFired") {
            let event = self.output.recv_timeout(PATIENCE).expect("the page is loaded");
            self.events.push(event);
        }
        // Whatever is to follow a load by itself has a turn of the page to do so.
        self.call(
            "Runtime.evaluate",
            json!({"expression": "new Promise(done => requestAnimationFrame(() => setTimeout(done, 0)))", "awaitPromise": true}),
        );
        for event in &self.events {
            let method = event["method"].as_str().unwrap_or_default();
            assert!(
                !["Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"].contains(&method),
                "{event}"
            );
            if method == "Network.requestWillBeSent" {
                let asked = event["params"]["request"]["url"].as_str().expect("an address");
                assert!(asked == address || asked.starts_with("data:"), "a request leaves the file: {asked}");
            }
        }
        assert!(
            self.events.iter().any(|event| event["method"] == "Network.requestWillBeSent"),
            "requests are seen"
        );
    }

    /// Opens a report: under each of these headings there is a plot that is drawn, and these words are to be read.
    fn check(&mut self, file: &Path, plots: &[&str], words: &[&str]) {
        self.open(file);
        let drawn = self.evaluate(
            "[...document.querySelectorAll('svg')].map(svg => {
                let heading = svg;
                while (heading && !/^H[23]$/.test(heading.tagName)) heading = heading.previousElementSibling;
                const box = svg.getBoundingClientRect();
                const parts = [...svg.querySelectorAll('polyline, rect, circle')];
                const outside = [...svg.querySelectorAll('text')].filter(text => {
                    const place = text.getBoundingClientRect();
                    return place.left < box.left - 2 || place.right > box.right + 2;
                });
                return {heading: heading ? heading.textContent : '', width: box.width, height: box.height, parts: parts.length,
                        outside: outside.map(text => text.textContent)};
            })",
        );
        let drawn = drawn.as_array().expect("a list");
        for wanted in plots {
            let plot =
                drawn.iter().find(|plot| plot["heading"].as_str().is_some_and(|text| text.contains(wanted)));
            let plot = plot.unwrap_or_else(|| panic!("no plot under \"{wanted}\": {drawn:?}"));
            assert!(plot["width"].as_f64() > Some(300.0) && plot["height"].as_f64() > Some(30.0), "{plot}");
            assert!(plot["parts"].as_u64() > Some(0), "an empty plot: {plot}");
        }
        for plot in drawn {
            assert_eq!(plot["outside"], json!([]), "words that are cut off: {plot}");
        }
        let widths = self.evaluate(
            "[...document.querySelectorAll('table')].filter(table => table.getBoundingClientRect().right > innerWidth + 2)
                .map(table => table.innerText.slice(0, 80))",
        );
        assert_eq!(widths, json!([]), "tables that are wider than the page");
        let text = self.evaluate("document.body.innerText");
        let text = text.as_str().expect("text");
        for word in words {
            assert!(text.contains(word), "\"{word}\" is not to be read in\n{text}");
        }
        // It prints.
        let pdf = self.call("Page.printToPDF", json!({}));
        assert!(pdf["data"].as_str().is_some_and(|data| data.starts_with("JVBERi")), "no PDF");
        if let Some(folder) = std::env::var_os("LOADGEN_SCREENSHOTS") {
            let picture = self.call("Page.captureScreenshot", json!({"captureBeyondViewport": true}));
            let name = file.file_name().and_then(|name| name.to_str()).expect("a name");
            let picture = base64(picture["data"].as_str().expect("a picture"));
            std::fs::write(Path::new(&folder).join(format!("{name}.png")), picture)
                .expect("a place for pictures");
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Enough of base64 for a test.
fn base64(text: &str) -> Vec<u8> {
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0u32, 0);
    for character in text.bytes().filter(|byte| *byte != b'=') {
        bits = bits << 6 | alphabet.iter().position(|known| *known == character).expect("base64") as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    bytes
}

/// A Millrace that times every fourth batch, and where it is.
fn timed_millrace() -> (reactor::RunningServer, String) {
    let server = millrace(&[("http", "no"), ("stage-sampling", "4")]);
    let target = format!("resp://{}", server.resp.expect("a port"));
    (server, target)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a text path")
}

/// Whatever a busy machine does to its verdict: the report is written.
fn written(words: &[&str], report: &Path) -> Ran {
    let ran = run(words);
    assert!(ran.code != Some(2) && report.exists(), "{words:?}: {}", ran.stderr);
    ran
}

fn sweep(browser: &Path) {
    let folder = scratch("browser-sweep");
    let (server, target) = timed_millrace();
    let page = folder.join("sweep.html");
    let words = [
        "sweep",
        "--target",
        &target,
        "-c",
        "4",
        "--rates",
        "200,300,400,500",
        "--duration",
        "700ms",
        "--warmup",
        "100ms",
        "--prefill",
        "--keys",
        "1000",
        "--html",
        text(&page),
    ];
    written(&words, &page);
    let plots = [
        "Latency by percentile",
        "Latency against offered rate",
        "CPU per request",
        "In the server",
        "over time",
    ];
    let words = [
        "Response time over time",
        "lateness",
        "mitigations",
        "seed 1",
        "read: execute",
        "open loop, Poisson",
    ];
    Browser::start(browser, &folder).check(&page, &plots, &words);
    server.stop();
    server.join().expect("it ends well");
    let _ = std::fs::remove_dir_all(folder);
}

fn overlay(browser: &Path) {
    let folder = scratch("browser-overlay");
    let (server, target) = timed_millrace();
    let (a, b, page) = (folder.join("a.json"), folder.join("b.json"), folder.join("overlay.html"));
    written(&["run", "--target", &target, "-c", "4", "-n", "3000", "--warmup", "0s", "--json", text(&a)], &a);
    let open = [
        "run",
        "--target",
        &target,
        "-c",
        "4",
        "--loop",
        "open",
        "--rate",
        "2000",
        "-n",
        "1500",
        "--warmup",
        "0s",
        "--json",
        text(&b),
    ];
    written(&open, &b);
    written(&["report", text(&a), text(&b), "--html", text(&page)], &page);
    let words = ["A: run", "B: run", "What differs is bold", "closed loop", "open loop"];
    Browser::start(browser, &folder).check(&page, &["Latency by percentile"], &words);
    server.stop();
    server.join().expect("it ends well");
    let _ = std::fs::remove_dir_all(folder);
}

fn caching(browser: &Path) {
    let folder = scratch("browser-caching");
    let (server, target) = timed_millrace();
    let (grid, delay) = (folder.join("grid.html"), folder.join("delay.html"));
    let words = [
        "caching",
        "grid",
        "--target",
        &target,
        "--workers",
        "2,4,8",
        "--rounds",
        "1",
        "--duration",
        "200ms",
        "--warmup",
        "100ms",
        "--keys",
        "50",
        "--ratio",
        "1:20",
        "--html",
        text(&grid),
    ];
    written(&words, &grid);
    let words = [
        "caching",
        "delay",
        "--target",
        &target,
        "--trackers",
        "1,8",
        "-n",
        "1000",
        "--pause",
        "50us",
        "--rounds",
        "1",
        "--html",
        text(&delay),
    ];
    written(&words, &delay);
    let mut browser = Browser::start(browser, &folder);
    browser.check(
        &grid,
        &["Reads a second", "Hit rate"],
        &["cache", "zipf:0.99", "mitigations", "From acknowledged write to invalidation"],
    );
    // Whoever is told before the writer has a bar of no length since the acknowledgement.
    browser.check(
        &delay,
        &["Since the write was sent"],
        &["trackers", "stale", "Since it was acknowledged, p99"],
    );
    drop(browser);
    server.stop();
    server.join().expect("it ends well");
    let _ = std::fs::remove_dir_all(folder);
}

fn compare(browser: &Path) {
    let folder = scratch("browser-compare");
    let cases = format!(
        "title = \"Two of a kind\"\nsubject = \"one\"\nrounds = 3\nduration-s = 0.4\nwarmup-s = 0.05\nconnections = 4\n\
         repeats-if-noisy = 0\n{}{}[[case]]\nname = \"GET\"\ntargets = [\"one\", \"two\"]\ngets = 1\nkeys = 100\n\
         goals = [{{ against = \"two\", cpu-ratio-max = 100.0 }}]\n",
        target_entry("one"),
        target_entry("two")
    );
    let (file, results) = (folder.join("cases.toml"), folder.join("results"));
    std::fs::write(&file, cases).expect("a file");
    let ran = run(&["compare", "--cases", text(&file), "--results", text(&results), "--syscalls"]);
    assert_ne!(ran.code, Some(2), "{}", ran.stderr);
    let page = folder.join("compare.html");
    std::fs::copy(only_folder(&results).join("report.html"), &page).expect("a page");
    let plots = ["Throughput", "Server CPU per request", "paired by round"];
    let words = ["driven by", "What a request costs the server", "(met)", "mitigations", "servers core"];
    Browser::start(browser, &folder).check(&page, &plots, &words);
    let _ = std::fs::remove_dir_all(folder);
}
