//! Which route a request takes: by its domain, then by the longest path that matches whole segments.

use super::pool::Group;
use hyper::header::HeaderValue;
use palisade_core::edge::{Edge, Hsts, Route, Upstream};
use std::collections::HashMap;
use std::rc::Rc;

/// A route with where its requests go.
pub(super) struct Lane {
    /// Its place among the edge's routes.
    pub(super) number: u16,
    pub(super) route: Route,
    pub(super) group: Rc<Group>,
    /// `Strict-Transport-Security`.
    pub(super) hsts: Option<HeaderValue>,
}

/// All routes, by domain.
pub(super) struct Routes {
    /// Each domain's, longest path first. A wildcard's key is what follows its `*.`, among `wildcards`.
    exact: HashMap<Box<str>, Vec<Rc<Lane>>>,
    wildcards: HashMap<Box<str>, Vec<Rc<Lane>>>,
    default_domain: Option<Box<str>>,
}

/// What was found for a request.
pub(super) enum Found<'a> {
    Route(&'a Rc<Lane>),
    /// With what the domain's routes say of HTTPS, the one with the shortest path first.
    NoPath(Option<&'a HeaderValue>),
    NoDomain,
}

impl Routes {
    pub(super) fn new(edge: &Edge, mut group: impl FnMut(&Upstream) -> Rc<Group>) -> Self {
        let (mut exact, mut wildcards) = (HashMap::<Box<str>, Vec<_>>::new(), HashMap::<Box<str>, Vec<_>>::new());
        for (number, placed) in (0..).zip(&edge.routes) {
            let route = placed.value.clone();
            let hsts = route.hsts.as_ref().and_then(hsts);
            let lane = Rc::new(Lane { number, group: group(&route.to), route, hsts });
            for domain in &lane.route.domains {
                let lanes = match domain.strip_prefix("*.") {
                    Some(rest) => wildcards.entry(rest.into()).or_default(),
                    None => exact.entry(domain.as_str().into()).or_default(),
                };
                lanes.push(Rc::clone(&lane));
            }
        }
        for lanes in exact.values_mut().chain(wildcards.values_mut()) {
            lanes.sort_by_key(|lane| std::cmp::Reverse(lane.route.path.trim_end_matches('/').len()));
        }
        Self { exact, wildcards, default_domain: edge.default_domain.as_deref().map(Into::into) }
    }

    /// The domain is in lower case and without port or final dot. Also returned: the domain as which it is served.
    pub(super) fn find<'a>(&'a self, domain: &'a str, path: &str) -> (&'a str, Found<'a>) {
        let lanes = match self.of(domain) {
            Some(lanes) => Some((domain, lanes)),
            None => self.default_domain.as_deref().and_then(|served| {
                let shown = if domain.is_empty() { served } else { domain };
                Some((shown, self.of(served)?))
            }),
        };
        match lanes {
            Some((domain, lanes)) => {
                let lane = lanes.iter().find(|lane| leads(&lane.route.path, path));
                let hsts = || lanes.iter().rev().find_map(|lane| lane.hsts.as_ref());
                (domain, lane.map_or_else(|| Found::NoPath(hsts()), Found::Route))
            }
            None => (domain, Found::NoDomain),
        }
    }

    fn of(&self, domain: &str) -> Option<&Vec<Rc<Lane>>> {
        self.exact.get(domain).or_else(|| self.wildcards.get(domain.split_once('.')?.1))
    }
}

fn hsts(policy: &Hsts) -> Option<HeaderValue> {
    let mut text = format!("max-age={}", policy.max_age_s);
    for (wanted, word) in [(policy.subdomains, "; includeSubDomains"), (policy.preload, "; preload")] {
        if wanted {
            text.push_str(word);
        }
    }
    HeaderValue::try_from(text).ok()
}

/// Whole segments of the path begin with the prefix.
fn leads(prefix: &str, path: &str) -> bool {
    let prefix = prefix.trim_end_matches('/');
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::leads;

    #[test]
    fn a_path_leads_to_whole_segments() {
        for (prefix, path, expected) in [
            ("/", "/", true),
            ("/", "/api", true),
            ("/api", "/api", true),
            ("/api", "/api/", true),
            ("/api", "/api/x", true),
            ("/api", "/apis", false),
            ("/api/", "/api", true),
            ("/api/", "/api/x", true),
            ("/api/", "/apis", false),
            ("/api", "/ap", false),
            ("/api", "*", false),
        ] {
            assert_eq!(leads(prefix, path), expected, "{prefix} {path}");
        }
    }
}
