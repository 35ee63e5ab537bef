//! Core: which anchors a mount uses, as the operator says it.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use keys::VolumeId;
use sha2::{Digest, Sha256};

use super::file::FileAnchor;
use super::guest::{GuestAnchor, make_directory};
use super::judge::Rules;
use super::none::NoAnchor;
use super::{Anchor, AnchorError};
use crate::crypto::VolumeKeys;
use crate::sys;

/// What protects a volume from being set back as a whole. By default nothing does.
#[derive(Debug, Clone, Default)]
pub struct Freshness {
    /// What outlives the guest.
    pub anchor: AnchorChoice,
    /// Whether fsync waits until the anchor has taken the state.
    pub strict: bool,
    /// File on the guest's tmpfs that outlives this process.
    pub guest: Option<PathBuf>,
    /// Head of the one state that is accepted whatever the anchors say. From the measured
    /// configuration and from nowhere else: whoever can set it can roll the volume back.
    pub accept_head: Option<[u8; 32]>,
    /// The lowest epoch of the master key that is accepted.
    pub vmk_epoch_min: u32,
}

/// What outlives the guest.
#[derive(Clone, Default)]
pub enum AnchorChoice {
    /// Nothing.
    #[default]
    None,
    /// A file.
    File {
        /// Where it is.
        path: PathBuf,
        /// Whether it may be elsewhere than on a tmpfs, because the host cannot set it back there.
        vouched: bool,
    },
    /// Somebody else's implementation, for this one volume.
    Other(Arc<dyn Anchor>),
}

/// A text names no anchor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an anchor is `none`, `file:PATH` or `strict:file:PATH`")]
pub struct UnknownAnchor;

/// The anchors of an open volume.
pub(crate) struct Anchors {
    pub(crate) guest: Option<GuestAnchor>,
    pub(crate) anchor: Arc<dyn Anchor>,
    pub(crate) strict: bool,
}

impl Freshness {
    /// The rules that a state is judged by.
    pub(crate) fn rules(&self) -> Rules {
        Rules {
            accept_head: self.accept_head,
            vmk_epoch_min: self.vmk_epoch_min,
        }
    }

    /// Opens the anchors of the volume whose keys these are.
    pub(crate) fn open(&self, keys: &Arc<VolumeKeys>) -> Result<Anchors, AnchorError> {
        let guest = self.guest.as_deref();
        let guest = guest.map(|path| GuestAnchor::open(path, Arc::clone(keys)));
        let anchor: Arc<dyn Anchor> = match &self.anchor {
            AnchorChoice::None => Arc::new(NoAnchor::announced()),
            AnchorChoice::File { path, vouched } => {
                Arc::new(FileAnchor::open(path, Arc::clone(keys), *vouched)?)
            }
            AnchorChoice::Other(anchor) => Arc::clone(anchor),
        };
        Ok(Anchors {
            guest: guest.transpose()?,
            anchor,
            strict: self.strict,
        })
    }
}

/// Where the guest remembers the volume in `store`, below `directory`.
///
/// By the path of the store as it was given, and not where links lead: those are often the host's,
/// as the names of devices are. So two copies of a volume at two paths are remembered apart, and
/// one store should always be named by the same path.
pub fn guest_anchor_path(directory: &Path, volume: VolumeId, store: &Path) -> io::Result<PathBuf> {
    // Again by parts: neither repeated separators nor one at the end make another path.
    let store: PathBuf = std::path::absolute(store)?.components().collect();
    let hash = Sha256::digest(store.as_os_str().as_encoded_bytes());
    let hash = hash
        .iter()
        .take(8)
        .fold(0, |acc: u64, byte| acc << 8 | u64::from(*byte));
    Ok(directory.join(format!("{volume}-{hash:016x}.anchor")))
}

/// Makes the directory of the guest's memories if need be; an error unless it is on a tmpfs.
pub(crate) fn make_guest_directory(path: &Path) -> Result<(), AnchorError> {
    let is_volatile = make_directory(path)
        .and_then(|()| File::open(path))
        .and_then(|directory| sys::is_volatile(&directory));
    if is_volatile.map_err(AnchorError::unavailable)? {
        Ok(())
    } else {
        Err(AnchorError::NotVolatile {
            path: path.to_path_buf(),
        })
    }
}

/// Forgets what the guest remembers at `path`: for a new volume that was just made there.
pub(crate) fn forget_guest_anchor(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// `none`, `file:PATH` or `strict:file:PATH`: the choice, and whether it is strict.
impl FromStr for Freshness {
    type Err = UnknownAnchor;

    fn from_str(text: &str) -> Result<Self, UnknownAnchor> {
        if text == "none" {
            return Ok(Self::default());
        }
        let (strict, text) = match text.strip_prefix("strict:") {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let path = text.strip_prefix("file:").ok_or(UnknownAnchor)?;
        if path.is_empty() {
            return Err(UnknownAnchor);
        }
        Ok(Self {
            anchor: AnchorChoice::File {
                path: path.into(),
                vouched: false,
            },
            strict,
            ..Self::default()
        })
    }
}

impl fmt::Debug for AnchorChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::File { path, vouched } => f
                .debug_struct("File")
                .field("path", path)
                .field("vouched", vouched)
                .finish(),
            Self::Other(anchor) => write!(f, "Other({})", anchor.kind()),
        }
    }
}

impl fmt::Debug for Anchors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Anchors")
            .field("guest", &self.guest.is_some())
            .field("anchor", &self.anchor.kind())
            .field("strict", &self.strict)
            .finish()
    }
}
