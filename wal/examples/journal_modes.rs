//! What a durable transaction of the SQLCipher journal costs: SQLite's journal modes, a row for each record or one for a
//! batch, page sizes. The numbers behind `docs/adr/0007-the-encrypted-journal.md`.
//!
//! `OWN` is the log with zeros prepared and one flush of our own, as the journal has it.
//!
//!     cargo run --release -p wal --features sqlcipher --example journal_modes -- DIR [SECONDS]

use rusqlite::Connection;
use std::path::Path;
use std::time::{Duration, Instant};

const RECORD_BYTES: usize = 100;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let directory = arguments.next().expect("a directory for scratch files");
    let seconds = arguments.next().map_or(1.0, |text| text.parse().expect("seconds"));
    println!("{:<34} {:>8} {:>12} {:>14}", "mode", "batch", "µs a commit", "records a s");
    for batch in [1, 25, 50, 1000] {
        for (mode, is_prepared) in
            [("OWN", true), ("WAL", true), ("WAL", false), ("PERSIST", false), ("TRUNCATE", false)]
        {
            for (page, per_row) in [(4096, 0), (4096, 1), (8192, 0)] {
                if mode != "OWN" && (page, per_row) != (4096, 0) {
                    continue;
                }
                let duration = Duration::from_secs_f64(seconds);
                let (commits, took) =
                    run(Path::new(&directory), mode, is_prepared, page, per_row, batch, duration);
                let us = took.as_secs_f64() * 1e6 / commits as f64;
                let rows = if per_row == 1 { "row a record" } else { "row a batch" };
                let log = if is_prepared { " (zeros)" } else { "" };
                let name = format!("{mode}{log} {page} {rows}");
                println!("{name:<34} {batch:>8} {us:>12.0} {:>14.0}", batch as f64 * 1e6 / us);
            }
        }
    }
}

fn run(
    directory: &Path,
    mode: &str,
    is_prepared: bool,
    page: u32,
    per_row: usize,
    batch: usize,
    duration: Duration,
) -> (u64, Duration) {
    let path = directory.join("journal-modes.db");
    let files = ["", "-wal", "-journal"].map(|suffix| format!("{}{suffix}", path.display()));
    let clear = || files.iter().for_each(|file| drop(std::fs::remove_file(file)));
    clear();
    let connection = Connection::open(&path).expect("a database");
    let key = format!("x'{}'", "2d".repeat(32));
    connection.pragma_update(None, "key", key).unwrap();
    connection.pragma_update(None, "cipher_page_size", page).unwrap();
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE").unwrap();
    let is_own = mode == "OWN";
    let journal_mode = if is_own { "WAL" } else { mode };
    let _: String =
        connection.pragma_update_and_check(None, "journal_mode", journal_mode, |row| row.get(0)).unwrap();
    connection.pragma_update(None, "synchronous", if is_own { "NORMAL" } else { "EXTRA" }).unwrap();
    connection.pragma_update(None, "wal_autocheckpoint", 0).unwrap();
    connection
        .execute_batch("CREATE TABLE record (lsn INTEGER PRIMARY KEY, unix_us INTEGER, payload BLOB) STRICT")
        .unwrap();
    if is_prepared {
        // SQLite overwrites what is there: a flush then has no new length of a file to write.
        let log = std::fs::OpenOptions::new().write(true).open(&files[1]).unwrap();
        use std::os::unix::fs::FileExt;
        let length = log.metadata().unwrap().len();
        (length..32 << 20).step_by(4096).for_each(|at| log.write_all_at(&[0; 4096], at).unwrap());
        log.sync_all().unwrap();
    }
    let log = std::fs::File::open(&files[1]).ok();
    let payload = vec![7_u8; RECORD_BYTES * if per_row == 1 { 1 } else { batch }];
    let rows = if per_row == 1 { batch } else { 1 };
    let (mut lsn, mut commits) = (1_i64, 0);
    let mut insert = connection.prepare("INSERT INTO record VALUES (?1, ?2, ?3)").unwrap();
    let (mut begin, mut commit) =
        (connection.prepare("BEGIN IMMEDIATE").unwrap(), connection.prepare("COMMIT").unwrap());
    let begun = Instant::now();
    while begun.elapsed() < duration {
        begin.execute([]).unwrap();
        for _ in 0..rows {
            insert.execute((lsn, 1_795_357_800_250_000_i64, &payload)).unwrap();
            lsn += 1;
        }
        commit.execute([]).unwrap();
        if is_own {
            log.as_ref().unwrap().sync_data().unwrap();
        }
        commits += 1;
        if journal_mode == "WAL"
            && commits % 1000 == 0
            && std::fs::metadata(&files[1]).unwrap().len() > 16 << 20
            && commits % 2000 == 0
        {
            connection.query_row("PRAGMA wal_checkpoint(RESTART)", [], |_| Ok(())).unwrap();
        }
    }
    let took = begun.elapsed();
    drop((insert, begin, commit));
    drop(connection);
    clear();
    (commits, took)
}
