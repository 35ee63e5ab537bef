//! Core: the rules of extended attributes, after xattr(7): who may have which, and what setting one
//! comes to.
//!
//! Pure. The kernel has checked already what a caller's credentials decide (`trusted` and
//! `security` need a capability, an access list needs the owner); what it leaves to the filesystem
//! is here: which names there are, which inodes may have them, and what an access list does to the
//! mode.

use crate::acl::{Acl, AclError, perm_after_access};
use crate::error::FsError;
use crate::format::FileKind;

/// Bytes of a name with its namespace, as the kernel limits them.
pub(crate) const XATTR_NAME_LEN_MAX: usize = 255;
/// Bytes of a value, likewise.
pub(crate) const XATTR_VALUE_LEN_MAX: usize = 64 << 10;
/// Bytes of all names of one inode, each with a NUL: more cannot be listed.
pub(crate) const XATTR_LIST_LEN_MAX: usize = 64 << 10;

/// Name of the list that decides access.
pub(crate) const ACCESS_ACL: &[u8] = b"system.posix_acl_access";
/// Name of the list that what is made in a directory inherits.
pub(crate) const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";
/// Name of the capabilities of a program, which go when it is written to.
pub(crate) const CAPABILITY: &[u8] = b"security.capability";

const S_ISUID: u16 = 0o4000;
const S_ISGID: u16 = 0o2000;
const S_IXGRP: u16 = 0o010;

/// Whether an attribute may be there already when it is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SetRule {
    Any,
    /// It must not be there.
    Create,
    /// It must be there.
    Replace,
}

/// What a name is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Namespace {
    AccessAcl,
    DefaultAcl,
    Security,
    Trusted,
    User,
}

/// An inode that an attribute is set on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) kind: FileKind,
    pub(crate) perm: u16,
    /// Whether who asks may keep set-group-id: he has the privilege or is in the inode's group.
    pub(crate) keeps_setgid: bool,
}

/// What setting or removing an attribute comes to, in one transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Effect {
    /// The value to store; `None`: the attribute goes, if it is there.
    pub(crate) value: Option<Vec<u8>>,
    /// The inode's permission bits afterwards, where they change.
    pub(crate) perm: Option<u16>,
}

impl Namespace {
    /// The namespace that a name belongs to.
    pub(crate) fn of(name: &[u8]) -> Result<Self, FsError> {
        if name.len() > XATTR_NAME_LEN_MAX {
            return Err(FsError::OutOfRange);
        }
        match name {
            ACCESS_ACL => return Ok(Self::AccessAcl),
            DEFAULT_ACL => return Ok(Self::DefaultAcl),
            _ => {}
        }
        let prefixes = [
            (&b"security."[..], Self::Security),
            (b"trusted.", Self::Trusted),
            (b"user.", Self::User),
        ];
        let found = prefixes
            .into_iter()
            .find_map(|(prefix, namespace)| Some((name.strip_prefix(prefix)?, namespace)));
        match found {
            None => Err(FsError::NotSupported),
            Some((b"", _)) => Err(FsError::Invalid),
            Some((rest, _)) if rest.contains(&0) => Err(FsError::Invalid),
            Some((_, namespace)) => Ok(namespace),
        }
    }

    /// Whether an inode of this kind can have such attributes. Those of users are bound by the
    /// permission bits, which say nothing about the contents of links and devices.
    fn allows(self, kind: FileKind) -> bool {
        match self {
            Self::Security | Self::Trusted => true,
            Self::AccessAcl => kind != FileKind::Symlink,
            Self::DefaultAcl => kind == FileKind::Directory,
            Self::User => matches!(kind, FileKind::Directory | FileKind::Regular),
        }
    }
}

/// What setting `name` to `value` comes to; `is_there` says whether the inode has it already.
pub(crate) fn set(
    owner: Owner,
    name: &[u8],
    value: &[u8],
    rule: SetRule,
    is_there: bool,
) -> Result<Effect, FsError> {
    let namespace = Namespace::of(name)?;
    if value.len() > XATTR_VALUE_LEN_MAX {
        return Err(FsError::TooLong);
    }
    if !namespace.allows(owner.kind) {
        return Err(match namespace {
            Namespace::AccessAcl => FsError::NotSupported,
            Namespace::DefaultAcl => FsError::AccessDenied,
            Namespace::Security | Namespace::Trusted | Namespace::User => FsError::NotPermitted,
        });
    }
    match (rule, is_there) {
        (SetRule::Create, true) => return Err(FsError::Exists),
        (SetRule::Replace, false) => return Err(FsError::NoAttribute),
        _ => {}
    }
    let plain = |value| Effect { value, perm: None };
    Ok(match namespace {
        Namespace::Security | Namespace::Trusted | Namespace::User => plain(Some(value.to_vec())),
        Namespace::DefaultAcl => plain(Acl::parse(value)?.map(|acl| acl.to_bytes())),
        Namespace::AccessAcl => {
            let acl = Acl::parse(value)?;
            let perm = perm_after_access(owner.perm, acl.as_ref(), owner.keeps_setgid);
            let kept = acl.filter(|acl| !acl.is_minimal());
            Effect {
                value: kept.map(|acl| acl.to_bytes()),
                perm: (perm != owner.perm).then_some(perm),
            }
        }
    })
}

