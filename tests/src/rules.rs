//! The rules of the repository. Each is a pure function from the tree to the places that break it; no place, no news.
//!
//! Every rule has a test below that shows it text which breaks it: a rule that cannot fail is a decoration.

use std::collections::BTreeSet;

use toml::{Table, Value};

use crate::tree::{File, Tree, code_only};

/// Who may import whom (docs/ARCHITECTURE.md draws it). `tests` may import all of them.
const ARROWS: &[(&str, &[&str])] = &[
    ("wal", &[]),
    ("store", &[]),
    ("snapshot", &["store", "wal"]),
    ("repl", &["wal"]),
    ("reactor", &["store", "wal", "snapshot", "repl"]),
    ("loadgen", &["reactor", "store"]),
    ("tests", &["wal", "store", "snapshot", "repl", "reactor", "loadgen"]),
];

/// The only places where `unsafe` may stand.
const UNSAFE_PLACES: &[&str] = &["reactor/src/io/", "reactor/src/cpu.rs"];

/// Imports between crates follow the arrows, in manifests and in code.
pub fn arrows(tree: &Tree) -> Vec<String> {
    let mut broken = Vec::new();
    for &(name, allowed) in ARROWS {
        let forbidden: Vec<&str> = ARROWS
            .iter()
            .map(|&(other, _)| other)
            .filter(|other| *other != name && !allowed.contains(other))
            .collect();
        let manifest = format!("{name}/Cargo.toml");
        if let Some(table) = tree.get(&manifest).map(parse) {
            for dependency in dependencies(&table) {
                if forbidden.contains(&dependency.as_str()) {
                    broken.push(format!("{manifest}: {name} must not depend on {dependency}"));
                }
            }
        }
        let folder = format!("{name}/");
        for file in tree.with_ending(".rs").filter(|file| file.path.starts_with(&folder)) {
            for (number, line) in code_only(&file.text).lines().enumerate() {
                // Every crate has modules called `tests`; that crate is met in manifests only.
                for other in forbidden.iter().filter(|other| **other != "tests" && imports(line, other)) {
                    broken.push(format!("{}:{}: {name} must not import {other}", file.path, number + 1));
                }
            }
        }
    }
    broken
}

/// Whether a line of code names this crate: `use store::…`, `store::f()`, `extern crate store`.
fn imports(line: &str, name: &str) -> bool {
    words(line, name).any(|(before, after)| {
        let (before, after) = (before.trim_end(), after.trim_start());
        let opens_a_path = after.starts_with("::") && !before.ends_with("::");
        let whole =
            matches!(before.split_whitespace().last(), Some("use" | "crate")) && !before.ends_with("::");
        opens_a_path || whole
    })
}

/// The text before and after each occurrence of a whole word.
fn words<'a>(line: &'a str, word: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word)
        .map(move |(at, _)| (&line[..at], &line[at + word.len()..]))
        .filter(move |(before, after)| !before.ends_with(is_part) && !after.starts_with(is_part))
}

fn parse(manifest: &str) -> Table {
    manifest.parse().unwrap_or_else(|error| panic!("a Cargo.toml that is not TOML: {error}\n{manifest}"))
}

/// The packages a manifest names in any of its dependency tables, under their own names.
fn dependencies(manifest: &Table) -> Vec<String> {
    let mut tables: Vec<&Table> = vec![manifest];
    if let Some(targets) = manifest.get("target").and_then(Value::as_table) {
        tables.extend(targets.values().filter_map(Value::as_table));
    }
    let mut names = Vec::new();
    for table in tables {
        for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
            for (name, value) in table.get(kind).and_then(Value::as_table).into_iter().flatten() {
                names.push(value.get("package").and_then(Value::as_str).unwrap_or(name).to_string());
            }
        }
    }
    names
}

/// `unsafe` stands only in its places, and nowhere else is the lint that says so switched off.
pub fn unsafe_in_its_place(tree: &Tree) -> Vec<String> {
    let mut broken = Vec::new();
    for file in
        tree.with_ending(".rs").filter(|f| !UNSAFE_PLACES.iter().any(|place| f.path.starts_with(place)))
    {
        for (number, line) in code_only(&file.text).lines().enumerate() {
            let word = words(line, "unsafe").next().is_some();
            let lint_off = words(line, "unsafe_code")
                .any(|(before, _)| before.contains("allow(") || before.contains("expect("));
            if word || lint_off {
                broken.push(format!(
                    "{}:{}: unsafe outside {}",
                    file.path,
                    number + 1,
                    UNSAFE_PLACES.join(", ")
                ));
            }
        }
    }
    broken
}

