//! The format is a promise: the document, the source and files written by earlier versions say the same.
//!
//! `UPDATE_GOLDEN=1 cargo test -p snapshot --test format` writes the golden files and the fuzzer's seeds anew.
//! That is right only together with a new version of the format.

mod disk;
#[path = "../../wal/tests/document/mod.rs"]
mod document;

use std::fs;
use std::path::{Path, PathBuf};

use disk::{Contents, checksum};
use document::{bound, rows};
use snapshot::damage::DamageKind;
use snapshot::format::{self, MAGIC, PAGE, REGIONS_OFFSET, TRAILER_MAGIC, VERSION};
use snapshot::names::{FileName, SnapshotId};
use snapshot::view::SnapshotView;
use snapshot::writer::{Plan, RegionPlan, ShardPlan};
use wal::block::PAGE_BYTES;
use wal::lsn::{Epoch, Lsn};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn is_update() -> bool {
    std::env::var_os("UPDATE_GOLDEN").is_some()
}

#[test]
fn the_document_says_what_the_source_says() {
    let page = fs::read_to_string(repository().join("docs/formats/snapshot.md")).unwrap();
    bound(&page, "Header", format::header::FIELDS);
    bound(&page, "Tables", format::tables::FIELDS);
    bound(&page, "Region", format::region::FIELDS);
    bound(&page, "Trailer", format::trailer::FIELDS);
    let meaning = |heading, name: &str| {
        let row = rows(&page, heading).into_iter().find(|row| row.len() == 5 && row[3] == name);
        row.unwrap_or_else(|| panic!("{name}"))[4].clone()
    };
    assert_eq!(meaning("Header", "magic").as_bytes(), MAGIC);
    assert_eq!(meaning("Header", "version"), VERSION.to_string());
    assert_eq!(meaning("Trailer", "magic").as_bytes(), TRAILER_MAGIC);
    assert!(page.starts_with(&format!("# The snapshot: format, version {VERSION}\n")));
    assert!(page.contains(&format!("A *page* is {PAGE} bytes")));
    assert!(page.contains(&format!("zeros up to a multiple of {}.", format::tables::ALIGNMENT)));
    assert_eq!(format::tables::CHECKSUM_BYTES, 4);
    let parts: Vec<String> =
        rows(&page, "Parts of a file").into_iter().skip(1).map(|row| row[0].clone()).collect();
    assert_eq!(parts, ["0", &REGIONS_OFFSET.to_string(), "tables_offset", &format!("length − {PAGE}")]);
    let id = SnapshotId { epoch: Epoch(1), lsn: Lsn(2) };
    let named =
        |name: String| name.replace("0000000000000001", "<epoch>").replace("0000000000000002", "<lsn>");
    let names: Vec<String> = rows(&page, "Files").into_iter().skip(1).map(|row| row[0].clone()).collect();
    assert_eq!(
        names,
        [FileName::Snapshot(id), FileName::Temporary(id)].map(|name| named(name.to_string())),
        "docs/formats/snapshot.md, Files"
    );
}

/// Two shards, with three regions and one, and a third without any.
fn golden_contents() -> Contents {
    let region = |kind, number, pages: u64| RegionPlan { kind, number, length: pages * PAGE };
    let shard = |lsn, meta: &[u8], regions| ShardPlan { lsn: Lsn(lsn), meta: meta.to_vec(), regions };
    let plan = Plan {
        uid: 0x676f_6c64_656e,
        epoch: Epoch(3),
        unix_us: 1_700_000_000_000_000,
        shards: vec![
            shard(42, b"directory of the first", vec![region(1, 0, 1), region(1, 1, 2), region(2, 0, 1)]),
            shard(40, b"", vec![region(1, 0, 1)]),
            shard(41, b"nothing", vec![]),
        ],
    };
    let bytes = plan.shards.iter().enumerate().map(|(shard, plan)| {
        let region = |(index, region): (usize, &RegionPlan)| {
            let filled = |at| if at % 4096 < 64 { (7 * at + 31 * index + shard) as u8 } else { 0 };
            (0..region.length as usize).map(filled).collect()
        };
        plan.regions.iter().enumerate().map(region).collect()
    });
    Contents { bytes: bytes.collect(), plan }
}

/// The golden files, as the present version writes or damages them.
fn golden() -> Vec<(&'static str, Vec<u8>)> {
    let whole = golden_contents().file();
    let changed = |at: usize, byte: u8| {
        let mut file = whole.clone();
        assert_ne!(file[at], byte);
        file[at] = byte;
        file
    };
    let tables = whole.len() - 2 * PAGE_BYTES;
    let mut later = whole.clone();
    later[8] = 2;
    let crc = checksum().continued(checksum().of(&later[..12]), &later[16..PAGE_BYTES]);
    later[12..16].copy_from_slice(&crc.to_le_bytes());
    let region = vec![RegionPlan { kind: 1, number: 0, length: PAGE }];
    let shard = ShardPlan { lsn: Lsn(0), meta: b"x".to_vec(), regions: region };
    let one_page = Plan { uid: 1, epoch: Epoch(1), unix_us: 0, shards: vec![shard] };
    let zeros = Contents { plan: one_page, bytes: vec![vec![vec![0; PAGE_BYTES]]] };
    vec![
        ("v1-three-shards.mrs", whole.clone()),
        ("v1-one-page.mrs", zeros.file()),
        ("v1-damaged-header.mrs", changed(40, 0xff)),
        ("v1-damaged-page.mrs", changed(2 * PAGE_BYTES + 70, 1)),
        ("v1-damaged-tables.mrs", changed(tables + 32, 0xff)),
        ("v1-damaged-trailer.mrs", changed(tables + PAGE_BYTES + 4000, 1)),
        ("v1-cut.mrs", whole[..tables].to_vec()),
        ("v2-later.mrs", later),
    ]
}

