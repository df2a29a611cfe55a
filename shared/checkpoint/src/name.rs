//! What a model is called where nobody says.

use std::path::Path;

/// The folder's or file's name, without `.gguf`; of a link, that of what it leads to.
pub fn name(path: &Path) -> String {
    let target = std::fs::canonicalize(path);
    let path = target.as_deref().unwrap_or(path);
    let name = match path.extension() {
        Some(extension) if extension == "gguf" => path.file_stem(),
        _ => path.file_name(),
    };
    name.map_or_else(|| path.to_string_lossy(), |name| name.to_string_lossy()).into_owned()
}