/// What removing `name` comes to. Access lists of inodes that have none can be removed, as on the
/// filesystems of the kernel.
pub(crate) fn remove(owner: Owner, name: &[u8], is_there: bool) -> Result<(), FsError> {
    match Namespace::of(name)? {
        Namespace::AccessAcl | Namespace::DefaultAcl => Ok(()),
        Namespace::User if !Namespace::User.allows(owner.kind) => Err(FsError::NotPermitted),
        Namespace::Security | Namespace::Trusted | Namespace::User if is_there => Ok(()),
        Namespace::Security | Namespace::Trusted | Namespace::User => Err(FsError::NoAttribute),
    }
}

/// The permission bits of a file after somebody without privilege changed its contents: set-user-id
/// goes, and set-group-id where it grants something or where he is not in the file's group.
pub(crate) fn perm_after_change(perm: u16, is_in_group: bool) -> u16 {
    let goes = if perm & S_IXGRP != 0 || !is_in_group {
        S_ISUID | S_ISGID
    } else {
        S_ISUID
    };
    perm & !goes
}

/// Whether one more name fits into a listing of `listed` bytes.
pub(crate) fn has_room(listed: usize, name: &[u8]) -> bool {
    listed + name.len() < XATTR_LIST_LEN_MAX
}

/// The names that who asks may see, each with a NUL: `trusted` ones are for the privileged alone,
/// and the kernel does not filter.
pub(crate) fn listing(names: &[Vec<u8>], is_privileged: bool) -> Vec<u8> {
    let is_shown = |name: &&Vec<u8>| is_privileged || !name.starts_with(b"trusted.");
    let mut out = Vec::new();
    for name in names.iter().filter(is_shown) {
        out.extend(name);
        out.push(0);
    }
    out
}

