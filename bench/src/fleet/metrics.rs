//! Reads Prometheus' text format, as much of it as the servers write.

/// The sum of all samples of `name` that carry each of `labels` (`state="owned"`).
pub fn sum(text: &str, name: &str, labels: &[&str]) -> f64 {
    let samples = text.lines().filter(|line| {
        let after = line.strip_prefix(name);
        after.is_some_and(|after| after.starts_with(['{', ' ']))
            && labels.iter().all(|label| line.contains(label))
    });
    let value = |line: &str| line.rsplit(' ').next()?.parse::<f64>().ok();
    samples.filter_map(value).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_added_by_name_and_label() {
        let text = "# HELP tandem_pages Pages.\ntandem_pages{server=\"d\",state=\"owned\"} 3\n\
            tandem_pages{server=\"e\",state=\"owned\"} 4\ntandem_pages{server=\"e\",state=\"free\"} 5\n\
            tandem_pages_more 100\ntandem_plain 7.5\n";
        let check = |name, labels: &[&str], expect| assert_eq!(sum(text, name, labels), expect);
        check("tandem_pages", &["state=\"owned\""], 7.0);
        check("tandem_pages", &["state=\"owned\"", "server=\"d\""], 3.0);
        check("tandem_pages", &[], 12.0);
        check("tandem_plain", &[], 7.5);
        check("tandem_absent", &[], 0.0);
    }
}
