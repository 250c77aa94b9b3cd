//! One history across power cuts: many clients on few keys, a disk that forgets what was not flushed, and the question
//! whether one order of all operations explains every reply before and after.
//!
//! The power goes at random moments under load; the disk comes back, the server starts again on what it holds, with
//! another driver and another number of shards, and the history goes on. Of an operation without a reply nobody knows
//! the outcome, but it took effect before the cut or never. So an acknowledged write that is gone, a value that
//! somebody was shown and nobody finds again, a deleted one that is back, half of a transaction and a write that appears
//! late are all the same: no order explains them. (`everysec` promises less: `durability.rs` looks at that.)
//!
//! A history without an order is written to a file, and the message says how to judge it again. Each test prints its
//! seed; `MILLRACE_SEED` repeats what the clients send and what the cuts leave (not what the scheduler makes of it);
//! `MILLRACE_BIN` names another binary, `MILLRACE_CUTS` and `MILLRACE_LINEARIZABILITY_OPERATIONS` make the first one longer.
//! Without root, /dev/fuse, loop devices or mkfs.ext4 the tests are skipped and say so.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tests::linearizability::Reply;
use tests::linearizability::checker::Outcome as Verdict;
use tests::linearizability::clients::{self, GROUP_KEYS, Plan, Progress};
use tests::linearizability::file::Recorded;
use tests::linearizability::history::History;
use tests::linearizability::http;
use tests::linearizability::keyspace::Transaction;
use tests::linearizability::register::Keyed;
use tests::oracle::target::millrace_binary;
use tests::power_cut::{CutStyle, Options, PowerCutDisk};
use tests::random::{self, Random};
use tests::runner::{self, Skipped};

type Outcome = Result<(), Skipped>;

/// Answered operations of the first test in all, and the cuts they are spread over, unless the environment says otherwise.
const OPERATIONS: usize = 500_000;
const CUTS: usize = 24;
/// Cuts of one disk, and so of one history.
const CUTS_OF_A_DISK: usize = 6;
/// No load takes longer; only a hang does.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a server is watched that has lost its disk: it must not show what it lost.
const AFTERMATH: Duration = Duration::from_millis(30);
/// Where histories without an order are left.
const FOLDER: &str = env!("CARGO_TARGET_TMPDIR");

fn main() -> ExitCode {
    runner::main(&[
        ("histories_across_power_cuts_have_an_order", histories_across_power_cuts_have_an_order),
        ("a_disk_that_lies_is_found_out", a_disk_that_lies_is_found_out),
        ("a_server_that_promises_less_is_found_out", a_server_that_promises_less_is_found_out),
    ])
}

fn histories_across_power_cuts_have_an_order() -> Outcome {
    let seed = seeded("histories_across_power_cuts_have_an_order");
    let cuts = from_environment("MILLRACE_CUTS", CUTS);
    let operations = from_environment("MILLRACE_LINEARIZABILITY_OPERATIONS", OPERATIONS);
    let mut all = Judged::default();
    for first in (0..cuts).step_by(CUTS_OF_A_DISK) {
        let mut story = Story::begin(seed.wrapping_add(first as u64))?;
        for cut in first..cuts.min(first + CUTS_OF_A_DISK) {
            let replies = operations / cuts * story.random.between(100, 130) as usize / 100;
            story.serve_until_the_cut(&arguments(cut), replies);
        }
        story.serve_to_the_end(&arguments(first + 1));
        let judged = story.judge(&format!("power-cuts-{seed}-{first}"));
        println!("{judged}");
        all.add(&judged);
    }
    println!("in all: {all}");
    assert!(all.wrong.is_empty(), "{}", all.wrong.join("\n"));
    assert!(all.answered >= operations && all.cuts == cuts, "less was done than was asked for");
    assert!(all.torn * 5 > cuts, "hardly a cut met a disk with writes under way");
    // Some of what was under way had happened, and some had not: a server that always loses or always keeps it would
    // not have been tested.
    assert!(all.unknown_needed >= cuts && all.unknown > all.unknown_needed * 2, "nothing was uncertain");
    Ok(())
}

/// The negative control: where flushing does nothing the checker must find what is gone.
fn a_disk_that_lies_is_found_out() -> Outcome {
    let seed = seeded("a_disk_that_lies_is_found_out");
    must_be_rejected(seed, "lying", |story| {
        story.lies = true;
        story.serve_until_the_cut(&arguments(story.cuts), 3_000)
    })
}

