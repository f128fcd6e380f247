//! Where cgroups are mounted: version 2, and what is still on version 1.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Error, Result, at};

/// A mount of version 1 controllers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct V1Mount {
    /// Where it is mounted.
    pub path: PathBuf,
    /// Its controllers, as they must be named to mount the same hierarchy again.
    pub controllers: Vec<String>,
}

/// Where this machine's cgroups are mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounts {
    /// The cgroup2 mount.
    pub v2: PathBuf,
    /// Version 1 mounts that have one of `memory`, `cpu`, `cpuacct`, `pids`.
    pub v1: Vec<V1Mount>,
    /// The version 1 mount of `cpuset` where that is one of its own: a cgroup in it must be given processors before
    /// anybody can join it, so only those instances get one that ask for some.
    pub v1_cpuset: Option<PathBuf>,
    /// Mounts of version 1 that only a container engine makes cgroups in.
    pub v1_engines: Vec<PathBuf>,
}

impl Mounts {
    /// Looks them up.
    pub fn find() -> Result<Self> {
        let path = Path::new("/proc/self/mountinfo");
        Self::parse(&at(fs::read_to_string(path), "read", path)?)
    }

    /// Where cgroups of ours can be: all of them.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        let v1 = self.v1.iter().map(|mount| &mount.path);
        v1.chain(&self.v1_cpuset).chain(&self.v1_engines).chain([&self.v2]).map(PathBuf::as_path)
    }

    fn parse(mountinfo: &str) -> Result<Self> {
        let mut v2 = None;
        let mut v1: Vec<V1Mount> = Vec::new();
        let mut v1_cpuset = None;
        let mut v1_engines = Vec::new();
        for line in mountinfo.lines() {
            let Some((mount, filesystem)) = line.split_once(" - ") else { continue };
            let Some(path) = mount.split(' ').nth(4) else { continue };
            let path = PathBuf::from(unescape(path));
            let mut filesystem = filesystem.split(' ');
            match filesystem.next() {
                // The first one mounted is the system's own; a later one is somebody's extra view.
                Some("cgroup2") => v2 = v2.or(Some(path)),
                Some("cgroup") => {
                    let options = filesystem.nth(1).unwrap_or_default();
                    let controllers: Vec<String> = options
                        .split(',')
                        .filter(|option| !matches!(*option, "rw" | "ro" | "xattr" | "clone_children" | "noprefix"))
                        .filter(|option| !option.contains('='))
                        .map(str::to_owned)
                        .collect();
                    if controllers == ["cpuset"] {
                        v1_cpuset = v1_cpuset.or(Some(path));
                        continue;
                    }
                    let ours = ["memory", "cpu", "cpuacct", "pids"];
                    let known = v1.iter().any(|mount| mount.controllers == controllers);
                    if !controllers.iter().any(|controller| ours.contains(&controller.as_str())) {
                        v1_engines.push(path);
                    } else if !known {
                        v1.push(V1Mount { path, controllers });
                    }
                }
                _ => {}
            }
        }
        Ok(Self { v2: v2.ok_or(Error::NoCgroup2)?, v1, v1_cpuset, v1_engines })
    }

    /// Where a controller of version 1 is mounted.
    pub fn v1(&self, controller: &str) -> Option<&Path> {
        if let ("cpuset", Some(own)) = (controller, &self.v1_cpuset) {
            return Some(own);
        }
        self.v1.iter().find(|mount| mount.controllers.iter().any(|c| c == controller)).map(|mount| mount.path.as_path())
    }
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
fn unescape(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(position) = rest.find('\\') {
        result.push_str(&rest[..position]);
        match rest.get(position + 1..position + 4).and_then(|octal| u8::from_str_radix(octal, 8).ok()) {
            Some(byte) => {
                result.push(byte as char);
                rest = &rest[position + 4..];
            }
            None => {
                result.push('\\');
                rest = &rest[position + 1..];
            }
        }
    }
    result + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hybrid_and_pure_mounts_are_told_apart() {
        let hybrid = "32 31 0:29 / /sys/fs/cgroup/cpu\\040x rw - cgroup cgroup rw,cpu,cpuacct\n\
                      33 31 0:30 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n\
                      40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
        let mounts = Mounts::parse(hybrid).unwrap();
        assert_eq!(mounts.v2, Path::new("/sys/fs/cgroup/unified"));
        assert_eq!(mounts.v1("cpuacct"), Some(Path::new("/sys/fs/cgroup/cpu x")));
        assert_eq!(mounts.v1("memory"), None);
        assert_eq!((mounts.v1("cpuset"), mounts.v1.len()), (Some(Path::new("/sys/fs/cgroup/cpuset")), 1));
        let pure = Mounts::parse("1 2 0:3 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n").unwrap();
        assert_eq!((pure.v2.as_path(), pure.v1.len()), (Path::new("/sys/fs/cgroup"), 0));
        assert!(matches!(Mounts::parse("1 2 0:3 / /proc rw - proc proc rw\n"), Err(Error::NoCgroup2)));
    }
}
