//! Who a service runs as: `user[:group]` resolved through passwd and group files.
//!
//! The host's files are read, because an instance sees the host's `/etc`. Nothing is changed in here.

use std::io;
use std::path::{Path, PathBuf};

/// Numbers and home of the user that a service runs as.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Identity {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
    pub(super) home: PathBuf,
}

/// Why a `user:` can't be resolved.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// No such name.
    #[error("there is no {kind} `{name}` in {file}")]
    Unknown {
        /// "user" or "group".
        kind: &'static str,
        /// As written.
        name: String,
        /// Where it was looked for.
        file: PathBuf,
    },
    /// The file can't be read.
    #[error("cannot read {file}")]
    Read {
        /// Which.
        file: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Resolves `user[:group]`; `None` is root. `more` are supplementary groups besides the user's own, by name or number.
pub(super) fn resolve(user: Option<&str>, more: &[String], etc: &Path) -> Result<Identity, UserError> {
    let read = |file: &str| {
        let file = etc.join(file);
        std::fs::read_to_string(&file).map_err(|source| UserError::Read { file, source })
    };
    let (passwd, group) = (read("passwd")?, read("group")?);
    let fields = |text: &str| -> Vec<Vec<String>> {
        text.lines().map(|line| line.split(':').map(str::to_owned).collect()).collect()
    };
    let (passwd, group) = (fields(&passwd), fields(&group));
    let (user, group_name) = match user.unwrap_or("0").split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (user.unwrap_or("0"), None),
    };
    let number = |entry: &[String], field: usize| entry.get(field).and_then(|text| text.parse::<u32>().ok());

    // A number that is nobody's is fine, as with Docker; a name must exist.
    let entry = passwd.iter().find(|entry| entry[0] == user).or_else(|| {
        let uid = user.parse::<u32>().ok()?;
        passwd.iter().find(|entry| number(entry, 2) == Some(uid))
    });
    let uid = entry.and_then(|entry| number(entry, 2)).or_else(|| user.parse().ok());
    let uid = uid.ok_or_else(|| UserError::Unknown { kind: "user", name: user.into(), file: etc.join("passwd") })?;
    let group_number = |name: &str| {
        let entry = group.iter().find(|entry| entry[0] == name);
        let gid = entry.and_then(|entry| number(entry, 2)).or_else(|| name.parse().ok());
        gid.ok_or_else(|| UserError::Unknown { kind: "group", name: name.into(), file: etc.join("group") })
    };
    let gid = match group_name {
        Some(name) => group_number(name)?,
        None => entry.and_then(|entry| number(entry, 3)).unwrap_or(0),
    };
    let mut groups = vec![gid];
    // Supplementary groups come with a user's own group only, as in Docker and su.
    if let (Some(entry), None) = (entry, group_name) {
        for candidate in &group {
            let member = candidate.get(3).is_some_and(|members| members.split(',').any(|name| name == entry[0]));
            if let Some(gid) = number(candidate, 2).filter(|gid| member && !groups.contains(gid)) {
                groups.push(gid);
            }
        }
    }
    for name in more {
        let gid = group_number(name)?;
        if !groups.contains(&gid) {
            groups.push(gid);
        }
    }
    let home = entry.and_then(|entry| entry.get(5)).filter(|home| !home.is_empty());
    Ok(Identity { uid, gid, groups, home: home.map_or_else(|| PathBuf::from("/"), PathBuf::from) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_resolve_as_docker_does() {
        let etc = std::env::temp_dir().join(format!("palisade-user-test-{}", std::process::id()));
        std::fs::create_dir_all(&etc).unwrap();
        std::fs::write(etc.join("passwd"), "root:x:0:0::/root:/bin/sh\ndb:x:105:110::/var/lib/db:/bin/sh\n").unwrap();
        std::fs::write(etc.join("group"), "root:x:0:\ndb:x:110:\nssl:x:112:web,db\nweb:x:5:\n").unwrap();
        let ids =
            |user| resolve(user, &[], &etc).map(|id| (id.uid, id.gid, id.groups)).map_err(|error| error.to_string());
        assert_eq!(ids(None), Ok((0, 0, vec![0])));
        assert_eq!(ids(Some("db")), Ok((105, 110, vec![110, 112])));
        assert_eq!(ids(Some("105")), Ok((105, 110, vec![110, 112])));
        assert_eq!(ids(Some("db:web")), Ok((105, 5, vec![5])));
        assert_eq!(ids(Some("4242:77")), Ok((4242, 77, vec![77])));
        assert_eq!(ids(Some("4242")), Ok((4242, 0, vec![0])));
        assert!(ids(Some("nobody-here")).unwrap_err().starts_with("there is no user `nobody-here` in "));
        assert!(ids(Some("db:nope")).unwrap_err().contains("no group `nope`"));
        let more = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            resolve(Some("db:web"), &names, &etc).map(|id| id.groups).map_err(|error| error.to_string())
        };
        assert_eq!(more(&["ssl", "4242", "web", "4242"]), Ok(vec![5, 112, 4242]));
        assert!(more(&["nope"]).unwrap_err().contains("no group `nope`"));
        assert_eq!(resolve(Some("db"), &[], &etc).unwrap().home, Path::new("/var/lib/db"));
        std::fs::remove_dir_all(&etc).unwrap();
    }
}
