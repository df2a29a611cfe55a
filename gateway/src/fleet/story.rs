//! One request's way through the ring, as phases with times; no text and no token of it.
//!
//! 1. [`Story::new`] when the request is submitted. Its journey makes marks: a ticket is asked,
//!    prefill gets it, tokens come, an attempt ends, all ends.
//! 2. While it travels its journey's table has it; then [`Recent`] keeps it for a while.
//! 3. [`Story::told`] makes phases of the marks, one after the other without gaps. What happens in
//!    servers comes as durations from them, so no two clocks are compared.
//!
//! Bound: [`Recent`] keeps [`KEPT`] stories of [`ATTEMPTS_MAX`] attempts each. A mark costs an
//! uncontended lock and a look at the clock.

use super::lock;
use super::otlp::Exporter;
use super::pulse::{Pulse, Slots, Tally};
use crate::ring::Origin;
use crate::trace::Trace;
use serde::Serialize;
use shared::ids::{RequestId, ServerId};
use shared::wire::messages::PrefillTimes;
use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

/// Finished stories that are kept.
const KEPT: usize = 256;
/// Attempts whose marks are kept; of more, the first ones and the last.
const ATTEMPTS_MAX: usize = 8;

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// With a result.
    Finished,
    /// With a failure.
    Failed,
    /// Its answer was dropped: the client left, or had what it wanted, as a stop string came.
    Dropped,
}

impl Ending {
    const fn word(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Failed => "failed",
            Self::Dropped => "dropped",
        }
    }
}

/// A server that has part in an attempt.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    /// Its place among those of its role.
    pub(crate) slot: usize,
    /// Its name.
    pub(crate) id: ServerId,
    /// Where its work is counted.
    pub(crate) tally: Arc<Tally>,
}

/// A request's marks.
#[derive(Debug)]
pub(crate) struct Story {
    id: RequestId,
    origin: Origin,
    /// When the call arrived, by the wall clock.
    arrived: SystemTime,
    submitted: Instant,
    prompt_tokens: u32,
    marks: Mutex<Marks>,
}

#[derive(Debug)]
struct Marks {
    attempts: Vec<Attempt>,
    /// How many there were.
    attempts_made: u32,
    cached_tokens: u32,
    output_tokens: u32,
    /// When tokens came last.
    last: Option<Instant>,
    ended: Option<(Instant, Ending)>,
}

/// Marks of one try.
#[derive(Debug, Clone, Default)]
struct Attempt {
    /// When a ticket was asked last.
    asked: Option<Instant>,
    /// When prefill got it.
    sent: Option<Instant>,
    prefill: Option<Part>,
    decode: Option<Part>,
    /// Tokens of the prompt, with what earlier attempts made.
    tokens: u32,
    times: Option<PrefillTimes>,
    /// When its first tokens came.
    first: Option<Instant>,
    ended: Option<Instant>,
}

/// Output of a request as it came.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heard {
    /// How many tokens.
    pub(crate) tokens: u32,
    /// Prompt tokens that were cached.
    pub(crate) cached: u32,
    /// Where prefill's time went, with an attempt's first tokens.
    pub(crate) times: Option<PrefillTimes>,
}

/// A story so far, as `/ring/requests` has it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Told {
    pub(crate) id: String,
    pub(crate) call: String,
    pub(crate) trace: String,
    pub(crate) state: &'static str,
    arrived_ms: u64,
    /// To now, or to its end.
    pub(crate) us: u64,
    pub(crate) ttft_us: Option<u64>,
    pub(crate) prompt_tokens: u32,
    pub(crate) cached_tokens: u32,
    pub(crate) output_tokens: u32,
    pub(crate) attempts: u32,
    /// One after the other without gaps.
    pub(crate) phases: Vec<Phase>,
}

/// A stretch of a story, microseconds from its arrival.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Phase {
    #[serde(rename = "phase")]
    pub(crate) name: &'static str,
    pub(crate) server: Option<ServerId>,
    pub(crate) start_us: u64,
    pub(crate) us: u64,
}