fn load(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn the_present_version_still_writes_the_same_bytes() {
    for (name, bytes) in golden() {
        if is_update() {
            fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name), &bytes).unwrap();
        }
        let kept = load(name);
        let difference = bytes.iter().zip(&kept).position(|(a, b)| a != b);
        assert!(bytes == kept, "{name} differs at {difference:?}: a new format needs a new version");
    }
}

#[test]
fn files_of_version_1_read_as_they_did() {
    let contents = golden_contents();
    let file = load("v1-three-shards.mrs");
    contents.assert_is(&file);
    let view = SnapshotView::of_file("it", &file, checksum()).unwrap();
    let header = *view.header();
    assert_eq!((header.epoch, header.lsn, header.lsn_max), (Epoch(3), Lsn(40), Lsn(42)));
    assert_eq!((header.shards, header.unix_us), (3, 1_700_000_000_000_000));
    let one_page = load("v1-one-page.mrs");
    let view = SnapshotView::of_file("it", &one_page, checksum()).unwrap();
    assert_eq!((view.meta(0), view.regions(0)[0].range()), (b"x".as_slice(), PAGE..2 * PAGE));
    // By their own names they are those snapshots, and by others not.
    for (name, is_its_own) in [
        ("/data/snapshot-0000000000000003-0000000000000028.mrs", true),
        ("snapshot-0000000000000003-0000000000000028.mrs.tmp", true),
        ("/data/copy.mrs", true),
        ("/data/snapshot-0000000000000003-0000000000000029.mrs", false),
        ("snapshot-0000000000000002-0000000000000028.mrs", false),
    ] {
        let opened = SnapshotView::of_file(name, &file, checksum()).map(|view| view.shards());
        match opened {
            Ok(shards) => assert!(is_its_own && shards == 3, "{name}"),
            Err(damage) => assert!(!is_its_own && damage.kind == DamageKind::Name, "{damage}"),
        }
    }
}

#[test]
fn damaged_files_of_version_1_are_refused_as_they_were() {
    let tables = load("v1-three-shards.mrs").len() as u64 - 2 * PAGE;
    for (name, kind, offset) in [
        ("v1-damaged-header.mrs", DamageKind::Header, 0),
        ("v1-damaged-tables.mrs", DamageKind::Tables, tables),
        ("v1-damaged-trailer.mrs", DamageKind::Trailer, tables + PAGE),
        ("v1-cut.mrs", DamageKind::Length, tables),
        ("v2-later.mrs", DamageKind::Version, 8),
    ] {
        let file = load(name);
        let damage = SnapshotView::of_file(name, &file, checksum()).expect_err(name);
        assert_eq!((damage.kind, damage.offset), (kind, offset), "{damage}");
        let text = damage.to_string();
        assert!(text.starts_with(&format!("{name} at offset {offset}: expected ")), "{text}");
        assert!(text.contains(", found "), "{text}");
    }
    let file = load("v1-damaged-page.mrs");
    let view = SnapshotView::of_file("it", &file, checksum()).unwrap();
    let page = |index: usize| &file[index * PAGE_BYTES..][..PAGE_BYTES];
    view.check_page(0, 0, 0, page(1)).unwrap();
    view.check_page(0, 1, 1, page(3)).unwrap();
    let mismatch = view.check_page(0, 1, 0, page(2)).unwrap_err();
    let damage = view.page_damage(0, 1, 0, mismatch);
    assert_eq!((damage.kind, damage.offset), (DamageKind::Page, 2 * PAGE));
    assert!(damage.to_string().contains("shard 0, region 1 of kind 1 number 1, page 0"), "{damage}");
}

/// Seeds for the fuzzer: the golden files in its own encoding, with their checksums and with those of the
/// blind ones.
#[test]
fn the_seeds_of_the_fuzzer_are_the_golden_files() {
    let folder = repository().join("fuzz/corpus/snapshot_view");
    for (name, file) in golden() {
        let mut blind = file.clone();
        blind[12..16].fill(0);
        let trailer = blind.len() - PAGE_BYTES;
        if blind[trailer..].starts_with(&TRAILER_MAGIC) {
            blind[trailer + 8..trailer + 16].fill(0);
        }
        for (file, how, suffix) in [(file, 1_u8, "checked"), (blind, 0, "blind")] {
            let mut seed = vec![how];
            for page in file.chunks(PAGE_BYTES) {
                let used = page.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
                seed.push(1);
                seed.extend_from_slice(&(used as u16).to_le_bytes());
                seed.extend_from_slice(&page[..used]);
            }
            assert!(wal::fuzz::files(&seed[1..]) == [file], "{name}: the encoding loses something");
            let path = folder.join(format!("{}-{suffix}", name.trim_end_matches(".mrs")));
            if is_update() {
                fs::create_dir_all(&folder).unwrap();
                fs::write(&path, &seed).unwrap();
            }
            assert!(fs::read(&path).is_ok_and(|kept| kept == seed), "{} is not up to date", path.display());
        }
    }
}
