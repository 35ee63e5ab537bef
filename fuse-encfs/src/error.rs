//! Core: what can go wrong, as callers and operators see it.

use keys::{KekEpoch, VolumeId};
use runtime::locked::LockError;

use crate::anchor::FreshnessError;
use crate::crypto::SealError;
use crate::exit::Exit;
use crate::log::{LogError, RecoverError};
use crate::segment::{MakeError, ReadError, WriteError};
use crate::store::StoreError;
use crate::tables::ApplyError;

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
    /// The key is one of another epoch than the one that the volume's master key is wrapped with.
    #[error("the volume's master key is wrapped with the key of epoch {found}")]
    OtherKekEpoch {
        /// The epoch that the superblock names.
        found: KekEpoch,
    },
    /// The volume is sealed with a master key that was replaced: an old copy of it.
    #[error("the volume's master key is of epoch {found}, below the lowest that is accepted")]
    StaleKeys {
        /// Epoch of the newest master key in the store.
        found: u32,
    },
    /// Keys cannot be locked in memory.
    #[error("keys cannot be locked in memory")]
    KeysUnlocked(#[source] std::io::Error),
    /// The volume is in no state to change keys.
    #[error("the keys of the volume cannot be changed so: {0}")]
    NotNow(&'static str),
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
    /// The device is too small for a volume.
    #[error("the device is too small for a volume")]
    TooSmall,
    /// The store failed.
    #[error("the store failed")]
    Store(#[source] std::io::Error),
    /// The system gives no randomness, without which nothing is sealed.
    #[error("the system gives no randomness")]
    Entropy,
    /// Its freshness is not certain.
    #[error(transparent)]
    Freshness(#[from] FreshnessError),
    /// Something that cannot happen did.
    #[error("internal error: {0}")]
    Bug(&'static str),
}

/// Why an operation on a file failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FsError {
    #[error("access is denied")]
    AccessDenied,
    #[error("it exists already")]
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
    #[error("there is no such attribute")]
    NoAttribute,
    #[error("there is no data behind the offset")]
    NoData,
    #[error("there is no such file")]
    NoEntry,
    #[error("it is not a directory")]
    NotDirectory,
    #[error("the directory is not empty")]
    NotEmpty,
    #[error("it is not permitted")]
    NotPermitted,
    #[error("it is not supported")]
    NotSupported,
    #[error("a length is out of range")]
    OutOfRange,
    #[error("the volume became read-only after a failure")]
    ReadOnly,
    #[error("the store failed")]
    Store(#[source] StoreError),
    #[error("the store does not hold what was written to it")]
    Tampered,
    #[error("the file would be too large")]
    TooLarge,
    #[error("the value is too long")]
    TooLong,
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
    #[error("the anchor has not taken the newest state")]
    NotAnchored,
    #[error("the volume became read-only after a failure")]
    ReadOnly,
    #[error("the log cannot go on")]
    Log(#[from] LogError),
    #[error("a part of the map cannot be read")]
    Read(#[from] ReadError),
    #[error("the store failed")]
    Store(#[from] StoreError),
    #[error("sealing failed")]
    Seal(#[from] SealError),
    #[error("the volume is inconsistent")]
    Inconsistent(#[source] crate::tables::Inconsistent),
    #[error("internal error: {0}")]
    Bug(&'static str),
}

impl OpenError {
    /// Its stable name, as in docs/errors.md.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Bug(_) => "fs.bug",
            Self::Entropy => "fs.no_entropy",
            Self::Freshness(e) => e.code(),
            Self::Full => "fs.store_full",
            Self::InUse => "fs.in_use",
            Self::KeysUnlocked(_) => "fs.keys_unlocked",
            Self::NotAVolume => "fs.not_a_volume",
            Self::NotEmpty => "fs.not_empty",
            Self::NotNow(_) => "fs.rekey_refused",
            Self::OtherFormat => "fs.other_format",
            Self::OtherKekEpoch { .. } => "fs.other_kek_epoch",
            Self::OtherVolume { .. } => "fs.other_volume",
            Self::StaleKeys { .. } => "fs.stale_keys",
            Self::Store(_) => "fs.store_failed",
            Self::Tampered { .. } => "fs.tampered",
            Self::TooSmall => "fs.store_too_small",
            Self::WrongKey => "fs.wrong_key",
        }
    }

    /// The exit code of a program that ends with it.
    pub fn exit_code(&self) -> u8 {
        let exit = match self {
            Self::Bug(_) | Self::Entropy => Exit::Bug,
            Self::Freshness(e) => return e.exit_code(),
            Self::Full | Self::TooSmall => Exit::StoreFull,
            Self::InUse => Exit::VolumeInUse,
            Self::NotAVolume | Self::NotEmpty | Self::OtherFormat | Self::OtherVolume { .. } => {
                Exit::NotOurVolume
            }
            Self::KeysUnlocked(_) | Self::Store(_) => Exit::MountFailed,
            Self::NotNow(_) => Exit::Usage,
            Self::StaleKeys { .. } | Self::Tampered { .. } => Exit::Tampered,
            Self::OtherKekEpoch { .. } | Self::WrongKey => Exit::WrongKey,
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
        let (CommitError::Store(e)
        | CommitError::Log(LogError::Store(e) | LogError::Make(MakeError::Store(e)))) = &self.0
        else {
            return false;
        };
        matches!(e, StoreError::Full)
    }
}

impl From<StoreError> for OpenError {
    fn from(e: StoreError) -> Self {
        match e {
            StoreError::Absent | StoreError::NotAnObject => Self::NotAVolume,
            StoreError::Changed => Self::InUse,
            StoreError::Busy | StoreError::LeaseLost => Self::InUse,
            StoreError::Exists => Self::Bug("an object of a random name exists"),
            StoreError::Full => Self::Full,
            StoreError::Io(e) => Self::Store(e),
            StoreError::Malformed(what) => Self::Tampered { what: what.into() },
            StoreError::NotEmpty => Self::NotEmpty,
            StoreError::TooSmall => Self::TooSmall,
        }
    }
}

impl From<SealError> for OpenError {
    fn from(e: SealError) -> Self {
        match e {
            SealError::Cipher => Self::Bug("the cipher refused to seal"),
            SealError::Entropy => Self::Entropy,
            SealError::Memory(LockError::Limit(e)) => Self::KeysUnlocked(e),
            SealError::Memory(LockError::NoMemory(e)) => Self::Store(e),
        }
    }
}

impl From<LogError> for OpenError {
    fn from(e: LogError) -> Self {
        match e {
            LogError::Seal(e) | LogError::Make(MakeError::Seal(e)) => e.into(),
            LogError::Store(e) | LogError::Make(MakeError::Store(e)) => e.into(),
            LogError::TooLarge => Self::Bug("a commit is too large"),
            LogError::Failed => Self::Store(std::io::ErrorKind::ReadOnlyFilesystem.into()),
            LogError::Lost | LogError::Moved => Self::Bug("the log cannot go on"),
        }
    }
}

impl From<RecoverError> for OpenError {
    fn from(e: RecoverError) -> Self {
        match e {
            RecoverError::Store(e) => e.into(),
            RecoverError::Inconsistent(_)
            | RecoverError::Lost { .. }
            | RecoverError::Tampered(_) => Self::Tampered {
                what: e.to_string(),
            },
        }
    }
}

impl From<CommitError> for OpenError {
    fn from(e: CommitError) -> Self {
        match e {
            CommitError::Store(e) => e.into(),
            CommitError::Bug(what) => Self::Bug(what),
            CommitError::Inconsistent(_) => Self::Bug("an operation does not fit the volume"),
            CommitError::Log(e) => e.into(),
            CommitError::NotAnchored => Self::Bug("a volume is anchored before it is opened"),
            CommitError::ReadOnly => Self::Store(std::io::ErrorKind::ReadOnlyFilesystem.into()),
            CommitError::Seal(e) => e.into(),
            CommitError::Read(e) => e.into(),
        }
    }
}

impl From<MakeError> for CommitError {
    fn from(e: MakeError) -> Self {
        match e {
            MakeError::Seal(e) => Self::Seal(e),
            MakeError::Store(e) => Self::Store(e),
        }
    }
}

impl From<ReadError> for OpenError {
    fn from(e: ReadError) -> Self {
        match e {
            ReadError::Store(e) => e.into(),
            ReadError::Tampered => Self::Tampered {
                what: "a part of the map is not what was written".into(),
            },
        }
    }
}

impl From<FsError> for CommitError {
    /// For contents of files that a commit needs.
    fn from(e: FsError) -> Self {
        match e {
            FsError::Full => Self::Store(StoreError::Full),
            FsError::ReadOnly => Self::ReadOnly,
            FsError::Store(e) => Self::Store(e),
            FsError::Tampered => Self::Read(ReadError::Tampered),
            FsError::AccessDenied
            | FsError::Exists
            | FsError::Failed(_)
            | FsError::Invalid
            | FsError::IsDirectory
            | FsError::LinkLimit
            | FsError::NameTooLong
            | FsError::NoAttribute
            | FsError::NoData
            | FsError::NoEntry
            | FsError::NotDirectory
            | FsError::NotEmpty
            | FsError::NotPermitted
            | FsError::NotSupported
            | FsError::OutOfRange
            | FsError::TooLarge
            | FsError::TooLong => Self::Bug("contents of a file cannot be committed"),
        }
    }
}

impl From<ApplyError> for CommitError {
    fn from(e: ApplyError) -> Self {
        match e {
            ApplyError::Inconsistent(e) => Self::Inconsistent(e),
            ApplyError::Read(e) => Self::Read(e),
        }
    }
}

impl From<ReadError> for FsError {
    fn from(e: ReadError) -> Self {
        match e {
            ReadError::Store(e) => Self::Store(e),
            ReadError::Tampered => Self::Tampered,
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
            CommitError::Store(StoreError::Full) => Self::Full,
            CommitError::Store(e) => Self::Store(e),
            CommitError::Read(e) => e.into(),
            CommitError::Bug(_)
            | CommitError::Inconsistent(_)
            | CommitError::Log(_)
            | CommitError::NotAnchored
            | CommitError::Seal(_) => Self::Failed("the change cannot be made durable"),
        }
    }
}
