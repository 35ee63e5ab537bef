//! Adapter: archives of pax(1), POSIX.1-2001, as GNU tar writes them with `--xattrs`.
//!
//! Everything that the old header has no room for is in records of an extended header: long names,
//! times to the nanosecond, and extended attributes as `SCHILY.xattr.NAME`. Read are also the long
//! names of GNU. Holes are written as zeros, which any tar(1) can make holes of again.

use std::io::{self, Read, Write};

use super::{Contents, Item, Target, TransferError, Xattrs};
use crate::format::{FileKind, Timestamp};

const BLOCK: usize = 512;
/// Bytes of an extended header at most: more than all attributes that a file can have.
const PAX_MAX: u64 = 64 << 20;
/// Larger numbers do not fit the octal digits of a header.
const SIZE_MAX: u64 = 0o777_7777_7777;
const ID_MAX: u32 = 0o7_777_777;
const NAME_LEN: usize = 100;
const ATTRIBUTE: &[u8] = b"SCHILY.xattr.";

/// Writes an archive.
pub(crate) struct Writer<W> {
    out: W,
    /// Sockets, which archives do not have.
    pub(crate) left_out: Vec<Vec<u8>>,
}

/// Something in an archive.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    New(Item),
    /// One more name of what came before under the second.
    Link(Vec<u8>, Vec<u8>),
}

/// Reads an archive.
pub(crate) struct Reader<R> {
    from: R,
    /// Bytes of the last entry's contents that are still to come, and of what pads them.
    left: u64,
    padding: u64,
}

/// What an extended header says of the entry behind it.
#[derive(Debug, Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<Timestamp>,
    atime: Option<Timestamp>,
    xattrs: Xattrs,
}

impl<W: Write> Writer<W> {
    pub(crate) fn new(out: W) -> Self {
        Self {
            out,
            left_out: Vec::new(),
        }
    }

    fn header(&mut self, item: &Item, kind: u8, size: u64, link: &[u8]) -> io::Result<()> {
        let mut name = if item.path.is_empty() {
            b".".to_vec()
        } else {
            item.path.clone()
        };
        if kind == b'5' {
            name.push(b'/');
        }
        let mut records = Vec::new();
        if name.len() > NAME_LEN {
            record(&mut records, b"path", &name);
        }
        if link.len() > NAME_LEN {
            record(&mut records, b"linkpath", link);
        }
        if size > SIZE_MAX {
            record(&mut records, b"size", size.to_string().as_bytes());
        }
        for (key, id) in [(b"uid", item.uid), (b"gid", item.gid)] {
            if id > ID_MAX {
                record(&mut records, key, id.to_string().as_bytes());
            }
        }
        for (key, time) in [(b"mtime", item.mtime), (b"atime", item.atime)] {
            record(&mut records, key, decimal(time).as_bytes());
        }
        for (name, value) in &item.xattrs {
            record(&mut records, &[ATTRIBUTE, name].concat(), value);
        }
        let extended = Header {
            name: b"PaxHeader",
            kind: b'x',
            size: records.len() as u64,
            perm: 0o644,
            ..Header::default()
        };
        self.out.write_all(&extended.bytes())?;
        self.out.write_all(&records)?;
        self.pad(records.len() as u64)?;
        let header = Header {
            name: &name,
            kind,
            size,
            perm: item.perm,
            uid: item.uid,
            gid: item.gid,
            mtime: item.mtime.secs,
            link,
            device: item.rdev,
        };
        self.out.write_all(&header.bytes())
    }

    fn pad(&mut self, len: u64) -> io::Result<()> {
        zeros(&mut self.out, len.next_multiple_of(BLOCK as u64) - len)
    }
}

impl<W: Write> Target for Writer<W> {
    fn put(&mut self, item: &Item, contents: Contents<'_>) -> Result<(), TransferError> {
        let outside = |e: io::Error| TransferError::outside(&item.path, e);
        let kind = match item.kind {
            FileKind::BlockDevice => b'4',
            FileKind::CharDevice => b'3',
            FileKind::Directory => b'5',
            FileKind::Fifo => b'6',
            FileKind::Regular => b'0',
            FileKind::Socket => {
                self.left_out.push(item.path.clone());
                return Ok(());
            }
            FileKind::Symlink => b'2',
        };
        self.header(item, kind, item.size, &item.target)
            .map_err(outside)?;
        let mut done = 0;
        contents(&mut |at, bytes: &[u8]| {
            let fits = at >= done && at.saturating_add(bytes.len() as u64) <= item.size;
            if !fits {
                return Err(TransferError::Hurt);
            }
            zeros(&mut self.out, at - done).map_err(outside)?;
            self.out.write_all(bytes).map_err(outside)?;
            done = at + bytes.len() as u64;
            Ok(())
        })?;
        zeros(&mut self.out, item.size - done).map_err(outside)?;
        self.pad(item.size).map_err(outside)
    }

