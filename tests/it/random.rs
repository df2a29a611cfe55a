//! Random requests, the same in every run of a seed, that meet every border of a page.

use crate::ask::Ask;
use shared::request::Sampling;
use std::collections::BTreeMap;

/// SplitMix64.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u32) -> u32 {
        u32::try_from(self.next() % u64::from(bound)).expect("below a u32")
    }

    /// True so many times in a hundred.
    pub fn percent(&mut self, chance: u32) -> bool {
        self.below(100) < chance
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(u32::try_from(from.len()).unwrap()) as usize]
    }

    fn unit(&mut self) -> f32 {
        self.below(1 << 16) as f32 / 65536.0
    }
}

/// What random requests are made of.
pub struct Shape {
    pub vocab: u32,
    pub page: u32,
    /// Longest prompt.
    pub longest: u32,
    /// Most tokens of output.
    pub output: u32,
}

impl Shape {
    /// Requests, a part of them repeating or continuing an earlier prompt.
    pub fn asks(&self, random: &mut Random, count: usize) -> Vec<Ask> {
        let mut asks: Vec<Ask> = Vec::new();
        while asks.len() < count {
            let mut prompt = match asks.len() {
                some if some > 0 && random.percent(35) => {
                    asks[random.below(u32::try_from(some).unwrap()) as usize].prompt.clone()
                }
                _ => vec![],
            };
            if prompt.is_empty() || random.percent(50) {
                let most = self.longest - u32::try_from(prompt.len()).unwrap();
                let more = self.length(random).min(most).max(u32::from(prompt.is_empty()));
                prompt.extend((0..more).map(|_| random.below(self.vocab)));
            }
            let max_tokens = if random.percent(15) { 1 } else { 1 + random.below(self.output) };
            let ask = Ask { sampling: sampling(random), ..Ask::greedy(&prompt, max_tokens) };
            let logit_bias = self.logit_bias(random);
            asks.push(Ask { stream: random.percent(50), logit_bias, ..ask });
        }
        asks
    }

    /// None for nine in ten.
    fn logit_bias(&self, random: &mut Random) -> Vec<(u32, f32)> {
        let count = if random.percent(10) { 1 + random.below(40) } else { 0 };
        let biased = (0..count).map(|_| {
            let bias = random.pick(&[-100.0, -1.5, 0.5, 2.0]);
            (random.below(self.vocab), bias)
        });
        biased.collect::<BTreeMap<_, _>>().into_iter().collect()
    }

    /// Half of them beside a border between pages.
    fn length(&self, random: &mut Random) -> u32 {
        if random.percent(50) {
            return 1 + random.below(self.longest);
        }
        let pages = 1 + random.below(self.longest / self.page);
        pages * self.page + random.pick(&[0, 1, 2]) - 1
    }
}

/// Greedy for two in three; penalties for one in four of each.
fn sampling(random: &mut Random) -> Sampling {
    let mut sampling = filters(random);
    if random.percent(25) {
        sampling.presence_penalty = random.pick(&[0.0, 0.7, -0.5]);
        sampling.frequency_penalty = random.pick(&[0.0, 0.4, -0.2]);
        sampling.repetition_penalty = random.pick(&[1.0, 1.3, 0.8]);
    }
    sampling
}

fn filters(random: &mut Random) -> Sampling {
    if !random.percent(33) {
        return Sampling::GREEDY;
    }
    Sampling {
        temperature: 0.2 + random.unit(),
        top_p: if random.percent(50) { 1.0 } else { 0.5 + random.unit() / 2.0 },
        top_k: random.pick(&[0, 0, 1, 20]),
        min_p: random.pick(&[0.0, 0.0, 0.05]),
        seed: random.next() >> 1,
        ..Sampling::GREEDY
    }
}
