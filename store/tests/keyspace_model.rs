//! The keyspace against a plain map: random operations from a printed seed, with every invariant checked on the way. Images are
//! taken between them, and a keyspace restored from one must have what the map had when it was begun, and go on.
//!
//! `MILLRACE_SEED=n` repeats a run, `MILLRACE_STEPS=n` makes it longer.

use std::collections::{BTreeMap, BTreeSet};

use store::arena::HeapSource;
use store::eviction::{AccessMode, EvictionPolicy};
use store::expiry::Expiry;
use store::image::restore::LiveCursor;
use store::keyspace::{Keyspace, KeyspaceOptions, WatchToken};
use store::mutation::Mutation;
use store::time::{Nanos, Now};
use store::value::Encoding;

mod taking;

use taking::{SharedSource, Taking, colliding_key, dispose};

fn seed() -> u64 {
    let seed = match std::env::var("MILLRACE_SEED") {
        Ok(text) => text.parse().expect("MILLRACE_SEED is a number"),
        Err(_) => {
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64
        }
    };
    eprintln!("MILLRACE_SEED={seed}");
    seed
}

fn steps(default: usize) -> usize {
    std::env::var("MILLRACE_STEPS").map_or(default, |text| text.parse().expect("MILLRACE_STEPS is a number"))
}

/// A generator independent of the one under test.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}

#[derive(Clone, PartialEq, Debug)]
struct Expected {
    value: Vec<u8>,
    expires_at: Option<u64>,
    encoding: Encoding,
}

type Keys = BTreeSet<Vec<u8>>;

struct Watching {
    key: Vec<u8>,
    token: WatchToken,
    changed: bool,
    existed_until: Option<u64>,
}

/// An image that is being taken, and what it must hold.
struct Image {
    taking: Taking,
    map: BTreeMap<Vec<u8>, Expected>,
    now: Now,
}

struct Model {
    keyspace: Keyspace,
    /// Gets nothing but the effects, and must have the same keys.
    replica: Keyspace,
    /// Effects that the replica has not been given yet: it gets many at once, as recovery does.
    effects: Vec<u8>,
    map: BTreeMap<Vec<u8>, Expected>,
    watches: Vec<Watching>,
    random: Random,
    now: Now,
    keys: u64,
    seed: u64,
    source: SharedSource,
    image: Option<Image>,
    /// Images that were restored and compared.
    restored: usize,
    /// This is one that was restored.
    is_fork: bool,
    /// A scan in progress: the cursor, what was there throughout, and what was seen.
    scan: Option<(u64, Keys, Keys)>,
}

impl Model {
    fn new(seed: u64, keys: u64, access: AccessMode) -> Model {
        let options =
            KeyspaceOptions { hash_seed: seed, random_seed: seed ^ 1, access, ..KeyspaceOptions::default() };
        let source = SharedSource::default();
        let keyspace = Keyspace::new(options, Box::new(source.clone()));
        let now = Now { unix_us: 1_700_000_000_000_000, monotonic: Nanos(5_000_000_000) };
        Model::with(keyspace, source, seed, seed, keys, now)
    }

    fn with(
        mut keyspace: Keyspace,
        source: SharedSource,
        seed: u64,
        random: u64,
        keys: u64,
        now: Now,
    ) -> Model {
        keyspace.keep_effects(true);
        let other_seed = KeyspaceOptions { hash_seed: !seed, ..KeyspaceOptions::default() };
        Model {
            keyspace,
            replica: Keyspace::new(other_seed, Box::new(source.clone())),
            effects: Vec::new(),
            map: BTreeMap::new(),
            watches: Vec::new(),
            random: Random(random),
            now,
            keys,
            seed,
            source,
            image: None,
            restored: 0,
            is_fork: false,
            scan: None,
        }
    }

    fn ms(&self) -> u64 {
        self.now.unix_ms()
    }

    fn advance(&mut self, ms: u64) {
        self.now.unix_us += ms * 1000;
        self.now.monotonic.0 += ms * 1_000_000;
        let now = self.ms();
        let gone: Vec<Vec<u8>> = self
            .map
            .iter()
            .filter(|(_, entry)| entry.expires_at.is_some_and(|at| now > at))
            .map(|(key, _)| key.clone())
            .collect();
        for key in gone {
            self.map.remove(&key);
            self.removed(&key);
        }
    }