    fn link(&mut self, path: &[u8], first: &[u8]) -> Result<(), TransferError> {
        if self.left_out.iter().any(|path| path == first) {
            return Ok(());
        }
        let item = Item {
            path: path.to_vec(),
            ..Item::nothing()
        };
        let written = self.header(&item, b'1', 0, first);
        written.map_err(|e| TransferError::outside(path, e))
    }

    fn end(&mut self) -> Result<(), TransferError> {
        let ended = zeros(&mut self.out, 2 * BLOCK as u64).and_then(|()| self.out.flush());
        ended.map_err(|e| TransferError::outside(b"", e))
    }

    fn is_stream(&self) -> bool {
        true
    }
}

impl<R: Read> Reader<R> {
    pub(crate) fn new(from: R) -> Self {
        Self {
            from,
            left: 0,
            padding: 0,
        }
    }

    /// The next entry; what is left of the last one's contents is passed over.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, TransferError> {
        let mut extended = Extended::default();
        loop {
            self.pass_over()?;
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let size = number(field(&header, 124, 12))?;
            match header.get(156).copied().unwrap_or(0) {
                b'x' => {
                    let records = self.whole(size)?;
                    extended.add(&records)?;
                }
                b'L' => extended.path = Some(text(&self.whole(size)?).to_vec()),
                b'K' => extended.link = Some(text(&self.whole(size)?).to_vec()),
                // Applies to all entries; nothing that is needed here does.
                b'g' => {
                    self.whole(size)?;
                }
                kind => return self.entry(&header, kind, size, extended).map(Some),
            }
        }
    }

    /// Reads contents of the last entry until `out` is full or they end.
    pub(crate) fn read(&mut self, out: &mut [u8]) -> Result<usize, TransferError> {
        let len = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(out.len());
        let out = out.get_mut(..len).unwrap_or_default();
        self.from.read_exact(out).map_err(unreadable)?;
        self.left -= len as u64;
        Ok(len)
    }

    fn entry(
        &mut self,
        header: &[u8; BLOCK],
        kind: u8,
        size: u64,
        extended: Extended,
    ) -> Result<Entry, TransferError> {
        let mut item = Item::nothing();
        item.kind = match kind {
            0 | b'0' | b'7' => FileKind::Regular,
            b'1' => FileKind::Regular,
            b'2' => FileKind::Symlink,
            b'3' => FileKind::CharDevice,
            b'4' => FileKind::BlockDevice,
            b'5' => FileKind::Directory,
            b'6' => FileKind::Fifo,
            b'S' => {
                return Err(TransferError::Archive(
                    "sparse files of old GNU tar are not known",
                ));
            }
            _ => {
                return Err(TransferError::Archive(
                    "an entry is of a kind that is not known",
                ));
            }
        };
        let name = extended.path.unwrap_or_else(|| name_of(header));
        item.path = clean(&name)?;
        let link = extended
            .link
            .unwrap_or_else(|| text(field(header, 157, NAME_LEN)).to_vec());
        let size = extended.size.unwrap_or(size);
        if kind == b'1' {
            self.expect(size);
            return Ok(Entry::Link(item.path, clean(&link)?));
        }
        if item.kind == FileKind::Regular {
            item.size = size;
        }
        if item.kind == FileKind::Symlink {
            item.target = link;
        }
        self.expect(size);
        let small = |at, len| {
            let n = number(field(header, at, len))?;
            u32::try_from(n).map_err(|_| TransferError::Archive("a number is too large"))
        };
        item.perm = u16::try_from(small(100, 8)? & 0o7777).unwrap_or(0);
        item.uid = extended.uid.map_or_else(|| small(108, 8), Ok)?;
        item.gid = extended.gid.map_or_else(|| small(116, 8), Ok)?;
        if matches!(item.kind, FileKind::BlockDevice | FileKind::CharDevice) {
            item.rdev = (small(329, 8)?, small(337, 8)?);
        }
        let secs = seconds(field(header, 136, 12))?;
        item.mtime = extended.mtime.unwrap_or(Timestamp { secs, nanos: 0 });
        item.atime = extended.atime.unwrap_or(item.mtime);
        item.xattrs = extended.xattrs;
        Ok(Entry::New(item))
    }

    fn expect(&mut self, size: u64) {
        self.left = size;
        self.padding = size.next_multiple_of(BLOCK as u64).saturating_sub(size);
    }

    fn pass_over(&mut self) -> Result<(), TransferError> {
        let rest = self.left.saturating_add(self.padding);
        (self.left, self.padding) = (0, 0);
        let passed = io::copy(&mut (&mut self.from).take(rest), &mut io::sink());
        match passed.map_err(unreadable)? {
            len if len == rest => Ok(()),
            _ => Err(TransferError::Archive("it ends early")),
        }
    }

    fn header(&mut self) -> Result<Option<[u8; BLOCK]>, TransferError> {
        let mut header = [0; BLOCK];
        self.from.read_exact(&mut header).map_err(unreadable)?;
        if header == [0; BLOCK] {
            return Ok(None);
        }
        if number(field(&header, 148, 8))? != u64::from(sum(&header)) {
            return Err(TransferError::Archive("a header's sum is wrong"));
        }
        Ok(Some(header))
    }

    fn whole(&mut self, size: u64) -> Result<Vec<u8>, TransferError> {
        if size > PAX_MAX {
            return Err(TransferError::Archive("an extended header is too long"));
        }
        self.expect(size);
        let mut bytes = Vec::new();
        let taken = (&mut self.from).take(size).read_to_end(&mut bytes);
        if taken.map_err(unreadable)? as u64 != size {
            return Err(TransferError::Archive("it ends early"));
        }
        self.left = 0;
        Ok(bytes)
    }
}

