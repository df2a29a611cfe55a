//! The model's constants that kernels are compiled for.

use crate::ops::KvShape;

/// Shape of a model's attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Its paged cache.
    pub kv: KvShape,
    /// Query heads.
    pub heads: usize,
}

impl Heads {
    /// Query heads of a key head.
    pub(super) fn group(&self) -> usize {
        self.heads / self.kv.kv_heads
    }

    /// Whether the fast attention kernels take it.
    pub(super) fn are_fast(&self) -> bool {
        let KvShape { head_dim, page_tokens, .. } = self.kv;
        let pages = page_tokens.is_multiple_of(16) && page_tokens <= 64;
        matches!(head_dim, 64 | 128) && pages && (1..=8).contains(&self.group())
    }

    pub(super) fn definitions(&self) -> Vec<String> {
        let KvShape { head_dim, page_tokens, .. } = self.kv;
        vec![format!("HEAD_DIM={head_dim}"), format!("PAGE_TOKENS={page_tokens}")]
    }
}
