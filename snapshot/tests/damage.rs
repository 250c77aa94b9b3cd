//! What a reader makes of bytes that are not what was written: they are reported, or their page fails its check.

mod disk;

use disk::random::{Random, seed};
use disk::{Contents, checksum};
use snapshot::damage::{Damage, DamageKind};
use snapshot::format::{PAGE, tables, trailer};
use snapshot::view::SnapshotView;
use wal::block::PAGE_BYTES;

/// A file of 24 pages, and an earlier one with the same layout: what a disk may hold in its place.
fn files(random: &mut Random) -> [(Contents, Vec<u8>); 2] {
    let layout: &[&[u64]] = &[&[3, 1, 9], &[], &[5, 2]];
    let contents = Contents::random(random, layout);
    let mut earlier = Contents::random(random, layout);
    for (shard, plan) in earlier.plan.shards.iter_mut().enumerate() {
        plan.meta = contents.plan.shards[shard].meta.iter().map(|byte| byte ^ 0x55).collect();
    }
    let files = [contents, earlier].map(|contents| {
        let file = contents.file();
        contents.assert_is(&file);
        (contents, file)
    });
    assert_eq!(files[0].1.len(), files[1].1.len());
    files
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Refused(DamageKind),
    /// Opened, with so many pages that fail their check.
    BadPages(usize),
}

/// A changed file: either it is refused, or all that a view says is as it was and exactly the pages that were
/// changed fail their check.
#[track_caller]
fn judge(contents: &Contents, file: &[u8], changed: &[u8]) -> Verdict {
    assert!(file != changed, "nothing was changed");
    let view = match SnapshotView::of_file("it", changed, checksum()) {
        Ok(view) => view,
        Err(damage) => {
            assert!(damage.offset <= changed.len().max(file.len()) as u64, "{damage}");
            assert!(damage.to_string().contains("expected"), "{damage}");
            return Verdict::Refused(damage.kind);
        }
    };
    let mut bad = 0;
    assert_eq!(view.shards(), contents.plan.shards.len());
    for (shard, plan) in contents.plan.shards.iter().enumerate() {
        assert_eq!(
            (view.lsn(shard), view.meta(shard)),
            (plan.lsn, plan.meta.as_slice()),
            "changed and accepted"
        );
        assert_eq!(view.regions(shard).len(), plan.regions.len());
        for (index, region) in view.regions(shard).iter().enumerate() {
            assert_eq!(region.length as usize, contents.bytes[shard][index].len());
            for page in 0..region.pages() {
                let bytes = &changed[(region.offset + page * PAGE) as usize..][..PAGE_BYTES];
                let is_right =
                    bytes == &contents.bytes[shard][index][page as usize * PAGE_BYTES..][..PAGE_BYTES];
                let check = view.check_page(shard, index, page, bytes);
                assert_eq!(check.is_ok(), is_right, "shard {shard} region {index} page {page}");
                if let Err(mismatch) = check {
                    bad += 1;
                    let damage = view.page_damage(shard, index, page, mismatch);
                    assert_eq!(damage.offset, region.offset + page * PAGE, "{damage}");
                }
            }
        }
    }
    assert!(bad > 0, "a change that no check noticed");
    Verdict::BadPages(bad)
}

/// Every byte of the file counts.
#[test]
fn every_flipped_byte_is_detected() {
    let [(contents, file), _] = files(&mut Random::new(5));
    let tables = file.len() - 2 * PAGE_BYTES;
    let mut changed = file.clone();
    for at in 0..file.len() {
        changed[at] ^= 1 << (at % 8);
        let verdict = judge(&contents, &file, &changed);
        let expected = match at {
            0..PAGE_BYTES => Verdict::Refused(DamageKind::Header),
            _ if at < tables => Verdict::BadPages(1),
            _ if at < tables + PAGE_BYTES => Verdict::Refused(DamageKind::Tables),
            _ => Verdict::Refused(DamageKind::Trailer),
        };
        assert_eq!(verdict, expected, "byte {at}");
        changed[at] = file[at];
    }
}

