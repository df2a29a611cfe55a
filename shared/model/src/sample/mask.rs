//! Which tokens may be drawn, worked out while the step that draws them runs.
//!
//! 1. [`Mask::promised`] makes a mask and the [`Promise`] of its words, which another thread has.
//! 2. The row is launched with the mask; who draws its token waits for the words, which by then are
//!    mostly there.
//! 3. A promise that cannot be kept is [failed](Promise::fail), also by being dropped: all tokens
//!    are drawn from then, and who launched the row sees [`Mask::failure`] and drops the token.

use std::sync::{Arc, OnceLock};

/// Bit `id % 32` of word `id / 32` is set where token `id` may be drawn.
pub type Words = Arc<Vec<u32>>;

type Outcome = Result<Words, String>;

/// Tokens that may be drawn.
#[derive(Clone, Debug)]
pub struct Mask(Arc<OnceLock<Outcome>>);

/// The words of a mask, to be given once.
#[derive(Debug)]
pub struct Promise(Arc<OnceLock<Outcome>>);

impl Mask {
    /// A mask whose words come later.
    pub fn promised() -> (Self, Promise) {
        let cell = Arc::new(OnceLock::new());
        (Self(Arc::clone(&cell)), Promise(cell))
    }

    /// Waits for the words; `None` where there will be none.
    pub fn wait(&self) -> Option<&Words> {
        self.0.wait().as_ref().ok()
    }

    /// Why there are no words, where that is known. Does not wait.
    pub fn failure(&self) -> Option<&str> {
        self.0.get().and_then(|outcome| outcome.as_ref().err()).map(String::as_str)
    }
}

impl Promise {
    /// Gives the words.
    pub fn keep(self, words: Vec<u32>) {
        drop(self.0.set(Ok(Arc::new(words)))); // nobody else sets it
    }

    /// There are none, and this is why.
    pub fn fail(self, why: String) {
        drop(self.0.set(Err(why)));
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        // Where it was kept or failed this changes nothing.
        drop(self.0.set(Err("the thread that follows grammars has ended".to_owned())));
    }
}
