//! The wire's entry points.

use shared::ids::PageId;
use shared::wire::codec::{decode, encode};
use shared::wire::frame::{FrameKey, HEADER_BYTES, Header, seal};
use shared::wire::handshake::{Hello, Refuse, Welcome};
use shared::wire::messages::{
    DecodeToGateway, DecodeToPrefill, GatewayToDecode, GatewayToPrefill, PageRun, PrefillToDecode,
    PrefillToGateway,
};

const KEY: FrameKey = FrameKey::new([7; 32]);
const LIMIT: u32 = 1 << 16;

/// Bytes as a peer's frame; true if accepted. What is accepted is what sealing its content gives.
pub fn frame(bytes: &[u8]) -> bool {
    let Some((head, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else { return false };
    let counter = u64::from_le_bytes(head[16..24].try_into().expect("8 bytes"));
    let Ok(header) = Header::parse(*head, LIMIT, counter) else { return false };
    let Some(payload) = rest.get(..header.length()) else { return false };
    if header.verify(&KEY, payload).is_err() {
        return false;
    }
    assert!(bytes.starts_with(&seal(header.kind(), counter, &KEY, payload)));
    true
}

/// Bytes as the payload of every kind of frame; how many kinds accept them. What is accepted is
/// written back the same, and the pages that it names are inside the pool.
pub fn messages(bytes: &[u8]) -> usize {
    let to_prefill = same::<DecodeToPrefill>(bytes);
    match &to_prefill {
        Some(DecodeToPrefill::Opened { runs, .. }) => pages(runs),
        Some(DecodeToPrefill::Verdict { scratch, .. }) => pages(scratch),
        _ => {}
    }
    let (hello, welcome) = (same::<Hello>(bytes), same::<Welcome>(bytes));
    let layouts = [hello.as_ref().and_then(|m| m.layout), welcome.as_ref().map(|m| m.layout)];
    for layout in layouts.into_iter().flatten() {
        if layout.geometry.invalid().is_none() {
            // Overflow panics in a fuzz build.
            layout.geometry.page_offset(PageId::new(u32::MAX));
        }
    }
    let accepted = [
        same::<GatewayToDecode>(bytes).is_some(),
        same::<DecodeToGateway>(bytes).is_some(),
        same::<GatewayToPrefill>(bytes).is_some(),
        same::<PrefillToGateway>(bytes).is_some(),
        same::<PrefillToDecode>(bytes).is_some(),
        same::<Refuse>(bytes).is_some(),
        to_prefill.is_some(),
        hello.is_some(),
        welcome.is_some(),
    ];
    accepted.into_iter().filter(|&yes| yes).count()
}

fn same<T: serde::Serialize + serde::de::DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let value: T = decode(bytes).ok()?;
    assert_eq!(encode(&value).as_deref(), Ok(bytes));
    Some(value)
}

fn pages(runs: &[PageRun]) {
    const POOL: u32 = 100;
    const LIMIT: u32 = 40;
    if let Ok(pages) = PageRun::unpack(runs, POOL, LIMIT) {
        assert!(pages.len() <= LIMIT as usize && pages.iter().all(|page| page.get() < POOL));
    }
}