impl Story {
    /// Of a request that is submitted now.
    pub(crate) fn new(id: RequestId, origin: Origin, prompt_tokens: u32) -> Self {
        let submitted = Instant::now();
        let marks = Marks {
            attempts: vec![Attempt::default()],
            attempts_made: 1,
            cached_tokens: 0,
            output_tokens: 0,
            last: None,
            ended: None,
        };
        Self {
            id,
            arrived: SystemTime::now() - submitted.saturating_duration_since(origin.arrived),
            origin,
            submitted,
            prompt_tokens,
            marks: Mutex::new(marks),
        }
    }

    /// Which request.
    pub(crate) fn id(&self) -> RequestId {
        self.id
    }

    /// Where it is in a trace.
    pub(crate) fn trace(&self) -> Trace {
        self.origin.trace
    }

    /// When the call arrived, microseconds since 1970.
    pub(crate) fn arrived_us(&self) -> u64 {
        micros(self.arrived.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
    }

    /// Whether it is known by this name: the request's id, or the call's with or without the prefix
    /// of an API's ids.
    pub(crate) fn is_called(&self, name: &str) -> bool {
        self.origin.is_called(name) || self.id.to_string() == name
    }

    /// A ticket is asked.
    pub(crate) fn asked(&self) {
        self.attempt(|attempt| attempt.asked = Some(Instant::now()));
    }

    /// Prefill gets it, with so many tokens.
    pub(crate) fn sent(&self, prefill: Part, decode: Option<Part>, tokens: u32) {
        for part in [Some(&prefill), decode.as_ref()].into_iter().flatten() {
            part.tally.requests.fetch_add(1, Relaxed);
        }
        self.attempt(|attempt| {
            (attempt.prefill, attempt.decode) = (Some(prefill), decode);
            (attempt.sent, attempt.tokens) = (Some(Instant::now()), tokens);
        });
    }

    /// Tokens came, which servers' tallies and `pulse` count, too. A gap is spread evenly over the
    /// tokens that end it.
    pub(crate) fn heard(&self, heard: Heard, pulse: &Pulse) {
        let now = Instant::now();
        let marks = &mut *lock(&self.marks);
        let gap = marks.last.replace(now).map(|last| now - last);
        match gap.and_then(|gap| gap.checked_div(heard.tokens)) {
            Some(each) => pulse.itl.record(each, u64::from(heard.tokens)),
            None => {
                pulse.ttft.record(now.saturating_duration_since(self.origin.arrived), 1);
                marks.cached_tokens = heard.cached.min(self.prompt_tokens);
            }
        }
        marks.output_tokens += heard.tokens;
        let Some(attempt) = marks.attempts.last_mut() else { return };
        attempt.count(heard);
        if attempt.first.is_none() {
            (attempt.first, attempt.times) = (Some(now), heard.times);
            if let Some((pair, times)) = attempt.slots().zip(heard.times) {
                pulse.handed(pair, times.exposed_us);
            }
        }
    }

    /// An attempt ends and another begins.
    pub(crate) fn again(&self) {
        let marks = &mut *lock(&self.marks);
        if let Some(attempt) = marks.attempts.last_mut() {
            attempt.ended = Some(Instant::now());
        }
        marks.attempts.truncate(ATTEMPTS_MAX - 1);
        marks.attempts.push(Attempt::default());
        marks.attempts_made += 1;
    }

    /// It is over. Whether it was not before.
    fn end(&self, ending: Ending, pulse: &Pulse) -> bool {
        let marks = &mut *lock(&self.marks);
        if marks.ended.is_some() {
            return false;
        }
        marks.ended = Some((Instant::now(), ending));
        let count = match ending {
            Ending::Finished => &pulse.finished,
            Ending::Failed => &pulse.failed,
            Ending::Dropped => &pulse.dropped,
        };
        count.fetch_add(1, Relaxed);
        true
    }

    /// The pair that is to hand it over: prefill has it, and no token of it came.
    pub(crate) fn on_its_way(&self) -> Option<Slots> {
        let marks = lock(&self.marks);
        marks.attempts.last().filter(|last| last.first.is_none()).and_then(Attempt::slots)
    }

    fn attempt(&self, mark: impl FnOnce(&mut Attempt)) {
        if let Some(attempt) = lock(&self.marks).attempts.last_mut() {
            mark(attempt);
        }
    }

    /// The story so far.
    pub(crate) fn told(&self) -> Told {
        let now = Instant::now();
        let marks = lock(&self.marks);
        let ended = marks.ended;
        let until = ended.map_or(now, |(at, _)| at);
        let first = marks.attempts.iter().find_map(|attempt| attempt.first);
        Told {
            id: self.id.to_string(),
            call: self.origin.name.to_string(),
            trace: format!("{:032x}", self.origin.trace.id),
            state: ended.map_or("running", |(_, ending)| ending.word()),
            arrived_ms: self.arrived_us() / 1000,
            us: self.since_arrival(until),
            ttft_us: first.map(|at| self.since_arrival(at)),
            prompt_tokens: self.prompt_tokens,
            cached_tokens: marks.cached_tokens,
            output_tokens: marks.output_tokens,
            attempts: marks.attempts_made,
            phases: self.phases(&marks, until),
        }
    }

    /// The one line that logs have of a request, once it has ended.
    fn log(&self) {
        let marks = &*lock(&self.marks);
        let Some((at, ending)) = marks.ended else { return };
        let first = marks.attempts.iter().find_map(|attempt| attempt.first);
        let last = marks.attempts.last();
        let prefill = last.and_then(|attempt| attempt.prefill.as_ref());
        let decode = last.and_then(|attempt| attempt.decode.as_ref());
        tracing::info!(
            request = %self.id,
            call = &*self.origin.name,
            trace = format!("{:032x}", self.origin.trace.id),
            prompt_tokens = self.prompt_tokens,
            cached_tokens = marks.cached_tokens,
            output_tokens = marks.output_tokens,
            ttft_ms = first.map(|at| self.since_arrival(at) as f64 / 1e3),
            ms = self.since_arrival(at) as f64 / 1e3,
            prefill = prefill.map(|part| part.id.as_str()),
            decode = decode.map(|part| part.id.as_str()),
            attempts = marks.attempts_made,
            "{}", ending.word(),
        );
    }

    fn phases(&self, marks: &Marks, until: Instant) -> Vec<Phase> {
        let mut line = Line { phases: vec![], at_us: 0 };
        line.to("read", None, self.since_arrival(self.submitted));
        for attempt in &marks.attempts {
            let us = |at: Option<Instant>| at.map(|at| self.since_arrival(at));
            let end = self.since_arrival(attempt.ended.unwrap_or(until));
            attempt.draw(&mut line, us, end);
        }
        line.phases
    }

    fn since_arrival(&self, at: Instant) -> u64 {
        micros(at.saturating_duration_since(self.origin.arrived))
    }
}

impl Attempt {
    fn slots(&self) -> Option<Slots> {
        Some((self.prefill.as_ref()?.slot, self.decode.as_ref()?.slot))
    }

