//! The tree under the radix cache: nodes in an arena, one root a salt, leaves in eviction order.
//!
//! Invariants: a node has at least one page and `page_tokens` tokens a page; siblings differ in
//! their first page, which is their key; a node is in `leaves` exactly if it has no children, under
//! its usage's rank; a salt has a root exactly while it has nodes.

use crate::eviction::{Eviction, Inserted, Usage};
use crate::ids::TokenId;
use crate::pool::CachedRun;
use std::collections::{BTreeSet, HashMap};
use std::mem;
use std::sync::Arc;
use std::time::Duration;

/// A node's place in the arena.
pub(super) type Slot = usize;
/// Tokens and pages of an edge.
pub(super) type Edge = (Vec<TokenId>, CachedRun);
/// Children by the tokens of their first page.
type Children = HashMap<Box<[TokenId]>, Slot>;

#[derive(Clone)]
enum Parent {
    Root(Arc<str>),
    Node(Slot),
}

struct Node {
    parent: Parent,
    tokens: Vec<TokenId>,
    run: CachedRun,
    children: Children,
    usage: Usage,
}

pub(super) struct Tree {
    page_tokens: usize,
    policy: Box<dyn Eviction>,
    roots: HashMap<Arc<str>, Children>,
    nodes: Vec<Option<Node>>,
    vacant: Vec<Slot>,
    leaves: BTreeSet<((u64, u64), Slot)>,
}

impl Tree {
    pub(super) fn new(page_tokens: usize, policy: Box<dyn Eviction>) -> Self {
        Self {
            page_tokens,
            policy,
            roots: HashMap::new(),
            nodes: Vec::new(),
            vacant: Vec::new(),
            leaves: BTreeSet::new(),
        }
    }

    pub(super) const fn page_tokens(&self) -> usize {
        self.page_tokens
    }

    pub(super) fn nodes(&self) -> usize {
        self.nodes.len() - self.vacant.len()
    }

    pub(super) fn run(&self, slot: Slot) -> &CachedRun {
        &self.node(slot).run
    }

    /// Nodes on the path of `tokens`, with the pages matched in each: all of them but in the last.
    pub(super) fn walk(&self, salt: &str, mut tokens: &[TokenId]) -> Vec<(Slot, usize)> {
        let mut path = Vec::new();
        let Some(mut children) = self.roots.get(salt) else { return path };
        while let Some(first) = tokens.get(..self.page_tokens) {
            let Some(&slot) = children.get(first) else { break };
            let node = self.node(slot);
            let pages = self.common_pages(&node.tokens, tokens);
            path.push((slot, pages));
            if pages < node.run.len() {
                break;
            }
            tokens = &tokens[node.tokens.len()..];
            children = &node.children;
        }
        path
    }

    /// As [`Self::walk`], and splits the last edge where the match ends, so that every node of the
    /// path is matched whole.
    pub(super) fn walk_and_split(&mut self, salt: &str, tokens: &[TokenId]) -> Vec<Slot> {
        let path = self.walk(salt, tokens);
        let whole = |(slot, pages)| {
            if pages < self.node(slot).run.len() { self.split(slot, pages) } else { slot }
        };
        path.into_iter().map(whole).collect()
    }

    /// Leading whole pages in which two token slices agree.
    fn common_pages(&self, a: &[TokenId], b: &[TokenId]) -> usize {
        // Differences are or-ed over a page instead of leaving at the first: that vectorises.
        let same = |(a, b): &(&[TokenId], &[TokenId])| {
            a.iter().zip(*b).fold(0, |differ, (a, b)| differ | (a.get() ^ b.get())) == 0
        };
        let pages = a.chunks_exact(self.page_tokens).zip(b.chunks_exact(self.page_tokens));
        pages.take_while(same).count()
    }

    /// Cuts a node's edge after `pages` pages. The new node takes the head and is returned; the
    /// old one keeps the tail, its children and its place among the leaves.
    fn split(&mut self, slot: Slot, pages: usize) -> Slot {
        let at = pages * self.page_tokens;
        let node = self.node_mut(slot);
        let tail = (node.tokens.split_off(at), node.run.split_off(pages));
        let head = (mem::replace(&mut node.tokens, tail.0), mem::replace(&mut node.run, tail.1));
        let (usage, parent) = (node.usage, node.parent.clone());
        let tail_key = self.key(slot);
        let head_slot = self.place(Node {
            parent: parent.clone(),
            tokens: head.0,
            run: head.1,
            children: HashMap::from([(tail_key, slot)]),
            usage,
        });
        self.node_mut(slot).parent = Parent::Node(head_slot);
        let head_key = self.key(head_slot);
        self.children_mut(&parent).insert(head_key, head_slot);
        head_slot
    }

    /// Adds an edge below the node `parent`, or at the top of `salt`'s tree.
    pub(super) fn attach(
        &mut self,
        salt: &str,
        parent: Option<Slot>,
        (tokens, run): Edge,
        Inserted { at, priority }: Inserted,
    ) {
        let parent = match parent {
            Some(slot) => {
                let rank = self.rank(slot);
                self.leaves.remove(&(rank, slot));
                Parent::Node(slot)
            }
            None => Parent::Root(salt.into()),
        };
        let usage = Usage { first: at, last: at, hits: 0, priority };
        let children = HashMap::new();
        let slot = self.place(Node { parent: parent.clone(), tokens, run, children, usage });
        let key = self.key(slot);
        self.children_mut(&parent).insert(key, slot);
        self.leaves.insert((self.rank(slot), slot));
    }

