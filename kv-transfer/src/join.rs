//! Choosing a transport for a pair: three messages over the control connection.
//!
//! 1. [`Targets::offer`]: the target offers every transport that it has, best first.
//! 2. [`Sources::answer`]: the source connects every one of them that it can, and says for the
//!    others why not.
//! 3. [`Offered::settle`]: the target takes the first that it can confirm and says which; the
//!    others are revoked here and, by [`Answered::settled`], closed there.
//!
//! Either end then has a [`Report`]: which transport, and why not a better one. An end that stops
//! half-way just drops what it holds, which revokes or closes it.

use crate::offer::{Reader, Writer};
use crate::{Joined, Kind, Link, Proof, SessionId, Source, Target, TransferError};
use std::fmt;
use std::sync::Arc;

/// Most transports that a message may name; far more than there are.
const MOST: u8 = 8;

/// Which transport a pair uses and why not a better one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The transport in use.
    pub kind: Kind,
    /// Better ones, each with the reason against it.
    pub passed_over: Vec<(Kind, String)>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        for (kind, reason) in &self.passed_over {
            write!(f, "; not {kind}: {reason}")?;
        }
        Ok(())
    }
}

/// What became of one transport at one end.
type Outcome<T> = (Kind, Result<T, String>);

/// The transports of a server that receives, best first.
#[derive(Clone)]
pub struct Targets(Arc<Vec<Outcome<Box<dyn Target>>>>);

impl Targets {
    /// Transports in order of preference; an `Err` is one that this server lacks, with the reason.
    pub fn new(targets: Vec<Outcome<Box<dyn Target>>>) -> Self {
        Self(Arc::new(targets))
    }

    /// Offers every transport to one writer.
    ///
    /// # Errors
    /// [`TransferError::Unavailable`] if there is none to offer.
    pub fn offer(&self) -> Result<Offered, TransferError> {
        let mut offered =
            Offered { targets: self.clone(), sessions: Vec::new(), bytes: Vec::new() };
        let outcomes: Vec<Outcome<Vec<u8>>> = self
            .0
            .iter()
            .map(|(kind, target)| {
                let target = target.as_ref().map_err(Clone::clone);
                let accepted = target.and_then(|t| t.accept().map_err(|e| e.to_string()));
                let bytes = accepted.map(|offer| {
                    offered.sessions.push((*kind, offer.session));
                    offer.bytes
                });
                (*kind, bytes)
            })
            .collect();
        none_left(&outcomes)?;
        offered.bytes = write_outcomes(&outcomes);
        Ok(offered)
    }

    fn target(&self, kind: Kind) -> Option<&dyn Target> {
        let found = self.0.iter().find(|(have, _)| *have == kind);
        found.and_then(|(_, target)| target.as_ref().ok()).map(|target| &**target)
    }

    fn revoke(&self, kind: Kind, session: SessionId) -> Proof {
        self.target(kind).map_or(Proof::Immediate, |target| target.revoke(session))
    }
}

/// Step 1 at the target: sessions that nobody has joined yet. Dropping it revokes them.
pub struct Offered {
    targets: Targets,
    sessions: Vec<(Kind, SessionId)>,
    bytes: Vec<u8>,
}

impl Offered {
    /// The message for the source. Holds secrets.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Step 3: takes the best transport that `answer` connected and this end can confirm. Returns
    /// the session and the message for the source.
    ///
    /// # Errors
    /// [`TransferError::Malformed`] for a message that is none, [`TransferError::Unavailable`]
    /// with all reasons if no transport is left.
    pub fn settle(mut self, answer: &[u8]) -> Result<(Session, Vec<u8>), TransferError> {
        let mut passed_over = Vec::new();
        for (kind, reply) in read_outcomes(answer)? {
            let offered = self.sessions.iter().position(|(have, _)| *have == kind);
            let target = self.targets.target(kind).zip(offered);
            let confirmed = match (reply, target) {
                (Err(reason), _) => Err(reason),
                (Ok(_), None) => Err("was not offered".to_owned()),
                (Ok(reply), Some((target, at))) => target
                    .confirm(self.sessions[at].1, reply)
                    .map(|()| self.sessions.swap_remove(at).1)
                    .map_err(|e| e.to_string()),
            };
            match confirmed {
                Ok(session) => {
                    let report = Report { kind, passed_over };
                    let bytes = write_report(&report);
                    let targets = self.targets.clone();
                    return Ok((Session { targets, session: Some(session), report }, bytes));
                }
                Err(reason) => passed_over.push((kind, reason)),
            }
        }
        Err(nothing_works(&passed_over))
    }
}

impl Drop for Offered {
    fn drop(&mut self) {
        for &(kind, session) in &self.sessions {
            // Nobody was granted a page through it, so its proof is of no interest.
            drop(self.targets.revoke(kind, session));
        }
    }
}

/// A joined writer, as the target sees it.
pub struct Session {
    targets: Targets,
    /// `None` once revoked.
    session: Option<SessionId>,
    report: Report,
}

impl Session {
    /// Which transport it uses and why.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Ends the writer's access; the proof says when its pages may be used again.
    pub fn revoke(mut self) -> Proof {
        self.end()
    }

    fn end(&mut self) -> Proof {
        let ended = self.session.take();
        ended.map_or(Proof::Immediate, |session| self.targets.revoke(self.report.kind, session))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        drop(self.end());
    }
}

/// The transports of a server that sends.
#[derive(Clone)]
pub struct Sources(Arc<Vec<Outcome<Box<dyn Source>>>>);

