//! Port: what can be asked of a volume while it is mounted.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use keys::{KekEpoch, VolumeKek};
use serde::{Deserialize, Serialize};

use crate::exit::Exit;

/// A mounted volume, as its control socket sees it. Calls may come from several threads at once,
/// and after the volume was closed: then they fail.
pub trait Controlled: Send + Sync {
    /// Figures by name; a unit is the last word of its name, as in `written_bytes`.
    fn figures(&self) -> Result<Figures, ControlError>;

    /// Makes everything so far durable, writes a checkpoint, and lets nothing change the store until
    /// [`Controlled::thaw`]. Reads go on, changes wait. It is called only while not frozen.
    fn freeze(&self) -> Result<(), ControlError>;

    /// Lets changes go on. Called only while frozen, and must not fail to let them go on.
    fn thaw(&self) -> Result<(), ControlError>;

    /// Writes a checkpoint now.
    fn checkpoint(&self) -> Result<(), ControlError>;

    /// Reads everything that the volume consists of and tells which files are hurt. Ends early when
    /// `tell` says so.
    fn scrub(&self, tell: &mut Tell<'_>) -> Result<Scrubbed, ControlError>;

    /// Replaces keys. When `tell` says to end early, the caller does not wait any more, but what has
    /// begun goes on.
    fn rekey(&self, keys: NewKeys, tell: &mut Tell<'_>) -> Result<(), ControlError>;
}

/// Takes what happens meanwhile. It says to end early when nobody listens any more.
pub type Tell<'a> = dyn FnMut(Happening) -> ControlFlow<()> + 'a;

/// What happens during a long request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Happening {
    /// So much is done.
    Progress {
        /// Bytes done.
        done_bytes: u64,
        /// Bytes in all, as far as is known now.
        total_bytes: u64,
    },
    /// A file is hurt.
    Damaged {
        /// Its path from the root of the volume, or its inode number in `#` when it has none.
        file: String,
    },
}

/// Figures by name.
pub type Figures = BTreeMap<String, Figure>;

/// One figure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Figure {
    /// A number of something.
    Count(u64),
    /// Whether something is so.
    Flag(bool),
    /// A word.
    Text(String),
}

/// What scrubbing found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scrubbed {
    /// Bytes that were read and compared.
    pub checked_bytes: u64,
    /// Files that are hurt.
    pub damaged_files: u64,
    /// Whether all of the volume was read.
    pub complete: bool,
}

/// Keys to replace.
#[derive(Debug)]
pub struct NewKeys {
    /// The new key-encryption key and its epoch; the next one when there is none.
    pub kek: Option<(VolumeKek, Option<KekEpoch>)>,
    /// Whether to draw a new master key and seal everything anew under it.
    pub reseal: bool,
}

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// Changes wait already.
    #[error("the volume is frozen already")]
    AlreadyFrozen,
    /// Too many requests at once.
    #[error("too many requests at once")]
    Busy,
    /// The volume failed.
    #[error("{message}")]
    Failed {
        /// Stable name, as in docs/errors.md.
        code: &'static str,
        /// Exit code of a program that ends with it.
        exit: u8,
        /// What happened.
        message: String,
    },
    /// Nothing holds changes back. To whoever copied the store meanwhile: the copy may be torn.
    #[error("the volume is not frozen: it was not, or its time was over")]
    NotFrozen,
    /// The caller is not allowed to ask.
    #[error("uid {uid} may not ask")]
    Refused {
        /// Who asked.
        uid: u32,
    },
    /// The request is not one.
    #[error("the request is malformed: {0}")]
    Request(String),
    /// The volume is closed, or cannot do it.
    #[error("the volume cannot do this")]
    Unsupported,
}

impl ControlError {
    /// Its stable name, as in docs/errors.md.
    pub fn code(&self) -> &'static str {
        match self {
            Self::AlreadyFrozen => "fs.already_frozen",
            Self::Busy => "fs.control_busy",
            Self::Failed { code, .. } => code,
            Self::NotFrozen => "fs.not_frozen",
            Self::Refused { .. } => "fs.control_refused",
            Self::Request(_) => "fs.control_request",
            Self::Unsupported => "fs.unsupported",
        }
    }

    /// The exit code of a program that ends with it.
    pub fn exit_code(&self) -> u8 {
        let exit = match self {
            Self::AlreadyFrozen | Self::Busy => Exit::VolumeInUse,
            Self::Failed { exit, .. } => return *exit,
            Self::NotFrozen | Self::Refused { .. } | Self::Unsupported => Exit::MountFailed,
            Self::Request(_) => Exit::Usage,
        };
        exit.code()
    }
}
