//! A small seeded generator: the same seed gives the same test on every machine.
//!
//! SplitMix64. It is fast, has no bad seeds, and its whole state is one number that a failing test can print.

/// The generator.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator that starts at `seed`.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which is not zero.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next_u64() % bound as u64) as usize
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: i64, high: i64) -> i64 {
        low.wrapping_add((self.next_u64() % (high.wrapping_sub(low) as u64).saturating_add(1)) as i64)
    }

    /// True `percent` times in a hundred.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of `choices`.
    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len())]
    }

    /// Bytes of every value.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next_u64() as u8).collect()
    }
}

/// The seed of a test run: `MILLRACE_SEED`, or a new one. Printed by the caller, so that a failure can be replayed.
pub fn seed() -> u64 {
    match std::env::var("MILLRACE_SEED") {
        Ok(text) => {
            text.trim().parse().unwrap_or_else(|_| panic!("MILLRACE_SEED={text} is not a number below 2^64"))
        }
        Err(_) => {
            let elapsed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            Random::new(elapsed.map_or(0, |elapsed| elapsed.as_nanos() as u64)).next_u64()
        }
    }
}
