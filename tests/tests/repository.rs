//! The repository keeps its own rules. `src/rules.rs` says what they are and proves that each can fail.

use std::fs;

use tests::rules;
use tests::tree::{Tree, root};

#[track_caller]
fn kept(rule: fn(&Tree) -> Vec<String>) {
    let broken = rule(&Tree::read());
    assert!(broken.is_empty(), "\n{}\n", broken.join("\n"));
}

#[test]
fn imports_follow_the_arrows() {
    kept(rules::arrows);
}

#[test]
fn unsafe_stands_only_in_its_place() {
    kept(rules::unsafe_in_its_place);
}

#[test]
fn every_source_opens_with_its_purpose() {
    kept(rules::opens_with_its_purpose);
}

#[test]
fn every_dependency_has_its_reason_and_one_version() {
    kept(rules::manifests);
}

#[test]
fn no_crate_is_empty() {
    kept(rules::no_empty_crates);
}

#[test]
fn the_architecture_page_names_every_file() {
    kept(rules::architecture_names_every_file);
}

#[test]
fn no_file_names_a_place_of_one_machine() {
    kept(rules::no_machine_paths);
}

#[test]
fn front_pages_say_what_is_tested() {
    kept(rules::front_pages);
}

#[test]
fn no_test_is_ignored() {
    kept(rules::no_test_is_ignored);
}

/// `UPDATE_DOCS=1 cargo test -p tests` writes the table anew.
#[test]
fn the_page_about_stages_has_the_table_of_the_code() {
    let path = root().join("docs/stages.md");
    let page = fs::read_to_string(&path).expect("docs/stages.md");
    let (head, rest) = page.split_once("writes it anew -->\n").expect("where the table begins");
    let (_, tail) = rest.split_once("<!-- end of stages -->").expect("where it ends");
    let wanted =
        format!("{head}writes it anew -->\n{}<!-- end of stages -->{tail}", store::stages::documentation());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &wanted).expect("docs/stages.md is writable");
    }
    let page = fs::read_to_string(&path).expect("docs/stages.md");
    assert!(
        page == wanted,
        "docs/stages.md differs from store/src/stages.rs; run: UPDATE_DOCS=1 cargo test -p tests"
    );
}

/// `UPDATE_DOCS=1 cargo test -p tests` writes the page anew.
#[test]
fn the_protocol_page_is_what_the_command_table_says() {
    let path = root().join("docs/protocol.md");
    let generated = store::command::docs_markdown();
    assert!(generated.contains("GETRANGE") || generated.contains("getrange"), "the page lists no commands");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &generated).expect("docs/protocol.md is writable");
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    let lines = || committed.lines().map(Some).chain([None]).zip(generated.lines().map(Some).chain([None]));
    let difference = lines().position(|(old, new)| old != new);
    assert!(
        committed == generated,
        "docs/protocol.md differs from the command table from line {} on; run: UPDATE_DOCS=1 cargo test -p tests",
        difference.map_or(0, |line| line + 1)
    );
}
