//! Two ends on loopback sockets: what joins, what is refused, what ends a link.

use crate::handshake::answer;
use crate::{HandshakeError, LinkError, Local, Session, Timing, dial, identity};
use shared::ids::{Attempt, Epoch, RequestId, ServerId};
use shared::kv::{KvDtype, KvGeometry};
use shared::wire::handshake::{Capacity, Layout, RingKey, Role};
use shared::wire::messages::{GatewayToPrefill, PrefillToGateway, RequestKey};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

const CAPACITY: Capacity = Capacity { pages: 8, context_length: 64, vocab: 512 };

fn layout(model: u8) -> Layout {
    let geometry =
        KvGeometry { layers: 1, kv_heads: 1, head_dim: 8, page_tokens: 16, dtype: KvDtype::F32 };
    Layout { model: [model; 32], geometry, tensor_parallel: 1 }
}

fn local(role: Role, key: u8, layout: Option<Layout>, timing: Timing) -> Local {
    let id = ServerId::new(role.to_string()).unwrap();
    let identity = identity::draw(role, id).unwrap();
    Local { identity, key: RingKey::new([key; 32]), layout, timing }
}

/// Runs both ends; `a` dials a prefill server `b` that serves model 1.
async fn join(
    a: Local,
    b: Local,
) -> (Result<Session, HandshakeError>, Result<Session, HandshakeError>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let accept = async {
        let (stream, _) = listener.accept().await.unwrap();
        answer(stream, &b, layout(1), CAPACITY, &[Role::Gateway, Role::Prefill]).await
    };
    tokio::join!(dial(&address, Role::Prefill, &a), accept)
}

fn key(number: u64) -> RequestKey {
    RequestKey { id: RequestId::new(Epoch::new(1), number), attempt: Attempt::new(0) }
}

#[tokio::test]
async fn joined_ends_talk_until_one_drops() {
    let a = local(Role::Gateway, 1, None, Timing::default());
    let b = local(Role::Prefill, 1, None, Timing::default());
    let (a, b) = join(a, b).await;
    let (a, b) = (a.unwrap(), b.unwrap());
    assert_eq!((a.peer.role, b.peer.role), (Role::Prefill, Role::Gateway));
    assert_eq!((a.layout, a.capacity), (Some(layout(1)), Some(CAPACITY)));
    let (to_b, _from_b) = a.start::<GatewayToPrefill, PrefillToGateway>(4);
    let (to_a, mut from_a) = b.start::<PrefillToGateway, GatewayToPrefill>(4);
    for number in 0..100 {
        to_b.send(GatewayToPrefill::Cancel(key(number))).await.unwrap();
        assert_eq!(from_a.recv().await.unwrap(), GatewayToPrefill::Cancel(key(number)));
    }
    drop(to_b);
    assert!(matches!(from_a.recv().await, Err(LinkError::Closed)));
    drop(from_a);
    to_a.closed().await;
}

#[tokio::test]
async fn what_is_written_arrives_though_its_sender_is_gone() {
    let a = local(Role::Gateway, 1, None, Timing::default());
    let b = local(Role::Prefill, 1, None, Timing::default());
    let (a, b) = join(a, b).await;
    let (to_b, from_b) = a.unwrap().start::<GatewayToPrefill, PrefillToGateway>(64);
    let (to_a, mut from_a) = b.unwrap().start::<PrefillToGateway, GatewayToPrefill>(4);
    for number in 0..64 {
        to_b.try_send(GatewayToPrefill::Cancel(key(number))).unwrap();
    }
    assert!(!to_b.is_written(), "the writer has not run yet");
    while !to_b.is_written() {
        tokio::task::yield_now().await;
    }
    drop(from_b); // ends the writer, whatever is queued
    for number in 0..64 {
        assert_eq!(from_a.recv().await.unwrap(), GatewayToPrefill::Cancel(key(number)));
    }
    assert!(matches!(from_a.recv().await, Err(LinkError::Closed)));
    drop((from_a, to_a));
}

#[tokio::test]
async fn another_key_another_model_and_another_role_are_refused_by_name() {
    let quick = Timing { handshake: Duration::from_millis(500), ..Timing::default() };
    let server = || local(Role::Prefill, 1, None, quick);
    let (a, b) = join(local(Role::Gateway, 2, None, quick), server()).await;
    assert!(a.is_err());
    assert!(b.unwrap_err().to_string().contains("ring keys differ"));

    let (a, _) = join(local(Role::Prefill, 1, Some(layout(2)), quick), server()).await;
    let why = a.unwrap_err().to_string();
    assert!(why.contains("model digest") && why.contains("0101") && why.contains("0202"), "{why}");

    let (a, _) = join(local(Role::Prefill, 1, None, quick), server()).await;
    assert!(a.unwrap_err().to_string().contains("a prefill must say what it serves"));

    let (a, _) = join(local(Role::Decode, 1, None, quick), server()).await;
    assert!(a.unwrap_err().to_string().contains("does not take a decode"));
}

#[tokio::test]
async fn a_silent_peer_is_lost_and_garbage_is_named() {
    let timing = Timing { silence: Duration::from_millis(50), ..Timing::default() };
    let mute = Timing { heartbeat: Duration::from_secs(600), ..Timing::default() };
    let (a, b) =
        join(local(Role::Gateway, 1, None, timing), local(Role::Prefill, 1, None, mute)).await;
    let (_to, mut from) = a.unwrap().start::<GatewayToPrefill, PrefillToGateway>(4);
    let mut b = b.unwrap();
    assert!(matches!(from.recv().await, Err(LinkError::Silent(_))));

    let (a, c) = join(
        local(Role::Gateway, 1, None, Timing::default()),
        local(Role::Prefill, 1, None, Timing::default()),
    )
    .await;
    let (_to, mut from) = a.unwrap().start::<GatewayToPrefill, PrefillToGateway>(4);
    b.stream.shutdown().await.unwrap();
    c.unwrap().stream.write_all(&[b'x'; 64]).await.unwrap();
    assert!(matches!(from.recv().await, Err(LinkError::Frame(_))));
}

#[tokio::test]
async fn a_stranger_gets_nothing_but_a_closed_socket() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = local(Role::Prefill, 1, None, Timing::default());
    let mut stranger = TcpStream::connect(address).await.unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\nhost: x\r\naccept: everything\r\n\r\n").await.unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    let refused = answer(stream, &server, layout(1), CAPACITY, &[Role::Gateway]).await;
    assert!(refused.unwrap_err().to_string().contains("not a Tandem frame"));
}
