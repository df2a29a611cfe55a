//! A hub model as a folder: found in a cache, or fetched into ours.
//!
//! `CACHE/models/ORG--NAME/COMMIT/` holds whole snapshots, `refs/REVISION` the commit that a branch
//! meant when it was last asked for. A revision that is there is used without a question to the
//! hub, so that a second start needs no network; `--refresh` asks again.
//!
//! 1. The repository's folder is locked.
//! 2. Files gather in `COMMIT.part/`; an interrupted fetch goes on there.
//! 3. When all are there and verified the folder becomes `COMMIT/`, then the ref is written.

use super::download::Download;
use super::hub::{self, Hub, HubId, Listing, RemoteFile};
use super::say;
use super::settings::Settings;
use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Beside the weights, taken where they are there.
const OPTIONAL: [&str; 3] =
    ["tokenizer_config.json", "generation_config.json", "chat_template.jinja"];

/// A folder with `id`'s files.
pub fn resolve(id: &HubId, settings: &Settings) -> anyhow::Result<PathBuf> {
    let repository = settings.cache()?.join("models").join(id.repository.replace('/', "--"));
    if !settings.refresh {
        let shared = settings.shared_cache().and_then(|cache| in_shared_cache(id, &cache));
        if let Some(found) = in_own_cache(id, &repository).or(shared) {
            say(&format!("{id}: from the cache, {}", found.display()));
            return Ok(found);
        }
    }
    if settings.offline {
        bail!("{id} is not in the cache, and the network is not to be used (HF_HUB_OFFLINE)");
    }
    let hub = Hub::new(settings)?;
    let listing = hub.listing(id)?;
    fetch(id, &hub, &listing, &repository)
}

fn in_own_cache(id: &HubId, repository: &Path) -> Option<PathBuf> {
    let commit = match id.is_commit() {
        true => id.revision.clone(),
        false => fs::read_to_string(reference(id, repository)).ok()?,
    };
    let folder = repository.join(Some(commit.trim()).filter(|commit| hub::is_commit(commit))?);
    folder.is_dir().then_some(folder)
}

fn reference(id: &HubId, repository: &Path) -> PathBuf {
    repository.join("refs").join(id.revision.replace('/', "--"))
}

/// The layout of the Hugging Face tools. A snapshot there may be half of one, so all that is needed
/// is looked for.
fn in_shared_cache(id: &HubId, cache: &Path) -> Option<PathBuf> {
    let repository = cache.join(format!("models--{}", id.repository.replace('/', "--")));
    let commit = match id.is_commit() {
        true => id.revision.clone(),
        false => fs::read_to_string(repository.join("refs").join(&id.revision)).ok()?,
    };
    let commit = Some(commit.trim()).filter(|commit| hub::is_commit(commit))?;
    let folder = repository.join("snapshots").join(commit);
    let has = |name: &str| folder.join(name).is_file();
    let weights = match fs::read(folder.join(INDEX)) {
        Ok(index) => shards(&folder, &index).ok()?.iter().all(|shard| has(shard)),
        Err(_) => has(SINGLE),
    };
    (has(CONFIG) && has(TOKENIZER) && weights).then_some(folder)
}

fn shards(folder: &Path, index: &[u8]) -> anyhow::Result<BTreeSet<String>> {
    let map = checkpoint::hf::parse_index(&folder.join(INDEX), index)?;
    Ok(map.into_values().collect())
}

/// Steps 1 to 3.
fn fetch(id: &HubId, hub: &Hub, listing: &Listing, repository: &Path) -> anyhow::Result<PathBuf> {
    let at = || format!("write to the cache at {}", repository.display());
    fs::create_dir_all(repository.join("refs")).with_context(at)?;
    let _lock = lock(&repository.join("lock"))?;
    let done = repository.join(&listing.commit);
    if !done.is_dir() {
        let gathering = repository.join(format!("{}.part", listing.commit));
        fs::create_dir_all(&gathering).with_context(at)?;
        gather(id, hub, listing, &gathering)?;
        fs::rename(&gathering, &done).with_context(at)?;
    }
    let reference = reference(id, repository);
    let written = repository.join("refs").join(".part");
    fs::write(&written, &listing.commit).with_context(at)?;
    fs::rename(&written, &reference).with_context(at)?;
    say(&format!("{id}: fetched from the hub, {}", done.display()));
    Ok(done)
}

/// Waits while another process fetches the same model.
pub fn lock(path: &Path) -> anyhow::Result<File> {
    let file = File::create(path).with_context(|| path.display().to_string())?;
    if file.try_lock().is_err() {
        say("another process is fetching this model: waiting for it");
        file.lock().with_context(|| path.display().to_string())?;
    }
    Ok(file)
}

fn gather(id: &HubId, hub: &Hub, listing: &Listing, folder: &Path) -> anyhow::Result<()> {
    let bar = progress_bar(id);
    let get = |file: &RemoteFile| {
        bar.set_message(file.name.clone());
        let to = folder.join(&file.name);
        Download { hub, id, commit: &listing.commit, file, to }.run(&bar)
    };
    let (small, weights) =
        (small_files(id, listing)?, find(listing, INDEX).or(find(listing, SINGLE)));
    let Some(weights) = weights else { bail!("{}", no_safetensors(id, listing)) };
    bar.set_length(small.iter().chain([&weights]).filter_map(|file| size(file)).sum());
    for file in small.into_iter().chain([weights]) {
        get(file)?;
    }
    if weights.name == INDEX {
        let index = fs::read(folder.join(INDEX)).context("read the index of the weights")?;
        let shards: Vec<_> = shards(folder, &index)?
            .iter()
            .map(|shard| {
                find(listing, shard).with_context(|| format!("{id} lacks its own {shard}"))
            })
            .collect::<Result<_, _>>()?;
        bar.inc_length(shards.iter().filter_map(|file| size(file)).sum());
        for shard in shards {
            get(shard)?;
        }
    }
    bar.finish_and_clear();
    Ok(())
}

fn small_files<'a>(id: &HubId, listing: &'a Listing) -> anyhow::Result<Vec<&'a RemoteFile>> {
    let mut files = Vec::new();
    for name in [CONFIG, TOKENIZER] {
        let file = find(listing, name);
        files.push(file.with_context(|| format!("{id} has no {name}: not a model for Tandem"))?);
    }
    files.extend(OPTIONAL.iter().filter_map(|name| find(listing, name)));
    Ok(files)
}

fn find<'a>(listing: &'a Listing, name: &str) -> Option<&'a RemoteFile> {
    listing.files.iter().find(|file| file.name == name)
}

fn size(file: &RemoteFile) -> Option<u64> {
    file.lfs.as_ref().and_then(|lfs| lfs.size).or(file.size)
}

fn no_safetensors(id: &HubId, listing: &Listing) -> String {
    let ggufs = listing.files.iter().filter(|file| file.name.ends_with(".gguf")).count();
    match ggufs {
        0 => format!("{id} has neither {SINGLE} nor {INDEX}"),
        n => format!("{id} has no safetensors but {n} .gguf: download one and give its path"),
    }
}

/// Bytes, speed and time left, on a terminal; a line where there is none.
fn progress_bar(id: &HubId) -> ProgressBar {
    let bar = ProgressBar::new(0);
    let template = "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} {msg}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    say(&format!("{id}: fetching from the hub"));
    bar
}