    fn changed(&mut self, key: &[u8]) {
        for watch in &mut self.watches {
            if watch.key == key {
                watch.changed = true;
            }
        }
    }

    fn removed(&mut self, key: &[u8]) {
        self.changed(key);
        if let Some((_, there, _)) = &mut self.scan {
            there.remove(key);
        }
    }

    fn key(&mut self) -> Vec<u8> {
        let number = self.random.below(self.keys);
        match number % 50 {
            0 => format!("{number}:{}", "long".repeat(100)).into_bytes(),
            1 => number.to_le_bytes()[..(number % 9) as usize].to_vec(),
            2 | 3 => colliding_key(self.seed, number),
            _ => format!("key:{number:012}").into_bytes(),
        }
    }

    fn len(&mut self) -> usize {
        match self.random.below(1000) {
            0..=499 => self.random.below(130) as usize,
            500..=899 => 32 + 8 * self.random.below(13) as usize,
            900..=989 => self.random.below(5000) as usize,
            990..=997 => self.random.below(70 << 10) as usize,
            998 => self.random.below(1 << 20) as usize,
            _ if self.random.one_in(4) => self.random.below(5 << 20) as usize,
            _ => 0,
        }
    }

    fn expiry_time(&mut self) -> u64 {
        let spans = [300, 5_000, 60_000, 3_600_000, 100_000_000, 1_000_000_000];
        let span = spans[self.random.below(spans.len() as u64) as usize];
        self.ms() + self.random.below(span)
    }

