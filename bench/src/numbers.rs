//! Medians, and random numbers that are the same in every run.

pub use plan::numbers::short;

/// The middle value; NaN of none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The largest value; 0 of none.
pub fn longest(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().fold(0.0, f64::max)
}

/// Marsaglia's xorshift64: reproducible, not for secrets.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Self {
        let mut random = Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        random.next();
        random
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `bound`, which is at least 1.
    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }

    /// A number in 0..1, 1 excluded.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// True `percent` times of 100.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// `count` ids in `from..from + span`.
    pub fn ids(&mut self, count: usize, from: u32, span: u32) -> Vec<u32> {
        (0..count).map(|_| from + self.below(span as usize) as u32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_short_forms() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert!(median(vec![]).is_nan());
        let check = |value, expect| assert_eq!(short(value), expect);
        check(1000.0, "1000");
        check(123.456, "123");
        check(12.34, "12.3");
        check(0.634, "0.63");
        check(0.00123, "0.0012");
        check(0.0000123, "1.2e-5");
        check(0.0, "0");
    }

    #[test]
    fn random_numbers_stay_in_bounds_and_repeat() {
        let (mut a, mut b) = (Random::new(7), Random::new(7));
        for _ in 0..1000 {
            let value = a.below(13);
            assert!(value < 13);
            assert_eq!(value, b.below(13));
        }
        assert!(a.ids(100, 10, 5).iter().all(|id| (10..15).contains(id)));
    }
}
