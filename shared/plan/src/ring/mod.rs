//! A ring in simulated time.
//!
//! 1. A request arrives at the gateway and waits its turn, first come first.
//! 2. Its turn: the prefill server with the least to compute before its first token, as the
//!    gateway's `LeastTokens` has it; then the decode server with the fewest tokens that grants a
//!    ticket. Where none does, it and all behind it wait.
//! 3. Prefill admits it, computes its chunks, and hands it over; what the table calls handoff
//!    passes before its first token is the client's and its row joins decode's batch.
//! 4. Decode makes the rest, or takes its pages back: then it goes round again before all others.
//!
//! Not simulated: servers that fail, clients that go away, the limit of the gateway's memory of
//! prompts, pages that running requests share at decode. All servers are alike.

mod decode;
mod prefill;

pub use decode::Limits as DecodeLimits;
pub use prefill::Limits as PrefillLimits;

use crate::load::{Ask, Load};
use crate::numbers::Ranks;
use crate::table::StepTable;
use decode::{Decode, Granted, Retracted};
use prefill::{Job, Prefill};
use shared::ids::TokenId;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// Which ring.
#[derive(Clone, Debug)]
pub struct Ring {
    /// Prefill servers, at least one.
    pub prefills: usize,
    /// Decode servers, at least one.
    pub decodes: usize,
    /// Of each prefill server.
    pub prefill: PrefillLimits,
    /// Of each decode server.
    pub decode: DecodeLimits,
}

/// What a request must keep to count as good.
#[derive(Clone, Copy, Debug)]
pub struct Targets {
    /// To its first token.
    pub ttft: Duration,
    /// Mean time between its tokens.
    pub itl: Duration,
    /// More bad requests than this end the simulation.
    pub bad_max: usize,
}

/// A token was made.
pub struct Made {
    /// Whose.
    pub request: u32,
    /// Whether it was the last.
    pub last: bool,
}

/// How a request went.
#[derive(Clone, Copy, Debug, Default)]
pub struct Course {
    /// From its arrival to its first token.
    pub ttft: Option<Duration>,
    /// Its last token so far, by the ring's clock.
    last: Duration,
    first: Duration,
    tokens: u32,
}

impl Course {
    /// Mean time between its tokens; none of an answer of one.
    pub fn tpot(&self) -> Option<Duration> {
        let gaps = self.tokens.checked_sub(1).filter(|gaps| *gaps > 0)?;
        Some((self.last - self.first) / gaps)
    }
}

/// What came of a load.
pub struct Outcome {
    /// Each request, in order of arrival.
    pub courses: Vec<Course>,
    /// Times between tokens, ms, and how often.
    pub gaps: Vec<(f64, u32)>,
    /// Requests that no server could ever hold.
    pub refused: usize,
    /// Requests that missed a target.
    pub bad: usize,
    /// Whether it was given up for too many of those.
    pub given_up: bool,
    /// From the first arrival to the last token.
    pub took: Duration,
    /// Most pages in use at one decode server.
    pub pages_max: u32,
    /// Times that decode took pages back.
    pub retractions: usize,
    /// Share of prompt tokens that were cached.
    pub cached: f64,
    /// Share of the time that prefill devices, and decode devices, computed.
    pub busy: (f64, f64),
}

impl Outcome {
    /// Times to the first token, ms.
    pub fn ttft(&self) -> Ranks {
        let times = self.courses.iter().filter_map(|course| course.ttft);
        Ranks::of(times.map(|time| (time.as_secs_f64() * 1e3, 1)).collect())
    }
    /// Times between tokens, ms.
    pub fn itl(&self) -> Ranks {
        Ranks::of(self.gaps.clone())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrival(u32),
    Landing(u32),
    Prefilled(u32),
    Stepped(u32),
}

/// A request behind its ticket.
struct Travelling {
    granted: Granted,
    prefill: u32,
    decode: u32,
    /// Prefill's pages, held until they have landed.
    job: Option<Job>,
}

struct Simulation<'a> {
    table: Arc<StepTable>,
    load: &'a Load,
    targets: Option<Targets>,
    prefills: Vec<Prefill>,
    decodes: Vec<Decode>,
    events: BinaryHeap<Reverse<(Duration, u64, Event)>>,
    scheduled: u64,
    now: Duration,
    /// Requests without a ticket: (whether it is no replay, number) → (prompt, left to make).
    waiting: BTreeMap<(bool, u32), (u32, u32)>,
    /// The one that every decode server has refused since it came to its turn.
    refused: Option<u32>,
    travelling: HashMap<u32, Travelling>,
    /// Prefill servers that a block was sent to: what the gateway remembers.
    seen: HashMap<TokenId, BTreeSet<u32>>,
    /// Times between tokens, µs, and how often.
    gaps: HashMap<u64, u32>,
    /// The last such time, and how often it came since it was another.
    same: (u64, u32),
    cached: u64,
    input: u64,
    outcome: Outcome,
}

