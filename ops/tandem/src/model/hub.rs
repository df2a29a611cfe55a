//! The Hugging Face hub: what a revision holds, and the bytes of its files.

use super::settings::Settings;
use anyhow::{Context, anyhow, bail, ensure};
use serde::Deserialize;
use std::fmt;
use std::time::Duration;
use ureq::http::{Response, StatusCode};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

/// Longest listing of a repository.
const LISTING_MAX: u64 = 32 << 20;
/// A server that says nothing for this long is taken for gone; a download is then taken up again.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// A repository at a revision: `org/name[@revision]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubId {
    /// `org/name`.
    pub repository: String,
    /// Branch, tag or commit.
    pub revision: String,
}

impl fmt::Display for HubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.repository, self.revision)
    }
}

impl HubId {
    /// Takes `org/name[@revision]` apart. The parts become names of files and of URLs, so only what
    /// the hub itself allows passes.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let (repository, revision) = text.split_once('@').unwrap_or((text, "main"));
        let plain = |part: &str, more: &str| {
            let allowed =
                |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c) || more.contains(c);
            let path = part.split('/').all(|part| !part.is_empty() && !part.starts_with('.'));
            path && part.len() <= 200 && part.chars().all(allowed)
        };
        let (org, name) = repository.split_once('/').context("no org/name in it")?;
        ensure!(plain(org, "") && plain(name, ""), "`{repository}` is not an org/name of the hub");
        ensure!(plain(revision, "/"), "`{revision}` is not a branch, tag or commit");
        Ok(Self { repository: repository.to_owned(), revision: revision.to_owned() })
    }

    /// The revision is a commit and can never mean anything else.
    pub fn is_commit(&self) -> bool {
        is_commit(&self.revision)
    }
}

/// A full commit id: 40 hexadecimal digits.
pub fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// What a revision holds.
#[derive(Debug, Deserialize)]
pub struct Listing {
    /// The commit that the revision means now.
    #[serde(rename = "sha")]
    pub commit: String,
    /// Its files.
    #[serde(rename = "siblings")]
    pub files: Vec<RemoteFile>,
}

/// A file of a repository; a mirror may leave out all but the name.
#[derive(Debug, Clone, Deserialize)]
pub struct RemoteFile {
    /// Path within the repository.
    #[serde(rename = "rfilename")]
    pub name: String,
    /// Length in bytes.
    pub size: Option<u64>,
    /// Git's id of the file, or of the pointer where `lfs` is given.
    #[serde(rename = "blobId")]
    pub blob_id: Option<String>,
    /// Large files are kept by their sha256.
    pub lfs: Option<Lfs>,
}

/// A large file's id and length.
#[derive(Debug, Clone, Deserialize)]
pub struct Lfs {
    /// Of the content, in hexadecimal.
    pub sha256: String,
    /// Length in bytes.
    pub size: Option<u64>,
}

/// A client of one hub.
pub struct Hub {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
    /// Pause before a broken transfer is taken up again.
    pub pause: Duration,
}

impl Hub {
    /// A client as the settings say; connects to nothing yet.
    pub fn new(settings: &Settings) -> anyhow::Result<Self> {
        let connect = Some(settings.connect_timeout());
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .redirect_auth_headers(ureq::config::RedirectAuthHeaders::SameHost)
            .timeout_resolve(connect)
            .timeout_connect(connect)
            .timeout_recv_response(Some(SILENCE_MAX))
            .timeout_per_read(Some(SILENCE_MAX))
            .user_agent(concat!("tandem/", env!("CARGO_PKG_VERSION")))
            .tls_config(TlsConfig::builder().root_certs(roots(settings)?).build())
            .build();
        Ok(Self {
            agent: config.new_agent(),
            endpoint: settings.endpoint()?.to_owned(),
            token: settings.token(),
            pause: settings.pause(),
        })
    }

    /// What `id` holds now.
    pub fn listing(&self, id: &HubId) -> anyhow::Result<Listing> {
        let (endpoint, repository) = (&self.endpoint, &id.repository);
        let revision = id.revision.replace('/', "%2F");
        let url = format!("{endpoint}/api/models/{repository}/revision/{revision}?blobs=true");
        let mut response = self.get(&url, 0).context(
            "the hub is needed for a model that is not in the cache; behind a mirror set \
             HF_ENDPOINT, without a network give a folder or a .gguf file",
        )?;
        if response.status() != StatusCode::OK {
            return Err(self.refusal(id, response.status()));
        }
        let text = response.body_mut().with_config().limit(LISTING_MAX).read_to_vec();
        let text = text.with_context(|| format!("read {url}"))?;
        let listing: Listing =
            serde_json::from_slice(&text).with_context(|| format!("{url}: not a listing"))?;
        ensure!(is_commit(&listing.commit), "{url}: `{}` is not a commit", listing.commit);
        Ok(listing)
    }

    /// Address of one file at a commit.
    pub fn file_url(&self, id: &HubId, commit: &str, name: &str) -> String {
        format!("{}/{}/resolve/{commit}/{name}", self.endpoint, id.repository)
    }

    /// The bytes at `url` from `from` on, if the server can do that.
    pub fn get(&self, url: &str, from: u64) -> anyhow::Result<Response<Body>> {
        let mut request = self.agent.get(url);
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if from > 0 {
            request = request.header("range", format!("bytes={from}-"));
        }
        request.call().with_context(|| format!("cannot reach {url}"))
    }

    /// Why the hub said no, in words, with what the user can do.
    pub fn refusal(&self, id: &HubId, status: StatusCode) -> anyhow::Error {
        let HubId { repository, revision } = id;
        match (status.as_u16(), self.token.is_some()) {
            (401, false) => anyhow!(
                "{repository}: the hub wants a token (401): the model is private or gated, or the \
                 name is misspelt; set HF_TOKEN, or check the name"
            ),
            (401, true) => anyhow!("{repository}: the hub refused the token (401); check HF_TOKEN"),
            (403, _) => anyhow!(
                "{repository}: access is restricted (403); accept the model's terms at \
                 {}/{repository} and set HF_TOKEN to a token of that account",
                self.endpoint
            ),
            (404, _) => anyhow!("{repository}: no such model, or no revision `{revision}` (404)"),
            (code, _) => anyhow!("{repository}: the hub answered {code}; try again later"),
        }
    }
}

fn roots(settings: &Settings) -> anyhow::Result<RootCerts> {
    let Some(path) = settings.certificates() else { return Ok(RootCerts::WebPki) };
    let pem = std::fs::read(&path).with_context(|| format!("SSL_CERT_FILE {}", path.display()))?;
    let certificates: Vec<Certificate<'static>> = parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        bail!("SSL_CERT_FILE {} holds no certificate", path.display());
    }
    Ok(RootCerts::from(certificates))
}
