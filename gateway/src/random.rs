//! Random bits.

use std::cell::RefCell;

/// Drawn from the kernel at once, so that a request, which takes four, makes no system
/// call for them.
const WORDS: usize = 64;

/// For ids and seeds.
pub fn random() -> u64 {
    thread_local! {
        static DRAWN: RefCell<Vec<u64>> = const { RefCell::new(vec![]) };
    }
    DRAWN.with_borrow_mut(|drawn| {
        drawn.pop().unwrap_or_else(|| {
            let mut bytes = [0; 8 * WORDS];
            getrandom::fill(&mut bytes)
                .expect("the kernel gives random bytes on every system that we run on");
            let (words, _) = bytes.as_chunks();
            drawn.extend(words.iter().copied().map(u64::from_ne_bytes));
            drawn.pop().expect("filled just now")
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_word_is_given_twice() {
        let words: HashSet<_> = (0..3 * WORDS).map(|_| random()).collect();
        let elsewhere = std::thread::spawn(|| (0..WORDS).map(|_| random()).collect::<Vec<_>>());
        let both: HashSet<_> = words.into_iter().chain(elsewhere.join().unwrap()).collect();
        assert_eq!(both.len(), 4 * WORDS);
    }
}
