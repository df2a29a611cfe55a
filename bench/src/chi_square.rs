//! Pearson's χ² test: how likely counts are by a distribution.

/// Least expected count of a class of its own; what is rarer is one class together.
const EXPECTED_MIN: f64 = 5.0;

/// The probability that counts of draws from `exact` are as far from it as `counts` or further, and
/// the number of classes; 0 where something impossible was counted.
pub fn p_value(counts: &[u64], exact: &[f64]) -> (f64, usize) {
    let draws = counts.iter().sum::<u64>() as f64;
    let (mut classes, mut rare) = (Vec::new(), (0.0, 0.0));
    for (&count, probability) in counts.iter().zip(exact) {
        let (count, expected) = (count as f64, probability * draws);
        if expected == 0.0 && count > 0.0 {
            return (0.0, 0);
        }
        if expected >= EXPECTED_MIN {
            classes.push((count, expected));
        } else {
            rare = (rare.0 + count, rare.1 + expected);
        }
    }
    match classes.last_mut() {
        // Too rare even together.
        Some(last) if rare.1 < EXPECTED_MIN => *last = (last.0 + rare.0, last.1 + rare.1),
        _ => classes.push(rare),
    }
    let distance = |&(count, expected): &(f64, f64)| (count - expected).powi(2) / expected;
    let sum: f64 = classes.iter().map(distance).sum();
    let freedom = classes.len() - 1;
    let p = if freedom == 0 { 1.0 } else { upper_gamma(freedom as f64 / 2.0, sum / 2.0) };
    (p, classes.len())
}

/// The regularised upper incomplete gamma function `Q(a, x)`: a series below `a + 1`, Lentz's
/// continued fraction above (Press et al., Numerical Recipes, 6.2).
fn upper_gamma(a: f64, x: f64) -> f64 {
    if x <= 0.0 {
        return 1.0;
    }
    let scale = (a * x.ln() - x - log_gamma(a)).exp();
    if x < a + 1.0 {
        let (mut term, mut sum, mut n) = (1.0 / a, 1.0 / a, a);
        while term > sum * 1e-15 {
            n += 1.0;
            term *= x / n;
            sum += term;
        }
        return 1.0 - scale * sum;
    }
    let tiny = f64::MIN_POSITIVE / f64::EPSILON;
    let mut b = x + 1.0 - a;
    let (mut c, mut d) = (1.0 / tiny, 1.0 / b);
    let mut fraction = d;
    for i in 1..100_000 {
        let i = f64::from(i);
        let numerator = -i * (i - a);
        b += 2.0;
        d = 1.0 / away_from_zero(numerator * d + b, tiny);
        c = away_from_zero(b + numerator / c, tiny);
        fraction *= d * c;
        if (d * c - 1.0).abs() < 1e-15 {
            break;
        }
    }
    scale * fraction
}

fn away_from_zero(x: f64, tiny: f64) -> f64 {
    if x.abs() < tiny { tiny } else { x }
}

/// `ln Γ(x)` by Stirling's series, after raising `x` to where it is exact.
fn log_gamma(mut x: f64) -> f64 {
    let mut below = 0.0;
    while x < 15.0 {
        below += x.ln();
        x += 1.0;
    }
    let inverse = 1.0 / (x * x);
    let series = (1.0 / 12.0 - inverse * (1.0 / 360.0 - inverse / 1260.0)) / x;
    (x - 0.5) * x.ln() - x + 0.5 * std::f64::consts::TAU.ln() + series - below
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p_values_are_those_of_the_tables() {
        // (degrees of freedom, χ², p) of the usual tables.
        let table = [(1, 3.841, 0.05), (5, 11.070, 0.05), (10, 23.209, 0.01), (100, 124.342, 0.05)];
        for (freedom, chi, p) in table {
            let found = upper_gamma(f64::from(freedom) / 2.0, chi / 2.0);
            assert!((found - p).abs() < 2e-5, "{freedom} {chi}: {found}");
        }
        assert!((upper_gamma(50.0, 40.0) - 0.929_665).abs() < 1e-6);
    }

    #[test]
    fn counts_are_judged() {
        let exact = [0.5, 0.3, 0.2, 0.0];
        assert_eq!(p_value(&[500, 300, 200, 0], &exact), (1.0, 3));
        assert!(p_value(&[560, 260, 180, 0], &exact).0 < 0.001);
        assert_eq!(p_value(&[500, 300, 199, 1], &exact).0, 0.0);
        // 0.002 of 1000 draws is no class of its own.
        assert_eq!(p_value(&[500, 498, 2], &[0.5, 0.498, 0.002]).1, 2);
    }
}