/// And so for a server whose replies do not wait for the disk: `everysec` may lose a second, which is no linearizability.
fn a_server_that_promises_less_is_found_out() -> Outcome {
    let seed = seeded("a_server_that_promises_less_is_found_out");
    must_be_rejected(seed, "everysec", |story| {
        let arguments = arguments(story.cuts);
        let arguments: Vec<&str> = arguments.iter().copied().chain(["--durability", "everysec"]).collect();
        story.serve_until_the_cut(&arguments, 3_000);
    })
}

/// A whole part of a history, a part with something wrong, and whatever comes after it: the checker must reject it, and
/// again when it has been a file meanwhile.
fn must_be_rejected(seed: u64, name: &str, go_wrong: impl Fn(&mut Story)) -> Outcome {
    for attempt in 0..5 {
        let mut story = Story::begin(seed.wrapping_add(attempt))?;
        story.serve_until_the_cut(&arguments(0), 3_000);
        go_wrong(&mut story);
        story.lies = false;
        if let Err(refusal) = story.try_serve_to_the_end(&arguments(1)) {
            // Found out even earlier: by the server. But what is on trial is the checker.
            println!("the server refused to start: {}", refusal.trim());
            continue;
        }
        let wrong = story.histories().into_iter().find_map(|recorded| {
            let report = recorded.check();
            matches!(report.outcome, Verdict::Violation(_)).then_some((recorded, report))
        });
        let Some((recorded, report)) = wrong else { continue };
        if let Verdict::Violation(violation) = &report.outcome {
            println!("rejected: {violation}");
        }
        let said = recorded.save(Path::new(FOLDER), name);
        assert!(said.contains("check_history"), "{said}");
        let path = Path::new(FOLDER).join(format!("{name}.history"));
        let again =
            Recorded::from_text(&std::fs::read_to_string(&path).expect("it was saved")).expect("it is one");
        assert!(again == recorded, "a history is another one when it has been a file");
        assert!(matches!(again.check().outcome, Verdict::Violation(_)), "a file is judged like the history");
        std::fs::remove_file(&path).expect("it is there");
        return Ok(());
    }
    panic!("acknowledged writes were lost five times, and the checker found an order each time");
}

/// Both drivers, one shard and several, and every way of writing the log.
fn arguments(cut: usize) -> Vec<&'static str> {
    let io = ["io_uring", "epoll"][cut % 2];
    let shards = ["1", "2", "4"][cut / 2 % 3];
    let mode = ["direct", "dsync", "fdatasync"][cut / 3 % 3];
    vec!["--io", io, "--shards", shards, "--log-write-mode", mode]
}

fn seeded(test: &str) -> u64 {
    let seed = random::seed();
    println!("{test}: MILLRACE_SEED={seed}");
    seed
}

fn from_environment(name: &str, otherwise: usize) -> usize {
    std::env::var(name)
        .map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// What became of a history.
#[derive(Default)]
struct Judged {
    cuts: usize,
    /// Cuts that met writes under way.
    torn: usize,
    answered: usize,
    unknown: usize,
    /// Operations of unknown outcome that did take effect.
    unknown_needed: usize,
    configurations: usize,
    served_s: f64,
    judged_s: f64,
    wrong: Vec<String>,
}

impl Judged {
    fn add(&mut self, other: &Judged) {
        self.cuts += other.cuts;
        self.torn += other.torn;
        self.answered += other.answered;
        self.unknown += other.unknown;
        self.unknown_needed += other.unknown_needed;
        self.configurations += other.configurations;
        self.served_s += other.served_s;
        self.judged_s += other.judged_s;
        self.wrong.extend_from_slice(&other.wrong);
    }
}

impl std::fmt::Display for Judged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Judged { cuts, torn, answered, unknown, unknown_needed, served_s, judged_s, .. } = self;
        let each = self.configurations as f64 / (answered + unknown).max(1) as f64;
        write!(
            f,
            "{cuts} cuts, {torn} of them with writes under way; {answered} operations answered, {unknown} of unknown \
             outcome, at least {unknown_needed} of which took effect; served in {served_s:.1} s, judged in \
             {judged_s:.1} s, {each:.2} configurations each"
        )
    }
}