impl Extended {
    /// Takes records of the form `LENGTH KEY=VALUE\n`, where the length counts all of it.
    fn add(&mut self, mut records: &[u8]) -> Result<(), TransferError> {
        let malformed = TransferError::Archive("an extended header is malformed");
        while !records.is_empty() {
            let Some((key, value, rest)) = first_record(records) else {
                return Err(malformed);
            };
            records = rest;
            let number = || std::str::from_utf8(value).ok()?.parse::<u64>().ok();
            let id = || u32::try_from(number()?).ok();
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => {
                    let size = number();
                    self.size = Some(size.ok_or(TransferError::Archive("a size is malformed"))?);
                }
                b"uid" => self.uid = id(),
                b"gid" => self.gid = id(),
                b"mtime" => self.mtime = time(value),
                b"atime" => self.atime = time(value),
                key if key.starts_with(b"GNU.sparse") => {
                    return Err(TransferError::Archive(
                        "sparse files of GNU tar are not known",
                    ));
                }
                key => {
                    if let Some(name) = key.strip_prefix(ATTRIBUTE) {
                        self.xattrs.insert(name.to_vec(), value.to_vec());
                    }
                }
            }
        }
        Ok(())
    }
}

/// The old header.
#[derive(Default)]
struct Header<'a> {
    name: &'a [u8],
    kind: u8,
    size: u64,
    perm: u16,
    uid: u32,
    gid: u32,
    mtime: i64,
    link: &'a [u8],
    device: (u32, u32),
}

impl Header<'_> {
    fn bytes(&self) -> [u8; BLOCK] {
        let mut header = [0; BLOCK];
        put(&mut header, 0, self.name, NAME_LEN);
        put(&mut header, 100, &octal(self.perm.into(), 7), 7);
        put(&mut header, 108, &octal(self.uid.min(ID_MAX).into(), 7), 7);
        put(&mut header, 116, &octal(self.gid.min(ID_MAX).into(), 7), 7);
        put(&mut header, 124, &octal(self.size.min(SIZE_MAX), 11), 11);
        let mtime = u64::try_from(self.mtime).unwrap_or(0).min(SIZE_MAX);
        put(&mut header, 136, &octal(mtime, 11), 11);
        put(&mut header, 148, b"        ", 8);
        put(&mut header, 156, &[self.kind], 1);
        put(&mut header, 157, self.link, NAME_LEN);
        put(&mut header, 257, b"ustar\x0000", 8);
        put(&mut header, 329, &octal(self.device.0.into(), 7), 7);
        put(&mut header, 337, &octal(self.device.1.into(), 7), 7);
        let sum = octal(sum(&header).into(), 6);
        put(&mut header, 148, &[&sum[..], b"\0 "].concat(), 8);
        header
    }
}

fn put(header: &mut [u8; BLOCK], at: usize, bytes: &[u8], max: usize) {
    let to = header.iter_mut().skip(at).take(max);
    to.zip(bytes).for_each(|(to, from)| *to = *from);
}

fn octal(n: u64, digits: usize) -> Vec<u8> {
    format!("{n:0digits$o}").into_bytes()
}

/// The sum of a header's bytes, with spaces for itself.
fn sum(header: &[u8; BLOCK]) -> u32 {
    let at = |i: usize, byte: u8| match i {
        148..156 => u32::from(b' '),
        _ => u32::from(byte),
    };
    header
        .iter()
        .enumerate()
        .map(|(i, byte)| at(i, *byte))
        .sum()
}

