//! The texts of several files become trees, on several processors where there are.
//!
//! Each text is parsed for itself, so that neither their trees nor what is told depends on who was first.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::yaml::{self, Node};
use crate::diagnostic::{Diagnostic, FileId};

/// The documents of one file, and what is wrong in them.
pub(crate) type Trees = (Option<Vec<Arc<Node>>>, Vec<Diagnostic>);

/// So many threads help at most. What comes after parsing is done by one, so more would not be felt.
const HELPERS_MAX: usize = 3;
/// To start a thread takes as long as to parse about so many bytes.
const BYTES_WORTH_A_THREAD: usize = 16 << 10;

/// The trees of each text, in the order of the texts.
pub(crate) fn all(texts: &[(FileId, &str)]) -> Vec<Trees> {
    let next = AtomicUsize::new(0);
    let parse_some = || {
        let mut done = Vec::new();
        while let Some((at, (file, text))) = {
            let at = next.fetch_add(1, Ordering::Relaxed);
            texts.get(at).map(|text| (at, *text))
        } {
            done.push((at, yaml::parse(text, file)));
        }
        done
    };
    let bytes: usize = texts.iter().map(|(_, text)| text.len()).sum();
    let helpers = HELPERS_MAX.min(texts.len().saturating_sub(1)).min(bytes / BYTES_WORTH_A_THREAD);
    let mut done = thread::scope(|scope| {
        // Where no thread can be started, this one does it all.
        let start = |_| thread::Builder::new().name("parse".to_owned()).spawn_scoped(scope, parse_some).ok();
        let helpers: Vec<_> = (0..helpers).filter_map(start).collect();
        let mut done = parse_some();
        for helper in helpers {
            done.extend(helper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        done
    });
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, trees)| trees).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnostic::SourceMap;

    #[test]
    fn each_text_has_its_own_trees_in_their_order() {
        let mut sources = SourceMap::default();
        let texts: Vec<String> = (0..40).map(|n| format!("a{n}: 1\n").repeat(1 + n * 100)).collect();
        let texts: Vec<_> = texts.iter().map(|text| (sources.add("t.yaml", text).unwrap(), text.as_str())).collect();
        let trees = all(&texts);
        assert_eq!(trees.len(), texts.len());
        for (n, ((documents, problems), (file, _))) in trees.iter().zip(&texts).enumerate() {
            let documents = documents.as_ref().unwrap();
            assert_eq!(documents[0].span.file, *file);
            assert!(documents[0].get(&format!("a{n}")).is_some());
            assert_eq!(problems.len(), n * 100);
        }
        assert!(all(&[]).is_empty());
    }
}