/// A disk, the servers that lived on it one after the other, and what their clients saw.
struct Story {
    disk: PowerCutDisk,
    random: Random,
    seed: u64,
    registers: History<Keyed, Reply>,
    groups: History<Transaction, Vec<Reply>>,
    cuts: usize,
    torn: usize,
    /// Flushes do nothing during the second half of a server's life.
    lies: bool,
    begun: Instant,
}

impl Story {
    fn begin(seed: u64) -> Result<Story, Skipped> {
        Ok(Story {
            disk: PowerCutDisk::new(Options { size: 512 << 20, ..Options::default() })?,
            random: Random::new(seed),
            seed,
            registers: History::new(),
            groups: History::new(),
            cuts: 0,
            torn: 0,
            lies: false,
            begun: Instant::now(),
        })
    }

    /// Starts a server, drives it until so many replies have come, cuts the power, looks on for a moment, and ends it.
    fn serve_until_the_cut(&mut self, arguments: &[&str], replies: usize) {
        let mut server = Server::start(self.disk.mount_point(), arguments)
            .unwrap_or_else(|refusal| panic!("after {} cuts of {}: {refusal}", self.cuts, self.seed));
        let plans = self.plans(&server, usize::MAX);
        self.open_accounts(&plans);
        let (disk, random) = (&mut self.disk, &mut self.random);
        let (registers, groups, lies) = (&self.registers, &self.groups, self.lies);
        let progress = plans.resp.progress.clone();
        disk.set_flush_delay(Duration::from_micros(*random.pick(&[0, 0, 300, 1_000])));
        let style = *random.pick(&[CutStyle::LoseAll, CutStyle::KeepSomeWrites, CutStyle::KeepSomeSectors]);
        let style = if lies { CutStyle::LoseAll } else { style };
        let (mut fate, mut cut_at) = Default::default();
        let mut is_served = true;
        plans.run(registers, groups, || {
            if lies {
                is_served = progress.wait_for(replies / 2, PATIENCE);
                disk.honour_flushes(false);
            }
            is_served &= progress.wait_for(replies, PATIENCE);
            // Replies come in bursts, when a flush has ended: the cut shall come at any moment, and often in the middle of
            // a slow flush.
            disk.set_flush_delay(Duration::from_millis(*random.pick(&[0, 3, 6, 12])));
            std::thread::sleep(Duration::from_micros(random.below(15_000) as u64));
            fate = disk.cut(style, random.next_u64());
            cut_at = (registers.stamp(), groups.stamp());
            progress.wait_for(progress.replies() + 2_000, AFTERMATH);
            server.kill();
        });
        assert!(is_served, "seed {}: {} replies within {PATIENCE:?}", self.seed, progress.replies());
        registers.power_was_cut(cut_at.0);
        groups.power_was_cut(cut_at.1);
        self.torn += usize::from(fate.dropped > 0);
        self.cuts += 1;
        disk.set_flush_delay(Duration::ZERO);
        disk.honour_flushes(true);
        disk.heal().expect("power comes back");
    }

    /// A last server, which nobody disturbs: what the last cut left is looked at, too.
    fn serve_to_the_end(&mut self, arguments: &[&str]) {
        self.try_serve_to_the_end(arguments)
            .unwrap_or_else(|refusal| panic!("after {} cuts of {}: {refusal}", self.cuts, self.seed));
    }

    fn try_serve_to_the_end(&mut self, arguments: &[&str]) -> Result<(), String> {
        let mut server = Server::start(self.disk.mount_point(), arguments)?;
        let plans = Plans { refusals: false, ..self.plans(&server, 300) };
        plans.run(&self.registers, &self.groups, || {});
        server.kill();
        Ok(())
    }

    /// The banks' accounts, once: what they hold survives.
    fn open_accounts(&self, plans: &Plans) {
        if self.cuts == 0 {
            clients::open_accounts(&plans.groups, &self.groups).expect("the server serves");
        }
    }

