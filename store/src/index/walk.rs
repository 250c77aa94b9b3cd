//! Walking the index: scans that survive growth, samples, the slow sweep of access fields, and the check of everything.

use alloc::format;
use alloc::string::String;
use alloc::vec;

use super::{
    AWAY_MAX, CHUNK_SHIFT, DEPTH_MAX, Index, Piece, Place, Records, SLAB_BUCKETS, SLAB_CHUNKS, SLAB_SHIFT,
    SLOTS,
};
use super::{alternative, home_of, tag_of};
use crate::arena::Offset;

impl Index {
    /// Visits the entries of some home buckets from `cursor` on, at least `count` if there are as many, and returns the
    /// cursor to go on with; 0 means the end. Entries are visited by *home* bucket, which displacement does not change,
    /// in the order of the hash, which growth does not change: whatever stays is visited at least once.
    ///
    /// No more than `pieces` are visited.
    pub fn scan(&self, cursor: u64, count: usize, mut pieces: usize, visit: &mut dyn FnMut(Offset)) -> u64 {
        let mut at = ScanCursor::decode(cursor);
        let mut visited = 0;
        // As in Redis, a sparse table is not searched for ever on behalf of one call.
        let mut steps = count.saturating_mul(10).max(1);
        loop {
            let hash = u64::from(at.prefix) << 40;
            let piece = self.pieces[self.piece_number(hash) as usize];
            let depth = u32::from(piece.depth);
            let last_prefix = at.prefix | ((1 << (DEPTH_MAX - depth)) - 1);
            let first_prefix = last_prefix + 1 - (1 << (DEPTH_MAX - depth));
            // Where the piece was joined with its sibling since, the sibling's early buckets were not visited.
            let mut bucket = if depth < at.depth { 0 } else { at.bucket_among(piece.buckets()) };
            while bucket < piece.buckets() {
                visited += self.visit_home(&piece, bucket, visit);
                bucket += 1;
                steps -= 1;
                if visited >= count || steps == 0 {
                    break;
                }
            }
            if bucket < piece.buckets() {
                return ScanCursor { prefix: first_prefix, depth, buckets: piece.buckets(), bucket }.encode();
            }
            // The stash comes last: entries go from buckets to it, never back while they live.
            let hashes = u64::from(first_prefix) << 40..=(u64::from(last_prefix) << 40 | ((1 << 40) - 1));
            for slot in self.stash.range(hashes).flat_map(|(_, equal)| equal.values()) {
                visit(self.stashed[*slot as usize].offset);
                visited += 1;
            }
            if last_prefix == (1 << DEPTH_MAX) - 1 {
                return 0;
            }
            at = ScanCursor { prefix: last_prefix + 1, depth: 0, buckets: piece.buckets(), bucket: 0 };
            pieces -= 1;
            if visited >= count || steps == 0 || pieces == 0 {
                return at.encode();
            }
        }
    }

    /// A hash of the piece that a cursor stands in.
    pub fn scan_hash(cursor: u64) -> u64 {
        u64::from(ScanCursor::decode(cursor).prefix) << 40
    }

    fn visit_home(&self, piece: &Piece, home: u32, visit: &mut dyn FnMut(Offset)) -> usize {
        let bucket = self.bucket(piece.bucket_id(home));
        let mut visited = 0;
        for slot in 0..bucket.guests_from() {
            if bucket.tags[slot] != 0 {
                visit(bucket.offsets[slot]);
                visited += 1;
            }
        }
        if bucket.away() > 0 {
            for host in 0..piece.buckets() {
                let bucket = self.bucket(piece.bucket_id(host));
                for slot in bucket.guests_from()..SLOTS {
                    if alternative(host, bucket.tags[slot], piece.buckets()) == home {
                        visit(bucket.offsets[slot]);
                        visited += 1;
                    }
                }
            }
        }
        visited
    }

    /// A hash of the piece that [`sample`](Self::sample) looks at with this random number.
    pub fn sampled_hash(&self, random: u64) -> u64 {
        if self.entries == self.stashed() || self.depth == 0 {
            return 0;
        }
        let mut at = ((random >> 1) >> (63 - self.depth)) as usize;
        while self.pieces[self.directory[at] as usize].entries == 0 {
            at = (at + 1) & (self.directory.len() - 1);
        }
        (at as u64) << (64 - self.depth)
    }