/// Plays `load` through `ring`; with `targets`, no longer than they can be met.
pub fn run(ring: &Ring, table: &Arc<StepTable>, load: &Load, targets: Option<Targets>) -> Outcome {
    let (prefill, decode) = (Arc::new(ring.prefill.clone()), Arc::new(ring.decode.clone()));
    let new_prefill = |_| Prefill::new(&prefill, table, load);
    let outcome = Outcome {
        courses: vec![Course::default(); load.asks.len()],
        gaps: vec![],
        refused: 0,
        bad: 0,
        given_up: false,
        took: Duration::ZERO,
        pages_max: 0,
        retractions: 0,
        cached: 0.0,
        busy: (0.0, 0.0),
    };
    let mut simulation = Simulation {
        table: Arc::clone(table),
        load,
        targets,
        prefills: (0..ring.prefills).map(new_prefill).collect(),
        decodes: (0..ring.decodes).map(|_| Decode::new(&decode, table)).collect(),
        events: BinaryHeap::new(),
        scheduled: 0,
        now: Duration::ZERO,
        waiting: BTreeMap::new(),
        refused: None,
        travelling: HashMap::new(),
        seen: HashMap::new(),
        gaps: HashMap::new(),
        same: (0, 0),
        cached: 0,
        input: 0,
        outcome,
    };
    simulation.play();
    simulation.sum_up()
}

