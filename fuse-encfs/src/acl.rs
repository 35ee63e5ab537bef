//! Core: access control lists as POSIX 1003.1e draft 17 has them, and what they mean for the mode.
//!
//! Pure. With FUSE_POSIX_ACL the kernel checks access by the lists, but making, inheriting and
//! changing them is the filesystem's part; the rules here are those that acl(5) states, in the wire
//! form of the attributes `system.posix_acl_access` and `system.posix_acl_default`:
//!
//! ```text
//! u32 version = 2 | entries of { u16 tag | u16 permissions | u32 id }     all little endian
//! ```

use crate::format::FileKind;

/// The only version of the wire form that there is.
const VERSION: u32 = 2;
const HEADER_LEN: usize = 4;
const ENTRY_LEN: usize = 8;
/// The id of an entry that names nobody.
const NO_ID: u32 = u32::MAX;
/// Entries of one list: what the kernel reads back in one page, its limit for FUSE.
const ENTRIES_MAX: usize = (4096 - HEADER_LEN) / ENTRY_LEN;

const S_ISGID: u16 = 0o2000;
const PERMISSIONS: u16 = 0o7;

/// A valid list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Acl(Vec<Entry>);

/// Why bytes are not a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AclError {
    /// The version is another one.
    #[error("the list has another version")]
    Version,
    /// Its form is not that of a list, or it contradicts itself.
    #[error("it is not a valid list")]
    Invalid,
    /// It has more entries than the kernel reads.
    #[error("the list is too long")]
    TooLong,
}

/// What a new inode gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Inherited {
    pub(crate) perm: u16,
    /// Its list, where the mode does not say it all.
    pub(crate) access: Option<Acl>,
    /// What it in turn gives to what is made in it.
    pub(crate) default: Option<Acl>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    tag: Tag,
    /// Read, write and execute as in a mode: 4, 2, 1.
    perm: u16,
}

/// Whom an entry is for, in the order of the wire form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tag {
    Owner,
    User(u32),
    OwningGroup,
    Group(u32),
    Mask,
    Other,
}