/// The end of an earlier file is called what it is.
#[test]
fn the_end_of_an_earlier_file_is_recognised() {
    let [(_, file), (_, earlier)] = files(&mut Random::new(7));
    let trailer = file.len() - PAGE_BYTES;
    let changed = [&file[..trailer], &earlier[trailer..]].concat();
    let damage = SnapshotView::of_file("it", &changed, checksum()).unwrap_err();
    assert_eq!((damage.kind, damage.offset), (DamageKind::Trailer, trailer as u64 + 16), "{damage}");
    assert!(damage.expected.starts_with("the uid "), "{damage}");
}

/// Changes as disks, copies and crashes make them, at random.
#[test]
fn no_change_is_ever_accepted() {
    const CHANGES: usize = 40_000;
    let seed = seed();
    println!("MILLRACE_SEED={seed}");
    let mut random = Random::new(seed);
    let files = files(&mut random);
    let pages = files[0].1.len() / PAGE_BYTES;
    let mut refused = 0;
    let mut opened = 0;
    let mut kinds = [0_usize; 11];
    while refused + opened < CHANGES {
        let which = random.below(2);
        let ((contents, file), (_, earlier)) = (&files[which], &files[1 - which]);
        let mut changed = file.clone();
        let kind = random.below(kinds.len());
        let page = random.below(pages) * PAGE_BYTES;
        let sector = random.below(file.len() / 512) * 512;
        match kind {
            // A bit, a byte, a few of them.
            0 => changed[random.below(file.len())] ^= 1 << random.below(8),
            1 => changed[random.below(file.len())] = random.next_u64() as u8,
            2 => (0..1 + random.below(20))
                .for_each(|_| changed[random.below(file.len())] ^= 1 << random.below(8)),
            // In the pages that are read at the start.
            3 => {
                let at = [random.below(100), file.len() - 2 * PAGE_BYTES + random.below(2 * PAGE_BYTES)];
                changed[at[random.below(2)]] ^= 1 << random.below(8);
            }
            // Cut anywhere, or at a page.
            4 => changed.truncate(random.below(file.len())),
            5 => changed.truncate(page),
            // Something behind it.
            6 => {
                let more = 1 + random.below(3 * PAGE_BYTES);
                if random.chance(50) {
                    changed.resize(file.len() + more, 0)
                } else {
                    changed.extend(random.bytes(more))
                }
            }
            // Never written: a page, a sector, all from a place on.
            7 => changed[page..page + PAGE_BYTES].fill(0),
            8 => {
                let end = if random.chance(70) { sector + 512 } else { file.len() };
                changed[sector..end].fill(0);
            }
            // Written to the wrong place.
            9 => {
                let other = random.below(pages) * PAGE_BYTES;
                changed.copy_within(page..page + PAGE_BYTES, other);
                changed[page..page + PAGE_BYTES].copy_from_slice(&file[other..other + PAGE_BYTES]);
            }
            // Left over from an earlier file: a page, a sector, a few pages, all from a place on.
            _ => {
                let end = match random.below(3) {
                    0 => page + PAGE_BYTES,
                    1 => (page + (1 + random.below(4)) * PAGE_BYTES).min(file.len()),
                    _ => file.len(),
                };
                changed[page..end].copy_from_slice(&earlier[page..end]);
            }
        }
        // A change that changes nothing does not count, nor does one file that takes the place of the other.
        if changed == *file || changed == *earlier {
            continue;
        }
        kinds[kind] += 1;
        match judge(contents, file, &changed) {
            Verdict::Refused(_) => refused += 1,
            Verdict::BadPages(_) => opened += 1,
        }
    }
    println!("{refused} refused, {opened} opened with pages that fail; by kind {kinds:?}");
    assert!(refused > CHANGES / 10 && opened > CHANGES / 10, "{refused} {opened}");
    assert!(kinds.iter().all(|&count| count > CHANGES / 30), "{kinds:?}");
}

