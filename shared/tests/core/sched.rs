//! What every plan must keep: the budget, the borders, nobody starves, somebody always finishes.

use proptest::prelude::*;
use shared::ids::TokenId;
use shared::sched::budget::TokenBudget;
use shared::sched::decode::{DecodePlan, Room, Running, admit_credit, fits_pool, headroom, plan};
use shared::sched::dfs::ranks;
use shared::sched::prefill::{
    Candidate, PrefillPolicy, Prefilling, STARVE_AFTER, chunks, order, waits,
};

fn candidate(arrival: u64, matched: u32) -> Candidate {
    Candidate {
        slot: arrival as usize,
        arrival,
        tokens: 9,
        matched,
        max_tokens: 0,
        priority: 0,
        rank: 0,
        passed: 0,
    }
}

#[test]
fn policy_names_round_trip() {
    for policy in PrefillPolicy::ALL {
        assert_eq!(policy.to_string().parse(), Ok(policy));
    }
    let error = "sjf".parse::<PrefillPolicy>().unwrap_err();
    let want = "fcfs, lpm, dfs-weight, lof, random or priority";
    assert_eq!(error.to_string(), format!("prefill policy \"sjf\": want {want}"));
}

#[test]
fn policies_look_at_what_they_are_named_for() {
    let order_of = |policy, candidates: &[Candidate]| {
        let mut sorted = candidates.to_vec();
        order(policy, &mut sorted);
        sorted.iter().map(|c| c.arrival).collect::<Vec<_>>()
    };
    let waiting = [
        Candidate { max_tokens: 5, priority: 1, rank: 2, ..candidate(1, 0) },
        Candidate { max_tokens: 9, priority: -1, rank: 1, ..candidate(2, 0) },
        Candidate { max_tokens: 9, priority: 7, rank: 0, ..candidate(3, 0) },
    ];
    assert_eq!(order_of(PrefillPolicy::Lof, &waiting), [2, 3, 1]);
    assert_eq!(order_of(PrefillPolicy::Priority, &waiting), [3, 1, 2]);
    assert_eq!(order_of(PrefillPolicy::DfsWeight, &waiting), [3, 2, 1]);
    let many: Vec<_> = (0..100).map(|arrival| candidate(arrival, 0)).collect();
    let shuffled = order_of(PrefillPolicy::Random, &many);
    let in_order = shuffled.windows(2).filter(|pair| pair[0] < pair[1]).count();
    assert!((30..70).contains(&in_order), "{in_order} of 99 neighbours in order");
}

#[test]
fn the_heaviest_branch_goes_first_and_depth_before_its_own() {
    let paths = [vec![], vec![4], vec![7, 8], vec![7], vec![7, 9], vec![7, 9], vec![4]];
    // 7 has four, of which 9 has two; then 4; then what matches nothing.
    assert_eq!(ranks(&paths), [6, 4, 2, 3, 0, 1, 5]);
    assert_eq!(ranks(&[]), []);
    let deep = vec![(0..200_000).collect::<Vec<_>>()];
    assert_eq!(ranks(&deep), [0], "no recursion");
}

proptest! {
    /// Beside the naive rule: it waits exactly if another has one whole page more in common.
    #[test]
    fn a_prompt_waits_for_the_next_page_of_its_prefix(
        prompt in prop::collection::vec(0_u32..2, 0..20),
        others in prop::collection::vec(prop::collection::vec(0_u32..2, 0..20), 0..5),
        pages in 0_usize..5,
    ) {
        let tokens = |ids: &[u32]| ids.iter().map(|&id| TokenId::new(id)).collect::<Vec<_>>();
        let matched = 4 * pages.min(prompt.len() / 4);
        let common = |other: &Vec<u32>| {
            prompt.iter().zip(other).take_while(|(a, b)| a == b).count() / 4 * 4
        };
        let expected = others.iter().any(|other| common(other) > matched);
        let (prompt, others) = (tokens(&prompt), others.iter().map(|o| tokens(o)));
        let others: Vec<_> = others.collect();
        let one = candidate(1, matched as u32);
        let being = || others.iter().map(|other| &other[..]);
        prop_assert_eq!(waits(&one, &prompt, being(), 4), expected);
        let starved = Candidate { passed: STARVE_AFTER, ..one };
        prop_assert!(!waits(&starved, &prompt, being(), 4));
    }
}