    fn step(&mut self) {
        let key = self.key();
        let hash = self.keyspace.hash(&key);
        let now = self.now;
        match self.random.below(100) {
            0..=34 => {
                let len = self.len();
                let value = self.random.bytes(len);
                let encoding =
                    [Encoding::Auto, Encoding::Raw, Encoding::NotInteger][self.random.below(3) as usize];
                let expiry = match self.random.below(6) {
                    0 => Expiry::At(self.expiry_time()),
                    1 => Expiry::Keep,
                    _ => Expiry::Never,
                };
                self.keyspace.set(&key, hash, &value, expiry, encoding, now).unwrap();
                let expires_at = match expiry {
                    Expiry::At(at) => Some(at),
                    Expiry::Never => None,
                    Expiry::Keep => self.map.get(&key).and_then(|entry| entry.expires_at),
                };
                self.map.insert(key.clone(), Expected { value, expires_at, encoding });
                self.changed(&key);
            }
            35..=54 => self.compare(&key),
            55..=64 => {
                let removed = self.keyspace.remove(&key, hash, now);
                assert_eq!(removed, self.map.remove(&key).is_some());
                if removed {
                    self.removed(&key);
                }
            }
            65..=72 => {
                let len = if self.random.one_in(50) { self.len() } else { self.random.below(40) as usize };
                let suffix = self.random.bytes(len);
                let new_len = self.keyspace.append(&key, hash, &suffix, now).unwrap();
                let existed = self.map.contains_key(&key);
                let entry = self.map.entry(key.clone()).or_insert(Expected {
                    value: Vec::new(),
                    expires_at: None,
                    encoding: Encoding::Auto,
                });
                entry.value.extend_from_slice(&suffix);
                if existed {
                    entry.encoding = Encoding::Raw;
                }
                assert_eq!(new_len, entry.value.len());
                self.changed(&key);
            }
            73..=78 => {
                let offset =
                    if self.random.one_in(50) { self.len() } else { self.random.below(200) as usize };
                let len = self.random.below(100) as usize;
                let bytes = self.random.bytes(len);
                let new_len = self.keyspace.write_range(&key, hash, offset, &bytes, now).unwrap();
                if !bytes.is_empty() {
                    let entry = self.map.entry(key.clone()).or_insert(Expected {
                        value: Vec::new(),
                        expires_at: None,
                        encoding: Encoding::Raw,
                    });
                    let end = offset + len;
                    entry.value.resize(entry.value.len().max(end), 0);
                    entry.value[offset..end].copy_from_slice(&bytes);
                    entry.encoding = Encoding::Raw;
                    self.changed(&key);
                }
                assert_eq!(new_len, self.map.get(&key).map_or(0, |entry| entry.value.len()));
            }
            79..=84 => {
                let expires_at = (!self.random.one_in(3)).then(|| self.expiry_time());
                let found = self.keyspace.set_expiry(&key, hash, expires_at, now).unwrap();
                assert_eq!(found, self.map.contains_key(&key));
                if let Some(entry) = self.map.get_mut(&key) {
                    entry.expires_at = expires_at;
                    self.changed(&key);
                }
            }
            85..=87 => {
                let token = self.keyspace.watch(&key, now);
                let existed_until = self.map.get(&key).and_then(|entry| entry.expires_at);
                self.watches.push(Watching { key, token, changed: false, existed_until });
                if self.watches.len() > 20 {
                    let at = self.random.below(20) as usize;
                    let watch = self.watches.swap_remove(at);
                    let unchanged = self.keyspace.is_unchanged(&watch.key, &watch.token, now);
                    assert_eq!(unchanged, !watch.changed, "{:?}", watch.existed_until);
                    self.keyspace.unwatch(&watch.key);
                }
            }
            88..=91 => {
                let ms = [0, 1, 50, 1000, 30_000][self.random.below(5) as usize];
                self.advance(ms);
            }
            92..=94 => self.scan_on(),
            95 => {
                if let Some(key) = self.keyspace.random_key(now) {
                    assert!(self.map.contains_key(&key), "RANDOMKEY invented a key");
                } else {
                    assert!(self.map.is_empty());
                }
            }
            96 => {
                self.keyspace.touch(&key, hash, now);
                let idle = self.keyspace.idle_seconds(&key, hash, now);
                assert_eq!(idle.is_some(), self.map.contains_key(&key));
                assert_eq!(self.keyspace.record_bytes(&key, hash, now).is_some(), idle.is_some());
            }
            97 if self.random.one_in(20) => {
                let policy = EvictionPolicy::ALL[self.random.below(8) as usize];
                for _ in 0..self.random.below(40) {
                    let Some(key) = self.keyspace.evict_one(policy, now) else {
                        // What has expired and was not looked at counts for the keyspace but not for the model.
                        assert!(
                            policy == EvictionPolicy::NoEviction
                                || !self.map.values().any(|entry| {
                                    entry.expires_at.is_some() || !policy.name().starts_with("volatile")
                                })
                        );
                        break;
                    };
                    if self.map.remove(&key).is_some() {
                        self.removed(&key);
                    }
                }
            }
            98 => self.go_on_with_image(),
            99 => {
                // Compaction all the time, also of segments that nobody would choose.
                let number = self.random.below(self.keyspace.stats().segments as u64 + 1) as usize;
                self.keyspace.evacuate_segment(number);
            }
            _ => {
                self.keyspace.prefetch_bucket(hash);
                self.keyspace.prefetch_record(hash);
            }
        }
        let budget = self.random.below(64) as usize;
        self.keyspace.expire_some(self.now, budget);
        let budget = self.random.below(4096) as usize;
        self.keyspace.compact_some(self.now, budget);
        self.keyspace.take_effects(&mut self.effects);
        if self.random.one_in(50) {
            self.replicate();
        }
    }

    /// As in recovery: effects as bytes, applied in their order.
    fn replicate(&mut self) {
        self.keyspace.take_effects(&mut self.effects);
        self.replica.apply_all(&self.effects, self.now).expect("room for what had room");
        self.effects.clear();
    }

    fn compare(&mut self, key: &[u8]) {
        let hash = self.keyspace.hash(key);
        let found = if self.random.one_in(2) {
            self.keyspace.get(key, hash, self.now)
        } else {
            self.keyspace.peek(key, hash, self.now)
        };
        let found = found.map(|entry| Expected {
            value: entry.value.to_vec(),
            expires_at: entry.expires_at,
            encoding: entry.encoding,
        });
        assert!(found.as_ref() == self.map.get(key), "{:?} differs", String::from_utf8_lossy(key));
        if !self.effects.is_empty() {
            return;
        }
        let hash = self.replica.hash(key);
        let replicated = self.replica.peek(key, hash, self.now).map(|entry| Expected {
            value: entry.value.to_vec(),
            expires_at: entry.expires_at,
            encoding: entry.encoding,
        });
        assert!(replicated.as_ref() == self.map.get(key), "{:?} replicated", String::from_utf8_lossy(key));
    }

