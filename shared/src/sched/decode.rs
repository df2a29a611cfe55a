//! Decode's plan of one step: which rows run, which pages they need, and who gives way.
//!
//! A row runs if it has the page that its next token is written to. Pages come from its own credit
//! first, then from the free and idle ones. When these do not suffice, the youngest rows are
//! retracted (each becomes a replay). The caller drops their pages and plans again **before it
//! grants any ticket**: the new plan counts what really came back (shared pages stay with their
//! other holders), and nobody else gets those pages first. Without that a retracted row that
//! lands again at once takes them, is retracted again, and no row ever moves.
//!
//! One row can always finish: nothing is admitted whose longest sequence exceeds the pool
//! ([`fits_pool`]), the oldest row is never retracted, and once it is alone all pages are its
//! own, free, idle or in tickets, which land (and can then be retracted), expire, or are proven
//! ended. [`headroom`] keeps grants from causing retractions in the first place.

/// A row of the running batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Running {
    /// The caller's name for it.
    pub slot: usize,
    /// Position in the order of arrival; a replay keeps its first.
    pub arrival: u64,
    /// Tokens whose keys and values are in its pages; the step writes one more.
    pub tokens: u32,
    /// Pages it holds.
    pub pages_held: u32,
    /// Pages left in its own credit.
    pub credit: u32,
}

impl Running {
    fn missing(&self, page_tokens: u32) -> u32 {
        (self.tokens / page_tokens + 1).saturating_sub(self.pages_held)
    }
    /// Missing pages that its own credit does not cover.
    fn asks(&self, page_tokens: u32) -> u32 {
        self.missing(page_tokens).saturating_sub(self.credit)
    }
}

/// What a step may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Pages that can be had: free and idle ones.
    pub pages: u32,
    /// Most rows of a batch.
    pub rows: usize,
    /// Tokens of a page.
    pub page_tokens: u32,
}

/// A step's plan. Either rows run, or rows are retracted and the plan must be made anew.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DecodePlan {
    /// Rows that run, oldest first.
    pub run: Vec<usize>,
    /// Pages to add to rows that run, before they do: from the row's credit as far as it goes.
    pub grow: Vec<(usize, u32)>,
    /// Rows to retract, youngest first.
    pub retract: Vec<usize>,
}

/// Plans one step for `rows`, oldest first. A plan that runs nothing and retracts nothing, though
/// there are rows, waits for pages that are in tickets.
pub fn plan(rows: &[Running], room: Room) -> DecodePlan {
    debug_assert!(rows.is_sorted_by_key(|row| row.arrival), "rows go oldest first");
    let mut plan = DecodePlan::default();
    let batch = &rows[..rows.len().min(room.rows)];
    let mut stay = rows.len();
    let mut pages = u64::from(room.pages);
    let asked = |stay: usize| -> u64 {
        batch.iter().take(stay).map(|row| u64::from(row.asks(room.page_tokens))).sum()
    };
    // Counts a retracted row's pages as coming back, to retract no more than may be needed.
    while stay > 1 && asked(stay) > pages {
        stay -= 1;
        plan.retract.push(rows[stay].slot);
        pages += u64::from(rows[stay].pages_held) + u64::from(rows[stay].credit);
    }
    if !plan.retract.is_empty() || asked(stay) > pages {
        return plan;
    }
    plan.run.reserve_exact(batch.len());
    for row in batch {
        plan.run.push(row.slot);
        let missing = row.missing(room.page_tokens);
        if missing > 0 {
            plan.grow.push((row.slot, missing));
        }
    }
    plan
}

/// Pages that the rows lack to make `ahead` more tokens each. Tickets are granted from what is free
/// or idle beyond it; with no rows running it is 0, so that it never stops a lone request.
pub fn headroom(rows: &[Running], ahead: u32, page_tokens: u32) -> u32 {
    let lacks = |row: &Running| {
        let pages = row.tokens.saturating_add(ahead).div_ceil(page_tokens);
        pages.saturating_sub(row.pages_held).saturating_sub(row.credit)
    };
    rows.iter().map(lacks).fold(0, u32::saturating_add)
}

/// Pages for a ticket: the prompt and room for `growth_tokens` more (512 is a good number), at most
/// what the request can need.
pub const fn admit_credit(
    prompt_tokens: u32,
    max_tokens: u32,
    growth_tokens: u32,
    page_tokens: u32,
) -> u32 {
    let growth = if max_tokens < growth_tokens { max_tokens } else { growth_tokens };
    prompt_tokens.saturating_add(growth).div_ceil(page_tokens)
}

/// Whether a pool of `pages` can hold the longest sequence of a request, in tokens: only then may
/// it be admitted.
pub const fn fits_pool(tokens_max: u32, pages: u32, page_tokens: u32) -> bool {
    tokens_max.div_ceil(page_tokens) <= pages
}
