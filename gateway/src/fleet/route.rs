//! Walk 4/12. Before: `tokenize.rs`. After: `ticket.rs`.
//!
//! Picks the (prefill, decode) pair of a request: the interface is a policy over what is known of
//! every server; the one policy for now adds up the tokens that must be computed.

use foldhash::fast::RandomState;
use shared::ids::{Epoch, ServerId};
use shared::page_hash::{PageHash, PageHasher};
use shared::request::Request;
use shared::wire::handshake::Layout;
use shared::wire::messages::Load;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// A prefill server that could take the request.
#[derive(Debug, Clone)]
pub struct PrefillView {
    /// Its name.
    pub id: ServerId,
    /// Its incarnation.
    pub epoch: Epoch,
    /// How busy it is.
    pub load: Load,
    /// Decode incarnations it can write to.
    pub joined: Arc<HashSet<Epoch>>,
    /// Leading tokens of the prompt that it probably holds.
    pub overlap: u32,
}

/// A decode server that could take the request.
#[derive(Debug, Clone)]
pub struct DecodeView {
    /// Its name.
    pub id: ServerId,
    /// Its incarnation.
    pub epoch: Epoch,
    /// How busy it is.
    pub load: Load,
}

/// Chooses among pairs that are joined.
pub trait Policy: Send + Sync {
    /// Indexes of the chosen pair, or `None` if no prefill has joined any of the decode servers.
    fn pick(
        &self,
        request: &Request,
        prefill: &[PrefillView],
        decode: &[DecodeView],
    ) -> Option<(usize, usize)>;
}

/// Least tokens to compute before this request's first token; then the decode server with the
/// fewest running tokens; ties by the most free pages.
#[derive(Debug, Default)]
pub struct LeastTokens;

impl Policy for LeastTokens {
    fn pick(
        &self,
        request: &Request,
        prefill: &[PrefillView],
        decode: &[DecodeView],
    ) -> Option<(usize, usize)> {
        let to_compute = |p: &PrefillView| {
            let missing = (request.tokens.len() as u32).saturating_sub(p.overlap);
            u64::from(p.load.tokens) + u64::from(missing)
        };
        let busy = |d: &DecodeView| (d.load.tokens, std::cmp::Reverse(d.load.pages_available));
        let pairs = prefill.iter().enumerate().flat_map(|(i, p)| {
            let reachable = decode.iter().enumerate().filter(|(_, d)| p.joined.contains(&d.epoch));
            reachable.map(move |(j, d)| ((to_compute(p), busy(d)), (i, j)))
        });
        pairs.min_by_key(|(cost, _)| *cost).map(|(_, pair)| pair)
    }
}

/// What each prefill incarnation has probably cached: the page hashes of prompts sent to it.
///
/// Two generations stand in for recency: when the young one is full it becomes the old one.
#[derive(Debug, Default)]
pub struct Seen {
    by_server: HashMap<Epoch, Generations>,
}

#[derive(Debug, Default)]
struct Generations {
    young: HashSet<PageHash, RandomState>,
    old: HashSet<PageHash, RandomState>,
}

/// Hashes of one generation: with 16 bytes each and two generations, 8 MiB a server at most.
const GENERATION: usize = 1 << 17;

impl Seen {
    /// Leading pages of `hashes` that were sent to `server` before.
    pub fn overlap(&self, server: Epoch, hashes: &[PageHash]) -> u32 {
        let Some(seen) = self.by_server.get(&server) else { return 0 };
        let known = |hash: &&PageHash| seen.young.contains(*hash) || seen.old.contains(*hash);
        hashes.iter().take_while(known).count() as u32
    }

    /// Remembers that a prompt with these pages goes to `server`.
    pub fn remember(&mut self, server: Epoch, hashes: &[PageHash]) {
        let seen = self.by_server.entry(server).or_default();
        if seen.young.len() + hashes.len() > GENERATION {
            seen.old = std::mem::take(&mut seen.young);
        }
        seen.young.extend(hashes.iter().take(GENERATION));
    }

