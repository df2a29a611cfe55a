//! The pool beside lists of guards.

use proptest::prelude::*;
use shared::ids::PageId;
use shared::pool::{Counts, Credit, Owned, Pool, Quarantined, Sealed};
use std::collections::HashSet;
use std::thread;

const PAGES: u32 = 150;

#[derive(Clone, Copy, Debug)]
enum Op {
    Reserve(u32),
    Draw(usize, u32),
    Split(usize, u32),
    Merge(usize, usize),
    DropCredit(usize),
    Seal(usize),
    DropOwned(usize),
    Quarantine(usize),
    DropQuarantined(usize),
    Clone(usize),
    DropSealed(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let at = 0..64_usize;
    prop_oneof![
        (0..60_u32).prop_map(Op::Reserve),
        (at.clone(), 0..40_u32).prop_map(|(i, n)| Op::Draw(i, n)),
        (at.clone(), 0..20_u32).prop_map(|(i, n)| Op::Split(i, n)),
        (at.clone(), at.clone()).prop_map(|(i, j)| Op::Merge(i, j)),
        at.clone().prop_map(Op::DropCredit),
        at.clone().prop_map(Op::Seal),
        at.clone().prop_map(Op::Seal),
        at.clone().prop_map(Op::DropOwned),
        at.clone().prop_map(Op::Quarantine),
        at.clone().prop_map(Op::DropQuarantined),
        at.clone().prop_map(Op::Clone),
        at.prop_map(Op::DropSealed),
    ]
}

#[derive(Default)]
struct Held {
    credits: Vec<Credit>,
    owned: Vec<Owned>,
    sealed: Vec<Sealed>,
    quarantined: Vec<Quarantined>,
}

fn remove<T>(from: &mut Vec<T>, at: usize) -> Option<T> {
    (!from.is_empty()).then(|| from.swap_remove(at % from.len()))
}

impl Held {
    fn apply(&mut self, pool: &Pool, op: Op) {
        let credits = self.credits.len().max(1);
        match op {
            Op::Reserve(n) => {
                let free = pool.counts().free;
                let credit = pool.reserve(n);
                assert_eq!(credit.is_some(), n <= free);
                self.credits.extend(credit);
            }
            Op::Draw(i, n) => {
                if let Some(credit) = self.credits.get_mut(i % credits) {
                    self.owned.extend(credit.draw(n.min(credit.len())));
                }
            }
            Op::Split(i, n) => {
                if let Some(credit) = self.credits.get_mut(i % credits) {
                    let part = credit.split(n.min(credit.len()));
                    self.credits.push(part);
                }
            }
            Op::Merge(i, j) => {
                if let (Some(mut a), Some(b)) =
                    (remove(&mut self.credits, i), remove(&mut self.credits, j))
                {
                    let sum = a.len() + b.len();
                    a.merge(b);
                    assert_eq!(a.len(), sum);
                    self.credits.push(a);
                }
            }
            Op::DropCredit(i) => drop(remove(&mut self.credits, i)),
            Op::Seal(i) => self.sealed.extend(remove(&mut self.owned, i).map(Owned::seal)),
            Op::DropOwned(i) => drop(remove(&mut self.owned, i)),
            Op::Quarantine(i) => {
                self.quarantined.extend(remove(&mut self.owned, i).map(Owned::quarantine));
            }
            Op::DropQuarantined(i) => drop(remove(&mut self.quarantined, i)),
            Op::Clone(i) => {
                let clone =
                    (!self.sealed.is_empty()).then(|| self.sealed[i % self.sealed.len()].clone());
                self.sealed.extend(clone);
            }
            Op::DropSealed(i) => drop(remove(&mut self.sealed, i)),
        }
    }

    /// The counts that the guards themselves amount to; fails if two guards claim one page.
    fn counts(&self) -> Counts {
        let owned: HashSet<PageId> = self.owned.iter().map(Owned::id).collect();
        let sealed: HashSet<PageId> = self.sealed.iter().map(Sealed::id).collect();
        let quarantined: HashSet<PageId> = self.quarantined.iter().map(Quarantined::id).collect();
        assert_eq!((owned.len(), quarantined.len()), (self.owned.len(), self.quarantined.len()));
        let union: HashSet<_> = owned.iter().chain(&sealed).chain(&quarantined).collect();
        assert_eq!(union.len(), owned.len() + sealed.len() + quarantined.len());
        assert!(union.iter().all(|page| page.get() < PAGES));
        let granted = self.credits.iter().map(Credit::len).sum();
        Counts {
            total: PAGES,
            free: PAGES - granted - union.len() as u32,
            granted,
            owned: owned.len() as u32,
            sealed: sealed.len() as u32,
            idle: 0,
            quarantined: quarantined.len() as u32,
        }
    }
}

proptest! {
    #[test]
    fn counts_are_those_of_the_guards(ops in prop::collection::vec(op(), 1..200)) {
        let pool = Pool::new(PAGES);
        let mut held = Held::default();
        for op in ops {
            held.apply(&pool, op);
            prop_assert_eq!(pool.counts(), held.counts());
            prop_assert!(pool.counts().audit());
        }
        drop(held);
        prop_assert_eq!(pool.counts().free, PAGES);
    }
}

#[test]
fn pages_come_lowest_first_and_return() {
    let pool = Pool::new(130);
    let mut all = pool.reserve(130).unwrap();
    assert!(pool.reserve(1).is_none() && pool.reserve(0).is_some());
    let mut owned = all.draw(130);
    assert!(owned.iter().map(|page| page.id().get()).eq(0..130));
    owned.drain(60..70);
    drop(owned.remove(3));
    let again = pool.reserve(11).unwrap().draw(11);
    let ids: Vec<u32> = again.iter().map(|page| page.id().get()).collect();
    assert_eq!(ids, [3, 60, 61, 62, 63, 64, 65, 66, 67, 68, 69]);
}

#[test]
#[should_panic(expected = "5 pages drawn from a credit of 4")]
fn drawing_more_than_promised_is_a_bug() {
    Pool::new(8).reserve(4).unwrap().draw(5);
}

#[test]
#[should_panic(expected = "credits of two pools")]
fn credits_of_two_pools_do_not_merge() {
    let other = Pool::new(1).reserve(1).unwrap();
    Pool::new(1).reserve(1).unwrap().merge(other);
}

#[test]
fn guards_of_many_threads_all_return() {
    let pool = Pool::new(PAGES);
    thread::scope(|scope| {
        for seed in 0..4 {
            let pool = &pool;
            scope.spawn(move || {
                let mut random = crate::Seeded(seed);
                let mut kept = Vec::new();
                for _ in 0..2_000 {
                    let n = random.below(20) as u32;
                    let Some(mut credit) = pool.reserve(n) else {
                        kept.clear();
                        continue;
                    };
                    for page in credit.draw(n / 2) {
                        let sealed = page.seal();
                        kept.push((sealed.clone(), sealed));
                    }
                    kept.truncate(random.below(30));
                    assert!(pool.counts().audit());
                }
            });
        }
    });
    assert_eq!(pool.counts().free, PAGES);
}
