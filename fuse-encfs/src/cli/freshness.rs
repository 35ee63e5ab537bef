//! Edge: options about anchors, and the directory of what belongs to this guest.

use std::path::{Path, PathBuf};

use clap::Args;
use keys::VolumeId;

use super::Failure;
use crate::anchor::{AnchorChoice, Freshness, guest_anchor_path, make_guest_directory};
use crate::control::RUNTIME_DIRECTORY;

/// Where the guest keeps what is its own.
#[derive(Debug, Args)]
pub(super) struct RuntimeDirectory {
    /// Directory of control sockets and of what the guest remembers of its volumes; on a tmpfs, and
    /// outside of the container that mounts. By default /run/fuse-encfs; unlike one that is named
    /// here, the default is done without, with a warning, when it cannot be used.
    #[arg(long, value_name = "DIR")]
    pub(super) runtime_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct FreshnessArgs {
    /// What remembers the newest state of the volume beyond the life of the guest: `none`,
    /// `file:PATH`, or `strict:file:PATH`, with which fsync waits until it is remembered. Without
    /// an anchor the store can bring back an older state of the whole volume when the guest starts
    /// anew.
    #[arg(long, value_name = "ANCHOR", default_value = "none")]
    anchor: Freshness,
    /// The anchor's file need not be on a tmpfs: whoever runs the store cannot set it back.
    #[arg(long)]
    anchor_vouched: bool,
    /// Open the state with this head (64 hexadecimal digits) whatever the anchor says, as after a
    /// backup was restored. The refusal tells the head.
    #[arg(long, value_name = "HEX", value_parser = parse_head)]
    accept_head: Option<Head>,
    /// Refuse a volume whose master key has a lower epoch.
    #[arg(long, value_name = "N", default_value_t = 0)]
    min_vmk_epoch: u32,
}

/// A head of the log's chain.
type Head = [u8; 32];

impl RuntimeDirectory {
    /// The directory, named or not.
    pub(super) fn path(&self) -> &Path {
        self.runtime_dir
            .as_deref()
            .unwrap_or_else(|| Path::new(RUNTIME_DIRECTORY))
    }

    /// Where the guest remembers a volume; `None` when the default cannot be used for that.
    fn guest_anchor(&self, volume: VolumeId, store: &Path) -> Result<Option<PathBuf>, Failure> {
        match make_guest_directory(self.path()) {
            Ok(()) => {}
            Err(e) if self.runtime_dir.is_none() => {
                tracing::warn!(
                    error_code = "fs.guest_anchor_off",
                    "{}: a restart of this program can be used to bring back an older state of the \
                     volume",
                    super::Chain(&e)
                );
                return Ok(None);
            }
            Err(e) => return Err(Failure::Anchor(e)),
        }
        Ok(Some(guest_anchor_path(self.path(), volume, store)?))
    }
}

impl FreshnessArgs {
    /// What the volume in `store` is judged by.
    pub(super) fn freshness(
        &self,
        runtime: &RuntimeDirectory,
        volume: VolumeId,
        store: &Path,
    ) -> Result<Freshness, Failure> {
        let mut freshness = self.anchor.clone();
        match &mut freshness.anchor {
            AnchorChoice::File { vouched, .. } => *vouched = self.anchor_vouched,
            AnchorChoice::None | AnchorChoice::Other(_) if self.anchor_vouched => {
                let message = "--anchor-vouched is of use only with an anchor in a file";
                return Err(Failure::Usage(message.into()));
            }
            AnchorChoice::None | AnchorChoice::Other(_) => {}
        }
        freshness.guest = runtime.guest_anchor(volume, store)?;
        freshness.accept_head = self.accept_head;
        freshness.vmk_epoch_min = self.min_vmk_epoch;
        Ok(freshness)
    }
}

fn parse_head(text: &str) -> Result<Head, &'static str> {
    const WRONG: &str = "a head is 64 hexadecimal digits";
    let digits: Option<Vec<u32>> = text.chars().map(|digit| digit.to_digit(16)).collect();
    let digits = digits.filter(|digits| digits.len() == 64).ok_or(WRONG)?;
    let mut head = [0; 32];
    for (byte, pair) in head.iter_mut().zip(digits.chunks_exact(2)) {
        let value = pair.iter().fold(0, |high, digit| high << 4 | digit);
        *byte = u8::try_from(value).map_err(|_| WRONG)?;
    }
    Ok(head)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        freshness: FreshnessArgs,
        #[command(flatten)]
        runtime: RuntimeDirectory,
    }

    const ID: VolumeId = VolumeId([0x5a; 16]);

    /// What options give, on a machine whose default directory is not used.
    #[track_caller]
    fn check(options: &[&str], want: Result<&str, &str>) {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let here = ["--runtime-dir", dir.path().to_str().unwrap()];
        let all = ["p"].iter().chain(&here).chain(options);
        let got = match Program::try_parse_from(all) {
            Ok(p) => p
                .freshness
                .freshness(&p.runtime, ID, Path::new("/srv/store"))
                .map_err(|e| e.code().to_owned()),
            Err(_) => Err("parse".to_owned()),
        };
        let got = got.map(|f| {
            let guest = f.guest.unwrap();
            assert!(guest.starts_with(dir.path()), "{guest:?}");
            format!(
                "{:?} strict={} head={:?} epoch={}",
                f.anchor,
                f.strict,
                f.accept_head.map(|head| head[31]),
                f.vmk_epoch_min
            )
        });
        assert_eq!(got.as_deref().map_err(String::as_str), want, "{options:?}");
    }

    #[test]
    fn options_say_which_anchor_and_what_is_accepted() {
        let none = "None strict=false head=None epoch=0";
        check(&[], Ok(none));
        check(&["--anchor", "none"], Ok(none));
        let file = r#"File { path: "/a:b", vouched: false } strict=false head=None epoch=0"#;
        check(&["--anchor", "file:/a:b"], Ok(file));
        let strict = r#"File { path: "a", vouched: true } strict=true head=None epoch=0"#;
        check(
            &["--anchor", "strict:file:a", "--anchor-vouched"],
            Ok(strict),
        );
        let head = "0f".repeat(32);
        let accepted = "None strict=false head=Some(15) epoch=2";
        check(
            &["--accept-head", &head, "--min-vmk-epoch", "2"],
            Ok(accepted),
        );
        for wrong in ["", "strict", "strict:none", "file:", "vault:x", "file"] {
            check(&["--anchor", wrong], Err("parse"));
        }
        for wrong in [
            "",
            "0f",
            &"0f".repeat(33),
            &"+f".repeat(32),
            &"é".repeat(32),
        ] {
            check(&["--accept-head", wrong], Err("parse"));
        }
        check(&["--anchor-vouched"], Err("fs.usage"));
    }

    #[test]
    fn a_named_directory_that_is_not_on_a_tmpfs_is_refused() {
        let disk = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = disk.path().to_str().unwrap();
        let program = Program::try_parse_from(["p", "--runtime-dir", path]).unwrap();
        let refused = program
            .freshness
            .freshness(&program.runtime, ID, Path::new("/srv/store"))
            .unwrap_err();
        assert_eq!(refused.code(), "fs.anchor_not_volatile");
    }
}