    /// Counts tokens on the servers that they are of.
    fn count(&self, heard: Heard) {
        let computed = heard.times.map_or(0, |_| self.tokens.saturating_sub(heard.cached));
        let counts = [(&self.prefill, computed), (&self.decode, heard.tokens)];
        for (part, tokens) in counts.into_iter().filter(|(_, tokens)| *tokens > 0) {
            part.iter().for_each(|part| part.tally.add(tokens));
        }
    }

    fn draw(&self, line: &mut Line, us: impl Fn(Option<Instant>) -> Option<u64>, end: u64) {
        let name = |part: &Option<Part>| part.as_ref().map(|part| part.id.clone());
        let (prefill, decode) = (name(&self.prefill), name(&self.decode));
        let (asked, sent, first) = (us(self.asked), us(self.sent), us(self.first));
        line.to("queue", None, asked.or(sent).unwrap_or(end));
        if asked.is_some() {
            line.to("ticket", decode.clone(), sent.unwrap_or(end));
        }
        let Some(sent) = sent else { return };
        let first_or_end = first.unwrap_or(end);
        match self.times {
            None => line.to("prefill", prefill, first_or_end),
            Some(times) => {
                let (computed, flushed) = (times.queued_us + times.computed_us, times.exposed_us);
                line.to("prefill_queue", prefill.clone(), first_or_end.min(sent + times.queued_us));
                line.to("prefill", prefill, first_or_end.min(sent + computed));
                line.to("handoff", decode.clone(), first_or_end.min(sent + computed + flushed));
                line.to("wire", None, first_or_end);
            }
        }
        if first.is_some() {
            line.to("decode", decode, end);
        }
    }
}

/// Phases without gaps.
struct Line {
    phases: Vec<Phase>,
    at_us: u64,
}

impl Line {
    /// The next phase, up to then; none if it takes no time.
    fn to(&mut self, name: &'static str, server: Option<ServerId>, end_us: u64) {
        let us = end_us.saturating_sub(self.at_us);
        if us > 0 {
            self.phases.push(Phase { name, server, start_us: self.at_us, us });
            self.at_us = end_us;
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Stories that ended, the newest first, and the way out for their traces.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    kept: Mutex<VecDeque<Arc<Story>>>,
    exporter: Option<Exporter>,
}

impl Recent {
    /// None yet.
    pub(crate) fn new(exporter: Option<Exporter>) -> Self {
        Self { kept: Mutex::default(), exporter }
    }

    /// Ends a story, unless it had ended, and keeps it, in place of the oldest if there are enough.
    pub(crate) fn end(&self, story: &Arc<Story>, ending: Ending, pulse: &Pulse) {
        if story.end(ending, pulse) {
            story.log();
            if let Some(exporter) = &self.exporter {
                exporter.offer(story);
            }
            let mut stories = lock(&self.kept);
            stories.truncate(KEPT - 1);
            stories.push_front(story.clone());
        }
    }

    /// Brings all traces to the collector, if there is one. Whether that was in time.
    pub(crate) async fn finish(&self, deadline: tokio::time::Instant) -> bool {
        match &self.exporter {
            Some(exporter) => exporter.finish(deadline).await,
            None => true,
        }
    }

    /// The newest, at most so many.
    pub(crate) fn newest(&self, most: usize) -> Vec<Arc<Story>> {
        lock(&self.kept).iter().take(most).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use shared::ids::Epoch;

    fn story(number: u64) -> Story {
        let (arrived, trace) = (Instant::now(), Trace::begin());
        let origin = Origin { name: "abc".into(), arrived, trace };
        Story::new(RequestId::new(Epoch::new(1), number), origin, 100)
    }

    fn part(slot: usize, name: &str) -> Part {
        Part { slot, id: ServerId::new(name).unwrap(), tally: Arc::default() }
    }

    fn heard(tokens: u32, times: Option<PrefillTimes>) -> Heard {
        Heard { tokens, cached: 32, times }
    }

    /// Names of the phases; they join, and the last ends with the story.
    fn names(told: &Value) -> Vec<&str> {
        let phases = told["phases"].as_array().unwrap();
        let mut at = 0;
        for phase in phases {
            assert_eq!(phase["start_us"], at, "{told}");
            at += phase["us"].as_u64().unwrap();
        }
        assert_eq!(told["us"], at, "{told}");
        phases.iter().map(|phase| phase["phase"].as_str().unwrap()).collect()
    }

    /// Long enough for a phase to be one.
    fn pass() {
        std::thread::sleep(Duration::from_millis(2));
    }

    #[test]
    fn a_request_with_a_handoff_has_all_phases() {
        let (story, pulse) = (story(1), Pulse::new());
        pass();
        story.asked();
        pass();
        story.sent(part(0, "p"), Some(part(1, "d")), 100);
        assert_eq!(story.on_its_way(), Some((0, 1)));
        pass();
        pass();
        let times = PrefillTimes { queued_us: 300, computed_us: 400, exposed_us: 500 };
        story.heard(heard(1, Some(times)), &pulse);
        assert_eq!(story.on_its_way(), None);
        pass();
        story.heard(heard(2, None), &pulse);
        story.end(Ending::Finished, &pulse);
        let told = json!(story.told());
        let all = ["queue", "ticket", "prefill_queue", "prefill", "handoff", "wire", "decode"];
        let mut names = names(&told);
        names.retain(|name| *name != "read"); // it may take less than a microsecond here
        assert_eq!(names, all);
        assert_eq!(told["state"], "finished");
        assert_eq!((&told["output_tokens"], &told["cached_tokens"]), (&json!(3), &json!(32)));
        let phase = |name: &str| {
            let phases = told["phases"].as_array().unwrap();
            phases.iter().find(|phase| phase["phase"] == name).unwrap().clone()
        };
        assert_eq!(
            (&phase("handoff")["us"], &phase("handoff")["server"]),
            (&json!(500), &json!("d"))
        );
        assert_eq!(pulse.links()[&(0, 1)].count, 1);
        let sum = |times: &super::super::pulse::Times| times.counts().iter().sum::<u64>();
        assert_eq!((sum(&pulse.ttft), sum(&pulse.itl), pulse.finished.load(Relaxed)), (1, 2, 1));
    }

    #[test]
    fn an_attempt_that_ends_is_followed_by_the_next_in_the_queue() {
        let (story, pulse) = (story(1), Pulse::new());
        story.asked();
        story.sent(part(0, "p"), Some(part(0, "d")), 100);
        pass();
        story.again();
        pass();
        assert_eq!(json!(story.told())["state"], "running");
        let told = json!(story.told());
        let mut now = names(&told);
        now.retain(|name| *name != "read" && *name != "ticket");
        assert_eq!(now.last(), Some(&"queue"));
        assert!(now.contains(&"prefill"), "{now:?}");
        for _ in 0..20 {
            story.again();
        }
        story.end(Ending::Dropped, &pulse);
        assert_eq!(json!(story.told())["attempts"], 22);
        assert_eq!(lock(&story.marks).attempts.len(), ATTEMPTS_MAX);
    }

    #[test]
    fn only_the_newest_are_kept() {
        let recent = Recent::default();
        let pulse = Pulse::new();
        for number in 0..KEPT as u64 + 5 {
            let story = Arc::new(story(number));
            recent.end(&story, Ending::Finished, &pulse);
            recent.end(&story, Ending::Dropped, &pulse); // it had ended
        }
        assert_eq!(pulse.dropped.load(Relaxed), 0);
        let kept = recent.newest(usize::MAX);
        assert_eq!(kept.len(), KEPT);
        assert_eq!(kept[0].id.number(), KEPT as u64 + 4);
        assert!(kept[0].is_called("abc") && kept[0].is_called("chatcmpl-abc"));
        assert!(kept[0].is_called(&kept[0].id.to_string()) && !kept[0].is_called("ab"));
    }

    /// `cargo test --release -p gateway --lib -- --ignored marks_cost --nocapture`
    #[test]
    #[ignore = "a measurement, for a release build"]
    fn marks_cost_less_than_a_microsecond_a_token() {
        let (story, pulse) = (story(1), Pulse::new());
        story.sent(part(0, "p"), Some(part(0, "d")), 100);
        let (rounds, began) = (1_000_000_u32, Instant::now());
        for _ in 0..rounds {
            story.heard(heard(1, None), &pulse);
        }
        let each = began.elapsed() / rounds;
        println!("{each:?} a token");
        assert!(each < Duration::from_micros(1));
    }
}
