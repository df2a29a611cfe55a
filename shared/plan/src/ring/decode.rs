//! A decode server: the same grants and plans as `decode-server/src/{reserve,step}.rs`, with pages
//! counted and not named. What running requests share of their prompts is counted for each.

use crate::table::StepTable;
use shared::sched::decode::{Room, Running, admit_credit, fits_pool, headroom, plan};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// Between two load reports of a server.
const REPORT_EVERY: Duration = Duration::from_millis(5);

/// What all decode servers have in common.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Most rows of a step.
    pub rows_max: usize,
    /// Tokens of growth reserved for a request.
    pub growth_tokens: u32,
    /// Tokens of a page.
    pub page_tokens: u32,
    /// Tokens that the pool holds.
    pub pool_tokens: u32,
}

/// A ticket: a request's promised pages.
#[derive(Clone, Copy, Debug)]
pub struct Granted {
    /// Whose.
    pub request: u32,
    /// Tokens of its prompt; of a replay those made before, too.
    pub input: u32,
    /// Tokens that it may still make.
    pub output: u32,
    credit: u32,
}

/// A running request.
struct Row {
    request: u32,
    written: u32,
    made: u32,
    output: u32,
    held: u32,
    credit: u32,
    flying: u32,
    /// When its client had its last token.
    last: Duration,
}

/// A row that has left the batch.
#[derive(Clone, Copy, Debug)]
pub struct Left {
    /// Whose.
    pub request: u32,
    /// Tokens that steps made for it here.
    pub made: u32,
    /// When its client had the last of them.
    pub last: Duration,
}

/// A request that gave its pages back.
#[derive(Clone, Copy, Debug)]
pub struct Retracted {
    /// What it had.
    pub left: Left,
    /// Tokens that its replay starts with.
    pub input: u32,
    /// Tokens that are left to make.
    pub output: u32,
}

impl Row {
    /// The token that it landed with was prefill's.
    fn left(&self) -> Left {
        Left { request: self.request, made: self.made - 1, last: self.last }
    }
}

/// One server.
pub struct Decode {
    limits: Arc<Limits>,
    table: Arc<StepTable>,
    total: u32,
    /// Pages in tables and in credits.
    used: u32,
    /// The most that were.
    pub used_max: u32,
    tickets: usize,
    /// Oldest first.
    rows: Vec<Row>,
    /// Requests of the steps in flight, in order of launch.
    flight: VecDeque<Vec<u32>>,
    /// When the device is done with all that was launched.
    free_at: Duration,
    /// Tokens in the pages of running requests.
    written: u64,
    /// Tokens of prompts sent this way since the last report, and when that was.
    sent: (u64, Duration),
    scratch: Vec<Running>,
    /// How long its device has computed.
    pub busy: Duration,
}

impl Decode {
    /// An idle server.
    pub fn new(limits: &Arc<Limits>, table: &Arc<StepTable>) -> Self {
        Self {
            total: limits.pool_tokens / limits.page_tokens,
            limits: Arc::clone(limits),
            table: Arc::clone(table),
            used: 0,
            used_max: 0,
            tickets: 0,
            rows: vec![],
            flight: VecDeque::new(),
            free_at: Duration::ZERO,
            written: 0,
            sent: (0, Duration::ZERO),
            scratch: vec![],
            busy: Duration::ZERO,
        }
    }

    /// How busy the gateway thinks it is, less is better: tokens, then used pages.
    pub fn load(&self, now: Duration) -> (u64, u32) {
        let (sent, since) = self.sent;
        let sent = if now < since + REPORT_EVERY { sent } else { 0 };
        (self.written + sent, self.used)
    }

    /// Whether its pool can ever hold a request.
    pub fn fits(&self, input: u32, output: u32) -> bool {
        fits_pool(input.saturating_add(output), self.total, self.limits.page_tokens)
    }

    /// Whether a row is free and the request's pages, before what the running rows will need.
    pub fn has_room(&self, (_, input, output): (u32, u32, u32)) -> bool {
        let Limits { rows_max, growth_tokens, page_tokens, .. } = *self.limits;
        self.rows.len() + self.tickets < rows_max
            && admit_credit(input, output, growth_tokens, page_tokens) <= self.total - self.used
    }

    /// A ticket, if a row and the pages are there.
    pub fn grant(
        &mut self,
        (request, input, output): (u32, u32, u32),
        now: Duration,
    ) -> Option<Granted> {
        if !self.has_room((request, input, output)) {
            return None;
        }
        let Limits { growth_tokens, page_tokens, .. } = *self.limits;
        let credit = admit_credit(input, output, growth_tokens, page_tokens);
        let free = self.total - self.used;
        let mut rows = std::mem::take(&mut self.scratch);
        rows.clear();
        rows.extend(self.rows.iter().enumerate().map(running));
        let ahead = headroom(&rows, growth_tokens, page_tokens);
        self.scratch = rows;
        if credit.saturating_add(ahead) > free {
            return None;
        }
        self.take_pages(credit);
        self.tickets += 1;
        if now >= self.sent.1 + REPORT_EVERY {
            self.sent = (0, now);
        }
        self.sent.0 += u64::from(input);
        Some(Granted { request, input, output, credit })
    }

