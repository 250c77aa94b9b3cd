//! What `export-rdb` and `import-rdb` refuse or pass over, and in which words.

#[allow(dead_code, reason = "each suite uses its part")]
mod process;

use process::*;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

const LOG: [&str; 6] = ["--durability", "always", "--log-segment-size", "1mb", "--shards", "1"];

/// A directory with a log, and a snapshot if it is wanted, of a server that was stopped.
fn stopped(scratch: &Scratch, name: &str, saves: bool) -> String {
    let directory = scratch.path(name);
    let server = Running::start(&[&LOG[..], &["--dir", &directory]].concat());
    let mut client = server.client();
    assert_eq!(client.ask("MSET a 1 b 2"), "+OK");
    if saves {
        assert_eq!(client.ask("SAVE"), "+OK");
    }
    drop(client);
    server.stop();
    directory
}

/// Every file below a directory, but for the lock.
fn files(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.file_name().unwrap() != "millrace.lock" {
            found.insert(path.clone(), fs::read(path).unwrap());
        }
    }
    found
}

/// Found in review: where a start says that the data is no state that its primary was in, a dump of it was written, and
/// nothing was said.
#[test]
fn a_directory_in_the_middle_of_a_full_sync_is_refused_as_a_start_refuses_it() {
    let scratch = Scratch::new("export-sync");
    let (directory, out) = (stopped(&scratch, "replica", false), scratch.path("out.rdb"));
    let place = Path::new(&directory);
    for step in ["sync-until", "install"] {
        if step == "sync-until" {
            fs::write(place.join("sync-until"), "25\n").unwrap();
            // What was on its way is a start's to remove.
            fs::create_dir(place.join("incoming")).unwrap();
            fs::write(place.join("incoming/part"), "of a snapshot").unwrap();
        } else {
            fs::remove_file(place.join("sync-until")).unwrap();
            fs::create_dir(place.join("install")).unwrap();
            fs::write(place.join("install/sync-until"), "25\n").unwrap();
        }
        let before = files(place);
        let exported = refused(&["export-rdb", &directory, &out], 1);
        assert!(files(place) == before && !Path::new(&out).exists(), "{step}: {exported}");
        assert!(exported.contains(&format!("{directory}/{step} says that")), "{exported}");
        if step == "sync-until" {
            let started = refused(&[&LOG[..], &["--dir", &directory, "--port", "0"]].concat(), 1);
            assert!(started.contains("no state that its primary was in"), "{started}");
            assert_eq!(exported, started);
        }
    }
    fs::remove_dir_all(place.join("install")).unwrap();
    assert_eq!(run(&["export-rdb", &directory, &out]).status.code(), Some(0));
}

/// They were EISDIR and EEXIST, and somebody was sent to read the kernel's messages.
#[test]
fn an_import_says_what_it_expected_instead_of_a_directory_or_a_file() {
    let scratch = Scratch::new("import-what");
    let (directory, dump, new) = (scratch.path("directory"), scratch.path("dump.rdb"), scratch.path("new"));
    fs::create_dir(&directory).unwrap();
    let error = refused(&["import-rdb", &directory, &new], 1);
    assert!(error.contains(&format!("{directory}: expected a dump that Redis wrote")), "{error}");
    assert!(error.contains("found a directory"), "{error}");
    assert!(!Path::new(&new).exists(), "nothing is made");
    assert_eq!(run(&["export-rdb", &stopped(&scratch, "data", false), &dump]).status.code(), Some(0));
    let file = scratch.file("file", "somebody's");
    let error = refused(&["import-rdb", &dump, &file], 1);
    assert!(error.contains(&format!("{file}: expected a directory")), "{error}");
    assert!(error.contains("found a file"), "{error}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "somebody's");
}

#[test]
fn a_log_that_is_used_instead_of_a_damaged_snapshot_is_one() {
    let scratch = Scratch::new("log-instead");
    let directory = stopped(&scratch, "data", true);
    let mut paths = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path());
    let snapshot = paths.find(|path| path.extension().is_some_and(|kind| kind == "mrs")).unwrap();
    let mut bytes = fs::read(&snapshot).unwrap();
    bytes[3] ^= 1;
    fs::write(&snapshot, bytes).unwrap();
    let output = run(&["export-rdb", &directory, &scratch.path("out.rdb")]);
    let said = told(Output { stdout: Vec::new(), ..output }, 0);
    assert!(said.contains(" the log holds all of it and is used instead"), "{said}");
}
