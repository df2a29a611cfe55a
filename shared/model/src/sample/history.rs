//! What a request and its output so far do to the logits of the next token.
//!
//! 1. [`History::new`] derives it from the request alone; output tokens of earlier attempts count,
//!    so a replay continues exactly.
//! 2. [`History::push`] takes each new token. Without penalties and biases there is nothing to
//!    keep, and it costs nothing.
//! 3. [`History::sample`] says how the next token is drawn.
//!
//! While fewer than `min_tokens` are made, stop ids have a bias of minus infinity: they are gone
//! before the filters, so what is drawn has the exact distribution of the rest.
//!
//! **Invariant:** a history that took tokens one by one equals that of the request's replay.

use crate::engine::Sample;
use kernels::cuda::Adjusted;
use shared::ids::TokenId;
use shared::request::{Request, Sampling};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What draws depend on beside the logits.
#[derive(Clone, Debug, PartialEq)]
pub struct History {
    sampling: Sampling,
    logprobs: Option<u8>,
    logprob_ids: Arc<[TokenId]>,
    /// Of the next token.
    output_index: u32,
    /// Ids ascending; without the stop ids that are held.
    adjusted: Arc<Vec<Adjusted>>,
    /// Tokens to make until the stop ids are free.
    held: u32,
    /// Empty once they are.
    stop_ids: Vec<TokenId>,
}

impl History {
    /// Before the first new token.
    pub fn new(request: &Request) -> Self {
        let mut entries = BTreeMap::new();
        let entry = |entries: &mut BTreeMap<_, _>, token: TokenId, seen, bias| {
            let token = token.get();
            let entry = entries.entry(token).or_insert(Adjusted { token, seen: 0, bias: 0.0 });
            (entry.seen, entry.bias) = (entry.seen.max(seen), entry.bias + bias);
        };
        for &(token, bias) in &request.logit_bias {
            entry(&mut entries, token, 0, bias);
        }
        let (prompt, output) = request.tokens.split_at(request.prompt_len as usize);
        if request.sampling.repetition_penalty != 1.0 {
            prompt.iter().for_each(|&token| entry(&mut entries, token, Adjusted::IN_PROMPT, 0.0));
        }
        let held = if request.stop_ids.is_empty() { 0 } else { request.min_tokens };
        let mut history = Self {
            sampling: request.sampling,
            logprobs: request.logprobs,
            logprob_ids: request.logprob_ids.as_slice().into(),
            output_index: request.output_index(),
            adjusted: Arc::new(entries.into_values().collect()),
            held,
            stop_ids: if held == 0 { Vec::new() } else { request.stop_ids.clone() },
        };
        output.iter().for_each(|&token| history.count(token));
        history
    }

    /// `token` was made.
    pub fn push(&mut self, token: TokenId) {
        self.output_index += 1;
        self.held = self.held.saturating_sub(1);
        if self.held == 0 {
            self.stop_ids = Vec::new();
        }
        self.count(token);
    }

    fn count(&mut self, token: TokenId) {
        if self.sampling.penalises() {
            let entry = entry(Arc::make_mut(&mut self.adjusted), token);
            entry.seen = entry.seen.max(Adjusted::IN_PROMPT) + 1;
        }
    }

    /// Whether the next token but one is drawn in the same way whatever the next one is, so that
    /// it may be asked for before the next one is known.
    pub fn foresees(&self) -> bool {
        self.held == 0 && !self.sampling.penalises()
    }

    /// How the token after `ahead` more is drawn; more than none only where it
    /// [foresees](Self::foresees).
    pub fn sample(&self, ahead: u32) -> Sample {
        let mut adjusted = Arc::clone(&self.adjusted);
        for &token in &self.stop_ids {
            entry(Arc::make_mut(&mut adjusted), token).bias = f32::NEG_INFINITY;
        }
        Sample {
            sampling: self.sampling,
            output_index: self.output_index + ahead,
            logprobs: self.logprobs,
            logprob_ids: Arc::clone(&self.logprob_ids),
            adjusted,
            mask: None,
        }
    }
}