    /// The entries of a bucket chosen by `random` among those that are not empty, or a stashed one where there is no other.
    pub fn sample(&self, random: u64, visit: &mut dyn FnMut(Place, u16)) {
        if self.entries == 0 {
            return;
        }
        if self.entries == self.stashed() {
            let equal = self.stash.values().next().expect("a stashed entry");
            let slot = *equal.values().next().expect("a stashed entry");
            let stashed = self.stashed[slot as usize];
            visit(Place::stashed(slot, stashed.offset).expect("a record"), stashed.access);
            return;
        }
        // An empty piece is joined with its sibling unless that is much fuller, so this does not look far.
        let mut at = ((random >> 1) >> (63 - self.depth)) as usize;
        let mut piece = &self.pieces[self.directory[at] as usize];
        while piece.entries == 0 {
            at = (at + 1) & (self.directory.len() - 1);
            piece = &self.pieces[self.directory[at] as usize];
        }
        let mut bucket = home_of(random, piece.buckets());
        loop {
            let id = piece.bucket_id(bucket);
            let line = self.bucket(id);
            let mut occupied = line.occupied();
            if occupied != 0 {
                while occupied != 0 {
                    let slot = occupied.trailing_zeros();
                    let offset = line.offsets[slot as usize];
                    visit(
                        Place::new(id, slot, offset).expect("an occupied slot"),
                        line.access[slot as usize],
                    );
                    occupied &= occupied - 1;
                }
                return;
            }
            bucket = if bucket + 1 == piece.buckets() { 0 } else { bucket + 1 };
        }
    }

    /// Whether `place` still holds what it held.
    pub fn is_current(&self, place: Place) -> bool {
        let offset = match place.position() {
            Some(position) => self.stashed.get(position).map(|stashed| stashed.offset),
            // The slab may have been given back.
            None => self
                .slabs
                .get((place.bucket() >> SLAB_SHIFT) as usize)
                .and_then(|slab| slab.get(place.bucket() as usize & (SLAB_BUCKETS - 1)))
                .map(|bucket| bucket.offsets[place.slot()]),
        };
        offset == Some(place.offset())
    }

    /// Passes the access fields of the next part of the index through `change`. A part is `periods` times one
    /// `periods_per_round`th of it; what is more than a millisecond's work waits for the next call.
    pub fn sweep(&mut self, periods: u64, periods_per_round: u64, change: impl Fn(u16) -> u16) {
        const BUCKETS_PER_CALL: usize = 4096;
        let total = self.slabs.len() * SLAB_BUCKETS;
        let due = (total as u64).div_ceil(periods_per_round).saturating_mul(periods);
        self.sweep_left = (self.sweep_left as u64).saturating_add(due).min(total as u64) as usize;
        for _ in 0..self.sweep_left.min(BUCKETS_PER_CALL) {
            if self.sweep_at as usize >= total {
                self.sweep_at = 0;
            }
            let (slab, bucket) = (self.sweep_at >> SLAB_SHIFT, self.sweep_at as usize & (SLAB_BUCKETS - 1));
            if let Some(bucket) = self.slabs[slab as usize].get_mut(bucket) {
                for slot in 0..SLOTS {
                    let changed = change(bucket.access[slot]);
                    if bucket.tags[slot] != 0 && changed != bucket.access[slot] {
                        bucket.access[slot] = changed;
                    }
                }
            }
            self.sweep_at += 1;
            self.sweep_left -= 1;
        }
        for stashed in &mut self.stashed {
            stashed.access = change(stashed.access);
        }
    }

    /// Whether a sweep that became due is not finished.
    pub fn is_sweeping(&self) -> bool {
        self.sweep_left > 0
    }

