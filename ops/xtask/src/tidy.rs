//! The style rules that a program can judge. Each rule is one file and one function from the
//! sources to findings; the budgets come from measuring code bases that read well.

mod fences;
mod names;
mod order;
mod sizes;
mod words;

use crate::finding::Finding;
use crate::sources::Source;

pub fn check(sources: &[Source]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in sources {
        findings.extend(words::check(source));
        if source.is_rust() && !source.is_generated() {
            findings.extend(sizes::check(source));
            findings.extend(names::check(source));
            findings.extend(fences::check(source));
        }
    }
    findings.extend(order::check(sources));
    findings.sort();
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_rule_of_each_kind_is_found() {
        let long = format!("//! A module.\nfn a() {{\n{}}}\n", "    b();\n".repeat(80));
        let sources = [
            Source::new("gateway/src/utils.rs", "//! A module.\n"),
            Source::new("gateway/src/long.rs", &long),
            Source::new("gateway/src/sharp.rs", "fn a() { unsafe { b() } }\n"),
            Source::new("gateway/src/late.rs", "// TO\u{44}O later\n"),
            Source::new("shared/src/lib.rs", "pub mod a;\npub mod b;\n"),
            Source::new("shared/src/a.rs", "use crate::b::B;\n"),
        ];
        let findings = check(&sources);
        assert_eq!(findings.len(), 6, "{findings:#?}");
    }
}
