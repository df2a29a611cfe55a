//! Draws a token from a row of logits.
//!
//! 0. Biases and penalties change single logits, as the request's [`History`] has them: the bias
//!    is added, then the repetition penalty divides what is positive and multiplies what is not,
//!    then frequency and presence penalties are taken off (vLLM's order).
//!    Last, the request's [`Mask`] rules out what its grammar does not allow.
//! 1. Greedy (`temperature == 0`) takes the best; the lowest id among equals.
//! 2. Otherwise logits are divided by the temperature; `min_p`, then `top_k`, then `top_p` remove
//!    tokens (vLLM's order; `top_p` sees what the others left, renormalised).
//! 3. One uniform number, a function of (seed, output index) alone, picks from the survivors'
//!    cumulative distribution in the order of their ids, so that near-equal probabilities that
//!    swap places move nothing.
//!
//! Log-probabilities are those of the unscaled, unfiltered, unadjusted logits. NaN counts as
//! minus infinity.

mod history;
mod logprobs;
mod mask;
mod philox;

pub use history::History;
pub(crate) use logprobs::Logprobs;
pub use mask::{Mask, Promise, Words};

#[cfg(test)]
mod on_gpu;

use crate::engine::Sample;
use kernels::cpu::Softmax;
use kernels::cuda::Adjusted;
use shared::ids::TokenId;
use shared::request::{Sampling, Token};
use std::sync::Arc;

/// A drawn token and how nearly it was another.
#[derive(Clone, Debug, PartialEq)]
pub struct Drawn {
    /// The token.
    pub token: Token,
    /// Greedy: the gap of the two best adjusted logits. Sampled: the distance of the uniform number
    /// to the token's interval borders, or of a filter to the nearest token it would treat
    /// otherwise, whichever is less.
    pub margin: f32,
}

/// Draws from `logits`.
///
/// # Panics
/// If there are none.
pub fn draw(softmax: Softmax, logits: &[f32], sample: &Sample) -> Drawn {
    let mut terms = vec![0.0; logits.len()];
    let logprobs = Logprobs::new(softmax, logits, &mut terms);
    let (logits, max) = (logprobs.logits(), logprobs.max());
    let adjusted = adjusted(softmax, logits, sample);
    let changed = adjusted.as_deref().unwrap_or(logits);
    let best_changed = if adjusted.is_some() { softmax.max(changed) } else { max };
    let (index, margin) = if sample.sampling.temperature == 0.0 {
        greedy(softmax, changed, best_changed)
    } else {
        let scale = 1.0 / sample.sampling.temperature;
        if adjusted.is_some() || scale != 1.0 {
            softmax.exp_sum(changed, (best_changed, scale), &mut terms);
        }
        let uniform = philox::uniform(sample.sampling.seed, sample.output_index);
        Filtered::new(&terms, &sample.sampling).pick(uniform)
    };
    let (id, top) = (TokenId::new(index as u32), sample.logprobs.unwrap_or(0));
    let token = logprobs.token(id, top, &sample.logprob_ids);
    Drawn { token, margin }
}

/// The logits with biases, penalties and mask, where there are any. Waits for the mask.
fn adjusted(softmax: Softmax, logits: &[f32], sample: &Sample) -> Option<Vec<f32>> {
    let (list, mask) = (sample.allowed_adjusted(), sample.words());
    if list.is_empty() && mask.is_none() {
        return None;
    }
    let mut changed = logits.to_vec();
    for adjusted in list.iter() {
        if let Some(logit) = changed.get_mut(adjusted.token as usize) {
            *logit = adjust(*logit, adjusted, &sample.sampling);
        }
    }
    if let Some(words) = mask {
        softmax.rule_out(words, &mut changed);
    }
    Some(changed)
}

impl Sample {
    /// The words of its mask, if it has one. Waits for them.
    pub fn words(&self) -> Option<&Words> {
        self.mask.as_ref().and_then(Mask::wait)
    }

    /// [`Self::adjusted`], with nothing forbidden where otherwise no token were left: an output
    /// that is complete by its grammar ends, whatever `min_tokens` is. Waits for the mask.
    pub fn allowed_adjusted(&self) -> Arc<Vec<Adjusted>> {
        let forbids = |adjusted: &Adjusted| adjusted.bias == f32::NEG_INFINITY;
        let Some(words) = self.words().filter(|_| self.adjusted.iter().any(forbids)) else {
            return Arc::clone(&self.adjusted);
        };
        let is_set = |id: u32| words.get(id as usize / 32).is_some_and(|w| w >> (id % 32) & 1 == 1);
        let allowed: u32 = words.iter().map(|word| word.count_ones()).sum();
        let forbidden = self.adjusted.iter().filter(|a| forbids(a) && is_set(a.token)).count();
        if forbidden < allowed as usize {
            return Arc::clone(&self.adjusted);
        }
        Arc::new(self.adjusted.iter().copied().filter(|adjusted| !forbids(adjusted)).collect())
    }
}