    fn plans(&mut self, server: &Server, operations: usize) -> Plans {
        let plan = Plan {
            address: server.resp,
            first_client: self.cuts as u32 * 100,
            clients: 12,
            operations,
            keys: 64,
            hot_keys: 8,
            pipeline_max: 4,
            hang_up_every: 500,
            may_be_refused: true,
            progress: Progress::default(),
            seed: self.random.next_u64() >> 16,
        };
        Plans {
            http: Plan {
                address: server.http,
                first_client: plan.first_client + 20,
                clients: 3,
                pipeline_max: 4,
                ..plan.clone()
            },
            groups: Plan {
                first_client: plan.first_client + 40,
                clients: 4,
                keys: 9,
                hot_keys: 0,
                pipeline_max: 4,
                ..plan.clone()
            },
            resp: plan,
            refusals: true,
        }
    }

    fn histories(self) -> [Recorded; 2] {
        let Story { registers, groups, .. } = self;
        [
            Recorded::Registers(registers.into_operations()),
            Recorded::Groups(GROUP_KEYS, groups.into_operations()),
        ]
    }

    fn judge(self, name: &str) -> Judged {
        let served_s = self.begun.elapsed().as_secs_f64();
        let mut judged = Judged { cuts: self.cuts, torn: self.torn, served_s, ..Judged::default() };
        let begun = Instant::now();
        for (recorded, kind) in self.histories().into_iter().zip(["keys", "groups"]) {
            let (operations, unknown) = recorded.counts();
            judged.answered += operations - unknown;
            judged.unknown += unknown;
            let report = recorded.check();
            judged.configurations += report.configurations;
            judged.unknown_needed += report.unknown_needed;
            let what = match report.outcome {
                Verdict::Linearizable => continue,
                Verdict::Violation(violation) => format!("no order explains it\n{violation}"),
                Verdict::Undecided => format!("not decided within {} configurations", report.configurations),
            };
            let saved = recorded.save(Path::new(FOLDER), &format!("{name}-{kind}"));
            judged.wrong.push(format!("{kind}: {what}\n{saved}"));
        }
        judged.judged_s = begun.elapsed().as_secs_f64();
        judged
    }
}

/// What the clients of one server do.
struct Plans {
    resp: Plan,
    http: Plan,
    groups: Plan,
    /// Whether the log will fail.
    refusals: bool,
}

impl Plans {
    /// Runs all clients while `meanwhile` happens, until the server is gone or they are done.
    fn run(
        mut self,
        registers: &History<Keyed, Reply>,
        groups: &History<Transaction, Vec<Reply>>,
        meanwhile: impl FnOnce(),
    ) {
        for plan in [&mut self.resp, &mut self.http, &mut self.groups] {
            plan.may_be_refused = self.refusals;
        }
        std::thread::scope(|scope| {
            scope.spawn(|| clients::single_key(&self.resp, registers));
            scope.spawn(|| http::single_key(&self.http, registers));
            scope.spawn(|| clients::multi_key(&self.groups, groups));
            meanwhile();
        });
    }
}

/// A server process with its data on the disk.
struct Server {
    child: Child,
    resp: SocketAddr,
    http: SocketAddr,
}

impl Server {
    /// `Err`: what it said instead of serving.
    fn start(directory: &Path, arguments: &[&str]) -> Result<Server, String> {
        static BINARY: OnceLock<PathBuf> = OnceLock::new();
        let binary = BINARY.get_or_init(|| millrace_binary().expect("the server's binary"));
        let mut command = Command::new(binary);
        command.args(["--port", "0", "--http-port", "0", "--log-segment-size", "2mb"]);
        if !arguments.contains(&"--durability") {
            command.args(["--durability", "always"]);
        }
        command.arg("--dir").arg(directory.join("data")).args(arguments);
        let streams = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = streams.spawn().expect("a process");
        let mut line = String::new();
        let mut output = BufReader::new(child.stdout.take().expect("stdout is piped"));
        output.read_line(&mut line).expect("a line");
        let mut errors = child.stderr.take().expect("stderr is piped");
        let mut text = String::new();
        if line.is_empty() {
            let _ = errors.read_to_string(&mut text);
            let _ = child.wait();
            return Err(text);
        }
        // Somebody must go on reading, or a talkative server would block on a full pipe.
        std::thread::spawn(move || std::io::copy(&mut errors, &mut std::io::sink()));
        let address = |name: &str| {
            let word = line.split_whitespace().find_map(|word| word.strip_prefix(name));
            word.and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("no {name} in {line}"))
        };
        Ok(Server { resp: address("resp="), http: address("http="), child })
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
