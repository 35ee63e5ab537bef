//! Edge: requests for the contents of files.

use std::cell::RefCell;

use fuser::{INodeNo, ReplyData, Request, WriteFlags};

use super::{Edge, PAYLOAD_MAX, caller, errno};
use crate::error::FsError;
use crate::format::Ino;
use crate::fs::WriteMode;

/// Modes of fallocate(2).
const KEEP_SIZE: i32 = 0x01;
const PUNCH_HOLE: i32 = 0x02;
const ZERO_RANGE: i32 = 0x10;

thread_local! {
    /// The reply to a read, kept from one to the next.
    static REPLY: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Edge {
    pub(super) fn read_and_reply(&self, ino: INodeNo, offset: u64, size: u32, reply: ReplyData) {
        REPLY.with_borrow_mut(|buffer| {
            let len = size.min(PAYLOAD_MAX) as usize;
            if buffer.len() < len {
                buffer.resize(len, 0);
            }
            let read = buffer
                .get_mut(..len)
                .ok_or(FsError::Invalid)
                .and_then(|out| {
                    let got = self.fs.read(Ino(ino.0), offset, out)?;
                    out.get(..got).ok_or(FsError::Invalid)
                });
            match read {
                Ok(data) => reply.data(data),
                Err(e) => reply.error(errno(&e)),
            }
        });
    }

    pub(super) fn write_all(
        &self,
        ino: INodeNo,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
    ) -> Result<u32, FsError> {
        let mode = WriteMode {
            kernel_keeps_times: flags.contains(WriteFlags::FUSE_WRITE_CACHE),
            kills_privileges: flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
        };
        let took_privileges = self.fs.write(Ino(ino.0), offset, data, mode)?;
        if took_privileges {
            self.invalidate_attributes(ino);
        }
        Ok(u32::try_from(data.len()).unwrap_or(u32::MAX))
    }

    pub(super) fn reserve_or_clear(
        &self,
        req: &Request,
        ino: INodeNo,
        offset: u64,
        len: u64,
        mode: i32,
    ) -> Result<(), FsError> {
        let end = offset.checked_add(len).ok_or(FsError::TooLarge)?;
        let (at, range, grow) = (Ino(ino.0), offset..end, mode & KEEP_SIZE == 0);
        match mode & !KEEP_SIZE {
            0 => self.fs.allocate(at, range, grow)?,
            PUNCH_HOLE if !grow => self.fs.punch(at, range, false)?,
            ZERO_RANGE => self.fs.zero(at, range, grow)?,
            _ => return Err(FsError::NotSupported),
        }
        self.changed(req, ino)
    }

    pub(super) fn copy(
        &self,
        req: &Request,
        from: (INodeNo, u64),
        to: (INodeNo, u64),
        len: u64,
    ) -> Result<u32, FsError> {
        let len = len.min(u64::from(u32::MAX));
        let copied = self
            .fs
            .copy_range((Ino(from.0.0), from.1), (Ino(to.0.0), to.1), len)?;
        self.changed(req, to.0)?;
        // It is no more than `len`, which fits.
        Ok(u32::try_from(copied).unwrap_or(u32::MAX))
    }
    /// With FUSE_HANDLE_KILLPRIV_V2 a write says whether it takes set-user-id away; for other
    /// changes of contents no flag comes, and the caller decides.
    fn changed(&self, req: &Request, ino: INodeNo) -> Result<(), FsError> {
        if self.fs.drop_privileges(Ino(ino.0), caller(req))? {
            self.invalidate_attributes(ino);
        }
        Ok(())
    }
}