    /// Forgets all servers but these.
    pub fn keep(&mut self, servers: &[Epoch]) {
        self.by_server.retain(|server, _| servers.contains(server));
    }

    /// Forgets a server that dropped its cache.
    pub fn forget(&mut self, server: Epoch) {
        self.by_server.remove(&server);
    }
}

/// Page hashes of one request's prompt, computed once for each layout in a row: a request that
/// waits looks at the same servers again and again.
#[derive(Debug, Default)]
pub struct Hashes(Option<(Layout, Vec<PageHash>)>);

impl Hashes {
    /// Those of `request` in pages of `layout`.
    pub fn of(&mut self, request: &Request, layout: &Layout) -> &[PageHash] {
        let known = self.0.take().filter(|(known, _)| known == layout);
        let compute =
            || (*layout, page_hashes(request, &layout.model, layout.geometry.page_tokens));
        &self.0.insert(known.unwrap_or_else(compute)).1
    }
}

fn page_hashes(request: &Request, model: &[u8; 32], page_tokens: u32) -> Vec<PageHash> {
    PageHasher::new(model, &request.salt).pages(&request.tokens, page_tokens)
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::ids::TokenId;
    use shared::request::{RequestParts, Sampling};

    fn request(len: usize) -> Request {
        let parts = RequestParts {
            tokens: (0..len as u32).map(TokenId::new).collect(),
            prompt_len: len as u32,
            max_tokens: 4,
            min_tokens: 0,
            sampling: Sampling::GREEDY,
            logit_bias: vec![],
            stop_ids: vec![],
            logprobs: None,
            logprob_ids: Vec::new(),
            salt: String::new(),
            priority: 0,
            grammar: None,
            reads: None,
        };
        parts.try_into().unwrap()
    }

    fn prefill(epoch: u64, tokens: u32, overlap: u32, joined: &[u64]) -> PrefillView {
        let load = Load { tokens, ..Load::default() };
        let joined = Arc::new(joined.iter().map(|&e| Epoch::new(e)).collect());
        let id = ServerId::new(format!("p{epoch}")).unwrap();
        PrefillView { id, epoch: Epoch::new(epoch), load, joined, overlap }
    }

    fn decode(epoch: u64, tokens: u32) -> DecodeView {
        let load = Load { tokens, ..Load::default() };
        DecodeView {
            id: ServerId::new(format!("d{epoch}")).unwrap(),
            epoch: Epoch::new(epoch),
            load,
        }
    }

    #[test]
    fn picks_the_least_work_among_joined_pairs() {
        let check = |prefill: &[PrefillView], decode: &[DecodeView], expect| {
            assert_eq!(LeastTokens.pick(&request(100), prefill, decode), expect);
        };
        let decodes = [decode(10, 500), decode(11, 20)];
        check(&[prefill(1, 0, 0, &[10, 11])], &decodes, Some((0, 1)));
        check(&[prefill(1, 0, 0, &[10])], &decodes, Some((0, 0)));
        check(&[prefill(1, 0, 0, &[99])], &decodes, None);
        check(&[prefill(1, 50, 0, &[11]), prefill(2, 80, 96, &[11])], &decodes, Some((1, 1)));
        check(&[], &decodes, None);
    }

    #[test]
    fn overlap_ends_at_the_first_unknown_page_and_dies_with_the_server() {
        let (mut seen, server) = (Seen::default(), Epoch::new(1));
        let hashes = page_hashes(&request(64), &[0; 32], 16);
        assert_eq!(hashes.len(), 4);
        seen.remember(server, &hashes[..2]);
        assert_eq!(seen.overlap(server, &hashes), 2);
        assert_eq!(seen.overlap(server, &hashes[1..]), 1);
        assert_eq!(seen.overlap(server, &hashes[2..]), 0);
        seen.forget(server);
        assert_eq!(seen.overlap(server, &hashes), 0);
    }
}
