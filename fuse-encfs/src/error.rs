//! Core: what can go wrong, as callers and operators see it.

use keys::VolumeId;

use crate::crypto::SealError;
use crate::exit::Exit;
use crate::log::{LogError, RecoverError};
use crate::segment::WriteError;
use crate::store::StoreError;
use crate::tree::TreeError;

/// Why a volume was not made or not opened.
///
/// None of them is ever a reason to make a new volume in its place.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The store is missing, or holds something that is not a volume.
    #[error("there is no volume in the store")]
    NotAVolume,
    /// A new volume is to be made where something is already.
    #[error("the store is not empty")]
    NotEmpty,
    /// The volume has a format, or a feature, that this version does not know.
    #[error("the volume has another format than this version knows")]
    OtherFormat,
    /// The store holds another volume than the expected one.
    #[error("the store holds volume {found}, not the expected one")]
    OtherVolume {
        /// The volume that the superblock names.
        found: VolumeId,
    },
    /// The key is not this volume's.
    #[error("the key is not the volume's")]
    WrongKey,
    /// Somebody else has the volume open.
    #[error("the volume is in use")]
    InUse,
    /// The store does not hold what was written to it.
    #[error("the store does not hold what was written to it: {what}")]
    Tampered {
        /// What was altered, cut off or taken away.
        what: String,
    },
    /// No space is left on the store.
    #[error("the store is full")]
    Full,
    /// The store failed.
    #[error("the store failed")]
    Store(#[source] std::io::Error),
    /// The system gives no randomness, without which nothing is sealed.
    #[error("the system gives no randomness")]
    Entropy,
    /// Something that cannot happen did.
    #[error("internal error: {0}")]
    Bug(&'static str),
}

/// Why an operation on a file failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FsError {
    #[error("the name is taken")]
    Exists,
    #[error("the store is full")]
    Full,
    #[error("an argument is not allowed")]
    Invalid,
    #[error("it is a directory")]
    IsDirectory,
    #[error("there are too many links")]
    LinkLimit,
    #[error("the name is too long")]
    NameTooLong,
    #[error("there is no such file")]
    NoEntry,
    #[error("it is not a directory")]
    NotDirectory,
    #[error("the directory is not empty")]
    NotEmpty,
    #[error("it is not permitted")]
    NotPermitted,
    #[error("the volume became read-only after a failure")]
    ReadOnly,
    #[error("the store failed")]
    Store(#[source] StoreError),
    #[error("the store does not hold what was written to it")]
    Tampered,
    #[error("the file would be too large")]
    TooLarge,
    #[error("the volume failed: {0}")]
    Failed(&'static str),
}

/// Why a volume was not brought to rest: what was done last may not be durable.
#[derive(Debug, thiserror::Error)]
#[error("the volume was not committed when it was closed")]
pub struct CloseError(#[from] CommitError);

/// Why the state was not made durable.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommitError {
    #[error("the volume became read-only after a failure")]
    ReadOnly,
    #[error("the log cannot go on")]
    Log(#[from] LogError),
    #[error("the contents of files cannot be flushed")]
    Flush(#[source] StoreError),
    #[error("the tree cannot be written")]
    Tree(#[from] TreeError),
    #[error("the store failed")]
    Store(#[from] StoreError),
    #[error("sealing failed")]
    Seal(#[from] SealError),
    #[error("the volume is inconsistent")]
    Inconsistent(#[from] crate::tables::Inconsistent),
}

impl OpenError {
    /// Its stable name, as in docs/errors.md.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Bug(_) => "fs.bug",
            Self::Entropy => "fs.no_entropy",
            Self::Full => "fs.store_full",
            Self::InUse => "fs.in_use",
            Self::NotAVolume => "fs.not_a_volume",
            Self::NotEmpty => "fs.not_empty",
            Self::OtherFormat => "fs.other_format",
            Self::OtherVolume { .. } => "fs.other_volume",
            Self::Store(_) => "fs.store_failed",
            Self::Tampered { .. } => "fs.tampered",
            Self::WrongKey => "fs.wrong_key",
        }
    }

    /// The exit code of a program that ends with it.
    pub fn exit_code(&self) -> u8 {
        let exit = match self {
            Self::Bug(_) | Self::Entropy => Exit::Bug,
            Self::Full => Exit::StoreFull,
            Self::InUse => Exit::VolumeInUse,
            Self::NotAVolume | Self::NotEmpty | Self::OtherFormat | Self::OtherVolume { .. } => {
                Exit::NotOurVolume
            }
            Self::Store(_) => Exit::MountFailed,
            Self::Tampered { .. } => Exit::Tampered,
            Self::WrongKey => Exit::WrongKey,
        };
        exit.code()
    }
}

impl CloseError {
    /// Its stable name, as in docs/errors.md.
    pub fn code(&self) -> &'static str {
        if self.is_full() {
            "fs.store_full"
        } else {
            "fs.not_committed"
        }
    }

    /// The exit code of a program that ends with it.
    pub fn exit_code(&self) -> u8 {
        if self.is_full() {
            Exit::StoreFull.code()
        } else {
            Exit::MountFailed.code()
        }
    }

    fn is_full(&self) -> bool {
        let (CommitError::Flush(e)
        | CommitError::Store(e)
        | CommitError::Log(LogError::Store(e))
        | CommitError::Tree(TreeError::Store(e))) = &self.0
        else {
            return false;
        };
        matches!(e, StoreError::Full)
    }
}

impl From<StoreError> for OpenError {
    fn from(e: StoreError) -> Self {
        match e {
            StoreError::Absent => Self::NotAVolume,
            StoreError::Busy | StoreError::LeaseLost => Self::InUse,
            StoreError::Exists => Self::Bug("an object of a random name exists"),
            StoreError::Full => Self::Full,
            StoreError::Io(e) => Self::Store(e),
            StoreError::NotAnObject => Self::NotAVolume,
        }
    }
}

impl From<SealError> for OpenError {
    fn from(e: SealError) -> Self {
        match e {
            SealError::Cipher => Self::Bug("the cipher refused to seal"),
            SealError::Entropy => Self::Entropy,
        }
    }
}

impl From<LogError> for OpenError {
    fn from(e: LogError) -> Self {
        match e {
            LogError::Seal(e) => e.into(),
            LogError::Store(e) => e.into(),
            LogError::TooLarge => Self::Bug("a commit is too large"),
        }
    }
}

impl From<RecoverError> for OpenError {
    fn from(e: RecoverError) -> Self {
        match e {
            RecoverError::Store(e) => e.into(),
            RecoverError::Inconsistent(e) => Self::Tampered {
                what: e.to_string(),
            },
            RecoverError::Lost { .. } | RecoverError::Tampered(_) => Self::Tampered {
                what: e.to_string(),
            },
        }
    }
}

impl From<CommitError> for OpenError {
    fn from(e: CommitError) -> Self {
        match e {
            CommitError::Flush(e) | CommitError::Store(e) => e.into(),
            CommitError::Inconsistent(_) => Self::Bug("an operation does not fit the volume"),
            CommitError::Log(e) => e.into(),
            CommitError::ReadOnly => Self::Store(std::io::ErrorKind::ReadOnlyFilesystem.into()),
            CommitError::Seal(e) | CommitError::Tree(TreeError::Seal(e)) => e.into(),
            CommitError::Tree(TreeError::Store(e)) => e.into(),
            CommitError::Tree(TreeError::Unplanned) => Self::Bug("a tree was not planned for"),
        }
    }
}

impl From<WriteError> for FsError {
    fn from(e: WriteError) -> Self {
        match e {
            WriteError::Seal(_) => Self::Failed("the data cannot be sealed"),
            WriteError::Store(StoreError::Full) => Self::Full,
            WriteError::Store(e) => Self::Store(e),
        }
    }
}

impl From<CommitError> for FsError {
    fn from(e: CommitError) -> Self {
        match e {
            CommitError::ReadOnly => Self::ReadOnly,
            CommitError::Store(StoreError::Full)
            | CommitError::Tree(TreeError::Store(StoreError::Full)) => Self::Full,
            CommitError::Flush(e) | CommitError::Store(e) => Self::Store(e),
            CommitError::Inconsistent(_)
            | CommitError::Log(_)
            | CommitError::Seal(_)
            | CommitError::Tree(_) => Self::Failed("the change cannot be made durable"),
        }
    }
}