proptest! {
    #[test]
    fn orders_are_what_their_names_say(matched in prop::collection::vec(0..4_u32, 0..30)) {
        let numbered = matched.iter().enumerate();
        let mut queue: Vec<_> = numbered.map(|(i, &m)| candidate(i as u64 ^ 5, m)).collect();
        order(PrefillPolicy::Fcfs, &mut queue);
        prop_assert!(queue.is_sorted_by_key(|c| c.arrival));
        order(PrefillPolicy::Lpm, &mut queue);
        let key = |c: &Candidate| (std::cmp::Reverse(c.matched), c.arrival);
        prop_assert!(queue.is_sorted_by_key(key));
        prop_assert_eq!(queue.len(), matched.len());
    }

    /// One prompt waits while ones that the policy prefers keep coming.
    #[test]
    fn no_policy_starves_anybody(
        policy in prop::sample::select(&PrefillPolicy::ALL[..]),
        older in 0..20_u64,
        burst in 1..4_u64,
    ) {
        let plain = |arrival| Candidate { rank: 9, ..candidate(arrival, 0) };
        let preferred = |arrival| Candidate {
            matched: 100, max_tokens: 100, priority: 1, rank: 0, ..candidate(arrival, 0)
        };
        let mut queue: Vec<_> = (0..older).map(preferred).collect();
        queue.push(plain(older));
        let mut next = older + 1;
        let mut admitted = 0;
        loop {
            queue.extend((next..next + burst).map(preferred));
            next += burst;
            order(policy, &mut queue);
            let first = queue.remove(0);
            admitted += 1;
            if first.arrival == older {
                break;
            }
            queue.iter_mut().for_each(|waiting| waiting.passed_by(first.arrival));
            prop_assert!(admitted <= u64::from(STARVE_AFTER) + older, "still waits");
        }
        // Without the bound it would wait for ever under these.
        if !matches!(policy, PrefillPolicy::Fcfs | PrefillPolicy::Random) {
            prop_assert!(admitted > u64::from(STARVE_AFTER));
        }
    }

    #[test]
    fn chunks_keep_budget_borders_and_turn(
        prompts in prop::collection::vec((0..8_u32, 1..200_u32), 1..12),
        budget in 1..150_u32,
        page_tokens in 1..20_u32,
    ) {
        let numbered = prompts.iter().enumerate();
        let running: Vec<_> = numbered.map(|(slot, &(pages, remaining))| {
            Prefilling { slot, start: pages * page_tokens, remaining, reads_from: u32::MAX }
        }).collect();
        let plan = chunks(&running, TokenBudget::new(budget, page_tokens), 0);
        let total: u32 = plan.iter().map(|chunk| chunk.tokens).sum();
        prop_assert!(total <= budget.max(page_tokens));
        prop_assert!(plan.is_sorted_by(|a, b| a.slot < b.slot));
        prop_assert_eq!(plan[0].slot, 0, "the first always gets on");
        for chunk in &plan {
            let prompt = running[chunk.slot];
            prop_assert!(chunk.tokens > 0 && chunk.tokens <= prompt.remaining);
            let border = (prompt.start + chunk.tokens).is_multiple_of(page_tokens);
            prop_assert!(border || chunk.tokens == prompt.remaining);
        }
        // What is left is of no use to any prompt that has tokens left.
        let left = budget.max(page_tokens) - total;
        for prompt in &running {
            let given = plan.iter().find(|c| c.slot == prompt.slot).map_or(0, |c| c.tokens);
            let more = prompt.remaining - given;
            prop_assert!(more == 0 || left < page_tokens.min(more));
        }
    }

    /// Repeating steps computes every prompt whole.
    #[test]
    fn chunks_add_up_to_prompts(
        prompts in prop::collection::vec((1..300_u32, 0..400_u32), 1..8),
        budget in 1..100_u32,
        page_tokens in 1..20_u32,
        rows in 0..40_u32,
    ) {
        let numbered = prompts.iter().enumerate();
        let mut running: Vec<_> = numbered
            .map(|(slot, &(remaining, reads_from))| {
                Prefilling { slot, start: 0, remaining, reads_from }
            })
            .collect();
        let mut steps = 0;
        while !running.is_empty() {
            let mut read = 0;
            for chunk in chunks(&running, TokenBudget::new(budget, page_tokens), rows) {
                let prompt = running.iter_mut().find(|p| p.slot == chunk.slot).unwrap();
                let unread = prompt.reads_from.saturating_sub(prompt.start);
                read += chunk.tokens.saturating_sub(unread);
                prompt.start += chunk.tokens;
                prompt.remaining -= chunk.tokens;
            }
            prop_assert!(read <= rows.max(page_tokens), "{read} rows");
            running.retain(|prompt| prompt.remaining > 0);
            steps += 1;
            prop_assert!(steps <= prompts.iter().map(|(tokens, _)| tokens).sum::<u32>(), "a step without progress");
        }
    }

    #[test]
    fn a_start_off_the_border_is_led_back_to_it(
        start in 0..100_u32, remaining in 1..100_u32, budget in 1..100_u32,
    ) {
        let mut budget = TokenBudget::new(budget, 16);
        let left = budget.left();
        let tokens = budget.take(start, remaining);
        prop_assert_eq!(budget.left(), left - tokens);
        prop_assert!(tokens > 0 && tokens <= left.min(remaining));
        prop_assert!(tokens == remaining || (start + tokens).is_multiple_of(16));
    }

    #[test]
    fn a_ticket_covers_prompt_and_growth_but_no_more_than_need(
        prompt in 1..5_000_u32, max in 1..5_000_u32, growth in 0..1_000_u32, page in 1..64_u32,
    ) {
        let pages = admit_credit(prompt, max, growth, page);
        prop_assert!(pages * page >= prompt + growth.min(max));
        prop_assert!((pages - 1) * page < prompt + max, "every page can be needed");
        prop_assert_eq!(fits_pool(prompt + max, pages, page), pages * page >= prompt + max);
    }

    #[test]
    fn a_decode_plan_is_paid_for(
        rows in prop::collection::vec((0..60_u32, 0..3_u32, 0..3_u32), 0..20),
        pages in 0..12_u32, batch in 1..20_usize, page_tokens in 1..9_u32,
    ) {
        let numbered = rows.iter().enumerate();
        let rows: Vec<_> = numbered.map(|(slot, &(tokens, over, credit))| Running {
            slot, arrival: slot as u64, tokens, credit,
            pages_held: tokens.div_ceil(page_tokens) + over,
        }).collect();
        let room = Room { pages, rows: batch, page_tokens };
        let plan = plan(&rows, room);
        if plan.run.is_empty() {
            prop_assert!(plan.grow.is_empty());
            // The oldest is never retracted, the youngest go first.
            prop_assert!(plan.retract.iter().rev().is_sorted());
            prop_assert!(!plan.retract.contains(&0));
            prop_assert!(plan.retract.is_empty() || plan.retract[0] == rows.len() - 1);
        } else {
            prop_assert!(plan.retract.is_empty());
            prop_assert!(plan.run.iter().copied().eq(0..rows.len().min(batch)));
            let mut from_room = 0;
            for &slot in &plan.run {
                let row = rows[slot];
                let grown = plan.grow.iter().find(|(s, _)| *s == slot).map_or(0, |&(_, n)| n);
                let pages = row.pages_held + grown;
                prop_assert!(pages * page_tokens > row.tokens, "no page to write");
                prop_assert!(grown == 0 || (pages - 1) * page_tokens <= row.tokens);
                from_room += grown.saturating_sub(row.credit);
            }
            prop_assert!(from_room <= pages);
        }
        // One row whose page can be had runs.
        if rows.len() == 1 && pages > 0 {
            prop_assert_eq!(plan.run.len(), 1);
        }
    }

    /// A batch alone in a pool that each of its rows fits: all rows finish, however tight it is and
    /// whether or not landing leaves headroom.
    #[test]
    fn every_row_finishes(
        lengths in prop::collection::vec((1..20_u32, 1..60_u32), 1..10),
        page_tokens in 1..6_u32, spare in 0..10_u32, ahead in 0..5_u32,
    ) {
        let longest = lengths.iter().map(|(prompt, max)| (prompt + max).div_ceil(page_tokens));
        let pool = longest.max().unwrap() + spare;
        let numbered = lengths.iter().enumerate();
        let waiting = numbered.map(|(slot, &(prompt, _))| (slot, prompt)).collect();
        let mut batch = Batch { lengths, page_tokens, free: pool, waiting, rows: Vec::new() };
        let mut steps = 0;
        while !batch.waiting.is_empty() || !batch.rows.is_empty() {
            batch.land(ahead);
            batch.step();
            steps += 1;
        }
        prop_assert_eq!(batch.free, pool);
        // Every step makes at least one token, and none is lost by a retraction.
        prop_assert!(steps <= batch.lengths.iter().map(|&(_, max)| max).sum::<u32>());
    }

    #[test]
    fn headroom_is_what_growth_will_ask(
        rows in prop::collection::vec((0..60_u32, 0..3_u32), 0..9),
        ahead in 0..40_u32, page_tokens in 1..9_u32,
    ) {
        let numbered = rows.iter().enumerate();
        let mut rows: Vec<_> = numbered.map(|(slot, &(tokens, credit))| Running {
            slot, arrival: slot as u64, tokens, credit, pages_held: tokens.div_ceil(page_tokens),
        }).collect();
        let mut asked = 0;
        let told = headroom(&rows, ahead, page_tokens);
        for _ in 0..ahead {
            let plan = plan(&rows, Room { pages: u32::MAX, rows: 9, page_tokens });
            for (slot, pages) in plan.grow {
                let own = pages.min(rows[slot].credit);
                rows[slot].credit -= own;
                rows[slot].pages_held += pages;
                asked += pages - own;
            }
            rows.iter_mut().for_each(|row| row.tokens += 1);
        }
        prop_assert_eq!(told, asked);
    }
}