    /// The request's pages have landed with its first token. It joins the batch, unless that token
    /// was its last.
    pub fn land(&mut self, granted: Granted, now: Duration) {
        let Granted { request, input, output, credit } = granted;
        self.tickets -= 1;
        if output <= 1 {
            self.used -= credit;
            return;
        }
        let held = input.div_ceil(self.limits.page_tokens);
        let row = Row {
            request,
            written: input,
            made: 1,
            output,
            held,
            credit: credit.saturating_sub(held),
            flying: 0,
            last: now,
        };
        self.written += u64::from(input);
        let at = self.rows.partition_point(|older| older.request < request);
        self.rows.insert(at, row);
    }

    /// Launches a step if there is room for one beside those in flight: when it will be done, and
    /// who had to give way first.
    pub fn launch(&mut self, now: Duration) -> (Option<Duration>, Vec<Retracted>) {
        let depth = if self.table.steps().overlaps { 2 } else { 1 };
        let mut retracted = vec![];
        if self.flight.len() >= depth {
            return (None, retracted);
        }
        let page_tokens = self.limits.page_tokens;
        loop {
            let mut rows = std::mem::take(&mut self.scratch);
            rows.clear();
            let more = |(_, row): &(usize, &Row)| row.made + row.flying < row.output;
            rows.extend(self.rows.iter().enumerate().filter(more).map(running));
            let room =
                Room { pages: self.total - self.used, rows: self.limits.rows_max, page_tokens };
            let plan = plan(&rows, room);
            self.scratch = rows;
            if !plan.retract.is_empty() {
                // What is in flight may end a request, and none gives pages back before.
                if !self.flight.is_empty() {
                    return (None, retracted);
                }
                self.retract(plan.retract, &mut retracted);
                continue;
            }
            if plan.run.is_empty() {
                return (None, retracted);
            }
            for (slot, pages) in plan.grow {
                let row = &mut self.rows[slot];
                let own = pages.min(row.credit);
                row.credit -= own;
                row.held += pages;
                self.take_pages(pages - own);
            }
            let starts = plan.run.iter().map(|&slot| &self.rows[slot]);
            let took = self.table.step(starts.map(|row| (row.written + row.flying, 1)));
            let launch = |&slot: &usize| {
                self.rows[slot].flying += 1;
                self.rows[slot].request
            };
            let step = plan.run.iter().map(launch).collect();
            self.flight.push_back(step);
            self.busy += took;
            self.free_at = self.free_at.max(now) + took;
            return (Some(self.free_at), retracted);
        }
    }

    /// The oldest step in flight is done: each row of it has a token, so long after its last. Those
    /// that have all leave.
    pub fn collect(&mut self, now: Duration, mut gap: impl FnMut(u32, Duration)) -> Vec<Left> {
        let requests = self.flight.pop_front().unwrap_or_default();
        let mut step = requests.iter().peekable();
        let mut whole = vec![];
        let (used, written) = (&mut self.used, &mut self.written);
        self.rows.retain_mut(|row| {
            while step.next_if(|request| **request < row.request).is_some() {}
            if step.next_if_eq(&&row.request).is_none() {
                return true;
            }
            row.flying -= 1;
            row.written += 1;
            row.made += 1;
            *written += 1;
            gap(row.request, now - row.last);
            row.last = now;
            let last = row.made == row.output;
            if last {
                *used -= row.held + row.credit;
                *written -= u64::from(row.written);
                whole.push(row.left());
            }
            !last
        });
        whole
    }

    fn retract(&mut self, mut slots: Vec<usize>, retracted: &mut Vec<Retracted>) {
        slots.sort_unstable();
        for slot in slots.into_iter().rev() {
            let row = self.rows.remove(slot);
            self.used -= row.held + row.credit;
            self.written -= u64::from(row.written);
            let (left, input) = (row.left(), row.written + 1);
            retracted.push(Retracted { left, input, output: row.output - row.made });
        }
    }

    fn take_pages(&mut self, pages: u32) {
        self.used += pages;
        self.used_max = self.used_max.max(self.used);
    }
}

fn running((slot, row): (usize, &Row)) -> Running {
    Running {
        slot,
        arrival: slot as u64,
        tokens: row.written + row.flying,
        pages_held: row.held,
        credit: row.credit,
    }
}
