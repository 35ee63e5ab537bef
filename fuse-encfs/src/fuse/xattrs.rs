//! Edge: requests for extended attributes.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use fuser::{Errno, INodeNo, ReplyXattr, Request};

use super::{Edge, caller, errno};
use crate::error::FsError;
use crate::format::Ino;
use crate::xattr::{self, SetRule};

/// Flags of setxattr(2).
const XATTR_CREATE: i32 = 1;
const XATTR_REPLACE: i32 = 2;

impl Edge {
    pub(super) fn set_attribute(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
    ) -> Result<(), FsError> {
        let rule = match flags {
            0 => SetRule::Any,
            XATTR_CREATE => SetRule::Create,
            XATTR_REPLACE => SetRule::Replace,
            _ => return Err(FsError::Invalid),
        };
        self.fs
            .set_xattr(Ino(ino.0), name.as_bytes(), value, rule, caller(req))
    }

    pub(super) fn remove_attribute(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
    ) -> Result<(), FsError> {
        self.fs
            .remove_xattr(Ino(ino.0), name.as_bytes(), caller(req))
    }

    pub(super) fn names_of_attributes(
        &self,
        req: &Request,
        ino: INodeNo,
    ) -> Result<Vec<u8>, FsError> {
        let names = self.fs.list_xattrs(Ino(ino.0))?;
        Ok(xattr::listing(&names, caller(req).uid == 0))
    }
}

/// Answers with a value or a listing, or where `room` is 0 with its length.
pub(super) fn reply_sized(found: Result<Vec<u8>, FsError>, room: u32, reply: ReplyXattr) {
    let data = match found {
        Ok(data) => data,
        Err(e) => return reply.error(errno(&e)),
    };
    match u32::try_from(data.len()) {
        Ok(len) if room == 0 => reply.size(len),
        Ok(len) if len <= room => reply.data(&data),
        _ => reply.error(Errno::ERANGE),
    }
}
