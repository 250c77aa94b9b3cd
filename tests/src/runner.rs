//! A runner for tests that not every machine can run: it counts passed, failed and skipped, each as what it is.
//!
//! libtest knows only passed and failed, and a test that returns early because something is missing has passed.
//! A test binary with `harness = false` calls [`main`] instead: a test that panics has failed, one that returns
//! [`Skipped`] is named on a line that begins with `SKIPPED`, with its reason, and the last line has the three
//! numbers. The exit code is 0 if nothing failed, 1 if something did, 2 for a wrong argument.
//!
//! Tests run one after another. Arguments are libtest's, as far as they make sense: names or parts of them,
//! `--exact`, `--skip PART`, `--list`; those that are about its output or threads are taken and do nothing.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

/// Why a test could not run on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped(pub String);

/// A test: its name and what it does.
pub type Test = (&'static str, fn() -> Result<(), Skipped>);

/// How many tests ended in which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Ran to their end.
    pub passed: usize,
    /// Panicked.
    pub failed: usize,
    /// Could not run here.
    pub skipped: usize,
}

/// Which tests were asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Selection {
    /// Parts of names; none: every test.
    names: Vec<String>,
    skip: Vec<String>,
    exact: bool,
    list: bool,
    /// libtest's `--ignored` asks for ignored tests only, and here are none.
    nothing: bool,
}

impl Selection {
    fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Selection, String> {
        let mut selection = Selection::default();
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--exact" => selection.exact = true,
                "--list" => selection.list = true,
                "--ignored" => selection.nothing = true,
                "--skip" => selection.skip.push(arguments.next().ok_or("--skip needs a part of a name")?),
                "-q" | "--quiet" | "--nocapture" | "--no-capture" | "--show-output" | "--include-ignored" => {
                }
                "--test-threads" | "--color" | "--format" | "-Z" | "--logfile" => {
                    arguments.next().ok_or(format!("{argument} needs a value"))?;
                }
                known
                    if ["--test-threads=", "--color=", "--format="].iter().any(|f| known.starts_with(f)) => {}
                unknown if unknown.starts_with('-') => {
                    return Err(format!("unknown argument {unknown}; known: NAME --exact --skip --list"));
                }
                name => selection.names.push(name.to_string()),
            }
        }
        Ok(selection)
    }

    fn takes(&self, name: &str) -> bool {
        let fits = |part: &String| if self.exact { name == part } else { name.contains(part.as_str()) };
        !self.nothing && (self.names.is_empty() || self.names.iter().any(fits)) && !self.skip.iter().any(fits)
    }
}

/// Runs the tests that the process's arguments ask for: the whole of a test binary's `main`.
pub fn main(tests: &[Test]) -> ExitCode {
    let selection = match Selection::parse(std::env::args().skip(1)) {
        Ok(selection) => selection,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(2);
        }
    };
    if selection.list {
        for (name, _) in tests.iter().filter(|(name, _)| selection.takes(name)) {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    let counts = run(tests, &selection);
    println!("{} passed, {} failed, {} skipped", counts.passed, counts.failed, counts.skipped);
    if counts.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(tests: &[Test], selection: &Selection) -> Counts {
    let mut counts = Counts::default();
    for (name, test) in tests.iter().filter(|(name, _)| selection.takes(name)) {
        let begun = Instant::now();
        let ended = catch_unwind(AssertUnwindSafe(test));
        let seconds = begun.elapsed().as_secs_f64();
        match ended {
            Ok(Ok(())) => {
                counts.passed += 1;
                println!("test {name} ... ok ({seconds:.2} s)");
            }
            Ok(Err(Skipped(reason))) => {
                counts.skipped += 1;
                println!("SKIPPED {name}: {reason}");
            }
            Err(_) => {
                counts.failed += 1;
                println!("test {name} ... FAILED ({seconds:.2} s)");
            }
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Selection, String> {
        Selection::parse(line.split_whitespace().map(String::from))
    }

    #[test]
    fn each_end_is_counted_as_what_it_is() {
        let tests: [Test; 4] = [
            ("passes", || Ok(())),
            ("fails", || std::panic::resume_unwind(Box::new("on purpose"))),
            ("cannot run", || Err(Skipped("nothing to run it on".into()))),
            ("passes too", || Ok(())),
        ];
        assert_eq!(run(&tests, &Selection::default()), Counts { passed: 2, failed: 1, skipped: 1 });
        let selection = parse("passes").expect("a name");
        assert_eq!(run(&tests, &selection), Counts { passed: 2, failed: 0, skipped: 0 });
    }

    #[test]
    fn arguments_mean_what_they_mean_to_libtest() {
        let takes = |line: &str| -> Vec<&str> {
            let selection = parse(line).expect(line);
            ["ab", "abc", "xyz"].into_iter().filter(|name| selection.takes(name)).collect()
        };
        assert_eq!(takes(""), ["ab", "abc", "xyz"]);
        assert_eq!(takes("ab"), ["ab", "abc"]);
        assert_eq!(takes("ab --exact"), ["ab"]);
        assert_eq!(takes("--quiet --test-threads 1 --format=terse yz bc"), ["abc", "xyz"]);
        assert_eq!(takes("--skip ab"), ["xyz"]);
        assert_eq!(takes("--ignored"), [""; 0]);
        for wrong in ["--skip", "--nonsense", "--format"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