/// Every source opens with `//!`: what this is, how it works, what it never does. Tests may open as they like.
pub fn opens_with_its_purpose(tree: &Tree) -> Vec<String> {
    let sources = tree.with_ending(".rs").filter(|file| !is_test(file));
    let silent = sources.filter(|file| {
        let words = file.text.strip_prefix("//!").and_then(|rest| rest.lines().next());
        words.is_none_or(|words| words.split_whitespace().count() < 3)
    });
    silent.map(|file| format!("{}: does not open with a `//!` that says what it is", file.path)).collect()
}

fn is_test(file: &File) -> bool {
    file.path.contains("/tests/") || file.path.ends_with("/tests.rs")
}

/// The root manifest is virtual, lists its members in the table of arrows, and gives each dependency its reason; the
/// members take every version from it.
pub fn manifests(tree: &Tree) -> Vec<String> {
    let mut broken = Vec::new();
    let text = tree.get("Cargo.toml").unwrap_or_default();
    let root = parse(text);
    if root.contains_key("package") {
        broken.push("Cargo.toml: the root manifest is virtual, yet has a [package]".into());
    }
    let section = text.split("[workspace.dependencies]").nth(1).unwrap_or_default();
    for line in section.lines().take_while(|line| !line.starts_with('[')) {
        let Some((name, rest)) = line.split_once('=').filter(|_| !line.trim_start().starts_with('#')) else {
            continue;
        };
        let reason = rest.rsplit_once('#').map_or("", |(_, reason)| reason);
        if !rest.contains("path =") && reason.trim().is_empty() {
            broken.push(format!("Cargo.toml: {} has no reason beside it", name.trim()));
        }
    }
    let members = root.get("workspace").and_then(|w| w.get("members")).and_then(Value::as_array);
    for member in members.into_iter().flatten().filter_map(Value::as_str) {
        if !ARROWS.iter().any(|&(name, _)| name == member) {
            broken.push(format!("Cargo.toml: member {member} is not in the table of arrows"));
        }
        let path = format!("{member}/Cargo.toml");
        let Some(manifest) = tree.get(&path).map(parse) else {
            broken.push(format!("{path}: missing"));
            continue;
        };
        if manifest.get("package").and_then(|p| p.get("name")).and_then(Value::as_str) != Some(member) {
            broken.push(format!("{path}: the package is not called like its folder"));
        }
        if manifest.get("lints").and_then(|l| l.get("workspace")).and_then(Value::as_bool) != Some(true) {
            broken.push(format!("{path}: does not take the workspace's lints"));
        }
        for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
            for (name, value) in manifest.get(kind).and_then(Value::as_table).into_iter().flatten() {
                if value.get("workspace").and_then(Value::as_bool) != Some(true) {
                    broken.push(format!("{path}: {name} does not take its version from the workspace"));
                }
            }
        }
    }
    broken
}

/// A crate comes with its issue: none is created empty.
pub fn no_empty_crates(tree: &Tree) -> Vec<String> {
    let mut broken = Vec::new();
    for manifest in tree.with_ending("/Cargo.toml") {
        let folder = manifest.path.trim_end_matches("Cargo.toml");
        let sources = tree.with_ending(".rs").filter(|file| file.path.starts_with(folder));
        let lines: usize =
            sources.map(|file| code_only(&file.text).lines().filter(|l| !l.trim().is_empty()).count()).sum();
        if lines < 5 {
            broken.push(format!("{folder}: {lines} lines of code make no crate"));
        }
    }
    broken
}

/// docs/ARCHITECTURE.md names every program text there is, and none that there is not.
pub fn architecture_names_every_file(tree: &Tree) -> Vec<String> {
    const PAGE: &str = "docs/ARCHITECTURE.md";
    let Some(page) = tree.get(PAGE) else { return vec![format!("{PAGE}: missing")] };
    let is_source =
        |path: &str| [".rs", ".sh", ".py", ".mjs", ".php"].iter().any(|ending| path.ends_with(ending));
    let sources: BTreeSet<&str> =
        tree.files.iter().map(|file| file.path.as_str()).filter(|p| is_source(p)).collect();
    let named: BTreeSet<&str> = page.split('`').skip(1).step_by(2).filter(|word| is_source(word)).collect();
    let missing = sources.difference(&named).map(|path| format!("{PAGE}: does not name {path}"));
    let invented =
        named.difference(&sources).map(|path| format!("{PAGE}: names {path}, which does not exist"));
    missing.chain(invented).collect()
}