impl Acl {
    /// Parses the wire form; `None` for a list without entries, which takes the list away.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Option<Self>, AclError> {
        let (version, entries) = bytes
            .split_first_chunk::<HEADER_LEN>()
            .ok_or(AclError::Invalid)?;
        if u32::from_le_bytes(*version) != VERSION {
            return Err(AclError::Version);
        }
        let (entries, rest) = entries.as_chunks::<ENTRY_LEN>();
        if !rest.is_empty() {
            return Err(AclError::Invalid);
        }
        if entries.len() > ENTRIES_MAX {
            return Err(AclError::TooLong);
        }
        if entries.is_empty() {
            return Ok(None);
        }
        let entries: Option<Vec<Entry>> = entries.iter().map(Entry::parse).collect();
        let acl = Self(entries.ok_or(AclError::Invalid)?);
        if acl.is_valid() {
            Ok(Some(acl))
        } else {
            Err(AclError::Invalid)
        }
    }

    /// The wire form.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut out = VERSION.to_le_bytes().to_vec();
        for entry in &self.0 {
            let (code, id) = entry.tag.code();
            out.extend(code.to_le_bytes());
            out.extend(entry.perm.to_le_bytes());
            out.extend(id.to_le_bytes());
        }
        out
    }

    /// Whether a mode says as much: nobody is named.
    pub(crate) fn is_minimal(&self) -> bool {
        let named = |entry: &Entry| matches!(entry.tag, Tag::User(_) | Tag::Group(_) | Tag::Mask);
        !self.0.iter().any(named)
    }

    /// The nine permission bits that a file with this list shows: the mask, where there is one,
    /// stands for the group.
    pub(crate) fn mode(&self) -> u16 {
        let bits = |tag| self.0.iter().find(|entry| entry.tag == tag);
        let perm = |tag| bits(tag).map_or(0, |entry| entry.perm);
        perm(Tag::Owner) << 6 | perm(self.group_class()) << 3 | perm(Tag::Other)
    }

    /// This list after chmod(2) with `mode`.
    pub(crate) fn with_mode(mut self, mode: u16) -> Self {
        self.each_class(|perm, class| *perm = mode >> class & PERMISSIONS);
        self
    }

    /// What is made in a directory with the default list `default`: `perm` as the caller asked for
    /// it, which a default list cuts down and which the umask cuts down without one.
    pub(crate) fn inherit(
        default: Option<&Self>,
        kind: FileKind,
        perm: u16,
        umask: u16,
    ) -> Inherited {
        let plain = |perm| Inherited {
            perm,
            access: None,
            default: None,
        };
        if kind == FileKind::Symlink {
            return plain(perm);
        }
        let Some(default) = default else {
            return plain(perm & !(umask & 0o777));
        };
        let mut access = default.clone();
        access.each_class(|entry, class| *entry &= perm >> class);
        Inherited {
            perm: perm & !0o777 | access.mode(),
            access: (!access.is_minimal()).then_some(access),
            default: (kind == FileKind::Directory).then(|| default.clone()),
        }
    }

    /// The entries that stand for the three classes of a mode, each with the class's shift.
    fn each_class(&mut self, mut change: impl FnMut(&mut u16, u32)) {
        let group = self.group_class();
        for Entry { tag, perm } in &mut self.0 {
            match tag {
                Tag::Owner => change(perm, 6),
                tag if *tag == group => change(perm, 3),
                Tag::Other => change(perm, 0),
                Tag::User(_) | Tag::OwningGroup | Tag::Group(_) | Tag::Mask => {}
            }
        }
    }

    fn group_class(&self) -> Tag {
        let has_mask = self.0.iter().any(|entry| entry.tag == Tag::Mask);
        if has_mask {
            Tag::Mask
        } else {
            Tag::OwningGroup
        }
    }

    /// One owner, group and others each, in order, and a mask where somebody is named.
    fn is_valid(&self) -> bool {
        let count = |tag| self.0.iter().filter(|entry| entry.tag == tag).count();
        let in_order = self.0.is_sorted_by(|a, b| a.tag.code().0 <= b.tag.code().0);
        let names = |entry: &Entry| matches!(entry.tag, Tag::User(_) | Tag::Group(_));
        let masks = count(Tag::Mask);
        in_order
            && [Tag::Owner, Tag::OwningGroup, Tag::Other]
                .into_iter()
                .all(|tag| count(tag) == 1)
            && (masks == 1 || masks == 0 && !self.0.iter().any(names))
    }
}

/// The permission bits of a file after its access list became `acl` (`None`: it was taken away).
/// Set-group-id goes unless the caller may keep it: he has the privilege or is in the group.
pub(crate) fn perm_after_access(perm: u16, acl: Option<&Acl>, keeps_setgid: bool) -> u16 {
    let Some(acl) = acl else { return perm };
    let perm = perm & !0o777 | acl.mode();
    if keeps_setgid { perm } else { perm & !S_ISGID }
}

impl Entry {
    fn parse(bytes: &[u8; ENTRY_LEN]) -> Option<Self> {
        let [t0, t1, p0, p1, id @ ..] = *bytes;
        let (code, perm) = (u16::from_le_bytes([t0, t1]), u16::from_le_bytes([p0, p1]));
        let id = u32::from_le_bytes(id);
        let tag = match code {
            0x01 => Tag::Owner,
            0x02 => Tag::User(id),
            0x04 => Tag::OwningGroup,
            0x08 => Tag::Group(id),
            0x10 => Tag::Mask,
            0x20 => Tag::Other,
            _ => return None,
        };
        let is_named = matches!(tag, Tag::User(_) | Tag::Group(_));
        // The id of the others says nothing and is not looked at, as in the kernel.
        let is_sound = perm <= PERMISSIONS && !(is_named && id == NO_ID);
        is_sound.then_some(Self { tag, perm })
    }
}

