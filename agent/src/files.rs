//! Edge: reading and writing the files that the host names: bounded, and nothing but plain files.

use std::io::{Error, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Reads a plain file of at most `bytes_max` bytes.
///
/// A device or a pipe under a name that the host chose would block for ever, or never end.
pub fn read_bounded(path: &Path, bytes_max: u64) -> std::io::Result<Vec<u8>> {
    let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(nonblocking)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(Error::new(ErrorKind::InvalidInput, "not a plain file"));
    }
    let mut bytes = Vec::new();
    file.take(bytes_max.saturating_add(1))
        .read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).is_ok_and(|len| len <= bytes_max) {
        Ok(bytes)
    } else {
        Err(Error::new(
            ErrorKind::FileTooLarge,
            "larger than any file of its kind",
        ))
    }
}

/// Puts `bytes` at `path` in one step: another program sees the old file or the new one, and what
/// lies there is replaced, never written into.
pub fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = Path::new(&temporary);
    // What a run that was interrupted left behind.
    match std::fs::remove_file(temporary) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_files_of_a_sensible_size_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        replace(&path, b"0123").unwrap();
        replace(&path, b"01234").unwrap();
        assert_eq!(read_bounded(&path, 5).unwrap(), b"01234");
        assert_eq!(
            read_bounded(&path, 4).unwrap_err().kind(),
            ErrorKind::FileTooLarge
        );
        for odd in [Path::new("/dev/zero"), dir.path()] {
            assert_eq!(
                read_bounded(odd, 4).unwrap_err().kind(),
                ErrorKind::InvalidInput
            );
        }
    }
}
