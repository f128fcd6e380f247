//! How good a match is: similarity of meaning blended with being at the same place.
//!
//! Pure arithmetic; where the vectors and text ranks come from is not its business.

/// Share of the score that being at the same place decides. Small: a bicycle in the next town beats a piano next door.
const LOCATION_WEIGHT: f32 = 0.15;

/// The cosine of the angle between two vectors, or `None` where it has no meaning: different lengths, zero, not finite.
pub fn cosine(a: &[f32], b: &[f32]) -> Option<f32> {
    if a.len() != b.len() {
        return None;
    }
    let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    let cosine = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt();
    cosine.is_finite().then_some(cosine.clamp(-1.0, 1.0) as f32)
}

/// A score from 0 to 1 out of a similarity or text rank.
pub fn blend(likeness: f32, same_location: bool) -> f32 {
    let location = if same_location { LOCATION_WEIGHT } else { 0.0 };
    likeness.clamp(0.0, 1.0) * (1.0 - LOCATION_WEIGHT) + location
}

/// Whether two places are written alike but for case and spaces.
pub fn same_location(a: &str, b: &str) -> bool {
    fn words(text: &str) -> Vec<String> {
        text.to_lowercase().split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).map(String::from).collect()
    }
    let (a, b) = (words(a), words(b));
    !a.is_empty() && a == b
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosine_of_known_angles() {
        assert_eq!(cosine(&[2.0, 0.0], &[5.0, 0.0]), Some(1.0));
        assert_eq!(cosine(&[1.0, 0.0], &[0.0, 3.0]), Some(0.0));
        assert_eq!(cosine(&[1.0, 0.0], &[-1.0, 0.0]), Some(-1.0));
        assert_eq!(cosine(&[1.0], &[1.0, 0.0]), None);
        assert_eq!(cosine(&[0.0, 0.0], &[1.0, 0.0]), None);
        assert_eq!(cosine(&[f32::NAN], &[1.0]), None);
    }

    #[test]
    fn place_decides_between_equals_but_not_between_bicycle_and_piano() {
        assert!(blend(0.5, true) > blend(0.5, false));
        assert!(blend(0.8, false) > blend(0.3, true));
        assert_eq!(blend(1.0, true), 1.0);
        assert_eq!(blend(-0.4, false), 0.0);
    }

    #[test]
    fn places_are_compared_by_their_words() {
        assert!(same_location(" Leipzig,  Süd", "leipzig süd"));
        assert!(!same_location("Leipzig", "Halle"));
        assert!(!same_location("", ""));
    }
}
