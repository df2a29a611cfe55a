//! The page's files and the routes that it asks, on a gateway without servers.

use crate::support::Gateway;
use serde_json::json;

#[tokio::test]
async fn files_are_fenced_and_known_by_their_tags() {
    let gateway = Gateway::start(|settings| settings.api_key = Some("sesame".into())).await;
    let index = gateway.get("/").await;
    assert_eq!(index.status, 200);
    let head = index.head.to_lowercase();
    assert!(head.contains("content-type: text/html"), "{head}");
    assert!(head.contains("content-security-policy: default-src 'none'"), "{head}");
    let tag = head.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap().trim();
    let again = gateway.request("GET", "/", &format!("if-none-match: {tag}\r\n"), "").await;
    assert_eq!((again.status, again.body.as_str()), (304, ""));
    for name in gateway::page::names() {
        assert!(name == "icon.svg" || index.body.contains(&format!("/page/{name}")), "{name}");
        assert_eq!(gateway.get(&format!("/page/{name}")).await.status, 200, "{name}");
    }
    // A file that is not there needs the key, as anything else does.
    assert_eq!(gateway.get("/page/other.js").await.status, 401);
    assert_eq!(gateway.get("/ring").await.status, 401);
}

#[tokio::test]
async fn a_ring_without_servers_has_a_snapshot_and_no_stories() {
    let gateway = Gateway::start(|_| {}).await;
    let ring = gateway.get("/ring").await.json();
    assert_eq!((&ring["prefill"], &ring["links"]), (&json!([]), &json!([])));
    assert_eq!((&ring["model"], &ring["draining"]), (&json!("tiny"), &json!(false)));
    let buckets = ring["times"]["from_us"].as_array().unwrap().len();
    assert_eq!(ring["times"]["itl"].as_array().unwrap().len(), buckets);
    let stories = gateway.get("/ring/requests?limit=5").await.json();
    assert_eq!(stories, json!({"running": [], "ended": []}));
    let wrong = gateway.get("/ring/requests?limit=all").await;
    assert_eq!((wrong.status, &wrong.error()["param"]), (400, &json!("limit")));
    let missing = gateway.get("/ring/requests/chatcmpl-1").await;
    assert_eq!((missing.status, &missing.error()["code"]), (404, &json!("request_not_found")));
}
