//! The rows, a file a group.

pub mod golden;
pub mod disagg;
pub mod prefix;
pub mod together;
pub mod radix;
pub mod transfer;
pub mod kill_pair;
pub mod kill_ring;
pub mod stop;
pub mod mixed;
pub mod openai;
pub mod json_schema;
pub mod sampling;
pub mod gateway;
pub mod speed;
pub mod levels;
pub mod prefill;
pub mod batch;
pub mod plan;
pub mod build;

use crate::row::{Group, Row};

/// Every group, in the order of the record.
pub static GROUPS: &[Group] = &[
    golden::GROUP,
    disagg::GROUP,
    prefix::GROUP,
    together::GROUP,
    radix::GROUP,
    transfer::GROUP,
    kill_pair::GROUP,
    kill_ring::GROUP,
    stop::GROUP,
    mixed::GROUP,
    openai::GROUP,
    json_schema::GROUP,
    sampling::GROUP,
    gateway::GROUP,
    speed::GROUP,
    levels::GROUP,
    prefill::GROUP,
    batch::GROUP,
    plan::SIM,
    plan::CPU,
    build::GROUP,
];

/// A row by its name, and the group that measures it.
pub fn find(name: &str) -> Option<(&'static Group, &'static Row)> {
    let mut rows = GROUPS.iter().flat_map(|group| group.rows.iter().map(move |row| (group, row)));
    rows.find(|(_, row)| row.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_found() {
        let rows: Vec<_> = GROUPS.iter().flat_map(|group| group.rows).collect();
        let names: HashSet<_> = rows.iter().map(|row| row.name).collect();
        assert_eq!(names.len(), rows.len());
        let groups: HashSet<_> = GROUPS.iter().map(|group| group.name).collect();
        assert_eq!(groups.len(), GROUPS.len());
        for row in rows {
            assert_eq!(find(row.name).map(|(_, found)| found.what), Some(row.what));
            assert!(row.command().ends_with(row.name));
        }
        assert!(find("nothing").is_none());
    }
}