/// No file names a place that only one machine has.
pub fn no_machine_paths(tree: &Tree) -> Vec<String> {
    // In two pieces, so that this file does not break its own rule.
    let places = [("/wo", "rk/"), ("/opt/", "peers"), ("/tmp", "/wt"), ("/ro", "ot/"), ("artifac", "tory")];
    let places: Vec<String> = places.iter().map(|(a, b)| format!("{a}{b}")).collect();
    let mut broken = Vec::new();
    for file in &tree.files {
        for (number, line) in file.text.lines().enumerate() {
            for place in places.iter().filter(|place| line.contains(place.as_str())) {
                broken.push(format!("{}:{}: names {place}", file.path, number + 1));
            }
        }
    }
    broken
}

/// What a visitor looks for is there, and the two commands and the test command are the ones that are tested.
pub fn front_pages(tree: &Tree) -> Vec<String> {
    let wanted: &[(&str, &[&str])] = &[
        ("README.md", &["cargo run --release -p loadgen", "cargo run --release -p reactor", "./test.sh"]),
        ("CONTRIBUTING.md", &["./test.sh"]),
        ("CHANGELOG.md", &["## "]),
        ("LICENSE-APACHE", &["Apache License", "Version 2.0"]),
        ("LICENSE-MIT", &["The Millrace authors", "WITHOUT WARRANTY OF ANY KIND"]),
        (".ci/run", &["./test.sh"]),
    ];
    let mut broken = Vec::new();
    for (path, phrases) in wanted {
        let Some(text) = tree.get(path) else {
            broken.push(format!("{path}: missing"));
            continue;
        };
        for phrase in phrases.iter().filter(|phrase| !text.contains(**phrase)) {
            broken.push(format!("{path}: does not say \"{phrase}\""));
        }
    }
    broken
}