/// A record of an extended header. Its length counts its own digits.
fn record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut len = rest;
    while len != rest + len.to_string().len() {
        len = rest + len.to_string().len();
    }
    // Of the three, one is the space behind the length.
    out.extend(format!("{len} ").into_bytes());
    out.extend(key);
    out.push(b'=');
    out.extend(value);
    out.push(b'\n');
}

fn first_record(records: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = records.iter().take(20).position(|byte| *byte == b' ')?;
    let len: usize = std::str::from_utf8(records.get(..space)?)
        .ok()?
        .parse()
        .ok()?;
    let (record, rest) = records.split_at_checked(len)?;
    let pair = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = pair.iter().position(|byte| *byte == b'=')?;
    Some((pair.get(..equals)?, pair.get(equals + 1..)?, rest))
}

/// Seconds with nine digits behind the point. Before 1970 the whole number is negative.
fn decimal(time: Timestamp) -> String {
    let nanos = i128::from(time.secs) * 1_000_000_000 + i128::from(time.nanos);
    let sign = if nanos < 0 { "-" } else { "" };
    let all = nanos.unsigned_abs();
    format!("{sign}{}.{:09}", all / 1_000_000_000, all % 1_000_000_000)
}

fn time(value: &[u8]) -> Option<Timestamp> {
    let text = std::str::from_utf8(value).ok()?;
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text),
    };
    let (secs, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let fraction: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let all = i128::from(secs.parse::<u64>().ok()?) * 1_000_000_000;
    let nanos = sign * (all + i128::from(fraction.parse::<u32>().ok()?));
    Some(Timestamp {
        secs: i64::try_from(nanos.div_euclid(1_000_000_000)).ok()?,
        nanos: u32::try_from(nanos.rem_euclid(1_000_000_000)).ok()?,
    })
}

/// Octal digits, or bytes of base 256 as GNU writes large numbers.
fn number(field: &[u8]) -> Result<u64, TransferError> {
    let malformed = TransferError::Archive("a number is malformed");
    if let [0x80, rest @ ..] = field {
        let bytes = rest.iter().try_fold(0_u64, |n, byte| {
            Some(n.checked_mul(256)? | u64::from(*byte))
        });
        return bytes.ok_or(malformed);
    }
    let text = std::str::from_utf8(text(field)).unwrap_or("?").trim();
    if text.is_empty() {
        return Ok(0);
    }
    u64::from_str_radix(text, 8).map_err(|_| malformed)
}

/// A time, which before 1970 is negative: GNU writes that in two's complement of base 256.
fn seconds(field: &[u8]) -> Result<i64, TransferError> {
    let last = field.last_chunk().copied();
    match (field, last) {
        ([0xff, ..], Some(bytes)) => Ok(i64::from_be_bytes(bytes)),
        _ => Ok(i64::try_from(number(field)?).unwrap_or(i64::MAX)),
    }
}

fn name_of(header: &[u8; BLOCK]) -> Vec<u8> {
    let name = text(field(header, 0, NAME_LEN));
    let is_posix = field(header, 257, 6) == b"ustar\0";
    let prefix = if is_posix {
        text(field(header, 345, 155))
    } else {
        b""
    };
    super::joined(prefix, name)
}

/// A path within the tree.
fn clean(name: &[u8]) -> Result<Vec<u8>, TransferError> {
    let parts = name.split(|byte| *byte == b'/');
    let parts: Vec<&[u8]> = parts.filter(|part| !matches!(*part, b"" | b".")).collect();
    if parts.contains(&&b".."[..]) {
        return Err(TransferError::Archive("a name leads out of the tree"));
    }
    Ok(parts.join(&b'/'))
}

fn field(header: &[u8; BLOCK], at: usize, len: usize) -> &[u8] {
    header.get(at..at + len).unwrap_or_default()
}

/// Up to the first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn zeros(out: &mut dyn Write, mut len: u64) -> io::Result<()> {
    let block = [0; 8192];
    while len > 0 {
        let now = usize::try_from(len).unwrap_or(usize::MAX).min(block.len());
        out.write_all(block.get(..now).unwrap_or_default())?;
        len -= now as u64;
    }
    Ok(())
}

fn unreadable(e: io::Error) -> TransferError {
    if e.kind() == io::ErrorKind::UnexpectedEof {
        TransferError::Archive("it ends early")
    } else {
        TransferError::outside(b"", e)
    }
}

impl Item {
    /// An empty file of nobody.
    pub(super) fn nothing() -> Self {
        let zero = Timestamp { secs: 0, nanos: 0 };
        Self {
            path: Vec::new(),
            kind: FileKind::Regular,
            perm: 0o644,
            uid: 0,
            gid: 0,
            rdev: (0, 0),
            size: 0,
            atime: zero,
            mtime: zero,
            target: Vec::new(),
            xattrs: Xattrs::new(),
        }
    }
}
