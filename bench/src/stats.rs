//! Medians, of figures and of ratios.

/// The middle one; of an even number the mean of the middle two. None of nothing.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
    sorted.sort_unstable_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        len if len % 2 == 0 => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
        _ => Some(sorted[middle]),
    }
}

/// Median of how much better `values` is than `base` of the same round: above 1 is better.
pub(crate) fn ratio(base: &[f64], values: &[f64], lower_is_better: bool) -> Option<f64> {
    let each: Vec<f64> = base.iter().zip(values).map(|(b, v)| if lower_is_better { b / v } else { v / b }).collect();
    median(&each)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[1.0, f64::NAN]), Some(1.0));
    }

    #[test]
    fn a_ratio_above_one_is_better_whatever_the_unit() {
        assert_eq!(ratio(&[10.0, 10.0], &[20.0, 20.0], false), Some(2.0));
        assert_eq!(ratio(&[10.0, 10.0], &[20.0, 20.0], true), Some(0.5));
    }
}
