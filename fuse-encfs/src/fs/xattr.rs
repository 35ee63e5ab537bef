//! Core: extended attributes.

use std::ops::ControlFlow;

use super::{Caller, Counters, Fs, NewEntry, SetAttr, inode};
use crate::acl::{Acl, Inherited};
use crate::error::FsError;
use crate::format::{
    AttrChange, Ino, InodeRecord, Mapped, Op, Timestamp, XATTR_INLINE_LEN_MAX, XattrValue,
};
use crate::space::Need;
use crate::tables::{Tables, XattrEntry};
use crate::xattr::{
    self, ACCESS_ACL, CAPABILITY, DEFAULT_ACL, Owner, SetRule, XATTR_VALUE_LEN_MAX,
};

/// How often a long value is looked up again when it cannot be read: it may have moved.
const READ_TRIES: u32 = 3;

impl Fs {
    /// Sets an extended attribute. An access list that says no more than the mode becomes the mode.
    pub(crate) fn set_xattr(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        rule: SetRule,
        caller: Caller,
    ) -> Result<(), FsError> {
        self.admit(Need::of(value.len() as u64 + Need::CHANGE.more))?;
        let time = Timestamp::now();
        // Durable before it is named, and kept from being taken for dead until then.
        let is_list = matches!(name, ACCESS_ACL | DEFAULT_ACL);
        let is_long = value.len() > XATTR_INLINE_LEN_MAX && value.len() <= XATTR_VALUE_LEN_MAX;
        if is_list && is_long {
            // Lists are looked at by every change of a mode, and are at hand for that.
            return Err(FsError::Full);
        }
        let record = if is_long {
            let (extent, record) = self.journal.write_record(ino, value)?;
            self.journal.flush_record(&record).map_err(FsError::Store)?;
            Some((extent, record))
        } else {
            None
        };
        let build = |tables: &Tables| {
            let before = inode(tables, ino)?;
            let is_there = tables.xattr(ino, name)?.is_some();
            let effect = xattr::set(owner(&before, caller), name, value, rule, is_there)?;
            if !is_there && !xattr::has_room(listed(tables, ino, &before)?, name) {
                return Err(FsError::Full);
            }
            let mut ops = ops_of_mode(ino, effect.perm, time);
            match effect.value {
                Some(bytes) if is_long && bytes == value => {
                    let extents = record.iter().map(|(extent, _)| *extent).collect();
                    let map = tables.counters().next_ino;
                    ops.push(set(ino, name, XattrValue::Extents { map, extents }, time));
                }
                Some(bytes) => ops.push(set(ino, name, XattrValue::Inline(bytes), time)),
                None => ops.extend(is_there.then(|| remove(ino, name, time))),
            }
            Ok(ops)
        };
        self.journal.change(build, |_| Ok(()))
    }

    /// The value of an extended attribute.
    pub(crate) fn get_xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>, FsError> {
        let mut failed = FsError::NoAttribute;
        for _ in 0..READ_TRIES {
            let tables = self.journal.tables();
            if inode(&tables, ino)?.xattrs == 0 {
                return Err(FsError::NoAttribute);
            }
            match tables.xattr(ino, name)?.ok_or(FsError::NoAttribute)? {
                XattrEntry::Inline(value) => return Ok(value),
                XattrEntry::Extents { map, len } => match self.read_value(&tables, map, len) {
                    Ok(value) => return Ok(value),
                    Err(e) => failed = e,
                },
            }
        }
        if matches!(failed, FsError::Tampered) {
            Counters::add(&self.counters.auth_failures, 1);
            tracing::error!(
                inode = ino.0,
                error_code = "fs.tampered",
                "the value of an attribute is not what was written"
            );
        }
        Err(failed)
    }

    /// The names of an inode's extended attributes.
    pub(crate) fn list_xattrs(&self, ino: Ino) -> Result<Vec<Vec<u8>>, FsError> {
        let tables = self.journal.tables();
        let mut names = Vec::new();
        if inode(&tables, ino)?.xattrs > 0 {
            tables.xattrs(ino, |name, _| names.push(name.to_vec()))?;
        }
        Ok(names)
    }

    /// Removes an extended attribute.
    pub(crate) fn remove_xattr(
        &self,
        ino: Ino,
        name: &[u8],
        caller: Caller,
    ) -> Result<(), FsError> {
        let time = Timestamp::now();
        let build = |tables: &Tables| {
            let record = inode(tables, ino)?;
            let is_there = tables.xattr(ino, name)?.is_some();
            xattr::remove(owner(&record, caller), name, is_there)?;
            let ops = is_there.then(|| remove(ino, name, time));
            Ok(ops.into_iter().collect::<Vec<Op>>())
        };
        self.journal.change(build, |_| Ok(()))
    }

    /// Takes from a program what it may do beyond its user's rights, after its contents were
    /// changed by `caller`. Says whether that changed its mode.
    pub(crate) fn drop_privileges(&self, ino: Ino, caller: Caller) -> Result<bool, FsError> {
        let record = inode(&self.journal.tables(), ino)?;
        self.kill_privileges(ino, &record, |record| {
            if caller.uid == 0 {
                record.perm
            } else {
                xattr::perm_after_change(record.perm, is_in_group(record, caller))
            }
        })
    }