impl Sources {
    /// Transports; an `Err` is one that this server lacks, with the reason.
    pub fn new(sources: Vec<Outcome<Box<dyn Source>>>) -> Self {
        Self(Arc::new(sources))
    }

    /// Step 2: connects every offered transport that works here, in the target's order. Blocks
    /// for a bounded time.
    ///
    /// # Errors
    /// [`TransferError::Malformed`] for a message that is none, [`TransferError::Unavailable`]
    /// with all reasons if none works.
    pub fn answer(&self, offer: &[u8]) -> Result<Answered, TransferError> {
        let mut links = Vec::new();
        let mut outcomes = Vec::new();
        for (kind, offer) in read_outcomes(offer)? {
            let found = self.0.iter().find(|(have, _)| *have == kind);
            let joined = match (offer, found) {
                (Err(reason), _) => Err(format!("at the target: {reason}")),
                (Ok(_), None) => Err("the source has no such transport".to_owned()),
                (Ok(_), Some((_, Err(reason)))) => Err(format!("at the source: {reason}")),
                (Ok(offer), Some((_, Ok(source)))) => {
                    source.connect(offer).map_err(|e| e.to_string())
                }
            };
            let reply = joined.map(|Joined { link, reply }| {
                links.push(link);
                reply
            });
            outcomes.push((kind, reply));
        }
        none_left(&outcomes)?;
        Ok(Answered { links, bytes: write_outcomes(&outcomes) })
    }
}

/// Step 2 at the source: links of which the target will take one. Dropping it closes them.
pub struct Answered {
    links: Vec<Box<dyn Link>>,
    bytes: Vec<u8>,
}

impl Answered {
    /// The message for the target.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Keeps the link that the target took, closes the others.
    ///
    /// # Errors
    /// [`TransferError::Malformed`] for a message that is none or names no link of these.
    pub fn settled(self, verdict: &[u8]) -> Result<(Box<dyn Link>, Report), TransferError> {
        let report = read_report(verdict)?;
        let mut taken = None;
        for link in self.links {
            if link.kind() == report.kind && taken.is_none() {
                taken = Some(link);
            } else {
                drop(link.close());
            }
        }
        let taken = taken.ok_or_else(|| {
            TransferError::malformed("verdict.kind", &report.kind, "a transport that was answered")
        })?;
        Ok((taken, report))
    }
}

fn none_left<T>(outcomes: &[Outcome<T>]) -> Result<(), TransferError> {
    let reason = |(kind, outcome): &Outcome<T>| match outcome {
        Ok(_) => None,
        Err(reason) => Some((*kind, reason.clone())),
    };
    let failed: Vec<_> = outcomes.iter().filter_map(reason).collect();
    if failed.len() < outcomes.len() { Ok(()) } else { Err(nothing_works(&failed)) }
}

fn nothing_works(failed: &[(Kind, String)]) -> TransferError {
    let reasons: Vec<_> = failed.iter().map(|(kind, why)| format!("{kind}: {why}")).collect();
    let reason = if reasons.is_empty() { "none offered".to_owned() } else { reasons.join("; ") };
    TransferError::Unavailable { transport: "any transport", reason }
}

fn write_outcomes(outcomes: &[Outcome<Vec<u8>>]) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.u8(u8::try_from(outcomes.len()).expect("there are four transports"));
    for (kind, outcome) in outcomes {
        writer.u8(kind.code());
        match outcome {
            Ok(bytes) => writer.u8(1).blob(bytes),
            Err(reason) => writer.u8(0).text(reason),
        };
    }
    writer.0
}

fn read_outcomes(bytes: &[u8]) -> Result<Vec<Outcome<&[u8]>>, TransferError> {
    let mut reader = Reader(bytes);
    let outcomes = (0..read_count(&mut reader)?)
        .map(|_| {
            let kind = read_kind(&mut reader)?;
            let works = reader.u8("join.works")?;
            let blob = reader.blob("join.bytes")?;
            Ok((kind, if works == 1 { Ok(blob) } else { Err(printable(blob)) }))
        })
        .collect::<Result<Vec<_>, TransferError>>()?;
    reader.end()?;
    Ok(outcomes)
}

fn write_report(report: &Report) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.u8(report.kind.code());
    writer.u8(u8::try_from(report.passed_over.len()).expect("there are four transports"));
    for (kind, reason) in &report.passed_over {
        writer.u8(kind.code()).text(reason);
    }
    writer.0
}

fn read_report(bytes: &[u8]) -> Result<Report, TransferError> {
    let mut reader = Reader(bytes);
    let kind = read_kind(&mut reader)?;
    let passed_over = (0..read_count(&mut reader)?)
        .map(|_| Ok((read_kind(&mut reader)?, printable(reader.blob("verdict.reason")?))))
        .collect::<Result<Vec<_>, TransferError>>()?;
    reader.end()?;
    Ok(Report { kind, passed_over })
}

fn read_count(reader: &mut Reader<'_>) -> Result<u8, TransferError> {
    let count = reader.u8("join.count")?;
    if count <= MOST {
        Ok(count)
    } else {
        Err(TransferError::malformed("join.count", &count, "0 to 8"))
    }
}

fn read_kind(reader: &mut Reader<'_>) -> Result<Kind, TransferError> {
    let code = reader.u8("join.kind")?;
    Kind::from_code(code).ok_or_else(|| TransferError::malformed("join.kind", &code, "0 to 3"))
}

/// A peer's words, fit for a log.
fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().filter(|c| !c.is_control()).take(500).collect()
}
