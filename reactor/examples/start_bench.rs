//! How long a server takes from its exec to the first correct GET, when it starts from a snapshot.
//!
//! ```text
//! cargo run --profile ci -p reactor --example start_bench -- make DIR KEYS [SHARDS]
//! cargo run --profile ci -p reactor --example start_bench -- run target/release/millrace DIR KEYS [cold] [-- FLAGS…]
//! ```
//!
//! `make` writes a snapshot with keys of 16 bytes and values of 64. `run` starts the binary on it five times, each time asks
//! for a key at random as soon as somebody listens, and prints what passed until the right answer was there. `cold`: the
//! files are dropped from the page cache before. The first request to a port that nobody listens on fails, so the port is
//! tried again every 200 µs; the ready line is not waited for.

use reactor::clock::{monotonic_ns, realtime_ns};
use reactor::io::log_files::checksum;
use reactor::io::memory::MmapSource;
use reactor::io::snapshot_files::{SnapshotDisk, SnapshotFiles};
use snapshot::writer::{Outcome, Plan, Refused, RegionPlan, Settings, ShardPlan, SnapshotWriter};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use store::keyspace::{Encoding, Expiry, Keyspace, KeyspaceOptions};
use store::shards::Place;
use store::time::Now;
use wal::lsn::{Epoch, Lsn};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Starts measured.
const ROUNDS: usize = 5;

fn key(number: u64) -> String {
    format!("key:{number:012}")
}

fn value(number: u64) -> String {
    format!("{number:064}")
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["make", dir, keys] => make(Path::new(dir), keys.parse()?, 1),
        ["make", dir, keys, shards] => make(Path::new(dir), keys.parse()?, shards.parse()?),
        ["run", binary, dir, keys, ref rest @ ..] => {
            let flags = rest.iter().position(|&word| word == "--").map_or(&[][..], |at| &rest[at + 1..]);
            run(binary, Path::new(dir), keys.parse()?, rest.first() == Some(&"cold"), flags)
        }
        _ => Err("make DIR KEYS [SHARDS], or run BINARY DIR KEYS [cold] [-- FLAGS]".into()),
    }
}

fn make(dir: &Path, keys: u64, shards: usize) -> Result<()> {
    let now = Now { unix_us: realtime_ns() / 1000, ..Now::default() };
    let place = Place { index: 0, count: shards };
    let options = KeyspaceOptions { hash_seed: 1, ..KeyspaceOptions::default() };
    let mut keyspaces: Vec<Keyspace> =
        (0..shards).map(|_| Keyspace::new(options, Box::new(MmapSource::new()))).collect();
    for number in 0..keys {
        let (key, value) = (key(number), value(number));
        let keyspace = &mut keyspaces[place.shard_of(key.as_bytes())];
        let hash = keyspace.hash(key.as_bytes());
        let set = keyspace.set(key.as_bytes(), hash, value.as_bytes(), Expiry::Never, Encoding::Auto, now);
        set.map_err(|error| format!("{error:?}"))?;
    }
    let begin = |keyspace: &mut Keyspace| {
        let begun = keyspace.begin_image(now).map_err(|refusal| refusal.to_string())?;
        let region = |region: &store::image::RegionInfo| RegionPlan {
            kind: u32::from(region.kind.code()),
            number: region.number,
            length: region.bytes as u64,
        };
        let regions = begun.regions.iter().map(region).collect();
        Ok(ShardPlan { lsn: Lsn::ZERO, meta: begun.meta, regions })
    };
    let images: std::result::Result<_, String> = keyspaces.iter_mut().map(begin).collect();
    let plan = Plan { uid: realtime_ns(), epoch: Epoch::FIRST, unix_us: now.unix_us, shards: images? };
    let mut writer = SnapshotWriter::new(&plan, Settings::default(), checksum())?;
    let disk = SnapshotFiles::new(dir);
    let id = writer.id();
    let pump = |writer: &mut SnapshotWriter| {
        while let Some(operation) = writer.poll_operation() {
            let completion = disk.perform(id, operation);
            writer.handle_completion(completion);
        }
    };
    for (shard, keyspace) in keyspaces.iter_mut().enumerate() {
        while keyspace.image_step(64 << 10, &mut |part| {
            while writer.handle_part(shard, part.region as usize, part.offset as u64, part.bytes)
                == Err(Refused::Full)
            {
                pump(&mut writer);
            }
        }) {}
    }
    writer.finish().map_err(|refused| refused.to_string())?;
    pump(&mut writer);
    match writer.outcome() {
        Outcome::Complete => {
            println!("{} bytes in {id:?}", writer.header().length);
            Ok(())
        }
        outcome => Err(format!("{outcome:?}").into()),
    }
}

fn run(binary: &str, dir: &Path, keys: u64, is_cold: bool, flags: &[&str]) -> Result<()> {
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    for round in 0..ROUNDS {
        for entry in std::fs::read_dir(dir)? {
            let file = entry?.path();
            if !is_cold {
                std::io::copy(&mut std::fs::File::open(&file)?, &mut std::io::sink())?;
                continue;
            }
            let name = format!("of={}", file.display());
            let words = [name.as_str(), "oflag=nocache", "conv=notrunc,fdatasync", "count=0", "status=none"];
            assert!(
                Command::new("dd").args(words).status()?.success(),
                "dd drops a file from the page cache"
            );
        }
        let number = realtime_ns() / 1000 % keys;
        let request = format!("GET {}\r\n", key(number));
        let expected = format!("$64\r\n{}\r\n", value(number));
        let port_text = port.to_string();
        let mut command = Command::new(binary);
        command.args(["--port", &port_text, "--http", "no", "--dir"]).arg(dir).args(flags);
        let begun = monotonic_ns();
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::inherit()).spawn()?;
        let mut stream = loop {
            match TcpStream::connect(("127.0.0.1", port)) {
                Ok(stream) => break stream,
                Err(_) => std::thread::sleep(Duration::from_micros(200)),
            }
        };
        let listening = monotonic_ns();
        stream.write_all(request.as_bytes())?;
        let mut answer = vec![0; expected.len()];
        stream.read_exact(&mut answer)?;
        let answered = monotonic_ns();
        assert_eq!(String::from_utf8_lossy(&answer), expected);
        let ms = |ns: u64| ns as f64 / 1e6;
        println!(
            "round {round}: {:.1} ms to the first GET ({:.1} ms until somebody listened)",
            ms(answered - begun),
            ms(listening - begun)
        );
        let status = Command::new("kill").args(["-TERM", &child.id().to_string()]).status()?;
        assert!(status.success());
        child.wait()?;
    }
    Ok(())
}