/// No test is switched off: nothing skipped may look like something passed.
pub fn no_test_is_ignored(tree: &Tree) -> Vec<String> {
    let mut broken = Vec::new();
    for file in tree.with_ending(".rs") {
        for (number, line) in code_only(&file.text).lines().enumerate() {
            if words(line, "ignore").any(|(before, _)| before.trim_end().ends_with("#[")) {
                broken.push(format!("{}:{}: an ignored test", file.path, number + 1));
            }
        }
    }
    broken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn breaks(rule: fn(&Tree) -> Vec<String>, files: &[(&str, &str)], complaint: &str) {
        let broken = rule(&Tree::of(files));
        assert!(broken.iter().any(|line| line.contains(complaint)), "wanted {complaint:?} among {broken:?}");
    }

    #[track_caller]
    fn keeps(rule: fn(&Tree) -> Vec<String>, files: &[(&str, &str)]) {
        assert_eq!(rule(&Tree::of(files)), Vec::<String>::new());
    }

    #[test]
    fn arrows_can_fail() {
        breaks(
            arrows,
            &[("store/src/a.rs", "use reactor::io;")],
            "store/src/a.rs:1: store must not import reactor",
        );
        breaks(arrows, &[("reactor/src/a.rs", "\nfn f() { loadgen::run() }")], "reactor/src/a.rs:2");
        breaks(arrows, &[("store/src/a.rs", "pub use reactor as r;")], "must not import reactor");
        breaks(arrows, &[("reactor/src/a.rs", "extern crate loadgen;")], "must not import loadgen");
        breaks(
            arrows,
            &[("store/Cargo.toml", "[dependencies]\nreactor.workspace = true")],
            "must not depend on reactor",
        );
        breaks(
            arrows,
            &[("repl/Cargo.toml", "[dev-dependencies]\nx = { package = \"store\" }")],
            "must not depend on store",
        );
        breaks(
            arrows,
            &[("store/Cargo.toml", "[target.'cfg(unix)'.dependencies]\nloadgen = \"1\"")],
            "must not depend on loadgen",
        );
        keeps(
            arrows,
            &[
                (
                    "reactor/src/a.rs",
                    "use store::x; use crate::repl::y; // loadgen::z\nlet restore::b = \"loadgen::\";",
                ),
                ("loadgen/Cargo.toml", "[dependencies]\nreactor.workspace = true\nstore.workspace = true"),
                ("store/src/b.rs", "self::reactor::f(); let reactor = 1; my_reactor::f();"),
            ],
        );
    }

    #[test]
    fn unsafe_can_fail() {
        breaks(unsafe_in_its_place, &[("store/src/a.rs", "unsafe { x }")], "store/src/a.rs:1");
        breaks(
            unsafe_in_its_place,
            &[("reactor/src/server/shard.rs", "#![allow(unsafe_code)]")],
            "shard.rs:1",
        );
        breaks(unsafe_in_its_place, &[("reactor/tests/a.rs", "\nunsafe fn f() {}")], "reactor/tests/a.rs:2");
        keeps(
            unsafe_in_its_place,
            &[
                ("reactor/src/io/ring.rs", "unsafe { x }"),
                ("reactor/src/cpu.rs", "#![allow(unsafe_code)] unsafe { x }"),
                ("store/src/lib.rs", "#![forbid(unsafe_code)] // unsafe\nlet a = \"unsafe\";"),
            ],
        );
    }

    #[test]
    fn purpose_can_fail() {
        breaks(opens_with_its_purpose, &[("store/src/a.rs", "use core::fmt;")], "store/src/a.rs");
        breaks(opens_with_its_purpose, &[("store/src/a.rs", "//!\nuse core::fmt;")], "store/src/a.rs");
        breaks(
            opens_with_its_purpose,
            &[("store/src/a.rs", "// Copyright\n//! What it is")],
            "store/src/a.rs",
        );
        keeps(
            opens_with_its_purpose,
            &[("store/src/a.rs", "//! What it is."), ("store/tests/b.rs", "use x;")],
        );
    }

    #[test]
    fn manifests_can_fail() {
        let store = ("store/Cargo.toml", "[package]\nname = \"store\"\n[lints]\nworkspace = true");
        breaks(manifests, &[("Cargo.toml", "[package]\nname = \"a\"")], "virtual");
        breaks(
            manifests,
            &[("Cargo.toml", "[workspace.dependencies]\nlibc = \"0.2\"\n")],
            "libc has no reason",
        );
        breaks(
            manifests,
            &[("Cargo.toml", "[workspace.dependencies]\nlibc = \"0.2\" # \n")],
            "libc has no reason",
        );
        breaks(
            manifests,
            &[("Cargo.toml", "[workspace]\nmembers = [\"other\"]")],
            "other is not in the table",
        );
        breaks(
            manifests,
            &[("Cargo.toml", "[workspace]\nmembers = [\"store\"]")],
            "store/Cargo.toml: missing",
        );
        let member =
            |manifest| [("Cargo.toml", "[workspace]\nmembers = [\"store\"]"), ("store/Cargo.toml", manifest)];
        breaks(manifests, &member("[package]\nname = \"shop\""), "not called like its folder");
        breaks(manifests, &member("[package]\nname = \"store\""), "lints");
        breaks(
            manifests,
            &member("[package]\nname = \"store\"\n[dev-dependencies]\nrand = \"1\""),
            "rand does not take",
        );
        keeps(
            manifests,
            &[
                (
                    "Cargo.toml",
                    "[workspace]\nmembers = [\"store\"]\n[workspace.dependencies]\nstore = { path = \"store\" }\n# words\nlibc = \"0.2\" # socket calls\n[profile.x]\ninherits = \"y\"",
                ),
                store,
            ],
        );
    }

    #[test]
    fn empty_crates_can_fail() {
        breaks(
            no_empty_crates,
            &[("wal/Cargo.toml", ""), ("wal/src/lib.rs", "//! To be\n//! written\n\n\n")],
            "wal/: 0",
        );
        keeps(no_empty_crates, &[("wal/Cargo.toml", ""), ("wal/src/lib.rs", "fn f() {\n1;\n2;\n3;\n}")]);
    }

    #[test]
    fn architecture_can_fail() {
        breaks(architecture_names_every_file, &[("store/src/a.rs", "")], "missing");
        let page = ("docs/ARCHITECTURE.md", "`store/src/a.rs` and `test.sh`; `cargo test`");
        breaks(
            architecture_names_every_file,
            &[page, ("test.sh", "")],
            "names store/src/a.rs, which does not exist",
        );
        breaks(
            architecture_names_every_file,
            &[page, ("store/src/a.rs", ""), ("test.sh", ""), ("x.py", "")],
            "does not name x.py",
        );
        keeps(architecture_names_every_file, &[page, ("store/src/a.rs", ""), ("test.sh", "")]);
    }

    #[test]
    fn machine_paths_can_fail() {
        breaks(no_machine_paths, &[("a.md", concat!("see\n/wo", "rk/main"))], "a.md:2");
        breaks(no_machine_paths, &[("run.sh", concat!("/opt/", "peers/x"))], "run.sh:1");
        keeps(no_machine_paths, &[("a.md", "framework/a, /tmp/x, /usr/bin")]);
    }

    #[test]
    fn front_pages_can_fail() {
        breaks(front_pages, &[], "CHANGELOG.md: missing");
        breaks(front_pages, &[("README.md", "cargo run --release -p loadgen")], "does not say \"./test.sh\"");
    }

    #[test]
    fn ignored_tests_can_fail() {
        breaks(no_test_is_ignored, &[("a.rs", "\n#[ignore = \"slow\"]\nfn f() {}")], "a.rs:2");
        keeps(no_test_is_ignored, &[("a.rs", "// #[ignore]\nlet ignore = 1;")]);
    }
}
