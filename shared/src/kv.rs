//! KV geometry: the only arithmetic from (page, layer, K or V, head) to a byte offset.
//!
//! Layout, outermost first. Pool: `[page]`; page: `[layer][K|V][kv_head][token][head_dim]`.
//! All layers of a page are adjacent (page-major), so a page, a layer range of a page, and a head
//! range of one layer's K or V are each one contiguous run. Copies are counted, not bytes.

use crate::ids::PageId;
use serde::{Deserialize, Serialize};
use std::io::IoSliceMut;
use std::ops::Range;

/// Element type of keys and values in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum KvDtype {
    /// IEEE single precision.
    F32,
    /// bfloat16.
    Bf16,
}

impl KvDtype {
    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// Keys or values of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvPart {
    /// Keys.
    K,
    /// Values.
    V,
}

/// Shape of a page; equal on both ends of a handoff or the join is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KvGeometry {
    /// Transformer layers.
    pub layers: u32,
    /// Key/value heads (GQA groups).
    pub kv_heads: u32,
    /// Elements of one head.
    pub head_dim: u32,
    /// Tokens of one page.
    pub page_tokens: u32,
    /// Element type.
    pub dtype: KvDtype,
}

impl KvGeometry {
    /// Bytes of one head's tokens: `[token][head_dim]`.
    pub const fn head_bytes(&self) -> usize {
        self.page_tokens as usize * self.head_dim as usize * self.dtype.bytes()
    }
    /// Bytes of one layer's K or V in a page.
    pub const fn part_bytes(&self) -> usize {
        self.kv_heads as usize * self.head_bytes()
    }
    /// Bytes of one layer (K and V) in a page.
    pub const fn layer_bytes(&self) -> usize {
        2 * self.part_bytes()
    }
    /// Bytes of a page.
    pub const fn page_bytes(&self) -> usize {
        self.layers as usize * self.layer_bytes()
    }
    /// Pages that `tokens` tokens take.
    pub const fn pages_for(&self, tokens: u32) -> u32 {
        tokens.div_ceil(self.page_tokens)
    }
    /// Offset within a page of `[token][head_dim]` of one head.
    pub const fn head_offset(&self, layer: u32, part: KvPart, head: u32) -> usize {
        let part = match part {
            KvPart::K => 0,
            KvPart::V => self.part_bytes(),
        };
        layer as usize * self.layer_bytes() + part + head as usize * self.head_bytes()
    }
    /// The bytes of a layer range within a page.
    pub const fn layers_range(&self, layers: &Range<u32>) -> Range<usize> {
        layers.start as usize * self.layer_bytes()..layers.end as usize * self.layer_bytes()
    }
    /// Offset of a page in its pool.
    pub const fn page_offset(&self, page: PageId) -> usize {
        page.get() as usize * self.page_bytes()
    }
    /// Why these numbers cannot be a geometry, if they cannot: every field 1 to 65,536 and a page
    /// at most 1 GiB, so that no later product overflows.
    pub fn invalid(&self) -> Option<&'static str> {
        const MAX: u32 = 1 << 16;
        let fields = [self.layers, self.kv_heads, self.head_dim, self.page_tokens];
        if fields.iter().any(|&n| n == 0 || n > MAX) {
            return Some("layers, kv_heads, head_dim and page_tokens must be 1 to 65536");
        }
        let bytes = fields.iter().map(|&n| u128::from(n)).product::<u128>() * 8;
        (bytes > 1 << 30).then_some("a page must be at most 1 GiB")
    }
}

/// Read and write one page's bytes: all that the loopback and TCP transports need of a pool.
///
/// Implementations are shared between the engine thread and transport threads. Who may touch which
/// page when is decided by the page pool's guards; an implementation reports a conflict by panic,
/// since it is a bug and never a condition.
pub trait PageStore: Send + Sync {
    /// Shape of every page.
    fn geometry(&self) -> &KvGeometry;
    /// Pages in the store; ids are `0..pages()`.
    fn pages(&self) -> u32;
    /// Copies `range` of the page's bytes into `into`, which is `range.len()` long.
    ///
    /// # Panics
    /// If the page or the range is out of bounds, or the page is being written.
    fn read(&self, page: PageId, range: Range<usize>, into: &mut [u8]);
    /// Lends `range` of the page's bytes to `with`, once, as slices in order: for a transport that
    /// hands bytes on without a copy of its own. A store that has no slices to lend copies.
    ///
    /// # Panics
    /// As [`Self::read`].
    fn lend(&self, page: PageId, range: Range<usize>, with: &mut dyn FnMut(&[&[u8]])) {
        let mut copy = vec![0; range.len()];
        self.read(page, range, &mut copy);
        with(&[&copy]);
    }
    /// Copies `from` over `range` of the page's bytes.
    ///
    /// # Panics
    /// If the page or the range is out of bounds, or the page is being read or written.
    fn write(&self, page: PageId, range: Range<usize>, from: &[u8]);
    /// Lends `range` of the page's bytes to `with`, once, to write what it likes of them: for a
    /// transport that receives without a copy of its own. A store without slices to lend copies.
    ///
    /// # Panics
    /// As [`Self::write`].
    fn lend_mut(
        &self,
        page: PageId,
        range: Range<usize>,
        with: &mut dyn FnMut(&mut [IoSliceMut<'_>]),
    ) {
        let mut copy = vec![0; range.len()];
        self.read(page, range.clone(), &mut copy);
        with(&mut [IoSliceMut::new(&mut copy)]);
        self.write(page, range, &copy);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_tile_the_page() {
        let geometry = KvGeometry {
            layers: 3,
            kv_heads: 2,
            head_dim: 4,
            page_tokens: 16,
            dtype: KvDtype::Bf16,
        };
        let mut expected = 0;
        for layer in 0..3 {
            for part in [KvPart::K, KvPart::V] {
                for head in 0..2 {
                    assert_eq!(geometry.head_offset(layer, part, head), expected);
                    expected += geometry.head_bytes();
                }
            }
        }
        assert_eq!(geometry.page_bytes(), expected);
        assert_eq!(geometry.layers_range(&(1..3)), geometry.layer_bytes()..expected);
        assert_eq!([1, 16, 17].map(|t| geometry.pages_for(t)), [1, 1, 2]);
    }
}
