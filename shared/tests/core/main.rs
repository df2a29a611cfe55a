//! The pure core beside naive models: random operations, and after each one the books must balance.

#![expect(clippy::unwrap_used, reason = "a test fails by panic, in its helpers too")]

mod pool;
mod radix;
mod ring;
mod sched;
mod ticket;

use shared::ids::TokenId;

/// Token ids from plain numbers.
fn tokens(raw: &[u32]) -> Vec<TokenId> {
    raw.iter().copied().map(TokenId::new).collect()
}

/// SplitMix64: every run of a seed is the same run.
struct Seeded(u64);

impl Seeded {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// A number below `n`.
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    /// True `percent` times of a hundred.
    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}
