//! What is moved: pages of some shape, in pools that both processes fill alike.

use anyhow::Context;
use kernels::cuda::{Device, PagePool};
use kernels::ops::KvShape;
use shared::ids::PageId;
use shared::kv::{KvDtype, KvGeometry};
use std::ops::Range;
use std::sync::Arc;

use crate::pair::pool::scattered;

/// Pages of a put, 4,096 tokens.
pub const MOVED: u32 = 256;
/// Pages that puts are drawn from, at both ends.
const DRAWN: u32 = 2 * MOVED;
/// Behind them as many as a put has, in order, where pages are gathered, and one of other bytes.
const SPOILED: u32 = DRAWN + MOVED;
const POOL: u32 = SPOILED + 1;

/// Pages of a model, or a part of each.
pub struct Case {
    pub name: &'static str,
    /// As a row of `bars.json` calls it, if it has one.
    pub row: Option<&'static str>,
    layers: u32,
    /// Layers of each page that are moved.
    moved: Range<u32>,
}

pub const CASES: [Case; 7] = [
    Case { name: "1 layer, 64 KiB a page", row: None, layers: 1, moved: 0..1 },
    Case { name: "one layer of 28 of Qwen3-0.6B", row: None, layers: 28, moved: 13..14 },
    Case { name: "4 layers of 28", row: None, layers: 28, moved: 21..25 },
    Case { name: "7 layers of 28", row: None, layers: 28, moved: 14..21 },
    Case { name: "14 layers of 28", row: None, layers: 28, moved: 0..14 },
    Case {
        name: "Qwen3-0.6B, 1.75 MiB a page",
        row: Some("ship-4096-qwen3-0.6b"),
        layers: 28,
        moved: 0..28,
    },
    Case {
        name: "Qwen3-8B, 2.25 MiB a page",
        row: Some("ship-4096-qwen3-8b"),
        layers: 36,
        moved: 0..36,
    },
];

/// The whole pages of Qwen3-0.6B.
pub const WHOLE: usize = 5;

/// The case of this number.
pub fn case(number: usize) -> anyhow::Result<&'static Case> {
    CASES.get(number).context("no such case")
}

impl Case {
    pub fn geometry(&self) -> KvGeometry {
        let (layers, dtype) = (self.layers, KvDtype::Bf16);
        KvGeometry { layers, kv_heads: 8, head_dim: 128, page_tokens: 16, dtype }
    }

    pub fn bytes(&self) -> Range<usize> {
        self.geometry().layers_range(&self.moved)
    }

    /// Whether pages are moved whole, so that neighbours are one run.
    pub fn is_whole(&self) -> bool {
        self.moved == (0..self.layers)
    }

    /// Bytes of a put.
    pub fn moved_bytes(&self) -> f64 {
        self.bytes().len() as f64 * f64::from(MOVED)
    }

    pub fn shape(&self) -> KvShape {
        let geometry = self.geometry();
        KvShape {
            layers: geometry.layers as usize,
            kv_heads: geometry.kv_heads as usize,
            head_dim: geometry.head_dim as usize,
            page_tokens: geometry.page_tokens as usize,
        }
    }

    /// A pool on `device`, its pages filled but for those where pages are gathered. Pools of
    /// different seeds differ in every word.
    pub fn pool(&self, device: &Device, seed: u64) -> anyhow::Result<Arc<PagePool>> {
        let pool = PagePool::new(device, self.shape(), POOL)?;
        for page in (0..DRAWN).chain([SPOILED]) {
            let word =
                |at: u64| (at ^ seed ^ u64::from(page) << 32).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let bytes: Vec<u8> =
                (0..pool.page_bytes() as u64 / 8).flat_map(|at| word(at).to_le_bytes()).collect();
            pool.write(page, 0..bytes.len(), &bytes)?;
        }
        Ok(Arc::new(pool))
    }
}

/// A put's (source, target) pages, in runs of `run` neighbours that are scattered over both pools;
/// `run` divides [`MOVED`].
pub fn pairs(run: u32) -> Vec<(PageId, PageId)> {
    let starts = scattered(DRAWN / run, (MOVED / run) as usize);
    let page = |start: PageId, step| PageId::new(start.get() * run + step);
    let run = |(from, to)| (0..run).map(move |step| (page(from, step), page(to, step)));
    starts.into_iter().flat_map(run).collect()
}

/// Where pages are gathered: the last ones, in order, at both ends.
pub fn gathered() -> impl Iterator<Item = u32> {
    DRAWN..SPOILED
}

/// Pairs that put other bytes where those of `pairs` land, within the target's pool.
pub fn spoil(pairs: &[(PageId, PageId)]) -> Vec<(u32, u32)> {
    pairs.iter().map(|(_, target)| (SPOILED, target.get())).collect()
}

/// A sum of the bytes of each of these pages.
pub fn digests(
    pool: &PagePool,
    pages: impl Iterator<Item = PageId>,
    bytes: &Range<usize>,
) -> anyhow::Result<Vec<u64>> {
    let mut page_bytes = vec![0; bytes.len()];
    pages
        .map(|page| {
            pool.read(page.get(), bytes.clone(), &mut page_bytes)?;
            let words = page_bytes.chunks_exact(8).filter_map(|word| word.try_into().ok());
            let mix =
                |sum: u64, word| (sum ^ u64::from_le_bytes(word)).wrapping_mul(0x100_0000_01B3);
            Ok(words.fold(0xCBF2_9CE4_8422_2325, mix))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn runs_are_neighbours_at_both_ends_and_no_page_is_taken_twice() {
        for run in [1, 16, MOVED] {
            let pairs = pairs(run);
            assert_eq!(pairs.len(), MOVED as usize);
            for chunk in pairs.chunks(run as usize) {
                let follows = |pair: &[(PageId, PageId)]| {
                    let [(a, b), (c, d)] = [pair[0], pair[1]];
                    c.get() == a.get() + 1 && d.get() == b.get() + 1
                };
                assert!(chunk.windows(2).all(follows));
            }
            let targets: HashSet<_> = pairs.iter().map(|pair| pair.1).collect();
            assert_eq!(targets.len(), MOVED as usize);
            assert!(pairs.iter().all(|(from, to)| from.get() < DRAWN && to.get() < DRAWN));
        }
    }
}
