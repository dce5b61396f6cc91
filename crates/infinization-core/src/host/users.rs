//! Users of this host: whom QEMU runs as.

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use serde_json::{Map, Value};

use super::process::RunAs;
use crate::config::RunAsUser;
use crate::error::{Coded, ErrorCode};

/// A user QEMU cannot run as.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum UserError {
    #[error("there is no user {user} on this host")]
    Unknown { user: String },
    #[error("user {user} could not be looked up")]
    Lookup { user: String, source: nix::Error },
}

impl Coded for UserError {
    fn code(&self) -> ErrorCode {
        ErrorCode::ResourceUnavailable
    }

    fn context(&self) -> Map<String, Value> {
        let (Self::Unknown { user } | Self::Lookup { user, .. }) = self;
        Map::from_iter([("user".to_owned(), Value::from(user.as_str()))])
    }
}

/// Looks up a login name with its groups, or takes `uid:gid` as it is (then with the group `kvm`
/// where there is one, so that `/dev/kvm` opens). Asks the name service, so it may block.
pub fn resolve(user: &RunAsUser) -> Result<RunAs, UserError> {
    let text = user.as_str();
    if let Some((uid, gid)) = numeric(text) {
        let kvm = Group::from_name("kvm").ok().flatten();
        return Ok(RunAs {
            uid,
            gid,
            groups: kvm.map(|group| group.gid.as_raw()).into_iter().collect(),
        });
    }
    let lookup = |source| UserError::Lookup {
        user: text.to_owned(),
        source,
    };
    let found = User::from_name(text).map_err(lookup)?;
    let found = found.ok_or_else(|| UserError::Unknown {
        user: text.to_owned(),
    })?;
    // A login name cannot hold a NUL: its type excludes it.
    let name = std::ffi::CString::new(text).map_err(|_nul| lookup(nix::Error::EINVAL))?;
    let groups = getgrouplist(&name, found.gid).map_err(lookup)?;
    Ok(RunAs {
        uid: Uid::as_raw(found.uid),
        gid: found.gid.as_raw(),
        groups: groups.into_iter().map(Gid::as_raw).collect(),
    })
}

fn numeric(text: &str) -> Option<(u32, u32)> {
    let (uid, gid) = text.split_once(':')?;
    Some((uid.parse().ok()?, gid.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_names_and_numbers() {
        let nobody = resolve(&RunAsUser::parse("nobody").unwrap()).unwrap();
        assert_eq!(nobody.uid, 65534);
        let numbers = resolve(&RunAsUser::parse("4242:4243").unwrap()).unwrap();
        assert_eq!((numbers.uid, numbers.gid), (4242, 4243));
        let error = resolve(&RunAsUser::parse("no-such-user").unwrap()).unwrap_err();
        assert_eq!(error.code(), ErrorCode::ResourceUnavailable);
    }
}