    /// Checks what must be true of directory, pieces and buckets. For tests: it walks everything.
    pub fn check(&self, records: &impl Records) -> Result<(), String> {
        let mut entries = self.stashed();
        if self.directory.len() != 1 << self.depth {
            return Err(format!("a directory of {} at depth {}", self.directory.len(), self.depth));
        }
        let (mut at, mut chunks) = (0, 0);
        while at < self.directory.len() {
            let number = self.directory[at];
            let piece = self.pieces[number as usize];
            let width = 1 << (self.depth - u32::from(piece.depth));
            if at % width != 0 || self.directory[at..at + width].iter().any(|&n| n != number) {
                return Err(format!("piece {number} of depth {} at {at} of the directory", piece.depth));
            }
            let mut away = vec![0usize; piece.buckets() as usize];
            let mut in_piece = 0;
            for b in 0..piece.buckets() {
                let bucket = self.bucket(piece.bucket_id(b));
                for slot in 0..SLOTS {
                    if (bucket.tags[slot] == 0) != (bucket.offsets[slot] == 0) {
                        return Err(format!("slot {slot} of bucket {b}: tag and offset disagree"));
                    }
                    if bucket.tags[slot] == 0 {
                        if slot >= bucket.guests_from() {
                            return Err(format!("bucket {b} counts a guest too many"));
                        }
                        continue;
                    }
                    in_piece += 1;
                    let hash = records.hash_of(bucket.offsets[slot]);
                    let home = home_of(hash, piece.buckets());
                    let is_guest = slot >= bucket.guests_from();
                    let right =
                        if is_guest { alternative(home, tag_of(hash), piece.buckets()) } else { home };
                    if right != b || tag_of(hash) != bucket.tags[slot] || self.piece_number(hash) != number {
                        return Err(format!(
                            "the entry in slot {slot} of bucket {b} of piece {number} is misplaced"
                        ));
                    }
                    away[home as usize] += usize::from(is_guest);
                }
            }
            for b in 0..piece.buckets() {
                let counted = self.bucket(piece.bucket_id(b)).away();
                if counted < AWAY_MAX && usize::from(counted) != away[b as usize] {
                    return Err(format!("bucket {b}: {} entries away, {counted} counted", away[b as usize]));
                }
            }
            if in_piece != usize::from(piece.entries) {
                return Err(format!("piece {number}: {in_piece} entries, {} counted", piece.entries));
            }
            entries += in_piece;
            chunks += usize::from(piece.chunk_count);
            at += width;
        }
        if entries != self.entries || chunks != self.chunks_used {
            return Err(format!(
                "{entries} entries in {chunks} chunks, counted {} in {}",
                self.entries, self.chunks_used
            ));
        }
        let held = self.slabs.iter().filter(|slab| !slab.is_empty()).count() * SLAB_CHUNKS;
        if chunks + self.free_chunks.len() != held || self.slab_chunks.iter().sum::<u32>() as usize != chunks
        {
            return Err(format!("{chunks} chunks used and {} free of {held}", self.free_chunks.len()));
        }
        Ok(())
    }
}

/// Where a scan stands, in 39 bits: some clients read a cursor as a floating-point number.
struct ScanCursor {
    prefix: u32,
    /// Depth of the piece that was being visited, to notice that it was joined with its sibling.
    depth: u32,
    buckets: u32,
    bucket: u32,
}

impl ScanCursor {
    fn encode(&self) -> u64 {
        u64::from(self.prefix) << 15
            | u64::from(self.depth) << 10
            | u64::from(self.buckets >> CHUNK_SHIFT) << 7
            | u64::from(self.bucket)
    }

    /// Any number a client may send is some position.
    fn decode(cursor: u64) -> ScanCursor {
        ScanCursor {
            prefix: (cursor >> 15) as u32 & ((1 << DEPTH_MAX) - 1),
            depth: (cursor >> 10) as u32 & 31,
            buckets: ((cursor >> 7) as u32 & 7) << CHUNK_SHIFT,
            bucket: cursor as u32 & 127,
        }
    }

    /// The first bucket, among `buckets`, that may be home to what is not visited yet.
    fn bucket_among(&self, buckets: u32) -> u32 {
        if self.buckets == 0 || self.buckets == buckets {
            return self.bucket;
        }
        // Bucket b of n starts at hash b·2³²/n; rounding down can only repeat.
        (u64::from(self.bucket) * u64::from(buckets) / u64::from(self.buckets)) as u32
    }
}
