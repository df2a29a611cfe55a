//! One file, fetched whole and verified, or taken up again where it broke off.
//!
//! 1. Bytes go to `NAME.part`; what an earlier try left there is kept.
//! 2. A broken transfer is taken up again after a pause, until [`TRIES`] in a row brought nothing.
//! 3. The whole is held against length and digest. A mismatch deletes it.
//! 4. Only then does it get its name.

use super::hub::{Hub, HubId, RemoteFile};
use anyhow::{Context, bail, ensure};
use indicatif::ProgressBar;
use ring::digest::{Context as Digest, SHA1_FOR_LEGACY_USE_ONLY, SHA256};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use ureq::Body;
use ureq::http::{Response, StatusCode};

/// Tries in a row that may bring nothing.
const TRIES: u32 = 5;
const BUFFER: usize = 1 << 18;

/// A file and where it goes.
pub(super) struct Download<'a> {
    pub hub: &'a Hub,
    pub id: &'a HubId,
    pub commit: &'a str,
    pub file: &'a RemoteFile,
    /// Final name; its folder exists.
    pub to: PathBuf,
}

impl Download<'_> {
    /// Runs steps 1 to 4. A file that is there under its final name is taken as it is.
    pub(super) fn run(&self, bar: &ProgressBar) -> anyhow::Result<()> {
        let size = self.size();
        if self.to.exists() {
            bar.inc(size.unwrap_or(0));
            return Ok(());
        }
        let mut part = self.to.clone().into_os_string();
        part.push(".part");
        let part = PathBuf::from(part);
        let at = || part.display().to_string();
        let mut out = OpenOptions::new().create(true).append(true).open(&part).with_context(at)?;
        self.fill(&mut out, bar)?;
        out.sync_all().with_context(at)?;
        if let Err(error) = self.verify(&part) {
            std::fs::remove_file(&part).with_context(at)?;
            return Err(error);
        }
        std::fs::rename(&part, &self.to).with_context(at)
    }

    fn size(&self) -> Option<u64> {
        self.file.lfs.as_ref().and_then(|lfs| lfs.size).or(self.file.size)
    }

    /// Appends to `out` until the file is whole.
    fn fill(&self, out: &mut File, bar: &ProgressBar) -> anyhow::Result<()> {
        let mut have = out.metadata()?.len();
        if self.size().is_some_and(|size| have > size) {
            out.set_len(0)?;
            have = 0;
        }
        bar.inc(have);
        let mut tries = TRIES;
        while self.size() != Some(have) {
            let before = have;
            let outcome = self.pass(out, &mut have, bar);
            match outcome {
                Ok(Pass::Whole) => break,
                Ok(Pass::Refused(status)) => return Err(self.hub.refusal(self.id, status)),
                Ok(Pass::Broken(_)) | Err(_) if have > before => tries = TRIES,
                Ok(Pass::Broken(_)) | Err(_) if tries > 1 => tries -= 1,
                Ok(Pass::Broken(why)) => bail!("{}: {why}, {TRIES} times", self.file.name),
                Err(error) => return Err(error.context(self.file.name.clone())),
            }
            std::thread::sleep(self.hub.pause * (TRIES - tries));
        }
        Ok(())
    }

    /// One request; `have` follows what is in `out`, however it ends.
    fn pass(&self, out: &mut File, have: &mut u64, bar: &ProgressBar) -> anyhow::Result<Pass> {
        out.set_len(*have)?; // a write that failed may have left a piece
        let url = self.hub.file_url(self.id, self.commit, &self.file.name);
        let response = self.hub.get(&url, *have)?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT if starts_at(&response, *have) => {}
            StatusCode::OK => from_the_beginning(out, have, bar)?,
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                from_the_beginning(out, have, bar)?;
                return Ok(Pass::Broken("the hub has another range than was asked for".to_owned()));
            }
            busy if busy.is_server_error() || busy == StatusCode::TOO_MANY_REQUESTS => {
                return Ok(Pass::Broken(format!("the hub answered {busy}")));
            }
            status => return Ok(Pass::Refused(status)),
        }
        self.copy(response.into_body(), out, have, bar)
    }

    fn copy(
        &self,
        body: Body,
        out: &mut File,
        have: &mut u64,
        bar: &ProgressBar,
    ) -> anyhow::Result<Pass> {
        let mut body = body.into_reader();
        let mut buffer = vec![0; BUFFER];
        loop {
            let read = match body.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Ok(Pass::Broken(error.to_string())),
            };
            out.write_all(&buffer[..read]).context("write to the cache")?;
            *have += read as u64;
            bar.inc(read as u64);
            if self.size().is_some_and(|size| *have > size) {
                break; // the digest will tell
            }
        }
        match self.size() {
            Some(size) if *have < size => Ok(Pass::Broken(format!("ended at {have} of {size}"))),
            _ => Ok(Pass::Whole),
        }
    }

    /// Length, then the digest that the hub keeps the file by.
    fn verify(&self, path: &Path) -> anyhow::Result<()> {
        let (name, have) = (&self.file.name, std::fs::metadata(path)?.len());
        if let Some(size) = self.size() {
            ensure!(have == size, "{name}: {have} bytes came, the hub lists {size}; try again");
        }
        let (found, expected) = match (&self.file.lfs, &self.file.blob_id) {
            (Some(lfs), _) => (sha256(path)?, &lfs.sha256),
            (None, Some(blob)) if blob.len() == 40 => (git_blob_id(path, have)?, blob),
            _ => return Ok(()),
        };
        ensure!(
            found.eq_ignore_ascii_case(expected),
            "{name}: digest is {found}, the hub lists {expected}; what came was deleted, try again"
        );
        Ok(())
    }
}

/// How one request ended.
enum Pass {
    Whole,
    /// Worth another try, and why.
    Broken(String),
    /// Not worth one.
    Refused(StatusCode),
}

fn from_the_beginning(out: &mut File, have: &mut u64, bar: &ProgressBar) -> anyhow::Result<()> {
    out.set_len(0)?;
    bar.set_position(bar.position().saturating_sub(*have));
    *have = 0;
    Ok(())
}

/// `content-range: bytes FROM-TO/SIZE` begins where it was asked to.
fn starts_at(response: &Response<Body>, have: u64) -> bool {
    let range = response.headers().get("content-range").and_then(|range| range.to_str().ok());
    let from =
        range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse().ok());
    from == Some(have)
}

/// Of the whole file, in hexadecimal.
pub(super) fn sha256(path: &Path) -> anyhow::Result<String> {
    digest(path, Digest::new(&SHA256))
}

pub(super) fn git_blob_id(path: &Path, len: u64) -> anyhow::Result<String> {
    let mut context = Digest::new(&SHA1_FOR_LEGACY_USE_ONLY);
    context.update(format!("blob {len}\0").as_bytes());
    digest(path, context)
}

fn digest(path: &Path, mut context: Digest) -> anyhow::Result<String> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; BUFFER];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            read => context.update(&buffer[..read]),
        }
    }
    let bytes = context.finish();
    Ok(bytes.as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
}