#[test]
fn the_oldest_row_waits_for_pages_in_tickets_and_is_not_retracted() {
    let row = Running { slot: 7, arrival: 1, tokens: 8, pages_held: 2, credit: 0 };
    let room = |pages| Room { pages, rows: 4, page_tokens: 4 };
    assert_eq!(plan(&[row], room(0)), DecodePlan::default());
    let grown = DecodePlan { run: vec![7], grow: vec![(7, 1)], retract: vec![] };
    assert_eq!(plan(&[row], room(1)), grown);
    assert_eq!(plan(&[Running { credit: 1, ..row }], room(0)), grown);
}

/// Each needs the whole pool in the end: found by `every_row_finishes` when a retracted row could
/// land again before the next plan.
#[test]
fn two_rows_that_each_need_the_pool_take_turns() {
    let waiting = vec![(0, 1), (1, 1)];
    let lengths = vec![(1, 20), (1, 20)];
    let mut batch = Batch { lengths, page_tokens: 1, free: 21, waiting, rows: Vec::new() };
    for _ in 0..40 {
        batch.land(0);
        batch.step();
        if batch.waiting.is_empty() && batch.rows.is_empty() {
            return;
        }
    }
    panic!("{} rows left", batch.waiting.len() + batch.rows.len());
}

/// A batch and its pool, without tickets.
struct Batch {
    lengths: Vec<(u32, u32)>,
    page_tokens: u32,
    free: u32,
    /// (slot, tokens so far).
    waiting: Vec<(usize, u32)>,
    rows: Vec<Running>,
}

