//! Module order inside `shared`: `lib.rs` lists the modules in reading order, and each may use
//! only earlier ones. The compiler does not care; a reader does. Tests may look ahead.

use crate::finding::Finding;
use crate::mask::{is_word, line_of, words};
use crate::sources::Source;

const FOLDER: &str = "shared/src/";

pub fn check(sources: &[Source]) -> Vec<Finding> {
    let Some(lib) = sources.iter().find(|source| source.path == "shared/src/lib.rs") else {
        return Vec::new();
    };
    let order = module_order(&lib.product_code());
    let mut findings = Vec::new();
    for source in sources.iter().filter(|source| source.is_rust()) {
        let Some(own) = module_of(&source.path) else { continue };
        let Some(rank) = order.iter().position(|module| module == own) else { continue };
        let code = source.product_code();
        for (at, used) in crate_paths(&code) {
            let later = order.iter().position(|module| *module == used);
            if later.is_some_and(|later| later > rank) {
                let what = format!("`{own}` uses `{used}`, which lib.rs lists after it");
                findings.push(Finding::line(&source.path, line_of(&code, at), what));
            }
        }
    }
    findings
}

fn module_of(path: &str) -> Option<&str> {
    let inside = path.strip_prefix(FOLDER)?;
    inside.split('/').next().map(|first| first.strip_suffix(".rs").unwrap_or(first))
}

fn module_order(lib: &str) -> Vec<String> {
    let names = words(lib, "mod").map(|at| identifier(lib[at + 3..].trim_start()));
    names.filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn identifier(text: &str) -> &str {
    let end = text.bytes().position(|byte| !is_word(byte)).unwrap_or(text.len());
    &text[..end]
}

/// Every first segment after `crate::`, those of a braced group included, with its offset.
fn crate_paths(code: &str) -> Vec<(usize, &str)> {
    let mut paths = Vec::new();
    for (at, found) in code.match_indices("crate::") {
        let start = at + found.len();
        if code[start..].starts_with('{') {
            paths.extend(group(code, start));
        } else {
            paths.push((start, identifier(&code[start..])));
        }
    }
    paths
}

fn group(code: &str, open: usize) -> Vec<(usize, &str)> {
    let mut names = Vec::new();
    let (mut depth, mut expects_name) = (0usize, false);
    for (offset, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'{' => (depth, expects_name) = (depth + 1, true),
            b'}' if depth == 1 => break,
            b'}' => depth -= 1,
            b',' => expects_name = true,
            _ if is_word(byte) && expects_name => {
                expects_name = false;
                if depth == 1 {
                    names.push((offset, identifier(&code[offset..])));
                }
            }
            _ => {}
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> Vec<String> {
        let lib = Source::new("shared/src/lib.rs", "pub mod ids;\npub mod kv;\npub mod wire;\n");
        let findings = check(&[lib, Source::new(path, text)]);
        findings.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn earlier_modules_and_ones_own_may_be_used() {
        let text = "use crate::ids::A;\nuse crate::{ids, kv::{self, wire}};\n";
        assert!(found("shared/src/kv.rs", text).is_empty());
        assert!(found("shared/src/wire/frame.rs", "use crate::wire::codec;\n").is_empty());
    }

    #[test]
    fn a_later_module_is_found_wherever_it_is_named() {
        let plain = found("shared/src/kv.rs", "\nfn a() -> crate::wire::B {}\n");
        assert_eq!(plain, ["shared/src/kv.rs:2: `kv` uses `wire`, which lib.rs lists after it"]);
        assert_eq!(
            found("shared/src/ids.rs", "use crate::{\n    kv::A,\n    wire,\n};\n").len(),
            2
        );
    }

    #[test]
    fn tests_and_comments_may_look_ahead() {
        let text = "//! See [`crate::wire`].\n#[cfg(test)]\nmod tests {\n use crate::wire::A;\n}\n";
        assert!(found("shared/src/ids.rs", text).is_empty());
    }
}
