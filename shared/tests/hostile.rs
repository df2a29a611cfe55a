//! The wire's fuzz entry points on fixed seeds: any bytes, and valid messages with damage.

#[path = "../../fuzz/src/wire.rs"]
mod wire;

use shared::ids::{Attempt, Epoch, PageId, RequestId, ServerId, TicketId, TokenId};
use shared::kv::{KvDtype, KvGeometry};
use shared::request::{Finish, Grammar, Read, Reads, Request, RequestParts, Sampling, Token};
use shared::wire::codec::encode;
use shared::wire::frame::{FrameKey, FrameKind, seal};
use shared::wire::handshake::{Capacity, Hello, Identity, Layout, Refuse, Role, Welcome};
use shared::wire::messages::{
    DecodeToGateway, DecodeToPrefill, Emitted, Fault, FaultKind, GatewayToDecode, GatewayToPrefill,
    Handoff, Load, PageRun, PrefillTimes, PrefillToDecode, PrefillToGateway, Refusal, RequestKey,
    Target,
};

fn key() -> RequestKey {
    RequestKey { id: RequestId::new(Epoch::new(11), 12), attempt: Attempt::new(1) }
}

fn request() -> Request {
    let ids = |raw: std::ops::Range<u32>| raw.map(TokenId::new).collect::<Vec<_>>();
    let parts = RequestParts {
        tokens: ids(100..120),
        prompt_len: 18,
        max_tokens: 30,
        min_tokens: 2,
        sampling: Sampling::GREEDY,
        logit_bias: vec![(TokenId::new(7), -1.5)],
        stop_ids: ids(2..4),
        logprobs: Some(2),
        logprob_ids: ids(8..10),
        salt: "tenant".to_owned(),
        priority: -1,
        grammar: Some(Box::new(Grammar::Regex("a+".to_owned()))),
        reads: Some(Reads::Logprobs { from: 3, top: 2 }),
    };
    parts.try_into().expect("these parts fit")
}

fn token() -> Token {
    Token { id: TokenId::new(5), logprob: -0.5, top: vec![(TokenId::new(5), -0.5)] }
}

fn identity() -> Identity {
    let id = ServerId::new("prefill-0").expect("a good name");
    Identity { role: Role::Prefill, id, epoch: Epoch::new(9) }
}

fn layout() -> Layout {
    let geometry =
        KvGeometry { layers: 30, kv_heads: 3, head_dim: 64, page_tokens: 16, dtype: KvDtype::Bf16 };
    Layout { model: [4; 32], geometry, tensor_parallel: 1 }
}

/// A message of every arrow and handshake step, encoded.
fn samples() -> Vec<Vec<u8>> {
    let fault = Fault { kind: FaultKind::PeerLost, message: "decode-0 is silent".to_owned() };
    let refusal = Refusal::TooLarge { pages: 9, pool: 8 };
    let target = Target { decode: identity().id, epoch: Epoch::new(3), ticket: TicketId::new(4) };
    let times = PrefillTimes { queued_us: 1, computed_us: 2, exposed_us: 3 };
    let emitted = Emitted {
        key: key(),
        cached_tokens: 16,
        tokens: vec![token()],
        finish: Some(Finish::Length),
        times: Some(times),
    };
    let load = Load {
        pages_available: 1,
        queued: 2,
        tokens: 3,
        running: 4,
        pages_quarantined: 5,
        draining: true,
    };
    let runs = vec![PageRun { start: PageId::new(3), count: 4 }];
    let handoff = Handoff {
        ticket: TicketId::new(4),
        key: key(),
        first: token(),
        cached_tokens: 16,
        checksums: vec![1, 2],
        times,
    };
    let opened = DecodeToPrefill::Opened { ticket: TicketId::new(4), held: 1, runs };
    let reserve =
        GatewayToDecode::Reserve { key: key(), writer: Epoch::new(3), request: request() };
    let prefill =
        GatewayToPrefill::Prefill { key: key(), request: request(), target: Some(target) };
    let capacity = Capacity { pages: 512, context_length: 8192, vocab: 49152 };
    [
        encode(&reserve),
        encode(&GatewayToDecode::Cancel(key())),
        encode(&DecodeToGateway::Tokens(vec![emitted.clone()])),
        encode(&DecodeToGateway::Failed { key: key(), fault: fault.clone() }),
        encode(&DecodeToGateway::Load(load)),
        encode(&prefill),
        encode(&PrefillToGateway::Refused { key: key(), refusal }),
        encode(&PrefillToGateway::Result(emitted)),
        encode(&PrefillToGateway::Read { key: key(), read: Read::Tokens(vec![token()]) }),
        encode(&PrefillToGateway::Read { key: key(), read: Read::Hidden(vec![0.5, -1.0]) }),
        encode(&PrefillToDecode::Answer(vec![1, 2, 3])),
        encode(&PrefillToDecode::Handoff(Box::new(handoff))),
        encode(&PrefillToDecode::Closed { ticket: TicketId::new(4), fault }),
        encode(&opened),
        encode(&Hello { nonce: [1; 16], from: identity(), layout: Some(layout()) }),
        encode(&Welcome { nonce: [2; 16], from: identity(), layout: layout(), capacity }),
        encode(&Refuse { reason: "page geometry differs".to_owned() }),
    ]
    .map(|bytes| bytes.expect("samples are small"))
    .to_vec()
}

