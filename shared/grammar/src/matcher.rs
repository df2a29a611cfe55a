//! One output, token by token.

use crate::Broken;
use shared::ids::TokenId;

/// Follows one output.
pub struct Matcher {
    inner: llguidance::Matcher,
    words: usize,
}

impl Matcher {
    /// Masks will be of `words` words.
    pub(crate) fn new(inner: llguidance::Matcher, words: usize) -> Self {
        Self { inner, words }
    }

    /// Takes the next token. What follows a complete output changes nothing.
    ///
    /// # Errors
    /// [`Broken`]; the matcher is of no use any more.
    pub fn advance(&mut self, token: TokenId) -> Result<(), Broken> {
        if self.is_complete() {
            return Ok(());
        }
        self.inner.consume_token(token.get()).map_err(|error| Broken(error.to_string()))
    }

    /// Bit `id % 32` of word `id / 32` is set where token `id` may be next; at least one is.
    ///
    /// # Errors
    /// [`Broken`]; the matcher is of no use any more.
    pub fn mask(&mut self) -> Result<Vec<u32>, Broken> {
        let mask = self.inner.compute_mask_or_eos().map_err(|error| Broken(error.to_string()))?;
        if mask.is_zero() {
            return Err(Broken("no token is allowed".to_owned()));
        }
        let mut words = mask.as_slice().to_vec();
        words.resize(self.words, 0);
        Ok(words)
    }

    /// Whether only an end of sequence may follow.
    pub fn is_complete(&self) -> bool {
        self.inner.is_stopped() && !self.inner.is_error()
    }
}

impl std::fmt::Debug for Matcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Matcher").field("complete", &self.is_complete()).finish()
    }
}
