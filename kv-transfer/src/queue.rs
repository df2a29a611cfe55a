//! The order of a link's work: planned puts and flushes, first in, first out.
//!
//! Life of an operation:
//! 1. queued;
//! 2. taken: a put piece by piece, a contiguous copy of at most so many bytes each; a flush whole.
//!    Operations behind it may be taken meanwhile;
//! 3. done, when the link said so of everything taken of it ([`Queue::done`]);
//! 4. ended, in the order of queueing, by [`Queue::ended`], or all at once by [`Queue::close`].
//!
//! Offsets are from the start of each pool, which is page-major.

use crate::plan::{Pools, Run};
use crate::{Event, OpId, Part, PutOp, TransferError};
use kernels::cuda::stream::Mark;
use shared::ids::PageId;
use std::any::Any;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

/// An operation's place in a link's order, from 0.
pub(crate) type Number = u64;

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
    Piece(Number, Piece),
    Flush(Number),
}

/// The largest piece to give.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit {
    pub(crate) bytes: usize,
    /// Whether it may go from one page into the next.
    pub(crate) across_pages: bool,
}

struct Item {
    id: OpId,
    kind: ItemKind,
    /// Pieces, or the flush, taken and not done.
    pending: usize,
    result: Result<(), TransferError>,
}

/// What a piece whose bytes may not be there yet waits for.
pub(crate) struct Ahead {
    /// Its bytes are there after this.
    pub(crate) after: Arc<Mark>,
    /// The last bytes of its put are there after this; absent if that is the same mark.
    pub(crate) last: Option<Arc<Mark>>,
}

/// A run, and what its bytes are complete after.
struct Waiting {
    run: Run,
    after: Option<Arc<Mark>>,
}

enum ItemKind {
    Put { owner: Box<dyn Any + Send>, runs: VecDeque<Waiting>, taken: usize, begun: bool },
    Flush,
}

/// Queued work of one link.
pub(crate) struct Queue {
    pools: Pools,
    items: VecDeque<Item>,
    /// Number of the front item.
    front: Number,
    /// Items at the front of which everything was taken.
    taken: usize,
}

impl Queue {
    pub(crate) fn new(pools: Pools) -> Self {
        Self { pools, items: VecDeque::new(), front: 0, taken: 0 }
    }

    pub(crate) fn pools(&self) -> &Pools {
        &self.pools
    }

    /// Operations that have not ended.
    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    pub(crate) fn put(&mut self, op: PutOp) {
        let plan = |part: &Part| {
            let after = |run| Waiting { run, after: part.after.clone() };
            Ok(self.pools.plan(&op.pages, &part.bytes)?.into_iter().map(after).collect::<Vec<_>>())
        };
        let planned: Result<Vec<_>, TransferError> = op.parts.iter().map(plan).collect();
        let (runs, result) = match planned {
            Ok(runs) => (runs.into_iter().flatten().collect(), Ok(())),
            Err(error) => (VecDeque::new(), Err(error)),
        };
        let kind = ItemKind::Put { owner: op.owner, runs, taken: 0, begun: false };
        self.items.push_back(Item { id: op.id, kind, pending: 0, result });
    }

    pub(crate) fn flush(&mut self, id: OpId) {
        self.items.push_back(Item { id, kind: ItemKind::Flush, pending: 0, result: Ok(()) });
    }

    /// Takes the next piece or flush; none while the next piece's bytes are not there yet.
    pub(crate) fn next(&mut self, limit: Limit) -> Option<Next> {
        self.is_ready().then(|| self.next_ahead(limit)).flatten().map(|(next, _)| next)
    }

    /// Whether the next piece's bytes are there.
    fn is_ready(&mut self) -> bool {
        let Some(item) = self.items.get_mut(self.taken) else { return false };
        let ItemKind::Put { runs, .. } = &mut item.kind else { return true };
        let after = runs.front().and_then(|waiting| waiting.after.clone());
        match after.map(|mark| (mark.reached(), mark)) {
            None => true,
            Some((Ok(false), _)) => false,
            Some((Ok(true), mark)) => {
                let same = |w: &mut Waiting| w.after.take_if(|m| Arc::ptr_eq(m, &mark)).is_some();
                runs.iter_mut().map_while(|waiting| same(waiting).then_some(())).for_each(drop);
                true
            }
            Some((Err(error), _)) => {
                item.result = Err(TransferError::broken(&error));
                runs.clear();
                true
            }
        }
    }

    /// Takes the next piece or flush, and what a piece waits for: for who can have the copy itself
    /// wait for it.
    pub(crate) fn next_ahead(&mut self, limit: Limit) -> Option<(Next, Option<Ahead>)> {
        let page_bytes = self.pools.geometry.page_bytes();
        loop {
            let number = self.front + self.taken as Number;
            let item = self.items.get_mut(self.taken)?;
            let ahead = item.ahead();
            let (next, rest) = item.take(number, page_bytes, limit);
            if !rest {
                self.taken += 1;
            }
            if let Some(next) = next {
                return Some((next, ahead));
            }
        }
    }

    /// One piece of that put, or that flush, is done.
    pub(crate) fn done(&mut self, number: Number) {
        let at = number.checked_sub(self.front).and_then(|at| usize::try_from(at).ok());
        let item = at.and_then(|at| self.items.get_mut(at));
        let item = item.expect("an operation stays until everything taken of it is done");
        item.pending = item.pending.checked_sub(1).expect("done as often as taken");
    }