impl Tag {
    /// Code and id in the wire form.
    fn code(self) -> (u16, u32) {
        match self {
            Self::Owner => (0x01, NO_ID),
            Self::User(id) => (0x02, id),
            Self::OwningGroup => (0x04, NO_ID),
            Self::Group(id) => (0x08, id),
            Self::Mask => (0x10, NO_ID),
            Self::Other => (0x20, NO_ID),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A list in the short form of setfacl(1): `u::rwx,u:7:r,g::x,m::rx,o::`.
    fn wire(text: &str) -> Vec<u8> {
        let mut out = VERSION.to_le_bytes().to_vec();
        for entry in text.split(',').filter(|entry| !entry.is_empty()) {
            let mut parts = entry.split(':');
            let (who, id) = (parts.next().unwrap(), parts.next().unwrap());
            let code: u16 = match (who, id.is_empty()) {
                ("u", true) => 1,
                ("u", false) => 2,
                ("g", true) => 4,
                ("g", false) => 8,
                ("m", _) => 16,
                ("o", _) => 32,
                _ => panic!("{entry}"),
            };
            let bits = parts.next().unwrap().chars().map(|c| match c {
                'r' => 4,
                'w' => 2,
                'x' => 1,
                _ => panic!("{entry}"),
            });
            out.extend(code.to_le_bytes());
            out.extend(bits.sum::<u16>().to_le_bytes());
            out.extend(id.parse().unwrap_or(NO_ID).to_le_bytes());
        }
        out
    }

    fn acl(text: &str) -> Acl {
        Acl::parse(&wire(text)).unwrap().unwrap()
    }

    #[track_caller]
    fn check_parse(bytes: &[u8], want: Result<bool, AclError>) {
        let got = Acl::parse(bytes);
        assert_eq!(got.as_ref().map(Option::is_some), want.as_ref().copied());
        if let Ok(Some(acl)) = got {
            assert_eq!(acl.to_bytes(), bytes);
        }
    }

    #[test]
    fn lists_are_parsed_when_they_are_valid() {
        check_parse(&wire("u::rwx,g::rx,o::"), Ok(true));
        check_parse(&wire("u::rw,u:0:r,u:7:,g::r,g:9:rwx,m::rw,o::r"), Ok(true));
        check_parse(&wire("u::rw,g::r,m::rw,o::r"), Ok(true));
        check_parse(&wire(""), Ok(false));
    }

    #[test]
    fn what_is_not_a_list_is_refused() {
        check_parse(b"", Err(AclError::Invalid));
        check_parse(&[2, 0, 0], Err(AclError::Invalid));
        check_parse(&[1, 0, 0, 0], Err(AclError::Version));
        for bad in [
            "u::rwx",
            "u::rwx,o::",
            "g::r,o::",
            "u::r,u::r,g::,o::",
            "u::r,g::,o::,o::",
            "g::r,u::r,o::",
            "u::r,u:7:r,g::,o::",
            "u::r,g::,g:7:r,o::",
            "u::r,g::,m::,m::,o::",
            "u::r,g::,u:7:r,m::,o::",
        ] {
            check_parse(&wire(bad), Err(AclError::Invalid));
        }
        let good = wire("u::rwx,u:7:r,g::x,m::rx,o::");
        check_parse(&good[..good.len() - 1], Err(AclError::Invalid));
        for (at, value) in [(4, 3), (5, 1), (6, 8), (7, 1)] {
            let mut bad = good.clone();
            bad[at] = value;
            check_parse(&bad, Err(AclError::Invalid));
        }
        let mut nobody = good;
        nobody[16..20].fill(0xff);
        check_parse(&nobody, Err(AclError::Invalid));
    }

    #[test]
    fn a_list_has_at_most_what_the_kernel_reads_back() {
        let users = |n: usize| (0..n).map(|id| format!("u:{id}:r,")).collect::<String>();
        let list = |n| wire(&format!("u::r,{}g::r,m::r,o::r", users(n)));
        check_parse(&list(ENTRIES_MAX - 4), Ok(true));
        assert!(list(ENTRIES_MAX - 4).len() <= 4096);
        check_parse(&list(ENTRIES_MAX - 3), Err(AclError::TooLong));
    }

    #[track_caller]
    fn check_mode(text: &str, mode: u16, is_minimal: bool) {
        let acl = acl(text);
        assert_eq!((acl.mode(), acl.is_minimal()), (mode, is_minimal), "{text}");
    }

    #[test]
    fn the_mode_shows_the_mask_for_the_group() {
        check_mode("u::rwx,g::rx,o::x", 0o751, true);
        check_mode("u::rwx,g::rx,m::w,o::x", 0o721, false);
        check_mode("u::,u:7:rwx,g::rwx,m::,o::", 0o000, false);
    }

    #[track_caller]
    fn check_chmod(before: &str, mode: u16, after: &str) {
        assert_eq!(acl(before).with_mode(mode), acl(after), "{before} {mode:o}");
    }

    #[test]
    fn chmod_changes_the_classes_and_leaves_the_named() {
        check_chmod("u::rwx,g::rx,o::x", 0o640, "u::rw,g::r,o::");
        check_chmod(
            "u::rwx,u:7:rwx,g::rx,g:8:x,m::rwx,o::x",
            0o4604,
            "u::rw,u:7:rwx,g::rx,g:8:x,m::,o::r",
        );
    }

    #[track_caller]
    fn check_inherit(
        default: &str,
        (kind, perm, umask): (FileKind, u16, u16),
        want: (u16, &str, &str),
    ) {
        let list = |text: &str| Acl::parse(&wire(text)).unwrap();
        let got = Acl::inherit(list(default).as_ref(), kind, perm, umask);
        let want = Inherited {
            perm: want.0,
            access: list(want.1),
            default: list(want.2),
        };
        assert_eq!(got, want, "{default} {kind:?} {perm:o} {umask:o}");
    }

    #[test]
    fn what_is_made_gets_the_default_list_or_the_umask() {
        use FileKind::{Directory, Regular, Symlink};
        check_inherit("", (Regular, 0o666, 0o022), (0o644, "", ""));
        check_inherit("", (Directory, 0o3777, 0o027), (0o3750, "", ""));
        check_inherit("", (Regular, 0o6777, 0o7777), (0o6000, "", ""));
        check_inherit("", (Symlink, 0o777, 0o077), (0o777, "", ""));
        let plain = "u::rwx,g::rx,o::";
        check_inherit(plain, (Regular, 0o666, 0o777), (0o640, "", ""));
        check_inherit(plain, (Directory, 0o1777, 0o777), (0o1750, "", plain));
        check_inherit(plain, (Symlink, 0o777, 0o077), (0o777, "", ""));
        let named = "u::rwx,u:7:rwx,g::rwx,m::rwx,o::rx";
        check_inherit(
            named,
            (Regular, 0o640, 0o077),
            (0o640, "u::rw,u:7:rwx,g::rwx,m::r,o::", ""),
        );
        check_inherit(named, (Directory, 0o777, 0o077), (0o775, named, named));
    }

    #[track_caller]
    fn check_after_access(perm: u16, list: &str, keeps_setgid: bool, want: u16) {
        let list = Acl::parse(&wire(list)).unwrap();
        let got = perm_after_access(perm, list.as_ref(), keeps_setgid);
        assert_eq!(got, want, "{perm:o} {list:?}");
    }

    #[test]
    fn an_access_list_sets_the_mode() {
        check_after_access(0o4755, "u::rw,g::r,o::", true, 0o4640);
        check_after_access(0o6755, "u::rw,u:7:r,g::r,m::rwx,o::", true, 0o6670);
        check_after_access(0o6755, "u::rw,g::r,o::", false, 0o4640);
        // Without a list nobody is named any more, and the mode stays as it is.
        check_after_access(0o2750, "", false, 0o2750);
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_come_out_as_they_went_in(bytes: Vec<u8>) {
            if let Ok(Some(acl)) = Acl::parse(&bytes) {
                prop_assert_eq!(Acl::parse(&acl.to_bytes()), Ok(Some(acl)));
            }
        }

        #[test]
        fn a_list_shows_the_mode_that_chmod_gave_it(mode in 0u16..0o1000, has_mask: bool) {
            let list = if has_mask { "u::r,u:7:w,g::x,m::r,o::w" } else { "u::r,g::x,o::w" };
            prop_assert_eq!(acl(list).with_mode(mode).mode(), mode);
        }
    }
}
