//! Core: exit codes, the same in every program of the product.

/// How a program ends; many errors share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// All went well.
    Ok,
    /// The mount, or the store under it, failed.
    MountFailed,
    /// Tampering or a rollback was found.
    Tampered,
    /// The key is not the volume's.
    WrongKey,
    /// Somebody else has the volume.
    VolumeInUse,
    /// The store is missing, holds something else, another volume, or a newer format.
    NotOurVolume,
    /// The store is full.
    StoreFull,
    /// The command line is wrong.
    Usage,
    /// An input is malformed.
    Malformed,
    /// A bug.
    Bug,
}

impl Exit {
    /// The code.
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::MountFailed => 45,
            Self::Tampered => 46,
            Self::WrongKey => 48,
            Self::VolumeInUse => 49,
            Self::NotOurVolume => 50,
            Self::StoreFull => 51,
            Self::Usage => 64,
            Self::Malformed => 65,
            Self::Bug => 70,
        }
    }
}
