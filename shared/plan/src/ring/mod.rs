//! A ring in simulated time.
//!
//! 1. A request arrives at the gateway and waits its turn, first come first.
//! 2. Its turn: the prefill server with the least to compute before its first token, as the
//!    gateway's `LeastTokens` has it by each server's last report and what was sent since; then the
//!    decode server with the fewest tokens that grants a ticket. Where none does, it and all behind
//!    it wait.
//! 3. Prefill admits it, computes its chunks, and hands it over; what the table calls handoff
//!    passes before its first token is the client's and its row joins decode's batch.
//! 4. Decode makes the rest, or takes its pages back: then it goes round again before all others.
//!
//! Not simulated: servers that fail, clients that go away, the limit of the gateway's memory of
//! prompts, pages that running requests share at decode. All servers are alike.

mod decode;
mod prefill;
mod seen;

pub use decode::Limits as DecodeLimits;
pub use prefill::Limits as PrefillLimits;

use crate::load::{Ask, Load};
use crate::numbers::Ranks;
use crate::table::StepTable;
use decode::{Decode, Granted, Left, Retracted};
use prefill::{Job, Prefill};
use seen::Seen;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
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

/// How a request went.
#[derive(Clone, Copy, Debug, Default)]
pub struct Course {
    /// From its arrival to its first token.
    pub ttft: Option<Duration>,
    /// The prefill server that it was sent to last.
    pub prefill: u32,
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
    /// So many of them are not counted below.
    pub warm: usize,
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
        let counted = &self.courses[self.warm..];
        let times = counted.iter().filter_map(|course| course.ttft);
        Ranks::of(times.map(|time| (time.as_secs_f64() * 1e3, 1)).collect())
    }
    /// Seconds within which this share of requests had their last token.
    pub fn over_within(&self, share: f64) -> f64 {
        let counted = &self.courses[self.warm..];
        let took = |course: &Course| Some(course.ttft? + (course.last - course.first));
        let mut times: Vec<_> = counted.iter().filter_map(took).collect();
        times.sort_unstable();
        let rank = (share * times.len() as f64) as usize;
        times.get(rank).or(times.last()).map_or(0.0, Duration::as_secs_f64)
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

/// Times between tokens.
#[derive(Default)]
struct Gaps {
    /// µs, and how often.
    counts: HashMap<u64, u32>,
    /// The last, and how often it came since it was another: a step's rows mostly have the same.
    same: (u64, u32),
}

impl Gaps {
    fn add(&mut self, gap: Duration) {
        let gap = gap.as_micros() as u64;
        if self.same.0 != gap {
            let (gap, times) = std::mem::replace(&mut self.same, (gap, 0));
            *self.counts.entry(gap).or_default() += times;
        }
        self.same.1 += 1;
    }

    /// Ascending, ms.
    fn sorted(mut self) -> Vec<(f64, u32)> {
        *self.counts.entry(self.same.0).or_default() += self.same.1;
        let counted = self.counts.into_iter().filter(|(_, times)| *times > 0);
        let mut gaps: Vec<_> = counted.map(|(us, times)| (us as f64 / 1e3, times)).collect();
        gaps.sort_by(|a, b| a.0.total_cmp(&b.0));
        gaps
    }
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
    seen: Seen,
    gaps: Gaps,
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
        warm: load.warm,
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
        seen: Seen::new(ring, load),
        gaps: Gaps::default(),
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
            self.outcome.bad += usize::from(request as usize >= self.load.warm);
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
            let (prefill, missing) = self.pick_prefill(request, input);
            let ask = Ask { input, output, ..self.load.asks[request as usize].clone() };
            self.prefills[prefill as usize].push(request, ask, missing);
            self.outcome.courses[request as usize].prefill = prefill;
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

    /// The least tokens to compute before this request's first, and how many of its own are.
    fn pick_prefill(&mut self, request: u32, input: u32) -> (u32, u32) {
        let blocks = &self.load.asks[request as usize].blocks;
        let known = self.seen.overlaps(blocks);
        let missing = |server: usize| input.saturating_sub(known[server]);
        let cost = |&server: &usize| self.prefills[server].load + u64::from(missing(server));
        let best = (0..self.prefills.len()).min_by_key(cost).unwrap_or(0);
        let missing = missing(best);
        self.seen.remember(best as u32, blocks);
        (best as u32, missing)
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
        self.first(request);
        if granted.output <= 1 {
            self.over(Left { request, made: 0, last: self.now });
        }
        self.decodes[decode as usize].land(granted, self.now);
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
            for Retracted { left, input, output } in retracted {
                let request = left.request;
                self.outcome.retractions += 1;
                self.left(left);
                self.waiting.insert((false, request), (input, output));
            }
            let Some(done) = done else { return };
            self.at(done, Event::Stepped(server));
        }
    }

    fn stepped(&mut self, server: u32) {
        let (warm, gaps) = (self.load.warm as u32, &mut self.gaps);
        let whole = self.decodes[server as usize].collect(self.now, |request, gap| {
            if request >= warm {
                gaps.add(gap);
            }
        });
        let freed = !whole.is_empty();
        whole.into_iter().for_each(|left| self.over(left));
        let waiting = self.waiting.len();
        self.launch_decode(server);
        if freed || self.waiting.len() > waiting {
            self.dispatch(Some(server));
        }
    }

    /// Prefill's token reaches the client: its first, or one of a replay.
    fn first(&mut self, request: u32) {
        let (now, at) = (self.now, request as usize);
        let (course, counts) = (&mut self.outcome.courses[at], at >= self.load.warm);
        course.tokens += 1;
        if course.ttft.is_none() {
            let ttft = now - self.load.asks[at].at;
            (course.ttft, course.first) = (Some(ttft), now);
            let late = self.targets.is_some_and(|targets| ttft > targets.ttft);
            self.outcome.bad += usize::from(late && counts);
        } else if counts {
            self.gaps.add(now - course.last);
        }
        course.last = now;
        self.outcome.took = now;
    }

    /// A row has left decode, with its last token or to come again.
    fn left(&mut self, Left { request, made, last }: Left) -> &Course {
        let course = &mut self.outcome.courses[request as usize];
        course.tokens += made;
        course.last = last;
        course
    }

    /// A request has its last token. A bad one counts once: at its first if that is late, or here.
    fn over(&mut self, left: Left) {
        self.outcome.took = left.last;
        let (targets, counts) = (self.targets, left.request as usize >= self.load.warm);
        let course = self.left(left);
        let slow = |targets: Targets| {
            let in_time = course.ttft.is_some_and(|ttft| ttft <= targets.ttft);
            in_time && course.tpot().is_some_and(|tpot| tpot > targets.itl)
        };
        let bad = counts && targets.is_some_and(slow);
        self.outcome.bad += usize::from(bad);
    }

    fn sum_up(self) -> Outcome {
        let all = self.outcome.took.as_secs_f64().max(1e-9);
        let share = |busy: Duration, servers: usize| busy.as_secs_f64() / all / servers as f64;
        let prefill = self.prefills.iter().map(|server| server.busy).sum();
        let decode = self.decodes.iter().map(|server| server.busy).sum();
        Outcome {
            gaps: self.gaps.sorted(),
            pages_max: self.decodes.iter().map(|server| server.used_max).max().unwrap_or(0),
            cached: self.cached as f64 / self.input.max(1) as f64,
            busy: (share(prefill, self.prefills.len()), share(decode, self.decodes.len())),
            ..self.outcome
        }
    }
}

#[cfg(test)]
mod tests;
