//! The order of a link's work: planned puts and flushes, first in, first out.
//!
//! A link asks for the next piece, a contiguous copy of at most so many bytes, and says when a
//! put's pieces are done with. Offsets are from the start of each pool, which is page-major.

use crate::plan::{Pools, Run};
use crate::{Event, OpId, PutOp, TransferError};
use shared::ids::PageId;
use std::any::Any;
use std::collections::VecDeque;
use std::ops::Range;

/// One contiguous copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Byte offset in the source's pool.
    pub(crate) source: usize,
    /// Byte offset in the target's pool.
    pub(crate) target: usize,
    /// Bytes, at least 1.
    pub(crate) len: usize,
    /// Whether it is its put's first.
    pub(crate) first: bool,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Piece(Piece),
    Flush(OpId),
}

struct Put {
    id: OpId,
    owner: Box<dyn Any + Send>,
    runs: VecDeque<Run>,
    /// Bytes of the front run already taken.
    taken: usize,
    begun: bool,
}

enum Item {
    Put(Put),
    Flush(OpId),
}

/// Queued work of one link.
pub(crate) struct Queue {
    pools: Pools,
    items: VecDeque<Item>,
    /// Events of operations that moved nothing.
    refused: Vec<Event>,
}

impl Queue {
    pub(crate) fn new(pools: Pools) -> Self {
        Self { pools, items: VecDeque::new(), refused: Vec::new() }
    }

    pub(crate) fn pools(&self) -> &Pools {
        &self.pools
    }

    /// Operations whose events did not come out of here yet.
    pub(crate) fn len(&self) -> usize {
        self.items.len() + self.refused.len()
    }

    pub(crate) fn put(&mut self, op: PutOp) {
        let planned = self.pools.plan(&op);
        let PutOp { id, owner, .. } = op;
        match planned {
            Ok(runs) => {
                let runs = runs.into();
                self.items.push_back(Item::Put(Put { id, owner, runs, taken: 0, begun: false }));
            }
            Err(error) => self.refused.push(Event::Put { id, owner, result: Err(error) }),
        }
    }

    pub(crate) fn flush(&mut self, id: OpId) {
        self.items.push_back(Item::Flush(id));
    }

    /// The next piece of at most `limit` bytes, or flush. The pieces taken before must be done
    /// with: puts of which nothing is left end in `events` on the way.
    pub(crate) fn next(&mut self, limit: usize, events: &mut Vec<Event>) -> Option<Next> {
        self.finish_done(events);
        match self.items.front_mut()? {
            Item::Flush(id) => {
                let id = *id;
                self.items.pop_front();
                Some(Next::Flush(id))
            }
            Item::Put(put) => put.next(self.pools.geometry.page_bytes(), limit).map(Next::Piece),
        }
    }

    /// Ends puts at the front that have no pieces left; all taken ones must be done with.
    pub(crate) fn finish_done(&mut self, events: &mut Vec<Event>) {
        events.append(&mut self.refused);
        while matches!(self.items.front(), Some(Item::Put(put)) if put.runs.is_empty()) {
            self.finish_front(Ok(()), events);
        }
    }

    /// Ends everything with [`TransferError::Closed`].
    pub(crate) fn close(mut self) -> Vec<Event> {
        let mut events = std::mem::take(&mut self.refused);
        while !self.items.is_empty() {
            self.finish_front(Err(TransferError::Closed), &mut events);
        }
        events
    }

    fn finish_front(&mut self, result: Result<(), TransferError>, events: &mut Vec<Event>) {
        events.extend(self.items.pop_front().map(|item| match item {
            Item::Put(Put { id, owner, .. }) => Event::Put { id, owner, result },
            Item::Flush(id) => Event::Flush { id, result },
        }));
    }
}

impl Put {
    fn next(&mut self, page_bytes: usize, limit: usize) -> Option<Piece> {
        let run = self.runs.front()?;
        let (start, total) = (run.bytes.start + self.taken, run.len());
        let piece = Piece {
            source: run.source.get() as usize * page_bytes + start,
            target: run.target.get() as usize * page_bytes + start,
            len: limit.min(total - self.taken),
            first: !std::mem::replace(&mut self.begun, true),
        };
        self.taken += piece.len;
        if self.taken == total {
            self.taken = 0;
            self.runs.pop_front();
        }
        Some(piece)
    }
}