    /// Moves operations that are done, and before which none is not, to `events`.
    pub(crate) fn ended(&mut self, events: &mut Vec<Event>) {
        while self.taken > 0 && self.items.front().is_some_and(|item| item.pending == 0) {
            self.taken -= 1;
            self.front += 1;
            events.extend(self.items.pop_front().map(|item| {
                let result = item.result.clone();
                item.end(result)
            }));
        }
    }

    /// Ends everything: what is done as it is, the rest with [`TransferError::Closed`].
    pub(crate) fn close(self) -> Vec<Event> {
        let end = |(at, item): (usize, Item)| {
            let done = item.result.is_err() || (at < self.taken && item.pending == 0);
            let result = if done { item.result.clone() } else { Err(TransferError::Closed) };
            item.end(result)
        };
        self.items.into_iter().enumerate().map(end).collect()
    }
}

impl Item {
    /// What its next piece waits for.
    fn ahead(&self) -> Option<Ahead> {
        let ItemKind::Put { runs, .. } = &self.kind else { return None };
        let after = runs.front()?.after.clone()?;
        let last = runs.back()?.after.clone().filter(|last| !Arc::ptr_eq(last, &after));
        Some(Ahead { after, last })
    }

    /// Takes what is next of it, and says whether something is left after that.
    fn take(&mut self, number: Number, page_bytes: usize, limit: Limit) -> (Option<Next>, bool) {
        match &mut self.kind {
            ItemKind::Flush => {
                self.pending = 1;
                (Some(Next::Flush(number)), false)
            }
            ItemKind::Put { runs, taken, begun, .. } => {
                let Some(Waiting { run, .. }) = runs.front() else { return (None, false) };
                let first = !std::mem::replace(begun, true);
                let piece = run.piece(*taken, page_bytes, limit, first);
                *taken += piece.len;
                if *taken == run.len() {
                    *taken = 0;
                    runs.pop_front();
                }
                self.pending += 1;
                (Some(Next::Piece(number, piece)), !runs.is_empty())
            }
        }
    }

    fn end(self, result: Result<(), TransferError>) -> Event {
        match self.kind {
            ItemKind::Put { owner, .. } => Event::Put { id: self.id, owner, result },
            ItemKind::Flush => Event::Flush { id: self.id, result },
        }
    }
}

impl Run {
    /// The piece that follows the first `taken` bytes.
    fn piece(&self, taken: usize, page_bytes: usize, limit: Limit, first: bool) -> Piece {
        let start = self.bytes.start + taken;
        let in_page = page_bytes - start % page_bytes;
        let most = if limit.across_pages { limit.bytes } else { limit.bytes.min(in_page) };
        Piece {
            source: self.source.get() as usize * page_bytes + start,
            target: self.target.get() as usize * page_bytes + start,
            len: most.min(self.len() - taken),
            first,
        }
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
            across_pages in any::<bool>(),
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
            queue.put(PutOp::new(OpId::new(1), pages, bytes, Box::new(())));
            queue.flush(OpId::new(2));
            let mut events = Vec::new();
            let (mut firsts, mut numbers) = (0, Vec::new());
            while let Some(next) = queue.next(Limit { bytes: limit, across_pages }) {
                queue.ended(&mut events);
                prop_assert!(events.len() <= usize::from(pairs.is_empty()), "nothing is done");
                match next {
                    Next::Piece(number, piece) => {
                        numbers.push(number);
                        firsts += usize::from(piece.first);
                        prop_assert!(piece.len <= limit);
                        let cut: Vec<_> = by_page(page, piece.target, piece.len).collect();
                        prop_assert!(across_pages || cut.len() == 1);
                        for (page_id, within, whole) in cut {
                            let to = page_id.get() as usize * page + within.start;
                            let from = piece.source + whole.start;
                            let count = whole.len();
                            target[to..to + count].copy_from_slice(&source[from..from + count]);
                        }
                    }
                    Next::Flush(number) => numbers.push(number),
                }
            }
            prop_assert_eq!(target, model);
            prop_assert_eq!(firsts, usize::from(!pairs.is_empty()));
            // Done in any order, ended in the order of queueing.
            for number in numbers.into_iter().rev() {
                queue.ended(&mut events);
                queue.done(number);
            }
            queue.ended(&mut events);
            let ids: Vec<_> = events.iter().map(|event| event.id().get()).collect();
            prop_assert_eq!(ids, [1, 2]);
            prop_assert_eq!(queue.len(), 0);
        }
    }

    #[test]
    fn what_is_left_ends_closed_and_gives_its_owner_back() {
        let mut queue = Queue::new(pools());
        let page = (PageId::new(1), PageId::new(2));
        let put = |id, bytes| {
            PutOp::new(OpId::new(id), vec![page], bytes, Box::new(format!("owner of {id}")))
        };
        queue.put(put(1, 0..64));
        queue.put(put(2, 0..65));
        queue.flush(OpId::new(3));
        let limit = Limit { bytes: 10, across_pages: true };
        assert!(matches!(queue.next(limit), Some(Next::Piece(0, _))));
        let mut events = Vec::new();
        queue.ended(&mut events);
        assert!(events.is_empty());
        events.extend(queue.close());
        let ids: Vec<_> = events.iter().map(|event| event.id().get()).collect();
        assert_eq!(ids, [1, 2, 3]);
        for event in events {
            assert!(event.result().is_err());
            if let Event::Put { id, owner, .. } = event {
                assert_eq!(*owner.downcast::<String>().unwrap(), format!("owner of {}", id.get()));
            }
        }
    }
}
