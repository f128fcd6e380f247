//! `export`: the stack's host firewall, and what its edge serves, as files of other tools. Prints or writes them; loads
//! nothing.

mod edge;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use palisade_core::firewall::{Backend, FirewallRules, reasons};
use palisade_core::prove::Family;
use palisade_core::stack::{BackendChoice, Stack};
use palisade_host::firewall::export::{self, Export};
use palisade_host::session;

use crate::cli::{ExportArgs, ExportEdgeArgs, ExportTool, StackArgs};
use crate::exit::{Answer, Failure};
use crate::load;

/// A file to be.
struct File {
    name: String,
    text: String,
}

/// Prints the files, or writes them into a folder.
pub(crate) fn run(args: &StackArgs, options: &ExportArgs) -> Result<Answer, Failure> {
    if (options.ipv4 || options.ipv6) && options.tool != ExportTool::Iptables {
        let message = "error: one file of this tool is for both IPv4 and IPv6\n  hint: leave -4 and -6 away";
        return Err(Failure::Input(message.to_owned()));
    }
    let is_server = matches!(options.tool, ExportTool::Nginx | ExportTool::Haproxy);
    if is_server && !options.ssh.is_empty() {
        return Err(Failure::Input("error: --ssh is about firewalls\n  hint: leave it away".to_owned()));
    }
    if !is_server && options.edge != ExportEdgeArgs::default() {
        let message = "error: this tool keeps a firewall\n  hint: leave the options for nginx and haproxy away";
        return Err(Failure::Input(message.to_owned()));
    }
    let loaded = load::load(args).map_err(load::Unusable::into_failure)?;
    if is_server {
        let file = edge::file(&loaded.stack, options)?;
        return hand_out(&[file], options);
    }
    let rules = rules(&loaded.stack, options)?;
    let because = reasons(&loaded.stack);
    let files = files(Export { stack: loaded.stack.project.as_str(), rules: &rules, because: &because }, options);
    hand_out(&files, options)
}

/// Prints the files, or writes them into the folder that was asked for.
fn hand_out(files: &[File], options: &ExportArgs) -> Result<Answer, Failure> {
    let Some(folder) = &options.output else {
        for (at, file) in files.iter().enumerate() {
            if files.len() > 1 {
                println!("{}# ===== {} =====", if at > 0 { "\n" } else { "" }, file.name);
            }
            print!("{}", file.text);
        }
        return Ok(Answer::Yes);
    };
    fs::create_dir_all(folder).map_err(|error| Failure::new(format!("can't make {}", folder.display()), error))?;
    for file in files {
        write(&folder.join(&file.name), &file.text)?;
    }
    Ok(Answer::Yes)
}

/// What the stack lets in, also when its file says that Palisade leaves the firewall alone: then more than ever.
fn rules(stack: &Stack, options: &ExportArgs) -> Result<FirewallRules, Failure> {
    let mut ssh: BTreeSet<u16> = options.ssh.iter().copied().collect();
    if ssh.is_empty() {
        ssh = session::ssh_ports()
            .map_err(|error| Failure::new("can't find sshd's ports", error).hint("name them: --ssh 22"))?;
    }
    if ssh.is_empty() {
        // Nobody thanks for a file that locks them out.
        ssh.insert(22);
    }
    let mut own = stack.clone();
    own.firewall.backend = BackendChoice::Nftables;
    FirewallRules::of(&own, &ssh, Backend::Nftables)
        .ok_or_else(|| Failure::plain("this stack has no firewall to write down"))
}

fn files(export: Export<'_>, options: &ExportArgs) -> Vec<File> {
    match options.tool {
        ExportTool::Nftables => {
            vec![File { name: format!("{}.nft", export.stack), text: export::nftables(&export) }]
        }
        ExportTool::Iptables => [(Family::V4, "rules.v4", options.ipv6), (Family::V6, "rules.v6", options.ipv4)]
            .into_iter()
            .filter(|(_, _, other)| !other)
            .map(|(family, name, _)| File { name: name.to_owned(), text: export::iptables(&export, family) })
            .collect(),
        ExportTool::Firewalld => {
            vec![File { name: format!("{}.xml", export::zone_name(export.stack)), text: export::zone(&export) }]
        }
        ExportTool::Nginx | ExportTool::Haproxy => Vec::new(),
    }
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    fs::write(path, text).map_err(|error| Failure::new(format!("can't write {}", path.display()), error))?;
    println!("{} is written", path.display());
    Ok(())
}
