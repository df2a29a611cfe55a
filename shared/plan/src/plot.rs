//! Lines in a frame with ticks, as SVG.

use crate::numbers::short;
use std::fmt::Write as _;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 380.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 120.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;
/// Colours that are told apart by people who do not see red and green (Okabe and Ito).
const COLOURS: [&str; 4] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7"];

/// A plot of at most four lines.
pub struct Plot {
    pub title: String,
    pub x: &'static str,
    pub y: &'static str,
    /// Decades instead of equal steps along x, where only values above 0 are shown.
    pub log: bool,
    /// Names and points, in order of x.
    pub lines: Vec<(&'static str, Vec<(f64, f64)>)>,
}

/// Where a range of values lies in the picture.
struct Axis {
    low: f64,
    high: f64,
    log: bool,
}

impl Axis {
    fn new(values: impl Iterator<Item = f64>, log: bool) -> Self {
        let values = values.filter(|value| value.is_finite() && (!log || *value > 0.0));
        let (low, high) = values
            .fold((f64::INFINITY, 0.0_f64), |(low, high), value| (low.min(value), high.max(value)));
        if !log {
            return Self { low: 0.0, high: if high > 0.0 { high } else { 1.0 }, log };
        }
        let low = if low.is_finite() { low } else { 1.0 };
        let decade = 10f64.powf(low.log10().floor());
        let high = 10f64.powf(high.max(low).log10().ceil()).max(decade * 10.0);
        Self { low: decade, high, log }
    }

    /// 0 at its low end, 1 at its high one.
    fn share(&self, value: f64) -> f64 {
        if self.log {
            (value / self.low).log10() / (self.high / self.low).log10()
        } else {
            (value - self.low) / (self.high - self.low)
        }
    }

    fn ticks(&self) -> Vec<f64> {
        if self.log {
            let decades = (self.high / self.low).log10().round() as i32;
            return (0..=decades).map(|decade| self.low * 10f64.powi(decade)).collect();
        }
        let rough = self.high / 5.0;
        let decade = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|times| times * decade);
        let step = step.into_iter().find(|step| *step >= rough).unwrap_or(rough);
        (0..=5).map(|n| f64::from(n) * step).filter(|tick| *tick <= self.high * 1.001).collect()
    }
}

impl Plot {
    pub fn svg(&self) -> String {
        let points = || self.lines.iter().flat_map(|(_, points)| points);
        let xs = Axis::new(points().map(|point| point.0), self.log);
        let ys = Axis::new(points().map(|point| point.1), false);
        let at_x = |x: f64| LEFT + xs.share(x) * (WIDTH - LEFT - RIGHT);
        let at_y = |y: f64| HEIGHT - BOTTOM - ys.share(y) * (HEIGHT - TOP - BOTTOM);
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        );
        let mut text = |x: f64, y: f64, anchor: &str, words: &str| {
            let words = escaped(words);
            let _ = writeln!(
                svg,
                "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>"
            );
        };
        text(LEFT, TOP - 18.0, "start", &self.title);
        text((LEFT + right) / 2.0, HEIGHT - 12.0, "middle", self.x);
        text(LEFT, TOP - 4.0, "end", self.y);
        xs.ticks().iter().for_each(|&x| text(at_x(x), bottom + 16.0, "middle", &short(x)));
        ys.ticks().iter().for_each(|&y| text(LEFT - 6.0, at_y(y) + 4.0, "end", &short(y)));
        for (number, (name, _)) in self.lines.iter().enumerate() {
            text(right + 30.0, TOP + 12.0 + 18.0 * number as f64, "start", name);
        }
        let mut path = |points: &str, colour: &str, width: f64| {
            let _ = writeln!(
                svg,
                "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" \
                 stroke-width=\"{width}\"/>"
            );
        };
        for x in xs.ticks().into_iter().map(at_x) {
            path(&format!("{x:.1},{TOP} {x:.1},{bottom}"), "#ddd", 1.0);
        }
        for y in ys.ticks().into_iter().map(at_y) {
            path(&format!("{LEFT},{y:.1} {right},{y:.1}"), "#ddd", 1.0);
        }
        for (number, ((_, points), colour)) in self.lines.iter().zip(COLOURS).enumerate() {
            let seen = points.iter().filter(|(x, y)| y.is_finite() && (!self.log || *x > 0.0));
            let line: Vec<String> =
                seen.map(|&(x, y)| format!("{:.1},{:.1}", at_x(x), at_y(y))).collect();
            path(&line.join(" "), colour, 2.0);
            let y = TOP + 8.0 + 18.0 * number as f64;
            path(&format!("{:.1},{y} {:.1},{y}", right + 10.0, right + 25.0), colour, 2.0);
        }
        svg + "</svg>\n"
    }
}

fn escaped(words: &str) -> String {
    words.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_decades_or_at_the_largest_value() {
        let decades = Axis::new([3.0, 0.0, 450.0].into_iter(), true);
        assert_eq!(decades.ticks(), [1.0, 10.0, 100.0, 1000.0]);
        assert!((decades.share(10.0) - 1.0 / 3.0).abs() < 1e-9);
        let equal = Axis::new([3.0, 42.0].into_iter(), false);
        assert_eq!(equal.ticks(), [0.0, 10.0, 20.0, 30.0, 40.0]);
        assert_eq!(equal.share(21.0), 0.5);
    }

    #[test]
    fn nothing_is_drawn_outside_the_picture() {
        let check = |points: Vec<(f64, f64)>, log| {
            let lines = vec![("a & b", points)];
            let svg = Plot { title: "<t>".into(), x: "x", y: "y", log, lines }.svg();
            assert!(svg.contains("a &amp; b") && svg.contains("&lt;t>"), "{svg}");
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        };
        check(vec![(0.5, 0.1), (20.0, 1.0)], true);
        check(vec![(0.0, 0.0), (0.0, f64::NAN)], true);
        check(vec![], false);
        check(vec![(1.0, 0.0)], false);
    }
}
