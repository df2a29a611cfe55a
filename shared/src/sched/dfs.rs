//! The order of SGLang's `dfs-weight`: waiting prompts in depth-first order of the cached tree, the
//! branch with most of them first, so that prompts that share a prefix are computed together.

use std::cmp::Reverse;
use std::collections::HashMap;

/// A node that candidates match through.
#[derive(Default)]
struct Branch {
    /// Candidates that end here.
    here: Vec<usize>,
    /// By the tree's name, in an arena: a path may be longer than a stack is deep.
    below: HashMap<usize, usize>,
    weight: usize,
    /// The earliest candidate of it.
    first: usize,
}

/// The place of each candidate, of whose match `paths` has the tree's nodes from the top. Within a
/// node deeper ones go first; ties go by the candidates' order.
pub fn ranks(paths: &[Vec<usize>]) -> Vec<u32> {
    let mut arena = vec![Branch::default()];
    for (index, path) in paths.iter().enumerate() {
        let mut at = 0;
        arena[at].weight += 1;
        for &node in path {
            let new = arena.len();
            at = *arena[at].below.entry(node).or_insert(new);
            if at == new {
                arena.push(Branch { first: index, ..Branch::default() });
            }
            arena[at].weight += 1;
        }
        arena[at].here.push(index);
    }
    let mut ranks = vec![0; paths.len()];
    let mut next = 0..;
    let mut open = vec![(0, false)];
    while let Some((at, entered)) = open.pop() {
        let branch = &arena[at];
        if entered {
            branch.here.iter().zip(&mut next).for_each(|(&index, rank)| ranks[index] = rank);
            continue;
        }
        open.push((at, true));
        let mut below: Vec<_> = branch.below.values().copied().collect();
        below.sort_by_key(|&b| (arena[b].weight, Reverse(arena[b].first)));
        open.extend(below.into_iter().map(|branch| (branch, false)));
    }
    ranks
}