impl Simulation<'_> {
    fn play(&mut self) {
        self.arrive_after(None);
        while let Some(Reverse((at, _, event))) = self.events.pop() {
            self.now = at;
            match event {
                Event::Arrival(request) => self.arrival(request),
                Event::Prefilled(server) => self.prefilled(server),
                Event::Landing(request) => self.landing(request),
                Event::Stepped(server) => self.stepped(server),
            }
            let most = self.targets.map_or(usize::MAX, |targets| targets.bad_max);
            if self.outcome.bad > most {
                self.outcome.given_up = true;
                return;
            }
        }
    }

    /// Ties go by the order of scheduling.
    fn at(&mut self, at: Duration, event: Event) {
        self.scheduled += 1;
        self.events.push(Reverse((at, self.scheduled, event)));
    }

    /// Schedules the next arrival: one at a time, so that the heap stays small.
    fn arrive_after(&mut self, request: Option<u32>) {
        let next = request.map_or(0, |request| request + 1);
        if let Some(ask) = self.load.asks.get(next as usize) {
            self.at(ask.at, Event::Arrival(next));
        }
    }

    fn arrival(&mut self, request: u32) {
        self.arrive_after(Some(request));
        let Ask { input, output, .. } = self.load.asks[request as usize];
        let fits = self.prefills[0].fits(input) && self.decodes[0].fits(input, output);
        if !fits {
            self.outcome.refused += 1;
            self.outcome.bad += 1;
            return;
        }
        self.waiting.insert((true, request), (input, output));
        self.dispatch(None);
    }

    /// Gives tickets while there are any; `freed` names the one server that has room since the
    /// first in line was refused.
    fn dispatch(&mut self, freed: Option<u32>) {
        while let Some((&(fresh, request), &(input, output))) = self.waiting.first_key_value() {
            let tried = self.refused == Some(request);
            let only = if tried { freed } else { None };
            if tried && freed.is_none() {
                return;
            }
            let Some((decode, granted)) = self.ticket((request, input, output), only) else {
                self.refused = Some(request);
                return;
            };
            self.waiting.remove(&(fresh, request));
            let prefill = self.pick_prefill(request, input);
            let ask = Ask { input, output, ..self.load.asks[request as usize].clone() };
            self.prefills[prefill as usize].push(request, ask);
            self.travelling.insert(request, Travelling { granted, prefill, decode, job: None });
            self.launch_prefill(prefill);
        }
    }

    fn ticket(&mut self, request: (u32, u32, u32), only: Option<u32>) -> Option<(u32, Granted)> {
        let now = self.now;
        let mut order: Vec<u32> = match only {
            Some(server) => vec![server],
            None => (0..self.decodes.len() as u32).collect(),
        };
        let busy = |server: u32| (self.decodes[server as usize].load(now), server);
        // Mostly the first grants: the others are put in order only where it does not.
        if let Some(first) = (0..order.len()).min_by_key(|&at| busy(order[at])) {
            order.swap(0, first);
        }
        let granted = self.decodes[order[0] as usize].grant(request, now);
        if let Some(granted) = granted {
            return Some((order[0], granted));
        }
        order.remove(0);
        order.retain(|&server| self.decodes[server as usize].has_room(request));
        order.sort_by_cached_key(|&server| (self.decodes[server as usize].load(now), server));
        order
            .into_iter()
            .find_map(|server| Some((server, self.decodes[server as usize].grant(request, now)?)))
    }

    /// The least tokens to compute before this request's first.
    fn pick_prefill(&mut self, request: u32, input: u32) -> u32 {
        let blocks = &self.load.asks[request as usize].blocks;
        let mut overlap: HashMap<u32, u32> = HashMap::new();
        let mut holders: Option<Vec<u32>> = None;
        for block in blocks.iter() {
            let Some(seen) = self.seen.get(block) else { break };
            let still = match holders {
                None => seen.iter().copied().collect(),
                Some(holders) => holders.into_iter().filter(|h| seen.contains(h)).collect(),
            };
            if Vec::is_empty(&still) {
                break;
            }
            still.iter().for_each(|&server| {
                *overlap.entry(server).or_default() += self.load.block_tokens;
            });
            holders = Some(still);
        }
        let cost = |server: &u32| {
            let known = overlap.get(server).copied().unwrap_or(0);
            (
                self.prefills[*server as usize].tokens + u64::from(input.saturating_sub(known)),
                *server,
            )
        };
        let best = (0..self.prefills.len() as u32).min_by_key(cost).unwrap_or(0);
        for block in blocks.iter() {
            self.seen.entry(*block).or_default().insert(best);
        }
        best
    }

    fn launch_prefill(&mut self, server: u32) {
        if let Some(done) = self.prefills[server as usize].launch(self.now) {
            self.at(done, Event::Prefilled(server));
        }
    }

    fn prefilled(&mut self, server: u32) {
        for job in self.prefills[server as usize].collect(self.now) {
            self.cached += u64::from(job.cached);
            self.input += u64::from(job.len());
            let lands = self.now + self.table.handoff(job.len() - job.cached);
            self.at(lands, Event::Landing(job.request));
            if let Some(travelling) = self.travelling.get_mut(&job.request) {
                travelling.job = Some(job);
            }
        }
        self.launch_prefill(server);
    }

    fn landing(&mut self, request: u32) {
        let Some(Travelling { granted, prefill, decode, job }) = self.travelling.remove(&request)
        else {
            return;
        };
        drop(job);
        self.made(&Made { request, last: granted.output <= 1 });
        self.decodes[decode as usize].land(granted);
        if granted.output <= 1 {
            self.dispatch(Some(decode));
        }
        self.launch_decode(decode);
        // Its pages have come back at prefill.
        self.launch_prefill(prefill);
    }

    fn launch_decode(&mut self, server: u32) {
        loop {
            let (done, retracted) = self.decodes[server as usize].launch(self.now);
            for Retracted { request, input, output } in retracted {
                self.outcome.retractions += 1;
                self.waiting.insert((false, request), (input, output));
            }
            let Some(done) = done else { return };
            self.at(done, Event::Stepped(server));
        }
    }

    fn stepped(&mut self, server: u32) {
        let mut tokens = vec![];
        let freed = self.decodes[server as usize].collect(|made| tokens.push(made));
        tokens.iter().for_each(|made| self.made(made));
        let waiting = self.waiting.len();
        self.launch_decode(server);
        if freed || self.waiting.len() > waiting {
            self.dispatch(Some(server));
        }
    }

    /// A token reaches the client.
    fn made(&mut self, made: &Made) {
        let (now, at) = (self.now, made.request as usize);
        let course = &mut self.outcome.courses[at];
        course.tokens += 1;
        let mut late = false;
        if course.ttft.is_none() {
            let ttft = now - self.load.asks[at].at;
            course.ttft = Some(ttft);
            course.first = now;
            late = self.targets.is_some_and(|targets| ttft > targets.ttft);
        } else {
            let gap = (now - course.last).as_micros() as u64;
            // A step's rows mostly have the same.
            if self.same.0 != gap {
                let (gap, times) = std::mem::replace(&mut self.same, (gap, 0));
                *self.gaps.entry(gap).or_default() += times;
            }
            self.same.1 += 1;
        }
        course.last = now;
        // Counted once: at its first token if that is late, else at its end.
        let in_time = |targets: Targets| course.ttft.is_some_and(|ttft| ttft <= targets.ttft);
        let slow = |targets: Targets| course.tpot().is_some_and(|tpot| tpot > targets.itl);
        let slow = made.last && self.targets.is_some_and(|t| in_time(t) && slow(t));
        self.outcome.bad += usize::from(late || slow);
        self.outcome.took = now;
    }

    fn sum_up(mut self) -> Outcome {
        *self.gaps.entry(self.same.0).or_default() += self.same.1;
        let counted = self.gaps.into_iter().filter(|(_, times)| *times > 0);
        let mut gaps: Vec<_> = counted.map(|(us, times)| (us as f64 / 1e3, times)).collect();
        gaps.sort_by(|a, b| a.0.total_cmp(&b.0));
        let all = self.outcome.took.as_secs_f64().max(1e-9);
        let share = |busy: Duration, servers: usize| busy.as_secs_f64() / all / servers as f64;
        let prefill = self.prefills.iter().map(|server| server.busy).sum();
        let decode = self.decodes.iter().map(|server| server.busy).sum();
        Outcome {
            gaps,
            pages_max: self.decodes.iter().map(|server| server.used_max).max().unwrap_or(0),
            cached: self.cached as f64 / self.input.max(1) as f64,
            busy: (share(prefill, self.prefills.len()), share(decode, self.decodes.len())),
            ..self.outcome
        }
    }
}

#[cfg(test)]
mod tests;