/// Cuts `len` bytes from offset `at` of a pool into pages: each page, the range within it, and the
/// range within the whole.
pub(crate) fn by_page(
    page_bytes: usize,
    at: usize,
    len: usize,
) -> impl Iterator<Item = (PageId, Range<usize>, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let page = u32::try_from((at + done) / page_bytes).expect("checked against the pool");
        let start = (at + done) % page_bytes;
        let count = (page_bytes - start).min(len - done);
        done += count;
        Some((PageId::new(page), start..start + count, done - count..done))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use shared::kv::{KvDtype, KvGeometry};

    fn pools() -> Pools {
        let geometry =
            KvGeometry { layers: 2, kv_heads: 1, head_dim: 2, page_tokens: 2, dtype: KvDtype::F32 };
        Pools { geometry, source_pages: 20, target_pages: 20 }
    }

    proptest! {
        /// Beside the naive model: pieces of any size copy the very bytes of the very pages.
        #[test]
        fn pieces_copy_what_was_asked(
            pairs in prop::collection::vec((0u32..20, 0u32..20), 0..12),
            start in 0usize..63,
            more in 1usize..64,
            limit in 1usize..200,
        ) {
            let page = pools().geometry.page_bytes();
            let bytes = if start % 3 == 0 { 0..page } else { start..(start + more).min(page) };
            let source: Vec<u32> = (0..20 * page as u32).collect();
            let (mut target, mut model) = (vec![0; 20 * page], vec![0; 20 * page]);
            for &(from, to) in &pairs {
                for at in bytes.clone() {
                    model[to as usize * page + at] = source[from as usize * page + at];
                }
            }
            let mut queue = Queue::new(pools());
            let pages = pairs.iter().map(|&(s, t)| (PageId::new(s), PageId::new(t))).collect();
            queue.put(PutOp { id: OpId::new(1), pages, bytes, owner: Box::new(()) });
            queue.flush(OpId::new(2));
            let mut events = Vec::new();
            let mut firsts = 0;
            while let Some(next) = queue.next(limit, &mut events) {
                match next {
                    Next::Piece(piece) => {
                        firsts += usize::from(piece.first);
                        prop_assert!(piece.len <= limit && events.is_empty());
                        for (page_id, within, whole) in by_page(page, piece.target, piece.len) {
                            let to = page_id.get() as usize * page + within.start;
                            let from = piece.source + whole.start;
                            let count = whole.len();
                            target[to..to + count].copy_from_slice(&source[from..from + count]);
                        }
                    }
                    Next::Flush(id) => prop_assert_eq!(id, OpId::new(2)),
                }
            }
            prop_assert_eq!(target, model);
            prop_assert_eq!(firsts, usize::from(!pairs.is_empty()));
            prop_assert_eq!(events.len(), 1);
            prop_assert_eq!(queue.len(), 0);
        }
    }

    #[test]
    fn what_is_left_ends_closed_and_gives_its_owner_back() {
        let mut queue = Queue::new(pools());
        let page = (PageId::new(1), PageId::new(2));
        let put = |id, bytes| PutOp {
            id: OpId::new(id),
            pages: vec![page],
            bytes,
            owner: Box::new(format!("owner of {id}")),
        };
        queue.put(put(1, 0..64));
        queue.put(put(2, 0..65));
        queue.flush(OpId::new(3));
        let mut events = Vec::new();
        assert!(matches!(queue.next(10, &mut events), Some(Next::Piece(_))));
        assert_eq!(events.len(), 1, "the one out of bounds");
        events.extend(queue.close());
        let ids: Vec<_> = events.iter().map(|event| event.id().get()).collect();
        assert_eq!(ids, [2, 1, 3]);
        for event in events {
            assert!(event.result().is_err());
            if let Event::Put { id, owner, .. } = event {
                assert_eq!(*owner.downcast::<String>().unwrap(), format!("owner of {}", id.get()));
            }
        }
    }
}
