//! Workloads with a name: each is a handful of flags, which those given beside it overrule.

use std::ffi::OsString;

/// A workload with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Preset {
    /// Facebook's pool ETC (Atikoglu et al., SIGMETRICS 2012): thirty GETs to a SET, small values with a heavy tail.
    Etc,
    /// A page cache: nine GETs to a SET, values of 64 to 1024 bytes, most of which expire within a minute.
    Cache,
    /// Counters: INCR on ten thousand keys, a few of them hot.
    Counter,
    /// 60,000 GETs over 50 connections without warm-up, as a common k6 script does it.
    #[value(name = "k6-60k")]
    K6,
}

impl Preset {
    fn flags(self) -> &'static str {
        match self {
            Preset::Etc => {
                "--ratio 1:30 --key-size etc --value-size etc --key-distribution zipf:0.99 --keys 1000000 --prefill"
            }
            Preset::Cache => {
                "--ratio 1:9 --key-distribution zipf:0.99 --value-size 64-1024 --ttl 60s:8,1h:1,none:1 --prefill"
            }
            Preset::Counter => "--command INCR|__key__ --key-distribution zipf:0.99 --keys 10000",
            Preset::K6 => "-n 60000 -c 50 --ratio 0:1 --keys 10000 --prefill --warmup 0s",
        }
    }
}

/// Flags that say the same thing, or cannot stand beside each other: one that is given takes the place of all that a preset
/// has of its group. Others stand for themselves.
const GROUPS: [&[&str]; 7] = [
    &["-n", "--requests", "--duration", "--test-time"],
    &["--command", "--ratio"],
    &["--key-distribution", "--theta", "--key-zipf-exp", "--key-pattern"],
    &["-c", "--connections", "--clients"],
    &["-r", "--keys", "--key-maximum"],
    &["-d", "--value-size", "--data-size", "--data-size-range"],
    &["--key-size"],
];

/// The flag of a word, without a value that hangs on it; `None`: it is none.
fn flag_of(word: &str) -> Option<&str> {
    match word.strip_prefix('-')?.strip_prefix('-') {
        Some(_) => word.split('=').next(),
        None => word.get(..2),
    }
}

/// What is left of a preset's flags beside those given.
fn not_replaced(preset: &'static str, given: &[OsString]) -> Vec<OsString> {
    let given: Vec<&str> = given.iter().filter_map(|word| flag_of(word.to_str()?)).collect();
    let is_given = |flag: &str| {
        let group = GROUPS.iter().find(|group| group.contains(&flag));
        given.iter().any(|given| *given == flag || group.is_some_and(|group| group.contains(given)))
    };
    let mut left = Vec::new();
    let mut is_left = true;
    for word in preset.split(' ') {
        if let Some(flag) = flag_of(word) {
            is_left = !is_given(flag);
        }
        if is_left {
            // A command of several words is one argument.
            left.push(OsString::from(word.replace('|', " ")));
        }
    }
    left
}

/// Puts a preset's flags before those given, as far as these do not take their place.
pub fn expand(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = arguments.into_iter().collect();
    let named = arguments.iter().enumerate().find_map(|(index, word)| {
        let word = word.to_str()?;
        match word.strip_prefix("--preset") {
            Some("") => arguments.get(index + 1)?.to_str().map(str::to_string),
            Some(rest) => rest.strip_prefix('=').map(str::to_string),
            None => None,
        }
    });
    let preset = named.and_then(|name| <Preset as clap::ValueEnum>::from_str(&name, false).ok());
    if let Some(preset) = preset.filter(|_| arguments.len() > 2) {
        let flags = not_replaced(preset.flags(), &arguments[2..]);
        arguments.splice(2..2, flags);
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command, RunArgs};
    use crate::client::Stop;
    use crate::workload::keys::KeyDistribution;
    use crate::workload::sizes::ValueSizes;
    use clap::ValueEnum;

    fn run(line: &str) -> RunArgs {
        let words = line.split(' ').map(OsString::from);
        match Cli::read(words).expect("well-formed").command {
            Some(Command::Run(arguments)) => *arguments,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_preset_is_a_plan_and_flags_beside_it_win() {
        for preset in Preset::value_variants() {
            let name = preset.to_possible_value().expect("it has a name");
            let line = format!("loadgen run --preset {} --target resp://127.0.0.1:1", name.get_name());
            run(&line).plan().unwrap_or_else(|error| panic!("{}: {error}", name.get_name()));
        }
        let plan =
            run("loadgen run --target resp://127.0.0.1:1 --preset=etc --keys 500").plan().expect("valid");
        assert_eq!((plan.workload.sets, plan.workload.gets, plan.workload.keys), (1, 30, 500));
        assert_eq!(plan.workload.value_bytes, ValueSizes::Etc);
        let plan = run("loadgen run --preset counter --target resp://127.0.0.1:1 --key-distribution uniform");
        let plan = plan.plan().expect("valid");
        assert_eq!(plan.workload.commands, [("INCR __key__".to_string(), 1)]);
        assert_eq!(plan.workload.key_distribution, KeyDistribution::Uniform);
    }

    #[test]
    fn a_flag_takes_the_place_of_what_a_preset_says_in_other_words() {
        let read = |line: &str| {
            let words = line.split(' ').map(|word| OsString::from(word.replace('|', " ")));
            let words = ["loadgen", "run", "--target", "resp://127.0.0.1:1", "--preset"]
                .map(OsString::from)
                .into_iter()
                .chain(words);
            let cli = Cli::read(words).unwrap_or_else(|error| panic!("{line}: {error}"));
            let Some(Command::Run(arguments)) = cli.command else { panic!("{line}") };
            arguments.plan().unwrap_or_else(|error| panic!("{line}: {error}"))
        };
        for line in ["k6-60k --duration 1s", "k6-60k --test-time=1s"] {
            assert_eq!(read(line).stop, Stop::After(1_000_000_000), "{line}");
        }
        for line in ["k6-60k -n 7", "k6-60k -n7", "k6-60k --requests 7"] {
            assert_eq!(read(line).stop, Stop::Requests(7), "{line}");
        }
        let plan = read("counter --command GET|__key__");
        assert_eq!(plan.workload.commands, [("GET __key__".to_string(), 1)]);
        assert_eq!(plan.workload.key_distribution, KeyDistribution::Zipf { theta: 0.99 }, "the rest stays");
        assert!(read("counter --ratio 1:1").workload.commands.is_empty());
        assert_eq!(read("etc --theta 1.2").workload.key_distribution, KeyDistribution::Zipf { theta: 1.2 });
        assert_eq!(read("etc --key-pattern R:R").workload.key_distribution, KeyDistribution::Uniform);
        let plan = read("cache -d 10 --clients 3 --key-maximum 9");
        assert_eq!((plan.connections, plan.workload.keys), (3, 9));
        assert_eq!(plan.workload.value_bytes, ValueSizes::Fixed(10));
        assert!(plan.prefill && plan.workload.gets == 9);
    }

    #[test]
    fn an_unknown_preset_is_wrong_usage() {
        let words =
            "loadgen run --preset nonsense --target resp://127.0.0.1:1".split(' ').map(OsString::from);
        assert!(Cli::read(words).expect_err("must be refused").to_string().contains("nonsense"));
    }
}
