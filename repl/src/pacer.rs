//! The rate cap of datagrams: a token bucket.
//!
//! A sender that bursts overflows the smallest buffer on the way, and every datagram it loses there comes
//! again over TCP, once for each replica. So bytes are earned at a steady rate, and only so many can be saved
//! up.

/// The bucket.
#[derive(Clone, Copy, Debug)]
pub struct Pacer {
    /// 0: no cap.
    bytes_per_second: u64,
    burst_bytes: u64,
    /// Millionths of a byte: at 1 byte a second, one is earned each microsecond.
    tokens: u64,
    at_micros: u64,
}

const PER_BYTE: u64 = 1_000_000;

impl Pacer {
    /// A full bucket.
    pub fn new(bytes_per_second: u64, burst_bytes: u64, now_micros: u64) -> Pacer {
        let burst_bytes = burst_bytes.min(u64::MAX / PER_BYTE);
        Pacer { bytes_per_second, burst_bytes, tokens: burst_bytes * PER_BYTE, at_micros: now_micros }
    }

    /// Bytes that may leave now.
    pub fn available(&mut self, now_micros: u64) -> u64 {
        if self.bytes_per_second == 0 {
            return u64::MAX;
        }
        let earned = now_micros.saturating_sub(self.at_micros).saturating_mul(self.bytes_per_second);
        self.tokens = self.tokens.saturating_add(earned).min(self.burst_bytes * PER_BYTE);
        self.at_micros = self.at_micros.max(now_micros);
        self.tokens / PER_BYTE
    }

    /// They left; no more than were available.
    pub fn take(&mut self, bytes: u64) {
        if self.bytes_per_second > 0 {
            self.tokens = self.tokens.saturating_sub(bytes.saturating_mul(PER_BYTE));
        }
    }

    /// When so many bytes can leave, which are no more than a burst.
    pub fn ready_at(&self, bytes: u64) -> u64 {
        if self.bytes_per_second == 0 {
            return self.at_micros;
        }
        let lacking = bytes.min(self.burst_bytes).saturating_mul(PER_BYTE).saturating_sub(self.tokens);
        self.at_micros.saturating_add(lacking.div_ceil(self.bytes_per_second))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_second_carries_more_than_the_rate_and_one_burst() {
        let mut pacer = Pacer::new(1_000_000, 10_000, 0);
        let (mut now, mut sent, mut first_second) = (0, 0, 0);
        while now < 3_000_000 {
            if pacer.available(now) >= 1400 {
                pacer.take(1400);
                sent += 1400;
            } else {
                assert!(pacer.ready_at(1400) > now);
                now = pacer.ready_at(1400);
                assert!(pacer.available(now) >= 1400, "ready when it says so");
            }
            if now < 1_000_000 {
                first_second = sent;
            }
        }
        assert!(
            first_second <= 1_010_000 && (2_990_000..=3_011_400).contains(&sent),
            "{first_second} {sent}"
        );
        let mut idle = Pacer::new(1_000_000, 10_000, 0);
        assert_eq!(idle.available(u64::MAX), 10_000, "no more than a burst is saved up");
        assert_eq!(Pacer::new(0, 0, 0).available(0), u64::MAX);
    }
}