/// The file with its tables changed, and all checksums made right again.
fn with_tables(file: &[u8], change: impl FnOnce(&mut [u8])) -> Result<usize, Damage> {
    let mut file = file.to_vec();
    let (tables_at, trailer_at) = (file.len() - 2 * PAGE_BYTES, file.len() - PAGE_BYTES);
    change(&mut file[tables_at..]);
    let seed = checksum().of(&file[16..24]);
    let crc = checksum().continued(seed, &file[tables_at..trailer_at]);
    let end = &mut file[trailer_at..];
    trailer::TABLES_CRC.put(end, &crc.to_le_bytes());
    let crc = checksum().continued(checksum().continued(seed, &end[..8]), &end[12..]);
    trailer::CRC.put(end, &crc.to_le_bytes());
    SnapshotView::of_file("it", &file, checksum()).map(|view| view.shards())
}

type Change = Box<dyn FnOnce(&mut [u8])>;

/// Lengths and counts are believed as far as there are bytes for them, whatever the checksums say.
#[test]
fn nonsense_with_right_checksums_is_refused() {
    let [(_, file), _] = files(&mut Random::new(6));
    assert_eq!(with_tables(&file, |_| {}), Ok(3));
    let put = |at: usize, value: u64| {
        move |tables: &mut [u8]| tables[at..at + 8].copy_from_slice(&value.to_le_bytes())
    };
    let row = tables::HEAD_BYTES;
    let (offset, length) = (row + 8, row + 16);
    let mut changes: Vec<(&str, Change)> = vec![
        ("another lsn", Box::new(put(0, 7))),
        ("the first region begins before the header's end", Box::new(put(offset, 0))),
        ("it begins behind the file", Box::new(put(offset, 1 << 40))),
        ("it begins at the end of numbers", Box::new(put(offset, u64::MAX - PAGE + 1))),
        ("it begins in another", Box::new(put(offset, 3 * PAGE))),
        ("it begins off a page", Box::new(put(offset, PAGE + 8))),
        ("it is empty", Box::new(put(length, 0))),
        ("it is longer", Box::new(put(length, 4 * PAGE))),
        ("it is shorter", Box::new(put(length, 2 * PAGE))),
        ("it is no pages", Box::new(put(length, 100))),
        ("two are the same", Box::new(move |tables| tables.copy_within(row..row + 8, row + 24))),
        ("tables_length", Box::new(move |tables| put(PAGE_BYTES + 40, 8)(tables))),
        ("tables_length is nothing", Box::new(move |tables| put(PAGE_BYTES + 40, 0)(tables))),
        ("tables_length is all", Box::new(move |tables| put(PAGE_BYTES + 40, u64::MAX)(tables))),
        (
            "tables_length is a little more",
            Box::new(move |tables| {
                let length = trailer::TABLES_LENGTH.u64(&tables[PAGE_BYTES..]);
                put(PAGE_BYTES + 40, length + 8)(tables);
            }),
        ),
        ("tables_offset is nothing", Box::new(put(PAGE_BYTES + 32, 0))),
        ("tables_offset is behind", Box::new(put(PAGE_BYTES + 32, u64::MAX - PAGE + 1))),
        (
            "tables_offset is in the trailer",
            Box::new(move |tables| {
                let offset = trailer::TABLES_OFFSET.u64(&tables[PAGE_BYTES..]);
                put(PAGE_BYTES + 32, offset + PAGE)(tables);
            }),
        ),
        ("another length", Box::new(put(PAGE_BYTES + 24, 1 << 20))),
    ];
    for at in [8, 16, 24] {
        for value in [0, 1, 1000, 1 << 32, 1 << 61, 1 << 62, u64::MAX / 4, u64::MAX / 24 + 1, u64::MAX] {
            changes.push(("a count", Box::new(put(at, value))));
        }
    }
    for (what, change) in changes {
        let damage = with_tables(&file, change).expect_err(what);
        assert_eq!(damage.kind, DamageKind::Inconsistent, "{what}: {damage}");
    }
}
