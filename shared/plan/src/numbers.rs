//! Ranks and short forms of what was measured or simulated.

use serde::Serialize;

/// Latencies by rank, ms; NaN of none.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Ranks {
    /// Half are at most this.
    pub p50: f64,
    /// 90 of 100 are at most this.
    pub p90: f64,
    /// 99 of 100 are at most this.
    pub p99: f64,
}

impl Ranks {
    /// Of values that each count so many times.
    pub fn of(mut values: Vec<(f64, u32)>) -> Self {
        values.sort_by(|a, b| a.0.total_cmp(&b.0));
        let all: u64 = values.iter().map(|(_, times)| u64::from(*times)).sum();
        let rank = |share: f64| {
            let wanted = (share * all as f64).ceil() as u64;
            let mut seen = 0;
            let at = |(_, times): &&(f64, u32)| {
                seen += u64::from(*times);
                seen >= wanted
            };
            values.iter().find(at).map_or(f64::NAN, |(value, _)| *value)
        };
        Self { p50: rank(0.5), p90: rank(0.9), p99: rank(0.99) }
    }
}

/// Three significant digits, or all of a whole number.
pub fn short(value: f64) -> String {
    match value.abs() {
        size if value.fract() == 0.0 || size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 => format!("{value:.2}"),
        size if size >= 0.001 => format!("{value:.4}"),
        _ => format!("{value:.1e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_count_each_value_so_often_as_it_came() {
        let ranks = Ranks::of(vec![(9.0, 1), (1.0, 50), (2.0, 49)]);
        assert_eq!((ranks.p50, ranks.p90, ranks.p99), (1.0, 2.0, 2.0));
        assert!(Ranks::of(vec![]).p50.is_nan());
    }
}
