//! The one connection that a peer's incarnation may have.
//!
//! 1. A connection takes its incarnation's [`Place`] before it says a word. That asks the one
//!    before to leave, and waits until it has.
//! 2. While it serves it watches [`Place::taken`].
//! 3. Leaving, it tells the engine that it is over, and only then drops its place.
//!
//! Invariant: what two connections of an incarnation tell the engine does not mix. Without that
//! the end of a connection that was given up, noticed late, would pass for the end of the one that
//! has replaced it.

use shared::ids::Epoch;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, oneshot};

/// The places of all incarnations; `T` stays with a place when its connection leaves.
pub struct Places<T> {
    seats: Mutex<HashMap<Epoch, Arc<Seat<T>>>>,
    /// Whether what a connection left behind is still needed.
    needed: fn(&T) -> bool,
}

struct Seat<T> {
    /// Dropped to ask for the place.
    leave: Mutex<Option<oneshot::Sender<()>>>,
    kept: Arc<AsyncMutex<T>>,
}

/// A connection's right to serve.
pub struct Place<T> {
    /// What earlier connections left here.
    pub kept: OwnedMutexGuard<T>,
    /// Says when another connection wants the place.
    pub taken: Taken,
    /// Keeps the place on the list.
    _seat: Arc<Seat<T>>,
}

/// See [`Place::taken`].
pub struct Taken(oneshot::Receiver<()>);

impl Taken {
    /// Returns once another connection wants the place; not to be called again then. Cancel safe.
    pub async fn wait(&mut self) {
        drop((&mut self.0).await);
    }
}

impl<T: Default> Places<T> {
    /// No places yet. What was left in a place is dropped once it is not `needed`.
    pub fn new(needed: fn(&T) -> bool) -> Self {
        Self { seats: Mutex::default(), needed }
    }

    /// The place of `epoch`, once every earlier connection of it has left. Cancel safe.
    pub async fn take(&self, epoch: Epoch) -> Place<T> {
        let seat = self.seat(epoch);
        let (leave, taken) = oneshot::channel();
        drop(seat.leave.lock().unwrap_or_else(PoisonError::into_inner).replace(leave));
        let kept = Arc::clone(&seat.kept).lock_owned().await;
        Place { kept, taken: Taken(taken), _seat: seat }
    }

    fn seat(&self, epoch: Epoch) -> Arc<Seat<T>> {
        let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        let needed = |kept: &AsyncMutex<T>| kept.try_lock().is_ok_and(|kept| (self.needed)(&kept));
        seats.retain(|_, seat| Arc::strong_count(seat) > 1 || needed(&seat.kept));
        let seat = seats
            .entry(epoch)
            .or_insert_with(|| Arc::new(Seat { leave: Mutex::default(), kept: Arc::default() }));
        Arc::clone(seat)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc;

    /// A connection that reports when it comes and, later than its successor's arrival, its end.
    async fn connection(places: Arc<Places<u32>>, name: &'static str, said: mpsc::Sender<String>) {
        let mut place = places.take(Epoch::new(1)).await;
        said.send(format!("{name} up")).await.unwrap();
        place.taken.wait().await;
        tokio::task::yield_now().await;
        *place.kept += 1;
        said.send(format!("{name} lost")).await.unwrap();
    }

    #[tokio::test]
    async fn the_end_of_a_connection_comes_before_the_start_of_the_next() {
        let places = Arc::new(Places::new(|left: &u32| *left > 0));
        let (said, mut heard) = mpsc::channel(8);
        let mut before = None;
        for name in ["a", "b", "c"] {
            tokio::spawn(connection(Arc::clone(&places), name, said.clone()));
            if let Some(before) = before.replace(name) {
                assert_eq!(heard.recv().await.unwrap(), format!("{before} lost"));
            }
            assert_eq!(heard.recv().await.unwrap(), format!("{name} up"));
        }
        let last = places.take(Epoch::new(1)).await;
        assert_eq!(heard.recv().await.unwrap(), "c lost");
        assert_eq!(*last.kept, 3, "what was left in the place stays");
    }

    #[tokio::test]
    async fn places_that_nobody_needs_are_dropped() {
        let places = Places::new(|left: &u32| *left > 0);
        places.take(Epoch::new(1)).await.kept.clone_from(&7);
        drop(places.take(Epoch::new(2)).await);
        drop(places.take(Epoch::new(3)).await);
        let seats = places.seats.lock().unwrap();
        let mut epochs: Vec<_> = seats.keys().map(|epoch| epoch.get()).collect();
        epochs.sort_unstable();
        assert_eq!(epochs, [1, 3]);
    }
}
