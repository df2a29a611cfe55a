//! Stop strings across token borders.
//!
//! 1. [`StopMatcher::push`] takes text as it comes and lets out what can no longer be part of a
//!    match; it holds back only an end that may be the start of a stop string.
//! 2. The match is the one that a reader of single characters would see first: least end, and
//!    among those that end together the longest. So it does not depend on how the text was cut.
//! 3. [`StopMatcher::finish`] lets the rest out when the output ends in another way.
//!
//! **Invariant:** what is held is shorter than the longest stop string.

/// Matches stop strings in a text that arrives in pieces.
#[derive(Debug)]
pub struct StopMatcher {
    stops: Vec<String>,
    include: bool,
    held: String,
}

/// What a push lets out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Passed {
    /// Text that is now certain.
    pub text: String,
    /// The stop string that was found, as an index into the list; nothing may be pushed after.
    pub stop: Option<usize>,
}

impl StopMatcher {
    /// A matcher of `stops`, none of them empty. `include` lets the stop string itself out too.
    pub fn new(stops: Vec<String>, include: bool) -> Self {
        debug_assert!(stops.iter().all(|stop| !stop.is_empty()));
        Self { stops, include, held: String::new() }
    }

    /// Takes the next piece of text.
    pub fn push(&mut self, piece: String) -> Passed {
        if self.stops.is_empty() {
            return Passed { text: piece, stop: None };
        }
        self.held.push_str(&piece);
        if let Some((start, end, stop)) = self.first_match() {
            self.held.truncate(if self.include { end } else { start });
            return Passed { text: std::mem::take(&mut self.held), stop: Some(stop) };
        }
        let kept = self.held.split_off(self.held.len() - self.doubtful());
        Passed { text: std::mem::replace(&mut self.held, kept), stop: None }
    }

    /// Takes a piece in which nothing may match, because the output is too short to stop yet.
    pub fn pass(&mut self, piece: &str) -> String {
        let mut text = std::mem::take(&mut self.held);
        text.push_str(piece);
        text
    }

    /// What was held back, once no more text comes.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// The stop string at `index`.
    pub fn stop(&self, index: usize) -> &str {
        &self.stops[index]
    }

    /// (start, end, index) of the match with the least end, then the least start.
    fn first_match(&self) -> Option<(usize, usize, usize)> {
        let found = self.stops.iter().enumerate().filter_map(|(index, stop)| {
            self.held.find(stop.as_str()).map(|start| (start, start + stop.len(), index))
        });
        found.min_by_key(|&(start, end, _)| (end, start))
    }

    /// Length of the longest end of the held text with which a stop string begins.
    fn doubtful(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = self.held.len().saturating_sub(longest.saturating_sub(1));
        let tails = self.held.as_bytes();
        (from..self.held.len())
            .find(|&at| self.stops.iter().any(|stop| stop.as_bytes().starts_with(&tails[at..])))
            .map_or(0, |at| self.held.len() - at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Reads whole characters one by one until the text so far ends with a stop string.
    fn naive(text: &str, stops: &[String], include: bool) -> (String, bool) {
        let mut read = String::new();
        for c in text.chars() {
            read.push(c);
            let ending = stops.iter().filter(|stop| read.ends_with(stop.as_str()));
            if let Some(stop) = ending.max_by_key(|stop| stop.len()) {
                let keep = if include { read.len() } else { read.len() - stop.len() };
                read.truncate(keep);
                return (read, true);
            }
        }
        (read, false)
    }

    fn run(pieces: &[&str], stops: &[String], include: bool) -> (String, bool) {
        let mut matcher = StopMatcher::new(stops.to_vec(), include);
        let mut out = String::new();
        for piece in pieces {
            let passed = matcher.push((*piece).to_owned());
            out.push_str(&passed.text);
            if passed.stop.is_some() {
                return (out, true);
            }
        }
        out.push_str(&matcher.finish());
        (out, false)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn equals_the_naive_reader_over_all_cuts(
            text in "[abé🙂]{0,24}",
            stops in proptest::collection::vec("[abé🙂]{1,4}", 0..4),
            cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..8),
            include: bool,
        ) {
            let borders = text.char_indices().map(|(at, _)| at).chain([text.len()]);
            let borders: Vec<usize> = borders.collect();
            let cuts = cuts.iter().map(|cut| borders[cut.index(borders.len())]);
            let mut cuts: Vec<usize> = cuts.chain([0, text.len()]).collect();
            cuts.sort_unstable();
            let pieces: Vec<&str> = cuts.windows(2).map(|w| &text[w[0]..w[1]]).collect();
            prop_assert_eq!(run(&pieces, &stops, include), naive(&text, &stops, include));
        }
    }

    #[test]
    fn holds_back_only_what_may_become_a_stop() {
        let mut matcher = StopMatcher::new(vec!["</end>".into()], false);
        assert_eq!(matcher.push("one <".into()).text, "one ");
        assert_eq!(matcher.push("/e".into()).text, "");
        assert_eq!(matcher.push("m> two".into()).text, "</em> two");
        assert_eq!(matcher.push("x</".into()).text, "x");
        assert_eq!(
            matcher.push("end> never".into()),
            Passed { text: String::new(), stop: Some(0) }
        );
    }
}
