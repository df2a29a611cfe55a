//! Outputs that follow a grammar: which tokens may come next, worked out beside the engine.
//!
//! 1. [`Guides`] is a thread with the tokenizer's table; it builds it when the server starts.
//! 2. [`Guides::begin`] makes a request's [`Guide`] as soon as the request is known: the grammar
//!    compiles, and the output of earlier attempts is followed, while the prompt is computed.
//! 3. [`Guide::push`] takes each new token. The mask of the one after it is worked out while the
//!    step that draws that one runs; [`Guide::mask`] goes along with the step's row.
//! 4. Where there will be no mask, [`Guide::failure`] says why, and the request fails.
//!
//! A server whose requests have no grammar never talks to the thread.

use grammar::{Compiler, Matcher};
use model::sample::{Mask, Promise};
use shared::ids::TokenId;
use shared::request::{Grammar, Request};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// Tokens and grammars that may wait for the thread. A request has two at most, its beginning and
/// its newest token, so this is more than the requests that a server holds at a time can have.
const JOBS: usize = 4096;

/// A request's matcher; none before its grammar is compiled, or where it cannot be followed.
type Slot = Arc<Mutex<Option<Matcher>>>;

/// What the thread is asked.
enum Job {
    /// Compile, and follow what the client already has.
    Begin { slot: Slot, grammar: Grammar, output: Vec<TokenId>, promise: Promise },
    /// Follow a token.
    Push { slot: Slot, token: TokenId, promise: Promise },
}

/// Follows the outputs of one server.
#[derive(Clone, Debug)]
pub struct Guides {
    jobs: SyncSender<Job>,
}

/// Follows the output of one request.
#[derive(Clone, Debug)]
pub struct Guide {
    jobs: SyncSender<Job>,
    slot: Slot,
    mask: Mask,
}

impl Guides {
    /// Starts the thread; `compiler` is called there, and where it fails every guide does.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(
        compiler: impl FnOnce() -> Result<Compiler, String> + Send + 'static,
    ) -> std::io::Result<Self> {
        let (jobs, asked) = sync_channel(JOBS);
        thread::Builder::new().name("grammar".into()).spawn(move || work(compiler(), &asked))?;
        Ok(Self { jobs })
    }

    /// The guide of a request's next token, if it has a grammar.
    pub fn begin(&self, request: &Request) -> Option<Guide> {
        let grammar = request.grammar.as_deref()?.clone();
        let (mask, promise) = Mask::promised();
        let slot = Slot::default();
        let output = request.output().to_vec();
        // If the thread has ended, the promise goes with the job: the mask fails.
        drop(self.jobs.send(Job::Begin { slot: Arc::clone(&slot), grammar, output, promise }));
        Some(Guide { jobs: self.jobs.clone(), slot, mask })
    }
}

impl Guide {
    /// `token` was drawn.
    pub fn push(&mut self, token: TokenId) {
        let (mask, promise) = Mask::promised();
        drop(self.jobs.send(Job::Push { slot: Arc::clone(&self.slot), token, promise }));
        self.mask = mask;
    }

    /// What the next token may be; its words may come later.
    pub fn mask(&self) -> Mask {
        self.mask.clone()
    }

    /// Why the next token was drawn from all, once it is drawn: the request has to fail.
    pub fn failure(&self) -> Option<&str> {
        self.mask.failure()
    }
}

fn work(compiler: Result<Compiler, String>, asked: &Receiver<Job>) {
    if let Err(why) = &compiler {
        tracing::warn!(%why, "requests with a grammar will fail");
    }
    let mut compiler = compiler;
    for job in asked {
        let (slot, promise, mask) = match job {
            Job::Begin { slot, grammar, output, promise } => {
                let mask = begin(&mut compiler, &grammar, &output, &slot);
                (slot, promise, mask)
            }
            Job::Push { slot, token, promise } => {
                let mask = push(token, &slot);
                (slot, promise, mask)
            }
        };
        match mask {
            Ok(words) => promise.keep(words),
            Err(why) => {
                *slot.lock().unwrap_or_else(PoisonError::into_inner) = None;
                promise.fail(why);
            }
        }
    }
}

fn begin(
    compiler: &mut Result<Compiler, String>,
    grammar: &Grammar,
    output: &[TokenId],
    slot: &Slot,
) -> Result<Vec<u32>, String> {
    let compiler = compiler.as_mut().map_err(|why| why.clone())?;
    let mut matcher = compiler.matcher(grammar).map_err(|error| error.to_string())?;
    let mut follow = || {
        output.iter().try_for_each(|&token| matcher.advance(token))?;
        matcher.mask()
    };
    let mask = follow().map_err(|error| error.to_string())?;
    *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(matcher);
    Ok(mask)
}

fn push(token: TokenId, slot: &Slot) -> Result<Vec<u32>, String> {
    let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
    let matcher = slot.as_mut().ok_or("an earlier token could not be followed")?;
    let advanced = matcher.advance(token).and_then(|()| matcher.mask());
    advanced.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::request::{RequestParts, Sampling};

    fn request(grammar: Option<Grammar>, output: &[u8]) -> Request {
        let tokens = b"p".iter().chain(output).map(|&byte| TokenId::new(byte.into())).collect();
        let parts = RequestParts {
            tokens,
            prompt_len: 1,
            max_tokens: 9,
            min_tokens: 0,
            sampling: Sampling::GREEDY,
            logit_bias: vec![],
            stop_ids: vec![],
            logprobs: None,
            logprob_ids: Vec::new(),
            salt: String::new(),
            priority: 0,
            grammar: grammar.map(Box::new),
            reads: None,
        };
        parts.try_into().unwrap()
    }

    fn guides() -> Guides {
        Guides::start(|| Compiler::of_bytes().map_err(|error| error.to_string())).unwrap()
    }

    fn allowed(guide: &Guide) -> Vec<u8> {
        let mask = guide.mask();
        let words = mask.wait().unwrap();
        (0..=u8::MAX).filter(|&b| words[usize::from(b) / 32] >> (b % 32) & 1 == 1).collect()
    }

    #[test]
    fn a_guide_of_a_replay_goes_on_where_the_first_was() {
        let (guides, grammar) = (guides(), Grammar::Regex("ab[cd]e".to_owned()));
        assert!(guides.begin(&request(None, b"")).is_none());
        let mut first = guides.begin(&request(Some(grammar.clone()), b"")).unwrap();
        for (token, next) in b"ab".iter().zip([&b"b"[..], b"cd"]) {
            first.push(TokenId::new((*token).into()));
            assert_eq!(allowed(&first), next);
        }
        let replay = guides.begin(&request(Some(grammar), b"ab")).unwrap();
        assert_eq!(allowed(&replay), b"cd");
    }

    #[test]
    fn what_cannot_be_followed_fails() {
        let guides = guides();
        let mut guide = guides.begin(&request(Some(Grammar::Regex("ab".to_owned())), b"")).unwrap();
        guide.push(TokenId::new(b'x'.into()));
        assert!(guide.mask().wait().is_none() && guide.failure().is_some());
        guide.push(TokenId::new(b'b'.into()));
        assert!(guide.mask().wait().is_none(), "and stays failed");
        let bad = guides.begin(&request(Some(Grammar::Regex("(".to_owned())), b"")).unwrap();
        assert!(bad.mask().wait().is_none());
        let none = Guides::start(|| Err("no table".to_owned())).unwrap();
        let guide = none.begin(&request(Some(Grammar::Regex("a".to_owned())), b"")).unwrap();
        assert!(guide.mask().wait().is_none());
        assert_eq!(guide.failure(), Some("no table"));
    }
}
