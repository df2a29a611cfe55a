//! Named points at which a test may freeze a server, so that a kill lands where the test says.
//!
//! A server is started with `--stop-at POINT` or `POINT:N`; the N-th time it gets there it stops
//! itself by SIGSTOP, all threads, until somebody continues or kills it. Without the flag a point
//! is one comparison.

use std::fmt;
use std::str::FromStr;

/// Where a server can be made to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopPoint {
    /// Prefill: a request is queued.
    PrefillQueued,
    /// Prefill: `Open` is about to be sent.
    PrefillOpening,
    /// Prefill: a chunk is computed.
    PrefillComputed,
    /// Prefill: pages are queued for writing, more follow.
    PrefillWriting,
    /// Prefill: all pages are visible, the Handoff is not sent.
    PrefillWritten,
    /// Prefill: the Handoff is queued for sending.
    PrefillHanded,
    /// Decode: a ticket is granted.
    DecodeGranted,
    /// Decode: pages are named.
    DecodeOpened,
    /// Decode: a Handoff is there, and no token of it sent.
    DecodeLanded,
    /// Decode: a step is done, its tokens not sent.
    DecodeStepped,
}

impl StopPoint {
    /// Every point, with its name.
    pub const ALL: [(Self, &'static str); 10] = [
        (Self::PrefillQueued, "prefill-queued"),
        (Self::PrefillOpening, "prefill-opening"),
        (Self::PrefillComputed, "prefill-computed"),
        (Self::PrefillWriting, "prefill-writing"),
        (Self::PrefillWritten, "prefill-written"),
        (Self::PrefillHanded, "prefill-handed"),
        (Self::DecodeGranted, "decode-granted"),
        (Self::DecodeOpened, "decode-opened"),
        (Self::DecodeLanded, "decode-landed"),
        (Self::DecodeStepped, "decode-stepped"),
    ];
}

/// One point and how many times to pass it; by default none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stops(Option<(StopPoint, u32)>);

impl Stops {
    /// Stops the process here if this is the point and the count is up.
    pub fn reach(&mut self, here: StopPoint) {
        let Some((point, left)) = &mut self.0 else { return };
        if *point != here {
            return;
        }
        *left -= 1;
        if *left == 0 {
            self.0 = None;
            tracing::warn!(point = ?here, "stopping, as told by --stop-at");
            // By the thread's id, the signal is this thread's to take before it goes on; by the
            // process's, another thread takes it and this one may get past the point meanwhile.
            let stopped = rustix::process::kill_process(
                rustix::thread::gettid(),
                rustix::process::Signal::STOP,
            );
            if let Err(error) = stopped {
                tracing::error!(%error, "cannot stop");
            }
        }
    }
}

/// A text that names no stop point.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("stop point {given:?}: want one of {}, with an optional :N", names())]
pub struct BadStop {
    given: String,
}

fn names() -> String {
    StopPoint::ALL.map(|(_, name)| name).join(", ")
}

impl FromStr for Stops {
    type Err = BadStop;

    fn from_str(text: &str) -> Result<Self, BadStop> {
        let bad = || BadStop { given: text.to_string() };
        let (name, count) = text.split_once(':').unwrap_or((text, "1"));
        let count: u32 = count.parse().ok().filter(|&n| n > 0).ok_or_else(bad)?;
        let point = StopPoint::ALL.into_iter().find(|(_, n)| *n == name).ok_or_else(bad)?;
        Ok(Self(Some((point.0, count))))
    }
}

impl fmt::Display for Stops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}