/// `xorshift64*`: the same damage every time.
struct Seeded(u64);

impl Seeded {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n
    }

    /// Cuts, lengthens, or overwrites bytes, lengths and tags among them.
    fn damage(&mut self, bytes: &mut Vec<u8>) {
        const NUMBERS: [u64; 6] = [0, 1, 0x7fff_ffff, 0xffff_ffff, 1 << 40, u64::MAX];
        for _ in 0..=self.below(3) {
            let at = self.below(bytes.len().max(1));
            match self.below(5) {
                0 => bytes.truncate(at),
                1 => bytes.extend((0..self.below(9)).map(|i| i as u8)),
                2 => {
                    let number = NUMBERS[self.below(NUMBERS.len())].to_le_bytes();
                    let into = bytes.iter_mut().skip(at);
                    into.zip(number).for_each(|(old, new)| *old = new);
                }
                3 => bytes.iter_mut().skip(at).take(1).for_each(|b| *b ^= 1 << self.below(8)),
                _ => bytes.iter_mut().skip(at).take(1).for_each(|b| *b = self.below(256) as u8),
            }
        }
    }
}

#[test]
fn damaged_messages_are_refused_or_written_back_the_same() {
    let mut random = Seeded(1);
    for sample in samples() {
        assert!(wire::messages(&sample) > 0, "{sample:02x?}");
        for len in 0..sample.len() {
            wire::messages(&sample[..len]);
        }
        for _ in 0..2_000 {
            let mut bytes = sample.clone();
            random.damage(&mut bytes);
            wire::messages(&bytes);
        }
    }
}

#[test]
fn any_bytes_are_no_message_at_worst() {
    let mut random = Seeded(2);
    for _ in 0..20_000 {
        let len = random.below(80);
        // Small numbers: what tags and lengths are made of.
        let bytes: Vec<u8> = (0..len)
            .map(|_| if random.below(3) == 0 { random.below(256) } else { random.below(4) } as u8)
            .collect();
        wire::messages(&bytes);
        wire::frame(&bytes);
    }
}

#[test]
fn damaged_frames_are_refused_or_sealed_the_same() {
    let mut random = Seeded(3);
    let key = FrameKey::new([7; 32]);
    for sample in samples() {
        let frame = seal(FrameKind::PrefillToDecode, 6, &key, &sample);
        assert!(wire::frame(&frame));
        for _ in 0..500 {
            let mut bytes = frame.clone();
            random.damage(&mut bytes);
            assert_eq!(wire::frame(&bytes), bytes.starts_with(&frame), "{bytes:02x?}");
        }
    }
}

#[test]
fn a_length_from_the_wire_allocates_nothing() {
    // A tag and then a string, a list or bytes of 2^62: refused, not allocated.
    for tag in 0..12_u32 {
        let mut bytes = tag.to_le_bytes().to_vec();
        bytes.extend((1_u64 << 62).to_le_bytes());
        bytes.extend([0; 64]);
        assert_eq!(wire::messages(&bytes), 0, "tag {tag}");
    }
}

/// One line of hex a sample. A difference means that old and new servers misread each other: bump
/// `WIRE_VERSION`, then write the new lines.
#[test]
fn messages_have_their_golden_bytes() {
    let hex = |bytes: Vec<u8>| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>() + "\n";
    let now: String = samples().into_iter().map(hex).collect();
    let golden = include_str!("../../tests/golden/wire/messages.hex");
    assert_eq!(now, golden, "the wire has changed");
}
