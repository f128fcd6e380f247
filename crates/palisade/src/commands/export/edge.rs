//! What the stack's edge serves, for nginx or HAProxy.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use palisade_core::edge::Upstream;
use palisade_core::edge::export::{self, By, Export, Options};
use palisade_core::stack::Stack;

use super::File;
use crate::cli::{ExportArgs, ExportTool, Upstreams};
use crate::exit::Failure;

/// The file; what it can't do is told on standard error.
pub(super) fn file(stack: &Stack, args: &ExportArgs) -> Result<File, Failure> {
    let wanted = &args.edge;
    let is_nginx = args.tool == ExportTool::Nginx;
    if !is_nginx && (wanted.conf_d || wanted.nginx_version.is_some() || wanted.acme_root.is_some()) {
        let message = "error: --conf-d, --nginx-version and --acme-root are for nginx\n  hint: leave them away";
        return Err(Failure::Input(message.to_owned()));
    }
    let Some(edge) = &stack.edge else {
        let message = format!("error: {} has no edge to write down", stack.project);
        let hint = "say in `x-palisade.edge` which domains lead to which service: docs/nginx.md has an example";
        return Err(Failure::Input(format!("{message}\n  hint: {hint}")));
    };
    let by = match wanted.upstreams {
        None | Some(Upstreams::Published) => By::Published,
        Some(Upstreams::Names) => By::Name,
    };
    let reach = export::reach(stack, edge, by, &told(wanted.upstream.iter(), edge)?).map_err(|missing| {
        let each = missing.iter().map(|missing| format!("error: {missing}\n  hint: {}", missing.hint()));
        Failure::Input(each.collect::<Vec<_>>().join("\n"))
    })?;
    let defaults = Options::default();
    let options = Options {
        listen: wanted.listen.clone(),
        nginx_version: wanted.nginx_version,
        conf_d: wanted.conf_d,
        certificates: wanted.certificates.clone(),
        acme_root: wanted.acme_root.clone().unwrap_or(defaults.acme_root),
    };
    let error_pages = edge.error_pages.as_deref().map(pages).unwrap_or_default();
    let project = stack.project.as_str();
    let export = Export { stack: project, edge, reach: &reach, error_pages: &error_pages, options: &options };
    let written = if is_nginx { export::nginx(&export) } else { export::haproxy(&export) };
    let written = written.map_err(|error| Failure::Input(format!("error: {error}")))?;
    for warning in reach.values().filter_map(|reach| reach.warning.as_ref()) {
        eprintln!("warning: {warning}");
    }
    for differs in &written.differs {
        eprintln!("note: {differs}");
    }
    let name = match (is_nginx, wanted.conf_d) {
        (true, true) => format!("{project}.conf"),
        (true, false) => "nginx.conf".to_owned(),
        (false, _) => "haproxy.cfg".to_owned(),
    };
    Ok(File { name, text: written.text })
}

/// Addresses that were given by hand, each of an upstream that is there.
fn told<'a>(
    given: impl Iterator<Item = &'a (Upstream, String)>,
    edge: &palisade_core::edge::Edge,
) -> Result<BTreeMap<Upstream, Vec<String>>, Failure> {
    let mut told: BTreeMap<Upstream, Vec<String>> = BTreeMap::new();
    for (upstream, address) in given {
        let known: BTreeSet<_> = edge.routes.iter().map(|route| &route.value.to).collect();
        if !known.contains(upstream) {
            let known: Vec<_> = known.iter().map(ToString::to_string).collect();
            let message =
                format!("error: no route leads to {upstream}\n  hint: those that there are: {}", known.join(", "));
            return Err(Failure::Input(message));
        }
        told.entry(upstream.clone()).or_default().push(address.clone());
    }
    Ok(told)
}

/// Statuses that the folder has a page for: `502.html`.
fn pages(folder: &Path) -> BTreeSet<u16> {
    let Ok(entries) = std::fs::read_dir(folder) else {
        eprintln!("warning: {} can't be read, so no error pages are in the file", folder.display());
        return BTreeSet::new();
    };
    let status = |name: &str| name.strip_suffix(".html").and_then(|status| status.parse().ok());
    entries.flatten().filter_map(|entry| status(&entry.file_name().to_string_lossy())).collect()
}