    /// Takes capabilities from a program whose contents were changed, and of its mode what
    /// `kept` does not keep. Says whether that changed its mode.
    pub(super) fn kill_privileges(
        &self,
        ino: Ino,
        record: &InodeRecord,
        kept: impl Fn(&InodeRecord) -> u16,
    ) -> Result<bool, FsError> {
        if kept(record) == record.perm && record.xattrs == 0 {
            return Ok(false);
        }
        let time = Timestamp::now();
        let mut has_changed = false;
        let build = |tables: &Tables| {
            let record = inode(tables, ino)?;
            let perm = kept(&record);
            has_changed = perm != record.perm;
            let mut ops = ops_of_mode(ino, has_changed.then_some(perm), time);
            ops.extend(ops_of_capability(tables, ino, time)?);
            Ok(ops)
        };
        self.journal.change(build, |_| Ok(()))?;
        Ok(has_changed)
    }

    fn read_value(&self, tables: &Tables, map: Ino, len: u32) -> Result<Vec<u8>, FsError> {
        let mut value = vec![0; len as usize];
        let mut extents = Vec::new();
        tables.mapped(map, &(0..u64::from(len)), |start, mapped| {
            extents.push((start, mapped));
            ControlFlow::Continue(())
        })?;
        let mut scratch = Vec::new();
        for (start, mapped) in extents {
            let Mapped::Data(extent) = mapped else {
                return Err(FsError::Tampered);
            };
            let entry = tables.segment(extent.segment)?.ok_or(FsError::Tampered)?;
            let from = usize::try_from(start).unwrap_or(usize::MAX);
            let to = from.saturating_add(extent.live as usize);
            let out = value.get_mut(from..to).ok_or(FsError::Tampered)?;
            let segment = self.journal.segment(extent.segment, entry);
            self.journal
                .read_extent(&segment, &extent, 0, out, &mut scratch)?;
        }
        Ok(value)
    }
}

/// What a new inode gets of its directory's default list.
pub(super) fn inherited(
    tables: &Tables,
    parent: Ino,
    above: &InodeRecord,
    new: &NewEntry<'_>,
) -> Result<Inherited, FsError> {
    let default = list(tables, parent, above, DEFAULT_ACL)?;
    Ok(Acl::inherit(
        default.as_ref(),
        new.kind,
        new.perm,
        new.umask,
    ))
}

/// The same, as operations.
pub(super) fn ops_of_inherited(ino: Ino, lists: &Inherited, time: Timestamp) -> Vec<Op> {
    let all = [(ACCESS_ACL, &lists.access), (DEFAULT_ACL, &lists.default)];
    let op = |(name, list): (&[u8], &Option<Acl>)| {
        let bytes = list.as_ref()?.to_bytes();
        Some(set(ino, name, XattrValue::Inline(bytes), time))
    };
    all.into_iter().filter_map(op).collect()
}

/// What follows for lists and capabilities from a change of attributes.
pub(super) fn ops_of_lists(
    tables: &Tables,
    ino: Ino,
    wish: &SetAttr,
    time: Timestamp,
) -> Result<Vec<Op>, FsError> {
    let record = inode(tables, ino)?;
    let mut ops = Vec::new();
    if let Some(perm) = wish.perm
        && let Some(acl) = list(tables, ino, &record, ACCESS_ACL)?
    {
        let bytes = acl.with_mode(perm).to_bytes();
        ops.push(set(ino, ACCESS_ACL, XattrValue::Inline(bytes), time));
    }
    let is_chown = wish.uid.is_some() || wish.gid.is_some();
    if record.xattrs > 0 && (is_chown || wish.size.is_some()) {
        ops.extend(ops_of_capability(tables, ino, time)?);
    }
    Ok(ops)
}

fn ops_of_capability(tables: &Tables, ino: Ino, time: Timestamp) -> Result<Option<Op>, FsError> {
    let is_there = tables.xattr(ino, CAPABILITY)?.is_some();
    Ok(is_there.then(|| remove(ino, CAPABILITY, time)))
}

fn ops_of_mode(ino: Ino, perm: Option<u16>, time: Timestamp) -> Vec<Op> {
    let change = AttrChange {
        perm,
        ctime: Some(time),
        ..AttrChange::default()
    };
    let op = perm.map(|_| Op::SetAttr { ino, change });
    op.into_iter().collect()
}

fn list(
    tables: &Tables,
    ino: Ino,
    record: &InodeRecord,
    name: &[u8],
) -> Result<Option<Acl>, FsError> {
    if record.xattrs == 0 {
        return Ok(None);
    }
    match tables.xattr(ino, name)? {
        Some(XattrEntry::Inline(bytes)) => Ok(Acl::parse(&bytes)?),
        Some(XattrEntry::Extents { .. }) | None => Ok(None),
    }
}

fn owner(record: &InodeRecord, caller: Caller) -> Owner {
    Owner {
        kind: record.kind,
        perm: record.perm,
        keeps_setgid: is_in_group(record, caller),
    }
}

/// Whether a caller may act for an inode's group. His other groups are not told to us.
pub(super) fn is_in_group(record: &InodeRecord, caller: Caller) -> bool {
    caller.uid == 0 || caller.gid == record.gid
}

/// Bytes of the names that an inode has.
fn listed(tables: &Tables, ino: Ino, record: &InodeRecord) -> Result<usize, FsError> {
    let mut len = 0;
    if record.xattrs > 0 {
        tables.xattrs(ino, |name, _| len += name.len() + 1)?;
    }
    Ok(len)
}

fn set(ino: Ino, name: &[u8], value: XattrValue, time: Timestamp) -> Op {
    Op::SetXattr {
        ino,
        name: name.to_vec(),
        value,
        time,
    }
}

fn remove(ino: Ino, name: &[u8], time: Timestamp) -> Op {
    Op::RemoveXattr {
        ino,
        name: name.to_vec(),
        time,
    }
}
