//! The token budget of one step: what bounds how long a long prompt can hold up a batch.

/// Tokens that one step may still compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenBudget {
    left: u32,
    page_tokens: u32,
}

impl TokenBudget {
    /// A step's budget. Work is cut at page borders; a budget below one page lets one page pass,
    /// so that every step gets on.
    ///
    /// # Panics
    /// If `page_tokens` is 0.
    pub const fn new(tokens: u32, page_tokens: u32) -> Self {
        assert!(page_tokens > 0, "a page holds at least one token");
        Self { left: if tokens < page_tokens { page_tokens } else { tokens }, page_tokens }
    }

    /// A budget that may be below one page.
    pub const fn exactly(tokens: u32, page_tokens: u32) -> Self {
        Self { left: tokens, page_tokens }
    }

    /// Tokens of a page.
    pub const fn page_tokens(&self) -> u32 {
        self.page_tokens
    }

    /// Tokens left.
    pub const fn left(&self) -> u32 {
        self.left
    }

    /// Takes what may be computed now of `remaining` tokens that begin at position `start`: all of
    /// them, or as many as fit and end on a page border.
    pub fn take(&mut self, start: u32, remaining: u32) -> u32 {
        let tokens = if remaining <= self.left {
            remaining
        } else {
            let end = u64::from(start) + u64::from(self.left);
            let border = end - end % u64::from(self.page_tokens);
            border.saturating_sub(u64::from(start)) as u32
        };
        self.left -= tokens;
        tokens
    }
}