impl From<AclError> for FsError {
    fn from(e: AclError) -> Self {
        match e {
            AclError::Invalid => Self::Invalid,
            AclError::TooLong => Self::TooLong,
            AclError::Version => Self::NotSupported,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Owner and others `rwx`, group nothing.
    const MINIMAL: &[u8] = b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff\x04\0\0\0\xff\xff\xff\xff\
                             \x20\0\x07\0\xff\xff\xff\xff";
    /// As `MINIMAL`, with a mask `r`.
    const MASKED: &[u8] = b"\x02\0\0\0\x01\0\x07\0\xff\xff\xff\xff\x04\0\0\0\xff\xff\xff\xff\
                            \x10\0\x04\0\xff\xff\xff\xff\x20\0\x07\0\xff\xff\xff\xff";

    fn owner(kind: FileKind) -> Owner {
        Owner {
            kind,
            perm: 0o2755,
            keeps_setgid: false,
        }
    }

    #[track_caller]
    fn check_name(name: &[u8], want: Result<Namespace, &str>) {
        let got = Namespace::of(name).map_err(|e| format!("{e:?}"));
        assert_eq!(got, want.map_err(str::to_owned));
    }

    #[test]
    fn names_belong_to_a_namespace() {
        check_name(b"user.a", Ok(Namespace::User));
        check_name(b"user.\xff\x01.b", Ok(Namespace::User));
        check_name(b"trusted.overlay.opaque", Ok(Namespace::Trusted));
        check_name(CAPABILITY, Ok(Namespace::Security));
        check_name(ACCESS_ACL, Ok(Namespace::AccessAcl));
        check_name(DEFAULT_ACL, Ok(Namespace::DefaultAcl));
        check_name(b"user.", Err("Invalid"));
        check_name(b"user.a\0b", Err("Invalid"));
        for other in [&b""[..], b"user", b"User.a", b"system.other", b"os2.a"] {
            check_name(other, Err("NotSupported"));
        }
        let long = |n| [b"user.", &vec![b'n'; n][..]].concat();
        check_name(&long(250), Ok(Namespace::User));
        check_name(&long(251), Err("OutOfRange"));
    }

    #[track_caller]
    fn check_set(
        (kind, name, value): (FileKind, &[u8], &[u8]),
        (rule, is_there): (SetRule, bool),
        want: Result<(Option<&[u8]>, Option<u16>), &str>,
    ) {
        let got = set(owner(kind), name, value, rule, is_there);
        let got = got.map(|effect| (effect.value, effect.perm));
        let want = want.map(|(value, perm)| (value.map(<[u8]>::to_vec), perm));
        assert_eq!(
            got.map_err(|e| format!("{e:?}")),
            want.map_err(str::to_owned)
        );
    }

    #[test]
    fn attributes_are_set_as_the_rule_says() {
        use SetRule::{Any, Create, Replace};
        let user = (FileKind::Regular, &b"user.a"[..], &b"v"[..]);
        let stored = Ok((Some(&b"v"[..]), None));
        for (rule, is_there, want) in [
            (Any, false, stored),
            (Any, true, stored),
            (Create, false, stored),
            (Create, true, Err("Exists")),
            (Replace, false, Err("NoAttribute")),
            (Replace, true, stored),
        ] {
            check_set(user, (rule, is_there), want);
        }
    }

    #[test]
    fn each_kind_of_inode_has_its_namespaces() {
        use FileKind::{Directory, Fifo, Regular, Symlink};
        let any = (SetRule::Any, false);
        let stored = Ok((Some(&b"v"[..]), None));
        for (kind, name, want) in [
            (Directory, &b"user.a"[..], stored),
            (Symlink, b"user.a", Err("NotPermitted")),
            (Fifo, b"user.a", Err("NotPermitted")),
            (Symlink, b"trusted.a", stored),
            (Fifo, b"security.a", stored),
            (Regular, b"other.a", Err("NotSupported")),
        ] {
            check_set((kind, name, b"v"), any, want);
        }
        check_set((Regular, DEFAULT_ACL, MASKED), any, Err("AccessDenied"));
        check_set((Symlink, ACCESS_ACL, MASKED), any, Err("NotSupported"));
        let big = vec![0; XATTR_VALUE_LEN_MAX + 1];
        check_set((Regular, b"user.a", &big), any, Err("TooLong"));
        let most = &big[1..];
        check_set((Regular, b"user.a", most), any, Ok((Some(most), None)));
    }

    #[test]
    fn an_access_list_is_kept_only_where_the_mode_does_not_say_it_all() {
        use FileKind::{Directory, Regular};
        let any = (SetRule::Any, true);
        let empty = &MINIMAL[..4];
        for (kind, name, value, want) in [
            (Regular, ACCESS_ACL, MINIMAL, (None, Some(0o707))),
            (Regular, ACCESS_ACL, MASKED, (Some(MASKED), Some(0o747))),
            (Regular, ACCESS_ACL, empty, (None, None)),
            (Directory, DEFAULT_ACL, MINIMAL, (Some(MINIMAL), None)),
            (Directory, DEFAULT_ACL, empty, (None, None)),
        ] {
            check_set((kind, name, value), any, Ok(want));
        }
        check_set(
            (Regular, ACCESS_ACL, b"\x03\0\0\0"),
            any,
            Err("NotSupported"),
        );
        check_set((Regular, ACCESS_ACL, b"\x02"), any, Err("Invalid"));
    }

    #[track_caller]
    fn check_remove(kind: FileKind, name: &[u8], is_there: bool, want: Result<(), &str>) {
        let got = remove(owner(kind), name, is_there).map_err(|e| format!("{e:?}"));
        assert_eq!(got, want.map_err(str::to_owned));
    }

    #[test]
    fn what_is_not_there_cannot_be_removed_but_for_lists() {
        use FileKind::{Regular, Symlink};
        check_remove(Regular, b"user.a", true, Ok(()));
        check_remove(Regular, b"user.a", false, Err("NoAttribute"));
        check_remove(Symlink, b"user.a", false, Err("NotPermitted"));
        check_remove(Symlink, b"trusted.a", true, Ok(()));
        check_remove(Regular, ACCESS_ACL, false, Ok(()));
        check_remove(Regular, b"system.a", true, Err("NotSupported"));
    }

    #[track_caller]
    fn check_change(perm: u16, is_in_group: bool, want: u16) {
        assert_eq!(perm_after_change(perm, is_in_group), want, "{perm:o}");
    }

    #[test]
    fn a_change_by_the_unprivileged_takes_set_user_id_and_set_group_id() {
        check_change(0o6777, true, 0o777);
        check_change(0o6766, true, 0o2766);
        check_change(0o6766, false, 0o766);
        check_change(0o1755, false, 0o1755);
    }

    #[test]
    fn trusted_names_are_listed_to_the_privileged_alone() {
        let names = [&b"user.a"[..], b"trusted.b", b"security.c"].map(<[u8]>::to_vec);
        assert_eq!(listing(&names, true), b"user.a\0trusted.b\0security.c\0");
        assert_eq!(listing(&names, false), b"user.a\0security.c\0");
        assert_eq!(listing(&[], true), b"");
        assert!(has_room(XATTR_LIST_LEN_MAX - 3, b"ab"));
        assert!(!has_room(XATTR_LIST_LEN_MAX - 2, b"ab"));
    }
}