    fn scan_on(&mut self) {
        let (cursor, there, mut seen) = self.scan.take().unwrap_or_else(|| {
            let there = self.map.keys().cloned().collect();
            (0, there, BTreeSet::new())
        });
        let count = 1 + self.random.below(30) as usize;
        let cursor = self.keyspace.scan(cursor, count, self.now, &mut |key| {
            seen.insert(key.to_vec());
        });
        if cursor != 0 {
            self.scan = Some((cursor, there, seen));
            return;
        }
        let missed: Vec<_> =
            there.difference(&seen).map(|key| String::from_utf8_lossy(key).into_owned()).collect();
        assert!(missed.is_empty(), "the scan missed {missed:?}");
    }

    fn go_on_with_image(&mut self) {
        let Some(image) = &mut self.image else {
            if self.random.one_in(4)
                && let Ok(begin) = self.keyspace.begin_image(self.now)
            {
                let (taking, map) = (Taking::new(begin), self.map.clone());
                self.image = Some(Image { taking, map, now: self.now });
            }
            return;
        };
        if self.random.one_in(100) {
            self.keyspace.abandon_image();
            self.image = None;
            return;
        }
        let budget = [1, 4 << 10, 12 << 10, 64 << 10, 256 << 10, 4 << 20][self.random.below(6) as usize];
        if self.keyspace.image_step(budget, &mut |part| image.taking.put(part)) {
            return;
        }
        assert!(image.taking.is_whole(), "every page comes");
        self.keyspace.end_image();
        let image = self.image.take().expect("an image");
        let ms = self.random.below(10_000);
        self.restore(image, ms);
    }

    /// Makes a keyspace of an image, some time after it was begun, and lets it go on.
    fn restore(&mut self, image: Image, later_ms: u64) {
        let options = KeyspaceOptions { hash_seed: self.seed, ..KeyspaceOptions::default() };
        let restarted = Now { monotonic: Nanos(77), ..image.now };
        let restored =
            image.taking.restore(options, &self.source, restarted).expect("an image as it was taken");
        let random = self.random.next();
        let mut fork = Model::with(restored, self.source.clone(), self.seed, random, self.keys, restarted);
        fork.is_fork = true;
        fork.map = image.map;
        // A dump meets every key once, checking as it goes; and it is how a replica gets the same keys.
        let (mut at, mut count) = (LiveCursor::START, 0);
        if self.random.one_in(2) {
            let replica = &mut fork.replica;
            while let Some(next) = fork.keyspace.for_each_live(at, 4096, restarted, &mut |key, entry| {
                let expected = &fork.map[key];
                assert!(entry.value == expected.value && entry.encoding == expected.encoding);
                assert_eq!(entry.expires_at, expected.expires_at);
                count += 1;
                let expiry = entry.expires_at.map_or(Expiry::Never, Expiry::At);
                let hash = replica.hash(key);
                replica.set(key, hash, entry.value, expiry, entry.encoding, restarted).unwrap();
            }) {
                at = next;
            }
            assert_eq!((count, fork.keyspace.damage()), (fork.map.len(), None));
            fork.check();
        } else {
            for (key, entry) in &fork.map {
                let hash = fork.replica.hash(key);
                let expiry = entry.expires_at.map_or(Expiry::Never, Expiry::At);
                fork.replica.set(key, hash, &entry.value, expiry, entry.encoding, restarted).unwrap();
            }
        }
        fork.advance(later_ms);
        let steps = [3, 300, 3_000][self.random.below(3) as usize];
        for _ in 0..steps {
            fork.step();
            if fork.random.one_in(20) {
                let budget = fork.random.below(1 << 20) as usize;
                fork.keyspace.warm_step(budget);
            }
        }
        if self.random.one_in(2) {
            fork.check();
        }
        while fork.keyspace.warm_step(1 << 20) {}
        assert_eq!((fork.keyspace.warm_progress(), fork.keyspace.damage()), (None, None));
        fork.check();
        while fork.keyspace.compact_some(fork.now, 1 << 20) {}
        fork.check();
        if self.random.one_in(3) {
            // What was restored can be the source of another image.
            fork.keyspace.abandon_image();
            while fork.keyspace.compact_some(fork.now, 1 << 20) {}
            let again = taking::take(&mut fork.keyspace, fork.now);
            let options = KeyspaceOptions { hash_seed: self.seed, ..KeyspaceOptions::default() };
            let mut second = again.restore(options, &self.source, fork.now).expect("an image of an image");
            second.check().unwrap();
            for (key, entry) in &fork.map {
                let found = second.peek(key, second.hash(key), fork.now).expect("a key");
                assert!(found.value == entry.value && found.expires_at == entry.expires_at);
            }
            dispose(second, fork.now);
        }
        self.restored += 1 + fork.restored;
        dispose(fork.keyspace, fork.now);
        dispose(fork.replica, fork.now);
    }

