//! Page hashes: a name for the content of a page that holds on every server of one model.
//!
//! `hash(page) = blake3(key = blake3(key = model fingerprint, salt), parent hash ‖ token ids)`,
//! cut to 128 bits. Chained: the hash of page `i` names all tokens up to its end, since keys and
//! values depend on all of them. Keyed by model and salt: tenants with different salts cannot name,
//! nor probe for, each other's pages. The first page's parent is all zeros. Token ids are hashed as
//! little-endian u32, so the name is the same on every machine.

use crate::ids::TokenId;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Name of a full page's content.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PageHash([u8; 16]);

impl PageHash {
    /// Parent of a sequence's first page.
    pub const ROOT: Self = Self([0; 16]);

    /// Wraps raw bytes, as they come from the wire.
    pub const fn new(raw: [u8; 16]) -> Self {
        Self(raw)
    }
    /// The raw bytes.
    pub const fn get(self) -> [u8; 16] {
        self.0
    }
}

impl fmt::Display for PageHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for PageHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Hashes pages of one model under one salt.
#[derive(Clone)]
pub struct PageHasher {
    key: [u8; 32],
}

impl PageHasher {
    /// For pages of the model whose layout and weights `fingerprint` names, under `salt`.
    pub fn new(fingerprint: &[u8; 32], salt: &str) -> Self {
        Self { key: blake3::keyed_hash(fingerprint, salt.as_bytes()).into() }
    }

    /// Hash of the page that holds `tokens` and follows `parent`.
    pub fn page(&self, parent: PageHash, tokens: &[TokenId]) -> PageHash {
        let mut bytes = Vec::with_capacity(16 + 4 * tokens.len());
        self.chain(parent, tokens, &mut bytes)
    }

    /// Hashes of the full pages of a sequence that starts with `tokens`, first page first; a
    /// part-filled last page has none.
    ///
    /// # Panics
    /// If `page_tokens` is 0.
    pub fn pages(&self, tokens: &[TokenId], page_tokens: u32) -> Vec<PageHash> {
        let mut bytes = Vec::with_capacity(16 + 4 * page_tokens as usize);
        let mut parent = PageHash::ROOT;
        let hash = |page| {
            parent = self.chain(parent, page, &mut bytes);
            parent
        };
        tokens.chunks_exact(page_tokens as usize).map(hash).collect()
    }

    fn chain(&self, parent: PageHash, tokens: &[TokenId], bytes: &mut Vec<u8>) -> PageHash {
        bytes.clear();
        bytes.extend_from_slice(&parent.0);
        bytes.extend(tokens.iter().flat_map(|token| token.get().to_le_bytes()));
        let hash = blake3::keyed_hash(&self.key, bytes);
        let mut short = [0; 16];
        short.copy_from_slice(&hash.as_bytes()[..16]);
        PageHash(short)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn hashes(fingerprint: u8, salt: &str, tokens: std::ops::Range<u32>) -> Vec<PageHash> {
        let tokens: Vec<_> = tokens.map(TokenId::new).collect();
        PageHasher::new(&[fingerprint; 32], salt).pages(&tokens, 4)
    }

    #[test]
    fn a_hash_names_all_tokens_before_it() {
        let long = hashes(1, "", 0..23);
        assert_eq!(long.len(), 5, "the part-filled page has none");
        assert_eq!(hashes(1, "", 0..12), long[..3]);
        let hasher = PageHasher::new(&[1; 32], "");
        let fourth: Vec<_> = (12..16).map(TokenId::new).collect();
        assert_eq!(hasher.page(long[2], &fourth), long[3]);
        assert_ne!(hasher.page(long[1], &fourth), long[3]);
    }

    #[test]
    fn models_salts_and_places_share_no_name() {
        let same_tokens = [TokenId::new(5); 16];
        let repeated = PageHasher::new(&[1; 32], "").pages(&same_tokens, 4);
        let mut all = HashSet::new();
        let runs = [
            hashes(1, "", 0..16),
            hashes(2, "", 0..16),
            hashes(1, "a", 0..16),
            hashes(1, "b", 0..16),
            repeated,
        ];
        assert!(runs.iter().flatten().all(|hash| all.insert(*hash)));
    }

    #[test]
    fn names_are_the_same_on_every_machine() {
        // Computed apart, by the formula above, with the blake3 package of Python.
        let hash = hashes(1, "tenant", 0..8)[1];
        assert_eq!(hash.to_string(), "e47960eee34c19d5daeb6d62a9afacf3");
        assert_eq!(PageHash::new(hash.get()), hash);
    }
}