impl Batch {
    /// Oldest first, as far as there is room.
    fn land(&mut self, ahead: u32) {
        self.waiting.sort_unstable();
        while let Some(&(slot, tokens)) = self.waiting.first() {
            let need = tokens.div_ceil(self.page_tokens);
            if need + headroom(&self.rows, ahead, self.page_tokens) > self.free {
                break;
            }
            self.free -= need;
            self.waiting.remove(0);
            let arrival = slot as u64;
            self.rows.push(Running { slot, arrival, tokens, pages_held: need, credit: 0 });
            self.rows.sort_by_key(|row| row.arrival);
        }
    }

    fn step(&mut self) {
        let mut planned = plan(&self.rows, self.room());
        while !planned.retract.is_empty() {
            for slot in planned.retract {
                let row = self.remove(slot);
                self.waiting.push((slot, row.tokens));
            }
            planned = plan(&self.rows, self.room());
        }
        assert!(!planned.run.is_empty(), "no row moves");
        for (slot, pages) in planned.grow {
            self.free -= pages;
            self.rows.iter_mut().find(|row| row.slot == slot).unwrap().pages_held += pages;
        }
        for slot in planned.run {
            let row = self.rows.iter_mut().find(|row| row.slot == slot).unwrap();
            row.tokens += 1;
            if row.tokens == self.lengths[slot].0 + self.lengths[slot].1 {
                self.remove(slot);
            }
        }
    }

    fn room(&self) -> Room {
        Room { pages: self.free, rows: 64, page_tokens: self.page_tokens }
    }

    fn remove(&mut self, slot: usize) -> Running {
        let at = self.rows.iter().position(|row| row.slot == slot).unwrap();
        let row = self.rows.remove(at);
        self.free += row.pages_held;
        row
    }
}