    /// Notes that a node was matched.
    pub(super) fn matched(&mut self, slot: Slot, now: Duration) {
        self.touch(slot, now, |usage| usage.hits += 1);
    }

    /// Notes that a node was inserted again.
    pub(super) fn inserted(&mut self, slot: Slot, Inserted { at, priority }: Inserted) {
        self.touch(slot, at, |usage| usage.priority = usage.priority.max(priority));
    }

    fn touch(&mut self, slot: Slot, now: Duration, note: impl FnOnce(&mut Usage)) {
        let leaf = self.node(slot).children.is_empty();
        if leaf {
            self.leaves.remove(&(self.rank(slot), slot));
        }
        let usage = &mut self.node_mut(slot).usage;
        usage.last = now;
        note(usage);
        if leaf {
            self.leaves.insert((self.rank(slot), slot));
        }
    }

    /// Frees up to `n` idle pages from the ends of leaves, in rank order. A leaf whose last page is
    /// held is passed over.
    pub(super) fn evict_leaves(&mut self, n: u32) -> u32 {
        let mut freed = 0;
        let mut held = Vec::new();
        while freed < n {
            let Some(leaf) = self.leaves.pop_first() else { break };
            let run = &mut self.node_mut(leaf.1).run;
            freed += run.free_tail(n - freed);
            if run.len() == 0 {
                self.remove_leaf(leaf.1);
                continue;
            }
            let at = run.len() * self.page_tokens;
            self.node_mut(leaf.1).tokens.truncate(at);
            held.push(leaf);
        }
        self.leaves.extend(held);
        freed
    }

    /// Frees at least `n` pages that idle above held ones, with all that is below them; returns
    /// (pages freed, pages no longer cached). One pass over the tree: the last resort.
    pub(super) fn evict_buried(&mut self, n: u32) -> (u32, u32) {
        let live = (0..self.nodes.len()).filter(|&slot| self.nodes[slot].is_some());
        let mut ranked: Vec<_> = live.map(|slot| (self.rank(slot), slot)).collect();
        ranked.sort_unstable();
        let (mut freed, mut forgotten) = (0, 0);
        for (_, slot) in ranked {
            if freed >= n {
                break;
            }
            let Some(at) = self.nodes[slot].as_ref().and_then(|node| node.run.first_idle()) else {
                continue;
            };
            let (more_freed, more_forgotten) = self.cut(slot, at);
            freed += more_freed;
            forgotten += more_forgotten;
        }
        (freed, forgotten)
    }

    /// Removes a node's pages from `at` on and everything below it.
    fn cut(&mut self, slot: Slot, at: usize) -> (u32, u32) {
        let (mut freed, mut forgotten) = (0, 0);
        let mut below: Vec<Slot> = self.node(slot).children.values().copied().collect();
        while let Some(child) = below.pop() {
            below.extend(self.node(child).children.values());
            self.leaves.remove(&(self.rank(child), child));
            if let Some(mut node) = self.nodes[child].take() {
                self.vacant.push(child);
                forgotten += node.run.len() as u32;
                freed += node.run.release_from(0);
            }
        }
        let page_tokens = self.page_tokens;
        let node = self.node_mut(slot);
        node.children.clear();
        forgotten += (node.run.len() - at) as u32;
        freed += node.run.release_from(at);
        self.leaves.remove(&(self.rank(slot), slot));
        if at == 0 {
            self.remove_leaf(slot);
        } else {
            self.node_mut(slot).tokens.truncate(at * page_tokens);
            self.leaves.insert((self.rank(slot), slot));
        }
        (freed, forgotten)
    }

    /// Removes a childless node that is no longer among the leaves; its parent may become one.
    fn remove_leaf(&mut self, slot: Slot) {
        let key = self.key(slot);
        let parent = self.node(slot).parent.clone();
        let siblings = self.children_mut(&parent);
        siblings.remove(&key);
        let orphaned = siblings.is_empty();
        self.nodes[slot] = None;
        self.vacant.push(slot);
        match parent {
            Parent::Node(parent) if orphaned => {
                self.leaves.insert((self.rank(parent), parent));
            }
            Parent::Root(salt) if orphaned => {
                self.roots.remove(&salt);
            }
            Parent::Node(_) | Parent::Root(_) => {}
        }
    }

    fn place(&mut self, node: Node) -> Slot {
        if let Some(slot) = self.vacant.pop() {
            self.nodes[slot] = Some(node);
            return slot;
        }
        self.nodes.push(Some(node));
        self.nodes.len() - 1
    }

    fn rank(&self, slot: Slot) -> (u64, u64) {
        self.policy.rank(&self.node(slot).usage)
    }

    fn key(&self, slot: Slot) -> Box<[TokenId]> {
        self.node(slot).tokens[..self.page_tokens].into()
    }

    fn children_mut(&mut self, parent: &Parent) -> &mut Children {
        match parent {
            Parent::Root(salt) => self.roots.entry(Arc::clone(salt)).or_default(),
            Parent::Node(slot) => &mut self.node_mut(*slot).children,
        }
    }

    fn node(&self, slot: Slot) -> &Node {
        self.nodes[slot].as_ref().expect("slots in the tree are taken")
    }

    fn node_mut(&mut self, slot: Slot) -> &mut Node {
        self.nodes[slot].as_mut().expect("slots in the tree are taken")
    }
}