fn adjust(logit: f32, adjusted: &Adjusted, sampling: &Sampling) -> f32 {
    if adjusted.bias == f32::NEG_INFINITY {
        return adjusted.bias;
    }
    let mut logit = logit + adjusted.bias;
    if let Some(times) = adjusted.times() {
        let penalty = sampling.repetition_penalty;
        logit = if logit > 0.0 { logit / penalty } else { logit * penalty };
        logit -= sampling.frequency_penalty * times as f32;
        logit -= if times > 0 { sampling.presence_penalty } else { 0.0 };
    }
    logit.clamp(f32::MIN, f32::MAX)
}

fn greedy(softmax: Softmax, logits: &[f32], max: f32) -> (usize, f32) {
    let best = logits.iter().position(|&x| x == max).unwrap_or(0);
    let second = softmax.max(&logits[..best]).max(softmax.max(&logits[best + 1..]));
    (best, max - second)
}

/// A term that is no more than this, e^-86, stands for less: [`Softmax::exp_sum`] has none smaller
/// than e^-87, for what is ruled out too.
const IMPOSSIBLE: f32 = 4.5e-38;

/// Tokens that the filters left, by id, with unnormalised probabilities (the best has 1).
struct Filtered {
    survivors: Vec<(u32, f32)>,
    total: f64,
    /// Smallest distance of a filter's border to a token, as a probability.
    margin: f64,
}

impl Filtered {
    fn new(terms: &[f32], sampling: &Sampling) -> Self {
        let mut left = Self { survivors: Vec::new(), total: 0.0, margin: f64::INFINITY };
        // What has no probability, ruled out or not, comes no nearer by being sorted.
        let likely = (0..).zip(terms.iter().copied()).filter(|&(_, term)| term > IMPOSSIBLE);
        left.survivors = likely.collect();
        left.min_p(sampling.min_p);
        left.top_k(sampling.top_k as usize);
        left.sum();
        left.top_p(f64::from(sampling.top_p));
        left
    }

    fn sum(&mut self) {
        self.total = self.survivors.iter().map(|&(_, term)| f64::from(term)).sum();
    }

    /// Drops tokens less probable than `min_p` times the best.
    fn min_p(&mut self, min_p: f32) {
        if min_p == 0.0 {
            return;
        }
        let nearest = self.survivors.iter().map(|&(_, term)| (term - min_p).abs());
        self.margin = self.margin.min(f64::from(nearest.fold(f32::INFINITY, f32::min)));
        // The best has term 1 up to rounding of the exponential, and min_p may be 1.
        let border = min_p.min(1.0 - f32::EPSILON);
        self.survivors.retain(|&(_, term)| term >= border);
    }

    /// Keeps the `k` best.
    fn top_k(&mut self, k: usize) {
        if k == 0 || k >= self.survivors.len() {
            return;
        }
        let (_, worst, out) = self.survivors.select_nth_unstable_by(k - 1, by_probability);
        let next = out.iter().map(|&(_, term)| term).fold(0.0, f32::max);
        self.margin = self.margin.min(f64::from(worst.1 - next));
        self.survivors.truncate(k);
        self.survivors.sort_unstable_by_key(|&(id, _)| id);
    }

    /// Keeps the smallest set of best tokens whose probability reaches `top_p`.
    fn top_p(&mut self, top_p: f64) {
        if top_p >= 1.0 {
            return;
        }
        // Tokens below this cannot be in the set: together they have less than what it leaves out.
        let negligible = (1.0 - top_p) * self.total / self.survivors.len() as f64;
        self.survivors.retain(|&(_, term)| f64::from(term) >= negligible);
        self.survivors.sort_unstable_by(by_probability);
        let goal = top_p * self.total;
        let (mut sum, mut kept) = (0.0, 0);
        for &(_, term) in &self.survivors {
            let before = sum;
            sum += f64::from(term);
            kept += 1;
            if sum >= goal {
                let nearest = (sum - goal).min(goal - before) / self.total;
                self.margin = self.margin.min(nearest);
                break;
            }
        }
        self.survivors.truncate(kept);
        self.survivors.sort_unstable_by_key(|&(id, _)| id);
        self.sum();
    }

    /// The token at `uniform` (in `[0, 1)`) of the cumulative distribution.
    fn pick(&self, uniform: f64) -> (usize, f32) {
        let goal = uniform * self.total;
        let (mut sum, mut picked) = (0.0, (0, 0.0));
        for &(id, term) in &self.survivors {
            let before = sum;
            sum += f64::from(term);
            picked = (id as usize, (goal - before).min(sum - goal).max(0.0));
            if sum > goal {
                break;
            }
        }
        (picked.0, (picked.1 / self.total).min(self.margin) as f32)
    }
}

/// More probable first, lower id first among equals.
fn by_probability(a: &(u32, f32), b: &(u32, f32)) -> std::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

#[cfg(test)]
mod tests;
