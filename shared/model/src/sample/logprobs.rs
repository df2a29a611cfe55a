//! Log-probabilities of a row of logits.

use kernels::cpu::Softmax;
use shared::ids::TokenId;
use shared::request::Token;
use std::borrow::Cow;

/// A row of logits and what it takes to normalise it.
pub struct Logprobs<'a> {
    logits: Cow<'a, [f32]>,
    max: f32,
    log_total: f64,
}

impl<'a> Logprobs<'a> {
    /// Looks at `logits`; `terms`, as long, is left with `e^(logit - max)`.
    ///
    /// # Panics
    /// If there are none, or `terms` has another length.
    pub fn new(softmax: Softmax, logits: &'a [f32], terms: &mut [f32]) -> Self {
        assert!(!logits.is_empty(), "a vocabulary has at least one token");
        let mut logits = Cow::Borrowed(logits);
        let mut max = softmax.max(&logits);
        let mut total = softmax.exp_sum(&logits, (max, 1.0), terms);
        if !total.is_finite() {
            let finite = |&x: &f32| if x.is_nan() { f32::MIN } else { x.clamp(f32::MIN, f32::MAX) };
            logits = Cow::Owned(logits.iter().map(finite).collect());
            max = softmax.max(&logits);
            total = softmax.exp_sum(&logits, (max, 1.0), terms);
        }
        Self { logits, max, log_total: total.ln() }
    }

    /// The row, NaN and infinities replaced by what they count as.
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// Its largest logit.
    pub fn max(&self) -> f32 {
        self.max
    }

    /// That of a token of the vocabulary.
    pub fn of(&self, id: TokenId) -> f32 {
        let logit = self.logits[id.get() as usize];
        (f64::from(logit) - f64::from(self.max) - self.log_total) as f32
    }

    /// Those of tokens of the vocabulary.
    pub fn of_each<'b>(&'b self, ids: &'b [TokenId]) -> impl Iterator<Item = (TokenId, f32)> + 'b {
        ids.iter().map(|&id| (id, self.of(id)))
    }

    /// That of a token of the vocabulary, with the `top` best and `ids`.
    pub fn token(&self, id: TokenId, top: u8, ids: &[TokenId]) -> Token {
        let best: Vec<_> =
            best(&self.logits, usize::from(top)).into_iter().map(TokenId::new).collect();
        let top = self.of_each(&best).chain(self.of_each(ids)).collect();
        Token { id, logprob: self.of(id), top }
    }
}

/// The `count` best tokens, best first, lower ids first among equals.
fn best(logits: &[f32], count: usize) -> Vec<u32> {
    let mut best: Vec<(f32, u32)> = Vec::with_capacity(count + 1);
    if count == 0 {
        return Vec::new();
    }
    for (id, &logit) in (0..).zip(logits) {
        if best.len() == count && best.last().is_some_and(|&(worst, _)| logit <= worst) {
            continue;
        }
        let at = best.partition_point(|&(other, _)| other >= logit);
        best.insert(at, (logit, id));
        best.truncate(count);
    }
    best.into_iter().map(|(_, id)| id).collect()
}
