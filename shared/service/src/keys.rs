//! Keys of config files.

/// The first key of a TOML text that is not among `known`, and the known one that is most like it.
/// `None` where there is none, or the text is no TOML: who parses it then says so.
pub fn unknown(text: &str, known: &[&'static str]) -> Option<(String, &'static str)> {
    unknown_in(&text.parse().ok()?, known)
}

/// The same of a table.
pub fn unknown_in(table: &toml::Table, known: &[&'static str]) -> Option<(String, &'static str)> {
    let key = table.keys().find(|key| !known.contains(&key.as_str()))?;
    let nearest = known.iter().min_by_key(|name| strsim::levenshtein(key, name))?;
    Some((key.clone(), nearest))
}

#[cfg(test)]
mod tests {
    use super::unknown;

    #[test]
    fn the_nearest_is_named() {
        let known = ["page_size", "model"];
        assert_eq!(unknown("page_sice = 1", &known), Some(("page_sice".into(), "page_size")));
        assert_eq!(unknown("model = 1", &known), None);
        assert_eq!(unknown("model =", &known), None);
    }
}
