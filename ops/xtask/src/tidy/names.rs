//! Names that say nothing: a module is named for the noun that it holds.

use crate::finding::Finding;
use crate::mask::{line_of, words};
use crate::sources::Source;

const SAY_NOTHING: &[&str] =
    &["util", "utils", "common", "helper", "helpers", "manager", "managers", "misc"];

pub fn check(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    let stems = source.path.split('/').map(|part| part.strip_suffix(".rs").unwrap_or(part));
    for stem in stems.filter(|stem| SAY_NOTHING.contains(stem)) {
        let what = format!("`{stem}` says nothing: name the noun that the module holds");
        findings.push(Finding::file(&source.path, what));
    }
    for at in words(&source.masked, "mod") {
        let rest = source.masked[at + 3..].trim_start();
        let Some((name, _)) = rest.split_once([' ', ';', '{']) else { continue };
        // `mod x;` has a file, whose path is judged above.
        if SAY_NOTHING.contains(&name) && !rest[name.len()..].trim_start().starts_with(';') {
            let what = format!("`mod {name}` says nothing: name the noun that it holds");
            findings.push(Finding::line(&source.path, line_of(&source.masked, at), what));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_words_are_found_in_paths_and_modules() {
        let found = |path, text| check(&Source::new(path, text)).len();
        assert_eq!(found("gateway/src/utils.rs", ""), 1);
        assert_eq!(found("gateway/src/common/a.rs", ""), 1);
        assert_eq!(found("gateway/src/a.rs", "mod helpers { }"), 1);
        assert_eq!(found("gateway/src/a.rs", "mod helped { }"), 0);
        assert_eq!(found("gateway/src/commons.rs", "// mod utils {}"), 0);
    }
}
