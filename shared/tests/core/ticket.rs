//! The ledger beside a plain list of tickets, with real pages in it.

use proptest::prelude::*;
use shared::ids::{Attempt, Epoch, RequestId, TicketId};
use shared::pool::{Credit, Owned, Pool, Quarantined};
use shared::ticket::{Cancelled, Ended, NotOpen, Quarantine, Tickets};
use std::time::Duration;

const PAGES: u32 = 40;
const LIMIT: usize = 6;
const FIRST: u64 = 100;

struct Load {
    number: u64,
    credit: Credit,
    pages: Vec<Owned>,
}

impl Quarantine for Load {
    type Held = Vec<Quarantined>;
    type Rest = u64;
    fn quarantine(self) -> (u64, Vec<Quarantined>) {
        (self.number, self.pages.into_iter().map(Owned::quarantine).collect())
    }
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Grant { writer: u64, pages: u32, ttl: u64 },
    Open { ticket: u64, writer: u64, other: bool },
    Land(u64, u64),
    Close(u64, u64),
    Revoke(u64),
    Cancel(u64),
    CancelGateway(u64),
    Expire(u64),
    Lost(u64),
    Ended(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let ticket = || FIRST - 1..FIRST + 16;
    let writer = || 0..3_u64;
    prop_oneof![
        4 => (writer(), 0..12_u32, 1..20_u64)
            .prop_map(|(writer, pages, ttl)| Op::Grant { writer, pages, ttl }),
        4 => (ticket(), writer(), prop::bool::weighted(0.1))
            .prop_map(|(ticket, writer, other)| Op::Open { ticket, writer, other }),
        2 => (ticket(), writer()).prop_map(|(t, w)| Op::Land(t, w)),
        2 => (ticket(), writer()).prop_map(|(t, w)| Op::Close(t, w)),
        1 => ticket().prop_map(Op::Revoke),
        2 => (0..16_u64).prop_map(Op::Cancel),
        1 => (0..2_u64).prop_map(Op::CancelGateway),
        1 => (0..6_u64).prop_map(Op::Expire),
        1 => writer().prop_map(Op::Lost),
        1 => writer().prop_map(Op::Ended),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    Granted,
    Opened,
    Cancelled,
    Quarantined,
}

/// A ticket as the model sees it. Request number and ticket number go in step.
#[derive(Clone, Copy, Debug)]
struct Line {
    number: u64,
    writer: u64,
    pages: u32,
    expires: u64,
    phase: Phase,
}

struct Both {
    pool: Pool,
    tickets: Tickets<Load>,
    lines: Vec<Line>,
    next: u64,
    now: u64,
}

fn gateway(of: u64) -> Epoch {
    Epoch::new(7 + of)
}

fn request(number: u64) -> RequestId {
    RequestId::new(gateway(number % 2), number)
}

impl Both {
    fn line(&self, ticket: u64, writer: u64) -> Result<usize, NotOpen> {
        let found = self.lines.iter().position(|line| FIRST + line.number == ticket);
        let at = found.ok_or(if (FIRST..FIRST + self.next).contains(&ticket) {
            NotOpen::Gone
        } else {
            NotOpen::Unknown
        })?;
        let granted = self.lines[at].writer;
        if granted == writer { Ok(at) } else { Err(NotOpen::ForeignWriter(Epoch::new(granted))) }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Grant { writer, pages, ttl } => self.grant(writer, pages, ttl),
            Op::Open { ticket, writer, other } => self.open(ticket, writer, other),
            Op::Land(ticket, writer) => self.land(ticket, writer),
            Op::Close(ticket, writer) => {
                let expected = self.line(ticket, writer).map(|at| self.lines.remove(at));
                let got = self.tickets.close(TicketId::new(ticket), Epoch::new(writer));
                assert_eq!(seen(got), expected.ok().and_then(seen_line));
            }
            Op::Revoke(ticket) => {
                let ours =
                    |line: &Line| FIRST + line.number == ticket && line.phase == Phase::Granted;
                let expected = self.lines.iter().position(ours).map(|at| self.lines.remove(at));
                let got = self.tickets.revoke(TicketId::new(ticket));
                assert_eq!(got.map(|load| load.number), expected.map(|line| line.number));
            }
            Op::Cancel(number) => self.cancel(number),
            Op::CancelGateway(of) => {
                self.tickets.cancel_gateway(gateway(of));
                self.lines.retain(|line| line.number % 2 != of || line.phase != Phase::Granted);
                let ours = |line: &&mut Line| line.number % 2 == of && line.phase == Phase::Opened;
                self.lines.iter_mut().filter(ours).for_each(|line| line.phase = Phase::Cancelled);
            }
            Op::Expire(after) => {
                self.now += after;
                let (gone, stay): (Vec<_>, Vec<_>) = self
                    .lines
                    .iter()
                    .copied()
                    .partition(|line| line.phase == Phase::Granted && line.expires <= self.now);
                self.lines = stay;
                let expired = self.tickets.expire(Duration::from_secs(self.now));
                let mut got: Vec<_> = expired.iter().map(|(_, load)| load.number).collect();
                got.sort_unstable();
                assert!(got.into_iter().eq(gone.iter().map(|line| line.number)));
                assert!(
                    self.tickets.next_expiry() > Some(Duration::from_secs(self.now))
                        || self.tickets.next_expiry().is_none()
                );
            }
            Op::Lost(writer) => self.lost(writer),
            Op::Ended(writer) => self.ended(writer),
        }
    }

    fn grant(&mut self, writer: u64, pages: u32, ttl: u64) {
        let Some(credit) = self.pool.reserve(pages) else { return };
        let number = self.next;
        let expires = self.now + ttl;
        let load = Load { number, credit, pages: Vec::new() };
        let whose = (request(number), Attempt::new(1));
        match self.tickets.grant(Epoch::new(writer), whose, load, Duration::from_secs(expires)) {
            Ok(ticket) => {
                assert!(self.lines.len() < LIMIT);
                assert_eq!(ticket, TicketId::new(FIRST + number));
                self.lines.push(Line { number, writer, pages, expires, phase: Phase::Granted });
                self.next += 1;
            }
            Err(load) => assert_eq!((self.lines.len(), load.number), (LIMIT, number)),
        }
    }

    fn open(&mut self, ticket: u64, writer: u64, other: bool) {
        let expected = self.line(ticket, writer).and_then(|at| match self.lines[at].phase {
            _ if other => {
                Err(NotOpen::OtherRequest(request(self.lines[at].number), Attempt::new(1)))
            }
            Phase::Granted => Ok(at),
            Phase::Opened | Phase::Cancelled => Err(NotOpen::AlreadyOpen),
            Phase::Quarantined => Err(NotOpen::Quarantined),
        });
        let number = ticket.saturating_sub(FIRST);
        let attempt = Attempt::new(if other { 2 } else { 1 });
        let (id, epoch) = (TicketId::new(ticket), Epoch::new(writer));
        let got = self.tickets.open(id, epoch, request(number), attempt).map(|load| {
            load.pages = load.credit.draw(load.credit.len());
            load.number
        });
        assert_eq!(got, expected.map(|at| self.lines[at].number));
        if let Ok(at) = expected {
            self.lines[at].phase = Phase::Opened;
        }
    }

    fn land(&mut self, ticket: u64, writer: u64) {
        let expected = self.line(ticket, writer).and_then(|at| match self.lines[at].phase {
            Phase::Granted => Err(NotOpen::NeverOpened),
            _ => seen_line(self.lines.remove(at)).ok_or(NotOpen::Quarantined),
        });
        let got = self.tickets.land(TicketId::new(ticket), Epoch::new(writer));
        assert_eq!(got.map(|ended| seen(Some(ended))), expected.map(Some));
    }

    fn cancel(&mut self, number: u64) {
        let ours = |line: &&mut Line| line.number == number && line.phase != Phase::Quarantined;
        let expected = match self.lines.iter_mut().find(ours).map(|line| line.phase) {
            None => Cancelled::Unknown,
            Some(Phase::Granted) => {
                self.lines.retain(|line| line.number != number);
                Cancelled::Granted(number)
            }
            Some(_) => {
                self.lines.iter_mut().filter(|line| line.number == number).for_each(|line| {
                    line.phase = Phase::Cancelled;
                });
                Cancelled::Opened
            }
        };
        let other_attempt = self.tickets.cancel(request(number), Attempt::new(9));
        assert!(matches!(other_attempt, Cancelled::Unknown));
        let got = match self.tickets.cancel(request(number), Attempt::new(1)) {
            Cancelled::Granted(load) => Cancelled::Granted(load.number),
            Cancelled::Opened => Cancelled::Opened,
            Cancelled::Unknown => Cancelled::Unknown,
        };
        assert_eq!(got, expected);
    }

    fn numbers(&self, writer: u64, phase: Phase) -> Vec<u64> {
        let ours = self.lines.iter().filter(|line| line.writer == writer && line.phase == phase);
        ours.map(|line| line.number).collect()
    }

    fn lost(&mut self, writer: u64) {
        let lost = self.tickets.writer_lost(Epoch::new(writer));
        let revoked: Vec<_> = lost.revoked.iter().map(|load| load.number).collect();
        assert_eq!(revoked, self.numbers(writer, Phase::Granted));
        assert_eq!(lost.failed, self.numbers(writer, Phase::Opened));
        let cancelled = self.numbers(writer, Phase::Cancelled).len();
        assert_eq!((lost.quarantined, lost.freed), (lost.failed.len() + cancelled, 0));
        self.lines.retain(|line| line.writer != writer || line.phase != Phase::Granted);
        self.lines.iter_mut().filter(|line| line.writer == writer).for_each(|line| {
            line.phase = Phase::Quarantined;
        });
    }

    fn ended(&mut self, writer: u64) {
        let lost = self.tickets.writer_ended(Epoch::new(writer));
        let revoked: Vec<_> = lost.revoked.iter().map(|load| load.number).collect();
        assert_eq!(revoked, self.numbers(writer, Phase::Granted));
        assert_eq!(lost.failed, self.numbers(writer, Phase::Opened));
        let all = self.lines.iter().filter(|line| line.writer == writer).count();
        assert_eq!((lost.quarantined, lost.freed), (0, all - revoked.len()));
        self.lines.retain(|line| line.writer != writer);
    }

    fn check(&self) {
        let in_phase = |phase| self.lines.iter().filter(move |line| line.phase == phase);
        let pages = |phase| in_phase(phase).map(|line| line.pages).sum::<u32>();
        let counts = self.pool.counts();
        assert!(counts.audit());
        assert_eq!(counts.granted, pages(Phase::Granted));
        assert_eq!(counts.owned, pages(Phase::Opened) + pages(Phase::Cancelled));
        assert_eq!(counts.quarantined, pages(Phase::Quarantined));
        let tickets = self.tickets.counts();
        assert_eq!(tickets.granted, in_phase(Phase::Granted).count());
        assert_eq!(tickets.quarantined, in_phase(Phase::Quarantined).count());
        assert_eq!(tickets.granted + tickets.opened + tickets.quarantined, self.lines.len());
    }
}

/// (number, still wanted) of an ended ticket.
fn seen(ended: Option<Ended<Load>>) -> Option<(u64, bool)> {
    ended.map(|ended| match ended {
        Ended::Wanted(load) => (load.number, true),
        Ended::Cancelled(load) => (load.number, false),
    })
}

fn seen_line(line: Line) -> Option<(u64, bool)> {
    (line.phase != Phase::Quarantined).then_some((line.number, line.phase != Phase::Cancelled))
}

proptest! {
    #[test]
    fn agrees_with_a_list_of_tickets(ops in prop::collection::vec(op(), 1..120)) {
        let mut both = Both {
            pool: Pool::new(PAGES),
            tickets: Tickets::new(TicketId::new(FIRST), LIMIT),
            lines: Vec::new(),
            next: 0,
            now: 0,
        };
        for op in ops {
            both.apply(op);
            both.check();
        }
        (0..3).for_each(|writer| both.ended(writer));
        prop_assert_eq!(both.pool.counts().free, PAGES);
    }
}
