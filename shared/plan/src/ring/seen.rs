//! What the gateway remembers of prompts: which prefill servers each block was sent to. As there,
//! two generations stand in for recency: when the young one is full it becomes the old one.

use super::Ring;
use crate::load::Load;
use shared::ids::TokenId;
use std::collections::HashMap;

/// Pages of a server's generation, as in `gateway/src/fleet/route.rs`.
const GENERATION: usize = 1 << 17;

/// Servers that hold a block, ascending.
type Holders = Vec<u32>;

/// Blocks of all servers together: loads are alike, so their generations end at about one time.
pub struct Seen {
    young: HashMap<TokenId, Holders>,
    old: HashMap<TokenId, Holders>,
    /// Entries of the young one, and the most.
    entries: (usize, usize),
    block_tokens: u32,
    /// Leading tokens that each server holds of the prompt that was looked at.
    overlaps: Vec<u32>,
}

impl Seen {
    /// Nothing yet.
    pub fn new(ring: &Ring, load: &Load) -> Self {
        let pages_a_block = (load.block_tokens / ring.prefill.page_tokens).max(1) as usize;
        Self {
            young: HashMap::new(),
            old: HashMap::new(),
            entries: (0, (GENERATION / pages_a_block).max(1) * ring.prefills),
            block_tokens: load.block_tokens,
            overlaps: vec![0; ring.prefills],
        }
    }

    /// Leading tokens of a prompt that each server was sent before.
    pub fn overlaps(&mut self, blocks: &[TokenId]) -> &[u32] {
        self.overlaps.fill(0);
        let mut before = 0;
        for block in blocks {
            let after = before + self.block_tokens;
            let holders = [&self.young, &self.old].map(|part| part.get(block));
            let mut any = false;
            for &server in holders.into_iter().flatten().flatten() {
                let overlap = &mut self.overlaps[server as usize];
                // Of both generations, or of a server that lacks a block before, it counts nothing.
                if *overlap == before {
                    *overlap = after;
                    any = true;
                }
            }
            if !any {
                break;
            }
            before = after;
        }
        &self.overlaps
    }

    /// A prompt goes to `server`.
    pub fn remember(&mut self, server: u32, blocks: &[TokenId]) {
        let (entries, most) = self.entries;
        if entries + blocks.len() > most {
            self.old = std::mem::take(&mut self.young);
            self.entries.0 = 0;
        }
        for block in blocks {
            let holders = self.young.entry(*block).or_default();
            if let Err(at) = holders.binary_search(&server) {
                holders.insert(at, server);
                self.entries.0 += 1;
            }
        }
    }
}
