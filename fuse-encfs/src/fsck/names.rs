//! Core: the paths of inodes, by looking through all names.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use super::scan::{self, Lost};
use crate::format::Ino;
use crate::schema::{self, Key};
use crate::segment::ReadError;
use crate::tables::Tables;

/// Directories above one another at most: what is deeper is shown by a number.
const DEPTH_MAX: usize = 4096;

/// Names by inode, with the directory of each.
type Names = BTreeMap<Ino, Vec<(Ino, Vec<u8>)>>;

/// All paths of each of `wanted` from the root of the volume. What has no name that can be read is
/// not among them, and where a directory above has none its number stands in for it.
pub(crate) fn paths(
    tables: &Tables,
    lost: &[Lost],
    wanted: &BTreeSet<Ino>,
) -> Result<BTreeMap<Ino, Vec<Vec<u8>>>, ReadError> {
    if wanted.is_empty() {
        return Ok(BTreeMap::new());
    }
    let mut names = named(tables, lost, wanted)?;
    let mut above = BTreeSet::new();
    for (dir, _) in names.values().flatten() {
        let mut at = *dir;
        while at != Ino::ROOT && above.insert(at) {
            match tables.inode(at) {
                Ok(Some(record)) => at = record.parent,
                Ok(None) | Err(_) => break,
            }
        }
    }
    above.retain(|dir| !wanted.contains(dir));
    names.append(&mut named(tables, lost, &above)?);
    let mut paths: BTreeMap<Ino, Vec<Vec<u8>>> = BTreeMap::new();
    for ino in wanted {
        if *ino == Ino::ROOT {
            paths.insert(*ino, vec![b"/".to_vec()]);
            continue;
        }
        for (dir, name) in names.get(ino).into_iter().flatten() {
            let path = path(&names, *dir, name);
            paths.entry(*ino).or_default().push(path);
        }
    }
    Ok(paths)
}

/// A path as it is shown: what is not printable text is `\xNN`, a backslash is doubled.
pub(crate) fn shown(path: &[u8]) -> String {
    let mut out = String::with_capacity(path.len());
    for piece in path.utf8_chunks() {
        for c in piece.valid().chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                c if c.is_control() => {
                    let mut utf8 = [0; 4];
                    for byte in c.encode_utf8(&mut utf8).bytes() {
                        out.push_str(&format!("\\x{byte:02x}"));
                    }
                }
                c => out.push(c),
            }
        }
        for byte in piece.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out
}

/// How an inode without a name is shown.
pub(crate) fn number(ino: Ino) -> String {
    format!("#{}", ino.0)
}

fn named(tables: &Tables, lost: &[Lost], wanted: &BTreeSet<Ino>) -> Result<Names, ReadError> {
    let mut names = Names::new();
    if wanted.is_empty() {
        return Ok(names);
    }
    scan::items(tables, lost, &mut |key, value| {
        match Key::parse(key) {
            Ok(Key::Entry(dir, _)) => {
                if let Ok(entry) = schema::parse_entry(value)
                    && wanted.contains(&entry.ino)
                {
                    names.entry(entry.ino).or_default().push((dir, entry.name));
                }
            }
            Ok(Key::Segment(_) | Key::SegRef(..) | Key::Orphan(_)) => return ControlFlow::Break(()),
            Ok(Key::Record(_) | Key::Hash(..) | Key::Extent(..) | Key::Xattr(..)) | Err(_) => {}
        }
        ControlFlow::Continue(())
    })?;
    Ok(names)
}

fn path(names: &Names, dir: Ino, name: &[u8]) -> Vec<u8> {
    let (mut parts, mut at) = (vec![name.to_vec()], dir);
    while at != Ino::ROOT {
        match names.get(&at).and_then(|names| names.first()) {
            Some((above, name)) if parts.len() < DEPTH_MAX => {
                parts.push(name.clone());
                at = *above;
            }
            Some(_) | None => {
                parts.push(number(at).into_bytes());
                parts.reverse();
                return parts.join(&b'/');
            }
        }
    }
    parts.push(Vec::new());
    parts.reverse();
    parts.join(&b'/')
}
