//! How nginx's `limit_req … burst=N nodelay` counts the requests of one client: a leaky bucket whose contents are thousandths of a request.

use palisade_core::edge::Rate;

/// One request.
const REQUEST: i64 = 1_000;

/// A bucket's contents, as of the last request that passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Bucket {
    /// Requests beyond the rate, in thousandths. The one that passes first adds nothing.
    excess: i64,
    last_ms: u64,
}

/// A request that doesn't pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full {
    /// Until one would, if none passes before.
    pub(super) wait_ms: u64,
}

/// What has leaked in this time. Parts of a thousandth are lost at each request that passes, as they are in nginx.
fn leaked(rate: &Rate, ms: u64) -> i64 {
    i64::try_from(u128::from(rate.milli_per_s) * u128::from(ms) / 1_000).unwrap_or(i64::MAX)
}

impl Bucket {
    /// What is left in it. It is negative, but not below one request, when more than the excess has leaked.
    pub(super) fn level(&self, rate: &Rate, now_ms: u64) -> i64 {
        let leaked = leaked(rate, now_ms.saturating_sub(self.last_ms));
        self.excess.saturating_sub(leaked).max(-REQUEST)
    }

    /// The bucket of a client of whom nothing is known but that it has this level at most.
    pub(super) fn taken_over(level: i64, now_ms: u64) -> Self {
        Self { excess: level.max(-REQUEST), last_ms: now_ms }
    }

    /// Adds a request, if it fits.
    pub(super) fn add(&mut self, rate: &Rate, now_ms: u64) -> Result<(), Full> {
        let elapsed_ms = now_ms.saturating_sub(self.last_ms);
        let excess = self.level(rate, now_ms) + REQUEST;
        let burst = i64::from(rate.burst) * REQUEST;
        if excess > burst {
            // A rate of nothing never lets another one pass: an hour is as good as any.
            let missing = u128::try_from(self.excess + REQUEST - burst).unwrap_or(0) * 1_000;
            let until_ms = match rate.milli_per_s {
                0 => 3_600_000,
                rate => u64::try_from(missing.div_ceil(u128::from(rate))).unwrap_or(u64::MAX),
            };
            return Err(Full { wait_ms: until_ms.saturating_sub(elapsed_ms).max(1) });
        }
        self.excess = excess;
        // The clocks of two threads may differ: time doesn't go back.
        self.last_ms = self.last_ms.max(now_ms);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(bucket: &mut Bucket, rate: &Rate, count: u32, now_ms: u64) -> u32 {
        (0..count).map(|_| u32::from(bucket.add(rate, now_ms).is_ok())).sum()
    }

    #[test]
    fn it_counts_as_nginx_was_seen_to() {
        let rate = Rate { milli_per_s: 10_000, burst: 20 };
        let mut bucket = Bucket::taken_over(i64::MIN, 5_000);
        assert_eq!(pass(&mut bucket, &rate, 40, 5_000), 21);
        assert_eq!(pass(&mut bucket, &rate, 40, 6_000), 10);
        assert_eq!(pass(&mut bucket, &rate, 40, 9_000), 21);
    }

    #[test]
    fn whoever_waits_as_told_passes_and_not_before() {
        for (milli_per_s, burst) in [(10_000, 20), (16, 0), (3, 7), (1_000_000, 1), (777, 2)] {
            let rate = Rate { milli_per_s, burst };
            let mut bucket = Bucket::taken_over(i64::MIN, 0);
            let mut now_ms = 0;
            for _ in 0..200 {
                match bucket.clone().add(&rate, now_ms) {
                    Ok(()) => bucket.add(&rate, now_ms).unwrap(),
                    Err(Full { wait_ms }) => {
                        assert!(bucket.clone().add(&rate, now_ms + wait_ms - 1).is_err(), "{rate:?} at {now_ms}");
                        now_ms += wait_ms;
                        assert_eq!(bucket.add(&rate, now_ms), Ok(()), "{rate:?} at {now_ms}");
                    }
                }
                now_ms += 13;
            }
        }
    }

    #[test]
    fn nothing_overflows() {
        let rate = Rate { milli_per_s: u32::MAX, burst: u32::MAX };
        let mut bucket = Bucket::taken_over(i64::MAX / 2, 7);
        let _ = bucket.add(&rate, u64::MAX);
        let _ = bucket.add(&rate, 0);
        let none = Rate { milli_per_s: 0, burst: 0 };
        let mut bucket = Bucket::taken_over(i64::MIN, 0);
        assert_eq!(bucket.add(&none, 0), Ok(()));
        assert_eq!(bucket.add(&none, u64::MAX), Err(Full { wait_ms: 1 }));
    }
}
