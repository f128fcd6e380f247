//! The stand-in's embedding: hashed words and character n-grams, always the same for the same text.
//!
//! It is no language model: "bicycle" and "bike" are near because they share letters, "car" and "automobile" are not.
//! Only `ollama-stand-in` uses it; the application itself takes whatever vectors `/api/embed` gives.

/// As many as all-minilm has, so that either can stand where the other was.
pub const DIMENSIONS: usize = 384;

/// Words that say nothing about what is bartered.
const STOP_WORDS: [&str; 38] = [
    "a", "about", "all", "also", "am", "an", "and", "any", "are", "as", "at", "be", "but", "by", "can", "for", "from",
    "have", "i", "in", "is", "it", "me", "my", "of", "on", "or", "our", "so", "some", "that", "the", "this", "to",
    "we", "with", "you", "your",
];

/// The text's vector of [`DIMENSIONS`], of length 1.
pub fn embed(text: &str) -> Vec<f32> {
    let mut vector = vec![0f32; DIMENSIONS];
    let lower = text.to_lowercase();
    let words = || lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    let mut meaningful = words().filter(|word| STOP_WORDS.binary_search(word).is_err()).peekable();
    if meaningful.peek().is_some() {
        meaningful.for_each(|word| add_word(&mut vector, word));
    } else {
        words().for_each(|word| add_word(&mut vector, word));
    }
    // Features can cancel out, and a text may have no word at all; a vector of length 0 has no direction.
    if vector.iter().all(|x| *x == 0.0) {
        add(&mut vector, b"\0no words", 1.0);
    }
    normalise(&mut vector);
    vector
}

/// Scales to length 1; leaves a vector of zeros alone.
pub fn normalise(vector: &mut [f32]) {
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|x| *x /= length);
    }
}

fn add_word(vector: &mut [f32], word: &str) {
    add(vector, word.as_bytes(), 1.0);
    // The marks make beginnings and ends of words features of their own.
    let marked: Vec<char> = std::iter::once('<').chain(word.chars()).chain(std::iter::once('>')).collect();
    let grams: Vec<&[char]> = [3, 4].into_iter().flat_map(|size| marked.windows(size)).collect();
    // All of a word's parts together weigh as much as the word, so that long words don't drown short ones.
    let weight = 1.0 / (grams.len() as f32).sqrt();
    for gram in grams {
        add(vector, gram.iter().collect::<String>().as_bytes(), weight);
    }
}

fn add(vector: &mut [f32], feature: &[u8], weight: f32) {
    let hash = mix(fnv1a(feature));
    // A sign from another bit makes collisions cancel out on average instead of adding up.
    let sign = if hash >> 63 == 0 { 1.0 } else { -1.0 };
    vector[(hash % DIMENSIONS as u64) as usize] += sign * weight;
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

/// FNV's high bits hardly differ for short inputs; this spreads them.
fn mix(mut hash: u64) -> u64 {
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ranking::cosine;

    fn similarity(a: &str, b: &str) -> f32 {
        cosine(&embed(a), &embed(b)).unwrap()
    }

    #[test]
    fn the_same_text_has_the_same_vector_of_length_one() {
        let vector = embed("Bicycle, hardly used");
        assert_eq!(vector.len(), DIMENSIONS);
        assert_eq!(vector, embed("bicycle  hardly USED!"));
        assert!((vector.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5);
        // Stored vectors are compared with new ones: a change of the hash must change the stand-in's digest too.
        let first: Vec<_> = vector.iter().enumerate().filter(|(_, x)| x.abs() > 0.2).map(|(i, _)| i).collect();
        assert_eq!(first, PINNED);
    }
    const PINNED: [usize; 3] = [131, 247, 344];

    #[test]
    fn related_texts_are_nearer_than_unrelated_ones() {
        let want = "Looking for a bike for my daughter, repairs are no problem";
        let bike = similarity(want, "Children's bike, 20 inch, needs a small repair");
        let piano = similarity(want, "Piano lessons for beginners");
        assert!(bike > piano + 0.1, "{bike} {piano}");
        let plural = similarity("tomato plants", "tomatoes and other plant");
        let tyres = similarity("tomato plants", "winter tyres and other things");
        assert!(plural > tyres + 0.1, "{plural} {tyres}");
    }

    #[test]
    fn texts_without_words_have_a_vector_too() {
        for text in ["", "   ", "!!!", "the and of", "日本語"] {
            let length = embed(text).iter().map(|x| x * x).sum::<f32>();
            assert!((length - 1.0).abs() < 1e-5, "{text:?}: {length}");
        }
        assert_ne!(embed("the and of"), embed(""));
    }

    #[test]
    fn stop_words_are_sorted_for_the_binary_search() {
        assert!(STOP_WORDS.is_sorted());
    }
}