    fn check(&mut self) {
        self.replicate();
        self.keyspace.check().unwrap();
        self.replica.check().unwrap();
        let keys: Vec<Vec<u8>> = self.map.keys().cloned().collect();
        for key in keys {
            self.compare(&key);
        }
        while self.keyspace.expire_some(self.now, 1000) {}
        // A walk waits up to 100 ms for the next; what has expired in between is still counted.
        assert!(self.keyspace.len() >= self.map.len());
        let mut seen = BTreeSet::new();
        let mut cursor = 0;
        loop {
            cursor = self.keyspace.scan(cursor, 100, self.now, &mut |key| {
                seen.insert(key.to_vec());
            });
            if cursor == 0 {
                break;
            }
        }
        assert!(seen.iter().eq(self.map.keys()));
    }
}

fn run(seed: u64, keys: u64, access: AccessMode, steps: usize) {
    let mut model = Model::new(seed, keys, access);
    for step in 0..steps {
        model.step();
        if step % (steps / 10).max(1) == 0 {
            model.check();
        }
        if model.random.one_in(steps as u64 / 2) {
            model.keyspace.clear(model.now);
            model.replicate();
            let keys: Vec<Vec<u8>> = model.map.keys().cloned().collect();
            model.map.clear();
            keys.iter().for_each(|key| model.removed(key));
        }
    }
    model.check();
    eprintln!("{} images restored", model.restored);
    assert!(model.restored > 0 || steps < 20_000, "no image was finished");
}

#[test]
fn few_keys_behave_like_a_map() {
    run(seed(), 300, AccessMode::Lru, steps(30_000));
}

#[test]
fn many_keys_behave_like_a_map() {
    run(seed(), 30_000, AccessMode::Lfu, steps(120_000));
}

#[test]
fn clearing_is_an_effect_and_expiry_is_none() {
    let now = Now { unix_us: 1_700_000_000_000_000, monotonic: Nanos(5_000_000_000) };
    let later = Now { unix_us: now.unix_us + 10_000_000, ..now };
    let mut keyspace = Keyspace::new(KeyspaceOptions::default(), Box::new(HeapSource::default()));
    keyspace.keep_effects(true);
    let hash = keyspace.hash(b"k");
    let soon = Expiry::At(now.unix_ms() + 1000);
    keyspace.set(b"k", hash, b"1", soon, Encoding::Auto, now).unwrap();
    keyspace.clear(now);
    keyspace.set(b"k", hash, b"2", soon, Encoding::Auto, now).unwrap();
    let mut effects = Vec::new();
    assert!(keyspace.take_effects(&mut effects));
    assert!(keyspace.get(b"k", hash, later).is_none(), "its time has come");
    assert!(!keyspace.take_effects(&mut Vec::new()), "and that was no effect");
    // SETRANGE after that starts from nothing, also where the old value is still there.
    keyspace.write_range(b"k", hash, 2, b"x", later).unwrap();
    keyspace.take_effects(&mut effects);
    let mut replica = Keyspace::new(KeyspaceOptions::default(), Box::new(HeapSource::default()));
    let mut rest = &effects[..];
    let mut count = 0;
    while !rest.is_empty() {
        replica.apply(&Mutation::decode(&mut rest).unwrap(), later).unwrap();
        count += 1;
    }
    assert_eq!(replica.get(b"k", hash, later).unwrap().value, b"\0\0x");
    assert_eq!((replica.len(), count), (1, 5));
}