/// The entry of `token`, made if it is not there.
fn entry(list: &mut Vec<Adjusted>, token: TokenId) -> &mut Adjusted {
    let token = token.get();
    let at = list.binary_search_by_key(&token, |entry| entry.token).unwrap_or_else(|at| {
        list.insert(at, Adjusted { token, seen: 0, bias: 0.0 });
        at
    });
    &mut list[at]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use shared::request::RequestParts;

    fn request(parts: impl FnOnce(&mut RequestParts)) -> Request {
        let ids = |ids: &[u32]| ids.iter().map(|&id| TokenId::new(id)).collect::<Vec<_>>();
        let mut plain = RequestParts {
            tokens: ids(&[5, 9, 5]),
            prompt_len: 3,
            max_tokens: 40,
            min_tokens: 0,
            sampling: Sampling::GREEDY,
            logit_bias: vec![],
            stop_ids: ids(&[2, 9]),
            logprobs: None,
            logprob_ids: Vec::new(),
            salt: String::new(),
            priority: 0,
            grammar: None,
            reads: None,
        };
        parts(&mut plain);
        plain.try_into().unwrap()
    }

    fn listed(history: &History) -> Vec<(u32, u32, f32)> {
        history.sample(0).adjusted.iter().map(|a| (a.token, a.seen, a.bias)).collect()
    }

    #[test]
    fn lists_what_is_asked_for_and_no_more() {
        let plain = History::new(&request(|_| {}));
        assert!(plain.foresees() && listed(&plain).is_empty());

        let presence = |s: &mut RequestParts| s.sampling.presence_penalty = 0.5;
        let mut history = History::new(&request(presence));
        assert!(!history.foresees() && listed(&history).is_empty());
        for token in [7, 5, 7] {
            history.push(TokenId::new(token));
        }
        assert_eq!(listed(&history), [(5, 2, 0.0), (7, 3, 0.0)]);
        assert_eq!(history.sample(0).output_index, 3);

        let repetition = |s: &mut RequestParts| s.sampling.repetition_penalty = 1.5;
        let mut history = History::new(&request(repetition));
        history.push(TokenId::new(5));
        assert_eq!(listed(&history), [(5, 2, 0.0), (9, 1, 0.0)]);
    }

    #[test]
    fn stop_ids_are_held_until_min_tokens_are_made() {
        let mut history = History::new(&request(|parts| {
            parts.min_tokens = 2;
            parts.logit_bias = vec![(TokenId::new(9), 3.0), (TokenId::new(11), -4.0)];
        }));
        let held = [(2, 0, f32::NEG_INFINITY), (9, 0, f32::NEG_INFINITY), (11, 0, -4.0)];
        for _ in 0..2 {
            assert_eq!(listed(&history), held);
            assert!(!history.foresees());
            history.push(TokenId::new(1));
        }
        assert_eq!(listed(&history), [(9, 0, 3.0), (11, 0, -4.0)]);
        assert!(history.foresees());
    }

    proptest! {
        #[test]
        fn a_replay_has_the_same_history(
            made in proptest::collection::vec(0_u32..12, 0..30),
            min_tokens in 0_u32..40,
            frequency: bool,
            repetition: bool,
        ) {
            let first = request(|parts| {
                parts.min_tokens = min_tokens;
                parts.sampling.frequency_penalty = if frequency { 0.3 } else { 0.0 };
                parts.sampling.repetition_penalty = if repetition { 0.8 } else { 1.0 };
                parts.logit_bias = vec![(TokenId::new(5), 1.0)];
            });
            let made: Vec<_> = made.into_iter().map(TokenId::new).collect();
            let mut history = History::new(&first);
            made.iter().for_each(|&token| history.push(token));
            prop_assert_eq!(history, History::new(&first.replay(&made, 0).unwrap()));
        }
    }
}
