//! [`Worker`]: an engine on a thread of its own, so that who launches a step can hear its peers
//! while it is computed.
//!
//! One step at a time: [`Worker`] does not overlap, and a launch is refused until the step before
//! is collected.

use crate::engine::{Batch, Engine, EngineError};
use shared::kv::PageStore;
use shared::request::{Read, Token};
use std::sync::Arc;
use std::sync::mpsc::{
    Receiver, RecvError, RecvTimeoutError, SyncSender, TryRecvError, sync_channel,
};
use std::thread;
use std::time::Duration;

/// Longest wait for a step before peers are heard again. A look takes time from the threads that
/// compute, so there are few.
const REST: Duration = Duration::from_micros(200);

/// What a step drew, and what it read.
type Results = Result<(Vec<Option<Token>>, Vec<Option<Read>>), EngineError>;

/// An engine whose launches return at once.
pub struct Worker {
    batches: SyncSender<Batch>,
    results: Receiver<Results>,
    /// Whether a step is launched and not collected.
    launched: bool,
    /// Its results, once they were looked for and there.
    done: Option<Results>,
    /// What the step collected last has read.
    read: Vec<Option<Read>>,
    vocab: u32,
    context_length: u32,
    fingerprint: [u8; 32],
    rows_max: usize,
    pages: Arc<dyn PageStore>,
}

impl Worker {
    /// Puts `engine`, whose launches return when a step is computed, on a thread; the thread ends
    /// with the worker.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn new(mut engine: impl Engine + 'static) -> std::io::Result<Self> {
        let (batches, to_compute) = sync_channel::<Batch>(1);
        let (computed, results) = sync_channel(1);
        let worker = Self {
            batches,
            results,
            launched: false,
            done: None,
            read: Vec::new(),
            vocab: engine.vocab(),
            context_length: engine.context_length(),
            fingerprint: engine.fingerprint(),
            rows_max: engine.rows_max(),
            pages: engine.pages(),
        };
        thread::Builder::new().name("compute".into()).spawn(move || {
            for batch in to_compute {
                let drawn = engine.launch(&batch).and_then(|()| engine.collect());
                let result = drawn.map(|drawn| (drawn, engine.read()));
                if computed.send(result).is_err() {
                    return;
                }
            }
        })?;
        Ok(worker)
    }
}

fn ended() -> EngineError {
    EngineError("the thread that computes has ended".to_owned())
}

impl Engine for Worker {
    fn vocab(&self) -> u32 {
        self.vocab
    }
    fn context_length(&self) -> u32 {
        self.context_length
    }
    fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }
    fn rows_max(&self) -> usize {
        self.rows_max
    }
    fn overlaps(&self) -> bool {
        false
    }
    fn pages(&self) -> Arc<dyn PageStore> {
        Arc::clone(&self.pages)
    }
    fn launch(&mut self, batch: &Batch) -> Result<(), EngineError> {
        if self.launched {
            return Err(EngineError("the step before is not collected".to_owned()));
        }
        self.batches.send(batch.clone()).map_err(|_| ended())?;
        self.launched = true;
        Ok(())
    }
    fn is_ready(&mut self) -> Result<bool, EngineError> {
        if self.done.is_none() {
            self.done = match self.results.try_recv() {
                Ok(results) => Some(results),
                Err(TryRecvError::Empty) => None,
                Err(TryRecvError::Disconnected) => return Err(ended()),
            };
        }
        Ok(self.done.is_some())
    }
    fn rest(&mut self) -> Result<(), EngineError> {
        if self.done.is_none() {
            self.done = match self.results.recv_timeout(REST) {
                Ok(results) => Some(results),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return Err(ended()),
            };
        }
        Ok(())
    }
    fn collect(&mut self) -> Result<Vec<Option<Token>>, EngineError> {
        if !self.launched {
            return Err(EngineError("collect without a launch".to_owned()));
        }
        let results = match self.done.take() {
            Some(results) => results,
            None => self.results.recv().map_err(|RecvError| ended())?,
        };
        self.launched = false;
        let (drawn, read) = results?;
        self.read = read;
        Ok(drawn)
    }
    fn read(&mut self) -> Vec<Option<Read>> {
        std::mem::take(&mut self.read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Input, Row};
    use shared::ids::{PageId, TokenId};
    use shared::kv::{KvDtype, KvGeometry};
    use std::ops::Range;

    struct NoPages(KvGeometry);

    impl PageStore for NoPages {
        fn geometry(&self) -> &KvGeometry {
            &self.0
        }
        fn pages(&self) -> u32 {
            1
        }
        fn read(&self, _: PageId, _: Range<usize>, _: &mut [u8]) {}
        fn write(&self, _: PageId, _: Range<usize>, _: &[u8]) {}
    }

    /// Draws a row's first token again, when it may.
    struct Echo {
        may: Receiver<()>,
        results: Vec<Option<Token>>,
    }

    impl Engine for Echo {
        fn vocab(&self) -> u32 {
            9
        }
        fn context_length(&self) -> u32 {
            8
        }
        fn fingerprint(&self) -> [u8; 32] {
            [7; 32]
        }
        fn rows_max(&self) -> usize {
            2
        }
        fn overlaps(&self) -> bool {
            false
        }
        fn pages(&self) -> Arc<dyn PageStore> {
            let (layers, kv_heads, head_dim, page_tokens) = (1, 1, 1, 1);
            let dtype = KvDtype::Bf16;
            Arc::new(NoPages(KvGeometry { layers, kv_heads, head_dim, page_tokens, dtype }))
        }
        fn launch(&mut self, batch: &Batch) -> Result<(), EngineError> {
            self.may.recv().map_err(|_| EngineError("no more".to_owned()))?;
            let token = |row: &Row| match &row.input {
                Input::Tokens(ids) => Some(Token { id: ids[0], logprob: 0.0, top: vec![] }),
                Input::Drawn(_) => None,
            };
            self.results = batch.rows.iter().map(token).collect();
            Ok(())
        }
        fn collect(&mut self) -> Result<Vec<Option<Token>>, EngineError> {
            Ok(std::mem::take(&mut self.results))
        }
    }

    #[test]
    fn a_launch_returns_at_once_and_the_result_is_looked_for() {
        let (go, may) = sync_channel(1);
        let mut worker = Worker::new(Echo { may, results: vec![] }).unwrap();
        assert!(worker.collect().is_err(), "nothing was launched");
        let input = Input::Tokens(vec![TokenId::new(5)]);
        let row = Row { input, start: 0, pages: vec![], sample: None, reads: None };
        let batch = Batch { rows: vec![row] };
        for _ in 0..3 {
            worker.launch(&batch).unwrap();
            assert!(!worker.is_ready().unwrap(), "it may not compute yet");
            assert!(worker.launch(&batch).is_err(), "one at a time");
            go.send(()).unwrap();
            while !worker.is_ready().unwrap() {
                worker.rest().unwrap();
            }
            let ids: Vec<_> =
                worker.collect().unwrap().into_iter().flatten().map(|t| t.id.get()).collect();
            assert_eq!(ids, [5]);
        }
        worker.launch(&batch).unwrap();
        drop(go);
        assert!(worker.collect().is_err(), "the engine's error comes through");
    }
}
