//! What clients see when something goes wrong: pages of the stack's own, or a plain line.

use bytes::Bytes;
use std::collections::HashMap;
use std::io::Read;
use std::path::Path;

/// Bytes of one page at most; larger ones aren't used.
const PAGE_BYTES_MAX: u64 = 1 << 20;

/// Pages by status, kept in memory: a disk that fails doesn't matter when they are needed.
#[derive(Debug, Default)]
pub struct ErrorPages {
    pages: HashMap<u16, Bytes>,
}

impl ErrorPages {
    /// Reads `404.html`, `502.html` … from the folder, and says what can't be used.
    pub fn load(folder: Option<&Path>) -> (Self, Vec<String>) {
        let (mut pages, mut problems) = (HashMap::new(), Vec::new());
        let Some(folder) = folder else { return (Self { pages }, problems) };
        if let Err(error) = std::fs::read_dir(folder) {
            problems.push(format!("can't read the error pages in {}: {error}", folder.display()));
        }
        for status in 400..600 {
            let path = folder.join(format!("{status}.html"));
            let read = std::fs::File::open(&path).and_then(|file| {
                let mut page = Vec::new();
                file.take(PAGE_BYTES_MAX + 1).read_to_end(&mut page)?;
                Ok(page)
            });
            match read {
                Ok(page) if page.len() as u64 > PAGE_BYTES_MAX => {
                    problems.push(format!("{} isn't used: it has more than {PAGE_BYTES_MAX} bytes", path.display()));
                }
                Ok(page) => drop(pages.insert(status, page.into())),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => problems.push(format!("can't read {}: {error}", path.display())),
            }
        }
        (Self { pages }, problems)
    }

    /// The page for this status, in HTML.
    pub fn get(&self, status: u16) -> Option<Bytes> {
        self.pages.get(&status).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_kept_and_what_is_no_page_is_said() {
        let folder = std::env::temp_dir().join(format!("palisade-error-pages-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("503.html")).unwrap();
        std::fs::write(folder.join("502.html"), "<h1>soon</h1>").unwrap();
        std::fs::write(folder.join("404.html"), vec![b' '; (PAGE_BYTES_MAX + 1) as usize]).unwrap();
        let (pages, problems) = ErrorPages::load(Some(&folder));
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(pages.get(502).as_deref(), Some(&b"<h1>soon</h1>"[..]));
        assert_eq!((pages.get(404), pages.get(503), pages.get(500)), (None, None, None));
        assert_eq!(problems.len(), 2, "{problems:?}");
        let (_, problems) = ErrorPages::load(Some(&folder));
        assert!(problems[0].starts_with("can't read the error pages in"), "{problems:?}");
    }
}
