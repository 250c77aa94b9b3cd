//! What `export-rdb` and `import-rdb` refuse, and in which words.

#[allow(dead_code, reason = "each suite uses its part")]
mod process;

use process::*;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

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
